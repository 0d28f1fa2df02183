/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora flush: returns when all that was written to a mount before is safe on the far side.
 *
 * Place: options around the verb "flush" of a mount.
 *
 * Invariant: exit status 0 means safe. What is not safe has a status of its own, and is counted.
 *
 * Locking: none.
 */
#include <errno.h>
#include <getopt.h>
#include <string.h>

#include "base/limits.h"
#include "base/size.h"
#include "cmd/ask.h"
#include "cmd/status.h"

static int flush_failed(const struct ask *ask, const json_t *answer, const struct err *e)
{
	uint64_t unsafe = status_number(answer, "unsafe_bytes");
	char size[SIZE_TEXT_MAX];

	if (e->code == -EINTR)
		return say_failed(e, "what was written is still being pushed in the background");
	if (!unsafe)
		return say_failed(e, NULL);
	say_error("%s\n  %s is not safe yet; it is kept, and pushed when that is possible again: "
		  "remora status %s",
		  e->text, size_format(unsafe, size), ask->peer.target);
	return CMD_UNSAFE;
}

static int flush_run(struct ask *ask, const char *target, bool json)
{
	json_t *answer = NULL;
	struct err e = { 0 };
	int r = ask_open(ask, target, "flushed", &e), code = CMD_OK;

	if (r)
		return say_failed(&e, NULL);
	ask->phase = "flush";
	r = ask_run(ask, "flush", NULL, &answer, &e);
	if (json && answer)
		out_json(json_incref(answer));
	if (r)
		code = flush_failed(ask, answer, &e);
	json_decref(answer);
	ask_close(ask);
	return code;
}

static const char flush_more[] =
	"TARGET is the file of a mount, or its process id. What programs wrote through mmap is\n"
	"written back first. Exit status 6: the far side did not take everything.\n"
	"\n"
	"Example:\n"
	"  remora flush disk.img && echo safe\n";

int cmd_flush(int argc, char **argv)
{
	const struct usage usage = {
		.name = "flush",
		.args = "[OPTION]... TARGET",
		.more = flush_more,
		.args_min = 1,
		.args_max = 1,
		.json = true,
	};
	struct common common;
	struct ask ask = { 0 };
	int r = options_parse(&usage, &common, argc, argv);

	if (r >= 0)
		return r;
	ask.quiet = common.quiet;
	return out_end(flush_run(&ask, argv[optind], common.json));
}
