/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mapped near store: a memfd that a program has mapped, whose pages appear when the region
 * puts them.
 *
 * Place: program -> page fault -> userfaultfd -> fault thread -> region_fault() -> open() here,
 * or a pull that ends in put() here. The region decides; this file moves pages.
 *
 * A page is in one of these states. FILE is the memfd, PTE the program's page table, [wp] the
 * marker of write tracking, which survives while nothing is mapped:
 *
 *	STATE		FILE	PTE			AN ACCESS
 *	absent		-	none or [wp]		raises MISSING
 *	failed		-	poisoned		is SIGBUS
 *	open, clean	yes	mapped, [wp]		the first write clears [wp], unseen by us
 *	open, written	yes	mapped
 *	shut, clean	yes	[wp]			raises MINOR
 *	shut, written	yes	none			raises MINOR; collect() reports it
 *
 *	put()		absent, failed -> open clean
 *	write()		absent, failed -> shut clean, never open in between
 *	open(), shut()	shut <-> open, clean or written as it was
 *	collect()	written -> clean
 *	drop()		shut -> absent
 *	fail(), heal()	absent <-> failed
 *
 * Invariants.
 *  1. `present` has a bit for each page that the region gave us and that was not dropped since;
 *     only it says what is absent. The file may hold more: a stray page of zeros, planted by a
 *     foreign mapping, by a write that got a huge page, or by a hole punched into a huge page
 *     that could not be split. Such a page must never be mapped as it is: put() overwrites it.
 *  2. A page that is written stays so until collect() has reported it. UFFDIO_CONTINUE would
 *     make it clean (with WP) or make a clean one written (without), so open() looks first.
 *  3. The mapping is registered for as long as it exists. In between, absent pages would read
 *     as zeros.
 *  4. Nothing here touches the mapping's memory (rule 10): data moves through the memfd and
 *     ioctls.
 *  5. In a stretch of memory that one page table covers and that has no present page there are
 *     no markers after a drop, so that the kernel can free the table: page tables stay in
 *     proportion to what is present. (A page that failed there faults again: its next reader
 *     asks anew.)
 *
 *  6. A page that is claimed has its bit from then on, so that nothing that is done to its
 *     neighbours (invariant 5) touches it while it is being filled.
 *
 * Locking: none. open() may run in the fault thread, at the same time as anything else in the
 * loop thread but under the region's lock against shut() and drop() of the same pages; it uses
 * nothing here that changes, and neither does fill(), which any thread may run. `present` and
 * `found` belong to the loop thread. The rest is fixed before the fault thread starts.
 */
#include "front/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "front/fault.h"
#include "front/uffd.h"

#define TABLE_BYTES (512ULL * PAGE_BYTES) /* what one page table covers */
#define ZEROS_BYTES (256 * KIB)		  /* piece of zeros that is copied at a time */
#define FOUND_MAX 256u			  /* runs of written pages per scan */
#define OPEN_FOUND_MAX 16u		  /* the same in open(), on the stack */

struct memory {
	struct near near;
	const struct env *env;
	int uffd, fd, pagemap;
	const char *how;
	uint8_t *base;
	uint64_t size, len; /* of the resource; of the mapping, whole pages, at least one */
	uint8_t *zeros;	    /* ZEROS_BYTES, read-only: costs no memory */
	uint64_t *present;  /* invariant 1; memory appears as it is used */
	size_t present_bytes;
	struct fault_thread *faults;
	struct page_region found[FOUND_MAX];
	uint8_t tail[PAGE_BYTES]; /* the last page, when the resource ends inside of it */
};

static struct memory *memory_of(const struct near *near)
{
	return CONTAINER_OF(near, struct memory, near);
}

static inline uint8_t *addr_of(const struct memory *m, uint64_t page)
{
	return m->base + page * PAGE_BYTES;
}

/* The kernel's words for "this mapping is gone" are one error to the region. */
static int mapping_error(int err)
{
	return err == -ENOENT || err == -EINVAL || err == -EFAULT ? -ESRCH : err;
}

/* The pages of a range that ends at a page or at the resource's end. */
struct pages {
	uint64_t first, end;
};

static struct pages pages_of(const struct memory *m, uint64_t off, uint64_t len)
{
	struct range r = range_of(off, len);

	CHECK(range_valid(r) && off % PAGE_BYTES == 0);
	CHECK(range_end(r) <= m->len &&
	      (range_end(r) % PAGE_BYTES == 0 || range_end(r) == m->size));
	return (struct pages){ off / PAGE_BYTES, align_up(range_end(r), PAGE_BYTES) / PAGE_BYTES };
}

/*
 * Takes the first run of pages, all present or all absent, off the front of *todo; false at the
 * end.
 */
static bool run_next(const struct memory *m, struct pages *todo, struct pages *ret,
		     bool *ret_present)
{
	uint64_t end;

	if (todo->first >= todo->end)
		return false;
	*ret_present = bitmap_get(m->present, todo->first);
	end = *ret_present ? bitmap_next_clear(m->present, todo->end, todo->first)
			   : bitmap_next_set(m->present, todo->end, todo->first);
	*ret = (struct pages){ todo->first, end };
	todo->first = end;
	return true;
}

/* ---- putting ---- */

/*
 * A page that is absent for the region is in the file: a stray one (invariant 1). What is in it is
 * replaced before it is mapped. Nobody can have it mapped: an access raised MINOR, and the region
 * answered that with "wait".
 */
static int put_over_stray(struct memory *m, uint64_t page, const void *src)
{
	uint64_t done;
	int err = near_fd_write(m->fd, page * PAGE_BYTES, src, PAGE_BYTES);

	if (err)
		return err;
	err = uffd_continue(m->uffd, addr_of(m, page), PAGE_BYTES, m->near.writable, &done);
	return err == -EEXIST ? 0 : mapping_error(err);
}

/* Installs absent pages from memory that has all of their bytes. *ret_done: how many are in, also
 * when it fails. Any thread. */
static int install(struct memory *m, uint64_t page, const uint8_t *src, uint64_t count,
		   uint64_t *ret_done)
{
	uint64_t at = 0, done;
	int err = 0;

	while (!err && at < count) {
		err = uffd_copy(m->uffd, addr_of(m, page + at), src + at * PAGE_BYTES,
				(count - at) * PAGE_BYTES, m->near.writable, &done);
		at += done / PAGE_BYTES;
		if (err == -EEXIST) {
			err = put_over_stray(m, page + at, src + at * PAGE_BYTES);
			at += !err;
		}
	}
	*ret_done = at;
	return mapping_error(err);
}

static int install_zeros(struct memory *m, uint64_t page, uint64_t count, uint64_t *ret_done)
{
	*ret_done = 0;
	while (*ret_done < count) {
		uint64_t piece = MIN(count - *ret_done, ZEROS_BYTES / PAGE_BYTES), done;
		int err = install(m, page + *ret_done, m->zeros, piece, &done);

		*ret_done += done;
		if (err)
			return err;
	}
	return 0;
}

/* Content for absent pages; the last one may end early, its rest is zeros. */
static int install_run(struct memory *m, struct pages run, const uint8_t *src, uint64_t src_len,
		       uint64_t *ret_done)
{
	uint64_t whole = MIN(src_len / PAGE_BYTES, run.end - run.first), last;
	int err;

	if (!src)
		return install_zeros(m, run.first, run.end - run.first, ret_done);
	err = install(m, run.first, src, whole, ret_done);
	if (err || run.first + whole == run.end)
		return err;
	CHECK(run.end - run.first == whole + 1 && src_len % PAGE_BYTES);
	memset(m->tail, 0, sizeof(m->tail));
	memcpy(m->tail, src + whole * PAGE_BYTES, src_len % PAGE_BYTES);
	err = install(m, run.first + whole, m->tail, 1, &last);
	*ret_done += last;
	return err;
}

static int memory_put(struct near *near, uint64_t off, const void *src, size_t len)
{
	struct memory *m = memory_of(near);
	struct pages todo = pages_of(m, off, len), run;
	bool present;

	while (run_next(m, &todo, &run, &present)) {
		uint64_t at = run.first * PAGE_BYTES - off, done;
		int err;

		if (present) { /* whoever waits there asks the region again */
			uffd_wake(m->uffd, addr_of(m, run.first),
				  (run.end - run.first) * PAGE_BYTES);
			continue;
		}
		err = install_run(m, run, src ? (const uint8_t *)src + at : NULL, len - at, &done);
		/* those the program may have written by now */
		bitmap_set_range(m->present, run.first, done);
		if (err)
			return err;
	}
	return 0;
}

/* ---- putting in steps ---- */

static void memory_claim(struct near *near, struct range r)
{
	struct memory *m = memory_of(near);
	struct pages p = pages_of(m, r.off, r.len);

	CHECK(bitmap_next_set(m->present, p.end, p.first) == p.end);
	bitmap_set_range(m->present, p.first, p.end - p.first);
}

static int memory_fill(struct near *near, uint64_t off, const void *src, size_t len,
		       size_t *ret_done)
{
	uint64_t done;
	int err = install(memory_of(near), off / PAGE_BYTES, src, len / PAGE_BYTES, &done);

	*ret_done = (size_t)done * PAGE_BYTES;
	return err;
}

static void memory_unclaim(struct near *near, struct range r)
{
	struct pages p = pages_of(memory_of(near), r.off, r.len);

	bitmap_clear_range(memory_of(near)->present, p.first, p.end - p.first);
}

/* ---- reading and writing by the region ---- */

static int memory_read(struct near *near, uint64_t off, void *buf, size_t len)
{
	return near_fd_read(memory_of(near)->fd, off, buf, len);
}

static int shut_pages(struct memory *m, struct pages p)
{
	if (madvise(addr_of(m, p.first), (p.end - p.first) * PAGE_BYTES, MADV_DONTNEED) < 0)
		return mapping_error(-errno);
	return 0;
}

/*
 * Content for absent pages that nobody may touch yet, not even for a moment: a write of the program
 * in between would go unseen. So they are not mapped, only written into the file, behind markers
 * that say that they are clean.
 */
static int write_absent(struct memory *m, struct pages run, uint64_t off, const void *src,
			size_t len)
{
	int err = shut_pages(m, run); /* takes the poison of failed ones away */

	if (!err && m->near.writable)
		err = mapping_error(uffd_protect(m->uffd, addr_of(m, run.first),
						 (run.end - run.first) * PAGE_BYTES));
	if (!err)
		err = near_fd_write(m->fd, off, src, len);
	if (err)
		return err;
	bitmap_set_range(m->present, run.first, run.end - run.first);
	uffd_wake(m->uffd, addr_of(m, run.first), (run.end - run.first) * PAGE_BYTES);
	return 0;
}

static int memory_write(struct near *near, uint64_t off, const void *src, size_t len)
{
	struct memory *m = memory_of(near);
	struct range r = range_of(off, len), whole = range_align_out(r, PAGE_BYTES);
	struct pages todo = { whole.off / PAGE_BYTES, range_end(whole) / PAGE_BYTES }, run;
	bool present;

	CHECK(range_end(r) <= m->len);
	while (run_next(m, &todo, &run, &present)) {
		struct range cut = range_cut(r, range_between(run.first * PAGE_BYTES,
							      run.end * PAGE_BYTES));
		const uint8_t *from = (const uint8_t *)src + (cut.off - off);
		int err;

		if (present) {
			err = near_fd_write(m->fd, cut.off, from, cut.len);
		} else {
			CHECK(cut.off % PAGE_BYTES == 0);
			CHECK(range_end(cut) % PAGE_BYTES == 0 || range_end(cut) == m->size);
			err = write_absent(m, run, cut.off, from, cut.len);
		}
		if (err)
			return err;
	}
	return 0;
}

/* ---- dropping ---- */

/* Invariant 5, for the stretches that the pages touch. Page tables are counted from address 0. */
static int tables_free(struct memory *m, struct pages p)
{
	uint64_t base = (uintptr_t)m->base;
	uint64_t at = align_down(base + p.first * PAGE_BYTES, TABLE_BYTES);
	uint64_t end = base + p.end * PAGE_BYTES;
	int err = 0;

	for (; at < end && !err; at += TABLE_BYTES) {
		uint64_t start = MAX(at, base), stop = MIN(at + TABLE_BYTES, base + m->len);
		uint64_t first = (start - base) / PAGE_BYTES, last = (stop - base) / PAGE_BYTES;

		if (bitmap_next_set(m->present, last, first) != last)
			continue;
		if (m->near.writable)
			err = uffd_unprotect(m->uffd, addr_of(m, first), stop - start);
		if (!err)
			err = shut_pages(m, (struct pages){ first, last });
	}
	return mapping_error(err);
}

static int memory_drop(struct near *near, struct range r)
{
	struct memory *m = memory_of(near);
	struct pages p = pages_of(m, r.off, r.len);
	int err;

	if (p.first == p.end)
		return 0;
	err = near_fd_drop(m->fd, range_between(p.first * PAGE_BYTES, p.end * PAGE_BYTES));
	if (err)
		return err;
	bitmap_clear_range(m->present, p.first, p.end - p.first);
	return tables_free(m, p);
}

/* ---- opening, shutting ---- */

/* Opens pages that are all written, or all clean, and keeps them so. */
static int open_run(struct memory *m, uint64_t at, uint64_t end, bool protect)
{
	while (at < end) {
		uint64_t done;
		int err = uffd_continue(m->uffd, (void *)(uintptr_t)at, end - at, protect, &done);

		at += done;
		if (err == -EEXIST) { /* open already: who waits has come late */
			uffd_wake(m->uffd, (void *)(uintptr_t)at, PAGE_BYTES);
			at += PAGE_BYTES;
		} else if (err) {
			return mapping_error(err);
		}
	}
	return 0;
}

static int memory_open_pages(struct near *near, struct range r)
{
	struct memory *m = memory_of(near);
	struct pages p = pages_of(m, r.off, r.len);
	uint64_t at = (uintptr_t)addr_of(m, p.first), end = (uintptr_t)addr_of(m, p.end);
	struct page_region written[OPEN_FOUND_MAX];

	if (!near->writable)
		return open_run(m, at, end, false);
	while (at < end) {
		uint64_t next = at;
		int err = 0,
		    n = pagemap_scan(m->pagemap, &next, end, false, written, OPEN_FOUND_MAX);

		if (n < 0)
			return mapping_error(n);
		for (int i = 0; i < n && !err; i++) {
			err = open_run(m, at, written[i].start, true);
			if (!err)
				err = open_run(m, written[i].start, written[i].end, false);
			at = written[i].end;
		}
		if (!err)
			err = open_run(m, at, next, true);
		if (err)
			return err;
		at = next;
	}
	return 0;
}

static int memory_shut(struct near *near, struct range r)
{
	struct memory *m = memory_of(near);
	struct pages p = pages_of(m, r.off, r.len);

	return p.first == p.end ? 0 : shut_pages(m, p);
}

/* ---- writes of the program ---- */

static int collect_run(struct memory *m, struct pages run,
		       void (*found)(void *arg, struct range pages), void *arg)
{
	uint64_t at = (uintptr_t)addr_of(m, run.first), end = (uintptr_t)addr_of(m, run.end);
	uint64_t base = (uintptr_t)m->base;

	while (at < end) {
		int n = pagemap_scan(m->pagemap, &at, end, true, m->found, FOUND_MAX);

		if (n < 0)
			return mapping_error(n);
		for (int i = 0; i < n; i++)
			found(arg, range_between(m->found[i].start - base, m->found[i].end - base));
	}
	return 0;
}

static int memory_collect(struct near *near, struct range r,
			  void (*found)(void *arg, struct range pages), void *arg)
{
	struct memory *m = memory_of(near);
	struct pages todo = pages_of(m, r.off, r.len), run;
	bool present;

	if (!near->writable)
		return 0;
	while (run_next(m, &todo, &run, &present)) {
		int err = present ? collect_run(m, run, found, arg) : 0;

		if (err)
			return err;
	}
	return 0;
}

/* ---- failing ---- */

/* Absent pages hold no data, so whatever markers they have may go. */
static int markers_clear(struct memory *m, struct pages run)
{
	int err = m->near.writable ? uffd_unprotect(m->uffd, addr_of(m, run.first),
						    (run.end - run.first) * PAGE_BYTES)
				   : 0;

	return err ? mapping_error(err) : shut_pages(m, run);
}

static int fail_run(struct memory *m, struct pages run)
{
	bool cleared = false;

	while (run.first < run.end) {
		uint64_t done;
		int err = uffd_poison(m->uffd, addr_of(m, run.first),
				      (run.end - run.first) * PAGE_BYTES, &done);

		run.first += done / PAGE_BYTES;
		if (err == -EEXIST && !cleared) {
			err = markers_clear(m, run);
			cleared = true;
		} else if (err == -EEXIST) {
			return -EEXIST; /* cannot be: absent, no marker, and nobody else puts */
		}
		if (err)
			return mapping_error(err);
	}
	return 0;
}

static int memory_each_absent(struct memory *m, struct range r,
			      int (*each)(struct memory *m, struct pages run))
{
	struct pages todo = pages_of(m, r.off, r.len), run;
	bool present;

	while (run_next(m, &todo, &run, &present)) {
		int err = present ? 0 : each(m, run);

		if (err)
			return err;
	}
	return 0;
}

static int memory_fail(struct near *near, struct range r)
{
	return memory_each_absent(memory_of(near), r, fail_run);
}

static int memory_heal(struct near *near, struct range r)
{
	return memory_each_absent(memory_of(near), r, markers_clear);
}

/* ---- life ---- */

/* How many still hold a reference here: the program, whose pointer dies now, and nobody else. The
 * fault thread has ended (memory_serve_end), the region that calls this is the last maker of calls.
 * A thread of the program that waits in a fault is woken into a mapping that is gone: SIGSEGV, not
 * zeros. */
static void memory_close(struct near *near)
{
	struct memory *m = memory_of(near);

	CHECK(!m->faults);
	if (m->base) {
		munmap(m->base, m->len);
		uffd_wake(m->uffd, m->base, m->len);
	}
	if (m->zeros)
		munmap(m->zeros, ZEROS_BYTES);
	if (m->present)
		munmap(m->present, m->present_bytes);
	if (m->uffd >= 0)
		close(m->uffd);
	if (m->fd >= 0)
		close(m->fd);
	if (m->pagemap >= 0)
		close(m->pagemap);
	free(m);
}

static const struct near_ops memory_ops = {
	.put = memory_put,
	.read = memory_read,
	.write = memory_write,
	.drop = memory_drop,
	.open = memory_open_pages,
	.shut = memory_shut,
	.collect = memory_collect,
	.fail = memory_fail,
	.heal = memory_heal,
	.claim = memory_claim,
	.fill = memory_fill,
	.unclaim = memory_unclaim,
	.close = memory_close,
};

/* Anywhere, so that a huge page could fit; the reservation makes sure that nobody else gets the
 * place meanwhile. */
static void *map_anywhere(struct memory *m, int prot)
{
	uint64_t room = m->len + TABLE_BYTES, start;
	uint8_t *all = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			    0);
	void *at;

	if (all == MAP_FAILED)
		return MAP_FAILED;
	start = align_up((uintptr_t)all, TABLE_BYTES);
	at = mmap((void *)(uintptr_t)start, m->len, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
		  m->fd, 0);
	if (at == MAP_FAILED) {
		munmap(all, room);
		return MAP_FAILED;
	}
	if (start > (uintptr_t)all)
		munmap(all, start - (uintptr_t)all);
	munmap((uint8_t *)at + m->len, (uintptr_t)all + room - (start + m->len));
	return at;
}

static int map_memory(struct memory *m, const struct memory_options *o, struct err *e)
{
	int prot = PROT_READ | (o->read_only ? 0 : PROT_WRITE);
	void *at;

	if ((uintptr_t)o->address % PAGE_BYTES)
		return err_set(e, -EINVAL, "the address %p is not a multiple of %u", o->address,
			       PAGE_BYTES);
	if (o->address)
		at = mmap(o->address, m->len, prot,
			  MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, m->fd, 0);
	else
		at = map_anywhere(m, prot);
	if (at == MAP_FAILED && errno == EEXIST)
		return err_set(e, -EEXIST,
			       "something else is mapped within %llu bytes from the address %p",
			       (unsigned long long)m->len, o->address);
	if (at == MAP_FAILED)
		return err_sys(e, -errno, "mapping %llu bytes", (unsigned long long)m->len);
	m->base = at;
	if (o->address && at != o->address)
		return err_set(e, -EEXIST, "the kernel did not map at the address %p", o->address);
	return 0;
}

/* Advice and registration of the mapping, before anybody knows its address. */
static int register_memory(struct memory *m, const struct memory_options *o, struct err *e)
{
	uint64_t modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
	int err;

	if (madvise(m->base, m->len, MADV_DONTFORK) < 0)
		return err_sys(e, -errno, "keeping the mapping from being inherited");
	/* Fails where the kernel has no huge pages, which is as well. */
	(void)madvise(m->base, m->len, o->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	err = uffd_register(m->uffd, m->base, m->len,
			    modes | (m->near.writable ? UFFDIO_REGISTER_MODE_WP : 0));
	return err ? err_sys(e, err, "registering the mapping with userfaultfd") : 0;
}

static int scan_probe(struct memory *m, struct err *e)
{
	uint64_t at = (uintptr_t)m->base;
	int n;

	m->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (m->pagemap < 0)
		return err_sys(
			e, -errno,
			"opening /proc/self/pagemap, where writes are found (is /proc mounted?)");
	n = pagemap_scan(m->pagemap, &at, at + PAGE_BYTES, false, m->found, 1);
	if (n == -ENOTTY || n == -EINVAL)
		return err_set(
			e, -EOPNOTSUPP,
			"this kernel cannot find written pages: PAGEMAP_SCAN (Linux 6.7) is missing; opening "
			"read-only works without");
	return n < 0 ? err_sys(e, n, "looking for written pages") : 0;
}

static int memory_make(struct memory *m, const struct memory_options *o, struct err *e)
{
	unsigned need = (o->read_only ? 0 : UFFD_NEED_TRACK) |
			(o->user_mode_only ? UFFD_NEED_USER_MODE_ONLY : 0);
	int err = uffd_open(&m->uffd, need, &m->how, e);

	if (err)
		return err;
	m->fd = memfd_create("remora", MFD_CLOEXEC);
	if (m->fd < 0 || ftruncate(m->fd, (off_t)m->len) < 0)
		return err_sys(e, -errno, "making %llu bytes of shared memory",
			       (unsigned long long)m->len);
	m->zeros = mmap(NULL, ZEROS_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m->present_bytes = BITMAP_WORDS(m->len / PAGE_BYTES) * sizeof(uint64_t);
	m->present = mmap(NULL, m->present_bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->zeros == MAP_FAILED)
		m->zeros = NULL;
	if (m->present == MAP_FAILED)
		m->present = NULL;
	if (!m->zeros || !m->present)
		return err_sys(e, -ENOMEM, "mapping the table of pages");
	err = map_memory(m, o, e);
	if (!err)
		err = register_memory(m, o, e);
	if (!err && !o->read_only)
		err = scan_probe(m, e);
	if (!err && !o->size) /* the one page of an empty resource is there */
		err = install_zeros(m, 0, 1, &(uint64_t){ 0 });
	return err;
}

int memory_open(struct near **ret, const struct memory_options *o, struct err *e)
{
	struct memory *m;
	int err;

	CHECK(o->env);
	*ret = NULL;
	if (sysconf(_SC_PAGESIZE) != PAGE_BYTES)
		return err_set(e, -EOPNOTSUPP, "pages of %ld bytes are not supported, only %u",
			       sysconf(_SC_PAGESIZE), PAGE_BYTES);
	if (o->size > MEMORY_SIZE_MAX)
		return err_set(e, -EFBIG, "%llu bytes do not fit into an address space",
			       (unsigned long long)o->size);
	m = calloc(1, sizeof(*m));
	if (!m)
		return err_sys(e, -ENOMEM, "opening memory");
	m->near = (struct near){ .ops = &memory_ops, .mapped = true, .writable = !o->read_only };
	m->env = o->env;
	m->uffd = m->fd = m->pagemap = -1;
	m->size = o->size;
	m->len = MAX(align_up(o->size, PAGE_BYTES), PAGE_BYTES);
	err = memory_make(m, o, e);
	if (err) {
		memory_close(&m->near);
		return err;
	}
	*ret = &m->near;
	return 0;
}

void *memory_data(const struct near *near)
{
	return memory_of(near)->base;
}

const char *memory_how(const struct near *near)
{
	return memory_of(near)->how;
}

int memory_serve(struct near *near, memory_fault_fn fault, void *arg, struct err *e)
{
	struct memory *m = memory_of(near);

	CHECK(!m->faults);
	return fault_thread_start(&m->faults, m->env, m->uffd, m->base, fault, arg, e);
}

void memory_serve_end(struct near *near)
{
	struct memory *m = memory_of(near);

	fault_thread_end(m->faults);
	m->faults = NULL;
}
