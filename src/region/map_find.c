/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking for chunks of a kind, by sums over groups, so that a sparse terabyte takes no longer than
 * what is used of it; and the set of chunks that a sweep has still to visit.
 *
 * Place: called by whoever walks over the map. Locking: none; loop thread.
 */
#include "base/bitmap.h"
#include "region/map.h"

static uint32_t sum_of(const struct map_sum *sum, enum map_kind kind)
{
	return kind == MAP_HELD ? sum->held : kind == MAP_BUSY ? sum->busy : sum->unflushed;
}

static bool kind_has(const struct map *m, uint64_t c, enum map_kind kind)
{
	uint8_t byte = map_byte(m, c);

	switch (kind) {
	case MAP_HELD:
		return byte & CHUNK_STATE_MASK;
	case MAP_UNFLUSHED:
		return byte & CHUNK_UNFLUSHED;
	default:
		if ((byte & CHUNK_STATE_MASK) == CHUNK_PARTIAL)
			return map_dirty(m, c) || map_flying(m, c);
		return (byte & CHUNK_STATE_MASK) >= CHUNK_DIRTY;
	}
}

static bool chunk_unsafe(const struct map *m, uint64_t c)
{
	return kind_has(m, c, MAP_BUSY) || kind_has(m, c, MAP_UNFLUSHED);
}

/* What of a chunk with a record is not safe. */
static uint64_t rec_unsafe_bytes(const struct map *m, struct map_rec *rec)
{
	const uint64_t *ours = rec_ours(m, rec);
	const uint64_t *dirty = rec_dirty(m, rec), *pushing = rec_pushing(m, rec);
	bool all = kind_has(m, rec->chunk, MAP_UNFLUSHED);
	uint64_t len = map_range(m, rec->chunk, 1).len, bytes = 0;

	for (uint32_t p = 0; (uint64_t)p * PAGE_BYTES < len; p++)
		if (all ? bitmap_get(ours, p) : bitmap_get(dirty, p) || bitmap_get(pushing, p))
			bytes += MIN(len - (uint64_t)p * PAGE_BYTES, (uint64_t)PAGE_BYTES);
	return bytes;
}

uint64_t map_unsafe_bytes(const struct map *m)
{
	uint64_t bytes = m->unsafe << m->shift;

	if (m->unsafe && chunk_unsafe(m, m->chunks - 1))
		bytes -= (m->chunks << m->shift) - m->size;
	for (uint32_t i = 0; m->unsafe && i < m->rec_fresh; i++) {
		struct map_rec *rec = (void *)(m->recs + (size_t)i * m->rec_bytes);

		if (rec->chunk != UINT64_MAX && chunk_unsafe(m, rec->chunk))
			bytes -= map_range(m, rec->chunk, 1).len - rec_unsafe_bytes(m, rec);
	}
	return bytes;
}

uint64_t map_next(const struct map *m, uint64_t from, enum map_kind kind)
{
	for (uint64_t c = from; c < m->chunks;) {
		uint64_t g = c / MAP_GROUP;

		if (!(g % MAP_GROUP) && !(c % MAP_GROUP) && !sum_of(&m->top[g / MAP_GROUP], kind)) {
			c += (uint64_t)MAP_GROUP * MAP_GROUP;
			continue;
		}
		if (!sum_of(&m->group[g], kind)) {
			c = (g + 1) * MAP_GROUP;
			continue;
		}
		for (uint64_t end = MIN((g + 1) * MAP_GROUP, m->chunks); c < end; c++)
			if (kind_has(m, c, kind))
				return c;
	}
	return m->chunks;
}

uint64_t map_next_pullable(const struct map *m, uint64_t from, uint64_t end)
{
	for (uint64_t c = from; c < end; c++)
		if (map_state(m, c) <= CHUNK_PARTIAL && map_pullable(m, c))
			return c;
	return end;
}

void map_todo_set(struct map *m, uint64_t c)
{
	if (!map_todo(m, c)) {
		bitmap_set(m->todo, c);
		m->todo_count++;
	}
}

void map_todo_clear(struct map *m, uint64_t c)
{
	if (map_todo(m, c)) {
		bitmap_clear(m->todo, c);
		m->todo_count--;
	}
}
