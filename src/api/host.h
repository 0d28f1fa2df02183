/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread of a public handle: it owns the loop and everything on it, and other threads hand it
 * calls and requests and wait for their ends.
 */
#ifndef REMORA_API_HOST_H
#define REMORA_API_HOST_H

#include <pthread.h>
#include <sys/types.h>

#include "base/env.h"
#include "base/err.h"
#include "remora/remora.h"
#include "store/spec.h"

/* Something in the loop's thread that another thread waits for. */
struct host_wait {
	bool ended; /* under the host's lock */
	int err;
};

struct host {
	struct loop *loop;
	struct env env;
	struct remora_options options; /* checked; complete whatever the caller's struct_size */
	pid_t pid; /* a child of fork() has the handle's memory, but not its threads */
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t change; /* some wait has ended */
	/* set-up and its opposite, in the loop's thread */
	int (*setup)(struct host *host, const char *spec, struct err *e);
	void (*teardown)(struct host *host);
	struct { /* during host_open() */
		const char *spec;
		struct err *e;
		struct host_wait wait;
	} start;
};

void host_end(struct host *host, struct host_wait *wait, int err);
MUST_USE int host_wait(struct host *host, struct host_wait *wait);

/*
 * Checks the options, starts the thread and its loop, runs setup() in it and returns what that
 * returned. When it failed (and has freed what it made) nothing is left. teardown() runs in
 * host_close(), when the loop has stopped: it may run it once more (set-up code).
 */
MUST_USE int host_open(struct host *host, const char *spec, const struct remora_options *options,
		       struct err *e);
void host_close(struct host *host);

/* 0, or why this thread must not wait for the loop's: -ECHILD after a fork, -EDEADLK from a hook.
 */
MUST_USE int host_may_wait(const struct host *host);

/*
 * Any thread: makes requests out of READ or WRITE of any length, of FLUSH one, and waits for them.
 * *ret_instance (may be NULL) is the instance that answered; INSTANCE_MIXED when several did.
 */
#define INSTANCE_MIXED UINT64_MAX
MUST_USE int host_request(struct host *host, struct store *store, enum req_op op, uint64_t off,
			  void *buf, size_t len, uint64_t *ret_instance);

/* What remora_open() and remora_store_open() ask of spec_open(). */
struct store_open host_store_open(struct host *host, struct range first);

/* Copies the text to the caller's struct (may be NULL) and returns `err`. */
int host_error(struct remora_error *to, const struct err *e, int err);

#endif
