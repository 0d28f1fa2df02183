/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls of a server that runs: those are allowed, the rest is not (EPERM), and what
 * nobody needs but an intruder ends the process.
 *
 * A program of classic BPF, which the kernel runs at each call: machine, number, for a few calls an
 * argument. Where the answer depends on the number alone the kernel remembers it and does not run
 * it.
 *
 * io_uring does what it is asked to without passing here. It opens and connects nothing that
 * Landlock forbids, and it cannot start a program.
 *
 * Invariants: jumps inside a rule are within it; rules follow one another in any order, the first
 * that fits decides.
 *
 * Locking: none.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"
#include "base/range.h"
#include "cmd/sandbox.h"

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#endif

#ifdef MACHINE

#define FILTER_MAX 1024u

struct filter {
	struct sock_filter at[FILTER_MAX];
	unsigned short len;
};

static void put(struct filter *f, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
	CHECK(f->len < FILTER_MAX);
	f->at[f->len++] = (struct sock_filter){ .code = code, .jt = yes, .jf = no, .k = k };
}

static void load(struct filter *f, size_t off)
{
	put(f, BPF_LD | BPF_W | BPF_ABS, (uint32_t)off, 0, 0);
}

static void answer(struct filter *f, uint32_t how)
{
	put(f, BPF_RET | BPF_K, how, 0, 0);
}

/* The number is in the accumulator before each rule, and behind it. */
static void rule(struct filter *f, long nr, uint32_t how)
{
	put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 1);
	answer(f, how);
}

#define ARG_LOW(i) (offsetof(struct seccomp_data, args) + 8 * (i))
#define ARG_HIGH(i) (ARG_LOW(i) + 4)
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "where the halves of an argument are");

#define REFUSE (SECCOMP_RET_ERRNO | EPERM)

/* Allowed when (argument & mask) == value, else `otherwise`. */
static void rule_masked(struct filter *f, long nr, unsigned arg, uint32_t mask, uint32_t value,
			uint32_t otherwise)
{
	put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 5);
	load(f, ARG_LOW(arg));
	put(f, BPF_ALU | BPF_AND | BPF_K, mask, 0, 0);
	put(f, BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
	answer(f, SECCOMP_RET_ALLOW);
	answer(f, otherwise);
}

/* Allowed when the argument is one of the values. */
static void rule_values(struct filter *f, long nr, unsigned arg, const uint32_t *values, uint8_t n)
{
	put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, (uint8_t)(n + 3));
	load(f, ARG_LOW(arg));
	for (uint8_t i = 0; i < n; i++)
		put(f, BPF_JMP | BPF_JEQ | BPF_K, values[i], (uint8_t)(n - i), 0);
	answer(f, REFUSE);
	answer(f, SECCOMP_RET_ALLOW);
}

/* Allowed when the argument, a pointer, is NULL. */
static void rule_null(struct filter *f, long nr, unsigned arg)
{
	put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 6);
	load(f, ARG_LOW(arg));
	put(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3);
	load(f, ARG_HIGH(arg));
	put(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1);
	answer(f, SECCOMP_RET_ALLOW);
	answer(f, REFUSE);
}

#define CALL(name) __NR_##name

/* What ends the process. Nothing of ours comes near it. */
static const long deadly[] = {
	CALL(execve),
	CALL(execveat),
	CALL(process_vm_readv),
	CALL(process_vm_writev),
	CALL(mount),
	CALL(umount2),
	CALL(pivot_root),
	CALL(chroot),
	CALL(unshare),
	CALL(setns),
	CALL(init_module),
	CALL(finit_module),
	CALL(delete_module),
	CALL(kexec_load),
	CALL(bpf),
	CALL(perf_event_open),
	CALL(open_by_handle_at),
	CALL(add_key),
	CALL(request_key),
	CALL(keyctl),
	CALL(reboot),
	CALL(swapon),
	CALL(swapoff),
	CALL(move_mount),
	CALL(open_tree),
	CALL(fsopen),
	CALL(fsmount),
	CALL(userfaultfd),
	CALL(personality),
	CALL(acct),
	CALL(settimeofday),
	CALL(clock_settime),
	CALL(sethostname),
	CALL(quotactl),
	CALL(pidfd_getfd),
	CALL(kcmp),
#ifdef __NR_iopl
	CALL(iopl),
	CALL(ioperm),
	CALL(modify_ldt),
#endif
};

/* What a loop, its pool, the C library and the stores use on descriptors that are open. */
static const long allowed[] = {
	CALL(read),
	CALL(write),
	CALL(readv),
	CALL(writev),
	CALL(pread64),
	CALL(pwrite64),
	CALL(preadv),
	CALL(pwritev),
	CALL(preadv2),
	CALL(pwritev2),
	CALL(close),
	CALL(close_range),
	CALL(fstat),
	CALL(newfstatat),
	CALL(statx),
	CALL(lseek),
	CALL(munmap),
	CALL(mremap),
	CALL(madvise),
	CALL(brk),
	CALL(mincore),
	CALL(msync),
	CALL(futex),
	CALL(set_robust_list),
	CALL(get_robust_list),
	CALL(rseq),
	CALL(set_tid_address),
	CALL(sigaltstack),
	CALL(rt_sigaction),
	CALL(rt_sigprocmask),
	CALL(rt_sigreturn),
	CALL(rt_sigtimedwait),
	CALL(rt_sigpending),
	CALL(restart_syscall),
	CALL(exit),
	CALL(exit_group),
	CALL(clock_gettime),
	CALL(clock_getres),
	CALL(clock_nanosleep),
	CALL(nanosleep),
	CALL(gettimeofday),
	CALL(getpid),
	CALL(gettid),
	CALL(getppid),
	CALL(getuid),
	CALL(geteuid),
	CALL(getgid),
	CALL(getegid),
	CALL(getresuid),
	CALL(getresgid),
	CALL(getgroups),
	CALL(getrandom),
	CALL(sched_yield),
	CALL(sched_getaffinity),
	CALL(epoll_create1),
	CALL(epoll_ctl),
	CALL(epoll_pwait),
	CALL(epoll_pwait2),
	CALL(ppoll),
	CALL(pselect6),
	CALL(eventfd2),
	CALL(timerfd_create),
	CALL(timerfd_settime),
	CALL(timerfd_gettime),
	CALL(pipe2),
	CALL(dup),
	CALL(dup3),
	CALL(fcntl),
	CALL(fsync),
	CALL(fdatasync),
	CALL(sync_file_range),
	CALL(fallocate),
	CALL(ftruncate),
	CALL(fadvise64),
	CALL(flock),
	CALL(getdents64),
	CALL(fstatfs),
	CALL(copy_file_range),
	CALL(splice),
	CALL(io_uring_enter),
	CALL(io_uring_register),
	CALL(accept4),
	CALL(accept),
	CALL(recvmsg),
	CALL(recvfrom),
	CALL(recvmmsg),
	CALL(sendmsg),
	CALL(sendto),
	CALL(sendmmsg),
	CALL(shutdown),
	CALL(getsockopt),
	CALL(setsockopt),
	CALL(getsockname),
	CALL(getpeername),
	CALL(memfd_create),
	CALL(uname),
	CALL(sysinfo),
	CALL(getcwd),
	CALL(readlinkat),
	CALL(faccessat),
	CALL(faccessat2),
	CALL(unlinkat),
	CALL(membarrier),
	CALL(getrusage),
	CALL(umask),
	CALL(times),
	CALL(getpriority),
#ifdef __NR_poll /* what only the older machines have */
	CALL(stat),
	CALL(lstat),
	CALL(epoll_wait),
	CALL(poll),
	CALL(select),
	CALL(dup2),
	CALL(time),
	CALL(readlink),
	CALL(access),
	CALL(unlink),
	CALL(getrlimit),
	CALL(arch_prctl),
	CALL(pipe),
	CALL(epoll_create),
#endif
};

/* Where something is opened while it serves: Landlock says what. */
static const long opening[] = {
	CALL(openat),    CALL(openat2), CALL(mkdirat),  CALL(renameat2),
	CALL(statfs),    CALL(linkat),  CALL(truncate), CALL(fsetxattr),
	CALL(fgetxattr), CALL(fchmod),  CALL(syncfs),
#ifdef __NR_open
	CALL(open),      CALL(mkdir),   CALL(rename),   CALL(renameat),
	CALL(rmdir),     CALL(link),
#endif
};

static const long connecting[] = { CALL(socket), CALL(socketpair), CALL(connect), CALL(bind) };

static void rules_special(struct filter *f)
{
	static const uint32_t controls[] = { PR_SET_NAME, PR_GET_NAME,
					     0x53564d41 /* PR_SET_VMA */ };
	static const uint32_t requests[] = { TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX };
	const uint32_t write_exec = PROT_WRITE | PROT_EXEC;

	if (SANDBOX_SANITIZED) {
		rule(f, CALL(clone), SECCOMP_RET_ALLOW);
		rule(f, CALL(ptrace), SECCOMP_RET_ALLOW);
		rule(f, CALL(wait4), SECCOMP_RET_ALLOW);
		rule(f, CALL(prctl), SECCOMP_RET_ALLOW);
		rule(f, CALL(kill), SECCOMP_RET_ALLOW);
#ifdef __NR_getdents
		rule(f, CALL(getdents), SECCOMP_RET_ALLOW);
#endif
	}
	/* Threads, and no processes; of clone3 one cannot see what it would do, and the C library
	 * takes clone where there is no clone3. */
	rule(f, CALL(clone3), SECCOMP_RET_ERRNO | ENOSYS);
	rule_masked(f, CALL(clone), 0,
		    CLONE_THREAD | CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET,
		    CLONE_THREAD, REFUSE);
	rule(f, CALL(ptrace), SECCOMP_RET_KILL_PROCESS);
	/* No memory that can be written and run; none that is run becomes writable. */
	put(f, BPF_JMP | BPF_JEQ | BPF_K, CALL(mmap), 1, 0);
	put(f, BPF_JMP | BPF_JEQ | BPF_K, CALL(mprotect), 0, 5);
	load(f, ARG_LOW(2));
	put(f, BPF_ALU | BPF_AND | BPF_K, write_exec, 0, 0);
	put(f, BPF_JMP | BPF_JEQ | BPF_K, write_exec, 0, 1);
	answer(f, REFUSE);
	answer(f, SECCOMP_RET_ALLOW);
	rule_values(f, CALL(prctl), 0, controls, 3);
	rule_values(f, CALL(ioctl), 1, requests, 5);
	rule_null(f, CALL(prlimit64), 2);
	/* To itself: abort() ends a process so. */
	put(f, BPF_JMP | BPF_JEQ | BPF_K, CALL(tgkill), 0, 4);
	load(f, ARG_LOW(0));
	put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)getpid(), 0, 1);
	answer(f, SECCOMP_RET_ALLOW);
	answer(f, REFUSE);
}

static void rules_all(struct filter *f, const long *calls, size_t n, uint32_t how)
{
	for (size_t i = 0; i < n; i++)
		rule(f, calls[i], how);
}

int sandbox_filter_install(bool net, bool opens)
{
	struct filter f = { .len = 0 };
	struct sock_fprog program;

	load(&f, offsetof(struct seccomp_data, arch));
	put(&f, BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 1, 0);
	answer(&f, SECCOMP_RET_KILL_PROCESS);
	load(&f, offsetof(struct seccomp_data, nr));
	rules_all(&f, allowed, ARRAY_LEN(allowed), SECCOMP_RET_ALLOW);
	rules_all(&f, deadly, ARRAY_LEN(deadly), SECCOMP_RET_KILL_PROCESS);
	if (opens || SANDBOX_SANITIZED)
		rules_all(&f, opening, ARRAY_LEN(opening), SECCOMP_RET_ALLOW);
	if (net)
		rules_all(&f, connecting, ARRAY_LEN(connecting), SECCOMP_RET_ALLOW);
	rules_special(&f);
	answer(&f, REFUSE);
	program = (struct sock_fprog){ .len = f.len, .filter = f.at };
	return syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program)
		       ? -errno
		       : 0;
}

#else

int sandbox_filter_install(bool net, bool opens)
{
	(void)net;
	(void)opens;
	return -ENOSYS;
}

#endif
