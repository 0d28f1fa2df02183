/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Peers that mean harm, for the tests of this directory.
 *
 *   hostile client ADDR NAME SECONDS SEED   everything a server should not fall for, to unix:PATH
 * or IPV4:PORT; NAME is a resource that it may ask for hostile control PATH SECONDS SEED       the
 * same to a control socket hostile server PATH SEED                listens there and answers
 * clients with lies, until its standard input ends; says "ready"
 *
 * One thread, sockets that never block; it never waits for a victim, and at the end says how many
 * connections it made. It ends with 0 whatever the victim did: whether that was harmed the test
 * finds out by itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/rng.h"
#include "wire/remora.h"

#define CONNS_MAX 900u
#define BLOCK 65536u

struct conn {
	int fd; /* -1 = free */
	bool greeted;
	uint32_t left; /* bytes that are to follow, of a payload that it promised */
};

static struct {
	struct rng rng;
	struct sockaddr_storage addr;
	socklen_t addr_len;
	const char *name;
	struct conn conn[CONNS_MAX];
	uint64_t made, sent;
	uint8_t block[BLOCK];
} h;

static uint64_t below(uint64_t n)
{
	return rng_below(&h.rng, n);
}

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what)
{
	fprintf(stderr, "hostile: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void addr_parse(const char *text)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&h.addr;
	struct sockaddr_in *in = (struct sockaddr_in *)&h.addr;
	const char *colon = strrchr(text, ':');
	char host[64];

	if (!strncmp(text, "unix:", 5)) {
		un->sun_family = AF_UNIX;
		snprintf(un->sun_path, sizeof(un->sun_path), "%s", text + 5);
		h.addr_len = sizeof(*un);
		return;
	}
	snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
	in->sin_family = AF_INET;
	in->sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
	if (inet_pton(AF_INET, host, &in->sin_addr) != 1)
		die(text);
	h.addr_len = sizeof(*in);
}

/* ---- connections ---- */

static void conn_close(struct conn *c)
{
	if (c->fd >= 0)
		close(c->fd);
	*c = (struct conn){ .fd = -1 };
}

/* What the socket takes; what it does not take is lost, as from a peer that stops in the middle. */
static void conn_send(struct conn *c, const void *at, size_t len)
{
	ssize_t n = send(c->fd, at, len, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n > 0)
		h.sent += (uint64_t)n;
	else if (errno != EAGAIN && errno != EINPROGRESS && errno != ENOTCONN)
		conn_close(c);
}

static bool conn_open(struct conn *c)
{
	struct pollfd p = { .events = POLLOUT };

	conn_close(c);
	c->fd = socket(h.addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		return false;
	if (connect(c->fd, (struct sockaddr *)&h.addr, h.addr_len) && errno != EINPROGRESS) {
		conn_close(c);
		return false;
	}
	p.fd = c->fd;
	(void)poll(&p, 1, 10);
	h.made++;
	return true;
}

/* Lets some of them be read, and most of them not. */
static void conn_drain(struct conn *c)
{
	ssize_t n = recv(c->fd, h.block, sizeof(h.block), MSG_DONTWAIT);

	if (!n || (n < 0 && errno != EAGAIN && errno != ENOTCONN))
		conn_close(c);
}

/* ---- what is sent ---- */

static uint64_t evil(void)
{
	static const uint64_t values[] = {
		0, 1, 7, 4095, 4096, 4097, 65536, MIB, 16 * MIB, 16 * MIB + 1, UINT32_MAX, 4 * GIB,
		1ULL << 62, (1ULL << 62) + 1, INT64_MAX, UINT64_MAX - 1, UINT64_MAX,
	};

	return below(4) ? values[below(ARRAY_LEN(values))] : rng_next(&h.rng);
}

static void put_random(uint8_t *at, size_t len)
{
	size_t n = 1 + below(4);

	while (n--)
		at[below(len)] = (uint8_t)rng_next(&h.rng);
}

static void send_garbage(struct conn *c)
{
	size_t len = 1 + below(BLOCK);

	rng_fill(&h.rng, h.block, len);
	conn_send(c, h.block, len);
}

static size_t hello_make(uint8_t at[static WIRE_HELLO_MAX])
{
	struct wire_hello hello = { .version_min = 1,
				    .version_max = 1,
				    .conns = 1 + (uint16_t)below(16),
				    .attempt = (uint32_t)below(4),
				    .payload_max = 1u << 30 };

	rng_fill(&h.rng, hello.session, below(8) ? sizeof(hello.session) : 1);
	hello.index = (uint16_t)below(hello.conns);
	hello.flags = (uint32_t)below(8) & ~2u;
	hello.first = below(2) ? range_of(below(GIB), below(4 * MIB)) : range_of(0, 0);
	hello.name = (const uint8_t *)h.name;
	hello.name_len = (uint16_t)strlen(h.name);
	return wire_hello_encode(&hello, at);
}

static void send_hello(struct conn *c, bool broken)
{
	uint8_t at[WIRE_HELLO_MAX];
	size_t len = hello_make(at);

	if (broken)
		put_random(at, len);
	conn_send(c, at, broken && below(2) ? below(len) : len);
	c->greeted = !broken;
}

static void send_request(struct conn *c, bool hostile)
{
	static const uint8_t ops[] = { WIRE_READ,  WIRE_READ,   WIRE_WRITE,   WIRE_FLUSH,
				       WIRE_ZERO,  WIRE_TRIM,   WIRE_EXTENTS, WIRE_PREFETCH,
				       WIRE_ALIVE, WIRE_RELEASE };
	struct wire_request req = { .op = ops[below(ARRAY_LEN(ops))], .id = 1 + below(200) };
	uint8_t at[WIRE_REQUEST_LEN];

	req.flags = (uint8_t)below(16);
	req.range = hostile ? range_of(evil(), evil()) : range_of(below(64) * MIB, below(16) * MIB);
	if (req.op == WIRE_WRITE)
		req.payload = (uint32_t)(hostile ? evil() : req.range.len);
	if (req.op == WIRE_EXTENTS || hostile)
		req.count = (uint16_t)(hostile ? evil() : 4096);
	wire_request_encode(&req, at);
	if (hostile && !below(4))
		put_random(at, sizeof(at));
	conn_send(c, at, hostile && !below(8) ? below(sizeof(at)) : sizeof(at));
	c->left = req.op == WIRE_WRITE ? req.payload : 0;
}

/* Large READs whose answers nobody takes. */
static void send_reads(struct conn *c)
{
	struct wire_request req = { .op = WIRE_READ };
	uint8_t at[WIRE_REQUEST_LEN];

	for (unsigned i = 0; i < 64 && c->fd >= 0; i++) {
		req.id = 1000 + i;
		req.range = range_of(below(40) * MIB, 16 * MIB);
		wire_request_encode(&req, at);
		conn_send(c, at, sizeof(at));
	}
}

static void send_payload(struct conn *c)
{
	size_t len = MIN((size_t)c->left, (size_t)(below(2) ? BLOCK : 1));

	conn_send(c, h.block, len);
	c->left -= (uint32_t)len;
}

static void client_turn(struct conn *c)
{
	if (c->fd < 0) {
		if (conn_open(c) && below(3))
			send_hello(c, !below(4));
		return;
	}
	if (c->left && below(3)) {
		send_payload(c);
		return;
	}
	switch (below(c->greeted ? 8 : 4)) {
	case 0:
		conn_close(c);
		break;
	case 1:
		send_garbage(c);
		break;
	case 2:
		send_hello(c, below(2));
		break;
	case 3:
		conn_drain(c);
		break;
	case 4:
	case 5:
		send_request(c, true);
		break;
	case 6:
		send_request(c, false);
		break;
	default:
		send_reads(c);
		break;
	}
}

/* ---- a control socket ---- */

static void control_turn(struct conn *c)
{
	static const char *const lines[] = {
		"{\"remora\": 1, \"do\": \"status\"}\n",
		"{\"remora\": 1, \"do\": \"status\", \"map\": 65536}\n",
		"{\"remora\": 1, \"do\": \"log\", \"follow\": true, \"last\": 1000000}\n",
		"{\"remora\": 1, \"do\": \"pull\", \"off\": 18446744073709551615, \"len\": -1}\n",
		"{\"remora\": 1, \"do\": \"invalidate\", \"off\": 9223372036854775807, \"len\": 1}\n",
		"{\"remora\": 1, \"do\": \"flush\", \"x\": {}}\n",
		"{\"remora\": 2, \"do\": \"unmount\"}\n",
		"{\"do\": 7}\n",
		"[]\n",
		"{\"remora\": 1, \"do\": \"sta",
	};

	if (c->fd < 0) {
		(void)conn_open(c);
		return;
	}
	switch (below(6)) {
	case 0:
		conn_close(c);
		break;
	case 1:
		send_garbage(c);
		break;
	case 2: /* a line without end, or nested without end */
		memset(h.block, below(2) ? '[' : 'x', BLOCK);
		conn_send(c, h.block, BLOCK);
		break;
	case 3:
		conn_drain(c);
		break;
	default: {
		const char *line = lines[below(ARRAY_LEN(lines))];

		conn_send(c, line, strlen(line));
	}
	}
}

static void attack(void (*turn)(struct conn *c), double seconds)
{
	double end = now_s() + seconds;

	do {
		/* Few at most times, and now and then as many as there can be. */
		unsigned n = below(50) ? 24 : CONNS_MAX;

		for (unsigned i = 0; i < 200 || i < n; i++)
			turn(&h.conn[n == CONNS_MAX ? i % n : below(n)]);
		if (n == CONNS_MAX)
			for (unsigned i = 24; i < CONNS_MAX; i++)
				conn_close(&h.conn[i]);
	} while (now_s() < end);
	for (unsigned i = 0; i < CONNS_MAX; i++)
		conn_close(&h.conn[i]);
	printf("%llu connections, %llu bytes\n", (unsigned long long)h.made,
	       (unsigned long long)h.sent);
}

/* ---- a server ---- */

static void answer_welcome(struct conn *c, bool broken)
{
	struct wire_welcome w = {
		.size = 64 * MIB,
		.instance = 1 + below(3),
		.identity = 5,
		.chunk = 65536,
		.align = 1,
		.len_max = 16 * MIB,
		.requests_max = 128,
		.bytes_max = 32 * MIB,
		.caps = WIRE_CAP_ZERO | WIRE_CAP_EXTENTS,
		.keep_alive_ms = 100,
		.silence_ms = 500,
		.conns_max = 16,
	};
	uint8_t at[WIRE_WELCOME_LEN];

	if (broken && !below(3)) {
		w.size = RESOURCE_SIZE_MAX;
		w.requests_max = UINT32_MAX;
		w.bytes_max = UINT64_MAX;
		w.conns_max = UINT16_MAX;
	}
	wire_welcome_encode(&w, at);
	if (broken && below(2))
		put_random(at, sizeof(at));
	conn_send(c, at, broken && !below(4) ? below(sizeof(at)) : sizeof(at));
}

/* A reply to what was asked, or to what was not. */
static void answer_reply(struct conn *c, const struct wire_request *asked)
{
	struct wire_reply reply = { .op = asked->op,
				    .id = asked->id,
				    .instance = 1 + below(3),
				    .len = asked->range.len,
				    .payload = (uint32_t)asked->range.len };
	uint8_t at[WIRE_REPLY_LEN];

	switch (below(8)) {
	case 0:
		reply.id = evil();
		break;
	case 1:
		reply.len = evil();
		break;
	case 2:
		reply.payload = (uint32_t)evil();
		break;
	case 3:
		reply.count = (uint16_t)evil();
		break;
	case 4:
		reply.code = (uint32_t)evil();
		break;
	case 5:
		reply.op = (uint8_t)below(16);
		break;
	default:
		break;
	}
	wire_reply_encode(&reply, at);
	if (!below(8))
		put_random(at, sizeof(at));
	conn_send(c, at, below(8) ? sizeof(at) : below(sizeof(at)));
	if (c->fd >= 0 && below(4))
		conn_send(c, h.block, MIN(reply.payload, BLOCK));
}

static void server_answer(struct conn *c)
{
	uint8_t at[BLOCK];
	struct wire_request asked;
	ssize_t n = recv(c->fd, at, sizeof(at), MSG_DONTWAIT);

	if (!n || (n < 0 && errno != EAGAIN)) {
		conn_close(c);
		return;
	}
	if (!c->greeted) {
		c->greeted = below(8);
		if (!below(8))
			send_garbage(c);
		else
			answer_welcome(c, !below(3));
		return;
	}
	for (size_t off = 0; n > 0 && off + WIRE_REQUEST_LEN <= (size_t)n && c->fd >= 0;
	     off += WIRE_REQUEST_LEN) {
		if (wire_request_decode(at + off, &asked))
			asked = (struct wire_request){ .op = WIRE_READ,
						       .id = below(8),
						       .range = { 0, 4096 } };
		if (below(10))
			answer_reply(c, &asked);
		else if (below(2))
			send_garbage(c);
		else
			conn_close(c);
	}
}

static void serve(void)
{
	struct pollfd p[CONNS_MAX + 2];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&h.addr, h.addr_len) || listen(fd, 64))
		die("listen");
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		nfds_t n = 2;

		p[0] = (struct pollfd){ .fd = 0, .events = POLLIN };
		p[1] = (struct pollfd){ .fd = fd, .events = POLLIN };
		for (unsigned i = 0; i < CONNS_MAX; i++)
			if (h.conn[i].fd >= 0)
				p[n++] = (struct pollfd){ .fd = h.conn[i].fd, .events = POLLIN };
		if (poll(p, n, -1) < 0)
			die("poll");
		if (p[0].revents)
			return;
		for (unsigned i = 0; i < CONNS_MAX && p[1].revents; i++)
			if (h.conn[i].fd < 0) {
				h.conn[i] = (struct conn){ .fd = accept4(fd, NULL, NULL,
									 SOCK_NONBLOCK) };
				break;
			}
		for (nfds_t k = 2; k < n; k++)
			for (unsigned i = 0; i < CONNS_MAX && p[k].revents; i++)
				if (h.conn[i].fd == p[k].fd) {
					server_answer(&h.conn[i]);
					break;
				}
	}
}

int main(int argc, char **argv)
{
	const char *how = argc > 2 ? argv[1] : "";
	struct rlimit limit;

	signal(SIGPIPE, SIG_IGN);
	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = MIN(limit.rlim_max, (rlim_t)4096);
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
	for (unsigned i = 0; i < CONNS_MAX; i++)
		h.conn[i].fd = -1;
	if (argc == 6 && !strcmp(how, "client")) {
		addr_parse(argv[2]);
		h.name = argv[3];
		rng_init(&h.rng, strtoull(argv[5], NULL, 10));
		attack(client_turn, strtod(argv[4], NULL));
	} else if (argc == 5 && !strcmp(how, "control")) {
		char addr[128];

		snprintf(addr, sizeof(addr), "unix:%s", argv[2]);
		addr_parse(addr);
		rng_init(&h.rng, strtoull(argv[4], NULL, 10));
		attack(control_turn, strtod(argv[3], NULL));
	} else if (argc == 4 && !strcmp(how, "server")) {
		char addr[128];

		snprintf(addr, sizeof(addr), "unix:%s", argv[2]);
		addr_parse(addr);
		rng_init(&h.rng, strtoull(argv[3], NULL, 10));
		serve();
	} else {
		fprintf(stderr,
			"usage: hostile client ADDR NAME SECONDS SEED | control PATH SECONDS SEED\n"
			"       hostile server PATH SEED\n");
		return 2;
	}
	return 0;
}
