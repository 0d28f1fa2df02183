/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The epoll engine: sockets are tried at once and waited for when they would block; files go to the
 * pool.
 *
 * Place: below loop.c; uses the queues of loop_fd.c.
 *
 * Readiness is edge-triggered: a descriptor is made known once, at its first wait, and from then on
 * `readable` and `writable` say whether a try is worth its system call. A short recv means that the
 * socket was drained, so the next one goes straight to the wait; what arrives later makes a new
 * edge. So a message costs epoll_wait, recv, send. EPOLLOUT is watched only while somebody waits
 * for it: a unix socket makes such an edge each time the peer reads.
 *
 * Invariants: an op AT_FD is in a queue of its fdq; a head that is not being tried waits for an
 * edge of an armed descriptor (or for the retry timer). A stale event finds empty queues and does
 * no harm.
 *
 * Locking: the loop's thread.
 */
#include "io/loop_int.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 64

struct epoll_state {
	int fd;
	bool no_pwait2; /* before Linux 5.11 */
	struct epoll_event events[EVENTS_MAX];
};

static int epoll_open(struct loop *loop, const struct loop_options *options, struct err *e)
{
	struct epoll_state *s = calloc(1, sizeof(*s));
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.fd = -1 };
	int err;

	(void)options;
	if (!s)
		return err_sys(e, -ENOMEM, "opening an epoll loop");
	s->fd = epoll_create1(EPOLL_CLOEXEC);
	if (s->fd < 0 || epoll_ctl(s->fd, EPOLL_CTL_ADD, loop->wake_fd, &ev) < 0) {
		err = err_sys(e, -errno, "opening an epoll loop");
		if (s->fd >= 0)
			close(s->fd);
		free(s);
		return err;
	}
	loop->state = s;
	return 0;
}

static void epoll_close(struct loop *loop)
{
	struct epoll_state *s = loop->state;

	close(s->fd);
	free(s);
}

/* ---- waiting for readiness ---- */

static unsigned poll_wanted(const struct fdq *q)
{
	unsigned events = 0;

	for (const struct link *k = q->polls.head.next; k != &q->polls.head; k = k->next)
		events |= LIST_ENTRY(k, const struct op, link)->flags;
	return events;
}

/* Tells the kernel what is waited for. A regular file never gets here: poll(2) calls it ready at
 * once. */
static int fdq_arm(struct loop *loop, struct fdq *q, unsigned events)
{
	struct epoll_state *s = loop->state;
	unsigned want = EPOLLET | EPOLLIN | EPOLLRDHUP | q->armed;
	struct epoll_event ev = { .data.fd = q->fd };

	want |= events & (EPOLLOUT | EPOLLPRI);
	if (want == q->armed)
		return 0;
	ev.events = want;
	if (epoll_ctl(s->fd, q->armed ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, q->fd, &ev) < 0) {
		/* EEXIST: closed behind our back while a copy lives; the registration is as good as
		 * ours. */
		if (errno != EEXIST || epoll_ctl(s->fd, EPOLL_CTL_MOD, q->fd, &ev) < 0)
			return -errno;
	}
	q->armed = want;
	return 0;
}

/* Edges that nobody waited for: no more of them. */
static void fdq_calm(struct loop *loop, struct fdq *q)
{
	struct epoll_state *s = loop->state;
	struct epoll_event ev = { .events = q->armed & ~(unsigned)EPOLLOUT, .data.fd = q->fd };

	if (epoll_ctl(s->fd, EPOLL_CTL_MOD, q->fd, &ev) == 0)
		q->armed = ev.events;
}

static void fail_all(struct loop *loop, struct list *ops, int err)
{
	struct link *k;

	while ((k = list_pop_front(ops)))
		loop_complete(loop, op_of(k), err);
}

/* Whoever is in a queue waits now; a descriptor that cannot be watched fails them all. */
static void fdq_wait(struct loop *loop, struct fdq *q, unsigned events)
{
	int err = fdq_arm(loop, q, events);

	if (!err)
		return;
	fail_all(loop, &q->reads, err);
	fail_all(loop, &q->writes, err);
	fail_all(loop, &q->polls, err);
}

static void pump(struct loop *loop, struct fdq *q, struct list *ops, bool *ready)
{
	struct link *k;

	while (*ready && (k = list_first(ops))) {
		struct op *op = op_of(k);
		size_t want = op->len - op->moved;
		int res = fd_try(loop, q, op);

		if (res == -EAGAIN) {
			*ready = false;
			break;
		}
		/* Less than asked for: drained, or full. Not to be trusted once no edge can follow.
		 */
		if (res > 0 && (op->kind == OP_RECV || op->kind == OP_SEND) && (size_t)res < want &&
		    !q->hup)
			*ready = false;
		fd_feed(loop, op, res);
	}
}

static int poll_now(int fd, unsigned events)
{
	struct pollfd p = { .fd = fd, .events = (short)events };
	int n = poll(&p, 1, 0);

	return n < 0 ? -errno : p.revents & POLLNVAL ? -EBADF : p.revents;
}

/* An edge says that something has changed, not what is ready: that is asked once for all who wait.
 */
static void pump_polls(struct loop *loop, struct fdq *q)
{
	int got = list_empty(&q->polls) ? 0 : poll_now(q->fd, poll_wanted(q));

	if (!got)
		return;
	LIST_EACH (k, &q->polls) {
		struct op *op = op_of(k);
		int res = got < 0 ? got : got & (int)(op->flags | POLLERR | POLLHUP);

		if (res) {
			link_remove(&op->link);
			loop_complete(loop, op, res);
		}
	}
}

static void poll_submit(struct loop *loop, struct fdq *q, struct op *op)
{
	int res = poll_now(op->fd, op->flags);

	if (res) {
		loop_complete(loop, op, res);
		return;
	}
	list_push_back(&q->polls, &op->link);
	fdq_wait(loop, q, op->flags);
}

/* ---- the engine's calls ---- */

static void epoll_submit(struct loop *loop, struct op *op)
{
	struct fdq *q;

	switch (op->kind) {
	case OP_READ:
	case OP_WRITE:
	case OP_SYNC:
	case OP_ALLOCATE:
	case OP_WORK:
		pool_submit(loop->pool, op);
		return;
	default:
		break;
	}
	q = fdq_get(loop, op->fd);
	if (!q) {
		loop_complete(loop, op, op->fd < 0 ? -EBADF : -ENOMEM);
		return;
	}
	op->where = AT_FD;
	if (op->kind == OP_POLL) {
		poll_submit(loop, q, op);
	} else if (op_is_write_side(op)) {
		list_push_back(&q->writes, &op->link);
		pump(loop, q, &q->writes, &q->writable);
		if (op->where == AT_FD)
			fdq_wait(loop, q, EPOLLOUT);
	} else {
		list_push_back(&q->reads, &op->link);
		pump(loop, q, &q->reads, &q->readable);
		if (op->where == AT_FD)
			fdq_wait(loop, q, EPOLLIN);
	}
}

static void epoll_cancel(struct loop *loop, struct op *op)
{
	if (op->where == AT_FD) {
		link_remove(&op->link);
		loop_complete(loop, op, -ECANCELED);
	} else {
		pool_cancel(loop->pool, op);
	}
}

static void epoll_retry(struct loop *loop, struct fdq *q)
{
	q->writable = true;
	pump(loop, q, &q->writes, &q->writable);
	if (!list_empty(&q->writes))
		fdq_wait(loop, q, EPOLLOUT);
}

static void handle_event(struct loop *loop, const struct epoll_event *ev)
{
	struct fdq *q = fdq_get(loop, ev->data.fd);
	unsigned got = ev->events;

	if (!q) /* the eventfd: its edge has done its work by waking us */
		return;
	if (got & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		q->hup = true;
	if (got & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		q->readable = true;
	if (got & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		q->writable = true;
	if (got == EPOLLOUT && list_empty(&q->writes) && !(poll_wanted(q) & POLLOUT))
		fdq_calm(loop, q);
	pump(loop, q, &q->reads, &q->readable);
	pump(loop, q, &q->writes, &q->writable);
	pump_polls(loop, q);
}

static int epoll_wait_ns(struct epoll_state *s, uint64_t wait_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(wait_ns / NS_PER_S),
		.tv_nsec = (long)(wait_ns % NS_PER_S),
	};
	uint64_t wait_ms = (wait_ns + NS_PER_MS - 1) / NS_PER_MS;
	int n;

	if (wait_ns == 0)
		return epoll_wait(s->fd, s->events, EVENTS_MAX, 0);
	if (wait_ns == NEVER_NS)
		return epoll_wait(s->fd, s->events, EVENTS_MAX, -1);
	if (!s->no_pwait2) {
		n = epoll_pwait2(s->fd, s->events, EVENTS_MAX, &ts, NULL);
		if (n >= 0 || errno != ENOSYS)
			return n;
		s->no_pwait2 = true;
	}
	return epoll_wait(s->fd, s->events, EVENTS_MAX, (int)MIN(wait_ms, 1000000u));
}

static int epoll_engine_wait(struct loop *loop, uint64_t until_ns)
{
	struct epoll_state *s = loop->state;
	uint64_t wait_ns = until_ns;
	int n;

	if (until_ns && until_ns != NEVER_NS) {
		uint64_t now_ns = env_now(loop->env);

		wait_ns = until_ns > now_ns ? until_ns - now_ns : 0;
	}
	n = epoll_wait_ns(s, wait_ns);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++)
		handle_event(loop, &s->events[i]);
	return 0;
}

static void epoll_close_fd(struct loop *loop, int fd)
{
	struct epoll_state *s = loop->state;
	struct fdq *q = fdq_get(loop, fd);
	struct epoll_event ev = { 0 };

	/* Closing removes it only with the last copy of the descriptor; a child may have one. */
	if (q && q->armed)
		(void)epoll_ctl(s->fd, EPOLL_CTL_DEL, fd, &ev);
	fdq_forget(loop, fd);
	close(fd);
}

const struct engine engine_epoll = {
	.name = "epoll",
	.open = epoll_open,
	.close = epoll_close,
	.submit = epoll_submit,
	.cancel = epoll_cancel,
	.retry = epoll_retry,
	.wait = epoll_engine_wait,
	.fd_socket = real_socket,
	.fd_listen = real_listen,
	.fd_pair = real_pair,
	.fd_name = real_name,
	.fd_open = real_open,
	.fd_size = real_size,
	.fd_close = epoll_close_fd,
};
