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

static void test_the_file_has_the_stores_size_and_content(void **state)
{
	AUTO_FREE uint8_t *buf = malloc(SIZE);
	struct rig g;
	struct stat st;
	int fd;

	(void)state;
	rig_prepare(&g, SIZE);
	fill(g.far->bytes, SIZE, 1);
	rig_mount(&g);
	assert_int_equal(stat(g.path, &st), 0);
	assert_true(S_ISREG(st.st_mode));
	assert_int_equal(st.st_size, SIZE);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(st.st_uid, geteuid());
	fd = rig_fd(&g, O_RDONLY);
	assert_int_equal(pread(fd, buf, SIZE, 0), SIZE);
	assert_memory_equal(buf, g.far->bytes, SIZE);
	assert_int_equal(pread(fd, buf, 4096, SIZE - 10), 10);
	assert_int_equal(pread(fd, buf, 4096, SIZE), 0);
	assert_int_equal(pread(fd, buf, 4096, SIZE + 100000), 0);
	close(fd);
	assert_true(g.accessed >= SIZE);
	rig_end(&g);
}

static void test_a_write_has_reached_the_store_when_it_returns(void **state)
{
	uint8_t buf[10000];
	struct rig g;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fill(buf, sizeof(buf), 2);
	fd = rig_fd(&g, O_RDWR);
	assert_int_equal(pwrite(fd, buf, sizeof(buf), 12345), sizeof(buf));
	assert_memory_equal(g.far->bytes + 12345, buf, sizeof(buf));
	assert_int_equal(rig_ask(&g).seen[REQ_FLUSH], 0);
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(fdatasync(fd), 0);
	assert_int_equal(rig_ask(&g).seen[REQ_FLUSH], 2);
	close(fd);
	rig_end(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_file_has_the_stores_size_and_content),
		cmocka_unit_test(test_a_write_has_reached_the_store_when_it_returns),
	};

	if (!rig_may_mount()) {
		print_message("1..0 # SKIP only root mounts\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
