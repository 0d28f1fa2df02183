/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunk map in a terminal: a cell is a piece of the resource, its colour the most telling state
 * in it, its height how much of it is local. Without colour it is letters.
 *
 *   0 B       ####################<<<<......####....
 *   1 GiB     ..........................**>>+.......
 *     . remote  # local  < pulling  * dirty ...
 *
 * Place: pure drawing: what the process told, onto a stream.
 *
 * Invariants: no row is wider than the window. Each row begins and ends in plain colour, so that
 * lines can be cut and redrawn one by one.
 *
 * Locking: none.
 */
#include <string.h>

#include "base/limits.h"
#include "base/size.h"
#include "cmd/status.h"

#define LABEL_COLUMNS 11u /* " 1023 MiB  " */
#define COLUMNS_MIN 8u
#define ROWS_MAX 16u

struct cell_look {
	char letter;
	enum out_color color;
	const char *word;
};

/* In the order of the legend. */
static const struct cell_look looks[] = {
	{ '.', OUT_DIM, "remote" },	{ '#', OUT_GREEN, "local" },
	{ '<', OUT_CYAN, "pulling" },	{ '*', OUT_RED, "dirty" },
	{ '>', OUT_YELLOW, "pushing" }, { '+', OUT_MAGENTA, "unflushed" },
	{ '~', OUT_BLUE, "in places" },
};

static const struct cell_look *cell_look(char letter)
{
	for (size_t i = 0; i < ARRAY_LEN(looks); i++)
		if (looks[i].letter == letter)
			return &looks[i];
	return &looks[0];
}

static unsigned map_columns(unsigned width)
{
	return width > LABEL_COLUMNS + COLUMNS_MIN ? width - LABEL_COLUMNS : COLUMNS_MIN;
}

unsigned map_cells(unsigned width, unsigned height)
{
	unsigned rows = MAX(MIN(height / 3, ROWS_MAX), 1u);

	return MIN(map_columns(width) * rows, MAP_CELLS_MAX);
}

bool map_view_read(struct map_view *ret, const json_t *status)
{
	const json_t *map = json_object_get(status, "map");

	*ret = (struct map_view){
		.cells = status_text(map, "cells"),
		.fill = status_text(map, "fill"),
		.size = status_number(status, "size"),
	};
	ret->count = strlen(ret->cells);
	return ret->count && ret->count <= MAP_CELLS_MAX && strlen(ret->fill) == ret->count;
}

static const char *cell_glyph(const struct look *look, char letter, char fill)
{
	static const char *const heights[] = { "░", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "▇", "█" };
	unsigned digit = fill >= '0' && fill <= '9' ? (unsigned)(fill - '0') : 0;

	CHECK(look->utf8);
	if (letter == '.' && !digit)
		return "·";
	return heights[digit];
}

/* Colours need a terminal that has them; shapes alone would not tell the states apart. */
static bool map_is_plain(const struct look *look)
{
	return !look->utf8 || !look->color;
}

static void map_row(const struct look *look, const struct map_view *map, size_t first, size_t count,
		    unsigned stretch)
{
	enum out_color color = OUT_PLAIN;
	char label[SIZE_TEXT_MAX];
	double part = (double)map->size * (double)first / (double)map->count;

	fprintf(look->f, "%s%9s%s  ", look_color(look, OUT_DIM), size_format((uint64_t)part, label),
		look_color(look, OUT_PLAIN));
	for (size_t i = first; i < first + count; i++) {
		const struct cell_look *cell = cell_look(map->cells[i]);
		const char letter[2] = { cell->letter, 0 };
		const char *glyph = map_is_plain(look)
					    ? letter
					    : cell_glyph(look, cell->letter, map->fill[i]);

		if (cell->color != color)
			fprintf(look->f, "%s%s", look_color(look, OUT_PLAIN),
				look_color(look, cell->color));
		color = cell->color;
		for (unsigned n = 0; n < stretch; n++)
			fputs(glyph, look->f);
	}
	fprintf(look->f, "%s\n", look_color(look, OUT_PLAIN));
}

static void map_legend(const struct look *look, const struct map_view *map)
{
	char each[SIZE_TEXT_MAX];
	unsigned column = 2;

	fputs("  ", look->f);
	for (size_t i = 0; i < ARRAY_LEN(looks); i++) {
		const char letter[2] = { looks[i].letter, 0 };
		const char *glyph =
			map_is_plain(look)
				? letter
				: cell_glyph(look, letter[0],
					     letter[0] == '.'   ? '0'
					     : letter[0] == '<' ? '0'
					     : letter[0] == '~' ? '4'
								: '9');

		fprintf(look->f, "%s%s%s%s %s", i ? "  " : "", look_color(look, looks[i].color),
			glyph, look_color(look, OUT_PLAIN), looks[i].word);
		column += (i ? 2u : 0u) + 2u + (unsigned)strlen(looks[i].word);
	}
	size_format((map->size + map->count - 1) / map->count, each);
	if (column + strlen(each) + 10 < look->width)
		fprintf(look->f, "%s  %*s%s a cell%s", look_color(look, OUT_DIM),
			(int)(look->width - column - strlen(each) - 10), "", each,
			look_color(look, OUT_PLAIN));
	fputc('\n', look->f);
}

void map_draw(const struct look *look, const struct map_view *map)
{
	size_t columns = map_columns(look->width), first;
	unsigned stretch = 1;

	CHECK(map->count && map->count <= MAP_CELLS_MAX);
	if (map->count < columns)
		stretch = (unsigned)(columns / map->count);
	for (first = 0; first < map->count; first += columns)
		map_row(look, map, first, MIN(columns, map->count - first), stretch);
	map_legend(look, map);
}
