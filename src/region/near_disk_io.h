/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a near store on a disk asks of its directory: a table of functions, so that a test can be
 * the disk, and crash it at any call. Names are those of files in the directory; a handle is a
 * number >= 0. Everything returns 0 (or what it says) or -errno.
 */
#ifndef REMORA_REGION_NEAR_DISK_IO_H
#define REMORA_REGION_NEAR_DISK_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/err.h"

enum near_disk_open { NEAR_DISK_LOOK, NEAR_DISK_USE, NEAR_DISK_MAKE };

struct near_disk_io {
	void *arg;
	int (*open)(void *arg, const char *name, enum near_disk_open how); /* a handle */
	void (*close)(void *arg, int fd);
	/* bytes; fewer at the end of the file */
	ssize_t (*read)(void *arg, int fd, void *buf, size_t len, uint64_t off);
	/* all of it, or an error with a part of it written */
	int (*write)(void *arg, int fd, const struct iovec *iov, int count, uint64_t off);
	int (*sync)(void *arg, int fd); /* what was written, and the file's length, is safe */
	int (*truncate)(void *arg, int fd, uint64_t size);
	int (*allocate)(void *arg, int fd, uint64_t off, uint64_t len); /* room; not the length */
	int (*punch)(void *arg, int fd, uint64_t off, uint64_t len);
	int (*size)(void *arg, int fd, uint64_t *ret);
	/* where something is at or after `off`; -ENXIO: nothing. NULL = unknown */
	int (*find)(void *arg, int fd, uint64_t off, uint64_t *ret);
	uint64_t (*changed)(void *arg, int fd); /* when, ns since 1970; may be NULL */
	int (*rename)(void *arg, const char *from, const char *to);
	int (*unlink)(void *arg, const char *name);
	int (*sync_dir)(void *arg);
	/* until the handle is closed, or just asks; -EAGAIN: somebody has it */
	int (*lock)(void *arg, int fd, bool take);
	void (*done)(void *arg); /* the table is not needed any more; may be NULL */
};

/* The real one; done() closes it. */
MUST_USE int near_disk_dir(struct near_disk_io *ret, const char *dir, struct err *e);

/* Exactly that much, -ENODATA when the file ends before. */
MUST_USE int near_disk_read(const struct near_disk_io *io, int fd, uint64_t off, void *buf,
			    size_t len);
MUST_USE int near_disk_write(const struct near_disk_io *io, int fd, uint64_t off, const void *buf,
			     size_t len);

#endif
