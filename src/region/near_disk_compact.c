/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing the journal anew, with what is alive in it, while it goes on being appended to.
 *
 *   LIVE  the index is gone through in batches; a thread writes each as records of the new journal:
 *         dirty pages as they are in `data` now, hashes of clean chunks
 *   TAIL  what the old journal has got since the beginning is copied behind, record by record;
 *         again and again until it is little
 *   LAST  once more, while nobody may sync; the new journal is made safe; then the loop's thread
 *         copies what came meanwhile, renames, and goes on in the new one
 *
 * Why that is right. What LIVE writes was true at some time after the beginning, and every change
 * since then is a record of the tail, which stands behind it: page by page, the last record wins.
 * When the new journal takes the name, it has everything that was ever safe in the old one, and is
 * safe itself up to there, for no sync ended in between. The rename becomes safe with the next sync
 * (sync_dir); until then a power cut finds either of the two, and both are whole.
 *
 * Invariants: one batch or pass at a time is in a thread's hands; it reads files, and what is in
 * struct nd_compact. A failure leaves the old journal as it was.
 *
 * Locking: loop thread, and the thread of the pool that has the work.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/le.h"
#include "region/near_disk_int.h"

#define AGAIN_NS NS_PER_S /* after a failure */

bool nd_compact_busy(const struct near_disk *d)
{
	return d->compact.phase != ND_IDLE;
}

uint64_t nd_live_bytes(const struct near_disk *d)
{
	return d->ix.dirty_pages * PAGE_BYTES + d->ix.clean_chunks * 8;
}

/* ---- writing records to the new journal: any thread ---- */

static int put_record(struct near_disk *d, struct nd_record *rec, const uint8_t *payload)
{
	static const uint8_t padding[ND_RECORD];
	struct nd_compact *k = &d->compact;
	uint8_t head[ND_RECORD];
	uint64_t room = nd_record_room(rec);
	const struct iovec iov[] = {
		{ head, sizeof(head) },
		{ (void *)(uintptr_t)payload, rec->payload_len },
		{ (void *)(uintptr_t)padding, room - ND_RECORD - rec->payload_len },
	};
	int err;

	rec->stamp = k->stamp;
	rec->seq = k->seq;
	nd_record_put(head, rec);
	err = d->io.write(d->io.arg, k->fd, iov, ARRAY_LEN(iov), k->at);
	if (err)
		return err;
	k->seq++;
	k->at += room;
	return 0;
}

static int put_dirty(struct near_disk *d, struct range r)
{
	struct nd_record rec;
	uint8_t *buf = d->compact.buf;
	int err = near_disk_read(&d->io, d->data_fd, r.off, buf, (size_t)r.len);

	if (err)
		return err;
	if (!*buf && !memcmp(buf, buf + 1, (size_t)r.len - 1)) {
		nd_record_fill(&rec, ND_DIRTY, r, NULL, 0);
		rec.flags = ND_ZEROS;
	} else {
		nd_record_fill(&rec, ND_DIRTY, r, buf, (size_t)r.len);
	}
	return put_record(d, &rec, buf);
}

static int put_clean(struct near_disk *d, const struct nd_item *item, uint32_t hashes)
{
	uint8_t *buf = d->compact.buf;
	struct nd_record rec;

	for (uint32_t i = 0; i < hashes; i++)
		put64(buf + 8 * (size_t)i, d->compact.hash[item->hash_at + i]);
	nd_record_fill(&rec, ND_CLEAN, item->range, buf, 8 * (size_t)hashes);
	return put_record(d, &rec, buf);
}

static int live_call(struct work *work)
{
	struct near_disk *d = CONTAINER_OF(work, struct near_disk, compact.work);
	struct nd_compact *k = &d->compact;
	int err = 0;

	for (unsigned i = 0; !err && i < k->items; i++) {
		const struct nd_item *item = &k->item[i];

		if (item->clean)
			err = put_clean(d, item,
					(uint32_t)((item->range.len + d->meta.chunk - 1) >>
						   d->ix.shift));
		else
			err = put_dirty(d, item->range);
	}
	return err;
}

/* Records of the old journal, but for SYNC: the places that those tell are others now. */
static int tail_copy(struct near_disk *d, uint64_t from, uint64_t to)
{
	struct nd_scan s = { .io = &d->io, .fd = d->journal.fd, .ix = &d->ix, .file_size = to };
	int err = 0;

	while (!err && from < to) {
		struct nd_record rec;
		const uint8_t *payload;

		err = nd_scan_next(&s, &from, &rec, &payload);
		if (!err && rec.type != ND_SYNC)
			err = put_record(d, &rec, payload);
	}
	nd_scan_done(&s);
	return err;
}

static int tail_call(struct work *work)
{
	struct near_disk *d = CONTAINER_OF(work, struct near_disk, compact.work);
	struct nd_compact *k = &d->compact;
	struct nd_record rec;
	int err = tail_copy(d, k->from, k->to);

	if (err || k->phase != ND_LAST)
		return err;
	/* true when the file has its name, and not before */
	nd_record_fill(&rec, ND_SYNC, range_of(k->at, 0), NULL, 0);
	err = put_record(d, &rec, NULL);
	return err ? err : d->io.sync(d->io.arg, k->fd);
}

/* ---- the loop's part ---- */

static void compact_end(struct near_disk *d, int err)
{
	struct nd_compact *k = &d->compact;

	if (err) {
		d->io.close(d->io.arg, k->fd);
		(void)d->io.unlink(d->io.arg, ND_JOURNAL_NEW);
		k->failed_ns = loop_now(d->loop);
	}
	free(TAKE_PTR(k->buf));
	k->phase = ND_IDLE;
	k->room = 0;
	d->sync_held = false;
	nd_room_changed(d);
	if (d->near.wake)
		d->near.wake(d->near.wake_arg);
	nd_sync_run(d);
	nd_stop_try(d);
}

/* The new one takes the name. */
static int compact_switch(struct near_disk *d)
{
	struct nd_compact *k = &d->compact;
	struct nd_journal *j = &d->journal;
	uint64_t safe = k->at;
	int err;

	nd_journal_flush(d);
	err = tail_copy(d, k->to, j->written);
	if (!err)
		err = d->io.rename(d->io.arg, ND_JOURNAL_NEW, ND_JOURNAL);
	if (err)
		return err;
	d->io.close(d->io.arg, j->fd);
	j->fd = k->fd;
	j->stamp = k->stamp;
	j->seq = k->seq;
	j->written = j->allocated = j->fresh = k->at;
	j->synced = safe;
	LIST_EACH(s, &d->syncs)
		LIST_ENTRY(s, struct near_sync, link)->target = j->fresh;
	d->sync_dir = true;
	d->spoiled = k->wanted = false;
	nd_timer_plan(d);
	return 0;
}

static void compact_step(struct near_disk *d);

static void compact_done(struct op *op, int res)
{
	struct near_disk *d = CONTAINER_OF(op, struct near_disk, compact.work.op);

	d->compact.room = d->compact.at;
	nd_room_changed(d);
	if (res < 0)
		compact_end(d, res);
	else if (d->compact.phase == ND_LAST)
		compact_end(d, compact_switch(d));
	else
		compact_step(d);
}

static void live_dirty(struct near_disk *d, uint64_t *bytes)
{
	struct nd_compact *k = &d->compact;
	uint64_t end = d->ix.pages * PAGE_BYTES;

	while (k->page_at < end && k->items < ND_BATCH_ITEMS && *bytes < ND_BATCH_BYTES) {
		struct range r = nd_index_next(&d->ix, d->ix.dirty, k->page_at, end);

		if (!r.len) {
			k->page_at = end;
			return;
		}
		r.len = MIN(r.len, (uint64_t)ND_TAIL_BYTES);
		k->item[k->items++] = (struct nd_item){ .range = r };
		k->page_at = range_end(r);
		*bytes += r.len;
	}
}

static bool is_clean(const struct near_disk *d, uint64_t c)
{
	return c < d->ix.chunks && d->ix.flags[c] & ND_IS_CLEAN;
}

static void live_clean(struct near_disk *d)
{
	struct nd_compact *k = &d->compact;
	uint64_t looks = 1024 * KIB; /* at a time: the loop has other things to do */

	if (!d->ix.clean_chunks)
		k->chunk_at = d->ix.chunks;
	while (k->chunk_at < d->ix.chunks && k->items < ND_BATCH_ITEMS && looks &&
	       k->hashes < ND_CLEAN_MAX) {
		uint64_t first = k->chunk_at;
		uint32_t at = k->hashes;

		for (; is_clean(d, k->chunk_at) && k->hashes < ND_CLEAN_MAX; k->chunk_at++)
			k->hash[k->hashes++] = d->ix.hash[k->chunk_at];
		if (k->chunk_at == first) {
			k->chunk_at++;
			looks--;
			continue;
		}
		k->item[k->items++] = (struct nd_item){
			.range = range_between(first << d->ix.shift,
					       range_end(nd_chunk(&d->ix, k->chunk_at - 1))),
			.clean = true, .hash_at = at,
		};
	}
}

static void tail_step(struct near_disk *d)
{
	struct nd_compact *k = &d->compact;

	nd_journal_flush(d);
	k->waits = false;
	if (d->journal.written - k->to <= ND_TAIL_BYTES || k->passes >= ND_PASSES_MAX) {
		/* From now on nobody may sync; who is just doing so ends first. */
		d->sync_held = true;
		k->waits = d->syncing;
		if (k->waits)
			return;
		k->phase = ND_LAST;
	}
	k->from = k->to;
	k->to = d->journal.written;
	k->passes++;
	k->work.call = tail_call;
	pool_run(d->loop, &k->work);
}

void nd_compact_synced(struct near_disk *d)
{
	if (d->compact.waits)
		tail_step(d);
}

static void compact_step(struct near_disk *d)
{
	struct nd_compact *k = &d->compact;
	uint64_t bytes = 0;

	if (k->phase == ND_LIVE) {
		k->items = k->hashes = 0;
		live_dirty(d, &bytes);
		if (k->page_at >= d->ix.pages * PAGE_BYTES)
			live_clean(d);
		if (k->items || k->chunk_at < d->ix.chunks) {
			k->work.call = live_call;
			pool_run(d->loop, &k->work);
			return;
		}
		k->phase = ND_TAIL;
	}
	tail_step(d);
}

static int compact_open(struct near_disk *d)
{
	struct nd_compact *k = &d->compact;
	struct nd_record rec;
	int err;

	k->buf = malloc(MAX((size_t)ND_TAIL_BYTES, (size_t)(8 * ND_CLEAN_MAX)));
	if (!k->buf)
		return -ENOMEM;
	k->fd = d->io.open(d->io.arg, ND_JOURNAL_NEW, NEAR_DISK_MAKE);
	if (k->fd < 0) {
		free(TAKE_PTR(k->buf));
		return k->fd;
	}
	k->stamp = rng_next(&loop_env(d->loop)->rng);
	k->seq = 1;
	k->at = 0;
	nd_record_fill(&rec, ND_BEGIN, range_of(0, 0), d->meta.uuid, sizeof(d->meta.uuid));
	err = d->io.truncate(d->io.arg, k->fd, 0);
	if (!err)
		err = put_record(d, &rec, d->meta.uuid);
	if (err) {
		d->io.close(d->io.arg, k->fd);
		(void)d->io.unlink(d->io.arg, ND_JOURNAL_NEW);
		free(TAKE_PTR(k->buf));
	}
	return err;
}

static bool may_begin(const struct near_disk *d)
{
	const struct nd_compact *k = &d->compact;

	return k->phase == ND_IDLE && !d->stopping &&
	       (!k->failed_ns || loop_now(d->loop) - k->failed_ns >= AGAIN_NS);
}

static void compact_begin(struct near_disk *d)
{
	struct nd_compact *k = &d->compact;

	nd_journal_flush(d);
	k->failed_ns = 0;
	if (compact_open(d)) {
		k->failed_ns = loop_now(d->loop);
		return;
	}
	k->phase = ND_LIVE;
	k->page_at = k->chunk_at = 0;
	k->passes = 0;
	k->from = k->to = d->journal.written;
	compact_step(d);
}

void nd_compact_try(struct near_disk *d)
{
	uint64_t live = nd_live_bytes(d), all = d->journal.written;

	if (may_begin(d) && (d->compact.wanted || all > 2 * live + d->slack))
		compact_begin(d);
}

bool nd_compact_for_room(struct near_disk *d)
{
	uint64_t live = nd_live_bytes(d), all = d->journal.written;

	if (may_begin(d) && (d->compact.wanted || all > live + live / 2 + 2 * ND_RESERVE_BYTES))
		compact_begin(d);
	return nd_compact_busy(d);
}

void nd_compact_init(struct near_disk *d)
{
	d->compact.work.op.done = compact_done;
}
