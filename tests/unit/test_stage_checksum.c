/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checksum stage: what is not what was written is found, what was written is never accused,
 * also after a crash at any call that changes files and after power cuts below.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "io/sim.h"
#include "stage/checksum_int.h"
#include "stage/stage.h"

extern store_open_fn back_directory_open, back_memory_open;

const struct store_kind store_kinds[] = {
	{ "directory", true,
	  "directory:PATH[?size=SIZE][&chunk=SIZE][&create=BOOL][&readonly=BOOL]",
	  back_directory_open },
	{ "memory", true, "memory:SIZE", back_memory_open },
	{ "align", false, "align[:block=SIZE][,len=SIZE]", stage_align_open },
	{ "checksum", false, "checksum:file=PATH[,algorithm=NAME][,chunk=SIZE][,create=BOOL]",
	  stage_checksum_open },
	{ "powercut", false, "powercut[:after=N][,times=N][,seed=N][,keep=SIZE]",
	  stage_powercut_open },
	{ 0 },
};

#define CHUNK 4096u
#define SIZE (9 * CHUNK + 1000u)
#define SIZE_TEXT "37864"

static_assert(SIZE == 37864, "as the text says");

#define LIFE_STEPS 25u
#include "killed.h"

struct world {
	struct sim *sim;
	struct loop *loop;
	struct store *store;
	char dir[64];
};

static uint8_t buf[SIZE], other[SIZE];

static void world_loop(struct world *w, bool sim)
{
	struct loop_options options = { .engine = sim ? LOOP_SIM : LOOP_EPOLL };
	struct err e;

	if (sim)
		assert_int_equal(0, sim_open(&w->sim, 1));
	options.sim = w->sim;
	if (loop_open(&w->loop, &options, &e))
		fail_msg("%s", e.text);
}

static void world_init(struct world *w)
{
	memset(w, 0, sizeof(*w));
	life_dir_make(w->dir, sizeof(w->dir), "checksum");
	world_loop(w, false);
}

/* %d in the spec is the directory. */
static int open_err(struct world *w, const char *text, bool read_only, struct err *e)
{
	struct store_open how = { .loop = w->loop,
				  .deadline_ns = NEVER_NS,
				  .read_only = read_only };
	char spec[512];
	size_t n = 0;

	for (; *text; text++)
		if (text[0] == '%')
			n += (size_t)snprintf(spec + n, sizeof(spec) - n, "%s", w->dir), text++;
		else
			spec[n++] = *text;
	spec[n] = '\0';
	w->store = NULL;
	return spec_open(&w->store, spec, &how, e);
}

static void open_ok(struct world *w, const char *text)
{
	struct err e;

	if (open_err(w, text, false, &e))
		fail_msg("%s", e.text);
}

static void close_store(struct world *w)
{
	store_close_wait(w->store);
	w->store = NULL;
}

static void world_done(struct world *w)
{
	char path[80];

	close_store(w);
	loop_close(w->loop);
	snprintf(path, sizeof(path), "%s/d", w->dir);
	life_dir_remove(path);
	life_dir_remove(w->dir);
}

static struct store *bottom_of(struct world *w)
{
	struct store *s = w->store;

	while (s->next)
		s = s->next;
	return s;
}

static void flip(struct world *w, uint64_t off)
{
	uint8_t byte;

	assert_int_equal(0, store_read(bottom_of(w), off, &byte, 1));
	byte ^= 1;
	assert_int_equal(0, store_write(bottom_of(w), off, &byte, 1, 0));
}

#define MEMORY "memory:" SIZE_TEXT

static const char *const rows[] = {
	"checksum:file=%d/s,create=1,chunk=4K|" MEMORY,
	"checksum:file=%d/s,create=1,chunk=4K,algorithm=xxh128|" MEMORY,
	"checksum:file=%d/s,create=1,chunk=4K,algorithm=sha256|" MEMORY,
};

static void one_flipped_bit_is_an_error_that_names_the_chunk(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct world w;

		world_init(&w);
		open_ok(&w, rows[i]);
		memset(buf, 'x', SIZE);
		assert_int_equal(0, store_write(w.store, 0, buf, SIZE, 0));
		assert_int_equal(0, store_flush(w.store));
		flip(&w, 2 * CHUNK + 77);
		flip(&w, SIZE - 1);
		assert_int_equal(0, store_read(w.store, 0, buf, 2 * CHUNK));
		assert_int_equal(-EIO, store_read(w.store, 2 * CHUNK, buf, 1)); /* of its chunk */
		assert_non_null(strstr(w.store->last_why,
				       "the chunk at byte 8192 is not what was written"));
		assert_int_equal(-EIO, store_read(w.store, SIZE - 10, buf, 5));
		/* The rest of a chunk that is written in part is verified, too. */
		assert_int_equal(-EIO, store_write(w.store, 2 * CHUNK, buf, 10, 0));
		assert_int_equal(0, store_write(w.store, 2 * CHUNK, buf, CHUNK, 0));
		assert_int_equal(0, store_read(w.store, 2 * CHUNK, other, CHUNK));
		assert_memory_equal(buf, other, CHUNK);
		flip(&w, SIZE - 1);
		assert_int_equal(0, store_read(w.store, SIZE - 10, buf, 10));
		world_done(&w);
	}
}

static void a_chunk_that_became_zeros_is_an_error_and_no_hole(void **state)
{
	struct extent x[16];
	struct extents extents = { x, ARRAY_LEN(x), 0 };
	struct world w;
	uint64_t at = 0;

	(void)state;
	world_init(&w);
	open_ok(&w, rows[0]);
	memset(buf, 'x', SIZE);
	assert_int_equal(0, store_write(w.store, 0, buf, SIZE, 0));
	assert_int_equal(0, store_zero(w.store, CHUNK, CHUNK));
	assert_int_equal(0, store_flush(w.store));
	assert_int_equal(0, store_zero(bottom_of(&w), 0, SIZE));
	assert_int_equal(-EIO, store_read(w.store, 0, buf, 1));
	assert_int_equal(0, store_read(w.store, CHUNK, buf, CHUNK));
	while (at < SIZE) {
		assert_int_equal(0, store_extents(w.store, at, SIZE - at, &extents));
		for (size_t i = 0; i < extents.count; i++) {
			for (uint64_t b = at; x[i].zero && b < at + x[i].len; b++)
				assert_true(b >= CHUNK && b < 2 * CHUNK);
			at += x[i].len;
		}
	}
	world_done(&w);
}

static void digests_are_kept_beside_the_data(void **state)
{
	struct world w;
	struct err e;

	(void)state;
	world_init(&w);
#define ROW(options) \
	"checksum:file=%d/s" options "|directory:%d/d?size=" SIZE_TEXT "&create=1&chunk=4K"
	assert_int_equal(-ENOENT, open_err(&w, ROW(""), false, &e));
	assert_non_null(strstr(e.text, "create=1"));
	open_ok(&w, ROW(",create=1,chunk=8K"));
	memset(buf, 'x', SIZE);
	assert_int_equal(0, store_write(w.store, 100, buf, SIZE - 100, 0));
	assert_int_equal(0, store_flush(w.store));
	close_store(&w);
	assert_int_equal(-EINVAL, open_err(&w, ROW(",chunk=4K"), false, &e));
	assert_int_equal(-EINVAL, open_err(&w, ROW(",algorithm=sha256"), false, &e));
	assert_int_equal(-EINVAL, open_err(&w, "checksum:file=%d/s|memory:1M", false, &e));
	assert_int_equal(-EINVAL, open_err(&w, ROW(",algorithm=md5"), false, &e));
	open_ok(&w, ROW(""));
	assert_int_equal(8192, stage_checksum_find(w.store)->info.align);
	for (uint64_t off = 0; off < SIZE; off += 8192)
		assert_int_equal(CHECKSUM_KNOWN,
				 stage_checksum_known(stage_checksum_find(w.store), off));
	assert_int_equal(0, store_read(w.store, 0, buf, SIZE));
	flip(&w, 20000);
	assert_int_equal(-EIO, store_read(w.store, 20000, buf, 1));
	close_store(&w);
	assert_int_equal(0, open_err(&w, ROW(""), true, &e)); /* for reading only */
	assert_int_equal(-EIO, store_read(w.store, 20000, buf, 1));
	assert_int_equal(0, store_read(w.store, 0, buf, 100));
	world_done(&w);
}

static void a_damaged_file_of_digests_is_refused(void **state)
{
	char path[80];
	struct world w;
	struct err e;
	int fd;

	(void)state;
	world_init(&w);
	open_ok(&w, rows[0]);
	close_store(&w);
	snprintf(path, sizeof(path), "%s/s", w.dir);
	fd = open(path, O_RDWR);
	assert_int_equal(1, pwrite(fd, "x", 1, 20));
	assert_int_equal(-EBADMSG, open_err(&w, rows[0], false, &e));
	assert_int_equal(0, ftruncate(fd, 100));
	assert_int_equal(-EBADMSG, open_err(&w, rows[0], false, &e));
	assert_int_equal(0, ftruncate(fd, 0)); /* it was about to be made */
	close(fd);
	open_ok(&w, rows[0]);
	world_done(&w);
}

static void what_was_there_before_is_passed_on_until_it_is_written(void **state)
{
	struct world w;
	struct store *sums;

	(void)state;
	world_init(&w);
	open_ok(&w, rows[0]);
	sums = stage_checksum_find(w.store);
	memset(buf, 'o', SIZE);
	assert_int_equal(0, store_write(bottom_of(&w), 0, buf, SIZE, 0));
	assert_int_equal(0, store_read(w.store, 0, other, SIZE));
	assert_memory_equal(buf, other, SIZE);
	assert_int_equal(CHECKSUM_UNKNOWN, stage_checksum_known(sums, CHUNK));
	assert_int_equal(0, store_write(w.store, CHUNK + 5, "n", 1, 0));
	assert_int_equal(CHECKSUM_KNOWN, stage_checksum_known(sums, CHUNK));
	assert_int_equal(0, store_read(sums, CHUNK, buf, CHUNK));
	assert_true(stage_checksum_fits(sums, CHUNK, buf));
	buf[7]++;
	assert_false(stage_checksum_fits(sums, CHUNK, buf));
	world_done(&w);
}

#define MANY 120u

struct many {
	struct req req[MANY];
	unsigned pending;
	bool all;
};

static void many_done(struct req *req, int err)
{
	struct many *m = req->user;

	assert_int_equal(0, err);
	m->all = !--m->pending;
}

/* Requests in flight of the same bytes: the digest is of what is there in the end. */
static void overlapping_requests_leave_a_digest_that_fits(void **state)
{
	struct many *m = calloc(1, sizeof(*m));
	uint8_t *bytes = calloc(MANY, 4 * CHUNK);
	struct rng r;
	struct world w;

	(void)state;
	rng_init(&r, 5);
	world_init(&w);
	open_ok(&w, "checksum:file=%d/s,create=1,chunk=4K|directory:%d/d?size=" SIZE_TEXT
		    "&create=1&chunk=4K");
	for (unsigned turn = 0; turn < 12; turn++) {
		for (unsigned i = 0; i < MANY; i++) {
			uint64_t off = rng_below(&r, SIZE - 4 * CHUNK);
			uint8_t *at = bytes + (size_t)i * 4 * CHUNK;
			uint64_t dice = rng_below(&r, 10);

			memset(at, (int)i, 4 * CHUNK);
			m->req[i] = (struct req){
				.op = dice < 4	 ? REQ_WRITE
				      : dice < 8 ? REQ_READ
				      : dice < 9 ? REQ_ZERO
						 : REQ_FLUSH,
				.range = range_of(off, 1 + rng_below(&r, 3 * CHUNK)),
				.data = { at, 4 * CHUNK },
				.done = many_done,
				.user = m,
			};
			if (dice == 9)
				m->req[i].range = range_of(0, 0);
		}
		m->all = false;
		m->pending = MANY;
		for (unsigned i = 0; i < MANY; i++)
			req_submit(w.store, &m->req[i]);
		assert_int_equal(0, loop_run_until(w.loop, &m->all, NEVER_NS));
		assert_int_equal(0, store_read(w.store, 0, buf, SIZE));
	}
	free(bytes);
	free(m);
	world_done(&w);
}

/* ---- crashes ---- */

/* A store below that forgets what was not flushed, and tears it: whatever is read is no error,
 * since nobody has promised it, and what was flushed is there. */
static void power_cuts_below_accuse_nobody(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 40; seed++) {
		static uint8_t flushed[SIZE];
		bool changed[SIZE / CHUNK + 1] = { 0 };
		struct world w;
		struct rng r;
		char spec[160];

		rng_init(&r, seed);
		world_init(&w);
		snprintf(spec, sizeof(spec),
			 "checksum:file=%%d/s,create=1,chunk=4K|powercut:seed=%llu|" MEMORY,
			 (unsigned long long)seed);
		open_ok(&w, spec);
		memset(flushed, 0, SIZE);
		memset(buf, 0, SIZE);
		for (int i = 0; i < 150; i++) {
			uint64_t off = rng_below(&r, SIZE),
				 len = 1 + rng_below(&r, MIN(2 * CHUNK, SIZE - off));
			uint64_t dice = rng_below(&r, 100);

			if (dice < 50) {
				memset(buf + off, i, len);
				assert_int_equal(0, store_write(w.store, off, buf + off, len, 0));
				for (uint64_t c = off / CHUNK; c <= (off + len - 1) / CHUNK; c++)
					changed[c] = true;
			} else if (dice < 60) {
				assert_int_equal(0, store_flush(w.store));
				assert_int_equal(0, store_read(w.store, 0, flushed, SIZE));
				memset(changed, 0, sizeof(changed));
			} else if (dice < 65) {
				assert_true(stage_powercut_cut(w.store));
				assert_int_equal(0, store_read(w.store, 0, buf, SIZE));
			} else {
				assert_int_equal(0, store_read(w.store, off, other, len));
			}
			assert_int_equal(0, store_read(w.store, 0, other, SIZE));
			for (uint64_t c = 0; c < ARRAY_LEN(changed); c++)
				if (!changed[c])
					assert_memory_equal(other + c * CHUNK, flushed + c * CHUNK,
							    MIN(CHUNK, SIZE - c * CHUNK));
		}
		world_done(&w);
	}
}

#define CRASH_ROW \
	"checksum:file=%d/s,create=1,chunk=4K|directory:%d/d?size=" SIZE_TEXT "&create=1&chunk=4K"

struct killed_life {
	struct life *life;
	const char *dir;
};

static void child_run(void *arg)
{
	struct killed_life *k = arg;
	struct world w = { 0 };

	snprintf(w.dir, sizeof(w.dir), "%s", k->dir);
	world_loop(&w, true);
	open_ok(&w, CRASH_ROW);
	life_run(k->life, w.store, 4, (struct life_odds){ .flush = 600000, .wait = 300000 });
}

static bool child_changes(void *arg, pid_t pid, const struct __ptrace_syscall_info *info)
{
	uint64_t nr = info->entry.nr;

	(void)arg;
	(void)pid;
	return info->op == PTRACE_SYSCALL_INFO_ENTRY &&
	       (nr == SYS_pwrite64 || nr == SYS_fsync || nr == SYS_fdatasync ||
		nr == SYS_renameat || nr == SYS_renameat2 || nr == SYS_unlinkat ||
		nr == SYS_fallocate);
}

static void killed_at_any_system_call_nothing_is_accused_and_changes_are_still_found(void **state)
{
	struct killed_life k = { .life = life_open() };
	const struct killer killer = { child_run, child_changes, &k };
	bool more = true;
	unsigned n;

	(void)state;
	for (n = 0; more; n++) {
		struct world w;
		int r;

		world_init(&w);
		k.dir = w.dir;
		more = life_killed_at(k.life, &killer, n);
		open_ok(&w, CRASH_ROW);
		r = store_read(w.store, 0, other, SIZE);
		if (r)
			fail_msg("killed at call %u: %s", n, w.store->last_why);
		life_check(k.life, other, 4, n);
		/* From now on it is known what is there. */
		for (uint64_t off = 0; off < SIZE; off += CHUNK)
			if (stage_checksum_known(stage_checksum_find(w.store), off) !=
			    CHECKSUM_UNKNOWN) {
				flip(&w, off + 5);
				assert_int_equal(-EIO, store_read(w.store, off, buf, 1));
			}
		world_done(&w);
	}
	assert_true(n > 100);
	munmap(k.life, sizeof(*k.life));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_flipped_bit_is_an_error_that_names_the_chunk),
		cmocka_unit_test(a_chunk_that_became_zeros_is_an_error_and_no_hole),
		cmocka_unit_test(digests_are_kept_beside_the_data),
		cmocka_unit_test(a_damaged_file_of_digests_is_refused),
		cmocka_unit_test(what_was_there_before_is_passed_on_until_it_is_written),
		cmocka_unit_test(overlapping_requests_leave_a_digest_that_fits),
		cmocka_unit_test(power_cuts_below_accuse_nobody),
		cmocka_unit_test(
			killed_at_any_system_call_nothing_is_accused_and_changes_are_still_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
