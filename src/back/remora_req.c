/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests and replies of the client of the Remora protocol.
 *
 * Way of a request:
 *
 *   submit ── queue (three classes) ── dispatch ── slot of a connection ── frame ── reply ── done
 *                                                     │      ▲
 *                                    connection lost  ▼      │ up again
 *                                                    conn->replay
 *
 * Payloads go from and to the buffers of the requests; nothing is copied but what lies beside a
 * header in the read-ahead buffer, and zeros are not sent.
 *
 * Invariants: a request is in one queue, or has one slot. A slot in use is in the flight or the
 * replay list of one connection, and stays with it to its end, because the server orders a replay
 * behind the former connection of the same index. A request completes only when the stream does not
 * use its buffer any more: after its reply *and* the end of its send, or after the stream has
 * stopped.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/remora_int.h"

#define SMALL_LEN (16 * KIB) /* may share the connection of the urgent requests */
#define FIRST_FRESH_NS (5 * NS_PER_S) /* later on it is read again: others may change it */

static const uint8_t wire_ops[REQ_OPS] = {
	[REQ_READ] = WIRE_READ, [REQ_WRITE] = WIRE_WRITE,     [REQ_FLUSH] = WIRE_FLUSH,
	[REQ_ZERO] = WIRE_ZERO, [REQ_TRIM] = WIRE_TRIM,	      [REQ_EXTENTS] = WIRE_EXTENTS,
	[REQ_PREFETCH] = WIRE_PREFETCH,
};

static unsigned req_class(const struct req *req)
{
	if (req->flags & REQ_URGENT)
		return RQUEUE_URGENT;
	return req->flags & REQ_BACKGROUND ? RQUEUE_BACKGROUND : RQUEUE_NORMAL;
}

static uint64_t req_bytes(const struct req *req)
{
	return wire_request_bytes(wire_ops[req->op], req->range.len,
				  req->extents ? req->extents->max : 0);
}

/* ---- choosing a connection ---- */

static bool rconn_has_room(const struct rconn *c, uint64_t bytes, bool urgent)
{
	uint32_t count_max = c->requests_max;
	uint64_t bytes_max = c->bytes_max;

	if (!rconn_is_up(c) || !list_empty(&c->replay))
		return false;
	if (!c->flight_count)
		return true;
	if (!urgent && c->index == 0) {
		count_max -= MIN(REMORA_REQS_URGENT, count_max / 2);
		bytes_max /= 2;
	}
	return c->flight_count < count_max && c->flight_bytes + bytes <= bytes_max;
}

static struct rconn *conn_choose(struct remora *m, const struct req *req)
{
	bool urgent = req->flags & REQ_URGENT;
	uint64_t bytes = req_bytes(req);
	struct rconn *best = NULL;
	bool bulk_up = false;

	if (rconn_is_up(&m->conn[0])) {
		if (rconn_has_room(&m->conn[0], bytes, urgent) &&
		    (urgent || (bytes <= SMALL_LEN && !(req->flags & REQ_BACKGROUND))))
			return &m->conn[0];
		if (urgent)
			return NULL;
	}
	for (unsigned i = 1; i < m->conn_count; i++) {
		struct rconn *c = &m->conn[i];

		bulk_up = bulk_up || rconn_is_up(c);
		if (rconn_has_room(c, bytes, urgent) &&
		    (!best || c->flight_bytes < best->flight_bytes))
			best = c;
	}
	if (!bulk_up && rconn_has_room(&m->conn[0], bytes, urgent))
		best = &m->conn[0];
	return best;
}

/* ---- sending ---- */

static void slot_complete(struct rslot *slot, int err, const char *why)
{
	struct rconn *c = slot->conn;
	struct remora *m = c->m;
	struct req *req = slot->req;

	CHECK(!slot->sending && req);
	link_remove(&slot->link);
	slot->req = NULL;
	slot->id += 1ULL << 32;
	list_push_front(&m->idle, &slot->link);
	req->ret_why = err ? why : NULL;
	req_done(req, err);
}

static void slot_leave_flight(struct rslot *slot)
{
	struct rconn *c = slot->conn;

	CHECK(c->flight_count && c->flight_bytes >= slot->bytes);
	c->flight_count--;
	c->flight_bytes -= slot->bytes;
}

static void slot_sent(struct stream_frame *frame, int err)
{
	struct rslot *slot = CONTAINER_OF(frame, struct rslot, frame);
	struct remora *m = slot->conn->m;

	slot->sending = false;
	/* After an error the connection ends, and rconn_requests_lost() has it. */
	if (err || !slot->replied)
		return;
	slot_leave_flight(slot);
	slot_complete(slot, slot->err, NULL);
	remora_dispatch(m);
}

static void slot_send(struct rslot *slot)
{
	struct rconn *c = slot->conn;

	c->flight_count++;
	c->flight_bytes += slot->bytes;
	list_push_back(&c->flight, &slot->link);
	slot->sending = true;
	slot->replied = false;
	/* of this connection, which may not be the one of the first try */
	wire_request_flag(slot->head, WIRE_MAY_PLACE, c->shm && slot->req->op == REQ_READ);
	stream_send(&c->stream, &slot->frame, slot->req->flags & REQ_URGENT);
}

/* The pieces of a WRITE: header and runs, then the data that is not zeros. */
static void slot_encode_write(struct rslot *slot, struct wire_request *w)
{
	const struct req *req = slot->req;
	struct wire_run runs[WIRE_RUNS_MAX];
	uint8_t *at = req->data.base;
	size_t data, count = wire_runs_find(at, req->range.len, runs, &data);
	int n = 1;

	w->count = (uint16_t)count;
	w->payload = (uint32_t)(data + count * WIRE_RUN_LEN);
	wire_runs_encode(runs, count, slot->head + WIRE_REQUEST_LEN);
	slot->iov[0].iov_len += count * WIRE_RUN_LEN;
	if (!count)
		slot->iov[n++] = (struct iovec){ at, req->range.len };
	for (size_t i = 0; i < count; i++) {
		if (!runs[i].zero)
			slot->iov[n++] = (struct iovec){ at, runs[i].len };
		at += runs[i].len;
	}
	CHECK(n <= (int)ARRAY_LEN(slot->iov));
	slot->frame.iov_count = n;
}

static void slot_encode(struct rslot *slot)
{
	const struct req *req = slot->req;
	struct wire_request w = { .op = wire_ops[req->op], .id = slot->id, .range = req->range };

	w.flags = (uint8_t)((req->flags & REQ_FUA ? WIRE_FUA : 0) |
			    (req->flags & REQ_URGENT ? WIRE_URGENT : 0) |
			    (req->flags & REQ_BACKGROUND ? WIRE_BACKGROUND : 0));
	slot->frame.iov = slot->iov;
	slot->frame.iov_count = 1;
	slot->iov[0] = (struct iovec){ slot->head, WIRE_REQUEST_LEN };
	if (req->op == REQ_WRITE)
		slot_encode_write(slot, &w);
	else if (req->op == REQ_EXTENTS)
		w.count = (uint16_t)MIN(req->extents->max, (size_t)REQ_EXTENTS_MAX);
	else if (req->op == REQ_FLUSH)
		w.range = range_of(0, 0);
	wire_request_encode(&w, slot->head);
}

void remora_dispatch(struct remora *m)
{
	for (unsigned q = 0; q < RQUEUES; q++) {
		struct link *k;

		while ((k = list_first(&m->queue[q])) && !list_empty(&m->idle)) {
			struct req *req = LIST_ENTRY(k, struct req, link);
			struct rconn *c = conn_choose(m, req);
			struct rslot *slot;

			if (!c)
				break;
			link_remove(k);
			slot = LIST_ENTRY(list_pop_front(&m->idle), struct rslot, link);
			slot->req = req;
			slot->conn = c;
			slot->bytes = req_bytes(req);
			slot->frame.sent = slot_sent;
			slot_encode(slot);
			slot_send(slot);
		}
	}
}

/* Before any new request: these may be what makes room for it. */
void rconn_replay(struct rconn *c)
{
	struct link *k;

	while (rconn_is_up(c) && (k = list_first(&c->replay))) {
		struct rslot *slot = LIST_ENTRY(k, struct rslot, link);

		if (c->flight_count &&
		    (c->flight_count >= c->requests_max ||
		     c->flight_bytes + slot->bytes > c->bytes_max))
			return;
		link_remove(k);
		c->m->counts.replayed++;
		slot_send(slot);
	}
}

/* ---- the first read ---- */

static void queue_push(struct remora *m, struct req *req)
{
	list_push_back(&m->queue[req_class(req)], &req->link);
}

/* It is void: those who wait for it are read like any other. */
static void first_void(struct remora *m)
{
	struct link *k;

	while ((k = list_pop_front(&m->first.waiting)))
		queue_push(m, LIST_ENTRY(k, struct req, link));
	m->first.stale = true;
}

/* The stream does not use the buffer any more. */
void remora_first_drop(struct remora *m)
{
	first_void(m);
	m->first.state = FIRST_NONE;
	free(m->first.buf);
	m->first.buf = NULL;
}

static void first_copy(struct remora *m, struct req *req)
{
	const struct rfirst *f = &m->first;

	memcpy(req->data.base, f->buf + f->given + (req->range.off - f->range.off), req->range.len);
	req->ret_instance = m->store.info.instance;
	m->counts.first_hits++;
}

/* Each byte is given once, from the first on: whoever reads it again wants to know what it is by
 * then. False when nothing is left to give. */
static bool first_given(struct rfirst *f, struct range range)
{
	if (range.off != f->range.off || range.len >= f->range.len)
		return false;
	f->given += range.len;
	f->range = range_between(range_end(range), range_end(f->range));
	return true;
}

/* Its reply has arrived. */
static void first_done(struct remora *m, int err)
{
	struct rfirst *f = &m->first;
	bool left = true;
	struct list waiting;
	struct link *k;

	if (err || f->stale) {
		remora_first_drop(m);
		return;
	}
	f->state = FIRST_READY;
	f->ready_ns = loop_now(m->store.loop);
	list_init(&waiting);
	list_splice_back(&waiting, &f->waiting);
	LIST_EACH(i, &waiting)
		first_copy(m, LIST_ENTRY(i, struct req, link));
	LIST_EACH(i, &waiting)
		left = left && first_given(f, LIST_ENTRY(i, struct req, link)->range);
	if (!left)
		remora_first_drop(m);
	while ((k = list_pop_front(&waiting)))
		req_done(LIST_ENTRY(k, struct req, link), 0);
}

/* It has come before anybody asked. */
static void first_give(struct remora *m, struct req *req)
{
	first_copy(m, req);
	if (!first_given(&m->first, req->range))
		remora_first_drop(m);
	req_done(req, 0);
}

/* True when the request is answered by it, or will be. */
static bool first_takes(struct remora *m, struct req *req)
{
	struct rfirst *f = &m->first;

	if (f->state == FIRST_NONE || f->stale)
		return false;
	if (req_op_changes(req->op)) {
		if (range_overlaps(f->range, req->range)) {
			first_void(m);
			if (f->state == FIRST_READY)
				remora_first_drop(m);
		}
		return false;
	}
	if (req->op != REQ_READ || !range_contains(f->range, req->range))
		return false;
	if (f->state == FIRST_ASKED) {
		list_push_back(&f->waiting, &req->link);
		return true;
	}
	if (loop_now(m->store.loop) - f->ready_ns > FIRST_FRESH_NS) {
		remora_first_drop(m);
		return false;
	}
	first_give(m, req);
	return true;
}

void remora_submit(struct store *store, struct req *req)
{
	struct remora *m = CONTAINER_OF(store, struct remora, store);

	/* A flush may be all that stands between a program and its end. */
	for (unsigned i = 0; req->op == REQ_FLUSH && !m->up && i < m->conn_count; i++)
		rconn_hasten(&m->conn[i]);
	if (m->failed || m->away) {
		req->ret_why = m->why;
		req_done(req, m->failed ? m->failed : -ETIMEDOUT);
		return;
	}
	if (first_takes(m, req))
		return;
	queue_push(m, req);
	remora_dispatch(m);
}

/* ---- replies ---- */

/* The reply is complete, and its bytes are out of the buffer. */
static void reply_end(struct rconn *c, int err)
{
	struct rslot *slot = c->slot;

	c->part = REPLY_HEAD;
	if (!slot) {
		first_done(c->m, err);
		return;
	}
	c->slot = NULL;
	c->backoff_ns = 0; /* it serves: the next loss begins with short waits again */
	slot->req->ret_instance = c->reply.instance;
	slot->err = err;
	slot->replied = true;
	if (slot->sending)
		return;
	slot_leave_flight(slot);
	slot_complete(slot, err, c->why[0] ? c->why : NULL);
}

static struct rslot *slot_of_id(struct rconn *c, uint64_t id)
{
	struct remora *m = c->m;
	size_t at = (id & UINT32_MAX) - 1;
	struct rslot *slot;

	if (at >= m->slot_count)
		return NULL;
	slot = &m->slots[at];
	if (slot->id != id || !slot->req || slot->conn != c || slot->replied)
		return NULL;
	return slot;
}

static struct iobuf reply_buffer(const struct rconn *c)
{
	if (c->slot)
		return (struct iobuf){ c->slot->req->data.base, c->slot->req->range.len };
	return (struct iobuf){ c->m->first.buf, c->m->first.range.len };
}

static int reply_begin_data(struct rconn *c)
{
	struct iobuf to = reply_buffer(c);
	struct iovec iov = { to.base, to.len };

	c->part = c->reply.count ? REPLY_RUNS : REPLY_DATA;
	if (c->reply.len != to.len)
		return -EPROTO;
	if (c->slot)
		c->slot->req->ret_zero = false;
	if (c->reply.count == WIRE_COUNT_PLACED) {
		c->part = REPLY_PLACE;
		return c->slot ? 0 : -EPROTO;
	}
	if (!c->reply.count)
		(void)!stream_fill(&c->stream, &iov, 1);
	return 0;
}

/* 1 = go on, 0 = more bytes are needed, -EPROTO. */
static int reply_head(struct rconn *c)
{
	struct wire_reply *r = &c->reply;
	bool first;

	if (stream_avail(&c->stream) < WIRE_REPLY_LEN)
		return 0;
	if (wire_reply_decode(stream_peek(&c->stream), r))
		return -EPROTO;
	stream_take(&c->stream, WIRE_REPLY_LEN);
	if (r->op == WIRE_ALIVE)
		return 1;
	first = r->id == WIRE_ID_FIRST;
	c->slot = first ? NULL : slot_of_id(c, r->id);
	if (first ? c->index || c->m->first.state != FIRST_ASKED || r->op != WIRE_READ
		  : !c->slot || r->op != wire_ops[c->slot->req->op])
		return -EPROTO;
	c->why[0] = '\0';
	remora_instance(c->m, c, r->instance);
	if (!rconn_is_up(c))
		return 0; /* somebody who heard of it has ended it all */
	if (r->code) {
		c->part = REPLY_TEXT;
	} else if (r->op == WIRE_READ) {
		return reply_begin_data(c) ? -EPROTO : 1;
	} else if (r->op == WIRE_EXTENTS) {
		c->part = REPLY_EXTENTS;
		c->extents_seen = 0;
		c->extents_len = 0;
		if (r->count > c->slot->req->extents->max)
			return -EPROTO;
	} else {
		reply_end(c, 0);
	}
	return 1;
}

static int reply_runs(struct rconn *c)
{
	struct iobuf to = reply_buffer(c);
	size_t count = c->reply.count, table = count * WIRE_RUN_LEN;
	struct wire_run runs[WIRE_RUNS_MAX];
	struct iovec iov[WIRE_RUNS_MAX];
	uint64_t data = c->reply.payload - table;
	uint8_t *at = to.base;
	int n = 0;

	if (stream_avail(&c->stream) < table)
		return 0;
	if (wire_runs_decode(stream_peek(&c->stream), count, to.len, data, runs))
		return -EPROTO;
	stream_take(&c->stream, table);
	for (size_t i = 0; i < count; i++) {
		if (runs[i].zero)
			memset(at, 0, runs[i].len);
		else
			iov[n++] = (struct iovec){ at, runs[i].len };
		at += runs[i].len;
	}
	if (c->slot)
		c->slot->req->ret_zero = !data;
	c->part = REPLY_DATA;
	(void)!stream_fill(&c->stream, iov, n);
	return 1;
}

static int reply_place(struct rconn *c)
{
	struct iobuf to = reply_buffer(c);
	const uint8_t *from;
	uint64_t off;

	if (stream_avail(&c->stream) < WIRE_PLACE_LEN)
		return 0;
	off = wire_place_decode(stream_peek(&c->stream));
	from = rplace_find(c, off, to.len);
	if (!from)
		return -EPROTO;
	stream_take(&c->stream, WIRE_PLACE_LEN);
	memcpy(to.base, from, to.len);
	rplace_release(c, off, to.len);
	reply_end(c, 0);
	return 1;
}

static int reply_text(struct rconn *c)
{
	size_t len = c->reply.payload;

	if (stream_avail(&c->stream) < len)
		return 0;
	CHECK(len <= WIRE_TEXT_MAX);
	memcpy(c->why, stream_peek(&c->stream), len);
	stream_take(&c->stream, len);
	c->why[len] = '\0';
	for (char *p = c->why; *p; p++) /* it will be shown on a terminal */
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	reply_end(c, wire_code_errno(c->reply.code));
	return 1;
}

static int reply_extents(struct rconn *c)
{
	struct req *req = c->slot->req;

	while (c->extents_seen < c->reply.count) {
		struct extent *x = &req->extents->at[c->extents_seen];

		if (stream_avail(&c->stream) < WIRE_EXTENT_LEN)
			return 0;
		wire_extent_decode(stream_peek(&c->stream), &x->len, &x->zero);
		stream_take(&c->stream, WIRE_EXTENT_LEN);
		if (!x->len || x->len > req->range.len - c->extents_len)
			return -EPROTO;
		c->extents_len += x->len;
		c->extents_seen++;
	}
	req->extents->count = c->reply.count;
	reply_end(c, 0);
	return 1;
}

int rconn_replies(struct rconn *c)
{
	int r = 1;

	while (r == 1 && rconn_is_up(c)) {
		switch (c->part) {
		case REPLY_HEAD:
			r = reply_head(c);
			break;
		case REPLY_RUNS:
			r = reply_runs(c);
			break;
		case REPLY_DATA:
			r = stream_filled(&c->stream);
			if (r)
				reply_end(c, 0);
			break;
		case REPLY_PLACE:
			r = reply_place(c);
			break;
		case REPLY_TEXT:
			r = reply_text(c);
			break;
		case REPLY_EXTENTS:
			r = reply_extents(c);
			break;
		}
	}
	if (r < 0)
		return r;
	if (rconn_is_up(c))
		rconn_replay(c);
	remora_dispatch(c->m);
	return 0;
}

/* ---- losing ---- */

void rconn_requests_lost(struct rconn *c)
{
	struct list lost;
	struct link *k;

	/* What was sent goes before what was still to be sent again. */
	list_init(&lost);
	list_splice_back(&lost, &c->flight);
	list_splice_back(&lost, &c->replay);
	c->flight_count = 0;
	c->flight_bytes = 0;
	c->part = REPLY_HEAD;
	c->slot = NULL;
	while ((k = list_pop_front(&lost))) {
		struct rslot *slot = LIST_ENTRY(k, struct rslot, link);

		CHECK(!slot->sending);
		if (slot->replied) {
			slot->replied = false;
			slot_complete(slot, slot->err, NULL);
		} else {
			list_push_back(&c->replay, k);
		}
	}
}

void rconn_requests_fail(struct rconn *c, int err)
{
	struct list failed;
	struct link *k;

	list_init(&failed);
	list_splice_back(&failed, &c->replay);
	while ((k = list_pop_front(&failed))) {
		struct rslot *slot = LIST_ENTRY(k, struct rslot, link);

		c->poisoned = c->poisoned || req_op_changes(slot->req->op);
		slot_complete(slot, err, c->m->why[0] ? c->m->why : NULL);
	}
}

void remora_queues_fail(struct remora *m, int err)
{
	struct list failed;
	struct link *k;

	list_init(&failed);
	list_splice_back(&failed, &m->first.waiting);
	for (unsigned q = 0; q < RQUEUES; q++)
		list_splice_back(&failed, &m->queue[q]);
	while ((k = list_pop_front(&failed))) {
		struct req *req = LIST_ENTRY(k, struct req, link);

		req->ret_why = m->why[0] ? m->why : NULL;
		req_done(req, err);
	}
}
