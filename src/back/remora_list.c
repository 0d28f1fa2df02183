/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a Remora server has: one connection with a hello that asks for the list, and its answer.
 *
 * Place: set-up code beside the store of remora.c; `remora list` calls it. The answer's length is
 * checked before memory for it is taken.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "back/remora_int.h"

struct lister {
	struct loop *loop;
	struct tls *tls;
	char addr_text[SOCK_TEXT_MAX];
	struct op op;
	int fd;
	struct timer timer;
	struct stream stream;
	bool streaming, done, stopped;
	uint8_t hello[WIRE_HELLO_MAX];
	struct iovec hello_iov;
	struct stream_frame hello_frame;
	uint8_t *answer;
	size_t answer_len;
	struct err *e;
	int err;
};

static void lister_end(struct lister *l, int err, const char *why)
{
	if (l->done)
		return;
	l->done = true;
	l->err = err;
	if (err)
		err_set(l->e, err, "%s: %s", l->addr_text, why);
	timer_clear(l->loop, &l->timer);
	if (l->streaming)
		stream_stop(&l->stream);
	else
		op_cancel(l->loop, &l->op);
}

static void list_timer(struct timer *timer)
{
	lister_end(CONTAINER_OF(timer, struct lister, timer), -ETIMEDOUT, "no answer in time");
}

static void list_lost(struct stream *s, int err)
{
	struct lister *l = CONTAINER_OF(s, struct lister, stream);

	lister_end(l, err ? err : -ECONNRESET,
		   *stream_why(s) ? stream_why(s) : err ? strerrordesc_np(-err) : "closed by the server");
}

static void list_stopped(struct stream *s)
{
	CONTAINER_OF(s, struct lister, stream)->stopped = true;
}

static void list_hello_sent(struct stream_frame *frame, int err)
{
	(void)frame;
	(void)err; /* the stream tells of it */
}

static void list_refused(struct lister *l)
{
	struct wire_refusal refusal;
	char text[WIRE_REFUSAL_TEXT_MAX + 1];

	if (wire_refusal_decode(l->answer, l->answer_len, &refusal)) {
		lister_end(l, -EPROTO, "the server broke the protocol");
		return;
	}
	memcpy(text, refusal.text, refusal.text_len);
	text[refusal.text_len] = '\0';
	lister_end(l, wire_code_errno(refusal.code), text);
}

static void list_ready(struct stream *s)
{
	struct lister *l = CONTAINER_OF(s, struct lister, stream);
	enum wire_answer kind;
	struct iovec iov;

	if (!l->answer) {
		if (stream_avail(s) < WIRE_PREFIX_LEN)
			return;
		if (wire_answer_prefix(stream_peek(s), &kind, &l->answer_len) ||
		    kind == WIRE_WELCOME) {
			lister_end(l, -EPROTO,
				   "what answers there does not speak the Remora protocol");
			return;
		}
		l->answer = malloc(l->answer_len);
		if (!l->answer) {
			lister_end(l, -ENOMEM, "out of memory");
			return;
		}
		iov = (struct iovec){ l->answer, l->answer_len };
		if (!stream_fill(s, &iov, 1))
			return;
	}
	if (wire_answer_prefix(l->answer, &kind, &l->answer_len) == 0 && kind == WIRE_REFUSAL)
		list_refused(l);
	else
		lister_end(l, 0, "");
}

static void list_greet(struct lister *l, int fd)
{
	struct wire_hello hello = { .version_min = WIRE_VERSION, .version_max = WIRE_VERSION,
				    .conns = 1, .flags = WIRE_HELLO_LIST,
				    .payload_max = WIRE_LIST_MAX };
	int r;

	rng_fill(&loop_env(l->loop)->rng, hello.session, sizeof(hello.session));
	l->stream.ready = list_ready;
	l->stream.lost = list_lost;
	l->stream.stopped = list_stopped;
	r = stream_open(&l->stream, l->loop, fd);
	if (!r && l->tls) {
		r = stream_secure(&l->stream, l->tls);
		if (r) {
			loop_close_fd(l->loop, fd);
			stream_abandon(&l->stream);
		}
	}
	if (r) {
		l->stopped = true;
		lister_end(l, r, "out of memory");
		return;
	}
	l->streaming = true;
	l->hello_iov = (struct iovec){ l->hello, wire_hello_encode(&hello, l->hello) };
	l->hello_frame = (struct stream_frame){ .iov = &l->hello_iov, .iov_count = 1,
						.sent = list_hello_sent };
	stream_send(&l->stream, &l->hello_frame, false);
	stream_start(&l->stream);
}

static void list_connected(struct op *op, int res)
{
	struct lister *l = CONTAINER_OF(op, struct lister, op);

	if (res >= 0 && !l->done) {
		list_greet(l, l->fd);
		return;
	}
	loop_close_fd(l->loop, l->fd);
	l->stopped = true;
	lister_end(l, res < 0 ? res : -ETIMEDOUT, strerrordesc_np(res < 0 ? -res : ETIMEDOUT));
}

static int list_take(struct lister *l, struct remora_entry **ret, size_t *ret_count)
{
	size_t pos = WIRE_LIST_LEN;
	uint32_t count;

	if (wire_list_decode(l->answer, l->answer_len, &count))
		return err_set(l->e, -EPROTO, "%s: the server broke the protocol", l->addr_text);
	*ret = calloc((size_t)count + 1, sizeof(**ret));
	if (!*ret)
		return err_sys(l->e, -ENOMEM, "%s", l->addr_text);
	for (uint32_t i = 0; i < count; i++) {
		struct remora_entry *to = &(*ret)[i];
		struct wire_entry entry;

		if (wire_list_next(l->answer, l->answer_len, &pos, &entry))
			break; /* cannot be: all of it has been decoded once */
		memcpy(to->name, entry.name, entry.name_len);
		to->size = entry.size;
		to->read_only = entry.read_only;
	}
	*ret_count = count;
	return 0;
}

int remora_list(struct loop *loop, const struct remora_options *o, struct remora_entry **ret,
		size_t *ret_count, struct err *e)
{
	struct lister *l = calloc(1, sizeof(*l));
	uint64_t connect_ns = o->connect_ns ? o->connect_ns : REMORA_CONNECT_DEFAULT_NS;
	int r;

	*ret = NULL;
	*ret_count = 0;
	if (!l) {
		if (o->fd >= 0)
			loop_close_fd(loop, o->fd);
		return err_sys(e, -ENOMEM, "asking for the list");
	}
	*l = (struct lister){ .loop = loop, .fd = o->fd, .tls = o->tls, .e = e,
			      .timer.fire = list_timer, .op.done = list_connected };
	snprintf(l->addr_text, sizeof(l->addr_text), "the server");
	if (o->fd < 0) {
		sock_format(&o->addr, l->addr_text);
		l->fd = loop_socket(loop, o->addr.domain);
		if (l->fd < 0) {
			r = err_sys(e, l->fd, "%s", l->addr_text);
			free(l);
			return r;
		}
		op_connect(loop, &l->op, l->fd, (const struct sockaddr *)&o->addr.ss, o->addr.len);
	} else {
		list_greet(l, o->fd);
	}
	if (!l->done)
		timer_set(loop, &l->timer, loop_now_fresh(loop) + connect_ns);
	r = loop_run_until(loop, &l->stopped, NEVER_NS); /* the timer ends it */
	if (r) /* the loop is broken, and will never give back what it has of ours */
		return err_sys(e, r, "%s", l->addr_text);
	r = l->err;
	if (!r)
		r = list_take(l, ret, ret_count);
	free(l->answer);
	free(l);
	return r;
}
