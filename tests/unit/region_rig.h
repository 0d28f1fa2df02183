/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A region in the simulated world of tests/sim/region_world.h, for tests of one situation at a
 * time. With far->hold set, the far side answers when the test says go().
 */
#ifndef TEST_REGION_RIG_H
#define TEST_REGION_RIG_H

#include "../sim/region_world.h"

#define CHUNK (64 * KIB)
#define SIZE (64 * CHUNK)

struct rig {
	struct world w; /* first */
	struct req req[600];
	int err[600];
	bool done[600];
	uint8_t *buf;
	uint32_t woken[64];
	unsigned woken_count;
};

static inline void rig_woken(struct world *w, uint32_t page)
{
	struct rig *t = (struct rig *)w;

	if (t->woken_count < ARRAY_LEN(t->woken))
		t->woken[t->woken_count++] = page;
}

static inline struct rig *rig_new(uint64_t size, bool mapped, const struct region_options *o)
{
	struct rig *t = calloc(1, sizeof(*t));

	assert_non_null(t);
	world_open(&t->w, 1, size, mapped);
	t->buf = malloc(size);
	t->w.woken = rig_woken;
	world_region(&t->w, o);
	return t;
}

static inline void rig_free(struct rig *t)
{
	world_check(&t->w);
	world_close(&t->w);
	free(t->buf);
	free(t);
}

static inline void req_done_test(struct req *req, int err)
{
	struct rig *t = req->user;
	size_t i = (size_t)(req - t->req);

	assert_false(t->done[i]);
	t->done[i] = true;
	t->err[i] = err;
}

static inline void submit_flags(struct rig *t, unsigned i, enum req_op op, uint64_t off,
				uint64_t len,
			 uint32_t flags)
{
	struct req *req = &t->req[i];

	t->done[i] = false;
	*req = (struct req){ .op = op, .range = range_of(off, len), .done = req_done_test,
			    .user = t, .flags = flags };
	if (op != REQ_FLUSH)
		req->data = (struct iobuf){ t->buf + off, len };
	req_submit(t->w.store, req);
}

static inline void submit(struct rig *t, unsigned i, enum req_op op, uint64_t off, uint64_t len)
{
	submit_flags(t, i, op, off, len, 0);
}

/* Lets the world go on for a time. */
static inline void pass(struct rig *t, uint64_t ns)
{
	bool never = false;
	int err = sim_run_until(t->w.sim, &never, sim_now(t->w.sim) + ns);

	assert_true(err == -ETIMEDOUT || err == -EDEADLK);
}

static inline void go(struct rig *t)
{
	t->w.far->hold = false;
	far_go_on(t->w.far);
}

static inline int wait_for(struct rig *t, unsigned i)
{
	while (!t->done[i])
		assert_int_equal(sim_step(t->w.sim), 0);
	return t->err[i];
}

static inline int do_op(struct rig *t, enum req_op op, uint64_t off, uint64_t len)
{
	submit(t, 599, op, off, len);
	return wait_for(t, 599);
}

/* Versions into the buffer, or what is expected there. */
static inline void fill(struct rig *t, uint64_t off, uint64_t len, uint32_t version)
{
	for (uint64_t s = off / SECTOR; s < (off + len) / SECTOR; s++)
		sector_fill(t->buf + s * SECTOR, (uint32_t)s, version);
}

static inline void expect(const uint8_t *bytes, uint64_t off, uint64_t len, uint32_t version)
{
	for (uint64_t s = off / SECTOR; s < (off + len) / SECTOR; s++)
		assert_int_equal(sector_version(bytes + s * SECTOR, (uint32_t)s), version);
}

static inline void write_version(struct rig *t, uint64_t off, uint64_t len, uint32_t version)
{
	fill(t, off, len, version);
	assert_int_equal(do_op(t, REQ_WRITE, off, len), 0);
}

static inline void read_expect(struct rig *t, uint64_t off, uint64_t len, uint32_t version)
{
	assert_int_equal(do_op(t, REQ_READ, off, len), 0);
	expect(t->buf, off, len, version);
}

static inline char *draw(struct rig *t, uint64_t first, uint64_t count)
{
	static char line[256];

	region_map_draw(t->w.region, first, count, line);
	line[count] = '\0';
	return line;
}

static inline uint64_t seen_reads(const struct rig *t, uint64_t *ret_bytes)
{
	uint64_t n = 0;

	*ret_bytes = 0;
	for (size_t i = 0; i < t->w.far->seen_count; i++)
		if (t->w.far->seen[i].op == REQ_READ) {
			n++;
			*ret_bytes += t->w.far->seen[i].range.len;
		}
	return n;
}

static const struct region_options plain = { .chunk = CHUNK, .readahead_bytes_max = 1 };

#endif
