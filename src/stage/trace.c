/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace: writes one line per completed request to a file, for people and for a later run that wants
 * to know what will be needed first. It changes nothing and delays nothing: lines go into a buffer
 * in memory, and a full buffer goes to the file while the next lines go into the other one. When
 * both are full, lines are lost, counted, and the count stands in the last line.
 *
 *   # remora-trace 1
 *   # size=BYTES align=BYTES chunk=BYTES
 *   # time_us op offset length flags latency_us error
 *   1042 read 65536 4096 u 812 0
 *   ...
 *   # end lines=N lost=N
 *
 * time_us: submission, in microseconds since the stage was opened; lines stand in the order of
 * completion. flags: letters out of f (durable), u (urgent), b (background), or "-". error: 0 or a
 * negative errno. A file without the last line was not closed.
 *
 * The file is written over only if it is empty or begins like a trace: a mistyped name must not
 * cost a disk image.
 *
 *   buffer: filling ── half full, or the timer ──▶ being written ── all written ──▶ empty
 *
 * Invariants: at most one buffer is being written, buf[!fill]; `used` of it is not 0 then. After an
 * error of the file nothing is written any more and every line counts as lost.
 *
 * Locking: none, everything runs on the loop's thread; the file is written by the loop's engine.
 */
#include "stage/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "store/sub.h"

#define TRACE_MAGIC "# remora-trace "
#define TRACE_VERSION 1
#define LINE_LEN_MAX 160u
#define WRITE_AT (TRACE_BUF_LEN / 2)
#define IDLE_NS (500 * NS_PER_MS) /* a quiet buffer goes to the file after that */

static_assert(TRACE_BUF_LEN >= 8 * LINE_LEN_MAX, "a buffer holds some lines");

struct buffer {
	char *at;
	size_t used;
	uint64_t lines;
};

struct trace {
	struct store store;
	struct sub_pool pool;
	int fd;
	int err; /* of the file */
	uint64_t opened_ns, off;
	uint64_t lines, lost;
	struct buffer buf[2];
	unsigned fill;
	size_t written; /* of buf[!fill] */
	struct op op;
	struct timer timer;
	bool closing;
	bool ended; /* the last line is in a buffer */
};

static struct trace *trace_of(struct store *store)
{
	return CONTAINER_OF(store, struct trace, store);
}

/* ---- the file ---- */

static void file_end(struct trace *t);

static void file_write(struct trace *t)
{
	struct buffer *b = &t->buf[!t->fill];

	CHECK(b->used > t->written);
	op_write(t->store.loop, &t->op, t->fd, b->at + t->written, b->used - t->written, t->off);
}

/* Turns the buffers and begins to write, unless there is nothing or one is being written already.
 */
static void file_start(struct trace *t)
{
	if (op_pending(&t->op) || t->err || !t->buf[t->fill].used)
		return;
	CHECK(!t->buf[!t->fill].used);
	t->fill = !t->fill;
	t->written = 0;
	timer_clear(t->store.loop, &t->timer);
	file_write(t);
}

static void file_failed(struct trace *t, int err)
{
	t->err = err;
	log_error(&loop_env(t->store.loop)->log, "trace: writing failed, nothing more is recorded: %s",
		  strerror(-err));
	for (size_t i = 0; i < ARRAY_LEN(t->buf); i++) {
		t->lines -= t->buf[i].lines;
		t->lost += t->buf[i].lines;
		t->buf[i].used = t->buf[i].lines = 0;
	}
	timer_clear(t->store.loop, &t->timer);
}

static void file_done(struct op *op, int res)
{
	struct trace *t = CONTAINER_OF(op, struct trace, op);
	struct buffer *b = &t->buf[!t->fill];

	if (res <= 0) {
		file_failed(t, res ? res : -EIO);
	} else {
		t->written += (size_t)res;
		t->off += (uint64_t)res;
		if (t->written < b->used) {
			file_write(t);
			return;
		}
		b->used = b->lines = 0;
	}
	if (t->closing)
		file_end(t);
	else if (t->buf[t->fill].used >= WRITE_AT)
		file_start(t);
	else if (t->buf[t->fill].used)
		timer_set(t->store.loop, &t->timer, loop_now(t->store.loop) + IDLE_NS);
}

static void trace_fire(struct timer *timer)
{
	file_start(CONTAINER_OF(timer, struct trace, timer));
}

/* ---- lines ---- */

/* `spare` bytes of the buffer stay free behind the line. */
PRINTF_LIKE(3, 4)
static bool text_add(struct trace *t, size_t spare, const char *fmt, ...)
{
	struct buffer *b = &t->buf[t->fill];
	char line[LINE_LEN_MAX];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	CHECK(n > 0 && (size_t)n < sizeof(line));
	if (t->err || b->used + (size_t)n + spare > TRACE_BUF_LEN)
		return false;
	memcpy(b->at + b->used, line, (size_t)n);
	b->used += (size_t)n;
	return true;
}

static void line_add(struct trace *t, const struct req *req, uint64_t start_ns, int err)
{
	uint64_t now = loop_now_fresh(t->store.loop);
	uint64_t start_us = (start_ns - t->opened_ns) / NS_PER_US;
	uint64_t took_us = (now - start_ns) / NS_PER_US;
	char flags[4];
	size_t n = 0;

	if (req->flags & REQ_FUA)
		flags[n++] = 'f';
	if (req->flags & REQ_URGENT)
		flags[n++] = 'u';
	if (req->flags & REQ_BACKGROUND)
		flags[n++] = 'b';
	if (!n)
		flags[n++] = '-';
	flags[n] = '\0';
	if (!text_add(t, LINE_LEN_MAX,
		      "%" PRIu64 " %s %" PRIu64 " %" PRIu64 " %s %" PRIu64 " %d\n", start_us,
		      req_op_name(req->op), req->range.off, req->range.len, flags, took_us, err)) {
		t->lost++;
		return;
	}
	t->lines++;
	t->buf[t->fill].lines++;
	if (t->buf[t->fill].used >= WRITE_AT)
		file_start(t);
	else if (!timer_is_set(&t->timer) && !op_pending(&t->op))
		timer_set(t->store.loop, &t->timer, now + IDLE_NS);
}

/* ---- the store ---- */

static void trace_done(struct req *req, int err)
{
	struct sub *sub = req->user;

	line_add(trace_of(sub->pool->stage), req, sub->parent->start_ns, err);
	sub_finish(sub, err);
}

static void trace_start(struct store *store, struct req *parent)
{
	struct sub *sub = sub_get(&trace_of(store)->pool, parent);

	CHECK(sub);
	sub_send(sub, trace_done);
}

static void trace_submit(struct store *store, struct req *req)
{
	sub_pool_submit(&trace_of(store)->pool, req);
}

static void trace_abort(struct store *store)
{
	sub_pool_fail_waiting(&trace_of(store)->pool, -ESHUTDOWN);
}

static void trace_free(struct trace *t)
{
	if (t->fd >= 0)
		loop_close_fd(t->store.loop, t->fd);
	free(t->buf[0].at);
	free(t->buf[1].at);
	sub_pool_done(&t->pool);
}

/* Closing: writes what is left, the last line behind it, and ends. Called again when a write is
 * done. */
static void file_end(struct trace *t)
{
	struct log *log = &loop_env(t->store.loop)->log;

	CHECK(!op_pending(&t->op));
	if (!t->ended) {
		t->ended = true;
		if (t->lost)
			log_warn(log, "trace: %llu lines were lost", (unsigned long long)t->lost);
		/* line_add() left room for it */
		if (!text_add(t, 0, "# end lines=%llu lost=%llu\n", (unsigned long long)t->lines,
			      (unsigned long long)t->lost))
			CHECK(t->err);
	}
	file_start(t);
	if (op_pending(&t->op))
		return;
	timer_clear(t->store.loop, &t->timer);
	trace_free(t);
	store_closed(&t->store);
}

static void trace_close(struct store *store)
{
	struct trace *t = trace_of(store);

	t->closing = true;
	if (!op_pending(&t->op))
		file_end(t); /* else file_done() does */
}

static void trace_status(struct store *store, char *buf, size_t len)
{
	struct trace *t = trace_of(store);

	snprintf(buf, len, "lines=%llu lost=%llu", (unsigned long long)t->lines, (unsigned long long)t->lost);
}

static const struct store_ops trace_ops = {
	.name = "trace",
	.submit = trace_submit,
	.abort = trace_abort,
	.close = trace_close,
	.status = trace_status,
};

/* ---- opening ---- */

struct peek {
	struct op op;
	bool done;
	int res;
};

static void peek_done(struct op *op, int res)
{
	struct peek *p = CONTAINER_OF(op, struct peek, op);

	p->res = res;
	p->done = true;
}

/* Is what stands in the file a trace? 1, 0 or -errno. Set-up code: runs the loop. */
static int file_is_trace(struct loop *loop, int fd)
{
	char head[sizeof(TRACE_MAGIC)] = "";
	struct peek p = { .op.done = peek_done };
	int r;

	op_read(loop, &p.op, fd, head, sizeof(head) - 1, 0);
	r = loop_run_until(loop, &p.done, NEVER_NS);
	if (r || p.res < 0)
		return r ? r : p.res;
	return !strcmp(head, TRACE_MAGIC);
}

static int file_open(struct trace *t, struct loop *loop, const char *path, struct err *e)
{
	uint64_t size = 0;
	int r;

	t->fd = loop_open_file(loop, path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (t->fd < 0)
		return err_sys(e, t->fd, "the trace file '%s'", path);
	r = loop_file_size(loop, t->fd, &size);
	if (r)
		return err_sys(e, r, "the trace file '%s'", path);
	if (!size)
		return 0;
	r = file_is_trace(loop, t->fd);
	if (r < 0)
		return err_sys(e, r, "the trace file '%s'", path);
	if (!r)
		return err_set(e, -EEXIST, "'%s' is there and is not a trace: it will not be written over", path);
	loop_close_fd(loop, t->fd);
	t->fd = loop_open_file(loop, path, O_RDWR | O_TRUNC | O_CLOEXEC, 0644);
	return t->fd < 0 ? err_sys(e, t->fd, "the trace file '%s'", path) : 0;
}

static int trace_init(struct trace *t, const struct store_open *how, struct spec_args *args)
{
	const char *path = NULL;
	int r;

	t->store.loop = how->loop; /* trace_free() needs it, also before store_init() */
	if ((r = spec_get_text(args, "file", &path)) || (r = spec_options_end(args)))
		return r;
	if (!path)
		return spec_error(args->spec, args->part->at, args->e, "trace needs file=PATH");
	t->buf[0].at = malloc(TRACE_BUF_LEN);
	t->buf[1].at = malloc(TRACE_BUF_LEN);
	if (!t->buf[0].at || !t->buf[1].at ||
	    sub_pool_init(&t->pool, &t->store, STAGE_REQS_MAX, 0, trace_start))
		return err_sys(args->e, -ENOMEM, "the trace stage");
	return file_open(t, how->loop, path, args->e);
}

int stage_trace_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct trace *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return err_sys(args->e, -ENOMEM, "the trace stage");
	t->fd = -1;
	r = trace_init(t, how, args);
	if (r) {
		trace_free(t);
		free(t);
		return r;
	}
	t->op.done = file_done;
	t->timer.fire = trace_fire;
	t->opened_ns = loop_now_fresh(how->loop);
	store_init(&t->store, &trace_ops, how->loop, next);
	if (!text_add(t, LINE_LEN_MAX, "%s%d\n", TRACE_MAGIC, TRACE_VERSION) ||
	    !text_add(t, LINE_LEN_MAX, "# size=%" PRIu64 " align=%u chunk=%u\n", t->store.info.size,
		      t->store.info.align, t->store.info.chunk) ||
	    !text_add(t, LINE_LEN_MAX, "# time_us op offset length flags latency_us error\n"))
		CHECK(false); /* the first lines of an empty buffer */
	*ret = &t->store;
	return 0;
}
