/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pretended region for the tests of the mapped near store: it fills a chunk with a known pattern
 * when it faults, in the fault thread, and in the test's thread under the same lock.
 */
#ifndef REMORA_TESTS_MEMORY_FAKE_H
#define REMORA_TESTS_MEMORY_FAKE_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "front/memory.h"

#define CHUNK (64 * KIB)
#define CHUNK_PAGES (CHUNK / PAGE_BYTES)

/* ---- the pretended region ---- */

struct fake {
	struct near *near;
	struct env env;
	uint8_t *data;
	uint64_t size;
	pthread_mutex_t lock; /* around all calls to the near store; recursive */
	uint64_t *local;      /* a bit per chunk */
	size_t chunks;
	atomic_uchar seed;  /* of the far side's content */
	atomic_bool silent; /* faults are not answered */
	atomic_ullong faults, asked;
};

static inline uint8_t far_byte(const struct fake *f, uint64_t at)
{
	return (uint8_t)((at * 0x9e3779b97f4a7c15ULL >> 56) + f->seed) | 1; /* never zero */
}

/* One multiplication per 8 bytes would do, but this is the definition, too. */
static inline void far_read(const struct fake *f, uint64_t off, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = far_byte(f, off + i);
}

static inline struct range chunk_range(const struct fake *f, uint64_t chunk)
{
	return range_cut(range_of(chunk * CHUNK, CHUNK), range_of(0, f->size));
}

static inline void fake_fill(struct fake *f, uint64_t chunk)
{
	uint8_t buf[CHUNK];
	struct range r = chunk_range(f, chunk);

	far_read(f, r.off, buf, r.len);
	pthread_mutex_lock(&f->lock);
	assert_int_equal(f->near->ops->put(f->near, r.off, buf, r.len), 0);
	bitmap_set(f->local, chunk);
	pthread_mutex_unlock(&f->lock);
}

static inline enum region_verdict fake_fault(void *arg, uint64_t off, bool write)
{
	struct fake *f = arg;
	enum region_verdict verdict = REGION_WAITS;

	(void)write;
	f->asked++;
	pthread_mutex_lock(&f->lock);
	if (f->silent) {
		/* nothing */
	} else if (bitmap_get(f->local, off / CHUNK)) {
		assert_int_equal(f->near->ops->open(f->near, range_of(align_down(off, PAGE_BYTES),
								      PAGE_BYTES)),
				 0);
		verdict = REGION_OPENED;
	} else {
		f->faults++;
		fake_fill(f, off / CHUNK);
	}
	pthread_mutex_unlock(&f->lock);
	return verdict;
}

static inline void fake_open_with(struct fake *f, struct memory_options o)
{
	struct err e = { 0 };
	pthread_mutexattr_t recursive;

	*f = (struct fake){ .size = o.size,
			    .chunks = align_up(o.size, CHUNK) / CHUNK + 1,
			    .seed = 7 };
	f->local = calloc(BITMAP_WORDS(f->chunks), sizeof(uint64_t));
	assert_non_null(f->local);
	env_init(&f->env);
	o.env = &f->env;
	pthread_mutexattr_init(&recursive);
	pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&f->lock, &recursive);
	if (memory_open(&f->near, &o, &e))
		fail_msg("%s", e.text);
	f->data = memory_data(f->near);
	assert_int_equal(memory_serve(f->near, fake_fault, f, &e), 0);
}

static inline void fake_open(struct fake *f, uint64_t size)
{
	fake_open_with(f, (struct memory_options){ .size = size });
}

static inline void fake_close(struct fake *f)
{
	memory_serve_end(f->near);
	f->near->ops->close(f->near);
	pthread_mutex_destroy(&f->lock);
	free(f->local);
}

#define near_do(f, op, ...)                                                                        \
	do {                                                                                       \
		pthread_mutex_lock(&(f)->lock);                                                    \
		assert_int_equal(((f)->near->ops->op)((f)->near, __VA_ARGS__), 0);                 \
		pthread_mutex_unlock(&(f)->lock);                                                  \
	} while (0)

static inline void fake_local(struct fake *f, uint64_t chunk)
{
	pthread_mutex_lock(&f->lock);
	bitmap_set(f->local, chunk);
	pthread_mutex_unlock(&f->lock);
}

static inline void near_shut(struct fake *f, uint64_t off, uint64_t len)
{
	near_do(f, shut, range_of(off, len));
}

/* The region's eviction, without its look for writes. */
static inline void fake_drop(struct fake *f, uint64_t chunk)
{
	struct range r = chunk_range(f, chunk);

	pthread_mutex_lock(&f->lock);
	near_shut(f, r.off, r.len);
	assert_int_equal(f->near->ops->drop(f->near, r), 0);
	bitmap_clear(f->local, chunk);
	pthread_mutex_unlock(&f->lock);
}

static inline uint8_t touch(const struct fake *f, uint64_t at)
{
	return *(volatile uint8_t *)(f->data + at);
}

static inline void poke(struct fake *f, uint64_t at, uint8_t v)
{
	*(volatile uint8_t *)(f->data + at) = v;
}

#define assert_far(f, at) assert_int_equal(touch((f), (at)), far_byte((f), (at)))

/* ---- what collect() finds, as text: "3 5-7" ---- */

struct found {
	char text[256];
};

static inline void found_add(void *arg, struct range pages)
{
	struct found *found = arg;
	size_t at = strlen(found->text);
	unsigned long long first = pages.off / PAGE_BYTES, last = range_end(pages) / PAGE_BYTES - 1;

	assert_int_equal(pages.off % PAGE_BYTES, 0);
	if (first == last)
		snprintf(found->text + at, sizeof(found->text) - at, "%s%llu", at ? " " : "",
			 first);
	else
		snprintf(found->text + at, sizeof(found->text) - at, "%s%llu-%llu", at ? " " : "",
			 first, last);
}

static inline void assert_written(struct fake *f, uint64_t page, uint64_t count, const char *want)
{
	struct found found = { "" };

	near_do(f, collect, range_of(page * PAGE_BYTES, count * PAGE_BYTES), found_add, &found);
	assert_string_equal(found.text, want);
}

/* False, with the reason, where userfaultfd cannot be had. */
static inline bool memory_available(void)
{
	struct env env;
	struct memory_options o = { .env = &env, .size = 1 };
	struct near *near;
	struct err e = { 0 };
	int err;

	env_init(&env);
	err = memory_open(&near, &o, &e);
	if (err) {
		bool expected = err == -EPERM || err == -EOPNOTSUPP;

		printf(expected ? "1..0 # SKIP %s\n" : "Bail out! %s\n", e.text);
		if (!expected)
			exit(1);
		return false;
	}
	near->ops->close(near);
	return true;
}

#endif
