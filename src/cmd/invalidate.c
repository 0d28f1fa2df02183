/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora invalidate: what a mount has of the far side's content is fetched anew, because it changed
 * there.
 *
 * Place: options around the verb "invalidate" of a mount.
 *
 * Locking: none.
 */
#include <errno.h>
#include <getopt.h>
#include <string.h>

#include "base/size.h"
#include "cmd/ask.h"

static int invalidate_run(struct ask *ask, const char *target, const struct range *range, bool json)
{
	json_t *args = json_object(), *answer = NULL;
	struct err e = { 0 };
	int r = ask_open(ask, target, "invalidated", &e);

	if (range && args)
		ask_range(args, range);
	if (r) {
		json_decref(args);
		return say_failed(&e, NULL);
	}
	r = ask_run(ask, "invalidate", args, &answer, &e);
	if (!r && json)
		out_json(json_incref(answer));
	json_decref(answer);
	ask_close(ask);
	if (r == -EBUSY)
		return say_failed(&e, "remora flush makes what is dirty safe; then invalidate");
	return r ? say_failed(&e, NULL) : CMD_OK;
}

static const char invalidate_more[] =
	"TARGET is the file of a mount, or its process id. RANGE is OFF-END, OFF+LEN, or LEN from\n"
	"the beginning; without it, everything. What was written here and is not on the far side\n"
	"yet stays as it is.\n"
	"\n"
	"Examples:\n"
	"  remora invalidate disk.img\n"
	"  remora invalidate disk.img 1G+64M\n";

int cmd_invalidate(int argc, char **argv)
{
	const struct usage usage = {
		.name = "invalidate",
		.args = "[OPTION]... TARGET [RANGE]",
		.more = invalidate_more,
		.args_min = 1,
		.args_max = 2,
		.json = true,
	};
	struct common common;
	struct ask ask = { 0 };
	struct range range;
	bool all;
	struct err e;
	int r = options_parse(&usage, &common, argc, argv);

	if (r >= 0)
		return r;
	all = optind + 1 >= argc || !strcmp(argv[optind + 1], "all");
	if (!all && range_parse(argv[optind + 1], &range, &e))
		return say_usage("%s", e.text);
	return out_end(invalidate_run(&ask, argv[optind], all ? NULL : &range, common.json));
}
