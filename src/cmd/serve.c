/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora serve: resources for others, over the Remora protocol.
 *
 * Place: opens the stores that the specs name, gives them to front/server.h, waits for a signal.
 * serve_status.c tells others about it.
 *
 * Invariants: everything that can be wrong with the command line or the resources is found before
 * the first listener opens, and nothing is announced before all of them are open. At the end, in
 * this order: no more clients, requests in flight end, stores are flushed, stores close. Only when
 * every flush succeeded is the exit code 0.
 *
 * Locking: none; one loop.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/size.h"
#include "cmd/serve.h"
#include "store/spec.h"

#define GRACE_NS (10 * NS_PER_S)    /* for requests in flight, at the end */
#define CONNS_PER_CLIENT 4u	    /* with --max-clients */
#define TAKE_OVER_NS (2 * NS_PER_S) /* for a killed predecessor's listener to be gone */
#define TAKE_OVER_STEP_NS (10 * NS_PER_MS)

/* ---- names ---- */

/* "NAME=SPEC": a name has no character that a path or a spec could have before its first '='. */
static const char *name_split(const char *arg, char *ret_name)
{
	size_t len = strcspn(arg, "=/:|?%");

	if (arg[len] != '=' || !len || len > NAME_LEN_MAX)
		return arg;
	memcpy(ret_name, arg, len);
	ret_name[len] = '\0';
	return arg + len + 1;
}

/* What a resource is called when nobody says: the last part of its path, or its back end. */
static int name_default(struct resource *x, struct err *e)
{
	CLEANUP(spec_done) struct spec spec = { 0 };
	const struct spec_part *back;
	const char *slash, *name;
	int r = spec_parse(x->spec, &spec, e);

	if (r)
		return r;
	back = &spec.part[spec.parts - 1];
	slash = strrchr(back->rest, '/');
	name = slash ? slash + 1 : back->rest;
	if ((strcmp(back->name, "file") && strncmp(back->name, "remora", 6)) || !*name)
		name = back->name;
	snprintf(x->name, sizeof(x->name), "%s", name);
	return 0;
}

static int resources_name(struct serve *s, int count, char **args, struct err *e)
{
	s->resource = calloc((size_t)count, sizeof(*s->resource));
	if (!s->resource)
		return err_sys(e, -ENOMEM, "resources");
	s->count = (size_t)count;
	for (size_t i = 0; i < s->count; i++) {
		struct resource *x = &s->resource[i];

		x->spec = name_split(args[i], x->name);
		x->name_given = x->spec != args[i];
		if (!x->name_given && name_default(x, e))
			return e->code;
		for (size_t j = 0; j < i; j++)
			if (!strcmp(s->resource[j].name, x->name))
				return err_set(
					e, -EINVAL,
					"two resources are called '%s': name them, as in %s2=%s",
					x->name, x->name, x->spec);
	}
	return 0;
}

/* ---- opening ---- */

static int resources_open(struct serve *s, struct err *e)
{
	const struct store_open how = { .loop = s->run.loop,
					.read_only = s->read_only,
					.deadline_ns = NEVER_NS };

	for (size_t i = 0; i < s->count; i++)
		if (run_spec_open(&s->resource[i].store, s->resource[i].spec, &how, e))
			return e->code;
	return 0;
}

/*
 * Listens. The listener of a server that was killed a moment ago lives on until the kernel has torn
 * its ring down, which takes some milliseconds; a successor that is started at once waits for that.
 */
static int patient_listen(struct serve *s, struct sock_addr *addr, struct err *e)
{
	struct loop *loop = s->run.loop;
	uint64_t until = loop_now_fresh(loop) + TAKE_OVER_NS;
	bool never = false;
	int r;

	while ((r = server_listen(s->server, addr, addr, e)) == -EADDRINUSE &&
	       loop_now_fresh(loop) < until) {
		r = loop_run_until(loop, &never, loop_now_fresh(loop) + TAKE_OVER_STEP_NS);
		if (r != -ETIMEDOUT)
			return err_sys(e, r, "the event loop");
	}
	return r;
}

static int server_start(struct serve *s, struct err *e)
{
	AUTO_FREE struct server_export *exports = calloc(s->count, sizeof(*exports));
	struct server_options options = { .exports = exports,
					  .export_count = s->count,
					  .list_hidden = s->no_list };
	int r;

	if (!exports)
		return err_sys(e, -ENOMEM, "server");
	for (size_t i = 0; i < s->count; i++)
		exports[i] = (struct server_export){ .name = s->resource[i].name,
						     .store = s->resource[i].store,
						     .read_only = s->read_only };
	if (s->max_clients) {
		options.limits.conns_max = (unsigned)MIN(s->max_clients, 100000u) *
					   CONNS_PER_CLIENT;
		options.limits.conns_session_max = CONNS_PER_CLIENT;
	}
	r = serve_access_rules(s, &options, e);
	if (!r)
		r = server_open(&s->server, s->run.loop, &options, e);
	for (size_t i = 0; !r && i < s->listen.count; i++)
		r = patient_listen(s, &s->addr[i], e);
	return r;
}

/* ---- telling ---- */

static void announce_text(const struct serve *s)
{
	char text[SOCK_TEXT_MAX], size[SIZE_TEXT_MAX];

	for (size_t i = 0; i < s->count; i++) {
		const struct store_info *info = &s->resource[i].store->info;

		printf("serving %s (%s%s) as %s\n", s->resource[i].spec,
		       size_format(info->size, size), info->read_only ? ", read only" : "",
		       s->resource[i].name);
	}
	for (size_t i = 0; i < s->listen.count; i++)
		printf("listening on %s\n", sock_format(&s->addr[i], text));
}

static void announce_json(const struct serve *s)
{
	json_t *resources = json_array(), *listening = json_array();
	char text[SOCK_TEXT_MAX];

	for (size_t i = 0; i < s->count; i++) {
		const struct store_info *info = &s->resource[i].store->info;

		json_array_append_new(
			resources, json_pack("{s:s, s:s, s:I, s:b}", "name", s->resource[i].name,
					     "spec", s->resource[i].spec, "size",
					     (json_int_t)info->size, "read_only", info->read_only));
	}
	for (size_t i = 0; i < s->listen.count; i++)
		json_array_append_new(listening, json_string(sock_format(&s->addr[i], text)));
	out_json_line(json_pack("{s:o, s:o}", "listening", listening, "resources", resources));
}

static int announce(const struct serve *s, int ready_fd, struct err *e)
{
	char lines[OPT_LIST_MAX * (SOCK_TEXT_MAX + 1) + 1], text[SOCK_TEXT_MAX];
	size_t len = 0;

	if (s->common.json)
		announce_json(s);
	else if (!s->common.quiet)
		announce_text(s);
	fflush(stdout); /* whoever started us may read it through a pipe; if nobody does, that is no
			   reason to stop */
	for (size_t i = 0; i < s->listen.count; i++)
		len += (size_t)snprintf(lines + len, sizeof(lines) - len, "%s\n",
					sock_format(&s->addr[i], text));
	return ready_tell(ready_fd, lines, e);
}

/* ---- the end ---- */

static void sockets_remove(const struct serve *s)
{
	for (size_t i = 0; i < s->listen.count; i++) {
		const struct sockaddr_un *un = (const struct sockaddr_un *)&s->addr[i].ss;

		if (s->addr[i].domain == AF_UNIX && un->sun_path[0])
			unlink(un->sun_path);
	}
}

/* The first signal ends it in good order, the second at once. */
static void serve_signal(struct run *run)
{
	struct serve *s = CONTAINER_OF(run, struct serve, run);

	if (run->last_signal == SIGHUP && s->tls && !s->stop) {
		run->signals--;
		serve_access_reload(s);
		return;
	}
	s->stop = true;
	if (run->signals == 1) {
		log_info(&run->env.log,
			 "signal %d: no more clients; waiting for requests in flight",
			 run->last_signal);
		return;
	}
	say_error("stopped at once: what clients had not flushed may be lost");
	sockets_remove(s);
	_exit(CMD_INCOMPLETE);
}

static void server_closed(void *arg)
{
	((struct serve *)arg)->closed = true;
}

static void flush_done(struct req *req, int err)
{
	struct resource *x = CONTAINER_OF(req, struct resource, flush);

	x->flush_err = err;
	x->flushing = false;
	x->serve->flushed = !--x->serve->flushes;
}

/* All at once, so that one that hangs costs the others nothing. Who has not answered by then is
 * aborted. */
static int resources_flush_wait(struct serve *s)
{
	int r;

	for (size_t i = 0; i < s->count; i++) {
		struct resource *x = &s->resource[i];

		if (x->store->info.read_only || x->store->info.flush == CAP_NONE)
			continue;
		s->flushes++;
		x->serve = s;
		x->flushing = true;
		x->flush = (struct req){ .op = REQ_FLUSH, .done = flush_done };
		req_submit(x->store, &x->flush);
	}
	s->flushed = !s->flushes;
	r = loop_run_until(s->run.loop, &s->flushed, loop_now_fresh(s->run.loop) + s->grace_ns);
	if (r != -ETIMEDOUT)
		return r;
	for (size_t i = 0; i < s->count; i++)
		if (s->resource[i].flushing) {
			s->resource[i].late = true;
			store_abort(s->resource[i].store);
		}
	return loop_run_until(s->run.loop, &s->flushed, NEVER_NS);
}

static int resources_flush(struct serve *s)
{
	int code = CMD_OK;

	if (resources_flush_wait(s))
		return CMD_FAILED;
	for (size_t i = 0; i < s->count; i++) {
		struct resource *x = &s->resource[i];
		const char *why = *x->store->last_why ? x->store->last_why
						      : strerror(-x->flush_err);

		if (!x->flush_err)
			continue;
		say_error("%s: what was written could not be made durable: %s", x->spec,
			  x->late ? "no answer within --grace" : why);
		code = CMD_DATA;
	}
	return code;
}

static int serve_end(struct serve *s)
{
	char status[256];
	int code = CMD_OK;

	serve_memory_close(s);
	if (s->server) {
		server_status(s->server, status, sizeof(status));
		log_info(&s->run.env.log, "ending: %s", status);
		server_close(s->server, s->grace_ns, server_closed, s);
		if (loop_run_until(s->run.loop, &s->closed, NEVER_NS))
			return CMD_FAILED;
		code = resources_flush(s);
	}
	control_close(s->control);
	for (size_t i = 0; i < s->count; i++)
		store_close_wait(s->resource[i].store);
	return code;
}

static int serve_run(struct serve *s, int argc, char **argv)
{
	struct err e = { 0 };
	int ready_fd = -1, r, code = CMD_OK, end;

	r = serve_access_open(s, &e);
	if (!r)
		r = serve_sandbox_open(s, &e);
	if (!r)
		r = resources_name(s, argc, argv, &e);
	if (!r && s->ready != UINT64_MAX)
		r = ready_check(s->ready, &ready_fd, &e);
	if (!r)
		r = run_open(&s->run, &s->common, &e);
	if (r)
		return say_failed(&e, NULL);
	serve_log_open(s);
	r = serve_stdio_session(s, &e);
	if (!r)
		r = resources_open(s, &e);
	if (!r)
		r = server_start(s, &e);
	if (!r && s->stdio)
		r = serve_stdio_open(s, &e);
	if (!r) {
		if (!s->stdio)
			serve_control_open(s);
		s->run.on_signal = serve_signal;
		serve_memory_open(s);
		r = serve_sandbox_enter(s, &e);
	}
	if (!r && !s->stdio)
		r = announce(s, ready_fd, &e);
	while (!r && !s->stop) {
		r = loop_step(s->run.loop, NEVER_NS);
		if (r)
			err_sys(&e, r, "the event loop");
		s->stop = s->stop || (s->stdio && serve_stdio_ended(s));
	}
	if (r)
		code = say_failed(&e,
				  r == -EADDRINUSE
					  ? "another process listens there; choose another address"
					  : NULL);
	end = serve_end(s);
	serve_stdio_close(s);
	run_close(&s->run);
	control_log_close(s->log);
	return code ? code : end;
}

static const char serve_more[] =
	"A SPEC is a path, memory:64M, pattern:1T and so on: see man remora-spec. NAME is what\n"
	"clients ask for; it defaults to the file's name, or to the back end's. ADDR is unix:PATH,\n"
	"or HOST:PORT (port 0 = any); addresses that other machines reach need TLS. WHO is a name\n"
	"in a certificate, the identity of a secret, uid:N on a unix socket, or *.\n"
	"\n"
	"SIGTERM or ^C: no more clients, requests in flight end, everything is flushed. Twice: at\n"
	"once. SIGHUP, with TLS: certificates and secrets are read again.\n"
	"\n"
	"Examples:\n"
	"  remora serve disk.img --listen unix:/run/remora.sock\n"
	"  remora serve --read-only a=/srv/a.img b=/srv/b.img --listen 127.0.0.1:7000\n"
	"  remora serve scratch=memory:1G --listen 127.0.0.1:0\n"
	"  remora serve disk.img --listen 0.0.0.0:7000 --tls-cert a.crt --tls-key a.key \\\n"
	"      --tls-ca ca.crt --allow host-b=disk.img:ro\n";

/* 0, or CMD_USAGE. */
static int options_check(const struct serve *s)
{
	if (s->stdio && (s->listen.count || s->ready != UINT64_MAX || s->common.json))
		return say_usage("--stdio goes without --listen, --ready-fd and --json");
	if (s->session && !s->stdio)
		return say_usage("--session goes with --stdio");
	if (!s->listen.count && !s->stdio)
		return say_usage(
			"--listen is missing: say where, as in --listen unix:/run/remora.sock");
	return 0;
}

int cmd_serve(int argc, char **argv)
{
	struct serve *s = calloc(1, sizeof(*s));
	AUTO_FREE void *owner = s;
	int r;

	(void)owner;
	if (!s)
		return CMD_FAILED;
	s->ready = UINT64_MAX;
	s->session_fd = -1;
	s->grace_ns = GRACE_NS;
	const struct opt options[] = {
		{ "listen", 'l', OPT_LIST, "ADDR", "where it listens; may be given several times",
		  &s->listen },
		{ "tls-cert", 0, OPT_TEXT, "FILE",
		  "TLS over TCP: the server's certificate (PEM)", &s->tls_cert },
		{ "tls-key", 0, OPT_TEXT, "FILE", "its key", &s->tls_key },
		{ "tls-ca", 0, OPT_TEXT, "FILE",
		  "clients must have a certificate of this CA", &s->tls_ca },
		{ "psk", 0, OPT_TEXT, "FILE",
		  "TLS over TCP: clients may have one of these secrets instead", &s->psk },
		{ "allow", 0, OPT_LIST, "WHO=NAME[,NAME]...[:ro]",
		  "what a client may have; without any, all may have all", &s->allow },
		{ "insecure", 0, OPT_FLAG, NULL,
		  "other machines may come in clear, and nobody asks who they are", &s->insecure },
		{ "stdio", 0, OPT_FLAG, NULL,
		  "one client, on standard input and output, and ends with it", &s->stdio },
		{ "session", 0, OPT_TEXT, "WORD",
		  "with --stdio: waits until a former one of this word has ended", &s->session },
		{ "read-only", 'r', OPT_FLAG, NULL,
		  "refuses writes, and opens the resources without the right to write",
		  &s->read_only },
		{ "user", 0, OPT_TEXT, "NAME[:GROUP]",
		  "who it is once everything is open; only root can say", &s->user },
		{ "no-sandbox", 0, OPT_FLAG, NULL,
		  "keeps rights that a server does not need", &s->no_sandbox },
		{ "max-clients", 0, OPT_NUMBER, "N",
		  "room for N clients with 4 connections each; default: 128 connections",
		  &s->max_clients },
		{ "no-list", 0, OPT_FLAG, NULL, "does not tell the names of the resources",
		  &s->no_list },
		{ "grace", 0, OPT_TIME, "TIME",
		  "how long requests in flight may take at the end; default: 10s", &s->grace_ns },
		{ "ready-fd", 0, OPT_NUMBER, "N",
		  "writes its addresses to descriptor N and closes it when it is ready",
		  &s->ready },
		{ 0 },
	};
	const struct usage usage = {
		.name = "serve",
		.args = "[OPTION]... [NAME=]SPEC... --listen ADDR",
		.options = options,
		.more = serve_more,
		.args_min = 1,
		.args_max = SERVER_EXPORTS_MAX,
		.json = true, .loop = true,
	};

	r = options_parse(&usage, &s->common, argc, argv);
	if (r >= 0)
		return r;
	r = options_check(s);
	if (r)
		return r;
	r = serve_run(s, argc - optind, argv + optind);
	serve_access_close(s);
	free(s->resource);
	return out_end(r);
}
