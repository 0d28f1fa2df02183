/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop itself: timers, posts and works on every engine; and what only real engines have:
 * threads, polls, a change of thread, a fallback.
 */
#include "io_fix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "base/rng.h"
#include "io/pool.h"
#include "io/sock.h"

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
		/* due at once: in the next step */
		timer_set(t->f->loop, t->sets, loop_now(t->f->loop));
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
	/* equal: in the order in which they were set */
	timer_set(f->loop, &t[1].timer, now + 2000);
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
	until(f, &t[3].fired);
	assert_string_equal(log, "abcd");
}

/* ---- works ---- */

struct job {
	struct work work;
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
		until(f, &j[i].done);
		assert_int_equal(j[i].out, 2 * i);
	}
}

static void a_work_that_has_not_begun_can_be_cancelled(void **state)
{
	struct fix *f = *state;
	pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
	struct job j[2];

	for (int i = 0; i < 2; i++)
		j[i] = (struct job){ .work = { .op.done = job_done, .call = job_call }, .in = 1,
			.gate = &gate };
	pthread_mutex_lock(&gate);
	pool_run(f->loop, &j[0].work); /* keeps the only thread busy */
	pool_run(f->loop, &j[1].work);
	op_cancel(f->loop, &j[1].work.op);
	until(f, &j[1].done);
	pthread_mutex_unlock(&gate);
	assert_int_equal(j[1].out, -ECANCELED);
	until(f, &j[0].done);
	assert_int_equal(j[0].out, 2);
	op_cancel(f->loop, &j[0].work.op);
}

/* ---- real engines only ---- */

#define POSTERS 4u
#define POSTS 500u

struct poster_item {
	struct post post;
	struct poster *poster;
};

struct poster {
	struct fix *f;
	struct poster_item item[POSTS];
	unsigned ran;
	bool end;
};

static void poster_run(struct post *post)
{
	struct poster *p = CONTAINER_OF(post, struct poster_item, post)->poster;

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
	assert_int_equal(loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 1),
			 -EADDRINUSE);
	loop_close_fd(f->loop, fd); /* the file stays, as after a kill */
	fd = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 1);
	assert_true(fd >= 0);
	loop_close_fd(f->loop, fd);
	unlink(text + 5);
	/* somebody's file is never removed */
	file = open(text + 5, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	assert_int_equal(loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 1),
			 -EADDRINUSE);
	close(file);
	unlink(text + 5);
}

/* ---- the choice of an engine ---- */

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

static const struct engine_test per_engine[] = {
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

int main(void)
{
	static const struct CMUnitTest plain[] = {
		cmocka_unit_test(a_fallback_to_epoll_is_announced_with_the_reason),
	};

	return engines_run("loop", plain, ARRAY_LEN(plain), per_engine, ARRAY_LEN(per_engine));
}
