/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public API: what is read and written arrives, whoever touches it and however little memory
 * there is. Everything from the program's pointer to the far side is the real thing; only the
 * network is missing (tests/integration has it).
 */
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api_engine.h"
#include "base/rng.h"

/* ---- reading and writing ---- */

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

/* ThreadSanitizer leaves less than that of the address space. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SPARSE_SIZE (64 * GIB)
#endif
#elif defined(__SANITIZE_THREAD__)
#define SPARSE_SIZE (64 * GIB)
#endif
#ifndef SPARSE_SIZE
#define SPARSE_SIZE TIB
#endif

static void test_a_sparse_terabyte_opens_and_one_page_moves_less_than_a_mebibyte(void **state)
{
	char path[] = "/tmp/remora-sparse-XXXXXX", spec[64];
	int fd = mkstemp(path);
	struct remora_error e;
	struct remora *r;

	(void)state;
	assert_true(fd >= 0);
	if (ftruncate(fd, (off_t)SPARSE_SIZE)) {
		close(fd);
		unlink(path);
		print_message("the file system of /tmp has no files of 1 TiB\n");
		skip();
	}
	assert_int_equal(pwrite(fd, "here", 4, (off_t)(SPARSE_SIZE - 5000)), 4);
	snprintf(spec, sizeof(spec), "file:%s", path);
	if (remora_open(&r, spec, NULL, &e))
		fail_msg("%s", e.text);
	assert_memory_equal((uint8_t *)remora_data(r) + SPARSE_SIZE - 5000, "here", 4);
	assert_int_equal(touch(r, 0), 0);
	assert_true(status_of(r).pulled_bytes < MIB);
	poke(r, SPARSE_SIZE - 1, 1);
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(pread(fd, spec, 1, (off_t)SPARSE_SIZE - 1), 1);
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

/* Each has every threads-th page for itself, so that the model knows the order; chunks are shared.
 */
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

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TESTS_OF_ANY_ENGINE(NULL),
		cmocka_unit_test(test_lazy_means_lazy),
		cmocka_unit_test(
			test_a_sparse_terabyte_opens_and_one_page_moves_less_than_a_mebibyte),
		cmocka_unit_test(test_write_of_an_untouched_region_gives_the_resources_bytes),
		cmocka_unit_test(test_a_child_gets_a_signal_and_the_parent_the_right_bytes),
		cmocka_unit_test(test_two_handles_share_nothing),
		cmocka_unit_test(test_random_writers_during_the_pull_lose_nothing),
		cmocka_unit_test(test_eviction_under_writers_loses_nothing),
		cmocka_unit_test(test_sequential_writers_behind_the_readahead_lose_nothing),
		cmocka_unit_test(test_readers_race_with_the_background_pull),
	};

	return api_available() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
