/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine-independent part of the loop: steps, timers, posts, and the constructors of
 * operations.
 *
 * Place: everything asynchronous runs on it. An op goes op_*() -> engine->submit() -> ... ->
 * loop_complete() -> loop->completed -> done(). An engine never calls done() itself, so no callback
 * runs inside of another one.
 *
 * Invariants: an op with kind != OP_NONE is counted in loop->pending and is in exactly one place
 * (op->where). A step runs one batch: completions first (so that an op which made it is not beaten
 * by its own time-out), due timers, then posts. What callbacks add waits for the next step, which
 * then does not sleep.
 *
 * Locking: one thread runs the loop. Posts cross over under posts_lock. `sleeping` and
 * `posts_ready` are a Dekker pair: the loop says that it sleeps and then looks for posts, a poster
 * adds and then looks for a sleeper; so one of them sees the other, and a wake-up costs a system
 * call only when the loop really sleeps.
 */
#include "io/loop_int.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "config.h"

#define BUSY_STEPS_MAX 8u /* a loop that is never idle still asks its engine that often */

/* ---- life ---- */

static int engine_start(struct loop *loop, const struct engine *engine,
			const struct loop_options *o, struct err *e)
{
	loop->engine = engine;
	return engine->open(loop, o, e);
}

static int engine_choose(struct loop *loop, const struct loop_options *o, struct err *e)
{
	switch (o->engine) {
	case LOOP_EPOLL:
		return engine_start(loop, &engine_epoll, o, e);
	case LOOP_SIM:
		return engine_start(loop, &engine_sim, o, e);
	case LOOP_URING:
#if HAVE_LIBURING
		return engine_start(loop, &engine_uring, o, e);
#else
		return err_set(e, -ENOTSUP, "this build has no io_uring (it was configured without liburing)");
#endif
	case LOOP_AUTO:
		break;
	}
#if HAVE_LIBURING
	struct err why = { 0 };

	if (engine_start(loop, &engine_uring, o, &why) == 0)
		return 0;
	log_warn(&loop->env->log, "loop: epoll is used in place of io_uring: %s", why.text);
#else
	log_warn(&loop->env->log, "loop: epoll is used: this build has no io_uring");
#endif
	return engine_start(loop, &engine_epoll, o, e);
}

static void retry_connects(struct timer *timer);

int loop_open(struct loop **ret, const struct loop_options *options, struct err *e)
{
	struct loop *loop = calloc(1, sizeof(*loop));
	int err;

	*ret = NULL;
	if (!loop)
		return err_sys(e, -ENOMEM, "opening an event loop");
	loop->env = options->env;
	if (!loop->env) {
		env_init(&loop->own_env);
		loop->env = &loop->own_env;
	}
	loop->now = &loop->now_ns;
	list_init(&loop->completed);
	list_init(&loop->deferred);
	list_init(&loop->posts);
	list_init(&loop->retries);
	loop->retry_timer.fire = retry_connects;
	pthread_mutex_init(&loop->posts_lock, NULL);
	loop->wake_fd = -1;
	loop->now_ns = env_now(loop->env);
	if (options->engine != LOOP_SIM) {
		loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (loop->wake_fd < 0) {
			err = err_sys(e, -errno, "opening an event loop");
			goto fail;
		}
		unsigned threads = options->pool_threads ? options->pool_threads : 4;

		err = pool_open(&loop->pool, loop, threads);
		if (err) {
			err_sys(e, err, "opening an event loop");
			goto fail;
		}
	}
	err = engine_choose(loop, options, e);
	if (err)
		goto fail;
	*ret = loop;
	return 0;
fail:
	loop_free(loop);
	return err;
}

void loop_free(struct loop *loop)
{
	pool_close(loop->pool);
	fdq_free_all(loop);
	/* A poster may still be on its way out of loop_post(), behind a post that has run already.
	 */
	while (atomic_load(&loop->posters))
		sched_yield();
	pthread_mutex_destroy(&loop->posts_lock);
	if (loop->wake_fd >= 0)
		close(loop->wake_fd);
	heap_done(&loop->timers);
	free(loop);
}

void loop_close(struct loop *loop)
{
	if (!loop)
		return;
	CHECK(!loop->stepping);
	CHECK(loop->pending == 0);
	timer_clear(loop, &loop->retry_timer);
	CHECK(loop->timers.len == 0);
	CHECK(list_empty(&loop->deferred) && list_empty(&loop->posts));
	loop->engine->close(loop);
	loop_free(loop);
}

struct env *loop_env(struct loop *loop)
{
	return loop->env;
}

const char *loop_engine_name(const struct loop *loop)
{
	return loop->engine->name;
}

struct pool *loop_pool(struct loop *loop)
{
	return loop->pool;
}

uint64_t loop_now(const struct loop *loop)
{
	return *loop->now;
}

uint64_t loop_now_fresh(struct loop *loop)
{
	if (loop->now == &loop->now_ns)
		loop->now_ns = env_now(loop->env);
	return *loop->now;
}

/* ---- steps ---- */

bool loop_has_ready(struct loop *loop)
{
	return !list_empty(&loop->completed) || !list_empty(&loop->deferred) ||
	       atomic_load(&loop->posts_ready);
}

static int engine_wait(struct loop *loop, uint64_t until_ns)
{
	bool ready = loop_has_ready(loop);
	uint64_t deadline = ready ? 0 : MIN(until_ns, loop_timer_next(loop));
	int err;

	if (deadline) {
		atomic_store(&loop->sleeping, true);
		if (atomic_load(&loop->posts_ready))
			deadline = 0;
	}
	err = loop->engine->wait(loop, deadline);
	atomic_store_explicit(&loop->sleeping, false, memory_order_relaxed);
	return err;
}

int loop_step(struct loop *loop, uint64_t until_ns)
{
	int err = 0;

	CHECK(!loop->stepping); /* rule 5 */
	if (loop->engine->step)
		return loop->engine->step(loop, until_ns);
	CHECK(!loop->owned || pthread_equal(loop->owner, pthread_self())); /* rule 7 */
	loop->stepping = loop->owned = true;
	loop->owner = pthread_self();
	if (loop->must_enter || !loop_has_ready(loop) || ++loop->busy_steps >= BUSY_STEPS_MAX) {
		loop->busy_steps = 0;
		err = engine_wait(loop, until_ns);
	}
	loop->now_ns = env_now(loop->env);
	loop_run_ready(loop);
	loop->stepping = false;
	return err;
}

static void run_completed(struct loop *loop)
{
	struct list batch;
	struct link *k;

	list_init(&batch);
	list_splice_back(&batch, &loop->completed);
	while ((k = list_pop_front(&batch))) {
		struct op *op = op_of(k);

		CHECK(op->where == AT_DONE && op->kind != OP_NONE);
		op->kind = OP_NONE;
		loop->pending--;
		op->done(op, op->res); /* may free or reuse it */
	}
}

static void run_timers(struct loop *loop);

static void run_posts(struct loop *loop)
{
	struct list batch;
	struct link *k;

	if (atomic_load_explicit(&loop->posts_ready, memory_order_relaxed)) {
		pthread_mutex_lock(&loop->posts_lock);
		list_splice_back(&loop->deferred, &loop->posts);
		atomic_store(&loop->posts_ready, false);
		pthread_mutex_unlock(&loop->posts_lock);
	}
	list_init(&batch);
	list_splice_back(&batch, &loop->deferred);
	while ((k = list_pop_front(&batch))) {
		struct post *post = LIST_ENTRY(k, struct post, link);

		post->run(post);
	}
}

void loop_run_ready(struct loop *loop)
{
	run_completed(loop);
	run_timers(loop);
	run_posts(loop);
}

int loop_run(struct loop *loop)
{
	int err = 0;

	while (!err && !loop->stop)
		err = loop_step(loop, NEVER_NS);
	loop->stop = false;
	return err ? err : loop_detach(loop);
}

int loop_detach(struct loop *loop)
{
	int err = 0;

	CHECK(!loop->stepping);
	if (loop->owned && loop->engine->detach) {
		CHECK(pthread_equal(loop->owner, pthread_self()));
		err = loop->engine->detach(loop);
	}
	loop->owned = false;
	return err;
}

void loop_stop(struct loop *loop)
{
	loop->stop = true;
}

int loop_run_until(struct loop *loop, const bool *flag, uint64_t until_ns)
{
	while (!*flag) {
		int err;

		if (until_ns != NEVER_NS && loop_now_fresh(loop) >= until_ns)
			return -ETIMEDOUT;
		err = loop_step(loop, until_ns);
		if (err)
			return err;
	}
	return 0;
}

/* ---- posts ---- */

void loop_post(struct loop *loop, struct post *post)
{
	const uint64_t one = 1;

	atomic_fetch_add(&loop->posters, 1);
	pthread_mutex_lock(&loop->posts_lock);
	list_push_back(&loop->posts, &post->link);
	atomic_store(&loop->posts_ready, true);
	pthread_mutex_unlock(&loop->posts_lock);
	if (atomic_load(&loop->sleeping) && atomic_exchange(&loop->sleeping, false)) {
		/* It can fail only with a counter that 2^64 wake-ups have filled. */
		ssize_t n = write(loop->wake_fd, &one, sizeof(one));

		CHECK(n == sizeof(one));
	}
	atomic_fetch_sub(&loop->posters, 1); /* the last touch: loop_free() waits for it */
}

void loop_defer(struct loop *loop, struct post *post)
{
	list_push_back(&loop->deferred, &post->link);
}

struct call {
	struct post post;
	void (*fn)(void *arg);
	void *arg;
	pthread_mutex_t lock;
	pthread_cond_t ended;
	bool end;
};

static void call_run(struct post *post)
{
	struct call *call = CONTAINER_OF(post, struct call, post);

	call->fn(call->arg);
	pthread_mutex_lock(&call->lock);
	call->end = true;
	pthread_cond_signal(&call->ended);
	pthread_mutex_unlock(&call->lock);
}

void loop_call(struct loop *loop, void (*fn)(void *arg), void *arg)
{
	struct call call = { .post.run = call_run, .fn = fn, .arg = arg };

	if (loop->engine->step) { /* the simulation has one thread */
		fn(arg);
		return;
	}
	pthread_mutex_init(&call.lock, NULL);
	pthread_cond_init(&call.ended, NULL);
	loop_post(loop, &call.post);
	pthread_mutex_lock(&call.lock);
	while (!call.end)
		pthread_cond_wait(&call.ended, &call.lock);
	pthread_mutex_unlock(&call.lock);
	pthread_cond_destroy(&call.ended);
	pthread_mutex_destroy(&call.lock);
}

/* ---- timers ---- */

uint64_t loop_timer_next(const struct loop *loop)
{
	return heap_next(&loop->timers);
}

void timer_set(struct loop *loop, struct timer *timer, uint64_t at_ns)
{
	heap_set(&loop->timers, timer, at_ns);
}

void timer_clear(struct loop *loop, struct timer *timer)
{
	heap_clear(&loop->timers, timer);
}

static void run_timers(struct loop *loop)
{
	uint64_t seq_end = loop->timers.seq;
	struct timer *timer;

	/* One that a callback sets for a time in the past fires in the next step: a step always
	 * ends. */
	while ((timer = heap_take(&loop->timers, *loop->now, seq_end)))
		timer->fire(timer);
}

static void retry_connects(struct timer *timer)
{
	struct loop *loop = CONTAINER_OF(timer, struct loop, retry_timer);
	struct list batch;
	struct link *k;

	list_init(&batch);
	list_splice_back(&batch, &loop->retries);
	while ((k = list_pop_front(&batch))) {
		struct fdq *q = LIST_ENTRY(k, struct fdq, retry);

		if (!list_empty(&q->writes))
			loop->engine->retry(loop, q);
	}
}

/* ---- operations ---- */

void op_begin(struct loop *loop, struct op *op, enum op_kind kind, int fd)
{
	CHECK(op->kind == OP_NONE);
	CHECK(op->done);
	op->kind = kind;
	op->fd = fd;
	op->flags = 0;
	op->len = op->moved = 0;
	op->engine = NULL;
	op->engine_word = 0;
	op->where = AT_ENGINE;
	loop->pending++;
}

void loop_complete(struct loop *loop, struct op *op, int res)
{
	CHECK(op->kind != OP_NONE && op->where != AT_DONE);
	op->res = res;
	op->where = AT_DONE;
	list_push_back(&loop->completed, &op->link);
}

static void stream_begin(struct loop *loop, struct op *op, enum op_kind kind, int fd,
			 struct iovec *iov, int iov_count, unsigned flags)
{
	size_t len = 0;

	CHECK(iov_count >= 0 && iov_count <= IOV_MAX);
	op_begin(loop, op, kind, fd);
	for (int i = 0; i < iov_count; i++) {
		CHECK(iov[i].iov_len <= INT_MAX - len); /* the result is an int */
		len += iov[i].iov_len;
	}
	op->len = len;
	op->flags = flags;
	op->msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = (size_t)iov_count };
	if (!len)
		loop_complete(loop, op, 0);
	else
		loop->engine->submit(loop, op);
}

static void stream_begin_one(struct loop *loop, struct op *op, enum op_kind kind, int fd, void *buf,
			     size_t len, unsigned flags)
{
	op->iov_small[0] = (struct iovec){ buf, len };
	stream_begin(loop, op, kind, fd, op->iov_small, 1, flags);
}

void op_recv(struct loop *loop, struct op *op, int fd, void *buf, size_t len)
{
	stream_begin_one(loop, op, OP_RECV, fd, buf, len, 0);
}

void op_recv_all(struct loop *loop, struct op *op, int fd, void *buf, size_t len)
{
	stream_begin_one(loop, op, OP_RECV, fd, buf, len, STREAM_ALL);
}

void op_send_all(struct loop *loop, struct op *op, int fd, const void *buf, size_t len)
{
	stream_begin_one(loop, op, OP_SEND, fd, (void *)(uintptr_t)buf, len, STREAM_ALL);
}

void op_sendv_all(struct loop *loop, struct op *op, int fd, struct iovec *iov, int iov_count)
{
	stream_begin(loop, op, OP_SEND, fd, iov, iov_count, STREAM_ALL);
}

void op_recvv(struct loop *loop, struct op *op, int fd, struct iovec *iov, int iov_count)
{
	stream_begin(loop, op, OP_RECV, fd, iov, iov_count, 0);
}

void op_accept(struct loop *loop, struct op *op, int fd)
{
	op_begin(loop, op, OP_ACCEPT, fd);
	loop->engine->submit(loop, op);
}

void op_connect(struct loop *loop, struct op *op, int fd, const struct sockaddr *addr,
		socklen_t len)
{
	op_begin(loop, op, OP_CONNECT, fd);
	CHECK(len <= sizeof(op->addr));
	memcpy(&op->addr, addr, len);
	op->addr_len = len;
	loop->engine->submit(loop, op);
}

void op_poll(struct loop *loop, struct op *op, int fd, unsigned events)
{
	op_begin(loop, op, OP_POLL, fd);
	op->flags = events;
	loop->engine->submit(loop, op);
}

static void file_begin(struct loop *loop, struct op *op, enum op_kind kind, int fd, void *buf,
		       size_t len, uint64_t off)
{
	op_begin(loop, op, kind, fd);
	op->buf = buf;
	op->len = MIN(len, (size_t)1 << 30); /* the result is an int, and may be short */
	op->off = off;
	loop->engine->submit(loop, op);
}

void op_read(struct loop *loop, struct op *op, int fd, void *buf, size_t len, uint64_t off)
{
	file_begin(loop, op, OP_READ, fd, buf, len, off);
}

void op_write(struct loop *loop, struct op *op, int fd, const void *buf, size_t len, uint64_t off)
{
	file_begin(loop, op, OP_WRITE, fd, (void *)(uintptr_t)buf, len, off);
}

void op_sync(struct loop *loop, struct op *op, int fd)
{
	file_begin(loop, op, OP_SYNC, fd, NULL, 0, 0);
}

void op_allocate(struct loop *loop, struct op *op, int fd, int mode, uint64_t off, uint64_t len)
{
	op_begin(loop, op, OP_ALLOCATE, fd);
	op->flags = (unsigned)mode;
	op->off = off;
	op->len = len;
	loop->engine->submit(loop, op);
}

void op_cancel(struct loop *loop, struct op *op)
{
	if (op->kind == OP_NONE || op->where == AT_DONE)
		return;
	loop->engine->cancel(loop, op);
}

/* ---- descriptors ---- */

int loop_socket(struct loop *loop, int domain)
{
	return loop->engine->fd_socket(loop, domain);
}

int loop_listen(struct loop *loop, const struct sockaddr *addr, socklen_t len, int backlog)
{
	return loop->engine->fd_listen(loop, addr, len, backlog);
}

int loop_socketpair(struct loop *loop, int ret_fd[2])
{
	return loop->engine->fd_pair(loop, ret_fd);
}

int loop_sockname(struct loop *loop, int fd, struct sockaddr_storage *ret, socklen_t *ret_len)
{
	return loop->engine->fd_name(loop, fd, ret, ret_len);
}

int loop_open_file(struct loop *loop, const char *path, int flags, mode_t mode)
{
	return loop->engine->fd_open(loop, path, flags, mode);
}

int loop_file_size(struct loop *loop, int fd, uint64_t *ret)
{
	return loop->engine->fd_size(loop, fd, ret);
}

void loop_close_fd(struct loop *loop, int fd)
{
	if (fd >= 0)
		loop->engine->fd_close(loop, fd);
}
