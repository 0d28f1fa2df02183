/* SPDX-License-Identifier: Apache-2.0 */
/* The limit stage: what passes in a time is bounded, whatever is asked for; all on a clock turned
 * by hand. */
#define TEST_FAKE_KINDS										\
	{ "limit", false, "limit:[rate=RATE][,burst=SIZE][,iops=N][,inflight=SIZE]", stage_limit_open },
#include "model.h"

static uint8_t buf[1024 * 1024];

/* Time passes in steps, and the fake answers at once. */
static void run(struct world *w, uint64_t ns, uint64_t step_ns)
{
	uint64_t end = w->now_ns + ns;

	for (;;) {
		world_turn(w);
		while (w->fake[0]->count) {
			fake_end(w->fake[0], 0);
			world_turn(w);
		}
		if (w->now_ns >= end)
			return;
		w->now_ns += step_ns;
	}
}

static uint64_t bytes_seen(const struct world *w)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < w->fake[0]->seen_count; i++)
		sum += w->fake[0]->seen[i].range.len;
	return sum;
}

static void test_rate_is_exact_over_a_long_time(void **state)
{
	struct world w;
	struct one *one = calloc(1000, sizeof(*one));
	uint64_t seen;

	(void)state;
	/* A rate whose nanoseconds per request are no whole number: the rest must not be lost. */
	world_open(&w, "limit:rate=999983,burst=8K|fake:1M", 1);
	for (size_t i = 0; i < 1000; i++)
		one_submit(&w, &one[i], REQ_READ, 0, 7001, buf, 0);
	run(&w, 5 * NS_PER_S, 100 * NS_PER_US);
	seen = bytes_seen(&w);
	assert_in_range(seen, 5 * 999983 - 7001, 5 * 999983 + 8192 + 7001);
	run(&w, 5 * NS_PER_S, 100 * NS_PER_US);
	for (size_t i = 0; i < 1000; i++)
		assert_int_equal(1, one[i].completions);
	free(one);
	world_done(&w);
}

/* In every window, not only on the average: at most rate * t + burst. */
static void test_no_window_passes_more_than_rate_and_burst(void **state)
{
	struct world w;
	struct one *one = calloc(400, sizeof(*one));
	struct fake *f;

	(void)state;
	world_open(&w, "limit:rate=1M,burst=64K|fake:1M", 3);
	f = w.fake[0];
	for (size_t i = 0; i < 400; i++) {
		if (i == 200)
			run(&w, 20 * NS_PER_S,
			    10 * NS_PER_MS); /* idle: no more than one burst is saved up */
		one_submit(&w, &one[i], REQ_WRITE, 0, 1 + rng_below(&w.rng, 65536), buf, 0);
	}
	run(&w, 20 * NS_PER_S, NS_PER_MS);
	assert_int_equal(400, f->seen_count);
	for (size_t i = 0; i < f->seen_count; i++) {
		uint64_t sum = 0;

		for (size_t j = i; j < f->seen_count; j++) {
			uint64_t ns = f->seen[j].at_ns - f->seen[i].at_ns;

			sum += f->seen[j].range.len;
			assert_true(sum <= 65536 + ns * MIB / NS_PER_S + 1);
		}
	}
	free(one);
	world_done(&w);
}

static void test_request_longer_than_the_burst_passes_and_is_paid_for(void **state)
{
	struct world w;
	struct one one[2];
	uint64_t start;

	(void)state;
	world_open(&w, "limit:rate=1M,burst=4K|fake:1M", 1);
	start = w.now_ns;
	one_submit(&w, &one[0], REQ_READ, 0, 512 * 1024, buf, 0);
	one_submit(&w, &one[1], REQ_READ, 0, 1024, buf, 0);
	run(&w, NS_PER_S, NS_PER_MS);
	assert_int_equal(start, w.fake[0]->seen[0].at_ns);
	assert_in_range(w.fake[0]->seen[1].at_ns - start, 490 * NS_PER_MS, 502 * NS_PER_MS);
	world_done(&w);
}

static void test_urgent_goes_ahead_of_what_waits(void **state)
{
	struct world w;
	struct one bulk[10], urgent;

	(void)state;
	world_open(&w, "limit:rate=100K,burst=10K|fake:1M", 1);
	for (size_t i = 0; i < 10; i++)
		one_submit(&w, &bulk[i], REQ_READ, 4096 * i, 10240, buf, REQ_BACKGROUND);
	one_submit(&w, &urgent, REQ_READ, 500000, 4096, buf, REQ_URGENT);
	run(&w, 10 * NS_PER_S, NS_PER_MS);
	assert_int_equal(0, w.fake[0]->seen[0].range.off);
	assert_int_equal(500000, w.fake[0]->seen[1].range.off);
	for (size_t i = 1; i < 10; i++)
		assert_int_equal(4096 * i,
				 w.fake[0]->seen[i + 1].range.off); /* the rest in order */
	world_done(&w);
}

static void test_requests_per_second_count_every_operation(void **state)
{
	struct world w;
	struct one one[100];

	(void)state;
	world_open(&w, "limit:iops=100|fake:1M", 1);
	for (size_t i = 0; i < 100; i++)
		one_submit(&w, &one[i], i % 2 ? REQ_FLUSH : REQ_READ, 0, i % 2 ? 0 : 512, buf, 0);
	run(&w, NS_PER_S / 2, NS_PER_MS);
	assert_in_range(w.fake[0]->seen_count, 59, 61); /* 10 at once, then one in 10 ms */
	run(&w, NS_PER_S, NS_PER_MS);
	assert_int_equal(100, w.fake[0]->seen_count);
	world_done(&w);
}

static void test_bytes_in_flight_are_bounded(void **state)
{
	struct world w;
	struct one one[20], big, flush;

	(void)state;
	world_open(&w, "limit:inflight=64K|fake:1M", 1);
	for (size_t i = 0; i < 20; i++)
		one_submit(&w, &one[i], REQ_READ, 0, 10000, buf, 0);
	one_submit(&w, &big, REQ_READ, 0, 200000, buf, 0);
	one_submit(&w, &flush, REQ_FLUSH, 0, 0, NULL, 0);
	assert_int_equal(6, w.fake[0]->count);
	for (size_t i = 0; i < 14; i++) {
		fake_end(w.fake[0], 0);
		assert_int_equal(6, w.fake[0]->count);
	}
	for (size_t i = 0; i < 5; i++)
		fake_end(w.fake[0], 0);
	assert_int_equal(1, w.fake[0]->count);
	fake_end(w.fake[0], 0);
	assert_int_equal(2,
			 /* longer than the bound: alone; a flush weighs nothing */
			 w.fake[0]->count);
	run(&w, 0, 1);
	assert_int_equal(1, big.completions);
	assert_int_equal(1, flush.completions);
	world_done(&w);
}

static void test_zeroing_by_writes_is_counted_as_writes(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "limit:rate=1M,burst=64K|fake:1M?emulate=1", 1);
	one_submit(&w, &one, REQ_ZERO, 0, 512 * 1024, NULL, 0);
	run(&w, 400 * NS_PER_MS, NS_PER_MS);
	assert_int_equal(0, one.completions);
	run(&w, 200 * NS_PER_MS, NS_PER_MS);
	assert_int_equal(1, one.completions);
	world_done(&w);
}

static void test_random_requests_match_a_model(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 10; seed++)
		model_run("limit:rate=10M,burst=32K,inflight=20K,iops=20000|fake:50000",
			  MODEL_APART, seed, 1000, 9000, 1);
}

static void test_abort_completes_every_request_once(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 100; seed++)
		model_abort("limit:rate=1M,burst=32K,inflight=20K|fake:50000", seed, 9000, 1);
}

static void test_options_that_say_nothing_are_refused(void **state)
{
	struct world w;
	struct err e;

	(void)state;
	world_init(&w, 1);
	assert_int_equal(-EINVAL, world_open_err(&w, "limit|fake:1M", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "limit:burst=4K|fake:1M", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "limit:rate=0|fake:1M", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "limit:burst=4K,iops=3|fake:1M", &e));
	loop_close(w.loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rate_is_exact_over_a_long_time),
		cmocka_unit_test(test_no_window_passes_more_than_rate_and_burst),
		cmocka_unit_test(test_request_longer_than_the_burst_passes_and_is_paid_for),
		cmocka_unit_test(test_urgent_goes_ahead_of_what_waits),
		cmocka_unit_test(test_requests_per_second_count_every_operation),
		cmocka_unit_test(test_bytes_in_flight_are_bounded),
		cmocka_unit_test(test_zeroing_by_writes_is_counted_as_writes),
		cmocka_unit_test(test_random_requests_match_a_model),
		cmocka_unit_test(test_abort_completes_every_request_once),
		cmocka_unit_test(test_options_that_say_nothing_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
