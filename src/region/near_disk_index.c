/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of a near store on a disk.
 *
 * Place: filled by the scan of the journal (near_disk_scan.c), kept by near_disk.c.
 *
 * Invariants: a chunk that is CLEAN has no dirty page; UNSEEN only with CLEAN; want_count is the
 * number of bits in want[], which are those of the chunks that are WANTED.
 *
 * Locking: none; loop thread.
 */
#include "region/near_disk_index.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bitmap.h"
#include "base/limits.h"

static void *memory_map(uint64_t len)
{
	void *p = mmap(NULL, MAX(len, (uint64_t)PAGE_BYTES), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void memory_unmap(void *p, uint64_t len)
{
	if (p)
		munmap(p, MAX(len, (uint64_t)PAGE_BYTES));
}

int nd_index_init(struct nd_index *ix, uint64_t size, uint32_t chunk)
{
	*ix = (struct nd_index){ .shift = log2_u64(chunk) };
	ix->pages = align_up(size, PAGE_BYTES) / PAGE_BYTES;
	ix->chunks = (ix->pages * PAGE_BYTES + chunk - 1) >> ix->shift;
	if (ix->chunks > MAP_CHUNKS_MAX)
		return -EFBIG;
	ix->flags = memory_map(ix->chunks);
	ix->hash = memory_map(ix->chunks * sizeof(*ix->hash));
	ix->want = memory_map(BITMAP_WORDS(ix->chunks) * sizeof(*ix->want));
	ix->dirty = memory_map(BITMAP_WORDS(ix->pages) * sizeof(*ix->dirty));
	ix->lost = memory_map(BITMAP_WORDS(ix->pages) * sizeof(*ix->lost));
	if (ix->flags && ix->hash && ix->want && ix->dirty && ix->lost)
		return 0;
	nd_index_done(ix);
	return -ENOMEM;
}

void nd_index_done(struct nd_index *ix)
{
	memory_unmap(ix->flags, ix->chunks);
	memory_unmap(ix->hash, ix->chunks * sizeof(*ix->hash));
	memory_unmap(ix->want, BITMAP_WORDS(ix->chunks) * sizeof(*ix->want));
	memory_unmap(ix->dirty, BITMAP_WORDS(ix->pages) * sizeof(*ix->dirty));
	memory_unmap(ix->lost, BITMAP_WORDS(ix->pages) * sizeof(*ix->lost));
	*ix = (struct nd_index){ 0 };
}

/* How many bits of the run have changed. */
static uint64_t bits_change(uint64_t *w, uint64_t first, uint64_t count, bool set)
{
	uint64_t changed = 0, end = first + count;

	while (first < end) {
		uint64_t n = MIN(end - first, 64 - first % 64), *word = &w[first / 64];
		uint64_t mask = (n == 64 ? UINT64_MAX : (1ULL << n) - 1) << first % 64;
		uint64_t differ = (set ? ~*word : *word) & mask;

		if (differ) { /* else its memory stays untouched */
			changed += (uint64_t)__builtin_popcountll(differ);
			*word ^= differ;
		}
		first += n;
	}
	return changed;
}

void nd_index_want(struct nd_index *ix, uint64_t c, bool on)
{
	uint64_t changed = bits_change(ix->want, c, 1, on);

	ix->want_count += on ? changed : -changed;
	if (on)
		ix->flags[c] |= ND_WANTED;
	else if (ix->flags[c] & ND_WANTED)
		ix->flags[c] &= (uint8_t)~ND_WANTED;
}

void nd_index_flag(struct nd_index *ix, uint64_t c, uint8_t set, uint8_t clear)
{
	uint8_t was = ix->flags[c], is = (uint8_t)((was & ~clear) | set);

	if (clear & was & ND_WANTED)
		nd_index_want(ix, c, false);
	if (is == was)
		return;
	ix->clean_chunks += !!(is & ND_IS_CLEAN);
	ix->clean_chunks -= !!(was & ND_IS_CLEAN);
	ix->flags[c] = is;
}

#define CHANGED (ND_IS_CLEAN | ND_UNSEEN | ND_HASHED | ND_WANTED | ND_HASHING)

static void chunks_changed(struct nd_index *ix, struct range pages)
{
	CHECK(pages.len && range_end(pages) <= ix->pages * PAGE_BYTES);
	for (uint64_t c = pages.off >> ix->shift; c <= (range_end(pages) - 1) >> ix->shift; c++)
		nd_index_flag(ix, c, 0, CHANGED);
}

void nd_index_dirty(struct nd_index *ix, struct range pages)
{
	uint64_t first = pages.off / PAGE_BYTES, count = pages.len / PAGE_BYTES;

	chunks_changed(ix, pages);
	ix->dirty_pages += bits_change(ix->dirty, first, count, true);
	ix->lost_pages -= bits_change(ix->lost, first, count, false);
}

void nd_index_lost(struct nd_index *ix, struct range pages)
{
	uint64_t first = pages.off / PAGE_BYTES, count = pages.len / PAGE_BYTES;

	chunks_changed(ix, pages);
	ix->dirty_pages -= bits_change(ix->dirty, first, count, false);
	ix->lost_pages += bits_change(ix->lost, first, count, true);
}

void nd_index_drop(struct nd_index *ix, struct range pages)
{
	uint64_t first = pages.off / PAGE_BYTES, count = pages.len / PAGE_BYTES;

	chunks_changed(ix, pages);
	ix->dirty_pages -= bits_change(ix->dirty, first, count, false);
	ix->lost_pages -= bits_change(ix->lost, first, count, false);
}

void nd_index_clean_keep(struct nd_index *ix, uint64_t c)
{
	nd_index_drop(ix, nd_chunk(ix, c));
	nd_index_flag(ix, c, ND_IS_CLEAN | ND_HASHED, 0);
}

void nd_index_clean(struct nd_index *ix, uint64_t c, uint64_t hash)
{
	ix->hash[c] = hash;
	nd_index_clean_keep(ix, c);
}

uint64_t nd_index_want_next(const struct nd_index *ix, uint64_t from)
{
	size_t c = from < ix->chunks ? bitmap_next_set(ix->want, ix->chunks, from) : ix->chunks;

	CHECK(ix->want_count);
	return c < ix->chunks ? c : bitmap_next_set(ix->want, ix->chunks, 0);
}

struct range nd_index_next(const struct nd_index *ix, const uint64_t *bits, uint64_t off,
			   uint64_t end)
{
	size_t limit = (size_t)(MIN(end, ix->pages * PAGE_BYTES) / PAGE_BYTES);
	size_t first = (size_t)(off / PAGE_BYTES), stop;

	if (first >= limit)
		return range_of(off, 0);
	first = bitmap_next_set(bits, limit, first);
	stop = first < limit ? bitmap_next_clear(bits, limit, first) : first;
	return range_of((uint64_t)first * PAGE_BYTES, (uint64_t)(stop - first) * PAGE_BYTES);
}

struct range nd_chunk(const struct nd_index *ix, uint64_t c)
{
	CHECK(c < ix->chunks);
	return range_between(c << ix->shift, MIN((c + 1) << ix->shift, ix->pages * PAGE_BYTES));
}

uint64_t nd_index_partial(const struct nd_index *ix)
{
	uint64_t count = 0, end = ix->pages * PAGE_BYTES;

	for (uint64_t at = 0; at < end;) {
		struct range r = nd_index_next(ix, ix->dirty, at, end), chunk;

		if (!r.len)
			break;
		chunk = nd_chunk(ix, r.off >> ix->shift);
		count += !range_contains(r, chunk);
		at = range_end(chunk);
	}
	return count;
}
