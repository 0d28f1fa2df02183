/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated storage: files by name that survive a crash only as far as they were synced; and
 * the works of the pool, which take as long as a file operation.
 *
 * A file has two contents: `data`, what a reader sees, and `safe`, what the medium is sure to have.
 * Each sector remembers the number of the write that changed it last (0 = as safe). A sync that
 * succeeds makes safe what was written before it was asked for. One that fails may leave sectors
 * that no later sync makes safe, as Linux does: only writing them again helps. A crash of the host
 * that wrote decides for each unsafe sector whether it reached the medium; a write that was under
 * way counts as written, unsafe. Names are safe at once.
 *
 * An operation takes effect when it ends, not when it begins: so two that overlap in time end in
 * any order.
 *
 * Invariants: an op of the storage is in exactly one struct sim_io, on its loop's list, with its
 * timer set.
 */
#include "io/sim_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

#include "base/range.h"

#define SECTOR_LOST UINT64_MAX /* a failed sync has given it up */

struct sim_file {
	struct link link;
	char *name;
	uint64_t size, safe_size, room; /* room: bytes allocated in both contents */
	unsigned char *data, *safe;
	uint64_t *sector; /* number of the last write that is not safe; 0 = safe */
	uint64_t unsafe_from, unsafe_to; /* outside of these sectors, all are safe */
	uint64_t writes;
	uint64_t writers; /* loops that have written since all was safe, by id modulo 64 */
};

struct sim_handle {
	struct sim_file *file;
	bool readable, writable;
	unsigned busy; /* operations under way */
};

struct sim_io {
	struct timer timer;
	struct link link;
	struct sim_loop *owner;
	struct sim_handle *handle; /* NULL = a work */
	struct op *op;
	uint64_t writes; /* sync: the writes before it */
};

/* ---- files ---- */

static struct sim_file *file_find(struct sim *sim, const char *path)
{
	LIST_EACH (k, &sim->files) {
		if (strcmp(LIST_ENTRY(k, struct sim_file, link)->name, path) == 0)
			return LIST_ENTRY(k, struct sim_file, link);
	}
	return NULL;
}

static size_t sectors(uint64_t bytes)
{
	return (size_t)((bytes + SIM_SECTOR - 1) / SIM_SECTOR);
}

static void *grow(void *p, uint64_t from, uint64_t to)
{
	/* zeros, and lazily: a sparse file costs what it holds */
	void *bigger = sim_alloc((size_t)to);

	if (p)
		memcpy(bigger, p, (size_t)from);
	free(p);
	return bigger;
}

static void file_reserve(struct sim_file *f, uint64_t size)
{
	uint64_t room = align_up(MAX(size, 4096), SIM_SECTOR);

	if (size <= f->room)
		return;
	room = MAX(room, f->room * 2);
	f->data = grow(f->data, f->room, room);
	f->safe = grow(f->safe, f->room, room);
	f->sector = grow(f->sector, sectors(f->room) * sizeof(f->sector[0]),
			 sectors(room) * sizeof(f->sector[0]));
	f->room = room;
}

static void file_all_safe(struct sim_file *f)
{
	f->writers = 0;
	f->unsafe_from = UINT64_MAX;
	f->unsafe_to = 0;
}

static struct sim_file *file_new(struct sim *sim, const char *path, uint64_t size)
{
	struct sim_file *f = sim_alloc(sizeof(*f));

	f->name = strdup(path);
	CHECK(f->name);
	file_reserve(f, MAX(size, 1));
	f->size = f->safe_size = size;
	file_all_safe(f);
	list_push_back(&sim->files, &f->link);
	return f;
}

int sim_file_make(struct sim *sim, const char *path, uint64_t size)
{
	if (file_find(sim, path))
		return -EEXIST;
	if (size > SIM_FILE_MAX)
		return -EFBIG;
	file_new(sim, path, size);
	return 0;
}

int sim_file_peek(struct sim *sim, const char *path, uint64_t off, void *buf, size_t len)
{
	struct sim_file *f = file_find(sim, path);

	if (!f)
		return -ENOENT;
	if (!range_within(range_of(off, len), f->size))
		return -EINVAL;
	if (len)
		memcpy(buf, f->data + off, len);
	return 0;
}

void disk_free_all(struct sim *sim)
{
	struct link *k;

	while ((k = list_pop_front(&sim->files))) {
		struct sim_file *f = LIST_ENTRY(k, struct sim_file, link);

		free(f->name);
		free(f->data);
		free(f->safe);
		free(f->sector);
		free(f);
	}
}

/* ---- what operations do to a file ---- */

/* `from` NULL = zeros. */
static void file_write(struct sim_file *f, struct sim_loop *writer, const void *from, uint64_t off,
		       size_t len)
{
	if (!len)
		return;
	file_reserve(f, off + len);
	if (from)
		memcpy(f->data + off, from, len);
	else
		memset(f->data + off, 0, len);
	f->writes++;
	for (uint64_t i = off / SIM_SECTOR; i < sectors(off + len); i++)
		f->sector[i] = f->writes;
	f->unsafe_from = MIN(f->unsafe_from, off / SIM_SECTOR);
	f->unsafe_to = MAX(f->unsafe_to, sectors(off + len));
	f->size = MAX(f->size, off + len);
	f->writers |= 1ULL << writer->id % 64;
}

static void sector_make_safe(struct sim_file *f, uint64_t i)
{
	memcpy(f->safe + i * SIM_SECTOR, f->data + i * SIM_SECTOR, SIM_SECTOR);
}

static void file_sync(struct sim_file *f, uint64_t writes)
{
	bool all = true;

	for (uint64_t i = f->unsafe_from; i < f->unsafe_to; i++) {
		if (!f->sector[i])
			continue;
		/* One that was written again since: the medium may have that already. */
		if (f->sector[i] != SECTOR_LOST)
			sector_make_safe(f, i);
		if (f->sector[i] <= writes)
			f->sector[i] = 0;
		else
			all = false;
	}
	f->safe_size = f->size;
	if (all)
		file_all_safe(f);
}

static void file_sync_failed(struct sim *sim, struct sim_file *f, uint64_t writes)
{
	if (rng_chance(&sim->rng, 500000))
		return;
	for (uint64_t i = f->unsafe_from; i < f->unsafe_to; i++) {
		if (f->sector[i] && f->sector[i] <= writes)
			f->sector[i] = SECTOR_LOST;
	}
}

static void file_crash(struct sim *sim, struct sim_file *f)
{
	uint64_t size = f->size;

	/* The size is written apart from the data. A shorter one cuts off what was never safe. */
	if (f->size != f->safe_size && rng_chance(&sim->rng, 500000))
		size = f->safe_size;
	for (uint64_t i = f->unsafe_from; i < f->unsafe_to; i++) {
		bool written = f->sector[i] && f->sector[i] != SECTOR_LOST &&
			       rng_chance(&sim->rng, 500000);

		if (f->sector[i] && !written)
			memcpy(f->data + i * SIM_SECTOR, f->safe + i * SIM_SECTOR, SIM_SECTOR);
		f->sector[i] = 0;
	}
	if (size < f->size)
		memset(f->data + size, 0, f->size - size);
	for (uint64_t i = f->unsafe_from; i < f->unsafe_to; i++)
		sector_make_safe(f, i);
	f->size = f->safe_size = size;
	file_all_safe(f);
}

/* ---- operations ---- */

static size_t cut_short(struct sim *sim, size_t n)
{
	if (n < 2 || !rng_chance(&sim->rng, sim->disk.short_per_million))
		return n;
	return 1 + (size_t)rng_below(&sim->rng, n - 1);
}

static int do_allocate(struct sim_io *io)
{
	struct sim_file *f = io->handle->file;
	const struct op *op = io->op;
	uint64_t end = op->off + op->len;

	switch (op->flags) {
	case 0:
		f->size = MAX(f->size, end);
		return 0;
	case FALLOC_FL_KEEP_SIZE:
		return 0;
	case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
		end = MIN(end, f->size);
		break;
	case FALLOC_FL_ZERO_RANGE:
		break;
	default:
		return -EOPNOTSUPP;
	}
	if (end > op->off)
		file_write(f, io->owner, NULL, op->off, (size_t)(end - op->off));
	return 0;
}

static int io_do(struct sim_io *io)
{
	struct sim *sim = io->owner->sim;
	struct sim_file *f = io->handle->file;
	struct op *op = io->op;
	bool fail = rng_chance(&sim->rng, sim->disk.error_per_million);
	size_t n;

	switch (op->kind) {
	case OP_READ:
		if (fail)
			return -EIO;
		n = op->off < f->size ? (size_t)MIN(op->len, f->size - op->off) : 0;
		n = cut_short(sim, n);
		if (n)
			memcpy(op->buf, f->data + op->off, n);
		return (int)n;
	case OP_WRITE:
		n = fail ? (size_t)rng_below(&sim->rng, op->len + 1) : cut_short(sim, op->len);
		file_write(f, io->owner, op->buf, op->off, n);
		return fail ? -EIO : (int)n;
	case OP_SYNC:
		if (fail)
			file_sync_failed(sim, f, io->writes);
		else
			file_sync(f, io->writes);
		return fail ? -EIO : 0;
	default:
		if (fail)
			return -EIO;
		file_reserve(f, op->off + op->len);
		return do_allocate(io);
	}
}

static void io_free(struct sim_io *io)
{
	heap_clear(&io->owner->sim->events, &io->timer);
	link_remove(&io->link);
	if (io->handle)
		io->handle->busy--;
	free(io);
}

static void io_fire(struct timer *timer)
{
	struct sim_io *io = CONTAINER_OF(timer, struct sim_io, timer);
	struct sim_loop *owner = io->owner;
	struct op *op = io->op;
	int res;

	if (io->handle) {
		res = io_do(io);
	} else {
		struct work *work = CONTAINER_OF(op, struct work, op);

		res = work->call(work);
	}
	sim_fold(owner->sim, io->handle ? DID_DISK : DID_WORK, owner->id * 16 + op->kind,
		 (uint64_t)(int64_t)res);
	if (res > 0 && (op->kind == OP_READ || op->kind == OP_WRITE))
		sim_fold_data(owner->sim, op->buf, (size_t)res);
	io_free(io);
	loop_complete(owner->loop, op, res);
}

static int io_check(const struct sim_handle *h, const struct op *op)
{
	if (!h || (op->kind == OP_READ ? !h->readable : op->kind != OP_SYNC && !h->writable))
		return -EBADF;
	if (op->kind != OP_SYNC && op->kind != OP_READ &&
	    !range_within(range_of(op->off, op->len), SIM_FILE_MAX))
		return -EFBIG;
	return 0;
}

void disk_submit(struct loop *loop, struct op *op)
{
	struct sim_handle *h = op->kind == OP_WORK ? NULL : sim_fd_get(loop, op->fd, SIM_FILE);
	int err = op->kind == OP_WORK ? 0 : io_check(h, op);
	struct sim_loop *l = sim_of(loop);
	const struct sim_disk *disk = &l->sim->disk;
	struct sim_io *io;

	if (err) {
		loop_complete(loop, op, err);
		return;
	}
	io = sim_alloc(sizeof(*io));
	io->timer.fire = io_fire;
	io->owner = l;
	io->handle = h;
	io->op = op;
	if (h) {
		io->writes = h->file->writes;
		h->busy++;
	}
	op->engine = io;
	list_push_back(&l->ios, &io->link);
	heap_set(&l->sim->events, &io->timer,
		 l->sim->now_ns + sim_between(l->sim, disk->delay_min_ns, disk->delay_max_ns));
}

/* Whether it came in time, the seed says. */
void disk_cancel(struct loop *loop, struct op *op)
{
	if (rng_chance(&sim_of(loop)->sim->rng, 500000))
		return;
	io_free(op->engine);
	loop_complete(loop, op, -ECANCELED);
}

void disk_crash(struct sim *sim, struct sim_loop *l)
{
	struct link *k;

	while ((k = list_first(&l->ios))) {
		struct sim_io *io = LIST_ENTRY(k, struct sim_io, link);

		if (io->op->kind == OP_WRITE)
			file_write(io->handle->file, l, io->op->buf, io->op->off, io->op->len);
		io_free(io);
	}
	LIST_EACH (f, &sim->files) {
		struct sim_file *file = LIST_ENTRY(f, struct sim_file, link);

		if (file->writers >> l->id % 64 & 1)
			file_crash(sim, file);
	}
}

/* ---- handles ---- */

int disk_open(struct loop *loop, const char *path, int flags, mode_t mode)
{
	struct sim_loop *l = sim_of(loop);
	struct sim_file *f = file_find(l->sim, path);
	struct sim_handle *h;

	(void)mode;
	if (!f && !(flags & O_CREAT))
		return -ENOENT;
	if (f && flags & O_CREAT && flags & O_EXCL)
		return -EEXIST;
	if (!f)
		f = file_new(l->sim, path, 0);
	h = sim_alloc(sizeof(*h));
	h->file = f;
	h->readable = (flags & O_ACCMODE) != O_WRONLY;
	h->writable = (flags & O_ACCMODE) != O_RDONLY;
	if (flags & O_TRUNC && h->writable && f->size) {
		file_write(f, l, NULL, 0, (size_t)f->size);
		f->size = 0;
	}
	return sim_fd_new(l, SIM_FILE, h);
}

int disk_size(struct loop *loop, int fd, uint64_t *ret)
{
	struct sim_handle *h = sim_fd_get(loop, fd, SIM_FILE);

	if (!h)
		return -EBADF;
	*ret = h->file->size;
	return 0;
}

void disk_close(struct sim_fd *f)
{
	struct sim_handle *h = f->object;

	CHECK(h->busy == 0); /* cancel first, close when it has completed */
	free(h);
}
