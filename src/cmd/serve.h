/* SPDX-License-Identifier: Apache-2.0 */
/* What serve.c, which serves, and serve_status.c, which tells about it, share. */
#ifndef REMORA_CMD_SERVE_H
#define REMORA_CMD_SERVE_H

#include <pthread.h>

#include "base/limits.h"
#include "cmd/control.h"
#include "cmd/sandbox.h"
#include "front/server.h"

struct resource {
	const char *spec; /* borrowed from argv */
	char name[NAME_LEN_MAX + 1];
	bool name_given;
	struct store *store;
	struct serve *serve;
	struct req flush; /* at the end */
	bool flushing, late;
	int flush_err;
};

struct serve {
	struct run run;
	struct common common;
	struct server *server;
	struct resource *resource;
	size_t count;
	struct sock_addr addr[OPT_LIST_MAX]; /* asked for, then taken */
	bool stop, closed;
	size_t flushes; /* resources that have not answered */
	bool flushed;
	struct control_log *log; /* either may be NULL: it serves without */
	struct control *control;
	uint64_t started_ns; /* since 1970 */
	/* who may come (serve_access.c) */
	struct tls *tls; /* NULL: in clear */
	struct server_allow *allowed;
	size_t allowed_count;
	char *allow_text[OPT_LIST_MAX];
	struct sandbox sandbox;
	struct timer memory_timer; /* serve_memory.c */
	uint64_t memory_seen;
	/* --stdio (serve_stdio.c) */
	bool stdio_pumped;
	int session_fd; /* -1 = none */
	pthread_t stdio_out;
	/* options */
	bool stdio;
	const char *session;
	struct opt_list listen, allow;
	const char *tls_cert, *tls_key, *tls_ca, *psk;
	const char *user;
	bool insecure, no_sandbox;
	bool read_only, no_list;
	uint64_t max_clients, ready, grace_ns;
};

/* Reads the files for TLS and the addresses, which must fit together. */
MUST_USE int serve_access_open(struct serve *s, struct err *e);
/* What the server is told of it. */
MUST_USE int serve_access_rules(struct serve *s, struct server_options *o, struct err *e);
void serve_access_reload(struct serve *s);
void serve_access_close(struct serve *s);

/* Waits for a former server of the same --session. Behind run_open(). */
MUST_USE int serve_stdio_session(struct serve *s, struct err *e);
/* The one client. */
MUST_USE int serve_stdio_open(struct serve *s, struct err *e);
bool serve_stdio_ended(const struct serve *s);
void serve_stdio_close(struct serve *s); /* behind the server's end */

/* Is --user somebody? And, when everything is open: nothing more than what it needs. */
MUST_USE int serve_sandbox_open(struct serve *s, struct err *e);
MUST_USE int serve_sandbox_enter(struct serve *s, struct err *e);
json_t *serve_sandbox_tell(const struct serve *s); /* for status */

/* From here on, and to the end of the server: what ended connections had is given back. */
void serve_memory_open(struct serve *s);
void serve_memory_close(struct serve *s);

/* Keeps the log's lines for those who ask later. Behind run_open(). */
void serve_log_open(struct serve *s);
/* The control socket; when the server listens. Where there cannot be one there is a note. */
void serve_control_open(struct serve *s);

#endif
