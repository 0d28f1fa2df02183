/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring engine: one system call per step submits what the callbacks asked for, waits, and
 * brings what ended.
 *
 * Place: below loop.c; uses the queues of loop_fd.c, so that ops on one descriptor stay in order
 * (the kernel alone would not keep it). Work that can only block goes to the pool; files are the
 * kernel's.
 *
 * A send is tried at once with a plain system call: it leaves before other callbacks run, and
 * mostly succeeds. All else is submitted with the wait.
 *
 * Invariants: an op with OPW_KERNEL has exactly one completion to come. An op that finds no room in
 * the submission ring waits on the backlog, first in, first out; so a full ring loses nothing. A
 * full completion ring is kept by the kernel (NODROP). The ring is bound to the thread that takes
 * the first step; detach() takes all ops back from the kernel, makes a new unbound ring and puts
 * them there. A cancellation that nobody asked for (the thread that submitted it has gone) means:
 * again.
 *
 * Locking: the loop's thread; the kernel's side is liburing's business.
 */
#include "io/loop_int.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RING_ENTRIES 1024u
#define TAG_IGNORE 0u /* a cancellation's own completion */
#define TAG_WAKE 1u

struct uring_state {
	struct io_uring ring;
	bool enabled; /* bound to the thread that runs the loop */
	bool wake_armed;
	size_t in_kernel;
	/* file ops that the kernel has, or that are on the backlog */
	struct list files;
	struct op *backlog, **backlog_end; /* linked by op->engine */
	bool detaching;
};

/* ---- the ring ---- */

static int ring_init(struct uring_state *s)
{
	/* Best first. Each is refused by kernels that are too old for it. */
	static const unsigned modes[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_COOP_TASKRUN,
		0,
	};
	int err = -EINVAL;

	for (size_t i = 0; i < ARRAY_LEN(modes) && err == -EINVAL; i++) {
		struct io_uring_params p = { 0 };

		p.flags = modes[i] | IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP;
		if (modes[i])
			p.flags |= IORING_SETUP_SUBMIT_ALL;
		err = io_uring_queue_init_params(RING_ENTRIES, &s->ring, &p);
	}
	s->enabled = s->wake_armed = false;
	return err;
}

static int ring_check(struct uring_state *s, struct err *e)
{
	static const unsigned char needed[] = {
		IORING_OP_RECV,	    IORING_OP_RECVMSG, IORING_OP_SEND,	IORING_OP_SENDMSG,
		IORING_OP_ACCEPT,   IORING_OP_POLL_ADD, IORING_OP_READ, IORING_OP_WRITE,
		IORING_OP_FSYNC,    IORING_OP_FALLOCATE, IORING_OP_ASYNC_CANCEL,
	};
	/* RSRC_TAGS came together with the multishot poll of Linux 5.13. */
	const unsigned features = IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG |
				  IORING_FEAT_RSRC_TAGS;
	struct io_uring_probe *probe;
	int err = 0;

	if ((s->ring.features & features) != features)
		return err_set(e, -ENOTSUP, "this kernel's io_uring is too old (Linux 5.13 or newer is needed)");
	probe = io_uring_get_probe();
	if (!probe)
		return err_set(e, -ENOTSUP, "io_uring does not tell what it can do");
	for (size_t i = 0; i < ARRAY_LEN(needed) && !err; i++) {
		if (!io_uring_opcode_supported(probe, needed[i]))
			err = err_set(e, -ENOTSUP, "this kernel's io_uring lacks operation %u", needed[i]);
	}
	io_uring_free_probe(probe);
	return err;
}

static int uring_open(struct loop *loop, const struct loop_options *options, struct err *e)
{
	struct uring_state *s = calloc(1, sizeof(*s));
	int err;

	(void)options;
	if (!s)
		return err_sys(e, -ENOMEM, "opening an io_uring loop");
	err = env_fault(loop->env, "uring.open");
	if (!err)
		err = ring_init(s);
	if (err == -EPERM) {
		err_set(e, err, "io_uring is forbidden here (sysctl kernel.io_uring_disabled, or a seccomp filter)");
	} else if (err) {
		err_sys(e, err, "io_uring cannot be set up");
	} else {
		err = ring_check(s, e);
		if (err)
			io_uring_queue_exit(&s->ring);
	}
	if (err) {
		free(s);
		return err;
	}
	list_init(&s->files);
	s->backlog_end = &s->backlog;
	loop->state = s;
	return 0;
}

static void uring_close(struct loop *loop)
{
	struct uring_state *s = loop->state;

	CHECK(s->in_kernel == 0 && !s->backlog);
	io_uring_queue_exit(&s->ring);
	free(s);
}

static struct io_uring_sqe *sqe_get(struct loop *loop)
{
	struct uring_state *s = loop->state;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);

	if (!sqe && s->enabled && io_uring_submit(&s->ring) > 0)
		sqe = io_uring_get_sqe(&s->ring);
	loop->must_enter = true;
	return sqe;
}

/* ---- the backlog ---- */

static void backlog_add(struct uring_state *s, struct op *op)
{
	CHECK(!(op->engine_word & OPW_BACKLOG));
	op->engine_word |= OPW_BACKLOG;
	op->engine = NULL;
	*s->backlog_end = op;
	s->backlog_end = (struct op **)&op->engine;
}

static void backlog_remove(struct uring_state *s, struct op *op)
{
	struct op **at = &s->backlog;

	while (*at != op)
		at = (struct op **)&(*at)->engine;
	*at = op->engine;
	if (s->backlog_end == (struct op **)&op->engine)
		s->backlog_end = at;
	op->engine_word &= ~(uint64_t)OPW_BACKLOG;
}

/* ---- submission ---- */

static void prep_stream(struct io_uring_sqe *sqe, struct op *op)
{
	struct iovec *iov = op->msg.msg_iov;
	bool one = op->msg.msg_iovlen == 1;
	/* WAITALL: the kernel repeats by itself. Where it does not, the result is short and we do.
	 */
	int flags = MSG_NOSIGNAL | (op->flags & STREAM_ALL ? MSG_WAITALL : 0);

	if (op->kind == OP_SEND && one)
		io_uring_prep_send(sqe, op->fd, iov->iov_base, iov->iov_len, flags);
	else if (op->kind == OP_SEND)
		io_uring_prep_sendmsg(sqe, op->fd, &op->msg, (unsigned)flags);
	else if (one)
		io_uring_prep_recv(sqe, op->fd, iov->iov_base, iov->iov_len, flags);
	else
		io_uring_prep_recvmsg(sqe, op->fd, &op->msg, (unsigned)flags);
}

static void prep(struct io_uring_sqe *sqe, struct op *op)
{
	if (op->kind == OP_CONNECT || op->engine_word & OPW_POLLING) {
		op->engine_word |= OPW_POLLING;
		io_uring_prep_poll_add(sqe, op->fd, op_is_write_side(op) ? POLLOUT : POLLIN);
		return;
	}
	switch (op->kind) {
	case OP_RECV:
	case OP_SEND:
		prep_stream(sqe, op);
		break;
	case OP_ACCEPT:
		io_uring_prep_accept(sqe, op->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		break;
	case OP_POLL:
		io_uring_prep_poll_add(sqe, op->fd, op->flags);
		break;
	case OP_READ:
		io_uring_prep_read(sqe, op->fd, op->buf, (unsigned)op->len, op->off);
		break;
	case OP_WRITE:
		io_uring_prep_write(sqe, op->fd, op->buf, (unsigned)op->len, op->off);
		break;
	case OP_SYNC:
		io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
		break;
	case OP_ALLOCATE:
		io_uring_prep_fallocate(sqe, op->fd, (int)op->flags, (off_t)op->off,
					(off_t)op->len);
		break;
	default:
		CHECK(!"an operation of the kernel's");
	}
}

static void kernel_submit(struct loop *loop, struct op *op)
{
	struct uring_state *s = loop->state;
	struct io_uring_sqe *sqe;

	CHECK(!(op->engine_word & OPW_KERNEL));
	sqe = s->detaching ? NULL : sqe_get(loop);
	if (!sqe) {
		backlog_add(s, op);
		return;
	}
	prep(sqe, op);
	io_uring_sqe_set_data(sqe, op);
	op->engine_word |= OPW_KERNEL;
	s->in_kernel++;
}

static void kernel_cancel(struct loop *loop, struct op *op)
{
	struct io_uring_sqe *sqe = sqe_get(loop);

	if (!sqe) {
		backlog_add(loop->state, op);
		return;
	}
	io_uring_prep_cancel(sqe, op, 0);
	io_uring_sqe_set_data64(sqe, TAG_IGNORE);
}

static void backlog_flush(struct loop *loop)
{
	struct uring_state *s = loop->state;

	while (s->backlog && io_uring_sq_space_left(&s->ring)) {
		struct op *op = s->backlog;

		backlog_remove(s, op);
		if (op->engine_word & OPW_KERNEL)
			kernel_cancel(loop, op);
		else
			kernel_submit(loop, op);
	}
}

/* Makes sure that the first of a queue is being worked on. */
static void queue_start(struct loop *loop, struct fdq *q, struct list *ops)
{
	struct link *k;

	while ((k = list_first(ops))) {
		struct op *op = op_of(k);
		int res;

		if (op->engine_word & (OPW_KERNEL | OPW_BACKLOG))
			return;
		if (op_is_write_side(op) || op->engine_word & OPW_POLLING) {
			op->engine_word &= ~(uint64_t)OPW_POLLING;
			res = fd_try(loop, q, op);
			if (res != -EAGAIN && fd_feed(loop, op, res))
				continue;
			if (link_linked(&q->retry))
				return;
		}
		kernel_submit(loop, op);
		return;
	}
}

static void uring_submit(struct loop *loop, struct op *op)
{
	struct uring_state *s = loop->state;
	struct list *ops;
	struct fdq *q;

	switch (op->kind) {
	case OP_WORK:
		pool_submit(loop->pool, op);
		return;
	case OP_READ:
	case OP_WRITE:
	case OP_SYNC:
	case OP_ALLOCATE:
		list_push_back(&s->files, &op->link);
		kernel_submit(loop, op);
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
		list_push_back(&q->polls, &op->link);
		kernel_submit(loop, op);
		return;
	}
	ops = op_is_write_side(op) ? &q->writes : &q->reads;
	list_push_back(ops, &op->link);
	queue_start(loop, q, ops);
}

static void uring_retry(struct loop *loop, struct fdq *q)
{
	queue_start(loop, q, &q->writes);
}

static void uring_cancel(struct loop *loop, struct op *op)
{
	struct uring_state *s = loop->state;
	struct fdq *q;

	if (op->where == AT_POOL) {
		pool_cancel(loop->pool, op);
		return;
	}
	if (op->engine_word & OPW_CANCEL)
		return;
	op->engine_word |= OPW_CANCEL;
	if (op->engine_word & OPW_KERNEL) {
		kernel_cancel(loop, op);
		return;
	}
	if (op->engine_word & OPW_BACKLOG)
		backlog_remove(s, op);
	link_remove(&op->link);
	q = op->where == AT_FD && op->kind != OP_POLL ? fdq_get(loop, op->fd) : NULL;
	loop_complete(loop, op, -ECANCELED);
	if (q)
		queue_start(loop, q, op_is_write_side(op) ? &q->writes : &q->reads);
}

/* ---- completions ---- */

/* True when the op is to be given to the kernel once more, as it was. */
static bool again(const struct op *op, int res)
{
	return res == -EINTR || (res == -ECANCELED && !(op->engine_word & OPW_CANCEL));
}

static void stream_done(struct loop *loop, struct op *op, int res)
{
	struct fdq *q = fdq_get(loop, op->fd);
	struct list *ops = op_is_write_side(op) ? &q->writes : &q->reads;

	CHECK(q && list_first(ops) == &op->link);
	if (op->engine_word & OPW_CANCEL) {
		/* A result that came first counts, unless it is only a part. */
		bool part = op->engine_word & OPW_POLLING || res == -EAGAIN || res == -EINTR ||
			    (op->flags & STREAM_ALL && res > 0 &&
			     op->moved + (size_t)res < op->len);

		fd_feed(loop, op, part ? -ECANCELED : res);
	} else if (op->engine_word & OPW_POLLING) {
		/* Ready now: queue_start() tries it. */
	} else if (res == -EAGAIN) {
		/* a kernel that does not wait for non-blocking sockets */
		op->engine_word |= OPW_POLLING;
		kernel_submit(loop, op);
	} else if (!again(op, res)) {
		fd_feed(loop, op, res);
	}
	queue_start(loop, q, ops);
}

static void op_completed(struct loop *loop, struct op *op, int res)
{
	struct uring_state *s = loop->state;

	CHECK(op->engine_word & OPW_KERNEL);
	op->engine_word &= ~(uint64_t)OPW_KERNEL;
	s->in_kernel--;
	if (op->engine_word & OPW_BACKLOG) /* its cancellation, which is not needed any more */
		backlog_remove(s, op);
	if (op->where == AT_FD && op->kind != OP_POLL) {
		stream_done(loop, op, res);
	} else if (again(op, res)) {
		kernel_submit(loop, op);
	} else {
		link_remove(&op->link);
		loop_complete(loop, op, res);
	}
}

static void wake_arm(struct loop *loop)
{
	struct uring_state *s = loop->state;
	struct io_uring_sqe *sqe = s->detaching ? NULL : sqe_get(loop);

	if (!sqe)
		return;
	/* Never read: each write makes one more completion. */
	io_uring_prep_poll_multishot(sqe, loop->wake_fd, POLLIN);
	io_uring_sqe_set_data64(sqe, TAG_WAKE);
	s->wake_armed = true;
}

static void reap(struct loop *loop)
{
	struct uring_state *s = loop->state;
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;

	io_uring_for_each_cqe (&s->ring, head, cqe) {
		n++;
		if (cqe->user_data == TAG_IGNORE)
			continue;
		if (cqe->user_data == TAG_WAKE) {
			if (!(cqe->flags & IORING_CQE_F_MORE))
				s->wake_armed = false;
			continue;
		}
		op_completed(loop, io_uring_cqe_get_data(cqe), cqe->res);
	}
	io_uring_cq_advance(&s->ring, n);
}

static int ring_wait(struct loop *loop, uint64_t until_ns)
{
	struct uring_state *s = loop->state;
	uint64_t now_ns = until_ns && until_ns != NEVER_NS ? env_now(loop->env) : 0;
	struct __kernel_timespec ts;
	struct io_uring_cqe *cqe;

	if (until_ns <= now_ns)
		return io_uring_submit_and_get_events(&s->ring);
	if (until_ns == NEVER_NS)
		return io_uring_submit_and_wait(&s->ring, 1);
	ts.tv_sec = (long long)((until_ns - now_ns) / NS_PER_S);
	ts.tv_nsec = (long long)((until_ns - now_ns) % NS_PER_S);
	return io_uring_submit_and_wait_timeout(&s->ring, &cqe, 1, &ts, NULL);
}

static int uring_wait(struct loop *loop, uint64_t until_ns)
{
	struct uring_state *s = loop->state;
	int err;

	if (!s->enabled) {
		/* Debian 12's liburing declares io_uring_enable_rings() and does not export it. */
		if (syscall(__NR_io_uring_register, s->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
			    NULL, 0) < 0)
			return -errno;
		s->enabled = true;
	}
	if (!s->wake_armed)
		wake_arm(loop);
	backlog_flush(loop);
	loop->must_enter = false;
	/* no room: make some, come back */
	err = ring_wait(loop, s->backlog || !s->wake_armed ? 0 : until_ns);
	reap(loop);
	if (s->backlog || io_uring_sq_ready(&s->ring))
		loop->must_enter = true;
	if (err == -EINTR || err == -ETIME || err == -EBUSY || err == -EAGAIN)
		return 0;
	return err < 0 ? err : 0;
}

/* ---- handing the loop to another thread ---- */

static void cancel_queue(struct loop *loop, struct list *ops)
{
	LIST_EACH (k, ops) {
		if (op_of(k)->engine_word & OPW_KERNEL)
			kernel_cancel(loop, op_of(k));
	}
}

static int uring_detach(struct loop *loop)
{
	struct uring_state *s = loop->state;
	struct io_uring former;
	int err = 0;

	if (!s->enabled)
		return 0;
	for (size_t page = 0; page < loop->fdqs_len; page++) {
		for (size_t i = 0; loop->fdqs[page] && i < FDQ_PAGE; i++) {
			cancel_queue(loop, &loop->fdqs[page][i].reads);
			cancel_queue(loop, &loop->fdqs[page][i].writes);
			cancel_queue(loop, &loop->fdqs[page][i].polls);
		}
	}
	/* What comes back is put on the backlog from now on. Files end by themselves. */
	backlog_flush(loop);
	s->detaching = true;
	while (s->in_kernel && (err >= 0 || err == -EINTR || err == -EBUSY || err == -EAGAIN)) {
		err = io_uring_submit_and_wait(&s->ring, 1);
		reap(loop);
	}
	s->detaching = false;
	if (s->in_kernel)
		return err;
	former = s->ring;
	err = ring_init(s);
	if (err)
		s->ring = former; /* as before; the loop stays with this thread */
	else
		io_uring_queue_exit(&former);
	return err;
}

static void uring_close_fd(struct loop *loop, int fd)
{
	fdq_forget(loop, fd);
	close(fd);
}

const struct engine engine_uring = {
	.name = "io_uring",
	.open = uring_open,
	.close = uring_close,
	.submit = uring_submit,
	.cancel = uring_cancel,
	.detach = uring_detach,
	.retry = uring_retry,
	.wait = uring_wait,
	.fd_socket = real_socket,
	.fd_listen = real_listen,
	.fd_pair = real_pair,
	.fd_name = real_name,
	.fd_open = real_open,
	.fd_size = real_size,
	.fd_close = uring_close_fd,
};
