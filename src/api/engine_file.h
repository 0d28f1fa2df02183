/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a handle without userfaultfd: a mapping of a file without a name that this process
 * serves itself (front/file.h).
 */
#ifndef REMORA_API_ENGINE_FILE_H
#define REMORA_API_ENGINE_FILE_H

#include "api/host.h"
#include "front/file.h"

struct engine_file;

/* Loop's thread, set-up code: mounts what `store` has, which must outlive the engine's close. */
MUST_USE int engine_file_open(struct engine_file **ret, struct host *host, struct store *store,
			      struct err *e);
/* The program's thread, the loop runs: maps it, at options.address if that is set. */
MUST_USE int engine_file_map(struct engine_file *engine, struct err *e);
/* Loop's thread, the loop has stopped: nothing is asked of the store any more. The mapping stays,
 * and is good for nothing. */
void engine_file_close(struct engine_file *engine);
/* The loop's thread has ended. NULL is fine. */
void engine_file_free(struct engine_file *engine);

void *engine_file_data(const struct engine_file *engine);

/* Any thread but the loop's: what was written to the mapping is in the store when it returns. */
MUST_USE int engine_file_sync(struct engine_file *engine);
/* The store's content has changed: the mapping shows the new one. */
MUST_USE int engine_file_invalidate(struct engine_file *engine, struct range range);

/* Loop's thread. */
void engine_file_count(const struct engine_file *engine, struct file_counts *ret);

#endif
