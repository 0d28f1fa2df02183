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
 *    no post is out;
 *  - secured: a batch of frames is in tx_iov until all of it is encrypted and has left; bytes of
 *    the peer that rest in TLS (the owner has paused) are taken from a post, never in
 *    stream_resume().
 *
 * Locking: the loop's thread.
 */
#include "io/stream.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STREAM_GOODBYE_NS (100 * NS_PER_MS) /* for the last words of TLS */

static void rx_done(struct op *op, int res);
static void tx_done(struct op *op, int res);
static void tx_run(struct post *post);
static void end_run(struct post *post);
static void tx_kick(struct stream *s);
static void tls_rx_next(struct stream *s);
static void tls_received(struct stream *s, int res);
static void tls_sent(struct stream *s, int res);
static void tls_tx(struct stream *s);
static bool tls_goodbye(struct stream *s);

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

static void buf_make_room(struct stream *s)
{
	if (s->head == s->tail)
		s->head = s->tail = 0;
	if (s->tail == STREAM_BUF_LEN && s->head) {
		memmove(s->buf, s->buf + s->head, s->tail - s->head);
		s->tail -= s->head;
		s->head = 0;
	}
	/* else the owner wants more at a time than fits, or forgot to pause */
	CHECK(s->tail < STREAM_BUF_LEN);
}

static void rx_next(struct stream *s)
{
	if (s->paused || s->is_lost || s->stopping || s->in_ready || op_pending(&s->rx))
		return;
	if (s->tls) {
		tls_rx_next(s);
		return;
	}
	buf_make_room(s);
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

/* `len` bytes are there: first those of the fill, then buffered ones. */
static void rx_take(struct stream *s, size_t len)
{
	size_t n = MIN(len, s->fill_left);

	fill_advance(s, n);
	s->tail += len - n;
	CHECK(s->tail <= STREAM_BUF_LEN);
	skip_buffered(s);
	if (stream_filled(s) && !s->paused) {
		s->in_ready = true;
		s->ready(s);
		s->in_ready = false;
	}
}

static void rx_done(struct op *op, int res)
{
	struct stream *s = CONTAINER_OF(op, struct stream, rx);

	if (s->stopping) {
		end_run(&s->end_post);
		return;
	}
	if (res > 0) {
		s->received_ns = loop_now(s->loop);
		s->received_bytes += (size_t)res;
	}
	if (s->tls) {
		tls_received(s, res);
		return;
	}
	if (res <= 0) {
		stream_lose(s, res);
		return;
	}
	rx_take(s, (size_t)res);
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

	return !s->tls && strcmp(loop_engine_name(s->loop), "sim") != 0 &&
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
	CHECK(!s->tls);
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

	CHECK(!s->unsent && !s->sent_bytes && !s->tls);
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

/* The next batch in tx_iov; how many pieces. */
static int tx_gather(struct stream *s)
{
	int iov_count = 0;
	bool more = true;

	s->tx_len = 0;
	while (more && !list_empty(&s->out_urgent))
		more = tx_add(s, &s->out_urgent, &iov_count);
	while (more && !list_empty(&s->out))
		more = tx_add(s, &s->out, &iov_count);
	return iov_count;
}

static void tx_run(struct post *post)
{
	struct stream *s = CONTAINER_OF(post, struct stream, tx_post);
	int iov_count;

	if (s->stopping) {
		end_run(&s->end_post);
		return;
	}
	if (s->is_lost || op_pending(&s->tx))
		return;
	if (s->tls) {
		tls_tx(s);
		return;
	}
	iov_count = tx_gather(s);
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
	if (s->tls) {
		tls_sent(s, res);
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

/* ---- TLS between the stream and the socket ---- */

static void tls_post_run(struct post *post);
static void tls_timer_fire(struct timer *timer);

int stream_secure(struct stream *s, struct tls *tls)
{
	CHECK(!s->tls && s->paused && !s->unsent);
	s->tls_post.run = tls_post_run;
	s->tls_timer.fire = tls_timer_fire;
	s->tls_more = true; /* a client begins */
	return tls_link_open(&s->tls, tls);
}

const char *stream_why(const struct stream *s)
{
	return s->tls ? tls_link_why(s->tls) : "";
}

const char *stream_peer(const struct stream *s)
{
	return s->tls ? tls_link_peer(s->tls) : "";
}

bool stream_peer_is(const struct stream *s, const char *who)
{
	return s->tls && tls_link_peer_is(s->tls, who);
}

/* An alert that says why leaves first. */
static void tls_lose(struct stream *s, int err)
{
	size_t len;

	if (s->tls_ends)
		return;
	s->tls_ends = true;
	s->tls_err = err;
	(void)tls_out(s->tls, &len);
	if (!len)
		stream_lose(s, err);
	else
		tx_kick(s);
}

static void tls_rx_next(struct stream *s)
{
	size_t room;
	void *at;

	if (s->tls_ends || link_linked(&s->tls_post.link))
		return;
	if (s->tls_more) {
		loop_defer(s->loop, &s->tls_post);
		return;
	}
	at = tls_in(s->tls, &room);
	CHECK(room);
	op_recv(s->loop, &s->rx, s->fd, at, room);
}

/* One step: a record at most. DONE: there may be more. */
static enum tls_result tls_step(struct stream *s)
{
	enum tls_result r;
	struct iovec *v = &s->fill[s->fill_at];
	size_t len = 0;

	if (!s->tls_up) {
		r = tls_shake(s->tls);
		s->tls_up = r == TLS_DONE;
		return r;
	}
	if (s->fill_left) {
		r = tls_read(s->tls, v->iov_base, v->iov_len, &len);
	} else {
		buf_make_room(s);
		r = tls_read(s->tls, s->buf + s->tail, STREAM_BUF_LEN - s->tail, &len);
	}
	if (len)
		rx_take(s, len);
	return r;
}

/* Takes what there is, as long as the owner wants it. */
static void tls_run(struct stream *s)
{
	enum tls_result r = TLS_DONE;

	while (r == TLS_DONE && !s->paused && !s->stopping && !s->is_lost && !s->tls_ends)
		r = tls_step(s);
	if (s->stopping || s->is_lost || s->tls_ends)
		return;
	s->tls_more = r == TLS_DONE || r == TLS_WANT_ROOM;
	if (r == TLS_CLOSED)
		tls_lose(s, 0);
	else if (r == TLS_FAILED)
		tls_lose(s, tls_link_err(s->tls));
	else
		tx_kick(s); /* TLS itself may have something to say */
	if (r != TLS_WANT_ROOM) /* else tls_sent() goes on */
		rx_next(s);
}

static void tls_post_run(struct post *post)
{
	struct stream *s = CONTAINER_OF(post, struct stream, tls_post);

	if (s->stopping)
		end_run(&s->end_post);
	else if (!s->paused && !op_pending(&s->rx))
		tls_run(s);
}

static void tls_received(struct stream *s, int res)
{
	if (s->tls_ends)
		return;
	if (res < 0 || (!res && s->tls_err)) {
		tls_lose(s, s->tls_err ? s->tls_err : res);
		return;
	}
	if (res)
		tls_in_add(s->tls, (size_t)res);
	else
		tls_in_end(s->tls);
	s->tls_more = true;
	if (!s->paused)
		tls_run(s);
}

static void tls_tx(struct stream *s)
{
	enum tls_result r = TLS_DONE;
	const void *at;
	size_t len;

	if (s->tls_err && !s->tls_ends)
		return;
	if (s->tls_up && !s->tls_ends) {
		if (s->tls_at == s->tls_count && list_empty(&s->sending)) {
			s->tls_at = 0;
			s->tls_count = tx_gather(s);
		}
		r = tls_write(s->tls, s->tx_iov, s->tls_count, &s->tls_at);
	}
	if (r == TLS_FAILED)
		tls_lose(s, tls_link_err(s->tls));
	at = tls_out(s->tls, &len);
	if (len && !s->is_lost)
		op_send_all(s->loop, &s->tx, s->fd, at, len);
}

static void tls_sent(struct stream *s, int res)
{
	size_t len;

	if (res < 0 && !s->tls_ends && op_pending(&s->rx) && !s->tls_err) {
		s->tls_err = res; /* the peer may have said why before it closed */
		return;
	}
	if (res < 0) {
		stream_lose(s, s->tls_ends ? s->tls_err : res);
		return;
	}
	s->sent_ns = loop_now(s->loop);
	s->sent_bytes += (size_t)res;
	tls_out_sent(s->tls, (size_t)res);
	(void)tls_out(s->tls, &len);
	if (s->tls_ends && !len) {
		stream_lose(s, s->tls_err);
		return;
	}
	if (s->tls_at == s->tls_count && !len)
		frames_end(s, &s->sending, 0);
	if (s->stopping)
		return;
	tx_run(&s->tx_post);
	rx_next(s);
}

/* Says that it is the end, if that can be said: not in the middle of something. True: the op is
 * to be waited for, but not long. */
static bool tls_goodbye(struct stream *s)
{
	const void *at;
	size_t len;

	if (!s->tls || s->is_lost || op_pending(&s->tx) || !s->tls_up || s->tls_ends ||
	    s->tls_err || s->tls_at < s->tls_count)
		return false;
	tls_shut(s->tls);
	at = tls_out(s->tls, &len);
	if (!len)
		return false;
	op_send_all(s->loop, &s->tx, s->fd, at, len);
	timer_set(s->loop, &s->tls_timer, loop_now(s->loop) + STREAM_GOODBYE_NS);
	return true;
}

static void tls_timer_fire(struct timer *timer)
{
	struct stream *s = CONTAINER_OF(timer, struct stream, tls_timer);

	op_cancel(s->loop, &s->tx);
}

/* ---- the end ---- */

static void end_run(struct post *post)
{
	struct stream *s = CONTAINER_OF(post, struct stream, end_post);

	if (op_pending(&s->rx) || op_pending(&s->tx) || link_linked(&s->tx_post.link) ||
	    link_linked(&s->end_post.link) || link_linked(&s->tls_post.link))
		return;
	timer_clear(s->loop, &s->tls_timer);
	frames_end(s, &s->sending, -ECANCELED);
	frames_end(s, &s->out_urgent, -ECANCELED);
	frames_end(s, &s->out, -ECANCELED);
	CHECK(!s->unsent);
	loop_close_fd(s->loop, s->fd);
	s->fd = -1;
	if (s->passed_fd >= 0)
		close(s->passed_fd);
	s->passed_fd = -1;
	tls_link_close(s->tls);
	s->tls = NULL;
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
	if (!tls_goodbye(s))
		op_cancel(s->loop, &s->tx);
	loop_defer(s->loop, &s->end_post);
}

void stream_abandon(struct stream *s)
{
	tls_link_close(s->tls);
	s->tls = NULL;
	free(s->buf);
	s->buf = NULL;
}
