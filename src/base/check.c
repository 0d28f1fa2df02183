/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a process whose own invariant broke: the message goes to fd 2 without allocation, then
 * abort(). */
#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void check_failed(const char *what, const char *file, int line, const char *func)
{
	char text[512];
	int n = snprintf(text, sizeof(text), "remora: internal error: %s:%d: %s: CHECK(%s) failed\n", file,
			 line, func, what);

	if (n > 0)
		(void)!write(STDERR_FILENO, text,
			     (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
	abort();
}
