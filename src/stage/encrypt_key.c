/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The secret of the encrypt stage, from where the user keeps it, and what is made of it.
 *
 * Place: set-up of encrypt.c; encrypt_xts_unit() is its data path.
 *
 * Invariants: a secret never stands in a spec, in a text of an error or in a log. What held one is
 * wiped when it is given up.
 *
 * Locking: none; encrypt_xts_unit() runs on any thread that has the context to itself.
 */
#include "stage/encrypt_int.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"

#define SECRET_TEXT_MAX 512u /* more than any key has is none */

static const char salt_ours[] = "remora encrypt 1";

/* ---- parsing ---- */

static int digit(uint8_t c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
	       : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool is_hex(const uint8_t *from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (digit(from[i]) < 0)
			return false;
	return true;
}

bool encrypt_secret_parse(struct encrypt_secret *ret, const uint8_t *from, size_t len)
{
	size_t text = len;

	while (text && strchr(" \t\r\n", from[text - 1]) && from[text - 1])
		text--;
	if ((text == 64 || text == 128) && is_hex(from, text)) {
		for (size_t i = 0; i < text / 2; i++)
			ret->at[i] = (uint8_t)(digit(from[2 * i]) << 4 | digit(from[2 * i + 1]));
		ret->len = text / 2;
		return true;
	}
	if (len != 32 && len != 64)
		return false;
	memcpy(ret->at, from, len);
	ret->len = len;
	return true;
}

void encrypt_secret_done(struct encrypt_secret *secret)
{
	OPENSSL_cleanse(secret, sizeof(*secret));
}

/* ---- sources ---- */

/* Up to SECRET_TEXT_MAX bytes, all there are; one more says that it is too long. */
static int all_read(int fd, uint8_t *buf, size_t *ret_len)
{
	size_t len = 0;
	ssize_t n;

	while (len <= SECRET_TEXT_MAX) {
		n = read(fd, buf + len, SECRET_TEXT_MAX + 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		len += (size_t)n;
	}
	*ret_len = len;
	return 0;
}

static int from_file(const char *path, uint8_t *buf, size_t *ret_len, struct err *e)
{
	AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st))
		return err_sys(e, -errno, "the key %s", path);
	if (S_ISREG(st.st_mode) && st.st_mode & 077)
		return err_set(e, -EACCES,
			       "the key %s can be read by others than its owner: chmod 600 %s",
			       path, path);
	r = all_read(fd, buf, ret_len);
	return r ? err_sys(e, r, "the key %s", path) : 0;
}

static int from_command(const char *command, uint8_t *buf, size_t *ret_len, struct err *e)
{
	FILE *pipe = popen(command, "re");
	int r, status;

	if (!pipe)
		return err_sys(e, -errno, "the key's command");
	r = all_read(fileno(pipe), buf, ret_len);
	status = pclose(pipe);
	if (r)
		return err_sys(e, r, "the output of the key's command");
	if (status == -1)
		return err_sys(e, -errno, "the end of the key's command");
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return err_set(e, -EIO, "the key's command failed: %s %d",
			       WIFEXITED(status) ? "exit status" : "signal",
			       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	return 0;
}

static int from_environment(const char *name, uint8_t *buf, size_t *ret_len, struct err *e)
{
	const char *value = getenv(name);

	if (!value)
		return err_set(e, -ENOENT, "the key: there is no variable %s in the environment",
			       name);
	*ret_len = MIN(strlen(value), (size_t)SECRET_TEXT_MAX + 1);
	memcpy(buf, value, *ret_len);
	return 0;
}

static bool all_alike(const struct encrypt_secret *secret)
{
	return !memcmp(secret->at, secret->at + 1, secret->len - 1);
}

int encrypt_secret_get(struct encrypt_secret *ret, struct spec_args *args)
{
	uint8_t buf[SECRET_TEXT_MAX + 1];
	const char *file = NULL, *command = NULL, *name = NULL;
	size_t len = 0;
	int r;

	if ((r = spec_get_text(args, "key", &file)) ||
	    (r = spec_get_text(args, "command", &command)) ||
	    (r = spec_get_text(args, "env", &name)))
		return r;
	if (!!file + !!command + !!name != 1)
		return spec_error(args->spec, args->part->at, args->e,
				  "encrypt needs one of key=FILE, command=COMMAND, env=NAME");
	r = file	 ? from_file(file, buf, &len, args->e)
	    : command ? from_command(command, buf, &len, args->e)
		      : from_environment(name, buf, &len, args->e);
	if (!r && !encrypt_secret_parse(ret, buf, len))
		r = err_set(
			args->e, -EINVAL,
			"the key is neither 64 or 128 hexadecimal digits nor 32 or 64 bytes: head -c 32 "
			"/dev/urandom makes one");
	else if (!r && all_alike(ret))
		r = err_set(args->e, -EINVAL, "the key's bytes are all the same");
	OPENSSL_cleanse(buf, sizeof(buf));
	return r;
}

/* ---- keys ---- */

int encrypt_hkdf(const uint8_t *secret, size_t secret_len, const uint8_t *salt, size_t salt_len,
		 const uint8_t *info, size_t info_len, uint8_t *ret, size_t ret_len)
{
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	char digest[] = "SHA256";
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret,
						  secret_len),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt,
						  salt_len),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)(uintptr_t)info,
						  info_len),
		OSSL_PARAM_construct_end(),
	};
	int r = ctx && EVP_KDF_derive(ctx, ret, ret_len, params) == 1 ? 0 : -ENOMEM;

	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
	return r;
}

int encrypt_derive(const struct encrypt_secret *secret, const char *label, const uint8_t *id,
		   uint8_t *ret, size_t ret_len)
{
	uint8_t info[16 + ENCRYPT_ID_LEN];
	size_t len = strlen(label);

	CHECK(len < 16 && secret->len);
	memcpy(info, label, len);
	if (id) {
		memcpy(info + len, id, ENCRYPT_ID_LEN);
		len += ENCRYPT_ID_LEN;
	}
	return encrypt_hkdf(secret->at, secret->len, (const uint8_t *)salt_ours,
			    sizeof(salt_ours) - 1, info, len, ret, ret_len);
}

/* ---- XTS ---- */

EVP_CIPHER_CTX *encrypt_xts_ctx(const uint8_t key[static 64], bool encrypt)
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

	if (ctx && EVP_CipherInit_ex(ctx, EVP_aes_256_xts(), NULL, key, NULL, encrypt) != 1) {
		EVP_CIPHER_CTX_free(ctx);
		return NULL;
	}
	return ctx;
}

int encrypt_xts_unit(EVP_CIPHER_CTX *ctx, uint64_t unit, const uint8_t *from, uint8_t *to,
		     size_t len)
{
	uint8_t tweak[16] = { 0 };
	int n = 0;

	for (size_t i = 0; i < sizeof(unit); i++)
		tweak[i] = (uint8_t)(unit >> 8 * i);
	CHECK(len >= ENCRYPT_XTS_MIN && len <= ENCRYPT_UNIT);
	/* The whole unit in one call: else there would be no stealing at its end. */
	if (EVP_CipherInit_ex(ctx, NULL, NULL, NULL, tweak, -1) != 1 ||
	    EVP_CipherUpdate(ctx, to, &n, from, (int)len) != 1 || (size_t)n != len)
		return -EIO;
	return 0;
}
