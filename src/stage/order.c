/* SPDX-License-Identifier: Apache-2.0 */
/*
 * order: overlapping requests, of which at least one changes data, are carried out in the order in
 * which they were submitted; all others stay concurrent. Here, and nowhere else, is the answer to
 * "two writes to one place are in flight: which one wins?" (the later one).
 *
 * A request is one entry, from its start until its completion:
 *
 *   start ── no earlier entry stands against it ───▶ sent ── done ─▶ gone, those behind it are told
 *      └── `blockers` of them do ──▶ waits ── the last of them done ──┘
 *
 *   READ EXTENTS        wait for earlier overlapping WRITE, ZERO, TRIM
 *   WRITE ZERO TRIM     wait for earlier overlapping requests of any of these kinds
 *   FLUSH               waits for nothing: it covers what had completed before it was submitted,
 *                       and that is no entry any more. Waiting for what is merely in flight
 *                       would promise more than the contract does.
 *   PREFETCH            waits for nothing: it changes nothing and returns nothing
 *
 * A failed request lets those behind it go on: order is promised, not a transaction. Whoever
 * repeats a failed write (the retry stage) must stand below this stage, not above it; then the
 * repetition still holds its place.
 *
 * The entries lie side by side in an array without holes and are looked through one by one: at most
 * ORDER_REQS_MAX of them, about a microsecond for each request when all are in use. Then further
 * requests wait in a queue of this stage's own, first come first served (the pool's queue sorts by
 * urgency, and would let a later write overtake an earlier one to the same place); an urgent
 * request passes those before it with which it has no conflict.
 *
 * Invariants: when the queue is not empty, no entry is free. Blockers of an entry = earlier entries
 * (lower seq) that conflict with it; an entry is with the next store if and only if it has none.
 *
 * Locking: none, everything runs on the loop's thread.
 */
#include "stage/stage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/limits.h"
#include "store/sub.h"

struct entry {
	uint64_t start, end;
	uint64_t seq;
	struct sub *sub;
	uint32_t blockers;
	bool changes;
};

struct order {
	struct store store;
	struct sub_pool pool;
	struct entry entry[ORDER_REQS_MAX];
	size_t count;
	uint64_t seq;
	struct list queue; /* requests without an entry, by link */
	uint64_t waited; /* requests that had to wait, for status */
};

static struct order *order_of(struct store *store)
{
	return CONTAINER_OF(store, struct order, store);
}

static bool conflict(const struct entry *a, const struct entry *b)
{
	return a->start < b->end && b->start < a->end && (a->changes || b->changes);
}

static void order_done(struct req *req, int err);
static void order_finish(struct sub *sub, int err);

static void passed_done(struct req *req, int err)
{
	order_finish(req->user, err);
}

static bool is_entry(const struct req *req)
{
	return req->op != REQ_FLUSH && req->op != REQ_PREFETCH;
}

static struct entry entry_of(const struct req *req)
{
	return (struct entry){
		.start = req->range.off,
		.end = range_end(req->range),
		.changes = req_op_changes(req->op),
	};
}

/* A place in the pool is there, and nobody waits who must go first. */
static void order_start(struct order *o, struct req *parent)
{
	struct sub *sub = sub_get(&o->pool, parent);
	struct entry e;

	CHECK(sub && o->count < ORDER_REQS_MAX);
	if (!is_entry(parent)) {
		sub_send(sub, passed_done);
		return;
	}
	e = entry_of(parent);
	e.seq = ++o->seq;
	e.sub = sub;
	for (size_t i = 0; i < o->count; i++)
		e.blockers += conflict(&o->entry[i], &e);
	sub->word[0] = o->count;
	o->entry[o->count++] = e;
	if (e.blockers)
		o->waited++;
	else
		sub_send(sub, order_done);
}

static void order_queue(struct order *o, struct req *req)
{
	struct link *at = &o->queue.head;

	while (req->flags & REQ_URGENT && at->prev != &o->queue.head) {
		struct req *before = LIST_ENTRY(at->prev, struct req, link);
		struct entry a, b;

		if (before->flags & REQ_URGENT)
			break;
		if (is_entry(before) && is_entry(req)) {
			a = entry_of(before);
			b = entry_of(req);
			if (conflict(&a, &b))
				break;
		}
		at = at->prev;
	}
	link_insert_before(at, &req->link);
}

/* Completes what the sub served; its place goes to the next in the queue first. */
static void order_finish(struct sub *sub, int err)
{
	struct order *o = order_of(sub->pool->stage);
	struct link *k;

	sub_finish(sub, err);
	while (o->pool.idle_count && (k = list_pop_front(&o->queue)))
		order_start(o, LIST_ENTRY(k, struct req, link));
}

/* Takes out entry i; the last one gets its place. */
static struct entry entry_take(struct order *o, size_t i)
{
	struct entry e;

	CHECK(i < o->count);
	e = o->entry[i];
	CHECK(e.sub->word[0] == i);
	o->entry[i] = o->entry[--o->count];
	o->entry[i].sub->word[0] = i;
	return e;
}

static void order_done(struct req *req, int err)
{
	struct sub *sub = req->user;
	struct order *o = order_of(sub->pool->stage);
	struct entry e = entry_take(o, (size_t)sub->word[0]);

	CHECK(e.sub == sub && !e.blockers);
	for (size_t i = 0; i < o->count; i++) {
		struct entry *other = &o->entry[i];

		if (other->seq < e.seq || !conflict(other, &e))
			continue;
		CHECK(other->blockers);
		if (!--other->blockers)
			sub_send(other->sub, order_done);
	}
	order_finish(sub, err);
}

static void order_submit(struct store *store, struct req *req)
{
	struct order *o = order_of(store);

	if (list_empty(&o->queue) && o->pool.idle_count)
		order_start(o, req);
	else
		order_queue(o, req);
}

/* The queue is ours and not the pool's: nobody ever waits there. */
static void order_pool_start(struct store *store, struct req *parent)
{
	(void)store;
	(void)parent;
	CHECK(false);
}

/* Those that wait have not been carried out. What waits for them waits too, so that nobody is left
 * to be told. */
static void order_abort(struct store *store)
{
	struct order *o = order_of(store);
	struct list failed;
	struct link *k;

	list_init(&failed);
	list_splice_back(&failed, &o->queue);
	while ((k = list_pop_front(&failed)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
	for (size_t i = o->count; i-- > 0;)
		if (o->entry[i].blockers)
			list_push_front(&failed, &entry_take(o, i).sub->link);
	while ((k = list_pop_front(&failed)))
		sub_finish(LIST_ENTRY(k, struct sub, link), -ESHUTDOWN);
}

static void order_close(struct store *store)
{
	struct order *o = order_of(store);

	CHECK(!o->count && list_empty(&o->queue));
	sub_pool_done(&o->pool);
	store_closed(store);
}

static void order_status(struct store *store, char *buf, size_t len)
{
	struct order *o = order_of(store);

	snprintf(buf, len, "inflight=%zu waited=%llu", o->count, (unsigned long long)o->waited);
}

static const struct store_ops order_ops = {
	.name = "order",
	.submit = order_submit,
	.abort = order_abort,
	.close = order_close,
	.status = order_status,
};

int stage_order_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct order *o;
	int r = spec_options_end(args);

	if (r)
		return r;
	o = calloc(1, sizeof(*o));
	if (!o)
		return err_sys(args->e, -ENOMEM, "the order stage");
	r = sub_pool_init(&o->pool, &o->store, ORDER_REQS_MAX, 0, order_pool_start);
	if (r) {
		free(o);
		return err_sys(args->e, r, "the order stage");
	}
	list_init(&o->queue);
	store_init(&o->store, &order_ops, how->loop, next);
	*ret = &o->store;
	return 0;
}
