/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When which byte arrives at the end of an emulated link: see link_pace.h.
 *
 * Place: link_conn.c asks here what it may receive and what it may deliver.
 *
 * Invariants: the segments of a line are in order of time (jitter and changed settings never let a
 * byte overtake another). While the transmitter is busy with one connection, what that one sends
 * becomes one growing segment.
 *
 * Locking: none.
 */
#include "cmd/link_pace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/env.h"
#include "base/limits.h"

/* The queue's default length, as time at the rate: what a well kept router allows. */
#define QUEUE_NS (5 * NS_PER_MS)
#define QUEUE_MIN (64 * KIB)
#define LATE_NS_MAX (50 * NS_PER_MS)
#define TURN_NS (1 * NS_PER_MS)
#define TURN_MIN (4 * KIB)
#define TURN_MAX (256 * KIB)
#define PACKET_NS (NS_PER_MS / 2)
#define PACKET_MIN 1500u
#define READER_LAG_MAX (4 * MIB)
#define UNLIMITED_LINE_MAX (128 * MIB)

static uint64_t bytes_in(uint64_t rate, uint64_t ns)
{
	unsigned __int128 bytes = (unsigned __int128)rate * ns / NS_PER_S;

	return bytes < UINT64_MAX / 4 ? (uint64_t)bytes : UINT64_MAX / 4;
}

static uint64_t time_of(uint64_t rate, uint64_t bytes)
{
	unsigned __int128 ns = (unsigned __int128)bytes * NS_PER_S;

	return rate ? (uint64_t)((ns + rate - 1) / rate) : 0;
}

/* ---- the way ---- */

uint64_t pace_queue(const struct pace_way *way)
{
	return way->queue ? way->queue : MAX(bytes_in(way->rate, QUEUE_NS), QUEUE_MIN);
}

uint64_t pace_turn(const struct pace_way *way)
{
	uint64_t turn = way->rate ? bytes_in(way->rate, TURN_NS) : TURN_MAX;

	turn = MIN(MAX(turn, TURN_MIN), TURN_MAX);
	return way->rate ? MIN(turn, pace_queue(way)) : turn;
}

uint64_t pace_room(const struct pace_way *way, uint64_t now_ns)
{
	uint64_t queue = pace_queue(way), waiting;

	if (!way->rate)
		return UINT64_MAX;
	waiting = way->free_at_ns > now_ns ? bytes_in(way->rate, way->free_at_ns - now_ns) : 0;
	return waiting + pace_turn(way) <= queue ? queue - waiting : 0;
}

uint64_t pace_room_at(const struct pace_way *way)
{
	uint64_t fill_ns = time_of(way->rate, pace_queue(way) - pace_turn(way));

	/* One more: time_of() rounds up, and at the time given there must be room. */
	return way->free_at_ns > fill_ns ? way->free_at_ns - fill_ns + 1 : 0;
}

uint64_t pace_line_max(const struct pace_way *way)
{
	if (!way->rate)
		return UNLIMITED_LINE_MAX;
	return bytes_in(way->rate, way->delay_ns + way->jitter_ns) + pace_queue(way) +
	       READER_LAG_MAX;
}

void pace_way_shift(struct pace_way *way, uint64_t ns)
{
	way->free_at_ns += ns;
}

/* ---- the line ---- */

void pace_line_done(struct pace_line *line)
{
	free(line->at);
	memset(line, 0, sizeof(*line));
}

static struct pace_segment *segment_at(const struct pace_line *line, size_t i)
{
	CHECK(i < line->count);
	return &line->at[(line->first + i) & (line->room - 1)];
}

static uint64_t segment_end(const struct pace_segment *s)
{
	return s->base_ns + time_of(s->rate, s->len);
}

static int segment_push(struct pace_line *line, struct pace_segment segment)
{
	if (line->count == line->room) {
		size_t room = line->room ? 2 * line->room : 16;
		struct pace_segment *at = calloc(room, sizeof(*at));

		if (!at)
			return -ENOMEM;
		for (size_t i = 0; i < line->count; i++)
			at[i] = *segment_at(line, i);
		free(line->at);
		line->at = at;
		line->room = room;
		line->first = 0;
	}
	line->count++;
	*segment_at(line, line->count - 1) = segment;
	return 0;
}

int pace_add(struct pace_way *way, struct pace_line *line, uint64_t now_ns, uint64_t len,
	     bool waited)
{
	uint64_t there_ns = waited ? now_ns - MIN(now_ns, LATE_NS_MAX) : now_ns;
	uint64_t start = MAX(there_ns, way->free_at_ns), base;
	struct pace_segment *last = line->count ? segment_at(line, line->count - 1) : NULL;

	CHECK(len);
	way->free_at_ns = start + time_of(way->rate, len);
	base = start + way->delay_ns + rng_below(&way->rng, way->jitter_ns);
	if (last)
		base = MAX(base, segment_end(last));
	if (last && last->rate == way->rate && base == segment_end(last)) {
		last->len += len;
	} else {
		int r = segment_push(
			line,
			(struct pace_segment){ .base_ns = base, .rate = way->rate, .len = len });

		if (r)
			return r;
	}
	line->bytes += len;
	return 0;
}

/* Bytes are handed over in packets of a fraction of a millisecond: one by one they would cost a
 * system call each. */
static uint64_t segment_packet(const struct pace_segment *s)
{
	return MAX(bytes_in(s->rate, PACKET_NS), PACKET_MIN);
}

static uint64_t segment_due(const struct pace_segment *s, uint64_t now_ns)
{
	uint64_t due;

	if (now_ns < s->base_ns)
		return 0;
	due = s->rate ? bytes_in(s->rate, now_ns - s->base_ns) : s->len;
	return due >= s->len ? s->len : due - due % segment_packet(s);
}

uint64_t pace_due(const struct pace_line *line, uint64_t now_ns)
{
	uint64_t due = 0;

	for (size_t i = 0; i < line->count; i++) {
		const struct pace_segment *s = segment_at(line, i);
		uint64_t n = segment_due(s, now_ns);

		due += MAX(n, s->taken) - s->taken;
		if (n < s->len)
			break;
	}
	return due;
}

uint64_t pace_next(const struct pace_line *line, uint64_t now_ns)
{
	for (size_t i = 0; i < line->count; i++) {
		const struct pace_segment *s = segment_at(line, i);
		uint64_t due = segment_due(s, now_ns);

		if (due < s->len)
			return s->base_ns + time_of(s->rate, MIN(s->len, due + segment_packet(s)));
	}
	return NEVER_NS;
}

uint64_t pace_end(const struct pace_line *line)
{
	return line->count ? segment_end(segment_at(line, line->count - 1)) : 0;
}

void pace_take(struct pace_line *line, uint64_t len)
{
	CHECK(len <= line->bytes);
	line->bytes -= len;
	while (len) {
		struct pace_segment *s = segment_at(line, 0);
		uint64_t n = MIN(len, s->len - s->taken);

		s->taken += n;
		len -= n;
		if (s->taken < s->len)
			break;
		line->first = (line->first + 1) & (line->room - 1);
		line->count--;
	}
}

void pace_line_shift(struct pace_line *line, uint64_t ns)
{
	for (size_t i = 0; i < line->count; i++)
		segment_at(line, i)->base_ns += ns;
}
