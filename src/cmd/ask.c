/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One question to a running mount: found by its target, shown while it takes its time, ended by ^C.
 *
 * Place: between pull, flush, invalidate, log, record and the control socket.
 *
 * Invariant: whoever gave up closes the connection, which is how the process hears of it.
 *
 * Locking: none.
 */
#include <errno.h>
#include <string.h>

#include "base/range.h"
#include "base/size.h"
#include "cmd/ask.h"
#include "cmd/status.h"

int ask_open(struct ask *ask, const char *target, const char *what, struct err *e)
{
	int r = control_find(&ask->peer, target, e);

	if (r)
		return r;
	if (what && strcmp(ask->peer.kind, "mount"))
		r = err_set(e, -EINVAL, "%s is a server: only a mount can be %s",
			    ask->peer.target, what);
	if (!r)
		r = wake_open(&ask->wake, NEVER_NS, e);
	if (r) {
		control_peer_done(&ask->peer);
		return r;
	}
	ask->peer.wake_fd = ask->wake.fd;
	return 0;
}

void ask_close(struct ask *ask)
{
	meter_clear(&ask->meter);
	control_peer_done(&ask->peer);
	wake_close(&ask->wake);
}

static void ask_progress(void *arg, json_t *what)
{
	struct ask *ask = arg;
	uint64_t done = status_number(what, "done"), total = status_number(what, "total");

	if (!ask->quiet)
		meter_news(&ask->meter, ask->phase, MIN(done, total), total);
}

int ask_run(struct ask *ask, const char *verb, json_t *args, json_t **ret, struct err *e)
{
	int r = control_ask(&ask->peer, verb, args, ask_progress, ask, ret, e);

	while (r == -EINTR) {
		wake_read(&ask->wake);
		if (ask->wake.ended)
			break;
		r = control_wait(&ask->peer, ask_progress, ask, ret, e);
	}
	meter_clear(&ask->meter);
	return r;
}

int ask_range_parse(const char *text, struct range *range, const struct range **ret)
{
	struct err e;

	*ret = NULL;
	if (!text || !strcmp(text, "all"))
		return -1;
	if (range_parse(text, range, &e))
		return say_usage("%s", e.text);
	*ret = range;
	return -1;
}

json_t *ask_range(json_t *args, const struct range *range)
{
	if (range && args) {
		json_object_set_new(args, "off", json_integer((json_int_t)range->off));
		json_object_set_new(args, "len", json_integer((json_int_t)range->len));
	}
	return args;
}
