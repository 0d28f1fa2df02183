/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a stranger sends to the TLS of a server, and what stands in a file of secrets. The first
 * byte says which one. A link ends in an error with a text, or wants more; it never says who it is.
 */
#include "io/tls.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

static void try_secrets(const uint8_t *at, size_t len)
{
	struct tls_secret *s;
	struct err e = { 0 };
	size_t count;
	int r = tls_secrets_parse((const char *)at, len, &s, &count, &e);

	MUST(!r == (count > 0) && !r == (s != NULL));
	MUST(!r || (e.code == r && e.text[0]));
	for (size_t i = 0; i < count; i++)
		MUST(s[i].identity[0] && s[i].len >= TLS_SECRET_MIN && s[i].len <= TLS_SECRET_MAX);
	tls_secrets_free(s, count);
}

static struct tls *server_make(void)
{
	static const char text[] = "a:000102030405060708090a0b0c0d0e0f\n";
	char path[] = "/tmp/remora-fuzz-XXXXXX";
	const struct tls_options o = { .server = true, .psk = path };
	struct tls *tls = NULL;
	int fd = mkstemp(path);

	MUST(fd >= 0 && write(fd, text, sizeof(text) - 1) == (ssize_t)sizeof(text) - 1);
	close(fd);
	MUST(!tls_open(&tls, &o, NULL));
	unlink(path);
	return tls;
}

static void try_link(const uint8_t *at, size_t len, size_t step)
{
	struct tls *tls = server_make();
	enum tls_result r = TLS_WANT_BYTES;
	struct tls_link *l;

	MUST(!tls_link_open(&l, tls));
	while (len && r == TLS_WANT_BYTES) {
		size_t room, n;
		void *in = tls_in(l, &room);

		MUST(room);
		n = MIN(MIN(len, step), room);
		memcpy(in, at, n);
		tls_in_add(l, n);
		at += n;
		len -= n;
		r = tls_shake(l);
		MUST(r == TLS_WANT_BYTES || r == TLS_FAILED || r == TLS_WANT_ROOM);
	}
	if (r == TLS_WANT_BYTES)
		tls_in_end(l);
	if (r != TLS_WANT_ROOM)
		MUST(tls_shake(l) == TLS_FAILED && tls_link_err(l) < 0 && tls_link_why(l)[0]);
	MUST(!tls_link_peer(l)[0] && !tls_link_peer_is(l, "a"));
	tls_link_close(l);
	tls_unref(tls);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] == 's')
		try_secrets(data + 1, size - 1);
	else
		try_link(data + 1, size - 1, data[0] ? data[0] : 100000);
	return 0;
}
