/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of the client of the Remora protocol: connecting, greeting, keeping alive, losing
 * and coming back.
 *
 *   state       │ left by
 *   ────────────┼─────────────────────────────────────────────────────────────────────────────────
 *   DOWN        │ timer → CONNECTING (rconn_connect); rconn_attach → HELLO
 *   CONNECTING  │ connected → HELLO (rconn_greet); error, deadline, drop → DOWN
 *   HELLO       │ welcome → UP (rconn_welcomed); refusal, error, deadline, drop → STOPPING
 *   UP          │ lost, silent, protocol error, drop → STOPPING
 *   STOPPING    │ stream has stopped → DOWN (rconn_down), which sets the timer for the next try
 *
 * The waits between tries grow from 10 ms to 1 s with jitter; once a connection has been away for
 * longer than requests wait, tries come at a slow pace, as long as the store is open.
 *
 * Invariants: the stream exists in HELLO, UP and STOPPING. Requests are in flight in UP and
 * STOPPING only. A server sends something at least each keep_alive_ms, and so do we; who is silent
 * for silence_ms is taken for dead.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "back/remora_int.h"

#define BACKOFF_MIN_NS (10 * NS_PER_MS)
#define BACKOFF_MAX_NS (1 * NS_PER_S)
#define SLOW_NS (5 * NS_PER_S) /* between tries when nobody waits any more */
#define TRIES_QUICK 8u	       /* of one that has never been there, beside others that are */

static void rconn_timer(struct timer *timer);
static void rconn_connected(struct op *op, int res);

static uint64_t now_of(const struct rconn *c)
{
	return loop_now(c->m->store.loop);
}

static void hello_sent(struct stream_frame *frame, int err)
{
	(void)frame;
	(void)err; /* the stream tells of it */
}

static void alive_sent(struct stream_frame *frame, int err)
{
	struct rconn *c = CONTAINER_OF(frame, struct rconn, alive_frame);

	(void)err;
	c->alive_sending = false;
}

void rconn_init(struct rconn *c, struct remora *m, unsigned index)
{
	const struct wire_request alive = { .op = WIRE_ALIVE };

	c->m = m;
	c->index = index;
	c->fd = -1;
	c->ssh.said_fd = -1;
	c->timer.fire = rconn_timer;
	c->op.done = rconn_connected;
	list_init(&c->flight);
	list_init(&c->replay);
	wire_request_encode(&alive, c->alive);
	c->alive_iov = (struct iovec){ c->alive, sizeof(c->alive) };
	c->alive_frame = (struct stream_frame){ .iov = &c->alive_iov, .iov_count = 1,
						.sent = alive_sent };
	c->hello_iov.iov_base = c->hello;
	c->hello_frame = (struct stream_frame){ .iov = &c->hello_iov, .iov_count = 1,
						.sent = hello_sent };
}

/* ---- down ---- */

static uint64_t backoff_next(struct rconn *c)
{
	uint64_t wait;

	if (c->expired || (!c->lost_ns && c->attempt > TRIES_QUICK))
		wait = SLOW_NS;
	else
		wait = c->backoff_ns ? MIN(2 * c->backoff_ns, BACKOFF_MAX_NS) : BACKOFF_MIN_NS;
	c->backoff_ns = wait;
	return wait / 2 + rng_below(&loop_env(c->m->store.loop)->rng, wait / 2 + 1);
}

/* All is given back. */
static void rconn_down(struct rconn *c)
{
	struct remora *m = c->m;

	CHECK(c->state != RCONN_UP);
	c->state = RCONN_DOWN;
	timer_clear(m->store.loop, &c->timer);
	rconn_requests_lost(c);
	if (c->index == 0)
		remora_first_drop(m);
	if (m->failed || m->ending) {
		rconn_requests_fail(c, m->failed ? m->failed : -ESHUTDOWN);
	} else if (m->can_connect && !m->opening) {
		if (c->expired)
			rconn_requests_fail(c, -ETIMEDOUT);
		timer_set(m->store.loop, &c->timer, now_of(c) + backoff_next(c));
	}
	remora_conn_is_down(m);
}

/* Somebody asks for more than patience: who sleeps between two tries tries soon. */
void rconn_hasten(struct rconn *c)
{
	uint64_t soon = now_of(c) + BACKOFF_MIN_NS;

	if (c->state == RCONN_DOWN && timer_is_set(&c->timer) && c->timer.at_ns > soon)
		timer_set(c->m->store.loop, &c->timer, soon);
}

/* It was there, and is not any more; it may still have to stop. */
static void rconn_count_loss(struct rconn *c)
{
	struct remora *m = c->m;

	CHECK(m->up);
	m->up--;
	m->counts.losses++;
	c->lost_ns = now_of(c);
	if (m->ending || m->failed)
		return;
	remora_expiry_set(m);
	if (!m->up && !m->lost) {
		m->lost = true;
		store_emit(&m->store, STORE_LOST);
	}
}

void rconn_drop(struct rconn *c, int err, const char *why)
{
	struct remora *m = c->m;
	enum rconn_state was = c->state;

	rssh_said(c, c->ssh_said, sizeof(c->ssh_said));
	/* Of a link that ended it knows more than we. */
	if (*c->ssh_said && (err == -ECONNRESET || err == -EPIPE || err == -ETIMEDOUT))
		why = c->ssh_said;
	if (m->opening && c->index == 0 && was != RCONN_DOWN && was != RCONN_STOPPING) {
		/* A text that is there already knows better. */
		if (!m->open_err.code)
			err_set(&m->open_err, err, "%s: %s", m->addr_text, why);
		remora_settle(m);
	}
	switch (was) {
	case RCONN_DOWN:
		timer_clear(m->store.loop, &c->timer);
		break;
	case RCONN_CONNECTING:
		op_cancel(m->store.loop, &c->op);
		break;
	case RCONN_HELLO:
	case RCONN_UP:
		c->state = RCONN_STOPPING;
		timer_clear(m->store.loop, &c->timer);
		stream_stop(&c->stream);
		if (was == RCONN_UP) {
			if (now_of(c) - c->up_ns >= BACKOFF_MAX_NS)
				c->backoff_ns = 0;
			log_info(&loop_env(m->store.loop)->log,
				 "remora: %s: connection %u lost: %s", m->addr_text,
				 c->index, why);
			rconn_count_loss(c);
		}
		break;
	case RCONN_STOPPING:
		break;
	}
}

/* ---- the stream's callbacks ---- */

/* Down, but perhaps for an ssh that has not ended. */
static void rconn_stopped(struct rconn *c)
{
	if (rssh_ends(c))
		return;
	rssh_clear(c);
	rconn_down(c);
}

static void conn_stopped(struct stream *s)
{
	struct rconn *c = CONTAINER_OF(s, struct rconn, stream);

	CHECK(c->state == RCONN_STOPPING);
	rplace_close(c);
	c->m->counts.bytes_received += s->received_bytes;
	c->m->counts.bytes_sent += s->sent_bytes;
	c->streaming = false;
	rconn_stopped(c);
}

void rconn_ssh_ended(struct rconn *c)
{
	if (c->streaming)
		return;
	CHECK(c->state == RCONN_STOPPING);
	rssh_clear(c);
	rconn_down(c);
}

static void conn_lost(struct stream *s, int err)
{
	struct rconn *c = CONTAINER_OF(s, struct rconn, stream);

	if (*stream_why(s))
		rconn_drop(c, err ? err : -ECONNRESET, stream_why(s));
	else if (c->state == RCONN_HELLO && !err)
		rconn_drop(c, -ECONNRESET,
			   c->m->tls || c->m->addr.domain == AF_UNIX
				   ? "it closed the connection without a greeting"
				   : "it closed the connection without a greeting; if it speaks "
				     "TLS, write remoras:// instead of remora://");
	else
		rconn_drop(c, err ? err : -ECONNRESET,
			   err ? strerrordesc_np(-err) : "closed by the server");
}

/* ---- greeting ---- */

static void rconn_welcomed(struct rconn *c, const struct wire_welcome *w)
{
	struct remora *m = c->m;
	uint64_t restarts = m->counts.restarts;

	if (w->caps & WIRE_CAP_SHARED)
		rplace_open(c);
	if (remora_welcome(m, c, w)) {
		remora_fail(m, -ESTALE, "%s", m->why);
		return;
	}
	c->state = RCONN_UP;
	c->up_ns = now_of(c);
	c->lost_ns = 0;
	c->expired = c->poisoned = false;
	c->part = REPLY_HEAD;
	c->slot = NULL;
	m->up++;
	m->counts.connects++;
	timer_set(m->store.loop, &c->timer, now_of(c) + w->keep_alive_ms * NS_PER_MS);
	remora_away_update(m);
	/* Those above hear of a restart before any request is answered by the new instance. */
	c->instance = m->store.info.instance;
	remora_instance(m, c, w->instance);
	if (m->lost && !m->ending) {
		m->lost = false;
		if (m->counts.restarts == restarts)
			store_emit(&m->store, STORE_BACK);
	}
	if (m->opening)
		remora_settle(m);
	if (!rconn_is_up(c))
		return;
	rconn_replay(c);
	remora_dispatch(m);
}

static void rconn_refused(struct rconn *c, const struct wire_refusal *refusal)
{
	char text[WIRE_REFUSAL_TEXT_MAX + 1];
	size_t len = MIN((size_t)refusal->text_len, sizeof(text) - 1);
	int err = wire_code_errno(refusal->code);

	memcpy(text, refusal->text, len);
	text[len] = '\0';
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	log_info(&loop_env(c->m->store.loop)->log, "remora: %s: refused: %s", c->m->addr_text,
		 text);
	rconn_drop(c, err, len ? text : wire_code_text(refusal->code));
}

/* 0 = it is not all there, 1 = greeted, or -errno. */
static int rconn_greeting(struct rconn *c)
{
	const uint8_t *at = stream_peek(&c->stream);
	struct wire_refusal refusal;
	struct wire_welcome welcome;
	enum wire_answer kind;
	size_t len;

	if (stream_avail(&c->stream) < WIRE_PREFIX_LEN)
		return 0;
	if (wire_answer_prefix(at, &kind, &len) || kind == WIRE_LIST)
		return -EPROTO;
	if (stream_avail(&c->stream) < len)
		return 0;
	if (kind == WIRE_REFUSAL) {
		if (wire_refusal_decode(at, len, &refusal))
			return -EPROTO;
		rconn_refused(c, &refusal);
		return 0;
	}
	if (wire_welcome_decode(at, len, &welcome))
		return -EPROTO;
	stream_take(&c->stream, len);
	rconn_welcomed(c, &welcome);
	return 1;
}

static void conn_ready(struct stream *s)
{
	struct rconn *c = CONTAINER_OF(s, struct rconn, stream);
	int r = 1;

	if (c->state == RCONN_HELLO)
		r = rconn_greeting(c);
	if (r > 0)
		r = rconn_replies(c);
	if (r < 0)
		rconn_drop(c, r,
			   c->state == RCONN_HELLO
				   ? "what answers there does not speak the Remora protocol"
				   : "the server broke the protocol");
}

static void rconn_hello(struct rconn *c)
{
	struct remora *m = c->m;
	uint32_t shared = c->shm_asked ? WIRE_HELLO_SHARED : 0;
	struct wire_hello hello = {
		.version_min = WIRE_VERSION,
		.version_max = WIRE_VERSION,
		.index = (uint16_t)c->index,
		.conns = (uint16_t)m->conn_count,
		.attempt = ++c->attempt,
		.flags = (m->read_only ? WIRE_HELLO_READ_ONLY : 0) | shared,
		.payload_max = WIRE_LEN_MAX + WIRE_RUNS_MAX * WIRE_RUN_LEN,
		.name_len = (uint16_t)strlen(m->name),
		.name = (const uint8_t *)m->name,
	};

	memcpy(hello.session, m->session, sizeof(hello.session));
	if (m->opening && m->first.state == FIRST_ASKED)
		hello.first = m->first.range;
	c->hello_iov.iov_len = wire_hello_encode(&hello, c->hello);
	stream_send(&c->stream, &c->hello_frame, true);
}

static void rconn_greet(struct rconn *c, int fd)
{
	struct remora *m = c->m;
	int r;

	c->stream.ready = conn_ready;
	c->stream.lost = conn_lost;
	c->stream.stopped = conn_stopped;
	r = stream_open(&c->stream, m->store.loop, fd);
	if (!r && m->tls) {
		r = stream_secure(&c->stream, m->tls);
		if (r) {
			loop_close_fd(m->store.loop, fd);
			stream_abandon(&c->stream);
		}
	}
	if (r) {
		rconn_drop(c, r, "out of memory");
		c->state = RCONN_STOPPING;
		rconn_stopped(c);
		return;
	}
	c->state = RCONN_HELLO;
	c->streaming = true;
	c->alive_sending = false;
	c->shm_asked = !m->ssh.host && stream_passes_fds(&c->stream);
	rconn_hello(c);
	if (c->shm_asked)
		stream_start_fd(&c->stream);
	else
		stream_start(&c->stream);
}

/* ---- connecting ---- */

static void rconn_connected(struct op *op, int res)
{
	struct rconn *c = CONTAINER_OF(op, struct rconn, op);
	struct remora *m = c->m;
	int fd = c->fd;

	CHECK(c->state == RCONN_CONNECTING);
	c->fd = -1;
	if (res >= 0 && !m->ending && !m->failed) {
		if (strcmp(loop_engine_name(m->store.loop), "sim") != 0)
			sock_tune(fd, m->addr.domain);
		rconn_greet(c, fd);
		return;
	}
	loop_close_fd(m->store.loop, fd);
	if (res < 0 && res != -ECANCELED)
		rconn_drop(c, res, strerrordesc_np(-res));
	rconn_down(c);
}

static uint64_t deadline_of(const struct rconn *c)
{
	uint64_t at = now_of(c) + c->m->connect_ns;

	return c->m->opening ? MIN(at, c->m->open_deadline_ns) : at;
}

static void rconn_connect_ssh(struct rconn *c)
{
	int fd, r = rssh_start(c, &fd);

	c->state = RCONN_CONNECTING;
	if (r) {
		rconn_drop(c, r, strerrordesc_np(-r));
		rconn_down(c);
		return;
	}
	timer_set(c->m->store.loop, &c->timer, deadline_of(c));
	rconn_greet(c, fd);
}

void rconn_connect(struct rconn *c)
{
	struct remora *m = c->m;
	struct loop *loop = m->store.loop;
	int fd;

	CHECK(c->state == RCONN_DOWN && m->can_connect);
	if (m->ssh.host) {
		rconn_connect_ssh(c);
		return;
	}
	fd = loop_socket(loop, m->addr.domain);
	c->state = RCONN_CONNECTING;
	if (fd < 0) {
		rconn_drop(c, fd, strerrordesc_np(-fd));
		rconn_down(c);
		return;
	}
	c->fd = fd;
	timer_set(loop, &c->timer, deadline_of(c));
	op_connect(loop, &c->op, fd, (const struct sockaddr *)&m->addr.ss, m->addr.len);
}

void rconn_attach(struct rconn *c, int fd)
{
	timer_set(c->m->store.loop, &c->timer, deadline_of(c));
	c->state = RCONN_CONNECTING;
	rconn_greet(c, fd);
}

/* ---- time ---- */

static void rconn_keep_alive(struct rconn *c)
{
	uint64_t keep_ns = c->keep_alive_ms * NS_PER_MS, silence_ns = c->silence_ms * NS_PER_MS;
	uint64_t now = now_of(c);

	if (now >= c->stream.received_ns + silence_ns) {
		rconn_drop(c, -ETIMEDOUT, "the server is silent");
		return;
	}
	if (c->ssh.pid) {
		rssh_said(c, c->ssh_said, sizeof(c->ssh_said));
		if (*c->ssh_said)
			log_info(&loop_env(c->m->store.loop)->log, "remora: %s: %s",
				 c->m->addr_text, c->ssh_said);
	}
	/* What waits to be sent shows as well as anything that we live. */
	if (now >= c->stream.sent_ns + keep_ns && !c->stream.unsent && !c->alive_sending) {
		c->alive_sending = true;
		stream_send(&c->stream, &c->alive_frame, false);
	}
	now = MAX(now, c->stream.sent_ns);
	timer_set(c->m->store.loop, &c->timer,
		  MIN(now + keep_ns, c->stream.received_ns + silence_ns));
}

static void rconn_timer(struct timer *timer)
{
	struct rconn *c = CONTAINER_OF(timer, struct rconn, timer);

	switch (c->state) {
	case RCONN_DOWN:
		rconn_connect(c);
		break;
	case RCONN_CONNECTING:
		rconn_drop(c, -ETIMEDOUT, "no connection in time");
		break;
	case RCONN_HELLO:
		rconn_drop(c, -ETIMEDOUT, "no greeting in time");
		break;
	case RCONN_UP:
		rconn_keep_alive(c);
		break;
	case RCONN_STOPPING:
		rssh_kill(c);
		break;
	}
}
