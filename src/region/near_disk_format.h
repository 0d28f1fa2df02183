/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of a near store on a disk: docs/near.md describes them. Pure functions.
 */
#ifndef REMORA_REGION_NEAR_DISK_FORMAT_H
#define REMORA_REGION_NEAR_DISK_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/limits.h"

/* ---- meta ---- */

struct nd_meta {
	uint8_t uuid[16];
	uint64_t size;	   /* of the resource, bytes */
	uint32_t chunk;
	uint64_t identity; /* of the far store; 0 = unknown */
	char spec[SPEC_LEN_MAX + 1];
};

/* The length; buf has ND_META_MAX bytes. */
size_t nd_meta_format(const struct nd_meta *meta, char *buf);
MUST_USE int nd_meta_parse(struct nd_meta *ret, const char *text, size_t len, struct err *e);

/* ---- records of the journal ---- */

enum nd_type {
	ND_BEGIN = 1, /* payload: the uuid of meta */
	ND_DIRTY,     /* these pages were written; payload: their content */
	ND_CLEAN,     /* these chunks are whole and safe far away; payload: XXH3 of each */
	ND_DROP,      /* these pages are absent */
	ND_SYNC,      /* the journal's bytes before `off` were safe before this was written */
};

enum { ND_ZEROS = 1 }; /* flag of DIRTY: the pages are zeros, no payload */

struct nd_record {
	uint16_t type, flags;
	uint32_t payload_len;
	uint64_t seq, off, len, stamp, payload_hash;
};

void nd_record_put(uint8_t buf[ND_RECORD], const struct nd_record *rec);
/* Whether these bytes are a record's head. What it says is not checked yet. */
bool nd_record_get(struct nd_record *ret, const uint8_t buf[ND_RECORD]);
/* What it says makes sense for a resource of `pages` whole pages in chunks of 1 << shift. */
bool nd_record_sane(const struct nd_record *rec, uint64_t pages, unsigned shift);
/* Bytes that it takes in the journal. */
uint64_t nd_record_room(const struct nd_record *rec);

uint64_t nd_hash(const void *data, size_t len);
struct iovec;
uint64_t nd_hash_pieces(const struct iovec *iov, int count);
uint64_t nd_hash_zeros(size_t len); /* of as many zeros */

#endif
