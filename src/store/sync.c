/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocking calls on a store, for set-up code, tests and tools: each submits one request after the
 * other and runs the loop until it is done. Never from a callback.
 *
 * The request lives on the heap: when the loop itself breaks (or a simulation has nothing left to
 * happen) nobody can wait for it any longer, and it must outlive the caller.
 *
 * Locking: none; the loop's thread, outside of the loop.
 */
#include <errno.h>
#include <stdlib.h>

#include "store/store.h"

struct sync {
	struct req req;
	bool done, abandoned;
	int err;
};

static void sync_done(struct req *req, int err)
{
	struct sync *s = CONTAINER_OF(req, struct sync, req);

	s->done = true;
	s->err = err;
	if (s->abandoned)
		free(s);
}

static int sync_run(struct store *store, enum req_op op, struct range range, struct iobuf data,
		    uint32_t flags,
		    struct extents *extents)
{
	struct sync *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->req = (struct req){
		.op = op, .flags = flags, .range = range, .data = data, .extents = extents,
			.done = sync_done,
	};
	req_submit(store, &s->req);
	r = loop_run_until(store->loop, &s->done, NEVER_NS);
	if (!s->done) {
		store_abort(store);
		if (loop_run_until(store->loop, &s->done, NEVER_NS) || !s->done) {
			s->abandoned = true;
			return r ? r : -EIO;
		}
	}
	r = s->err;
	free(s);
	return r;
}

/* READ and WRITE of any length: in pieces that the store takes. */
static int sync_run_pieces(struct store *store, enum req_op op, uint64_t off, void *buf, size_t len,
			   uint32_t flags)
{
	size_t at = 0;

	do {
		size_t piece = MIN(len - at, (size_t)store->info.len_max);
		int r = sync_run(store, op, range_of(off + at, piece),
				 (struct iobuf){ (uint8_t *)buf + at, piece },
				 flags, NULL);

		if (r)
			return r;
		at += piece;
	} while (at < len);
	return 0;
}

int store_read(struct store *store, uint64_t off, void *buf, size_t len)
{
	if (!range_within(range_of(off, len), store->info.size))
		return -EINVAL;
	return sync_run_pieces(store, REQ_READ, off, buf, len, 0);
}

int store_write(struct store *store, uint64_t off, const void *buf, size_t len, uint32_t flags)
{
	if (!range_within(range_of(off, len), store->info.size))
		return -EINVAL;
	return sync_run_pieces(store, REQ_WRITE, off, (void *)(uintptr_t)buf, len, flags);
}

int store_flush(struct store *store)
{
	return sync_run(store, REQ_FLUSH, range_of(0, 0), (struct iobuf){ 0 }, 0, NULL);
}

int store_zero(struct store *store, uint64_t off, uint64_t len)
{
	return sync_run(store, REQ_ZERO, range_of(off, len), (struct iobuf){ 0 }, 0, NULL);
}

int store_trim(struct store *store, uint64_t off, uint64_t len)
{
	return sync_run(store, REQ_TRIM, range_of(off, len), (struct iobuf){ 0 }, 0, NULL);
}

int store_extents(struct store *store, uint64_t off, uint64_t len, struct extents *extents)
{
	return sync_run(store, REQ_EXTENTS, range_of(off, len), (struct iobuf){ 0 }, 0, extents);
}

static void sync_closed(void *arg)
{
	*(bool *)arg = true;
}

void store_close_wait(struct store *store)
{
	struct loop *loop;
	bool closed = false;
	int r;

	if (!store)
		return;
	loop = store->loop;
	store_abort(store);
	store_close(store, sync_closed, &closed);
	r = loop_run_until(loop, &closed, NEVER_NS);
	/* A store that never lets go of a request after an abort breaks rule 7 of the contract. */
	CHECK(!r && closed);
}
