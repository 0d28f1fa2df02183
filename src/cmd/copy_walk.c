/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A walk over the extents of a store, one answer ahead.
 *
 * Place: the copy and the comparison ask it which parts are zeros and need not be read.
 *
 * Invariants: buf[cur] covers start[cur] ... end[cur], the other buffer what follows (or is being
 * fetched). An EXTENTS that fails is no error here: what cannot be told is read, and a real fault
 * shows there.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/copy.h"

static void walk_got(struct req *req, int err);

static void walk_fetch(struct walk *w, uint64_t off)
{
	unsigned ahead = !w->cur;

	w->got[ahead] = (struct extents){ .at = w->buf[ahead], .max = REQ_EXTENTS_MAX };
	w->start[ahead] = w->end[ahead] = off;
	w->req = (struct req){
		.op = REQ_EXTENTS,
		.range = range_between(off, w->store->info.size),
		.extents = &w->got[ahead],
		.done = walk_got,
		.user = w,
	};
	w->pending = true;
	req_submit(w->store, &w->req);
}

static void walk_got(struct req *req, int err)
{
	struct walk *w = req->user;
	unsigned ahead = !w->cur;

	w->pending = false;
	if (err)
		w->told = false;
	for (size_t i = 0; !err && i < w->got[ahead].count; i++)
		w->end[ahead] += w->got[ahead].at[i].len;
	w->ready(w);
}

int walk_init(struct walk *w, struct store *store)
{
	w->store = store;
	w->told = store->info.extents == CAP_NATIVE && store->info.size;
	if (!w->told)
		return 0;
	for (int i = 0; i < 2; i++) {
		w->buf[i] = calloc(REQ_EXTENTS_MAX, sizeof(*w->buf[i]));
		if (!w->buf[i]) {
			walk_done(w);
			return -ENOMEM;
		}
	}
	return 0;
}

void walk_done(struct walk *w)
{
	CHECK(!w->pending);
	for (int i = 0; i < 2; i++) {
		free(w->buf[i]);
		w->buf[i] = NULL;
	}
}

/* Makes buf[cur] cover off, if that is known. */
static bool walk_turn(struct walk *w, uint64_t off)
{
	unsigned ahead = !w->cur;

	if (w->pending)
		return false;
	if (off < w->start[ahead] || off >= w->end[ahead]) {
		walk_fetch(w, off);
		return false;
	}
	w->cur = ahead;
	w->at = 0;
	w->at_off = w->start[ahead];
	if (w->end[ahead] < w->store->info.size)
		walk_fetch(w, w->end[ahead]);
	return true;
}

bool walk_at(struct walk *w, uint64_t off, uint64_t *ret_len, bool *ret_zero)
{
	const struct extents *got;

	CHECK(off < w->store->info.size);
	while (w->told && (off < w->start[w->cur] || off >= w->end[w->cur]))
		if (!walk_turn(w, off))
			return false;
	if (!w->told) {
		*ret_zero = false;
		*ret_len = w->store->info.size - off;
		return !w->pending;
	}
	got = &w->got[w->cur];
	if (off < w->at_off) {
		w->at = 0;
		w->at_off = w->start[w->cur];
	}
	while (w->at_off + got->at[w->at].len <= off) {
		w->at_off += got->at[w->at++].len;
		CHECK(w->at < got->count);
	}
	*ret_zero = got->at[w->at].zero;
	*ret_len = w->at_off + got->at[w->at].len - off;
	return true;
}
