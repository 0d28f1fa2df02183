/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on a file: every way that a program has to its bytes.
 *
 * Place: below run.c. Each function draws where, does it, and tells the model.
 *
 * Direct I/O beside a mapping. The kernel writes dirty pages of the range back before a direct read
 * or write, and drops the pages after the write; but a page that is dirtied, or read ahead, between
 * the two keeps what it had, and open(2) tells programs not to mix the two. What we promise
 * is what a program may rely on, so a worker that wrote through its map says msync() before it goes
 * around the page cache. Nobody else writes its pages.
 *
 * A write(2) that FUSE's server refuses, or takes in part, makes the kernel forget the folio where
 * it ended, which may be large, and with it what anybody wrote there through a map and has not
 * synced; this is the kernel's, and no server can mend it. So a worker that is alone says msync()
 * before it writes over the end, and several stay a folio away from it.
 *
 * Invariants: no operation changes the size. A write that the file refuses, or takes in part, has
 * changed nothing else.
 *
 * Locking: none.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "exercise.h"

#define PARTS 4
#define FOLIO_BYTES_MAX (2ull << 20)

static void opened(struct worker *w)
{
	const struct options *o = &w->run->o;

	w->fd = open(o->path, O_RDWR | O_CLOEXEC);
	if (w->fd < 0)
		fail(w, "open %s: %s", o->path, strerror(errno));
	if (!o->direct)
		return;
	w->direct_fd = open(o->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (w->direct_fd < 0)
		fail(w, "open %s, O_DIRECT: %s", o->path, strerror(errno));
}

static void mapped(struct worker *w)
{
	w->map = mmap(NULL, w->run->o.size, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);
	if (w->map == MAP_FAILED)
		fail(w, "mmap: %s", strerror(errno));
}

static void closed(struct worker *w)
{
	if (close(w->fd) || (w->direct_fd >= 0 && close(w->direct_fd)))
		fail(w, "close: %s", strerror(errno));
	w->fd = w->direct_fd = -1;
}

void file_open(struct worker *w)
{
	opened(w);
	mapped(w);
}

void file_end(struct worker *w)
{
	if (msync(w->map, w->run->o.size, MS_SYNC) || fsync(w->fd))
		fail(w, "sync at the end: %s", strerror(errno));
	munmap(w->map, w->run->o.size);
	closed(w);
}

static struct range noted(struct log_entry *entry, struct range r)
{
	entry->off = r.off;
	entry->len = r.len;
	return r;
}

static int64_t moved(struct worker *w, ssize_t n, uint64_t len, const char *call)
{
	if (n < 0)
		fail(w, "%s: %s", call, strerror(errno));
	if ((uint64_t)n != len)
		fail(w, "%s: %zd bytes, not %llu", call, n, (unsigned long long)len);
	return n;
}

static void map_settle(struct worker *w)
{
	if (w->map_dirty && msync(w->map, w->run->o.size, MS_SYNC))
		fail(w, "msync: %s", strerror(errno));
	w->map_dirty = false;
}

/* ---- reads ---- */

static int64_t op_read(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	uint64_t want = r.len;

	/* Over the end: what is there comes, and no more. */
	if (r.off + r.len == w->run->o.size)
		want += rng_below(&w->rng, PAGE);
	moved(w, pread(w->fd, w->buf, want, (off_t)r.off), r.len, "pread");
	check_bytes(w, r.off, w->buf, r.len);
	return (int64_t)r.len;
}

static int parts_draw(struct worker *w, uint64_t len, struct iovec *parts)
{
	uint64_t at = 0;
	int n = 0;

	while (n < PARTS - 1 && at < len) {
		uint64_t part = rng_below(&w->rng, len - at + 1);

		parts[n++] = (struct iovec){ w->buf + at, part };
		at += part;
	}
	parts[n++] = (struct iovec){ w->buf + at, len - at };
	return n;
}

static int64_t op_readv(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	struct iovec parts[PARTS];
	int n = parts_draw(w, r.len, parts);

	moved(w, preadv(w->fd, parts, n, (off_t)r.off), r.len, "preadv");
	check_bytes(w, r.off, w->buf, r.len);
	return (int64_t)r.len;
}

static int64_t op_map_read(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));

	memcpy(w->buf, w->map + r.off, r.len);
	check_bytes(w, r.off, w->buf, r.len);
	return (int64_t)r.len;
}

static int64_t op_direct_read(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, true));
	uint64_t want = (r.len + PAGE - 1) & ~(PAGE - 1);

	map_settle(w);
	moved(w, pread(w->direct_fd, w->buf, want, (off_t)r.off), r.len, "direct pread");
	check_bytes(w, r.off, w->buf, r.len);
	return (int64_t)r.len;
}

/* A stripe of any worker: pages that nobody wrote meanwhile are as the model says. */
static int64_t op_read_other(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw_any(w));
	uint64_t first = r.off / PAGE, count = (r.len + PAGE - 1) / PAGE, checked = 0;
	unsigned before[OP_BYTES_MAX / PAGE + 1];

	for (uint64_t i = 0; i < count; i++)
		before[i] = atomic_load(&w->run->stamps[first + i]);
	if (rng_chance(&w->rng, 500000))
		memcpy(w->buf, w->map + r.off, r.len);
	else
		moved(w, pread(w->fd, w->buf, r.len, (off_t)r.off), r.len, "pread of another's");
	memcpy(w->spare, w->run->model + r.off, r.len);
	for (uint64_t i = 0; i < count; i++) {
		uint64_t at = i * PAGE, len = r.len - at < PAGE ? r.len - at : PAGE;

		if (before[i] & 1 || atomic_load(&w->run->stamps[first + i]) != before[i])
			continue;
		checked++;
		if (!same(w->spare, w->buf + at, at, len, "of another worker, in the range below"))
			fail(w, "page %llu differs", (unsigned long long)(first + i));
	}
	return (int64_t)checked;
}

/* ---- writes ---- */

static int64_t op_write(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));

	bytes_draw(w, w->buf, r.len);
	model_begin(w, r);
	moved(w, pwrite(w->fd, w->buf, r.len, (off_t)r.off), r.len, "pwrite");
	model_end(w, r, w->buf);
	return (int64_t)r.len;
}

static int64_t op_writev(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	struct iovec parts[PARTS];
	int n = parts_draw(w, r.len, parts);

	bytes_draw(w, w->buf, r.len);
	model_begin(w, r);
	moved(w, pwritev(w->fd, parts, n, (off_t)r.off), r.len, "pwritev");
	model_end(w, r, w->buf);
	return (int64_t)r.len;
}

static int64_t op_map_write(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));

	bytes_draw(w, w->buf, r.len);
	model_begin(w, r);
	w->map_dirty = true;
	memcpy(w->map + r.off, w->buf, r.len);
	model_end(w, r, w->buf);
	return (int64_t)r.len;
}

/* A map that is gone when its pages are still dirty. */
static int64_t op_map_short(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	uint64_t base = r.off & ~(PAGE - 1), len = r.off + r.len - base;
	uint8_t *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, (off_t)base);

	if (map == MAP_FAILED)
		fail(w, "mmap: %s", strerror(errno));
	bytes_draw(w, w->buf, r.len);
	model_begin(w, r);
	w->map_dirty = true;
	memcpy(map + (r.off - base), w->buf, r.len);
	model_end(w, r, w->buf);
	munmap(map, len);
	return (int64_t)r.len;
}

static int64_t op_direct_write(struct worker *w, struct log_entry *entry)
{
	struct range r = range_draw(w, true);

	r.len &= ~(PAGE - 1); /* the file may end within a page */
	noted(entry, r);
	if (!r.len)
		return 0;
	bytes_draw(w, w->buf, r.len);
	map_settle(w);
	model_begin(w, r);
	moved(w, pwrite(w->direct_fd, w->buf, r.len, (off_t)r.off), r.len, "direct pwrite");
	model_end(w, r, w->buf);
	return (int64_t)r.len;
}

static int64_t op_zero(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	bool hole = rng_chance(&w->rng, 500000);
	int mode = hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE, rc;

	model_begin(w, r);
	rc = fallocate(w->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)r.off, (off_t)r.len);
	if (!rc)
		memset(w->run->model + r.off, 0, r.len);
	model_end(w, r, NULL);
	if (rc && errno == EOPNOTSUPP)
		return -EOPNOTSUPP;
	if (rc)
		fail(w, "fallocate: %s", strerror(errno));
	return (int64_t)r.len;
}

/* ---- the file keeps its size ---- */

static void size_check(struct worker *w, const char *after)
{
	struct stat st;

	if (fstat(w->fd, &st))
		fail(w, "fstat: %s", strerror(errno));
	if ((uint64_t)st.st_size != w->run->o.size)
		fail(w, "size %lld after %s", (long long)st.st_size, after);
}

static bool refusal(int err)
{
	return err == EPERM || err == EINVAL || err == EFBIG || err == ENOSPC || err == EACCES ||
	       err == EOPNOTSUPP;
}

static int64_t op_truncate(struct worker *w, struct log_entry *entry)
{
	uint64_t size = rng_below(&w->rng, 2 * w->run->o.size);
	int rc;

	entry->off = size;
	switch (rng_below(&w->rng, 3)) {
	case 0:
		rc = ftruncate(w->fd, (off_t)size);
		break;
	case 1:
		rc = truncate(w->run->o.path, (off_t)size);
		break;
	default:
		rc = fallocate(w->fd, 0, (off_t)w->run->o.size, (off_t)(PAGE + size));
		if (rc && errno == EOPNOTSUPP)
			return -EOPNOTSUPP;
	}
	if (!rc && size != w->run->o.size)
		fail(w, "the size could be changed to %llu", (unsigned long long)size);
	if (rc && !refusal(errno))
		fail(w, "%s", strerror(errno));
	size_check(w, "a refused truncate");
	return 0;
}

static int64_t op_write_over_end(struct worker *w, struct log_entry *entry)
{
	uint64_t size = w->run->o.size, len, in;
	struct range r = { size - 1 - rng_below(&w->rng, 2 * PAGE) % size, 0 };
	ssize_t n;

	if (w->run->o.processes > 1)
		r.off = (size / FOLIO_BYTES_MAX + 1) * FOLIO_BYTES_MAX + rng_below(&w->rng, PAGE);
	in = r.off < size ? size - r.off : 0;
	len = in + 1 + rng_below(&w->rng, 2 * PAGE);
	noted(entry, (struct range){ r.off, len });
	bytes_draw(w, w->buf, len);
	map_settle(w);
	model_begin(w, (struct range){ r.off, in });
	n = pwrite(w->fd, w->buf, len, (off_t)r.off);
	if (n > (ssize_t)in)
		fail(w, "%zd bytes were taken, %llu fit", n, (unsigned long long)in);
	if (n < 0 && !refusal(errno))
		fail(w, "pwrite over the end: %s", strerror(errno));
	if (n > 0)
		memcpy(w->run->model + r.off, w->buf, (size_t)n);
	model_end(w, (struct range){ r.off, in }, NULL);
	size_check(w, "a write over the end");
	moved(w, pread(w->fd, w->buf, PAGE, (off_t)(size + rng_below(&w->rng, PAGE))), 0,
	      "pread behind the end");
	return n;
}

/* ---- the rest ---- */

static int64_t op_sync(struct worker *w, struct log_entry *entry)
{
	const char *call = NULL;
	struct range r = noted(entry, range_draw(w, true));
	int rc = 0;

	switch (rng_below(&w->rng, 4)) {
	case 0:
		rc = fsync(w->fd);
		call = "fsync";
		break;
	case 1:
		rc = fdatasync(w->fd);
		call = "fdatasync";
		break;
	case 2:
		rc = msync(w->map + r.off, r.len, MS_SYNC);
		call = "msync";
		break;
	default:
		rc = msync(w->map + r.off, r.len, MS_ASYNC);
		call = "msync, MS_ASYNC";
	}
	if (rc)
		fail(w, "%s: %s", call, strerror(errno));
	return 0;
}

static int64_t op_seek(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	bool data = rng_chance(&w->rng, 500000);
	off_t at = lseek(w->fd, (off_t)r.off, data ? SEEK_DATA : SEEK_HOLE);
	uint64_t zeros = r.len;

	if (at < 0 && errno == EINVAL)
		return -EOPNOTSUPP;
	if (at < 0 && !(data && errno == ENXIO))
		fail(w, "lseek: %s", strerror(errno));
	if (at >= 0 && ((uint64_t)at < r.off || (uint64_t)at > w->run->o.size))
		fail(w, "lseek: %lld", (long long)at);
	if (!data)
		return at;
	/* No data up to there: so the worker's own bytes before it are zero. */
	if (at >= 0 && (uint64_t)at - r.off < zeros)
		zeros = (uint64_t)at - r.off;
	memset(w->buf, 0, zeros);
	check_bytes(w, r.off, w->buf, zeros);
	return at;
}

static int64_t op_drop(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, true));
	int rc = posix_fadvise(w->fd, (off_t)r.off, (off_t)r.len, POSIX_FADV_DONTNEED);

	if (rc)
		fail(w, "posix_fadvise: %s", strerror(rc));
	if (rng_chance(&w->rng, 500000) && madvise(w->map + r.off, r.len, MADV_DONTNEED))
		fail(w, "madvise: %s", strerror(errno));
	return 0;
}

static int64_t op_reopen(struct worker *w, struct log_entry *entry)
{
	(void)entry;
	if (rng_chance(&w->rng, 500000)) {
		munmap(w->map, w->run->o.size);
		closed(w);
		opened(w);
		mapped(w);
	} else { /* the map outlives its descriptor */
		closed(w);
		opened(w);
	}
	size_check(w, "opening it again");
	return 0;
}

const struct op_kind file_kinds[] = {
	{ "read", 12, op_read, false, false },
	{ "readv", 4, op_readv, false, false },
	{ "map-read", 8, op_map_read, false, false },
	{ "direct-read", 8, op_direct_read, true, false },
	{ "read-other", 8, op_read_other, false, false },
	{ "write", 12, op_write, false, false },
	{ "writev", 4, op_writev, false, false },
	{ "map-write", 8, op_map_write, false, false },
	{ "map-short", 4, op_map_short, false, false },
	{ "direct-write", 8, op_direct_write, true, false },
	{ "zero", 3, op_zero, false, false },
	{ "truncate", 2, op_truncate, false, true },
	{ "over-end", 2, op_write_over_end, false, true },
	{ "sync", 3, op_sync, false, false },
	{ "seek", 2, op_seek, false, false },
	{ "drop", 4, op_drop, false, false },
	{ "reopen", 2, op_reopen, false, false },
};
const unsigned file_kind_count = sizeof(file_kinds) / sizeof(file_kinds[0]);
