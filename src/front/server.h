/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server of the Remora protocol (docs/protocol.md): a front end that serves stores to clients.
 *
 * Stores are borrowed and must outlive the server; several clients of one export share its store.
 * Requests of different clients, and concurrent requests of one, are carried out in any order:
 * whoever needs an order waits for the reply. A READ that arrives after the reply to a WRITE has
 * been sent sees it.
 */
#ifndef REMORA_FRONT_SERVER_H
#define REMORA_FRONT_SERVER_H

#include "io/sock.h"
#include "io/tls.h"
#include "store/store.h"

struct server;

/*
 * What a client may have. Without any, every client may have everything. `who` is a name or an
 * address in its certificate, the identity of its secret, "uid:N" for a user who comes through a
 * unix socket, or "*": everybody who may come at all. What several say adds up.
 */
struct server_allow {
	const char *who;	/* copied */
	const char *export;	/* NULL = all; copied */
	bool read_only;
};

struct server_export {
	const char *name; /* "" is allowed for one; copied */
	struct store *store;
	bool read_only; /* also when the store is not */
};

/* 0 = the default (base/limits.h, or as written here). */
struct server_limits {
	unsigned conns_max;	 /* of all clients */
	unsigned conns_session_max;
	uint32_t requests_max;	 /* in flight on one connection */
	uint64_t bytes_max;	 /* of buffers of one connection */
	uint32_t len_max;	 /* of one READ or WRITE */
	/* replies that wait for a slow reader before no further request is read */
	uint64_t unsent_max;
	uint64_t handshake_ns;	 /* 10 s: to say hello */
	uint64_t keep_alive_ns;	 /* 5 s */
	uint64_t silence_ns;	 /* 3 keep-alives: after which a silent client is dropped */
	/* 60 s: after which one is dropped that does not take its replies */
	uint64_t stall_ns;
};

struct server_options {
	const struct server_export *exports;
	size_t export_count;
	struct server_limits limits;
	bool list_hidden;	 /* names are not told */
	/* listen on addresses that are not local, too: in clear, without asking who comes */
	bool anywhere;
	/* who comes over TCP proves by it who he is; NULL = in clear. Counted, not taken */
	struct tls *tls;
	const struct server_allow *allow;
	size_t allow_count;
	/* unix sockets: these users alone; copied. None = whom the socket's mode lets in */
	const uid_t *uids;
	size_t uid_count;
	uint64_t instance;	 /* 0 = a new one. Tests only: the same one twice is a lie */
};

struct server_counts {
	unsigned conns, greeted; /* now */
	unsigned clients;	 /* now: connections 0 that were greeted */
	uint64_t sessions;	 /* welcomes of connections 0 */
	/* dropped: broke the protocol, or was silent, stuck, or too slow to greet */
	uint64_t accepted, refused, dropped;
	/* replaced: connections that ended because their client came anew */
	uint64_t requests, failed, replaced;
	uint64_t bytes_read, bytes_written; /* data of READ and WRITE, as asked for */
	/* of it, bytes that were not sent or received because they were zeros */
	uint64_t zeros;
	uint64_t placed; /* and those that lay in shared memory */
};

MUST_USE int server_open(struct server **ret, struct loop *loop,
			 const struct server_options *options, struct err *e);

/* May be called several times. *ret_addr (may be NULL) is the address that was really taken: port 0
 * asks for any. */
MUST_USE int server_listen(struct server *server, const struct sock_addr *addr,
			   struct sock_addr *ret_addr, struct err *e);

/* For connections from now on, in place of the one there was. */
void server_tls_set(struct server *server, struct tls *tls);

/* Serves a connected socket in clear, which it owns from here on. */
MUST_USE int server_attach(struct server *server, int fd);

/*
 * Accepts and reads nothing from now on; lets the requests in flight end and their replies leave
 * for grace_ns, then drops the connections and aborts the stores that still have requests of ours.
 * When all is given back the server is freed and closed(arg) is called, from the loop. NULL server:
 * closed(arg) is not called.
 */
void server_close(struct server *server, uint64_t grace_ns, void (*closed)(void *arg), void *arg);
/* Set-up code and tests: runs the loop. */
void server_close_wait(struct server *server, uint64_t grace_ns);

/* Simulations only: the loop is no more (sim_crash), and with it the process; gives the memory
 * back. The stores may be gone already. */
void server_abandon(struct server *server);

void server_count(const struct server *server, struct server_counts *ret);
uint64_t server_instance(const struct server *server);

/* Pairs of "name=value" for status. */
void server_status(const struct server *server, char *buf, size_t len);

#endif
