/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that runs, one line each: what it is called, how much is local, what is not safe, how fast.
 *
 * Place: pure drawing: what the processes told, onto a stream.
 *
 * Invariant: the columns stand under each other; what is too long for the window is the target, of
 * which the end is kept, for that is where names differ.
 *
 * Locking: none.
 */
#include <inttypes.h>
#include <string.h>

#include "base/limits.h"
#include "base/size.h"
#include "cmd/status.h"

#define WIDE_COLUMNS 100u  /* from here on rates are told apart */
#define OTHER_COLUMNS 59u  /* but for the target */
#define RATE_COLUMNS 12u
#define TARGET_MIN 12u
#define TARGET_MAX 60u

/* The end of it, when it does not fit. */
static void target_put(const struct look *look, const char *target, unsigned columns)
{
	unsigned has = text_columns(target);
	const char *cut = look->utf8 ? "…" : "<";

	if (has > columns) {
		fputs(cut, look->f);
		while (text_columns(target) > columns - 1)
			do
				target++;
			while ((*target & 0xc0) == 0x80);
		has = 1 + text_put(look->f, target);
	} else {
		text_put(look->f, target);
	}
	fprintf(look->f, "%*s", columns > has ? (int)(columns - has) : 0, "");
}

static void state_put(const struct look *look, const json_t *status)
{
	const char *state = status_text(status, "state");

	if (!strcmp(status_text(status, "far"), "away")) {
		fprintf(look->f, "%saway%s", look_color(look, OUT_RED),
			look_color(look, OUT_PLAIN));
		return;
	}
	fputs(look_color(look, !strcmp(state, "serving") ? OUT_GREEN : OUT_YELLOW), look->f);
	text_put(look->f, *state ? state : "?");
	fputs(look_color(look, OUT_PLAIN), look->f);
}

static void mount_put(const struct look *look, const json_t *s)
{
	char size[SIZE_TEXT_MAX], unsafe[SIZE_TEXT_MAX], local[16] = "-",
		pull[SIZE_TEXT_MAX + 8], push[SIZE_TEXT_MAX + 8];
	uint64_t total = status_number(s, "size"), bad = status_number(s, "unsafe_bytes"),
		 here = status_number(s, "local_bytes"), pulls = status_number(s, "pull_rate"),
		 pushes = status_number(s, "push_rate");

	if (json_object_get(s, "local_bytes"))
		snprintf(local, sizeof(local), "%.0f %%",
			 here == total ? 100 : MIN(100.0 * (double)here / (double)total, 99));
	fprintf(look->f, "%9s  %5s  %s%9s%s  ", size_format(total, size), local,
		bad ? look_color(look, OUT_RED) : "", bad ? size_format(bad, unsafe) : "-",
		look_color(look, OUT_PLAIN));
	if (look->width >= WIDE_COLUMNS)
		fprintf(look->f, "%10s  %10s  ", rate_format(pulls, NS_PER_S, pull),
			rate_format(pushes, NS_PER_S, push));
	else
		fprintf(look->f, "%10s  ", rate_format(pulls + pushes, NS_PER_S, pull));
	state_put(look, s);
}

static void server_put(const struct look *look, const json_t *s)
{
	uint64_t total = 0, clients = status_number(s, "clients");
	const json_t *resource;
	char size[SIZE_TEXT_MAX];
	size_t i;

	json_array_foreach(json_object_get(s, "resources"), i, resource) {
		total += status_number(resource, "size");
	}
	fprintf(look->f, "%9s  %5s  %9s  %10s  ", size_format(total, size), "-", "-", "-");
	if (look->width >= WIDE_COLUMNS)
		fprintf(look->f, "%10s  ", "-");
	fprintf(look->f, "%s%" PRIu64 " client%s%s", clients ? look_color(look, OUT_GREEN) : "",
		clients, clients == 1 ? "" : "s", look_color(look, OUT_PLAIN));
}

void status_draw_table(const struct look *look, json_t *const *status, size_t count)
{
	bool wide = look->width >= WIDE_COLUMNS;
	unsigned columns = TARGET_MIN, other = OTHER_COLUMNS + (wide ? RATE_COLUMNS : 0u),
		 room = look->width > other ? look->width - other : 0;

	for (size_t i = 0; i < count; i++)
		columns = MAX(columns, text_columns(status_text(status[i], "target")));
	columns = MIN(columns, MAX(MIN(room, TARGET_MAX), TARGET_MIN));
	fprintf(look->f, "%s%-5s  %-*s %9s  %5s  %9s  ", look_color(look, OUT_BOLD), "KIND",
		(int)columns, "TARGET", "SIZE", "LOCAL", "UNSAFE");
	if (wide)
		fprintf(look->f, "%10s  %10s", "PULL", "PUSH");
	else
		fprintf(look->f, "%10s", "RATE");
	fprintf(look->f, "  STATE%s\n", look_color(look, OUT_PLAIN));
	for (size_t i = 0; i < count; i++) {
		const char *kind = status_text(status[i], "kind");

		fprintf(look->f, "%-5.5s  ", kind);
		target_put(look, status_text(status[i], "target"), columns);
		fputc(' ', look->f);
		if (!strcmp(kind, "serve"))
			server_put(look, status[i]);
		else
			mount_put(look, status[i]);
		fputc('\n', look->f);
	}
}
