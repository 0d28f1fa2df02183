/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A world for tests of stages: a loop whose clock is turned by hand, and a back end whose requests
 * are carried out and completed when the test says so, in an order drawn by a seed. A request
 * changes bytes at one moment and completes at a later one, so that whatever a stage leaves
 * unordered really happens in every order.
 *
 * Specs in these tests are opened with a table of their own (fake_kinds below); the back end is
 * "fake:SIZE".
 */
#ifndef TEST_FAKE_H
#define TEST_FAKE_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/size.h"
#include "stage/stage.h"

#define FAKE_REQS 2048
#define FAKE_SEEN 8192
#define FAKES 2

struct fake_seen {
	enum req_op op;
	uint32_t flags;
	struct range range;
	uint64_t at_ns;
};

struct fake_slot {
	struct req *req;
	bool carried_out;
	int err;
};

struct fake {
	struct store store;
	struct world *world;
	uint8_t *bytes;
	struct fake_slot slot[FAKE_REQS];
	size_t count, most; /* pending now, and at most so far */
	struct fake_seen seen[FAKE_SEEN];
	size_t seen_count;
	int (*refuse)(struct fake *fake,
		      const struct req *req); /* asked when it is carried out; NULL = never */
	const char *why;
	uint64_t instance;
};

struct world {
	struct env env;
	uint64_t now_ns;
	struct loop *loop;
	struct rng rng;
	struct fake *fake[FAKES]; /* in the order of their opening */
	size_t fakes;
	struct store *top;
	char logged[1024]; /* the last line */
};

/* ---- the back end ---- */

static struct fake *fake_of(struct store *store)
{
	return CONTAINER_OF(store, struct fake, store);
}

static void fake_submit(struct store *store, struct req *req)
{
	struct fake *f = fake_of(store);

	assert_true(f->count < FAKE_REQS);
	f->slot[f->count++] = (struct fake_slot){ .req = req };
	f->most = MAX(f->most, f->count);
	if (f->seen_count < FAKE_SEEN)
		f->seen[f->seen_count++] =
			(struct fake_seen){ req->op, req->flags, req->range, f->world->now_ns };
}

static void fake_carry_out(struct fake *f, struct fake_slot *s)
{
	struct req *req = s->req;
	uint8_t *at = f->bytes + (req->op == REQ_FLUSH ? 0 : req->range.off);

	s->carried_out = true;
	s->err = f->refuse ? f->refuse(f, req) : 0;
	if (s->err)
		return;
	switch (req->op) {
	case REQ_READ:
		memcpy(req->data.base, at, (size_t)req->range.len);
		break;
	case REQ_WRITE:
		memcpy(at, req->data.base, (size_t)req->range.len);
		break;
	case REQ_ZERO:
		memset(at, 0, (size_t)req->range.len);
		break;
	case REQ_TRIM:
		memset(at, 0xee,
		       (size_t)req->range.len); /* whoever relies on what is there is found */
		break;
	case REQ_EXTENTS:
		req->extents->at[0] = (struct extent){ req->range.len, false };
		req->extents->count = 1;
		break;
	default:
		break;
	}
}

/* Completes the request in slot i now. */
static void fake_end(struct fake *f, size_t i)
{
	struct fake_slot s;

	assert_true(i < f->count);
	if (!f->slot[i].carried_out)
		fake_carry_out(f, &f->slot[i]);
	s = f->slot[i];
	memmove(&f->slot[i], &f->slot[i + 1], (--f->count - i) * sizeof(s));
	s.req->ret_instance = f->instance;
	if (s.err)
		s.req->ret_why = f->why;
	req_done(s.req, s.err);
}

/* Goes one step further with one request, whichever chance says. False when there is none. */
__attribute__((unused)) static bool fake_step(struct fake *f)
{
	size_t i = rng_below(&f->world->rng, f->count);

	if (!f->count)
		return false;
	if (!f->slot[i].carried_out)
		fake_carry_out(f, &f->slot[i]);
	else
		fake_end(f, i);
	return true;
}

static void fake_abort(struct store *store)
{
	struct fake *f = fake_of(store);

	while (f->count) {
		struct req *req = f->slot[--f->count].req;

		req_done(req, -ESHUTDOWN);
	}
}

static void fake_close(struct store *store)
{
	struct fake *f = fake_of(store);

	for (size_t i = 0; i < FAKES; i++)
		if (f->world->fake[i] == f)
			f->world->fake[i] = NULL;
	free(f->bytes);
	store_closed(store);
}

static const struct store_ops fake_ops = {
	.name = "fake",
	.submit = fake_submit,
	.abort = fake_abort,
	.close = fake_close,
};

static int fake_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct world *w = how->callbacks_arg;
	struct fake *f = calloc(1, sizeof(*f));
	uint64_t size = 0, align = 1, len = REQ_LEN_MAX;
	bool emulate = false, read_only = false;

	assert_non_null(f);
	assert_null(next);
	assert_int_equal(0, size_parse(args->part->rest, &size, args->e));
	assert_int_equal(0, spec_get_size(args, "align", &align));
	assert_int_equal(0, spec_get_size(args, "len", &len));
	assert_int_equal(0, spec_get_bool(args, "emulate", &emulate));
	assert_int_equal(0, spec_get_bool(args, "readonly", &read_only));
	f->world = w;
	f->bytes = calloc(1, (size_t)size);
	f->store.info = (struct store_info){
		.size = size,
		.align = (uint32_t)align,
		.len_max = (uint32_t)len,
		.chunk = CHUNK_DEFAULT,
		.read_only = read_only,
		.flush = CAP_NATIVE,
	};
	if (!emulate) {
		struct store_info *info = &f->store.info;

		info->zero = info->trim = info->fua = info->extents = info->prefetch = CAP_NATIVE;
	}
	store_init(&f->store, &fake_ops, how->loop, NULL);
	if (w->fakes < FAKES)
		w->fake[w->fakes++] = f;
	*ret = &f->store;
	return 0;
}

const struct store_kind store_kinds[] = {
	{ "fake", true, "fake:SIZE[?align=SIZE][&len=SIZE][&emulate=BOOL][&readonly=BOOL]", fake_open },
#ifdef TEST_FAKE_KINDS
	TEST_FAKE_KINDS
#endif
	{ 0 },
};

/* ---- the world ---- */

static uint64_t world_clock(void *arg)
{
	return ((struct world *)arg)->now_ns;
}

static void world_log(void *arg, enum log_level level, const char *text)
{
	struct world *w = arg;

	(void)level;
	snprintf(w->logged, sizeof(w->logged), "%s", text);
}

__attribute__((unused)) static void world_init(struct world *w, uint64_t seed)
{
	struct loop_options options = { .engine = LOOP_EPOLL, .env = &w->env, .pool_threads = 1 };
	struct err e;

	memset(w, 0, sizeof(*w));
	w->now_ns = NS_PER_S;
	w->env.now_ns = world_clock;
	w->env.arg = w;
	w->env.log = (struct log){ .emit = world_log, .arg = w, .max = LOG_DEBUG };
	rng_init(&w->env.rng, seed);
	rng_init(&w->rng, seed ^ 0x5eed);
	if (loop_open(&w->loop, &options, &e))
		fail_msg("%s", e.text);
}

__attribute__((unused)) static int world_open_err(struct world *w, const char *spec, struct err *e)
{
	struct store_open how = { .loop = w->loop, .deadline_ns = NEVER_NS, .callbacks_arg = w };

	return spec_open(&w->top, spec, &how, e);
}

__attribute__((unused)) static void world_open(struct world *w, const char *spec, uint64_t seed)
{
	struct err e;

	world_init(w, seed);
	if (world_open_err(w, spec, &e))
		fail_msg("%s", e.text);
}

/* The loop's work that is due now; never waits. */
static void world_turn(struct world *w)
{
	int r;

	for (int i = 0; i < 4; i++) {
		r = loop_step(w->loop, w->now_ns);
		assert_true(r == 0 || r == -EDEADLK);
	}
}

/* Lets the time pass, in steps. */
__attribute__((unused)) static void world_pass(struct world *w, uint64_t ns, uint64_t step_ns)
{
	uint64_t end = w->now_ns + ns;

	while (w->now_ns < end) {
		w->now_ns = MIN(end, w->now_ns + step_ns);
		world_turn(w);
	}
}

__attribute__((unused)) static void world_done(struct world *w)
{
	store_close_wait(w->top);
	for (size_t i = 0; i < FAKES; i++)
		assert_null(w->fake[i]);
	loop_close(w->loop);
}

/* ---- single requests ---- */

struct one {
	struct req req;
	int err;
	unsigned completions;
	uint64_t done_ns;
	char why[128];
	struct world *world;
};

__attribute__((unused)) static void one_done(struct req *req, int err)
{
	struct one *one = CONTAINER_OF(req, struct one, req);

	one->err = err;
	one->completions++;
	one->done_ns = one->world->now_ns;
	snprintf(one->why, sizeof(one->why), "%s", req->ret_why ? req->ret_why : "");
}

__attribute__((unused)) static void one_submit(struct world *w, struct one *one, enum req_op op,
					       uint64_t off,
					       uint64_t len, void *buf, uint32_t flags)
{
	*one = (struct one){ .world = w };
	one->req.op = op;
	one->req.flags = flags;
	one->req.range = range_of(off, len);
	one->req.data = (struct iobuf){ buf, buf ? (size_t)len : 0 };
	one->req.done = one_done;
	req_submit(w->top, &one->req);
	assert_int_equal(0, one->completions);
}

#endif
