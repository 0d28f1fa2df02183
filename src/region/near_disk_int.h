/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the near store on a disk share. near_disk.c has its operations,
 * near_disk_journal.c appends and makes safe, near_disk_compact.c writes the journal anew,
 * near_disk_open.c opens, near_disk_cache.c is what people ask for.
 */
#ifndef REMORA_REGION_NEAR_DISK_INT_H
#define REMORA_REGION_NEAR_DISK_INT_H

#include "io/pool.h"
#include "region/near_disk.h"
#include "region/near_disk_index.h"
#include "region/near_disk_scan.h"

#define ND_META "meta"
#define ND_META_NEW "meta.new"
#define ND_DATA "data"
#define ND_JOURNAL "journal"
#define ND_JOURNAL_NEW "journal.new"
#define ND_LOCK "lock"

/* The journal. Small records wait in `small` until the end of the loop's iteration, or until
 * something else is written. Places are bytes in the file. */
struct nd_journal {
	int fd;
	uint64_t stamp, seq;
	uint64_t written;    /* the file's end */
	uint64_t allocated;  /* room up to here */
	uint64_t fresh;	     /* behind the last record that has to become safe */
	uint64_t synced;     /* safe up to here */
	uint8_t small[ND_SMALL_BYTES];
	size_t small_len;
	uint64_t small_seq;  /* of the first of them */
};

/* Writing it anew. */
enum nd_phase { ND_IDLE, ND_LIVE, ND_TAIL, ND_LAST };

struct nd_item {
	struct range range;
	bool clean;
	uint32_t hash_at; /* in hash[] */
};

struct nd_compact {
	enum nd_phase phase;
	struct work work;
	int fd;
	uint64_t stamp, seq, at; /* of the new one */
	uint64_t page_at, chunk_at; /* how far the index has been gone through; bytes, chunks */
	uint64_t from, to;	 /* of the old journal: to be copied */
	unsigned passes;
	bool waits;	 /* for the end of a sync */
	uint64_t room;	 /* that it takes, as far as the loop's thread knows */
	struct nd_item item[ND_BATCH_ITEMS];
	uint64_t hash[ND_CLEAN_MAX];
	unsigned items, hashes;
	uint8_t *buf; /* ND_RECORD + the longest run */
	bool wanted;
	uint64_t failed_ns; /* not again before; 0 = may */
};

struct nd_hasher {
	struct work work;
	bool busy;
	unsigned count;
	uint64_t cursor; /* in want[] */
	uint64_t chunk[ND_BATCH_ITEMS], hash[ND_BATCH_ITEMS];
	int err[ND_BATCH_ITEMS];
};

struct near_disk {
	struct near near;
	struct near_disk_io io;
	struct loop *loop;
	struct nd_meta meta;
	struct nd_index ix;
	int lock_fd, data_fd;
	uint64_t chunk_zeros; /* hash of a chunk of them */
	uint8_t *scratch;     /* a chunk */
	bool torn;	      /* an absent page may hold something */
	uint64_t slack, interval_ns;

	struct nd_journal journal;
	struct post flush_post;
	bool flush_posted;
	struct timer timer;
	struct work sync_work;
	bool syncing, sync_held; /* held: until the journal has been replaced */
	bool sync_dir;		 /* the next one makes a rename safe, too */
	uint64_t sync_target;
	struct list syncs; /* near_sync */
	bool spoiled;	   /* a sync has failed: no other sync of this file means anything */
	struct near_sync timer_sync;
	bool timer_syncing;

	struct nd_compact compact;
	struct nd_hasher hasher;

	bool stopping;
	void (*stopped)(void *arg);
	void *stopped_arg;
	struct post stop_post;
};

/* ---- near_disk_journal.c ---- */

int nd_journal_begin(struct near_disk *d); /* an empty file's first record */
/* A record with data: the pages of the range, in up to three pieces. */
MUST_USE int nd_journal_dirty(struct near_disk *d, struct range pages, const struct iovec *iov,
			      int count, bool zeros);
/* Takes the last nd_journal_dirty() back. */
void nd_journal_undo(struct near_disk *d, uint64_t written);
/* A record without; it is never an error if it gets lost. */
void nd_journal_small(struct near_disk *d, enum nd_type type, struct range r,
		      const uint64_t *hash, uint32_t hashes);
void nd_journal_flush(struct near_disk *d); /* writes what waits */
uint64_t nd_journal_end(const struct near_disk *d);
int nd_sync(struct near *near, struct near_sync *sync);
void nd_sync_run(struct near_disk *d); /* if somebody wants it, and it may be */
void nd_timer_plan(struct near_disk *d);
void nd_journal_init(struct near_disk *d);
void nd_record_fill(struct nd_record *rec, enum nd_type type, struct range r, const void *payload,
		    size_t len);

/* ---- near_disk_compact.c ---- */

void nd_compact_init(struct near_disk *d);
void nd_compact_try(struct near_disk *d); /* if it is worth it */
/* Obsolete records take so much that it is worth waiting: true = it has been begun, or is under
 * way. */
bool nd_compact_for_room(struct near_disk *d);
void nd_compact_synced(struct near_disk *d); /* a sync has ended */
bool nd_compact_busy(const struct near_disk *d);
uint64_t nd_live_bytes(const struct near_disk *d);

/* ---- near_disk.c ---- */

extern const struct near_ops near_disk_ops;

void nd_stop_try(struct near_disk *d);
void nd_room_changed(struct near_disk *d); /* extra_bytes; whoever waits is woken */

/* ---- near_disk_open.c ---- */

MUST_USE int nd_meta_read(const struct near_disk_io *io, struct nd_meta *ret, const char *dir,
			  struct err *e);
MUST_USE int nd_lock(const struct near_disk_io *io, const char *dir, int *ret_fd, struct err *e);
void nd_holder_read(const struct near_disk_io *io, int fd, char *buf, size_t len);
void nd_free(struct near_disk *d);

#endif
