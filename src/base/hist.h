/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A histogram of durations: 8 buckets per power of two, so that a percentile is right within 9 %.
 * Fixed size, no allocation, one writer.
 */
#ifndef REMORA_BASE_HIST_H
#define REMORA_BASE_HIST_H

#include <stdint.h>

#define HIST_BUCKETS (64 * 8)

struct hist {
	uint64_t count;
	uint64_t sum_ns, min_ns, max_ns;
	uint32_t bucket[HIST_BUCKETS];
};

void hist_add(struct hist *h, uint64_t ns);

/* The value below which `percent` (0-100) of the values lie; 0 when empty. */
uint64_t hist_percentile(const struct hist *h, double percent);
void hist_merge(struct hist *to, const struct hist *from);

#endif
