/* SPDX-License-Identifier: Apache-2.0 */
/* Near stores that no program maps: in memory, and in a directory, also of a full disk. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limits.h"
#include "region/near.h"

#define SIZE (4 * MIB)

struct dir {
	char path[64];
};

static int dir_setup(void **state)
{
	struct dir *d = calloc(1, sizeof(*d));
	const char *tmp = getenv("TMPDIR");

	assert_non_null(d);
	snprintf(d->path, sizeof(d->path), "%.40s/remora-near-XXXXXX", tmp ? tmp : "/tmp");
	assert_non_null(mkdtemp(d->path));
	*state = d;
	return 0;
}

static int dir_teardown(void **state)
{
	struct dir *d = *state;

	assert_int_equal(rmdir(d->path), 0);
	free(d);
	return 0;
}

static void put_write_read_drop(struct near *near)
{
	char page[2 * PAGE_BYTES], in[2 * PAGE_BYTES], zeros[PAGE_BYTES] = { 0 };

	memset(page, 'a', sizeof(page));
	assert_int_equal(near->ops->put(near, 3 * PAGE_BYTES, page, sizeof(page)), 0);
	assert_int_equal(near->ops->put(near, 5 * PAGE_BYTES, NULL, PAGE_BYTES), 0);
	assert_int_equal(near->ops->write(near, 4 * PAGE_BYTES + 7, "xyz", 3), 0);
	assert_int_equal(near->ops->read(near, 3 * PAGE_BYTES, in, sizeof(in)), 0);
	memcpy(page + PAGE_BYTES + 7, "xyz", 3);
	assert_memory_equal(in, page, sizeof(page));
	assert_int_equal(near->ops->read(near, 5 * PAGE_BYTES, in, PAGE_BYTES), 0);
	assert_memory_equal(in, zeros, PAGE_BYTES);
	assert_int_equal(near->ops->drop(near, range_of(3 * PAGE_BYTES, 2 * PAGE_BYTES)), 0);
	assert_int_equal(near->ops->put(near, 4 * PAGE_BYTES, NULL, PAGE_BYTES), 0);
	assert_int_equal(near->ops->read(near, 4 * PAGE_BYTES, in, PAGE_BYTES), 0);
	assert_memory_equal(in, zeros, PAGE_BYTES);
	near->ops->close(near);
}

static void in_memory(void **state)
{
	struct near *near;

	(void)state;
	assert_int_equal(near_memfd_open(&near, SIZE), 0);
	put_write_read_drop(near);
}

static unsigned entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void in_a_directory_without_a_name(void **state)
{
	struct dir *d = *state;
	struct near *near;
	struct err e;

	assert_int_equal(near_dir_open(&near, d->path, SIZE + 100, &e), 0);
	assert_int_equal(entries(d->path), 2);
	put_write_read_drop(near);
}

static void a_directory_that_is_none_is_named(void **state)
{
	struct dir *d = *state;
	char path[128];
	struct near *near;
	struct err e;

	snprintf(path, sizeof(path), "%s/none", d->path);
	assert_int_equal(near_dir_open(&near, path, SIZE, &e), -ENOENT);
	assert_non_null(strstr(e.text, path));
}

/* A disk of 256 KiB that only the calling process sees. */
static bool disk_mount(const char *path)
{
	if (unshare(CLONE_NEWNS) && unshare(CLONE_NEWUSER | CLONE_NEWNS))
		return false;
	return !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
	       !mount("remora-test", path, "tmpfs", 0, "size=256k");
}

static int fill_disk(struct near *near)
{
	static char chunk[64 * KIB];
	uint64_t at;
	int err = 0;

	memset(chunk, 'b', sizeof(chunk));
	for (at = 0; !err && at < SIZE; at += sizeof(chunk))
		err = near->ops->put(near, at, chunk, sizeof(chunk));
	return err;
}

static int full_disk(const char *path)
{
	static char chunk[64 * KIB], zeros[64 * KIB];
	struct near *near;
	struct err e;

	if (near_dir_open(&near, path, SIZE, &e))
		return 1;
	if (fill_disk(near) != -ENOSPC || near->ops->write(near, MIB, zeros, PAGE_BYTES) != -ENOSPC)
		return 2;
	/* what was there is there, room is given back, and taken again */
	if (near->ops->read(near, 0, chunk, sizeof(chunk)) || chunk[0] != 'b' ||
	    chunk[65535] != 'b')
		return 3;
	if (near->ops->drop(near, range_of(0, 4 * sizeof(chunk))))
		return 4;
	if (near->ops->put(near, MIB, chunk, sizeof(chunk)))
		return 5;
	/* of what failed in the middle nothing shows through zeros */
	if (fill_disk(near) != -ENOSPC || near->ops->put(near, 3 * 64 * KIB, NULL, 64 * KIB) ||
	    near->ops->read(near, 3 * 64 * KIB, chunk, sizeof(chunk)))
		return 6;
	if (memcmp(chunk, zeros, sizeof(chunk)))
		return 7;
	near->ops->close(near);
	return 0;
}

static void a_full_disk_is_no_room_and_recovers(void **state)
{
	struct dir *d = *state;
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid)
		_exit(disk_mount(d->path) ? full_disk(d->path) : 77);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip(); /* no mount namespaces here */
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_memory),
		cmocka_unit_test_setup_teardown(in_a_directory_without_a_name, dir_setup,
						dir_teardown),
		cmocka_unit_test_setup_teardown(a_directory_that_is_none_is_named, dir_setup,
						dir_teardown),
		cmocka_unit_test_setup_teardown(a_full_disk_is_no_room_and_recovers, dir_setup,
						dir_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
