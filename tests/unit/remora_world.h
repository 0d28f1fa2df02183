/* SPDX-License-Identifier: Apache-2.0 */
/* A server of the Remora protocol and its clients on one loop, over real sockets. */
#ifndef TEST_REMORA_WORLD_H
#define TEST_REMORA_WORLD_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "back/back.h"
#include "back/remora.h"
#include "front/server.h"
#include "wire/remora.h"

const struct store_kind store_kinds[] = {
	{ "memory", true, "memory:SIZE", back_memory_open },
	{ "remora", true,
	  "remora://HOST:PORT[/NAME][?connections=N][&for=TIME][&connect=TIME][&readonly=BOOL]",
	  back_remora_open },
	{ "remora+unix", true,
	  "remora+unix:///SOCKET[/NAME][?connections=N][&for=TIME][&connect=TIME][&readonly=BOOL]",
		back_remora_open },
	{ 0 },
};

struct world {
	struct loop *loop;
	struct store *disk;
	struct server *server;
	struct sock_addr addr;
	char dir[64], path[128];
};

static struct store *open_spec(struct world *w, const char *spec)
{
	struct store_open how = { .loop = w->loop, .deadline_ns = NEVER_NS };
	struct store *store;
	struct err e = { 0 };

	if (spec_open(&store, spec, &how, &e))
		fail_msg("%s: %s", spec, e.text);
	return store;
}

static void server_start(struct world *w, const struct server_options *o)
{
	struct err e = { 0 };
	char text[160];

	if (server_open(&w->server, w->loop, o, &e))
		fail_msg("%s", e.text);
	snprintf(text, sizeof(text), "unix:%s", w->path);
	assert_int_equal(sock_parse(text, &w->addr, &e), 0);
	if (server_listen(w->server, &w->addr, NULL, &e))
		fail_msg("%s", e.text);
}

static void world_bare(struct world *w)
{
	struct loop_options lo = { .engine = LOOP_AUTO };
	struct err e = { 0 };

	memset(w, 0, sizeof(*w));
	if (loop_open(&w->loop, &lo, &e))
		fail_msg("%s", e.text);
	snprintf(w->dir, sizeof(w->dir), "/tmp/remora-net-XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	snprintf(w->path, sizeof(w->path), "%s/socket", w->dir);
}

static void world_open(struct world *w, const char *spec, const struct server_limits *limits)
{
	struct server_export x = { .name = "disk" };
	struct server_options o = { .exports = &x, .export_count = 1 };

	world_bare(w);
	w->disk = open_spec(w, spec);
	x.store = w->disk;
	if (limits)
		o.limits = *limits;
	server_start(w, &o);
}

static void world_close(struct world *w)
{
	server_close_wait(w->server, NS_PER_S);
	store_close_wait(w->disk);
	loop_close(w->loop);
	assert_int_equal(access(w->path, F_OK), -1); /* the server has taken its socket away */
	assert_int_equal(rmdir(w->dir), 0);
}

static struct store *client_open(struct world *w, unsigned connections)
{
	struct remora_options o;
	struct store *store;
	struct err e = { 0 };

	remora_options_init(&o);
	o.addr = w->addr;
	o.name = "disk";
	o.connections = connections;
	if (remora_connect(&store, w->loop, &o, &e))
		fail_msg("%s", e.text);
	return store;
}

static void step(struct world *w)
{
	assert_int_equal(loop_step(w->loop, loop_now_fresh(w->loop) + 20 * NS_PER_MS), 0);
}

static uint8_t *random_bytes(struct rng *r, size_t len)
{
	uint8_t *p = malloc(len);

	assert_non_null(p);
	rng_fill(r, p, len);
	return p;
}

struct many {
	struct req req;
	uint8_t *buf;
	size_t *left;
	int err;
};

static void many_done(struct req *req, int err)
{
	struct many *m = CONTAINER_OF(req, struct many, req);

	m->err = err;
	(*m->left)--;
}

#endif
