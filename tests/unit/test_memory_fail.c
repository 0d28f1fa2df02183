/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mapped near store when things go wrong or are asked for in another way: pages that nobody
 * put, failing and healing, options, rights, huge pages, and a random run against a model.
 */
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/rng.h"
#include "base/size.h"
#include "memory_fake.h"

/* ---- pages that nobody put ---- */

/* A child that inherits the mapping after all reads zeros and plants a page of them in the file. */
static void test_a_zero_page_planted_by_a_child_is_never_read_by_the_parent(void **state)
{
	struct fake f;
	int status;
	pid_t child;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, 0);
	assert_int_equal(madvise(f.data, f.size, MADV_DOFORK), 0);
	child = fork();
	assert_true(child >= 0);
	if (!child)
		_exit(touch(&f, CHUNK + 3 * PAGE_BYTES) || touch(&f, CHUNK + 9 * PAGE_BYTES));
	assert_int_equal(waitpid(child, &status, 0), child);
	for (uint64_t page = 0; page < 48; page++)
		assert_far(&f, page * PAGE_BYTES);
	assert_written(&f, 0, 48, "");
	fake_close(&f);
}

static void test_a_child_does_not_inherit_the_mapping(void **state)
{
	struct fake f;
	int status;
	pid_t child;

	(void)state;
	fake_open(&f, 1 * MIB);
	child = fork();
	assert_true(child >= 0);
	if (!child) {
		signal(SIGSEGV, SIG_DFL);
		_exit(touch(&f, 0));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGSEGV);
	for (uint64_t page = 0; page < 48; page++)
		assert_far(&f, page * PAGE_BYTES);
	fake_close(&f);
}

static void test_put_over_a_stray_page_written_by_the_region(void **state)
{
	uint8_t page[PAGE_BYTES];
	struct fake f;
	pid_t child;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_int_equal(madvise(f.data, f.size, MADV_DOFORK), 0);
	child = fork();
	assert_true(child >= 0);
	if (!child)
		_exit(touch(&f, 0));
	assert_int_equal(waitpid(child, NULL, 0), child);
	memset(page, 0x33, sizeof(page));
	near_do(&f, write, 0, page, sizeof(page));
	fake_fill(&f, 0);
	assert_int_equal(touch(&f, 0), 0x33);
	assert_far(&f, PAGE_BYTES);
	fake_close(&f);
}

/* ---- failing ---- */

static sigjmp_buf fault_jump; /* a signal handler has no other way to the test */
static volatile sig_atomic_t fault_signal;

static void fault_caught(int sig)
{
	fault_signal = sig;
	siglongjmp(fault_jump, 1);
}

/* The signal that an access raises, 0 = none. */
static int access_signal(const struct fake *f, uint64_t at, bool write)
{
	struct sigaction sa = { .sa_handler = fault_caught }, bus, segv;

	sigaction(SIGBUS, &sa, &bus);
	sigaction(SIGSEGV, &sa, &segv);
	fault_signal = 0;
	if (sigsetjmp(fault_jump, 1) == 0) {
		if (write)
			*(volatile uint8_t *)(f->data + at) = 1;
		else
			(void)touch(f, at);
	}
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGSEGV, &segv, NULL);
	return fault_signal;
}

static void fake_fail(struct fake *f, uint64_t off, uint64_t len)
{
	near_do(f, fail, range_of(off, len));
}

static void test_failed_pages_raise_sigbus_and_present_ones_are_read(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, CHUNK);
	f.silent = true;
	fake_fail(&f, 0, f.size);
	fake_fail(&f, 0, f.size); /* twice is as good */
	assert_int_equal(access_signal(&f, 0, false), SIGBUS);
	assert_int_equal(access_signal(&f, f.size - 1, true), SIGBUS);
	assert_int_equal(access_signal(&f, CHUNK, true), 0);
	assert_int_equal(f.asked, 1);
	fake_close(&f);
}

static void test_heal_makes_pages_fault_again(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, CHUNK);
	fake_fail(&f, 0, f.size);
	near_do(&f, heal, range_of(0, f.size));
	for (uint64_t page = 0; page < 256; page++)
		assert_far(&f, page * PAGE_BYTES);
	assert_written(&f, 0, 256, "");
	fake_close(&f);
}

static void test_put_heals_what_it_puts(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	fake_fail(&f, 0, f.size);
	fake_fill(&f, 2);
	assert_far(&f, 2 * CHUNK + 5);
	assert_int_equal(access_signal(&f, 3 * CHUNK, false), SIGBUS);
	fake_close(&f);
}

/* What was there before has left markers of write tracking, which the poison does not overwrite by
 * itself. */
static void test_pages_that_were_dropped_can_fail(void **state)
{
	struct fake f;

	(void)state;
	fake_open(&f, 1 * MIB);
	assert_far(&f, 0);
	assert_far(&f, CHUNK);
	fake_drop(&f, 0);
	f.silent = true;
	fake_fail(&f, 0, CHUNK);
	assert_int_equal(access_signal(&f, 0, false), SIGBUS);
	assert_int_equal(access_signal(&f, CHUNK - 1, false), SIGBUS);
	assert_int_equal(access_signal(&f, CHUNK, false), 0);
	fake_close(&f);
}

static void *wait_main(void *arg)
{
	struct fake *f = arg;
	struct sigaction sa = { .sa_handler = SIG_DFL };

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	_exit(touch(f, 0) ? 3 : 2); /* 2: read zeros */
}

/* In a process of its own: a thread waits in a fault that nobody answers, then `end` comes. */
static int waiting_reader(void (*end)(struct fake *f))
{
	int status;
	pid_t child = fork();

	assert_true(child >= 0);
	if (!child) {
		pthread_t thread;
		struct fake f;

		fake_open(&f, 1 * MIB);
		f.silent = true;
		if (pthread_create(&thread, NULL, wait_main, &f))
			_exit(4);
		while (!f.asked)
			sched_yield();
		end(&f);
		pthread_join(thread, NULL);
		_exit(5);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	if (!WIFSIGNALED(status))
		fail_msg("exit status %d", WEXITSTATUS(status));
	return WTERMSIG(status);
}

static void end_by_fail(struct fake *f)
{
	fake_fail(f, 0, f->size);
}

static void end_by_close(struct fake *f)
{
	fake_close(f);
}

static void test_who_waits_for_a_page_that_fails_gets_sigbus(void **state)
{
	(void)state;
	assert_int_equal(waiting_reader(end_by_fail), SIGBUS);
}

static void test_who_waits_when_the_memory_closes_gets_a_signal(void **state)
{
	(void)state;
	assert_int_equal(waiting_reader(end_by_close), SIGSEGV);
}

/* ---- options ---- */

static void test_read_only_memory_refuses_writes(void **state)
{
	struct fake f;

	(void)state;
	fake_open_with(&f, (struct memory_options){ .size = 1 * MIB, .read_only = true });
	assert_false(f.near->writable);
	assert_far(&f, 0);
	assert_int_equal(access_signal(&f, 0, true), SIGSEGV);
	assert_int_equal(access_signal(&f, CHUNK, true), SIGSEGV);
	assert_far(&f, CHUNK);
	fake_drop(&f, 0);
	f.seed++;
	assert_far(&f, 10);
	near_shut(&f, 0, CHUNK);
	assert_far(&f, 10);
	fake_fail(&f, 4 * CHUNK, CHUNK);
	assert_int_equal(access_signal(&f, 4 * CHUNK, false), SIGBUS);
	assert_written(&f, 0, 256, "");
	fake_close(&f);
}

static void test_a_fixed_address_is_kept_or_refused(void **state)
{
	struct env env;
	struct memory_options o = { .env = &env, .size = 1 * MIB };
	struct near *second;
	struct err e = { 0 };
	struct fake f;
	void *at;

	(void)state;
	env_init(&env);
	at = mmap(NULL, 4 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(at, MAP_FAILED);
	o.address = (uint8_t *)at + 3 * PAGE_BYTES; /* nothing rounder than a page */
	assert_int_equal(memory_open(&second, &o, &e), -EEXIST);
	assert_null(second);
	assert_non_null(strstr(e.text, "something else is mapped"));
	munmap(at, 4 * MIB);

	fake_open_with(&f, o);
	assert_ptr_equal(f.data, o.address);
	for (uint64_t page = 0; page < 256; page++)
		assert_far(&f, page * PAGE_BYTES);
	assert_int_equal(memory_open(&second, &o, &e), -EEXIST);
	for (uint64_t chunk = 0; chunk < 16; chunk++)
		fake_drop(&f, chunk);
	assert_far(&f, 77);
	fake_close(&f);

	o.address = (uint8_t *)o.address + 1;
	assert_int_equal(memory_open(&second, &o, &e), -EINVAL);
	assert_non_null(strstr(e.text, "not a multiple"));
}

static void found_mark(void *arg, struct range r)
{
	bitmap_set_range(arg, r.off / PAGE_BYTES, r.len / PAGE_BYTES);
}

/* Runs in a process without any right; exit status 0 = as wanted. */
static int open_without_rights(void)
{
	struct env env;
	struct memory_options o = { .env = &env, .size = 1 * MIB };
	struct near *near;
	struct err e = { 0 };
	char buf[4] = "";
	AUTO_FD int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY);

	env_init(&env);
	if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) ||
	    setresuid(65534, 65534, 65534) ||
	    prctl(PR_SET_DUMPABLE, 1)) /* its own /proc files are its own again */
		return 1;
	if (fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0 && buf[0] == '0' &&
	    access("/dev/userfaultfd", R_OK | W_OK)) {
		if (memory_open(&near, &o, &e) != -EPERM || near)
			return 2;
		if (!strstr(e.text, "/dev/userfaultfd") ||
		    !strstr(e.text, "vm.unprivileged_userfaultfd") ||
		    !strstr(e.text, "CAP_SYS_PTRACE") || !strstr(e.text, "user_mode_only"))
			return 3;
	}
	o.user_mode_only = true;
	if (memory_open(&near, &o, &e))
		return 4;
	near->ops->close(near);
	return 0;
}

static void test_without_rights_the_error_names_the_ways_to_get_them(void **state)
{
	int status;
	pid_t child;

	(void)state;
	if (getuid() != 0) {
		print_message("only root can give its rights away\n");
		skip();
	}
	child = fork();
	assert_true(child >= 0);
	if (!child)
		_exit(open_without_rights());
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static pid_t fault_thread_id(void)
{
	DIR *dir = opendir("/proc/self/task");
	uint64_t found = 0;

	assert_non_null(dir);
	for (struct dirent *d; (d = readdir(dir));) {
		char path[300], name[32] = "";
		AUTO_FD int fd = -1;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", d->d_name);
		fd = open(path, O_RDONLY);
		if (fd >= 0 && read(fd, name, sizeof(name) - 1) > 0 &&
		    !strcmp(name, "remora-fault\n"))
			assert_int_equal(number_parse(d->d_name, 1, INT32_MAX, &found, NULL), 0);
	}
	closedir(dir);
	assert_true(found > 0);
	return (pid_t)found;
}

/* A fault is answered ten times faster from the same core. */
static void test_the_fault_thread_follows_the_faulter(void **state)
{
	cpu_set_t before, one, its;
	struct fake f;
	pid_t thread;
	unsigned cores = 0;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
	fake_open(&f, 1 * MIB);
	thread = fault_thread_id();
	for (size_t cpu = 0; cpu < CPU_SETSIZE && cores < 3; cpu++) {
		if (!CPU_ISSET(cpu, &before))
			continue;
		cores++;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
		for (unsigned i = 0;; i++) {
			near_shut(&f, 0, CHUNK);
			assert_far(&f, 0);
			assert_int_equal(sched_getaffinity(thread, sizeof(its), &its), 0);
			if (CPU_EQUAL(&its, &one))
				break;
			if (i > 1000000)
				fail_msg("it has not come to core %zu", cpu);
		}
	}
	assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
	fake_close(&f);
}

static void random_use(struct fake *f, uint64_t seed)
{
	static const unsigned steps = 3000;
	uint64_t chunks = f->size / CHUNK, pages = f->size / PAGE_BYTES;
	uint8_t *model = malloc(pages); /* 0 = the far side's */
	uint64_t *written = calloc(BITMAP_WORDS(pages), sizeof(uint64_t));
	struct rng rng;

	assert_true(model && written);
	memset(model, 0, pages);
	rng_init(&rng, seed);
	for (unsigned i = 0; i < steps; i++) {
		uint64_t page = rng_below(&rng, pages), chunk = rng_below(&rng, chunks);
		struct range c = range_of(chunk * CHUNK, CHUNK);

		switch (rng_below(&rng, 4)) {
		case 0:
			model[page] = (uint8_t)(rng_below(&rng, 255) + 1);
			poke(f, page * PAGE_BYTES, model[page]);
			break;
		case 1:
			assert_int_equal(touch(f, page * PAGE_BYTES),
					 model[page] ? model[page]
						     : far_byte(f, page * PAGE_BYTES));
			break;
		case 2:
			near_shut(f, c.off, c.len);
			break;
		case 3: /* drop what has no write, as the region does */
			near_shut(f, c.off, c.len);
			near_do(f, collect, c, found_mark, written);
			for (uint64_t p = 0; p < CHUNK_PAGES; p++)
				assert_int_equal(model[chunk * CHUNK_PAGES + p] != 0,
						 bitmap_get(written, chunk * CHUNK_PAGES + p));
			if (bitmap_next_set(written, (chunk + 1) * CHUNK_PAGES,
					    chunk * CHUNK_PAGES) == (chunk + 1) * CHUNK_PAGES)
				fake_drop(f, chunk);
			break;
		}
	}
	free(model);
	free(written);
}

static void test_random_use_matches_a_model(void **state)
{
	(void)state;
	for (int huge = 0; huge < 2; huge++) {
		struct fake f;

		fake_open_with(&f, (struct memory_options){ .size = 3 * MIB, .huge = huge });
		random_use(&f, 42 + (uint64_t)huge);
		fake_close(&f);
	}
}

/* With huge pages a hole punched into one may leave zeros in the file. */
static void test_dropping_from_huge_pages_never_leaves_zeros(void **state)
{
	struct fake f;

	(void)state;
	fake_open_with(&f, (struct memory_options){ .size = 8 * MIB, .huge = true });
	for (int round = 0; round < 3; round++) {
		for (uint64_t at = 0; at < f.size; at += PAGE_BYTES)
			assert_far(&f, at);
		(void)madvise(f.data, f.size, 25 /* MADV_COLLAPSE, Linux 6.1 */);
		for (uint64_t chunk = (uint64_t)round; chunk < f.chunks - 1; chunk += 3)
			fake_drop(&f, chunk);
		f.seed++;
		for (uint64_t chunk = (uint64_t)round; chunk < f.chunks - 1; chunk += 3)
			for (uint64_t page = 0; page < CHUNK_PAGES; page++)
				assert_far(&f, chunk * CHUNK + page * PAGE_BYTES);
		for (uint64_t chunk = 0; chunk < f.chunks - 1; chunk++)
			fake_drop(&f, chunk);
	}
	fake_close(&f);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_zero_page_planted_by_a_child_is_never_read_by_the_parent),
		cmocka_unit_test(test_a_child_does_not_inherit_the_mapping),
		cmocka_unit_test(test_put_over_a_stray_page_written_by_the_region),
		cmocka_unit_test(test_failed_pages_raise_sigbus_and_present_ones_are_read),
		cmocka_unit_test(test_heal_makes_pages_fault_again),
		cmocka_unit_test(test_put_heals_what_it_puts),
		cmocka_unit_test(test_pages_that_were_dropped_can_fail),
		cmocka_unit_test(test_who_waits_for_a_page_that_fails_gets_sigbus),
		cmocka_unit_test(test_who_waits_when_the_memory_closes_gets_a_signal),
		cmocka_unit_test(test_read_only_memory_refuses_writes),
		cmocka_unit_test(test_a_fixed_address_is_kept_or_refused),
		cmocka_unit_test(test_without_rights_the_error_names_the_ways_to_get_them),
		cmocka_unit_test(test_the_fault_thread_follows_the_faulter),
		cmocka_unit_test(test_random_use_matches_a_model),
		cmocka_unit_test(test_dropping_from_huge_pages_never_leaves_zeros),
	};

	return memory_available() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
