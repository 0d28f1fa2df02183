/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the loop: what loop.c, the engines and the pool share. Nothing outside of src/io
 * includes it.
 */
#ifndef REMORA_IO_LOOP_INT_H
#define REMORA_IO_LOOP_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "io/loop.h"
#include "io/pool.h"

/* Where a pending op is; who may touch it follows from that. */
enum op_where {
	AT_ENGINE, /* the engine's own: the kernel, or the simulated world */
	AT_FD,	   /* in a queue of its descriptor (struct fdq), loop thread */
	AT_POOL,   /* the pool's, which has its own lock */
	AT_DONE,   /* on loop->completed: only done() is missing */
};

/* op->engine_word of ops on real descriptors. */
#define OPW_CONNECTING 1u /* connect: under way, wait until writable */
#define OPW_KERNEL 2u	  /* uring: submitted, a completion will come */
#define OPW_CANCEL 4u	  /* uring: its cancellation was asked for */
#define OPW_POLLING 8u	  /* uring: what was submitted is a poll in its place */
#define OPW_BACKLOG 16u	  /* uring: on the list of those that found no room */

/* op->flags of streams. */
#define STREAM_ALL 1u /* repeat until everything is moved */

struct fdq;

struct engine {
	const char *name;
	int (*open)(struct loop *loop, const struct loop_options *options, struct err *e);
	void (*close)(struct loop *loop);
	/* The op is filled and counted; submit() makes sure that loop_complete() is called once,
	 * now or later. */
	void (*submit)(struct loop *loop, struct op *op);
	void (*cancel)(struct loop *loop, struct op *op); /* pending, and not AT_DONE */
	int (*detach)(struct loop *loop); /* may be NULL */
	/* A connect at the head of q->writes is due for another try. */
	void (*retry)(struct loop *loop, struct fdq *q);
	/* Real engines: collects events into loop->completed; waits when until_ns is in the future.
	 */
	int (*wait)(struct loop *loop, uint64_t until_ns);
	/* The simulation: all of a step, in place of wait(). */
	int (*step)(struct loop *loop, uint64_t until_ns);
	int (*fd_socket)(struct loop *loop, int domain);
	int (*fd_listen)(struct loop *loop, const struct sockaddr *addr, socklen_t len,
			 int backlog);
	int (*fd_pair)(struct loop *loop, int ret_fd[2]);
	int (*fd_name)(struct loop *loop, int fd, struct sockaddr_storage *ret, socklen_t *ret_len);
	int (*fd_open)(struct loop *loop, const char *path, int flags, mode_t mode);
	int (*fd_size)(struct loop *loop, int fd, uint64_t *ret);
	void (*fd_close)(struct loop *loop, int fd);
};

extern const struct engine engine_epoll, engine_uring, engine_sim;

struct timer_slot {
	uint64_t at_ns;
	uint64_t seq; /* equal times fire in the order in which they were set */
	struct timer *timer;
};

struct timer_heap {
	struct timer_slot *slot;
	size_t len, cap;
	uint64_t seq; /* of the next one that is set */
};

/* What a real loop knows of one descriptor. Only the first op of `reads` and of `writes` is being
 * worked on. */
struct fdq {
	int fd;
	struct list reads, writes, polls; /* ops */
	/* on loop->retries: a connect that must be tried again later */
	struct link retry;
	/* epoll: the events that the kernel was told to watch, 0 = unknown to it */
	unsigned armed;
	bool readable, writable;	  /* epoll: worth a try */
	/* epoll: the other side has ended; no further edge will tell */
	bool hup;
	bool nonblock;			  /* known to be O_NONBLOCK */
};

#define FDQ_PAGE 64u

struct loop {
	const struct engine *engine;
	void *state; /* engine's own */
	struct env *env, own_env;
	const uint64_t *now; /* &now_ns, or the simulated clock */
	uint64_t now_ns;
	struct list completed; /* ops whose done() is to be called */
	struct list deferred;  /* posts of the loop's thread, and those fetched from `posts` */
	size_t pending;	       /* ops */
	unsigned busy_steps;   /* steps since the engine was last asked */
	bool must_enter;       /* the engine holds submissions back */
	bool stepping, stop;
	bool owned;
	pthread_t owner; /* valid while owned */

	struct timer_heap timers;

	/* Other threads' side. */
	pthread_mutex_t posts_lock;
	struct list posts;	 /* under posts_lock */
	atomic_bool posts_ready; /* posts is not empty */
	atomic_bool sleeping;	 /* a poster must write to wake_fd; whoever clears it, does */
	atomic_uint posters;	 /* threads inside loop_post() */
	int wake_fd;		 /* never read: its edges are what counts */

	struct pool *pool;
	struct fdq **fdqs; /* pages of FDQ_PAGE, by descriptor */
	size_t fdqs_len;
	struct list retries; /* fdqs */
	struct timer retry_timer;
};

static inline struct op *op_of(struct link *k)
{
	return LIST_ENTRY(k, struct op, link);
}

/* ---- loop.c ---- */

void op_begin(struct loop *loop, struct op *op, enum op_kind kind, int fd);
/* The op ends with res; done() is called by the next step. Loop thread. */
void loop_complete(struct loop *loop, struct op *op, int res);
/* One batch of what is ready: completions, due timers, posts. */
void loop_run_ready(struct loop *loop);
bool loop_has_ready(struct loop *loop);
uint64_t loop_timer_next(const struct loop *loop); /* NEVER_NS when there is none */
/* Everything but the engine; also what a simulated crash ends with. */
void loop_free(struct loop *loop);

/* ---- timer.c ---- */

uint64_t heap_next(const struct timer_heap *h); /* NEVER_NS when empty */
void heap_set(struct timer_heap *h, struct timer *timer, uint64_t at_ns);
void heap_clear(struct timer_heap *h, struct timer *timer);
/* Takes out the first, if it is due and was set before `seq_end`; or NULL. */
struct timer *heap_take(struct timer_heap *h, uint64_t now_ns, uint64_t seq_end);
void heap_done(struct timer_heap *h);

/* ---- loop_fd.c ---- */

/* NULL when there is no memory or fd is negative. */
struct fdq *fdq_get(struct loop *loop, int fd);
/* The descriptor is new, or gone: what was known is void. */
void fdq_forget(struct loop *loop, int fd);
void fdq_free_all(struct loop *loop);
/* The system call for a stream op, without waiting: its result or -errno (-EAGAIN: must wait). */
int fd_try(struct loop *loop, struct fdq *q, struct op *op);
/* Takes a result; true when the op has ended (and is out of its queue), false when it wants another
 * turn. */
bool fd_feed(struct loop *loop, struct op *op, int res);
bool op_is_write_side(const struct op *op);
/* A file op, blocking: for the pool. */
int file_call(const struct op *op);

int real_socket(struct loop *loop, int domain);
int real_listen(struct loop *loop, const struct sockaddr *addr, socklen_t len, int backlog);
int real_pair(struct loop *loop, int ret_fd[2]);
int real_name(struct loop *loop, int fd, struct sockaddr_storage *ret, socklen_t *ret_len);
int real_open(struct loop *loop, const char *path, int flags, mode_t mode);
int real_size(struct loop *loop, int fd, uint64_t *ret);

/* ---- pool.c ---- */

MUST_USE int pool_open(struct pool **ret, struct loop *loop, unsigned threads_max);
void pool_close(struct pool *pool);
void pool_submit(struct pool *pool, struct op *op);
void pool_cancel(struct pool *pool, struct op *op);

#endif
