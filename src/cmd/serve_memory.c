/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What connections had goes back to the system when they have ended.
 *
 * Left to itself, the C library's allocator keeps what was freed between things that live: behind
 * an attack with as many connections as are let in, that is tens of megabytes, for good.
 *
 * Place: called by serve.c around the server's life.
 *
 * Invariants: nothing is done while few connections have come since the last time.
 *
 * Locking: none; loop thread.
 */
#include <malloc.h>

#include "cmd/serve.h"

#define LOOK_NS (5 * NS_PER_S)
#define ENDED_MIN 32u
#define MMAP_MIN (8 * 1024)

static void memory_look(struct timer *timer)
{
	struct serve *s = CONTAINER_OF(timer, struct serve, memory_timer);
	struct server_counts n;
	uint64_t ended;

	server_count(s->server, &n);
	ended = n.accepted + n.refused + n.dropped;
	if (ended - s->memory_seen >= ENDED_MIN) {
		s->memory_seen = ended;
		(void)malloc_trim(0);
	}
	timer_set(s->run.loop, timer, loop_now(s->run.loop) + LOOK_NS);
}

void serve_memory_open(struct serve *s)
{
	/* Buffers are mappings of their own, which go at once. */
	(void)mallopt(M_MMAP_THRESHOLD, MMAP_MIN);
	s->memory_timer.fire = memory_look;
	timer_set(s->run.loop, &s->memory_timer, loop_now_fresh(s->run.loop) + LOOK_NS);
}

void serve_memory_close(struct serve *s)
{
	timer_clear(s->run.loop, &s->memory_timer);
}
