/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora verify: reads all of a resource, and says what is not what was written: by the checksums
 * of its checksum stage, or by comparing it with another resource. What is bad can be repaired from
 * a copy, and what has no checksum yet can get one.
 *
 * Place: a maker of requests, many at a time. With checksums they go to the checksum stage itself,
 * in whole chunks; stages above it are not asked.
 *
 *   slot:  read some chunks ── all good ── the next ones
 *             └─ bad: one by one ── bad: marked ── [copy read, it fits ── written ── read again]
 *
 * Invariants: what is written has the digest that was recorded before. Nothing is written without
 * --repair-from or --record. A chunk is in `bad` when it was found bad, and in `mended` when it was
 * read well after it had been repaired.
 *
 * Locking: none; one loop.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/copy.h"
#include "stage/stage.h"
#include "store/spec.h"

#define UNIT (1 * MIB)
#define SLOTS 32u
#define COMPARE_GRAIN 4096u

struct check;

enum step { STEP_READ, STEP_COPY, STEP_WRITE, STEP_AGAIN, STEP_RECORD };

struct slot {
	struct check *c;
	struct range range; /* of the request under way */
	uint64_t end;	    /* where one by one ends */
	enum step step;
	unsigned reading; /* comparing: sides that have not answered */
	struct {
		struct req req;
		uint8_t *buf;
	} side[2];
};

struct check {
	struct run run;
	struct common common;
	struct progress progress;
	const char *spec, *against, *repair;
	bool record;
	unsigned progress_kind;
	struct store *store, *other;
	struct store *at; /* that is asked: the checksum stage, or the whole row */
	uint64_t size, unit, grain;
	struct slot slot[SLOTS];
	uint8_t *buffers;
	unsigned active;
	uint64_t pos;
	bool stopping, interrupted, finished, wrote;
	uint64_t *bad, *mended; /* a bit per grain */
	size_t grains;
	/* bytes */
	uint64_t done, unverified, recorded, doubtful;
	struct err error;
	char why[160]; /* of the first that was bad */
	char copy_why[160]; /* why the first could not be repaired */
};

static void slot_next(struct check *c, struct slot *s);
static void slot_read_done(struct req *req, int err);

/* What is there is wrong, or cannot be read at all; other errors end the run. */
static bool is_bad(int err)
{
	return err == -EIO || err == -EILSEQ || err == -EBADMSG || err == -ENODATA;
}

static void check_fail(struct check *c, int err, const char *what, const struct req *req)
{
	if (!c->error.code && !(c->stopping && err == -ESHUTDOWN))
		err_set(&c->error, err, "%s at byte %llu: %s", what,
			(unsigned long long)req->range.off,
			req->ret_why ? req->ret_why : strerror(-err));
	c->stopping = true;
}

static void slot_send(struct slot *s, enum step step, struct store *to, enum req_op op, int side)
{
	s->step = step;
	s->side[side].req = (struct req){
		.op = op,
		.range = s->range,
		.data = { s->side[side].buf, (size_t)s->range.len },
		.done = slot_read_done,
		.user = s,
	};
	req_submit(to, &s->side[side].req);
}

static void range_mark(const struct check *c, uint64_t *bits, struct range r)
{
	size_t first = r.off / c->grain;

	bitmap_set_range(bits, first, (range_end(r) + c->grain - 1) / c->grain - first);
}

/* The next chunk of those that are looked at one by one; or something new. */
static void slot_go_on(struct check *c, struct slot *s)
{
	c->done += s->range.len;
	if (range_end(s->range) >= s->end || c->stopping) {
		slot_next(c, s);
		return;
	}
	s->range = range_of(range_end(s->range), MIN(c->grain, s->end - range_end(s->range)));
	slot_send(s, STEP_READ, c->at, REQ_READ, 0);
}

/* ---- checksums ---- */

static void chunk_bad(struct check *c, struct slot *s, const struct req *req, int err)
{
	if (!*c->why)
		snprintf(c->why, sizeof(c->why), "%s",
			 req->ret_why ? req->ret_why : strerror(-err));
	range_mark(c, c->bad, s->range);
	if (!c->repair || stage_checksum_known(c->at, s->range.off) != CHECKSUM_KNOWN) {
		slot_go_on(c, s);
		return;
	}
	slot_send(s, STEP_COPY, c->other, REQ_READ, 0);
}

static void chunk_not_mended(struct check *c, struct slot *s, const char *what)
{
	if (!*c->copy_why)
		snprintf(c->copy_why, sizeof(c->copy_why), "%s", what);
	slot_go_on(c, s);
}

static void copy_read(struct check *c, struct slot *s, const struct req *req, int err)
{
	if (err) {
		chunk_not_mended(c, s, req->ret_why ? req->ret_why : strerror(-err));
	} else if (!stage_checksum_fits(c->at, s->range.off, s->side[0].buf)) {
		chunk_not_mended(c, s, "the copy is not what was written either");
	} else {
		c->wrote = true;
		slot_send(s, STEP_WRITE, c->at, REQ_WRITE, 0);
	}
}

static void chunk_read(struct check *c, struct slot *s, const struct req *req, int err)
{
	if (!err && c->record &&
	    stage_checksum_known(c->at, s->range.off) == CHECKSUM_UNKNOWN) {
		c->wrote = true;
		slot_send(s, STEP_RECORD, c->at, REQ_WRITE, 0);
	} else if (!err) {
		slot_go_on(c, s);
	} else if (is_bad(err) && s->range.len > c->grain) {
		s->range.len = c->grain; /* which of them? */
		slot_send(s, STEP_READ, c->at, REQ_READ, 0);
	} else if (is_bad(err)) {
		chunk_bad(c, s, req, err);
	} else {
		check_fail(c, err, "reading", req);
		slot_next(c, s);
	}
}

static void chunk_step_done(struct check *c, struct slot *s, const struct req *req, int err)
{
	switch (s->step) {
	case STEP_READ:
		chunk_read(c, s, req, err);
		break;
	case STEP_COPY:
		copy_read(c, s, req, err);
		break;
	case STEP_WRITE:
		if (err)
			chunk_not_mended(c, s, req->ret_why ? req->ret_why : strerror(-err));
		else
			slot_send(s, STEP_AGAIN, c->at, REQ_READ, 0);
		break;
	case STEP_AGAIN:
		if (err) {
			chunk_not_mended(c, s, "it was written, and is bad again");
			break;
		}
		range_mark(c, c->mended, s->range);
		slot_go_on(c, s);
		break;
	case STEP_RECORD:
		if (err)
			check_fail(c, err, "recording", req);
		else
			c->recorded += s->range.len;
		slot_go_on(c, s);
		break;
	}
}

/* From c->pos on: chunks of which something is known, or one to be recorded. */
static bool chunks_next(struct check *c, struct range *ret)
{
	while (c->pos < c->size) {
		enum checksum_known known = stage_checksum_known(c->at, c->pos);
		uint64_t end = MIN(c->pos + c->grain, c->size), from = c->pos;

		if (known == CHECKSUM_UNKNOWN) {
			c->pos = end;
			if (c->record) {
				*ret = range_between(from, end);
				return true;
			}
			c->unverified += end - from;
			c->done += end - from;
			continue;
		}
		while (end < c->size && end - from < c->unit &&
		       stage_checksum_known(c->at, end) != CHECKSUM_UNKNOWN)
			end = MIN(end + c->grain, c->size);
		for (uint64_t off = from; off < end; off += c->grain)
			if (stage_checksum_known(c->at, off) == CHECKSUM_DOUBTFUL)
				c->doubtful += MIN(c->grain, c->size - off);
		c->pos = end;
		*ret = range_between(from, end);
		return true;
	}
	return false;
}

/* ---- comparing ---- */

static void slot_compare(struct check *c, struct slot *s)
{
	for (uint64_t at = 0; at < s->range.len; at += c->grain) {
		uint64_t len = MIN(c->grain, s->range.len - at);

		if (memcmp(s->side[0].buf + at, s->side[1].buf + at, len))
			range_mark(c, c->bad, range_of(s->range.off + at, len));
	}
}

static void compare_step_done(struct check *c, struct slot *s, const struct req *req, int err)
{
	if (err && req == &s->side[0].req && is_bad(err)) {
		if (!*c->why)
			snprintf(c->why, sizeof(c->why), "%s",
				 req->ret_why ? req->ret_why : strerror(-err));
		range_mark(c, c->bad, s->range);
	} else if (err) {
		check_fail(c, err, req == &s->side[0].req ? "reading" : "reading the other one",
			   req);
	}
	if (err)
		s->end = s->range.off; /* nothing to compare */
	if (--s->reading)
		return;
	if (s->end == range_end(s->range))
		slot_compare(c, s);
	c->done += s->range.len;
	slot_next(c, s);
}

/* ---- both ---- */

static void slot_read_done(struct req *req, int err)
{
	struct slot *s = req->user;
	struct check *c = s->c;

	if (c->against)
		compare_step_done(c, s, req, err);
	else if (c->stopping && err == -ESHUTDOWN)
		slot_next(c, s);
	else
		chunk_step_done(c, s, req, err);
}

static bool range_next(struct check *c, struct range *ret)
{
	if (c->stopping || c->pos >= c->size)
		return false;
	if (!c->against)
		return chunks_next(c, ret);
	*ret = range_of(c->pos, MIN(c->unit, c->size - c->pos));
	c->pos = range_end(*ret);
	return true;
}

static void slot_next(struct check *c, struct slot *s)
{
	if (!range_next(c, &s->range)) {
		c->active--; /* it has ended */
		c->finished = !c->active;
		return;
	}
	s->end = range_end(s->range);
	if (c->against) {
		s->reading = 2;
		slot_send(s, STEP_READ, c->store, REQ_READ, 0);
		slot_send(s, STEP_READ, c->other, REQ_READ, 1);
	} else {
		slot_send(s, STEP_READ, c->at, REQ_READ, 0);
	}
}

static void check_signal(struct run *run)
{
	struct check *c = CONTAINER_OF(run, struct check, run);

	if (run->signals > 1)
		_exit(CMD_INCOMPLETE);
	c->interrupted = c->stopping = true; /* what is under way ends, repairs as a whole */
}

/* ---- opening ---- */

static int other_open(struct check *c, struct store_open *how, struct err *e)
{
	const char *spec = c->against ? c->against : c->repair;
	int r;

	if (!spec)
		return 0;
	how->read_only = true;
	r = run_spec_open(&c->other, spec, how, e);
	if (!r && c->other->info.size < c->size)
		r = err_set(e, -EINVAL, "%s has %llu bytes, and %s has %llu", spec,
			    (unsigned long long)c->other->info.size, c->spec,
			    (unsigned long long)c->size);
	return r;
}

static int check_open(struct check *c, struct err *e)
{
	struct store_open how = { .loop = c->run.loop, .deadline_ns = NEVER_NS };
	uint64_t len_max, sides = c->against ? 2 : 1;
	int r;

	how.read_only = !c->repair && !c->record;
	r = run_spec_open(&c->store, c->spec, &how, e);
	if (r)
		return r;
	c->at = c->against ? c->store : stage_checksum_find(c->store);
	if (!c->at)
		return err_set(
			e, -EINVAL,
			"%s has no checksum stage, and nothing to compare it with was given: "
			"\"checksum:file=PATH|...\", or --against SPEC",
			c->spec);
	c->size = c->at->info.size;
	if ((r = other_open(c, &how, e)))
		return r;
	c->grain = c->against ? COMPARE_GRAIN : c->at->info.align;
	len_max = c->other ? MIN(c->at->info.len_max, c->other->info.len_max) : c->at->info.len_max;
	c->unit = align_down(MIN(UNIT, len_max), c->grain);
	if (!c->unit || (c->other && c->other->info.align > c->grain))
		return err_set(e, -EINVAL, "%s takes only requests of another length",
			       c->against ? c->against : c->spec);
	c->grains = (size_t)((c->size + c->grain - 1) / c->grain);
	c->bad = calloc(2 * BITMAP_WORDS(c->grains) + 1, sizeof(uint64_t));
	c->buffers = aligned_alloc(PAGE_BYTES, SLOTS * sides * c->unit);
	if (!c->bad || !c->buffers)
		return err_sys(e, -ENOMEM, "memory for %s", c->spec);
	c->mended = c->bad + BITMAP_WORDS(c->grains);
	for (size_t i = 0; i < SLOTS; i++) {
		c->slot[i].c = c;
		c->slot[i].side[0].buf = c->buffers + i * sides * c->unit;
		c->slot[i].side[1].buf = c->slot[i].side[0].buf + (sides - 1) * c->unit;
	}
	return 0;
}

static int check_run(struct check *c, struct err *e)
{
	int r = 0;

	c->run.on_signal = check_signal;
	progress_start(&c->progress, c->run.loop, c->progress_kind,
		       c->against ? "compare" : "verify", &c->done, c->size);
	c->active = SLOTS;
	for (size_t i = 0; i < SLOTS; i++)
		slot_next(c, &c->slot[i]);
	if (!c->finished)
		r = loop_run_until(c->run.loop, &c->finished, NEVER_NS);
	progress_stop(&c->progress);
	if (r)
		return err_sys(e, r, "the event loop");
	if (c->wrote && (r = store_flush(c->at)))
		return err_sys(e, r, "%s: making safe what was repaired", c->spec);
	*e = c->error;
	return c->error.code;
}

/* ---- telling ---- */


/* The next run of bad grains that have the same fate. */
static bool bad_next(const struct check *c, size_t *at, struct range *ret, bool *ret_mended)
{
	size_t first = bitmap_next_set(c->bad, c->grains, *at), i = first;

	if (first == c->grains)
		return false;
	*ret_mended = bitmap_get(c->mended, first);
	while (i < c->grains && bitmap_get(c->bad, i) && bitmap_get(c->mended, i) == *ret_mended)
		i++;
	*at = i;
	*ret = range_between(first * c->grain, MIN((uint64_t)i * c->grain, c->size));
	return true;
}

static void bad_sum(const struct check *c, uint64_t *ret_left, uint64_t *ret_mended)
{
	struct range r;
	bool mended;

	*ret_left = *ret_mended = 0;
	for (size_t at = 0; bad_next(c, &at, &r, &mended);)
		*(mended ? ret_mended : ret_left) += r.len;
}

static void result_json(const struct check *c, const struct err *e, int code)
{
	json_t *ranges = json_array(), *j;
	uint64_t left = 0, healed = 0;
	struct range r;
	bool mended;

	CHECK(ranges);
	if (c->bad)
		bad_sum(c, &left, &healed);
	for (size_t at = 0; c->bad && bad_next(c, &at, &r, &mended);)
		json_array_append_new(ranges,
				      json_pack("{s:I, s:I, s:b}", "offset", (json_int_t)r.off,
						"length", (json_int_t)r.len, "repaired", mended));
	j = json_pack("{s:s, s:I, s:I, s:b, s:o, s:I, s:I, s:I, s:I, s:I}", "spec", c->spec, "size",
		      (json_int_t)c->size, "done", (json_int_t)c->done, "complete",
		      code == CMD_OK || code == CMD_DATA, "bad", ranges, "bad_bytes",
		      (json_int_t)left, "repaired_bytes", (json_int_t)healed, "unverified_bytes",
		      (json_int_t)c->unverified, "recorded_bytes", (json_int_t)c->recorded,
		      "doubtful_bytes", (json_int_t)c->doubtful);
	CHECK(j);
	if (e->code)
		json_object_set_new(j, "error", json_string(e->text));
	if (*c->why)
		json_object_set_new(j, "first", json_string(c->why));
	out_json(j);
}

static void result_text(const struct check *c, uint64_t left, uint64_t healed)
{
	char size[SIZE_TEXT_MAX], part[SIZE_TEXT_MAX];
	struct range r;
	bool mended;

	for (size_t at = 0; bad_next(c, &at, &r, &mended);)
		printf("%s %llu+%llu\n", mended ? "repaired" : "bad", (unsigned long long)r.off,
		       (unsigned long long)r.len);
	printf("%s %s: ", c->against ? "compared" : "verified",
	       size_format(c->done - c->unverified, size));
	if (!left && !healed)
		printf("%s", c->against ? "no difference" : "all of it is what was written");
	if (healed)
		printf("%s repaired", size_format(healed, part));
	if (left)
		printf("%s%s %s", healed ? ", " : "", size_format(left, part),
		       c->against ? "differ" : "bad");
	if (c->recorded)
		printf("; %s recorded for the first time", size_format(c->recorded, part));
	if (c->unverified)
		printf("; %s without checksum (--record records it)",
		       size_format(c->unverified, part));
	if (c->doubtful)
		printf("; %s taken for right after a crash", size_format(c->doubtful, part));
	printf("\n");
}

static int check_report(const struct check *c, const struct err *e, int r)
{
	uint64_t left = 0, healed = 0;
	int code = CMD_OK;

	if (c->bad)
		bad_sum(c, &left, &healed);
	if (r)
		code = say_failed(e, NULL);
	else if (left)
		code = CMD_DATA;
	else if (c->interrupted && c->done < c->size)
		code = CMD_INCOMPLETE;
	if (c->common.json)
		result_json(c, e, code);
	else if (c->bad && !r && !c->common.quiet)
		result_text(c, left, healed);
	if (left && *c->why)
		say_error("%s", c->why);
	if (left && c->repair)
		say_error("not repaired: %s",
			  *c->copy_why ? c->copy_why : "no checksum is recorded");
	if (c->interrupted && c->done < c->size)
		say_error("interrupted: %.1f %% were looked at",
			  100.0 * (double)c->done / (double)c->size);
	return code;
}

static int check_main(struct check *c)
{
	struct err e = { 0 };
	int r, code;

	r = run_open(&c->run, &c->common, &e);
	if (r)
		return say_failed(&e, NULL);
	r = check_open(c, &e);
	if (!r)
		r = check_run(c, &e);
	code = check_report(c, &e, r);
	store_close_wait(c->other);
	store_close_wait(c->store);
	run_close(&c->run);
	free(c->bad);
	free(c->buffers);
	return code;
}

static const char verify_more[] =
	"SPEC has a checksum stage, \"checksum:file=PATH|...\", or is compared with another resource.\n"
	"Each bad range is printed as OFFSET+LENGTH. Exit code 0: all of it is good now; 4: something\n"
	"is bad.\n"
	"\n"
	"Examples:\n"
	"  remora verify \"checksum:file=disk.sums|disk.img\"\n"
	"  remora verify --repair-from remora://10.0.0.7:7000/disk \"checksum:file=disk.sums|disk.img\"\n"
	"  remora verify --against copy.img disk.img\n";

int cmd_verify(int argc, char **argv)
{
	struct check *c = calloc(1, sizeof(*c));
	AUTO_FREE void *owner = c;
	int r;

	(void)owner;
	if (!c)
		return CMD_FAILED;
	const struct opt options[] = {
		{ "repair-from", 0, OPT_TEXT, "SPEC",
		  "writes over what is bad from this copy, where that has the recorded checksum",
		  &c->repair },
		{ "against", 0, OPT_TEXT, "SPEC", "compares with this resource, byte by byte",
		  &c->against },
		{ "record", 0, OPT_FLAG, NULL,
		  "records checksums of what has none yet, as it is now", &c->record },
		{ "progress", 0, OPT_WORD, "auto|json|none",
		  "on stderr; auto: a line if that is a terminal", &c->progress_kind },
		{ 0 },
	};
	const struct usage usage = {
		.name = "verify",
		.args = "[OPTION]... SPEC",
		.options = options,
		.more = verify_more,
		.args_min = 1,
		.args_max = 1,
		.json = true,
		.loop = true,
	};

	r = options_parse(&usage, &c->common, argc, argv);
	if (r >= 0)
		return r;
	if (c->against && (c->repair || c->record))
		return say_usage(
			"--against only compares: --repair-from and --record go by checksums");
	if (c->common.quiet && c->progress_kind == PROGRESS_AUTO)
		c->progress_kind = PROGRESS_NONE;
	c->spec = argv[optind];
	return out_end(check_main(c));
}
