/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's requests: read from /dev/fuse into slots, answered with writev(2), and answered
 * early when who asked was killed.
 *
 * Place: kernel -> slot -> file_operate() -> store -> file_operated() -> reply.
 *
 * Invariants.
 *  1. A slot is idle (on the list), in file_request() on the stack, or busy: then the store has its
 *     request and its buffer.
 *  2. A request gets one reply, those without one none. A slot that was answered early stays busy
 *     until the store is done; what the store says then is dropped.
 *  3. Without an idle slot nothing is read: what more there is waits in the kernel.
 *  4. Pages written through mmap (writeback) are never answered early: nobody else has them.
 *
 * A killed thread stays, unkillable, until its request is answered. The kernel says INTERRUPT once,
 * at the first signal, which need not be the one that kills; and nothing about asynchronous
 * requests, which a killed thread may wait for too. So while the store has requests a timer looks
 * after those who made them.
 *
 * Locking: none; the loop's thread. Reading and writing /dev/fuse does not block.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "front/file_int.h"

#define BATCH_MAX 128u /* requests read before others get their turn */
#define WATCH_NS (200 * NS_PER_MS)
#define SLOT_LEN (PAGE_BYTES + FILE_IO_MAX)

int file_slots_open(struct file *f)
{
	f->slots = FILE_REQS_MAX;
	if (f->options.memory_max)
		f->slots = (unsigned)MIN(MAX(f->options.memory_max, FILE_MEMORY_MIN) / FILE_IO_MAX,
					 (uint64_t)FILE_REQS_MAX);
	f->mem_len = f->slots * SLOT_LEN;
	f->mem = mmap(NULL, f->mem_len, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (f->mem == MAP_FAILED) {
		f->mem = NULL;
		return -errno;
	}
	for (unsigned i = 0; i < f->slots; i++) {
		struct file_slot *s = &f->slot[i];

		s->file = f;
		s->data = f->mem + i * SLOT_LEN + PAGE_BYTES;
		s->head = s->data - FILE_HEAD_LEN;
		list_push_back(&f->idle, &s->link);
	}
	return 0;
}

/* The one that was used last is warm. */
static void slot_put(struct file *f, struct file_slot *s)
{
	CHECK(!s->busy);
	list_push_front(&f->idle, &s->link);
}

/* ---- replies ---- */

/* The request may have gone meanwhile, or the kernel's side as a whole: no matter. */
static int reply(struct file *f, uint64_t unique, int err, const void *body, size_t len)
{
	/* The kernel takes no other numbers, and who asked would wait for ever. */
	int error = err > 0 || err < -511 ? -EIO : err;
	struct fuse_out_header out = {
		.len = (uint32_t)(sizeof(out) + (error ? 0 : len)),
		.error = error,
		.unique = unique,
	};
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)body, len } };

	f->counts.failed += error != 0;
	return writev(f->fd, iov, !error && len ? 2 : 1) < 0 ? -errno : 0;
}

static void slot_answer(struct file_slot *s, int err)
{
	int r;

	if (s->answered)
		return;
	s->answered = true;
	r = reply(s->file, s->unique, err, s->body, s->body_len);
	if (r && !err && s->opcode == FUSE_OPEN) /* who opened it is gone: no RELEASE comes */
		file_handle_closed(s->file, s->out.open.fh);
	if (r && r != -ENOENT && r != -ENODEV && r != -ECONNABORTED)
		log_warn(&loop_env(s->file->loop)->log, "file: %s: reply to operation %u: %s",
			 s->file->place.path, s->opcode, strerror(-r));
}

void file_answer_all(struct file *f, int err)
{
	for (unsigned i = 0; i < f->slots; i++)
		if (f->slot[i].busy)
			slot_answer(&f->slot[i], err);
}

/* ---- the store ---- */

static void slot_measure(struct file *f, const struct file_slot *s, int err)
{
	uint64_t ns = loop_now_fresh(f->loop) - s->start_ns;

	switch (s->opcode) {
	case FUSE_READ:
		hist_add(&f->counts.read_latency, ns);
		f->counts.bytes_read += err ? 0 : s->body_len;
		break;
	case FUSE_WRITE:
		hist_add(&f->counts.write_latency, ns);
		f->counts.bytes_written += err ? 0 : s->want.len;
		break;
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		hist_add(&f->counts.sync_latency, ns);
		break;
	default:
		break;
	}
}

static void slot_done(struct req *req, int err)
{
	struct file_slot *s = CONTAINER_OF(req, struct file_slot, req);
	struct file *f = s->file;

	CHECK(s->busy);
	if (!err && !s->answered) {
		err = file_operated(f, s);
		if (err == FILE_LATER)
			return;
	}
	slot_measure(f, s, err);
	slot_answer(s, err);
	s->busy = false;
	f->busy--;
	slot_put(f, s);
	file_listen(f);
	file_settle(f);
}

void file_slot_submit(struct file_slot *s)
{
	struct file *f = s->file;
	uint64_t len = s->want.len - s->at;

	CHECK(s->at <= s->want.len);
	s->req.range = range_of(s->want.off + s->at, len);
	s->req.data = (struct iobuf){ 0 };
	s->req.done = slot_done;
	if (s->req.op == REQ_READ || s->req.op == REQ_WRITE) {
		s->req.range.len = MIN(len, (uint64_t)f->store->info.len_max);
		s->req.data = (struct iobuf){ s->data + s->at, s->req.range.len };
	}
	if (!s->busy) {
		s->busy = true;
		f->busy++;
		if (!timer_is_set(&f->watch))
			timer_set(f->loop, &f->watch, loop_now(f->loop) + WATCH_NS);
	}
	req_submit(f->store, &s->req);
}

/* ---- reading ---- */

static void file_dead(struct file *f)
{
	f->dead = true;
	for (unsigned i = 0; i < f->slots; i++)
		f->slot[i].answered = true; /* there is nobody to answer */
	file_tell_gone(f);
}

static void file_request(struct file *f, struct file_slot *s, size_t len)
{
	const struct fuse_in_header *in = (const void *)s->head;
	int r;

	if (len < sizeof(*in) || in->len != len) {
		f->counts.failed++;
		slot_put(f, s);
		return;
	}
	s->opcode = in->opcode;
	s->unique = in->unique;
	s->pid = (pid_t)in->pid;
	s->start_ns = loop_now_fresh(f->loop);
	s->answered = s->interrupted = s->writeback = false;
	s->want = range_of(0, 0);
	s->at = 0;
	s->body = &s->out;
	s->body_len = 0;
	r = file_operate(f, s, len);
	if (r == FILE_LATER)
		return;
	if (r != FILE_SILENT)
		slot_answer(s, r);
	slot_put(f, s);
}

static void file_read(struct file *f)
{
	for (unsigned i = 0; i < BATCH_MAX && !f->dead; i++) {
		struct link *k = list_pop_front(&f->idle);
		struct file_slot *s;
		ssize_t n;

		if (!k)
			return;
		s = LIST_ENTRY(k, struct file_slot, link);
		n = read(f->fd, s->head, FILE_HEAD_LEN + FILE_IO_MAX);
		if (n >= 0) {
			file_request(f, s, (size_t)n);
			continue;
		}
		n = -errno;
		slot_put(f, s);
		if (n == -EAGAIN)
			return;
		if (n == -EINTR || n == -ENOENT) /* a request that ended while it was read */
			continue;
		if (n != -ENODEV && n != -ECONNABORTED)
			log_error(&loop_env(f->loop)->log, "file: %s: /dev/fuse: %s", f->place.path,
				  strerror((int)-n));
		file_dead(f);
	}
}

static void poll_done(struct op *op, int res)
{
	struct file *f = CONTAINER_OF(op, struct file, poll);

	if (f->stopping) {
		file_settle(f);
		return;
	}
	(void)res; /* whatever it is, reading tells */
	file_read(f);
	file_listen(f);
}

int file_listen_open(struct file *f)
{
	struct epoll_event want = { .events = EPOLLIN };

	f->ready_fd = epoll_create1(EPOLL_CLOEXEC);
	if (f->ready_fd < 0 || epoll_ctl(f->ready_fd, EPOLL_CTL_ADD, f->fd, &want))
		return -errno;
	return 0;
}

void file_listen(struct file *f)
{
	if (f->dead || f->stopping || f->ready_fd < 0 || op_pending(&f->poll) ||
	    list_empty(&f->idle))
		return;
	f->poll.done = poll_done;
	op_poll(f->loop, &f->poll, f->ready_fd, POLLIN);
}

/* ---- who was killed ---- */

/* Has the thread got SIGKILL? Then it waits for nothing but us. */
static bool is_killed(pid_t tid)
{
	char path[40], text[4096];
	AUTO_FD int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) /* gone; or not for our eyes */
		return kill(tid, 0) && errno == ESRCH;
	n = read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return n < 0 && errno == ESRCH;
	text[n] = '\0';
	for (const char *at = text; (at = strstr(at, "Pnd:")); at++) /* SigPnd, ShdPnd */
		if (strtoull(at + strlen("Pnd:"), NULL, 16) & (1ULL << (SIGKILL - 1)))
			return true;
	return false;
}

static void slot_look(struct file *f, struct file_slot *s)
{
	if (s->answered || s->writeback || s->pid <= 0 || !is_killed(s->pid))
		return;
	f->counts.killed++;
	slot_answer(s, -EINTR);
}

/* No reply of its own. What is not in flight has been answered already. */
void file_interrupt(struct file *f, uint64_t unique)
{
	for (unsigned i = 0; i < f->slots; i++) {
		struct file_slot *s = &f->slot[i];

		if (s->busy && s->unique == unique) {
			s->interrupted = true;
			slot_look(f, s);
			return;
		}
	}
}

void file_watch(struct timer *timer)
{
	struct file *f = CONTAINER_OF(timer, struct file, watch);
	uint64_t now_ns = loop_now(f->loop);

	for (unsigned i = 0; i < f->slots; i++) {
		struct file_slot *s = &f->slot[i];
		uint64_t age_ns = now_ns - MIN(now_ns, s->start_ns);

		if (s->busy && f->options.nameless && age_ns >= FILE_ANSWER_NS)
			slot_answer(s, -ETIMEDOUT);
		if (s->busy && (s->interrupted || age_ns >= WATCH_NS))
			slot_look(f, s);
	}
	if (f->busy && !f->dead)
		timer_set(f->loop, timer, now_ns + WATCH_NS);
}
