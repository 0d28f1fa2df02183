/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress of a copy: a line on the terminal that is written over, or lines of JSON on stderr.
 *
 * Place: looks at a counter five times a second; nothing calls it. The line itself is meter.c's.
 *
 * Invariant: the line is gone when anything else is printed (progress_stop).
 *
 * Locking: none; loop thread.
 */
#include <string.h>

#include "cmd/copy.h"

#define SHOW_NS (NS_PER_S / 5)

static void progress_show(struct timer *timer)
{
	struct progress *p = CONTAINER_OF(timer, struct progress, timer);
	uint64_t now = loop_now(p->loop);

	meter_step(&p->meter, now, *p->done);
	if (p->kind == PROGRESS_JSON)
		meter_json(&p->meter, now);
	else
		meter_show(&p->meter);
	timer_set(p->loop, timer, now + SHOW_NS);
}

void progress_start(struct progress *p, struct loop *loop, unsigned kind, const char *phase,
		    const uint64_t *done, uint64_t size)
{
	memset(p, 0, sizeof(*p));
	p->loop = loop;
	p->kind = (enum progress_kind)kind;
	if (p->kind == PROGRESS_AUTO && !out_is_terminal(stderr))
		p->kind = PROGRESS_NONE;
	p->done = done;
	meter_start(&p->meter, phase, loop_now_fresh(loop), *done, size);
	p->timer.fire = progress_show;
	if (p->kind != PROGRESS_NONE)
		timer_set(loop, &p->timer, p->meter.start_ns + SHOW_NS);
}

void progress_stop(struct progress *p)
{
	if (!p->loop)
		return;
	timer_clear(p->loop, &p->timer);
	if (p->kind == PROGRESS_JSON) {
		uint64_t now = loop_now_fresh(p->loop);

		meter_step(&p->meter, now, *p->done);
		meter_json(&p->meter, now);
	}
	meter_clear(&p->meter);
	p->loop = NULL;
}
