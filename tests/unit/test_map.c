/* SPDX-License-Identifier: Apache-2.0 */
/* The chunk map, step by step and against a model that keeps a byte per page. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/rng.h"
#include "region/map.h"

#define CHUNK (64 * KIB)
#define PAGES 16u

static struct map *map_new(uint64_t size, uint32_t chunk, size_t rec_bytes)
{
	struct map *m = malloc(sizeof(*m));
	struct err e;

	assert_non_null(m);
	assert_int_equal(map_init(m, size, chunk, rec_bytes, &e), 0);
	return m;
}

static void map_free(struct map *m)
{
	map_assert_all(m);
	map_done(m);
	free(m);
}

static void pull(struct map *m, uint64_t c)
{
	map_pull_begin(m, c);
	map_pull_end(m, c);
}

static void push_all_of(struct map *m, uint64_t c, bool ok, unsigned epoch)
{
	uint32_t page = 0, count, begun = 0, at[PAGES], len[PAGES];

	for (; map_push_next(m, c, page, &at[begun], &len[begun]); begun++) {
		map_push_begin(m, c, at[begun], len[begun]);
		page = at[begun] + len[begun];
	}
	for (count = 0; count < begun; count++)
		map_push_end(m, c, at[count], len[count], ok, epoch);
}

/* Page by page, without the sums. */
static uint64_t unsafe_counted(const struct map *m)
{
	uint64_t bytes = 0;

	for (uint64_t c = 0; c < m->chunks; c++) {
		struct map_rec *rec = map_rec(m, c);
		bool unflushed = map_byte(m, c) & CHUNK_UNFLUSHED;
		struct range r = map_range(m, c, 1);

		for (uint32_t p = 0; p < map_pages(m, c); p++) {
			bool here = map_page_here(m, c, p), busy;

			busy = rec ? bitmap_get(rec_dirty(m, rec), p) ||
					     bitmap_get(rec_pushing(m, rec), p) :
				     map_state(m, c) >= CHUNK_DIRTY;
			if (busy || (here && unflushed))
				bytes += MIN(r.len - (uint64_t)p * PAGE_BYTES,
					     (uint64_t)PAGE_BYTES);
		}
	}
	return bytes;
}

static void a_sparse_terabyte_takes_little_memory(void **state)
{
	struct map *m = map_new(1 * TIB, CHUNK, 1 * MIB);

	(void)state;
	assert_int_equal(m->chunks, 16 * MIB);
	assert_true(map_memory(m) + map_memory_fixed(m) < 2 * MIB);
	assert_int_equal(map_next(m, 0, MAP_HELD), m->chunks);
	pull(m, 5);
	pull(m, m->chunks - 1);
	assert_int_equal(map_next(m, 0, MAP_HELD), 5);
	assert_int_equal(map_next(m, 6, MAP_HELD), m->chunks - 1);
	assert_true(map_memory(m) < 16 * KIB);
	map_done(m);
	free(m);
	/* even when all of it is used: 16 MiB of bytes, an eighth of it for sweeps, the sums */
	assert_true(4096ULL * MAP_GROUP_MEMORY < 19 * MIB);
}

static void a_resource_that_is_too_large_for_its_chunks_is_refused(void **state)
{
	struct map m;
	struct err e;

	(void)state;
	assert_int_equal(map_init(&m, RESOURCE_SIZE_MAX, 4096, 1 * MIB, &e), -EFBIG);
	assert_non_null(strstr(e.text, "4 KiB"));
}

static void the_last_chunk_has_fewer_pages(void **state)
{
	struct map *m = map_new(2 * CHUNK + 2 * PAGE_BYTES + 1, CHUNK, 1 * MIB);

	(void)state;
	assert_int_equal(m->chunks, 3);
	assert_int_equal(map_pages(m, 1), PAGES);
	assert_int_equal(map_pages(m, 2), 3);
	assert_int_equal(map_range(m, 2, 1).len, 2 * PAGE_BYTES + 1);
	assert_int_equal(map_page_range(m, 2, 1).len, 3 * PAGE_BYTES);
	map_write(m, 2, 0, 3); /* all of it: needs no record, and no pull */
	assert_int_equal(map_state(m, 2), CHUNK_DIRTY);
	assert_null(map_rec(m, 2));
	push_all_of(m, 2, true, 0);
	assert_int_equal(map_state(m, 2), CHUNK_CLEAN);
	map_free(m);
}

static void a_write_before_the_pull_makes_a_chunk_partial(void **state)
{
	struct map *m = map_new(10 * CHUNK, CHUNK, 1 * MIB);

	(void)state;
	map_write(m, 3, 4, 2);
	assert_int_equal(map_state(m, 3), CHUNK_PARTIAL);
	assert_true(map_page_here(m, 3, 4) && map_page_here(m, 3, 5) && !map_page_here(m, 3, 6));
	assert_true(map_pullable(m, 3));
	map_pull_begin(m, 3);
	assert_false(map_pullable(m, 3));
	map_write(m, 3, 9, 1);
	map_pull_end(m, 3);
	assert_int_equal(map_state(m, 3), CHUNK_DIRTY);
	push_all_of(m, 3, true, 0);
	assert_int_equal(map_state(m, 3), CHUNK_CLEAN);
	assert_int_equal(m->rec_used, 0);
	/* a partial chunk that is pushed and then written to its end is complete without a pull */
	map_write(m, 4, 0, 8);
	push_all_of(m, 4, true, 0);
	assert_int_equal(map_state(m, 4), CHUNK_PARTIAL);
	map_write(m, 4, 8, 8);
	assert_int_equal(map_state(m, 4), CHUNK_DIRTY);
	map_free(m);
}

static void a_write_during_a_push_leaves_the_chunk_dirty(void **state)
{
	struct map *m = map_new(10 * CHUNK, CHUNK, 1 * MIB);
	uint32_t page, count;

	(void)state;
	pull(m, 1);
	map_write(m, 1, 2, 1);
	map_push_begin(m, 1, 2, 1);
	assert_int_equal(map_state(m, 1), CHUNK_PUSHING);
	map_write(m, 1, 2, 1);
	assert_int_equal(map_state(m, 1), CHUNK_REPUSH);
	/* never the same page twice at a time */
	assert_false(map_push_next(m, 1, 0, &page, &count));
	map_push_end(m, 1, 2, 1, true, 0);
	assert_int_equal(map_state(m, 1), CHUNK_DIRTY);
	assert_true(map_push_next(m, 1, 0, &page, &count));
	assert_int_equal(page, 2);
	/* the same of a whole chunk */
	pull(m, 2);
	map_write(m, 2, 0, PAGES);
	assert_null(map_rec(m, 2));
	map_push_begin(m, 2, 0, PAGES);
	map_write(m, 2, 7, 1);
	assert_int_equal(map_state(m, 2), CHUNK_REPUSH);
	map_push_end(m, 2, 0, PAGES, true, 0);
	assert_true(map_push_next(m, 2, 0, &page, &count));
	assert_true(page == 7 && count == 1);
	map_free(m);
}

static void a_failed_push_makes_its_pages_dirty_again(void **state)
{
	struct map *m = map_new(10 * CHUNK, CHUNK, 1 * MIB);
	uint32_t page, count;

	(void)state;
	pull(m, 1);
	map_write(m, 1, 3, 2);
	push_all_of(m, 1, false, 0);
	assert_int_equal(map_state(m, 1), CHUNK_DIRTY);
	assert_true(map_push_next(m, 1, 0, &page, &count) && page == 3 && count == 2);
	assert_int_equal(m->unflushed[0] + m->unflushed[1], 0);
	map_free(m);
}

static void without_records_chunks_are_dirty_as_a_whole(void **state)
{
	struct map *m = map_new(1000 * CHUNK, CHUNK, 1);
	uint32_t page, count;

	(void)state;
	for (uint64_t c = 0; c < 500; c++) {
		pull(m, c);
		map_write(m, c, 1, 1);
		assert_int_equal(map_state(m, c), CHUNK_DIRTY);
	}
	assert_true(map_push_next(m, 499, 0, &page, &count));
	assert_true(page == 0 && count == PAGES);
	/* a write into an absent chunk takes the record of one that can do without */
	for (uint64_t c = 500; c < 500 + MAP_RECS_MIN; c++) {
		assert_true(map_can_write(m, c, 2, 1));
		map_write(m, c, 2, 1);
		assert_int_equal(map_state(m, c), CHUNK_PARTIAL);
	}
	assert_false(map_can_write(m, 700, 2, 1));
	assert_true(map_can_write(m, 700, 0, PAGES));
	map_pull_begin(m, 700);
	assert_false(map_can_write(m, 700, 0, 1));
	map_pull_fail(m, 700);
	map_free(m);
}

static void only_a_flush_of_its_epoch_makes_a_push_safe(void **state)
{
	struct map *m = map_new(10 * CHUNK, CHUNK, 1 * MIB);

	(void)state;
	for (uint64_t c = 0; c < 4; c++) {
		pull(m, c);
		map_write(m, c, 1, 1);
		push_all_of(m, c, true, c % 2);
		assert_false(map_droppable(m, c));
	}
	map_flushed(m, 0);
	assert_true(map_droppable(m, 0) && !map_droppable(m, 1));
	map_epoch_merge(m, 1, 0);
	assert_true(m->unflushed[0] == 2 && m->unflushed[1] == 0);
	map_forget(m, 0);
	assert_true(m->dirty == 2 && m->unflushed[0] == 0);
	assert_int_equal(map_state(m, 3), CHUNK_DIRTY);
	map_free(m);
}

static void what_was_forgotten_is_all_that_was_ours(void **state)
{
	struct map *m = map_new(10 * CHUNK, CHUNK, 1 * MIB);
	uint32_t page, count;

	(void)state;
	map_write(m, 2, 3, 2); /* partial */
	push_all_of(m, 2, true, 1);
	map_write(m, 2, 8, 1);
	map_forget(m, 1);
	assert_true(map_push_next(m, 2, 0, &page, &count) && page == 3 && count == 2);
	assert_true(map_push_next(m, 2, 5, &page, &count) && page == 8 && count == 1);
	/* while a WRITE is under way */
	pull(m, 4);
	map_write(m, 4, 0, PAGES);
	push_all_of(m, 4, true, 0);
	map_write(m, 4, 0, PAGES);
	map_push_begin(m, 4, 0, PAGES);
	map_forget(m, 0);
	assert_int_equal(map_state(m, 4), CHUNK_REPUSH);
	map_push_end(m, 4, 0, PAGES, true, 0);
	assert_int_equal(map_state(m, 4), CHUNK_DIRTY);
	map_free(m);
}

static void pages_that_are_not_here_are_never_found_written(void **state)
{
	struct map *m = map_new(10 * CHUNK, CHUNK, 1 * MIB);
	uint32_t page, count;

	(void)state;
	map_found(m, 0, 0, PAGES);
	assert_int_equal(map_state(m, 0), CHUNK_ABSENT);
	map_write(m, 1, 5, 1);
	push_all_of(m, 1, true, 0);
	map_found(m, 1, 0, PAGES);
	assert_true(map_push_next(m, 1, 0, &page, &count) && page == 5 && count == 1);
	assert_false(map_push_next(m, 1, 6, &page, &count));
	map_free(m);
}

static void shrinking_keeps_what_is_not_safe_yet(void **state)
{
	struct map *m = map_new(10 * CHUNK, CHUNK, 1 * MIB);

	(void)state;
	pull(m, 1);
	map_write(m, 1, 5, 1);
	map_write(m, 1, 7, 1);
	map_push_begin(m, 1, 7, 1);
	assert_true(map_shrink(m, 1));
	assert_int_equal(map_state(m, 1), CHUNK_PARTIAL);
	assert_true(map_page_here(m, 1, 5) && map_page_here(m, 1, 7) && !map_page_here(m, 1, 6));
	map_push_end(m, 1, 7, 1, true, 0);
	assert_false(map_shrink(m, 1)); /* which pages the unflushed push had is not known */
	map_free(m);
}

static void looking_skips_what_is_empty(void **state)
{
	struct map *m = map_new(64 * TIB, CHUNK, 1 * MIB); /* 2^30 chunks */
	static const uint64_t at[] = { 0, 4095, 4096, 70000, 16777216, 16777215, 500000000,
				      (1u << 30) - 1 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(at); i++) {
		pull(m, at[i]);
		map_write(m, at[i], 0, 1);
	}
	for (size_t i = 0; i < ARRAY_LEN(at); i++) {
		assert_int_equal(map_next(m, at[i], MAP_BUSY), at[i]);
		assert_int_equal(map_next(m, at[i] ? at[i] - 1 : 0, MAP_HELD) <= at[i], 1);
	}
	assert_int_equal(map_next(m, 70001, MAP_BUSY), 16777215);
	assert_int_equal(map_next(m, 16777217, MAP_BUSY), 500000000);
	assert_int_equal(map_next(m, 0, MAP_UNFLUSHED), m->chunks);
	map_done(m);
	free(m);
}

/* ---- against a model ---- */

struct mpage {
	bool here, dirty, flying, again;
};

/* What the map may say more than is true is only that a page is dirty. */
static void model_compare(const struct map *m, uint64_t c, const struct mpage *p)
{
	bool dirty = false, flying = false;

	for (uint32_t i = 0; i < map_pages(m, c); i++) {
		assert_int_equal(map_page_here(m, c, i), p[i].here);
		dirty |= p[i].dirty;
		flying |= p[i].flying;
	}
	assert_true(!dirty || map_dirty(m, c));
	assert_int_equal(flying, map_flying(m, c));
	assert_true(!(dirty || flying) || !map_droppable(m, c));
}

static void model_push(struct map *m, struct rng *r, uint64_t c, struct mpage *p)
{
	uint32_t page, count;

	if (!map_push_next(m, c, (uint32_t)rng_below(r, 3), &page, &count))
		return;
	for (uint32_t i = page; i < page + count; i++)
		assert_true(p[i].here && !p[i].flying);
	map_push_begin(m, c, page, count);
	for (uint32_t i = page; i < page + count; i++)
		p[i] = (struct mpage){ .here = true, .flying = true };
	if (rng_chance(r, 500000) && map_can_write(m, c, page, 1)) {
		map_write(m, c, page, 1);
		p[page].dirty = true;
	}
	if (rng_chance(r, 300000))
		model_push(m, r, c, p); /* another run meanwhile */
	bool ok = rng_chance(r, 700000);
	map_push_end(m, c, page, count, ok, (unsigned)rng_below(r, 2));
	for (uint32_t i = page; i < page + count; i++) {
		p[i].flying = false;
		p[i].dirty |= !ok;
	}
}

static void model_write(struct map *m, struct rng *r, uint64_t c, struct mpage *p)
{
	uint32_t page = (uint32_t)rng_below(r, map_pages(m, c));
	uint32_t count = 1 + (uint32_t)rng_below(r, map_pages(m, c) - page);

	if (!map_can_write(m, c, page, count))
		return;
	map_write(m, c, page, count);
	for (uint32_t i = page; i < page + count; i++)
		p[i].here = p[i].dirty = true;
}

static void model_step(struct map *m, struct rng *r, uint64_t c, struct mpage *p)
{
	uint32_t pages = map_pages(m, c);

	switch (rng_below(r, 6)) {
	case 0:
		model_write(m, r, c, p);
		break;
	case 1:
		if (!map_pullable(m, c))
			break;
		map_pull_begin(m, c);
		if (rng_chance(r, 500000))
			model_write(m, r, c, p);
		if (rng_chance(r, 500000))
			model_push(m, r, c, p);
		if (rng_chance(r, 200000)) {
			map_pull_fail(m, c);
			break;
		}
		map_pull_end(m, c);
		for (uint32_t i = 0; i < pages; i++)
			p[i].here = true;
		break;
	case 2:
		model_push(m, r, c, p);
		break;
	case 3:
		if (map_droppable(m, c)) {
			map_drop(m, c);
			memset(p, 0, pages * sizeof(*p));
		}
		break;
	case 4:
		if (map_shrink(m, c))
			for (uint32_t i = 0; i < pages; i++)
				p[i].here = map_page_here(m, c, i);
		break;
	default:
		map_flushed(m, (unsigned)rng_below(r, 2));
	}
}

static void random_steps_against_a_model(void **state)
{
	enum { CHUNKS = 90 };
	static struct mpage page[CHUNKS][PAGES];
	struct rng r;

	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct map *m = map_new(CHUNKS * CHUNK - 3 * PAGE_BYTES - 7, CHUNK, 1);

		rng_init(&r, seed);
		memset(page, 0, sizeof(page));
		for (unsigned i = 0; i < 5000; i++) {
			uint64_t c = rng_below(&r, CHUNKS);

			model_step(m, &r, c, page[c]);
			model_compare(m, c, page[c]);
			if (i % 16 == 0)
				assert_int_equal(map_unsafe_bytes(m), unsafe_counted(m));
		}
		map_free(m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_sparse_terabyte_takes_little_memory),
		cmocka_unit_test(a_resource_that_is_too_large_for_its_chunks_is_refused),
		cmocka_unit_test(the_last_chunk_has_fewer_pages),
		cmocka_unit_test(a_write_before_the_pull_makes_a_chunk_partial),
		cmocka_unit_test(a_write_during_a_push_leaves_the_chunk_dirty),
		cmocka_unit_test(a_failed_push_makes_its_pages_dirty_again),
		cmocka_unit_test(without_records_chunks_are_dirty_as_a_whole),
		cmocka_unit_test(only_a_flush_of_its_epoch_makes_a_push_safe),
		cmocka_unit_test(what_was_forgotten_is_all_that_was_ours),
		cmocka_unit_test(pages_that_are_not_here_are_never_found_written),
		cmocka_unit_test(shrinking_keeps_what_is_not_safe_yet),
		cmocka_unit_test(looking_skips_what_is_empty),
		cmocka_unit_test(random_steps_against_a_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
