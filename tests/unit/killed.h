/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A life of a store in a process of its own, which is killed at its n-th system call that changes
 * files, for every n: what is there afterwards has to be, chunk by chunk, what the last flush that
 * was answered made safe, or something newer, and never a mixture. For tests of what keeps data in
 * files; the one that includes it defines CHUNK and SIZE (bytes), and LIFE_STEPS.
 */
#ifndef TEST_KILLED_H
#define TEST_KILLED_H

#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"
#include "store/store.h"

/* ---- the files ---- */

/* The order of calls is what is tested: memory will do, where there is some. */
static void life_dir_make(char *ret, size_t len, const char *name)
{
	const char *tmp = getenv("TMPDIR");

	if (!tmp || strlen(tmp) > 40)
		tmp = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
	snprintf(ret, len, "%s/%s-XXXXXX", tmp, name);
	assert_non_null(mkdtemp(ret));
}

/* Without directories in it. */
static void life_dir_remove(const char *dir)
{
	struct dirent *entry;
	DIR *d = opendir(dir);

	while (d && (entry = readdir(d)))
		unlinkat(dirfd(d), entry->d_name, 0);
	if (d)
		closedir(d);
	rmdir(dir);
}

/* ---- the life ---- */

struct life { /* shared with the process */
	volatile unsigned started, flushed; /* states below */
	uint8_t state[LIFE_STEPS + 1][SIZE];
};

struct life_odds { /* of a million */
	uint32_t flush, wait;
};

struct life_flush {
	struct req req;
	struct life *life;
	unsigned step;
	bool pending, done;
};

static struct life *life_open(void)
{
	struct life *l =
		mmap(NULL, sizeof(*l), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(l != MAP_FAILED);
	return l;
}

static void life_flushed(struct req *req, int err)
{
	struct life_flush *f = CONTAINER_OF(req, struct life_flush, req);

	assert_int_equal(0, err);
	f->pending = false;
	f->done = true;
	f->life->flushed = f->step;
}

/* On one thread, in a simulation. What comes behind a flush runs together with it. */
static void life_run(struct life *l, struct store *store, uint64_t seed, struct life_odds odds)
{
	struct life_flush flush = { .life = l };
	struct rng r;

	rng_init(&r, seed);
	for (unsigned i = 1; i <= LIFE_STEPS; i++) {
		uint64_t off = rng_below(&r, SIZE), room = MIN(3 * CHUNK, SIZE - off);
		uint64_t len = 1 + rng_below(&r, room);
		bool writes = rng_chance(&r, 700000);

		if (!flush.pending && rng_chance(&r, odds.flush)) {
			flush = (struct life_flush){ .life = l, .step = i - 1, .pending = true };
			flush.req = (struct req){ .op = REQ_FLUSH, .done = life_flushed };
			req_submit(store, &flush.req);
		}
		memcpy(l->state[i], l->state[i - 1], SIZE);
		memset(l->state[i] + off, writes ? (int)i : 0, len);
		l->started = i;
		if (writes)
			assert_int_equal(0, store_write(store, off, l->state[i] + off, len, 0));
		else
			assert_int_equal(0, store_zero(store, off, len));
		if (flush.pending && rng_chance(&r, odds.wait))
			assert_int_equal(0, loop_run_until(store->loop, &flush.done, NEVER_NS));
	}
	if (flush.pending)
		assert_int_equal(0, loop_run_until(store->loop, &flush.done, NEVER_NS));
}

static void life_check(const struct life *l, const uint8_t *bytes, uint64_t seed, unsigned n)
{
	for (size_t off = 0; off < SIZE; off += CHUNK) {
		unsigned i = l->flushed;

		while (i <= l->started &&
		       memcmp(l->state[i] + off, bytes + off, MIN(CHUNK, SIZE - off)))
			i++;
		if (i > l->started)
			fail_msg("seed %llu, killed at call %u: chunk %zu is as it was at no step "
				 "from %u to %u", (unsigned long long)seed, n, off / CHUNK,
				 l->flushed, l->started);
	}
}

/* ---- its end ---- */

struct killer {
	void (*child)(void *arg);
	/* Each stop, before and behind a call. True: this is before a call that counts. */
	bool (*counts)(void *arg, pid_t pid, const struct __ptrace_syscall_info *info);
	void *arg;
};

/* False: it came to its end before. */
static bool life_killed_at(struct life *l, const struct killer *k, unsigned n)
{
	struct __ptrace_syscall_info info;
	int status;
	pid_t pid;

	memset(l, 0, sizeof(*l));
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		k->child(k->arg);
		_exit(0); /* a crash as well */
	}
	assert_int_equal(pid, waitpid(pid, &status, 0));
	assert_true(WIFSTOPPED(status));
	assert_int_equal(
		0, ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
	do {
		assert_int_equal(0, ptrace(PTRACE_SYSCALL, pid, 0, 0));
		assert_int_equal(pid, waitpid(pid, &status, 0));
		if (WIFEXITED(status)) {
			assert_int_equal(0, WEXITSTATUS(status));
			return false;
		}
		assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80));
		memset(&info, 0, sizeof(info));
		assert_true(ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info) > 0);
	} while (!k->counts(k->arg, pid, &info) || n--);
	kill(pid, SIGKILL);
	assert_int_equal(pid, waitpid(pid, &status, 0));
	return true;
}

#endif
