/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compares two stores: each slot reads the same range of both. The first byte that differs is
 * named.
 *
 * Place: behind the copy, after its flush.
 *
 * Invariants: ranges start in order of their offsets, and all that started end, so the smallest
 * offset found is the first. Only what both stores tell to be zeros is not read.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cmd/copy.h"

struct verify_slot {
	struct verify *v;
	struct link link;
	struct range range;
	unsigned reading; /* sides that have not answered */
	struct {
		struct req req;
		uint8_t *buf;
	} side[2];
};

static void verify_pump(struct verify *v);

static void difference_keep(struct verify *v, const struct verify_slot *s)
{
	const uint8_t *a = s->side[0].buf, *b = s->side[1].buf;
	uint64_t i = 0;

	if (!memcmp(a, b, s->range.len))
		return;
	while (a[i] == b[i])
		i++;
	if (s->range.off + i < v->differs_at) {
		v->differs_at = s->range.off + i;
		v->differs[0] = a[i];
		v->differs[1] = b[i];
	}
	v->stopping = true; /* what comes behind does not matter */
}

static void slot_read_done(struct req *req, int err)
{
	struct verify_slot *s = req->user;
	struct verify *v = s->v;
	int side = req == &s->side[1].req;

	if (err && !v->error.code && !(v->stopping && err == -ESHUTDOWN))
		err_set(&v->error, err, "comparing: reading %s at byte %llu: %s", v->name[side],
			(unsigned long long)s->range.off,
			req->ret_why ? req->ret_why : strerror(-err));
	if (err) {
		s->range.len = 0;
		verify_stop(v);
	}
	if (--s->reading)
		return;
	if (s->range.len)
		difference_keep(v, s);
	v->bytes_done += s->range.len;
	list_push_front(&v->idle, &s->link);
	v->active--;
	verify_pump(v);
}

static void slot_start(struct verify *v, struct range range)
{
	struct verify_slot *s = LIST_ENTRY(list_pop_front(&v->idle), struct verify_slot, link);

	v->active++;
	s->range = range;
	s->reading = 2;
	for (int i = 0; i < 2; i++) {
		s->side[i].req = (struct req){
			.op = REQ_READ,
			.range = range,
			.data = { s->side[i].buf, range.len },
			.done = slot_read_done,
			.user = s,
		};
		req_submit(v->side[i], &s->side[i].req);
	}
}

/* Passes over what is zeros in both, then gives the next range; false: not known yet. */
static bool verify_next(struct verify *v, struct range *ret)
{
	while (v->pos < v->size) {
		uint64_t len[2];
		bool zero[2];

		if (!walk_at(&v->walk[0], v->pos, &len[0], &zero[0]) ||
		    !walk_at(&v->walk[1], v->pos, &len[1], &zero[1]))
			return false;
		if (!zero[0] || !zero[1])
			break;
		len[0] = MIN(MIN(len[0], len[1]), v->size - v->pos);
		v->bytes_done += len[0];
		v->pos += len[0];
	}
	/* Back onto the grid, so that both sides read whole chunks. */
	*ret = range_between(v->pos, MIN((v->pos / v->unit + 1) * v->unit, v->size));
	v->pos = range_end(*ret);
	return true;
}

static void verify_pump(struct verify *v)
{
	struct range range;

	while (!v->stopping && v->pos < v->size && !list_empty(&v->idle)) {
		if (!verify_next(v, &range))
			return;
		if (range.len)
			slot_start(v, range);
	}
	if ((v->stopping || v->pos >= v->size) && !v->active && !v->walk[0].pending &&
	    !v->walk[1].pending)
		v->finished = true;
}

static void verify_walk_ready(struct walk *walk)
{
	verify_pump(walk->user);
}

int verify_init(struct verify *v, struct err *e)
{
	size_t bytes = 2 * v->slot_count * v->unit;

	list_init(&v->idle);
	v->differs_at = UINT64_MAX;
	for (int i = 0; i < 2; i++) {
		v->walk[i].ready = verify_walk_ready;
		v->walk[i].user = v;
	}
	v->slots = calloc(v->slot_count, sizeof(*v->slots));
	v->buffers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (v->buffers == MAP_FAILED)
		v->buffers = NULL;
	if (!v->slots || !v->buffers || walk_init(&v->walk[0], v->side[0]) ||
	    walk_init(&v->walk[1], v->side[1])) {
		verify_done(v);
		return err_sys(e, -ENOMEM, "memory for the comparison");
	}
	for (size_t i = v->slot_count; i--;) {
		struct verify_slot *s = &v->slots[i];

		s->v = v;
		s->side[0].buf = v->buffers + 2 * i * v->unit;
		s->side[1].buf = s->side[0].buf + v->unit;
		list_push_front(&v->idle, &s->link);
	}
	return 0;
}

void verify_start(struct verify *v)
{
	verify_pump(v);
}

void verify_stop(struct verify *v)
{
	v->stopping = true;
	if (v->aborted)
		return;
	v->aborted = true; /* aborting may complete requests at once, and lead here again */
	store_abort(v->side[0]);
	store_abort(v->side[1]);
	verify_pump(v); /* when nothing was pending, nobody else ends it */
}

void verify_done(struct verify *v)
{
	CHECK(!v->active);
	walk_done(&v->walk[0]);
	walk_done(&v->walk[1]);
	if (v->buffers)
		munmap(v->buffers, 2 * v->slot_count * v->unit);
	free(v->slots);
	v->buffers = NULL;
	v->slots = NULL;
}
