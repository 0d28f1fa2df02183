/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The near store of a region: fast local memory that holds what has been pulled and what has been
 * written. It is synchronous, works in whole pages, and knows nothing of chunks, states or the far
 * side: the region tells it what to keep and what to drop.
 *
 * A page is *absent* or *present*. Where a program maps the near store (`mapped`), a present page
 * is besides *open* (the program reads and writes it without anybody noticing, writes are collected
 * later) or *shut* (the next access faults, and the front end asks the region). An access to an
 * absent page faults, too.
 *
 * Errors are -ENOMEM/-ENOSPC (no memory), -ESRCH (the mapping is gone). -EEXIST and -EAGAIN of the
 * kernel are dealt with below this interface. A near store on a disk has two more: -EAGAIN of put()
 * and write(): there is no room now, it is being made, and wake() tells when; -EBADMSG of read()
 * and write(): what was kept of this clean chunk is not what it was, the region is to drop it.
 *
 * Threads: open() may be called from the fault thread while it holds the region's lock, fill() from
 * any thread; everything else comes from the region's loop thread.
 */
#ifndef REMORA_REGION_NEAR_H
#define REMORA_REGION_NEAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/list.h"
#include "base/range.h"

struct near;

/* One who waits until what was written is safe here. */
struct near_sync {
	struct link link;
	uint64_t target; /* the near store's */
	void (*done)(struct near_sync *sync, int err);
};

struct near_ops {
	/* Makes absent pages present (and open, and wakes who waits for them) with this content. A
	 * page that is present already is left alone: what was written there is newer (rule 2). src
	 * NULL = zeros. */
	int (*put)(struct near *near, uint64_t off, const void *src, size_t len);

	/* Content of present pages; `buf` gets what is there. */
	int (*read)(struct near *near, uint64_t off, void *buf, size_t len);

	/* Writes, any alignment within present pages, whole pages where they are absent. Those
	 * become present and shut. Not reported by collect(): the caller marks the map itself. */
	int (*write)(struct near *near, uint64_t off, const void *src, size_t len);

	/* The pages become absent and their memory is given back. Only of pages that are shut,
	 * where mapped. */
	int (*drop)(struct near *near, struct range r);

	/* ---- mapped only; NULL otherwise ---- */

	/* Present pages become open; whoever waits for them is woken. Absent pages within are an
	 * error of the caller's. */
	int (*open)(struct near *near, struct range r);

	/* Present pages become shut. A write that came before is still reported by collect(). */
	int (*shut)(struct near *near, struct range r);

	/* Calls found() for each run of pages that the program has written since the last collect()
	 * of them, and arms them again. Present pages only. */
	int (*collect)(struct near *near, struct range r,
		       void (*found)(void *arg, struct range pages), void *arg);

	/* Accesses to absent pages of the range fail (SIGBUS) from now on, waiting ones too; put()
	 * heals what it puts, heal() makes accesses fault again. */
	int (*fail)(struct near *near, struct range r);
	int (*heal)(struct near *near, struct range r);

	/* put() in steps, so that a thread can do the long one; NULL = there is only put().
	 * claim(): these whole pages, all absent, are going to be put, and nobody else touches them
	 * until they are. fill(): any thread; *ret_done tells how many bytes are in, also when it
	 * fails; open and heal as put() does. unclaim(): those that fill() did not do are absent
	 * again. */
	void (*claim)(struct near *near, struct range r);
	int (*fill)(struct near *near, uint64_t off, const void *src, size_t len, size_t *ret_done);
	void (*unclaim)(struct near *near, struct range r);

	/* ---- what survives its process only; NULL otherwise ---- */

	/* Before anything else: what is there. Ranges of whole chunks that are clean; of pages that
	 * are dirty, all others of their chunks being absent. */
	void (*recover)(struct near *near,
			void (*found)(void *arg, struct range pages, bool dirty), void *arg);

	/* These whole chunks are what the far store has for good. What is not settled is found
	 * dirty by recover() if it came by write(), and not found if it came by put(). */
	void (*settled)(struct near *near, struct range r);

	/* 0: what was written so far would survive a power cut; -EINPROGRESS: sync->done() will
	 * tell, later. */
	int (*sync)(struct near *near, struct near_sync *sync);

	/* Room is wanted, and nothing can be dropped: true = some will be given back, wake() tells;
	 * false = nothing of it would be worth it. */
	bool (*tidy)(struct near *near);

	/* Nothing more will be asked for but close(), once done() has been called, later:
	 * everything is safe, as far as it can be, and no thread is at it. */
	void (*stop)(struct near *near, void (*done)(void *arg), void *arg);

	void (*close)(struct near *near);
};

struct near {
	const struct near_ops *ops;
	bool mapped;
	/* mapped: the program may write; otherwise nothing has ever to be collected */
	bool writable;

	/* of one that survives its process */
	uint32_t chunk;	       /* what it is made for; 0 = any */
	uint64_t partial;      /* chunks that recover() will find dirty in places, at most */
	uint64_t extra_bytes;  /* what it takes besides the pages, now */
	uint64_t extra_least;  /* what a budget must have for that */
	uint64_t damaged_bytes; /* clean chunks that had to be dropped for -EBADMSG */
	/* the region's: there may be room again */
	void (*wake)(void *arg);
	void *wake_arg;
};

/* A near store in a memfd that no program maps: for request front ends (file, block, network).
 * near_disk.h has one in a directory. */
MUST_USE int near_memfd_open(struct near **ret, uint64_t size);

/* The memfd with its plain read, write and drop, shared by both kinds of near store. */
int near_fd_read(int fd, uint64_t off, void *buf, size_t len);
int near_fd_write(int fd, uint64_t off, const void *src, size_t len);
int near_fd_drop(int fd, struct range r);

#endif
