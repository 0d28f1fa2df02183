/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses as text: "unix:PATH", "HOST:PORT", "[V6]:PORT". Names are looked up with getaddrinfo,
 * which blocks: set-up paths only.
 */
#ifndef REMORA_IO_SOCK_H
#define REMORA_IO_SOCK_H

#include <netinet/in.h>
#include <sys/un.h>

#include "base/err.h"
#include "io/loop.h"

struct sock_addr {
	struct sockaddr_storage ss;
	socklen_t len;
	int domain;
};

MUST_USE int sock_parse(const char *text, struct sock_addr *ret, struct err *e);

/* True for unix sockets and loopback addresses: what may be listened on in clear. */
bool sock_is_local(const struct sock_addr *addr);

/* "unix:/run/x", "127.0.0.1:10809"; returns buf. */
#define SOCK_TEXT_MAX 160
const char *sock_format(const struct sock_addr *addr, char *buf);

/* TCP: no delay, keep-alive (buffers are the kernel's business, which grows them); unix: large
 * buffers. Failures are harmless and ignored. */
void sock_tune(int fd, int domain);

#endif
