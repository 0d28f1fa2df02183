/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What commands say: errors and notes on stderr with the command's name in front, results on stdout
 * as text or JSON.
 *
 * Place: the only code that knows about terminals. Colour and width only where a person looks.
 *
 * Invariants: a message is written with one call, so that those of several threads do not mix. A
 * result that could not be written is an error (out_end).
 *
 * Locking: say_name() once, before there are threads.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/size.h"
#include "cmd/cmd.h"

static char command_name[32] = "remora";

void say_name(const char *name)
{
	snprintf(command_name, sizeof(command_name), "remora %s", name);
}

const char *said_name(void)
{
	return command_name;
}

static void say(const char *kind, const char *fmt, va_list ap, const char *behind)
{
	char text[ERR_TEXT_MAX + SPEC_LEN_MAX];

	vsnprintf(text, sizeof(text), fmt, ap);
	fprintf(stderr, "%s: %s%s%s\n", command_name, kind, text, behind);
}

void say_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("", fmt, ap, "");
	va_end(ap);
}

void say_note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("note: ", fmt, ap, "");
	va_end(ap);
}

int say_usage(const char *fmt, ...)
{
	char behind[64];
	va_list ap;

	snprintf(behind, sizeof(behind), "; see %s --help", command_name);
	va_start(ap, fmt);
	say("", fmt, ap, behind);
	va_end(ap);
	return CMD_USAGE;
}

enum cmd_exit exit_of(int err)
{
	switch (-err) {
	case 0:
		return CMD_OK;
	case EINVAL:
	case ERANGE:
	case E2BIG:
		return CMD_USAGE;
	case ENOENT:
	case ENODEV:
	case ENXIO:
	case EACCES:
	case EPERM:
	case ECONNREFUSED:
	case ECONNRESET:
	case ECONNABORTED:
	case EPIPE:
	case ETIMEDOUT:
	case EHOSTUNREACH:
	case EHOSTDOWN:
	case ENETUNREACH:
	case ENETDOWN:
	case ENOTCONN:
	case ESHUTDOWN:
	case ESTALE:
	case EBUSY:
		return CMD_UNREACHABLE;
	case EIO:
	case EBADMSG:
	case EILSEQ:
	case EUCLEAN:
		return CMD_DATA;
	case EINTR:
	case ECANCELED:
		return CMD_INCOMPLETE;
	}
	return CMD_FAILED;
}

int say_failed(const struct err *e, const char *next)
{
	say_error("%s%s%s", e->text, next ? "\n  " : "", next ? next : "");
	return exit_of(e->code);
}

/* ---- results ---- */

void out_json(json_t *value)
{
	CHECK(value);
	json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
	putchar('\n');
	json_decref(value);
}

void out_json_line(json_t *value)
{
	CHECK(value);
	json_dumpf(value, stdout, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
	putchar('\n');
	json_decref(value);
}

int out_end(int code)
{
	int err = fflush(stdout) == EOF || ferror(stdout) ? errno : 0;

	if (!err)
		return code;
	if (err != EPIPE) /* a reader that has had enough needs no message */
		say_error("writing the output: %s", strerror(err));
	return code == CMD_OK ? CMD_FAILED : code;
}

bool out_is_terminal(FILE *f)
{
	const char *term = getenv("TERM");

	return isatty(fileno(f)) && !(term && !strcmp(term, "dumb"));
}

const char *color_code(enum out_color color)
{
	static const char *const codes[OUT_COLORS] = {
		[OUT_PLAIN] = "\033[0m",   [OUT_BOLD] = "\033[1m",	   [OUT_DIM] = "\033[2m",
		[OUT_RED] = "\033[31m",	   [OUT_GREEN] = "\033[32m",   [OUT_YELLOW] = "\033[33m",
		[OUT_BLUE] = "\033[34m",   [OUT_MAGENTA] = "\033[35m", [OUT_CYAN] = "\033[36m",
	};

	CHECK(color < OUT_COLORS);
	return codes[color];
}

const char *out_color(FILE *f, enum out_color color)
{
	const char *no_color = getenv("NO_COLOR");

	return out_is_terminal(f) && !(no_color && *no_color) ? color_code(color) : "";
}

unsigned out_width(FILE *f)
{
	const char *columns = getenv("COLUMNS");
	struct winsize w = { 0 };
	uint64_t n;

	if (!ioctl(fileno(f), TIOCGWINSZ, &w) && w.ws_col)
		return w.ws_col;
	return columns && !number_parse(columns, 20, 10000, &n, NULL) ? (unsigned)n : 80;
}

unsigned out_height(FILE *f)
{
	const char *lines = getenv("LINES");
	struct winsize w = { 0 };
	uint64_t n;

	if (!ioctl(fileno(f), TIOCGWINSZ, &w) && w.ws_row)
		return w.ws_row;
	return lines && !number_parse(lines, 4, 10000, &n, NULL) ? (unsigned)n : 24;
}

/* As the environment says, for a locale that is not installed here may well be the terminal's. */
bool out_utf8(void)
{
	static const char *const names[] = { "LC_ALL", "LC_CTYPE", "LANG" };

	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		const char *value = getenv(names[i]);

		if (value && *value)
			return strcasestr(value, "utf-8") || strcasestr(value, "utf8");
	}
	return false;
}

const char *rate_format(uint64_t bytes, uint64_t ns, char *buf)
{
	double per_s = ns ? (double)bytes * 1e9 / (double)ns : 0;
	size_t len;

	size_format(per_s < 1e18 ? (uint64_t)per_s : 0, buf);
	len = strlen(buf);
	snprintf(buf + len, 8, "/s");
	return buf;
}

/* ---- readiness ---- */

int ready_check(uint64_t number, int *ret_fd, struct err *e)
{
	if (fcntl((int)number, F_GETFD) < 0 || number <= STDIN_FILENO)
		return err_set(e, -EINVAL, "--ready-fd %llu: no such descriptor is open",
			       (unsigned long long)number);
	(void)fcntl((int)number, F_SETFD, FD_CLOEXEC);
	*ret_fd = (int)number;
	return 0;
}

int ready_tell(int fd, const char *lines, struct err *e)
{
	size_t len = strlen(lines);
	ssize_t n;

	if (fd < 0)
		return 0;
	do
		n = write(fd, lines, len);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		err_sys(e, -errno, "--ready-fd %d", fd);
	if (fd > STDERR_FILENO)
		close(fd);
	return n < 0 ? e->code : 0;
}
