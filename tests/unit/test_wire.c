/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of the Remora protocol: the vectors of docs/protocol.md, read from there, and what
 * decoders must refuse.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "wire/remora.h"

#ifndef SOURCE_ROOT
#define SOURCE_ROOT "."
#endif

/* The block "```vector NAME" of docs/protocol.md: hexadecimal bytes, "#" begins a remark. */
static size_t vector(const char *name, uint8_t *at, size_t room)
{
	char line[512], want[64];
	FILE *f = fopen(SOURCE_ROOT "/docs/protocol.md", "r");
	size_t len = 0;
	bool in = false;

	assert_non_null(f);
	snprintf(want, sizeof(want), "```vector %s\n", name);
	while (fgets(line, sizeof(line), f)) {
		char *p = line, *end;

		if (!strcmp(line, want)) {
			in = true;
			continue;
		}
		if (!in)
			continue;
		if (!strncmp(line, "```", 3))
			break;
		line[strcspn(line, "#\n")] = '\0';
		for (;;) {
			unsigned long v = strtoul(p, &end, 16);

			if (end == p)
				break;
			assert_true(v < 256 && len < room);
			at[len++] = (uint8_t)v;
			p = end;
		}
		assert_int_equal(strspn(p, " \t"), strlen(p));
	}
	fclose(f);
	if (!in)
		fail_msg("docs/protocol.md has no vector \"%s\"", name);
	return len;
}

static const uint8_t session[WIRE_SESSION_LEN] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
						   15, 16 };

static void hello_is_as_documented(void **state)
{
	struct wire_hello hello = { .version_min = 1, .version_max = 1, .index = 1, .conns = 2,
				    .attempt = 7,
				    .flags = WIRE_HELLO_READ_ONLY, .payload_max = 0x1000100,
				    .first = { 0x1000, 0x2000 }, .name_len = 8,
				    .name = (const uint8_t *)"disk.img" };
	uint8_t want[WIRE_HELLO_MAX], got[WIRE_HELLO_MAX];
	struct wire_hello back;
	size_t len = vector("hello", want, sizeof(want)), said;

	(void)state;
	memcpy(hello.session, session, sizeof(session));
	assert_int_equal(wire_hello_encode(&hello, got), len);
	assert_memory_equal(got, want, len);
	assert_int_equal(wire_hello_prefix(want, &said, &back), 0);
	assert_int_equal(said, len);
	assert_int_equal(wire_hello_decode(want, len, &back), 0);
	assert_int_equal(back.attempt, 7);
	assert_int_equal(back.index, 1);
	assert_int_equal(back.first.off, 0x1000);
	assert_memory_equal(back.session, session, sizeof(session));
	assert_memory_equal(back.name, "disk.img", 8);
}

static void welcome_is_as_documented(void **state)
{
	struct wire_welcome welcome = { .size = 0x40000000, .instance = 0x1122334455667788,
					.identity = 0x99,
					.chunk = 65536, .align = 1, .len_max = 0x1000000,
					.requests_max = 128,
					.bytes_max = 0x2000000,
					.caps = WIRE_CAP_ZERO | WIRE_CAP_FUA,
					.keep_alive_ms = 5000, .silence_ms = 15000,
					.conns_max = 16 };
	uint8_t want[WIRE_WELCOME_LEN], got[WIRE_WELCOME_LEN];
	struct wire_welcome back;
	size_t len = vector("welcome", want, sizeof(want));

	(void)state;
	assert_int_equal(wire_welcome_encode(&welcome, got), len);
	assert_memory_equal(got, want, len);
	assert_int_equal(wire_welcome_decode(want, len, &back), 0);
	wire_welcome_encode(&back, got);
	assert_memory_equal(got, want, len);
}

static void refusal_is_as_documented(void **state)
{
	uint8_t want[64], got[64];
	struct wire_refusal back;
	size_t len = vector("refusal", want, sizeof(want));

	(void)state;
	assert_int_equal(wire_refusal_encode(WIRE_ENOENT, "no such name", got, sizeof(got)), len);
	assert_memory_equal(got, want, len);
	assert_int_equal(wire_refusal_decode(want, len, &back), 0);
	assert_int_equal(back.code, WIRE_ENOENT);
	assert_int_equal(back.text_len, 12);
}

static void list_is_as_documented(void **state)
{
	const struct wire_entry a = { .size = 0x100000, .name_len = 1,
				      .name = (const uint8_t *)"a" };
	const struct wire_entry b = { .size = 0x200000, .read_only = true, .name_len = 2,
				      .name = (const uint8_t *)"bb" };
	uint8_t want[128], got[128];
	struct wire_entry back;
	size_t want_len = vector("list", want, sizeof(want));
	size_t len = WIRE_LIST_LEN, pos = WIRE_LIST_LEN;
	uint32_t count;

	(void)state;
	len = wire_list_add(got, sizeof(got), len, &a);
	len = wire_list_add(got, sizeof(got), len, &b);
	wire_list_finish(got, len, 2);
	assert_int_equal(len, want_len);
	assert_memory_equal(got, want, len);
	assert_int_equal(wire_list_decode(want, want_len, &count), 0);
	assert_int_equal(count, 2);
	assert_int_equal(wire_list_next(want, want_len, &pos, &back), 0);
	assert_false(back.read_only);
	assert_int_equal(wire_list_next(want, want_len, &pos, &back), 0);
	assert_true(back.read_only);
	assert_memory_equal(back.name, "bb", 2);
	assert_int_equal(wire_list_add(got, len + 5, len, &a), 0); /* no room */
}

static void requests_are_as_documented(void **state)
{
	static const struct wire_request read = { .op = WIRE_READ, .flags = WIRE_URGENT,
						  .id = 0x100000002,
						  .range = { 0x12345000, 0x1000 } };
	static const struct wire_request write = { .op = WIRE_WRITE, .flags = WIRE_FUA, .count = 2,
						   .id = 3,
						   .range = { 0x2000, 0x3000 },
						   .payload = 8 + 0x1000 };
	static const struct wire_run runs[2] = { { 0x2000, true }, { 0x1000, false } };
	uint8_t want[64], got[64];
	struct wire_request back;
	struct wire_run back_runs[WIRE_RUNS_MAX];

	(void)state;
	assert_int_equal(vector("read", want, sizeof(want)), WIRE_REQUEST_LEN);
	wire_request_encode(&read, got);
	assert_memory_equal(got, want, WIRE_REQUEST_LEN);
	assert_int_equal(wire_request_decode(want, &back), 0);
	wire_request_encode(&back, got);
	assert_memory_equal(got, want, WIRE_REQUEST_LEN);

	assert_int_equal(vector("write", want, sizeof(want)), WIRE_REQUEST_LEN + 8);
	wire_request_encode(&write, got);
	wire_runs_encode(runs, 2, got + WIRE_REQUEST_LEN);
	assert_memory_equal(got, want, WIRE_REQUEST_LEN + 8);
	assert_int_equal(wire_request_decode(want, &back), 0);
	wire_request_encode(&back, got);
	assert_memory_equal(got, want, WIRE_REQUEST_LEN);
	assert_int_equal(wire_runs_decode(want + WIRE_REQUEST_LEN, 2, 0x3000, 0x1000, back_runs),
			 0);
	assert_true(back_runs[0].zero && back_runs[0].len == 0x2000);
	assert_true(!back_runs[1].zero && back_runs[1].len == 0x1000);
}

static void replies_are_as_documented(void **state)
{
	static const struct wire_reply flush = { .op = WIRE_FLUSH, .id = 5,
						 .instance = 0x1122334455667788 };
	static const struct wire_reply zeros = { .op = WIRE_READ, .count = 1, .id = 6,
						 .instance = 0x1122334455667788,
						 .len = 0x10000, .payload = 4 };
	static const struct wire_reply error = { .op = WIRE_WRITE, .id = 7,
						 .instance = 0x1122334455667788,
						 .code = WIRE_EROFS, .payload = 9 };
	static const struct wire_reply extents = { .op = WIRE_EXTENTS, .count = 2, .id = 8,
						   .len = 0x3000,
						   .instance = 0x1122334455667788, .payload = 16 };
	static const struct wire_run run = { 0x10000, true };
	uint8_t want[64], got[64];
	struct wire_reply back;
	uint64_t len;
	bool zero;

	(void)state;
	assert_int_equal(vector("flushed", want, sizeof(want)), WIRE_REPLY_LEN);
	wire_reply_encode(&flush, got);
	assert_memory_equal(got, want, WIRE_REPLY_LEN);
	assert_int_equal(wire_reply_decode(want, &back), 0);
	wire_reply_encode(&back, got);
	assert_memory_equal(got, want, WIRE_REPLY_LEN);

	assert_int_equal(vector("zeros", want, sizeof(want)), WIRE_REPLY_LEN + 4);
	wire_reply_encode(&zeros, got);
	wire_runs_encode(&run, 1, got + WIRE_REPLY_LEN);
	assert_memory_equal(got, want, WIRE_REPLY_LEN + 4);
	assert_int_equal(wire_reply_decode(want, &back), 0);

	assert_int_equal(vector("error", want, sizeof(want)), WIRE_REPLY_LEN + 9);
	wire_reply_encode(&error, got);
	assert_memory_equal(got, want, WIRE_REPLY_LEN);
	assert_memory_equal("read-only", want + WIRE_REPLY_LEN, 9);
	assert_int_equal(wire_reply_decode(want, &back), 0);

	assert_int_equal(vector("extents", want, sizeof(want)), WIRE_REPLY_LEN + 16);
	wire_reply_encode(&extents, got);
	wire_extent_encode(0x1000, false, got + WIRE_REPLY_LEN);
	wire_extent_encode(0x2000, true, got + WIRE_REPLY_LEN + 8);
	assert_memory_equal(got, want, WIRE_REPLY_LEN + 16);
	assert_int_equal(wire_reply_decode(want, &back), 0);
	wire_extent_decode(want + WIRE_REPLY_LEN + 8, &len, &zero);
	assert_true(zero && len == 0x2000);
}

static void alive_is_as_documented(void **state)
{
	const struct wire_request request = { .op = WIRE_ALIVE };
	const struct wire_reply reply = { .op = WIRE_ALIVE };
	uint8_t want[64], got[64];

	(void)state;
	assert_int_equal(vector("alive-client", want, sizeof(want)), WIRE_REQUEST_LEN);
	wire_request_encode(&request, got);
	assert_memory_equal(got, want, WIRE_REQUEST_LEN);
	assert_int_equal(vector("alive-server", want, sizeof(want)), WIRE_REPLY_LEN);
	wire_reply_encode(&reply, got);
	assert_memory_equal(got, want, WIRE_REPLY_LEN);
}

static void placed_replies_and_their_release_are_as_documented(void **state)
{
	const struct wire_request release = { .op = WIRE_RELEASE,
					      .range = { 256 * KIB, 256 * KIB } };
	const struct wire_reply placed = { .op = WIRE_READ, .id = 8, .len = 256 * KIB,
					   .instance = 0x1122334455667788,
					   .count = WIRE_COUNT_PLACED, .payload = WIRE_PLACE_LEN };
	uint8_t want[64], got[64];
	struct wire_request request;
	struct wire_reply reply;

	(void)state;
	assert_int_equal(vector("release", want, sizeof(want)), WIRE_REQUEST_LEN);
	wire_request_encode(&release, got);
	assert_memory_equal(got, want, WIRE_REQUEST_LEN);
	assert_int_equal(wire_request_decode(want, &request), 0);
	assert_int_equal(vector("placed", want, sizeof(want)), WIRE_REPLY_LEN + WIRE_PLACE_LEN);
	wire_reply_encode(&placed, got);
	wire_place_encode(256 * KIB, got + WIRE_REPLY_LEN);
	assert_memory_equal(got, want, WIRE_REPLY_LEN + WIRE_PLACE_LEN);
	assert_int_equal(wire_reply_decode(want, &reply), 0);
	want[36] = 9; /* a place is 8 bytes */
	assert_int_equal(wire_reply_decode(want, &reply), -EPROTO);
}

/* ---- refusing ---- */

/* One byte wrong at a time: a decoder accepts it or not, but reads nothing beyond, and what it
 * accepts is bounded. */
static void any_wrong_byte_is_survived(void **state)
{
	uint8_t good[WIRE_HELLO_MAX], bad[WIRE_HELLO_MAX];
	size_t len = vector("hello", good, sizeof(good)), said;

	(void)state;
	for (size_t i = 0; i < len; i++) {
		for (unsigned v = 0; v < 256; v++) {
			struct wire_hello hello;
			uint8_t *exact = malloc(len);

			assert_non_null(exact);
			memcpy(exact, good, len);
			exact[i] = (uint8_t)v;
			if (wire_hello_prefix(exact, &said, &hello) == 0)
				assert_true(said <= WIRE_HELLO_MAX);
			if (wire_hello_decode(exact, len, &hello) == 0) {
				assert_true(hello.name + hello.name_len <= exact + len);
				assert_true(hello.index < hello.conns &&
					    hello.conns <= WIRE_CONNS_MAX);
			}
			free(exact);
		}
	}
	for (size_t cut = 0; cut < len; cut++) {
		struct wire_hello hello;

		memcpy(bad, good, len);
		assert_int_equal(wire_hello_decode(bad, cut, &hello), -EPROTO);
	}
}

/* What is accepted of a welcome is what a store may say of itself. */
static void a_welcome_is_plausible_or_refused(void **state)
{
	uint8_t good[WIRE_WELCOME_LEN], bad[WIRE_WELCOME_LEN];
	size_t len = vector("welcome", good, sizeof(good));

	(void)state;
	for (size_t i = 0; i < len; i++) {
		for (unsigned v = 0; v < 256; v++) {
			struct wire_welcome w;

			memcpy(bad, good, len);
			bad[i] = (uint8_t)v;
			if (wire_welcome_decode(bad, len, &w))
				continue;
			assert_true(w.size <= RESOURCE_SIZE_MAX && w.align <= STORE_ALIGN_MAX);
			assert_true(is_pow2(w.align) && is_pow2(w.chunk) && w.len_max);
			assert_true(w.len_max <= REQ_LEN_MAX && w.len_max % w.align == 0);
			assert_true(w.requests_max && w.conns_max && w.instance);
			assert_true(w.keep_alive_ms >= 10 && w.silence_ms > w.keep_alive_ms);
		}
	}
}

static void versions_are_negotiated(void **state)
{
	uint8_t at[WIRE_HELLO_MAX];
	size_t len = vector("hello", at, sizeof(at)), said;
	struct wire_hello hello;

	(void)state;
	assert_true(len > 0);
	at[10] = 9; /* 1 to 9: we speak 1 */
	assert_int_equal(wire_hello_prefix(at, &said, &hello), 0);
	at[8] = 2; /* 2 to 9: we do not, and the rest may look as it likes */
	at[12] = 0xff;
	at[13] = 0x0f;
	assert_int_equal(wire_hello_prefix(at, &said, &hello), -EPROTONOSUPPORT);
	assert_int_equal(said, 4095);
	at[13] = 0x20;
	assert_int_equal(wire_hello_prefix(at, &said, &hello), -EPROTO);
	at[8] = 10; /* 10 to 9 */
	at[13] = 0;
	assert_int_equal(wire_hello_prefix(at, &said, &hello), -EPROTO);
}

static void huge_and_negative_lengths_are_refused(void **state)
{
	static const struct wire_request bad[] = {
		{ .op = WIRE_WRITE, .id = 1, .range = { 0, UINT64_MAX }, .payload = UINT32_MAX },
		{ .op = WIRE_WRITE, .id = 1, .range = { 0, WIRE_LEN_MAX + 1 },
		  .payload = WIRE_LEN_MAX + 1 },
		{ .op = WIRE_WRITE, .id = 1, .range = { 0, 4096 }, .payload = 4097 },
		{ .op = WIRE_WRITE, .id = 1, .range = { 0, 4096 }, .payload = 4100, .count = 1 },
		{ .op = WIRE_WRITE, .id = 1, .range = { 0, 4096 }, .payload = 3, .count = 1 },
		{ .op = WIRE_WRITE, .id = 1, .range = { 0, 4096 }, .payload = 400,
		  .count = WIRE_RUNS_MAX + 1 },
		{ .op = WIRE_WRITE, .id = 1 },
		{ .op = WIRE_WRITE, .range = { 0, 1 }, .payload = 1 },
		{ .op = WIRE_READ, .id = 1, .range = { UINT64_MAX, 2 } },
		{ .op = WIRE_READ, .id = 1, .range = { 0, 2 }, .payload = 2 },
		{ .op = WIRE_READ, .id = 1, .range = { 0, 2 }, .count = 1 },
		{ .op = WIRE_READ, .range = { 0, 2 } },
		{ .op = WIRE_READ, .id = 1, .range = { 0, 2 }, .flags = 16 },
		{ .op = WIRE_WRITE, .id = 1, .range = { 0, 2 }, .payload = 2, .flags = 8 },
		{ .op = WIRE_EXTENTS, .id = 1, .range = { 0, 2 } },
		{ .op = WIRE_EXTENTS, .id = 1, .range = { 0, 2 }, .count = REQ_EXTENTS_MAX + 1 },
		{ .op = WIRE_FLUSH, .id = 1, .range = { 0, 1 } },
		{ .op = WIRE_ALIVE, .id = 1 },
		{ .op = 0, .id = 1 },
		{ .op = WIRE_OPS_END, .id = 1 },
	};
	static const struct wire_reply lies[] = {
		{ .op = WIRE_READ, .id = 1, .len = UINT64_MAX, .payload = UINT32_MAX },
		{ .op = WIRE_READ, .id = 1, .len = 4096, .payload = 4095 },
		{ .op = WIRE_READ, .id = 1, .len = 4096, .payload = 4100, .count = 1 },
		{ .op = WIRE_READ, .id = 1, .code = WIRE_EIO, .payload = WIRE_TEXT_MAX + 1 },
		{ .op = WIRE_EXTENTS, .id = 1, .count = 1, .payload = 16 },
		{ .op = WIRE_EXTENTS, .id = 1 },
		{ .op = WIRE_EXTENTS, .id = 1, .count = REQ_EXTENTS_MAX + 1,
		  .payload = 8 * (REQ_EXTENTS_MAX + 1) },
		{ .op = WIRE_FLUSH, .id = 1, .payload = 1 },
		{ .op = WIRE_ALIVE, .payload = 1 },
		{ .op = WIRE_OPS_END, .id = 1 },
	};
	uint8_t at[WIRE_REPLY_LEN];
	struct wire_request request;
	struct wire_reply reply;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		wire_request_encode(&bad[i], at);
		if (wire_request_decode(at, &request) != -EPROTO)
			fail_msg("request %zu", i);
	}
	for (size_t i = 0; i < ARRAY_LEN(lies); i++) {
		wire_reply_encode(&lies[i], at);
		if (wire_reply_decode(at, &reply) != -EPROTO)
			fail_msg("reply %zu", i);
	}
}

static void runs_must_cover_exactly(void **state)
{
	struct wire_run runs[WIRE_RUNS_MAX], out[WIRE_RUNS_MAX];
	uint8_t at[WIRE_RUNS_MAX * WIRE_RUN_LEN];

	(void)state;
	runs[0] = (struct wire_run){ 4096, true };
	runs[1] = (struct wire_run){ 100, false };
	wire_runs_encode(runs, 2, at);
	assert_int_equal(wire_runs_decode(at, 2, 4196, 100, out), 0);
	assert_int_equal(wire_runs_decode(at, 2, 4197, 100, out), -EPROTO);
	assert_int_equal(wire_runs_decode(at, 2, 4196, 101, out), -EPROTO);
	assert_int_equal(wire_runs_decode(at, 1, 4196, 100, out), -EPROTO);
	assert_int_equal(wire_runs_decode(at, WIRE_RUNS_MAX + 1, 4196, 100, out), -EPROTO);
	runs[1].len = 0;
	wire_runs_encode(runs, 2, at);
	assert_int_equal(wire_runs_decode(at, 2, 4096, 0, out), -EPROTO);
	for (size_t i = 0; i < WIRE_RUNS_MAX; i++)
		runs[i] = (struct wire_run){ INT32_MAX, false };
	wire_runs_encode(runs, WIRE_RUNS_MAX, at);
	assert_int_equal(wire_runs_decode(at, WIRE_RUNS_MAX, 4096, 4096, out), -EPROTO);
}

/* What is found, laid out again, gives the bytes again; at all lengths, and with more changes than
 * a table holds. */
static void runs_are_found_and_lose_nothing(void **state)
{
	static uint8_t data[300000], again[300000];
	struct wire_run runs[WIRE_RUNS_MAX];
	struct rng r = { 11 };

	(void)state;
	for (int round = 0; round < 400; round++) {
		size_t len = 1 + rng_below(&r, sizeof(data)), sent, pos = 0, told = 0, count;

		memset(data, 0, len);
		memset(again, 0xee, len);
		for (size_t at = 0; at < len; at += 4096)
			if (rng_chance(&r, (uint32_t)(round * 2500)))
				data[at + rng_below(&r, MIN((size_t)4096, len - at))] = 1;
		count = wire_runs_find(data, len, runs, &sent);
		assert_true(count <= WIRE_RUNS_MAX);
		if (!count) {
			assert_int_equal(sent, len);
			continue;
		}
		assert_true(sent < len);
		for (size_t i = 0; i < count; i++) {
			if (runs[i].zero)
				memset(again + pos, 0, runs[i].len);
			else
				memcpy(again + pos, data + pos, runs[i].len);
			told += runs[i].zero ? 0 : runs[i].len;
			pos += runs[i].len;
		}
		assert_int_equal(pos, len);
		assert_int_equal(told, sent);
		assert_memory_equal(data, again, len);
	}
}

static void a_zero_is_only_a_zero(void **state)
{
	uint8_t buf[200];

	(void)state;
	for (size_t len = 0; len <= sizeof(buf); len++) {
		memset(buf, 0, sizeof(buf));
		memset(buf + len, 1, sizeof(buf) - len);
		assert_true(wire_is_zero(buf, len));
		for (size_t i = 0; i < len; i++) {
			buf[i] = 0x80;
			assert_false(wire_is_zero(buf, len));
			buf[i] = 0;
		}
	}
}

static void every_code_has_an_errno_and_comes_back(void **state)
{
	(void)state;
	for (uint32_t code = 0; code < WIRE_CODES; code++) {
		assert_int_equal(wire_code_of(wire_code_errno(code)), code);
		assert_true(strlen(wire_code_text(code)) > 0);
	}
	assert_int_equal(wire_code_of(-EXDEV), WIRE_EIO);
	assert_int_equal(wire_code_errno(12345), -EIO);
	assert_non_null(wire_code_text(12345));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hello_is_as_documented),
		cmocka_unit_test(welcome_is_as_documented),
		cmocka_unit_test(refusal_is_as_documented),
		cmocka_unit_test(list_is_as_documented),
		cmocka_unit_test(requests_are_as_documented),
		cmocka_unit_test(replies_are_as_documented),
		cmocka_unit_test(alive_is_as_documented),
		cmocka_unit_test(placed_replies_and_their_release_are_as_documented),
		cmocka_unit_test(any_wrong_byte_is_survived),
		cmocka_unit_test(a_welcome_is_plausible_or_refused),
		cmocka_unit_test(versions_are_negotiated),
		cmocka_unit_test(huge_and_negative_lengths_are_refused),
		cmocka_unit_test(runs_must_cover_exactly),
		cmocka_unit_test(runs_are_found_and_lose_nothing),
		cmocka_unit_test(a_zero_is_only_a_zero),
		cmocka_unit_test(every_code_has_an_errno_and_comes_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
