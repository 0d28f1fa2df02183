/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Specs: from text to a row of open stores. The grammar is in spec.h; this file splits the text
 * into parts and options (spec_parse), makes the errors that point at the character (spec_error),
 * and opens the parts from the last to the first (spec_open). The values of options are args.c's.
 *
 * Invariants: every offset kept in a struct spec lies within its text, the end included. Nothing is
 * opened before all names, keys and values have been found good.
 *
 * Locking: none; set-up code on the loop's thread.
 */
#include "store/spec.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define EXCERPT_COLUMNS 100u /* longer specs are quoted in part */

/* ---- the table ---- */

const struct store_kind *store_kind_at(size_t i)
{
	for (size_t k = 0; k <= i; k++)
		if (!store_kinds[k].name)
			return NULL;
	return &store_kinds[i];
}

const struct store_kind *store_kind_find(const char *name, size_t len)
{
	for (const struct store_kind *k = store_kinds; k->name; k++)
		if (strlen(k->name) == len && !memcmp(k->name, name, len))
			return k;
	return NULL;
}

/* ---- errors ---- */

static bool is_utf8_tail(char c)
{
	return ((unsigned char)c & 0xc0) == 0x80;
}

/* The spec with a mark under `at`, in two lines; a long one in part. */
static void excerpt_format(const char *text, size_t at, char *buf, size_t size)
{
	size_t len = strlen(text), from = 0, to = len, n = 0, column = 0;

	if (len > EXCERPT_COLUMNS) {
		from = at > EXCERPT_COLUMNS / 2 ? at - EXCERPT_COLUMNS / 2 : 0;
		from = MIN(from, len - EXCERPT_COLUMNS);
		to = from + EXCERPT_COLUMNS;
		/* Not into a character, of which at most three bytes are tails; others are no text
		 * at all. */
		for (int i = 0; i < 3 && from && is_utf8_tail(text[from]); i++)
			from--;
	}
	CHECK(size > (to - from) * 2 + 64);
	n += (size_t)snprintf(buf + n, size - n, "\n  %s", from ? "..." : "");
	column = from ? 3 : 0;
	for (size_t i = from; i < to; i++) {
		/* Control characters would move the mark, or worse. */
		buf[n++] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i];
		if (i < at && !is_utf8_tail(text[i]))
			column++;
	}
	n += (size_t)snprintf(buf + n, size - n, "%s\n  ", to < len ? "..." : "");
	snprintf(buf + n, size - n, "%*s^", (int)column, "");
}

static int spec_error_at(const char *text, size_t at, struct err *e, const char *fmt, va_list ap)
{
	char why[ERR_TEXT_MAX], excerpt[3 * EXCERPT_COLUMNS + 64];

	vsnprintf(why, sizeof(why), fmt, ap);
	excerpt_format(text, at, excerpt, sizeof(excerpt));
	/* The mark is worth more than the end of a long explanation. */
	return err_set(e, -EINVAL, "%.*s%s", (int)(ERR_TEXT_MAX - 1 - strlen(excerpt)), why, excerpt);
}

int spec_error(const struct spec *spec, size_t at, struct err *e, const char *fmt, ...)
{
	va_list ap;

	CHECK(at <= strlen(spec->text));
	va_start(ap, fmt);
	spec_error_at(spec->text, at, e, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

/* How many letters must be added, removed, changed or swapped to make b of a; more than 2 counts as
 * 3. */
static unsigned edit_distance(const char *a, size_t a_len, const char *b)
{
	unsigned row[3][NAME_LEN_MAX + 1];
	size_t b_len = strlen(b);

	if (a_len > b_len + 2 || b_len > a_len + 2 || b_len > NAME_LEN_MAX)
		return 3;
	for (size_t i = 0; i <= a_len; i++) {
		unsigned *now = row[i % 3], *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];

		now[0] = (unsigned)i;
		for (size_t j = 1; j <= b_len; j++) {
			if (!i) {
				now[j] = (unsigned)j;
				continue;
			}
			now[j] = MIN(last[j] + 1, now[j - 1] + 1);
			now[j] = MIN(now[j], last[j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				now[j] = MIN(now[j], before[j - 2] + 1);
		}
	}
	return MIN(row[a_len % 3][b_len], 3u);
}

/* "unknown stage 'rety' (did you mean 'retry'?); stages are: ..." */
static int error_unknown(const struct spec *spec, size_t at, size_t len, bool backend,
			 struct err *e)
{
	const char *guess = NULL, *what = backend ? "back end" : "stage";
	char names[256] = "", hint[64] = "";
	unsigned best = 3;

	for (const struct store_kind *k = store_kinds; k->name; k++) {
		size_t n = strlen(names);
		unsigned d;

		if (k->backend != backend)
			continue;
		snprintf(names + n, sizeof(names) - n, "%s%s", n ? " " : "", k->name);
		d = edit_distance(spec->text + at, len, k->name);
		if (d < best) {
			best = d;
			guess = k->name;
		}
	}
	if (guess)
		snprintf(hint, sizeof(hint), " (did you mean '%s'?)", guess);
	return spec_error(spec, at, e, "unknown %s '%.*s'%s; %ss are: %s", what, (int)MIN(len, 40u), spec->text + at,
			  hint, what, names);
}

/* ---- splitting ---- */

struct parse {
	struct spec *spec;
	struct err *e;
};

/* At a '(': the place of its ')', or `end` when it has none before. */
static size_t paren_end(const char *text, size_t at, size_t end)
{
	size_t depth = 0;

	for (; at < end; at++) {
		if (text[at] == '(')
			depth++;
		else if (text[at] == ')' && !--depth)
			return at;
	}
	return end;
}

/* Where the part that begins at `at` ends: at a '|' or at the end. Values in parentheses are
 * skipped. */
static size_t part_end(const char *text, size_t at, size_t end)
{
	for (; at < end && text[at] != '|'; at++) {
		if (text[at] == '=' && at + 1 < end && text[at + 1] == '(') {
			at = paren_end(text, at + 1, end);
			if (at == end)
				return end;
		}
	}
	return at;
}

static size_t find_char(const char *text, size_t at, size_t end, char c)
{
	while (at < end && text[at] != c)
		at++;
	return at;
}

static bool is_plain_path(const char *text)
{
	return text[0] == '/' || !strncmp(text, "./", 2) || !strncmp(text, "../", 3);
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static int text_take(struct parse *p, size_t at, size_t end, bool decode, char **ret)
{
	const char *text = p->spec->text;
	AUTO_FREE char *out = malloc(end - at + 1);
	size_t n = 0;

	if (!out)
		return err_sys(p->e, -ENOMEM, "reading the spec");
	for (; at < end; at++) {
		int high, low;

		if (!decode || text[at] != '%') {
			out[n++] = text[at];
			continue;
		}
		high = at + 1 < end ? hex_value(text[at + 1]) : -1;
		low = high >= 0 && at + 2 < end ? hex_value(text[at + 2]) : -1;
		if (low < 0)
			return spec_error(p->spec, at, p->e,
					  "'%%' begins a byte in hexadecimal, as in %%7C; write %%25 for itself");
		if (!high && !low)
			return spec_error(p->spec, at, p->e, "a byte of value zero is not possible here");
		out[n++] = (char)(high * 16 + low);
		at += 2;
	}
	out[n] = '\0';
	*ret = TAKE_PTR(out);
	return 0;
}

/* One "key=value" in [at, end); *ret_next is behind it, at a separator or the end. */
static int option_parse(struct parse *p, struct spec_part *part, size_t at, size_t end, char sep,
			bool decode,
			size_t *ret_next)
{
	const char *text = p->spec->text;
	size_t key_end = at, value_end;
	struct spec_option *o;
	int key_len, r;

	while (key_end < end && text[key_end] != '=' && text[key_end] != sep)
		key_end++;
	key_len = (int)MIN(key_end - at, 40u); /* as far as it is quoted */
	if (key_end == at)
		return spec_error(p->spec, at, p->e, "an option is missing here: write key=value");
	if (key_end == end || text[key_end] != '=')
		return spec_error(p->spec, key_end, p->e,
				  "option '%.*s' has no value: write %.*s=VALUE", key_len, text + at, key_len,
				  text + at);
	if (part->options == SPEC_OPTIONS_MAX)
		return spec_error(p->spec, at, p->e, "more than %u options", SPEC_OPTIONS_MAX);
	for (size_t i = 0; i < part->options; i++)
		if (strlen(part->option[i].key) == key_end - at &&
		    !memcmp(part->option[i].key, text + at, key_end - at))
			return spec_error(p->spec, at, p->e, "option '%s' is given twice", part->option[i].key);
	o = &part->option[part->options];
	o->key_at = at;
	o->at = key_end + 1;
	if (o->at < end && text[o->at] == '(') {
		size_t close = paren_end(text, o->at, end);

		if (close == end)
			return spec_error(p->spec, o->at, p->e, "this '(' has no ')'");
		value_end = close + 1;
		if (value_end < end && text[value_end] != sep)
			return spec_error(p->spec, value_end, p->e, "'%c' must follow a ')'", sep);
		o->at++;
		r = text_take(p, o->at, close, false, &o->value);
	} else {
		value_end = find_char(text, o->at, end, sep);
		r = text_take(p, o->at, value_end, decode, &o->value);
	}
	if (r)
		return r;
	part->options++; /* from here on spec_done() frees it */
	*ret_next = value_end;
	if (!*o->value)
		return spec_error(p->spec, o->at, p->e, "option '%.*s' has an empty value", (int)(key_end - at),
				  text + at);
	return text_take(p, at, key_end, false, &o->key);
}

static int options_parse(struct parse *p, struct spec_part *part, size_t at, size_t end, char sep,
			 bool decode)
{
	for (;;) {
		int r = option_parse(p, part, at, end, sep, decode, &at);

		if (r || at == end)
			return r;
		at++; /* the separator: an option must follow */
	}
}

static struct spec_part *part_add(struct parse *p, size_t at)
{
	struct spec_part *part = &p->spec->part[p->spec->parts++];

	part->at = part->rest_at = at;
	return part;
}

static int stage_parse(struct parse *p, size_t at, size_t end)
{
	const char *text = p->spec->text;
	size_t name_end = find_char(text, at, end, ':');
	const struct store_kind *kind = store_kind_find(text + at, name_end - at);
	struct spec_part *part;
	int r;

	if (name_end == at)
		return spec_error(p->spec, at, p->e, "the name of a stage is missing here");
	if (name_end - at > NAME_LEN_MAX || !kind)
		return error_unknown(p->spec, at, MIN(name_end - at, NAME_LEN_MAX), false, p->e);
	if (kind->backend)
		return spec_error(p->spec, end, p->e,
				  "'%s' is a back end and must come last (a '|' in it is written %%7C)", kind->name);
	if (p->spec->parts == SPEC_STAGES_MAX)
		return spec_error(p->spec, at, p->e, "more than %u stages", SPEC_STAGES_MAX);
	part = part_add(p, at);
	r = text_take(p, at, name_end, false, &part->name);
	if (!r)
		r = text_take(p, end, end, false, &part->rest);
	if (r || name_end == end)
		return r;
	return options_parse(p, part, name_end + 1, end, ',', false);
}

static int path_take(struct parse *p, size_t at, size_t end)
{
	struct spec_part *part = part_add(p, at);

	part->name = strdup("file");
	if (!part->name)
		return err_sys(p->e, -ENOMEM, "reading the spec");
	return text_take(p, at, end, false, &part->rest);
}

static int backend_parse(struct parse *p, size_t at, size_t end)
{
	const char *text = p->spec->text;
	size_t name_end = find_char(text, at, end, ':'), rest_end;
	const struct store_kind *kind = store_kind_find(text + at, name_end - at);
	struct spec_part *part;
	int r;

	if (at == end)
		return spec_error(p->spec, at, p->e, "%s", at ? "a back end or a path must follow the last '|'"
							      : "the spec is empty: write file:PATH, or memory:SIZE");
	if (kind && !kind->backend && name_end < end) {
		size_t open = part_end(text, at, end) == end ? find_char(text, at, end, '(') : end;

		if (open < end && paren_end(text, open, end) == end)
			return spec_error(p->spec, open, p->e, "this '(' has no ')'");
		return spec_error(p->spec, end, p->e, "'%s' is a stage: a '|' and a back end must follow it",
				  kind->name);
	}
	if (name_end == end || !kind || !kind->backend) {
		if (name_end < end && !strncmp(text + name_end, "://", 3) &&
		    find_char(text, at, name_end, '/') == name_end)
			return error_unknown(p->spec, at, MIN(name_end - at, NAME_LEN_MAX), true,
					     p->e);
		return path_take(p, at, end);
	}
	part = part_add(p, at);
	part->rest_at = name_end + 1;
	rest_end = find_char(text, part->rest_at, end, '?');
	r = text_take(p, at, name_end, false, &part->name);
	if (!r)
		r = text_take(p, part->rest_at, rest_end, true, &part->rest);
	if (r || rest_end == end)
		return r;
	return options_parse(p, part, rest_end + 1, end, '&', true);
}

static int parts_parse(struct parse *p)
{
	const char *text = p->spec->text;
	size_t at = 0, end = strlen(text);

	for (;;) {
		size_t stop;
		int r;

		if (is_plain_path(text + at))
			return path_take(p, at, end);
		stop = part_end(text, at, end);
		if (stop == end)
			return backend_parse(p, at, end);
		r = stage_parse(p, at, stop);
		if (r)
			return r;
		at = stop + 1;
	}
}

int spec_parse(const char *text, struct spec *ret, struct err *e)
{
	struct parse p = { .spec = ret, .e = e };
	int r;

	memset(ret, 0, sizeof(*ret));
	if (strlen(text) > SPEC_LEN_MAX)
		return err_set(e, -E2BIG, "the spec is longer than %u bytes", SPEC_LEN_MAX);
	ret->text = strdup(text);
	if (!ret->text)
		return err_sys(e, -ENOMEM, "reading the spec");
	r = parts_parse(&p);
	if (r)
		spec_done(ret);
	return r;
}

void spec_done(struct spec *spec)
{
	if (!spec)
		return;
	for (size_t i = 0; i < spec->parts; i++) {
		struct spec_part *part = &spec->part[i];

		for (size_t o = 0; o < part->options; o++) {
			free(part->option[o].key);
			free(part->option[o].value);
		}
		free(part->name);
		free(part->rest);
	}
	free(spec->text);
	memset(spec, 0, sizeof(*spec));
}

/* ---- opening ---- */

/* The store that `part` describes, in front of *top, which it becomes. */
static int part_open(struct spec *spec, struct spec_part *part, const struct store_open *how,
		     struct store **top,
		     struct err *e)
{
	const struct store_kind *kind = store_kind_find(part->name, strlen(part->name));
	struct spec_args args = { .spec = spec, .part = part, .e = e };
	struct store *store = NULL;
	int r;

	CHECK(kind && kind->backend == !*top);
	r = kind->open(&store, how, &args, *top);
	if (r) {
		CHECK(r < 0 && !store);
		if (e && !e->code)
			err_sys(e, r, "opening '%s'", part->name);
		return r;
	}
	CHECK(store && store->next == *top);
	*top = store;
	if (how->read_only)
		store->info.read_only = true;
	return 0;
}

static int align_open(struct spec *spec, const struct store_open *how, struct store **top,
		      struct err *e)
{
	char name[] = "align", rest[] = "";
	struct spec_part part = { .name = name, .rest = rest };

	/* A table without it is a test's, which keeps the alignment itself. */
	return store_kind_find(name, strlen(name)) ? part_open(spec, &part, how, top, e) : 0;
}

static int parts_open(struct spec *spec, const struct store_open *how, struct store **top,
		      struct err *e)
{
	for (size_t i = spec->parts; i--;) {
		int r = part_open(spec, &spec->part[i], how, top, e);

		if (!r && (*top)->info.align > 1 && !(i && !strcmp(spec->part[i - 1].name, "align")))
			r = align_open(spec, how, top, e);
		if (r)
			return r;
	}
	return 0;
}

int spec_open(struct store **ret, const char *text, const struct store_open *how, struct err *e)
{
	CLEANUP(spec_done) struct spec spec = { 0 };
	struct store *top = NULL;
	int r = spec_parse(text, &spec, e);

	for (size_t i = 0; !r && i < spec.parts; i++) {
		const char *name = spec.part[i].name;
		const struct store_kind *kind = store_kind_find(name, strlen(name));

		r = kind ? spec_check_options(&spec, &spec.part[i], kind, e)
			 : spec_error(&spec, spec.part[i].at, e, "back end '%s' is not in this program", name);
	}
	if (!r && e)
		e->code = 0;
	if (!r)
		r = parts_open(&spec, how, &top, e);
	if (r) {
		store_close_wait(top);
		return r;
	}
	*ret = top;
	return 0;
}
