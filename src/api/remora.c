/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public API's memory: a handle is a loop's thread, a far store, a near store, a region that
 * joins them, and what the program has mapped of it: the near store itself, with a fault thread
 * (engine userfaultfd), or a file that is served from the region (engine file, engine_file.c).
 *
 * Place: the top. remora_open() makes the row far store -> near store -> region -> fault thread or
 * file, remora_close() undoes it from the other end.
 *
 * Invariants: the region, and what it owns, is touched in the loop's thread only, but for
 * region_fault(). The options are copied, the ranges in them are used during remora_open() alone.
 *
 * Locking: host.c's. Any thread of the program may call, also several at once; remora_close() is
 * the last call.
 */
#include "remora/remora.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/engine_file.h"
#include "api/host.h"
#include "base/cleanup.h"
#include "config.h"
#include "front/memory.h"
#include "region/near_disk.h"
#include "region/region.h"

struct pull {
	struct region_pull region; /* first */
	struct post post;
	struct remora *r;
	struct host_wait wait;
	bool alone; /* nobody waits: frees itself */
};

struct remora {
	struct host host;
	struct region *region;
	struct near *near;	  /* the region's */
	struct engine_file *file; /* NULL: the near store is what is mapped */
	bool as_file, fell_back;  /* the engine, and whether the better one was refused */
	uint64_t size;
	char engine[64];
	struct pull *first; /* is pulled at once; remora_open() waits for it if told so */
	size_t first_count;
	bool first_waits;
};

const char *remora_version(void)
{
	return REMORA_VERSION;
}

/* ---- pulls ---- */

static void pull_done(struct region_pull *region, int err)
{
	struct pull *pull = CONTAINER_OF(region, struct pull, region);

	if (pull->alone)
		free(pull);
	else
		host_end(&pull->r->host, &pull->wait, err);
}

static void pull_init(struct pull *pull, struct remora *r, struct range range, int priority)
{
	*pull = (struct pull){
		.r = r, .region = { .range = range, .priority = priority, .done = pull_done }
	};
}

static void pull_run(struct post *post)
{
	struct pull *pull = CONTAINER_OF(post, struct pull, post);

	region_pull(pull->r->region, &pull->region);
}

/* ---- opening ---- */

/* What somebody will want first, for the far side's hello; nothing when nobody said so: lazy means
 * lazy. */
static struct range first_guess(const struct remora_options *o)
{
	if (o->pull_first)
		return range_of(0, MIN(o->pull_first, REQ_LEN_MAX));
	if (o->pull_range_count)
		return range_of(o->pull_ranges[0].off, MIN(o->pull_ranges[0].len, REQ_LEN_MAX));
	return range_of(0, o->pull == REMORA_PULL_ALL ? CHUNK_DEFAULT : 0);
}

/* What remora_open() waits for, in the order of the options; if nothing, what came along with the
 * hello. */
static int first_make(struct remora *r, struct err *e)
{
	const struct remora_options *o = &r->host.options;
	struct range guess;

	r->first = calloc(o->pull_range_count + 1, sizeof(*r->first));
	if (!r->first)
		return err_sys(e, -ENOMEM, "opening memory");
	if (o->pull_first && r->size)
		pull_init(&r->first[r->first_count++], r, range_of(0, MIN(o->pull_first, r->size)),
			  INT32_MAX);
	for (size_t i = 0; i < o->pull_range_count; i++) {
		struct range want = range_of(o->pull_ranges[i].off, o->pull_ranges[i].len);

		if (!range_within(want, r->size))
			return err_set(
				e, -EINVAL,
				"options: pull_ranges[%zu] goes beyond the resource's %llu bytes",
				i, (unsigned long long)r->size);
		if (want.len)
			pull_init(&r->first[r->first_count++], r, want, INT32_MAX);
	}
	r->first_waits = r->first_count > 0;
	guess = range_cut(first_guess(o), range_of(0, r->size));
	if (!r->first_waits && guess.len)
		pull_init(&r->first[r->first_count++], r, guess, INT32_MAX);
	return 0;
}

static void hook_chunk_local(void *arg, struct range range)
{
	const struct remora_hooks *hooks = arg;

	hooks->chunk_local(hooks->arg, range.off, range.len);
}

static void hook_progress(void *arg, uint64_t local_bytes, uint64_t size)
{
	const struct remora_hooks *hooks = arg;

	hooks->progress(hooks->arg, local_bytes, size);
}

static int hook_priority(void *arg, struct range range)
{
	const struct remora_hooks *hooks = arg;

	return hooks->priority(hooks->arg, range.off, range.len);
}

static_assert((int)REMORA_LOSS_WAIT == REGION_LOSS_WAIT &&
		      (int)REMORA_LOSS_ERROR == REGION_LOSS_ERROR &&
		      (int)REMORA_LOSS_READONLY == REGION_LOSS_READONLY,
	      "policies are the same numbers");

/* With one processor a second thread would only be in the way. */
static bool several_processors(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 1;
}

static struct region_options region_options_of(struct remora_options *o)
{
	return (struct region_options){
		.chunk = o->chunk,
		/* the rest for what a program has of us besides: code, stacks */
		.budget_bytes = o->budget - o->budget / 32,
		.inflight_bytes_max = o->inflight,
		.readahead_bytes_max = o->readahead_max,
		.read_only = o->read_only,
		.install_apart = several_processors(),
		.discard = o->private_copy,
		.pull_all = o->pull == REMORA_PULL_ALL,
		.push_off = o->no_push,
		.push_interval_ns = o->push_interval_ms * NS_PER_MS,
		.deadline_ns = o->deadline_ms == UINT32_MAX ? NEVER_NS : o->deadline_ms * NS_PER_MS,
		.on_loss = (enum region_loss)o->on_loss,
		.hooks = { .chunk_local = o->hooks.chunk_local ? hook_chunk_local : NULL,
			   .progress = o->hooks.progress ? hook_progress : NULL,
			   .priority = o->hooks.priority ? hook_priority : NULL,
			   .arg = &o->hooks },
	};
}

/* There is no userfaultfd here, or not for us. */
static bool is_refusal(int err)
{
	return err == -EPERM || err == -EACCES || err == -ENOSYS || err == -EOPNOTSUPP;
}

static int near_on_disk(struct remora *r, const struct store *far, const char *spec,
			struct err *e)
{
	const struct remora_options *o = &r->host.options;
	const struct near_disk_options options = {
		.dir = o->near,
		.size = far->info.size,
		.chunk = o->chunk ? o->chunk : region_chunk_default(&far->info),
		.identity = far->info.identity,
		.spec = spec,
		.holder = "remora_open",
		.budget_bytes = o->budget,
		.sync_interval_ns = o->push_interval_ms * NS_PER_MS,
	};
	int err = near_disk_open(&r->near, r->host.loop, &options, e);

	if (!err && o->chunk && o->chunk != r->near->chunk)
		log_warn(&r->host.env.log, "%s was made with chunks of %u bytes, and keeps them",
			 o->near, r->near->chunk);
	return err;
}

static int near_open(struct remora *r, const struct store *far, const char *spec, struct err *e)
{
	const struct remora_options *o = &r->host.options;
	struct memory_options mo = { .env = &r->host.env,
				     .size = far->info.size,
				     .read_only = o->read_only,
				     .address = o->address,
				     .user_mode_only = o->user_mode_only };

	if (far->info.read_only && !o->read_only && !o->private_copy)
		return err_set(
			e, -EROFS,
			"the resource cannot be written: open it with read_only, or with private_copy");
	r->as_file = o->near || (o->engine && !strcmp(o->engine, "file"));
	if (o->near)
		return near_on_disk(r, far, spec, e);
	if (!r->as_file) {
		int err = memory_open(&r->near, &mo, e);

		if (!is_refusal(err) || (o->engine && strcmp(o->engine, "auto") != 0))
			return err;
		log_info(&r->host.env.log, "%s; going on with a file", e->text);
		r->as_file = r->fell_back = true;
	}
	return near_memfd_open(&r->near, far->info.size)
		       ? err_set(e, -ENOMEM, "memory for %llu bytes", (unsigned long long)far->info.size)
		       : 0;
}

/* Loop's thread, the region is there. */
static int file_engine_open(struct remora *r, struct err *e)
{
	struct err why = *e;
	int err = engine_file_open(&r->file, &r->host, region_store(r->region), e);

	/* Either would do: the one that is the rule is told first. */
	if (err && r->fell_back) {
		struct err second = *e;

		err_set(e, why.code, "%.280s; nor as a file: %.200s", why.text, second.text);
		return why.code;
	}
	return err;
}

static void engine_name(struct remora *r)
{
	const char *loop = loop_engine_name(r->host.loop);
	const char *how = !r->as_file ? memory_how(r->near)
			  : r->fell_back ? "file (no right to userfaultfd)" : "file";
	bool fell_back = !r->host.options.loop && strcmp(loop, "io_uring") != 0;

	snprintf(r->engine, sizeof(r->engine), "%s, %s%s", how, loop,
		 fell_back ? " (no io_uring)" : "");
}

/* Loop's thread. The first bytes are asked for before the program can touch anything. */
static int setup(struct host *host, const char *spec, struct err *e)
{
	struct remora *r = CONTAINER_OF(host, struct remora, host);
	struct store_open how = host_store_open(host, first_guess(&host->options));
	struct region_options ro = region_options_of(&host->options);
	struct store *far;
	int err = spec_open(&far, spec, &how, e);

	if (err)
		return err;
	r->size = far->info.size;
	err = near_open(r, far, spec, e);
	if (!err && r->near->chunk)
		ro.chunk = r->near->chunk;
	if (r->as_file)
		ro.budget_bytes = file_budget_left(ro.budget_bytes);
	if (!err)
		err = first_make(r, e);
	if (!err)
		err = region_open(&r->region, host->loop, far, r->near, &ro, e);
	if (err) {
		if (r->near)
			r->near->ops->close(r->near);
		store_close_wait(far);
		return err;
	}
	if (r->as_file)
		err = file_engine_open(r, e);
	if (err) {
		store_close_wait(region_store(r->region));
		return err;
	}
	engine_name(r);
	for (size_t i = 0; i < r->first_count; i++)
		region_pull(r->region, &r->first[i].region);
	return 0;
}

/*
 * Loop's thread, the loop has stopped. Who may still hold a reference: the fault thread has ended
 * (remora_close), pulls that nobody waits for are ended by the region, as are its own requests by
 * the far store that it aborts and closes; then it closes the near store, and with it the program's
 * mapping. Nobody else.
 */
static void teardown(struct host *host)
{
	struct remora *r = CONTAINER_OF(host, struct remora, host);

	if (r->file)
		engine_file_close(r->file);
	store_close_wait(region_store(r->region));
	r->region = NULL;
	r->near = NULL;
}

static void remora_free(struct remora *r)
{
	engine_file_free(r->file);
	free(r->first);
	free(r);
}

/* Ends everything, saves nothing. */
static void shut_down(struct remora *r)
{
	if (!r->file)
		memory_serve_end(r->near);
	host_close(&r->host);
	remora_free(r);
}

static enum region_verdict on_fault(void *arg, uint64_t off, bool write)
{
	return region_fault(arg, off, write);
}

struct status_call {
	struct remora *r;
	struct region_status status;
};

static void status_run(void *arg)
{
	struct status_call *call = arg;
	struct file_counts counts;

	region_status(call->r->region, &call->status);
	if (!call->r->file)
		return;
	/* Through a file the program's faults are reads. */
	engine_file_count(call->r->file, &counts);
	call->status.faults_far = call->status.misses;
	call->status.fault_latency = counts.read_latency;
}

/* All of them are waited for, also behind a failure: the region has them until their ends. */
static int first_wait(struct remora *r, struct err *e)
{
	int err = 0;

	for (size_t i = 0; r->first_waits && i < r->first_count; i++) {
		int one = host_wait(&r->host, &r->first[i].wait);

		err = err ? err : one;
	}
	if (err) {
		struct status_call call = { .r = r };

		loop_call(r->host.loop, status_run, &call);
		err_sys(e, err, "pulling what shall be local at first%s%s",
			call.status.last_why[0] ? ": " : "", call.status.last_why);
	}
	return err;
}

int remora_open(struct remora **ret, const char *spec, const struct remora_options *options,
		struct remora_error *error)
{
	struct err e = { 0 };
	struct remora *r = calloc(1, sizeof(*r));
	int err;

	*ret = NULL;
	if (!r)
		return host_error(error, &e, err_sys(&e, -ENOMEM, "opening memory"));
	r->host.setup = setup;
	r->host.teardown = teardown;
	err = host_open(&r->host, spec, options, &e);
	if (err) {
		remora_free(r);
		return host_error(error, &e, err);
	}
	err = r->file ? engine_file_map(r->file, &e)
		      : memory_serve(r->near, on_fault, r->region, &e);
	if (!err)
		err = first_wait(r, &e);
	if (err)
		shut_down(r);
	else
		*ret = r;
	return host_error(error, &e, err);
}

/* ---- use ---- */

void *remora_data(const struct remora *r)
{
	return r->file ? engine_file_data(r->file) : memory_data(r->near);
}

uint64_t remora_size(const struct remora *r)
{
	return r->size;
}

int remora_flush(struct remora *r)
{
	const struct remora_options *o = &r->host.options;
	int err = host_may_wait(&r->host);

	if (!err && o->hooks.before_flush)
		err = o->hooks.before_flush(o->hooks.arg);
	if (err)
		return err < 0 ? err : -EINVAL;
	if (o->read_only || o->private_copy)
		return 0;
	if (r->file)
		err = engine_file_sync(r->file);
	if (err)
		return err;
	return host_request(&r->host, region_store(r->region), REQ_FLUSH, 0, NULL, 0, NULL);
}

int remora_pull(struct remora *r, uint64_t off, uint64_t len, int priority, unsigned flags)
{
	struct range range = range_of(off, len);
	struct pull own, *pull = &own;
	int err = host_may_wait(&r->host);

	if (err)
		return err;
	if (!range_within(range, r->size) || (flags & ~(unsigned)REMORA_PULL_WAIT))
		return -EINVAL;
	if (!len)
		return 0;
	if (!(flags & REMORA_PULL_WAIT))
		pull = malloc(sizeof(*pull));
	if (!pull)
		return -ENOMEM;
	pull_init(pull, r, range, priority);
	pull->post.run = pull_run;
	pull->alone = pull != &own;
	loop_post(r->host.loop, &pull->post);
	return pull == &own ? host_wait(&r->host, &own.wait) : 0;
}

struct range_call {
	struct region *region;
	struct range range;
	enum region_advice advice;
	int err;
};

static void invalidate_run(void *arg)
{
	struct range_call *call = arg;

	call->err = region_invalidate(call->region, call->range);
}

static void advise_run(void *arg)
{
	struct range_call *call = arg;

	region_advise(call->region, call->range, call->advice);
}

static int range_call(struct remora *r, struct range range, void (*run)(void *arg),
		      enum region_advice advice)
{
	struct range_call call = { .region = r->region, .range = range, .advice = advice };
	int err = host_may_wait(&r->host);

	if (!err && !range_within(range, r->size))
		err = -EINVAL;
	if (err || !range.len)
		return err;
	loop_call(r->host.loop, run, &call);
	return call.err;
}

int remora_invalidate(struct remora *r, uint64_t off, uint64_t len)
{
	int err;

	/* A part that is just being installed: for as long as it takes to copy it. */
	while ((err = range_call(r, range_of(off, len), invalidate_run, REGION_NORMAL)) == -EAGAIN)
		sched_yield();
	return err || !r->file || !len ? err : engine_file_invalidate(r->file, range_of(off, len));
}

int remora_advise(struct remora *r, uint64_t off, uint64_t len, enum remora_advice advice)
{
	static const enum region_advice to[] = {
		[REMORA_ADVICE_NORMAL] = REGION_NORMAL,
		[REMORA_ADVICE_SEQUENTIAL] = REGION_SEQUENTIAL,
		[REMORA_ADVICE_RANDOM] = REGION_RANDOM,
		[REMORA_ADVICE_DONTNEED] = REGION_DONTNEED,
	};

	if ((unsigned)advice >= ARRAY_LEN(to))
		return -EINVAL;
	if (advice == REMORA_ADVICE_WILLNEED)
		return remora_pull(r, off, len, 0, 0);
	return range_call(r, range_of(off, len), advise_run, to[advice]);
}

void remora_status(struct remora *r, struct remora_status *ret)
{
	struct status_call call = { .r = r };
	const struct region_status *from = &call.status;

	memset(ret, 0, sizeof(*ret));
	ret->size = r->size;
	ret->last_error = host_may_wait(&r->host);
	if (ret->last_error)
		return;
	loop_call(r->host.loop, status_run, &call);
	ret->chunk = from->chunk;
	ret->local_bytes = from->local_bytes;
	ret->dirty_bytes = from->dirty_bytes + from->unflushed_bytes;
	ret->budget = r->host.options.budget;
	ret->inflight_bytes = from->pulling_bytes + from->pushing_bytes;
	ret->faults = from->faults_far;
	ret->fault_p50_ns = hist_percentile(&from->fault_latency, 50);
	ret->fault_p99_ns = hist_percentile(&from->fault_latency, 99);
	ret->pulled_bytes = from->pulled_bytes;
	ret->pushed_bytes = from->pushed_bytes;
	ret->evicted_bytes = from->evicted_bytes;
	ret->flushes = from->flushes;
	ret->pull_errors = from->pull_errors;
	ret->push_errors = from->push_errors;
	ret->collect_ns = from->collect_ns;
	ret->last_error = from->last_err;
	ret->far_lost = from->far_lost;
	snprintf(ret->last_error_text, sizeof(ret->last_error_text), "%s", from->last_why);
	snprintf(ret->engine, sizeof(ret->engine), "%s", r->engine);
}

/* ---- closing ---- */

int remora_close(struct remora *r)
{
	const struct remora_options *o;
	int err;

	if (!r)
		return 0;
	o = &r->host.options;
	err = host_may_wait(&r->host);
	if (err)
		return err;
	if (o->hooks.before_close)
		o->hooks.before_close(o->hooks.arg);
	err = remora_flush(r);
	shut_down(r);
	return err;
}

void remora_discard(struct remora *r)
{
	if (r && host_may_wait(&r->host) == 0)
		shut_down(r);
}
