/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going to the background: the command that people started returns when its child says that it is
 * ready, with the child's exit code, and the child stays. And what a service manager wants to hear.
 */
#ifndef REMORA_CMD_BACKGROUND_H
#define REMORA_CMD_BACKGROUND_H

#include "base/err.h"

struct background {
	int fd; /* to the parent; -1 = there is none (any more) */
};

/*
 * Forks: before any thread, loop or descriptor of importance exists. Returns 0 in the child, which
 * keeps the parent's standard descriptors until background_ready(), and keep_fd (-1 = none) beside
 * them. In the parent it returns only when the child is ready or has ended: 1, and *ret_code is the
 * exit code. -errno: it could not be done.
 */
MUST_USE int background_start(struct background *b, int keep_fd, int *ret_code, struct err *e);

/* The child is ready: the parent exits with 0. Then the child is in a session of its own, with its
 * standard descriptors on /dev/null. -EPIPE: the parent was killed. Nothing to do without a
 * parent. */
MUST_USE int background_ready(struct background *b);

/* Tells the service manager ("READY=1\nSTATUS=..."), if there is one ($NOTIFY_SOCKET). */
void service_tell(const char *fmt, ...) PRINTF_LIKE(1, 2);

#endif
