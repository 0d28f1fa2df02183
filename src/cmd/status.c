/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora status: what runs on this machine, and how it is.
 *
 * Place: options; asks the processes (control.h); gives their answers to status_text.c,
 * status_table.c and status_map.c, or prints them as they are.
 *
 * Invariants: under --watch on a terminal, what is drawn is made in memory first, cut to the
 * window, and laid over what was there, line by line, so that nothing flickers and nothing wraps;
 * whatever ends it, the cursor is shown again.
 *
 * Locking: none.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "cmd/control.h"
#include "cmd/status.h"

#define ANSWER_NS (5 * NS_PER_S)
#define INTERVAL_NS NS_PER_S
#define INTERVAL_MIN_NS (50 * NS_PER_MS)

struct status {
	struct common common;
	const char *target; /* NULL: everything */
	bool watch, map;
	uint64_t interval_ns;
	struct wake wake; /* watch */
	struct control_peer *peer;
	size_t count;
	json_t **answer; /* of `answers` that answered */
	size_t answers;
	bool kept;	 /* the peer is asked again, not looked for */
	unsigned lines;	 /* on the terminal, to be drawn over */
};

/* ---- asking ---- */

static void answers_drop(struct status *s)
{
	for (size_t i = 0; i < s->answers; i++)
		json_decref(s->answer[i]);
	free(s->answer);
	s->answer = NULL;
	s->answers = 0;
}

static void peers_drop(struct status *s)
{
	control_peers_free(s->peer, s->count);
	s->peer = NULL;
	s->count = 0;
}

static int peers_find(struct status *s, struct err *e)
{
	int r;

	peers_drop(s);
	if (!s->target)
		return control_find_all(&s->peer, &s->count, e);
	s->peer = calloc(1, sizeof(*s->peer));
	if (!s->peer)
		return err_sys(e, -ENOMEM, "status");
	s->count = 1;
	r = control_find(s->peer, s->target, e);
	s->kept = !r;
	return r;
}

/* -EINTR: the end. */
static int peer_ask(struct status *s, struct control_peer *peer, json_t **ret, struct err *e)
{
	unsigned cells = map_cells(out_width(stdout), out_height(stdout));
	json_t *args = NULL;
	int r;

	if (s->map && !strcmp(peer->kind, "mount"))
		args = json_pack("{s:I}", "map", (json_int_t)cells);
	peer->silence_ns = ANSWER_NS;
	peer->wake_fd = s->watch ? s->wake.fd : -1;
	r = control_ask(peer, "status", args, NULL, NULL, ret, e);
	while (r == -EINTR) {
		wake_read(&s->wake);
		if (s->wake.ended)
			break;
		r = control_wait(peer, NULL, NULL, ret, e);
	}
	if (r) {
		json_decref(*ret);
		*ret = NULL;
	}
	return r;
}

/* One that ends or hangs meanwhile is no reason not to tell about the others. */
static int answers_get(struct status *s, struct err *e)
{
	int r = s->kept ? 0 : peers_find(s, e);

	answers_drop(s);
	if (r)
		return r;
	s->answer = calloc(s->count + 1, sizeof(json_t *));
	if (!s->answer)
		return err_sys(e, -ENOMEM, "status");
	for (size_t i = 0; i < s->count; i++) {
		json_t *answer = NULL;

		r = peer_ask(s, &s->peer[i], &answer, e);
		if (!r)
			s->answer[s->answers++] = answer;
		else if (s->target || r == -EINTR)
			return r;
		else if (r != -ECONNRESET && !s->watch)
			say_note("%s; it is left out", e->text);
	}
	return 0;
}

/* ---- showing ---- */

static uint64_t wall_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void draw(const struct status *s, FILE *f)
{
	const struct look look = {
		.f = f,
		.width = out_width(stdout),
		.height = out_height(stdout),
		.utf8 = out_utf8(),
		.color = *out_color(stdout, OUT_PLAIN),
		.now_ns = wall_ns(),
	};

	if (!s->answers)
		fprintf(f, "Nothing runs here: no mount, no server.\n");
	else if (s->answers == 1)
		status_draw_one(&look, s->answer[0]);
	else
		status_draw_table(&look, s->answer, s->answers);
}

static void print_json(const struct status *s)
{
	json_t *all;

	if (s->target) {
		all = json_incref(s->answer[0]);
	} else {
		all = json_array();
		for (size_t i = 0; i < s->answers; i++)
			json_array_append(all, s->answer[i]);
	}
	if (s->watch)
		out_json_line(all);
	else
		out_json(all);
}

/* A line without its end, cut to the columns that there are; escape sequences take none. */
static void line_print(const char *line, size_t len, unsigned width)
{
	unsigned columns = 0;
	bool escape = false;

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)line[i];

		if (c == '\033')
			escape = true;
		if (!escape && (c & 0xc0) != 0x80)
			columns++;
		if (escape || columns <= width)
			putchar(c);
		if (escape && c == 'm')
			escape = false;
	}
}

/* Over what was drawn before. */
static void redraw(struct status *s, const char *text)
{
	unsigned width = out_width(stdout), height = out_height(stdout), n = 0;

	if (s->wake.resized) /* the terminal has wrapped lines anew: nobody knows where they are */
		fputs("\033[2J\033[H", stdout);
	else if (s->lines)
		printf("\033[%uA", s->lines);
	s->wake.resized = false;
	putchar('\r');
	for (; *text && n + 1 < height; n++) {
		size_t len = strcspn(text, "\n");

		line_print(text, len, width);
		fputs("\033[K\n", stdout);
		text += len + (text[len] == '\n');
	}
	fputs("\033[J", stdout);
	s->lines = n;
}

static int show(struct status *s)
{
	AUTO_FREE char *text = NULL;
	size_t len;
	FILE *f;

	if (s->common.json) {
		print_json(s);
		return 0;
	}
	f = open_memstream(&text, &len);
	if (!f)
		return -ENOMEM;
	draw(s, f);
	if (fclose(f))
		return -ENOMEM;
	if (s->watch && out_is_terminal(stdout)) {
		redraw(s, text);
		return 0;
	}
	if (s->watch && s->lines++) /* blocks */
		putchar('\n');
	fputs(text, stdout);
	return 0;
}

/* ---- the command ---- */

static int watch(struct status *s, struct err *e)
{
	bool cursor = out_is_terminal(stdout) && !s->common.json, seen = false;
	int r;

	if (cursor)
		fputs("\033[?25l", stdout);
	for (;;) {
		r = answers_get(s, e);
		if (r || s->wake.ended)
			break;
		seen = true;
		r = show(s);
		if (r || fflush(stdout))
			break;
		wake_wait(&s->wake, s->interval_ns);
		if (s->wake.ended)
			break;
	}
	if (cursor) {
		fputs("\033[?25h", stdout);
		fflush(stdout);
	}
	if (r == -EINTR)
		return 0;
	if (r == -ECONNRESET && seen) {
		say_note("%s has ended", s->target);
		return 0;
	}
	return r;
}

static int once(struct status *s, struct err *e)
{
	int r = answers_get(s, e);

	if (!r && s->map && s->answers > 1)
		return say_usage("--map needs a target: %zu mounts and servers run, remora status "
				 "lists them",
				 s->answers);
	if (!r && show(s))
		r = err_sys(e, -ENOMEM, "status");
	return r ? say_failed(e, NULL) : CMD_OK;
}

static int status_run(struct status *s)
{
	struct err e = { 0 };
	int r;

	if (!s->watch)
		return once(s, &e);
	r = wake_open(&s->wake, NEVER_NS, &e);
	if (r)
		return say_failed(&e, NULL);
	r = watch(s, &e);
	wake_close(&s->wake);
	return r ? say_failed(&e, NULL) : CMD_OK;
}

static const char status_more[] =
	"TARGET is the file of a mount, the address of a server, or a process id. Without it, all\n"
	"mounts and servers of this user are told, and root's are everybody's.\n"
	"\n"
	"Examples:\n"
	"  remora status\n"
	"  remora status --map --watch disk.img\n"
	"  remora status --json disk.img | jq .unsafe_bytes\n";

int cmd_status(int argc, char **argv)
{
	struct status s = { .interval_ns = INTERVAL_NS };
	uint64_t interval_ns = 0;
	const struct opt options[] = {
		{ "map", 'm', OPT_FLAG, NULL,
		  "draws which parts are local, dirty, on their way, as wide as the window", &s.map },
		{ "watch", 'w', OPT_FLAG, NULL, "goes on, until ^C", &s.watch },
		{ "interval", 'i', OPT_TIME, "TIME", "between two looks of --watch; default: 1s",
		  &interval_ns },
		{ 0 },
	};
	const struct usage usage = {
		.name = "status",
		.args = "[OPTION]... [TARGET]",
		.options = options,
		.more = status_more,
		.args_max = 1,
		.json = true,
	};
	int r = options_parse(&usage, &s.common, argc, argv);

	if (r >= 0)
		return r;
	if (interval_ns && !s.watch)
		return say_usage("--interval is of --watch");
	if (interval_ns)
		s.interval_ns = MAX(interval_ns, INTERVAL_MIN_NS);
	s.target = optind < argc ? argv[optind] : NULL;
	r = status_run(&s);
	answers_drop(&s);
	peers_drop(&s);
	return out_end(r);
}
