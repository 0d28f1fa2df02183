/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The asking side of the control socket: one connection, one request at a time.
 *
 * Place: below every command that looks at what runs; above it is control_find.c, which knows where
 * the sockets are.
 *
 * Invariants: nothing that a peer does or leaves undone blocks for ever while wake_fd or silence_ns
 * are set: the socket never blocks, poll() waits. A line is bounded. What was received behind the
 * line that is being looked at stays for the next one.
 *
 * Locking: none.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cmd/control.h"

#define ANSWER_LEN_MAX (16 * MIB) /* of a line; a map has 65536 cells, a log some hundred events */
#define RECEIVE_LEN (64 * KIB)

struct control_lines {
	char *buf;
	size_t size, start, end; /* buf[start .. end) was received and not read */
	size_t looked;		 /* there is no newline before it */
};

/* ---- bytes ---- */

/* Until there is something to do; 0 or -errno. */
static int peer_poll(const struct control_peer *peer, short events)
{
	struct pollfd p[2] = { { .fd = peer->fd, .events = events },
			       { .fd = peer->wake_fd, .events = POLLIN } };
	int ms = -1, r;

	if (peer->silence_ns)
		ms = (int)MIN(peer->silence_ns / NS_PER_MS + 1, 1000000000u);
	r = poll(p, ARRAY_LEN(p), ms);
	if (r < 0)
		return errno == EINTR ? 0 : -errno;
	if (!r)
		return -ETIMEDOUT;
	return p[1].revents ? -EINTR : 0;
}

static int peer_send(struct control_peer *peer, const char *at, size_t len)
{
	while (len) {
		ssize_t n = send(peer->fd, at, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (n >= 0) {
			at += n;
			len -= (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		r = peer_poll(peer, POLLOUT);
		if (r)
			return r;
	}
	return 0;
}

static int lines_room(struct control_lines *in)
{
	size_t size = MAX(2 * in->size, 2 * RECEIVE_LEN);
	char *buf;

	if (in->size - in->end >= RECEIVE_LEN)
		return 0;
	if (in->start) {
		memmove(in->buf, in->buf + in->start, in->end - in->start);
		in->end -= in->start;
		in->looked -= in->start;
		in->start = 0;
	}
	if (in->size - in->end >= RECEIVE_LEN)
		return 0;
	if (in->end > ANSWER_LEN_MAX)
		return -EMSGSIZE;
	buf = realloc(in->buf, size);
	if (!buf)
		return -ENOMEM;
	in->buf = buf;
	in->size = size;
	return 0;
}

/* Receives something; 0, -ECONNRESET at the end. */
static int peer_receive(struct control_peer *peer)
{
	struct control_lines *in = peer->in;
	int r = lines_room(in);

	while (!r) {
		ssize_t n = recv(peer->fd, in->buf + in->end, in->size - in->end, MSG_DONTWAIT);

		if (n > 0) {
			in->end += (size_t)n;
			return 0;
		}
		if (!n)
			return -ECONNRESET;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		r = peer_poll(peer, POLLIN);
	}
	return r;
}

/* The next line, without its end; borrowed until the next call. */
static int peer_line(struct control_peer *peer, const char **ret, size_t *ret_len)
{
	struct control_lines *in = peer->in;
	char *end;
	int r;

	while (!(end = in->end > in->looked
			       ? memchr(in->buf + in->looked, '\n', in->end - in->looked)
			       : NULL)) {
		in->looked = in->end;
		r = peer_receive(peer);
		if (r)
			return r;
	}
	*ret = in->buf + in->start;
	*ret_len = (size_t)(end - *ret);
	in->start = in->looked = (size_t)(end + 1 - in->buf);
	CHECK(in->start <= in->end && in->end <= in->size);
	return 0;
}

/* ---- the connection ---- */

/* The address of a socket whose path may be longer than an address can be: through its directory.
 */
static int socket_address(const char *path, struct sockaddr_un *ret, int *ret_dir)
{
	const char *slash = strrchr(path, '/');
	AUTO_FREE char *dir = NULL;
	int n;

	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	*ret_dir = -1;
	if (strlen(path) < sizeof(ret->sun_path)) {
		memcpy(ret->sun_path, path, strlen(path) + 1);
		return 0;
	}
	if (!slash || slash == path)
		return -ENAMETOOLONG;
	dir = strndup(path, (size_t)(slash - path));
	if (!dir)
		return -ENOMEM;
	*ret_dir = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*ret_dir < 0)
		return -errno;
	n = snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d%s", *ret_dir, slash);
	return n < (int)sizeof(ret->sun_path) ? 0 : -ENAMETOOLONG;
}

int control_connect(struct control_peer *ret, const char *path, struct err *e)
{
	struct sockaddr_un un;
	AUTO_FD int dir = -1;
	int r = socket_address(path, &un, &dir);

	*ret = (struct control_peer){ .fd = -1, .wake_fd = -1 };
	if (r)
		return err_sys(e, r, "%s", path);
	ret->path = strdup(path);
	ret->in = calloc(1, sizeof(*ret->in));
	ret->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (!ret->path || !ret->in)
		r = -ENOMEM;
	else if (ret->fd < 0 || connect(ret->fd, (struct sockaddr *)&un, sizeof(un)))
		r = -errno; /* -EAGAIN: so many wait already that there is no room for one more */
	if (!r)
		return 0;
	control_peer_done(ret);
	return err_sys(e, r, "%s", path);
}

void control_peer_done(struct control_peer *peer)
{
	if (!peer)
		return;
	if (peer->fd >= 0)
		close(peer->fd);
	if (peer->in)
		free(peer->in->buf);
	free(peer->in);
	free(peer->target);
	free(peer->spec);
	free(peer->version);
	free(peer->path);
	*peer = (struct control_peer){ .fd = -1, .wake_fd = -1 };
}

/* ---- requests ---- */

static const char *peer_name(const struct control_peer *peer)
{
	return peer->target ? peer->target : peer->path;
}

/* An error of our side of the conversation. */
static int peer_failed(const struct control_peer *peer, int r, struct err *e)
{
	switch (r) {
	case -ECONNRESET:
	case -EPIPE:
		return err_set(e, -ECONNRESET, "%s: the process ended without an answer",
			       peer_name(peer));
	case -ETIMEDOUT:
		return err_set(e, r, "%s: the process does not answer", peer_name(peer));
	case -EINTR:
		return err_set(e, r, "interrupted");
	}
	return err_sys(e, r, "%s", peer_name(peer));
}

/* What the peer says when it says no. */
static int answer_failed(const struct control_peer *peer, const json_t *answer, struct err *e)
{
	const char *text = json_string_value(json_object_get(answer, "error"));
	const char *code = json_string_value(json_object_get(answer, "code"));
	int err = code ? errno_find(code, strlen(code)) : 0;

	return err_set(e, err ? -err : -EIO, "%s: %s", peer_name(peer),
		       text && *text ? text : "it failed, and the process does not say why");
}

int control_wait(struct control_peer *peer, void (*progress)(void *arg, json_t *what), void *arg,
		 json_t **ret, struct err *e)
{
	if (ret)
		*ret = NULL;
	for (;;) {
		json_t *answer, *ok, *what;
		const char *line;
		size_t len;
		int r = peer_line(peer, &line, &len);

		if (r)
			return peer_failed(peer, r, e);
		answer = json_loadb(line, len, 0, NULL);
		ok = json_object_get(answer, "ok");
		what = json_object_get(answer, "progress");
		if (what && !ok) {
			if (progress)
				progress(arg, what);
			json_decref(answer);
			continue;
		}
		if (!json_is_boolean(ok)) {
			json_decref(answer);
			return err_set(e, -EPROTO, "%s: the process answers what nobody understands",
				       peer_name(peer));
		}
		r = json_is_true(ok) ? 0 : answer_failed(peer, answer, e);
		if (ret)
			*ret = answer;
		else
			json_decref(answer);
		return r;
	}
}

static int request_send(struct control_peer *peer, const char *verb, json_t *args, struct err *e)
{
	json_t *request = json_pack("{s:i, s:s}", "remora", CONTROL_VERSION, "do", verb);
	AUTO_FREE char *text = NULL;
	size_t len;
	int r = -ENOMEM;

	if (request && !json_object_update(request, args ? args : request))
		text = json_dumps(request, JSON_COMPACT | JSON_ENSURE_ASCII);
	json_decref(request);
	json_decref(args);
	if (!text)
		return err_sys(e, r, "%s", peer_name(peer));
	len = strlen(text);
	if (len + 1 >= CONTROL_LINE_MAX)
		return err_sys(e, -E2BIG, "%s", peer_name(peer));
	text[len] = '\n'; /* in place of the 0 */
	r = peer_send(peer, text, len + 1);
	return r ? peer_failed(peer, r, e) : 0;
}

int control_ask(struct control_peer *peer, const char *verb, json_t *args,
		void (*progress)(void *arg, json_t *what), void *arg, json_t **ret, struct err *e)
{
	int r = request_send(peer, verb, args, e);

	if (ret)
		*ret = NULL;
	return r ? r : control_wait(peer, progress, arg, ret, e);
}

int control_hello_send(struct control_peer *peer, struct err *e)
{
	return request_send(peer, "hello", NULL, e);
}
