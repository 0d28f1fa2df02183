/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora copy: any resource to any other.
 *
 * Place: opens both, decides what is known about the destination (made just now? begun by a former
 * run? the same as the source?), runs copy_engine.c, then copy_verify.c, and says how it went.
 *
 * Invariants: nothing is written before everything that can be refused has been refused. Exit code
 * 0 means that all of it is durable at the destination, with its name; the state file is then gone.
 *
 * Locking: none; one loop. The destination file is locked (flock) against a second copy to it.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/copy.h"
#include "store/spec.h"

/* What a spec says about where its resource is. */
struct place {
	char *path; /* of a file in this machine; NULL = something else */
	bool far;   /* of a server */
	bool exists;
	struct stat st;
};

struct copy_cmd {
	struct run run;
	struct common common;
	struct copy copy;
	struct verify verify;
	struct progress progress;
	struct store *store[2]; /* source, destination */
	struct place place[2];
	const char *spec[2];
	char *state_path;
	int lock_fd;
	bool verifying, verified;
	uint64_t copy_ns;
	/* options */
	bool verify_wanted, resume, create;
	uint64_t jobs, inflight, chunk;
	unsigned progress_kind;
};

enum { SRC, DST };

/* ---- places ---- */

static void place_done(struct place *p)
{
	free(p->path);
}

static int place_find(const char *text, struct place *ret, struct err *e)
{
	CLEANUP(spec_done) struct spec spec = { 0 };
	const struct spec_part *back;
	int r = spec_parse(text, &spec, e);

	if (r)
		return r;
	back = &spec.part[spec.parts - 1];
	ret->far = !strncmp(back->name, "remora", 6);
	if (!strcmp(back->name, "file")) {
		ret->path = strdup(back->rest);
		if (!ret->path)
			return err_sys(e, -ENOMEM, "%s", text);
		ret->exists = !stat(ret->path, &ret->st);
	}
	return 0;
}

static bool same_file(const struct place *a, const struct place *b)
{
	if (!a->exists || !b->exists)
		return false;
	if (S_ISBLK(a->st.st_mode) && S_ISBLK(b->st.st_mode))
		return a->st.st_rdev == b->st.st_rdev;
	return a->st.st_dev == b->st.st_dev && a->st.st_ino == b->st.st_ino;
}

/* Two files, or two names at one server. (Identities of different machines may be equal by chance.)
 */
static bool same_resource(const struct copy_cmd *c)
{
	const struct store_info *a = &c->store[SRC]->info, *b = &c->store[DST]->info;

	return c->place[SRC].far && c->place[DST].far && a->identity &&
	       a->identity == b->identity && a->instance && a->instance == b->instance;
}

/* ---- opening ---- */

static int destination_lock(struct copy_cmd *c, struct err *e)
{
	const char *path = c->place[DST].path;

	if (!path || stat(path, &c->place[DST].st) || !S_ISREG(c->place[DST].st.st_mode))
		return 0;
	c->lock_fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (c->lock_fd >= 0 && flock(c->lock_fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
		return err_set(e, -EBUSY, "another copy to %s is running", path);
	return 0;
}

static int stores_open(struct copy_cmd *c, struct err *e)
{
	struct store_open how = { .loop = c->run.loop, .read_only = true, .deadline_ns = NEVER_NS };
	char have[SIZE_TEXT_MAX], need[SIZE_TEXT_MAX];
	const struct store_info *src, *dst;
	int r;

	for (int i = SRC; i <= DST; i++)
		if (place_find(c->spec[i], &c->place[i], e))
			return e->code;
	if (same_file(&c->place[SRC], &c->place[DST]))
		return err_set(e, -EINVAL, "%s and %s are the same file", c->spec[SRC],
			       c->spec[DST]);
	r = run_spec_open(&c->store[SRC], c->spec[SRC], &how, e);
	if (r)
		return r;
	src = &c->store[SRC]->info;
	how.read_only = false;
	how.create = c->create;
	how.create_size = src->size;
	r = run_spec_open(&c->store[DST], c->spec[DST], &how, e);
	if (r == -ENOENT && c->place[DST].path)
		return err_set(e, r, "%s: %s", c->place[DST].path,
			       c->create ? "its directory is not there"
					 : "no such file, and --no-create was given");
	if (r)
		return r;
	dst = &c->store[DST]->info;
	if (same_resource(c))
		return err_set(e, -EINVAL, "%s and %s are the same resource", c->spec[SRC],
			       c->spec[DST]);
	if (dst->read_only)
		return err_set(e, -EROFS, "%s is read only", c->spec[DST]);
	if (dst->size < src->size)
		return err_set(
			e, -ENOSPC,
			"%s (%s) is smaller than %s (%s): make it larger, or copy to another",
			c->spec[DST], size_format(dst->size, have), c->spec[SRC],
			size_format(src->size, need));
	if (dst->size > src->size && !c->common.quiet)
		say_note("%s is longer than the source; what lies behind byte %llu stays as it is",
			 c->spec[DST], (unsigned long long)src->size);
	return destination_lock(c, e);
}

/* ---- sizes ---- */

static int unit_choose(struct copy_cmd *c, struct err *e)
{
	const struct store_info *src = &c->store[SRC]->info, *dst = &c->store[DST]->info;
	uint64_t len_max = MIN(src->len_max, dst->len_max), align = MAX(src->align, dst->align);
	uint64_t limit = 1ULL << log2_u64(len_max), unit = c->chunk;
	bool far = c->place[SRC].far || c->place[DST].far;
	uint64_t inflight = c->inflight ? c->inflight
			    : far	? COPY_INFLIGHT_FAR
					: COPY_INFLIGHT_NEAR;
	char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];

	if (!unit) {
		unit = MIN(MAX(MAX(src->chunk, dst->chunk), COPY_UNIT_MIN), limit);
		while (unit < limit && src->size / unit >= COPY_UNITS_MAX)
			unit *= 2;
		while (unit > inflight && unit / 2 >= MAX(align, CHUNK_MIN))
			unit /= 2;
	}
	if (!is_pow2(unit) || unit < MAX(align, CHUNK_MIN) || unit > limit)
		return err_set(e, -EINVAL, "--chunk must be a power of two from %s to %s here",
			       size_format(MAX(align, CHUNK_MIN), a), size_format(limit, b));
	if (src->size / unit >= COPY_UNITS_MAX)
		return err_set(e, -E2BIG, "%s is too large to be copied in units of %s",
			       size_format(src->size, a), size_format(unit, b));
	if (inflight < unit)
		return err_set(e, -EINVAL, "--inflight must hold a chunk (%s) at least",
			       size_format(unit, a));
	c->copy.unit = unit;
	c->copy.units = (size_t)((src->size + unit - 1) / unit);
	c->copy.slot_count = (size_t)MIN(MIN(inflight / unit, COPY_SLOTS_MAX),
					 MAX(c->copy.units, 1u));
	if (c->jobs)
		c->copy.slot_count = MIN(c->copy.slot_count, (size_t)c->jobs);
	return 0;
}

/* ---- resuming ---- */

static uint64_t mtime_ns(const struct place *p)
{
	if (!p->exists || !S_ISREG(p->st.st_mode))
		return 0;
	return (uint64_t)p->st.st_mtim.tv_sec * NS_PER_S + (uint64_t)p->st.st_mtim.tv_nsec;
}

static int resume_prepare(struct copy_cmd *c, struct err *e)
{
	const struct place *dst = &c->place[DST];
	struct copy *copy = &c->copy;
	int r;

	copy->key = (struct copy_key){
		.size = copy->size,
		.unit = copy->unit,
		.source = c->store[SRC]->info.identity,
		.source_mtime_ns = mtime_ns(&c->place[SRC]),
		.destination = c->store[DST]->info.identity,
	};
	/* Made by us a moment ago, and really empty: nobody else was faster. */
	copy->fresh = dst->path && !dst->exists && S_ISREG(dst->st.st_mode) && !dst->st.st_blocks;
	if (!dst->path || !S_ISREG(dst->st.st_mode))
		return 0;
	if (asprintf(&c->state_path, "%s.remora-copy", dst->path) < 0)
		return err_sys(e, -ENOMEM, "%s", dst->path);
	r = dst->exists && c->resume ? copy_state_load(c->state_path, &copy->key, copy->done)
				     : -ENOENT;
	if (r == -ESTALE || r == -EBADMSG)
		say_note("%s is %s; the copy starts anew", c->state_path,
			 r == -ESTALE ? "of another copy, or the source has changed" : "damaged");
	if (r) /* what it says would soon be wrong */
		unlink(c->state_path);
	if (c->resume)
		copy->state_path = c->state_path;
	if (r)
		return 0;
	copy->bytes_before = MIN(bitmap_count(copy->done, copy->units) * copy->unit, copy->size);
	copy->bytes_done = copy->bytes_before;
	copy->kept = true;
	return 0;
}

/* ---- running ---- */

static void copy_signal(struct run *run)
{
	struct copy_cmd *c = CONTAINER_OF(run, struct copy_cmd, run);

	if (run->signals > 1)
		_exit(CMD_INCOMPLETE);
	c->copy.interrupted = true;
	progress_stop(&c->progress);
	if (!c->common.quiet)
		say_error(c->verifying
				  ? "interrupted"
				  : "interrupted; making safe what was copied (again: at once)");
	if (c->verifying)
		verify_stop(&c->verify);
	else
		copy_stop(&c->copy);
}

static int copy_run(struct copy_cmd *c, struct err *e)
{
	struct copy *copy = &c->copy;
	uint64_t start;
	int r;

	copy->run = &c->run;
	copy->src = c->store[SRC];
	copy->dst = c->store[DST];
	copy->src_name = c->spec[SRC];
	copy->dst_name = c->spec[DST];
	copy->size = copy->src->info.size;
	r = unit_choose(c, e);
	if (!r)
		r = copy_init(copy, e);
	if (r)
		return r;
	r = resume_prepare(c, e);
	if (!r) {
		if (copy->bytes_before && !c->common.quiet)
			say_note("%.1f %% of it were copied before; going on",
				 100.0 * (double)copy->bytes_before / (double)copy->size);
		log_info(&c->run.env.log, "%zu buffers of %llu bytes%s", copy->slot_count,
			 (unsigned long long)copy->unit,
			 copy->fresh ? "; the destination is new" : "");
		c->run.on_signal = copy_signal;
		start = loop_now_fresh(c->run.loop);
		progress_start(&c->progress, c->run.loop, c->progress_kind, "copy",
			       &copy->bytes_done, copy->size);
		copy->started = true;
		copy->guesses = c->place[SRC].far ? copy->slot_count / 2 : 0;
		copy_start(copy);
		r = loop_run_until(c->run.loop, &copy->finished, NEVER_NS);
		progress_stop(&c->progress);
		c->copy_ns = loop_now_fresh(c->run.loop) - start;
	}
	copy_done(copy);
	return r;
}

/* The name is durable as well as what it names. */
static int name_sync(const char *path)
{
	AUTO_FREE char *copy = strdup(path);
	AUTO_FD int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

	return fd < 0 || fsync(fd) ? -errno : 0;
}

static int verify_run(struct copy_cmd *c, struct err *e)
{
	struct verify *v = &c->verify;
	int r;

	*v = (struct verify){
		.run = &c->run,
		.side = { c->store[SRC], c->store[DST] },
		.name = { c->spec[SRC], c->spec[DST] },
		.size = c->copy.size,
		.unit = c->copy.unit,
		.slot_count = MAX(c->copy.slot_count / 2, 1u),
	};
	if (c->lock_fd >= 0) /* from the disk, not from what we have just put into the cache */
		(void)posix_fadvise(c->lock_fd, 0, 0, POSIX_FADV_DONTNEED);
	r = verify_init(v, e);
	if (r)
		return r;
	c->verifying = true;
	progress_start(&c->progress, c->run.loop, c->progress_kind, "compare", &v->bytes_done,
		       v->size);
	verify_start(v);
	r = loop_run_until(c->run.loop, &v->finished, NEVER_NS);
	progress_stop(&c->progress);
	c->verifying = false;
	verify_done(v);
	if (r)
		return err_sys(e, r, "the event loop");
	if (v->error.code) {
		*e = v->error;
		return v->error.code;
	}
	if (v->differs_at != UINT64_MAX)
		return err_set(e, -EBADMSG, "%s and %s differ at byte %llu (0x%02x and 0x%02x)",
			       c->spec[SRC], c->spec[DST], (unsigned long long)v->differs_at,
			       v->differs[0], v->differs[1]);
	c->verified = !c->copy.interrupted;
	return 0;
}

/* ---- telling ---- */

static void result_json(const struct copy_cmd *c, const struct err *e, int code)
{
	const struct copy *copy = &c->copy;
	uint64_t moved = copy->bytes_done - MIN(copy->bytes_before, copy->bytes_done);
	json_t *j = json_pack("{s:s, s:s, s:b, s:b, s:I, s:I, s:I, s:I, s:f, s:f}", "source",
			      c->spec[SRC], "destination", c->spec[DST], "complete", code == CMD_OK,
			      "verified", c->verified, "size", (json_int_t)copy->size, "done",
			      (json_int_t)copy->bytes_done, "done_before",
			      (json_int_t)copy->bytes_before, "data", (json_int_t)copy->bytes_data,
			      "seconds", (double)c->copy_ns / 1e9, "bytes_per_s",
			      c->copy_ns ? (double)moved * 1e9 / (double)c->copy_ns : 0.0);

	CHECK(j);
	if (e->code)
		json_object_set_new(j, "error", json_string(e->text));
	if (copy->kept && code)
		json_object_set_new(j, "resumable", json_true());
	out_json(j);
}

static void result_text(const struct copy_cmd *c)
{
	const struct copy *copy = &c->copy;
	uint64_t moved = copy->size - copy->bytes_before;
	char size[SIZE_TEXT_MAX], data[SIZE_TEXT_MAX], took[SIZE_TEXT_MAX], rate[SIZE_TEXT_MAX + 8];

	printf("copied %s%s", copy->bytes_before ? "the remaining " : "", size_format(moved, size));
	if (copy->bytes_data < moved)
		printf(" (%s data, rest zeros)", size_format(copy->bytes_data, data));
	printf(" in %s", time_format(c->copy_ns, took));
	if (moved)
		printf(", %s", rate_format(moved, c->copy_ns, rate));
	printf("%s\n", c->verified ? ", verified" : "");
}

static int copy_report(const struct copy_cmd *c, const struct err *e, int r)
{
	const struct copy *copy = &c->copy;
	const char *next = NULL;
	int code = CMD_OK;

	if (copy->finished && copy->kept)
		next = "what was copied is safe: the same command again goes on from there";
	else if (r == -EBADMSG)
		next = "did anybody write to one of them meanwhile?";
	if (r)
		code = say_failed(e, next);
	else if (copy->interrupted && copy->bytes_done < copy->size)
		say_error("%.1f %% were copied\n  %s",
			  100.0 * (double)copy->bytes_done / (double)copy->size,
			  next ? next : "the same command again starts from the beginning");
	else if (copy->interrupted && c->verify_wanted && !c->verified)
		say_error("all of it was copied; the comparison was not finished");
	if (!r && copy->interrupted &&
	    (copy->bytes_done < copy->size || (c->verify_wanted && !c->verified)))
		code = CMD_INCOMPLETE;
	if (c->common.json)
		result_json(c, e, code);
	else if (code == CMD_OK && !c->common.quiet)
		result_text(c);
	return code;
}

/* It was refused after all: an empty file that we have made is in the way of the next attempt. */
static void destination_unmake(const struct copy_cmd *c)
{
	const struct place *dst = &c->place[DST];
	struct stat st;

	if (dst->path && !dst->exists && !c->copy.started && !stat(dst->path, &st) &&
	    S_ISREG(st.st_mode) && !st.st_blocks)
		unlink(dst->path);
}

static int copy_all(struct copy_cmd *c, struct err *e)
{
	struct copy *copy = &c->copy;
	int r = stores_open(c, e);

	if (!r)
		r = copy_run(c, e);
	if (r && c->store[DST])
		destination_unmake(c);
	if (!r && copy->error.code) {
		*e = copy->error;
		r = e->code;
	}
	if (r || copy->bytes_done < copy->size)
		return r;
	if (c->place[DST].path && !c->place[DST].exists && (r = name_sync(c->place[DST].path)))
		return err_sys(e, r, "making the name %s durable", c->place[DST].path);
	if (c->state_path)
		unlink(c->state_path);
	copy->kept = false;
	return c->verify_wanted && !copy->interrupted ? verify_run(c, e) : 0;
}

static int copy_main(struct copy_cmd *c)
{
	struct err e = { 0 };
	int r, code;

	r = run_open(&c->run, &c->common, &e);
	if (r)
		return say_failed(&e, NULL);
	r = copy_all(c, &e);
	code = copy_report(c, &e, r);
	for (int i = SRC; i <= DST; i++) {
		store_close_wait(c->store[i]);
		place_done(&c->place[i]);
	}
	if (c->lock_fd >= 0)
		close(c->lock_fd);
	free(c->state_path);
	run_close(&c->run);
	return code;
}

static const char copy_more[] =
	"SRC and DST are specs: paths, remora://HOST:PORT/NAME and so on (man remora-spec). DST may\n"
	"be longer than SRC, not shorter; a file that is not there is made. Exit code 0 means that\n"
	"everything is durable.\n"
	"\n"
	"An interrupted copy to a file leaves DST.remora-copy beside it: the same command again goes\n"
	"on.\n"
	"\n"
	"Examples:\n"
	"  remora copy remora://127.0.0.1:7000/disk.img disk.img --verify\n"
	"  remora copy disk.img remora+unix:///run/remora.sock/scratch\n"
	"  remora copy \"limit:rate=20M|big.img\" copy.img\n";

int cmd_copy(int argc, char **argv)
{
	struct copy_cmd *c = calloc(1, sizeof(*c));
	AUTO_FREE void *owner = c;
	int r;

	(void)owner;
	if (!c)
		return CMD_FAILED;
	c->resume = c->create = true;
	c->lock_fd = -1;
	const struct opt options[] = {
		{ "verify", 0, OPT_FLAG, NULL, "reads both again and compares", &c->verify_wanted },
		{ "resume", 0, OPT_FLAG, NULL, "goes on where a former copy ended; the default",
		  &c->resume },
		{ "no-resume", 0, OPT_NOT, NULL, "starts anew, and keeps no state", &c->resume },
		{ "create", 0, OPT_FLAG, NULL, "makes a file that is not there; the default",
		  &c->create },
		{ "no-create", 0, OPT_NOT, NULL, "a destination that is not there is an error",
		  &c->create },
		{ "jobs", 'j', OPT_NUMBER, "N", "chunks at a time; default: what --inflight holds",
		  &c->jobs },
		{ "inflight", 0, OPT_SIZE, "SIZE",
		  "buffers; default: 64M when one side is far, else 8M", &c->inflight },
		{ "chunk", 0, OPT_SIZE, "SIZE",
		  "bytes per request; default: 256K, or what the resources prefer", &c->chunk },
		{ "progress", 0, OPT_WORD, "auto|json|none",
		  "on stderr; auto: a line if that is a terminal", &c->progress_kind },
		{ 0 },
	};
	const struct usage usage = {
		.name = "copy",
		.args = "[OPTION]... SRC DST",
		.options = options,
		.more = copy_more,
		.args_min = 2,
		.args_max = 2,
		.json = true,
		.loop = true,
	};

	r = options_parse(&usage, &c->common, argc, argv);
	if (r >= 0)
		return r;
	if (c->common.quiet && c->progress_kind == PROGRESS_AUTO)
		c->progress_kind = PROGRESS_NONE;
	c->spec[SRC] = argv[optind];
	c->spec[DST] = argv[optind + 1];
	return out_end(copy_main(c));
}
