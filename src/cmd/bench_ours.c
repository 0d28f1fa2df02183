/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Remora's own figures for `remora bench`, taken through the public API alone, as a user's program
 * would get them.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "cmd/bench.h"
#include "remora/remora.h"

#define FAULTS 4096u

static void region_close(struct remora **r)
{
	remora_discard(*r);
}

static int region_open(struct remora **ret, const char *spec, struct remora_options *o,
		       struct bench_env *b, struct err *e)
{
	struct remora_error why;

	o->struct_size = sizeof(*o);
	o->loop = b->loop;
	if (remora_open(ret, spec, o, &why) < 0)
		return err_set(e, why.code, "%s", why.text);
	return 0;
}

static int pull_all(struct remora *r, struct err *e)
{
	int err = remora_pull(r, 0, remora_size(r), 0, REMORA_PULL_WAIT);

	return err < 0 ? err_sys(e, err, "pulling everything") : 0;
}

static double per_second(uint64_t bytes, uint64_t ns)
{
	return (double)bytes * 1e9 / (double)(ns ? ns : 1);
}

double bench_fault_near(struct bench_env *b, struct err *e)
{
	CLEANUP(region_close) struct remora *r = NULL;
	struct remora_options o = { .chunk = PAGE_BYTES, .no_push = 1, .readahead_max = 1 };
	AUTO_FREE uint64_t *ns = malloc(FAULTS * sizeof(*ns));
	cpu_set_t saved;

	if (!ns)
		return err_set(e, -ENOMEM, "no memory for the samples");
	if (region_open(&r, "memory:16M", &o, b, e) < 0 || pull_all(r, e) < 0)
		return e->code;
	/* Everything stays in the near store, and nothing is mapped: each touch is a fault that
	 * needs no far store. */
	if (madvise(remora_data(r), (size_t)FAULTS * PAGE_BYTES, MADV_DONTNEED) < 0)
		return err_sys(e, -errno, "madvise");
	/* As for the bare handler the faulting thread stays on its core; ours has to find it. */
	sched_getaffinity(0, sizeof(saved), &saved);
	bench_pin(sched_getcpu());
	bench_touch_random(remora_data(r), FAULTS, ns);
	sched_setaffinity(0, sizeof(saved), &saved);
	return (double)ns[FAULTS / 2];
}

static double cold_read(struct bench_env *b, const char *spec, struct err *e)
{
	CLEANUP(region_close) struct remora *r = NULL;
	struct remora_options o = { .no_push = 1 };
	uint64_t t;

	if (region_open(&r, spec, &o, b, e) < 0)
		return e->code;
	t = bench_now();
	b->failed += bench_sum(remora_data(r), b->size) != b->sum;
	return per_second(b->size, bench_now() - t);
}

double bench_cold_file(struct bench_env *b, struct err *e)
{
	return cold_read(b, b->file, e);
}

double bench_cold_server(struct bench_env *b, struct err *e)
{
	return cold_read(b, b->server, e);
}

static double pull_read(struct bench_env *b, const char *spec, struct err *e)
{
	CLEANUP(region_close) struct remora *r = NULL;
	struct remora_options o = { .no_push = 1, .pull = REMORA_PULL_ALL };
	uint64_t t = bench_now();

	if (region_open(&r, spec, &o, b, e) < 0 || pull_all(r, e) < 0)
		return e->code;
	t = bench_now() - t;
	b->failed += bench_sum(remora_data(r), b->size) != b->sum;
	return per_second(b->size, t);
}

double bench_pull_file(struct bench_env *b, struct err *e)
{
	return pull_read(b, b->file, e);
}

double bench_pull_server(struct bench_env *b, struct err *e)
{
	return pull_read(b, b->server, e);
}

double bench_resident(struct bench_env *b, struct err *e)
{
	CLEANUP(region_close) struct remora *r = NULL;
	struct remora_options o = { .no_push = 1 };
	uint64_t t;

	if (region_open(&r, b->file, &o, b, e) < 0 || pull_all(r, e) < 0)
		return e->code;
	b->failed += bench_sum(remora_data(r), b->size) != b->sum;
	t = bench_now();
	b->failed += bench_sum(remora_data(r), b->size) != b->sum;
	return per_second(b->size, bench_now() - t);
}

double bench_dirty_find(struct bench_env *b, struct err *e)
{
	CLEANUP(region_close) struct remora *r = NULL;
	struct remora_options o = { .no_push = 1 };
	struct remora_status status;
	uint64_t pages = b->size / PAGE_BYTES, written = 0;
	uint8_t *mem;
	int err;

	if (region_open(&r, b->scratch, &o, b, e) < 0 || pull_all(r, e) < 0)
		return e->code;
	mem = remora_data(r);
	for (uint64_t p = 0; p < pages; p += 100, written++)
		mem[p * PAGE_BYTES + p % PAGE_BYTES] ^= 1;
	err = remora_flush(r);
	if (err < 0)
		return err_sys(e, err, "flushing 1 %% written");
	remora_status(r, &status);
	b->failed += status.pushed_bytes != written * PAGE_BYTES;
	return (double)status.collect_ns;
}

double bench_write_back(struct bench_env *b, struct err *e)
{
	CLEANUP(region_close) struct remora *r = NULL;
	struct remora_options o = { .no_push = 1 };
	uint64_t t;
	int err;

	if (region_open(&r, b->scratch, &o, b, e) < 0 || pull_all(r, e) < 0)
		return e->code;
	memset(remora_data(r), (int)(bench_now() & 0x7f) + 1, b->size);
	t = bench_now();
	err = remora_flush(r);
	t = bench_now() - t;
	if (err < 0)
		return err_sys(e, err, "flushing");
	return per_second(b->size, t);
}
