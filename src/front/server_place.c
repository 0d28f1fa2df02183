/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replies that do not go through the socket: over a unix socket the server shares a piece of memory
 * with the client, reads the data of a READ into it, and replies with the place.
 *
 *   splaces_get ── the store reads into it ── splaces_add ── reply ── the client copies ── RELEASE
 *        └── no room, or nothing shared: a buffer of the connection, and the data is sent
 *
 * The memory is the server's: the client maps it for reading. So a reply that comes late, or twice,
 * can never land in memory that the client uses for something else by now.
 *
 * Invariants: a place is in use from splaces_get() until its RELEASE, its error, or the end of the
 * connection. Nothing waits for a RELEASE: without room everything goes the ordinary way.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>

#include "front/server_int.h"

int splaces_open(struct sconn *c)
{
	int fd;

	if (!c->wants_shared || !stream_passes_fds(&c->stream) ||
	    smem_open_shared(&c->shm, SERVER_SHARED_LEN, &fd)) {
		c->shm = (struct smem){ 0 };
		return -1;
	}
	return fd;
}

void splaces_close(struct sconn *c)
{
	if (!c->shm.base)
		return;
	while (c->places)
		CHECK(!splaces_release(c, c->place[0]));
	smem_close(&c->shm);
}

void *splaces_get(struct sconn *c, uint64_t bytes)
{
	if (!c->shm.base || bytes < SERVER_PLACE_MIN || c->places == SERVER_PLACES_MAX)
		return NULL;
	return smem_get(&c->shm, bytes);
}

bool splaces_add(struct sconn *c, const void *mem, uint64_t bytes, uint64_t *ret_off)
{
	if (c->places == SERVER_PLACES_MAX)
		return false;
	*ret_off = (uint64_t)((const uint8_t *)mem - c->shm.base);
	c->place[c->places++] = range_of(*ret_off, bytes);
	return true;
}

int splaces_release(struct sconn *c, struct range place)
{
	for (unsigned i = 0; i < c->places; i++) {
		if (c->place[i].off != place.off || c->place[i].len != place.len)
			continue;
		c->place[i] = c->place[--c->places];
		smem_put(&c->shm, c->shm.base + place.off, place.len);
		return 0;
	}
	return -EPROTO;
}
