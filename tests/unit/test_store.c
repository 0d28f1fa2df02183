/* SPDX-License-Identifier: Apache-2.0 */
/* The wrapper around stores, with a back end whose answers the test gives. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "store/sub.h"

#define SIZE (1 * MIB + 100)
#define SEEN_MAX 256u

/* What arrived at the fake, in order; kept back until the test answers, or answered at once. */
struct fake {
	struct store store;
	bool at_once;
	int answer;	 /* at once: with this */
	uint64_t instance;
	bool restarting; /* each FLUSH comes from another instance than the writes before it */
	struct list held;
	struct {
		enum req_op op;
		uint32_t flags;
		struct range range;
	} seen[SEEN_MAX];
	size_t seen_count;
	bool aborted;
	struct world *w;
	char name;
};

struct world {
	struct loop *loop;
	struct fake *fake;
	char closed[16]; /* names of the fakes in the order of their close */
	unsigned closed_calls;
};

static void fake_answer_req(struct fake *f, struct req *req, int err)
{
	if (f->restarting && req->op == REQ_FLUSH)
		f->instance++;
	req->ret_instance = f->instance;
	if (err)
		req->ret_why = "the fake says no";
	req_done(req, err);
}

static void fake_submit(struct store *store, struct req *req)
{
	struct fake *f = CONTAINER_OF(store, struct fake, store);

	assert_true(f->seen_count < SEEN_MAX);
	f->seen[f->seen_count].op = req->op;
	f->seen[f->seen_count].flags = req->flags;
	f->seen[f->seen_count++].range = req->range;
	if (req->op == REQ_WRITE && !req->data.base[0])
		for (uint64_t i = 0; i < req->range.len; i++)
			assert_int_equal(req->data.base[i], 0);
	if (f->at_once)
		fake_answer_req(f, req, f->answer);
	else
		list_push_back(&f->held, &req->link);
}

static void fake_answer_all(struct fake *f, int err)
{
	struct list held;
	struct link *k;

	list_init(&held);
	list_splice_back(&held, &f->held);
	while ((k = list_pop_front(&held)))
		fake_answer_req(f, LIST_ENTRY(k, struct req, link), err);
}

static void fake_abort(struct store *store)
{
	struct fake *f = CONTAINER_OF(store, struct fake, store);

	f->aborted = true;
	fake_answer_all(f, -ESHUTDOWN);
}

static void fake_close(struct store *store)
{
	struct fake *f = CONTAINER_OF(store, struct fake, store);

	f->w->closed[strlen(f->w->closed)] = f->name;
	store_closed(store);
}

static const struct store_ops fake_ops = {
	.name = "fake", .submit = fake_submit, .abort = fake_abort, .close = fake_close,
};

static const struct store_info fake_info = {
	.size = SIZE, .align = 1, .len_max = 256 * KIB, .chunk = 4096, .flush = CAP_NATIVE,
};

static struct fake *fake_new(struct world *w, const struct store_info *info, struct store *next)
{
	struct fake *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->w = w;
	f->name = next ? 's' : 'b';
	list_init(&f->held);
	if (info)
		f->store.info = *info;
	store_init(&f->store, &fake_ops, w->loop, next);
	return f;
}

static void world_open(struct world *w, const struct store_info *info)
{
	struct loop_options options = { .engine = LOOP_EPOLL };
	struct err e;

	memset(w, 0, sizeof(*w));
	if (loop_open(&w->loop, &options, &e))
		fail_msg("%s", e.text);
	w->fake = fake_new(w, info ? info : &fake_info, NULL);
}

static void world_close(struct world *w)
{
	store_close_wait(&w->fake->store);
	loop_close(w->loop);
}

/* A request of the test's. */
struct ask {
	struct req req;
	unsigned done;
	int err;
	bool flag;
	char why[64];
	struct extents extents;
	struct extent extent[2];
};

static uint8_t buffer[SIZE];

static void ask_done(struct req *req, int err)
{
	struct ask *a = CONTAINER_OF(req, struct ask, req);

	a->done++;
	a->err = err;
	a->flag = true;
	if (req->ret_why)
		snprintf(a->why, sizeof(a->why), "%s", req->ret_why);
}

static void ask_submit(struct store *store, struct ask *a, enum req_op op, uint32_t flags,
		       uint64_t off, uint64_t len)
{
	memset(a, 0, sizeof(*a));
	a->extents = (struct extents){ .at = a->extent, .max = 2 };
	a->req = (struct req){ .op = op, .flags = flags, .range = { off, len },
			       .extents = &a->extents, .done = ask_done,
			       .data = { buffer, len } };
	req_submit(store, &a->req);
	assert_int_equal(a->done, 0);
}

static void ask_wait(struct world *w, struct ask *a)
{
	assert_int_equal(loop_run_until(w->loop, &a->flag, NEVER_NS), 0);
	assert_int_equal(a->done, 1);
}

/* Answers whatever the fake holds until the request is done. */
static int ask_drive(struct world *w, struct ask *a)
{
	while (!a->done) {
		assert_false(list_empty(&w->fake->held));
		fake_answer_all(w->fake, 0);
	}
	assert_int_equal(a->done, 1);
	return a->err;
}

static int ask(struct world *w, enum req_op op, uint32_t flags, uint64_t off, uint64_t len)
{
	struct ask a;

	ask_submit(&w->fake->store, &a, op, flags, off, len);
	ask_wait(w, &a);
	return a.err;
}

/* True when fn() dies of a CHECK; in a child. */
static bool dies(void (*fn)(void))
{
	int status;
	pid_t child = fork();

	assert_true(child >= 0);
	if (!child) {
		fclose(stderr);
		fn();
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
}

/* ---- exactly once ---- */

static void completes_twice(void)
{
	struct world w;
	struct ask a;

	world_open(&w, NULL);
	ask_submit(&w.fake->store, &a, REQ_READ, 0, 0, 10);
	list_pop_front(&w.fake->held);
	req_done(&a.req, 0);
	req_done(&a.req, 0);
}

static void completes_twice_within_submit(void)
{
	struct world w;
	struct ask a;

	world_open(&w, NULL);
	w.fake->at_once = true;
	ask_submit(&w.fake->store, &a, REQ_READ, 0, 0, 10);
	req_done(&a.req, 0);
}

static void reuses_a_pending_request(void)
{
	struct world w;
	struct ask a;

	world_open(&w, NULL);
	ask_submit(&w.fake->store, &a, REQ_READ, 0, 0, 10);
	req_submit(&w.fake->store, &a.req);
}

static void submits_after_close(void)
{
	struct world w;
	struct ask a;

	world_open(&w, NULL);
	ask_submit(&w.fake->store, &a, REQ_READ, 0, 0, 10);
	store_close(&w.fake->store, NULL, NULL);
	ask_submit(&w.fake->store, &a, REQ_READ, 0, 0, 10);
}

static void a_second_completion_is_caught(void **state)
{
	(void)state;
	assert_true(dies(completes_twice));
	assert_true(dies(completes_twice_within_submit));
}

static void reuse_while_pending_and_use_after_close_are_caught(void **state)
{
	(void)state;
	assert_true(dies(reuses_a_pending_request));
	assert_true(dies(submits_after_close));
}

static void a_completion_within_submit_is_deferred(void **state)
{
	struct world w;
	struct ask a;

	(void)state;
	world_open(&w, NULL);
	w.fake->at_once = true;
	ask_submit(&w.fake->store, &a, REQ_READ, 0, 0, 10);
	assert_int_equal(w.fake->store.pending, 1);
	ask_wait(&w, &a);
	assert_int_equal(a.err, 0);
	assert_int_equal(w.fake->store.pending, 0);
	world_close(&w);
}

/* done() submits the same request again, 20000 times: no recursion, and a done request may be used
 * at once. */
struct again {
	struct req req;
	unsigned left;
	bool flag;
	struct store *store;
};

static void again_done(struct req *req, int err)
{
	struct again *a = CONTAINER_OF(req, struct again, req);

	assert_int_equal(err, 0);
	if (a->left--)
		req_submit(a->store, req);
	else
		a->flag = true;
}

static void a_store_that_answers_at_once_does_not_grow_the_stack(void **state)
{
	struct world w;
	struct again a;

	(void)state;
	world_open(&w, NULL);
	w.fake->at_once = true;
	a = (struct again){ .left = 20000, .store = &w.fake->store };
	a.req = (struct req){ .op = REQ_PREFETCH, .range = { 0, 1 }, .done = again_done };
	req_submit(a.store, &a.req);
	assert_int_equal(loop_run_until(w.loop, &a.flag, NEVER_NS), 0);
	assert_int_equal(w.fake->store.counts[REQ_PREFETCH].done, 20001);
	world_close(&w);
}

/* ---- validation ---- */

static void bad_requests_are_refused_before_they_reach_the_store(void **state)
{
	struct store_info info = fake_info;
	struct world w;
	struct ask a;

	(void)state;
	info.align = 512;
	info.size = 512 * 100 + 7;
	world_open(&w, &info);
	assert_int_equal(ask(&w, REQ_READ, 0, 512 * 100, 8), -EINVAL);
	assert_int_equal(ask(&w, REQ_READ, 0, 512 * 101, 0), -EINVAL);
	assert_int_equal(ask(&w, REQ_READ, 0, UINT64_MAX - 1, 512), -EINVAL);
	assert_int_equal(ask(&w, REQ_READ, 0, 1, 512), -EINVAL);
	assert_int_equal(ask(&w, REQ_WRITE, 0, 512, 100), -EINVAL);
	assert_int_equal(ask(&w, REQ_ZERO, 0, 512 * 99, 512 + 6), -EINVAL);
	assert_int_equal(ask(&w, REQ_READ, 1u << 9, 0, 512), -EINVAL);
	assert_int_equal(ask(&w, (enum req_op)99, 0, 0, 512), -EINVAL);
	ask_submit(&w.fake->store, &a, REQ_READ, 0, 0, 512);
	assert_int_equal(ask_drive(&w, &a), 0);
	a.req.data.base = NULL;
	a.flag = false;
	a.done = 0;
	req_submit(&w.fake->store, &a.req);
	ask_wait(&w, &a);
	assert_int_equal(a.err, -EINVAL);
	a.req.data = (struct iobuf){ buffer, 511 }; /* shorter than the range */
	a.flag = false;
	a.done = 0;
	req_submit(&w.fake->store, &a.req);
	ask_wait(&w, &a);
	assert_int_equal(a.err, -EINVAL);
	ask_submit(&w.fake->store, &a, REQ_WRITE, 0, 512 * 99, 519); /* the unaligned end passes */
	assert_int_equal(ask_drive(&w, &a), 0);
	assert_int_equal(w.fake->seen_count, 2);
	world_close(&w);

	world_open(&w, NULL);
	assert_int_equal(ask(&w, REQ_READ, 0, 0, 256 * KIB + 1), -EINVAL);
	assert_int_equal(w.fake->seen_count, 0);
	world_close(&w);
}

static void empty_requests_are_answered_without_the_store(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, NULL);
	for (enum req_op op = 0; op < REQ_OPS; op++)
		if (op != REQ_FLUSH)
			assert_int_equal(ask(&w, op, 0, SIZE, 0), 0);
	assert_int_equal(w.fake->seen_count, 0);
	world_close(&w);
}

static void a_read_only_store_refuses_changes_and_has_nothing_to_flush(void **state)
{
	struct store_info info = fake_info;
	struct world w;

	(void)state;
	info.read_only = true;
	info.flush = CAP_NONE;
	world_open(&w, &info);
	assert_int_equal(ask(&w, REQ_WRITE, 0, 0, 10), -EROFS);
	assert_int_equal(ask(&w, REQ_ZERO, 0, 0, 10), -EROFS);
	assert_int_equal(ask(&w, REQ_TRIM, 0, 0, 10), -EROFS);
	assert_int_equal(ask(&w, REQ_FLUSH, 0, 0, 0), 0);
	assert_int_equal(w.fake->seen_count, 0);
	world_close(&w);
}

static void without_flush_durability_is_refused_and_not_promised(void **state)
{
	struct store_info info = fake_info;
	struct world w;

	(void)state;
	info.flush = CAP_NONE;
	world_open(&w, &info);
	assert_int_equal(w.fake->store.info.fua, CAP_NONE);
	assert_int_equal(ask(&w, REQ_FLUSH, 0, 0, 0), -EOPNOTSUPP);
	assert_int_equal(ask(&w, REQ_WRITE, REQ_FUA, 0, 10), -EOPNOTSUPP);
	assert_int_equal(ask(&w, REQ_ZERO, REQ_FUA, 0, 10), -EOPNOTSUPP);
	assert_int_equal(w.fake->seen_count, 0);
	world_close(&w);
}

/* ---- emulation ---- */

static void zero_is_emulated_by_bounded_writes_of_zeros(void **state)
{
	struct world w;
	struct ask a;
	uint64_t at = 5;

	(void)state;
	world_open(&w, NULL);
	assert_int_equal(w.fake->store.info.zero, CAP_EMULATED);
	ask_submit(&w.fake->store, &a, REQ_ZERO, REQ_BACKGROUND, 5, 3 * STORE_ZERO_PIECE + 1);
	assert_int_equal(ask_drive(&w, &a), 0);
	assert_int_equal(w.fake->seen_count, 4);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(w.fake->seen[i].op, REQ_WRITE);
		assert_int_equal(w.fake->seen[i].flags, REQ_BACKGROUND);
		assert_int_equal(w.fake->seen[i].range.off, at);
		at += w.fake->seen[i].range.len;
	}
	assert_int_equal(at, 5 + 3 * STORE_ZERO_PIECE + 1);
	assert_int_equal(w.fake->store.counts[REQ_ZERO].done, 1);
	/* its own requests are not counted */
	assert_int_equal(w.fake->store.counts[REQ_WRITE].started, 0);
	world_close(&w);
}

static void fua_is_emulated_by_a_flush_behind_the_write(void **state)
{
	struct world w;
	struct ask a;

	(void)state;
	world_open(&w, NULL);
	assert_int_equal(w.fake->store.info.fua, CAP_EMULATED);
	ask_submit(&w.fake->store, &a, REQ_WRITE, REQ_FUA, 0, 100);
	assert_int_equal(w.fake->seen_count, 1); /* the flush waits for the write */
	assert_int_equal(w.fake->seen[0].flags, 0);
	assert_int_equal(ask_drive(&w, &a), 0);
	assert_int_equal(w.fake->seen_count, 2);
	assert_int_equal(w.fake->seen[1].op, REQ_FLUSH);

	w.fake->seen_count = 0;
	ask_submit(&w.fake->store, &a, REQ_ZERO, REQ_FUA, 0, STORE_ZERO_PIECE + 1);
	assert_int_equal(ask_drive(&w, &a), 0);
	assert_int_equal(w.fake->seen_count, 3);
	assert_int_equal(w.fake->seen[2].op, REQ_FLUSH);
	world_close(&w);
}

static void native_zero_with_fua_is_followed_by_a_flush(void **state)
{
	struct store_info info = fake_info;
	struct world w;
	struct ask a;

	(void)state;
	info.zero = CAP_NATIVE;
	world_open(&w, &info);
	ask_submit(&w.fake->store, &a, REQ_ZERO, REQ_FUA, 10, 500 * KIB);
	assert_int_equal(ask_drive(&w, &a), 0);
	assert_int_equal(w.fake->seen_count, 2);
	assert_int_equal(w.fake->seen[0].op, REQ_ZERO);
	assert_int_equal(w.fake->seen[0].flags, 0);
	assert_int_equal(w.fake->seen[1].op, REQ_FLUSH);
	world_close(&w);
}

static void native_fua_reaches_the_store_also_in_emulated_zeros(void **state)
{
	struct store_info info = fake_info;
	struct world w;
	struct ask a;

	(void)state;
	info.fua = CAP_NATIVE;
	world_open(&w, &info);
	ask_submit(&w.fake->store, &a, REQ_WRITE, REQ_FUA, 0, 10);
	assert_int_equal(ask_drive(&w, &a), 0);
	ask_submit(&w.fake->store, &a, REQ_ZERO, REQ_FUA, 0, STORE_ZERO_PIECE + 1);
	assert_int_equal(ask_drive(&w, &a), 0);
	assert_int_equal(w.fake->seen_count, 3);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(w.fake->seen[i].op, REQ_WRITE);
		assert_int_equal(w.fake->seen[i].flags, REQ_FUA);
	}
	world_close(&w);
}

static void a_failed_step_of_an_emulation_is_its_answer(void **state)
{
	struct world w;
	struct ask a;

	(void)state;
	world_open(&w, NULL);
	ask_submit(&w.fake->store, &a, REQ_WRITE, REQ_FUA, 0, 10);
	fake_answer_all(w.fake, -ENOSPC);
	assert_int_equal(a.err, -ENOSPC);
	assert_string_equal(a.why, "the fake says no");
	ask_submit(&w.fake->store, &a, REQ_WRITE, REQ_FUA, 0, 10);
	fake_answer_all(w.fake, 0);
	fake_answer_all(w.fake, -EIO);
	assert_int_equal(a.done, 1);
	assert_int_equal(a.err, -EIO);
	world_close(&w);
}

static void emulated_fua_writes_again_when_another_instance_flushed(void **state)
{
	struct world w;
	struct ask a;

	(void)state;
	world_open(&w, NULL);
	w.fake->instance = 7;
	ask_submit(&w.fake->store, &a, REQ_WRITE, REQ_FUA, 0, 10);
	fake_answer_all(w.fake, 0);
	w.fake->instance = 8; /* restarted: the write may be gone */
	fake_answer_all(w.fake, 0);
	assert_int_equal(a.done, 0);
	assert_int_equal(ask_drive(&w, &a), 0);
	assert_int_equal(w.fake->seen_count, 4);
	assert_int_equal(w.fake->seen[2].op, REQ_WRITE);
	assert_int_equal(a.req.ret_instance, 8);

	w.fake->restarting = true; /* for ever: an error, and no endless loop */
	ask_submit(&w.fake->store, &a, REQ_WRITE, REQ_FUA, 0, 10);
	assert_int_equal(ask_drive(&w, &a), -EIO);
	world_close(&w);
}

static void more_emulations_than_the_pool_holds_wait_and_complete(void **state)
{
	struct ask *a = calloc(3 * STORE_EMUL_MAX, sizeof(*a));
	struct world w;

	(void)state;
	assert_non_null(a);
	world_open(&w, NULL);
	for (size_t i = 0; i < 3 * STORE_EMUL_MAX; i++)
		ask_submit(&w.fake->store, &a[i], REQ_WRITE, REQ_FUA, i, 1);
	assert_int_equal(w.fake->seen_count, STORE_EMUL_MAX);
	for (size_t i = 0; i < 3 * STORE_EMUL_MAX; i++)
		assert_int_equal(ask_drive(&w, &a[i]), 0);
	assert_int_equal(w.fake->seen_count, 6 * STORE_EMUL_MAX);
	world_close(&w);
	free(a);
}

static void trim_and_prefetch_do_nothing_and_extents_say_data(void **state)
{
	struct world w;
	struct ask a;

	(void)state;
	world_open(&w, NULL);
	assert_int_equal(ask(&w, REQ_TRIM, 0, 0, SIZE), 0);
	assert_int_equal(ask(&w, REQ_PREFETCH, 0, 0, SIZE), 0);
	ask_submit(&w.fake->store, &a, REQ_EXTENTS, 0, 10, SIZE - 10);
	ask_wait(&w, &a);
	assert_int_equal(a.err, 0);
	assert_int_equal(a.extents.count, 1);
	assert_int_equal(a.extent[0].len, SIZE - 10);
	assert_false(a.extent[0].zero);
	assert_int_equal(w.fake->seen_count, 0);
	world_close(&w);
}

static void what_turns_out_to_be_unsupported_is_emulated_from_then_on(void **state)
{
	struct store_info info = fake_info;
	struct world w;
	struct ask a;

	(void)state;
	info.zero = info.trim = info.extents = CAP_NATIVE;
	world_open(&w, &info);
	ask_submit(&w.fake->store, &a, REQ_TRIM, 0, 0, 10);
	fake_answer_all(w.fake, -EOPNOTSUPP);
	assert_int_equal(a.err, 0);
	ask_submit(&w.fake->store, &a, REQ_EXTENTS, 0, 0, 10);
	fake_answer_all(w.fake, -EOPNOTSUPP);
	assert_int_equal(a.err, 0);
	assert_int_equal(a.extents.count, 1);
	ask_submit(&w.fake->store, &a, REQ_ZERO, REQ_FUA, 0, 10);
	fake_answer_all(w.fake, -EOPNOTSUPP);
	assert_int_equal(ask_drive(&w, &a), 0);
	assert_int_equal(w.fake->store.info.zero, CAP_EMULATED);
	assert_int_equal(w.fake->seen[3].op, REQ_WRITE);
	assert_int_equal(w.fake->seen[4].op, REQ_FLUSH);
	/* but a write that cannot be is an error */
	ask_submit(&w.fake->store, &a, REQ_WRITE, 0, 0, 10);
	fake_answer_all(w.fake, -EOPNOTSUPP);
	assert_int_equal(a.err, -EOPNOTSUPP);
	world_close(&w);
}

/* ---- counts, reasons, events ---- */

static void requests_are_counted_and_reasons_kept(void **state)
{
	struct world w;
	struct ask a;

	(void)state;
	world_open(&w, NULL);
	w.fake->at_once = true;
	w.fake->answer = -EIO;
	ask_submit(&w.fake->store, &a, REQ_READ, 0, 0, 10);
	/* Deferred: the text of the store need not live that long. */
	assert_ptr_equal(a.req.ret_why, w.fake->store.last_why);
	ask_wait(&w, &a);
	assert_string_equal(a.why, "the fake says no");
	assert_int_equal(w.fake->store.last_err, -EIO);
	w.fake->answer = 0;
	assert_int_equal(ask(&w, REQ_READ, 0, 0, 10), 0);
	assert_int_equal(w.fake->store.counts[REQ_READ].started, 2);
	assert_int_equal(w.fake->store.counts[REQ_READ].done, 1);
	assert_int_equal(w.fake->store.counts[REQ_READ].failed, 1);
	assert_int_equal(w.fake->store.counts[REQ_READ].bytes, 10);
	assert_int_equal(w.fake->store.counts[REQ_READ].latency.count, 2);
	world_close(&w);
}

static void trace_hook(void *arg, const struct store *store, const struct req *req, bool end)
{
	unsigned *seen = arg;

	(void)store;
	assert_int_equal(req->op, REQ_ZERO);
	seen[end]++;
}

static void the_trace_hook_sees_each_request_start_and_end_once(void **state)
{
	unsigned seen[2] = { 0 };
	struct world w;

	(void)state;
	world_open(&w, NULL);
	w.fake->at_once = true;
	w.fake->store.trace = trace_hook;
	w.fake->store.trace_arg = seen;
	assert_int_equal(ask(&w, REQ_ZERO, 0, 0, 3 * STORE_ZERO_PIECE), 0);
	assert_int_equal(ask(&w, REQ_ZERO, 0, 0, 2 * (uint64_t)SIZE), -EINVAL);
	assert_int_equal(seen[0], 2);
	assert_int_equal(seen[1], 2);
	world_close(&w);
}

static void note_event(void *arg, struct store *store, enum store_event event)
{
	if (event == STORE_RESTARTED)
		*(uint64_t *)arg = store->info.instance;
}

static void events_go_up_and_a_stage_starts_with_the_info_of_its_next(void **state)
{
	uint64_t heard = 0;
	struct world w;
	struct fake *back;

	(void)state;
	world_open(&w, NULL);
	back = w.fake;
	w.fake = fake_new(&w, NULL, &back->store);
	assert_int_equal(w.fake->store.info.size, SIZE);
	assert_int_equal(w.fake->store.info.len_max, 256 * KIB);
	assert_int_equal(w.fake->store.info.flush, CAP_NATIVE);
	w.fake->store.on_event = note_event;
	w.fake->store.on_event_arg = &heard;
	back->store.info.instance = 42;
	store_emit(&back->store, STORE_RESTARTED);
	assert_int_equal(heard, 42);
	world_close(&w);
}

/* ---- abort and close ---- */

static void closed_hook(void *arg)
{
	struct world *w = arg;

	w->closed_calls++;
}

static void abort_fails_what_is_pending_and_what_comes_after(void **state)
{
	struct ask a[2 * STORE_EMUL_MAX], late;
	struct world w;

	(void)state;
	world_open(&w, NULL);
	for (size_t i = 0; i < ARRAY_LEN(a); i++)
		ask_submit(&w.fake->store, &a[i], REQ_WRITE, i % 3 ? REQ_FUA : 0, 0, 10);
	store_abort(&w.fake->store);
	for (size_t i = 0; i < ARRAY_LEN(a); i++) {
		assert_int_equal(a[i].done, 1);
		assert_int_equal(a[i].err, -ESHUTDOWN);
	}
	ask_submit(&w.fake->store, &late, REQ_READ, 0, 0, 10);
	ask_wait(&w, &late);
	assert_int_equal(late.err, -ESHUTDOWN);
	store_abort(&w.fake->store); /* twice is fine */
	world_close(&w);
}

static void abort_reaches_every_store_of_the_row(void **state)
{
	struct world w;
	struct fake *back;

	(void)state;
	world_open(&w, NULL);
	back = w.fake;
	w.fake = fake_new(&w, NULL, &back->store);
	store_abort(&w.fake->store);
	assert_true(w.fake->aborted && back->aborted);
	assert_true(back->store.aborting);
	world_close(&w);
}

static void close_waits_for_the_last_request_then_frees_from_the_top(void **state)
{
	struct world w;
	struct fake *top;
	struct ask a;

	(void)state;
	world_open(&w, NULL);
	top = fake_new(&w, NULL, &w.fake->store);
	ask_submit(&top->store, &a, REQ_READ, 0, 0, 10);
	store_close(&top->store, closed_hook, &w);
	assert_int_equal(loop_step(w.loop, 0), 0);
	assert_string_equal(w.closed, "");
	fake_answer_all(top, 0);
	assert_int_equal(a.done, 1);
	assert_int_equal(w.closed_calls, 0); /* not below a callback */
	for (int i = 0; i < 10 && !w.closed_calls; i++)
		assert_int_equal(loop_step(w.loop, 0), 0);
	assert_int_equal(w.closed_calls, 1);
	assert_string_equal(w.closed, "sb");
	loop_close(w.loop);
	store_close(NULL, closed_hook, NULL);
	store_close_wait(NULL);
}

/* ---- subs ---- */

struct stage {
	struct store store;
	struct sub_pool pool;
};

static void stage_sub_done(struct req *req, int err)
{
	sub_finish(req->user, err);
}

static void stage_start(struct store *store, struct req *parent)
{
	struct stage *s = CONTAINER_OF(store, struct stage, store);
	struct sub *sub = sub_get(&s->pool, parent);

	assert_non_null(sub);
	memset(sub->extra, 1, 24);
	sub_send(sub, stage_sub_done);
}

static void stage_submit(struct store *store, struct req *req)
{
	sub_pool_submit(&CONTAINER_OF(store, struct stage, store)->pool, req);
}

static void stage_abort(struct store *store)
{
	sub_pool_fail_waiting(&CONTAINER_OF(store, struct stage, store)->pool, -ESHUTDOWN);
}

static void stage_close(struct store *store)
{
	sub_pool_done(&CONTAINER_OF(store, struct stage, store)->pool);
	store_closed(store);
}

static const struct store_ops stage_ops = { .name = "stage", .submit = stage_submit, .abort = stage_abort,
					    .close = stage_close };

static struct stage *stage_new(struct world *w, size_t subs)
{
	struct stage *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	assert_int_equal(sub_pool_init(&s->pool, &s->store, subs, 24, stage_start), 0);
	store_init(&s->store, &stage_ops, w->loop, &w->fake->store);
	return s;
}

static void an_empty_pool_holds_requests_back_and_lets_the_urgent_pass(void **state)
{
	struct ask a[6];
	struct world w;
	struct stage *s;
	static const uint32_t flags[] = { 0, REQ_BACKGROUND, 0, REQ_BACKGROUND, REQ_URGENT,
					  REQ_URGENT };
	static const uint64_t order[] = { 0, 4, 5, 2, 1, 3 };

	(void)state;
	world_open(&w, NULL);
	s = stage_new(&w, 1);
	for (size_t i = 0; i < ARRAY_LEN(a); i++)
		ask_submit(&s->store, &a[i], REQ_READ, flags[i], i, 1);
	for (size_t i = 0; i < ARRAY_LEN(a); i++) {
		assert_int_equal(w.fake->seen_count, i + 1); /* one at a time */
		assert_int_equal(w.fake->seen[i].range.off, order[i]);
		fake_answer_all(w.fake, 0);
		assert_int_equal(a[order[i]].done, 1);
	}
	store_close_wait(&s->store);
	loop_close(w.loop);
}

static void sub_finish_carries_the_reason_up_and_abort_fails_the_waiting(void **state)
{
	struct ask a[5];
	struct world w;
	struct stage *s;

	(void)state;
	world_open(&w, NULL);
	s = stage_new(&w, 2);
	w.fake->instance = 9;
	ask_submit(&s->store, &a[0], REQ_READ, 0, 0, 1);
	fake_answer_all(w.fake, -EIO);
	assert_int_equal(a[0].err, -EIO);
	assert_string_equal(a[0].why, "the fake says no");
	assert_int_equal(a[0].req.ret_instance, 9);
	for (size_t i = 0; i < ARRAY_LEN(a); i++)
		ask_submit(&s->store, &a[i], REQ_READ, 0, i, 1);
	store_abort(&s->store);
	for (size_t i = 0; i < ARRAY_LEN(a); i++)
		ask_wait(&w, &a[i]);
	for (size_t i = 0; i < ARRAY_LEN(a); i++)
		assert_int_equal(a[i].err, -ESHUTDOWN);
	store_close_wait(&s->store);
	loop_close(w.loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_second_completion_is_caught),
		cmocka_unit_test(reuse_while_pending_and_use_after_close_are_caught),
		cmocka_unit_test(a_completion_within_submit_is_deferred),
		cmocka_unit_test(a_store_that_answers_at_once_does_not_grow_the_stack),
		cmocka_unit_test(bad_requests_are_refused_before_they_reach_the_store),
		cmocka_unit_test(empty_requests_are_answered_without_the_store),
		cmocka_unit_test(a_read_only_store_refuses_changes_and_has_nothing_to_flush),
		cmocka_unit_test(without_flush_durability_is_refused_and_not_promised),
		cmocka_unit_test(zero_is_emulated_by_bounded_writes_of_zeros),
		cmocka_unit_test(fua_is_emulated_by_a_flush_behind_the_write),
		cmocka_unit_test(native_zero_with_fua_is_followed_by_a_flush),
		cmocka_unit_test(native_fua_reaches_the_store_also_in_emulated_zeros),
		cmocka_unit_test(a_failed_step_of_an_emulation_is_its_answer),
		cmocka_unit_test(emulated_fua_writes_again_when_another_instance_flushed),
		cmocka_unit_test(more_emulations_than_the_pool_holds_wait_and_complete),
		cmocka_unit_test(trim_and_prefetch_do_nothing_and_extents_say_data),
		cmocka_unit_test(what_turns_out_to_be_unsupported_is_emulated_from_then_on),
		cmocka_unit_test(requests_are_counted_and_reasons_kept),
		cmocka_unit_test(the_trace_hook_sees_each_request_start_and_end_once),
		cmocka_unit_test(events_go_up_and_a_stage_starts_with_the_info_of_its_next),
		cmocka_unit_test(abort_fails_what_is_pending_and_what_comes_after),
		cmocka_unit_test(abort_reaches_every_store_of_the_row),
		cmocka_unit_test(close_waits_for_the_last_request_then_frees_from_the_top),
		cmocka_unit_test(an_empty_pool_holds_requests_back_and_lets_the_urgent_pass),
		cmocka_unit_test(sub_finish_carries_the_reason_up_and_abort_fails_the_waiting),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
