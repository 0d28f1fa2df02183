/* SPDX-License-Identifier: Apache-2.0 */
/* Bitmaps: see bitmap.h. */
#include "base/bitmap.h"

void bitmap_set_range(uint64_t *w, size_t first, size_t count)
{
	for (size_t i = first; i < first + count;) {
		if (i % 64 == 0 && first + count - i >= 64) {
			w[i / 64] = ~0ULL;
			i += 64;
		} else {
			bitmap_set(w, i++);
		}
	}
}

void bitmap_clear_range(uint64_t *w, size_t first, size_t count)
{
	for (size_t i = first; i < first + count;) {
		if (i % 64 == 0 && first + count - i >= 64) {
			w[i / 64] = 0;
			i += 64;
		} else {
			bitmap_clear(w, i++);
		}
	}
}

size_t bitmap_count(const uint64_t *w, size_t bits)
{
	size_t n = 0;

	for (size_t i = 0; i < bits / 64; i++)
		n += (size_t)__builtin_popcountll(w[i]);
	if (bits % 64)
		n += (size_t)__builtin_popcountll(w[bits / 64] & ((1ULL << (bits % 64)) - 1));
	return n;
}

static size_t next_bit(const uint64_t *w, size_t bits, size_t from, uint64_t flip)
{
	while (from < bits) {
		uint64_t v = (w[from / 64] ^ flip) >> (from % 64);
		size_t at;

		if (!v) {
			from = (from / 64 + 1) * 64;
			continue;
		}
		at = from + (size_t)__builtin_ctzll(v);
		return at < bits ? at : bits;
	}
	return bits;
}

size_t bitmap_next_set(const uint64_t *w, size_t bits, size_t from)
{
	return next_bit(w, bits, from, 0);
}

size_t bitmap_next_clear(const uint64_t *w, size_t bits, size_t from)
{
	return next_bit(w, bits, from, ~0ULL);
}
