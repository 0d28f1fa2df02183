/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of the emulated link: when which byte is due. The clock is a number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/env.h"
#include "base/limits.h"
#include "cmd/link_pace.h"

#define MS NS_PER_MS
#define RATE_25M 25000000ULL /* 200 Mbit/s */

static struct pace_way way_of(uint64_t delay_ns, uint64_t rate)
{
	struct pace_way way = { .delay_ns = delay_ns, .rate = rate };

	rng_init(&way.rng, 1);
	return way;
}

static void without_a_rate_bytes_are_due_after_the_delay_and_not_before(void **state)
{
	struct pace_way way = way_of(10 * MS, 0);
	struct pace_line line = { 0 };

	(void)state;
	assert_int_equal(pace_next(&line, 0), NEVER_NS);
	assert_int_equal(pace_add(&way, &line, 5 * MS, 1000, false), 0);
	assert_int_equal(pace_due(&line, 15 * MS - 1), 0);
	assert_int_equal(pace_next(&line, 6 * MS), 15 * MS);
	assert_int_equal(pace_due(&line, 15 * MS), 1000);
	pace_take(&line, 1000);
	assert_int_equal(line.bytes, 0);
	assert_int_equal(pace_next(&line, 15 * MS), NEVER_NS);
	pace_line_done(&line);
}

static void a_rate_spreads_bytes_and_the_last_comes_when_it_says(void **state)
{
	struct pace_way way = way_of(10 * MS, RATE_25M);
	struct pace_line line = { 0 };

	(void)state;
	assert_int_equal(pace_add(&way, &line, 0, 250000, false), 0); /* 10 ms of the rate */
	assert_int_equal(pace_end(&line), 20 * MS);
	assert_int_equal(pace_due(&line, 10 * MS), 0);
	assert_in_range(pace_due(&line, 15 * MS), 125000 - 12500, 125000);
	assert_int_equal(pace_due(&line, 20 * MS), 250000);
	pace_line_done(&line);
}

static void connections_share_the_rate(void **state)
{
	struct pace_way way = way_of(0, RATE_25M);
	struct pace_line line[2] = { { 0 }, { 0 } };

	(void)state;
	for (int i = 0; i < 10; i++)
		assert_int_equal(pace_add(&way, &line[i % 2], 0, 25000, false), 0);
	assert_int_equal(pace_end(&line[0]), 9 * MS);
	assert_int_equal(pace_end(&line[1]), 10 * MS);
	for (int i = 0; i < 2; i++)
		pace_line_done(&line[i]);
}

/* Receives whenever there is room, takes what is due when it is due; returns bytes taken in `ns`.
 */
static uint64_t run_for(struct pace_way *way, uint64_t ns, uint64_t late_ns)
{
	struct pace_line line = { 0 };
	uint64_t now = 0, taken = 0;
	bool waited = false;

	while (now < ns) {
		uint64_t room, next;

		while ((room = pace_room(way, now))) {
			assert_int_equal(
				pace_add(way, &line, now, MIN(room, pace_turn(way)), waited), 0);
			assert_true(line.bytes <= pace_line_max(way) + pace_turn(way));
		}
		waited = true;
		taken += pace_due(&line, now);
		pace_take(&line, pace_due(&line, now));
		next = MIN(pace_next(&line, now), pace_room_at(way));
		assert_true(next > now);
		now = next + late_ns;
	}
	pace_line_done(&line);
	return taken;
}

static void the_rate_holds_within_two_percent(void **state)
{
	static const uint64_t rates[] = { 125000, 1250000, RATE_25M, 125000000, 1250000000 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rates); i++) {
		struct pace_way way = way_of(12500000, rates[i]);
		uint64_t got = run_for(&way, 5 * NS_PER_S + way.delay_ns, 0);

		assert_in_range(got, rates[i] * 5 / 100 * 98, rates[i] * 5 / 100 * 102);
	}
}

static void the_rate_holds_when_every_wake_up_is_late(void **state)
{
	struct pace_way way = way_of(0, 62500000);
	uint64_t got = run_for(&way, 2 * NS_PER_S, 20 * MS);

	(void)state;
	assert_in_range(got, 62500000ULL * 2 / 100 * 95, 62500000ULL * 2 / 100 * 102);
}

static void jitter_never_lets_a_byte_overtake_another(void **state)
{
	struct pace_way way = way_of(5 * MS, 0);
	struct pace_line line = { 0 };
	uint64_t end = 0;

	(void)state;
	way.jitter_ns = 20 * MS;
	for (uint64_t now = 0; now < 200 * MS; now += MS) {
		assert_int_equal(pace_add(&way, &line, now, 100, false), 0);
		assert_true(pace_end(&line) >= end && pace_end(&line) >= now + 5 * MS);
		end = pace_end(&line);
	}
	assert_int_equal(pace_due(&line, end), 20000);
	pace_line_done(&line);
}

static void a_smaller_delay_keeps_the_order(void **state)
{
	struct pace_way way = way_of(50 * MS, 0);
	struct pace_line line = { 0 };

	(void)state;
	assert_int_equal(pace_add(&way, &line, 0, 10, false), 0);
	way.delay_ns = 0;
	assert_int_equal(pace_add(&way, &line, MS, 10, false), 0);
	assert_int_equal(pace_due(&line, 49 * MS), 0);
	assert_int_equal(pace_due(&line, 50 * MS), 20);
	pace_line_done(&line);
}

static void a_stall_moves_everything_under_way(void **state)
{
	struct pace_way way = way_of(10 * MS, RATE_25M);
	struct pace_line line = { 0 };

	(void)state;
	assert_int_equal(pace_add(&way, &line, 0, 25000, false), 0);
	pace_line_shift(&line, 100 * MS);
	pace_way_shift(&way, 100 * MS);
	assert_int_equal(pace_due(&line, 110 * MS), 0);
	assert_int_equal(pace_due(&line, 111 * MS), 25000);
	assert_int_equal(way.free_at_ns, 101 * MS);
	pace_line_done(&line);
}

static void the_queue_is_bounded(void **state)
{
	struct pace_way way = way_of(10 * MS, RATE_25M);
	struct pace_line line = { 0 };
	uint64_t bytes = 0, room;

	(void)state;
	way.queue = 100000;
	while ((room = pace_room(&way, 0))) {
		assert_int_equal(pace_add(&way, &line, 0, MIN(room, pace_turn(&way)), false), 0);
		bytes += MIN(room, pace_turn(&way));
	}
	assert_in_range(bytes, 100000 - pace_turn(&way), 100000);
	assert_true(pace_room_at(&way) > 0);
	assert_true(pace_room(&way, pace_room_at(&way)) > 0);
	pace_line_done(&line);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_a_rate_bytes_are_due_after_the_delay_and_not_before),
		cmocka_unit_test(a_rate_spreads_bytes_and_the_last_comes_when_it_says),
		cmocka_unit_test(connections_share_the_rate),
		cmocka_unit_test(the_rate_holds_within_two_percent),
		cmocka_unit_test(the_rate_holds_when_every_wake_up_is_late),
		cmocka_unit_test(jitter_never_lets_a_byte_overtake_another),
		cmocka_unit_test(a_smaller_delay_keeps_the_order),
		cmocka_unit_test(a_stall_moves_everything_under_way),
		cmocka_unit_test(the_queue_is_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
