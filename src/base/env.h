/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a pipeline takes from the world besides sockets and files: time, randomness, where to log,
 * and named fault points. One per pipeline; two pipelines in one process share nothing. A
 * simulation gives its own clock and seed.
 */
#ifndef REMORA_BASE_ENV_H
#define REMORA_BASE_ENV_H

#include <stdint.h>

#include "base/log.h"
#include "base/rng.h"

#define NS_PER_US 1000ULL
#define NS_PER_MS 1000000ULL
#define NS_PER_S 1000000000ULL
#define NEVER_NS UINT64_MAX

struct env {
	uint64_t (*now_ns)(void *arg); /* monotonic, any thread */
	/* 0 or -errno to fail with here; NULL = no faults */
	int (*fault)(void *arg, const char *point);
	void *arg;
	struct rng rng; /* of the loop thread alone */
	struct log log;
};

/* The real clock, a random seed, no log. */
void env_init(struct env *env);

static inline uint64_t env_now(const struct env *env)
{
	return env->now_ns(env->arg);
}

/* The time of day in ns, for the time stamps that people see; nothing in the data path goes by it.
 * Any thread. */
uint64_t env_wall_ns(void);

/* Asked at each named point where the world can fail and no test could make it fail from outside.
 */
static inline int env_fault(const struct env *env, const char *point)
{
	return env->fault ? env->fault(env->arg, point) : 0;
}

#endif
