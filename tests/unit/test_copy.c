/* SPDX-License-Identifier: Apache-2.0 */
/* The copy: its state file, the walk over extents, and the engine on stores in memory, with faults.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/rng.h"
#include "cmd/copy.h"
#include "store/spec.h"

#define UNIT (64 * KIB)

struct fixture {
	char dir[64], path[96];
	struct run run;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct loop_options o = { .engine = LOOP_EPOLL, .env = &f->run.env };

	snprintf(f->dir, sizeof(f->dir), "/tmp/remora-copy-XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	snprintf(f->path, sizeof(f->path), "%s/state", f->dir);
	env_init(&f->run.env);
	*state = f;
	return loop_open(&f->run.loop, &o, NULL);
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	char cmd[160];

	loop_close(f->run.loop);
	unlink(f->path);
	snprintf(cmd, sizeof(cmd), "%s/src", f->dir);
	unlink(cmd);
	snprintf(cmd, sizeof(cmd), "%s/dst", f->dir);
	unlink(cmd);
	if (rmdir(f->dir)) /* something was left behind */
		return -1;
	free(f);
	return 0;
}

/* ---- state ---- */

static const struct copy_key key = { .size = 200 * UNIT - 5,
				     .unit = UNIT,
				     .source = 0x123456789abcdef0,
				     .source_mtime_ns = 17,
				     .destination = 99 };

static void what_is_saved_is_loaded(void **state)
{
	struct fixture *f = *state;
	uint64_t bits[BITMAP_WORDS(200)] = { 0 }, got[BITMAP_WORDS(200)] = { 0 };

	bitmap_set_range(bits, 0, 3);
	bitmap_set_range(bits, 63, 70);
	bitmap_set(bits, 199);
	assert_int_equal(copy_state_load(f->path, &key, got), -ENOENT);
	assert_int_equal(copy_state_save(f->path, &key, bits), 0);
	assert_int_equal(copy_state_load(f->path, &key, got), 0);
	assert_memory_equal(bits, got, sizeof(bits));
}

static void the_state_of_another_copy_is_not_taken(void **state)
{
	struct fixture *f = *state;
	uint64_t bits[BITMAP_WORDS(200)] = { 1 }, got[BITMAP_WORDS(200)];
	struct copy_key other[5];

	for (size_t i = 0; i < ARRAY_LEN(other); i++)
		other[i] = key;
	other[0].size--;
	other[1].unit *= 2;
	other[2].source++;
	other[3].source_mtime_ns++;
	other[4].destination++;
	assert_int_equal(copy_state_save(f->path, &key, bits), 0);
	for (size_t i = 0; i < ARRAY_LEN(other); i++) {
		memset(got, 0xff, sizeof(got));
		assert_int_equal(copy_state_load(f->path, &other[i], got), -ESTALE);
		assert_int_equal(got[0], 0);
	}
}

/* Cut anywhere, or with any byte changed, it is refused, and no unit counts as copied. */
static void a_damaged_state_is_never_believed(void **state)
{
	struct fixture *f = *state;
	uint64_t bits[BITMAP_WORDS(200)] = { 0 }, got[BITMAP_WORDS(200)];
	char text[1024], bad[1024];
	ssize_t len;
	int fd;

	bitmap_set_range(bits, 5, 50);
	assert_int_equal(copy_state_save(f->path, &key, bits), 0);
	fd = open(f->path, O_RDWR);
	len = read(fd, text, sizeof(text));
	assert_true(len > 100 && len < (ssize_t)sizeof(text));
	for (ssize_t i = 0; i < 2 * len; i++) {
		size_t n = i < len ? (size_t)i : (size_t)len;

		memcpy(bad, text, (size_t)len);
		if (i >= len)
			bad[i - len] ^= 1 << (i % 7);
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, bad, n, 0), n);
		memset(got, 0xff, sizeof(got));
		assert_int_not_equal(copy_state_load(f->path, &key, got), 0);
		assert_int_equal(bitmap_count(got, 200), 0);
	}
	close(fd);
}

/* ---- the engine ---- */

static struct store *open_spec(struct fixture *f, const char *spec, uint64_t create)
{
	struct store_open how = { .loop = f->run.loop,
				  .create = create,
				  .create_size = create,
				  .deadline_ns = NEVER_NS };
	struct store *store = NULL;
	struct err e = { 0 };

	if (spec_open(&store, spec, &how, &e))
		fail_msg("%s", e.text);
	return store;
}

static void fill(struct store *store, uint64_t seed)
{
	struct rng rng;
	uint8_t *buf = malloc(UNIT);

	rng_init(&rng, seed);
	for (uint64_t off = 0; off < store->info.size; off += UNIT) {
		uint64_t len = MIN(UNIT, store->info.size - off);

		rng_fill(&rng, buf, len);
		if (rng_chance(&rng, 400000)) /* zeros, here and there, in the middle too */
			memset(buf + rng_below(&rng, len), 0, len / 2 < UNIT / 2 ? 1 : 100);
		if (rng_chance(&rng, 400000))
			continue;
		assert_int_equal(store_write(store, off, buf, len, 0), 0);
	}
	free(buf);
}

static void assert_same(struct store *a, struct store *b)
{
	uint8_t *x = malloc(UNIT), *y = malloc(UNIT);

	for (uint64_t off = 0; off < a->info.size; off += UNIT) {
		uint64_t len = MIN(UNIT, a->info.size - off);

		assert_int_equal(store_read(a, off, x, len), 0);
		assert_int_equal(store_read(b, off, y, len), 0);
		assert_memory_equal(x, y, len);
	}
	free(x);
	free(y);
}

static void copy_prepare(struct fixture *f, struct copy *c, struct store *src, struct store *dst,
			 uint64_t unit)
{
	struct err e;

	*c = (struct copy){ .run = &f->run,
			    .src = src,
			    .dst = dst,
			    .src_name = "src",
			    .dst_name = "dst",
			    .size = src->info.size,
			    .unit = unit,
			    .units = (size_t)((src->info.size + unit - 1) / unit),
			    .slot_count = 5 };
	assert_int_equal(copy_init(c, &e), 0);
}

static void copy_wait(struct copy *c)
{
	assert_int_equal(loop_run_until(c->run->loop, &c->finished, NEVER_NS), 0);
}

static uint64_t verify_at(struct fixture *f, struct store *a, struct store *b, uint64_t unit)
{
	struct verify v = { .run = &f->run,
			    .side = { a, b },
			    .name = { "a", "b" },
			    .size = a->info.size,
			    .unit = unit,
			    .slot_count = 3 };
	struct err e;

	assert_int_equal(verify_init(&v, &e), 0);
	verify_start(&v);
	assert_int_equal(loop_run_until(f->run.loop, &v.finished, NEVER_NS), 0);
	assert_int_equal(v.error.code, 0);
	if (v.differs_at == UINT64_MAX)
		assert_int_equal(v.bytes_done, v.size);
	verify_done(&v);
	return v.differs_at;
}

/* What was in the destination before does not show through where the source has zeros. */
static void any_size_and_unit_gives_the_same_bytes(void **state)
{
	static const char *const sizes[] = {
		"1", "4095", "64K", "65537", "1M", "3000001", "2500K"
	};
	static const uint64_t units[] = { 4 * KIB, 64 * KIB, 256 * KIB };
	struct fixture *f = *state;
	char spec[64];

	for (size_t i = 0; i < ARRAY_LEN(sizes) * ARRAY_LEN(units); i++) {
		struct store *src, *dst;
		struct copy c;

		snprintf(spec, sizeof(spec), "memory:%s", sizes[i / ARRAY_LEN(units)]);
		src = open_spec(f, spec, 0);
		dst = open_spec(f, spec, 0);
		fill(src, i);
		fill(dst, i + 1000);
		copy_prepare(f, &c, src, dst, units[i % ARRAY_LEN(units)]);
		copy_start(&c);
		copy_wait(&c);
		assert_int_equal(c.error.code, 0);
		assert_int_equal(c.bytes_done, c.size);
		assert_int_equal(bitmap_count(c.safe, c.units), c.units);
		copy_done(&c);
		assert_same(src, dst);
		assert_int_equal(verify_at(f, src, dst, units[i % ARRAY_LEN(units)]), UINT64_MAX);
		store_close_wait(src);
		store_close_wait(dst);
	}
}

static void the_first_difference_is_named(void **state)
{
	struct fixture *f = *state;
	struct store *a = open_spec(f, "pattern:5M?seed=7", 0), *b = open_spec(f, "memory:5M", 0);
	static const uint64_t at[] = { 5 * MIB - 1, 4000000, 65536, 65535, 0 };
	uint8_t byte;
	struct copy c;

	copy_prepare(f, &c, a, b, UNIT);
	copy_start(&c);
	copy_wait(&c);
	copy_done(&c);
	assert_int_equal(verify_at(f, a, b, UNIT), UINT64_MAX);
	for (size_t i = 0; i < ARRAY_LEN(at); i++) {
		assert_int_equal(store_read(b, at[i], &byte, 1), 0);
		byte ^= 0x80;
		assert_int_equal(store_write(b, at[i], &byte, 1, 0), 0);
		assert_int_equal(verify_at(f, a, b, UNIT), at[i]);
	}
	store_close_wait(a);
	store_close_wait(b);
}

/* Requests fail by seed. Whatever happens: an end, an error that names a byte, and no unit called
 * safe that is not. */
static void faults_never_make_a_unit_safe_that_is_not(void **state)
{
	struct fixture *f = *state;
	uint8_t *want = malloc(2 * MIB), got[UNIT];
	unsigned failed = 0;
	char spec[128];

	for (int seed = 1; seed <= 40; seed++) {
		struct store *src, *dst;
		struct copy c;

		snprintf(spec, sizeof(spec), "fault:seed=%d,error=%d|memory:2M", seed,
			 seed % 2 ? 0 : 10000);
		src = open_spec(f, spec, 0);
		fill(src->next, (uint64_t)seed);
		assert_int_equal(store_read(src->next, 0, want, 2 * MIB), 0);
		snprintf(spec, sizeof(spec), "fault:seed=%d,error=%d,delay=100us|memory:2M", seed,
			 seed % 3 ? 20000 : 200000);
		dst = open_spec(f, spec, 0);
		copy_prepare(f, &c, src, dst, UNIT);
		copy_start(&c);
		copy_wait(&c);
		failed += c.error.code != 0;
		assert_true((c.error.code == 0) ==
			    (c.bytes_done == c.size && bitmap_count(c.safe, c.units) == c.units));
		for (size_t u = 0; u < c.units; u++) {
			if (!bitmap_get(c.safe, u))
				continue;
			assert_int_equal(store_read(dst->next, u * UNIT, got, UNIT), 0);
			assert_memory_equal(want + u * UNIT, got, UNIT);
		}
		copy_done(&c);
		store_close_wait(src);
		store_close_wait(dst);
	}
	assert_in_range(failed, 10, 39);
	free(want);
}

/* Stopped somewhere and started again with what was safe, as often as it takes. */
static void an_interrupted_copy_goes_on(void **state)
{
	struct fixture *f = *state;
	char src_path[96], dst_path[96];
	struct store *src, *dst;
	bool complete = false;
	unsigned runs = 0;

	snprintf(src_path, sizeof(src_path), "%s/src", f->dir);
	snprintf(dst_path, sizeof(dst_path), "%s/dst", f->dir);
	src = open_spec(f, src_path, 4 * MIB + 17);
	dst = open_spec(f, dst_path, 4 * MIB + 17);
	fill(src, 5);
	fill(dst, 6);
	while (!complete) {
		struct copy c;
		int r;

		copy_prepare(f, &c, src, dst, UNIT);
		c.state_path = f->path;
		c.key = (struct copy_key){
			.size = c.size, .unit = UNIT, .source = 1, .destination = 2
		};
		r = copy_state_load(f->path, &c.key, c.done);
		assert_int_equal(r, runs ? 0 : -ENOENT);
		c.bytes_done = c.bytes_before = MIN(bitmap_count(c.done, c.units) * UNIT, c.size);
		copy_start(&c);
		while (!c.finished && c.bytes_done < c.bytes_before + 10 * UNIT)
			assert_int_equal(loop_step(f->run.loop, NEVER_NS), 0);
		copy_stop(&c);
		copy_wait(&c);
		assert_int_equal(c.error.code, 0);
		assert_true(c.bytes_done > c.bytes_before);
		complete = c.bytes_done == c.size;
		copy_done(&c);
		store_close_wait(src); /* stopping has aborted it */
		src = open_spec(f, src_path, 0);
		runs++;
		assert_true(runs < 100);
	}
	assert_true(runs > 2);
	assert_same(src, dst);
	store_close_wait(src);
	store_close_wait(dst);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_is_saved_is_loaded, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_state_of_another_copy_is_not_taken, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_damaged_state_is_never_believed, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(any_size_and_unit_gives_the_same_bytes, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(the_first_difference_is_named, set_up, tear_down),
		cmocka_unit_test_setup_teardown(faults_never_make_a_unit_safe_that_is_not, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(an_interrupted_copy_goes_on, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
