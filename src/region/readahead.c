/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readahead: tells sequential and strided readers from random ones, and pulls ahead of the former.
 *
 * Place: ahead_used() hears of every chunk that somebody asks for: each fault, each chunk of a
 * request, each touch of a mark. ahead_run() is called by pull_run() when nothing more urgent wants
 * to be pulled.
 *
 * A stream is a reader: the chunk it used last, its stride, how many strides were asked for beyond
 * it (issued) and how many shall be (goal). The window doubles, from 2 up to the limit, each time
 * half of it has been used, so that the next pulls are under way before the reader runs dry. A
 * mapped program that reads what is open is not seen; so one chunk in the middle of each window is
 * left shut (`mark`): its first touch is a cheap fault that tells. What fits no stream begins a new
 * one, without readahead, in place of the one that was used least recently.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>

#include "region/region_int.h"

#define STRIDE_MAX 1024 /* chunks */
#define WINDOW_FIRST 2u
#define KEEP_BEHIND 2u /* chunks behind a reader that are not given up yet */

/* ---- advice ---- */

enum region_advice ahead_advice(const struct region *r, uint64_t c)
{
	struct range chunk = map_range(&r->map, c, 1);

	for (unsigned i = r->advice_count; i-- > 0;)
		if (range_overlaps(r->advice[i].range, chunk))
			return r->advice[i].advice;
	return REGION_NORMAL;
}

/* The latest advice rules; when there are too many the oldest is forgotten. */
void ahead_advise(struct region *r, struct range range, enum region_advice advice)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < r->advice_count; i++)
		if (!range_contains(range, r->advice[i].range))
			r->advice[kept++] = r->advice[i];
	if (kept == REGION_ADVICE_MAX) {
		for (unsigned i = 1; i < kept; i++)
			r->advice[i - 1] = r->advice[i];
		kept--;
	}
	r->advice[kept++] = (struct advice){ range, advice };
	r->advice_count = kept;
}

/* ---- streams ---- */

/* How many strides from `last` on c is; -1 = it is not on the way, or too far. */
static int64_t stream_steps(const struct stream *s, uint64_t c)
{
	int64_t d = (int64_t)(c - s->last);

	if (!s->stride || d % s->stride)
		return -1;
	d /= s->stride;
	return d >= 0 && d <= (int64_t)s->issued + 1 ? d : -1;
}

static void stream_widen(struct region *r, struct stream *s)
{
	uint32_t before = s->issued;

	s->window = MIN(s->window ? s->window * 2 : WINDOW_FIRST, r->ahead_max);
	s->goal = s->window;
	s->mark = NO_CHUNK;
	if (r->near->mapped && s->window > before)
		s->mark =
			s->last +
				(uint64_t)(s->stride *
					   (int64_t)(before + 1 + (s->window - before) / 2));
}

static void stream_moved(struct region *r, struct stream *s, uint64_t c, uint64_t steps)
{
	bool marked = c == s->mark;

	s->last = c;
	s->issued -= (uint32_t)MIN(steps, (uint64_t)s->issued);
	s->goal -= (uint32_t)MIN(steps, (uint64_t)s->goal);
	if (!marked && s->issued > s->window / 2)
		return;
	stream_widen(r, s);
	region_kick(r); /* what was used may all have been local */
}

static struct stream *stream_oldest(struct region *r)
{
	struct stream *oldest = &r->stream[0];

	for (unsigned i = 1; i < REGION_STREAMS; i++)
		if (r->stream[i].used < oldest->used)
			oldest = &r->stream[i];
	return oldest;
}

/* A stream whose stride is not known yet, and which this access explains; or a new one. */
static void stream_guess(struct region *r, uint64_t c)
{
	struct stream *s, *latest = NULL;
	int64_t d;

	for (unsigned i = 0; i < REGION_STREAMS; i++) {
		s = &r->stream[i];
		if (!s->used || s->stride)
			continue;
		if (!latest || s->used > latest->used)
			latest = s;
		d = (int64_t)(c - s->last);
		if (d != 1 && d != -1 && (!d || d != s->guess))
			continue;
		s->stride = d;
		s->used = ++r->stream_clock;
		stream_moved(r, s, c, 1);
		return;
	}
	d = latest ? (int64_t)(c - latest->last) : 0;
	s = stream_oldest(r);
	*s = (struct stream){ .last = c, .tail = c, .mark = NO_CHUNK, .used = ++r->stream_clock };
	if (d >= -STRIDE_MAX && d <= STRIDE_MAX)
		s->guess = d;
	if (!c || ahead_advice(r, c) == REGION_SEQUENTIAL) {
		s->stride = 1;
		s->window = c ? r->ahead_max / 2 : 0;
		stream_widen(r, s);
	}
}

void ahead_used(struct region *r, uint64_t c)
{
	if (!r->ahead_max || c == r->ahead_last)
		return;
	r->ahead_last = c;
	if (ahead_advice(r, c) == REGION_RANDOM)
		return;
	for (unsigned i = 0; i < REGION_STREAMS; i++) {
		struct stream *s = &r->stream[i];
		int64_t steps = s->used ? stream_steps(s, c) : -1;

		if (steps < 0)
			continue;
		s->used = ++r->stream_clock;
		if (steps)
			stream_moved(r, s, c, (uint64_t)steps);
		return;
	}
	stream_guess(r, c);
}

/* ---- pulling ahead ---- */

/* False = nothing more can be begun now. */
static bool stream_run(struct region *r, struct stream *s)
{
	while (s->issued < s->goal) {
		uint64_t next = s->last + (uint64_t)(s->stride * (int64_t)(s->issued + 1)),
			count = 0;
		struct pull_want want = { .first = next, .end = next + 1, .why = PULL_AHEAD,
					  .flags = REQ_BACKGROUND, .mark = s->mark };
		int err;

		if (next >= r->map.chunks) { /* also below 0 */
			s->issued = s->goal;
			break;
		}
		if (!map_pullable(&r->map, next)) {
			s->issued++;
			continue;
		}
		if (s->stride == 1)
			want.end = MIN(s->last + s->goal + 1, r->map.chunks);
		err = pull_start(r, &want, &count);
		if (err == -EAGAIN)
			return false;
		s->issued += err ? 1 : (uint32_t)count;
	}
	return true;
}

void ahead_run(struct region *r)
{
	for (unsigned i = 0; i < REGION_STREAMS; i++)
		if (r->stream[i].used && r->stream[i].stride && !stream_run(r, &r->stream[i]))
			return;
}

/* What failed is asked for by whoever needs it. */
void ahead_failed(struct region *r, uint64_t first, uint64_t count)
{
	for (unsigned i = 0; i < REGION_STREAMS; i++) {
		struct stream *s = &r->stream[i];

		if (s->used && s->stride && first + count > s->last)
			s->window = s->issued = s->goal = 0;
	}
}

uint64_t ahead_behind(struct region *r)
{
	for (unsigned i = 0; i < REGION_STREAMS; i++) {
		struct stream *s = &r->stream[i];
		uint64_t c;

		if (!s->used || s->stride != 1 || s->window <= WINDOW_FIRST)
			continue;
		c = map_next(&r->map, s->tail, MAP_HELD);
		if (c + KEEP_BEHIND < s->last) {
			s->tail = c + 1;
			return c;
		}
		s->tail = MAX(s->tail, s->last - MIN(s->last, (uint64_t)KEEP_BEHIND));
	}
	return NO_CHUNK;
}

void region_advise(struct region *r, struct range range, enum region_advice advice)
{
	if (!range_within(range, r->map.size) || !range.len)
		return;
	if (advice != REGION_DONTNEED) {
		ahead_advise(r, range, advice);
		return;
	}
	for (uint64_t c = map_chunk_of(&r->map, range.off),
	     end = map_chunk_of(&r->map, range_end(range) - 1);
	     (c = map_next(&r->map, c, MAP_HELD)) <= end && c < r->map.chunks; c++)
		(void)policy_drop(r, c);
}
