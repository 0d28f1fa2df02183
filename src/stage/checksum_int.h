/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checksum stage: checksum.c is the stage, checksum_file.c the file of digests: its format, its
 * image in memory, and the pages of it that are written on the pool.
 */
#ifndef REMORA_STAGE_CHECKSUM_INT_H
#define REMORA_STAGE_CHECKSUM_INT_H

#include <openssl/evp.h>

#include "io/pool.h"
#include "stage/stage.h"
#include "store/sub.h"

#define DIGEST_LEN_MAX 32u

enum sums_algorithm { SUMS_XXH3 = 1, SUMS_XXH128, SUMS_SHA256 };

/* What the file says about itself. */
struct sums_format {
	enum sums_algorithm algorithm;
	uint32_t digest_len;
	uint64_t size, chunk, chunks, identity;
	uint64_t table_off, file_len;
};

/* Pages on their way to the file. */
struct sums_write {
	struct work work;
	bool sync;
	size_t count;
	uint64_t page[CHECKSUM_PAGES_MAX];
	uint8_t *buf;
};

struct sums {
	struct sums_format format;
	char *path;
	int fd;
	bool read_only;
	/* The file as it is to be: header, intents (a bit per chunk), digests. */
	uint8_t *image;
	uint64_t *dirty; /* a bit per page of it: not written yet */
	size_t pages, table_page; /* table_page: the first of the digests */
	struct sums_write write;
	struct loop *loop;
	EVP_MD *md; /* SUMS_SHA256 */
	EVP_MD_CTX *md_ctx;
	uint8_t zero[2][DIGEST_LEN_MAX]; /* of zeros: a chunk, and the last one */
};

const char *sums_algorithm_name(enum sums_algorithm algorithm);
bool sums_algorithm_find(const char *name, enum sums_algorithm *ret); /* NULL: the default */

/* The header of a file, from its first page. 0 or -EBADMSG. */
MUST_USE int sums_header_parse(const uint8_t *page, struct sums_format *ret);

/* format: what is wanted; algorithm or chunk 0 = what the file has. Set-up code. */
MUST_USE int sums_open(struct sums *s, const char *path, const struct sums_format *want,
		       bool create, bool read_only, struct loop *loop, struct err *e);
void sums_done(struct sums *s);

uint32_t sums_chunk_len(const struct sums *s, uint64_t chunk);
void sums_digest(struct sums *s, const uint8_t *data, size_t len, uint8_t *ret);

/* The digest that is recorded; all zeros: never written. */
const uint8_t *sums_at(const struct sums *s, uint64_t chunk);
bool sums_known(const struct sums *s, uint64_t chunk);
void sums_set(struct sums *s, uint64_t chunk, const uint8_t *digest);
const uint8_t *sums_zero(const struct sums *s, uint64_t chunk); /* the digest of zeros there */

bool sums_intent(const struct sums *s, uint64_t chunk);
void sums_intent_set(struct sums *s, uint64_t chunk, bool on);

/* Writes dirty pages from `first` to before `end`, as many as fit; true: these were all of them
 * (and they are synced, if that was asked for). done(op, 0 or -errno) follows; what was not written
 * is dirty again. */
bool sums_write_pages(struct sums *s, size_t first, size_t end, bool sync,
		      void (*done)(struct op *op, int res));
/* To be called first in done(). */
void sums_write_end(struct sums *s, int res);
bool sums_is_dirty(const struct sums *s, size_t first, size_t end);

#endif
