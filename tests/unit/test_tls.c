/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS without a network: two links back to back; then a server and its client in a simulated world
 * with stalls, cuts and short sends, where a stranger's handshake meets its deadline.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
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
#include "base/cleanup.h"
#include "front/server.h"
#include "io/sim.h"
#include "io/tls.h"

#define SECRET_A "alice:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"
#define SECRET_B "bob:ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"
#define SECRET_A2 "alice:100102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"

const struct store_kind store_kinds[] = {
	{ "memory", true, "memory:SIZE", back_memory_open },
	{ 0 },
};

static void file_write(const char *path, const char *text, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static struct tls *tls_make(const char *secrets, const char *identity)
{
	char path[] = "/tmp/remora-tls-XXXXXX";
	struct tls_options o = { .server = !identity, .psk = path, .identity = identity };
	struct tls *tls = NULL;
	struct err e = { 0 };

	close(mkstemp(path));
	file_write(path, secrets, 0600);
	if (tls_open(&tls, &o, &e))
		fail_msg("%s", e.text);
	unlink(path);
	return tls;
}

/* ---- secrets ---- */

static void secrets_are_read_line_by_line_and_refused_with_the_line(void **state)
{
	static const struct {
		const char *text;
		size_t count;
		const char *why;
	} tests[] = {
		{ SECRET_A, 1, NULL },
		{ "# note\n\n" SECRET_A SECRET_B, 2, NULL },
		{ "a:00000000000000000000000000000000", 1, NULL },
		{ "a:00000000000000000000000000000000\r\n", 1, NULL },
		{ "a:0000000000000000000000000000000", 0, "line 1: a secret has 16 to 64 bytes" },
		{ "a:000000000000000000000000000000", 0, "line 1: a secret has 16 to 64 bytes" },
		{ "a:0000000000000000000000000000000g", 0, "hexadecimal" },
		{ SECRET_A SECRET_A2, 0, "line 2: the identity is there twice" },
		{ ":00000000000000000000000000000000", 0, "IDENTITY:HEX" },
		{ "a b:00000000000000000000000000000000", 0, "no spaces" },
		{ "00000000000000000000000000000000", 0, "IDENTITY:HEX" },
		{ "", 0, "no secret" },
		{ "# only words\n", 0, "no secret" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(tests); i++) {
		struct tls_secret *s;
		struct err e = { 0 };
		size_t count;
		int r = tls_secrets_parse(tests[i].text, strlen(tests[i].text), &s, &count, &e);

		assert_int_equal(count, tests[i].count);
		assert_int_equal(!r, !tests[i].why);
		if (r && !strstr(e.text, tests[i].why))
			fail_msg("%zu: %s", i, e.text);
		tls_secrets_free(s, count);
	}
}

static void a_file_that_others_may_read_is_refused(void **state)
{
	static const mode_t modes[] = { 0640, 0604, 0620, 0666, 0601 };
	char path[] = "/tmp/remora-tls-XXXXXX";
	struct tls_options o = { .server = true, .psk = path };
	struct tls *tls;

	(void)state;
	close(mkstemp(path));
	for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
		struct err e = { 0 };

		file_write(path, SECRET_A, modes[i]);
		assert_int_equal(tls_open(&tls, &o, &e), -EPERM);
		assert_non_null(strstr(e.text, "chmod 600 /tmp/remora-tls-"));
	}
	file_write(path, SECRET_A, 0400);
	assert_int_equal(tls_open(&tls, &o, NULL), 0);
	tls_unref(tls);
	unlink(path);
}

/* ---- two links ---- */

struct pair {
	struct tls *server_tls, *client_tls;
	struct tls_link *server, *client;
};

static void pair_open(struct pair *p, const char *at_server, const char *at_client)
{
	p->server_tls = tls_make(at_server, NULL);
	p->client_tls = tls_make(at_client, "alice");
	assert_int_equal(tls_link_open(&p->server, p->server_tls), 0);
	assert_int_equal(tls_link_open(&p->client, p->client_tls), 0);
}

static void pair_close(struct pair *p)
{
	tls_link_close(p->server);
	tls_link_close(p->client);
	tls_unref(p->server_tls);
	tls_unref(p->client_tls);
}

/* What is on its way, at most `step` bytes at a time. False: there was nothing. */
static bool move(struct tls_link *from, struct tls_link *to, size_t step)
{
	size_t len, room;
	const void *at = tls_out(from, &len);
	void *in = tls_in(to, &room);

	len = MIN(MIN(len, step), room);
	if (!len)
		return false;
	memcpy(in, at, len);
	tls_in_add(to, len);
	tls_out_sent(from, len);
	return true;
}

/* Until both are done, or one has failed. */
static enum tls_result shake(struct pair *p, size_t step)
{
	for (;;) {
		enum tls_result c = tls_shake(p->client), s = tls_shake(p->server);
		bool moved = move(p->client, p->server, step);

		moved = move(p->server, p->client, step) || moved;
		if (c == TLS_FAILED || s == TLS_FAILED)
			return TLS_FAILED;
		if (c == TLS_DONE && s == TLS_DONE && !moved)
			return TLS_DONE;
		assert_true(moved);
	}
}

/* All of it through, as it was. */
static void carry(struct tls_link *from, struct tls_link *to, const uint8_t *data, size_t len,
		  size_t cut, size_t step)
{
	uint8_t *got = malloc(len);
	struct iovec iov[64];
	size_t done = 0, n;
	int count = 0, at = 0;
	enum tls_result w, r;

	for (size_t i = 0; i < len; i += n) {
		n = count == 63 ? len - i : MIN(cut, len - i);
		iov[count++] = (struct iovec){ (void *)(uintptr_t)(data + i), n };
	}
	do {
		w = tls_write(from, iov, count, &at);
		assert_true(w == TLS_DONE || w == TLS_WANT_ROOM);
		while (move(from, to, step))
			while ((r = tls_read(to, got + done, MAX(len - done, 1), &n)) == TLS_DONE)
				done += n;
		assert_int_equal(r, TLS_WANT_BYTES);
	} while (w != TLS_DONE);
	assert_int_equal(done, len);
	assert_memory_equal(got, data, len);
	free(got);
}

static void data_goes_through_whatever_the_pieces_are(void **state)
{
	static const size_t cuts[] = { 1, 40, 4096, 16384, 65536, 1 << 20 };
	static const size_t steps[] = { 1, 1000, 16384, 1 << 20 };
	size_t len = 400000;
	uint8_t *data = malloc(len);
	struct rng rng = { 3 };

	(void)state;
	rng_fill(&rng, data, len);
	for (size_t s = 0; s < ARRAY_LEN(steps); s++) {
		struct pair p;

		pair_open(&p, SECRET_B SECRET_A, SECRET_A);
		assert_int_equal(shake(&p, steps[s]), TLS_DONE);
		assert_string_equal(tls_link_peer(p.server), "alice");
		assert_true(tls_link_peer_is(p.server, "alice"));
		assert_false(tls_link_peer_is(p.server, "bob"));
		assert_false(tls_link_peer_is(p.server, "ALICE"));
		for (size_t c = 0; c < ARRAY_LEN(cuts); c++) {
			size_t n = steps[s] == 1 ? 3000 : len;

			carry(p.client, p.server, data, n, cuts[c], steps[s]);
			carry(p.server, p.client, data, n, cuts[c], steps[s]);
		}
		pair_close(&p);
	}
	free(data);
}

static void an_end_is_told_from_a_cut(void **state)
{
	uint8_t byte;
	size_t n;

	(void)state;
	for (int shut = 0; shut < 2; shut++) {
		struct pair p;

		pair_open(&p, SECRET_A, SECRET_A);
		assert_int_equal(shake(&p, 9999), TLS_DONE);
		if (shut)
			tls_shut(p.client);
		move(p.client, p.server, 9999);
		tls_in_end(p.server);
		assert_int_equal(tls_read(p.server, &byte, 1, &n), shut ? TLS_CLOSED : TLS_FAILED);
		if (!shut) {
			assert_int_equal(tls_link_err(p.server), -ECONNRESET);
			assert_string_equal(tls_link_why(p.server), "the connection was cut off");
		}
		pair_close(&p);
	}
}

static void what_was_changed_on_the_way_is_found(void **state)
{
	uint8_t data[100] = { 1 }, *wire;
	struct iovec iov = { data, sizeof(data) };
	struct pair p;
	size_t n;
	int at = 0;

	(void)state;
	pair_open(&p, SECRET_A, SECRET_A);
	assert_int_equal(shake(&p, 9999), TLS_DONE);
	assert_int_equal(tls_write(p.client, &iov, 1, &at), TLS_DONE);
	wire = (uint8_t *)(uintptr_t)tls_out(p.client, &n);
	wire[n / 2] ^= 1;
	move(p.client, p.server, 9999);
	assert_int_equal(tls_read(p.server, data, sizeof(data), &n), TLS_FAILED);
	assert_int_equal(n, 0);
	assert_int_equal(tls_link_err(p.server), -EBADMSG);
	/* And for good. */
	assert_int_equal(tls_read(p.server, data, sizeof(data), &n), TLS_FAILED);
	pair_close(&p);
}

static void secrets_that_differ_are_told_on_both_sides(void **state)
{
	static const struct {
		const char *at_server, *server_says, *client_says;
	} tests[] = {
		{ SECRET_A2, "another secret for \"alice\"", "another secret for \"alice\"" },
		{ SECRET_B, "it has none of the secrets", "no secret for \"alice\"" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(tests); i++) {
		struct pair p;

		pair_open(&p, tests[i].at_server, SECRET_A);
		assert_int_equal(shake(&p, 9999), TLS_FAILED);
		assert_int_equal(tls_link_err(p.server), -EACCES);
		assert_non_null(strstr(tls_link_why(p.server), tests[i].server_says));
		assert_string_equal(tls_link_peer(p.server), "");
		assert_false(tls_link_peer_is(p.server, "alice"));
		move(p.server, p.client, 9999);
		assert_int_equal(tls_shake(p.client), TLS_FAILED);
		assert_int_equal(tls_link_err(p.client), -EACCES);
		assert_non_null(strstr(tls_link_why(p.client), tests[i].client_says));
		pair_close(&p);
	}
}

static void hostile_bytes_end_in_an_error_and_take_no_more_room(void **state)
{
	struct rng rng = { 11 };
	struct tls *tls = tls_make(SECRET_A, NULL);

	(void)state;
	for (int i = 0; i < 300; i++) {
		struct tls_link *l;
		enum tls_result r = TLS_WANT_BYTES;
		size_t room, n;

		assert_int_equal(tls_link_open(&l, tls), 0);
		for (int k = 0; k < 20 && r == TLS_WANT_BYTES; k++) {
			uint8_t *in = tls_in(l, &room);

			assert_true(room > 0);
			n = 1 + rng_below(&rng, room);
			rng_fill(&rng, in, n);
			if (k == 0 && n > 9 && i % 2) /* a ClientHello that says it is long */
				memcpy(in, "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc", 9);
			tls_in_add(l, n);
			r = tls_shake(l);
		}
		tls_in_end(l);
		assert_int_equal(tls_shake(l), TLS_FAILED);
		assert_true(tls_link_err(l) < 0);
		assert_string_not_equal(tls_link_why(l), "");
		tls_link_close(l);
	}
	tls_unref(tls);
}

static void a_context_lives_as_long_as_its_links(void **state)
{
	struct pair p;

	(void)state;
	pair_open(&p, SECRET_A, SECRET_A);
	tls_unref(p.server_tls);
	tls_unref(p.client_tls);
	p.server_tls = p.client_tls = NULL;
	assert_int_equal(shake(&p, 777), TLS_DONE);
	pair_close(&p);
}

/* ---- a simulated world ---- */

struct world {
	struct sim *sim;
	struct loop *server_loop, *client_loop;
	struct store *disk;
	struct server *server;
	struct sock_addr addr;
	struct tls *tls;
};

static void world_open(struct world *w, uint64_t seed)
{
	struct server_export x = { .name = "disk" };
	struct server_options o = { .exports = &x, .export_count = 1 };
	struct loop_options lo = { .engine = LOOP_SIM };
	struct store_open how = { .deadline_ns = NEVER_NS };
	struct err e = { 0 };

	memset(w, 0, sizeof(*w));
	assert_int_equal(sim_open(&w->sim, seed), 0);
	lo.sim = w->sim;
	assert_int_equal(loop_open(&w->server_loop, &lo, &e), 0);
	assert_int_equal(loop_open(&w->client_loop, &lo, &e), 0);
	how.loop = w->server_loop;
	assert_int_equal(spec_open(&w->disk, "memory:1M", &how, &e), 0);
	x.store = w->disk;
	w->tls = tls_make(SECRET_A, NULL);
	o.tls = w->tls;
	assert_int_equal(server_open(&w->server, w->server_loop, &o, &e), 0);
	assert_int_equal(sock_parse("127.0.0.1:7000", &w->addr, &e), 0);
	if (server_listen(w->server, &w->addr, NULL, &e))
		fail_msg("%s", e.text);
}

static void set_flag(void *arg)
{
	*(bool *)arg = true;
}

static void world_close(struct world *w)
{
	bool closed = false, store_closed = false;

	server_close(w->server, NS_PER_S, set_flag, &closed);
	assert_int_equal(sim_run_until(w->sim, &closed, NEVER_NS), 0);
	store_close(w->disk, set_flag, &store_closed);
	assert_int_equal(sim_run_until(w->sim, &store_closed, NEVER_NS), 0);
	loop_close(w->server_loop);
	loop_close(w->client_loop);
	sim_close(w->sim);
	tls_unref(w->tls);
}

static int client_open(struct world *w, const char *secrets, struct store **ret, struct err *e)
{
	struct remora_options o;
	int r;

	remora_options_init(&o);
	o.addr = w->addr;
	o.name = "disk";
	o.tls = tls_make(secrets, "alice");
	r = remora_connect(ret, w->client_loop, &o, e);
	tls_unref(o.tls);
	return r;
}

static void cut(void *arg)
{
	struct world *w = arg;

	sim_cut(w->sim, w->client_loop);
}

static void data_is_what_it_was_through_cuts_stalls_and_short_sends(void **state)
{
	const char *text = getenv("REMORA_SEEDS");
	uint64_t seeds = 8 + (text ? strtoull(text, NULL, 10) / 50 : 0); /* each is slow */

	(void)state;
	for (uint64_t seed = 1; seed <= seeds; seed++) {
		uint8_t *a = malloc(MIB), *b = malloc(MIB);
		struct world w;
		struct store *c;
		struct rng rng = { seed };
		struct err e = { 0 };

		world_open(&w, seed);
		*sim_net(w.sim) = (struct sim_net){
			.delay_min_ns = NS_PER_MS, .delay_max_ns = 5 * NS_PER_MS,
			.short_per_million = 300000, .stall_per_million = 1000,
			.stall_max_ns = NS_PER_S, .buffer_bytes = seed % 2 ? 5000 : 0,
		};
		if (client_open(&w, SECRET_A, &c, &e))
			fail_msg("seed %llu: %s", (unsigned long long)seed, e.text);
		rng_fill(&rng, a, MIB);
		for (int i = 0; i < 3; i++)
			sim_at(w.sim, sim_now(w.sim) + rng_below(&rng, NS_PER_S), cut, &w);
		for (size_t off = 0; off < MIB; off += MIB / 4)
			assert_int_equal(store_write(c, off, a + off, MIB / 4, 0), 0);
		assert_int_equal(store_flush(c), 0);
		assert_int_equal(store_read(c, 0, b, MIB), 0);
		assert_memory_equal(a, b, MIB);
		store_close_wait(c);
		world_close(&w);
		free(a);
		free(b);
	}
}

static void a_wrong_secret_is_told_and_leaves_nothing(void **state)
{
	struct server_counts n;
	struct world w;
	struct store *c;
	struct err e = { 0 };

	(void)state;
	world_open(&w, 7);
	assert_int_equal(client_open(&w, SECRET_A2, &c, &e), -EACCES);
	assert_non_null(strstr(e.text, "another secret for \"alice\""));
	assert_int_equal(client_open(&w, SECRET_A, &c, &e), 0);
	store_close_wait(c);
	server_count(w.server, &n);
	assert_int_equal(n.sessions, 1);
	assert_true(n.refused >= 1);
	world_close(&w);
}

struct stranger {
	struct op op;
	int fd, res;
	bool done;
	uint8_t got[4096];
};

static void stranger_done(struct op *op, int res)
{
	struct stranger *s = CONTAINER_OF(op, struct stranger, op);

	s->res = res;
	s->done = true;
}

/* Half a ClientHello, and then nothing any more. */
static void a_handshake_that_stops_in_the_middle_is_dropped_at_the_deadline(void **state)
{
	struct stranger s = { .op.done = stranger_done };
	struct server_counts n;
	struct tls_link *l;
	struct tls *tls;
	struct world w;
	const void *hello;
	uint64_t begun;
	size_t len;

	(void)state;
	world_open(&w, 9);
	tls = tls_make(SECRET_A, "alice");
	assert_int_equal(tls_link_open(&l, tls), 0);
	assert_int_equal(tls_shake(l), TLS_WANT_BYTES);
	hello = tls_out(l, &len);
	s.fd = loop_socket(w.client_loop, AF_INET);
	op_connect(w.client_loop, &s.op, s.fd, (struct sockaddr *)&w.addr.ss, w.addr.len);
	assert_int_equal(sim_run_until(w.sim, &s.done, NEVER_NS), 0);
	s.done = false;
	op_send_all(w.client_loop, &s.op, s.fd, hello, len / 2);
	assert_int_equal(sim_run_until(w.sim, &s.done, NEVER_NS), 0);
	begun = sim_now(w.sim);
	s.done = false;
	op_recv(w.client_loop, &s.op, s.fd, s.got, sizeof(s.got));
	assert_int_equal(sim_run_until(w.sim, &s.done, NEVER_NS), 0);
	assert_true(s.res <= 0);
	assert_in_range(sim_now(w.sim) - begun, 9 * NS_PER_S, 11 * NS_PER_S);
	server_count(w.server, &n);
	assert_int_equal(n.dropped, 1);
	assert_int_equal(n.conns, 0);
	loop_close_fd(w.client_loop, s.fd);
	tls_link_close(l);
	tls_unref(tls);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(secrets_are_read_line_by_line_and_refused_with_the_line),
		cmocka_unit_test(a_file_that_others_may_read_is_refused),
		cmocka_unit_test(data_goes_through_whatever_the_pieces_are),
		cmocka_unit_test(an_end_is_told_from_a_cut),
		cmocka_unit_test(what_was_changed_on_the_way_is_found),
		cmocka_unit_test(secrets_that_differ_are_told_on_both_sides),
		cmocka_unit_test(hostile_bytes_end_in_an_error_and_take_no_more_room),
		cmocka_unit_test(a_context_lives_as_long_as_its_links),
		cmocka_unit_test(data_is_what_it_was_through_cuts_stalls_and_short_sends),
		cmocka_unit_test(a_wrong_secret_is_told_and_leaves_nothing),
		cmocka_unit_test(a_handshake_that_stops_in_the_middle_is_dropped_at_the_deadline),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
