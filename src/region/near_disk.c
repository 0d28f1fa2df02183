/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A near store in a directory: what it keeps survives kill -9, and a power cut as far as it had
 * been made safe.
 *
 *   write() ──▶ journal: DIRTY with the pages ──▶ data, in place
 *   put()   ──▶ data, in place                      settled() ──▶ journal: CLEAN with the hash
 *   drop()  ──▶ journal: DROP ──▶ hole in data      sync() ──▶ the journal is safe
 *
 * Place: the near store of a region (near.h). docs/near.md tells the format, and why nothing more
 * than the journal has ever to be made safe.
 *
 * Invariants:
 *  1. Nothing in `data` is believed: what is dirty is written there from the journal at the next
 *     opening, what is clean has to have its hash.
 *  2. A record of what is dirty holds whole pages, and is in the file before `data` changes.
 *  3. A clean chunk that was there at the opening is compared before anything of it is used, or
 *     changed in part (ND_UNSEEN). Later it is what this process has written there.
 *  4. The hash of a chunk is taken from what is put, as it comes, or by a thread of the pool, and
 *     then counts only if the chunk has not been touched meanwhile (ND_HASHING).
 *  5. Room in `data` is set aside chunk by chunk before anything is written, so that a full disk is
 *     found out before a record of it exists.
 *
 * Locking: loop thread; a work of the pool has only what is set aside for it, and reads of files.
 */
#include "region/near_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "region/near_disk_int.h"

static struct near_disk *disk_of(struct near *near)
{
	return CONTAINER_OF(near, struct near_disk, near);
}

static uint64_t chunk_of(const struct near_disk *d, uint64_t off)
{
	return off >> d->ix.shift;
}

/* ---- room ---- */

void nd_room_changed(struct near_disk *d)
{
	d->near.extra_bytes = nd_journal_end(d) + d->compact.room;
}

static bool disk_tidy(struct near *near)
{
	return nd_compact_for_room(disk_of(near));
}

static int chunk_room(struct near_disk *d, struct range r)
{
	for (uint64_t c = chunk_of(d, r.off), end = chunk_of(d, range_end(r) - 1) + 1; c < end;) {
		struct range chunk;
		uint64_t first = c;
		int err;

		while (c < end && !(d->ix.flags[c] & ND_HAS_ROOM))
			c++;
		if (c == first) {
			c++;
			continue;
		}
		chunk = nd_chunk(&d->ix, first);
		chunk = range_between(chunk.off, range_end(nd_chunk(&d->ix, c - 1)));
		err = d->io.allocate(d->io.arg, d->data_fd, chunk.off, chunk.len);
		if (err)
			return err;
		while (first < c)
			nd_index_flag(&d->ix, first++, ND_HAS_ROOM, 0);
	}
	return 0;
}

/* What is obsolete in the journal may be the room that is missing. */
static int no_room(struct near_disk *d, int err)
{
	return err == -ENOSPC && nd_compact_for_room(d) ? -EAGAIN : err;
}

/* ---- putting ---- */

static int put_zeros(struct near_disk *d, struct range r)
{
	return d->torn ? d->io.punch(d->io.arg, d->data_fd, r.off, r.len) : 0;
}

static void put_hash(struct near_disk *d, uint64_t off, const uint8_t *src, size_t len)
{
	struct range r = range_of(off, len);

	for (uint64_t c = chunk_of(d, off); c <= chunk_of(d, off + len - 1); c++) {
		struct range chunk = nd_chunk(&d->ix, c);

		nd_index_flag(&d->ix, c, 0, ND_HASHED | ND_HASHING);
		if (!range_contains(r, chunk))
			continue;
		if (src)
			d->ix.hash[c] = nd_hash(src + (chunk.off - off), (size_t)chunk.len);
		else if (chunk.len == d->meta.chunk)
			d->ix.hash[c] = d->chunk_zeros;
		else
			d->ix.hash[c] = nd_hash_zeros((size_t)chunk.len);
		nd_index_flag(&d->ix, c, ND_HASHED, 0);
	}
}

/* The region asks for nothing but what is absent. */
static int disk_put(struct near *near, uint64_t off, const void *src, size_t len)
{
	struct near_disk *d = disk_of(near);
	int err;

	if (src) {
		err = chunk_room(d, range_of(off, len));
		if (!err)
			err = near_disk_write(&d->io, d->data_fd, off, src, len);
		if (err)
			d->torn = true;
	} else {
		err = put_zeros(d, range_of(off, len));
	}
	if (err)
		return no_room(d, err);
	put_hash(d, off, src, len);
	return 0;
}

/* ---- comparing ---- */

static int chunk_bad(struct near_disk *d, uint64_t c)
{
	d->near.damaged_bytes += nd_chunk(&d->ix, c).len;
	return -EBADMSG;
}

static int chunk_compare(struct near_disk *d, uint64_t c)
{
	struct range chunk = nd_chunk(&d->ix, c);
	int err;

	if (!(d->ix.flags[c] & ND_UNSEEN))
		return 0;
	err = near_disk_read(&d->io, d->data_fd, chunk.off, d->scratch, (size_t)chunk.len);
	if (err || nd_hash(d->scratch, (size_t)chunk.len) != d->ix.hash[c])
		return chunk_bad(d, c);
	nd_index_flag(&d->ix, c, 0, ND_UNSEEN);
	return 0;
}

static int disk_read(struct near *near, uint64_t off, void *buf, size_t len)
{
	struct near_disk *d = disk_of(near);
	int err;

	for (uint64_t c = chunk_of(d, off); c <= chunk_of(d, off + len - 1); c++) {
		err = chunk_compare(d, c);
		if (err)
			return err;
	}
	err = near_disk_read(&d->io, d->data_fd, off, buf, len);
	/* what the disk does not give back of a clean chunk is far away still */
	if (err && d->ix.flags[chunk_of(d, off)] & ND_IS_CLEAN)
		return chunk_bad(d, chunk_of(d, off));
	return err;
}

/* ---- writing ---- */

/* The pages that a write changes, as up to three pieces: what is there of the first and last one is
 * taken along. */
struct pieces {
	struct range pages;
	struct iovec iov[3];
	int count;
	uint8_t edge[2][PAGE_BYTES];
};

static int edge_read(struct near_disk *d, struct pieces *p, unsigned i, uint64_t page)
{
	p->iov[p->count++] = (struct iovec){ p->edge[i], PAGE_BYTES };
	return near_disk_read(&d->io, d->data_fd, page, p->edge[i], PAGE_BYTES);
}

static int pieces_make(struct near_disk *d, struct pieces *p, uint64_t off, const uint8_t *src,
		       size_t len)
{
	uint64_t end = off + len, tail = align_down(end, PAGE_BYTES);
	uint64_t body = align_up(off, PAGE_BYTES);
	size_t head = (size_t)(off % PAGE_BYTES);
	int err = 0;

	p->pages = range_align_out(range_of(off, len), PAGE_BYTES);
	p->count = 0;
	if (head) {
		err = edge_read(d, p, 0, p->pages.off);
		memcpy(p->edge[0] + head, src, MIN(len, PAGE_BYTES - head));
	}
	if (body < tail)
		p->iov[p->count++] = (struct iovec){ (void *)(uintptr_t)(src + (body - off)),
						     (size_t)(tail - body) };
	if (!err && tail < end && tail >= body) {
		err = edge_read(d, p, 1, tail);
		memcpy(p->edge[1], src + (tail - off), (size_t)(end - tail));
	}
	return err;
}

static bool all_zero(const struct pieces *p)
{
	for (int i = 0; i < p->count; i++) {
		const uint8_t *at = p->iov[i].iov_base;

		if (*at || memcmp(at, at + 1, p->iov[i].iov_len - 1))
			return false;
	}
	return true;
}

/* Of clean chunks that are changed in part, the rest is to be relied on from now on. */
static int write_compare(struct near_disk *d, struct range pages)
{
	for (uint64_t c = chunk_of(d, pages.off); c <= chunk_of(d, range_end(pages) - 1); c++) {
		int err = range_contains(pages, nd_chunk(&d->ix, c)) ? 0 : chunk_compare(d, c);

		if (err)
			return err;
	}
	return 0;
}

/* Obsolete records must not pile up while the journal is being written anew. */
static bool journal_too_long(struct near_disk *d)
{
	return nd_compact_busy(d) &&
	       d->journal.written > 4 * (nd_live_bytes(d) + d->slack) + ND_PAYLOAD_MAX;
}

/* Something of these may have been written over, nobody knows what: to be compared again. */
static void chunks_suspect(struct near_disk *d, struct range pages)
{
	for (uint64_t c = chunk_of(d, pages.off); c <= chunk_of(d, range_end(pages) - 1); c++)
		if (d->ix.flags[c] & ND_IS_CLEAN)
			nd_index_flag(&d->ix, c, ND_UNSEEN, 0);
}

static int write_pages(struct near_disk *d, struct pieces *p, uint64_t off, const void *src,
		       size_t len)
{
	uint64_t written;
	int err = chunk_room(d, p->pages);

	if (err)
		return no_room(d, err);
	nd_journal_flush(d);
	written = d->journal.written;
	err = nd_journal_dirty(d, p->pages, p->iov, p->count, all_zero(p));
	if (err)
		return no_room(d, err);
	err = near_disk_write(&d->io, d->data_fd, off, src, len);
	if (err) {
		d->torn = true;
		nd_journal_undo(d, written);
		chunks_suspect(d, p->pages);
		return no_room(d, err);
	}
	nd_index_dirty(&d->ix, p->pages);
	nd_compact_try(d);
	return 0;
}

static int disk_write(struct near *near, uint64_t off, const void *src, size_t len)
{
	struct near_disk *d = disk_of(near);
	struct pieces p;
	int err = write_compare(d, range_align_out(range_of(off, len), PAGE_BYTES));

	if (err)
		return err;
	if (journal_too_long(d))
		return -EAGAIN;
	err = pieces_make(d, &p, off, src, len);
	return err ? err : write_pages(d, &p, off, src, len);
}

/* ---- dropping ---- */

static int disk_drop(struct near *near, struct range r)
{
	struct near_disk *d = disk_of(near);
	bool told = nd_index_next(&d->ix, d->ix.dirty, r.off, range_end(r)).len;
	int err;

	for (uint64_t c = chunk_of(d, r.off); c <= chunk_of(d, range_end(r) - 1); c++) {
		told = told || d->ix.flags[c] & ND_IS_CLEAN;
		nd_index_flag(&d->ix, c, 0, ND_HAS_ROOM);
	}
	if (told)
		nd_journal_small(d, ND_DROP, r, NULL, 0);
	nd_index_drop(&d->ix, r);
	err = d->io.punch(d->io.arg, d->data_fd, r.off, r.len);
	if (err)
		d->torn = true;
	d->compact.failed_ns = 0; /* there is room for it, perhaps */
	return err;
}

/* ---- settling ---- */

static void clean_tell(struct near_disk *d, uint64_t first, uint64_t end)
{
	while (first < end) {
		uint32_t count = (uint32_t)MIN(end - first, (uint64_t)ND_CLEAN_MAX);
		uint64_t stop = range_end(nd_chunk(&d->ix, first + count - 1));

		nd_journal_small(d, ND_CLEAN, range_between(first << d->ix.shift, stop),
				 d->ix.hash + first, count);
		for (; count; count--, first++)
			nd_index_clean_keep(&d->ix, first);
	}
}

static void hash_run(struct near_disk *d);

static int hash_call(struct work *work)
{
	struct near_disk *d = CONTAINER_OF(work, struct near_disk, hasher.work);
	struct nd_hasher *h = &d->hasher;
	uint8_t *buf = malloc(d->meta.chunk);

	if (!buf)
		return -ENOMEM;
	for (unsigned i = 0; i < h->count; i++) {
		struct range chunk = nd_chunk(&d->ix, h->chunk[i]);

		h->err[i] = near_disk_read(&d->io, d->data_fd, chunk.off, buf, (size_t)chunk.len);
		h->hash[i] = nd_hash(buf, (size_t)chunk.len);
	}
	free(buf);
	return 0;
}

static void hash_done(struct op *op, int res)
{
	struct near_disk *d = CONTAINER_OF(op, struct near_disk, hasher.work.op);
	struct nd_hasher *h = &d->hasher;

	h->busy = false;
	for (unsigned i = 0; i < h->count; i++) {
		uint64_t c = h->chunk[i];

		if (!(d->ix.flags[c] & ND_HASHING))
			continue; /* it has changed, or is gone */
		nd_index_flag(&d->ix, c, 0, ND_HASHING);
		if (res < 0 || h->err[i])
			continue; /* found dirty, or not at all, next time */
		d->ix.hash[c] = h->hash[i];
		clean_tell(d, c, c + 1);
	}
	hash_run(d);
	nd_compact_try(d);
	nd_stop_try(d);
}

static void hash_run(struct near_disk *d)
{
	struct nd_hasher *h = &d->hasher;
	struct nd_index *ix = &d->ix;
	uint64_t bytes = 0;

	if (h->busy || !ix->want_count)
		return;
	h->count = 0;
	while (ix->want_count && h->count < ND_BATCH_ITEMS && bytes < ND_BATCH_BYTES) {
		h->cursor = nd_index_want_next(ix, h->cursor);
		h->chunk[h->count++] = h->cursor;
		bytes += d->meta.chunk;
		nd_index_flag(ix, h->cursor, ND_HASHING, ND_WANTED);
	}
	h->busy = true;
	h->work.call = hash_call;
	h->work.op.done = hash_done;
	pool_run(d->loop, &h->work);
}

static void disk_settled(struct near *near, struct range r)
{
	struct near_disk *d = disk_of(near);
	uint64_t end = chunk_of(d, range_end(r) - 1) + 1;

	for (uint64_t c = chunk_of(d, r.off), first; c < end; c++) {
		first = c;
		while (c < end && (d->ix.flags[c] & (ND_HASHED | ND_IS_CLEAN)) == ND_HASHED)
			c++;
		clean_tell(d, first, c);
		if (c < end && !(d->ix.flags[c] & (ND_IS_CLEAN | ND_HASHING)))
			nd_index_want(&d->ix, c, true);
	}
	hash_run(d);
}

/* ---- what was there ---- */

static void disk_recover(struct near *near,
			 void (*found)(void *arg, struct range pages, bool dirty), void *arg)
{
	struct near_disk *d = disk_of(near);
	struct nd_index *ix = &d->ix;
	uint64_t end = ix->pages * PAGE_BYTES;

	for (uint64_t c = 0; c < ix->chunks && ix->clean_chunks; c++)
		if (ix->flags[c] & ND_IS_CLEAN)
			found(arg, nd_chunk(ix, c), false);
	for (uint64_t at = 0; ix->dirty_pages;) {
		struct range r = nd_index_next(ix, ix->dirty, at, end);

		if (!r.len)
			break;
		at = range_end(r);
		found(arg, r, true);
	}
}

/* ---- the end ---- */

static void stop_told(struct post *post)
{
	struct near_disk *d = CONTAINER_OF(post, struct near_disk, stop_post);

	d->stopped(d->stopped_arg);
}

static bool stop_safe(struct near_disk *d)
{
	if (d->spoiled || (d->journal.fresh <= d->journal.synced && !d->sync_dir))
		return true;
	if (!d->timer_syncing) {
		d->timer_syncing = true;
		d->timer_syncing = nd_sync(&d->near, &d->timer_sync) == -EINPROGRESS;
	}
	return !d->timer_syncing;
}

void nd_stop_try(struct near_disk *d)
{
	if (!d->stopped || d->stop_post.run || d->syncing || d->hasher.busy || nd_compact_busy(d))
		return;
	if (!stop_safe(d))
		return;
	nd_journal_flush(d);
	if (d->flush_posted)
		return; /* looks again */
	d->stop_post.run = stop_told;
	loop_defer(d->loop, &d->stop_post);
}

static void disk_stop(struct near *near, void (*done)(void *arg), void *arg)
{
	struct near_disk *d = disk_of(near);

	CHECK(!d->stopped);
	d->stopping = true;
	timer_clear(d->loop, &d->timer);
	d->stopped = done;
	d->stopped_arg = arg;
	nd_stop_try(d);
}

static void disk_close(struct near *near)
{
	struct near_disk *d = disk_of(near);

	CHECK(!d->syncing && !d->hasher.busy && !nd_compact_busy(d) && !d->flush_posted);
	timer_clear(d->loop, &d->timer);
	nd_free(d);
}

const struct near_ops near_disk_ops = {
	.put = disk_put,
	.read = disk_read,
	.write = disk_write,
	.drop = disk_drop,
	.recover = disk_recover,
	.settled = disk_settled,
	.tidy = disk_tidy,
	.sync = nd_sync,
	.stop = disk_stop,
	.close = disk_close,
};
