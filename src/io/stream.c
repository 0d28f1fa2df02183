/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams: buffered reading and gathered writing on a connected socket, see stream.h.
 *
 * Place: below the protocols (client in back/remora*.c, server in front/server*.c), above the
 * loop's ops.
 *
 * Reading is one op at a time: it receives into what is left of the fill, and into the free rest of
 * the buffer behind that. Writing is one op at a time: a batch taken from the two queues. A batch
 * is sent from a post, so that what is queued in one round of the loop leaves in one system call.
 *
 * Invariants:
 *  - a frame is in out_urgent or out (nobody uses its memory yet), then in sending (the kernel
 *    may), then sent() is called; frames of one queue keep their order;
 *  - bytes in the buffer lie behind those that fill and skip still want, so while these are not
 *    done the buffer is empty;
 *  - after stream_stop() no callback but sent() and, last, stopped(); that one only when no op and
 *    no post is out.
 *
 * Locking: the loop's thread.
 */
#include "io/stream.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void rx_done(struct op *op, int res);
static void tx_done(struct op *op, int res);
static void tx_run(struct post *post);
static void end_run(struct post *post);

int stream_open(struct stream *s, struct loop *loop, int fd)
{
	CHECK(s->ready && s->lost && s->stopped && fd >= 0);
	*s = (struct stream){ .ready = s->ready, .lost = s->lost, .stopped = s->stopped, .fd = fd,
			      .loop = loop, .passed_fd = -1 };
	s->buf = malloc(STREAM_BUF_LEN);
	if (!s->buf) {
		loop_close_fd(loop, fd);
		return -ENOMEM;
	}
	s->rx.done = rx_done;
	s->tx.done = tx_done;
	s->tx_post.run = tx_run;
	s->end_post.run = end_run;
	list_init(&s->out_urgent);
	list_init(&s->out);
	list_init(&s->sending);
	s->received_ns = s->sent_ns = loop_now(loop);
	s->paused = true;
	return 0;
}

static void stream_lose(struct stream *s, int err)
{
	if (s->is_lost || s->stopping)
		return;
	s->is_lost = true;
	s->lost(s, err);
}

/* ---- reading ---- */

static void rx_next(struct stream *s)
{
	if (s->paused || s->is_lost || s->stopping || s->in_ready || op_pending(&s->rx))
		return;
	if (s->head == s->tail)
		s->head = s->tail = 0;
	if (s->tail == STREAM_BUF_LEN && s->head) {
		memmove(s->buf, s->buf + s->head, s->tail - s->head);
		s->tail -= s->head;
		s->head = 0;
	}
	/* else the owner wants more at a time than fits, or forgot to pause */
	CHECK(s->tail < STREAM_BUF_LEN);
	if (s->fill_left) {
		CHECK(s->head == s->tail);
		int n = s->fill_count - s->fill_at;

		memcpy(s->rx_iov, s->fill + s->fill_at, (size_t)n * sizeof(*s->fill));
		s->rx_iov[n] = (struct iovec){ s->buf, STREAM_BUF_LEN };
		op_recvv(s->loop, &s->rx, s->fd, s->rx_iov, n + 1);
	} else {
		op_recv(s->loop, &s->rx, s->fd, s->buf + s->tail, STREAM_BUF_LEN - s->tail);
	}
}

/* `len` bytes of the fill are there, in its first pieces. */
static void fill_advance(struct stream *s, size_t len)
{
	s->fill_left -= len;
	while (len) {
		struct iovec *v = &s->fill[s->fill_at];
		size_t n = MIN(len, v->iov_len);

		v->iov_base = (uint8_t *)v->iov_base + n;
		v->iov_len -= n;
		len -= n;
		if (!v->iov_len)
			s->fill_at++;
	}
}

static void skip_buffered(struct stream *s)
{
	size_t n = MIN(s->skip_left, s->tail - s->head);

	s->head += n;
	s->skip_left -= n;
}

static void rx_done(struct op *op, int res)
{
	struct stream *s = CONTAINER_OF(op, struct stream, rx);
	size_t len, n;

	if (s->stopping) {
		end_run(&s->end_post);
		return;
	}
	if (res <= 0) {
		stream_lose(s, res);
		return;
	}
	len = (size_t)res;
	s->received_ns = loop_now(s->loop);
	s->received_bytes += len;
	n = MIN(len, s->fill_left);
	fill_advance(s, n);
	s->tail += len - n;
	CHECK(s->tail <= STREAM_BUF_LEN);
	skip_buffered(s);
	if (stream_filled(s) && !s->paused) {
		s->in_ready = true;
		s->ready(s);
		s->in_ready = false;
	}
	rx_next(s);
}

bool stream_fill(struct stream *s, const struct iovec *iov, int iov_count)
{
	CHECK(stream_filled(s) && iov_count <= (int)STREAM_IOV_MAX);
	s->fill_at = s->fill_count = 0;
	for (int i = 0; i < iov_count; i++) {
		size_t n = MIN(iov[i].iov_len, s->tail - s->head);

		if (n)
			memcpy(iov[i].iov_base, s->buf + s->head, n);
		s->head += n;
		if (n == iov[i].iov_len)
			continue;
		s->fill[s->fill_count++] = (struct iovec){ (uint8_t *)iov[i].iov_base + n,
							   iov[i].iov_len - n };
		s->fill_left += iov[i].iov_len - n;
	}
	return !s->fill_left;
}

bool stream_skip(struct stream *s, size_t len)
{
	CHECK(stream_filled(s));
	s->skip_left = len;
	skip_buffered(s);
	return !s->skip_left;
}

void stream_start(struct stream *s)
{
	stream_resume(s);
}

/* ---- passing descriptors ---- */

bool stream_passes_fds(const struct stream *s)
{
	int domain = 0;
	socklen_t len = sizeof(domain);

	return strcmp(loop_engine_name(s->loop), "sim") != 0 &&
	       getsockopt(s->fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

union fd_control {
	struct cmsghdr head;
	char room[CMSG_SPACE(sizeof(int))];
};

static void fd_received(struct stream *s, struct msghdr *msg)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(msg);

	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
	    c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&s->passed_fd, CMSG_DATA(c), sizeof(int));
}

/* The loop's receiving knows nothing of descriptors: the first time it is done here. */
static void rx_first(struct op *op, int res)
{
	struct stream *s = CONTAINER_OF(op, struct stream, rx);
	union fd_control control;
	struct iovec iov = { s->buf, STREAM_BUF_LEN };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = res;

	if (!s->stopping && res >= 0) {
		n = recvmsg(s->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			op_poll(s->loop, &s->rx, s->fd, POLLIN);
			return;
		}
		if (n > 0)
			fd_received(s, &msg);
		else if (n < 0)
			n = -errno;
	}
	s->rx.done = rx_done;
	rx_done(op, (int)n);
}

void stream_start_fd(struct stream *s)
{
	s->paused = false;
	s->rx.done = rx_first;
	op_poll(s->loop, &s->rx, s->fd, POLLIN);
}

int stream_take_fd(struct stream *s)
{
	int fd = s->passed_fd;

	s->passed_fd = -1;
	return fd;
}

int stream_send_fd(struct stream *s, const void *buf, size_t len, int fd)
{
	union fd_control control = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)),
					     .cmsg_level = SOL_SOCKET,
					     .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = { (void *)(uintptr_t)buf, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n;

	CHECK(!s->unsent && !s->sent_bytes);
	memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	n = sendmsg(s->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0)
		return -errno;
	s->sent_ns = loop_now(s->loop);
	s->sent_bytes += (size_t)n;
	/* the socket was empty: it takes a few bytes, or is broken */
	return (size_t)n == len ? 0 : -EPIPE;
}

void stream_pause(struct stream *s)
{
	s->paused = true;
}

void stream_resume(struct stream *s)
{
	s->paused = false;
	rx_next(s);
}

/* ---- writing ---- */

static void tx_kick(struct stream *s)
{
	if (op_pending(&s->tx) || link_linked(&s->tx_post.link) || s->is_lost || s->stopping)
		return;
	loop_defer(s->loop, &s->tx_post);
}

void stream_send(struct stream *s, struct stream_frame *frame, bool urgent)
{
	frame->len = 0;
	CHECK(frame->iov_count > 0 && frame->iov_count <= (int)STREAM_IOV_MAX && !s->stopping);
	for (int i = 0; i < frame->iov_count; i++)
		frame->len += frame->iov[i].iov_len;
	frame->link = (struct link){ 0 };
	list_push_back(urgent ? &s->out_urgent : &s->out, &frame->link);
	s->unsent += frame->len;
	tx_kick(s);
}

/* Moves a frame into the batch; false when the batch is full. */
static bool tx_add(struct stream *s, struct list *from, int *iov_count)
{
	struct link *k = list_first(from);
	struct stream_frame *f = LIST_ENTRY(k, struct stream_frame, link);

	if (*iov_count + f->iov_count > (int)STREAM_IOV_MAX)
		return false;
	if (s->tx_len && s->tx_len + f->len > STREAM_BATCH_LEN)
		return false;
	memcpy(s->tx_iov + *iov_count, f->iov, (size_t)f->iov_count * sizeof(*f->iov));
	*iov_count += f->iov_count;
	s->tx_len += f->len;
	link_remove(k);
	list_push_back(&s->sending, k);
	return true;
}

static void tx_run(struct post *post)
{
	struct stream *s = CONTAINER_OF(post, struct stream, tx_post);
	int iov_count = 0;
	bool more = true;

	if (s->stopping) {
		end_run(&s->end_post);
		return;
	}
	if (s->is_lost || op_pending(&s->tx))
		return;
	s->tx_len = 0;
	while (more && !list_empty(&s->out_urgent))
		more = tx_add(s, &s->out_urgent, &iov_count);
	while (more && !list_empty(&s->out))
		more = tx_add(s, &s->out, &iov_count);
	if (iov_count)
		op_sendv_all(s->loop, &s->tx, s->fd, s->tx_iov, iov_count);
}

static void frames_end(struct stream *s, struct list *frames, int err)
{
	struct list done;
	struct link *k;

	list_init(&done);
	list_splice_back(&done, frames);
	while ((k = list_pop_front(&done))) {
		struct stream_frame *f = LIST_ENTRY(k, struct stream_frame, link);

		s->unsent -= f->len;
		f->sent(f, err);
	}
}

static void tx_done(struct op *op, int res)
{
	struct stream *s = CONTAINER_OF(op, struct stream, tx);

	if (s->stopping) {
		end_run(&s->end_post);
		return;
	}
	if (res < 0) {
		stream_lose(s, res); /* the frames end with stream_stop() */
		return;
	}
	s->sent_ns = loop_now(s->loop);
	s->sent_bytes += s->tx_len;
	frames_end(s, &s->sending, 0);
	if (!s->stopping)
		tx_run(&s->tx_post);
}

/* ---- the end ---- */

static void end_run(struct post *post)
{
	struct stream *s = CONTAINER_OF(post, struct stream, end_post);

	if (op_pending(&s->rx) || op_pending(&s->tx) || link_linked(&s->tx_post.link) ||
	    link_linked(&s->end_post.link))
		return;
	frames_end(s, &s->sending, -ECANCELED);
	frames_end(s, &s->out_urgent, -ECANCELED);
	frames_end(s, &s->out, -ECANCELED);
	CHECK(!s->unsent);
	loop_close_fd(s->loop, s->fd);
	s->fd = -1;
	if (s->passed_fd >= 0)
		close(s->passed_fd);
	s->passed_fd = -1;
	free(s->buf);
	s->buf = NULL;
	s->stopped(s);
}

void stream_stop(struct stream *s)
{
	if (s->stopping)
		return;
	s->stopping = true;
	op_cancel(s->loop, &s->rx);
	op_cancel(s->loop, &s->tx);
	loop_defer(s->loop, &s->end_post);
}
