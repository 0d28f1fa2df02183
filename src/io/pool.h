/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads for calls that can only block. A work's call() runs on a thread of the pool and touches
 * only what the caller set aside for it; its completion arrives on the loop like any op's.
 */
#ifndef REMORA_IO_POOL_H
#define REMORA_IO_POOL_H

#include "io/loop.h"

struct work {
	struct op op;			/* op.done(op, res) with what call() returned */
	int (*call)(struct work *work); /* >= 0 or -errno; on another thread */
};

/* In a simulation call() runs on the one thread, at a simulated time. Cancelling works only before
 * it has started. */
void pool_run(struct loop *loop, struct work *work);

/* Set-up code of a process that gives up rights, which each thread has for itself. Waits for the
 * threads that run to end; those that start from now on have the rights that the caller has. */
void pool_renew(struct loop *loop);

#endif
