/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A near store in a directory, which survives its process and a power cut: data, and a journal of
 * what is dirty and of what is clean. docs/near.md has the format and the reasons.
 */
#ifndef REMORA_REGION_NEAR_DISK_H
#define REMORA_REGION_NEAR_DISK_H

#include "region/near.h"
#include "region/near_disk_format.h"
#include "region/near_disk_io.h"

struct loop;

struct near_disk_options {
	const char *dir;
	uint64_t size;	   /* of the resource */
	uint32_t chunk;	   /* of a new store; near->chunk is that of the store that is there */
	uint64_t identity; /* of the far store; 0 = unknown: the spec says what it is */
	const char *spec;
	const char *holder; /* what is told to others that want the same directory */
	uint64_t budget_bytes;	   /* of the region; 0 = none */
	uint64_t sync_interval_ns; /* what was written survives a power cut after that; 0 = 1 s */
	const struct near_disk_io *io; /* NULL = the directory's; done() is called in any case */
};

/* Makes the store, or opens what is there. The error text names the directory, and what to do.
 * -EBUSY: somebody else has it; -EUCLEAN: damaged; -EINVAL, -EMEDIUMTYPE: it is of something else.
 * Set-up code. */
MUST_USE int near_disk_open(struct near **ret, struct loop *loop,
			    const struct near_disk_options *options, struct err *e);

/* ---- for people: remora cache ---- */

struct near_disk_look {
	struct nd_meta meta;
	uint64_t clean_bytes, dirty_bytes, journal_bytes;
	uint64_t lost_bytes;   /* dirty, and damaged */
	bool journal_damaged;  /* nobody knows what else is missing */
	uint64_t journal_at;   /* where */
	uint64_t bad_bytes;    /* clean, and not what it was; when it was compared */
	uint64_t used_ns;      /* when something was written last, since 1970 */
	bool held;	       /* somebody has it open */
	char holder[256];
};

enum near_disk_compare { NEAR_DISK_GLANCE, NEAR_DISK_COMPARE };

/* GLANCE also while somebody has it; COMPARE reads everything, and is -EBUSY then. -ENOENT: there
 * is no near store. Damage is told in *ret, and no error. `io` as above. */
MUST_USE int near_disk_look(struct near_disk_look *ret, const char *dir,
			    enum near_disk_compare compare, const struct near_disk_io *io,
			    struct err *e);

/* Takes it away. Without `force` not when something dirty is in it, or may be: -EUCLEAN, with
 * *ret filled. */
MUST_USE int near_disk_remove(struct near_disk_look *ret, const char *dir, bool force,
			      struct err *e);

#endif
