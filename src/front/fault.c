/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault thread: reads the messages of a userfaultfd and asks fault() about each.
 *
 * Place: kernel -> read() here -> region_fault(), which opens the page (that wakes the program), or
 * has it pulled.
 *
 * A wake-up on another core costs ten times what one on the same core does (an idle core must be
 * fetched out of its sleep, in a virtual machine by the host), so the thread follows the core of
 * whoever faults. Where that is, /proc says; it is asked after the faults are answered, and not
 * more than once in FOLLOW_NS.
 *
 * The end: a blocking read() is the cheapest way to wait, and nothing but a fault ends it. So there
 * is one more page, the door, registered with the same descriptor; whoever wants the thread to end
 * touches it.
 *
 * Invariants: no allocation, no lock of its own, no access to the mapping served. An error of the
 * descriptor is ours: CHECK.
 *
 * Locking: the struct belongs to the thread once it runs; `fault` and what is set before do not
 * change.
 */
#include "front/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/env.h"
#include "base/size.h"
#include "front/uffd.h"

#define BATCH 16u
#define FOLLOW_NS (500 * NS_PER_US)
#define STAT_TEXT_MAX 1024u
#define STAT_PROCESSOR 39 /* proc(5): number of the field in /proc/PID/stat */
#define STAT_AFTER_NAME 3 /* the field behind the name, which may hold anything */

struct fault_thread {
	pthread_t thread;
	const struct env *env;
	int uffd;
	const uint8_t *base;
	memory_fault_fn fault;
	void *arg;
	uint8_t *door;
	/* following */
	bool follow;
	int cpu; /* where we are, -1 = anywhere */
	uint64_t asked_ns;
};

/* ---- following the faulter ---- */

/* The core on which a thread of this process ran last; -1 when it is gone, or none of ours. */
static int thread_cpu(uint32_t tid)
{
	char path[64], text[STAT_TEXT_MAX], *at;
	AUTO_FD int fd = -1;
	uint64_t cpu;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/task/%u/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return -1;
	text[n] = '\0';
	at = strrchr(text, ')');
	for (int field = STAT_AFTER_NAME - 1; at && field < STAT_PROCESSOR; field++)
		at = strchr(at + 1, ' ');
	if (!at)
		return -1;
	at[1 + strcspn(at + 1, " \n")] = '\0';
	return number_parse(at + 1, 0, CPU_SETSIZE - 1, &cpu, NULL) ? -1 : (int)cpu;
}

static void follow(struct fault_thread *t, uint32_t tid)
{
	uint64_t now = env_now(t->env);
	cpu_set_t set;
	int cpu;

	if (!t->follow || now - t->asked_ns < FOLLOW_NS)
		return;
	t->asked_ns = now;
	cpu = thread_cpu(tid);
	if (cpu < 0 || cpu == t->cpu)
		return;
	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set); /* the faulter runs there, so we may, too */
	if (sched_setaffinity(0, sizeof(set), &set) == 0)
		t->cpu = cpu;
	else if (errno != EINVAL) /* a core that was just taken away */
		t->follow = false;
}

/* ---- the thread ---- */

static void door_open(struct fault_thread *t)
{
	struct uffdio_zeropage z = { .range = { (uintptr_t)t->door, PAGE_BYTES } };
	int r;

	do
		r = ioctl(t->uffd, UFFDIO_ZEROPAGE, &z);
	while (r < 0 && errno == EAGAIN);
	CHECK(r == 0 || errno == EEXIST);
}

static void *fault_main(void *arg)
{
	struct fault_thread *t = arg;
	struct uffd_msg msg[BATCH];
	bool ending = false;

	while (!ending) {
		ssize_t n = read(t->uffd, msg, sizeof(msg));
		uint32_t tid = 0;

		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		CHECK(n > 0 && (size_t)n % sizeof(msg[0]) == 0);
		for (size_t i = 0; i < (size_t)n / sizeof(msg[0]); i++) {
			uint64_t at = msg[i].arg.pagefault.address;

			if (msg[i].event != UFFD_EVENT_PAGEFAULT)
				continue;
			if (align_down(at, PAGE_BYTES) == (uintptr_t)t->door) {
				ending = true;
				continue;
			}
			(void)t->fault(t->arg, at - (uintptr_t)t->base,
				       msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE);
			tid = msg[i].arg.pagefault.feat.ptid;
		}
		if (tid)
			follow(t, tid);
	}
	door_open(t);
	return NULL;
}

static int thread_create(struct fault_thread *t)
{
	sigset_t all, before;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = -pthread_create(&t->thread, NULL, fault_main, t);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!err)
		pthread_setname_np(t->thread, "remora-fault");
	return err;
}

int fault_thread_start(struct fault_thread **ret, const struct env *env, int uffd,
		       const uint8_t *base, memory_fault_fn fault, void *arg, struct err *e)
{
	struct fault_thread *t = calloc(1, sizeof(*t));
	int err;

	*ret = NULL;
	if (!t)
		return err_sys(e, -ENOMEM, "starting the fault thread");
	*t = (struct fault_thread){ .env = env,
				    .uffd = uffd,
				    .base = base,
				    .fault = fault,
				    .arg = arg,
				    .follow = true,
				    .cpu = -1 };
	t->door = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (t->door == MAP_FAILED) {
		t->door = NULL;
		err = err_sys(e, -ENOMEM, "starting the fault thread");
		goto fail;
	}
	err = uffd_register(uffd, t->door, PAGE_BYTES, UFFDIO_REGISTER_MODE_MISSING);
	if (!err)
		err = thread_create(t);
	if (err) {
		err_sys(e, err, "starting the fault thread");
		goto fail;
	}
	*ret = t;
	return 0;
fail:
	if (t->door)
		munmap(t->door, PAGE_BYTES);
	free(t);
	return err;
}

void fault_thread_end(struct fault_thread *t)
{
	if (!t)
		return;
	(void)*(volatile const uint8_t *)
		t->door; /* returns when the thread opens the door, its last act */
	pthread_join(t->thread, NULL);
	munmap(t->door, PAGE_BYTES);
	free(t);
}
