/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client and server of the Remora protocol over real sockets, both on one loop: the way a request goes, the texts of errors,
 * and what becomes of peers that break the rules. Losses, replays and time are in tests/sim/test_protocol.c, where time can be
 * had.
 */
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
	{ "remora", true, "remora://HOST:PORT[/NAME][?connections=N][&for=TIME][&connect=TIME][&readonly=BOOL]",
	  back_remora_open },
	{ "remora+unix", true,
	  "remora+unix:///SOCKET[/NAME][?connections=N][&for=TIME][&connect=TIME][&readonly=BOOL]", back_remora_open },
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

/* ---- the way of a request ---- */

static void every_operation_over_a_unix_socket(void **state)
{
	struct world w;
	struct store *c;
	struct extent x[8];
	struct extents xs = { .at = x, .max = 8 };
	struct rng r = { 1 };
	uint8_t *a = random_bytes(&r, 300000), *b = malloc(300000);

	(void)state;
	world_open(&w, "memory:4M", NULL);
	c = client_open(&w, 2);
	assert_int_equal(c->info.size, 4 * MIB);
	assert_int_equal(c->info.align, 1);
	assert_int_equal(store_write(c, 12345, a, 300000, 0), 0);
	assert_int_equal(store_read(c, 12345, b, 300000), 0);
	assert_memory_equal(a, b, 300000);
	assert_int_equal(store_read(w.disk, 12345, b, 300000), 0);
	assert_memory_equal(a, b, 300000);
	assert_int_equal(store_flush(c), 0);
	assert_int_equal(store_zero(c, 20000, 100000), 0);
	memset(a + 20000 - 12345, 0, 100000);
	assert_int_equal(store_read(c, 12345, b, 300000), 0);
	assert_memory_equal(a, b, 300000);
	assert_int_equal(store_trim(c, 0, 4 * MIB), 0);
	assert_int_equal(store_write(c, 3 * MIB, a, 1000, REQ_FUA), 0);
	assert_int_equal(store_extents(c, 0, 4 * MIB, &xs), 0);
	assert_int_equal(xs.count, 3);
	assert_true(x[0].zero && !x[1].zero && x[2].zero);
	assert_int_equal(x[0].len, 3 * MIB);
	store_close_wait(c);
	world_close(&w);
	free(a);
	free(b);
}

static void zeros_are_not_sent(void **state)
{
	struct world w;
	struct store *c;
	struct server_counts n;
	struct remora_counts rn;
	struct rng r = { 2 };
	uint8_t *a = calloc(1, MIB), *b = malloc(MIB);

	(void)state;
	world_open(&w, "memory:4M", NULL);
	c = client_open(&w, 2);
	rng_fill(&r, a + 5 * 4096, 4096);
	rng_fill(&r, a + 100 * 4096 + 7, 9000);
	memset(b, 1, MIB);
	assert_int_equal(store_write(w.disk, 0, b, MIB, 0), 0);
	assert_int_equal(store_write(c, 0, a, MIB, 0), 0);
	memset(b, 1, MIB);
	assert_int_equal(store_read(c, 0, b, MIB), 0);
	assert_memory_equal(a, b, MIB);
	assert_int_equal(store_read(c, 3 * MIB, b, MIB), 0);
	assert_true(wire_is_zero(b, MIB));
	server_count(w.server, &n);
	remora_count(c, &rn);
	assert_int_equal(n.bytes_read, 2 * MIB);
	assert_true(n.zeros > 3 * MIB - 64 * KIB);
	assert_true(rn.bytes_received < 40000 && rn.bytes_sent < 40000);
	store_close_wait(c);
	world_close(&w);
	free(a);
	free(b);
}

/* Alternating blocks: more runs than a table holds. */
static void more_runs_than_the_table_has_room_for_arrive_whole(void **state)
{
	struct world w;
	struct store *c;
	uint8_t *a = calloc(1, 2 * MIB), *b = malloc(2 * MIB);

	(void)state;
	world_open(&w, "memory:4M", NULL);
	c = client_open(&w, 1);
	for (size_t i = 0; i < 2 * MIB; i += 8192)
		memset(a + i, (int)(i / 8192) + 1, 4096);
	memset(b, 9, 2 * MIB);
	assert_int_equal(store_write(c, 1, b, 2 * MIB, 0), 0);
	assert_int_equal(store_write(c, 1, a, 2 * MIB, 0), 0);
	assert_int_equal(store_read(c, 1, b, 2 * MIB), 0);
	assert_memory_equal(a, b, 2 * MIB);
	store_close_wait(c);
	world_close(&w);
	free(a);
	free(b);
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

static void many_run(struct world *w, struct store *c, enum req_op op, uint8_t *all, size_t count, size_t len)
{
	struct many *m = calloc(count, sizeof(*m));
	size_t left = count;

	for (size_t i = 0; i < count; i++) {
		m[i].left = &left;
		m[i].req.op = op;
		m[i].req.flags = i % 7 == 3 ? REQ_URGENT : i % 5 == 2 ? REQ_BACKGROUND : 0;
		m[i].req.range = range_of(i * len, len);
		m[i].req.data = (struct iobuf){ all + i * len, len };
		m[i].req.done = many_done;
		req_submit(c, &m[i].req);
	}
	while (left)
		step(w);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(m[i].err, 0);
	free(m);
}

/* More requests than slots, more bytes than the server's buffers. */
static void limits_of_the_server_hold_back_and_lose_nothing(void **state)
{
	static const struct server_limits limits = { .requests_max = 8, .bytes_max = 512 * KIB, .unsent_max = 100000 };
	struct world w;
	struct rng r = { 3 };
	size_t len = 96 * KIB, count = 600;
	uint8_t *a = random_bytes(&r, len * count), *b = malloc(len * count);

	(void)state;
	for (unsigned connections = 1; connections <= 5; connections += 2) {
		struct store *c;

		world_open(&w, "memory:64M", &limits);
		c = client_open(&w, connections);
		assert_int_equal(c->info.len_max, 256 * KIB);
		many_run(&w, c, REQ_WRITE, a, count, len);
		memset(b, 0, len * count);
		many_run(&w, c, REQ_READ, b, count, len);
		assert_memory_equal(a, b, len * count);
		store_close_wait(c);
		world_close(&w);
	}
	free(a);
	free(b);
}

static void two_clients_share_one_store(void **state)
{
	struct world w;
	struct store *c, *d;
	char text[6] = "";

	(void)state;
	world_open(&w, "memory:1M", NULL);
	c = client_open(&w, 2);
	d = client_open(&w, 1);
	assert_int_equal(store_write(c, 70000, "hello", 6, 0), 0);
	assert_int_equal(store_read(d, 70000, text, 6), 0);
	assert_string_equal(text, "hello");
	store_close_wait(c);
	store_close_wait(d);
	world_close(&w);
}

static void the_first_read_comes_with_the_greeting(void **state)
{
	struct remora_options o;
	struct remora_counts n;
	struct server_counts sn;
	struct world w;
	struct store *c;
	struct rng r = { 4 };
	uint8_t *a = random_bytes(&r, MIB), *b = malloc(MIB);

	(void)state;
	world_open(&w, "memory:1M", NULL);
	assert_int_equal(store_write(w.disk, 0, a, MIB, 0), 0);
	remora_options_init(&o);
	o.addr = w.addr;
	o.first = range_of(900 * KIB, 200 * KIB); /* across the end: cut */
	assert_int_equal(remora_connect(&c, w.loop, &o, NULL), 0);
	assert_int_equal(store_read(c, 950 * KIB, b, 74 * KIB), 0);
	assert_memory_equal(a + 950 * KIB, b, 74 * KIB);
	remora_count(c, &n);
	assert_int_equal(n.first_hits, 1);
	server_count(w.server, &sn);
	assert_int_equal(sn.requests, 1);
	/* Only once: it may have changed since. */
	assert_int_equal(store_read(c, 950 * KIB, b, 4 * KIB), 0);
	remora_count(c, &n);
	assert_int_equal(n.first_hits, 1);
	store_close_wait(c);
	/* What was written meanwhile is not answered from before. */
	assert_int_equal(remora_connect(&c, w.loop, &o, NULL), 0);
	assert_int_equal(store_write(c, 950 * KIB, "new", 4, 0), 0);
	assert_int_equal(store_read(c, 950 * KIB, b, 4), 0);
	assert_string_equal((char *)b, "new");
	store_close_wait(c);
	/* Outside of the resource: no harm. */
	o.first = range_of(5 * MIB, 100);
	assert_int_equal(remora_connect(&c, w.loop, &o, NULL), 0);
	assert_int_equal(store_read(c, 0, b, 4096), 0);
	assert_memory_equal(a, b, 4096);
	store_close_wait(c);
	world_close(&w);
	free(a);
	free(b);
}

static void a_socketpair_serves_without_an_address(void **state)
{
	struct remora_options o;
	struct world w;
	struct store *c;
	int fd[2];
	char text[4] = "";

	(void)state;
	world_open(&w, "memory:1M", NULL);
	assert_int_equal(loop_socketpair(w.loop, fd), 0);
	assert_int_equal(server_attach(w.server, fd[0]), 0);
	remora_options_init(&o);
	o.fd = fd[1];
	assert_int_equal(remora_connect(&c, w.loop, &o, NULL), 0);
	assert_int_equal(store_write(c, 5, "abc", 4, 0), 0);
	assert_int_equal(store_read(c, 5, text, 4), 0);
	assert_string_equal(text, "abc");
	store_close_wait(c);
	world_close(&w);
}

static void specs_name_the_longest_prefix_that_is_a_socket(void **state)
{
	struct store_open how = { .deadline_ns = NEVER_NS };
	struct world w;
	struct store *c;
	struct err e = { 0 };
	char spec[256];

	(void)state;
	world_open(&w, "memory:1M", NULL);
	how.loop = w.loop;
	snprintf(spec, sizeof(spec), "remora+unix://%s/disk?connections=3&for=1s", w.path);
	c = open_spec(&w, spec);
	store_close_wait(c);
	snprintf(spec, sizeof(spec), "remora+unix://%s", w.path);
	c = open_spec(&w, spec);
	store_close_wait(c);
	snprintf(spec, sizeof(spec), "remora+unix://%s/disk/no", w.path);
	assert_int_equal(spec_open(&c, spec, &how, &e), -ENOENT);
	assert_non_null(strstr(e.text, "disk/no"));
	assert_non_null(strstr(e.text, "there are: disk"));
	snprintf(spec, sizeof(spec), "remora+unix://%s/nothere/disk", w.dir);
	assert_int_equal(spec_open(&c, spec, &how, &e), -ENOENT);
	assert_non_null(strstr(e.text, "nothere"));
	world_close(&w);
}

static void tcp_on_loopback_with_any_port(void **state)
{
	struct world w;
	struct sock_addr addr;
	struct store *c;
	char spec[256], text[SOCK_TEXT_MAX], byte = 7;

	(void)state;
	world_open(&w, "memory:1M", NULL);
	assert_int_equal(sock_parse("127.0.0.1:0", &addr, NULL), 0);
	assert_int_equal(server_listen(w.server, &addr, &addr, NULL), 0);
	snprintf(spec, sizeof(spec), "remora://%s/disk", sock_format(&addr, text));
	c = open_spec(&w, spec);
	assert_int_equal(store_write(c, MIB - 1, &byte, 1, 0), 0);
	byte = 0;
	assert_int_equal(store_read(c, MIB - 1, &byte, 1), 0);
	assert_int_equal(byte, 7);
	store_close_wait(c);
	world_close(&w);
}

static void flushes_and_writes_tell_the_instance(void **state)
{
	struct server_export x = { .name = "disk" };
	struct server_options o = { .exports = &x, .export_count = 1 };
	struct world w;
	struct store *c;
	uint64_t before;
	struct many m = { 0 };
	size_t left = 1;

	(void)state;
	world_open(&w, "memory:1M", NULL);
	c = client_open(&w, 1);
	before = c->info.instance;
	assert_true(before);
	m.left = &left;
	m.req.op = REQ_FLUSH;
	m.req.done = many_done;
	req_submit(c, &m.req);
	while (left)
		step(&w);
	assert_int_equal(m.req.ret_instance, before);
	store_close_wait(c);
	/* The same store behind another server: its page cache may have died with the old one's machine. */
	server_close_wait(w.server, NS_PER_S);
	x.store = w.disk;
	server_start(&w, &o);
	c = client_open(&w, 1);
	assert_int_not_equal(c->info.instance, before);
	store_close_wait(c);
	world_close(&w);
}

/* ---- errors ---- */

static void a_server_that_is_not_there_is_named_with_the_reason(void **state)
{
	struct remora_options o;
	struct sock_addr addr;
	struct world w;
	struct store *c;
	struct err e = { 0 };
	char text[SOCK_TEXT_MAX];
	int fd;

	(void)state;
	world_bare(&w);
	/* A port that was free a moment ago. */
	assert_int_equal(sock_parse("127.0.0.1:0", &addr, NULL), 0);
	fd = loop_listen(w.loop, (struct sockaddr *)&addr.ss, addr.len, 1);
	assert_true(fd >= 0);
	assert_int_equal(loop_sockname(w.loop, fd, &addr.ss, &addr.len), 0);
	loop_close_fd(w.loop, fd);
	remora_options_init(&o);
	o.addr = addr;
	assert_int_equal(remora_connect(&c, w.loop, &o, &e), -ECONNREFUSED);
	assert_null(c);
	assert_non_null(strstr(e.text, sock_format(&addr, text)));
	assert_non_null(strstr(e.text, "refused"));
	loop_close(w.loop);
	assert_int_equal(rmdir(w.dir), 0);
}

static void a_server_that_does_not_greet_is_left_in_time(void **state)
{
	struct remora_options o;
	struct world w;
	struct store *c;
	struct err e = { 0 };
	int fd[2];

	(void)state;
	world_bare(&w);
	assert_int_equal(loop_socketpair(w.loop, fd), 0);
	remora_options_init(&o);
	o.fd = fd[1];
	o.connect_ns = 30 * NS_PER_MS;
	assert_int_equal(remora_connect(&c, w.loop, &o, &e), -ETIMEDOUT);
	assert_non_null(strstr(e.text, "greeting"));
	loop_close_fd(w.loop, fd[0]);
	loop_close(w.loop);
	assert_int_equal(rmdir(w.dir), 0);
}

static void what_answers_may_not_speak_the_protocol(void **state)
{
	static const char http[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
	struct remora_options o;
	struct world w;
	struct store *c;
	struct err e = { 0 };
	int fd[2];

	(void)state;
	world_bare(&w);
	assert_int_equal(loop_socketpair(w.loop, fd), 0);
	assert_int_equal(send(fd[0], http, sizeof(http) - 1, 0), sizeof(http) - 1);
	remora_options_init(&o);
	o.fd = fd[1];
	assert_int_equal(remora_connect(&c, w.loop, &o, &e), -EPROTO);
	assert_non_null(strstr(e.text, "does not speak"));
	loop_close_fd(w.loop, fd[0]);
	loop_close(w.loop);
	assert_int_equal(rmdir(w.dir), 0);
}

static void read_only_exports_refuse_changes(void **state)
{
	struct server_export x = { .name = "disk", .read_only = true };
	struct server_options o = { .exports = &x, .export_count = 1 };
	struct world w;
	struct store *c;

	(void)state;
	world_bare(&w);
	x.store = w.disk = open_spec(&w, "memory:1M");
	server_start(&w, &o);
	c = client_open(&w, 1);
	assert_true(c->info.read_only);
	assert_int_equal(store_write(c, 0, "x", 1, 0), -EROFS);
	/* The server does not rely on the client's knowing. */
	c->info.read_only = false;
	assert_int_equal(store_write(c, 0, "x", 1, 0), -EROFS);
	assert_string_equal(c->last_why, "read-only");
	assert_int_equal(store_flush(c), 0);
	store_close_wait(c);
	world_close(&w);
}

static void lists_are_told_unless_hidden(void **state)
{
	struct server_export x[3] = { { .name = "a" }, { .name = "b", .read_only = true }, { .name = "" } };
	struct server_options o = { .exports = x, .export_count = 3 };
	struct remora_entry *list;
	struct remora_options ro;
	struct world w;
	struct store *c;
	struct err e = { 0 };
	size_t count;

	(void)state;
	world_bare(&w);
	w.disk = open_spec(&w, "memory:1M");
	x[0].store = x[1].store = x[2].store = w.disk;
	server_start(&w, &o);
	assert_int_equal(remora_list(w.loop, &w.addr, -1, 0, &list, &count, &e), 0);
	assert_int_equal(count, 3);
	assert_string_equal(list[1].name, "b");
	assert_true(list[1].read_only && !list[0].read_only);
	assert_int_equal(list[2].size, MIB);
	free(list);
	server_close_wait(w.server, 0);
	o.list_hidden = true;
	o.export_count = 2;
	server_start(&w, &o);
	assert_int_equal(remora_list(w.loop, &w.addr, -1, 0, &list, &count, &e), -EACCES);
	assert_non_null(strstr(e.text, "does not tell"));
	remora_options_init(&ro);
	ro.addr = w.addr;
	assert_int_equal(remora_connect(&c, w.loop, &ro, &e), -ENOENT);
	assert_non_null(strstr(e.text, "a name is needed"));
	ro.name = "c";
	assert_int_equal(remora_connect(&c, w.loop, &ro, &e), -ENOENT);
	assert_null(strstr(e.text, "there are"));
	world_close(&w);
}

static void too_many_clients_are_refused_with_the_reason(void **state)
{
	static const struct server_limits limits = { .conns_max = 2 };
	struct remora_options o;
	struct world w;
	struct store *c, *d;
	struct err e = { 0 };
	char byte;

	(void)state;
	world_open(&w, "memory:1M", &limits);
	c = client_open(&w, 1);
	d = client_open(&w, 1);
	remora_options_init(&o);
	o.addr = w.addr;
	o.connections = 1;
	{
		struct store *f;

		assert_int_equal(remora_connect(&f, w.loop, &o, &e), -EBUSY);
		assert_non_null(strstr(e.text, "too many clients"));
	}
	assert_int_equal(store_read(c, 0, &byte, 1), 0);
	store_close_wait(c);
	for (int i = 0; i < 3; i++)
		step(&w); /* the server hears of it */
	c = client_open(&w, 1);
	store_close_wait(c);
	store_close_wait(d);
	world_close(&w);
}

static void listening_to_the_world_is_refused(void **state)
{
	struct world w;
	struct sock_addr addr;
	struct err e = { 0 };

	(void)state;
	world_open(&w, "memory:1M", NULL);
	assert_int_equal(sock_parse("0.0.0.0:0", &addr, NULL), 0);
	assert_int_equal(server_listen(w.server, &addr, NULL, &e), -EPERM);
	assert_non_null(strstr(e.text, "encryption"));
	world_close(&w);
}

static void users_who_are_not_on_the_list_are_refused(void **state)
{
	struct server_export x = { .name = "disk" };
	uid_t uids[1] = { getuid() + 1 };
	struct server_options o = { .exports = &x, .export_count = 1, .uids = uids, .uid_count = 1 };
	struct remora_options ro;
	struct world w;
	struct store *c;
	struct err e = { 0 };

	(void)state;
	world_bare(&w);
	x.store = w.disk = open_spec(&w, "memory:1M");
	server_start(&w, &o);
	remora_options_init(&ro);
	ro.addr = w.addr;
	assert_int_equal(remora_connect(&c, w.loop, &ro, &e), -EACCES);
	assert_non_null(strstr(e.text, "user"));
	world_close(&w);
}

/* ---- peers that break the rules ---- */

/* A client by hand, on the same thread. */
static int raw_connect(struct world *w)
{
	int fd[2];

	assert_int_equal(loop_socketpair(w->loop, fd), 0);
	assert_int_equal(server_attach(w->server, fd[0]), 0);
	return fd[1];
}

static void raw_send(struct world *w, int fd, const void *at, size_t len)
{
	const uint8_t *p = at;

	while (len) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		if (n < 0) {
			assert_int_equal(errno, EAGAIN);
			step(w);
			continue;
		}
		p += n;
		len -= (size_t)n;
	}
}

/* Bytes received, or -1 when the server has closed. */
static ssize_t raw_recv(struct world *w, int fd, void *at, size_t len)
{
	size_t got = 0;

	for (int i = 0; i < 3000 && got < len; i++) {
		ssize_t n = recv(fd, (uint8_t *)at + got, len - got, 0);

		if (n == 0 || (n < 0 && errno != EAGAIN))
			return got ? (ssize_t)got : -1;
		if (n < 0)
			step(w);
		else
			got += (size_t)n;
	}
	return (ssize_t)got;
}

static void raw_hello(struct world *w, int fd, uint8_t session, uint16_t index, uint32_t attempt)
{
	struct wire_hello hello = { .version_min = 1, .version_max = 1, .index = index, .conns = 4,
				    .attempt = attempt, .payload_max = 1u << 30 };
	uint8_t at[WIRE_HELLO_MAX];

	hello.session[0] = session;
	raw_send(w, fd, at, wire_hello_encode(&hello, at));
}

static void raw_welcome(struct world *w, int fd)
{
	uint8_t at[WIRE_WELCOME_LEN];
	struct wire_welcome welcome;

	assert_int_equal(raw_recv(w, fd, at, sizeof(at)), sizeof(at));
	assert_int_equal(wire_welcome_decode(at, sizeof(at), &welcome), 0);
}

static void raw_request(struct world *w, int fd, uint8_t op, uint64_t id, uint64_t off, uint64_t len, uint32_t payload)
{
	struct wire_request request = { .op = op, .id = id, .range = range_of(off, len), .payload = payload };
	uint8_t at[WIRE_REQUEST_LEN];

	wire_request_encode(&request, at);
	raw_send(w, fd, at, sizeof(at));
}

static struct wire_reply raw_reply(struct world *w, int fd)
{
	uint8_t at[WIRE_REPLY_LEN];
	struct wire_reply reply;

	assert_int_equal(raw_recv(w, fd, at, sizeof(at)), sizeof(at));
	assert_int_equal(wire_reply_decode(at, &reply), 0);
	return reply;
}

static void assert_closed(struct world *w, int fd)
{
	uint8_t byte;

	assert_int_equal(raw_recv(w, fd, &byte, 1), -1);
	loop_close_fd(w->loop, fd);
}

static void assert_serves(struct world *w, struct store *c)
{
	uint8_t a[100], b[100];

	memset(a, 0x5a, sizeof(a));
	assert_int_equal(store_write(c, 777, a, sizeof(a), 0), 0);
	assert_int_equal(store_read(c, 777, b, sizeof(b)), 0);
	assert_memory_equal(a, b, sizeof(a));
	(void)w;
}

static void garbage_ends_its_own_connection_only(void **state)
{
	struct world w;
	struct store *c;
	struct rng r = { 5 };

	(void)state;
	world_open(&w, "memory:1M", NULL);
	c = client_open(&w, 2);
	for (int i = 0; i < 40; i++) {
		int fd = raw_connect(&w);
		uint8_t junk[700];

		rng_fill(&r, junk, sizeof(junk));
		if (i % 2) { /* behind a good greeting */
			raw_hello(&w, fd, (uint8_t)(i + 1), 0, 1);
			raw_welcome(&w, fd);
		}
		raw_send(&w, fd, junk, sizeof(junk));
		assert_closed(&w, fd);
	}
	assert_serves(&w, c);
	store_close_wait(c);
	world_close(&w);
}

static void lengths_are_checked_before_anything_is_allocated(void **state)
{
	static const struct {
		uint8_t op;
		uint64_t off, len;
		uint32_t payload;
	} bad[] = {
		{ WIRE_WRITE, 0, UINT64_MAX, UINT32_MAX }, { WIRE_WRITE, 0, 100, 99 },
		{ WIRE_WRITE, 0, 100, UINT32_MAX },	   { WIRE_WRITE, 0, WIRE_LEN_MAX + 1, WIRE_LEN_MAX + 1 },
		{ WIRE_READ, UINT64_MAX, 2, 0 },	   { WIRE_READ, 0, 10, 10 },
		{ WIRE_FLUSH, 0, 10, 0 },		   { 0, 0, 0, 0 },
		{ WIRE_OPS_END, 0, 0, 0 },
	};
	struct world w;
	struct store *c;

	(void)state;
	world_open(&w, "memory:1M", NULL);
	c = client_open(&w, 2);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		int fd = raw_connect(&w);

		raw_hello(&w, fd, 9, 0, 1);
		raw_welcome(&w, fd);
		raw_request(&w, fd, bad[i].op, 1, bad[i].off, bad[i].len, bad[i].payload);
		assert_closed(&w, fd);
	}
	assert_serves(&w, c);
	store_close_wait(c);
	world_close(&w);
}

/* Negative and huge offsets that are consistent in themselves: an error reply, and the connection goes on. */
static void ranges_outside_of_the_resource_are_answered_with_an_error(void **state)
{
	struct world w;
	uint8_t payload[4096] = { 1 };
	int fd;

	(void)state;
	world_open(&w, "memory:1M", NULL);
	fd = raw_connect(&w);
	raw_hello(&w, fd, 9, 0, 1);
	raw_welcome(&w, fd);
	for (uint64_t id = 1; id <= 6; id++) {
		static const uint64_t off[] = { MIB - 1, MIB, UINT64_MAX - 4096, 1ULL << 63, 4096, 0 };
		static const uint64_t len[] = { 4096, 4096, 4096, 4096, UINT64_MAX / 2, 17 * MIB };
		struct wire_reply reply;
		char text[WIRE_TEXT_MAX];

		if (id <= 4) {
			raw_request(&w, fd, WIRE_WRITE, id, off[id - 1], len[id - 1], 4096);
			raw_send(&w, fd, payload, sizeof(payload));
		} else {
			raw_request(&w, fd, WIRE_READ, id, off[id - 1], len[id - 1], 0);
		}
		reply = raw_reply(&w, fd);
		assert_int_equal(reply.id, id);
		assert_int_equal(reply.code, WIRE_EINVAL);
		assert_int_equal(raw_recv(&w, fd, text, reply.payload), reply.payload);
	}
	raw_request(&w, fd, WIRE_FLUSH, 77, 0, 0, 0);
	assert_int_equal(raw_reply(&w, fd).code, WIRE_OK);
	loop_close_fd(w.loop, fd);
	world_close(&w);
}

static void ids_used_twice_are_answered_twice(void **state)
{
	struct world w;
	int fd;

	(void)state;
	world_open(&w, "memory:1M", NULL);
	fd = raw_connect(&w);
	raw_hello(&w, fd, 9, 0, 1);
	raw_welcome(&w, fd);
	for (int i = 0; i < 5; i++)
		raw_request(&w, fd, WIRE_FLUSH, 42, 0, 0, 0);
	for (int i = 0; i < 5; i++)
		assert_int_equal(raw_reply(&w, fd).id, 42);
	loop_close_fd(w.loop, fd);
	world_close(&w);
}

static void a_second_hello_ends_the_connection(void **state)
{
	struct world w;
	int fd;

	(void)state;
	world_open(&w, "memory:1M", NULL);
	fd = raw_connect(&w);
	raw_hello(&w, fd, 9, 0, 1);
	raw_welcome(&w, fd);
	raw_hello(&w, fd, 9, 0, 2);
	assert_closed(&w, fd);
	world_close(&w);
}

static void an_older_attempt_does_not_replace_a_newer_connection(void **state)
{
	uint8_t prefix[WIRE_PREFIX_LEN];
	enum wire_answer kind;
	struct world w;
	size_t len;
	int fd, old;

	(void)state;
	world_open(&w, "memory:1M", NULL);
	fd = raw_connect(&w);
	raw_hello(&w, fd, 9, 0, 5);
	raw_welcome(&w, fd);
	old = raw_connect(&w);
	raw_hello(&w, old, 9, 0, 4);
	assert_int_equal(raw_recv(&w, old, prefix, sizeof(prefix)), sizeof(prefix));
	assert_int_equal(wire_answer_prefix(prefix, &kind, &len), 0);
	assert_int_equal(kind, WIRE_REFUSAL);
	loop_close_fd(w.loop, old);
	raw_request(&w, fd, WIRE_FLUSH, 1, 0, 0, 0);
	assert_int_equal(raw_reply(&w, fd).code, WIRE_OK);
	/* And a newer one does; another index is another connection. */
	old = raw_connect(&w);
	raw_hello(&w, old, 9, 1, 1);
	raw_welcome(&w, old);
	raw_request(&w, fd, WIRE_FLUSH, 2, 0, 0, 0);
	assert_int_equal(raw_reply(&w, fd).code, WIRE_OK);
	loop_close_fd(w.loop, old);
	old = fd;
	fd = raw_connect(&w);
	raw_hello(&w, fd, 9, 0, 6);
	raw_welcome(&w, fd);
	assert_closed(&w, old);
	loop_close_fd(w.loop, fd);
	world_close(&w);
}

/* Asks for much and reads nothing; others are served, and the server's memory stays bounded. */
static void a_client_that_never_reads_harms_no_other(void **state)
{
	static const struct server_limits limits = { .unsent_max = 256 * KIB, .bytes_max = 2 * MIB,
						     .keep_alive_ns = 20 * NS_PER_MS, .stall_ns = 100 * NS_PER_MS };
	struct server_counts n;
	struct world w;
	struct store *c;
	uint8_t *a;
	struct rng r = { 6 };
	int fd;

	(void)state;
	world_open(&w, "memory:8M", &limits);
	a = random_bytes(&r, 8 * MIB);
	assert_int_equal(store_write(w.disk, 0, a, 8 * MIB, 0), 0);
	fd = raw_connect(&w);
	raw_hello(&w, fd, 9, 0, 1);
	raw_welcome(&w, fd);
	for (uint64_t i = 0; i < 64; i++)
		raw_request(&w, fd, WIRE_READ, i + 1, i % 16 * 512 * KIB, 512 * KIB, 0);
	c = client_open(&w, 2);
	for (int i = 0; i < 50; i++)
		assert_serves(&w, c);
	server_count(w.server, &n);
	assert_true(n.requests < 64 + 100);
	while (n.dropped == 0) { /* it does not take its replies */
		step(&w);
		server_count(w.server, &n);
	}
	assert_serves(&w, c);
	loop_close_fd(w.loop, fd);
	store_close_wait(c);
	world_close(&w);
	free(a);
}

static void silence_and_slow_greetings_are_bounded(void **state)
{
	static const struct server_limits limits = { .handshake_ns = 30 * NS_PER_MS, .keep_alive_ns = 10 * NS_PER_MS,
						     .silence_ns = 40 * NS_PER_MS };
	struct server_counts n;
	struct world w;
	struct store *c;
	int fd, half, mid;

	(void)state;
	world_open(&w, "memory:1M", &limits);
	half = raw_connect(&w);
	raw_send(&w, half, "REMORA?\n\1\0", 10);
	mid = raw_connect(&w);
	raw_hello(&w, mid, 8, 0, 1);
	raw_request(&w, mid, WIRE_WRITE, 1, 0, 4096, 4096); /* and never the payload */
	fd = raw_connect(&w);
	raw_hello(&w, fd, 9, 0, 1);
	c = client_open(&w, 2); /* idle, but it keeps its connections alive */
	do {
		step(&w);
		server_count(w.server, &n);
	} while (n.dropped < 3);
	for (int i = 0; i < 10; i++)
		step(&w);
	server_count(w.server, &n);
	assert_int_equal(n.dropped, 3);
	assert_serves(&w, c);
	loop_close_fd(w.loop, fd);
	loop_close_fd(w.loop, mid);
	loop_close_fd(w.loop, half);
	store_close_wait(c);
	world_close(&w);
}

/* A server that lies in every reply: the client ends the connection and reads and writes no byte out of place. */
static void replies_that_contradict_end_the_connection(void **state)
{
	struct wire_welcome welcome = { .size = MIB, .instance = 1, .chunk = 65536, .align = 1, .len_max = 65536,
					.requests_max = 8, .bytes_max = MIB, .keep_alive_ms = 1000,
					.silence_ms = 3000, .conns_max = 1, .caps = WIRE_CAP_EXTENTS };
	struct wire_reply lies[] = {
		{ .op = WIRE_READ, .id = 999, .len = 4096, .payload = 4096 },
		{ .op = WIRE_READ, .id = 1, .len = 4095, .payload = 4095 },
		{ .op = WIRE_READ, .id = 1, .len = 8192, .payload = 8192 },
		{ .op = WIRE_FLUSH, .id = 1 },
		{ .op = WIRE_READ, .id = 0, .len = 4096, .payload = 4096 },
		{ .op = WIRE_READ, .id = 1, .len = 4096, .payload = 4096, .count = 1 },
		{ .op = WIRE_READ, .id = 1, .code = WIRE_EIO, .payload = WIRE_TEXT_MAX + 1 },
		{ .op = WIRE_EXTENTS, .id = 1, .count = 1, .payload = 8 },
		{ .op = WIRE_ALIVE, .id = 1 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(lies); i++) {
		struct remora_options o;
		struct many m = { 0 };
		struct world w;
		struct store *c;
		uint8_t at[WIRE_WELCOME_LEN], buf[3 * 4096], hello[WIRE_HELLO_LEN];
		size_t left = 1;
		int fd[2];

		world_bare(&w);
		assert_int_equal(loop_socketpair(w.loop, fd), 0);
		assert_int_equal(send(fd[0], at, wire_welcome_encode(&welcome, at), 0), sizeof(at));
		remora_options_init(&o);
		o.fd = fd[1];
		assert_int_equal(remora_connect(&c, w.loop, &o, NULL), 0);
		assert_int_equal(raw_recv(&w, fd[0], hello, sizeof(hello)), sizeof(hello));
		memset(buf, 0x33, sizeof(buf));
		m.left = &left;
		m.req.op = REQ_READ;
		m.req.range = range_of(0, 4096);
		m.req.data = (struct iobuf){ buf + 4096, 4096 };
		m.req.done = many_done;
		req_submit(c, &m.req);
		assert_int_equal(raw_recv(&w, fd[0], at, WIRE_REQUEST_LEN), WIRE_REQUEST_LEN);
		lies[i].instance = 1;
		wire_reply_encode(&lies[i], at);
		raw_send(&w, fd[0], at, WIRE_REPLY_LEN);
		raw_send(&w, fd[0], "\1\0\0\200", 4); /* one run, of one zero */
		while (left)
			step(&w);
		assert_int_equal(m.err, -ECONNRESET);
		for (size_t k = 0; k < 4096; k++)
			assert_true(buf[k] == 0x33 && buf[8192 + k] == 0x33);
		store_close_wait(c);
		loop_close_fd(w.loop, fd[0]);
		loop_close(w.loop);
		assert_int_equal(rmdir(w.dir), 0);
	}
}

static void closing_the_server_answers_what_it_has_read(void **state)
{
	struct world w;
	struct many m[20];
	struct store *c;
	size_t left = 20;
	uint8_t *buf = malloc(20 * 65536);

	(void)state;
	world_open(&w, "memory:2M", NULL);
	c = client_open(&w, 2);
	memset(m, 0, sizeof(m));
	for (size_t i = 0; i < 20; i++) {
		m[i].left = &left;
		m[i].req.op = REQ_READ;
		m[i].req.range = range_of(i * 65536, 65536);
		m[i].req.data = (struct iobuf){ buf + i * 65536, 65536 };
		m[i].req.done = many_done;
		req_submit(c, &m[i].req);
	}
	step(&w);
	server_close_wait(w.server, NS_PER_S);
	w.server = NULL;
	store_close_wait(c); /* each of them completes: with its data, or because of this */
	assert_int_equal(left, 0);
	for (size_t i = 0; i < 20; i++)
		assert_true(m[i].err == 0 || m[i].err == -ESHUTDOWN);
	world_close(&w);
	free(buf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_operation_over_a_unix_socket),
		cmocka_unit_test(zeros_are_not_sent),
		cmocka_unit_test(more_runs_than_the_table_has_room_for_arrive_whole),
		cmocka_unit_test(limits_of_the_server_hold_back_and_lose_nothing),
		cmocka_unit_test(two_clients_share_one_store),
		cmocka_unit_test(the_first_read_comes_with_the_greeting),
		cmocka_unit_test(a_socketpair_serves_without_an_address),
		cmocka_unit_test(specs_name_the_longest_prefix_that_is_a_socket),
		cmocka_unit_test(tcp_on_loopback_with_any_port),
		cmocka_unit_test(flushes_and_writes_tell_the_instance),
		cmocka_unit_test(a_server_that_is_not_there_is_named_with_the_reason),
		cmocka_unit_test(a_server_that_does_not_greet_is_left_in_time),
		cmocka_unit_test(what_answers_may_not_speak_the_protocol),
		cmocka_unit_test(read_only_exports_refuse_changes),
		cmocka_unit_test(lists_are_told_unless_hidden),
		cmocka_unit_test(too_many_clients_are_refused_with_the_reason),
		cmocka_unit_test(listening_to_the_world_is_refused),
		cmocka_unit_test(users_who_are_not_on_the_list_are_refused),
		cmocka_unit_test(garbage_ends_its_own_connection_only),
		cmocka_unit_test(lengths_are_checked_before_anything_is_allocated),
		cmocka_unit_test(ranges_outside_of_the_resource_are_answered_with_an_error),
		cmocka_unit_test(ids_used_twice_are_answered_twice),
		cmocka_unit_test(a_second_hello_ends_the_connection),
		cmocka_unit_test(an_older_attempt_does_not_replace_a_newer_connection),
		cmocka_unit_test(a_client_that_never_reads_harms_no_other),
		cmocka_unit_test(silence_and_slow_greetings_are_bounded),
		cmocka_unit_test(replies_that_contradict_end_the_connection),
		cmocka_unit_test(closing_the_server_answers_what_it_has_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
