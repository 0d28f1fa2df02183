/* SPDX-License-Identifier: Apache-2.0 */
/* A near store in a directory: what is there when it is opened again, what damage does, who may
 * have it, and what a full journal becomes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limits.h"
#include "io/loop.h"
#include "region/near_disk_int.h"

#define CHUNK (16 * KIB)
#define SIZE (64 * CHUNK)

struct place {
	char path[64];
	struct loop *loop;
	struct near *near;
	struct near_disk_options options;
	uint64_t clean, dirty; /* bytes found by recover() */
	struct range last_dirty;
	bool done;
	int err;
};

static int place_setup(void **state)
{
	const struct loop_options lo = { .engine = LOOP_EPOLL };
	struct place *p = calloc(1, sizeof(*p));
	const char *tmp = getenv("TMPDIR");
	struct err e;

	assert_non_null(p);
	snprintf(p->path, sizeof(p->path), "%.40s/remora-disk-XXXXXX", tmp ? tmp : "/tmp");
	assert_non_null(mkdtemp(p->path));
	assert_int_equal(loop_open(&p->loop, &lo, &e), 0);
	p->options = (struct near_disk_options){ .dir = p->path, .size = SIZE, .chunk = CHUNK,
						 .identity = 7, .spec = "file:x", .holder = "a test" };
	*state = p;
	return 0;
}

static void path_of(const struct place *p, const char *name, char *buf, size_t len)
{
	snprintf(buf, len, "%s/%s", p->path, name);
}

static int place_teardown(void **state)
{
	static const char *const names[] = { "meta", "data", "journal", "lock", "meta.new",
					     "journal.new" };
	struct place *p = *state;
	char path[128];

	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		path_of(p, names[i], path, sizeof(path));
		unlink(path);
	}
	assert_int_equal(rmdir(p->path), 0);
	loop_close(p->loop);
	free(p);
	return 0;
}

static void found(void *arg, struct range pages, bool dirty)
{
	struct place *p = arg;

	if (dirty) {
		p->dirty += pages.len;
		p->last_dirty = pages;
	} else {
		p->clean += pages.len;
	}
}

static void open_near(struct place *p)
{
	struct err e = { 0 };

	if (near_disk_open(&p->near, p->loop, &p->options, &e))
		fail_msg("%s", e.text);
	p->clean = p->dirty = 0;
	p->near->ops->recover(p->near, found, p);
}

static void open_fails(struct place *p, int err, const char *text)
{
	struct near *near;
	struct err e = { 0 };

	assert_int_equal(near_disk_open(&near, p->loop, &p->options, &e), err);
	if (!strstr(e.text, text))
		fail_msg("'%s' is not in: %s", text, e.text);
}

static void stopped(void *arg)
{
	((struct place *)arg)->done = true;
}

static void close_near(struct place *p)
{
	p->done = false;
	p->near->ops->stop(p->near, stopped, p);
	assert_int_equal(loop_run_until(p->loop, &p->done, NEVER_NS), 0);
	p->near->ops->close(p->near);
}

struct waiter {
	struct near_sync sync;
	struct place *p;
};

static void synced(struct near_sync *sync, int err)
{
	struct waiter *w = (struct waiter *)(void *)sync;

	w->p->done = true;
	w->p->err = err;
}

static void make_safe(struct place *p)
{
	struct waiter w = { .sync = { .done = synced }, .p = p };
	int err = p->near->ops->sync(p->near, &w.sync);

	p->done = false;
	if (!err)
		return;
	assert_int_equal(err, -EINPROGRESS);
	assert_int_equal(loop_run_until(p->loop, &p->done, NEVER_NS), 0);
	assert_int_equal(p->err, 0);
}

static void put(struct place *p, uint64_t off, char c, size_t len)
{
	char *buf = malloc(len);

	assert_non_null(buf);
	memset(buf, c, len);
	assert_int_equal(p->near->ops->put(p->near, off, buf, len), 0);
	free(buf);
}

static void write_at(struct place *p, uint64_t off, char c, size_t len)
{
	char *buf = malloc(len);

	assert_non_null(buf);
	memset(buf, c, len);
	assert_int_equal(p->near->ops->write(p->near, off, buf, len), 0);
	free(buf);
}

static int read_at(struct place *p, uint64_t off, char *c)
{
	return p->near->ops->read(p->near, off, c, 1);
}

static void settle(struct place *p, uint64_t off, uint64_t len)
{
	p->near->ops->settled(p->near, range_of(off, len));
}

/* The first place of `what` in a file of it. */
static off_t file_find(struct place *p, const char *name, const void *what, size_t len)
{
	char path[128];
	uint8_t *all = malloc(4 * MIB);
	ssize_t n;
	off_t at = -1;
	int fd;

	path_of(p, name, path, sizeof(path));
	fd = open(path, O_RDONLY);
	assert_true(all && fd >= 0);
	n = read(fd, all, 4 * MIB);
	assert_true(n > 0);
	for (ssize_t i = 0; at < 0 && i + (ssize_t)len <= n; i++)
		if (!memcmp(all + i, what, len))
			at = i;
	close(fd);
	free(all);
	return at;
}

static void file_flip(struct place *p, const char *name, off_t at)
{
	char path[128], c = 0;
	int fd;

	path_of(p, name, path, sizeof(path));
	fd = open(path, O_RDWR);
	assert_true(fd >= 0 && pread(fd, &c, 1, at) == 1);
	c ^= 1;
	assert_int_equal(pwrite(fd, &c, 1, at), 1);
	close(fd);
}

/* ---- what is there again ---- */

static void what_was_settled_is_clean_and_what_was_written_dirty(void **state)
{
	struct place *p = *state;
	char c;

	open_near(p);
	assert_int_equal(p->clean + p->dirty, 0);
	put(p, 0, 'a', 2 * CHUNK);
	settle(p, 0, 2 * CHUNK);
	put(p, 4 * CHUNK, 'b', CHUNK); /* not settled */
	write_at(p, 6 * CHUNK + PAGE_BYTES, 'c', 2 * PAGE_BYTES);
	put(p, 8 * CHUNK, 'd', CHUNK);
	settle(p, 8 * CHUNK, CHUNK);
	write_at(p, 8 * CHUNK + 100, 'e', 10);
	close_near(p);

	open_near(p);
	assert_int_equal(p->clean, 2 * CHUNK);
	assert_int_equal(p->dirty, 3 * PAGE_BYTES);
	assert_int_equal(p->near->partial, 2);
	assert_int_equal(read_at(p, CHUNK + 5, &c), 0);
	assert_int_equal(c, 'a');
	assert_int_equal(read_at(p, 6 * CHUNK + PAGE_BYTES, &c), 0);
	assert_int_equal(c, 'c');
	assert_int_equal(read_at(p, 8 * CHUNK + 99, &c), 0);
	assert_int_equal(c, 'd');
	assert_int_equal(read_at(p, 8 * CHUNK + 100, &c), 0);
	assert_int_equal(c, 'e');
	assert_int_equal(p->near->damaged_bytes, 0);
	close_near(p);
}

static void what_was_dropped_is_absent(void **state)
{
	struct place *p = *state;

	open_near(p);
	put(p, 0, 'a', 4 * CHUNK);
	settle(p, 0, 4 * CHUNK);
	write_at(p, 6 * CHUNK, 'b', CHUNK);
	assert_int_equal(p->near->ops->drop(p->near, range_of(CHUNK, CHUNK)), 0);
	assert_int_equal(p->near->ops->drop(p->near, range_of(6 * CHUNK, 2 * PAGE_BYTES)), 0);
	close_near(p);
	open_near(p);
	assert_int_equal(p->clean, 3 * CHUNK);
	assert_int_equal(p->dirty, CHUNK - 2 * PAGE_BYTES);
	close_near(p);
}

/* The hash is not known when it was put in parts, or written: a thread finds out. */
static void what_was_written_and_settled_is_clean(void **state)
{
	struct place *p = *state;
	char c;

	open_near(p);
	write_at(p, 0, 'a', CHUNK);
	settle(p, 0, CHUNK);
	put(p, 2 * CHUNK, 'b', PAGE_BYTES);
	put(p, 2 * CHUNK + PAGE_BYTES, 'b', CHUNK - PAGE_BYTES);
	settle(p, 2 * CHUNK, CHUNK);
	write_at(p, 4 * CHUNK, 'c', CHUNK);
	settle(p, 4 * CHUNK, CHUNK);
	write_at(p, 4 * CHUNK, 'd', PAGE_BYTES); /* too late */
	close_near(p);
	open_near(p);
	assert_int_equal(p->clean, 2 * CHUNK);
	assert_int_equal(p->dirty, CHUNK);
	assert_int_equal(read_at(p, 0, &c), 0);
	assert_int_equal(read_at(p, 4 * CHUNK, &c), 0);
	assert_int_equal(c, 'd');
	close_near(p);
}

static void zeros_take_no_room_and_are_there(void **state)
{
	struct place *p = *state;
	static char zeros[CHUNK];
	char c = 'x';

	open_near(p);
	assert_int_equal(p->near->ops->put(p->near, 0, NULL, CHUNK), 0);
	settle(p, 0, CHUNK);
	assert_int_equal(p->near->ops->write(p->near, CHUNK, zeros, CHUNK), 0);
	assert_true(p->near->extra_bytes < CHUNK);
	close_near(p);
	open_near(p);
	assert_int_equal(p->clean, CHUNK);
	assert_int_equal(p->dirty, CHUNK);
	assert_int_equal(read_at(p, CHUNK, &c), 0);
	assert_int_equal(c, 0);
	assert_int_equal(read_at(p, 0, &c), 0);
	close_near(p);
}

/* ---- damage ---- */

static void a_flipped_byte_of_a_clean_chunk_is_found_before_it_is_used(void **state)
{
	struct place *p = *state;
	char c;

	open_near(p);
	put(p, 0, 'a', 3 * CHUNK);
	settle(p, 0, 3 * CHUNK);
	close_near(p);
	file_flip(p, "data", CHUNK + 77);
	file_flip(p, "data", 2 * CHUNK + 77);
	open_near(p);
	assert_int_equal(read_at(p, 0, &c), 0);
	assert_int_equal(read_at(p, CHUNK, &c), -EBADMSG);
	/* a part of it is written: the rest would be believed from then on */
	assert_int_equal(p->near->ops->write(p->near, 2 * CHUNK, "x", 1), -EBADMSG);
	assert_int_equal(p->near->damaged_bytes, 2 * CHUNK);
	assert_int_equal(p->near->ops->drop(p->near, range_of(CHUNK, 2 * CHUNK)), 0);
	write_at(p, 2 * CHUNK, 'b', CHUNK);
	close_near(p);
}

static void a_flipped_byte_of_dirty_data_that_was_safe_is_an_error_that_names_it(void **state)
{
	struct place *p = *state;
	char text[32], all[64];
	off_t at;

	open_near(p);
	write_at(p, 3 * CHUNK, 'q', 2 * PAGE_BYTES);
	make_safe(p);
	write_at(p, 9 * CHUNK, 'r', PAGE_BYTES); /* what tells of the sync is written before it */
	make_safe(p);
	close_near(p);
	memset(all, 'q', sizeof(all));
	at = file_find(p, "journal", all, sizeof(all));
	assert_true(at > 0);
	file_flip(p, "journal", at + 1000);
	snprintf(text, sizeof(text), "bytes %u to %u", (unsigned)(3 * CHUNK),
		 (unsigned)(3 * CHUNK + 2 * PAGE_BYTES - 1));
	open_fails(p, -EUCLEAN, text);
	open_fails(p, -EUCLEAN, "remora cache drop --force");
	file_flip(p, "journal", at + 1000);
	open_near(p);
	assert_int_equal(p->dirty, 3 * PAGE_BYTES);
	close_near(p);
	file_flip(p, "journal", at - 10); /* its head: nobody knows what it was */
	open_fails(p, -EUCLEAN, "nobody can tell");
}

static void damage_of_what_was_written_over_does_not_matter(void **state)
{
	struct place *p = *state;
	char all[64], c;
	off_t at;

	open_near(p);
	write_at(p, 0, 'q', PAGE_BYTES);
	make_safe(p);
	write_at(p, 0, 'r', PAGE_BYTES);
	make_safe(p);
	close_near(p);
	memset(all, 'q', sizeof(all));
	at = file_find(p, "journal", all, sizeof(all));
	file_flip(p, "journal", at);
	open_near(p);
	assert_int_equal(p->dirty, PAGE_BYTES);
	assert_int_equal(read_at(p, 0, &c), 0);
	assert_int_equal(c, 'r');
	close_near(p);
}

static void a_torn_end_is_as_if_never_written(void **state)
{
	struct place *p = *state;
	struct stat st;
	char path[128], c = 0;

	open_near(p);
	write_at(p, 0, 'a', PAGE_BYTES);
	close_near(p);
	path_of(p, "journal", path, sizeof(path));
	assert_int_equal(stat(path, &st), 0);
	open_near(p);
	write_at(p, 0, 'b', PAGE_BYTES);
	/* as a killed process leaves it: nothing is said at the end */
	assert_int_equal(truncate(path, st.st_size + 3000), 0);
	((struct near_disk *)(void *)p->near)->journal.written = (uint64_t)st.st_size;
	((struct near_disk *)(void *)p->near)->spoiled = true;
	close_near(p);
	open_near(p);
	assert_int_equal(p->dirty, PAGE_BYTES);
	assert_int_equal(read_at(p, 0, &c), 0);
	assert_int_equal(c, 'a');
	write_at(p, PAGE_BYTES, 'c', PAGE_BYTES);
	close_near(p);
	open_near(p);
	assert_int_equal(p->dirty, 2 * PAGE_BYTES);
	close_near(p);
}

/* ---- who may have it ---- */

static void a_second_one_is_refused_and_told_who_has_it(void **state)
{
	struct place *p = *state;
	char pid[32];

	snprintf(pid, sizeof(pid), "process %d (a test)", (int)getpid());
	open_near(p);
	open_fails(p, -EBUSY, pid);
	close_near(p);
	open_near(p);
	close_near(p);
}

static void another_resource_is_refused_and_both_are_named(void **state)
{
	struct place *p = *state;

	open_near(p);
	close_near(p);
	p->options.spec = "file:y"; /* the same by its identity */
	open_near(p);
	close_near(p);
	p->options.identity = 8;
	open_fails(p, -EMEDIUMTYPE, "file:x");
	open_fails(p, -EMEDIUMTYPE, "file:y");
	p->options.identity = 0; /* unknown: the spec decides */
	open_fails(p, -EMEDIUMTYPE, "remora cache drop");
	p->options.spec = "file:x";
	open_near(p);
	close_near(p);
	p->options.size += CHUNK;
	open_fails(p, -EMEDIUMTYPE, "1.02 MiB");
}

static void the_chunk_it_was_made_with_stays(void **state)
{
	struct place *p = *state;

	open_near(p);
	close_near(p);
	p->options.chunk = 4 * CHUNK;
	open_near(p);
	assert_int_equal(p->near->chunk, CHUNK);
	close_near(p);
}

static void a_file_of_somebody_else_is_left_alone(void **state)
{
	struct place *p = *state;
	char path[128];
	FILE *f;

	path_of(p, "journal", path, sizeof(path));
	f = fopen(path, "w");
	assert_non_null(f);
	fputs("dear diary\n", f);
	fclose(f);
	open_fails(p, -EEXIST, "journal");
	assert_true(file_find(p, "journal", "dear diary", 10) == 0);
}

static void a_damaged_meta_is_told(void **state)
{
	struct place *p = *state;

	open_near(p);
	close_near(p);
	file_flip(p, "meta", 60);
	open_fails(p, -EUCLEAN, "damaged");
}

/* ---- the journal written anew ---- */

static void the_journal_is_written_anew_when_most_of_it_is_obsolete(void **state)
{
	struct place *p = *state;
	struct near_disk *d;
	char c;

	p->options.budget_bytes = 1 * MIB;
	open_near(p);
	d = CONTAINER_OF(p->near, struct near_disk, near);
	put(p, 8 * CHUNK, 'z', CHUNK);
	settle(p, 8 * CHUNK, CHUNK);
	for (unsigned i = 0; i < 400; i++) {
		write_at(p, i % 3 * PAGE_BYTES, (char)('a' + i % 26), PAGE_BYTES);
		if (i % 10 == 0)
			make_safe(p);
	}
	for (unsigned i = 0; nd_compact_busy(d); i++)
		assert_int_equal(loop_step(p->loop, NEVER_NS), 0);
	assert_true(nd_journal_end(d) < 1 * MIB);
	write_at(p, 20 * CHUNK, 'y', 100 * PAGE_BYTES);
	close_near(p);
	open_near(p);
	assert_int_equal(p->clean, CHUNK);
	assert_int_equal(p->dirty, 103 * PAGE_BYTES);
	assert_int_equal(read_at(p, 0, &c), 0);
	assert_int_equal(c, 'a' + 399 % 26);
	assert_int_equal(read_at(p, 8 * CHUNK, &c), 0);
	close_near(p);
}

/* ---- killed ---- */

#define KILL_PAGES 5u
#define KILL_WRITES 120u

struct shared { /* with the process that is killed */
	unsigned begun, done;
};

static unsigned kill_at;
static atomic_uint calls; /* also of threads of the pool */
static struct near_disk_io under;

static void count_call(void)
{
	if (++calls == kill_at)
		kill(getpid(), SIGKILL);
}

static int killing_write(void *arg, int fd, const struct iovec *iov, int count, uint64_t off)
{
	struct iovec first = iov[count - 1];

	if (calls + 1 == kill_at && first.iov_len > 100) {
		/* within it */
		first.iov_len = 100;
		(void)!under.write(arg, fd, &first, 1, off);
	}
	count_call();
	return under.write(arg, fd, iov, count, off);
}

static int killing_sync(void *arg, int fd)
{
	count_call();
	return under.sync(arg, fd);
}

static int killing_truncate(void *arg, int fd, uint64_t size)
{
	count_call();
	return under.truncate(arg, fd, size);
}

static int killing_punch(void *arg, int fd, uint64_t off, uint64_t len)
{
	count_call();
	return under.punch(arg, fd, off, len);
}

static int killing_rename(void *arg, const char *from, const char *to)
{
	int err;

	count_call();
	err = under.rename(arg, from, to);
	count_call();
	return err;
}

static int killing_open(void *arg, const char *name, enum near_disk_open how)
{
	count_call();
	return under.open(arg, name, how);
}

static void short_run(struct place *p, struct shared *s)
{
	const struct loop_options lo = { .engine = LOOP_EPOLL };
	struct near_disk_io io;
	struct err e;

	assert_int_equal(near_disk_dir(&under, p->path, &e), 0);
	io = under;
	io.write = killing_write;
	io.sync = killing_sync;
	io.truncate = killing_truncate;
	io.punch = killing_punch;
	io.rename = killing_rename;
	io.open = killing_open;
	p->options.io = &io;
	assert_int_equal(loop_open(&p->loop, &lo, &e), 0);
	open_near(p);
	put(p, 8 * CHUNK, 'z', 2 * CHUNK);
	settle(p, 8 * CHUNK, 2 * CHUNK);
	for (unsigned i = 0; i < KILL_WRITES; i++) {
		s->begun = i + 1;
		write_at(p, i % KILL_PAGES * PAGE_BYTES, (char)('A' + i % 50), PAGE_BYTES);
		s->done = i + 1;
		if (i % 16 == 0)
			make_safe(p);
		if (i == 60)
			assert_int_equal(p->near->ops->drop(p->near, range_of(9 * CHUNK, CHUNK)),
					 0);
	}
	close_near(p);
}

static bool page_is_that_of(struct place *p, unsigned page, unsigned writes)
{
	unsigned i = writes; /* the last one of this page among the first ones */
	char got[PAGE_BYTES], want[PAGE_BYTES];

	while (i && (i - 1) % KILL_PAGES != page)
		i--;
	memset(want, i ? 'A' + (int)(i - 1) % 50 : 0, sizeof(want));
	if (!i) /* never written: then it is absent */
		return true;
	assert_int_equal(p->near->ops->read(p->near, page * PAGE_BYTES, got, sizeof(got)), 0);
	return !memcmp(got, want, sizeof(got));
}

static void after_the_kill(struct place *p, const struct shared *s)
{
	char c;

	p->options.io = NULL;
	open_near(p);
	for (unsigned i = 0; i < KILL_PAGES; i++)
		assert_true(page_is_that_of(p, i, s->done) || page_is_that_of(p, i, s->begun));
	assert_true(p->dirty >= MIN(s->done, KILL_PAGES) * PAGE_BYTES);
	if (p->clean) { /* whatever is said to be clean is */
		int err = read_at(p, 8 * CHUNK, &c);

		assert_true(err || c == 'z');
	}
	close_near(p);
}

static void a_process_killed_at_any_call_loses_nothing_that_was_written(void **state)
{
	struct place *p = *state;
	struct shared *s = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct near_disk_look look;
	int status = 0;
	struct err e;

	assert_true(s != MAP_FAILED);
	p->options.budget_bytes = 1 * MIB; /* the journal is written anew, too */
	for (kill_at = 1; !WIFEXITED(status) || kill_at == 1; kill_at++) {
		pid_t pid;

		*s = (struct shared){ 0 };
		pid = fork();
		assert_true(pid >= 0);
		if (!pid) {
			short_run(p, s);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status) ? !WEXITSTATUS(status) :
						WTERMSIG(status) == SIGKILL);
		after_the_kill(p, s);
		assert_int_equal(near_disk_remove(&look, p->path, true, &e), 0);
	}
	assert_true(kill_at > 200);
	munmap(s, PAGE_BYTES);
}

/* ---- for people ---- */

static void a_look_compares_and_a_removal_minds_what_is_dirty(void **state)
{
	struct place *p = *state;
	struct near_disk_look look;
	struct err e;

	open_near(p);
	put(p, 0, 'a', 2 * CHUNK);
	settle(p, 0, 2 * CHUNK);
	write_at(p, 4 * CHUNK, 'b', PAGE_BYTES);
	make_safe(p);
	assert_int_equal(near_disk_look(&look, p->path, NEAR_DISK_GLANCE, NULL, &e), 0);
	assert_true(look.held && strstr(look.holder, "a test"));
	assert_int_equal(near_disk_look(&look, p->path, NEAR_DISK_COMPARE, NULL, &e), -EBUSY);
	assert_int_equal(near_disk_remove(&look, p->path, true, &e), -EBUSY);
	close_near(p);
	file_flip(p, "data", CHUNK);
	assert_int_equal(near_disk_look(&look, p->path, NEAR_DISK_COMPARE, NULL, &e), 0);
	assert_false(look.held);
	assert_int_equal(look.clean_bytes, 2 * CHUNK);
	assert_int_equal(look.bad_bytes, CHUNK);
	assert_int_equal(look.dirty_bytes, PAGE_BYTES);
	assert_int_equal(near_disk_remove(&look, p->path, false, &e), -EUCLEAN);
	assert_non_null(strstr(e.text, "4 KiB"));
	assert_int_equal(near_disk_remove(&look, p->path, true, &e), 0);
	assert_int_equal(near_disk_look(&look, p->path, NEAR_DISK_GLANCE, NULL, &e), -ENOENT);
	open_near(p);
	assert_int_equal(p->clean + p->dirty, 0);
	close_near(p);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, place_setup, place_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_was_settled_is_clean_and_what_was_written_dirty),
		TEST(what_was_dropped_is_absent),
		TEST(what_was_written_and_settled_is_clean),
		TEST(zeros_take_no_room_and_are_there),
		TEST(a_flipped_byte_of_a_clean_chunk_is_found_before_it_is_used),
		TEST(a_flipped_byte_of_dirty_data_that_was_safe_is_an_error_that_names_it),
		TEST(damage_of_what_was_written_over_does_not_matter),
		TEST(a_torn_end_is_as_if_never_written),
		TEST(a_second_one_is_refused_and_told_who_has_it),
		TEST(another_resource_is_refused_and_both_are_named),
		TEST(the_chunk_it_was_made_with_stays),
		TEST(a_file_of_somebody_else_is_left_alone),
		TEST(a_damaged_meta_is_told),
		TEST(the_journal_is_written_anew_when_most_of_it_is_obsolete),
		TEST(a_process_killed_at_any_call_loses_nothing_that_was_written),
		TEST(a_look_compares_and_a_removal_minds_what_is_dirty),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
