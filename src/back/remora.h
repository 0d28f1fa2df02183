/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client of the Remora protocol, for those who open it without a spec: tests, commands, the
 * public API. From a spec it is back_remora_open() (back/back.h).
 */
#ifndef REMORA_BACK_REMORA_H
#define REMORA_BACK_REMORA_H

#include "io/sock.h"
#include "io/tls.h"
#include "store/store.h"

struct remora_options {
	struct sock_addr addr;
	/* >= 0: connected already, owned from the call on; there is no reconnecting then */
	int fd;
	const char *name;      /* of the resource; "" = the only one that the server has */
	unsigned connections;  /* 0 = 2 */
	uint64_t for_ns;       /* how long requests wait for a lost server; NEVER_NS = for ever */
	uint64_t connect_ns;   /* to connect and to be greeted; 0 = 10 s */
	bool read_only;
	struct range first;    /* to be read along with the hello; length 0 = nothing */
	struct tls *tls;       /* NULL = in clear; counted, not taken */
	/* through ssh, in place of addr: [USER@]HOST (NULL = not), port (NULL = ssh's own), path of
	 * the resource there, from the home directory or not, and what remora is called there */
	char *ssh_host; /* the only one that is the caller's to free */
	const char *ssh_port, *ssh_path, *ssh_command;
	bool ssh_home;
};

#define REMORA_FOR_DEFAULT_NS (60 * NS_PER_S)
#define REMORA_CONNECT_DEFAULT_NS (10 * NS_PER_S)

/* Zeros, but fd -1, name "" and the defaults of the spec. */
void remora_options_init(struct remora_options *options);

/* Set-up code: runs the loop until the server has answered. */
MUST_USE int remora_connect(struct store **ret, struct loop *loop,
			    const struct remora_options *options, struct err *e);

struct remora_counts {
	unsigned connections, up; /* wanted, and there */
	uint64_t connects, losses, replayed, restarts;
	uint64_t first_hits; /* reads answered from what came with the hello */
	/* of streams that have ended, and of those that live */
	uint64_t bytes_received, bytes_sent;
};
void remora_count(struct store *store, struct remora_counts *ret);

struct remora_entry {
	char name[NAME_LEN_MAX + 1];
	uint64_t size;
	bool read_only;
};

/* What a server has. Set-up code. *ret is the caller's to free(). fd, tls and connect_ns as in the
 * options. */
MUST_USE int remora_list(struct loop *loop, const struct remora_options *options,
			 struct remora_entry **ret, size_t *ret_count, struct err *e);

/* What a spec of the kinds that back_remora_open() knows says of the server, for those who do not
 * open the resource: its name is of no interest. options->tls is the caller's. */
struct spec;
MUST_USE int remora_options_parse(const struct spec *spec, struct remora_options *options,
				  struct err *e);

#endif
