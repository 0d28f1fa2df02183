/* SPDX-License-Identifier: Apache-2.0 */
/* The stages: stores with a store below. Each is opened by its row in the table (store/table.c),
 * from a spec; what its options are is written there. */
#ifndef REMORA_STAGE_STAGE_H
#define REMORA_STAGE_STAGE_H

#include "store/spec.h"

store_open_fn stage_align_open;
store_open_fn stage_encrypt_open;
store_open_fn stage_fault_open;
store_open_fn stage_limit_open;
store_open_fn stage_order_open;
store_open_fn stage_powercut_open;
store_open_fn stage_retry_open;
store_open_fn stage_trace_open;
store_open_fn stage_verify_open;

/* For tests: cuts the power of the first powercut stage of a row, now. Outside of callbacks. False:
 * there is none. */
bool stage_powercut_cut(struct store *store);

#endif
