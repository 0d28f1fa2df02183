/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Near stores that no program maps: sparse, given back page by page, in a memfd or in a file
 * without a name in a directory. Also the plain read, write and drop on a descriptor that every
 * near store in a memfd shares.
 *
 * The file has no name from the start: it is gone with the process, however that ends, and its room
 * with it. Its data stays in the kernel's page cache as long as there is memory, and goes to the
 * disk when there is not.
 *
 * Invariant: what is absent is a hole and reads as zeros, unless something failed since (`torn`).
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/size.h"
#include "region/near.h"

struct near_fd {
	struct near near;
	int fd;
	bool torn; /* a write or a drop has failed: an absent page may hold something */
};

int near_fd_read(int fd, uint64_t off, void *buf, size_t len)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = pread(fd, (char *)buf + at, len - at, (off_t)(off + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += (size_t)n;
	}
	return 0;
}

/* A quota or a limit of the file's length is a lack of room like any other. */
static int write_error(int err)
{
	return err == EDQUOT || err == EFBIG ? -ENOSPC : -err;
}

int near_fd_write(int fd, uint64_t off, const void *src, size_t len)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = pwrite(fd, (const char *)src + at, len - at, (off_t)(off + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? write_error(errno) : -ENOSPC;
		at += (size_t)n;
	}
	return 0;
}

int near_fd_drop(int fd, struct range r)
{
	int res;

	do
		res = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)r.off,
				(off_t)r.len);
	while (res < 0 && errno == EINTR);
	return res < 0 ? -errno : 0;
}

/* ---- the near store ---- */

static struct near_fd *near_of(struct near *near)
{
	return CONTAINER_OF(near, struct near_fd, near);
}

static int note(struct near *near, int err)
{
	if (err)
		near_of(near)->torn = true;
	return err;
}

static int fd_read(struct near *near, uint64_t off, void *buf, size_t len)
{
	return near_fd_read(near_of(near)->fd, off, buf, len);
}

static int fd_write(struct near *near, uint64_t off, const void *src, size_t len)
{
	return note(near, near_fd_write(near_of(near)->fd, off, src, len));
}

static int fd_drop(struct near *near, struct range r)
{
	return note(near, near_fd_drop(near_of(near)->fd, r));
}

/* Whatever is absent of the range is known to the region, and is all that it asks for: nothing
 * present is in it. */
static int fd_put(struct near *near, uint64_t off, const void *src, size_t len)
{
	if (src)
		return fd_write(near, off, src, len);
	return near_of(near)->torn ? fd_drop(near, range_of(off, len)) : 0;
}

static void fd_close(struct near *near)
{
	close(near_of(near)->fd);
	free(near_of(near));
}

static const struct near_ops fd_ops = {
	.put = fd_put,
	.read = fd_read,
	.write = fd_write,
	.drop = fd_drop,
	.close = fd_close,
};

/* Takes the descriptor, also when it fails. */
static int near_fd_new(struct near **ret, int fd)
{
	struct near_fd *n = calloc(1, sizeof(*n));

	if (!n) {
		close(fd);
		return -ENOMEM;
	}
	n->near = (struct near){ .ops = &fd_ops, .writable = false };
	n->fd = fd;
	*ret = &n->near;
	return 0;
}

int near_memfd_open(struct near **ret, uint64_t size)
{
	AUTO_FD int fd = memfd_create("remora", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)align_up(size, PAGE_BYTES)) < 0)
		return -errno;
	return near_fd_new(ret, TAKE_FD(fd));
}

/* ---- in a directory ---- */

/* Not every file system has files without a name; there it loses its name at once. */
static int dir_file(const char *dir)
{
	char path[PATH_MAX];
	int fd = open(dir, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600), len;

	if (fd >= 0)
		return fd;
	if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
		return -errno;
	len = snprintf(path, sizeof(path), "%s/.remora-near-XXXXXX", dir);
	if (len < 0 || (size_t)len >= sizeof(path))
		return -ENAMETOOLONG;
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (unlink(path) < 0) {
		int err = -errno;

		close(fd);
		return err;
	}
	return fd;
}

/* Whether room is given back there, which a budget, and dropped pages that read as zeros, need. */
static int dir_try(int fd, uint64_t size)
{
	char byte = 0;
	int err;

	if (ftruncate(fd, (off_t)align_up(size, PAGE_BYTES)) < 0)
		return -errno;
	if (!size)
		return 0;
	err = near_fd_write(fd, 0, &byte, 1);
	return err ? err : near_fd_drop(fd, range_of(0, PAGE_BYTES));
}

int near_dir_open(struct near **ret, const char *dir, uint64_t size, struct err *e)
{
	AUTO_FD int fd = dir_file(dir);
	char text[SIZE_TEXT_MAX];
	int err;

	if (fd < 0)
		return err_sys(e, fd, "no file can be made in the directory \"%s\"", dir);
	err = dir_try(fd, size);
	if (err == -EOPNOTSUPP)
		return err_set(e, err,
			       "the file system of \"%s\" cannot give room back (no holes in files): "
			       "use another directory, or memory",
			       dir);
	if (err)
		return err_sys(e, err, "\"%s\" has no room for a file of %s", dir,
			       size_format(size, text));
	err = near_fd_new(ret, TAKE_FD(fd));
	return err ? err_sys(e, err, "no memory for a near store") : 0;
}
