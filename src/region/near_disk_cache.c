/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Near stores on a disk as people see them: what is in one, whether it is what it was, and taking
 * it away.
 *
 * Place: below `remora cache`.
 *
 * Invariants: looking changes nothing, and needs no lock: a journal that is being appended to ends
 * somewhere, and one that is being replaced is one or the other. Comparing and removing hold the
 * lock. `meta` goes first: without it there is no store.
 *
 * Locking: none.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "region/near_disk_int.h"

struct look {
	struct near_disk_io io;
	struct nd_index ix;
	const char *dir;
	int lock_fd;
};

static void look_close(struct look *l)
{
	if (l->lock_fd >= 0)
		l->io.close(l->io.arg, l->lock_fd);
	nd_index_done(&l->ix);
	if (l->io.done)
		l->io.done(l->io.arg);
}

static int look_open(struct look *l, const char *dir, const struct near_disk_io *io, struct err *e)
{
	*l = (struct look){ .dir = dir, .lock_fd = -1 };
	if (!io)
		return near_disk_dir(&l->io, dir, e);
	l->io = *io;
	return 0;
}

/* Whether somebody has it. */
static void look_holder(struct look *l, struct near_disk_look *ret)
{
	int fd = l->io.open(l->io.arg, ND_LOCK, NEAR_DISK_LOOK);

	if (fd < 0)
		return;
	ret->held = l->io.lock(l->io.arg, fd, false) == -EAGAIN;
	if (ret->held)
		nd_holder_read(&l->io, fd, ret->holder, sizeof(ret->holder));
	l->io.close(l->io.arg, fd);
}

static int look_scan(struct look *l, struct near_disk_look *ret, int fd, struct err *e)
{
	struct nd_scan s = { .io = &l->io, .fd = fd, .ix = &l->ix, .uuid = ret->meta.uuid };
	int err = nd_index_init(&l->ix, ret->meta.size, ret->meta.chunk);

	if (!err)
		err = nd_scan(&s);
	nd_scan_done(&s);
	if (err)
		return err_sys(e, err, "the journal of the near store in \"%s\"", l->dir);
	ret->journal_damaged = s.damaged && s.damaged_at != UINT64_MAX;
	ret->journal_at = ret->journal_damaged ? s.damaged_at : 0;
	ret->journal_bytes = s.file_size;
	ret->dirty_bytes = l->ix.dirty_pages * PAGE_BYTES;
	ret->lost_bytes = l->ix.lost_pages * PAGE_BYTES;
	for (uint64_t c = 0; c < l->ix.chunks && l->ix.clean_chunks; c++)
		if (l->ix.flags[c] & ND_IS_CLEAN)
			ret->clean_bytes += nd_chunk(&l->ix, c).len;
	return 0;
}

static int look_journal(struct look *l, struct near_disk_look *ret, struct err *e)
{
	int fd = l->io.open(l->io.arg, ND_JOURNAL, NEAR_DISK_LOOK), err;

	if (fd == -ENOENT) { /* without it nothing is known */
		ret->journal_damaged = true;
		return 0;
	}
	if (fd < 0)
		return err_sys(e, fd, "the file %s/" ND_JOURNAL, l->dir);
	if (l->io.changed)
		ret->used_ns = l->io.changed(l->io.arg, fd);
	err = look_scan(l, ret, fd, e);
	l->io.close(l->io.arg, fd);
	return err;
}

static int look_compare(struct look *l, struct near_disk_look *ret, struct err *e)
{
	uint8_t *buf = malloc(ret->meta.chunk);
	int fd = l->io.open(l->io.arg, ND_DATA, NEAR_DISK_LOOK);

	if (!buf || fd < 0) {
		free(buf);
		if (fd >= 0)
			l->io.close(l->io.arg, fd);
		return err_sys(e, fd < 0 ? fd : -ENOMEM, "the file %s/" ND_DATA, l->dir);
	}
	for (uint64_t c = 0; c < l->ix.chunks && ret->clean_bytes; c++) {
		struct range r = nd_chunk(&l->ix, c);

		if (!(l->ix.flags[c] & ND_IS_CLEAN))
			continue;
		if (near_disk_read(&l->io, fd, r.off, buf, (size_t)r.len) ||
		    nd_hash(buf, (size_t)r.len) != l->ix.hash[c])
			ret->bad_bytes += r.len;
	}
	l->io.close(l->io.arg, fd);
	free(buf);
	return 0;
}

int near_disk_look(struct near_disk_look *ret, const char *dir, enum near_disk_compare compare,
		   const struct near_disk_io *io, struct err *e)
{
	struct look l;
	int err = look_open(&l, dir, io, e);

	*ret = (struct near_disk_look){ 0 };
	if (err)
		return err;
	err = nd_meta_read(&l.io, &ret->meta, dir, e);
	if (!err && compare == NEAR_DISK_COMPARE)
		err = nd_lock(&l.io, dir, &l.lock_fd, e);
	else if (!err)
		look_holder(&l, ret);
	if (!err)
		err = look_journal(&l, ret, e);
	if (!err && compare == NEAR_DISK_COMPARE && !ret->journal_damaged)
		err = look_compare(&l, ret, e);
	look_close(&l);
	return err;
}

/* ---- taking it away ---- */

static int remove_refused(const struct look *l, const struct near_disk_look *ret, int unreadable,
			  struct err *e)
{
	char text[SIZE_TEXT_MAX];

	if (unreadable || ret->journal_damaged)
		return err_set(e, -EUCLEAN,
			       "the near store in \"%s\" is damaged: it may hold what was written and "
			       "not pushed; --force gives that up",
			       l->dir);
	if (!ret->dirty_bytes && !ret->lost_bytes)
		return 0;
	return err_set(e, -EUCLEAN,
		       "%s that were written to %.150s and not pushed would be lost: mount it with "
		       "--near %s, and remora unmount pushes them; --force gives them up",
		       size_format(ret->dirty_bytes + ret->lost_bytes, text), ret->meta.spec,
		       l->dir);
}

static int remove_files(struct look *l, struct err *e)
{
	static const char *const names[] = { ND_META, ND_META_NEW, ND_JOURNAL, ND_JOURNAL_NEW,
					     ND_DATA, ND_LOCK };

	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		int err = l->io.unlink(l->io.arg, names[i]);

		if (!err && !i)
			err = l->io.sync_dir(l->io.arg);
		if (err && err != -ENOENT)
			return err_sys(e, err, "the file %s/%s cannot be removed", l->dir,
				       names[i]);
	}
	return 0;
}

int near_disk_remove(struct near_disk_look *ret, const char *dir, bool force, struct err *e)
{
	struct look l;
	struct err why;
	int err = look_open(&l, dir, NULL, e), unreadable;

	*ret = (struct near_disk_look){ 0 };
	if (err)
		return err;
	unreadable = nd_meta_read(&l.io, &ret->meta, dir, &why);
	if (unreadable && unreadable != -EUCLEAN) {
		err = err_set(e, unreadable, "%s", why.text);
		goto out;
	}
	err = nd_lock(&l.io, dir, &l.lock_fd, e);
	if (err)
		goto out;
	if (!unreadable)
		unreadable = look_journal(&l, ret, &why);
	if (!force)
		err = remove_refused(&l, ret, unreadable, e);
	if (!err)
		err = remove_files(&l, e);
out:
	look_close(&l);
	return err;
}
