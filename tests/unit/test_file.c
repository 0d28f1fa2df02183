/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file front end: what a program sees of a resource that is mounted as a file. Its life (mount
 * points, taking the mount away, killed users) is in test_file_life.c.
 */
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include "file_rig.h"

#define SIZE (4 * MIB + 1234)

static void fill(uint8_t *p, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)(i * 31 + (i >> 9) + seed);
}

static int rig_fd(struct rig *g, int flags)
{
	int fd = open(g->path, flags | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static void *rig_map(int fd, int prot, size_t len)
{
	void *p = mmap(NULL, len, prot, MAP_SHARED, fd, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

/* The result must be an error, this one. */
static void assert_errno(long result, int err)
{
	int got = errno;

	assert_int_equal(result, -1);
	assert_int_equal(got, err);
}

static void test_the_file_has_the_stores_size_and_content(void **state)
{
	AUTO_FREE uint8_t *buf = malloc(SIZE);
	struct rig g;
	struct stat st;
	int fd;

	(void)state;
	rig_prepare(&g, SIZE);
	fill(rig_bytes(&g), SIZE, 1);
	rig_mount(&g);
	assert_int_equal(stat(g.path, &st), 0);
	assert_true(S_ISREG(st.st_mode));
	assert_int_equal(st.st_size, SIZE);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(st.st_uid, geteuid());
	fd = rig_fd(&g, O_RDONLY);
	assert_int_equal(pread(fd, buf, SIZE, 0), SIZE);
	assert_memory_equal(buf, rig_bytes(&g), SIZE);
	assert_int_equal(pread(fd, buf, 4096, SIZE - 10), 10);
	assert_int_equal(pread(fd, buf, 4096, SIZE), 0);
	assert_int_equal(pread(fd, buf, 4096, SIZE + 100000), 0);
	close(fd);
	assert_true(g.accessed >= SIZE);
	rig_end(&g);
}

static void test_sizes_around_a_page_have_no_byte_too_many(void **state)
{
	static const uint64_t sizes[] = { 0, 1, 4095, 4096, 4097, 131072, 131073 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		AUTO_FREE uint8_t *buf = calloc(1, 200000);
		struct rig g;
		int fd;

		rig_prepare(&g, sizes[i]);
		fill(rig_bytes(&g), sizes[i], 3);
		rig_mount(&g);
		fd = rig_fd(&g, O_RDWR);
		assert_int_equal(lseek(fd, 0, SEEK_END), sizes[i]);
		assert_int_equal(pread(fd, buf, 200000, 0), sizes[i]);
		if (sizes[i])
			assert_memory_equal(buf, rig_bytes(&g), sizes[i]);
		assert_errno(pwrite(fd, buf, 1, (off_t)sizes[i]), ENOSPC);
		close(fd);
		rig_end(&g);
	}
}

static void test_a_write_has_reached_the_store_when_it_returns(void **state)
{
	uint8_t buf[10000];
	struct rig_asked a;
	struct rig g;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fill(buf, sizeof(buf), 2);
	fd = rig_fd(&g, O_RDWR);
	assert_int_equal(pwrite(fd, buf, sizeof(buf), 12345), sizeof(buf));
	assert_memory_equal(rig_bytes(&g) + 12345, buf, sizeof(buf));
	assert_int_equal(rig_ask(&g).seen[REQ_FLUSH], 0);
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(fdatasync(fd), 0);
	a = rig_ask(&g);
	assert_int_equal(a.seen[REQ_FLUSH], 2);
	assert_int_equal(a.counts.syncs, 2);
	assert_int_equal(a.counts.bytes_written, sizeof(buf));
	assert_int_equal(a.counts.sync_latency.count, 2);
	assert_true(a.counts.writes && a.counts.other && a.counts.write_latency.count);
	close(fd);
	rig_end(&g);
}

static void test_close_flushes_nothing(void **state)
{
	struct rig g;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = rig_fd(&g, O_RDWR);
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	assert_int_equal(close(fd), 0);
	assert_int_equal(rig_ask(&g).seen[REQ_FLUSH], 0);
	rig_end(&g);
}

static void test_a_write_ends_where_the_file_does(void **state)
{
	char buf[100];
	struct rig g;
	int fd;

	(void)state;
	memset(buf, 'w', sizeof(buf));
	rig_open(&g, SIZE);
	fd = rig_fd(&g, O_RDWR);
	assert_errno(pwrite(fd, buf, 100, SIZE), ENOSPC);
	assert_errno(pwrite(fd, buf, 100, SIZE + 5000), ENOSPC);
	assert_int_equal(pwrite(fd, buf, 100, SIZE - 30), 30);
	assert_memory_equal(rig_bytes(&g) + SIZE - 30, buf, 30);
	assert_int_equal(rig_bytes(&g)[SIZE - 31], 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), SIZE);
	close(fd);
	rig_end(&g);
}

static void test_the_size_cannot_be_changed(void **state)
{
	struct rig g;
	struct stat st;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = rig_fd(&g, O_RDWR);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	assert_errno(ftruncate(fd, SIZE + 1), EPERM);
	assert_errno(ftruncate(fd, 0), EPERM);
	assert_errno(truncate(g.path, SIZE - 1), EPERM);
	assert_errno(open(g.path, O_WRONLY | O_TRUNC | O_CLOEXEC), EPERM);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, SIZE);
	close(fd);
	rig_end(&g);
}

static void test_pages_written_through_mmap_reach_the_store_with_msync_and_fsync(void **state)
{
	struct rig g;
	uint8_t *p;
	int fd;

	(void)state;
	rig_prepare(&g, SIZE);
	fill(rig_bytes(&g), SIZE, 4);
	rig_mount(&g);
	fd = rig_fd(&g, O_RDWR);
	p = rig_map(fd, PROT_READ | PROT_WRITE, SIZE);
	assert_memory_equal(p, rig_bytes(&g), SIZE);
	p[0] = 201;
	p[SIZE - 1] = 202;
	assert_int_equal(msync(p, SIZE, MS_SYNC), 0);
	assert_int_equal(rig_bytes(&g)[0], 201);
	assert_int_equal(rig_bytes(&g)[SIZE - 1], 202);
	p[70000] = 203;
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(rig_bytes(&g)[70000], 203);
	munmap(p, SIZE);
	close(fd);
	rig_end(&g);
}

static void test_file_sync_writes_the_pages_back_and_flushes_nothing(void **state)
{
	struct rig g;
	uint8_t *p;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = rig_fd(&g, O_RDWR);
	p = rig_map(fd, PROT_READ | PROT_WRITE, SIZE);
	close(fd); /* the mapping goes on, and is a user */
	p[5000] = 99;
	assert_int_equal(rig_ask(&g).users, 1);
	assert_int_equal(rig_call(&g, file_sync, range_of(0, 0), false), 0);
	assert_int_equal(rig_bytes(&g)[5000], 99);
	assert_int_equal(rig_ask(&g).users, 1);
	assert_int_equal(rig_ask(&g).seen[REQ_FLUSH], 0);
	munmap(p, SIZE);
	assert_int_equal(rig_call(&g, file_sync, range_of(0, 0), false), 0);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), false), 0);
	assert_int_equal(rig_ask(&g).users, 0);
	rig_end(&g);
}

static void test_a_failed_write_back_is_told(void **state)
{
	struct rig g;
	uint8_t *p;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = rig_fd(&g, O_RDWR);
	p = rig_map(fd, PROT_READ | PROT_WRITE, SIZE);
	p[5000] = 99;
	rig_fail(&g, -EIO);
	assert_true(rig_call(&g, file_sync, range_of(0, 0), false) < 0);
	p[5000] = 100;
	assert_int_equal(msync(p, SIZE, MS_SYNC), -1);
	rig_fail(&g, 0);
	munmap(p, SIZE);
	close(fd);
	rig_end(&g);
}

static void test_the_stores_errors_are_the_programs(void **state)
{
	static const int errs[] = { EIO, EACCES, ETIMEDOUT, ESHUTDOWN };
	uint8_t buf[100];
	struct rig g;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = rig_fd(&g, O_RDWR);
	for (size_t i = 0; i < ARRAY_LEN(errs); i++) {
		rig_fail(&g, -errs[i]);
		assert_errno(pwrite(fd, buf, sizeof(buf), 0), errs[i]);
		assert_errno(pread(fd, buf, sizeof(buf), 0), errs[i]);
	}
	rig_fail(&g, -100000); /* no number that the kernel takes */
	assert_errno(pread(fd, buf, sizeof(buf), 0), EIO);
	rig_fail(&g, 0);
	assert_int_equal(pread(fd, buf, sizeof(buf), 0), sizeof(buf));
	assert_true(rig_ask(&g).counts.failed >= 2 * ARRAY_LEN(errs));
	close(fd);
	rig_end(&g);
}

static void test_direct_io_passes_the_page_cache_by(void **state)
{
	uint8_t *buf = NULL;
	struct rig g;
	int fd;

	(void)state;
	assert_int_equal(posix_memalign((void **)&buf, 4096, 4 * MIB), 0);
	rig_prepare(&g, 5 * MIB);
	fill(rig_bytes(&g), 5 * MIB, 5);
	rig_mount(&g);
	fd = rig_fd(&g, O_RDWR | O_DIRECT);
	assert_int_equal(pread(fd, buf, 4096, 8192), 4096);
	assert_memory_equal(buf, rig_bytes(&g) + 8192, 4096);
	rig_bytes(&g)[8192]++; /* behind everybody's back */
	(void)rig_ask(&g);
	assert_int_equal(pread(fd, buf, 4096, 8192), 4096);
	assert_memory_equal(buf, rig_bytes(&g) + 8192, 4096);
	assert_int_equal(pread(fd, buf, 4 * MIB, 0), 4 * MIB);
	assert_memory_equal(buf, rig_bytes(&g), 4 * MIB);
	assert_int_equal(pread(fd, buf, 4 * MIB, 4 * MIB), MIB);
	assert_memory_equal(buf, rig_bytes(&g) + 4 * MIB, MIB);
	fill(buf, 4 * MIB, 6);
	assert_int_equal(pwrite(fd, buf, 4 * MIB, MIB), 4 * MIB);
	assert_memory_equal(buf, rig_bytes(&g) + MIB, 4 * MIB);
	close(fd);
	free(buf);
	rig_end(&g);
}

static void test_a_store_with_short_requests_gets_short_ones(void **state)
{
	static const uint32_t lens[] = { 1000, 4096, 10000, 65536 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(lens); i++) {
		AUTO_FREE uint8_t *buf = malloc(300000);
		AUTO_FREE uint8_t *got = malloc(300000);
		struct rig g;
		int fd;

		rig_prepare(&g, SIZE);
		g.far->store.info.len_max = lens[i];
		rig_mount(&g);
		fd = rig_fd(&g, O_RDWR);
		fill(buf, 300000, 7);
		assert_int_equal(pwrite(fd, buf, 300000, 777), 300000);
		assert_memory_equal(rig_bytes(&g) + 777, buf, 300000);
		assert_int_equal(rig_call(&g, file_invalidate, range_of(0, SIZE), false), 0);
		assert_int_equal(pread(fd, got, 300000, 777), 300000);
		assert_memory_equal(got, buf, 300000);
		close(fd);
		rig_end(&g);
	}
}

static void test_two_openers_see_each_others_writes(void **state)
{
	char buf[4] = "";
	struct rig g;
	uint8_t *p;
	int a, b;

	(void)state;
	rig_open(&g, SIZE);
	a = rig_fd(&g, O_RDWR);
	b = rig_fd(&g, O_RDWR);
	p = rig_map(b, PROT_READ | PROT_WRITE, SIZE);
	assert_int_equal(rig_ask(&g).users, 2);
	assert_int_equal(pwrite(a, "one", 3, 100), 3);
	assert_memory_equal(p + 100, "one", 3);
	memcpy(p + 100, "two", 3);
	assert_int_equal(pread(a, buf, 3, 100), 3);
	assert_string_equal(buf, "two");
	munmap(p, SIZE);
	close(a);
	close(b);
	rig_end(&g);
}

static void test_content_that_changed_behind_the_kernels_back_is_seen_once_invalidated(void **state)
{
	char buf[4] = "";
	struct rig g;
	uint8_t *p;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = rig_fd(&g, O_RDWR);
	p = rig_map(fd, PROT_READ | PROT_WRITE, SIZE);
	assert_int_equal(pread(fd, buf, 3, 100), 3);
	assert_int_equal(p[9000], 0);
	memcpy(rig_bytes(&g) + 100, "new", 3);
	(void)rig_ask(&g);
	assert_int_equal(pread(fd, buf, 3, 100), 3);
	assert_string_equal(buf, "");
	p[9000] = 7; /* what a program has written is not lost by it */
	assert_int_equal(rig_call(&g, file_invalidate, range_of(0, 65536), false), 0);
	assert_int_equal(pread(fd, buf, 3, 100), 3);
	assert_string_equal(buf, "new");
	assert_int_equal(rig_bytes(&g)[9000], 7);
	assert_int_equal(p[9000], 7);
	munmap(p, SIZE);
	close(fd);
	rig_end(&g);
}

static void test_the_cache_outlives_a_close_only_where_that_is_asked_for(void **state)
{
	(void)state;
	for (int keep = 0; keep < 2; keep++) {
		char buf[4] = "";
		struct rig g;
		int fd;

		rig_prepare(&g, SIZE);
		g.options.keep_cache = keep;
		rig_mount(&g);
		fd = rig_fd(&g, O_RDONLY);
		assert_int_equal(pread(fd, buf, 3, 0), 3);
		close(fd);
		memcpy(rig_bytes(&g), "new", 3);
		(void)rig_ask(&g);
		fd = rig_fd(&g, O_RDONLY);
		assert_int_equal(pread(fd, buf, 3, 0), 3);
		assert_string_equal(buf, keep ? "" : "new");
		close(fd);
		rig_end(&g);
	}
}

static void test_read_only_takes_no_writes(void **state)
{
	char buf[4];
	struct rig g;
	struct stat st;
	int fd;

	(void)state;
	rig_prepare(&g, SIZE);
	g.options.read_only = true;
	g.options.others = true;
	rig_mount(&g);
	assert_int_equal(stat(g.path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0444);
	assert_errno(open(g.path, O_RDWR | O_CLOEXEC), EROFS);
	assert_errno(chmod(g.path, 0600), EROFS);
	assert_errno(truncate(g.path, 0), EROFS);
	fd = rig_fd(&g, O_RDONLY);
	assert_int_equal(pread(fd, buf, 4, 0), 4);
	assert_true(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	close(fd);
	rig_end(&g);
}

static void test_a_shut_file_takes_no_writes_but_keeps_what_was_written_through_mmap(void **state)
{
	struct rig g;
	uint8_t *p;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = rig_fd(&g, O_RDWR);
	p = rig_map(fd, PROT_READ | PROT_WRITE, SIZE);
	p[100] = 5;
	rig_shut(&g, true);
	assert_errno(open(g.path, O_WRONLY | O_CLOEXEC), EROFS);
	assert_errno(pwrite(fd, "x", 1, 0), EROFS);
	assert_errno(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), EROFS);
	assert_int_equal(pread(fd, p + 200, 1, 0), 1);
	assert_int_equal(rig_call(&g, file_sync, range_of(0, 0), false), 0);
	assert_int_equal(rig_bytes(&g)[100], 5);
	rig_shut(&g, false);
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	munmap(p, SIZE);
	close(fd);
	rig_end(&g);
}

static void test_the_owner_may_change_mode_and_times(void **state)
{
	const struct timespec times[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000, .tv_nsec = 5 } };
	struct rig g;
	struct stat st;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	assert_int_equal(chmod(g.path, 0640), 0);
	assert_int_equal(chown(g.path, 12, 34), 0);
	assert_int_equal(utimensat(AT_FDCWD, g.path, times, 0), 0);
	assert_int_equal(stat(g.path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0640);
	assert_int_equal(st.st_uid, 12);
	assert_int_equal(st.st_gid, 34);
	assert_int_equal(st.st_atime, 1000);
	assert_int_equal(st.st_mtime, 2000);
	assert_int_equal(st.st_mtim.tv_nsec, 5);
	fd = rig_fd(&g, O_RDWR);
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	assert_int_equal(fstat(fd, &st), 0);
	assert_true(st.st_mtime > 2000);
	close(fd);
	rig_end(&g);
}

static void test_statfs_tells_of_a_full_file_system(void **state)
{
	struct rig g;
	struct statfs st;

	(void)state;
	rig_open(&g, SIZE);
	assert_int_equal(statfs(g.path, &st), 0);
	assert_int_equal(st.f_bsize, 4096);
	assert_int_equal(st.f_blocks, SIZE / 4096 + 1);
	assert_int_equal(st.f_bfree, 0);
	assert_int_equal(st.f_bavail, 0);
	rig_end(&g);
}

static void test_fallocate_zeroes_and_never_grows(void **state)
{
	const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	uint8_t buf[4096];
	struct rig g;
	int fd;

	(void)state;
	rig_prepare(&g, SIZE);
	memset(rig_bytes(&g), 'x', SIZE);
	rig_mount(&g);
	fd = rig_fd(&g, O_RDWR);
	assert_int_equal(fallocate(fd, 0, 0, SIZE), 0);
	assert_int_equal(posix_fallocate(fd, 100, 1000), 0);
	assert_errno(fallocate(fd, 0, 0, SIZE + 1), ENOSPC);
	assert_errno(fallocate(fd, FALLOC_FL_KEEP_SIZE, SIZE, 1), ENOSPC);
	assert_int_equal(rig_bytes(&g)[0], 'x');
	assert_int_equal(pread(fd, buf, 4096, 4096), 4096); /* in the cache */
	assert_int_equal(fallocate(fd, punch, 5000, 3000), 0);
	assert_int_equal(rig_bytes(&g)[4999], 'x');
	assert_int_equal(rig_bytes(&g)[5000], 0);
	assert_int_equal(rig_bytes(&g)[7999], 0);
	assert_int_equal(rig_bytes(&g)[8000], 'x');
	assert_int_equal(pread(fd, buf, 4096, 4096), 4096);
	assert_memory_equal(buf, rig_bytes(&g) + 4096, 4096);
	assert_int_equal(fallocate(fd, punch, SIZE - 10, 5000), 0);
	assert_int_equal(rig_bytes(&g)[SIZE - 1], 0);
	assert_int_equal(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 100), 0);
	assert_int_equal(rig_bytes(&g)[99], 0);
	assert_int_equal(rig_bytes(&g)[100], 'x');
	assert_errno(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), EOPNOTSUPP);
	assert_int_equal(lseek(fd, 0, SEEK_END), SIZE);
	close(fd);
	rig_end(&g);
}

static void test_holes_are_found_while_nobody_writes(void **state)
{
	struct rig g;
	int fd, writer;

	(void)state;
	rig_prepare(&g, 16 * RIG_BLOCK);
	memset(rig_bytes(&g) + 3 * RIG_BLOCK, 'x', 2 * RIG_BLOCK);
	rig_mount(&g);
	fd = rig_fd(&g, O_RDONLY);
	assert_int_equal(lseek(fd, 0, SEEK_DATA), 3 * RIG_BLOCK);
	assert_int_equal(lseek(fd, 3 * RIG_BLOCK + 5, SEEK_DATA), 3 * RIG_BLOCK + 5);
	assert_int_equal(lseek(fd, 0, SEEK_HOLE), 0);
	assert_int_equal(lseek(fd, 3 * RIG_BLOCK, SEEK_HOLE), 5 * RIG_BLOCK);
	assert_errno(lseek(fd, 5 * RIG_BLOCK, SEEK_DATA), ENXIO);
	assert_errno(lseek(fd, 16 * RIG_BLOCK, SEEK_HOLE), ENXIO);
	writer = rig_fd(&g, O_RDWR); /* may have pages that the store does not know */
	assert_int_equal(lseek(fd, 0, SEEK_DATA), 0);
	assert_int_equal(lseek(fd, 0, SEEK_HOLE), 16 * RIG_BLOCK);
	close(writer);
	close(fd);
	rig_end(&g);
}

static void test_more_holes_than_one_answer_holds(void **state)
{
	const uint64_t size = 3 * FILE_EXTENTS * RIG_BLOCK;
	struct rig g;
	int fd;

	(void)state;
	rig_prepare(&g, size);
	rig_bytes(&g)[size - 1] = 1;
	rig_mount(&g);
	fd = rig_fd(&g, O_RDONLY);
	assert_int_equal(lseek(fd, 0, SEEK_DATA), size - RIG_BLOCK);
	assert_int_equal(rig_ask(&g).seen[REQ_EXTENTS], 3);
	close(fd);
	rig_end(&g);
}

struct reader {
	pthread_t thread;
	struct rig *rig;
	unsigned seed;
	bool ok;
};

static void *reader_thread(void *arg)
{
	struct reader *r = arg;
	AUTO_FD int fd = open(r->rig->path, O_RDONLY | O_CLOEXEC | (r->seed % 2 ? O_DIRECT : 0));
	uint8_t *buf = NULL;

	r->ok = fd >= 0 && !posix_memalign((void **)&buf, 4096, 65536);
	for (unsigned i = 0; i < 200 && r->ok; i++) {
		uint64_t at = (i * 2654435761u + r->seed * 40503u) % 63 * 65536;

		r->ok = pread(fd, buf, 65536, (off_t)at) == 65536 &&
			!memcmp(buf, r->rig->far->bytes + at, 65536);
	}
	free(buf);
	return NULL;
}

static void test_more_readers_than_there_are_slots(void **state)
{
	struct reader r[FILE_REQS_MAX + 16];
	struct rig g;

	(void)state;
	rig_prepare(&g, 4 * MIB);
	fill(rig_bytes(&g), 4 * MIB, 9);
	rig_mount(&g);
	rig_hold(&g, true);
	for (unsigned i = 0; i < ARRAY_LEN(r); i++) {
		r[i] = (struct reader){ .rig = &g, .seed = i };
		assert_int_equal(pthread_create(&r[i].thread, NULL, reader_thread, &r[i]), 0);
	}
	while (rig_ask(&g).held < FILE_REQS_MAX / 2)
		sched_yield();
	rig_hold(&g, false);
	for (unsigned i = 0; i < ARRAY_LEN(r); i++) {
		assert_int_equal(pthread_join(r[i].thread, NULL), 0);
		assert_true(r[i].ok);
	}
	rig_end(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_file_has_the_stores_size_and_content),
		cmocka_unit_test(test_sizes_around_a_page_have_no_byte_too_many),
		cmocka_unit_test(test_a_write_has_reached_the_store_when_it_returns),
		cmocka_unit_test(test_close_flushes_nothing),
		cmocka_unit_test(test_a_write_ends_where_the_file_does),
		cmocka_unit_test(test_the_size_cannot_be_changed),
		cmocka_unit_test(
			test_pages_written_through_mmap_reach_the_store_with_msync_and_fsync),
		cmocka_unit_test(test_file_sync_writes_the_pages_back_and_flushes_nothing),
		cmocka_unit_test(test_a_failed_write_back_is_told),
		cmocka_unit_test(test_the_stores_errors_are_the_programs),
		cmocka_unit_test(test_direct_io_passes_the_page_cache_by),
		cmocka_unit_test(test_a_store_with_short_requests_gets_short_ones),
		cmocka_unit_test(test_two_openers_see_each_others_writes),
		cmocka_unit_test(
			test_content_that_changed_behind_the_kernels_back_is_seen_once_invalidated),
		cmocka_unit_test(test_the_cache_outlives_a_close_only_where_that_is_asked_for),
		cmocka_unit_test(test_read_only_takes_no_writes),
		cmocka_unit_test(
			test_a_shut_file_takes_no_writes_but_keeps_what_was_written_through_mmap),
		cmocka_unit_test(test_the_owner_may_change_mode_and_times),
		cmocka_unit_test(test_statfs_tells_of_a_full_file_system),
		cmocka_unit_test(test_fallocate_zeroes_and_never_grows),
		cmocka_unit_test(test_holes_are_found_while_nobody_writes),
		cmocka_unit_test(test_more_holes_than_one_answer_holds),
		cmocka_unit_test(test_more_readers_than_there_are_slots),
	};

	return rig_run(tests);
}
