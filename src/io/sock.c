/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses of sockets as text, and the options that every socket gets. Set-up paths only. No
 * state, no locking.
 *
 * A unix path that begins with '@' is abstract (a name without a file). TCP buffers are left to the
 * kernel, which grows them with the link; setting them would stop that.
 */
#include "io/sock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/size.h"

#define UNIX_BUFFER_BYTES (1 << 20)

static int parse_unix(const char *path, struct sock_addr *ret, struct err *e)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&ret->ss;
	size_t len = strlen(path);

	if (!len)
		return err_set(e, -EINVAL, "unix: needs a path, as in unix:/run/remora.sock");
	if (len >= sizeof(un->sun_path))
		return err_set(e, -ENAMETOOLONG,
			       "the path of a unix socket has at most %zu bytes, this one has %zu: %s",
			       sizeof(un->sun_path) - 1, len, path);
	un->sun_family = AF_UNIX;
	memcpy(un->sun_path, path, len + 1);
	ret->domain = AF_UNIX;
	ret->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + 1);
	if (path[0] == '@') {
		un->sun_path[0] = '\0';
		ret->len--; /* an abstract name has no terminator */
	}
	return 0;
}

static const struct addrinfo *choose_addr(const struct addrinfo *all)
{
	/* "localhost" may be ::1 first on a machine without IPv6. */
	for (const struct addrinfo *a = all; a; a = a->ai_next) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)a->ai_addr;

		if (a->ai_family == AF_INET && ntohl(in->sin_addr.s_addr) >> 24 == 127)
			return a;
	}
	return all;
}

static int parse_inet(const char *text, struct sock_addr *ret, struct err *e)
{
	const char *colon = strrchr(text, ':'), *host = text;
	struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM }, *all = NULL;
	char name[256], port[8];
	const struct addrinfo *a;
	uint64_t number;
	size_t len;
	int err;

	if (!colon || colon == text)
		return err_set(e, -EINVAL, "an address is unix:PATH, HOST:PORT or [V6]:PORT, not \"%s\"", text);
	len = (size_t)(colon - text);
	if (text[0] == '[') {
		if (len < 3 || text[len - 1] != ']')
			return err_set(e, -EINVAL, "the ] is missing in \"%s\"", text);
		host++;
		len -= 2;
		hints.ai_family = AF_INET6;
		hints.ai_flags = AI_NUMERICHOST;
	} else if (memchr(text, ':', len)) {
		return err_set(e, -EINVAL, "an IPv6 address needs brackets, as in [::1]:10809, not \"%s\"", text);
	}
	if (len >= sizeof(name))
		return err_set(e, -ENAMETOOLONG, "the host name in \"%s\" is too long", text);
	err = number_parse(colon + 1, 0, 65535, &number, e);
	if (err) {
		err_prefix(e, "the port of \"%s\"", text);
		return err;
	}
	memcpy(name, host, len);
	name[len] = '\0';
	snprintf(port, sizeof(port), "%u", (unsigned)number);
	err = getaddrinfo(name, port, &hints, &all);
	if (err)
		return err_set(e, err == EAI_SYSTEM ? -errno : -EHOSTUNREACH, "the host \"%s\" is not known: %s", name,
			       gai_strerror(err));
	a = choose_addr(all);
	memcpy(&ret->ss, a->ai_addr, a->ai_addrlen);
	ret->len = a->ai_addrlen;
	ret->domain = a->ai_family;
	freeaddrinfo(all);
	return 0;
}

int sock_parse(const char *text, struct sock_addr *ret, struct err *e)
{
	*ret = (struct sock_addr){ .domain = AF_UNSPEC };
	if (strncmp(text, "unix:", 5) == 0)
		return parse_unix(text + 5, ret, e);
	return parse_inet(text, ret, e);
}

bool sock_is_local(const struct sock_addr *addr)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)&addr->ss;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&addr->ss;

	switch (addr->domain) {
	case AF_UNIX:
		return true;
	case AF_INET:
		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	case AF_INET6:
		return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
		       (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && in6->sin6_addr.s6_addr[12] == 127);
	}
	return false;
}

const char *sock_format(const struct sock_addr *addr, char *buf)
{
	const struct sockaddr_un *un = (const struct sockaddr_un *)&addr->ss;
	const struct sockaddr_in *in = (const struct sockaddr_in *)&addr->ss;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&addr->ss;
	size_t path_at = offsetof(struct sockaddr_un, sun_path);
	char host[INET6_ADDRSTRLEN] = "?";

	switch (addr->domain) {
	case AF_UNIX:
		if (addr->len <= path_at)
			snprintf(buf, SOCK_TEXT_MAX, "unix:");
		else if (!un->sun_path[0])
			snprintf(buf, SOCK_TEXT_MAX, "unix:@%.*s", (int)(addr->len - path_at - 1), un->sun_path + 1);
		else
			snprintf(buf, SOCK_TEXT_MAX, "unix:%.*s", (int)(addr->len - path_at), un->sun_path);
		break;
	case AF_INET:
		inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
		snprintf(buf, SOCK_TEXT_MAX, "%s:%u", host, ntohs(in->sin_port));
		break;
	case AF_INET6:
		inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
		snprintf(buf, SOCK_TEXT_MAX, "[%s]:%u", host, ntohs(in6->sin6_port));
		break;
	default:
		snprintf(buf, SOCK_TEXT_MAX, "(no address)");
	}
	return buf;
}

/* Root may go beyond the system's limit. */
static void set_buffer(int fd, int force, int plain)
{
	const int bytes = UNIX_BUFFER_BYTES;

	if (setsockopt(fd, SOL_SOCKET, force, &bytes, sizeof(bytes)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, plain, &bytes, sizeof(bytes));
}

void sock_tune(int fd, int domain)
{
	const int on = 1;

	if (domain == AF_UNIX) {
		set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF);
		set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF);
		return;
	}
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}
