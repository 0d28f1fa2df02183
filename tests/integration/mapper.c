/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that uses a resource as memory, told what to do line by line on its standard input; the
 * tests in bash speak to it. It uses the public API alone. Each line is answered by one line: "ok"
 * and what was asked for, or "error" and why. An access that raises SIGBUS answers "sigbus".
 *
 *   open SPEC [KEY=VALUE]...   options: see open_option(); answers the size, and the ms it took
 *   same OFF LEN FILE [AT]     compares memory with a file (from its byte AT, default OFF)
 *   fill OFF LEN SEED [MODEL]  writes bytes made from the seed into memory, and into a file
 *   scatter COUNT THREADS SEED MODEL   random writes by several threads, and the same in the model
 *   zeros OFF LEN              counts the bytes that are zero
 *   write OFF LEN FILE         write(2) from the memory into a file or pipe
 *   fork OFF LEN FILE          a child compares: "ok same", "ok signal N", or where it differs
 *   pull OFF LEN | invalidate OFF LEN | flush | close | discard
 *   status [KEY]               one of the numbers of struct remora_status, or all
 *   wait KEY VALUE             until that number of the status is VALUE
 *   direct SPEC                opens a store, without a region
 *   dwrite OFF LEN SEED        writes bytes made from the seed directly
 *   dflush                     flushes it; the store stays open until the end
 *   rss                        resident bytes of the process; "uncounted" with sanitizers, whose
 *                              shadow is resident, too
 *   allocs                     calls of malloc and its kin so far, by all threads; "uncounted" with
 *                              sanitizers, which have an allocator of their own
 *
 * Numbers may have a suffix K, M, G, T. `scatter` gives each thread its own pages; the rest is one
 * thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <remora/remora.h>

#define ARGS_MAX 16
#define BLOCK 65536u
#define PAGE 4096u
#define THREADS_MAX 16u

/* Our malloc() stands in front of the C library's, for the library under test too. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNT_ALLOCS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNT_ALLOCS 0
#endif
#endif
#ifndef COUNT_ALLOCS
#define COUNT_ALLOCS 1
#endif

static atomic_ullong allocs;

#if COUNT_ALLOCS
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *at, size_t size);

#define FOR_ALL __attribute__((visibility("default")))

FOR_ALL void *malloc(size_t size)
{
	atomic_fetch_add(&allocs, 1);
	return __libc_malloc(size);
}

FOR_ALL void *calloc(size_t count, size_t size)
{
	atomic_fetch_add(&allocs, 1);
	return __libc_calloc(count, size);
}

FOR_ALL void *realloc(void *at, size_t size)
{
	atomic_fetch_add(&allocs, 1);
	return __libc_realloc(at, size);
}
#endif

struct mapper {
	struct remora *r;
	uint8_t *data;
	uint64_t size;
	struct remora_store *direct;
};

static sigjmp_buf on_sigbus;

static void sigbus(int signo)
{
	(void)signo;
	siglongjmp(on_sigbus, 1);
}

static uint64_t number(const char *s)
{
	char *end;
	uint64_t v = strtoull(s, &end, 0);

	switch (*end) {
	case 'K': return v << 10;
	case 'M': return v << 20;
	case 'G': return v << 30;
	case 'T': return v << 40;
	default: return v;
	}
}

/* A byte of the endless row that a seed stands for; two seeds, or two places, differ nearly always.
 */
static uint8_t seeded(uint64_t seed, uint64_t at)
{
	uint64_t x = (at / 8 + 1) * 0x9e3779b97f4a7c15u ^ seed * 0xbf58476d1ce4e5b9u;

	x ^= x >> 31;
	x *= 0x94d049bb133111ebu;
	x ^= x >> 29;
	return (uint8_t)(x >> at % 8 * 8);
}

static void model_write(const char *path, uint64_t off, const uint8_t *buf, size_t len)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || pwrite(fd, buf, len, (off_t)off) != (ssize_t)len)
		abort();
	close(fd);
}

static int open_option(struct remora_options *o, const char *key, const char *value)
{
	if (!strcmp(key, "budget"))
		o->budget = number(value);
	else if (!strcmp(key, "chunk"))
		o->chunk = (uint32_t)number(value);
	else if (!strcmp(key, "pull"))
		o->pull = !strcmp(value, "all") ? REMORA_PULL_ALL : REMORA_PULL_DEMAND;
	else if (!strcmp(key, "first"))
		o->pull_first = number(value);
	else if (!strcmp(key, "deadline"))
		o->deadline_ms = (uint32_t)number(value);
	else if (!strcmp(key, "loss"))
		o->on_loss = !strcmp(value, "error") ? REMORA_LOSS_ERROR : REMORA_LOSS_WAIT;
	else if (!strcmp(key, "push"))
		o->push_interval_ms = (uint32_t)number(value);
	else if (!strcmp(key, "readahead"))
		o->readahead_max = (uint32_t)number(value);
	else if (!strcmp(key, "inflight"))
		o->inflight = number(value);
	else if (!strcmp(key, "no_push"))
		o->no_push = (int)number(value);
	else if (!strcmp(key, "read_only"))
		o->read_only = (int)number(value);
	else if (!strcmp(key, "private"))
		o->private_copy = (int)number(value);
	else if (!strcmp(key, "loop"))
		o->loop = value;
	else
		return -1;
	return 0;
}

static void do_open(struct mapper *m, int argc, char **argv)
{
	struct remora_options o = { 0 };
	struct remora_error e = { 0 };

	for (int i = 2; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		if (value)
			*value++ = 0;
		if (!value || open_option(&o, argv[i], value) < 0) {
			printf("error no such option: %s\n", argv[i]);
			return;
		}
	}
	struct timespec a, b;
	clock_gettime(CLOCK_MONOTONIC, &a);
	if (remora_open(&m->r, argv[1], &o, &e) < 0) {
		for (char *p = e.text; *p; p++)
			if (*p == '\n')
				*p = ' ';
		printf("error %d %s\n", e.code, e.text);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	m->data = remora_data(m->r);
	m->size = remora_size(m->r);
	printf("ok %llu %lld\n", (unsigned long long)m->size,
	       (long long)(b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000);
}

/* Compares with a file block by block; returns 0 and prints nothing when all is the same. */
static int compare(const uint8_t *data, uint64_t len, const char *path, uint64_t at)
{
	static uint8_t buf[BLOCK];
	int fd = open(path, O_RDONLY | O_CLOEXEC), result = 0;

	if (fd < 0) {
		printf("error %s: %s\n", path, strerror(errno));
		return -1;
	}
	for (uint64_t done = 0; done < len && result == 0;) {
		size_t n = len - done < BLOCK ? (size_t)(len - done) : BLOCK;
		ssize_t got = pread(fd, buf, n, (off_t)(at + done));
		if (got <= 0) {
			printf("error %s is shorter\n", path);
			result = -1;
			break;
		}
		if (memcmp(data + done, buf, (size_t)got) != 0) {
			size_t i = 0;
			while (data[done + i] == buf[i])
				i++;
			printf("differs at %llu\n", (unsigned long long)(done + i));
			result = -1;
		}
		done += (uint64_t)got;
	}
	close(fd);
	return result;
}

static void do_same(struct mapper *m, int argc, char **argv)
{
	uint64_t off = number(argv[1]);

	if (compare(m->data + off, number(argv[2]), argv[3], argc > 4 ? number(argv[4]) : off) == 0)
		printf("ok same\n");
}

static void do_fill(struct mapper *m, int argc, char **argv)
{
	uint64_t off = number(argv[1]), len = number(argv[2]), seed = number(argv[3]);
	uint8_t buf[PAGE];

	for (uint64_t done = 0; done < len;) {
		size_t n = len - done < PAGE ? (size_t)(len - done) : PAGE;
		for (size_t i = 0; i < n; i++)
			buf[i] = seeded(seed, off + done + i);
		memcpy(m->data + off + done, buf, n);
		if (argc > 4)
			model_write(argv[4], off + done, buf, n);
		done += n;
	}
	printf("ok\n");
}

struct scatter {
	struct mapper *m;
	const char *model;
	uint64_t seed, count;
	unsigned thread, threads;
};

/* Writes of 1 to 64 bytes; a thread keeps to its own pages, so that memory and model see the same
 * order per byte. */
static void *scatter_run(void *arg)
{
	struct scatter *s = arg;
	uint64_t pages = s->m->size / PAGE / s->threads, x = s->seed * 1000003 + s->thread;

	for (uint64_t i = 0; i < s->count; i++) {
		uint8_t buf[64];
		x = x * 6364136223846793005u + 1442695040888963407u;
		size_t len = (size_t)(x >> 33) % sizeof(buf) + 1;
		uint64_t page = (x >> 20) % pages * s->threads + s->thread;
		uint64_t off = page * PAGE + (x >> 8) % (PAGE - sizeof(buf));
		for (size_t j = 0; j < len; j++)
			buf[j] = seeded(x, j);
		memcpy(s->m->data + off, buf, len);
		model_write(s->model, off, buf, len);
	}
	return NULL;
}

static void do_scatter(struct mapper *m, int argc, char **argv)
{
	struct scatter s[THREADS_MAX];
	pthread_t t[THREADS_MAX];
	unsigned threads = (unsigned)number(argv[2]);

	(void)argc;
	if (threads == 0 || threads > THREADS_MAX || m->size / PAGE < threads)
		abort();
	for (unsigned i = 0; i < threads; i++) {
		s[i] = (struct scatter){ m, argv[4], number(argv[3]), number(argv[1]) / threads,
					 i, threads };
		if (pthread_create(&t[i], NULL, scatter_run, &s[i]) != 0)
			abort();
	}
	for (unsigned i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	printf("ok\n");
}

static void do_zeros(struct mapper *m, int argc, char **argv)
{
	uint64_t off = number(argv[1]), len = number(argv[2]), zeros = 0;

	(void)argc;
	for (uint64_t i = 0; i < len; i++)
		zeros += m->data[off + i] == 0;
	printf("ok %llu\n", (unsigned long long)zeros);
}

static void do_write(struct mapper *m, int argc, char **argv)
{
	uint64_t off = number(argv[1]), len = number(argv[2]);
	int fd = open(argv[3], O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	(void)argc;
	for (uint64_t done = 0; fd >= 0 && done < len;) {
		ssize_t n = write(fd, m->data + off + done, (size_t)(len - done));
		if (n <= 0) {
			printf("error write: %s\n", strerror(errno));
			close(fd);
			return;
		}
		done += (uint64_t)n;
	}
	printf(fd >= 0 ? "ok\n" : "error open\n");
	close(fd);
}

static void do_fork(struct mapper *m, int argc, char **argv)
{
	uint64_t off = number(argv[1]);
	int status;

	(void)argc;
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		const struct sigaction standard = { .sa_handler = SIG_DFL };
		sigaction(SIGBUS, &standard, NULL);
		sigaction(SIGSEGV, &standard, NULL); /* a sanitizer has its own */
		if (compare(m->data + off, number(argv[2]), argv[3], off) == 0)
			printf("ok same\n");
		fflush(stdout);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		printf("error fork\n");
	else if (WIFSIGNALED(status))
		printf("ok signal %d\n", WTERMSIG(status));
	else if (WEXITSTATUS(status) != 0)
		printf("error the child ended with status %d\n", WEXITSTATUS(status));
}

static void do_result(int err)
{
	if (err < 0)
		printf("error %d %s\n", err, strerror(-err));
	else
		printf("ok\n");
}

static void do_pull(struct mapper *m, int argc, char **argv)
{
	(void)argc;
	do_result(remora_pull(m->r, number(argv[1]), number(argv[2]), 1, REMORA_PULL_WAIT));
}

static void do_invalidate(struct mapper *m, int argc, char **argv)
{
	(void)argc;
	do_result(remora_invalidate(m->r, number(argv[1]), number(argv[2])));
}

static void do_flush(struct mapper *m, int argc, char **argv)
{
	(void)argc, (void)argv;
	do_result(remora_flush(m->r));
}

static void do_direct(struct mapper *m, int argc, char **argv)
{
	struct remora_error e = { 0 };

	(void)argc;
	if (remora_store_open(&m->direct, argv[1], NULL, &e) < 0)
		printf("error %d %s\n", e.code, e.text);
	else
		printf("ok\n");
}

static void do_dwrite(struct mapper *m, int argc, char **argv)
{
	uint64_t off = number(argv[1]), len = number(argv[2]), seed = number(argv[3]);
	uint8_t *buf = malloc(len);

	(void)argc;
	for (uint64_t i = 0; i < len; i++)
		buf[i] = seeded(seed, off + i);
	do_result(remora_store_write(m->direct, off, buf, len));
	free(buf);
}

static void do_dflush(struct mapper *m, int argc, char **argv)
{
	(void)argc, (void)argv;
	do_result(remora_store_flush(m->direct));
}

static void do_close(struct mapper *m, int argc, char **argv)
{
	struct remora *r = m->r;

	(void)argc, (void)argv;
	*m = (struct mapper){ 0 };
	do_result(remora_close(r));
}

static void do_discard(struct mapper *m, int argc, char **argv)
{
	(void)argc, (void)argv;
	remora_discard(m->r);
	*m = (struct mapper){ 0 };
	printf("ok\n");
}

struct status_key {
	const char *name;
	uint64_t value;
};

#define STATUS_KEYS 18

static void status_get(struct mapper *m, struct status_key keys[STATUS_KEYS], char *engine,
		       size_t len)
{
	struct remora_status s;

	remora_status(m->r, &s);
	const struct status_key all[STATUS_KEYS] = {
		{ "size", s.size },
		{ "chunk", s.chunk },
		{ "local_bytes", s.local_bytes },
		{ "dirty_bytes", s.dirty_bytes },
		{ "budget", s.budget },
		{ "inflight_bytes", s.inflight_bytes },
		{ "faults", s.faults },
		{ "fault_p50_ns", s.fault_p50_ns },
		{ "fault_p99_ns", s.fault_p99_ns },
		{ "pulled_bytes", s.pulled_bytes },
		{ "pushed_bytes", s.pushed_bytes },
		{ "evicted_bytes", s.evicted_bytes },
		{ "flushes", s.flushes },
		{ "pull_errors", s.pull_errors },
		{ "push_errors", s.push_errors },
		{ "last_error", (uint64_t)-s.last_error },
		{ "far_lost", (uint64_t)s.far_lost },
		{ "unused", 0 },
	};
	memcpy(keys, all, sizeof(all));
	snprintf(engine, len, "%s", s.engine);
}

static void do_status(struct mapper *m, int argc, char **argv)
{
	struct status_key keys[STATUS_KEYS];
	char engine[64];

	status_get(m, keys, engine, sizeof(engine));
	printf("ok");
	for (int i = 0; i < STATUS_KEYS - 1; i++) {
		if (argc == 1)
			printf(" %s=%llu", keys[i].name, (unsigned long long)keys[i].value);
		else if (!strcmp(keys[i].name, argv[1]))
			printf(" %llu", (unsigned long long)keys[i].value);
	}
	printf(argc == 1 || !strcmp(argv[1], "engine") ? " %s\n" : "\n", engine);
}

/* There is nothing to wait on but the number itself. */
static void do_wait(struct mapper *m, int argc, char **argv)
{
	const struct timespec pause = { 0, 5000000 };
	struct status_key keys[STATUS_KEYS];
	char engine[64];

	(void)argc;
	for (;;) {
		status_get(m, keys, engine, sizeof(engine));
		for (int i = 0; i < STATUS_KEYS; i++) {
			if (!strcmp(keys[i].name, argv[1]) && keys[i].value == number(argv[2])) {
				printf("ok\n");
				return;
			}
		}
		nanosleep(&pause, NULL);
	}
}

static void do_rss(struct mapper *m, int argc, char **argv)
{
	FILE *f = fopen("/proc/self/status", "r");
	unsigned long long kib = 0;
	char line[256];

	(void)m, (void)argc, (void)argv;
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmRSS: %llu", &kib) == 1)
			break;
	if (f)
		fclose(f);
	if (COUNT_ALLOCS)
		printf("ok %llu\n", kib << 10);
	else
		printf("uncounted\n");
}

static void do_allocs(struct mapper *m, int argc, char **argv)
{
	(void)m, (void)argc, (void)argv;
	if (COUNT_ALLOCS)
		printf("ok %llu\n", (unsigned long long)atomic_load(&allocs));
	else
		printf("uncounted\n");
}

struct command {
	const char *name;
	int args;
	bool needs_open;
	void (*run)(struct mapper *m, int argc, char **argv);
};

static const struct command commands[] = {
	{ "open", 1, false, do_open },	    { "same", 3, true, do_same },
	{ "fill", 3, true, do_fill },	    { "scatter", 4, true, do_scatter },
	{ "zeros", 2, true, do_zeros },	    { "write", 3, true, do_write },
	{ "fork", 3, true, do_fork },	    { "pull", 2, true, do_pull },
	{ "flush", 0, true, do_flush },	    { "invalidate", 2, true, do_invalidate },
	{ "close", 0, true, do_close },	    { "discard", 0, true, do_discard },
	{ "status", 0, true, do_status },   { "wait", 2, true, do_wait },
	{ "direct", 1, false, do_direct },  { "dwrite", 3, false, do_dwrite },
	{ "dflush", 0, false, do_dflush },
	{ "rss", 0, false, do_rss },	    { "allocs", 0, false, do_allocs },
	{ 0 },
};

static void command_run(const struct command *c, struct mapper *m, int argc, char **argv)
{
	if (sigsetjmp(on_sigbus, 1) == 0)
		c->run(m, argc, argv);
	else
		printf("sigbus\n");
}

static void line_run(struct mapper *m, char *line)
{
	const struct command *c = commands;
	char *argv[ARGS_MAX], *rest = line, *word;
	int argc = 0;

	while (argc < ARGS_MAX && (word = strtok_r(rest, " \n", &rest)) != NULL)
		argv[argc++] = word;
	if (argc == 0)
		return;
	while (c->name && strcmp(argv[0], c->name) != 0)
		c++;
	if (!c->name)
		printf("error no such command: %s\n", argv[0]);
	else if (argc - 1 < c->args)
		printf("error arguments\n");
	else if (c->needs_open && !m->r)
		printf("error nothing is open\n");
	else
		command_run(c, m, argc, argv);
}

int main(void)
{
	struct sigaction action = { .sa_handler = sigbus, .sa_flags = SA_NODEFER };
	struct mapper m = { 0 };
	static char line[4096];

	sigaction(SIGBUS, &action, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin))
		line_run(&m, line);
	remora_discard(m.r);
	return 0;
}
