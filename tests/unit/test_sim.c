/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated world by itself: arithmetic of the network, what a crash leaves on the disk, replay
 * by seed. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "io/pool.h"
#include "io/sim.h"

#define MS NS_PER_MS

struct wait {
	struct op op;
	struct sim *sim;
	bool done;
	int res;
	uint64_t at_ns;
};

static void wait_done(struct op *op, int res)
{
	struct wait *w = CONTAINER_OF(op, struct wait, op);

	assert_false(w->done);
	w->done = true;
	w->res = res;
	w->at_ns = sim_now(w->sim);
}

static struct op *wait_op(struct wait *w, struct sim *sim)
{
	*w = (struct wait){ .op.done = wait_done, .sim = sim };
	return &w->op;
}

static struct loop *loop_new(struct sim *sim)
{
	struct loop_options o = { .engine = LOOP_SIM, .sim = sim };
	struct loop *loop;

	assert_int_equal(loop_open(&loop, &o, NULL), 0);
	return loop;
}

static struct sim *world_new(uint64_t seed)
{
	struct sim *sim;

	assert_int_equal(sim_open(&sim, seed), 0);
	return sim;
}

static void finish(struct sim *sim, struct wait *w)
{
	assert_int_equal(sim_run_until(sim, &w->done, sim_now(sim) + 1000 * NS_PER_S), 0);
}

static struct sockaddr_un name_of(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };

	memcpy(un.sun_path, path, strlen(path) + 1);
	return un;
}

/* A connection between two loops. */
struct link2 {
	struct sim *sim;
	struct loop *a, *b;
	int fd_a, fd_b, fd_listen;
};

static void connect2(struct link2 *l, uint64_t seed)
{
	struct sockaddr_un un = name_of("server");
	struct wait c, s;

	l->sim = world_new(seed);
	l->a = loop_new(l->sim);
	l->b = loop_new(l->sim);
	l->fd_listen = loop_listen(l->b, (struct sockaddr *)&un, sizeof(un), 5);
	assert_true(l->fd_listen >= 0);
	l->fd_a = loop_socket(l->a, AF_UNIX);
	op_accept(l->b, wait_op(&s, l->sim), l->fd_listen);
	op_connect(l->a, wait_op(&c, l->sim), l->fd_a, (struct sockaddr *)&un, sizeof(un));
	finish(l->sim, &c);
	finish(l->sim, &s);
	assert_int_equal(c.res, 0);
	assert_true(s.res >= 0);
	l->fd_b = s.res;
}

static void close2(struct link2 *l)
{
	if (l->a)
		loop_close(l->a);
	if (l->b)
		loop_close(l->b);
	sim_close(l->sim);
}

static void a_message_takes_the_delay_and_its_length_at_the_rate(void **state)
{
	static unsigned char buf[100000], in[100000];
	struct link2 l;
	struct wait s, r;
	uint64_t start;

	(void)state;
	connect2(&l, 1);
	*sim_net(l.sim) = (struct sim_net){ .delay_min_ns = 10 * MS, .delay_max_ns = 10 * MS,
					    .bytes_per_s = 1000000 };
	start = sim_now(l.sim);
	op_recv_all(l.b, wait_op(&r, l.sim), l.fd_b, in, sizeof(in));
	op_send_all(l.a, wait_op(&s, l.sim), l.fd_a, buf, sizeof(buf));
	finish(l.sim, &r);
	assert_int_equal(r.res, sizeof(in));
	assert_int_equal(r.at_ns - start, 110 * MS);
	assert_int_equal(s.at_ns - start, 0); /* it fits into the buffer */
	close2(&l);
}

static void a_connect_takes_a_round_trip(void **state)
{
	struct sockaddr_un un = name_of("server");
	struct sim *sim = world_new(2);
	struct loop *loop = loop_new(sim);
	int fd_listen = loop_listen(loop, (struct sockaddr *)&un, sizeof(un), 1);
	int fd = loop_socket(loop, AF_UNIX);
	uint64_t start = sim_now(sim);
	struct wait c;

	(void)state;
	sim_net(sim)->delay_min_ns = sim_net(sim)->delay_max_ns = 7 * MS;
	op_connect(loop, wait_op(&c, sim), fd, (struct sockaddr *)&un, sizeof(un));
	finish(sim, &c);
	assert_int_equal(c.res, 0);
	assert_int_equal(c.at_ns - start, 14 * MS);
	loop_close_fd(loop, fd);
	loop_close_fd(loop, fd_listen);
	loop_close(loop);
	sim_close(sim);
}

static void nobody_listens_is_refused(void **state)
{
	struct sockaddr_un un = name_of("nobody");
	struct sim *sim = world_new(3);
	struct loop *loop = loop_new(sim);
	int fd = loop_socket(loop, AF_UNIX), fd_listen;
	struct wait c;

	(void)state;
	op_connect(loop, wait_op(&c, sim), fd, (struct sockaddr *)&un, sizeof(un));
	finish(sim, &c);
	assert_int_equal(c.res, -ECONNREFUSED);
	fd_listen = loop_listen(loop, (struct sockaddr *)&un, sizeof(un), 1);
	assert_int_equal(loop_listen(loop, (struct sockaddr *)&un, sizeof(un), 1), -EADDRINUSE);
	op_connect(loop, wait_op(&c, sim), fd, (struct sockaddr *)&un, sizeof(un));
	finish(sim, &c);
	assert_int_equal(c.res, 0);
	loop_close_fd(loop, fd);
	loop_close_fd(loop, fd_listen);
	loop_close(loop);
	sim_close(sim);
}

static void a_send_waits_when_the_peer_does_not_read(void **state)
{
	static unsigned char buf[300 * 1024], in[300 * 1024];
	struct link2 l;
	struct wait s, r;

	(void)state;
	connect2(&l, 4);
	op_send_all(l.a, wait_op(&s, l.sim), l.fd_a, buf, sizeof(buf));
	while (sim_step(l.sim) == 0)
		;
	assert_false(s.done);
	op_recv_all(l.b, wait_op(&r, l.sim), l.fd_b, in, sizeof(in));
	finish(l.sim, &s);
	finish(l.sim, &r);
	assert_int_equal(s.res, sizeof(buf));
	assert_int_equal(r.res, sizeof(in));
	close2(&l);
}

static void a_reset_reaches_both_sides(void **state)
{
	char buf[8], in[8];
	struct link2 l;
	struct wait s, ra, rb;

	(void)state;
	connect2(&l, 5);
	sim_net(l.sim)->reset_per_million = 1000000;
	op_recv(l.b, wait_op(&rb, l.sim), l.fd_b, in, sizeof(in));
	op_recv(l.a, wait_op(&ra, l.sim), l.fd_a, in, sizeof(in));
	op_send_all(l.a, wait_op(&s, l.sim), l.fd_a, memset(buf, 1, sizeof(buf)), sizeof(buf));
	finish(l.sim, &ra);
	finish(l.sim, &rb);
	finish(l.sim, &s);
	assert_int_equal(ra.res, -ECONNRESET);
	assert_int_equal(rb.res, -ECONNRESET);
	op_send_all(l.b, wait_op(&s, l.sim), l.fd_b, buf, sizeof(buf));
	finish(l.sim, &s);
	assert_true(s.res < 0);
	close2(&l);
}

static void a_partition_holds_everything_until_it_heals(void **state)
{
	char in[5] = "";
	struct link2 l;
	struct wait s, r;
	uint64_t start;

	(void)state;
	connect2(&l, 6);
	start = sim_now(l.sim);
	sim_partition(l.sim, l.b, true);
	op_recv_all(l.b, wait_op(&r, l.sim), l.fd_b, in, 4);
	op_send_all(l.a, wait_op(&s, l.sim), l.fd_a, "abcd", 4);
	assert_int_equal(sim_run_until(l.sim, &r.done, start + 100 * NS_PER_S), -ETIMEDOUT);
	assert_int_equal(sim_now(l.sim), start + 100 * NS_PER_S);
	assert_true(s.done && s.res == 4);
	sim_partition(l.sim, l.b, false);
	finish(l.sim, &r);
	assert_int_equal(r.res, 4);
	assert_string_equal(in, "abcd");
	close2(&l);
}

static void a_connect_into_a_partition_waits_and_a_crash_in_it_is_heard_later(void **state)
{
	struct sockaddr_un un = name_of("server");
	struct link2 l;
	struct wait c, r;
	char in[4];
	int fd;

	(void)state;
	connect2(&l, 7);
	sim_partition(l.sim, l.b, true);
	fd = loop_socket(l.a, AF_UNIX);
	op_connect(l.a, wait_op(&c, l.sim), fd, (struct sockaddr *)&un, sizeof(un));
	op_recv(l.a, wait_op(&r, l.sim), l.fd_a, in, sizeof(in));
	while (sim_step(l.sim) == 0)
		;
	assert_false(c.done || r.done);
	sim_crash(l.sim, TAKE_PTR(l.b));
	finish(l.sim, &r);
	finish(l.sim, &c);
	assert_int_equal(r.res, -ECONNRESET);
	assert_int_equal(c.res, -ECONNREFUSED);
	close2(&l);
}

static void a_cut_breaks_connections_but_not_the_listener(void **state)
{
	struct sockaddr_un un = name_of("server");
	struct link2 l;
	struct wait c, ra, rb;
	char in[4];
	int fd;

	(void)state;
	connect2(&l, 8);
	op_recv(l.a, wait_op(&ra, l.sim), l.fd_a, in, sizeof(in));
	op_recv(l.b, wait_op(&rb, l.sim), l.fd_b, in, sizeof(in));
	sim_cut(l.sim, l.b);
	finish(l.sim, &ra);
	finish(l.sim, &rb);
	assert_int_equal(ra.res, -ECONNRESET);
	assert_int_equal(rb.res, -ECONNRESET);
	fd = loop_socket(l.a, AF_UNIX);
	op_connect(l.a, wait_op(&c, l.sim), fd, (struct sockaddr *)&un, sizeof(un));
	finish(l.sim, &c);
	assert_int_equal(c.res, 0);
	close2(&l);
}

static void data_sent_before_a_close_arrives_and_data_after_it_resets(void **state)
{
	char in[8];
	struct link2 l;
	struct wait s, r;

	(void)state;
	connect2(&l, 9);
	op_send_all(l.a, wait_op(&s, l.sim), l.fd_a, "last", 4);
	finish(l.sim, &s);
	loop_close_fd(l.a, l.fd_a);
	op_recv_all(l.b, wait_op(&r, l.sim), l.fd_b, in, 4);
	finish(l.sim, &r);
	assert_int_equal(r.res, 4);
	op_recv(l.b, wait_op(&r, l.sim), l.fd_b, in, 4);
	finish(l.sim, &r);
	assert_int_equal(r.res, 0);
	op_send_all(l.b, wait_op(&s, l.sim), l.fd_b, "late", 4);
	finish(l.sim, &s);
	while (sim_step(l.sim) == 0)
		;
	op_send_all(l.b, wait_op(&s, l.sim), l.fd_b, "late", 4);
	finish(l.sim, &s);
	assert_true(s.res == -ECONNRESET || s.res == -EPIPE);
	close2(&l);
}

static void nothing_to_happen_is_a_deadlock(void **state)
{
	struct sim *sim = world_new(10);
	struct loop *loop = loop_new(sim);
	uint64_t start = sim_now(sim);
	bool flag = false;

	(void)state;
	assert_int_equal(sim_step(sim), -EDEADLK);
	assert_int_equal(loop_step(loop, NEVER_NS), -EDEADLK);
	assert_int_equal(loop_run_until(loop, &flag, NEVER_NS), -EDEADLK);
	assert_int_equal(loop_run_until(loop, &flag, start + 5), -ETIMEDOUT);
	assert_int_equal(sim_now(sim), start + 5);
	assert_int_equal(env_now(loop_env(loop)), start + 5);
	assert_int_equal(loop_now(loop), start + 5);
	loop_close(loop);
	sim_close(sim);
}

struct tick {
	struct timer timer;
	struct loop *loop;
	unsigned *order;
	unsigned id;
};

static void tick_fire(struct timer *timer)
{
	struct tick *t = CONTAINER_OF(timer, struct tick, timer);

	*t->order = *t->order * 10 + t->id;
}

static void tick_at(void *arg)
{
	tick_fire(&((struct tick *)arg)->timer);
}

static void timers_of_all_loops_and_injected_events_are_one_row(void **state)
{
	struct sim *sim = world_new(11);
	struct loop *a = loop_new(sim), *b = loop_new(sim);
	unsigned order = 0;
	struct tick t[4];

	(void)state;
	for (unsigned i = 0; i < 4; i++)
		t[i] = (struct tick){ .timer.fire = tick_fire, .order = &order, .id = i + 1 };
	timer_set(a, &t[2].timer, sim_now(sim) + 30);
	timer_set(b, &t[1].timer, sim_now(sim) + 20);
	timer_set(a, &t[0].timer, sim_now(sim) + 10);
	sim_at(sim, sim_now(sim) + 25, tick_at, &t[3]);
	while (sim_step(sim) == 0)
		;
	assert_int_equal(order, 1243);
	loop_close(a);
	loop_close(b);
	sim_close(sim);
}

struct answer {
	struct work work;
	struct sim *sim;
	uint64_t called_ns;
	int res;
	bool done;
};

static int answer_call(struct work *work)
{
	struct answer *a = CONTAINER_OF(work, struct answer, work);

	a->called_ns = sim_now(a->sim);
	return 42;
}

static void answer_done(struct op *op, int res)
{
	struct answer *a = CONTAINER_OF(op, struct answer, work.op);

	a->res = res;
	a->done = true;
}

static void a_work_runs_at_a_simulated_time(void **state)
{
	struct sim *sim = world_new(12);
	struct loop *loop = loop_new(sim);
	struct answer a = { .work = { .op.done = answer_done, .call = answer_call }, .sim = sim };

	(void)state;
	sim_disk(sim)->delay_min_ns = sim_disk(sim)->delay_max_ns = 3 * MS;
	pool_run(loop, &a.work);
	assert_int_equal(sim_run_until(sim, &a.done, NEVER_NS), 0);
	assert_int_equal(a.res, 42);
	assert_int_equal(a.called_ns, NS_PER_S + 3 * MS);
	loop_close(loop);
	sim_close(sim);
}

/* ---- storage ---- */

#define DISK_SECTORS 64u
#define DISK_BYTES (DISK_SECTORS * 512u)

static int disk_op(struct sim *sim, struct loop *loop, int fd, enum op_kind kind, void *buf,
		   size_t len, uint64_t off)
{
	struct wait w;

	wait_op(&w, sim);
	if (kind == OP_READ)
		op_read(loop, &w.op, fd, buf, len, off);
	else if (kind == OP_WRITE)
		op_write(loop, &w.op, fd, buf, len, off);
	else
		op_sync(loop, &w.op, fd);
	finish(sim, &w);
	return w.res;
}

/* Fills all with 1 and syncs, overwrites with 2, crashes; what each sector holds then. */
static unsigned crash_and_count(uint64_t seed, bool sync_second, bool under_way)
{
	struct sim *sim = world_new(seed);
	struct loop *loop = loop_new(sim);
	static unsigned char buf[DISK_BYTES];
	struct wait w;
	unsigned kept = 0;
	int fd;

	assert_int_equal(sim_file_make(sim, "disk", DISK_BYTES), 0);
	fd = loop_open_file(loop, "disk", O_RDWR, 0);
	memset(buf, 1, sizeof(buf));
	assert_int_equal(disk_op(sim, loop, fd, OP_WRITE, buf, sizeof(buf), 0), DISK_BYTES);
	assert_int_equal(disk_op(sim, loop, fd, OP_SYNC, NULL, 0, 0), 0);
	memset(buf, 2, sizeof(buf));
	if (under_way)
		op_write(loop, wait_op(&w, sim), fd, buf, sizeof(buf), 0);
	else
		assert_int_equal(disk_op(sim, loop, fd, OP_WRITE, buf, sizeof(buf), 0), DISK_BYTES);
	if (sync_second)
		assert_int_equal(disk_op(sim, loop, fd, OP_SYNC, NULL, 0, 0), 0);
	sim_crash(sim, loop);
	assert_int_equal(sim_file_peek(sim, "disk", 0, buf, sizeof(buf)), 0);
	for (unsigned i = 0; i < DISK_SECTORS; i++) {
		unsigned char *sector = buf + (size_t)i * 512;

		assert_true(sector[0] == 1 || sector[0] == 2);
		assert_int_equal(memcmp(sector, sector + 1, 511), 0); /* a sector is whole */
		kept += sector[0] == 2;
	}
	sim_close(sim);
	return kept;
}

static void a_crash_tears_what_was_not_synced_at_sectors(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 20; seed++) {
		unsigned kept = crash_and_count(seed, false, seed & 1);

		assert_in_range(kept, 1, DISK_SECTORS - 1); /* 2^-64 that it is not */
	}
}

static void a_crash_keeps_what_was_synced(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 20; seed++)
		assert_int_equal(crash_and_count(seed, true, false), DISK_SECTORS);
}

static void a_failed_sync_may_lose_what_a_later_one_seems_to_save(void **state)
{
	unsigned lost = 0;

	(void)state;
	for (uint64_t seed = 0; seed < 20; seed++) {
		struct sim *sim = world_new(seed);
		struct loop *loop = loop_new(sim);
		unsigned char buf[512];
		int fd;

		assert_int_equal(sim_file_make(sim, "disk", sizeof(buf)), 0);
		fd = loop_open_file(loop, "disk", O_RDWR, 0);
		memset(buf, 3, sizeof(buf));
		assert_int_equal(disk_op(sim, loop, fd, OP_WRITE, buf, sizeof(buf), 0),
				 sizeof(buf));
		sim_disk(sim)->error_per_million = 1000000;
		assert_int_equal(disk_op(sim, loop, fd, OP_SYNC, NULL, 0, 0), -EIO);
		sim_disk(sim)->error_per_million = 0;
		assert_int_equal(disk_op(sim, loop, fd, OP_SYNC, NULL, 0, 0), 0);
		sim_crash(sim, loop);
		assert_int_equal(sim_file_peek(sim, "disk", 0, buf, sizeof(buf)), 0);
		lost += buf[0] == 0;
		sim_close(sim);
	}
	assert_in_range(lost, 1, 19);
}

static void a_sync_covers_only_what_was_written_before_it(void **state)
{
	unsigned lost = 0;

	(void)state;
	for (uint64_t seed = 0; seed < 20; seed++) {
		struct sim *sim = world_new(seed);
		struct loop *loop = loop_new(sim);
		unsigned char buf[512];
		struct wait s, w;
		int fd;

		assert_int_equal(sim_file_make(sim, "disk", sizeof(buf)), 0);
		fd = loop_open_file(loop, "disk", O_RDWR, 0);
		sim_disk(sim)->delay_min_ns = sim_disk(sim)->delay_max_ns = 10;
		op_sync(loop, wait_op(&s, sim), fd);
		sim_disk(sim)->delay_min_ns = sim_disk(sim)->delay_max_ns = 5;
		memset(buf, 3, sizeof(buf));
		op_write(loop, wait_op(&w, sim), fd, buf, sizeof(buf), 0);
		finish(sim, &w);
		assert_false(s.done);
		/* A sync may carry along what it need not: it is never promised, but never undone
		 * either. */
		sim_crash(sim, loop);
		assert_int_equal(sim_file_peek(sim, "disk", 0, buf, sizeof(buf)), 0);
		lost += buf[0] == 0;
		sim_close(sim);
	}
	assert_in_range(lost, 1, 19);
}

static void files_grow_shrink_and_punch(void **state)
{
	struct sim *sim = world_new(20);
	struct loop *loop = loop_new(sim);
	unsigned char buf[1024];
	uint64_t size;
	struct wait w;
	int fd;

	(void)state;
	assert_int_equal(loop_open_file(loop, "none", O_RDWR, 0), -ENOENT);
	fd = loop_open_file(loop, "new", O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_int_equal(loop_open_file(loop, "new", O_RDWR | O_CREAT | O_EXCL, 0600), -EEXIST);
	assert_int_equal(disk_op(sim, loop, fd, OP_WRITE, memset(buf, 7, 1024), 1024, 1000), 1024);
	assert_int_equal(loop_file_size(loop, fd, &size), 0);
	assert_int_equal(size, 2024);
	op_allocate(loop, wait_op(&w, sim), fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1001,
		    5000);
	finish(sim, &w);
	assert_int_equal(w.res, 0);
	assert_int_equal(disk_op(sim, loop, fd, OP_READ, buf, 1024, 1000), 1024);
	assert_int_equal(buf[0], 7);
	assert_int_equal(buf[1], 0);
	assert_int_equal(disk_op(sim, loop, fd, OP_READ, buf, 1024, 2000), 24);
	assert_int_equal(disk_op(sim, loop, fd, OP_READ, buf, 1024, 3000), 0);
	op_allocate(loop, wait_op(&w, sim), fd, 0, 0, 9000);
	finish(sim, &w);
	assert_int_equal(loop_file_size(loop, fd, &size), 0);
	assert_int_equal(size, 9000);
	loop_close_fd(loop, fd);
	fd = loop_open_file(loop, "new", O_RDWR | O_TRUNC, 0);
	assert_int_equal(loop_file_size(loop, fd, &size), 0);
	assert_int_equal(size, 0);
	loop_close_fd(loop, fd);
	loop_close(loop);
	sim_close(sim);
}

/* ---- a small protocol under weather ---- */

#define ECHO_ROUNDS 20u
#define ECHO_MAX 70000u

struct echo_server {
	struct loop *loop;
	struct op accept, recv, send;
	int fd;
	unsigned char buf[4096];
};

static void echo_recv_done(struct op *op, int res)
{
	struct echo_server *s = CONTAINER_OF(op, struct echo_server, recv);

	if (res > 0)
		op_send_all(s->loop, &s->send, s->fd, s->buf, (size_t)res);
}

static void echo_send_done(struct op *op, int res)
{
	struct echo_server *s = CONTAINER_OF(op, struct echo_server, send);

	if (res > 0)
		op_recv(s->loop, &s->recv, s->fd, s->buf, sizeof(s->buf));
}

static void echo_accept_done(struct op *op, int res)
{
	struct echo_server *s = CONTAINER_OF(op, struct echo_server, accept);

	assert_true(res >= 0);
	s->fd = res;
	op_recv(s->loop, &s->recv, s->fd, s->buf, sizeof(s->buf));
}

static void weather(struct sim *sim)
{
	bool slow = rng_chance(sim_rng(sim), 500000);
	uint64_t rate = 100000 + rng_below(sim_rng(sim), 100000000);

	*sim_net(sim) = (struct sim_net){
		.delay_min_ns = 1,
		.delay_max_ns = rng_below(sim_rng(sim), 50 * MS),
		.bytes_per_s = slow ? rate : 0,
		.stall_per_million = 10000,
		.stall_max_ns = NS_PER_S,
		.short_per_million = 300000,
		.buffer_bytes = (uint32_t)(1 + rng_below(sim_rng(sim), 100000)),
	};
}

static uint64_t echo_run(uint64_t seed)
{
	struct sim *sim = world_new(seed);
	struct echo_server server = { .loop = loop_new(sim), .accept.done = echo_accept_done,
				      .recv.done = echo_recv_done, .send.done = echo_send_done };
	struct loop *client = loop_new(sim);
	struct sockaddr_un un = name_of("echo");
	static unsigned char out[ECHO_MAX], in[ECHO_MAX];
	int fd_listen, fd;
	struct wait s, r;
	uint64_t digest;

	weather(sim);
	fd_listen = loop_listen(server.loop, (struct sockaddr *)&un, sizeof(un), 1);
	op_accept(server.loop, &server.accept, fd_listen);
	fd = loop_socket(client, AF_UNIX);
	op_connect(client, wait_op(&s, sim), fd, (struct sockaddr *)&un, sizeof(un));
	finish(sim, &s);
	for (unsigned i = 0; i < ECHO_ROUNDS; i++) {
		size_t max = rng_chance(sim_rng(sim), 100000) ? ECHO_MAX : 1000;
		size_t len = 1 + rng_below(sim_rng(sim), max);

		rng_fill(sim_rng(sim), out, len);
		op_recv_all(client, wait_op(&r, sim), fd, in, len);
		op_send_all(client, wait_op(&s, sim), fd, out, len);
		finish(sim, &r);
		assert_int_equal(r.res, len);
		assert_int_equal(s.res, len);
		assert_memory_equal(in, out, len);
	}
	digest = sim_digest(sim);
	sim_crash(sim, server.loop);
	sim_crash(sim, client);
	sim_close(sim);
	return digest;
}

static void an_echo_comes_back_whole_for_200_seeds(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 200; seed++)
		echo_run(seed);
}

static void the_same_seed_gives_the_same_run(void **state)
{
	(void)state;
	for (uint64_t seed = 1000; seed < 1010; seed++) {
		assert_int_equal(echo_run(seed), echo_run(seed));
		assert_int_not_equal(echo_run(seed), echo_run(seed + 1));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_message_takes_the_delay_and_its_length_at_the_rate),
		cmocka_unit_test(a_connect_takes_a_round_trip),
		cmocka_unit_test(nobody_listens_is_refused),
		cmocka_unit_test(a_send_waits_when_the_peer_does_not_read),
		cmocka_unit_test(a_reset_reaches_both_sides),
		cmocka_unit_test(a_partition_holds_everything_until_it_heals),
		cmocka_unit_test(a_connect_into_a_partition_waits_and_a_crash_in_it_is_heard_later),
		cmocka_unit_test(a_cut_breaks_connections_but_not_the_listener),
		cmocka_unit_test(data_sent_before_a_close_arrives_and_data_after_it_resets),
		cmocka_unit_test(nothing_to_happen_is_a_deadlock),
		cmocka_unit_test(timers_of_all_loops_and_injected_events_are_one_row),
		cmocka_unit_test(a_work_runs_at_a_simulated_time),
		cmocka_unit_test(a_crash_tears_what_was_not_synced_at_sectors),
		cmocka_unit_test(a_crash_keeps_what_was_synced),
		cmocka_unit_test(a_failed_sync_may_lose_what_a_later_one_seems_to_save),
		cmocka_unit_test(a_sync_covers_only_what_was_written_before_it),
		cmocka_unit_test(files_grow_shrink_and_punch),
		cmocka_unit_test(an_echo_comes_back_whole_for_200_seeds),
		cmocka_unit_test(the_same_seed_gives_the_same_run),
	};

	return cmocka_run_group_tests_name("sim", tests, NULL, NULL);
}
