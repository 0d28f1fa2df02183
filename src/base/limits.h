/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every bound in one place, with the relations between them checked by the compiler. Bytes unless
 * the name ends otherwise.
 */
#ifndef REMORA_BASE_LIMITS_H
#define REMORA_BASE_LIMITS_H

#include <assert.h>
#include <stdint.h>

#define KIB (1024ULL)
#define MIB (1024ULL * KIB)
#define GIB (1024ULL * MIB)
#define TIB (1024ULL * GIB)

/* unit of access and of dirty tracking; checked against the system's at start */
#define PAGE_BYTES 4096u

#define ERR_TEXT_MAX 512u
#define SIZE_TEXT_MAX 32u /* a size or a time as text */

/* Resources and chunks. */
#define RESOURCE_SIZE_MAX (1ULL << 62)
#define CHUNK_MIN (4 * KIB)
#define CHUNK_MAX (16 * MIB)
#define CHUNK_DEFAULT (64 * KIB)

/* One request. Longer ones are split by the align stage or by their maker. */
#define REQ_LEN_MAX (32 * MIB)		    /* READ and WRITE: what a buffer may have */
#define REQ_LEN_NODATA_MAX RESOURCE_SIZE_MAX /* FLUSH ZERO TRIM EXTENTS PREFETCH carry no data */
#define REQ_EXTENTS_MAX 4096u		    /* extents in one answer */

/* Stores. */
#define STORE_ALIGN_MAX (64 * KIB)   /* what a store may ask its requests to be aligned to */
#define STORE_EMUL_MAX 16u	     /* emulated requests at a time, per store; more of them wait */
#define STORE_ZERO_PIECE (64 * KIB)  /* zeroing by writes: bytes per write */
/* operations in flight of a back end on files or threads; more of them wait */
#define BACK_OPS_MAX 64u
#define BACK_BOUNCE_LEN (1 * MIB)    /* O_DIRECT with an unaligned buffer: bytes per copy */
#define BACK_BOUNCES 8u
#define DIRECTORY_CHUNKS_MAX (1ULL << 26) /* 4 TiB of chunks of 64 KiB */
#define DIRECTORY_FILES_MAX 128u  /* kept open; and one for each chunk in flight */
#define DIRECTORY_OPS_MAX 64u	     /* chunks in flight, with a buffer each */
#define DIRECTORY_OPS_MIN 4u
#define DIRECTORY_BUFFERS_MAX (64 * MIB)
#define DIRECTORY_COMMITS_MAX 4u     /* besides, of a flush */
#define DIRECTORY_JOBS_MAX 256u	     /* requests being cut at the chunks; more of them wait */
#define MEMORY_SIZE_MAX (64 * TIB)   /* memory: what an address space can hold beside the rest */
#define PATTERN_UNIT_MAX 1024u

/* Stages. */
/* requests that a stage has below itself at a time; more of them wait */
#define STAGE_REQS_MAX 512u
/* the same of the order stage, which looks through all of them */
#define ORDER_REQS_MAX 256u
#define ALIGN_PIECES_MAX 128u	     /* pieces in flight of one align stage */
#define ALIGN_JOBS_MAX 256u	     /* requests being cut into them; more of them wait */
#define ALIGN_PARTS_MAX 16u	     /* requests that may share one piece */
#define ALIGN_BLOCK_MAX (1 * MIB)
#define ALIGN_BOUNCE_MIN (64 * KIB)  /* up to here an unaligned read is one request */
/* requests of the encrypt stage, each with a buffer of ENCRYPT_LEN_MAX */
#define ENCRYPT_REQS_MAX 32u
#define ENCRYPT_LEN_MAX (1 * MIB)
#define ENCRYPT_APART_MIN (128 * KIB) /* from here on another thread encrypts */
#define ENCRYPT_CHUNK_DEFAULT (64 * KIB)
#define TRACE_BUF_LEN (256 * KIB)    /* each of the two buffers of the trace stage */
/* requests of the verify stage, each with a buffer of VERIFY_LEN_MAX */
#define VERIFY_REQS_MAX 32u
#define VERIFY_LEN_MAX (1 * MIB)
#define CHECKSUM_REQS_MAX 128u	     /* requests of the checksum stage in progress */
#define CHECKSUM_CHUNKS_MAX (1ULL << 24) /* 1 TiB of chunks of 64 KiB; a digest each, in memory */
#define CHECKSUM_PAGE 4096u
#define CHECKSUM_PAGES_MAX 64u	     /* of its file, written at a time */
#define POWERCUT_WRITES_MAX 4096u    /* kept by the powercut stage, and their bytes */
#define POWERCUT_KEEP_DEFAULT (16 * MIB)
#define POWERCUT_KEEP_MAX (1 * GIB)

/* Streams: a buffered reader and a gathering writer on a socket. */
#define STREAM_BUF_LEN (16 * KIB)    /* read ahead; the longest header of any protocol fits */
#define STREAM_IOV_MAX 256	     /* pieces of memory in one send */
#define STREAM_BATCH_LEN (512 * KIB) /* in one send: what something urgent may have before it */

/* TLS. */
#define TLS_RECORD_LEN (16 * KIB)	     /* plain text of one record */
#define TLS_RECORD_ROOM (TLS_RECORD_LEN + 512) /* the longest one, with what may go before it */
#define TLS_IN_LEN (64 * KIB)	/* received at a time */
#define TLS_OUT_LEN (144 * KIB) /* sent at a time */
#define TLS_CHAIN_MAX (32 * KIB) /* of certificates, that a stranger may send */
#define TLS_FILE_MAX (1 * MIB)	/* a file of certificates, keys or secrets */
#define TLS_SECRETS_MAX 1024u
#define TLS_SECRET_MIN 16u /* bytes */
#define TLS_SECRET_MAX 64u
#define TLS_IDENTITY_MAX 128u
#define TLS_PEER_MAX 192u /* text: the names of one */
#define TLS_WHY_MAX 384u  /* text: what was wrong */

/* The Remora protocol. */
#define WIRE_LEN_MAX (16 * MIB)	   /* one READ or WRITE */
#define WIRE_RUNS_MAX 64u	   /* runs in front of one payload */
#define WIRE_CONNS_MAX 16u	   /* connections of one session */
#define WIRE_TEXT_MAX 256u	   /* text of a request's error */
#define WIRE_REFUSAL_TEXT_MAX 1000u /* text of a refused hello */
#define WIRE_LIST_MAX (128 * KIB)  /* a list of resources, header included */
#define REMORA_REQS_MAX 128u	   /* the client: in flight per connection */
#define REMORA_REQS_URGENT 16u	   /* of them kept free for urgent ones */
#define SERVER_EXPORTS_MAX 256u
#define SERVER_ALLOW_MAX 1024u	   /* rules of who may have what */
#define SERVER_CONNS_MAX 128u	   /* default for one server */
#define SERVER_CONNS_UNGREETED 32u /* beyond them: not greeted yet, or being refused */
#define SERVER_REQS_MAX 128u	   /* default, in flight per connection */
#define SERVER_BYTES_MAX (32 * MIB) /* default, of one connection's buffers; touched when needed */
#define SERVER_UNSENT_MAX (1 * MIB) /* default; with more than that no further request is read */
#define SERVER_SHARED_LEN (8 * MIB) /* memory shared with a client over a unix socket */
#define SERVER_PLACES_MAX 64u	    /* replies placed in it at a time */
#define SERVER_PLACE_MIN (32 * KIB) /* shorter ones are sent */
#define WIRE_SHARED_MAX (256 * MIB) /* what a client maps of a server at most */

/* Regions. */
#define MAP_CHUNKS_MAX (1ULL << 40) /* a byte of address space each */
#define MAP_RECS_MIN 64u
#define MAP_RECS_BYTES (1 * MIB)	  /* page records; less with a small budget */
#define REGION_INFLIGHT_DEFAULT (32 * MIB) /* transfer buffers */
#define REGION_INFLIGHT_MAX (1 * GIB)
#define REGION_UNIT (256 * KIB)		  /* one transfer in bulk, where a chunk is not larger */
#define REGION_SMALL (16 * KIB)		  /* buffers for single dirty pages */
/* transfers that another thread installs: queued, or under way */
#define REGION_APART_MAX 6u
#define REGION_APART_MIN (32 * KIB)	  /* shorter ones the loop installs itself */
#define REGION_SLOTS_MIN 4u		  /* large transfer buffers */
#define REGION_SMALL_SLOTS_MAX 256u
#define REGION_CHUNKS_MIN 8u		  /* what a budget must hold besides */
#define REGION_READAHEAD_DEFAULT (8 * MIB)
/* distinct chunks that faults wait for; more threads wait outside */
#define REGION_FAULTS_MAX 1024u
#define REGION_IOS_MAX 256u		  /* requests in progress; more of them wait */
#define REGION_STREAMS 16u		  /* readers told apart by readahead */
#define REGION_ADVICE_MAX 16u
#define REGION_MARKS_MAX 64u
#define REGION_FAILED_MAX 64u		  /* failed ranges remembered one by one */
/* spans of the background pull that are sorted by priority */
#define REGION_ORDER_MAX (1u << 20)
#define FLOW_WINDOW_MIN (1 * MIB)

/* Near stores on a disk. */
#define ND_RECORD 64u		  /* head of a record of the journal; records begin at multiples */
#define ND_PAYLOAD_MAX CHUNK_MAX  /* of one record: what is written at a time */
#define ND_CLEAN_MAX 4096u	  /* chunks of one record */
#define ND_META_MAX 8192u
#define ND_SMALL_BYTES (64 * KIB) /* records without data, on their way to the journal */
#define ND_RESERVE_BYTES (64 * KIB) /* room that is kept for them when the disk is full */
#define ND_SLACK_MIN (256 * KIB)  /* what of a journal may be obsolete, besides as much as is not */
#define ND_SLACK_MAX (16 * MIB)
#define ND_BATCH_BYTES (4 * MIB)  /* that a thread of the pool works on at a time */
#define ND_BATCH_ITEMS 256u
#define ND_TAIL_BYTES (1 * MIB)   /* of a journal that is copied while nobody may sync */
#define ND_PASSES_MAX 8u

/* Profiles. */
#define PROFILE_RANGES_MAX (64u * 1024) /* lines of one */
#define PROFILE_TEXT_MAX (4 * MIB)
#define PROFILE_GAP (64 * KIB)	  /* ranges used one after the other that are as near are one */
#define PROFILE_PULLS_MAX 128u	  /* ranges asked for at a time */
#define PROFILE_PRIORITY 1	  /* of them: before readahead, behind what people ask for */

/* The file front end. */
#define FILE_IO_MAX (1 * MIB)	  /* one READ or WRITE of the kernel's; larger ones are slower */
#define FILE_READAHEAD (2 * MIB)  /* so that two of them are under way for who reads in order */
#define FILE_REQS_MAX 64u	  /* the kernel's requests in flight; more of them wait there */
#define FILE_BACKGROUND_MAX 48u	  /* of them readahead, writeback and asynchronous I/O */
#define FILE_MEMORY_MIN (4 * MIB) /* for them, with the smallest budget */
/* A nameless file's user may be its server, too, and may be killed: when the kernel has waited so
 * long for an answer it ends the connection. We answer before. */
#define FILE_TIMEOUT_S 300u
#define FILE_EXTENTS 1024u	  /* asked for at a time by SEEK_DATA and SEEK_HOLE */

/* Specs. */
#define SPEC_LEN_MAX 4096u
#define SPEC_STAGES_MAX 16u
#define SPEC_OPTIONS_MAX 16u
#define NAME_LEN_MAX 255u /* a resource's name, a stage's name */

static_assert((PAGE_BYTES & (PAGE_BYTES - 1)) == 0, "pages are a power of two");
static_assert(CHUNK_MIN >= PAGE_BYTES, "a chunk holds a page");
static_assert(CHUNK_DEFAULT >= CHUNK_MIN && CHUNK_DEFAULT <= CHUNK_MAX, "the default is allowed");
static_assert(STORE_ZERO_PIECE >= STORE_ALIGN_MAX, "a piece of zeros is aligned for every store");
static_assert(BACK_BOUNCE_LEN >= STORE_ALIGN_MAX, "a bounce buffer holds an aligned block");
static_assert(ALIGN_BLOCK_MAX >= STORE_ALIGN_MAX, "the align stage can serve every store");
static_assert(VERIFY_LEN_MAX >= STORE_ALIGN_MAX, "a comparison holds an aligned block");
static_assert(DIRECTORY_BUFFERS_MAX / CHUNK_MAX >= DIRECTORY_OPS_MIN, "buffers for large chunks");
static_assert(DIRECTORY_OPS_MIN * 3 / 4 > 0, "changes get ops of their own");
static_assert(POWERCUT_KEEP_DEFAULT >= STORE_ALIGN_MAX, "an aligned block can be kept");
static_assert(TLS_IN_LEN >= TLS_RECORD_ROOM && TLS_OUT_LEN >= 2 * TLS_RECORD_ROOM,
	      "a record fits, and another one while it is sent");
static_assert(TLS_WHY_MAX >= TLS_PEER_MAX + 128, "who, and what");
static_assert(ENCRYPT_LEN_MAX >= STORE_ALIGN_MAX, "a request of the encrypt stage holds a chunk");
static_assert(WIRE_LEN_MAX >= CHUNK_MAX && WIRE_LEN_MAX <= REQ_LEN_MAX, "a chunk travels in one");
static_assert(WIRE_RUNS_MAX / 2 + 2 <= STREAM_IOV_MAX, "a frame of the protocol fits into one send");
static_assert(WIRE_RUNS_MAX * 4 + 40 + WIRE_REFUSAL_TEXT_MAX + NAME_LEN_MAX < STREAM_BUF_LEN,
	      "what must be whole fits");
static_assert(SERVER_BYTES_MAX >= 2 * WIRE_LEN_MAX, "two of the longest requests at a time");
static_assert(WIRE_LIST_MAX >= 24 + SERVER_EXPORTS_MAX * (16 + NAME_LEN_MAX),
	      "a list holds all names");
static_assert(REMORA_REQS_URGENT < REMORA_REQS_MAX, "others get some too");
static_assert(REGION_UNIT <= REQ_LEN_MAX && REGION_SMALL < REGION_UNIT, "transfers fit in a request");
static_assert(REGION_SMALL % PAGE_BYTES == 0, "small buffers hold whole pages");
static_assert(FILE_IO_MAX % PAGE_BYTES == 0 && FILE_IO_MAX <= REQ_LEN_MAX, "whole pages, one request");
static_assert(FILE_BACKGROUND_MAX < FILE_REQS_MAX, "who waits himself gets some too");
static_assert(FILE_EXTENTS <= REQ_EXTENTS_MAX, "one answer");
static_assert(REQ_LEN_MAX >= CHUNK_MAX, "a chunk travels in one request");
static_assert(ND_SMALL_BYTES >= ND_RECORD + 8 * ND_CLEAN_MAX, "each record without data fits");
static_assert(ND_META_MAX > SPEC_LEN_MAX + 256, "a spec fits");

#endif
