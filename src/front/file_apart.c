/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes beside ours that share its memory and nothing else, so that a process which serves a
 * mount can be killed at any time.
 *
 * Place: file_call.c and file_mount.c make system calls through apart_run() that can wait for what
 * the loop serves; the API keeps a guard while a program has such a file mapped.
 *
 * Why. A killed process closes /dev/fuse only when all of its threads have ended, and when it has
 * unmapped its memory. A thread that waits for an answer which nobody will give any more (fsync of
 * dirty pages, an unmount) does not end; and unmapping dirty pages of our own file waits for them
 * to be written. Either way the process would stay, unkillable, with all who use the file.
 *	apart_run()	The call is made by a process with its own descriptors, without /dev/fuse.
 *			Whoever waits for it can be killed, /dev/fuse is closed, and that fails
 *			the call.
 *	guard		A process that holds the memory until ours has closed its descriptors: what
 *			it unmaps then has nobody to wait for. (Not when both are killed at once, as
 *			the kernel does when memory runs out: FILE_TIMEOUT_S is for that.)
 *
 * Invariants.
 *  1. The child runs on a stack of its own while the thread that made it sleeps in the clone: they
 *     share its errno and nothing is changed by both.
 *  2. The child makes bare system calls alone: no allocation, no lock, nothing that a sanitizer
 *     looks into.
 *
 * Locking: none; each call has its own memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "front/file_int.h"

#define STACK_LEN (64 * KIB)

struct apart {
	long (*call)(void *arg, int fd);
	void *arg;
	int keep_fd, close_fd;
	long res;
};

APART_CODE static int apart_child(void *arg)
{
	struct apart *a = arg;
	long first = 0;

	if (a->keep_fd >= 0) {
		syscall(SYS_dup3, a->keep_fd, 0, 0); /* EINVAL: it is 0 already */
		first = 1;
	}
	if (syscall(SYS_close_range, first, ~0u, 0)) /* before Linux 5.9 */
		syscall(SYS_close, a->close_fd);
	a->res = a->call(a->arg, 0);
	syscall(SYS_exit_group, 0);
	return 0;
}

long apart_run(long (*call)(void *arg, int fd), void *arg, int keep_fd, int close_fd)
{
	struct apart a = { .call = call, .arg = arg, .keep_fd = keep_fd, .close_fd = close_fd,
			   .res = -EINTR };
	uint8_t *stack = mmap(NULL, STACK_LEN, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	pid_t pid, ended;

	if (IS_TSAN) {
		munmap(stack, STACK_LEN);
		return call(arg, keep_fd);
	}
	if (stack == MAP_FAILED)
		return -errno;
	/* No signal at its end: the program's own waiting for children does not see it. */
	pid = clone(apart_child, stack + STACK_LEN, CLONE_VM | CLONE_VFORK, &a);
	if (pid < 0)
		a.res = -errno;
	else
		do
			ended = waitpid(pid, NULL, __WCLONE);
		while (ended < 0 && errno == EINTR);
	munmap(stack, STACK_LEN);
	return a.res;
}

/* ---- the guard ---- */

struct file_guard {
	pthread_t thread;
	int pipe[2]; /* its end is that of our descriptors */
};

APART_CODE static long guard_call(void *arg, int fd)
{
	char byte;

	(void)arg;
	if (!IS_TSAN) {
		syscall(SYS_setsid); /* a kill of our process group is not for it */
		syscall(SYS_chdir, "/");
	}
	return syscall(SYS_read, fd, &byte, 1);
}

static void *guard_thread(void *arg)
{
	struct file_guard *guard = arg;

	(void)apart_run(guard_call, NULL, guard->pipe[0], guard->pipe[1]);
	return NULL;
}

int file_guard_open(struct file_guard **ret)
{
	struct file_guard *guard = calloc(1, sizeof(*guard));
	sigset_t all, before;
	int r;

	if (!guard)
		return -ENOMEM;
	if (pipe2(guard->pipe, O_CLOEXEC)) {
		r = -errno;
		free(guard);
		return r;
	}
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&guard->thread, NULL, guard_thread, guard);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r) {
		close(guard->pipe[0]);
		close(guard->pipe[1]);
		free(guard);
		return -r;
	}
	*ret = guard;
	return 0;
}

void file_guard_close(struct file_guard *guard)
{
	if (!guard)
		return;
	close(guard->pipe[1]);
	pthread_join(guard->thread, NULL);
	close(guard->pipe[0]);
	free(guard);
}
