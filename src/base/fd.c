/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading and writing files as a whole.
 *
 * Place: below everything that keeps something in a file and can block: near stores, back ends and
 * stages on threads of the pool.
 *
 * Invariant: 0 means all of it, never a part.
 *
 * Locking: none.
 */
#include "base/fd.h"

#include <errno.h>
#include <sys/types.h>
#include <unistd.h>

int fd_read_at(int fd, void *buf, size_t len, uint64_t off)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = pread(fd, (uint8_t *)buf + at, len - at, (off_t)(off + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		at += (size_t)n;
	}
	return 0;
}

int fd_write_at(int fd, const void *buf, size_t len, uint64_t off)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = pwrite(fd, (const uint8_t *)buf + at, len - at, (off_t)(off + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		at += (size_t)n;
	}
	return 0;
}
