/* SPDX-License-Identifier: Apache-2.0 */
/*
 * powercut: keeps what is written in memory and passes it on when it is flushed, as a disk's cache
 * does, or a server's; and then, when it is told to, the power is cut: what was not flushed is
 * gone, and a new instance answers from there on. A test of whoever is above it: nobody may rely
 * on what was not flushed.
 *
 *   WRITE   kept, and acknowledged at once; when nothing more can be kept, the oldest is passed on
 *   READ    from below, with what is kept laid over it
 *   FLUSH   what is kept is passed on, in the order in which it came, then the FLUSH
 *
 * ZERO and FUA are made of these by store.c; TRIM does nothing; EXTENTS: all of it is data.
 *
 * A cut drops everything that is kept; with a seed, some of it: each write is gone, or torn at a
 * sector, or survives, whatever came after it. What survives stays in the log (which is the same
 * as having reached the disk, for whoever reads) and is safe from the next cut. Requests in flight
 * are carried on, as a client sends them again to a server that was started anew; they are answered
 * by the new instance.
 *
 * Invariants: the log is a ring of entries, oldest first, and their bytes lie in the same order in
 * a ring of bytes; one entry at most is on its way down, the oldest one. A READ that was on its way
 * while an entry it overlaps left the log is asked for again: it may have seen what was there
 * before. A FLUSH waits (in `flushing`) while entries that it covers are in the log. A request that
 * comes when a cut is due waits for it (in `held`), so the store is not closed before.
 *
 * Locking: none; loop thread only.
 */
#include "stage/stage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "store/sub.h"

#define SECTOR 512u
#define CHANCE_GONE 500000u /* by seed, in a million */
#define CHANCE_TORN 250000u

struct entry {
	struct range range; /* length 0: dropped */
	size_t at;	    /* of its first byte, in the ring of bytes */
	size_t room;	    /* what is free again when it has left, a gap before it included */
	bool safe;	    /* no cut takes it any more */
};

struct powercut {
	struct store store;
	struct sub_pool pool;
	struct entry *log; /* POWERCUT_WRITES_MAX */
	uint8_t *bytes;
	size_t keep, used, bytes_end; /* of bytes */
	uint64_t first, end; /* entries, counted from the start; modulo gives the place */
	struct req push;     /* of the oldest entry */
	bool pushing;
	struct list reading, flushing; /* subs */
	struct list waiting;	       /* WRITEs that do not fit, by req.link */
	struct list held;	       /* requests that wait for the cut */
	struct post cut_post;
	bool cut_due, seeded;
	struct rng rng;
	uint64_t after, times, seen;
	uint64_t cuts, gone, torn, survived; /* for status */
};

static void push_next(struct powercut *p);

static struct powercut *powercut_of(struct store *store)
{
	return CONTAINER_OF(store, struct powercut, store);
}

static struct entry *entry_at(struct powercut *p, uint64_t n)
{
	CHECK(n >= p->first && n < p->end);
	return &p->log[n % POWERCUT_WRITES_MAX];
}

/* Whoever reads from below may have missed these bytes. */
static void readers_mark(struct powercut *p, struct range r)
{
	LIST_EACH(k, &p->reading) {
		struct sub *sub = LIST_ENTRY(k, struct sub, link);

		if (range_overlaps(sub->req.range, r))
			sub->word[0] = true;
	}
}

/* ---- the log ---- */

/* False: it does not fit now. */
static bool log_add(struct powercut *p, const struct req *req)
{
	size_t len = (size_t)req->range.len, at = p->bytes_end, room = len;

	if (p->end - p->first == POWERCUT_WRITES_MAX)
		return false;
	if (at + len > p->keep) { /* its bytes stay together */
		room += p->keep - at;
		at = 0;
	}
	if (p->used + room > p->keep)
		return false;
	memcpy(p->bytes + at, req->data.base, len);
	p->log[p->end++ % POWERCUT_WRITES_MAX] =
		(struct entry){ .range = req->range, .at = at, .room = room };
	p->used += room;
	p->bytes_end = at + len;
	return true;
}

static void log_pop(struct powercut *p)
{
	struct entry *x = entry_at(p, p->first);

	CHECK(p->used >= x->room);
	p->used -= x->room;
	p->first++;
	if (p->first == p->end)
		p->used = p->bytes_end = 0;
}

static void log_overlay(struct powercut *p, struct req *req)
{
	for (uint64_t n = p->first; n < p->end; n++) {
		const struct entry *x = entry_at(p, n);
		struct range cut = range_cut(req->range, x->range);

		if (!cut.len)
			continue;
		memcpy(req->data.base + (cut.off - req->range.off),
		       p->bytes + x->at + (cut.off - x->range.off), (size_t)cut.len);
		req->ret_zero = false;
	}
}

/* ---- passing on ---- */

static void flush_done(struct req *req, int err)
{
	struct sub *sub = req->user;

	/* By the instance that is there now: after a cut, whoever wrote before must look again. */
	sub->req.ret_instance = sub->pool->stage->info.instance;
	sub_finish(sub, err);
}

static void flush_ready(struct sub *sub, int err)
{
	const struct store *store = sub->pool->stage;

	if (!err && store->next->info.flush == CAP_NATIVE)
		sub_send(sub, flush_done);
	else
		flush_done(&sub->req, err);
}

/* FLUSHes that have nothing to wait for any more; with an error, all of them. */
static void flushes_go_on(struct powercut *p, int err)
{
	struct list ready;
	struct link *k;

	list_init(&ready);
	LIST_EACH(c, &p->flushing) {
		if (!err && LIST_ENTRY(c, struct sub, link)->word[0] > p->first)
			continue;
		link_remove(c);
		list_push_back(&ready, c);
	}
	while ((k = list_pop_front(&ready)))
		flush_ready(LIST_ENTRY(k, struct sub, link), err);
}

static void write_end(struct powercut *p, struct req *req, int err)
{
	req->ret_instance = p->store.info.instance;
	req_done(req, err);
}

/* WRITEs that fit now; with an error, all of them. */
static void writes_go_on(struct powercut *p, int err)
{
	struct link *k;

	while ((k = list_first(&p->waiting))) {
		struct req *req = LIST_ENTRY(k, struct req, link);

		if (!err && !log_add(p, req))
			return;
		link_remove(k);
		write_end(p, req, err);
	}
}

static void push_done(struct req *req, int err)
{
	struct powercut *p = CONTAINER_OF(req, struct powercut, push);

	CHECK(p->pushing);
	p->pushing = false;
	if (p->store.aborting)
		err = -ESHUTDOWN;
	if (!err) {
		readers_mark(p, req->range);
		log_pop(p);
	}
	/* What could not be passed on is kept, and tried again when somebody flushes again. */
	flushes_go_on(p, err);
	writes_go_on(p, err);
	push_next(p);
}

/* The oldest entry, if somebody waits for it. */
static void push_next(struct powercut *p)
{
	struct entry *x;

	if (p->pushing || p->store.aborting)
		return;
	while (p->first < p->end && !entry_at(p, p->first)->range.len)
		log_pop(p);
	flushes_go_on(p, 0);
	writes_go_on(p, 0);
	if (p->pushing || p->first == p->end ||
	    (list_empty(&p->flushing) && list_empty(&p->waiting)))
		return;
	x = entry_at(p, p->first);
	if (!x->range.len) {
		push_next(p);
		return;
	}
	p->pushing = true;
	p->push = (struct req){
		.op = REQ_WRITE,
		.range = x->range,
		.data = { p->bytes + x->at, (size_t)x->range.len },
		.done = push_done,
	};
	req_submit(p->store.next, &p->push);
}

/* ---- the cut ---- */

/* One of its ends survives. */
static void entry_tear(struct powercut *p, struct entry *x)
{
	uint64_t sector = MAX(SECTOR, p->store.info.align), end = range_end(x->range);
	uint64_t at = align_down(x->range.off + rng_below(&p->rng, x->range.len), sector);

	if (at <= x->range.off) {
		x->range.len = 0;
	} else if (rng_chance(&p->rng, 500000)) {
		x->range.len = at - x->range.off;
	} else {
		x->at += at - x->range.off;
		x->range = range_between(at, end);
	}
}

static void entry_cut(struct powercut *p, struct entry *x)
{
	struct range whole = x->range;

	if (!p->seeded || rng_chance(&p->rng, CHANCE_GONE)) {
		x->range.len = 0;
		p->gone++;
	} else if (rng_chance(&p->rng, CHANCE_TORN * 2)) {
		entry_tear(p, x);
		p->torn++;
	} else {
		p->survived++;
	}
	x->safe = true;
	readers_mark(p, whole);
}

static void cut(struct powercut *p)
{
	/* The one on its way down is as good as there. */
	for (uint64_t n = p->first + p->pushing; n < p->end; n++)
		if (!entry_at(p, n)->safe)
			entry_cut(p, entry_at(p, n));
	if (p->pushing)
		entry_at(p, p->first)->safe = true;
	p->cuts++;
	p->store.info.instance = rng_next(&loop_env(p->store.loop)->rng) | 1;
	log_info(&loop_env(p->store.loop)->log, "powercut: cut number %llu",
		 (unsigned long long)p->cuts);
	store_emit(&p->store, STORE_RESTARTED);
	push_next(p);
}

/* ---- requests ---- */

static void read_done(struct req *req, int err)
{
	struct sub *sub = req->user;
	struct powercut *p = powercut_of(sub->pool->stage);

	link_remove(&sub->link);
	if (!err && sub->word[0] && !p->store.aborting) {
		sub->word[0] = false;
		list_push_back(&p->reading, &sub->link);
		sub_send(sub, read_done);
		return;
	}
	if (!err)
		log_overlay(p, req);
	req->ret_instance = p->store.info.instance;
	sub_finish(sub, err);
}

static void pass_done(struct req *req, int err)
{
	struct sub *sub = req->user;

	req->ret_instance = sub->pool->stage->info.instance;
	sub_finish(sub, err);
}

/* READ, FLUSH, PREFETCH. */
static void powercut_start(struct store *store, struct req *parent)
{
	struct powercut *p = powercut_of(store);
	struct sub *sub = sub_get(&p->pool, parent);

	CHECK(sub);
	switch (parent->op) {
	case REQ_READ:
		sub->word[0] = false;
		list_push_back(&p->reading, &sub->link);
		sub_send(sub, read_done);
		break;
	case REQ_FLUSH:
		sub->word[0] = p->end; /* all before this one */
		list_push_back(&p->flushing, &sub->link);
		push_next(p);
		break;
	default:
		CHECK(parent->op == REQ_PREFETCH);
		sub_send(sub, pass_done);
		break;
	}
}

static void request_begin(struct powercut *p, struct req *req)
{
	if (p->store.aborting) {
		write_end(p, req, -ESHUTDOWN);
	} else if (req->op != REQ_WRITE) {
		sub_pool_submit(&p->pool, req);
	} else if (list_empty(&p->waiting) && log_add(p, req)) {
		write_end(p, req, 0);
	} else {
		list_push_back(&p->waiting, &req->link);
		push_next(p);
	}
}

static void cut_run(struct post *post)
{
	struct powercut *p = CONTAINER_OF(post, struct powercut, cut_post);
	struct list held;
	struct link *k;

	p->cut_due = false;
	list_init(&held);
	list_splice_back(&held, &p->held);
	if (!p->store.aborting)
		cut(p);
	while ((k = list_pop_front(&held)))
		request_begin(p, LIST_ENTRY(k, struct req, link));
}

static void powercut_submit(struct store *store, struct req *req)
{
	struct powercut *p = powercut_of(store);

	if (!p->cut_due && p->after && ++p->seen >= p->after && p->cuts < p->times) {
		p->cut_due = true;
		p->seen = 0;
		p->cut_post.run = cut_run;
		loop_defer(store->loop, &p->cut_post);
	}
	if (p->cut_due)
		list_push_back(&p->held, &req->link);
	else
		request_begin(p, req);
}

static void powercut_abort(struct store *store)
{
	struct powercut *p = powercut_of(store);

	sub_pool_fail_waiting(&p->pool, -ESHUTDOWN);
	if (!p->pushing) /* else they end when that has ended */
		flushes_go_on(p, -ESHUTDOWN);
	writes_go_on(p, -ESHUTDOWN);
}

static void powercut_free(struct powercut *p)
{
	sub_pool_done(&p->pool);
	free(p->log);
	free(p->bytes);
}

/* The last cut: what was not flushed is gone. */
static void powercut_close(struct store *store)
{
	struct powercut *p = powercut_of(store);

	CHECK(!p->pushing && !p->cut_due && list_empty(&p->reading) && list_empty(&p->flushing));
	powercut_free(p);
	store_closed(store);
}

static void powercut_status(struct store *store, char *buf, size_t len)
{
	struct powercut *p = powercut_of(store);

	snprintf(buf, len, "kept_bytes=%zu cuts=%llu gone=%llu torn=%llu survived=%llu", p->used,
		 (unsigned long long)p->cuts, (unsigned long long)p->gone,
		 (unsigned long long)p->torn, (unsigned long long)p->survived);
}

static const struct store_ops powercut_ops = {
	.name = "powercut",
	.submit = powercut_submit,
	.abort = powercut_abort,
	.close = powercut_close,
	.status = powercut_status,
};

bool stage_powercut_cut(struct store *store)
{
	while (store && store->ops != &powercut_ops)
		store = store->next;
	if (store)
		cut(powercut_of(store));
	return store != NULL;
}

static int powercut_options(struct powercut *p, struct spec_args *args,
			    const struct store_info *next)
{
	uint64_t keep = POWERCUT_KEEP_DEFAULT, seed = 0, same = 1;
	int r;

	p->times = UINT64_MAX;
	if ((r = spec_get_number(args, "after", 0, UINT64_MAX, &p->after)) ||
	    (r = spec_get_number(args, "times", 0, UINT64_MAX, &p->times)) ||
	    (r = spec_get_number(args, "seed", 0, UINT64_MAX, &seed)) ||
	    (r = spec_get_number(args, "seed", 0, UINT64_MAX, &same)) ||
	    (r = spec_get_size(args, "keep", &keep)) || (r = spec_options_end(args)))
		return r;
	p->seeded = seed == same; /* absent: both kept what they had */
	rng_init(&p->rng, seed);
	if (keep < STORE_ALIGN_MAX || keep > POWERCUT_KEEP_MAX)
		return spec_error(args->spec, args->part->at, args->e,
				  "keep must be from %llu KiB to %llu MiB", STORE_ALIGN_MAX / KIB,
				  POWERCUT_KEEP_MAX / MIB);
	p->keep = (size_t)keep;
	p->store.info = *next;
	/* An empty ring begins at 0, so that this fits when everything else has left. */
	p->store.info.len_max = (uint32_t)align_down(MIN(next->len_max, keep), next->align);
	p->store.info.fua = p->store.info.zero = p->store.info.trim = p->store.info.extents =
		CAP_NONE;
	p->store.info.flush = CAP_NATIVE;
	return 0;
}

int stage_powercut_open(struct store **ret, const struct store_open *how, struct spec_args *args,
			struct store *next)
{
	struct powercut *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return err_sys(args->e, -ENOMEM, "the powercut stage");
	r = powercut_options(p, args, &next->info);
	if (r)
		goto out;
	p->log = calloc(POWERCUT_WRITES_MAX, sizeof(*p->log));
	p->bytes = aligned_alloc(PAGE_BYTES, align_up(p->keep, PAGE_BYTES));
	if (!p->log || !p->bytes ||
	    sub_pool_init(&p->pool, &p->store, STAGE_REQS_MAX, 0, powercut_start)) {
		r = err_sys(args->e, -ENOMEM, "the powercut stage");
		goto out;
	}
	list_init(&p->reading);
	list_init(&p->flushing);
	list_init(&p->waiting);
	list_init(&p->held);
	p->store.info.instance = rng_next(&loop_env(how->loop)->rng) | 1;
	store_init(&p->store, &powercut_ops, how->loop, next);
	*ret = &p->store;
	return 0;
out:
	powercut_free(p);
	free(p);
	return r;
}
