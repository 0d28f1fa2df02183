/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of a profile, read and written.
 *
 * Place: `remora mount --profile` reads it, `remora record` writes it. A profile comes from another
 * run, perhaps another machine, perhaps another resource: it is checked here, once.
 *
 * Invariant: the ranges of what profile_parse() returns lie within the resource, are not empty, and
 * do not overlap.
 *
 * Locking: none; pure functions.
 */
#include "region/profile.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/rangeset.h"

#define HEAD "remora-profile "
#define SIZE_NOTE "# size="
#define ROOM_MIN 64u
#define LINE_LEN_MAX 42u /* two numbers of 20 digits */

static_assert((uint64_t)PROFILE_RANGES_MAX * LINE_LEN_MAX + 256 <= PROFILE_TEXT_MAX,
	      "what is written can be read");

void profile_done(struct profile *p)
{
	free(p->at);
	*p = (struct profile){ 0 };
}

static int profile_push(struct profile *p, struct range r, size_t max)
{
	struct range *last = p->count ? &p->at[p->count - 1] : NULL;

	if (last && range_end(*last) == r.off) {
		last->len += r.len;
	} else {
		if (p->count == max)
			return -E2BIG;
		if (p->count == p->room) {
			size_t room = MAX(p->room * 2, (size_t)ROOM_MIN);
			struct range *at = reallocarray(p->at, room, sizeof(*at));

			if (!at)
				return -ENOMEM;
			p->at = at;
			p->room = room;
		}
		p->at[p->count++] = r;
	}
	p->bytes += r.len;
	return 0;
}

int profile_add(struct profile *p, struct range r)
{
	CHECK(range_valid(r));
	return r.len ? profile_push(p, r, PROFILE_RANGES_MAX) : 0;
}

/* ---- reading ---- */

struct parse {
	struct profile p;
	struct rangeset seen;
	uint64_t size, lines, ranges;
	bool found;
	int err;
};

static const char *digits_parse(const char *at, const char *end, uint64_t *ret)
{
	const char *from = at;

	for (*ret = 0; at < end && *at >= '0' && *at <= '9'; at++)
		if (__builtin_mul_overflow(*ret, 10u, ret) ||
		    __builtin_add_overflow(*ret, (unsigned)(*at - '0'), ret))
			return NULL;
	return at == from ? NULL : at;
}

static const char *blanks_skip(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\t'))
		at++;
	return at;
}

static bool starts_with(const char *at, const char *end, const char *with)
{
	return (size_t)(end - at) >= strlen(with) && !memcmp(at, with, strlen(with));
}

static void part_found(void *arg, struct range part)
{
	struct parse *x = arg;

	x->found = true;
	/* Of n ranges at most 2 n parts are left: each part but one lies between two that become
	 * one by it. */
	if (!x->err)
		x->err = profile_push(&x->p, part, SIZE_MAX);
}

static int range_take(struct parse *x, uint64_t off, uint64_t len)
{
	int err;

	if (++x->ranges > PROFILE_RANGES_MAX)
		return -E2BIG;
	x->found = false;
	if (off < x->size) {
		err = rangeset_add(&x->seen, range_of(off, MIN(len, x->size - off)), part_found, x);
		if (err || x->err)
			return err ? err : x->err;
	}
	x->p.dropped += !x->found;
	return 0;
}

static int line_parse(struct parse *x, const char *at, const char *end)
{
	uint64_t off, len;

	at = blanks_skip(at, end);
	if (starts_with(at, end, SIZE_NOTE) && digits_parse(at + strlen(SIZE_NOTE), end, &len))
		x->p.size = len;
	if (at == end || *at == '#')
		return 0;
	at = digits_parse(at, end, &off);
	if (!at || at == end || (*at != ' ' && *at != '\t'))
		return -EINVAL;
	at = digits_parse(blanks_skip(at, end), end, &len);
	if (!at || blanks_skip(at, end) != end)
		return -EINVAL;
	return range_take(x, off, len);
}

static int head_parse(const char *at, const char *end, struct err *e)
{
	uint64_t version;

	if (!starts_with(at, end, HEAD))
		return err_set(e, -EINVAL, "this is no profile: it does not begin with \"" HEAD "1\"");
	at = digits_parse(at + strlen(HEAD), end, &version);
	if (!at || blanks_skip(at, end) != end)
		return err_set(e, -EINVAL, "this is no profile: its first line tells no version");
	if (version != 1)
		return err_set(e, -EPROTONOSUPPORT,
			       "the profile is of version %" PRIu64 ", this program knows 1: record it again",
			       version);
	return 0;
}

static int lines_parse(struct parse *x, const char *text, size_t len, struct err *e)
{
	const char *end = text + len;
	int err = 0;

	while (!err && text < end) {
		const char *next = memchr(text, '\n', (size_t)(end - text));
		const char *stop = next ? next : end;

		if (stop > text && stop[-1] == '\r')
			stop--;
		if (!x->lines++) {
			err = head_parse(text, stop, e);
			if (err)
				return err;
		} else {
			err = line_parse(x, text, stop);
		}
		text = next ? next + 1 : end;
	}
	if (err == -EINVAL)
		return err_set(e, err, "line %" PRIu64 " of the profile is no \"OFFSET LENGTH\"",
			       x->lines);
	if (err == -E2BIG)
		return err_set(e, err, "the profile has more than %u ranges", PROFILE_RANGES_MAX);
	return err ? err_sys(e, err, "no memory for the profile") : 0;
}

int profile_parse(struct profile *ret, const char *text, size_t len, uint64_t size, struct err *e)
{
	struct parse x = { .size = size };
	int err;

	*ret = (struct profile){ 0 };
	if (len > PROFILE_TEXT_MAX)
		return err_set(e, -E2BIG, "a profile is not longer than %llu MiB",
			       (unsigned long long)(PROFILE_TEXT_MAX / MIB));
	if (!len)
		return err_set(e, -EINVAL, "this is no profile: it is empty");
	err = rangeset_init(&x.seen, PROFILE_RANGES_MAX);
	if (err)
		return err_sys(e, err, "no memory for the profile");
	err = lines_parse(&x, text, len, e);
	rangeset_done(&x.seen);
	if (err)
		profile_done(&x.p);
	else
		*ret = x.p;
	return err;
}

/* ---- writing ---- */

int profile_format(const struct profile *p, char **ret_text, size_t *ret_len)
{
	size_t room = 256 + p->count * LINE_LEN_MAX, at;
	char *text = malloc(room);

	if (!text)
		return -ENOMEM;
	at = (size_t)snprintf(text, room, HEAD "1\n");
	if (p->size)
		at += (size_t)snprintf(text + at, room - at, SIZE_NOTE "%" PRIu64 "\n", p->size);
	for (size_t i = 0; i < p->count; i++)
		at += (size_t)snprintf(text + at, room - at, "%" PRIu64 " %" PRIu64 "\n",
				       p->at[i].off, p->at[i].len);
	CHECK(at < room);
	*ret_text = text;
	*ret_len = at;
	return 0;
}
