/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The near store that no program maps, in a memfd: sparse, given back page by page. Also the plain
 * read, write and drop on a descriptor that every near store in a memfd shares.
 *
 * Place: the near store of regions of request front ends; near_disk.c has the one on a disk.
 *
 * Invariant: what is absent is a hole and reads as zeros, unless something failed since (`torn`).
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/limits.h"
#include "region/near.h"

struct near_fd {
	struct near near;
	int fd;
	bool torn; /* a write or a drop has failed: an absent page may hold something */
};

int near_fd_read(int fd, uint64_t off, void *buf, size_t len)
{
	int err = fd_read_at(fd, buf, len, off);

	return err == -ENODATA ? -EIO : err;
}

/* A quota or a limit of the file's length is a lack of room like any other. */
int near_fd_write(int fd, uint64_t off, const void *src, size_t len)
{
	int err = fd_write_at(fd, src, len, off);

	return err == -EDQUOT || err == -EFBIG ? -ENOSPC : err;
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
