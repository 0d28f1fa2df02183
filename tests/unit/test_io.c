/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop: each operation on each engine, the same tests for epoll, io_uring and the simulation; then what only real
 * engines have (threads, poll, detach), and addresses.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "io/pool.h"
#include "io/sim.h"
#include "io/sock.h"

#define PATIENCE_NS (60 * NS_PER_S)

struct fix {
	enum loop_engine engine;
	unsigned pool_threads;
	struct loop *loop;
	struct sim *sim;
	char dir[64];
};

static int setup(void **state)
{
	struct fix *f = *state;
	struct loop_options o = { .engine = f->engine, .pool_threads = f->pool_threads };

	if (f->engine == LOOP_SIM) {
		assert_int_equal(sim_open(&f->sim, 1), 0);
		sim_net(f->sim)->delay_max_ns = NS_PER_MS;
		sim_disk(f->sim)->delay_max_ns = NS_PER_MS;
		o.sim = f->sim;
	}
	strcpy(f->dir, "/tmp/remora-io.XXXXXX");
	return !mkdtemp(f->dir) || loop_open(&f->loop, &o, NULL);
}

static int teardown(void **state)
{
	struct fix *f = *state;

	loop_close(TAKE_PTR(f->loop));
	sim_close(TAKE_PTR(f->sim));
	return rmdir(f->dir);
}

struct wait {
	struct op op;
	bool done;
	int res;
	unsigned order; /* the how-manieth it was */
	unsigned *counter;
};

static void wait_done(struct op *op, int res)
{
	struct wait *w = CONTAINER_OF(op, struct wait, op);

	assert_false(w->done); /* exactly once */
	assert_false(op_pending(op));
	w->done = true;
	w->res = res;
	if (w->counter)
		w->order = (*w->counter)++;
}

static struct op *wait_op(struct wait *w)
{
	*w = (struct wait){ .op.done = wait_done };
	return &w->op;
}

static int finish(struct fix *f, struct wait *w)
{
	assert_int_equal(loop_run_until(f->loop, &w->done, loop_now_fresh(f->loop) + PATIENCE_NS), 0);
	return w->res;
}

static void send_text(struct fix *f, int fd, const char *text)
{
	struct wait w;

	op_send_all(f->loop, wait_op(&w), fd, text, strlen(text));
	assert_false(w.done); /* never from within */
	assert_int_equal(finish(f, &w), strlen(text));
}

static void pair_open(struct fix *f, int fd[2])
{
	assert_int_equal(loop_socketpair(f->loop, fd), 0);
}

static void pair_close(struct fix *f, const int fd[2])
{
	loop_close_fd(f->loop, fd[0]);
	loop_close_fd(f->loop, fd[1]);
}

/* ---- every engine ---- */

static void what_is_sent_is_received(void **state)
{
	struct fix *f = *state;
	char in[16] = "";
	struct wait r;
	int fd[2];

	pair_open(f, fd);
	op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	send_text(f, fd[1], "hello");
	assert_int_equal(finish(f, &r), 5);
	assert_string_equal(in, "hello");
	send_text(f, fd[0], "you");
	op_recv(f->loop, wait_op(&r), fd[1], in, sizeof(in));
	assert_false(r.done);
	assert_int_equal(finish(f, &r), 3);
	pair_close(f, fd);
}

static void connect_accept_echo(struct fix *f, const struct sock_addr *at)
{
	struct sock_addr addr = *at;
	struct wait c, a, r;
	int fd_listen, fd;
	char in[8];

	fd_listen = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 5);
	assert_true(fd_listen >= 0);
	assert_int_equal(loop_sockname(f->loop, fd_listen, &addr.ss, &addr.len), 0);
	op_accept(f->loop, wait_op(&a), fd_listen);
	fd = loop_socket(f->loop, addr.domain);
	assert_true(fd >= 0);
	op_connect(f->loop, wait_op(&c), fd, (struct sockaddr *)&addr.ss, addr.len);
	assert_false(c.done);
	assert_int_equal(finish(f, &c), 0);
	assert_true(finish(f, &a) >= 0);
	send_text(f, fd, "there");
	op_recv_all(f->loop, wait_op(&r), a.res, in, 5);
	assert_int_equal(finish(f, &r), 5);
	send_text(f, a.res, "back");
	op_recv_all(f->loop, wait_op(&r), fd, in, 4);
	assert_int_equal(finish(f, &r), 4);
	loop_close_fd(f->loop, a.res);
	op_recv(f->loop, wait_op(&r), fd, in, 4);
	assert_int_equal(finish(f, &r), 0);
	loop_close_fd(f->loop, fd);
	loop_close_fd(f->loop, fd_listen);
	fd = loop_socket(f->loop, addr.domain);
	op_connect(f->loop, wait_op(&c), fd, (struct sockaddr *)&addr.ss, addr.len);
	assert_int_equal(finish(f, &c), -ECONNREFUSED);
	loop_close_fd(f->loop, fd);
}

static void unix_sockets_connect_and_echo(void **state)
{
	struct fix *f = *state;
	struct sock_addr addr;
	char text[128];

	snprintf(text, sizeof(text), "unix:%s/s", f->dir);
	assert_int_equal(sock_parse(text, &addr, NULL), 0);
	connect_accept_echo(f, &addr);
	unlink(text + 5);
}

static void tcp_sockets_connect_and_echo(void **state)
{
	struct sock_addr addr;

	assert_int_equal(sock_parse("127.0.0.1:0", &addr, NULL), 0);
	connect_accept_echo(*state, &addr);
}

static void a_cancelled_op_completes_once_with_ecanceled(void **state)
{
	struct fix *f = *state;
	struct wait a, b, c;
	char in[3] = "";
	int fd[2];

	pair_open(f, fd);
	op_recv(f->loop, wait_op(&a), fd[0], in, 1);
	op_recv(f->loop, wait_op(&b), fd[0], in, 1);
	op_recv(f->loop, wait_op(&c), fd[0], in, 1);
	op_cancel(f->loop, &b.op); /* waits behind another */
	op_cancel(f->loop, &b.op);
	assert_false(b.done);
	assert_int_equal(finish(f, &b), -ECANCELED);
	op_cancel(f->loop, &a.op);
	assert_int_equal(finish(f, &a), -ECANCELED);
	send_text(f, fd[1], "x");
	assert_int_equal(finish(f, &c), 1);
	assert_int_equal(in[0], 'x');
	op_cancel(f->loop, &c.op); /* ended: nothing */
	pair_close(f, fd);
}

static void a_cancel_behind_the_result_leaves_the_result(void **state)
{
	struct fix *f = *state;
	struct wait s;
	int fd[2];

	pair_open(f, fd);
	op_send_all(f->loop, wait_op(&s), fd[0], "x", 1); /* succeeds at once in all engines */
	op_cancel(f->loop, &s.op);
	assert_int_equal(finish(f, &s), 1);
	pair_close(f, fd);
}

static void an_op_cancelled_while_half_done_is_cancelled(void **state)
{
	struct fix *f = *state;
	struct wait r;
	char in[10];
	int fd[2];

	pair_open(f, fd);
	op_recv_all(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	send_text(f, fd[1], "half");
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop) + NS_PER_MS), 0);
	op_cancel(f->loop, &r.op);
	assert_int_equal(finish(f, &r), -ECANCELED);
	pair_close(f, fd);
}

static void accepts_can_be_cancelled(void **state)
{
	struct fix *f = *state;
	struct sock_addr addr;
	struct wait a, b;
	int fd;

	assert_int_equal(sock_parse("127.0.0.1:0", &addr, NULL), 0);
	fd = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 5);
	op_accept(f->loop, wait_op(&a), fd);
	op_accept(f->loop, wait_op(&b), fd);
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
	op_cancel(f->loop, &a.op);
	op_cancel(f->loop, &b.op);
	assert_int_equal(finish(f, &a), -ECANCELED);
	assert_int_equal(finish(f, &b), -ECANCELED);
	loop_close_fd(f->loop, fd);
}

#define MANY 100u

static void many_ops_on_one_descriptor_end_in_order(void **state)
{
	struct fix *f = *state;
	static struct wait r[MANY], s[MANY];
	unsigned char in[MANY], out[MANY];
	unsigned received = 0, sent = 0;
	int fd[2];

	pair_open(f, fd);
	for (unsigned i = 0; i < MANY; i++) {
		wait_op(&r[i])->kind = OP_NONE;
		r[i].counter = &received;
		op_recv(f->loop, &r[i].op, fd[0], &in[i], 1);
	}
	for (unsigned i = 0; i < MANY; i++) {
		out[i] = (unsigned char)i;
		wait_op(&s[i]);
		s[i].counter = &sent;
		op_send_all(f->loop, &s[i].op, fd[1], &out[i], 1);
	}
	finish(f, &r[MANY - 1]);
	finish(f, &s[MANY - 1]);
	for (unsigned i = 0; i < MANY; i++) {
		assert_int_equal(r[i].order, i);
		assert_int_equal(s[i].order, i);
		assert_int_equal(in[i], i);
	}
	pair_close(f, fd);
}

#define BIG (3u << 20)

static void big_sends_on_one_descriptor_do_not_mix(void **state)
{
	struct fix *f = *state;
	unsigned char *out = malloc(3 * (size_t)BIG), *in = malloc(3 * (size_t)BIG);
	struct iovec iov[3];
	struct wait s[3], r;
	int fd[2];

	pair_open(f, fd);
	for (unsigned i = 0; i < 3; i++) {
		memset(out + (size_t)i * BIG, (int)i + 1, BIG);
		iov[i] = (struct iovec){ out + i * (size_t)(BIG / 3), BIG / 3 };
	}
	op_sendv_all(f->loop, wait_op(&s[0]), fd[1], iov, 3);
	op_send_all(f->loop, wait_op(&s[1]), fd[1], out + BIG, BIG);
	op_send_all(f->loop, wait_op(&s[2]), fd[1], out + 2 * (size_t)BIG, BIG);
	op_recv_all(f->loop, wait_op(&r), fd[0], in, 3 * BIG);
	assert_int_equal(finish(f, &r), 3 * BIG);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(finish(f, &s[i]), BIG);
	assert_memory_equal(in, out, 3 * BIG);
	free(out);
	free(in);
	pair_close(f, fd);
}

static void recvv_fills_the_parts_in_order(void **state)
{
	struct fix *f = *state;
	char a[3] = "", b[8] = "";
	struct iovec iov[2] = { { a, 2 }, { b, 7 } };
	struct wait r;
	int fd[2];

	pair_open(f, fd);
	send_text(f, fd[1], "abcd");
	op_recvv(f->loop, wait_op(&r), fd[0], iov, 2);
	assert_int_equal(finish(f, &r), 4);
	assert_string_equal(a, "ab");
	assert_string_equal(b, "cd");
	pair_close(f, fd);
}

static void a_stream_that_ends_inside_is_a_reset_and_before_it_an_end(void **state)
{
	struct fix *f = *state;
	struct wait r, q;
	char in[8];
	int fd[2];

	pair_open(f, fd);
	op_recv_all(f->loop, wait_op(&r), fd[0], in, 8);
	op_recv_all(f->loop, wait_op(&q), fd[0], in, 8);
	send_text(f, fd[1], "1234");
	loop_close_fd(f->loop, fd[1]);
	assert_int_equal(finish(f, &r), -ECONNRESET);
	assert_int_equal(finish(f, &q), 0);
	loop_close_fd(f->loop, fd[0]);
}

static void a_send_to_nobody_fails_without_a_signal(void **state)
{
	struct fix *f = *state;
	struct wait s;
	int fd[2];

	pair_open(f, fd);
	loop_close_fd(f->loop, fd[1]);
	for (int i = 0; i < 3; i++) { /* a simulated peer hears of it one delay later */
		op_send_all(f->loop, wait_op(&s), fd[0], "x", 1);
		if (finish(f, &s) < 0)
			break;
		while (f->sim && sim_step(f->sim) == 0)
			;
	}
	assert_true(s.res == -EPIPE || s.res == -ECONNRESET);
	loop_close_fd(f->loop, fd[0]);
}

static void an_end_that_came_with_the_data_is_seen_after_it(void **state)
{
	struct fix *f = *state;
	struct wait r;
	char in[8];
	int fd[2];

	pair_open(f, fd);
	op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
	send_text(f, fd[1], "abc");
	loop_close_fd(f->loop, fd[1]);
	assert_int_equal(finish(f, &r), 3); /* short: an engine may think that nothing follows */
	op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	assert_int_equal(finish(f, &r), 0);
	op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	assert_int_equal(finish(f, &r), 0);
	loop_close_fd(f->loop, fd[0]);
}

static void nothing_to_move_completes_with_zero(void **state)
{
	struct fix *f = *state;
	struct wait s, r;
	int fd[2];

	pair_open(f, fd);
	op_send_all(f->loop, wait_op(&s), fd[0], NULL, 0);
	op_recv_all(f->loop, wait_op(&r), fd[0], NULL, 0);
	assert_int_equal(finish(f, &s), 0);
	assert_int_equal(finish(f, &r), 0);
	pair_close(f, fd);
}

static void a_bad_descriptor_is_an_error(void **state)
{
	struct fix *f = *state;
	struct wait w;
	char in[1];

	op_recv(f->loop, wait_op(&w), -1, in, 1);
	assert_int_equal(finish(f, &w), -EBADF);
	op_read(f->loop, wait_op(&w), -1, in, 1, 0);
	assert_int_equal(finish(f, &w), -EBADF);
	op_accept(f->loop, wait_op(&w), -1);
	assert_int_equal(finish(f, &w), -EBADF);
}

struct chain {
	struct op op;
	struct loop *loop;
	int fd;
	char byte;
	unsigned left;
	bool end, *ended;
};

static void chain_done(struct op *op, int res)
{
	struct chain *c = CONTAINER_OF(op, struct chain, op);

	assert_int_equal(res, 1);
	if (--c->left)
		op_recv(c->loop, op, c->fd, &c->byte, 1);
	else
		c->end = true;
}

static void free_done(struct op *op, int res)
{
	struct chain *c = CONTAINER_OF(op, struct chain, op);

	assert_int_equal(res, 1);
	*c->ended = true;
	free(c);
}

static void an_op_may_be_reused_or_freed_when_it_is_done(void **state)
{
	struct fix *f = *state;
	struct chain c = { .op.done = chain_done, .loop = f->loop, .left = 5 }, *heap = calloc(1, sizeof(*heap));
	bool ended = false;
	int fd[2];

	pair_open(f, fd);
	c.fd = fd[0];
	op_recv(f->loop, &c.op, fd[0], &c.byte, 1);
	send_text(f, fd[1], "12345");
	assert_int_equal(loop_run_until(f->loop, &c.end, loop_now_fresh(f->loop) + PATIENCE_NS), 0);
	heap->op.done = free_done;
	heap->ended = &ended;
	op_recv(f->loop, &heap->op, fd[0], &heap->byte, 1);
	send_text(f, fd[1], "6");
	assert_int_equal(loop_run_until(f->loop, &ended, loop_now_fresh(f->loop) + PATIENCE_NS), 0);
	pair_close(f, fd);
}

static void a_cancel_does_not_hit_the_next_use_of_an_op(void **state)
{
	struct fix *f = *state;
	struct wait r;
	char in[1];
	int fd[2];

	pair_open(f, fd);
	for (unsigned i = 0; i < 50; i++) {
		op_recv(f->loop, wait_op(&r), fd[0], in, 1);
		assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
		send_text(f, fd[1], "x");
		op_cancel(f->loop, &r.op); /* may come too late */
		if (finish(f, &r) == 1)
			continue;
		assert_int_equal(r.res, -ECANCELED);
		op_recv(f->loop, wait_op(&r), fd[0], in, 1);
		assert_int_equal(finish(f, &r), 1);
	}
	pair_close(f, fd);
}

static void files_are_read_written_synced_and_punched(void **state)
{
	struct fix *f = *state;
	char path[128], in[100];
	struct wait w;
	uint64_t size;
	int fd;

	snprintf(path, sizeof(path), "%s/file", f->dir);
	assert_int_equal(loop_open_file(f->loop, path, O_RDWR, 0), -ENOENT);
	fd = loop_open_file(f->loop, path, O_RDWR | O_CREAT, 0600);
	assert_true(fd >= 0);
	op_write(f->loop, wait_op(&w), fd, "0123456789", 10, 5000);
	assert_false(w.done);
	assert_int_equal(finish(f, &w), 10);
	op_sync(f->loop, wait_op(&w), fd);
	assert_int_equal(finish(f, &w), 0);
	assert_int_equal(loop_file_size(f->loop, fd, &size), 0);
	assert_int_equal(size, 5010);
	op_read(f->loop, wait_op(&w), fd, in, sizeof(in), 5003);
	assert_int_equal(finish(f, &w), 7);
	assert_memory_equal(in, "3456789", 7);
	op_allocate(f->loop, wait_op(&w), fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5001, 2);
	assert_int_equal(finish(f, &w), 0);
	op_read(f->loop, wait_op(&w), fd, in, 4, 5000);
	assert_int_equal(finish(f, &w), 4);
	assert_memory_equal(in, "0\0\0003", 4);
	op_read(f->loop, wait_op(&w), fd, in, 4, 6000);
	assert_int_equal(finish(f, &w), 0);
	loop_close_fd(f->loop, fd);
	fd = loop_open_file(f->loop, path, O_RDONLY, 0);
	if (!f->sim)
		unlink(path);
	op_write(f->loop, wait_op(&w), fd, "x", 1, 0);
	assert_int_equal(finish(f, &w), -EBADF);
	loop_close_fd(f->loop, fd);
}

#define CROWD 5000u

static void more_ops_than_the_ring_has_room_for_all_complete(void **state)
{
	struct fix *f = *state;
	struct wait *w = calloc(CROWD, sizeof(*w));
	char path[128], in[CROWD];
	int fd;

	snprintf(path, sizeof(path), "%s/file", f->dir);
	fd = loop_open_file(f->loop, path, O_RDWR | O_CREAT, 0600);
	op_write(f->loop, wait_op(&w[0]), fd, "y", 1, 0);
	assert_int_equal(finish(f, &w[0]), 1);
	for (unsigned i = 0; i < CROWD; i++)
		op_read(f->loop, wait_op(&w[i]), fd, &in[i], 1, 0);
	for (unsigned i = 0; i < CROWD; i++) {
		assert_int_equal(finish(f, &w[i]), 1);
		assert_int_equal(in[i], 'y');
	}
	loop_close_fd(f->loop, fd);
	if (!f->sim)
		unlink(path);
	free(w);
}

/* ---- timers and posts ---- */

struct tick {
	struct timer timer;
	struct post post;
	struct fix *f;
	unsigned id;
	char *log;
	struct timer *clears, *sets;
	bool fired;
};

static void tick_log(struct tick *t)
{
	size_t n = strlen(t->log);

	t->log[n] = (char)('a' + t->id);
	t->log[n + 1] = '\0';
	t->fired = true;
}

static void tick_fire(struct timer *timer)
{
	struct tick *t = CONTAINER_OF(timer, struct tick, timer);

	assert_false(timer_is_set(timer));
	assert_true(loop_now(t->f->loop) >= timer->at_ns);
	tick_log(t);
	if (t->clears)
		timer_clear(t->f->loop, t->clears);
	if (t->sets)
		timer_set(t->f->loop, t->sets, loop_now(t->f->loop)); /* due at once: in the next step */
}

static void post_run(struct post *post)
{
	tick_log(CONTAINER_OF(post, struct tick, post));
}

static void timers_fire_in_order_and_may_set_and_clear_each_other(void **state)
{
	struct fix *f = *state;
	char log[16] = "";
	struct tick t[6];
	uint64_t now = loop_now_fresh(f->loop);

	for (unsigned i = 0; i < 6; i++)
		t[i] = (struct tick){ .timer.fire = tick_fire, .f = f, .id = i, .log = log };
	timer_set(f->loop, &t[4].timer, now + 3000);
	timer_set(f->loop, &t[0].timer, now + 2000);
	timer_set(f->loop, &t[1].timer, now + 2000); /* equal: in the order in which they were set */
	timer_set(f->loop, &t[2].timer, now + 2000);
	timer_set(f->loop, &t[3].timer, now + 1000);
	timer_set(f->loop, &t[3].timer, now + 2500); /* moved */
	t[0].clears = &t[1].timer;		     /* clears one that is due as well */
	t[2].sets = &t[5].timer;
	timer_clear(f->loop, &t[5].timer); /* not set: nothing */
	assert_int_equal(loop_run_until(f->loop, &t[4].fired, now + PATIENCE_NS), 0);
	assert_int_equal(loop_run_until(f->loop, &t[5].fired, now + PATIENCE_NS), 0);
	assert_true(strcmp(log, "acdef") == 0 || strcmp(log, "acfde") == 0);
}

static void a_thousand_timers_fire_in_order(void **state)
{
	struct fix *f = *state;
	struct rng rng = { 7 };
	struct tick *t = calloc(1000, sizeof(*t));
	uint64_t now = loop_now_fresh(f->loop), last = 0;
	char log[2048] = "";
	unsigned fired = 0;

	for (unsigned i = 0; i < 1000; i++) {
		t[i] = (struct tick){ .timer.fire = tick_fire, .f = f, .log = log };
		timer_set(f->loop, &t[i].timer, now + rng_below(&rng, NS_PER_MS));
	}
	for (unsigned i = 0; i < 1000; i += 3)
		timer_set(f->loop, &t[i].timer, now + rng_below(&rng, NS_PER_MS));
	for (unsigned i = 0; i < 1000; i += 4)
		timer_clear(f->loop, &t[i].timer);
	for (unsigned i = 0; i < 1000; i++)
		last = i % 4 ? MAX(last, t[i].timer.at_ns) : last;
	while (loop_now(f->loop) < last + 1)
		assert_int_equal(loop_step(f->loop, last + 1), 0);
	for (unsigned i = 0; i < 1000; i++)
		fired += t[i].fired;
	assert_int_equal(fired, 750);
	assert_int_equal(strlen(log), 750);
	free(t);
}

static void posts_and_defers_run_in_order_and_later(void **state)
{
	struct fix *f = *state;
	char log[16] = "";
	struct tick t[4];

	for (unsigned i = 0; i < 4; i++)
		t[i] = (struct tick){ .post.run = post_run, .f = f, .id = i, .log = log };
	loop_defer(f->loop, &t[0].post);
	loop_defer(f->loop, &t[1].post);
	loop_post(f->loop, &t[2].post);
	loop_post(f->loop, &t[3].post);
	assert_string_equal(log, "");
	assert_int_equal(loop_run_until(f->loop, &t[3].fired, loop_now_fresh(f->loop) + PATIENCE_NS), 0);
	assert_string_equal(log, "abcd");
}

/* ---- works ---- */

struct job {
	struct work work;
	struct wait w; /* its op is not used */
	pthread_mutex_t *gate;
	int in, out;
	bool done;
};

static int job_call(struct work *work)
{
	struct job *j = CONTAINER_OF(work, struct job, work);

	if (j->gate) {
		pthread_mutex_lock(j->gate);
		pthread_mutex_unlock(j->gate);
	}
	return j->in * 2;
}

static void job_done(struct op *op, int res)
{
	struct job *j = CONTAINER_OF(op, struct job, work.op);

	assert_false(j->done);
	j->out = res;
	j->done = true;
}

static void works_run_and_come_back(void **state)
{
	struct fix *f = *state;
	static struct job j[200];

	for (int i = 0; i < 200; i++) {
		j[i] = (struct job){ .work = { .op.done = job_done, .call = job_call }, .in = i };
		pool_run(f->loop, &j[i].work);
	}
	for (int i = 0; i < 200; i++) {
		assert_int_equal(loop_run_until(f->loop, &j[i].done, loop_now_fresh(f->loop) + PATIENCE_NS), 0);
		assert_int_equal(j[i].out, 2 * i);
	}
}

static void a_work_that_has_not_begun_can_be_cancelled(void **state)
{
	struct fix *f = *state;
	pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
	struct job j[2];

	for (int i = 0; i < 2; i++)
		j[i] = (struct job){ .work = { .op.done = job_done, .call = job_call }, .in = 1, .gate = &gate };
	pthread_mutex_lock(&gate);
	pool_run(f->loop, &j[0].work); /* keeps the only thread busy */
	pool_run(f->loop, &j[1].work);
	op_cancel(f->loop, &j[1].work.op);
	assert_int_equal(loop_run_until(f->loop, &j[1].done, loop_now_fresh(f->loop) + PATIENCE_NS), 0);
	pthread_mutex_unlock(&gate);
	assert_int_equal(j[1].out, -ECANCELED);
	assert_int_equal(loop_run_until(f->loop, &j[0].done, loop_now_fresh(f->loop) + PATIENCE_NS), 0);
	assert_int_equal(j[0].out, 2);
	op_cancel(f->loop, &j[0].work.op);
}

/* ---- real engines only ---- */

#define POSTERS 4u
#define POSTS 500u

struct poster {
	struct fix *f;
	struct {
		struct post post;
		struct poster *poster;
	} item[POSTS];
	unsigned ran;
	bool end;
};

static void poster_run(struct post *post)
{
	struct poster *p = CONTAINER_OF(post, __typeof__(((struct poster *)0)->item[0]), post)->poster;

	p->end = ++p->ran == POSTS;
}

static void *poster_thread(void *arg)
{
	struct poster *p = arg;

	for (unsigned i = 0; i < POSTS; i++) {
		p->item[i].post.run = poster_run;
		p->item[i].poster = p;
		loop_post(p->f->loop, &p->item[i].post);
	}
	return NULL;
}

static void posts_of_other_threads_wake_the_loop_and_none_is_lost(void **state)
{
	struct poster *p = calloc(POSTERS, sizeof(*p));
	pthread_t thread[POSTERS];
	struct fix *f = *state;

	for (unsigned i = 0; i < POSTERS; i++) {
		p[i].f = f;
		assert_int_equal(pthread_create(&thread[i], NULL, poster_thread, &p[i]), 0);
	}
	for (unsigned i = 0; i < POSTERS; i++)
		assert_int_equal(loop_run_until(f->loop, &p[i].end, NEVER_NS), 0);
	for (unsigned i = 0; i < POSTERS; i++)
		pthread_join(thread[i], NULL);
	free(p);
}

struct caller {
	struct fix *f;
	unsigned calls;
	pthread_t loop_thread;
	const bool *flag; /* the loop thread's */
	bool seen;
};

static void count_call(void *arg)
{
	struct caller *c = arg;

	c->calls++;
	c->seen = c->flag && *c->flag;
	assert_true(pthread_equal(pthread_self(), c->loop_thread));
}

static void stop_call(void *arg)
{
	loop_stop(((struct caller *)arg)->f->loop);
}

static void *loop_thread(void *arg)
{
	struct caller *c = arg;

	c->loop_thread = pthread_self();
	return loop_run(c->f->loop) ? arg : NULL;
}

static void a_call_runs_on_the_loops_thread_and_has_ended_when_it_returns(void **state)
{
	struct caller c = { .f = *state };
	pthread_t thread;
	void *failed;

	assert_int_equal(pthread_create(&thread, NULL, loop_thread, &c), 0);
	for (unsigned i = 1; i <= 100; i++) {
		loop_call(c.f->loop, count_call, &c);
		assert_int_equal(c.calls, i);
	}
	loop_call(c.f->loop, stop_call, &c);
	pthread_join(thread, &failed);
	assert_null(failed);
}

static void a_detached_loop_goes_on_in_another_thread_with_what_was_pending(void **state)
{
	struct fix *f = *state;
	struct wait r, q, p, a;
	struct caller c = { .f = f, .flag = &p.done };
	struct sock_addr addr;
	char in[4] = "";
	pthread_t thread;
	int fd[2], other[2], fd_listen;
	void *failed;

	pair_open(f, fd);
	pair_open(f, other);
	assert_int_equal(sock_parse("127.0.0.1:0", &addr, NULL), 0);
	fd_listen = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 5);
	op_recv(f->loop, wait_op(&r), fd[0], in, 1);
	op_recv(f->loop, wait_op(&q), fd[0], in + 1, 1);
	op_poll(f->loop, wait_op(&p), other[0], POLLIN);
	op_accept(f->loop, wait_op(&a), fd_listen);
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
	assert_int_equal(loop_detach(f->loop), 0);
	assert_int_equal(pthread_create(&thread, NULL, loop_thread, &c), 0);
	assert_int_equal(write(fd[1], "z", 1), 1);
	assert_int_equal(write(other[1], "z", 1), 1);
	while (!c.seen)
		loop_call(f->loop, count_call, &c);
	loop_call(f->loop, stop_call, &c);
	pthread_join(thread, &failed);
	assert_null(failed);
	/* And back again. */
	assert_int_equal(finish(f, &r), 1);
	send_text(f, fd[1], "y");
	assert_int_equal(finish(f, &q), 1);
	assert_string_equal(in, "zy");
	op_cancel(f->loop, &a.op);
	assert_int_equal(finish(f, &a), -ECANCELED);
	pair_close(f, fd);
	pair_close(f, other);
	loop_close_fd(f->loop, fd_listen);
}

static void polls_tell_what_is_ready_and_can_be_cancelled(void **state)
{
	struct fix *f = *state;
	uint64_t one = 1;
	struct wait a, b, c;
	int fd[2], event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	pair_open(f, fd);
	op_poll(f->loop, wait_op(&a), fd[0], POLLOUT);
	assert_int_equal(finish(f, &a) & POLLOUT, POLLOUT);
	op_poll(f->loop, wait_op(&a), event, POLLIN);
	op_poll(f->loop, wait_op(&b), event, POLLIN);
	op_poll(f->loop, wait_op(&c), fd[0], POLLIN);
	op_cancel(f->loop, &c.op);
	assert_int_equal(finish(f, &c), -ECANCELED);
	assert_false(a.done || b.done);
	assert_int_equal(write(event, &one, sizeof(one)), sizeof(one));
	assert_int_equal(finish(f, &a), POLLIN);
	assert_int_equal(finish(f, &b), POLLIN);
	op_poll(f->loop, wait_op(&a), event, POLLIN); /* still ready: no new edge is needed */
	assert_int_equal(finish(f, &a), POLLIN);
	assert_int_equal(read(event, &one, sizeof(one)), sizeof(one));
	op_poll(f->loop, wait_op(&a), event, POLLIN);
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
	assert_false(a.done);
	assert_int_equal(write(event, &one, sizeof(one)), sizeof(one));
	assert_int_equal(finish(f, &a), POLLIN);
	loop_close_fd(f->loop, event);
	op_poll(f->loop, wait_op(&c), fd[0], POLLIN);
	loop_close_fd(f->loop, fd[1]);
	assert_true(finish(f, &c) & (POLLHUP | POLLIN));
	loop_close_fd(f->loop, fd[0]);
}

static void a_regular_file_is_always_ready(void **state)
{
	struct fix *f = *state;
	FILE *file = tmpfile();
	struct wait a;

	op_poll(f->loop, wait_op(&a), fileno(file), POLLIN);
	assert_int_equal(finish(f, &a), POLLIN);
	fclose(file);
}

static void three_thousand_polls_complete_at_once(void **state)
{
	struct fix *f = *state;
	struct wait *w = calloc(3000, sizeof(*w));
	int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	uint64_t one = 1;

	for (unsigned i = 0; i < 3000; i++)
		op_poll(f->loop, wait_op(&w[i]), event, POLLIN);
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
	assert_int_equal(write(event, &one, sizeof(one)), sizeof(one));
	for (unsigned i = 0; i < 3000; i++)
		assert_int_equal(finish(f, &w[i]), POLLIN);
	loop_close_fd(f->loop, event);
	free(w);
}

static void a_descriptor_number_that_comes_back_starts_afresh(void **state)
{
	struct fix *f = *state;
	struct wait r;
	char in[4];
	int fd[2], again[2];

	for (unsigned i = 0; i < 20; i++) {
		pair_open(f, fd);
		op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
		assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
		send_text(f, fd[1], "abc");
		assert_int_equal(finish(f, &r), 3);
		pair_close(f, fd);
		pair_open(f, again);
		assert_int_equal(again[0], fd[0]);
		pair_close(f, again);
	}
}

static void a_connect_waits_while_a_unix_backlog_is_full(void **state)
{
	struct fix *f = *state;
	struct wait c[6], a[6];
	int fd[6], fd_listen;
	struct sock_addr addr;
	char text[128];

	snprintf(text, sizeof(text), "unix:%s/s", f->dir);
	assert_int_equal(sock_parse(text, &addr, NULL), 0);
	fd_listen = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 1);
	for (unsigned i = 0; i < 6; i++) {
		fd[i] = loop_socket(f->loop, AF_UNIX);
		op_connect(f->loop, wait_op(&c[i]), fd[i], (struct sockaddr *)&addr.ss, addr.len);
	}
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop) + 5 * NS_PER_MS), 0);
	assert_false(c[5].done);
	op_cancel(f->loop, &c[5].op);
	assert_int_equal(finish(f, &c[5]), -ECANCELED);
	for (unsigned i = 0; i < 5; i++)
		op_accept(f->loop, wait_op(&a[i]), fd_listen);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(finish(f, &c[i]), 0);
		loop_close_fd(f->loop, finish(f, &a[i]));
		loop_close_fd(f->loop, fd[i]);
	}
	loop_close_fd(f->loop, fd[5]);
	loop_close_fd(f->loop, fd_listen);
	unlink(text + 5);
}

static void a_dead_servers_socket_is_replaced_and_a_live_ones_is_not(void **state)
{
	struct fix *f = *state;
	struct sock_addr addr;
	char text[128];
	int fd, file;

	snprintf(text, sizeof(text), "unix:%s/s", f->dir);
	assert_int_equal(sock_parse(text, &addr, NULL), 0);
	fd = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 1);
	assert_true(fd >= 0);
	assert_int_equal(loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 1), -EADDRINUSE);
	loop_close_fd(f->loop, fd); /* the file stays, as after a kill */
	fd = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 1);
	assert_true(fd >= 0);
	loop_close_fd(f->loop, fd);
	unlink(text + 5);
	file = open(text + 5, O_CREAT | O_RDWR | O_CLOEXEC, 0600); /* somebody's file is never removed */
	assert_int_equal(loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 1), -EADDRINUSE);
	close(file);
	unlink(text + 5);
}

/* ---- without an engine ---- */

static void addresses_are_parsed_and_printed_back(void **state)
{
	static const char *const good[] = { "unix:/run/x.sock", "unix:@name", "127.0.0.1:10809", "[::1]:1", "10.0.0.1:0" };
	static const bool local[] = { true, true, true, true, false };
	char buf[SOCK_TEXT_MAX];
	struct sock_addr addr;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(sock_parse(good[i], &addr, NULL), 0);
		assert_string_equal(sock_format(&addr, buf), good[i]);
		assert_int_equal(sock_is_local(&addr), local[i]);
	}
}

static void a_bad_address_says_what_is_wrong(void **state)
{
	static const struct {
		const char *text, *part;
	} bad[] = {
		{ "unix:", "path" },	  { "host", "HOST:PORT" },   { ":80", "HOST:PORT" },	{ "host:", "number" },
		{ "1.2.3.4:x", "number" }, { "1.2.3.4:65536", "65535" }, { "::1:80", "brackets" }, { "[::1:80", "]" },
		{ "[zz]:80", "zz" },	  { "1.2.3.4:-1", "number" },
	};
	char path[200] = "unix:";
	struct sock_addr addr;
	struct err e;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		e = (struct err){ 0 };
		assert_true(sock_parse(bad[i].text, &addr, &e) < 0);
		assert_non_null(strstr(e.text, bad[i].part));
	}
	memset(path + 5, 'p', 150);
	assert_int_equal(sock_parse(path, &addr, &e), -ENAMETOOLONG);
}

static void remember_line(void *arg, enum log_level level, const char *text)
{
	if (level == LOG_WARN)
		snprintf(arg, LOG_TEXT_MAX, "%s", text);
}

static int fault_uring(void *arg, const char *point)
{
	(void)arg;
	return strcmp(point, "uring.open") == 0 ? -EPERM : 0;
}

static void a_fallback_to_epoll_is_announced_with_the_reason(void **state)
{
	char line[LOG_TEXT_MAX] = "";
	struct env env;
	struct loop_options o = { .engine = LOOP_AUTO, .env = &env };
	struct loop *loop;
	struct err e = { 0 };

	(void)state;
	env_init(&env);
	env.log = (struct log){ remember_line, line, LOG_WARN };
	assert_int_equal(loop_open(&loop, &o, NULL), 0);
	assert_int_equal(line[0] != '\0', strcmp(loop_engine_name(loop), "epoll") == 0);
	loop_close(loop);
	env.fault = fault_uring;
	assert_int_equal(loop_open(&loop, &o, NULL), 0);
	assert_string_equal(loop_engine_name(loop), "epoll");
	assert_non_null(strstr(line, "io_uring"));
	loop_close(loop);
	o.engine = LOOP_URING; /* what was asked for and cannot be had is an error */
	assert_true(loop_open(&loop, &o, &e) < 0);
	assert_non_null(strstr(e.text, "io_uring"));
}

#define SHARED(name) { #name, name, true }
#define REAL(name) { #name, name, false }

static const struct {
	const char *name;
	CMUnitTestFunction fn;
	bool sim;
} per_engine[] = {
	SHARED(what_is_sent_is_received),
	SHARED(unix_sockets_connect_and_echo),
	SHARED(tcp_sockets_connect_and_echo),
	SHARED(a_cancelled_op_completes_once_with_ecanceled),
	SHARED(a_cancel_behind_the_result_leaves_the_result),
	SHARED(an_op_cancelled_while_half_done_is_cancelled),
	SHARED(accepts_can_be_cancelled),
	SHARED(many_ops_on_one_descriptor_end_in_order),
	SHARED(big_sends_on_one_descriptor_do_not_mix),
	SHARED(recvv_fills_the_parts_in_order),
	SHARED(a_stream_that_ends_inside_is_a_reset_and_before_it_an_end),
	SHARED(a_send_to_nobody_fails_without_a_signal),
	SHARED(an_end_that_came_with_the_data_is_seen_after_it),
	SHARED(nothing_to_move_completes_with_zero),
	SHARED(a_bad_descriptor_is_an_error),
	SHARED(an_op_may_be_reused_or_freed_when_it_is_done),
	SHARED(a_cancel_does_not_hit_the_next_use_of_an_op),
	SHARED(files_are_read_written_synced_and_punched),
	SHARED(more_ops_than_the_ring_has_room_for_all_complete),
	SHARED(timers_fire_in_order_and_may_set_and_clear_each_other),
	SHARED(a_thousand_timers_fire_in_order),
	SHARED(posts_and_defers_run_in_order_and_later),
	SHARED(works_run_and_come_back),
	REAL(a_work_that_has_not_begun_can_be_cancelled),
	REAL(posts_of_other_threads_wake_the_loop_and_none_is_lost),
	REAL(a_call_runs_on_the_loops_thread_and_has_ended_when_it_returns),
	REAL(a_detached_loop_goes_on_in_another_thread_with_what_was_pending),
	REAL(polls_tell_what_is_ready_and_can_be_cancelled),
	REAL(a_regular_file_is_always_ready),
	REAL(three_thousand_polls_complete_at_once),
	REAL(a_descriptor_number_that_comes_back_starts_afresh),
	REAL(a_connect_waits_while_a_unix_backlog_is_full),
	REAL(a_dead_servers_socket_is_replaced_and_a_live_ones_is_not),
};

static bool engine_works(enum loop_engine engine)
{
	struct loop_options o = { .engine = engine };
	struct loop *loop;

	if (loop_open(&loop, &o, NULL))
		return false;
	loop_close(loop);
	return true;
}

static void io_uring_is_not_allowed_here(void **state)
{
	(void)state;
	skip();
}

int main(void)
{
	static const char *const engine_names[] = { "epoll", "io_uring", "sim" };
	static const enum loop_engine engines[] = { LOOP_EPOLL, LOOP_URING, LOOP_SIM };
	static struct fix fix[3];
	static char names[3 * ARRAY_LEN(per_engine)][128];
	struct CMUnitTest tests[3 * ARRAY_LEN(per_engine) + 4] = {
		cmocka_unit_test(addresses_are_parsed_and_printed_back),
		cmocka_unit_test(a_bad_address_says_what_is_wrong),
		cmocka_unit_test(a_fallback_to_epoll_is_announced_with_the_reason),
	};
	size_t n = 3;

	for (size_t i = 0; i < 3; i++) {
		fix[i] = (struct fix){ .engine = engines[i], .pool_threads = 1 };
		if (engines[i] == LOOP_URING && !engine_works(LOOP_URING)) {
			tests[n++] = (struct CMUnitTest)cmocka_unit_test(io_uring_is_not_allowed_here);
			continue;
		}
		for (size_t j = 0; j < ARRAY_LEN(per_engine); j++) {
			char *name = names[i * ARRAY_LEN(per_engine) + j];

			if (engines[i] == LOOP_SIM && !per_engine[j].sim)
				continue;
			snprintf(name, sizeof(names[0]), "%s: %s", engine_names[i], per_engine[j].name);
			tests[n++] = (struct CMUnitTest){ name, per_engine[j].fn, setup, teardown, &fix[i] };
		}
	}
	return _cmocka_run_group_tests("io", tests, n, NULL, NULL);
}
