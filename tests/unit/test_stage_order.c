/* SPDX-License-Identifier: Apache-2.0 */
/* The order stage: overlapping requests in the order of submission, all others concurrent. */
#define TEST_FAKE_KINDS { "order", false, "order", stage_order_open },
#include "model.h"

static uint8_t buf[64 * 1024];

static void drain(struct world *w)
{
	world_turn(w);
	while (w->fake[0]->count) {
		fake_end(w->fake[0], w->fake[0]->count - 1);
		world_turn(w);
	}
}

static void test_overlapping_requests_match_a_model_in_order_of_submission(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 30; seed++) {
		model_run("order|fake:20000", MODEL_ANYTHING, seed, 2000, 5000, 1);
		model_run("order|fake:3000?emulate=1", MODEL_ANYTHING, seed, 1000, 500, 1);
	}
}

static void test_abort_completes_every_request_once(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 200; seed++)
		model_abort("order|fake:20000", seed, 5000, 1);
}

static void test_requests_that_do_not_overlap_are_concurrent(void **state)
{
	struct world w;
	struct one one[64];

	(void)state;
	world_open(&w, "order|fake:64K", 1);
	for (size_t i = 0; i < 64; i++)
		one_submit(&w, &one[i], REQ_WRITE, i * 1024, 1024, buf + i * 1024, 0);
	assert_int_equal(64, w.fake[0]->count);
	drain(&w);
	for (size_t i = 0; i < 64; i++)
		one_submit(&w, &one[i], REQ_READ, 0, 1024, buf + i * 1024, 0);
	assert_int_equal(64,
			 /* neither do reads of one place stand against each other */
			 w.fake[0]->count);
	drain(&w);
	world_done(&w);
}

static void test_the_later_of_two_writes_in_flight_wins(void **state)
{
	struct world w;
	struct one one[4];

	(void)state;
	world_open(&w, "order|fake:64K", 1);
	memset(buf, 1, 100);
	memset(buf + 100, 2, 100);
	one_submit(&w, &one[0], REQ_WRITE, 0, 100, buf, 0);
	one_submit(&w, &one[1], REQ_WRITE, 50, 100, buf + 100, 0);
	one_submit(&w, &one[2], REQ_READ, 0, 200, buf + 200, 0);
	assert_int_equal(1, w.fake[0]->count);
	drain(&w);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(1, one[i].completions);
	assert_int_equal(1, w.fake[0]->bytes[49]);
	assert_int_equal(2, w.fake[0]->bytes[50]);
	assert_memory_equal(w.fake[0]->bytes, buf + 200, 200);
	world_done(&w);
}

static void test_flush_waits_for_nothing_in_flight(void **state)
{
	struct world w;
	struct one write[2], flush;

	(void)state;
	world_open(&w, "order|fake:64K", 1);
	one_submit(&w, &write[0], REQ_WRITE, 0, 100, buf, 0);
	one_submit(&w, &write[1], REQ_WRITE, 0, 100, buf, 0);
	one_submit(&w, &flush, REQ_FLUSH, 0, 0, NULL, 0);
	assert_int_equal(2, w.fake[0]->count);
	assert_int_equal(REQ_FLUSH, w.fake[0]->seen[1].op);
	drain(&w);
	assert_int_equal(1, flush.completions);
	world_done(&w);
}

static int refuse_all(struct fake *f, const struct req *req)
{
	(void)f;
	(void)req;
	return -EIO;
}

static void test_a_failed_write_lets_the_next_one_go_on(void **state)
{
	struct world w;
	struct one one[2];

	(void)state;
	world_open(&w, "order|fake:64K", 1);
	one_submit(&w, &one[0], REQ_WRITE, 0, 100, buf, 0);
	one_submit(&w, &one[1], REQ_WRITE, 0, 100, buf, 0);
	w.fake[0]->refuse = refuse_all;
	fake_end(w.fake[0], 0);
	w.fake[0]->refuse = NULL;
	assert_int_equal(-EIO, one[0].err);
	drain(&w);
	assert_int_equal(1, one[1].completions);
	assert_int_equal(0, one[1].err);
	world_done(&w);
}

/* More requests than places; of each pair to one place the later must win, however urgent the one
 * or the other is. */
static void test_order_holds_when_all_places_are_taken(void **state)
{
	struct world w;
	size_t n = ORDER_REQS_MAX * 3;
	struct one *one = calloc(n + 1, sizeof(*one));
	uint8_t *data = malloc(n);

	(void)state;
	world_open(&w, "order|fake:64K", 1);
	for (size_t i = 0; i < n; i++) {
		data[i] = (uint8_t)(i / 300 + 1);
		one_submit(&w, &one[i], REQ_WRITE, i % 300, 1, &data[i],
			   i < n / 2 ? REQ_BACKGROUND : REQ_URGENT);
	}
	/* An urgent one without conflict goes ahead of all that have no place yet. */
	one_submit(&w, &one[n], REQ_READ, 60000, 1, buf, REQ_URGENT);
	fake_end(w.fake[0], 0);
	fake_end(w.fake[0], 0);
	for (size_t i = 0; w.fake[0]->count; i++) {
		if (i == 2)
			assert_int_equal(0, one[n - 1].completions);
		fake_step(w.fake[0]);
		world_turn(&w);
	}
	for (size_t i = 0; i <= n; i++)
		assert_int_equal(1, one[i].completions);
	for (size_t i = 0; i < 300; i++)
		assert_int_equal(i + 600 < n ? 3 : 2, w.fake[0]->bytes[i]);
	free(one);
	free(data);
	world_done(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_overlapping_requests_match_a_model_in_order_of_submission),
		cmocka_unit_test(test_abort_completes_every_request_once),
		cmocka_unit_test(test_requests_that_do_not_overlap_are_concurrent),
		cmocka_unit_test(test_the_later_of_two_writes_in_flight_wins),
		cmocka_unit_test(test_flush_waits_for_nothing_in_flight),
		cmocka_unit_test(test_a_failed_write_lets_the_next_one_go_on),
		cmocka_unit_test(test_order_holds_when_all_places_are_taken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
