/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a near store in a directory: the lock, what is there already and whether it may be used,
 * the journal, `data` as the journal wants it.
 *
 * Place: set-up code of whoever opens a region with it.
 *
 *   lock ──▶ meta? ── none ──▶ journal, data, and meta last: before that there is no store
 *              └── there ──▶ the same resource? ──▶ scan the journal ──▶ cut its torn end off ──▶
 *                            write what is dirty in place ──▶ give back what nobody knows
 *
 * Invariants: nothing is changed before the lock is held, and nothing that is not ours. When this
 * is cut short anywhere, the next opening finds what this one has found.
 *
 * Locking: none.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "region/near_disk_int.h"

/* ---- the lock ---- */

void nd_holder_read(const struct near_disk_io *io, int fd, char *buf, size_t len)
{
	ssize_t n = io->read(io->arg, fd, buf, len - 1, 0);

	buf[n > 0 ? n : 0] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	for (char *at = buf; *at; at++)
		if ((unsigned char)*at < ' ' || *at == 127)
			*at = '?';
}

int nd_lock(const struct near_disk_io *io, const char *dir, int *ret_fd, struct err *e)
{
	int fd = io->open(io->arg, ND_LOCK, NEAR_DISK_MAKE), err;
	char holder[256];

	if (fd < 0)
		return err_sys(e, fd, "the file %s/" ND_LOCK, dir);
	err = io->lock(io->arg, fd, true);
	if (!err) {
		*ret_fd = fd;
		return 0;
	}
	nd_holder_read(io, fd, holder, sizeof(holder));
	io->close(io->arg, fd);
	if (err != -EAGAIN)
		return err_sys(e, err, "the file %s/" ND_LOCK " cannot be locked", dir);
	return err_set(e, -EBUSY, "the near store in \"%s\" is in use by %s: one at a time", dir,
		       *holder ? holder : "another process");
}

static int holder_write(struct near_disk *d, const char *holder, struct err *e)
{
	char text[512];
	int len = snprintf(text, sizeof(text), "process %d (%.400s)\n", (int)getpid(),
			   holder ? holder : "");
	int err = d->io.truncate(d->io.arg, d->lock_fd, 0);

	if (!err)
		err = near_disk_write(&d->io, d->lock_fd, 0, text, (size_t)len);
	return err ? err_sys(e, err, "the lock of the near store cannot be written") : 0;
}

/* ---- meta ---- */

int nd_meta_read(const struct near_disk_io *io, struct nd_meta *ret, const char *dir, struct err *e)
{
	char text[ND_META_MAX];
	int fd = io->open(io->arg, ND_META, NEAR_DISK_LOOK), err;
	ssize_t n;

	if (fd == -ENOENT)
		return err_set(e, -ENOENT, "there is no near store in \"%s\"", dir);
	if (fd < 0)
		return err_sys(e, fd, "the file %s/" ND_META, dir);
	n = io->read(io->arg, fd, text, sizeof(text), 0);
	io->close(io->arg, fd);
	if (n < 0)
		return err_sys(e, (int)n, "the file %s/" ND_META, dir);
	err = nd_meta_parse(ret, text, (size_t)n, e);
	if (err == -EUCLEAN)
		return err_set(e, err,
			       "%s/" ND_META " is damaged: nobody knows what the data beside it "
			       "belongs to; \"remora cache drop --force %s\" gives it up",
			       dir, dir);
	return err ? err_prefix(e, "%s/" ND_META, dir) : 0;
}

static int meta_write(struct near_disk *d)
{
	char text[ND_META_MAX];
	size_t len = nd_meta_format(&d->meta, text);
	int fd = d->io.open(d->io.arg, ND_META_NEW, NEAR_DISK_MAKE), err;

	if (fd < 0)
		return fd;
	err = d->io.truncate(d->io.arg, fd, 0);
	if (!err)
		err = near_disk_write(&d->io, fd, 0, text, len);
	if (!err)
		err = d->io.sync(d->io.arg, fd);
	d->io.close(d->io.arg, fd);
	if (!err)
		err = d->io.rename(d->io.arg, ND_META_NEW, ND_META);
	return err ? err : d->io.sync_dir(d->io.arg);
}

static int meta_fits(const struct nd_meta *m, const struct near_disk_options *o, struct err *e)
{
	bool known = m->identity && o->identity;
	char has[SIZE_TEXT_MAX], wants[SIZE_TEXT_MAX];

	if (m->size == o->size && (known ? m->identity == o->identity : !strcmp(m->spec, o->spec)))
		return 0;
	if (m->size == o->size && known && !strcmp(m->spec, o->spec))
		return err_set(e, -EMEDIUMTYPE,
			       "the near store in \"%s\" is of another resource that had the same "
			       "name, %.150s (it was %016" PRIx64 ", this is %016" PRIx64
			       "): use another directory, or \"remora cache drop %s\"",
			       o->dir, m->spec, m->identity, o->identity, o->dir);
	return err_set(e, -EMEDIUMTYPE,
		       "the near store in \"%s\" is of %.150s (%s), and this is %.150s (%s): use "
		       "another directory, or \"remora cache drop %s\"",
		       o->dir, m->spec, size_format(m->size, has), o->spec,
		       size_format(o->size, wants), o->dir);
}

/* ---- files ---- */

static int file_open(struct near_disk *d, const char *name, enum near_disk_open how, int *ret_fd,
		     const char *dir, struct err *e)
{
	int fd = d->io.open(d->io.arg, name, how);

	if (fd < 0)
		return err_sys(e, fd, "the file %s/%s of the near store", dir, name);
	*ret_fd = fd;
	return 0;
}

/* Without meta there is no store: but what is called like a part of one may be somebody's. */
static int name_free(struct near_disk *d, const char *dir, const char *name, struct err *e)
{
	int fd = d->io.open(d->io.arg, name, NEAR_DISK_LOOK);
	uint8_t head[ND_RECORD];
	struct nd_record rec;
	uint64_t size = 0, at;
	bool ours;

	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return err_sys(e, fd, "the file %s/%s", dir, name);
	ours = !d->io.size(d->io.arg, fd, &size) && !size;
	if (!ours && !strcmp(name, ND_JOURNAL))
		ours = !near_disk_read(&d->io, fd, 0, head, sizeof(head)) &&
		       nd_record_get(&rec, head);
	else if (!ours && d->io.find) /* nothing but a length: left by who was cut short */
		ours = d->io.find(d->io.arg, fd, 0, &at) == -ENXIO;
	d->io.close(d->io.arg, fd);
	if (ours)
		return 0;
	return err_set(e, -EEXIST,
		       "\"%s\" has a file \"%s\" that is not a near store's: use an empty directory",
		       dir, name);
}

/* Whether room is given back there, which a budget needs. */
static int punch_try(struct near_disk *d, const char *dir, struct err *e)
{
	uint64_t len = MIN(d->ix.pages * PAGE_BYTES, (uint64_t)PAGE_BYTES);
	int err = len ? d->io.punch(d->io.arg, d->data_fd, 0, len) : 0;

	if (err == -EOPNOTSUPP)
		return err_set(e, err,
			       "the file system of \"%s\" cannot give room back (no holes in files): "
			       "use another directory, or memory",
			       dir);
	return err ? err_sys(e, err, "the file %s/" ND_DATA, dir) : 0;
}

static int make(struct near_disk *d, const struct near_disk_options *o, struct err *e)
{
	struct rng *rng = &loop_env(d->loop)->rng;
	char text[SIZE_TEXT_MAX];
	int err = name_free(d, o->dir, ND_DATA, e);

	if (!err)
		err = name_free(d, o->dir, ND_JOURNAL, e);
	if (err)
		return err;
	if (strlen(o->spec) > SPEC_LEN_MAX || strchr(o->spec, '\n'))
		return err_set(e, -EINVAL, "a near store on a disk cannot note this spec");
	d->meta = (struct nd_meta){ .size = o->size, .chunk = o->chunk, .identity = o->identity };
	memcpy(d->meta.spec, o->spec, strlen(o->spec) + 1);
	rng_fill(rng, d->meta.uuid, sizeof(d->meta.uuid));
	d->journal.stamp = rng_next(rng);
	err = nd_index_init(&d->ix, o->size, o->chunk);
	if (err)
		return err_sys(e, err, "no memory for the map of the near store");
	err = file_open(d, ND_DATA, NEAR_DISK_MAKE, &d->data_fd, o->dir, e);
	if (!err)
		err = file_open(d, ND_JOURNAL, NEAR_DISK_MAKE, &d->journal.fd, o->dir, e);
	if (err)
		return err;
	err = d->io.truncate(d->io.arg, d->data_fd, d->ix.pages * PAGE_BYTES);
	if (err)
		return err_sys(e, err, "\"%s\" has no room for a file of %s", o->dir,
			       size_format(o->size, text));
	err = punch_try(d, o->dir, e);
	if (err)
		return err;
	err = nd_journal_begin(d);
	if (!err)
		err = meta_write(d);
	return err ? err_sys(e, err, "a near store cannot be made in \"%s\"", o->dir) : 0;
}

/* ---- what is there ---- */

static int scan_damaged(const struct near_disk *d, const struct nd_scan *s, const char *dir,
			struct err *e)
{
	struct range r = nd_index_next(&d->ix, d->ix.lost, 0, UINT64_MAX);
	char text[SIZE_TEXT_MAX];

	if (s->damaged_at != UINT64_MAX)
		return err_set(e, -EUCLEAN,
			       "the journal of the near store in \"%s\" is damaged at byte %" PRIu64
			       ": what was written and had not been pushed may be lost, nobody can "
			       "tell how much; \"remora cache drop --force %s\" gives it up",
			       dir, s->damaged_at, dir);
	if (!r.len)
		return 0;
	return err_set(e, -EUCLEAN,
		       "the near store in \"%s\" is damaged: what was written to bytes %" PRIu64
		       " to %" PRIu64 " of the resource, and had not been pushed, is lost (%s in "
		       "all); \"remora cache drop --force %s\" gives up all of it",
		       dir, r.off, range_end(r) - 1,
		       size_format(d->ix.lost_pages * PAGE_BYTES, text), dir);
}

/* Chunks that are not known any more, and pages that nobody wrote, are given back. */
static int tidy(struct near_disk *d)
{
	struct nd_index *ix = &d->ix;
	uint64_t end = ix->pages * PAGE_BYTES, at = 0;
	int err = 0;

	while (!err && at < end) {
		struct range dirty;
		uint64_t stop = at, c;

		if (d->io.find && d->io.find(d->io.arg, d->data_fd, at, &at))
			break; /* nothing more is there */
		if (at >= end)
			break;
		at = align_down(at, PAGE_BYTES);
		if (ix->flags[at >> ix->shift] & ND_IS_CLEAN) {
			at = range_end(nd_chunk(ix, at >> ix->shift));
			continue;
		}
		dirty = nd_index_next(ix, ix->dirty, at, end);
		stop = dirty.len ? dirty.off : end;
		for (c = at >> ix->shift; c << ix->shift < stop; c++)
			if (ix->flags[c] & ND_IS_CLEAN)
				stop = c << ix->shift;
		if (stop > at)
			err = d->io.punch(d->io.arg, d->data_fd, at, stop - at);
		at = MAX(stop, dirty.len && stop == dirty.off ? range_end(dirty) : 0);
	}
	return err;
}

static void journal_take(struct near_disk *d, const struct nd_scan *s)
{
	struct nd_journal *j = &d->journal;

	j->stamp = s->stamp;
	j->seq = s->seq;
	j->written = j->allocated = j->fresh = s->end;
	j->synced = s->end;
	for (uint64_t c = 0; c < d->ix.chunks && d->ix.clean_chunks; c++)
		if (d->ix.flags[c] & ND_IS_CLEAN)
			nd_index_flag(&d->ix, c, ND_UNSEEN | ND_HAS_ROOM, 0);
}

static int scan(struct near_disk *d, const char *dir, struct err *e)
{
	struct nd_scan s = { .io = &d->io, .fd = d->journal.fd, .ix = &d->ix,
			     .uuid = d->meta.uuid };
	int err = nd_scan(&s);

	if (err)
		err_sys(e, err, "the journal of the near store in \"%s\" cannot be read", dir);
	else
		err = scan_damaged(d, &s, dir, e);
	if (err)
		goto out;
	/* What is torn must not come back behind what is going to be appended. */
	if (s.file_size > s.end)
		err = d->io.truncate(d->io.arg, d->journal.fd, s.end);
	if (!err)
		err = d->io.sync(d->io.arg, d->journal.fd);
	/* That it is this file may not be safe yet: whoever was killed had just renamed it. */
	if (!err)
		err = d->io.sync_dir(d->io.arg);
	if (!err)
		err = nd_replay(&s, d->data_fd);
	if (!err)
		err = tidy(d);
	if (err)
		err_sys(e, err, "what was left in \"%s\" cannot be put in order", dir);
	else
		journal_take(d, &s);
out:
	nd_scan_done(&s);
	return err;
}

static int reuse(struct near_disk *d, const struct near_disk_options *o, struct err *e)
{
	uint64_t size;
	int err = meta_fits(&d->meta, o, e);

	if (err)
		return err;
	err = nd_index_init(&d->ix, d->meta.size, d->meta.chunk);
	if (err)
		return err_sys(e, err, "no memory for the map of the near store");
	err = file_open(d, ND_DATA, NEAR_DISK_USE, &d->data_fd, o->dir, e);
	if (!err)
		err = file_open(d, ND_JOURNAL, NEAR_DISK_USE, &d->journal.fd, o->dir, e);
	if (err)
		return err;
	(void)d->io.unlink(d->io.arg, ND_JOURNAL_NEW);
	err = d->io.size(d->io.arg, d->data_fd, &size);
	if (!err && size != d->ix.pages * PAGE_BYTES)
		err = d->io.truncate(d->io.arg, d->data_fd, d->ix.pages * PAGE_BYTES);
	if (err)
		return err_sys(e, err, "the file %s/" ND_DATA, o->dir);
	return scan(d, o->dir, e);
}

/* ---- the whole ---- */

void nd_free(struct near_disk *d)
{
	const int fds[] = { d->data_fd, d->journal.fd, d->lock_fd };

	for (size_t i = 0; i < ARRAY_LEN(fds); i++)
		if (fds[i] >= 0)
			d->io.close(d->io.arg, fds[i]);
	if (d->io.done)
		d->io.done(d->io.arg);
	nd_index_done(&d->ix);
	free(d->scratch);
	free(d);
}

static int fill(struct near_disk *d, const struct near_disk_options *o, struct err *e)
{
	int err = nd_lock(&d->io, o->dir, &d->lock_fd, e);

	if (err)
		return err;
	err = nd_meta_read(&d->io, &d->meta, o->dir, e);
	if (err == -ENOENT)
		err = make(d, o, e);
	else if (!err)
		err = reuse(d, o, e);
	if (!err)
		err = holder_write(d, o->holder, e);
	if (err)
		return err;
	d->scratch = malloc(d->meta.chunk);
	if (!d->scratch)
		return err_sys(e, -ENOMEM, "a near store on a disk");
	d->chunk_zeros = nd_hash_zeros(d->meta.chunk);
	d->torn = true; /* who knows */
	d->slack = ND_SLACK_MAX;
	if (o->budget_bytes)
		d->slack = MAX(MIN(d->slack, o->budget_bytes / 16), ND_SLACK_MIN);
	d->interval_ns = o->sync_interval_ns ? o->sync_interval_ns : NS_PER_S;
	d->near = (struct near){
		.ops = &near_disk_ops,
		.chunk = d->meta.chunk,
		.partial = nd_index_partial(&d->ix),
		.extra_least = 4 * ND_SLACK_MIN,
	};
	nd_room_changed(d);
	return 0;
}

int near_disk_open(struct near **ret, struct loop *loop, const struct near_disk_options *o,
		   struct err *e)
{
	struct near_disk *d = calloc(1, sizeof(*d));
	int err = 0;

	CHECK(is_pow2(o->chunk) && o->chunk >= CHUNK_MIN && o->chunk <= CHUNK_MAX);
	if (!d) {
		if (o->io && o->io->done)
			o->io->done(o->io->arg);
		return err_sys(e, -ENOMEM, "a near store on a disk");
	}
	d->loop = loop;
	d->lock_fd = d->data_fd = d->journal.fd = -1;
	nd_journal_init(d);
	nd_compact_init(d);
	if (o->io)
		d->io = *o->io;
	else
		err = near_disk_dir(&d->io, o->dir, e);
	if (!err)
		err = fill(d, o, e);
	if (err) {
		nd_free(d);
		return err;
	}
	*ret = &d->near;
	return 0;
}
