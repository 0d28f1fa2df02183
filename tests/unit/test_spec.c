/* SPDX-License-Identifier: Apache-2.0 */
/* The grammar of specs, its error texts, and what spec_open() makes of a row. The kinds are the
 * test's own. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "store/spec.h"

/* What the opens saw: names in order, and the values that the last one read. */
struct seen {
	char opened[128];
	uint64_t size, time_ns, rate, number;
	bool flag;
	char text[64], rest[64];
	uint32_t align; /* for the next back end */
	unsigned live;
};

struct fake {
	struct store store;
	struct seen *seen;
};

static void fake_submit(struct store *store, struct req *req)
{
	(void)store;
	req_done(req, 0);
}

static void fake_close(struct store *store)
{
	CONTAINER_OF(store, struct fake, store)->seen->live--;
	store_closed(store);
}

static const struct store_ops fake_ops = { .name = "fake", .submit = fake_submit, .close = fake_close };

/* The way from an open function to its test, as there is no other without statics: the callbacks'
 * argument. */
static int fake_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		     struct store *next)
{
	struct seen *seen = how->callbacks_arg;
	const char *text = NULL;
	struct fake *f;
	int r;

	if ((r = spec_get_size(args, "size", &seen->size)) || (r = spec_get_time(args, "for", &seen->time_ns)) ||
	    (r = spec_get_rate(args, "rate", &seen->rate)) || (r = spec_get_number(args, "n", 1, 9, &seen->number)) ||
	    (r = spec_get_bool(args, "flag", &seen->flag)) || (r = spec_get_text(args, "text", &text)) ||
	    (r = spec_options_end(args)))
		return r;
	snprintf(seen->opened + strlen(seen->opened), sizeof(seen->opened) - strlen(seen->opened), "%s ",
		 args->part->name);
	if (text)
		snprintf(seen->text, sizeof(seen->text), "%s", text);
	if (!next)
		snprintf(seen->rest, sizeof(seen->rest), "%s", args->part->rest);
	if (!strcmp(args->part->rest, "fails"))
		return err_set(args->e, -ENODEV, "it fails");
	f = calloc(1, sizeof(*f));
	assert_non_null(f);
	f->seen = seen;
	seen->live++;
	f->store.info.size = 4096;
	f->store.info.align = next ? 1 : seen->align;
	store_init(&f->store, &fake_ops, how->loop, next);
	*ret = &f->store;
	return 0;
}

const struct store_kind store_kinds[] = {
	{ "file", true, "file:PATH[?size=SIZE]", fake_open },
	{ "memory", true, "memory:SIZE[?text=TEXT][&flag=BOOL]", fake_open },
	{ "remora+unix", true, "remora+unix:///SOCKET", fake_open },
	{ "align", false, "align", fake_open },
	{ "retry", false, "retry[:for=TIME][,n=N]", fake_open },
	{ "limit", false, "limit:rate=RATE[,size=SIZE]", fake_open },
	{ "verify", false, "verify[:text=(SPEC)]", fake_open },
	{ 0 },
};

static void expect_parts(const char *text, size_t parts, const char *name, const char *rest)
{
	struct spec spec;
	struct err e;

	if (spec_parse(text, &spec, &e))
		fail_msg("%s: %s", text, e.text);
	assert_int_equal(spec.parts, parts);
	assert_string_equal(spec.part[parts - 1].name, name);
	assert_string_equal(spec.part[parts - 1].rest, rest);
	spec_done(&spec);
}

/* The error's text, with the mark under character `at` of the spec. */
static void expect_error(const char *text, size_t at, const char *why)
{
	struct store_open how = { .deadline_ns = NEVER_NS };
	struct store *store = NULL;
	char mark[256];
	struct err e;

	assert_int_equal(spec_open(&store, text, &how, &e), -EINVAL);
	snprintf(mark, sizeof(mark), "\n  %s\n  %*s^", text, (int)at, "");
	if (!strstr(e.text, why))
		fail_msg("'%s' is not in: %s", why, e.text);
	if (strlen(e.text) < strlen(mark) || strcmp(e.text + strlen(e.text) - strlen(mark), mark))
		fail_msg("the mark is not under character %zu:\n%s", at, e.text);
}

/* ---- grammar ---- */

static void a_back_end_is_name_and_rest(void **state)
{
	(void)state;
	expect_parts("memory:64M", 1, "memory", "64M");
	expect_parts("file:disk.img", 1, "file", "disk.img");
	expect_parts("file:a%7Cb%3f%25", 1, "file", "a|b?%");
	expect_parts("remora+unix:///run/x/name", 1, "remora+unix", "///run/x/name");
	expect_parts("file:", 1, "file", "");
}

static void a_bare_path_is_taken_as_it_stands(void **state)
{
	(void)state;
	expect_parts("disk.img", 1, "file", "disk.img");
	expect_parts("/a|b?c=d%41,(e", 1, "file", "/a|b?c=d%41,(e");
	expect_parts("./retry:for=1s|x", 1, "file", "./retry:for=1s|x");
	expect_parts("../x|y", 1, "file", "../x|y");
	expect_parts("strange:name", 1, "file", "strange:name");
	expect_parts("100%.img", 1, "file", "100%.img");
	expect_parts("memory", 1, "file", "memory");
	expect_parts("retry|disk(1.img", 2, "file", "disk(1.img");
	expect_parts("retry|/a|b", 2, "file", "/a|b");
}

static void options_are_split_and_may_be_nested(void **state)
{
	struct spec spec;
	struct err e;

	(void)state;
	assert_int_equal(spec_parse("verify:text=(limit:rate=1M|memory:1M?text=(x)),a=b|"
				    "memory:1?text=%2c%26&flag=1", &spec, &e), 0);
	assert_int_equal(spec.parts, 2);
	assert_int_equal(spec.part[0].options, 2);
	assert_string_equal(spec.part[0].option[0].value, "limit:rate=1M|memory:1M?text=(x)");
	assert_string_equal(spec.part[0].option[1].key, "a");
	assert_string_equal(spec.part[0].option[1].value, "b");
	assert_string_equal(spec.part[1].option[0].value, ",&");
	assert_string_equal(spec.part[1].option[1].value, "1");
	spec_done(&spec);
}

static void what_is_too_much_is_refused(void **state)
{
	char text[SPEC_LEN_MAX + 2];
	struct spec spec;
	struct err e;
	size_t n = 0;

	(void)state;
	memset(text, 'a', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(spec_parse(text, &spec, &e), -E2BIG);
	for (size_t i = 0; i < SPEC_STAGES_MAX; i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n, "align|");
	snprintf(text + n, sizeof(text) - n, "memory:1M");
	assert_int_equal(spec_parse(text, &spec, &e), 0);
	spec_done(&spec);
	snprintf(text + n, sizeof(text) - n, "align|memory:1M");
	assert_int_equal(spec_parse(text, &spec, &e), -EINVAL);
	n = (size_t)snprintf(text, sizeof(text), "memory:1?");
	for (size_t i = 0; i <= SPEC_OPTIONS_MAX; i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%sk%zu=1", i ? "&" : "", i);
	assert_int_equal(spec_parse(text, &spec, &e), -EINVAL);
}

/* ---- errors ---- */

static void unknown_names_are_errors_that_say_what_there_is(void **state)
{
	(void)state;
	expect_error("rety|memory:1M", 0,
		     "unknown stage 'rety' (did you mean 'retry'?); stages are: align retry limit verify");
	expect_error("retry|rtery:for=1s|memory:1M", 6, "(did you mean 'retry'?)");
	expect_error("xyz|memory:1M", 0, "unknown stage 'xyz'; stages are");
	expect_error("http://host/x", 0, "unknown back end 'http'; back ends are: file memory remora+unix");
	expect_error("memory:1M|retry", 9, "'memory' is a back end and must come last");
	expect_error("retry|limit:rate=1M", 19, "'limit' is a stage");
}

static void errors_point_at_the_character(void **state)
{
	(void)state;
	expect_error("", 0, "the spec is empty");
	expect_error("retry|", 6, "must follow the last '|'");
	expect_error("retry||memory:1", 6, "the name of a stage is missing");
	expect_error("|memory:1", 0, "the name of a stage is missing");
	expect_error("retry:|memory:1", 6, "an option is missing");
	expect_error("retry:for|memory:1", 9, "option 'for' has no value");
	expect_error("retry:for=|memory:1", 10, "empty value");
	expect_error("retry:for=1s,|memory:1", 13, "an option is missing");
	expect_error("retry:for=1s,for=2s|memory:1", 13, "given twice");
	expect_error("retry:for=1|memory:1", 10, "'1' is not a time");
	expect_error("retry:n=x|memory:1", 8, "'x' is not a number");
	expect_error("retry:foo=1|memory:1", 6, "retry has no option 'foo'");
	expect_error("limit|memory:1", 5, "option 'rate' is missing");
	expect_error("limit:rate=fast|memory:1", 11, "'fast' is not a rate");
	expect_error("memory:1M?flag=maybe", 15, "neither yes");
	expect_error("memory:%zz", 7, "hexadecimal");
	expect_error("memory:%4", 7, "hexadecimal");
	expect_error("memory:a%00b", 8, "value zero");
	expect_error("memory:1M?text=(a", 15, "this '(' has no ')'");
	expect_error("verify:text=(a|b|memory:1", 12, "this '(' has no ')'");
	expect_error("verify:text=(a)b|memory:1", 15, "must follow a ')'");
	expect_error("verify:foo=(a)|memory:1", 7, "verify has no option 'foo'");
}

static void the_mark_counts_characters_and_long_specs_are_cut(void **state)
{
	struct store_open how = { .deadline_ns = NEVER_NS };
	struct store *store = NULL;
	char text[1000];
	struct err e;
	const char *mark;

	(void)state;
	assert_int_equal(spec_open(&store, "\xc3\xa4\xc3\xb6|memory:1?x", &how, &e), -EINVAL);
	assert_int_equal(spec_open(&store, "memory:\xc3\xa4\xc3\xb6?x", &how, &e), -EINVAL);
	/* 2 + 11: two letters of two bytes each */
	assert_non_null(strstr(e.text, "\n             ^"));
	assert_int_equal(spec_open(&store, "a\nb|memory:1", &how, &e), -EINVAL);
	assert_non_null(strstr(e.text, "\n  a?b|memory:1\n  ^"));
	memset(text, 'a', sizeof(text));
	memcpy(text, "memory:", 7);
	memcpy(text + 700, "%xx", 3);
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(spec_open(&store, text, &how, &e), -EINVAL);
	mark = strrchr(e.text, '\n');
	assert_non_null(mark);
	/* The mark is under the '%' of the excerpt. */
	assert_int_equal(strchr(mark, '^') - mark, strchr(strstr(e.text, "\n  ..."), '%') - strstr(e.text, "\n  ..."));
}

/* ---- opening ---- */

static void open_all(const char *text, uint32_t align, const char *opened, struct seen *seen)
{
	struct loop_options options = { .engine = LOOP_EPOLL };
	struct store_open how = { .deadline_ns = NEVER_NS, .callbacks_arg = seen };
	struct store *store = NULL;
	struct err e;

	*seen = (struct seen){ .align = align };
	assert_int_equal(loop_open(&how.loop, &options, &e), 0);
	if (spec_open(&store, text, &how, &e))
		fail_msg("%s", e.text);
	assert_string_equal(seen->opened, opened);
	store_close_wait(store);
	assert_int_equal(seen->live, 0);
	loop_close(how.loop);
}

static void a_row_is_opened_from_the_back_end_up(void **state)
{
	struct seen seen;

	(void)state;
	open_all("retry:for=60s,n=3|limit:rate=200Mbit,size=4K|memory:x%20y?text=hello&flag=yes", 1,
		 "memory limit retry ", &seen);
	assert_int_equal(seen.time_ns, 60 * NS_PER_S);
	assert_int_equal(seen.number, 3);
	assert_int_equal(seen.rate, 25000000);
	assert_int_equal(seen.size, 4096);
	assert_true(seen.flag);
	assert_string_equal(seen.text, "hello");
	assert_string_equal(seen.rest, "x y");
	open_all("./a|b", 1, "file ", &seen);
	assert_string_equal(seen.rest, "./a|b");
}

static void a_store_that_needs_alignment_gets_an_align_stage(void **state)
{
	struct seen seen;

	(void)state;
	open_all("memory:1", 512, "memory align ", &seen);
	open_all("retry|memory:1", 512, "memory align retry ", &seen);
	open_all("retry|align|memory:1", 512, "memory align retry ", &seen);
}

static void nothing_stays_open_when_a_part_fails(void **state)
{
	struct loop_options options = { .engine = LOOP_EPOLL };
	struct seen seen = { 0 };
	struct store_open how = { .deadline_ns = NEVER_NS, .callbacks_arg = &seen };
	struct store *store = NULL;
	struct err e;

	(void)state;
	assert_int_equal(loop_open(&how.loop, &options, &e), 0);
	assert_int_equal(spec_open(&store, "retry|memory:fails", &how, &e), -ENODEV);
	assert_string_equal(e.text, "it fails");
	assert_string_equal(seen.opened, "memory ");
	/* The range of n is the open function's own: found when the back end is open already. */
	assert_int_equal(spec_open(&store, "retry:n=100|memory:1", &how, &e), -EINVAL);
	assert_int_equal(seen.live, 0);
	assert_null(store);
	loop_close(how.loop);
}

static void everything_is_checked_before_anything_is_opened(void **state)
{
	struct seen seen = { 0 };
	struct store_open how = { .deadline_ns = NEVER_NS, .callbacks_arg = &seen };
	struct store *store = NULL;
	struct err e;

	(void)state;
	assert_int_equal(spec_open(&store, "retry:for=never|memory:1", &how, &e), -EINVAL);
	assert_int_equal(spec_open(&store, "limit:size=1|memory:1", &how, &e), -EINVAL);
	assert_string_equal(seen.opened, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_back_end_is_name_and_rest),
		cmocka_unit_test(a_bare_path_is_taken_as_it_stands),
		cmocka_unit_test(options_are_split_and_may_be_nested),
		cmocka_unit_test(what_is_too_much_is_refused),
		cmocka_unit_test(unknown_names_are_errors_that_say_what_there_is),
		cmocka_unit_test(errors_point_at_the_character),
		cmocka_unit_test(the_mark_counts_characters_and_long_specs_are_cut),
		cmocka_unit_test(a_row_is_opened_from_the_back_end_up),
		cmocka_unit_test(a_store_that_needs_alignment_gets_an_align_stage),
		cmocka_unit_test(nothing_stays_open_when_a_part_fails),
		cmocka_unit_test(everything_is_checked_before_anything_is_opened),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
