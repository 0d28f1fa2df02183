/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora doctor: what this machine can do, what each thing is for, and how to get what is missing.
 *
 * Place: looks only, changes nothing. Every row is tried, not guessed from a version.
 *
 * Invariant: the exit code is 0 when all rows marked NEEDED (for memory) are there.
 *
 * Locking: none.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "base/uapi.h"
#include "cmd/cmd.h"

#define ROWS_MAX 40u

enum row_state { ROW_OK, ROW_PARTLY, ROW_MISSING };
enum row_need { NEEDED, OPTIONAL };

struct row {
	const char *name, *what, *fix;
	enum row_state state;
	enum row_need need;
	char detail[160];
};

struct doctor {
	struct row row[ROWS_MAX];
	size_t count;
	uint64_t uffd_features;
	bool uffd; /* there is one at all */
};

static struct row *row_add(struct doctor *d, const char *name, enum row_need need, bool ok,
			   const char *what, const char *fix)
{
	struct row *row;

	CHECK(d->count < ROWS_MAX);
	row = &d->row[d->count++];
	*row = (struct row){ .name = name,
			     .need = need,
			     .state = ok ? ROW_OK : ROW_MISSING,
			     .what = what,
			     .fix = fix };
	return row;
}

static void row_detail(struct row *row, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void row_detail(struct row *row, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(row->detail, sizeof(row->detail), fmt, ap);
	va_end(ap);
}

/* The first line of a file of the kernel's; false: not there. */
static bool line_read(const char *path, char *buf, size_t len)
{
	AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, len - 1);

	if (n < 0)
		return false;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return true;
}

/* ---- the machine ---- */

static void check_machine(struct doctor *d)
{
	struct utsname u;
	struct rlimit lock;
	char text[SIZE_TEXT_MAX];
	struct row *row;

	uname(&u);
	row = row_add(d, "kernel", OPTIONAL, true, "", NULL);
	row_detail(row, "%s %s, %s, %ld processors", u.sysname, u.release, u.machine,
		   sysconf(_SC_NPROCESSORS_ONLN));
	row = row_add(d, "page size", NEEDED, sysconf(_SC_PAGESIZE) == PAGE_BYTES,
		      "unit of access and of found writes",
		      "another kernel: this build knows pages of 4 KiB only");
	row_detail(row, "%ld bytes", sysconf(_SC_PAGESIZE));
	getrlimit(RLIMIT_MEMLOCK, &lock);
	row = row_add(d, "locked memory", OPTIONAL, lock.rlim_cur >= 8 * MIB || !geteuid(),
		      "pinned buffers; a server that must not be swapped out",
		      "ulimit -l unlimited, or LimitMEMLOCK= in a unit");
	row_detail(row, "limit %s",
		   lock.rlim_cur == RLIM_INFINITY ? "none" : size_format(lock.rlim_cur, text));
}

static void check_uring(struct doctor *d)
{
	struct io_uring_params params = { 0 };
	AUTO_FD int fd = (int)syscall(SYS_io_uring_setup, 4, &params);
	int err = fd < 0 ? errno : 0;
	char sysctl[32] = "";
	struct row *row = row_add(
		d, "io_uring", OPTIONAL, fd >= 0,
		"event loop with fewer system calls (else epoll is used)",
		err == ENOSYS ? "Linux 5.11 or later with CONFIG_IO_URING"
			      : "sysctl kernel.io_uring_disabled=0, and a sandbox that allows it");

	line_read("/proc/sys/kernel/io_uring_disabled", sysctl, sizeof(sysctl));
	if (err)
		row_detail(row, "%s%s%s", strerror(err),
			   *sysctl ? "; kernel.io_uring_disabled = " : "", sysctl);
	else
		row_detail(row, "works%s",
			   params.features & IORING_FEAT_EXT_ARG ? ""
								 : ", but is old (before 5.11)");
}

/* ---- memory ---- */

/* What a fresh descriptor says it can do; -1: nothing. */
static int uffd_ask(int fd, uint64_t *ret)
{
	struct uffdio_api api = { .api = UFFD_API };

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return -1;
	*ret = api.features;
	return 0;
}

static void check_uffd(struct doctor *d)
{
	static const char fix[] = "one of: sysctl vm.unprivileged_userfaultfd=1; the right to open "
				  "/dev/userfaultfd (chgrp, chmod g+rw); CAP_SYS_PTRACE";
	AUTO_FD int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	AUTO_FD int by_dev = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC);
	AUTO_FD int by_call = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	AUTO_FD int user_only = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	bool whole = by_call >= 0 || by_dev >= 0;
	int any = by_call >= 0 ? by_call : by_dev >= 0 ? by_dev : user_only;
	struct row *row = row_add(
		d, "userfaultfd", NEEDED, whole, "memory: page faults become requests",
		any >= 0 || dev >= 0 || errno != ENOSYS ? fix : "Linux with CONFIG_USERFAULTFD");

	d->uffd = uffd_ask(any, &d->uffd_features) == 0;
	if (whole) {
		row_detail(row, "by %s%s%s", by_call >= 0 ? "system call" : "",
			   by_call >= 0 && by_dev >= 0 ? " and " : "",
			   by_dev >= 0 ? "/dev/userfaultfd" : "");
	} else if (d->uffd) {
		row->state = ROW_PARTLY;
		row_detail(row, "user mode only: read(2) and write(2) with a pointer into a region "
				"would fail");
	} else {
		row_detail(row, "%s", strerror(errno));
	}
}

static void check_uffd_features(struct doctor *d)
{
	static const struct {
		uint64_t bit;
		const char *name, *what, *fix;
		enum row_need need;
	} feature[] = {
		{ UFFD_FEATURE_MISSING_SHMEM, " missing shmem", "pages that are not there yet",
		  "Linux 4.11", NEEDED },
		{ UFFD_FEATURE_MINOR_SHMEM, " minor shmem", "pages received without a copy",
		  "Linux 5.14", NEEDED },
		{ UFFD_FEATURE_THREAD_ID, " thread id",
		  "the handler follows the faulting thread's processor", "Linux 4.14", NEEDED },
		{ UFFD_FEATURE_WP_HUGETLBFS_SHMEM, " write protect",
		  "finding writes in shared memory", "Linux 5.19", NEEDED },
		{ UFFD_FEATURE_WP_UNPOPULATED, " wp unpopulated",
		  "finding writes to pages not touched before", "Linux 6.4", NEEDED },
		{ UFFD_FEATURE_WP_ASYNC, " wp async", "finding writes without stopping the writer",
		  "Linux 6.7", NEEDED },
		{ UFFD_FEATURE_POISON, " poison", "an error, not zeros, when a resource is lost",
		  "Linux 6.6", NEEDED },
		{ UFFD_FEATURE_MOVE, " move", "huge pages installed without a copy", "Linux 6.8",
		  OPTIONAL },
	};

	for (size_t i = 0; i < ARRAY_LEN(feature); i++)
		row_add(d, feature[i].name, feature[i].need,
			d->uffd && (d->uffd_features & feature[i].bit), feature[i].what,
			d->uffd ? feature[i].fix : "see userfaultfd");
}

static void check_memory(struct doctor *d)
{
	AUTO_FD int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	AUTO_FD int memfd = memfd_create("remora-doctor", MFD_CLOEXEC);
	struct pm_scan_arg scan = { .size = sizeof(scan),
				    .category_mask = PAGE_IS_PRESENT,
				    .return_mask = PAGE_IS_PRESENT };
	static _Alignas(PAGE_BYTES) char page[PAGE_BYTES];
	struct page_region region;
	char mode[96] = "", *chosen, *end;
	struct row *row;

	page[0] = 1;
	scan.start = (uintptr_t)page;
	scan.end = scan.start + PAGE_BYTES;
	scan.vec = (uintptr_t)&region;
	scan.vec_len = 1;
	row_add(d, "pagemap scan", NEEDED, pagemap >= 0 && ioctl(pagemap, PAGEMAP_SCAN, &scan) == 1,
		"all written pages of a GiB in less than a millisecond",
		"Linux 6.7, and a mounted /proc");
	row_add(d, "memfd", NEEDED, memfd >= 0, "where the bytes of a region are",
		"a sandbox that allows memfd_create");
	line_read("/sys/kernel/mm/transparent_hugepage/shmem_enabled", mode, sizeof(mode));
	chosen = strchr(mode, '[');
	end = chosen ? strchr(chosen, ']') : NULL;
	if (end)
		*end = '\0';
	row = row_add(d, "huge pages", OPTIONAL,
		      end && strcmp(chosen, "[never") && strcmp(chosen, "[deny"),
		      "faster access to resident memory",
		      "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled");
	row_detail(row, "for shared memory: %s", end ? chosen + 1 : "unknown");
}

/* ---- files and block devices ---- */

static bool in_path(const char *program)
{
	const char *path = getenv("PATH");

	while (path && *path) {
		int len = (int)strcspn(path, ":");
		char full[512];

		snprintf(full, sizeof(full), "%.*s/%s", len, path, program);
		if (!access(full, X_OK))
			return true;
		path += len + (path[len] == ':');
	}
	return false;
}

static bool module_there(const char *name, const char *device)
{
	struct utsname u;
	char path[512];

	if (!access(device, F_OK))
		return true;
	uname(&u);
	for (int i = 0; i < 3; i++) {
		static const char *const suffix[] = { "", ".xz", ".zst" };

		snprintf(path, sizeof(path), "/lib/modules/%s/kernel/drivers/block/%s.ko%s",
			 u.release, name, suffix[i]);
		if (!access(path, F_OK))
			return true;
	}
	return false;
}

static void check_devices(struct doctor *d)
{
	bool fuse = !access("/dev/fuse", R_OK | W_OK), fusermount = in_path("fusermount3");
	struct row *row = row_add(d, "FUSE", OPTIONAL, fuse && (fusermount || !geteuid()),
				  "a resource as a file (to come)",
				  !fuse ? "modprobe fuse, and the right to open /dev/fuse"
					: "apt install fuse3");

	row_detail(row, "/dev/fuse %s, fusermount3 %s", fuse ? "usable" : "not usable",
		   fusermount ? "there" : "not there");
	row = row_add(d, "ublk", OPTIONAL, module_there("ublk_drv", "/dev/ublk-control"),
		      "a resource as a block device that survives its server (to come)",
		      "Linux 6.0 with CONFIG_BLK_DEV_UBLK; modprobe ublk_drv");
	row_detail(row, "%s",
		   access("/dev/ublk-control", F_OK) ? "no /dev/ublk-control"
						     : "/dev/ublk-control");
	row = row_add(d, "nbd", OPTIONAL, module_there("nbd", "/dev/nbd0"),
		      "a resource as a block device (to come)", "CONFIG_BLK_DEV_NBD; modprobe nbd");
	row_detail(row, "%s", access("/dev/nbd0", F_OK) ? "no /dev/nbd0" : "/dev/nbd0");
}

/* ---- telling ---- */

static const char *state_name(const struct row *row)
{
	if (row->state == ROW_OK)
		return "ok";
	if (row->state == ROW_PARTLY)
		return "PARTLY";
	return row->need == NEEDED ? "MISSING" : "missing";
}

static void row_print(const struct row *row)
{
	enum out_color color = row->state == ROW_OK  ? OUT_GREEN
			       : row->need == NEEDED ? OUT_RED
						     : OUT_YELLOW;

	printf("%s%-8s%s %-15s %s", out_color(stdout, color), state_name(row),
	       out_color(stdout, OUT_PLAIN), row->name, row->what);
	if (*row->detail)
		printf("%s%s", *row->what ? ": " : "", row->detail);
	putchar('\n');
	if (row->state != ROW_OK && row->fix)
		printf("%*s to get it: %s\n", 24, "", row->fix);
}

static json_t *row_json(const struct row *row)
{
	static const char *const states[] = { "ok", "partly", "missing" };
	const char *name = row->name + (*row->name == ' ');
	json_t *j = json_pack("{s:s, s:s, s:b, s:s}", "name", name, "state", states[row->state],
			      "needed", row->need == NEEDED, "what", row->what);

	CHECK(j);
	if (*row->detail)
		json_object_set_new(j, "detail", json_string(row->detail));
	if (row->state != ROW_OK && row->fix)
		json_object_set_new(j, "fix", json_string(row->fix));
	return j;
}

static void doctor_json(const struct doctor *d, bool ok)
{
	json_t *rows = json_array();

	for (size_t i = 0; i < d->count; i++)
		json_array_append_new(rows, row_json(&d->row[i]));
	out_json(json_pack("{s:b, s:o}", "memory", ok, "rows", rows));
}

int cmd_doctor(int argc, char **argv)
{
	const struct usage usage = {
		.name = "doctor",
		.args = "[OPTION]...",
		.more = "MISSING: memory cannot work here without it. missing: something else, or faster,\n"
			"would be possible. Exit code 0: all is there that memory needs.\n",
		.json = true,
	};
	AUTO_FREE struct doctor *d = calloc(1, sizeof(*d));
	struct common common;
	bool ok = true;
	int r = options_parse(&usage, &common, argc, argv);

	if (r >= 0)
		return r;
	if (!d)
		return CMD_FAILED;
	check_machine(d);
	check_uring(d);
	check_uffd(d);
	check_uffd_features(d);
	check_memory(d);
	check_devices(d);
	for (size_t i = 0; i < d->count; i++)
		ok = ok && (d->row[i].need != NEEDED || d->row[i].state == ROW_OK);
	if (common.json) {
		doctor_json(d, ok);
	} else {
		for (size_t i = 0; i < d->count; i++)
			row_print(&d->row[i]);
		printf("\n%s\n", ok ? "Resources as memory: possible here."
				    : "Resources as memory: not possible here, or only in part; "
				      "see what is in capitals.");
	}
	return out_end(ok ? CMD_OK : CMD_FAILED);
}
