/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The region against a model, in a simulated world: threads of a program that touch mapped pages,
 * requests, flushes, invalidations, explicit pulls and advice, over a far store that is slow,
 * fails, goes away and forgets. A failing seed is printed; REMORA_SEED=n (or an argument) runs it
 * alone with a trace, REMORA_SEEDS=n sets how many are run.
 *
 * What is checked: every read finds the last write (rules 2 and 7); after a FLUSH that returned 0
 * the far side's durable content has everything that was written before it was asked for (rule 4);
 * requests complete once, also at the close (rule 1); background requests do not overtake faults
 * (rule 3); memory stays within the budget (rule 8); when the faults of the world end, everything
 * that waits goes on, and a flush succeeds.
 */
#include <sys/wait.h>
#include <unistd.h>

#include "region_world.h"
#include "seed.h"

#define THREADS_MAX 6u
#define TASKS 12u
#define ASKED 4u
#define CHECK_EVERY 97u

struct thread {
	struct model *m;
	unsigned id;
	uint32_t page;
	bool write, waiting, busy, sweeping;
	uint64_t since_ns;
};

struct task {
	struct req req;
	struct model *m;
	bool busy;
	uint8_t *buf;
	uint32_t *snap;	   /* versions when it was asked for: of its sectors, or of all for FLUSH */
	uint32_t version;  /* WRITE, ZERO */
	unsigned done;
	struct extents extents;
	struct extent extent[8];
};

struct asked {
	struct region_pull pull; /* first */
	struct model *m;
	bool busy;
};

struct model {
	struct world w; /* first */
	uint32_t *version, *zeroed; /* per sector: of the last write; of the last write of zeros */
	uint8_t *locked;	    /* per page: a WRITE is in progress */
	uint32_t clock;
	struct thread thread[THREADS_MAX];
	struct task task[TASKS];
	struct task last; /* a flush when it has become calm */
	struct asked asked[ASKED];
	unsigned threads;
	bool mapped, failures, calm, strict, closing;
	uint64_t ops, reads, sigbus, flushes, flush_errors, errors;
	uint64_t fault_pages[THREADS_MAX];
};


static void thread_next(void *arg);
static void thread_try(void *arg);

static void later(struct model *m, uint64_t max_ns, void (*fn)(void *arg), void *arg)
{
	sim_at(m->w.sim, sim_now(m->w.sim) + 1 + rng_below(&m->w.rng, max_ns), fn, arg);
}

static uint32_t sectors_of(const struct model *m, uint32_t page)
{
	return MIN(m->w.sectors - page * PER_PAGE, PER_PAGE);
}

/* ---- what may be read ---- */

/* A sector was read that had version `from` when the read was asked for. */
static void check_sector(struct model *m, uint32_t s, const uint8_t *at, uint32_t from)
{
	uint32_t v = sector_version(at, s);

	if (v == VERSION_ZEROS)
		v = m->zeroed[s] ? m->zeroed[s] : VERSION_BAD;
	if (v >= from && v <= m->clock)
		return;
	fprintf(stderr, "# sector %u: version %d read, %u expected\n", s, (int)v, from);
	MUST(!"old or foreign data was read");
}

/* ---- the program ---- */

static void page_read(struct model *m, uint32_t p)
{
	for (uint32_t i = 0; i < sectors_of(m, p); i++) {
		uint32_t s = p * PER_PAGE + i;

		check_sector(m, s, m->w.near.bytes + (size_t)s * SECTOR, m->version[s]);
	}
	m->reads++;
}

static void page_write(struct model *m, uint32_t p)
{
	uint32_t version = ++m->clock, count = sectors_of(m, p);
	uint32_t first = (uint32_t)rng_below(&m->w.rng, count);
	uint32_t end = first + 1 + (uint32_t)rng_below(&m->w.rng, count - first);

	for (uint32_t s = p * PER_PAGE + first; s < p * PER_PAGE + end; s++) {
		sector_fill(m->w.near.bytes + (size_t)s * SECTOR, s, version);
		m->version[s] = version;
	}
	m->w.near.page[p].written = true;
	trace(&m->w, "program writes %llu+%u version %u",
	      (unsigned long long)(p * PER_PAGE + first) * SECTOR,
	      (end - first) * SECTOR, version);
}

static void thread_done(struct thread *t)
{
	struct model *m = t->m;

	t->busy = t->waiting = false;
	m->ops++;
	if (!m->calm)
		later(m, 3 * MS, thread_next, t);
}

/* The fault reaches the fault thread some time after it happened. */
static void thread_fault(void *arg)
{
	struct thread *t = arg;
	struct model *m = t->m;

	if (m->closing || !t->busy || !t->waiting)
		return;
	if (region_fault(m->w.region, (uint64_t)t->page * PAGE_BYTES + 17,
			 t->write) == REGION_OPENED)
		MUST(m->w.near.page[t->page].open);
	else
		t->since_ns = t->since_ns ? t->since_ns : sim_now(m->w.sim);
}

static void thread_try(void *arg)
{
	struct thread *t = arg;
	struct model *m = t->m;
	struct page *page = &m->w.near.page[t->page];

	if (m->closing || !t->busy)
		return;
	t->waiting = false;
	if (page->open) {
		t->since_ns = 0;
		if (!m->locked[t->page] && t->write)
			page_write(m, t->page);
		else if (!m->locked[t->page])
			page_read(m, t->page);
		thread_done(t);
		return;
	}
	if (page->failed) {
		MUST(m->failures);
		trace(&m->w, "thread %u: SIGBUS at page %u", t->id, t->page);
		t->since_ns = 0;
		m->sigbus++;
		thread_done(t);
		return;
	}
	t->waiting = true;
	later(m, 30 * US, thread_fault, t);
}

static void program_woken(struct world *w, uint32_t page)
{
	struct model *m = (struct model *)w;

	for (unsigned i = 0; i < m->threads; i++) {
		struct thread *t = &m->thread[i];

		if (t->busy && t->waiting && t->page == page) {
			t->waiting = false;
			t->since_ns = 0;
			later(m, 20 * US, thread_try, t);
		}
	}
}

static void thread_next(void *arg)
{
	struct thread *t = arg;
	struct model *m = t->m;
	struct rng *r = &m->w.rng;

	if (m->closing || m->calm)
		return;
	if (rng_chance(r, 100000))
		t->sweeping = !t->sweeping;
	t->page = t->sweeping ? (t->page + 1) % m->w.pages : (uint32_t)rng_below(r, m->w.pages);
	t->write = rng_chance(r, 400000);
	t->busy = true;
	thread_try(t);
}

/* Rule 3: no background read may leave while a fault that was reported before still waits to be
 * asked for. */
static void far_asked(struct world *w, const struct req *req)
{
	struct model *m = (struct model *)w;

	if (req->op != REQ_READ || !(req->flags & REQ_BACKGROUND) || !m->strict)
		return;
	for (unsigned i = 0; i < m->threads; i++) {
		const struct thread *t = &m->thread[i];

		if (t->busy && t->waiting && t->since_ns && t->since_ns < sim_now(w->sim))
			MUST(!map_pullable(&w->region->map, map_chunk_of(&w->region->map,
									(uint64_t)t->page *
										PAGE_BYTES)));
	}
}

/* ---- requests ---- */

static void task_submit(struct task *t);

static void task_retry(void *arg)
{
	struct task *t = arg;

	if (!t->m->closing)
		task_submit(t);
	else
		t->busy = false;
}

static void task_lock(struct task *t, int by)
{
	struct range r = t->req.range;

	for (uint64_t p = r.off / PAGE_BYTES; p <= (range_end(r) - 1) / PAGE_BYTES; p++)
		t->m->locked[p] = (uint8_t)(t->m->locked[p] + by);
}

static void task_written(struct task *t)
{
	struct model *m = t->m;

	for (uint64_t s = t->req.range.off / SECTOR; s < range_end(t->req.range) / SECTOR; s++) {
		m->version[s] = t->version;
		if (t->req.op == REQ_ZERO)
			m->zeroed[s] = t->version;
	}
	task_lock(t, -1);
}

static void task_flushed(struct task *t)
{
	struct model *m = t->m;

	m->flushes++;
	for (uint32_t s = 0; s < m->w.sectors; s++)
		check_sector(m, s, m->w.far->durable + (size_t)s * SECTOR, t->snap[s]);
}

static void task_done(struct req *req, int err)
{
	struct task *t = CONTAINER_OF(req, struct task, req);
	struct model *m = t->m;

	MUST(t->busy && ++t->done == 1);
	trace(&m->w, "request %s %llu+%llu: %d", req_op_name(req->op),
	      (unsigned long long)req->range.off,
	      (unsigned long long)req->range.len, err);
	MUST(!err || m->failures || m->closing || t == &m->last);
	m->ops++;
	if (err) {
		m->errors++;
		m->flush_errors += req->op == REQ_FLUSH;
		if (req_op_changes(req->op)) {
			/* half done: the model knows again when it is done */
			later(m, 10 * MS, task_retry, t);
			return;
		}
	} else if (req->op == REQ_READ) {
		for (uint64_t i = 0; i < req->range.len / SECTOR; i++)
			check_sector(m, (uint32_t)(req->range.off / SECTOR + i),
				     t->buf + i * SECTOR, t->snap[i]);
		m->reads++;
	} else if (req_op_changes(req->op)) {
		task_written(t);
	} else if (req->op == REQ_FLUSH) {
		task_flushed(t);
	}
	t->busy = false;
}

static void task_submit(struct task *t)
{
	struct model *m = t->m;

	t->done = 0;
	t->req.done = task_done;
	req_submit(m->w.store, &t->req);
}

static struct range random_range(struct model *m)
{
	uint32_t sectors = rng_chance(&m->w.rng, 300000) ? 1 + (uint32_t)rng_below(&m->w.rng, 200) :
							   1 + (uint32_t)rng_below(&m->w.rng, 20);
	uint32_t first = (uint32_t)rng_below(&m->w.rng, m->w.sectors);

	if (rng_chance(&m->w.rng, 400000)) { /* whole pages */
		first -= first % PER_PAGE;
		sectors = (sectors + PER_PAGE - 1) / PER_PAGE * PER_PAGE;
	}
	sectors = MIN(sectors, m->w.sectors - first);
	return range_of((uint64_t)first * SECTOR, (uint64_t)sectors * SECTOR);
}

static bool range_locked(const struct model *m, struct range r)
{
	for (uint64_t p = r.off / PAGE_BYTES; p <= (range_end(r) - 1) / PAGE_BYTES; p++)
		if (m->locked[p])
			return true;
	return false;
}

static void task_fill(struct model *m, struct task *t)
{
	struct range r = t->req.range;

	t->version = ++m->clock;
	t->buf = realloc(t->buf, r.len);
	for (uint64_t i = 0; i < r.len / SECTOR; i++)
		sector_fill(t->buf + i * SECTOR, (uint32_t)(r.off / SECTOR + i), t->version);
	task_lock(t, 1);
	if (t->req.op == REQ_ZERO) /* what is read meanwhile may be these zeros already */
		for (uint64_t s = r.off / SECTOR; s < range_end(r) / SECTOR; s++)
			m->zeroed[s] = t->version;
}

/* With the policy "readonly" nothing is pushed after a loss until somebody flushes, so writers that
 * wait for room may need it. */
static void flush_last(struct model *m)
{
	struct task *t = &m->last;

	t->m = m;
	t->busy = true;
	t->req.op = REQ_FLUSH;
	t->snap = realloc(t->snap, m->w.sectors * sizeof(*t->snap));
	memcpy(t->snap, m->version, m->w.sectors * sizeof(*t->snap));
	task_submit(t);
}

static void task_begin(struct model *m, enum req_op op)
{
	struct task *t = m->task;
	struct range r = random_range(m);

	while (t->busy)
		if (++t == m->task + TASKS)
			return;
	if (op == REQ_FLUSH)
		r = range_of(0, 0);
	else if (range_locked(m, r))
		return;
	t->m = m;
	t->busy = true;
	t->req.op = op;
	t->req.flags = rng_chance(&m->w.rng, 200000) && op == REQ_READ ? REQ_BACKGROUND : 0;
	if (op == REQ_WRITE && rng_chance(&m->w.rng, 30000))
		t->req.flags = REQ_FUA;
	t->req.range = r;
	t->req.extents = NULL;
	t->snap = realloc(t->snap, m->w.sectors * sizeof(*t->snap));
	memcpy(t->snap, m->version + (op == REQ_FLUSH ? 0 : r.off / SECTOR),
	       (op == REQ_FLUSH ? m->w.sectors : r.len / SECTOR) * sizeof(*t->snap));
	if (op == REQ_READ)
		t->buf = realloc(t->buf, r.len);
	else if (req_op_changes(op))
		task_fill(m, t);
	if (op == REQ_EXTENTS) {
		t->extents = (struct extents){ .at = t->extent, .max = ARRAY_LEN(t->extent) };
		t->req.extents = &t->extents;
	}
	t->req.data = (struct iobuf){ t->buf, r.len };
	trace(&m->w, "request %s %llu+%llu", req_op_name(op), (unsigned long long)r.off,
	      (unsigned long long)r.len);
	task_submit(t);
}

/* ---- what else a user does ---- */

static void asked_done(struct region_pull *pull, int err)
{
	struct asked *a = (struct asked *)pull;

	MUST(a->busy && (!err || a->m->failures || a->m->closing));
	a->busy = false;
}

static void ask(struct model *m)
{
	struct asked *a = &m->asked[rng_below(&m->w.rng, ASKED)];

	if (a->busy) {
		if (rng_chance(&m->w.rng, 200000)) {
			region_pull_cancel(m->w.region, &a->pull);
			a->busy = false;
		}
		return;
	}
	a->m = m;
	a->busy = true;
	a->pull = (struct region_pull){ .range = random_range(m),
				       .priority = (int)rng_below(&m->w.rng, 3) - 1,
					.done = asked_done };
	region_pull(m->w.region, &a->pull);
}

static void invalidate(struct model *m, struct range range)
{
	int err = region_invalidate(m->w.region, range);

	MUST(!err || err == -EAGAIN);
}

/* Somebody else changes the far side where nothing of ours is unsaved, and says so. */
static void far_changes(struct model *m)
{
	struct world *w = &m->w;
	const struct map *map = &w->region->map;
	uint64_t c = rng_below(&w->rng, map->chunks);
	struct range pages = map_page_range(map, c, 1), bytes = map_range(map, c, 1);
	uint32_t version;

	if (range_locked(m, bytes) || map_dirty(map, c) || map_flying(map, c) ||
	    map_byte(map, c) & CHUNK_UNFLUSHED || apart_has(w->region, c))
		return;
	for (uint64_t p = pages.off / PAGE_BYTES; p < range_end(pages) / PAGE_BYTES; p++)
		if (w->near.page[p].written)
			return;
	for (unsigned i = 0; i < TASKS; i++) /* FLUSH in progress compares all of the far side */
		if (m->task[i].busy &&
		    (m->task[i].req.op == REQ_WRITE || m->task[i].req.op == REQ_ZERO))
			return;
	version = ++m->clock;
	for (uint64_t s = bytes.off / SECTOR; s < range_end(bytes) / SECTOR; s++) {
		sector_fill(w->far->bytes + s * SECTOR, (uint32_t)s, version);
		memcpy(w->far->durable + s * SECTOR, w->far->bytes + s * SECTOR, SECTOR);
		m->version[s] = version;
	}
	trace(w, "the far side changes chunk %llu", (unsigned long long)c);
	MUST(!region_invalidate(w->region, bytes));
}

static void advise(struct model *m)
{
	static const enum region_advice advice[] = { REGION_NORMAL, REGION_SEQUENTIAL,
						    REGION_RANDOM,
						     REGION_DONTNEED };

	region_advise(m->w.region, random_range(m),
		      advice[rng_below(&m->w.rng, ARRAY_LEN(advice))]);
}

static void user_acts(struct model *m)
{
	static const enum req_op ops[] = { REQ_READ, REQ_READ, REQ_READ, REQ_WRITE, REQ_WRITE,
					  REQ_WRITE, REQ_ZERO,
					   REQ_FLUSH, REQ_EXTENTS, REQ_PREFETCH };
	uint64_t dice = rng_below(&m->w.rng, 100);

	if (dice < 80)
		task_begin(m, ops[rng_below(&m->w.rng, ARRAY_LEN(ops))]);
	else if (dice < 85)
		ask(m);
	else if (dice < 90)
		invalidate(m, random_range(m));
	else if (dice < 95)
		far_changes(m);
	else if (dice < 98)
		advise(m);
	else
		MUST(!region_collect(m->w.region));
}

/* ---- what the world does ---- */

static void far_returns(void *arg)
{
	struct model *m = arg;

	if (!m->w.far || !m->w.far->down)
		return;
	if (rng_chance(&m->w.rng, 500000))
		far_restart(m->w.far);
	else
		far_back(m->w.far);
}

static void world_acts(struct model *m)
{
	struct far *f = m->w.far;

	if (f->down)
		return;
	if (rng_chance(&m->w.rng, 300000)) {
		far_restart(f);
		return;
	}
	far_lose(f);
	later(m, rng_chance(&m->w.rng, 200000) ? 3 * NS_PER_S : 200 * MS, far_returns, m);
}

static void model_step(struct model *m, uint64_t i)
{
	int err = sim_step(m->w.sim);

	MUST(!err);
	if (i % CHECK_EVERY == 0 && !m->closing)
		world_check(&m->w);
}

/* ---- one seed ---- */

static void model_options(struct model *m, struct region_options *o)
{
	struct rng *r = &m->w.rng;
	static const uint32_t chunks[] = { 4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB };

	*o = (struct region_options){ .chunk = chunks[rng_below(r, ARRAY_LEN(chunks))],
				      .install_apart = rng_chance(r, 500000) };
	o->pull_all = rng_chance(r, 400000);
	o->push_off = rng_chance(r, 150000);
	o->push_interval_ns = (1 + rng_below(r, 100)) * MS;
	o->push_age_ns = rng_chance(r, 500000) ? (1 + rng_below(r, 200)) * MS : 0;
	o->deadline_ns = rng_chance(r, 300000) ? 1 * NS_PER_S : 60 * NS_PER_S;
	o->readahead_bytes_max = rng_chance(r, 200000) ? 1 : 256 * KIB;
	o->inflight_bytes_max = (1 + rng_below(r, 16)) * 64 * KIB;
	if (rng_chance(r, 150000))
		o->on_loss = 1 + (enum region_loss)rng_below(r, 2);
	if (rng_chance(r, 500000))
		o->budget_bytes = 32ULL * o->chunk + 900 * KIB + rng_below(r, m->w.size);
}

static void model_open(struct model *m, uint64_t seed)
{
	struct region_options o;
	struct rng r;

	rng_init(&r, seed ^ 0x5eed);
	m->mapped = rng_chance(&r, 700000);
	world_open(&m->w, seed, (uint64_t)(100 + rng_below(&r, 3000)) * SECTOR, m->mapped);
	m->version = malloc(m->w.sectors * sizeof(*m->version));
	m->zeroed = calloc(m->w.sectors, sizeof(*m->zeroed));
	m->locked = calloc(m->w.pages, 1);
	for (uint32_t s = 0; s < m->w.sectors; s++)
		m->version[s] = 1;
	m->clock = 1;
	model_options(m, &o);
	m->w.far->delay_max_ns = rng_chance(&r, 300000) ? 20 * US : 30 * MS;
	m->w.far->delay_min_ns = rng_below(&r, m->w.far->delay_max_ns + 1);
	if (rng_chance(&r, 300000))
		m->w.far->store.info.zero = CAP_NATIVE;
	if (rng_chance(&r, 400000)) {
		m->failures = true;
		m->w.far->error_per_million = (uint32_t)rng_below(&r, 400000);
		m->w.far->write_error_per_million = (uint32_t)rng_below(&r, 300000);
		m->w.far->error = rng_chance(&r, 500000) ? -EIO : -ENOTCONN;
	}
	if (rng_chance(&r, 150000))
		m->w.near.error_per_million = 20000;
	if (!m->mapped && rng_chance(&r, 300000)) /* a disk that is too small */
		m->w.near.room = (16 + rng_below(&r, 64)) * o.chunk / PAGE_BYTES;
	m->failures |= m->w.near.room > 0;
	m->failures |= o.on_loss == REGION_LOSS_ERROR || o.deadline_ns < 5 * NS_PER_S ||
		m->w.near.error_per_million;
	m->strict = !m->failures && !o.budget_bytes;
	m->w.woken = program_woken;
	m->w.far_asked = far_asked;
	world_region(&m->w, &o);
	m->threads = m->mapped ? 1 + (unsigned)rng_below(&r, THREADS_MAX) : 0;
	for (unsigned i = 0; i < m->threads; i++) {
		m->thread[i] = (struct thread){ .m = m, .id = i };
		later(m, 1 * MS, thread_next, &m->thread[i]);
	}
	trace(&m->w, "size %llu chunk %u budget %llu mapped %d failures %d",
	      (unsigned long long)m->w.size, o.chunk,
	      (unsigned long long)o.budget_bytes, m->mapped, m->failures);
}

static bool model_idle(const struct model *m)
{
	if (m->last.busy)
		return false;
	for (unsigned i = 0; i < TASKS; i++)
		if (m->task[i].busy)
			return false;
	for (unsigned i = 0; i < m->threads; i++)
		if (m->thread[i].busy)
			return false;
	for (unsigned i = 0; i < ASKED; i++)
		if (m->asked[i].busy)
			return false;
	return true;
}

/* No more faults: everything that waits goes on, and what was written is made safe. */
static void model_calm(struct model *m)
{
	uint64_t until = sim_now(m->w.sim) + 600 * NS_PER_S;
	int err;

	m->calm = true;
	m->w.far->error_per_million = m->w.far->write_error_per_million = 0;
	m->w.near.error_per_million = 0;
	if (m->w.far->down)
		far_back(m->w.far);
	flush_last(m);
	for (uint64_t i = 1; !model_idle(m); i++) {
		model_step(m, i);
		MUST(sim_now(m->w.sim) < until); /* liveness */
	}
	m->failures = true; /* what had failed before may be told by the first flush */
	for (unsigned i = 0; i < 2; i++) {
		m->flush_errors = 0;
		task_begin(m, REQ_FLUSH);
		for (uint64_t k = 1; !model_idle(m); k++)
			model_step(m, k);
	}
	MUST(!m->flush_errors);
	m->failures = false;
	for (uint32_t s = 0; s < m->w.sectors; s++)
		check_sector(m, s, m->w.far->durable + (size_t)s * SECTOR, m->version[s]);
	for (uint32_t s = 0; s < m->w.sectors; s++) {
		uint8_t buf[SECTOR];

		err = store_read(m->w.store, (uint64_t)s * SECTOR, buf, SECTOR);
		MUST(!err);
		check_sector(m, s, buf, m->version[s]);
	}
	for (uint32_t p = 0; p < m->w.pages; p++)
		MUST(!m->w.near.page[p].failed);
	world_check(&m->w);
}

static void model_run(uint64_t seed, enum plant plant, bool tell)
{
	struct model *m = calloc(1, sizeof(*m));
	uint64_t steps;

	seed_now = seed;
	m->w.plant = plant;
	m->w.trace = tell;
	model_open(m, seed);
	steps = 500 + rng_below(&m->w.rng, 4000);
	for (uint64_t i = 1; i < steps; i++) {
		if (rng_chance(&m->w.rng, 100000))
			user_acts(m);
		if (rng_chance(&m->w.rng, 1500))
			world_acts(m);
		if (sim_step(m->w.sim) == -EDEADLK)
			user_acts(m);
		if (i % CHECK_EVERY == 0)
			world_check(&m->w);
	}
	if (rng_chance(&m->w.rng, 800000))
		model_calm(m);
	m->closing = true;
	world_close(&m->w);
	for (unsigned i = 0; i < TASKS; i++) {
		MUST(!m->task[i].busy || m->task[i].done);
		free(m->task[i].buf);
		free(m->task[i].snap);
	}
	free(m->last.snap);
	for (unsigned i = 0; i < ASKED; i++)
		MUST(!m->asked[i].busy);
	free(m->version);
	free(m->zeroed);
	free(m->locked);
	free(m);
}

static void seed_run(uint64_t seed, bool tells)
{
	model_run(seed, PLANT_NONE, tells);
}

static void random_use_against_the_model(void **state)
{
	(void)state;
	seeds_run(50, seed_run);
}

static void seed_run_with(uint64_t seed, int bug)
{
	model_run(seed, (enum plant)bug, false);
}

#define FINDS(name, plant)                                                                         \
	static void finds_##name(void **state)                                                     \
	{                                                                                          \
		(void)state;                                                                       \
		seeds_find(300, seed_run_with, plant);                                             \
	}

FINDS(a_pull_that_overwrites_newer_data, PLANT_OVERWRITE)
FINDS(a_push_that_counts_before_it_is_done, PLANT_EARLY)
FINDS(a_restart_that_nobody_hears_of, PLANT_SAME_INSTANCE)
FINDS(zeros_instead_of_an_error, PLANT_ZERO_ON_ERROR)
FINDS(a_drop_of_what_was_just_written, PLANT_DROP_UNWATCHED)
FINDS(a_fault_that_nobody_wakes, PLANT_LOST_FAULT)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_use_against_the_model),
		cmocka_unit_test(finds_a_pull_that_overwrites_newer_data),
		cmocka_unit_test(finds_a_push_that_counts_before_it_is_done),
		cmocka_unit_test(finds_a_restart_that_nobody_hears_of),
		cmocka_unit_test(finds_zeros_instead_of_an_error),
		cmocka_unit_test(finds_a_drop_of_what_was_just_written),
		cmocka_unit_test(finds_a_fault_that_nobody_wakes),
	};

	if (argc > 1)
		setenv("REMORA_SEED", argv[1], 1);
	signal(SIGABRT, seed_tell);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
