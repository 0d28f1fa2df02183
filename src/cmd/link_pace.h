/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of the emulated link: when does which byte arrive? Pure: no I/O, no clock of its
 * own.
 *
 * A way (one direction of the link) is a transmitter with a bounded queue and a delay line behind
 * it, shared by all connections. What is received at `now` begins to be sent when the transmitter
 * is free, at `rate`, and each byte arrives `delay` (and a drawn part of `jitter`) after it was
 * sent. A line holds what one connection has under way: a row of segments, within which the bytes
 * become due one by one, so that no timer per packet is needed.
 */
#ifndef REMORA_CMD_LINK_PACE_H
#define REMORA_CMD_LINK_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "base/rng.h"

struct pace_way {
	uint64_t delay_ns, jitter_ns;
	uint64_t rate;	     /* bytes per second; 0 = no limit */
	uint64_t queue;	     /* bytes that may wait for the transmitter; 0 = chosen from the rate */
	uint64_t free_at_ns; /* when the transmitter has sent all that it was given */
	struct rng rng;	     /* for the jitter */
};

struct pace_segment {
	uint64_t base_ns; /* byte i (0 ...) is due at base_ns + (i + 1) / rate */
	uint64_t rate;
	uint64_t len, taken;
};

struct pace_line {
	struct pace_segment *at; /* a ring */
	size_t room, first, count;
	uint64_t bytes; /* under way: added, not taken */
};

void pace_line_done(struct pace_line *line);

/* Bytes that the queue takes now. 0 = ask again at pace_room_at(). */
uint64_t pace_room(const struct pace_way *way, uint64_t now_ns);
uint64_t pace_room_at(const struct pace_way *way);
uint64_t pace_queue(const struct pace_way *way); /* its length in bytes */

/* How much to receive at once, so that connections take turns. */
uint64_t pace_turn(const struct pace_way *way);

/* More than this under way in one line means that its reader is slow. */
uint64_t pace_line_max(const struct pace_way *way);

/*
 * len bytes have been received now. 0 or -ENOMEM. `waited`: they were there before, and only the
 * queue had no room; so if we come late (another process had the processor) the transmitter has not
 * been idle, and the rate holds.
 */
MUST_USE int pace_add(struct pace_way *way, struct pace_line *line, uint64_t now_ns, uint64_t len,
		      bool waited);

/* Bytes that are due now. */
uint64_t pace_due(const struct pace_line *line, uint64_t now_ns);
/* When so much more is due that it is worth the work; NEVER_NS when the line is empty. */
uint64_t pace_next(const struct pace_line *line, uint64_t now_ns);
/* When the last byte is due; 0 when the line is empty. */
uint64_t pace_end(const struct pace_line *line);
void pace_take(struct pace_line *line, uint64_t len);

/* The time between was none (a stall): everything under way is that much later. */
void pace_way_shift(struct pace_way *way, uint64_t ns);
void pace_line_shift(struct pace_line *line, uint64_t ns);

#endif
