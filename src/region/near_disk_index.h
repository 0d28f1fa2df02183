/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a near store on a disk knows of its pages and chunks: what its journal says, and what is
 * going to be said there. Memory is touched where there is something: a bit per page, nine bytes
 * per chunk.
 */
#ifndef REMORA_REGION_NEAR_DISK_INDEX_H
#define REMORA_REGION_NEAR_DISK_INDEX_H

#include "base/range.h"

enum {
	ND_IS_CLEAN = 1,   /* the journal says so; hash[] is that of its content */
	ND_UNSEEN = 2,	   /* CLEAN, and nobody has compared since the store was opened */
	ND_HASHED = 4,	   /* hash[] is that of what is there */
	ND_WANTED = 8,	   /* settled; CLEAN as soon as the hash is known; also in want[] */
	ND_HASHING = 16,   /* a thread reads it; cleared when it changes meanwhile */
	ND_HAS_ROOM = 32,  /* all of it has its place on the disk */
};

struct nd_index {
	uint64_t pages, chunks;
	unsigned shift;	  /* of a chunk */
	uint8_t *flags;	  /* per chunk */
	uint64_t *hash;	  /* per chunk */
	uint64_t *want;	  /* bit per chunk */
	uint64_t *dirty;  /* bit per page: the journal has its content, and nobody else for sure */
	uint64_t *lost;	  /* bit per page: ... had it, and it is damaged; while scanning */
	uint64_t dirty_pages, lost_pages, clean_chunks, want_count;
};

MUST_USE int nd_index_init(struct nd_index *ix, uint64_t size, uint32_t chunk);
void nd_index_done(struct nd_index *ix);

/* Whole pages. Each says what the record of that name says. */
void nd_index_dirty(struct nd_index *ix, struct range pages);
void nd_index_lost(struct nd_index *ix, struct range pages);
void nd_index_clean(struct nd_index *ix, uint64_t c, uint64_t hash);
void nd_index_clean_keep(struct nd_index *ix, uint64_t c); /* with the hash that is there */
void nd_index_drop(struct nd_index *ix, struct range pages);

void nd_index_flag(struct nd_index *ix, uint64_t c, uint8_t set, uint8_t clear);
void nd_index_want(struct nd_index *ix, uint64_t c, bool on);
/* One of them, from there on and around; there is one. */
uint64_t nd_index_want_next(const struct nd_index *ix, uint64_t from);

/* The next run of dirty (lost) pages, in bytes; length 0 = none. */
struct range nd_index_next(const struct nd_index *ix, const uint64_t *bits, uint64_t off,
			   uint64_t end);
/* Bytes of the chunk, in whole pages. */
struct range nd_chunk(const struct nd_index *ix, uint64_t c);
/* Chunks of which only some pages are dirty, and nothing else is known. */
uint64_t nd_index_partial(const struct nd_index *ix);

#endif
