/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a journal from its beginning: what is alive in it, where it ends, and whether something
 * of it is damaged. Anything may be in the file.
 */
#ifndef REMORA_REGION_NEAR_DISK_SCAN_H
#define REMORA_REGION_NEAR_DISK_SCAN_H

#include "region/near_disk_format.h"
#include "region/near_disk_index.h"
#include "region/near_disk_io.h"

struct nd_scan {
	/* set by the caller */
	const struct near_disk_io *io;
	int fd;
	struct nd_index *ix; /* empty; filled */
	const uint8_t *uuid;
	/* found */
	uint64_t end;	     /* behind the last good record */
	uint64_t stamp, seq; /* of the journal; of the next record */
	uint64_t records;
	uint64_t file_size;
	bool damaged;	     /* something that had been safe */
	uint64_t damaged_at; /* the first such place; UINT64_MAX: only pages that are lost */
	/* own */
	uint8_t *buf;
	size_t buf_room, buf_len;
	uint64_t buf_off;
	uint64_t synced; /* a SYNC further on says: safe up to here; UINT64_MAX = not looked for */
};

/* 0 (damaged or not), or an error of reading. */
MUST_USE int nd_scan(struct nd_scan *s);
/* After nd_scan(): writes the pages that are dirty to `fd`. */
MUST_USE int nd_replay(struct nd_scan *s, int fd);
void nd_scan_done(struct nd_scan *s);

/* The next record of a journal that is known to be good; for its copying. `off` behind it. */
MUST_USE int nd_scan_next(struct nd_scan *s, uint64_t *off, struct nd_record *ret,
			  const uint8_t **ret_payload);

#endif
