/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory front end: a near store that a program maps, and the thread that takes its page
 * faults.
 *
 * Order of life: memory_open(), region_open() with it (which then owns it), memory_serve(); and
 * back: memory_serve_end(), then the region's close, which closes this one.
 */
#ifndef REMORA_FRONT_MEMORY_H
#define REMORA_FRONT_MEMORY_H

#include "base/env.h"
#include "base/err.h"
#include "region/region.h"

struct memory_options {
	const struct env *env; /* borrowed for the near store's life */
	uint64_t size;	       /* bytes; need not be whole pages */
	bool read_only;	       /* a write by the program is SIGSEGV */
	void *address;	       /* exactly there, page aligned; NULL = anywhere */
	bool user_mode_only;   /* the userfaultfd that needs no right, but not the kernel's own
				  accesses */
	bool huge; /* lets the kernel use huge pages; writes are then found 2 MiB at a time */
};

/* near->writable unless read_only. Set-up code. */
MUST_USE int memory_open(struct near **ret, const struct memory_options *options, struct err *e);

/* The mapping, from page 0 on. */
void *memory_data(const struct near *near);

/* How the faults are got: "userfaultfd", "/dev/userfaultfd", "userfaultfd, user mode only". Static.
 */
const char *memory_how(const struct near *near);

/* region_fault(), or a test's. */
typedef enum region_verdict (*memory_fault_fn)(void *arg, uint64_t off, bool write);

/* Starts the fault thread. From here on the program may touch the memory. */
MUST_USE int memory_serve(struct near *near, memory_fault_fn fault, void *arg, struct err *e);

/* Ends it, and returns when it has. Who touches an absent page then waits until the near store
 * closes. Not from the fault thread. */
void memory_serve_end(struct near *near);

#endif
