/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora bench: the machine's own ceilings, then ours beside them, in one run, with the ratio.
 * Machines are shared and noisy: all measurements are taken in turns, several rounds, and a ratio
 * is that of two medians of the same run.
 *
 * Place: above the public API (bench_ours.c) and the bare kernel (bench_ceiling.c); the server is
 * another process of this same program.
 *
 * Invariants: what is timed moves real bytes, and their content is checked; one wrong byte fails
 * the command.
 *
 * Locking: none; the measurements run one after the other.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/rng.h"
#include "base/size.h"
#include "cmd/bench.h"
#include "cmd/cmd.h"

#define ROUNDS_MAX 16u

enum unit { UNIT_NS, UNIT_BYTES };

enum {
	M_COPY,
	M_SOCKET,
	M_INSTALL,
	M_BARE,
	M_NAIVE,
	M_PLAIN,
	M_FAULT,
	M_COLD_FILE,
	M_COLD_SERVER,
	M_PULL_FILE,
	M_PULL_SERVER,
	M_RESIDENT,
	M_DIRTY,
	M_WRITE,
	M_COUNT
};

struct measure {
	const char *key, *what;
	enum unit unit;
	double (*take)(struct bench_env *b, struct err *e);
};

static const struct measure measures[M_COUNT] = {
	[M_COPY] = { "memcpy", "memcpy", UNIT_BYTES, bench_copy_ceiling },
	[M_SOCKET] = { "socket", "unix socket, 256 KiB, two processes", UNIT_BYTES, bench_socket_ceiling },
	[M_INSTALL] = { "install", "UFFDIO_COPY, 256 KiB, one thread", UNIT_BYTES, bench_install_ceiling },
	[M_BARE] = { "bare_fault", "4 KiB fault, bare handler on the same core, p50", UNIT_NS, bench_bare_fault },
	[M_NAIVE] = { "naive_scan", "cold sequential read, naive (4 KiB, blocking, other core)", UNIT_BYTES,
		      bench_naive_scan },
	[M_PLAIN] = { "plain_read", "reading plain resident memory", UNIT_BYTES, bench_plain_read },
	[M_FAULT] = { "fault", "4 KiB fault, data near, p50", UNIT_NS, bench_fault_near },
	[M_COLD_FILE] = { "cold_file", "cold sequential read on demand, file", UNIT_BYTES, bench_cold_file },
	[M_COLD_SERVER] = { "cold_server", "cold sequential read on demand, server", UNIT_BYTES,
			    bench_cold_server },
	[M_PULL_FILE] = { "pull_file", "background pull, file", UNIT_BYTES, bench_pull_file },
	[M_PULL_SERVER] = { "pull_server", "background pull, server", UNIT_BYTES, bench_pull_server },
	[M_RESIDENT] = { "resident", "reading resident data", UNIT_BYTES, bench_resident },
	[M_DIRTY] = { "dirty", "finding 1 % written pages", UNIT_NS, bench_dirty_find },
	[M_WRITE] = { "write_back", "write-back of everything, flushed, server", UNIT_BYTES, bench_write_back },
};

/* What is compared with what. `goal` is a ratio: at least (throughput) or at most (time). */
struct pair {
	int ours, reference, reference2; /* reference2 >= 0: the lower of the two counts */
	double goal;
};

static const struct pair pairs[] = {
	{ M_FAULT, M_BARE, -1, 1.5 },
	{ M_COLD_FILE, M_INSTALL, -1, 0.6 },
	{ M_COLD_FILE, M_NAIVE, -1, 30 },
	{ M_COLD_SERVER, M_INSTALL, -1, 0 },
	{ M_PULL_FILE, M_INSTALL, -1, 0 },
	{ M_PULL_SERVER, M_INSTALL, M_SOCKET, 0.8 },
	{ M_RESIDENT, M_PLAIN, -1, 0.98 },
	{ M_WRITE, M_SOCKET, -1, 0 },
};

#define DIRTY_GOAL_NS_PER_GIB 2e6

struct series {
	double at[ROUNDS_MAX]; /* sorted when all are taken */
	unsigned count;
};

struct bench {
	struct bench_env env;
	struct series series[M_COUNT];
	unsigned rounds;
	pid_t server;
};

static int double_order(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(const struct series *s)
{
	return s->count ? s->at[s->count / 2] : 0;
}

/* ---- the file and the server ---- */

static int file_make(struct bench_env *b, struct err *e)
{
	AUTO_FREE uint64_t *buf = malloc(MIB);
	AUTO_FD int fd = open(b->file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	struct rng rng;

	if (!buf)
		return err_set(e, -ENOMEM, "no memory for a buffer");
	if (fd < 0)
		return err_sys(e, -errno, "creating %s", b->file);
	rng_init(&rng, 7);
	for (uint64_t off = 0; off < b->size; off += MIB) {
		rng_fill(&rng, buf, MIB);
		b->sum += bench_sum(buf, MIB);
		if (write(fd, buf, MIB) != (ssize_t)MIB)
			return err_sys(e, errno ? -errno : -ENOSPC, "writing %s (--dir names another place)",
				       b->file);
	}
	return 0;
}

static int server_start(struct bench *bench, struct err *e)
{
	struct bench_env *b = &bench->env;
	char listen_to[96], scratch[64], data[160], ready[16], byte;
	int fd[2];

	snprintf(listen_to, sizeof(listen_to), "unix:%s/s", b->dir);
	snprintf(scratch, sizeof(scratch), "scratch=memory:%llu", (unsigned long long)b->size);
	snprintf(data, sizeof(data), "data=%s", b->file);
	snprintf(b->server, sizeof(b->server), "remora+unix://%s/s/data", b->dir);
	snprintf(b->scratch, sizeof(b->scratch), "remora+unix://%s/s/scratch", b->dir);
	if (pipe(fd) < 0)
		return err_sys(e, -errno, "pipe");
	snprintf(ready, sizeof(ready), "%d", fd[1]);
	bench->server = fork();
	if (bench->server == 0) {
		int null = open("/dev/null", O_WRONLY);

		close(fd[0]);
		dup2(null, STDOUT_FILENO);
		execl("/proc/self/exe", "remora", "serve", "--listen", listen_to, "--ready-fd", ready, data, scratch,
		      (char *)NULL);
		_exit(127);
	}
	close(fd[1]);
	if (bench->server < 0 || read(fd[0], &byte, 1) != 1) {
		close(fd[0]);
		return err_set(e, -ECHILD, "the server for the measurements did not start");
	}
	close(fd[0]);
	return 0;
}

static void bench_done(struct bench *bench)
{
	if (bench->server > 0) {
		kill(bench->server, SIGTERM);
		waitpid(bench->server, NULL, 0);
	}
	unlink(bench->env.file);
	rmdir(bench->env.dir);
}

/* ---- measuring ---- */

/* In a virtual machine the first touch of memory that the host has not backed yet, or has taken
 * back, costs ten times as much as later ones. So as much memory as the next measurement will take
 * is touched, and given back to the kernel. */
static void memory_warm(uint64_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		return;
	for (uint64_t off = 0; off < size; off += PAGE_BYTES)
		((volatile uint8_t *)mem)[off] = 1;
	munmap(mem, size);
}

static int measure_all(struct bench *bench, bool quiet, struct err *e)
{
	for (unsigned round = 0; round < bench->rounds; round++) {
		for (int m = 0; m < M_COUNT; m++) {
			struct series *s = &bench->series[m];
			double v;

			if (!quiet && out_is_terminal(stderr))
				fprintf(stderr, "\rround %u/%u: %-60s", round + 1, bench->rounds, measures[m].what);
			memory_warm(bench->env.size + bench->env.size / 4);
			v = measures[m].take(&bench->env, e);
			if (v <= 0)
				return err_prefix(e, "%s", measures[m].what);
			s->at[s->count++] = v;
		}
	}
	if (!quiet && out_is_terminal(stderr))
		fprintf(stderr, "\r%-80s\r", "");
	for (int m = 0; m < M_COUNT; m++)
		qsort(bench->series[m].at, bench->series[m].count, sizeof(double), double_order);
	return 0;
}

static double reference_of(const struct bench *bench, const struct pair *p, int *ret_which)
{
	double v = median(&bench->series[p->reference]);

	*ret_which = p->reference;
	if (p->reference2 >= 0 && median(&bench->series[p->reference2]) < v) {
		*ret_which = p->reference2;
		v = median(&bench->series[p->reference2]);
	}
	return v;
}

static const char *value_text(enum unit unit, double v, char *buf)
{
	if (unit == UNIT_NS)
		return time_format((uint64_t)v, buf);
	snprintf(buf, SIZE_TEXT_MAX, "%.2f GB/s", v / 1e9);
	return buf;
}

/* ---- output ---- */

static void print_text(const struct bench *bench)
{
	char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX], c[SIZE_TEXT_MAX];
	double dirty = median(&bench->series[M_DIRTY]) * (double)GIB / (double)bench->env.size;

	printf("%-54s %12s %12s %12s\n", "", "minimum", "median", "maximum");
	for (int m = 0; m < M_COUNT; m++) {
		const struct series *s = &bench->series[m];

		if (m == M_FAULT)
			printf("\n");
		printf("%-54s %12s %12s %12s\n", measures[m].what, value_text(measures[m].unit, s->at[0], a),
		       value_text(measures[m].unit, median(s), b),
		       value_text(measures[m].unit, s->at[s->count - 1], c));
	}
	printf("\n%-46s %-36s %8s %8s\n", "ratio of medians", "to", "is", "goal");
	for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
		const struct pair *p = &pairs[i];
		int which;
		double r = median(&bench->series[p->ours]) / reference_of(bench, p, &which);

		printf("%-46s %-36.36s %8.2f ", measures[p->ours].what, measures[which].what, r);
		if (p->goal > 0)
			printf("%s %g\n", measures[p->ours].unit == UNIT_NS ? "<=" : ">=", p->goal);
		else
			printf("\n");
	}
	printf("%-83s %8s <= %s\n", "finding 1 % written pages, per GiB", time_format((uint64_t)dirty, a),
	       time_format((uint64_t)DIRTY_GOAL_NS_PER_GIB, b));
}

static json_t *json_of(const struct bench *bench)
{
	json_t *root = json_object(), *values = json_object(), *ratios = json_array();

	for (int m = 0; m < M_COUNT; m++) {
		const struct series *s = &bench->series[m];

		json_object_set_new(values, measures[m].key,
				    json_pack("{s:s, s:f, s:f, s:f}", "unit",
					      measures[m].unit == UNIT_NS ? "ns" : "bytes_per_s", "min", s->at[0],
					      "median", median(s), "max", s->at[s->count - 1]));
	}
	for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
		int which;
		double ref = reference_of(bench, &pairs[i], &which);

		json_array_append_new(ratios, json_pack("{s:s, s:s, s:f, s:f}", "of", measures[pairs[i].ours].key,
							"to", measures[which].key, "is",
							median(&bench->series[pairs[i].ours]) / ref, "goal",
							pairs[i].goal));
	}
	json_object_set_new(root, "size", json_integer((json_int_t)bench->env.size));
	json_object_set_new(root, "rounds", json_integer(bench->rounds));
	json_object_set_new(root, "values", values);
	json_object_set_new(root, "ratios", ratios);
	json_object_set_new(root, "content_errors", json_integer(bench->env.failed));
	return root;
}

int cmd_bench(int argc, char **argv)
{
	static const char *const engines[] = { NULL, "io_uring", "epoll" };
	struct common common;
	struct bench bench = { .rounds = 3 };
	uint64_t size = GIB, rounds = 3;
	const char *dir = "/dev/shm";
	struct err e = { 0 };
	const struct opt options[] = {
		{ "size", 0, OPT_SIZE, "SIZE", "bytes of the bulk measurements (1G)", &size },
		{ "rounds", 0, OPT_NUMBER, "N", "how often everything is measured (3)", &rounds },
		{ "dir", 0, OPT_TEXT, "DIR", "where the test file is made (/dev/shm)", &dir },
		{ 0 },
	};
	const struct usage usage = {
		.name = "bench", .args = "[OPTION]...", .options = options, .json = true, .loop = true,
		.more = "Measures this machine's ceilings and Remora beside them, in one run.",
	};
	int r = options_parse(&usage, &common, argc, argv), code;

	if (r >= 0)
		return r;
	if (rounds < 1 || rounds > ROUNDS_MAX || size % (64 * MIB))
		return say_usage("rounds are 1 to %u, the size is a multiple of 64M", ROUNDS_MAX);
	bench.rounds = (unsigned)rounds;
	bench.env.size = size;
	bench.env.loop = engines[common.loop];
	snprintf(bench.env.dir, sizeof(bench.env.dir), "%s/remora-bench-XXXXXX", dir);
	if (strlen(dir) > 32 || !mkdtemp(bench.env.dir))
		return say_usage("--dir: no directory can be made in '%s'", dir);
	snprintf(bench.env.file, sizeof(bench.env.file), "%s/data", bench.env.dir);
	if (file_make(&bench.env, &e) || server_start(&bench, &e) ||
	    measure_all(&bench, common.quiet, &e)) {
		bench_done(&bench);
		return say_failed(&e, NULL);
	}
	bench_done(&bench);
	if (common.json)
		out_json(json_of(&bench));
	else
		print_text(&bench);
	code = bench.env.failed ? CMD_DATA : CMD_OK;
	if (code)
		say_error("%d content checks failed", bench.env.failed);
	return out_end(code);
}
