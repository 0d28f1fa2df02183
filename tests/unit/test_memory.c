/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mapped near store: page faults, finding writes, the region's own reads, writes and drops.
 * Every hazard of userfaultfd that this layer answers for has a test here or in test_memory_fail.c;
 * what needs the real region is in test_api.c.
 */
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "memory_fake.h"

/* ---- faults ---- */

static void test_every_page_is_the_far_sides(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	for (uint64_t at = 0; at < f.size; at += 1021)
		assert_far(&f, at);
	assert_int_equal(f.faults, 16);
	fake_close(&f);
}

static void test_the_tail_of_the_last_page_reads_zeros(void **state)
{
	static const uint64_t sizes[] = {
		1, 4095, 4096, 4097, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 4100
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		struct fake f;
		char want[24];

		fake_open(&f, sizes[i]);
		assert_far(&f, f.size - 1);
		assert_far(&f, 0);
		for (uint64_t at = f.size; at < align_up(f.size, PAGE_BYTES); at++)
			assert_int_equal(touch(&f, at), 0);
		poke(&f, f.size - 1, 99);
		snprintf(want, sizeof(want), "%llu", (unsigned long long)(f.size - 1) / PAGE_BYTES);
		assert_written(&f, (f.size - 1) / PAGE_BYTES, 1, want);
		fake_close(&f);
	}
}

static void test_an_empty_resource_has_one_page_of_zeros(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 0);
	assert_int_equal(touch(&f, 0), 0);
	assert_int_equal(touch(&f, 4095), 0);
	fake_close(&f);
}

static void test_offsets_beyond_4_gib(void **state)
{
	const uint64_t at[] = { 0, 4 * GIB - 1, 4 * GIB, 4 * GIB + 8191, 5 * GIB - 1 };
	struct fake f;

	(void)state;
	fake_open(&f, 5 * GIB);
	for (size_t i = 0; i < ARRAY_LEN(at); i++)
		assert_far(&f, at[i]);
	poke(&f, 4 * GIB + 5 * PAGE_BYTES, 1);
	assert_written(&f, 4 * GIB / PAGE_BYTES, 16, "1048581");
	assert_int_equal(f.faults, 4);
	fake_close(&f);
}

static void test_a_system_call_may_read_untouched_memory(void **state)
{
	static const size_t piece = 48 * 1024;
	uint8_t got[48 * 1024];
	struct fake f;
	int fd[2];

	(void)state;
	fake_open(&f, 4 * MIB);
	assert_int_equal(pipe(fd), 0);
	for (uint64_t at = 0; at + piece <= f.size; at += piece) {
		assert_int_equal(write(fd[1], f.data + at, piece), piece);
		assert_int_equal(read(fd[0], got, piece), piece);
		for (size_t i = 0; i < piece; i++)
			if (got[i] != far_byte(&f, at + i))
				fail_msg("byte %zu", (size_t)at + i);
	}
	close(fd[0]);
	close(fd[1]);
	fake_close(&f);
}

static void test_user_mode_only_is_used_when_asked_for(void **state)
{
	struct fake f;
	int fd[2];

	(void)state;
	fake_open_with(&f, (struct memory_options){ .size = CHUNK * 2, .user_mode_only = true });
	assert_string_equal(memory_how(f.near), "userfaultfd, user mode only");
	assert_int_equal(pipe(fd), 0);
	assert_int_equal(write(fd[1], f.data, 100), -1); /* and no zeros */
	assert_int_equal(errno, EFAULT);
	assert_far(&f, 5);
	assert_int_equal(write(fd[1], f.data, 100), 100);
	close(fd[0]);
	close(fd[1]);
	fake_close(&f);
}

static void *race_main(void *arg)
{
	struct fake *f = arg;

	for (uint64_t at = 0; at < f->size; at += PAGE_BYTES)
		if (touch(f, at) != far_byte(f, at))
			return f;
	return NULL;
}

/* Many threads on the same pages, and a second maker of put(): pages are there already again and
 * again. */
static void test_threads_that_race_for_a_page_all_read_it(void **state)
{
	pthread_t thread[4];
	struct fake f;
	void *ret;

	(void)state;
	fake_open(&f, 4 * MIB);
	for (size_t i = 0; i < ARRAY_LEN(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, race_main, &f), 0);
	for (uint64_t chunk = f.chunks - 1; chunk-- > 0;) {
		fake_fill(&f, chunk);
	}
	for (size_t i = 0; i < ARRAY_LEN(thread); i++) {
		pthread_join(thread[i], &ret);
		assert_null(ret);
	}
	fake_close(&f);
}

static void test_two_mappings_do_not_meet(void **state)
{
	struct fake a, b;

	(void)state;
	fake_open(&a, 1 * MIB);
	fake_open(&b, 1 * MIB);
	b.seed = 21;
	for (uint64_t at = 0; at < a.size; at += PAGE_BYTES) {
		assert_far(&a, at);
		assert_far(&b, at);
	}
	poke(&a, 0, 1);
	assert_written(&b, 0, 16, "");
	fake_close(&a);
	assert_far(&b, 8);
	fake_close(&b);
}

/* ---- finding writes ---- */

static void test_exactly_the_written_pages_are_found_once(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	for (uint64_t at = 0; at < f.size; at += PAGE_BYTES)
		assert_far(&f, at);
	assert_written(&f, 0, 256, "");
	poke(&f, 3 * PAGE_BYTES, 1);
	poke(&f, 5 * PAGE_BYTES, 1);
	poke(&f, 6 * PAGE_BYTES + 4095, 1);
	poke(&f, 255 * PAGE_BYTES, 1);
	assert_written(&f, 0, 256, "3 5-6 255");
	assert_written(&f, 0, 256, "");
	poke(&f, 5 * PAGE_BYTES, 2);
	assert_written(&f, 0, 5, "");
	assert_written(&f, 5, 1, "5");
	fake_close(&f);
}

static void test_a_write_that_faults_is_found(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	poke(&f, 20 * PAGE_BYTES + 7, 1);
	assert_written(&f, 16, 16, "20");
	assert_int_equal(touch(&f, 20 * PAGE_BYTES + 7), 1);
	assert_far(&f, 20 * PAGE_BYTES + 8);
	fake_close(&f);
}

static void found_count(void *arg, struct range r)
{
	*(uint64_t *)arg += r.len / PAGE_BYTES;
}

static void test_more_runs_than_one_scan_holds(void **state)
{
	struct fake f;
	uint64_t pages = 4 * MIB / PAGE_BYTES, found = 0;
	char want[16];

	(void)state;
	fake_open(&f, 4 * MIB);
	for (uint64_t page = 0; page < pages; page += 2)
		poke(&f, page * PAGE_BYTES, 1);
	near_do(&f, collect, range_of(0, f.size / 2), found_count, &found);
	assert_int_equal(found, pages / 4);
	snprintf(want, sizeof(want), "%llu", (unsigned long long)pages / 2);
	assert_written(&f, pages / 2, 2, want);
	near_do(&f, collect, range_of(0, f.size), found_count, &found);
	assert_int_equal(found, pages / 2 - 1);
	fake_close(&f);
}

static void test_a_write_survives_shut(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, 0);
	poke(&f, 4 * PAGE_BYTES, 1);
	near_shut(&f, 0, CHUNK);
	assert_written(&f, 0, 16, "4");
	assert_written(&f, 0, 16, "");
	fake_close(&f);
}

/* UFFDIO_CONTINUE in WP mode, which keeps clean pages clean, would forget the write. */
static void test_a_write_survives_shut_and_open(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, 0);
	poke(&f, 4 * PAGE_BYTES, 1);
	poke(&f, 9 * PAGE_BYTES, 1);
	for (int i = 0; i < 3; i++) {
		near_shut(&f, 0, CHUNK);
		assert_int_equal(touch(&f, 4 * PAGE_BYTES), 1); /* opens one page */
		assert_far(&f, 5 * PAGE_BYTES);
		near_do(&f, open, range_of(0, CHUNK)); /* and all of them */
	}
	assert_written(&f, 0, 16, "4 9");
	assert_int_equal(f.faults, 1);
	fake_close(&f);
}

static void test_clean_pages_stay_clean_over_shut_and_open(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	for (int i = 0; i < 4; i++) {
		for (uint64_t page = 0; page < 32; page++)
			assert_far(&f, page * PAGE_BYTES);
		near_shut(&f, 0, 2 * CHUNK);
		if (i & 1)
			near_do(&f, open, range_of(0, 2 * CHUNK));
		assert_written(&f, 0, 32, "");
	}
	assert_int_equal(f.faults, 2);
	fake_close(&f);
}

/* A whole page table of written pages: the kernel frees the table when all of it is shut at once.
 */
static void test_writes_survive_shut_of_whole_page_tables(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 8 * MIB);
	for (uint64_t at = 0; at < f.size; at += PAGE_BYTES)
		poke(&f, at, 1);
	near_shut(&f, 0, f.size);
	assert_written(&f, 0, f.size / PAGE_BYTES, "0-2047");
	assert_written(&f, 0, f.size / PAGE_BYTES, "");
	assert_int_equal(touch(&f, 4 * MIB), 1);
	fake_close(&f);
}

static void test_an_access_to_a_shut_page_asks_the_region(void **state)
{
	struct fake f;
	unsigned long long asked;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, 0);
	asked = f.asked;
	assert_far(&f, PAGE_BYTES);
	assert_int_equal(f.asked, asked);
	near_shut(&f, 0, CHUNK);
	assert_far(&f, PAGE_BYTES);
	assert_int_equal(f.asked, asked + 1);
	fake_close(&f);
}

/* ---- the region's own writes and drops ---- */

static void test_written_by_the_region_is_present_shut_and_clean(void **state)
{
	uint8_t buf[2 * PAGE_BYTES];
	struct fake f;
	unsigned long long asked;

	(void)state;
	fake_open(&f, 1 * MIB);
	memset(buf, 0x55, sizeof(buf));
	near_do(&f, write, 2 * PAGE_BYTES, buf, sizeof(buf));
	fake_local(&f, 0);
	assert_written(&f, 0, 16, "");
	asked = f.asked;
	assert_int_equal(touch(&f, 2 * PAGE_BYTES), 0x55);
	assert_int_equal(f.asked, asked + 1);
	assert_written(&f, 0, 16, "");
	/* unaligned, on pages that are there, one of them open */
	memset(buf, 0x66, sizeof(buf));
	near_do(&f, write, 3 * PAGE_BYTES - 10, buf, 20);
	assert_int_equal(touch(&f, 3 * PAGE_BYTES - 11), 0x55);
	assert_int_equal(touch(&f, 3 * PAGE_BYTES - 10), 0x66);
	assert_int_equal(touch(&f, 3 * PAGE_BYTES + 9), 0x66);
	assert_int_equal(touch(&f, 3 * PAGE_BYTES + 10), 0x55);
	near_do(&f, read, 3 * PAGE_BYTES - 1, buf, 2);
	assert_int_equal(buf[1], 0x66);
	fake_close(&f);
}

static void *write_main(void *arg)
{
	struct fake *f = arg;

	for (uint64_t page = 0; page < f->size / PAGE_BYTES; page++)
		poke(f, page * PAGE_BYTES, 0xaa);
	return NULL;
}

/* The region takes what it wrote for clean and shut, and would drop it with the program's write in
 * it. */
static void test_what_the_region_writes_is_never_open_for_a_moment(void **state)
{
	uint8_t page[PAGE_BYTES];
	struct fake f;
	pthread_t thread;

	(void)state;
	fake_open(&f, 8 * MIB);
	f.silent = true;
	memset(page, 0x55, sizeof(page));
	assert_int_equal(pthread_create(&thread, NULL, write_main, &f), 0);
	for (uint64_t i = 0; i < f.size / PAGE_BYTES; i++) {
		pthread_mutex_lock(&f.lock);
		near_do(&f, write, i * PAGE_BYTES, page, sizeof(page));
		assert_written(&f, i, 1, "");
		near_do(&f, open, range_of(i * PAGE_BYTES, PAGE_BYTES));
		pthread_mutex_unlock(&f.lock);
	}
	pthread_join(thread, NULL);
	for (uint64_t i = 0; i < f.size / PAGE_BYTES; i++) {
		assert_int_equal(touch(&f, i * PAGE_BYTES), 0xaa);
		assert_int_equal(touch(&f, i * PAGE_BYTES + 1), 0x55);
	}
	assert_written(&f, 0, f.size / PAGE_BYTES, "0-2047");
	fake_close(&f);
}

static void test_the_region_may_write_where_it_failed(void **state)
{
	uint8_t page[PAGE_BYTES];
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	memset(page, 0x55, sizeof(page));
	near_do(&f, fail, range_of(0, f.size));
	near_do(&f, write, 5 * PAGE_BYTES, page, sizeof(page));
	fake_local(&f, 0);
	assert_int_equal(touch(&f, 5 * PAGE_BYTES + 9), 0x55);
	assert_written(&f, 0, 16, "");
	fake_close(&f);
}

static void test_put_leaves_what_is_present_alone(void **state)
{
	uint8_t page[PAGE_BYTES];
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	memset(page, 0x77, sizeof(page));
	near_do(&f, write, 7 * PAGE_BYTES, page, sizeof(page));
	fake_fill(&f, 0);
	assert_int_equal(touch(&f, 7 * PAGE_BYTES), 0x77);
	assert_far(&f, 6 * PAGE_BYTES);
	assert_far(&f, 8 * PAGE_BYTES);
	poke(&f, 8 * PAGE_BYTES, 3);
	fake_fill(&f, 0);
	assert_int_equal(touch(&f, 8 * PAGE_BYTES), 3);
	assert_written(&f, 0, 16, "8");
	fake_close(&f);
}

static void test_zeros_are_put_clean(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB + 100);
	near_do(&f, put, 0, NULL, f.size);
	for (size_t i = 0; i < f.chunks; i++)
		fake_local(&f, i);
	for (uint64_t at = 0; at < f.size; at += 511)
		assert_int_equal(touch(&f, at), 0);
	assert_written(&f, 0, 257, "");
	assert_int_equal(f.asked, 0);
	fake_close(&f);
}

static void test_a_dropped_chunk_is_fetched_anew(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	for (int i = 0; i < 3; i++) {
		for (uint64_t page = 0; page < 48; page++)
			assert_far(&f, page * PAGE_BYTES + 1);
		fake_drop(&f, 1);
		f.seed++;
		assert_far(&f, CHUNK + 9);
		fake_drop(&f, 0);
		fake_drop(&f, 2);
		fake_drop(&f, 1);
		assert_written(&f, 0, 48, "");
	}
	fake_close(&f);
}

static long status_kib(const char *name)
{
	char line[128];
	FILE *file = fopen("/proc/self/status", "r");
	long kib = -1;

	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			kib = strtol(line + strlen(name) + 1, NULL, 10);
	fclose(file);
	return kib;
}

/*
 * Rule 8: neither the pages nor the tables that mapped them stay behind a reader that moves on. It
 * reads by system call, as a sanitizer's own memory would be counted otherwise.
 */
static void test_page_tables_are_freed_behind_a_scan(void **state)
{
	struct fake f;
	long before, after;
	uint8_t got;
	int fd[2];

	(void)state;
	assert_int_equal(pipe(fd), 0);
	fake_open(&f, 8 * GIB);
	before = status_kib("VmPTE");
	for (uint64_t chunk = 0; chunk < f.chunks - 1;
	     chunk += 32) { /* each in a page table of its own */
		assert_int_equal(syscall(SYS_write, fd[1], f.data + chunk * CHUNK, 1), 1);
		assert_int_equal(read(fd[0], &got, 1), 1);
		assert_int_equal(got, far_byte(&f, chunk * CHUNK));
		fake_drop(&f, chunk);
	}
	after = status_kib("VmPTE");
	fake_close(&f);
	close(fd[0]);
	close(fd[1]);
	if (after > before + 1024) { /* a table for each would be 16 MiB */
		print_message("this kernel keeps empty page tables (before Linux 6.14)\n");
		skip();
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_page_is_the_far_sides),
		cmocka_unit_test(test_the_tail_of_the_last_page_reads_zeros),
		cmocka_unit_test(test_an_empty_resource_has_one_page_of_zeros),
		cmocka_unit_test(test_offsets_beyond_4_gib),
		cmocka_unit_test(test_a_system_call_may_read_untouched_memory),
		cmocka_unit_test(test_user_mode_only_is_used_when_asked_for),
		cmocka_unit_test(test_threads_that_race_for_a_page_all_read_it),
		cmocka_unit_test(test_two_mappings_do_not_meet),
		cmocka_unit_test(test_exactly_the_written_pages_are_found_once),
		cmocka_unit_test(test_a_write_that_faults_is_found),
		cmocka_unit_test(test_more_runs_than_one_scan_holds),
		cmocka_unit_test(test_a_write_survives_shut),
		cmocka_unit_test(test_a_write_survives_shut_and_open),
		cmocka_unit_test(test_clean_pages_stay_clean_over_shut_and_open),
		cmocka_unit_test(test_writes_survive_shut_of_whole_page_tables),
		cmocka_unit_test(test_an_access_to_a_shut_page_asks_the_region),
		cmocka_unit_test(test_written_by_the_region_is_present_shut_and_clean),
		cmocka_unit_test(test_what_the_region_writes_is_never_open_for_a_moment),
		cmocka_unit_test(test_the_region_may_write_where_it_failed),
		cmocka_unit_test(test_put_leaves_what_is_present_alone),
		cmocka_unit_test(test_zeros_are_put_clean),
		cmocka_unit_test(test_a_dropped_chunk_is_fetched_anew),
		cmocka_unit_test(test_page_tables_are_freed_behind_a_scan),
	};

	return memory_available() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
