/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine's own ceilings and the naive design, for `remora bench`: what the kernel gives to a
 * program that does nothing else. Each measurement stands alone: it makes what it needs, warms it
 * up, and takes it down.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/rng.h"
#include "base/uapi.h"
#include "cmd/bench.h"

#define PIECE (256 * KIB)
#define FAULTS 4096u

uint64_t bench_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t bench_sum(const void *mem, uint64_t len)
{
	const uint64_t *w = mem;
	uint64_t a = 0, b = 0, c = 0, d = 0;

	for (uint64_t i = 0; i + 3 < len / 8; i += 4) {
		a += w[i];
		b += w[i + 1];
		c += w[i + 2];
		d += w[i + 3];
	}
	return a + b + c + d;
}

static double per_second(uint64_t bytes, uint64_t ns)
{
	return (double)bytes * 1e9 / (double)(ns ? ns : 1);
}

double bench_copy_ceiling(struct bench_env *b, struct err *e)
{
	AUTO_FREE uint8_t *from = malloc(64 * MIB), *to = malloc(64 * MIB);
	uint64_t moved = 0, t;

	if (!from || !to)
		return err_set(e, -ENOMEM, "no memory for two buffers of 64 MiB");
	memset(from, 1, 64 * MIB);
	memset(to, 2, 64 * MIB);
	t = bench_now();
	for (; moved < b->size; moved += 64 * MIB)
		memcpy(to, from, 64 * MIB);
	t = bench_now() - t;
	if (memcmp(from, to, 64 * MIB) != 0)
		b->failed++;
	return per_second(moved, t);
}

static void socket_sender(int fd, uint64_t size)
{
	uint8_t *buf = malloc(PIECE);

	if (!buf)
		_exit(1);
	memset(buf, 7, PIECE);
	for (uint64_t sent = 0; sent < size;) {
		ssize_t n = send(fd, buf, PIECE, MSG_NOSIGNAL);

		if (n <= 0)
			_exit(1);
		sent += (uint64_t)n;
	}
	_exit(0);
}

double bench_socket_ceiling(struct bench_env *b, struct err *e)
{
	AUTO_FREE uint8_t *buf = malloc(PIECE);
	int fd[2], size = (int)MIB;
	uint64_t got = 0, t;
	pid_t child;

	if (!buf)
		return err_set(e, -ENOMEM, "no memory for a buffer");
	memset(buf, 1, PIECE);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0)
		return err_sys(e, -errno, "socketpair");
	setsockopt(fd[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	child = fork();
	if (child < 0) {
		close(fd[0]);
		close(fd[1]);
		return err_sys(e, -errno, "fork");
	}
	if (!child)
		socket_sender(fd[0], b->size);
	close(fd[0]);
	t = bench_now();
	while (got < b->size) {
		ssize_t n = recv(fd[1], buf, PIECE, 0);

		if (n <= 0)
			break;
		got += (uint64_t)n;
	}
	t = bench_now() - t;
	close(fd[1]);
	waitpid(child, NULL, 0);
	if (got < b->size)
		return err_set(e, -EPIPE, "the sender of the socket measurement ended early");
	return per_second(got, t);
}

/* A memfd, mapped and registered as the memory front end does it. */
struct mapped {
	int fd, uffd;
	uint8_t *mem;
	uint64_t size;
};

static void mapped_close(struct mapped *m)
{
	if (m->mem)
		munmap(m->mem, m->size);
	if (m->uffd >= 0)
		close(m->uffd);
	if (m->fd >= 0)
		close(m->fd);
}

static int uffd_new(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), dev;

	if (fd >= 0 || errno != EPERM)
		return fd < 0 ? -errno : fd;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -EPERM;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC);
	close(dev);
	return fd < 0 ? -EPERM : fd;
}

static int mapped_open(struct mapped *m, uint64_t size, bool registered, struct err *e)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
					     UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					     UFFD_FEATURE_WP_ASYNC};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING |
					      UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP};

	*m = (struct mapped){ .fd = -1, .uffd = -1, .size = size };
	m->fd = memfd_create("remora-bench", MFD_CLOEXEC);
	if (m->fd < 0 || ftruncate(m->fd, (off_t)size) < 0)
		return err_sys(e, -errno, "memfd of the measurement");
	m->mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	if (m->mem == MAP_FAILED) {
		m->mem = NULL;
		return err_sys(e, -errno, "mmap of the measurement");
	}
	if (!registered)
		return 0;
	m->uffd = uffd_new();
	if (m->uffd < 0)
		return err_sys(e, m->uffd, "userfaultfd (see: remora doctor)");
	reg.range.start = (uintptr_t)m->mem;
	reg.range.len = size;
	if (ioctl(m->uffd, UFFDIO_API, &api) < 0 || ioctl(m->uffd, UFFDIO_REGISTER, &reg) < 0)
		return err_sys(e, -errno, "userfaultfd features (see: remora doctor)");
	return 0;
}

double bench_install_ceiling(struct bench_env *b, struct err *e)
{
	CLEANUP(mapped_close) struct mapped m;
	AUTO_FREE uint8_t *buf = malloc(PIECE);
	uint64_t t;

	if (!buf)
		return err_set(e, -ENOMEM, "no memory for a buffer");
	memset(buf, 3, PIECE);
	if (mapped_open(&m, b->size, true, e) < 0)
		return e->code;
	t = bench_now();
	for (uint64_t off = 0; off < b->size; off += PIECE) {
		struct uffdio_copy c = {.dst = (uintptr_t)m.mem + off,
					.src = (uintptr_t)buf,
					.len = PIECE,
					.mode = UFFDIO_COPY_MODE_WP};

		if (ioctl(m.uffd, UFFDIO_COPY, &c) < 0)
			return err_sys(e, -errno, "UFFDIO_COPY");
	}
	t = bench_now() - t;
	return per_second(b->size, t);
}

/* ---- handlers of the kind that every tutorial has: one thread, blocking, 4 KiB ---- */

struct handler {
	struct mapped m;
	/* >= 0: content by pread and UFFDIO_COPY; -1: the page is in the memfd, UFFDIO_CONTINUE */
	int file;
	int core;  /* >= 0: pinned there */
	uint64_t faults_left;
	int err;
};

static int handler_fill(struct handler *h, uint64_t off, uint8_t *page)
{
	if (h->file < 0) {
		struct uffdio_continue c = { .range = { (uintptr_t)h->m.mem + off, PAGE_BYTES },
					     .mode = UFFDIO_CONTINUE_MODE_WP };

		return ioctl(h->m.uffd, UFFDIO_CONTINUE, &c) < 0 ? -errno : 0;
	}
	struct uffdio_copy c = {.dst = (uintptr_t)h->m.mem + off,
				.src = (uintptr_t)page,
				.len = PAGE_BYTES,
				.mode = UFFDIO_COPY_MODE_WP};

	if (pread(h->file, page, PAGE_BYTES, (off_t)off) != PAGE_BYTES)
		return -EIO;
	return ioctl(h->m.uffd, UFFDIO_COPY, &c) < 0 ? -errno : 0;
}

void bench_pin(int core)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(core, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* A core of ours that is not this one; -1 when there is none. */
static int core_other(void)
{
	int here = sched_getcpu();
	cpu_set_t set;

	sched_getaffinity(0, sizeof(set), &set);
	for (int core = 0; core < CPU_SETSIZE; core++)
		if (core != here && CPU_ISSET(core, &set))
			return core;
	return -1;
}

static void *handler_run(void *arg)
{
	struct handler *h = arg;
	uint8_t page[PAGE_BYTES];

	if (h->core >= 0)
		bench_pin(h->core);
	while (h->faults_left-- && !h->err) {
		struct uffd_msg msg;

		if (read(h->m.uffd, &msg, sizeof(msg)) != sizeof(msg))
			h->err = -EIO;
		else
			h->err = handler_fill(h, (msg.arg.pagefault.address - (uintptr_t)h->m.mem) &
						     ~(uint64_t)(PAGE_BYTES - 1), page);
	}
	return NULL;
}

double bench_bare_fault(struct bench_env *b, struct err *e)
{
	struct handler h = { .file = -1, .faults_left = FAULTS };
	AUTO_FREE uint64_t *ns = malloc(FAULTS * sizeof(*ns));
	cpu_set_t saved;
	pthread_t thread;
	double p50;

	(void)b;
	if (!ns)
		return err_set(e, -ENOMEM, "no memory for the samples");
	if (mapped_open(&h.m, FAULTS * PAGE_BYTES, true, e) < 0)
		goto out;
	for (unsigned i = 0; i < FAULTS; i++)
		if (pwrite(h.m.fd, &i, sizeof(i), (off_t)i * PAGE_BYTES) != sizeof(i))
			err_sys(e, -EIO, "writing the memfd");
	sched_getaffinity(0, sizeof(saved), &saved);
	h.core = sched_getcpu();
	bench_pin(h.core);
	if (pthread_create(&thread, NULL, handler_run, &h)) {
		err_set(e, -EAGAIN, "no thread for the handler");
	} else {
		bench_touch_random(h.m.mem, FAULTS, ns);
		pthread_join(thread, NULL);
	}
	sched_setaffinity(0, sizeof(saved), &saved);
	for (unsigned i = 0; i < FAULTS; i++)
		b->failed += *(uint32_t *)(h.m.mem + (size_t)i * PAGE_BYTES) != i;
out:
	mapped_close(&h.m);
	p50 = e->code ? e->code : (double)ns[FAULTS / 2];
	return p50;
}

double bench_naive_scan(struct bench_env *b, struct err *e)
{
	uint64_t size = MIN(b->size, 64 * MIB), t = 0, sum = 0, want = 0;
	struct handler h = { .file = -1, .core = core_other(), .faults_left = size / PAGE_BYTES };
	AUTO_FREE uint8_t *check = malloc(PIECE);
	pthread_t thread;
	cpu_set_t saved;

	if (!check)
		return err_set(e, -ENOMEM, "no memory for a buffer");
	if (mapped_open(&h.m, size, true, e) < 0)
		goto out;
	h.file = open(b->file, O_RDONLY | O_CLOEXEC);
	if (h.file < 0 || pthread_create(&thread, NULL, handler_run, &h)) {
		err_sys(e, -errno, "starting the naive handler");
		goto out;
	}
	sched_getaffinity(0, sizeof(saved), &saved);
	bench_pin(sched_getcpu());
	t = bench_now();
	sum = bench_sum(h.m.mem, size);
	t = bench_now() - t;
	sched_setaffinity(0, sizeof(saved), &saved);
	pthread_join(thread, NULL);
	for (uint64_t off = 0; off < size; off += PIECE) {
		if (pread(h.file, check, PIECE, (off_t)off) != PIECE)
			break;
		want += bench_sum(check, PIECE);
	}
	b->failed += sum != want;
out:
	if (h.file >= 0)
		close(h.file);
	mapped_close(&h.m);
	return e->code ? e->code : per_second(size, t);
}

double bench_plain_read(struct bench_env *b, struct err *e)
{
	CLEANUP(mapped_close) struct mapped m;
	uint64_t t, sum;

	if (mapped_open(&m, b->size, false, e) < 0)
		return e->code;
	madvise(m.mem, b->size, MADV_NOHUGEPAGE);
	memset(m.mem, 1, b->size);
	sum = bench_sum(m.mem, b->size);
	t = bench_now();
	sum -= bench_sum(m.mem, b->size);
	t = bench_now() - t;
	b->failed += sum != 0;
	return per_second(b->size, t);
}

static int ns_order(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

void bench_touch_random(const uint8_t *mem, unsigned pages, uint64_t *ret_sorted_ns)
{
	AUTO_FREE unsigned *order = malloc(pages * sizeof(*order));
	struct rng rng;

	CHECK(order);
	rng_init(&rng, 42);
	for (unsigned i = 0; i < pages; i++) {
		unsigned j = (unsigned)rng_below(&rng, i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	for (unsigned i = 0; i < pages; i++) {
		uint64_t t = bench_now();

		(void)*(volatile const uint8_t *)(mem + (size_t)order[i] * PAGE_BYTES);
		ret_sorted_ns[i] = bench_now() - t;
	}
	qsort(ret_sorted_ns, pages, sizeof(*ret_sorted_ns), ns_order);
}
