/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the region share. region.c owns the handle and the fault entry, request.c the
 * requests, pull.c and readahead.c what comes in, dirty.c and push.c what goes out, policy.c memory
 * and patience, slot.c buffers and the window of bytes under way.
 */
#ifndef REMORA_REGION_INT_H
#define REMORA_REGION_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "io/pool.h"
#include "region/map.h"
#include "region/region.h"

#define NO_CHUNK UINT64_MAX

/* ---- the window of bytes under way (slot.c) ---- */

/*
 * As in BBR (Cardwell et al., 2016): what the path delivers per second at most, times its shortest
 * round trip, is what it holds; twice that keeps it full, and more would only queue in front of a
 * fault.
 */
struct flow {
	uint64_t window_max;
	uint64_t inflight, delivered, delivered_ns;
	uint64_t trip_ns, trip_at_ns; /* shortest, and when it was seen */
	uint64_t probe_ns;	      /* looking for a fresh shortest trip since then; 0 = no */
	double rate, rate_before;     /* bytes per ns: best of this period and of the one before */
	uint64_t rate_at_ns;
};

struct flow_mark {
	uint64_t start_ns, delivered, delivered_ns;
	size_t len;
};

uint64_t flow_window(const struct flow *f);
void flow_sent(struct flow *f, struct flow_mark *mark, size_t len, uint64_t now);
void flow_done(struct flow *f, const struct flow_mark *mark, bool ok, uint64_t now);

/* ---- transfers ---- */

enum slot_use { USE_FAULT, USE_DEMAND, USE_BULK, USE_PUSH };

enum pull_why { PULL_FAULT, PULL_REQUEST, PULL_ASKED, PULL_AHEAD, PULL_BACKGROUND };

/* One transfer and its buffer. Pull: chunks; push: pages of the resource. */
struct slot {
	struct req req;
	struct region *region;
	struct link link; /* idle list, pulls, pushes, apart, or stuck */
	uint8_t *buf;
	size_t room;
	struct flow_mark flow;
	uint64_t first, count;
	/* pull */
	enum pull_why why;
	bool stale;   /* what comes is older than an invalidate() */
	bool unknown; /* stuck, and the map could not be told what has been put */
	uint64_t fault_page, mark;
	struct list faults;
	uint64_t retry_ns; /* stuck: the near store had no memory for it */
	unsigned tries;
	size_t filled; /* apart: what the thread has done, and with which result */
	int fill_err;
	bool large;
};

struct slots {
	struct slot *all;
	uint8_t *memory;
	size_t memory_len;
	uint32_t large, small, large_idle, small_idle; /* counts */
	size_t large_len;
	/* last in, first out: a buffer that was just used is in the cache */
	struct list idle_large, idle_small;
	uint32_t pushing;
	uint32_t keep_fault, keep_push;
};

MUST_USE int slots_init(struct region *r, struct slots *s, uint32_t large, size_t large_len,
			uint32_t small);
void slots_done(struct slots *s);
/* NULL = none that this use may have. */
struct slot *slot_get(struct slots *s, size_t len, enum slot_use use);
void slot_put(struct slots *s, struct slot *slot, enum slot_use use);
bool slot_available(const struct slots *s, size_t len, enum slot_use use);

/* ---- installing apart (apart.c) ---- */

struct apart {
	struct list slots; /* given to the thread and not settled; loop thread */
	unsigned count;
	struct work work; /* the thread's life */
	struct post post; /* from the thread: some have ended */
	pthread_mutex_t lock; /* of what is below */
	struct slot *queue[REGION_APART_MAX], *ended[REGION_APART_MAX];
	unsigned queued, ended_count;
	bool running, posted;
	atomic_uint hint; /* = queued, to be looked at without the lock */
};

void apart_init(struct region *r);
void apart_free(struct region *r);
/* Gives the slot's data to the thread; false = the caller has to install it. */
bool apart_start(struct region *r, struct slot *slot);
/* Whether the thread has, or may have, this chunk; anything at all. */
bool apart_has(const struct region *r, uint64_t c);
bool apart_busy(const struct region *r);

/* ---- who waits ---- */

struct fault {
	struct link link;
	uint64_t off;
	uint64_t since_ns, retry_ns;
	unsigned tries;
	int err;
};

/* A request in progress. */
struct io {
	struct link link;
	struct req *req;
	uint64_t at; /* done up to here */
	uint64_t since_ns, retry_ns;
	unsigned tries;
	int err;
	uint64_t seen;	 /* the chunk that readahead was told of */
	bool wants_pull; /* of the chunk at `at`, and of what follows */
	unsigned full;	 /* how often the near store had no room for this step */
};

struct stream {
	uint64_t last;	 /* chunk that was used last */
	int64_t stride;	 /* chunks; 0 = not known yet */
	int64_t guess;	 /* the last distance */
	uint64_t tail;	 /* everything of it before was used up */
	uint32_t window; /* strides to be ahead */
	uint32_t issued; /* strides asked for beyond `last` */
	uint32_t goal;	 /* strides to be asked for */
	uint64_t mark;	 /* chunk whose first touch asks for more */
	uint64_t used;	 /* when, for replacement */
};

struct advice {
	struct range range;
	enum region_advice advice;
};

/* A span of the background pull. */
struct span {
	int priority;
	uint32_t index;
};

/* One sweep over what was dirty when it began. */
struct round {
	bool active, visiting;
	bool flush;    /* ends with a flush of the far store */
	bool flushing; /* which is under way */
	bool again;    /* the far side restarted meanwhile */
	/* what is in the snapshot is being made safe here, before it goes out; there is more */
	bool syncing, sync_more;
	int sync_err;
	uint64_t sync_failed_ns; /* the first of several in a row; 0 = none */
	struct near_sync sync;
	uint64_t at;   /* chunk of the cursor */
	uint32_t page; /* ... and its next page, while visiting */
	uint64_t flying; /* WRITEs of this round under way */
	uint64_t progress_ns, again_ns; /* again_ns: the first of several in a row; 0 = none */
	int err;
	struct list waiting; /* FLUSH requests, by req.link */
	struct req req;	     /* FLUSH of the far store */
};

struct region {
	struct store store;
	struct loop *loop;
	struct env *env;
	struct store *far;
	struct near *near;
	struct region_options opt;
	uint32_t chunk, unit;
	bool collects; /* a mapped program may write */
	bool pushes;   /* what is written goes to the far side */

	/* The lock guards the bytes and records of the map against the fault thread, and this: */
	pthread_mutex_t lock;
	pthread_cond_t fault_room;
	struct list faults_idle, faults_new;
	uint64_t marks[REGION_MARKS_MAX];
	unsigned mark_count;
	bool posted, shut_down;
	uint64_t faults_near;

	struct map map;
	struct fault fault[REGION_FAULTS_MAX];
	struct post fault_post; /* from the fault thread */
	struct post kick_post;
	bool kicked;
	struct timer timer;
	bool aborting, aborted, closing;
	bool near_stopping, near_stopped;
	bool far_lost;

	/* pull.c */
	struct slots slots;
	struct flow flow_in, flow_out;
	struct list faults; /* those that wait for a pull to begin */
	struct list pulls, stuck;
	struct apart apart;
	struct list asked; /* region_pull, the highest priority first */
	bool bg_active, bg_missed;
	uint64_t bg_at, bg_retry_ns;
	unsigned bg_tries;
	struct span *bg_order;
	uint64_t bg_spans, bg_span_chunks;
	uint64_t progress_ns, progress_bytes;

	/* readahead.c */
	struct stream stream[REGION_STREAMS];
	uint64_t stream_clock, ahead_last;
	uint32_t ahead_max; /* chunks */
	struct advice advice[REGION_ADVICE_MAX];
	unsigned advice_count;

	/* push.c */
	struct round round;
	struct list flush_next;
	uint64_t push_at_ns;	/* next look for something to push; 0 = none planned */
	uint64_t push_retry_ns; /* after a failure; not before */
	unsigned push_tries;
	bool push_due, pressure, push_stopped;
	int push_err;		/* that the next flush has to report */
	unsigned epoch;		/* in which pushes complete now */
	uint64_t epoch_instance[2];

	/* policy.c */
	uint64_t fixed_bytes; /* buffers and the like */
	uint64_t hand;
	struct range failed[REGION_FAILED_MAX]; /* near pages that fail */
	unsigned failed_count;
	bool failed_all;

	/* request.c */
	struct io io[REGION_IOS_MAX];
	struct list ios_idle, ios;
	struct list ios_waiting; /* requests without an io, by req.link */
	struct list extents_waiting;
	struct req extents_req, *extents_parent;
	struct extents extents;

	/* for status */
	uint64_t pulled_bytes, pushed_bytes, evicted_bytes, faults_far, flushes, pull_errors,
		push_errors;
	uint64_t hits, misses, collect_ns;
	struct hist fault_latency;
	int last_err;
	uint64_t last_err_ns;
	char last_why[128];

	struct extent extents_at[REQ_EXTENTS_MAX];
	uint8_t tail[PAGE_BYTES];
};

/* ---- region.c ---- */

static inline void region_lock(struct region *r)
{
	pthread_mutex_lock(&r->lock);
}
static inline void region_unlock(struct region *r)
{
	pthread_mutex_unlock(&r->lock);
}

void region_kick(struct region *r); /* region_run() soon */
void region_error(struct region *r, int err, const char *why);
void region_flag(struct region *r, uint64_t c, uint8_t set, uint8_t clear); /* takes the lock */

/* ---- request.c ---- */

void request_submit(struct store *store, struct req *req);
/* Carries on every request that can be; after anything became local, or room. */
void requests_run(struct region *r);
void requests_abort(struct region *r);
/* A pull that overlaps their range failed. */
void requests_pull_failed(struct region *r, struct range range, int err);

/* ---- pull.c ---- */

/* Begins a READ at `first` of one or more adjacent chunks below `end`. 0, -EAGAIN: not now,
 * -ENOSPC: never. `fault` moves to the slot. */
struct pull_want {
	uint64_t first, end;
	enum pull_why why;
	uint32_t flags; /* of the request */
	bool beyond_window;
	struct fault *fault;
	uint64_t mark; /* chunk to leave shut */
};
MUST_USE int pull_start(struct region *r, const struct pull_want *want, uint64_t *ret_count);
/* -ENOMEM when some pages are in the near store, open, and the map had no record to tell which. */
MUST_USE int pull_stuck_unknown(struct region *r);
struct slot *pull_find(struct region *r, uint64_t c); /* that brings this chunk */
/* What the slot brought is in the near store; could not be had (0: is stale); is there in part. */
void pull_settle(struct region *r, struct slot *slot);
void pull_failed(struct region *r, struct slot *slot, int err);
void pull_stuck(struct region *r, struct slot *slot, int err);
void pull_run(struct region *r);
void pull_abort(struct region *r);
void pull_asked_failed(struct region *r, uint64_t first, uint64_t count, int err);
MUST_USE int pull_background_begin(struct region *r);
/* some of what it had passed is absent again */
void pull_background_again(struct region *r, uint64_t c);
void pull_background_done(struct region *r);
/* Pulls under way that overlap are older than what the far side has now. -EAGAIN: one is just being
 * made visible, and nothing was done. */
MUST_USE int pull_stale(struct region *r, struct range range);

/* What of these chunks is whole, clean and flushed is so for good. */
void pull_settled(struct region *r, uint64_t first, uint64_t count);

/* ---- fault.c ---- */

void faults_init(struct region *r);
MUST_USE int fault_open(struct region *r, uint64_t c);
void faults_take(struct region *r);
/* Begins pulls; false = one has to wait, and nothing less urgent should take its room. */
bool faults_run(struct region *r);
void faults_settle(struct region *r, struct list *faults); /* the data is there */
/* the pull failed (0: was stale) */
void faults_again(struct region *r, struct list *faults, int err);
void faults_expire(struct region *r);
void faults_lost(struct region *r);
void faults_abort(struct region *r);
void faults_heal(struct region *r);

/* ---- readahead.c ---- */

void ahead_used(struct region *r, uint64_t c);
void ahead_run(struct region *r);
void ahead_failed(struct region *r, uint64_t first, uint64_t count);
/* A chunk that a sequential reader has left behind; NO_CHUNK = none. */
uint64_t ahead_behind(struct region *r);
void ahead_advise(struct region *r, struct range range, enum region_advice advice);
enum region_advice ahead_advice(const struct region *r, uint64_t c);

/* ---- dirty.c ---- */

MUST_USE int dirty_collect(struct region *r);
/* Under the lock: of one chunk. */
MUST_USE int dirty_collect_chunk(struct region *r, uint64_t c);

/* ---- push.c ---- */

void push_run(struct region *r);
void push_flush(struct region *r, struct req *req);
void push_written(struct region *r); /* something became dirty */
void push_restarted(struct region *r, uint64_t instance);
void push_abort(struct region *r);
uint64_t push_next_ns(struct region *r);

/* ---- policy.c ---- */

enum room_for { ROOM_FAULT, ROOM_DEMAND, ROOM_AHEAD, ROOM_BACKGROUND };

/* Room for `bytes` more: 0, -EAGAIN (something has to be pushed or pulled first), -ENOSPC (there is
 * no hope). */
int policy_room(struct region *r, uint64_t bytes, enum room_for who);
uint64_t policy_used(const struct region *r);
/* What a budget must hold. */
uint64_t policy_least(const struct region *r);
/* The near store said -ENOSPC before the budget was used up: from now on what is used is the
 * budget, and room for `bytes` is made as policy_room() does. */
int policy_near_full(struct region *r, uint64_t bytes);
/* The near store said -EBADMSG of a clean chunk: 0 = dropped, and to be pulled again. */
int policy_near_bad(struct region *r, uint64_t c);
/* Shuts, looks, and drops the chunk if it is clean; true = dropped. */
bool policy_drop(struct region *r, uint64_t c);

/* When to try again after the tries'th failure; 0 = no more. */
uint64_t policy_retry(struct region *r, int err, unsigned tries, uint64_t since_ns);
uint64_t policy_backoff(struct region *r, unsigned tries);
static inline bool policy_expired(const struct region *r, uint64_t since_ns, uint64_t now)
{
	return r->opt.deadline_ns != NEVER_NS && now - since_ns >= r->opt.deadline_ns;
}
uint64_t policy_expiry(const struct region *r, uint64_t since_ns);

#endif
