/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What people ask of a mount that runs: pull, flush, invalidate, record. (status and unmount have
 * files of their own.)
 *
 * Place: between the control socket and the region and the file.
 *
 * Each request is a struct work, in m->works until its call has been answered: by the end of what
 * it asked for, or, where that can be taken back, because whoever asked is gone.
 *
 * Invariants: a work is freed only when nothing below has anything of it (`busy` is 0). A call is
 * answered once: work_end() takes it away.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "cmd/mount.h"

#define PULLS_MAX 256u /* that nobody waits for */
#define AGAIN_NS NS_PER_MS
#define RECORD_NS NS_PER_S
#define RECORD_LINES 512u /* ranges at a time: what a client has not read is bounded */

struct work {
	struct link link;
	struct mount *m;
	struct control_call *call; /* NULL: answered */
	struct timer timer;
	/* The next step, or the look at how far it is. */
	void (*tick)(struct work *w);
	uint64_t tick_ns;
	unsigned busy; /* of those below */
	struct range range;
	uint64_t total;
	struct region_pull pull;
	struct file_call file;
	struct req req;
};

/* ---- works ---- */

bool mount_up(struct mount *m, struct control_call *call)
{
	if (m->up)
		return true;
	control_fail(call, -ESHUTDOWN, "the mount ends");
	return false;
}

static void work_settle(struct work *w)
{
	if (w->busy || w->call)
		return;
	timer_clear(w->m->run.loop, &w->timer);
	link_remove(&w->link);
	free(w);
}

static void work_end(struct work *w, int err, json_t *with)
{
	struct control_call *call = w->call;
	const char *why = err ? mount_why(w->m) : "";

	w->call = NULL;
	timer_clear(w->m->run.loop, &w->timer);
	if (call && !err)
		control_ok(call, with);
	else if (call)
		control_fail(call, err, "%s%s%s%s", strerror(-err), *why ? " (" : "", why,
			     *why ? ")" : "");
	work_settle(w);
}

static void work_tick(struct timer *timer)
{
	struct work *w = CONTAINER_OF(timer, struct work, timer);

	timer_set(w->m->run.loop, timer, loop_now(w->m->run.loop) + w->tick_ns);
	w->tick(w);
}

static struct work *work_open(struct mount *m, struct control_call *call,
			      void (*tick)(struct work *w), uint64_t tick_ns)
{
	struct work *w = calloc(1, sizeof(*w));

	if (!w) {
		control_fail(call, -ENOMEM, "no memory");
		return NULL;
	}
	*w = (struct work){ .m = m, .call = call, .timer.fire = work_tick, .tick = tick,
			    .tick_ns = tick_ns };
	list_push_back(&m->works, &w->link);
	timer_set(m->run.loop, &w->timer, loop_now_fresh(m->run.loop) + tick_ns);
	return w;
}

static json_t *done_of_total(uint64_t done, uint64_t total)
{
	return json_pack("{s:I, s:I}", "done", (json_int_t)MIN(done, total), "total",
			 (json_int_t)total);
}

/* "off", "len": absent means from the start, to the end. */
static bool range_take(struct mount *m, struct control_call *call, const json_t *args, int64_t off,
		       int64_t len, struct range *ret)
{
	ret->off = (uint64_t)off;
	if (ret->off > m->size)
		goto out;
	ret->len = json_object_get(args, "len") ? (uint64_t)len : m->size - ret->off;
	if (range_within(*ret, m->size))
		return true;
out:
	control_fail(call, -EINVAL, "the range goes beyond the file's %llu bytes",
		     (unsigned long long)m->size);
	return false;
}

/* ---- pull ---- */

static void pull_look(struct work *w)
{
	struct region_pull *p = &w->pull;
	uint64_t all = p->end - w->total, at = p->behind - w->total; /* chunks */

	if (!w->call)
		return;
	if (control_gone(w->call)) {
		region_pull_cancel(w->m->region, p);
		w->busy = 0;
		work_end(w, 0, NULL);
		return;
	}
	control_progress(w->call, done_of_total((uint64_t)((double)w->range.len * (double)at /
							   (double)MAX(all, 1u)),
						w->range.len));
}

static void pulled(struct region_pull *pull, int err)
{
	struct work *w = CONTAINER_OF(pull, struct work, pull);

	w->busy = 0;
	work_end(w, err, NULL);
}

static unsigned pulls_alone(struct mount *m)
{
	unsigned count = 0;

	LIST_EACH (k, &m->works)
		count += !LIST_ENTRY(k, struct work, link)->call;
	return count;
}

static void verb_pull(void *arg, struct control_call *call, json_t *args)
{
	struct mount *m = arg;
	int64_t off = 0, len = 0, priority = 0;
	bool wait = true;
	const struct control_arg known[] = {
		{ "off", CONTROL_INT, &off, 0, 0 },
		{ "len", CONTROL_INT, &len, 0, 0 },
		{ "priority", CONTROL_INT, &priority, INT32_MIN, INT32_MAX },
		{ "wait", CONTROL_BOOL, &wait, 0, 0 },
		{ 0 },
	};
	struct range range;
	struct work *w;

	if (control_args(call, args, known) || !mount_up(m, call) ||
	    !range_take(m, call, args, off, len, &range))
		return;
	if (!m->region) {
		control_fail(call, -EOPNOTSUPP, "a direct mount keeps nothing here: there is "
						"nothing to pull into");
		return;
	}
	if (!wait && pulls_alone(m) >= PULLS_MAX) {
		control_fail(call, -EAGAIN, "%u pulls are under way already: wait for them",
			     PULLS_MAX);
		return;
	}
	w = work_open(m, call, pull_look, MOUNT_SHOW_NS);
	if (!w)
		return;
	w->range = range;
	w->pull = (struct region_pull){ .range = range, .priority = (int)priority, .done = pulled };
	w->busy = 1;
	region_pull(m->region, &w->pull);
	w->total = w->pull.behind; /* the first chunk */
	if (!wait)
		work_end(w, 0, NULL);
}

/* ---- flush ---- */

static void flush_look(struct work *w)
{
	uint64_t unsafe = mount_unsafe(w->m);

	w->total = MAX(w->total, unsafe);
	if (w->call)
		control_progress(w->call, done_of_total(w->total - unsafe, w->total));
}

static void flush_end(struct work *w, int err)
{
	w->busy = 0;
	if (err && w->call)
		control_with(w->call, json_pack("{s:I}", "unsafe_bytes",
						(json_int_t)mount_unsafe(w->m)));
	work_end(w, err, NULL);
}

static void flush_done(struct req *req, int err)
{
	flush_end(req->user, err);
}

static void flush_synced(struct file_call *file, int err)
{
	struct work *w = CONTAINER_OF(file, struct work, file);
	struct mount *m = w->m;

	/* While it is being unmounted from outside the kernel has written back by itself. */
	if (err && !m->end.gone) {
		flush_end(w, err);
		return;
	}
	if (!m->up || m->store->info.flush == CAP_NONE) {
		flush_end(w, m->up ? 0 : -ESHUTDOWN);
		return;
	}
	w->total = mount_unsafe(m);
	w->req = (struct req){ .op = REQ_FLUSH, .done = flush_done, .user = w };
	req_submit(m->store, &w->req);
}

static void verb_flush(void *arg, struct control_call *call, json_t *args)
{
	struct mount *m = arg;
	struct work *w;

	if (control_args(call, args, NULL) || !mount_up(m, call))
		return;
	if (m->read_only || m->store->info.read_only) {
		control_ok(call, NULL);
		return;
	}
	w = work_open(m, call, flush_look, MOUNT_SHOW_NS);
	if (!w)
		return;
	w->busy = 1;
	w->file = (struct file_call){ .done = flush_synced };
	file_sync(m->file, &w->file);
}

/* ---- invalidate ---- */

static void invalidated(struct file_call *file, int err)
{
	struct work *w = CONTAINER_OF(file, struct work, file);

	w->busy = 0;
	work_end(w, err, NULL);
}

/* A part that is just being installed: again in a moment. */
static void invalidate_try(struct work *w)
{
	struct mount *m = w->m;
	int r = 0;

	if (w->busy || !w->call)
		return;
	if (!m->up)
		r = -ESHUTDOWN;
	else if (m->region)
		r = region_invalidate(m->region, w->range);
	if (r == -EAGAIN)
		return;
	if (r) {
		work_end(w, r, NULL);
		return;
	}
	w->busy = 1;
	w->tick_ns = MOUNT_SHOW_NS; /* nothing to look at any more */
	w->file = (struct file_call){ .done = invalidated, .range = w->range };
	file_invalidate(m->file, &w->file);
}

static void verb_invalidate(void *arg, struct control_call *call, json_t *args)
{
	struct mount *m = arg;
	int64_t off = 0, len = 0;
	const struct control_arg known[] = {
		{ "off", CONTROL_INT, &off, 0, 0 },
		{ "len", CONTROL_INT, &len, 0, 0 },
		{ 0 },
	};
	struct range range;
	struct work *w;

	if (control_args(call, args, known) || !mount_up(m, call) ||
	    !range_take(m, call, args, off, len, &range))
		return;
	w = work_open(m, call, invalidate_try, AGAIN_NS);
	if (!w)
		return;
	w->range = range;
	invalidate_try(w);
}

/* ---- record ---- */

void mount_accessed(void *arg, struct range r)
{
	struct mount *m = arg;

	if (m->recorder)
		recorder_add(m->recorder, r);
}

static void record_end(struct work *w, int err)
{
	recorder_close(TAKE_PTR(w->m->recorder));
	work_end(w, err, NULL);
}

static void record_tell(struct work *w)
{
	struct recorder_count n;

	recorder_count(w->m->recorder, &n);
	control_progress(w->call, json_pack("{s:I, s:I, s:I}", "ranges", (json_int_t)n.ranges,
					    "bytes", (json_int_t)n.bytes, "lost",
					    (json_int_t)n.lost));
}

static void record_look(struct work *w)
{
	struct mount *m = w->m;
	AUTO_FREE struct range *ranges = NULL;
	size_t count;

	if (!w->call || !m->recorder)
		return;
	if (control_gone(w->call)) {
		record_end(w, 0);
		return;
	}
	ranges = calloc(RECORD_LINES, sizeof(*ranges));
	if (!ranges)
		return; /* the next time */
	count = recorder_drain(m->recorder, ranges, RECORD_LINES);
	for (size_t i = 0; i < count; i++)
		control_progress(w->call,
				 json_pack("{s:[I,I]}", "range", (json_int_t)ranges[i].off,
					   (json_int_t)ranges[i].len));
	record_tell(w);
	/* There is more: soon, but not all at once. */
	w->tick_ns = count < RECORD_LINES ? RECORD_NS : RECORD_NS / 20;
}

static void record_dropped(struct file_call *file, int err)
{
	struct work *w = CONTAINER_OF(file, struct work, file);

	w->busy = 0;
	if (err && w->call)
		log_warn(&w->m->run.env.log,
			 "record: the kernel keeps what it has cached: uses of that are not seen");
	if (w->call && w->m->recorder)
		record_tell(w); /* from now on everything is seen: who waits for that can go on */
	work_settle(w);
}

static void verb_record(void *arg, struct control_call *call, json_t *args)
{
	struct mount *m = arg;
	struct work *w;
	int r;

	if (control_args(call, args, NULL) || !mount_up(m, call))
		return;
	if (m->recorder) {
		control_fail(call, -EBUSY, "somebody records already: one at a time");
		return;
	}
	r = recorder_open(&m->recorder, m->size);
	if (r) {
		control_fail(call, r, "recording: %s", strerror(-r));
		return;
	}
	w = work_open(m, call, record_look, RECORD_NS);
	if (!w) {
		recorder_close(TAKE_PTR(m->recorder));
		return;
	}
	w->busy = 1;
	w->file = (struct file_call){ .done = record_dropped, .range = range_of(0, m->size) };
	file_invalidate(m->file, &w->file);
}

/* ---- the end ---- */

/* Whatever can be taken back is; the rest ends with what it waits for. */
static void work_stop(struct work *w)
{
	struct mount *m = w->m;

	timer_clear(m->run.loop, &w->timer);
	if (link_linked(&w->pull.link)) {
		region_pull_cancel(m->region, &w->pull);
		w->busy = 0;
	}
	if (w->tick == record_look && m->recorder) {
		if (w->call && !control_gone(w->call))
			record_look(w);
		recorder_close(TAKE_PTR(m->recorder));
		if (w->call) {
			work_end(w, 0, NULL);
			return;
		}
	}
	if (!w->busy)
		work_end(w, w->call ? -ESHUTDOWN : 0, NULL);
}

void mount_verbs_settle(struct mount *m)
{
	LIST_EACH (k, &m->works)
		work_stop(LIST_ENTRY(k, struct work, link));
	while (!list_empty(&m->works))
		if (loop_step(m->run.loop, NEVER_NS))
			return;
}

const struct control_verb mount_verbs[] = {
	{ "status", mount_status },
	{ "pull", verb_pull },
	{ "flush", verb_flush },
	{ "invalidate", verb_invalidate },
	{ "record", verb_record },
	{ "unmount", mount_end_ask },
	{ 0 },
};
