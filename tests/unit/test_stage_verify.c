/* SPDX-License-Identifier: Apache-2.0 */
/* The verify stage: two stores that differ are found out, and two that do not are not accused. */
#define TEST_FAKE_KINDS										\
	{ "verify", false, "verify:with=(SPEC)", stage_verify_open }, { "order", false, "order", stage_order_open },
#include "model.h"

static uint8_t buf[8192];

/* The one of with=() is opened while the row is being opened from its end: second. */
#define NEXT(w) ((w).fake[0])
#define SECOND(w) ((w).fake[1])

static void drain(struct world *w)
{
	world_turn(w);
	while (NEXT(*w)->count || SECOND(*w)->count) {
		if (NEXT(*w)->count)
			fake_end(NEXT(*w), 0);
		if (SECOND(*w)->count)
			fake_end(SECOND(*w), 0);
		world_turn(w);
	}
}

static void test_random_requests_keep_both_stores_equal(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 8; seed++) {
		model_run("verify:with=(fake:20000)|fake:20000", MODEL_APART, seed, 1000, 3000, 1);
		model_run("order|verify:with=(fake:20000?emulate=1)|fake:20000", MODEL_ANYTHING, seed, 1000, 3000, 1);
	}
}

static void test_abort_completes_every_request_once(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 40; seed++)
		model_abort("verify:with=(fake:20000)|fake:20000", seed, 3000, 1);
}

static void test_one_different_byte_is_found_and_named(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "verify:with=(fake:64K)|fake:64K", 1);
	NEXT(w)->bytes[5000] = 0x11;
	SECOND(w)->bytes[5000] = 0x22;
	one_submit(&w, &one, REQ_READ, 4096, 904, buf, 0); /* ends before it */
	drain(&w);
	assert_int_equal(0, one.err);
	one_submit(&w, &one, REQ_READ, 4096, 4096, buf, 0);
	drain(&w);
	assert_int_equal(1, one.completions);
	assert_int_equal(-EILSEQ, one.err);
	assert_string_equal("verify: byte 5000 is 0x11, and 0x22 in the second store", one.why);
	assert_string_equal(one.why, w.logged);
	one_submit(&w, &one, REQ_WRITE, 5000, 1, buf, 0);
	drain(&w);
	one_submit(&w, &one, REQ_READ, 4096, 4096, buf, 0);
	drain(&w);
	assert_int_equal(0, one.err);
	world_done(&w);
}

/* The one store is read before the write and the other behind it: nobody is to blame. */
static void test_read_beside_a_write_of_its_bytes_is_not_an_error(void **state)
{
	struct world w;
	struct one read, write;

	(void)state;
	world_open(&w, "verify:with=(fake:64K)|fake:64K", 1);
	memset(buf + 4096, 7, 100);
	for (int turn = 0; turn < 2; turn++) {
		memset(NEXT(w)->bytes, 0, 4096);
		memset(SECOND(w)->bytes, 0, 4096);
		if (turn)
			one_submit(&w, &write, REQ_WRITE, 0, 100, buf + 4096, 0);
		one_submit(&w, &read, REQ_READ, 0, 4096, buf, 0);
		if (!turn)
			one_submit(&w, &write, REQ_WRITE, 0, 100, buf + 4096, 0);
		fake_end(NEXT(w), 0);
		fake_end(NEXT(w), 0);
		fake_end(SECOND(w), 1);
		fake_end(SECOND(w), 0);
		assert_int_equal(1, read.completions);
		assert_int_equal(0, read.err);
		assert_int_equal(0, write.err);
	}
	world_done(&w);
}

static int refuse_all(struct fake *f, const struct req *req)
{
	(void)f;
	(void)req;
	return -EDQUOT;
}

static void test_write_that_fails_in_either_store_fails(void **state)
{
	struct world w;
	struct one one;

	(void)state;
	world_open(&w, "verify:with=(fake:64K)|fake:64K", 1);
	SECOND(w)->refuse = refuse_all;
	one_submit(&w, &one, REQ_WRITE, 0, 100, buf, 0);
	drain(&w);
	assert_int_equal(-EDQUOT, one.err);
	assert_non_null(strstr(one.why, "second store"));
	one_submit(&w, &one, REQ_FLUSH, 0, 0, NULL, 0);
	drain(&w);
	assert_int_equal(-EDQUOT, one.err);
	SECOND(w)->refuse = NULL;
	NEXT(w)->refuse = refuse_all;
	one_submit(&w, &one, REQ_ZERO, 0, 100, NULL, 0);
	drain(&w);
	assert_int_equal(-EDQUOT, one.err);
	world_done(&w);
}

static void test_different_sizes_and_missing_rights_are_refused(void **state)
{
	struct world w;
	struct err e;

	(void)state;
	world_init(&w, 1);
	assert_int_equal(-EINVAL, world_open_err(&w, "verify:with=(fake:32K)|fake:64K", &e));
	assert_non_null(strstr(e.text, "65536 and 32768"));
	w.fakes = 0;
	assert_int_equal(-EROFS, world_open_err(&w, "verify:with=(fake:64K?readonly=1)|fake:64K", &e));
	w.fakes = 0;
	assert_int_equal(-EINVAL, world_open_err(&w, "verify:with=(nonsense://)|fake:64K", &e));
	assert_non_null(strstr(e.text, "second store"));
	loop_close(w.loop);
	world_open(&w, "verify:with=(fake:64K?readonly=1)|fake:64K?readonly=1", 1);
	world_done(&w);
}

static void test_the_narrower_store_decides_on_alignment_and_length(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, "verify:with=(fake:64K?align=4K&len=12K)|fake:64K?align=512", 1);
	assert_int_equal(4096, w.top->info.align);
	assert_int_equal(12288, w.top->info.len_max);
	world_done(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_requests_keep_both_stores_equal),
		cmocka_unit_test(test_abort_completes_every_request_once),
		cmocka_unit_test(test_one_different_byte_is_found_and_named),
		cmocka_unit_test(test_read_beside_a_write_of_its_bytes_is_not_an_error),
		cmocka_unit_test(test_write_that_fails_in_either_store_fails),
		cmocka_unit_test(test_different_sizes_and_missing_rights_are_refused),
		cmocka_unit_test(test_the_narrower_store_decides_on_alignment_and_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
