/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options: each command has one table, from which getopt, the checks of values and --help are made.
 *
 * Place: first call of every command. Values are checked here, once; what a command gets is valid.
 *
 * Invariant: an option that help names is accepted, and the other way round.
 *
 * Locking: none; before there are threads.
 */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <string.h>

#include "base/size.h"
#include "cmd/cmd.h"

#define OPTIONS_MAX 40u
#define VALUE_OF_LONG 256 /* getopt's value for the i-th option of the table: this + i */

enum { COMMON_JSON, COMMON_LOOP, COMMON_VERBOSE, COMMON_QUIET, COMMON_HELP, COMMON_COUNT };

static const struct opt common_options[COMMON_COUNT] = {
	[COMMON_JSON] = { "json", 0, OPT_FLAG, NULL, "prints JSON", NULL },
	[COMMON_LOOP] = { "loop", 0, OPT_WORD, "auto|io_uring|epoll", "event loop; default: auto",
			  NULL },
	[COMMON_VERBOSE] = { "verbose", 'v', OPT_FLAG, NULL,
			     "tells more on stderr; twice: everything", NULL },
	[COMMON_QUIET] = { "quiet", 'q', OPT_FLAG, NULL, "tells only errors", NULL },
	[COMMON_HELP] = { "help", 'h', OPT_FLAG, NULL, "prints this", NULL },
};
static_assert(LOOP_AUTO == 0 && LOOP_URING == 1 && LOOP_EPOLL == 2,
	      "--loop's words are in the order of loop_engine");

/* All options of a command, its own first. */
struct table {
	struct opt at[OPTIONS_MAX];
	size_t count;
	struct option long_at[OPTIONS_MAX + 1];
	char letters[2 * OPTIONS_MAX + 4];
	bool help;
	bool verbose_again; /* set by each -v, counted and cleared after it */
};

static bool takes_value(const struct opt *o)
{
	return o->kind != OPT_FLAG && o->kind != OPT_NOT;
}

static void table_add(struct table *t, const struct opt *o, void *to)
{
	size_t len = strlen(t->letters);

	CHECK(t->count < OPTIONS_MAX);
	t->long_at[t->count] = (struct option){
		.name = o->name,
		.has_arg = takes_value(o) ? required_argument : no_argument,
		.val = VALUE_OF_LONG + (int)t->count,
	};
	if (o->letter)
		snprintf(t->letters + len, sizeof(t->letters) - len, "%c%s", o->letter,
			 takes_value(o) ? ":" : "");
	t->at[t->count] = *o;
	t->at[t->count++].to = to;
}

static void table_init(struct table *t, const struct usage *u, struct common *common)
{
	memset(t, 0, sizeof(*t));
	snprintf(t->letters, sizeof(t->letters), ":");
	for (const struct opt *o = u->options; o && o->name; o++)
		table_add(t, o, o->to);
	if (u->json)
		table_add(t, &common_options[COMMON_JSON], &common->json);
	if (u->loop)
		table_add(t, &common_options[COMMON_LOOP], &common->loop);
	table_add(t, &common_options[COMMON_VERBOSE], &t->verbose_again);
	table_add(t, &common_options[COMMON_QUIET], &common->quiet);
	table_add(t, &common_options[COMMON_HELP], &t->help);
}

/* ---- help ---- */

#define HELP_INDENT 26

/* Words of `text`, wrapped; the first line begins at `column`. */
static void help_wrap(const char *text, int column, int width)
{
	while (*text) {
		int len = (int)strcspn(text, " ");

		if (column > HELP_INDENT && column + len + 1 > width) {
			printf("\n%*s", HELP_INDENT, "");
			column = HELP_INDENT;
		}
		printf("%s%.*s", column > HELP_INDENT ? " " : "", len, text);
		column += len + (column > HELP_INDENT);
		text += len;
		text += strspn(text, " ");
	}
	putchar('\n');
}

static void help_option(const struct opt *o, int width)
{
	int column = printf(o->letter ? "  -%c, " : "      ", o->letter);

	column += printf("--%s", o->name);
	if (takes_value(o))
		column += printf(" %s", o->arg);
	if (column > HELP_INDENT - 2) {
		putchar('\n');
		column = 0;
	}
	printf("%*s", HELP_INDENT - column, "");
	help_wrap(o->help, HELP_INDENT, width);
}

static void help_print(const struct usage *u, const struct table *t)
{
	const struct cmd *cmd = cmd_find(u->name);
	int width = (int)MIN(out_width(stdout), 100u);
	const char *bold = out_color(stdout, OUT_BOLD), *plain = out_color(stdout, OUT_PLAIN);

	CHECK(cmd);
	printf("remora %s: %s\n\n%sUsage:%s remora %s %s\n\n%sOptions:%s\n", u->name, cmd->what,
	       bold, plain, u->name, u->args, bold, plain);
	for (size_t i = 0; i < t->count; i++)
		help_option(&t->at[i], width);
	if (u->more)
		printf("\n%s", u->more);
	printf("\nThe manual: man remora-%s\n", u->name);
}

/* ---- values ---- */

static int word_parse(const struct opt *o, const char *value, struct err *e)
{
	const char *word = o->arg;

	for (unsigned i = 0; *word; i++) {
		size_t len = strcspn(word, "|");

		if (strlen(value) == len && !memcmp(value, word, len)) {
			*(unsigned *)o->to = i;
			return 0;
		}
		word += len + (word[len] == '|');
	}
	return err_set(e, -EINVAL, "'%s' is none of %s", value, o->arg);
}

static int value_parse(const struct opt *o, const char *value, struct err *e)
{
	struct opt_list *list = o->to;
	int r;

	switch (o->kind) {
	case OPT_FLAG:
	case OPT_NOT:
		*(bool *)o->to = o->kind == OPT_FLAG;
		return 0;
	case OPT_SIZE:
		r = size_parse(value, o->to, e);
		return r || *(uint64_t *)o->to ? r : err_set(e, -EINVAL, "must not be 0");
	case OPT_TIME:
		return time_parse(value, o->to, e);
	case OPT_RATE:
		r = rate_parse(value, o->to, e);
		return r || *(uint64_t *)o->to ? r : err_set(e, -EINVAL, "must not be 0");
	case OPT_NUMBER:
		return number_parse(value, 0, INT_MAX, o->to, e);
	case OPT_TEXT:
		*(const char **)o->to = value;
		return *value ? 0 : err_set(e, -EINVAL, "must not be empty");
	case OPT_LIST:
		if (list->count == OPT_LIST_MAX)
			return err_set(e, -E2BIG, "may be given %u times at most", OPT_LIST_MAX);
		list->at[list->count++] = value;
		return 0;
	case OPT_WORD:
		return word_parse(o, value, e);
	}
	CHECK(!"a kind of option");
	return -EINVAL;
}

static const struct opt *table_find(const struct table *t, int value)
{
	for (size_t i = 0; i < t->count; i++)
		if (value == VALUE_OF_LONG + (int)i ||
		    (t->at[i].letter && value == t->at[i].letter))
			return &t->at[i];
	return NULL;
}

static int option_refuse(const struct table *t, int c, char **argv)
{
	const struct opt *o = optopt ? table_find(t, optopt) : NULL;

	if (c == ':')
		return say_usage("--%s needs a value (%s)", o ? o->name : "?",
				 o && o->arg ? o->arg : "VALUE");
	if (o) /* getopt's other complaint: a flag with "=value" */
		return say_usage("--%s takes no value", o->name);
	if (optopt && optopt < VALUE_OF_LONG && isprint(optopt))
		return say_usage("there is no option -%c", optopt);
	return say_usage("there is no option '%s'", argv[optind - 1]);
}

static int args_check(const struct usage *u, int argc, char **argv)
{
	size_t count = (size_t)(argc - optind);

	if (count < u->args_min)
		return say_usage("%s: remora %s %s",
				 count ? "an argument is missing" : "arguments are missing",
				 u->name, u->args);
	if (count > u->args_max)
		return say_usage("'%s' is one argument too many", argv[optind + (int)u->args_max]);
	return -1;
}

int options_parse(const struct usage *u, struct common *common, int argc, char **argv)
{
	struct table t;
	struct err e;
	int c;

	*common = (struct common){ 0 };
	table_init(&t, u, common);
	opterr = 0;
	optind = 0; /* glibc: starts anew, main() has used it */
	while ((c = getopt_long(argc, argv, t.letters, t.long_at, NULL)) >= 0) {
		const struct opt *o = table_find(&t, c);

		if (!o)
			return option_refuse(&t, c, argv);
		if (value_parse(o, optarg, &e))
			return say_usage("--%s: %s", o->name, e.text);
		common->verbose += t.verbose_again;
		t.verbose_again = false;
	}
	if (t.help) {
		help_print(u, &t);
		return out_end(CMD_OK);
	}
	return args_check(u, argc, argv);
}
