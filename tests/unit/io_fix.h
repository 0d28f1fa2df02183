/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the loop share: a loop of each engine, ops that are waited for, and the runner.
 */
#ifndef REMORA_TESTS_IO_FIX_H
#define REMORA_TESTS_IO_FIX_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "io/sim.h"

#define PATIENCE_NS (60 * NS_PER_S)

struct fix {
	enum loop_engine engine;
	unsigned pool_threads;
	struct loop *loop;
	struct sim *sim;
	char dir[64];
};

static inline int setup(void **state)
{
	struct fix *f = *state;
	struct loop_options o = { .engine = f->engine, .pool_threads = f->pool_threads };

	if (f->engine == LOOP_SIM) {
		assert_int_equal(sim_open(&f->sim, 1), 0);
		sim_net(f->sim)->delay_max_ns = NS_PER_MS;
		sim_disk(f->sim)->delay_max_ns = NS_PER_MS;
		o.sim = f->sim;
	}
	snprintf(f->dir, sizeof(f->dir), "/tmp/remora-io.XXXXXX");
	return !mkdtemp(f->dir) || loop_open(&f->loop, &o, NULL);
}

static inline int teardown(void **state)
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

static inline void wait_done(struct op *op, int res)
{
	struct wait *w = CONTAINER_OF(op, struct wait, op);

	assert_false(w->done); /* exactly once */
	assert_false(op_pending(op));
	w->done = true;
	w->res = res;
	if (w->counter)
		w->order = (*w->counter)++;
}

static inline struct op *wait_op(struct wait *w)
{
	*w = (struct wait){ .op.done = wait_done };
	return &w->op;
}

static inline void until(struct fix *f, const bool *flag)
{
	uint64_t late_ns = loop_now_fresh(f->loop) + PATIENCE_NS;

	assert_int_equal(loop_run_until(f->loop, flag, late_ns), 0);
}

static inline int finish(struct fix *f, struct wait *w)
{
	until(f, &w->done);
	return w->res;
}

static inline void send_text(struct fix *f, int fd, const char *text)
{
	struct wait w;

	op_send_all(f->loop, wait_op(&w), fd, text, strlen(text));
	assert_false(w.done); /* never from within */
	assert_int_equal(finish(f, &w), strlen(text));
}

static inline void pair_open(struct fix *f, int fd[2])
{
	assert_int_equal(loop_socketpair(f->loop, fd), 0);
}

static inline void pair_close(struct fix *f, const int fd[2])
{
	loop_close_fd(f->loop, fd[0]);
	loop_close_fd(f->loop, fd[1]);
}

/* One test, run on both real engines and, when `sim` is set, in the simulation too. */
struct engine_test {
	const char *name;
	CMUnitTestFunction fn;
	bool sim;
};

#define SHARED(name) { #name, name, true }
#define REAL(name) { #name, name, false }
#define ENGINES 3u
#define ENGINE_TESTS_MAX 40u

static inline bool engine_works(enum loop_engine engine)
{
	struct loop_options o = { .engine = engine };
	struct loop *loop;

	if (loop_open(&loop, &o, NULL))
		return false;
	loop_close(loop);
	return true;
}

static inline void io_uring_is_not_allowed_here(void **state)
{
	(void)state;
	skip();
}

/* Runs the tests that need no engine, then the others on each. */
static inline int engines_run(const char *group, const struct CMUnitTest *plain, size_t plain_count,
			      const struct engine_test *each, size_t each_count)
{
	static const char *const engine_names[ENGINES] = { "epoll", "io_uring", "sim" };
	static const enum loop_engine engines[ENGINES] = { LOOP_EPOLL, LOOP_URING, LOOP_SIM };
	static char names[ENGINES][ENGINE_TESTS_MAX][128];
	static struct CMUnitTest tests[ENGINES * ENGINE_TESTS_MAX];
	static struct fix fix[ENGINES];
	size_t n = plain_count;

	assert_true(plain_count + ENGINES * each_count <= ARRAY_LEN(tests));
	for (size_t i = 0; i < plain_count; i++)
		tests[i] = plain[i];
	for (size_t i = 0; i < ENGINES; i++) {
		fix[i] = (struct fix){ .engine = engines[i], .pool_threads = 1 };
		if (engines[i] == LOOP_URING && !engine_works(LOOP_URING)) {
			tests[n].name = "io_uring_is_not_allowed_here";
			tests[n++].test_func = io_uring_is_not_allowed_here;
			continue;
		}
		for (size_t j = 0; j < each_count; j++) {
			if (engines[i] == LOOP_SIM && !each[j].sim)
				continue;
			snprintf(names[i][j], sizeof(names[i][j]), "%s: %s", engine_names[i],
				 each[j].name);
			tests[n++] = (struct CMUnitTest){ names[i][j], each[j].fn, setup, teardown,
							  &fix[i] };
		}
	}
	return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
}

#endif
