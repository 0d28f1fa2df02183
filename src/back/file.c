/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file:PATH - a regular file or a block device. Requests become operations of the loop (io/loop.h),
 * which are asynchronous on io_uring and run on threads on epoll; EXTENTS, which no engine has,
 * runs on the pool.
 *
 *   submit ── in the page cache? (preadv2 NOWAIT) ── done
 *      └── waiting ── an op is free ── op_start ── piece after piece ── op_end ── done
 *
 * direct=1 (O_DIRECT): offsets, lengths and buffers must be aligned. info.align says so for the
 * first two; a buffer that is not aligned goes through one of a few bounce buffers, for which ops
 * wait. The rest of a file behind its last whole block cannot be read or written with O_DIRECT, so
 * that part goes through a second descriptor without it. It begins at a page: a direct write beside
 * a buffered one in the same page makes the kernel report -EIO at the next sync.
 *
 * Invariants: an op is idle, or has a request and is in flight, or waits for a bounce buffer. A
 * file that ends before the size it had when it was opened gives -EIO, never zeros. The kernel
 * reports a failed sync once and then forgets the data, so a later success would say nothing of
 * what was written before: after a failure the file counts as another instance, as a server does
 * that was restarted, and whoever has written knows that it must be written again. For the same
 * reason there is one sync at a time: of two, the wrong one might get to hear of the failure.
 *
 * Locking: loop thread only, except for extents_call(), which runs on the pool and touches its
 * request's extents.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include "back/back.h"
#include "base/cleanup.h"
#include "io/pool.h"
#include "store/sub.h"

/* A longer copy out of the page cache would hold up the loop: that belongs on a thread. */
#define NOWAIT_LEN_MAX (256 * KIB)
#define DIRECT_ALIGN_DEFAULT 4096u /* where the kernel does not tell: good for every disk */

struct file_op {
	struct work work; /* work.op for everything */
	struct file *file;
	struct req *req; /* NULL = idle */
	size_t at, piece; /* bytes done; bytes asked for now */
	uint64_t instance; /* of the file when the request began */
	uint8_t *bounce;
	struct link link; /* file->idle or file->bounce_waiting */
};

struct file {
	struct store store;
	char *path;
	/* tail_fd: without O_DIRECT, for what is behind tail_at; -1 = none */
	int fd, tail_fd;
	uint64_t tail_at;	/* 0 without direct */
	uint32_t buffer_align;	/* 1 = any buffer will do */
	bool real;		/* not a simulated one: system calls of our own work on it */
	bool direct, no_punch;
	bool nowait;		/* reads from the page cache are tried first */
	/* how: RWF_NOWAIT; 0 on tmpfs, which does not know it and never waits */
	int nowait_flags;
	int sync_err; /* the last one, for status */
	bool syncing;
	struct list sync_waiting; /* FLUSHes that came during a sync */
	struct list sync_with;	  /* those that the sync under way answers, too */
	struct list idle, waiting; /* ops; requests */
	struct list bounce_waiting; /* ops */
	uint8_t *bounces, *bounce_idle[BACK_BOUNCES];
	size_t bounce_idle_count;
	struct file_op op[BACK_OPS_MAX];
};

static void op_piece(struct file_op *o);
static void op_allocate_done(struct op *op, int res);

/* ---- ops ---- */

static void op_start(struct file *f, struct file_op *o, struct req *req);
static void file_submit(struct store *store, struct req *req);

static void file_start_waiting(struct file *f)
{
	while (!list_empty(&f->idle) && !list_empty(&f->waiting)) {
		struct file_op *o = LIST_ENTRY(list_pop_front(&f->idle), struct file_op, link);

		op_start(f, o, LIST_ENTRY(list_pop_front(&f->waiting), struct req, link));
	}
}

static void bounce_put(struct file *f, struct file_op *o)
{
	struct link *k;

	if (!o->bounce)
		return;
	f->bounce_idle[f->bounce_idle_count++] = TAKE_PTR(o->bounce);
	k = list_pop_front(&f->bounce_waiting);
	if (k)
		op_piece(LIST_ENTRY(k, struct file_op, link));
}

static void op_end(struct file_op *o, int err)
{
	struct file *f = o->file;
	struct req *req = TAKE_PTR(o->req);

	req->ret_instance = o->instance;
	bounce_put(f, o);
	list_push_front(&f->idle, &o->link);
	file_start_waiting(f);
	req_done(req, err == -ECANCELED && f->store.aborting ? -ESHUTDOWN : err);
}

static void op_piece_done(struct op *op, int res)
{
	struct file_op *o = CONTAINER_OF(op, struct file_op, work.op);
	const struct req *req = o->req;
	const struct store_info *info = &o->file->store.info;

	if (res <= 0) {
		/* 0: the file has become shorter than it was, or the device takes nothing more. */
		op_end(o, res ? res : -EIO);
		return;
	}
	CHECK((size_t)res <= o->piece);
	if (o->bounce && req->op == REQ_READ)
		memcpy(req->data.base + o->at, o->bounce, (size_t)res);
	o->at += (size_t)res;
	if (o->at == req->range.len)
		op_end(o, 0);
	else if (req->range.off + o->at < o->file->tail_at && o->at % info->align)
		/* O_DIRECT: the end of the file has moved into this block, and with it the rest */
		op_end(o, -EIO);
	else
		op_piece(o);
}

/* The next piece of a READ or WRITE. */
static void op_piece(struct file_op *o)
{
	struct file *f = o->file;
	const struct req *req = o->req;
	uint64_t off = req->range.off + o->at, left = req->range.len - o->at;
	uint8_t *buf = req->data.base + o->at;
	int fd = f->fd;

	if (f->tail_fd >= 0 && off >= f->tail_at)
		fd = f->tail_fd;
	else if (f->tail_fd >= 0)
		left = MIN(left, f->tail_at - off);
	if (fd == f->fd && (uintptr_t)buf % f->buffer_align) {
		if (!o->bounce && !f->bounce_idle_count) {
			list_push_back(&f->bounce_waiting, &o->link);
			return;
		}
		if (!o->bounce)
			o->bounce = f->bounce_idle[--f->bounce_idle_count];
		left = MIN(left, BACK_BOUNCE_LEN);
		if (req->op == REQ_WRITE)
			memcpy(o->bounce, buf, left);
		buf = o->bounce;
	} else {
		bounce_put(f, o); /* had it for the part before */
	}
	o->piece = left;
	o->work.op.done = op_piece_done;
	if (req->op == REQ_READ)
		op_read(f->store.loop, &o->work.op, fd, buf, left, off);
	else
		op_write(f->store.loop, &o->work.op, fd, buf, left, off);
}

static void sync_failed(struct file *f, int err)
{
	struct env *env = loop_env(f->store.loop);

	f->sync_err = err;
	log_error(&env->log, "file %s: what was written could not be made durable: %s", f->path, strerror(-err));
	f->store.info.instance = rng_next(&env->rng) | 1;
	store_emit(&f->store, STORE_RESTARTED);
}

static void op_sync_done(struct op *op, int res)
{
	struct file_op *o = CONTAINER_OF(op, struct file_op, work.op);
	struct file *f = o->file;
	struct list answered;
	struct link *k;

	if (res >= 0)
		res = env_fault(loop_env(f->store.loop), "file.sync");
	if (res < 0 && res != -ECANCELED)
		sync_failed(f, res);
	f->syncing = false;
	list_init(&answered);
	list_splice_back(&answered, &f->sync_with);
	k = list_pop_front(&f->sync_waiting);
	list_splice_back(&f->sync_with, &f->sync_waiting);
	if (k)
		file_submit(&f->store, LIST_ENTRY(k, struct req, link));
	while ((k = list_pop_front(&answered))) {
		struct req *req = LIST_ENTRY(k, struct req, link);

		req->ret_instance = o->instance;
		req_done(req, res < 0 ? res : 0);
	}
	op_end(o, res < 0 ? res : 0);
}

static void op_allocate_start(struct file_op *o)
{
	struct file *f = o->file;
	struct range r = o->req->range;
	int mode = f->no_punch ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE;

	o->work.op.done = op_allocate_done;
	op_allocate(f->store.loop, &o->work.op, f->fd, mode | FALLOC_FL_KEEP_SIZE, r.off, r.len);
}

/* A hole is zeros that need no space; where there are none, ZERO can still have a range zeroed;
 * else store.c writes. */
static void op_allocate_done(struct op *op, int res)
{
	struct file_op *o = CONTAINER_OF(op, struct file_op, work.op);

	if (res == -EOPNOTSUPP && !o->file->no_punch && o->req->op == REQ_ZERO) {
		o->file->no_punch = true;
		op_allocate_start(o);
		return;
	}
	op_end(o, res < 0 ? res : 0);
}

/* ---- extents ---- */

/* On the pool. */
static int extents_call(struct work *work)
{
	struct file_op *o = CONTAINER_OF(work, struct file_op, work);
	const struct req *req = o->req;
	struct extents *x = req->extents;
	uint64_t at = req->range.off, end = range_end(req->range);
	int fd = o->file->fd;
	struct stat st;

	while (at < end && x->count < x->max) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);
		uint64_t stop = end;
		bool zero = data < 0 || (uint64_t)data > at;

		if (data < 0 && errno != ENXIO) /* ENXIO: no data from here on */
			return errno == EINVAL ? -EOPNOTSUPP : -errno;
		if (data >= 0 && zero)
			stop = (uint64_t)data;
		if (!zero) {
			off_t hole = lseek(fd, (off_t)at, SEEK_HOLE);

			if (hole < 0)
				return -errno;
			stop = MAX((uint64_t)hole, at + 1);
		}
		stop = MIN(stop, end);
		x->at[x->count++] = (struct extent){ .len = stop - at, .zero = zero };
		at = stop;
	}
	/* Behind the end of a file that has shrunk there is no data either, but nobody said that it
	 * was zeros. */
	if (fstat(fd, &st))
		return -errno;
	return st.st_size < 0 || (uint64_t)st.st_size < o->file->store.info.size ? -EIO : 0;
}

static void extents_done(struct op *op, int res)
{
	struct file_op *o = CONTAINER_OF(op, struct file_op, work.op);

	if (res < 0)
		o->req->extents->count = 0;
	op_end(o, res);
}

/* ---- requests ---- */

static void op_start(struct file *f, struct file_op *o, struct req *req)
{
	o->req = req;
	o->at = 0;
	o->instance = f->store.info.instance;
	switch (req->op) {
	case REQ_READ:
	case REQ_WRITE:
		op_piece(o);
		break;
	case REQ_FLUSH:
		o->work.op.done = op_sync_done;
		op_sync(f->store.loop, &o->work.op, f->fd);
		break;
	case REQ_EXTENTS:
		o->work.op.done = extents_done;
		o->work.call = extents_call;
		pool_run(f->store.loop, &o->work);
		break;
	default:
		op_allocate_start(o);
		break;
	}
}

/* All of it from the page cache, without waiting for anything. */
static bool read_cached(struct file *f, struct req *req)
{
	struct iovec iov = { req->data.base, req->range.len };
	ssize_t n = preadv2(f->fd, &iov, 1, (off_t)req->range.off, f->nowait_flags);

	if (n < 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
		f->nowait = false;
	return n > 0 && (uint64_t)n == req->range.len;
}

static void file_submit(struct store *store, struct req *req)
{
	struct file *f = CONTAINER_OF(store, struct file, store);

	if (req->op == REQ_FLUSH && f->syncing) {
		list_push_back(&f->sync_waiting, &req->link);
		return;
	}
	if (req->op == REQ_READ && f->nowait && req->range.len <= NOWAIT_LEN_MAX &&
	    read_cached(f, req)) {
		req_done(req, 0);
		return;
	}
	if (req->op == REQ_FLUSH)
		f->syncing = true;
	req_queue(&f->waiting, req);
	file_start_waiting(f);
}

static void file_abort(struct store *store)
{
	struct file *f = CONTAINER_OF(store, struct file, store);
	struct list failed, failed_ops;
	struct link *k;

	list_init(&failed);
	list_init(&failed_ops);
	list_splice_back(&failed, &f->waiting);
	list_splice_back(&failed, &f->sync_waiting);
	list_splice_back(&failed, &f->sync_with);
	list_splice_back(&failed_ops, &f->bounce_waiting);
	for (size_t i = 0; i < BACK_OPS_MAX; i++)
		op_cancel(store->loop, &f->op[i].work.op);
	while ((k = list_pop_front(&failed_ops)))
		op_end(LIST_ENTRY(k, struct file_op, link), -ESHUTDOWN);
	while ((k = list_pop_front(&failed)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
}

static void file_free(struct file *f)
{
	if (f->store.loop) {
		loop_close_fd(f->store.loop, f->fd);
		if (f->tail_fd >= 0)
			loop_close_fd(f->store.loop, f->tail_fd);
	}
	free(f->bounces);
	free(f->path);
}

static void file_close(struct store *store)
{
	file_free(CONTAINER_OF(store, struct file, store));
	store_closed(store);
}

static void file_status(struct store *store, char *buf, size_t len)
{
	const struct file *f = CONTAINER_OF(store, struct file, store);

	snprintf(buf, len, "direct=%d align=%u sync_error=%d", f->direct, store->info.align, -f->sync_err);
}

static const struct store_ops file_ops = {
	.name = "file",
	.submit = file_submit,
	.abort = file_abort,
	.close = file_close,
	.status = file_status,
};

/* ---- opening ---- */

/* What is asked for, while it is opened. */
struct file_opening {
	struct file *f;
	const struct store_open *how;
	struct spec_args *args;
	struct err *e;
	bool direct, read_only, has_size;
	uint64_t size; /* option size= */
	bool made;     /* by us: removed again when something fails */
	uint64_t bytes;
	struct stat st;
};

static int opening_error(struct file_opening *w, int err)
{
	const char *path = w->f->path;
	const struct spec_part *part = w->args->part;
	const char *colon = strchr(path, ':'), *slash = strchr(path, '/');

	if (!w->read_only && (err == -EACCES || err == -EPERM || err == -EROFS || err == -ETXTBSY))
		return err_set(w->e, err, "%s cannot be opened for writing: %s; for reading only: file:%s?readonly=1",
			       path, strerror(-err), path);
	if (err == -ENOENT && part->at == part->rest_at && colon && (!slash || colon < slash))
		return err_set(w->e, err, "%s: no such file (and no back end is called '%.*s')", path,
			       (int)(colon - path), path);
	if (err == -ENOENT && !w->read_only)
		return err_set(w->e, err, "%s: no such file; file:%s?size=1G makes one", path, path);
	if (err == -EINVAL && w->direct)
		return err_set(w->e, err, "%s: this file system cannot do direct=1", path);
	return err_sys(w->e, err, "%s", path);
}

static int fd_open(struct file_opening *w, int flags)
{
	struct loop *loop = w->how->loop;
	bool may_make = w->how->create || w->has_size;
	int fd;

	flags |= O_CLOEXEC | (w->read_only ? O_RDONLY : O_RDWR);
	fd = loop_open_file(loop, w->f->path, flags, 0666);
	if (fd == -ENOENT && may_make && !w->read_only) {
		fd = loop_open_file(loop, w->f->path, flags | O_CREAT | O_EXCL, 0666);
		w->made = fd >= 0;
	}
	return fd;
}

struct flag_op {
	struct op op;
	bool done;
	int res;
};

static void flag_op_done(struct op *op, int res)
{
	struct flag_op *o = CONTAINER_OF(op, struct flag_op, op);

	o->done = true;
	o->res = res;
}

static int file_grow(struct file_opening *w, uint64_t size)
{
	struct flag_op o = { .op.done = flag_op_done };
	int r;

	if (w->f->real)
		return ftruncate(w->f->fd, (off_t)size) ? -errno : 0;
	op_allocate(w->how->loop, &o.op, w->f->fd, 0, 0, size);
	r = loop_run_until(w->how->loop, &o.done, NEVER_NS);
	CHECK(!r);
	return o.res;
}

static int file_size(struct file_opening *w)
{
	struct file *f = w->f;
	uint64_t want = w->has_size ? w->size : w->made ? w->how->create_size : 0;
	int r = 0;

	if (f->real && S_ISBLK(w->st.st_mode))
		r = ioctl(f->fd, BLKGETSIZE64, &w->bytes) ? -errno : 0;
	else if (f->real)
		w->bytes = (uint64_t)w->st.st_size;
	else
		r = loop_file_size(w->how->loop, f->fd, &w->bytes);
	if (r)
		return err_sys(w->e, r, "%s: its size", f->path);
	if (w->bytes < want && f->real && S_ISBLK(w->st.st_mode))
		return err_set(w->e, -ENOSPC, "%s: a block device of %llu bytes cannot be made larger", f->path,
			       (unsigned long long)w->bytes);
	if (w->bytes < want && w->read_only)
		return err_set(w->e, -EROFS,
			       "%s has %llu bytes, less than size=, and is opened for reading only", f->path,
			       (unsigned long long)w->bytes);
	if (w->bytes < want) {
		if (want > RESOURCE_SIZE_MAX || (r = file_grow(w, want)))
			return err_sys(w->e, r ? r : -EFBIG, "%s: making it %llu bytes long", f->path,
				       (unsigned long long)want);
		w->bytes = want;
	}
	return 0;
}

/* What O_DIRECT asks for, and the logical block size of devices. */
static int file_align(struct file_opening *w, uint32_t *ret_align)
{
	struct file *f = w->f;
	int block = 0;

	*ret_align = f->buffer_align = 1;
	if (f->real && S_ISBLK(w->st.st_mode)) {
		if (ioctl(f->fd, BLKSSZGET, &block) || block <= 0)
			return err_sys(w->e, -EIO, "%s: its block size", f->path);
		*ret_align = (uint32_t)block;
	}
	if (!w->direct)
		return 0;
	f->buffer_align = block ? (uint32_t)block : DIRECT_ALIGN_DEFAULT;
#ifdef STATX_DIOALIGN
	struct statx stx;

	if (!statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) && stx.stx_mask & STATX_DIOALIGN &&
	    stx.stx_dio_offset_align) {
		*ret_align = MAX(*ret_align, stx.stx_dio_offset_align);
		f->buffer_align = MAX(stx.stx_dio_mem_align, 1u);
	}
#endif
	*ret_align = *ret_align > 1 ? *ret_align : DIRECT_ALIGN_DEFAULT;
	if (!is_pow2(*ret_align) || *ret_align > STORE_ALIGN_MAX || !is_pow2(f->buffer_align) ||
	    f->buffer_align > STORE_ALIGN_MAX)
		return err_set(w->e, -ENOTSUP, "%s: direct=1 needs blocks of %u bytes here", f->path, *ret_align);
	return 0;
}

/* Bounce buffers, and the descriptor for the rest behind the last whole block. */
static int direct_init(struct file_opening *w, uint32_t align)
{
	struct file *f = w->f;
	struct stat st;

	f->bounces = aligned_alloc(STORE_ALIGN_MAX, BACK_BOUNCES * BACK_BOUNCE_LEN);
	if (!f->bounces)
		return err_sys(w->e, -ENOMEM, "%s", f->path);
	for (size_t i = 0; i < BACK_BOUNCES; i++)
		f->bounce_idle[f->bounce_idle_count++] = f->bounces + i * BACK_BOUNCE_LEN;
	f->tail_at = w->bytes;
	if (w->bytes % align == 0)
		return 0;
	f->tail_at = align_down(w->bytes, MAX(align, PAGE_BYTES));
	f->tail_fd = fd_open(w, 0);
	if (f->tail_fd < 0)
		return opening_error(w, f->tail_fd);
	if (fstat(f->tail_fd, &st) || st.st_dev != w->st.st_dev || st.st_ino != w->st.st_ino)
		return err_set(w->e, -ESTALE, "%s was replaced while it was opened", f->path);
	return 0;
}

/* Before it is opened, because opening a FIFO or a tape has effects; and after, because it may have
 * been replaced. */
static int type_check(struct file_opening *w, const struct stat *st)
{
	if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode))
		return 0;
	return err_set(w->e, S_ISDIR(st->st_mode) ? -EISDIR : -ENODEV,
		       "%s is %s: neither a regular file nor a block device", w->f->path,
		       S_ISDIR(st->st_mode) ? "a directory" : S_ISFIFO(st->st_mode) ? "a pipe"
		       : S_ISSOCK(st->st_mode) ? "a socket (for a server: remora+unix://)" : "a special file");
}

static int file_open(struct file_opening *w)
{
	struct file *f = w->f;
	uint32_t align = 1;
	struct statfs fs;
	int r;

	if (f->real && !stat(f->path, &w->st) && (r = type_check(w, &w->st)))
		return r;
	f->fd = fd_open(w, w->direct ? O_DIRECT : 0);
	if (f->fd < 0)
		return opening_error(w, f->fd);
	if (f->real && fstat(f->fd, &w->st))
		return err_sys(w->e, -errno, "%s", f->path);
	if (f->real && (r = type_check(w, &w->st)))
		return r;
	if ((r = file_size(w)) || (r = file_align(w, &align)))
		return r;
	if (w->direct && (r = direct_init(w, align)))
		return r;
	f->direct = w->direct;
	f->nowait = f->real && !w->direct;
	f->nowait_flags =
		f->real && !fstatfs(f->fd, &fs) && fs.f_type == TMPFS_MAGIC ? 0 : RWF_NOWAIT;
	f->store.info = (struct store_info){
		.size = w->bytes,
		.align = align,
		.len_max = REQ_LEN_MAX,
		.read_only = w->read_only,
		.flush = CAP_NATIVE,
		.zero = CAP_NATIVE,
		.trim = CAP_NATIVE,
		.extents = f->real && S_ISREG(w->st.st_mode) ? CAP_NATIVE : CAP_NONE,
	};
	return 0;
}

static uint64_t file_identity(const struct file_opening *w)
{
	uint64_t h = 0xcbf29ce484222325ULL;
	struct rng r;

	if (w->f->real && S_ISBLK(w->st.st_mode))
		h = w->st.st_rdev;
	else if (w->f->real)
		h = w->st.st_ino + ((uint64_t)w->st.st_dev << 40);
	else
		for (const char *p = w->f->path; *p; p++)
			h = (h ^ (uint8_t)*p) * 0x100000001b3ULL; /* FNV-1a */
	rng_init(&r, h);
	return rng_next(&r) | 1;
}

static int file_options(struct file_opening *w)
{
	struct spec_args *args = w->args;
	uint64_t size = UINT64_MAX;
	int r;

	if (!*args->part->rest)
		return spec_error(args->spec, args->part->rest_at, args->e, "file: needs a path: file:disk.img");
	w->read_only = w->how->read_only;
	if ((r = spec_get_bool(args, "direct", &w->direct)) || (r = spec_get_bool(args, "readonly", &w->read_only)) ||
	    (r = spec_get_size(args, "size", &size)) || (r = spec_options_end(args)))
		return r;
	w->read_only = w->read_only || w->how->read_only;
	w->has_size = size != UINT64_MAX;
	w->size = size;
	return 0;
}

int back_file_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		   struct store *next)
{
	struct file_opening w = { .how = how, .args = args, .e = args->e };
	struct file *f;
	int r;

	CHECK(!next);
	r = file_options(&w);
	if (r)
		return r;
	f = w.f = calloc(1, sizeof(*f));
	if (!f || !(f->path = strdup(args->part->rest))) {
		free(f);
		return err_sys(args->e, -ENOMEM, "file");
	}
	f->fd = f->tail_fd = -1;
	f->store.loop = how->loop;
	f->real = strcmp(loop_engine_name(how->loop), "sim") != 0;
	r = file_open(&w);
	if (r) {
		if (w.made && f->real)
			unlink(f->path);
		file_free(f);
		free(f);
		return r;
	}
	f->store.info.identity = file_identity(&w);
	f->store.info.instance = rng_next(&loop_env(how->loop)->rng) | 1;
	list_init(&f->idle);
	list_init(&f->waiting);
	list_init(&f->sync_waiting);
	list_init(&f->sync_with);
	list_init(&f->bounce_waiting);
	for (size_t i = 0; i < BACK_OPS_MAX; i++) {
		f->op[i].file = f;
		list_push_back(&f->idle, &f->op[i].link);
	}
	store_init(&f->store, &file_ops, how->loop, NULL);
	*ret = &f->store;
	return 0;
}
