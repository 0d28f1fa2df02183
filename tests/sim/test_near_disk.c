/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A region with a near store on a disk, against a model, over processes that are killed and
 * machines that lose power, at every call that is made of the disk. A failing seed is printed;
 * REMORA_SEED=n (or an argument) runs it alone with a trace, REMORA_SEEDS=n sets how many are run.
 *
 * The model has the history of every page: what each write made of it. After an end of any kind the
 * next process must find each page as one of these, never a mixture and never zeros:
 *  - after a kill, with everything that had completed;
 *  - after a power cut, with everything that a FLUSH had covered;
 * and from then on it stays what was found: also when it is dropped and pulled again, since what is
 * read once must not change by itself. The far side may lose at the same time what was not flushed
 * there. At the end a FLUSH makes the far side what the model is.
 */
#include <sys/wait.h>
#include <unistd.h>

#include "disk_world.h"
#include "region/near_disk_int.h"
#include "region_world.h"
#include "seed.h"

#define CHUNK (16 * KIB)
#define TASKS 5u
#define LIVES 4u
#define SECTORS (40u * 32 + 13)

struct state { /* of a page */
	uint32_t version[PER_PAGE];
};

struct history {
	struct state *at;
	size_t count, room;
	size_t done;	/* the last write that has completed; at[] of it */
	size_t flushed; /* ... that a FLUSH has covered */
	bool writing;
};

struct task {
	struct req req;
	struct model *m;
	bool busy;
	uint8_t *buf;
	uint32_t version;
	size_t *covers; /* FLUSH, READ: the last write of each page that had completed */
};

struct model {
	struct world w; /* first */
	struct disk d;
	struct near_ops ops;
	struct history *page;
	struct task task[TASKS];
	uint32_t clock;
	bool dead, calm, fulls, may_restart;
	uint64_t opens, kills, cuts, flushes, ends_at[3];
	/* the far side between two lives */
	uint8_t *bytes, *durable;
	uint64_t instance;
	uint64_t far_reads, life_pulled;
};

enum planted {
	PLANTED_NOTHING,
	PLANTED_NO_SYNC,   /* nothing is ever safe */
	PLANTED_EARLY,	   /* the region does not wait until it is */
	PLANTED_SAME_HASH, /* what is clean is believed */
};

static enum planted planted_now;

/* ---- the model's pages ---- */

static uint32_t page_sectors(const struct model *m, uint32_t p)
{
	return MIN(m->w.sectors - p * PER_PAGE, PER_PAGE);
}

static struct state *history_add(struct history *h)
{
	if (h->count == h->room) {
		h->room = 2 * h->room + 4;
		h->at = realloc(h->at, h->room * sizeof(*h->at));
		MUST(h->at);
	}
	h->at[h->count] = h->at[h->count - 1];
	return &h->at[h->count++];
}

static void history_reset(struct history *h, const struct state *s)
{
	struct state keep = *s;

	h->at[0] = keep;
	h->count = 1;
	h->done = h->flushed = 0;
	h->writing = false;
}

static struct state page_state(const struct model *m, uint32_t p, const uint8_t *bytes)
{
	struct state s = { 0 };

	for (uint32_t i = 0; i < page_sectors(m, p); i++)
		s.version[i] = sector_version(bytes + (size_t)i * SECTOR, p * PER_PAGE + i);
	return s;
}

static bool state_same(const struct state *a, const struct state *b)
{
	return !memcmp(a, b, sizeof(*a));
}

static void state_tell(const char *what, const struct state *s)
{
	fprintf(stderr, "# %s:", what);
	for (unsigned i = 0; i < PER_PAGE; i++)
		fprintf(stderr, " %d", (int)s->version[i]);
	fputc('\n', stderr);
}

/* The page is what some write from `floor` on made of it. */
static void page_found(struct model *m, uint32_t p, const uint8_t *bytes, size_t floor)
{
	struct history *h = &m->page[p];
	struct state s = page_state(m, p, bytes);

	for (size_t k = h->count; k-- > floor;)
		if (state_same(&s, &h->at[k])) {
			history_reset(h, &s);
			return;
		}
	fprintf(stderr, "# page %u: %zu states, from %zu on allowed (%zu done, %zu flushed)\n", p, h->count,
		floor, h->done, h->flushed);
	state_tell("found", &s);
	for (size_t k = 0; k < h->count; k++)
		state_tell(k < floor ? "before" : "allowed", &h->at[k]);
	MUST(!"a page that nobody wrote");
}

/* ---- requests ---- */

static void task_submit(struct task *t);

static void task_retry(void *arg)
{
	struct task *t = arg;

	if (t->busy && !t->m->dead)
		task_submit(t);
}

static void pages_written(struct task *t)
{
	struct model *m = t->m;
	struct range r = t->req.range;

	for (uint64_t p = r.off / PAGE_BYTES; p <= (range_end(r) - 1) / PAGE_BYTES; p++) {
		m->page[p].done = m->page[p].count - 1;
		m->page[p].writing = false;
	}
}

/* Each sector is what some write made of it, none that was overwritten before the read began. */
static void pages_read(struct task *t)
{
	struct model *m = t->m;
	struct range r = t->req.range;

	for (uint64_t s = r.off / SECTOR; s < range_end(r) / SECTOR; s++) {
		const struct history *h = &m->page[s / PER_PAGE];
		uint32_t found = sector_version(t->buf + (s * SECTOR - r.off), (uint32_t)s);
		size_t k = h->count;

		while (k-- > t->covers[s / PER_PAGE])
			if (h->at[k].version[s % PER_PAGE] == found)
				break;
		if (k + 1 > t->covers[s / PER_PAGE])
			continue;
		fprintf(stderr, "# sector %u: %d was read\n", (unsigned)s, (int)found);
		MUST(!"a read found something else than was written");
	}
}

static void task_flushed(struct task *t)
{
	struct model *m = t->m;

	m->flushes++;
	m->may_restart = true;
	for (uint32_t p = 0; p < m->w.pages; p++)
		m->page[p].flushed = MAX(m->page[p].flushed, t->covers[p]);
}

static void task_done(struct req *req, int err)
{
	struct task *t = CONTAINER_OF(req, struct task, req);
	struct model *m = t->m;

	trace(&m->w, "request %s %llu+%llu: %d", req_op_name(req->op),
	      (unsigned long long)req->range.off, (unsigned long long)req->range.len, err);
	if (m->d.dead || m->dead) {
		t->busy = false; /* nobody hears of it any more */
		return;
	}
	if (err && req_op_changes(req->op)) {
		MUST(err == -ENOSPC || err == -EIO || err == -ETIMEDOUT);
		sim_at(m->w.sim, sim_now(m->w.sim) + 10 * MS, task_retry, t);
		return;
	}
	t->busy = false;
	if (err)
		return;
	if (req->op == REQ_READ)
		pages_read(t);
	else if (req_op_changes(req->op))
		pages_written(t);
	else if (req->op == REQ_FLUSH)
		task_flushed(t);
}

static void task_submit(struct task *t)
{
	t->req.done = task_done;
	t->req.flags = 0;
	req_submit(t->m->w.store, &t->req);
}

static bool range_busy(const struct model *m, struct range r)
{
	for (uint64_t p = r.off / PAGE_BYTES; p <= (range_end(r) - 1) / PAGE_BYTES; p++)
		if (m->page[p].writing)
			return true;
	return false;
}

static void task_fill(struct task *t)
{
	struct model *m = t->m;
	struct range r = t->req.range;
	bool zero = t->req.op == REQ_ZERO;
	uint64_t last = UINT64_MAX;
	struct state *s = NULL;

	t->version = ++m->clock;
	for (uint64_t i = r.off / SECTOR; i < range_end(r) / SECTOR; i++) {
		if (i / PER_PAGE != last) {
			last = i / PER_PAGE;
			s = history_add(&m->page[last]);
			m->page[last].writing = true;
		}
		s->version[i % PER_PAGE] = zero ? VERSION_ZEROS : t->version;
		if (!zero)
			sector_fill(t->buf + (i * SECTOR - r.off), (uint32_t)i, t->version);
	}
}

static struct range random_range(struct model *m)
{
	struct rng *r = &m->w.rng;
	uint32_t sectors = rng_chance(r, 200000) ? 1 + (uint32_t)rng_below(r, 150) :
						   1 + (uint32_t)rng_below(r, 12);
	uint32_t first = (uint32_t)rng_below(r, m->w.sectors);

	if (rng_chance(r, 300000))
		first = (uint32_t)rng_below(r, 64); /* often the same */
	if (rng_chance(r, 500000)) { /* whole pages */
		first -= first % PER_PAGE;
		sectors = (sectors + PER_PAGE - 1) / PER_PAGE * PER_PAGE;
	}
	sectors = MIN(sectors, m->w.sectors - first);
	return range_of((uint64_t)first * SECTOR, (uint64_t)sectors * SECTOR);
}

static struct task *task_begin(struct model *m, enum req_op op)
{
	struct task *t = m->task;
	struct range r = op == REQ_FLUSH ? range_of(0, 0) : random_range(m);

	while (t->busy)
		if (++t == m->task + TASKS)
			return NULL;
	if (r.len && req_op_changes(op) && range_busy(m, r))
		return NULL;
	t->m = m;
	t->busy = true;
	t->req.op = op;
	t->req.range = r;
	t->buf = realloc(t->buf, r.len + 1);
	t->req.data = (struct iobuf){ t->buf, r.len };
	trace(&m->w, "request %s %llu+%llu", req_op_name(op), (unsigned long long)r.off,
	      (unsigned long long)r.len);
	if (req_op_changes(op))
		task_fill(t);
	if (!req_op_changes(op)) {
		t->covers = realloc(t->covers, m->w.pages * sizeof(*t->covers));
		for (uint32_t p = 0; p < m->w.pages; p++)
			t->covers[p] = m->page[p].done;
	}
	task_submit(t);
	return t;
}

static void user_acts(struct model *m)
{
	uint64_t what = rng_below(&m->w.rng, 100);

	if (what < 45)
		(void)task_begin(m, REQ_WRITE);
	else if (what < 50)
		(void)task_begin(m, REQ_ZERO);
	else if (what < 88)
		(void)task_begin(m, REQ_READ);
	else if (what < 94)
		(void)task_begin(m, REQ_FLUSH);
	else if (what < 98)
		MUST(!region_invalidate(m->w.region, random_range(m)));
	else if (m->may_restart && !m->w.far->down && rng_chance(&m->w.rng, 300000))
		far_restart(m->w.far);
}

/* ---- a life ---- */

static void far_takes_over(struct model *m)
{
	struct far *f = m->w.far;

	if (!m->bytes) {
		m->bytes = malloc(m->w.size);
		m->durable = malloc(m->w.size);
		MUST(m->bytes && m->durable);
		m->instance = 1;
		memcpy(m->bytes, f->bytes, m->w.size);
		memcpy(m->durable, f->durable, m->w.size);
	} else if (rng_chance(&m->w.rng, 300000)) {
		/* It was restarted, too. Of a page that it tears then nobody may have the whole. */
		for (uint32_t p = 0; p < m->w.pages; p++)
			if (rng_chance(&m->w.rng, 700000))
				memcpy(m->bytes + (size_t)p * PAGE_BYTES,
				       m->durable + (size_t)p * PAGE_BYTES,
				       page_sectors(m, p) * SECTOR);
		memcpy(m->durable, m->bytes, m->w.size);
		m->instance++;
	}
	memcpy(f->bytes, m->bytes, m->w.size);
	memcpy(f->durable, m->durable, m->w.size);
	f->instance = f->store.info.instance = m->instance;
	f->store.info.identity = 77;
	f->delay_min_ns = 50 * US;
	f->delay_max_ns = f->delay_min_ns + rng_below(&m->w.rng, 3 * MS);
}

static int near_make_disk(struct model *m, struct near **ret, uint64_t budget, struct err *e)
{
	const struct near_disk_io io = disk_io(&m->d);
	const struct near_disk_options o = {
		.dir = "sim", .size = m->w.size, .chunk = CHUNK, .identity = 77, .spec = "far",
		.holder = "a test", .budget_bytes = budget,
		.sync_interval_ns = 20 * MS, .io = &io,
	};

	return near_disk_open(ret, m->w.loop, &o, e);
}

/* As if it had been made safe at once. */
static int early_sync(struct near *near, struct near_sync *sync)
{
	(void)near;
	(void)sync;
	return 0;
}

static void plant(struct model *m, struct near *near)
{
	struct near_disk *d = CONTAINER_OF(near, struct near_disk, near);

	m->ops = *near->ops;
	if (planted_now == PLANTED_EARLY)
		m->ops.sync = early_sync;
	near->ops = &m->ops;
	if (planted_now == PLANTED_SAME_HASH)
		for (uint64_t c = 0; c < d->ix.chunks; c++)
			nd_index_flag(&d->ix, c, 0, ND_UNSEEN);
}

/* False: the disk went away already, or was too full. */
static bool life_open(struct model *m, uint64_t seed)
{
	struct region_options o = {
		.chunk = CHUNK, .inflight_bytes_max = 256 * KIB, .push_interval_ns = 15 * MS,
		.pull_all = rng_chance(&m->d.rng, 400000),
	};
	struct err e = { 0 };
	struct near *near;
	int err;

	world_open(&m->w, seed, (uint64_t)SECTORS * SECTOR, false);
	pnear_close(&m->w.near.near);
	far_takes_over(m);
	m->may_restart = !m->opens;
	if (rng_chance(&m->d.rng, 400000))
		o.budget_bytes = 2400 * KIB + rng_below(&m->d.rng, 800 * KIB);
	err = near_make_disk(m, &near, o.budget_bytes, &e);
	if (err) {
		trace(&m->w, "not opened: %s", e.text);
		MUST(m->d.dead || m->fulls || m->d.sync_fails_per_million);
		return false;
	}
	m->opens++;
	plant(m, near);
	while ((err = region_open(&m->w.region, m->w.loop, &m->w.far->store, near, &o, &e))) {
		MUST(o.budget_bytes);
		o.budget_bytes += 200 * KIB;
	}
	m->w.store = region_store(m->w.region);
	return true;
}

static void far_closed_alone(void *arg)
{
	*(bool *)arg = true;
}

static void life_close(struct model *m)
{
	bool closed = false;

	m->dead = true;
	/* the far side is as it was at that moment */
	memcpy(m->bytes, m->w.far->bytes, m->w.size);
	memcpy(m->durable, m->w.far->durable, m->w.size);
	m->instance = m->w.far->instance;
	if (m->w.region) {
		world_close(&m->w);
	} else {
		store_close(&m->w.far->store, far_closed_alone, &closed);
		while (!closed)
			MUST(!sim_step(m->w.sim));
		loop_close(m->w.loop);
		sim_close(m->w.sim);
	}
	m->w.region = NULL;
	m->w.store = NULL;
	m->w.closed = false;
	for (unsigned i = 0; i < TASKS; i++)
		MUST(!m->task[i].busy || req_op_changes(m->task[i].req.op));
	for (unsigned i = 0; i < TASKS; i++)
		m->task[i].busy = false;
	m->dead = false;
}

/* Everything is read, and is what it may be; then again, when what is clean has been dropped. */
static void life_check(struct model *m, bool power)
{
	uint8_t buf[PAGE_BYTES];
	bool *seen = calloc(m->w.pages, sizeof(*seen));

	MUST(seen);
	for (unsigned round = 0; round < 2; round++) {
		for (uint32_t p = 0; p < m->w.pages && !m->d.dead; p++) {
			struct history *h = &m->page[p];
			size_t len = page_sectors(m, p) * SECTOR;
			int err = store_read(m->w.store, (uint64_t)p * PAGE_BYTES, buf, len);

			MUST(!err || m->d.dead || m->fulls);
			if (err)
				continue;
			page_found(m, p, buf,
				   seen[p] ? h->count - 1 : power ? h->flushed : h->done);
			seen[p] = true;
		}
		if (!round && !m->d.dead)
			MUST(!region_invalidate(m->w.region, range_of(0, m->w.size)));
	}
	free(seen);
}

static bool idle(const struct model *m)
{
	for (unsigned i = 0; i < TASKS; i++)
		if (m->task[i].busy)
			return false;
	return true;
}

static void life_run(struct model *m, uint64_t steps)
{
	for (uint64_t i = 0; i < steps && !m->d.dead; i++) {
		if (rng_chance(&m->w.rng, 150000))
			user_acts(m);
		if (sim_step(m->w.sim) == -EDEADLK)
			user_acts(m);
		if (i % 211 == 0)
			map_assert_all(&m->w.region->map);
	}
}

/* Nothing goes wrong any more: it gets to its end, and the far side has everything. */
static void life_last(struct model *m)
{
	struct task *t;

	m->d.sync_fails_per_million = 0;
	m->d.pages_max = 0;
	while (!idle(m))
		MUST(!sim_step(m->w.sim));
	for (unsigned i = 0; i < 4; i++) { /* the first may tell what has failed before */
		uint64_t until = sim_now(m->w.sim) + 2 * NS_PER_S;

		while (sim_now(m->w.sim) < until && !sim_step(m->w.sim))
			;
		t = task_begin(m, REQ_FLUSH);
		while (t->busy)
			MUST(!sim_step(m->w.sim));
	}
	for (uint32_t p = 0; p < m->w.pages; p++) {
		struct history *h = &m->page[p];

		/* on a full disk perhaps nobody has looked at it since the former life */
		MUST(h->flushed == h->done && (m->fulls || h->done == h->count - 1));
		page_found(m, p, m->w.far->durable + (size_t)p * PAGE_BYTES, h->done);
	}
}

static void model_open(struct model *m, uint64_t seed, bool tell)
{
	uint32_t pages = (SECTORS + PER_PAGE - 1) / PER_PAGE;

	seed_now = seed;
	rng_init(&m->d.rng, seed ^ 0x6469736b);
	m->d.sync_lies = planted_now == PLANTED_NO_SYNC;
	m->w.trace = tell;
	m->page = calloc(pages, sizeof(*m->page));
	MUST(m->page);
	m->clock = 1;
	for (uint32_t p = 0; p < pages; p++) {
		m->page[p].at = calloc(4, sizeof(struct state));
		MUST(m->page[p].at);
		m->page[p].room = 4;
		m->page[p].count = 1;
		for (uint32_t i = 0; i < MIN(SECTORS - p * PER_PAGE, PER_PAGE); i++)
			m->page[p].at[0].version[i] = 1;
	}
}

static void model_close(struct model *m)
{
	uint32_t pages = (SECTORS + PER_PAGE - 1) / PER_PAGE;

	for (uint32_t p = 0; p < pages; p++)
		free(m->page[p].at);
	for (unsigned i = 0; i < TASKS; i++) {
		free(m->task[i].buf);
		free(m->task[i].covers);
	}
	disk_free(&m->d);
	free(m->page);
	free(m->bytes);
	free(m->durable);
	free(m);
}

/* What is left of the disk, for the next life; true = there was a power cut. */
static bool life_ends(struct model *m)
{
	bool power = rng_chance(&m->d.rng, 500000);

	trace(&m->w, "the end: %s, at call %llu", power ? "power cut" : "kill",
	      (unsigned long long)m->d.calls);
	m->d.dead = true;
	life_close(m);
	if (power)
		disk_power_cut(&m->d);
	m->cuts += power;
	m->kills += !power;
	disk_starts(&m->d);
	return power;
}

static void model_run(uint64_t seed, bool tell)
{
	struct model *m = calloc(1, sizeof(*m));
	bool power = false;

	MUST(m);
	model_open(m, seed, tell);
	if (rng_chance(&m->d.rng, 200000)) {
		m->fulls = true;
		m->d.pages_max = 150 + rng_below(&m->d.rng, 150);
	}
	if (!m->fulls && rng_chance(&m->d.rng, 100000))
		m->d.sync_fails_per_million = 50000;
	for (unsigned life = 0; life < LIVES; life++) {
		if (life + 1 < LIVES && rng_chance(&m->d.rng, 300000))
			m->d.dies_at = 1 + rng_below(&m->d.rng, 300);
		if (life_open(m, seed + life * 1000003)) {
			life_check(m, power);
			power = power && (m->d.dead || m->fulls);
			life_run(m, rng_below(&m->d.rng, 4000));
			if (life + 1 == LIVES)
				life_last(m);
		}
		if (life + 1 < LIVES) {
			/* nobody has seen what the former power cut left */
			bool cut = life_ends(m);

			power = power || cut;
		} else {
			m->d.dead = false;
			life_close(m);
		}
	}
	model_close(m);
}

static void random_lives_against_the_model(void **state)
{
	(void)state;
	seeds_run(50, model_run);
}

/* One short life after another that ends at the first call of the disk, the second, and so on; the
 * next has to find what the model says. True = it got to its end. */
static bool life_until(uint64_t call, bool power)
{
	struct model *m = calloc(1, sizeof(*m));
	bool ended;

	MUST(m);
	model_open(m, 4711 + power, false);
	m->d.dies_at = call;
	if (life_open(m, 4711)) {
		life_check(m, false);
		life_run(m, 700);
	}
	ended = !m->d.dead;
	m->d.dead = true;
	life_close(m);
	if (power)
		disk_power_cut(&m->d);
	disk_starts(&m->d);
	MUST(life_open(m, 4712));
	life_check(m, power);
	life_run(m, 100);
	life_last(m);
	life_close(m);
	model_close(m);
	return ended;
}

static void a_kill_at_every_call_loses_nothing(void **state)
{
	uint64_t call = 1;

	(void)state;
	while (!life_until(call, false))
		call++;
	assert_true(call > 100);
}

static void a_power_cut_at_every_call_loses_nothing_that_was_flushed(void **state)
{
	uint64_t call = 1;

	(void)state;
	while (!life_until(call, true))
		call++;
	assert_true(call > 100);
}

static void seed_run_with(uint64_t seed, int bug)
{
	planted_now = (enum planted)bug;
	model_run(seed, false);
}

#define FINDS(name, what)                                                                          \
	static void finds_##name(void **state)                                                     \
	{                                                                                          \
		(void)state;                                                                       \
		seeds_find(300, seed_run_with, what);                                              \
	}

FINDS(syncs_that_make_nothing_safe, PLANTED_NO_SYNC)
FINDS(writes_that_go_out_before_they_are_safe_here, PLANTED_EARLY)
FINDS(content_that_is_not_compared, PLANTED_SAME_HASH)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_lives_against_the_model),
		cmocka_unit_test(a_kill_at_every_call_loses_nothing),
		cmocka_unit_test(a_power_cut_at_every_call_loses_nothing_that_was_flushed),
		cmocka_unit_test(finds_syncs_that_make_nothing_safe),
		cmocka_unit_test(finds_writes_that_go_out_before_they_are_safe_here),
		cmocka_unit_test(finds_content_that_is_not_compared),
	};

	if (argc > 1)
		setenv("REMORA_SEED", argv[1], 1);
	signal(SIGABRT, seed_tell);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
