/* SPDX-License-Identifier: Apache-2.0 */
/* What tls.c (one connection), tls_files.c (files to a context) and tls_text.c (words) share. */
#ifndef REMORA_IO_TLS_INT_H
#define REMORA_IO_TLS_INT_H

#include <openssl/ssl.h>
#include <stdatomic.h>

#include "io/tls.h"

struct tls {
	atomic_uint refs;
	bool server;
	/* own copies of the options; NULL = not given */
	char *cert, *key, *ca, *psk, *identity, *name;
	SSL_CTX *ctx;
	BIO_METHOD *bio;
	struct tls_secret *secrets;
	size_t secret_count;
};

struct tls_link {
	struct tls *tls;
	SSL *ssl;
	bool up, ended;	       /* the handshake is done; no bytes will follow */
	size_t in_head, in_tail, out_head, out_tail;
	const struct tls_secret *secret; /* that the client named */
	int err;
	char why[TLS_WHY_MAX];	  /* of err */
	char doubt[TLS_WHY_MAX]; /* what the verification did not like */
	char peer[TLS_PEER_MAX];
	uint8_t in[TLS_IN_LEN], out[TLS_OUT_LEN], plain[TLS_RECORD_LEN];
};

/* The callbacks of verification and secrets, set by tls_files.c. */
int tls_verify(int good, X509_STORE_CTX *ctx);
int tls_secret_find(SSL *ssl, const unsigned char *identity, size_t len, SSL_SESSION **ret);
int tls_secret_use(SSL *ssl, const EVP_MD *md, const unsigned char **ret_id, size_t *ret_id_len,
		   SSL_SESSION **ret);
BIO_METHOD *tls_bio_method(void);

/* Fills err and why from OpenSSL's errors. */
void tls_explain(struct tls_link *l, int ssl_error);
/* What a certificate does not fulfil. */
void tls_doubt(struct tls_link *l, X509 *cert, int error);
/* "name, name, address" of a certificate, cut to fit. */
void tls_cert_names(X509 *cert, char *buf, size_t size);
bool tls_cert_is(X509 *cert, const char *who);

#endif
