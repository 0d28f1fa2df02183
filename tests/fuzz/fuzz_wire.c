/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoders of the Remora protocol. The first byte says which one; the rest is what a stranger
 * sent, in a block of exactly its length, so that a read beyond it is found. What a decoder accepts
 * is within the limits, and encodes to the same bytes again.
 */
#include "wire/remora.h"

#include <errno.h>

#include "fuzz.h"

static void try_hello(const uint8_t *at, size_t len)
{
	uint8_t again[WIRE_HELLO_MAX];
	struct wire_hello hello;
	size_t said = 0;
	int r;

	if (len < WIRE_PREFIX_LEN)
		return;
	r = wire_hello_prefix(at, &said, &hello);
	MUST(r == 0 || r == -EPROTO || r == -EPROTONOSUPPORT);
	MUST(r == -EPROTO || (said >= WIRE_PREFIX_LEN && said <= 4096));
	MUST(r || said <= WIRE_HELLO_MAX);
	if (wire_hello_decode(at, len, &hello))
		return;
	MUST(!r && said == len);
	MUST(hello.name_len <= NAME_LEN_MAX && hello.name + hello.name_len == at + len);
	MUST(hello.index < hello.conns && range_within(hello.first, RESOURCE_SIZE_MAX));
	MUST(wire_hello_encode(&hello, again) == len && !memcmp(again, at, len));
}

static void try_prefix(const uint8_t *at, size_t len)
{
	enum wire_answer kind;
	size_t said = 0;

	if (len < WIRE_PREFIX_LEN || wire_answer_prefix(at, &kind, &said))
		return;
	MUST(kind == WIRE_WELCOME || kind == WIRE_REFUSAL || kind == WIRE_LIST);
	MUST(said >= WIRE_PREFIX_LEN && said <= WIRE_LIST_MAX);
}

static void try_welcome(const uint8_t *at, size_t len)
{
	uint8_t again[WIRE_WELCOME_LEN];
	struct wire_welcome welcome;

	if (len < WIRE_PREFIX_LEN || wire_welcome_decode(at, len, &welcome))
		return;
	MUST(welcome.size <= RESOURCE_SIZE_MAX && welcome.len_max &&
	     welcome.len_max <= WIRE_LEN_MAX);
	MUST(is_pow2(welcome.chunk) && welcome.chunk <= CHUNK_MAX &&
	     welcome.bytes_max >= welcome.len_max);
	MUST(wire_welcome_encode(&welcome, again) == len && !memcmp(again, at, len));
}

static void try_refusal(const uint8_t *at, size_t len)
{
	uint8_t again[WIRE_REFUSAL_LEN + WIRE_REFUSAL_TEXT_MAX];
	struct wire_refusal refusal;
	char text[WIRE_REFUSAL_TEXT_MAX + 1];

	if (len < WIRE_PREFIX_LEN || wire_refusal_decode(at, len, &refusal))
		return;
	MUST(refusal.text_len <= WIRE_REFUSAL_TEXT_MAX &&
	     refusal.text + refusal.text_len == at + len);
	MUST(wire_code_errno(refusal.code) < 0 && wire_code_text(refusal.code));
	/* A refusal of another version is read, not written; a text with a zero inside is no text
	 * of ours. */
	if (at[8] != WIRE_VERSION || at[9] || at[22] || at[23] ||
	    memchr(refusal.text, 0, refusal.text_len))
		return;
	memcpy(text, refusal.text, refusal.text_len);
	text[refusal.text_len] = '\0';
	MUST(wire_refusal_encode(refusal.code, text, again, sizeof(again)) == len);
	MUST(!memcmp(again, at, len));
}

static void try_list(const uint8_t *at, size_t len)
{
	uint32_t count = 0;
	size_t pos = WIRE_LIST_LEN, built = WIRE_LIST_LEN;
	uint8_t *again;

	if (len < WIRE_PREFIX_LEN || wire_list_decode(at, len, &count))
		return;
	MUST(len <= WIRE_LIST_MAX);
	again = malloc(len);
	MUST(again);
	for (uint32_t i = 0; i < count; i++) {
		struct wire_entry entry;

		MUST(!wire_list_next(at, len, &pos, &entry));
		MUST(entry.name >= at && entry.name + entry.name_len <= at + len);
		MUST(entry.size <= RESOURCE_SIZE_MAX && entry.name_len <= NAME_LEN_MAX);
		built = wire_list_add(again, len, built, &entry);
		MUST(built);
	}
	wire_list_finish(again, built, count);
	MUST(built == len && pos == len && !memcmp(again, at, len));
	free(again);
}

/* A WRITE's payload, or the reply to a READ: the runs lie in it, and what they cover is what was
 * promised. */
static void try_runs(const uint8_t *at, size_t len, size_t count, uint64_t covers, uint32_t payload)
{
	struct wire_run runs[WIRE_RUNS_MAX];
	uint8_t again[WIRE_RUNS_MAX * WIRE_RUN_LEN];
	uint64_t all = 0, data = 0;

	MUST(count <= WIRE_RUNS_MAX && payload >= count * WIRE_RUN_LEN && covers <= WIRE_LEN_MAX);
	if (!count || len < count * WIRE_RUN_LEN ||
	    wire_runs_decode(at, count, covers, payload - count * WIRE_RUN_LEN, runs))
		return;
	for (size_t i = 0; i < count; i++) {
		MUST(runs[i].len);
		all += runs[i].len;
		data += runs[i].zero ? 0 : runs[i].len;
	}
	MUST(all == covers && data == payload - count * WIRE_RUN_LEN);
	wire_runs_encode(runs, count, again);
	MUST(!memcmp(again, at, count * WIRE_RUN_LEN));
}

static void try_request(const uint8_t *at, size_t len)
{
	uint8_t again[WIRE_REQUEST_LEN];
	struct wire_request request;

	if (len < WIRE_REQUEST_LEN || wire_request_decode(at, &request))
		return;
	MUST(request.op && request.op < WIRE_OPS_END && range_valid(request.range));
	MUST(request.payload <= WIRE_LEN_MAX + WIRE_RUNS_MAX * WIRE_RUN_LEN);
	MUST(request.payload == 0 || request.op == WIRE_WRITE);
	MUST(wire_request_bytes(request.op, request.range.len,
				request.count) <= align_up(WIRE_LEN_MAX, 4096));
	wire_request_encode(&request, again);
	MUST(!memcmp(again, at, sizeof(again)));
	if (request.op == WIRE_WRITE)
		try_runs(at + WIRE_REQUEST_LEN, len - WIRE_REQUEST_LEN, request.count,
			 request.range.len,
			 request.payload);
}

static void try_reply(const uint8_t *at, size_t len)
{
	uint8_t again[WIRE_REPLY_LEN];
	struct wire_reply reply;

	if (len < WIRE_REPLY_LEN || wire_reply_decode(at, &reply))
		return;
	MUST(reply.op && reply.op < WIRE_OPS_END);
	MUST(reply.payload <= WIRE_LEN_MAX + WIRE_RUNS_MAX * WIRE_RUN_LEN);
	MUST(!reply.code == !wire_code_errno(reply.code));
	wire_reply_encode(&reply, again);
	MUST(!memcmp(again, at, sizeof(again)));
	if (reply.op == WIRE_READ && !reply.code)
		try_runs(at + WIRE_REPLY_LEN, len - WIRE_REPLY_LEN, reply.count, reply.len,
			 reply.payload);
}

static void try_extent(const uint8_t *at, size_t len)
{
	uint8_t again[WIRE_EXTENT_LEN];
	uint64_t extent = 0;
	bool zero = false;

	if (len < WIRE_EXTENT_LEN)
		return;
	wire_extent_decode(at, &extent, &zero);
	wire_extent_encode(extent, zero, again);
	MUST(!memcmp(again, at, sizeof(again)));
}

/* The sender's side: what is found in any data can be put together again from the runs and the
 * bytes that are sent. */
static void try_runs_find(const uint8_t *at, size_t len)
{
	struct wire_run runs[WIRE_RUNS_MAX], decoded[WIRE_RUNS_MAX];
	uint8_t encoded[WIRE_RUNS_MAX * WIRE_RUN_LEN];
	size_t data = 0, count, pos = 0;
	uint8_t *wide;

	/* Each byte of the input stands for 2 KiB, so that blocks of zeros come up. */
	len = len > 512 ? 512 : len;
	wide = malloc(len * 2048 + 1);
	MUST(wide);
	for (size_t i = 0; i < len; i++)
		memset(wide + i * 2048, at[i], 2048);
	len *= 2048;
	count = wire_runs_find(wide, len, runs, &data);
	MUST(count <= WIRE_RUNS_MAX && data <= len && (count || data == len));
	wire_runs_encode(runs, count, encoded);
	if (count)
		MUST(!wire_runs_decode(encoded, count, len, data, decoded));
	for (size_t i = 0; i < count; i++) {
		MUST(!runs[i].zero || wire_is_zero(wide + pos, runs[i].len));
		pos += runs[i].len;
	}
	MUST(!count || pos == len);
	free(wide);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const tries[])(const uint8_t *at, size_t len) = {
		try_hello,   try_prefix, try_welcome, try_refusal,   try_list,
		try_request, try_reply,	 try_extent,  try_runs_find,
	};
	uint8_t *copy;

	if (!size)
		return 0;
	copy = fuzz_copy(data + 1, size - 1);
	tries[data[0] % ARRAY_LEN(tries)](copy, size - 1);
	free(copy);
	return 0;
}
