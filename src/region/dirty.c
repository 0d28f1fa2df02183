/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding what a mapped program has written: the near store is asked for pages written since the
 * last time, and the map is told.
 *
 * Place: called by push.c before a sweep and by policy.c before something is dropped.
 *
 * Invariants: only what is here is looked at (scanning what is absent costs time and page tables),
 * and what is reported counts only as far as the map says that the page is here (dropped pages may
 * be reported as written). Between a look and the read of a page by push.c the program may write
 * again; that is reported at the next look, and the page is pushed again.
 *
 * Locking: the region's lock is held while the map changes, not while the near store is scanned;
 * but for a single chunk (dirty_collect_chunk), where shutting, looking and dropping have to be one
 * step.
 */
#include "region/region_int.h"

#define RUN_BYTES_MAX GIB /* looked at in one call */

struct finder {
	struct region *r;
	bool locked; /* already, by the caller */
	bool any;
};

static void dirty_found(void *arg, struct range pages)
{
	struct finder *f = arg;
	struct region *r = f->r;
	struct map *m = &r->map;
	uint64_t at = align_down(pages.off, PAGE_BYTES);
	uint64_t end = MIN(align_up(range_end(pages), PAGE_BYTES), align_up(m->size, PAGE_BYTES));

	if (!f->locked)
		region_lock(r);
	while (at < end) {
		uint64_t c = map_chunk_of(m, at);
		uint64_t to = MIN(end, range_end(map_page_range(m, c, 1)));

		map_found(m, c, (uint32_t)((at - (c << m->shift)) / PAGE_BYTES),
			  (uint32_t)((to - at) / PAGE_BYTES));
		f->any = true;
		at = to;
	}
	if (!f->locked)
		region_unlock(r);
}

int dirty_collect_chunk(struct region *r, uint64_t c)
{
	struct finder f = { .r = r, .locked = true };

	return r->near->ops->collect(r->near, map_page_range(&r->map, c, 1), dirty_found, &f);
}

static bool may_be_written(const struct map *m, uint64_t c)
{
	enum chunk_state s = map_state(m, c);

	return s != CHUNK_ABSENT && s != CHUNK_PULLING;
}

int dirty_collect(struct region *r)
{
	struct map *m = &r->map;
	struct finder f = { .r = r };
	uint64_t start = env_now(r->env);
	int err;

	if (!r->collects)
		return 0;
	for (uint64_t c = 0; (c = map_next(m, c, MAP_HELD)) < m->chunks;) {
		uint64_t end = c;

		while (end < m->chunks && may_be_written(m, end) &&
		       (end - c) << m->shift < RUN_BYTES_MAX)
			end++;
		if (end == c) {
			c++;
			continue;
		}
		err = r->near->ops->collect(r->near, map_page_range(m, c, end - c), dirty_found,
					    &f);
		if (err) {
			region_error(r, err, "looking for written pages");
			return err;
		}
		c = end;
	}
	if (f.any)
		r->collect_ns = env_now(r->env) - start;
	return 0;
}

int region_collect(struct region *r)
{
	int err = dirty_collect(r);

	if (!err && r->map.dirty)
		push_written(r);
	return err;
}
