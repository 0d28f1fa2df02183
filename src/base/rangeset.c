/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A set of ranges: a skip list whose nodes live in one growing array and name each other by index.
 *
 * Place: below whoever has to know which bytes were seen already (profiles).
 *
 * Invariant: from one node to the next at level 0 there is at least a byte that is not in the set;
 * a node at a level is at all levels below it.
 *
 * Locking: none.
 */
#include "base/rangeset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_MIN 64u

int rangeset_init(struct rangeset *s, uint32_t max)
{
	CHECK(max && max < UINT32_MAX / 4);
	*s = (struct rangeset){ .max = max, .room = MIN(max + 1, ROOM_MIN), .fresh = 1,
				.chance = 0x9e3779b97f4a7c15ULL };
	s->node = calloc(s->room, sizeof(*s->node));
	return s->node ? 0 : -ENOMEM;
}

void rangeset_done(struct rangeset *s)
{
	free(s->node);
	*s = (struct rangeset){ 0 };
}

static int node_room(struct rangeset *s)
{
	uint32_t room = MIN(s->room * 2, s->max + 1);
	struct rangeset_node *node;

	if (s->free || s->fresh < s->room)
		return 0;
	if (s->room > s->max)
		return -ENOSPC;
	node = realloc(s->node, room * sizeof(*node));
	if (!node)
		return -ENOMEM;
	s->node = node;
	s->room = room;
	return 0;
}

static uint32_t node_take(struct rangeset *s)
{
	uint32_t n = s->free;

	if (n)
		s->free = s->node[n].next[0];
	else
		n = s->fresh++;
	CHECK(n && n < s->room);
	s->count++;
	s->node[n] = (struct rangeset_node){ 0 };
	return n;
}

/* The last node of each level that ends before `off`; those behind it touch, or come later. */
static void path_find(const struct rangeset *s, uint64_t off, uint32_t path[RANGESET_LEVELS])
{
	uint32_t at = 0, next;

	for (int l = RANGESET_LEVELS - 1; l >= 0; l--) {
		while ((next = s->node[at].next[l]) && s->node[next].end < off)
			at = next;
		path[l] = at;
	}
}

static void node_unlink(struct rangeset *s, const uint32_t path[RANGESET_LEVELS], uint32_t n)
{
	for (int l = 0; l < RANGESET_LEVELS; l++)
		if (s->node[path[l]].next[l] == n)
			s->node[path[l]].next[l] = s->node[n].next[l];
	s->node[n].next[0] = s->free;
	s->free = n;
	s->count--;
}

/* A node is at one more level with a chance of a quarter. The chance need not be good, only
 * independent of the offsets. */
static void node_link(struct rangeset *s, const uint32_t path[RANGESET_LEVELS], uint32_t n)
{
	uint64_t bits;

	s->chance ^= s->chance << 13;
	s->chance ^= s->chance >> 7;
	s->chance ^= s->chance << 17;
	bits = s->chance;
	for (int l = 0; l < RANGESET_LEVELS; l++, bits >>= 2) {
		s->node[n].next[l] = s->node[path[l]].next[l];
		s->node[path[l]].next[l] = n;
		if (bits & 3)
			break;
	}
}

int rangeset_add(struct rangeset *s, struct range r, void (*found)(void *arg, struct range part),
		 void *arg)
{
	uint64_t at = r.off, last = range_end(r), off = r.off, end = last;
	uint32_t path[RANGESET_LEVELS], n;

	if (!r.len)
		return 0;
	path_find(s, r.off, path);
	n = s->node[path[0]].next[0];
	if (!n || s->node[n].off > last) {
		int err = node_room(s);

		if (err)
			return err;
	}
	while ((n = s->node[path[0]].next[0]) && s->node[n].off <= last) {
		struct rangeset_node node = s->node[n];

		if (found && node.off > at)
			found(arg, range_between(at, node.off));
		at = MAX(at, node.end);
		off = MIN(off, node.off);
		end = MAX(end, node.end);
		node_unlink(s, path, n);
	}
	if (found && at < last)
		found(arg, range_between(at, last));
	n = node_take(s);
	s->node[n].off = off;
	s->node[n].end = end;
	node_link(s, path, n);
	return 0;
}

struct range rangeset_next(const struct rangeset *s, uint64_t off)
{
	uint32_t path[RANGESET_LEVELS], n;

	if (off == UINT64_MAX)
		return range_of(off, 0);
	path_find(s, off + 1, path);
	n = s->node[path[0]].next[0];
	return n ? range_between(s->node[n].off, s->node[n].end) : range_of(off, 0);
}

bool rangeset_has(const struct rangeset *s, struct range r)
{
	struct range have = rangeset_next(s, r.off);

	return !r.len || (have.len && range_contains(have, r));
}
