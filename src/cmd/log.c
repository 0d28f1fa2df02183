/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora log: what happened to a mount or a server lately.
 *
 * Place: options and output around the verb "log".
 *
 * Locking: none.
 */
#include <errno.h>
#include <getopt.h>
#include <string.h>
#include <time.h>

#include "cmd/ask.h"
#include "cmd/status.h"

#define LAST_DEFAULT 100u
#define LAST_MAX 1000u

struct log_show {
	struct ask ask;
	bool json, follow, broken;
};

static void event_print(const json_t *event)
{
	const char *level = status_text(event, "level");
	uint64_t ns = status_number(event, "time_ns");
	time_t seconds = (time_t)(ns / NS_PER_S);
	enum out_color color = !strcmp(level, "error")	   ? OUT_RED
			       : !strncmp(level, "warn", 4) ? OUT_YELLOW
							    : OUT_PLAIN;
	char when[32] = "";
	struct tm tm;

	if (localtime_r(&seconds, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
	printf("%s%s.%03u%s  ", out_color(stdout, OUT_DIM), when,
	       (unsigned)(ns / NS_PER_MS % 1000), out_color(stdout, OUT_PLAIN));
	printf("%s%-7s%s  ", out_color(stdout, color), level, out_color(stdout, OUT_PLAIN));
	text_put(stdout, status_text(event, "text"));
	putchar('\n');
}

static void event_follow(void *arg, json_t *event)
{
	struct log_show *l = arg;

	if (l->json)
		out_json_line(json_incref(event));
	else
		event_print(event);
	if (fflush(stdout)) /* nobody reads any more */
		l->broken = true;
}

static void events_print(const struct log_show *l, json_t *answer)
{
	json_t *events = json_object_get(answer, "events"), *event;
	size_t i;

	if (l->json) {
		out_json(json_pack("{s:O}", "events", events));
		return;
	}
	json_array_foreach(events, i, event) {
		event_print(event);
	}
	if (!json_array_size(events))
		say_note("%s has nothing to tell", l->ask.peer.target);
}

static int log_run(struct log_show *l, const char *target, uint64_t last)
{
	json_t *args = json_pack("{s:b, s:I}", "follow", l->follow, "last", (json_int_t)last),
	       *answer = NULL;
	struct err e = { 0 };
	int r = ask_open(&l->ask, target, NULL, &e);

	if (r) {
		json_decref(args);
		return say_failed(&e, NULL);
	}
	r = control_ask(&l->ask.peer, "log", args, event_follow, l, &answer, &e);
	while (r == -EINTR && !l->broken) {
		wake_read(&l->ask.wake);
		if (l->ask.wake.ended)
			break;
		r = control_wait(&l->ask.peer, event_follow, l, &answer, &e);
	}
	if (!r && !l->follow)
		events_print(l, answer);
	json_decref(answer);
	ask_close(&l->ask);
	/* ^C is how following ends, and so is the end of the process */
	if (l->follow && (r == -EINTR || r == -ECONNRESET || r == -ESHUTDOWN))
		r = 0;
	return r ? say_failed(&e, NULL) : CMD_OK;
}

static const char log_more[] =
	"TARGET is the file of a mount, the address of a server, or a process id. A process keeps\n"
	"its last 1000 events.\n"
	"\n"
	"Examples:\n"
	"  remora log disk.img\n"
	"  remora log --follow --last 10 unix:/run/remora.sock\n";

int cmd_log(int argc, char **argv)
{
	struct log_show l = { 0 };
	uint64_t last = LAST_DEFAULT;
	const struct opt options[] = {
		{ "follow", 'f', OPT_FLAG, NULL, "goes on with what happens, until ^C", &l.follow },
		{ "last", 'n', OPT_NUMBER, "N", "how many events of the past; default: 100", &last },
		{ 0 },
	};
	const struct usage usage = {
		.name = "log",
		.args = "[OPTION]... TARGET",
		.options = options,
		.more = log_more,
		.args_min = 1,
		.args_max = 1,
		.json = true,
	};
	struct common common;
	int r = options_parse(&usage, &common, argc, argv);

	if (r >= 0)
		return r;
	l.json = common.json;
	return out_end(log_run(&l, argv[optind], MIN(last, LAST_MAX)));
}
