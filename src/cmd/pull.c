/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora pull: fetches what a mount does not have yet.
 *
 * Place: options around the verb "pull" of a mount.
 *
 * Locking: none.
 */
#include <errno.h>
#include <getopt.h>

#include "base/range.h"
#include "cmd/ask.h"

static int pull_run(struct ask *ask, const char *target, const struct range *range,
		    uint64_t priority, bool background, bool json)
{
	struct err e = { 0 };
	int r = ask_open(ask, target, "pulled", &e);
	json_t *args;

	if (r)
		return say_failed(&e, NULL);
	args = json_pack("{s:I, s:b}", "priority", (json_int_t)priority, "wait", !background);
	ask->phase = "pull";
	r = ask_run(ask, "pull", ask_range(args, range), NULL, &e);
	if (!r && json)
		out_json(json_pack("{s:b, s:s, s:b}", "ok", 1, "target", ask->peer.target,
				   "background", background));
	ask_close(ask);
	if (r == -EINTR)
		return say_failed(&e, "what has been pulled is local; the same command goes on");
	return r ? say_failed(&e, NULL) : CMD_OK;
}

static const char pull_more[] =
	"TARGET is the file of a mount, or its process id. RANGE is OFF-END, OFF+LEN, or LEN from\n"
	"the beginning; all is everything, which it is too when nothing is said. It returns when\n"
	"the bytes are local, and shows how far it is.\n"
	"\n"
	"Examples:\n"
	"  remora pull disk.img\n"
	"  remora pull disk.img 64M && run-it\n"
	"  remora pull --background --priority 10 disk.img 1G-2G\n";

int cmd_pull(int argc, char **argv)
{
	uint64_t priority = 0;
	bool background = false;
	const struct opt options[] = {
		{ "priority", 'p', OPT_NUMBER, "N",
		  "before what has less; default: 0, as the background pull has", &priority },
		{ "background", 'b', OPT_FLAG, NULL, "does not wait for it", &background },
		{ 0 },
	};
	const struct usage usage = {
		.name = "pull",
		.args = "[OPTION]... TARGET [RANGE|all]",
		.options = options,
		.more = pull_more,
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
	ask.quiet = common.quiet;
	return out_end(pull_run(&ask, argv[optind], what, priority, background, common.json));
}
