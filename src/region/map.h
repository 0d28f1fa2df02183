/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunk map of a region: one byte per chunk, a bounded pool of page records for chunks of which
 * only some pages matter, and sums by which whole stretches of nothing are skipped. Pure
 * bookkeeping: no I/O, no locks, no clock. map.c draws the states.
 */
#ifndef REMORA_REGION_MAP_H
#define REMORA_REGION_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/range.h"

enum chunk_state {
	CHUNK_ABSENT,
	CHUNK_PARTIAL, /* some pages are here, because they were written first; has a record */
	CHUNK_PULLING, /* nothing is here, a pull is under way */
	CHUNK_CLEAN,
	CHUNK_DIRTY,
	CHUNK_PUSHING, /* all that was dirty is on its way */
	CHUNK_REPUSH,  /* some is on its way, some is dirty (again) */
	CHUNK_STATES,
};

enum {
	CHUNK_STATE_MASK = 0x07,
	CHUNK_UNFLUSHED_A = 0x08, /* pushed in flush epoch A (B), and no flush has covered it */
	CHUNK_UNFLUSHED_B = 0x10,
	/* used since the clock hand came by; where mapped: some of it may be open */
	CHUNK_REF = 0x20,
	CHUNK_FAULTED = 0x40, /* a fault waits for it */
	CHUNK_MARK = 0x80,    /* was left shut so that the first touch asks for more readahead */
};
#define CHUNK_UNFLUSHED (CHUNK_UNFLUSHED_A | CHUNK_UNFLUSHED_B)

#define MAP_GROUP 4096u /* chunks per group; a group's bytes are a page of memory */

/* What of a chunk is ours. Three bitmaps of map.words words follow in bits[]. */
struct map_rec {
	uint64_t chunk;
	uint32_t next;	 /* in the hash chain or the free list; index + 1 */
	uint32_t flying; /* WRITEs under way that carry pages of it */
	bool pulling;	 /* a partial chunk, and the rest is under way */
	uint64_t bits[];
};

/* Sums over a group, or over MAP_GROUP groups. */
struct map_sum {
	uint32_t held;	    /* not absent */
	uint32_t busy;	    /* something dirty or under way to the far side */
	uint32_t unflushed;
	uint32_t touched;   /* group: its page of bytes was written; top: how many groups were */
};

enum map_kind { MAP_HELD, MAP_BUSY, MAP_UNFLUSHED };

struct map {
	uint64_t size;	 /* bytes of the resource */
	uint64_t chunks;
	uint64_t groups, tops;
	unsigned shift;	 /* of a chunk */
	uint32_t pages;	 /* per chunk */
	size_t words;	 /* of one page bitmap */
	uint8_t *bytes;
	struct map_sum *group, *top;
	uint64_t *todo;	 /* a bit per chunk: push.c's */
	uint64_t todo_count;
	uint8_t *recs;
	size_t rec_bytes;
	uint32_t rec_count, rec_used, rec_fresh; /* fresh: never used so far */
	uint32_t rec_free;			 /* index + 1 */
	uint32_t *heads;
	uint32_t head_mask;
	uint64_t touched; /* groups whose bytes take memory */
	/* in chunks */
	uint64_t held, full, dirty, pushing, pulling, droppable, unflushed[2];
	uint64_t unsafe; /* dirty, under way to the far side, or unflushed */
};

/* chunk: power of two. rec_bytes: memory for page records. Fails when the map would be absurdly
 * large. */
MUST_USE int map_init(struct map *m, uint64_t size, uint32_t chunk, size_t rec_bytes,
		      struct err *e);
void map_done(struct map *m);
/* rec_bytes, or as many as `partial` chunks that are dirty in places need, and some more. */
size_t map_recs_bytes(uint32_t chunk, size_t rec_bytes, uint64_t partial);

/* Memory of the map: a page of bytes, an eighth of a page of todo and a sum for each group that was
 * ever used, and what is there from the start. */
#define MAP_GROUP_MEMORY (MAP_GROUP + MAP_GROUP / 8 + sizeof(struct map_sum))
uint64_t map_memory(const struct map *m);
uint64_t map_memory_fixed(const struct map *m);

/* A fault thread may set flags at any time under the region's lock; the loop thread reads without
 * it. */
static inline uint8_t map_byte(const struct map *m, uint64_t c)
{
	return __atomic_load_n(&m->bytes[c], __ATOMIC_RELAXED);
}

static inline enum chunk_state map_state(const struct map *m, uint64_t c)
{
	return (enum chunk_state)(map_byte(m, c) & CHUNK_STATE_MASK);
}

static inline bool state_full(enum chunk_state s)
{
	return s >= CHUNK_CLEAN;
}

static inline bool map_full(const struct map *m, uint64_t c)
{
	return state_full(map_state(m, c));
}

struct map_rec *map_rec(const struct map *m, uint64_t c);

static inline uint64_t *rec_ours(const struct map *m, struct map_rec *rec)
{
	(void)m;
	return rec->bits;
}
static inline uint64_t *rec_dirty(const struct map *m, struct map_rec *rec)
{
	return rec->bits + m->words;
}
static inline uint64_t *rec_pushing(const struct map *m, struct map_rec *rec)
{
	return rec->bits + 2 * m->words;
}

static inline uint64_t map_chunk_of(const struct map *m, uint64_t off)
{
	return off >> m->shift;
}

/* Pages of the chunk, fewer in the last one. */
uint32_t map_pages(const struct map *m, uint64_t c);
/* Its bytes, up to the size of the resource / up to the end of its last page. */
struct range map_range(const struct map *m, uint64_t c, uint64_t count);
struct range map_page_range(const struct map *m, uint64_t c, uint64_t count);

bool map_page_here(const struct map *m, uint64_t c, uint32_t page);
/* Whether a pull may begin here: something is missing, and it is not under way. */
bool map_pullable(const struct map *m, uint64_t c);
bool map_pulling(const struct map *m, uint64_t c);
/* WRITEs of it are under way / something is dirty. */
bool map_flying(const struct map *m, uint64_t c);
bool map_dirty(const struct map *m, uint64_t c);
/* May be dropped as far as the map knows: clean, flushed, nothing under way. */
bool map_droppable(const struct map *m, uint64_t c);

/* ---- transitions: drawn in map.c ---- */

void map_pull_begin(struct map *m, uint64_t c);
void map_pull_end(struct map *m, uint64_t c);
void map_pull_fail(struct map *m, uint64_t c);
/* A page has come, others have not; false = no record, nothing changed. */
bool map_pull_some(struct map *m, uint64_t c, uint32_t page);

/* Whether map_write() of these pages would find the record that it needs. */
bool map_can_write(const struct map *m, uint64_t c, uint32_t page, uint32_t count);
void map_write(struct map *m, uint64_t c, uint32_t page, uint32_t count);
/* The same for pages that a program was found to have written: those that are not here are passed
 * over. */
void map_found(struct map *m, uint64_t c, uint32_t page, uint32_t count);

/* The next run of pages at or after `page` that are dirty and not under way; false = none. */
bool map_push_next(const struct map *m, uint64_t c, uint32_t page, uint32_t *ret_page,
		   uint32_t *ret_count);
void map_push_begin(struct map *m, uint64_t c, uint32_t page, uint32_t count);
void map_push_end(struct map *m, uint64_t c, uint32_t page, uint32_t count, bool ok,
		  unsigned epoch);

void map_flushed(struct map *m, unsigned epoch);
void map_epoch_merge(struct map *m, unsigned from, unsigned to);
/* What was pushed in that epoch may be gone: dirty again. */
void map_forget(struct map *m, unsigned epoch);

void map_drop(struct map *m, uint64_t c);
/* Only what is dirty or under way remains ours; false = no record, or flushing is open: nothing
 * changed. */
bool map_shrink(struct map *m, uint64_t c);

void map_flag(struct map *m, uint64_t c, uint8_t set, uint8_t clear);

/* ---- looking for chunks; m->chunks = there is none ---- */

uint64_t map_next(const struct map *m, uint64_t from, enum map_kind kind);
uint64_t map_next_pullable(const struct map *m, uint64_t from, uint64_t end);

/* Bytes that the far side would not have if both went down now: pages that are dirty or under way
 * to it; of a chunk that has unflushed pushes all that is here, for it is no longer known which
 * pages they were. Costs a look at each record. */
uint64_t map_unsafe_bytes(const struct map *m);

void map_todo_set(struct map *m, uint64_t c);
void map_todo_clear(struct map *m, uint64_t c);
static inline bool map_todo(const struct map *m, uint64_t c)
{
	return m->todo[c / 64] >> (c % 64) & 1;
}

/* Everything that must hold about a chunk, and about all of them. */
void map_assert(const struct map *m, uint64_t c);
void map_assert_all(const struct map *m);

#endif
