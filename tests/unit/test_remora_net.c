/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client and server of the Remora protocol over real sockets, both on one loop: the way a request
 * goes, and the texts of errors. Peers that break the rules are in test_remora_hostile.c; losses,
 * replays and time in tests/sim/test_protocol.c, where time can be had.
 */
#include "remora_world.h"

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

static void many_run(struct world *w, struct store *c, enum req_op op, uint8_t *all, size_t count,
		     size_t len)
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
	static const struct server_limits limits = { .requests_max = 8, .bytes_max = 512 * KIB,
						     .unsent_max = 100000 };
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

static void long_reads_lie_in_shared_memory_and_come_back_whole(void **state)
{
	struct server_counts n;
	struct world w;
	struct store *c;
	struct rng r;
	uint8_t *data, *got = malloc(40 * MIB); /* several times what is shared */

	(void)state;
	assert_non_null(got);
	world_open(&w, "memory:40M", NULL);
	rng_init(&r, 11);
	data = random_bytes(&r, 40 * MIB);
	assert_int_equal(store_write(w.disk, 0, data, 40 * MIB, 0), 0);
	c = client_open(&w, 2);
	assert_int_equal(store_read(c, 0, got, 40 * MIB), 0);
	assert_memory_equal(got, data, 40 * MIB);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t off = rng_below(&r, 39 * MIB), len = 1 + rng_below(&r, MIB);

		assert_int_equal(store_read(c, off, got, len), 0);
		assert_memory_equal(got, data + off, len);
	}
	server_count(w.server, &n);
	assert_true(n.placed > 0 && n.placed < n.bytes_read);
	store_close_wait(c);
	world_close(&w);
	free(data);
	free(got);
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
	/* Whoever reads on in order gets all of it. */
	o.first = range_of(0, 256 * KIB);
	assert_int_equal(remora_connect(&c, w.loop, &o, NULL), 0);
	for (size_t at = 0; at < 320 * KIB; at += 64 * KIB) {
		assert_int_equal(store_read(c, at, b, 64 * KIB), 0);
		assert_memory_equal(a + at, b, 64 * KIB);
	}
	remora_count(c, &n);
	assert_int_equal(n.first_hits, 4);
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
	/* The same store behind another server: its page cache may have died with the old one's
	 * machine. */
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
	struct server_export x[3] = { { .name = "a" }, { .name = "b", .read_only = true },
				      { .name = "" } };
	struct server_options o = { .exports = x, .export_count = 3 };
	struct remora_entry *list;
	struct remora_options ro, from;
	struct world w;
	struct store *c;
	struct err e = { 0 };
	size_t count;

	(void)state;
	world_bare(&w);
	w.disk = open_spec(&w, "memory:1M");
	x[0].store = x[1].store = x[2].store = w.disk;
	server_start(&w, &o);
	remora_options_init(&from);
	from.addr = w.addr;
	assert_int_equal(remora_list(w.loop, &from, &list, &count, &e), 0);
	assert_int_equal(count, 3);
	assert_string_equal(list[1].name, "b");
	assert_true(list[1].read_only && !list[0].read_only);
	assert_int_equal(list[2].size, MIB);
	free(list);
	server_close_wait(w.server, 0);
	o.list_hidden = true;
	o.export_count = 2;
	server_start(&w, &o);
	assert_int_equal(remora_list(w.loop, &from, &list, &count, &e), -EACCES);
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
	assert_non_null(strstr(e.text, "TLS is needed"));
	world_close(&w);
}

static void users_who_are_not_on_the_list_are_refused(void **state)
{
	struct server_export x = { .name = "disk" };
	uid_t uids[1] = { getuid() + 1 };
	struct server_options o = { .exports = &x, .export_count = 1, .uids = uids,
				    .uid_count = 1 };
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
		cmocka_unit_test(long_reads_lie_in_shared_memory_and_come_back_whole),
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
		cmocka_unit_test(closing_the_server_answers_what_it_has_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
