/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seeded randomness for simulation, jitter and tests: splitmix64 (Steele, Lea, Flood 2014). The
 * same seed gives the same numbers everywhere. Not for secrets.
 */
#ifndef REMORA_BASE_RNG_H
#define REMORA_BASE_RNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rng {
	uint64_t state;
};

static inline void rng_init(struct rng *r, uint64_t seed)
{
	r->state = seed;
}

static inline uint64_t rng_next(struct rng *r)
{
	uint64_t z = (r->state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

/* 0 .. bound-1; bound 0 gives 0. The bias is below 2^-32 for bounds below 2^32. */
static inline uint64_t rng_below(struct rng *r, uint64_t bound)
{
	return bound ? (uint64_t)(((unsigned __int128)rng_next(r) * bound) >> 64) : 0;
}

/* True with a chance of per_million in a million. */
static inline bool rng_chance(struct rng *r, uint32_t per_million)
{
	return rng_below(r, 1000000) < per_million;
}

void rng_fill(struct rng *r, void *buf, size_t len);

/* A number that no other process has, from the system: instance ids, seeds. */
uint64_t rng_system(void);

#endif
