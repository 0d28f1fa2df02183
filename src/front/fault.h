/* SPDX-License-Identifier: Apache-2.0 */
/* The thread that takes the page faults of one mapping and stays on the core of whoever faults. */
#ifndef REMORA_FRONT_FAULT_H
#define REMORA_FRONT_FAULT_H

#include "base/env.h"
#include "front/memory.h"

struct fault_thread;

/* env and uffd are borrowed; uffd is blocking and has THREAD_ID; fault() gets offsets from `base`.
 * Set-up code. */
MUST_USE int fault_thread_start(struct fault_thread **ret, const struct env *env, int uffd,
				const uint8_t *base, memory_fault_fn fault, void *arg,
				struct err *e);

/* Returns when fault() is not running and will not be called any more. NULL is fine. */
void fault_thread_end(struct fault_thread *t);

#endif
