/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory and patience: what may be kept, what has to go, how long somebody waits.
 *
 * Place: whoever is about to make a chunk take memory asks policy_room() first; whoever saw the far
 * store fail asks policy_retry().
 *
 * Memory is chunks that are not absent, plus transfer buffers, plus the map (rule 8). Where the
 * budget is used up, a clock hand goes round: a chunk that was used since the hand came by last
 * (REF) gets a second chance and is shut, so that its next use is seen; one that was not is
 * dropped. Before that, what a sequential reader has left behind goes. If nothing is clean,
 * everything dirty is pushed and flushed at once (`pressure`) and the asker waits: that is the
 * back-pressure on writers.
 *
 * Invariant: a chunk without REF is shut, so when it is clean, too, nobody can have written to it
 * since it was looked at. policy_drop() does shutting, looking and the change of the map under one
 * hold of the lock, hence never loses a write.
 *
 * Locking: takes the region's lock for each chunk.
 */
#include <errno.h>

#include "base/bitmap.h"
#include "region/region_int.h"

#define BACKOFF_MIN_NS (10 * NS_PER_MS)
#define BACKOFF_MAX_NS NS_PER_S
#define TRIES_MAX 5u /* of what does not look like a lost connection */

/* ---- memory ---- */

uint64_t policy_used(const struct region *r)
{
	return r->map.held * r->chunk + r->fixed_bytes + map_memory(&r->map) +
	       r->near->extra_bytes;
}

uint64_t policy_least(const struct region *r)
{
	return r->fixed_bytes + 8 * MAP_GROUP_MEMORY + (uint64_t)REGION_CHUNKS_MIN * r->chunk +
	       r->near->extra_least;
}

/* With a second look at the chunk under the lock. */
bool policy_drop(struct region *r, uint64_t c)
{
	struct range pages = map_page_range(&r->map, c, 1);
	bool dropped = false;

	if (!map_droppable(&r->map, c))
		return false;
	region_lock(r);
	if (r->near->mapped && map_byte(&r->map, c) & CHUNK_REF) {
		if (r->near->ops->shut(r->near, pages))
			goto out;
		map_flag(&r->map, c, 0, CHUNK_REF);
		if (r->collects && dirty_collect_chunk(r, c)) {
			map_flag(&r->map, c, CHUNK_REF, 0); /* not known to be unwritten */
			goto out;
		}
	}
	if (map_droppable(&r->map, c)) {
		map_drop(&r->map, c);
		dropped = true;
	}
out:
	region_unlock(r);
	if (!dropped) {
		push_written(r);
		return false;
	}
	/* A fault that comes now waits for a pull, and that is begun by this thread. */
	if (r->near->ops->drop(r->near, pages))
		region_error(r, -EIO, "memory of the near store could not be given back");
	r->evicted_bytes += pages.len;
	return true;
}

int policy_near_bad(struct region *r, uint64_t c)
{
	region_error(r, -EBADMSG, "what was kept of a chunk is damaged: it is pulled again");
	if (!policy_drop(r, c))
		return -EIO;
	pull_background_again(r, c);
	return 0;
}

/* The clock hand at a chunk that was used. */
static void chunk_second_chance(struct region *r, uint64_t c)
{
	bool failed = false;

	region_lock(r);
	if (r->near->mapped)
		failed = r->near->ops->shut(r->near, map_page_range(&r->map, c, 1)) != 0;
	if (!failed) {
		map_flag(&r->map, c, 0, CHUNK_REF);
		if (r->collects && dirty_collect_chunk(r, c))
			map_flag(&r->map, c, CHUNK_REF, 0);
	}
	region_unlock(r);
	if (r->collects && map_dirty(&r->map, c))
		push_written(r);
}

/* What may be used at most for `bytes` more to fit. */
static uint64_t room_limit(const struct region *r, uint64_t bytes)
{
	/* what comes may touch two more groups of the map */
	uint64_t need = bytes + 2 * MAP_GROUP_MEMORY;

	return r->opt.budget_bytes > need ? r->opt.budget_bytes - need : 0;
}

static bool evict(struct region *r, uint64_t limit)
{
	uint64_t steps = 2 * r->map.held + 2, c;

	while (policy_used(r) > limit && r->map.droppable && (c = ahead_behind(r)) != NO_CHUNK)
		(void)policy_drop(r, c);
	while (policy_used(r) > limit) {
		if (!r->map.droppable || !steps--)
			return false;
		c = map_next(&r->map, r->hand, MAP_HELD);
		if (c == r->map.chunks) {
			r->hand = 0;
			continue;
		}
		r->hand = c + 1;
		if (!map_droppable(&r->map, c))
			continue;
		if (map_byte(&r->map, c) & CHUNK_REF)
			chunk_second_chance(r, c);
		else
			(void)policy_drop(r, c);
	}
	return true;
}

/* full: what is being pulled waits for room itself, and will not become something to drop. */
static int room_make(struct region *r, uint64_t limit, enum room_for who, bool full)
{
	bool pulling = r->map.pulling;

	if (evict(r, limit))
		return 0;
	if (r->map.droppable || (pulling && !full) || who == ROOM_AHEAD)
		return -EAGAIN;
	if (r->near->ops->tidy && r->near->ops->tidy(r->near))
		return -EAGAIN;
	if (!r->pushes || !r->map.unsafe)
		/* everything here is written, and stays; or nothing is here */
		return pulling ? -EAGAIN : -ENOSPC;
	if (!r->pressure) {
		r->pressure = true;
		region_kick(r);
	}
	return -EAGAIN;
}

int policy_room(struct region *r, uint64_t bytes, enum room_for who)
{
	uint64_t limit = room_limit(r, bytes);

	if (!r->opt.budget_bytes || policy_used(r) <= limit)
		return 0;
	if (who == ROOM_BACKGROUND)
		return -EAGAIN;
	return room_make(r, limit, who, false);
}

/* What it holds now is what it can hold. It stays that way, should there be more room again: who
 * fills the disk beside us would only have to be found out anew. Where a budget must be more than
 * that, something goes all the same. */
int policy_near_full(struct region *r, uint64_t bytes)
{
	uint64_t least = policy_least(r), used = policy_used(r), full = MAX(used, least);
	uint64_t held = r->map.held;
	int err;

	if (!r->opt.budget_bytes || r->opt.budget_bytes > full)
		r->opt.budget_bytes = full;
	err = room_make(r, MIN(room_limit(r, bytes), used - MIN(used, bytes)), ROOM_DEMAND,
			true);
	return r->map.held < held ? 0 : err;
}

/* ---- patience ---- */

uint64_t policy_backoff(struct region *r, unsigned tries)
{
	uint64_t ns = BACKOFF_MIN_NS << MIN(tries ? tries - 1 : 0, 7u);

	return loop_now(r->loop) + MIN(ns, BACKOFF_MAX_NS);
}

static bool err_is_loss(int err)
{
	switch (-err) {
	case ENOTCONN:
	case ECONNRESET:
	case ECONNREFUSED:
	case ECONNABORTED:
	case EPIPE:
	case ETIMEDOUT:
	case EHOSTUNREACH:
	case EHOSTDOWN:
	case ENETUNREACH:
	case ENETDOWN:
	case ENOLINK:
	case ESTALE:
	case EAGAIN:
		return true;
	default:
		return false;
	}
}

uint64_t policy_retry(struct region *r, int err, unsigned tries, uint64_t since_ns)
{
	if (r->aborting || r->opt.on_loss == REGION_LOSS_ERROR ||
	    policy_expired(r, since_ns, loop_now(r->loop)))
		return 0;
	if (!r->far_lost && !err_is_loss(err) && tries > TRIES_MAX)
		return 0;
	return policy_backoff(r, tries);
}

uint64_t policy_expiry(const struct region *r, uint64_t since_ns)
{
	return r->opt.deadline_ns >= NEVER_NS - since_ns ? NEVER_NS : since_ns + r->opt.deadline_ns;
}
