/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moves the bytes of a copy: a fixed number of slots, each with a buffer, each reading one unit and
 * writing it, all at the same time.
 *
 *             ┌─────────────── idle ◀────────────────────┐
 *   pump ─────┤ read ──▶ (zero runs) ──▶ write, ZERO ... ─┤──▶ bit in `done`
 *             └ a run of zero units ──▶ ZERO ─────────────┘
 *   every few seconds, with a state file: snapshot = done; FLUSH; safe = snapshot; state file
 *   at the end of a pass: FLUSH; another pass for what a restarted server may have lost
 *
 * Place: between two stores, on one loop; copy.c opens both and tells how it went.
 *
 * Invariants: memory is slots x unit. A bit is set in `done` when its write has completed, in
 * `safe` when a FLUSH that began afterwards has succeeded, answered by the same instance as the
 * write. `finished` is set when no request, timer or work is pending.
 *
 * Locking: none; loop thread. The work that saves the state reads `safe`, which nobody changes
 * meanwhile.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bitmap.h"
#include "cmd/copy.h"
#include "wire/remora.h"

#define SAVE_NS (2 * NS_PER_S)	   /* how much work an interruption may cost */
#define GIVE_UP_NS (10 * NS_PER_S) /* after copy_stop(): then writes are aborted as well */
#define ZERO_BLOCK (64 * KIB)	   /* zeros are looked for in such blocks */
#define ZERO_RUN_MAX (1 * GIB)	   /* one ZERO request */
#define PASSES_MAX 8u

struct copy_slot {
	struct copy *c;
	struct link link;
	struct req req;
	uint8_t *buf;
	struct range range; /* what it copies: one unit, or a run of zero units */
	uint64_t at;	    /* written up to here */
	uint64_t piece;	    /* being written */
	bool all_zero;
};

static void copy_pump(struct copy *c);
static void copy_flush(struct copy *c);
static void slot_step(struct copy_slot *s);

/* ---- ends and errors ---- */

static void error_keep(struct copy *c, const char *doing, const char *name, const char *where,
		       int err, const char *why)
{
	if (!c->error.code && !(c->stopping && err == -ESHUTDOWN))
		err_set(&c->error, err, "%s %s%s: %s", doing, name, where,
			why ? why : strerror(-err));
	copy_stop(c);
}

static void slot_fail(struct copy_slot *s, const char *doing, const char *name, uint64_t off,
		      int err)
{
	char where[40];

	snprintf(where, sizeof(where), " at byte %llu", (unsigned long long)off);
	error_keep(s->c, doing, name, where, err, s->req.ret_why);
}

void copy_stop(struct copy *c)
{
	if (c->stopping || c->finished)
		return;
	c->stopping = true;
	if (c->state_path && c->dirty && !c->flushing && !c->saving && !c->redo)
		copy_flush(c); /* at once: writes under way may hang */
	timer_set(c->run->loop, &c->give_up_timer, loop_now(c->run->loop) + GIVE_UP_NS);
	/* What was not read is not needed; what was read is still written. Last: it may end the
	 * copy. */
	store_abort(c->src);
}

static void copy_give_up(struct timer *timer)
{
	struct copy *c = CONTAINER_OF(timer, struct copy, give_up_timer);

	if (!c->error.code && !c->interrupted)
		err_set(&c->error, -ETIMEDOUT, "%s does not answer", c->dst_name);
	store_abort(c->dst);
}

static void copy_end(struct copy *c)
{
	timer_clear(c->run->loop, &c->save_timer);
	timer_clear(c->run->loop, &c->give_up_timer);
	c->finished = true;
}

/* ---- flush and state ---- */

static void instance_seen(struct copy *c, uint64_t instance)
{
	if (!instance || instance == c->instance)
		return;
	c->instance = instance;
	c->redo = true;
}

static int save_call(struct work *work)
{
	const struct copy *c = CONTAINER_OF(work, struct copy, save);

	return copy_state_save(c->state_path, &c->key, c->safe);
}

static void save_ended(struct op *op, int res)
{
	struct copy *c = CONTAINER_OF(op, struct copy, save.op);

	c->saving = false;
	c->kept = res == 0;
	if (res)
		log_warn(&c->run->env.log,
			 "%s cannot be written, so the copy cannot be resumed: %s", c->state_path,
			 strerror(-res));
	if (c->last_flush)
		copy_end(c);
	else
		copy_pump(c);
}

static void copy_save(struct copy *c)
{
	c->saving = true;
	c->save.call = save_call;
	c->save.op.done = save_ended;
	pool_run(c->run->loop, &c->save);
}

/* The next pass copies what is not in `safe`. */
static void copy_again(struct copy *c)
{
	if (++c->passes == PASSES_MAX) {
		err_set(&c->error, -EIO, "%s was started anew %u times during the copy",
			c->dst_name, PASSES_MAX);
		copy_end(c);
		return;
	}
	log_warn(&c->run->env.log, "%s was started anew: what it may have lost is copied again",
		 c->dst_name);
	memcpy(c->done, c->safe, BITMAP_WORDS(c->units) * sizeof(*c->done));
	c->bytes_done = MIN(bitmap_count(c->done, c->units) * c->unit, c->size);
	c->fresh = false;
	c->redo = c->last_flush = false;
	c->pos = 0;
	copy_pump(c);
}

static void flush_done(struct req *req, int err)
{
	struct copy *c = req->user;

	c->flushing = false;
	instance_seen(c, req->ret_instance);
	if (err == -EOPNOTSUPP && c->dst->info.flush == CAP_NONE)
		err = 0; /* nothing there could be made safer */
	if (err) {
		error_keep(c, "flushing", c->dst_name, "", err, req->ret_why);
	} else if (!c->redo) {
		memcpy(c->safe, c->snapshot, BITMAP_WORDS(c->units) * sizeof(*c->safe));
		if (c->state_path) {
			copy_save(c);
			return;
		}
	}
	if (!c->last_flush)
		copy_pump(c);
	else if (c->redo && !c->stopping)
		copy_again(c);
	else
		copy_end(c);
}

static void copy_flush(struct copy *c)
{
	CHECK(!c->flushing && !c->saving);
	memcpy(c->snapshot, c->done, BITMAP_WORDS(c->units) * sizeof(*c->done));
	c->dirty = false;
	c->flushing = true;
	c->flush = (struct req){ .op = REQ_FLUSH, .done = flush_done, .user = c };
	req_submit(c->dst, &c->flush);
}

static void copy_save_time(struct timer *timer)
{
	struct copy *c = CONTAINER_OF(timer, struct copy, save_timer);

	if (c->stopping)
		return;
	if (c->dirty && !c->flushing && !c->saving && !c->redo && !c->last_flush)
		copy_flush(c);
	timer_set(c->run->loop, timer, loop_now(c->run->loop) + SAVE_NS);
}

/* ---- slots ---- */

static void range_finish(struct copy *c, struct range range)
{
	size_t first = (size_t)(range.off / c->unit);

	bitmap_set_range(c->done, first, (size_t)((range.len + c->unit - 1) / c->unit));
	c->bytes_done += range.len;
	c->dirty = true;
}

static void slot_end(struct copy_slot *s)
{
	struct copy *c = s->c;

	list_push_front(&c->idle, &s->link); /* its buffer is in the processor's cache */
	c->active--;
	copy_pump(c);
}

static void slot_put_done(struct req *req, int err)
{
	struct copy_slot *s = req->user;
	struct copy *c = s->c;

	instance_seen(c, req->ret_instance);
	if (err) {
		slot_fail(s, "writing", c->dst_name, s->range.off + s->at, err);
		slot_end(s);
		return;
	}
	if (req->op == REQ_WRITE)
		c->bytes_data += s->piece;
	s->at += s->piece;
	slot_step(s);
}

static void slot_put(struct copy_slot *s, enum req_op op, uint64_t len)
{
	s->piece = len;
	s->req = (struct req){
		.op = op,
		.range = range_of(s->range.off + s->at, len),
		.done = slot_put_done,
		.user = s,
	};
	if (op == REQ_WRITE)
		s->req.data = (struct iobuf){ s->buf + s->at, len };
	req_submit(s->c->dst, &s->req);
}

/* From `at` on: how many bytes are all zeros, or are not? In whole blocks. */
static uint64_t slot_run(const struct copy_slot *s, bool *ret_zero)
{
	uint64_t at = s->at, len = MIN(ZERO_BLOCK, s->range.len - at);

	*ret_zero = wire_is_zero(s->buf + at, len);
	for (at += len; at < s->range.len; at += len) {
		len = MIN(ZERO_BLOCK, s->range.len - at);
		if (wire_is_zero(s->buf + at, len) != *ret_zero)
			break;
	}
	return at - s->at;
}

/* Writes the next piece, or ends. */
static void slot_step(struct copy_slot *s)
{
	struct copy *c = s->c;

	while (s->at < s->range.len) {
		bool zero = true;
		uint64_t len = s->all_zero ? s->range.len - s->at : slot_run(s, &zero);

		if (!zero || !c->fresh) {
			slot_put(s, zero ? REQ_ZERO : REQ_WRITE, len);
			return;
		}
		s->at += len; /* it is zeros there already */
	}
	range_finish(c, s->range);
	slot_end(s);
}

static void slot_read_done(struct req *req, int err)
{
	struct copy_slot *s = req->user;

	if (err) {
		slot_fail(s, "reading", s->c->src_name, s->range.off, err);
		slot_end(s);
		return;
	}
	s->all_zero = req->ret_zero;
	slot_step(s);
}

static void slot_start(struct copy *c, struct range range, bool zero)
{
	struct copy_slot *s = LIST_ENTRY(list_pop_front(&c->idle), struct copy_slot, link);

	c->active++;
	s->range = range;
	s->at = 0;
	s->all_zero = zero;
	if (zero) {
		slot_step(s);
		return;
	}
	s->req = (struct req){
		.op = REQ_READ,
		.range = range,
		.data = { s->buf, range.len },
		.done = slot_read_done,
		.user = s,
	};
	req_submit(c->src, &s->req);
}

/* ---- what to do next ---- */

enum next { NEXT_WAIT, NEXT_FOUND, NEXT_END };

static enum next copy_next(struct copy *c, struct range *ret, bool *ret_zero)
{
	uint64_t off, len, stop;

	c->pos = bitmap_next_clear(c->done, c->units, c->pos);
	if (c->pos >= c->units)
		return NEXT_END;
	off = c->pos * c->unit;
	if (!walk_at(&c->walk, off, &len, ret_zero)) {
		if (!c->guesses)
			return NEXT_WAIT;
		c->guesses--;
		*ret_zero = false;
		len = c->unit;
	}
	stop = off + len;
	if (*ret_zero && stop < c->size)
		stop = stop / c->unit * c->unit;
	if (*ret_zero && stop > off) {
		uint64_t limit = bitmap_next_set(c->done, c->units, c->pos) * c->unit;

		stop = MIN(MIN(stop, limit), MIN(c->size, off + MAX(ZERO_RUN_MAX, c->unit)));
	} else {
		*ret_zero = false;
		stop = MIN(off + c->unit, c->size);
	}
	c->pos = (size_t)((stop + c->unit - 1) / c->unit);
	*ret = range_between(off, stop);
	return NEXT_FOUND;
}

static void copy_pump(struct copy *c)
{
	enum next next = NEXT_WAIT;
	struct range range;
	bool zero;

	if (c->finished || c->last_flush)
		return;
	while (!c->stopping && !list_empty(&c->idle)) {
		next = copy_next(c, &range, &zero);
		if (next != NEXT_FOUND)
			break;
		if (zero && c->fresh)
			range_finish(c, range);
		else
			slot_start(c, range, zero);
	}
	/* The end of the pass, or an early end: nothing is on its way any more. */
	if ((next != NEXT_END && !c->stopping) || c->active || c->walk.pending || c->flushing ||
	    c->saving)
		return;
	c->last_flush = true;
	if (c->dirty || !c->stopping)
		copy_flush(c);
	else
		copy_end(c);
}

static void copy_walk_ready(struct walk *walk)
{
	copy_pump(walk->user);
}

/* ---- life ---- */

int copy_init(struct copy *c, struct err *e)
{
	size_t words = BITMAP_WORDS(c->units);

	list_init(&c->idle);
	c->walk.ready = copy_walk_ready;
	c->walk.user = c;
	c->save_timer.fire = copy_save_time;
	c->give_up_timer.fire = copy_give_up;
	c->instance = c->dst->info.instance;
	c->done = calloc(words + 1, sizeof(*c->done));
	c->snapshot = calloc(words + 1, sizeof(*c->snapshot));
	c->safe = calloc(words + 1, sizeof(*c->safe));
	c->slots = calloc(c->slot_count, sizeof(*c->slots));
	c->buffers = mmap(NULL, c->slot_count * c->unit, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (c->buffers == MAP_FAILED)
		c->buffers = NULL;
	if (!c->done || !c->snapshot || !c->safe || !c->slots || !c->buffers ||
	    walk_init(&c->walk, c->src)) {
		copy_done(c);
		return err_sys(e, -ENOMEM, "memory for %zu buffers", c->slot_count);
	}
	(void)madvise(c->buffers, c->slot_count * c->unit, MADV_HUGEPAGE);
	for (size_t i = c->slot_count; i--;) {
		c->slots[i].c = c;
		c->slots[i].buf = c->buffers + i * c->unit;
		list_push_front(&c->idle, &c->slots[i].link);
	}
	return 0;
}

void copy_start(struct copy *c)
{
	memcpy(c->safe, c->done, BITMAP_WORDS(c->units) * sizeof(*c->safe)); /* of a former run */
	if (c->state_path)
		timer_set(c->run->loop, &c->save_timer, loop_now(c->run->loop) + SAVE_NS);
	copy_pump(c);
}

void copy_done(struct copy *c)
{
	CHECK(!c->active && !c->flushing && !c->saving);
	walk_done(&c->walk);
	if (c->buffers)
		munmap(c->buffers, c->slot_count * c->unit);
	free(c->slots);
	free(c->done);
	free(c->snapshot);
	free(c->safe);
	c->buffers = NULL;
	c->slots = NULL;
	c->done = c->snapshot = c->safe = NULL;
}
