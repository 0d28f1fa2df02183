/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing files as a whole: the loops around pread(2) and pwrite(2). Any thread. */
#ifndef REMORA_BASE_FD_H
#define REMORA_BASE_FD_H

#include <stddef.h>
#include <stdint.h>

#include "base/check.h"

/* All of `len` bytes: 0 or -errno; -ENODATA when the file ends within them. */
MUST_USE int fd_read_at(int fd, void *buf, size_t len, uint64_t off);
MUST_USE int fd_write_at(int fd, const void *buf, size_t len, uint64_t off);

#endif
