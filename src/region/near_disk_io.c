/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a near store on a disk, as the system has them.
 *
 * Place: below everything else in near_disk*.c, which knows the table alone.
 *
 * Invariant: whatever means "no room here" is -ENOSPC, a quota and a limit of the length included.
 *
 * Locking: none; calls on different handles, and reads and writes on the same one, may come from
 * any thread.
 */
#include "region/near_disk_io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"

struct dir {
	int fd;
};

static int dir_error(int err)
{
	return err == EDQUOT || err == EFBIG ? -ENOSPC : -err;
}

#define RETRY(res, call)                                                                           \
	do                                                                                         \
		res = (call);                                                                      \
	while (res < 0 && errno == EINTR)

static int dir_open(void *arg, const char *name, enum near_disk_open how)
{
	static const int flags[] = {
		[NEAR_DISK_LOOK] = O_RDONLY,
		[NEAR_DISK_USE] = O_RDWR,
		[NEAR_DISK_MAKE] = O_RDWR | O_CREAT,
	};
	int fd = openat(((struct dir *)arg)->fd, name, flags[how] | O_CLOEXEC | O_NOFOLLOW, 0600);

	return fd < 0 ? dir_error(errno) : fd;
}

static void dir_close(void *arg, int fd)
{
	(void)arg;
	close(fd);
}

static ssize_t dir_read(void *arg, int fd, void *buf, size_t len, uint64_t off)
{
	size_t at = 0;

	(void)arg;
	while (at < len) {
		ssize_t n = pread(fd, (char *)buf + at, len - at, (off_t)(off + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		at += (size_t)n;
	}
	return (ssize_t)at;
}

static int dir_write(void *arg, int fd, const struct iovec *iov, int count, uint64_t off)
{
	struct iovec part[8];
	struct iovec *at = part;

	(void)arg;
	CHECK(count <= (int)ARRAY_LEN(part));
	for (int i = 0; i < count; i++)
		part[i] = iov[i];
	for (;;) {
		ssize_t n;

		while (count && !at->iov_len) {
			at++;
			count--;
		}
		if (!count)
			return 0;
		n = pwritev(fd, at, count, (off_t)off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? dir_error(errno) : -ENOSPC;
		off += (uint64_t)n;
		for (int i = 0; n && i < count; i++) {
			size_t step = MIN((size_t)n, at[i].iov_len);

			at[i].iov_base = (char *)at[i].iov_base + step;
			at[i].iov_len -= step;
			n -= (ssize_t)step;
		}
	}
}

static int dir_sync(void *arg, int fd)
{
	(void)arg;
	return fdatasync(fd) < 0 ? -errno : 0;
}

static int dir_truncate(void *arg, int fd, uint64_t size)
{
	int res;

	(void)arg;
	RETRY(res, ftruncate(fd, (off_t)size));
	return res < 0 ? dir_error(errno) : 0;
}

/* The file system that cannot set room aside finds out later that there is none. */
static int dir_allocate(void *arg, int fd, uint64_t off, uint64_t len)
{
	int res;

	(void)arg;
	RETRY(res, fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len));
	if (res < 0 && errno == EOPNOTSUPP)
		return 0;
	return res < 0 ? dir_error(errno) : 0;
}

static int dir_punch(void *arg, int fd, uint64_t off, uint64_t len)
{
	int res;

	(void)arg;
	RETRY(res, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
			     (off_t)len));
	return res < 0 ? dir_error(errno) : 0;
}

static int dir_size(void *arg, int fd, uint64_t *ret)
{
	struct stat st;

	(void)arg;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	*ret = (uint64_t)st.st_size;
	return 0;
}

static int dir_find(void *arg, int fd, uint64_t off, uint64_t *ret)
{
	off_t at = lseek(fd, (off_t)off, SEEK_DATA);

	(void)arg;
	if (at < 0)
		return -errno;
	*ret = (uint64_t)at;
	return 0;
}

static uint64_t dir_changed(void *arg, int fd)
{
	struct stat st;

	(void)arg;
	if (fstat(fd, &st) < 0)
		return 0;
	return (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
}

static int dir_rename(void *arg, const char *from, const char *to)
{
	int fd = ((struct dir *)arg)->fd;

	return renameat(fd, from, fd, to) < 0 ? dir_error(errno) : 0;
}

static int dir_unlink(void *arg, const char *name)
{
	return unlinkat(((struct dir *)arg)->fd, name, 0) < 0 ? -errno : 0;
}

static int dir_sync_dir(void *arg)
{
	return fsync(((struct dir *)arg)->fd) < 0 ? -errno : 0;
}

static int dir_lock(void *arg, int fd, bool take)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int res;

	(void)arg;
	RETRY(res, fcntl(fd, take ? F_OFD_SETLK : F_OFD_GETLK, &lock));
	if (res < 0)
		return errno == EACCES ? -EAGAIN : -errno;
	return !take && lock.l_type != F_UNLCK ? -EAGAIN : 0;
}

static void dir_done(void *arg)
{
	close(((struct dir *)arg)->fd);
	free(arg);
}

int near_disk_dir(struct near_disk_io *ret, const char *dir, struct err *e)
{
	struct dir *d = malloc(sizeof(*d));

	if (!d)
		return err_sys(e, -ENOMEM, "the directory \"%s\"", dir);
	d->fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->fd < 0) {
		int err = -errno;

		free(d);
		return err_sys(e, err, "the directory \"%s\"", dir);
	}
	*ret = (struct near_disk_io){
		.arg = d, .open = dir_open, .close = dir_close, .read = dir_read,
		.write = dir_write, .sync = dir_sync, .truncate = dir_truncate,
		.allocate = dir_allocate, .punch = dir_punch, .size = dir_size, .find = dir_find,
		.changed = dir_changed,
		.rename = dir_rename, .unlink = dir_unlink, .sync_dir = dir_sync_dir,
		.lock = dir_lock, .done = dir_done,
	};
	return 0;
}

int near_disk_read(const struct near_disk_io *io, int fd, uint64_t off, void *buf, size_t len)
{
	ssize_t n = io->read(io->arg, fd, buf, len, off);

	return n < 0 ? (int)n : (size_t)n < len ? -ENODATA : 0;
}

int near_disk_write(const struct near_disk_io *io, int fd, uint64_t off, const void *buf,
		    size_t len)
{
	struct iovec iov = { (void *)(uintptr_t)buf, len };

	return io->write(io->arg, fd, &iov, 1, off);
}
