/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file beside an encrypted resource: what its key is, how far it is durable, and, in the mode
 * gcm, the tag of each chunk. It stays with the key; the far side never sees it.
 *
 *   0      header \ both begin alike; the one with the higher generation and a code that is right
 *   4096   header / counts, and the other is written next
 *   8192   gcm: 4 slots of 64 bytes for each chunk, in the order of the chunks
 *
 * Header, little endian: 0 "REMORAEN"; 8 version 1 (4 bytes); 12 mode, 1 xts, 2 gcm (4); 16 chunk
 * (4); 20 number of doubts (4); 24 size of the resource (8); 32 generation (8); 40 reserved (8); 48
 * settled (8); 56 check (8); 64 id (32); 128 doubts, each from (8) and to (8); 4064 HMAC-SHA-256 of
 * what is before. Slot: 0 sequence number (8), 0 = none; 8 nonce (12); 20 tag (16); 36 zeros (12);
 * 48 the first 16 bytes of HMAC-SHA-256 of the chunk's number (8) and the slot's first 36 bytes.
 *
 * Crash safety. Every write of a chunk has a sequence number and its own slot, which is on disk
 * before the data is on its way; the oldest of the four slots gives way. So whichever of the last
 * writes has reached the far side, its slot is here. What has a number up to `settled` was flushed:
 * only the newest slot counts. A number in a doubt is of a write that failed, or was not flushed
 * before a crash: then the slot before it is good, too.
 *
 * Invariants: settled <= used; while nothing is written used <= reserved; no number above
 * `reserved` (of the file) is in a slot.
 *
 * Locking: `lock` for head and used, never held across I/O; `io` for the file's headers. A slot
 * belongs to the request that has its chunk: encrypt.c sees to it that there is one.
 */
#include "stage/encrypt_int.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/le.h"

#define META_VERSION 1u
#define META_MAC_AT (META_PAGE - 32)
#define META_DOUBTS_AT 128u
#define META_CODE_LEN 16u
#define META_RESERVE (1ULL << 20) /* numbers reserved at a time */

static_assert(META_DOUBTS_AT + META_DOUBTS_MAX * 16 <= META_MAC_AT,
	      "the doubts fit into the header");

static const char magic[8] = "REMORAEN";

/* ---- codes ---- */

EVP_MAC_CTX *encrypt_mac_ctx(const uint8_t key[static ENCRYPT_KEY_LEN])
{
	EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	EVP_MAC_CTX *ctx = mac ? EVP_MAC_CTX_new(mac) : NULL;
	char digest[] = "SHA256";
	const OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
		OSSL_PARAM_construct_end(),
	};

	EVP_MAC_free(mac);
	if (ctx && EVP_MAC_init(ctx, key, ENCRYPT_KEY_LEN, params) != 1) {
		EVP_MAC_CTX_free(ctx);
		return NULL;
	}
	return ctx;
}

int encrypt_mac(EVP_MAC_CTX *mac, const uint8_t *from, size_t len, uint8_t ret[static 32])
{
	size_t n = 0;

	if (EVP_MAC_init(mac, NULL, 0, NULL) != 1 || EVP_MAC_update(mac, from, len) != 1 ||
	    EVP_MAC_final(mac, ret, &n, 32) != 1 || n != 32)
		return -EIO;
	return 0;
}

static int head_code(const struct encrypt_meta *m, const uint8_t *page, uint8_t ret[static 32])
{
	EVP_MAC_CTX *mac = encrypt_mac_ctx(m->key);
	int r = mac ? encrypt_mac(mac, page, META_MAC_AT, ret) : -ENOMEM;

	EVP_MAC_CTX_free(mac);
	return r;
}

/* ---- the header ---- */

static void head_encode(const struct meta_head *h, uint8_t page[static META_PAGE])
{
	memset(page, 0, META_PAGE);
	memcpy(page, magic, sizeof(magic));
	put32(page + 8, META_VERSION);
	put32(page + 12, h->mode);
	put32(page + 16, h->chunk);
	put32(page + 20, h->doubts);
	put64(page + 24, h->size);
	put64(page + 32, h->generation);
	put64(page + 40, h->reserved);
	put64(page + 48, h->settled);
	memcpy(page + 56, h->check, ENCRYPT_CHECK_LEN);
	memcpy(page + 64, h->id, ENCRYPT_ID_LEN);
	for (uint32_t i = 0; i < h->doubts; i++) {
		put64(page + META_DOUBTS_AT + 16 * i, h->doubt[i].from);
		put64(page + META_DOUBTS_AT + 16 * i + 8, h->doubt[i].to);
	}
}

/* What the code has been found right for. */
static bool head_decode(const uint8_t page[static META_PAGE], struct meta_head *h)
{
	*h = (struct meta_head){
		.mode = get32(page + 12),
		.chunk = get32(page + 16),
		.doubts = get32(page + 20),
		.size = get64(page + 24),
		.generation = get64(page + 32),
		.reserved = get64(page + 40),
		.settled = get64(page + 48),
	};
	memcpy(h->check, page + 56, ENCRYPT_CHECK_LEN);
	memcpy(h->id, page + 64, ENCRYPT_ID_LEN);
	if (h->doubts > META_DOUBTS_MAX || h->settled > h->reserved)
		return false;
	for (uint32_t i = 0; i < h->doubts; i++)
		h->doubt[i] = (struct meta_span){ get64(page + META_DOUBTS_AT + 16 * i),
						  get64(page + META_DOUBTS_AT + 16 * i + 8) };
	return true;
}

/* Writes what is there now, unless somebody has already. */
int encrypt_meta_save(struct encrypt_meta *m)
{
	uint8_t page[META_PAGE];
	struct meta_head head;
	int r = 0;

	pthread_mutex_lock(&m->io);
	pthread_mutex_lock(&m->lock);
	head = m->head;
	pthread_mutex_unlock(&m->lock);
	if (head.generation != m->written) {
		head_encode(&head, page);
		r = head_code(m, page, page + META_MAC_AT);
		if (!r)
			r = fd_write_at(m->fd, page, META_PAGE, head.generation % 2 * META_PAGE);
		if (!r && fdatasync(m->fd))
			r = -errno;
		if (!r) {
			m->written = head.generation;
			pthread_mutex_lock(&m->lock);
			m->reserved_there = head.reserved;
			pthread_mutex_unlock(&m->lock);
		}
	}
	pthread_mutex_unlock(&m->io);
	return r;
}

static void doubt_add(struct meta_head *h, uint64_t from, uint64_t to)
{
	if (from >= to)
		return;
	h->generation++;
	if (h->doubts && h->doubt[h->doubts - 1].to == from) {
		h->doubt[h->doubts - 1].to = to;
		return;
	}
	if (h->doubts == META_DOUBTS_MAX) {
		/* What is between the two oldest is doubted, too: less is found out, nothing is
		 * lost. */
		h->doubt[1].from = h->doubt[0].from;
		memmove(&h->doubt[0], &h->doubt[1], sizeof(h->doubt[0]) * (META_DOUBTS_MAX - 1));
		h->doubts--;
	}
	h->doubt[h->doubts++] = (struct meta_span){ from, to };
}

void encrypt_meta_doubt(struct encrypt_meta *m)
{
	pthread_mutex_lock(&m->lock);
	doubt_add(&m->head, m->head.settled, m->used);
	m->head.settled = MAX(m->head.settled, m->used);
	pthread_mutex_unlock(&m->lock);
}

bool encrypt_meta_doubtful(struct encrypt_meta *m, uint64_t seq)
{
	bool ret = false;

	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; i < m->head.doubts && !ret; i++)
		ret = seq > m->head.doubt[i].from && seq <= m->head.doubt[i].to;
	pthread_mutex_unlock(&m->lock);
	return ret;
}

void encrypt_meta_settle(struct encrypt_meta *m, uint64_t to)
{
	pthread_mutex_lock(&m->lock);
	CHECK(to <= m->used);
	if (to > m->head.settled) {
		m->head.settled = to;
		m->head.generation++;
	}
	pthread_mutex_unlock(&m->lock);
}

uint64_t encrypt_meta_take(struct encrypt_meta *m, uint64_t n)
{
	uint64_t first;

	pthread_mutex_lock(&m->lock);
	first = m->used + 1;
	m->used += n;
	pthread_mutex_unlock(&m->lock);
	return first;
}

int encrypt_meta_reserve(struct encrypt_meta *m, uint64_t to)
{
	bool enough;

	pthread_mutex_lock(&m->lock);
	enough = to <= m->reserved_there;
	if (to > m->head.reserved) {
		m->head.reserved = to + META_RESERVE;
		m->head.generation++;
	}
	pthread_mutex_unlock(&m->lock);
	return enough ? 0 : encrypt_meta_save(m);
}

int encrypt_meta_finish(struct encrypt_meta *m)
{
	if (m->read_only)
		return 0;
	pthread_mutex_lock(&m->lock);
	if (m->head.reserved != m->used) {
		m->head.reserved = m->used;
		m->head.generation++;
	}
	pthread_mutex_unlock(&m->lock);
	return encrypt_meta_save(m);
}

/* ---- slots ---- */

static void slot_encode(uint64_t chunk, const struct meta_slot *slot, uint8_t *at)
{
	put64(at, chunk);
	put64(at + 8, slot->seq);
	memcpy(at + 16, slot->nonce, META_NONCE_LEN);
	memcpy(at + 28, slot->tag, META_TAG_LEN);
}

#define SLOT_SIGNED_LEN 44u

static uint64_t slots_at(uint64_t chunk)
{
	return META_SLOTS_AT + chunk * META_SLOTS * META_SLOT_LEN;
}

int encrypt_meta_read(struct encrypt_meta *m, EVP_MAC_CTX *mac, uint64_t chunk,
		      struct meta_slot slot[static META_SLOTS], bool *ret_bad)
{
	static const uint8_t none[META_SLOT_LEN];
	uint8_t raw[META_SLOTS * META_SLOT_LEN], text[SLOT_SIGNED_LEN], code[32];
	int r = fd_read_at(m->fd, raw, sizeof(raw), slots_at(chunk));

	*ret_bad = false;
	if (r == -ENODATA) /* shorter than it was made */
		r = -EIO;
	for (unsigned i = 0; i < META_SLOTS && !r; i++) {
		const uint8_t *at = raw + i * META_SLOT_LEN;

		slot[i].seq = get64(at);
		memcpy(slot[i].nonce, at + 8, META_NONCE_LEN);
		memcpy(slot[i].tag, at + 20, META_TAG_LEN);
		if (!memcmp(at, none, META_SLOT_LEN))
			continue;
		slot_encode(chunk, &slot[i], text);
		r = encrypt_mac(mac, text, sizeof(text), code);
		if (!r && (!slot[i].seq || CRYPTO_memcmp(code, at + 48, META_CODE_LEN))) {
			slot[i].seq = 0;
			*ret_bad = true;
		}
	}
	return r;
}

int encrypt_meta_write(struct encrypt_meta *m, EVP_MAC_CTX *mac, uint64_t chunk, unsigned at,
		       const struct meta_slot *slot)
{
	uint8_t raw[META_SLOT_LEN] = { 0 }, text[SLOT_SIGNED_LEN], code[32];
	int r;

	CHECK(at < META_SLOTS && slot->seq);
	slot_encode(chunk, slot, text);
	r = encrypt_mac(mac, text, sizeof(text), code);
	if (r)
		return r;
	memcpy(raw, text + 8, SLOT_SIGNED_LEN - 8);
	memcpy(raw + 48, code, META_CODE_LEN);
	return fd_write_at(m->fd, raw, sizeof(raw), slots_at(chunk) + at * META_SLOT_LEN);
}

/* ---- opening ---- */

static int dir_sync(const char *path)
{
	AUTO_FREE char *dir = strdup(path);
	AUTO_FD int fd = -1;
	char *slash;

	if (!dir)
		return -ENOMEM;
	slash = strrchr(dir, '/');
	if (slash)
		slash[slash == dir] = '\0';
	fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) ? -errno : 0;
}

static int meta_make(struct encrypt_meta *m, const struct encrypt_secret *secret, struct err *e)
{
	uint64_t chunks = (m->head.size + m->head.chunk - 1) / m->head.chunk;
	uint64_t len = m->head.mode == ENCRYPT_GCM ? slots_at(chunks) : META_SLOTS_AT;
	int r = RAND_bytes(m->head.id, ENCRYPT_ID_LEN) == 1 ? 0 : -EIO;

	if (!r)
		r = encrypt_derive(secret, "meta", m->head.id, m->key, ENCRYPT_KEY_LEN);
	if (!r && ftruncate(m->fd, (off_t)len))
		r = -errno;
	for (int i = 0; i < 2 && !r; i++) {
		m->head.generation++;
		r = encrypt_meta_save(m);
	}
	if (!r && fsync(m->fd))
		r = -errno;
	if (!r)
		r = dir_sync(m->path);
	return r ? err_sys(e, r, "making %s", m->path) : 0;
}

static int head_compare(const struct encrypt_meta *m, const struct meta_head *want, struct err *e)
{
	const struct meta_head *h = &m->head;
	struct stat st;

	if (h->mode != want->mode)
		return err_set(e, -EINVAL, "%s is of the mode %s", m->path,
			       h->mode == ENCRYPT_GCM ? "gcm" : "xts");
	if (h->chunk != want->chunk)
		return err_set(e, -EINVAL, "%s is of chunks of %u bytes: chunk=%u", m->path,
			       h->chunk, h->chunk);
	if (h->size != want->size)
		return err_set(e, -EINVAL, "%s is of a resource of %llu bytes; this one has %llu",
			       m->path, (unsigned long long)h->size,
			       (unsigned long long)want->size);
	if (h->mode == ENCRYPT_GCM &&
	    (fstat(m->fd, &st) ||
	     (uint64_t)st.st_size < slots_at((h->size + h->chunk - 1) / h->chunk)))
		return err_set(e, -EBADMSG, "%s is shorter than it was made", m->path);
	return 0;
}

static int meta_load(struct encrypt_meta *m, const struct meta_head *want,
		     const struct encrypt_secret *secret, struct err *e)
{
	uint8_t page[META_PAGE], code[32];
	struct meta_head head;
	bool found = false;

	for (uint64_t i = 0; i < 2; i++) {
		if (fd_read_at(m->fd, page, META_PAGE, i * META_PAGE) ||
		    memcmp(page, magic, sizeof(magic)))
			continue;
		if (get32(page + 8) != META_VERSION)
			return err_set(e, -ENOTSUP, "%s is of version %u; this program knows %u",
				       m->path, get32(page + 8), META_VERSION);
		if (memcmp(page + 56, want->check, ENCRYPT_CHECK_LEN))
			return err_set(e, -EKEYREJECTED, "wrong key: %s was made with another one",
				       m->path);
		if (encrypt_derive(secret, "meta", page + 64, m->key, ENCRYPT_KEY_LEN) ||
		    head_code(m, page, code))
			return err_sys(e, -ENOMEM, "%s", m->path);
		if (CRYPTO_memcmp(code, page + META_MAC_AT, sizeof(code)) ||
		    !head_decode(page, &head) || (found && head.generation < m->head.generation))
			continue;
		m->head = head;
		found = true;
	}
	if (!found)
		return err_set(e, -EBADMSG, "%s is damaged, or no file of the encrypt stage",
			       m->path);
	/* Of the header that counts, whatever the other says. */
	if (encrypt_derive(secret, "meta", m->head.id, m->key, ENCRYPT_KEY_LEN))
		return err_sys(e, -ENOMEM, "%s", m->path);
	m->written = m->head.generation;
	m->used = m->reserved_there = m->head.reserved;
	encrypt_meta_doubt(m);
	return head_compare(m, want, e);
}

int encrypt_meta_open(struct encrypt_meta *m, const char *path, bool fresh, bool read_only,
		      const struct meta_head *want, const struct encrypt_secret *secret,
		      struct err *e)
{
	int flags = O_CLOEXEC | (fresh ? O_RDWR | O_CREAT | O_EXCL : read_only ? O_RDONLY : O_RDWR);
	int r, failed;

	*m = (struct encrypt_meta){ .fd = open(path, flags, 0600),
				    .read_only = read_only,
				    .head = *want };
	failed = errno;
	pthread_mutex_init(&m->lock, NULL);
	pthread_mutex_init(&m->io, NULL);
	m->path = strdup(path);
	if (m->fd < 0) {
		r = failed == EEXIST
			    ? err_set(e, -EEXIST, "%s is there already: leave out new=1", path)
		    : failed == ENOENT && !fresh
			    ? err_set(e, -ENOENT,
				      "%s: no such file; new=1 makes one, for a resource that holds nothing",
				      path)
			    : err_sys(e, -failed, "%s", path);
	} else if (!m->path) {
		r = err_sys(e, -ENOMEM, "%s", path);
	} else if (flock(m->fd, (read_only && !fresh ? LOCK_SH : LOCK_EX) | LOCK_NB)) {
		r = err_set(e, -EBUSY, "%s is in use by another process", path);
	} else {
		r = fresh ? meta_make(m, secret, e) : meta_load(m, want, secret, e);
		if (r && fresh)
			unlink(path);
	}
	if (r)
		encrypt_meta_close(m);
	return r;
}

void encrypt_meta_close(struct encrypt_meta *m)
{
	if (m->fd >= 0)
		close(m->fd);
	free(m->path);
	pthread_mutex_destroy(&m->lock);
	pthread_mutex_destroy(&m->io);
	OPENSSL_cleanse(m->key, sizeof(m->key));
	m->fd = -1;
	m->path = NULL;
}
