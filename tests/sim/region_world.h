/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A world for tests of the region: a simulated loop, a near store with the pages of a program, and
 * a far store that answers late, out of order, with errors, or after it has lost its connection or
 * its memory.
 *
 * The resource consists of sectors. Each write gives its sectors a new version, and a sector's
 * bytes follow from its number and version, so that from whatever is read it can be told which
 * write it came from. Pages that the region dropped, or never filled, are never mistaken for data:
 * no version is all zeros, but for those written by ZERO.
 */
#ifndef TEST_REGION_WORLD_H
#define TEST_REGION_WORLD_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/sim.h"
#include "region/region_int.h"

#define SECTOR 512u
#define PER_PAGE (PAGE_BYTES / SECTOR)
#define FAR_OPS 2048u
#define US NS_PER_US
#define MS NS_PER_MS

/* Aborts, so that a forked test can tell a caught bug from a failed one. */
#define MUST(x)                                                                                    \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "# %s:%d: %s\n", __FILE__, __LINE__, #x);                  \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* Bugs to be planted, so that it is known that the checks find them. */
enum plant {
	PLANT_NONE,
	PLANT_OVERWRITE,      /* a pull overwrites what was written since it began */
	PLANT_EARLY,	      /* a push counts as done before it is */
	PLANT_SAME_INSTANCE,  /* nobody hears that the far side was restarted */
	PLANT_ZERO_ON_ERROR,  /* a failed read brings zeros */
	PLANT_DROP_UNWATCHED, /* what was written between a look and a drop is not reported */
	PLANT_LOST_FAULT,     /* a put wakes nobody */
};

struct world;

struct page {
	bool present, open, written, failed;
	bool claimed; /* a thread is about to make it present */
};

struct pnear {
	struct near near;
	struct world *w;
	uint8_t *bytes;
	struct page *page;
	uint64_t present, most; /* pages */
	uint32_t error_per_million; /* of put: no memory */
	uint64_t room; /* pages; 0 = no limit */
	uint64_t puts, wakes, fills;
};

struct fop {
	struct world *w;
	struct req *req;
	bool carried, queued; /* queued: an event of the simulation holds it */
	int err;
	uint64_t instance;
	uint8_t *copy;
};

struct far {
	struct store store;
	struct world *w;
	uint8_t *bytes, *durable;
	struct fop *op; /* the world's: events of the simulation may outlive the store */
	uint64_t pending, instance;
	bool down, hold;
	uint64_t delay_min_ns, delay_max_ns;
	uint32_t error_per_million, write_error_per_million;
	int error;
	uint64_t reads, writes, flushes, read_bytes;
	/* what came, for tests that look at the order */
	struct {
		enum req_op op;
		uint32_t flags;
		struct range range;
	} seen[4096];
	size_t seen_count;
};

struct world {
	struct rng rng;
	struct sim *sim;
	struct loop *loop;
	uint64_t size;
	uint32_t sectors, pages;
	struct pnear near;
	struct far *far;
	struct fop far_op[FAR_OPS];
	struct region *region;
	struct store *store;
	enum plant plant;
	bool trace, closed;
	/* of the program: a page became open or failed */
	void (*woken)(struct world *w, uint32_t page);
	/* a request reaches the far store */
	void (*far_asked)(struct world *w, const struct req *req);
};

static inline void trace(struct world *w, const char *fmt,
			 ...) __attribute__((format(printf, 2, 3)));
static inline void trace(struct world *w, const char *fmt, ...)
{
	va_list ap;

	if (!w->trace)
		return;
	va_start(ap, fmt);
	fprintf(stderr, "# %10.3f ms  ", (double)sim_now(w->sim) / 1e6);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
}

/* ---- sectors ---- */

static inline void sector_fill(uint8_t *at, uint32_t sector, uint32_t version)
{
	uint64_t key = ((uint64_t)sector + 1) << 32 | version, word;

	memcpy(at, &key, 8);
	for (unsigned i = 1; i < SECTOR / 8; i++) {
		word = (key + i) * 0x9e3779b97f4a7c15ULL | 1;
		memcpy(at + 8 * i, &word, 8);
	}
}

#define VERSION_ZEROS UINT32_MAX
#define VERSION_BAD (UINT32_MAX - 1)

/* Which write these bytes come from. */
static inline uint32_t sector_version(const uint8_t *at, uint32_t sector)
{
	static const uint8_t zeros[SECTOR];
	uint8_t expected[SECTOR];
	uint64_t key;

	memcpy(&key, at, 8);
	if (!key)
		return memcmp(at, zeros, SECTOR) ? VERSION_BAD : VERSION_ZEROS;
	if (key >> 32 != (uint64_t)sector + 1)
		return VERSION_BAD;
	sector_fill(expected, sector, (uint32_t)key);
	return memcmp(at, expected, SECTOR) ? VERSION_BAD : (uint32_t)key;
}

/* ---- near ---- */

static inline struct pnear *pnear_of(struct near *near)
{
	return CONTAINER_OF(near, struct pnear, near);
}

static inline void page_present(struct pnear *n, uint32_t p)
{
	n->page[p].present = true;
	n->present++;
	n->most = MAX(n->most, n->present);
}

static inline void page_wake(struct pnear *n, uint32_t p)
{
	n->wakes++;
	if (n->w->woken)
		n->w->woken(n->w, p);
}

/* As if the pull had written past the pages that were missing, over one that was written
 * meanwhile. */
static inline void plant_overwrite(struct pnear *n, uint32_t p)
{
	if (p >= n->w->pages || !n->page[p].present || n->w->plant != PLANT_OVERWRITE)
		return;
	if ((uint64_t)p * PAGE_BYTES >> n->w->region->map.shift !=
	    (uint64_t)(p - 1) * PAGE_BYTES >> n->w->region->map.shift)
		return;
	for (uint32_t s = p * PER_PAGE; s < MIN((p + 1) * PER_PAGE, n->w->sectors); s++)
		sector_fill(n->bytes + (size_t)s * SECTOR, s, 1);
}

static inline int pnear_put(struct near *near, uint64_t off, const void *src, size_t len)
{
	struct pnear *n = pnear_of(near);

	MUST(off % PAGE_BYTES == 0 && len % PAGE_BYTES == 0 && len);
	for (uint32_t p = (uint32_t)(off / PAGE_BYTES); p < (off + len) / PAGE_BYTES; p++) {
		uint8_t *to = n->bytes + (size_t)p * PAGE_BYTES;

		if (!n->page[p].present && rng_chance(&n->w->rng, n->error_per_million))
			return -ENOMEM;
		if (!n->page[p].present && n->room && n->present >= n->room)
			return -ENOSPC;
		if (!n->page[p].present) {
			if (src)
				memcpy(to, (const uint8_t *)src + ((size_t)p * PAGE_BYTES - off),
				       PAGE_BYTES);
			else
				memset(to, 0, PAGE_BYTES);
			page_present(n, p);
			n->page[p].open = near->mapped;
			n->page[p].failed = false;
		}
		if (n->w->plant != PLANT_LOST_FAULT || p % 7)
			page_wake(n, p);
	}
	n->puts++;
	plant_overwrite(n, (uint32_t)((off + len) / PAGE_BYTES));
	return 0;
}

/* As another thread does it: at a time of the simulation's own. */
static inline void pnear_claim(struct near *near, struct range r)
{
	struct pnear *n = pnear_of(near);

	for (uint32_t p = (uint32_t)(r.off / PAGE_BYTES); p < range_end(r) / PAGE_BYTES; p++) {
		MUST(!n->page[p].present && !n->page[p].claimed);
		n->page[p].claimed = true;
	}
}

static inline int pnear_fill(struct near *near, uint64_t off, const void *src, size_t len,
			     size_t *ret_done)
{
	struct pnear *n = pnear_of(near);

	n->fills++;
	for (*ret_done = 0; *ret_done < len; *ret_done += PAGE_BYTES) {
		uint32_t p = (uint32_t)((off + *ret_done) / PAGE_BYTES);
		int err;

		MUST(n->page[p].claimed && !n->page[p].present);
		err = pnear_put(near, off + *ret_done, (const uint8_t *)src + *ret_done,
				PAGE_BYTES);
		if (err)
			return err;
		n->page[p].claimed = false;
	}
	return 0;
}

static inline void pnear_unclaim(struct near *near, struct range r)
{
	struct pnear *n = pnear_of(near);

	for (uint32_t p = (uint32_t)(r.off / PAGE_BYTES); p < range_end(r) / PAGE_BYTES; p++) {
		MUST(n->page[p].claimed && !n->page[p].present);
		n->page[p].claimed = false;
	}
}

static inline int pnear_read(struct near *near, uint64_t off, void *buf, size_t len)
{
	struct pnear *n = pnear_of(near);

	for (uint64_t p = off / PAGE_BYTES; p <= (off + len - 1) / PAGE_BYTES; p++)
		MUST(n->page[p].present);
	memcpy(buf, n->bytes + off, len);
	return 0;
}

static inline int pnear_write(struct near *near, uint64_t off, const void *src, size_t len)
{
	struct pnear *n = pnear_of(near);
	uint64_t more = 0;

	for (uint64_t p = off / PAGE_BYTES; p <= (off + len - 1) / PAGE_BYTES; p++)
		more += !n->page[p].present;
	if (n->room && more && n->present + more > n->room)
		return -ENOSPC;
	for (uint64_t p = off / PAGE_BYTES; p <= (off + len - 1) / PAGE_BYTES; p++)
		if (!n->page[p].present) {
			MUST(!n->page[p].claimed);
			MUST(off <= p * PAGE_BYTES && off + len >= (p + 1) * PAGE_BYTES);
			page_present(n, (uint32_t)p);
			n->page[p].failed = false;
		}
	memcpy(n->bytes + off, src, len);
	return 0;
}

static inline int pnear_drop(struct near *near, struct range r)
{
	struct pnear *n = pnear_of(near);

	for (uint32_t p = (uint32_t)(r.off / PAGE_BYTES); p < range_end(r) / PAGE_BYTES; p++) {
		if (!n->page[p].present)
			continue;
		MUST(!n->page[p].open);
		MUST(!n->page[p].written); /* a write that nobody has collected */
		n->page[p].present = false;
		n->present--;
		memset(n->bytes + (size_t)p * PAGE_BYTES, 0, PAGE_BYTES);
	}
	return 0;
}

static inline int pnear_open(struct near *near, struct range r)
{
	struct pnear *n = pnear_of(near);

	for (uint32_t p = (uint32_t)(r.off / PAGE_BYTES); p < range_end(r) / PAGE_BYTES; p++) {
		MUST(n->page[p].present);
		n->page[p].open = true;
		page_wake(n, p);
	}
	return 0;
}

static inline int pnear_shut(struct near *near, struct range r)
{
	struct pnear *n = pnear_of(near);

	for (uint32_t p = (uint32_t)(r.off / PAGE_BYTES); p < range_end(r) / PAGE_BYTES; p++)
		n->page[p].open = false;
	return 0;
}

static inline int pnear_collect(struct near *near, struct range r,
				void (*found)(void *arg, struct range pages),
				void *arg)
{
	struct pnear *n = pnear_of(near);
	uint32_t end = (uint32_t)(range_end(r) / PAGE_BYTES);

	for (uint32_t p = (uint32_t)(r.off / PAGE_BYTES), q; p < end; p = q + 1) {
		for (q = p; q < end && n->page[q].present && n->page[q].written; q++)
			n->page[q].written = false;
		if (q > p &&
		    (n->w->plant != PLANT_DROP_UNWATCHED || rng_chance(&n->w->rng, 500000)))
			found(arg,
			      range_of((uint64_t)p * PAGE_BYTES, (uint64_t)(q - p) * PAGE_BYTES));
	}
	return 0;
}

static inline int pnear_fail(struct near *near, struct range r)
{
	struct pnear *n = pnear_of(near);

	for (uint32_t p = (uint32_t)(r.off / PAGE_BYTES); p < range_end(r) / PAGE_BYTES; p++)
		if (!n->page[p].present && !n->page[p].claimed) {
			n->page[p].failed = true;
			page_wake(n, p);
		}
	return 0;
}

static inline int pnear_heal(struct near *near, struct range r)
{
	struct pnear *n = pnear_of(near);

	for (uint32_t p = (uint32_t)(r.off / PAGE_BYTES); p < range_end(r) / PAGE_BYTES; p++)
		n->page[p].failed = false;
	return 0;
}

static inline void pnear_close(struct near *near)
{
	struct pnear *n = pnear_of(near);

	free(n->bytes);
	free(n->page);
	n->bytes = NULL;
	n->page = NULL;
}

static inline void near_make(struct world *w, bool mapped)
{
	static const struct near_ops ops = {
		.put = pnear_put, .read = pnear_read, .write = pnear_write, .drop = pnear_drop,
			.open = pnear_open,
		.shut = pnear_shut, .collect = pnear_collect, .fail = pnear_fail,
			.heal = pnear_heal,
		.claim = pnear_claim, .fill = pnear_fill, .unclaim = pnear_unclaim,
		.close = pnear_close,
	};

	w->near = (struct pnear){ .near = { .ops = &ops, .mapped = mapped, .writable = mapped },
				 .w = w };
	w->near.bytes = calloc(w->pages, PAGE_BYTES);
	w->near.page = calloc(w->pages, sizeof(struct page));
	MUST(w->near.bytes && w->near.page);
}

/* ---- far ---- */

static inline uint64_t far_delay(struct far *f)
{
	return sim_now(f->w->sim) + f->delay_min_ns +
	       rng_below(&f->w->rng, f->delay_max_ns - f->delay_min_ns + 1);
}

static inline void far_event_run(void *arg);

static inline void far_schedule(struct fop *op)
{
	struct far *f = op->w->far;

	MUST(!op->queued);
	op->queued = true;
	sim_at(f->w->sim, far_delay(f), far_event_run, op);
}

/* The request does what it does to the far side's memory, at this moment. */
static inline void far_carry_out(struct far *f, struct fop *op)
{
	struct req *req = op->req;
	struct range r = req->range;
	uint32_t chance = req->op == REQ_READ ? f->error_per_million : f->write_error_per_million;

	op->carried = true;
	op->instance = f->instance;
	op->err = rng_chance(&f->w->rng, chance) ? f->error : 0;
	if (op->err && rng_chance(&f->w->rng, 500000))
		return; /* else it was carried out, and nobody knows */
	switch (req->op) {
	case REQ_READ:
		free(op->copy);
		op->copy = malloc(r.len);
		MUST(op->copy);
		memcpy(op->copy, f->bytes + r.off, r.len);
		break;
	case REQ_WRITE:
		memcpy(f->bytes + r.off, req->data.base, r.len);
		break;
	case REQ_ZERO:
		memset(f->bytes + r.off, 0, r.len);
		break;
	case REQ_FLUSH:
		if (!op->err)
			memcpy(f->durable, f->bytes, f->w->size);
		break;
	default:
		break;
	}
}

static inline void far_reply(struct far *f, struct fop *op)
{
	struct req *req = op->req;
	int err = op->err;

	if (req->op == REQ_READ && !err) {
		memcpy(req->data.base, op->copy, req->range.len);
		f->read_bytes += req->range.len;
	}
	if (req->op == REQ_READ && err && f->w->plant == PLANT_ZERO_ON_ERROR) {
		memset(req->data.base, 0, req->range.len);
		err = 0;
	}
	free(op->copy);
	op->copy = NULL;
	op->req = NULL;
	f->pending--;
	req->ret_instance = f->w->plant == PLANT_SAME_INSTANCE ? 1 : op->instance;
	req->ret_why = err ? "the far side says no" : NULL;
	req_done(req, err);
}

static inline void far_event_run(void *arg)
{
	struct fop *op = arg;
	struct far *f = op->w->far;

	op->queued = false;
	if (!f || !op->req || f->down || f->hold)
		return; /* aborted; or carried on when it is back */
	/* A reply that was on its way when the far side restarted may arrive, or is lost and asked
	 * for again. */
	if (op->carried && op->instance != f->instance && rng_chance(&f->w->rng, 500000))
		op->carried = false;
	if (op->carried) {
		far_reply(f, op);
		return;
	}
	far_carry_out(f, op);
	far_schedule(op);
}

static inline void far_go_on(struct far *f)
{
	for (size_t i = 0; i < FAR_OPS; i++)
		if (f->op[i].req && !f->op[i].queued)
			far_schedule(&f->op[i]);
}

static inline void far_submit(struct store *store, struct req *req)
{
	struct far *f = CONTAINER_OF(store, struct far, store);
	struct fop *op = f->op;

	while (op->req || op->queued)
		MUST(++op < f->op + FAR_OPS);
	f->reads += req->op == REQ_READ;
	f->writes += req->op == REQ_WRITE || req->op == REQ_ZERO;
	f->flushes += req->op == REQ_FLUSH;
	if (f->seen_count < ARRAY_LEN(f->seen)) {
		f->seen[f->seen_count].op = req->op;
		f->seen[f->seen_count].flags = req->flags;
		f->seen[f->seen_count++].range = req->range;
	}
	trace(f->w, "far %s %llu+%llu flags %u", req_op_name(req->op),
	      (unsigned long long)req->range.off,
	      (unsigned long long)req->range.len, req->flags);
	if (f->w->far_asked)
		f->w->far_asked(f->w, req);
	*op = (struct fop){ .w = f->w, .req = req };
	f->pending++;
	if (f->w->plant == PLANT_EARLY && req->op == REQ_WRITE && rng_chance(&f->w->rng, 50000)) {
		far_carry_out(f, op);
		if (rng_chance(&f->w->rng, 500000)) /* undone: it had failed */
			memcpy(f->bytes + req->range.off, f->durable + req->range.off,
			       req->range.len);
		op->err = 0;
		op->instance = f->instance;
	}
	if (!f->down && !f->hold)
		far_schedule(op);
}

static inline void far_abort(struct store *store)
{
	struct far *f = CONTAINER_OF(store, struct far, store);

	for (size_t i = 0; i < FAR_OPS; i++)
		if (f->op[i].req) {
			f->op[i].err = -ESHUTDOWN;
			far_reply(f, &f->op[i]);
		}
}

static inline void far_shut(struct store *store)
{
	struct far *f = CONTAINER_OF(store, struct far, store);

	free(f->bytes);
	free(f->durable);
	f->bytes = f->durable = NULL;
	f->w->far = NULL;
	store_closed(store);
}

static inline void far_make(struct world *w)
{
	static const struct store_ops ops = {
		.name = "far", .submit = far_submit, .abort = far_abort, .close = far_shut
	};
	struct far *f = calloc(1, sizeof(*f));

	MUST(f);
	w->far = f;
	f->w = w;
	f->op = w->far_op;
	f->instance = 1;
	f->error = -EIO;
	f->delay_min_ns = f->delay_max_ns = 1 * MS;
	f->bytes = malloc(w->size);
	f->durable = malloc(w->size);
	MUST(f->bytes && f->durable);
	for (uint32_t s = 0; s < w->sectors; s++)
		sector_fill(f->bytes + (size_t)s * SECTOR, s, 1);
	memcpy(f->durable, f->bytes, w->size);
	f->store.info = (struct store_info){ .size = w->size, .align = 1, .len_max = 1 * MIB,
					    .chunk = 16 * KIB,
					     .flush = CAP_NATIVE, .instance = 1 };
	store_init(&f->store, &ops, w->loop, NULL);
}

static inline void far_lose(struct far *f)
{
	f->down = true;
	trace(f->w, "far side lost");
	store_emit(&f->store, STORE_LOST);
}

static inline void far_back(struct far *f)
{
	f->down = false;
	trace(f->w, "far side back");
	store_emit(&f->store, STORE_BACK);
	far_go_on(f);
}

/* Its process died and came back: what was not flushed is gone, in parts. */
static inline void far_restart(struct far *f)
{
	for (uint32_t s = 0; s < f->w->sectors; s++)
		if (rng_chance(&f->w->rng, 700000))
			memcpy(f->bytes + (size_t)s * SECTOR, f->durable + (size_t)s * SECTOR,
			       SECTOR);
	memcpy(f->durable, f->bytes, f->w->size);
	f->down = false;
	f->instance++;
	trace(f->w, "far side restarted");
	if (f->w->plant != PLANT_SAME_INSTANCE) {
		f->store.info.instance = f->instance;
		store_emit(&f->store, STORE_RESTARTED);
	} else {
		store_emit(&f->store, STORE_BACK);
	}
	far_go_on(f);
}

/* ---- the world ---- */

/* w is zeroed, but for what says how it shall be. */
static inline void world_open(struct world *w, uint64_t seed, uint64_t size, bool mapped)
{
	struct loop_options lo = { .engine = LOOP_SIM };
	struct err e;

	MUST(size % SECTOR == 0);
	w->size = size;
	w->sectors = (uint32_t)(size / SECTOR);
	w->pages = (uint32_t)((size + PAGE_BYTES - 1) / PAGE_BYTES);
	rng_init(&w->rng, seed);
	MUST(!sim_open(&w->sim, seed));
	lo.sim = w->sim;
	lo.env = sim_env(w->sim);
	MUST(!loop_open(&w->loop, &lo, &e));
	near_make(w, mapped);
	far_make(w);
}

static inline void world_region(struct world *w, const struct region_options *o)
{
	struct err e = { 0 };

	if (region_open(&w->region, w->loop, &w->far->store, &w->near.near, o, &e)) {
		fprintf(stderr, "# %s\n", e.text);
		abort();
	}
	w->store = region_store(w->region);
}

static inline void world_closed(void *arg)
{
	((struct world *)arg)->closed = true;
}

static inline void world_close(struct world *w)
{
	store_abort(w->store);
	store_close(w->store, world_closed, w);
	while (!w->closed)
		MUST(!sim_step(w->sim));
	loop_close(w->loop);
	sim_close(w->sim);
}

/* Map and near store agree, and every invariant holds. */
static inline void world_check(struct world *w)
{
	struct region *r = w->region;
	const struct map *m = &r->map;

	map_assert_all(m);
	for (uint32_t p = 0; p < w->pages; p++) {
		uint64_t c = map_chunk_of(m, (uint64_t)p * PAGE_BYTES);
		const struct page *page = &w->near.page[p];
		bool here = map_page_here(m, c, p % m->pages);

		if (map_pulling(m, c) && (pull_find(r, c)->unknown || apart_has(r, c)))
			continue;
		MUST(page->present == here);
		MUST(!page->open || map_byte(m, c) & CHUNK_REF);
	}
	if (r->opt.budget_bytes)
		MUST(w->near.present * PAGE_BYTES + r->fixed_bytes + map_memory(m) <=
		     r->opt.budget_bytes);
}

#endif
