/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server of the Remora protocol: exports, listening, and the end.
 *
 * Place: a front end. server_conn.c has the life of a connection, server_req.c its requests,
 * server_mem.c its buffers. Requests go through req_submit() to the export's store.
 *
 * The instance id that clients hear is made from the server's own, new at each start, and the
 * store's: with either of them changed, what was acknowledged and not flushed may be gone.
 *
 * Invariants: sv->conns holds every connection until its last request has come back, oldest first.
 * The server is freed from a post of its own, when there are neither connections nor listeners.
 *
 * Locking: none; loop thread.
 */
#include "front/server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "front/server_int.h"

#define ACCEPT_RETRY_NS (100 * NS_PER_MS) /* no descriptors, no memory */
#define BACKLOG 128

/* ---- exports ---- */

uint64_t server_export_instance(const struct server *sv, const struct sexport *x, uint64_t of_store)
{
	uint64_t store = of_store ? of_store : x->store->info.instance;
	struct rng mix;

	if (!store)
		return sv->instance;
	rng_init(&mix, sv->instance ^ store);
	return rng_next(&mix) | 1; /* 0 means none */
}

static int exports_check(const struct server_options *o, struct err *e)
{
	if (!o->export_count || o->export_count > SERVER_EXPORTS_MAX)
		return err_set(e, -EINVAL, "a server has 1 to %u resources, not %zu",
			       SERVER_EXPORTS_MAX,
			       o->export_count);
	for (size_t i = 0; i < o->export_count; i++) {
		const char *name = o->exports[i].name;

		if (strlen(name) > NAME_LEN_MAX)
			return err_set(e, -ENAMETOOLONG,
				       "a resource's name has at most %u bytes: %.40s...",
				       NAME_LEN_MAX, name);
		for (size_t j = 0; j < i; j++)
			if (!strcmp(o->exports[j].name, name))
				return err_set(e, -EEXIST,
					       "two resources have the same name \"%s\"", name);
	}
	return 0;
}

static int exports_take(struct server *sv, const struct server_options *o)
{
	size_t len = WIRE_LIST_LEN;

	sv->exports = calloc(o->export_count, sizeof(*sv->exports));
	sv->list = malloc(WIRE_LIST_MAX);
	if (!sv->exports || !sv->list)
		return -ENOMEM;
	for (size_t i = 0; i < o->export_count; i++) {
		struct sexport *x = &sv->exports[i];
		struct wire_entry entry;

		snprintf(x->name, sizeof(x->name), "%s", o->exports[i].name);
		x->store = o->exports[i].store;
		x->read_only = o->exports[i].read_only || x->store->info.read_only;
		entry = (struct wire_entry){ .size = x->store->info.size, .read_only = x->read_only,
					     .name_len = (uint16_t)strlen(x->name),
					     .name = (const uint8_t *)x->name };
		len = wire_list_add(sv->list, WIRE_LIST_MAX, len, &entry);
		CHECK(len); /* limits.h: a list holds all names */
	}
	wire_list_finish(sv->list, len, (uint32_t)o->export_count);
	sv->list_len = len;
	sv->export_count = o->export_count;
	return 0;
}

/* ---- opening ---- */

static void limits_take(struct server_limits *l, const struct server_limits *given)
{
	*l = *given;
	l->conns_max = l->conns_max ? l->conns_max : SERVER_CONNS_MAX;
	if (!l->conns_session_max || l->conns_session_max > WIRE_CONNS_MAX)
		l->conns_session_max = WIRE_CONNS_MAX;
	l->requests_max = l->requests_max ? MIN(l->requests_max, UINT16_MAX) : SERVER_REQS_MAX;
	/* At least one block for a read, and one for the other half. */
	l->bytes_max = l->bytes_max ? l->bytes_max : SERVER_BYTES_MAX;
	l->bytes_max = MAX(l->bytes_max, (uint64_t)(4 * STORE_ALIGN_MAX));
	l->len_max = l->len_max ? MIN(l->len_max, (uint32_t)WIRE_LEN_MAX) : (uint32_t)WIRE_LEN_MAX;
	l->len_max = MAX(l->len_max, (uint32_t)STORE_ALIGN_MAX);
	l->unsent_max = l->unsent_max ? l->unsent_max : SERVER_UNSENT_MAX;
	l->handshake_ns = l->handshake_ns ? l->handshake_ns : 10 * NS_PER_S;
	l->keep_alive_ns = l->keep_alive_ns ? l->keep_alive_ns : 5 * NS_PER_S;
	l->keep_alive_ns = MAX(l->keep_alive_ns, WIRE_KEEP_ALIVE_MIN_MS * NS_PER_MS);
	l->silence_ns = MAX(l->silence_ns, 3 * l->keep_alive_ns);
	l->stall_ns = l->stall_ns ? l->stall_ns : 60 * NS_PER_S;
}

static void server_free(struct server *sv)
{
	if (!sv)
		return;
	free(sv->exports);
	free(sv->list);
	free(sv->uids);
	free(sv->allow);
	tls_unref(sv->tls);
	free(sv);
}

static void grace_over(struct timer *timer);
static void closed_run(struct post *post);

int server_open(struct server **ret, struct loop *loop, const struct server_options *o,
		struct err *e)
{
	struct server *sv;
	int r = exports_check(o, e);

	*ret = NULL;
	if (r)
		return r;
	sv = calloc(1, sizeof(*sv));
	if (!sv)
		return err_sys(e, -ENOMEM, "server");
	sv->loop = loop;
	limits_take(&sv->limits, &o->limits);
	sv->list_hidden = o->list_hidden;
	sv->anywhere = o->anywhere;
	sv->instance = o->instance ? o->instance : rng_next(&loop_env(loop)->rng) | 1;
	sv->grace.fire = grace_over;
	sv->closed_post.run = closed_run;
	list_init(&sv->conns);
	list_init(&sv->listens);
	if (o->uid_count) {
		sv->uids = calloc(o->uid_count, sizeof(*sv->uids));
		r = sv->uids ? 0 : -ENOMEM;
		if (!r)
			memcpy(sv->uids, o->uids, o->uid_count * sizeof(*sv->uids));
		sv->uid_count = o->uid_count;
	}
	if (!r)
		r = exports_take(sv, o);
	if (r)
		err_sys(e, r, "server");
	else
		r = sallows_take(sv, o, e);
	if (r) {
		server_free(sv);
		return r;
	}
	sv->tls = o->tls ? tls_ref(o->tls) : NULL;
	*ret = sv;
	return 0;
}

void server_tls_set(struct server *sv, struct tls *tls)
{
	CHECK(sv->tls && tls); /* clear or not: that does not change under those who come */
	tls_unref(sv->tls);
	sv->tls = tls_ref(tls);
}

/* ---- listening ---- */

static bool is_real(struct loop *loop)
{
	return strcmp(loop_engine_name(loop), "sim") != 0;
}

static bool user_allowed(const struct server *sv, const struct slisten *l, int fd)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	if (l->addr.domain != AF_UNIX || !sv->uid_count || !is_real(sv->loop))
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len))
		return false;
	for (size_t i = 0; i < sv->uid_count; i++)
		if (sv->uids[i] == who.uid)
			return true;
	return false;
}

static void server_settle(struct server *sv)
{
	if (sv->closing && list_empty(&sv->conns) && list_empty(&sv->listens) &&
	    !link_linked(&sv->closed_post.link))
		loop_defer(sv->loop, &sv->closed_post);
}

static void listen_end(struct slisten *l)
{
	struct server *sv = l->sv;
	const struct sockaddr_un *un = (const struct sockaddr_un *)&l->addr.ss;

	timer_clear(sv->loop, &l->timer);
	if (l->addr.domain == AF_UNIX && un->sun_path[0] && is_real(sv->loop))
		(void)unlink(un->sun_path);
	loop_close_fd(sv->loop, l->fd);
	link_remove(&l->link);
	free(l);
	server_settle(sv);
}

static void listen_accepted(struct op *op, int res)
{
	struct slisten *l = CONTAINER_OF(op, struct slisten, op);
	struct server *sv = l->sv;
	struct tls *tls = l->addr.domain == AF_UNIX ? NULL : sv->tls;
	struct sconn *c;

	if (sv->closing) {
		if (res >= 0)
			loop_close_fd(sv->loop, res);
		listen_end(l);
		return;
	}
	if (res < 0) {
		if (res == -ECONNABORTED || res == -EINTR)
			op_accept(sv->loop, &l->op, l->fd);
		else
			timer_set(sv->loop, &l->timer, loop_now(sv->loop) + ACCEPT_RETRY_NS);
		return;
	}
	if (!user_allowed(sv, l, res)) {
		if (sconn_open(sv, res, tls, &c) == 0)
			sconn_refuse(c, WIRE_EACCES, "this server does not serve your user");
	} else if (sconn_open(sv, res, tls, &c)) {
		log_warn(&loop_env(sv->loop)->log,
			 "server: a connection was closed at once: too many of them");
	}
	op_accept(sv->loop, &l->op, l->fd);
}

static void listen_retry(struct timer *timer)
{
	struct slisten *l = CONTAINER_OF(timer, struct slisten, timer);

	op_accept(l->sv->loop, &l->op, l->fd);
}

int server_listen(struct server *sv, const struct sock_addr *addr, struct sock_addr *ret_addr,
		  struct err *e)
{
	char text[SOCK_TEXT_MAX];
	struct slisten *l;
	int fd;

	CHECK(!sv->closing);
	sock_format(addr, text);
	if (!sv->anywhere && !sv->tls && !sock_is_local(addr))
		return err_set(e, -EPERM,
			       "%s can be reached from other machines: TLS is needed (certificates "
			       "or a secret)",
			       text);
	l = calloc(1, sizeof(*l));
	if (!l)
		return err_sys(e, -ENOMEM, "listening on %s", text);
	fd = loop_listen(sv->loop, (const struct sockaddr *)&addr->ss, addr->len, BACKLOG);
	if (fd < 0) {
		free(l);
		return err_sys(e, fd, "listening on %s", text);
	}
	*l = (struct slisten){ .sv = sv, .fd = fd, .addr = *addr, .op.done = listen_accepted,
			       .timer.fire = listen_retry };
	(void)!loop_sockname(sv->loop, fd, &l->addr.ss, &l->addr.len);
	if (ret_addr)
		*ret_addr = l->addr;
	list_push_back(&sv->listens, &l->link);
	op_accept(sv->loop, &l->op, fd);
	return 0;
}

int server_attach(struct server *sv, int fd)
{
	struct sconn *c;

	CHECK(!sv->closing);
	return sconn_open(sv, fd, NULL, &c);
}

/* ---- closing ---- */

void server_conn_ended(struct server *sv)
{
	LIST_EACH (k, &sv->conns)
		sconn_welcome_if_free(LIST_ENTRY(k, struct sconn, link));
	server_settle(sv);
}

static void closed_run(struct post *post)
{
	struct server *sv = CONTAINER_OF(post, struct server, closed_post);
	void (*closed)(void *arg) = sv->closed;
	void *arg = sv->closed_arg;

	CHECK(list_empty(&sv->conns) && list_empty(&sv->listens));
	timer_clear(sv->loop, &sv->grace);
	server_free(sv);
	if (closed)
		closed(arg);
}

static void grace_over(struct timer *timer)
{
	struct server *sv = CONTAINER_OF(timer, struct server, grace);

	LIST_EACH (k, &sv->conns)
		sconn_stop(LIST_ENTRY(k, struct sconn, link));
	for (size_t i = 0; i < sv->export_count; i++)
		if (sv->exports[i].pending)
			store_abort(sv->exports[i].store);
}

void server_close(struct server *sv, uint64_t grace_ns, void (*closed)(void *arg), void *arg)
{
	uint64_t now;

	if (!sv)
		return;
	CHECK(!sv->closing);
	now = loop_now_fresh(sv->loop);
	sv->closing = true;
	sv->closed = closed;
	sv->closed_arg = arg;
	LIST_EACH (k, &sv->listens) {
		struct slisten *l = LIST_ENTRY(k, struct slisten, link);

		if (op_pending(&l->op))
			op_cancel(sv->loop, &l->op);
		else
			listen_end(l);
	}
	LIST_EACH (k, &sv->conns) {
		struct sconn *c = LIST_ENTRY(k, struct sconn, link);

		if (c->state == SCONN_UP)
			sconn_drain(c, NEVER_NS);
		else if (c->state != SCONN_DRAINING)
			sconn_stop(c);
	}
	timer_set(sv->loop, &sv->grace, grace_ns > NEVER_NS - now ? NEVER_NS : now + grace_ns);
	server_settle(sv);
}

static void closed_flag(void *arg)
{
	*(bool *)arg = true;
}

void server_close_wait(struct server *sv, uint64_t grace_ns)
{
	struct loop *loop;
	bool closed = false;
	int r;

	if (!sv)
		return;
	loop = sv->loop;
	server_close(sv, grace_ns, closed_flag, &closed);
	r = loop_run_until(loop, &closed, NEVER_NS);
	CHECK(!r && closed); /* after the grace everything ends by itself */
}

void server_abandon(struct server *sv)
{
	struct link *k;

	if (!sv)
		return;
	while ((k = list_pop_front(&sv->conns)))
		sconn_abandon(LIST_ENTRY(k, struct sconn, link));
	while ((k = list_pop_front(&sv->listens)))
		free(LIST_ENTRY(k, struct slisten, link));
	server_free(sv);
}

/* ---- telling ---- */

void server_count(const struct server *sv, struct server_counts *ret)
{
	*ret = sv->counts;
	ret->conns = sv->conn_count;
	ret->greeted = sv->greeted;
	ret->clients = 0;
	LIST_EACH (k, &sv->conns) {
		const struct sconn *c = LIST_ENTRY(k, struct sconn, link);

		ret->clients += c->greeted && c->index == 0;
	}
}

uint64_t server_instance(const struct server *sv)
{
	return sv->instance;
}

void server_status(const struct server *sv, char *buf, size_t len)
{
	const struct server_counts *n = &sv->counts;

	snprintf(buf, len,
		 "connections=%u accepted=%llu refused=%llu dropped=%llu replaced=%llu requests=%llu failed=%llu "
		 "read=%llu written=%llu zeros=%llu",
		 sv->conn_count, (unsigned long long)n->accepted, (unsigned long long)n->refused,
		 (unsigned long long)n->dropped, (unsigned long long)n->replaced,
		 (unsigned long long)n->requests,
		 (unsigned long long)n->failed, (unsigned long long)n->bytes_read,
		 (unsigned long long)n->bytes_written, (unsigned long long)n->zeros);
}
