/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transfers: a fixed set of slots, each a request to the far store with a buffer, and the window of
 * bytes that may be under way.
 *
 * Place: pull.c and push.c take slots and give them back; nothing else is allocated between a fault
 * and its end.
 *
 * Large slots hold one transfer of bulk, small ones a few pages, so that scattered dirty pages do
 * not each occupy a large buffer. Some large slots are kept for faults, and some for pushes while
 * none is under way, so that neither a busy reader nor a busy writer can keep the other from ever
 * moving.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "region/region_int.h"

#define TRIP_FRESH_NS (30 * NS_PER_S) /* the shortest trip is looked for again after that */
#define RATE_PERIOD_NS NS_PER_S

/* ---- the window ---- */

static uint64_t window_min(const struct flow *f)
{
	return MIN((uint64_t)FLOW_WINDOW_MIN, f->window_max);
}

uint64_t flow_window(const struct flow *f)
{
	double want = 2.0 * MAX(f->rate, f->rate_before) * (double)f->trip_ns;

	if (f->probe_ns || want < (double)window_min(f))
		return window_min(f);
	return want > (double)f->window_max ? f->window_max : (uint64_t)want;
}

void flow_sent(struct flow *f, struct flow_mark *mark, size_t len, uint64_t now)
{
	if (!f->inflight)
		f->delivered_ns = now; /* idle time is nobody's rate */
	if (!f->probe_ns && f->trip_ns && now - f->trip_at_ns > TRIP_FRESH_NS)
		f->probe_ns = now;
	f->inflight += len;
	*mark = (struct flow_mark){
		.start_ns = now, .delivered = f->delivered, .delivered_ns = f->delivered_ns,
			.len = len
	};
}

static void trip_seen(struct flow *f, const struct flow_mark *mark, uint64_t now)
{
	uint64_t trip = MAX(now - mark->start_ns, (uint64_t)1);
	bool probed = f->probe_ns && mark->start_ns >= f->probe_ns;

	if (!f->trip_ns || trip <= f->trip_ns || probed) {
		f->trip_ns = trip;
		f->trip_at_ns = now;
	}
	if (probed)
		f->probe_ns = 0;
}

void flow_done(struct flow *f, const struct flow_mark *mark, bool ok, uint64_t now)
{
	double rate;

	CHECK(f->inflight >= mark->len);
	f->inflight -= mark->len;
	if (!ok)
		return;
	trip_seen(f, mark, now);
	f->delivered += mark->len;
	f->delivered_ns = now;
	rate = (double)(f->delivered - mark->delivered) / (double)MAX(now - mark->delivered_ns,
								      (uint64_t)1);
	if (now - f->rate_at_ns > MAX(RATE_PERIOD_NS, 8 * f->trip_ns)) {
		f->rate_before = f->rate;
		f->rate = 0;
		f->rate_at_ns = now;
	}
	f->rate = MAX(f->rate, rate);
}

/* ---- slots ---- */

static void slot_init(struct region *r, struct slot *slot, uint8_t *buf, size_t room)
{
	slot->region = r;
	slot->buf = buf;
	slot->room = room;
	list_init(&slot->faults);
}

int slots_init(struct region *r, struct slots *s, uint32_t large, size_t large_len, uint32_t small)
{
	uint8_t *at;

	s->large = s->large_idle = large;
	s->small = s->small_idle = small;
	s->large_len = large_len;
	s->keep_fault = MAX(large / 8, 1u);
	s->keep_push = MAX(large / 8, 1u);
	list_init(&s->idle_large);
	list_init(&s->idle_small);
	s->all = calloc(large + small, sizeof(*s->all));
	if (!s->all)
		return -ENOMEM;
	s->memory_len = large * large_len + small * REGION_SMALL;
	at = mmap(NULL, s->memory_len, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		  0);
	if (at == MAP_FAILED) {
		free(TAKE_PTR(s->all));
		return -ENOMEM;
	}
	s->memory = at;
	for (uint32_t i = 0; i < large + small; i++) {
		size_t room = i < large ? large_len : REGION_SMALL;

		slot_init(r, &s->all[i], at, room);
		s->all[i].large = i < large;
		list_push_back(i < large ? &s->idle_large : &s->idle_small, &s->all[i].link);
		at += room;
	}
	return 0;
}

void slots_done(struct slots *s)
{
	CHECK(!s->all || (s->large_idle == s->large && s->small_idle == s->small));
	if (s->memory)
		munmap(s->memory, s->memory_len);
	free(s->all);
	*s = (struct slots){ 0 };
}

static uint32_t slots_kept(const struct slots *s, enum slot_use use)
{
	uint32_t keep = use == USE_FAULT ? 0 : s->keep_fault;

	if (use != USE_PUSH && (!s->pushing || use == USE_BULK))
		keep += s->keep_push;
	return keep;
}

bool slot_available(const struct slots *s, size_t len, enum slot_use use)
{
	return (len <= REGION_SMALL && s->small_idle) || s->large_idle > slots_kept(s, use);
}

struct slot *slot_get(struct slots *s, size_t len, enum slot_use use)
{
	struct slot *slot;

	if (!slot_available(s, len, use))
		return NULL;
	if (len <= REGION_SMALL && s->small_idle) {
		slot = LIST_ENTRY(list_pop_front(&s->idle_small), struct slot, link);
		s->small_idle--;
	} else {
		slot = LIST_ENTRY(list_pop_front(&s->idle_large), struct slot, link);
		s->large_idle--;
	}
	if (use == USE_PUSH)
		s->pushing++;
	slot->stale = slot->unknown = false;
	slot->fault_page = slot->mark = NO_CHUNK;
	slot->tries = 0;
	return slot;
}

void slot_put(struct slots *s, struct slot *slot, enum slot_use use)
{
	bool small = !slot->large;

	CHECK(list_empty(&slot->faults));
	if (use == USE_PUSH)
		s->pushing--;
	list_push_front(small ? &s->idle_small : &s->idle_large, &slot->link);
	*(small ? &s->small_idle : &s->large_idle) += 1;
}
