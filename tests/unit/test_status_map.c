/* SPDX-License-Identifier: Apache-2.0 */
/* How status looks: the chunk map, the overview and the table, drawn into memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "cmd/status.h"

struct drawn {
	struct look look;
	char *text;
	size_t len;
};

static struct drawn *draw_begin(unsigned width, bool utf8, bool color)
{
	struct drawn *d = calloc(1, sizeof(*d));

	d->look = (struct look){ .f = open_memstream(&d->text, &d->len),
				 .width = width,
				 .height = 24,
				 .utf8 = utf8,
				 .color = color,
				 .now_ns = 1000 * NS_PER_S };
	assert_non_null(d->look.f);
	return d;
}

static const char *draw_end(struct drawn *d)
{
	assert_int_equal(fclose(d->look.f), 0);
	return d->text;
}

static void drawn_free(struct drawn *d)
{
	free(d->text);
	free(d);
}

/* Columns of the widest line, without escape sequences. */
static unsigned widest(const char *text)
{
	unsigned columns = 0, most = 0;

	for (; *text; text++) {
		if (*text == '\033')
			text = strchr(text, 'm');
		else if (*text == '\n')
			columns = 0;
		else if ((*text & 0xc0) != 0x80)
			columns++;
		most = MAX(most, columns);
	}
	return most;
}

static unsigned lines(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

static size_t count_of(const char *text, const char *what)
{
	size_t n = 0;

	for (; (text = strstr(text, what)); text += strlen(what))
		n++;
	return n;
}

/* Cells of a map with `count` cells, all of one kind. */
static struct map_view map_of(char *cells, char *fill, size_t count, char cell, char part)
{
	memset(cells, cell, count);
	memset(fill, part, count);
	cells[count] = fill[count] = '\0';
	return (struct map_view){ .cells = cells, .fill = fill, .count = count, .size = GIB };
}

/* ---- the map ---- */

static void a_map_is_as_wide_as_the_window_and_never_wider(void **state)
{
	static const unsigned widths[] = { 20, 21, 40, 80, 100, 200, 1000 };
	char *cells = malloc(MAP_CELLS_MAX + 1), *fill = malloc(MAP_CELLS_MAX + 1);

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(widths); i++) {
		unsigned n = map_cells(widths[i], 24);
		struct map_view map = map_of(cells, fill, n, '#', '9');
		struct drawn *d = draw_begin(widths[i], true, true);
		const char *text;

		map_draw(&d->look, &map);
		text = draw_end(d);
		/* but for those of the legend, each with a word behind it */
		assert_int_equal(count_of(text, "█") - count_of(text, "█\033[0m "), n);
		if (widths[i] >= 80)
			assert_int_equal(widest(text), widths[i]);
		assert_int_equal(lines(text), 9); /* a third of 24, and the legend */
		drawn_free(d);
	}
	free(cells);
	free(fill);
}

static void rows_begin_with_their_offset(void **state)
{
	char cells[600], fill[600];
	unsigned n = map_cells(80, 24);
	struct map_view map = map_of(cells, fill, n, '.', '0');
	struct drawn *d = draw_begin(80, false, false);
	const char *text;

	(void)state;
	map_draw(&d->look, &map);
	text = draw_end(d);
	assert_memory_equal(text, "      0 B  ....", 15);
	assert_non_null(strstr(text, "\n  128 MiB  ...."));
	assert_non_null(strstr(text, "\n  896 MiB  ...."));
	drawn_free(d);
}

static void without_colour_it_is_letters(void **state)
{
	static const char all[] = ".#<*>+~";
	struct map_view map = { .cells = all, .fill = "0900995", .count = 7, .size = 7 * MIB };

	(void)state;
	for (unsigned utf8 = 0; utf8 < 2; utf8++) {
		for (unsigned color = 0; color < 2; color++) {
			struct drawn *d;
			const char *text;

			if (utf8 && color)
				continue;
			d = draw_begin(18, utf8, color);
			map_draw(&d->look, &map);
			text = draw_end(d);
			if (!color)
				assert_non_null(strstr(text, "  .#<*>+~\n"));
			assert_null(strstr(text, "█"));
			drawn_free(d);
		}
	}
}

static void a_small_resource_fills_the_row(void **state)
{
	struct map_view map = { .cells = "#*.", .fill = "990", .count = 3, .size = 3 };
	struct drawn *d = draw_begin(11 + 10, false, false);

	(void)state;
	map_draw(&d->look, &map);
	assert_non_null(strstr(draw_end(d), "      0 B  ###***...\n"));
	drawn_free(d);
}

static void the_height_of_a_cell_is_how_much_is_local(void **state)
{
	struct map_view map = { .cells = ".#######", .fill = "01357899", .count = 8, .size = 8 };
	struct drawn *d = draw_begin(11 + 8, true, true);
	const char *text;

	(void)state;
	map_draw(&d->look, &map);
	text = draw_end(d);
	assert_non_null(strstr(text, "·\033[0m\033[32m▁▃▅▇▇██\033[0m\n"));
	drawn_free(d);
}

static void every_row_ends_in_plain_colour(void **state)
{
	char cells[600], fill[600];
	struct map_view map = map_of(cells, fill, map_cells(80, 24), '*', '9');
	struct drawn *d = draw_begin(80, true, true);
	const char *text;

	(void)state;
	map_draw(&d->look, &map);
	text = draw_end(d);
	assert_int_equal(count_of(text, "█\033[0m\n"), 8);
	drawn_free(d);
}

static void a_letter_nobody_knows_is_drawn_as_remote(void **state)
{
	struct map_view map = { .cells = "?#X", .fill = "x9:", .count = 3, .size = 3 };
	struct drawn *d = draw_begin(11 + 8, false, false);

	(void)state;
	map_draw(&d->look, &map);
	assert_non_null(strstr(draw_end(d), "  ..##..\n"));
	drawn_free(d);
	d = draw_begin(11 + 8, true, true);
	map_draw(&d->look, &map);
	draw_end(d);
	drawn_free(d);
}

static void a_broken_map_is_not_drawn(void **state)
{
	static const char *const bad[] = {
		"{}",
		"{\"map\": 5}",
		"{\"map\": {}}",
		"{\"map\": {\"cells\": \"\", \"fill\": \"\"}}",
		"{\"map\": {\"cells\": \"##\", \"fill\": \"9\"}}",
		"{\"map\": {\"cells\": [1], \"fill\": \"9\"}}",
	};
	struct map_view map;
	json_t *good = json_loads("{\"size\": 7, \"map\": {\"cells\": \"##\", \"fill\": \"99\"}}",
				  0, NULL);

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		json_t *status = json_loads(bad[i], 0, NULL);

		assert_non_null(status);
		assert_false(map_view_read(&map, status));
		json_decref(status);
	}
	assert_true(map_view_read(&map, good));
	assert_int_equal(map.count, 2);
	assert_int_equal(map.size, 7);
	json_decref(good);
}

static void the_number_of_cells_is_bounded(void **state)
{
	(void)state;
	for (unsigned width = 0; width < 100000; width = 2 * width + 1)
		for (unsigned height = 0; height < 100000; height = 2 * height + 1) {
			unsigned n = map_cells(width, height);

			assert_true(n >= 1 && n <= MAP_CELLS_MAX);
		}
}

/* ---- the overview and the table ---- */

static const char mount_json[] =
	"{\"kind\": \"mount\", \"pid\": 4711, \"target\": \"/srv/f\", \"spec\": \"memory:4G\","
	" \"state\": \"serving\", \"started_ns\": 900000000000, \"engine\": \"mount(2)\","
	" \"mode\": \"managed\", \"users\": 1, \"size\": 4294967296, \"local_bytes\": 1073741824,"
	" \"dirty_bytes\": 1048576, \"unflushed_bytes\": 524288, \"unsafe_bytes\": 1572864,"
	" \"hits\": 99, \"misses\": 1, \"pull_rate\": 1048576, \"pulled_bytes\": 5, \"rtt_ns\":"
	" 25000000, \"far\": \"up\", \"read\": {\"count\": 7, \"bytes\": 4096, \"p50_ns\": 1500},"
	" \"last_error\": {\"code\": \"EIO\", \"text\": \"a bad disk\", \"time_ns\": 940000000000}}";

static void draws(const char *json, unsigned width, const char *const *wanted, size_t count)
{
	json_t *status = json_loads(json, 0, NULL);
	struct drawn *d = draw_begin(width, false, false);
	const char *text;

	assert_non_null(status);
	status_draw_one(&d->look, status);
	text = draw_end(d);
	for (size_t i = 0; i < count; i++)
		if (!strstr(text, wanted[i]))
			fail_msg("'%s' is not in:\n%s", wanted[i], text);
	assert_true(widest(text) <= 80);
	drawn_free(d);
	json_decref(status);
}

static void a_mount_is_told_with_what_is_not_safe(void **state)
{
	static const char *const wanted[] = {
		"/srv/f  serving",
		"process 4711, up 100 s",
		" 25.0 %  1 GiB of 4 GiB",
		"1.50 MiB: 1 MiB dirty, 512 KiB pushed, not flushed",
		"1 MiB/s",
		"99.0 %",
		"25 ms round trip",
		"1.50 us",
		"EIO, 60 s ago: a bad disk",
	};

	(void)state;
	draws(mount_json, 80, wanted, ARRAY_LEN(wanted));
}

static void what_is_absent_is_left_out(void **state)
{
	static const char *const direct[] = { "Size      4 GiB", "Unsafe    nothing", "up" };
	static const char *const nothing[] = { "x" };
	static const char *const away[] = { "the far side is away" };
	static const char *const odd[] = { "Local" };

	(void)state;
	draws("{\"kind\": \"mount\", \"target\": \"x\", \"mode\": \"direct\", \"far\": \"up\","
	      " \"size\": 4294967296}",
	      80, direct, ARRAY_LEN(direct));
	draws("{\"target\": \"x\"}", 80, nothing, 1);
	draws("{\"kind\": \"mount\", \"far\": \"away\"}", 80, away, 1);
	draws("{\"kind\": \"serve\", \"resources\": 7, \"addresses\": [3]}", 80, NULL, 0);
	draws("{\"kind\": \"mount\", \"local_bytes\": 99999, \"size\": 7, \"hits\": -3,"
	      " \"stages\": [1, {}], \"last_error\": 5}",
	      80, odd, 1);
}

static void what_a_terminal_would_act_on_is_not_passed_on(void **state)
{
	json_t *status = json_pack("{s:s, s:s, s:s}", "kind", "mount", "target",
				   "/a\033[2Jb\n\177\302\233c", "state", "\033]0;x\a");
	struct drawn *d = draw_begin(80, false, false);
	const char *text;

	(void)state;
	status_draw_one(&d->look, status);
	text = draw_end(d);
	assert_null(strchr(text, '\033'));
	assert_null(strchr(text, '\a'));
	assert_null(strstr(text, "\302\233"));
	assert_non_null(strstr(text, "/a?[2Jb???c"));
	drawn_free(d);
	json_decref(status);
}

static void the_columns_of_the_table_stand_under_each_other(void **state)
{
	json_t *status[3];
	static const unsigned widths[] = { 40, 80, 200 };

	(void)state;
	status[0] = json_loads(mount_json, 0, NULL);
	status[1] = json_pack("{s:s, s:s, s:I, s:s, s:s}", "kind", "mount", "target",
			      "/a/very/long/path/that/does/not/fit/into/eighty/columns/by/far/end",
			      "size", (json_int_t)1, "state", "serving", "far", "away");
	status[2] = json_loads("{\"kind\": \"serve\", \"target\": \"127.0.0.1:7000\", \"clients\":"
			       " 1, \"resources\": [{\"size\": 1024}, {\"size\": 1024}]}",
			       0, NULL);
	for (size_t i = 0; i < ARRAY_LEN(widths); i++) {
		struct drawn *d = draw_begin(widths[i], false, false);
		const char *text, *at;
		size_t column;

		status_draw_table(&d->look, status, 3);
		text = draw_end(d);
		assert_int_equal(lines(text), 4);
		if (widths[i] >= 80)
			assert_true(widest(text) <= widths[i]);
		column = (size_t)(strstr(text, "STATE") - text);
		for (size_t n = 0; n < 3; n++) {
			static const char *const states[] = { "serving", "away", "1 client" };

			at = strchr(text, '\n') + 1;
			assert_memory_equal(at + column, states[n], strlen(states[n]));
			text = at;
		}
		assert_non_null(strstr(d->text, "far/end "));
		assert_non_null(strstr(d->text, "2 KiB"));
		assert_non_null(strstr(d->text, "1.50 MiB"));
		drawn_free(d);
	}
	for (size_t i = 0; i < 3; i++)
		json_decref(status[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_map_is_as_wide_as_the_window_and_never_wider),
		cmocka_unit_test(rows_begin_with_their_offset),
		cmocka_unit_test(without_colour_it_is_letters),
		cmocka_unit_test(a_small_resource_fills_the_row),
		cmocka_unit_test(the_height_of_a_cell_is_how_much_is_local),
		cmocka_unit_test(every_row_ends_in_plain_colour),
		cmocka_unit_test(a_letter_nobody_knows_is_drawn_as_remote),
		cmocka_unit_test(a_broken_map_is_not_drawn),
		cmocka_unit_test(the_number_of_cells_is_bounded),
		cmocka_unit_test(a_mount_is_told_with_what_is_not_safe),
		cmocka_unit_test(what_is_absent_is_left_out),
		cmocka_unit_test(what_a_terminal_would_act_on_is_not_passed_on),
		cmocka_unit_test(the_columns_of_the_table_stand_under_each_other),
	};

	return cmocka_run_group_tests_name("status_map", tests, NULL, NULL);
}
