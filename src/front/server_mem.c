/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers of a connection of the server: a bounded mapping, given out in runs of 4 KiB blocks,
 * lowest first, so that what is in use stays small and warm in the caches.
 *
 * Invariant: a set bit is a block in use; used = number of them.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "front/server_int.h"

static size_t blocks_of(uint64_t bytes)
{
	return (size_t)((bytes + SMEM_BLOCK - 1) / SMEM_BLOCK);
}

static int smem_map(struct smem *mem, int flags, int fd)
{
	void *p = mmap(NULL, mem->blocks * SMEM_BLOCK, PROT_READ | PROT_WRITE,
		       flags | MAP_NORESERVE, fd, 0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	mem->bits = calloc(BITMAP_WORDS(mem->blocks), sizeof(*mem->bits));
	if (!mem->bits) {
		munmap(p, mem->blocks * SMEM_BLOCK);
		return -ENOMEM;
	}
	mem->base = p;
	return 0;
}

int smem_open(struct smem *mem, uint64_t bytes)
{
	*mem = (struct smem){ .blocks = blocks_of(bytes) };
	return smem_map(mem, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* The client can neither cut it off under us nor write into it: our mapping is older than the seal.
 */
int smem_open_shared(struct smem *mem, uint64_t bytes, int *ret_fd)
{
	int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
	AUTO_FD int fd = memfd_create("remora-replies", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int r;

	*mem = (struct smem){ .blocks = blocks_of(bytes), .shared = true };
	if (fd < 0 || ftruncate(fd, (off_t)(mem->blocks * SMEM_BLOCK)))
		return -errno;
	r = smem_map(mem, MAP_SHARED, fd);
	if (r)
		return r;
	if (fcntl(fd, F_ADD_SEALS, seals)) {
		r = -errno;
		smem_close(mem);
		return r;
	}
	*ret_fd = TAKE_FD(fd);
	return 0;
}

void smem_close(struct smem *mem)
{
	CHECK(!mem->used);
	if (mem->base)
		munmap(mem->base, mem->blocks * SMEM_BLOCK);
	free(mem->bits);
	*mem = (struct smem){ 0 };
}

void *smem_get(struct smem *mem, uint64_t bytes)
{
	size_t want = blocks_of(bytes), at = 0, end;

	CHECK(want);
	if (want > mem->blocks - mem->used)
		return NULL;
	for (;;) {
		at = bitmap_next_clear(mem->bits, mem->blocks, at);
		if (mem->blocks - at < want)
			return NULL;
		end = bitmap_next_set(mem->bits, at + want, at);
		if (end == at + want)
			break;
		at = end;
	}
	bitmap_set_range(mem->bits, at, want);
	mem->used += want;
	mem->touched = true;
	return mem->base + at * SMEM_BLOCK;
}

void smem_put(struct smem *mem, void *at, uint64_t bytes)
{
	size_t count = blocks_of(bytes), block = (size_t)((uint8_t *)at - mem->base) / SMEM_BLOCK;

	CHECK(block + count <= mem->blocks && mem->used >= count && bitmap_get(mem->bits, block));
	bitmap_clear_range(mem->bits, block, count);
	mem->used -= count;
}

void smem_trim(struct smem *mem)
{
	if (mem->used || !mem->touched)
		return;
	mem->touched = false;
	(void)madvise(mem->base, mem->blocks * SMEM_BLOCK,
		      mem->shared ? MADV_REMOVE : MADV_DONTNEED);
}
