/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public API against a far side made of callbacks, which counts what it is asked for and fails when told to. Everything
 * from the program's pointer to the far side is the real thing; only the network is missing (tests/integration has it).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/range.h"
#include "base/rng.h"
#include "remora/remora.h"

/* ---- the far side ---- */

struct far {
	uint64_t size;
	uint8_t *data; /* NULL: computed, for what does not fit into memory; read-only */
	atomic_ullong read_bytes, written_bytes, flushes;
	atomic_int read_error, write_error, flush_error;
	atomic_bool hang; /* reads wait */
	pthread_mutex_t lock; /* data, too */
	pthread_cond_t go_on;
	struct remora_callbacks fn;
	struct remora_options options;
};

static uint8_t computed(uint64_t at)
{
	return (uint8_t)(at * 0x9e3779b97f4a7c15ULL >> 56) | 1; /* never zero */
}

static int far_read(void *arg, uint64_t off, void *buf, size_t len)
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

static int far_write(void *arg, uint64_t off, const void *buf, size_t len)
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

static int far_flush(void *arg)
{
	struct far *far = arg;

	if (far->flush_error)
		return far->flush_error;
	far->flushes++;
	return 0;
}

static int far_size(void *arg, uint64_t *ret)
{
	*ret = ((struct far *)arg)->size;
	return 0;
}

static void far_init(struct far *far, uint64_t size, bool in_memory)
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

static void far_done(struct far *far)
{
	free(far->data);
	pthread_cond_destroy(&far->go_on);
	pthread_mutex_destroy(&far->lock);
}

static struct remora *far_open(struct far *far)
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

static uint8_t touch(const struct remora *r, uint64_t at)
{
	return ((volatile uint8_t *)remora_data(r))[at];
}

static void poke(const struct remora *r, uint64_t at, uint8_t v)
{
	((volatile uint8_t *)remora_data(r))[at] = v;
}

static void assert_computed(const struct remora *r, uint64_t off, uint64_t len)
{
	const uint8_t *data = remora_data(r);

	for (uint64_t at = off; at < off + len; at++)
		if (data[at] != computed(at))
			fail_msg("byte %llu is %d", (unsigned long long)at, data[at]);
}

static struct remora_status status_of(struct remora *r)
{
	struct remora_status s;

	remora_status(r, &s);
	return s;
}

/* ---- reading and writing ---- */

static void test_reads_pull_and_writes_reach_the_far_side_on_flush(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, 3 * MIB + 5, true);
	r = far_open(&far);
	assert_computed(r, 0, far.size);
	poke(r, 0, 0xaa);
	poke(r, MIB + 7, 0xbb);
	poke(r, far.size - 1, 0xcc);
	assert_int_equal(remora_flush(r), 0);
	assert_int_equal(far.data[0], 0xaa);
	assert_int_equal(far.data[MIB + 7], 0xbb);
	assert_int_equal(far.data[far.size - 1], 0xcc);
	assert_int_equal(far.data[1], computed(1));
	assert_true(far.flushes > 0);
	assert_true(far.written_bytes < MIB);
	assert_int_equal(status_of(r).dirty_bytes, 0);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_close_flushes_and_discard_does_not(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	far.options.no_push = 1;
	r = far_open(&far);
	poke(r, 5, 0xaa);
	remora_discard(r);
	assert_int_equal(far.data[5], computed(5));
	r = far_open(&far);
	assert_computed(r, 0, 4096);
	poke(r, 5, 0xbb);
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(far.data[5], 0xbb);
	far_done(&far);
	assert_int_equal(remora_close(NULL), 0);
	remora_discard(NULL);
}

static void test_odd_sizes(void **state)
{
	static const uint64_t sizes[] = { 1, 4095, 4096, 4097, 65537 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		struct far far;
		struct remora *r;

		far_init(&far, sizes[i], true);
		r = far_open(&far);
		assert_computed(r, 0, far.size);
		for (uint64_t at = far.size; at % PAGE_BYTES; at++)
			assert_int_equal(touch(r, at), 0);
		poke(r, far.size - 1, 0xee);
		if (far.size % PAGE_BYTES)
			poke(r, far.size, 0xdd); /* goes nowhere */
		assert_int_equal(remora_close(r), 0);
		assert_int_equal(far.data[far.size - 1], 0xee);
		far_done(&far);
	}
}

static void test_lazy_means_lazy(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, 5 * GIB, false);
	far.options.readahead_max = 0;
	r = far_open(&far);
	assert_int_equal(far.read_bytes, 0);
	assert_computed(r, 4 * GIB + 12345, 10);
	assert_true(far.read_bytes < MIB);
	assert_true(status_of(r).local_bytes < MIB);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_a_sparse_terabyte_opens_and_one_page_moves_less_than_a_mebibyte(void **state)
{
	char path[] = "/tmp/remora-sparse-XXXXXX", spec[64];
	int fd = mkstemp(path);
	struct remora_error e;
	struct remora *r;

	(void)state;
	assert_true(fd >= 0);
	if (ftruncate(fd, (off_t)TIB)) {
		close(fd);
		unlink(path);
		print_message("the file system of /tmp has no files of 1 TiB\n");
		skip();
	}
	assert_int_equal(pwrite(fd, "here", 4, (off_t)(TIB - 5000)), 4);
	snprintf(spec, sizeof(spec), "file:%s", path);
	if (remora_open(&r, spec, NULL, &e))
		fail_msg("%s", e.text);
	assert_memory_equal((uint8_t *)remora_data(r) + TIB - 5000, "here", 4);
	assert_int_equal(touch(r, 0), 0);
	assert_true(status_of(r).pulled_bytes < MIB);
	poke(r, TIB - 1, 1);
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(pread(fd, spec, 1, (off_t)TIB - 1), 1);
	assert_int_equal(spec[0], 1);
	close(fd);
	unlink(path);
}

struct writing {
	const uint8_t *from;
	uint64_t len;
	int fd;
};

static void *writing_main(void *arg)
{
	struct writing *w = arg;

	for (uint64_t at = 0; at < w->len;) {
		ssize_t n = write(w->fd, w->from + at, w->len - at);

		if (n <= 0)
			break;
		at += (uint64_t)n;
	}
	close(w->fd);
	return NULL;
}

/* The kernel itself touches absent pages, in a system call. */
static void test_write_of_an_untouched_region_gives_the_resources_bytes(void **state)
{
	uint8_t buf[64 * 1024];
	struct far far;
	struct remora *r;
	struct writing w;
	pthread_t thread;
	uint64_t at = 0;
	int fd[2];

	(void)state;
	far_init(&far, 32 * MIB, false);
	r = far_open(&far);
	assert_int_equal(pipe(fd), 0);
	w = (struct writing){ remora_data(r), far.size, fd[1] };
	pthread_create(&thread, NULL, writing_main, &w);
	for (ssize_t n; (n = read(fd[0], buf, sizeof(buf))) > 0; at += (uint64_t)n)
		for (ssize_t i = 0; i < n; i++)
			if (buf[i] != computed(at + (uint64_t)i))
				fail_msg("byte %llu", (unsigned long long)at + (uint64_t)i);
	pthread_join(thread, NULL);
	close(fd[0]);
	assert_int_equal(at, far.size);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_a_child_gets_a_signal_and_the_parent_the_right_bytes(void **state)
{
	struct far far;
	struct remora *r;
	int status;
	pid_t child;

	(void)state;
	far_init(&far, MIB, true);
	r = far_open(&far);
	assert_computed(r, 0, 10);
	child = fork();
	assert_true(child >= 0);
	if (!child) {
		int refused = remora_flush(r) == -ECHILD && remora_close(r) == -ECHILD &&
			      remora_pull(r, 0, 1, 0, 0) == -ECHILD;

		signal(SIGSEGV, SIG_DFL);
		if (!refused)
			_exit(100);
		_exit(touch(r, 500000));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	assert_computed(r, 0, far.size);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_two_handles_share_nothing(void **state)
{
	struct far a, b;
	struct remora *ra, *rb;

	(void)state;
	far_init(&a, MIB, true);
	far_init(&b, 2 * MIB, true);
	memset(b.data, 7, b.size);
	ra = far_open(&a);
	rb = far_open(&b);
	for (uint64_t at = 0; at < a.size; at += 1000) {
		assert_int_equal(touch(ra, at), computed(at));
		assert_int_equal(touch(rb, at), 7);
	}
	poke(ra, 0, 9);
	assert_int_equal(remora_close(rb), 0);
	assert_int_equal(b.written_bytes, 0);
	assert_int_equal(remora_close(ra), 0);
	assert_int_equal(a.data[0], 9);
	far_done(&a);
	far_done(&b);
}

/* ---- writers ---- */

struct writer {
	struct remora *r;
	uint8_t *model;
	uint64_t seed;
	unsigned thread, threads, count;
};

/* Each has every threads-th page for itself, so that the model knows the order; chunks are shared. */
static void *writer_main(void *arg)
{
	struct writer *w = arg;
	uint8_t *data = remora_data(w->r);
	uint64_t size = remora_size(w->r), pages = size / PAGE_BYTES / w->threads;
	struct rng rng;

	rng_init(&rng, w->seed);
	for (unsigned i = 0; i < w->count; i++) {
		uint64_t page = rng_below(&rng, pages) * w->threads + w->thread;
		uint64_t at = page * PAGE_BYTES + rng_below(&rng, PAGE_BYTES - 8);

		if (data[at] != w->model[at])
			return (void *)"a byte that was written before has changed";
		for (unsigned j = 0; j < 8; j++)
			data[at + j] = w->model[at + j] = (uint8_t)rng_next(&rng);
		if (rng_chance(&rng, 2000) && remora_flush(w->r))
			return (void *)"a flush failed";
	}
	return NULL;
}

static void run_writers(struct far *far, struct remora *r, uint64_t seed, unsigned count)
{
	struct writer w[3];
	pthread_t thread[3];
	uint8_t *model = malloc(far->size);
	void *why;

	assert_non_null(model);
	for (uint64_t i = 0; i < far->size; i++)
		model[i] = computed(i);
	for (unsigned i = 0; i < ARRAY_LEN(w); i++) {
		w[i] = (struct writer){ r, model, seed * 10 + i, i, ARRAY_LEN(w), count };
		assert_int_equal(pthread_create(&thread[i], NULL, writer_main, &w[i]), 0);
	}
	for (unsigned i = 0; i < ARRAY_LEN(w); i++) {
		pthread_join(thread[i], &why);
		if (why)
			fail_msg("%s", (const char *)why);
	}
	assert_int_equal(remora_flush(r), 0);
	for (uint64_t i = 0; i < far->size; i++)
		if (far->data[i] != model[i])
			fail_msg("byte %llu at the far side", (unsigned long long)i);
	free(model);
}

static void test_random_writers_during_the_pull_lose_nothing(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 4; seed++) {
		struct far far;
		struct remora *r;

		far_init(&far, 4 * MIB, true);
		far.options.pull = REMORA_PULL_ALL;
		far.options.push_interval_ms = 1;
		r = far_open(&far);
		run_writers(&far, r, seed, 2000);
		assert_int_equal(remora_close(r), 0);
		far_done(&far);
	}
}

static void test_eviction_under_writers_loses_nothing(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 3; seed++) {
		struct far far;
		struct remora *r;
		struct remora_status s;

		far_init(&far, 16 * MIB, true);
		far.options.budget = 4 * MIB;
		far.options.push_interval_ms = 1;
		r = far_open(&far);
		run_writers(&far, r, 100 + seed, 1500);
		s = status_of(r);
		assert_true(s.evicted_bytes > 0);
		assert_true(s.local_bytes <= far.options.budget);
		assert_int_equal(remora_close(r), 0);
		far_done(&far);
	}
}

struct sweep {
	struct remora *r;
	uint64_t from, to;
};

static void *sweep_main(void *arg)
{
	const struct sweep *s = arg;
	volatile uint8_t *data = remora_data(s->r);

	for (int pass = 0; pass < 6; pass++)
		for (uint64_t at = s->from; at < s->to; at += 64)
			data[at]++;
	return NULL;
}

/* Right behind the readahead: a page is written at the moment it comes, and soon dropped. */
static void test_sequential_writers_behind_the_readahead_lose_nothing(void **state)
{
	struct sweep sweep[2];
	pthread_t thread[2];
	struct remora *r;
	struct far far;

	(void)state;
	far_init(&far, 24 * MIB, true);
	far.options.budget = 6 * MIB;
	far.options.readahead_max = 0;
	far.options.push_interval_ms = 1;
	r = far_open(&far);
	for (size_t i = 0; i < ARRAY_LEN(sweep); i++) {
		sweep[i] = (struct sweep){ r, i * far.size / 2, (i + 1) * far.size / 2 };
		assert_int_equal(pthread_create(&thread[i], NULL, sweep_main, &sweep[i]), 0);
	}
	for (size_t i = 0; i < ARRAY_LEN(sweep); i++)
		pthread_join(thread[i], NULL);
	assert_true(status_of(r).evicted_bytes > far.size);
	assert_int_equal(remora_close(r), 0);
	for (uint64_t at = 0; at < far.size; at++) {
		uint8_t want = (uint8_t)(computed(at) + (at % 64 ? 0 : 6));

		if (far.data[at] != want)
			fail_msg("byte %llu", (unsigned long long)at);
	}
	far_done(&far);
}

static void *reader_main(void *arg)
{
	struct remora *r = arg;

	for (uint64_t at = 0; at < remora_size(r); at += 1024)
		if (touch(r, at) != computed(at))
			return r;
	return NULL;
}

static void test_readers_race_with_the_background_pull(void **state)
{
	struct far far;
	struct remora *r;
	pthread_t thread[4];
	void *wrong;

	(void)state;
	far_init(&far, 16 * MIB, true);
	far.options.pull = REMORA_PULL_ALL;
	far.options.chunk = 8192;
	r = far_open(&far);
	for (size_t i = 0; i < ARRAY_LEN(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, reader_main, r), 0);
	for (size_t i = 0; i < ARRAY_LEN(thread); i++) {
		pthread_join(thread[i], &wrong);
		assert_null(wrong);
	}
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(far.written_bytes, 0); /* what was only read is never pushed */
	far_done(&far);
}

/* ---- the far side fails ---- */

static sigjmp_buf fault_jump;
static volatile sig_atomic_t fault_signal;

static void fault_caught(int sig)
{
	fault_signal = sig;
	siglongjmp(fault_jump, 1);
}

static int access_signal(struct remora *r, uint64_t at, bool write)
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

static void test_what_cannot_be_read_is_sigbus_never_zeros(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	far.options.deadline_ms = 100;
	r = far_open(&far);
	assert_computed(r, 0, 1);
	far.read_error = -EIO;
	assert_int_equal(access_signal(r, 512 * 1024, false), SIGBUS);
	assert_int_equal(access_signal(r, 5, false), 0);
	assert_true(status_of(r).pull_errors > 0);
	assert_int_not_equal(status_of(r).last_error, 0);
	remora_discard(r);
	far_done(&far);
}

static void test_a_far_side_that_hangs_ends_in_sigbus_by_the_deadline(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	far.options.deadline_ms = 100;
	r = far_open(&far);
	assert_computed(r, 0, 1);
	far.hang = true;
	assert_int_equal(access_signal(r, 512 * 1024, false), SIGBUS);
	pthread_mutex_lock(&far.lock);
	far.hang = false;
	pthread_cond_broadcast(&far.go_on);
	pthread_mutex_unlock(&far.lock);
	remora_discard(r);
	far_done(&far);
}

static void test_a_failed_write_back_fails_the_flush_and_the_next_one_mends_it(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	far.options.deadline_ms = 100;
	r = far_open(&far);
	poke(r, 77, 0x77);
	far.write_error = -EIO;
	assert_int_not_equal(remora_flush(r), 0);
	assert_int_equal(touch(r, 77), 0x77);
	assert_true(status_of(r).push_errors > 0);
	assert_true(status_of(r).dirty_bytes > 0);
	far.write_error = 0;
	assert_int_equal(remora_flush(r), 0);
	assert_int_equal(far.data[77], 0x77);
	far.flush_error = -ENOSPC;
	poke(r, 78, 0x78);
	assert_int_not_equal(remora_flush(r), 0);
	far.flush_error = 0;
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(far.data[78], 0x78);
	far_done(&far);
}

static void test_open_fails_when_what_shall_be_first_cannot_be_pulled(void **state)
{
	struct remora_error e;
	struct remora *r;
	struct far far;

	(void)state;
	far_init(&far, MIB, true);
	far.options.pull_first = 1000;
	far.options.deadline_ms = 100;
	far.read_error = -EIO;
	assert_int_not_equal(remora_open(&r, "callbacks:", &far.options, &e), 0);
	assert_null(r);
	assert_non_null(strstr(e.text, "pulling what shall be local"));
	far_done(&far);
}

/* ---- options ---- */

static void test_read_only_and_private_copies_push_nothing(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	far.options.read_only = 1;
	r = far_open(&far);
	assert_computed(r, 0, far.size);
	assert_int_equal(access_signal(r, 0, true), SIGSEGV);
	assert_int_equal(remora_flush(r), 0);
	assert_int_equal(remora_close(r), 0);

	far.options.read_only = 0;
	far.options.private_copy = 1;
	far.options.push_interval_ms = 1;
	far.options.budget = 0;
	r = far_open(&far);
	poke(r, 3, 0x33);
	assert_int_equal(remora_flush(r), 0);
	assert_int_equal(touch(r, 3), 0x33);
	assert_computed(r, 4, far.size - 4);
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(far.written_bytes, 0);
	far_done(&far);
}

static void test_pull_first_and_ranges_are_local_when_open_returns(void **state)
{
	const struct remora_range ranges[] = { { 3 * MIB, 100 * KIB }, { 0, 0 }, { 4 * MIB - 1, 1 } };
	unsigned long long before;
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, 4 * MIB, true);
	far.options.pull_first = 700000;
	far.options.pull_ranges = ranges;
	far.options.pull_range_count = ARRAY_LEN(ranges);
	r = far_open(&far);
	before = far.read_bytes;
	assert_computed(r, 0, 700000);
	assert_computed(r, 3 * MIB, 100 * KIB);
	assert_computed(r, 4 * MIB - 1, 1);
	assert_int_equal(far.read_bytes, before);
	assert_true(before < 2 * MIB);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_pull_advise_and_invalidate(void **state)
{
	unsigned long long before;
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, 4 * MIB, true);
	r = far_open(&far);
	assert_int_equal(remora_pull(r, MIB, MIB, 5, REMORA_PULL_WAIT), 0);
	before = far.read_bytes;
	assert_computed(r, MIB, MIB);
	assert_int_equal(far.read_bytes, before);
	assert_int_equal(remora_pull(r, 3 * MIB, MIB, 0, 0), 0);
	assert_int_equal(remora_advise(r, 2 * MIB, 4096, REMORA_ADVICE_WILLNEED), 0);
	assert_int_equal(remora_advise(r, 0, far.size, REMORA_ADVICE_SEQUENTIAL), 0);
	assert_int_equal(remora_advise(r, 0, far.size, REMORA_ADVICE_RANDOM), 0);
	assert_int_equal(remora_advise(r, 0, far.size, REMORA_ADVICE_NORMAL), 0);
	assert_int_equal(remora_advise(r, 0, MIB, REMORA_ADVICE_DONTNEED), 0);
	assert_computed(r, 0, far.size);

	poke(r, MIB + 1, 0x11); /* ours, not flushed */
	pthread_mutex_lock(&far.lock);
	memset(far.data + MIB, 0x99, 2 * MIB);
	pthread_mutex_unlock(&far.lock);
	assert_int_equal(remora_invalidate(r, MIB, 2 * MIB), 0);
	assert_int_equal(touch(r, MIB + 1), 0x11);
	assert_int_equal(touch(r, MIB + MIB / 2), 0x99);
	assert_int_equal(touch(r, 3 * MIB - 1), 0x99);
	assert_computed(r, 0, MIB);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_ranges_beyond_the_end_are_refused(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	r = far_open(&far);
	assert_int_equal(remora_pull(r, 0, MIB + 1, 0, 0), -EINVAL);
	assert_int_equal(remora_pull(r, UINT64_MAX, 2, 0, REMORA_PULL_WAIT), -EINVAL);
	assert_int_equal(remora_pull(r, 0, 1, 0, 64), -EINVAL);
	assert_int_equal(remora_pull(r, MIB, 0, 0, REMORA_PULL_WAIT), 0);
	assert_int_equal(remora_invalidate(r, MIB, 1), -EINVAL);
	assert_int_equal(remora_advise(r, MIB, 1, REMORA_ADVICE_DONTNEED), -EINVAL);
	assert_int_equal(remora_advise(r, 0, 1, (enum remora_advice)99), -EINVAL);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_a_fixed_address_or_an_error(void **state)
{
	struct remora_error e;
	struct remora *r, *second;
	struct far far;
	void *at;

	(void)state;
	far_init(&far, MIB, true);
	at = mmap(NULL, 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(at, 2 * MIB);
	far.options.address = at;
	r = far_open(&far);
	assert_ptr_equal(remora_data(r), at);
	assert_int_equal(remora_open(&second, "callbacks:", &far.options, &e), -EEXIST);
	assert_computed(r, 0, far.size);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_options_that_make_no_sense_are_refused_by_name(void **state)
{
	static const struct remora_callbacks nothing;
	static const struct remora_range endless = { 1, UINT64_MAX }, beyond = { MIB, 1 };
	static const struct {
		struct remora_options o;
		const char *text;
	} bad[] = {
		{ { .struct_size = 3 }, "struct_size" },
		{ { .read_only = 1, .private_copy = 1 }, "exclude each other" },
		{ { .chunk = 5000 }, "chunk is 5000" },
		{ { .chunk = 1u << 30 }, "chunk is" },
		{ { .pull = (enum remora_pull)7 }, "REMORA_PULL_" },
		{ { .on_loss = (enum remora_on_loss)7 }, "REMORA_LOSS_" },
		{ { .log_max = (enum remora_level)7 }, "REMORA_LOG_" },
		{ { .loop = "kqueue" }, "kqueue" },
		{ { .pull_range_count = 1 }, "pull_ranges is NULL" },
		{ { .pull_ranges = &endless, .pull_range_count = 1 }, "2^64" },
		{ { .pull_ranges = &beyond, .pull_range_count = 1 }, "goes beyond" },
		{ { .callbacks = &nothing }, "read and size" },
		{ { .address = (void *)1 }, "not a multiple" },
	};
	struct remora *r;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct remora_error e;

		assert_true(remora_open(&r, "memory:1M", &bad[i].o, &e) < 0);
		assert_null(r);
		assert_true(e.code < 0);
		if (!strstr(e.text, bad[i].text))
			fail_msg("%s", e.text);
	}
}

static void test_shorter_and_longer_option_structs(void **state)
{
	struct {
		struct remora_options o;
		uint64_t more[2];
	} longer = { .o = { .struct_size = sizeof(longer) } };
	struct remora_error e;
	struct remora *r;

	(void)state;
	assert_int_equal(remora_open(&r, "memory:1M", &longer.o, &e), 0);
	assert_int_equal(remora_close(r), 0);
	longer.more[1] = 1;
	assert_int_equal(remora_open(&r, "memory:1M", &longer.o, &e), -E2BIG);
	longer.o = (struct remora_options){ .struct_size = offsetof(struct remora_options, address), .loop = "nonsense" };
	assert_int_equal(remora_open(&r, "memory:1M", &longer.o, &e), 0);
	assert_int_equal(remora_close(r), 0);
}

static void test_errors_say_what_is_wrong(void **state)
{
	static const struct {
		const char *spec, *text;
	} bad[] = {
		{ NULL, "no spec" },
		{ "file:/nonexistent/of/course", "/nonexistent/of/course" },
		{ "nonsense:x|memory:1M", "nonsense" },
		{ "pattern:1M", "read_only" },
		{ "callbacks:", "callbacks" },
	};
	struct remora_store *s;
	struct remora *r;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct remora_error e;

		assert_true(remora_open(&r, bad[i].spec, NULL, &e) < 0);
		if (!strstr(e.text, bad[i].text))
			fail_msg("%s", e.text);
		assert_true(remora_open(&r, bad[i].spec, NULL, NULL) < 0);
	}
	assert_true(remora_store_open(&s, "file:/nonexistent/of/course", NULL, NULL) < 0);
	assert_null(s);
}

static void test_either_loop_by_request_and_the_engine_is_named(void **state)
{
	struct remora_options o = { .loop = "epoll" };
	struct remora_error e;
	struct remora *r;

	(void)state;
	if (remora_open(&r, "memory:1M", &o, &e))
		fail_msg("%s", e.text);
	assert_non_null(strstr(status_of(r).engine, "userfaultfd, epoll"));
	assert_int_equal(touch(r, 1000), 0);
	assert_int_equal(remora_close(r), 0);
	o.loop = "io_uring";
	if (remora_open(&r, "memory:1M", &o, &e) == 0) {
		assert_non_null(strstr(status_of(r).engine, "userfaultfd, io_uring"));
		assert_int_equal(touch(r, 1000), 0);
		assert_int_equal(remora_close(r), 0);
	}
	o = (struct remora_options){ .user_mode_only = 1 };
	if (remora_open(&r, "memory:1M", &o, &e))
		fail_msg("%s", e.text);
	assert_non_null(strstr(status_of(r).engine, "user mode only"));
	poke(r, 9, 9);
	assert_int_equal(remora_close(r), 0);
}

/* ---- hooks ---- */

struct hooked {
	struct remora *_Atomic r;
	int flush_answer, flushes, closes;
	atomic_int deadlock;
	atomic_ullong local, progress;
};

static int on_flush(void *arg)
{
	((struct hooked *)arg)->flushes++;
	return ((struct hooked *)arg)->flush_answer;
}

static void on_close(void *arg)
{
	struct hooked *h = arg;

	h->closes++;
	poke(h->r, 11, 0x42); /* the last moment for it */
}

static void on_local(void *arg, uint64_t off, uint64_t len)
{
	struct hooked *h = arg;

	(void)off;
	h->local += len;
	if (h->r)
		h->deadlock = remora_flush(h->r);
}

static void on_progress(void *arg, uint64_t local, uint64_t size)
{
	assert_true(local <= size);
	((struct hooked *)arg)->progress = local;
}

static int on_priority(void *arg, uint64_t off, uint64_t len)
{
	(void)arg;
	(void)len;
	return (int)(off / MIB);
}

static void test_hooks_are_called(void **state)
{
	struct hooked h = { 0 };
	struct far far;

	(void)state;
	far_init(&far, 4 * MIB, true);
	far.options.hooks = (struct remora_hooks){ on_flush, on_close, on_local, on_progress, on_priority, &h };
	far.options.pull = REMORA_PULL_ALL;
	h.r = far_open(&far);
	assert_int_equal(remora_pull(h.r, 0, far.size, 0, REMORA_PULL_WAIT), 0);
	assert_int_equal(h.local, far.size);
	h.flush_answer = -ECANCELED;
	assert_int_equal(remora_flush(h.r), -ECANCELED);
	h.flush_answer = 0;
	assert_int_equal(remora_flush(h.r), 0);
	assert_int_equal(remora_close(h.r), 0);
	assert_int_equal(h.flushes, 3);
	assert_int_equal(h.closes, 1);
	assert_int_equal(far.data[11], 0x42);
	far_done(&far);
}

static void test_waiting_in_a_hook_is_refused(void **state)
{
	struct hooked h = { 0 };
	struct far far;

	(void)state;
	far_init(&far, MIB, true);
	far.options.hooks = (struct remora_hooks){ .chunk_local = on_local, .arg = &h };
	h.r = far_open(&far);
	assert_int_equal(remora_pull(h.r, 0, far.size, 0, REMORA_PULL_WAIT), 0);
	assert_int_equal(h.deadlock, -EDEADLK);
	assert_int_equal(remora_close(h.r), 0);
	far_done(&far);
}

/* ---- nothing is left ---- */

static size_t count_entries(const char *path)
{
	DIR *dir = opendir(path);
	size_t n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void test_threads_and_descriptors_end_with_the_handle(void **state)
{
	size_t fds = count_entries("/proc/self/fd"), threads = count_entries("/proc/self/task");
	struct remora_error e;
	struct remora *r;
	struct far far;

	(void)state;
	far_init(&far, MIB, true);
	for (int i = 0; i < 5; i++) {
		r = far_open(&far);
		assert_computed(r, 0, 4096);
		assert_int_equal(remora_close(r), 0);
		assert_true(remora_open(&r, "pattern:1M", NULL, &e) < 0); /* fails late */
	}
	assert_int_equal(count_entries("/proc/self/fd"), fds);
	/* A thread that was joined may still be on its way out of /proc. */
	for (int i = 0; i < 1000 && count_entries("/proc/self/task") != threads; i++)
		sched_yield();
	assert_int_equal(count_entries("/proc/self/task"), threads);
	far_done(&far);
}

/* ---- direct use ---- */

static void test_direct_use_of_a_store(void **state)
{
	uint64_t size = 70 * MIB + 3; /* more than one request */
	uint8_t *buf = malloc(size);
	struct remora_error e;
	struct remora_store *s;
	struct far far;

	(void)state;
	assert_non_null(buf);
	far_init(&far, size, true);
	if (remora_store_open(&s, "callbacks:", &far.options, &e))
		fail_msg("%s", e.text);
	assert_int_equal(remora_store_size(s), size);
	assert_int_equal(remora_store_read(s, 0, buf, size), 0);
	assert_memory_equal(buf, far.data, size);
	memset(buf, 0x5a, 100);
	assert_int_equal(remora_store_write(s, size - 100, buf, 100), 0);
	assert_int_equal(far.data[size - 1], 0x5a);
	assert_int_equal(remora_store_flush(s), 0);
	assert_int_equal(far.flushes, 1);
	assert_int_equal(remora_store_read(s, size, buf, 1), -EINVAL);
	assert_int_equal(remora_store_read(s, UINT64_MAX, buf, 2), -EINVAL);
	assert_int_equal(remora_store_read(s, size, buf, 0), 0);
	far.read_error = -EILSEQ;
	assert_int_equal(remora_store_read(s, 0, buf, 10), -EILSEQ);
	remora_store_close(s);
	remora_store_close(NULL);
	far_done(&far);
	free(buf);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads_pull_and_writes_reach_the_far_side_on_flush),
		cmocka_unit_test(test_close_flushes_and_discard_does_not),
		cmocka_unit_test(test_odd_sizes),
		cmocka_unit_test(test_lazy_means_lazy),
		cmocka_unit_test(test_a_sparse_terabyte_opens_and_one_page_moves_less_than_a_mebibyte),
		cmocka_unit_test(test_write_of_an_untouched_region_gives_the_resources_bytes),
		cmocka_unit_test(test_a_child_gets_a_signal_and_the_parent_the_right_bytes),
		cmocka_unit_test(test_two_handles_share_nothing),
		cmocka_unit_test(test_random_writers_during_the_pull_lose_nothing),
		cmocka_unit_test(test_eviction_under_writers_loses_nothing),
		cmocka_unit_test(test_sequential_writers_behind_the_readahead_lose_nothing),
		cmocka_unit_test(test_readers_race_with_the_background_pull),
		cmocka_unit_test(test_what_cannot_be_read_is_sigbus_never_zeros),
		cmocka_unit_test(test_a_far_side_that_hangs_ends_in_sigbus_by_the_deadline),
		cmocka_unit_test(test_a_failed_write_back_fails_the_flush_and_the_next_one_mends_it),
		cmocka_unit_test(test_open_fails_when_what_shall_be_first_cannot_be_pulled),
		cmocka_unit_test(test_read_only_and_private_copies_push_nothing),
		cmocka_unit_test(test_pull_first_and_ranges_are_local_when_open_returns),
		cmocka_unit_test(test_pull_advise_and_invalidate),
		cmocka_unit_test(test_ranges_beyond_the_end_are_refused),
		cmocka_unit_test(test_a_fixed_address_or_an_error),
		cmocka_unit_test(test_options_that_make_no_sense_are_refused_by_name),
		cmocka_unit_test(test_shorter_and_longer_option_structs),
		cmocka_unit_test(test_errors_say_what_is_wrong),
		cmocka_unit_test(test_either_loop_by_request_and_the_engine_is_named),
		cmocka_unit_test(test_hooks_are_called),
		cmocka_unit_test(test_waiting_in_a_hook_is_refused),
		cmocka_unit_test(test_threads_and_descriptors_end_with_the_handle),
		cmocka_unit_test(test_direct_use_of_a_store),
	};
	struct remora_error e;
	struct remora *r;

	if (remora_open(&r, "memory:4K", NULL, &e)) {
		printf("1..0 # SKIP %s\n", e.text);
		return e.code == -EPERM || e.code == -EOPNOTSUPP ? 0 : 1;
	}
	remora_discard(r);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
