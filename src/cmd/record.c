/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora record: writes down which bytes of a mount programs use, in the order of their first use,
 * for the next time: remora mount --profile.
 *
 * Place: options around the verb "record" of a mount; the file's format is region/profile.h's.
 *
 * Invariants: the profile appears whole, under its name, at the end, or what was there before
 * stays. When a signal ends it, it waits for what the mount is about to tell (LATE_NS): the mount
 * tells once a second.
 *
 * Locking: none.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/size.h"
#include "cmd/ask.h"
#include "cmd/status.h"
#include "region/profile.h"

#define LATE_NS (1500 * NS_PER_MS)

struct record {
	struct ask ask;
	struct common common;
	const char *path;
	char temp[PATH_MAX];
	int fd; /* of temp */
	struct profile profile;
	int error; /* of profile_add() */
	uint64_t for_ns, lost;
	int ready_fd; /* -1 = none, or told */
};

/* ---- the file ---- */

/* Beside it, so that it can be renamed, and made before anything is recorded. */
static int temp_open(struct record *rec, struct err *e)
{
	int n = snprintf(rec->temp, sizeof(rec->temp), "%s.XXXXXX", rec->path);
	mode_t mask = umask(0);

	umask(mask);
	if (n < 0 || (size_t)n >= sizeof(rec->temp))
		return err_sys(e, -ENAMETOOLONG, "%s", rec->path);
	rec->fd = mkostemp(rec->temp, O_CLOEXEC);
	if (rec->fd < 0)
		return err_sys(e, -errno, "%s", rec->path);
	if (fchmod(rec->fd, 0666 & ~mask))
		return err_sys(e, -errno, "%s", rec->temp);
	return 0;
}

static void temp_drop(struct record *rec)
{
	if (rec->fd < 0)
		return;
	close(rec->fd);
	unlink(rec->temp);
	rec->fd = -1;
}

static int temp_write(struct record *rec, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(rec->fd, text, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		text += n;
		len -= (size_t)n;
	}
	return fsync(rec->fd) ? -errno : 0;
}

static int profile_write(struct record *rec, struct err *e)
{
	AUTO_FREE char *text = NULL;
	size_t len;
	int r = profile_format(&rec->profile, &text, &len);

	if (!r)
		r = temp_write(rec, text, len);
	if (!r && rename(rec->temp, rec->path))
		r = -errno;
	if (r)
		return err_sys(e, r, "%s", rec->path);
	close(rec->fd);
	rec->fd = -1;
	return 0;
}

/* ---- recording ---- */

static void record_show(struct record *rec)
{
	char size[SIZE_TEXT_MAX];

	if (rec->common.quiet || !out_is_terminal(stderr))
		return;
	fprintf(stderr, "\rrecording: %zu range%s, %s; ^C ends it\033[K", rec->profile.count,
		rec->profile.count == 1 ? "" : "s", size_format(rec->profile.bytes, size));
	fflush(stderr);
	rec->ask.meter.shown = true;
}

static void record_news(void *arg, json_t *what)
{
	struct record *rec = arg;
	json_t *range = json_object_get(what, "range");
	json_int_t off = json_integer_value(json_array_get(range, 0)),
		   len = json_integer_value(json_array_get(range, 1));

	if (!range) {
		struct err e;

		/* the first of them says that it records */
		if (ready_tell(rec->ready_fd, "recording\n", &e))
			say_error("%s", e.text);
		rec->ready_fd = -1;
		rec->lost = (uint64_t)json_integer_value(json_object_get(what, "lost"));
		record_show(rec);
	} else if (!rec->error && off >= 0 && len > 0) {
		rec->error = profile_add(&rec->profile, range_of((uint64_t)off, (uint64_t)len));
	}
}

/* Until a signal, the time is over, or the mount ends. */
static int record_wait(struct record *rec, struct err *e)
{
	struct control_peer *peer = &rec->ask.peer;
	int r;

	wake_close(&rec->ask.wake); /* a signal that has come is not lost: it is blocked */
	r = wake_open(&rec->ask.wake, rec->for_ns, e);
	if (r)
		return r;
	peer->wake_fd = rec->ask.wake.fd;
	r = control_ask(peer, "record", NULL, record_news, rec, NULL, e);
	while (r == -EINTR) {
		wake_read(&rec->ask.wake);
		if (rec->ask.wake.ended)
			break;
		r = control_wait(peer, record_news, rec, NULL, e);
	}
	if (r == -EINTR) { /* what was used in the last second is still to come */
		struct wake late;

		wake_close(&rec->ask.wake);
		r = wake_open(&late, LATE_NS, e);
		if (r)
			return r;
		peer->wake_fd = late.fd;
		do {
			wake_read(&late);
			r = late.ended ? 0 : control_wait(peer, record_news, rec, NULL, e);
		} while (r == -EINTR);
		wake_close(&late);
	}
	return r == -ECONNRESET || r == -ESHUTDOWN ? 0 : r;
}

static void record_tell(const struct record *rec)
{
	char size[SIZE_TEXT_MAX];

	if (rec->common.json)
		out_json(json_pack("{s:s, s:I, s:I}", "profile", rec->path, "ranges",
				   (json_int_t)rec->profile.count, "bytes",
				   (json_int_t)rec->profile.bytes));
	else if (!rec->common.quiet)
		printf("recorded %zu range%s, %s, in %s\n", rec->profile.count,
		       rec->profile.count == 1 ? "" : "s", size_format(rec->profile.bytes, size),
		       rec->path);
}

/* The size that the profile is for. */
static int size_ask(struct record *rec, struct err *e)
{
	json_t *answer = NULL;
	int r = ask_run(&rec->ask, "status", NULL, &answer, e);

	if (!r)
		rec->profile.size = status_number(answer, "size");
	json_decref(answer);
	return r;
}

static int record_run(struct record *rec, const char *target)
{
	struct err e = { 0 };
	int r = ask_open(&rec->ask, target, "recorded", &e);

	if (r)
		return say_failed(&e, NULL);
	r = temp_open(rec, &e);
	if (!r)
		r = size_ask(rec, &e);
	if (!r)
		r = record_wait(rec, &e);
	if (!r && (rec->error == -E2BIG || rec->lost))
		say_note("more ranges than a profile can have: the first ones are kept");
	else if (!r && rec->error)
		r = err_sys(&e, rec->error, "recording");
	meter_clear(&rec->ask.meter);
	if (!r)
		r = profile_write(rec, &e);
	temp_drop(rec);
	if (!r)
		record_tell(rec);
	ask_close(&rec->ask);
	profile_done(&rec->profile);
	return r ? say_failed(&e, NULL) : CMD_OK;
}

static const char record_more[] =
	"TARGET is the file of a mount, or its process id. Recording ends with ^C, after --for, or\n"
	"with the mount; then the profile is written. The kernel's cache of the file is dropped at\n"
	"the beginning, so that what was used before counts, too, when it is used again.\n"
	"\n"
	"Examples:\n"
	"  remora record game.img game.profile --for 60s\n"
	"  remora mount --profile game.profile remora://127.0.0.1:7000/game game.img\n";

int cmd_record(int argc, char **argv)
{
	struct record rec = { .fd = -1, .for_ns = NEVER_NS, .ready_fd = -1 };
	uint64_t for_ns = 0, ready = UINT64_MAX;
	const struct opt options[] = {
		{ "for", 0, OPT_TIME, "TIME", "ends by itself after this time", &for_ns },
		{ "ready-fd", 0, OPT_NUMBER, "N",
		  "writes a line to descriptor N and closes it when it records", &ready },
		{ 0 },
	};
	const struct usage usage = {
		.name = "record",
		.args = "[OPTION]... TARGET PROFILE",
		.options = options,
		.more = record_more,
		.args_min = 2,
		.args_max = 2,
		.json = true,
	};
	int r = options_parse(&usage, &rec.common, argc, argv);
	struct err e;

	if (r >= 0)
		return r;
	if (ready != UINT64_MAX && ready_check(ready, &rec.ready_fd, &e))
		return say_failed(&e, NULL);
	if (for_ns)
		rec.for_ns = for_ns;
	rec.path = argv[optind + 1];
	return out_end(record_run(&rec, argv[optind]));
}
