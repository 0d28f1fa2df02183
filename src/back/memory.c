/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory:SIZE - a resource in this process' own memory, zeros at first, gone when it is closed.
 * Sparse: a mapping without reserve, so that a terabyte costs what was written to it.
 *
 * A bitmap with a bit for each block of 64 KiB says where something was ever written: a block
 * without its bit is zeros and no page of it exists. Reads of such blocks do not touch the mapping,
 * which would only make pages.
 *
 * Everything completes within submit(). It forgets when its process ends, so it has an instance id,
 * new at each open.
 *
 * Invariant: a block whose bit is clear holds no byte but zero.
 *
 * Locking: none; loop thread only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "back/back.h"
#include "base/bitmap.h"
#include "base/size.h"

#define BLOCK (64 * KIB)

struct memory {
	struct store store;
	uint8_t *base;	   /* NULL when the size is 0 */
	size_t map_len;
	/* a mapping too: 2 MiB for a terabyte, of which only what is used exists */
	uint64_t *written;
	size_t written_len;
};

/* The first block after `block` that is not as it is (written or not), at most the one in which
 * `end` lies. */
static size_t run_end(const struct memory *m, size_t block, uint64_t end)
{
	size_t stop = (end + BLOCK - 1) / BLOCK;

	return bitmap_get(m->written, block) ? bitmap_next_clear(m->written, stop, block)
					     : bitmap_next_set(m->written, stop, block);
}

static void memory_read(struct memory *m, struct req *req)
{
	uint64_t at = req->range.off, end = range_end(req->range);
	uint8_t *to = req->data.base;
	bool zero = true;

	while (at < end) {
		size_t block = at / BLOCK;
		bool data = bitmap_get(m->written, block);
		size_t n = (size_t)(MIN(end, (uint64_t)run_end(m, block, end) * BLOCK) - at);

		if (data)
			memcpy(to, m->base + at, n);
		else
			memset(to, 0, n);
		zero = zero && !data;
		to += n;
		at += n;
	}
	req->ret_zero = zero;
}

static void memory_write(struct memory *m, struct req *req)
{
	size_t first = req->range.off / BLOCK, last = (range_end(req->range) - 1) / BLOCK;

	memcpy(m->base + req->range.off, req->data.base, req->range.len);
	bitmap_set_range(m->written, first, last - first + 1);
}

/* Zeros within written blocks: whole pages are given back, their edges overwritten. */
static void memory_zero_run(struct memory *m, uint64_t start, uint64_t end)
{
	uint64_t page_start = align_up(start, PAGE_BYTES), page_end = align_down(end, PAGE_BYTES);

	/* The last page of the resource is ours to its end. */
	if (end == m->store.info.size)
		page_end = align_up(end, PAGE_BYTES);
	if (page_start >= page_end ||
	    madvise(m->base + page_start, page_end - page_start, MADV_DONTNEED)) {
		memset(m->base + start, 0, end - start);
		return;
	}
	memset(m->base + start, 0, page_start - start);
	if (end > page_end)
		memset(m->base + page_end, 0, end - page_end);
}

static void memory_zero(struct memory *m, struct range r)
{
	uint64_t end = range_end(r);
	size_t block = r.off / BLOCK, stop = (end + BLOCK - 1) / BLOCK;
	size_t whole, whole_end;

	while ((block = bitmap_next_set(m->written, stop, block)) < stop) {
		size_t run = bitmap_next_clear(m->written, stop, block);

		memory_zero_run(m, MAX(r.off, (uint64_t)block * BLOCK),
				MIN(end, (uint64_t)run * BLOCK));
		block = run;
	}
	whole = (r.off + BLOCK - 1) / BLOCK;
	whole_end = end == m->store.info.size ? stop : end / BLOCK;
	if (whole < whole_end)
		bitmap_clear_range(m->written, whole, whole_end - whole);
}

static void memory_extents(struct memory *m, struct range r, struct extents *x)
{
	uint64_t at = r.off, end = range_end(r);

	while (at < end && x->count < x->max) {
		size_t block = at / BLOCK;
		bool data = bitmap_get(m->written, block);
		uint64_t stop = MIN(end, (uint64_t)run_end(m, block, end) * BLOCK);

		x->at[x->count++] = (struct extent){ .len = stop - at, .zero = !data };
		at = stop;
	}
}

static void memory_submit(struct store *store, struct req *req)
{
	struct memory *m = CONTAINER_OF(store, struct memory, store);

	switch (req->op) {
	case REQ_READ:
		memory_read(m, req);
		break;
	case REQ_WRITE:
		memory_write(m, req);
		break;
	case REQ_ZERO:
	case REQ_TRIM:
		memory_zero(m, req->range);
		break;
	case REQ_EXTENTS:
		memory_extents(m, req->range, req->extents);
		break;
	default: /* FLUSH and PREFETCH: it is as durable and as near as it will ever be */
		break;
	}
	req_done(req, 0);
}

static void memory_unmap(struct memory *m)
{
	if (m->base)
		munmap(m->base, m->map_len);
	if (m->written)
		munmap(m->written, m->written_len);
}

static void memory_close(struct store *store)
{
	memory_unmap(CONTAINER_OF(store, struct memory, store));
	store_closed(store);
}

static const struct store_ops memory_ops = {
	.name = "memory",
	.submit = memory_submit,
	.close = memory_close,
};

static void *map_sparse(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int memory_map(struct memory *m, uint64_t size)
{
	if (!size)
		return 0;
	m->written_len = align_up(BITMAP_WORDS((size + BLOCK - 1) / BLOCK) * sizeof(uint64_t),
				  PAGE_BYTES);
	m->map_len = align_up(size, PAGE_BYTES);
	m->written = map_sparse(m->written_len);
	m->base = map_sparse(m->map_len);
	if (m->base && m->written)
		return 0;
	memory_unmap(m);
	return -ENOMEM;
}

int back_memory_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	const struct spec_part *part = args->part;
	struct memory *m;
	uint64_t size;
	struct err why;
	int r;

	CHECK(!next);
	if (!*part->rest)
		return spec_error(args->spec, part->rest_at, args->e, "memory: needs a size: memory:64M");
	if (size_parse(part->rest, &size, &why))
		return spec_error(args->spec, part->rest_at, args->e, "memory: %s", why.text);
	if (size > MEMORY_SIZE_MAX)
		return spec_error(args->spec, part->rest_at, args->e, "memory: more than %llu TiB",
				  MEMORY_SIZE_MAX / TIB);
	r = spec_options_end(args);
	if (r)
		return r;
	m = calloc(1, sizeof(*m));
	if (!m)
		return err_sys(args->e, -ENOMEM, "memory");
	r = memory_map(m, size);
	if (r) {
		free(m);
		return err_sys(args->e, r, "memory: %s of address space", part->rest);
	}
	m->store.info = (struct store_info){
		.size = size,
		.align = 1,
		.read_only = how->read_only,
		.zero = CAP_NATIVE,
		.trim = CAP_NATIVE,
		.fua = CAP_NATIVE,
		.extents = CAP_NATIVE,
		.prefetch = CAP_NATIVE,
		.flush = CAP_NATIVE,
		.instance = rng_next(&loop_env(how->loop)->rng) | 1,
	};
	store_init(&m->store, &memory_ops, how->loop, NULL);
	*ret = &m->store;
	return 0;
}
