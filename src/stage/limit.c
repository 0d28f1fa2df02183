/* SPDX-License-Identifier: Apache-2.0 */
/*
 * limit: bounds what goes to the next store: bytes per second, requests per second, bytes in
 * flight. Whatever is too much waits here, in a queue where it can still be overtaken; further down
 * it could not.
 *
 * Two buckets (bytes; requests), each kept as one point in time, `full_ns`: when the bucket will be
 * full again if nothing more is taken (the "generic cell rate algorithm", ITU-T I.371, which has no
 * tick and no drift). Taking n moves that point n/rate into the future; n may be taken when that
 * leaves the point at most `span_ns` (burst/rate) ahead of now. A request longer than the burst
 * goes when the bucket is full, and leaves a debt. So in any time t at most rate * t + max(burst,
 * longest request) bytes pass.
 *
 *   READ WRITE                           cost their bytes, and one request
 *   FLUSH ZERO TRIM EXTENTS PREFETCH     cost one request (ZERO by writes of zeros is made above:
 *                                        it costs its bytes)
 *
 * Queue: REQ_URGENT before the rest, else first come first served; the head goes when both buckets
 * and the bytes in flight allow it, and nothing passes it meanwhile, so that a long request is not
 * starved by short ones. A single request longer than `inflight` goes alone.
 *
 * Invariants: the queue is empty, or the timer is set, or something is in flight whose end will
 * look at the queue.
 *
 * Locking: none, everything runs on the loop's thread; the clock is the loop's.
 */
#include "stage/stage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/limits.h"
#include "store/sub.h"

#define BURST_PER_S 10u /* the default burst is what passes in 1/10 s */

struct bucket {
	uint64_t per_s; /* 0 = no limit */
	uint64_t span_ns;
	uint64_t full_ns;
	uint64_t rest; /* of the last division, so that no nanosecond is lost */
};

struct limit {
	struct store store;
	struct sub_pool pool;
	struct bucket bytes, requests;
	uint64_t inflight_max, inflight; /* bytes; max 0 = no limit */
	size_t sent;
	struct list waiting;
	size_t waiting_count;
	struct timer timer;
};

static struct limit *limit_of(struct store *store)
{
	return CONTAINER_OF(store, struct limit, store);
}

static uint64_t bucket_ns(const struct bucket *b, uint64_t amount)
{
	unsigned __int128 ns = (unsigned __int128)amount * NS_PER_S / b->per_s;

	return ns > UINT64_MAX / 4 ? UINT64_MAX / 4 : (uint64_t)ns;
}

/* When `amount` may be taken: now or in the past, or later. */
static uint64_t bucket_when(const struct bucket *b, uint64_t amount)
{
	uint64_t cost, after;

	if (!b->per_s || !amount)
		return 0;
	cost = bucket_ns(b, amount);
	if (cost >= b->span_ns)
		return b->full_ns;
	after = b->full_ns + cost;
	return after > b->span_ns ? after - b->span_ns : 0;
}

static void bucket_take(struct bucket *b, uint64_t amount, uint64_t now)
{
	unsigned __int128 v;

	if (!b->per_s || !amount)
		return;
	if (b->full_ns <= now) {
		b->full_ns = now;
		b->rest = 0;
	}
	v = (unsigned __int128)amount * NS_PER_S + b->rest;
	b->full_ns += (uint64_t)(v / b->per_s);
	b->rest = (uint64_t)(v % b->per_s);
}

static void bucket_init(struct bucket *b, uint64_t per_s, uint64_t burst)
{
	b->per_s = per_s;
	if (per_s)
		b->span_ns = bucket_ns(b, burst ? burst : MAX(per_s / BURST_PER_S, 1));
}

static uint64_t req_bytes(const struct req *req)
{
	return req->op == REQ_READ || req->op == REQ_WRITE ? req->range.len : 0;
}

static void limit_done(struct req *req, int err);

/* Sends from the head of the queue what may go now. */
static void limit_dispatch(struct limit *m)
{
	uint64_t now = loop_now(m->store.loop), when;
	struct link *k;

	while ((k = list_first(&m->waiting))) {
		struct req *parent = LIST_ENTRY(k, struct req, link);
		uint64_t len = req_bytes(parent);
		struct sub *sub;

		if (len && m->inflight_max && m->inflight && m->inflight + len > m->inflight_max)
			return;
		when = MAX(bucket_when(&m->bytes, len), bucket_when(&m->requests, 1));
		if (when > now) {
			timer_set(m->store.loop, &m->timer, when);
			return;
		}
		sub = sub_get(&m->pool, parent);
		if (!sub) {
			CHECK(m->sent);
			return;
		}
		link_remove(k);
		m->waiting_count--;
		bucket_take(&m->bytes, len, now);
		bucket_take(&m->requests, 1, now);
		m->inflight += len;
		m->sent++;
		sub->word[0] = len;
		sub_send(sub, limit_done);
	}
	timer_clear(m->store.loop, &m->timer);
}

static void limit_done(struct req *req, int err)
{
	struct sub *sub = req->user;
	struct limit *m = limit_of(sub->pool->stage);

	CHECK(m->sent && m->inflight >= sub->word[0]);
	m->sent--;
	m->inflight -= sub->word[0];
	sub_finish(sub, err);
	limit_dispatch(m);
}

static void limit_fire(struct timer *timer)
{
	limit_dispatch(CONTAINER_OF(timer, struct limit, timer));
}

/* The queue is ours and not the pool's: the pool would send as soon as it can. Nobody ever waits in
 * it. */
static void limit_start(struct store *store, struct req *parent)
{
	(void)store;
	(void)parent;
	CHECK(false);
}

static void limit_submit(struct store *store, struct req *req)
{
	struct limit *m = limit_of(store);

	req_queue(&m->waiting, req);
	m->waiting_count++;
	/* Only a new head can go: if there was one already, it is known to have to wait. */
	if (list_first(&m->waiting) == &req->link)
		limit_dispatch(m);
}

static void limit_abort(struct store *store)
{
	struct limit *m = limit_of(store);
	struct list failed;
	struct link *k;

	timer_clear(store->loop, &m->timer);
	list_init(&failed);
	list_splice_back(&failed, &m->waiting);
	m->waiting_count = 0;
	while ((k = list_pop_front(&failed)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
}

static void limit_close(struct store *store)
{
	struct limit *m = limit_of(store);

	CHECK(list_empty(&m->waiting) && !m->sent && !timer_is_set(&m->timer));
	sub_pool_done(&m->pool);
	store_closed(store);
}

static void limit_status(struct store *store, char *buf, size_t len)
{
	struct limit *m = limit_of(store);

	snprintf(buf, len, "waiting=%zu inflight_bytes=%llu", m->waiting_count, (unsigned long long)m->inflight);
}

static const struct store_ops limit_ops = {
	.name = "limit",
	.submit = limit_submit,
	.abort = limit_abort,
	.close = limit_close,
	.status = limit_status,
};

static int limit_options(struct limit *m, struct spec_args *args)
{
	uint64_t rate = 0, burst = 0, iops = 0;
	int r;

	if ((r = spec_get_rate(args, "rate", &rate)) || (r = spec_get_size(args, "burst", &burst)) ||
	    (r = spec_get_number(args, "iops", 1, NS_PER_S, &iops)) ||
	    (r = spec_get_size(args, "inflight", &m->inflight_max)) || (r = spec_options_end(args)))
		return r;
	if (!rate && !iops && !m->inflight_max)
		return spec_error(args->spec, args->part->at, args->e,
				  "limit needs rate, iops or inflight, and more than 0");
	if (burst && !rate)
		return spec_error(args->spec, args->part->at, args->e, "burst has a meaning only with rate");
	bucket_init(&m->bytes, rate, burst);
	bucket_init(&m->requests, iops, 0);
	return 0;
}

int stage_limit_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct limit *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return err_sys(args->e, -ENOMEM, "the limit stage");
	r = limit_options(m, args);
	if (r)
		goto out;
	r = sub_pool_init(&m->pool, &m->store, STAGE_REQS_MAX, 0, limit_start);
	if (r) {
		r = err_sys(args->e, r, "the limit stage");
		goto out;
	}
	list_init(&m->waiting);
	m->timer.fire = limit_fire;
	store_init(&m->store, &limit_ops, how->loop, next);
	*ret = &m->store;
	return 0;
out:
	free(m);
	return r;
}
