/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker of the exerciser: draws operations, keeps the model, and tells what went wrong.
 *
 * Place: between exercise.c, which starts the workers, and the operations (file.c, memory.c).
 *
 * Invariants: what is drawn depends on the seed, the worker's index and the options alone, never on
 * results: the same seed gives the same row of operations.
 *
 * Locking: none. A worker's own stripes are written by it alone; `stamps` tells readers of others.
 */
#include "exercise.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SHOWN 16u /* bytes of a difference */

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void worker_init(struct worker *w, struct run *run, unsigned index)
{
	*w = (struct worker){
		.run = run, .index = index, .fd = -1, .direct_fd = -1, .scratch = -1
	};
	rng_init(&w->rng, run->o.seed * WORKERS_MAX + index);
	w->buf = aligned_alloc(PAGE, OP_BYTES_MAX + 2 * PAGE);
	w->spare = aligned_alloc(PAGE, OP_BYTES_MAX + 2 * PAGE);
	if (!w->buf || !w->spare)
		fail(w, "no memory");
}

void worker_free(struct worker *w)
{
	free(w->buf);
	free(w->spare);
}

/* ---- what is drawn ---- */

static uint64_t stripe_count(const struct run *run)
{
	return (run->o.size + run->stripe - 1) / run->stripe;
}

static uint64_t length_draw(struct worker *w)
{
	switch (rng_below(&w->rng, 8)) {
	case 0:
	case 1:
		return 1 + rng_below(&w->rng, 512);
	case 2:
	case 3:
		return 1 + rng_below(&w->rng, 2 * PAGE);
	case 4:
	case 5:
		return PAGE * (1 + rng_below(&w->rng, 16));
	case 6:
		return 1 + rng_below(&w->rng, 128 << 10);
	default:
		return 1 + rng_below(&w->rng, OP_BYTES_MAX);
	}
}

static struct range range_in(struct worker *w, uint64_t stripe, uint64_t off, uint64_t len)
{
	const struct run *run = w->run;
	uint64_t end = (stripe + 1) * run->stripe;

	if (end > run->o.size)
		end = run->o.size;
	return (struct range){ off, len < end - off ? len : end - off };
}

static struct range range_draw_of(struct worker *w, unsigned owner, bool aligned)
{
	const struct run *run = w->run;
	uint64_t stripe, off, len = length_draw(w);
	uint64_t count = (stripe_count(run) - owner + run->o.processes - 1) / run->o.processes;

	stripe = owner + run->o.processes * rng_below(&w->rng, count);
	off = rng_below(&w->rng, range_in(w, stripe, stripe * run->stripe, run->stripe).len);
	off += stripe * run->stripe;
	/* Half of the operations come back to where the last one was, on another way. */
	if (rng_chance(&w->rng, 500000) && owner == w->index) {
		stripe = w->last_off / run->stripe;
		off = w->last_off & ~(PAGE - 1);
		off += rng_below(&w->rng, range_in(w, stripe, off, 2 * PAGE).len);
	}
	if (aligned) {
		off &= ~(PAGE - 1);
		len = (len + PAGE - 1) & ~(PAGE - 1);
	}
	if (owner == w->index)
		w->last_off = off;
	return range_in(w, stripe, off, len);
}

struct range range_draw(struct worker *w, bool aligned)
{
	return range_draw_of(w, w->index, aligned);
}

struct range range_draw_any(struct worker *w)
{
	return range_draw_of(w, (unsigned)rng_below(&w->rng, w->run->o.processes), true);
}

void bytes_draw(struct worker *w, void *buf, uint64_t len)
{
	switch (rng_below(&w->rng, 8)) {
	case 0: /* zeros travel by other ways */
		memset(buf, 0, len);
		break;
	case 1:
		memset(buf, (int)rng_below(&w->rng, 256), len);
		break;
	default:
		rng_fill(&w->rng, buf, len);
	}
}

/* ---- the model ---- */

static void stamps_step(struct worker *w, struct range r)
{
	if (!r.len)
		return;
	for (uint64_t page = r.off / PAGE; page <= (r.off + r.len - 1) / PAGE; page++)
		atomic_fetch_add(&w->run->stamps[page], 1);
}

void model_begin(struct worker *w, struct range r)
{
	stamps_step(w, r);
}

void model_end(struct worker *w, struct range r, const void *buf)
{
	if (buf)
		memcpy(w->run->model + r.off, buf, r.len);
	stamps_step(w, r);
}

static uint64_t difference(const uint8_t *a, const uint8_t *b, uint64_t len)
{
	uint64_t at = 0;

	while (at < len && a[at] == b[at])
		at++;
	return at;
}

static void bytes_print(const char *title, const uint8_t *bytes, uint64_t len)
{
	fprintf(stderr, "  %s", title);
	for (uint64_t i = 0; i < len && i < SHOWN; i++)
		fprintf(stderr, " %02x", bytes[i]);
	fprintf(stderr, "\n");
}

bool same(const uint8_t *model, const uint8_t *found, uint64_t off, uint64_t len, const char *what)
{
	uint64_t at, last = len - 1;

	if (!len || !memcmp(model + off, found, len))
		return true;
	at = difference(model + off, found, len);
	while (model[off + last] == found[last])
		last--;
	fprintf(stderr, "exercise: %s: difference at %llu (page %llu), the last at %llu\n", what,
		(unsigned long long)(off + at), (unsigned long long)((off + at) / PAGE),
		(unsigned long long)(off + last));
	bytes_print("expected", model + off + at, len - at);
	bytes_print("found   ", found + at, len - at);
	return false;
}

void check_bytes(struct worker *w, uint64_t off, const void *buf, uint64_t len)
{
	if (!same(w->run->model, buf, off, len, w->name))
		fail(w, "%llu bytes at %llu differ", (unsigned long long)len,
		     (unsigned long long)off);
}

/* Times are those until now; the others go on meanwhile. */
static void log_print(const struct run *run, unsigned index)
{
	const struct log_entry *log = run->shared->log[index];
	uint64_t now = now_ns();
	unsigned first = 0;

	for (unsigned i = 1; i < LOG_LEN; i++)
		if (log[i].number < log[first].number)
			first = i;
	fprintf(stderr, "  the last operations of worker %u, from and to (us ago):\n", index);
	for (unsigned i = 0; i < LOG_LEN; i++) {
		const struct log_entry *entry = &log[(first + i) % LOG_LEN];

		if (!entry->name)
			continue;
		fprintf(stderr, "  %8llu %-12s %12llu + %-8llu = %-8lld %8llu",
			(unsigned long long)entry->number, entry->name,
			(unsigned long long)entry->off, (unsigned long long)entry->len,
			(long long)entry->result,
			(unsigned long long)(now - entry->start_ns) / 1000);
		if (entry->end_ns)
			fprintf(stderr, " %8llu\n",
				(unsigned long long)(now - entry->end_ns) / 1000);
		else
			fprintf(stderr, " ...\n");
	}
}

void fail(struct worker *w, const char *fmt, ...)
{
	va_list ap;

	if (atomic_exchange(&w->run->shared->stop, true))
		_exit(1); /* another was first: its story is enough */
	fprintf(stderr, "exercise: seed %llu, worker %u, operation %llu, %s: ",
		(unsigned long long)w->run->o.seed, w->index, (unsigned long long)w->number,
		w->name ? w->name : "start");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n  stripes of %llu bytes\n", (unsigned long long)w->run->stripe);
	for (unsigned i = 0; i < w->run->o.processes; i++)
		log_print(w->run, i);
	fflush(stderr);
	_exit(1);
}

/* ---- the row of operations ---- */

static bool kind_fits(const struct worker *w, const struct op_kind *kind)
{
	const struct options *o = &w->run->o;

	return (!kind->direct || o->direct) && (!kind->fixed || !o->plain);
}

static const struct op_kind *kind_draw(struct worker *w, const struct op_kind *kinds,
				       unsigned count)
{
	unsigned sum = 0, at;

	for (unsigned i = 0; i < count; i++)
		sum += kind_fits(w, &kinds[i]) ? kinds[i].weight : 0;
	at = (unsigned)rng_below(&w->rng, sum);
	for (unsigned i = 0;; i++) {
		unsigned weight = kind_fits(w, &kinds[i]) ? kinds[i].weight : 0;

		if (at < weight)
			return &kinds[i];
		at -= weight;
	}
}

void worker_run(struct worker *w, const struct op_kind *kinds, unsigned count)
{
	struct run *run = w->run;
	struct shared *shared = run->shared;

	w->last_off = w->index * run->stripe;
	while (!atomic_load(&shared->stop) && now_ns() < run->deadline_ns &&
	       w->number < run->o.ops_max) {
		const struct op_kind *kind = kind_draw(w, kinds, count);
		struct log_entry *entry = &shared->log[w->index][++w->number % LOG_LEN];

		*entry = (struct log_entry){
			.number = w->number, .name = kind->name, .start_ns = now_ns()
		};
		w->name = kind->name;
		entry->result = kind->run(w, entry);
		entry->end_ns = now_ns();
		if (entry->result == -EOPNOTSUPP)
			atomic_fetch_add(&shared->unsupported[kind - kinds], 1);
		else
			atomic_fetch_add(&shared->done[kind - kinds], 1);
	}
	w->name = "end";
	atomic_fetch_add(&shared->ops, w->number);
}
