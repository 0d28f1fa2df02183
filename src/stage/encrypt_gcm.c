/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunks of the encrypt stage's mode gcm: AES-256-GCM, its tags in the file beside.
 *
 * Each chunk has a key of its own, HMAC-SHA-256 of its number under the resource's, so that the
 * random nonces of 96 bits (NIST SP 800-38D) are drawn once per write of that chunk and not of the
 * resource: no number of writes that anybody will live to see makes a repetition likely. Number and
 * sequence number of the chunk are authenticated with it: a chunk in another's place, or an older
 * one of the same place, has another tag.
 *
 * Place: called by encrypt.c on threads of the pool, with what one request has to itself.
 *
 * Invariants: plain text that does not match its tag is wiped before anybody gets it.
 *
 * Locking: none of its own; encrypt_meta.c's.
 */
#include "stage/encrypt_int.h"

#include <endian.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <string.h>
#include <unistd.h>

/* key of a chunk, and what is authenticated with it */
struct seal {
	uint8_t key[32];
	uint64_t words[2]; /* chunk, sequence number; little endian */
};

int encrypt_gcm_init(struct encrypt_gcm *g, const struct encrypt_meta *m,
		     const uint8_t chunk_key[static ENCRYPT_KEY_LEN])
{
	g->cipher = EVP_CIPHER_CTX_new();
	g->meta_mac = encrypt_mac_ctx(m->key);
	g->chunk_mac = encrypt_mac_ctx(chunk_key);
	return g->cipher && g->meta_mac && g->chunk_mac &&
			       EVP_CipherInit_ex(g->cipher, EVP_aes_256_gcm(), NULL, NULL, NULL,
						 1) == 1
		       ? 0
		       : -ENOMEM;
}

void encrypt_gcm_done(struct encrypt_gcm *g)
{
	EVP_CIPHER_CTX_free(g->cipher);
	EVP_MAC_CTX_free(g->meta_mac);
	EVP_MAC_CTX_free(g->chunk_mac);
}

static int seal_init(struct encrypt_gcm *g, struct seal *s, uint64_t chunk)
{
	s->words[0] = htole64(chunk);
	return encrypt_mac(g->chunk_mac, (const uint8_t *)s->words, sizeof(s->words[0]), s->key);
}

static int chunk_seal(struct encrypt_gcm *g, struct seal *s, const uint8_t *from, uint8_t *to,
		      size_t len, struct meta_slot *slot)
{
	int n = 0, end = 0;

	s->words[1] = htole64(slot->seq);
	if (RAND_bytes(slot->nonce, META_NONCE_LEN) != 1 ||
	    EVP_CipherInit_ex(g->cipher, NULL, NULL, s->key, slot->nonce, 1) != 1 ||
	    EVP_CipherUpdate(g->cipher, NULL, &n, (const uint8_t *)s->words, sizeof(s->words)) !=
		    1 ||
	    EVP_CipherUpdate(g->cipher, to, &n, from, (int)len) != 1 ||
	    EVP_CipherFinal_ex(g->cipher, to + n, &end) != 1 || (size_t)(n + end) != len ||
	    EVP_CIPHER_CTX_ctrl(g->cipher, EVP_CTRL_AEAD_GET_TAG, META_TAG_LEN, slot->tag) != 1)
		return -EIO;
	return 0;
}

static bool chunk_open(struct encrypt_gcm *g, struct seal *s, const uint8_t *from, uint8_t *to,
		       size_t len, const struct meta_slot *slot)
{
	uint8_t tag[META_TAG_LEN];
	int n = 0, end = 0;

	memcpy(tag, slot->tag, sizeof(tag));
	s->words[1] = htole64(slot->seq);
	return EVP_CipherInit_ex(g->cipher, NULL, NULL, s->key, slot->nonce, 0) == 1 &&
	       EVP_CipherUpdate(g->cipher, NULL, &n, (const uint8_t *)s->words, sizeof(s->words)) ==
		       1 &&
	       EVP_CipherUpdate(g->cipher, to, &n, from, (int)len) == 1 && (size_t)n == len &&
	       EVP_CIPHER_CTX_ctrl(g->cipher, EVP_CTRL_AEAD_SET_TAG, META_TAG_LEN, tag) == 1 &&
	       EVP_CipherFinal_ex(g->cipher, to + n, &end) == 1;
}

int encrypt_gcm_seal(struct encrypt_gcm *g, struct encrypt_meta *m, struct range range,
		     const uint8_t *from, uint8_t *to, uint64_t seq, bool sync)
{
	uint32_t chunk_len = m->head.chunk;
	uint64_t chunk = range.off / chunk_len;
	uint64_t chunks = (range.len + chunk_len - 1) / chunk_len;
	struct meta_slot slot[META_SLOTS];
	struct seal s;
	int r = encrypt_meta_reserve(m, seq + chunks - 1);

	for (size_t at = 0; at < range.len && !r; at += chunk_len, chunk++, seq++) {
		size_t len = MIN((size_t)range.len - at, (size_t)chunk_len);
		unsigned oldest = 0;
		bool bad;

		r = encrypt_meta_read(m, g->meta_mac, chunk, slot, &bad);
		for (unsigned i = 0; i < META_SLOTS && !r; i++) {
			if (slot[i].seq < slot[oldest].seq)
				oldest = i;
			if (slot[i].seq >= seq) /* the header is older than the slots */
				r = -EBADMSG;
		}
		if (!r)
			r = seal_init(g, &s, chunk);
		slot[oldest].seq = seq;
		if (!r)
			r = chunk_seal(g, &s, from + at, to + at, len, &slot[oldest]);
		if (!r)
			r = encrypt_meta_write(m, g->meta_mac, chunk, oldest, &slot[oldest]);
	}
	OPENSSL_cleanse(&s, sizeof(s));
	if (!r && sync && fdatasync(m->fd))
		r = -errno;
	return r;
}

/* The newest slot that is older than `seq`, or NULL. */
static const struct meta_slot *slot_before(const struct meta_slot *slot, uint64_t seq)
{
	const struct meta_slot *best = NULL;

	for (unsigned i = 0; i < META_SLOTS; i++)
		if (slot[i].seq && slot[i].seq < seq && (!best || slot[i].seq > best->seq))
			best = &slot[i];
	return best;
}

/* One chunk. -EBADMSG: none of what may be there. */
static int one_open(struct encrypt_gcm *g, struct encrypt_meta *m, uint64_t chunk,
		    const uint8_t *from, uint8_t *to, size_t len, bool *ret_former)
{
	struct meta_slot slot[META_SLOTS];
	const struct meta_slot *at;
	struct seal s;
	bool bad, room = false, doubtful = true;
	int r = encrypt_meta_read(m, g->meta_mac, chunk, slot, &bad);

	if (!r)
		r = seal_init(g, &s, chunk);
	if (r)
		return r;
	for (unsigned i = 0; i < META_SLOTS; i++)
		room = room || !slot[i].seq;
	*ret_former = false;
	r = -EBADMSG;
	for (at = slot_before(slot, UINT64_MAX); at && doubtful; at = slot_before(slot, at->seq)) {
		if (chunk_open(g, &s, from, to, len, at)) {
			r = 0;
			break;
		}
		*ret_former = true;
		doubtful = encrypt_meta_doubtful(m, at->seq);
	}
	/* Never written; or nobody knows that any of the writes was carried out, and before them it
	 * never was. A slot that is damaged may have been one that counts. */
	if (r && !at && doubtful && room && !bad) {
		memset(to, 0, len);
		r = 0;
	}
	OPENSSL_cleanse(&s, sizeof(s));
	return r;
}

int encrypt_gcm_open(struct encrypt_gcm *g, struct encrypt_meta *m, struct range range,
		     const uint8_t *from, uint8_t *to, uint64_t *ret_chunk, uint64_t *ret_former)
{
	uint32_t chunk_len = m->head.chunk;
	uint64_t chunk = range.off / chunk_len;
	int r = 0;

	*ret_former = 0;
	for (size_t at = 0; at < range.len && !r; at += chunk_len, chunk++) {
		size_t len = MIN((size_t)range.len - at, (size_t)chunk_len);
		bool former = false;

		r = one_open(g, m, chunk, from + at, to + at, len, &former);
		*ret_former += former;
		*ret_chunk = chunk;
	}
	if (r)
		OPENSSL_cleanse(to, (size_t)range.len);
	return r;
}
