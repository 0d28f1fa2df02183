/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Push: what is dirty goes to the far store, and FLUSH makes it safe there.
 *
 *   FLUSH request ─┐
 *   pressure ──────┼─▶ round_begin: collect; todo = all that is dirty or under way
 *   timer ─────────┘        │
 *                     sweep_step ──▶ far WRITE ──▶ push_done     until todo is empty, nothing flies
 *                           │
 *                     round_pushed ──▶ far FLUSH ──▶ round_flushed ──▶ round_end
 *                           ▲                            │
 *                           └────── round_again ◀────────┘ another instance answered: what the one
 *                                       before it may have taken along is dirty, and goes again
 *
 * A *round* is one sweep of a circular cursor over a snapshot (the map's todo bits). A chunk is
 * visited when none of its WRITEs is under way, all its dirty pages then go, and its bit is
 * cleared: so whoever keeps writing to a chunk cannot keep a round from ending, and no page is ever
 * under way twice. FLUSH requests that come during a round wait for the next, all together; but a
 * round that was begun by the timer becomes theirs, with a new snapshot.
 *
 * The instance rule (rule 4). Each completed WRITE leaves its chunks UNFLUSHED in the current
 * *epoch*, of which there are two, and an epoch knows the instance id that took its WRITEs. A far
 * FLUSH is sent for the former epoch after the epochs have been switched; when it is answered by
 * the same instance, everything in the former epoch is safe, for it was complete when the FLUSH was
 * sent. When another instance shows up, in the reply to a WRITE or FLUSH or in an event, what was
 * pushed to the one before is dirty again.
 *
 * A failed WRITE makes its pages dirty again, is counted, and is the result of the next flush,
 * whatever happens until then.
 *
 * A near store that survives its process is asked to make the snapshot safe (round_sync) before
 * anything of it goes out, and is told what the far side has for good (flushed_settle).
 *
 * Locking: the region's lock around changes of the map; loop thread.
 */
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "region/region_int.h"

#define SYNC_GIVE_UP_NS (10 * NS_PER_S) /* of failures in a row: the near store's disk is broken */
#define INSTANCE_MIXED UINT64_MAX /* store.c: parts of the WRITE went to different instances */

static void push_done(struct req *req, int err);
static void round_end(struct region *r, int err);

/* ---- planning ---- */

static uint64_t push_wait_ns(const struct region *r)
{
	return r->near->mapped ? r->opt.push_interval_ns : r->opt.push_age_ns;
}

/* Half of the budget cannot be dropped: room is made before somebody has to wait for it. */
static bool crowded(const struct region *r)
{
	const struct map *m = &r->map;

	return r->opt.budget_bytes && !r->opt.push_off &&
	       (m->dirty + m->unflushed[0] + m->unflushed[1]) * r->chunk + r->near->extra_bytes >
		       r->opt.budget_bytes / 2;
}

/* Something became dirty: it will be pushed in time, without anybody asking. */
void push_written(struct region *r)
{
	if (r->pushes && !r->pressure && crowded(r)) {
		r->pressure = true;
		region_kick(r);
	}
	if (!r->pushes || r->opt.push_off || r->push_stopped || r->push_at_ns)
		return;
	r->push_at_ns = loop_now(r->loop) + push_wait_ns(r);
	region_kick(r);
}

/* A FLUSH request that waits for the round before it has waited in vain since then. */
static uint64_t next_since(const struct region *r, const struct link *k)
{
	return MAX(LIST_ENTRY(k, struct req, link)->start_ns, r->round.progress_ns);
}

/* When push_run() has to be called again by itself. */
uint64_t push_next_ns(struct region *r)
{
	uint64_t at = r->push_at_ns ? r->push_at_ns : NEVER_NS;

	if ((r->pressure || r->push_due) && !r->push_stopped && !r->round.active)
		at = MIN(at, r->push_retry_ns);
	if (r->round.active && !list_empty(&r->round.waiting))
		at = MIN(at, policy_expiry(r, r->round.progress_ns));
	if (r->round.active && !list_empty(&r->flush_next))
		at = MIN(at, policy_expiry(r, next_since(r, list_first(&r->flush_next))));
	return at;
}

/* The timer's part: looks for writes of a mapped program, and decides whether it is time to
 * push. */
static void push_tick(struct region *r)
{
	uint64_t now = loop_now(r->loop);

	if (!r->push_at_ns || r->push_at_ns > now)
		return;
	r->push_at_ns = 0;
	if (r->push_stopped || r->opt.push_off)
		return;
	if (!r->round.active && dirty_collect(r)) {
		r->push_at_ns = policy_backoff(r, ++r->push_tries);
		return;
	}
	if (r->map.dirty)
		r->push_due = true;
	/* A mapped program that has something to write to is looked at again and again; requests
	 * tell by themselves. */
	if (r->collects && r->map.held)
		r->push_at_ns = now + push_wait_ns(r);
}

/* ---- instances ---- */

static bool epoch_used(const struct region *r, unsigned epoch)
{
	return r->map.unflushed[epoch] != 0;
}

/* This instance is the one that is alive: what others took may be gone. */
static void instance_seen(struct region *r, uint64_t instance)
{
	for (unsigned e = 0; e < 2; e++) {
		if (!epoch_used(r, e) || r->epoch_instance[e] == instance)
			continue;
		region_lock(r);
		map_forget(&r->map, e);
		region_unlock(r);
		if (r->round.active)
			r->round.again = true;
		push_written(r);
	}
}

void push_restarted(struct region *r, uint64_t instance)
{
	instance_seen(r, instance);
	r->push_retry_ns = 0;
}

/* ---- one WRITE ---- */

static void pages_each(struct region *r, const struct slot *slot,
		       void (*fn)(struct region *r, uint64_t c, uint32_t page, uint32_t count,
				  bool ok), bool ok)
{
	uint64_t at = slot->first, end = slot->first + slot->count;
	unsigned per_chunk = r->map.shift - log2_u64(PAGE_BYTES);

	while (at < end) {
		uint64_t c = at >> per_chunk, to = MIN(end, (c + 1) << per_chunk);

		fn(r, c, (uint32_t)(at - (c << per_chunk)), (uint32_t)(to - at), ok);
		at = to;
	}
}

static void pages_end(struct region *r, uint64_t c, uint32_t page, uint32_t count, bool ok)
{
	map_push_end(&r->map, c, page, count, ok, r->epoch);
}

static bool all_zero(const uint8_t *p, size_t len)
{
	return !*p && !memcmp(p, p + 1, len - 1);
}

static void push_send(struct region *r, struct slot *slot)
{
	struct req *req = &slot->req;
	uint64_t off = slot->first * PAGE_BYTES,
		end = MIN(off + slot->count * PAGE_BYTES, r->map.size);
	int err = r->near->ops->read(r->near, off, slot->buf, (size_t)(end - off));

	req->flags = list_empty(&r->round.waiting) && !r->pressure ? REQ_BACKGROUND : 0;
	req->range = range_between(off, end);
	req->data = (struct iobuf){ slot->buf, (size_t)(end - off) };
	req->op = r->far->info.zero == CAP_NATIVE &&
		all_zero(slot->buf, req->data.len) ? REQ_ZERO : REQ_WRITE;
	req->extents = NULL;
	req->done = push_done;
	req->ret_why = NULL;
	flow_sent(&r->flow_out, &slot->flow, req->data.len, loop_now_fresh(r->loop));
	r->round.flying++;
	if (err)
		push_done(req, err);
	else
		req_submit(r->far, req);
}

static void push_failed(struct region *r, int err, const char *why)
{
	r->push_errors++;
	if (!r->aborting)
		region_error(r, err, why);
	r->push_retry_ns = policy_backoff(r, ++r->push_tries);
	if (!r->round.err)
		r->round.err = err;
}

static void push_done(struct req *req, int err)
{
	struct slot *slot = CONTAINER_OF(req, struct slot, req);
	struct region *r = slot->region;
	bool ok = !err && req->ret_instance != INSTANCE_MIXED;

	flow_done(&r->flow_out, &slot->flow, ok, loop_now_fresh(r->loop));
	if (ok) {
		instance_seen(r, req->ret_instance);
		r->epoch_instance[r->epoch] = req->ret_instance;
		r->pushed_bytes += req->range.len;
		r->push_tries = 0;
		r->round.progress_ns = loop_now(r->loop);
	} else if (err) {
		push_failed(r, err, req->ret_why);
	} else {
		r->round.again = true;
	}
	region_lock(r);
	pages_each(r, slot, pages_end, ok);
	region_unlock(r);
	if (r->map.dirty)
		push_written(r);
	CHECK(r->round.flying);
	r->round.flying--;
	slot_put(&r->slots, slot, USE_PUSH);
	region_kick(r);
}

/* ---- the sweep ---- */

/* The chunk at or after the cursor that can be visited now; false = none. */
static bool sweep_find(struct region *r)
{
	struct map *m = &r->map;
	struct round *round = &r->round;
	uint64_t begin = round->at, c = begin;
	bool wrapped = false;

	if (round->visiting)
		return true;
	while (m->todo_count) {
		c = bitmap_next_set(m->todo, m->chunks, c);
		if (c == m->chunks || (wrapped && c >= begin)) {
			if (wrapped)
				return false;
			wrapped = true;
			c = 0;
			continue;
		}
		if (!map_flying(m, c)) {
			round->at = c;
			round->page = 0;
			round->visiting = true;
			return true;
		}
		c++;
	}
	return false;
}

static void visit_end(struct region *r)
{
	map_todo_clear(&r->map, r->round.at);
	r->round.visiting = false;
	r->round.at++;
}

/* Takes the run of dirty pages at the cursor into the slot, and what follows in the next chunks
 * without a gap. */
static void sweep_fill(struct region *r, struct slot *slot, uint32_t page, uint32_t count)
{
	struct map *m = &r->map;
	struct round *round = &r->round;
	uint64_t max = MIN(slot->room, (size_t)r->far->info.len_max) / PAGE_BYTES;

	slot->first = (round->at << m->shift) / PAGE_BYTES + page;
	slot->count = 0;
	region_lock(r);
	for (;;) {
		if (map_rec(m, round->at))
			count = (uint32_t)MIN((uint64_t)count, max - slot->count);
		map_push_begin(m, round->at, page, count);
		slot->count += count;
		round->page = page + count;
		if (round->page < map_pages(m, round->at))
			break;
		visit_end(r);
		/* the next chunk, if it goes on there, and fits as a whole or can be taken in
		 * pieces */
		if (round->at == m->chunks || slot->count == max || !map_todo(m, round->at) ||
		    map_flying(m, round->at) || !map_push_next(m, round->at, 0, &page, &count) ||
		    	page)
			break;
		if (!map_rec(m, round->at) && count > max - slot->count)
			break;
		round->visiting = true;
	}
	region_unlock(r);
}

/* One WRITE; false = none can be begun now. */
static bool sweep_step(struct region *r)
{
	struct map *m = &r->map;
	struct round *round = &r->round;
	uint32_t page, count;
	struct slot *slot;
	size_t len;

	if (!sweep_find(r))
		return false;
	if (round->page && map_state(m, round->at) == CHUNK_DIRTY && !map_rec(m, round->at))
		/* was in pieces when the visit began, and is dirty as a whole now */
		round->page = 0;
	if (!map_push_next(m, round->at, round->page, &page, &count)) {
		visit_end(r);
		return true;
	}
	/* Where the run ends with its chunk, more may follow: worth a large buffer. */
	len = (size_t)count * PAGE_BYTES;
	if (page + count == map_pages(m, round->at) && round->at + 1 < m->chunks &&
	    map_todo(m, round->at + 1))
		len = MAX(len, (size_t)REGION_SMALL + 1);
	if (r->flow_out.inflight && r->flow_out.inflight + len > flow_window(&r->flow_out))
		return false;
	if (!slot_available(&r->slots, len, USE_PUSH))
		len = map_rec(m, round->at) ? MIN(len, (size_t)REGION_SMALL) :
			(size_t)count * PAGE_BYTES;
	slot = slot_get(&r->slots, len, USE_PUSH);
	if (!slot)
		return false;
	sweep_fill(r, slot, page, count);
	push_send(r, slot);
	return true;
}

/* ---- rounds ---- */

static void round_snapshot(struct region *r)
{
	struct map *m = &r->map;

	for (uint64_t c = 0; (c = map_next(m, c, MAP_BUSY)) < m->chunks; c++)
		map_todo_set(m, c);
}

static void round_sync(struct region *r);

static void round_synced(struct near_sync *sync, int err)
{
	struct round *round = CONTAINER_OF(sync, struct round, sync);
	struct region *r = CONTAINER_OF(round, struct region, round);

	round->syncing = false;
	round->progress_ns = loop_now(r->loop);
	if (!err)
		round->sync_failed_ns = 0;
	else if (!round->sync_failed_ns)
		round->sync_failed_ns = loop_now(r->loop);
	if (err && loop_now(r->loop) - round->sync_failed_ns < SYNC_GIVE_UP_NS) {
		push_failed(r, err, "what was written could not be made safe on the disk here");
	} else if (err && !r->aborting) {
		/* It goes out all the same: there it is safer than here. */
		region_error(r, err, "the disk here does not make safe what is written");
		round->sync_err = err;
	}
	if (round->sync_more && !r->aborting)
		round_sync(r);
	region_kick(r);
}

/* Where the near store survives a power cut, what goes out is safe here first: else it would be
 * clean, and old, after one, while the far side has what is new; or the record before the last
 * would be pushed over it. */
static void round_sync(struct region *r)
{
	struct round *round = &r->round;

	round->sync_more = round->syncing;
	if (!r->near->ops->sync || round->syncing)
		return;
	round->sync.done = round_synced;
	round->syncing = r->near->ops->sync(r->near, &round->sync) == -EINPROGRESS;
}

static void todo_drop(struct region *r)
{
	struct map *m = &r->map;

	for (uint64_t c = 0; m->todo_count; c++) {
		c = bitmap_next_set(m->todo, m->chunks, c);
		map_todo_clear(m, c);
	}
	r->round.visiting = false;
}

/*
 * Pages that a thread is putting are open before the map says that they are here. A program that
 * saw them may have written there, and a flush that it asks for then has to find that: it begins
 * when no thread is at it (and none begins while a flush waits: pull.c).
 */
static bool flush_ready(const struct region *r)
{
	return !(r->collects && r->apart.count);
}

static bool round_wanted(struct region *r)
{
	if (!list_empty(&r->flush_next))
		return flush_ready(r);
	if (r->push_retry_ns > loop_now(r->loop))
		return false;
	if (r->pressure &&
	    r->map.dirty + r->map.pushing + r->map.unflushed[0] + r->map.unflushed[1] == 0)
		r->pressure = false;
	return (r->pressure || r->push_due) && !r->push_stopped;
}

/* Requests that wait become part of the round: everything that they can mean is in this
 * snapshot. */
static void round_take(struct region *r)
{
	struct round *round = &r->round;
	int err = 0;

	if (!list_empty(&r->flush_next)) {
		list_splice_back(&round->waiting, &r->flush_next);
		r->push_stopped = false;
		err = dirty_collect(r);
		if (!err && r->collects)
			err = pull_stuck_unknown(r);
	}
	round->flush = !list_empty(&round->waiting) || r->pressure;
	round->progress_ns = loop_now(r->loop);
	round->again_ns = 0;
	if (err && !round->err)
		round->err = err;
	/* pages behind the cursor may be dirty since: from the chunk's start again */
	round->visiting = false;
	round_snapshot(r);
	round_sync(r);
}

static void round_begin(struct region *r)
{
	struct round *round = &r->round;

	CHECK(!round->active && !round->flying && !r->map.todo_count);
	round->active = true;
	round->again = false;
	round->err = round->sync_err = 0;
	r->push_due = false;
	round_take(r);
}

static void round_answer(struct region *r, int err)
{
	struct link *k;

	while ((k = list_pop_front(&r->round.waiting)))
		req_done(LIST_ENTRY(k, struct req, link), err);
}

static void round_end(struct region *r, int err)
{
	struct round *round = &r->round;
	bool asked = !list_empty(&round->waiting);

	CHECK(round->active && !round->flying && !round->flushing && !round->syncing);
	todo_drop(r);
	round->active = false;
	if (!err)
		err = round->sync_err;
	if (asked) {
		if (!err)
			err = r->push_err;
		r->push_err = 0;
		if (!err)
			r->flushes++;
	} else if (err && !r->push_err) {
		r->push_err = err;
	}
	if (round->flush && !err)
		r->pressure = false;
	round_answer(r, err);
	region_kick(r);
}

static void round_again(struct region *r)
{
	struct round *round = &r->round;

	round->again = false;
	if (!round->again_ns)
		round->again_ns = loop_now(r->loop);
	if (policy_expired(r, round->again_ns, loop_now(r->loop))) {
		round_end(r, -EIO);
		return;
	}
	round_snapshot(r);
	round_sync(r);
	region_kick(r);
}

/* What is clean, and unflushed in that epoch alone, is what the far side has for good. */
static void flushed_settle(struct region *r, unsigned epoch)
{
	const struct map *m = &r->map;
	uint8_t flag = epoch ? CHUNK_UNFLUSHED_B : CHUNK_UNFLUSHED_A;

	if (!r->near->ops->settled)
		return;
	for (uint64_t c = 0; (c = map_next(m, c, MAP_UNFLUSHED)) < m->chunks; c++)
		if (map_state(m, c) == CHUNK_CLEAN && (map_byte(m, c) & CHUNK_UNFLUSHED) == flag)
			r->near->ops->settled(r->near, map_page_range(m, c, 1));
}

static void round_flushed(struct req *req, int err)
{
	struct region *r = req->user;
	struct round *round = &r->round;
	unsigned old = !r->epoch;

	round->flushing = false;
	round->progress_ns = loop_now(r->loop);
	if (!err) {
		instance_seen(r, req->ret_instance);
		flushed_settle(r, old);
		region_lock(r);
		map_flushed(&r->map, old); /* what was not forgotten */
		region_unlock(r);
	} else {
		if (!r->aborting)
			region_error(r, err, req->ret_why);
		r->push_errors++;
		r->push_retry_ns = policy_backoff(r, ++r->push_tries);
		/* Not covered: the next flush is to cover them. One epoch has one instance. */
		region_lock(r);
		if (epoch_used(r, r->epoch) &&
		    r->epoch_instance[old] != r->epoch_instance[r->epoch]) {
			map_forget(&r->map, old);
		} else {
			if (epoch_used(r, old))
				r->epoch_instance[r->epoch] = r->epoch_instance[old];
			map_epoch_merge(&r->map, old, r->epoch);
		}
		region_unlock(r);
	}
	if (!err && round->again)
		round_again(r);
	else
		round_end(r, err);
	region_kick(r);
}

static void round_flush(struct region *r)
{
	struct round *round = &r->round;
	struct req *req = &round->req;

	if (!epoch_used(r, r->epoch)) { /* and the other one is never used here */
		round_end(r, 0);
		return;
	}
	r->epoch = !r->epoch;
	CHECK(!epoch_used(r, r->epoch));
	round->flushing = true;
	req->op = REQ_FLUSH;
	req->flags = 0;
	req->range = range_of(0, 0);
	req->data = (struct iobuf){ 0 };
	req->extents = NULL;
	req->done = round_flushed;
	req->user = r;
	req_submit(r->far, req);
}

/* Everything of the snapshot has been pushed, or failed. */
static void round_pushed(struct region *r)
{
	struct round *round = &r->round;

	if (round->err)
		round_end(r, round->err);
	else if (round->again)
		round_again(r);
	else if (round->flush)
		round_flush(r);
	else
		round_end(r, 0);
}

/* The far side does not move: whoever waits is told; the round goes on for itself. */
static void round_expire(struct region *r)
{
	static const char why[] = "flush: the far side does not answer";
	uint64_t now = loop_now(r->loop);
	struct link *k;

	/* in the order in which they came */
	while (r->round.active && (k = list_first(&r->flush_next)) &&
	       next_since(r, k) <= now && policy_expired(r, next_since(r, k), now)) {
		link_remove(k);
		region_error(r, -ETIMEDOUT, why);
		req_done(LIST_ENTRY(k, struct req, link), -ETIMEDOUT);
	}
	if (list_empty(&r->round.waiting) || !policy_expired(r, r->round.progress_ns, now))
		return;
	region_error(r, -ETIMEDOUT, why);
	round_answer(r, -ETIMEDOUT);
}

void push_run(struct region *r)
{
	struct round *round = &r->round;

	if (r->aborting) {
		if (round->active && !round->flying && !round->flushing && !round->syncing)
			round_end(r, -ESHUTDOWN);
		return;
	}
	push_tick(r);
	if (!round->active && round_wanted(r))
		round_begin(r);
	else if (round->active && !round->flushing && list_empty(&round->waiting) &&
		 !list_empty(&r->flush_next) && flush_ready(r))
		round_take(r);
	if (r->pressure && round->active && !r->push_stopped)
		round->flush = true;
	round_expire(r);
	if (!round->active || round->flushing || round->syncing)
		return;
	if (round->err)
		todo_drop(r);
	while (r->map.todo_count && !round->err && sweep_step(r))
		;
	if (!r->map.todo_count && !round->flying)
		round_pushed(r);
}

void push_flush(struct region *r, struct req *req)
{
	/* read-only, or a private copy: there is nothing that could be made safe */
	if (!r->pushes) {
		req_done(req, 0);
		return;
	}
	list_push_back(&r->flush_next, &req->link);
	region_kick(r);
}

void push_abort(struct region *r)
{
	struct link *k;

	round_answer(r, -ESHUTDOWN);
	while ((k = list_pop_front(&r->flush_next)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
}
