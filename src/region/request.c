/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests to the region as a store.
 *
 * Place: request_submit() is the region's ops->submit. READ, WRITE, ZERO, TRIM and PREFETCH each go
 * through a struct io that walks the range chunk by chunk in io_step() as far as it can, and waits
 * in r->ios for a pull (pull.c asks what is wanted), for room or for a page record. FLUSH is
 * push.c's. EXTENTS are the far store's, overlaid with what is dirty here.
 *
 * A WRITE of whole pages never waits for the far side: an absent chunk becomes partial. A part of a
 * page that is not here waits for its chunk. A long request takes its data chunk by chunk as it
 * comes, in order, so that it works with any budget that holds a few chunks: what was just pulled
 * is used before anything else can drop it.
 *
 * Invariant: a request is in exactly one place: an io, ios_waiting, flush lists, extents_waiting or
 * extents_parent; from there it is completed once.
 *
 * Locking: the region's lock around changes of the map; loop thread.
 */
#include <errno.h>
#include <string.h>

#include "region/region_int.h"

#define FULL_TRIES_MAX 8u /* chunks dropped for one chunk's writing */

static _Alignas(PAGE_BYTES) const uint8_t zeros[CHUNK_DEFAULT];

/* ---- one step: the part of a request in one chunk ---- */

struct part {
	uint64_t c;
	uint64_t from, to; /* bytes */
	uint32_t page, count; /* pages touched */
};

static struct part io_part(const struct region *r, const struct io *io)
{
	const struct map *m = &r->map;
	struct part p = { .c = map_chunk_of(m, io->at), .from = io->at };
	struct range chunk = map_range(m, p.c, 1);

	p.to = MIN(range_end(io->req->range), range_end(chunk));
	p.page = (uint32_t)((p.from - chunk.off) / PAGE_BYTES);
	p.count = (uint32_t)((p.to - 1 - chunk.off) / PAGE_BYTES) + 1 - p.page;
	return p;
}

static bool part_here(const struct map *m, const struct part *p)
{
	if (map_state(m, p->c) != CHUNK_PARTIAL)
		return map_full(m, p->c);
	for (uint32_t i = 0; i < p->count; i++)
		if (!map_page_here(m, p->c, p->page + i))
			return false;
	return true;
}

static void chunk_used(struct region *r, uint64_t c)
{
	uint8_t byte = map_byte(&r->map, c);

	/* Where mapped, REF says that some of it may be open, which this does not change. */
	if (!r->near->mapped && !(byte & CHUNK_REF))
		region_flag(r, c, CHUNK_REF, 0);
}

static int read_step(struct region *r, struct io *io, const struct part *p)
{
	int err;

	if (io->req->op == REQ_PREFETCH) {
		if (!map_full(&r->map, p->c))
			return -EAGAIN;
		io->at = p->to;
		return 0;
	}
	if (!(io->req->flags & REQ_BACKGROUND) && io->seen != p->c) {
		io->seen = p->c;
		ahead_used(r, p->c);
	}
	if (!part_here(&r->map, p))
		return -EAGAIN;
	err = r->near->ops->read(r->near, p->from,
				 io->req->data.base + (p->from - io->req->range.off),
				 (size_t)(p->to - p->from));
	if (err)
		return err == -EBADMSG ? policy_near_bad(r, p->c) : err;
	chunk_used(r, p->c);
	io->at = p->to;
	return 0;
}

/* Whether the page is written as a whole: also the last one, up to the end of the resource. */
static bool page_whole(const struct region *r, const struct part *p, uint32_t page)
{
	uint64_t off = (p->c << r->map.shift) + (uint64_t)page * PAGE_BYTES;

	return p->from <= off && (p->to >= off + PAGE_BYTES || p->to == r->map.size);
}

/* Pages that are only touched have to be here. */
static bool write_ready(const struct region *r, const struct part *p)
{
	uint32_t last = p->page + p->count - 1;

	if (!page_whole(r, p, p->page) && !map_page_here(&r->map, p->c, p->page))
		return false;
	return page_whole(r, p, last) || map_page_here(&r->map, p->c, last);
}

static int near_zero(struct near *near, uint64_t off, uint64_t len)
{
	int err = 0;

	for (uint64_t at = 0; !err && at < len; at += sizeof(zeros))
		err = near->ops->write(near, off + at, zeros, (size_t)MIN(len - at, sizeof(zeros)));
	return err;
}

/* The last page of the resource is written with zeros behind the end: an absent page takes only
 * whole pages. */
static int near_write_tail(struct region *r, struct io *io, uint64_t from, uint64_t to)
{
	memset(r->tail, 0, sizeof(r->tail));
	if (io->req->op == REQ_WRITE)
		memcpy(r->tail, io->req->data.base + (from - io->req->range.off),
		       (size_t)(to - from));
	return r->near->ops->write(r->near, from, r->tail, sizeof(r->tail));
}

static int near_write(struct region *r, struct io *io, const struct part *p)
{
	uint64_t to = p->to, tail = align_down(p->to, PAGE_BYTES);
	int err = 0;

	if (to == r->map.size && to % PAGE_BYTES && tail >= p->from) {
		err = near_write_tail(r, io, tail, to);
		to = tail;
	}
	if (err || to == p->from)
		return err;
	if (io->req->op != REQ_WRITE)
		return near_zero(r->near, p->from, to - p->from);
	return r->near->ops->write(r->near, p->from,
				   io->req->data.base + (p->from - io->req->range.off),
				   (size_t)(to - p->from));
}

/* The near store did not take it. Where it is full something is dropped, and the step begins anew
 * (what it looked at may be what was dropped), or has to wait for pushes. */
static int write_refused(struct region *r, struct io *io, uint64_t c, int refused)
{
	int err;

	if (refused == -EBADMSG)
		return policy_near_bad(r, c);
	if (refused != -ENOSPC && refused != -EAGAIN)
		return refused;
	if (refused == -EAGAIN) { /* it makes room, and tells when it has */
		io->err = -ENOSPC;
		return -EBUSY;
	}
	err = policy_near_full(r, r->chunk);
	io->err = -ENOSPC; /* should it wait in vain */
	if (err == -EAGAIN)
		return -EBUSY;
	return !err && io->full++ < FULL_TRIES_MAX ? 0 : -ENOSPC;
}

static int write_step(struct region *r, struct io *io, const struct part *p)
{
	struct map *m = &r->map;
	int err;

	if (io->req->op == REQ_TRIM && map_state(m, p->c) == CHUNK_ABSENT) {
		io->at = p->to; /* a hint: not worth making it dirty */
		return 0;
	}
	if (apart_has(r, p->c))
		return -EBUSY; /* in a moment */
	if (!write_ready(r, p) || !map_can_write(m, p->c, p->page, p->count))
		return -EAGAIN; /* pulled first */
	if (map_state(m, p->c) == CHUNK_ABSENT) {
		err = policy_room(r, r->chunk, ROOM_DEMAND);
		if (err)
			return err == -EAGAIN ? -EBUSY : err;
		if (!map_can_write(m, p->c, p->page, p->count))
			return -EBUSY;
	}
	err = near_write(r, io, p);
	if (err)
		return write_refused(r, io, p->c, err);
	io->full = 0;
	region_lock(r);
	map_write(m, p->c, p->page, p->count);
	region_unlock(r);
	if (map_byte(m, p->c) & CHUNK_FAULTED)
		/* whoever waits for these pages need not wait for the rest */
		err = fault_open(r, p->c);
	chunk_used(r, p->c);
	io->at = p->to;
	push_written(r);
	return err;
}

/* ---- a request's life ---- */

static void io_end(struct region *r, struct io *io, int err)
{
	struct req *req = io->req;

	link_remove(&io->link);
	io->req = NULL;
	list_push_front(&r->ios_idle, &io->link);
	req_done(req, err);
	if (!list_empty(&r->ios_waiting))
		region_kick(r);
}

/* As far as it goes now; true = ended. */
static bool io_run(struct region *r, struct io *io)
{
	int err = 0;

	if (io->retry_ns == NEVER_NS)
		err = io->err;
	io->wants_pull = false;
	while (!err && io->at < range_end(io->req->range)) {
		struct part p = io_part(r, io);

		err = req_op_changes(io->req->op) ? write_step(r, io, &p) : read_step(r, io, &p);
	}
	if (err == -EAGAIN || err == -EBUSY) { /* of io_step: for a pull, for room */
		io->wants_pull = err == -EAGAIN;
		if (!policy_expired(r, io->since_ns, loop_now(r->loop)))
			return false;
		err = io->err ? io->err : -ETIMEDOUT;
	}
	io_end(r, io, err);
	return true;
}

static void io_begin(struct region *r, struct req *req, bool waited)
{
	bool counts = req->op == REQ_READ || req->op == REQ_WRITE;
	struct io *io = LIST_ENTRY(list_pop_front(&r->ios_idle), struct io, link);

	*io = (struct io){ .req = req, .at = req->range.off, .seen = NO_CHUNK,
			  .since_ns = loop_now(r->loop) };
	list_push_back(&r->ios, &io->link);
	if (!io_run(r, io)) {
		waited = true;
		region_kick(r);
	}
	r->hits += counts && !waited;
	r->misses += counts && waited;
}

void requests_run(struct region *r)
{
	struct link *k;

	LIST_EACH(i, &r->ios)
		(void)io_run(r, LIST_ENTRY(i, struct io, link));
	while (!list_empty(&r->ios_idle) && (k = list_pop_front(&r->ios_waiting)))
		io_begin(r, LIST_ENTRY(k, struct req, link), true);
}

void requests_pull_failed(struct region *r, struct range range, int err)
{
	LIST_EACH(k, &r->ios) {
		struct io *io = LIST_ENTRY(k, struct io, link);
		struct range rest = range_between(io->at, range_end(io->req->range));

		if (!io->wants_pull || !range_overlaps(rest, range))
			continue;
		io->err = err;
		io->retry_ns = policy_retry(r, err, ++io->tries, io->since_ns);
		if (!io->retry_ns)
			io_end(r, io, err);
	}
}

void requests_abort(struct region *r)
{
	struct link *k;

	while ((k = list_first(&r->ios)))
		io_end(r, LIST_ENTRY(k, struct io, link), -ESHUTDOWN);
	while ((k = list_pop_front(&r->ios_waiting)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
	while ((k = list_pop_front(&r->extents_waiting)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
}

/* ---- EXTENTS ---- */

static void extents_next(struct region *r);

/* Appends to the answer, joining what is alike; false = it is full. */
static bool extents_add(struct extents *to, uint64_t len, bool zero)
{
	struct extent *last = to->count ? &to->at[to->count - 1] : NULL;

	if (last && last->zero == zero) {
		last->len += len;
		return true;
	}
	if (to->count == to->max)
		return false;
	to->at[to->count++] = (struct extent){ len, zero };
	return true;
}

/* A zero extent of the far store, with what was written here and has not settled there as data. */
static bool extents_overlay(struct region *r, struct extents *to, struct range zero)
{
	struct map *m = &r->map;
	uint64_t at = zero.off;

	while (at < range_end(zero)) {
		uint64_t c = map_chunk_of(m, at);
		uint64_t local = MIN(map_next(m, c, MAP_BUSY), map_next(m, c, MAP_UNFLUSHED));
		uint64_t end = local == c ? range_end(map_range(m, c, 1)) :
			       local < m->chunks ? local << m->shift : m->size;

		end = MIN(end, range_end(zero));
		if (!extents_add(to, end - at, local != c))
			return false;
		at = end;
	}
	return true;
}

static void extents_done(struct req *req, int err)
{
	struct region *r = req->user;
	struct req *parent = r->extents_parent;
	struct extents *to = parent->extents;
	uint64_t at = parent->range.off;
	bool room = true;

	r->extents_parent = NULL;
	to->count = 0;
	for (size_t i = 0; !err && room && i < r->extents.count; i++) {
		struct extent x = r->extents.at[i];

		x.len = MIN(x.len, range_end(parent->range) - at);
		if (!x.len)
			break;
		room = x.zero ? extents_overlay(r, to, range_of(at, x.len)) :
				extents_add(to, x.len, false);
		at += x.len;
	}
	req_done(parent, err);
	extents_next(r);
	region_kick(r);
}

static void extents_next(struct region *r)
{
	struct link *k;
	struct req *req = &r->extents_req;

	if (r->extents_parent || r->aborting || !(k = list_pop_front(&r->extents_waiting)))
		return;
	r->extents_parent = LIST_ENTRY(k, struct req, link);
	r->extents = (struct extents){ .at = r->extents_at, .max = REQ_EXTENTS_MAX };
	req->op = REQ_EXTENTS;
	req->flags = 0;
	req->range = r->extents_parent->range;
	req->extents = &r->extents;
	req->done = extents_done;
	req->user = r;
	req_submit(r->far, req);
}

/* ---- entry ---- */

void request_submit(struct store *store, struct req *req)
{
	struct region *r = CONTAINER_OF(store, struct region, store);

	switch (req->op) {
	case REQ_FLUSH:
		push_flush(r, req);
		break;
	case REQ_EXTENTS:
		list_push_back(&r->extents_waiting, &req->link);
		extents_next(r);
		break;
	default:
		if (list_empty(&r->ios_idle))
			list_push_back(&r->ios_waiting, &req->link);
		else
			io_begin(r, req, false);
	}
}
