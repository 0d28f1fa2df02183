/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one wrapper around every store: what goes into a store and what comes out of it passes here,
 * so that the stores contain no defensive code.
 *
 * Way of a request:
 *
 *   req_submit ── refused or empty ─────────────────────────────────────┐
 *       │── the store has it natively ── ops->submit ── req_done ───────┤
 *       └── emulated ── emul_start ── own requests ── emul_step ... end ┴─ req_complete ── done()
 *
 * A request is SUBMITTING until req_submit() is about to return; a completion that comes meanwhile
 * makes it DEFERRED, and done() follows from the loop. So done() never runs inside its own
 * req_submit(), and a row of stores that all answer at once does not grow the stack.
 *
 * Emulation uses requests of the store's own, struct store_emul, which go to the same store's
 * ops->submit. They are told by their done function, are not counted, and belong to a parent that
 * is.
 *
 * Invariants: pending = requests between req_submit() and their done(). A store is freed only when
 * pending is 0 and store_close() was called; that decision is taken in close_run(), from the loop,
 * never below a callback.
 *
 * Locking: none; everything here runs on the thread of the store's loop.
 */
#include "store/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* how often a durable write is repeated because the far side was restarted meanwhile */
#define EMUL_TRIES_MAX 4u

static _Alignas(PAGE_BYTES) const uint8_t zeros[STORE_ZERO_PIECE];

static void emul_done(struct req *req, int err);
static void emul_next(struct store_emul *e);
static void emul_start(struct store *store, struct req *parent);
static void close_run(struct post *post);

const char *req_op_name(enum req_op op)
{
	static const char *const names[REQ_OPS] = {
		[REQ_READ] = "read",   [REQ_WRITE] = "write",	  [REQ_FLUSH] = "flush",       [REQ_ZERO] = "zero",
		[REQ_TRIM] = "trim",   [REQ_EXTENTS] = "extents", [REQ_PREFETCH] = "prefetch",
	};

	CHECK(op < REQ_OPS);
	return names[op];
}

/* ---- opening ---- */

static void cap_settle(enum cap *cap, bool emulated)
{
	if (*cap != CAP_NATIVE)
		*cap = emulated ? CAP_EMULATED : CAP_NONE;
}

void store_init(struct store *store, const struct store_ops *ops, struct loop *loop,
		struct store *next)
{
	struct store_info *info = &store->info;

	CHECK(ops && ops->submit && loop);
	CHECK(!next || (!next->above && !next->closing && next->loop == loop));
	if (next && !info->size && !info->len_max && !info->align)
		*info = next->info;
	if (!info->align)
		info->align = 1;
	if (!info->len_max)
		info->len_max = REQ_LEN_MAX;
	if (!info->chunk)
		info->chunk = CHUNK_DEFAULT;
	CHECK(info->size <= RESOURCE_SIZE_MAX);
	CHECK(is_pow2(info->align) && info->align <= STORE_ALIGN_MAX);
	CHECK(info->len_max <= REQ_LEN_MAX && info->len_max % info->align == 0);
	CHECK(is_pow2(info->chunk));
	cap_settle(&info->flush, false);
	cap_settle(&info->fua, info->flush == CAP_NATIVE);
	cap_settle(&info->zero, true);
	cap_settle(&info->trim, true);
	cap_settle(&info->extents, true);
	cap_settle(&info->prefetch, true);
	store->ops = ops;
	store->loop = loop;
	store->next = next;
	store->close_post.run = close_run;
	list_init(&store->emul_idle);
	list_init(&store->emul_waiting);
	for (size_t i = 0; i < STORE_EMUL_MAX; i++)
		list_push_back(&store->emul_idle, &store->emul[i].link);
	if (next)
		next->above = store;
}

/* ---- completing ---- */

static bool is_emul(const struct req *req)
{
	return req->done == emul_done;
}

static void why_keep(struct store *store, struct req *req)
{
	if (!req->ret_why || req->ret_why == store->last_why)
		return;
	snprintf(store->last_why, sizeof(store->last_why), "%s", req->ret_why);
	req->ret_why = store->last_why;
}

static void req_complete(struct req *req, int err)
{
	struct store *store = req->store;

	if (!is_emul(req)) {
		struct store_counts *c = &store->counts[req->op];

		if (err) {
			c->failed++;
			store->last_err = err;
			if (!req->ret_why)
				store->last_why[0] = '\0';
			why_keep(store, req);
		} else {
			c->done++;
			c->bytes += req->range.len;
		}
		hist_add(&c->latency, loop_now_fresh(store->loop) - req->start_ns);
		if (store->trace)
			store->trace(store->trace_arg, store, req, true);
		CHECK(store->pending);
		store->pending--;
		if (!store->pending && store->closing)
			loop_defer(store->loop, &store->close_post);
	}
	req->state = REQ_IDLE;
	req->done(req, err);
}

static void req_deferred(struct post *post)
{
	struct req *req = CONTAINER_OF(post, struct req, post);

	CHECK(req->state == REQ_DEFERRED);
	req_complete(req, req->err);
}

/* The store learned only from the request that it cannot do this (a file system without holes,
 * say). */
static bool emulate_late(struct req *req)
{
	struct store_info *info = &req->store->info;
	enum cap *cap = req->op == REQ_ZERO	? &info->zero
			: req->op == REQ_TRIM	? &info->trim
			: req->op == REQ_EXTENTS ? &info->extents
			: req->op == REQ_PREFETCH ? &info->prefetch
						  : NULL;

	if (!cap || is_emul(req) || req->store->aborting)
		return false;
	*cap = CAP_EMULATED;
	emul_start(req->store, req);
	return true;
}

/* Ends a request; `native` when the store itself said so, and not the wrapper. */
static void req_end(struct req *req, int err, bool native)
{
	/* else: completed twice */
	CHECK(req->state == REQ_SUBMITTING || req->state == REQ_PENDING);
	CHECK(err <= 0);
	if (native && err == -EOPNOTSUPP && emulate_late(req))
		return;
	if (req->state == REQ_SUBMITTING) {
		why_keep(req->store, req);
		req->state = REQ_DEFERRED;
		req->err = err;
		req->post = (struct post){ .run = req_deferred };
		loop_defer(req->store->loop, &req->post);
		return;
	}
	req_complete(req, err);
}

void req_done(struct req *req, int err)
{
	req_end(req, err, true);
}

/* ---- emulating ---- */

static void emul_end(struct store_emul *e, int err)
{
	struct store *store = e->req.store;
	struct req *parent = e->parent;
	struct link *k;

	parent->ret_instance = e->instance;
	parent->ret_why = err ? e->req.ret_why : NULL;
	e->parent = NULL;
	list_push_back(&store->emul_idle, &e->link);
	/* Those that wait when the store is aborted are failed by emul_abort(). */
	k = store->aborting ? NULL : list_pop_front(&store->emul_waiting);
	if (k)
		emul_start(store, LIST_ENTRY(k, struct req, link));
	req_end(parent, err, false);
}

/* Sends the emulation's request to the store that it belongs to. */
static void emul_send(struct store_emul *e)
{
	struct req *req = &e->req;

	req->done = emul_done;
	req->start_ns = loop_now_fresh(req->store->loop);
	req->ret_instance = 0;
	req->ret_why = NULL;
	req->ret_zero = false;
	req->link = (struct link){ 0 };
	req->state = REQ_SUBMITTING;
	req->store->ops->submit(req->store, req);
	if (req->state == REQ_SUBMITTING)
		req->state = REQ_PENDING;
}

static bool emul_by_writes(const struct store_emul *e)
{
	return e->parent->op == REQ_ZERO && e->req.store->info.zero != CAP_NATIVE;
}

static bool emul_flushes(const struct store_emul *e)
{
	return e->parent->flags & REQ_FUA && e->req.store->info.fua != CAP_NATIVE;
}

static void emul_next(struct store_emul *e)
{
	struct store *store = e->req.store;
	struct req *req = &e->req, *parent = e->parent;

	if (store->aborting) {
		emul_end(e, -ESHUTDOWN);
		return;
	}
	req->flags = parent->flags;
	if (emul_flushes(e))
		req->flags &= ~(uint32_t)REQ_FUA;
	if (e->flushing) {
		req->op = REQ_FLUSH;
		req->range = range_of(0, 0);
		req->data = (struct iobuf){ 0 };
	} else if (emul_by_writes(e)) {
		uint64_t piece_max = MIN(STORE_ZERO_PIECE, (uint64_t)store->info.len_max);
		uint64_t piece = MIN(parent->range.len - e->at, piece_max);

		req->op = REQ_WRITE;
		req->range = range_of(parent->range.off + e->at, piece);
		req->data = (struct iobuf){ (uint8_t *)(uintptr_t)zeros, (size_t)piece };
	} else {
		req->op = parent->op;
		req->range = parent->range;
		req->data = parent->data;
	}
	emul_send(e);
}

static void emul_done(struct req *req, int err)
{
	struct store_emul *e = CONTAINER_OF(req, struct store_emul, req);
	uint64_t instance = req->ret_instance;

	if (err == -EOPNOTSUPP && req->op == REQ_ZERO) {
		req->store->info.zero = CAP_EMULATED; /* found out late: by writes, from here on */
		emul_next(e);
		return;
	}
	if (err) {
		emul_end(e, err);
		return;
	}
	if (e->flushing) {
		if (instance == e->instance) {
			emul_end(e, 0);
			return;
		}
		/* Another instance flushed than the one that took the data: the data may be gone.
		 */
		if (++e->tries == EMUL_TRIES_MAX) {
			emul_end(e, -EIO);
			return;
		}
		e->at = 0;
		e->instance = 0;
		e->flushing = false;
		emul_next(e);
		return;
	}
	if (!e->at)
		e->instance = instance;
	else if (instance != e->instance)
		/* Pieces went to two instances: only a flush answered by both would do, and there
		 * is none. */
		e->instance = UINT64_MAX;
	e->at += req->range.len;
	if (e->at < e->parent->range.len) {
		emul_next(e);
	} else if (emul_flushes(e)) {
		e->flushing = true;
		emul_next(e);
	} else {
		emul_end(e, 0);
	}
}

/* EXTENTS, TRIM and PREFETCH end here; ZERO and FUA become requests of our own, when one is free.
 */
static void emul_start(struct store *store, struct req *parent)
{
	struct store_emul *e;
	struct link *k;

	switch (parent->op) {
	case REQ_EXTENTS:
		parent->extents->at[0] = (struct extent){ .len = parent->range.len, .zero = false };
		parent->extents->count = 1;
		req_end(parent, 0, false);
		return;
	case REQ_TRIM:
	case REQ_PREFETCH:
		req_end(parent, 0, false);
		return;
	default:
		break;
	}
	CHECK(parent->op == REQ_ZERO || parent->op == REQ_WRITE);
	k = list_pop_front(&store->emul_idle);
	if (!k) {
		link_remove(&parent->link);
		list_push_back(&store->emul_waiting, &parent->link);
		return;
	}
	e = LIST_ENTRY(k, struct store_emul, link);
	*e = (struct store_emul){ .parent = parent, .req.store = store };
	emul_next(e);
}

static enum cap req_cap(const struct store_info *info, const struct req *req)
{
	switch (req->op) {
	case REQ_FLUSH:
		return info->flush;
	case REQ_TRIM:
		return info->trim;
	case REQ_EXTENTS:
		return info->extents;
	case REQ_PREFETCH:
		return info->prefetch;
	case REQ_ZERO:
		if (info->zero != CAP_NATIVE)
			return CAP_EMULATED;
		/* fall through */
	case REQ_WRITE:
		return req->flags & REQ_FUA ? info->fua : CAP_NATIVE;
	default:
		return CAP_NATIVE;
	}
}

/* ---- submitting ---- */

#define REQ_ANSWERED 1 /* valid, and there is nothing to do */

/* The only place where requests are validated: the stores rely on it. */
static int req_check(const struct store *store, const struct req *req)
{
	const struct store_info *info = &store->info;
	struct range r = req->range;

	if (store->aborting)
		return -ESHUTDOWN;
	if (req->op >= REQ_OPS || req->flags & ~(uint32_t)(REQ_FUA | REQ_URGENT | REQ_BACKGROUND))
		return -EINVAL;
	if (req_op_changes(req->op) && info->read_only)
		return -EROFS;
	if (req->op == REQ_FLUSH) {
		if (info->flush == CAP_NATIVE)
			return 0;
		return info->read_only ? REQ_ANSWERED : -EOPNOTSUPP;
	}
	if (!range_within(r, info->size))
		return -EINVAL;
	if (req->op == REQ_EXTENTS && (!req->extents || !req->extents->at || !req->extents->max))
		return -EINVAL;
	if (!r.len)
		return REQ_ANSWERED;
	if (req->op == REQ_READ || req->op == REQ_WRITE)
		if (!req->data.base || req->data.len < r.len || r.len > info->len_max)
			return -EINVAL;
	if (info->align > 1 && req->op != REQ_EXTENTS && req->op != REQ_PREFETCH)
		if (r.off % info->align || (r.len % info->align && range_end(r) != info->size))
			return -EINVAL;
	if (req_op_changes(req->op) && req->flags & REQ_FUA && req->op != REQ_TRIM &&
	    info->fua == CAP_NONE)
		return -EOPNOTSUPP;
	return 0;
}

void req_submit(struct store *store, struct req *req)
{
	int r;

	CHECK(!store->closing);
	CHECK(req->state != REQ_SUBMITTING && req->state != REQ_PENDING &&
	      req->state != REQ_DEFERRED);
	CHECK(req->done);
	req->store = store;
	req->state = REQ_SUBMITTING;
	req->ret_instance = 0;
	req->ret_why = NULL;
	req->ret_zero = false;
	req->err = 0;
	req->link = (struct link){ 0 };
	req->start_ns = loop_now_fresh(store->loop);
	if (req->op == REQ_EXTENTS && req->extents)
		req->extents->count = 0;
	store->pending++;
	r = req_check(store, req);
	if (req->op >= REQ_OPS)
		req->op = REQ_READ; /* so that the counts have a place for it */
	store->counts[req->op].started++;
	if (store->trace)
		store->trace(store->trace_arg, store, req, false);
	if (r)
		req_end(req, r == REQ_ANSWERED ? 0 : r, false);
	else if (req_cap(&store->info, req) == CAP_NATIVE)
		store->ops->submit(store, req);
	else
		emul_start(store, req);
	if (req->state == REQ_SUBMITTING)
		req->state = REQ_PENDING;
}

/* ---- events, abort, close ---- */

void store_emit(struct store *store, enum store_event event)
{
	for (struct store *s = store; s; s = s->above) {
		if (s != store && event == STORE_RESTARTED)
			s->info.instance = s->next->info.instance;
		if (s->on_event)
			s->on_event(s->on_event_arg, s, event);
	}
}

static void emul_abort(struct store *store)
{
	struct list failed;
	struct link *k;

	list_init(&failed);
	list_splice_back(&failed, &store->emul_waiting);
	while ((k = list_pop_front(&failed)))
		req_end(LIST_ENTRY(k, struct req, link), -ESHUTDOWN, false);
}

void store_abort(struct store *store)
{
	/* All are marked first: what one of them fails must not be carried out by the next. */
	for (struct store *s = store; s && !s->aborting; s = s->next)
		s->aborting = true;
	for (struct store *s = store; s && !s->abort_told; s = s->next) {
		s->abort_told = true;
		emul_abort(s);
		if (s->ops->abort)
			s->ops->abort(s);
	}
}

static void close_run(struct post *post)
{
	struct store *store = CONTAINER_OF(post, struct store, close_post);

	CHECK(store->closing && !store->pending);
	CHECK(list_empty(&store->emul_waiting));
	if (store->ops->close)
		store->ops->close(store);
	else
		store_closed(store);
}

void store_close(struct store *store, void (*closed)(void *arg), void *arg)
{
	if (!store)
		return;
	CHECK(!store->closing && !store->above);
	store->closing = true;
	store->closed = closed;
	store->closed_arg = arg;
	if (!store->pending)
		loop_defer(store->loop, &store->close_post);
}

void store_closed(struct store *store)
{
	struct store *next = store->next;
	void (*closed)(void *arg) = store->closed;
	void *arg = store->closed_arg;

	CHECK(store->closing && !store->pending);
	free(store);
	if (next) {
		next->above = NULL;
		store_close(next, closed, arg);
	} else if (closed) {
		closed(arg);
	}
}
