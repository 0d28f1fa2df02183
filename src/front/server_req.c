/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of one client of the server: read, checked once, submitted to the export's store,
 * answered.
 *
 *   stream ── decode ── request_check ── buffer ── payload ── req_submit ── sreq_done ── reply
 *      ▲                                   │
 *      └──────── held until a request, a buffer or room for replies is free ───────┘
 *
 * Invariants: what has passed request_check() is valid for the store; nobody looks again. A request
 * that is refused leaves the stream in step: its payload is skipped. What contradicts itself ends
 * the connection. busy = requests out of the idle list; a buffer belongs to one of them.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "front/server_int.h"

static const enum req_op req_ops[WIRE_OPS_END] = {
	[WIRE_READ] = REQ_READ, [WIRE_WRITE] = REQ_WRITE,     [WIRE_FLUSH] = REQ_FLUSH,
	[WIRE_ZERO] = REQ_ZERO, [WIRE_TRIM] = REQ_TRIM,	      [WIRE_EXTENTS] = REQ_EXTENTS,
	[WIRE_PREFETCH] = REQ_PREFETCH,
};

int sreqs_open(struct sconn *c)
{
	uint32_t count = c->sv->limits.requests_max;

	c->reqs = calloc(count, sizeof(*c->reqs));
	if (!c->reqs || smem_open(&c->mem, c->sv->limits.bytes_max)) {
		free(c->reqs);
		c->reqs = NULL;
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < count; i++) {
		c->reqs[i].conn = c;
		list_push_back(&c->idle, &c->reqs[i].link);
	}
	return 0;
}

void sreqs_close(struct sconn *c)
{
	if (!c->reqs)
		return;
	splaces_close(c);
	smem_close(&c->mem);
	free(c->reqs);
	c->reqs = NULL;
}

/* ---- one request's place ---- */

static void sreq_mem_put(struct sreq *s)
{
	if (s->mem)
		smem_put(s->shared ? &s->conn->shm : &s->conn->mem, s->mem, s->mem_len);
	s->mem = NULL;
}

static struct sreq *sreq_get(struct sconn *c, const struct wire_request *w)
{
	struct sreq *s = LIST_ENTRY(list_pop_front(&c->idle), struct sreq, link);

	c->busy++;
	s->wire = *w;
	s->mem = NULL;
	s->mem_len = 0;
	s->shared = false;
	s->why[0] = '\0';
	return s;
}

static void sreq_put(struct sreq *s)
{
	struct sconn *c = s->conn;

	sreq_mem_put(s);
	list_push_front(&c->idle, &s->link);
	CHECK(c->busy);
	c->busy--;
	sconn_progress(c); /* may free the connection */
}

void sreqs_body_drop(struct sconn *c)
{
	struct sreq *s = c->body;

	if (!s)
		return;
	c->body = NULL;
	sreq_mem_put(s);
	list_push_front(&c->idle, &s->link);
	c->busy--;
}

/* ---- replying ---- */

static void sreq_sent(struct stream_frame *frame, int err)
{
	(void)err; /* the stream tells of it */
	sreq_put(CONTAINER_OF(frame, struct sreq, frame));
}

/* The data stays where it is, and the client is told the place. */
static bool reply_placed(struct sreq *s, struct wire_reply *reply)
{
	uint64_t off;

	if (!s->shared || !splaces_add(s->conn, s->mem, s->mem_len, &off))
		return false;
	s->mem = NULL; /* the place's now */
	wire_place_encode(off, s->head + WIRE_REPLY_LEN);
	s->iov[0].iov_len += WIRE_PLACE_LEN;
	reply->count = WIRE_COUNT_PLACED;
	reply->payload = WIRE_PLACE_LEN;
	s->conn->sv->counts.bytes_read += s->wire.range.len;
	s->conn->sv->counts.placed += s->wire.range.len;
	return true;
}

static void reply_data(struct sreq *s, struct wire_reply *reply)
{
	struct wire_run all = { .len = (uint32_t)s->wire.range.len, .zero = true };
	struct wire_run runs[WIRE_RUNS_MAX] = { all };
	size_t data = 0, count = 1;
	uint8_t *at = s->mem;
	int n = 1;

	if (!s->req.ret_zero)
		count = wire_runs_find(at, s->wire.range.len, runs, &data);
	if (!count && reply_placed(s, reply))
		return;
	wire_runs_encode(runs, count, s->head + WIRE_REPLY_LEN);
	s->iov[0].iov_len += count * WIRE_RUN_LEN;
	if (!count)
		s->iov[n++] = (struct iovec){ at, data };
	for (size_t i = 0; i < count; i++) {
		if (!runs[i].zero)
			s->iov[n++] = (struct iovec){ at, runs[i].len };
		at += runs[i].len;
	}
	CHECK(n <= (int)ARRAY_LEN(s->iov));
	s->frame.iov_count = n;
	reply->count = (uint16_t)count;
	reply->payload = (uint32_t)(count * WIRE_RUN_LEN + data);
	s->conn->sv->counts.bytes_read += s->wire.range.len;
	s->conn->sv->counts.zeros += s->wire.range.len - data;
	if (!data)
		sreq_mem_put(s);
}

/* In place: what is written is never longer than what has been read from there. */
static void reply_extents(struct sreq *s, struct wire_reply *reply)
{
	size_t count = s->extents.count;

	static_assert(sizeof(struct extent) >= WIRE_EXTENT_LEN, "encoding in place");
	CHECK(count && count <= s->wire.count);
	for (size_t i = 0; i < count; i++) {
		struct extent x = s->extents.at[i];

		wire_extent_encode(x.len, x.zero, s->mem + i * WIRE_EXTENT_LEN);
	}
	reply->count = (uint16_t)count;
	reply->payload = (uint32_t)(count * WIRE_EXTENT_LEN);
	s->iov[s->frame.iov_count++] = (struct iovec){ s->mem, reply->payload };
}

static void reply_error(struct sreq *s, struct wire_reply *reply, uint32_t code)
{
	size_t len = strnlen(s->why, sizeof(s->why));

	reply->code = code;
	reply->payload = (uint32_t)len;
	reply->len = 0;
	s->conn->sv->counts.failed++;
	if (len)
		s->iov[s->frame.iov_count++] = (struct iovec){ s->why, len };
}

static void sreq_reply(struct sreq *s, uint32_t code, uint64_t instance)
{
	struct sconn *c = s->conn;
	struct wire_reply reply = { .op = s->wire.op, .id = s->wire.id, .len = s->wire.range.len,
				    .instance = server_export_instance(c->sv, c->export,
								       instance) };

	s->iov[0] = (struct iovec){ s->head, WIRE_REPLY_LEN };
	s->frame = (struct stream_frame){ .iov = s->iov, .iov_count = 1, .sent = sreq_sent };
	if (code)
		reply_error(s, &reply, code);
	else if (s->wire.op == WIRE_READ)
		reply_data(s, &reply);
	else if (s->wire.op == WIRE_EXTENTS)
		reply_extents(s, &reply);
	wire_reply_encode(&reply, s->head);
	stream_send(&c->stream, &s->frame, s->wire.flags & WIRE_URGENT);
}

static void sreq_done(struct req *req, int err)
{
	struct sreq *s = CONTAINER_OF(req, struct sreq, req);
	struct sconn *c = s->conn;

	CHECK(c->in_store && c->export->pending);
	c->in_store--;
	c->export->pending--;
	if (c->state != SCONN_UP && c->state != SCONN_DRAINING) {
		sreq_put(s);
		return;
	}
	if (err)
		snprintf(s->why, sizeof(s->why), "%s",
			 req->ret_why ? req->ret_why : strerrordesc_np(-err));
	if (s->wire.op == WIRE_WRITE || err)
		sreq_mem_put(s);
	sreq_reply(s, wire_code_of(err), req->ret_instance);
}

/* ---- reading ---- */

/* Everything about a request that does not follow from its own bytes is checked here, and nowhere
 * else. */
static uint32_t request_check(const struct sconn *c, const struct wire_request *w)
{
	const struct store_info *info = &c->export->store->info;
	struct range r = w->range;

	if (w->op == WIRE_FLUSH)
		return WIRE_OK;
	if (!r.len || !range_within(r, info->size))
		return WIRE_EINVAL;
	if (c->read_only && req_op_changes(req_ops[w->op]))
		return WIRE_EROFS;
	if ((w->op == WIRE_READ || w->op == WIRE_WRITE) && r.len > c->len_max)
		return WIRE_EINVAL;
	if (w->op != WIRE_EXTENTS && w->op != WIRE_PREFETCH &&
	    (r.off % info->align || (r.len % info->align && range_end(r) != info->size)))
		return WIRE_EINVAL;
	return WIRE_OK;
}

static void sreq_submit(struct sreq *s, enum req_op op)
{
	struct sconn *c = s->conn;
	uint8_t flags = s->wire.flags;

	s->req.op = op;
	s->req.flags = (flags & WIRE_FUA ? REQ_FUA : 0) | (flags & WIRE_URGENT ? REQ_URGENT : 0) |
		       (flags & WIRE_BACKGROUND ? REQ_BACKGROUND : 0);
	s->req.range = s->wire.range;
	s->req.data = (struct iobuf){ s->mem, s->wire.range.len };
	s->req.extents = NULL;
	s->req.done = sreq_done;
	if (op == REQ_EXTENTS) {
		s->extents = (struct extents){ .at = (struct extent *)(void *)s->mem,
					       .max = s->wire.count };
		s->req.extents = &s->extents;
	}
	c->in_store++;
	c->export->pending++;
	c->sv->counts.requests++;
	req_submit(c->export->store, &s->req);
}

/* The zero runs of a WRITE are made here, its data is received between them. */
static void write_receive(struct sconn *c, struct sreq *s, const struct wire_run *runs)
{
	struct iovec iov[WIRE_RUNS_MAX];
	size_t count = s->wire.count;
	uint8_t *at = s->mem;
	int n = 0;

	if (!count)
		iov[n++] = (struct iovec){ at, s->wire.range.len };
	for (size_t i = 0; i < count; i++) {
		if (runs[i].zero) {
			memset(at, 0, runs[i].len);
			c->sv->counts.zeros += runs[i].len;
		} else {
			iov[n++] = (struct iovec){ at, runs[i].len };
		}
		at += runs[i].len;
	}
	c->body = s;
	(void)!stream_fill(&c->stream, iov, n); /* sreqs_read() asks */
}

enum read_result { READ_ON, READ_MORE /* bytes are needed */, READ_HOLD };

static enum read_result request_refused(struct sconn *c, const struct wire_request *w,
					uint32_t code)
{
	struct sreq *s = sreq_get(c, w);

	snprintf(s->why, sizeof(s->why), "%s", wire_code_text(code));
	stream_take(&c->stream, WIRE_REQUEST_LEN);
	c->skipping = !stream_skip(&c->stream, w->payload);
	sreq_reply(s, code, 0);
	return READ_ON;
}

static enum read_result request_begin(struct sconn *c, const struct wire_request *w)
{
	uint32_t code = request_check(c, w);
	uint64_t bytes = wire_request_bytes(w->op, w->range.len, w->count);
	size_t table = w->op == WIRE_WRITE ? w->count * WIRE_RUN_LEN : 0;
	struct wire_run runs[WIRE_RUNS_MAX];
	uint8_t *mem = NULL;
	struct sreq *s;
	bool shared;

	if (code)
		return request_refused(c, w, code);
	if (table) {
		if (stream_avail(&c->stream) < WIRE_REQUEST_LEN + table)
			return READ_MORE;
		if (wire_runs_decode(stream_peek(&c->stream) + WIRE_REQUEST_LEN, w->count,
				     w->range.len,
				     w->payload - table, runs)) {
			sconn_offend(c, "runs that contradict their request");
			return READ_MORE;
		}
	}
	if (w->op == WIRE_WRITE && w->payload == table &&
	    c->export->store->info.zero == CAP_NATIVE) {
		/* Nothing but zeros: no buffer is needed to say so. */
		stream_take(&c->stream, WIRE_REQUEST_LEN + table);
		c->sv->counts.zeros += w->range.len;
		c->sv->counts.bytes_written += w->range.len;
		sreq_submit(sreq_get(c, w), REQ_ZERO);
		return READ_ON;
	}
	if (w->flags & WIRE_MAY_PLACE)
		mem = splaces_get(c, bytes);
	shared = mem != NULL;
	if (bytes && !mem) {
		mem = smem_get(&c->mem, bytes);
		if (!mem)
			return READ_HOLD;
	}
	stream_take(&c->stream, WIRE_REQUEST_LEN + table);
	s = sreq_get(c, w);
	s->mem = mem;
	s->shared = shared;
	s->mem_len = bytes;
	if (w->op == WIRE_WRITE)
		write_receive(c, s, runs);
	else
		sreq_submit(s, req_ops[w->op]);
	return READ_ON;
}

static enum read_result request_read(struct sconn *c)
{
	struct wire_request w;

	if (!stream_filled(&c->stream))
		return READ_MORE;
	c->skipping = false;
	if (c->body) {
		struct sreq *s = c->body;

		c->body = NULL;
		c->sv->counts.bytes_written += s->wire.range.len;
		sreq_submit(s, REQ_WRITE);
		return READ_ON;
	}
	if (stream_avail(&c->stream) < WIRE_REQUEST_LEN)
		return READ_MORE;
	if (wire_request_decode(stream_peek(&c->stream), &w)) {
		sconn_offend(c, "a request that is none");
		return READ_MORE;
	}
	if (w.op == WIRE_ALIVE) {
		stream_take(&c->stream, WIRE_REQUEST_LEN);
		return READ_ON;
	}
	if (w.op == WIRE_RELEASE) {
		stream_take(&c->stream, WIRE_REQUEST_LEN);
		if (splaces_release(c, w.range))
			sconn_offend(c, "it released what it does not have");
		return READ_ON;
	}
	if (list_empty(&c->idle) || c->stream.unsent > c->sv->limits.unsent_max)
		return READ_HOLD;
	return request_begin(c, &w);
}

void sreqs_read(struct sconn *c)
{
	enum read_result r = READ_ON;

	while (r == READ_ON && c->state == SCONN_UP)
		r = request_read(c);
	if (r != READ_HOLD || c->state != SCONN_UP)
		return;
	c->held = true;
	stream_pause(&c->stream);
}

void sreqs_first(struct sconn *c)
{
	const struct store_info *info = &c->export->store->info;
	struct wire_request w = { .op = WIRE_READ, .flags = WIRE_URGENT, .id = WIRE_ID_FIRST };
	uint32_t code;
	struct sreq *s;

	w.range = range_cut(c->first, range_of(0, info->size));
	w.range = range_cut(w.range,
			    range_of(w.range.off, MIN(WIRE_FIRST_MAX, (uint64_t)c->len_max)));
	code = request_check(c, &w);
	s = sreq_get(c, &w);
	s->mem_len = wire_request_bytes(w.op, w.range.len, 0);
	if (!code)
		s->mem = smem_get(&c->mem, s->mem_len);
	if (s->mem)
		sreq_submit(s, REQ_READ);
	else
		sreq_reply(s, code ? code : (uint32_t)WIRE_ENOMEM, 0);
}
