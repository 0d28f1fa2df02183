/* SPDX-License-Identifier: Apache-2.0 */
/*
 * userfaultfd and PAGEMAP_SCAN: see uffd.h.
 *
 * Place: below the mapped near store (memory.c), which decides; here is only what every caller
 * would have to repeat: the three ways to get a descriptor, features by name, and ioctls that come
 * back half done.
 *
 * Invariants: no state. A partial result is never reported as success.
 *
 * Source of the interface: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst of
 * Linux 6.8, ioctl_userfaultfd(2).
 */
#include "front/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define FEATURES_BASE                                                                              \
	(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_THREAD_ID |          \
	 UFFD_FEATURE_POISON)
#define FEATURES_TRACK                                                                             \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |                        \
	 UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

static const struct {
	uint64_t bit;
	const char *name, *since;
} feature_names[] = {
	{ UFFD_FEATURE_MISSING_SHMEM, "MISSING_SHMEM", "4.11" },
	{ UFFD_FEATURE_THREAD_ID, "THREAD_ID", "4.14" },
	{ UFFD_FEATURE_MINOR_SHMEM, "MINOR_SHMEM", "5.14" },
	{ UFFD_FEATURE_PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP", "5.7" },
	{ UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM", "5.19" },
	{ UFFD_FEATURE_WP_UNPOPULATED, "WP_UNPOPULATED", "6.4" },
	{ UFFD_FEATURE_POISON, "POISON", "6.6" },
	{ UFFD_FEATURE_WP_ASYNC, "WP_ASYNC", "6.7" },
};

/* ---- opening ---- */

/* A descriptor, by whatever way is open to us; -EPERM when there is none. */
static int descriptor_open(unsigned need, const char **ret_how)
{
	AUTO_FD int dev = -1;
	int fd, err;

	if (need & UFFD_NEED_USER_MODE_ONLY) {
		*ret_how = "userfaultfd, user mode only";
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
		return fd >= 0 ? fd : -errno;
	}
	*ret_how = "userfaultfd";
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd >= 0)
		return fd;
	err = -errno;
	if (err == -EMFILE || err == -ENFILE || err == -ENOMEM)
		return err;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev >= 0) {
		*ret_how = "/dev/userfaultfd";
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC);
		if (fd >= 0)
			return fd;
	}
	return err;
}

static int refuse(int err, struct err *e)
{
	if (err == -ENOSYS)
		return err_set(
			e, err,
			"this kernel has no userfaultfd (CONFIG_USERFAULTFD), or a sandbox hides it");
	if (err != -EPERM && err != -EACCES)
		return err_sys(e, err, "opening a userfaultfd");
	return err_set(
		e, err,
		"no right to use userfaultfd. Any of these gives it: access to /dev/userfaultfd "
		"(chmod 0666 /dev/userfaultfd), or \"sysctl vm.unprivileged_userfaultfd=1\", or "
		"CAP_SYS_PTRACE (root). Without any right, ask for user_mode_only: system calls "
		"on absent pages then fail with EFAULT");
}

/* Which of the features wanted are missing, asked with a fresh descriptor: one can shake hands only
 * once. */
static int features_explain(unsigned need, uint64_t want, int err, struct err *e)
{
	struct uffdio_api api = { .api = UFFD_API };
	char names[160] = "";
	const char *how;
	AUTO_FD int fd = descriptor_open(need, &how);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		return err_sys(e, err, "talking to userfaultfd");
	for (size_t i = 0; i < ARRAY_LEN(feature_names); i++) {
		size_t at = strlen(names);

		if ((want & feature_names[i].bit) && !(api.features & feature_names[i].bit))
			snprintf(names + at, sizeof(names) - at, "%s%s (Linux %s)", at ? ", " : "",
				 feature_names[i].name, feature_names[i].since);
	}
	return err_set(e, -EOPNOTSUPP, "this kernel's userfaultfd lacks %s%s",
		       names[0] ? names : "what is needed",
		       want & FEATURES_TRACK ? "; opening read-only needs less (Linux 6.6)" : "");
}

int uffd_open(int *ret_fd, unsigned need, const char **ret_how, struct err *e)
{
	struct uffdio_api api = { .api = UFFD_API };
	uint64_t want = FEATURES_BASE | (need & UFFD_NEED_TRACK ? FEATURES_TRACK : 0);
	AUTO_FD int fd = descriptor_open(need, ret_how);

	*ret_fd = -1;
	if (fd < 0)
		return refuse(fd, e);
	api.features = want;
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return features_explain(need, want, -errno, e);
	*ret_fd = TAKE_FD(fd);
	return 0;
}

int uffd_register(int fd, void *addr, uint64_t len, uint64_t modes)
{
	struct uffdio_register reg = { .range = { (uintptr_t)addr, len }, .mode = modes };

	return ioctl(fd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

/* ---- pages ---- */

/*
 * What an ioctl that moved `part` bytes (or says -errno there) and returned `err` means: 0 = go on.
 * EAGAIN is both "a part was done" and "the mappings change just now, try again": the latter ends
 * as soon as the other thread's call does.
 */
static int progress(int64_t part, int err, uint64_t *done)
{
	if (part > 0)
		*done += (uint64_t)part;
	return err == -EAGAIN || err == -EINTR ? 0 : err;
}

int uffd_copy(int fd, void *addr, const void *src, uint64_t len, bool protect, uint64_t *ret_done)
{
	int err = 0;

	*ret_done = 0;
	while (*ret_done < len && !err) {
		struct uffdio_copy c = { .dst = (uintptr_t)addr + *ret_done,
					 .src = (uintptr_t)src + *ret_done,
					 .len = len - *ret_done,
					 .mode = protect ? UFFDIO_COPY_MODE_WP : 0 };

		err = ioctl(fd, UFFDIO_COPY, &c) < 0 ? -errno : 0;
		err = progress(c.copy, err, ret_done);
	}
	return err;
}

int uffd_continue(int fd, void *addr, uint64_t len, bool protect, uint64_t *ret_done)
{
	int err = 0;

	*ret_done = 0;
	while (*ret_done < len && !err) {
		struct uffdio_continue c = { .range = { (uintptr_t)addr + *ret_done,
							len - *ret_done },
					     .mode = protect ? UFFDIO_CONTINUE_MODE_WP : 0 };

		err = ioctl(fd, UFFDIO_CONTINUE, &c) < 0 ? -errno : 0;
		err = progress(c.mapped, err, ret_done);
	}
	return err;
}

int uffd_poison(int fd, void *addr, uint64_t len, uint64_t *ret_done)
{
	int err = 0;

	*ret_done = 0;
	while (*ret_done < len && !err) {
		struct uffdio_poison p = { .range = { (uintptr_t)addr + *ret_done,
						      len - *ret_done } };

		err = ioctl(fd, UFFDIO_POISON, &p) < 0 ? -errno : 0;
		err = progress(p.updated, err, ret_done);
	}
	return err;
}

static int write_protect(int fd, void *addr, uint64_t len, uint64_t mode)
{
	struct uffdio_writeprotect w = { .range = { (uintptr_t)addr, len }, .mode = mode };
	int r;

	do
		r = ioctl(fd, UFFDIO_WRITEPROTECT, &w);
	while (r < 0 && (errno == EAGAIN || errno == EINTR));
	return r < 0 ? -errno : 0;
}

int uffd_protect(int fd, void *addr, uint64_t len)
{
	return write_protect(fd, addr, len, UFFDIO_WRITEPROTECT_MODE_WP);
}

int uffd_unprotect(int fd, void *addr, uint64_t len)
{
	return write_protect(fd, addr, len, 0);
}

void uffd_wake(int fd, void *addr, uint64_t len)
{
	struct uffdio_range r = { (uintptr_t)addr, len };
	int err = ioctl(fd, UFFDIO_WAKE, &r) < 0 ? -errno : 0;

	CHECK(err == 0); /* fails only on a range that could never have been registered */
}

int pagemap_scan(int pagemap_fd, uint64_t *at, uint64_t end, bool protect, struct page_region *vec,
		 size_t max)
{
	struct pm_scan_arg arg = { .size = sizeof(arg),
				   .flags = PM_SCAN_CHECK_WPASYNC |
					    (protect ? PM_SCAN_WP_MATCHING : 0),
				   .start = *at,
				   .end = end,
				   .vec = (uintptr_t)vec,
				   .vec_len = max,
				   .category_mask = PAGE_IS_WRITTEN,
				   .return_mask = PAGE_IS_WRITTEN };
	int n;

	do
		n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	CHECK(arg.walk_end > *at && arg.walk_end <= end);
	*at = arg.walk_end;
	return n;
}
