/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file front end: a store as one regular file, which is the root of a FUSE mount. It speaks the
 * kernel's protocol on /dev/fuse itself; root mounts with mount(2), others through fusermount3.
 *
 * The store is a region's (managed) or a resource's own (direct). Nothing but the kernel's page
 * cache lies between the file and the store: a write(2) has reached the store when it returns,
 * pages written through mmap reach it when the kernel writes them back (msync, fsync, file_sync()),
 * and fsync is a FLUSH of the store.
 *
 * Threads: the loop's. Of the mount itself only pool threads touch anything (rule 10), for the
 * calls below that have a `done`.
 */
#ifndef REMORA_FRONT_FILE_H
#define REMORA_FRONT_FILE_H

#include "store/store.h"

struct file;

struct file_hooks { /* loop thread; any may be NULL */
	/* The kernel asked for these bytes, which its page cache did not have. */
	void (*accessed)(void *arg, struct range r);
	/* The mount is gone, not through us: umount, fusermount3 -u, an abort of the connection.
	 * Nothing is asked any more, nobody has the file open. Called once. */
	void (*gone)(void *arg);
	void *arg;
};

struct file_options {
	struct store *store; /* borrowed; must outlive the file */
	const char *path;    /* where; copied */
	const char *source;  /* what /proc/mounts calls the device: the spec; copied */
	bool read_only;	     /* also when the store is; reaches the kernel */
	/* Pages that the kernel has cached stay valid from one open to the next: nobody but this
	 * file changes the store (a region). */
	bool keep_cache;
	/* bytes for requests in flight, FILE_MEMORY_MIN at least; 0 = as many as are good */
	uint64_t memory_max;
	bool others; /* other users may open it (allow_other) */
	/* The mount point is taken away again as soon as file_fd() is open: the file has no name,
	 * and ends with its last user. */
	bool nameless;
	struct file_hooks hooks;
};

/* What requests in flight may take of a budget for all of it (0 = no limit); and what is left. */
static inline uint64_t file_memory_of(uint64_t budget)
{
	return budget ? MAX(budget / 8, FILE_MEMORY_MIN) : 0;
}
static inline uint64_t file_budget_left(uint64_t budget)
{
	return MAX(budget - MIN(budget, file_memory_of(budget)), budget / 2);
}

/*
 * Mounts. `path` is made, empty, when there is nothing, and removed again at the end if it was. A
 * mount point that is no empty regular file is refused, and so is one that is mounted on, unless
 * that is a dead mount of ours (its process is gone), which is cleared away. Returns when the
 * kernel has shaken hands: the file can be opened. Set-up code; runs the loop.
 */
MUST_USE int file_open(struct file **ret, struct loop *loop, const struct file_options *options,
		       struct err *e);

/* nameless: an open descriptor of the file, the caller's; once. */
int file_take_fd(struct file *file);

/* How it was mounted: "mount(2)", "fusermount3". Static. */
const char *file_how(const struct file *file);

/* Handles open now, mappings that outlived theirs included. */
unsigned file_users(const struct file *file);

/* While it is shut, opens for writing and write(2) fail with EROFS; what programs wrote before
 * through mmap is still taken. */
void file_shut(struct file *file, bool shut);

/* A call that takes its time; the struct is the file's until done(). Several at a time are fine. */
struct file_call {
	void (*done)(struct file_call *call, int err);
	struct range range;
	bool lazy;
	/* file.c's */
	struct file *file;
	struct link link;
	int what;
};

/* Makes the kernel write back all pages that programs have written through mmap. */
void file_sync(struct file *file, struct file_call *call);

/* The content of call->range changed behind the kernel's back: its pages are dropped. */
void file_invalidate(struct file *file, struct file_call *call);

/*
 * Takes the mount away. -EBUSY: the file is open, and not call->lazy; then nothing has happened.
 * lazy: the name goes at once, who has the file open goes on, and hooks.gone comes when the last of
 * them is done (at once when there is nobody).
 */
void file_detach(struct file *file, struct file_call *call);

/*
 * The end. What is still mounted is taken away (lazily), the connection to the kernel closed: who
 * still has the file open gets ENOTCONN, and nobody is left waiting. Requests that the store has
 * are waited for (abort it first if that may take long). Then the file is freed, and closed(arg)
 * called, from the loop. NULL file: closed(arg) is not called.
 */
void file_close(struct file *file, void (*closed)(void *arg), void *arg);
void file_close_wait(struct file *file); /* set-up code and tests: runs the loop */

/*
 * For a process that maps a file which it serves itself (nameless): with a guard it can be killed
 * even so. One is enough for a process; it is there before anything is written to the mapping, and
 * closed behind file_close(). Any thread.
 */
struct file_guard;
/* ThreadSanitizer takes every clone for a fork, and hears of no lock any more behind it: there is
 * no guard under it. */
#if defined(__SANITIZE_THREAD__)
#define IS_TSAN 1
#elif defined(__has_feature)
#define IS_TSAN __has_feature(thread_sanitizer)
#else
#define IS_TSAN 0
#endif
MUST_USE int file_guard_open(struct file_guard **ret);
void file_guard_close(struct file_guard *guard); /* NULL is fine */

struct file_counts {
	uint64_t reads, writes, syncs, other, failed;
	uint64_t bytes_read, bytes_written;
	uint64_t killed; /* requests answered early, because who asked was killed */
	struct hist read_latency, write_latency, sync_latency; /* without the kernel's part */
};
void file_count(const struct file *file, struct file_counts *ret);

#endif
