/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logging goes to a sink that the handle's owner gave; the library never prints. A line is one
 * event, without a newline, with the object's name in front.
 */
#ifndef REMORA_BASE_LOG_H
#define REMORA_BASE_LOG_H

#include <stddef.h>

#include "base/check.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

#define LOG_TEXT_MAX 1024u

struct log {
	/* any thread; NULL = silent */
	void (*emit)(void *arg, enum log_level level, const char *text);
	void *arg;
	enum log_level max; /* less important lines are not even formatted */
};

void log_at(const struct log *log, enum log_level level, const char *fmt, ...) PRINTF_LIKE(3, 4);

#define log_error(log, ...) log_at((log), LOG_ERROR, __VA_ARGS__)
#define log_warn(log, ...) log_at((log), LOG_WARN, __VA_ARGS__)
#define log_info(log, ...) log_at((log), LOG_INFO, __VA_ARGS__)
#define log_debug(log, ...) log_at((log), LOG_DEBUG, __VA_ARGS__)

const char *log_level_name(enum log_level level);

#endif
