/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Remora protocol: encoding and decoding, see wire/remora.h and docs/protocol.md.
 *
 * Used by the server (front/server*.c) and the client (back/remora*.c), which do the I/O.
 * Everything that comes from a peer passes through a decoder here before it is used; a decoder
 * reads no byte that its caller has not promised, and accepts only what is consistent. No state, no
 * locks.
 */
#include "wire/remora.h"

#include <errno.h>
#include <string.h>

#include "base/le.h"

#define HELLO_ANY_MAX 4096u /* of a version that we do not know yet */
#define REQUEST_MAGIC 0x51524d52u /* "RMRQ" */
#define REPLY_MAGIC 0x50524d52u	  /* "RMRP" */
#define RUN_ZERO (1u << 31)
#define EXTENT_ZERO (1ULL << 63)
#define ZERO_BLOCK 4096u
#define BLOCK_BYTES 4096u /* what a server's buffers come in */
#define BLOCK_EXTENT 16u  /* what an extent takes there */

static const uint8_t hello_magic[8] = { 'R', 'E', 'M', 'O', 'R', 'A', '?', '\n' };
static const uint8_t answer_magic[8] = { 'R', 'E', 'M', 'O', 'R', 'A', '!', '\n' };

static_assert(WIRE_LEN_MAX < RUN_ZERO, "the length of a run has 31 bits");
static_assert(WIRE_LEN_MAX + WIRE_RUNS_MAX * WIRE_RUN_LEN <= UINT32_MAX,
	      "a payload's length has 32 bits");
static_assert(RESOURCE_SIZE_MAX < EXTENT_ZERO, "the length of an extent has 63 bits");
static_assert(WIRE_HELLO_MAX <= HELLO_ANY_MAX, "version 1 keeps the limit of all versions");

/* ---- hello ---- */

int wire_hello_prefix(const uint8_t *at, size_t *ret_len, struct wire_hello *ret)
{
	uint32_t len = get32(at + 12);

	memset(ret, 0, sizeof(*ret));
	if (memcmp(at, hello_magic, sizeof(hello_magic)) != 0)
		return -EPROTO;
	ret->version_min = get16(at + 8);
	ret->version_max = get16(at + 10);
	if (ret->version_min > ret->version_max || len < WIRE_PREFIX_LEN || len > HELLO_ANY_MAX)
		return -EPROTO;
	*ret_len = len;
	if (ret->version_min > WIRE_VERSION || ret->version_max < WIRE_VERSION)
		return -EPROTONOSUPPORT;
	/* A client that offers several versions writes the hello of the lowest one. */
	if (len < WIRE_HELLO_LEN || len > WIRE_HELLO_MAX)
		return -EPROTO;
	return 0;
}

int wire_hello_decode(const uint8_t *at, size_t len, struct wire_hello *ret)
{
	size_t said;
	int r;

	if (len < WIRE_HELLO_LEN)
		return -EPROTO;
	r = wire_hello_prefix(at, &said, ret);
	if (r)
		return r;
	memcpy(ret->session, at + 16, WIRE_SESSION_LEN);
	ret->index = get16(at + 32);
	ret->conns = get16(at + 34);
	ret->attempt = get32(at + 36);
	ret->flags = get32(at + 40);
	ret->payload_max = get32(at + 44);
	ret->first = range_of(get64(at + 48), get64(at + 56));
	ret->name_len = get16(at + 64);
	ret->name = at + WIRE_HELLO_LEN;
	if (said != len || len != WIRE_HELLO_LEN + (size_t)ret->name_len)
		return -EPROTO;
	if (!wire_is_zero(at + 66, WIRE_HELLO_LEN - 66) || ret->flags & ~(uint32_t)WIRE_HELLO_FLAGS)
		return -EPROTO;
	if (!ret->conns || ret->conns > WIRE_CONNS_MAX || ret->index >= ret->conns)
		return -EPROTO;
	if (!range_valid(ret->first) || range_end(ret->first) > RESOURCE_SIZE_MAX)
		return -EPROTO;
	if (memchr(ret->name, 0, ret->name_len))
		return -EPROTO;
	return 0;
}

size_t wire_hello_encode(const struct wire_hello *hello, uint8_t at[static WIRE_HELLO_MAX])
{
	size_t len = WIRE_HELLO_LEN + (size_t)hello->name_len;

	CHECK(hello->name_len <= NAME_LEN_MAX);
	memset(at, 0, WIRE_HELLO_LEN);
	memcpy(at, hello_magic, sizeof(hello_magic));
	put16(at + 8, hello->version_min);
	put16(at + 10, hello->version_max);
	put32(at + 12, (uint32_t)len);
	memcpy(at + 16, hello->session, WIRE_SESSION_LEN);
	put16(at + 32, hello->index);
	put16(at + 34, hello->conns);
	put32(at + 36, hello->attempt);
	put32(at + 40, hello->flags);
	put32(at + 44, hello->payload_max);
	put64(at + 48, hello->first.off);
	put64(at + 56, hello->first.len);
	put16(at + 64, hello->name_len);
	if (hello->name_len)
		memcpy(at + WIRE_HELLO_LEN, hello->name, hello->name_len);
	return len;
}

/* ---- answers to a hello ---- */

static void answer_prefix(uint8_t *at, enum wire_answer kind, size_t len)
{
	memcpy(at, answer_magic, sizeof(answer_magic));
	put16(at + 8, WIRE_VERSION);
	put16(at + 10, (uint16_t)kind);
	put32(at + 12, (uint32_t)len);
}

int wire_answer_prefix(const uint8_t *at, enum wire_answer *ret_kind, size_t *ret_len)
{
	uint16_t kind = get16(at + 10);
	uint32_t len = get32(at + 12);

	if (memcmp(at, answer_magic, sizeof(answer_magic)) != 0)
		return -EPROTO;
	/* A refusal keeps its form in every version, so that an old client can read a new
	 * server's. */
	if (get16(at + 8) != WIRE_VERSION && kind != WIRE_REFUSAL)
		return -EPROTO;
	switch (kind) {
	case WIRE_WELCOME:
		if (len != WIRE_WELCOME_LEN)
			return -EPROTO;
		break;
	case WIRE_REFUSAL:
		if (len < WIRE_REFUSAL_LEN || len > WIRE_REFUSAL_LEN + WIRE_REFUSAL_TEXT_MAX)
			return -EPROTO;
		break;
	case WIRE_LIST:
		if (len < WIRE_LIST_LEN || len > WIRE_LIST_MAX)
			return -EPROTO;
		break;
	default:
		return -EPROTO;
	}
	*ret_kind = kind;
	*ret_len = len;
	return 0;
}

static bool welcome_plausible(const struct wire_welcome *w)
{
	if (w->size > RESOURCE_SIZE_MAX || !is_pow2(w->align) || w->align > STORE_ALIGN_MAX)
		return false;
	if (!is_pow2(w->chunk) || w->chunk < CHUNK_MIN || w->chunk > CHUNK_MAX)
		return false;
	if (!w->len_max || w->len_max > WIRE_LEN_MAX || w->len_max % w->align ||
	    w->bytes_max < w->len_max)
		return false;
	if (!w->requests_max || !w->conns_max || w->caps & ~(uint32_t)WIRE_CAPS || !w->instance)
		return false;
	return w->keep_alive_ms >= WIRE_KEEP_ALIVE_MIN_MS && w->silence_ms > w->keep_alive_ms;
}

int wire_welcome_decode(const uint8_t *at, size_t len, struct wire_welcome *ret)
{
	enum wire_answer kind;
	size_t said;

	if (len != WIRE_WELCOME_LEN || wire_answer_prefix(at, &kind, &said) || kind != WIRE_WELCOME)
		return -EPROTO;
	*ret = (struct wire_welcome){
		.size = get64(at + 16),
		.instance = get64(at + 24),
		.identity = get64(at + 32),
		.chunk = get32(at + 40),
		.align = get32(at + 44),
		.len_max = get32(at + 48),
		.requests_max = get32(at + 52),
		.bytes_max = get64(at + 56),
		.caps = get32(at + 64),
		.keep_alive_ms = get32(at + 68),
		.silence_ms = get32(at + 72),
		.conns_max = get16(at + 76),
	};
	if (!wire_is_zero(at + 78, WIRE_WELCOME_LEN - 78) || !welcome_plausible(ret))
		return -EPROTO;
	return 0;
}

size_t wire_welcome_encode(const struct wire_welcome *w, uint8_t at[static WIRE_WELCOME_LEN])
{
	CHECK(welcome_plausible(w));
	memset(at, 0, WIRE_WELCOME_LEN);
	answer_prefix(at, WIRE_WELCOME, WIRE_WELCOME_LEN);
	put64(at + 16, w->size);
	put64(at + 24, w->instance);
	put64(at + 32, w->identity);
	put32(at + 40, w->chunk);
	put32(at + 44, w->align);
	put32(at + 48, w->len_max);
	put32(at + 52, w->requests_max);
	put64(at + 56, w->bytes_max);
	put32(at + 64, w->caps);
	put32(at + 68, w->keep_alive_ms);
	put32(at + 72, w->silence_ms);
	put16(at + 76, w->conns_max);
	return WIRE_WELCOME_LEN;
}

int wire_refusal_decode(const uint8_t *at, size_t len, struct wire_refusal *ret)
{
	enum wire_answer kind;
	size_t said;

	if (len < WIRE_REFUSAL_LEN || wire_answer_prefix(at, &kind, &said) || kind != WIRE_REFUSAL)
		return -EPROTO;
	*ret = (struct wire_refusal){ .code = get32(at + 16), .text_len = get16(at + 20),
				      .text = at + WIRE_REFUSAL_LEN };
	if (said != len || len != WIRE_REFUSAL_LEN + (size_t)ret->text_len || !ret->code)
		return -EPROTO;
	return 0;
}

size_t wire_refusal_encode(uint32_t code, const char *text, uint8_t *at, size_t room)
{
	size_t text_len = strnlen(text, WIRE_REFUSAL_TEXT_MAX);

	CHECK(room >= WIRE_REFUSAL_LEN && code != WIRE_OK);
	text_len = MIN(text_len, room - WIRE_REFUSAL_LEN);
	memset(at, 0, WIRE_REFUSAL_LEN);
	answer_prefix(at, WIRE_REFUSAL, WIRE_REFUSAL_LEN + text_len);
	put32(at + 16, code);
	put16(at + 20, (uint16_t)text_len);
	memcpy(at + WIRE_REFUSAL_LEN, text, text_len);
	return WIRE_REFUSAL_LEN + text_len;
}

/* ---- list ---- */

size_t wire_list_add(uint8_t *at, size_t room, size_t len, const struct wire_entry *entry)
{
	uint8_t *to = at + len;

	CHECK(entry->name_len <= NAME_LEN_MAX && len >= WIRE_LIST_LEN);
	if (room > WIRE_LIST_MAX)
		room = WIRE_LIST_MAX;
	if (len > room || room - len < WIRE_ENTRY_LEN + (size_t)entry->name_len)
		return 0;
	memset(to, 0, WIRE_ENTRY_LEN);
	put64(to, entry->size);
	put16(to + 8, entry->name_len);
	put16(to + 10, entry->read_only);
	if (entry->name_len)
		memcpy(to + WIRE_ENTRY_LEN, entry->name, entry->name_len);
	return len + WIRE_ENTRY_LEN + entry->name_len;
}

void wire_list_finish(uint8_t *at, size_t len, uint32_t count)
{
	memset(at, 0, WIRE_LIST_LEN);
	answer_prefix(at, WIRE_LIST, len);
	put32(at + 16, count);
}

int wire_list_next(const uint8_t *at, size_t len, size_t *pos, struct wire_entry *ret)
{
	const uint8_t *from = at + *pos;

	if (*pos > len || len - *pos < WIRE_ENTRY_LEN)
		return -EPROTO;
	*ret = (struct wire_entry){ .size = get64(from), .name_len = get16(from + 8),
				    .read_only = get16(from + 10) & 1,
				    .name = from + WIRE_ENTRY_LEN };
	if (get16(from + 10) & ~1u || get32(from + 12) || ret->size > RESOURCE_SIZE_MAX)
		return -EPROTO;
	if (ret->name_len > NAME_LEN_MAX || ret->name_len > len - *pos - WIRE_ENTRY_LEN)
		return -EPROTO;
	*pos += WIRE_ENTRY_LEN + ret->name_len;
	return 0;
}

int wire_list_decode(const uint8_t *at, size_t len, uint32_t *ret_count)
{
	enum wire_answer kind;
	struct wire_entry entry;
	size_t said, pos = WIRE_LIST_LEN;

	if (len < WIRE_LIST_LEN || wire_answer_prefix(at, &kind, &said) || kind != WIRE_LIST ||
	    said != len || get32(at + 20))
		return -EPROTO;
	*ret_count = get32(at + 16);
	for (uint32_t i = 0; i < *ret_count; i++)
		if (wire_list_next(at, len, &pos, &entry))
			return -EPROTO;
	return pos == len ? 0 : -EPROTO;
}

/* ---- requests and replies ---- */

/* The payload of a WRITE, and of the reply to a READ: runs, if any, and not more data than the
 * range has. */
static bool payload_plausible(uint64_t len, uint32_t count, uint32_t payload)
{
	if (len > WIRE_LEN_MAX || count > WIRE_RUNS_MAX)
		return false;
	if (!count)
		return payload == len;
	return payload >= count * WIRE_RUN_LEN && payload - count * WIRE_RUN_LEN < len;
}

int wire_request_decode(const uint8_t at[static WIRE_REQUEST_LEN], struct wire_request *ret)
{
	*ret = (struct wire_request){
		.op = at[4], .flags = at[5], .count = get16(at + 6), .id = get64(at + 8),
		.range = range_of(get64(at + 16), get64(at + 24)), .payload = get32(at + 32),
	};
	if (get32(at) != REQUEST_MAGIC || get32(at + 36) ||
	    ret->flags & ~(unsigned)WIRE_REQUEST_FLAGS)
		return -EPROTO;
	if (!range_valid(ret->range) || (ret->flags & WIRE_MAY_PLACE && ret->op != WIRE_READ))
		return -EPROTO;
	switch (ret->op) {
	case WIRE_WRITE:
		if (!ret->range.len || !payload_plausible(ret->range.len, ret->count, ret->payload))
			return -EPROTO;
		return ret->id ? 0 : -EPROTO;
	case WIRE_EXTENTS:
		if (!ret->count || ret->count > REQ_EXTENTS_MAX)
			return -EPROTO;
		break;
	case WIRE_RELEASE:
		if (!ret->range.len || ret->flags)
			return -EPROTO;
		break;
	case WIRE_FLUSH:
	case WIRE_ALIVE:
		if (ret->range.off || ret->range.len)
			return -EPROTO;
		/* fall through */
	case WIRE_READ:
	case WIRE_ZERO:
	case WIRE_TRIM:
	case WIRE_PREFETCH:
		if (ret->count)
			return -EPROTO;
		break;
	default:
		return -EPROTO;
	}
	if (ret->payload || (ret->op == WIRE_RELEASE && ret->count))
		return -EPROTO;
	return (ret->op == WIRE_ALIVE || ret->op == WIRE_RELEASE) != !ret->id ? -EPROTO : 0;
}

void wire_request_encode(const struct wire_request *request, uint8_t at[static WIRE_REQUEST_LEN])
{
	put32(at, REQUEST_MAGIC);
	at[4] = request->op;
	at[5] = request->flags;
	put16(at + 6, request->count);
	put64(at + 8, request->id);
	put64(at + 16, request->range.off);
	put64(at + 24, request->range.len);
	put32(at + 32, request->payload);
	put32(at + 36, 0);
}

void wire_request_flag(uint8_t at[static WIRE_REQUEST_LEN], uint8_t flag, bool on)
{
	at[5] = (uint8_t)(on ? at[5] | flag : at[5] & ~flag);
}

int wire_reply_decode(const uint8_t at[static WIRE_REPLY_LEN], struct wire_reply *ret)
{
	*ret = (struct wire_reply){
		.op = at[4], .count = get16(at + 6), .id = get64(at + 8),
		.instance = get64(at + 16),
		.len = get64(at + 24), .code = get32(at + 32), .payload = get32(at + 36),
	};
	if (get32(at) != REPLY_MAGIC || at[5] || !ret->op || ret->op > WIRE_ALIVE)
		return -EPROTO;
	if (ret->op == WIRE_ALIVE && (ret->id || ret->code || ret->payload))
		return -EPROTO;
	if (ret->code)
		return ret->payload > WIRE_TEXT_MAX || ret->count ? -EPROTO : 0;
	if (ret->op == WIRE_READ && ret->count == WIRE_COUNT_PLACED)
		return !ret->len || ret->len > WIRE_LEN_MAX || ret->payload != WIRE_PLACE_LEN
			       ? -EPROTO
			       : 0;
	if (ret->op == WIRE_READ)
		return payload_plausible(ret->len, ret->count, ret->payload) ? 0 : -EPROTO;
	if (ret->op == WIRE_EXTENTS) {
		if (!ret->count || ret->count > REQ_EXTENTS_MAX)
			return -EPROTO;
		return ret->payload == ret->count * WIRE_EXTENT_LEN ? 0 : -EPROTO;
	}
	return ret->payload || ret->count ? -EPROTO : 0;
}

void wire_reply_encode(const struct wire_reply *reply, uint8_t at[static WIRE_REPLY_LEN])
{
	put32(at, REPLY_MAGIC);
	at[4] = reply->op;
	at[5] = 0;
	put16(at + 6, reply->count);
	put64(at + 8, reply->id);
	put64(at + 16, reply->instance);
	put64(at + 24, reply->len);
	put32(at + 32, reply->code);
	put32(at + 36, reply->payload);
}

void wire_place_encode(uint64_t off, uint8_t at[static WIRE_PLACE_LEN])
{
	put64(at, off);
}

uint64_t wire_place_decode(const uint8_t at[static WIRE_PLACE_LEN])
{
	return get64(at);
}

uint64_t wire_request_bytes(uint8_t op, uint64_t len, size_t extents_max)
{
	uint64_t bytes = 0;

	if (op == WIRE_READ || op == WIRE_WRITE)
		bytes = MIN(len, WIRE_LEN_MAX);
	else if (op == WIRE_EXTENTS)
		bytes = MIN(extents_max, (size_t)REQ_EXTENTS_MAX) * BLOCK_EXTENT;
	return align_up(bytes, BLOCK_BYTES);
}

/* ---- runs ---- */

bool wire_is_zero(const uint8_t *at, size_t len)
{
	static const uint8_t zero[16];

	if (len <= sizeof(zero))
		return memcmp(at, zero, len) == 0;
	/* Most data differs in its first bytes; what does not is compared with itself, which memcmp
	 * does fast. */
	return memcmp(at, zero, sizeof(zero)) == 0 &&
	       memcmp(at, at + sizeof(zero), len - sizeof(zero)) == 0;
}

size_t wire_runs_find(const uint8_t *data, size_t len, struct wire_run runs[static WIRE_RUNS_MAX],
		      size_t *ret_data)
{
	size_t count = 0, sent = 0;

	CHECK(len <= WIRE_LEN_MAX);
	for (size_t at = 0; at < len; at += ZERO_BLOCK) {
		uint32_t n = (uint32_t)MIN(len - at, (size_t)ZERO_BLOCK);
		bool zero = wire_is_zero(data + at, n);

		if (count && runs[count - 1].zero == zero) {
			runs[count - 1].len += n;
		} else if (count == WIRE_RUNS_MAX) {
			/* No more room: the rest is sent as it is. */
			if (runs[count - 1].zero) {
				runs[count - 1].zero = false;
				sent += runs[count - 1].len;
			}
			runs[count - 1].len += (uint32_t)(len - at);
			sent += len - at;
			break;
		} else {
			runs[count++] = (struct wire_run){ .len = n, .zero = zero };
		}
		sent += zero ? 0 : n;
	}
	*ret_data = sent;
	return sent == len ? 0 : count;
}

void wire_runs_encode(const struct wire_run *runs, size_t count, uint8_t *at)
{
	for (size_t i = 0; i < count; i++)
		put32(at + i * WIRE_RUN_LEN, runs[i].len | (runs[i].zero ? RUN_ZERO : 0));
}

int wire_runs_decode(const uint8_t *at, size_t count, uint64_t len, uint64_t data,
		     struct wire_run runs[static WIRE_RUNS_MAX])
{
	uint64_t all = 0, sent = 0;

	if (count > WIRE_RUNS_MAX)
		return -EPROTO;
	for (size_t i = 0; i < count; i++) {
		uint32_t v = get32(at + i * WIRE_RUN_LEN);

		runs[i] = (struct wire_run){ .len = v & ~RUN_ZERO, .zero = v & RUN_ZERO };
		if (!runs[i].len)
			return -EPROTO;
		all += runs[i].len; /* at most 64 times 2^31 */
		sent += runs[i].zero ? 0 : runs[i].len;
	}
	return all == len && sent == data ? 0 : -EPROTO;
}

void wire_extent_encode(uint64_t len, bool zero, uint8_t at[static WIRE_EXTENT_LEN])
{
	put64(at, len | (zero ? EXTENT_ZERO : 0));
}

void wire_extent_decode(const uint8_t at[static WIRE_EXTENT_LEN], uint64_t *ret_len, bool *ret_zero)
{
	uint64_t v = get64(at);

	*ret_len = v & ~EXTENT_ZERO;
	*ret_zero = v & EXTENT_ZERO;
}

/* ---- errors ---- */

static const struct {
	int err;
	const char *text;
} codes[WIRE_CODES] = {
	[WIRE_OK] = { 0, "no error" },
	[WIRE_EIO] = { EIO, "input/output error" },
	[WIRE_EINVAL] = { EINVAL, "invalid request" },
	[WIRE_ENOSPC] = { ENOSPC, "no space left" },
	[WIRE_EROFS] = { EROFS, "read-only" },
	[WIRE_EOPNOTSUPP] = { EOPNOTSUPP, "not supported" },
	[WIRE_ETIMEDOUT] = { ETIMEDOUT, "timed out" },
	[WIRE_ESHUTDOWN] = { ESHUTDOWN, "shutting down" },
	[WIRE_ENOENT] = { ENOENT, "no such resource" },
	[WIRE_ENOMEM] = { ENOMEM, "out of memory" },
	[WIRE_EBUSY] = { EBUSY, "too many clients" },
	[WIRE_ESTALE] = { ESTALE, "no longer the same" },
	[WIRE_EACCES] = { EACCES, "not allowed" },
	[WIRE_EVERSION] = { EPROTONOSUPPORT, "no protocol version in common" },
	[WIRE_EPROTO] = { EPROTO, "protocol error" },
	[WIRE_EBADMSG] = { EBADMSG, "checksum mismatch" },
};

uint32_t wire_code_of(int err)
{
	for (uint32_t i = 0; i < WIRE_CODES; i++)
		if (codes[i].err == -err)
			return i;
	return WIRE_EIO;
}

int wire_code_errno(uint32_t code)
{
	return code < WIRE_CODES ? -codes[code].err : -EIO;
}

const char *wire_code_text(uint32_t code)
{
	return code < WIRE_CODES ? codes[code].text : "unknown error";
}
