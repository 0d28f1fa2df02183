/* SPDX-License-Identifier: Apache-2.0 */
/* The powercut stage: nothing of what was not flushed is below, everything of what was is, and
 * reads never find anything but the last write that was not taken by a cut. */
#define TEST_FAKE_KINDS                                                                            \
	{ "powercut", false, "powercut[:after=N][,times=N][,seed=N][,keep=SIZE]",                  \
	  stage_powercut_open },
#include "model.h"

#define SIZE (256 * KIB)

static uint8_t buf[SIZE], other[SIZE];

static void drain(struct world *w)
{
	world_turn(w);
	while (w->fake[0]->count) {
		fake_end(w->fake[0], 0);
		world_turn(w);
	}
}

static int run(struct world *w, enum req_op op, uint64_t off, uint64_t len, void *data)
{
	struct one one;

	one_submit(w, &one, op, off, len, data, 0);
	drain(w);
	assert_int_equal(1, one.completions);
	return one.err;
}

static void what_is_written_is_below_only_when_it_was_flushed(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, "powercut|fake:256K?emulate=1", 1);
	memset(buf, 7, 5000);
	assert_int_equal(0, run(&w, REQ_WRITE, 100, 5000, buf));
	assert_int_equal(0, w.fake[0]->seen_count);
	assert_int_equal(0, run(&w, REQ_READ, 0, 6000, other));
	assert_int_equal(0, other[99]);
	assert_memory_equal(other + 100, buf, 5000);
	assert_int_equal(0, other[5100]);
	assert_int_equal(0, w.fake[0]->bytes[100]);
	assert_int_equal(0, run(&w, REQ_FLUSH, 0, 0, NULL));
	assert_memory_equal(w.fake[0]->bytes + 100, buf, 5000);
	assert_int_equal(REQ_FLUSH, w.fake[0]->seen[w.fake[0]->seen_count - 1].op);
	world_done(&w);
}

static unsigned told;

static void tell(void *arg, struct store *store, enum store_event event)
{
	(void)arg;
	(void)store;
	assert_int_equal(STORE_RESTARTED, event);
	told++;
}

static void a_cut_takes_what_was_not_flushed_and_another_instance_answers(void **state)
{
	struct world w;
	struct one one;
	uint64_t before;

	(void)state;
	world_open(&w, "powercut|fake:256K", 1);
	w.top->on_event = tell;
	told = 0;
	memset(buf, 7, 5000);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, 2000, buf));
	assert_int_equal(0, run(&w, REQ_FLUSH, 0, 0, NULL));
	memset(buf, 8, 5000);
	one_submit(&w, &one, REQ_WRITE, 1000, 2000, buf, 0);
	drain(&w);
	before = one.req.ret_instance;
	assert_int_equal(before, w.top->info.instance);
	assert_true(stage_powercut_cut(w.top));
	assert_int_equal(1, told);
	assert_true(before != w.top->info.instance);
	one_submit(&w, &one, REQ_FLUSH, 0, 0, NULL, 0);
	drain(&w);
	assert_int_equal(0, one.err);
	assert_int_equal(w.top->info.instance, one.req.ret_instance);
	assert_int_equal(0, run(&w, REQ_READ, 0, 5000, other));
	for (size_t i = 0; i < 5000; i++)
		assert_int_equal(other[i], i < 2000 ? 7 : 0);
	world_done(&w);
}

/* A FLUSH that is under way when the power is cut says by its instance that it may not cover what
 * was written before. */
static void a_flush_across_a_cut_is_answered_by_the_new_instance(void **state)
{
	struct world w;
	struct one write, flush;

	(void)state;
	world_open(&w, "powercut|fake:256K", 1);
	one_submit(&w, &write, REQ_WRITE, 0, 100, buf, 0);
	one_submit(&w, &flush, REQ_FLUSH, 0, 0, NULL, 0);
	world_turn(&w);
	assert_int_equal(1, w.fake[0]->count); /* the write, on its way */
	assert_true(stage_powercut_cut(w.top));
	drain(&w);
	assert_int_equal(0, flush.err);
	assert_true(write.req.ret_instance != flush.req.ret_instance);
	assert_int_equal(w.top->info.instance, flush.req.ret_instance);
	world_done(&w);
}

static void when_it_is_full_the_oldest_is_passed_on_in_order(void **state)
{
	struct world w;
	uint64_t at = 0;

	(void)state;
	world_open(&w, "powercut:keep=64K|fake:256K", 1);
	for (uint64_t off = 0; off < SIZE; off += 10000) {
		memset(buf, (int)(off / 10000 + 1), 10000);
		assert_int_equal(0, run(&w, REQ_WRITE, off, MIN(10000, SIZE - off), buf));
	}
	assert_true(w.fake[0]->seen_count >= (SIZE - 64 * KIB) / 10000);
	for (size_t i = 0; i < w.fake[0]->seen_count; i++) {
		assert_int_equal(at, w.fake[0]->seen[i].range.off);
		at += 10000;
	}
	for (uint64_t off = 0; off < SIZE; off += 64 * KIB)
		assert_int_equal(0, run(&w, REQ_READ, off, 64 * KIB, other + off));
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(other[i], i / 10000 + 1);
	world_done(&w);
}

static void by_seed_writes_are_gone_or_torn_at_a_sector_or_survive(void **state)
{
	unsigned gone = 0, torn = 0, whole = 0;

	(void)state;
	for (uint64_t seed = 0; seed < 60; seed++) {
		struct world w;
		char spec[64];
		size_t i = 0;

		snprintf(spec, sizeof(spec), "powercut:seed=%llu|fake:256K", (unsigned long long)seed);
		world_open(&w, spec, seed);
		memset(buf, 1, 4096);
		assert_int_equal(0, run(&w, REQ_WRITE, 300, 4096, buf));
		assert_true(stage_powercut_cut(w.top));
		/* What is there now stays. */
		assert_int_equal(0, run(&w, REQ_READ, 0, 8192, buf));
		assert_true(stage_powercut_cut(w.top));
		assert_int_equal(0, run(&w, REQ_READ, 0, 8192, other));
		assert_memory_equal(buf, other, 8192);
		for (size_t b = 1; b < 8192; b++) {
			i += other[b];
			if (other[b] != other[b - 1])
				assert_true(b % 512 == 0 || b == 300 || b == 300 + 4096);
		}
		gone += i == 0;
		whole += i == 4096;
		torn += i > 0 && i < 4096;
		world_done(&w);
	}
	assert_true(gone > 10 && torn > 5 && whole > 5);
}

static void cuts_come_after_so_many_requests_and_so_often(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, "powercut:after=10,times=2|fake:256K", 1);
	w.top->on_event = tell;
	told = 0;
	for (int i = 0; i < 9; i++)
		assert_int_equal(0, run(&w, REQ_WRITE, 0, 10, buf));
	assert_int_equal(0, told);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, 10, buf));
	assert_int_equal(1, told);
	for (int i = 0; i < 100; i++)
		assert_int_equal(0, run(&w, REQ_READ, 0, 10, buf));
	assert_int_equal(2, told);
	world_done(&w);
}

static int no_writes(struct fake *f, const struct req *req)
{
	(void)f;
	return req->op == REQ_WRITE ? -EIO : 0;
}

static void what_cannot_be_passed_on_fails_the_flush_and_is_kept(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, "powercut|fake:256K", 1);
	memset(buf, 9, 100);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, 100, buf));
	w.fake[0]->refuse = no_writes;
	assert_int_equal(-EIO, run(&w, REQ_FLUSH, 0, 0, NULL));
	assert_int_equal(-EIO, run(&w, REQ_FLUSH, 0, 0, NULL));
	assert_int_equal(0, run(&w, REQ_READ, 0, 100, other));
	assert_memory_equal(other, buf, 100);
	w.fake[0]->refuse = NULL;
	assert_int_equal(0, run(&w, REQ_FLUSH, 0, 0, NULL));
	assert_memory_equal(w.fake[0]->bytes, buf, 100);
	world_done(&w);
}

/* No cuts: a store like any other, whatever is on its way when a read comes. */
static void reads_find_the_last_write_while_it_is_passed_on(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 12; seed++) {
		struct model *m = malloc(sizeof(*m));
		struct one flush;
		uint64_t steps = 0;

		model_init(m, "powercut:keep=64K|fake:30000", seed, 3000);
		while (m->completed < 1500) {
			if (rng_chance(&m->w.rng, 400000))
				model_submit(m, MODEL_APART, 1);
			model_step(m);
			assert_true(++steps < MODEL_STEPS_MAX);
		}
		while (m->busy)
			model_step(m);
		one_submit(&m->w, &flush, REQ_FLUSH, 0, 0, NULL, 0);
		while (!flush.completions)
			model_step(m);
		for (uint64_t i = 0; i < m->size; i++)
			if (m->known[i])
				assert_int_equal(m->bytes[i], m->w.fake[0]->bytes[i]);
		model_free(m);
		free(m);
	}
}

static void abort_completes_every_request_once(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 60; seed++) {
		model_abort("powercut:keep=64K|fake:20000", seed, 3000, 1);
		model_abort("powercut:after=7,seed=3|fake:20000", seed, 3000, 1);
	}
}

static void options_that_make_no_sense_are_refused(void **state)
{
	struct world w;
	struct err e;

	(void)state;
	world_init(&w, 1);
	assert_int_equal(-EINVAL, world_open_err(&w, "powercut:keep=1K|fake:64K", &e));
	assert_non_null(strstr(e.text, "keep must be from 64 KiB"));
	assert_int_equal(-EINVAL, world_open_err(&w, "powercut:kept=1M|fake:64K", &e));
	w.top = NULL;
	world_done(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_below_only_when_it_was_flushed),
		cmocka_unit_test(a_cut_takes_what_was_not_flushed_and_another_instance_answers),
		cmocka_unit_test(a_flush_across_a_cut_is_answered_by_the_new_instance),
		cmocka_unit_test(when_it_is_full_the_oldest_is_passed_on_in_order),
		cmocka_unit_test(by_seed_writes_are_gone_or_torn_at_a_sector_or_survive),
		cmocka_unit_test(cuts_come_after_so_many_requests_and_so_often),
		cmocka_unit_test(what_cannot_be_passed_on_fails_the_flush_and_is_kept),
		cmocka_unit_test(reads_find_the_last_write_while_it_is_passed_on),
		cmocka_unit_test(abort_completes_every_request_once),
		cmocka_unit_test(options_that_make_no_sense_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
