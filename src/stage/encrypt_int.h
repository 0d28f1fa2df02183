/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the encrypt stage share: encrypt.c, which has the requests; encrypt_key.c, the
 * secret and the keys made of it; encrypt_meta.c, the file beside; encrypt_gcm.c, the chunks of the
 * authenticated mode.
 *
 * Keys. The secret that the user gives is never a key itself: HKDF-SHA-256 (RFC 5869) makes one for
 * each use, with the salt "remora encrypt 1" and the labels "xts", "gcm", "meta" and "check". Those
 * of the mode gcm also have the random id of the meta file in their label, so that two resources
 * under one secret never share a key.
 */
#ifndef REMORA_STAGE_ENCRYPT_INT_H
#define REMORA_STAGE_ENCRYPT_INT_H

#include <openssl/evp.h>
#include <pthread.h>

#include "base/limits.h"
#include "store/spec.h"

#define ENCRYPT_UNIT 4096u     /* data unit of the mode xts */
#define ENCRYPT_XTS_MIN 16u    /* bytes that ciphertext stealing needs */
#define ENCRYPT_SECRET_MAX 64u
#define ENCRYPT_KEY_LEN 32u
#define ENCRYPT_CHECK_LEN 8u
#define ENCRYPT_ID_LEN 32u

enum encrypt_mode { ENCRYPT_XTS = 1, ENCRYPT_GCM = 2 };

/* ---- keys: encrypt_key.c ---- */

struct encrypt_secret {
	uint8_t at[ENCRYPT_SECRET_MAX];
	size_t len;
};

/* From key=, command= or env= of the stage's options. */
MUST_USE int encrypt_secret_get(struct encrypt_secret *ret, struct spec_args *args);
/* The bytes as they came: 32 or 64 of them, or as many hexadecimal digits twice. False: neither. */
bool encrypt_secret_parse(struct encrypt_secret *ret, const uint8_t *from, size_t len);
void encrypt_secret_done(struct encrypt_secret *secret); /* wipes */

/* HKDF-SHA-256, extract and expand. */
MUST_USE int encrypt_hkdf(const uint8_t *secret, size_t secret_len, const uint8_t *salt,
			  size_t salt_len, const uint8_t *info, size_t info_len, uint8_t *ret,
			  size_t ret_len);
/* A key of ours: the salt above; info = label, then id (id may be NULL). */
MUST_USE int encrypt_derive(const struct encrypt_secret *secret, const char *label,
			    const uint8_t *id, uint8_t *ret, size_t ret_len);

/* One data unit, of ENCRYPT_XTS_MIN bytes or more, with its number as the tweak (IEEE 1619). `ctx`
 * has the key and the direction: encrypt_xts_ctx(). In place or apart. */
MUST_USE int encrypt_xts_unit(EVP_CIPHER_CTX *ctx, uint64_t unit, const uint8_t *from, uint8_t *to,
			      size_t len);
EVP_CIPHER_CTX *encrypt_xts_ctx(const uint8_t key[static 64], bool encrypt); /* NULL: no memory */

/* ---- the file beside: encrypt_meta.c ---- */

#define META_DOUBTS_MAX 64u
#define META_PAGE 4096u
#define META_SLOTS 4u	 /* of a chunk */
#define META_SLOT_LEN 64u
#define META_SLOTS_AT (2u * META_PAGE)
#define META_NONCE_LEN 12u
#define META_TAG_LEN 16u

/* Sequence numbers in (from, to]. */
struct meta_span {
	uint64_t from, to;
};

struct meta_slot {
	uint64_t seq; /* 0 = none */
	uint8_t nonce[META_NONCE_LEN];
	uint8_t tag[META_TAG_LEN];
};

/* Of the header. */
struct meta_head {
	enum encrypt_mode mode;
	uint32_t chunk;
	uint64_t size;
	uint8_t id[ENCRYPT_ID_LEN], check[ENCRYPT_CHECK_LEN];
	uint64_t generation; /* of the header itself */
	uint64_t reserved;   /* no higher number has been used */
	uint64_t settled;    /* what has one up to here is durable on the far side, doubts aside */
	uint32_t doubts;
	struct meta_span doubt[META_DOUBTS_MAX];
};

struct encrypt_meta {
	int fd;
	char *path;
	bool read_only;
	uint8_t key[ENCRYPT_KEY_LEN]; /* of the codes that keep header and slots from being changed
				       */
	/* `lock` guards head, used and
	 * reserved_there; `io` is held while a header is written. */
	pthread_mutex_t lock, io;
	struct meta_head head;
	uint64_t used;	  /* the last sequence number given out */
	uint64_t reserved_there, written; /* what the file has: reserved, generation */
};

/* Opens or makes (with `fresh`) the file, finds a wrong key, a wrong size, another process. `want`
 * has mode, chunk, size and check; id is drawn, or read. */
MUST_USE int encrypt_meta_open(struct encrypt_meta *m, const char *path, bool fresh, bool read_only,
			       const struct meta_head *want, const struct encrypt_secret *secret,
			       struct err *e);
void encrypt_meta_close(struct encrypt_meta *m);

/* Loop thread: `n` sequence numbers, the first of them. */
uint64_t encrypt_meta_take(struct encrypt_meta *m, uint64_t n);
/* Any thread: what up to `to` was written may be on the far side or not; from now on either is
 * taken. */
void encrypt_meta_doubt(struct encrypt_meta *m);
bool encrypt_meta_doubtful(struct encrypt_meta *m, uint64_t seq);
/* What has a number up to `to` is durable. Memory only: encrypt_meta_save() writes it. */
void encrypt_meta_settle(struct encrypt_meta *m, uint64_t to);

/* These block; any thread. */
MUST_USE int encrypt_meta_save(struct encrypt_meta *m);
MUST_USE int encrypt_meta_reserve(struct encrypt_meta *m, uint64_t to);
/* At the end: the numbers that were reserved and not used are no doubt of the next opening. */
MUST_USE int encrypt_meta_finish(struct encrypt_meta *m);
/* The slots of one chunk. A slot whose code is wrong has seq 0, and *ret_bad is set. */
MUST_USE int encrypt_meta_read(struct encrypt_meta *m, EVP_MAC_CTX *mac, uint64_t chunk,
			       struct meta_slot slot[static META_SLOTS], bool *ret_bad);
MUST_USE int encrypt_meta_write(struct encrypt_meta *m, EVP_MAC_CTX *mac, uint64_t chunk,
				unsigned at, const struct meta_slot *slot);

EVP_MAC_CTX *encrypt_mac_ctx(const uint8_t key[static ENCRYPT_KEY_LEN]); /* NULL: no memory */
/* HMAC-SHA-256 with the key of the context. */
MUST_USE int encrypt_mac(EVP_MAC_CTX *mac, const uint8_t *from, size_t len, uint8_t ret[static 32]);

/* ---- chunks: encrypt_gcm.c ---- */

/* What one request needs, so that it can run on any thread. */
struct encrypt_gcm {
	EVP_CIPHER_CTX *cipher;
	EVP_MAC_CTX *meta_mac, *chunk_mac;
};

/* `from` is plain text, `to` gets what goes to the far side; the slots are in the file (and on its
 * disk, with `sync`) when it returns. `seq` is the first chunk's number. */
MUST_USE int encrypt_gcm_seal(struct encrypt_gcm *g, struct encrypt_meta *m, struct range range,
			      const uint8_t *from, uint8_t *to, uint64_t seq, bool sync);
/* -EBADMSG: *ret_chunk is none that was ever written there. *ret_former counts the chunks that are
 * what they were before a write that never was flushed. */
MUST_USE int encrypt_gcm_open(struct encrypt_gcm *g, struct encrypt_meta *m, struct range range,
			      const uint8_t *from, uint8_t *to, uint64_t *ret_chunk,
			      uint64_t *ret_former);
/* -ENOMEM, or 0. */
MUST_USE int encrypt_gcm_init(struct encrypt_gcm *g, const struct encrypt_meta *m,
			      const uint8_t chunk_key[static ENCRYPT_KEY_LEN]);
void encrypt_gcm_done(struct encrypt_gcm *g);

#endif
