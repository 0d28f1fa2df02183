/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random requests through a row of stages onto the fake back end, against an array of bytes that
 * says what must come out. What a trimmed byte reads as is not known until it is written again.
 */
#ifndef TEST_MODEL_H
#define TEST_MODEL_H

#include "fake.h"

#define MODEL_DEPTH 24
#define MODEL_STEPS_MAX 4000000u

enum model_rule {
	MODEL_APART,	/* of two requests in flight with common bytes, none changes them */
	MODEL_ANYTHING, /* whatever: the row keeps the order of submission */
};

struct model_op {
	struct req req;
	struct model *model;
	bool busy;
	uint8_t *buf, *expected, *known;
	struct extents extents;
	struct extent extent[8];
};

struct model {
	struct world w;
	uint64_t size;
	uint64_t len_max;
	uint8_t *bytes, *known;
	struct model_op op[MODEL_DEPTH];
	size_t busy;
	uint64_t completed;
	bool blind;    /* what READs find is not checked */
	bool may_fail; /* errors are allowed; what failed becomes unknown when it changes data */
};

static void model_op_check(struct model_op *op)
{
	const struct req *req = &op->req;

	for (size_t i = 0; req->op == REQ_READ && i < req->range.len; i++)
		if (op->known[i] && op->buf[i] != op->expected[i])
			fail_msg("byte %llu is %02x and must be %02x", (unsigned long long)(req->range.off + i),
				 op->buf[i], op->expected[i]);
	if (req->op == REQ_EXTENTS) {
		assert_true(op->extents.count >= 1);
		assert_true(op->extent[0].len >= 1);
	}
}

static void model_op_done(struct req *req, int err)
{
	struct model_op *op = CONTAINER_OF(req, struct model_op, req);
	struct model *m = op->model;

	assert_true(op->busy);
	if (!m->may_fail && err)
		fail_msg("%s of %llu bytes at %llu: %s", req_op_name(req->op), (unsigned long long)req->range.len,
			 (unsigned long long)req->range.off, strerror(-err));
	op->busy = false;
	m->busy--;
	m->completed++;
	if (!err && !m->blind)
		model_op_check(op);
	else if (req_op_changes(req->op))
		memset(m->known + req->range.off, 0, (size_t)req->range.len);
}

static bool model_conflict(const struct model *m, const struct req *req)
{
	for (size_t i = 0; i < MODEL_DEPTH; i++) {
		const struct req *other = &m->op[i].req;

		if (m->op[i].busy && (req_op_changes(req->op) || req_op_changes(other->op)) &&
		    other->op != REQ_FLUSH && range_overlaps(req->range, other->range))
			return true;
	}
	return false;
}

static void model_apply(struct model *m, struct model_op *op)
{
	struct req *req = &op->req;
	size_t off = (size_t)req->range.off, len = (size_t)req->range.len;

	if (req->op == REQ_READ) {
		memcpy(op->expected, m->bytes + off, len);
		memcpy(op->known, m->known + off, len);
		memset(op->buf, 0xa5, len);
	} else if (req->op == REQ_WRITE) {
		rng_fill(&m->w.rng, op->buf, len);
		memcpy(m->bytes + off, op->buf, len);
	} else if (req->op == REQ_ZERO) {
		memset(m->bytes + off, 0, len);
	}
	if (req_op_changes(req->op))
		memset(m->known + off, req->op != REQ_TRIM, len);
}

__attribute__((unused)) static void model_submit(struct model *m, enum model_rule rule,
						 uint64_t granule)
{
	static const enum req_op ops[] = {
		REQ_READ, REQ_READ, REQ_READ,  REQ_WRITE,   REQ_WRITE,	  REQ_WRITE,
		REQ_ZERO, REQ_TRIM, REQ_FLUSH, REQ_EXTENTS, REQ_PREFETCH,
	};
	static const uint32_t flags[] = { 0, 0, 0, 0, 0, 0, 0, 0, REQ_URGENT, REQ_BACKGROUND };
	struct rng *r = &m->w.rng;
	struct model_op *op = NULL;
	uint64_t off, len;

	for (size_t i = 0; i < MODEL_DEPTH && !op; i++)
		op = m->op[i].busy ? NULL : &m->op[i];
	if (!op)
		return;
	len = 1 + rng_below(r, rng_chance(r, 300000) ? m->len_max : MIN(m->len_max, 700));
	off = rng_below(r, m->size);
	off = off / granule * granule;
	len = (len + granule - 1) / granule * granule;
	len = MIN(len, m->size - off);
	op->req.op = ops[rng_below(r, ARRAY_LEN(ops))];
	op->req.flags = flags[rng_below(r, ARRAY_LEN(flags))];
	if (op->req.op == REQ_WRITE || op->req.op == REQ_ZERO)
		op->req.flags |= rng_chance(r, 100000) ? REQ_FUA : 0;
	op->req.range = op->req.op == REQ_FLUSH ? range_of(0, 0) : range_of(off, len);
	op->req.data = (struct iobuf){ op->buf, (size_t)m->len_max + (size_t)granule };
	op->extents = (struct extents){ op->extent, ARRAY_LEN(op->extent), 0 };
	op->req.extents = op->req.op == REQ_EXTENTS ? &op->extents : NULL;
	op->req.done = model_op_done;
	if (rule == MODEL_APART && model_conflict(m, &op->req))
		return;
	model_apply(m, op);
	op->busy = true;
	m->busy++;
	req_submit(m->w.top, &op->req);
}

__attribute__((unused)) static void model_init(struct model *m, const char *spec, uint64_t seed,
					       uint64_t len_max)
{
	memset(m, 0, sizeof(*m));
	world_open(&m->w, spec, seed);
	m->size = m->w.top->info.size;
	m->len_max = len_max;
	m->bytes = calloc(1, (size_t)m->size);
	m->known = malloc((size_t)m->size);
	memset(m->known, 1, (size_t)m->size);
	for (size_t i = 0; i < MODEL_DEPTH; i++) {
		m->op[i].model = m;
		m->op[i].buf = malloc((size_t)len_max * 2);
		m->op[i].expected = malloc((size_t)len_max * 2);
		m->op[i].known = malloc((size_t)len_max * 2);
	}
}

__attribute__((unused)) static void model_free(struct model *m)
{
	for (size_t i = 0; i < MODEL_DEPTH; i++) {
		free(m->op[i].buf);
		free(m->op[i].expected);
		free(m->op[i].known);
	}
	free(m->bytes);
	free(m->known);
	world_done(&m->w);
}

__attribute__((unused)) static void model_step(struct model *m)
{
	world_turn(&m->w);
	for (size_t i = 0; i < m->w.fakes; i++)
		fake_step(m->w.fake[i]);
	m->w.now_ns += rng_below(&m->w.rng, 200 * NS_PER_US);
}

/* `count` requests with equal seed, all of them answered at the end, every back end as the model
 * says. */
__attribute__((unused)) static void model_run(const char *spec, enum model_rule rule, uint64_t seed,
					      uint64_t count, uint64_t len_max, uint64_t granule)
{
	struct model *m = malloc(sizeof(*m));
	uint64_t steps = 0;

	model_init(m, spec, seed, len_max);
	while (m->completed < count) {
		if (rng_chance(&m->w.rng, 400000))
			model_submit(m, rule, granule);
		model_step(m);
		assert_true(++steps < MODEL_STEPS_MAX);
	}
	for (steps = 0; m->busy; steps++) {
		model_step(m);
		assert_true(steps < MODEL_STEPS_MAX);
	}
	for (size_t f = 0; f < m->w.fakes; f++)
		for (uint64_t i = 0; i < m->size; i++)
			if (m->known[i] && m->bytes[i] != m->w.fake[f]->bytes[i])
				fail_msg("byte %llu of store %zu is %02x, must be %02x (seed %llu)",
					 (unsigned long long)i, f, m->w.fake[f]->bytes[i],
					 m->bytes[i], (unsigned long long)seed);
	model_free(m);
	free(m);
}

/* Requests in flight when everything is aborted: each completes exactly once, and the row closes.
 */
__attribute__((unused)) static void model_abort(const char *spec, uint64_t seed, uint64_t len_max,
						uint64_t granule)
{
	struct model *m = malloc(sizeof(*m));

	model_init(m, spec, seed, len_max);
	m->may_fail = m->blind = true;
	for (uint64_t i = 0, n = rng_below(&m->w.rng, 200); i < n; i++) {
		model_submit(m, MODEL_ANYTHING, granule);
		if (rng_chance(&m->w.rng, 500000))
			model_step(m);
	}
	store_abort(m->w.top);
	for (int i = 0; i < 100 && m->busy; i++)
		world_turn(&m->w);
	assert_int_equal(0, m->busy);
	model_free(m);
	free(m);
}

#endif
