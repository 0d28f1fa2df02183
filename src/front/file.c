/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file front end: its life. See file.h for what it is, file_int.h for who does what.
 *
 * Place: the mount command and the API open one on a store; below it file_loop.c serves the kernel.
 *
 * The end, in this order, each step when the one before is over (file_settle):
 *	file_close()	whatever the store has is answered ENOTCONN, as is what the kernel asks from
 *			now on; calls that have not begun fail
 *	settling	calls that the pool has end: all that they can wait for is answered
 *	ending		the pool closes our handles, takes the mount away lazily and removes the
 *			mount point
 *	ended		requests that the store has come back
 *	stopping	nothing is read any more; the connection is closed, which fails whoever is
 *			still there; free
 *
 * Invariants.
 *  1. The connection is open as long as any thread of ours may wait in the kernel for an answer:
 *     closing it while one writes to it would not end it.
 *  2. Nothing is freed from within file_close(), which may be called from any callback of ours.
 *
 * Locking: none; the loop's thread. What works share with it is set aside for them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "front/file_int.h"

#define GREET_NS (10 * NS_PER_S)

/* ---- the end ---- */

static int end_call(struct work *work)
{
	struct file *f = CONTAINER_OF(work, struct file, end);
	int r;

	if (f->user_fd >= 0)
		close(f->user_fd);
	if (f->own_fd >= 0)
		close(f->own_fd);
	r = place_detach(&f->place, true, f->fd);
	place_remove(&f->place);
	return r;
}

static void end_done(struct op *op, int res)
{
	struct file *f = CONTAINER_OF(op, struct file, end.op);

	if (res)
		log_warn(&loop_env(f->loop)->log, "file: %s: taking the mount away: %s",
			 f->place.path, strerror(-res));
	f->ended = true;
	file_settle(f);
}

static void file_free(struct file *f)
{
	void (*closed)(void *arg) = f->closed;
	void *arg = f->closed_arg;

	if (f->fd >= 0)
		close(f->fd);
	loop_close_fd(f->loop, f->ready_fd);
	if (f->mem)
		munmap(f->mem, f->mem_len);
	place_done(&f->place);
	free(f);
	if (closed)
		closed(arg);
}

void file_settle(struct file *f)
{
	if (!f->closing || f->posted || f->sync.now || f->mount.now)
		return;
	if (!f->ending) {
		f->ending = true;
		f->end.call = end_call;
		f->end.op.done = end_done;
		pool_run(f->loop, &f->end);
		return;
	}
	if (!f->ended || f->busy)
		return;
	timer_clear(f->loop, &f->watch);
	f->stopping = true;
	if (op_pending(&f->poll))
		op_cancel(f->loop, &f->poll); /* comes back here */
	else
		file_free(f);
}

static void close_begin(struct post *post)
{
	struct file *f = CONTAINER_OF(post, struct file, post);

	f->posted = false;
	file_lanes_fail(f);
	file_settle(f);
}

void file_close(struct file *file, void (*closed)(void *arg), void *arg)
{
	if (!file)
		return;
	CHECK(!file->closing);
	file->closing = true;
	file->closed = closed;
	file->closed_arg = arg;
	file_answer_all(file, -ENOTCONN);
	file->posted = true;
	file->post.run = close_begin;
	loop_defer(file->loop, &file->post);
}

static void flag_set(void *arg)
{
	*(bool *)arg = true;
}

void file_close_wait(struct file *file)
{
	struct loop *loop;
	bool closed = false;

	if (!file)
		return;
	loop = file->loop;
	file_close(file, flag_set, &closed);
	CHECK(!loop_run_until(loop, &closed, NEVER_NS) && closed);
}

/* ---- the beginning ---- */

static void setup_done(struct op *op, int res)
{
	struct file *f = CONTAINER_OF(op, struct file, setup.op);

	f->setup_res = res;
	f->setup_done = true;
}

/* Runs a call of the set-up on the pool, and the loop meanwhile, which may have to serve it. */
static int setup_run(struct file *f, int (*call)(struct work *work))
{
	f->setup_done = false;
	f->setup.call = call;
	f->setup.op.done = setup_done;
	pool_run(f->loop, &f->setup);
	CHECK(!loop_run_until(f->loop, &f->setup_done, NEVER_NS) && f->setup_done);
	return f->setup_res;
}

static int mount_call(struct work *work)
{
	struct file *f = CONTAINER_OF(work, struct file, setup);

	return place_mount(&f->place, &f->options, &f->fd, &f->err);
}

static int file_greet(struct file *f, struct err *e)
{
	int r = file_listen_open(f);

	if (r)
		return err_sys(e, r, "%s: epoll", f->place.path);
	file_listen(f);
	r = loop_run_until(f->loop, &f->greeted, loop_now_fresh(f->loop) + GREET_NS);
	if (r || f->dead)
		return err_set(e, r ? r : -ENODEV, "%s: the kernel did not begin to use the mount: %s",
			       f->place.path, r ? strerror(-r) : "it was unmounted");
	if (f->kernel_major != FUSE_KERNEL_VERSION || f->kernel_minor < FILE_MINOR_MIN)
		return err_set(e, -EPROTO, "%s: this kernel speaks version %u.%u of the FUSE protocol; "
			       "7.%u is the least (Linux 5.4)", f->place.path, f->kernel_major,
			       f->kernel_minor, FILE_MINOR_MIN);
	return 0;
}

/* nameless: opened, and the name taken away. */
static int unname_call(struct work *work)
{
	struct file *f = CONTAINER_OF(work, struct file, setup);
	int r;

	f->user_fd = open(f->place.path, (f->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (f->user_fd < 0)
		return -errno;
	f->own_fd = file_open_own(f, &f->mount);
	if (f->own_fd < 0)
		return f->own_fd;
	r = place_detach(&f->place, true, f->fd);
	place_remove(&f->place);
	return r;
}

static int tune_call(struct work *work)
{
	place_tune(&CONTAINER_OF(work, struct file, setup)->place);
	return 0;
}

static int file_start(struct file *f, struct err *e)
{
	int r = file_slots_open(f);

	if (r)
		return err_sys(e, r, "%s: buffers", f->options.path);
	r = setup_run(f, mount_call);
	if (r) {
		if (e)
			*e = f->err;
		return r;
	}
	r = file_greet(f, e);
	if (r)
		return r;
	(void)setup_run(f, tune_call);
	r = f->options.nameless ? setup_run(f, unname_call) : 0;
	if (r)
		return err_sys(e, r, "%s: opening the file that was just mounted", f->place.path);
	return 0;
}

static void attributes_init(struct file *f)
{
	const struct file_options *o = &f->options;

	f->size = f->store->info.size;
	f->read_only = o->read_only || f->store->info.read_only;
	f->options.read_only = f->read_only;
	f->mode = S_IFREG | S_IRUSR | (f->read_only ? 0 : S_IWUSR) |
		  (o->others ? S_IRGRP | S_IROTH : 0);
	f->uid = geteuid();
	f->gid = getegid();
	f->atime_ns = f->mtime_ns = f->ctime_ns = env_wall_ns();
	f->io_max = (uint32_t)MIN(FILE_IO_MAX, align_down(f->store->info.len_max, PAGE_BYTES));
	f->io_max = MAX(f->io_max, PAGE_BYTES);
}

int file_open(struct file **ret, struct loop *loop, const struct file_options *options,
	      struct err *e)
{
	struct file *f = calloc(1, sizeof(*f));
	int r;

	CHECK(options->store && options->path && options->source);
	if (!f)
		return err_sys(e, -ENOMEM, "%s", options->path);
	f->loop = loop;
	f->store = options->store;
	f->options = *options;
	f->hooks = options->hooks;
	f->fd = f->ready_fd = f->user_fd = f->own_fd = -1;
	f->watch.fire = file_watch;
	list_init(&f->idle);
	file_lanes_init(f);
	attributes_init(f);
	r = file_start(f, e);
	f->options.path = f->options.source = NULL;
	if (r) {
		file_close_wait(f);
		return r;
	}
	*ret = f;
	return 0;
}

/* ---- small things ---- */

int file_take_fd(struct file *file)
{
	CHECK(file->user_fd >= 0);
	return TAKE_FD(file->user_fd);
}

const char *file_how(const struct file *file)
{
	return file->place.helper ? "fusermount3" : "mount(2)";
}

unsigned file_users(const struct file *file)
{
	return file->users;
}

void file_shut(struct file *file, bool shut)
{
	file->shut = shut;
}

void file_count(const struct file *file, struct file_counts *ret)
{
	*ret = file->counts;
}
