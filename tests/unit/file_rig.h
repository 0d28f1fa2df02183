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
#include <mntent.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "front/file_int.h"

#define PATIENCE_NS (60 * NS_PER_S)
#define RIG_DIR "/tmp/remora-file.%d."
#define RIG_BLOCK 65536u

struct rig_store {
	struct store store;
	uint8_t *bytes;
	bool hold; /* requests wait until it is over, or an abort */
	int fail;  /* READ and WRITE complete with it */
	struct list held;
	uint64_t seen[REQ_OPS];
};

/* What is mounted now, for who cleans up behind a process that has failed. Shared with it. */
struct rig_mounts {
	unsigned minor[64];
};

static inline struct rig_mounts *rig_mounts(void)
{
	static struct rig_mounts *mounts;

	if (!mounts)
		mounts = mmap(NULL, sizeof(*mounts), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(mounts != MAP_FAILED);
	return mounts;
}

static inline void rig_mounts_swap(unsigned from, unsigned to)
{
	struct rig_mounts *m = rig_mounts();

	for (size_t i = 0; i < ARRAY_LEN(m->minor); i++)
		if (m->minor[i] == from) {
			m->minor[i] = to;
			return;
		}
}

struct rig {
	unsigned minor; /* of the mount's device */
	struct loop *loop;
	struct rig_store *far;
	struct file *file;
	struct file_options options;
	char dir[64], path[96];
	pthread_t thread;
	bool running;
	bool closing, closed; /* rig_close_begin() */
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
	snprintf(g->dir, sizeof(g->dir), RIG_DIR "XXXXXX", (int)getpid());
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
	g->minor = minor(g->file->place.dev);
	rig_mounts_swap(0, g->minor);
	rig_start(g);
}

static inline void rig_open(struct rig *g, uint64_t size)
{
	rig_prepare(g, size);
	rig_mount(g);
}

static inline void rig_closed(void *arg)
{
	((struct rig *)arg)->closed = true;
}

static inline void rig_close_begin(void *arg)
{
	struct rig *g = arg;

	g->closing = true;
	file_close(TAKE_PTR(g->file), rig_closed, g);
}

static inline void rig_end(struct rig *g)
{
	rig_stop(g);
	file_close_wait(TAKE_PTR(g->file));
	if (g->closing)
		assert_int_equal(loop_run_until(g->loop, &g->closed, NEVER_NS), 0);
	store_close_wait(&g->far->store);
	loop_close(g->loop);
	if (g->minor)
		rig_mounts_swap(g->minor, 0);
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

static inline bool rig_call_is_done(struct rig_do *d)
{
	bool done;

	pthread_mutex_lock(&d->lock);
	done = d->done;
	pthread_mutex_unlock(&d->lock);
	return done;
}

struct rig_asked {
	struct rig *rig;
	bool hold, shut, closed;
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

	if (a->rig->file) {
		a->users = file_users(a->rig->file);
		file_count(a->rig->file, &a->counts);
	}
	memcpy(a->seen, a->rig->far->seen, sizeof(a->seen));
	a->closed = a->rig->closed;
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

/* The store's bytes, as the loop has left them. Whoever changes them tells the loop (rig_ask). */
static inline uint8_t *rig_bytes(struct rig *g)
{
	if (g->running)
		(void)rig_ask(g);
	return g->far->bytes;
}

/* ---- running ---- */

/* Who serves a file and uses it cannot be killed, once it waits for itself: a process of its own
 * sees this one end, however it ends, and leaves no mount behind. */
static inline void rig_free_the_dead(const struct rig_mounts *mounts, pid_t pid)
{
	const char *control = "/sys/fs/fuse/connections";
	char prefix[40], path[80];
	struct mntent *ent;
	FILE *in;

	snprintf(prefix, sizeof(prefix), RIG_DIR, (int)pid);
	in = setmntent("/proc/mounts", "re");
	while (in && (ent = getmntent(in)))
		if (!strncmp(ent->mnt_dir, prefix, strlen(prefix)))
			umount2(ent->mnt_dir, MNT_DETACH);
	if (in)
		endmntent(in);
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("fusectl", control, "fusectl", 0, NULL))
		return;
	for (size_t i = 0; i < ARRAY_LEN(mounts->minor); i++) {
		AUTO_FD int fd = -1;

		snprintf(path, sizeof(path), "%s/%u/abort", control, mounts->minor[i]);
		if (mounts->minor[i])
			fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd >= 0 && write(fd, "1", 1) != 1)
			return;
	}
}

static inline void rig_watch(struct rig_mounts *mounts)
{
	pid_t pid = getpid(), between = fork();
	char path[40], text[1024];
	bool ends = false;

	if (between) { /* it is nobody's child that a test may wait for */
		waitpid(between, NULL, 0);
		return;
	}
	if (fork())
		_exit(0);
	close_range(0, ~0u, 0);
	setsid();
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	while (!ends) {
		AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
		const char *at;
		char is;
		unsigned flags = 0;

		text[MAX(n, 0)] = '\0';
		at = strrchr(text, ')');
		ends = !at || sscanf(at + 1, " %c %*d %*d %*d %*d %*d %u", &is, &flags) != 2 ||
		       flags & 4; /* PF_EXITING */
		poll(NULL, 0, ends ? 0 : 100);
	}
	rig_free_the_dead(mounts, pid);
	_exit(0);
}

#define rig_run(tests) rig_run_all(tests, ARRAY_LEN(tests))

static inline int rig_run_all(const struct CMUnitTest *tests, size_t count)
{
	if (!rig_may_mount()) {
		printf("1..0 # SKIP only root mounts\n");
		return 0;
	}
	rig_watch(rig_mounts());
	return _cmocka_run_group_tests("tests", tests, count, NULL, NULL);
}

#endif
