/* SPDX-License-Identifier: Apache-2.0 */
/* Stands in until the io_uring engine is there: it refuses, so that a loop falls back to epoll. */
#include "io/loop_int.h"

#include <errno.h>

static int uring_open(struct loop *loop, const struct loop_options *options, struct err *e)
{
	(void)loop;
	(void)options;
	return err_set(e, -ENOTSUP, "the io_uring engine is not built yet");
}

const struct engine engine_uring = { .name = "io_uring", .open = uring_open };
