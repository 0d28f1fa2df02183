/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a journal says.
 *
 * Place: below opening (near_disk_open.c), `remora cache` and the copying of a journal.
 *
 *   record by record ──▶ good: the index is told
 *                   └──▶ bad: does a SYNC further on say that this place was safe?
 *                          no:  the journal ends here; what follows was never promised to anybody
 *                          yes: damage. A head that is whole tells which pages it was about: they
 *                               are lost, unless what follows makes that unimportant. Otherwise
 *                               nobody knows what is missing (damaged_at).
 *
 * Dirty pages are written in place in a second pass, when it is known which are dirty at the end:
 * records of pages that were settled since must not touch what has come there instead.
 *
 * Invariants: the file is read once per pass, and once more behind the first bad place. Memory is
 * that of the longest record.
 *
 * Locking: none.
 */
#include "region/near_disk_scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/le.h"

#define AHEAD (1 * MIB) /* read at a time */

/* `len` bytes at `off`, valid until the next call. -ENODATA: the file ends before. */
static int get(struct nd_scan *s, uint64_t off, size_t len, const uint8_t **ret)
{
	size_t want;
	ssize_t n;

	if (off > s->file_size || len > s->file_size - off)
		return -ENODATA;
	if (off < s->buf_off || off + len > s->buf_off + s->buf_len) {
		want = (size_t)MIN((uint64_t)MAX(len, (size_t)AHEAD), s->file_size - off);
		if (want > s->buf_room) {
			uint8_t *more = realloc(s->buf, want);

			if (!more)
				return -ENOMEM;
			s->buf = more;
			s->buf_room = want;
		}
		s->buf_len = 0;
		n = s->io->read(s->io->arg, s->fd, s->buf, want, off);
		if (n < 0)
			return (int)n;
		s->buf_off = off;
		s->buf_len = (size_t)n;
		if ((size_t)n < len)
			return -ENODATA;
	}
	*ret = s->buf + (off - s->buf_off);
	return 0;
}

/* ---- one record ---- */

enum found { FOUND_GOOD, FOUND_BAD_DATA, FOUND_NOTHING };

static int record_at(struct nd_scan *s, uint64_t off, struct nd_record *rec,
		     const uint8_t **payload, enum found *ret)
{
	const uint8_t *at;
	int err = get(s, off, ND_RECORD, &at);

	*ret = FOUND_NOTHING;
	*payload = NULL;
	if (err)
		return err == -ENODATA ? 0 : err;
	if (!nd_record_get(rec, at) || rec->stamp != s->stamp || rec->seq != s->seq ||
	    !nd_record_sane(rec, s->ix->pages, s->ix->shift))
		return 0;
	err = get(s, off, (size_t)nd_record_room(rec), &at);
	if (err) /* -ENODATA: the file ends within it */
		return err == -ENODATA ? 0 : err;
	*ret = FOUND_BAD_DATA;
	*payload = at + ND_RECORD;
	if (rec->payload_hash == (rec->payload_len ? nd_hash(*payload, rec->payload_len) : 0))
		*ret = FOUND_GOOD;
	return 0;
}

int nd_scan_next(struct nd_scan *s, uint64_t *off, struct nd_record *ret,
		 const uint8_t **ret_payload)
{
	const uint8_t *at;
	int err = get(s, *off, ND_RECORD, &at);

	if (err)
		return err;
	if (!nd_record_get(ret, at) || !nd_record_sane(ret, s->ix->pages, s->ix->shift))
		return -EUCLEAN;
	err = get(s, *off, ND_RECORD + ret->payload_len, &at);
	*ret_payload = at + ND_RECORD;
	*off += nd_record_room(ret);
	return err;
}

/* The furthest place that a SYNC behind `from` says to have been safe. */
static int synced_find(struct nd_scan *s, uint64_t from)
{
	s->synced = 0;
	for (uint64_t at = from; at + ND_RECORD <= s->file_size; at += ND_RECORD) {
		const uint8_t *bytes;
		struct nd_record rec;
		int err = get(s, at, ND_RECORD, &bytes);

		if (err)
			return err == -ENODATA ? 0 : err;
		if (nd_record_get(&rec, bytes) && rec.stamp == s->stamp && rec.seq >= s->seq &&
		    rec.type == ND_SYNC && rec.off <= at)
			s->synced = MAX(s->synced, rec.off);
	}
	return 0;
}

static void apply(struct nd_scan *s, const struct nd_record *rec, const uint8_t *payload)
{
	struct nd_index *ix = s->ix;

	if (rec->type == ND_DIRTY)
		nd_index_dirty(ix, range_of(rec->off, rec->len));
	else if (rec->type == ND_DROP)
		nd_index_drop(ix, range_of(rec->off, rec->len));
	else if (rec->type == ND_CLEAN)
		for (uint64_t i = 0; i < rec->payload_len / 8; i++)
			nd_index_clean(ix, (rec->off >> ix->shift) + i,
				       get64(payload + 8 * i));
}

static void damaged(struct nd_scan *s, uint64_t at)
{
	s->damaged = true;
	s->damaged_at = MIN(s->damaged_at, at);
}

/* At a record that is not good: true = it goes on behind it, all the same. */
static int scan_bad(struct nd_scan *s, const struct nd_record *rec, enum found found, bool *ret_on)
{
	int err;

	*ret_on = false;
	if (s->synced == UINT64_MAX) {
		err = synced_find(s, s->end);
		if (err)
			return err;
	}
	if (s->end >= s->synced)
		return 0; /* torn: it ends here */
	if (found == FOUND_NOTHING) {
		damaged(s, s->end);
		return 0;
	}
	s->damaged = true;
	if (rec->type == ND_DIRTY)
		nd_index_lost(s->ix, range_of(rec->off, rec->len));
	*ret_on = true; /* what else it said can be done without */
	return 0;
}

static int scan_begin(struct nd_scan *s)
{
	struct nd_record rec;
	const uint8_t *payload, *at;
	enum found found;
	int err = get(s, 0, ND_RECORD, &at);

	if (!err && nd_record_get(&rec, at)) {
		s->stamp = rec.stamp;
		s->seq = rec.seq;
		err = record_at(s, 0, &rec, &payload, &found);
		if (!err && found == FOUND_GOOD && rec.type == ND_BEGIN &&
		    !memcmp(payload, s->uuid, 16)) {
			s->end = nd_record_room(&rec);
			s->seq++;
			return 0;
		}
	}
	if (err && err != -ENODATA)
		return err;
	damaged(s, 0);
	return 0;
}

int nd_scan(struct nd_scan *s)
{
	int err = s->io->size(s->io->arg, s->fd, &s->file_size);
	bool on = true;

	s->synced = s->damaged_at = UINT64_MAX;
	if (!err)
		err = scan_begin(s);
	if (s->damaged)
		on = false;
	while (!err && on && s->end < s->file_size) {
		struct nd_record rec;
		const uint8_t *payload;
		enum found found;

		err = record_at(s, s->end, &rec, &payload, &found);
		if (!err && found == FOUND_GOOD && rec.type != ND_BEGIN)
			apply(s, &rec, payload);
		else if (!err)
			err = scan_bad(s, &rec, found, &on);
		if (err || !on)
			break;
		s->end += nd_record_room(&rec);
		s->seq++;
		s->records++;
	}
	return err;
}

/* ---- writing in place ---- */

static int replay_pages(struct nd_scan *s, int fd, const struct nd_record *rec,
			const uint8_t *payload)
{
	uint64_t at = rec->off, end = rec->off + rec->len;
	int err = 0;

	while (!err) {
		struct range r = nd_index_next(s->ix, s->ix->dirty, at, end);

		if (!r.len)
			break;
		if (rec->flags & ND_ZEROS)
			err = s->io->punch(s->io->arg, fd, r.off, r.len);
		else
			err = near_disk_write(s->io, fd, r.off, payload + (r.off - rec->off),
					      (size_t)r.len);
		at = range_end(r);
	}
	return err;
}

int nd_replay(struct nd_scan *s, int fd)
{
	uint64_t off = 0;
	int err = 0;

	s->buf_len = 0;
	while (!err && s->ix->dirty_pages && off < s->end) {
		struct nd_record rec;
		const uint8_t *payload;

		err = nd_scan_next(s, &off, &rec, &payload);
		if (!err && rec.type == ND_DIRTY)
			err = replay_pages(s, fd, &rec, payload);
	}
	return err;
}

void nd_scan_done(struct nd_scan *s)
{
	free(s->buf);
	s->buf = NULL;
	s->buf_room = s->buf_len = 0;
}
