/* SPDX-License-Identifier: Apache-2.0 */
/* The back ends: stores with none below. Each is opened by its row in the table (store/table.c),
 * from a spec. */
#ifndef REMORA_BACK_BACK_H
#define REMORA_BACK_BACK_H

#include "store/spec.h"

store_open_fn back_callbacks_open; /* "callbacks:", how->callbacks */
store_open_fn back_directory_open; /* "directory:PATH[?size=SIZE][&chunk=SIZE][&create=BOOL]" */
store_open_fn back_file_open;	   /* "file:PATH[?direct=BOOL][&readonly=BOOL][&size=SIZE]" */
store_open_fn back_memory_open;	   /* "memory:SIZE" */
store_open_fn back_pattern_open;   /* "pattern:SIZE[?unit=TEXT][&seed=N]" */
store_open_fn back_remora_open;	   /* "remora://HOST:PORT[/NAME]", remoras, remora+unix */

#endif
