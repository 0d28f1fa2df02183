/* SPDX-License-Identifier: Apache-2.0 */
/* The region, what goes out: pushes, flushes, the budget, the close. */
#include "region_rig.h"

static void pull_ended(struct region_pull *pull, int err)
{
	assert_int_equal(err, pull->priority == 99 ? -ESHUTDOWN : 0);
	pull->priority = -1000;
}

/* ---- push ---- */

static void a_write_during_a_push_is_pushed_again(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);

	(void)state;
	t->w.far->hold = true;
	write_version(t, 0, CHUNK, 2);
	submit(t, 0, REQ_FLUSH, 0, 0);
	pass(t, 1 * MS);
	assert_string_equal(draw(t, 0, 1), ">");
	write_version(t, 0, 8192, 3);
	go(t);
	assert_int_equal(wait_for(t, 0), 0);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, 0, 8192, 3);
	expect(t->w.far->durable, 8192, CHUNK - 8192, 2);
	rig_free(t);
}

static void writes_are_pushed_by_themselves_and_adjacent_ones_together(void **state)
{
	struct region_options o = plain;
	struct rig *t;
	struct region_status st;

	(void)state;
	o.push_age_ns = 500 * MS;
	t = rig_new(SIZE, false, &o);
	for (uint64_t page = 0; page < 48; page++)
		write_version(t, page * 4096, 4096, 2);
	pass(t, 400 * MS);
	assert_int_equal(t->w.far->writes, 0);
	pass(t, 200 * MS);
	assert_int_equal(t->w.far->writes, 1);
	expect(t->w.far->bytes, 0, 48 * 4096, 2);
	region_status(t->w.region, &st);
	assert_int_equal(st.dirty_bytes, 0);
	assert_int_equal(st.unflushed_bytes, 3 * CHUNK);
	assert_string_equal(draw(t, 0, 4), "+++.");
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	assert_int_equal(t->w.far->writes, 1);
	assert_string_equal(draw(t, 0, 4), "###.");
	rig_free(t);
}

static void a_failed_push_is_reported_by_the_next_flush(void **state)
{
	struct region_options o = plain;
	struct region_status st;
	struct rig *t;

	(void)state;
	o.push_age_ns = 10 * MS;
	t = rig_new(SIZE, false, &o);
	t->w.far->write_error_per_million = 1000000;
	t->w.far->error = -ENOSPC;
	write_version(t, 0, 4096, 2);
	pass(t, 100 * MS);
	region_status(t->w.region, &st);
	assert_true(st.push_errors > 0 && st.dirty_bytes > 0);
	assert_int_equal(st.last_err, -ENOSPC);
	assert_string_equal(st.last_why, "the far side says no");
	t->w.far->write_error_per_million = 0;
	pass(t, 5 * NS_PER_S); /* has been pushed by now, and all the same: */
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), -ENOSPC);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, 0, 4096, 2);
	rig_free(t);
}

static void a_failed_flush_keeps_everything_unflushed(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);

	(void)state;
	write_version(t, 0, CHUNK, 2);
	t->w.far->write_error_per_million = 1000000;
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), -EIO);
	assert_string_equal(draw(t, 0, 1), "*");
	t->w.far->write_error_per_million = 0;
	pass(t, 3 * NS_PER_S);
	assert_string_equal(draw(t, 0, 1), "+");
	t->w.far->write_error_per_million = 1000000;
	(void)do_op(t, REQ_FLUSH, 0, 0);
	assert_string_equal(draw(t, 0, 1), "+");
	t->w.far->write_error_per_million = 0;
	(void)do_op(t, REQ_FLUSH, 0, 0);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, 0, CHUNK, 2);
	rig_free(t);
}

static void rule4_what_a_restarted_far_side_forgot_is_pushed_again(void **state)
{
	struct region_options o = plain;
	struct rig *t;

	(void)state;
	o.push_age_ns = 10 * MS;
	t = rig_new(SIZE, false, &o);
	write_version(t, 0, 4 * CHUNK, 2);
	pass(t, 500 * MS);
	assert_string_equal(draw(t, 0, 4), "++++");
	memcpy(t->w.far->bytes, t->w.far->durable, SIZE); /* it dies */
	far_restart(t->w.far);
	assert_string_equal(draw(t, 0, 4), "****");
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, 0, 4 * CHUNK, 2);
	rig_free(t);
}

static void rule4_a_flush_answered_by_another_instance_does_not_count(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);

	(void)state;
	write_version(t, 0, 2 * CHUNK, 2);
	t->w.far->store.on_event = NULL; /* nobody tells: only the replies do */
	submit(t, 0, REQ_FLUSH, 0, 0);
	while (!t->w.far->flushes)
		assert_int_equal(sim_step(t->w.sim), 0);
	memcpy(t->w.far->bytes, t->w.far->durable, SIZE);
	far_restart(t->w.far);
	assert_int_equal(wait_for(t, 0), 0);
	assert_true(t->w.far->flushes >= 2);
	expect(t->w.far->durable, 0, 2 * CHUNK, 2);
	rig_free(t);
}

static void a_flush_is_not_starved_by_a_writer(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);
	unsigned i = 0;

	(void)state;
	write_version(t, 0, SIZE, 2);
	submit(t, 0, REQ_FLUSH, 0, 0);
	for (; !t->done[0]; i++) {
		write_version(t, (i % 64) * CHUNK, 8192, 3 + i);
		pass(t, 100 * US);
	}
	assert_int_equal(t->err[0], 0);
	assert_true(i < 10000);
	rig_free(t);
}

static void flushes_at_the_same_time_share_their_trip(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);

	(void)state;
	write_version(t, 0, 4096, 2);
	for (unsigned i = 0; i < 20; i++)
		submit(t, i, REQ_FLUSH, 0, 0);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(wait_for(t, i), 0);
	assert_int_equal(t->w.far->flushes, 1);
	rig_free(t);
}

static void a_flush_ends_when_the_far_side_does_not_answer(void **state)
{
	struct region_options o = plain;
	struct rig *t;

	(void)state;
	o.deadline_ns = 2 * NS_PER_S;
	t = rig_new(SIZE, false, &o);
	write_version(t, 0, 4096, 2);
	far_lose(t->w.far);
	submit(t, 0, REQ_FLUSH, 0, 0);
	pass(t, 3 * NS_PER_S);
	assert_true(t->done[0]);
	assert_int_equal(t->err[0], -ETIMEDOUT);
	far_back(t->w.far);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, 0, 4096, 2);
	rig_free(t);
}

static void a_flush_behind_a_far_flush_that_hangs_ends_in_time(void **state)
{
	struct region_options o = plain;
	struct rig *t;

	(void)state;
	o.deadline_ns = 2 * NS_PER_S;
	t = rig_new(SIZE, false, &o);
	write_version(t, 0, 4096, 2);
	pass(t, 2 * NS_PER_S); /* pushed by itself, not flushed */
	t->w.far->hold = true;
	submit(t, 0, REQ_FLUSH, 0, 0);
	pass(t, NS_PER_S);
	submit(t, 1, REQ_FLUSH, 0, 0);
	pass(t, NS_PER_S + NS_PER_S / 2);
	assert_int_equal(t->err[0], -ETIMEDOUT);
	assert_false(t->done[1]);
	pass(t, NS_PER_S);
	assert_true(t->done[0] && t->done[1]);
	assert_int_equal(t->err[1], -ETIMEDOUT);
	go(t);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, 0, 4096, 2);
	rig_free(t);
}

static void writes_of_a_mapped_program_are_found_and_pushed(void **state)
{
	struct region_options o = plain;
	struct rig *t;

	(void)state;
	o.push_interval_ns = 100 * MS;
	t = rig_new(SIZE, true, &o);
	region_fault(t->w.region, CHUNK, true);
	pass(t, 20 * MS);
	for (uint32_t p = 16; p < 18; p++) {
		fill(t, p * PAGE_BYTES, PAGE_BYTES, 4);
		memcpy(t->w.near.bytes + p * PAGE_BYTES, t->buf + p * PAGE_BYTES, PAGE_BYTES);
		t->w.near.page[p].written = true;
	}
	pass(t, 200 * MS);
	assert_int_equal(t->w.far->writes, 1);
	expect(t->w.far->bytes, CHUNK, 2 * PAGE_BYTES, 4);
	expect(t->w.far->bytes, CHUNK + 2 * PAGE_BYTES, PAGE_BYTES, 1);
	rig_free(t);
}

static void a_private_copy_pushes_nothing(void **state)
{
	struct region_options o = plain;
	struct rig *t;

	(void)state;
	o.discard = true;
	t = rig_new(SIZE, false, &o);
	write_version(t, 0, CHUNK, 2);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	pass(t, 10 * NS_PER_S);
	assert_int_equal(t->w.far->writes, 0);
	read_expect(t, 0, CHUNK, 2);
	rig_free(t);
	o = plain;
	o.read_only = true;
	t = rig_new(SIZE, false, &o);
	assert_int_equal(do_op(t, REQ_WRITE, 0, 512), -EROFS);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	rig_free(t);
}

/* ---- memory ---- */

#define BUDGET (CHUNK * 16 + 3 * MIB)

static void rule8_memory_stays_within_the_budget(void **state)
{
	struct region_options o = { .chunk = CHUNK, .budget_bytes = BUDGET, .pull_all = true };
	struct rig *t = rig_new(2 * SIZE, false, &o);

	(void)state;
	pass(t, 1 * NS_PER_S);
	world_check(&t->w);
	read_expect(t, 0, 2 * SIZE, 1); /* one request larger than the budget */
	write_version(t, 0, 2 * SIZE, 2);
	assert_true(t->w.near.most * PAGE_BYTES < BUDGET);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	expect(t->w.far->durable, 0, 2 * SIZE, 2);
	read_expect(t, 0, 2 * SIZE, 2);
	rig_free(t);
}

static void writers_wait_when_dirty_data_fills_the_budget(void **state)
{
	struct region_options o = { .chunk = CHUNK, .budget_bytes = BUDGET, .push_off = true };
	struct rig *t = rig_new(4 * SIZE, false, &o);

	(void)state;
	t->w.far->hold = true;
	fill(t, 0, 4 * SIZE, 2);
	submit(t, 0, REQ_WRITE, 0, 4 * SIZE);
	pass(t, 1 * NS_PER_S);
	assert_false(t->done[0]);
	world_check(&t->w);
	go(t);
	assert_int_equal(wait_for(t, 0), 0);
	rig_free(t);
}

static void a_private_copy_that_fills_its_budget_gets_an_error(void **state)
{
	struct region_options o = { .chunk = CHUNK, .budget_bytes = BUDGET, .discard = true };
	struct rig *t = rig_new(4 * SIZE, false, &o);

	(void)state;
	fill(t, 0, 4 * SIZE, 2);
	assert_int_equal(do_op(t, REQ_WRITE, 0, 4 * SIZE), -ENOSPC);
	read_expect(t, 0, 4 * CHUNK, 2);
	rig_free(t);
}

static void a_budget_that_is_too_small_says_what_it_takes(void **state)
{
	struct region_options o = { .chunk = CHUNK, .budget_bytes = 256 * KIB };
	struct world w = { 0 };
	struct err e;

	(void)state;
	world_open(&w, 1, SIZE, false);
	assert_int_equal(region_open(&w.region, w.loop, &w.far->store, &w.near.near, &o, &e),
			 -EINVAL);
	assert_non_null(strstr(e.text, "MiB at least"));
	o.chunk = 12345;
	assert_int_equal(region_open(&w.region, w.loop, &w.far->store, &w.near.near, &o, &e),
			 -EINVAL);
	o = plain;
	world_region(&w, &o);
	world_close(&w);
}

/* ---- the rest ---- */

static void nothing_to_do_needs_no_timer(void **state)
{
	struct region_options o = { .chunk = CHUNK, .pull_all = true };
	struct rig *t = rig_new(SIZE, false, &o);

	(void)state;
	write_version(t, 0, CHUNK, 2);
	assert_int_equal(do_op(t, REQ_FLUSH, 0, 0), 0);
	pass(t, 100 * NS_PER_S);
	assert_int_equal(sim_step(t->w.sim), -EDEADLK);
	rig_free(t);
}

static void extents_know_what_was_written_here(void **state)
{
	struct rig *t = rig_new(SIZE, false, &plain);
	struct extent at[16];
	struct extents x = { .at = at, .max = 16 };

	(void)state;
	write_version(t, 3 * CHUNK, CHUNK, 2);
	assert_int_equal(store_extents(t->w.store, 0, SIZE, &x), 0);
	assert_int_equal(x.count, 1);
	assert_true(x.at[0].len == SIZE && !x.at[0].zero);
	rig_free(t);
}

static void closing_completes_everything_once(void **state)
{
	struct region_options o = { .chunk = CHUNK, .pull_all = true };
	struct rig *t = rig_new(SIZE, true, &o);
	struct region_pull pull = { .range = range_of(0, SIZE), .priority = 99,
				   .done = pull_ended };

	(void)state;
	t->w.far->hold = true;
	region_pull(t->w.region, &pull);
	for (unsigned i = 0; i < 500; i++)
		submit(t, i, i % 5 ? REQ_READ : REQ_FLUSH, i % 5 ? (i % 64) * CHUNK : 0,
		       i % 5 ? 512 : 0);
	region_fault(t->w.region, 9 * CHUNK, false);
	pass(t, 1 * MS);
	region_fault(t->w.region, 60 * CHUNK, false);
	world_close(&t->w);
	for (unsigned i = 0; i < 500; i++)
		assert_true(t->done[i]);
	assert_int_equal(pull.priority, -1000);
	free(t->buf);
	free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_write_during_a_push_is_pushed_again),
		cmocka_unit_test(writes_are_pushed_by_themselves_and_adjacent_ones_together),
		cmocka_unit_test(a_failed_push_is_reported_by_the_next_flush),
		cmocka_unit_test(a_failed_flush_keeps_everything_unflushed),
		cmocka_unit_test(rule4_what_a_restarted_far_side_forgot_is_pushed_again),
		cmocka_unit_test(rule4_a_flush_answered_by_another_instance_does_not_count),
		cmocka_unit_test(a_flush_is_not_starved_by_a_writer),
		cmocka_unit_test(flushes_at_the_same_time_share_their_trip),
		cmocka_unit_test(a_flush_ends_when_the_far_side_does_not_answer),
		cmocka_unit_test(a_flush_behind_a_far_flush_that_hangs_ends_in_time),
		cmocka_unit_test(writes_of_a_mapped_program_are_found_and_pushed),
		cmocka_unit_test(a_private_copy_pushes_nothing),
		cmocka_unit_test(rule8_memory_stays_within_the_budget),
		cmocka_unit_test(writers_wait_when_dirty_data_fills_the_budget),
		cmocka_unit_test(a_private_copy_that_fills_its_budget_gets_an_error),
		cmocka_unit_test(a_budget_that_is_too_small_says_what_it_takes),
		cmocka_unit_test(nothing_to_do_needs_no_timer),
		cmocka_unit_test(extents_know_what_was_written_here),
		cmocka_unit_test(closing_completes_everything_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
