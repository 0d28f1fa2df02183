/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Remora: a remote resource as local memory.
 *
 * A *spec* names the resource and what stands before it, for example
 * "remora://127.0.0.1:7000/disk.img", "file:disk.img" or
 * "retry:for=60s|remora+unix:///run/data.sock/model.bin": see remora-spec(7).
 *
 * Conventions. Functions return 0 or a negative errno value. Sizes and offsets are bytes, times
 * milliseconds. A handle may be used from any thread, also by several at once, except for its
 * close. The library does not print, exit, install signal handlers or keep state outside of its
 * handles; two handles share nothing.
 */
#ifndef REMORA_REMORA_H
#define REMORA_REMORA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define REMORA_API __attribute__((visibility("default")))
#define REMORA_MUST_USE __attribute__((warn_unused_result))
#else
#define REMORA_API
#define REMORA_MUST_USE
#endif

/* What went wrong while something was set up: a text for a person that names what to do. */
struct remora_error {
	int code; /* negative errno value, 0 = nothing */
	char text[512];
};

/* "0.1.0". Static. */
REMORA_API const char *remora_version(void);

/* ---- a store of your own ---- */

/*
 * Reads and writes are whole: they fill, or take, all of `len` bytes and return 0, or a negative
 * errno value. They are called from threads of the library, several at once when `threads` is more
 * than 1 (0 and 1: one at a time). They may block. `write` NULL: read-only. `flush` NULL: a write
 * is durable when it returns.
 */
struct remora_callbacks {
	int (*read)(void *arg, uint64_t off, void *buf, size_t len);
	int (*write)(void *arg, uint64_t off, const void *buf, size_t len);
	int (*flush)(void *arg);
	int (*size)(void *arg, uint64_t *ret_bytes);
	unsigned threads;
};

/* ---- options ---- */

enum remora_pull {
	REMORA_PULL_DEMAND = 0, /* what is touched, and what is likely to be touched next */
	REMORA_PULL_ALL = 1	/* and everything else in the background */
};

enum remora_on_loss {
	REMORA_LOSS_WAIT = 0,	 /* access waits for the far side, up to the deadline */
	REMORA_LOSS_ERROR = 1,	 /* access to what is not local fails at once: SIGBUS */
	REMORA_LOSS_READONLY = 2 /* reads wait; nothing is pushed any more until remora_flush() */
};

enum remora_level { REMORA_LOG_ERROR, REMORA_LOG_WARN, REMORA_LOG_INFO, REMORA_LOG_DEBUG };

struct remora_range {
	uint64_t off, len;
};

/*
 * Called from the library's own thread; they must not touch the region's memory and must not call
 * functions of this library on the same handle (-EDEADLK). `before_flush` and `before_close` are
 * called in the thread that calls flush or close, before anything is done, and may do both.
 */
struct remora_hooks {
	int (*before_flush)(void *arg); /* a negative errno value makes the flush fail with it */
	void (*before_close)(void *arg);
	void (*chunk_local)(void *arg, uint64_t off, uint64_t len);
	void (*progress)(void *arg, uint64_t local_bytes, uint64_t size);
	/* Order of the background pull: ranges with a higher number first. Asked once per chunk
	 * when the pull starts. */
	int (*priority)(void *arg, uint64_t off, uint64_t len);
	void *arg;
};

/* All zeros (or NULL instead of the struct) is a good choice of everything. */
struct remora_options {
	size_t struct_size; /* sizeof(struct remora_options) or 0: lets the struct grow */
	int read_only;	    /* the mapping is read-only: a write is SIGSEGV */
	int private_copy;   /* writable, but nothing is ever pushed: like MAP_PRIVATE */
	void *address;	    /* map exactly there (page aligned, free); NULL = anywhere */
	uint64_t budget;    /* bytes of memory for the resource's data; 0 = no limit */
	uint32_t chunk;	    /* unit of transfer, a power of two; 0 = what the far side prefers */
	enum remora_pull pull;

	/* remora_open() returns when so many bytes from the start, and these ranges, are local. */
	uint64_t pull_first;
	const struct remora_range *pull_ranges;
	size_t pull_range_count;

	uint64_t inflight;	   /* bytes that may be under way at once; 0 = 32 MiB */
	uint32_t readahead_max;	   /* bytes ahead of a sequential reader; 0 = 8 MiB; 1 = none */
	int no_push;		   /* writes go to the far side only on remora_flush() */
	uint32_t push_interval_ms; /* how often writes are looked for; 0 = 1000 */

	/* How long access waits for a lost far side; 0 = 60000, UINT32_MAX = for ever. */
	uint32_t deadline_ms;
	enum remora_on_loss on_loss;

	struct remora_hooks hooks;
	const struct remora_callbacks *callbacks; /* for the spec "callbacks:" */
	void *callbacks_arg;
	void (*log)(void *arg, enum remora_level level, const char *text); /* any thread */
	void *log_arg;
	enum remora_level log_max;

	/* userfaultfd without rights: system calls that touch absent pages fail with EFAULT. */
	int user_mode_only;
	const char *loop; /* "io_uring", "epoll"; NULL = the better one that works */
	/* How the memory comes to be: "userfaultfd"; "file", a mapping of a FUSE file that the
	 * library serves; "auto" or NULL = userfaultfd, and a file where that is refused. */
	const char *engine;
	/* A directory in which what is local survives the program: the next one that opens the same
	 * resource with it pushes what was not pushed, and pulls nothing again. One at a time. The
	 * engine is "file". NULL = memory. */
	const char *near;
};

/* ---- memory ---- */

struct remora;

/*
 * Opens the resource as memory. Returns as soon as the memory can be used, not when the data is
 * there. On failure *ret is NULL and `e` (may be NULL) says why. The mapping is not inherited by
 * fork(): an access of the child is SIGSEGV, and a call on the handle fails with -ECHILD.
 */
REMORA_API REMORA_MUST_USE int remora_open(struct remora **ret, const char *spec,
					   const struct remora_options *options,
					   struct remora_error *e);

/* The memory, page aligned, and the resource's size. The last page's bytes behind the size read as
 * zeros, and what is written there goes nowhere. */
REMORA_API void *remora_data(const struct remora *r);
REMORA_API uint64_t remora_size(const struct remora *r);

/*
 * Returns 0 when everything that was written to the memory before the call is as durable as the far
 * side can make it. Fails with -EIO (and the like) when some of it could not be written, also when
 * that happened earlier in the background; the data stays in memory and the next flush tries again.
 */
REMORA_API REMORA_MUST_USE int remora_flush(struct remora *r);

enum remora_pull_flags {
	REMORA_PULL_WAIT = 1 /* return when it is local; otherwise at once */
};

/* Makes a range local. Higher priority first (0 = that of the background). */
REMORA_API REMORA_MUST_USE int remora_pull(struct remora *r, uint64_t off, uint64_t len,
					   int priority, unsigned flags);

/* The far side changed there: local clean data is dropped and fetched again on access. Changes of
 * our own that were not flushed are kept. */
REMORA_API REMORA_MUST_USE int remora_invalidate(struct remora *r, uint64_t off, uint64_t len);

enum remora_advice {
	REMORA_ADVICE_NORMAL = 0,
	REMORA_ADVICE_SEQUENTIAL = 1, /* widest readahead */
	REMORA_ADVICE_RANDOM = 2,     /* no readahead, smallest transfers */
	REMORA_ADVICE_WILLNEED = 3,   /* remora_pull() without waiting */
	REMORA_ADVICE_DONTNEED = 4    /* clean data may be dropped first */
};
REMORA_API REMORA_MUST_USE int remora_advise(struct remora *r, uint64_t off, uint64_t len,
					     enum remora_advice advice);

struct remora_status {
	uint64_t size, chunk;
	uint64_t local_bytes;
	uint64_t dirty_bytes; /* not flushed to the far side, as far as writes were looked for */
	uint64_t budget, inflight_bytes;
	uint64_t faults, fault_p50_ns, fault_p99_ns; /* that had to wait for the far side */
	uint64_t pulled_bytes, pushed_bytes, evicted_bytes;
	uint64_t flushes, pull_errors, push_errors;
	uint64_t collect_ns; /* how long the last look for writes that found some took */
	int last_error;	     /* negative errno value of the last failure, 0 = none */
	char last_error_text[128];
	int far_lost;	 /* 1 while the far side is away */
	char engine[64]; /* "userfaultfd, io_uring" and what fell back */
};
REMORA_API void remora_status(struct remora *r, struct remora_status *ret);

/*
 * Ends the use of the memory: flushes (unless read-only), unmaps, frees. Returns what the flush
 * returned; the handle is gone in any case, so flush first if a failure shall be mended. NULL is
 * fine.
 */
REMORA_API int remora_close(struct remora *r);

/* The same without the flush: what was not flushed is lost. */
REMORA_API void remora_discard(struct remora *r);

/* ---- direct use: a resource without a region, each call a trip to the far side ---- */

struct remora_store;

REMORA_API REMORA_MUST_USE int remora_store_open(struct remora_store **ret, const char *spec,
						 const struct remora_options *options,
						 struct remora_error *e);
REMORA_API uint64_t remora_store_size(const struct remora_store *s);
REMORA_API REMORA_MUST_USE int remora_store_read(struct remora_store *s, uint64_t off, void *buf,
						 size_t len);
REMORA_API REMORA_MUST_USE int remora_store_write(struct remora_store *s, uint64_t off,
						  const void *buf, size_t len);
/* 0: every write that had returned before is as durable as the far side can make it. -EIO: some may
 * be gone, because the far side was restarted since or failed to make them durable: write them
 * again. */
REMORA_API REMORA_MUST_USE int remora_store_flush(struct remora_store *s);
REMORA_API void remora_store_close(struct remora_store *s);

#ifdef __cplusplus
}
#endif

#endif
