/* SPDX-License-Identifier: Apache-2.0 */
/*
 * callbacks: - a store made of the user's own functions (struct remora_callbacks of the public
 * header): read, write, flush and size, which may block, and so run on the loop's pool of threads.
 * Everything else is emulated by store.c.
 *
 * As many calls run at a time as the user's `threads` says; other requests wait here, the urgent
 * ones in front.
 *
 * Invariants: a call is idle (in c->idle), or has a request and is in flight. A request waits only
 * while no call is idle.
 *
 * Locking: loop thread only, except for call_run(), which runs on the pool and touches its request
 * and the user's functions.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "back/back.h"
#include "io/pool.h"
#include "remora/remora.h"
#include "store/sub.h"

struct call {
	struct work work;
	struct callbacks *owner;
	struct req *req; /* NULL = idle */
	struct link link;
};

struct callbacks {
	struct store store;
	struct remora_callbacks fn;
	void *arg;
	struct list idle, waiting; /* calls; requests */
	size_t count;
	struct call call[];
};

static int call_run(struct work *work)
{
	struct call *call = CONTAINER_OF(work, struct call, work);
	const struct callbacks *c = call->owner;
	const struct req *req = call->req;
	int r;

	switch (req->op) {
	case REQ_READ:
		r = c->fn.read(c->arg, req->range.off, req->data.base, req->range.len);
		break;
	case REQ_WRITE:
		r = c->fn.write(c->arg, req->range.off, req->data.base, req->range.len);
		break;
	default:
		r = c->fn.flush(c->arg);
		break;
	}
	return r > 0 ? -EIO : r; /* the user's mistake: it has no meaning */
}

static void calls_start(struct callbacks *c)
{
	while (!list_empty(&c->idle) && !list_empty(&c->waiting)) {
		struct call *call = LIST_ENTRY(list_pop_front(&c->idle), struct call, link);

		call->req = LIST_ENTRY(list_pop_front(&c->waiting), struct req, link);
		pool_run(c->store.loop, &call->work);
	}
}

static void call_done(struct op *op, int res)
{
	struct call *call = CONTAINER_OF(op, struct call, work.op);
	struct callbacks *c = call->owner;
	struct req *req = call->req;

	call->req = NULL;
	list_push_back(&c->idle, &call->link);
	calls_start(c);
	/* Cancelled before it began, by callbacks_abort(); the user's functions may return what
	 * they like. */
	req_done(req, res == -ECANCELED && c->store.aborting ? -ESHUTDOWN : res);
}

static void callbacks_submit(struct store *store, struct req *req)
{
	struct callbacks *c = CONTAINER_OF(store, struct callbacks, store);

	if (req->op == REQ_FLUSH && !c->fn.flush) {
		req_done(req, 0);
		return;
	}
	req_queue(&c->waiting, req);
	calls_start(c);
}

static void callbacks_abort(struct store *store)
{
	struct callbacks *c = CONTAINER_OF(store, struct callbacks, store);
	struct list failed;
	struct link *k;

	list_init(&failed);
	list_splice_back(&failed, &c->waiting);
	for (size_t i = 0; i < c->count; i++)
		if (c->call[i].req)
			op_cancel(store->loop, &c->call[i].work.op);
	while ((k = list_pop_front(&failed)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
}

static const struct store_ops callbacks_ops = {
	.name = "callbacks",
	.submit = callbacks_submit,
	.abort = callbacks_abort,
};

static int callbacks_check(const struct store_open *how, struct spec_args *args, uint64_t *ret_size)
{
	const struct spec_part *part = args->part;
	const struct remora_callbacks *fn = how->callbacks;
	int r;

	if (*part->rest)
		return spec_error(args->spec, part->rest_at, args->e, "callbacks: takes nothing behind it");
	if (!fn)
		return spec_error(args->spec, part->at, args->e,
				  "callbacks: is for programs that give functions of their own");
	if (!fn->read || !fn->size)
		return err_set(args->e, -EINVAL, "callbacks: the functions read and size are required");
	r = fn->size(how->callbacks_arg, ret_size);
	if (r)
		return err_sys(args->e, r < 0 ? r : -EIO, "callbacks: the size function failed");
	if (*ret_size > RESOURCE_SIZE_MAX)
		return err_set(args->e, -EFBIG,
			       "callbacks: the size function gives %llu, larger than any resource can be",
			       (unsigned long long)*ret_size);
	return spec_options_end(args);
}

int back_callbacks_open(struct store **ret, const struct store_open *how, struct spec_args *args,
			struct store *next)
{
	struct callbacks *c;
	uint64_t size = 0;
	size_t count;
	int r;

	CHECK(!next);
	r = callbacks_check(how, args, &size);
	if (r)
		return r;
	count = MIN(MAX(how->callbacks->threads, 1u), BACK_OPS_MAX);
	c = calloc(1, sizeof(*c) + count * sizeof(c->call[0]));
	if (!c)
		return err_sys(args->e, -ENOMEM, "callbacks");
	c->fn = *how->callbacks;
	c->arg = how->callbacks_arg;
	c->count = count;
	list_init(&c->idle);
	list_init(&c->waiting);
	for (size_t i = 0; i < count; i++) {
		c->call[i].owner = c;
		c->call[i].work.call = call_run;
		c->call[i].work.op.done = call_done;
		list_push_back(&c->idle, &c->call[i].link);
	}
	c->store.info = (struct store_info){
		.size = size,
		.align = 1,
		.read_only = how->read_only || !c->fn.write,
		.flush = CAP_NATIVE,
		/* without flush a write is durable when it returns */
		.fua = c->fn.flush ? CAP_NONE : CAP_NATIVE,
	};
	store_init(&c->store, &callbacks_ops, how->loop, NULL);
	*ret = &c->store;
	return 0;
}
