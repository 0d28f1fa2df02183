/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk for tests of the near store on a disk: files in memory, with what is safe of them and what
 * is not yet. At a chosen call, or whenever the test says so, it goes away: from then on every call
 * is an error and changes nothing. What a machine finds afterwards depends on how it ended: of a
 * killed process everything is there, and a part of the call that it was in; after a power cut what
 * was synced, and of each write, cut or rename since then, by the seed, all, nothing or a part.
 */
#ifndef TEST_DISK_WORLD_H
#define TEST_DISK_WORLD_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/range.h"
#include "base/rng.h"
#include "region/near_disk_io.h"

#define DISK_FILES 64u
#define DISK_HANDLES 64u
#define DISK_SECTOR 512u

#define DISK_MUST(x)                                                                               \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "# %s:%d: %s\n", __FILE__, __LINE__, #x);                  \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

struct disk_bytes {
	uint8_t *at;
	uint64_t size, room;
};

enum disk_change_kind { DISK_WRITE, DISK_SIZE, DISK_HOLE };

struct disk_change { /* not synced yet */
	enum disk_change_kind kind;
	uint64_t off, len;
	uint8_t *data;
};

struct disk_file {
	struct disk_bytes now, safe;
	struct disk_change *change;
	size_t changes, change_room;
	uint8_t *taken; /* per page: has its place */
	uint64_t taken_room;
	unsigned handles, names;
};

struct disk_name {
	char name[32];
	int file; /* -1: none */
};

struct disk_move { /* of the directory, not synced yet */
	struct disk_name name[2];
	unsigned count;
};

struct disk {
	struct rng rng;
	struct disk_file file[DISK_FILES];
	struct disk_name now[DISK_FILES], safe[DISK_FILES];
	struct disk_move move[1024];
	size_t moves;
	int handle[DISK_HANDLES]; /* file + 1 */
	uint64_t pages, pages_max; /* 0 = no limit */
	uint64_t calls, dies_at; /* 0 = not by itself */
	bool dead;
	bool locked;
	int lock_handle;
	uint32_t sync_fails_per_million;
	bool sync_lies; /* nothing is ever safe */
};

/* ---- files ---- */

static inline void bytes_size(struct disk_bytes *b, uint64_t size)
{
	if (size > b->room) {
		uint64_t room = MAX(2 * b->room, size + 4096);

		b->at = realloc(b->at, room);
		DISK_MUST(b->at);
		memset(b->at + b->room, 0, room - b->room);
		b->room = room;
	}
	if (size < b->size)
		memset(b->at + size, 0, b->size - size);
	b->size = size;
}

static inline void bytes_put(struct disk_bytes *b, uint64_t off, const uint8_t *src, uint64_t len)
{
	if (!len)
		return;
	if (off + len > b->size)
		bytes_size(b, off + len);
	if (src)
		memcpy(b->at + off, src, len);
	else
		memset(b->at + off, 0, len);
}

static inline void bytes_hole(struct disk_bytes *b, uint64_t off, uint64_t len)
{
	if (off < b->size)
		memset(b->at + off, 0, MIN(len, b->size - off));
}

static inline void bytes_copy(struct disk_bytes *to, const struct disk_bytes *from)
{
	bytes_size(to, 0);
	bytes_put(to, 0, from->at, from->size);
	bytes_size(to, from->size);
}

static inline void changes_forget(struct disk_file *f)
{
	for (size_t i = 0; i < f->changes; i++)
		free(f->change[i].data);
	f->changes = 0;
}

static inline void change_add(struct disk_file *f, enum disk_change_kind kind, uint64_t off,
			      const uint8_t *data, uint64_t len)
{
	struct disk_change *c;

	if (f->changes == f->change_room) {
		f->change_room = 2 * f->change_room + 16;
		f->change = realloc(f->change, f->change_room * sizeof(*f->change));
		DISK_MUST(f->change);
	}
	c = &f->change[f->changes++];
	*c = (struct disk_change){ .kind = kind, .off = off, .len = len };
	if (data) {
		c->data = malloc(len + 1);
		DISK_MUST(c->data);
		memcpy(c->data, data, len);
	}
}

static inline void change_apply(struct disk_bytes *to, const struct disk_change *c)
{
	if (c->kind == DISK_SIZE)
		bytes_size(to, c->off);
	else if (c->kind == DISK_HOLE)
		bytes_hole(to, c->off, c->len);
	else
		bytes_put(to, c->off, c->data, c->len);
}

/* The pages of the range have their place, or there is none for all of them. */
static inline int pages_take(struct disk *d, struct disk_file *f, uint64_t off, uint64_t len)
{
	uint64_t end = len ? (off + len - 1) / PAGE_BYTES + 1 : 0, more = 0;

	if (end > f->taken_room) {
		f->taken = realloc(f->taken, end);
		DISK_MUST(f->taken);
		memset(f->taken + f->taken_room, 0, end - f->taken_room);
		f->taken_room = end;
	}
	for (uint64_t p = off / PAGE_BYTES; p < end; p++)
		more += !f->taken[p];
	if (d->pages_max && d->pages + more > d->pages_max)
		return -ENOSPC;
	for (uint64_t p = off / PAGE_BYTES; p < end; p++)
		f->taken[p] = 1;
	d->pages += more;
	return 0;
}

static inline void pages_give(struct disk *d, struct disk_file *f, uint64_t off, uint64_t end)
{
	for (uint64_t p = (off + PAGE_BYTES - 1) / PAGE_BYTES;
	     p < MIN(end / PAGE_BYTES, f->taken_room); p++) {
		d->pages -= f->taken[p];
		f->taken[p] = 0;
	}
}

static inline void file_forget(struct disk *d, struct disk_file *f)
{
	if (f->names || f->handles)
		return;
	pages_give(d, f, 0, UINT64_MAX - PAGE_BYTES);
	changes_forget(f);
	free(f->change);
	free(f->now.at);
	free(f->safe.at);
	free(f->taken);
	*f = (struct disk_file){ 0 };
}

/* ---- the calls ---- */

/* True = it goes away within this call. */
static inline bool disk_call(struct disk *d)
{
	if (d->dead)
		return false;
	d->calls++;
	if (!d->dies_at || d->calls < d->dies_at)
		return false;
	d->dead = true;
	return true;
}

static inline struct disk_file *disk_file(struct disk *d, int fd)
{
	DISK_MUST(fd >= 0 && fd < (int)DISK_HANDLES && d->handle[fd]);
	return &d->file[d->handle[fd] - 1];
}

static inline struct disk_name *name_find(struct disk_name *names, const char *name)
{
	for (size_t i = 0; i < DISK_FILES; i++)
		if (names[i].name[0] && !strcmp(names[i].name, name))
			return &names[i];
	return NULL;
}

static inline void name_set(struct disk_name *names, const struct disk_name *to)
{
	struct disk_name *n = name_find(names, to->name);

	for (size_t i = 0; !n; i++) {
		DISK_MUST(i < DISK_FILES);
		if (!names[i].name[0])
			n = &names[i];
	}
	*n = *to;
	if (to->file < 0)
		n->name[0] = '\0';
}

/* How many names a file has, now or perhaps after a power cut. */
static inline void names_count(struct disk *d)
{
	for (size_t f = 0; f < DISK_FILES; f++)
		d->file[f].names = 0;
	for (size_t i = 0; i < DISK_FILES; i++) {
		if (d->now[i].name[0])
			d->file[d->now[i].file].names++;
		if (d->safe[i].name[0])
			d->file[d->safe[i].file].names++;
	}
	for (size_t i = 0; i < d->moves; i++)
		for (unsigned k = 0; k < d->move[i].count; k++)
			if (d->move[i].name[k].file >= 0)
				d->file[d->move[i].name[k].file].names++;
	for (size_t f = 0; f < DISK_FILES; f++)
		file_forget(d, &d->file[f]);
}

static inline void move_add(struct disk *d, const struct disk_move *move)
{
	if (d->moves == sizeof(d->move) / sizeof(d->move[0])) {
		memcpy(d->safe, d->now, sizeof(d->safe));
		d->moves = 0;
	}
	d->move[d->moves++] = *move;
	for (unsigned k = 0; k < move->count; k++)
		name_set(d->now, &move->name[k]);
	names_count(d);
}

/* As the kernel does by itself now and then. */
static inline void moves_commit(struct disk *d)
{
	memcpy(d->safe, d->now, sizeof(d->safe));
	d->moves = 0;
	names_count(d);
}

static inline int file_free(struct disk *d)
{
	for (int file = 0; file < (int)DISK_FILES; file++)
		if (!d->file[file].names && !d->file[file].handles)
			return file;
	return -1;
}

static inline int sim_disk_open(void *arg, const char *name, enum near_disk_open how)
{
	struct disk *d = arg;
	struct disk_name *n;
	int fd = 0, file = 0;

	disk_call(d);
	if (d->dead)
		return -EIO;
	n = name_find(d->now, name);
	if (!n && how != NEAR_DISK_MAKE)
		return -ENOENT;
	if (n) {
		file = n->file;
	} else {
		struct disk_move made = { .count = 1 };

		file = file_free(d);
		if (file < 0) {
			moves_commit(d);
			file = file_free(d);
		}
		DISK_MUST(file >= 0);
		snprintf(made.name[0].name, sizeof(made.name[0].name), "%s", name);
		made.name[0].file = file;
		move_add(d, &made);
	}
	while (d->handle[fd])
		DISK_MUST(++fd < (int)DISK_HANDLES);
	d->handle[fd] = file + 1;
	d->file[file].handles++;
	return fd;
}

static inline void sim_disk_close(void *arg, int fd)
{
	struct disk *d = arg;
	struct disk_file *f = disk_file(d, fd);

	d->handle[fd] = 0;
	f->handles--;
	if (d->locked && d->lock_handle == fd)
		d->locked = false;
	if (!d->dead)
		names_count(d);
}

static inline ssize_t sim_disk_read(void *arg, int fd, void *buf, size_t len, uint64_t off)
{
	struct disk *d = arg;
	struct disk_file *f = disk_file(d, fd);

	disk_call(d);
	if (d->dead)
		return -EIO;
	if (off >= f->now.size)
		return 0;
	len = (size_t)MIN((uint64_t)len, f->now.size - off);
	memcpy(buf, f->now.at + off, len);
	return (ssize_t)len;
}

static inline int sim_disk_write(void *arg, int fd, const struct iovec *iov, int count,
				 uint64_t off)
{
	struct disk *d = arg;
	struct disk_file *f = disk_file(d, fd);
	bool dies = disk_call(d);
	uint64_t len = 0, at = 0, room, part;
	uint8_t *all;
	int err = 0;

	if (d->dead && !dies)
		return -EIO;
	for (int i = 0; i < count; i++)
		len += iov[i].iov_len;
	all = malloc(len + 1);
	DISK_MUST(all);
	for (int i = 0; i < count; at += iov[i++].iov_len)
		if (iov[i].iov_len)
			memcpy(all + at, iov[i].iov_base, iov[i].iov_len);
	if (dies) { /* it ends in the middle of it, at a border of a page */
		part = align_down(rng_below(&d->rng, len + PAGE_BYTES), PAGE_BYTES);
		len = MIN(len, part);
	}
	room = len;
	while (pages_take(d, f, off, room)) { /* a part of it fits */
		err = -ENOSPC;
		room = room > PAGE_BYTES ? room - PAGE_BYTES : 0;
		if (!room)
			break;
	}
	if (room) {
		bytes_put(&f->now, off, all, room);
		change_add(f, DISK_WRITE, off, all, room);
	}
	free(all);
	return dies ? -EIO : err;
}

static inline int sim_disk_sync(void *arg, int fd)
{
	struct disk *d = arg;
	struct disk_file *f = disk_file(d, fd);
	bool fails;

	disk_call(d);
	if (d->dead)
		return -EIO;
	if (d->sync_lies)
		return 0;
	/* when it fails, some of it is lost, and the kernel takes it for written */
	fails = rng_chance(&d->rng, d->sync_fails_per_million);
	for (size_t i = 0; i < f->changes; i++)
		if (!fails || rng_chance(&d->rng, 500000))
			change_apply(&f->safe, &f->change[i]);
	changes_forget(f);
	return fails ? -EIO : 0;
}

static inline int sim_disk_truncate(void *arg, int fd, uint64_t size)
{
	struct disk *d = arg;
	struct disk_file *f = disk_file(d, fd);

	disk_call(d);
	if (d->dead)
		return -EIO;
	pages_give(d, f, size, UINT64_MAX - PAGE_BYTES);
	bytes_size(&f->now, size);
	change_add(f, DISK_SIZE, size, NULL, 0);
	return 0;
}

static inline int sim_disk_allocate(void *arg, int fd, uint64_t off, uint64_t len)
{
	struct disk *d = arg;

	disk_call(d);
	return d->dead ? -EIO : pages_take(d, disk_file(d, fd), off, len);
}

static inline int sim_disk_punch(void *arg, int fd, uint64_t off, uint64_t len)
{
	struct disk *d = arg;
	struct disk_file *f = disk_file(d, fd);

	disk_call(d);
	if (d->dead)
		return -EIO;
	pages_give(d, f, off, off + len);
	bytes_hole(&f->now, off, len);
	change_add(f, DISK_HOLE, off, NULL, len);
	return 0;
}

static inline int sim_disk_size(void *arg, int fd, uint64_t *ret)
{
	struct disk *d = arg;

	disk_call(d);
	*ret = disk_file(d, fd)->now.size;
	return d->dead ? -EIO : 0;
}

static inline int sim_disk_find(void *arg, int fd, uint64_t off, uint64_t *ret)
{
	struct disk *d = arg;
	struct disk_file *f = disk_file(d, fd);

	disk_call(d);
	if (d->dead)
		return -EIO;
	for (uint64_t p = off / PAGE_BYTES; p < f->taken_room && p * PAGE_BYTES < f->now.size; p++)
		if (f->taken[p]) {
			*ret = MAX(off, p * PAGE_BYTES);
			return 0;
		}
	return -ENXIO;
}

static inline int sim_disk_rename(void *arg, const char *from, const char *to)
{
	struct disk *d = arg;
	struct disk_move move = { .count = 2 };
	struct disk_name *n;
	bool dies = disk_call(d);

	if (d->dead && !(dies && rng_chance(&d->rng, 500000)))
		return -EIO;
	n = name_find(d->now, from);
	if (!n)
		return -ENOENT;
	move.name[0] = *n;
	move.name[0].file = -1;
	snprintf(move.name[1].name, sizeof(move.name[1].name), "%s", to);
	move.name[1].file = n->file;
	move_add(d, &move);
	return dies ? -EIO : 0;
}

static inline int sim_disk_unlink(void *arg, const char *name)
{
	struct disk *d = arg;
	struct disk_move move = { .count = 1 };
	struct disk_name *n;

	disk_call(d);
	if (d->dead)
		return -EIO;
	n = name_find(d->now, name);
	if (!n)
		return -ENOENT;
	move.name[0] = *n;
	move.name[0].file = -1;
	move_add(d, &move);
	return 0;
}

static inline int sim_disk_sync_dir(void *arg)
{
	struct disk *d = arg;

	disk_call(d);
	if (d->dead)
		return -EIO;
	moves_commit(d);
	return 0;
}

static inline int sim_disk_lock(void *arg, int fd, bool take)
{
	struct disk *d = arg;

	disk_call(d);
	if (d->dead)
		return -EIO;
	if (d->locked)
		return -EAGAIN;
	if (take) {
		d->locked = true;
		d->lock_handle = fd;
	}
	return 0;
}

static inline struct near_disk_io disk_io(struct disk *d)
{
	return (struct near_disk_io){
		.arg = d, .open = sim_disk_open, .close = sim_disk_close, .read = sim_disk_read,
		.write = sim_disk_write, .sync = sim_disk_sync, .truncate = sim_disk_truncate,
		.allocate = sim_disk_allocate, .punch = sim_disk_punch, .size = sim_disk_size,
		.find = sim_disk_find, .rename = sim_disk_rename, .unlink = sim_disk_unlink,
		.sync_dir = sim_disk_sync_dir, .lock = sim_disk_lock,
	};
}

/* ---- what is there afterwards ---- */

static inline void change_happens(struct disk *d, struct disk_file *f, const struct disk_change *c)
{
	uint64_t off = c->off, end = c->off + c->len;

	if (c->kind == DISK_SIZE) {
		bytes_size(&f->safe, c->off);
		return;
	}
	if (rng_chance(&d->rng, 300000)) { /* torn, anywhere, at borders of sectors */
		uint64_t cut = align_down(off + rng_below(&d->rng, c->len + 1), DISK_SECTOR);

		if (cut > off && cut < end && rng_chance(&d->rng, 500000))
			off = cut;
		else if (cut > off && cut < end)
			end = cut;
	}
	if (c->kind == DISK_HOLE)
		bytes_hole(&f->safe, off, end - off);
	else
		bytes_put(&f->safe, off, c->data + (off - c->off), end - off);
}

/* What has come back has its place. */
static inline void pages_found(struct disk *d, struct disk_file *f)
{
	uint64_t max = d->pages_max;

	d->pages_max = 0;
	for (uint64_t at = 0; at < f->now.size; at += PAGE_BYTES) {
		uint64_t len = MIN((uint64_t)PAGE_BYTES, f->now.size - at);

		if (f->now.at[at] || memcmp(f->now.at + at, f->now.at + at + 1, len - 1))
			DISK_MUST(!pages_take(d, f, at, len));
	}
	d->pages_max = max;
}

/* After a power cut: only what is safe, and of the rest what the seed wants. */
static inline void disk_power_cut(struct disk *d)
{
	size_t moves = (size_t)rng_below(&d->rng, d->moves + 1);
	uint32_t keep = (uint32_t)rng_below(&d->rng, 1000001);

	for (size_t i = 0; i < moves; i++)
		for (unsigned k = 0; k < d->move[i].count; k++)
			name_set(d->safe, &d->move[i].name[k]);
	for (size_t i = 0; i < DISK_FILES; i++) {
		struct disk_file *f = &d->file[i];

		for (size_t k = 0; k < f->changes; k++)
			if (rng_chance(&d->rng, keep))
				change_happens(d, f, &f->change[k]);
		changes_forget(f);
		bytes_copy(&f->now, &f->safe);
		pages_found(d, f);
	}
	memcpy(d->now, d->safe, sizeof(d->now));
	d->moves = 0;
}

/* A machine starts with what is there. */
static inline void disk_starts(struct disk *d)
{
	d->dead = d->locked = false;
	d->dies_at = 0;
	d->calls = 0;
	for (size_t i = 0; i < DISK_HANDLES; i++)
		DISK_MUST(!d->handle[i]);
	names_count(d);
}

static inline void disk_free(struct disk *d)
{
	memset(d->now, 0, sizeof(d->now));
	memset(d->safe, 0, sizeof(d->safe));
	d->moves = 0;
	names_count(d);
}

/* The bytes of a file, to be looked at or changed. */
static inline struct disk_bytes *disk_named(struct disk *d, const char *name)
{
	struct disk_name *n = name_find(d->now, name);

	return n ? &d->file[n->file].now : NULL;
}

#endif
