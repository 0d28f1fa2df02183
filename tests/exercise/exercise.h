/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the exerciser share: see exercise.c.
 *
 * Pages belong to workers: the file is cut into stripes of whole pages, dealt out in turn. Only the
 * owner writes a stripe, one operation after the other, so the model knows what a read of it has to
 * give, whichever way it goes.
 */
#ifndef EXERCISE_H
#define EXERCISE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/range.h"
#include "base/rng.h"

#define PAGE 4096ull
#define OP_BYTES_MAX (1ull << 20)
#define WORKERS_MAX 16u
#define LOG_LEN 50u
#define OPS_MAX 32u

struct log_entry {
	uint64_t number, off, len;
	const char *name;
	int64_t result;
	uint64_t start_ns, end_ns; /* 0: not over */
};

/* In memory that all processes share. */
struct shared {
	struct log_entry log[WORKERS_MAX][LOG_LEN];
	atomic_bool stop;      /* somebody found a difference */
	atomic_ullong ops;     /* done by all */
	atomic_uint left;      /* workers that have not ended well */
	/* By kind of operation: carried out, and not supported by the file. */
	atomic_ullong done[OPS_MAX], unsupported[OPS_MAX];
};

struct options {
	const char *path;   /* of the file; or */
	const char *memory; /* the spec */
	const char *from;   /* the content at the beginning; NULL: read from the file */
	const char *far;    /* memory: compared after a flush */
	const char *model_out;
	const char *loop;
	uint64_t size, seed, seconds, processes, ops_max, budget;
	bool direct, plain;
};

/* Everything of a run. */
struct run {
	struct options o;
	struct shared *shared;
	uint8_t *model; /* o.size bytes, shared */
	/* One number per page, shared: odd while its owner writes it. A reader that finds the same
	 * even number before and after has read what the model said in between. */
	atomic_uint *stamps;
	uint64_t stripe; /* bytes */
	uint64_t deadline_ns;
	/* Memory mode alone. */
	struct remora *remora;
	uint8_t *data;
	pthread_rwlock_t quiet; /* taken for writing, nobody writes */
};

struct worker {
	struct run *run;
	unsigned index;
	struct rng rng;
	uint64_t number, last_off;
	const char *name; /* of the operation that runs */
	uint8_t *buf, *spare; /* OP_BYTES_MAX and two pages, page aligned */
	int fd, direct_fd;
	uint8_t *map;	/* all of the file, shared */
	bool map_dirty; /* written through the map since the last msync */
	int scratch;	/* memory mode: a file for read(2) and write(2) */
};

struct op_kind {
	const char *name;
	unsigned weight;
	/* Draws its arguments, does it, checks it: 0 or the number of bytes; -EOPNOTSUPP when the
	 * file does not have it, which is counted. Whatever else goes wrong ends in fail(). */
	int64_t (*run)(struct worker *w, struct log_entry *entry);
	bool direct; /* only with --direct */
	bool fixed;  /* only on a file that keeps its size */
};

/* run.c */
uint64_t now_ns(void);
/* Draws and runs operations until the time is over. */
void worker_run(struct worker *w, const struct op_kind *kinds, unsigned count);
void worker_init(struct worker *w, struct run *run, unsigned index);
void worker_free(struct worker *w);
/* Bytes in a stripe of the worker's own; aligned: to pages, the last of which may be cut. */
struct range range_draw(struct worker *w, bool aligned);
/* Bytes in anybody's stripe. */
struct range range_draw_any(struct worker *w);
void bytes_draw(struct worker *w, void *buf, uint64_t len);
/* Around a write of the worker's own pages; end takes over what was written. */
void model_begin(struct worker *w, struct range r);
void model_end(struct worker *w, struct range r, const void *buf);
/* What was read there has to be what the model says. */
void check_bytes(struct worker *w, uint64_t off, const void *buf, uint64_t len);
/* Writes down what happened, stops everybody, ends the process with status 1. */
_Noreturn void fail(struct worker *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The main program's comparison: says where the first difference is. */
bool same(const uint8_t *model, const uint8_t *found, uint64_t off, uint64_t len, const char *what);

/* file.c */
extern const struct op_kind file_kinds[];
extern const unsigned file_kind_count;
void file_open(struct worker *w);
void file_end(struct worker *w);

/* memory.c */
extern const struct op_kind memory_kinds[];
extern const unsigned memory_kind_count;
int memory_run(struct run *run);

#endif
