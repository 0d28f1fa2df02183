/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A near store in a memfd that no program maps: sparse memory, given back page by page. Also the
 * plain read, write and drop on a memfd that every near store in one shares.
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
#include "base/limits.h"
#include "region/near.h"

struct near_memfd {
	struct near near;
	int fd;
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

int near_fd_write(int fd, uint64_t off, const void *src, size_t len)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = pwrite(fd, (const char *)src + at, len - at, (off_t)(off + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENOSPC;
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

static int fd_of(struct near *near)
{
	return CONTAINER_OF(near, struct near_memfd, near)->fd;
}

/* Whatever is absent of the range is known to the region, and is all that it asks for: nothing
 * present is in it. A hole in a memfd reads as zeros and takes no memory. */
static int memfd_put(struct near *near, uint64_t off, const void *src, size_t len)
{
	return src ? near_fd_write(fd_of(near), off, src, len) : 0;
}

static int memfd_read(struct near *near, uint64_t off, void *buf, size_t len)
{
	return near_fd_read(fd_of(near), off, buf, len);
}

static int memfd_write(struct near *near, uint64_t off, const void *src, size_t len)
{
	return near_fd_write(fd_of(near), off, src, len);
}

static int memfd_drop(struct near *near, struct range r)
{
	return near_fd_drop(fd_of(near), r);
}

static void memfd_close(struct near *near)
{
	close(fd_of(near));
	free(CONTAINER_OF(near, struct near_memfd, near));
}

static const struct near_ops memfd_ops = {
	.put = memfd_put,
	.read = memfd_read,
	.write = memfd_write,
	.drop = memfd_drop,
	.close = memfd_close,
};

int near_memfd_open(struct near **ret, uint64_t size)
{
	AUTO_FREE struct near_memfd *n = calloc(1, sizeof(*n));
	AUTO_FD int fd = -1;

	if (!n)
		return -ENOMEM;
	fd = memfd_create("remora", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)align_up(size, PAGE_BYTES)) < 0)
		return -errno;
	n->near = (struct near){ .ops = &memfd_ops, .writable = false };
	n->fd = TAKE_FD(fd);
	*ret = &TAKE_PTR(n)->near;
	return 0;
}
