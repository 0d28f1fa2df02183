/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From files to a TLS context: certificates, keys, whom to trust, secrets.
 *
 * Place: set-up code, and a server's SIGHUP. Blocks while it reads.
 *
 * Invariants: a file with a key or secrets that others may read is refused before it is read; what
 * was read of such a file is wiped. TLS 1.3 alone; no tickets, no early data, no sessions that
 * could be resumed: every connection proves anew who it is.
 *
 * Locking: none; struct tls is not changed when it is made, but for its count.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "io/tls_int.h"

/* ---- files ---- */

struct blob {
	char *at;
	size_t len;
};

static void blob_wipe(struct blob *b)
{
	if (b->at)
		OPENSSL_cleanse(b->at, TLS_FILE_MAX + 1);
	free(b->at);
}

static int blob_read(const char *path, bool secret, struct blob *ret, struct err *e)
{
	AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	ssize_t n = 1;

	if (fd < 0 || fstat(fd, &st))
		return err_sys(e, -errno, "%s", path);
	if (secret && st.st_mode & (S_IRWXG | S_IRWXO))
		return err_set(e, -EPERM, "%s can be read by others; to change that: chmod 600 %s",
			       path, path);
	ret->at = malloc(TLS_FILE_MAX + 1);
	if (!ret->at)
		return err_sys(e, -ENOMEM, "%s", path);
	while (n > 0 && ret->len <= TLS_FILE_MAX) {
		n = read(fd, ret->at + ret->len, TLS_FILE_MAX + 1 - ret->len);
		if (n < 0)
			return err_sys(e, -errno, "%s", path);
		ret->len += (size_t)n;
	}
	return ret->len > TLS_FILE_MAX ? err_set(e, -EFBIG, "%s: more than %llu KiB", path,
						 TLS_FILE_MAX / KIB) : 0;
}

/* ---- secrets ---- */

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 :
	       c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool identity_char(char c)
{
	return c > ' ' && c != 0x7f && c != ':' && c != ',' && c != '=';
}

static int secret_parse(const char *at, size_t len, struct tls_secret *ret, struct err *e)
{
	const char *colon = memchr(at, ':', len), *hex;
	size_t digits, id = colon ? (size_t)(colon - at) : 0;

	if (!colon || !id || id > TLS_IDENTITY_MAX)
		return err_set(e, -EINVAL,
			       "IDENTITY:HEX is meant, with an identity of 1 to %u characters",
			       TLS_IDENTITY_MAX);
	for (size_t i = 0; i < id; i++)
		if (!identity_char(at[i]))
			return err_set(e, -EINVAL,
				       "an identity has no spaces and none of the characters : , =");
	hex = colon + 1;
	digits = len - id - 1;
	if (digits % 2 || digits < 2 * TLS_SECRET_MIN || digits > 2 * TLS_SECRET_MAX)
		return err_set(e, -EINVAL, "a secret has %u to %u bytes, two digits each",
			       TLS_SECRET_MIN, TLS_SECRET_MAX);
	for (size_t i = 0; i < digits; i += 2) {
		int high = hex_digit(hex[i]), low = hex_digit(hex[i + 1]);

		if (high < 0 || low < 0)
			return err_set(e, -EINVAL, "a secret is written in hexadecimal digits");
		ret->secret[i / 2] = (uint8_t)(high << 4 | low);
	}
	memcpy(ret->identity, at, id);
	ret->identity[id] = '\0';
	ret->len = digits / 2;
	return 0;
}

static int secrets_fill(const char *text, size_t len, struct tls_secret *s, size_t *count,
			struct err *e)
{
	const char *end = text + len;

	for (size_t line = 1; text < end; line++) {
		const char *stop = memchr(text, '\n', (size_t)(end - text));
		size_t n = (size_t)((stop ? stop : end) - text);
		int r;

		if (n && text[n - 1] == '\r')
			n--;
		if (n && *text != '#') {
			if (*count == TLS_SECRETS_MAX)
				return err_set(e, -E2BIG, "more than %u secrets", TLS_SECRETS_MAX);
			r = secret_parse(text, n, &s[*count], e);
			for (size_t i = 0; !r && i < *count; i++)
				if (!strcmp(s[i].identity, s[*count].identity))
					r = err_set(e, -EEXIST, "the identity is there twice");
			if (r)
				return err_prefix(e, "line %zu", line);
			(*count)++;
		}
		text = stop ? stop + 1 : end;
	}
	return *count ? 0 : err_set(e, -EINVAL, "there is no secret in it");
}

int tls_secrets_parse(const char *text, size_t len, struct tls_secret **ret, size_t *ret_count,
		      struct err *e)
{
	struct tls_secret *s = calloc(TLS_SECRETS_MAX, sizeof(*s));
	size_t count = 0;
	int r;

	*ret = NULL;
	*ret_count = 0;
	if (!s)
		return err_sys(e, -ENOMEM, "secrets");
	r = secrets_fill(text, len, s, &count, e);
	if (r) {
		tls_secrets_free(s, TLS_SECRETS_MAX);
		return r;
	}
	*ret = s;
	*ret_count = count;
	return 0;
}

void tls_secrets_free(struct tls_secret *secrets, size_t count)
{
	if (secrets)
		OPENSSL_cleanse(secrets, count * sizeof(*secrets));
	free(secrets);
}

static int secrets_load(struct tls *t, struct err *e)
{
	CLEANUP(blob_wipe) struct blob b = { 0 };
	int r = blob_read(t->psk, true, &b, e);

	if (r)
		return r;
	r = tls_secrets_parse(b.at, b.len, &t->secrets, &t->secret_count, e);
	if (r)
		return err_prefix(e, "%s", t->psk);
	if (t->server) {
		SSL_CTX_set_psk_find_session_callback(t->ctx, tls_secret_find);
		return 0;
	}
	SSL_CTX_set_psk_use_session_callback(t->ctx, tls_secret_use);
	for (size_t i = 0; i < t->secret_count; i++)
		if (!strcmp(t->secrets[i].identity, t->identity))
			return 0;
	return err_set(e, -ENOENT, "%s has no secret for \"%s\"", t->psk, t->identity);
}

/* ---- certificates and keys ---- */

static int no_pass_phrase(char *buf, int size, int writing, void *arg)
{
	(void)buf;
	(void)size;
	(void)writing;
	(void)arg;
	return -1;
}

static BIO *blob_bio(const struct blob *b)
{
	return BIO_new_mem_buf(b->at, (int)b->len);
}

/* The next certificate of a file; NULL at its end or when it is broken (*ret_broken). */
static X509 *cert_next(BIO *bio, bool *ret_broken)
{
	X509 *cert = PEM_read_bio_X509(bio, NULL, no_pass_phrase, NULL);
	unsigned long code = ERR_peek_last_error();

	*ret_broken = !cert && ERR_GET_REASON(code) != PEM_R_NO_START_LINE;
	ERR_clear_error();
	return cert;
}

static int chain_load(struct tls *t, struct err *e)
{
	CLEANUP(blob_wipe) struct blob b = { 0 };
	int r = blob_read(t->cert, false, &b, e), n = 0;
	bool broken = false, taken = true;
	BIO *bio = r ? NULL : blob_bio(&b);
	X509 *cert;

	while (bio && taken && (cert = cert_next(bio, &broken))) {
		taken = n++ ? SSL_CTX_add1_chain_cert(t->ctx, cert)
			    : SSL_CTX_use_certificate(t->ctx, cert);
		X509_free(cert);
	}
	BIO_free(bio);
	ERR_clear_error();
	if (!r && (!n || broken || !taken))
		r = err_set(e, -EINVAL, "%s: this is no certificate in PEM that can be used",
			    t->cert);
	return r;
}

static int key_load(struct tls *t, struct err *e)
{
	CLEANUP(blob_wipe) struct blob b = { 0 };
	int r = blob_read(t->key, true, &b, e);
	BIO *bio = r ? NULL : blob_bio(&b);
	EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_pass_phrase, NULL) : NULL;
	bool fits = key && SSL_CTX_use_PrivateKey(t->ctx, key) &&
		    SSL_CTX_check_private_key(t->ctx);

	ERR_clear_error();
	if (!r && !key)
		r = err_set(e, -EINVAL, "%s: this is no key in PEM, or it has a pass phrase",
			    t->key);
	else if (!r && !fits)
		r = err_set(e, -EINVAL, "%s is not the key of the certificate %s", t->key, t->cert);
	EVP_PKEY_free(key);
	BIO_free(bio);
	return r;
}

static int trust_load(struct tls *t, struct err *e)
{
	CLEANUP(blob_wipe) struct blob b = { 0 };
	X509_STORE *store = SSL_CTX_get_cert_store(t->ctx);
	int r = blob_read(t->ca, false, &b, e), n = 0;
	BIO *bio = r ? NULL : blob_bio(&b);
	bool broken = false, taken = true;
	X509 *cert;

	while (bio && taken && (cert = cert_next(bio, &broken))) {
		taken = X509_STORE_add_cert(store, cert);
		X509_free(cert);
		n++;
	}
	BIO_free(bio);
	ERR_clear_error();
	if (!r && (!n || broken || !taken))
		r = err_set(e, -EINVAL, "%s: this is no certificate in PEM that can be used",
			    t->ca);
	return r;
}

/* ---- the context ---- */

static int text_copy(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return from && !*to ? -ENOMEM : 0;
}

static int options_check(const struct tls_options *o, struct err *e)
{
	if (!o->cert != !o->key)
		return err_set(e, -EINVAL, "a certificate and its key go together: %s is missing",
			       o->cert ? "the key" : "the certificate");
	if (o->server && !o->ca != !o->cert)
		return err_set(e, -EINVAL, "%s is missing",
			       o->ca ? "the server's own certificate"
				     : "the CA of the clients' certificates");
	if (!o->server && !o->psk != !o->identity)
		return err_set(e, -EINVAL, "a secret and its identity go together: %s is missing",
			       o->psk ? "identity=" : "psk=");
	if (!o->server && o->psk && (o->ca || o->cert))
		return err_set(e, -EINVAL, "certificates or a secret, not both");
	if (!o->ca && !o->psk)
		return err_set(e, -EINVAL, o->server ? "certificates or a secret are needed" :
			       "ca=FILE is missing, by whose certificates the server is known");
	return 0;
}

/* Whose certificate the client wants to see. */
static int name_set(struct tls *t, struct err *e)
{
	X509_VERIFY_PARAM *param = SSL_CTX_get0_param(t->ctx);
	struct in6_addr address;
	int ok;

	if (t->server || !t->ca)
		return 0;
	if (!t->name || !*t->name)
		return err_set(e, -EINVAL, "the name of the server is missing: server=NAME");
	X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS |
						       X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
	if (inet_pton(AF_INET, t->name, &address) == 1 ||
	    inet_pton(AF_INET6, t->name, &address) == 1)
		ok = X509_VERIFY_PARAM_set1_ip_asc(param, t->name);
	else
		ok = X509_VERIFY_PARAM_set1_host(param, t->name, 0);
	return ok ? 0 : err_sys(e, -EINVAL, "the server's name %s", t->name);
}

static int context_make(struct tls *t, struct err *e)
{
	static const char suites[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
				     "TLS_CHACHA20_POLY1305_SHA256";
	int verify = SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT;

	t->bio = tls_bio_method();
	t->ctx = SSL_CTX_new(t->server ? TLS_server_method() : TLS_client_method());
	if (!t->bio || !t->ctx || !SSL_CTX_set_ciphersuites(t->ctx, suites) ||
	    !SSL_CTX_set_min_proto_version(t->ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_max_proto_version(t->ctx, TLS1_3_VERSION)) {
		ERR_clear_error();
		return err_sys(e, -ENOMEM, "TLS");
	}
	SSL_CTX_set_options(t->ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
					    SSL_OP_NO_COMPRESSION | SSL_OP_PRIORITIZE_CHACHA |
					    SSL_OP_CIPHER_SERVER_PREFERENCE);
	SSL_CTX_set_mode(t->ctx, SSL_MODE_NO_AUTO_CHAIN); /* of the CA's file nothing is sent */
	SSL_CTX_set_num_tickets(t->ctx, 0);
	SSL_CTX_set_session_cache_mode(t->ctx, SSL_SESS_CACHE_OFF);
	/* A server's OpenSSL wants a word for its sessions before it takes a secret. */
	if (t->server)
		SSL_CTX_set_session_id_context(t->ctx, (const unsigned char *)"remora", 6);
	SSL_CTX_set_max_early_data(t->ctx, 0);
	SSL_CTX_set_recv_max_early_data(t->ctx, 0);
	SSL_CTX_set_max_cert_list(t->ctx, TLS_CHAIN_MAX);
	SSL_CTX_set_verify(t->ctx, verify, tls_verify);
	X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(t->ctx), X509_V_FLAG_PARTIAL_CHAIN);
	return 0;
}

int tls_open(struct tls **ret, const struct tls_options *o, struct err *e)
{
	struct tls *t = calloc(1, sizeof(*t));
	int r;

	*ret = NULL;
	if (!t)
		return err_sys(e, -ENOMEM, "TLS");
	atomic_init(&t->refs, 1);
	t->server = o->server;
	r = options_check(o, e);
	if (!r && (text_copy(&t->cert, o->cert) || text_copy(&t->key, o->key) ||
		   text_copy(&t->ca, o->ca) || text_copy(&t->psk, o->psk) ||
		   text_copy(&t->identity, o->identity) || text_copy(&t->name, o->name)))
		r = err_sys(e, -ENOMEM, "TLS");
	if (!r)
		r = context_make(t, e);
	if (!r)
		r = name_set(t, e);
	if (!r && t->ca)
		r = trust_load(t, e);
	if (!r && t->cert)
		r = chain_load(t, e);
	if (!r && t->key)
		r = key_load(t, e);
	if (!r && t->psk)
		r = secrets_load(t, e);
	if (r) {
		tls_unref(t);
		return r;
	}
	*ret = t;
	return 0;
}

int tls_reopen(struct tls **ret, const struct tls *t, struct err *e)
{
	const struct tls_options o = { .server = t->server, .cert = t->cert, .key = t->key,
				       .ca = t->ca, .psk = t->psk, .identity = t->identity,
				       .name = t->name };

	return tls_open(ret, &o, e);
}

struct tls *tls_ref(struct tls *t)
{
	atomic_fetch_add(&t->refs, 1);
	return t;
}

void tls_unref(struct tls *t)
{
	if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
		return;
	SSL_CTX_free(t->ctx);
	BIO_meth_free(t->bio);
	tls_secrets_free(t->secrets, t->secret_count);
	free(t->cert);
	free(t->key);
	free(t->ca);
	free(t->psk);
	free(t->identity);
	free(t->name);
	free(t);
}
