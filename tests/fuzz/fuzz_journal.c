/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Near stores on a disk: any bytes as meta, and as a journal. As they are, nothing but a torn end
 * comes of most; so they are also mended first: heads get their magic, numbers and hashes, and what
 * they say decides. Whatever is found, the index is sound, writing in place stays within the
 * resource, and what is left when the end has been cut off is found again.
 */
#include "fuzz.h"

#include <errno.h>

#include "base/bitmap.h"
#include "base/le.h"
#include "region/near_disk_scan.h"

#define SIZE (40 * 16 * KIB + 5000)
#define CHUNK (16 * KIB)

struct memory {
	const uint8_t *at;
	size_t size;
	uint64_t written;
};

static const uint8_t uuid[16] = "sixteen of them";

static ssize_t memory_read(void *arg, int fd, void *buf, size_t len, uint64_t off)
{
	struct memory *m = arg;

	(void)fd;
	if (off >= m->size)
		return 0;
	len = MIN(len, m->size - (size_t)off);
	memcpy(buf, m->at + off, len);
	return (ssize_t)len;
}

static int memory_size(void *arg, int fd, uint64_t *ret)
{
	(void)fd;
	*ret = ((struct memory *)arg)->size;
	return 0;
}

static int memory_write(void *arg, int fd, const struct iovec *iov, int count, uint64_t off)
{
	struct memory *m = arg;

	MUST(fd == 1 && count == 1 && off % PAGE_BYTES == 0);
	MUST(range_within(range_of(off, iov->iov_len), align_up(SIZE, PAGE_BYTES)));
	m->written += iov->iov_len;
	return 0;
}

static int memory_punch(void *arg, int fd, uint64_t off, uint64_t len)
{
	(void)arg;
	MUST(fd == 1 && len && range_within(range_of(off, len), align_up(SIZE, PAGE_BYTES)));
	return 0;
}

/* Every 64 bytes that can be a head become one, and what follows its payload. */
static void mend(uint8_t *data, size_t size)
{
	uint64_t seq = 1;

	for (size_t at = 0; at + ND_RECORD <= size; seq++) {
		struct nd_record rec = { .stamp = 99, .seq = seq };
		size_t room, payload = at + ND_RECORD;
		bool broken = data[at + 7] > 250;

		rec.type = seq == 1 ? ND_BEGIN : (uint16_t)(2 + data[at + 4] % 4);
		rec.flags = rec.type == ND_DIRTY ? data[at + 6] % 2 : 0;
		rec.off = rec.type == ND_SYNC ? get64(data + at + 16) % (at + 1) :
						data[at + 16] % 170 * (uint64_t)PAGE_BYTES;
		rec.len = rec.type == ND_SYNC ? 0 : data[at + 24] % 8 * (uint64_t)PAGE_BYTES;
		if (rec.type == ND_DIRTY && !rec.flags)
			rec.payload_len = (uint32_t)rec.len;
		if (rec.type == ND_CLEAN) {
			rec.off = align_down(rec.off, CHUNK);
			rec.len = align_up(rec.len, CHUNK);
			rec.payload_len = (uint32_t)(rec.len / CHUNK * 8);
		}
		if (rec.type == ND_BEGIN) {
			rec.off = rec.len = 0;
			rec.payload_len = sizeof(uuid);
		}
		room = (size_t)nd_record_room(&rec);
		if (rec.type == ND_BEGIN && payload + sizeof(uuid) <= size)
			memcpy(data + payload, uuid, sizeof(uuid));
		if (rec.payload_len && payload + rec.payload_len <= size)
			rec.payload_hash = nd_hash(data + payload, rec.payload_len) + broken;
		nd_record_put(data + at, &rec);
		if (room > size - at)
			break;
		at += room;
	}
}

static void sound(const struct nd_index *ix)
{
	uint64_t clean = 0;

	for (uint64_t c = 0; c < ix->chunks; c++) {
		struct range r = nd_chunk(ix, c);

		if (!(ix->flags[c] & ND_IS_CLEAN))
			continue;
		clean++;
		MUST(!nd_index_next(ix, ix->dirty, r.off, range_end(r)).len);
		MUST(!nd_index_next(ix, ix->lost, r.off, range_end(r)).len);
	}
	MUST(clean == ix->clean_chunks);
	MUST(bitmap_count(ix->dirty, ix->pages) == ix->dirty_pages);
	MUST(bitmap_count(ix->lost, ix->pages) == ix->lost_pages);
}

static void scanned(const uint8_t *data, size_t size)
{
	struct memory m = { .at = data, .size = size };
	const struct near_disk_io io = { .arg = &m, .read = memory_read, .size = memory_size,
					 .write = memory_write, .punch = memory_punch };
	struct nd_index ix, again;
	struct nd_scan s = { .io = &io, .ix = &ix, .uuid = uuid };
	struct nd_scan t = { .io = &io, .ix = &again, .uuid = uuid };

	MUST(!nd_index_init(&ix, SIZE, CHUNK) && !nd_index_init(&again, SIZE, CHUNK));
	MUST(!nd_scan(&s));
	MUST(s.end <= size && s.end % ND_RECORD == 0);
	MUST(s.damaged || !ix.lost_pages);
	sound(&ix);
	if (s.end) {
		MUST(!nd_replay(&s, 1));
		m.size = (size_t)s.end;
		MUST(!nd_scan(&t));
		MUST(t.end == s.end || s.damaged);
		if (!s.damaged)
			MUST(again.dirty_pages == ix.dirty_pages &&
			     again.clean_chunks == ix.clean_chunks && !t.damaged);
	}
	nd_scan_done(&s);
	nd_scan_done(&t);
	nd_index_done(&ix);
	nd_index_done(&again);
}

static void parsed(const uint8_t *data, size_t size)
{
	char *text = (char *)fuzz_copy(data, size), buf[ND_META_MAX];
	struct nd_meta meta, same;
	struct err e = { 0 };
	int err = nd_meta_parse(&meta, text, size, &e);

	if (err) {
		MUST(e.code == err && e.text[0]);
	} else {
		size_t len = nd_meta_format(&meta, buf);

		MUST(!nd_meta_parse(&same, buf, len, &e));
		MUST(!memcmp(meta.uuid, same.uuid, 16) && meta.size == same.size);
		MUST(meta.chunk == same.chunk && !strcmp(meta.spec, same.spec));
	}
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy = fuzz_copy(data, size);

	parsed(data, size);
	scanned(copy, size);
	mend(copy, size);
	scanned(copy, size);
	free(copy);
	return 0;
}
