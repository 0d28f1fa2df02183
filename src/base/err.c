/* SPDX-License-Identifier: Apache-2.0 */
/* Error texts for set-up paths: see err.h. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define ERRNO_END 256 /* Linux has none from here on */

static void text_set(struct err *e, const char *fmt, va_list ap)
{
	vsnprintf(e->text, sizeof(e->text), fmt, ap);
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
	va_list ap;

	CHECK(code < 0);
	if (!e)
		return code;
	e->code = code;
	va_start(ap, fmt);
	text_set(e, fmt, ap);
	va_end(ap);
	return code;
}

int err_sys(struct err *e, int code, const char *fmt, ...)
{
	va_list ap;
	size_t n;

	CHECK(code < 0);
	if (!e)
		return code;
	e->code = code;
	va_start(ap, fmt);
	text_set(e, fmt, ap);
	va_end(ap);
	n = strlen(e->text);
	snprintf(e->text + n, sizeof(e->text) - n, ": %s", strerror(-code));
	return code;
}

int err_prefix(struct err *e, const char *fmt, ...)
{
	char old[ERR_TEXT_MAX];
	va_list ap;
	size_t n;

	if (!e)
		return -1;
	memcpy(old, e->text, sizeof(old));
	va_start(ap, fmt);
	text_set(e, fmt, ap);
	va_end(ap);
	n = strlen(e->text);
	snprintf(e->text + n, sizeof(e->text) - n, ": %s", old);
	return e->code;
}

int errno_find(const char *name, size_t len)
{
	for (int i = 1; i < ERRNO_END; i++) {
		const char *known = strerrorname_np(i);

		if (known && strlen(known) == len && !memcmp(known, name, len))
			return i;
	}
	return 0;
}
