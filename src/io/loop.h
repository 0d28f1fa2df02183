/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop: completions, timers and posts for one thread. Three engines behind one interface:
 * io_uring, epoll (with a thread pool for files), and a simulation with its own clock, network and
 * storage.
 *
 * Rules.
 *  1. One thread runs a loop and everything that belongs to it; only loop_post() and loop_call()
 *     may be called from elsewhere.
 *  2. An op completes exactly once, always from loop_step(), never from within op_*() or
 *     op_cancel().
 *  3. The memory of an op, and the buffers it names, belong to the loop from op_*() until its
 *     done() is called. done() may free or reuse the op at once.
 *  4. op_cancel() asks; the op then completes with -ECANCELED, or with its result when that came
 *     first.
 *  5. Callbacks never run the loop. Set-up code, which is outside of callbacks, may
 *     (loop_run_until).
 *  6. loop_close() requires that no op is pending and no timer is set.
 *  7. The thread that takes the first step owns the loop from then on (the kernel binds a ring
 *     to its thread). It gives the loop up with loop_detach(), or by the end of loop_run(); then
 *     the next step may be another's.
 */
#ifndef REMORA_IO_LOOP_H
#define REMORA_IO_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "base/env.h"
#include "base/err.h"
#include "base/list.h"

struct loop;
struct pool;

enum loop_engine {
	LOOP_AUTO,  /* io_uring where it works, else epoll, announced in the log */
	LOOP_URING, /* or an error */
	LOOP_EPOLL,
	LOOP_SIM,
};

struct loop_options {
	enum loop_engine engine;
	/* borrowed for the loop's life; NULL = a real one of the loop's own */
	struct env *env;
	unsigned pool_threads; /* for calls that can only block; 0 = 4 */
	struct sim *sim;      /* LOOP_SIM only: the world that this loop lives in (io/sim.h) */
};

MUST_USE int loop_open(struct loop **ret, const struct loop_options *options, struct err *e);
void loop_close(struct loop *loop);

struct env *loop_env(struct loop *loop);
const char *loop_engine_name(const struct loop *loop); /* "io_uring", "epoll", "sim" */

/* The time of this iteration, ns; loop_now_fresh() asks the clock again. */
uint64_t loop_now(const struct loop *loop);
uint64_t loop_now_fresh(struct loop *loop);

/* ---- running ---- */

/* Waits for at most one batch of events (until `until_ns`, NEVER_NS = as long as it takes), runs
 * their callbacks. 0, or -errno when the engine itself broke. In a simulation -EDEADLK: nothing can
 * ever happen any more. */
MUST_USE int loop_step(struct loop *loop, uint64_t until_ns);

/* Until loop_stop(). Then the loop is detached. */
MUST_USE int loop_run(struct loop *loop);

/* The owner only, outside of callbacks: whoever takes the next step owns the loop. What is pending
 * stays so. */
MUST_USE int loop_detach(struct loop *loop);
void loop_stop(struct loop *loop);

/* Set-up code only: steps until *flag is true or the time comes (-ETIMEDOUT). */
MUST_USE int loop_run_until(struct loop *loop, const bool *flag, uint64_t until_ns);

/* ---- posts: work handed to the loop's thread ---- */

struct post {
	struct link link;
	void (*run)(struct post *post);
};

/* Any thread. `post` is borrowed until run() is called; posting one that is queued already is a
 * CHECK. */
void loop_post(struct loop *loop, struct post *post);

/* The loop's thread only: run() is called later in this iteration, or in the next, before the loop
 * waits. */
void loop_defer(struct loop *loop, struct post *post);

/* Any thread: runs fn(arg) on the loop's thread and waits for its end. Not from the loop's own
 * thread while it runs the loop. */
void loop_call(struct loop *loop, void (*fn)(void *arg), void *arg);

/* ---- timers ---- */

struct timer {
	void (*fire)(struct timer *timer);
	uint64_t at_ns;
	size_t heap_at; /* place in the heap + 1; 0 = not set */
};

void timer_set(struct loop *loop, struct timer *timer, uint64_t at_ns); /* sets or moves */
void timer_clear(struct loop *loop, struct timer *timer);		/* safe when not set */
static inline bool timer_is_set(const struct timer *timer)
{
	return timer->heap_at != 0;
}

/* ---- operations ---- */

enum op_kind {
	OP_NONE, /* not in flight */
	OP_RECV,
	OP_SEND,
	OP_ACCEPT,
	OP_CONNECT,
	OP_POLL,
	OP_READ,
	OP_WRITE,
	OP_SYNC,
	OP_ALLOCATE,
	OP_WORK, /* a blocking call on the pool: io/pool.h */
};

struct op {
	/* res: bytes or fd >= 0, or -errno; 0 at the end of a stream */
	void (*done)(struct op *op, int res);
	/* the loop's */
	enum op_kind kind;
	int fd;
	uint64_t off;
	void *buf;
	size_t len;
	unsigned flags;
	struct msghdr msg;
	struct iovec iov_small[2];
	struct sockaddr_storage addr;
	socklen_t addr_len;
	struct link link;
	size_t moved;	     /* bytes so far, of an op that repeats */
	int res;	     /* kept from the end of the op until done() */
	unsigned char where; /* enum op_where of loop_int.h */
	void *engine;	     /* engine's own */
	uint64_t engine_word;
};

static inline bool op_pending(const struct op *op)
{
	return op->kind != OP_NONE;
}

/* Sockets: at least one byte, or 0 at the end (recv). send never raises SIGPIPE. op_send_all and
 * op_recv_all repeat until everything is moved; a stream that ends inside completes recv_all with
 * -ECONNRESET and 0 bytes moved before it with 0. */
void op_recv(struct loop *loop, struct op *op, int fd, void *buf, size_t len);
void op_recv_all(struct loop *loop, struct op *op, int fd, void *buf, size_t len);
void op_send_all(struct loop *loop, struct op *op, int fd, const void *buf, size_t len);

/* iov is borrowed and CHANGED while the op runs; at most IOV_MAX entries. */
void op_sendv_all(struct loop *loop, struct op *op, int fd, struct iovec *iov, int iov_count);
void op_recvv(struct loop *loop, struct op *op, int fd, struct iovec *iov, int iov_count);

void op_accept(struct loop *loop, struct op *op, int fd);
void op_connect(struct loop *loop, struct op *op, int fd, const struct sockaddr *addr,
		socklen_t len);

/* Completes when `events` (POLLIN ...) are ready; res = the events. Real engines only. */
void op_poll(struct loop *loop, struct op *op, int fd, unsigned events);

/* Files: res may be short. op_sync makes data (and the size) durable. op_allocate: mode as
 * fallocate(2). */
void op_read(struct loop *loop, struct op *op, int fd, void *buf, size_t len, uint64_t off);
void op_write(struct loop *loop, struct op *op, int fd, const void *buf, size_t len, uint64_t off);
void op_sync(struct loop *loop, struct op *op, int fd);
void op_allocate(struct loop *loop, struct op *op, int fd, int mode, uint64_t off, uint64_t len);

void op_cancel(struct loop *loop, struct op *op); /* safe when not pending */

/* ---- descriptors, so that a simulation can make its own. Set-up calls; they do not block. ---- */

/* stream socket, non-blocking, cloexec; or -errno */
int loop_socket(struct loop *loop, int domain);
/* fd or -errno */
int loop_listen(struct loop *loop, const struct sockaddr *addr, socklen_t len, int backlog);
int loop_socketpair(struct loop *loop, int ret_fd[2]);	 /* 0 or -errno */
int loop_sockname(struct loop *loop, int fd, struct sockaddr_storage *ret, socklen_t *ret_len);
int loop_open_file(struct loop *loop, const char *path, int flags, mode_t mode); /* fd or -errno */
int loop_file_size(struct loop *loop, int fd, uint64_t *ret);
/* What no op uses any more. Every descriptor that an op ran on is closed with this: an engine
 * remembers it, and would mistake the next file that gets its number for the former one. A pending
 * op on it is a CHECK in the simulation and an error of the caller's anywhere: cancel first, close
 * when it has completed. */
void loop_close_fd(struct loop *loop, int fd);

struct pool *loop_pool(struct loop *loop);

#endif
