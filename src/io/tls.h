/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS 1.3 between two ends that both prove who they are: with certificates of a CA that the other
 * one trusts, or with a secret that both have (an external PSK, RFC 8446 2.2).
 *
 * Two objects. struct tls is made of files, once, by set-up code; it is counted, so that
 * connections outlive its replacement. struct tls_link is one connection's: bytes go in, bytes come
 * out, and it does no I/O at all; io/stream.c moves them. What a link allocates is bounded
 * (limits.h) and allocated when it is opened, OpenSSL's own part aside.
 */
#ifndef REMORA_IO_TLS_H
#define REMORA_IO_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/limits.h"

struct tls;

/* A server needs cert, key and ca, or psk, or both of it. A client needs ca (and cert and key,
 * where the server asks for them, as ours does), or psk and identity. */
struct tls_options {
	bool server;
	const char *cert; /* PEM: own certificate, then those between it and the CA */
	const char *key;  /* PEM, without a pass phrase, to be read by its owner alone */
	const char *ca;	  /* PEM: whose certificates are good */
	const char *psk;  /* lines IDENTITY:HEX, to be read by its owner alone */
	/* client: which secret of the file */
	const char *identity;
	/* client: the name or the address that the server's certificate must be for */
	const char *name;
};

/* Reads the files. */
MUST_USE int tls_open(struct tls **ret, const struct tls_options *options, struct err *e);
/* The same files again, as they are now. `tls` stays as it is. */
MUST_USE int tls_reopen(struct tls **ret, const struct tls *tls, struct err *e);
struct tls *tls_ref(struct tls *tls);
void tls_unref(struct tls *tls); /* NULL is fine */

/* ---- secrets: for tls_open(), keygen and the fuzzer ---- */

struct tls_secret {
	char identity[TLS_IDENTITY_MAX + 1];
	uint8_t secret[TLS_SECRET_MAX];
	size_t len;
};

/* *ret is the caller's to clear and free (tls_secrets_free). */
MUST_USE int tls_secrets_parse(const char *text, size_t len, struct tls_secret **ret,
			       size_t *ret_count, struct err *e);
void tls_secrets_free(struct tls_secret *secrets, size_t count);

/* ---- one connection ---- */

struct tls_link;

MUST_USE int tls_link_open(struct tls_link **ret, struct tls *tls);
void tls_link_close(struct tls_link *l); /* NULL is fine */

enum tls_result {
	TLS_DONE,
	TLS_WANT_BYTES, /* more from the peer */
	TLS_WANT_ROOM,	/* what is in tls_out() must leave first */
	TLS_CLOSED,	/* the peer has said that it is the end */
	TLS_FAILED,	/* for good; tls_link_err() and _why(). There may be an alert to send */
};

/* From the peer. There is always room when TLS_WANT_BYTES was said. */
void *tls_in(struct tls_link *l, size_t *ret_len);
void tls_in_add(struct tls_link *l, size_t len);
void tls_in_end(struct tls_link *l); /* the peer has closed the socket */

/* To the peer. What tls_out() names stays where it is until it is said to have left. */
const void *tls_out(const struct tls_link *l, size_t *ret_len);
void tls_out_sent(struct tls_link *l, size_t len);

/* Until DONE; before anything else. */
MUST_USE enum tls_result tls_shake(struct tls_link *l);
MUST_USE enum tls_result tls_read(struct tls_link *l, void *buf, size_t len, size_t *ret_len);
/* Takes from the pieces as much as there is room for, and changes them. DONE: all of it. */
MUST_USE enum tls_result tls_write(struct tls_link *l, struct iovec *iov, int count, int *at);
void tls_shut(struct tls_link *l); /* says that it is the end */

int tls_link_err(const struct tls_link *l);	     /* -errno of TLS_FAILED */
const char *tls_link_why(const struct tls_link *l); /* what was wrong, for a person; or "" */

/* Who the peer is, when the handshake is done: for people, and whether it is `who` (a name or an
 * address in its certificate, or the identity of its secret). */
const char *tls_link_peer(const struct tls_link *l);
bool tls_link_peer_is(const struct tls_link *l, const char *who);

#endif
