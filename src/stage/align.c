/* SPDX-License-Identifier: Apache-2.0 */
/*
 * align: takes requests of any offset and length and makes of them what the next store accepts:
 * aligned to a block, no longer than its longest. Above this stage everything is allowed; below it
 * nothing is left to be checked.
 *
 * A request becomes a job, the job is cut into pieces from its first byte to its last, the pieces
 * are requests to the next store, several in flight at once. Kinds of pieces:
 *
 *   direct   aligned READ, WRITE, ZERO, TRIM: the job's own buffer goes through
 *   pass     FLUSH, EXTENTS, PREFETCH: as they are; they have no alignment
 *   bounce   READ, unaligned: the blocks around it are read into the piece's buffer, the part asked
 *            for is copied out. Also several small READs or WRITEs, aligned and adjacent,
 *            that were waiting: one piece serves them all
 *   rmw      WRITE or ZERO of a part of one block: the block is read, changed, written. Others
 *            that want a part of the same block join it as long as its write has not begun: one
 *            cycle serves them all
 *
 *            TRIM is cut down to whole blocks. At the end of the resource the last block is as long
 *            as what is left.
 *
 * Pieces that change data are in `changes`, oldest first. An rmw writes back bytes that it was not
 * asked to touch, as they were when it read them; nothing else may change them meanwhile. So
 *
 *   two of `changes` stand against each other when they overlap and one of them is an rmw: the
 *   later waits.
 *
 *   made ── none stands against it ─▶ sent ─▶ (rmw: read, then written) ─▶ done: out of
 *     └── `blockers` do ─▶ waits ── the last of them done ──┘   `changes`, those behind are told
 *
 * Two plain writes to one place are the order stage's matter, not ours. READs wait for nothing:
 * bytes that no request in flight changes are the same before and after an rmw.
 *
 * Invariants: a piece has 1..ALIGN_PARTS_MAX parts, each of one job; a job's `pending` is the
 * number of parts that it has in pieces; a job with `more` is in `hungry`. When `hungry` is not
 * empty, no piece is free. Completions come last: nothing of this stage is touched between the
 * done() of a parent and the return to the loop but what pump() finds.
 *
 * Locking: none, everything runs on the loop's thread.
 */
#include "stage/stage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "store/sub.h"

#define INSTANCE_MIXED UINT64_MAX /* as in store.c: nobody's id */

struct job {
	struct link link; /* in idle_jobs or hungry */
	struct req *parent;
	uint64_t at, end; /* what no piece has been made for yet */
	bool more;
	unsigned pending;
	int err;
	bool zero, seen; /* seen: a part is done, instance is its */
	uint64_t instance;
	char why[96];
};

struct part {
	struct job *job;
	struct range range; /* of the resource */
};

enum piece_kind { PIECE_DIRECT, PIECE_PASS, PIECE_BOUNCE, PIECE_RMW };

/* The extra of a sub. sub->link joins it to `changes`. */
struct piece {
	struct sub *sub;
	enum piece_kind kind;
	struct range range; /* at the next store */
	bool writing;	    /* PIECE_RMW: its parts are in the buffer */
	unsigned blockers;
	uint8_t *bounce;
	unsigned parts;
	struct part part[ALIGN_PARTS_MAX];
};

struct align {
	struct store store;
	struct sub_pool pool;
	uint32_t block, len_max;
	size_t bounce_len;
	uint8_t *bounces;
	struct list changes;
	struct list hungry;
	struct list waiting; /* requests without a job, by link */
	struct list idle_jobs;
	struct job job[ALIGN_JOBS_MAX];
	char why[96];
	uint64_t rmw, bounced, joined; /* for status */
	bool pumping;
};

static void pump(struct align *a);
static void piece_done(struct req *req, int err);

static struct align *align_of(struct store *store)
{
	return CONTAINER_OF(store, struct align, store);
}

static struct piece *piece_of(struct link *k)
{
	return LIST_ENTRY(k, struct sub, link)->extra;
}

static struct job *job_of(struct link *k)
{
	return LIST_ENTRY(k, struct job, link);
}

/* The blocks around r, cut at the end of the resource. */
static struct range blocks_around(const struct align *a, struct range r)
{
	struct range wide = range_align_out(r, a->block);

	return range_between(wide.off, MIN(range_end(wide), a->store.info.size));
}

static bool is_aligned(const struct align *a, struct range r)
{
	struct range wide = blocks_around(a, r);

	return wide.off == r.off && wide.len == r.len;
}

/* ---- jobs ---- */

/* Gives the job back and completes its parent. */
static void job_end(struct align *a, struct job *job)
{
	struct req *parent = job->parent;
	int err = job->err;

	CHECK(!job->pending && !job->more);
	parent->ret_instance = job->instance;
	parent->ret_zero = parent->op == REQ_READ && !err && job->zero;
	if (err && job->why[0]) {
		memcpy(a->why, job->why, sizeof(a->why));
		parent->ret_why = a->why;
	}
	job->parent = NULL;
	list_push_back(&a->idle_jobs, &job->link);
	req_done(parent, err);
}

static void job_fail(struct job *job, int err, const char *why)
{
	if (!job->err) {
		job->err = err;
		if (why)
			snprintf(job->why, sizeof(job->why), "%s", why);
	}
	if (job->more) {
		job->more = false;
		link_remove(&job->link);
	}
}

/* One part of the job is done. True when it was the last one: job_end() is due. */
static bool job_part_done(struct job *job, const struct req *req, int err)
{
	CHECK(job->pending);
	job->pending--;
	if (err)
		job_fail(job, err, req->ret_why);
	job->zero &= req->ret_zero;
	/* Parts that went to two instances: no flush of one of them covers both. */
	if (!job->seen || job->instance == req->ret_instance)
		job->instance = req->ret_instance;
	else
		job->instance = INSTANCE_MIXED;
	job->seen = true;
	return !job->pending && !job->more;
}

static void job_begin(struct align *a, struct req *parent)
{
	struct job *job = job_of(list_pop_front(&a->idle_jobs));
	uint64_t end = parent->op == REQ_FLUSH ? 0 : range_end(parent->range);
	struct link *at = a->hungry.head.next;

	*job = (struct job){ .parent = parent, .end = end, .more = true, .zero = true };
	if (parent->op != REQ_FLUSH)
		job->at = parent->range.off;
	if (parent->op == REQ_TRIM) {
		job->at = align_up(job->at, a->block);
		if (end != a->store.info.size)
			job->end = align_down(end, a->block);
		if (job->at >= job->end) {
			job->more = false;
			job_end(a, job);
			return;
		}
	}
	if (!(parent->flags & REQ_URGENT))
		at = &a->hungry.head;
	while (at != &a->hungry.head && job_of(at)->parent->flags & REQ_URGENT)
		at = at->next;
	link_insert_before(at, &job->link);
}

/* ---- the order of changes ---- */

static bool in_the_way(const struct piece *a, const struct piece *b)
{
	return (a->kind == PIECE_RMW || b->kind == PIECE_RMW) && range_overlaps(a->range, b->range);
}

static void piece_send(struct align *a, struct piece *p)
{
	struct req *req = &p->sub->req;

	req->range = p->range;
	if (p->kind == PIECE_RMW) {
		req->op = p->writing ? REQ_WRITE : REQ_READ;
		req->flags &= ~(uint32_t)REQ_FUA;
		for (unsigned i = 0; i < p->parts; i++) {
			uint32_t flags = p->part[i].job->parent->flags;

			req->flags |= flags & (REQ_URGENT | (p->writing ? REQ_FUA : 0));
			if (!(flags & REQ_BACKGROUND))
				req->flags &= ~(uint32_t)REQ_BACKGROUND;
		}
	}
	if (p->kind == PIECE_RMW || p->kind == PIECE_BOUNCE) {
		CHECK(p->range.len <= a->bounce_len);
		req->data = (struct iobuf){ p->bounce, (size_t)p->range.len };
	}
	sub_send(p->sub, piece_done);
}

/* Sends a new piece as soon as nothing is in its way. */
static void piece_start(struct align *a, struct piece *p)
{
	if (!req_op_changes(p->sub->req.op)) {
		piece_send(a, p);
		return;
	}
	LIST_EACH(k, &a->changes)
		p->blockers += in_the_way(piece_of(k), p);
	list_push_back(&a->changes, &p->sub->link);
	if (!p->blockers)
		piece_send(a, p);
}

/* Takes a change out of the list; those behind it that it alone held up are sent. */
static void changes_leave(struct align *a, struct piece *p)
{
	struct link *k = p->sub->link.next;

	CHECK(!p->blockers);
	link_remove(&p->sub->link);
	for (; k != &a->changes.head; k = k->next) {
		struct piece *behind = piece_of(k);

		if (!in_the_way(p, behind))
			continue;
		CHECK(behind->blockers);
		if (!--behind->blockers)
			piece_send(a, behind);
	}
}

/* ---- buffers of pieces ---- */

static uint8_t *part_data(const struct part *part)
{
	const struct req *parent = part->job->parent;

	return parent->data.base + (part->range.off - parent->range.off);
}

/* Buffer to parts (READ), or parts to buffer (WRITE, and zeros for ZERO). */
static void bounce_copy(const struct piece *p, bool out)
{
	for (unsigned i = 0; i < p->parts; i++) {
		const struct part *part = &p->part[i];
		uint8_t *bounce = p->bounce + (part->range.off - p->range.off);
		size_t len = (size_t)part->range.len;

		CHECK(range_contains(p->range, part->range));
		if (out)
			memcpy(part_data(part), bounce, len);
		else if (part->job->parent->op == REQ_ZERO)
			memset(bounce, 0, len);
		else
			memcpy(bounce, part_data(part), len);
	}
}

/* The next store has answered a piece, or (waiting_pieces_fail) never got it. */
static void piece_done(struct req *req, int err)
{
	struct sub *sub = req->user;
	struct align *a = align_of(sub->pool->stage);
	struct piece *p = sub->extra;
	struct job *ended[ALIGN_PARTS_MAX];
	unsigned n = 0;

	if (p->kind == PIECE_RMW && !p->writing && !err) {
		if (!a->store.aborting) {
			p->writing = true;
			bounce_copy(p, false);
			piece_send(a, p);
			return;
		}
		err = -ESHUTDOWN;
	}
	if (link_linked(&sub->link))
		changes_leave(a, p);
	if (!err && p->kind == PIECE_BOUNCE && req->op == REQ_READ)
		bounce_copy(p, true);
	for (unsigned i = 0; i < p->parts; i++)
		if (job_part_done(p->part[i].job, req, err))
			ended[n++] = p->part[i].job;
	sub_put(sub);
	for (unsigned i = 0; i < n; i++)
		job_end(a, ended[i]);
	pump(a);
}

/* ---- cutting ---- */

static void part_add(struct piece *p, struct job *job, struct range r)
{
	CHECK(p->parts < ALIGN_PARTS_MAX);
	p->part[p->parts++] = (struct part){ .job = job, .range = r };
	job->pending++;
	job->at = range_end(r);
	if (job->at == job->end) {
		job->more = false;
		link_remove(&job->link);
	}
}

struct cut {
	enum piece_kind kind;
	struct range part;  /* of the job */
	struct range range; /* at the next store */
};

/* The next piece of a job, from job->at on. */
static struct cut cut_next(const struct align *a, const struct job *job)
{
	const struct req *parent = job->parent;
	struct range rest = range_between(job->at, job->end), wide, block;
	uint64_t len;

	if (parent->op == REQ_FLUSH || parent->op == REQ_EXTENTS || parent->op == REQ_PREFETCH)
		return (struct cut){ PIECE_PASS, rest, rest };
	if (parent->op == REQ_TRIM)
		return (struct cut){ PIECE_DIRECT, rest, rest };
	wide = blocks_around(a, rest);
	block = blocks_around(a, range_of(rest.off, 1));
	if (parent->op == REQ_READ && !is_aligned(a, rest) &&
	    wide.len <= MIN(a->bounce_len, a->len_max))
		return (struct cut){ PIECE_BOUNCE, rest, wide };
	if (rest.off != block.off || range_end(rest) < range_end(block)) {
		enum piece_kind kind = parent->op == REQ_READ ? PIECE_BOUNCE : PIECE_RMW;

		return (struct cut){ kind, range_cut(rest, block), block };
	}
	/* Whole blocks: up to the last one that is whole. */
	len = range_end(rest) == a->store.info.size ? rest.len : align_down(rest.len, a->block);
	if (parent->op != REQ_ZERO)
		len = MIN(len, a->len_max);
	return (struct cut){ PIECE_DIRECT, range_of(rest.off, len), range_of(rest.off, len) };
}

/* Joins an rmw of the same block whose write has not begun. */
static bool rmw_join(struct align *a, struct job *job, const struct cut *cut)
{
	LIST_EACH(k, &a->changes) {
		struct piece *p = piece_of(k);

		if (p->kind != PIECE_RMW || p->range.off != cut->range.off || p->writing ||
		    p->parts == ALIGN_PARTS_MAX)
			continue;
		part_add(p, job, cut->part);
		a->joined++;
		return true;
	}
	return false;
}

/* May the next job in the queue share the piece? Then its part is returned. */
static struct job *neighbour_find(struct align *a, const struct piece *p, const struct req *first)
{
	struct link *k = list_first(&a->hungry);
	struct job *job = k ? job_of(k) : NULL;
	const struct req *req = job ? job->parent : NULL;

	if (!req || p->parts == ALIGN_PARTS_MAX || req->op != first->op ||
	    req->flags != first->flags)
		return NULL;
	if (job->at != req->range.off || job->at != range_end(p->range) ||
	    !is_aligned(a, req->range))
		return NULL;
	return p->range.len + req->range.len <= MIN(a->bounce_len, a->len_max) ? job : NULL;
}

/* Small aligned READs or WRITEs that wait one behind the other become one piece. */
static void neighbours_join(struct align *a, struct piece *p, const struct req *first)
{
	struct job *job;

	if (p->kind != PIECE_DIRECT || (first->op != REQ_READ && first->op != REQ_WRITE) ||
	    p->range.len != first->range.len)
		return;
	while ((job = neighbour_find(a, p, first))) {
		uint64_t end = job->end;

		part_add(p, job, job->parent->range);
		p->range = range_between(p->range.off, end);
		p->kind = PIECE_BOUNCE;
		a->joined++;
	}
	if (p->kind == PIECE_BOUNCE && first->op == REQ_WRITE)
		bounce_copy(p, false);
}

static void piece_make(struct align *a, struct job *job, const struct cut *cut)
{
	struct sub *sub = sub_get(&a->pool, job->parent);
	struct piece *p = sub->extra;
	const struct req *parent = job->parent;

	p->sub = sub;
	p->kind = cut->kind;
	p->range = cut->range;
	p->writing = false;
	p->blockers = p->parts = 0;
	p->bounce = a->bounces + (size_t)(sub - a->pool.all) * a->bounce_len;
	part_add(p, job, cut->part);
	if (cut->kind == PIECE_DIRECT && (parent->op == REQ_READ || parent->op == REQ_WRITE))
		sub->req.data = (struct iobuf){ part_data(&p->part[0]), (size_t)cut->range.len };
	neighbours_join(a, p, parent);
	a->rmw += p->kind == PIECE_RMW;
	a->bounced += p->kind == PIECE_BOUNCE;
	piece_start(a, p);
}

/* Makes pieces as long as there are jobs that want them and pieces that are free. */
static void pump(struct align *a)
{
	struct link *k;

	if (a->pumping)
		return;
	a->pumping = true;
	for (;;) {
		struct job *job;
		struct cut cut;

		while (!list_empty(&a->idle_jobs) && (k = list_pop_front(&a->waiting)))
			job_begin(a, LIST_ENTRY(k, struct req, link));
		k = list_first(&a->hungry);
		if (!k)
			break;
		job = job_of(k);
		cut = cut_next(a, job);
		if (cut.kind == PIECE_RMW && rmw_join(a, job, &cut))
			continue;
		if (!a->pool.idle_count)
			break;
		piece_make(a, job, &cut);
	}
	a->pumping = false;
}

/* ---- the store ---- */

static void align_submit(struct store *store, struct req *req)
{
	struct align *a = align_of(store);

	req_queue(&a->waiting, req);
	pump(a);
}

/* Our own queues hold what waits; nobody ever waits in the pool's. */
static void align_pool_start(struct store *store, struct req *parent)
{
	(void)store;
	(void)parent;
	CHECK(false);
}

/* A piece that waits for another one ends here, without having been sent. */
static void waiting_pieces_fail(struct align *a)
{
	struct list failed;
	struct link *k;

	list_init(&failed);
	LIST_EACH(c, &a->changes) {
		if (!piece_of(c)->blockers)
			continue;
		link_remove(c);
		list_push_back(&failed, c);
	}
	while ((k = list_pop_front(&failed))) {
		struct piece *p = piece_of(k);

		p->blockers = 0;
		p->sub->req.ret_why = NULL;
		/* Its place in `changes` is gone, and those that waited behind it are in `failed`
		 * themselves. */
		piece_done(&p->sub->req, -ESHUTDOWN);
	}
}

static void align_abort(struct store *store)
{
	struct align *a = align_of(store);
	struct list failed;
	struct link *k;

	list_init(&failed);
	list_splice_back(&failed, &a->waiting);
	while ((k = list_pop_front(&failed)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
	while ((k = list_first(&a->hungry))) {
		struct job *job = job_of(k);

		job_fail(job, -ESHUTDOWN, NULL);
		if (!job->pending)
			job_end(a, job);
	}
	waiting_pieces_fail(a);
}

static void align_free(struct align *a)
{
	sub_pool_done(&a->pool);
	free(a->bounces);
}

static void align_close(struct store *store)
{
	struct align *a = align_of(store);

	CHECK(list_empty(&a->changes) && list_empty(&a->hungry) && list_empty(&a->waiting));
	align_free(a);
	store_closed(store);
}

static void align_status(struct store *store, char *buf, size_t len)
{
	struct align *a = align_of(store);

	snprintf(buf, len, "block=%u rmw=%llu bounced=%llu joined=%llu", a->block, (unsigned long long)a->rmw,
		 (unsigned long long)a->bounced, (unsigned long long)a->joined);
}

static const struct store_ops align_ops = {
	.name = "align",
	.submit = align_submit,
	.abort = align_abort,
	.close = align_close,
	.status = align_status,
};

static int align_options(struct align *a, struct spec_args *args, const struct store_info *next)
{
	uint64_t block = next->align, len = next->len_max;
	int r;

	if ((r = spec_get_size(args, "block", &block)) || (r = spec_get_size(args, "len", &len)) ||
	    (r = spec_options_end(args)))
		return r;
	if (!is_pow2(block) || block < next->align || block > ALIGN_BLOCK_MAX ||
	    block > next->len_max)
		return spec_error(args->spec, args->part->at, args->e,
				  "block must be a power of two from %u to %llu", next->align,
				  (unsigned long long)MIN(ALIGN_BLOCK_MAX,
							  (uint64_t)next->len_max));
	if (len < block || len > next->len_max)
		return spec_error(args->spec, args->part->at, args->e, "len must be from %llu to %u",
				  (unsigned long long)block, next->len_max);
	a->block = (uint32_t)block;
	a->len_max = (uint32_t)align_down(len, block);
	return 0;
}

int stage_align_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct align *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return err_sys(args->e, -ENOMEM, "the align stage");
	r = align_options(a, args, &next->info);
	if (r)
		goto out;
	a->bounce_len = MAX((size_t)a->block, (size_t)ALIGN_BOUNCE_MIN);
	/* Aligned for files that are read around the page cache; pages that are never used cost
	 * nothing. */
	a->bounces = aligned_alloc(PAGE_BYTES, ALIGN_PIECES_MAX * a->bounce_len);
	if (!a->bounces ||
	    sub_pool_init(&a->pool, &a->store, ALIGN_PIECES_MAX, sizeof(struct piece),
			  align_pool_start)) {
		r = err_sys(args->e, -ENOMEM, "the align stage");
		goto out;
	}
	list_init(&a->changes);
	list_init(&a->hungry);
	list_init(&a->waiting);
	list_init(&a->idle_jobs);
	for (size_t i = 0; i < ALIGN_JOBS_MAX; i++)
		list_push_back(&a->idle_jobs, &a->job[i].link);
	a->store.info = next->info;
	a->store.info.align = 1;
	a->store.info.len_max = REQ_LEN_MAX;
	store_init(&a->store, &align_ops, how->loop, next);
	*ret = &a->store;
	return 0;
out:
	align_free(a);
	free(a);
	return r;
}
