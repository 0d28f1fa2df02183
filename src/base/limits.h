/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every bound in one place, with the relations between them checked by the compiler. Bytes unless the name ends
 * otherwise.
 */
#ifndef REMORA_BASE_LIMITS_H
#define REMORA_BASE_LIMITS_H

#include <assert.h>
#include <stdint.h>

#define KIB (1024ULL)
#define MIB (1024ULL * KIB)
#define GIB (1024ULL * MIB)
#define TIB (1024ULL * GIB)

#define PAGE_BYTES 4096u /* unit of access and of dirty tracking; checked against the system's at start */

#define ERR_TEXT_MAX 512u
#define SIZE_TEXT_MAX 32u /* a size or a time as text */

/* Resources and chunks. */
#define RESOURCE_SIZE_MAX (1ULL << 62)
#define CHUNK_MIN (4 * KIB)
#define CHUNK_MAX (16 * MIB)
#define CHUNK_DEFAULT (64 * KIB)

/* One request. Longer ones are split by the align stage or by their maker. */
#define REQ_LEN_MAX (32 * MIB)		    /* READ and WRITE: what a buffer may have */
#define REQ_LEN_NODATA_MAX RESOURCE_SIZE_MAX /* FLUSH ZERO TRIM EXTENTS PREFETCH carry no data */
#define REQ_EXTENTS_MAX 4096u		    /* extents in one answer */

/* Specs. */
#define SPEC_LEN_MAX 4096u
#define SPEC_STAGES_MAX 16u
#define SPEC_OPTIONS_MAX 16u
#define NAME_LEN_MAX 255u /* a resource's name, a stage's name */

static_assert((PAGE_BYTES & (PAGE_BYTES - 1)) == 0, "pages are a power of two");
static_assert(CHUNK_MIN >= PAGE_BYTES, "a chunk holds a page");
static_assert(CHUNK_DEFAULT >= CHUNK_MIN && CHUNK_DEFAULT <= CHUNK_MAX, "the default is allowed");
static_assert(REQ_LEN_MAX >= CHUNK_MAX, "a chunk travels in one request");

#endif
