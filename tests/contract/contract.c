/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract suite: every row of the table below (a back end, a stage in front of one, a stack)
 * is held to the contract in store/store.h, by the same tests. A new back end or stage gets a row,
 * and nothing else.
 *
 *   contract epoll | io_uring | sim
 *
 * Each test opens its own loop and store. The truth is a model in memory (struct model), which
 * knows what every byte must be; requests in flight at the same time never overlap when one of them
 * changes something, because the contract leaves their order open.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/rng.h"
#include "io/sim.h"
#include "remora/remora.h"
#include "store/spec.h"

#define SIZE (256 * KIB + 1234)
#define SIZE_ALIGNED (256 * KIB)
#define IN_FLIGHT 16u
#define STEPS 300u
#define OP_LEN_MAX (24 * KIB)
#define STALE 0xee /* what a buffer holds before it is read into */

/* of the encrypt stage: 64 hexadecimal digits in the environment */
#define KEY_ENV "REMORA_CONTRACT_KEY"

enum {
	ROW_READ_ONLY = 1u << 0, /* the content is "abcabc..." */
	ROW_KEEPS = 1u << 1,	 /* what was flushed is there when it is opened again */
	ROW_NOT_SIM = 1u << 2,	 /* needs a real kernel */
	ROW_ALIGNED = 1u << 3,	 /* its size is SIZE_ALIGNED */
	ROW_NOISE = 1u << 4,	 /* what was never written is anything */
};

/* %d is the test's own directory, %s the size. */
static const struct row {
	const char *spec;
	unsigned flags;
} rows[] = {
	{ "memory:%s", 0 },
	{ "memory:%s", ROW_ALIGNED },
	{ "pattern:%s", ROW_READ_ONLY },
	{ "file:%d/f?size=%s", ROW_KEEPS },
	{ "file:%d/f?size=%s&direct=1", ROW_KEEPS | ROW_NOT_SIM },
	{ "file:%d/f?size=%s&direct=1", ROW_KEEPS | ROW_NOT_SIM | ROW_ALIGNED },
	{ "directory:%d/dir?size=%s&chunk=4K&create=1", ROW_KEEPS },
	{ "directory:%d/dir?size=%s&chunk=64K&create=1", ROW_KEEPS },
	{ "directory:%d/dir?size=%s&chunk=16K&create=1", ROW_KEEPS | ROW_ALIGNED },
	{ "callbacks:", 0 },
	{ "align|memory:%s", 0 },
	{ "align:block=4K|memory:%s", 0 },
	{ "align:block=64K,len=64K|callbacks:", 0 },
	{ "order|memory:%s", 0 },
	{ "order|file:%d/f?size=%s", ROW_KEEPS },
	{ "retry:for=1s|memory:%s", 0 },
	{ "retry|callbacks:", 0 },
	{ "limit:rate=10G|memory:%s", 0 },
	{ "limit:rate=10G,burst=4K,inflight=64K|file:%d/f?size=%s", ROW_KEEPS },
	{ "trace:file=%d/trace|memory:%s", ROW_NOT_SIM },
	{ "verify:with=(memory:%s)|memory:%s", 0 },
	{ "checksum:file=%d/sums,create=1|memory:%s", 0 },
	{ "checksum:file=%d/sums,create=1,chunk=4K,algorithm=sha256|memory:%s", 0 },
	{ "checksum:file=%d/sums,create=1|directory:%d/dir?size=%s&chunk=16K&create=1", ROW_KEEPS },
	{ "checksum:file=%d/sums,create=1,chunk=16K,algorithm=xxh128|file:%d/f?size=%s", ROW_KEEPS },
	{ "powercut|memory:%s", 0 },
	{ "powercut:keep=64K|file:%d/f?size=%s", ROW_KEEPS },
	{ "retry:delay=1ms,max=2ms|fault:errno=ETIMEDOUT,seed=7,error=50000,short=50000|memory:%s", 0 },
	{ "retry:delay=1ms,max=2ms|fault:errno=ETIMEDOUT,error=20000|file:%d/f?size=%s&direct=1", ROW_NOT_SIM },
	{ "encrypt:env=" KEY_ENV "|memory:%s", ROW_NOISE },
	{ "encrypt:env=" KEY_ENV "|memory:%s", ROW_NOISE | ROW_ALIGNED },
	{ "encrypt:env=" KEY_ENV ",meta=%d/meta,new=1|file:%d/f?size=%s", ROW_NOISE | ROW_KEEPS | ROW_NOT_SIM },
	{ "encrypt:env=" KEY_ENV ",mode=gcm,chunk=4K,meta=%d/meta,new=1|file:%d/f?size=%s", ROW_KEEPS | ROW_NOT_SIM },
	{ "encrypt:env=" KEY_ENV ",mode=gcm,meta=%d/meta,new=1,sync=0|callbacks:", ROW_NOT_SIM },
	{ "order|retry|encrypt:env=" KEY_ENV "|limit:rate=10G|file:%d/f?size=%s&direct=1",
	  ROW_NOISE | ROW_NOT_SIM },
	{ "align|order|retry|limit:rate=10G|memory:%s", 0 },
	{ "retry|align:block=512|order|file:%d/f?size=%s&direct=1", ROW_KEEPS | ROW_NOT_SIM },
};

/* For random stacks: stages that change nothing. */
static const char *const transparent[] = {
	"align", "align:block=4K", "align:block=16K,len=32K", "order", "retry", "limit:rate=10G", "limit:inflight=16K",
	"powercut:keep=96K",
	"verify:with=(memory:%s)", "encrypt:env=REMORA_CONTRACT_KEY",
};

/* ---- the world of one test ---- */

struct test_case {
	const struct row *row;
	enum loop_engine engine;
	void (*run)(struct test_case *c);
	char spec[512]; /* of a random stack */
	char name[640];
	const char *dir; /* for the row's files; removed after the run */
};

struct world {
	struct test_case *c;
	struct sim *sim;
	struct loop *loop;
	struct store *store;
	const char *dir;
	uint64_t size;
	/* the callbacks' resource */
	uint8_t *user;
	pthread_mutex_t user_lock;
	struct remora_callbacks fn;
};

static int user_read(void *arg, uint64_t off, void *buf, size_t len)
{
	struct world *w = arg;

	pthread_mutex_lock(&w->user_lock);
	memcpy(buf, w->user + off, len);
	pthread_mutex_unlock(&w->user_lock);
	return 0;
}

static int user_write(void *arg, uint64_t off, const void *buf, size_t len)
{
	struct world *w = arg;

	pthread_mutex_lock(&w->user_lock);
	memcpy(w->user + off, buf, len);
	pthread_mutex_unlock(&w->user_lock);
	return 0;
}

static int user_flush(void *arg)
{
	(void)arg;
	return 0;
}

static int user_size(void *arg, uint64_t *ret_bytes)
{
	*ret_bytes = ((struct world *)arg)->size;
	return 0;
}

static void spec_expand(const struct world *w, const char *from, char *to, size_t max)
{
	size_t n = 0;

	for (; *from && n + 80 < max; from++) {
		if (from[0] == '%' && from[1] == 'd')
			n += (size_t)snprintf(to + n, max - n, "%s", w->dir), from++;
		else if (from[0] == '%' && from[1] == 's')
			n += (size_t)snprintf(to + n, max - n, "%llu", (unsigned long long)w->size), from++;
		else
			to[n++] = *from;
	}
	to[n] = '\0';
}

static void store_reopen(struct world *w, bool read_only)
{
	struct store_open how = { .loop = w->loop, .read_only = read_only, .deadline_ns = NEVER_NS,
				  .callbacks = &w->fn, .callbacks_arg = w };
	char spec[1024], *made;
	struct err e;
	int r;

	spec_expand(w, w->c->spec[0] ? w->c->spec : w->c->row->spec, spec, sizeof(spec));
	made = read_only ? strstr(spec, ",new=1") : NULL; /* the second time it is there */
	if (made)
		memmove(made, made + 6, strlen(made + 6) + 1);
	r = spec_open(&w->store, spec, &how, &e);
	if (r)
		fail_msg("%s: %s", spec, e.text);
	assert_int_equal(w->store->info.size, w->size);
}

/* Of the directory back end: it has no directories inside. */
static void directory_remove(const char *dir)
{
	struct dirent *entry;
	char path[128];
	DIR *d;

	snprintf(path, sizeof(path), "%s/dir", dir);
	d = opendir(path);
	while (d && (entry = readdir(d)))
		unlinkat(dirfd(d), entry->d_name, 0);
	if (d)
		closedir(d);
	rmdir(path);
}

static void files_remove(const char *dir)
{
	static const char *const files[] = { "f", "meta", "sums", "trace" };
	char path[128];

	for (size_t i = 0; i < ARRAY_LEN(files); i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
		unlink(path);
	}
	directory_remove(dir);
}

static void world_open(struct world *w, struct test_case *c)
{
	struct loop_options options = { .engine = c->engine };
	struct err e;

	*w = (struct world){ .c = c, .dir = c->dir };
	w->size = c->row->flags & ROW_ALIGNED ? SIZE_ALIGNED : SIZE;
	if (c->engine == LOOP_SIM) {
		assert_int_equal(sim_open(&w->sim, 1), 0);
		options.sim = w->sim;
	}
	if (loop_open(&w->loop, &options, &e))
		fail_msg("%s", e.text);
	w->user = calloc(1, w->size);
	assert_non_null(w->user);
	pthread_mutex_init(&w->user_lock, NULL);
	files_remove(w->dir); /* of the test before */
	w->fn = (struct remora_callbacks){ user_read, user_write, user_flush, user_size, 4 };
	store_reopen(w, false);
	if (c->row->flags & ROW_NOISE)
		assert_int_equal(store_zero(w->store, 0, w->size), 0);
}

static void world_close(struct world *w)
{
	store_close_wait(w->store);
	loop_close(w->loop);
	sim_close(w->sim);
	free(w->user);
	pthread_mutex_destroy(&w->user_lock);
}

static bool is_read_only(const struct world *w)
{
	return w->c->row->flags & ROW_READ_ONLY;
}

/* What a byte holds that was never written. */
static uint8_t first_content(const struct world *w, uint64_t off)
{
	return is_read_only(w) ? (uint8_t) "abc"[off % 3] : 0;
}

static void expect_bytes(const uint8_t *have, const uint8_t *want, uint64_t off, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (have[i] != want[i])
			fail_msg("byte %llu is %02x and must be %02x", (unsigned long long)(off + i), have[i], want[i]);
}

/* ---- requests in flight, against the model ---- */

struct slot {
	struct req req;
	struct model *m;
	bool busy;
	unsigned done;
	int err;
	struct extents extents;
	struct extent extent[8];
	uint8_t *buf; /* OP_LEN_MAX bytes and some more, so that it can be unaligned */
};

struct model {
	struct world *w;
	struct rng rng;
	uint8_t *truth;
	struct slot slot[IN_FLIGHT];
	unsigned busy;
	bool any_idle;
};

static void slot_done(struct req *req, int err)
{
	struct slot *s = CONTAINER_OF(req, struct slot, req);

	s->done++;
	s->err = err;
	s->m->any_idle = true;
}

/* Holds the answer against the model. */
static void slot_check(struct slot *s)
{
	struct model *m = s->m;
	struct range r = s->req.range;
	uint64_t at = r.off;

	assert_int_equal(s->done, 1);
	if (s->err)
		fail_msg("%s of %llu+%llu: %s", req_op_name(s->req.op), (unsigned long long)r.off,
			 (unsigned long long)r.len, strerror(-s->err));
	switch (s->req.op) {
	case REQ_READ:
		expect_bytes(s->req.data.base, m->truth + r.off, r.off, r.len);
		break;
	case REQ_WRITE:
		memcpy(m->truth + r.off, s->req.data.base, r.len);
		break;
	case REQ_ZERO:
		memset(m->truth + r.off, 0, r.len);
		break;
	case REQ_EXTENTS:
		assert_in_range(s->extents.count, 1, s->extents.max);
		for (size_t i = 0; i < s->extents.count; i++) {
			assert_true(s->extent[i].len > 0);
			for (uint64_t b = at; s->extent[i].zero && b < at + s->extent[i].len; b++)
				if (m->truth[b])
					fail_msg("byte %llu is said to be zero", (unsigned long long)b);
			at += s->extent[i].len;
		}
		assert_true(at <= range_end(r));
		break;
	default:
		break;
	}
}

static void model_init(struct model *m, struct world *w, uint64_t seed)
{
	*m = (struct model){ .w = w };
	rng_init(&m->rng, seed);
	m->truth = malloc(w->size);
	assert_non_null(m->truth);
	for (uint64_t i = 0; i < w->size; i++)
		m->truth[i] = first_content(w, i);
	for (size_t i = 0; i < IN_FLIGHT; i++) {
		m->slot[i].m = m;
		m->slot[i].buf = aligned_alloc(4096, 32 * KIB);
		assert_non_null(m->slot[i].buf);
	}
}

static void model_done(struct model *m)
{
	for (size_t i = 0; i < IN_FLIGHT; i++)
		free(m->slot[i].buf);
	free(m->truth);
}

static void model_wait(struct model *m, unsigned busy_max)
{
	while (m->busy > busy_max) {
		m->any_idle = false;
		for (size_t i = 0; i < IN_FLIGHT; i++)
			m->any_idle |= m->slot[i].busy && m->slot[i].done;
		assert_int_equal(loop_run_until(m->w->loop, &m->any_idle, NEVER_NS), 0);
		for (size_t i = 0; i < IN_FLIGHT; i++) {
			struct slot *s = &m->slot[i];

			if (!s->busy || !s->done)
				continue;
			slot_check(s);
			s->busy = false;
			m->busy--;
		}
	}
}

static bool model_conflict(struct model *m, enum req_op op, struct range r)
{
	for (size_t i = 0; i < IN_FLIGHT; i++) {
		const struct slot *s = &m->slot[i];

		if (s->busy && range_overlaps(s->req.range, r) &&
		    (req_op_changes(op) || req_op_changes(s->req.op)))
			return true;
	}
	return false;
}

static struct range model_range(struct model *m)
{
	uint64_t size = m->w->size, align = m->w->store->info.align;
	uint64_t off = rng_below(&m->rng, size), len = 1 + rng_below(&m->rng, OP_LEN_MAX);
	struct range r;

	/* edges of blocks and the end are where the mistakes are */
	if (rng_chance(&m->rng, 300000)) {
		off = align_down(off, 4096);
		len = rng_chance(&m->rng, 500000) ? align_up(len, 4096) : size;
	}
	len = MIN(MIN(len, size - off), OP_LEN_MAX);
	r = range_align_out(range_of(off, len), align);
	r.len = MIN(MIN(r.len, align_down(OP_LEN_MAX, align)), size - r.off);
	return r;
}

static void model_submit(struct model *m, enum req_op op, uint32_t flags, struct range r)
{
	struct slot *s = m->slot;

	while (s->busy)
		s++;
	s->busy = true;
	s->done = 0;
	m->busy++;
	s->extents = (struct extents){ .at = s->extent };
	s->extents.max = 1 + rng_below(&m->rng, ARRAY_LEN(s->extent));
	s->req = (struct req){ .op = op, .flags = flags, .range = r, .extents = &s->extents,
			       .done = slot_done };
	s->req.data = (struct iobuf){ s->buf + rng_below(&m->rng, 4) * 3, r.len };
	if (op == REQ_READ)
		memset(s->req.data.base, STALE, r.len);
	else if (op == REQ_WRITE)
		rng_fill(&m->rng, s->req.data.base, r.len);
	req_submit(m->w->store, &s->req);
	assert_int_equal(s->done, 0); /* never before req_submit() has returned */
}

/* TRIM leaves either what was there or zeros: look, then believe. */
static void model_trim(struct model *m, struct range r)
{
	uint8_t *now = malloc(r.len);
	bool kept = true;

	model_wait(m, 0);
	assert_non_null(now);
	assert_int_equal(store_trim(m->w->store, r.off, r.len), 0);
	memset(now, STALE, r.len);
	assert_int_equal(store_read(m->w->store, r.off, now, r.len), 0);
	for (size_t i = 0; i < r.len; i++)
		kept = kept && (now[i] == m->truth[r.off + i] || !now[i]);
	assert_true(kept);
	memcpy(m->truth + r.off, now, r.len);
	free(now);
}

static void model_step(struct model *m)
{
	static const enum req_op ops[] = {
		REQ_READ,  REQ_READ, REQ_READ,	  REQ_WRITE,	REQ_WRITE, REQ_WRITE,
		REQ_FLUSH, REQ_ZERO, REQ_EXTENTS, REQ_PREFETCH, REQ_TRIM,
	};
	enum req_op op = ops[rng_below(&m->rng, ARRAY_LEN(ops))];
	uint32_t flags = (uint32_t)rng_below(&m->rng, 3) << 1; /* none, urgent, background */
	struct range r = model_range(m);

	if (req_op_changes(op) && is_read_only(m->w))
		op = REQ_READ;
	if (op == REQ_TRIM) {
		model_trim(m, r);
		return;
	}
	if ((op == REQ_WRITE || op == REQ_ZERO) && rng_chance(&m->rng, 200000))
		flags |= REQ_FUA;
	if (op == REQ_FLUSH)
		r = range_of(0, 0);
	while (model_conflict(m, op, r))
		model_wait(m, m->busy - 1);
	model_submit(m, op, flags, r);
	model_wait(m, (unsigned)rng_below(&m->rng, IN_FLIGHT));
}

static void model_compare_all(struct model *m)
{
	uint8_t *all = malloc(m->w->size);

	model_wait(m, 0);
	assert_non_null(all);
	memset(all, STALE, m->w->size);
	assert_int_equal(store_read(m->w->store, 0, all, m->w->size), 0);
	expect_bytes(all, m->truth, 0, m->w->size);
	free(all);
}

/* ---- the tests ---- */

static void reads_return_what_was_written(struct test_case *c)
{
	for (uint64_t seed = 1; seed <= 2; seed++) {
		struct world w;
		struct model m;

		world_open(&w, c);
		model_init(&m, &w, seed);
		for (unsigned i = 0; i < STEPS; i++)
			model_step(&m);
		model_compare_all(&m);
		model_done(&m);
		world_close(&w);
	}
}

static void absent_data_is_zeros_and_never_bytes_of_an_earlier_request(struct test_case *c)
{
	struct world w;
	struct model m;

	world_open(&w, c);
	model_init(&m, &w, 3);
	model_compare_all(&m);
	if (!is_read_only(&w)) {
		uint64_t block = 32 * KIB;

		/* Fill, so that every buffer inside has seen other bytes, then take parts away. */
		for (uint64_t off = 0; off < w.size; off += 16 * KIB) {
			model_submit(&m, REQ_WRITE, 0, range_of(off, MIN(16 * KIB, w.size - off)));
			model_wait(&m, IN_FLIGHT - 1);
		}
		model_wait(&m, 0);
		assert_int_equal(store_zero(w.store, block, block), 0);
		memset(m.truth + block, 0, block);
		assert_int_equal(store_zero(w.store, 5 * block, w.size - 5 * block), 0);
		memset(m.truth + 5 * block, 0, w.size - 5 * block);
		model_compare_all(&m);
	}
	model_done(&m);
	world_close(&w);
}

static void edges_are_answered_and_what_lies_outside_is_refused(struct test_case *c)
{
	struct world w;
	uint8_t buf[PAGE_BYTES] = { 0 };
	uint64_t align, last;
	struct extent x[4];
	struct extents extents = { .at = x, .max = ARRAY_LEN(x) };

	world_open(&w, c);
	align = w.store->info.align;
	last = (w.size - 1) / align * align;
	assert_int_equal(store_read(w.store, 0, buf, 0), 0);
	assert_int_equal(store_read(w.store, w.size, buf, 0), 0);
	assert_int_equal(store_read(w.store, w.size, buf, 1), -EINVAL);
	assert_int_equal(store_read(w.store, w.size - 1, buf, 2), -EINVAL);
	assert_int_equal(store_read(w.store, UINT64_MAX, buf, 1), -EINVAL);
	assert_int_equal(store_read(w.store, UINT64_MAX - 1, buf, 4), -EINVAL);
	assert_int_equal(store_zero(w.store, 0, UINT64_MAX), is_read_only(&w) ? -EROFS : -EINVAL);
	assert_int_equal(store_extents(w.store, w.size + 1, 0, &extents), -EINVAL);
	assert_true(w.size - last <= sizeof(buf));
	assert_int_equal(store_read(w.store, last, buf, w.size - last), 0);
	for (uint64_t i = last; i < w.size; i++)
		assert_int_equal(buf[i - last], first_content(&w, i));
	assert_int_equal(store_extents(w.store, last, w.size - last, &extents), 0);
	assert_int_equal(extents.count, 1);
	assert_int_equal(x[0].len, w.size - last);
	if (is_read_only(&w)) {
		assert_int_equal(store_write(w.store, 0, buf, 1, 0), -EROFS);
		assert_int_equal(store_trim(w.store, 0, align), -EROFS);
	} else {
		memset(buf, 'z', sizeof(buf));
		assert_int_equal(store_write(w.store, w.size, buf, 1, 0), -EINVAL);
		assert_int_equal(store_write(w.store, last, buf, w.size - last, REQ_FUA), 0);
		memset(buf, STALE, sizeof(buf));
		assert_int_equal(store_read(w.store, last, buf, w.size - last), 0);
		for (uint64_t i = last; i < w.size; i++)
			assert_int_equal(buf[i - last], 'z');
		assert_int_equal(store_zero(w.store, last, w.size - last), 0);
		assert_int_equal(store_read(w.store, last, buf, w.size - last), 0);
		assert_int_equal(buf[w.size - last - 1], 0);
	}
	assert_int_equal(store_flush(w.store), 0);
	world_close(&w);
}

static void extents_cover_the_range_and_zero_ones_read_as_zeros(struct test_case *c)
{
	struct world w;
	struct extent x[16];
	struct extents extents = { .at = x, .max = ARRAY_LEN(x) };
	uint8_t *buf;
	uint64_t at = 0;

	world_open(&w, c);
	buf = malloc(w.size);
	assert_non_null(buf);
	memset(buf, 'x', w.size);
	if (!is_read_only(&w))
		assert_int_equal(store_write(w.store, 128 * KIB, buf, 4096, 0), 0);
	while (at < w.size) {
		assert_int_equal(store_extents(w.store, at, w.size - at, &extents), 0);
		assert_in_range(extents.count, 1, extents.max);
		for (size_t i = 0; i < extents.count; i++) {
			assert_true(x[i].len && x[i].len <= w.size - at);
			memset(buf, STALE, x[i].len);
			if (x[i].zero)
				assert_int_equal(store_read(w.store, at, buf, x[i].len), 0);
			for (uint64_t b = 0; x[i].zero && b < x[i].len; b++)
				assert_int_equal(buf[b], 0);
			at += x[i].len;
		}
	}
	assert_int_equal(at, w.size);
	free(buf);
	world_close(&w);
}

#define MANY 200u

struct many {
	struct world w;
	struct {
		struct req req;
		struct many *m;
		unsigned done;
		int err;
	} r[MANY];
	unsigned pending;
	bool all, closed;
	uint8_t *buf;
};

static void many_done(struct req *req, int err)
{
	struct many *m = req->user;
	size_t i = (size_t)((char *)req - (char *)m->r) / sizeof(m->r[0]);

	m->r[i].done++;
	m->r[i].err = err;
	assert_false(m->closed);
	m->all = !--m->pending;
}

static void many_open(struct many *m, struct test_case *c)
{
	uint64_t piece = 4096;

	memset(m, 0, sizeof(*m));
	world_open(&m->w, c);
	m->buf = malloc(MANY * piece);
	assert_non_null(m->buf);
	for (size_t i = 0; i < MANY; i++) {
		struct req *req = &m->r[i].req;
		uint64_t off = (i * piece) % SIZE_ALIGNED;

		*req = (struct req){ .op = i % 3 || is_read_only(&m->w) ? REQ_READ : REQ_WRITE,
				     .flags = i % 7 ? 0 : REQ_URGENT,
				     .range = range_of(off, piece),
				     .done = many_done,
				     .user = m,
				     .data = { m->buf + i * piece, piece } };
		if (i % 11 == 0)
			req->op = REQ_FLUSH;
		memset(req->data.base, 0, piece);
		m->pending++;
	}
}

static void many_free(struct many *m)
{
	m->w.store = NULL;
	world_close(&m->w);
	free(m->buf);
	free(m);
}

static void many_submit(struct many *m)
{
	for (size_t i = 0; i < MANY; i++)
		req_submit(m->w.store, &m->r[i].req);
	assert_int_equal(m->pending, MANY);
	assert_int_equal(m->w.store->pending, MANY);
}

static void many_closed(void *arg)
{
	struct many *m = arg;

	assert_int_equal(m->pending, 0);
	m->closed = true;
}

static void every_request_completes_once_on_abort(struct test_case *c)
{
	struct many *m = malloc(sizeof(*m));

	assert_non_null(m);
	many_open(m, c);
	many_submit(m);
	store_abort(m->w.store);
	assert_int_equal(loop_run_until(m->w.loop, &m->all, NEVER_NS), 0);
	for (size_t i = 0; i < MANY; i++) {
		assert_int_equal(m->r[i].done, 1);
		/* whose errors are as good a reason */
		if (m->r[i].err && !strstr(c->row->spec, "fault"))
			assert_int_equal(m->r[i].err, -ESHUTDOWN);
	}
	/* And after it nothing is carried out any more. */
	assert_int_equal(store_read(m->w.store, 0, m->buf, 4096), -ESHUTDOWN);
	store_close(m->w.store, many_closed, m);
	assert_int_equal(loop_run_until(m->w.loop, &m->closed, NEVER_NS), 0);
	many_free(m);
}

static void close_waits_for_every_request(struct test_case *c)
{
	struct many *m = malloc(sizeof(*m));

	assert_non_null(m);
	many_open(m, c);
	many_submit(m);
	store_close(m->w.store, many_closed, m);
	assert_false(m->closed);
	assert_int_equal(loop_run_until(m->w.loop, &m->closed, NEVER_NS), 0);
	for (size_t i = 0; i < MANY; i++) {
		assert_int_equal(m->r[i].done, 1);
		assert_int_equal(m->r[i].err, 0);
	}
	many_free(m);
}

static void what_was_flushed_is_there_when_opened_again(struct test_case *c)
{
	struct world w;
	uint8_t buf[PAGE_BYTES], want[PAGE_BYTES];
	uint64_t identity;

	world_open(&w, c);
	identity = w.store->info.identity;
	if (c->row->flags & ROW_KEEPS) {
		memset(want, 'k', sizeof(want));
		assert_int_equal(store_write(w.store, 8 * KIB, want, sizeof(want), 0), 0);
		assert_int_equal(store_flush(w.store), 0);
	}
	store_close_wait(w.store);
	store_reopen(&w, true);
	assert_true(w.store->info.read_only);
	assert_int_equal(store_write(w.store, 0, want, sizeof(want), 0), -EROFS);
	assert_int_equal(store_flush(w.store), 0);
	assert_int_equal(w.store->info.identity, identity);
	memset(buf, STALE, sizeof(buf));
	assert_int_equal(store_read(w.store, 8 * KIB, buf, sizeof(buf)), 0);
	for (size_t i = 0; i < sizeof(buf); i++)
		if (c->row->flags & ROW_KEEPS || !(c->row->flags & ROW_NOISE))
			assert_int_equal(buf[i], c->row->flags & ROW_KEEPS ? 'k' :
					 first_content(&w, 8 * KIB + i));
	world_close(&w);
}

/* ThreadSanitizer leaves a program less than 2 TiB of addresses, in pieces. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ENDLESS (256 * GIB)
#endif
#elif defined(__SANITIZE_THREAD__)
#define ENDLESS (256 * GIB)
#endif
#ifndef ENDLESS
#define ENDLESS TIB
#endif

static void memory_without_end_costs_nothing_until_it_is_written(struct test_case *c)
{
	char spec[64];
	struct loop_options options = { .engine = c->engine };
	struct extent x[4];
	struct extents extents = { .at = x, .max = ARRAY_LEN(x) };
	uint8_t byte = 'e';
	struct store_open how;
	struct store *store;
	struct loop *loop;
	struct sim *sim = NULL;
	struct err e;

	if (c->engine == LOOP_SIM) {
		assert_int_equal(sim_open(&sim, 1), 0);
		options.sim = sim;
	}
	assert_int_equal(loop_open(&loop, &options, &e), 0);
	how = (struct store_open){ .loop = loop, .deadline_ns = NEVER_NS };
	snprintf(spec, sizeof(spec), "memory:%llu", ENDLESS);
	assert_int_equal(spec_open(&store, spec, &how, &e), 0);
	assert_int_equal(store_write(store, ENDLESS - 1, &byte, 1, 0), 0);
	byte = 0;
	assert_int_equal(store_read(store, ENDLESS - 1, &byte, 1), 0);
	assert_int_equal(byte, 'e');
	assert_int_equal(store_extents(store, 0, ENDLESS, &extents), 0);
	assert_int_equal(extents.count, 2);
	assert_true(x[0].zero && !x[1].zero);
	assert_int_equal(store_zero(store, 0, ENDLESS), 0);
	assert_int_equal(store_extents(store, 0, ENDLESS, &extents), 0);
	assert_int_equal(extents.count, 1);
	assert_true(x[0].zero);
	store_close_wait(store);
	loop_close(loop);
	sim_close(sim);
}

/* ---- cases ---- */

static void run(void **state)
{
	struct test_case *c = *state;

	c->run(c);
}

static const struct {
	const char *name;
	void (*run)(struct test_case *c);
} tests[] = {
#define TEST(f) { #f, f }
	TEST(reads_return_what_was_written),
	TEST(absent_data_is_zeros_and_never_bytes_of_an_earlier_request),
	TEST(edges_are_answered_and_what_lies_outside_is_refused),
	TEST(extents_cover_the_range_and_zero_ones_read_as_zeros),
	TEST(every_request_completes_once_on_abort),
	TEST(close_waits_for_every_request),
	TEST(what_was_flushed_is_there_when_opened_again),
};

#define STACKS 12u
#define CASES_MAX (ARRAY_LEN(rows) * ARRAY_LEN(tests) + STACKS + 1)

struct cases {
	char dir[64];
	struct test_case at[CASES_MAX];
	struct CMUnitTest unit[CASES_MAX];
	size_t count;
};

static struct test_case *case_add(struct cases *all, enum loop_engine engine, const struct row *row,
				  void (*fn)(struct test_case *c), const char *name)
{
	struct test_case *c = &all->at[all->count];

	*c = (struct test_case){ .row = row, .engine = engine, .run = fn, .dir = all->dir };
	snprintf(c->name, sizeof(c->name), "%s%s: %s", row->spec, row->flags & ROW_ALIGNED ?
		 " (whole blocks)" : "", name);
	all->unit[all->count++] = (struct CMUnitTest){ .name = c->name, .test_func = run,
						       .initial_state = c };
	return c;
}

/* One to five stages in front of a back end, by seed. */
static void stack_add(struct cases *all, enum loop_engine engine, uint64_t seed)
{
	static const struct row bases[] = { { "memory:%s", ROW_NOISE }, { "callbacks:", ROW_NOISE },
					    { "file:%d/f?size=%s", ROW_KEEPS | ROW_NOISE } };
	struct rng rng;
	const struct row *row;
	struct test_case *c;
	size_t n = 0;

	rng_init(&rng, seed);
	row = &bases[rng_below(&rng, ARRAY_LEN(bases))];
	c = case_add(all, engine, row, reads_return_what_was_written, "");
	for (uint64_t left = 1 + rng_below(&rng, 5); left; left--)
		n += (size_t)snprintf(c->spec + n, sizeof(c->spec) - n, "%s|",
				      transparent[rng_below(&rng, ARRAY_LEN(transparent))]);
	snprintf(c->spec + n, sizeof(c->spec) - n, "%s", row->spec);
	snprintf(c->name, sizeof(c->name), "%s: a random stack returns what was written", c->spec);
}

int main(int argc, char **argv)
{
	static struct cases all;
	static const struct row endless = { "memory:", 0 };
	const char *name = argc > 1 ? argv[1] : "epoll";
	enum loop_engine engine = !strcmp(name, "sim")	      ? LOOP_SIM
				  : !strcmp(name, "io_uring") ? LOOP_URING
							      : LOOP_EPOLL;
	const char *tmp = getenv("TMPDIR");
	int failed;

	/* A disk, where there is a choice: not every tmpfs has O_DIRECT. */
	snprintf(all.dir, sizeof(all.dir), "%.40s/contract-XXXXXX", tmp && strlen(tmp) <= 40 ? tmp : "/var/tmp");
	if (!mkdtemp(all.dir)) {
		perror(all.dir);
		return 1;
	}
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		for (size_t t = 0; t < ARRAY_LEN(tests); t++)
			if (engine != LOOP_SIM || !(rows[i].flags & ROW_NOT_SIM))
				case_add(&all, engine, &rows[i], tests[t].run, tests[t].name);
	for (uint64_t seed = 1; seed <= STACKS; seed++)
		stack_add(&all, engine, seed);
	case_add(&all, engine, &endless, memory_without_end_costs_nothing_until_it_is_written,
		 "memory_without_end_costs_nothing_until_it_is_written");
	setenv(KEY_ENV, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", 1);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	failed = _cmocka_run_group_tests(name, all.unit, all.count, NULL, NULL);
	files_remove(all.dir);
	rmdir(all.dir);
	return failed;
}
