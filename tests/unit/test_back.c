/* SPDX-License-Identifier: Apache-2.0 */
/* The back ends that are in this process: what the contract suite cannot see from outside. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "back/back.h"
#include "base/rng.h"
#include "remora/remora.h"

const struct store_kind store_kinds[] = {
	{ "file", true, "file:PATH[?direct=BOOL][&readonly=BOOL][&size=SIZE]", back_file_open },
	{ "memory", true, "memory:SIZE", back_memory_open },
	{ "pattern", true, "pattern:SIZE[?unit=TEXT][&seed=N]", back_pattern_open },
	{ "callbacks", true, "callbacks:", back_callbacks_open },
	{ 0 },
};

struct world {
	char dir[64], path[128];
	struct env env;
	struct loop *loop;
	struct store *store;
	struct err e;
};

static int world_open(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct loop_options options = { .engine = LOOP_EPOLL };
	const char *tmp = getenv("TMPDIR");

	assert_non_null(w);
	*state = w;
	snprintf(w->dir, sizeof(w->dir), "%.40s/back-XXXXXX", tmp && strlen(tmp) <= 40 ? tmp : "/tmp");
	assert_non_null(mkdtemp(w->dir));
	snprintf(w->path, sizeof(w->path), "%s/f", w->dir);
	env_init(&w->env);
	options.env = &w->env;
	return loop_open(&w->loop, &options, &w->e);
}

static int world_close(void **state)
{
	struct world *w = *state;

	store_close_wait(w->store);
	loop_close(w->loop);
	unlink(w->path);
	rmdir(w->dir);
	free(w);
	return 0;
}

/* `fmt` may have a %s, for the path. */
static int open_how(struct world *w, struct store_open how, const char *fmt)
{
	const char *at = strstr(fmt, "%s");
	char spec[512];

	if (at)
		snprintf(spec, sizeof(spec), "%.*s%s%s", (int)(at - fmt), fmt, w->path, at + 2);
	else
		snprintf(spec, sizeof(spec), "%s", fmt);
	store_close_wait(w->store);
	w->store = NULL;
	how.loop = w->loop;
	how.deadline_ns = NEVER_NS;
	return spec_open(&w->store, spec, &how, &w->e);
}

static int open_spec(struct world *w, const char *fmt)
{
	return open_how(w, (struct store_open){ 0 }, fmt);
}

static void file_make(struct world *w, const char *content, size_t len)
{
	int fd = open(w->path, O_CREAT | O_TRUNC | O_WRONLY, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, content, len), len);
	close(fd);
}

static void expect_text(struct world *w, const char *text)
{
	if (!strstr(w->e.text, text))
		fail_msg("'%s' is not in: %s", text, w->e.text);
}

/* ---- file ---- */

static void a_missing_file_is_an_error_and_says_how_to_make_it(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_spec(w, "%s"), -ENOENT);
	expect_text(w, "?size=1G makes one");
	assert_int_equal(open_spec(w, "file:%s?readonly=1"), -ENOENT);
	assert_int_equal(open_spec(w, "memry:64M"), -ENOENT);
	expect_text(w, "no back end is called 'memry'");
	assert_int_equal(open_spec(w, "file:"), -EINVAL);
	expect_text(w, "needs a path");
	assert_int_equal(open_how(w, (struct store_open){ .read_only = true, .create = true }, "%s"), -ENOENT);
	assert_int_not_equal(access(w->path, F_OK), 0);
}

static void a_file_is_made_with_its_size_and_never_cut(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_spec(w, "file:%s?size=10000"), 0);
	assert_int_equal(w->store->info.size, 10000);
	assert_int_equal(open_spec(w, "file:%s?size=1"), 0);
	assert_int_equal(w->store->info.size, 10000);
	assert_int_equal(open_spec(w, "file:%s?size=20000"), 0);
	assert_int_equal(w->store->info.size, 20000);
	assert_int_equal(open_how(w, (struct store_open){ .create = true, .create_size = 50000 }, "%s"), 0);
	assert_int_equal(w->store->info.size, 20000); /* it was there */
	unlink(w->path);
	assert_int_equal(open_how(w, (struct store_open){ .create = true, .create_size = 50000 }, "%s"), 0);
	assert_int_equal(w->store->info.size, 50000);
}

static void what_is_no_file_is_refused_by_name(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_spec(w, "/dev/null"), -ENODEV);
	expect_text(w, "a special file");
	assert_int_equal(mkdir(w->path, 0700), 0);
	assert_int_equal(open_spec(w, "%s"), -EISDIR);
	expect_text(w, "a directory");
	assert_int_equal(open_spec(w, "file:%s?readonly=1"), -EISDIR);
	rmdir(w->path);
	assert_int_equal(mkfifo(w->path, 0600), 0);
	assert_int_equal(open_spec(w, "%s"), -ENODEV); /* and does not wait for a writer */
	expect_text(w, "a pipe");
}

static void a_file_that_may_not_be_written_names_the_way_to_read_it(void **state)
{
	struct world *w = *state;

	/* A program that runs cannot be written, not even by root. */
	assert_true(open_spec(w, "/proc/self/exe") < 0);
	expect_text(w, "for reading only: file:/proc/self/exe?readonly=1");
	assert_int_equal(open_spec(w, "file:/proc/self/exe?readonly=1"), 0);
	assert_true(w->store->info.read_only);
}

static void a_file_that_shrank_is_an_error_and_not_zeros(void **state)
{
	static const char *const specs[] = { "%s", "file:%s?direct=1" };
	struct world *w = *state;
	struct extent x[4];
	struct extents extents = { .at = x, .max = 4 };
	uint8_t *buf = aligned_alloc(4096, 16384);
	char content[16384];

	assert_non_null(buf);
	memset(content, 'x', sizeof(content));
	for (size_t i = 0; i < ARRAY_LEN(specs); i++) {
		file_make(w, content, sizeof(content));
		assert_int_equal(open_spec(w, specs[i]), 0);
		assert_int_equal(store_read(w->store, 0, buf, 16384), 0);
		assert_int_equal(truncate(w->path, 5000), 0);
		assert_int_equal(store_read(w->store, 0, buf, 16384), -EIO);
		assert_int_equal(store_read(w->store, 8192, buf, 4096), -EIO);
		assert_int_equal(store_read(w->store, 0, buf, 4096), 0);
		assert_int_equal(store_extents(w->store, 0, 16384, &extents), -EIO);
	}
	free(buf);
}

static int sync_fails(void *arg, const char *point)
{
	return *(bool *)arg && !strcmp(point, "file.sync") ? -EIO : 0;
}

static void after_a_failed_sync_the_file_is_another_instance(void **state)
{
	struct world *w = *state;
	uint64_t instance;
	bool failing = false;
	char status[128];

	assert_int_equal(open_spec(w, "file:%s?size=4096"), 0);
	w->env.fault = sync_fails;
	/* env's clock has no use for arg */
	w->env.arg = &failing;
	instance = w->store->info.instance;
	assert_int_not_equal(instance, 0);
	assert_int_equal(store_write(w->store, 0, "x", 1, 0), 0);
	assert_int_equal(store_flush(w->store), 0);
	assert_int_equal(w->store->info.instance, instance);
	assert_int_equal(store_write(w->store, 0, "y", 1, 0), 0);
	failing = true;
	assert_int_equal(store_flush(w->store), -EIO);
	failing = false;
	/* The kernel says 0 from here on, and what was written before may be gone: the writer can
	 * see it. */
	assert_int_not_equal(w->store->info.instance, instance);
	assert_int_equal(store_write(w->store, 0, "y", 1, REQ_FUA), 0);
	w->store->ops->status(w->store, status, sizeof(status));
	assert_non_null(strstr(status, "sync_error=5"));
}

static void holes_are_told_and_made(void **state)
{
	struct world *w = *state;
	struct extent x[8];
	struct extents extents = { .at = x, .max = 8 };
	char block[65536];
	struct stat st;

	memset(block, 'd', sizeof(block));
	assert_int_equal(open_spec(w, "file:%s?size=1M"), 0);
	assert_int_equal(store_write(w->store, 256 * KIB, block, sizeof(block), 0), 0);
	assert_int_equal(store_flush(w->store), 0);
	assert_int_equal(store_extents(w->store, 0, MIB, &extents), 0);
	assert_int_equal(extents.count, 3);
	assert_true(x[0].zero && !x[1].zero && x[2].zero);
	assert_int_equal(x[0].len, 256 * KIB);
	extents.max = 1;
	assert_int_equal(store_extents(w->store, 256 * KIB + 1, MIB - 256 * KIB - 1, &extents), 0);
	assert_int_equal(extents.count, 1);
	assert_int_equal(x[0].len, sizeof(block) - 1);
	assert_int_equal(store_zero(w->store, 0, MIB), 0);
	assert_int_equal(stat(w->path, &st), 0);
	assert_int_equal(st.st_blocks, 0);
	assert_int_equal(st.st_size, MIB);
}

static void the_same_file_has_the_same_identity_under_any_name(void **state)
{
	struct world *w = *state;
	char other[160];
	uint64_t identity;

	assert_int_equal(open_spec(w, "file:%s?size=4096"), 0);
	identity = w->store->info.identity;
	snprintf(other, sizeof(other), "%s2", w->path);
	assert_int_equal(link(w->path, other), 0);
	assert_int_equal(open_spec(w, other), 0);
	assert_int_equal(w->store->info.identity, identity);
	assert_int_equal(open_spec(w, "memory:4096"), 0);
	assert_int_not_equal(w->store->info.instance, 0);
	unlink(other);
}

/* ---- pattern ---- */

static void a_pattern_is_computed_from_the_offset(void **state)
{
	struct world *w = *state;
	uint8_t buf[5000], want[8];
	struct rng rng;

	assert_int_equal(open_spec(w, "pattern:1E"), -EINVAL);
	assert_int_equal(open_spec(w, "pattern:1P"), 0);
	for (uint64_t off = (TIB << 9) + 1; off < (TIB << 9) + 5; off++) {
		assert_int_equal(store_read(w->store, off, buf, sizeof(buf)), 0);
		for (size_t i = 0; i < sizeof(buf); i++)
			assert_int_equal(buf[i], "abc"[(off + i) % 3]);
	}
	assert_int_equal(open_spec(w, "pattern:64K?unit=0123456"), 0);
	assert_int_equal(store_read(w->store, 12345, buf, 2000), 0);
	for (size_t i = 0; i < 2000; i++)
		assert_int_equal(buf[i], "0123456"[(12345 + i) % 7]);
	assert_int_equal(open_spec(w, "pattern:64K?seed=5"), 0);
	rng_init(&rng, 5);
	assert_int_equal(store_read(w->store, 0, buf, 4096), 0);
	for (size_t i = 0; i < 4096; i++) {
		uint64_t v;

		if (i % 8 == 0) {
			v = rng_next(&rng);
			for (size_t b = 0; b < 8; b++)
				want[b] = (uint8_t)(v >> (8 * b));
		}
		assert_int_equal(buf[i], want[i % 8]);
	}
	/* across blocks, unaligned */
	assert_int_equal(store_read(w->store, 4093, buf + 4093, 10), 0);
	assert_int_equal(buf[4095], want[7]);
	assert_int_equal(open_spec(w, "pattern:64K?seed=5&unit=x"), -EINVAL);
	assert_int_equal(open_spec(w, "pattern:"), -EINVAL);
}

static void memory_needs_a_size_that_can_be(void **state)
{
	struct world *w = *state;

	assert_int_equal(open_spec(w, "memory:"), -EINVAL);
	expect_text(w, "needs a size");
	assert_int_equal(open_spec(w, "memory:lots"), -EINVAL);
	assert_int_equal(open_spec(w, "memory:1000P"), -EINVAL);
	assert_int_equal(open_spec(w, "memory:0"), 0);
	assert_int_equal(store_read(w->store, 0, w->path, 0), 0);
	assert_int_equal(store_read(w->store, 0, w->path, 1), -EINVAL);
}

/* ---- callbacks ---- */

struct user {
	pthread_mutex_t lock;
	unsigned inside, most;
	int answer;
};

static int user_read(void *arg, uint64_t off, void *buf, size_t len)
{
	struct user *u = arg;

	pthread_mutex_lock(&u->lock);
	u->inside++;
	u->most = MAX(u->most, u->inside);
	pthread_mutex_unlock(&u->lock);
	sched_yield();
	memset(buf, (int)(off & 0x7f), len);
	pthread_mutex_lock(&u->lock);
	u->inside--;
	pthread_mutex_unlock(&u->lock);
	return u->answer;
}

static int user_write(void *arg, uint64_t off, const void *buf, size_t len)
{
	(void)off, (void)buf, (void)len;
	return ((struct user *)arg)->answer;
}

static int user_size(void *arg, uint64_t *ret)
{
	*ret = 1 * MIB;
	return ((struct user *)arg)->answer;
}

struct read_ask {
	struct req req;
	uint8_t buf[16];
	unsigned *left;
	bool *all;
};

static void read_done(struct req *req, int err)
{
	struct read_ask *a = CONTAINER_OF(req, struct read_ask, req);

	assert_int_equal(err, 0);
	assert_int_equal(a->buf[15], req->range.off & 0x7f);
	*a->all = !--*a->left;
}

static void callbacks_run_one_at_a_time_unless_more_threads_are_allowed(void **state)
{
	struct user u = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct remora_callbacks fn = { .read = user_read, .size = user_size };
	struct read_ask *a = calloc(100, sizeof(*a));
	struct world *w = *state;
	unsigned left = 100;
	bool all = false;

	assert_non_null(a);
	assert_int_equal(open_how(w, (struct store_open){ .callbacks = &fn, .callbacks_arg = &u }, "callbacks:"), 0);
	assert_true(w->store->info.read_only);
	for (unsigned i = 0; i < 100; i++) {
		a[i] = (struct read_ask){ .left = &left, .all = &all };
		a[i].req = (struct req){ .op = REQ_READ, .range = { i * 100, 16 },
					 .data = { a[i].buf, 16 },
					 .done = read_done };
		req_submit(w->store, &a[i].req);
	}
	assert_int_equal(loop_run_until(w->loop, &all, NEVER_NS), 0);
	assert_int_equal(u.most, 1);
	free(a);
}

static void callbacks_errors_come_through_and_nonsense_is_an_error(void **state)
{
	struct user u = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct remora_callbacks fn = { .read = user_read, .write = user_write, .size = user_size };
	struct store_open how = { .callbacks = &fn, .callbacks_arg = &u };
	struct world *w = *state;
	char buf[8];

	assert_int_equal(open_spec(w, "callbacks:"), -EINVAL);
	expect_text(w, "functions of their own");
	assert_int_equal(open_how(w, how, "callbacks:"), 0);
	/* without flush a write is durable when it returns */
	assert_int_equal(store_flush(w->store), 0);
	assert_int_equal(store_write(w->store, 0, "x", 1, REQ_FUA), 0);
	u.answer = -ENOLINK;
	assert_int_equal(store_read(w->store, 0, buf, 8), -ENOLINK);
	assert_int_equal(store_write(w->store, 0, "x", 1, 0), -ENOLINK);
	u.answer = 17;
	assert_int_equal(store_read(w->store, 0, buf, 8), -EIO);
	u.answer = -EACCES;
	assert_int_equal(open_how(w, how, "callbacks:"), -EACCES);
	fn.read = NULL;
	assert_int_equal(open_how(w, how, "callbacks:"), -EINVAL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, world_open, world_close)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_missing_file_is_an_error_and_says_how_to_make_it),
		TEST(a_file_is_made_with_its_size_and_never_cut),
		TEST(what_is_no_file_is_refused_by_name),
		TEST(a_file_that_may_not_be_written_names_the_way_to_read_it),
		TEST(a_file_that_shrank_is_an_error_and_not_zeros),
		TEST(after_a_failed_sync_the_file_is_another_instance),
		TEST(holes_are_told_and_made),
		TEST(the_same_file_has_the_same_identity_under_any_name),
		TEST(a_pattern_is_computed_from_the_offset),
		TEST(memory_needs_a_size_that_can_be),
		TEST(callbacks_run_one_at_a_time_unless_more_threads_are_allowed),
		TEST(callbacks_errors_come_through_and_nonsense_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
