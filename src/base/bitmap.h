/* SPDX-License-Identifier: Apache-2.0 */
/* Bitmaps over words that the caller owns. Bit i of word i / 64. */
#ifndef REMORA_BASE_BITMAP_H
#define REMORA_BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BITMAP_WORDS(bits) (((bits) + 63) / 64)

static inline bool bitmap_get(const uint64_t *w, size_t i)
{
	return w[i / 64] >> (i % 64) & 1;
}

static inline void bitmap_set(uint64_t *w, size_t i)
{
	w[i / 64] |= 1ULL << (i % 64);
}

static inline void bitmap_clear(uint64_t *w, size_t i)
{
	w[i / 64] &= ~(1ULL << (i % 64));
}

void bitmap_set_range(uint64_t *w, size_t first, size_t count);
void bitmap_clear_range(uint64_t *w, size_t first, size_t count);
size_t bitmap_count(const uint64_t *w, size_t bits);

/* The first set (clear) bit at or after `from`; `bits` when there is none. */
size_t bitmap_next_set(const uint64_t *w, size_t bits, size_t from);
size_t bitmap_next_clear(const uint64_t *w, size_t bits, size_t from);

#endif
