/* SPDX-License-Identifier: Apache-2.0 */
/* The near store that no program maps, in memory. test_near_disk.c has the one on a disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "region/near.h"

#define SIZE (4 * MIB)

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
