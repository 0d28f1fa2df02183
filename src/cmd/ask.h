/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands share that ask a running mount for one thing: pull, flush, invalidate, ... */
#ifndef REMORA_CMD_ASK_H
#define REMORA_CMD_ASK_H

#include "cmd/control.h"

struct ask {
	struct control_peer peer;
	struct wake wake;
	struct meter meter;
	const char *phase; /* what the progress line calls it, where the process does not say */
	bool quiet;
};

/* Finds it, and sees to signals. A mount, or -EINVAL with `what` in the text ("flushed"); NULL: any
 * process will do. Nothing to close when it fails. */
MUST_USE int ask_open(struct ask *ask, const char *target, const char *what, struct err *e);
void ask_close(struct ask *ask);

/* control_ask(), with a progress line on a terminal. -EINTR: a signal. */
MUST_USE int ask_run(struct ask *ask, const char *verb, json_t *args, json_t **ret, struct err *e);

/* An argument RANGE (NULL: it was not given): -1, and *ret is `range`, or NULL for everything; else
 * the code to exit with, after a message. */
struct range;
MUST_USE int ask_range_parse(const char *text, struct range *range, const struct range **ret);
/* Members "off" and "len", where it is not everything. Returns args, which may be NULL. */
json_t *ask_range(json_t *args, const struct range *range);

#endif
