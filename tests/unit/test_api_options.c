/* SPDX-License-Identifier: Apache-2.0 */
/* The public API: a far side that fails or hangs, options, hooks, errors, direct use, and that
 * nothing is left behind. */
#include <dirent.h>
#include <sched.h>
#include <sys/mman.h>

#include "api_far.h"

/* ---- the far side fails ---- */

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
	const struct remora_range ranges[] = { { 3 * MIB, 100 * KIB },
					       { 0, 0 },
					       { 4 * MIB - 1, 1 } };
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
	struct remora *r = NULL, *second;
	struct far far;

	(void)state;
	far_init(&far, MIB, true);
	/*
	 * The lowest place of a large gap: the kernel gives away the highest first, so that what
	 * the library, its threads, or a sanitizer map meanwhile does not land there.
	 */
	far.options.address = mmap(NULL, 4096 * MIB, PROT_NONE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(far.options.address, MAP_FAILED);
	munmap(far.options.address, 4096 * MIB);
	assert_int_equal(remora_open(&r, "callbacks:", &far.options, &e), 0);
	assert_non_null(r);
	assert_ptr_equal(remora_data(r), far.options.address);
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
	longer.o = (struct remora_options){ .struct_size = offsetof(struct remora_options, address),
					    .loop = "nonsense" };
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
	struct hooked h = { .r = NULL };
	struct far far;

	(void)state;
	far_init(&far, 4 * MIB, true);
	far.options.hooks = (struct remora_hooks){ on_flush,	on_close,    on_local,
						   on_progress, on_priority, &h };
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
	struct hooked h = { .r = NULL };
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
		cmocka_unit_test(test_what_cannot_be_read_is_sigbus_never_zeros),
		cmocka_unit_test(test_a_far_side_that_hangs_ends_in_sigbus_by_the_deadline),
		cmocka_unit_test(
			test_a_failed_write_back_fails_the_flush_and_the_next_one_mends_it),
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

	return api_available() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
