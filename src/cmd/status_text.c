/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The overview of one mount or one server: what somebody wants to know who looks at it.
 *
 * Place: pure drawing: what the process told, onto a stream.
 *
 * Invariants: what a process told is shown as text, never as a command to the terminal. Absent
 * members are left out, for a process of another version may have other ones.
 *
 * Locking: none.
 */
#include <inttypes.h>
#include <string.h>

#include "base/limits.h"
#include "base/size.h"
#include "cmd/status.h"

#define BAR_COLUMNS 30u

const char *look_color(const struct look *look, enum out_color color)
{
	return look->color ? color_code(color) : "";
}

/* ---- members ---- */

uint64_t status_number(const json_t *status, const char *name)
{
	json_int_t v = json_integer_value(json_object_get(status, name));

	return v > 0 ? (uint64_t)v : 0;
}

const char *status_text(const json_t *status, const char *name)
{
	const char *text = json_string_value(json_object_get(status, name));

	return text ? text : "";
}

static bool has(const json_t *status, const char *name)
{
	return json_object_get(status, name);
}

/* One character of UTF-8 (JSON has no other): its bytes. *ret_bad: a control character. */
static size_t char_next(const char *s, bool *ret_bad)
{
	const unsigned char *u = (const unsigned char *)s;
	size_t len = 1;

	while ((u[len] & 0xc0) == 0x80)
		len++;
	*ret_bad = u[0] < 0x20 || u[0] == 0x7f || (u[0] == 0xc2 && u[1] < 0xa0);
	return len;
}

unsigned text_put(FILE *f, const char *text)
{
	unsigned columns = 0;
	size_t len;
	bool bad;

	for (; *text; text += len, columns++) {
		len = char_next(text, &bad);
		if (bad)
			fputc('?', f);
		else
			fwrite(text, 1, len, f);
	}
	return columns;
}

unsigned text_columns(const char *text)
{
	unsigned columns = 0;
	bool bad;

	for (; *text; columns++)
		text += char_next(text, &bad);
	return columns;
}

const char *age_format(uint64_t ns, char *buf, size_t len)
{
	uint64_t s = ns / NS_PER_S;

	if (s < 120)
		snprintf(buf, len, "%" PRIu64 " s", s);
	else if (s < 2 * 3600)
		snprintf(buf, len, "%" PRIu64 " min", s / 60);
	else if (s < 2 * 86400)
		snprintf(buf, len, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
	else
		snprintf(buf, len, "%" PRIu64 " days", s / 86400);
	return buf;
}

static uint64_t age_of(const struct look *look, uint64_t then_ns)
{
	return look->now_ns > then_ns ? look->now_ns - then_ns : 0;
}

/* ---- pieces of lines ---- */

static const char *dot(const struct look *look)
{
	return look->utf8 ? " · " : ", ";
}

static void label(const struct look *look, const char *text)
{
	fprintf(look->f, "  %s%-10s%s", look_color(look, OUT_DIM), text,
		look_color(look, OUT_PLAIN));
}

static void colored(const struct look *look, enum out_color color, const char *text)
{
	fputs(look_color(look, color), look->f);
	text_put(look->f, text);
	fputs(look_color(look, OUT_PLAIN), look->f);
}

static const char *bytes_of(const json_t *status, const char *name, char *buf)
{
	return size_format(status_number(status, name), buf);
}

static const char *span(const json_t *from, const char *name, char *buf)
{
	uint64_t ns = status_number(from, name);

	return ns ? time_format(ns, buf) : "-";
}

static void bar(const struct look *look, double part)
{
	static const char *const eighths[] = { "", "▏", "▎", "▍", "▌", "▋", "▊", "▉" };
	unsigned n = (unsigned)(part * BAR_COLUMNS * 8);
	unsigned full = MIN(n / 8, BAR_COLUMNS), used = full;

	if (!look->utf8)
		fputc('[', look->f);
	fputs(look_color(look, OUT_GREEN), look->f);
	for (unsigned i = 0; i < full; i++)
		fputs(look->utf8 ? "█" : "#", look->f);
	if (look->utf8 && full < BAR_COLUMNS && n % 8) {
		fputs(eighths[n % 8], look->f);
		used++;
	}
	fprintf(look->f, "%s%s", look_color(look, OUT_PLAIN), look_color(look, OUT_DIM));
	for (; used < BAR_COLUMNS; used++)
		fputs(look->utf8 ? "░" : "-", look->f);
	fputs(look_color(look, OUT_PLAIN), look->f);
	if (!look->utf8)
		fputc(']', look->f);
}

/* ---- what mounts and servers share ---- */

static void draw_head(const struct look *look, const json_t *status)
{
	const char *state = status_text(status, "state");
	bool away = !strcmp(status_text(status, "far"), "away");

	colored(look, OUT_BOLD, status_text(status, "target"));
	fputs("  ", look->f);
	colored(look, !strcmp(state, "serving") ? OUT_GREEN : OUT_YELLOW,
		*state ? state : status_text(status, "kind"));
	if (away) {
		fputs(", ", look->f);
		colored(look, OUT_RED, "the far side is away");
	}
	fputc('\n', look->f);
}

static void draw_process(const struct look *look, const json_t *status)
{
	char age[48];

	fprintf(look->f, "process %" PRIu64, status_number(status, "pid"));
	if (has(status, "started_ns"))
		fprintf(look->f, "%sup %s", dot(look),
			age_format(age_of(look, status_number(status, "started_ns")), age,
				   sizeof(age)));
}

/* Rows of {count, bytes, p50 ...}. */
static void draw_latency(const struct look *look, const json_t *of, const char *name)
{
	char bytes[SIZE_TEXT_MAX], p50[SIZE_TEXT_MAX], p90[SIZE_TEXT_MAX], p99[SIZE_TEXT_MAX],
		max[SIZE_TEXT_MAX];

	if (!of)
		return;
	label(look, name);
	fprintf(look->f, "%10" PRIu64 "  %9s  %8s  %8s  %8s  %8s\n", status_number(of, "count"),
		has(of, "bytes") && status_number(of, "bytes") ? bytes_of(of, "bytes", bytes) : "-",
		span(of, "p50_ns", p50), span(of, "p90_ns", p90), span(of, "p99_ns", p99),
		span(of, "max_ns", max));
}

static void stages_head(const struct look *look)
{
	fprintf(look->f, "\n  %s%-13s%9s  %6s  %9s  %8s  %8s%s\n", look_color(look, OUT_DIM),
		"STAGE", "REQUESTS", "FAILED", "BYTES", "P50", "P99", look_color(look, OUT_PLAIN));
}

static void draw_stages(const struct look *look, const json_t *stages)
{
	char bytes[SIZE_TEXT_MAX], p50[SIZE_TEXT_MAX], p99[SIZE_TEXT_MAX];
	const json_t *stage;
	size_t i;

	json_array_foreach(stages, i, stage) {
		uint64_t failed = status_number(stage, "failed");
		const char *more = status_text(stage, "status");
		unsigned n;

		fputs("  ", look->f);
		n = text_put(look->f, status_text(stage, "name"));
		fprintf(look->f, "%*s %9" PRIu64 "  %s%6" PRIu64 "%s  %9s  %8s  %8s\n",
			n < 12 ? 12 - (int)n : 0, "", status_number(stage, "requests"),
			failed ? look_color(look, OUT_RED) : "", failed,
			look_color(look, OUT_PLAIN), bytes_of(stage, "bytes", bytes),
			span(stage, "p50_ns", p50), span(stage, "p99_ns", p99));
		if (!*more)
			continue;
		fprintf(look->f, "    %s", look_color(look, OUT_DIM));
		text_put(look->f, more);
		fprintf(look->f, "%s\n", look_color(look, OUT_PLAIN));
	}
}

static void draw_error(const struct look *look, const json_t *error)
{
	char age[48];

	if (!json_is_object(error))
		return;
	fputc('\n', look->f);
	label(look, "Error");
	colored(look, OUT_RED, status_text(error, "code"));
	if (has(error, "time_ns"))
		fprintf(look->f, ", %s ago",
			age_format(age_of(look, status_number(error, "time_ns")), age,
				   sizeof(age)));
	fputs(": ", look->f);
	text_put(look->f, status_text(error, "text"));
	fputc('\n', look->f);
}

/* ---- a mount ---- */

static void draw_what(const struct look *look, const json_t *status)
{
	uint64_t users = status_number(status, "users");

	fprintf(look->f, "  %s", look_color(look, OUT_DIM));
	text_put(look->f, status_text(status, "spec"));
	fputs("\n  ", look->f);
	draw_process(look, status);
	fputs(dot(look), look->f);
	text_put(look->f, status_text(status, "mode"));
	fputs(json_is_true(json_object_get(status, "read_only")) ? ", read only" : "", look->f);
	fputs(dot(look), look->f);
	text_put(look->f, status_text(status, "engine"));
	fprintf(look->f, "%sopen %" PRIu64 " time%s%s\n\n", dot(look), users, users == 1 ? "" : "s",
		look_color(look, OUT_PLAIN));
}

static void draw_local(const struct look *look, const json_t *status)
{
	uint64_t size = status_number(status, "size"), local = status_number(status, "local_bytes");
	double part = size ? (double)local / (double)size : 1;
	char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];

	if (!has(status, "local_bytes")) {
		label(look, "Size");
		fprintf(look->f, "%s\n", size_format(size, a));
		return;
	}
	label(look, "Local");
	bar(look, MIN(part, 1));
	fprintf(look->f, " %5.1f %%  %s of %s", local == size ? 100.0 : MIN(100 * part, 99.9),
		size_format(local, a), size_format(size, b));
	if (status_number(status, "budget_bytes"))
		fprintf(look->f, ", at most %s", bytes_of(status, "budget_bytes", a));
	fputc('\n', look->f);
}

/* What a power cut would take: the line that must not be overlooked. */
static void draw_unsafe(const struct look *look, const json_t *status)
{
	static const struct {
		const char *name, *word;
	} parts[] = { { "dirty_bytes", "dirty" },
		      { "pushing_bytes", "being pushed" },
		      { "unflushed_bytes", "pushed, not flushed" } };
	uint64_t unsafe = status_number(status, "unsafe_bytes");
	char text[SIZE_TEXT_MAX];
	bool first = true;

	label(look, "Unsafe");
	if (!unsafe) {
		colored(look, OUT_GREEN, "nothing");
		fputc('\n', look->f);
		return;
	}
	fprintf(look->f, "%s%s%s%s", look_color(look, OUT_BOLD), look_color(look, OUT_RED),
		size_format(unsafe, text), look_color(look, OUT_PLAIN));
	for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
		uint64_t n = status_number(status, parts[i].name);

		if (n)
			fprintf(look->f, "%s%s %s", first ? ": " : ", ", size_format(n, text),
				parts[i].word);
		first = first && !n;
	}
	fputc('\n', look->f);
}

static void draw_flow(const struct look *look, const json_t *status, const char *name,
		      const char *rate, const char *total, const char *under_way)
{
	char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX], text[SIZE_TEXT_MAX + 8];

	if (!has(status, total))
		return;
	label(look, name);
	fprintf(look->f, "%-13s %s so far",
		rate_format(status_number(status, rate), NS_PER_S, text),
		bytes_of(status, total, a));
	if (status_number(status, under_way))
		fprintf(look->f, ", %s under way", bytes_of(status, under_way, b));
	fputc('\n', look->f);
}

static void draw_hits(const struct look *look, const json_t *status)
{
	uint64_t hits = status_number(status, "hits"), misses = status_number(status, "misses");

	if (!has(status, "hits"))
		return;
	label(look, "Hits");
	if (hits + misses)
		fprintf(look->f, "%.1f %%%*s %" PRIu64 " at once, %" PRIu64 " had to wait\n",
			100.0 * (double)hits / (double)(hits + misses),
			hits && !misses ? 6 : 7, "", hits, misses);
	else
		fputs("-\n", look->f);
}

static void draw_far(const struct look *look, const json_t *status)
{
	bool away = !strcmp(status_text(status, "far"), "away");
	const char *loss = status_text(status, "on_loss");
	char text[SIZE_TEXT_MAX];

	label(look, "Far");
	colored(look, away ? OUT_RED : OUT_GREEN, status_text(status, "far"));
	if (status_number(status, "rtt_ns"))
		fprintf(look->f, "%s%s round trip", dot(look),
			time_format(status_number(status, "rtt_ns"), text));
	if (*loss) {
		fprintf(look->f, "%swhen away: ", dot(look));
		text_put(look->f, loss);
	}
	if (status_number(status, "deadline_ns"))
		fprintf(look->f, ", for %s",
			time_format(status_number(status, "deadline_ns"), text));
	fputc('\n', look->f);
}

static void draw_mount(const struct look *look, const json_t *status)
{
	struct map_view map;

	draw_what(look, status);
	draw_local(look, status);
	draw_unsafe(look, status);
	draw_flow(look, status, "Pull", "pull_rate", "pulled_bytes", "pulling_bytes");
	draw_flow(look, status, "Push", "push_rate", "pushed_bytes", "pushing_bytes");
	draw_hits(look, status);
	draw_far(look, status);
	if (map_view_read(&map, status)) {
		fputc('\n', look->f);
		map_draw(look, &map);
	}
	fprintf(look->f, "\n%s  %-10s%10s  %9s  %8s  %8s  %8s  %8s%s\n", look_color(look, OUT_DIM),
		"", "COUNT", "BYTES", "P50", "P90", "P99", "MAX", look_color(look, OUT_PLAIN));
	draw_latency(look, json_object_get(status, "read"), "Read");
	draw_latency(look, json_object_get(status, "write"), "Write");
	draw_latency(look, json_object_get(status, "sync"), "Sync");
	if (json_array_size(json_object_get(status, "stages")))
		stages_head(look);
	draw_stages(look, json_object_get(status, "stages"));
	draw_error(look, json_object_get(status, "last_error"));
}

/* ---- a server ---- */

static void draw_resource(const struct look *look, const json_t *r)
{
	char size[SIZE_TEXT_MAX];

	fputs("  ", look->f);
	colored(look, OUT_BOLD, *status_text(r, "name") ? status_text(r, "name") : "(no name)");
	fprintf(look->f, "  %s%s  %s", bytes_of(r, "size", size),
		json_is_true(json_object_get(r, "read_only")) ? ", read only" : "",
		look_color(look, OUT_DIM));
	text_put(look->f, status_text(r, "spec"));
	fprintf(look->f, "%s\n", look_color(look, OUT_PLAIN));
	draw_stages(look, json_object_get(r, "stages"));
}

/* What it cannot do any more. A server of an earlier version tells nothing of it. */
static void draw_sandbox(const struct look *look, const json_t *sandbox)
{
	long long landlock = json_integer_value(json_object_get(sandbox, "landlock"));
	const char *user = status_text(sandbox, "user"), *missing = status_text(sandbox, "missing");

	if (!json_is_object(sandbox))
		return;
	label(look, "Sandbox");
	if (!json_is_true(json_object_get(sandbox, "on")))
		fprintf(look->f, "off");
	else
		fprintf(look->f, "%s%s%s%s",
			json_is_true(json_object_get(sandbox, "no_new_privs")) ? "no new privileges"
									       : "on",
			json_is_true(json_object_get(sandbox, "seccomp"))
				? ", filter of system calls"
				: "",
			landlock ? ", Landlock" : "", *user ? ", user " : "");
	text_put(look->f, user);
	if (*missing) {
		fprintf(look->f, "; without ");
		text_put(look->f, missing);
	}
	fputc('\n', look->f);
}

static void draw_server(const struct look *look, const json_t *status)
{
	const json_t *address, *resource;
	char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX], c[SIZE_TEXT_MAX];
	size_t i;

	fprintf(look->f, "  %s", look_color(look, OUT_DIM));
	draw_process(look, status);
	json_array_foreach(json_object_get(status, "addresses"), i, address) {
		if (!i)
			continue;
		fprintf(look->f, "%s", i == 1 ? ", also on " : ", ");
		text_put(look->f, json_string_value(address) ? json_string_value(address) : "");
	}
	fprintf(look->f, "%s\n\n", look_color(look, OUT_PLAIN));
	label(look, "Clients");
	fprintf(look->f,
		"%" PRIu64 ", on %" PRIu64 " connections%s%" PRIu64 " ever, %" PRIu64
		" refused, %" PRIu64 " dropped\n",
		status_number(status, "clients"), status_number(status, "connections"), dot(look),
		status_number(status, "accepted"), status_number(status, "refused"),
		status_number(status, "dropped"));
	label(look, "Traffic");
	fprintf(look->f, "%s read, %s written%s%s of it zeros that did not travel\n",
		bytes_of(status, "bytes_read", a), bytes_of(status, "bytes_written", b), dot(look),
		bytes_of(status, "zeros", c));
	label(look, "Requests");
	fprintf(look->f, "%" PRIu64 ", %" PRIu64 " failed\n", status_number(status, "requests"),
		status_number(status, "failed"));
	draw_sandbox(look, json_object_get(status, "sandbox"));
	stages_head(look);
	json_array_foreach(json_object_get(status, "resources"), i, resource) {
		draw_resource(look, resource);
	}
}

void status_draw_one(const struct look *look, const json_t *status)
{
	draw_head(look, status);
	if (!strcmp(status_text(status, "kind"), "serve"))
		draw_server(look, status);
	else
		draw_mount(look, status);
}
