/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An error with a text for a person, for set-up paths only. A function that takes a struct err
 * returns 0 or -errno and, when it fails, has filled the text: what was wrong, and what to do about
 * it. The data path has -errno alone.
 */
#ifndef REMORA_BASE_ERR_H
#define REMORA_BASE_ERR_H

#include <stddef.h>

#include "base/check.h"
#include "base/limits.h"

struct err {
	int code; /* -errno, 0 = none */
	char text[ERR_TEXT_MAX];
};

/* Fills `e` (may be NULL) and returns `code`, which is negative. */
int err_set(struct err *e, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* The same, with ": " and strerror(-code) behind the text. */
int err_sys(struct err *e, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts a text in front of the one that is there ("opening disk.img: ..."); returns e->code. */
int err_prefix(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* The errno (positive) of a name such as "EIO"; 0 when there is none. `len` bytes of `name` count.
 */
int errno_find(const char *name, size_t len);

#endif
