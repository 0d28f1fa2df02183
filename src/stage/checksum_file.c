/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of digests that the checksum stage keeps beside the data. Little-endian, in pages of
 * 4096 bytes:
 *
 *   header    "RMCHKSUM", u32 version (1), u32 algorithm (1 XXH3-64, 2 XXH3-128, 3 SHA-256),
 *             u64 size, u64 chunk, u64 chunks, u64 identity of the resource (0: unknown), u64 where
 *             the digests begin, u64 XXH3-64 of the page with this word 0; the rest is 0
 *   intents   a bit per chunk, bit i % 8 of byte i / 8: it was written since the last flush, so
 *             that after a crash its digest may be of older or newer data
 *   digests   8, 16 or 32 bytes per chunk, canonical (XXH3: big-endian, as XXH prints them); all
 *             zeros: never written. A digest that is all zeros is stored as 0..01
 *
 * Place: below checksum.c, which says when an intent has to be durable and when it may go.
 *
 * Invariants: the image in memory is what the file is to become; a page of it that differs is
 * dirty, or on its way (in write). One write at a time.
 *
 * Locking: loop thread; the pool's thread sees the copies in `write`, and the descriptor. flock on
 * the file: exclusive, or shared for reading only.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "stage/checksum_int.h"

#define PAGE CHECKSUM_PAGE

struct header {
	char magic[8];
	uint32_t version, algorithm;
	uint64_t size, chunk, chunks, identity, table_off, sum;
};

static const struct {
	const char *name;
	uint32_t len;
} algorithms[] = {
	[SUMS_XXH3] = { "xxh3", 8 },
	[SUMS_XXH128] = { "xxh128", 16 },
	[SUMS_SHA256] = { "sha256", 32 },
};

const char *sums_algorithm_name(enum sums_algorithm algorithm)
{
	CHECK(algorithm > 0 && algorithm < ARRAY_LEN(algorithms));
	return algorithms[algorithm].name;
}

bool sums_algorithm_find(const char *name, enum sums_algorithm *ret)
{
	for (size_t i = 1; i < ARRAY_LEN(algorithms); i++)
		if (!strcmp(name, algorithms[i].name)) {
			*ret = (enum sums_algorithm)i;
			return true;
		}
	return false;
}

/* ---- digests ---- */

uint32_t sums_chunk_len(const struct sums *s, uint64_t chunk)
{
	uint64_t left = s->format.size - chunk * s->format.chunk;

	CHECK(chunk < s->format.chunks);
	return (uint32_t)MIN(s->format.chunk, left);
}

void sums_digest(struct sums *s, const uint8_t *data, size_t len, uint8_t *ret)
{
	XXH64_canonical_t short_one;
	XXH128_canonical_t long_one;
	int ok = 1;

	switch (s->format.algorithm) {
	case SUMS_XXH3:
		XXH64_canonicalFromHash(&short_one, XXH3_64bits(data, len));
		memcpy(ret, short_one.digest, 8);
		break;
	case SUMS_XXH128:
		XXH128_canonicalFromHash(&long_one, XXH3_128bits(data, len));
		memcpy(ret, long_one.digest, 16);
		break;
	case SUMS_SHA256:
		ok = EVP_DigestInit_ex2(s->md_ctx, s->md, NULL) &&
		     EVP_DigestUpdate(s->md_ctx, data, len) &&
		     EVP_DigestFinal_ex(s->md_ctx, ret, NULL);
		break;
	}
	CHECK(ok); /* nothing of it can fail but memory, which is there already */
	for (uint32_t i = 0; i < s->format.digest_len; i++)
		if (ret[i])
			return;
	ret[s->format.digest_len - 1] = 1;
}

static uint8_t *entry_at(const struct sums *s, uint64_t chunk)
{
	CHECK(chunk < s->format.chunks);
	return s->image + s->format.table_off + chunk * s->format.digest_len;
}

const uint8_t *sums_at(const struct sums *s, uint64_t chunk)
{
	return entry_at(s, chunk);
}

bool sums_known(const struct sums *s, uint64_t chunk)
{
	static const uint8_t none[DIGEST_LEN_MAX];

	return memcmp(entry_at(s, chunk), none, s->format.digest_len) != 0;
}

void sums_set(struct sums *s, uint64_t chunk, const uint8_t *digest)
{
	uint8_t *at = entry_at(s, chunk);

	if (!memcmp(at, digest, s->format.digest_len))
		return;
	memcpy(at, digest, s->format.digest_len);
	bitmap_set(s->dirty, (size_t)(at - s->image) / PAGE);
}

const uint8_t *sums_zero(const struct sums *s, uint64_t chunk)
{
	return s->zero[sums_chunk_len(s, chunk) != s->format.chunk];
}

bool sums_intent(const struct sums *s, uint64_t chunk)
{
	return s->image[PAGE + chunk / 8] >> (chunk % 8) & 1;
}

void sums_intent_set(struct sums *s, uint64_t chunk, bool on)
{
	uint8_t *at = &s->image[PAGE + chunk / 8], bit = (uint8_t)(1u << (chunk % 8));

	CHECK(chunk < s->format.chunks);
	if (on == !!(*at & bit))
		return;
	*at ^= bit;
	bitmap_set(s->dirty, (PAGE + chunk / 8) / PAGE);
}

/* ---- writing ---- */

/* On the pool. */
static int write_call(struct work *work)
{
	struct sums_write *w = CONTAINER_OF(work, struct sums_write, work);
	const struct sums *s = CONTAINER_OF(w, struct sums, write);
	int r = 0;

	for (size_t i = 0; i < w->count && !r; i++)
		r = fd_write_at(s->fd, w->buf + i * PAGE, PAGE, w->page[i] * PAGE);
	if (!r && w->sync && fdatasync(s->fd))
		r = -errno;
	return r;
}

bool sums_write_pages(struct sums *s, size_t first, size_t end, bool sync,
		      void (*done)(struct op *op, int res))
{
	struct sums_write *w = &s->write;
	size_t page = first;

	CHECK(!op_pending(&w->work.op) && !s->read_only);
	w->count = 0;
	while (w->count < CHECKSUM_PAGES_MAX &&
	       (page = bitmap_next_set(s->dirty, end, page)) < end) {
		memcpy(w->buf + w->count * PAGE, s->image + page * PAGE, PAGE);
		bitmap_clear(s->dirty, page);
		w->page[w->count++] = page;
	}
	w->sync = sync && !sums_is_dirty(s, first, end);
	w->work.call = write_call;
	w->work.op.done = done;
	pool_run(s->loop, &w->work);
	return !sums_is_dirty(s, first, end);
}

void sums_write_end(struct sums *s, int res)
{
	for (size_t i = 0; res && i < s->write.count; i++)
		bitmap_set(s->dirty, s->write.page[i]);
}

bool sums_is_dirty(const struct sums *s, size_t first, size_t end)
{
	return bitmap_next_set(s->dirty, end, first) < end;
}

/* ---- the header ---- */

static uint64_t header_sum(const uint8_t *page)
{
	uint8_t copy[PAGE];

	memcpy(copy, page, PAGE);
	memset(copy + offsetof(struct header, sum), 0, 8);
	return XXH3_64bits(copy, PAGE);
}

static void format_settle(struct sums_format *f)
{
	f->digest_len = algorithms[f->algorithm].len;
	f->chunks = (f->size + f->chunk - 1) / f->chunk;
	f->table_off = PAGE + align_up((f->chunks + 7) / 8, PAGE);
	f->file_len = f->table_off + align_up(f->chunks * f->digest_len, PAGE);
}

static void header_make(const struct sums_format *f, uint8_t *page)
{
	struct header h = {
		.magic = "RMCHKSUM",
		.version = htole32(1),
		.algorithm = htole32(f->algorithm),
		.size = htole64(f->size),
		.chunk = htole64(f->chunk),
		.chunks = htole64(f->chunks),
		.identity = htole64(f->identity),
		.table_off = htole64(f->table_off),
	};

	memset(page, 0, PAGE);
	memcpy(page, &h, sizeof(h));
	h.sum = htole64(header_sum(page));
	memcpy(page, &h, sizeof(h));
}

int sums_header_parse(const uint8_t *page, struct sums_format *ret)
{
	struct sums_format f;
	struct header h;

	memcpy(&h, page, sizeof(h));
	if (memcmp(h.magic, "RMCHKSUM", 8) || le32toh(h.version) != 1 ||
	    le64toh(h.sum) != header_sum(page))
		return -EBADMSG;
	f = (struct sums_format){
		.algorithm = (enum sums_algorithm)le32toh(h.algorithm),
		.size = le64toh(h.size),
		.chunk = le64toh(h.chunk),
		.identity = le64toh(h.identity),
	};
	if (le32toh(h.algorithm) < SUMS_XXH3 || le32toh(h.algorithm) > SUMS_SHA256 ||
	    f.size > RESOURCE_SIZE_MAX || !is_pow2(f.chunk) || f.chunk < CHUNK_MIN ||
	    f.chunk > STORE_ALIGN_MAX || (f.size + f.chunk - 1) / f.chunk > CHECKSUM_CHUNKS_MAX)
		return -EBADMSG;
	format_settle(&f);
	if (f.chunks != le64toh(h.chunks) || f.table_off != le64toh(h.table_off))
		return -EBADMSG;
	*ret = f;
	return 0;
}

/* ---- opening ---- */

static int image_make(struct sums *s, struct err *e)
{
	struct sums_format *f = &s->format;
	uint8_t *zeros = calloc(1, f->chunk);

	s->pages = f->file_len / PAGE;
	s->table_page = f->table_off / PAGE;
	s->image = calloc(1, f->file_len);
	s->dirty = calloc(BITMAP_WORDS(s->pages), sizeof(uint64_t));
	s->write.buf = malloc(CHECKSUM_PAGES_MAX * PAGE);
	if (f->algorithm == SUMS_SHA256) {
		s->md = EVP_MD_fetch(NULL, "SHA256", NULL);
		s->md_ctx = EVP_MD_CTX_new();
	}
	if (!zeros || !s->image || !s->dirty || !s->write.buf ||
	    (f->algorithm == SUMS_SHA256 && (!s->md || !s->md_ctx))) {
		free(zeros);
		return err_sys(e, -ENOMEM, "checksum: %s", s->path);
	}
	sums_digest(s, zeros, f->chunk, s->zero[0]);
	if (f->chunks)
		sums_digest(s, zeros, sums_chunk_len(s, f->chunks - 1), s->zero[1]);
	free(zeros);
	return 0;
}

static int file_make(struct sums *s, const struct sums_format *want, struct err *e)
{
	AUTO_FREE char *copy = strdup(s->path);
	AUTO_FD int dir = -1;
	int r;

	s->format = *want;
	s->format.algorithm = want->algorithm ? want->algorithm : SUMS_XXH3;
	s->format.chunk = want->chunk ? want->chunk : CHUNK_DEFAULT;
	format_settle(&s->format);
	if (s->format.chunks > CHECKSUM_CHUNKS_MAX)
		return err_set(e, -EFBIG, "checksum: more than %llu chunks: take larger ones",
			       CHECKSUM_CHUNKS_MAX);
	r = image_make(s, e);
	if (r)
		return r;
	header_make(&s->format, s->image);
	/* The room first, so that a full disk is found now; the header last. */
	r = -posix_fallocate(s->fd, 0, (off_t)s->format.file_len);
	if (!r && fsync(s->fd))
		r = -errno;
	if (!r)
		r = fd_write_at(s->fd, s->image, PAGE, 0);
	if (!r && copy)
		dir = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!r && (fsync(s->fd) || dir < 0 || fsync(dir)))
		r = -errno;
	return r ? err_sys(e, r, "checksum: making %s", s->path) : 0;
}

static int format_check(const struct sums *s, const struct sums_format *want, struct err *e)
{
	const struct sums_format *f = &s->format;

	if (f->size != want->size)
		return err_set(e, -EINVAL,
			       "checksum: %s is of a resource of %llu bytes, and this one has %llu",
			       s->path, (unsigned long long)f->size,
			       (unsigned long long)want->size);
	if (want->algorithm && want->algorithm != f->algorithm)
		return err_set(e, -EINVAL, "checksum: %s has algorithm=%s: it does not change",
			       s->path, sums_algorithm_name(f->algorithm));
	if (want->chunk && want->chunk != f->chunk)
		return err_set(e, -EINVAL, "checksum: %s has chunk=%llu: it does not change",
			       s->path, (unsigned long long)f->chunk);
	if (want->identity && f->identity && want->identity != f->identity)
		return err_set(e, -ESTALE, "checksum: %s is of another resource", s->path);
	return 0;
}

/* The header is written last. */
static bool is_unfinished(const struct sums *s)
{
	uint8_t page[PAGE];
	ssize_t n = pread(s->fd, page, PAGE, 0);

	for (ssize_t i = 0; i < n; i++)
		if (page[i])
			return false;
	return n >= 0;
}

static int file_load(struct sums *s, const struct sums_format *want, struct err *e)
{
	uint8_t page[PAGE];
	struct stat st;
	ssize_t n = pread(s->fd, page, PAGE, 0);
	int r;

	if (n < 0 || fstat(s->fd, &st))
		return err_sys(e, -errno, "checksum: %s", s->path);
	if (n != PAGE || sums_header_parse(page, &s->format) ||
	    (uint64_t)st.st_size < s->format.file_len)
		return err_set(e, -EBADMSG, "checksum: %s is no file of checksums, or is damaged",
			       s->path);
	r = format_check(s, want, e);
	if (!r)
		r = image_make(s, e);
	if (r)
		return r;
	r = fd_read_at(s->fd, s->image, s->format.file_len, 0);
	return r ? err_sys(e, r, "checksum: %s", s->path) : 0;
}

int sums_open(struct sums *s, const char *path, const struct sums_format *want, bool create,
	      bool read_only, struct loop *loop, struct err *e)
{
	bool made = false;
	struct stat st;
	int r;

	s->loop = loop;
	s->read_only = read_only;
	s->path = strdup(path);
	if (!s->path)
		return err_sys(e, -ENOMEM, "checksum");
	s->fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (s->fd < 0 && errno == ENOENT && create && !read_only) {
		s->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
		made = s->fd >= 0;
	}
	if (s->fd < 0 && errno == ENOENT)
		return err_set(
			e, -ENOENT,
			"checksum: %s is not there; with create=1 one is made, in which nothing is known yet",
			path);
	if (s->fd < 0 || fstat(s->fd, &st))
		return err_sys(e, -errno, "checksum: %s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "checksum: %s is no regular file", path);
	if (flock(s->fd, (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB))
		return err_set(e, errno == EWOULDBLOCK ? -EBUSY : -errno,
			       "checksum: %s is in use by another process", path);
	if (made || (create && !read_only && is_unfinished(s)))
		r = file_make(s, want, e);
	else
		r = file_load(s, want, e);
	if (r && made)
		unlink(path);
	return r;
}

void sums_done(struct sums *s)
{
	if (s->fd >= 0)
		close(s->fd);
	EVP_MD_CTX_free(s->md_ctx);
	EVP_MD_free(s->md);
	free(s->write.buf);
	free(s->dirty);
	free(s->image);
	free(s->path);
}
