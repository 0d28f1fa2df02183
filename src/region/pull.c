/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pull: what is missing comes from the far store.
 *
 *   pull_run, in this order:
 *   faults ─▶ requests ─▶ asked (priority > 0) ─▶ readahead ─▶ asked (others) ─▶ background
 *        └────────┴─────────┬────────┴──────────────┴──────────────┘
 *                      pull_start ──▶ far READ ──▶ pull_done
 *                                                     ├──▶ install ──▶ pull_settle    it came
 *                                                     ├──▶ pull_failed                it did not
 *                                                     └──▶ (stale) begin again        it is too old
 *
 * A pull is one READ of one chunk for a fault, of several adjacent ones otherwise, into a buffer of
 * a slot, and from there into the near store: near->put() never touches a page that is present, so
 * what was written since the pull began stays (rule 2), and it wakes who waits. A sequential reader
 * is woken with the whole run, a random one with its own page first.
 *
 * Bytes under way are bounded by the window (slot.c), for faults and for the first chunk of a
 * request by the slots alone: a fault never waits behind bulk that is not on the wire yet (rule 3).
 * Room is reserved before a pull begins (rule 8).
 *
 * A failed pull makes nothing present: whoever waits tries again until policy.c says no, then gets
 * the error (rule 7). Where the near store has no memory for what has come, the slot keeps it and
 * tries again (`stuck`).
 *
 * Invariant: a chunk is PULLING (or partial and pulling) exactly while one slot in r->pulls,
 * r->apart or r->stuck covers it.
 *
 * Locking: the region's lock around changes of the map; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "region/region_int.h"

static void pull_done(struct req *req, int err);

static bool unreachable(const struct region *r)
{
	return r->far_lost && r->opt.on_loss == REGION_LOSS_ERROR;
}

/* ---- beginning ---- */

static enum slot_use use_of(enum pull_why why)
{
	return why == PULL_FAULT ? USE_FAULT : why == PULL_REQUEST ? USE_DEMAND : USE_BULK;
}

static enum room_for room_of(enum pull_why why)
{
	static const enum room_for room[] = {
		[PULL_FAULT] = ROOM_FAULT,
		[PULL_REQUEST] = ROOM_DEMAND,
		[PULL_ASKED] = ROOM_DEMAND,
		[PULL_AHEAD] = ROOM_AHEAD,
		[PULL_BACKGROUND] = ROOM_BACKGROUND,
	};

	return room[why];
}

/* Adjacent chunks from want->first that can be pulled in one go: up to a unit, and not across its
 * border. */
static uint64_t run_count(const struct region *r, const struct pull_want *want)
{
	uint64_t per_unit = r->unit >> r->map.shift, count = 1;
	uint64_t end = MIN(want->end, (want->first / per_unit + 1) * per_unit);

	while (want->first + count < end && map_pullable(&r->map, want->first + count))
		count++;
	return count;
}

static uint64_t run_absent(const struct region *r, uint64_t first, uint64_t count)
{
	uint64_t absent = 0;

	for (uint64_t c = first; c < first + count; c++)
		absent += map_state(&r->map, c) == CHUNK_ABSENT;
	return absent;
}

/* Room for the absent ones of the run; making room may drop a partial one among them, which then
 * counts, too. */
static int run_room(struct region *r, const struct pull_want *want, uint64_t count)
{
	uint64_t absent = run_absent(r, want->first, count), before;
	int err;

	do {
		before = absent;
		err = policy_room(r, absent * r->chunk, room_of(want->why));
		absent = run_absent(r, want->first, count);
	} while (!err && absent > before);
	return err;
}

static void pull_send(struct region *r, struct slot *slot, uint32_t flags)
{
	struct req *req = &slot->req;

	req->op = REQ_READ;
	req->flags = flags & (REQ_URGENT | REQ_BACKGROUND);
	req->range = map_range(&r->map, slot->first, slot->count);
	req->data = (struct iobuf){ slot->buf, (size_t)req->range.len };
	req->extents = NULL;
	req->done = pull_done;
	flow_sent(&r->flow_in, &slot->flow, (size_t)req->range.len, loop_now_fresh(r->loop));
	list_push_back(&r->pulls, &slot->link);
	req_submit(r->far, req);
}

int pull_start(struct region *r, const struct pull_want *want, uint64_t *ret_count)
{
	uint64_t count = run_count(r, want);
	size_t len = (size_t)count << r->map.shift;
	struct slot *slot;
	int err;

	CHECK(map_pullable(&r->map, want->first));
	if (!want->beyond_window && r->flow_in.inflight &&
	    r->flow_in.inflight + len > flow_window(&r->flow_in))
		return -EAGAIN;
	if (!slot_available(&r->slots, len, use_of(want->why)))
		return -EAGAIN;
	err = run_room(r, want, count);
	if (err && count > 1) {
		count = 1;
		len = r->chunk;
		err = run_room(r, want, count);
	}
	if (err)
		return err;
	slot = slot_get(&r->slots, len, use_of(want->why));
	CHECK(slot);
	slot->first = want->first;
	slot->count = count;
	slot->why = want->why;
	slot->mark = want->mark;
	if (want->fault) {
		slot->fault_page = align_down(want->fault->off, PAGE_BYTES);
		link_remove(&want->fault->link);
		list_push_back(&slot->faults, &want->fault->link);
	}
	region_lock(r);
	for (uint64_t c = slot->first; c < slot->first + count; c++)
		map_pull_begin(&r->map, c);
	region_unlock(r);
	pull_send(r, slot, want->flags);
	if (ret_count)
		*ret_count = count;
	return 0;
}

struct slot *pull_find(struct region *r, uint64_t c)
{
	struct list *lists[] = { &r->pulls, &r->apart.slots, &r->stuck };

	for (size_t i = 0; i < ARRAY_LEN(lists); i++)
		LIST_EACH(k, lists[i]) {
			struct slot *slot = LIST_ENTRY(k, struct slot, link);

			if (c >= slot->first && c - slot->first < slot->count)
				return slot;
		}
	CHECK(!"a chunk is being pulled by nobody");
	return NULL;
}

/* ---- ending ---- */

static const uint8_t *slot_data(const struct region *r, const struct slot *slot, uint64_t off)
{
	return slot->buf + (off - (slot->first << r->map.shift));
}

static int put(struct region *r, struct slot *slot, uint64_t from, uint64_t to)
{
	if (from >= to)
		return 0;
	return r->near->ops->put(r->near, from,
				 slot->req.ret_zero ? NULL : slot_data(r, slot, from),
				 (size_t)(to - from));
}

/* Whole chunks of which nothing is here. */
static int install_run(struct region *r, struct slot *slot, uint64_t first, uint64_t end)
{
	struct range pages = map_page_range(&r->map, first, end - first);
	uint64_t fault = slot->fault_page;
	int err = 0;

	if (slot->why != PULL_FAULT || fault < pages.off || fault >= range_end(pages))
		return put(r, slot, pages.off, range_end(pages));
	err = put(r, slot, fault, fault + PAGE_BYTES);
	if (!err)
		err = put(r, slot, pages.off, fault);
	return err ? err : put(r, slot, fault + PAGE_BYTES, range_end(pages));
}

/* What is missing of a chunk that was written in places. */
static int install_partial(struct region *r, struct slot *slot, uint64_t c)
{
	const uint64_t *ours = rec_ours(&r->map, map_rec(&r->map, c));
	uint64_t base = c << r->map.shift;
	size_t pages = map_pages(&r->map, c);
	int err = 0;

	for (size_t p = 0, end; !err && (p = bitmap_next_clear(ours, pages, p)) < pages; p = end) {
		end = bitmap_next_set(ours, pages, p);
		err = put(r, slot, base + p * PAGE_BYTES, base + end * PAGE_BYTES);
	}
	return err;
}

/* The mark of a reader is left shut, unless somebody waits for it already. */
static int install_mark(struct region *r, struct slot *slot, uint64_t c, bool *ret_left)
{
	struct range pages = map_page_range(&r->map, c, 1);

	*ret_left = !(map_byte(&r->map, c) & CHUNK_FAULTED);
	if (!*ret_left)
		return put(r, slot, pages.off, range_end(pages));
	return r->near->ops->write(r->near, pages.off, slot_data(r, slot, pages.off),
				   (size_t)pages.len);
}

static int install(struct region *r, struct slot *slot)
{
	struct map *m = &r->map;
	uint64_t end = slot->first + slot->count, mark = slot->mark;
	bool left = false;
	int err = 0;

	for (uint64_t c = slot->first, next; !err && c < end; c = next) {
		next = c + 1;
		if (map_state(m, c) == CHUNK_PARTIAL) {
			err = install_partial(r, slot, c);
		} else if (c == mark && r->near->mapped) {
			err = install_mark(r, slot, c, &left);
		} else {
			while (next < end && (next != mark || !r->near->mapped) &&
			       map_state(m, next) == CHUNK_PULLING)
				next++;
			err = install_run(r, slot, c, next);
		}
	}
	if (!err && !left)
		slot->mark = NO_CHUNK;
	return err;
}

static void slot_release(struct region *r, struct slot *slot)
{
	link_remove(&slot->link);
	slot_put(&r->slots, slot, use_of(slot->why));
}

static void progress(struct region *r, struct range range)
{
	uint64_t local = MIN(r->map.full << r->map.shift, r->map.size), now = loop_now(r->loop);

	if (r->opt.hooks.chunk_local)
		r->opt.hooks.chunk_local(r->opt.hooks.arg, range);
	if (r->opt.hooks.progress &&
	    (local == r->map.size || now - r->progress_ns >= 100 * NS_PER_MS)) {
		r->progress_ns = now;
		r->opt.hooks.progress(r->opt.hooks.arg, local, r->map.size);
	}
}

/* The chunk is here. Whoever faulted on a page that came by a write, and not by put(), is woken by
 * opening it. */
static void settle_chunk(struct region *r, uint64_t c, bool marked)
{
	struct map *m = &r->map;
	bool mixed = map_state(m, c) == CHUNK_PARTIAL && map_byte(m, c) & CHUNK_FAULTED;

	map_pull_end(m, c);
	if (marked && map_state(m, c) == CHUNK_CLEAN) {
		map_flag(m, c, CHUNK_MARK, 0);
		return;
	}
	map_flag(m, c, CHUNK_REF, CHUNK_FAULTED);
	if (mixed && r->near->ops->open(r->near, map_page_range(m, c, 1)))
		region_error(r, -EIO, "a page could not be opened");
}

void pull_settled(struct region *r, uint64_t first, uint64_t count)
{
	struct map *m = &r->map;
	uint64_t end = first + count, next;

	if (!r->near->ops->settled)
		return;
	for (uint64_t c = first; c < end; c = next + 1) {
		for (next = c; next < end && map_state(m, next) == CHUNK_CLEAN &&
			       !(map_byte(m, next) & CHUNK_UNFLUSHED);)
			next++;
		if (next > c)
			r->near->ops->settled(r->near, map_page_range(m, c, next - c));
	}
}

/* The data is in the near store. */
void pull_settle(struct region *r, struct slot *slot)
{
	struct range range = slot->req.range;
	uint64_t first = slot->first, count = slot->count;
	bool stale = slot->stale;
	struct list faults;

	region_lock(r);
	for (uint64_t c = first; c < first + count; c++)
		settle_chunk(r, c, c == slot->mark);
	region_unlock(r);
	pull_settled(r, first, count);
	r->pulled_bytes += range.len;
	if (slot->why == PULL_BACKGROUND)
		r->bg_tries = 0;
	list_init(&faults);
	list_splice_back(&faults, &slot->faults);
	slot_release(r, slot);
	faults_settle(r, &faults);
	progress(r, range);
	/* It became stale while the near store had room for a part of it only. */
	if (stale && region_invalidate(r, range))
		region_error(r, -EINVAL, NULL);
	requests_run(r);
}

/* err 0: it was stale. */
void pull_failed(struct region *r, struct slot *slot, int err)
{
	uint64_t first = slot->first, count = slot->count;
	struct range range = slot->req.range;
	struct list faults;

	region_lock(r);
	for (uint64_t c = first; c < first + count; c++)
		map_pull_fail(&r->map, c);
	region_unlock(r);
	list_init(&faults);
	list_splice_back(&faults, &slot->faults);
	slot_release(r, slot);
	if (r->aborting)
		return;
	faults_again(r, &faults, err);
	if (err) {
		r->pull_errors++;
		ahead_failed(r, first, count);
		r->bg_retry_ns = policy_backoff(r, ++r->bg_tries);
		requests_pull_failed(r, range, err);
	}
	pull_asked_failed(r, first, count, err);
	pull_background_again(r, first);
}

/* The near store has taken some pages, and no more. The program may write to those: the map has to
 * know which they are. (Putting a page that is present does nothing.) */
static void install_note(struct region *r, struct slot *slot)
{
	struct map *m = &r->map;

	for (uint64_t c = slot->first; c < slot->first + slot->count; c++)
		for (uint32_t p = 0; p < map_pages(m, c); p++) {
			uint64_t off = (c << m->shift) + (uint64_t)p * PAGE_BYTES;

			if (map_page_here(m, c, p) || put(r, slot, off, off + PAGE_BYTES))
				continue;
			region_lock(r);
			if (map_pull_some(m, c, p))
				map_flag(m, c, CHUNK_REF, 0);
			else
				slot->unknown = true;
			region_unlock(r);
		}
}

void pull_stuck(struct region *r, struct slot *slot, int err)
{
	install_note(r, slot);
	region_error(r, err, "the near store has no memory for what was pulled");
	link_remove(&slot->link);
	list_push_back(&r->stuck, &slot->link);
	slot->retry_ns = policy_backoff(r, ++slot->tries);
	if (err == -ENOSPC)
		(void)policy_near_full(r, (uint64_t)slot->count << r->map.shift);
}

static void pull_install(struct region *r, struct slot *slot)
{
	int err = install(r, slot);

	if (err)
		pull_stuck(r, slot, err);
	else
		pull_settle(r, slot);
}

static void pull_arrived(struct region *r, struct slot *slot)
{
	uint64_t len = slot->req.range.len;

	memset(slot->buf + len, 0, align_up(len, PAGE_BYTES) - len); /* behind the resource's end */
	if (!apart_start(r, slot))
		pull_install(r, slot);
}

static void pull_done(struct req *req, int err)
{
	struct slot *slot = CONTAINER_OF(req, struct slot, req);
	struct region *r = slot->region;

	flow_done(&r->flow_in, &slot->flow, !err, loop_now_fresh(r->loop));
	region_kick(r);
	if (r->aborting || slot->stale) {
		pull_failed(r, slot, 0);
	} else if (err) {
		region_error(r, err, req->ret_why);
		pull_failed(r, slot, err);
	} else {
		if (r->failed_count || r->failed_all)
			faults_heal(r);
		pull_arrived(r, slot);
	}
}

int pull_stuck_unknown(struct region *r)
{
	LIST_EACH(k, &r->stuck) {
		if (LIST_ENTRY(k, struct slot, link)->unknown)
			return -ENOMEM;
	}
	return 0;
}

static void stuck_run(struct region *r)
{
	LIST_EACH(k, &r->stuck) {
		struct slot *slot = LIST_ENTRY(k, struct slot, link);

		if (slot->retry_ns <= loop_now(r->loop))
			pull_install(r, slot);
	}
}

/* ---- ranges that somebody asked for ---- */

void region_pull(struct region *r, struct region_pull *pull)
{
	struct link *at = r->asked.head.next;

	pull->link = (struct link){ 0 };
	pull->tries = 0;
	pull->err = 0;
	pull->retry_ns = pull->since_ns = 0;
	pull->cursor = pull->behind = pull->end = 0;
	if (!range_within(pull->range, r->map.size)) {
		pull->err = -EINVAL;
	} else if (pull->range.len) {
		pull->cursor = pull->behind = map_chunk_of(&r->map, pull->range.off);
		pull->end = map_chunk_of(&r->map, range_end(pull->range) - 1) + 1;
	}
	while (at != &r->asked.head &&
	       LIST_ENTRY(at, struct region_pull, link)->priority >= pull->priority)
		at = at->next;
	link_insert_before(at, &pull->link);
	region_kick(r);
}

void region_pull_cancel(struct region *r, struct region_pull *pull)
{
	(void)r;
	link_remove(&pull->link);
}

/* Everything up to `behind` is local, or has failed. */
static bool asked_settled(struct region *r, struct region_pull *pull)
{
	while (pull->behind < pull->cursor && !map_pulling(&r->map, pull->behind))
		pull->behind++;
	return pull->behind == pull->end;
}

static void asked_end(struct region_pull *pull, int err)
{
	link_remove(&pull->link);
	if (pull->done)
		pull->done(pull, err);
}

static void asked_settle(struct region *r)
{
	/* done() may add or remove others: from the start again after each */
	for (bool again = true; again;) {
		again = false;
		LIST_EACH(k, &r->asked) {
			struct region_pull *pull = LIST_ENTRY(k, struct region_pull, link);

			if (!asked_settled(r, pull))
				continue;
			asked_end(pull, pull->err);
			again = true;
			break;
		}
	}
}

void pull_asked_failed(struct region *r, uint64_t first, uint64_t count, int err)
{
	LIST_EACH(k, &r->asked) {
		struct region_pull *pull = LIST_ENTRY(k, struct region_pull, link);
		uint64_t from = MAX(first, pull->behind), to = MIN(first + count, pull->cursor);

		if (from >= to)
			continue;
		if (err) {
			if (!pull->tries++)
				pull->since_ns = loop_now(r->loop);
			pull->retry_ns = policy_retry(r, err, pull->tries, pull->since_ns);
			if (!pull->retry_ns) {
				pull->err = pull->err ? pull->err : err;
				pull->tries = 0;
				continue; /* goes on behind it */
			}
		}
		pull->cursor = from;
	}
}

/* False = nothing more can be begun now. */
static bool asked_run(struct region *r, bool urgent)
{
	LIST_EACH(k, &r->asked) {
		struct region_pull *pull = LIST_ENTRY(k, struct region_pull, link);

		if ((pull->priority > 0) != urgent || pull->retry_ns > loop_now(r->loop))
			continue;
		for (;;) {
			struct pull_want want = { .end = pull->end, .why = PULL_ASKED,
						 .mark = NO_CHUNK,
						  .flags = urgent ? 0 : REQ_BACKGROUND };
			uint64_t count = 1;
			int err;

			pull->cursor = map_next_pullable(&r->map, pull->cursor, pull->end);
			if (pull->cursor == pull->end)
				break;
			want.first = pull->cursor;
			err = unreachable(r) ? -ENOTCONN : pull_start(r, &want, &count);
			if (err == -EAGAIN)
				return false;
			if (err)
				pull->err = pull->err ? pull->err : err;
			pull->cursor += count;
		}
	}
	return true;
}

/* ---- background ---- */

static int span_compare(const void *a, const void *b)
{
	const struct span *x = a, *y = b;

	if (x->priority != y->priority)
		return x->priority > y->priority ? -1 : 1;
	return x->index < y->index ? -1 : x->index > y->index;
}

/* Asks for every chunk's priority, or for that of spans of chunks where there are very many. */
static int background_order(struct region *r)
{
	uint64_t max = REGION_ORDER_MAX;

	if (r->opt.budget_bytes)
		max = MAX(MIN(max, r->opt.budget_bytes / 64 / sizeof(struct span)), (uint64_t)1);
	r->bg_span_chunks = (r->map.chunks + max - 1) / max;
	r->bg_spans = (r->map.chunks + r->bg_span_chunks - 1) / r->bg_span_chunks;
	r->bg_order = calloc(r->bg_spans, sizeof(*r->bg_order));
	if (!r->bg_order)
		return -ENOMEM;
	for (uint64_t i = 0; i < r->bg_spans; i++) {
		uint64_t first = i * r->bg_span_chunks;
		struct range range = map_range(&r->map, first,
					       MIN(r->bg_span_chunks, r->map.chunks - first));

		r->bg_order[i] = (struct span){ r->opt.hooks.priority(r->opt.hooks.arg, range),
					       (uint32_t)i };
	}
	qsort(r->bg_order, r->bg_spans, sizeof(*r->bg_order), span_compare);
	return 0;
}

int pull_background_begin(struct region *r)
{
	if (!r->opt.pull_all || !r->map.chunks)
		return 0;
	r->bg_active = true;
	return r->opt.hooks.priority ? background_order(r) : 0;
}

void pull_background_done(struct region *r)
{
	free(TAKE_PTR(r->bg_order));
}

void pull_background_again(struct region *r, uint64_t c)
{
	if (!r->opt.pull_all)
		return;
	if (!r->bg_active && !r->bg_order)
		r->bg_at = c;
	else if (r->bg_active)
		r->bg_missed = true;
	else
		r->bg_at = 0;
	r->bg_active = true;
}

/* The next chunk of the pass, by order or one after another; map.chunks at its end. bg_at counts
 * chunks in that order. */
static uint64_t background_next(struct region *r, uint64_t *ret_end)
{
	struct map *m = &r->map;

	if (!r->bg_order) {
		*ret_end = m->chunks;
		return r->bg_at = map_next_pullable(m, r->bg_at, m->chunks);
	}
	while (r->bg_at < r->bg_spans * r->bg_span_chunks) {
		uint64_t first =
			r->bg_order[r->bg_at / r->bg_span_chunks].index * r->bg_span_chunks;
		uint64_t end = MIN(first + r->bg_span_chunks, m->chunks);
		uint64_t c = map_next_pullable(m, MIN(first + r->bg_at % r->bg_span_chunks, end),
					       end);

		if (c < end) {
			r->bg_at += c - (first + r->bg_at % r->bg_span_chunks);
			*ret_end = end;
			return c;
		}
		r->bg_at = (r->bg_at / r->bg_span_chunks + 1) * r->bg_span_chunks;
	}
	return m->chunks;
}

static void background_run(struct region *r)
{
	while (r->bg_active && r->bg_retry_ns <= loop_now(r->loop)) {
		struct pull_want want = { .why = PULL_BACKGROUND, .flags = REQ_BACKGROUND,
					 .mark = NO_CHUNK };
		uint64_t count = 0;

		want.first = background_next(r, &want.end);
		if (want.first < r->map.chunks) {
			if (pull_start(r, &want, &count))
				return;
			r->bg_at += count;
		} else if (r->bg_missed && !list_empty(&r->pulls)) {
			/* what is under way may fail yet: one more pass when it has ended */
			return;
		} else {
			r->bg_active = r->bg_missed;
			r->bg_missed = false;
			r->bg_at = 0;
			if (!r->bg_active)
				pull_background_done(r);
		}
	}
}

/* ---- all of it ---- */

static bool request_pulls(struct region *r);

void pull_run(struct region *r)
{
	if (r->aborting)
		return;
	stuck_run(r);
	if (faults_run(r) && request_pulls(r) && asked_run(r, true)) {
		if (!unreachable(r))
			ahead_run(r);
		if (asked_run(r, false) && !unreachable(r))
			background_run(r);
	}
	asked_settle(r);
}

/* Chunks that a request waits for, and those behind within a window, so that a long one does not go
 * chunk by chunk. */
static bool request_pull(struct region *r, struct io *io)
{
	struct map *m = &r->map;
	struct req *req = io->req;
	uint64_t head = map_chunk_of(m, io->at), c = head, end = head + 1;

	if (req->op == REQ_READ || req->op == REQ_PREFETCH)
		end = MIN(map_chunk_of(m, range_end(req->range) - 1) + 1,
			  head + (flow_window(&r->flow_in) >> m->shift) + 1);
	while ((c = map_next_pullable(m, c, end)) < end) {
		bool background = req->flags & REQ_BACKGROUND || req->op == REQ_PREFETCH;
		struct pull_want want = { .first = c, .end = end, .why = PULL_REQUEST,
					 .mark = NO_CHUNK,
					  .beyond_window = c == head && !background };
		uint64_t count;
		int err;

		want.flags = background ? REQ_BACKGROUND : c == head ? REQ_URGENT : 0;
		err = r->far_lost &&
			r->opt.on_loss == REGION_LOSS_ERROR ? -ENOTCONN : pull_start(r, &want,
										     &count);
		if (err == -EAGAIN)
			return false;
		if (err) {
			io->err = err;
			io->retry_ns = NEVER_NS; /* ended by requests_run() */
			region_kick(r);
			return true;
		}
		c += count;
	}
	return true;
}

static bool request_pulls(struct region *r)
{
	LIST_EACH(k, &r->ios) {
		struct io *io = LIST_ENTRY(k, struct io, link);

		if (io->wants_pull && io->retry_ns <= loop_now(r->loop) && !request_pull(r, io))
			return false;
	}
	return true;
}

static bool slot_overlaps(const struct region *r, const struct slot *slot, struct range range)
{
	return range_overlaps(range, map_range(&r->map, slot->first, slot->count));
}

int pull_stale(struct region *r, struct range range)
{
	LIST_EACH(k, &r->apart.slots) {
		if (slot_overlaps(r, LIST_ENTRY(k, struct slot, link), range))
			return -EAGAIN;
	}
	LIST_EACH(k, &r->pulls) {
		struct slot *slot = LIST_ENTRY(k, struct slot, link);

		if (slot_overlaps(r, slot, range))
			slot->stale = true;
	}
	LIST_EACH(k, &r->stuck) {
		struct slot *slot = LIST_ENTRY(k, struct slot, link);

		if (!slot_overlaps(r, slot, range))
			continue;
		/* A part of it is visible: given back to the map, it can be dropped as anything
		 * else. */
		if (slot->unknown)
			slot->stale = true;
		else
			pull_failed(r, slot, 0);
	}
	return 0;
}

void pull_abort(struct region *r)
{
	struct link *k;

	while ((k = list_first(&r->stuck)))
		pull_failed(r, LIST_ENTRY(k, struct slot, link), 0);
	while ((k = list_first(&r->asked)))
		asked_end(LIST_ENTRY(k, struct region_pull, link), -ESHUTDOWN);
	r->bg_active = false;
}
