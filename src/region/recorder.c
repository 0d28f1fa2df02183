/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which bytes were used, in the order of their first use.
 *
 * Place: a front end tells what it was asked for; who records drains it every second.
 *
 *   recorder_add() ──▶ not seen before? ──▶ run (the range that grows) ──▶ out ──▶ recorder_drain()
 *
 * Neighbours of the last new range join it, with the bytes between: to pull those costs nothing
 * beside a trip, and a line less is a line less. So a program that reads with small jumps is
 * one line and not a thousand.
 *
 * Invariant: what is in `run` and `out`, or was drained, is in `seen`, and each byte was in one
 * range only.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/rangeset.h"
#include "region/profile.h"

struct recorder {
	uint64_t size;
	struct rangeset seen;
	struct range run; /* the last new one, still growing; length 0 = none */
	struct profile out; /* complete, from `drained` on not handed out yet */
	size_t drained;
	struct recorder_count count;
};

int recorder_open(struct recorder **ret, uint64_t size)
{
	struct recorder *rec = calloc(1, sizeof(*rec));

	if (!rec || rangeset_init(&rec->seen, PROFILE_RANGES_MAX)) {
		free(rec);
		return -ENOMEM;
	}
	rec->size = size;
	*ret = rec;
	return 0;
}

void recorder_close(struct recorder *rec)
{
	if (!rec)
		return;
	rangeset_done(&rec->seen);
	profile_done(&rec->out);
	free(rec);
}

static void run_end(struct recorder *rec)
{
	if (rec->run.len && profile_add(&rec->out, rec->run))
		rec->count.lost++;
	rec->run.len = 0;
}

static void part_new(void *arg, struct range part)
{
	struct recorder *rec = arg;

	rec->count.bytes += part.len;
	if (rec->run.len && part.off == range_end(rec->run)) {
		rec->run.len += part.len;
	} else if (rec->run.len && range_end(part) == rec->run.off) {
		rec->run = range_between(part.off, range_end(rec->run));
	} else {
		run_end(rec);
		rec->run = part;
		rec->count.ranges++;
	}
}

/* With the bytes between it and the last new range, if they are few. */
static struct range range_bridge(const struct recorder *rec, struct range r)
{
	struct range run = rec->run;

	if (!run.len)
		return r;
	if (r.off > range_end(run) && r.off - range_end(run) <= PROFILE_GAP)
		return range_between(range_end(run), range_end(r));
	if (run.off > range_end(r) && run.off - range_end(r) <= PROFILE_GAP)
		return range_between(r.off, run.off);
	return r;
}

void recorder_add(struct recorder *rec, struct range r)
{
	if (r.off >= rec->size || !r.len)
		return;
	r.len = MIN(r.len, rec->size - r.off);
	r = range_align_out(r, PAGE_BYTES);
	r.len = MIN(r.len, rec->size - r.off);
	if (rangeset_has(&rec->seen, r))
		return;
	if (rec->count.ranges >= PROFILE_RANGES_MAX ||
	    rangeset_add(&rec->seen, range_bridge(rec, r), part_new, rec))
		rec->count.lost++;
}

size_t recorder_drain(struct recorder *rec, struct range *to, size_t max)
{
	size_t n;

	run_end(rec);
	n = MIN(rec->out.count - rec->drained, max);
	if (n)
		memcpy(to, rec->out.at + rec->drained, n * sizeof(*to));
	rec->drained += n;
	if (rec->drained == rec->out.count) {
		profile_done(&rec->out);
		rec->drained = 0;
	}
	return n;
}

void recorder_count(const struct recorder *rec, struct recorder_count *ret)
{
	*ret = rec->count;
}
