/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated network: stream sockets between loops.
 *
 * A connection has two directions. What is sent is cut into segments; each gets its time of arrival
 * when it is sent: it leaves after what its host has sent before (bandwidth), takes a delay and
 * perhaps a stall, and never overtakes the segment before it. A direction holds a bounded number of
 * bytes, under way or arrived and unread; beyond it a send waits, as with a window. SYN, its
 * answers, FIN and RST are segments too, so that they are as slow as data and as stuck in a
 * partition.
 *
 * States of a socket: fresh (no conn) -> connecting -> established -> err or eof -> closed. A conn
 * lives as long as one of its two sockets.
 *
 * Invariants: dir->arrive is set exactly when the direction has a segment under way and is not
 * held; a direction is held from the moment when an arrival met a partition, until it heals. Ops
 * wait in sock->reads and sock->writes, of which the first is worked on.
 */
#include "io/sim_int.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

enum seg_kind { SEG_SYN, SEG_ACCEPTED, SEG_REFUSED, SEG_DATA, SEG_FIN, SEG_RST };

struct seg {
	struct link link;
	enum seg_kind kind;
	uint64_t at_ns;
	size_t len, used;
	unsigned char data[];
};

struct sim_conn;

struct dir {
	struct list flight, arrived; /* segs; only data in `arrived` */
	struct timer arrive;
	size_t bytes; /* of data, in both lists */
	uint64_t last_ns;
	bool held;
	struct sim_conn *conn;
	int from; /* side */
};

struct sim_addr {
	struct sockaddr_storage ss;
	socklen_t len;
};

struct sim_sock {
	struct sim_loop *owner;
	struct sim_conn *conn; /* NULL = fresh */
	int side;
	bool established, eof;
	int err;	     /* what the next op gets */
	struct list reads, writes;
	struct link backlog; /* of a listener, until accepted */
	struct sim_addr name;
};

struct sim_conn {
	struct sim *sim;
	struct link link;
	uint64_t id;
	/* 0 connected, 1 was accepted; NULL = closed, or not there yet */
	struct sim_sock *sock[2];
	struct sim_loop *owner[2];  /* NULL = crashed, or not known yet */
	struct dir dir[2];	    /* dir[i] is from side i */
	struct sim_addr to;
};

struct sim_listener {
	struct sim_loop *owner;
	struct link link;
	struct sim_addr name;
	struct list backlog, accepts; /* socks, ops */
	size_t waiting, waiting_max;
};

static struct seg *seg_of(struct link *k)
{
	return LIST_ENTRY(k, struct seg, link);
}

/* ---- directions ---- */

static bool dir_partitioned(const struct dir *d)
{
	const struct sim_loop *const *owner = (const struct sim_loop *const *)d->conn->owner;

	return (owner[0] && owner[0]->partitioned) || (owner[1] && owner[1]->partitioned);
}

static void dir_schedule(struct dir *d)
{
	struct sim *sim = d->conn->sim;
	struct link *first = list_first(&d->flight);

	if (!first || d->held)
		heap_clear(&sim->events, &d->arrive);
	else
		heap_set(&sim->events, &d->arrive, MAX(seg_of(first)->at_ns, sim->now_ns));
}

static void segs_free(struct dir *d, struct list *segs)
{
	struct link *k;

	while ((k = list_pop_front(segs))) {
		if (seg_of(k)->kind == SEG_DATA)
			d->bytes -= seg_of(k)->len - seg_of(k)->used;
		free(seg_of(k));
	}
}

static uint64_t delay_draw(struct sim *sim)
{
	return sim_between(sim, sim->net.delay_min_ns, sim->net.delay_max_ns);
}

static void dir_send(struct dir *d, enum seg_kind kind, struct seg *seg)
{
	struct sim *sim = d->conn->sim;
	struct sim_loop *owner = d->conn->owner[d->from];
	uint64_t leaves_ns = sim->now_ns, rate = sim->net.bytes_per_s;

	if (!seg)
		seg = sim_alloc(sizeof(*seg));
	seg->kind = kind;
	if (rate && owner && seg->len) {
		leaves_ns = MAX(leaves_ns, owner->link_free_ns) +
			    (uint64_t)((unsigned __int128)seg->len * NS_PER_S / rate);
		owner->link_free_ns = leaves_ns;
	}
	seg->at_ns = leaves_ns + delay_draw(sim);
	if (rng_chance(&sim->rng, sim->net.stall_per_million))
		seg->at_ns += rng_below(&sim->rng, sim->net.stall_max_ns + 1);
	seg->at_ns = d->last_ns = MAX(seg->at_ns, d->last_ns);
	list_push_back(&d->flight, &seg->link);
	dir_schedule(d);
}

/* What is under way is lost, and the receiver hears of it. */
static void dir_reset(struct dir *d)
{
	segs_free(d, &d->flight);
	d->last_ns = 0;
	dir_send(d, SEG_RST, NULL);
}

/* ---- connections ---- */

static void dir_arrive(struct timer *timer);

static struct sim_conn *conn_new(struct sim *sim)
{
	struct sim_conn *c = sim_alloc(sizeof(*c));

	c->sim = sim;
	c->id = ++sim->next_id;
	for (int i = 0; i < 2; i++) {
		list_init(&c->dir[i].flight);
		list_init(&c->dir[i].arrived);
		c->dir[i].arrive.fire = dir_arrive;
		c->dir[i].conn = c;
		c->dir[i].from = i;
	}
	list_push_back(&sim->conns, &c->link);
	return c;
}

static void conn_free(struct sim_conn *c)
{
	CHECK(!c->sock[0] && !c->sock[1]);
	for (int i = 0; i < 2; i++) {
		segs_free(&c->dir[i], &c->dir[i].flight);
		segs_free(&c->dir[i], &c->dir[i].arrived);
		CHECK(c->dir[i].bytes == 0);
		heap_clear(&c->sim->events, &c->dir[i].arrive);
	}
	link_remove(&c->link);
	free(c);
}

static struct sim_sock *sock_new(struct sim_loop *owner)
{
	struct sim_sock *s = sim_alloc(sizeof(*s));

	s->owner = owner;
	list_init(&s->reads);
	list_init(&s->writes);
	s->name.len = sizeof(sa_family_t);
	s->name.ss.ss_family = AF_UNIX;
	return s;
}

static void sock_join(struct sim_sock *s, struct sim_conn *c, int side)
{
	s->conn = c;
	s->side = side;
	c->sock[side] = s;
	c->owner[side] = s->owner;
}

/* ---- moving data ---- */

/* A simulated recv or send moves only part now and then. */
static size_t cut_short(struct sim *sim, size_t n)
{
	if (n < 2 || !rng_chance(&sim->rng, sim->net.short_per_million))
		return n;
	return 1 + (size_t)rng_below(&sim->rng, n - 1);
}

/* Copies between the op's buffers, from their current place on, and `flat`; fd_feed() moves the
 * place. */
static void op_copy(const struct op *op, size_t at, unsigned char *flat, size_t n, bool to_op)
{
	const struct iovec *iov = op->msg.msg_iov;

	for (; n; iov++) {
		size_t part;

		if (at >= iov->iov_len) {
			at -= iov->iov_len;
			continue;
		}
		part = MIN(n, iov->iov_len - at);
		if (to_op)
			memcpy((char *)iov->iov_base + at, flat, part);
		else
			memcpy(flat, (const char *)iov->iov_base + at, part);
		flat += part;
		n -= part;
		at = 0;
	}
}

static void send_segments(struct dir *d, const struct op *op, size_t n)
{
	struct sim *sim = d->conn->sim;

	for (size_t at = 0; at < n;) {
		size_t len = MIN(n - at, SIM_SEGMENT_MAX);
		struct seg *seg = sim_alloc(sizeof(*seg) + len);

		seg->len = len;
		op_copy(op, at, seg->data, len, false);
		d->bytes += len;
		at += len;
		dir_send(d, SEG_DATA, seg);
		if (rng_chance(&sim->rng, sim->net.reset_per_million)) {
			dir_reset(&d->conn->dir[0]);
			dir_reset(&d->conn->dir[1]);
			return; /* both sides will see it when it arrives */
		}
	}
}

static void sock_pump_writes(struct sim_sock *s)
{
	struct link *k;

	while ((k = list_first(&s->writes))) {
		struct sim *sim = s->owner->sim;
		struct op *op = op_of(k);
		struct dir *d = s->conn ? &s->conn->dir[s->side] : NULL;
		size_t max = sim->net.buffer_bytes ? sim->net.buffer_bytes : SIM_BUFFER_BYTES, n;

		if (s->err) {
			fd_feed(s->owner->loop, op, s->err);
			s->err = s->err == -ECONNRESET ? -EPIPE : s->err;
			continue;
		}
		if (op->kind == OP_CONNECT)
			return; /* a segment will tell */
		if (!s->established) {
			fd_feed(s->owner->loop, op, -ENOTCONN);
			continue;
		}
		if (d->bytes >= max)
			return;
		n = cut_short(sim, MIN(max - d->bytes, op->len - op->moved));
		send_segments(d, op, n);
		fd_feed(s->owner->loop, op, (int)n);
	}
}

static size_t take_arrived(struct dir *d, struct op *op, size_t max)
{
	size_t n = 0;
	struct link *k;

	while (n < max && (k = list_first(&d->arrived))) {
		struct seg *seg = seg_of(k);
		size_t part = MIN(max - n, seg->len - seg->used);

		op_copy(op, n, seg->data + seg->used, part, true);
		n += part;
		seg->used += part;
		d->bytes -= part;
		if (seg->used == seg->len) {
			link_remove(k);
			free(seg);
		}
	}
	return n;
}

static void sock_pump_reads(struct sim_sock *s)
{
	struct link *k;

	while ((k = list_first(&s->reads))) {
		struct op *op = op_of(k);
		struct dir *d = s->conn ? &s->conn->dir[1 - s->side] : NULL;
		struct sim_sock *peer;
		int res;

		if (d && !list_empty(&d->arrived)) {
			size_t max = cut_short(s->owner->sim, op->len - op->moved);

			res = (int)take_arrived(d, op, max);
		} else if (s->err) {
			res = s->err == -EPIPE ? -ECONNRESET : s->err;
		} else if (!s->established) {
			if (s->conn)
				return;
			res = -ENOTCONN;
		} else if (s->eof) {
			res = 0;
		} else {
			return;
		}
		fd_feed(s->owner->loop, op, res);
		peer = d ? d->conn->sock[d->from] : NULL;
		if (res > 0 && peer)
			sock_pump_writes(peer); /* there is room again */
	}
}

/* ---- arrivals ---- */

static struct sim_listener *listener_find(struct sim *sim, const struct sim_addr *addr)
{
	LIST_EACH (k, &sim->listeners) {
		struct sim_listener *l = LIST_ENTRY(k, struct sim_listener, link);

		if (l->name.len == addr->len && memcmp(&l->name.ss, &addr->ss, addr->len) == 0)
			return l;
	}
	return NULL;
}

static void listener_pump(struct sim_listener *l)
{
	while (!list_empty(&l->accepts) && !list_empty(&l->backlog)) {
		struct link *k = list_pop_front(&l->backlog);
		struct sim_sock *s = LIST_ENTRY(k, struct sim_sock, backlog);
		int fd = sim_fd_new(l->owner, SIM_SOCKET, s);

		l->waiting--;
		fd_feed(l->owner->loop, op_of(list_first(&l->accepts)), fd);
	}
}

static void arrive_syn(struct sim_conn *c)
{
	struct sim_listener *l = listener_find(c->sim, &c->to);
	struct sim_sock *s;

	if (!l || l->waiting >= l->waiting_max) {
		dir_send(&c->dir[1], SEG_REFUSED, NULL);
		return;
	}
	if (l->owner->partitioned && c->owner[0] != l->owner) {
		/* The host was not known before: the way to it is closed. */
		c->owner[1] = l->owner;
		dir_send(&c->dir[0], SEG_SYN, NULL);
		return;
	}
	s = sock_new(l->owner);
	s->name = l->name;
	s->established = true;
	sock_join(s, c, 1);
	dir_send(&c->dir[1], SEG_ACCEPTED, NULL);
	list_push_back(&l->backlog, &s->backlog);
	l->waiting++;
	listener_pump(l);
}

/* The op that connects is the first, unless it was cancelled meanwhile. */
static void connect_end(struct sim_sock *s, int res)
{
	struct link *k = list_first(&s->writes);

	if (k && op_of(k)->kind == OP_CONNECT)
		fd_feed(s->owner->loop, op_of(k), res);
}

static void arrive_refused(struct sim_sock *s)
{
	struct sim_conn *c = s->conn;

	s->conn = NULL;
	c->sock[0] = NULL;
	conn_free(c);
	connect_end(s, -ECONNREFUSED);
	sock_pump_writes(s);
	sock_pump_reads(s);
}

static void arrive_data(struct dir *d, struct seg *seg, struct sim_sock *to)
{
	struct sim_sock *from = d->conn->sock[d->from];

	if (to && !to->err) {
		list_push_back(&d->arrived, &seg->link);
		sock_pump_reads(to);
		return;
	}
	d->bytes -= seg->len;
	free(seg);
	if (!to && from && !from->err) /* closed: whoever still sends hears of it */
		dir_reset(&d->conn->dir[1 - d->from]);
}

static void arrive_rst(struct sim_sock *to)
{
	if (!to || to->err)
		return;
	to->err = -ECONNRESET;
	sock_pump_reads(to);
	sock_pump_writes(to);
}

static void arrive_accepted(struct sim_sock *to)
{
	to->established = true;
	connect_end(to, 0);
	sock_pump_writes(to);
	sock_pump_reads(to);
}

static void dir_arrive(struct timer *timer)
{
	struct dir *d = CONTAINER_OF(timer, struct dir, arrive);
	struct sim_conn *c = d->conn;
	struct sim_sock *to = c->sock[1 - d->from];
	struct seg *seg;
	enum seg_kind kind;

	if (dir_partitioned(d)) {
		d->held = true;
		return;
	}
	seg = seg_of(list_pop_front(&d->flight));
	dir_schedule(d);
	sim_fold(c->sim, DID_ARRIVE, c->id * 16 + (uint64_t)d->from * 8 + seg->kind, seg->len);
	sim_fold_data(c->sim, seg->data, seg->len);
	kind = seg->kind;
	if (kind == SEG_DATA) {
		arrive_data(d, seg, to);
		return;
	}
	free(seg);
	if (kind == SEG_SYN)
		arrive_syn(c);
	else if (kind == SEG_RST)
		arrive_rst(to);
	else if (!to || to->err)
		return;
	else if (kind == SEG_ACCEPTED)
		arrive_accepted(to);
	else if (kind == SEG_REFUSED)
		arrive_refused(to);
	else {
		to->eof = true;
		sock_pump_reads(to);
	}
}

void net_heal(struct sim *sim)
{
	LIST_EACH (k, &sim->conns) {
		struct sim_conn *c = LIST_ENTRY(k, struct sim_conn, link);

		for (int i = 0; i < 2; i++) {
			struct dir *d = &c->dir[i];
			struct link *first = list_first(&d->flight);

			if (!d->held || dir_partitioned(d))
				continue;
			d->held = false; /* sent again, as from now */
			if (first)
				seg_of(first)->at_ns = sim->now_ns + delay_draw(sim);
			dir_schedule(d);
		}
	}
}

/* ---- closing and breaking ---- */

static void ops_drop(struct list *ops)
{
	while (list_pop_front(ops))
		;
}

static void sock_close(struct sim_sock *s, bool crash)
{
	struct sim_conn *c = s->conn;

	if (crash) { /* its ops never complete */
		ops_drop(&s->reads);
		ops_drop(&s->writes);
	}
	CHECK(list_empty(&s->reads) && list_empty(&s->writes)); /* cancel first */
	if (c) {
		c->sock[s->side] = NULL;
		if (!c->sock[0] && !c->sock[1])
			conn_free(c);
		else if (!s->err && (crash || !s->established ||
				     !list_empty(&c->dir[1 - s->side].arrived)))
			dir_reset(&c->dir[s->side]);
		else if (!s->err)
			dir_send(&c->dir[s->side], SEG_FIN, NULL);
	}
	link_remove(&s->backlog);
	free(s);
}

static void listener_close(struct sim_listener *l, bool crash)
{
	struct link *k;

	if (crash)
		ops_drop(&l->accepts);
	CHECK(list_empty(&l->accepts));
	while ((k = list_pop_front(&l->backlog))) {
		struct sim_sock *s = LIST_ENTRY(k, struct sim_sock, backlog);

		if (!crash)
			/* reset, as the kernel does with those that nobody accepted */
			s->established = false;
		sock_close(s, crash);
	}
	link_remove(&l->link);
	free(l);
}

void net_close(struct sim_fd *f, bool crash)
{
	if (f->kind == SIM_LISTENER)
		listener_close(f->object, crash);
	else if (f->kind == SIM_SOCKET)
		sock_close(f->object, crash);
}

void net_forget(struct sim *sim, const struct sim_loop *l)
{
	LIST_EACH (k, &sim->conns) {
		struct sim_conn *c = LIST_ENTRY(k, struct sim_conn, link);

		for (int i = 0; i < 2; i++) {
			if (c->owner[i] == l)
				c->owner[i] = NULL;
		}
	}
	net_heal(sim); /* what its partition held is on its way */
}

void sim_cut(struct sim *sim, struct loop *loop)
{
	struct sim_loop *l = sim_of(loop);

	sim_fold(sim, DID_CUT, l->id, 0);
	LIST_EACH (k, &sim->conns) {
		struct sim_conn *c = LIST_ENTRY(k, struct sim_conn, link);

		if (c->owner[0] != l && c->owner[1] != l)
			continue;
		dir_reset(&c->dir[0]);
		dir_reset(&c->dir[1]);
	}
}

/* ---- the engine's calls ---- */

int net_socket(struct loop *loop, int domain)
{
	(void)domain;
	return sim_fd_new(sim_of(loop), SIM_SOCKET, sock_new(sim_of(loop)));
}

/* Port 0 stands for one that is free. */
static void addr_complete(struct sim *sim, struct sim_addr *a)
{
	in_port_t *port = NULL;

	if (a->ss.ss_family == AF_INET)
		port = &((struct sockaddr_in *)&a->ss)->sin_port;
	else if (a->ss.ss_family == AF_INET6)
		port = &((struct sockaddr_in6 *)&a->ss)->sin6_port;
	if (port && !*port)
		*port = htons((uint16_t)sim->next_port++);
}

int net_listen(struct loop *loop, const struct sockaddr *addr, socklen_t len, int backlog)
{
	struct sim *sim = sim_of(loop)->sim;
	struct sim_addr name = { .len = len };
	struct sim_listener *l;

	CHECK(len <= sizeof(name.ss));
	memcpy(&name.ss, addr, len);
	addr_complete(sim, &name);
	if (listener_find(sim, &name))
		return -EADDRINUSE;
	l = sim_alloc(sizeof(*l));
	l->owner = sim_of(loop);
	l->name = name;
	l->waiting_max = backlog > 0 ? (size_t)backlog : 1;
	list_init(&l->backlog);
	list_init(&l->accepts);
	list_push_back(&sim->listeners, &l->link);
	return sim_fd_new(l->owner, SIM_LISTENER, l);
}

int net_pair(struct loop *loop, int ret_fd[2])
{
	struct sim_conn *c = conn_new(sim_of(loop)->sim);

	for (int i = 0; i < 2; i++) {
		struct sim_sock *s = sock_new(sim_of(loop));

		s->established = true;
		sock_join(s, c, i);
		ret_fd[i] = sim_fd_new(s->owner, SIM_SOCKET, s);
	}
	return 0;
}

int net_name(struct loop *loop, int fd, struct sockaddr_storage *ret, socklen_t *ret_len)
{
	struct sim_listener *l = sim_fd_get(loop, fd, SIM_LISTENER);
	struct sim_sock *s = sim_fd_get(loop, fd, SIM_SOCKET);
	const struct sim_addr *name = l ? &l->name : s ? &s->name : NULL;

	if (!name)
		return -EBADF;
	*ret = name->ss;
	*ret_len = name->len;
	return 0;
}

static int connect_start(struct sim_sock *s, const struct op *op)
{
	struct sim_conn *c;

	if (s->conn)
		return s->established ? -EISCONN : -EALREADY;
	c = conn_new(s->owner->sim);
	c->to = (struct sim_addr){ op->addr, op->addr_len };
	sock_join(s, c, 0);
	dir_send(&c->dir[0], SEG_SYN, NULL);
	return 0;
}

void net_submit(struct loop *loop, struct op *op)
{
	struct sim_listener *l = NULL;
	struct sim_sock *s = NULL;
	int err;

	if (op->kind == OP_ACCEPT)
		l = sim_fd_get(loop, op->fd, SIM_LISTENER);
	else
		s = sim_fd_get(loop, op->fd, SIM_SOCKET);
	if (!l && !s) {
		loop_complete(loop, op, -EBADF);
		return;
	}
	if (op->kind == OP_CONNECT) {
		err = connect_start(s, op);
		if (err) {
			loop_complete(loop, op, err);
			return;
		}
	}
	op->where = AT_FD;
	if (l) {
		list_push_back(&l->accepts, &op->link);
		listener_pump(l);
	} else if (op_is_write_side(op)) {
		list_push_back(&s->writes, &op->link);
		sock_pump_writes(s);
	} else {
		list_push_back(&s->reads, &op->link);
		sock_pump_reads(s);
	}
}

void net_cancel(struct loop *loop, struct op *op)
{
	struct sim_sock *s = op->kind == OP_ACCEPT ? NULL : sim_fd_get(loop, op->fd, SIM_SOCKET);

	link_remove(&op->link);
	loop_complete(loop, op, -ECANCELED);
	if (s) { /* the next one may have been waiting for its turn only */
		sock_pump_writes(s);
		sock_pump_reads(s);
	}
}
