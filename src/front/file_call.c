/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What takes its time: making the kernel write back, dropping its pages, taking the mount away.
 *
 * Place: file_sync(), file_invalidate(), file_detach() -> a lane -> a thread of the pool, whose
 * system call may wait for requests that the loop serves meanwhile.
 *
 * Invariants.
 *  1. A lane has one call with the pool at a time; a detach never waits behind a sync, which may
 *     take as long as the far side likes.
 *  2. A file that has lost its name by us has own_fd until its last user is gone, and is synced
 *     through that; others are opened by their name each time, so that nothing keeps them busy.
 *
 * syncfs(2) would not do: the kernel does not wait in it for a file system that it does not trust.
 * fsync(2) does wait; the FSYNC that comes of it is told by its handle, and goes no further.
 *
 * System calls that wait for the kernel's writing are made by a process apart (file_apart.c), so
 * that ours can be killed meanwhile; but for the notification that drops pages, which needs
 * /dev/fuse itself, and waits for no more than a page that is just read or written.
 *
 * Locking: a call that the pool has belongs to its thread, as does lane->own_fd meanwhile. Besides
 * these it reads what does not change: the connection and the place. lane->opener is atomic.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "front/file_int.h"

/* ---- on the pool ---- */

int file_open_own(struct file *f, struct file_lane *lane)
{
	AUTO_FD int fd = -1;
	struct stat st;

	atomic_store(&lane->opener, gettid());
	fd = open(f->place.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		fd = -errno;
	atomic_store(&lane->opener, 0);
	if (fd < 0)
		return fd;
	if (fstat(fd, &st) || st.st_dev != f->place.dev)
		return -ESTALE; /* something else has this name now */
	return TAKE_FD(fd);
}

/* Its dirty pages are written, and waited for, before they are dropped. Length 0 = to the end. */
static int pages_drop(struct file *f, struct range r)
{
	struct fuse_notify_inval_inode_out what = {
		.ino = FUSE_ROOT_ID, .off = (int64_t)r.off, .len = (int64_t)r.len,
	};
	struct fuse_out_header head = {
		.len = sizeof(head) + sizeof(what), .error = FUSE_NOTIFY_INVAL_INODE,
	};
	struct iovec iov[2] = { { &head, sizeof(head) }, { &what, sizeof(what) } };

	if (writev(f->fd, iov, 2) >= 0)
		return 0;
	/* There always is a root, as long as there is a file system. */
	return errno == ENODEV || errno == ENOENT ? -ENOTCONN : -errno;
}

/* In a process apart. fd: own_fd, if there is one. */
APART_CODE static long pages_write_apart(void *arg, int fd)
{
	struct file_lane *lane = arg;
	struct file *f = lane->file;
	struct stat st;
	long at, res;

	if (lane->own_fd >= 0)
		return syscall(SYS_fsync, fd) ? -errno : 0;
	atomic_store(&lane->opener, (pid_t)syscall(SYS_gettid));
	at = syscall(SYS_openat, AT_FDCWD, f->place.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	atomic_store(&lane->opener, 0);
	if (at < 0)
		return -errno;
	if (fstat((int)at, &st) || st.st_dev != f->place.dev)
		res = -ESTALE;
	else
		res = syscall(SYS_fsync, at) ? -errno : 0;
	syscall(SYS_close, at);
	return res;
}

static int pages_write(struct file *f, struct file_lane *lane)
{
	int r = (int)apart_run(pages_write_apart, lane, lane->own_fd, f->fd);

	/* Somebody else has taken its name: dropping pages writes them, too. */
	return r == -ESTALE || r == -ENOENT ? pages_drop(f, range_of(0, 0)) : r;
}

static int detach(struct file *f, struct file_lane *lane, bool lazy)
{
	int own_fd = -1, r;

	if (lazy && lane->own_fd < 0)
		own_fd = file_open_own(f, lane);
	r = place_detach(&f->place, lazy, f->fd);
	if (r) {
		if (own_fd >= 0)
			close(own_fd);
		return r;
	}
	place_remove(&f->place);
	if (own_fd >= 0)
		lane->own_fd = own_fd;
	return 0;
}

static int lane_call(struct work *work)
{
	struct file_lane *lane = CONTAINER_OF(work, struct file_lane, work);
	const struct file_call *call = lane->now;

	switch ((enum file_what)call->what) {
	case FILE_SYNC:
		return pages_write(lane->file, lane);
	case FILE_INVALIDATE:
		return pages_drop(lane->file, call->range);
	case FILE_DETACH:
		return detach(lane->file, lane, call->lazy);
	case FILE_DROP:
		return close(lane->own_fd) ? -errno : 0;
	}
	return -EINVAL;
}

/* ---- on the loop ---- */

void file_tell_gone(struct file *f)
{
	/* While it is being detached nobody knows yet through whom it went. */
	if (!f->dead || f->gone_told || f->detached || f->closing || !f->greeted ||
	    (f->mount.now && f->mount.now->what == FILE_DETACH))
		return;
	f->gone_told = true;
	if (f->hooks.gone)
		f->hooks.gone(f->hooks.arg);
}

static void lane_go(struct file_lane *lane)
{
	struct file *f = lane->file;
	struct link *k;

	if (lane->now || f->closing)
		return;
	k = list_pop_front(&lane->queue);
	if (!k)
		return;
	lane->now = LIST_ENTRY(k, struct file_call, link);
	lane->own_fd = f->own_fd;
	pool_run(f->loop, &lane->work);
}

static void lane_done(struct op *op, int res)
{
	struct file_lane *lane = CONTAINER_OF(op, struct file_lane, work.op);
	struct file_call *call = TAKE_PTR(lane->now);
	struct file *f = lane->file;

	if (call->what == FILE_DETACH && !res) {
		f->own_fd = lane->own_fd;
		f->detached |= !call->lazy;
	} else if (call->what == FILE_DROP) {
		f->own_fd = -1;
		f->dropping = false;
	}
	call->done(call, res);
	file_tell_gone(f);
	file_drop_if_unused(f);
	lane_go(lane);
	file_settle(f);
}

static void lane_init(struct file_lane *lane, struct file *f)
{
	lane->file = f;
	lane->own_fd = -1;
	lane->work.call = lane_call;
	lane->work.op.done = lane_done;
	list_init(&lane->queue);
}

void file_lanes_init(struct file *f)
{
	lane_init(&f->sync, f);
	lane_init(&f->mount, f);
}

static void lane_fail(struct file_lane *lane)
{
	struct link *k;

	while ((k = list_pop_front(&lane->queue))) {
		struct file_call *call = LIST_ENTRY(k, struct file_call, link);

		call->done(call, -ESHUTDOWN);
	}
}

void file_lanes_fail(struct file *f)
{
	lane_fail(&f->sync);
	lane_fail(&f->mount);
}

static void call_start(struct file *f, struct file_lane *lane, struct file_call *call,
		       enum file_what what)
{
	CHECK(call->done && !f->closing);
	call->file = f;
	call->link = (struct link){ 0 };
	call->what = what;
	list_push_back(&lane->queue, &call->link);
	lane_go(lane);
}

void file_sync(struct file *file, struct file_call *call)
{
	call_start(file, &file->sync, call, FILE_SYNC);
}

/* An empty range means "to the end" to the kernel: more is dropped then, which is no loss. */
void file_invalidate(struct file *file, struct file_call *call)
{
	call_start(file, &file->sync, call, FILE_INVALIDATE);
}

void file_detach(struct file *file, struct file_call *call)
{
	call_start(file, &file->mount, call, FILE_DETACH);
}

static void dropped(struct file_call *call, int err)
{
	(void)call;
	(void)err; /* the descriptor is closed in any case */
}

void file_drop_if_unused(struct file *f)
{
	if (f->own_fd < 0 || f->users || f->dropping || f->closing)
		return;
	f->dropping = true;
	f->drop.done = dropped;
	call_start(f, &f->sync, &f->drop, FILE_DROP);
}
