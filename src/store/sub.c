/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stage's own requests to the store below it: a fixed pool, so that the data path allocates
 * nothing, and a queue of parents for when it is empty.
 *
 * Invariants: a sub is idle (in pool->idle) or with the stage; idle_count counts the former. A
 * parent waits only while no sub is idle, except inside pool_start_waiting(), which `starting`
 * keeps from entering itself.
 *
 * Locking: none; loop thread only.
 */
#include "store/sub.h"

#include <errno.h>
#include <stdlib.h>

static unsigned req_rank(const struct req *req)
{
	return req->flags & REQ_URGENT ? 0 : req->flags & REQ_BACKGROUND ? 2 : 1;
}

void req_queue(struct list *waiting, struct req *req)
{
	struct link *at = &waiting->head;

	/* From the back, because most are of the least rank that is there; the urgent ones are few
	 * and at the front. */
	if (req_rank(req) == 0) {
		at = waiting->head.next;
		while (at != &waiting->head && req_rank(LIST_ENTRY(at, struct req, link)) == 0)
			at = at->next;
	} else {
		while (at->prev != &waiting->head &&
		       req_rank(LIST_ENTRY(at->prev, struct req, link)) > req_rank(req))
			at = at->prev;
	}
	link_insert_before(at, &req->link);
}

int sub_pool_init(struct sub_pool *pool, struct store *stage, size_t count, size_t extra_bytes,
		  void (*start)(struct store *stage, struct req *parent))
{
	size_t extra_each = (extra_bytes + 63) / 64 * 64;

	CHECK(count && start);
	*pool = (struct sub_pool){
		.count = count, .idle_count = count, .start = start, .stage = stage,
	};
	list_init(&pool->idle);
	list_init(&pool->waiting);
	pool->all = calloc(count, sizeof(*pool->all));
	if (extra_each)
		pool->extra = aligned_alloc(PAGE_BYTES, align_up(count * extra_each, PAGE_BYTES));
	if (!pool->all || (extra_each && !pool->extra)) {
		sub_pool_done(pool);
		return -ENOMEM;
	}
	for (size_t i = 0; i < count; i++) {
		struct sub *sub = &pool->all[i];

		sub->pool = pool;
		sub->extra = extra_each ? pool->extra + i * extra_each : NULL;
		list_push_back(&pool->idle, &sub->link);
	}
	return 0;
}

void sub_pool_done(struct sub_pool *pool)
{
	if (pool->all)
		CHECK(list_empty(&pool->waiting) && pool->idle_count == pool->count);
	free(pool->all);
	free(pool->extra);
	pool->all = NULL;
	pool->extra = NULL;
}

static void pool_start_waiting(struct sub_pool *pool)
{
	if (pool->starting)
		return;
	pool->starting = true;
	while (!list_empty(&pool->idle) && !list_empty(&pool->waiting)) {
		struct link *k = list_pop_front(&pool->waiting);

		pool->start(pool->stage, LIST_ENTRY(k, struct req, link));
	}
	pool->starting = false;
}

void sub_pool_submit(struct sub_pool *pool, struct req *parent)
{
	req_queue(&pool->waiting, parent);
	pool_start_waiting(pool);
}

void sub_pool_fail_waiting(struct sub_pool *pool, int err)
{
	struct list failed;
	struct link *k;

	list_init(&failed);
	list_splice_back(&failed, &pool->waiting);
	while ((k = list_pop_front(&failed)))
		req_done(LIST_ENTRY(k, struct req, link), err);
}

struct sub *sub_get(struct sub_pool *pool, struct req *parent)
{
	struct link *k = list_pop_front(&pool->idle);
	struct sub *sub;

	if (!k)
		return NULL;
	pool->idle_count--;
	sub = LIST_ENTRY(k, struct sub, link);
	sub->parent = parent;
	sub->req = (struct req){ .user = sub };
	if (parent) {
		sub->req.op = parent->op;
		sub->req.flags = parent->flags;
		sub->req.range = parent->range;
		sub->req.data = parent->data;
		sub->req.extents = parent->extents;
	}
	return sub;
}

void sub_put(struct sub *sub)
{
	struct sub_pool *pool = sub->pool;

	CHECK(sub->req.state != REQ_SUBMITTING && sub->req.state != REQ_PENDING &&
	      sub->req.state != REQ_DEFERRED);
	CHECK(!link_linked(&sub->link)); /* else: put twice, or still in a list of the stage's */
	sub->parent = NULL;
	list_push_front(&pool->idle, &sub->link);
	pool->idle_count++;
	pool_start_waiting(pool);
}

void sub_send(struct sub *sub, void (*done)(struct req *req, int err))
{
	sub->req.done = done;
	sub->req.user = sub;
	req_submit(sub->pool->stage->next, &sub->req);
}

void sub_finish(struct sub *sub, int err)
{
	struct req *parent = sub->parent;

	if (parent) {
		parent->ret_instance = sub->req.ret_instance;
		parent->ret_why = sub->req.ret_why;
		parent->ret_zero = sub->req.ret_zero;
	}
	sub_put(sub);
	if (parent)
		req_done(parent, err);
}
