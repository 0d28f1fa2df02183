/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the file front end, which file.c (life), file_loop.c (the kernel's requests, their
 * replies, and who was killed meanwhile), file_ops.c (what each operation does), file_call.c (what
 * takes its time) and file_mount.c (the mount table) share.
 */
#ifndef REMORA_FRONT_FILE_INT_H
#define REMORA_FRONT_FILE_INT_H

#include <linux/fuse.h>
#include <stdatomic.h>

#include "front/file.h"
#include "io/pool.h"

/* A WRITE's header and argument end where a page begins, so that its data are whole pages. */
#define FILE_HEAD_LEN (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
static_assert(FILE_HEAD_LEN < PAGE_BYTES, "they fit into the page before");
static_assert(FILE_EXTENTS * sizeof(struct extent) <= FILE_IO_MAX, "the array is in the buffer");

#define FILE_ANSWER_NS ((FILE_TIMEOUT_S - FILE_TIMEOUT_S / 5) * NS_PER_S)
#define FILE_MINOR_MIN 31u /* of the kernel's protocol 7: Linux 5.4 */

/* ---- file_apart.c ---- */

/* Code that runs in a process apart: sanitizers keep their books per thread. */
#define APART_CODE __attribute__((no_sanitize("address", "thread", "undefined")))

/* Runs call(arg, fd), which is APART_CODE of bare system calls, in a process that has our memory
 * but not our descriptors: `fd` is what keep_fd is here, if >= 0. close_fd: what must be closed at
 * the least. Not on the loop's thread. */
long apart_run(long (*call)(void *arg, int fd), void *arg, int keep_fd, int close_fd);

/* ---- file_mount.c: blocking calls, for threads of the pool ---- */

struct file_place {
	char *path;   /* absolute, without links */
	dev_t dev;    /* of the mount; 0 = not mounted */
	bool helper;  /* fusermount3 mounts and unmounts */
	bool made;    /* the mount point is ours: made_dev, made_ino */
	dev_t made_dev;
	ino_t made_ino;
};

/* Looks for the mount point, clears dead mounts away, makes it where it is missing, mounts.
 * *ret_fd: the connection to the kernel, non-blocking. */
MUST_USE int place_mount(struct file_place *place, const struct file_options *options, int *ret_fd,
			 struct err *e);
/* Lets the kernel read far ahead, where we may. */
void place_tune(const struct file_place *place);
/* -EBUSY: in use, or mounted over. Fine when it is not mounted any more. close_fd: the connection.
 */
MUST_USE int place_detach(const struct file_place *place, bool lazy, int close_fd);
void place_remove(struct file_place *place); /* the mount point, if it was made and is unchanged */
void place_done(struct file_place *place);

/* ---- shared state ---- */

enum file_what {
	FILE_SYNC,
	FILE_INVALIDATE,
	FILE_DETACH,
	FILE_DROP, /* closes own_fd */
};

/* Calls of one kind, one after the other: no more than one thread of the pool each, so that the
 * store, which may need the pool too, always gets on. */
struct file_lane {
	struct work work;
	struct file *file;
	struct list queue;     /* file_call.link */
	struct file_call *now; /* the one that the pool has */
	int own_fd;	       /* file->own_fd, for the thread; what it leaves here becomes that */
	/* the thread that opens the file for us: its handle is no user's */
	_Atomic pid_t opener;
};

/* One request of the kernel. */
struct file_slot {
	struct req req;
	struct file *file;
	struct link link; /* file->idle */
	uint8_t *head;	  /* FILE_HEAD_LEN bytes, then `data` */
	uint8_t *data;	  /* FILE_IO_MAX bytes, page aligned */
	uint32_t opcode;
	pid_t pid; /* the thread that asks; 0 = not in sight */
	uint64_t unique;
	uint64_t start_ns;
	struct range want; /* READ, WRITE: what the store is asked for, and `at` bytes of it done */
	uint64_t at;
	uint32_t whence;  /* LSEEK */
	bool busy;	  /* the store has it */
	bool answered;	  /* already: what the store says is dropped */
	bool interrupted; /* the kernel said so */
	bool writeback;	  /* pages of mmap: nobody else has these bytes any more */
	struct extents extents;
	union { /* the answer's body */
		struct fuse_init_out init;
		struct fuse_attr_out attr;
		struct fuse_open_out open;
		struct fuse_write_out write;
		struct fuse_statfs_out statfs;
		struct fuse_lseek_out lseek;
	} out;
	const void *body; /* what is sent: &out, or data */
	size_t body_len;
};

struct file {
	struct loop *loop;
	struct store *store;
	struct file_options options; /* its texts are valid only during file_open() */
	struct file_hooks hooks;
	struct file_place place;
	int fd; /* the connection; -1 = none */
	/*
	 * An epoll of it, which the loop waits for in its place: an io_uring keeps a descriptor
	 * that it waits for open, and lives as long as its memory is mapped. So a process whose
	 * memory others share (file_apart.c) would end, and the connection would not.
	 */
	int ready_fd;
	struct op poll;
	struct timer watch; /* set while the store has requests: who asked may be killed */
	uint8_t *mem;
	size_t mem_len;
	struct list idle;
	unsigned busy; /* slots that the store has */
	uint32_t io_max; /* longest READ and WRITE agreed on */
	/* set-up */
	struct work setup;
	bool setup_done, greeted;
	int setup_res;
	uint32_t kernel_major, kernel_minor;
	struct err err;
	/* attributes, and who has it open */
	uint64_t size, atime_ns, mtime_ns, ctime_ns;
	uint32_t mode;
	uid_t uid;
	gid_t gid;
	bool read_only, shut;
	unsigned users, writers;
	int user_fd; /* nameless: until it is taken */
	/* A handle of our own that keeps the mount alive when it has no name any more, so that the
	 * kernel can be made to write back; dropped when the last user is gone. -1 = none */
	int own_fd;
	struct file_call drop;
	bool dropping;
	struct file_lane sync, mount;
	/* the end */
	bool dead;	/* the kernel's side has ended */
	bool detached;	/* by us, not lazily: that it ends is no news */
	bool gone_told;
	bool closing, posted, ending, ended, stopping;
	struct post post;
	struct work end;
	void (*closed)(void *arg);
	void *closed_arg;
	struct file_counts counts;
	unsigned slots; /* of them, those that have a buffer */
	struct file_slot slot[FILE_REQS_MAX];
};

/* ---- file_loop.c ---- */

MUST_USE int file_slots_open(struct file *f);
MUST_USE int file_listen_open(struct file *f);
void file_listen(struct file *f); /* waits for requests, unless it does or there is no slot */
/* To the store, or the next piece of it. The slot's req.op and `want` are set. */
void file_slot_submit(struct file_slot *s);
void file_answer_all(struct file *f, int err); /* whatever the store has: answered now */
void file_interrupt(struct file *f, uint64_t unique);
void file_watch(struct timer *timer);

/* ---- file_ops.c ---- */

enum { FILE_LATER = 1, FILE_SILENT = 2 };
/* -errno or 0: the reply is body, body_len; FILE_LATER: the store has it; FILE_SILENT: none. */
MUST_USE int file_operate(struct file *f, struct file_slot *s, size_t len);
/* The store is done: as above. */
MUST_USE int file_operated(struct file *f, struct file_slot *s);
void file_handle_closed(struct file *f, uint64_t fh);

/* ---- file_call.c ---- */

void file_lanes_init(struct file *f);
void file_lanes_fail(struct file *f); /* closing: what has not begun yet */
void file_drop_if_unused(struct file *f);
void file_tell_gone(struct file *f); /* if that is due */
/* Opens the file by its name, as nobody's handle; pool thread. */
int file_open_own(struct file *f, struct file_lane *lane);

/* ---- file.c ---- */

void file_settle(struct file *f); /* goes on with the end; may free f */

#endif
