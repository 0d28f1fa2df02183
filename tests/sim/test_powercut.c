/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A region over a far store whose power is cut at random moments (the powercut stage over the far
 * store of region_world.h), in a simulated world. Writes, reads and flushes run at random; what is
 * checked: a read finds the last write, always, because the region has it; and when a FLUSH has
 * returned 0, the far side's durable content has everything that was acknowledged before it was
 * asked for. REMORA_SEED=n runs one seed, REMORA_SEEDS=n so many.
 */
#include <sys/wait.h>

#include "region_world.h"
#include "seed.h"
#include "stage/stage.h"

#define TASKS 10u
#define MINIMUM_FLUSHES 3u

struct task {
	struct req req;
	struct model *m;
	bool busy;
	uint8_t *buf;
	uint32_t *snap;	  /* versions when it was asked for; FLUSH: of all sectors */
	uint32_t version; /* WRITE */
};

struct model {
	struct world w; /* first */
	struct store *top; /* the row below the region */
	uint32_t *version;
	uint8_t *locked;
	uint32_t clock;
	struct task task[TASKS];
	bool lies, closing;
	uint64_t flushes, cuts, busy;
};

static int far_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		    struct store *next)
{
	struct world *w = how->callbacks_arg;

	MUST(!next && !spec_options_end(args));
	*ret = &w->far->store;
	return 0;
}

const struct store_kind store_kinds[] = {
	{ "far", true, "far:", far_open },
	{ "powercut", false, "powercut[:after=N][,times=N][,seed=N][,keep=SIZE]", stage_powercut_open },
	{ 0 },
};

static bool range_locked(const struct model *m, struct range r)
{
	for (uint64_t s = r.off / SECTOR; s < range_end(r) / SECTOR; s++)
		if (m->locked[s])
			return true;
	return false;
}

static void range_lock(struct model *m, struct range r, bool on)
{
	memset(m->locked + r.off / SECTOR, on, r.len / SECTOR);
}

static void check_sector(const struct model *m, uint32_t s, const uint8_t *at, uint32_t from,
			 const char *what)
{
	uint32_t v = sector_version(at, s);

	if (v >= from && v <= m->clock)
		return;
	fprintf(stderr, "# %s: sector %u has version %d, %u expected\n", what, s, (int)v, from);
	MUST(!"old or foreign data");
}

static void task_done(struct req *req, int err)
{
	struct task *t = CONTAINER_OF(req, struct task, req);
	struct model *m = t->m;
	uint32_t first = (uint32_t)(req->range.off / SECTOR);

	MUST(t->busy);
	MUST(!err || m->closing);
	t->busy = false;
	m->busy--;
	if (err)
		return;
	trace(&m->w, "request %s %llu+%llu done", req_op_name(req->op),
	      (unsigned long long)req->range.off, (unsigned long long)req->range.len);
	switch (req->op) {
	case REQ_READ:
		for (uint32_t i = 0; i < req->range.len / SECTOR; i++)
			check_sector(m, first + i, t->buf + (size_t)i * SECTOR, t->snap[i], "read");
		break;
	case REQ_WRITE:
		for (uint32_t i = 0; i < req->range.len / SECTOR; i++)
			m->version[first + i] = t->version;
		range_lock(m, req->range, false);
		break;
	default:
		m->flushes++;
		for (uint32_t s = 0; s < m->w.sectors; s++)
			check_sector(m, s, m->w.far->durable + (size_t)s * SECTOR, t->snap[s],
				     "flushed");
		break;
	}
}

static void task_begin(struct model *m, enum req_op op)
{
	uint32_t first = (uint32_t)rng_below(&m->w.rng, m->w.sectors);
	uint32_t count = 1 + (uint32_t)rng_below(&m->w.rng, MIN(60, m->w.sectors - first));
	struct range r = range_of((uint64_t)first * SECTOR, (uint64_t)count * SECTOR);
	struct task *t = m->task;

	while (t->busy)
		if (++t == m->task + TASKS)
			return;
	if (op != REQ_FLUSH && range_locked(m, r))
		return;
	t->m = m;
	t->busy = true;
	m->busy++;
	t->buf = realloc(t->buf, r.len);
	t->snap = realloc(t->snap, m->w.sectors * sizeof(*t->snap));
	MUST(t->buf && t->snap);
	if (op == REQ_FLUSH)
		memcpy(t->snap, m->version, m->w.sectors * sizeof(*t->snap));
	else
		memcpy(t->snap, m->version + first, count * sizeof(*t->snap));
	t->req = (struct req){ .op = op, .range = r, .data = { t->buf, r.len }, .done = task_done };
	if (op == REQ_FLUSH)
		t->req.range = range_of(0, 0);
	if (op == REQ_WRITE) {
		t->version = ++m->clock;
		range_lock(m, r, true);
		for (uint32_t i = 0; i < count; i++)
			sector_fill(t->buf + (size_t)i * SECTOR, first + i, t->version);
		t->req.flags = rng_chance(&m->w.rng, 20000) ? REQ_FUA : 0;
	}
	trace(&m->w, "request %s %llu+%llu", req_op_name(op), (unsigned long long)r.off,
	      (unsigned long long)r.len);
	req_submit(m->w.store, &t->req);
}

/* The bug to be found: the power was cut and nobody is told. */
static void cut(struct model *m)
{
	uint64_t instance = m->top->info.instance;
	struct store *above = m->top->above;
	void (*on_event)(void *, struct store *, enum store_event) = m->top->on_event;

	trace(&m->w, "cut");
	m->cuts++;
	if (m->lies) {
		m->top->above = NULL;
		m->top->on_event = NULL;
	}
	MUST(stage_powercut_cut(m->top));
	m->top->above = above;
	m->top->on_event = on_event;
	if (m->lies)
		m->top->info.instance = instance;
}

static void model_acts(struct model *m)
{
	uint64_t dice = rng_below(&m->w.rng, 1000);

	if (dice < 4)
		cut(m);
	else if (dice < 40)
		task_begin(m, REQ_FLUSH);
	else if (dice < 500)
		task_begin(m, REQ_WRITE);
	else
		task_begin(m, REQ_READ);
}

static void model_open(struct model *m, uint64_t seed)
{
	struct region_options o = { .push_interval_ns = 20 * MS, .push_age_ns = 5 * MS };
	static const uint32_t chunks[] = { 4 * KIB, 16 * KIB, 64 * KIB };
	struct store_open how = { .deadline_ns = NEVER_NS, .callbacks_arg = m };
	struct err e = { 0 };
	char spec[96];

	world_open(&m->w, seed, (100 + seed % 900) * SECTOR, false);
	o.chunk = chunks[rng_below(&m->w.rng, ARRAY_LEN(chunks))];
	o.push_off = rng_chance(&m->w.rng, 200000);
	o.pull_all = rng_chance(&m->w.rng, 500000);
	how.loop = m->w.loop;
	/* By seed some of it survives; or all of it is gone. */
	snprintf(spec, sizeof(spec), seed % 4 ? "powercut:seed=%llu,keep=%s|far:" : "powercut:after=%llu,keep=%s|far:",
		 (unsigned long long)(seed % 4 ? seed : 50 + seed), seed % 3 ? "16M" : "64K");
	if (m->lies)
		snprintf(spec, sizeof(spec), "powercut|far:");
	if (spec_open(&m->top, spec, &how, &e) ||
	    region_open(&m->w.region, m->w.loop, m->top, &m->w.near.near, &o, &e)) {
		fprintf(stderr, "# %s\n", e.text);
		abort();
	}
	m->w.store = region_store(m->w.region);
	m->version = malloc(m->w.sectors * sizeof(*m->version));
	m->locked = calloc(m->w.sectors, 1);
	MUST(m->version && m->locked);
	for (uint32_t s = 0; s < m->w.sectors; s++)
		m->version[s] = 1;
	m->clock = 1;
}

static void model_run(uint64_t seed, bool lies, bool tell)
{
	struct model *m = calloc(1, sizeof(*m));
	uint64_t steps;

	MUST(m);
	seed_now = seed;
	m->lies = lies;
	m->w.trace = tell;
	model_open(m, seed);
	steps = 2000 + rng_below(&m->w.rng, 4000);
	for (uint64_t i = 0; i < steps; i++) {
		if (rng_chance(&m->w.rng, 200000))
			model_acts(m);
		if (sim_step(m->w.sim) == -EDEADLK)
			model_acts(m);
	}
	while (m->busy) /* no cuts any more: everything ends, and well */
		MUST(!sim_step(m->w.sim));
	task_begin(m, REQ_FLUSH);
	while (m->busy)
		MUST(!sim_step(m->w.sim));
	MUST(m->flushes >= MINIMUM_FLUSHES);
	m->closing = true;
	world_close(&m->w);
	for (unsigned i = 0; i < TASKS; i++) {
		free(m->task[i].buf);
		free(m->task[i].snap);
	}
	free(m->version);
	free(m->locked);
	free(m);
}

static void seed_run(uint64_t seed, bool tells)
{
	model_run(seed, false, tells);
}

static void flush_never_lies_however_the_power_is_cut(void **state)
{
	(void)state;
	seeds_run(50, seed_run);
}

static void seed_run_with(uint64_t seed, int bug)
{
	model_run(seed, bug, false);
}

static void finds_a_cut_that_nobody_is_told_of(void **state)
{
	(void)state;
	seeds_find(100, seed_run_with, true);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(flush_never_lies_however_the_power_is_cut),
		cmocka_unit_test(finds_a_cut_that_nobody_is_told_of),
	};

	if (argc > 1)
		setenv("REMORA_SEED", argv[1], 1);
	signal(SIGABRT, seed_tell);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
