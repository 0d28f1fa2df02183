/* SPDX-License-Identifier: Apache-2.0 */
/* The region, what comes in: pulls, their order, faults, readahead. */
#include "region_rig.h"

/* ---- pull ---- */

static void one_page_moves_one_chunk(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);
	uint64_t bytes;

	(void)state;
	read_expect(t, 5 * CHUNK + 4096, 4096, 1);
	assert_int_equal(seen_reads(t, &bytes), 1);
	assert_int_equal(bytes, CHUNK);
	assert_string_equal(draw(t, 4, 3), ".#.");
	read_expect(t, 5 * CHUNK, CHUNK, 1);
	assert_int_equal(seen_reads(t, &bytes), 1);
	rig_free(t);
}

static void rule2_pull_never_overwrites_newer_write(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);

	(void)state;
	t->w.far->hold = true;
	submit(t, 0, REQ_READ, 0, CHUNK); /* copy on read ... */
	pass(t, 1 * MS);
	assert_string_equal(draw(t, 0, 1), "<");
	fill(t, 8192, 4096, 7);
	submit(t, 1, REQ_WRITE, 8192, 4096); /* ... and a write meanwhile, which does not wait */
	assert_int_equal(wait_for(t, 1), 0);
	assert_string_equal(draw(t, 0, 1), "~");
	go(t);
	assert_int_equal(wait_for(t, 0), 0);
	expect(t->buf, 0, 8192, 1);
	expect(t->buf, 8192, 4096, 7);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, 8192, 4096, 7);
	expect(t->w.far->durable, 12288, CHUNK - 12288, 1);
	rig_free(t);
}

static void a_part_of_a_page_waits_for_its_chunk_and_a_whole_one_does_not(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);

	(void)state;
	t->w.far->hold = true;
	fill(t, 3 * CHUNK, 2 * CHUNK, 3);
	submit(t, 0, REQ_WRITE, 3 * CHUNK + 4096, 8192);
	assert_int_equal(wait_for(t, 0), 0);
	submit(t, 1, REQ_WRITE, 4 * CHUNK + 512, 512);
	pass(t, 10 * MS);
	assert_false(t->done[1]);
	go(t);
	assert_int_equal(wait_for(t, 1), 0);
	read_expect(t, 4 * CHUNK + 512, 512, 3);
	read_expect(t, 4 * CHUNK, 512, 1);
	rig_free(t);
}

static void the_last_chunk_and_the_tail_are_pulled_and_pushed(void **state)
{
	struct region_options o = { .chunk = CHUNK, .pull_all = true };
	uint64_t size = 3 * CHUNK + 4096 + 512, tail = 3 * CHUNK;
	struct rig *t = rig_new(size, false, &o);
	struct region_status st;

	(void)state;
	pass(t, 1 * NS_PER_S);
	region_status(t->w.region, &st);
	assert_int_equal(st.local_bytes, size);
	read_expect(t, 0, size, 1);
	write_version(t, tail + 4096, 512, 2);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, tail + 4096, 512, 2);
	expect(t->w.far->durable, 0, tail + 4096, 1);
	rig_free(t);
	/* written without having been pulled */
	t = rig_new(size, false, &plain);
	write_version(t, tail, size - tail, 2);
	assert_int_equal(t->w.far->reads, 0);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, tail, size - tail, 2);
	rig_free(t);
}

static void what_is_safe_and_what_had_to_wait_is_counted(void **state)
{
	struct rig *t = rig_new(SIZE + 100 * SECTOR, false, &plain);
	struct region_status st;

	(void)state;
	region_status(t->w.region, &st);
	assert_true(!st.hits && !st.misses && !st.trip_ns && !st.unsafe_bytes);
	read_expect(t, 0, 4096, 1);
	read_expect(t, 4096, 4096, 1);
	read_expect(t, CHUNK, 512, 1);
	region_status(t->w.region, &st);
	assert_true(st.hits == 1 && st.misses == 2);
	assert_true(st.trip_ns >= t->w.far->delay_min_ns && st.trip_ns <= 2 * NS_PER_S);
	/* two pages of a chunk that is here, one of a chunk that is not, and the tail */
	t->w.far->hold = true;
	write_version(t, 4096, 8192, 2);
	write_version(t, 5 * CHUNK, 4096, 2);
	write_version(t, SIZE + 96 * SECTOR, 4 * SECTOR, 2);
	region_status(t->w.region, &st);
	assert_true(st.hits == 4 && st.misses == 2);
	assert_int_equal(st.unsafe_bytes, 8192 + 4096 + 4 * SECTOR);
	go(t);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	region_status(t->w.region, &st);
	assert_int_equal(st.unsafe_bytes, 0);
	rig_free(t);
}

/* A disk with less room than the resource takes, and than any budget said. */
static void a_full_near_store_drops_what_is_clean(void **state)
{
	struct region_options o = { .chunk = CHUNK, .pull_all = true };

	for (int budget = 0; budget < 2; budget++) {
		struct rig *t;
		struct region_status st;

		(void)state;
		o.budget_bytes = budget ? 40 * MIB : 0;
		t = rig_new(SIZE, false, &o);
		t->w.near.room = 20 * CHUNK / PAGE_BYTES + 3;
		pass(t, 1 * NS_PER_S);
		read_expect(t, 0, SIZE, 1);
		read_expect(t, 0, SIZE, 1);
		region_status(t->w.region, &st);
		assert_true(st.local_bytes <= 20 * CHUNK && st.local_bytes >= 8 * CHUNK);
		write_version(t, 0, SIZE, 2); /* pushed while it goes on */
		assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
		expect(t->w.far->durable, 0, SIZE, 2);
		read_expect(t, 0, SIZE, 2);
		rig_free(t);
	}
}

static void a_near_store_full_of_what_stays_is_an_error(void **state)
{
	struct region_options o = { .chunk = CHUNK, .discard = true, .readahead_bytes_max = 1,
				    .deadline_ns = NS_PER_S };
	struct rig *t = rig_new(SIZE, false, &o);
	unsigned i;
	int err = 0;

	(void)state;
	t->w.near.room = 20 * CHUNK / PAGE_BYTES;
	for (i = 0; i < 64 && !err; i++) {
		fill(t, i * CHUNK, CHUNK, 2);
		err = do_op(t, REQ_WRITE, i * CHUNK, CHUNK);
	}
	assert_int_equal(err, -ENOSPC);
	assert_int_equal(i, 21);
	read_expect(t, 0, 20 * CHUNK, 2);
	rig_free(t);
}

static void many_readers_and_a_dead_far_side_end_with_the_error(void **state)
{
	struct region_options o = { .chunk = CHUNK, .deadline_ns = 2 * NS_PER_S, .pull_all = true };
	struct rig *t = rig_new(SIZE, false, &o);

	(void)state;
	far_lose(t->w.far);
	for (unsigned i = 0; i < 400; i++) /* more than there are ios */
		submit(t, i, REQ_READ, (i % 64) * CHUNK, 512);
	pass(t, 10 * NS_PER_S);
	for (unsigned i = 0; i < 400; i++)
		assert_true(t->done[i] && t->err[i]);
	far_back(t->w.far);
	read_expect(t, 0, SIZE, 1);
	rig_free(t);
}

static void rule7_an_error_is_an_error_and_never_zeros(void **state)
{
	struct rig *t = rig_new(SIZE, true, &plain);

	(void)state;
	t->w.far->error_per_million = 1000000;
	assert_int_equal(do_op(t, REQ_READ, 0, 4096), -EIO);
	assert_int_equal(region_fault(t->w.region, CHUNK, false), REGION_WAITS);
	pass(t, 5 * NS_PER_S);
	assert_true(t->w.near.page[CHUNK / PAGE_BYTES].failed);
	assert_int_equal(t->w.near.present, 0);
	/* and when it is back, accesses fault again */
	t->w.far->error_per_million = 0;
	read_expect(t, 0, 4096, 1);
	assert_false(t->w.near.page[CHUNK / PAGE_BYTES].failed);
	rig_free(t);
}

static void policy_error_does_not_wait(void **state)
{
	struct region_options o = plain;
	struct rig *t;

	(void)state;
	o.on_loss = REGION_LOSS_ERROR;
	t = rig_new(SIZE, true, &o);
	read_expect(t, 0, CHUNK, 1);
	far_lose(t->w.far);
	assert_int_equal(do_op(t, REQ_READ, CHUNK, 512), -ENOTCONN);
	read_expect(t, 0, CHUNK, 1); /* what is local goes on */
	region_fault(t->w.region, 2 * CHUNK, false);
	pass(t, 1 * MS);
	assert_true(t->w.near.page[2 * CHUNK / PAGE_BYTES].failed);
	far_back(t->w.far);
	read_expect(t, CHUNK, 2 * CHUNK, 1);
	assert_false(t->w.near.page[2 * CHUNK / PAGE_BYTES].failed);
	rig_free(t);
}

static void a_pull_that_an_invalidate_overtakes_is_fetched_again(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);

	(void)state;
	t->w.far->delay_min_ns = t->w.far->delay_max_ns = 10 * MS;
	submit(t, 0, REQ_READ, 0, CHUNK);
	pass(t, 15 * MS); /* the far side has read its old data, which is on its way */
	fill(t, 0, CHUNK, 9);
	memcpy(t->w.far->bytes, t->buf, CHUNK);
	assert_int_equal(region_invalidate(t->w.region, range_of(0, CHUNK)), 0);
	assert_int_equal(wait_for(t, 0), 0);
	expect(t->buf, 0, CHUNK, 9);
	rig_free(t);
}

static void invalidate_keeps_what_is_not_flushed(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);

	(void)state;
	read_expect(t, 0, 2 * CHUNK, 1);
	write_version(t, 4096, 4096, 2);
	assert_int_equal(region_invalidate(t->w.region, range_of(0, 2 * CHUNK)), 0);
	assert_string_equal(draw(t, 0, 2), "~.");
	read_expect(t, 4096, 4096, 2);
	rig_free(t);
}

/* ---- order ---- */

static void rule3_a_fault_goes_before_everything_else(void **state)
{
	struct region_options o = { .chunk = CHUNK, .pull_all = true, .readahead_bytes_max = 1 };
	struct rig *t = rig_new(4 * SIZE, true, &o);
	size_t before;

	(void)state;
	t->w.far->hold = true;
	pass(t, 1 * MS);
	before = t->w.far->seen_count;
	assert_true(before > 0 && before < 20); /* bulk keeps to its window */
	submit(t, 0, REQ_READ, 200 * CHUNK, 512);
	region_fault(t->w.region, 250 * CHUNK + 5, false);
	region_fault(t->w.region, 252 * CHUNK + 5, true);
	pass(t, 1 * MS);
	assert_int_equal(t->w.far->seen_count, before + 3);
	assert_int_equal(t->w.far->seen[before].range.off, 250 * CHUNK);
	assert_int_equal(t->w.far->seen[before].flags, REQ_URGENT);
	assert_int_equal(t->w.far->seen[before + 1].range.off, 252 * CHUNK);
	assert_int_equal(t->w.far->seen[before + 2].range.off, 200 * CHUNK);
	go(t);
	pass(t, 1 * NS_PER_S);
	assert_string_equal(draw(t, 200, 3), "###");
	rig_free(t);
}

static void the_page_that_was_asked_for_is_woken_first(void **state)
{
	struct rig *t = rig_new(SIZE, true, &plain);

	(void)state;
	region_fault(t->w.region, 2 * CHUNK + 9 * PAGE_BYTES + 3, false);
	pass(t, 100 * MS);
	assert_int_equal(t->woken_count, 16);
	assert_int_equal(t->woken[0], 2 * 16 + 9);
	/* and a page that is here is opened in the fault thread */
	assert_int_equal(region_fault(t->w.region, 2 * CHUNK, true), REGION_OPENED);
	rig_free(t);
}

static int backwards(void *arg, struct range r)
{
	(void)arg;
	return (int)(r.off / CHUNK);
}

static void the_background_follows_the_priority_function(void **state)
{
	struct region_options o = { .chunk = CHUNK, .pull_all = true, .hooks.priority = backwards };
	struct rig *t = rig_new(SIZE, false, &o);
	uint64_t bytes;

	(void)state;
	pass(t, 1 * NS_PER_S);
	assert_int_equal(seen_reads(t, &bytes), 64);
	for (size_t i = 0; i < 64; i++)
		assert_int_equal(t->w.far->seen[i].range.off, (63 - i) * CHUNK);
	rig_free(t);
}

static void pull_ended(struct region_pull *pull, int err)
{
	assert_int_equal(err, pull->priority == 99 ? -ESHUTDOWN : 0);
	pull->priority = -1000;
}

static void asked_ranges_come_by_priority(void **state)
{
	struct rig *t = rig_new(4 * SIZE, false, &plain);
	struct region_pull low = { .range = range_of(0, SIZE), .done = pull_ended };
	struct region_pull high = { .range = range_of(SIZE + 17, SIZE), .priority = 5,
				   .done = pull_ended };
	struct region_pull none = { .range = range_of(0, 0), .done = pull_ended };

	(void)state;
	region_pull(t->w.region, &low);
	region_pull(t->w.region, &high);
	region_pull(t->w.region, &none);
	assert_int_equal(none.priority, 0); /* not from within */
	pass(t, 1 * NS_PER_S);
	assert_int_equal(t->w.far->seen[0].range.off, SIZE);
	assert_int_equal(high.priority, -1000);
	assert_int_equal(low.priority, -1000);
	assert_int_equal(none.priority, -1000);
	assert_string_equal(draw(t, 0, 3), "###");
	assert_string_equal(draw(t, 62, 4), "####");
	assert_string_equal(draw(t, 127, 5), "##...");
	rig_free(t);
}

static void a_sequential_reader_is_pulled_ahead_of(void **state)
{
	struct region_options o = { .chunk = CHUNK, .readahead_bytes_max = 8 * CHUNK };
	struct rig *t = rig_new(SIZE, false, &o);
	uint64_t bytes;

	(void)state;
	for (uint64_t c = 0; c < 40; c++) {
		read_expect(t, c * CHUNK, CHUNK, 1);
		pass(t, 20 * MS);
	}
	assert_true(seen_reads(t, &bytes) < 30); /* adjacent ones together */
	assert_string_equal(draw(t, 40, 4), "####");
	assert_string_equal(draw(t, 50, 4), "....");
	rig_free(t);
}

static void a_strided_reader_is_pulled_ahead_of(void **state)
{
	struct region_options o = { .chunk = CHUNK, .readahead_bytes_max = 8 * CHUNK };
	struct rig *t = rig_new(4 * SIZE, false, &o);

	(void)state;
	for (uint64_t c = 3; c < 60; c += 5) {
		read_expect(t, c * CHUNK, 512, 1);
		pass(t, 20 * MS);
	}
	assert_string_equal(draw(t, 58, 16), "#....#....#....#");
	rig_free(t);
}

static void a_random_reader_is_not(void **state)
{
	struct region_options o = { .chunk = CHUNK };
	struct rig *t = rig_new(64 * SIZE, false, &o);
	struct rng r;
	uint64_t bytes;

	(void)state;
	rng_init(&r, 3);
	for (unsigned i = 0; i < 300; i++)
		assert_int_equal(do_op(t, REQ_READ, (1 + rng_below(&r, 64 * 64 - 1)) * CHUNK, 512),
				 0);
	(void)seen_reads(t, &bytes);
	assert_true(bytes <= 320 * CHUNK);
	rig_free(t);
}

static void a_mapped_reader_is_followed_by_its_mark(void **state)
{
	struct region_options o = { .chunk = CHUNK, .readahead_bytes_max = 16 * CHUNK };
	struct rig *t = rig_new(SIZE, true, &o);
	unsigned far_faults = 0;

	(void)state;
	for (uint64_t page = 0; page < SIZE / PAGE_BYTES; page++) {
		struct page *p = &t->w.near.page[page];

		while (!p->open) {
			far_faults += region_fault(t->w.region, page * PAGE_BYTES,
						   false) == REGION_WAITS;
			pass(t, 3 * MS);
		}
		expect(t->w.near.bytes, page * PAGE_BYTES, PAGE_BYTES, 1);
		pass(t, 200 * US);
	}
	assert_true(far_faults <= 5); /* of 64 chunks */
	rig_free(t);
}

static void advice_random_pulls_nothing_ahead(void **state)
{
	struct region_options o = { .chunk = CHUNK };
	struct rig *t = rig_new(SIZE, false, &o);
	uint64_t bytes;

	(void)state;
	region_advise(t->w.region, range_of(0, SIZE), REGION_RANDOM);
	for (uint64_t c = 0; c < 10; c++)
		read_expect(t, c * CHUNK, 512, 1);
	pass(t, 100 * MS);
	(void)seen_reads(t, &bytes);
	assert_int_equal(bytes, 10 * CHUNK);
	region_advise(t->w.region, range_of(0, 4 * CHUNK), REGION_DONTNEED);
	assert_string_equal(draw(t, 0, 6), "....##");
	rig_free(t);
}

static void the_window_grows_with_the_path(void **state)
{
	struct flow f = { .window_max = 64 * MIB };
	struct flow_mark mark[256];
	uint64_t now = 1 * NS_PER_S;
	unsigned head = 0, tail = 0;

	(void)state;
	/* 25 ms, 1 GB/s: 256 KiB take 262 us of the link */
	for (uint64_t free_at = 0; now < 3 * NS_PER_S;) {
		while (f.inflight + 256 * KIB <= flow_window(&f)) {
			flow_sent(&f, &mark[head % 256], 256 * KIB, now);
			free_at = MAX(free_at, now) + 262144;
			head++;
		}
		now = MAX(now, mark[tail % 256].start_ns + 25 * MS) + 262144;
		flow_done(&f, &mark[tail++ % 256], true, now);
	}
	assert_in_range(flow_window(&f), 25 * MIB, 64 * MIB);
	/* a short path needs few */
	f = (struct flow){ .window_max = 64 * MIB };
	for (unsigned i = 0; i < 1000; i++) {
		flow_sent(&f, &mark[0], 256 * KIB, now);
		now += 100 * US;
		flow_done(&f, &mark[0], true, now);
	}
	assert_int_equal(flow_window(&f), 1 * MIB);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_page_moves_one_chunk),
		cmocka_unit_test(rule2_pull_never_overwrites_newer_write),
		cmocka_unit_test(a_part_of_a_page_waits_for_its_chunk_and_a_whole_one_does_not),
		cmocka_unit_test(the_last_chunk_and_the_tail_are_pulled_and_pushed),
		cmocka_unit_test(what_is_safe_and_what_had_to_wait_is_counted),
		cmocka_unit_test(a_full_near_store_drops_what_is_clean),
		cmocka_unit_test(a_near_store_full_of_what_stays_is_an_error),
		cmocka_unit_test(many_readers_and_a_dead_far_side_end_with_the_error),
		cmocka_unit_test(rule7_an_error_is_an_error_and_never_zeros),
		cmocka_unit_test(policy_error_does_not_wait),
		cmocka_unit_test(a_pull_that_an_invalidate_overtakes_is_fetched_again),
		cmocka_unit_test(invalidate_keeps_what_is_not_flushed),
		cmocka_unit_test(rule3_a_fault_goes_before_everything_else),
		cmocka_unit_test(the_page_that_was_asked_for_is_woken_first),
		cmocka_unit_test(the_background_follows_the_priority_function),
		cmocka_unit_test(asked_ranges_come_by_priority),
		cmocka_unit_test(a_sequential_reader_is_pulled_ahead_of),
		cmocka_unit_test(a_strided_reader_is_pulled_ahead_of),
		cmocka_unit_test(a_random_reader_is_not),
		cmocka_unit_test(a_mapped_reader_is_followed_by_its_mark),
		cmocka_unit_test(advice_random_pulls_nothing_ahead),
		cmocka_unit_test(the_window_grows_with_the_path),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
