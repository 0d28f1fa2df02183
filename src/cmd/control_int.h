/* SPDX-License-Identifier: Apache-2.0 */
/* What control_server.c and control_log.c share. */
#ifndef REMORA_CMD_CONTROL_INT_H
#define REMORA_CMD_CONTROL_INT_H

#include "cmd/control.h"

#define CONTROL_EVENTS_MAX 1000u

/* wake(arg), from the loop, some time after a line has come. */
void control_log_listen(struct control_log *log, struct loop *loop, void (*wake)(void *arg),
			void *arg);
/* Nobody is woken any more. False: a post is under way, the loop has to go on before it closes. */
MUST_USE bool control_log_deaf(struct control_log *log);
uint64_t control_log_count(struct control_log *log); /* lines ever */
/* Line n as {"time_ns", "level", "text"}; NULL: not kept any more, or not there yet. */
json_t *control_log_at(struct control_log *log, uint64_t n);

#endif
