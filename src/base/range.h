/* SPDX-License-Identifier: Apache-2.0 */
/* A range of bytes: 64-bit offset and length, and the only arithmetic on them, checked. */
#ifndef REMORA_BASE_RANGE_H
#define REMORA_BASE_RANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/check.h"

struct range {
	uint64_t off;
	uint64_t len;
};

/* True when off + len does not wrap. A range from outside is checked with range_within() before
 * anything else. */
static inline bool range_valid(struct range r)
{
	return r.off + r.len >= r.off;
}

static inline bool range_within(struct range r, uint64_t size)
{
	return r.off <= size && r.len <= size - r.off;
}

static inline uint64_t range_end(struct range r)
{
	CHECK(range_valid(r));
	return r.off + r.len;
}

static inline struct range range_of(uint64_t off, uint64_t len)
{
	return (struct range){ off, len };
}

static inline struct range range_between(uint64_t start, uint64_t end)
{
	CHECK(start <= end);
	return (struct range){ start, end - start };
}

static inline bool range_overlaps(struct range a, struct range b)
{
	return a.len && b.len && a.off < range_end(b) && b.off < range_end(a);
}

static inline bool range_contains(struct range a, struct range b)
{
	return b.off >= a.off && range_end(b) <= range_end(a);
}

/* What both have; length 0 (at a.off) when nothing. */
static inline struct range range_cut(struct range a, struct range b)
{
	uint64_t start = MAX(a.off, b.off), end = MIN(range_end(a), range_end(b));

	return start < end ? range_between(start, end) : range_of(a.off, 0);
}

static inline bool is_pow2(uint64_t v)
{
	return v && !(v & (v - 1));
}

static inline uint64_t align_down(uint64_t v, uint64_t pow2)
{
	return v & ~(pow2 - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t pow2)
{
	CHECK(v <= UINT64_MAX - (pow2 - 1));
	return (v + pow2 - 1) & ~(pow2 - 1);
}

/* The smallest aligned range that covers r. */
static inline struct range range_align_out(struct range r, uint64_t pow2)
{
	return range_between(align_down(r.off, pow2), align_up(range_end(r), pow2));
}

static inline unsigned log2_u64(uint64_t v)
{
	CHECK(v);
	return 63u - (unsigned)__builtin_clzll(v);
}

#endif
