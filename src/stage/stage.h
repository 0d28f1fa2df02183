/* SPDX-License-Identifier: Apache-2.0 */
/* The stages: stores with a store below. Each is opened by its row in the table (store/table.c),
 * from a spec; what its options are is written there. */
#ifndef REMORA_STAGE_STAGE_H
#define REMORA_STAGE_STAGE_H

#include "store/spec.h"

store_open_fn stage_align_open;
store_open_fn stage_checksum_open;
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

/* The first checksum stage of a row, or NULL. Its info.chunk and info.align are its chunks, and
 * requests may be sent to it directly, so aligned: what it says then is about its own level. */
struct store *stage_checksum_find(struct store *store);

enum checksum_known {
	CHECKSUM_UNKNOWN,  /* never recorded: whatever is there passes */
	CHECKSUM_KNOWN,
	CHECKSUM_DOUBTFUL, /* written before a crash: what is read next is recorded */
};
/* Of the chunk that begins at `off`. */
enum checksum_known stage_checksum_known(struct store *store, uint64_t off);
/* Whether these bytes, as many as the chunk has, are the ones whose digest is recorded. */
bool stage_checksum_fits(struct store *store, uint64_t off, const uint8_t *data);

#endif
