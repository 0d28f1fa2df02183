/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of the server: greeting, replacing a former connection, keeping alive, ending.
 *
 *   state    │ left by
 *   ─────────┼────────────────────────────────────────────────────────────────────────────────────
 *   HELLO    │ hello → WAITING (conn_hello); refused → DRAINING; offence, deadline, lost → STOPPING
 *   WAITING  │ no older connection of the session and index is left → UP (sconn_welcome_if_free)
 *   UP       │ server closes → DRAINING; lost, silent, stuck, offence, replaced → STOPPING
 *   DRAINING │ everything has been answered and sent, or the deadline → STOPPING
 *   STOPPING │ the stream has stopped → ENDED
 *   ENDED    │ the last request has come back from the store → freed
 *
 * Invariants: a replaced connection stays in sv->conns until the store has given back its last
 * request; only then is the new one greeted, so an old write never lands on a new one. A client
 * that is not read from (held) is not silent. No client can make another one wait: what it may
 * occupy is its own (requests, buffers, room for replies).
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "front/server_int.h"

static uint64_t now_of(const struct sconn *c)
{
	return loop_now(c->sv->loop);
}

/* ---- ending ---- */

static void sconn_free(struct sconn *c)
{
	struct server *sv = c->sv;

	CHECK(c->state == SCONN_ENDED && !c->busy && !c->in_store);
	sreqs_close(c);
	free(c->list);
	link_remove(&c->link);
	sv->conn_count--;
	server_conn_ended(sv);
	free(c);
}

void sconn_stop(struct sconn *c)
{
	if (c->state == SCONN_STOPPING || c->state == SCONN_ENDED)
		return;
	c->state = SCONN_STOPPING;
	timer_clear(c->sv->loop, &c->timer);
	if (c->greeted)
		c->sv->greeted--;
	c->greeted = false;
	stream_stop(&c->stream);
}

void sconn_abandon(struct sconn *c)
{
	c->mem.used = c->shm.used = 0;
	c->places = 0;
	sreqs_close(c);
	stream_abandon(&c->stream);
	free(c->list);
	free(c);
}

static void conn_stopped(struct stream *s)
{
	struct sconn *c = CONTAINER_OF(s, struct sconn, stream);

	CHECK(c->state == SCONN_STOPPING);
	c->state = SCONN_ENDED;
	sreqs_body_drop(c);
	if (!c->busy)
		sconn_free(c);
}

void sconn_drain(struct sconn *c, uint64_t until_ns)
{
	CHECK(c->state != SCONN_STOPPING && c->state != SCONN_ENDED);
	c->state = SCONN_DRAINING;
	stream_pause(&c->stream);
	if (until_ns == NEVER_NS)
		timer_clear(c->sv->loop, &c->timer);
	else
		timer_set(c->sv->loop, &c->timer, until_ns);
	sconn_progress(c);
}

void sconn_progress(struct sconn *c)
{
	switch (c->state) {
	case SCONN_UP:
		if (!c->held)
			break;
		c->held = false;
		sreqs_read(c);
		if (c->state != SCONN_UP || c->held)
			break;
		c->stream.received_ns = now_of(c); /* it was we who did not listen */
		stream_resume(&c->stream);
		break;
	case SCONN_DRAINING:
		/* A WRITE of which only a part has been read will not be whole any more. */
		if (c->busy == (c->body ? 1u : 0u) && !c->stream.unsent)
			sconn_stop(c);
		break;
	case SCONN_ENDED:
		if (!c->busy)
			sconn_free(c);
		break;
	default:
		break;
	}
}

static void sconn_dropped(struct sconn *c, const char *why)
{
	if (c->state == SCONN_STOPPING || c->state == SCONN_ENDED)
		return;
	c->sv->counts.dropped++;
	log_info(&loop_env(c->sv->loop)->log, "server: a client was dropped: %s", why);
	sconn_stop(c);
}

void sconn_offend(struct sconn *c, const char *what)
{
	sconn_dropped(c, what);
}

/* ---- greeting ---- */

static void answer_sent(struct stream_frame *frame, int err)
{
	struct sconn *c = CONTAINER_OF(frame, struct sconn, answer_frame);

	if (!err)
		sconn_progress(c);
}

static void answer_send(struct sconn *c, const uint8_t *at, size_t len)
{
	c->answer_iov = (struct iovec){ (void *)(uintptr_t)at, len };
	c->answer_frame = (struct stream_frame){ .iov = &c->answer_iov, .iov_count = 1,
						 .sent = answer_sent };
	stream_send(&c->stream, &c->answer_frame, true);
}

void sconn_refuse(struct sconn *c, uint32_t code, const char *fmt, ...)
{
	char text[WIRE_REFUSAL_TEXT_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	c->sv->counts.refused++;
	answer_send(c, c->answer, wire_refusal_encode(code, text, c->answer, sizeof(c->answer)));
	sconn_drain(c, now_of(c) + c->sv->limits.handshake_ns);
}

static bool same_place(const struct sconn *a, const struct sconn *b)
{
	return a != b && a->index == b->index && a->state >= SCONN_WAITING &&
	       b->state >= SCONN_WAITING &&
	       memcmp(a->session, b->session, sizeof(a->session)) == 0;
}

static bool welcome_fill(struct sconn *c, struct wire_welcome *w)
{
	const struct server_limits *l = &c->sv->limits;
	const struct store_info *info = &c->export->store->info;
	uint64_t len_max = MIN(MIN((uint64_t)l->len_max, (uint64_t)info->len_max),
			       MIN((uint64_t)c->payload_max, l->bytes_max / 2));

	*w = (struct wire_welcome){
		.size = info->size,
		.instance = server_export_instance(c->sv, c->export, 0),
		.identity = info->identity,
		.chunk = (uint32_t)MIN(MAX((uint64_t)info->chunk, CHUNK_MIN), CHUNK_MAX),
		.align = info->align,
		.len_max = (uint32_t)align_down(len_max, info->align),
		.requests_max = l->requests_max,
		.bytes_max = l->bytes_max,
		.keep_alive_ms = (uint32_t)(l->keep_alive_ns / NS_PER_MS),
		.silence_ms = (uint32_t)(l->silence_ns / NS_PER_MS),
		.conns_max = (uint16_t)l->conns_session_max,
		.caps = (c->read_only ? WIRE_CAP_READ_ONLY : 0) |
			(c->read_only ? 0 : WIRE_CAP_ZERO) |
			(info->trim == CAP_NATIVE && !c->read_only ? WIRE_CAP_TRIM : 0) |
			(info->fua != CAP_NONE && !c->read_only ? WIRE_CAP_FUA : 0) |
			(info->extents == CAP_NATIVE ? WIRE_CAP_EXTENTS : 0) |
			(info->prefetch == CAP_NATIVE ? WIRE_CAP_PREFETCH : 0),
	};
	c->len_max = w->len_max;
	return w->len_max != 0;
}

static void welcome_send(struct sconn *c, struct wire_welcome *w)
{
	AUTO_FD int fd = splaces_open(c);

	if (fd >= 0) {
		w->caps |= WIRE_CAP_SHARED;
		if (!stream_send_fd(&c->stream, c->answer, wire_welcome_encode(w, c->answer), fd))
			return;
		splaces_close(c);
		w->caps &= ~(uint32_t)WIRE_CAP_SHARED;
	}
	answer_send(c, c->answer, wire_welcome_encode(w, c->answer));
}

static void sconn_welcome(struct sconn *c)
{
	struct wire_welcome w;
	int r;

	if (!welcome_fill(c, &w)) {
		sconn_refuse(c, WIRE_EINVAL, "replies of %u bytes are too short for this resource",
			     c->payload_max);
		return;
	}
	r = sreqs_open(c);
	if (r) {
		sconn_refuse(c, WIRE_ENOMEM, "the server has no memory for another connection");
		return;
	}
	c->state = SCONN_UP;
	if (c->index == 0)
		c->sv->counts.sessions++;
	welcome_send(c, &w);
	timer_set(c->sv->loop, &c->timer, now_of(c) + c->sv->limits.keep_alive_ns);
	if (c->first.len)
		sreqs_first(c);
	/* There may be requests behind the hello already. */
	c->held = true;
	sconn_progress(c);
}

void sconn_welcome_if_free(struct sconn *c)
{
	if (c->state != SCONN_WAITING)
		return;
	LIST_EACH (k, &c->sv->conns) {
		if (same_place(c, LIST_ENTRY(k, struct sconn, link)))
			return;
	}
	sconn_welcome(c);
}

/* Ends the former connections of the same session and index. False when it is this one that is
 * old. */
static bool replace_former(struct sconn *c)
{
	LIST_EACH (k, &c->sv->conns) {
		struct sconn *other = LIST_ENTRY(k, struct sconn, link);

		if (same_place(c, other) && other->attempt >= c->attempt)
			return false;
	}
	LIST_EACH (k, &c->sv->conns) {
		struct sconn *other = LIST_ENTRY(k, struct sconn, link);

		if (!same_place(c, other) || other->state >= SCONN_STOPPING)
			continue;
		c->sv->counts.replaced++;
		sconn_stop(other);
	}
	return true;
}

static void conn_list(struct sconn *c)
{
	const uint8_t *list;
	size_t len;

	if (c->sv->list_hidden) {
		sconn_refuse(c, WIRE_EACCES, "this server does not tell what it has");
		return;
	}
	list = sconn_list(c, &len);
	if (!list) {
		sconn_refuse(c, WIRE_ENOMEM, "the server has no memory for the list");
		return;
	}
	answer_send(c, list, len);
	sconn_drain(c, now_of(c) + c->sv->limits.handshake_ns);
}

static void conn_hello_taken(struct sconn *c, const struct wire_hello *hello)
{
	struct server *sv = c->sv;
	bool may_only_read;

	if (hello->flags & WIRE_HELLO_LIST) {
		conn_list(c);
		return;
	}
	c->export = sconn_export_find(c, hello->name, hello->name_len);
	if (!c->export || !sconn_may(c, c->export, &may_only_read)) {
		sconn_refuse_name(c, hello->name, hello->name_len);
		return;
	}
	if (hello->index >= sv->limits.conns_session_max) {
		sconn_refuse(c, WIRE_EBUSY, "at most %u connections per client",
			     sv->limits.conns_session_max);
		return;
	}
	memcpy(c->session, hello->session, sizeof(c->session));
	c->index = hello->index;
	c->attempt = hello->attempt;
	c->payload_max = hello->payload_max;
	c->first = hello->first;
	c->wants_shared = hello->flags & WIRE_HELLO_SHARED;
	c->read_only = hello->flags & WIRE_HELLO_READ_ONLY || may_only_read ||
		       c->export->read_only ||
		       c->export->store->info.read_only;
	c->state = SCONN_WAITING;
	if (!replace_former(c)) {
		sconn_refuse(c, WIRE_ESTALE, "a newer connection of this client has been here");
		return;
	}
	if (sv->greeted >= sv->limits.conns_max) {
		sconn_refuse(c, WIRE_EBUSY, "too many clients: at most %u connections",
			     sv->limits.conns_max);
		return;
	}
	c->greeted = true;
	sv->greeted++;
	stream_pause(&c->stream);
	sconn_welcome_if_free(c);
}

static void conn_hello(struct sconn *c)
{
	struct wire_hello hello;
	size_t len;
	int r;

	if (stream_avail(&c->stream) < WIRE_PREFIX_LEN)
		return;
	r = wire_hello_prefix(stream_peek(&c->stream), &len, &hello);
	if (r == -EPROTONOSUPPORT) {
		sconn_refuse(c, WIRE_EVERSION,
			     "this server speaks version %u of the protocol, the client %u to %u",
			     WIRE_VERSION, hello.version_min, hello.version_max);
		return;
	}
	if (!r && stream_avail(&c->stream) < len)
		return;
	if (!r)
		r = wire_hello_decode(stream_peek(&c->stream), len, &hello);
	if (r) {
		sconn_offend(c, "it does not speak the Remora protocol");
		return;
	}
	stream_take(&c->stream, len); /* hello.name stays where it is while nothing is read */
	conn_hello_taken(c, &hello);
}

/* ---- callbacks ---- */

static void conn_ready(struct stream *s)
{
	struct sconn *c = CONTAINER_OF(s, struct sconn, stream);

	if (c->state == SCONN_HELLO)
		conn_hello(c);
	else if (c->state == SCONN_UP)
		sreqs_read(c);
}

static void conn_lost(struct stream *s, int err)
{
	struct sconn *c = CONTAINER_OF(s, struct sconn, stream);

	(void)err; /* clients come and go */
	if (c->state == SCONN_HELLO && *stream_why(s)) {
		c->sv->counts.refused++;
		server_tell_refused(c->sv, c, stream_why(s));
	}
	sconn_stop(c);
}

static void alive_sent(struct stream_frame *frame, int err)
{
	(void)err;
	CONTAINER_OF(frame, struct sconn, alive_frame)->alive_sending = false;
}

static void sconn_keep_alive(struct sconn *c)
{
	const struct server_limits *l = &c->sv->limits;
	uint64_t now = now_of(c), next = now + l->keep_alive_ns;

	if (!c->held && now >= c->stream.received_ns + l->silence_ns) {
		sconn_dropped(c, "it is silent");
		return;
	}
	if (!c->stream.unsent)
		c->stall_ns = 0;
	else if (!c->stall_ns)
		c->stall_ns = now;
	if (c->stall_ns && now >= MAX(c->stall_ns, c->stream.sent_ns) + l->stall_ns) {
		sconn_dropped(c, "it does not take its replies");
		return;
	}
	if (now >= c->stream.sent_ns + l->keep_alive_ns && !c->stream.unsent && !c->alive_sending) {
		c->alive_sending = true;
		stream_send(&c->stream, &c->alive_frame, false);
	}
	if (!c->busy)
		smem_trim(&c->mem);
	if (c->shm.base)
		smem_trim(&c->shm);
	if (!c->stream.unsent && c->stream.sent_ns < now)
		next = c->stream.sent_ns + l->keep_alive_ns;
	if (!c->held)
		next = MIN(next, c->stream.received_ns + l->silence_ns);
	timer_set(c->sv->loop, &c->timer, MAX(next, now + NS_PER_MS));
}

static void sconn_timer(struct timer *timer)
{
	struct sconn *c = CONTAINER_OF(timer, struct sconn, timer);

	switch (c->state) {
	case SCONN_HELLO:
		sconn_dropped(c, stream_is_secure(&c->stream) && !*stream_peer(&c->stream)
					 ? "its TLS handshake did not end in time"
					 : "it did not say hello in time");
		break;
	case SCONN_WAITING:
		sconn_dropped(c, "its former connection did not end in time");
		break;
	case SCONN_UP:
		sconn_keep_alive(c);
		break;
	default:
		sconn_stop(c);
		break;
	}
}

/* Who comes through a unix socket of this machine. */
static void uid_take(struct sconn *c)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	if (c->sv->allow_count && stream_passes_fds(&c->stream) &&
	    !getsockopt(c->stream.fd, SOL_SOCKET, SO_PEERCRED, &who, &len)) {
		c->has_uid = true;
		c->uid = who.uid;
	}
}

int sconn_open(struct server *sv, int fd, struct tls *tls, struct sconn **ret)
{
	const struct wire_reply alive = { .op = WIRE_ALIVE };
	struct sconn *c;
	int r;

	*ret = NULL;
	c = sv->conn_count < sv->limits.conns_max + SERVER_CONNS_UNGREETED ? calloc(1,
										    sizeof(*c))
											: NULL;
	if (!c) {
		sv->counts.refused++;
		loop_close_fd(sv->loop, fd);
		return -EBUSY;
	}
	c->sv = sv;
	c->stream.ready = conn_ready;
	c->stream.lost = conn_lost;
	c->stream.stopped = conn_stopped;
	r = stream_open(&c->stream, sv->loop, fd);
	if (r) {
		free(c);
		return r;
	}
	if (tls && stream_secure(&c->stream, tls)) {
		loop_close_fd(sv->loop, fd);
		stream_abandon(&c->stream);
		free(c);
		return -ENOMEM;
	}
	uid_take(c);
	list_init(&c->idle);
	wire_reply_encode(&alive, c->alive);
	c->alive_iov = (struct iovec){ c->alive, sizeof(c->alive) };
	c->alive_frame = (struct stream_frame){ .iov = &c->alive_iov, .iov_count = 1,
						.sent = alive_sent };
	c->timer.fire = sconn_timer;
	timer_set(sv->loop, &c->timer, now_of(c) + sv->limits.handshake_ns);
	list_push_back(&sv->conns, &c->link);
	sv->conn_count++;
	sv->counts.accepted++;
	stream_start(&c->stream);
	*ret = c;
	return 0;
}
