/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the client of the Remora protocol: what remora.c (the store), remora_conn.c (one
 * connection) and remora_req.c (requests and replies) share.
 */
#ifndef REMORA_BACK_REMORA_INT_H
#define REMORA_BACK_REMORA_INT_H

#include "back/remora.h"
#include "io/stream.h"
#include "wire/remora.h"

struct remora;
struct rconn;

/* A request on its way: it belongs to one connection from its first send to its end, replays
 * included. */
struct rslot {
	struct req *req;
	struct rconn *conn;
	uint64_t id;	      /* place in the table + 1, generation << 32 */
	uint64_t bytes;	      /* counted against the connection's limit */
	struct link link;     /* m->idle, conn->flight or conn->replay */
	bool sending;	      /* the stream has the frame */
	bool replied;	      /* and the reply was quicker than the end of the send */
	int err;
	struct stream_frame frame;
	struct iovec iov[WIRE_RUNS_MAX / 2 + 2];
	uint8_t head[WIRE_HEAD_MAX];
};

enum rconn_state {
	RCONN_DOWN,	  /* timer: the next try, or nothing */
	RCONN_CONNECTING, /* op; timer: deadline */
	RCONN_HELLO,	  /* stream; timer: deadline */
	RCONN_UP,	  /* stream; timer: keep-alive */
	RCONN_STOPPING,	  /* stream, until stopped(); then ssh; timer: to kill that */
};

enum reply_part { REPLY_HEAD, REPLY_RUNS, REPLY_DATA, REPLY_PLACE, REPLY_TEXT, REPLY_EXTENTS };

/* Tells the server which placed replies have been used: one batch is being sent, the other filled.
 */
struct rrelease {
	uint8_t at[2][REMORA_REQS_MAX * WIRE_REQUEST_LEN];
	size_t filled; /* bytes of at[which] */
	unsigned which;
	bool sending;
	struct iovec iov;
	struct stream_frame frame;
};

/* An ssh that runs for a connection. */
struct rssh {
	pid_t pid; /* 0 = none */
	int pid_fd, said_fd;
	struct op op; /* its end */
};

struct rconn {
	struct remora *m;
	struct rssh ssh;
	unsigned index;
	enum rconn_state state;
	struct op op; /* connect */
	int fd;	      /* while connecting */
	struct stream stream;
	bool streaming; /* the stream has not stopped */
	char ssh_said[WIRE_TEXT_MAX];
	struct timer timer;
	uint32_t attempt;
	uint64_t backoff_ns;
	uint64_t up_ns;	       /* since when it is up */
	uint64_t lost_ns;      /* since when it is not any more; 0 = it is, or has never been */
	bool expired;	       /* it has not been for too long */
	/* changes were given up on it that the server may still be about to make */
	bool poisoned;
	uint64_t instance;     /* last one heard here */
	uint32_t requests_max; /* what the server allows */
	uint64_t bytes_max;
	uint32_t keep_alive_ms, silence_ms;
	struct list flight; /* slots, in the order of their sends */
	/* slots that were in flight when it was lost, and have not been sent again */
	struct list replay;
	unsigned flight_count;
	uint64_t flight_bytes;
	/* the reply that is being received */
	enum reply_part part;
	struct wire_reply reply;
	struct rslot *slot; /* NULL: the first read's */
	unsigned extents_seen;
	uint64_t extents_len;
	char why[WIRE_TEXT_MAX + 1];
	/* own frames */
	uint8_t hello[WIRE_HELLO_MAX];
	struct iovec hello_iov;
	struct stream_frame hello_frame;
	uint8_t alive[WIRE_REQUEST_LEN];
	struct iovec alive_iov;
	struct stream_frame alive_frame;
	bool alive_sending;
	/* memory that the server shares, where replies may be placed; read-only. NULL = none */
	const uint8_t *shm;
	size_t shm_len;
	bool shm_asked;
	struct rrelease release;
};

enum first_state {
	FIRST_NONE,
	FIRST_ASKED, /* with the hello; reads within it wait for the reply */
	FIRST_READY,
};

/* The read that went along with the hello. */
struct rfirst {
	enum first_state state;
	bool stale; /* a change was asked for meanwhile */
	struct range range; /* what is left of it */
	uint8_t *buf;
	uint64_t given; /* bytes at the start of buf that somebody has got, and are not left */
	uint64_t ready_ns;
	struct list waiting; /* requests, by req.link */
};

enum { RQUEUE_URGENT, RQUEUE_NORMAL, RQUEUE_BACKGROUND, RQUEUES };

struct remora {
	struct store store;
	struct sock_addr addr;
	char addr_text[SOCK_TEXT_MAX];
	bool can_connect;
	struct tls *tls; /* NULL = in clear */
	struct {
		char *host; /* NULL = not through ssh */
		char *port, *path, *command;
	} ssh;
	char name[NAME_LEN_MAX + 1];
	bool read_only;
	uint64_t for_ns, connect_ns;
	uint8_t session[WIRE_SESSION_LEN];
	unsigned conns_wanted, conn_count, up;
	struct rconn conn[WIRE_CONNS_MAX];
	struct rslot *slots;
	size_t slot_count;
	struct list idle;
	struct list queue[RQUEUES]; /* requests that are on no connection, by req.link */
	struct rfirst first;
	struct timer expiry;
	/* the one before store.info.instance: late replies may still carry it */
	uint64_t instance_before;
	bool lost;	 /* STORE_LOST was told */
	bool away;	 /* requests fail at once */
	bool ending;	 /* aborted, or closing: nothing connects any more */
	bool closing;	 /* remora_close() was called: released when all connections are down */
	int failed;	 /* for good */
	char why[128];	 /* of failed and away */
	/* opening */
	bool opening, settled;
	uint64_t open_deadline_ns;
	struct err open_err;
	struct remora_counts counts;
};

/* ---- remora.c ---- */

void remora_fail(struct remora *m, int err, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* The first welcome; later ones are compared with it: 0 or -ESTALE with m->why. */
int remora_welcome(struct remora *m, struct rconn *c, const struct wire_welcome *w);
void remora_instance(struct remora *m, struct rconn *c, uint64_t instance);
void remora_settle(struct remora *m); /* opening is decided: open_err tells how */
void remora_conn_is_down(struct remora *m);
void remora_expiry_set(struct remora *m);
void remora_away_update(struct remora *m);

/* ---- remora_conn.c ---- */

void rconn_init(struct rconn *c, struct remora *m, unsigned index);
void rconn_connect(struct rconn *c);
void rconn_attach(struct rconn *c, int fd);
/* Its ssh has ended. */
void rconn_ssh_ended(struct rconn *c);
/* Ends what is there; another try follows, unless m->ending. May be called from anywhere. */
void rconn_drop(struct rconn *c, int err, const char *why);
/* A try that is due later comes soon: somebody asks for more than patience. */
void rconn_hasten(struct rconn *c);
static inline bool rconn_is_up(const struct rconn *c)
{
	return c->state == RCONN_UP;
}

/* ---- remora_place.c ---- */

/* Takes what came with a welcome that says so. What is not there (a proxy in between passes bytes
 * alone) or cannot be mapped is done without. */
void rplace_open(struct rconn *c);
void rplace_close(struct rconn *c); /* the stream has stopped */
/* The data of a placed reply, or NULL when there is none at that place. */
const uint8_t *rplace_find(const struct rconn *c, uint64_t off, uint64_t len);
void rplace_release(struct rconn *c, uint64_t off, uint64_t len);

/* ---- remora_ssh.c ---- */

int rssh_place(char *text, struct remora_options *o, struct err *e);
int rssh_init(struct remora *m, const struct remora_options *o);
void rssh_done(struct remora *m);
/* Starts one; *ret_fd is the link to it. */
MUST_USE int rssh_start(struct rconn *c, int *ret_fd);
/* The end of what it has said since the last time, in one line; "" = nothing. */
void rssh_said(struct rconn *c, char *buf, size_t size);
/* The link is closed: false = it has ended, too, else rconn_ssh_ended() will be called. */
bool rssh_ends(struct rconn *c);
void rssh_kill(struct rconn *c);
void rssh_clear(struct rconn *c);

/* ---- remora_req.c ---- */

void remora_submit(struct store *store, struct req *req);
void remora_dispatch(struct remora *m);
void rconn_replay(struct rconn *c);
/* What is in the stream's buffer: 0, or -EPROTO. */
int rconn_replies(struct rconn *c);
/* The stream is gone: requests in flight are to be replayed, or fail. */
void rconn_requests_lost(struct rconn *c);
/* Fails those that wait to be replayed. */
void rconn_requests_fail(struct rconn *c, int err);
void remora_queues_fail(struct remora *m, int err);
void remora_first_drop(struct remora *m);

#endif
