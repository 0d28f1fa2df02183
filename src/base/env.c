/* SPDX-License-Identifier: Apache-2.0 */
/* The real world: see env.h. */
#include "base/env.h"

#include <string.h>
#include <time.h>

static uint64_t clock_monotonic(void *arg)
{
	struct timespec ts;

	(void)arg;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t env_wall_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

void env_init(struct env *env)
{
	memset(env, 0, sizeof(*env));
	env->now_ns = clock_monotonic;
	rng_init(&env->rng, rng_system());
	env->log.max = LOG_INFO;
}
