/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora info: what a resource is, what it can do, how far away it is, and how much of it is data.
 *
 * Place: a maker of requests, one at a time.
 *
 * Invariant: effort is bounded: a few tiny reads, and extents until a limit of time and of number.
 *
 * Locking: none; one loop.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/cmd.h"
#include "store/spec.h"

#define PROBES 9u
#define PROBE_NS_MAX (3 * NS_PER_S)
#define EXTENTS_NS_MAX (2 * NS_PER_S)
#define EXTENTS_CALLS_MAX 256u

struct info {
	struct store *store;
	const struct store_info *info;
	/* reads */
	unsigned probes;
	uint64_t probe_min_ns, probe_median_ns;
	/* extents */
	uint64_t data, zeros, extents, looked_at; /* bytes, but for the number of extents */
};

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static int info_probe(struct info *in, struct err *e)
{
	uint64_t size = in->info->size, ns[PROBES], begin = loop_now_fresh(in->store->loop);
	uint8_t byte;

	if (!size)
		return 0;
	for (unsigned i = 0; i < PROBES; i++) {
		uint64_t start = loop_now_fresh(in->store->loop);
		int r = store_read(in->store, size / PROBES * i, &byte, 1);

		if (r)
			return err_sys(e, r, "reading%s%s", *in->store->last_why ? ": " : "",
				       in->store->last_why);
		ns[in->probes++] = loop_now_fresh(in->store->loop) - start;
		if (loop_now_fresh(in->store->loop) - begin > PROBE_NS_MAX)
			break;
	}
	qsort(ns, in->probes, sizeof(ns[0]), compare_u64);
	in->probe_min_ns = ns[0];
	in->probe_median_ns = ns[in->probes / 2];
	return 0;
}

static int info_extents(struct info *in, struct err *e)
{
	AUTO_FREE struct extent *at = calloc(REQ_EXTENTS_MAX, sizeof(*at));
	uint64_t size = in->info->size, begin = loop_now_fresh(in->store->loop);

	if (!at)
		return err_sys(e, -ENOMEM, "extents");
	if (in->info->extents != CAP_NATIVE)
		return 0;
	for (unsigned calls = 0; in->looked_at < size && calls < EXTENTS_CALLS_MAX; calls++) {
		struct extents x = { .at = at, .max = REQ_EXTENTS_MAX };
		int r = store_extents(in->store, in->looked_at, size - in->looked_at, &x);

		if (r)
			return err_sys(e, r, "asking for extents");
		for (size_t i = 0; i < x.count; i++) {
			*(at[i].zero ? &in->zeros : &in->data) += at[i].len;
			in->looked_at += at[i].len;
		}
		in->extents += x.count;
		if (loop_now_fresh(in->store->loop) - begin > EXTENTS_NS_MAX)
			break;
	}
	return 0;
}

static const char *cap_name(enum cap cap)
{
	static const char *const names[] = {
		[CAP_NONE] = "none", [CAP_EMULATED] = "emulated", [CAP_NATIVE] = "native"
	};

	CHECK(cap < ARRAY_LEN(names));
	return names[cap];
}

static void info_json(const struct info *in, const char *spec)
{
	const struct store_info *i = in->info;
	char instance[24], identity[24];
	json_t *j;

	snprintf(instance, sizeof(instance), "%016llx", (unsigned long long)i->instance);
	snprintf(identity, sizeof(identity), "%016llx", (unsigned long long)i->identity);
	j = json_pack(
		"{s:s, s:I, s:I, s:I, s:I, s:b, s:s*, s:s*, s:{s:s, s:s, s:s, s:s, s:s, s:s}}",
		"spec", spec, "size", (json_int_t)i->size, "chunk", (json_int_t)i->chunk, "align",
		(json_int_t)i->align, "len_max", (json_int_t)i->len_max, "read_only", i->read_only,
		"instance", i->instance ? instance : NULL, "identity",
		i->identity ? identity : NULL, "capabilities", "flush", cap_name(i->flush), "fua",
		cap_name(i->fua), "zero", cap_name(i->zero), "trim", cap_name(i->trim), "extents",
		cap_name(i->extents), "prefetch", cap_name(i->prefetch));
	CHECK(j);
	if (in->probes)
		json_object_set_new(
			j, "read_ns",
			json_pack("{s:I, s:I, s:i}", "min", (json_int_t)in->probe_min_ns, "median",
				  (json_int_t)in->probe_median_ns, "reads", (int)in->probes));
	if (in->looked_at)
		json_object_set_new(j, "extents",
				    json_pack("{s:I, s:I, s:I, s:I}", "data", (json_int_t)in->data,
					      "zeros", (json_int_t)in->zeros, "count",
					      (json_int_t)in->extents, "looked_at",
					      (json_int_t)in->looked_at));
	out_json(j);
}

static void row(const char *name)
{
	printf("  %s%-10s%s ", out_color(stdout, OUT_BOLD), name, out_color(stdout, OUT_PLAIN));
}

static void info_print(const struct info *in, const char *spec)
{
	const struct store_info *i = in->info;
	char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];

	printf("%s\n", spec);
	row("size");
	printf("%s (%llu bytes)\n", size_format(i->size, a), (unsigned long long)i->size);
	row("access");
	printf("%s\n", i->read_only ? "read" : "read, write");
	row("chunk");
	printf("%s; longest request %s; ", size_format(i->chunk, a), size_format(i->len_max, b));
	printf(i->align > 1 ? "aligned to %s\n" : "any alignment\n", size_format(i->align, a));
	row("can");
	printf("flush %s, fua %s, zero %s,\n             trim %s, extents %s, prefetch %s\n",
	       cap_name(i->flush), cap_name(i->fua), cap_name(i->zero), cap_name(i->trim),
	       cap_name(i->extents), cap_name(i->prefetch));
	if (i->identity) {
		row("identity");
		printf("%016llx\n", (unsigned long long)i->identity);
	}
	if (i->instance) {
		row("instance");
		printf("%016llx (new at each start of its server)\n",
		       (unsigned long long)i->instance);
	}
	if (in->probes) {
		row("read");
		printf("1 byte in %s at best, %s in the middle (%u reads)\n",
		       time_format(in->probe_min_ns, a), time_format(in->probe_median_ns, b),
		       in->probes);
	}
	if (in->looked_at) {
		row("data");
		printf("%s; zeros %s; %llu extent%s", size_format(in->data, a),
		       size_format(in->zeros, b), (unsigned long long)in->extents,
		       in->extents == 1 ? "" : "s");
		if (in->looked_at < i->size)
			printf(" (of the first %s)", size_format(in->looked_at, a));
		putchar('\n');
	}
}

/* With the right to write if that is to be had: it is one of the things to tell. */
static int info_open(struct info *in, const char *spec, struct store_open *how, struct err *e)
{
	int r = run_spec_open(&in->store, spec, how, e);

	if (r != -EACCES && r != -EPERM && r != -EROFS && r != -ETXTBSY)
		return r;
	how->read_only = true;
	return run_spec_open(&in->store, spec, how, e);
}

int cmd_info(int argc, char **argv)
{
	bool probe = true;
	const struct opt options[] = {
		{ "no-read", 0, OPT_NOT, NULL,
		  "reads nothing of the resource, only what opening it tells", &probe },
		{ 0 },
	};
	const struct usage usage = {
		.name = "info",
		.args = "[OPTION]... SPEC",
		.options = options,
		.more = "Examples:\n"
			"  remora info disk.img\n"
			"  remora info --json remora://127.0.0.1:7000/disk.img\n",
		.args_min = 1,
		.args_max = 1,
		.json = true,
		.loop = true,
	};
	struct store_open how = { .deadline_ns = NEVER_NS };
	struct info in = { 0 };
	struct common common;
	struct err e = { 0 };
	struct run run;
	int r = options_parse(&usage, &common, argc, argv);

	if (r >= 0)
		return r;
	r = run_open(&run, &common, &e);
	if (r)
		return say_failed(&e, NULL);
	how.loop = run.loop;
	r = info_open(&in, argv[optind], &how, &e);
	if (!r)
		in.info = &in.store->info;
	if (!r && probe)
		r = info_probe(&in, &e);
	if (!r && probe)
		r = info_extents(&in, &e);
	if (!r && common.json)
		info_json(&in, argv[optind]);
	else if (!r)
		info_print(&in, argv[optind]);
	if (r)
		r = say_failed(&e, NULL);
	store_close_wait(in.store);
	run_close(&run);
	return out_end(r);
}
