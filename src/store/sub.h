/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stage's own requests to the next store: a fixed pool of them, made when the stage opens. When
 * all are in use the parent waits in a queue, which is back-pressure; nothing is allocated in the
 * data path.
 */
#ifndef REMORA_STORE_SUB_H
#define REMORA_STORE_SUB_H

#include "store/store.h"

struct sub {
	struct req req;	     /* to the next store; req.user is the sub */
	struct req *parent;  /* what it serves; NULL for the stage's own */
	struct sub_pool *pool;
	struct link link;    /* the stage's while it has the sub */
	uint64_t word[4];    /* the stage's */
	void *extra;	     /* extra_bytes of the stage's, fixed for the sub's life; NULL when 0 */
};

struct sub_pool {
	struct sub *all;
	uint8_t *extra;
	struct list idle;
	struct list waiting; /* parents, by req.link, the urgent ones first */
	size_t count, idle_count;
	bool starting;
	void (*start)(struct store *stage, struct req *parent);
	struct store *stage;
};

/* Queues a request by its link: behind those of its own urgency, before the less urgent ones. */
void req_queue(struct list *waiting, struct req *req);

/* start() is called with each parent when a sub is idle; it takes what it needs with sub_get(). */
MUST_USE int sub_pool_init(struct sub_pool *pool, struct store *stage, size_t count,
			   size_t extra_bytes,
			   void (*start)(struct store *stage, struct req *parent));
void sub_pool_done(struct sub_pool *pool);

/* From ops->submit: calls start(parent) now, or later when the pool is empty. */
void sub_pool_submit(struct sub_pool *pool, struct req *parent);

/* Completes the parents that wait for a sub with err (abort). */
void sub_pool_fail_waiting(struct sub_pool *pool, int err);

/* NULL when the pool is empty. The sub's req is a copy of the parent's op, flags, range, data and
 * extents. */
struct sub *sub_get(struct sub_pool *pool, struct req *parent);
void sub_put(struct sub *sub); /* may call start() for a waiting parent */

/* Sends it to the stage's next store; done(req, err) as in struct req (req->user is the sub). */
void sub_send(struct sub *sub, void (*done)(struct req *req, int err));

/* Copies ret_* from the sub's request to the parent, puts the sub, completes the parent: the usual
 * last step. */
void sub_finish(struct sub *sub, int err);

#endif
