/* SPDX-License-Identifier: Apache-2.0 */
/* A far side made of callbacks for the tests of the public API: it counts what it is asked for, and
 * fails when told to. */
#ifndef REMORA_TESTS_API_FAR_H
#define REMORA_TESTS_API_FAR_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/range.h"
#include "remora/remora.h"

/* ---- the far side ---- */

struct far {
	uint64_t size;
	uint8_t *data; /* NULL: computed, for what does not fit into memory; read-only */
	atomic_ullong read_bytes, written_bytes, flushes;
	atomic_int read_error, write_error, flush_error;
	atomic_bool hang;     /* reads wait */
	pthread_mutex_t lock; /* data, too */
	pthread_cond_t go_on;
	struct remora_callbacks fn;
	struct remora_options options;
};

static inline uint8_t computed(uint64_t at)
{
	return (uint8_t)(at * 0x9e3779b97f4a7c15ULL >> 56) | 1; /* never zero */
}

static inline int far_read(void *arg, uint64_t off, void *buf, size_t len)
{
	struct far *far = arg;

	pthread_mutex_lock(&far->lock);
	while (far->hang)
		pthread_cond_wait(&far->go_on, &far->lock);
	pthread_mutex_unlock(&far->lock);
	if (far->read_error)
		return far->read_error;
	far->read_bytes += len;
	if (far->data) {
		pthread_mutex_lock(&far->lock);
		memcpy(buf, far->data + off, len);
		pthread_mutex_unlock(&far->lock);
	}
	for (size_t i = 0; !far->data && i < len; i++)
		((uint8_t *)buf)[i] = computed(off + i);
	return 0;
}

static inline int far_write(void *arg, uint64_t off, const void *buf, size_t len)
{
	struct far *far = arg;

	if (far->write_error)
		return far->write_error;
	far->written_bytes += len;
	pthread_mutex_lock(&far->lock);
	memcpy(far->data + off, buf, len);
	pthread_mutex_unlock(&far->lock);
	return 0;
}

static inline int far_flush(void *arg)
{
	struct far *far = arg;

	if (far->flush_error)
		return far->flush_error;
	far->flushes++;
	return 0;
}

static inline int far_size(void *arg, uint64_t *ret)
{
	*ret = ((struct far *)arg)->size;
	return 0;
}

static inline void far_init(struct far *far, uint64_t size, bool in_memory)
{
	memset(far, 0, sizeof(*far));
	far->size = size;
	pthread_mutex_init(&far->lock, NULL);
	pthread_cond_init(&far->go_on, NULL);
	far->fn = (struct remora_callbacks){ .read = far_read, .size = far_size, .threads = 3 };
	if (in_memory) {
		far->data = malloc(size + 1);
		assert_non_null(far->data);
		for (uint64_t i = 0; i < size; i++)
			far->data[i] = computed(i);
		far->fn.write = far_write;
		far->fn.flush = far_flush;
	}
	far->options = (struct remora_options){ .struct_size = sizeof(far->options),
						.read_only = !in_memory,
						.callbacks = &far->fn,
						.callbacks_arg = far,
						.readahead_max = 1 };
}

static inline void far_done(struct far *far)
{
	free(far->data);
	pthread_cond_destroy(&far->go_on);
	pthread_mutex_destroy(&far->lock);
}

static inline struct remora *far_open(struct far *far)
{
	struct remora_error e;
	struct remora *r;

	if (remora_open(&r, "callbacks:", &far->options, &e))
		fail_msg("%s", e.text);
	assert_non_null(r);
	assert_int_equal(e.code, 0);
	assert_int_equal(remora_size(r), far->size);
	return r;
}

static inline uint8_t touch(const struct remora *r, uint64_t at)
{
	return ((volatile uint8_t *)remora_data(r))[at];
}

static inline void poke(const struct remora *r, uint64_t at, uint8_t v)
{
	((volatile uint8_t *)remora_data(r))[at] = v;
}

static inline void assert_computed(const struct remora *r, uint64_t off, uint64_t len)
{
	const uint8_t *data = remora_data(r);

	for (uint64_t at = off; at < off + len; at++)
		if (data[at] != computed(at))
			fail_msg("byte %llu is %d", (unsigned long long)at, data[at]);
}

static inline struct remora_status status_of(struct remora *r)
{
	struct remora_status s;

	remora_status(r, &s);
	return s;
}

/* ---- signals ---- */

static sigjmp_buf fault_jump;
static volatile sig_atomic_t fault_signal;

static inline void fault_caught(int sig)
{
	fault_signal = sig;
	siglongjmp(fault_jump, 1);
}

static inline int access_signal(struct remora *r, uint64_t at, bool write)
{
	struct sigaction sa = { .sa_handler = fault_caught }, bus, segv;

	sigaction(SIGBUS, &sa, &bus);
	sigaction(SIGSEGV, &sa, &segv);
	fault_signal = 0;
	if (sigsetjmp(fault_jump, 1) == 0) {
		if (write)
			poke(r, at, 1);
		else if (touch(r, at) != computed(at))
			fault_signal = -1;
	}
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGSEGV, &segv, NULL);
	return fault_signal;
}

/* False, with the reason, where userfaultfd cannot be had. */
static inline bool api_available(void)
{
	struct remora_error e;
	struct remora *r;
	struct remora_options o = { .engine = "userfaultfd" };
	int err = remora_open(&r, "memory:4K", &o, &e);

	if (err) {
		bool expected = err == -EPERM || err == -EOPNOTSUPP;

		printf(expected ? "1..0 # SKIP %s\n" : "Bail out! %s\n", e.text);
		if (!expected)
			exit(1);
		return false;
	}
	remora_discard(r);
	return true;
}

#endif
