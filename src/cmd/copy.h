/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of remora copy: the walk over a source's extents, the state that makes a copy
 * resumable, the engine that moves bytes, the one that compares them, and the progress they show.
 */
#ifndef REMORA_CMD_COPY_H
#define REMORA_CMD_COPY_H

#include "cmd/cmd.h"
#include "io/pool.h"
#include "store/store.h"

#define COPY_UNIT_MIN (256 * KIB) /* default unit, unless a store prefers more */
#define COPY_UNITS_MAX (1ULL << 24)
#define COPY_INFLIGHT_FAR (64 * MIB)
#define COPY_INFLIGHT_NEAR                                                                         \
	(8 * MIB) /* nothing far: more would only leave the processor's cache                      \
		   */
#define COPY_SLOTS_MAX 1024u

/* ---- which parts are zeros (copy_walk.c) ---- */

/* Extents of a store, asked for ahead. Offsets only grow. Where the store cannot tell, everything
 * is data. */
struct walk {
	struct store *store;
	bool told; /* the store tells */
	struct extent *buf[2];
	struct extents got[2];
	uint64_t start[2], end[2]; /* what they cover */
	unsigned cur;		   /* buf[cur] is looked at, the other one is ahead */
	size_t at;		   /* in got[cur] */
	uint64_t at_off;	   /* where that extent starts */
	struct req req;
	bool pending;
	void (*ready)(struct walk *walk); /* after walk_at() said false */
	void *user;
};

MUST_USE int walk_init(struct walk *walk, struct store *store); /* 0 or -ENOMEM */
void walk_done(struct walk *walk);				/* nothing pending */
/* What is at off: *ret_len bytes, at least 1, of the same kind. False: not known yet, ready() will
 * be called. */
MUST_USE bool walk_at(struct walk *walk, uint64_t off, uint64_t *ret_len, bool *ret_zero);

/* ---- what is safe at the destination (copy_state.c) ---- */

/* All of it must be the same, or the copy starts over. */
struct copy_key {
	uint64_t size, unit;
	uint64_t source, source_mtime_ns; /* identity; 0 = unknown */
	uint64_t destination;
};

/* Beside the destination: DST.remora-copy. 0 or -errno; -ENOENT: there is none; -EBADMSG: not ours,
 * or damaged; -ESTALE: of another copy. `bits` has a bit per unit. */
MUST_USE int copy_state_load(const char *path, const struct copy_key *key, uint64_t *bits);
/* Replaces it: at each moment there is the old one or the new one, whole. May block. */
MUST_USE int copy_state_save(const char *path, const struct copy_key *key, const uint64_t *bits);

/* ---- moving bytes (copy_engine.c) ---- */

struct copy_slot;

struct copy {
	struct run *run;
	struct store *src, *dst;
	const char *src_name, *dst_name;
	uint64_t size;
	uint64_t unit;
	size_t units, slot_count;
	bool fresh;		/* the destination was made by us just now: it is all zeros */
	const char *state_path; /* NULL = no state is kept */
	size_t guesses; /* units read before the first word about extents: a round trip less */
	struct copy_key key;

	/* the engine's */
	struct copy_slot *slots;
	uint8_t *buffers;
	struct list idle;
	size_t active;
	struct walk walk;
	uint64_t *done, *snapshot,
		*safe; /* a bit per unit: written; written when the flush began; durable */
	uint64_t pos;  /* next unit to look at */
	struct req flush;
	bool flushing, saving, dirty; /* dirty: done has more than safe */
	struct work save;
	struct timer save_timer, give_up_timer;
	uint64_t instance; /* of the destination's server */
	bool redo;	   /* it has changed: what was not flushed is copied again */
	unsigned passes;
	bool started, stopping, last_flush, finished;

	/* results */
	bool interrupted, kept; /* kept: the state has what was copied */
	struct err error;	/* code 0 = none */
	uint64_t bytes_done;	/* of size, those of a former run included */
	uint64_t bytes_before;	/* of a former run */
	uint64_t bytes_data;	/* moved, not zeros */
};

MUST_USE int copy_init(struct copy *c, struct err *e);
void copy_start(struct copy *c); /* runs until c->finished */
void copy_stop(struct copy *c);	 /* ends early, what is done is made safe */
void copy_done(struct copy *c);

/* ---- comparing (copy_verify.c) ---- */

struct verify_slot;

struct verify {
	struct run *run;
	struct store *side[2];
	const char *name[2];
	uint64_t size, unit;
	size_t slot_count;
	struct verify_slot *slots;
	uint8_t *buffers;
	struct list idle;
	size_t active;
	struct walk walk[2];
	uint64_t pos;
	bool stopping, aborted, finished;
	struct err error;
	uint64_t bytes_done;
	uint64_t differs_at; /* UINT64_MAX: nowhere */
	uint8_t differs[2];
};

MUST_USE int verify_init(struct verify *v, struct err *e);
void verify_start(struct verify *v);
void verify_stop(struct verify *v);
void verify_done(struct verify *v);

/* ---- progress (copy_progress.c) ---- */

enum progress_kind { PROGRESS_AUTO, PROGRESS_JSON, PROGRESS_NONE };

struct progress {
	struct loop *loop;
	struct timer timer;
	enum progress_kind kind; /* AUTO has become: a line on a terminal */
	const uint64_t *done;	 /* counts up to size */
	struct meter meter;
};

void progress_start(struct progress *p, struct loop *loop, unsigned kind, const char *phase,
		    const uint64_t *done, uint64_t size);
void progress_stop(struct progress *p); /* takes the line away */

#endif
