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

#include "base/range.h"
#include "cmd/ask.h"

static int invalidate_run(struct ask *ask, const char *target, const struct range *range, bool json)
{
	json_t *answer = NULL;
	struct err e = { 0 };
	int r = ask_open(ask, target, "invalidated", &e);

	if (r)
		return say_failed(&e, NULL);
	r = ask_run(ask, "invalidate", ask_range(json_object(), range), &answer, &e);
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
	const struct range *what;
	int r = options_parse(&usage, &common, argc, argv);

	if (r >= 0)
		return r;
	r = ask_range_parse(argv[optind + 1], &range, &what);
	if (r >= 0)
		return r;
	return out_end(invalidate_run(&ask, argv[optind], what, common.json));
}
