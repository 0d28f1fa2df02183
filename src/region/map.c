/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunk map: what of the resource is here, what of it the far side does not have yet, and what
 * is under way.
 *
 * Place: everything in src/region asks and tells it; it calls nobody.
 *
 *                      map_pull_begin              map_pull_end
 *            ABSENT ──────────────────▶ PULLING ──────────────────▶ CLEAN ──── map_drop ───▶ ABSENT
 *              │  ▲ ◀── map_pull_fail ──── │                         │ ▲
 *    map_write │  │ map_drop               │ map_write,   map_write, │ │ map_push_end
 *              ▼  │                        │ map_pull_some map_found,│ │ (ok)
 *            PARTIAL ◀─────────────────────┘ (pull goes on) map_forget▼ │
 *              │  ▲   map_pull_end, or map_write of                DIRTY ──── map_push_begin ────┐
 *              │  │   the last missing page                        │  ▲                         ▼
 *              │  └───────────── map_shrink ───────────────────────┘  └─ map_push_end ──── PUSHING
 *              └──▶ CLEAN, DIRTY, PUSHING or REPUSH                       (failed)            │ ▲
 *                   as its record says                                                        │ │
 *                                          map_write, map_found, map_forget, more than one    ▼ │
 *                                          run of dirty pages; map_push_end leads to DIRTY  REPUSH
 *
 * A chunk that is dirty in places has a *record* with three page bitmaps: `ours` (present; all of
 * them unless the chunk is partial), `dirty`, `pushing`. The record then rules, and the state byte
 * follows from it (state_settle). A chunk that is dirty or pushed without a record is so as a
 * whole, and has at most one WRITE under way. Records are bounded: where none is left, a complete
 * chunk becomes dirty as a whole, and only a write into an absent or pulling chunk has to wait
 * (map_can_write says so beforehand).
 *
 * Invariants, executed by map_assert() after each change of a state:
 *  1. PARTIAL has a record and lacks a page, or its pull is under way; ABSENT, PULLING and CLEAN
 *     have no record.
 *  2. dirty and pushing are subsets of ours. pushing is empty when nothing flies.
 *  3. DIRTY: dirty pages, nothing flies. PUSHING: something flies, nothing is dirty. REPUSH: both.
 *  4. ABSENT and PULLING are neither UNFLUSHED nor REF nor MARK.
 *  5. The sums are the sums (map_assert_all).
 *
 * Only changes in the table `allowed` take place. map_find.c looks for chunks.
 *
 * Locking: none here. The region's lock is held around every function that changes something,
 * because a fault thread reads bytes and records, and sets flags.
 */
#include "region/map.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bitmap.h"
#include "base/size.h"

#define TO(s) (1u << CHUNK_##s)

static const uint8_t allowed[CHUNK_STATES] = {
	[CHUNK_ABSENT] = TO(PARTIAL) | TO(PULLING) | TO(DIRTY),
	[CHUNK_PARTIAL] =
		TO(PARTIAL) | TO(ABSENT) | TO(CLEAN) | TO(DIRTY) | TO(PUSHING) | TO(REPUSH),
	[CHUNK_PULLING] = TO(ABSENT) | TO(PARTIAL) | TO(CLEAN),
	[CHUNK_CLEAN] = TO(ABSENT) | TO(DIRTY),
	[CHUNK_DIRTY] = TO(DIRTY) | TO(PUSHING) | TO(REPUSH) | TO(PARTIAL),
	[CHUNK_PUSHING] = TO(PUSHING) | TO(CLEAN) | TO(DIRTY) | TO(REPUSH) | TO(PARTIAL),
	[CHUNK_REPUSH] = TO(REPUSH) | TO(DIRTY) | TO(PUSHING) | TO(PARTIAL),
};

/* What counts a chunk is part of. */
enum {
	IS_HELD = 1,
	IS_FULL = 2,
	IS_DIRTY = 4,
	IS_PUSHING = 8,
	IS_PULLING = 16,
	IS_UNFLUSHED_A = 32,
	IS_UNFLUSHED_B = 64,
	IS_DROPPABLE = 128, /* made of the others */
};
#define IS_BUSY (IS_DIRTY | IS_PUSHING)
#define IS_UNFLUSHED (IS_UNFLUSHED_A | IS_UNFLUSHED_B)

/* ---- memory ---- */

static void *memory_map(size_t len)
{
	void *p = mmap(NULL, MAX(len, PAGE_BYTES), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void memory_unmap(void *p, size_t len)
{
	if (p)
		munmap(p, MAX(len, PAGE_BYTES));
}

static size_t todo_bytes(const struct map *m)
{
	return BITMAP_WORDS(m->chunks) * sizeof(uint64_t);
}

static struct map_rec *rec_at(const struct map *m, uint32_t index)
{
	return (struct map_rec *)(void *)(m->recs + (size_t)index * m->rec_bytes);
}

static size_t rec_size(uint32_t chunk)
{
	return sizeof(struct map_rec) +
	       3 * BITMAP_WORDS(chunk / PAGE_BYTES) * sizeof(uint64_t);
}

size_t map_recs_bytes(uint32_t chunk, size_t rec_bytes, uint64_t partial)
{
	return MAX(rec_bytes, partial ? (size_t)(partial + MAP_RECS_MIN) * rec_size(chunk) : 0);
}

int map_init(struct map *m, uint64_t size, uint32_t chunk, size_t rec_bytes, struct err *e)
{
	uint32_t heads = 1;

	CHECK(is_pow2(chunk) && chunk >= PAGE_BYTES && chunk <= CHUNK_MAX);
	memset(m, 0, sizeof(*m));
	m->size = size;
	m->shift = log2_u64(chunk);
	m->pages = chunk / PAGE_BYTES;
	m->words = BITMAP_WORDS(m->pages);
	m->chunks = (size >> m->shift) + !!(size & (chunk - 1));
	m->groups = m->chunks / MAP_GROUP + 1;
	m->tops = m->groups / MAP_GROUP + 1;
	if (m->chunks > MAP_CHUNKS_MAX) {
		char text[SIZE_TEXT_MAX];

		return err_set(e, -EFBIG, "a resource of this size needs chunks larger than %s",
			       size_format(chunk, text));
	}
	m->rec_bytes = rec_size(chunk);
	m->rec_count = (uint32_t)MAX(MIN(rec_bytes / m->rec_bytes, m->chunks),
				     (uint64_t)MAP_RECS_MIN);
	while (heads < m->rec_count)
		heads *= 2;
	m->head_mask = heads - 1;
	m->bytes = memory_map(m->chunks);
	m->group = memory_map(m->groups * sizeof(struct map_sum));
	m->top = memory_map(m->tops * sizeof(struct map_sum));
	m->todo = memory_map(todo_bytes(m));
	m->recs = memory_map(m->rec_count * m->rec_bytes);
	m->heads = memory_map(heads * sizeof(uint32_t));
	if (!m->bytes || !m->group || !m->top || !m->todo || !m->recs || !m->heads) {
		map_done(m);
		return err_sys(e, -ENOMEM, "no memory for the chunk map");
	}
	return 0;
}

void map_done(struct map *m)
{
	memory_unmap(m->bytes, m->chunks);
	memory_unmap(m->group, m->groups * sizeof(struct map_sum));
	memory_unmap(m->top, m->tops * sizeof(struct map_sum));
	memory_unmap(m->todo, todo_bytes(m));
	memory_unmap(m->recs, m->rec_count * m->rec_bytes);
	memory_unmap(m->heads, ((size_t)m->head_mask + 1) * sizeof(uint32_t));
	memset(m, 0, sizeof(*m));
}

uint64_t map_memory(const struct map *m)
{
	return MIN(m->touched, m->groups) * MAP_GROUP_MEMORY;
}

uint64_t map_memory_fixed(const struct map *m)
{
	uint64_t heads = (uint64_t)m->head_mask + 1;

	return m->rec_count * m->rec_bytes + heads * sizeof(uint32_t) + 3 * PAGE_BYTES;
}

/* ---- records ---- */

static uint32_t *rec_head(const struct map *m, uint64_t c)
{
	return &m->heads[(c * 0x9e3779b97f4a7c15ULL >> 32) & m->head_mask];
}

struct map_rec *map_rec(const struct map *m, uint64_t c)
{
	for (uint32_t i = *rec_head(m, c); i;) {
		struct map_rec *rec = rec_at(m, i - 1);

		if (rec->chunk == c)
			return rec;
		i = rec->next;
	}
	return NULL;
}

static struct map_rec *rec_new(struct map *m, uint64_t c)
{
	uint32_t *head = rec_head(m, c);
	struct map_rec *rec;
	uint32_t index;

	if (m->rec_free) {
		index = m->rec_free - 1;
		m->rec_free = rec_at(m, index)->next;
	} else if (m->rec_fresh < m->rec_count) {
		index = m->rec_fresh++;
	} else {
		return NULL;
	}
	m->rec_used++;
	rec = rec_at(m, index);
	memset(rec, 0, m->rec_bytes);
	rec->chunk = c;
	rec->next = *head;
	*head = index + 1;
	return rec;
}

static void rec_release(struct map *m, struct map_rec *rec)
{
	uint32_t *at = rec_head(m, rec->chunk);
	uint32_t index = (uint32_t)((size_t)((uint8_t *)rec - m->recs) / m->rec_bytes);

	CHECK(!rec->flying && !rec->pulling);
	while (*at != index + 1) {
		CHECK(*at);
		at = &rec_at(m, *at - 1)->next;
	}
	*at = rec->next;
	rec->chunk = UINT64_MAX;
	rec->next = m->rec_free;
	m->rec_free = index + 1;
	m->rec_used--;
}

/* A record of a complete chunk can be done without: the chunk is dirty as a whole then. */
static bool rec_steal(struct map *m)
{
	for (uint32_t i = 0; i < m->rec_fresh; i++) {
		struct map_rec *rec = rec_at(m, i);

		if (rec->chunk != UINT64_MAX && map_state(m, rec->chunk) == CHUNK_DIRTY) {
			rec_release(m, rec);
			return true;
		}
	}
	return false;
}

/* ---- counting ---- */

uint32_t map_pages(const struct map *m, uint64_t c)
{
	uint64_t left = m->size - (c << m->shift);

	return (uint32_t)MIN((uint64_t)m->pages, (left + PAGE_BYTES - 1) / PAGE_BYTES);
}

struct range map_range(const struct map *m, uint64_t c, uint64_t count)
{
	CHECK(c < m->chunks && count <= m->chunks - c);
	return range_between(c << m->shift,
			     c + count == m->chunks ? m->size : (c + count) << m->shift);
}

struct range map_page_range(const struct map *m, uint64_t c, uint64_t count)
{
	struct range r = map_range(m, c, count);

	r.len = align_up(r.len, PAGE_BYTES);
	return r;
}

static bool bits_any(const struct map *m, const uint64_t *bits)
{
	for (size_t i = 0; i < m->words; i++)
		if (bits[i])
			return true;
	return false;
}

static bool rec_is_dirty(const struct map *m, struct map_rec *rec)
{
	return bits_any(m, rec_dirty(m, rec));
}

static bool bits_all(const struct map *m, const uint64_t *bits, uint64_t c)
{
	uint32_t pages = map_pages(m, c);

	return bitmap_next_clear(bits, pages, 0) == pages;
}

static unsigned class_plain(const struct map *m, uint64_t c)
{
	uint8_t byte = map_byte(m, c);
	unsigned is = (byte & CHUNK_UNFLUSHED_A ? IS_UNFLUSHED_A : 0) |
		      (byte & CHUNK_UNFLUSHED_B ? IS_UNFLUSHED_B : 0);
	struct map_rec *rec;

	switch (byte & CHUNK_STATE_MASK) {
	case CHUNK_ABSENT:
		return is;
	case CHUNK_PULLING:
		return is | IS_HELD | IS_PULLING;
	case CHUNK_CLEAN:
		return is | IS_HELD | IS_FULL;
	case CHUNK_DIRTY:
		return is | IS_HELD | IS_FULL | IS_DIRTY;
	case CHUNK_PUSHING:
		return is | IS_HELD | IS_FULL | IS_PUSHING;
	case CHUNK_REPUSH:
		return is | IS_HELD | IS_FULL | IS_PUSHING | IS_DIRTY;
	default:
		rec = map_rec(m, c);
		CHECK(rec);
		return is | IS_HELD | (rec->flying ? IS_PUSHING : 0) |
		       (rec->pulling ? IS_PULLING : 0) | (rec_is_dirty(m, rec) ? IS_DIRTY : 0);
	}
}

static unsigned class_of(const struct map *m, uint64_t c)
{
	unsigned is = class_plain(m, c);

	if (is & IS_HELD && !(is & (IS_BUSY | IS_PULLING | IS_UNFLUSHED)))
		is |= IS_DROPPABLE;
	return is;
}

static void sum_add(struct map_sum *sum, unsigned is, int by)
{
	if (is & IS_HELD)
		sum->held += (uint32_t)by;
	if (is & IS_BUSY)
		sum->busy += (uint32_t)by;
	if (is & IS_UNFLUSHED)
		sum->unflushed += (uint32_t)by;
}

static void count_add(struct map *m, unsigned is, int by)
{
	uint64_t n = (uint64_t)(int64_t)by;

	m->held += is & IS_HELD ? n : 0;
	m->full += is & IS_FULL ? n : 0;
	m->dirty += is & IS_DIRTY ? n : 0;
	m->pushing += is & IS_PUSHING ? n : 0;
	m->pulling += is & IS_PULLING ? n : 0;
	m->droppable += is & IS_DROPPABLE ? n : 0;
	m->unflushed[0] += is & IS_UNFLUSHED_A ? n : 0;
	m->unflushed[1] += is & IS_UNFLUSHED_B ? n : 0;
	m->unsafe += is & (IS_BUSY | IS_UNFLUSHED) ? n : 0;
}

/* Every change ends here: `was` is what class_of() said before it. */
static void account(struct map *m, uint64_t c, unsigned was)
{
	unsigned is = class_of(m, c);
	struct map_sum *group = &m->group[c / MAP_GROUP], *top = &m->top[c / MAP_GROUP / MAP_GROUP];

	if (is != was) {
		count_add(m, was, -1);
		count_add(m, is, 1);
		sum_add(group, was, -1);
		sum_add(group, is, 1);
		sum_add(top, was, -1);
		sum_add(top, is, 1);
	}
	if (!group->touched) {
		group->touched = 1;
		top->touched++;
		m->touched++;
	}
	map_assert(m, c);
}

static void byte_set(struct map *m, uint64_t c, uint8_t byte)
{
	__atomic_store_n(&m->bytes[c], byte, __ATOMIC_RELAXED);
}

static void state_set(struct map *m, uint64_t c, enum chunk_state to)
{
	uint8_t byte = map_byte(m, c);

	CHECK(allowed[byte & CHUNK_STATE_MASK] & 1u << to);
	byte_set(m, c, (uint8_t)((byte & ~CHUNK_STATE_MASK) | to));
}

/* The state that follows from the record; the record goes when it has nothing more to say. */
static void state_settle(struct map *m, uint64_t c, struct map_rec *rec)
{
	bool dirty = rec_is_dirty(m, rec);

	if (rec->pulling || !bits_all(m, rec_ours(m, rec), c)) {
		state_set(m, c, CHUNK_PARTIAL);
	} else if (rec->flying) {
		state_set(m, c, dirty ? CHUNK_REPUSH : CHUNK_PUSHING);
	} else if (dirty) {
		state_set(m, c, CHUNK_DIRTY);
		if (bits_all(m, rec_dirty(m, rec), c))
			rec_release(m, rec);
	} else {
		state_set(m, c, CHUNK_CLEAN);
		rec_release(m, rec);
	}
}

void map_flag(struct map *m, uint64_t c, uint8_t set, uint8_t clear)
{
	uint8_t byte = map_byte(m, c), to = (uint8_t)((byte & ~clear) | set);

	CHECK(!((set | clear) & (CHUNK_STATE_MASK | CHUNK_UNFLUSHED)));
	if (byte != to)
		byte_set(m, c, to);
}

/* ---- questions ---- */

bool map_page_here(const struct map *m, uint64_t c, uint32_t page)
{
	enum chunk_state s = map_state(m, c);

	if (s == CHUNK_PARTIAL)
		return bitmap_get(rec_ours(m, map_rec(m, c)), page);
	return state_full(s);
}

bool map_pullable(const struct map *m, uint64_t c)
{
	enum chunk_state s = map_state(m, c);

	return s == CHUNK_ABSENT || (s == CHUNK_PARTIAL && !map_rec(m, c)->pulling);
}

bool map_pulling(const struct map *m, uint64_t c)
{
	enum chunk_state s = map_state(m, c);

	return s == CHUNK_PULLING || (s == CHUNK_PARTIAL && map_rec(m, c)->pulling);
}

bool map_flying(const struct map *m, uint64_t c)
{
	return class_of(m, c) & IS_PUSHING;
}

bool map_dirty(const struct map *m, uint64_t c)
{
	return class_of(m, c) & IS_DIRTY;
}

bool map_droppable(const struct map *m, uint64_t c)
{
	return class_of(m, c) & IS_DROPPABLE;
}

/* ---- pulling ---- */

void map_pull_begin(struct map *m, uint64_t c)
{
	unsigned was = class_of(m, c);

	CHECK(map_pullable(m, c));
	if (map_state(m, c) == CHUNK_PARTIAL)
		map_rec(m, c)->pulling = true;
	else
		state_set(m, c, CHUNK_PULLING);
	account(m, c, was);
}

void map_pull_end(struct map *m, uint64_t c)
{
	unsigned was = class_of(m, c);
	struct map_rec *rec;

	CHECK(was & IS_PULLING);
	if (map_state(m, c) == CHUNK_PULLING) {
		state_set(m, c, CHUNK_CLEAN);
	} else {
		rec = map_rec(m, c);
		rec->pulling = false;
		bitmap_set_range(rec_ours(m, rec), 0, map_pages(m, c));
		state_settle(m, c, rec);
	}
	account(m, c, was);
}

bool map_pull_some(struct map *m, uint64_t c, uint32_t page)
{
	unsigned was = class_of(m, c);
	struct map_rec *rec = map_rec(m, c);

	CHECK(was & IS_PULLING);
	if (!rec) {
		rec = rec_new(m, c);
		if (!rec)
			return false;
		rec->pulling = true;
		state_set(m, c, CHUNK_PARTIAL);
	}
	bitmap_set(rec_ours(m, rec), page);
	account(m, c, was);
	return true;
}

void map_pull_fail(struct map *m, uint64_t c)
{
	unsigned was = class_of(m, c);
	struct map_rec *rec;

	CHECK(was & IS_PULLING);
	if (map_state(m, c) == CHUNK_PULLING) {
		state_set(m, c, CHUNK_ABSENT);
	} else {
		rec = map_rec(m, c);
		rec->pulling = false;
		if (bits_any(m, rec_ours(m, rec))) {
			state_settle(m, c, rec);
		} else { /* all that was here has been invalidated */
			state_set(m, c, CHUNK_ABSENT);
			map_flag(m, c, 0, CHUNK_REF | CHUNK_MARK);
			rec_release(m, rec);
		}
	}
	account(m, c, was);
}

/* ---- writing ---- */

bool map_can_write(const struct map *m, uint64_t c, uint32_t page, uint32_t count)
{
	enum chunk_state s = map_state(m, c);

	if (s == CHUNK_ABSENT && !page && count == map_pages(m, c))
		return true;
	if (s != CHUNK_ABSENT && s != CHUNK_PULLING)
		return true;
	if (m->rec_free || m->rec_fresh < m->rec_count)
		return true;
	for (uint32_t i = 0; i < m->rec_fresh; i++)
		if (map_state(m, rec_at(m, i)->chunk) == CHUNK_DIRTY)
			return true;
	return false;
}

/* Pages of a chunk that is not complete are written. */
static void write_partial(struct map *m, uint64_t c, uint32_t page, uint32_t count)
{
	enum chunk_state s = map_state(m, c);
	struct map_rec *rec;

	if (s == CHUNK_ABSENT && count == map_pages(m, c)) {
		state_set(m, c, CHUNK_DIRTY);
		return;
	}
	if (s == CHUNK_PARTIAL) {
		rec = map_rec(m, c);
	} else {
		rec = rec_new(m, c);
		if (!rec && rec_steal(m))
			rec = rec_new(m, c);
		CHECK(rec); /* map_can_write() was asked */
		rec->pulling = s == CHUNK_PULLING;
		state_set(m, c, CHUNK_PARTIAL);
	}
	bitmap_set_range(rec_ours(m, rec), page, count);
	bitmap_set_range(rec_dirty(m, rec), page, count);
	state_settle(m, c, rec);
}

/* Pages of a complete chunk are written. */
static void write_full(struct map *m, uint64_t c, uint32_t page, uint32_t count)
{
	enum chunk_state s = map_state(m, c);
	struct map_rec *rec = s == CHUNK_CLEAN ? NULL : map_rec(m, c);
	uint32_t pages = map_pages(m, c);

	if (!rec) {
		if (s == CHUNK_DIRTY || s == CHUNK_REPUSH)
			return; /* as a whole already */
		if (count < pages)
			rec = rec_new(m, c);
		if (!rec) {
			state_set(m, c, s == CHUNK_CLEAN ? CHUNK_DIRTY : CHUNK_REPUSH);
			return;
		}
		bitmap_set_range(rec_ours(m, rec), 0, pages);
		if (s == CHUNK_PUSHING) {
			bitmap_set_range(rec_pushing(m, rec), 0, pages);
			rec->flying = 1;
		}
	}
	bitmap_set_range(rec_dirty(m, rec), page, count);
	state_settle(m, c, rec);
}

void map_write(struct map *m, uint64_t c, uint32_t page, uint32_t count)
{
	unsigned was = class_of(m, c);

	CHECK(count && page + count <= map_pages(m, c));
	if (was & IS_FULL)
		write_full(m, c, page, count);
	else
		write_partial(m, c, page, count);
	account(m, c, was);
}

void map_found(struct map *m, uint64_t c, uint32_t page, uint32_t count)
{
	enum chunk_state s = map_state(m, c);
	unsigned was;
	struct map_rec *rec;

	if (state_full(s)) {
		map_write(m, c, page, count);
	} else if (s == CHUNK_PARTIAL) {
		was = class_of(m, c);
		rec = map_rec(m, c);
		for (uint32_t p = page; p < page + count; p++)
			if (bitmap_get(rec_ours(m, rec), p))
				bitmap_set(rec_dirty(m, rec), p);
		account(m, c, was);
	}
}

/* ---- pushing ---- */

bool map_push_next(const struct map *m, uint64_t c, uint32_t page, uint32_t *ret_page,
		   uint32_t *ret_count)
{
	enum chunk_state s = map_state(m, c);
	uint32_t pages = map_pages(m, c), end;
	struct map_rec *rec;
	const uint64_t *dirty, *pushing;

	if (s != CHUNK_DIRTY && s != CHUNK_REPUSH && s != CHUNK_PARTIAL)
		return false;
	rec = map_rec(m, c);
	if (!rec) {
		if (s != CHUNK_DIRTY || page)
			return false; /* REPUSH: one WRITE at a time of a whole chunk */
		*ret_page = 0;
		*ret_count = pages;
		return true;
	}
	dirty = rec_dirty(m, rec);
	pushing = rec_pushing(m, rec);
	for (;;) {
		page = (uint32_t)bitmap_next_set(dirty, pages, page);
		if (page == pages)
			return false;
		if (!bitmap_get(pushing, page))
			break;
		page++;
	}
	end = (uint32_t)MIN(bitmap_next_clear(dirty, pages, page),
			    bitmap_next_set(pushing, pages, page));
	*ret_page = page;
	*ret_count = end - page;
	return true;
}

void map_push_begin(struct map *m, uint64_t c, uint32_t page, uint32_t count)
{
	unsigned was = class_of(m, c);
	struct map_rec *rec = map_rec(m, c);

	if (!rec) {
		CHECK(map_state(m, c) == CHUNK_DIRTY && !page && count == map_pages(m, c));
		state_set(m, c, CHUNK_PUSHING);
	} else {
		CHECK(count && page + count <= map_pages(m, c));
		bitmap_clear_range(rec_dirty(m, rec), page, count);
		bitmap_set_range(rec_pushing(m, rec), page, count);
		rec->flying++;
		state_settle(m, c, rec);
	}
	account(m, c, was);
}

void map_push_end(struct map *m, uint64_t c, uint32_t page, uint32_t count, bool ok, unsigned epoch)
{
	unsigned was = class_of(m, c);
	struct map_rec *rec = map_rec(m, c);

	CHECK(epoch < 2);
	if (!rec) {
		enum chunk_state s = map_state(m, c);

		CHECK((s == CHUNK_PUSHING || s == CHUNK_REPUSH) && !page &&
		      count == map_pages(m, c));
		state_set(m, c, s == CHUNK_PUSHING && ok ? CHUNK_CLEAN : CHUNK_DIRTY);
	} else {
		CHECK(rec->flying);
		rec->flying--;
		bitmap_clear_range(rec_pushing(m, rec), page, count);
		if (!ok)
			bitmap_set_range(rec_dirty(m, rec), page, count);
		state_settle(m, c, rec);
	}
	if (ok)
		byte_set(m, c, map_byte(m, c) | (epoch ? CHUNK_UNFLUSHED_B : CHUNK_UNFLUSHED_A));
	account(m, c, was);
}

/* ---- flushing ---- */

static uint8_t epoch_flag(unsigned epoch)
{
	CHECK(epoch < 2);
	return epoch ? CHUNK_UNFLUSHED_B : CHUNK_UNFLUSHED_A;
}

/* The next chunk at or after *c with something unflushed; ends when none of the epoch is left. */
static bool unflushed_next(const struct map *m, unsigned epoch, uint64_t *c)
{
	if (m->unflushed[epoch])
		*c = map_next(m, *c, MAP_UNFLUSHED);
	return m->unflushed[epoch] && *c < m->chunks;
}

void map_flushed(struct map *m, unsigned epoch)
{
	uint8_t flag = epoch_flag(epoch);

	for (uint64_t c = 0; unflushed_next(m, epoch, &c); c++) {
		unsigned was = class_of(m, c);

		byte_set(m, c, map_byte(m, c) & (uint8_t)~flag);
		account(m, c, was);
	}
}

void map_epoch_merge(struct map *m, unsigned from, unsigned to)
{
	for (uint64_t c = 0; unflushed_next(m, from, &c); c++) {
		unsigned was = class_of(m, c);
		uint8_t byte = map_byte(m, c);

		if (byte & epoch_flag(from))
			byte_set(m, c, (byte & (uint8_t)~epoch_flag(from)) | epoch_flag(to));
		account(m, c, was);
	}
}

static void forget_chunk(struct map *m, uint64_t c)
{
	struct map_rec *rec = map_rec(m, c);

	if (rec) {
		memcpy(rec_dirty(m, rec), rec_ours(m, rec), m->words * sizeof(uint64_t));
		state_settle(m, c, rec);
	} else if (map_state(m, c) == CHUNK_CLEAN) {
		state_set(m, c, CHUNK_DIRTY);
	} else if (map_state(m, c) == CHUNK_PUSHING) {
		state_set(m, c, CHUNK_REPUSH);
	}
}

void map_forget(struct map *m, unsigned epoch)
{
	uint8_t flag = epoch_flag(epoch);

	for (uint64_t c = 0; unflushed_next(m, epoch, &c); c++) {
		unsigned was = class_of(m, c);

		if (!(map_byte(m, c) & flag))
			continue;
		byte_set(m, c, map_byte(m, c) & (uint8_t)~flag);
		forget_chunk(m, c);
		account(m, c, was);
	}
}

/* ---- dropping ---- */

void map_drop(struct map *m, uint64_t c)
{
	unsigned was = class_of(m, c);
	struct map_rec *rec = map_rec(m, c);

	CHECK(map_droppable(m, c));
	state_set(m, c, CHUNK_ABSENT);
	map_flag(m, c, 0, CHUNK_REF | CHUNK_MARK);
	if (rec)
		rec_release(m, rec);
	account(m, c, was);
}

bool map_shrink(struct map *m, uint64_t c)
{
	unsigned was = class_of(m, c);
	struct map_rec *rec = map_rec(m, c);

	if (!rec || was & IS_UNFLUSHED || !(was & (IS_BUSY | IS_PULLING)))
		return false;
	for (size_t i = 0; i < m->words; i++)
		rec_ours(m, rec)[i] = rec_dirty(m, rec)[i] | rec_pushing(m, rec)[i];
	map_flag(m, c, 0, CHUNK_MARK);
	state_settle(m, c, rec);
	account(m, c, was);
	return true;
}

/* ---- what must hold ---- */

static void assert_rec(const struct map *m, uint64_t c, struct map_rec *rec, enum chunk_state s)
{
	bool dirty = rec_is_dirty(m, rec), all = bits_all(m, rec_ours(m, rec), c);

	for (size_t i = 0; i < m->words; i++)
		CHECK(!((rec_dirty(m, rec)[i] | rec_pushing(m, rec)[i]) & ~rec_ours(m, rec)[i]));
	CHECK(rec->flying || !bits_any(m, rec_pushing(m, rec)));
	CHECK(s == CHUNK_PARTIAL ? rec->pulling || !all : all && !rec->pulling);
	CHECK(s != CHUNK_DIRTY || (dirty && !rec->flying));
	CHECK(s != CHUNK_PUSHING || (!dirty && rec->flying));
	CHECK(s != CHUNK_REPUSH || (dirty && rec->flying));
}

void map_assert(const struct map *m, uint64_t c)
{
	uint8_t byte = map_byte(m, c);
	enum chunk_state s = map_state(m, c);
	struct map_rec *rec = map_rec(m, c);

	CHECK(s < CHUNK_STATES);
	CHECK(rec ? s == CHUNK_PARTIAL || s >= CHUNK_DIRTY : s != CHUNK_PARTIAL);
	if (s == CHUNK_ABSENT || s == CHUNK_PULLING)
		CHECK(!(byte & (CHUNK_UNFLUSHED | CHUNK_REF | CHUNK_MARK)));
	if (rec)
		assert_rec(m, c, rec, s);
}

void map_assert_all(const struct map *m)
{
	struct map_sum all = { 0 };
	uint64_t touched = 0;

	for (uint64_t g = 0; g < m->groups; g++) {
		struct map_sum sum = { 0 };

		touched += m->group[g].touched;
		for (uint64_t c = g * MAP_GROUP; c < MIN((g + 1) * MAP_GROUP, m->chunks); c++) {
			map_assert(m, c);
			sum_add(&sum, class_of(m, c), 1);
		}
		CHECK(sum.held == m->group[g].held && sum.busy == m->group[g].busy);
		CHECK(sum.unflushed == m->group[g].unflushed);
		all.held += sum.held;
		all.busy += sum.busy;
		all.unflushed += sum.unflushed;
	}
	CHECK(all.held == m->held && touched == m->touched && m->full <= m->held);
	CHECK(all.busy <= m->dirty + m->pushing &&
	      all.unflushed <= m->unflushed[0] + m->unflushed[1]);
	CHECK(m->unsafe >= MAX(all.busy, all.unflushed) && m->unsafe <= all.busy + all.unflushed);
	CHECK(m->todo_count == bitmap_count(m->todo, m->chunks));
}
