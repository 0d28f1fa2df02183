/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket of a process: requests in, answers out.
 *
 * Place: on the loop of a mount or a server, whose verbs it calls. hello and log are its own.
 *
 * A connection has one request at a time: the next line is looked at when the answer to the one
 * before has been made. Meanwhile its bytes are read on, up to a line's length, so that the end of
 * the peer is seen.
 *
 * Invariants: a connection is freed only from conn_settle(), when it has ended (`gone`), nobody
 * holds it, no op and no post of it is out, and its call, if it has one, has been answered; what an
 * answer of a connection that is gone says goes nowhere. Bytes that wait to be sent are bounded:
 * progress beyond CONTROL_UNSENT_MAX, or nothing taken for STALL_NS, ends the connection.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cmd/control_int.h"
#include "config.h"

#define STALL_NS (30 * NS_PER_S)
#define WATCH_NS (NS_PER_S / 5)    /* whether one who has said all is still there */
#define RETRY_NS (100 * NS_PER_MS) /* no descriptors, no memory */
#define CLOSE_NS NS_PER_S
#define CONTROL_UNSENT_MAX (256u * 1024u)
#define DEPTH_MAX 8u
#define READ_STEP 4096u

struct text {
	char *at;
	size_t len, room;
};

struct control_call {
	struct cconn *conn;
	json_t *args, *with;
};

struct cconn {
	struct control *control;
	struct link link;
	int fd;
	struct op rx, tx;
	struct post post; /* looks for the next line */
	struct timer stall, watch;
	struct text in, out, sending;
	size_t looked; /* bytes of `in` that have no end of line */
	struct control_call *call;
	bool following; /* the call is "log" that waits for more */
	uint64_t next;	/* line to send to it */
	bool eof;	/* nothing more will come */
	bool ending;	/* when everything is sent */
	bool gone;
	unsigned held; /* somebody is at it: not to be freed now */
};

struct control {
	struct loop *loop;
	char *kind, *target, *spec, *path;
	const struct control_verb *verbs;
	void *arg;
	struct control_log *log;
	int fd;
	struct op accept;
	struct timer retry;
	struct list conns;
	unsigned conn_count;
	bool closing;
};

static void accept_next(struct control *ct);
static void conn_process(struct cconn *c);

/* ---- text ---- */

static bool text_room(struct text *t, size_t more)
{
	size_t room = MAX(t->room, (size_t)READ_STEP);
	char *at;

	while (room < t->len + more)
		room *= 2;
	if (room == t->room)
		return true;
	at = realloc(t->at, room);
	if (!at)
		return false;
	t->at = at;
	t->room = room;
	return true;
}

static bool text_add(struct text *t, const char *from, size_t len)
{
	if (!text_room(t, len))
		return false;
	memcpy(t->at + t->len, from, len);
	t->len += len;
	return true;
}

static void text_take(struct text *t, size_t len)
{
	memmove(t->at, t->at + len, t->len - len);
	t->len -= len;
}

json_t *control_text(const char *text)
{
	AUTO_FREE char *copy = NULL;
	json_t *ret = json_string(text);

	if (ret || !(copy = strdup(text)))
		return ret;
	for (char *p = copy; *p; p++)
		if ((unsigned char)*p >= 128)
			*p = '?';
	return json_string(copy);
}

/* ---- a connection's end ---- */

static void conn_settle(struct cconn *c)
{
	struct control *ct = c->control;

	if (!c->gone || c->held || c->call || op_pending(&c->rx) || op_pending(&c->tx) ||
	    link_linked(&c->post.link))
		return;
	timer_clear(ct->loop, &c->stall);
	loop_close_fd(ct->loop, c->fd);
	link_remove(&c->link);
	free(c->in.at);
	free(c->out.at);
	free(c->sending.at);
	free(c);
	if (ct->conn_count-- == CONTROL_CONNS_MAX)
		accept_next(ct);
}

static void conn_release(struct cconn *c)
{
	c->held--;
	conn_settle(c);
}

static void call_free(struct control_call *call)
{
	call->conn->call = NULL;
	call->conn->following = false;
	json_decref(call->args);
	json_decref(call->with);
	free(call);
}

/* Nobody is there any more, or shall be. May free it, but never while it has a call that is not
 * answered. */
static void conn_end(struct cconn *c)
{
	if (!c->gone) {
		c->gone = true;
		timer_clear(c->control->loop, &c->stall);
		timer_clear(c->control->loop, &c->watch);
		op_cancel(c->control->loop, &c->rx);
		op_cancel(c->control->loop, &c->tx);
	}
	if (c->following)
		call_free(c->call);
	conn_settle(c);
}

/* ---- sending ---- */

static void conn_send(struct cconn *c)
{
	struct text idle;

	if (c->gone || op_pending(&c->tx) || !c->out.len)
		return;
	idle = c->sending;
	c->sending = c->out;
	c->out = idle;
	c->out.len = 0;
	timer_set(c->control->loop, &c->stall, loop_now(c->control->loop) + STALL_NS);
	op_send_all(c->control->loop, &c->tx, c->fd, c->sending.at, c->sending.len);
}

/* Whatever could still be done has been done. */
static bool conn_idle(const struct cconn *c)
{
	return !c->call && !c->out.len && !op_pending(&c->tx) && !link_linked(&c->post.link) &&
	       (c->ending || (c->eof && !memchr(c->in.at ? c->in.at : "", '\n', c->in.len)));
}

static void conn_sent(struct op *op, int res)
{
	struct cconn *c = CONTAINER_OF(op, struct cconn, tx);

	timer_clear(c->control->loop, &c->stall);
	if (res < 0 || c->gone) {
		conn_end(c);
		return;
	}
	c->sending.len = 0;
	conn_send(c);
	if (conn_idle(c))
		conn_end(c);
}

static void conn_stalled(struct timer *timer)
{
	struct cconn *c = CONTAINER_OF(timer, struct cconn, stall);

	log_warn(&loop_env(c->control->loop)->log,
		 "control: a client that does not read was dropped");
	conn_end(c);
}

/* Takes the value over. False: the connection is gone now. */
static bool conn_say(struct cconn *c, json_t *value)
{
	AUTO_FREE char *line = value ? json_dumps(value, JSON_COMPACT) : NULL;
	size_t len = line ? strlen(line) : 0;

	json_decref(value);
	if (c->gone)
		return false;
	if (!line || !text_add(&c->out, line, len) || !text_add(&c->out, "\n", 1)) {
		conn_end(c);
		return false;
	}
	conn_send(c);
	return true;
}

/* ---- answers ---- */

static void call_answer(struct control_call *call, json_t *answer)
{
	struct cconn *c = call->conn;

	if (answer && call->with)
		json_object_update_missing(answer, call->with);
	c->held++;
	call_free(call);
	if (conn_say(c, answer) && !link_linked(&c->post.link))
		loop_defer(c->control->loop, &c->post);
	conn_release(c);
}

void control_ok(struct control_call *call, json_t *with)
{
	json_t *answer = json_pack("{s:b}", "ok", 1);

	if (answer && with)
		json_object_update(answer, with);
	json_decref(with);
	call_answer(call, answer);
}

void control_fail(struct control_call *call, int err, const char *fmt, ...)
{
	const char *name = strerrorname_np(-err);
	char text[ERR_TEXT_MAX + SPEC_LEN_MAX];
	va_list ap;

	CHECK(err < 0);
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	call_answer(call, json_pack("{s:b, s:o, s:s}", "ok", 0, "error", control_text(text),
				    "code", name ? name : "EIO"));
}

void control_with(struct control_call *call, json_t *with)
{
	if (!call->with)
		call->with = with;
	else if (with) {
		json_object_update(call->with, with);
		json_decref(with);
	}
}

void control_progress(struct control_call *call, json_t *what)
{
	struct cconn *c = call->conn;

	if (c->out.len + c->sending.len > CONTROL_UNSENT_MAX && !c->gone) {
		log_warn(&loop_env(c->control->loop)->log,
			 "control: a client that does not read was dropped");
		json_decref(what);
		conn_end(c);
		return;
	}
	(void)conn_say(c, json_pack("{s:o}", "progress", what));
}

bool control_gone(const struct control_call *call)
{
	return call->conn->gone;
}

/* ---- arguments ---- */

static const struct control_arg *arg_find(const struct control_arg *known, const char *name)
{
	for (; known && known->name; known++)
		if (!strcmp(known->name, name))
			return known;
	return NULL;
}

static const char *arg_take(const struct control_arg *a, const json_t *value)
{
	bool any = !a->min && !a->max;
	json_int_t n;

	switch (a->type) {
	case CONTROL_BOOL:
		if (!json_is_boolean(value))
			return "true or false";
		*(bool *)a->to = json_is_true(value);
		return NULL;
	case CONTROL_INT:
		n = json_integer_value(value);
		if (!json_is_integer(value) || (any ? n < 0 : n < a->min || n > a->max))
			return "an integer in its range";
		*(int64_t *)a->to = n;
		return NULL;
	case CONTROL_TEXT:
		if (!json_is_string(value))
			return "a string";
		*(const char **)a->to = json_string_value(value);
		return NULL;
	}
	CHECK(!"a type of argument");
	return "";
}

int control_args(struct control_call *call, json_t *args, const struct control_arg *known)
{
	const char *name, *wants;
	json_t *value;

	json_object_foreach (args, name, value) {
		const struct control_arg *a = arg_find(known, name);

		if (!strcmp(name, "remora") || !strcmp(name, "do"))
			continue;
		if (!a) {
			control_fail(call, -EINVAL, "\"%s\" takes no \"%.80s\"",
				     json_string_value(json_object_get(args, "do")), name);
			return -EINVAL;
		}
		wants = arg_take(a, value);
		if (wants) {
			control_fail(call, -EINVAL, "\"%s\" has to be %s", a->name, wants);
			return -EINVAL;
		}
	}
	return 0;
}

/* ---- hello and log ---- */

static void verb_hello(struct control *ct, struct control_call *call, json_t *args)
{
	if (control_args(call, args, NULL))
		return;
	control_ok(call, json_pack("{s:s, s:i, s:o, s:o, s:s}", "kind", ct->kind, "pid",
				   (int)getpid(), "target", control_text(ct->target), "spec",
				   control_text(ct->spec), "version", REMORA_VERSION));
}

/* Lines that have come since. */
static void follow(struct cconn *c)
{
	uint64_t end = control_log_count(c->control->log);

	c->held++;
	for (; c->following && c->next < end; c->next++) {
		json_t *line = control_log_at(c->control->log, c->next);

		if (line)
			control_progress(c->call, line);
	}
	conn_release(c);
}

static void log_woken(void *arg)
{
	struct control *ct = arg;

	LIST_EACH (k, &ct->conns)
		follow(LIST_ENTRY(k, struct cconn, link));
}

static void verb_log(struct control *ct, struct control_call *call, json_t *args)
{
	int64_t last = 100;
	bool follows = false;
	const struct control_arg known[] = {
		{ "follow", CONTROL_BOOL, &follows, 0, 0 },
		{ "last", CONTROL_INT, &last, 0, CONTROL_EVENTS_MAX },
		{ 0 },
	};
	uint64_t count = control_log_count(ct->log), first;
	json_t *events;

	if (control_args(call, args, known))
		return;
	first = count > (uint64_t)last ? count - (uint64_t)last : 0;
	if (follows) {
		call->conn->following = true;
		call->conn->next = first;
		follow(call->conn);
		return;
	}
	events = json_array();
	for (uint64_t n = first; n < count; n++) {
		json_t *line = control_log_at(ct->log, n);

		if (line)
			json_array_append_new(events, line);
	}
	control_ok(call, json_pack("{s:o}", "events", events));
}

/* ---- requests ---- */

static void verb_none(struct control *ct, struct control_call *call, const char *name)
{
	char known[256];
	size_t at = (size_t)snprintf(known, sizeof(known), "hello%s", ct->log ? ", log" : "");

	for (const struct control_verb *v = ct->verbs; v && v->name; v++)
		if (at < sizeof(known))
			at += (size_t)snprintf(known + at, sizeof(known) - at, ", %s", v->name);
	control_fail(call, -EOPNOTSUPP, "a %s does not know \"%.40s\": it knows %s", ct->kind,
		     name, known);
}

static void call_run(struct cconn *c, json_t *args)
{
	struct control *ct = c->control;
	struct control_call *call = calloc(1, sizeof(*call));
	const char *name = json_string_value(json_object_get(args, "do"));
	const json_t *version = json_object_get(args, "remora");

	if (!call) {
		json_decref(args);
		conn_end(c);
		return;
	}
	call->conn = c;
	call->args = args;
	c->call = call;
	if (!json_is_integer(version) || json_integer_value(version) != CONTROL_VERSION) {
		control_fail(call, -EPROTONOSUPPORT,
			     "this process speaks version %d of the control protocol: "
			     "\"remora\": %d is missing, or not that",
			     CONTROL_VERSION, CONTROL_VERSION);
		return;
	}
	if (!name) {
		control_fail(call, -EINVAL, "\"do\" is missing: what shall be done?");
		return;
	}
	for (const struct control_verb *v = ct->verbs; v && v->name; v++)
		if (!strcmp(v->name, name)) {
			v->run(ct->arg, call, args);
			return;
		}
	if (!strcmp(name, "hello"))
		verb_hello(ct, call, args);
	else if (ct->log && !strcmp(name, "log"))
		verb_log(ct, call, args);
	else
		verb_none(ct, call, name);
}

/* An error that no request has, after which the connection ends. */
static void conn_refuse(struct cconn *c, int err, const char *text)
{
	c->ending = true;
	op_cancel(c->control->loop, &c->rx);
	(void)conn_say(c, json_pack("{s:b, s:s, s:s}", "ok", 0, "error", text, "code",
				    strerrorname_np(-err)));
}

/* The reader of JSON calls itself for each level. */
static bool too_deep(const char *line, size_t len)
{
	unsigned depth = 0;
	bool text = false;

	for (size_t i = 0; i < len; i++) {
		if (text && line[i] == '\\')
			i++;
		else if (line[i] == '"')
			text = !text;
		else if (!text && (line[i] == '{' || line[i] == '['))
			depth++;
		else if (!text && (line[i] == '}' || line[i] == ']') && depth)
			depth--;
		if (depth > DEPTH_MAX)
			return true;
	}
	return false;
}

static void line_run(struct cconn *c, const char *line, size_t len)
{
	json_t *args = NULL;

	if (!too_deep(line, len))
		args = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
	if (json_is_object(args)) {
		call_run(c, args);
		return;
	}
	json_decref(args);
	conn_refuse(c, -EBADMSG, "a request is a JSON object on one line");
}

static void rx_next(struct cconn *c)
{
	size_t room = CONTROL_LINE_MAX + 1 - c->in.len;

	if (c->gone || c->ending || c->eof || op_pending(&c->rx) || !room)
		return;
	room = MIN(room, (size_t)READ_STEP);
	if (!text_room(&c->in, room)) {
		conn_end(c);
		return;
	}
	op_recv(c->control->loop, &c->rx, c->fd, c->in.at + c->in.len, room);
}

/* While the buffer may be the kernel's nothing is moved in it. */
static bool in_busy(const struct cconn *c)
{
	return op_pending(&c->rx);
}

/* The next line, if there is one and nothing is in progress. */
static void conn_process(struct cconn *c)
{
	AUTO_FREE char *line = NULL;
	size_t len;
	char *end;

	if (c->gone || c->ending || c->call || in_busy(c))
		return;
	end = c->in.len > c->looked ?
		      memchr(c->in.at + c->looked, '\n', c->in.len - c->looked) :
		      NULL;
	if (!end) {
		c->looked = c->in.len;
		if (c->in.len > CONTROL_LINE_MAX)
			conn_refuse(c, -E2BIG, "a request has at most 65536 bytes");
		return;
	}
	len = (size_t)(end - c->in.at);
	line = malloc(len + 1);
	if (!line) {
		conn_end(c);
		return;
	}
	memcpy(line, c->in.at, len);
	text_take(&c->in, len + 1);
	c->looked = 0;
	if (len)
		line_run(c, line, len);
	else
		loop_defer(c->control->loop, &c->post); /* an empty line means nothing */
}

static void conn_again(struct post *post)
{
	struct cconn *c = CONTAINER_OF(post, struct cconn, post);

	if (in_busy(c) && !c->gone && memchr(c->in.at, '\n', c->in.len)) {
		op_cancel(c->control->loop, &c->rx); /* goes on when it has ended */
		return;
	}
	c->held++;
	conn_process(c);
	rx_next(c);
	if (c->gone || conn_idle(c))
		conn_end(c);
	conn_release(c);
}

/* The peer says nothing more. When it is gone altogether nobody waits for an answer; to wait for
 * just that is not what every engine can. */
static void conn_watch(struct timer *timer)
{
	struct cconn *c = CONTAINER_OF(timer, struct cconn, watch);
	struct pollfd p = { .fd = c->fd };

	if (poll(&p, 1, 0) > 0 && p.revents & (POLLHUP | POLLERR))
		conn_end(c);
	else
		timer_set(c->control->loop, timer, loop_now(c->control->loop) + WATCH_NS);
}

static void conn_eof(struct cconn *c)
{
	c->eof = true;
	if (c->in.len && c->in.len <= CONTROL_LINE_MAX && c->in.at[c->in.len - 1] != '\n')
		(void)!text_add(&c->in, "\n", 1);
	conn_watch(&c->watch);
}

static void conn_received(struct op *op, int res)
{
	struct cconn *c = CONTAINER_OF(op, struct cconn, rx);

	if (c->gone || (res < 0 && res != -ECANCELED && res != -EINTR)) {
		conn_end(c);
		return;
	}
	if (c->ending) { /* cancelled; what is to be sent may be sent already */
		if (conn_idle(c))
			conn_end(c);
		return;
	}
	if (!link_linked(&c->post.link))
		loop_defer(c->control->loop, &c->post);
	if (res > 0)
		c->in.len += (size_t)res;
	else if (res == 0)
		conn_eof(c);
}

/* ---- connections ---- */

static bool peer_allowed(int fd)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) &&
	       (who.uid == geteuid() || !who.uid);
}

static void conn_open(struct control *ct, int fd)
{
	struct cconn *c = calloc(1, sizeof(*c));

	if (!c) {
		loop_close_fd(ct->loop, fd);
		return;
	}
	*c = (struct cconn){ .control = ct, .fd = fd, .rx.done = conn_received,
			     .tx.done = conn_sent, .post.run = conn_again,
			     .stall.fire = conn_stalled, .watch.fire = conn_watch };
	list_push_back(&ct->conns, &c->link);
	ct->conn_count++;
	if (peer_allowed(fd))
		rx_next(c);
	else
		conn_refuse(c, -EPERM, "this process is another user's");
}

static void accepted(struct op *op, int res)
{
	struct control *ct = CONTAINER_OF(op, struct control, accept);

	if (ct->closing) {
		if (res >= 0)
			loop_close_fd(ct->loop, res);
		return;
	}
	if (res >= 0)
		conn_open(ct, res);
	else if (res != -ECONNABORTED && res != -EINTR) {
		timer_set(ct->loop, &ct->retry, loop_now(ct->loop) + RETRY_NS);
		return;
	}
	accept_next(ct);
}

static void accept_next(struct control *ct)
{
	if (!ct->closing && ct->conn_count < CONTROL_CONNS_MAX && !op_pending(&ct->accept) &&
	    !timer_is_set(&ct->retry))
		op_accept(ct->loop, &ct->accept, ct->fd);
}

static void accept_retry(struct timer *timer)
{
	accept_next(CONTAINER_OF(timer, struct control, retry));
}

/* ---- the whole ---- */

/* Bound with mode 0600 from the first moment: bind() takes it from the socket itself. */
static int listen_at(const char *path, struct err *e)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	AUTO_FD int fd = -1;

	if (strlen(path) >= sizeof(un.sun_path))
		return err_set(e, -ENAMETOOLONG,
			       "the control socket's path is too long for a unix socket: set "
			       "REMORA_RUNTIME_DIR to a shorter directory");
	memcpy(un.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || fchmod(fd, 0600))
		return err_sys(e, -errno, "the control socket");
	(void)unlink(path); /* of a dead process that had our id */
	if (bind(fd, (struct sockaddr *)&un, sizeof(un)) || listen(fd, CONTROL_CONNS_MAX))
		return err_sys(e, -errno, "the control socket %s", path);
	return TAKE_FD(fd);
}

static void control_free(struct control *ct)
{
	if (!ct)
		return;
	free(ct->kind);
	free(ct->target);
	free(ct->spec);
	free(ct->path);
	free(ct);
}

int control_open(struct control **ret, struct loop *loop, const struct control_options *o,
		 struct err *e)
{
	char dir[SPEC_LEN_MAX];
	struct control *ct;
	int r = control_dir(dir, sizeof(dir), true, e);

	*ret = NULL;
	if (r)
		return r;
	ct = calloc(1, sizeof(*ct));
	if (!ct)
		return err_sys(e, -ENOMEM, "the control socket");
	*ct = (struct control){ .loop = loop, .kind = strdup(o->kind),
				.target = strdup(o->target), .spec = strdup(o->spec),
				.verbs = o->verbs, .arg = o->arg, .log = o->log, .fd = -1,
				.accept.done = accepted, .retry.fire = accept_retry };
	list_init(&ct->conns);
	if (!ct->kind || !ct->target || !ct->spec ||
	    asprintf(&ct->path, "%s/%s-%d.sock", dir, o->kind, (int)getpid()) < 0) {
		ct->path = NULL;
		control_free(ct);
		return err_sys(e, -ENOMEM, "the control socket");
	}
	ct->fd = listen_at(ct->path, e);
	if (ct->fd < 0) {
		control_free(ct);
		return e->code;
	}
	if (ct->log)
		control_log_listen(ct->log, loop, log_woken, ct);
	accept_next(ct);
	*ret = ct;
	return 0;
}

/* Steps until no connection is left, and the listener idle; false = it takes longer. */
static bool drain(struct control *ct, uint64_t until_ns)
{
	while (ct->conn_count || op_pending(&ct->accept)) {
		if (loop_now_fresh(ct->loop) >= until_ns)
			return false;
		if (loop_step(ct->loop, until_ns))
			return false;
	}
	return true;
}

static void conn_shut(struct cconn *c)
{
	c->ending = true;
	op_cancel(c->control->loop, &c->rx);
	if (c->call && c->following)
		control_ok(c->call, json_pack("{s:[]}", "events"));
	else if (c->call)
		control_fail(c->call, -ESHUTDOWN, "the process ends");
	else if (conn_idle(c))
		conn_end(c);
}

void control_close(struct control *ct)
{
	bool drained;

	if (!ct)
		return;
	ct->closing = true;
	(void)unlink(ct->path);
	timer_clear(ct->loop, &ct->retry);
	op_cancel(ct->loop, &ct->accept);
	LIST_EACH (k, &ct->conns) {
		struct cconn *c = LIST_ENTRY(k, struct cconn, link);

		c->held++;
		if (c->following)
			follow(c);
		conn_shut(c);
		conn_release(c);
	}
	drained = drain(ct, loop_now_fresh(ct->loop) + CLOSE_NS);
	LIST_EACH (k, &ct->conns)
		conn_end(LIST_ENTRY(k, struct cconn, link));
	if (!drained)
		drained = drain(ct, NEVER_NS);
	CHECK(drained); /* everything was cancelled */
	while (ct->log && !control_log_deaf(ct->log))
		if (loop_step(ct->loop, loop_now_fresh(ct->loop)))
			break;
	loop_close_fd(ct->loop, ct->fd);
	control_free(ct);
}
