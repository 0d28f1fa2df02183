/* SPDX-License-Identifier: Apache-2.0 */
/* The fault stage: faults as the options say, equal for equal seeds. */
#define TEST_FAKE_KINDS										\
	{ "fault", false,									\
	  "fault[:seed=N][,error=N][,short=N][,hang=N][,delay=TIME][,read=BOOL][,write=BOOL][,flush=BOOL]" \
	  "[,after=N][,times=N][,errno=NAME]",							\
	  stage_fault_open },									\
	{ "retry", false, "retry[:for=TIME][,delay=TIME][,max=TIME][,on=ERRORS]", stage_retry_open }, \
	{ "order", false, "order", stage_order_open },
#include "model.h"

static uint8_t buf[4096];

static void finish(struct world *w, struct one *one)
{
	for (int i = 0; i < 1000 && !one->completions; i++) {
		world_turn(w);
		while (w->fake[0]->count)
			fake_end(w->fake[0], 0);
		w->now_ns += NS_PER_MS;
	}
}

/* One character per request: how it ended. */
static void fates(const char *spec, char *ret, size_t count)
{
	struct world w;
	struct one one;

	world_open(&w, spec, 1);
	for (size_t i = 0; i < count; i++) {
		one_submit(&w, &one, i % 3 ? REQ_READ : REQ_WRITE, 0, 4096, buf, 0);
		finish(&w, &one);
		ret[i] = !one.completions ? 'h' : one.err ? 'e' : '.';
		if (!one.completions) {
			store_abort(w.top);
			finish(&w, &one);
			store_close_wait(w.top);
			w.top = NULL;
			ret[i + 1] = '\0';
			break;
		}
		ret[i + 1] = '\0';
	}
	world_done(&w);
}

static void test_equal_seeds_give_equal_faults(void **state)
{
	char a[301], b[301], c[301];
	size_t errors = 0;

	(void)state;
	fates("fault:seed=7,error=300000,short=100000|fake:64K", a, 300);
	fates("fault:seed=7,error=300000,short=100000|fake:64K", b, 300);
	fates("fault:seed=8,error=300000,short=100000|fake:64K", c, 300);
	assert_string_equal(a, b);
	assert_string_not_equal(a, c);
	for (size_t i = 0; a[i]; i++)
		errors += a[i] == 'e';
	assert_in_range(errors, 60, 160);
}

static void test_after_times_and_errno(void **state)
{
	char a[21];
	struct world w;
	struct one one;

	(void)state;
	fates("fault:error=1000000,after=5,times=3|fake:64K", a, 20);
	assert_string_equal(".....eee............", a);
	world_open(&w, "fault:error=1000000,errno=ENOSPC|fake:64K", 1);
	one_submit(&w, &one, REQ_FLUSH, 0, 0, NULL, 0);
	finish(&w, &one);
	assert_int_equal(-ENOSPC, one.err);
	assert_string_equal("injected by the fault stage", one.why);
	world_done(&w);
}

static void test_only_the_chosen_operations_fail(void **state)
{
	char a[21];

	(void)state;
	fates("fault:error=1000000,write=1|fake:64K", a, 9);
	assert_string_equal("e..e..e..", a);
	fates("fault:error=1000000,write=0|fake:64K", a, 9);
	assert_string_equal(".ee.ee.ee", a);
	fates("fault:error=1000000,flush=yes|fake:64K", a, 3);
	assert_string_equal("...", a);
}

/* Whoever uses the buffer of a failed READ must not get away with it. */
static void test_failed_read_leaves_rubbish_in_the_buffer(void **state)
{
	struct world w;
	struct one one;
	size_t right;

	(void)state;
	world_open(&w, "fault:error=1000000|fake:64K", 1);
	for (int turn = 0; turn < 10; turn++) {
		memset(buf, 0, sizeof(buf));
		one_submit(&w, &one, REQ_READ, 0, 4096, buf, 0);
		finish(&w, &one);
		assert_int_equal(-EIO, one.err);
		for (size_t i = 0; i < 4096; i++)
			assert_int_equal(0xdb, buf[i]);
	}
	world_done(&w);
	world_open(&w, "fault:short=1000000|fake:64K", 1);
	memset(w.fake[0]->bytes, 5, 4096);
	for (int turn = 0; turn < 10; turn++) {
		one_submit(&w, &one, REQ_READ, 0, 4096, buf, 0);
		finish(&w, &one);
		assert_int_equal(-EIO, one.err);
		for (right = 0; right < 4096 && buf[right] == 5; right++)
			;
		assert_true(right < 4096);
		for (size_t i = right; i < 4096; i++)
			assert_int_equal(0xdb, buf[i]);
	}
	world_done(&w);
}

static void test_failed_writes_are_sometimes_carried_out_and_sometimes_not(void **state)
{
	struct world w;
	struct one one;
	unsigned carried_out = 0;

	(void)state;
	world_open(&w, "fault:error=1000000|fake:64K", 1);
	memset(buf, 1, sizeof(buf));
	for (unsigned i = 0; i < 16; i++) {
		one_submit(&w, &one, REQ_WRITE, i * 4096, 4096, buf, 0);
		finish(&w, &one);
		assert_int_equal(-EIO, one.err);
		carried_out += w.fake[0]->bytes[i * 4096] == 1;
	}
	assert_in_range(carried_out, 1, 15);
	world_done(&w);
}

static void test_hanging_request_ends_with_abort_and_not_before(void **state)
{
	struct world w;
	struct one hang, good;

	(void)state;
	world_open(&w, "fault:hang=1000000,times=1|fake:64K", 1);
	one_submit(&w, &hang, REQ_READ, 0, 4096, buf, 0);
	one_submit(&w, &good, REQ_READ, 0, 4096, buf, 0);
	finish(&w, &good);
	assert_int_equal(0, good.err);
	world_pass(&w, 3600 * NS_PER_S, 60 * NS_PER_S);
	assert_int_equal(0, hang.completions);
	store_abort(w.top);
	world_turn(&w);
	assert_int_equal(1, hang.completions);
	assert_int_equal(-ESHUTDOWN, hang.err);
	world_done(&w);
}

static void test_late_answers_come_within_the_delay_and_in_another_order(void **state)
{
	struct world w;
	struct one one[50];
	bool swapped = false;

	(void)state;
	world_open(&w, "fault:delay=100ms|fake:64K", 1);
	for (size_t i = 0; i < 50; i++)
		one_submit(&w, &one[i], REQ_READ, i, 1, buf, 0);
	while (w.fake[0]->count)
		fake_end(w.fake[0], 0);
	world_pass(&w, 101 * NS_PER_MS, NS_PER_MS);
	for (size_t i = 0; i < 50; i++) {
		assert_int_equal(1, one[i].completions);
		swapped |= i && one[i].done_ns < one[i - 1].done_ns;
	}
	assert_true(swapped);
	world_done(&w);
}

static void test_abort_completes_every_request_once(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 100; seed++) {
		model_abort("fault:hang=100000,delay=3ms,error=100000|fake:20000", seed, 3000, 1);
		model_abort("order|retry:delay=1ms|fault:hang=20000,delay=3ms,error=300000|fake:20000", seed, 3000, 1);
	}
}

/* What a client needs on an unreliable store: order, then retry. */
static void test_order_and_retry_make_it_reliable_again(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 8; seed++)
		model_run("order|retry:delay=1ms|fault:seed=3,error=200000,short=100000,delay=2ms,"
			  "errno=ETIMEDOUT|fake:20000",
			  MODEL_ANYTHING, seed, 1000, 3000, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_equal_seeds_give_equal_faults),
		cmocka_unit_test(test_after_times_and_errno),
		cmocka_unit_test(test_only_the_chosen_operations_fail),
		cmocka_unit_test(test_failed_read_leaves_rubbish_in_the_buffer),
		cmocka_unit_test(test_failed_writes_are_sometimes_carried_out_and_sometimes_not),
		cmocka_unit_test(test_hanging_request_ends_with_abort_and_not_before),
		cmocka_unit_test(test_late_answers_come_within_the_delay_and_in_another_order),
		cmocka_unit_test(test_abort_completes_every_request_once),
		cmocka_unit_test(test_order_and_retry_make_it_reliable_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
