/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of the file front end share: a store in memory whose requests can be held back or
 * failed, a mount of it in a directory of its own, and a thread that runs the loop meanwhile, so
 * that the test can use the file as any program does.
 */
#ifndef TEST_FILE_RIG_H
#define TEST_FILE_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "front/file.h"

#define PATIENCE_NS (60 * NS_PER_S)
#define RIG_BLOCK 65536u

struct rig_store {
	struct store store;
	uint8_t *bytes;
	bool hold; /* requests wait until it is over, or an abort */
	int fail;  /* READ and WRITE complete with it */
	struct list held;
	uint64_t seen[REQ_OPS];
};

struct rig {
	struct loop *loop;
	struct rig_store *far;
	struct file *file;
	struct file_options options;
	char dir[64], path[96];
	pthread_t thread;
	bool running;
	_Atomic unsigned gone;
	_Atomic uint64_t accessed;
};

/* ---- the store ---- */

static inline struct rig_store *rig_store_of(struct store *store)
{
	return CONTAINER_OF(store, struct rig_store, store);
}

static inline bool rig_is_zero(const uint8_t *p, uint64_t len)
{
	return !len || (!*p && !memcmp(p, p + 1, len - 1));
}

static inline void rig_extents(struct rig_store *s, const struct req *req)
{
	uint64_t at = req->range.off, end = range_end(req->range);

	while (at < end && req->extents->count < req->extents->max) {
		uint64_t stop = MIN(end, align_down(at, RIG_BLOCK) + RIG_BLOCK);

		req->extents->at[req->extents->count++] = (struct extent){
			.len = stop - at, .zero = rig_is_zero(s->bytes + at, stop - at),
		};
		at = stop;
	}
}

static inline void rig_carry_out(struct rig_store *s, struct req *req)
{
	uint8_t *at = s->bytes + req->range.off;
	int err = 0;

	switch (req->op) {
	case REQ_READ:
		memcpy(req->data.base, at, req->range.len);
		err = s->fail;
		break;
	case REQ_WRITE:
		if (!s->fail)
			memcpy(at, req->data.base, req->range.len);
		err = s->fail;
		break;
	case REQ_ZERO:
		memset(at, 0, req->range.len);
		break;
	case REQ_EXTENTS:
		rig_extents(s, req);
		break;
	default:
		break;
	}
	req_done(req, err);
}

static inline void rig_submit(struct store *store, struct req *req)
{
	struct rig_store *s = rig_store_of(store);

	s->seen[req->op]++;
	if (s->hold)
		list_push_back(&s->held, &req->link);
	else
		rig_carry_out(s, req);
}

static inline void rig_abort(struct store *store)
{
	struct link *k;

	while ((k = list_pop_front(&rig_store_of(store)->held)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
}

static inline void rig_close(struct store *store)
{
	free(rig_store_of(store)->bytes);
	store_closed(store);
}

static inline struct rig_store *rig_store_open(struct loop *loop, uint64_t size, bool read_only)
{
	static const struct store_ops ops = {
		.name = "rig", .submit = rig_submit, .abort = rig_abort, .close = rig_close,
	};
	struct rig_store *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->bytes = calloc(1, size + 1);
	assert_non_null(s->bytes);
	list_init(&s->held);
	s->store.info = (struct store_info){
		.size = size, .read_only = read_only, .zero = CAP_NATIVE, .extents = CAP_NATIVE,
		.flush = CAP_NATIVE,
	};
	store_init(&s->store, &ops, loop, NULL);
	return s;
}

/* ---- the mount ---- */

static inline void rig_gone(void *arg)
{
	((struct rig *)arg)->gone++;
}

static inline void rig_accessed(void *arg, struct range r)
{
	((struct rig *)arg)->accessed += r.len;
}

static inline bool rig_may_mount(void)
{
	return geteuid() == 0 && access("/dev/fuse", R_OK | W_OK) == 0;
}

/* A loop, a store, a directory; the file is not open yet. */
static inline void rig_prepare(struct rig *g, uint64_t size)
{
	struct loop_options o = { .engine = LOOP_AUTO };

	memset(g, 0, sizeof(*g));
	assert_int_equal(loop_open(&g->loop, &o, NULL), 0);
	g->far = rig_store_open(g->loop, size, false);
	snprintf(g->dir, sizeof(g->dir), "/tmp/remora-file.XXXXXX");
	assert_non_null(mkdtemp(g->dir));
	snprintf(g->path, sizeof(g->path), "%s/disk", g->dir);
	g->options = (struct file_options){
		.store = &g->far->store, .path = g->path, .source = "rig:a,b c\\d",
		.keep_cache = true,
		.hooks = { .gone = rig_gone, .accessed = rig_accessed, .arg = g },
	};
}

static inline void *rig_thread(void *arg)
{
	struct rig *g = arg;

	assert_int_equal(loop_run(g->loop), 0);
	return NULL;
}

static inline void rig_start(struct rig *g)
{
	assert_int_equal(loop_detach(g->loop), 0);
	assert_int_equal(pthread_create(&g->thread, NULL, rig_thread, g), 0);
	g->running = true;
}

static inline void rig_stop_fn(void *arg)
{
	loop_stop(((struct rig *)arg)->loop);
}

static inline void rig_stop(struct rig *g)
{
	if (!g->running)
		return;
	loop_call(g->loop, rig_stop_fn, g);
	assert_int_equal(pthread_join(g->thread, NULL), 0);
	g->running = false;
}

static inline void rig_mount(struct rig *g)
{
	struct err e;
	int r = file_open(&g->file, g->loop, &g->options, &e);

	if (r)
		print_error("%s\n", e.text);
	assert_int_equal(r, 0);
	rig_start(g);
}

static inline void rig_open(struct rig *g, uint64_t size)
{
	rig_prepare(g, size);
	rig_mount(g);
}

static inline void rig_end(struct rig *g)
{
	rig_stop(g);
	file_close_wait(TAKE_PTR(g->file));
	store_close_wait(&g->far->store);
	loop_close(g->loop);
	unlink(g->path);
	assert_int_equal(rmdir(g->dir), 0);
}

/* ---- on the loop's thread ---- */

struct rig_do {
	struct rig *rig;
	struct file_call call;
	void (*start)(struct file *file, struct file_call *call);
	pthread_mutex_t lock;
	pthread_cond_t ended;
	bool done;
	int err;
};

static inline void rig_call_done(struct file_call *call, int err)
{
	struct rig_do *d = CONTAINER_OF(call, struct rig_do, call);

	pthread_mutex_lock(&d->lock);
	d->done = true;
	d->err = err;
	pthread_cond_signal(&d->ended);
	pthread_mutex_unlock(&d->lock);
}

static inline void rig_call_start(void *arg)
{
	struct rig_do *d = arg;

	d->start(d->rig->file, &d->call);
}

/* Runs one of the calls that take their time, and waits for its end. */
static inline int rig_call(struct rig *g, void (*start)(struct file *, struct file_call *),
			   struct range range, bool lazy)
{
	struct rig_do d = {
		.rig = g, .start = start, .lock = PTHREAD_MUTEX_INITIALIZER,
		.ended = PTHREAD_COND_INITIALIZER,
		.call = { .done = rig_call_done, .range = range, .lazy = lazy },
	};

	loop_call(g->loop, rig_call_start, &d);
	pthread_mutex_lock(&d.lock);
	while (!d.done)
		pthread_cond_wait(&d.ended, &d.lock);
	pthread_mutex_unlock(&d.lock);
	return d.err;
}

struct rig_asked {
	struct rig *rig;
	bool hold, shut;
	int fail;
	unsigned users;
	size_t held;
	struct file_counts counts;
	uint64_t seen[REQ_OPS];
};

static inline void rig_set_hold_fn(void *arg)
{
	struct rig_asked *a = arg;
	struct rig_store *s = a->rig->far;
	struct link *k;

	s->hold = a->hold;
	while (!s->hold && (k = list_pop_front(&s->held)))
		rig_carry_out(s, LIST_ENTRY(k, struct req, link));
}

static inline void rig_hold(struct rig *g, bool hold)
{
	loop_call(g->loop, rig_set_hold_fn, &(struct rig_asked){ .rig = g, .hold = hold });
}

static inline void rig_set_fail_fn(void *arg)
{
	struct rig_asked *a = arg;

	a->rig->far->fail = a->fail;
}

static inline void rig_fail(struct rig *g, int err)
{
	loop_call(g->loop, rig_set_fail_fn, &(struct rig_asked){ .rig = g, .fail = err });
}

static inline void rig_set_shut_fn(void *arg)
{
	struct rig_asked *a = arg;

	file_shut(a->rig->file, a->shut);
}

static inline void rig_shut(struct rig *g, bool shut)
{
	loop_call(g->loop, rig_set_shut_fn, &(struct rig_asked){ .rig = g, .shut = shut });
}

static inline void rig_ask_fn(void *arg)
{
	struct rig_asked *a = arg;

	a->users = file_users(a->rig->file);
	file_count(a->rig->file, &a->counts);
	memcpy(a->seen, a->rig->far->seen, sizeof(a->seen));
	a->held = 0;
	LIST_EACH(k, &a->rig->far->held)
		a->held++;
}

static inline struct rig_asked rig_ask(struct rig *g)
{
	struct rig_asked a = { .rig = g };

	loop_call(g->loop, rig_ask_fn, &a);
	return a;
}

#endif
