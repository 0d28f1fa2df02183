/* SPDX-License-Identifier: Apache-2.0 */
/* Stands in until the simulation is there. */
#include "io/loop_int.h"

#include <errno.h>

static int sim_loop_open(struct loop *loop, const struct loop_options *options, struct err *e)
{
	(void)loop;
	(void)options;
	return err_set(e, -ENOTSUP, "the simulation is not built yet");
}

const struct engine engine_sim = { .name = "sim", .open = sim_loop_open };
