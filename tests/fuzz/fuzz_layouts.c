/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands beside data on a disk: the directory back end's meta file and index, the checksum
 * stage's header. The first byte says which, and whether its checksum is made right, so that what
 * lies behind that is reached. Whatever is accepted is within the limits.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "back/directory_int.h"
#include "fuzz.h"
#include "stage/checksum_int.h"

#define INDEX_SUM_AT 40u
#define HEADER_SUM_AT 56u

static void sum_right(uint8_t *bytes, size_t len, size_t at)
{
	uint64_t sum;

	memset(bytes + at, 0, 8);
	sum = XXH3_64bits(bytes, len);
	for (unsigned i = 0; i < 8; i++)
		bytes[at + i] = (uint8_t)(sum >> (8 * i));
}

static void meta(const uint8_t *data, size_t size)
{
	uint64_t bytes = 0, chunk = 0, identity = 0;
	char *text = fuzz_text(data, size);

	if (!dir_meta_parse(text, &bytes, &chunk, &identity))
		MUST(bytes <= RESOURCE_SIZE_MAX && is_pow2(chunk) && chunk >= CHUNK_MIN &&
		     chunk <= CHUNK_MAX && identity);
	free(text);
}

/* 8 bytes of size, then the index. */
static void dir_index(const uint8_t *data, size_t size, bool right)
{
	uint64_t bytes = 0;
	uint8_t *copy;

	if (size < 8)
		return;
	memcpy(&bytes, data, 8);
	bytes %= GIB;
	copy = calloc(1, size - 8 + 1);
	MUST(copy);
	memcpy(copy, data + 8, size - 8);
	if (right && size - 8 >= DIR_INDEX_HEADER)
		sum_right(copy, size - 8, INDEX_SUM_AT);
	if (!dir_index_check(copy, size - 8, bytes, CHUNK_DEFAULT))
		MUST(size - 8 >=
		     DIR_INDEX_HEADER + (bytes + CHUNK_DEFAULT - 1) / CHUNK_DEFAULT / 8);
	free(copy);
}

static void header(const uint8_t *data, size_t size, bool right)
{
	uint8_t *page = calloc(1, CHECKSUM_PAGE);
	struct sums_format f;

	MUST(page);
	memcpy(page, data, MIN(size, (size_t)CHECKSUM_PAGE));
	if (right)
		sum_right(page, CHECKSUM_PAGE, HEADER_SUM_AT);
	if (!sums_header_parse(page, &f)) {
		MUST(f.size <= RESOURCE_SIZE_MAX && is_pow2(f.chunk) &&
		     f.chunks <= CHECKSUM_CHUNKS_MAX);
		MUST(f.digest_len && f.digest_len <= DIGEST_LEN_MAX);
		MUST(f.file_len >= f.table_off + f.chunks * f.digest_len);
		MUST(f.file_len % CHECKSUM_PAGE == 0 && f.table_off % CHECKSUM_PAGE == 0);
	}
	free(page);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	switch (data[0] >> 1 & 3) {
	case 0:
		meta(data + 1, size - 1);
		break;
	case 1:
		dir_index(data + 1, size - 1, data[0] & 1);
		break;
	default:
		header(data + 1, size - 1, data[0] & 1);
		break;
	}
	return 0;
}
