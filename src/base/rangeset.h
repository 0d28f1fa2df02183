/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A set of bytes, kept as ranges that neither overlap nor touch, in the order of their offsets: a
 * skip list in a pool that grows up to a bound. Adding, and asking, takes the logarithm of what is
 * in it. No locking.
 */
#ifndef REMORA_BASE_RANGESET_H
#define REMORA_BASE_RANGESET_H

#include <stddef.h>

#include "base/range.h"

#define RANGESET_LEVELS 8

struct rangeset_node {
	uint64_t off, end;
	uint32_t next[RANGESET_LEVELS]; /* indices; 0 = none */
};

struct rangeset {
	struct rangeset_node *node; /* [0]: the head */
	uint32_t count, max;	    /* ranges */
	uint32_t room, fresh, free;
	uint64_t chance;
};

/* max: ranges at a time. */
MUST_USE int rangeset_init(struct rangeset *s, uint32_t max);
void rangeset_done(struct rangeset *s);

/* found() (may be NULL) gets each part of r that was not in the set, in the order of offsets; it
 * must leave the set alone. -ENOSPC: r would be one range more than max; -ENOMEM; then nothing has
 * changed. */
MUST_USE int rangeset_add(struct rangeset *s, struct range r,
			  void (*found)(void *arg, struct range part), void *arg);

/* Whether all of r is in the set. */
bool rangeset_has(const struct rangeset *s, struct range r);

/* The first range that ends behind `off`; length 0: none. */
struct range rangeset_next(const struct rangeset *s, uint64_t off);

#endif
