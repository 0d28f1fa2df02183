/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Profiles: which bytes of a resource a program used, in the order of their first use, so that the
 * next run has them pulled before it asks.
 *
 * The file is text, and knows nothing of chunks:
 *
 *   remora-profile 1
 *   # size=536870912
 *   0 4096
 *   104857600 65536
 *
 * A line is an offset and a length, decimal, in bytes. Lines that begin with # are for people, but
 * for "# size=N", the size of the resource that was recorded. Empty lines are passed over.
 *
 *   record:  recorder_add() ──▶ recorder_drain() ──▶ profile_add() ──▶ profile_format()
 *   replay:  profile_parse() ──▶ profile_run_start() ──▶ region_pull(), range after range
 *
 * Threads: a recorder and a run belong to the loop's thread; the rest are pure functions.
 */
#ifndef REMORA_REGION_PROFILE_H
#define REMORA_REGION_PROFILE_H

#include "base/err.h"
#include "region/region.h"

/* ---- the text ---- */

struct profile { /* zeroed: empty */
	struct range *at; /* in the order of first use, none overlaps another */
	size_t count, room;
	uint64_t bytes;	  /* of them all */
	uint64_t size;	  /* of the resource that was recorded; 0 = not told */
	uint64_t dropped; /* lines of which nothing was left: behind the end, or told before */
};

/*
 * Reads a profile for a resource of `size` bytes. What lies behind its end is cut off, what an
 * earlier line has is taken out: a stale profile is a smaller one. -EINVAL: this is no profile,
 * the text names the line; -E2BIG: too long (PROFILE_TEXT_MAX, PROFILE_RANGES_MAX);
 * -EPROTONOSUPPORT: of a later version; -ENOMEM. Then *ret is empty.
 */
MUST_USE int profile_parse(struct profile *ret, const char *text, size_t len, uint64_t size,
			   struct err *e);

/* Appends; what continues the last range becomes part of it. Whether it overlaps is not looked at
 * (a recorder hands out nothing twice). -E2BIG: PROFILE_RANGES_MAX; -ENOMEM. */
MUST_USE int profile_add(struct profile *p, struct range r);

/* The file, malloc()ed and terminated. -ENOMEM. */
MUST_USE int profile_format(const struct profile *p, char **ret_text, size_t *ret_len);

void profile_done(struct profile *p);

/* ---- recording ---- */

struct recorder;

/* Of a resource of this size. Memory grows with what is recorded, up to some MiB. */
MUST_USE int recorder_open(struct recorder **ret, uint64_t size);
void recorder_close(struct recorder *rec);

/* These bytes were used: whole pages count. What was used before is nothing new; what lies next to
 * the last new range, or at most PROFILE_GAP from it, joins it. Cheap: for every read. */
void recorder_add(struct recorder *rec, struct range r);

/* Hands out what is new since the last time, in the order of first use; at most `max` ranges. Less
 * than max: that is all for now. */
size_t recorder_drain(struct recorder *rec, struct range *to, size_t max);

struct recorder_count {
	uint64_t ranges, bytes; /* recorded, drained or not */
	/* uses that came when PROFILE_RANGES_MAX ranges had been recorded: those that came first
	 * are kept, for a start is what a profile is for */
	uint64_t lost;
};
void recorder_count(const struct recorder *rec, struct recorder_count *ret);

/* ---- pulling ahead ---- */

struct profile_run;

/*
 * Pulls the ranges of the profile, in their order, some at a time, after faults, requests and
 * explicit pulls with a higher priority (PROFILE_PRIORITY), before readahead. Takes the profile's
 * ranges over (it is empty afterwards), also when it fails. With a budget only as much of them as
 * fits into half of it. What fails is passed over. done (may be NULL) is called once from the loop,
 * when all have been had, or the region closes; not when there is nothing to do (-ENODATA).
 */
MUST_USE int profile_run_start(struct profile_run **ret, struct region *region,
			       struct profile *profile, void (*done)(void *arg), void *arg);

/* Ends it, if it has not ended, and frees it. Before the region closes, or after; NULL is fine. */
void profile_run_free(struct profile_run *run);

struct profile_progress {
	uint64_t ranges, ranges_done, bytes, bytes_done; /* done: failed ones, too */
	uint64_t failed; /* ranges */
	bool ended;
};
void profile_run_progress(const struct profile_run *run, struct profile_progress *ret);

#endif
