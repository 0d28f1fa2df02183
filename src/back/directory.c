/* SPDX-License-Identifier: Apache-2.0 */
/*
 * directory:PATH - a resource kept as a file per chunk, which is named by the decimal offset of the
 * chunk's first byte. A chunk that was never written has no file and reads as zeros; which chunks
 * were written is in the file "index", so that one that is gone is an error, and never zeros.
 *
 *   request ── cut at the chunks ── an op per chunk ── on the pool ── joined ── done
 *
 * What is written goes to a file of changes beside the chunk's, OFFSET.new: a whole chunk, the rest
 * of it copied from what was there. A flush makes that the chunk:
 *
 *   1. changes that run end, no other one begins; the set of chunks to commit is taken
 *   2. the index without those that were zeroed, durable
 *   3. each chunk of the set: OFFSET.new is synced and renamed to OFFSET; or OFFSET is removed
 *   4. the directory is synced
 *   5. the index with all chunks that have a file now, durable
 *
 * A chunk of the set is not changed before its step 3. Whenever the process or the machine stops,
 * each chunk has all of what was flushed or all of something newer, never a mixture: OFFSET is
 * replaced at once by what is durable already, and an OFFSET.new that is found when the directory
 * is opened is removed. The index never claims less than what was flushed (step 5 comes before the
 * answer) and never what is not there (2 before 3, 4 before 5). A file that is there and that the
 * index does not have is a flush that got as far as 4: it is taken, it is whole.
 *
 * A sync that fails: the kernel forgets what it could not write. As in file.c the back end counts
 * as another instance from then on, and what is dirty is written once more before it is synced
 * again.
 *
 * Invariants: dirty is within data; indexed is within file. A chunk is zeroed, and its file is
 * still to be removed, when it is in file and not in data. Ops of one chunk run one at a time, but
 * for reads; an op that may not run yet is in `blocked`, in the order in which they came. Commits
 * have ops of their own, so that a flush never waits for what waits for it. The number of open
 * files is bounded by DIRECTORY_FILES_MAX and the ops; nobody waits for a descriptor: what does not
 * fit into the cache is closed.
 *
 * Locking: loop thread only; the calls on the pool touch their op, and the directory's descriptor.
 * Two processes: flock on the directory, shared when it is opened for reading only.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "back/directory_int.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "store/sub.h"

static void pump(struct directory *d);
static void op_done(struct op *op, int res);
static void flush_step(struct directory *d);

static struct directory *directory_of(struct store *store)
{
	return CONTAINER_OF(store, struct directory, store);
}

static bool op_changes(const struct dir_op *o)
{
	return o->kind != DIR_READ;
}

/* ---- open files ---- */

static void file_close(struct directory *d, struct dir_file *f)
{
	CHECK(!f->users);
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
	link_remove(&f->link);
	list_push_front(&d->lru, &f->link);
}

static struct dir_file *file_find(struct directory *d, uint64_t chunk)
{
	for (size_t i = 0; i < DIRECTORY_FILES_MAX; i++)
		if (d->files[i].fd >= 0 && d->files[i].chunk == chunk)
			return &d->files[i];
	return NULL;
}

static void file_use(struct directory *d, struct dir_op *o)
{
	struct dir_file *f = file_find(d, o->chunk);

	o->file = f;
	o->fd = f ? f->fd : -1;
	if (!f)
		return;
	f->users++;
	link_remove(&f->link);
	list_push_back(&d->lru, &f->link);
}

/* Keeps the descriptor for the next one who needs it, in the place of the longest unused. If there
 * is one already it is of the same file: two reads have opened it at the same time. */
static void file_keep(struct directory *d, uint64_t chunk, int fd)
{
	bool known = file_find(d, chunk) != NULL;

	LIST_EACH(k, &d->lru) {
		struct dir_file *f = LIST_ENTRY(k, struct dir_file, link);

		if (known || f->users)
			continue;
		file_close(d, f);
		f->fd = fd;
		f->chunk = chunk;
		link_remove(k);
		list_push_back(&d->lru, k);
		return;
	}
	close(fd);
}

/* The op has ended: what it used is free, what it opened is kept. */
static void op_file_put(struct directory *d, struct dir_op *o, bool drop)
{
	struct dir_file *f = TAKE_PTR(o->file);
	int fd = TAKE_FD(o->fd);

	if (f) {
		CHECK(f->users);
		f->users--;
		if (fd == f->fd)
			fd = -1;
		if (drop || fd >= 0) /* the name means another file now */
			file_close(d, f);
	}
	if (fd >= 0 && !drop)
		file_keep(d, o->chunk, fd);
	else if (fd >= 0)
		close(fd);
}

/* ---- jobs ---- */

static struct dir_lane *lane_of(struct directory *d, const struct req *req)
{
	return &d->lane[req->op == REQ_READ ? DIR_LANE_READ : DIR_LANE_CHANGE];
}

static void job_end(struct directory *d, struct dir_job *job)
{
	struct req *parent = TAKE_PTR(job->parent);
	int err = job->err;

	CHECK(!job->pending && !job->more);
	lane_of(d, parent)->jobs--;
	parent->ret_instance = job->instance;
	parent->ret_zero = parent->op == REQ_READ && !err && job->zero;
	if (err && job->why[0]) {
		memcpy(d->why, job->why, sizeof(d->why));
		parent->ret_why = d->why;
	}
	list_push_back(&d->idle_jobs, &job->link);
	req_done(parent, err);
}

static void job_fail(struct dir_job *job, int err, const char *why)
{
	if (!job->err) {
		job->err = err;
		snprintf(job->why, sizeof(job->why), "%s", why ? why : "");
	}
	if (job->more) {
		job->more = false;
		link_remove(&job->link);
	}
}

static void job_begin(struct directory *d, struct req *parent)
{
	struct dir_job *job = LIST_ENTRY(list_pop_front(&d->idle_jobs), struct dir_job, link);
	struct dir_lane *lane = lane_of(d, parent);
	struct link *at = lane->hungry.head.next;

	*job = (struct dir_job){ .parent = parent, .at = parent->range.off, .more = true,
				 .end = range_end(parent->range), .zero = true,
				 .instance = d->store.info.instance };
	lane->jobs++;
	if (!(parent->flags & REQ_URGENT))
		at = &lane->hungry.head;
	while (at != &lane->hungry.head &&
	       LIST_ENTRY(at, struct dir_job, link)->parent->flags & REQ_URGENT)
		at = at->next;
	link_insert_before(at, &job->link);
}

/* ---- ops ---- */

static bool ops_conflict(const struct dir_op *a, const struct dir_op *b)
{
	return a->chunk == b->chunk && (op_changes(a) || op_changes(b));
}

/* A flush has it, or is about to. */
static bool flush_holds(const struct directory *d, const struct dir_op *o)
{
	return op_changes(o) && (d->flush == DIR_FLUSH_DRAIN ||
				 (d->flush != DIR_FLUSH_NONE && bitmap_get(d->set, o->chunk)));
}

static bool op_may_run(struct directory *d, const struct dir_op *o)
{
	if (o->job && flush_holds(d, o))
		return false;
	LIST_EACH(k, &d->running)
		if (ops_conflict(LIST_ENTRY(k, struct dir_op, link), o))
			return false;
	LIST_EACH(k, &d->blocked) {
		const struct dir_op *b = LIST_ENTRY(k, struct dir_op, link);

		if (b == o)
			break;
		if (o->job && ops_conflict(b, o))
			return false;
	}
	return true;
}

static void op_run(struct directory *d, struct dir_op *o)
{
	static int (*const calls[])(struct work *) = {
		[DIR_READ] = dir_read_call, [DIR_WRITE] = dir_write_call,
		[DIR_ZERO] = dir_zero_call, [DIR_COMMIT] = dir_commit_call,
	};

	list_push_back(&d->running, &o->link);
	d->changes_running += op_changes(o);
	o->dirty = bitmap_get(d->dirty, o->chunk);
	o->in_file = bitmap_get(d->data, o->chunk) && !o->dirty;
	o->whole = o->len == dir_chunk_len(d, o->chunk);
	o->why[0] = '\0';
	file_use(d, o);
	o->work.call = calls[o->kind];
	o->work.op.done = op_done;
	pool_run(d->store.loop, &o->work);
}

/* What the op has changed, in the bits; true: the descriptor is of no use any more. */
static bool op_settle(struct directory *d, struct dir_op *o, int err)
{
	switch (o->kind) {
	case DIR_READ:
		break;
	case DIR_WRITE:
		if (err)
			break;
		bitmap_set(d->dirty, o->chunk);
		bitmap_set(d->data, o->chunk);
		break;
	case DIR_ZERO:
		if (err)
			break;
		bitmap_clear(d->dirty, o->chunk);
		bitmap_clear(d->data, o->chunk);
		return true;
	case DIR_COMMIT:
		if (err)
			break;
		d->names_changed = true;
		bitmap_clear(d->dirty, o->chunk);
		if (o->dirty)
			bitmap_set(d->file, o->chunk);
		else
			bitmap_clear(d->file, o->chunk);
		return !o->dirty;
	}
	return false;
}

static void blocked_go_on(struct directory *d)
{
	LIST_EACH(k, &d->blocked) {
		struct dir_op *o = LIST_ENTRY(k, struct dir_op, link);

		if (!op_may_run(d, o))
			continue;
		link_remove(k);
		op_run(d, o);
	}
}

/* The op is out of the lists and has ended. */
static void op_end(struct directory *d, struct dir_op *o, int err)
{
	struct dir_job *job = TAKE_PTR(o->job);

	CHECK(job && job->pending);
	lane_of(d, job->parent)->ops--;
	list_push_back(&d->idle, &o->link);
	job->pending--;
	job->zero = false;
	if (err)
		job_fail(job, err, o->why);
	if (!job->pending && !job->more)
		job_end(d, job);
}

static void op_done(struct op *op, int res)
{
	struct dir_op *o = CONTAINER_OF(op, struct dir_op, work.op);
	struct directory *d = o->d;
	bool drop;

	if (res == -ECANCELED) {
		res = -ESHUTDOWN;
		o->fd = o->file ? o->file->fd : -1;
	}
	drop = op_settle(d, o, res);
	op_file_put(d, o, drop);
	link_remove(&o->link);
	d->changes_running -= op_changes(o);
	d->missing += o->kind == DIR_READ && res == -EIO && o->why[0];
	if (o->kind == DIR_COMMIT) {
		d->commits--;
		bitmap_clear(d->set, o->chunk);
		if (res && !d->flush_err) {
			d->flush_err = res;
			memcpy(d->why, o->why, sizeof(d->why));
		}
		list_push_back(&d->commit_idle, &o->link);
	} else {
		op_end(d, o, res);
	}
	blocked_go_on(d);
	flush_step(d);
	pump(d);
}

static void op_begin(struct directory *d, struct dir_job *job, enum dir_kind kind, uint64_t chunk,
		     struct range part)
{
	struct dir_op *o = LIST_ENTRY(list_pop_front(&d->idle), struct dir_op, link);
	const struct req *parent = job->parent;

	o->job = job;
	o->kind = kind;
	o->chunk = chunk;
	o->at = (uint32_t)(part.off - (chunk << d->shift));
	o->len = (uint32_t)part.len;
	o->data = NULL;
	if (parent->op == REQ_READ || parent->op == REQ_WRITE)
		o->data = parent->data.base + (part.off - parent->range.off);
	job->pending++;
	lane_of(d, parent)->ops++;
	if (op_may_run(d, o))
		op_run(d, o);
	else
		list_push_back(&d->blocked, &o->link);
}

/* ---- cutting requests at chunks ---- */

static bool chunk_busy(struct directory *d, uint64_t chunk)
{
	LIST_EACH(k, &d->running)
		if (LIST_ENTRY(k, struct dir_op, link)->chunk == chunk)
			return true;
	LIST_EACH(k, &d->blocked)
		if (LIST_ENTRY(k, struct dir_op, link)->chunk == chunk)
			return true;
	return d->flush == DIR_FLUSH_DRAIN ||
	       (d->flush != DIR_FLUSH_NONE && bitmap_get(d->set, chunk));
}

/* ZERO and TRIM: what is no data is passed over, whole chunks only lose a bit. False: an op is
 * needed. */
static bool job_zero_step(struct directory *d, struct dir_job *job, uint64_t chunk,
			  struct range part)
{
	bool whole = part.len == dir_chunk_len(d, chunk);

	if (!bitmap_get(d->data, chunk) && !chunk_busy(d, chunk)) {
		size_t next = bitmap_next_set(d->data, d->chunks, chunk);
		uint64_t end = MIN(job->end, (uint64_t)next << d->shift);

		/* Those that are busy are looked at one by one. */
		if (next == chunk + 1 || !list_empty(&d->running) || !list_empty(&d->blocked) ||
		    d->flush != DIR_FLUSH_NONE)
			end = range_end(part);
		job->at = end;
		return true;
	}
	if (job->parent->op == REQ_TRIM && !whole) {
		job->at = range_end(part);
		return true;
	}
	if (!whole || bitmap_get(d->dirty, chunk) || chunk_busy(d, chunk))
		return false;
	bitmap_clear(d->data, chunk);
	job->at = range_end(part);
	return true;
}

/* The job's next chunk. False: it needs an op, and there is none. */
static bool job_step(struct directory *d, struct dir_job *job, struct dir_lane *lane)
{
	const struct req *parent = job->parent;
	uint64_t chunk = job->at >> d->shift, chunk_off = chunk << d->shift;
	struct range part = range_cut(range_between(job->at, job->end),
				      range_of(chunk_off, dir_chunk_len(d, chunk)));
	enum dir_kind kind = parent->op == REQ_READ ? DIR_READ : DIR_WRITE;

	if (parent->op == REQ_READ && !bitmap_get(d->data, chunk)) {
		memset(parent->data.base + (job->at - parent->range.off), 0, (size_t)part.len);
		job->at = range_end(part);
		return true;
	}
	if (parent->op == REQ_ZERO || parent->op == REQ_TRIM) {
		if (job_zero_step(d, job, chunk, part))
			return true;
		if (part.len == dir_chunk_len(d, chunk))
			kind = DIR_ZERO;
	}
	if (list_empty(&d->idle) || lane->ops == lane->ops_max)
		return false;
	job->at = range_end(part);
	op_begin(d, job, kind, chunk, part);
	return true;
}

static void lane_pump(struct directory *d, struct dir_lane *lane)
{
	struct link *k;

	for (;;) {
		struct dir_job *job;

		while (lane->jobs < lane->jobs_max && (k = list_pop_front(&lane->waiting)))
			job_begin(d, LIST_ENTRY(k, struct req, link));
		k = list_first(&lane->hungry);
		if (!k)
			return;
		job = LIST_ENTRY(k, struct dir_job, link);
		if (!job_step(d, job, lane))
			return;
		if (job->at < job->end || !job->more)
			continue;
		job->more = false;
		link_remove(&job->link);
		if (!job->pending)
			job_end(d, job);
	}
}

static void pump(struct directory *d)
{
	d->pump_again = true;
	if (d->pumping)
		return;
	d->pumping = true;
	while (d->pump_again) {
		d->pump_again = false;
		for (size_t i = 0; i < DIR_LANES; i++)
			lane_pump(d, &d->lane[i]);
	}
	d->pumping = false;
}

/* ---- flush ---- */

static void sync_failed(struct directory *d, int err)
{
	struct env *env = loop_env(d->store.loop);

	d->sync_err = err;
	d->rewrite = true;
	log_error(&env->log, "directory %s: what was written could not be made durable: %s",
		  d->path, strerror(-err));
	d->store.info.instance = rng_next(&env->rng) | 1;
	if (!d->closing)
		store_emit(&d->store, STORE_RESTARTED);
}

static void directory_free(struct directory *d)
{
	for (size_t i = 0; i < DIRECTORY_FILES_MAX; i++)
		if (d->files[i].fd >= 0)
			close(d->files[i].fd);
	if (d->fd >= 0)
		close(d->fd);
	free(d->bits);
	free(d->index);
	free(d->buffers);
	free(d->path);
}

static void close_run(struct post *post)
{
	struct directory *d = CONTAINER_OF(post, struct directory, close_post);

	directory_free(d);
	store_closed(&d->store);
}

static void flush_end(struct directory *d)
{
	int err = d->store.aborting && !d->closing ? -ESHUTDOWN : d->flush_err;
	struct list answered;
	struct link *k;

	if (d->flush_err && d->flush_err != -ESHUTDOWN)
		sync_failed(d, d->flush_err);
	else if (!err)
		d->rewrite = false;
	d->flush = DIR_FLUSH_NONE;
	memset(d->set, 0, d->words * sizeof(*d->set));
	list_init(&answered);
	list_splice_back(&answered, &d->flush_with);
	if (d->closing) {
		d->closing = false;
		d->close_post.run = close_run;
		loop_defer(d->store.loop, &d->close_post);
	}
	while ((k = list_pop_front(&answered))) {
		struct req *req = LIST_ENTRY(k, struct req, link);

		req->ret_instance = d->flush_instance;
		req->ret_why = err && d->why[0] ? d->why : NULL;
		req_done(req, err);
	}
	blocked_go_on(d);
}

static void flush_work_done(struct op *op, int res)
{
	struct directory *d = CONTAINER_OF(op, struct directory, flush_work.op);

	if (res && !d->flush_err) {
		d->flush_err = res;
		snprintf(d->why, sizeof(d->why), "directory: %s: %s",
			 d->flush == DIR_FLUSH_NAMES ? "syncing it" : "its index", strerror(-res));
	}
	if (!res && d->flush == DIR_FLUSH_NAMES)
		d->names_changed = false;
	else if (!res)
		dir_index_said(d, d->indexed);
	if (d->flush == DIR_FLUSH_FORGET) {
		d->flush = DIR_FLUSH_COMMIT;
		d->commit_at = 0;
	} else if (d->flush == DIR_FLUSH_NAMES) {
		d->flush = DIR_FLUSH_INDEX;
	} else {
		flush_end(d);
	}
	flush_step(d);
	pump(d);
}

static void flush_work_run(struct directory *d, int (*call)(struct work *))
{
	d->flush_work.call = call;
	d->flush_work.op.done = flush_work_done;
	pool_run(d->store.loop, &d->flush_work);
}

/* True: a work is under way, or the flush has failed already. */
static bool flush_forget(struct directory *d)
{
	bool any = false;

	memset(d->set, 0, d->words * sizeof(*d->set));
	for (size_t i = 0; i < d->words; i++) {
		uint64_t zeroed = d->file[i] & ~d->data[i];

		d->set[i] = d->dirty[i] | zeroed;
		any |= (zeroed & d->indexed[i]) != 0;
	}
	if (!any)
		return false;
	dir_index_make(d, d->indexed, d->data);
	flush_work_run(d, dir_index_call);
	return true;
}

static void flush_commits(struct directory *d)
{
	struct env *env = loop_env(d->store.loop);

	while (!list_empty(&d->commit_idle)) {
		size_t chunk = bitmap_next_set(d->set, d->chunks, d->commit_at);
		struct dir_op *o;

		if (chunk == d->chunks || d->flush_err || (d->store.aborting && !d->closing))
			break;
		d->commit_at = chunk + 1;
		o = LIST_ENTRY(list_pop_front(&d->commit_idle), struct dir_op, link);
		o->kind = DIR_COMMIT;
		o->chunk = chunk;
		o->at = 0;
		o->len = dir_chunk_len(d, chunk);
		o->rewrite = d->rewrite;
		o->fault = env_fault(env, "directory.sync");
		d->commits++;
		if (op_may_run(d, o))
			op_run(d, o);
		else
			list_push_front(&d->blocked, &o->link);
	}
}

static bool index_differs(const struct directory *d)
{
	return memcmp(d->file, d->indexed, d->words * sizeof(*d->file)) != 0;
}

static bool flush_needed(const struct directory *d)
{
	for (size_t i = 0; i < d->words; i++)
		if (d->dirty[i] | (d->file[i] & ~d->data[i]))
			return true;
	return d->names_changed || index_differs(d);
}

static void flush_begin(struct directory *d)
{
	struct link *k;

	list_splice_back(&d->flush_with, &d->flush_waiting);
	d->flush_err = 0;
	d->flush_instance = d->store.info.instance;
	d->why[0] = '\0';
	if (d->store.info.read_only || (!flush_needed(d) && !d->changes_running)) {
		while ((k = list_pop_front(&d->flush_with))) {
			LIST_ENTRY(k, struct req, link)->ret_instance = d->flush_instance;
			req_done(LIST_ENTRY(k, struct req, link), 0);
		}
		return;
	}
	d->flush = DIR_FLUSH_DRAIN;
}

/* Goes on with the flush as far as it can; begins one if somebody waits for it. */
static void flush_step(struct directory *d)
{
	bool stop = d->store.aborting && !d->closing;

	if (d->flush == DIR_FLUSH_NONE && (!list_empty(&d->flush_waiting) || d->closing))
		flush_begin(d);
	if (op_pending(&d->flush_work.op))
		return;
	if (d->flush == DIR_FLUSH_DRAIN && !d->changes_running) {
		d->flush = DIR_FLUSH_FORGET;
		if (!stop && flush_forget(d))
			return;
		d->flush = DIR_FLUSH_COMMIT;
		d->commit_at = 0;
		blocked_go_on(d); /* what does not touch the set */
	}
	if (d->flush == DIR_FLUSH_COMMIT) {
		flush_commits(d);
		if (d->commits)
			return;
		if (stop || d->flush_err) {
			flush_end(d);
			flush_step(d);
			return;
		}
		d->flush = DIR_FLUSH_NAMES;
		flush_work_run(d, dir_names_call);
		return;
	}
	if (d->flush != DIR_FLUSH_INDEX)
		return;
	if (!stop && !d->flush_err && index_differs(d)) {
		dir_index_make(d, d->file, d->file);
		flush_work_run(d, dir_index_call);
		return;
	}
	flush_end(d);
	flush_step(d);
}

/* ---- the store ---- */

static void directory_extents(struct directory *d, struct range r, struct extents *x)
{
	uint64_t at = r.off, end = range_end(r);

	while (at < end && x->count < x->max) {
		size_t chunk = at >> d->shift;
		bool data = bitmap_get(d->data, chunk);
		size_t next = data ? bitmap_next_clear(d->data, d->chunks, chunk)
				   : bitmap_next_set(d->data, d->chunks, chunk);
		uint64_t stop = next == d->chunks ? end : MIN(end, (uint64_t)next << d->shift);

		x->at[x->count++] = (struct extent){ .len = stop - at, .zero = !data };
		at = stop;
	}
}

static void directory_submit(struct store *store, struct req *req)
{
	struct directory *d = directory_of(store);

	if (req->op == REQ_EXTENTS) {
		directory_extents(d, req->range, req->extents);
		req_done(req, 0);
	} else if (req->op == REQ_FLUSH) {
		list_push_back(&d->flush_waiting, &req->link);
		flush_step(d);
	} else {
		req_queue(&lane_of(d, req)->waiting, req);
		pump(d);
	}
}

static void directory_abort(struct store *store)
{
	struct directory *d = directory_of(store);
	struct list failed, ops;
	struct link *k;

	list_init(&failed);
	list_init(&ops);
	list_splice_back(&failed, &d->flush_waiting);
	for (size_t i = 0; i < DIR_LANES; i++)
		list_splice_back(&failed, &d->lane[i].waiting);
	LIST_EACH(b, &d->blocked) {
		struct dir_op *o = LIST_ENTRY(b, struct dir_op, link);

		link_remove(b);
		list_push_back(o->job ? &ops : &d->commit_idle, &o->link);
		d->commits -= !o->job;
	}
	for (size_t i = 0; i < d->ops; i++)
		op_cancel(store->loop, &d->op[i].work.op);
	while ((k = list_pop_front(&failed)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
	for (size_t i = 0; i < DIR_LANES; i++)
		while ((k = list_first(&d->lane[i].hungry))) {
			struct dir_job *job = LIST_ENTRY(k, struct dir_job, link);

			job_fail(job, -ESHUTDOWN, NULL);
			if (!job->pending)
				job_end(d, job);
		}
	while ((k = list_pop_front(&ops))) {
		struct dir_op *o = LIST_ENTRY(k, struct dir_op, link);

		o->why[0] = '\0';
		op_end(d, o, -ESHUTDOWN);
	}
	flush_step(d);
}

/* What was acknowledged is not lost when it is closed in good order, flushed or not. */
static void directory_close(struct store *store)
{
	struct directory *d = directory_of(store);

	CHECK(list_empty(&d->running) && list_empty(&d->blocked) && d->flush == DIR_FLUSH_NONE);
	if (!store->info.read_only && flush_needed(d)) {
		d->closing = true;
		flush_step(d);
		return;
	}
	directory_free(d);
	store_closed(store);
}

static void directory_status(struct store *store, char *buf, size_t len)
{
	const struct directory *d = directory_of(store);
	size_t open = 0;

	for (size_t i = 0; i < DIRECTORY_FILES_MAX; i++)
		open += d->files[i].fd >= 0;
	snprintf(buf, len,
		 "chunk=%llu chunks=%zu dirty=%zu open_files=%zu missing=%llu sync_error=%d",
		 (unsigned long long)d->chunk, bitmap_count(d->data, d->chunks),
		 bitmap_count(d->dirty, d->chunks), open, (unsigned long long)d->missing,
		 -d->sync_err);
}

static const struct store_ops directory_ops = {
	.name = "directory",
	.submit = directory_submit,
	.abort = directory_abort,
	.close = directory_close,
	.status = directory_status,
};

/* ---- opening ---- */

static int directory_options(struct dir_opening *w)
{
	struct spec_args *args = w->args;
	uint64_t size = UINT64_MAX, chunk = UINT64_MAX;
	int r;

	if (!*args->part->rest)
		return spec_error(args->spec, args->part->rest_at, args->e,
				  "directory: needs a path: directory:disk.d?size=4G");
	if ((r = spec_get_size(args, "chunk", &chunk)) ||
	    (r = spec_get_size(args, "size", &size)) ||
	    (r = spec_get_bool(args, "create", &w->create)) ||
	    (r = spec_get_bool(args, "readonly", &w->read_only)) || (r = spec_options_end(args)))
		return r;
	w->has_chunk = chunk != UINT64_MAX;
	w->has_size = size != UINT64_MAX;
	w->read_only = w->read_only || w->how->read_only;
	w->create = (w->create || w->how->create) && !w->read_only;
	w->size = w->has_size ? size : w->how->create ? w->how->create_size : 0;
	w->chunk = w->has_chunk ? chunk : CHUNK_DEFAULT;
	if (!is_pow2(w->chunk) || w->chunk < CHUNK_MIN || w->chunk > CHUNK_MAX)
		return spec_error(args->spec, args->part->at, args->e,
				  "chunk must be a power of two from %llu KiB to %llu MiB",
				  CHUNK_MIN / KIB, CHUNK_MAX / MIB);
	return 0;
}

static int ops_init(struct directory *d)
{
	/* Each has a chunk's bytes; pages that are not used cost nothing. */
	d->ops = MAX(MIN(DIRECTORY_OPS_MAX, (size_t)(DIRECTORY_BUFFERS_MAX / d->chunk)),
		     DIRECTORY_OPS_MIN);
	d->buffers = aligned_alloc(PAGE_BYTES, (d->ops + DIRECTORY_COMMITS_MAX) * d->chunk);
	if (!d->buffers)
		return -ENOMEM;
	for (size_t i = 0; i < d->ops + DIRECTORY_COMMITS_MAX; i++) {
		struct dir_op *o = i < d->ops ? &d->op[i] : &d->commit_op[i - d->ops];

		o->d = d;
		o->fd = -1;
		o->buf = d->buffers + i * d->chunk;
		list_push_back(i < d->ops ? &d->idle : &d->commit_idle, &o->link);
	}
	d->lane[DIR_LANE_READ].ops_max = (unsigned)d->ops;
	d->lane[DIR_LANE_CHANGE].ops_max = (unsigned)(d->ops * 3 / 4);
	return 0;
}

static void lists_init(struct directory *d)
{
	list_init(&d->idle_jobs);
	list_init(&d->idle);
	list_init(&d->running);
	list_init(&d->blocked);
	list_init(&d->lru);
	list_init(&d->flush_waiting);
	list_init(&d->flush_with);
	list_init(&d->commit_idle);
	for (size_t i = 0; i < DIR_LANES; i++) {
		list_init(&d->lane[i].waiting);
		list_init(&d->lane[i].hungry);
		d->lane[i].jobs_max = DIRECTORY_JOBS_MAX / DIR_LANES;
	}
	for (size_t i = 0; i < DIRECTORY_JOBS_MAX; i++)
		list_push_back(&d->idle_jobs, &d->job[i].link);
	for (size_t i = 0; i < DIRECTORY_FILES_MAX; i++) {
		d->files[i].fd = -1;
		list_push_back(&d->lru, &d->files[i].link);
	}
}

int back_directory_open(struct store **ret, const struct store_open *how, struct spec_args *args,
			struct store *next)
{
	struct dir_opening w = { .how = how, .args = args, .e = args->e };
	struct directory *d;
	int r;

	CHECK(!next);
	r = directory_options(&w);
	if (r)
		return r;
	d = w.d = calloc(1, sizeof(*d));
	if (!d || !(d->path = strdup(args->part->rest))) {
		free(d);
		return err_sys(args->e, -ENOMEM, "directory");
	}
	d->fd = -1;
	d->store.loop = how->loop;
	lists_init(d);
	r = dir_load(&w);
	if (!r && (r = ops_init(d)))
		err_sys(args->e, r, "directory %s", d->path);
	if (r) {
		directory_free(d);
		free(d);
		return r;
	}
	d->store.info.read_only = w.read_only;
	d->store.info.chunk = (uint32_t)d->chunk;
	d->store.info.flush = d->store.info.zero = d->store.info.trim = d->store.info.extents =
		CAP_NATIVE;
	d->store.info.identity = w.identity;
	d->store.info.instance = rng_next(&loop_env(how->loop)->rng) | 1;
	store_init(&d->store, &directory_ops, how->loop, NULL);
	*ret = &d->store;
	return 0;
}
