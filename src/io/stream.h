/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream: a connected socket with a buffered reader and a gathering writer, for protocols with
 * headers and payloads.
 *
 * Reading: bytes are read ahead into a small buffer, where headers are looked at; a payload is
 * received where it shall be (stream_fill), and only what had been read ahead of it is copied.
 * Headers behind a payload come with the same system call.
 * Writing: frames are lists of pieces of memory; all that wait are sent in one call, the urgent
 * ones first. Nothing is allocated after stream_open().
 * A stream may be secured: TLS then lies between it and the socket (io/tls.h), and its users see no
 * difference but that it knows who the peer is. One in clear has nothing of it in its way.
 *
 * Callbacks come from the loop, never from within a call to the stream.
 */
#ifndef REMORA_IO_STREAM_H
#define REMORA_IO_STREAM_H

#include <sys/uio.h>

#include "base/limits.h"
#include "base/list.h"
#include "io/loop.h"
#include "io/tls.h"

struct stream_frame {
	const struct iovec *iov; /* borrowed, as is what it names, until sent() */
	int iov_count;		 /* 1 .. STREAM_IOV_MAX */
	/* Once per stream_send(): 0 = handed to the system, or -errno. May free or reuse the
	 * frame. */
	void (*sent)(struct stream_frame *frame, int err);
	/* the stream's */
	size_t len;
	struct link link;
};

struct stream {
	/* the owner's, set before stream_open() */
	/* new bytes in the buffer, or a fill that is complete */
	void (*ready)(struct stream *s);
	/* once: 0 = the peer has closed, or -errno. Nothing is read any more */
	void (*lost)(struct stream *s, int err);
	/* the last callback: all is given back, the descriptor is closed */
	void (*stopped)(struct stream *s);

	/* to be looked at */
	int fd;
	uint64_t received_ns, sent_ns; /* when bytes last moved */
	uint64_t received_bytes, sent_bytes;
	size_t unsent; /* bytes of frames that have not been handed to the system */

	/* the stream's */
	struct loop *loop;
	struct op rx, tx;
	struct post tx_post, end_post;
	uint8_t *buf;
	size_t head, tail;	      /* of what is buffered */
	struct iovec fill[STREAM_IOV_MAX];
	struct iovec rx_iov[STREAM_IOV_MAX + 1]; /* the fill, and the buffer; the loop changes it */
	int fill_at, fill_count;
	size_t fill_left, skip_left;
	struct list out_urgent, out, sending;
	struct iovec tx_iov[STREAM_IOV_MAX];
	size_t tx_len;
	bool paused, is_lost, stopping, in_ready;
	int passed_fd; /* -1 = none */
	/* of a secured one */
	struct tls_link *tls; /* NULL: in clear */
	struct post tls_post;
	struct timer tls_timer; /* the last words have to leave until then */
	int tls_at, tls_count;	/* of tx_iov: what is not encrypted yet */
	bool tls_up;		/* the handshake is done */
	bool tls_more;		/* it may have something for us without bytes from the peer */
	bool tls_ends;		/* nothing is read any more; lost when what is in it has left */
	int tls_err;
};

/* Owns fd from here on, also when it fails. */
MUST_USE int stream_open(struct stream *s, struct loop *loop, int fd);

/* All of it goes through TLS, as the client or the server that `tls` is for. Before anything is
 * sent and before stream_start(). What fails in it is told by lost(), with a text in
 * stream_why(). */
MUST_USE int stream_secure(struct stream *s, struct tls *tls);
static inline bool stream_is_secure(const struct stream *s)
{
	return s->tls != NULL;
}
/* Valid until stopped(): what lost() was about, "" = its error says it; who the peer is, from the
 * first ready() on, "" = nobody knows; whether it has that name, address or identity. */
const char *stream_why(const struct stream *s);
const char *stream_peer(const struct stream *s);
bool stream_peer_is(const struct stream *s, const char *who);

/* Begins to read. Before that, frames may be sent. */
void stream_start(struct stream *s);

/* The same on a real unix socket, and takes a descriptor that is passed with the first bytes. */
void stream_start_fd(struct stream *s);
/* That descriptor, the caller's from here on; -1 when none has come. */
int stream_take_fd(struct stream *s);
/* Whether descriptors can be passed: a unix socket of this machine, not a simulated one. */
bool stream_passes_fds(const struct stream *s);
/* Sends these bytes at once with a descriptor, as the first ones on the socket: 0 or -errno. */
MUST_USE int stream_send_fd(struct stream *s, const void *buf, size_t len, int fd);

/* Ends it: frames that are not sent end with -ECANCELED, then stopped() is called. Asking twice is
 * fine. */
void stream_stop(struct stream *s);

/* Nothing has ever run on it, or its loop is no more (sim_crash): gives the memory back, and
 * touches neither loop nor descriptor. */
void stream_abandon(struct stream *s);

/* ---- reading; from ready(), or while paused ---- */

static inline size_t stream_avail(const struct stream *s)
{
	return s->fill_left || s->skip_left ? 0 : s->tail - s->head;
}

/* stream_avail() bytes; at most STREAM_BUF_LEN of them can ever be there. */
static inline const uint8_t *stream_peek(const struct stream *s)
{
	return s->buf + s->head;
}

static inline void stream_take(struct stream *s, size_t len)
{
	CHECK(len <= stream_avail(s));
	s->head += len;
}

/* The next bytes of the stream go there; iov is copied, with entries of length 0 left out. True
 * when they have arrived already, else ready() is called when they have. */
MUST_USE bool stream_fill(struct stream *s, const struct iovec *iov, int iov_count);
/* The next bytes are thrown away. */
MUST_USE bool stream_skip(struct stream *s, size_t len);
static inline bool stream_filled(const struct stream *s)
{
	return !s->fill_left && !s->skip_left;
}

/* While paused nothing is read from the socket, and ready() is not called. */
void stream_pause(struct stream *s);
void stream_resume(struct stream *s); /* the owner looks at what is buffered by himself */

/* ---- writing ---- */

void stream_send(struct stream *s, struct stream_frame *frame, bool urgent);

#endif
