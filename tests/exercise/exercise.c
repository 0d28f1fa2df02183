/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An exerciser of files and memory: several processes read and write one file of fixed size in
 * every way there is, by a seed, and compare each byte with a model.
 *
 *   exercise --file PATH [--direct] [--plain]            processes; read, write, mmap, O_DIRECT ...
 *   exercise --memory SPEC [--far FILE] [--budget SIZE]  threads, on remora_open()
 *
 *   --size SIZE      of the file
 *   --seed N         repeats a row of operations (not how those of several workers meet)
 *   --seconds N      how long
 *   --ops N          or how many operations per worker
 *   --processes N    workers, each with stripes of its own; default 1
 *   --from FILE      what the file holds at the beginning; when not given, it is read first
 *   --model FILE     what it has to hold at the end is written there, to be compared with the far
 *                    side's file
 *   --direct         O_DIRECT, too
 *   --plain          PATH is an ordinary file: nothing tries to change its size
 *   --far FILE       the resource's own file: compared with the model after a flush
 *
 * Exit status 1 and a story on stderr at the first difference: the seed, the operation, the last 50
 * operations of that worker. Place: a program for tests.
 *
 * Invariants: see exercise.h. Locking: the model and the stamps are shared memory, each page of
 * which one worker writes.
 */
#include "exercise.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/cleanup.h"
#include "base/size.h"

#define BLOCK (1u << 20)

static const struct option option_list[] = {
	{ "file", required_argument, NULL, 'f' },      { "memory", required_argument, NULL, 'm' },
	{ "size", required_argument, NULL, 's' },      { "seed", required_argument, NULL, 'S' },
	{ "seconds", required_argument, NULL, 't' },   { "ops", required_argument, NULL, 'n' },
	{ "processes", required_argument, NULL, 'p' }, { "from", required_argument, NULL, 'F' },
	{ "model", required_argument, NULL, 'M' },     { "far", required_argument, NULL, 'R' },
	{ "budget", required_argument, NULL, 'b' },    { "loop", required_argument, NULL, 'l' },
	{ "direct", no_argument, NULL, 'd' },	       { "plain", no_argument, NULL, 'P' },
	{ NULL, 0, NULL, 0 },
};

static int option_take(struct options *o, int c, struct err *e)
{
	switch (c) {
	case 'f':
		o->path = optarg;
		return 0;
	case 'm':
		o->memory = optarg;
		return 0;
	case 's':
		return size_parse(optarg, &o->size, e);
	case 'S':
		return number_parse(optarg, 0, UINT32_MAX, &o->seed, e);
	case 't':
		return number_parse(optarg, 1, 1u << 20, &o->seconds, e);
	case 'n':
		return number_parse(optarg, 1, UINT32_MAX, &o->ops_max, e);
	case 'p':
		return number_parse(optarg, 1, WORKERS_MAX, &o->processes, e);
	case 'F':
		o->from = optarg;
		return 0;
	case 'M':
		o->model_out = optarg;
		return 0;
	case 'R':
		o->far = optarg;
		return 0;
	case 'b':
		return size_parse(optarg, &o->budget, e);
	case 'l':
		o->loop = optarg;
		return 0;
	case 'd':
		o->direct = true;
		return 0;
	case 'P':
		o->plain = true;
		return 0;
	default:
		return err_set(e, -EINVAL, "usage: see the head of exercise.c");
	}
}

static int options_parse(struct options *o, int argc, char **argv)
{
	struct err e = { 0 };
	int c, rc = 0;

	*o = (struct options){ .processes = 1, .seconds = 1u << 20, .ops_max = UINT64_MAX };
	while (!rc && (c = getopt_long(argc, argv, "", option_list, NULL)) != -1)
		rc = option_take(o, c, &e);
	if (!rc && (!o->path == !o->memory || !o->size || optind != argc))
		rc = err_set(&e, -EINVAL, "one of --file and --memory, and --size, have to be given");
	if (!rc && o->memory && !o->from)
		rc = err_set(&e, -EINVAL, "--memory wants --from");
	if (rc)
		fprintf(stderr, "exercise: %s\n", e.text);
	return rc;
}

/* ---- set-up ---- */

static void *shared_memory(uint64_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

static int file_read(const char *path, uint8_t *into, uint64_t size)
{
	int AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t at = 0;

	while (fd >= 0 && at < size) {
		ssize_t n = pread(fd, into + at, MIN(size - at, BLOCK), (off_t)at);

		if (n <= 0)
			break;
		at += (uint64_t)n;
	}
	if (at == size)
		return 0;
	fprintf(stderr, "exercise: reading %s: %llu bytes of %llu: %s\n", path,
		(unsigned long long)at, (unsigned long long)size, strerror(errno));
	return -1;
}

static int run_setup(struct run *run)
{
	uint64_t pages = (run->o.size + PAGE - 1) / PAGE;
	/* Neighbours in one chunk, and in one page's surroundings; a few large ones, too. */
	static const uint64_t stripes[] = { PAGE, 16 << 10, 64 << 10, 256 << 10, 2 << 20 };
	struct rng rng;

	rng_init(&rng, run->o.seed);
	run->stripe = stripes[rng_below(&rng, ARRAY_LEN(stripes))];
	while (run->stripe > PAGE && run->stripe * run->o.processes > run->o.size)
		run->stripe /= 2;
	if (run->o.processes == 1)
		run->stripe = pages * PAGE;
	if (run->stripe * (run->o.processes - 1) >= run->o.size) {
		fprintf(stderr, "exercise: the file is too small for so many workers\n");
		return -1;
	}
	run->shared = shared_memory(sizeof(*run->shared));
	run->model = shared_memory(run->o.size);
	run->stamps = shared_memory(pages * sizeof(*run->stamps));
	if (!run->shared || !run->model || !run->stamps) {
		fprintf(stderr, "exercise: no memory\n");
		return -1;
	}
	atomic_store(&run->shared->left, (unsigned)run->o.processes);
	run->deadline_ns = now_ns() + run->o.seconds * 1000000000ull;
	return file_read(run->o.from ? run->o.from : run->o.path, run->model, run->o.size);
}

/* ---- processes on a file ---- */

static struct worker *signalled; /* what the handler tells about: one worker in a process */

static void on_bus(int sig, siginfo_t *info, void *context)
{
	struct worker *w = signalled;
	uint64_t off = (uint64_t)((uint8_t *)info->si_addr - w->map);

	(void)context;
	/* It came from an access of our own: printing is as safe here as at that place. */
	fail(w, "signal %d, at offset %llu", sig, (unsigned long long)off);
}

static _Noreturn void worker_process(struct run *run, unsigned index)
{
	struct sigaction action = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	static struct worker w;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	worker_init(&w, run, index);
	signalled = &w;
	sigaction(SIGBUS, &action, NULL);
	file_open(&w);
	worker_run(&w, file_kinds, file_kind_count);
	file_end(&w);
	worker_free(&w);
	atomic_fetch_sub(&run->shared->left, 1);
	_exit(0);
}

static int file_compare(struct run *run)
{
	uint8_t AUTO_FREE *found = malloc(run->o.size);

	if (!found || file_read(run->o.path, found, run->o.size))
		return -1;
	return same(run->model, found, 0, run->o.size, "the file at the end") ? 0 : -1;
}

static int file_run(struct run *run)
{
	bool fine = true;

	for (unsigned i = 0; i < run->o.processes; i++) {
		pid_t pid = fork();

		if (!pid)
			worker_process(run, i);
		if (pid < 0) {
			atomic_store(&run->shared->stop, true);
			fine = false;
		}
	}
	for (int status; wait(&status) > 0;) {
		if (!WIFEXITED(status) || WEXITSTATUS(status)) {
			if (WIFSIGNALED(status))
				fprintf(stderr, "exercise: a worker died of signal %d\n",
					WTERMSIG(status));
			atomic_store(&run->shared->stop, true);
			fine = false;
		}
	}
	return fine && !atomic_load(&run->shared->left) ? file_compare(run) : -1;
}

/* ---- the end ---- */

static int model_write(const struct run *run)
{
	FILE *f = fopen(run->o.model_out, "we");

	if (!f || fwrite(run->model, 1, run->o.size, f) != run->o.size || fclose(f)) {
		fprintf(stderr, "exercise: %s: %s\n", run->o.model_out, strerror(errno));
		return -1;
	}
	return 0;
}

static void counts_print(const struct run *run)
{
	const struct op_kind *kinds = run->o.path ? file_kinds : memory_kinds;
	unsigned count = run->o.path ? file_kind_count : memory_kind_count;

	printf("seed %llu, stripes of %llu: %llu operations, no difference:",
	       (unsigned long long)run->o.seed, (unsigned long long)run->stripe,
	       (unsigned long long)atomic_load(&run->shared->ops));
	for (unsigned i = 0; i < count; i++) {
		unsigned long long done = atomic_load(&run->shared->done[i]);

		if (atomic_load(&run->shared->unsupported[i]))
			printf(" %s %llu (%llu unsupported)", kinds[i].name, done,
			       (unsigned long long)atomic_load(&run->shared->unsupported[i]));
		else if (done)
			printf(" %s %llu", kinds[i].name, done);
	}
	printf("\n");
}

int main(int argc, char **argv)
{
	struct run run = { 0 };

	if (options_parse(&run.o, argc, argv))
		return 2;
	if (run_setup(&run))
		return 1;
	if (run.o.path ? file_run(&run) : memory_run(&run)) {
		fprintf(stderr, "exercise: failed; seed %llu\n", (unsigned long long)run.o.seed);
		return 1;
	}
	if (run.o.model_out && model_write(&run))
		return 1;
	counts_print(&run);
	return 0;
}
