/* SPDX-License-Identifier: Apache-2.0 */
/* Peers that break the rules of the Remora protocol: they harm themselves, and nobody else. */
#include "remora_world.h"

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

static void raw_request(struct world *w, int fd, uint8_t op, uint64_t id, uint64_t off,
			uint64_t len, uint32_t payload)
{
	struct wire_request request = { .op = op, .id = id, .range = range_of(off, len),
					.payload = payload };
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
		{ WIRE_WRITE, 0, 100, UINT32_MAX },
		{ WIRE_WRITE, 0, WIRE_LEN_MAX + 1, WIRE_LEN_MAX + 1 },
		{ WIRE_READ, UINT64_MAX, 2, 0 },	   { WIRE_READ, 0, 10, 10 },
		{ WIRE_FLUSH, 0, 10, 0 },		   { 0, 0, 0, 0 },
		{ WIRE_OPS_END, 0, 0, 0 },		   { WIRE_RELEASE, 0, 4096, 0 },
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

/* Negative and huge offsets that are consistent in themselves: an error reply, and the connection
 * goes on. */
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
		static const uint64_t off[] = { MIB - 1, MIB, UINT64_MAX - 4096, 1ULL << 63, 4096,
						0 };
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
						     .keep_alive_ns = 20 * NS_PER_MS,
						     .stall_ns = 100 * NS_PER_MS };
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
	/* Client and server share this thread: the silence has to be longer than it may be kept
	 * from running on a busy machine. */
	static const struct server_limits limits = { .handshake_ns = 30 * NS_PER_MS,
						     .keep_alive_ns = 50 * NS_PER_MS,
						     .silence_ns = 1500 * NS_PER_MS };
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

/* A server that lies in every reply: the client ends the connection and reads and writes no byte
 * out of place. */
static void replies_that_contradict_end_the_connection(void **state)
{
	struct wire_welcome welcome = { .size = MIB, .instance = 1, .chunk = 65536, .align = 1,
					.len_max = 65536,
					.requests_max = 8, .bytes_max = MIB, .keep_alive_ms = 1000,
					.silence_ms = 3000, .conns_max = 1,
					.caps = WIRE_CAP_EXTENTS };
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
		{ .op = WIRE_RELEASE, .id = 1 },
		{ .op = WIRE_READ, .id = 1, .len = 4096, .count = WIRE_COUNT_PLACED,
		  .payload = WIRE_PLACE_LEN },
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(garbage_ends_its_own_connection_only),
		cmocka_unit_test(lengths_are_checked_before_anything_is_allocated),
		cmocka_unit_test(ranges_outside_of_the_resource_are_answered_with_an_error),
		cmocka_unit_test(ids_used_twice_are_answered_twice),
		cmocka_unit_test(a_second_hello_ends_the_connection),
		cmocka_unit_test(an_older_attempt_does_not_replace_a_newer_connection),
		cmocka_unit_test(a_client_that_never_reads_harms_no_other),
		cmocka_unit_test(silence_and_slow_greetings_are_bounded),
		cmocka_unit_test(replies_that_contradict_end_the_connection),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
