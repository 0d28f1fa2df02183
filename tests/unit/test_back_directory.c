/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory back end: what its files are after a crash at any system call, what is missing is
 * an error, what others have made is taken over, and its files and waits are bounded.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/sim.h"
#include "store/spec.h"

extern store_open_fn back_directory_open;

const struct store_kind store_kinds[] = {
	{ "directory", true,
	  "directory:PATH[?size=SIZE][&chunk=SIZE][&create=BOOL][&readonly=BOOL]",
	  back_directory_open },
	{ 0 },
};

#define CHUNK 4096u
#define CHUNKS 8u
#define SIZE ((CHUNKS - 1) * CHUNK + 1000u) /* the last one is short */
#define OPTIONS "size=29672&chunk=4K&create=1"

static_assert(SIZE == 29672, "as the options say");

#define LIFE_STEPS 40u
#include "killed.h"

struct world {
	struct sim *sim;
	struct env env;
	struct loop *loop;
	struct store *store;
	char dir[64], logged[512];
	int fault; /* of directory.sync */
};

static uint8_t buf[SIZE], other[SIZE];

static void world_log(void *arg, enum log_level level, const char *text)
{
	(void)level;
	snprintf(((struct world *)arg)->logged, sizeof(((struct world *)arg)->logged), "%s", text);
}

static uint64_t world_now(void *arg)
{
	struct timespec ts;

	(void)arg;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static int world_fault(void *arg, const char *point)
{
	return strcmp(point, "directory.sync") ? 0 : ((struct world *)arg)->fault;
}

/* sim: everything on one thread. */
static void world_loop(struct world *w, bool sim)
{
	struct loop_options options = { .engine = sim ? LOOP_SIM : LOOP_EPOLL };
	struct err e;

	env_init(&w->env);
	w->env.now_ns = world_now;
	w->env.fault = world_fault;
	w->env.arg = w;
	w->env.log = (struct log){ .emit = world_log, .arg = w, .max = LOG_DEBUG };
	if (sim)
		assert_int_equal(0, sim_open(&w->sim, 1));
	else
		options.env = &w->env;
	options.sim = w->sim;
	if (loop_open(&w->loop, &options, &e))
		fail_msg("%s", e.text);
}

static void world_init(struct world *w)
{
	memset(w, 0, sizeof(*w));
	life_dir_make(w->dir, sizeof(w->dir), "directory");
	world_loop(w, false);
}

static int open_err(struct world *w, struct store **ret, const char *options, bool read_only,
		    struct err *e)
{
	struct store_open how = { .loop = w->loop,
				  .deadline_ns = NEVER_NS,
				  .read_only = read_only };
	char spec[256];

	snprintf(spec, sizeof(spec), "directory:%s/d%s%s", w->dir, *options ? "?" : "", options);
	*ret = NULL;
	return spec_open(ret, spec, &how, e);
}

static void open_ok(struct world *w, const char *options)
{
	struct err e;

	if (open_err(w, &w->store, options, false, &e))
		fail_msg("%s", e.text);
}

static void close_store(struct world *w)
{
	store_close_wait(w->store);
	w->store = NULL;
}

static char *path_of(struct world *w, const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/d%s%s", w->dir, *name ? "/" : "", name);
	return path;
}

static void world_done(struct world *w)
{
	close_store(w);
	loop_close(w->loop);
	sim_close(w->sim);
	life_dir_remove(path_of(w, ""));
	rmdir(w->dir);
}

static void put(struct world *w, const char *name, const void *bytes, size_t len)
{
	int fd = open(path_of(w, name), O_WRONLY | O_CREAT | O_TRUNC, 0666);

	assert_true(fd >= 0);
	assert_int_equal(len, write(fd, bytes, len));
	close(fd);
}

static bool there(struct world *w, const char *name)
{
	return !access(path_of(w, name), F_OK);
}

/* ---- what is there ---- */

static void a_file_per_chunk_named_by_its_offset(void **state)
{
	struct world w;
	struct stat st;

	(void)state;
	world_init(&w);
	open_ok(&w, OPTIONS);
	memset(buf, 'x', sizeof(buf));
	assert_int_equal(0, store_write(w.store, CHUNK + 5, buf, 10, 0));
	assert_int_equal(0, store_write(w.store, SIZE - 1, buf, 1, 0));
	assert_false(there(&w, "4096")); /* not before it was flushed */
	assert_int_equal(0, store_flush(w.store));
	assert_int_equal(0, stat(path_of(&w, "4096"), &st));
	assert_int_equal(CHUNK, st.st_size);
	assert_int_equal(0, stat(path_of(&w, "28672"), &st));
	assert_int_equal(1000, st.st_size);
	assert_false(there(&w, "0") || there(&w, "4096.new"));
	close_store(&w);
	open_ok(&w, "");
	assert_int_equal(SIZE, w.store->info.size);
	assert_int_equal(CHUNK, w.store->info.chunk);
	assert_int_equal(0, store_read(w.store, 0, buf, SIZE));
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(buf[i],
				 (i >= CHUNK + 5 && i < CHUNK + 15) || i == SIZE - 1 ? 'x' : 0);
	world_done(&w);
}

static void read_fails(struct world *w, uint64_t off, const char *text)
{
	memset(buf, 0, 16);
	assert_int_equal(-EIO, store_read(w->store, off, buf, 16));
	if (!strstr(w->store->last_why, text))
		fail_msg("'%s' does not say '%s'", w->store->last_why, text);
}

static void a_chunk_that_is_gone_is_an_error_and_never_zeros(void **state)
{
	struct world w;

	(void)state;
	world_init(&w);
	open_ok(&w, OPTIONS);
	memset(buf, 'x', sizeof(buf));
	assert_int_equal(0, store_write(w.store, 0, buf, SIZE, 0));
	assert_int_equal(0, store_flush(w.store));
	assert_int_equal(0, store_read(w.store, 8192, buf, 16));
	/* also while its file is open */
	unlink(path_of(&w, "8192"));
	read_fails(&w, 8192 + 100, "chunk 8192 ");
	assert_int_equal(-EIO, store_write(w.store, 8192, buf, 16, 0)); /* the rest is not known */
	close_store(&w);
	assert_int_equal(0, truncate(path_of(&w, "4096"), 4000));
	open_ok(&w, "");
	assert_non_null(strstr(w.logged, "1 chunk is gone, the first is 8192"));
	read_fails(&w, 8192, "was written and its file is gone");
	read_fails(&w, 4096, "is shorter than a chunk");
	assert_int_equal(0, store_read(w.store, 0, buf, CHUNK));
	/* A write of all of it heals it. */
	memset(buf, 'y', CHUNK);
	assert_int_equal(0, store_write(w.store, 8192, buf, CHUNK, 0));
	assert_int_equal(0, store_flush(w.store));
	close_store(&w);
	open_ok(&w, "");
	memset(buf, 0, CHUNK);
	assert_int_equal(0, store_read(w.store, 8192, buf, CHUNK));
	assert_int_equal('y', buf[4095]);
	world_done(&w);
}

static void a_zeroed_chunk_loses_its_file_when_it_is_flushed(void **state)
{
	struct world w;
	struct extent x[8];
	struct extents extents = { x, ARRAY_LEN(x), 0 };

	(void)state;
	world_init(&w);
	open_ok(&w, OPTIONS);
	memset(buf, 'x', sizeof(buf));
	assert_int_equal(0, store_write(w.store, 0, buf, SIZE, 0));
	assert_int_equal(0, store_flush(w.store));
	assert_int_equal(0, store_zero(w.store, CHUNK, 3 * CHUNK + 7));
	assert_true(there(&w, "4096"));
	assert_int_equal(0, store_read(w.store, 0, buf, SIZE));
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(buf[i], i >= CHUNK && i < 4 * CHUNK + 7 ? 0 : 'x');
	assert_int_equal(0, store_extents(w.store, 0, SIZE, &extents));
	assert_int_equal(3, extents.count);
	assert_true(!x[0].zero && x[1].zero && !x[2].zero && x[1].len == 3 * CHUNK);
	assert_int_equal(0, store_flush(w.store));
	assert_false(there(&w, "4096") || there(&w, "8192") || there(&w, "12288"));
	close_store(&w);
	open_ok(&w, "");
	assert_int_equal(0, store_read(w.store, 0, buf, SIZE));
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(buf[i], i >= CHUNK && i < 4 * CHUNK + 7 ? 0 : 'x');
	world_done(&w);
}

/* r3map's layout: chunks, and nothing else. */
static void a_directory_of_another_program_is_taken_over(void **state)
{
	struct world w;
	struct err e;

	(void)state;
	world_init(&w);
	assert_int_equal(0, mkdir(path_of(&w, ""), 0777));
	memset(buf, 'r', CHUNK);
	put(&w, "0", buf, CHUNK);
	put(&w, "28672", buf, CHUNK); /* the last one is whole there */
	put(&w, "notes.txt", buf, 5);
	assert_int_equal(-EINVAL, open_err(&w, &w.store, "", false, &e));
	assert_non_null(strstr(e.text, "size="));
	assert_int_equal(-EINVAL, open_err(&w, &w.store, "size=29672", false, &e));
	assert_int_equal(-EINVAL, open_err(&w, &w.store, "size=29672&chunk=8K", false, &e));
	assert_int_equal(-EINVAL, open_err(&w, &w.store, "size=4K&chunk=4K", false, &e));
	assert_non_null(strstr(e.text, "28672"));
	assert_false(there(&w, "meta") || there(&w, "index"));
	/* for reading nothing is written */
	assert_int_equal(0, open_err(&w, &w.store, "size=29672&chunk=4K", true, &e));
	assert_int_equal(0, store_read(w.store, SIZE - 10, buf, 10));
	assert_int_equal('r', buf[9]);
	close_store(&w);
	assert_false(there(&w, "meta") || there(&w, "index"));
	open_ok(&w, "size=29672&chunk=4K");
	assert_int_equal(0, store_read(w.store, 0, buf, SIZE));
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(buf[i], i < CHUNK || i >= 28672 ? 'r' : 0);
	close_store(&w);
	unlink(path_of(&w, "0"));
	open_ok(&w, ""); /* from now on the index knows it */
	read_fails(&w, 0, "its file is gone");
	assert_true(there(&w, "notes.txt"));
	world_done(&w);
}

static void size_and_chunk_are_written_down_and_not_negotiated(void **state)
{
	struct world w;
	struct err e;

	(void)state;
	world_init(&w);
	assert_int_equal(-ENOENT, open_err(&w, &w.store, "size=1M", false, &e));
	assert_non_null(strstr(e.text, "create=1"));
	assert_int_equal(-EINVAL, open_err(&w, &w.store, "size=1M&chunk=5000&create=1", false, &e));
	open_ok(&w, OPTIONS);
	close_store(&w);
	assert_int_equal(-EINVAL, open_err(&w, &w.store, "size=1M", false, &e));
	assert_non_null(strstr(e.text, "has size=29672"));
	assert_int_equal(-EINVAL, open_err(&w, &w.store, "chunk=64K", false, &e));
	assert_non_null(strstr(e.text, "has chunk=4096"));
	put(&w, "meta", "remora-directory 2\n", 19);
	assert_int_equal(-EBADMSG, open_err(&w, &w.store, "", false, &e));
	world_done(&w);
}

static void a_damaged_or_missing_index_is_an_error_at_open(void **state)
{
	struct world w;
	struct err e;
	int fd;

	(void)state;
	world_init(&w);
	open_ok(&w, OPTIONS);
	assert_int_equal(0, store_write(w.store, 0, "x", 1, 0));
	close_store(&w);
	fd = open(path_of(&w, "index"), O_RDWR);
	assert_int_equal(1, pwrite(fd, "\377", 1, 64));
	close(fd);
	assert_int_equal(-EBADMSG, open_err(&w, &w.store, "", false, &e));
	assert_non_null(strstr(e.text, "damaged"));
	unlink(path_of(&w, "index"));
	assert_int_equal(-EBADMSG, open_err(&w, &w.store, "", false, &e));
	assert_non_null(strstr(e.text, "index is gone"));
	unlink(path_of(&w, "meta")); /* as the text says */
	open_ok(&w, "size=29672&chunk=4K");
	assert_int_equal(0, store_read(w.store, 0, buf, 1));
	assert_int_equal('x', buf[0]);
	world_done(&w);
}

static void a_second_writer_is_refused(void **state)
{
	struct world w;
	struct store *second;
	struct err e;

	(void)state;
	world_init(&w);
	open_ok(&w, OPTIONS);
	assert_int_equal(-EBUSY, open_err(&w, &second, "", false, &e));
	assert_non_null(strstr(e.text, "is in use"));
	assert_int_equal(-EBUSY, open_err(&w, &second, "", true, &e));
	close_store(&w);
	assert_int_equal(0, open_err(&w, &w.store, "", true, &e));
	assert_int_equal(0, open_err(&w, &second, "", true, &e)); /* two readers */
	store_close_wait(second);
	world_done(&w);
}

static void a_link_in_the_place_of_a_chunk_is_not_followed(void **state)
{
	struct world w;

	(void)state;
	world_init(&w);
	open_ok(&w, OPTIONS);
	memset(buf, 'x', SIZE);
	assert_int_equal(0, store_write(w.store, 0, buf, SIZE, 0));
	close_store(&w);
	unlink(path_of(&w, "0"));
	put(&w, "secret", buf, CHUNK);
	assert_int_equal(0, symlink("secret", path_of(&w, "0")));
	open_ok(&w, "");
	read_fails(&w, 0, "chunk 0 ");
	world_done(&w);
}

/* ---- failures ---- */

static unsigned restarted;

static void on_event(void *arg, struct store *store, enum store_event event)
{
	(void)arg;
	(void)store;
	restarted += event == STORE_RESTARTED;
}

static void a_failed_sync_fails_the_flush_and_is_another_instance(void **state)
{
	struct world w;
	uint64_t instance;

	(void)state;
	world_init(&w);
	open_ok(&w, OPTIONS);
	w.store->on_event = on_event;
	restarted = 0;
	instance = w.store->info.instance;
	memset(buf, 'x', SIZE);
	assert_int_equal(0, store_write(w.store, 0, buf, SIZE, 0));
	w.fault = -EIO;
	assert_int_equal(-EIO, store_flush(w.store));
	assert_int_equal(1, restarted);
	assert_true(instance != w.store->info.instance);
	assert_int_equal(-EIO, store_flush(w.store));
	w.fault = 0;
	assert_int_equal(0, store_flush(w.store));
	assert_true(there(&w, "0") && there(&w, "28672"));
	close_store(&w);
	open_ok(&w, "");
	assert_int_equal(0, store_read(w.store, 0, other, SIZE));
	assert_memory_equal(buf, other, SIZE);
	world_done(&w);
}

/* ---- many at a time ---- */

#define MANY 512u

struct many {
	struct req req[MANY];
	uint8_t bytes[MANY][64];
	unsigned pending;
	bool all;
};

static void many_done(struct req *req, int err)
{
	struct many *m = req->user;

	assert_int_equal(0, err);
	m->all = !--m->pending;
}

static unsigned open_files(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");

	while (d && readdir(d))
		n++;
	closedir(d);
	return n;
}

static void more_requests_than_open_files_do_not_deadlock(void **state)
{
	struct many *m = calloc(1, sizeof(*m));
	unsigned before = open_files();
	struct world w;

	(void)state;
	world_init(&w);
	open_ok(&w, "size=4M&chunk=4K&create=1"); /* 1024 chunks, 128 files */
	for (unsigned turn = 0; turn < 6; turn++) {
		m->all = false;
		for (unsigned i = 0; i < MANY; i++) {
			uint64_t off = (uint64_t)(i * 2 + turn % 2) * CHUNK + 100;

			m->req[i] = (struct req){ .op = turn < 2 ? REQ_WRITE : REQ_READ,
						  .range = range_of(off, 64),
						  .data = { m->bytes[i], 64 },
						  .done = many_done, .user = m };
			if (turn < 2)
				memset(m->bytes[i], (int)(i + turn), 64);
			if (i % 100 == 50)
				m->req[i].op = REQ_FLUSH;
			m->pending++;
			req_submit(w.store, &m->req[i]);
		}
		assert_int_equal(0, loop_run_until(w.loop, &m->all, NEVER_NS));
		assert_true(open_files() < before + DIRECTORY_FILES_MAX + DIRECTORY_OPS_MAX + 30);
		for (unsigned i = 0; i < MANY && turn >= 2; i++)
			if (i % 100 != 50)
				assert_int_equal((uint8_t)(i + turn % 2), m->bytes[i][63]);
	}
	world_done(&w);
	assert_int_equal(before, open_files());
	free(m);
}

/* ---- a crash at every system call ---- */

#define PATH_ROOM 512u /* the directory's own may be long */

/* What the kernel was asked for, so that what a power cut may leave is known, too: a file has its
 * name only when its bytes are durable, the index only when the names are, and a file goes only
 * when the index is durable that has it no more. */
struct order {
	pid_t pid;
	char opening[PATH_ROOM]; /* the path of an open(2) that has not returned */
	char path[256][32]; /* of an fd */
	bool unsynced[256]; /* of an fd whose path was written to */
	bool names, index;  /* not durable */
	unsigned renames, removed;
};

static void child_text(const struct order *o, uint64_t at, char *text)
{
	struct iovec to = { text, PATH_ROOM - 1 }, from = { (void *)(uintptr_t)at, PATH_ROOM - 1 };

	memset(text, 0, PATH_ROOM);
	if (process_vm_readv(o->pid, &to, 1, &from, 1, 0) < 0)
		text[0] = '\0';
}

static void path_synced(struct order *o, const char *path, bool unsynced)
{
	for (unsigned i = 0; i < 256; i++)
		if (!strcmp(o->path[i], path))
			o->unsynced[i] = unsynced;
}

/* True: it changes files. */
static bool order_call(struct order *o, const struct __ptrace_syscall_info *info)
{
	char path[PATH_ROOM], to[PATH_ROOM];
	uint64_t fd = info->entry.args[0] & 255;

	switch (info->entry.nr) {
	case SYS_pwrite64:
	case SYS_write:
		path_synced(o, o->path[fd], true);
		return true;
	case SYS_fsync:
	case SYS_fdatasync:
		if (!strcmp(o->path[fd], "dir"))
			o->names = o->index = false;
		path_synced(o, o->path[fd], false);
		return true;
	case SYS_renameat:
	case SYS_renameat2:
		child_text(o, info->entry.args[1], path);
		child_text(o, info->entry.args[3], to);
		for (unsigned i = 0; i < 256; i++)
			if (!strcmp(o->path[i], path)) {
				assert_false(o->unsynced[i]);
				snprintf(o->path[i], sizeof(o->path[i]), "%.31s", to);
			}
		if (!strcmp(to, "index") || !strcmp(to, "meta")) {
			assert_false(o->names);
			o->index = true;
		} else {
			o->names = true;
			o->renames++;
		}
		return true;
	case SYS_unlinkat:
		child_text(o, info->entry.args[1], path);
		if (!strstr(path, ".new")) {
			assert_false(o->index);
			o->names = true;
			o->removed++;
		}
		return true;
	case SYS_openat:
	case SYS_mkdir:
	case SYS_mkdirat:
		return true;
	default:
		return false;
	}
}

static void order_opened(struct order *o, const char *path, int64_t fd)
{
	size_t len = strlen(path);
	bool dir = len > 2 && !strcmp(path + len - 2, "/d");

	if (fd < 0 || fd > 255)
		return;
	snprintf(o->path[fd], sizeof(o->path[fd]), "%.31s", dir ? "dir" : path);
	o->unsynced[fd] = false;
	for (unsigned i = 0; i < 256; i++)
		if (i != (unsigned)fd && !strcmp(o->path[i], o->path[fd]))
			o->unsynced[fd] |= o->unsynced[i];
}

struct killed_life {
	struct life *life;
	const char *dir;
	uint64_t seed;
	struct order order;
};

static void child_run(void *arg)
{
	struct killed_life *k = arg;
	struct world w = { 0 };

	snprintf(w.dir, sizeof(w.dir), "%s", k->dir);
	world_loop(&w, true);
	open_ok(&w, OPTIONS);
	life_run(k->life, w.store, k->seed, (struct life_odds){ .flush = 400000, .wait = 500000 });
	close_store(&w);
}

static bool child_changes(void *arg, pid_t pid, const struct __ptrace_syscall_info *info)
{
	struct order *o = &((struct killed_life *)arg)->order;

	o->pid = pid;
	if (info->op == PTRACE_SYSCALL_INFO_EXIT && *o->opening) {
		order_opened(o, o->opening, info->exit.rval);
		o->opening[0] = '\0';
	}
	if (info->op != PTRACE_SYSCALL_INFO_ENTRY)
		return false;
	if (info->entry.nr == SYS_openat)
		child_text(o, info->entry.args[1], o->opening);
	return order_call(o, info);
}

/* What was not synced may be anything. */
static void changes_garble(struct world *w)
{
	DIR *d = opendir(path_of(w, ""));
	struct dirent *entry;

	while (d && (entry = readdir(d)))
		if (strstr(entry->d_name, ".new"))
			put(w, entry->d_name, "garbage", 7);
	if (d)
		closedir(d);
}

static void killed_at_any_system_call_each_chunk_is_as_flushed_or_newer_and_whole(void **state)
{
	struct killed_life k = { .life = life_open() };
	const struct killer killer = { child_run, child_changes, &k };
	unsigned n = 0, removed = 0;

	(void)state;
	for (uint64_t seed = 1; seed <= 2; seed++) {
		bool more = true;

		for (n = 0; more; n++) {
			struct world w;

			world_init(&w);
			k.dir = w.dir;
			k.seed = seed;
			k.order = (struct order){ 0 };
			more = life_killed_at(k.life, &killer, n);
			changes_garble(&w);
			open_ok(&w, OPTIONS);
			assert_int_equal(0, store_read(w.store, 0, other, SIZE));
			life_check(k.life, other, seed, n);
			/* And it stays so. */
			assert_int_equal(0, store_flush(w.store));
			close_store(&w);
			open_ok(&w, "");
			assert_int_equal(0, store_read(w.store, 0, buf, SIZE));
			assert_memory_equal(buf, other, SIZE);
			world_done(&w);
		}
		assert_true(n > 100 && k.order.renames > 10);
		removed += k.order.removed;
	}
	assert_true(removed > 0);
	munmap(k.life, sizeof(*k.life));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_per_chunk_named_by_its_offset),
		cmocka_unit_test(a_chunk_that_is_gone_is_an_error_and_never_zeros),
		cmocka_unit_test(a_zeroed_chunk_loses_its_file_when_it_is_flushed),
		cmocka_unit_test(a_directory_of_another_program_is_taken_over),
		cmocka_unit_test(size_and_chunk_are_written_down_and_not_negotiated),
		cmocka_unit_test(a_damaged_or_missing_index_is_an_error_at_open),
		cmocka_unit_test(a_second_writer_is_refused),
		cmocka_unit_test(a_link_in_the_place_of_a_chunk_is_not_followed),
		cmocka_unit_test(a_failed_sync_fails_the_flush_and_is_another_instance),
		cmocka_unit_test(more_requests_than_open_files_do_not_deadlock),
		cmocka_unit_test(
			killed_at_any_system_call_each_chunk_is_as_flushed_or_newer_and_whole),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
