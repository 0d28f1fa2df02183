/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers: a binary heap ordered by (time, order of setting), so that equal times fire in the order
 * in which they were set, in every run alike.
 *
 * Place: each loop has one; the simulated world has one more, for its own events.
 *
 * Invariant: slot[i].timer->heap_at == i + 1. Locking: whoever has the loop.
 */
#include "io/loop_int.h"

#include <stdlib.h>

static bool slot_before(const struct timer_slot *a, const struct timer_slot *b)
{
	return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

static void heap_put(struct timer_heap *h, size_t i, struct timer_slot slot)
{
	h->slot[i] = slot;
	slot.timer->heap_at = i + 1;
}

static void heap_up(struct timer_heap *h, size_t i, struct timer_slot slot)
{
	while (i && slot_before(&slot, &h->slot[(i - 1) / 2])) {
		heap_put(h, i, h->slot[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	heap_put(h, i, slot);
}

static void heap_down(struct timer_heap *h, size_t i, struct timer_slot slot)
{
	for (;;) {
		size_t child = 2 * i + 1;

		if (child + 1 < h->len && slot_before(&h->slot[child + 1], &h->slot[child]))
			child++;
		if (child >= h->len || !slot_before(&h->slot[child], &slot))
			break;
		heap_put(h, i, h->slot[child]);
		i = child;
	}
	heap_put(h, i, slot);
}

static void heap_place(struct timer_heap *h, size_t i, struct timer_slot slot)
{
	if (i && slot_before(&slot, &h->slot[(i - 1) / 2]))
		heap_up(h, i, slot);
	else
		heap_down(h, i, slot);
}

uint64_t heap_next(const struct timer_heap *h)
{
	return h->len ? h->slot[0].at_ns : NEVER_NS;
}

void heap_set(struct timer_heap *h, struct timer *timer, uint64_t at_ns)
{
	struct timer_slot slot = { .at_ns = at_ns, .seq = h->seq++, .timer = timer };

	CHECK(timer->fire);
	timer->at_ns = at_ns;
	if (timer->heap_at) {
		CHECK(timer->heap_at <= h->len && h->slot[timer->heap_at - 1].timer == timer);
		heap_place(h, timer->heap_at - 1, slot);
		return;
	}
	if (h->len == h->cap) {
		size_t cap = h->cap ? 2 * h->cap : 64;
		struct timer_slot *bigger = reallocarray(h->slot, cap, sizeof(*bigger));

		CHECK(bigger); /* 24 bytes per timer: nothing could go on without */
		h->slot = bigger;
		h->cap = cap;
	}
	heap_up(h, h->len++, slot);
}

void heap_clear(struct timer_heap *h, struct timer *timer)
{
	size_t i = timer->heap_at;
	struct timer_slot last;

	if (!i)
		return;
	CHECK(i <= h->len && h->slot[i - 1].timer == timer);
	timer->heap_at = 0;
	last = h->slot[--h->len];
	if (last.timer != timer)
		heap_place(h, i - 1, last);
}

struct timer *heap_take(struct timer_heap *h, uint64_t now_ns, uint64_t seq_end)
{
	struct timer *timer;

	if (!h->len || h->slot[0].at_ns > now_ns || h->slot[0].seq >= seq_end)
		return NULL;
	timer = h->slot[0].timer;
	heap_clear(h, timer);
	return timer;
}

void heap_done(struct timer_heap *h)
{
	free(h->slot);
	*h = (struct timer_heap){ 0 };
}
