/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of the server: what server.c (listening, exports, closing) and server_conn.c,
 * server_req.c share. */
#ifndef REMORA_FRONT_SERVER_INT_H
#define REMORA_FRONT_SERVER_INT_H

#include "base/bitmap.h"
#include "front/server.h"
#include "io/stream.h"
#include "wire/remora.h"

#define SMEM_BLOCK 4096u

/* Buffers of one connection: blocks of 4 KiB of one mapping, whose pages exist only as far as they
 * have been used. */
struct smem {
	uint8_t *base;
	size_t blocks, used;
	bool touched; /* since the last trim */
	bool shared;  /* of a memfd */
	uint64_t *bits;
};

MUST_USE int smem_open(struct smem *mem, uint64_t bytes);
/* Of a memfd that a client may map for reading; *ret_fd is the caller's. */
MUST_USE int smem_open_shared(struct smem *mem, uint64_t bytes, int *ret_fd);
void smem_close(struct smem *mem);
/* NULL when there is no room now. */
void *smem_get(struct smem *mem, uint64_t bytes);
void smem_put(struct smem *mem, void *at, uint64_t bytes);
void smem_trim(struct smem *mem); /* gives the pages back when nothing is in use */

struct sexport {
	char name[NAME_LEN_MAX + 1];
	struct store *store;
	bool read_only;
	uint64_t pending; /* our requests in it */
};

struct sallow {
	char who[TLS_IDENTITY_MAX + 1];
	const struct sexport *export; /* NULL = all */
	bool read_only;
};

enum sconn_state {
	SCONN_HELLO,	/* timer: deadline */
	SCONN_WAITING,	/* for the former connection of its session and index; timer: deadline */
	SCONN_UP,	/* timer: keep-alive */
	/* reads no more; waits until all is answered and the replies have left; timer: deadline */
	SCONN_DRAINING,
	SCONN_STOPPING, /* the stream ends */
	SCONN_ENDED,	/* it has; requests in the store may still be out */
};

struct sconn;

/* One request of a client. */
struct sreq {
	struct req req;
	struct sconn *conn;
	struct link link; /* conn->idle */
	struct wire_request wire;
	uint8_t *mem;	  /* READ and WRITE: data; EXTENTS: the array, encoded in place */
	uint64_t mem_len;
	bool shared;	  /* mem is of conn->shm */
	struct extents extents;
	bool first;	  /* the read that came with the hello */
	struct stream_frame frame;
	struct iovec iov[WIRE_RUNS_MAX / 2 + 2];
	uint8_t head[WIRE_HEAD_MAX];
	char why[WIRE_TEXT_MAX];
};

struct sconn {
	struct server *sv;
	struct link link; /* sv->conns, oldest first */
	enum sconn_state state;
	struct stream stream;
	struct timer timer;
	/* who it is */
	uint8_t session[WIRE_SESSION_LEN];
	uint16_t index;
	uint32_t attempt;
	bool read_only;
	uint32_t payload_max; /* what it takes */
	uint32_t len_max;     /* and what we take, as the welcome said */
	struct range first;
	struct sexport *export;
	uint8_t *list; /* NULL: it is told the server's */
	bool has_uid;
	uid_t uid;
	bool greeted; /* counts as a client's */
	bool held;    /* reading rests until a buffer, a request or room for replies is free */
	/* from the welcome on */
	struct sreq *reqs;
	struct list idle;
	unsigned busy;	  /* requests read and not yet put back */
	unsigned in_store;
	struct smem mem;
	/* Replies placed in shared memory, until the client says that it has used them. */
	struct smem shm; /* no base: the client does not share */
	struct range place[SERVER_PLACES_MAX];
	unsigned places;
	bool wants_shared;
	struct sreq *body; /* a WRITE whose payload is being received */
	bool skipping;	   /* the payload of a refused one */
	/* since when there is something unsent, as far as we know; 0 = nothing is */
	uint64_t stall_ns;
	/* own frames: the answer to the hello, then ALIVE */
	uint8_t answer[WIRE_REFUSAL_LEN + WIRE_REFUSAL_TEXT_MAX];
	struct iovec answer_iov;
	struct stream_frame answer_frame;
	uint8_t alive[WIRE_REPLY_LEN];
	struct iovec alive_iov;
	struct stream_frame alive_frame;
	bool alive_sending;
};

struct slisten {
	struct server *sv;
	struct link link;
	struct op op;
	struct timer timer; /* after a failed accept */
	int fd;
	struct sock_addr addr;
	bool ended;
};

struct server {
	struct loop *loop;
	struct server_limits limits;
	struct sexport *exports;
	size_t export_count;
	bool list_hidden, anywhere;
	struct tls *tls; /* NULL: in clear */
	struct sallow *allow;
	size_t allow_count;
	/* strangers who were turned away are told of, but not all of them */
	uint64_t told_since_ns;
	unsigned told;
	uid_t *uids;
	size_t uid_count;
	uint64_t instance;
	uint8_t *list; /* the answer to those who ask for it */
	size_t list_len;
	struct list conns, listens;
	unsigned conn_count, greeted;
	struct server_counts counts;
	bool closing;
	struct timer grace;
	struct post closed_post;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* ---- server_place.c ---- */

/* Makes the memory to share; the descriptor is the caller's, -1 = there is none. */
int splaces_open(struct sconn *c);
void splaces_close(struct sconn *c);
/* A buffer for a READ's data, or NULL: it goes through the socket then. */
void *splaces_get(struct sconn *c, uint64_t bytes);
/* The data at `mem` becomes a place; false = there are too many. */
bool splaces_add(struct sconn *c, const void *mem, uint64_t bytes, uint64_t *ret_off);
/* The client has used it; -EPROTO when it is none. */
MUST_USE int splaces_release(struct sconn *c, struct range place);

/* ---- server.c ---- */

uint64_t server_export_instance(const struct server *sv, const struct sexport *x,
				uint64_t of_store);
/* A connection has ended, wholly: those who wait for it may go on. */
void server_conn_ended(struct server *sv);

/* ---- server_allow.c ---- */

MUST_USE int sallows_take(struct server *sv, const struct server_options *o, struct err *e);
/* What a client may have of that name ("": the only one), and whether it may write; NULL =
 * nothing. */
struct sexport *sconn_export_find(struct sconn *c, const uint8_t *name, size_t len);
/* Tells it what it may have instead. */
void sconn_refuse_name(struct sconn *c, const uint8_t *name, size_t len);
bool sconn_may(const struct sconn *c, const struct sexport *x, bool *ret_read_only);
/* The list of what it may have; NULL = no memory. It is the connection's. */
const uint8_t *sconn_list(struct sconn *c, size_t *ret_len);
/* "host-a at 10.0.0.2:4711", for people. */
#define SCONN_WHO_MAX (TLS_PEER_MAX + SOCK_TEXT_MAX + 16)
const char *sconn_who(const struct sconn *c, char *buf);
/* A stranger was turned away: told in the log, unless there are too many of them. */
void server_tell_refused(struct server *sv, const struct sconn *c, const char *why);

/* ---- server_conn.c ---- */

/* tls: NULL = in clear. */
MUST_USE int sconn_open(struct server *sv, int fd, struct tls *tls, struct sconn **ret);
void sconn_refuse(struct sconn *c, uint32_t code, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* Asked again when another connection has ended. */
void sconn_welcome_if_free(struct sconn *c);
void sconn_drain(struct sconn *c, uint64_t until_ns);
void sconn_stop(struct sconn *c);
void sconn_abandon(struct sconn *c); /* frees it, and touches no loop */
/* A request has been put back, or a reply has left. */
void sconn_progress(struct sconn *c);
/* It broke the protocol. */
void sconn_offend(struct sconn *c, const char *what);

/* ---- server_req.c ---- */

MUST_USE int sreqs_open(struct sconn *c);
void sreqs_close(struct sconn *c);
/* Reads requests from the stream's buffer until it is empty or something is missing. */
void sreqs_read(struct sconn *c);
/* The speculative read of the hello. */
void sreqs_first(struct sconn *c);
/* A payload that was being received will not come. */
void sreqs_body_drop(struct sconn *c);

#endif
