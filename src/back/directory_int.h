/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory back end: a file per chunk. directory.c is the store: which chunk may be touched by
 * whom, and the order of a flush. directory_disk.c is what is on the disk: the calls that run on
 * the pool, the index and the meta file.
 */
#ifndef REMORA_BACK_DIRECTORY_INT_H
#define REMORA_BACK_DIRECTORY_INT_H

#include "back/back.h"
#include "io/pool.h"

#define DIR_NAME_LEN 32u /* "18446744073709551615.new" */
#define DIR_WHY_LEN 160u
#define DIR_INDEX_HEADER 64u

enum dir_kind {
	DIR_READ,
	DIR_WRITE,  /* of a part, or all, of a chunk */
	DIR_ZERO,   /* of a whole chunk */
	DIR_COMMIT, /* of a flush: what was written gets its name, what was zeroed loses it */
};

/* An open chunk file, kept for the next request. Loop thread. */
struct dir_file {
	uint64_t chunk;
	int fd; /* -1 = unused */
	unsigned users;
	struct link link; /* d->lru, the longest unused first */
};

struct dir_job;

/* One chunk's share of a request, or of a flush. */
struct dir_op {
	struct work work;
	struct directory *d;
	struct dir_job *job; /* NULL: of the flush */
	enum dir_kind kind;
	uint64_t chunk;
	uint32_t at, len; /* within the chunk */
	uint8_t *data;	  /* NULL: zeros */
	uint8_t *buf;	  /* a chunk's bytes, the op's own */
	/* the chunk's state when it was started */
	bool dirty, whole, in_file;
	bool rewrite;		/* COMMIT: the bytes are written once more */
	int fault;		/* of a test: what a sync fails with */
	int fd;			/* in: of the cache, or -1; out: to be kept, or -1 */
	struct dir_file *file;	/* that fd is of */
	char why[DIR_WHY_LEN];
	struct link link; /* idle, running or blocked */
};

struct dir_job {
	struct link link; /* idle, or hungry while more is to be done */
	struct req *parent;
	uint64_t at, end;
	unsigned pending;
	bool more, zero;
	int err;
	uint64_t instance;
	char why[DIR_WHY_LEN];
};

/* Reads and changes are kept apart, so that reads go on while changes wait for a flush. */
struct dir_lane {
	struct list waiting; /* requests without a job, by link */
	struct list hungry;  /* jobs */
	unsigned jobs, jobs_max, ops, ops_max;
};
enum { DIR_LANE_READ, DIR_LANE_CHANGE, DIR_LANES };

enum dir_flush {
	DIR_FLUSH_NONE,
	DIR_FLUSH_DRAIN,  /* changes under way end, no other begins */
	DIR_FLUSH_FORGET, /* the index without what was zeroed */
	DIR_FLUSH_COMMIT, /* chunk by chunk */
	DIR_FLUSH_NAMES,  /* the directory is synced */
	DIR_FLUSH_INDEX,  /* the index with everything that is there */
};

struct directory {
	struct store store;
	char *path;
	int fd;
	unsigned shift;
	uint64_t chunk, chunks;
	/* A bit per chunk. */
	uint64_t *data;	   /* reads as data: not as zeros */
	uint64_t *file;	   /* has a file; is to have one, if the index has it */
	uint64_t *dirty;   /* has a file of changes that was not flushed */
	uint64_t *indexed; /* is in the index as it is on the disk */
	uint64_t *set;	   /* of the flush under way: still to be committed */
	size_t words;
	uint64_t *bits; /* all of them */

	struct dir_lane lane[DIR_LANES];
	struct list idle_jobs, idle, running, blocked;
	size_t ops, changes_running;
	struct dir_file files[DIRECTORY_FILES_MAX];
	struct list lru;
	bool pumping, pump_again;

	enum dir_flush flush;
	struct list flush_waiting, flush_with; /* FLUSHes: of the next one, of this one */
	struct work flush_work;
	size_t commits;	 /* under way */
	uint64_t commit_at; /* chunk to look at next */
	bool names_changed; /* since the directory was synced */
	bool rewrite;	    /* a sync failed: what is dirty is written again before the next */
	bool closing;	    /* the last flush, at the close */
	struct post close_post;
	int flush_err;
	uint64_t flush_instance;
	struct list commit_idle; /* ops of flushes */
	uint8_t *index;		 /* its bytes, as they are written */
	size_t index_len;

	int sync_err;	   /* the last one, for status */
	uint64_t missing;  /* reads that found no file, or a short one */
	uint8_t *buffers;
	char why[DIR_WHY_LEN];
	struct dir_job job[DIRECTORY_JOBS_MAX];
	struct dir_op op[DIRECTORY_OPS_MAX], commit_op[DIRECTORY_COMMITS_MAX];
};

/* How many bytes the chunk has: less at the end of the resource. */
static inline uint32_t dir_chunk_len(const struct directory *d, uint64_t chunk)
{
	uint64_t off = chunk << d->shift, left = d->store.info.size - off;

	return (uint32_t)MIN(d->chunk, left);
}

/* ---- on the pool ---- */

int dir_read_call(struct work *work);
int dir_write_call(struct work *work);
int dir_zero_call(struct work *work);
int dir_commit_call(struct work *work);
int dir_names_call(struct work *work); /* d->flush_work */
int dir_index_call(struct work *work); /* the same */

/* The index's bytes: it shall say what is in both. And what they say, when they are written. */
void dir_index_make(struct directory *d, const uint64_t *a, const uint64_t *b);
void dir_index_said(const struct directory *d, uint64_t *ret);

/* ---- what is found on the disk; pure functions ---- */

/* 0, -EBADMSG, or -ESTALE: of another size. */
MUST_USE int dir_index_check(const uint8_t *bytes, size_t len, uint64_t size, uint64_t chunk);
/* 0 or -EBADMSG. */
MUST_USE int dir_meta_parse(const char *text, uint64_t *ret_size, uint64_t *ret_chunk,
			    uint64_t *ret_identity);

/* ---- opening ---- */

struct dir_opening {
	struct directory *d;
	const struct store_open *how;
	struct spec_args *args;
	struct err *e;
	bool read_only, create, has_size, has_chunk;
	uint64_t size, chunk;
	uint64_t identity;
	bool has_meta, made;
	uint64_t found, temps;
};
/* Everything that is on the disk: the directory, its lock, meta, index, chunks. */
MUST_USE int dir_load(struct dir_opening *w);

#endif
