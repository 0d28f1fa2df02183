/* SPDX-License-Identifier: Apache-2.0 */
/* The retry stage: what can pass is repeated, for a bounded time; what cannot is not. */
#define TEST_FAKE_KINDS										\
	{ "retry", false, "retry[:for=TIME][,delay=TIME][,max=TIME][,on=ERRORS]", stage_retry_open }, \
	{ "order", false, "order", stage_order_open },
#include "model.h"

static uint8_t buf[4096];

static int refuse_code; /* tests run one after the other */
static unsigned refuse_left;

static int refuse_some(struct fake *f, const struct req *req)
{
	(void)f;
	(void)req;
	if (!refuse_left)
		return 0;
	refuse_left--;
	return -refuse_code;
}

static int refuse_by_chance(struct fake *f, const struct req *req)
{
	(void)req;
	return rng_chance(&f->world->rng, 200000) ? -ECONNRESET : 0;
}

/* Time passes, and the fake answers what it gets at once. */
static void run(struct world *w, struct one *one, uint64_t ns_max)
{
	uint64_t end = w->now_ns + ns_max;

	world_turn(w);
	while (!one->completions && w->now_ns < end) {
		while (w->fake[0]->count)
			fake_end(w->fake[0], 0);
		w->now_ns += NS_PER_MS;
		world_turn(w);
	}
}

static void test_read_succeeds_after_errors_that_pass(void **state)
{
	static const int codes[] = { EIO,	ETIMEDOUT, ECONNRESET, ENOTCONN,    EPIPE,
				     ESHUTDOWN, EAGAIN,	   ENOBUFS,    EHOSTUNREACH };
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "retry|fake:64K", 1);
	w.fake[0]->refuse = refuse_some;
	memset(w.fake[0]->bytes, 9, 4096);
	for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
		refuse_code = codes[i];
		refuse_left = 5;
		w.fake[0]->seen_count = 0;
		memset(buf, 0, sizeof(buf));
		one_submit(&w, &one, REQ_READ, 0, 4096, buf, 0);
		run(&w, &one, 60 * NS_PER_S);
		assert_int_equal(1, one.completions);
		assert_int_equal(0, one.err);
		assert_int_equal(6, w.fake[0]->seen_count);
		assert_int_equal(9, buf[4095]);
	}
	world_done(&w);
}

static void test_errors_that_last_are_answered_at_once(void **state)
{
	static const int codes[] = { EINVAL, EROFS, ENOSPC, EPERM, EACCES, ERANGE, EILSEQ };
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "retry|fake:64K", 1);
	w.fake[0]->refuse = refuse_some;
	for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
		refuse_code = codes[i];
		refuse_left = 1;
		w.fake[0]->seen_count = 0;
		one_submit(&w, &one, REQ_WRITE, 0, 4096, buf, 0);
		world_turn(&w);
		fake_end(w.fake[0], 0);
		assert_int_equal(1, one.completions);
		assert_int_equal(-codes[i], one.err);
	}
	world_done(&w);
}

static void test_pauses_grow_and_the_last_error_comes_when_the_time_is_over(void **state)
{
	struct world w;
	struct one one;
	struct fake_seen *s;
	uint64_t start, last = 0;

	(void)state;
	world_open(&w, "retry:for=10s,delay=100ms,max=2s|fake:64K", 1);
	w.fake[0]->refuse = refuse_some;
	w.fake[0]->why = "the cable is out";
	refuse_code = EHOSTUNREACH;
	refuse_left = UINT32_MAX;
	start = w.now_ns;
	one_submit(&w, &one, REQ_READ, 0, 4096, buf, 0);
	run(&w, &one, 60 * NS_PER_S);
	assert_int_equal(1, one.completions);
	assert_int_equal(-EHOSTUNREACH, one.err);
	assert_string_equal("the cable is out", one.why);
	assert_in_range(one.done_ns - start, 10 * NS_PER_S, 10 * NS_PER_S + 10 * NS_PER_MS);
	s = w.fake[0]->seen;
	assert_in_range(w.fake[0]->seen_count, 8, 20);
	for (size_t i = 1; i + 1 < w.fake[0]->seen_count; i++) {
		uint64_t pause = s[i].at_ns - s[i - 1].at_ns, full = MIN(100 * NS_PER_MS << (i - 1),
									 2 * NS_PER_S);

		assert_in_range(pause, full / 2, full + 2 * NS_PER_MS);
		last = pause;
	}
	assert_true(last >= NS_PER_S);
	world_done(&w);
}

static void test_a_time_out_of_the_far_side_counts_from_the_first_submission(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "retry:for=5s|fake:64K", 1);
	w.fake[0]->refuse = refuse_some;
	refuse_code = ETIMEDOUT;
	refuse_left = UINT32_MAX;
	one_submit(&w, &one, REQ_READ, 0, 4096, buf, 0);
	for (int i = 0; i < 10 && !one.completions; i++) {
		world_pass(&w, 4 * NS_PER_S, 100 * NS_PER_MS); /* each attempt takes 4 s */
		if (w.fake[0]->count)
			fake_end(w.fake[0], 0);
	}
	assert_int_equal(-ETIMEDOUT, one.err);
	assert_int_equal(2, w.fake[0]->seen_count);
	world_done(&w);
}

static void test_flush_that_failed_with_eio_is_not_asked_again(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "retry|fake:64K", 1);
	w.fake[0]->refuse = refuse_some;
	refuse_code = EIO;
	refuse_left = 1;
	one_submit(&w, &one, REQ_FLUSH, 0, 0, NULL, 0);
	run(&w, &one, 60 * NS_PER_S);
	assert_int_equal(-EIO, one.err);
	refuse_left = 1;
	one_submit(&w, &one, REQ_WRITE, 0, 512, buf, REQ_FUA);
	run(&w, &one, 60 * NS_PER_S);
	assert_int_equal(-EIO, one.err);
	refuse_code = ECONNRESET;
	refuse_left = 1;
	w.fake[0]->instance = 77;
	one_submit(&w, &one, REQ_FLUSH, 0, 0, NULL, 0);
	run(&w, &one, 60 * NS_PER_S);
	assert_int_equal(0, one.err);
	assert_int_equal(77, one.req.ret_instance);
	world_done(&w);
}

static void test_abort_ends_the_pauses_at_once(void **state)
{
	struct world w;
	struct one one[3];

	(void)state;
	world_open(&w, "retry:for=1h|fake:64K", 1);
	w.fake[0]->refuse = refuse_some;
	refuse_code = EIO;
	refuse_left = 2;
	one_submit(&w, &one[0], REQ_READ, 0, 512, buf, 0);
	one_submit(&w, &one[1], REQ_READ, 0, 512, buf, 0);
	world_turn(&w);
	fake_end(w.fake[0], 0);
	fake_end(w.fake[0], 0);
	one_submit(&w, &one[2], REQ_READ, 0, 512, buf, 0);
	store_abort(w.top);
	world_turn(&w);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(1, one[i].completions);
		assert_int_equal(-ESHUTDOWN, one[i].err);
	}
	world_done(&w);
}

static void test_the_store_back_ends_the_pauses(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "retry:for=1h,delay=10m,max=10m|fake:64K", 1);
	w.fake[0]->refuse = refuse_some;
	refuse_code = ENOTCONN;
	refuse_left = 1;
	one_submit(&w, &one, REQ_READ, 0, 512, buf, 0);
	world_turn(&w);
	fake_end(w.fake[0], 0);
	world_turn(&w);
	assert_int_equal(0, w.fake[0]->count);
	store_emit(&w.fake[0]->store, STORE_LOST);
	world_turn(&w);
	assert_int_equal(0, w.fake[0]->count);
	store_emit(&w.fake[0]->store, STORE_BACK);
	world_turn(&w);
	assert_int_equal(1, w.fake[0]->count);
	fake_end(w.fake[0], 0);
	assert_int_equal(0, one.err);
	world_done(&w);
}

static void test_chosen_errors_replace_the_usual_ones(void **state)
{
	struct world w;
	struct one one;
	struct err e;

	(void)state;
	world_open(&w, "retry:on=EILSEQ+ENOENT|fake:64K", 1);
	w.fake[0]->refuse = refuse_some;
	refuse_code = EILSEQ;
	refuse_left = 1;
	one_submit(&w, &one, REQ_READ, 0, 512, buf, 0);
	run(&w, &one, 60 * NS_PER_S);
	assert_int_equal(0, one.err);
	refuse_code = EIO;
	refuse_left = 1;
	one_submit(&w, &one, REQ_READ, 0, 512, buf, 0);
	run(&w, &one, 60 * NS_PER_S);
	assert_int_equal(-EIO, one.err);
	world_done(&w);
	world_init(&w, 1);
	assert_int_equal(-EINVAL, world_open_err(&w, "retry:on=ENOSPC|fake:64K", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "retry:on=EWHAT|fake:64K", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "retry:on=EIO+|fake:64K", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "retry:delay=10s,max=5s|fake:64K", &e));
	assert_int_equal(-EINVAL, world_open_err(&w, "retry:for=0|fake:64K", &e));
	loop_close(w.loop);
}

/* Every fifth request fails, and yet nothing is lost or out of order. */
static void test_order_before_retry_matches_a_model(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 5; seed++) {
		struct model *m = malloc(sizeof(*m));

		model_init(m, "order|retry:delay=1ms|fake:20000", seed, 3000);
		m->w.fake[0]->refuse = refuse_by_chance;
		while (m->completed < 1000) {
			if (rng_chance(&m->w.rng, 400000))
				model_submit(m, MODEL_ANYTHING, 1);
			model_step(m);
		}
		while (m->busy)
			model_step(m);
		for (uint64_t i = 0; i < m->size; i++)
			assert_true(!m->known[i] || m->bytes[i] == m->w.fake[0]->bytes[i]);
		model_free(m);
		free(m);
	}
}

static void test_abort_completes_every_request_once(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 100; seed++)
		model_abort("retry:delay=1ms|fake:20000", seed, 3000, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_read_succeeds_after_errors_that_pass),
		cmocka_unit_test(test_errors_that_last_are_answered_at_once),
		cmocka_unit_test(test_pauses_grow_and_the_last_error_comes_when_the_time_is_over),
		cmocka_unit_test(test_a_time_out_of_the_far_side_counts_from_the_first_submission),
		cmocka_unit_test(test_flush_that_failed_with_eio_is_not_asked_again),
		cmocka_unit_test(test_abort_ends_the_pauses_at_once),
		cmocka_unit_test(test_the_store_back_ends_the_pauses),
		cmocka_unit_test(test_chosen_errors_replace_the_usual_ones),
		cmocka_unit_test(test_order_before_retry_matches_a_model),
		cmocka_unit_test(test_abort_completes_every_request_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
