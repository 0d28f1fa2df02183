/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The region: the store that joins a near store (fast, local) and a far store (the resource) with a
 * chunk map. Front ends use it as a store (region_store), or let a program touch the near store
 * directly and report its faults (region_fault).
 *
 * Threads: everything runs on the loop's thread, but for region_fault(), which a fault thread
 * calls. The lock guards the map's bytes and the opening of near pages against it; nothing else,
 * and never across I/O.
 */
#ifndef REMORA_REGION_REGION_H
#define REMORA_REGION_REGION_H

#include "base/hist.h"
#include "region/near.h"
#include "store/store.h"

struct region;

enum region_loss { REGION_LOSS_WAIT, REGION_LOSS_ERROR, REGION_LOSS_READONLY };

struct region_hooks { /* loop thread; any may be NULL */
	void (*chunk_local)(void *arg, struct range r);
	/* at most every 100 ms, and at the end */
	void (*progress)(void *arg, uint64_t local_bytes, uint64_t size);
	/* of the background pull; asked once per chunk when it starts */
	int (*priority)(void *arg, struct range r);
	void *arg;
};

struct region_options {
	uint32_t chunk;		     /* bytes, power of two; 0 = the far store's */
	/* resident data, transfer buffers and map together; 0 = no limit */
	uint64_t budget_bytes;
	/* of pulls and of pushes together; 0 = 32 MiB, less when the budget is small */
	uint64_t inflight_bytes_max;
	uint32_t readahead_bytes_max; /* 0 = 8 MiB, 1 = none */
	bool read_only;
	bool discard;		     /* writes stay here for ever (private copy) */
	bool pull_all;		     /* background pull of everything */
	/* push only when flushing, or when the budget is full of dirty data */
	bool install_apart; /* a thread of the pool installs bulk while the loop goes on */
	bool push_off;
	/* how often writes of a mapped program are collected; 0 = 1 s */
	uint64_t push_interval_ns;
	/* a dirty chunk is pushed at the latest after this; 0 = the interval */
	uint64_t push_age_ns;
	/* how long a request or fault waits for a lost far side; 0 = 60 s, NEVER_NS */
	uint64_t deadline_ns;
	enum region_loss on_loss;
	struct region_hooks hooks;
};

/* What a region uses when its options do not say. */
uint32_t region_chunk_default(const struct store_info *info);

/* Takes ownership of `far` and `near` on success. Pull starts at once (pull_all), before any front
 * end is there. Set-up code. */
MUST_USE int region_open(struct region **ret, struct loop *loop, struct store *far,
			 struct near *near,
			 const struct region_options *options, struct err *e);

/*
 * The region as a store: READ WRITE FLUSH ZERO TRIM EXTENTS PREFETCH, any alignment. FLUSH
 * collects, pushes and flushes the far store, with the instance rule. Closing this store closes the
 * region: it does not flush by itself.
 */
struct store *region_store(struct region *region);

/* ---- for a front end whose program maps the near store ---- */

enum region_verdict {
	REGION_OPENED, /* the page was present; it is open now */
	REGION_WAITS,  /* put() or fail() will wake whoever waits */
};

/* A page fault at byte `off`. Fault thread. Never blocks on I/O; no allocation. */
enum region_verdict region_fault(struct region *region, uint64_t off, bool write);

/* ---- loop thread ---- */

/* Explicit ranges with a priority (0 = that of the background pull). When done is not NULL it is
 * called once, when all is local or has failed; `link` and the rest of the struct are the region's
 * until then. */
struct region_pull {
	struct link link;
	struct range range;
	int priority;
	uint64_t cursor, behind; /* chunks: asked for up to here, settled up to here */
	uint64_t end;
	uint64_t since_ns, retry_ns; /* of failures in a row */
	unsigned tries;
	int err;
	void (*done)(struct region_pull *pull, int err);
};
void region_pull(struct region *region, struct region_pull *pull);
void region_pull_cancel(struct region *region, struct region_pull *pull);

/* Local clean data of the range is dropped; pulls under way there are fetched again; unflushed data
 * is kept. -EAGAIN: a thread is just installing some of it, nothing was done; to be repeated when
 * the loop has gone on. */
MUST_USE int region_invalidate(struct region *region, struct range r);

enum region_advice { REGION_NORMAL, REGION_SEQUENTIAL, REGION_RANDOM, REGION_DONTNEED };
void region_advise(struct region *region, struct range r, enum region_advice advice);

/* Looks for writes of the mapped program now. */
MUST_USE int region_collect(struct region *region);

struct region_status {
	uint64_t size, chunk;
	uint64_t local_bytes, dirty_bytes, unflushed_bytes, pulling_bytes, pushing_bytes;
	uint64_t budget_bytes, inflight_bytes_max;
	uint64_t pulled_bytes, pushed_bytes, evicted_bytes, faults_near, faults_far;
	/* what a power cut here and there would take now, as map_unsafe_bytes() tells it; what a
	 * mapped program has written since the last look for writes is not in it */
	uint64_t unsafe_bytes;
	/* of a near store on a disk: clean, found to have changed, pulled again; its journal */
	uint64_t near_damaged_bytes, near_extra_bytes;
	/* reads and writes through region_store() that were answered at once; that had to wait */
	uint64_t hits, misses;
	uint64_t trip_ns; /* shortest round trip to the far store; 0 = not known yet */
	uint64_t flushes, pull_errors, push_errors;
	uint64_t collect_ns; /* how long the last look for writes that found some took */
	struct hist fault_latency; /* of faults that had to wait for the far side */
	int last_err;
	uint64_t last_err_ns; /* when, on the loop's clock */
	char last_why[128];
	bool far_lost;
};
void region_status(struct region *region, struct region_status *ret);

/* One letter per chunk: '.' absent, '~' partial, '<' pulling, '#' clean, '*' dirty, '>' pushing,
 * '+' pushed and not yet flushed; `first` and `count` in chunks. For status displays and tests. */
void region_map_draw(struct region *region, uint64_t first, uint64_t count, char *buf);

#endif
