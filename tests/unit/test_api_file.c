/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public API's memory without userfaultfd: a mapping of a file that the library serves. What is
 * the same with either engine is in test_api.c; here is what differs, and that nothing hangs.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api_engine.h"
#include "front/file.h"

static struct remora *file_engine(struct far *far)
{
	far->options.engine = "file";
	return far_open(far);
}

static void test_the_status_names_the_engine(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	r = file_engine(&far);
	assert_memory_equal(status_of(r).engine, "file, ", 6);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_an_unknown_engine_is_an_error(void **state)
{
	struct remora_options o = { .engine = "magic" };
	struct remora_error e;
	struct remora *r;

	(void)state;
	assert_int_equal(remora_open(&r, "memory:4K", &o, &e), -EINVAL);
	assert_non_null(strstr(e.text, "engine is \"magic\""));
}

static void test_system_calls_read_from_and_write_to_untouched_memory(void **state)
{
	char got[5000];
	struct far far;
	struct remora *r;
	int fd[2];

	(void)state;
	far_init(&far, 4 * MIB, true);
	r = file_engine(&far);
	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	assert_int_equal(write(fd[1], (uint8_t *)remora_data(r) + MIB, sizeof(got)), sizeof(got));
	assert_int_equal(read(fd[0], got, sizeof(got)), sizeof(got));
	for (size_t i = 0; i < sizeof(got); i++)
		assert_int_equal((uint8_t)got[i], computed(MIB + i));
	assert_int_equal(write(fd[1], "from a pipe", 11), 11);
	assert_int_equal(read(fd[0], (uint8_t *)remora_data(r) + 3 * MIB, 11), 11);
	assert_int_equal(remora_flush(r), 0);
	assert_memory_equal(far.data + 3 * MIB, "from a pipe", 11);
	close(fd[0]);
	close(fd[1]);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_lazy_means_lazy(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, 5 * GIB, false);
	r = file_engine(&far);
	assert_int_equal(far.read_bytes, 0);
	assert_computed(r, 4 * GIB + 12345, 10);
	assert_true(far.read_bytes <= 4 * MIB); /* the kernel reads ahead by itself */
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_read_only_is_sigsegv(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, false);
	r = file_engine(&far);
	assert_int_equal(access_signal(r, 100, false), 0);
	assert_int_equal(access_signal(r, 100, true), SIGSEGV);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_a_private_copy_stays_here(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	far.options.private_copy = 1;
	r = file_engine(&far);
	poke(r, 100, 7);
	assert_int_equal(remora_flush(r), 0);
	assert_int_equal(touch(r, 100), 7);
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(far.written_bytes, 0);
	far_done(&far);
}

static void test_a_fixed_address(void **state)
{
	struct remora_error e;
	struct far far;
	struct remora *r;
	void *at;

	(void)state;
	far_init(&far, MIB, true);
	/* So large that nothing else is put there while it is free. */
	at = mmap(NULL, 4 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(at != MAP_FAILED);
	far.options.address = at;
	far.options.engine = "file";
	assert_int_equal(remora_open(&r, "callbacks:", &far.options, &e), -EEXIST);
	munmap(at, 4 * GIB);
	r = file_engine(&far);
	assert_ptr_equal(remora_data(r), at);
	assert_computed(r, 0, far.size);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_what_changed_on_the_far_side_is_seen_once_invalidated(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	r = file_engine(&far);
	assert_computed(r, 0, far.size);
	poke(r, 70000, 1); /* and what is not there yet is kept */
	pthread_mutex_lock(&far.lock);
	far.data[5] = 99;
	pthread_mutex_unlock(&far.lock);
	assert_int_equal(touch(r, 5), computed(5));
	assert_int_equal(remora_invalidate(r, 0, far.size), 0);
	assert_int_equal(touch(r, 5), 99);
	assert_int_equal(touch(r, 70000), 1);
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(far.data[70000], 1);
	far_done(&far);
}

static void test_a_failed_read_is_sigbus_and_heals(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	r = file_engine(&far);
	far.read_error = -EIO;
	assert_int_equal(access_signal(r, 100, false), SIGBUS);
	far.read_error = 0;
	assert_int_equal(access_signal(r, 100, false), 0);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_a_failed_push_fails_the_flush_and_the_next_one_tries_again(void **state)
{
	struct far far;
	struct remora *r;

	(void)state;
	far_init(&far, MIB, true);
	r = file_engine(&far);
	poke(r, 100, 1);
	far.write_error = -EIO;
	assert_int_equal(remora_flush(r), -EIO);
	far.write_error = 0;
	assert_int_equal(remora_flush(r), 0);
	assert_int_equal(far.data[100], 1);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_a_child_does_not_inherit_the_memory(void **state)
{
	struct far far;
	struct remora *r;
	int status;
	pid_t pid;

	(void)state;
	far_init(&far, MIB, true);
	r = file_engine(&far);
	pid = fork();
	if (!pid)
		_exit(access_signal(r, 0, false) == SIGSEGV && remora_flush(r) == -ECHILD ? 0 : 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(remora_close(r), 0);
	far_done(&far);
}

static void test_several_handles_in_one_process(void **state)
{
	struct far far[4];
	struct remora *r[4];

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		far_init(&far[i], MIB, true);
		r[i] = file_engine(&far[i]);
	}
	for (unsigned i = 0; i < 4; i++) {
		poke(r[i], i, 200);
		memcpy((uint8_t *)remora_data(r[i]) + 65536, remora_data(r[(i + 1) % 4]), 65536);
	}
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(remora_close(r[i]), 0);
		assert_int_equal(far[i].data[i], 200);
		assert_int_equal(far[i].data[65536 + 9], computed(9));
		far_done(&far[i]);
	}
}

/* ---- processes of their own ---- */

__attribute__((unused)) static void test_a_program_that_just_ends_does_not_hang(void **state)
{
	static const int hows[] = { 0, SIGKILL, SIGABRT };

	(void)state;
	/* What it has left behind is ours to wait for, too. */
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	for (size_t i = 0; i < ARRAY_LEN(hows); i++) {
		int status;
		pid_t pid = fork();

		if (!pid) {
			struct remora_options o = { .engine = "file" };
			struct remora *r;

			prctl(PR_SET_DUMPABLE, 0);
			if (remora_open(&r, "memory:16M", &o, NULL))
				_exit(1);
			memset(remora_data(r), 'x', 16 * MIB);
			if (hows[i])
				kill(getpid(), hows[i]);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (hows[i])
			assert_int_equal(WTERMSIG(status), hows[i]);
		else
			assert_int_equal(status, 0);
		while (waitpid(-1, NULL, __WALL) > 0)
			;
		assert_int_equal(errno, ECHILD);
	}
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
}

/* No way to userfaultfd is left: not the system call, not the device. */
static int refuse_userfaultfd(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { ARRAY_LEN(code), code };
	const char *dev = "/dev/userfaultfd";

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -1;
	if (!access(dev, F_OK) &&
	    (mount(dev, dev, NULL, MS_BIND, NULL) ||
	     mount(NULL, dev, NULL, MS_REMOUNT | MS_BIND | MS_NODEV, NULL)))
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int opens_without_userfaultfd(void)
{
	struct remora_options o = { .engine = "userfaultfd", .read_only = 1 };
	struct remora_error e;
	struct remora_status s;
	struct remora *r;
	int err;

	if (refuse_userfaultfd())
		return 1;
	err = remora_open(&r, "pattern:1M", &o, &e);
	if (err != -EPERM && err != -EACCES)
		return 2;
	o.engine = NULL;
	if (remora_open(&r, "pattern:1M", &o, &e))
		return 3;
	remora_status(r, &s);
	if (strncmp(s.engine, "file (no right to userfaultfd), ", 32))
		return 4;
	return remora_close(r) ? 5 : 0;
}

static void test_without_the_right_to_userfaultfd_it_is_a_file(void **state)
{
	int status;
	pid_t pid = fork();

	(void)state;
	if (!pid)
		_exit(opens_without_userfaultfd());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_true(WIFEXITED(status));
}

static void test_what_is_local_survives_in_a_directory(void **state)
{
	static const char *const names[] = { "meta", "data", "journal", "lock" };
	char dir[] = "/tmp/remora-api-near-XXXXXX", path[64];
	struct remora_error e;
	unsigned long long before;
	struct remora *r;
	struct far far;

	(void)state;
	assert_non_null(mkdtemp(dir));
	far_init(&far, 3 * MIB + 5, true);
	far.options.near = dir;
	r = far_open(&far);
	assert_computed(r, 0, far.size);
	poke(r, MIB + 7, 0xbb);
	assert_int_equal(remora_close(r), 0);
	assert_int_equal(far.data[MIB + 7], 0xbb);
	before = far.read_bytes;
	r = far_open(&far);
	assert_int_equal(((volatile uint8_t *)remora_data(r))[MIB + 7], 0xbb);
	assert_computed(r, 0, MIB);
	assert_int_equal(far.read_bytes, before);
	assert_int_equal(remora_close(r), 0);
	far.options.private_copy = 1;
	assert_int_equal(remora_open(&r, "callbacks:", &far.options, &e), -EINVAL);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		unlink(path);
	}
	assert_int_equal(rmdir(dir), 0);
	far_done(&far);
}

int main(void)
{
	char engine[] = "file";
	const struct CMUnitTest tests[] = {
#if !IS_TSAN
		cmocka_unit_test(test_a_program_that_just_ends_does_not_hang),
#endif
		cmocka_unit_test(test_without_the_right_to_userfaultfd_it_is_a_file),
		TESTS_OF_ANY_ENGINE(engine),
		cmocka_unit_test(test_the_status_names_the_engine),
		cmocka_unit_test(test_an_unknown_engine_is_an_error),
		cmocka_unit_test(test_system_calls_read_from_and_write_to_untouched_memory),
		cmocka_unit_test(test_lazy_means_lazy),
		cmocka_unit_test(test_read_only_is_sigsegv),
		cmocka_unit_test(test_a_private_copy_stays_here),
		cmocka_unit_test(test_a_fixed_address),
		cmocka_unit_test(test_what_changed_on_the_far_side_is_seen_once_invalidated),
		cmocka_unit_test(test_a_failed_read_is_sigbus_and_heals),
		cmocka_unit_test(test_a_failed_push_fails_the_flush_and_the_next_one_tries_again),
		cmocka_unit_test(test_a_child_does_not_inherit_the_memory),
		cmocka_unit_test(test_several_handles_in_one_process),
		cmocka_unit_test(test_what_is_local_survives_in_a_directory),
	};

	if (geteuid() != 0 || access("/dev/fuse", R_OK | W_OK)) {
		printf("1..0 # SKIP only root mounts\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
