/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora cache: what mount --near DIR has kept in directories.
 *
 * Place: options and output around near_disk_look() and near_disk_remove().
 *
 * Invariant: list and verify change nothing.
 *
 * Locking: none.
 */
#include <errno.h>
#include <getopt.h>
#include <string.h>
#include <time.h>

#include "base/size.h"
#include "cmd/cmd.h"
#include "region/near_disk.h"

#define DIRS_MAX 1024u

static json_t *look_json(const char *dir, const struct near_disk_look *look, const struct err *e)
{
	json_t *o = json_pack("{s:s?}", "directory", dir);

	if (!o) /* a name that is not UTF-8 */
		o = json_object();
	if (e->code) {
		json_object_set_new(o, "error", json_string(e->text));
		return o;
	}
	json_object_set_new(o, "spec", json_string(look->meta.spec));
	json_object_set_new(o, "size", json_integer((json_int_t)look->meta.size));
	json_object_set_new(o, "chunk", json_integer(look->meta.chunk));
	json_object_set_new(o, "local_bytes",
			    json_integer((json_int_t)(look->clean_bytes + look->dirty_bytes)));
	json_object_set_new(o, "dirty_bytes", json_integer((json_int_t)look->dirty_bytes));
	json_object_set_new(o, "lost_bytes", json_integer((json_int_t)look->lost_bytes));
	json_object_set_new(o, "journal_bytes", json_integer((json_int_t)look->journal_bytes));
	json_object_set_new(o, "journal_damaged", json_boolean(look->journal_damaged));
	json_object_set_new(o, "used_ns", json_integer((json_int_t)look->used_ns));
	json_object_set_new(o, "holder", look->held ? json_string(look->holder) : json_null());
	return o;
}

static const char *state_text(const struct near_disk_look *look)
{
	if (look->journal_damaged || look->lost_bytes)
		return "damaged";
	return look->held ? "in use" : "";
}

static void look_row(const char *dir, const struct near_disk_look *look, int width)
{
	char size[SIZE_TEXT_MAX], local[SIZE_TEXT_MAX], dirty[SIZE_TEXT_MAX], when[32] = "";
	time_t s = (time_t)(look->used_ns / NS_PER_S);
	const char *state = state_text(look);
	struct tm tm;

	if (look->used_ns && localtime_r(&s, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M", &tm);
	printf("%-*s  %10s  %10s  %10s  %-16s  %s%s%s%s\n", width, dir,
	       size_format(look->meta.size, size),
	       size_format(look->clean_bytes + look->dirty_bytes, local),
	       size_format(look->dirty_bytes, dirty), when, look->meta.spec, *state ? " (" : "", state,
	       *state ? ")" : "");
}

static int cache_list(const struct common *common, char **dirs, int count)
{
	json_t *all = json_array();
	int code = CMD_OK, width = (int)strlen("DIRECTORY"), rows = 0;

	for (int i = 0; i < count; i++)
		width = MAX(width, (int)strlen(dirs[i]));
	for (int i = 0; i < count; i++) {
		struct near_disk_look look;
		struct err e = { 0 };

		if (near_disk_look(&look, dirs[i], NEAR_DISK_GLANCE, NULL, &e))
			code = say_failed(&e, NULL);
		if (common->json) {
			json_array_append_new(all, look_json(dirs[i], &look, &e));
			continue;
		}
		if (!e.code && !rows++)
			printf("%s%-*s  %10s  %10s  %10s  %-16s  SPEC%s\n",
			       out_color(stdout, OUT_BOLD), width, "DIRECTORY", "SIZE", "LOCAL",
			       "DIRTY", "LAST USE", out_color(stdout, OUT_PLAIN));
		if (!e.code)
			look_row(dirs[i], &look, width);
	}
	if (common->json)
		out_json(json_pack("{s:o}", "caches", all));
	else
		json_decref(all);
	return out_end(code);
}

static void verify_tell(const char *dir, const struct near_disk_look *look)
{
	char clean[SIZE_TEXT_MAX], dirty[SIZE_TEXT_MAX], text[SIZE_TEXT_MAX];

	printf("%s: %s clean, %s dirty", dir, size_format(look->clean_bytes, clean),
	       size_format(look->dirty_bytes, dirty));
	if (look->journal_damaged)
		printf("; the journal is damaged at byte %llu: what is dirty behind it is lost",
		       (unsigned long long)look->journal_at);
	if (look->lost_bytes)
		printf("; %s that were written and not pushed are lost",
		       size_format(look->lost_bytes, text));
	if (look->bad_bytes)
		printf("; %s that are clean have changed, and will be fetched again",
		       size_format(look->bad_bytes, text));
	printf("%s\n", look->journal_damaged || look->lost_bytes || look->bad_bytes ?
			       "" : "; all of it is what it was");
}

static int cache_verify(const struct common *common, char **dirs, int count)
{
	json_t *all = json_array();
	int code = CMD_OK;

	for (int i = 0; i < count; i++) {
		struct near_disk_look look;
		struct err e = { 0 };
		json_t *o;

		if (near_disk_look(&look, dirs[i], NEAR_DISK_COMPARE, NULL, &e))
			code = say_failed(&e, NULL);
		else if (look.journal_damaged || look.lost_bytes || look.bad_bytes)
			code = CMD_DATA;
		if (common->json) {
			o = look_json(dirs[i], &look, &e);
			if (!e.code)
				json_object_set_new(o, "bad_bytes",
						    json_integer((json_int_t)look.bad_bytes));
			json_array_append_new(all, o);
		} else if (!e.code && !common->quiet) {
			verify_tell(dirs[i], &look);
		}
	}
	if (common->json)
		out_json(json_pack("{s:o}", "caches", all));
	else
		json_decref(all);
	return out_end(code);
}

static int cache_drop(const struct common *common, char **dirs, int count, bool force)
{
	char size[SIZE_TEXT_MAX], dirty[SIZE_TEXT_MAX];
	int code = CMD_OK;

	for (int i = 0; i < count; i++) {
		struct near_disk_look look;
		struct err e = { 0 };

		if (near_disk_remove(&look, dirs[i], force, &e)) {
			code = say_failed(&e, NULL);
			if (e.code == -EUCLEAN)
				code = CMD_UNSAFE;
		} else if (!common->quiet) {
			printf("%s: %s dropped, of which %s were dirty and are lost\n", dirs[i],
			       size_format(look.clean_bytes + look.dirty_bytes + look.lost_bytes,
					   size),
			       size_format(look.dirty_bytes + look.lost_bytes, dirty));
		}
	}
	return out_end(code);
}

int cmd_cache(int argc, char **argv)
{
	bool force = false;
	const struct opt options[] = {
		{ "force", 0, OPT_FLAG, NULL,
		  "drop: also what was written and has not been pushed; it is lost", &force },
		{ 0 },
	};
	const struct usage usage = {
		.name = "cache",
		.args = "[OPTION]... list|verify|drop DIR...",
		.options = options,
		.more = "What remora mount --near DIR has kept in these directories.\n"
			"  list    what is in them, and who uses them\n"
			"  verify  reads all of it and compares; exit status 4 when something is damaged\n"
			"  drop    takes it away; not while somebody uses it\n"
			"\n"
			"Example:\n"
			"  remora cache list /var/cache/disk.near\n",
		.args_min = 2,
		.args_max = DIRS_MAX,
		.json = true,
	};
	struct common common;
	int r = options_parse(&usage, &common, argc, argv), count;
	const char *verb;
	char **dirs;

	if (r >= 0)
		return r;
	verb = argv[optind];
	dirs = argv + optind + 1;
	count = argc - optind - 1;
	if (strcmp(verb, "drop") && force)
		return say_usage("--force is for drop");
	if (!strcmp(verb, "list"))
		return cache_list(&common, dirs, count);
	if (!strcmp(verb, "verify"))
		return cache_verify(&common, dirs, count);
	if (!strcmp(verb, "drop"))
		return cache_drop(&common, dirs, count, force);
	return say_usage("there is no '%s': it is list, verify or drop", verb);
}
