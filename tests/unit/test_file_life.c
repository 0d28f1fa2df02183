/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a file front end: mount points that are refused, made and removed; taking the mount
 * away, by us and by others; killed users; the end while somebody still has the file open.
 *
 * Whoever may be killed or left waiting is a process of its own (child_start).
 */
#include <mntent.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "file_rig.h"

#define SIZE (1 * MIB)

/* ---- users in processes of their own ---- */

/* Runs in the child: a small number, its exit status. Async-signal-safe calls alone. */
typedef int (*child_fn)(struct rig *g);

static pid_t child_start(struct rig *g, child_fn fn)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		close_range(3, ~0u, 0); /* /dev/fuse, too: who has it keeps the mount alive */
		_exit(fn(g));
	}
	return pid;
}

static int child_end(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static int reads(struct rig *g)
{
	char buf[4096];
	int fd = open(g->path, O_RDONLY);

	return fd < 0 || read(fd, buf, sizeof(buf)) < 0 ? errno : 0;
}

static char *aligned(char *room)
{
	return (char *)(((uintptr_t)room + 4095) & ~(uintptr_t)4095);
}

/* Each of these is at a place of its own: who wants a page that is being read waits for that. */
static int reads_directly(struct rig *g)
{
	char room[8192];
	int fd = open(g->path, O_RDONLY | O_DIRECT);

	return fd < 0 || pread(fd, aligned(room), 4096, SIZE / 2) < 0 ? errno : 0;
}

static int reads_directly_behind(struct rig *g)
{
	char room[8192];
	int fd = open(g->path, O_RDONLY | O_DIRECT);

	return fd < 0 || pread(fd, aligned(room), 4096, SIZE) < 0;
}

static int writes(struct rig *g)
{
	int fd = open(g->path, O_WRONLY);

	return fd < 0 || pwrite(fd, "abc", 3, SIZE - 100) < 0 ? errno : 0;
}

static int flushes(struct rig *g)
{
	int fd = open(g->path, O_WRONLY);

	return fd < 0 || fsync(fd) ? errno : 0;
}

static void on_signal(int sig)
{
	(void)sig;
}

/* Gets a signal that it survives, and goes on waiting. */
static int reads_through_signals(struct rig *g)
{
	struct sigaction act = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	sigaction(SIGUSR1, &act, NULL);
	return reads_directly(g);
}

static int writes_through_a_mapping(struct rig *g)
{
	int fd = open(g->path, O_RDWR);
	char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		return 1;
	memset(p, 'm', SIZE);
	kill(getpid(), SIGSTOP);
	return 2;
}

static void until_held(struct rig *g, size_t count)
{
	while (rig_ask(g).held < count)
		sched_yield();
}

/* ---- mount points ---- */

static void refused(struct rig *g, int code, const char *text)
{
	struct file *file = NULL;
	struct err e;

	assert_int_equal(file_open(&file, g->loop, &g->options, &e), code);
	assert_null(file);
	if (!strstr(e.text, text))
		fail_msg("'%s' does not say '%s'", e.text, text);
}

static void test_a_mount_point_that_would_hide_something_is_refused(void **state)
{
	char other[100], missing[120];
	struct rig g;
	int fd;

	(void)state;
	rig_prepare(&g, SIZE);
	g.options.path = g.dir;
	refused(&g, -EISDIR, "is a directory");
	snprintf(missing, sizeof(missing), "%s/no/such/disk", g.dir);
	g.options.path = missing;
	refused(&g, -ENOENT, "make it first");
	snprintf(missing, sizeof(missing), "%s/nothing/", g.dir);
	refused(&g, -ENOENT, "name a file");
	g.options.path = g.path;
	assert_int_equal(mkfifo(g.path, 0600), 0);
	refused(&g, -EINVAL, "not a regular file");
	unlink(g.path);
	fd = open(g.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, "x", 1), 1);
	refused(&g, -EEXIST, "is not empty, and a mount would hide it");
	assert_int_equal(ftruncate(fd, 0), 0);
	close(fd);
	snprintf(other, sizeof(other), "%s/other", g.dir);
	close(open(other, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	assert_int_equal(mount(other, g.path, NULL, MS_BIND, NULL), 0);
	refused(&g, -EBUSY, "something is mounted there");
	assert_int_equal(umount2(g.path, 0), 0);
	unlink(other);
	rig_end(&g);
}

static void test_a_file_that_is_mounted_already_is_refused(void **state)
{
	struct rig a, b;

	(void)state;
	rig_open(&a, SIZE);
	rig_prepare(&b, SIZE);
	b.options.path = a.path;
	refused(&b, -EBUSY, "a resource is mounted there already");
	rig_end(&b);
	rig_end(&a);
}

static void test_the_mount_point_stays_only_if_it_was_there(void **state)
{
	struct stat st;

	(void)state;
	for (int there = 0; there < 2; there++) {
		struct rig g;

		rig_prepare(&g, SIZE);
		if (there)
			close(open(g.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0640));
		rig_mount(&g);
		assert_int_equal(stat(g.path, &st), 0);
		assert_int_equal(st.st_size, SIZE);
		rig_stop(&g);
		file_close_wait(TAKE_PTR(g.file));
		assert_int_equal(stat(g.path, &st), there ? 0 : -1);
		if (there)
			assert_int_equal(st.st_mode & 07777, 0640);
		rig_end(&g);
	}
}

static void test_a_path_through_links_and_with_spaces(void **state)
{
	char path[140], link[100], sub[100];
	struct rig g;
	struct stat st;

	(void)state;
	rig_prepare(&g, SIZE);
	snprintf(sub, sizeof(sub), "%s/a \\ b", g.dir);
	assert_int_equal(mkdir(sub, 0700), 0);
	snprintf(link, sizeof(link), "%s/link", g.dir);
	assert_int_equal(symlink(sub, link), 0);
	snprintf(path, sizeof(path), "%s/disk 1", link);
	g.options.path = path;
	rig_mount(&g);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, SIZE);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), false), 0);
	assert_int_equal(stat(path, &st), -1);
	unlink(link);
	assert_int_equal(rmdir(sub), 0);
	rig_end(&g);
}

static void test_the_mount_table_names_the_spec(void **state)
{
	struct mntent *ent;
	bool found = false;
	struct rig g;
	FILE *in;

	(void)state;
	rig_open(&g, SIZE);
	in = setmntent("/proc/mounts", "re");
	while ((ent = getmntent(in)))
		if (!strcmp(ent->mnt_dir, g.path)) {
			assert_string_equal(ent->mnt_fsname, g.options.source);
			assert_string_equal(ent->mnt_type, "fuse.remora");
			assert_non_null(hasmntopt(ent, "nosuid"));
			assert_non_null(hasmntopt(ent, "nodev"));
			found = true;
		}
	endmntent(in);
	assert_true(found);
	assert_string_equal(file_how(g.file), "mount(2)");
	rig_end(&g);
}

/* Mounts, says so on `fd`, and is killed. */
static void mounts_until_killed(const char *path, int fd)
{
	struct rig g;

	rig_prepare(&g, SIZE);
	rmdir(g.dir);
	g.options.path = path;
	rig_mount(&g);
	if (write(fd, "m", 1) == 1)
		pause();
	_exit(1);
}

static void test_a_dead_mount_is_cleared_away(void **state)
{
	struct rig g;
	struct stat st;
	char byte;
	int up[2];

	(void)state;
	rig_prepare(&g, SIZE);
	assert_int_equal(pipe2(up, O_CLOEXEC), 0);
	for (int i = 0; i < 2; i++) { /* two of them, one over the other, are cleared too */
		pid_t pid = fork();

		if (!pid)
			mounts_until_killed(g.path, up[1]);
		assert_int_equal(read(up[0], &byte, 1), 1);
		assert_int_equal(stat(g.path, &st), 0); /* cached: a dead mount looks alive */
		kill(pid, SIGKILL);
		child_end(pid);
	}
	rig_mount(&g);
	assert_int_equal(reads(&g), 0);
	rig_stop(&g);
	file_close_wait(TAKE_PTR(g.file));
	assert_int_equal(stat(g.path, &st), 0); /* the first one made it, and is no more */
	assert_int_equal(st.st_size, 0);
	close(up[0]);
	close(up[1]);
	rig_end(&g);
}

/* ---- taking the mount away ---- */

static void until_gone(struct rig *g)
{
	while (!g->gone)
		sched_yield();
	(void)rig_ask(g);
	assert_int_equal(g->gone, 1);
}

static void test_a_file_in_use_is_not_detached_but_lazily(void **state)
{
	char buf[3];
	struct rig g;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = open(g.path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), false), -EBUSY);
	assert_int_equal(access(g.path, R_OK), 0);
	assert_int_equal(pwrite(fd, "abc", 3, 0), 3);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), true), 0);
	assert_int_equal(access(g.path, F_OK), -1);
	assert_int_equal(pwrite(fd, "def", 3, 3), 3);
	assert_int_equal(pread(fd, buf, 3, 3), 3);
	assert_int_equal(g.gone, 0);
	close(fd);
	until_gone(&g);
	rig_end(&g);
}

static void test_a_file_without_a_name_is_still_written_back(void **state)
{
	struct rig g;
	char *p;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = open(g.path, O_RDWR | O_CLOEXEC);
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(p != MAP_FAILED);
	close(fd);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), true), 0);
	p[5000] = 'x';
	assert_int_equal(rig_call(&g, file_sync, range_of(0, 0), false), 0);
	assert_int_equal(rig_bytes(&g)[5000], 'x');
	assert_int_equal(rig_ask(&g).users, 1);
	assert_int_equal(g.gone, 0);
	munmap(p, SIZE);
	until_gone(&g);
	rig_end(&g);
}

static void test_detached_by_us_is_no_news(void **state)
{
	struct rig g;

	(void)state;
	rig_open(&g, SIZE);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), false), 0);
	assert_int_equal(access(g.path, F_OK), -1);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), false), 0); /* it is already */
	rig_end(&g);
	assert_int_equal(g.gone, 0);
}

static void test_detached_lazily_with_nobody_there_is_gone_at_once(void **state)
{
	struct rig g;

	(void)state;
	rig_open(&g, SIZE);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), true), 0);
	until_gone(&g);
	rig_end(&g);
}

static void test_umount_by_somebody_else_is_told_once(void **state)
{
	struct rig g;

	(void)state;
	rig_open(&g, SIZE);
	assert_int_equal(umount2(g.path, 0), 0);
	until_gone(&g);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), false), 0);
	assert_int_equal(rig_call(&g, file_sync, range_of(0, 0), false), -ENOTCONN);
	rig_end(&g);
	assert_int_equal(g.gone, 1);
}

static void test_an_abort_of_the_connection_is_told_and_its_mount_cleared(void **state)
{
	char buf[3];
	struct rig g;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = open(g.path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(umount2(g.path, MNT_FORCE), -1); /* aborts, but somebody is in it */
	until_gone(&g);
	assert_int_equal(pread(fd, buf, 3, 0), -1);
	assert_int_equal(errno, ENOTCONN);
	close(fd);
	rig_stop(&g);
	file_close_wait(TAKE_PTR(g.file));
	assert_int_equal(access(g.path, F_OK), -1);
	rig_end(&g);
}

static void test_a_mount_over_ours_is_left_alone(void **state)
{
	char other[100];
	struct rig g;

	(void)state;
	rig_open(&g, SIZE);
	snprintf(other, sizeof(other), "%s/other", g.dir);
	close(open(other, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	assert_int_equal(mount(other, g.path, NULL, MS_BIND, NULL), 0);
	assert_int_equal(rig_call(&g, file_detach, range_of(0, 0), true), -EBUSY);
	assert_int_equal(rig_call(&g, file_sync, range_of(0, 0), false), 0);
	assert_int_equal(umount2(g.path, 0), 0);
	unlink(other);
	rig_end(&g);
}

static void test_a_nameless_file_lives_as_long_as_its_user(void **state)
{
	char buf[4] = "";
	struct stat st;
	struct rig g;
	char *p;
	int fd;

	(void)state;
	rig_prepare(&g, SIZE);
	g.options.nameless = true;
	memcpy(rig_bytes(&g), "abc", 3);
	rig_mount(&g);
	assert_int_equal(stat(g.path, &st), -1);
	assert_int_equal(rig_ask(&g).users, 1);
	fd = file_take_fd(g.file);
	assert_int_equal(pread(fd, buf, 3, 0), 3);
	assert_string_equal(buf, "abc");
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(p != MAP_FAILED);
	close(fd);
	p[9] = 'z';
	assert_int_equal(rig_call(&g, file_sync, range_of(0, 0), false), 0);
	assert_int_equal(rig_bytes(&g)[9], 'z');
	assert_int_equal(g.gone, 0);
	munmap(p, SIZE);
	until_gone(&g);
	rig_end(&g);
}

/* Serves a file, has written to a mapping of it, and ends without a word. */
static void maps_its_own_file_and_ends(int how)
{
	struct file_guard *guard;
	struct rig g;
	char *p;
	int fd;

	rig_prepare(&g, SIZE);
	g.options.nameless = true;
	assert_int_equal(file_guard_open(&guard), 0);
	rig_mount(&g);
	rmdir(g.dir);
	fd = file_take_fd(g.file);
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(p, 'g', SIZE);
	if (how == 0)
		_exit(0);
	kill(how > 0 ? getpid() : -getpgrp(), abs(how));
	pause();
}

__attribute__((unused)) static void
test_with_a_guard_who_maps_his_own_file_can_end_at_any_time(void **state)
{
	const int hows[] = { 0, SIGKILL, SIGABRT, -SIGKILL, -SIGTERM };

	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	for (size_t i = 0; i < ARRAY_LEN(hows); i++) {
		pid_t pid = fork();

		if (!pid) {
			setpgid(0, 0);
			close_range(3, ~0u, 0);
			prctl(PR_SET_DUMPABLE, 0);
			maps_its_own_file_and_ends(hows[i]);
		}
		child_end(pid);
		while ((pid = waitpid(-1, NULL, __WALL)) > 0 || errno == EINTR)
			; /* what it has left behind */
	}
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
}

static void tell(int fd)
{
	assert_int_equal(write(fd, "x", 1), 1);
}

static void hear(int fd)
{
	char byte;

	assert_int_equal(read(fd, &byte, 1), 1);
}

/* Serves, until it waits for its own mount. */
static void serves_and_syncs(struct rig *test, int in, int out)
{
	struct rig_do d = { .start = file_sync, .call.done = rig_call_done };
	struct rig g;

	pthread_mutex_init(&d.lock, NULL);
	pthread_cond_init(&d.ended, NULL);
	rig_prepare(&g, SIZE);
	rmdir(g.dir);
	g.options.path = test->path;
	rig_mount(&g);
	tell(out);
	hear(in);
	rig_hold(&g, true);
	d.rig = &g;
	loop_call(g.loop, rig_call_start, &d);
	until_held(&g, 1);
	tell(out);
	pause();
}

__attribute__((unused)) static void
test_who_serves_can_be_killed_while_it_waits_for_its_own_mount(void **state)
{
	int to[2], from[2], fd;
	struct rig g;
	pid_t pid;
	char *p;

	(void)state;
	rig_prepare(&g, SIZE);
	assert_int_equal(pipe2(to, O_CLOEXEC), 0);
	assert_int_equal(pipe2(from, O_CLOEXEC), 0);
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	pid = fork();
	if (!pid)
		serves_and_syncs(&g, to[0], from[1]);
	hear(from[0]);
	fd = open(g.path, O_RDWR | O_CLOEXEC);
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(p != MAP_FAILED);
	p[0] = 1;
	tell(to[1]);
	hear(from[0]);
	kill(pid, SIGKILL);
	while ((pid = waitpid(-1, NULL, __WALL)) > 0 || errno == EINTR)
		;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
	assert_int_equal(msync(p, SIZE, MS_SYNC), -1);
	munmap(p, SIZE);
	close(fd);
	assert_int_equal(umount2(g.path, MNT_DETACH), 0);
	for (size_t i = 0; i < 2; i++) {
		close(to[i]);
		close(from[i]);
	}
	rig_end(&g);
}

/* ---- the end ---- */

static void test_close_leaves_nobody_waiting(void **state)
{
	child_fn fns[] = { reads, reads_directly, writes, flushes };
	pid_t pid[ARRAY_LEN(fns)];
	struct rig g;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = open(g.path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	rig_hold(&g, true);
	for (size_t i = 0; i < ARRAY_LEN(fns); i++)
		pid[i] = child_start(&g, fns[i]);
	until_held(&g, ARRAY_LEN(fns) - 1); /* write and fsync wait for one another */
	while (rig_ask(&g).users < 1 + ARRAY_LEN(fns))
		sched_yield();
	loop_call(g.loop, rig_close_begin, &g);
	for (size_t i = 0; i < ARRAY_LEN(fns); i++)
		assert_int_not_equal(WEXITSTATUS(child_end(pid[i])), 0);
	while (!access(g.path, F_OK))
		sched_yield();
	/* The store has its requests still; the connection goes when they are back. */
	assert_int_equal(pwrite(fd, "abc", 3, 0), -1);
	assert_int_equal(errno, ENOTCONN);
	rig_hold(&g, false);
	while (!rig_ask(&g).closed)
		sched_yield();
	assert_int_equal(pwrite(fd, "abc", 3, 0), -1);
	assert_int_equal(errno, ENOTCONN);
	close(fd);
	rig_end(&g);
}

static void test_calls_that_have_not_begun_fail_at_the_close(void **state)
{
	struct rig_do d[3];
	struct rig g;
	char *p;
	int fd;

	(void)state;
	rig_open(&g, SIZE);
	fd = open(g.path, O_RDWR | O_CLOEXEC);
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(p != MAP_FAILED);
	p[0] = 1;
	rig_hold(&g, true);
	for (size_t i = 0; i < ARRAY_LEN(d); i++) {
		d[i] = (struct rig_do){
			.rig = &g, .start = file_sync, .lock = PTHREAD_MUTEX_INITIALIZER,
			.ended = PTHREAD_COND_INITIALIZER, .call.done = rig_call_done,
		};
		loop_call(g.loop, rig_call_start, &d[i]);
	}
	until_held(&g, 1);
	rig_stop(&g);
	rig_close_begin(&g);
	store_abort(&g.far->store);
	rig_start(&g);
	while (!rig_call_is_done(&d[2]) || !rig_call_is_done(&d[0]))
		sched_yield();
	assert_true(d[0].err < 0);
	assert_int_equal(d[1].err, -ESHUTDOWN);
	assert_int_equal(d[2].err, -ESHUTDOWN);
	munmap(p, SIZE);
	close(fd);
	rig_end(&g);
}

/* ---- killed users ---- */

static void killed_by(child_fn fn, int first)
{
	struct rig g;
	pid_t pid;
	int status;

	rig_open(&g, SIZE);
	rig_hold(&g, true);
	pid = child_start(&g, fn);
	until_held(&g, 1);
	if (first) {
		kill(pid, first);
		(void)rig_ask(&g);
	}
	kill(pid, SIGKILL);
	status = child_end(pid); /* the store never answers */
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	rig_hold(&g, false);
	assert_int_equal(rig_ask(&g).counts.killed, fn == reads ? rig_ask(&g).counts.killed : 1);
	assert_int_equal(reads(&g), 0);
	rig_end(&g);
}

static void test_a_killed_user_does_not_wait_for_the_store(void **state)
{
	(void)state;
	killed_by(reads, 0);
	killed_by(reads_directly, 0);
	killed_by(writes, 0);
	killed_by(flushes, 0);
}

static void test_a_user_killed_after_another_signal_does_not_wait_either(void **state)
{
	(void)state;
	killed_by(reads_through_signals, SIGUSR1);
}

static void test_pages_of_a_killed_user_reach_the_store(void **state)
{
	struct rig g;
	pid_t writer, reader;
	int status;

	(void)state;
	rig_open(&g, 2 * SIZE);
	writer = child_start(&g, writes_through_a_mapping);
	assert_int_equal(waitpid(writer, &status, WUNTRACED), writer);
	assert_true(WIFSTOPPED(status));
	rig_hold(&g, true);
	kill(writer, SIGKILL); /* its pages are written as it unmaps them */
	until_held(&g, 1);
	/* When this one has been answered, the other has been looked at, too. */
	reader = child_start(&g, reads_directly_behind);
	while (!rig_ask(&g).counts.reads || rig_ask(&g).held < 2)
		sched_yield();
	kill(reader, SIGKILL);
	child_end(reader);
	assert_int_equal(rig_ask(&g).counts.killed, 1);
	rig_hold(&g, false);
	child_end(writer);
	(void)rig_ask(&g);
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(g.far->bytes[i], 'm');
	rig_end(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_mount_point_that_would_hide_something_is_refused),
		cmocka_unit_test(test_a_file_that_is_mounted_already_is_refused),
		cmocka_unit_test(test_the_mount_point_stays_only_if_it_was_there),
		cmocka_unit_test(test_a_path_through_links_and_with_spaces),
		cmocka_unit_test(test_the_mount_table_names_the_spec),
		cmocka_unit_test(test_a_dead_mount_is_cleared_away),
		cmocka_unit_test(test_a_file_in_use_is_not_detached_but_lazily),
		cmocka_unit_test(test_a_file_without_a_name_is_still_written_back),
		cmocka_unit_test(test_detached_by_us_is_no_news),
		cmocka_unit_test(test_detached_lazily_with_nobody_there_is_gone_at_once),
		cmocka_unit_test(test_umount_by_somebody_else_is_told_once),
		cmocka_unit_test(test_an_abort_of_the_connection_is_told_and_its_mount_cleared),
		cmocka_unit_test(test_a_mount_over_ours_is_left_alone),
		cmocka_unit_test(test_a_nameless_file_lives_as_long_as_its_user),
#if !IS_TSAN
		cmocka_unit_test(test_who_serves_can_be_killed_while_it_waits_for_its_own_mount),
		cmocka_unit_test(test_with_a_guard_who_maps_his_own_file_can_end_at_any_time),
#endif
		cmocka_unit_test(test_close_leaves_nobody_waiting),
		cmocka_unit_test(test_calls_that_have_not_begun_fail_at_the_close),
		cmocka_unit_test(test_a_killed_user_does_not_wait_for_the_store),
		cmocka_unit_test(test_a_user_killed_after_another_signal_does_not_wait_either),
		cmocka_unit_test(test_pages_of_a_killed_user_reach_the_store),
	};

	return rig_run(tests);
}
