/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora://HOST:PORT/NAME, remoras:// (the same over TLS), remora+unix:///SOCKET/NAME and
 * remora+ssh://HOST/PATH - a resource of a Remora server: the client of the protocol that
 * docs/protocol.md describes.
 *
 * Place: a back end. remora_req.c has the requests and replies, remora_conn.c the life of one
 * connection, remora_list.c asks what a server has; this file opens and closes the store and holds
 * what the connections have in common: the identity of the resource, the instance of the server,
 * how long a loss is waited for.
 *
 *  - Connection 0 is for urgent requests and small ones, the others for bulk.
 *  - A loss: requests in flight stay with their connection and are replayed when it is back (rule
 *    5: the server first ends what it still does for the former one); those that have no connection
 *    yet take any that is up.
 *  - `for` after the loss of a connection its requests fail with -ETIMEDOUT, and when all are lost,
 *    all others and all new ones do (`away`). A write that was given up may still be carried out by
 *    a server that we do not hear; so the store stays away until that very connection is back and
 *    the server has told by its welcome that it is not.
 *  - Another instance id means that what was written and not flushed may be gone: STORE_RESTARTED,
 *    before anything is answered by the new one. Another size or identity is another resource: it
 *    has failed for good.
 *
 * Locking: none; loop thread.
 */
#include "back/remora.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "back/back.h"
#include "back/remora_int.h"

static_assert(REMORA_REQS_MAX * WIRE_CONNS_MAX < UINT32_MAX,
	      "a slot's number fits into half an id");

/* ---- what the connections have in common ---- */

void remora_fail(struct remora *m, int err, const char *fmt, ...)
{
	char why[sizeof(m->why)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	if (m->failed)
		return;
	memcpy(m->why, why, sizeof(why));
	m->failed = err;
	log_error(&loop_env(m->store.loop)->log, "remora: %s: %s", m->addr_text, m->why);
	timer_clear(m->store.loop, &m->expiry);
	if (!m->lost && !m->opening) {
		m->lost = true;
		store_emit(&m->store, STORE_LOST);
	}
	for (unsigned i = 0; i < m->conn_count; i++) {
		rconn_drop(&m->conn[i], err, m->why);
		rconn_requests_fail(&m->conn[i], err);
	}
	remora_queues_fail(m, err);
}

void remora_settle(struct remora *m)
{
	m->opening = false;
	m->settled = true;
}

static void info_take(struct remora *m, const struct wire_welcome *w)
{
	struct store_info *info = &m->store.info;

	*info = (struct store_info){
		.size = w->size,
		.align = w->align,
		.len_max = w->len_max,
		.chunk = w->chunk,
		.read_only = w->caps & WIRE_CAP_READ_ONLY,
		.zero = w->caps & WIRE_CAP_ZERO ? CAP_NATIVE : CAP_NONE,
		.trim = w->caps & WIRE_CAP_TRIM ? CAP_NATIVE : CAP_NONE,
		.fua = w->caps & WIRE_CAP_FUA ? CAP_NATIVE : CAP_NONE,
		.extents = w->caps & WIRE_CAP_EXTENTS ? CAP_NATIVE : CAP_NONE,
		.prefetch = w->caps & WIRE_CAP_PREFETCH ? CAP_NATIVE : CAP_NONE,
		.flush = CAP_NATIVE, /* the far side alone knows which instance answers */
		.instance = w->instance,
		.identity = w->identity,
	};
	m->instance_before = w->instance;
	if (m->conn_count > w->conns_max)
		m->conn_count = w->conns_max;
	if (m->first.state == FIRST_ASKED) {
		uint64_t len_max = MIN(WIRE_FIRST_MAX, (uint64_t)w->len_max);

		m->first.range = range_cut(m->first.range, range_of(0, w->size));
		m->first.range.len = MIN(m->first.range.len, len_max);
	}
}

int remora_welcome(struct remora *m, struct rconn *c, const struct wire_welcome *w)
{
	const struct store_info *info = &m->store.info;

	c->requests_max = MIN(w->requests_max, REMORA_REQS_MAX);
	c->bytes_max = w->bytes_max;
	c->keep_alive_ms = w->keep_alive_ms;
	c->silence_ms = w->silence_ms;
	if (m->opening) {
		info_take(m, w);
		return 0;
	}
	if (w->size != info->size)
		snprintf(m->why, sizeof(m->why),
			 "the resource has another size now: %llu bytes, before %llu",
			 (unsigned long long)w->size, (unsigned long long)info->size);
	else if (w->identity && info->identity && w->identity != info->identity)
		snprintf(m->why, sizeof(m->why), "it is another resource now, under the same name");
	else if (w->align > info->align || w->len_max < info->len_max)
		snprintf(m->why, sizeof(m->why),
			 "the server takes only other requests now than before");
	else
		return 0;
	return -ESTALE;
}

void remora_instance(struct remora *m, struct rconn *c, uint64_t instance)
{
	bool current = c->instance == m->store.info.instance;

	if (!instance || instance == c->instance || instance == m->instance_before)
		return;
	c->instance = instance;
	/* A connection that is still behind learns what another one has told already. */
	if (!current || instance == m->store.info.instance)
		return;
	m->instance_before = m->store.info.instance;
	m->store.info.instance = instance;
	m->counts.restarts++;
	/* The process that might still have carried out what was given up is no more. */
	for (unsigned i = 0; i < m->conn_count; i++)
		m->conn[i].poisoned = m->conn[i].poisoned && m->conn[i].instance == instance;
	remora_away_update(m);
	log_warn(&loop_env(m->store.loop)->log,
		 "remora: %s: the server was restarted: what was not flushed may be lost",
		 m->addr_text);
	store_emit(&m->store, STORE_RESTARTED);
}

/* ---- the end of waiting ---- */

static uint64_t expiry_of(const struct remora *m, const struct rconn *c)
{
	if (!c->lost_ns || c->expired || m->for_ns > NEVER_NS - c->lost_ns)
		return NEVER_NS;
	return c->lost_ns + m->for_ns;
}

void remora_expiry_set(struct remora *m)
{
	uint64_t at = NEVER_NS;

	for (unsigned i = 0; i < m->conn_count; i++)
		at = MIN(at, expiry_of(m, &m->conn[i]));
	if (at == NEVER_NS)
		timer_clear(m->store.loop, &m->expiry);
	else
		timer_set(m->store.loop, &m->expiry, at);
}

void remora_away_update(struct remora *m)
{
	bool all = !m->up, poisoned = false;

	for (unsigned i = 0; i < m->conn_count; i++) {
		const struct rconn *c = &m->conn[i];

		poisoned = poisoned || c->poisoned;
		all = all && (c->expired || !c->lost_ns);
	}
	m->away = all || poisoned;
	if (!m->away)
		return;
	snprintf(m->why, sizeof(m->why), "the server at %.100s is away", m->addr_text);
	remora_queues_fail(m, -ETIMEDOUT);
}

static void expiry_fire(struct timer *timer)
{
	struct remora *m = CONTAINER_OF(timer, struct remora, expiry);

	for (unsigned i = 0; i < m->conn_count; i++) {
		struct rconn *c = &m->conn[i];

		if (expiry_of(m, c) > loop_now(m->store.loop))
			continue;
		c->expired = true;
		snprintf(m->why, sizeof(m->why), "the server at %.80s did not come back in time",
			 m->addr_text);
		/* rconn_down() does it for one that stops, when its buffers are free. */
		if (c->state != RCONN_STOPPING)
			rconn_requests_fail(c, -ETIMEDOUT);
	}
	remora_away_update(m);
	remora_expiry_set(m);
}

/* ---- closing ---- */

static bool remora_is_quiet(const struct remora *m)
{
	for (unsigned i = 0; i < WIRE_CONNS_MAX; i++)
		if (m->conn[i].state != RCONN_DOWN)
			return false;
	return true;
}

/* Everything but the struct. */
static void remora_release(struct remora *m)
{
	CHECK(remora_is_quiet(m));
	timer_clear(m->store.loop, &m->expiry);
	for (unsigned i = 0; i < WIRE_CONNS_MAX; i++)
		timer_clear(m->store.loop, &m->conn[i].timer);
	remora_first_drop(m);
	tls_unref(m->tls);
	rssh_done(m);
	free(m->slots);
}

void remora_conn_is_down(struct remora *m)
{
	if (m->closing && remora_is_quiet(m)) {
		remora_release(m);
		store_closed(&m->store);
	} else if (m->opening && !m->settled) {
		remora_settle(m);
	} else if (!m->can_connect && !m->ending && !m->failed) {
		remora_fail(m, -ECONNRESET,
			    "the connection is closed, and there is no other way to the server");
	}
}

static void remora_end(struct remora *m)
{
	m->ending = true;
	timer_clear(m->store.loop, &m->expiry);
	for (unsigned i = 0; i < WIRE_CONNS_MAX; i++)
		rconn_drop(&m->conn[i], -ESHUTDOWN, "closing");
}

static void remora_abort(struct store *store)
{
	struct remora *m = CONTAINER_OF(store, struct remora, store);

	remora_end(m);
	m->why[0] = '\0';
	for (unsigned i = 0; i < WIRE_CONNS_MAX; i++)
		if (m->conn[i].state != RCONN_STOPPING)
			rconn_requests_fail(&m->conn[i], -ESHUTDOWN);
	remora_queues_fail(m, -ESHUTDOWN);
}

static void remora_close(struct store *store)
{
	struct remora *m = CONTAINER_OF(store, struct remora, store);

	remora_end(m);
	m->closing = true;
	remora_conn_is_down(m);
}

static void remora_status(struct store *store, char *buf, size_t len)
{
	struct remora_counts n;

	remora_count(store, &n);
	snprintf(buf, len,
		 "address=%s connections=%u up=%u losses=%llu replayed=%llu restarts=%llu",
		 CONTAINER_OF(store, struct remora, store)->addr_text, n.connections, n.up,
		 (unsigned long long)n.losses, (unsigned long long)n.replayed,
		 (unsigned long long)n.restarts);
}

static const struct store_ops remora_ops = {
	.name = "remora",
	.submit = remora_submit,
	.abort = remora_abort,
	.close = remora_close,
	.status = remora_status,
};

void remora_count(struct store *store, struct remora_counts *ret)
{
	const struct remora *m = CONTAINER_OF(store, struct remora, store);

	CHECK(store->ops == &remora_ops);
	*ret = m->counts;
	ret->connections = m->conn_count;
	ret->up = m->up;
	for (unsigned i = 0; i < m->conn_count; i++) {
		const struct rconn *c = &m->conn[i];

		if (c->state == RCONN_DOWN || c->state == RCONN_CONNECTING)
			continue;
		ret->bytes_received += c->stream.received_bytes;
		ret->bytes_sent += c->stream.sent_bytes;
	}
}

/* ---- opening ---- */

void remora_options_init(struct remora_options *options)
{
	*options = (struct remora_options){
		.fd = -1,
		.name = "",
		.for_ns = REMORA_FOR_DEFAULT_NS,
		.connect_ns = REMORA_CONNECT_DEFAULT_NS,
	};
}

static int remora_alloc(struct remora **ret, struct loop *loop, const struct remora_options *o)
{
	struct remora *m = calloc(1, sizeof(*m));
	struct rng *rng = &loop_env(loop)->rng;

	if (!m)
		return -ENOMEM;
	m->store.loop = loop;
	m->conns_wanted = o->connections ? MIN(o->connections, WIRE_CONNS_MAX) : 2;
	if (o->fd >= 0 || o->ssh_host)
		m->conns_wanted = 1;
	m->conn_count = m->conns_wanted;
	m->slot_count = (size_t)m->conns_wanted * REMORA_REQS_MAX;
	m->slots = calloc(m->slot_count, sizeof(*m->slots));
	if (o->first.len) {
		m->first.range = range_of(o->first.off, MIN(o->first.len, WIRE_FIRST_MAX));
		m->first.buf = malloc(m->first.range.len);
		m->first.state = FIRST_ASKED;
	}
	if (!m->slots || (o->first.len && !m->first.buf)) {
		free(m->slots);
		free(m->first.buf);
		free(m);
		return -ENOMEM;
	}
	list_init(&m->idle);
	list_init(&m->first.waiting);
	for (unsigned q = 0; q < RQUEUES; q++)
		list_init(&m->queue[q]);
	for (size_t i = 0; i < m->slot_count; i++) {
		m->slots[i].id = i + 1;
		list_push_back(&m->idle, &m->slots[i].link);
	}
	for (unsigned i = 0; i < WIRE_CONNS_MAX; i++)
		rconn_init(&m->conn[i], m, i);
	rng_fill(rng, m->session, sizeof(m->session));
	m->expiry.fire = expiry_fire;
	m->addr = o->addr;
	m->can_connect = o->fd < 0;
	m->tls = o->tls ? tls_ref(o->tls) : NULL;
	m->read_only = o->read_only;
	m->for_ns = o->for_ns;
	m->connect_ns = o->connect_ns ? o->connect_ns : REMORA_CONNECT_DEFAULT_NS;
	snprintf(m->name, sizeof(m->name), "%s", o->name ? o->name : "");
	if (o->ssh_host && rssh_init(m, o)) {
		rssh_done(m);
		tls_unref(m->tls);
		free(m->slots);
		free(m->first.buf);
		free(m);
		return -ENOMEM;
	}
	if (o->ssh_host)
		m->addr.domain = AF_UNIX; /* of the link to it */
	else if (m->can_connect)
		sock_format(&o->addr, m->addr_text);
	else
		snprintf(m->addr_text, sizeof(m->addr_text), "the server");
	*ret = m;
	return 0;
}

static int remora_connect_until(struct store **ret, struct loop *loop,
				const struct remora_options *o, uint64_t deadline_ns,
				struct err *e)
{
	struct remora *m;
	int r;

	*ret = NULL;
	if (o->name && strlen(o->name) > NAME_LEN_MAX) {
		r = err_set(e, -ENAMETOOLONG, "the name of a resource has at most %u bytes",
			    NAME_LEN_MAX);
		goto fail_fd;
	}
	if (!range_valid(o->first) || range_end(o->first) > RESOURCE_SIZE_MAX) {
		r = err_set(e, -EINVAL, "the first read lies outside of any resource");
		goto fail_fd;
	}
	r = remora_alloc(&m, loop, o);
	if (r) {
		err_sys(e, r, "connecting");
		goto fail_fd;
	}
	m->opening = true;
	m->open_deadline_ns = deadline_ns;
	if (m->can_connect)
		rconn_connect(&m->conn[0]);
	else
		rconn_attach(&m->conn[0], o->fd);
	/* the connection has a deadline of its own */
	r = loop_run_until(loop, &m->settled, NEVER_NS);
	if (!r && m->open_err.code)
		r = m->open_err.code;
	if (!r) {
		/* The others come behind it: they may be refused without harm. */
		for (unsigned i = 1; i < m->conn_count; i++)
			rconn_connect(&m->conn[i]);
		store_init(&m->store, &remora_ops, loop, NULL);
		*ret = &m->store;
		return 0;
	}
	if (m->open_err.code && e)
		*e = m->open_err;
	else
		err_sys(e, r, "%s", m->addr_text);
	m->opening = false;
	m->settled = true;
	remora_end(m);
	while (!remora_is_quiet(m))
		if (loop_step(loop, NEVER_NS))
			return r; /* the loop is broken: what it has cannot be taken back */
	remora_release(m);
	free(m);
	return r;
fail_fd:
	if (o->fd >= 0)
		loop_close_fd(loop, o->fd);
	return r;
}

int remora_connect(struct store **ret, struct loop *loop, const struct remora_options *options,
		   struct err *e)
{
	return remora_connect_until(ret, loop, options, NEVER_NS, e);
}

/* ---- from a spec ---- */

/* "//HOST:PORT[/NAME]"; the name lies behind the address' text. */
static int place_inet(char *text, struct remora_options *o, struct err *e)
{
	char *slash = strchr(text, '/');

	o->name = "";
	if (slash) {
		*slash = '\0';
		o->name = slash + 1;
	}
	if (!*text)
		return err_set(e, -EINVAL, "the address is missing: remora://HOST:PORT/NAME");
	return sock_parse(text, &o->addr, e);
}

static bool is_socket(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* "///SOCKET[/NAME]": the longest prefix that is a socket is the socket. */
static int place_unix(char *text, struct remora_options *o, struct err *e)
{
	char address[SPEC_LEN_MAX + 8], *end = text + strlen(text), *cut = end;

	if (*text != '/')
		return err_set(e, -EINVAL,
			       "the path is missing: remora+unix:///path/of/socket/NAME");
	o->name = "";
	while (!is_socket(text)) {
		char *slash = strrchr(text, '/');

		if (cut < end)
			*cut = '/';
		if (!slash || slash == text) {
			return err_set(e, -ENOENT,
				       "there is no socket at %s: is the server running?", text);
		}
		/* One step up: what was cut off before belongs to the name now. */
		cut = slash;
		*cut = '\0';
		o->name = cut + 1;
	}
	snprintf(address, sizeof(address), "unix:%s", text);
	return sock_parse(address, &o->addr, e);
}

static int place_of(const struct spec_part *part, char **ret_text, struct remora_options *o,
		    struct err *e)
{
	char *text;

	if (strncmp(part->rest, "//", 2) != 0)
		return err_set(e, -EINVAL, "%s: is followed by //, as in %s://HOST:PORT/NAME",
			       part->name, part->name);
	text = strdup(part->rest + 2);
	*ret_text = text;
	if (!text)
		return err_sys(e, -ENOMEM, "%s", part->name);
	if (strcmp(part->name, "remora+ssh") == 0)
		return rssh_place(text, o, e);
	if (strcmp(part->name, "remora+unix") == 0)
		return place_unix(text, o, e);
	return place_inet(text, o, e);
}

/* The host of "//HOST:PORT/NAME", which the server's certificate must be for. */
static void host_of(const char *rest, char *buf, size_t size)
{
	size_t len = strcspn(rest + 2, "/");
	const char *at = rest + 2, *colon = memrchr(at, ':', len);

	len = colon ? (size_t)(colon - at) : len;
	if (len >= 2 && at[0] == '[' && at[len - 1] == ']') {
		at++;
		len -= 2;
	}
	snprintf(buf, size, "%.*s", (int)len, at);
}

static int tls_of(struct spec_args *args, struct remora_options *o)
{
	char host[NAME_LEN_MAX + 1];
	struct tls_options t = { .name = host };
	struct err why = { 0 };
	int r = spec_get_text(args, "cert", &t.cert);

	if (!r)
		r = spec_get_text(args, "key", &t.key);
	if (!r)
		r = spec_get_text(args, "ca", &t.ca);
	if (!r)
		r = spec_get_text(args, "psk", &t.psk);
	if (!r)
		r = spec_get_text(args, "identity", &t.identity);
	host_of(args->part->rest, host, sizeof(host));
	if (!r)
		r = spec_get_text(args, "server", &t.name);
	if (r || strcmp(args->part->name, "remoras") != 0)
		return r;
	r = tls_open(&o->tls, &t, &why);
	/* What is wrong with a file is no mistake in the spec. */
	if (r == -EINVAL)
		return spec_error(args->spec, args->part->at, args->e, "%s", why.text);
	return r ? err_set(args->e, r, "%s", why.text) : 0;
}

/* All of it but the name and the address, which have texts of their own. */
static int options_of(struct spec_args *args, struct remora_options *o)
{
	uint64_t connections = 2;
	int r = spec_get_number(args, "connections", 1, WIRE_CONNS_MAX, &connections);

	if (!r)
		r = spec_get_text(args, "command", &o->ssh_command);
	if (!r)
		r = spec_get_time(args, "for", &o->for_ns);
	if (!r)
		r = spec_get_time(args, "connect", &o->connect_ns);
	if (!r)
		r = spec_get_bool(args, "readonly", &o->read_only);
	o->connections = (unsigned)connections;
	return r;
}

int back_remora_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct remora_options o;
	char *text = NULL;
	struct err why = { 0 };
	int r;

	CHECK(!next);
	remora_options_init(&o);
	o.first = how->first;
	r = options_of(args, &o);
	o.read_only = o.read_only || how->read_only;
	if (!r) {
		r = place_of(args->part, &text, &o, &why);
		if (r)
			spec_error(args->spec, args->part->rest_at, args->e, "%s", why.text);
	}
	if (!r)
		r = tls_of(args, &o);
	if (!r)
		r = spec_options_end(args);
	if (!r)
		r = remora_connect_until(ret, how->loop, &o,
					 how->deadline_ns ? how->deadline_ns : NEVER_NS, args->e);
	tls_unref(o.tls);
	free(o.ssh_host);
	free(text);
	return r;
}

int remora_options_parse(const struct spec *spec, struct remora_options *o, struct err *e)
{
	struct spec_part part = spec->part[spec->parts - 1]; /* options are marked as used */
	struct spec_args args = { .spec = spec, .part = &part, .e = e };
	const struct store_kind *kind = store_kind_find(part.name, strlen(part.name));
	char *text = NULL;
	struct err why = { 0 };
	int r;

	remora_options_init(o);
	if (!kind || kind->open != back_remora_open)
		return spec_error(spec, part.at, e, "this is no resource of a Remora server");
	r = spec_check_options(spec, &part, kind, e);
	if (!r)
		r = options_of(&args, o);
	if (!r) {
		r = place_of(&part, &text, o, &why);
		if (r)
			spec_error(spec, part.rest_at, e, "%s", why.text);
	}
	if (!r)
		r = tls_of(&args, o);
	if (!r && o->ssh_host)
		r = spec_error(spec, part.at, e, "the path is the resource: there is no list");
	free(o->ssh_host);
	o->ssh_host = NULL;
	o->name = ""; /* it was in the text */
	free(text);
	return r;
}
