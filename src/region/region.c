/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The region's handle: opening and closing, the one place from which everything is carried on,
 * events, status.
 *
 * Place: a front end submits requests to region_store() or reports page faults to region_fault();
 * below are the near store and the far store. map.c has the states; request.c, fault.c, pull.c,
 * readahead.c, dirty.c, push.c and policy.c do the work.
 *
 * Whatever happens (a request, a fault, a completion, a timer, an event) changes some state and
 * kicks; region_run() then looks at all that waits, in the order of urgency, once per iteration of
 * the loop. So no callback starts a long chain, and there is one order of things to reason about.
 *
 * One timer serves everything that waits for a time: retries, deadlines, pushes. Nothing to wait
 * for: no timer.
 *
 * Closing: abort, deferred to region_run(): waiting requests, pulls and faults end, the far store
 * is aborted. When no transfer is under way and no post queued, far is closed, then near, then the
 * handle is freed.
 *
 * Locking: one mutex (region_lock) around the bytes and records of the map, and near->open(),
 * against the fault thread, which runs nothing but region_fault(). Never held across I/O.
 * Everything else belongs to the loop's thread.
 */
#include "region/region.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/size.h"
#include "region/region_int.h"

static void region_run(struct post *post);

/* ---- carrying on ---- */

void region_kick(struct region *r)
{
	if (r->kicked)
		return;
	r->kicked = true;
	loop_defer(r->loop, &r->kick_post);
}

void region_flag(struct region *r, uint64_t c, uint8_t set, uint8_t clear)
{
	region_lock(r);
	map_flag(&r->map, c, set, clear);
	region_unlock(r);
}

void region_error(struct region *r, int err, const char *why)
{
	r->last_err = err;
	r->last_err_ns = loop_now(r->loop);
	snprintf(r->last_why, sizeof(r->last_why), "%s", why ? why : strerror(-err));
}

static uint64_t expiry(const struct region *r, struct link *fault)
{
	return policy_expiry(r, LIST_ENTRY(fault, struct fault, link)->since_ns);
}

/* The earliest time at which something has to be looked at again. */
static uint64_t next_ns(struct region *r)
{
	uint64_t at = push_next_ns(r), now = loop_now(r->loop);
	struct list *slots[] = { &r->pulls, &r->apart.slots, &r->stuck };

	LIST_EACH(k, &r->ios) {
		struct io *io = LIST_ENTRY(k, struct io, link);

		at = MIN(at, policy_expiry(r, io->since_ns));
		if (io->retry_ns > now) /* else it waits for something that will kick */
			at = MIN(at, io->retry_ns);
	}
	LIST_EACH(k, &r->faults) {
		struct fault *f = LIST_ENTRY(k, struct fault, link);

		at = MIN(at, policy_expiry(r, f->since_ns));
		if (f->retry_ns > now)
			at = MIN(at, f->retry_ns);
	}
	for (size_t i = 0; i < ARRAY_LEN(slots); i++)
		LIST_EACH(k, slots[i]) {
			struct slot *slot = LIST_ENTRY(k, struct slot, link);

			if (slots[i] == &r->stuck)
				at = MIN(at, slot->retry_ns);
			LIST_EACH(j, &slot->faults)
				at = MIN(at, expiry(r, j));
		}
	LIST_EACH(k, &r->asked) {
		struct region_pull *pull = LIST_ENTRY(k, struct region_pull, link);

		if (pull->retry_ns > now)
			at = MIN(at, pull->retry_ns);
	}
	if (r->bg_active && r->bg_retry_ns > now)
		at = MIN(at, r->bg_retry_ns);
	return at;
}

/* A timer that fires early costs one look; one that is moved for each request costs more. */
static void timer_plan(struct region *r)
{
	uint64_t at = next_ns(r);

	if (at == NEVER_NS)
		timer_clear(r->loop, &r->timer);
	else if (!timer_is_set(&r->timer) || r->timer.at_ns > at)
		timer_set(r->loop, &r->timer, MAX(at, loop_now(r->loop) + 1));
}

static void timer_fired(struct timer *timer)
{
	struct region *r = CONTAINER_OF(timer, struct region, timer);

	faults_expire(r);
	region_kick(r);
}

/* ---- closing ---- */

static void region_free(struct region *r)
{
	pull_background_done(r);
	slots_done(&r->slots);
	map_done(&r->map);
	apart_free(r);
	pthread_cond_destroy(&r->fault_room);
	pthread_mutex_destroy(&r->lock);
}

static void far_closed(void *arg)
{
	struct region *r = arg;

	r->near->ops->close(r->near);
	region_free(r);
	store_closed(&r->store);
}

/* Whether the near store has ended what it does in the background; it is asked to, once. */
static void near_stopped(void *arg)
{
	struct region *r = arg;

	r->near_stopped = true;
	region_kick(r);
}

static bool near_stop(struct region *r)
{
	if (!r->near->ops->stop || r->near_stopped)
		return true;
	if (!r->near_stopping)
		r->near->ops->stop(r->near, near_stopped, r);
	r->near_stopping = true;
	return false;
}

/* Who may still hold a pointer to us: a slot's or a round's request (they end, far was aborted),
 * EXTENTS likewise, our posts (they run before this is asked again). */
static void close_try(struct region *r)
{
	bool posted;

	region_lock(r);
	posted = r->posted;
	region_unlock(r);
	if (posted || r->kicked || r->round.active || r->extents_parent || !list_empty(&r->pulls) ||
	    apart_busy(r) || r->slots.pushing || !near_stop(r))
		return;
	r->closing = false; /* once */
	r->far->on_event = NULL;
	store_close(r->far, far_closed, r);
}

static void region_aborted(struct region *r)
{
	r->aborted = true;
	timer_clear(r->loop, &r->timer);
	store_abort(r->far);
	push_abort(r);
	requests_abort(r);
	faults_abort(r);
	pull_abort(r);
}

static void region_abort(struct store *store)
{
	struct region *r = CONTAINER_OF(store, struct region, store);

	r->aborting = true;
	region_kick(r);
}

static void region_close(struct store *store)
{
	struct region *r = CONTAINER_OF(store, struct region, store);

	r->aborting = r->closing = true;
	region_kick(r);
}

static void region_run(struct post *post)
{
	struct region *r = CONTAINER_OF(post, struct region, kick_post);

	r->kicked = false;
	if (r->aborting && !r->aborted)
		region_aborted(r);
	if (!r->aborting) {
		faults_take(r);
		requests_run(r);
		pull_run(r);
	}
	push_run(r);
	if (!r->aborting) {
		if (r->collects && r->map.held)
			push_written(r);
		timer_plan(r);
	} else if (r->closing) {
		close_try(r);
	}
}

/* ---- events of the far store ---- */

static void retry_now(struct region *r)
{
	LIST_EACH(k, &r->faults)
		LIST_ENTRY(k, struct fault, link)->retry_ns = 0;
	LIST_EACH(k, &r->asked)
		LIST_ENTRY(k, struct region_pull, link)->retry_ns = 0;
	LIST_EACH(k, &r->ios) {
		struct io *io = LIST_ENTRY(k, struct io, link);

		if (io->retry_ns != NEVER_NS)
			io->retry_ns = 0;
	}
	r->bg_retry_ns = r->push_retry_ns = 0;
}

static void far_event(void *arg, struct store *far, enum store_event event)
{
	struct region *r = arg;

	if (r->aborting)
		return;
	region_kick(r);
	if (event == STORE_LOST) {
		r->far_lost = true;
		if (r->opt.on_loss == REGION_LOSS_ERROR) {
			faults_lost(r);
			LIST_EACH(k, &r->ios) {
				struct io *io = LIST_ENTRY(k, struct io, link);

				io->err = -ENOTCONN;
				if (io->wants_pull)
					io->retry_ns = NEVER_NS;
			}
		}
		if (r->opt.on_loss == REGION_LOSS_READONLY)
			r->push_stopped = true;
		store_emit(&r->store, STORE_LOST);
		return;
	}
	r->far_lost = false;
	if (event == STORE_RESTARTED)
		push_restarted(r, far->info.instance);
	retry_now(r);
	if (r->failed_count || r->failed_all)
		faults_heal(r);
	store_emit(&r->store, STORE_BACK); /* the region forgets nothing: it pushes again */
}

static void region_line(struct store *store, char *buf, size_t len)
{
	struct region *r = CONTAINER_OF(store, struct region, store);
	const struct map *m = &r->map;

	snprintf(buf, len, "chunk=%u local=%llu dirty=%llu unflushed=%llu budget=%llu lost=%d",
		 r->chunk, (unsigned long long)(m->full << m->shift),
		 (unsigned long long)(m->dirty << m->shift),
		 (unsigned long long)((m->unflushed[0] + m->unflushed[1]) << m->shift),
		 (unsigned long long)r->opt.budget_bytes, r->far_lost);
}

static const struct store_ops region_ops = {
	.name = "region",
	.submit = request_submit,
	.abort = region_abort,
	.close = region_close,
	.status = region_line,
};

/* ---- opening ---- */

uint32_t region_chunk_default(const struct store_info *info)
{
	uint64_t len_max = 1ULL << log2_u64(info->len_max);

	return (uint32_t)MAX(MIN(MIN(info->chunk, CHUNK_MAX), len_max), CHUNK_MIN);
}

static int open_options(struct region *r, const struct region_options *options, struct err *e)
{
	const struct store_info *info = &r->far->info;
	struct region_options *o = &r->opt;
	char text[SIZE_TEXT_MAX];

	*o = *options;
	if (!o->inflight_bytes_max)
		o->inflight_bytes_max = REGION_INFLIGHT_DEFAULT;
	if (!o->readahead_bytes_max)
		o->readahead_bytes_max = REGION_READAHEAD_DEFAULT;
	o->push_interval_ns = o->push_interval_ns ? o->push_interval_ns : NS_PER_S;
	o->push_age_ns = o->push_age_ns ? o->push_age_ns : o->push_interval_ns;
	o->deadline_ns = o->deadline_ns ? o->deadline_ns : 60 * NS_PER_S;
	if (info->align > PAGE_BYTES)
		return err_set(e, -EINVAL,
			       "the far side wants requests aligned to %s, more than a page: put \"align|\" before it",
			       size_format(info->align, text));
	if (!o->chunk)
		o->chunk = r->near->chunk ? r->near->chunk : region_chunk_default(info);
	if (r->near->chunk && o->chunk != r->near->chunk)
		return err_set(e, -EINVAL, "what is kept here was made for chunks of %s",
			       size_format(r->near->chunk, text));
	if (!is_pow2(o->chunk) || o->chunk < CHUNK_MIN || o->chunk > CHUNK_MAX)
		return err_set(e, -EINVAL, "a chunk is a power of two from 4K to 16M");
	if (o->chunk > info->len_max)
		return err_set(e, -EINVAL,
			       "the far side takes requests of at most %s, a chunk must not be larger",
			       size_format(info->len_max, text));
	if (info->read_only && !o->discard)
		o->read_only = true;
	r->chunk = o->chunk;
	r->collects = r->near->mapped && r->near->writable;
	r->pushes = !o->read_only && !o->discard;
	return 0;
}

/* How much of the memory is for transfers, and in which pieces. */
static int open_memory(struct region *r, struct err *e)
{
	struct region_options *o = &r->opt;
	size_t recs = MAP_RECS_BYTES;
	uint64_t bytes = MIN(o->inflight_bytes_max, REGION_INFLIGHT_MAX);
	uint64_t unit = MAX(REGION_UNIT, (uint64_t)r->chunk), large, small, least;
	char text[SIZE_TEXT_MAX];
	int err;

	if (o->budget_bytes) {
		bytes = MIN(bytes, o->budget_bytes * 3 / 32);
		recs = (size_t)MIN((uint64_t)recs, o->budget_bytes / 64);
	}
	while (unit > r->chunk && (unit > r->far->info.len_max || unit * REGION_SLOTS_MIN > bytes))
		unit /= 2;
	large = MAX(bytes / unit, (uint64_t)REGION_SLOTS_MIN);
	small = MIN(MAX(bytes / 4 / REGION_SMALL, 4ULL), (uint64_t)REGION_SMALL_SLOTS_MAX);
	o->inflight_bytes_max = large * unit;
	r->unit = (uint32_t)unit;
	r->fixed_bytes = large * unit + small * REGION_SMALL;
	if (o->readahead_bytes_max > 1)
		r->ahead_max = (uint32_t)MAX(o->readahead_bytes_max / r->chunk, 1u);
	recs = map_recs_bytes(r->chunk, recs, r->near->partial);
	err = map_init(&r->map, r->far->info.size, r->chunk, recs, e);
	if (err)
		return err;
	r->fixed_bytes += sizeof(*r) + map_memory_fixed(&r->map);
	least = policy_least(r);
	if (o->budget_bytes && o->budget_bytes < least)
		return err_set(e, -EINVAL,
			       "the budget is too small: with this chunk size it takes %s at least",
			       size_format(least, text));
	if (o->budget_bytes)
		r->ahead_max = (uint32_t)MIN((uint64_t)r->ahead_max,
					     (o->budget_bytes - r->fixed_bytes) / 4 / r->chunk);
	r->flow_in.window_max = r->flow_out.window_max = large * unit;
	err = slots_init(r, &r->slots, (uint32_t)large, unit, (uint32_t)small);
	return err ? err_sys(e, err, "no memory for transfer buffers") : 0;
}

/* ---- what the near store has from before ---- */

static void restore(void *arg, struct range pages, bool dirty)
{
	struct region *r = arg;
	struct map *m = &r->map;

	for (uint64_t at = pages.off; at < range_end(pages);) {
		uint64_t c = map_chunk_of(m, at), end;

		end = MIN(range_end(map_page_range(m, c, 1)), range_end(pages));
		if (dirty) {
			map_write(m, c, (uint32_t)((at - (c << m->shift)) / PAGE_BYTES),
				  (uint32_t)((end - at) / PAGE_BYTES));
		} else {
			map_pull_begin(m, c);
			map_pull_end(m, c);
		}
		at = end;
	}
}

static int open_restore(struct region *r, struct err *e)
{
	char text[SIZE_TEXT_MAX];

	if (!r->near->ops->recover)
		return 0;
	if (r->opt.discard)
		return err_set(e, -EINVAL, "a private copy cannot be kept over a restart");
	r->near->ops->recover(r->near, restore, r);
	if (r->map.dirty && !r->pushes)
		return err_set(e, -EROFS,
			       "what is kept here has %s that were written and not pushed yet, which "
			       "takes the right to write: open it once without read-only",
			       size_format(map_unsafe_bytes(&r->map), text));
	return 0;
}

static void near_wake(void *arg)
{
	region_kick(arg);
}

static void open_lists(struct region *r)
{
	struct list *lists[] = { &r->pulls,	    &r->stuck,	     &r->asked,
				 &r->round.waiting, &r->flush_next, &r->ios_idle,
				 &r->ios,	    &r->ios_waiting, &r->extents_waiting };

	for (size_t i = 0; i < ARRAY_LEN(lists); i++)
		list_init(lists[i]);
	for (size_t i = 0; i < REGION_IOS_MAX; i++)
		list_push_back(&r->ios_idle, &r->io[i].link);
	faults_init(r);
	apart_init(r);
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->fault_room, NULL);
	r->kick_post.run = region_run;
	r->timer.fire = timer_fired;
	r->ahead_last = NO_CHUNK;
}

int region_open(struct region **ret, struct loop *loop, struct store *far, struct near *near,
		const struct region_options *options, struct err *e)
{
	struct region *r = calloc(1, sizeof(*r));
	int err;

	if (!r)
		return err_sys(e, -ENOMEM, "no memory for a region");
	r->loop = loop;
	r->env = loop_env(loop);
	r->far = far;
	r->near = near;
	open_lists(r);
	err = open_options(r, options, e);
	if (!err)
		err = open_memory(r, e);
	if (!err)
		err = open_restore(r, e);
	if (!err && pull_background_begin(r))
		err = err_sys(e, -ENOMEM, "no memory for the order of the pull");
	if (err) {
		region_free(r);
		free(r);
		return err;
	}
	r->store.info = (struct store_info){
		.size = far->info.size,
		.align = 1,
		.len_max = REQ_LEN_MAX,
		.chunk = r->chunk,
		.read_only = r->opt.read_only,
		.zero = CAP_NATIVE,
		.trim = CAP_NATIVE,
		.extents = CAP_NATIVE,
		.prefetch = CAP_NATIVE,
		.flush = CAP_NATIVE,
		.identity = far->info.identity,
	};
	store_init(&r->store, &region_ops, loop, NULL);
	far->on_event = far_event;
	far->on_event_arg = r;
	near->wake = near_wake;
	near->wake_arg = r;
	if (r->map.dirty)
		push_written(r);
	if (r->bg_active)
		region_kick(r);
	*ret = r;
	return 0;
}

struct store *region_store(struct region *r)
{
	return &r->store;
}

/* ---- invalidate ---- */

/* Of a chunk that is dirty in places, what is clean goes, and is pulled again when it is needed. */
static void chunk_shrink(struct region *r, uint64_t c)
{
	struct map *m = &r->map;
	struct range pages = map_page_range(m, c, 1);
	struct map_rec *rec;
	size_t count = map_pages(m, c);
	bool shrunk = false;

	region_lock(r);
	if (!r->near->mapped || !r->near->ops->shut(r->near, pages)) {
		map_flag(m, c, 0, CHUNK_REF);
		if (r->collects && dirty_collect_chunk(r, c))
			map_flag(m, c, CHUNK_REF, 0);
		else
			shrunk = map_shrink(m, c);
	}
	region_unlock(r);
	rec = map_rec(m, c);
	for (size_t p = 0, end = 0; shrunk && rec && end < count; p = end) {
		struct range gone;

		p = bitmap_next_clear(rec_ours(m, rec), count, p);
		end = bitmap_next_set(rec_ours(m, rec), count, p);
		gone = range_of(pages.off + p * PAGE_BYTES, (end - p) * PAGE_BYTES);
		if (gone.len && r->near->ops->drop(r->near, gone))
			region_error(r, -EIO, "memory of the near store could not be given back");
	}
}

int region_invalidate(struct region *r, struct range range)
{
	struct map *m = &r->map;
	uint64_t end;
	int err;

	if (!range_within(range, m->size))
		return -EINVAL;
	if (!range.len)
		return 0;
	err = pull_stale(r, range);
	if (err)
		return err;
	end = map_chunk_of(m, range_end(range) - 1) + 1;
	for (uint64_t c = map_chunk_of(m, range.off); (c = map_next(m, c, MAP_HELD)) < end; c++) {
		/* A pull of it is stale now, and begins again. What was written and is not safe yet
		 * stays. */
		if (!policy_drop(r, c) && map_rec(m, c))
			chunk_shrink(r, c);
		pull_background_again(r, c);
	}
	region_kick(r);
	return 0;
}

/* ---- status ---- */

static uint64_t chunks_bytes(const struct map *m, uint64_t chunks)
{
	uint64_t short_by = (m->chunks << m->shift) - m->size;

	if (chunks == m->chunks)
		return m->size;
	return (chunks << m->shift) - (chunks && map_full(m, m->chunks - 1) ? short_by : 0);
}

void region_status(struct region *r, struct region_status *ret)
{
	const struct map *m = &r->map;

	*ret = (struct region_status){
		.size = m->size,
		.chunk = r->chunk,
		.local_bytes = chunks_bytes(m, m->full),
		.dirty_bytes = m->dirty << m->shift,
		.unflushed_bytes = (m->unflushed[0] + m->unflushed[1]) << m->shift,
		.pulling_bytes = r->flow_in.inflight,
		.pushing_bytes = r->flow_out.inflight,
		.budget_bytes = r->opt.budget_bytes,
		.inflight_bytes_max = r->opt.inflight_bytes_max,
		.pulled_bytes = r->pulled_bytes,
		.pushed_bytes = r->pushed_bytes,
		.evicted_bytes = r->evicted_bytes,
		.faults_far = r->faults_far,
		.unsafe_bytes = r->opt.discard ? 0 : map_unsafe_bytes(m),
		.hits = r->hits,
		.misses = r->misses,
		.trip_ns = r->flow_in.trip_ns,
		.flushes = r->flushes,
		.near_damaged_bytes = r->near->damaged_bytes,
		.near_extra_bytes = r->near->extra_bytes,
		.pull_errors = r->pull_errors,
		.push_errors = r->push_errors,
		.collect_ns = r->collect_ns,
		.fault_latency = r->fault_latency,
		.last_err = r->last_err,
		.last_err_ns = r->last_err_ns,
		.far_lost = r->far_lost,
	};
	memcpy(ret->last_why, r->last_why, sizeof(ret->last_why));
	region_lock(r);
	ret->faults_near = r->faults_near;
	region_unlock(r);
}

void region_map_draw(struct region *r, uint64_t first, uint64_t count, char *buf)
{
	static const char letter[CHUNK_STATES] = {
		[CHUNK_ABSENT] = '.',
		[CHUNK_PARTIAL] = '~',
		[CHUNK_PULLING] = '<',
		[CHUNK_CLEAN] = '#',
		[CHUNK_DIRTY] = '*',
		[CHUNK_PUSHING] = '>',
		[CHUNK_REPUSH] = '>',
	};

	for (uint64_t i = 0; i < count; i++) {
		uint64_t c = first + i;

		if (c >= r->map.chunks)
			buf[i] = ' ';
		else if (map_state(&r->map, c) == CHUNK_CLEAN &&
			 map_byte(&r->map, c) & CHUNK_UNFLUSHED)
			buf[i] = '+';
		else
			buf[i] = letter[map_state(&r->map, c)];
	}
}
