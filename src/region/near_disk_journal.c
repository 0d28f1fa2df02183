/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Appending to the journal, and making it safe.
 *
 *   nd_journal_dirty ──▶ file, at once (what waited in `small` before it, in the same write)
 *   nd_journal_small ──▶ small ──▶ file, at the end of the loop's iteration
 *   nd_sync, timer ─────▶ thread: fdatasync ──▶ sync_done: a SYNC record, and whoever waits is told
 *
 * Invariants:
 *  1. Everything in the file before `written` is whole records; what a failed write has left
 *     behind is cut off before anything follows.
 *  2. Room is set aside before a record with data is begun, and some more is kept for records
 *     without, so that a full disk does not stop what makes room (ND_RESERVE_BYTES).
 *  3. A record without data that cannot be written is forgotten, and the journal written anew as
 *     soon as that goes. Without a CLEAN the chunk is pulled, or what it says is pushed, once more;
 *     without a DROP the chunk fails its comparison, or is pushed once more; without a SYNC less
 *     damage is told from a torn end.
 *  4. A SYNC record is written when its sync has succeeded, hence becomes safe with the next one.
 *
 * Locking: loop thread; the thread of a sync has its descriptor alone, and no sync is under way
 * while the journal is replaced.
 */
#include <errno.h>
#include <string.h>

#include "region/near_disk_int.h"

#include "base/le.h"

void nd_record_fill(struct nd_record *rec, enum nd_type type, struct range r, const void *payload,
		    size_t len)
{
	*rec = (struct nd_record){
		.type = (uint16_t)type, .off = r.off, .len = r.len, .payload_len = (uint32_t)len,
		.payload_hash = len ? nd_hash(payload, len) : 0,
	};
}

uint64_t nd_journal_end(const struct near_disk *d)
{
	return d->journal.written + d->journal.small_len;
}

/* ---- room ---- */

static int room_take(struct near_disk *d, uint64_t end)
{
	struct nd_journal *j = &d->journal;
	uint64_t step = MIN(MAX(d->slack / 16, 64 * KIB), 1 * MIB);
	uint64_t want = align_up(end + step, 64 * KIB);
	int err;

	if (end <= j->allocated)
		return 0;
	err = d->io.allocate(d->io.arg, j->fd, j->allocated, want - j->allocated);
	if (err) {
		want = align_up(end, PAGE_BYTES);
		err = d->io.allocate(d->io.arg, j->fd, j->allocated, want - j->allocated);
	}
	if (!err)
		j->allocated = want;
	return err;
}

/* ---- appending ---- */

/* The pieces behind the small ones; the file's end moves, or nothing has happened. */
static int append(struct near_disk *d, const struct iovec *iov, int count, uint64_t len)
{
	struct nd_journal *j = &d->journal;
	struct iovec all[6] = { { j->small, j->small_len } };
	int err;

	CHECK(count < (int)ARRAY_LEN(all));
	for (int i = 0; i < count; i++)
		all[i + 1] = iov[i];
	err = d->io.write(d->io.arg, j->fd, all, count + 1, j->written);
	if (err) {
		/* not even that: what is there now is no record, and is written over */
		(void)d->io.truncate(d->io.arg, j->fd, j->written);
		j->allocated = MIN(j->allocated, j->written);
		return err;
	}
	j->written += j->small_len + len;
	j->small_len = 0;
	nd_room_changed(d);
	return 0;
}

static void head_put(struct near_disk *d, struct nd_record *rec, uint8_t *head)
{
	rec->stamp = d->journal.stamp;
	rec->seq = d->journal.seq;
	nd_record_put(head, rec);
}

void nd_journal_flush(struct near_disk *d)
{
	struct nd_journal *j = &d->journal;

	if (!j->small_len)
		return;
	(void)room_take(d, nd_journal_end(d));
	if (!append(d, NULL, 0, 0))
		return;
	j->seq = j->small_seq;
	j->small_len = 0;
	j->fresh = MIN(j->fresh, j->written);
	d->compact.wanted = true;
}

static void flush_run(struct post *post)
{
	struct near_disk *d = CONTAINER_OF(post, struct near_disk, flush_post);

	d->flush_posted = false;
	nd_journal_flush(d);
	nd_compact_try(d);
	nd_stop_try(d);
}

static void flush_later(struct near_disk *d)
{
	if (d->flush_posted)
		return;
	d->flush_posted = true;
	loop_defer(d->loop, &d->flush_post);
}

void nd_journal_small(struct near_disk *d, enum nd_type type, struct range r,
		      const uint64_t *hash, uint32_t hashes)
{
	struct nd_journal *j = &d->journal;
	struct nd_record rec;
	uint8_t *at;
	size_t room = ND_RECORD + align_up(8 * hashes, ND_RECORD);

	CHECK(room <= sizeof(j->small));
	if (j->small_len + room > sizeof(j->small))
		nd_journal_flush(d);
	at = j->small + j->small_len;
	memset(at, 0, room);
	for (uint32_t i = 0; i < hashes; i++)
		put64(at + ND_RECORD + 8 * (size_t)i, hash[i]);
	nd_record_fill(&rec, type, r, at + ND_RECORD, 8 * (size_t)hashes);
	head_put(d, &rec, at);
	if (!j->small_len)
		j->small_seq = j->seq;
	j->seq++;
	j->small_len += room;
	if (type != ND_SYNC) {
		j->fresh = nd_journal_end(d);
		nd_timer_plan(d);
	}
	flush_later(d);
}

int nd_journal_dirty(struct near_disk *d, struct range pages, const struct iovec *iov, int count,
		     bool zeros)
{
	static const uint8_t padding[ND_RECORD];
	struct nd_journal *j = &d->journal;
	struct nd_record rec = { .type = ND_DIRTY, .flags = zeros ? ND_ZEROS : 0,
				 .off = pages.off, .len = pages.len };
	struct iovec all[5];
	uint8_t head[ND_RECORD];
	uint64_t room;
	int err;

	CHECK(count <= 3 && pages.len <= ND_PAYLOAD_MAX);
	if (!zeros) {
		rec.payload_len = (uint32_t)pages.len;
		rec.payload_hash = nd_hash_pieces(iov, count);
	}
	room = nd_record_room(&rec);
	err = room_take(d, nd_journal_end(d) + room + ND_RESERVE_BYTES);
	if (err)
		return err;
	head_put(d, &rec, head);
	all[0] = (struct iovec){ head, sizeof(head) };
	for (int i = 0; !zeros && i < count; i++)
		all[i + 1] = iov[i];
	if (zeros)
		count = 0;
	all[count + 1] = (struct iovec){ (void *)(uintptr_t)padding,
					 room - sizeof(head) - rec.payload_len };
	err = append(d, all, count + 2, room);
	if (err)
		return err;
	j->seq++;
	j->fresh = j->written;
	nd_timer_plan(d);
	return 0;
}

/* Nothing has been appended since, and small is empty. */
void nd_journal_undo(struct near_disk *d, uint64_t written)
{
	struct nd_journal *j = &d->journal;

	CHECK(!j->small_len && written < j->written);
	(void)d->io.truncate(d->io.arg, j->fd, written);
	j->written = written;
	j->allocated = MIN(j->allocated, written);
	j->fresh = MIN(j->fresh, written);
	j->seq--;
}

int nd_journal_begin(struct near_disk *d)
{
	struct nd_journal *j = &d->journal;
	uint8_t first[2 * ND_RECORD] = { 0 };
	struct nd_record rec;
	int err;

	j->seq = 1;
	nd_record_fill(&rec, ND_BEGIN, range_of(0, 0), d->meta.uuid, sizeof(d->meta.uuid));
	head_put(d, &rec, first);
	memcpy(first + ND_RECORD, d->meta.uuid, sizeof(d->meta.uuid));
	err = d->io.truncate(d->io.arg, j->fd, 0);
	if (!err)
		err = room_take(d, sizeof(first) + ND_RESERVE_BYTES);
	if (!err)
		err = near_disk_write(&d->io, j->fd, 0, first, sizeof(first));
	if (err)
		return err;
	j->seq = 2;
	j->written = sizeof(first);
	return d->io.sync(d->io.arg, j->fd);
}

/* ---- making safe ---- */

static int sync_call(struct work *work)
{
	struct near_disk *d = CONTAINER_OF(work, struct near_disk, sync_work);
	int err = d->spoiled ? -EIO : d->io.sync(d->io.arg, d->journal.fd);

	if (!err && d->sync_dir)
		err = d->io.sync_dir(d->io.arg);
	return err;
}

static void sync_tell(struct near_disk *d, int err)
{
	LIST_EACH(k, &d->syncs) {
		struct near_sync *s = LIST_ENTRY(k, struct near_sync, link);

		if (s->target > d->journal.synced && (!err || s->target > d->sync_target))
			continue;
		link_remove(k);
		s->done(s, err);
	}
}

static void sync_done(struct op *op, int res)
{
	struct near_disk *d = CONTAINER_OF(op, struct near_disk, sync_work.op);
	struct nd_journal *j = &d->journal;

	d->syncing = false;
	if (res >= 0) {
		d->sync_dir = false;
		j->synced = d->sync_target;
		nd_journal_small(d, ND_SYNC, range_of(j->synced, 0), NULL, 0);
	} else {
		/* What of it has reached the disk is unknown, and the next sync would not tell, for
		 * the kernel thinks that it has tried: another file. */
		d->spoiled = d->compact.wanted = true;
	}
	sync_tell(d, res < 0 ? res : 0);
	nd_sync_run(d);
	nd_compact_synced(d);
	nd_compact_try(d);
	nd_stop_try(d);
}

void nd_sync_run(struct near_disk *d)
{
	struct nd_journal *j = &d->journal;

	if (d->syncing || d->sync_held || (list_empty(&d->syncs) && (!d->sync_dir || d->spoiled)))
		return;
	if (d->spoiled && nd_compact_busy(d))
		return; /* there will be another file */
	nd_journal_flush(d);
	d->syncing = true;
	d->sync_target = j->written;
	d->sync_work.call = sync_call;
	d->sync_work.op.done = sync_done;
	pool_run(d->loop, &d->sync_work);
}

int nd_sync(struct near *near, struct near_sync *sync)
{
	struct near_disk *d = CONTAINER_OF(near, struct near_disk, near);

	nd_journal_flush(d);
	if (d->journal.fresh <= d->journal.synced && !d->sync_dir)
		return 0;
	sync->link = (struct link){ 0 };
	sync->target = d->journal.fresh;
	list_push_back(&d->syncs, &sync->link);
	nd_sync_run(d);
	return -EINPROGRESS;
}

static void timer_sync_done(struct near_sync *sync, int err)
{
	struct near_disk *d = CONTAINER_OF(sync, struct near_disk, timer_sync);

	(void)err; /* tried again with the next record, or when somebody asks */
	d->timer_syncing = false;
	nd_timer_plan(d);
}

static void timer_fire(struct timer *timer)
{
	struct near_disk *d = CONTAINER_OF(timer, struct near_disk, timer);

	if (!d->timer_syncing && !d->stopping) {
		d->timer_syncing = true;
		if (nd_sync(&d->near, &d->timer_sync) != -EINPROGRESS)
			d->timer_syncing = false;
	}
	nd_compact_try(d);
}

void nd_timer_plan(struct near_disk *d)
{
	if (d->stopping || d->timer_syncing || timer_is_set(&d->timer) ||
	    d->journal.fresh <= d->journal.synced)
		return;
	timer_set(d->loop, &d->timer, loop_now(d->loop) + d->interval_ns);
}

void nd_journal_init(struct near_disk *d)
{
	list_init(&d->syncs);
	d->flush_post.run = flush_run;
	d->timer.fire = timer_fire;
	d->timer_sync.done = timer_sync_done;
}
