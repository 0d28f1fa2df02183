/* SPDX-License-Identifier: Apache-2.0 */
/* Histogram of durations: see hist.h. */
#include "base/hist.h"

static unsigned bucket_of(uint64_t ns)
{
	unsigned log;

	if (ns < 8)
		return (unsigned)ns;
	log = 63u - (unsigned)__builtin_clzll(ns);
	return (log - 2) * 8 + (unsigned)(ns >> (log - 3) & 7);
}

static uint64_t bucket_low(unsigned b)
{
	return b < 8 ? b : (8 + (uint64_t)b % 8) << (b / 8 - 1);
}

void hist_add(struct hist *h, uint64_t ns)
{
	if (!h->count || ns < h->min_ns)
		h->min_ns = ns;
	if (ns > h->max_ns)
		h->max_ns = ns;
	h->count++;
	h->sum_ns += ns;
	h->bucket[bucket_of(ns)]++;
}

uint64_t hist_percentile(const struct hist *h, double percent)
{
	uint64_t want = (uint64_t)((double)h->count * percent / 100.0), seen = 0;

	if (!h->count)
		return 0;
	for (unsigned b = 0; b < HIST_BUCKETS; b++) {
		seen += h->bucket[b];
		if (seen > want) {
			uint64_t low = bucket_low(b);

			return low < h->min_ns ? h->min_ns : low > h->max_ns ? h->max_ns : low;
		}
	}
	return h->max_ns;
}

void hist_merge(struct hist *to, const struct hist *from)
{
	if (!from->count)
		return;
	if (!to->count || from->min_ns < to->min_ns)
		to->min_ns = from->min_ns;
	if (from->max_ns > to->max_ns)
		to->max_ns = from->max_ns;
	to->count += from->count;
	to->sum_ns += from->sum_ns;
	for (unsigned b = 0; b < HIST_BUCKETS; b++)
		to->bucket[b] += from->bucket[b];
}
