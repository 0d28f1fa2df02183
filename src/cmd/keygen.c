/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora keygen: what two hosts need to know each other, in one command: a small CA with a key and
 * a certificate for each host, or secrets.
 *
 * Place: writes files; serve and the specs of clients read them (io/tls_files.c).
 *
 * Invariants: no file that is there is written to; when something fails, what was made before it is
 * taken away again. Keys and secrets are made with mode 0600, and never leave this process but
 * into their file.
 *
 * Locking: none.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "cmd/cmd.h"

#define DAYS_DEFAULT 730u
#define DAYS_MAX 36500u
#define CA_DAYS 3650
#define DAY_S 86400L
#define CLOCK_SLACK_S 3600L /* the other host's clock may be behind */
#define SECRET_BYTES 32u
#define SERIAL_BYTES 16
#define PORT "7000"

struct keygen {
	const char *dir;
	char *host[OPT_LIST_MAX]; /* "name", or "name,other,address": cut at the commas */
	size_t names_len[OPT_LIST_MAX];
	size_t hosts;
	uint64_t days;
	bool psk, old_ca;
	EVP_PKEY *ca_key;
	X509 *ca;
	char *made[3 * OPT_LIST_MAX + 4]; /* files, to be taken away when it fails */
	size_t made_count;
	struct opt_list given;
};

/* ---- files ---- */

static int path_format(const struct keygen *k, const char *name, const char *ending, char **ret,
		       struct err *e)
{
	if (asprintf(ret, "%s/%s%s", k->dir, name, ending) >= 0)
		return 0;
	*ret = NULL;
	return err_sys(e, -ENOMEM, "%s", k->dir);
}

static int file_write(struct keygen *k, const char *name, const char *ending, mode_t mode,
		      const void *at, size_t len, struct err *e)
{
	char *path;
	int r = path_format(k, name, ending, &path, e);
	AUTO_FD int fd = r ? -1 : open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);

	if (r)
		return r;
	if (fd < 0) {
		r = errno == EEXIST ? err_set(e, -EEXIST, "%s is there already", path)
				    : err_sys(e, -errno, "%s", path);
		free(path);
		return r;
	}
	CHECK(k->made_count < ARRAY_LEN(k->made));
	k->made[k->made_count++] = path;
	if (fchmod(fd, mode) || write(fd, at, len) != (ssize_t)len || fsync(fd))
		return err_sys(e, errno ? -errno : -EIO, "%s", path);
	return 0;
}

static int bio_save(struct keygen *k, const char *name, const char *ending, mode_t mode, BIO *bio,
		    struct err *e)
{
	char *at;
	long len = BIO_get_mem_data(bio, &at);

	return file_write(k, name, ending, mode, at, (size_t)len, e);
}

static int openssl_error(struct err *e, const char *what)
{
	const char *why = ERR_reason_error_string(ERR_peek_last_error());

	return err_set(e, -EIO, "%s: %s", what, why ? why : "OpenSSL has failed");
}

static int pair_save(struct keygen *k, const char *name, EVP_PKEY *key, X509 *cert, struct err *e)
{
	BIO *secret = BIO_new(BIO_s_secmem()), *plain = BIO_new(BIO_s_mem());
	int r;

	if (!secret || !plain ||
	    !PEM_write_bio_PrivateKey(secret, key, NULL, NULL, 0, NULL, NULL) ||
	    !PEM_write_bio_X509(plain, cert))
		r = openssl_error(e, name);
	else
		r = bio_save(k, name, ".key", 0600, secret, e);
	if (!r)
		r = bio_save(k, name, ".crt", 0644, plain, e);
	BIO_free(secret);
	BIO_free(plain);
	return r;
}

/* ---- certificates ---- */

static bool extension_add(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *x;
	bool added;

	X509V3_set_ctx_nodb(&ctx);
	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	x = X509V3_EXT_nconf_nid(NULL, &ctx, nid, value);
	added = x && X509_add_ext(cert, x, -1);
	X509_EXTENSION_free(x);
	return added;
}

static bool serial_set(X509 *cert)
{
	unsigned char bytes[SERIAL_BYTES];
	BIGNUM *number;
	bool set;

	if (RAND_bytes(bytes, sizeof(bytes)) != 1)
		return false;
	bytes[0] = (unsigned char)((bytes[0] & 0x7f) | 0x40);
	number = BN_bin2bn(bytes, sizeof(bytes), NULL);
	set = number && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert));
	BN_free(number);
	return set;
}

/* What every certificate has. issuer NULL: it is its own. */
static X509 *cert_begin(const char *name, EVP_PKEY *key, X509 *issuer, long days)
{
	X509 *cert = X509_new();
	X509_NAME *subject = cert ? X509_get_subject_name(cert) : NULL;

	if (cert && X509_set_version(cert, 2) && serial_set(cert) &&
	    X509_gmtime_adj(X509_getm_notBefore(cert), -CLOCK_SLACK_S) &&
	    X509_time_adj_ex(X509_getm_notAfter(cert), (int)days, 0, NULL) &&
	    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name,
				       -1, -1, 0) &&
	    X509_set_issuer_name(cert, X509_get_subject_name(issuer ? issuer : cert)) &&
	    X509_set_pubkey(cert, key) &&
	    extension_add(cert, issuer ? issuer : cert, NID_subject_key_identifier, "hash"))
		return cert;
	X509_free(cert);
	return NULL;
}

static int ca_make(struct keygen *k, struct err *e)
{
	k->ca_key = EVP_EC_gen("P-256");
	k->ca = k->ca_key ? cert_begin("Remora CA", k->ca_key, NULL, MAX((long)k->days, CA_DAYS))
			  : NULL;
	if (!k->ca ||
	    !extension_add(k->ca, k->ca, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
	    !extension_add(k->ca, k->ca, NID_key_usage, "critical,keyCertSign,cRLSign") ||
	    !X509_sign(k->ca, k->ca_key, EVP_sha256()))
		return openssl_error(e, "making a CA");
	return pair_save(k, "ca", k->ca_key, k->ca, e);
}

/* One that is there signs for more hosts. */
static int ca_load(struct keygen *k, const char *crt, const char *key, struct err *e)
{
	FILE *f = fopen(crt, "re");
	FILE *g = f ? fopen(key, "re") : NULL;
	int r = 0;

	if (!f || !g) {
		r = err_sys(e, -errno, "%s", f ? key : crt);
	} else {
		k->ca = PEM_read_X509(f, NULL, NULL, NULL);
		k->ca_key = PEM_read_PrivateKey(g, NULL, NULL, NULL);
		if (!k->ca || !k->ca_key || !X509_check_private_key(k->ca, k->ca_key))
			r = err_set(e, -EINVAL, "%s and %s are no certificate of a CA and its key",
				    crt, key);
	}
	if (f)
		fclose(f);
	if (g)
		fclose(g);
	k->old_ca = true;
	return r;
}

static int ca_open(struct keygen *k, struct err *e)
{
	AUTO_FREE char *crt = NULL;
	AUTO_FREE char *key = NULL;
	int r = path_format(k, "ca", ".crt", &crt, e);

	if (!r)
		r = path_format(k, "ca", ".key", &key, e);
	if (r)
		return r;
	if (access(crt, F_OK) && access(key, F_OK))
		return ca_make(k, e);
	return ca_load(k, crt, key, e);
}

/* "DNS:name,IP:address" of a host's names. */
static int names_format(const struct keygen *k, size_t i, char **ret, struct err *e)
{
	const char *at = k->host[i], *end = at + k->names_len[i];
	char *text = NULL, *more;
	struct in6_addr address;

	*ret = NULL;
	for (; at < end; at += strlen(at) + 1) {
		bool ip = inet_pton(AF_INET, at, &address) == 1 ||
			  inet_pton(AF_INET6, at, &address) == 1;
		int n = asprintf(&more, "%s%s%s:%s", text ? text : "", text ? "," : "",
				 ip ? "IP" : "DNS", at);

		free(text);
		if (n < 0)
			return err_sys(e, -ENOMEM, "%s", k->host[i]);
		text = more;
	}
	*ret = text;
	return 0;
}

static int host_make(struct keygen *k, size_t i, struct err *e)
{
	AUTO_FREE char *names = NULL;
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = key ? cert_begin(k->host[i], key, k->ca, (long)k->days) : NULL;
	int r = names_format(k, i, &names, e);

	if (!r && (!cert ||
		   !extension_add(cert, k->ca, NID_authority_key_identifier, "keyid:always") ||
		   !extension_add(cert, k->ca, NID_basic_constraints, "critical,CA:FALSE") ||
		   !extension_add(cert, k->ca, NID_key_usage, "critical,digitalSignature") ||
		   !extension_add(cert, k->ca, NID_ext_key_usage, "serverAuth,clientAuth") ||
		   !extension_add(cert, k->ca, NID_subject_alt_name, names) ||
		   !X509_sign(cert, k->ca_key, EVP_sha256())))
		r = openssl_error(e, k->host[i]);
	if (!r)
		r = pair_save(k, k->host[i], key, cert, e);
	X509_free(cert);
	EVP_PKEY_free(key);
	return r;
}

/* ---- secrets ---- */

/* The server's file has all of them, each client's its own. */
static int secrets_make(struct keygen *k, struct err *e)
{
	char all[OPT_LIST_MAX * (TLS_IDENTITY_MAX + 2 * SECRET_BYTES + 3)];
	unsigned char secret[SECRET_BYTES];
	size_t len = 0;
	int r = 0;

	for (size_t i = 0; !r && i < k->hosts; i++) {
		size_t from = len;

		if (RAND_bytes(secret, sizeof(secret)) != 1)
			return openssl_error(e, "a secret");
		len += (size_t)snprintf(all + len, sizeof(all) - len, "%s:", k->host[i]);
		for (size_t b = 0; b < sizeof(secret); b++)
			len += (size_t)snprintf(all + len, sizeof(all) - len, "%02x", secret[b]);
		len += (size_t)snprintf(all + len, sizeof(all) - len, "\n");
		r = file_write(k, k->host[i], ".psk", 0600, all + from, len - from, e);
	}
	if (!r)
		r = file_write(k, "secrets", "", 0600, all, len, e);
	OPENSSL_cleanse(all, sizeof(all));
	OPENSSL_cleanse(secret, sizeof(secret));
	return r;
}

/* ---- what is asked for ---- */

static bool is_name(const char *name, const struct keygen *k)
{
	size_t len = strlen(name);
	const char *chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
	struct in6_addr address;

	if (!len || len > 64 || name[0] == '.' || name[0] == '-') /* a common name has no more */
		return false;
	if (!k->psk && inet_pton(AF_INET6, name, &address) == 1)
		return true;
	return strspn(name, chars) == len && strcmp(name, "ca") != 0 && strcmp(name, "secrets") != 0;
}

static int host_add(struct keygen *k, const char *text, struct err *e)
{
	char *copy, *comma;

	if (k->hosts == ARRAY_LEN(k->host))
		return err_set(e, -E2BIG, "more than %zu hosts", ARRAY_LEN(k->host));
	copy = strdup(text);
	if (!copy)
		return err_sys(e, -ENOMEM, "%s", text);
	k->names_len[k->hosts] = strlen(copy);
	k->host[k->hosts++] = copy;
	while ((comma = strchr(copy, ','))) {
		*comma = '\0';
		if (!is_name(copy, k))
			break;
		copy = comma + 1;
	}
	if (!is_name(copy, k))
		return err_set(e, -EINVAL, "\"%s\" is no host: NAME[,NAME or ADDRESS]... is meant",
			       text);
	return 0;
}

static int hosts_take(struct keygen *k, int count, char **args, struct err *e)
{
	int r = 0;

	for (size_t i = 0; !r && i < k->given.count; i++)
		r = host_add(k, k->given.at[i], e);
	for (int i = 0; !r && i < count; i++)
		r = host_add(k, args[i], e);
	if (!r && !k->hosts)
		r = err_set(e, -EINVAL, "--hosts is missing: keygen DIR --hosts SERVER CLIENT");
	return r;
}

static int dir_make(const struct keygen *k, struct err *e)
{
	if (mkdir(k->dir, 0700) && errno != EEXIST)
		return err_sys(e, -errno, "%s", k->dir);
	return 0;
}

/* ---- telling ---- */

static void tell_certificates(const struct keygen *k)
{
	const char *d = k->dir, *a = k->host[0];

	printf("%s/ca.key signs for more hosts, later: keep it, and give it to nobody.%s\n", d,
	       k->old_ca ? " (It was there already.)" : "");
	printf("\nOn %s, with ca.crt, %s.crt and %s.key:\n", a, a, a);
	printf("  remora serve SPEC --listen 0.0.0.0:" PORT
	       " --tls-cert %s/%s.crt --tls-key %s/%s.key --tls-ca %s/ca.crt\n",
	       d, a, d, a, d);
	for (size_t i = 1; i < k->hosts; i++) {
		const char *b = k->host[i];

		printf("\nOn %s, with ca.crt, %s.crt and %s.key:\n", b, b, b);
		printf("  remora mount \"remoras://%s:" PORT "?ca=%s/ca.crt&cert=%s/%s.crt&key=%s/%s.key\" FILE\n",
		       a, d, d, b, d, b);
	}
}

static void tell_secrets(const struct keygen *k)
{
	const char *d = k->dir, *a = k->host[0];

	printf("On %s, with %s/secrets:\n", a, d);
	printf("  remora serve SPEC --listen 0.0.0.0:" PORT " --psk %s/secrets\n", d);
	for (size_t i = k->hosts > 1; i < k->hosts; i++) {
		const char *b = k->host[i];

		printf("\nOn %s, with %s/%s.psk:\n", b, d, b);
		printf("  remora mount \"remoras://%s:" PORT "?psk=%s/%s.psk&identity=%s\" FILE\n",
		       a, d, b, b);
	}
}

static int keygen_run(struct keygen *k, int count, char **args, struct err *e)
{
	int r = hosts_take(k, count, args, e);

	if (!r)
		r = dir_make(k, e);
	if (!r && k->psk)
		return secrets_make(k, e);
	if (!r)
		r = ca_open(k, e);
	for (size_t i = 0; !r && i < k->hosts; i++)
		r = host_make(k, i, e);
	return r;
}

static void keygen_end(struct keygen *k, bool failed)
{
	for (size_t i = 0; i < k->made_count; i++) {
		if (failed)
			unlink(k->made[i]);
		free(k->made[i]);
	}
	for (size_t i = 0; i < k->hosts; i++)
		free(k->host[i]);
	X509_free(k->ca);
	EVP_PKEY_free(k->ca_key);
}

static const char keygen_more[] =
	"A HOST is a name, or a name and by what else it is called: a.example,10.0.0.1. The first\n"
	"one is the server in what is printed. A CA that is in DIR already signs for the hosts.\n"
	"\n"
	"Examples:\n"
	"  remora keygen keys --hosts store.example laptop\n"
	"  remora keygen keys --psk --hosts store.example laptop\n";

int cmd_keygen(int argc, char **argv)
{
	struct keygen k = { .days = DAYS_DEFAULT };
	const struct opt options[] = {
		{ "hosts", 0, OPT_LIST, "HOST...", "who needs a key and a certificate", &k.given },
		{ "days", 0, OPT_NUMBER, "N", "how long certificates are good; default: 730",
		  &k.days },
		{ "psk", 0, OPT_FLAG, NULL, "makes secrets instead: simpler, for a few hosts",
		  &k.psk },
		{ 0 },
	};
	const struct usage usage = {
		.name = "keygen",
		.args = "[OPTION]... DIR --hosts HOST HOST...",
		.options = options,
		.more = keygen_more,
		.args_min = 1,
		.args_max = OPT_LIST_MAX,
	};
	struct common common;
	struct err e = { 0 };
	int r = options_parse(&usage, &common, argc, argv);

	if (r >= 0)
		return r;
	k.dir = argv[optind];
	if (k.days > DAYS_MAX)
		return say_usage("--days: at most %u", DAYS_MAX);
	r = keygen_run(&k, argc - optind - 1, argv + optind + 1, &e);
	if (!r && !common.quiet && k.psk)
		tell_secrets(&k);
	else if (!r && !common.quiet)
		tell_certificates(&k);
	keygen_end(&k, r);
	return r ? say_failed(&e, NULL) : out_end(CMD_OK);
}
