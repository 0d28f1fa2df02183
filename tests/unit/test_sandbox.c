/* SPDX-License-Identifier: Apache-2.0 */
/* The sandbox of a server: what a process in it can do no more. Each case is a process of its own,
 * which tells by its exit status, or by the signal that ended it. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cmd/sandbox.h"
#include "config.h"
#include "io/pool.h"

#if HAVE_LIBURING
#include <liburing.h>
#endif

struct rig {
	struct loop *loop;
	struct sandbox sandbox;
	char dir[64], inside[96], outside[96];
};

/* What is said in a child that failed. */
#define WANT(what)                                                                                 \
	do {                                                                                       \
		if (!(what)) {                                                                     \
			fprintf(stderr, "# line %d: %s: %s\n", __LINE__, #what, strerror(errno));  \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

static void rig_open(struct rig *r)
{
	const struct loop_options options = { .engine = LOOP_EPOLL };
	const char *tmp = getenv("TMPDIR");
	struct err e;

	memset(r, 0, sizeof(*r));
	WANT(!loop_open(&r->loop, &options, &e));
	snprintf(r->dir, sizeof(r->dir), "%.40s/sandbox-XXXXXX",
		 tmp && strlen(tmp) <= 40 ? tmp : "/tmp");
	WANT(mkdtemp(r->dir));
	snprintf(r->inside, sizeof(r->inside), "%s/in", r->dir);
	snprintf(r->outside, sizeof(r->outside), "%s/out", r->dir);
	WANT(!mkdir(r->inside, 0777));
}

static void rig_enter(struct rig *r)
{
	struct err e;

	if (sandbox_enter(&r->sandbox, r->loop, &e)) {
		fprintf(stderr, "# %s\n", e.text);
		_exit(1);
	}
	sandbox_paths_free(&r->sandbox);
}

/* A child's own exit: no leak check, no buffers of the parent's. */
static int child_run(void (*fn)(struct rig *r))
{
	int status = 0;
	struct rig r;
	pid_t pid;

	fflush(NULL);
	rig_open(&r);
	pid = fork();
	if (!pid) {
		fn(&r);
		_exit(0);
	}
	assert_int_equal(pid, waitpid(pid, &status, 0));
	loop_close(r.loop);
	(void)rmdir(r.inside);
	assert_int_equal(0, rmdir(r.dir));
	return status;
}

static void passes(void (*fn)(struct rig *r))
{
	int status = child_run(fn);

	assert_true(WIFEXITED(status));
	assert_int_equal(0, WEXITSTATUS(status));
}

static void dies(void (*fn)(struct rig *r))
{
	int status = child_run(fn);

	assert_true(WIFSIGNALED(status));
	assert_int_equal(SIGSYS, WTERMSIG(status));
}

/* This kernel, and this machine. */
static void need_filter(void)
{
	if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) < 0)
		skip();
#if !defined(__x86_64__) && !defined(__aarch64__)
	skip();
#endif
}

/* ---- what ends it ---- */

static void exec_program(struct rig *r)
{
	char *argv[] = { (char *)(uintptr_t) "true", NULL };

	rig_enter(r);
	execv("/bin/true", argv);
}

static void test_starting_a_program_ends_the_process(void **state)
{
	(void)state;
	need_filter();
	dies(exec_program);
}

static void new_namespace(struct rig *r)
{
	rig_enter(r);
	(void)syscall(SYS_unshare, 0x10000000);
}

static void mount_something(struct rig *r)
{
	rig_enter(r);
	(void)syscall(SYS_mount, "none", "/mnt", "tmpfs", 0, NULL);
}

static void trace_another(struct rig *r)
{
	rig_enter(r);
	(void)ptrace(PTRACE_ATTACH, getppid(), NULL, NULL);
}

static void test_mounts_namespaces_and_tracing_end_the_process(void **state)
{
	(void)state;
	need_filter();
	dies(new_namespace);
	dies(mount_something);
	if (!SANDBOX_SANITIZED)
		dies(trace_another);
}

/* ---- what is refused ---- */

static void try_all(struct rig *r)
{
	rig_enter(r);
	WANT(r->sandbox.seccomp);
	WANT(socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM);
	WANT(mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		  0) == MAP_FAILED &&
	     errno == EPERM);
	WANT(setuid(12345) && errno == EPERM);
	WANT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 || errno == EPERM);
	if (SANDBOX_SANITIZED)
		return;
	WANT(open("/etc/passwd", O_RDONLY) < 0 && errno == EPERM);
	WANT(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) < 0 && errno == EPERM);
	WANT(kill(getppid(), 0) && errno == EPERM);
}

static void test_files_sockets_processes_and_code_are_refused(void **state)
{
	(void)state;
	need_filter();
	passes(try_all);
}

static void use_what_is_open(struct rig *r)
{
	char buf[8] = "before";
	int fd = open(r->outside, O_RDWR | O_CREAT, 0600), pair[2];

	WANT(fd >= 0 && !unlink(r->outside));
	rig_enter(r);
	WANT(pwrite(fd, buf, 8, 0) == 8 && pread(fd, buf, 8, 0) == 8 && !fdatasync(fd));
	WANT(memfd_create("x", MFD_CLOEXEC) >= 0);
	WANT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) && errno == EPERM);
}

static void test_what_was_open_before_works_on(void **state)
{
	(void)state;
	passes(use_what_is_open);
}

/* ---- Landlock ---- */

static void open_inside_and_outside(struct rig *r)
{
	char path[128];
	int fd;

	WANT(!sandbox_path_add(&r->sandbox, r->inside, SANDBOX_READ | SANDBOX_CHANGE));
	rig_enter(r);
	if (!r->sandbox.landlock)
		return;
	snprintf(path, sizeof(path), "%s/f", r->inside);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	WANT(fd >= 0 && write(fd, "x", 1) == 1 && !ftruncate(fd, 0));
	WANT(!close(fd) && !unlink(path));
	WANT(open(r->outside, O_RDWR | O_CREAT, 0600) < 0 && errno == EACCES);
	WANT(open("/etc/passwd", O_RDONLY) < 0 && errno == EACCES);
	WANT(!rmdir(r->inside) || errno == EACCES);
}

static void test_only_the_paths_that_are_served_can_be_opened(void **state)
{
	(void)state;
	passes(open_inside_and_outside);
}

struct opening {
	struct work work;
	const char *path;
	bool done;
	int res;
};

static int opening_call(struct work *work)
{
	int fd = open(CONTAINER_OF(work, struct opening, work)->path, O_RDONLY);

	return fd < 0 ? -errno : 0;
}

static void opening_done(struct op *op, int res)
{
	struct opening *o = CONTAINER_OF(op, struct opening, work.op);

	o->done = true;
	o->res = res;
}

static int opening_run(struct loop *loop, const char *path)
{
	struct opening o = { .path = path,
			     .work = { .call = opening_call, .op.done = opening_done } };

	pool_run(loop, &o.work);
	WANT(!loop_run_until(loop, &o.done, NEVER_NS));
	return o.res;
}

static void open_on_a_thread(struct rig *r)
{
	WANT(opening_run(r->loop, "/etc/passwd") == 0); /* so that there is a thread */
	WANT(!sandbox_path_add(&r->sandbox, r->inside, SANDBOX_READ));
	rig_enter(r);
	if (r->sandbox.landlock)
		WANT(opening_run(r->loop, "/etc/passwd") == -EACCES);
	WANT(opening_run(r->loop, r->inside) == 0);
}

static void test_threads_of_the_pool_have_no_more_rights_than_the_loop(void **state)
{
	(void)state;
	passes(open_on_a_thread);
}

#if HAVE_LIBURING
static void open_by_ring(struct rig *r)
{
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	struct io_uring ring;

	if (io_uring_queue_init(4, &ring, 0))
		return;
	rig_enter(r);
	if (!r->sandbox.landlock)
		return;
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
	WANT(io_uring_submit_and_wait(&ring, 1) == 1 && !io_uring_wait_cqe(&ring, &cqe));
	WANT(cqe->res == -EACCES);
}

static void test_io_uring_is_no_way_around_it(void **state)
{
	(void)state;
	passes(open_by_ring);
}
#endif

/* ---- the user ---- */

static void become_nobody(struct rig *r)
{
	struct err e;

	WANT(!sandbox_user_parse(&r->sandbox, "65534:65533", &e));
	rig_enter(r);
	WANT(getuid() == 65534 && geteuid() == 65534 && getgid() == 65533 && getegid() == 65533);
	WANT(getgroups(0, NULL) == 1);
	WANT(open(r->outside, O_RDWR | O_CREAT, 0600) < 0);
	WANT(setuid(0) && setgid(0));
}

static void test_another_user_has_nothing_left_of_root(void **state)
{
	(void)state;
	if (geteuid())
		skip();
	passes(become_nobody);
}

static void refused(const char *text, int code, const char *says)
{
	struct sandbox b = { 0 };
	struct err e;

	assert_int_equal(code, sandbox_user_parse(&b, text, &e));
	if (!strstr(e.text, says))
		fail_msg("'%s' is not in '%s'", says, e.text);
	assert_false(b.user_given);
}

static void test_users_that_cannot_be_are_refused_before_anything_is_opened(void **state)
{
	(void)state;
	refused("root", -EINVAL, "would keep all his rights");
	refused("0:5", -EINVAL, "root");
	refused("no-such-user-here", -EINVAL, "no user 'no-such-user-here'");
	refused("12345:no-such-group", -EINVAL, "no group");
	refused("4000000000", -EINVAL, "which group");
	refused("", -EINVAL, "no user");
	if (geteuid())
		refused("4000000000:5", -EPERM, "only root");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_starting_a_program_ends_the_process),
		cmocka_unit_test(test_mounts_namespaces_and_tracing_end_the_process),
		cmocka_unit_test(test_files_sockets_processes_and_code_are_refused),
		cmocka_unit_test(test_what_was_open_before_works_on),
		cmocka_unit_test(test_only_the_paths_that_are_served_can_be_opened),
		cmocka_unit_test(test_threads_of_the_pool_have_no_more_rights_than_the_loop),
#if HAVE_LIBURING
		cmocka_unit_test(test_io_uring_is_no_way_around_it),
#endif
		cmocka_unit_test(test_another_user_has_nothing_left_of_root),
		cmocka_unit_test(test_users_that_cannot_be_are_refused_before_anything_is_opened),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
