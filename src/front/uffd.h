/* SPDX-License-Identifier: Apache-2.0 */
/*
 * userfaultfd and PAGEMAP_SCAN as functions that have dealt with the kernel's partial results,
 * EAGAIN and EINTR. Addresses and lengths are whole pages. All may be called from any thread.
 */
#ifndef REMORA_FRONT_UFFD_H
#define REMORA_FRONT_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/uapi.h"

/* What a mapping needs: on top of MISSING and MINOR on shared memory. */
enum {
	UFFD_NEED_TRACK = 1u << 0,	    /* WP_ASYNC: finding writes */
	UFFD_NEED_USER_MODE_ONLY = 1u << 1, /* asked for by the user */
};

/*
 * A blocking userfaultfd with the features needed. *ret_how names the way it was got
 * ("userfaultfd",
 * "/dev/userfaultfd", "userfaultfd, user mode only"). The text of an error says what would give the
 * right, or which feature the kernel lacks.
 */
MUST_USE int uffd_open(int *ret_fd, unsigned need, const char **ret_how, struct err *e);

/* modes: UFFDIO_REGISTER_MODE_*. */
MUST_USE int uffd_register(int fd, void *addr, uint64_t len, uint64_t modes);

/*
 * Both install pages and wake who waits for them; `protect`: writes to them are tracked, and they
 * count as not written. *ret_done is how far they came, also when they fail: -EEXIST = a page is
 * mapped there already; -EFAULT (continue) = no page is in the file there; others are for good.
 */
MUST_USE int uffd_copy(int fd, void *addr, const void *src, uint64_t len, bool protect,
		       uint64_t *ret_done);
MUST_USE int uffd_continue(int fd, void *addr, uint64_t len, bool protect, uint64_t *ret_done);

/* Accesses raise SIGBUS from now on. -EEXIST = a page, or any marker, is there. */
MUST_USE int uffd_poison(int fd, void *addr, uint64_t len, uint64_t *ret_done);

/* Tracks writes from here on, also to pages that are not mapped yet. */
MUST_USE int uffd_protect(int fd, void *addr, uint64_t len);

/* Takes the markers of write tracking away; mapped pages count as written from then on. */
MUST_USE int uffd_unprotect(int fd, void *addr, uint64_t len);

void uffd_wake(int fd, void *addr, uint64_t len);

/*
 * Runs of pages in [*at, end) that were written since they were protected: at most max of them,
 * -errno or how many. *at moves to where the scan stopped. With `protect` they are protected again.
 * A page that is not mapped and has no marker counts as written.
 */
MUST_USE int pagemap_scan(int pagemap_fd, uint64_t *at, uint64_t end, bool protect,
			  struct page_region *vec, size_t max);

#endif
