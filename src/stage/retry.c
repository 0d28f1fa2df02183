/* SPDX-License-Identifier: Apache-2.0 */
/*
 * retry: repeats requests that failed with an error that can pass, with growing pauses, until they
 * succeed or the time is over; the error of the last attempt is then the answer. It stands before a
 * store whose far side comes and goes.
 *
 *   start ─▶ sent ── 0, or an error that cannot pass ─▶ done
 *             ▲  └── an error that can, time left ─▶ waits ──┐
 *             └──────────── pause over, or the store is back ┘
 *
 * The pauses: delay, 2 delay, 4 delay ... up to max, each shortened by up to a half at random, so
 * that many clients do not come back all at once. `for` counts from the request's submission; the
 * last attempt begins when it ends. An attempt that the next store never answers is not ended here:
 * deadlines are the store's that talks to the far side.
 *
 * What is repeated:
 *   READ EXTENTS PREFETCH   always harmless
 *   WRITE ZERO TRIM         carry the same bytes to the same place: harmless as long as nothing
 *                           newer has gone there meanwhile. Keeping overlapping requests apart
 *                           is the order stage's task (or the client's); it stands above this
 *                           one: "order|retry|...".
 *   FLUSH, and REQ_FUA      never after -EIO: a system that failed to make data durable may
 *                           drop it and say 0 when asked again. After the errors of a lost
 *                           connection they are repeated; who needs to know whether the same
 *                           instance answered has ret_instance.
 *
 * Invariants: a sub is with the next store, or in `paused` with its timer set, or on its way to its
 * parent.
 *
 * Locking: none, everything runs on the loop's thread; clock and randomness are the loop's.
 */
#include "stage/stage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "store/sub.h"

#define FOR_NS_DEFAULT (60 * NS_PER_S)
#define DELAY_NS_DEFAULT (100 * NS_PER_MS)
#define MAX_NS_DEFAULT (5 * NS_PER_S)
#define TIME_NS_MAX (1000ULL * 24 * 3600 * NS_PER_S) /* for sums that cannot wrap */

#define ERRNO_WORDS 4u /* a bit per errno, up to 255 */

struct pause {
	struct timer timer;
	struct sub *sub;
	uint64_t first_ns;
	uint64_t delay_ns; /* of the next pause, before chance */
};

struct retry {
	struct store store;
	struct sub_pool pool;
	uint64_t for_ns, delay_ns, max_ns;
	uint64_t passing[ERRNO_WORDS];
	struct list paused; /* subs, by link */
	size_t paused_count;
	uint64_t repeated, given_up;
	bool failing; /* since when is in the log */
};

static const int passing_default[] = {
	EIO,	ETIMEDOUT,    ECONNRESET, ECONNREFUSED, ECONNABORTED, ENOTCONN,	 EPIPE,
	EAGAIN, ESHUTDOWN,    ENOBUFS,	  ENOMEM,	EHOSTUNREACH, EHOSTDOWN, ENETUNREACH,
	EINTR,	ENETDOWN,     ENETRESET,  EBUSY,	EREMOTEIO,
};

/* What says that the request itself is wrong, or that nothing will change by itself. */
static const int lasting[] = { EINVAL, EROFS, ENOSPC, EPERM, EACCES, ERANGE, EOPNOTSUPP };

static struct retry *retry_of(struct store *store)
{
	return CONTAINER_OF(store, struct retry, store);
}

static bool errno_get(const uint64_t *set, int number)
{
	if (number <= 0 || number >= (int)ERRNO_WORDS * 64)
		return false;
	return set[number / 64] >> (number % 64) & 1;
}

static void errno_add(uint64_t *set, int number)
{
	CHECK(number > 0 && number < (int)ERRNO_WORDS * 64);
	set[number / 64] |= 1ULL << (number % 64);
}

static bool can_pass(const struct retry *t, const struct req *req, int err)
{
	if (t->store.aborting)
		return false;
	if (err == -EIO && (req->op == REQ_FLUSH || req->flags & REQ_FUA))
		return false;
	return errno_get(t->passing, -err);
}

static void retry_done(struct req *req, int err);

static void pause_begin(struct retry *t, struct sub *sub, uint64_t now, uint64_t end)
{
	struct pause *p = sub->extra;
	uint64_t wait = p->delay_ns - rng_below(&loop_env(t->store.loop)->rng, p->delay_ns / 2 + 1);

	p->delay_ns = MIN(p->delay_ns * 2, t->max_ns);
	timer_set(t->store.loop, &p->timer, MIN(now + wait, end));
	list_push_back(&t->paused, &sub->link);
	t->paused_count++;
}

static void pause_end(struct retry *t, struct sub *sub)
{
	struct pause *p = sub->extra;

	CHECK(t->paused_count);
	timer_clear(t->store.loop, &p->timer);
	link_remove(&sub->link);
	t->paused_count--;
}

static void pause_fire(struct timer *timer)
{
	struct pause *p = CONTAINER_OF(timer, struct pause, timer);
	struct sub *sub = p->sub;
	struct retry *t = retry_of(sub->pool->stage);

	pause_end(t, sub);
	t->repeated++;
	sub_send(sub, retry_done);
}

static void failing_set(struct retry *t, bool failing, int err)
{
	if (t->failing == failing)
		return;
	t->failing = failing;
	if (failing)
		log_warn(&loop_env(t->store.loop)->log, "retry: %s; trying again", strerror(-err));
	else
		log_info(&loop_env(t->store.loop)->log, "retry: requests succeed again");
}

static void retry_done(struct req *req, int err)
{
	struct sub *sub = req->user;
	struct retry *t = retry_of(sub->pool->stage);
	struct pause *p = sub->extra;
	uint64_t now, end;

	if (!err) {
		failing_set(t, false, 0);
		sub_finish(sub, 0);
		return;
	}
	if (!can_pass(t, req, err)) {
		sub_finish(sub, err);
		return;
	}
	now = loop_now_fresh(t->store.loop);
	end = p->first_ns + t->for_ns;
	if (now < end) {
		failing_set(t, true, err);
		pause_begin(t, sub, now, end);
		return;
	}
	t->given_up++;
	log_warn(&loop_env(t->store.loop)->log, "retry: %s at %llu given up: %s", req_op_name(req->op),
		 (unsigned long long)req->range.off, strerror(-err));
	sub_finish(sub, err);
}

static void retry_start(struct store *store, struct req *parent)
{
	struct retry *t = retry_of(store);
	struct sub *sub = sub_get(&t->pool, parent);
	struct pause *p;

	CHECK(sub);
	p = sub->extra;
	*p = (struct pause){
		.timer.fire = pause_fire,
		.sub = sub,
		.first_ns = parent->start_ns,
		.delay_ns = t->delay_ns,
	};
	sub_send(sub, retry_done);
}

static void retry_submit(struct store *store, struct req *req)
{
	sub_pool_submit(&retry_of(store)->pool, req);
}

/* The far side is there again: nobody has to wait for the rest of his pause. By the timers, and not
 * at once, because the store below is in the middle of something. */
static void retry_event(void *arg, struct store *next, enum store_event event)
{
	struct retry *t = arg;

	(void)next;
	if (event == STORE_LOST)
		return;
	LIST_EACH(k, &t->paused) {
		struct pause *p = LIST_ENTRY(k, struct sub, link)->extra;

		timer_set(t->store.loop, &p->timer, loop_now(t->store.loop));
	}
}

static void retry_abort(struct store *store)
{
	struct retry *t = retry_of(store);
	struct link *k;

	sub_pool_fail_waiting(&t->pool, -ESHUTDOWN);
	while ((k = list_first(&t->paused))) {
		struct sub *sub = LIST_ENTRY(k, struct sub, link);

		pause_end(t, sub);
		sub->req.ret_why = NULL;
		sub_finish(sub, -ESHUTDOWN);
	}
}

static void retry_close(struct store *store)
{
	struct retry *t = retry_of(store);

	CHECK(list_empty(&t->paused) && !t->paused_count);
	store->next->on_event = NULL;
	sub_pool_done(&t->pool);
	store_closed(store);
}

static void retry_status(struct store *store, char *buf, size_t len)
{
	struct retry *t = retry_of(store);

	snprintf(buf, len, "paused=%zu repeated=%llu given_up=%llu", t->paused_count,
		 (unsigned long long)t->repeated, (unsigned long long)t->given_up);
}

static const struct store_ops retry_ops = {
	.name = "retry",
	.submit = retry_submit,
	.abort = retry_abort,
	.close = retry_close,
	.status = retry_status,
};

/* on=EIO+ETIMEDOUT: replaces the default set. */
static int retry_option_on(struct retry *t, struct spec_args *args)
{
	const char *text = NULL;
	int r = spec_get_text(args, "on", &text);

	if (r || !text) {
		for (size_t i = 0; i < ARRAY_LEN(passing_default); i++)
			errno_add(t->passing, passing_default[i]);
		return r;
	}
	for (;;) {
		size_t len = strcspn(text, "+");
		int number = errno_find(text, len);

		if (!number)
			return spec_error(args->spec, args->part->at, args->e,
					  "'%.*s' is not the name of an error: write on=EIO+ETIMEDOUT", (int)len, text);
		for (size_t i = 0; i < ARRAY_LEN(lasting); i++)
			if (number == lasting[i])
				return spec_error(args->spec, args->part->at, args->e,
						  "%.*s does not pass by waiting: it cannot be in on=", (int)len, text);
		errno_add(t->passing, number);
		if (!text[len])
			return 0;
		text += len + 1;
	}
}

static int retry_options(struct retry *t, struct spec_args *args)
{
	int r;

	t->for_ns = FOR_NS_DEFAULT;
	t->delay_ns = DELAY_NS_DEFAULT;
	t->max_ns = MAX_NS_DEFAULT;
	if ((r = spec_get_time(args, "for", &t->for_ns)) || (r = spec_get_time(args, "delay", &t->delay_ns)) ||
	    (r = spec_get_time(args, "max", &t->max_ns)) || (r = retry_option_on(t, args)) ||
	    (r = spec_options_end(args)))
		return r;
	if (!t->for_ns || !t->delay_ns || t->for_ns > TIME_NS_MAX || t->max_ns > TIME_NS_MAX)
		return spec_error(args->spec, args->part->at, args->e,
				  "for and delay must be more than 0, for and max at most 1000 days");
	if (t->delay_ns > t->max_ns)
		return spec_error(args->spec, args->part->at, args->e, "delay is longer than max");
	return 0;
}

int stage_retry_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct retry *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return err_sys(args->e, -ENOMEM, "the retry stage");
	r = retry_options(t, args);
	if (r)
		goto out;
	r = sub_pool_init(&t->pool, &t->store, STAGE_REQS_MAX, sizeof(struct pause), retry_start);
	if (r) {
		r = err_sys(args->e, r, "the retry stage");
		goto out;
	}
	list_init(&t->paused);
	store_init(&t->store, &retry_ops, how->loop, next);
	next->on_event = retry_event;
	next->on_event_arg = t;
	*ret = &t->store;
	return 0;
out:
	free(t);
	return r;
}
