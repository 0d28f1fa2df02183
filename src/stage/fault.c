/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault: makes the store behind it unreliable, by a seed, so that what stands before it can be
 * tested: errors, answers that come late, requests that hang until they are aborted, reads that
 * fill only a part. Writes that are acknowledged and lost are not its business.
 *
 *   start ─▶ fate ── hang ───────────────▶ held until abort: -ESHUTDOWN
 *              ├──── error, not done ────────────────────────────────┐
 *              ├──── error, done ──▶ sent ─▶ answer becomes the error ┤
 *              ├──── short (READ) ─▶ sent ─▶ tail spoiled, the error ─┼─▶ (late) ─▶ done
 *              └──── none ─────────▶ sent ─▶ as it is ────────────────┘
 *
 * A request that fails may have been carried out or not: both happen in the world, so chance
 * decides. The buffer of a READ that fails is filled with 0xdb (a short one from a random byte on),
 * so that whoever trusts it is found.
 *
 * Every chosen request draws the same number of random values, whatever its fate; with equal seed,
 * options and order of requests the fates are equal. Requests that are not chosen draw none.
 *
 * Invariants: a sub is with the next store, or in `late` with its timer set, or on its way to its
 * parent; a held request has no sub.
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

#define SPOILED 0xdb
#define PPM 1000000u

enum fate { FATE_NONE, FATE_ERROR_NOT_DONE, FATE_ERROR_DONE, FATE_SHORT, FATE_HANG };

struct late {
	struct timer timer;
	struct sub *sub;
	enum fate fate;
	uint64_t kept; /* FATE_SHORT: bytes that are right */
	uint64_t delay_ns;
	int err;
};

struct fault {
	struct store store;
	struct sub_pool pool;
	struct rng rng;
	uint64_t error, shorts, hang; /* chances, per million */
	uint64_t delay_ns;
	bool reads, writes, flushes; /* which are chosen */
	uint64_t after, times;	     /* spare the first so many; make at most so many faults */
	int code;
	uint64_t seen, made;
	struct list held; /* requests that hang, by link */
	struct list late; /* subs, by link */
};

static struct fault *fault_of(struct store *store)
{
	return CONTAINER_OF(store, struct fault, store);
}

static bool fault_chooses(struct fault *f, const struct req *req)
{
	bool chosen = req->op == REQ_FLUSH	? f->flushes
		      : req_op_changes(req->op) ? f->writes
						: f->reads;

	return chosen && ++f->seen > f->after;
}

static enum fate fate_draw(struct fault *f, const struct req *req, uint64_t *ret_kept,
			   uint64_t *ret_delay_ns)
{
	bool hang = rng_chance(&f->rng, (uint32_t)f->hang);
	bool error = rng_chance(&f->rng, (uint32_t)f->error);
	bool cut = rng_chance(&f->rng, (uint32_t)f->shorts);
	bool carried_out = rng_chance(&f->rng, PPM / 2);
	enum fate fate = FATE_NONE;

	*ret_kept = rng_below(&f->rng, req->range.len);
	*ret_delay_ns = rng_below(&f->rng, f->delay_ns ? f->delay_ns + 1 : 0);
	if (f->made >= f->times)
		return FATE_NONE;
	if (hang)
		fate = FATE_HANG;
	else if (error)
		fate = carried_out ? FATE_ERROR_DONE : FATE_ERROR_NOT_DONE;
	else if (cut && req->op == REQ_READ)
		fate = FATE_SHORT;
	f->made += fate != FATE_NONE;
	return fate;
}

static void late_end(struct fault *f, struct late *late)
{
	struct sub *sub = late->sub;

	timer_clear(f->store.loop, &late->timer);
	link_remove(&sub->link);
	sub_finish(sub, late->err);
}

static void late_fire(struct timer *timer)
{
	struct late *late = CONTAINER_OF(timer, struct late, timer);

	late_end(fault_of(late->sub->pool->stage), late);
}

/* The answer is known; gives it now or later. */
static void fault_answer(struct fault *f, struct sub *sub, int err)
{
	struct late *late = sub->extra;

	if (late->fate != FATE_NONE) {
		err = -f->code;
		sub->req.ret_why = "injected by the fault stage";
		sub->req.ret_zero = false;
		if (sub->req.op == REQ_READ)
			memset(sub->req.data.base + late->kept, SPOILED,
			       (size_t)(sub->req.range.len - late->kept));
	}
	if (!late->delay_ns || f->store.aborting) {
		sub_finish(sub, err);
		return;
	}
	late->err = err;
	timer_set(f->store.loop, &late->timer, loop_now_fresh(f->store.loop) + late->delay_ns);
	list_push_back(&f->late, &sub->link);
}

static void fault_done(struct req *req, int err)
{
	struct sub *sub = req->user;

	fault_answer(fault_of(sub->pool->stage), sub, err);
}

static void fault_start(struct store *store, struct req *parent)
{
	struct fault *f = fault_of(store);
	uint64_t kept = 0, delay_ns = 0;
	enum fate fate = FATE_NONE;
	struct late *late;
	struct sub *sub;

	if (fault_chooses(f, parent))
		fate = fate_draw(f, parent, &kept, &delay_ns);
	if (fate == FATE_HANG) {
		list_push_back(&f->held, &parent->link);
		return;
	}
	sub = sub_get(&f->pool, parent);
	CHECK(sub);
	late = sub->extra;
	*late = (struct late){
		.timer.fire = late_fire,
		.sub = sub,
		.fate = fate,
		.kept = fate == FATE_SHORT ? kept : 0,
		.delay_ns = delay_ns,
	};
	if (fate == FATE_ERROR_NOT_DONE)
		fault_answer(f, sub, 0);
	else
		sub_send(sub, fault_done);
}

static void fault_submit(struct store *store, struct req *req)
{
	sub_pool_submit(&fault_of(store)->pool, req);
}

static void fault_abort(struct store *store)
{
	struct fault *f = fault_of(store);
	struct link *k;

	sub_pool_fail_waiting(&f->pool, -ESHUTDOWN);
	while ((k = list_pop_front(&f->held)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
	while ((k = list_first(&f->late)))
		late_end(f, LIST_ENTRY(k, struct sub, link)->extra);
}

static void fault_close(struct store *store)
{
	struct fault *f = fault_of(store);

	CHECK(list_empty(&f->held) && list_empty(&f->late));
	sub_pool_done(&f->pool);
	store_closed(store);
}

static void fault_status(struct store *store, char *buf, size_t len)
{
	struct fault *f = fault_of(store);

	snprintf(buf, len, "seen=%llu faults=%llu", (unsigned long long)f->seen, (unsigned long long)f->made);
}

static const struct store_ops fault_ops = {
	.name = "fault",
	.submit = fault_submit,
	.abort = fault_abort,
	.close = fault_close,
	.status = fault_status,
};

/* read=1 alone means reads and nothing else; write=0 alone means everything but writes. */
static int fault_option_ops(struct fault *f, struct spec_args *args)
{
	static const char *const keys[] = { "read", "write", "flush" };
	bool value[ARRAY_LEN(keys)], any_yes = false;
	int set[ARRAY_LEN(keys)];

	for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
		bool yes = true, no = false;
		int r = spec_get_bool(args, keys[i], &yes);

		if (!r)
			r = spec_get_bool(args, keys[i], &no);
		if (r)
			return r;
		set[i] = yes == no ? yes : -1; /* absent: both kept what they had */
		any_yes |= set[i] == 1;
	}
	for (size_t i = 0; i < ARRAY_LEN(keys); i++)
		value[i] = set[i] < 0 ? !any_yes : set[i];
	f->reads = value[0];
	f->writes = value[1];
	f->flushes = value[2];
	return 0;
}

static int fault_options(struct fault *f, struct spec_args *args)
{
	const char *name = NULL;
	uint64_t seed = 1;
	int r;

	f->times = UINT64_MAX;
	f->code = EIO;
	if ((r = spec_get_number(args, "seed", 0, UINT64_MAX, &seed)) ||
	    (r = spec_get_number(args, "error", 0, PPM, &f->error)) ||
	    (r = spec_get_number(args, "short", 0, PPM, &f->shorts)) ||
	    (r = spec_get_number(args, "hang", 0, PPM, &f->hang)) ||
	    (r = spec_get_time(args, "delay", &f->delay_ns)) || (r = fault_option_ops(f, args)) ||
	    (r = spec_get_number(args, "after", 0, UINT64_MAX, &f->after)) ||
	    (r = spec_get_number(args, "times", 0, UINT64_MAX, &f->times)) ||
	    (r = spec_get_text(args, "errno", &name)) || (r = spec_options_end(args)))
		return r;
	rng_init(&f->rng, seed);
	if (name && !(f->code = errno_find(name, strlen(name))))
		return spec_error(args->spec, args->part->at, args->e,
				  "'%s' is not the name of an error: write errno=EIO", name);
	if (f->delay_ns > 24 * 3600 * NS_PER_S)
		return spec_error(args->spec, args->part->at, args->e, "delay is longer than a day");
	return 0;
}

int stage_fault_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct fault *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return err_sys(args->e, -ENOMEM, "the fault stage");
	r = fault_options(f, args);
	if (r)
		goto out;
	r = sub_pool_init(&f->pool, &f->store, STAGE_REQS_MAX, sizeof(struct late), fault_start);
	if (r) {
		r = err_sys(args->e, r, "the fault stage");
		goto out;
	}
	list_init(&f->held);
	list_init(&f->late);
	store_init(&f->store, &fault_ops, how->loop, next);
	*ret = &f->store;
	return 0;
out:
	free(f);
	return r;
}
