/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A profile that is being pulled: a client of the region that has some ranges asked for at a time.
 *
 * Place: beside the front end, on region_pull(). The region keeps ranges of one priority in the
 * order in which they were asked for, so the order of the profile is the order of the pulls.
 *
 * Invariant: `asked` counts the pulls that the region has; when it is 0 the region may be gone.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "region/profile.h"

struct ahead {
	struct region_pull pull;
	struct profile_run *run;
};

struct profile_run {
	struct region *region;
	struct profile profile;
	struct profile_progress progress;
	size_t next; /* range that is asked for next */
	unsigned asked;
	bool stopped;
	void (*done)(void *arg);
	void *arg;
	struct ahead ahead[PROFILE_PULLS_MAX];
};

static void run_end(struct profile_run *run)
{
	run->progress.ended = true;
	if (run->done)
		run->done(run->arg); /* may free it */
}

static void ahead_ask(struct profile_run *run, struct ahead *a)
{
	a->pull.range = run->profile.at[run->next++];
	a->pull.priority = PROFILE_PRIORITY;
	run->asked++;
	region_pull(run->region, &a->pull);
}

static void ahead_done(struct region_pull *pull, int err)
{
	struct ahead *a = CONTAINER_OF(pull, struct ahead, pull);
	struct profile_run *run = a->run;

	CHECK(run->asked);
	run->asked--;
	if (err == -ESHUTDOWN) {
		run->stopped = true; /* the region closes: nothing more to be asked for */
	} else {
		run->progress.ranges_done++;
		run->progress.bytes_done += pull->range.len;
		run->progress.failed += !!err;
	}
	if (!run->stopped && run->next < run->profile.count)
		ahead_ask(run, a);
	else if (!run->asked)
		run_end(run);
}

/* What does not fit beside the program's own use would only drive out what came before it. */
static void run_bound(struct profile_run *run)
{
	struct region_status st;
	uint64_t left, chunk;
	size_t n = 0;

	region_status(run->region, &st);
	chunk = st.chunk;
	left = st.budget_bytes / 2;
	for (; st.budget_bytes && n < run->profile.count; n++) {
		uint64_t len = range_align_out(run->profile.at[n], chunk).len;

		if (len > left)
			break;
		left -= len;
	}
	if (st.budget_bytes)
		run->profile.count = n;
	run->progress.ranges = run->profile.count;
	for (size_t i = 0; i < run->profile.count; i++)
		run->progress.bytes += run->profile.at[i].len;
}

int profile_run_start(struct profile_run **ret, struct region *region, struct profile *profile,
		      void (*done)(void *arg), void *arg)
{
	struct profile_run *run = calloc(1, sizeof(*run));

	if (!run) {
		profile_done(profile);
		return -ENOMEM;
	}
	run->region = region;
	run->done = done;
	run->arg = arg;
	run->profile = *profile;
	*profile = (struct profile){ 0 };
	run_bound(run);
	if (!run->profile.count) {
		profile_run_free(run);
		return -ENODATA;
	}
	*ret = run;
	for (size_t i = 0; i < PROFILE_PULLS_MAX; i++) {
		run->ahead[i].run = run;
		run->ahead[i].pull.done = ahead_done;
		if (run->next < run->profile.count)
			ahead_ask(run, &run->ahead[i]);
	}
	return 0;
}

void profile_run_free(struct profile_run *run)
{
	if (!run)
		return;
	for (size_t i = 0; i < PROFILE_PULLS_MAX && run->asked; i++)
		if (link_linked(&run->ahead[i].pull.link)) {
			region_pull_cancel(run->region, &run->ahead[i].pull);
			run->asked--;
		}
	CHECK(!run->asked);
	profile_done(&run->profile);
	free(run);
}

void profile_run_progress(const struct profile_run *run, struct profile_progress *ret)
{
	*ret = run->progress;
}
