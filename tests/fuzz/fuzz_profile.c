/* SPDX-License-Identifier: Apache-2.0 */
/* Profiles: any text is refused with an error text, or gives ranges within the resource that do not
 * overlap, and that come back when they are written and read again. */
#include "fuzz.h"

#include <errno.h>

#include "region/profile.h"

static int by_offset(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

static void same(const struct profile *p, uint64_t size)
{
	struct profile again;
	struct err e;
	char *text;
	size_t len;

	MUST(!profile_format(p, &text, &len));
	MUST(text[len] == '\0');
	MUST(!profile_parse(&again, text, len, size, &e));
	MUST(again.count == p->count && again.bytes == p->bytes && again.size == p->size);
	MUST(!p->count || !memcmp(again.at, p->at, p->count * sizeof(*p->at)));
	MUST(!again.dropped);
	free(text);
	profile_done(&again);
}

static void sound(struct profile *p, uint64_t size)
{
	uint64_t bytes = 0;

	if (p->count)
		qsort(p->at, p->count, sizeof(*p->at), by_offset);
	for (size_t i = 0; i < p->count; i++) {
		MUST(p->at[i].len && range_within(p->at[i], size));
		MUST(!i || range_end(p->at[i - 1]) <= p->at[i].off);
		bytes += p->at[i].len;
	}
	MUST(bytes == p->bytes && bytes <= size);
}

static void parsed(const uint8_t *data, size_t size, uint64_t resource)
{
	char *text = (char *)fuzz_copy(data, size);
	struct profile p;
	struct err e;
	int r = profile_parse(&p, text, size, resource, &e);

	if (r) {
		MUST(r == -EINVAL || r == -E2BIG || r == -EPROTONOSUPPORT);
		MUST(e.code == r && e.text[0] && memchr(e.text, 0, sizeof(e.text)));
		MUST(!p.count && !p.at);
	} else {
		same(&p, resource);
		sound(&p, resource);
		profile_done(&p);
	}
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	parsed(data, size, 1 * MIB);
	parsed(data, size, RESOURCE_SIZE_MAX);
	parsed(data, size, 0);
	return 0;
}
