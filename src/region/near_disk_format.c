/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of a near store on a disk: its description (meta), which is text, and the records of its
 * journal, which are not. docs/near.md has every byte.
 *
 * Place: what is read from a disk is checked here, once; whoever gets a struct need not.
 *
 * Invariant: no byte of the input is used before it is covered by a checksum, but for the length
 * that says what the checksum covers, which is bounded.
 *
 * Locking: none; pure functions.
 */
#include "region/near_disk_format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/le.h"
#include "base/range.h"

#define MAGIC 0x314a4e52u /* "RNJ1" */
#define META_HEAD "remora-near 1\n"

uint64_t nd_hash(const void *data, size_t len)
{
	return XXH3_64bits(data, len);
}

uint64_t nd_hash_pieces(const struct iovec *iov, int count)
{
	XXH3_state_t state;

	if (count == 1)
		return nd_hash(iov->iov_base, iov->iov_len);
	XXH3_INITSTATE(&state);
	(void)XXH3_64bits_reset(&state);
	for (int i = 0; i < count; i++)
		(void)XXH3_64bits_update(&state, iov[i].iov_base, iov[i].iov_len);
	return XXH3_64bits_digest(&state);
}

uint64_t nd_hash_zeros(size_t len)
{
	static const uint8_t zeros[PAGE_BYTES];
	XXH3_state_t state;

	XXH3_INITSTATE(&state);
	(void)XXH3_64bits_reset(&state);
	for (size_t at = 0; at < len; at += sizeof(zeros))
		(void)XXH3_64bits_update(&state, zeros, MIN(len - at, sizeof(zeros)));
	return XXH3_64bits_digest(&state);
}

/* ---- meta ---- */

size_t nd_meta_format(const struct nd_meta *meta, char *buf)
{
	char uuid[2 * sizeof(meta->uuid) + 1];
	int len;

	for (size_t i = 0; i < sizeof(meta->uuid); i++)
		snprintf(uuid + 2 * i, 3, "%02x", meta->uuid[i]);
	len = snprintf(buf, ND_META_MAX,
		       META_HEAD "uuid %s\nsize %" PRIu64 "\nchunk %" PRIu32 "\nidentity %016" PRIx64
				 "\nspec %s\n",
		       uuid, meta->size, meta->chunk, meta->identity, meta->spec);
	len += snprintf(buf + len, ND_META_MAX - (size_t)len, "check %016" PRIx64 "\n",
			nd_hash(buf, (size_t)len));
	return (size_t)len;
}

/* A line "NAME VALUE\n": its value, with the end in *end; NULL = it is another. */
static const char *meta_line(const char **at, const char *end, const char *name, size_t *ret_len)
{
	size_t len = strlen(name);
	const char *value = *at + len + 1, *stop;

	if ((size_t)(end - *at) < len + 2 || memcmp(*at, name, len) || (*at)[len] != ' ')
		return NULL;
	stop = memchr(value, '\n', (size_t)(end - value));
	if (!stop)
		return NULL;
	*at = stop + 1;
	*ret_len = (size_t)(stop - value);
	return value;
}

static bool meta_number(const char **at, const char *end, const char *name, int base,
			uint64_t *ret)
{
	char text[24], *stop;
	size_t len;
	const char *value = meta_line(at, end, name, &len);

	if (!value || !len || len >= sizeof(text))
		return false;
	memcpy(text, value, len);
	text[len] = '\0';
	if (strspn(text, base == 10 ? "0123456789" : "0123456789abcdef") != len)
		return false;
	errno = 0;
	*ret = strtoull(text, &stop, base);
	return !errno && !*stop;
}

static bool meta_uuid(const char **at, const char *end, uint8_t *uuid)
{
	size_t len;
	const char *value = meta_line(at, end, "uuid", &len);

	if (!value || len != 32)
		return false;
	for (size_t i = 0; i < 16; i++) {
		const char digits[3] = { value[2 * i], value[2 * i + 1], '\0' };

		if (strspn(digits, "0123456789abcdef") != 2)
			return false;
		uuid[i] = (uint8_t)strtoul(digits, NULL, 16);
	}
	return true;
}

static bool meta_fields(struct nd_meta *m, const char *at, const char *end)
{
	uint64_t chunk, check;
	const char *start = at, *spec;
	size_t len;

	at += strlen(META_HEAD);
	if (!meta_uuid(&at, end, m->uuid) || !meta_number(&at, end, "size", 10, &m->size) ||
	    !meta_number(&at, end, "chunk", 10, &chunk) ||
	    !meta_number(&at, end, "identity", 16, &m->identity))
		return false;
	spec = meta_line(&at, end, "spec", &len);
	if (!spec || len > SPEC_LEN_MAX || memchr(spec, '\0', len))
		return false;
	memcpy(m->spec, spec, len);
	m->spec[len] = '\0';
	len = (size_t)(at - start);
	if (!meta_number(&at, end, "check", 16, &check) || at != end || check != nd_hash(start, len))
		return false;
	m->chunk = (uint32_t)chunk;
	return m->size <= RESOURCE_SIZE_MAX && chunk >= CHUNK_MIN && chunk <= CHUNK_MAX &&
	       is_pow2(chunk);
}

int nd_meta_parse(struct nd_meta *ret, const char *text, size_t len, struct err *e)
{
	static const char family[] = "remora-near ";

	*ret = (struct nd_meta){ 0 };
	if (len < strlen(META_HEAD) || memcmp(text, family, strlen(family)))
		return err_set(e, -EINVAL, "it is not that of a near store");
	if (memcmp(text, META_HEAD, strlen(META_HEAD)))
		return err_set(e, -EPROTONOSUPPORT, "it was made by another version of remora");
	if (!meta_fields(ret, text, text + len)) {
		*ret = (struct nd_meta){ 0 };
		return err_set(e, -EUCLEAN, "it is damaged");
	}
	return 0;
}

/* ---- records ---- */

void nd_record_put(uint8_t buf[ND_RECORD], const struct nd_record *rec)
{
	put32(buf, MAGIC);
	put32(buf + 4, rec->type | (uint32_t)rec->flags << 16);
	put64(buf + 8, rec->seq);
	put64(buf + 16, rec->off);
	put64(buf + 24, rec->len);
	put32(buf + 32, rec->payload_len);
	put32(buf + 36, 0);
	put64(buf + 40, rec->stamp);
	put64(buf + 48, rec->payload_hash);
	put64(buf + 56, nd_hash(buf, 56));
}

bool nd_record_get(struct nd_record *ret, const uint8_t buf[ND_RECORD])
{
	uint32_t type = get32(buf + 4);

	if (get32(buf) != MAGIC || get64(buf + 56) != nd_hash(buf, 56))
		return false;
	*ret = (struct nd_record){
		.type = (uint16_t)type,
		.flags = (uint16_t)(type >> 16),
		.seq = get64(buf + 8),
		.off = get64(buf + 16),
		.len = get64(buf + 24),
		.payload_len = get32(buf + 32),
		.stamp = get64(buf + 40),
		.payload_hash = get64(buf + 48),
	};
	return !get32(buf + 36);
}

static bool pages_sane(const struct nd_record *rec, uint64_t pages)
{
	const struct range r = { rec->off, rec->len };

	return r.len && r.off % PAGE_BYTES == 0 && r.len % PAGE_BYTES == 0 &&
	       range_within(r, pages * PAGE_BYTES);
}

bool nd_record_sane(const struct nd_record *rec, uint64_t pages, unsigned shift)
{
	uint64_t chunk = 1ULL << shift;

	if (rec->type != ND_DIRTY && rec->flags)
		return false;
	switch (rec->type) {
	case ND_BEGIN:
		return rec->payload_len == 16;
	case ND_DIRTY:
		return pages_sane(rec, pages) && !(rec->flags & ~ND_ZEROS) &&
		       rec->payload_len == (rec->flags & ND_ZEROS ? 0 : rec->len) &&
		       rec->len <= ND_PAYLOAD_MAX;
	case ND_CLEAN: /* whole chunks, the last one perhaps shorter */
		return pages_sane(rec, pages) && rec->off % chunk == 0 &&
		       (rec->len % chunk == 0 || rec->off + rec->len == pages * PAGE_BYTES) &&
		       rec->payload_len == ((rec->len + chunk - 1) >> shift) * 8 &&
		       (rec->len + chunk - 1) >> shift <= ND_CLEAN_MAX;
	case ND_DROP:
		return pages_sane(rec, pages) && !rec->payload_len;
	case ND_SYNC:
		return !rec->payload_len && !rec->len;
	default:
		return false;
	}
}

uint64_t nd_record_room(const struct nd_record *rec)
{
	return ND_RECORD + align_up(rec->payload_len, ND_RECORD);
}
