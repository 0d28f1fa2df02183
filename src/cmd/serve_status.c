/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a server tells through its control socket.
 *
 * Place: between serve.c, which has the server and its stores, and control_server.c.
 *
 * Invariant: a server serves without it: where the socket cannot be had, there is a note.
 *
 * Locking: none; loop thread.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cmd/control_int.h"
#include "cmd/serve.h"
#include "config.h"

/* ---- stores ---- */

static void store_sum(const struct store *store, struct store_counts *ret)
{
	*ret = (struct store_counts){ 0 };
	for (int op = 0; op < REQ_OPS; op++) {
		ret->done += store->counts[op].done;
		ret->failed += store->counts[op].failed;
		ret->bytes += store->counts[op].bytes;
		hist_merge(&ret->latency, &store->counts[op].latency);
	}
}

static void store_tell(const struct store *store, json_t *to)
{
	struct store_counts sum;

	store_sum(store, &sum);
	json_object_set_new(to, "requests", json_integer((json_int_t)sum.done));
	json_object_set_new(to, "failed", json_integer((json_int_t)sum.failed));
	json_object_set_new(to, "bytes", json_integer((json_int_t)sum.bytes));
	json_object_set_new(to, "p50_ns",
			    json_integer((json_int_t)hist_percentile(&sum.latency, 50)));
	json_object_set_new(to, "p99_ns",
			    json_integer((json_int_t)hist_percentile(&sum.latency, 99)));
}

/* The stages before a back end, and that one, in the order of the spec. */
static json_t *stages_tell(struct store *store)
{
	json_t *stages = json_array();

	for (; store; store = store->next) {
		json_t *stage = json_object();
		char text[256] = "";

		if (store->ops->status)
			store->ops->status(store, text, sizeof(text));
		json_object_set_new(stage, "name", json_string(store->ops->name));
		store_tell(store, stage);
		json_object_set_new(stage, "status", control_text(text));
		json_array_append_new(stages, stage);
	}
	return stages;
}

/* ---- the answer ---- */

static json_t *resources_tell(const struct serve *s)
{
	json_t *all = json_array();

	for (size_t i = 0; i < s->count; i++) {
		const struct resource *x = &s->resource[i];
		json_t *one = json_object();

		json_object_set_new(one, "name", control_text(x->name));
		json_object_set_new(one, "spec", control_text(x->spec));
		json_object_set_new(one, "size", json_integer((json_int_t)x->store->info.size));
		json_object_set_new(one, "read_only", json_boolean(x->store->info.read_only));
		store_tell(x->store, one);
		json_object_set_new(one, "stages", stages_tell(x->store));
		json_array_append_new(all, one);
	}
	return all;
}

static json_t *addresses_tell(const struct serve *s)
{
	json_t *all = json_array();
	char text[SOCK_TEXT_MAX];

	for (size_t i = 0; i < s->listen.count; i++)
		json_array_append_new(all, control_text(sock_format(&s->addr[i], text)));
	return all;
}

/* What people call it: the first address, which has to mean the same in every directory. */
static void target_make(const struct serve *s, char *buf, size_t len)
{
	char text[SOCK_TEXT_MAX];
	AUTO_FREE char *here = NULL;
	const char *path;

	sock_format(&s->addr[0], text);
	path = text + strlen("unix:");
	if (s->addr[0].domain == AF_UNIX && !strncmp(text, "unix:", 5) && *path != '/' &&
	    *path != '@')
		here = realpath(".", NULL);
	if (here)
		snprintf(buf, len, "unix:%s/%s", here, path);
	else
		snprintf(buf, len, "%s", text);
}

static void counts_tell(const struct serve *s, json_t *to)
{
	struct server_counts n;
	json_t *counts;

	server_count(s->server, &n);
	counts = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "clients",
			   (json_int_t)n.clients, "connections", (json_int_t)n.conns, "sessions",
			   (json_int_t)n.sessions, "accepted", (json_int_t)n.accepted, "refused",
			   (json_int_t)n.refused, "dropped", (json_int_t)n.dropped, "requests",
			   (json_int_t)n.requests, "failed", (json_int_t)n.failed, "bytes_read",
			   (json_int_t)n.bytes_read, "bytes_written", (json_int_t)n.bytes_written,
			   "zeros", (json_int_t)n.zeros);
	json_object_update(to, counts);
	json_decref(counts);
}

static void verb_status(void *arg, struct control_call *call, json_t *args)
{
	const struct serve *s = arg;
	int64_t cells = 0;
	const struct control_arg known[] = {
		{ "map", CONTROL_INT, &cells, 1, 65536 }, /* a server has none */
		{ 0 },
	};
	char target[PATH_MAX + SOCK_TEXT_MAX], instance[24];
	json_t *answer;

	if (control_args(call, args, known))
		return;
	target_make(s, target, sizeof(target));
	snprintf(instance, sizeof(instance), "%016" PRIx64, server_instance(s->server));
	answer = json_pack("{s:s, s:i, s:s, s:o, s:o, s:s, s:I, s:o, s:o, s:s}", "kind", "serve",
			   "pid", (int)getpid(), "version", REMORA_VERSION, "target",
			   control_text(target), "spec", control_text(s->resource[0].spec), "state",
			   s->stop ? "ending" : "serving", "started_ns", (json_int_t)s->started_ns,
			   "addresses", addresses_tell(s), "resources", resources_tell(s),
			   "instance", instance);
	if (answer) {
		json_object_set_new(answer, "sandbox", serve_sandbox_tell(s));
		counts_tell(s, answer);
	}
	control_ok(call, answer);
}

/* ---- opening ---- */

void serve_log_open(struct serve *s)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	s->started_ns = (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
	if (!control_log_open(&s->log, NULL))
		control_log_watch(s->log, &s->run.env);
}

void serve_control_open(struct serve *s)
{
	static const struct control_verb verbs[] = { { "status", verb_status }, { 0 } };
	char target[PATH_MAX + SOCK_TEXT_MAX];
	const struct control_options options = { .kind = "serve",
						 .target = target,
						 .spec = s->resource[0].spec,
						 .verbs = verbs,
						 .arg = s,
						 .log = s->log };
	struct err e;

	target_make(s, target, sizeof(target));
	log_info(&s->run.env.log, "listening on %s", target);
	if (control_open(&s->control, s->run.loop, &options, &e) && !s->common.quiet)
		say_note("%s; remora status does not see this server", e.text);
}
