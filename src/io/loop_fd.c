/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real descriptors, for both real engines: the queues of operations per descriptor, one system call
 * on behalf of the first of a queue, and what its result means for it.
 *
 * Place: engines call fd_try() (or let the kernel do the same), then fd_feed() with the result.
 *
 * Invariants: several ops may wait per descriptor and direction; only the first is worked on, so
 * that streams stay in order. A table of pages keeps the address of a struct fdq for the life of
 * the loop.
 *
 * Locking: the loop's thread, but for file_call(), which touches its op alone.
 */
#include "io/loop_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/env.h"
#include "io/sock.h"

/* a unix listener whose backlog is full sends no event when it is not */
#define CONNECT_RETRY_NS (1 * NS_PER_MS)

/* ---- the table ---- */

static void fdq_reset(struct fdq *q)
{
	CHECK(list_empty(&q->reads) && list_empty(&q->writes) && list_empty(&q->polls));
	link_remove(&q->retry);
	q->armed = 0;
	q->readable = q->writable = true; /* worth a try until a try says otherwise */
	q->hup = q->nonblock = false;
}

static struct fdq *fdq_page_new(unsigned first_fd)
{
	struct fdq *page = calloc(FDQ_PAGE, sizeof(*page));

	if (!page)
		return NULL;
	for (unsigned i = 0; i < FDQ_PAGE; i++) {
		page[i].fd = (int)(first_fd + i);
		list_init(&page[i].reads);
		list_init(&page[i].writes);
		list_init(&page[i].polls);
		fdq_reset(&page[i]);
	}
	return page;
}

struct fdq *fdq_get(struct loop *loop, int fd)
{
	size_t page = (size_t)fd / FDQ_PAGE;

	if (fd < 0)
		return NULL;
	if (page >= loop->fdqs_len) {
		size_t len = MAX(page + 1, 2 * loop->fdqs_len);
		struct fdq **fdqs = reallocarray(loop->fdqs, len, sizeof(*fdqs));

		if (!fdqs)
			return NULL;
		memset(fdqs + loop->fdqs_len, 0, (len - loop->fdqs_len) * sizeof(*fdqs));
		loop->fdqs = fdqs;
		loop->fdqs_len = len;
	}
	if (!loop->fdqs[page])
		loop->fdqs[page] = fdq_page_new((unsigned)page * FDQ_PAGE);
	return loop->fdqs[page] ? &loop->fdqs[page][(size_t)fd % FDQ_PAGE] : NULL;
}

void fdq_forget(struct loop *loop, int fd)
{
	size_t page = (size_t)fd / FDQ_PAGE;

	if (page < loop->fdqs_len && loop->fdqs[page])
		fdq_reset(&loop->fdqs[page][(size_t)fd % FDQ_PAGE]);
}

void fdq_free_all(struct loop *loop)
{
	for (size_t i = 0; i < loop->fdqs_len; i++)
		free(loop->fdqs[i]);
	free(loop->fdqs);
	loop->fdqs = NULL;
	loop->fdqs_len = 0;
}

/* ---- one system call ---- */

static int set_nonblock(struct fdq *q)
{
	int flags;

	if (q->nonblock)
		return 0;
	flags = fcntl(q->fd, F_GETFL);
	if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(q->fd, F_SETFL, flags | O_NONBLOCK) < 0))
		return -errno;
	q->nonblock = true;
	return 0;
}

static int try_accept(struct fdq *q)
{
	int err = set_nonblock(q), fd;

	if (err)
		return err;
	do
		fd = accept4(q->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	return fd < 0 ? -errno : fd;
}

static int try_connect(struct loop *loop, struct fdq *q, struct op *op)
{
	int err = set_nonblock(q);
	socklen_t len = sizeof(err);

	if (err)
		return err;
	if (op->engine_word & OPW_CONNECTING) {
		struct pollfd p = { .fd = q->fd, .events = POLLOUT };

		if (poll(&p, 1, 0) == 0)
			return -EAGAIN;
		return getsockopt(q->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0 ? -errno : -err;
	}
	if (connect(q->fd, (const struct sockaddr *)&op->addr, op->addr_len) == 0)
		return 0;
	if (errno == EINPROGRESS || errno == EINTR) {
		op->engine_word |= OPW_CONNECTING;
		return -EAGAIN;
	}
	if (errno == EAGAIN) {
		if (!link_linked(&q->retry))
			list_push_back(&loop->retries, &q->retry);
		if (!timer_is_set(&loop->retry_timer))
			timer_set(loop, &loop->retry_timer, loop_now(loop) + CONNECT_RETRY_NS);
		return -EAGAIN;
	}
	return -errno;
}

int fd_try(struct loop *loop, struct fdq *q, struct op *op)
{
	struct iovec *iov = op->msg.msg_iov;
	ssize_t n;

	if (op->kind == OP_ACCEPT)
		return try_accept(q);
	if (op->kind == OP_CONNECT)
		return try_connect(loop, q, op);
	CHECK(op->kind == OP_RECV || op->kind == OP_SEND);
	do {
		if (op->kind == OP_SEND && op->msg.msg_iovlen == 1)
			n = send(q->fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
		else if (op->kind == OP_SEND)
			n = sendmsg(q->fd, &op->msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		else if (op->msg.msg_iovlen == 1)
			n = recv(q->fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT);
		else
			n = recvmsg(q->fd, &op->msg, MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (int)n;
}

/* ---- what a result means ---- */

bool op_is_write_side(const struct op *op)
{
	return op->kind == OP_SEND || op->kind == OP_CONNECT;
}

static void iov_advance(struct op *op, size_t n)
{
	while (n >= op->msg.msg_iov->iov_len) {
		n -= op->msg.msg_iov->iov_len;
		op->msg.msg_iov++;
		if (!--op->msg.msg_iovlen) {
			CHECK(n == 0);
			return;
		}
	}
	op->msg.msg_iov->iov_base = (char *)op->msg.msg_iov->iov_base + n;
	op->msg.msg_iov->iov_len -= n;
}

static bool fd_end(struct loop *loop, struct op *op, int res)
{
	link_remove(&op->link);
	loop_complete(loop, op, res);
	return true;
}

bool fd_feed(struct loop *loop, struct op *op, int res)
{
	CHECK(op->where == AT_FD && res != -EAGAIN);
	if (op->kind == OP_ACCEPT && res >= 0)
		fdq_forget(loop, res);
	if (res < 0 || (op->kind != OP_RECV && op->kind != OP_SEND))
		return fd_end(loop, op, res);
	if (res == 0)
		return fd_end(loop, op, op->moved ? -ECONNRESET : 0);
	op->moved += (size_t)res;
	CHECK(op->moved <= op->len);
	if (op->moved == op->len || !(op->flags & STREAM_ALL))
		return fd_end(loop, op, (int)op->moved);
	iov_advance(op, (size_t)res);
	return false;
}

/* ---- files, on a thread of the pool ---- */

int file_call(const struct op *op)
{
	ssize_t n = 0;

	do {
		switch (op->kind) {
		case OP_READ:
			n = pread(op->fd, op->buf, op->len, (off_t)op->off);
			break;
		case OP_WRITE:
			n = pwrite(op->fd, op->buf, op->len, (off_t)op->off);
			break;
		case OP_SYNC:
			n = fdatasync(op->fd);
			break;
		case OP_ALLOCATE:
			n = fallocate(op->fd, (int)op->flags, (off_t)op->off, (off_t)op->len);
			break;
		default:
			CHECK(!"a file operation");
		}
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (int)n;
}

/* ---- making descriptors ---- */

int real_socket(struct loop *loop, int domain)
{
	int fd = socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	fdq_forget(loop, fd);
	sock_tune(fd, domain);
	return fd;
}

/* A socket file that a dead server left behind is in the way of its successor: nobody listens on
 * it, so it goes. */
static int unlink_dead_socket(const struct sockaddr *addr, socklen_t len)
{
	const struct sockaddr_un *un = (const struct sockaddr_un *)addr;
	AUTO_FD int fd = -1;
	struct stat st;

	if (addr->sa_family != AF_UNIX || !un->sun_path[0])
		return -EADDRINUSE;
	if (lstat(un->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return -EADDRINUSE;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, addr, len) == 0 || errno != ECONNREFUSED)
		return -EADDRINUSE;
	return unlink(un->sun_path) < 0 ? -errno : 0;
}

int real_listen(struct loop *loop, const struct sockaddr *addr, socklen_t len, int backlog)
{
	AUTO_FD int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	const int on = 1;

	if (fd < 0)
		return -errno;
	if (addr->sa_family != AF_UNIX)
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, addr, len) < 0) {
		int err = -errno;

		if (err == -EADDRINUSE)
			err = unlink_dead_socket(addr, len);
		if (!err && bind(fd, addr, len) < 0)
			err = -errno;
		if (err)
			return err;
	}
	sock_tune(fd, addr->sa_family); /* accepted sockets inherit it */
	if (listen(fd, backlog) < 0)
		return -errno;
	fdq_forget(loop, fd);
	return TAKE_FD(fd);
}

int real_pair(struct loop *loop, int ret_fd[2])
{
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ret_fd) < 0)
		return -errno;
	for (int i = 0; i < 2; i++) {
		fdq_forget(loop, ret_fd[i]);
		sock_tune(ret_fd[i], AF_UNIX);
	}
	return 0;
}

int real_name(struct loop *loop, int fd, struct sockaddr_storage *ret, socklen_t *ret_len)
{
	(void)loop;
	*ret_len = sizeof(*ret);
	return getsockname(fd, (struct sockaddr *)ret, ret_len) < 0 ? -errno : 0;
}

int real_open(struct loop *loop, const char *path, int flags, mode_t mode)
{
	int fd = open(path, flags | O_CLOEXEC, mode);

	if (fd < 0)
		return -errno;
	fdq_forget(loop, fd);
	return fd;
}

int real_size(struct loop *loop, int fd, uint64_t *ret)
{
	struct stat st;

	(void)loop;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISBLK(st.st_mode))
		return ioctl(fd, BLKGETSIZE64, ret) < 0 ? -errno : 0;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	*ret = (uint64_t)st.st_size;
	return 0;
}
