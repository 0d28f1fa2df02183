/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Installing apart: a thread of the pool copies pages into place while the loop receives the next
 * ones, since copying costs more than receiving.
 *
 *   apart_start: claim ──▶ queue ──▶ thread: fill ──▶ ended ──▶ slot_ended ──▶ pull_settle
 *        └── does not fit, or the queue is full:                       └──▶ pull_stuck
 *            the loop installs it itself
 *
 * Not where somebody waits, as waking the thread may take longer than the copy; not where pages of
 * ours or a mark are among them. The thread looks for more for a moment before it ends, because
 * waking it again takes as long as a copy or two.
 *
 * Invariants: a slot here has chunks that are all PULLING, and nobody but the thread touches its
 * buffer and its near pages; they are open, and may be written by the program, before the map says
 * so: therefore a write by request waits (request.c), and so does a look for writes that must miss
 * none (push.c). `running` is true from pool_run() until the thread has decided to end; one that
 * has decided so, and has not ended yet, is started again by its end.
 *
 * Locking: apart.lock for the queue; `slots` and `count` are the loop thread's.
 */
#include "region/region_int.h"

#define LOOKS 1000u /* for more; tens of microseconds */

static bool fits(const struct region *r, const struct slot *slot)
{
	const struct map *m = &r->map;
	uint64_t end = slot->first + slot->count;

	if (!r->opt.install_apart || !r->near->ops->fill || r->apart.count == REGION_APART_MAX ||
	    slot->req.ret_zero || slot->req.range.len < REGION_APART_MIN ||
	    slot->why == PULL_FAULT || (slot->mark >= slot->first && slot->mark < end))
		return false;
	for (uint64_t c = slot->first; c < end; c++)
		if (map_state(m, c) != CHUNK_PULLING || map_byte(m, c) & CHUNK_FAULTED)
			return false;
	return true;
}

static struct range slot_pages(const struct region *r, const struct slot *slot)
{
	return map_page_range(&r->map, slot->first, slot->count);
}

/* ---- the thread ---- */

static struct slot *queue_take(struct apart *a)
{
	struct slot *slot = a->queue[0];

	a->queued--;
	for (unsigned i = 0; i < a->queued; i++)
		a->queue[i] = a->queue[i + 1];
	atomic_store_explicit(&a->hint, a->queued, memory_order_relaxed);
	return slot;
}

static void slot_fill(struct region *r, struct slot *slot)
{
	struct range pages = slot_pages(r, slot);
	struct apart *a = &r->apart;
	bool post;

	slot->fill_err = r->near->ops->fill(r->near, pages.off, slot->buf, (size_t)pages.len,
					    &slot->filled);
	pthread_mutex_lock(&a->lock);
	a->ended[a->ended_count++] = slot;
	post = !a->posted;
	a->posted = true;
	pthread_mutex_unlock(&a->lock);
	if (post)
		loop_post(r->loop, &a->post);
}

static bool more_comes(struct apart *a)
{
	for (unsigned i = 0; i < LOOKS; i++) {
		if (atomic_load_explicit(&a->hint, memory_order_relaxed))
			return true;
		CPU_RELAX();
	}
	return false;
}

static int apart_call(struct work *work)
{
	struct region *r = CONTAINER_OF(work, struct region, apart.work);
	struct apart *a = &r->apart;

	for (bool ending = false;;) {
		struct slot *slot = NULL;

		pthread_mutex_lock(&a->lock);
		if (a->queued)
			slot = queue_take(a);
		else if (ending)
			a->running = false;
		pthread_mutex_unlock(&a->lock);
		if (slot)
			slot_fill(r, slot);
		else if (ending)
			return 0;
		ending = !slot && !more_comes(a);
	}
}

/* ---- the loop ---- */

static void thread_start(struct region *r)
{
	struct apart *a = &r->apart;
	bool start;

	pthread_mutex_lock(&a->lock);
	start = a->queued && !a->running && !op_pending(&a->work.op);
	if (start)
		a->running = true;
	pthread_mutex_unlock(&a->lock);
	if (start)
		pool_run(r->loop, &a->work);
}

/* The thread has ended; or it could not be had, and the loop does its work. */
static void thread_ended(struct op *op, int err)
{
	struct region *r = CONTAINER_OF(op, struct region, apart.work.op);

	if (err < 0)
		(void)apart_call(&r->apart.work);
	thread_start(r);
	region_kick(r);
}

static void slot_ended(struct region *r, struct slot *slot)
{
	struct range pages = slot_pages(r, slot);
	int err = slot->fill_err;

	r->apart.count--;
	if (err)
		r->near->ops->unclaim(r->near,
				      range_between(pages.off + slot->filled, range_end(pages)));
	if (r->aborting)
		pull_failed(r, slot, 0);
	else if (err)
		pull_stuck(r, slot, err);
	else
		pull_settle(r, slot);
}

static void apart_ended(struct post *post)
{
	struct region *r = CONTAINER_OF(post, struct region, apart.post);
	struct apart *a = &r->apart;
	struct slot *ended[REGION_APART_MAX];
	unsigned count;

	pthread_mutex_lock(&a->lock);
	count = a->ended_count;
	for (unsigned i = 0; i < count; i++)
		ended[i] = a->ended[i];
	a->ended_count = 0;
	a->posted = false;
	pthread_mutex_unlock(&a->lock);
	for (unsigned i = 0; i < count; i++)
		slot_ended(r, ended[i]);
	region_kick(r);
}

bool apart_start(struct region *r, struct slot *slot)
{
	struct apart *a = &r->apart;

	if (!fits(r, slot))
		return false;
	link_remove(&slot->link);
	list_push_back(&a->slots, &slot->link);
	a->count++;
	slot->mark = NO_CHUNK;
	slot->filled = 0;
	r->near->ops->claim(r->near, slot_pages(r, slot));
	pthread_mutex_lock(&a->lock);
	CHECK(a->queued < REGION_APART_MAX);
	a->queue[a->queued++] = slot;
	atomic_store_explicit(&a->hint, a->queued, memory_order_relaxed);
	pthread_mutex_unlock(&a->lock);
	thread_start(r);
	return true;
}

bool apart_has(const struct region *r, uint64_t c)
{
	const struct list *slots = &r->apart.slots;

	for (const struct link *k = slots->head.next; k != &slots->head; k = k->next) {
		const struct slot *slot = LIST_ENTRY(k, const struct slot, link);

		if (c >= slot->first && c - slot->first < slot->count)
			return true;
	}
	return false;
}

bool apart_busy(const struct region *r)
{
	return r->apart.count || op_pending(&r->apart.work.op);
}

void apart_init(struct region *r)
{
	struct apart *a = &r->apart;

	list_init(&a->slots);
	pthread_mutex_init(&a->lock, NULL);
	a->work.call = apart_call;
	a->work.op.done = thread_ended;
	a->post.run = apart_ended;
}

void apart_free(struct region *r)
{
	pthread_mutex_destroy(&r->apart.lock);
}
