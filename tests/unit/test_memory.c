/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mapped near store against a region of a few lines, which fills a chunk with a known pattern when it faults. Every hazard
 * of userfaultfd that this layer answers for has a test here; what needs the real region is in test_api.c.
 *
 * The pretended region runs in the fault thread, and in the test's thread under the same lock.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/rng.h"
#include "front/memory.h"

#define CHUNK (64 * KIB)
#define CHUNK_PAGES (CHUNK / PAGE_BYTES)

/* ---- the pretended region ---- */

struct fake {
	struct near *near;
	uint8_t *data;
	uint64_t size;
	pthread_mutex_t lock; /* around all calls to the near store; recursive */
	uint64_t *local; /* a bit per chunk */
	size_t chunks;
	atomic_uchar seed;  /* of the far side's content */
	atomic_bool silent; /* faults are not answered */
	atomic_ullong faults, asked;
};

static uint8_t far_byte(const struct fake *f, uint64_t at)
{
	return (uint8_t)((at * 0x9e3779b97f4a7c15ULL >> 56) + f->seed) | 1; /* never zero */
}

/* One multiplication per 8 bytes would do, but this is the definition, too. */
static void far_read(const struct fake *f, uint64_t off, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = far_byte(f, off + i);
}

static struct range chunk_range(const struct fake *f, uint64_t chunk)
{
	return range_cut(range_of(chunk * CHUNK, CHUNK), range_of(0, f->size));
}

static void fake_fill(struct fake *f, uint64_t chunk)
{
	uint8_t buf[CHUNK];
	struct range r = chunk_range(f, chunk);

	far_read(f, r.off, buf, r.len);
	pthread_mutex_lock(&f->lock);
	assert_int_equal(f->near->ops->put(f->near, r.off, buf, r.len), 0);
	bitmap_set(f->local, chunk);
	pthread_mutex_unlock(&f->lock);
}

static enum region_verdict fake_fault(void *arg, uint64_t off, bool write)
{
	struct fake *f = arg;
	enum region_verdict verdict = REGION_WAITS;

	(void)write;
	f->asked++;
	pthread_mutex_lock(&f->lock);
	if (f->silent) {
		/* nothing */
	} else if (bitmap_get(f->local, off / CHUNK)) {
		assert_int_equal(f->near->ops->open(f->near, range_of(align_down(off, PAGE_BYTES), PAGE_BYTES)), 0);
		verdict = REGION_OPENED;
	} else {
		f->faults++;
		fake_fill(f, off / CHUNK);
	}
	pthread_mutex_unlock(&f->lock);
	return verdict;
}

static void fake_open_with(struct fake *f, struct memory_options o)
{
	struct err e = { 0 };
	pthread_mutexattr_t recursive;

	*f = (struct fake){ .size = o.size, .chunks = align_up(o.size, CHUNK) / CHUNK + 1, .seed = 7 };
	f->local = calloc(BITMAP_WORDS(f->chunks), sizeof(uint64_t));
	assert_non_null(f->local);
	pthread_mutexattr_init(&recursive);
	pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&f->lock, &recursive);
	if (memory_open(&f->near, &o, &e))
		fail_msg("%s", e.text);
	f->data = memory_data(f->near);
	assert_int_equal(memory_serve(f->near, fake_fault, f, &e), 0);
}

static void fake_open(struct fake *f, uint64_t size)
{
	fake_open_with(f, (struct memory_options){ .size = size });
}

static void fake_close(struct fake *f)
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

static void fake_local(struct fake *f, uint64_t chunk)
{
	pthread_mutex_lock(&f->lock);
	bitmap_set(f->local, chunk);
	pthread_mutex_unlock(&f->lock);
}

static void near_shut(struct fake *f, uint64_t off, uint64_t len)
{
	near_do(f, shut, range_of(off, len));
}

/* The region's eviction, without its look for writes. */
static void fake_drop(struct fake *f, uint64_t chunk)
{
	struct range r = chunk_range(f, chunk);

	pthread_mutex_lock(&f->lock);
	near_shut(f, r.off, r.len);
	assert_int_equal(f->near->ops->drop(f->near, r), 0);
	bitmap_clear(f->local, chunk);
	pthread_mutex_unlock(&f->lock);
}

static uint8_t touch(const struct fake *f, uint64_t at)
{
	return *(volatile uint8_t *)(f->data + at);
}

static void poke(struct fake *f, uint64_t at, uint8_t v)
{
	*(volatile uint8_t *)(f->data + at) = v;
}

#define assert_far(f, at) assert_int_equal(touch((f), (at)), far_byte((f), (at)))

/* ---- what collect() finds, as text: "3 5-7" ---- */

struct found {
	char text[256];
};

static void found_add(void *arg, struct range pages)
{
	struct found *found = arg;
	size_t at = strlen(found->text);
	unsigned long long first = pages.off / PAGE_BYTES, last = range_end(pages) / PAGE_BYTES - 1;

	assert_int_equal(pages.off % PAGE_BYTES, 0);
	if (first == last)
		snprintf(found->text + at, sizeof(found->text) - at, "%s%llu", at ? " " : "", first);
	else
		snprintf(found->text + at, sizeof(found->text) - at, "%s%llu-%llu", at ? " " : "", first, last);
}

static void assert_written(struct fake *f, uint64_t page, uint64_t count, const char *want)
{
	struct found found = { "" };

	near_do(f, collect, range_of(page * PAGE_BYTES, count * PAGE_BYTES), found_add, &found);
	assert_string_equal(found.text, want);
}

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
	static const uint64_t sizes[] = { 1, 4095, 4096, 4097, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 4100 };

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

/* Many threads on the same pages, and a second maker of put(): pages are there already again and again. */
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

/* A whole page table of written pages: the kernel frees the table when all of it is shut at once. */
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

/* The region takes what it wrote for clean and shut, and would drop it with the program's write in it. */
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
 * Rule 8: neither the pages nor the tables that mapped them stay behind a reader that moves on. It reads by system
 * call, as a sanitizer's own memory would be counted otherwise.
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
	for (uint64_t chunk = 0; chunk < f.chunks - 1; chunk += 32) { /* each in a page table of its own */
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

/* ---- pages that nobody put ---- */

/* A child that inherits the mapping after all reads zeros and plants a page of them in the file. */
static void test_a_zero_page_planted_by_a_child_is_never_read_by_the_parent(void **state)
{
	struct fake f;
	int status;
	pid_t child;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, 0);
	assert_int_equal(madvise(f.data, f.size, MADV_DOFORK), 0);
	child = fork();
	assert_true(child >= 0);
	if (!child)
		_exit(touch(&f, CHUNK + 3 * PAGE_BYTES) || touch(&f, CHUNK + 9 * PAGE_BYTES));
	assert_int_equal(waitpid(child, &status, 0), child);
	for (uint64_t page = 0; page < 48; page++)
		assert_far(&f, page * PAGE_BYTES);
	assert_written(&f, 0, 48, "");
	fake_close(&f);
}

static void test_a_child_does_not_inherit_the_mapping(void **state)
{
	struct fake f;
	int status;
	pid_t child;

	(void)state;
	fake_open(&f, 1 * MIB);
	child = fork();
	assert_true(child >= 0);
	if (!child) {
		signal(SIGSEGV, SIG_DFL);
		_exit(touch(&f, 0));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGSEGV);
	for (uint64_t page = 0; page < 48; page++)
		assert_far(&f, page * PAGE_BYTES);
	fake_close(&f);
}

static void test_put_over_a_stray_page_written_by_the_region(void **state)
{
	uint8_t page[PAGE_BYTES];
	struct fake f;
	pid_t child;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_int_equal(madvise(f.data, f.size, MADV_DOFORK), 0);
	child = fork();
	assert_true(child >= 0);
	if (!child)
		_exit(touch(&f, 0));
	assert_int_equal(waitpid(child, NULL, 0), child);
	memset(page, 0x33, sizeof(page));
	near_do(&f, write, 0, page, sizeof(page));
	fake_fill(&f, 0);
	assert_int_equal(touch(&f, 0), 0x33);
	assert_far(&f, PAGE_BYTES);
	fake_close(&f);
}

/* ---- failing ---- */

static sigjmp_buf fault_jump; /* a signal handler has no other way to the test */
static volatile sig_atomic_t fault_signal;

static void fault_caught(int sig)
{
	fault_signal = sig;
	siglongjmp(fault_jump, 1);
}

/* The signal that an access raises, 0 = none. */
static int access_signal(const struct fake *f, uint64_t at, bool write)
{
	struct sigaction sa = { .sa_handler = fault_caught }, bus, segv;

	sigaction(SIGBUS, &sa, &bus);
	sigaction(SIGSEGV, &sa, &segv);
	fault_signal = 0;
	if (sigsetjmp(fault_jump, 1) == 0) {
		if (write)
			*(volatile uint8_t *)(f->data + at) = 1;
		else
			(void)touch(f, at);
	}
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGSEGV, &segv, NULL);
	return fault_signal;
}

static void fake_fail(struct fake *f, uint64_t off, uint64_t len)
{
	near_do(f, fail, range_of(off, len));
}

static void test_failed_pages_raise_sigbus_and_present_ones_are_read(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, CHUNK);
	f.silent = true;
	fake_fail(&f, 0, f.size);
	fake_fail(&f, 0, f.size); /* twice is as good */
	assert_int_equal(access_signal(&f, 0, false), SIGBUS);
	assert_int_equal(access_signal(&f, f.size - 1, true), SIGBUS);
	assert_int_equal(access_signal(&f, CHUNK, true), 0);
	assert_int_equal(f.asked, 1);
	fake_close(&f);
}

static void test_heal_makes_pages_fault_again(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, CHUNK);
	fake_fail(&f, 0, f.size);
	near_do(&f, heal, range_of(0, f.size));
	for (uint64_t page = 0; page < 256; page++)
		assert_far(&f, page * PAGE_BYTES);
	assert_written(&f, 0, 256, "");
	fake_close(&f);
}

static void test_put_heals_what_it_puts(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	fake_fail(&f, 0, f.size);
	fake_fill(&f, 2);
	assert_far(&f, 2 * CHUNK + 5);
	assert_int_equal(access_signal(&f, 3 * CHUNK, false), SIGBUS);
	fake_close(&f);
}

/* What was there before has left markers of write tracking, which the poison does not overwrite by itself. */
static void test_pages_that_were_dropped_can_fail(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, 0);
	assert_far(&f, CHUNK);
	fake_drop(&f, 0);
	f.silent = true;
	fake_fail(&f, 0, CHUNK);
	assert_int_equal(access_signal(&f, 0, false), SIGBUS);
	assert_int_equal(access_signal(&f, CHUNK - 1, false), SIGBUS);
	assert_int_equal(access_signal(&f, CHUNK, false), 0);
	fake_close(&f);
}

static void *wait_main(void *arg)
{
	struct fake *f = arg;
	struct sigaction sa = { .sa_handler = SIG_DFL };

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	_exit(touch(f, 0) ? 3 : 2); /* 2: read zeros */
}

/* In a process of its own: a thread waits in a fault that nobody answers, then `end` comes. */
static int waiting_reader(void (*end)(struct fake *f))
{
	int status;
	pid_t child = fork();

	assert_true(child >= 0);
	if (!child) {
		pthread_t thread;
		struct fake f;

		fake_open(&f, 1 * MIB);
		f.silent = true;
		if (pthread_create(&thread, NULL, wait_main, &f))
			_exit(4);
		while (!f.asked)
			sched_yield();
		end(&f);
		pthread_join(thread, NULL);
		_exit(5);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	if (!WIFSIGNALED(status))
		fail_msg("exit status %d", WEXITSTATUS(status));
	return WTERMSIG(status);
}

static void end_by_fail(struct fake *f)
{
	fake_fail(f, 0, f->size);
}

static void end_by_close(struct fake *f)
{
	fake_close(f);
}

static void test_who_waits_for_a_page_that_fails_gets_sigbus(void **state)
{
	(void)state;
	assert_int_equal(waiting_reader(end_by_fail), SIGBUS);
}

static void test_who_waits_when_the_memory_closes_gets_a_signal(void **state)
{
	(void)state;
	assert_int_equal(waiting_reader(end_by_close), SIGSEGV);
}

/* ---- options ---- */

static void test_read_only_memory_refuses_writes(void **state)
{
	struct fake f;

	(void)state;
	fake_open_with(&f, (struct memory_options){ .size = 1 * MIB, .read_only = true });
	assert_false(f.near->writable);
	assert_far(&f, 0);
	assert_int_equal(access_signal(&f, 0, true), SIGSEGV);
	assert_int_equal(access_signal(&f, CHUNK, true), SIGSEGV);
	assert_far(&f, CHUNK);
	fake_drop(&f, 0);
	f.seed++;
	assert_far(&f, 10);
	near_shut(&f, 0, CHUNK);
	assert_far(&f, 10);
	fake_fail(&f, 4 * CHUNK, CHUNK);
	assert_int_equal(access_signal(&f, 4 * CHUNK, false), SIGBUS);
	assert_written(&f, 0, 256, "");
	fake_close(&f);
}

static void test_a_fixed_address_is_kept_or_refused(void **state)
{
	struct memory_options o = { .size = 1 * MIB };
	struct near *second;
	struct err e = { 0 };
	struct fake f;
	void *at;

	(void)state;
	at = mmap(NULL, 4 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(at, MAP_FAILED);
	o.address = (uint8_t *)at + 3 * PAGE_BYTES; /* nothing rounder than a page */
	assert_int_equal(memory_open(&second, &o, &e), -EEXIST);
	assert_null(second);
	assert_non_null(strstr(e.text, "something else is mapped"));
	munmap(at, 4 * MIB);

	fake_open_with(&f, o);
	assert_ptr_equal(f.data, o.address);
	for (uint64_t page = 0; page < 256; page++)
		assert_far(&f, page * PAGE_BYTES);
	assert_int_equal(memory_open(&second, &o, &e), -EEXIST);
	for (uint64_t chunk = 0; chunk < 16; chunk++)
		fake_drop(&f, chunk);
	assert_far(&f, 77);
	fake_close(&f);

	o.address = (uint8_t *)o.address + 1;
	assert_int_equal(memory_open(&second, &o, &e), -EINVAL);
	assert_non_null(strstr(e.text, "not a multiple"));
}

static void found_mark(void *arg, struct range r)
{
	bitmap_set_range(arg, r.off / PAGE_BYTES, r.len / PAGE_BYTES);
}

/* Runs in a process without any right; exit status 0 = as wanted. */
static int open_without_rights(void)
{
	struct memory_options o = { .size = 1 * MIB };
	struct near *near;
	struct err e = { 0 };
	char buf[4] = "";
	AUTO_FD int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY);

	if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ||
	    prctl(PR_SET_DUMPABLE, 1)) /* its own /proc files are its own again */
		return 1;
	if (fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0 && buf[0] == '0' && access("/dev/userfaultfd", R_OK | W_OK)) {
		if (memory_open(&near, &o, &e) != -EPERM || near)
			return 2;
		if (!strstr(e.text, "/dev/userfaultfd") || !strstr(e.text, "vm.unprivileged_userfaultfd") ||
		    !strstr(e.text, "CAP_SYS_PTRACE") || !strstr(e.text, "user_mode_only"))
			return 3;
	}
	o.user_mode_only = true;
	if (memory_open(&near, &o, &e))
		return 4;
	near->ops->close(near);
	return 0;
}

static void test_without_rights_the_error_names_the_ways_to_get_them(void **state)
{
	int status;
	pid_t child;

	(void)state;
	if (getuid() != 0) {
		print_message("only root can give its rights away\n");
		skip();
	}
	child = fork();
	assert_true(child >= 0);
	if (!child)
		_exit(open_without_rights());
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static pid_t fault_thread_id(void)
{
	DIR *dir = opendir("/proc/self/task");
	pid_t found = 0;

	assert_non_null(dir);
	for (struct dirent *d; (d = readdir(dir));) {
		char path[300], name[32] = "";
		AUTO_FD int fd = -1;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", d->d_name);
		fd = open(path, O_RDONLY);
		if (fd >= 0 && read(fd, name, sizeof(name) - 1) > 0 && !strcmp(name, "remora-fault\n"))
			found = (pid_t)atoi(d->d_name);
	}
	closedir(dir);
	assert_true(found > 0);
	return found;
}

/* A fault is answered ten times faster from the same core. */
static void test_the_fault_thread_follows_the_faulter(void **state)
{
	cpu_set_t before, one, its;
	struct fake f;
	pid_t thread;
	unsigned cores = 0;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
	fake_open(&f, 1 * MIB);
	thread = fault_thread_id();
	for (size_t cpu = 0; cpu < CPU_SETSIZE && cores < 3; cpu++) {
		if (!CPU_ISSET(cpu, &before))
			continue;
		cores++;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
		for (unsigned i = 0;; i++) {
			near_shut(&f, 0, CHUNK);
			assert_far(&f, 0);
			assert_int_equal(sched_getaffinity(thread, sizeof(its), &its), 0);
			if (CPU_EQUAL(&its, &one))
				break;
			if (i > 1000000)
				fail_msg("it has not come to core %zu", cpu);
		}
	}
	assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
	fake_close(&f);
}

static void random_use(struct fake *f, uint64_t seed)
{
	static const unsigned steps = 3000;
	uint64_t chunks = f->size / CHUNK, pages = f->size / PAGE_BYTES;
	uint8_t *model = malloc(pages); /* 0 = the far side's */
	uint64_t *written = calloc(BITMAP_WORDS(pages), sizeof(uint64_t));
	struct rng rng;

	assert_true(model && written);
	memset(model, 0, pages);
	rng_init(&rng, seed);
	for (unsigned i = 0; i < steps; i++) {
		uint64_t page = rng_below(&rng, pages), chunk = rng_below(&rng, chunks);
		struct range c = range_of(chunk * CHUNK, CHUNK);

		switch (rng_below(&rng, 4)) {
		case 0:
			model[page] = (uint8_t)(rng_below(&rng, 255) + 1);
			poke(f, page * PAGE_BYTES, model[page]);
			break;
		case 1:
			assert_int_equal(touch(f, page * PAGE_BYTES),
					 model[page] ? model[page] : far_byte(f, page * PAGE_BYTES));
			break;
		case 2:
			near_shut(f, c.off, c.len);
			break;
		case 3: /* drop what has no write, as the region does */
			near_shut(f, c.off, c.len);
			near_do(f, collect, c, found_mark, written);
			for (uint64_t p = 0; p < CHUNK_PAGES; p++)
				assert_int_equal(model[chunk * CHUNK_PAGES + p] != 0,
						 bitmap_get(written, chunk * CHUNK_PAGES + p));
			if (bitmap_next_set(written, (chunk + 1) * CHUNK_PAGES, chunk * CHUNK_PAGES) ==
			    (chunk + 1) * CHUNK_PAGES)
				fake_drop(f, chunk);
			break;
		}
	}
	free(model);
	free(written);
}

static void test_random_use_matches_a_model(void **state)
{
	(void)state;
	for (int huge = 0; huge < 2; huge++) {
		struct fake f;

		fake_open_with(&f, (struct memory_options){ .size = 3 * MIB, .huge = huge });
		random_use(&f, 42 + (uint64_t)huge);
		fake_close(&f);
	}
}

/* With huge pages a hole punched into one may leave zeros in the file. */
static void test_dropping_from_huge_pages_never_leaves_zeros(void **state)
{
	struct fake f;

	(void)state;
	fake_open_with(&f, (struct memory_options){ .size = 8 * MIB, .huge = true });
	for (int round = 0; round < 3; round++) {
		for (uint64_t at = 0; at < f.size; at += PAGE_BYTES)
			assert_far(&f, at);
		(void)madvise(f.data, f.size, 25 /* MADV_COLLAPSE, Linux 6.1 */);
		for (uint64_t chunk = (uint64_t)round; chunk < f.chunks - 1; chunk += 3)
			fake_drop(&f, chunk);
		f.seed++;
		for (uint64_t chunk = (uint64_t)round; chunk < f.chunks - 1; chunk += 3)
			for (uint64_t page = 0; page < CHUNK_PAGES; page++)
				assert_far(&f, chunk * CHUNK + page * PAGE_BYTES);
		for (uint64_t chunk = 0; chunk < f.chunks - 1; chunk++)
			fake_drop(&f, chunk);
	}
	fake_close(&f);
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
		cmocka_unit_test(test_a_zero_page_planted_by_a_child_is_never_read_by_the_parent),
		cmocka_unit_test(test_a_child_does_not_inherit_the_mapping),
		cmocka_unit_test(test_put_over_a_stray_page_written_by_the_region),
		cmocka_unit_test(test_failed_pages_raise_sigbus_and_present_ones_are_read),
		cmocka_unit_test(test_heal_makes_pages_fault_again),
		cmocka_unit_test(test_put_heals_what_it_puts),
		cmocka_unit_test(test_pages_that_were_dropped_can_fail),
		cmocka_unit_test(test_who_waits_for_a_page_that_fails_gets_sigbus),
		cmocka_unit_test(test_who_waits_when_the_memory_closes_gets_a_signal),
		cmocka_unit_test(test_read_only_memory_refuses_writes),
		cmocka_unit_test(test_a_fixed_address_is_kept_or_refused),
		cmocka_unit_test(test_without_rights_the_error_names_the_ways_to_get_them),
		cmocka_unit_test(test_the_fault_thread_follows_the_faulter),
		cmocka_unit_test(test_random_use_matches_a_model),
		cmocka_unit_test(test_dropping_from_huge_pages_never_leaves_zeros),
	};
	struct memory_options o = { .size = 1 };
	struct near *near;
	struct err e = { 0 };

	if (memory_open(&near, &o, &e)) {
		printf("1..0 # SKIP %s\n", e.text);
		return e.code == -EPERM || e.code == -EOPNOTSUPP ? 0 : 1;
	}
	near->ops->close(near);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
