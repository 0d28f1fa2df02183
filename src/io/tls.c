/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One TLS connection: bytes of the peer go in, bytes for the peer come out, plain text on the other
 * side. No I/O, no clock; the randomness is OpenSSL's.
 *
 * Place: between io/stream.c and OpenSSL, which sees a BIO on two bounded buffers. tls_files.c
 * makes the context, tls_text.c says what went wrong.
 *
 *   socket ──▶ in ──▶ OpenSSL ──▶ where the data shall be        one record at a time, decrypted
 *   pieces ──▶ plain (short ones are gathered) ──▶ OpenSSL ──▶ out ──▶ socket
 *
 * Invariants: nothing is encrypted unless its whole record has room, so a record is never half in
 * `out`. What tls_out() has named does not move: `out` is filled behind it and begins anew when all
 * has left. A peer is somebody only when `up`: then it has shown a certificate that was verified,
 * or the secret.
 *
 * Locking: one link is one thread's; struct tls is shared for reading.
 */
#include "io/tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tls_int.h"

static struct tls_link *link_of(const SSL *ssl)
{
	return SSL_get_app_data(ssl);
}

/* ---- the two buffers, as OpenSSL sees them ---- */

static int bio_read(BIO *bio, char *to, int len)
{
	struct tls_link *l = BIO_get_data(bio);
	size_t n = MIN((size_t)MAX(len, 0), l->in_tail - l->in_head);

	BIO_clear_retry_flags(bio);
	if (!n && l->ended)
		return 0;
	if (!n) {
		BIO_set_retry_read(bio);
		return -1;
	}
	memcpy(to, l->in + l->in_head, n);
	l->in_head += n;
	if (l->in_head == l->in_tail)
		l->in_head = l->in_tail = 0;
	return (int)n;
}

static int bio_write(BIO *bio, const char *from, int len)
{
	struct tls_link *l = BIO_get_data(bio);
	size_t n = MIN((size_t)MAX(len, 0), TLS_OUT_LEN - l->out_tail);

	BIO_clear_retry_flags(bio);
	if (!n) {
		BIO_set_retry_write(bio);
		return -1;
	}
	memcpy(l->out + l->out_tail, from, n);
	l->out_tail += n;
	return (int)n;
}

static long bio_ctrl(BIO *bio, int what, long number, void *arg)
{
	const struct tls_link *l = BIO_get_data(bio);

	(void)number;
	(void)arg;
	switch (what) {
	case BIO_CTRL_FLUSH:
		return 1;
	case BIO_CTRL_EOF:
		return l->ended && l->in_head == l->in_tail;
	default:
		return 0;
	}
}

BIO_METHOD *tls_bio_method(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "remora");

	if (m && BIO_meth_set_read(m, bio_read) && BIO_meth_set_write(m, bio_write) &&
	    BIO_meth_set_ctrl(m, bio_ctrl))
		return m;
	BIO_meth_free(m);
	return NULL;
}

/* ---- opening and closing ---- */

int tls_link_open(struct tls_link **ret, struct tls *tls)
{
	struct tls_link *l = malloc(sizeof(*l)); /* the buffers as they are: they may be large */
	BIO *bio = BIO_new(tls->bio);
	SSL *ssl = SSL_new(tls->ctx);

	*ret = NULL;
	if (!l || !bio || !ssl) {
		free(l);
		BIO_free(bio);
		SSL_free(ssl);
		return -ENOMEM;
	}
	memset(l, 0, offsetof(struct tls_link, in));
	l->tls = tls_ref(tls);
	l->ssl = ssl;
	SSL_set_app_data(ssl, l);
	BIO_set_data(bio, l);
	BIO_set_init(bio, 1);
	SSL_set_bio(ssl, bio, bio); /* owns it */
	if (tls->server)
		SSL_set_accept_state(ssl);
	else
		SSL_set_connect_state(ssl);
	*ret = l;
	return 0;
}

void tls_link_close(struct tls_link *l)
{
	if (!l)
		return;
	SSL_free(l->ssl);
	tls_unref(l->tls);
	OPENSSL_cleanse(l->plain, sizeof(l->plain));
	free(l);
}

/* ---- bytes ---- */

void *tls_in(struct tls_link *l, size_t *ret_len)
{
	if (l->in_tail == TLS_IN_LEN && l->in_head) {
		memmove(l->in, l->in + l->in_head, l->in_tail - l->in_head);
		l->in_tail -= l->in_head;
		l->in_head = 0;
	}
	*ret_len = TLS_IN_LEN - l->in_tail;
	return l->in + l->in_tail;
}

void tls_in_add(struct tls_link *l, size_t len)
{
	CHECK(len <= TLS_IN_LEN - l->in_tail && !l->ended);
	l->in_tail += len;
}

void tls_in_end(struct tls_link *l)
{
	l->ended = true;
}

const void *tls_out(const struct tls_link *l, size_t *ret_len)
{
	*ret_len = l->out_tail - l->out_head;
	return l->out + l->out_head;
}

void tls_out_sent(struct tls_link *l, size_t len)
{
	CHECK(len <= l->out_tail - l->out_head);
	l->out_head += len;
	if (l->out_head == l->out_tail)
		l->out_head = l->out_tail = 0;
}

/* ---- secrets ---- */

/* A session that stands for a secret, as OpenSSL wants it: SHA-256, with a fresh key exchange. */
static SSL_SESSION *session_of(SSL *ssl, const struct tls_secret *s)
{
	static const unsigned char aes_128_gcm_sha256[] = { 0x13, 0x01 };
	const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, aes_128_gcm_sha256);
	SSL_SESSION *session = SSL_SESSION_new();

	if (session && cipher && SSL_SESSION_set1_master_key(session, s->secret, s->len) &&
	    SSL_SESSION_set_cipher(session, cipher) &&
	    SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
		return session;
	SSL_SESSION_free(session);
	return NULL;
}

static const struct tls_secret *secret_of(const struct tls *tls, const void *identity, size_t len)
{
	for (size_t i = 0; i < tls->secret_count; i++)
		if (strlen(tls->secrets[i].identity) == len &&
		    !memcmp(tls->secrets[i].identity, identity, len))
			return &tls->secrets[i];
	return NULL;
}

/* The server's: an identity that is not known leaves the certificates, if there are any. */
int tls_secret_find(SSL *ssl, const unsigned char *identity, size_t len, SSL_SESSION **ret)
{
	struct tls_link *l = link_of(ssl);
	const struct tls_secret *s = secret_of(l->tls, identity, len);

	*ret = NULL;
	if (!s)
		return 1;
	l->secret = s;
	*ret = session_of(ssl, s);
	return *ret != NULL;
}

/* The client's. `md` is set after a HelloRetryRequest: whose hash must be that of the secret. */
int tls_secret_use(SSL *ssl, const EVP_MD *md, const unsigned char **ret_id, size_t *ret_id_len,
		   SSL_SESSION **ret)
{
	struct tls_link *l = link_of(ssl);
	const char *identity = l->tls->identity;

	*ret = NULL;
	*ret_id = NULL;
	*ret_id_len = 0;
	if (!identity || (md && !EVP_MD_is_a(md, "SHA256")))
		return 1;
	l->secret = secret_of(l->tls, identity, strlen(identity));
	CHECK(l->secret); /* tls_open() has looked */
	*ret = session_of(ssl, l->secret);
	*ret_id = (const unsigned char *)l->secret->identity;
	*ret_id_len = strlen(l->secret->identity);
	return *ret != NULL;
}

int tls_verify(int good, X509_STORE_CTX *ctx)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls_link *l = link_of(ssl);

	if (!good && !l->doubt[0])
		tls_doubt(l, X509_STORE_CTX_get_current_cert(ctx), X509_STORE_CTX_get_error(ctx));
	return good;
}

/* ---- moving ---- */

static enum tls_result link_failed(struct tls_link *l, int ssl_error)
{
	if (!l->err)
		tls_explain(l, ssl_error);
	return TLS_FAILED;
}

static enum tls_result result_of(struct tls_link *l, int n)
{
	int error = SSL_get_error(l->ssl, n);

	switch (error) {
	case SSL_ERROR_WANT_READ:
		return TLS_WANT_BYTES;
	case SSL_ERROR_WANT_WRITE:
		return TLS_WANT_ROOM;
	case SSL_ERROR_ZERO_RETURN:
		return TLS_CLOSED;
	default:
		return link_failed(l, error);
	}
}

/* OpenSSL has verified what there is; that there is something is looked at here once more. */
static bool peer_take(struct tls_link *l)
{
	X509 *cert = SSL_get0_peer_certificate(l->ssl);

	if (SSL_session_reused(l->ssl) && l->secret) {
		snprintf(l->peer, sizeof(l->peer), "%s", l->secret->identity);
		return true;
	}
	l->secret = NULL;
	if (!cert || SSL_get_verify_result(l->ssl) != X509_V_OK)
		return false;
	tls_cert_names(cert, l->peer, sizeof(l->peer));
	return true;
}

enum tls_result tls_shake(struct tls_link *l)
{
	int n;

	if (l->err)
		return TLS_FAILED;
	if (l->up)
		return TLS_DONE;
	ERR_clear_error();
	n = SSL_do_handshake(l->ssl);
	if (n != 1)
		return result_of(l, n);
	if (!peer_take(l)) {
		snprintf(l->why, sizeof(l->why), "the peer did not say who it is");
		l->err = -EACCES;
		return TLS_FAILED;
	}
	l->up = true;
	return TLS_DONE;
}

enum tls_result tls_read(struct tls_link *l, void *buf, size_t len, size_t *ret_len)
{
	CHECK(l->up && len);
	*ret_len = 0;
	if (l->err)
		return TLS_FAILED;
	ERR_clear_error();
	return SSL_read_ex(l->ssl, buf, len, ret_len) ? TLS_DONE : result_of(l, 0);
}

/* The next record's bytes: where they are when there are enough in one place, else gathered. */
static size_t record_take(struct tls_link *l, struct iovec *iov, int count, int *at,
			  const void **ret)
{
	size_t len = 0;

	*ret = l->plain;
	while (*at < count && len < TLS_RECORD_LEN) {
		struct iovec *v = &iov[*at];
		size_t n = MIN(v->iov_len, TLS_RECORD_LEN - len);

		if (n == TLS_RECORD_LEN)
			*ret = v->iov_base;
		else if (n)
			memcpy(l->plain + len, v->iov_base, n);
		len += n;
		v->iov_base = (uint8_t *)v->iov_base + n;
		v->iov_len -= n;
		if (!v->iov_len)
			(*at)++;
	}
	return len;
}

enum tls_result tls_write(struct tls_link *l, struct iovec *iov, int count, int *at)
{
	CHECK(l->up);
	if (l->err)
		return TLS_FAILED;
	while (*at < count) {
		const void *from;
		size_t len, done;

		if (TLS_OUT_LEN - l->out_tail < TLS_RECORD_ROOM)
			return TLS_WANT_ROOM;
		len = record_take(l, iov, count, at, &from);
		ERR_clear_error();
		if (len && (!SSL_write_ex(l->ssl, from, len, &done) || done != len))
			return link_failed(l, SSL_get_error(l->ssl, 0));
	}
	return TLS_DONE;
}

void tls_shut(struct tls_link *l)
{
	ERR_clear_error();
	if (l->up && !l->err)
		(void)SSL_shutdown(l->ssl);
}

/* ---- telling ---- */

int tls_link_err(const struct tls_link *l)
{
	return l->err;
}

const char *tls_link_why(const struct tls_link *l)
{
	return l->why;
}

const char *tls_link_peer(const struct tls_link *l)
{
	return l->peer;
}

bool tls_link_peer_is(const struct tls_link *l, const char *who)
{
	X509 *cert = SSL_get0_peer_certificate(l->ssl);

	if (!l->up)
		return false;
	if (l->secret)
		return !strcmp(l->secret->identity, who);
	return cert && tls_cert_is(cert, who);
}
