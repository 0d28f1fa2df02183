/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a mount tells about itself: docs/control.md has every member.
 *
 * Place: reads the region's, the file's and the stores' counts.
 *
 * Rates are differences between samples: one is taken at each question, while pulls make progress,
 * and once a second for as long as questions have come lately; an idle mount that nobody looks at
 * is not woken.
 *
 * Invariant: nothing here changes anything but samples.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cmd/mount.h"
#include "config.h"

#define SAMPLE_NS (NS_PER_S / 4)    /* apart, at least */
#define SAMPLER_NS NS_PER_S
#define ASKED_NS (10 * NS_PER_S)    /* so long somebody is thought to look on */
#define WINDOW_NS (3 * NS_PER_S)    /* rates are of that long */
#define CELLS_MAX 65536
#define CELL_CHUNKS 256u	    /* of a cell that are looked at, at most */
#define LOOKS_MAX (4u * 1024 * 1024) /* of a map */
#define STATUS_TEXT_MAX 512u

static void put_int(json_t *to, const char *name, uint64_t value)
{
	json_object_set_new(to, name, json_integer((json_int_t)MIN(value, (uint64_t)INT64_MAX)));
}

/* ---- rates ---- */

void mount_sample(struct mount *m)
{
	const struct mount_sample *last = &m->sample[(m->samples - 1) % MOUNT_SAMPLES];
	uint64_t now = loop_now(m->run.loop);

	if (!m->region || (m->samples && now - last->ns < SAMPLE_NS))
		return;
	region_status(m->region, &m->status);
	m->sample[m->samples++ % MOUNT_SAMPLES] = (struct mount_sample){
		now, m->status.pulled_bytes, m->status.pushed_bytes
	};
}

static void sampler_fire(struct timer *timer)
{
	struct mount *m = CONTAINER_OF(timer, struct mount, sampler);

	mount_sample(m);
	if (loop_now(m->run.loop) - m->asked_ns < ASKED_NS)
		timer_set(m->run.loop, timer, loop_now(m->run.loop) + SAMPLER_NS);
}

static void rates(struct mount *m, json_t *to)
{
	uint64_t now = loop_now_fresh(m->run.loop), ns = 0, pulled = 0, pushed = 0;

	for (unsigned i = 1; i <= MIN(m->samples, MOUNT_SAMPLES); i++) {
		const struct mount_sample *s = &m->sample[(m->samples - i) % MOUNT_SAMPLES];

		if (now - s->ns > WINDOW_NS + SAMPLER_NS)
			break;
		ns = now - s->ns;
		pulled = m->status.pulled_bytes - s->pulled;
		pushed = m->status.pushed_bytes - s->pushed;
		if (ns >= WINDOW_NS)
			break;
	}
	/* From a moment ago nothing can be told. */
	if (ns < SAMPLE_NS / 2)
		ns = 0;
	put_int(to, "pull_rate", ns ? (uint64_t)((double)pulled * 1e9 / (double)ns) : 0);
	put_int(to, "push_rate", ns ? (uint64_t)((double)pushed * 1e9 / (double)ns) : 0);
}

/* ---- counts ---- */

static json_t *latency(uint64_t count, uint64_t bytes, const struct hist *h)
{
	json_t *ret = json_object();

	put_int(ret, "count", count);
	put_int(ret, "bytes", bytes);
	put_int(ret, "p50_ns", hist_percentile(h, 50));
	put_int(ret, "p90_ns", hist_percentile(h, 90));
	put_int(ret, "p99_ns", hist_percentile(h, 99));
	put_int(ret, "max_ns", h->max_ns);
	return ret;
}

static void file_counted(const struct mount *m, json_t *to)
{
	AUTO_FREE struct file_counts *n = calloc(1, sizeof(*n));

	if (!n)
		return;
	file_count(m->file, n);
	json_object_set_new(to, "read", latency(n->reads, n->bytes_read, &n->read_latency));
	json_object_set_new(to, "write", latency(n->writes, n->bytes_written, &n->write_latency));
	json_object_set_new(to, "sync", latency(n->syncs, 0, &n->sync_latency));
}

static json_t *stage(struct store *s)
{
	AUTO_FREE struct hist *h = calloc(1, sizeof(*h));
	uint64_t requests = 0, failed = 0, bytes = 0;
	char text[STATUS_TEXT_MAX] = "";
	json_t *ret = json_object();

	for (int op = 0; h && op < REQ_OPS; op++) {
		requests += s->counts[op].done;
		failed += s->counts[op].failed;
		bytes += s->counts[op].bytes;
		hist_merge(h, &s->counts[op].latency);
	}
	if (s->ops->status)
		s->ops->status(s, text, sizeof(text));
	json_object_set_new(ret, "name", json_string(s->ops->name));
	put_int(ret, "requests", requests);
	put_int(ret, "failed", failed);
	put_int(ret, "bytes", bytes);
	put_int(ret, "p50_ns", h ? hist_percentile(h, 50) : 0);
	put_int(ret, "p99_ns", h ? hist_percentile(h, 99) : 0);
	json_object_set_new(ret, "status", json_string(text));
	return ret;
}

static json_t *stages(struct mount *m)
{
	json_t *ret = json_array();

	if (m->region)
		json_array_append_new(ret, stage(m->store));
	for (struct store *s = m->far; s; s = s->next)
		json_array_append_new(ret, stage(s));
	return ret;
}

static void region_counted(struct mount *m, json_t *to)
{
	const struct region_status *st = &m->status;

	region_status(m->region, &m->status);
	put_int(to, "chunk", st->chunk);
	put_int(to, "local_bytes", st->local_bytes);
	put_int(to, "dirty_bytes", st->dirty_bytes);
	put_int(to, "unflushed_bytes", st->unflushed_bytes);
	put_int(to, "unsafe_bytes", st->unsafe_bytes);
	put_int(to, "pulling_bytes", st->pulling_bytes);
	put_int(to, "pushing_bytes", st->pushing_bytes);
	put_int(to, "budget_bytes", m->budget);
	put_int(to, "inflight_bytes", st->inflight_bytes_max);
	put_int(to, "pulled_bytes", st->pulled_bytes);
	put_int(to, "pushed_bytes", st->pushed_bytes);
	put_int(to, "evicted_bytes", st->evicted_bytes);
	if (m->near_dir) {
		json_object_set_new(to, "near", control_text(m->near_dir));
		put_int(to, "near_damaged_bytes", st->near_damaged_bytes);
		put_int(to, "near_journal_bytes", st->near_extra_bytes);
	}
	put_int(to, "hits", st->hits);
	put_int(to, "misses", st->misses);
	put_int(to, "rtt_ns", st->trip_ns);
	put_int(to, "flushes", st->flushes);
	put_int(to, "pull_errors", st->pull_errors);
	put_int(to, "push_errors", st->push_errors);
	rates(m, to);
	mount_sample(m);
}

/* A store alone does not know when it was. */
static json_t *last_error(struct mount *m)
{
	int err = m->region ? m->status.last_err : m->store->last_err;
	const char *why = m->region ? m->status.last_why : m->store->last_why, *code;
	json_t *ret;

	if (!err)
		return json_null();
	code = strerrorname_np(-err);
	ret = json_pack("{s:s, s:o}", "code", code ? code : "EIO", "text",
			control_text(*why ? why : strerror(-err)));
	if (ret && m->region)
		put_int(ret, "time_ns",
			env_wall_ns() - (loop_now_fresh(m->run.loop) - m->status.last_err_ns));
	return ret;
}

/* ---- the map ---- */

/* What one cell shows: the most telling letter, and how much of it is local, in tenths. */
static char cell_tell(const char *chunk, size_t count, char *ret_fill)
{
	static const char order[] = "*>+~<#.";
	size_t best = sizeof(order) - 2, halves = 0;

	for (size_t i = 0; i < count; i++) {
		const char *at = strchr(order, chunk[i]);
		size_t rank = at && *at ? (size_t)(at - order) : sizeof(order) - 2;

		best = MIN(best, rank);
		if (chunk[i] == '~')
			halves += 1;
		else if (strchr("*>+#", chunk[i]))
			halves += 2;
	}
	*ret_fill = (char)('0' + halves * 9 / (2 * count));
	return order[best];
}

static void cell_draw(struct region *r, uint64_t first, uint64_t end, unsigned looks, char *buf,
		      size_t *ret_count)
{
	uint64_t count = end - first;

	if (count <= looks) {
		region_map_draw(r, first, count, buf);
		*ret_count = (size_t)count;
		return;
	}
	for (unsigned i = 0; i < looks; i++)
		region_map_draw(r, first + (uint64_t)((double)count * i / looks), 1, buf + i);
	*ret_count = looks;
}

static json_t *map(struct mount *m, uint64_t cells)
{
	uint64_t chunks = (m->size + m->status.chunk - 1) / m->status.chunk;
	AUTO_FREE char *cell = NULL, *fill = NULL;
	char buf[CELL_CHUNKS];
	unsigned looks;

	cells = MIN(cells, chunks);
	looks = (unsigned)MIN((uint64_t)CELL_CHUNKS, LOOKS_MAX / MAX(cells, 1u));
	cell = calloc(1, cells + 1);
	fill = calloc(1, cells + 1);
	if (!cell || !fill)
		return json_null();
	for (uint64_t i = 0; i < cells; i++) {
		/* chunks < 2^40, cells < 2^17: no overflow */
		uint64_t first = i * chunks / cells, end = (i + 1) * chunks / cells;
		size_t count;

		cell_draw(m->region, first, end, looks, buf, &count);
		cell[i] = cell_tell(buf, count, &fill[i]);
	}
	return json_pack("{s:I, s:s, s:s}", "chunks", (json_int_t)chunks, "cells", cell, "fill",
			 fill);
}

/* ---- the whole ---- */

static const char *state(const struct mount *m)
{
	return m->end.gone ? "detached" : m->end.phase <= END_USERS ? "serving" : "ending";
}

static void general(struct mount *m, json_t *to)
{
	char engine[96];

	mount_engine(m, engine, sizeof(engine));
	json_object_set_new(to, "kind", json_string("mount"));
	put_int(to, "pid", (uint64_t)getpid());
	json_object_set_new(to, "version", json_string(REMORA_VERSION));
	json_object_set_new(to, "target", json_string(m->path));
	json_object_set_new(to, "spec", json_string(m->spec));
	json_object_set_new(to, "state", json_string(state(m)));
	put_int(to, "started_ns", m->started_ns);
	json_object_set_new(to, "engine", json_string(engine));
	json_object_set_new(to, "mode", json_string(m->direct ? "direct" : "managed"));
	json_object_set_new(to, "read_only",
			    json_boolean(m->read_only || m->store->info.read_only));
	put_int(to, "users", file_users(m->file));
	put_int(to, "size", m->size);
}

static void profile_told(struct mount *m, json_t *to)
{
	struct profile_progress p;

	if (!m->profile_run)
		return;
	profile_run_progress(m->profile_run, &p);
	json_object_set_new(to, "profile",
			    json_pack("{s:I, s:I, s:I, s:I, s:I}", "ranges", (json_int_t)p.ranges,
				      "ranges_done", (json_int_t)p.ranges_done, "bytes",
				      (json_int_t)p.bytes, "bytes_done", (json_int_t)p.bytes_done,
				      "failed", (json_int_t)p.failed));
}

void mount_status(void *arg, struct control_call *call, json_t *args)
{
	static const char *const losses[] = { "wait", "error", "readonly" };
	struct mount *m = arg;
	int64_t cells = 0;
	const struct control_arg known[] = {
		{ "map", CONTROL_INT, &cells, 1, CELLS_MAX },
		{ 0 },
	};
	json_t *to;

	if (control_args(call, args, known) || !mount_up(m, call))
		return;
	to = json_object();
	general(m, to);
	if (m->region) {
		region_counted(m, to);
		json_object_set_new(to, "on_loss", json_string(losses[m->on_loss]));
		put_int(to, "deadline_ns", m->deadline_ns ? m->deadline_ns : 60 * NS_PER_S);
		profile_told(m, to);
		m->asked_ns = loop_now(m->run.loop);
		m->sampler.fire = sampler_fire;
		if (!timer_is_set(&m->sampler))
			timer_set(m->run.loop, &m->sampler, m->asked_ns + SAMPLER_NS);
	}
	file_counted(m, to);
	json_object_set_new(to, "stages", stages(m));
	json_object_set_new(to, "far",
			    json_string((m->region ? m->status.far_lost : m->far_away) ? "away" :
										      "up"));
	json_object_set_new(to, "last_error", last_error(m));
	if (cells && m->region)
		json_object_set_new(to, "map", map(m, (uint64_t)cells));
	control_ok(call, to);
}
