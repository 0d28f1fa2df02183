/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket: how commands talk to a mount or a server that runs (docs/control.md).
 *
 * One unix socket per process, mode 0600, in the runtime directory (control_dir). Requests and
 * answers are JSON objects, one a line:
 *
 *   > {"remora": 1, "do": "flush"}
 *   < {"progress": {"done": 1048576, "total": 8388608}}     any number of them, where it takes time
 *   < {"ok": true, ...}                                      exactly one, the last
 *   < {"ok": false, "error": "text", "code": "EIO"}          or this
 */
#ifndef REMORA_CMD_CONTROL_H
#define REMORA_CMD_CONTROL_H

#include <jansson.h>
#include <sys/types.h>

#include "cmd/cmd.h"

#define CONTROL_VERSION 1
#define CONTROL_LINE_MAX (64 * 1024) /* of a request */
#define CONTROL_CONNS_MAX 32u	     /* clients at a time; more of them wait */

/*
 * Where the sockets are: $REMORA_RUNTIME_DIR, else /run/remora for root, $XDG_RUNTIME_DIR/remora,
 * else /tmp/remora-UID. make: makes it (0700) when it is missing. Refuses a directory that others
 * own or may write to.
 */
MUST_USE int control_dir(char *ret, size_t len, bool make, struct err *e);

/* ---- the side that is controlled (control_server.c): on its loop ---- */

struct control;

/* A request in progress; freed by its answer. */
struct control_call;

struct control_verb {
	const char *name; /* "do"; NULL ends the table */
	/* Answers, now or later, exactly once. `args` is the request, borrowed until the answer. */
	void (*run)(void *arg, struct control_call *call, json_t *args);
};

struct control_log;

struct control_options {
	const char *kind;   /* "mount", "serve" */
	const char *target; /* what people call it: a path, an address; copied */
	const char *spec;   /* copied */
	const struct control_verb *verbs;
	void *arg;
	struct control_log *log; /* borrowed; NULL = there is no "log" */
};

/* Answers "hello" itself: {"ok", "kind", "pid", "target", "spec", "version"}. Set-up code. */
MUST_USE int control_open(struct control **ret, struct loop *loop,
			  const struct control_options *options, struct err *e);
/* No requests from now on, the socket is removed; answers that are on their way are sent (for at
 * most a second), calls without one are answered with ESHUTDOWN: they are gone then, and nobody may
 * answer them any more. Set-up code, runs the loop. NULL: nothing to do. */
void control_close(struct control *control);

/* `with` (may be NULL) is taken over: its members join the answer. Who asked may be gone by then:
 * then it goes nowhere. */
void control_ok(struct control_call *call, json_t *with);
void control_fail(struct control_call *call, int err, const char *fmt, ...) PRINTF_LIKE(3, 4);
void control_progress(struct control_call *call, json_t *what);
/* Joins the answer, also one that is an error; `with` is taken over. */
void control_with(struct control_call *call, json_t *with);
/* Whoever asked is gone: what was begun for him alone can stop. */
bool control_gone(const struct control_call *call);

/* What a verb takes besides "remora" and "do". */
enum control_type {
	CONTROL_BOOL, /* bool */
	CONTROL_INT,  /* int64_t, from min to max (0 and 0: any that is not negative) */
	CONTROL_TEXT, /* const char *, borrowed from the request */
};
struct control_arg {
	const char *name; /* NULL ends the list */
	enum control_type type;
	void *to; /* left alone when it is absent */
	int64_t min, max;
};
/* A JSON string of any bytes: what is no UTF-8 becomes '?'. */
json_t *control_text(const char *text);

/* These members, of these types, and nothing else; or the call is answered with an error, and the
 * result is not 0. known may be NULL: no members at all. */
MUST_USE int control_args(struct control_call *call, json_t *args,
			  const struct control_arg *known);

/* ---- events (control_log.c): the last 1000 lines of a process's log, for "log" ---- */

MUST_USE int control_log_open(struct control_log **ret, struct err *e);
/* Behind everything that logs, and behind control_close(). NULL: nothing to do. */
void control_log_close(struct control_log *log);
/* From now on the lines are kept, those that stderr has only with -v included. Before
 * there are threads. */
void control_log_watch(struct control_log *log, struct env *env);

/* ---- the side that controls (control_client.c): blocking, for commands ---- */

struct control_lines; /* what was received and not yet read */

struct control_peer {
	int fd;
	pid_t pid;
	char kind[16];
	char *target, *spec, *version, *path; /* path: of the socket */
	struct control_lines *in;
	/* The caller's; as found: -1, 0. While wake_fd can be read (signals), waiting for an answer
	 * ends with -EINTR; when nothing comes for silence_ns, with -ETIMEDOUT. */
	int wake_fd;
	uint64_t silence_ns;
};

/*
 * TARGET is a mount's file, a server's address, or a process id, as told by "hello"; or the path of
 * a control socket. NULL: the only one there is. -ENOENT names what there is.
 */
MUST_USE int control_find(struct control_peer *ret, const char *target, struct err *e);

/* All there are that answer, in the order of their process ids; sockets of the dead are removed.
 * Root sees everybody's. *ret is an array of *ret_count, freed with control_peers_free(). */
MUST_USE int control_find_all(struct control_peer **ret, size_t *ret_count, struct err *e);
void control_peers_free(struct control_peer *peers, size_t count);
void control_peer_done(struct control_peer *peer);

/*
 * Asks and waits for the answer. `args` (may be NULL) is taken over: members of the request. 0 and
 * *ret (the caller's, may be NULL), or -errno as the peer says, with its text, and *ret is what it
 * said beside it; otherwise *ret is NULL. progress (may be NULL) gets each progress object.
 * -ECONNRESET: the peer ended without an answer.
 */
MUST_USE int control_ask(struct control_peer *peer, const char *verb, json_t *args,
			 void (*progress)(void *arg, json_t *what), void *arg, json_t **ret,
			 struct err *e);
/* Goes on waiting, after -EINTR. */
MUST_USE int control_wait(struct control_peer *peer, void (*progress)(void *arg, json_t *what),
			  void *arg, json_t **ret, struct err *e);

/* Below control_find(): connects to a socket, and says hello; the answer is for control_wait().
 * -EAGAIN: more wait there than it has room for. */
MUST_USE int control_connect(struct control_peer *ret, const char *path, struct err *e);
MUST_USE int control_hello_send(struct control_peer *peer, struct err *e);

#endif
