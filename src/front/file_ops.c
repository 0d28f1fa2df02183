/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each operation of the kernel does: one regular file, which is the root.
 *
 * Place: file_loop.c reads a request and calls file_operate(); what needs the store goes there from
 * here, and file_operated() makes the answer of it.
 *
 * Invariants.
 *  1. The file has the store's size and no other; a write ends where the file does.
 *  2. What the kernel says is looked at here once: lengths against what was read, offsets against
 *     the size.
 *  3. Nothing but write(2) and the like is refused while the file is shut: pages that were written
 *     through mmap before have no other place to go.
 *  4. What SEEK_HOLE says of the store is true of the file only as long as nobody can have written
 *     pages that the kernel still keeps: with a writer, all of it is data.
 *
 * Locking: none; the loop's thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "front/file_int.h"

#define ATTR_VALID_S (24 * 3600u) /* nobody else changes them */

/* FUSE_REQUEST_TIMEOUT of Linux 6.15; behind max_stack_depth the answer has 16 bits of seconds. */
#define FLAG2_TIMEOUT (1u << (42 - 32))

enum { FH_WRITER = 1u, FH_OWN = 2u };

/* ---- attributes ---- */

static void attr_fill(const struct file *f, struct fuse_attr_out *ret)
{
	*ret = (struct fuse_attr_out){
		.attr_valid = ATTR_VALID_S,
		.attr = {
			.ino = FUSE_ROOT_ID,
			.size = f->size,
			.blocks = f->size / 512 + (f->size % 512 != 0),
			.atime = f->atime_ns / NS_PER_S,
			.atimensec = (uint32_t)(f->atime_ns % NS_PER_S),
			.mtime = f->mtime_ns / NS_PER_S,
			.mtimensec = (uint32_t)(f->mtime_ns % NS_PER_S),
			.ctime = f->ctime_ns / NS_PER_S,
			.ctimensec = (uint32_t)(f->ctime_ns % NS_PER_S),
			.mode = f->mode,
			.nlink = 1,
			.uid = f->uid,
			.gid = f->gid,
			.blksize = PAGE_BYTES,
		},
	};
}

static int do_getattr(struct file *f, struct file_slot *s, const void *arg)
{
	(void)arg;
	attr_fill(f, &s->out.attr);
	s->body_len = sizeof(s->out.attr);
	return 0;
}

static uint64_t time_of(uint64_t s, uint32_t ns)
{
	return s > UINT64_MAX / NS_PER_S - 1 ? 0 : s * NS_PER_S + ns;
}

/* Kept in memory only. The owner keeps the right to read: file_sync() opens the file by name. */
static int do_setattr(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_setattr_in *in = arg;

	if (in->valid & FATTR_SIZE && in->size != f->size)
		return -EPERM;
	f->ctime_ns = env_wall_ns();
	if (in->valid & FATTR_MODE)
		f->mode = S_IFREG | S_IRUSR | (in->mode & 0777);
	if (in->valid & FATTR_UID)
		f->uid = in->uid;
	if (in->valid & FATTR_GID)
		f->gid = in->gid;
	if (in->valid & FATTR_ATIME)
		f->atime_ns = in->valid & FATTR_ATIME_NOW ? f->ctime_ns
							  : time_of(in->atime, in->atimensec);
	if (in->valid & FATTR_MTIME)
		f->mtime_ns = in->valid & FATTR_MTIME_NOW ? f->ctime_ns
							  : time_of(in->mtime, in->mtimensec);
	return do_getattr(f, s, arg);
}

static int do_statfs(struct file *f, struct file_slot *s, const void *arg)
{
	(void)arg;
	s->out.statfs = (struct fuse_statfs_out){
		.st = {
			.blocks = f->size / PAGE_BYTES + (f->size % PAGE_BYTES != 0),
			.files = 1,
			.bsize = PAGE_BYTES,
			.frsize = PAGE_BYTES,
			.namelen = NAME_LEN_MAX,
		},
	};
	s->body_len = sizeof(s->out.statfs);
	return 0;
}

/* ---- handles ---- */

static int do_open(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_open_in *in = arg;
	bool own = s->pid > 0 && (s->pid == atomic_load(&f->sync.opener) ||
				  s->pid == atomic_load(&f->mount.opener));
	bool writer = (in->flags & O_ACCMODE) != O_RDONLY;

	if (writer && (f->read_only || f->shut))
		return -EROFS;
	s->out.open = (struct fuse_open_out){
		.fh = (own ? FH_OWN : 0) | (writer ? FH_WRITER : 0),
		/* Without NOFLUSH a close(2), and so the end of a killed program, waits for
		 * everybody's pages. Those of a mapping are written at its end, in any case. */
		.open_flags = FOPEN_NOFLUSH |
			      (f->options.keep_cache || own ? FOPEN_KEEP_CACHE : 0),
	};
	s->body_len = sizeof(s->out.open);
	f->users += !own;
	f->writers += writer;
	return 0;
}

void file_handle_closed(struct file *f, uint64_t fh)
{
	CHECK(fh & FH_OWN || f->users);
	CHECK(!(fh & FH_WRITER) || f->writers);
	f->users -= !(fh & FH_OWN);
	f->writers -= fh & FH_WRITER ? 1 : 0;
	file_drop_if_unused(f);
}

static int do_release(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_release_in *in = arg;

	(void)s;
	file_handle_closed(f, in->fh);
	return 0;
}

/* close(2) by itself makes nothing safe. Kernels that know NOFLUSH (Linux 6.1) do not even ask. */
static int do_flush(struct file *f, struct file_slot *s, const void *arg)
{
	(void)f;
	(void)s;
	(void)arg;
	return 0;
}

/* ---- data ---- */

static int submit(struct file_slot *s, enum req_op op, struct range want)
{
	s->req = (struct req){ .op = op };
	s->want = want;
	file_slot_submit(s);
	return FILE_LATER;
}

static int do_read(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_read_in *in = arg;
	struct range want = range_of(in->offset, in->size);

	f->counts.reads++;
	if (in->size > FILE_IO_MAX)
		return -EINVAL;
	if (want.off >= f->size)
		return 0;
	want.len = MIN(want.len, f->size - want.off);
	if (f->hooks.accessed)
		f->hooks.accessed(f->hooks.arg, want);
	s->body = s->data;
	s->body_len = want.len;
	return want.len ? submit(s, REQ_READ, want) : 0;
}

static int do_write(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_write_in *in = arg;
	struct range want = range_of(in->offset, in->size);

	f->counts.writes++;
	if (in->size != ((const struct fuse_in_header *)(const void *)s->head)->len - FILE_HEAD_LEN)
		return -EINVAL;
	s->writeback = in->write_flags & FUSE_WRITE_CACHE;
	if (f->read_only || (f->shut && !s->writeback))
		return -EROFS;
	if (want.len && want.off >= f->size)
		return -ENOSPC;
	if (want.len)
		want.len = MIN(want.len, f->size - want.off);
	f->mtime_ns = f->ctime_ns = env_wall_ns();
	s->out.write = (struct fuse_write_out){ .size = (uint32_t)want.len };
	s->body_len = sizeof(s->out.write);
	return want.len ? submit(s, REQ_WRITE, want) : 0;
}

static int do_fsync(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_fsync_in *in = arg;

	/* Our own, for file_sync(), is about the kernel's pages, which it has written by now. */
	if (in->fh & FH_OWN)
		return 0;
	f->counts.syncs++;
	if (f->store->info.flush == CAP_NONE)
		return 0;
	return submit(s, REQ_FLUSH, range_of(0, 0));
}

static int do_fallocate(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_fallocate_in *in = arg;
	struct range want = range_of(in->offset, in->length);
	bool zeroes = in->mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
	bool keeps = in->mode & FALLOC_FL_KEEP_SIZE;

	if (in->mode & ~(uint32_t)(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_ZERO_RANGE))
		return -EOPNOTSUPP;
	if (f->read_only || f->shut)
		return -EROFS;
	if (!range_valid(want))
		return -EFBIG;
	if (!range_within(want, f->size)) {
		/* What lies behind the end holds nothing, and can hold nothing. */
		if (!zeroes || !keeps)
			return -ENOSPC;
		want = range_cut(want, range_of(0, f->size));
	}
	if (!zeroes || !want.len)
		return 0;
	f->mtime_ns = f->ctime_ns = env_wall_ns();
	return submit(s, REQ_ZERO, want);
}

/* ---- holes ---- */

static int seek_answer(struct file_slot *s, uint64_t off)
{
	s->out.lseek = (struct fuse_lseek_out){ .offset = off };
	s->body_len = sizeof(s->out.lseek);
	return 0;
}

static void seek_submit(struct file_slot *s)
{
	s->extents = (struct extents){ .at = (void *)s->data, .max = FILE_EXTENTS };
	s->req = (struct req){ .op = REQ_EXTENTS, .extents = &s->extents };
	file_slot_submit(s);
}

static int do_lseek(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_lseek_in *in = arg;

	if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
		return -EINVAL;
	if (in->offset >= f->size)
		return -ENXIO;
	if (f->writers)
		return seek_answer(s, in->whence == SEEK_DATA ? in->offset : f->size);
	s->whence = in->whence;
	s->want = range_between(in->offset, f->size);
	seek_submit(s);
	return FILE_LATER;
}

/* At the end of the file there is a hole always, and no data. */
static int seek_go_on(struct file *f, struct file_slot *s)
{
	for (size_t i = 0; i < s->extents.count; i++) {
		if (s->extents.at[i].zero == (s->whence == SEEK_HOLE))
			return seek_answer(s, s->want.off + s->at);
		s->at += MIN(s->extents.at[i].len, s->want.len - s->at);
	}
	if (s->at < s->want.len && s->extents.count) {
		seek_submit(s);
		return FILE_LATER;
	}
	return s->whence == SEEK_HOLE ? seek_answer(s, f->size) : -ENXIO;
}

/* ---- the protocol itself ---- */

static int do_init(struct file *f, struct file_slot *s, const void *arg)
{
	struct fuse_init_in in = { 0 };
	size_t len = ((const struct fuse_in_header *)(const void *)s->head)->len;
	uint32_t pages = f->io_max / PAGE_BYTES;
	uint16_t background = (uint16_t)MIN(FILE_BACKGROUND_MAX, f->slots * 3 / 4);

	memcpy(&in, arg, MIN(len - sizeof(struct fuse_in_header), sizeof(in)));
	f->greeted = true;
	f->kernel_major = in.major;
	f->kernel_minor = in.minor;
	if (in.major != FUSE_KERNEL_VERSION || in.minor < FILE_MINOR_MIN)
		return -EPROTO;
	s->out.init = (struct fuse_init_out){
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = FILE_READAHEAD,
		/* Not the writeback cache: with it the kernel shows a root file of size 0. */
		.flags = in.flags & (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO |
				     FUSE_MAX_PAGES | FUSE_INIT_EXT),
		.max_background = background,
		.congestion_threshold = (uint16_t)(background * 3 / 4),
		.max_write = f->io_max,
		.time_gran = 1,
		.max_pages = (uint16_t)pages,
	};
	if (f->options.nameless && in.flags & FUSE_INIT_EXT && in.flags2 & FLAG2_TIMEOUT) {
		const uint16_t seconds = FILE_TIMEOUT_S;

		s->out.init.flags2 = FLAG2_TIMEOUT;
		memcpy((uint8_t *)s->out.init.unused + sizeof(uint32_t), &seconds, sizeof(seconds));
	}
	s->body_len = sizeof(s->out.init);
	return 0;
}

static int do_interrupt(struct file *f, struct file_slot *s, const void *arg)
{
	const struct fuse_interrupt_in *in = arg;

	(void)s;
	file_interrupt(f, in->unique);
	return FILE_SILENT;
}

static int do_forget(struct file *f, struct file_slot *s, const void *arg)
{
	(void)f;
	(void)s;
	(void)arg;
	return FILE_SILENT;
}

struct operation {
	uint32_t opcode;
	size_t arg_len; /* at least */
	int (*run)(struct file *f, struct file_slot *s, const void *arg);
};

/* What is not here is ENOSYS, which the kernel mostly remembers, and does without. */
static const struct operation operations[] = {
	{ FUSE_READ, sizeof(struct fuse_read_in), do_read },
	{ FUSE_WRITE, sizeof(struct fuse_write_in), do_write },
	{ FUSE_FSYNC, sizeof(struct fuse_fsync_in), do_fsync },
	{ FUSE_FSYNCDIR, sizeof(struct fuse_fsync_in), do_fsync },
	{ FUSE_GETATTR, sizeof(struct fuse_getattr_in), do_getattr },
	{ FUSE_SETATTR, sizeof(struct fuse_setattr_in), do_setattr },
	{ FUSE_OPEN, sizeof(struct fuse_open_in), do_open },
	{ FUSE_RELEASE, sizeof(struct fuse_release_in), do_release },
	{ FUSE_FLUSH, 0, do_flush },
	{ FUSE_LSEEK, sizeof(struct fuse_lseek_in), do_lseek },
	{ FUSE_FALLOCATE, sizeof(struct fuse_fallocate_in), do_fallocate },
	{ FUSE_STATFS, 0, do_statfs },
	{ FUSE_INTERRUPT, sizeof(struct fuse_interrupt_in), do_interrupt },
	{ FUSE_FORGET, 0, do_forget },
	{ FUSE_BATCH_FORGET, 0, do_forget },
	{ FUSE_INIT, 4 * sizeof(uint32_t), do_init },
};

static const struct operation *operation_find(uint32_t opcode)
{
	for (size_t i = 0; i < ARRAY_LEN(operations); i++)
		if (operations[i].opcode == opcode)
			return &operations[i];
	return NULL;
}

/* Who still asks when the file is being closed is not left waiting; what only tells us is heard. */
static bool is_refused_at_the_end(const struct operation *op)
{
	return op->run != do_release && op->run != do_interrupt && op->run != do_forget;
}

int file_operate(struct file *f, struct file_slot *s, size_t len)
{
	const struct operation *op = operation_find(s->opcode);
	const void *arg = s->head + sizeof(struct fuse_in_header);
	uint64_t counted = f->counts.reads + f->counts.writes + f->counts.syncs;
	int r;

	if (!op)
		r = f->closing ? -ENOTCONN : -ENOSYS;
	else if (len < sizeof(struct fuse_in_header) + op->arg_len)
		r = -EINVAL;
	else if (f->closing && is_refused_at_the_end(op))
		r = -ENOTCONN;
	else
		r = op->run(f, s, arg);
	f->counts.other += counted == f->counts.reads + f->counts.writes + f->counts.syncs;
	return r;
}

int file_operated(struct file *f, struct file_slot *s)
{
	switch (s->opcode) {
	case FUSE_LSEEK:
		return seek_go_on(f, s);
	case FUSE_READ:
	case FUSE_WRITE:
		s->at += s->req.range.len;
		if (s->at >= s->want.len)
			return 0;
		file_slot_submit(s);
		return FILE_LATER;
	default:
		return 0;
	}
}
