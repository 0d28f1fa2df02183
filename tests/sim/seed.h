/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seed of the run in progress, told on stderr when a failed CHECK or a crash ends the process,
 * so that REMORA_SEED replays it.
 */
#ifndef REMORA_TESTS_SIM_SEED_H
#define REMORA_TESTS_SIM_SEED_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

static uint64_t seed_now; /* 0 = none */

/* A signal handler. */
static inline void seed_tell(int sig)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "# failed with REMORA_SEED=%llu\n",
			 (unsigned long long)seed_now);

	(void)!write(STDERR_FILENO, text, (size_t)n);
	signal(sig, SIG_DFL);
	raise(sig);
}

#endif
