/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store: everything in the data path is one, and every call between two of them goes through
 * store.c, which states and enforces the contract, so that the layers themselves contain no
 * defensive code.
 *
 * Contract.
 *  1. A request completes exactly once, with 0 or -errno, on the thread of its loop, and never
 *     before req_submit() has returned.
 *  2. What reaches a store's submit() is valid: the range lies within the size, READ and WRITE
 *     have a buffer of range.len <= info.len_max bytes, the range is aligned to info.align where
 *     the store asks for it (an align stage stands before it if the maker of requests cannot
 *     promise that), writes do not reach a read-only store, empty READ, WRITE, ZERO, TRIM, EXTENTS
 *     and PREFETCH have been answered already.
 *  3. Operations and flags that a store does not have (info.cap) never reach it: store.c
 *     emulates them, or answers -EOPNOTSUPP. Emulation is here and nowhere else: ZERO by WRITE of
 *     zeros, FUA by a FLUSH behind, TRIM and PREFETCH by doing nothing, EXTENTS by "all of it is
 *     data".
 *  4. A READ that completes with 0 has filled the whole buffer. There are no short results above
 *     a store.
 *  5. Requests in flight at the same time may be carried out in any order; whoever needs an
 *     order waits, or puts an order stage in front. A FLUSH covers the writes that had completed
 *     before it was submitted.
 *  6. The buffer is borrowed from req_submit() until done(); the request itself likewise.
 *  7. After store_abort(), everything pending completes soon (-ESHUTDOWN where it was not
 *     carried out).
 *
 * A stage's own requests to the next store are struct req of its own (store/sub.h), completed
 * upward with req_done().
 */
#ifndef REMORA_STORE_STORE_H
#define REMORA_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/hist.h"
#include "base/list.h"
#include "base/range.h"
#include "io/loop.h"

struct store;

enum req_op { REQ_READ, REQ_WRITE, REQ_FLUSH, REQ_ZERO, REQ_TRIM, REQ_EXTENTS, REQ_PREFETCH,
	      REQ_OPS };

enum {
	REQ_FUA = 1u << 0,	  /* WRITE, ZERO: durable before it completes */
	REQ_URGENT = 1u << 1,	  /* somebody waits in a page fault */
	REQ_BACKGROUND = 1u << 2, /* nobody waits */
};

struct iobuf {
	uint8_t *base;
	size_t len;
};

struct extent {
	uint64_t len;
	bool zero; /* reads as zeros, and needs no space */
};

/* The answer to EXTENTS: from range.off on, without gaps; it may end before the range does but has
 * one entry at least. */
struct extents {
	struct extent *at; /* caller's array */
	size_t max, count;
};

/* A request's state, store.c's. The values are magic, so that a request need not be zeroed by its
 * maker. */
enum req_state {
	REQ_SUBMITTING = 0x52510001, /* within ops->submit(): a completion is deferred */
	REQ_PENDING,		     /* the store has it */
	REQ_DEFERRED,		     /* completed, done() is about to be called */
	REQ_IDLE,		     /* the maker's; as is any other value */
};

struct req {
	/* set by the maker */
	enum req_op op;
	uint32_t flags;
	struct range range;
	struct iobuf data;	  /* READ: filled; WRITE: read only */
	struct extents *extents;  /* EXTENTS only */
	void (*done)(struct req *req, int err);
	void *user;

	/* set before done() */
	uint64_t ret_instance;	/* instance id that answered; 0 = the store's own never changes */
	/* text of the far side's error, or NULL; borrowed during done(). The store's text must last
	 * until its req_done() returns. */
	const char *ret_why;
	bool ret_zero;		/* READ: known to be all zeros */

	/* store.c's, and the store's that has the request (link, state) */
	struct store *store;
	struct link link;	/* free for the store between submit() and req_done() */
	struct post post;
	uint64_t start_ns;
	uint32_t state;
	int err;
};

enum cap { CAP_NONE, CAP_EMULATED, CAP_NATIVE };

struct store_info {
	uint64_t size;	     /* bytes, fixed while open */
	/* offsets and lengths are multiples of it, but for the end of the resource; 1 = any */
	uint32_t align;
	uint32_t len_max;    /* longest READ or WRITE, a multiple of align */
	uint32_t chunk;	     /* preferred unit of transfer, power of two */
	bool read_only;
	/* NATIVE or NONE from the store; store_init() makes EMULATED of what it can emulate. FLUSH
	 * cannot be: a store that has nothing to flush says NATIVE and answers 0. */
	enum cap zero, trim, fua, extents, prefetch, flush;
	/* instance id; 0 = cannot forget what it acknowledged while it is open */
	uint64_t instance;
	uint64_t identity;   /* same resource, same number, over restarts; 0 = unknown */
};

struct store_ops {
	const char *name; /* the word of the spec grammar */
	void (*submit)(struct store *store, struct req *req);
	/* rule 7; NULL for stores that complete soon by themselves */
	void (*abort)(struct store *store);
	/* Nothing is pending. Releases what is its own (not the struct, not next), and when that is
	 * done, now or later, calls store_closed(store). NULL = there is nothing to release. */
	void (*close)(struct store *store);
	/* Fills a line of "name=value" pairs for status; NULL = nothing to tell. */
	void (*status)(struct store *store, char *buf, size_t len);
};

struct store_counts {
	uint64_t started, done, failed, bytes;
	struct hist latency;
};

enum store_event {
	STORE_LOST,	/* the far side is away; requests wait */
	STORE_BACK,	/* and back, same instance */
	/* back with another instance id (info.instance has the new one): unflushed writes may be
	 * gone */
	STORE_RESTARTED
};

/* What store.c needs to carry out one emulated request: a request of its own to the same store. */
struct store_emul {
	struct req req;
	struct req *parent;
	uint64_t at;	   /* ZERO by writes: bytes done */
	uint64_t instance; /* that took the first piece */
	unsigned tries;
	bool flushing;
	struct link link;
};

/* Embedded first in every store's own struct, which is calloc()ed. */
struct store {
	const struct store_ops *ops;
	struct store *next;	/* a stage's; owned: closed after it. NULL for a back end */
	struct loop *loop;	/* borrowed */
	struct store_info info;
	struct store_counts counts[REQ_OPS];
	uint64_t pending;
	int last_err;
	char last_why[128];
	/* who wants to hear of events; stages pass them upward by themselves (store.c) */
	void (*on_event)(void *arg, struct store *store, enum store_event event);
	void *on_event_arg;
	struct store *above;
	/* closing */
	bool aborting, abort_told, closing;
	void (*closed)(void *arg);
	void *closed_arg;
	struct post close_post;
	/* trace hook: every request as it starts and ends; NULL = none */
	void (*trace)(void *arg, const struct store *store, const struct req *req, bool end);
	void *trace_arg;
	/* emulated requests in progress, and those that wait for one to end (req.link) */
	struct store_emul emul[STORE_EMUL_MAX];
	struct list emul_idle, emul_waiting;
};

/*
 * Called last in a store's open: checks info, joins it to `next` (NULL for a back end; ownership
 * moves to it). A stage whose info is still all zeros gets a copy of next's; it may change single
 * fields afterwards (but not a capability from NATIVE to NONE: what changes those sets info before,
 * beginning with a copy of next's). Zeros in align, len_max and chunk mean 1, REQ_LEN_MAX and
 * CHUNK_DEFAULT.
 */
void store_init(struct store *store, const struct store_ops *ops, struct loop *loop,
		struct store *next);

/* ---- for makers of requests ---- */

/* Loop thread. Whatever is wrong with the request itself comes as an error through done(), too. */
void req_submit(struct store *store, struct req *req);

/* ---- for stores ---- */

/* Completes a request that submit() got. May be called from within submit(): done() is then
 * deferred. -EOPNOTSUPP for ZERO, TRIM, EXTENTS or PREFETCH means that the store found out only now
 * that it cannot: it is emulated from here on. */
void req_done(struct req *req, int err);

/* Tells those above. With STORE_RESTARTED the store has put the new id into its info; stages above
 * get it from there. */
void store_emit(struct store *store, enum store_event event);

/* From ops->close, as the last thing: free()s the store, goes on with the one below. */
void store_closed(struct store *store);

/* ---- closing ---- */

/* Fails what is pending, here and in every store below. */
void store_abort(struct store *store);

/* No requests from now on; when those pending are done (abort first if they shall not be waited
 * for) this store and those below are freed and closed(arg) is called from the loop. NULL store:
 * closed(arg) is not called. */
void store_close(struct store *store, void (*closed)(void *arg), void *arg);

/* ---- set-up code, tests, tools: run the loop until it is done; never from a callback ---- */

MUST_USE int store_read(struct store *store, uint64_t off, void *buf, size_t len);
MUST_USE int store_write(struct store *store, uint64_t off, const void *buf, size_t len,
			 uint32_t flags);
MUST_USE int store_flush(struct store *store);
MUST_USE int store_zero(struct store *store, uint64_t off, uint64_t len);
MUST_USE int store_trim(struct store *store, uint64_t off, uint64_t len);
MUST_USE int store_extents(struct store *store, uint64_t off, uint64_t len,
			   struct extents *extents);
void store_close_wait(struct store *store); /* aborts, closes, waits; NULL is fine */

const char *req_op_name(enum req_op op);
static inline bool req_op_changes(enum req_op op)
{
	return op == REQ_WRITE || op == REQ_ZERO || op == REQ_TRIM;
}

#endif
