/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the subcommands share: exit codes, options (one table serves getopt and --help), messages,
 * output, and the loop with its signals. Only commands print.
 */
#ifndef REMORA_CMD_CMD_H
#define REMORA_CMD_CMD_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/env.h"
#include "base/err.h"
#include "io/loop.h"

/* Exit codes, the same for every command; remora(1) has this table. */
enum cmd_exit {
	CMD_OK = 0,
	CMD_FAILED = 1,	     /* anything that is not below */
	CMD_USAGE = 2,	     /* the command line, or a spec in it, is wrong */
	CMD_UNREACHABLE = 3, /* not found, nobody listens, no answer, no right to it */
	CMD_DATA = 4,	     /* input or output error; a comparison found a difference */
	CMD_INCOMPLETE = 5,  /* interrupted; what was done so far is safe and the rest can follow */
	CMD_UNSAFE = 6,	     /* the far side did not take all that was written */
};

struct cmd {
	const char *name;
	const char *what;		   /* half a line: "copies a resource to another" */
	int (*run)(int argc, char **argv); /* argv[0] is the name; returns the exit code */
};
const struct cmd *cmd_find(const char *name); /* NULL: there is none */

int cmd_serve(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_copy(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_mount(int argc, char **argv);
int cmd_unmount(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_pull(int argc, char **argv);
int cmd_flush(int argc, char **argv);
int cmd_invalidate(int argc, char **argv);
int cmd_log(int argc, char **argv);
int cmd_cache(int argc, char **argv);
int cmd_record(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_keygen(int argc, char **argv);
int cmd_link(int argc, char **argv);
int cmd_bench(int argc, char **argv);

/* ---- options (options.c) ---- */

enum opt_kind {
	OPT_FLAG,   /* bool: set */
	OPT_NOT,    /* bool: cleared */
	OPT_SIZE,   /* uint64_t, bytes, from 1 */
	OPT_TIME,   /* uint64_t, ns */
	OPT_RATE,   /* uint64_t, bytes per second */
	OPT_NUMBER, /* uint64_t, 0 to 2^31 - 1 */
	OPT_TEXT,   /* const char * */
	OPT_LIST,   /* struct opt_list: may be given several times */
	OPT_WORD,   /* unsigned: which of the words in `arg` ("auto|json|none") */
};

#define OPT_LIST_MAX 64u

struct opt_list {
	const char *at[OPT_LIST_MAX];
	size_t count;
};

struct opt {
	const char *name; /* long; NULL ends the table */
	char letter;	  /* 0 = none */
	enum opt_kind kind;
	const char *arg; /* what help calls the value; OPT_WORD: the words */
	const char *help;
	void *to;
};

struct usage {
	const char *name; /* of the command */
	const char *args; /* "[OPTION]... SRC DST"; a second line is indented under it */
	const struct opt *options;
	const char *more; /* behind the options: what they mean together, examples; or NULL */
	size_t args_min, args_max;
	bool json; /* has --json */
	bool loop; /* has --loop */
};

/* Options that every command has (json and loop: most). */
struct common {
	bool json, quiet;
	unsigned loop;	  /* enum loop_engine */
	unsigned verbose; /* how often -v was given */
};

/* -1: go on with argv[optind] ... argv[argc - 1], else the code to exit with (help was printed, or
 * an error). */
MUST_USE int options_parse(const struct usage *u, struct common *common, int argc, char **argv);

/* ---- messages on stderr (output.c) ---- */

void say_name(const char *name); /* of the command, for the messages below */
const char *said_name(void);	 /* "remora copy" */

/* "remora copy: ..." */
void say_error(const char *fmt, ...) PRINTF_LIKE(1, 2);
void say_note(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* An error of the command line; "see remora copy --help" follows. CMD_USAGE. */
int say_usage(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Says e->text, then in a second line what to do next (NULL = the text says it already); the exit
 * code for e->code. */
int say_failed(const struct err *e, const char *next);
enum cmd_exit exit_of(int err); /* 0 or -errno */

/* ---- output on stdout (output.c) ---- */

/* Prints and frees: several lines for people who look, or one for programs that read while we run.
 */
void out_json(json_t *value);
void out_json_line(json_t *value);

/* Last: what was printed reached its reader, else a message and CMD_FAILED in place of `code`. */
MUST_USE int out_end(int code);

/* Colour codes, or "" where they are not wanted (no terminal, NO_COLOR, TERM=dumb). */
enum out_color {
	OUT_PLAIN,
	OUT_BOLD,
	OUT_DIM,
	OUT_RED,
	OUT_GREEN,
	OUT_YELLOW,
	OUT_BLUE,
	OUT_MAGENTA,
	OUT_CYAN,
	OUT_COLORS
};
const char *out_color(FILE *f, enum out_color color);
const char *color_code(enum out_color color); /* wanted or not */
bool out_is_terminal(FILE *f);
unsigned out_width(FILE *f);  /* columns of the terminal; 80 when nobody knows */
unsigned out_height(FILE *f); /* lines; 24 when nobody knows */
bool out_utf8(void);	      /* the locale's characters are UTF-8 */

/* "1.2 GiB/s"; buf has SIZE_TEXT_MAX + 8 bytes. */
const char *rate_format(uint64_t bytes, uint64_t ns, char *buf);

/* ---- a progress line (meter.c): one look for all that takes its time ---- */

struct meter {
	const char *phase; /* "copy"; borrowed */
	uint64_t done, size, start_ns, start_done;
	uint64_t rate; /* bytes per second, over the last few */
	/* where it was, for the rate */
	struct {
		uint64_t ns, done;
	} mark[16];
	unsigned marks;
	uint64_t shown_ns;
	bool shown;
};

void meter_start(struct meter *m, const char *phase, uint64_t now, uint64_t done, uint64_t size);
void meter_step(struct meter *m, uint64_t now, uint64_t done); /* some five times a second */
void meter_show(struct meter *m);  /* on stderr, over the line that is there */
void meter_json(const struct meter *m, uint64_t now);
void meter_clear(struct meter *m); /* takes the line away; before anything else is printed */
/* All of it for those who are called when there is news, however often: not more than five times a
 * second, and only on a terminal. The phase may change. */
void meter_news(struct meter *m, const char *phase, uint64_t done, uint64_t size);

/* ---- signals of commands without a loop (wake.c) ---- */

struct wake {
	int fd; /* can be read when something has happened; for poll() */
	int signal_fd, timer_fd;
	unsigned ended; /* how often SIGINT, SIGTERM or SIGHUP came, or the time was over */
	bool resized;	/* the terminal has another size; cleared by who looks */
};

/* From now on these signals only wake. for_ns: it also ends by itself; NEVER_NS = not. */
MUST_USE int wake_open(struct wake *wake, uint64_t for_ns, struct err *e);
void wake_read(struct wake *wake);		     /* what has happened */
void wake_wait(struct wake *wake, uint64_t ns); /* until something happens, or so long */
void wake_close(struct wake *wake);

/* Tells the process that started us that we are ready: the lines go to `fd`, which is closed. fd <
 * 0: nothing. */
MUST_USE int ready_tell(int fd, const char *lines, struct err *e);
/* --ready-fd: checks that it is open. */
MUST_USE int ready_check(uint64_t number, int *ret_fd, struct err *e);

/* ---- the loop of a command (run.c) ---- */

struct run {
	struct env env;
	struct loop *loop;
	int signal_fd;
	struct op signal_op;
	unsigned signals; /* how many came */
	int last_signal;
	uint64_t last_signal_ns;
	/* SIGINT, SIGTERM, SIGHUP, from the loop. While it is NULL they end the process (exit code
	 * CMD_INCOMPLETE). */
	void (*on_signal)(struct run *run);
	bool signal_done;
};

/* spec_open(), with e->code the error itself, and not that the spec is wrong where it names what is
 * not there. */
struct store_open;
struct store;
MUST_USE int run_spec_open(struct store **ret, const char *spec, const struct store_open *how,
			   struct err *e);

MUST_USE int run_open(struct run *run, const struct common *common, struct err *e);
void run_close(struct run *run); /* nothing but the signals may be pending */

#endif
