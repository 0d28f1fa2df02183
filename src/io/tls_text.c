/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What TLS has to say to people: whose certificate it is, what was wrong with it, why a handshake
 * failed, and what to do about it.
 *
 * Place: beside tls.c, which calls it when something has failed. What a stranger sent (names in a
 * certificate) is shown with everything replaced that is not plain text.
 *
 * Invariant: every failure has an -errno and a text. The text says "it" of the peer where a server
 * speaks, "the server" where a client does; who it was stands before it in the log.
 *
 * Locking: none.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "io/tls_int.h"

/* ---- names in certificates ---- */

#define NAME_MAX_LEN 256u

/* False for what is no plain text. */
static bool text_take(const ASN1_STRING *s, char *buf)
{
	int len = ASN1_STRING_length(s);
	const unsigned char *at = ASN1_STRING_get0_data(s);

	if (len <= 0 || (unsigned)len >= NAME_MAX_LEN)
		return false;
	for (int i = 0; i < len; i++)
		if (at[i] <= ' ' || at[i] == 0x7f || at[i] == ',')
			return false;
	memcpy(buf, at, (size_t)len);
	buf[len] = '\0';
	return true;
}

static bool address_take(const ASN1_OCTET_STRING *s, char *buf)
{
	int len = ASN1_STRING_length(s);

	return (len == 4 || len == 16) && inet_ntop(len == 4 ? AF_INET : AF_INET6,
						    ASN1_STRING_get0_data(s), buf, NAME_MAX_LEN);
}

static bool general_name_take(const GENERAL_NAME *name, char *buf)
{
	switch (name->type) {
	case GEN_DNS:
		return text_take(name->d.dNSName, buf);
	case GEN_IPADD:
		return address_take(name->d.iPAddress, buf);
	case GEN_EMAIL:
		return text_take(name->d.rfc822Name, buf);
	case GEN_URI:
		return text_take(name->d.uniformResourceIdentifier, buf);
	default:
		return false;
	}
}

/* Calls fn for each name until it says true: that is the answer. */
static bool names_each(X509 *cert, bool (*fn)(void *arg, const char *name), void *arg)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	X509_NAME *subject = X509_get_subject_name(cert);
	int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
	char buf[NAME_MAX_LEN];
	bool found = false;

	if (at >= 0 && text_take(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)), buf))
		found = fn(arg, buf);
	for (int i = 0; !found && i < sk_GENERAL_NAME_num(names); i++)
		if (general_name_take(sk_GENERAL_NAME_value(names, i), buf))
			found = fn(arg, buf);
	GENERAL_NAMES_free(names);
	return found;
}

struct name_list {
	char *buf;
	size_t len, size;
};

static bool name_add(void *arg, const char *name)
{
	struct name_list *l = arg;
	size_t n = strlen(name);

	if (l->len == n && !memcmp(l->buf, name, n))
		return false; /* the common name is mostly there twice */
	if (l->len + n + sizeof(", ...") > l->size)
		return true;
	l->len += (size_t)snprintf(l->buf + l->len, l->size - l->len, "%s%s", l->len ? ", " : "",
				   name);
	return false;
}

void tls_cert_names(X509 *cert, char *buf, size_t size)
{
	struct name_list l = { buf, 0, size };

	buf[0] = '\0';
	if (cert && names_each(cert, name_add, &l) && l.len)
		snprintf(buf + l.len, size - l.len, ", ...");
	if (!buf[0])
		snprintf(buf, size, "somebody without a name");
}

static bool name_is(void *arg, const char *name)
{
	return strcasecmp(arg, name) == 0;
}

bool tls_cert_is(X509 *cert, const char *who)
{
	return names_each(cert, name_is, (void *)(uintptr_t)who);
}

/* ---- verification ---- */

static void time_format_of(const ASN1_TIME *at, char *buf, size_t size)
{
	struct tm tm;

	if (!ASN1_TIME_to_tm(at, &tm) || !strftime(buf, size, "%Y-%m-%d %H:%M:%S UTC", &tm))
		snprintf(buf, size, "a time that cannot be read");
}

void tls_doubt(struct tls_link *l, X509 *cert, int error)
{
	const char *whose = l->tls->server ? "its certificate" : "the server's certificate";
	char names[TLS_PEER_MAX], when[64];

	tls_cert_names(cert, names, sizeof(names));
	switch (error) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		time_format_of(X509_get0_notAfter(cert), when, sizeof(when));
		snprintf(l->doubt, sizeof(l->doubt), "%s (%s) has expired, on %s", whose, names,
			 when);
		break;
	case X509_V_ERR_CERT_NOT_YET_VALID:
		time_format_of(X509_get0_notBefore(cert), when, sizeof(when));
		snprintf(l->doubt, sizeof(l->doubt),
			 "%s (%s) is not valid before %s: is the clock right?", whose, names,
			 when);
		break;
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		snprintf(l->doubt, sizeof(l->doubt),
			 "the server's certificate is for %s, not for %s; if it is the right "
			 "server, say server=NAME",
			 names, l->tls->name);
		break;
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		if (l->tls->ca)
			snprintf(l->doubt, sizeof(l->doubt), "%s (%s) is not of the CA in %s",
				 whose, names, l->tls->ca);
		else
			snprintf(l->doubt, sizeof(l->doubt), "%s has no secret of this identity",
				 l->tls->server ? "it" : "the server");
		break;
	default:
		snprintf(l->doubt, sizeof(l->doubt), "%s (%s): %s", whose, names,
			 X509_verify_cert_error_string(error));
	}
}

/* ---- failures ---- */

static void why_set(struct tls_link *l, int err, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void why_set(struct tls_link *l, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(l->why, sizeof(l->why), fmt, ap);
	va_end(ap);
	l->err = err;
}

/* What the server tells us. TLS 1.3 tells it when our side of the handshake is done already. */
static void alert_to_client(struct tls_link *l, int alert)
{
	const struct tls *t = l->tls;

	switch (alert) {
	case TLS13_AD_CERTIFICATE_REQUIRED:
		why_set(l, -EACCES, "the server asks who we are: cert=FILE and key=FILE are missing");
		break;
	case SSL_AD_UNKNOWN_CA:
		why_set(l, -EACCES, "the server refused our certificate %s: it is of another CA",
			t->cert ? t->cert : "");
		break;
	case SSL_AD_CERTIFICATE_EXPIRED:
		why_set(l, -EACCES, "the server refused our certificate %s: it has expired",
			t->cert ? t->cert : "");
		break;
	case SSL_AD_BAD_CERTIFICATE:
	case SSL_AD_UNSUPPORTED_CERTIFICATE:
	case SSL_AD_CERTIFICATE_REVOKED:
	case SSL_AD_CERTIFICATE_UNKNOWN:
		why_set(l, -EACCES, "the server refused our certificate %s: %s",
			t->cert ? t->cert : "", SSL_alert_desc_string_long(alert));
		break;
	case SSL_AD_HANDSHAKE_FAILURE:
	case SSL_AD_MISSING_EXTENSION:
		if (t->psk)
			why_set(l, -EACCES, "the server has no secret for \"%s\"", t->identity);
		else
			why_set(l, -EACCES, "the server takes no certificates: psk=FILE and "
					    "identity=NAME are missing, perhaps");
		break;
	case SSL_AD_ILLEGAL_PARAMETER:
	case SSL_AD_DECRYPT_ERROR:
		if (t->psk) {
			why_set(l, -EACCES, "the server has another secret for \"%s\" than %s",
				t->identity, t->psk);
			break;
		}
		/* fall through */
	default:
		why_set(l, alert == SSL_AD_PROTOCOL_VERSION ? -EPROTONOSUPPORT : -ECONNRESET,
			"the server ended it: %s", SSL_alert_desc_string_long(alert));
	}
}

static void alert_to_server(struct tls_link *l, int alert)
{
	switch (alert) {
	case SSL_AD_UNKNOWN_CA:
		why_set(l, -EACCES, "it trusts another CA than that of our certificate");
		break;
	case SSL_AD_CERTIFICATE_EXPIRED:
		why_set(l, -EACCES, "it says that our certificate has expired");
		break;
	case SSL_AD_BAD_CERTIFICATE:
		why_set(l, -EACCES, "it refused our certificate: is that for the name it uses?");
		break;
	default:
		why_set(l, -ECONNRESET, "it ended the handshake: %s",
			SSL_alert_desc_string_long(alert));
	}
}

/* What we have found ourselves. */
static void reason_explain(struct tls_link *l, int reason)
{
	bool server = l->tls->server;
	const char *text;

	switch (reason) {
	case SSL_R_CERTIFICATE_VERIFY_FAILED:
		why_set(l, -EACCES, "%s", l->doubt[0] ? l->doubt : "the certificate is not good");
		break;
	case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
		why_set(l, -EACCES, "it showed no certificate");
		break;
	case SSL_R_BINDER_DOES_NOT_VERIFY:
	case SSL_R_BAD_PSK:
		why_set(l, -EACCES, "it has another secret for \"%s\"",
			l->secret ? l->secret->identity : "?");
		break;
	case SSL_R_NO_SHARED_CIPHER:
	case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
	case SSL_R_MISSING_SIGALGS_EXTENSION:
	case SSL_R_NO_SUITABLE_KEY_SHARE:
		why_set(l, -EACCES, server ? "it has none of the secrets" : "nothing in common");
		break;
	case SSL_R_UNSUPPORTED_PROTOCOL:
	case SSL_R_NO_PROTOCOLS_AVAILABLE:
		why_set(l, -EPROTONOSUPPORT, "%s does not speak TLS 1.3",
			server ? "it" : "the server");
		break;
	case SSL_R_UNEXPECTED_EOF_WHILE_READING:
		why_set(l, -ECONNRESET, l->up ? "the connection was cut off" : server ?
			"it went away during the handshake" :
			"the server went away during the handshake: does it speak TLS?");
		break;
	case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
		why_set(l, -EBADMSG, "what came was changed on the way");
		break;
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_HTTP_REQUEST:
	case SSL_R_HTTPS_PROXY_REQUEST:
	case SSL_R_UNEXPECTED_MESSAGE:
	case SSL_R_RECORD_LENGTH_MISMATCH:
	case SSL_R_PACKET_LENGTH_TOO_LONG:
	case SSL_R_ENCRYPTED_LENGTH_TOO_LONG:
	case SSL_R_BAD_RECORD_TYPE:
		if (!l->up) {
			why_set(l, -EPROTO, "%s does not speak TLS", server ? "it" : "the server");
			break;
		}
		/* fall through */
	default:
		text = ERR_reason_error_string(ERR_PACK(ERR_LIB_SSL, 0, reason));
		why_set(l, -EPROTO, "TLS: %s", text ? text : "an error without a name");
	}
}

void tls_explain(struct tls_link *l, int ssl_error)
{
	unsigned long code;
	int reason = 0;

	if (ssl_error == SSL_ERROR_SYSCALL)
		reason = SSL_R_UNEXPECTED_EOF_WHILE_READING;
	/* The first of the SSL layer knows best. */
	while (!reason && (code = ERR_get_error()))
		if (ERR_GET_LIB(code) == ERR_LIB_SSL)
			reason = ERR_GET_REASON(code);
	ERR_clear_error();
	if (reason >= SSL_AD_REASON_OFFSET && l->tls->server)
		alert_to_server(l, reason - SSL_AD_REASON_OFFSET);
	else if (reason >= SSL_AD_REASON_OFFSET)
		alert_to_client(l, reason - SSL_AD_REASON_OFFSET);
	else
		reason_explain(l, reason);
	CHECK(l->err < 0 && l->why[0]);
}
