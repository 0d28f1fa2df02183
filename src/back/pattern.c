/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pattern:SIZE - a read-only resource whose content is computed from the offset, of any size and
 * without storage: for measuring, and for tests that must know what they read.
 *
 *   unit=TEXT  the bytes of TEXT repeated from offset 0; "abc" when neither is given
 *   seed=N     8-byte blocks; block i is splitmix64's output for state
 *              N + (i + 1) * 0x9e3779b97f4a7c15 (base/rng.h: the same as the numbers of a generator
 *              seeded with N), little endian; incompressible
 *
 * Everything completes within submit(). Locking: none; loop thread only.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/back.h"
#include "base/rng.h"
#include "base/size.h"

struct pattern {
	struct store store;
	bool seeded;
	uint64_t seed;
	size_t unit_len;
	uint8_t unit[PATTERN_UNIT_MAX];
};

static void fill_unit(const struct pattern *p, uint64_t off, uint8_t *to, size_t len)
{
	size_t phase = off % p->unit_len, n = MIN(len, p->unit_len - phase), have;

	memcpy(to, p->unit + phase, n);
	if (n == len)
		return;
	have = MIN(len, n + p->unit_len);
	memcpy(to + n, p->unit, have - n);
	/* From here on the buffer repeats itself with a period that divides what is there behind
	 * the first n bytes. */
	while (have < len) {
		size_t period = (have - n) / p->unit_len * p->unit_len;
		size_t more = MIN(len - have, period);

		memcpy(to + have, to + have - period, more);
		have += more;
	}
}

static uint64_t block_of(uint64_t seed, uint64_t block)
{
	struct rng r;

	rng_init(&r, seed + block * 0x9e3779b97f4a7c15ULL);
	return htole64(rng_next(&r));
}

static void fill_seeded(const struct pattern *p, uint64_t off, uint8_t *to, size_t len)
{
	while (len) {
		uint64_t v = block_of(p->seed, off / 8);
		size_t from = off % 8, n = MIN(len, 8 - from);

		memcpy(to, (const uint8_t *)&v + from, n);
		to += n;
		off += n;
		len -= n;
	}
}

static void pattern_submit(struct store *store, struct req *req)
{
	const struct pattern *p = CONTAINER_OF(store, struct pattern, store);

	if (req->op == REQ_READ) {
		if (p->seeded)
			fill_seeded(p, req->range.off, req->data.base, req->range.len);
		else
			fill_unit(p, req->range.off, req->data.base, req->range.len);
	}
	req_done(req, 0);
}

static const struct store_ops pattern_ops = {
	.name = "pattern",
	.submit = pattern_submit,
};

/* Same content, same number. */
static uint64_t pattern_identity(const struct pattern *p)
{
	uint64_t h = p->seeded ? p->seed : 0;

	for (size_t i = 0; i < p->unit_len; i++)
		h = (h ^ p->unit[i]) * 0x100000001b3ULL; /* FNV-1a */
	return block_of(h + p->store.info.size, p->seeded) | 1;
}

static int pattern_options(struct pattern *p, struct spec_args *args)
{
	const char *unit = NULL;
	uint64_t seed = UINT64_MAX;
	int r;

	if ((r = spec_get_text(args, "unit", &unit)) || (r = spec_get_number(args, "seed", 0, UINT64_MAX - 1, &seed)) ||
	    (r = spec_options_end(args)))
		return r;
	p->seeded = seed != UINT64_MAX;
	p->seed = seed;
	if (p->seeded && unit)
		return spec_error(args->spec, args->part->at, args->e, "pattern: either unit= or seed=, not both");
	if (p->seeded)
		return 0;
	unit = unit ? unit : "abc";
	p->unit_len = strlen(unit);
	if (p->unit_len > PATTERN_UNIT_MAX)
		return spec_error(args->spec, args->part->at, args->e, "pattern: a unit has at most %u bytes",
				  PATTERN_UNIT_MAX);
	memcpy(p->unit, unit, p->unit_len);
	return 0;
}

int back_pattern_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		      struct store *next)
{
	const struct spec_part *part = args->part;
	struct pattern *p;
	struct err why;
	uint64_t size;
	int r;

	CHECK(!next);
	if (!*part->rest)
		return spec_error(args->spec, part->rest_at, args->e, "pattern: needs a size: pattern:1G");
	if (size_parse(part->rest, &size, &why))
		return spec_error(args->spec, part->rest_at, args->e, "pattern: %s", why.text);
	if (size > RESOURCE_SIZE_MAX)
		return spec_error(args->spec, part->rest_at, args->e, "pattern: larger than any resource can be");
	p = calloc(1, sizeof(*p));
	if (!p)
		return err_sys(args->e, -ENOMEM, "pattern");
	r = pattern_options(p, args);
	if (r) {
		free(p);
		return r;
	}
	p->store.info = (struct store_info){
		.size = size,
		.align = 1,
		.read_only = true,
		.prefetch = CAP_NATIVE,
	};
	p->store.info.identity = pattern_identity(p);
	store_init(&p->store, &pattern_ops, how->loop, NULL);
	*ret = &p->store;
	return 0;
}
