/* SPDX-License-Identifier: Apache-2.0 */
/* What memory does, whichever engine gives it: a test of an engine has these among its own, with
 * the engine's name (NULL: the default) as their state. */
#ifndef REMORA_TESTS_API_ENGINE_H
#define REMORA_TESTS_API_ENGINE_H

#include "api_far.h"

static void test_reads_pull_and_writes_reach_the_far_side_on_flush(void **state)
{
	struct far far;
	struct remora *r;

	far_init(&far, 3 * MIB + 5, true);
	far.options.engine = *state;
	r = far_open(&far);
	assert_computed(r, 0, far.size);
	poke(r, 0, 0xaa);
	poke(r, MIB + 7, 0xbb);
	poke(r, far.size - 1, 0xcc);
	assert_int_equal(remora_flush(r), 0);
	assert_int_equal(far.data[0], 0xaa);
	assert_int_equal(far.data[MIB + 7], 0xbb);
	assert_int_equal(far.data[far.size - 1], 0xcc);
	assert_int_equal(far.data[1], computed(1));
	assert_true(far.flushes > 0);
	assert_true(far.written_bytes < MIB);
	assert_int_equal(status_of(r).dirty_bytes, 0);
	assert_true(status_of(r).faults > 0);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_close_flushes_and_discard_does_not(void **state)
{
	struct far far;
	struct remora *r;

	far_init(&far, MIB, true);
	far.options.no_push = 1;
	far.options.engine = *state;
	r = far_open(&far);
	poke(r, 5, 0xaa);
	remora_discard(r);
	assert_int_equal(far.data[5], computed(5));
	r = far_open(&far);
	assert_computed(r, 0, 4096);
	poke(r, 5, 0xbb);
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(far.data[5], 0xbb);
	far_done(&far);
	assert_int_equal(remora_close(NULL), 0);
	remora_discard(NULL);
}

static void test_odd_sizes(void **state)
{
	static const uint64_t sizes[] = { 0, 1, 4095, 4096, 4097, 65537 };

	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		struct far far;
		struct remora *r;

		far_init(&far, sizes[i], true);
		far.options.engine = *state;
		r = far_open(&far);
		assert_computed(r, 0, far.size);
		for (uint64_t at = far.size; at % PAGE_BYTES || at == 0; at++)
			assert_int_equal(touch(r, at), 0);
		if (far.size)
			poke(r, far.size - 1, 0xee);
		if (far.size % PAGE_BYTES)
			poke(r, far.size, 0xdd); /* goes nowhere */
		assert_int_equal(remora_close(r), 0);
		if (far.size)
			assert_int_equal(far.data[far.size - 1], 0xee);
		far_done(&far);
	}
}

#define TESTS_OF_ANY_ENGINE(name)                                                                  \
	cmocka_unit_test_prestate(test_reads_pull_and_writes_reach_the_far_side_on_flush, name),   \
		cmocka_unit_test_prestate(test_close_flushes_and_discard_does_not, name),          \
		cmocka_unit_test_prestate(test_odd_sizes, name)

#endif
