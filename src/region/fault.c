/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page faults of a mapped program.
 *
 *   fault thread: region_fault ── here ──▶ near->open
 *                                └── not here ──▶ faults_new
 *   loop thread:  faults_take ──▶ r->faults ──▶ pull_start ──▶ slot->faults
 *                                                 ├── faults_settle (it came)
 *                                                 ├── faults_again  (it failed) ──▶ r->faults
 *                                                 └── fault_fail    (it will not come)
 *
 * Invariants: an entry stands for a chunk, not for a thread: FAULTED is set from the first fault
 * until the chunk is here or has failed, and whoever faults there meanwhile is woken by the same
 * put() or fail(). Hence a partial chunk with FAULTED is always pulled, even if the page that was
 * first asked for has come by a write. Entries are a fixed set; when all are in use the fault
 * thread waits for one (rule 6). No fault is ever lost.
 *
 * Locking: region_fault() runs on the fault thread, under the lock; the rest on the loop thread.
 * faults_idle, faults_new, marks and posted belong to the lock.
 */
#include <errno.h>

#include "base/bitmap.h"
#include "region/region_int.h"

static uint64_t fault_chunk(const struct region *r, const struct fault *f)
{
	return map_chunk_of(&r->map, f->off);
}

/* ---- fault thread ---- */

static void fault_post(struct region *r)
{
	if (r->posted || r->shut_down)
		return;
	r->posted = true;
	loop_post(r->loop, &r->fault_post);
}

/* Takes an entry for the chunk of `off`; false = had to wait for one, so everything may be
 * different now. */
static bool fault_enter(struct region *r, uint64_t c, uint64_t off)
{
	struct link *k = list_pop_front(&r->faults_idle);
	struct fault *f;

	if (!k) {
		fault_post(r);
		pthread_cond_wait(&r->fault_room, &r->lock);
		return false;
	}
	f = LIST_ENTRY(k, struct fault, link);
	*f = (struct fault){ .off = off, .since_ns = env_now(r->env) };
	list_push_back(&r->faults_new, &f->link);
	map_flag(&r->map, c, CHUNK_FAULTED, 0);
	fault_post(r);
	return true;
}

enum region_verdict region_fault(struct region *r, uint64_t off, bool write)
{
	struct map *m = &r->map;
	uint64_t c = map_chunk_of(m, off);
	uint32_t page = (uint32_t)((off - (c << m->shift)) / PAGE_BYTES);
	enum region_verdict verdict = REGION_WAITS;
	struct range open;
	uint8_t byte;

	(void)write; /* pages are opened for both; writes are collected later */
	CHECK(c < m->chunks);
	region_lock(r);
	while (!r->shut_down) {
		byte = map_byte(m, c);
		if (map_page_here(m, c, page)) {
			open = state_full(byte & CHUNK_STATE_MASK) ?
				       map_page_range(m, c, 1) :
				       range_of(align_down(off, PAGE_BYTES), PAGE_BYTES);
			if (!r->near->ops->open(r->near, open)) {
				r->faults_near++;
				if (byte & CHUNK_MARK && r->mark_count < REGION_MARKS_MAX) {
					r->marks[r->mark_count++] = c;
					fault_post(r);
				}
				map_flag(m, c, CHUNK_REF, CHUNK_MARK);
				verdict = REGION_OPENED;
				break;
			}
			/* The loop thread tries again, and fails the page if it has to. */
		}
		if (byte & CHUNK_FAULTED || fault_enter(r, c, off))
			break;
	}
	region_unlock(r);
	return verdict;
}

/* ---- loop thread ---- */

static void fault_free(struct region *r, struct fault *f)
{
	link_remove(&f->link);
	region_lock(r);
	list_push_back(&r->faults_idle, &f->link);
	pthread_cond_signal(&r->fault_room);
	region_unlock(r);
}

static void fault_posted(struct post *post)
{
	struct region *r = CONTAINER_OF(post, struct region, fault_post);

	region_lock(r);
	r->posted = false;
	region_unlock(r);
	region_kick(r);
}

void faults_init(struct region *r)
{
	list_init(&r->faults_idle);
	list_init(&r->faults_new);
	list_init(&r->faults);
	r->fault_post.run = fault_posted;
	for (size_t i = 0; i < REGION_FAULTS_MAX; i++)
		list_push_back(&r->faults_idle, &r->fault[i].link);
}

void faults_take(struct region *r)
{
	uint64_t marks[REGION_MARKS_MAX];
	unsigned count;
	struct list got;

	list_init(&got);
	region_lock(r);
	list_splice_back(&got, &r->faults_new);
	count = r->mark_count;
	for (unsigned i = 0; i < count; i++)
		marks[i] = r->marks[i];
	r->mark_count = 0;
	region_unlock(r);
	for (unsigned i = 0; i < count; i++)
		ahead_used(r, marks[i]);
	LIST_EACH(k, &got) {
		struct fault *f = LIST_ENTRY(k, struct fault, link);

		ahead_used(r, fault_chunk(r, f));
		if (!map_full(&r->map, fault_chunk(r, f)))
			r->faults_far++;
	}
	list_splice_back(&r->faults, &got);
}

/* Opens what is here of the chunk, and wakes who waits for that. */
int fault_open(struct region *r, uint64_t c)
{
	struct map *m = &r->map;
	struct map_rec *rec = map_rec(m, c);
	uint32_t pages = map_pages(m, c);
	int err = 0;

	region_lock(r);
	if (map_full(m, c)) {
		err = r->near->ops->open(r->near, map_page_range(m, c, 1));
	} else if (rec) {
		for (size_t p = 0, end; !err &&
		     (p = bitmap_next_set(rec_ours(m, rec), pages, p)) < pages; p = end) {
			end = bitmap_next_clear(rec_ours(m, rec), pages, p);
			err = r->near->ops->open(r->near, range_of((c << m->shift) + p * PAGE_BYTES,
								   (end - p) * PAGE_BYTES));
		}
	}
	if (!err && map_state(m, c) != CHUNK_ABSENT && map_state(m, c) != CHUNK_PULLING)
		map_flag(m, c, CHUNK_REF, 0);
	region_unlock(r);
	return err;
}

/* The program gets SIGBUS, but for pages that came by a write. */
static void fault_fail(struct region *r, struct fault *f, int err)
{
	uint64_t c = fault_chunk(r, f);
	struct range pages = map_page_range(&r->map, c, 1);

	if (fault_open(r, c))
		region_error(r, -EIO, "a page could not be opened");
	region_flag(r, c, 0, CHUNK_FAULTED);
	if (r->failed_count < REGION_FAILED_MAX)
		r->failed[r->failed_count++] = pages;
	else
		r->failed_all = true;
	region_error(r, err, NULL);
	if (r->near->ops->fail(r->near, pages))
		region_error(r, -EIO, "a page that cannot be had could not be marked so");
	fault_free(r, f);
}

/* 0: dealt with; -EAGAIN: has to wait. */
static int fault_start(struct region *r, struct fault *f)
{
	uint64_t c = fault_chunk(r, f);
	struct pull_want want = {
		.first = c, .end = c + 1, .why = PULL_FAULT, .flags = REQ_URGENT,
			.beyond_window = true, .fault = f,
		.mark = NO_CHUNK
	};
	struct slot *slot;
	int err = fault_open(r, c);

	if (map_full(&r->map, c)) {
		if (err) {
			f->retry_ns = policy_retry(r, err, ++f->tries, f->since_ns);
			if (!f->retry_ns)
				fault_fail(r, f, err);
			return 0;
		}
		region_flag(r, c, 0, CHUNK_FAULTED | CHUNK_MARK);
		fault_free(r, f);
		return 0;
	}
	if (map_pulling(&r->map, c)) {
		slot = pull_find(r, c);
		if (slot->fault_page == NO_CHUNK)
			slot->fault_page = align_down(f->off, PAGE_BYTES);
		link_remove(&f->link);
		list_push_back(&slot->faults, &f->link);
		return 0;
	}
	if (r->far_lost && r->opt.on_loss == REGION_LOSS_ERROR) {
		fault_fail(r, f, -ENOTCONN);
		return 0;
	}
	err = pull_start(r, &want, NULL);
	if (err && err != -EAGAIN) {
		fault_fail(r, f, err);
		return 0;
	}
	return err;
}

bool faults_run(struct region *r)
{
	LIST_EACH(k, &r->faults) {
		struct fault *f = LIST_ENTRY(k, struct fault, link);

		if (f->retry_ns > loop_now(r->loop))
			continue;
		if (fault_start(r, f))
			return false;
	}
	return true;
}

void faults_settle(struct region *r, struct list *faults)
{
	uint64_t now = loop_now_fresh(r->loop);

	LIST_EACH(k, faults) {
		struct fault *f = LIST_ENTRY(k, struct fault, link);

		hist_add(&r->fault_latency, now - MIN(now, f->since_ns));
		fault_free(r, f);
	}
}

void faults_again(struct region *r, struct list *faults, int err)
{
	LIST_EACH(k, faults) {
		struct fault *f = LIST_ENTRY(k, struct fault, link);

		if (err)
			f->retry_ns = policy_retry(r, err, ++f->tries, f->since_ns);
		if (err && !f->retry_ns) {
			fault_fail(r, f, err);
			continue;
		}
		f->err = err;
		link_remove(&f->link);
		list_push_front(&r->faults, &f->link);
	}
}

/* Of one list: all, or those that have waited for too long. */
static void faults_fail(struct region *r, struct list *faults, int err, bool expired)
{
	LIST_EACH(k, faults) {
		struct fault *f = LIST_ENTRY(k, struct fault, link);

		if (!expired || policy_expired(r, f->since_ns, loop_now(r->loop)))
			fault_fail(r, f, f->err ? f->err : err);
	}
}

static void faults_fail_all(struct region *r, int err, bool expired)
{
	faults_fail(r, &r->faults, err, expired);
	LIST_EACH(k, &r->pulls)
		faults_fail(r, &LIST_ENTRY(k, struct slot, link)->faults, err, expired);
	LIST_EACH(k, &r->apart.slots)
		faults_fail(r, &LIST_ENTRY(k, struct slot, link)->faults, err, expired);
	LIST_EACH(k, &r->stuck)
		faults_fail(r, &LIST_ENTRY(k, struct slot, link)->faults, err, expired);
}

void faults_expire(struct region *r)
{
	faults_fail_all(r, -ETIMEDOUT, true);
}

void faults_lost(struct region *r)
{
	faults_fail_all(r, -ENOTCONN, false);
}

void faults_abort(struct region *r)
{
	region_lock(r);
	r->shut_down = true;
	pthread_cond_broadcast(&r->fault_room);
	region_unlock(r);
	faults_take(r);
	faults_fail_all(r, -ESHUTDOWN, false);
}

void faults_heal(struct region *r)
{
	int err = 0;

	if (r->failed_all)
		err = r->near->ops->heal(r->near, range_of(0, align_up(r->map.size, PAGE_BYTES)));
	else
		for (unsigned i = 0; i < r->failed_count; i++)
			if (!map_full(&r->map, map_chunk_of(&r->map, r->failed[i].off)) &&
			    r->near->ops->heal(r->near, r->failed[i]))
				err = -EIO;
	r->failed_count = 0;
	r->failed_all = false;
	if (err)
		region_error(r, err, "failed pages could not be healed");
}
