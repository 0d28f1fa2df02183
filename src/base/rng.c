/* SPDX-License-Identifier: Apache-2.0 */
/* Randomness: see rng.h. */
#include "base/rng.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

void rng_fill(struct rng *r, void *buf, size_t len)
{
	uint8_t *p = buf;

	while (len) {
		uint64_t v = rng_next(r);
		size_t n = len < sizeof(v) ? len : sizeof(v);

		memcpy(p, &v, n);
		p += n;
		len -= n;
	}
}

uint64_t rng_system(void)
{
	uint64_t v = 0;
	struct timespec ts;
	struct rng r;

	if (getrandom(&v, sizeof(v), GRND_NONBLOCK) == (ssize_t)sizeof(v) && v)
		return v;
	clock_gettime(CLOCK_REALTIME, &ts);
	rng_init(&r, (uint64_t)ts.tv_sec * 1000000007u ^ (uint64_t)ts.tv_nsec ^
			     (uint64_t)getpid() << 32);
	return rng_next(&r) | 1;
}
