/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections through the emulated link.
 *
 *   client ── up: receive ▶ blocks, paced ▶ send ──▶ target
 *          ◀── down: send ◀ blocks, paced ◀ receive ──
 *
 * Place: between the sockets (io/loop.h) and the arithmetic (link_pace.h). Each flow is one
 * direction of one connection: it receives while its way has room, keeps the bytes in a chain of
 * blocks, and sends what has become due.
 *
 * Setting up: a client's connect() succeeds at once, because a socket cannot be made to wait with
 * it; so the round trip that a real connect costs is added behind it. The target sees the
 * connection after one delay, the client's first bytes count as sent after two (when its connect
 * would have returned), and arrive after three.
 *
 * The end: the end of a stream travels like a byte. A reset also, and resets the other side.
 *
 * Invariants: a block belongs to one flow or to the idle list. A connection is freed when it is
 * dying, none of its ops is pending and its post has run, and only in conn_check(). Flows that wait
 * for room are in their pipe's list.
 *
 * Locking: none; one loop.
 */
#include "cmd/link_emu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AT_ONCE_NS (NS_PER_MS / 4) /* what is received so soon had been there before */
#define BLOCK_BYTES (256 * KIB)
#define BLOCK_ROOM_MIN (16 * KIB) /* a tail with less room is left alone */
#define IDLE_BLOCKS_MAX 256u
#define SEND_IOV_MAX 16
#define BACKLOG 128
#define LISTEN_AGAIN_NS (100 * NS_PER_MS)

struct block {
	struct link link;
	size_t start, end;
	uint8_t *data; /* BLOCK_BYTES */
};

enum flow_end { END_NONE, END_FIN, END_RESET };

struct flow {
	struct conn *conn;
	struct emu_pipe *pipe;
	int from_fd, to_fd; /* the connection's */
	struct pace_line line;
	struct list blocks;
	struct op rx, tx;
	struct iovec iov[SEND_IOV_MAX];
	struct timer timer; /* for what becomes due */
	struct link waiting;
	enum flow_end end; /* what the sender's side said; travels behind the bytes */
	uint64_t end_due_ns;
	bool open;	   /* may receive */
	bool waited;	   /* for room, before the receive that is pending */
	uint64_t asked_ns; /* when that began */
	bool full;	   /* the reader is slow */
	bool finished;	   /* the end has been handed over, or nobody is there to take it */
};

struct conn {
	struct emu *emu;
	struct link link;
	struct flow flow[EMU_WAYS];
	int client_fd, target_fd;
	struct op connect_op;
	struct timer timer; /* the steps of setting up */
	enum { CONN_NEW, CONN_CONNECTING, CONN_REFUSED, CONN_HALF_OPEN, CONN_OPEN } state;
	struct post post;
	bool dying, posted, held; /* held: a step came due during a stall */
};

static void flow_receive(struct flow *f);
static void flow_send(struct flow *f);

static uint64_t emu_now(struct emu *emu)
{
	return emu->stalled ? emu->stalled_at_ns : loop_now_fresh(emu->loop);
}

/* ---- blocks ---- */

static struct block *block_get(struct emu *emu)
{
	struct link *k = list_pop_front(&emu->idle_blocks);
	struct block *b;

	if (k) {
		emu->idle_block_count--;
		b = LIST_ENTRY(k, struct block, link);
	} else {
		b = calloc(1, sizeof(*b));
		if (!b || !(b->data = aligned_alloc(PAGE_BYTES, BLOCK_BYTES))) {
			free(b);
			return NULL;
		}
	}
	b->start = b->end = 0;
	return b;
}

static void block_free(struct block *b)
{
	free(b->data);
	free(b);
}

/* Last in, first out: what was used a moment ago is in the processor's cache. */
static void block_put(struct emu *emu, struct block *b)
{
	link_remove(&b->link);
	if (emu->idle_block_count == IDLE_BLOCKS_MAX) {
		block_free(b);
		return;
	}
	list_push_front(&emu->idle_blocks, &b->link);
	emu->idle_block_count++;
}

/* ---- the life of a connection ---- */

static void conn_check(struct conn *c)
{
	struct emu *emu = c->emu;

	if (!c->dying || c->posted || op_pending(&c->connect_op))
		return;
	for (int i = 0; i < EMU_WAYS; i++)
		if (op_pending(&c->flow[i].rx) || op_pending(&c->flow[i].tx))
			return;
	for (int i = 0; i < EMU_WAYS; i++) {
		struct flow *f = &c->flow[i];
		struct link *k;

		CHECK(!timer_is_set(&f->timer) && !link_linked(&f->waiting));
		while ((k = list_first(&f->blocks)))
			block_put(emu, LIST_ENTRY(k, struct block, link));
		pace_line_done(&f->line);
	}
	loop_close_fd(emu->loop, c->client_fd);
	if (c->target_fd >= 0)
		loop_close_fd(emu->loop, c->target_fd);
	link_remove(&c->link);
	emu->conn_count--;
	free(c);
}

static void conn_post(struct post *post)
{
	struct conn *c = CONTAINER_OF(post, struct conn, post);

	c->posted = false;
	conn_check(c);
}

/* With `reset` the peers get a reset as far as their kind of socket has one; else the end of the
 * stream. */
static void conn_kill(struct conn *c, bool reset)
{
	const struct linger linger = { .l_onoff = 1 };
	struct emu *emu = c->emu;

	if (c->dying)
		return;
	c->dying = true;
	if (reset) {
		(void)setsockopt(c->client_fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
		if (c->target_fd >= 0)
			(void)setsockopt(c->target_fd, SOL_SOCKET, SO_LINGER, &linger,
					 sizeof(linger));
	}
	timer_clear(emu->loop, &c->timer);
	op_cancel(emu->loop, &c->connect_op);
	for (int i = 0; i < EMU_WAYS; i++) {
		struct flow *f = &c->flow[i];

		timer_clear(emu->loop, &f->timer);
		link_remove(&f->waiting);
		op_cancel(emu->loop, &f->rx);
		op_cancel(emu->loop, &f->tx);
	}
	c->posted = true; /* freed from the loop: callers on the stack still hold it */
	loop_defer(emu->loop, &c->post);
}

/* ---- sending ---- */

static void flow_finish(struct flow *f)
{
	struct conn *c = f->conn;

	f->finished = true;
	if (f->end == END_RESET)
		conn_kill(c, true);
	else if (c->flow[EMU_UP].finished && c->flow[EMU_DOWN].finished)
		conn_kill(c, false);
	else if (f->end == END_FIN)
		(void)shutdown(f->to_fd, SHUT_WR);
}

/* Nobody takes the bytes any more: they fall off the end of the link, as do those that still come.
 */
static void flow_drop(struct flow *f)
{
	struct link *k;

	pace_take(&f->line, f->line.bytes);
	LIST_EACH(b, &f->blocks)
		LIST_ENTRY(b, struct block, link)->start = LIST_ENTRY(b, struct block, link)->end;
	while (!op_pending(&f->rx) && (k = list_first(&f->blocks)))
		block_put(f->conn->emu, LIST_ENTRY(k, struct block, link));
}

static void flow_sent(struct op *op, int res)
{
	struct flow *f = CONTAINER_OF(op, struct flow, tx);
	struct emu *emu = f->conn->emu;
	uint64_t left = res > 0 ? (uint64_t)res : 0;
	struct link *k;

	if (f->conn->dying) {
		conn_check(f->conn);
		return;
	}
	if (res < 0) {
		flow_drop(f);
		flow_finish(f);
		return;
	}
	f->pipe->delivered += left;
	pace_take(&f->line, left);
	while ((k = list_first(&f->blocks))) {
		struct block *b = LIST_ENTRY(k, struct block, link);
		size_t n = MIN(left, b->end - b->start);

		b->start += n;
		left -= n;
		if (b->start < b->end || (op_pending(&f->rx) && b->link.next == &f->blocks.head))
			break;
		block_put(emu, b);
	}
	flow_send(f);
	if (f->full) {
		f->full = false;
		flow_receive(f);
	}
}

static void flow_send(struct flow *f)
{
	struct emu *emu = f->conn->emu;
	uint64_t now = emu_now(emu), due;
	int count = 0;
	size_t len = 0;

	if (emu->stalled || f->finished || f->conn->dying || op_pending(&f->tx) || f->to_fd < 0)
		return;
	due = pace_due(&f->line, now);
	LIST_EACH(k, &f->blocks) {
		struct block *b = LIST_ENTRY(k, struct block, link);
		size_t n = MIN(due - len, b->end - b->start);

		if (!n || count == SEND_IOV_MAX)
			break;
		f->iov[count++] = (struct iovec){ b->data + b->start, n };
		len += n;
	}
	if (len) {
		timer_clear(emu->loop, &f->timer);
		op_sendv_all(emu->loop, &f->tx, f->to_fd, f->iov, count);
	} else if (f->line.bytes) {
		timer_set(emu->loop, &f->timer, pace_next(&f->line, now));
	} else if (f->end && now >= f->end_due_ns) {
		flow_finish(f);
	} else if (f->end) {
		timer_set(emu->loop, &f->timer, f->end_due_ns);
	}
}

static void flow_due(struct timer *timer)
{
	flow_send(CONTAINER_OF(timer, struct flow, timer));
}

/* ---- receiving ---- */

static void flow_received(struct op *op, int res)
{
	struct flow *f = CONTAINER_OF(op, struct flow, rx);
	struct emu *emu = f->conn->emu;
	uint64_t now = emu_now(emu);
	bool there = f->waited && now - f->asked_ns < AT_ONCE_NS;

	if (f->conn->dying) {
		conn_check(f->conn);
		return;
	}
	if (res <= 0) {
		f->end = res ? END_RESET : END_FIN;
		f->end_due_ns = MAX(now + f->pipe->pace.delay_ns, pace_end(&f->line));
		if (f->finished) /* nobody to tell */
			flow_finish(f);
		else
			flow_send(f);
		return;
	}
	if (f->finished) {
		flow_drop(f);
	} else {
		LIST_ENTRY(f->blocks.head.prev, struct block, link)->end += (size_t)res;
		f->pipe->received += (uint64_t)res;
		if (pace_add(&f->pipe->pace, &f->line, now, (uint64_t)res, there)) {
			conn_kill(f->conn, true);
			return;
		}
		if (!timer_is_set(&f->timer)) /* else what comes before is still waited for */
			flow_send(f);
	}
	f->waited = there;
	flow_receive(f);
}

static struct block *flow_tail(struct flow *f)
{
	struct block *b = list_empty(&f->blocks)
				  ? NULL
				  : LIST_ENTRY(f->blocks.head.prev, struct block, link);

	if (b && b->start == b->end && !op_pending(&f->tx))
		b->start = b->end = 0;
	if (b && BLOCK_BYTES - b->end >= BLOCK_ROOM_MIN)
		return b;
	b = block_get(f->conn->emu);
	if (b)
		list_push_back(&f->blocks, &b->link);
	return b;
}

static void flow_receive(struct flow *f)
{
	struct emu *emu = f->conn->emu;
	struct emu_pipe *p = f->pipe;
	uint64_t room = pace_room(&p->pace, emu_now(emu));
	struct block *b;
	size_t len;

	if (emu->stalled || !f->open || f->end || f->conn->dying || op_pending(&f->rx) ||
	    link_linked(&f->waiting))
		return;
	f->full = f->line.bytes >= pace_line_max(&p->pace);
	if (f->full)
		return;
	if (!room) {
		list_push_back(&p->waiting, &f->waiting);
		if (!timer_is_set(&p->timer))
			timer_set(emu->loop, &p->timer, pace_room_at(&p->pace));
		return;
	}
	b = flow_tail(f);
	if (!b) {
		conn_kill(f->conn, true);
		return;
	}
	len = MIN(BLOCK_BYTES - b->end, MIN(room, pace_turn(&p->pace)));
	f->asked_ns = emu_now(emu);
	op_recv(emu->loop, &f->rx, f->from_fd, b->data + b->end, len);
}

/* There is room in the way: each that waits takes one turn. */
static void pipe_room(struct timer *timer)
{
	struct emu_pipe *p = CONTAINER_OF(timer, struct emu_pipe, timer);
	struct list batch;
	struct link *k;

	list_init(&batch);
	list_splice_back(&batch, &p->waiting);
	while ((k = list_pop_front(&batch))) {
		struct flow *f = LIST_ENTRY(k, struct flow, waiting);

		f->waited = true;
		flow_receive(f);
	}
}

/* ---- setting up ---- */

static void conn_connected(struct op *op, int res)
{
	struct conn *c = CONTAINER_OF(op, struct conn, connect_op);
	struct emu *emu = c->emu;

	if (c->dying) {
		conn_check(c);
		return;
	}
	c->state = res < 0 ? CONN_REFUSED : CONN_HALF_OPEN;
	if (res < 0) {
		log_info(&loop_env(emu->loop)->log, "the target refused a connection: %s",
			 strerror(-res));
	} else {
		c->flow[EMU_UP].to_fd = c->flow[EMU_DOWN].from_fd = c->target_fd;
		c->flow[EMU_DOWN].open = true;
		flow_receive(&c->flow[EMU_DOWN]);
	}
	timer_set(emu->loop, &c->timer, loop_now(emu->loop) + emu->pipe[EMU_DOWN].pace.delay_ns);
}

static void conn_step(struct timer *timer)
{
	struct conn *c = CONTAINER_OF(timer, struct conn, timer);
	struct emu *emu = c->emu;

	c->held = emu->stalled;
	if (c->held)
		return;
	switch (c->state) {
	case CONN_NEW:
		c->target_fd = loop_socket(emu->loop, emu->to.domain);
		if (c->target_fd < 0) {
			conn_kill(c, true);
			break;
		}
		c->state = CONN_CONNECTING;
		op_connect(emu->loop, &c->connect_op, c->target_fd,
			   (const struct sockaddr *)&emu->to.ss, emu->to.len);
		break;
	case CONN_REFUSED:
		conn_kill(c, true);
		break;
	case CONN_HALF_OPEN:
		c->state = CONN_OPEN;
		c->flow[EMU_UP].open = true;
		flow_receive(&c->flow[EMU_UP]);
		break;
	default:
		CHECK(!"a step of setting up");
	}
}

static void conn_new(struct emu *emu, int fd)
{
	struct conn *c = calloc(1, sizeof(*c));

	if (!c) {
		loop_close_fd(emu->loop, fd);
		return;
	}
	sock_tune(fd, emu->listen_addr.domain);
	c->emu = emu;
	c->client_fd = fd;
	c->target_fd = -1;
	c->connect_op.done = conn_connected;
	c->timer.fire = conn_step;
	c->post.run = conn_post;
	for (int i = 0; i < EMU_WAYS; i++) {
		struct flow *f = &c->flow[i];

		f->conn = c;
		f->pipe = &emu->pipe[i];
		f->from_fd = i == EMU_UP ? fd : -1;
		f->to_fd = i == EMU_UP ? -1 : fd;
		f->rx.done = flow_received;
		f->tx.done = flow_sent;
		f->timer.fire = flow_due;
		list_init(&f->blocks);
	}
	list_push_back(&emu->conns, &c->link);
	emu->conn_count++;
	emu->accepted++;
	timer_set(emu->loop, &c->timer, loop_now(emu->loop) + emu->pipe[EMU_UP].pace.delay_ns);
}

static void listener_close(struct emu *emu)
{
	loop_close_fd(emu->loop, emu->listen_fd);
	emu->listen_fd = -1;
}

static void emu_accepted(struct op *op, int res)
{
	struct emu *emu = CONTAINER_OF(op, struct emu, accept_op);

	if (emu->refusing) {
		if (res >= 0)
			loop_close_fd(emu->loop, res);
		listener_close(emu);
		return;
	}
	if (res >= 0) {
		conn_new(emu, res);
		op_accept(emu->loop, &emu->accept_op, emu->listen_fd);
	} else { /* out of descriptors, for one; not for ever, perhaps */
		log_warn(&loop_env(emu->loop)->log, "accepting a connection: %s", strerror(-res));
		timer_set(emu->loop, &emu->listen_timer, loop_now(emu->loop) + LISTEN_AGAIN_NS);
	}
}

static int emu_listen(struct emu *emu)
{
	int fd = loop_listen(emu->loop, (const struct sockaddr *)&emu->listen_addr.ss,
			     emu->listen_addr.len, BACKLOG);

	if (fd < 0)
		return fd;
	emu->listen_fd = fd;
	emu->listen_addr.len = sizeof(emu->listen_addr.ss);
	(void)loop_sockname(emu->loop, fd, &emu->listen_addr.ss, &emu->listen_addr.len);
	op_accept(emu->loop, &emu->accept_op, fd);
	return 0;
}

static void emu_listen_again(struct timer *timer)
{
	struct emu *emu = CONTAINER_OF(timer, struct emu, listen_timer);
	int r = 0;

	if (emu->refusing && op_pending(&emu->accept_op)) { /* the listener is still being closed */
		timer_set(emu->loop, timer, loop_now(emu->loop) + NS_PER_MS);
		return;
	}
	emu->refusing = false;
	if (emu->listen_fd >= 0)
		op_accept(emu->loop, &emu->accept_op, emu->listen_fd);
	else
		r = emu_listen(emu);
	if (r) {
		log_error(&loop_env(emu->loop)->log, "listening again: %s", strerror(-r));
		timer_set(emu->loop, &emu->listen_timer, loop_now(emu->loop) + LISTEN_AGAIN_NS);
	}
}

/* ---- what can be done to it ---- */

void emu_stall(struct emu *emu, bool on)
{
	uint64_t ns;

	if (emu->stalled == on)
		return;
	if (on) {
		emu->stalled_at_ns = loop_now(emu->loop);
		emu->stalled = true;
		return;
	}
	ns = loop_now(emu->loop) - emu->stalled_at_ns;
	emu->stalled = false;
	for (int i = 0; i < EMU_WAYS; i++) {
		pace_way_shift(&emu->pipe[i].pace, ns);
		pipe_room(&emu->pipe[i].timer);
	}
	LIST_EACH(k, &emu->conns) {
		struct conn *c = LIST_ENTRY(k, struct conn, link);

		for (int i = 0; i < EMU_WAYS; i++) {
			pace_line_shift(&c->flow[i].line, ns);
			c->flow[i].end_due_ns += ns;
			flow_send(&c->flow[i]);
			flow_receive(&c->flow[i]);
		}
		if (c->held && !c->dying)
			timer_set(emu->loop, &c->timer, loop_now(emu->loop));
	}
}

static void emu_refuse(struct emu *emu)
{
	emu->refusing = true;
	if (op_pending(&emu->accept_op))
		op_cancel(emu->loop, &emu->accept_op);
	else if (emu->listen_fd >= 0)
		listener_close(emu);
}

void emu_cut(struct emu *emu, uint64_t refuse_ns)
{
	LIST_EACH(k, &emu->conns)
		conn_kill(LIST_ENTRY(k, struct conn, link), true);
	if (!refuse_ns)
		return;
	emu_refuse(emu);
	timer_set(emu->loop, &emu->listen_timer, loop_now(emu->loop) + refuse_ns);
}

void emu_changed(struct emu *emu)
{
	if (emu->stalled)
		return;
	for (int i = 0; i < EMU_WAYS; i++) {
		timer_clear(emu->loop, &emu->pipe[i].timer);
		pipe_room(&emu->pipe[i].timer);
	}
}

uint64_t emu_bytes(struct emu *emu, enum emu_way way)
{
	uint64_t bytes = 0;

	LIST_EACH(k, &emu->conns)
		bytes += LIST_ENTRY(k, struct conn, link)->flow[way].line.bytes;
	return bytes;
}

/* ---- opening and closing ---- */

int emu_open(struct emu *emu, struct loop *loop, struct err *e)
{
	char text[SOCK_TEXT_MAX];
	int r;

	emu->loop = loop;
	emu->listen_fd = -1;
	emu->accept_op.done = emu_accepted;
	emu->listen_timer.fire = emu_listen_again;
	list_init(&emu->conns);
	list_init(&emu->idle_blocks);
	for (int i = 0; i < EMU_WAYS; i++) {
		emu->pipe[i].emu = emu;
		emu->pipe[i].timer.fire = pipe_room;
		list_init(&emu->pipe[i].waiting);
	}
	r = emu_listen(emu);
	return r ? err_sys(e, r, "listening on %s", sock_format(&emu->listen_addr, text)) : 0;
}

void emu_close(struct emu *emu)
{
	const struct sockaddr_un *un = (const struct sockaddr_un *)&emu->listen_addr.ss;

	emu->closing = true;
	timer_clear(emu->loop, &emu->listen_timer);
	emu_cut(emu, 0);
	emu_refuse(emu);
	for (int i = 0; i < EMU_WAYS; i++)
		timer_clear(emu->loop, &emu->pipe[i].timer);
	if (emu->listen_addr.domain == AF_UNIX && un->sun_path[0])
		unlink(un->sun_path);
}

bool emu_is_closed(const struct emu *emu)
{
	return emu->closing && !emu->conn_count && !op_pending(&emu->accept_op) &&
	       emu->listen_fd < 0;
}

void emu_done(struct emu *emu)
{
	struct link *k;

	CHECK(emu_is_closed(emu));
	while ((k = list_pop_front(&emu->idle_blocks)))
		block_free(LIST_ENTRY(k, struct block, link));
}
