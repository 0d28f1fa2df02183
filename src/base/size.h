/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes and times as people write them. Sizes: 512, 64K, 1M, 2G, 1T, 1P (powers of 1024; also KiB,
 * MiB, kB is refused so that nobody has to guess). Times: 500us, 25ms, 60s, 5m, 1h; a bare number
 * is refused except 0.
 */
#ifndef REMORA_BASE_SIZE_H
#define REMORA_BASE_SIZE_H

#include <stdint.h>

#include "base/check.h"
#include "base/err.h"
#include "base/range.h"

/* All of `text` must be used. Fractions such as 1.5G are allowed where the result is a whole number
 * of bytes. */
MUST_USE int size_parse(const char *text, uint64_t *ret_bytes, struct err *e);
MUST_USE int time_parse(const char *text, uint64_t *ret_ns, struct err *e);

/* A rate: "100M" is bytes per second as any size is; "200Mbit", "10Gbit" are bits per second,
 * powers of 1000. */
MUST_USE int rate_parse(const char *text, uint64_t *ret_bytes_per_s, struct err *e);

/* A number without unit. */
MUST_USE int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *ret,
			  struct err *e);

/* A range of bytes, not empty: "OFF-END" (END is the first byte behind it), "OFF+LEN", or "LEN",
 * which begins at 0; all of them sizes. It does not wrap, but may reach behind any resource. */
MUST_USE int range_parse(const char *text, struct range *ret, struct err *e);

/* "1.5 GiB", "64 KiB", "17 B"; "25 ms", "1.2 s". buf has SIZE_TEXT_MAX bytes; returns buf. */
const char *size_format(uint64_t bytes, char *buf);
const char *time_format(uint64_t ns, char *buf);

#endif
