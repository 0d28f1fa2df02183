/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs by seed: many of them, one again, and those that have to find a planted bug. The seed of the
 * run in progress is told on stderr when a failed CHECK or a crash ends the process, so that
 * REMORA_SEED replays it. cmocka.h comes before.
 */
#ifndef REMORA_TESTS_SIM_SEED_H
#define REMORA_TESTS_SIM_SEED_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
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

static inline uint64_t env_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

/* The run of REMORA_SEED, which tells what it does; or of 1 to REMORA_SEEDS. */
static inline void seeds_run(uint64_t count, void (*run)(uint64_t seed, bool tells))
{
	uint64_t only = env_number("REMORA_SEED", 0);

	count = only ? only : env_number("REMORA_SEEDS", count);
	for (uint64_t seed = only ? only : 1; seed <= count; seed++)
		run(seed, only != 0);
}

/* A model is of use only if it finds the bugs that it was made for: one of these runs aborts. */
static inline void seeds_find(uint64_t count, void (*run)(uint64_t seed, int bug), int bug)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		signal(SIGABRT, SIG_DFL);
		fclose(stderr);
		for (uint64_t seed = 1; seed <= count; seed++)
			run(seed, bug);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

#endif
