/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Remora protocol, version 1: bytes to structs and back. Pure functions: no I/O, no allocation,
 * no state. What each byte means is in docs/protocol.md, whose vectors are a test.
 *
 * A decoder takes bytes from a stranger. What it accepts is consistent in itself (magic, known
 * values, lengths that agree with one another and lie under the limits); whether it fits the
 * resource is the receiver's to check. All decoders return 0 or -EPROTO, but where a function says
 * otherwise.
 */
#ifndef REMORA_WIRE_REMORA_H
#define REMORA_WIRE_REMORA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/range.h"

#define WIRE_VERSION 1u

/* Lengths on the wire. */
#define WIRE_PREFIX_LEN 16u /* of a hello and of each answer to it, in every version */
#define WIRE_HELLO_LEN 80u  /* without the name */
#define WIRE_HELLO_MAX (WIRE_HELLO_LEN + NAME_LEN_MAX)
#define WIRE_WELCOME_LEN 88u
#define WIRE_REFUSAL_LEN 24u /* without the text */
#define WIRE_LIST_LEN 24u    /* without the entries */
#define WIRE_ENTRY_LEN 16u   /* without the name */
#define WIRE_REQUEST_LEN 40u
#define WIRE_REPLY_LEN 40u
#define WIRE_RUN_LEN 4u
#define WIRE_EXTENT_LEN 8u
#define WIRE_HEAD_MAX (WIRE_REQUEST_LEN + WIRE_RUNS_MAX * WIRE_RUN_LEN)

#define WIRE_ID_FIRST 0u /* the request id of the read that came with the hello */
#define WIRE_FIRST_MAX (1 * MIB)
#define WIRE_SESSION_LEN 16u
#define WIRE_KEEP_ALIVE_MIN_MS 10u

static_assert(WIRE_REQUEST_LEN == WIRE_REPLY_LEN, "WIRE_HEAD_MAX serves both");

enum wire_op {
	WIRE_READ = 1,
	WIRE_WRITE,
	WIRE_FLUSH,
	WIRE_ZERO,
	WIRE_TRIM,
	WIRE_EXTENTS,
	WIRE_PREFETCH,
	WIRE_ALIVE, /* says only that the peer is there; never answered */
	/* request only, never answered: a placed reply has been used; its range is that of the
	 * place */
	WIRE_RELEASE,
	WIRE_OPS_END
};

enum { /* flags of a request */
	WIRE_FUA = 1u << 0,
	WIRE_URGENT = 1u << 1,
	WIRE_BACKGROUND = 1u << 2,
	WIRE_MAY_PLACE = 1u << 3, /* READ: the reply may be placed in the shared memory */
	WIRE_REQUEST_FLAGS = WIRE_FUA | WIRE_URGENT | WIRE_BACKGROUND | WIRE_MAY_PLACE
};

/* Error codes, the same on every system. */
enum wire_code {
	WIRE_OK,
	WIRE_EIO,
	WIRE_EINVAL,	/* a request that no server could carry out */
	WIRE_ENOSPC,
	WIRE_EROFS,	/* a change to what is read-only */
	WIRE_EOPNOTSUPP,
	WIRE_ETIMEDOUT, /* the server's own far side did not answer in time */
	WIRE_ESHUTDOWN, /* the server is going away; what was asked was not done */
	WIRE_ENOENT,	/* no resource of that name */
	WIRE_ENOMEM,
	WIRE_EBUSY,	/* too many clients, connections */
	WIRE_ESTALE,	/* the resource is not what it was, or the connection has been replaced */
	WIRE_EACCES,
	WIRE_EVERSION,	/* no version in common */
	WIRE_EPROTO,	/* the peer broke this protocol */
	WIRE_EBADMSG,	/* a checksum does not match */
	WIRE_CODES
};

enum {
	WIRE_HELLO_READ_ONLY = 1u << 0,
	WIRE_HELLO_LIST = 1u << 1,
	/* over a unix socket: replies may be placed in memory that the server shares */
	WIRE_HELLO_SHARED = 1u << 2,
	WIRE_HELLO_FLAGS = (1u << 3) - 1
};

struct wire_hello {
	uint16_t version_min, version_max;
	uint8_t session[WIRE_SESSION_LEN]; /* random; ties the connections of one client together */
	/* of this connection in the session; 0 = urgent things */
	uint16_t index;
	uint16_t conns;			   /* how many the client means to have */
	/* grows with each connection of this session and index */
	uint32_t attempt;
	uint32_t flags;
	uint32_t payload_max;		   /* what the client takes in one reply */
	/* to be read at once, cut to what there is; length 0 = nothing */
	struct range first;
	uint16_t name_len;
	const uint8_t *name;		   /* decoded: points into the input; no zero at the end */
};

enum wire_answer { WIRE_WELCOME = 1, WIRE_REFUSAL, WIRE_LIST };

enum {
	WIRE_CAP_READ_ONLY = 1u << 0,
	WIRE_CAP_ZERO = 1u << 1,
	WIRE_CAP_TRIM = 1u << 2,
	WIRE_CAP_FUA = 1u << 3,
	WIRE_CAP_EXTENTS = 1u << 4,
	WIRE_CAP_PREFETCH = 1u << 5,
	WIRE_CAP_SHARED = 1u << 6, /* the shared memory's descriptor comes with the welcome */
	WIRE_CAPS = (1u << 7) - 1
};

struct wire_welcome {
	uint64_t size, instance, identity;
	uint32_t chunk, align, len_max;
	uint32_t requests_max;	/* in flight on this connection */
	/* of READ and WRITE in flight on this connection; at least len_max */
	uint64_t bytes_max;
	uint32_t caps;
	uint32_t keep_alive_ms; /* each side sends something at least so often */
	uint32_t silence_ms;	/* and takes the other for dead after so long */
	uint16_t conns_max;	/* connections that one session may have */
};

struct wire_refusal {
	uint32_t code;
	uint16_t text_len;
	const uint8_t *text; /* decoded: points into the input */
};

struct wire_entry {
	uint64_t size;
	bool read_only;
	uint16_t name_len;
	const uint8_t *name; /* decoded: points into the input */
};

struct wire_request {
	uint8_t op, flags;
	/* WRITE: runs in front of the payload, 0 = none; EXTENTS: how many at most */
	uint16_t count;
	uint64_t id;
	struct range range;
	uint32_t payload; /* bytes behind the header: runs and data */
};

/* wire_reply.count of a READ: the payload is the offset of the data in the shared memory */
#define WIRE_COUNT_PLACED UINT16_MAX
#define WIRE_PLACE_LEN 8u

struct wire_reply {
	uint8_t op;
	uint16_t count;	  /* READ: runs, or WIRE_COUNT_PLACED; EXTENTS: how many */
	uint64_t id;
	uint64_t instance;
	uint32_t code;
	uint32_t payload; /* runs and data, extents, or the text of an error */
	/* of the range that was asked for (of the first read: what there was of it) */
	uint64_t len;
};

/* ---- handshake ---- */

/* The first WIRE_PREFIX_LEN bytes of a hello. *ret_len = length of all of it, at most
 * WIRE_HELLO_MAX for version 1 and 4096 for any. -EPROTONOSUPPORT when no version is shared. */
MUST_USE int wire_hello_prefix(const uint8_t *at, size_t *ret_len, struct wire_hello *ret);
MUST_USE int wire_hello_decode(const uint8_t *at, size_t len, struct wire_hello *ret);
size_t wire_hello_encode(const struct wire_hello *hello, uint8_t at[static WIRE_HELLO_MAX]);

/* The first WIRE_PREFIX_LEN bytes of an answer. */
MUST_USE int wire_answer_prefix(const uint8_t *at, enum wire_answer *ret_kind, size_t *ret_len);
MUST_USE int wire_welcome_decode(const uint8_t *at, size_t len, struct wire_welcome *ret);
size_t wire_welcome_encode(const struct wire_welcome *welcome, uint8_t at[static WIRE_WELCOME_LEN]);
MUST_USE int wire_refusal_decode(const uint8_t *at, size_t len, struct wire_refusal *ret);
size_t wire_refusal_encode(uint32_t code, const char *text, uint8_t *at, size_t room);

/* A list is built entry by entry: wire_list_add() gives the new length, or 0 when it does not fit
 * into `room`; wire_list_finish() writes the header. len starts as WIRE_LIST_LEN. */
size_t wire_list_add(uint8_t *at, size_t room, size_t len, const struct wire_entry *entry);
void wire_list_finish(uint8_t *at, size_t len, uint32_t count);
/* Checks all of it. Then wire_list_next() from *pos = WIRE_LIST_LEN on, count times. */
MUST_USE int wire_list_decode(const uint8_t *at, size_t len, uint32_t *ret_count);
MUST_USE int wire_list_next(const uint8_t *at, size_t len, size_t *pos, struct wire_entry *ret);

/* ---- requests and replies ---- */

MUST_USE int wire_request_decode(const uint8_t at[static WIRE_REQUEST_LEN],
				 struct wire_request *ret);
void wire_request_encode(const struct wire_request *request, uint8_t at[static WIRE_REQUEST_LEN]);
/* In an encoded one. */
void wire_request_flag(uint8_t at[static WIRE_REQUEST_LEN], uint8_t flag, bool on);
MUST_USE int wire_reply_decode(const uint8_t at[static WIRE_REPLY_LEN], struct wire_reply *ret);
void wire_reply_encode(const struct wire_reply *reply, uint8_t at[static WIRE_REPLY_LEN]);

/* What a request counts against wire_welcome.bytes_max: its data, or room for its extents, in whole
 * blocks of 4 KiB. */
uint64_t wire_request_bytes(uint8_t op, uint64_t len, size_t extents_max);

/* ---- runs: which parts of a payload are zeros and therefore not sent ---- */

struct wire_run {
	uint32_t len;
	bool zero;
};

/* Looks for blocks of zeros. Returns the number of runs, 0 when nothing is to be gained. *ret_data
 * = bytes that are not in zero runs. */
size_t wire_runs_find(const uint8_t *data, size_t len, struct wire_run runs[static WIRE_RUNS_MAX],
		      size_t *ret_data);
void wire_runs_encode(const struct wire_run *runs, size_t count, uint8_t *at);
/* The runs must cover `len` bytes, and those with data `data` bytes. */
MUST_USE int wire_runs_decode(const uint8_t *at, size_t count, uint64_t len, uint64_t data,
			      struct wire_run runs[static WIRE_RUNS_MAX]);

bool wire_is_zero(const uint8_t *at, size_t len);

/* Payload of a placed reply. */
void wire_place_encode(uint64_t off, uint8_t at[static WIRE_PLACE_LEN]);
uint64_t wire_place_decode(const uint8_t at[static WIRE_PLACE_LEN]);

/* One extent of an EXTENTS reply. */
void wire_extent_encode(uint64_t len, bool zero, uint8_t at[static WIRE_EXTENT_LEN]);
void wire_extent_decode(const uint8_t at[static WIRE_EXTENT_LEN], uint64_t *ret_len,
			bool *ret_zero);

/* ---- errors ---- */

uint32_t wire_code_of(int err); /* 0 or -errno; what is not in the table is WIRE_EIO */
int wire_code_errno(uint32_t code);
const char *wire_code_text(uint32_t code);

#endif
