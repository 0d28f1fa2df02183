/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How `remora status` looks: pure functions of the answers that processes gave (docs/control.md)
 * and of the terminal.
 */
#ifndef REMORA_CMD_STATUS_H
#define REMORA_CMD_STATUS_H

#include "cmd/cmd.h"

struct look {
	FILE *f;
	unsigned width, height; /* of the terminal */
	bool utf8, color;
	uint64_t now_ns; /* since 1970 */
};

const char *look_color(const struct look *look, enum out_color color); /* "" where not wanted */

/* ---- members of an answer; absent is 0, "" ---- */

uint64_t status_number(const json_t *status, const char *name);
const char *status_text(const json_t *status, const char *name);
/* Without what a terminal would act on. Returns the columns it takes. */
unsigned text_put(FILE *f, const char *text);
unsigned text_columns(const char *text);
/* "45 s", "12 min", "3 h 20 min", "5 days" */
const char *age_format(uint64_t ns, char *buf, size_t len);

/* ---- status_text.c ---- */

void status_draw_one(const struct look *look, const json_t *status);

/* ---- status_table.c: one line each ---- */

void status_draw_table(const struct look *look, json_t *const *status, size_t count);

/* ---- status_map.c ---- */

#define MAP_CELLS_MAX 65536u

/* How many cells fill the window. */
unsigned map_cells(unsigned width, unsigned height);

struct map_view {
	const char *cells, *fill; /* as in docs/control.md */
	size_t count;		  /* of both */
	uint64_t size;		  /* of the resource */
};

/* False: the answer has no map, or a broken one. */
bool map_view_read(struct map_view *ret, const json_t *status);
/* Rows as wide as the window, each with its offset in front, and what the colours mean. */
void map_draw(const struct look *look, const struct map_view *map);

#endif
