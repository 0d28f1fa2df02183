/* SPDX-License-Identifier: Apache-2.0 */
/* The align stage: every request fits the next store, and read-modify-write loses no byte. */
#define TEST_FAKE_KINDS										\
	{ "align", false, "align[:block=SIZE][,len=SIZE]", stage_align_open },			\
	{ "order", false, "order", stage_order_open },
#include "model.h"

static uint8_t buf_a[256 * 1024], buf_b[256 * 1024];

/* Completes everything that the fake has, oldest first, until nothing is left. */
static void drain(struct world *w)
{
	world_turn(w);
	while (w->fake[0]->count) {
		fake_end(w->fake[0], 0);
		world_turn(w);
	}
}

static void test_unaligned_requests_apart_match_a_model(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 8; seed++) {
		model_run("align|fake:70000?align=512", MODEL_APART, seed, 1500, 9000, 1);
		model_run("align:block=4K,len=8K|fake:70000?align=512", MODEL_APART, seed, 1500, 40000, 1);
		model_run("align:block=64K|fake:1000000?align=4K&emulate=1", MODEL_APART, seed, 300, 200000, 1);
		model_run("align:len=1000|fake:30000", MODEL_APART, seed, 500, 9000, 1);
	}
}

/* Everything in three blocks: many parts of one block in flight at once. */
static void test_overlapping_rmw_of_one_block_loses_no_byte(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 25; seed++)
		model_run("align:block=4K|fake:10000?align=512", MODEL_APART, seed, 800, 500, 1);
}

static void test_order_before_align_keeps_overlapping_writes_in_order(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 10; seed++)
		model_run("order|align|fake:20000?align=4096", MODEL_ANYTHING, seed, 1000, 6000, 1);
}

static void test_abort_completes_every_request_once(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 60; seed++)
		model_abort("align:block=4K,len=8K|fake:50000?align=512", seed, 30000, 1);
}

static void test_long_request_is_split_and_its_pieces_are_in_flight_together(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "align|fake:1M?align=512&len=16K", 1);
	one_submit(&w, &one, REQ_READ, 512, 160 * 1024, buf_a, 0);
	assert_int_equal(10, w.fake[0]->count);
	drain(&w);
	assert_int_equal(1, one.completions);
	assert_int_equal(0, one.err);
	world_done(&w);
}

static void test_small_unaligned_read_is_one_request(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "align|fake:1M?align=4K", 1);
	memset(w.fake[0]->bytes + 5000, 7, 6000);
	one_submit(&w, &one, REQ_READ, 5000, 6000, buf_a, 0);
	drain(&w);
	assert_int_equal(0, one.err);
	assert_int_equal(1, w.fake[0]->seen_count);
	assert_int_equal(4096, w.fake[0]->seen[0].range.off);
	assert_int_equal(8192, w.fake[0]->seen[0].range.len);
	for (size_t i = 0; i < 6000; i++)
		assert_int_equal(7, buf_a[i]);
	world_done(&w);
}

static void test_tail_of_a_resource_that_is_no_multiple_of_the_block(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "align|fake:10001?align=4K", 1);
	memset(buf_a, 0x33, 2000);
	one_submit(&w, &one, REQ_WRITE, 9999, 2, buf_a, 0);
	drain(&w);
	assert_int_equal(0, one.err);
	assert_int_equal(2, w.fake[0]->seen_count); /* read and write of 8192..10001 */
	assert_int_equal(8192, w.fake[0]->seen[1].range.off);
	assert_int_equal(1809, w.fake[0]->seen[1].range.len);
	one_submit(&w, &one, REQ_WRITE, 8192, 1809, buf_a, 0);
	drain(&w);
	assert_int_equal(3, w.fake[0]->seen_count); /* the whole last block: no read */
	one_submit(&w, &one, REQ_READ, 8192, 1809, buf_b, 0);
	drain(&w);
	assert_memory_equal(buf_a, buf_b, 1809);
	world_done(&w);
}

static void test_writes_to_one_block_share_one_cycle(void **state)
{
	struct world w;
	struct one one[8];

	(void)state;
	world_open(&w, "align|fake:1M?align=4K", 1);
	for (size_t i = 0; i < 8; i++) {
		memset(buf_a + i * 512, (int)i + 1, 512);
		one_submit(&w, &one[i], REQ_WRITE, 8192 + i * 512, 512, buf_a + i * 512,
			   i == 3 ? REQ_FUA : 0);
	}
	drain(&w);
	assert_int_equal(2, w.fake[0]->seen_count);
	assert_int_equal(REQ_FUA,
			 w.fake[0]->seen[1].flags); /* as durable as the most demanding of them */
	assert_memory_equal(buf_a, w.fake[0]->bytes + 8192, 4096);
	for (size_t i = 0; i < 8; i++)
		assert_int_equal(1, one[i].completions);
	world_done(&w);
}

static void test_plain_write_waits_for_a_locked_block_and_the_other_way_round(void **state)
{
	struct world w;
	struct one part, whole;

	(void)state;
	world_open(&w, "align|fake:1M?align=4K", 1);
	memset(buf_a, 1, 4096);
	memset(buf_b, 2, 4096);
	one_submit(&w, &part, REQ_WRITE, 100, 10, buf_a, 0);
	one_submit(&w, &whole, REQ_WRITE, 0, 4096, buf_b, 0);
	assert_int_equal(1, w.fake[0]->count); /* the read of the part's block */
	drain(&w);
	assert_int_equal(2, w.fake[0]->bytes[50]);
	one_submit(&w, &whole, REQ_WRITE, 0, 4096, buf_b, 0);
	one_submit(&w, &part, REQ_WRITE, 100, 10, buf_a, 0);
	assert_int_equal(1, w.fake[0]->count); /* the whole write */
	drain(&w);
	assert_int_equal(1, w.fake[0]->bytes[100]);
	assert_int_equal(2, w.fake[0]->bytes[99]);
	world_done(&w);
}

static void test_waiting_neighbours_become_one_request(void **state)
{
	struct world w;
	struct one *one = calloc(160, sizeof(*one));
	size_t n = ALIGN_PIECES_MAX + 16;

	(void)state;
	world_open(&w, "align|fake:1M?align=512", 1);
	rng_fill(&w.rng, buf_a, sizeof(buf_a));
	for (size_t i = 0; i < n; i++)
		one_submit(&w, &one[i], REQ_WRITE, i * 512, 512, buf_a + i * 512, 0);
	assert_int_equal(ALIGN_PIECES_MAX, w.fake[0]->count);
	drain(&w);
	assert_int_equal(ALIGN_PIECES_MAX + 1, w.fake[0]->seen_count);
	assert_int_equal(16 * 512, w.fake[0]->seen[ALIGN_PIECES_MAX].range.len);
	assert_memory_equal(buf_a, w.fake[0]->bytes, n * 512);
	for (size_t i = 0; i < n; i++)
		one_submit(&w, &one[i], REQ_READ, i * 512, 512, buf_b + i * 512, 0);
	drain(&w);
	assert_int_equal(2 * ALIGN_PIECES_MAX + 2, w.fake[0]->seen_count);
	assert_memory_equal(buf_a, buf_b, n * 512);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(1, one[i].completions);
	free(one);
	world_done(&w);
}

static int fail_second_block(struct fake *f, const struct req *req)
{
	(void)f;
	return range_overlaps(req->range, range_of(4096, 4096)) ? -EIO : 0;
}

static void test_one_failed_piece_fails_the_request_with_its_text(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "align|fake:1M?align=4K&len=4K", 1);
	w.fake[0]->refuse = fail_second_block;
	w.fake[0]->why = "bad sector";
	one_submit(&w, &one, REQ_READ, 0, 5 * 4096, buf_a, 0);
	drain(&w);
	assert_int_equal(1, one.completions);
	assert_int_equal(-EIO, one.err);
	assert_string_equal("bad sector", one.why);
	one_submit(&w, &one, REQ_WRITE, 5000, 10, buf_a, 0);
	drain(&w);
	assert_int_equal(-EIO, one.err);
	assert_int_equal(REQ_READ,
			 /* nothing written on top */
			 w.fake[0]->seen[w.fake[0]->seen_count - 1].op);
	world_done(&w);
}

static void test_trim_keeps_within_what_was_asked_for(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "align|fake:10000?align=4K", 1);
	one_submit(&w, &one, REQ_TRIM, 100, 4000, NULL, 0);
	drain(&w);
	assert_int_equal(1, one.completions);
	assert_int_equal(0, w.fake[0]->seen_count);
	one_submit(&w, &one, REQ_TRIM, 100, 9900, NULL, 0);
	drain(&w);
	assert_int_equal(4096, w.fake[0]->seen[0].range.off);
	assert_int_equal(10000 - 4096, w.fake[0]->seen[0].range.len);
	world_done(&w);
}

static void test_urgent_request_is_cut_before_those_that_wait(void **state)
{
	struct world w;
	struct one bulk, urgent;

	(void)state;
	world_open(&w, "align|fake:64M?align=4K&len=4K", 1);
	uint8_t *big = malloc(2 * MIB);

	one_submit(&w, &bulk, REQ_READ, 0, 2 * MIB, big, REQ_BACKGROUND);
	one_submit(&w, &urgent, REQ_READ, 32 * MIB, 4096, buf_a, REQ_URGENT);
	assert_int_equal(ALIGN_PIECES_MAX, w.fake[0]->count);
	fake_end(w.fake[0], 0);
	assert_int_equal(32 * MIB, w.fake[0]->seen[ALIGN_PIECES_MAX].range.off);
	drain(&w);
	assert_int_equal(1, bulk.completions);
	free(big);
	world_done(&w);
}

static void test_options_that_cannot_be_are_refused(void **state)
{
	struct world w;
	struct err e;

	(void)state;
	world_init(&w, 1);
	assert_int_equal(-EINVAL, world_open_err(&w, "align:block=3000|fake:1M", &e));
	assert_non_null(strstr(e.text, "power of two"));
	assert_int_equal(-EINVAL, world_open_err(&w, "align:block=512|fake:1M?align=4K", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "align:len=2K|fake:1M?align=4K", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "align:len=1M|fake:1M?len=64K", &e));
	w.fake[0] = w.fake[1] = NULL;
	loop_close(w.loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unaligned_requests_apart_match_a_model),
		cmocka_unit_test(test_overlapping_rmw_of_one_block_loses_no_byte),
		cmocka_unit_test(test_order_before_align_keeps_overlapping_writes_in_order),
		cmocka_unit_test(test_abort_completes_every_request_once),
		cmocka_unit_test(test_long_request_is_split_and_its_pieces_are_in_flight_together),
		cmocka_unit_test(test_small_unaligned_read_is_one_request),
		cmocka_unit_test(test_tail_of_a_resource_that_is_no_multiple_of_the_block),
		cmocka_unit_test(test_writes_to_one_block_share_one_cycle),
		cmocka_unit_test(test_plain_write_waits_for_a_locked_block_and_the_other_way_round),
		cmocka_unit_test(test_waiting_neighbours_become_one_request),
		cmocka_unit_test(test_one_failed_piece_fails_the_request_with_its_text),
		cmocka_unit_test(test_trim_keeps_within_what_was_asked_for),
		cmocka_unit_test(test_urgent_request_is_cut_before_those_that_wait),
		cmocka_unit_test(test_options_that_cannot_be_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
