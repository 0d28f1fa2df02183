/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may come to a server, and what he may have: the options of remora serve about it.
 *
 * Place: called by serve.c, before anything is opened, and at SIGHUP. The rules are the server's
 * business (front/server_allow.c), the files those of io/tls_files.c.
 *
 * Invariants: an address that other machines can reach is listened on with TLS, or because the user
 * said --insecure. A file that has become bad takes nothing from a server that runs.
 *
 * Locking: none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cmd/serve.h"

static int tls_open_files(struct serve *s, struct err *e)
{
	const struct tls_options o = { .server = true, .cert = s->tls_cert, .key = s->tls_key,
				       .ca = s->tls_ca, .psk = s->psk };

	if (!o.cert && !o.key && !o.ca && !o.psk)
		return 0;
	if (s->insecure)
		return err_set(e, -EINVAL, "--insecure is for a server without --tls-... and --psk");
	if ((o.cert || o.key || o.ca) && !(o.cert && o.key && o.ca))
		return err_set(e, -EINVAL,
			       "--tls-cert, --tls-key and --tls-ca go together: --tls-%s is missing",
			       !o.cert ? "cert" : !o.key ? "key" : "ca");
	return tls_open(&s->tls, &o, e);
}

int serve_access_open(struct serve *s, struct err *e)
{
	int r = tls_open_files(s, e);

	for (size_t i = 0; !r && i < s->listen.count; i++) {
		r = sock_parse(s->listen.at[i], &s->addr[i], e);
		if (r)
			return err_prefix(e, "--listen");
		if (!sock_is_local(&s->addr[i]) && !s->tls && !s->insecure)
			return err_set(e, -EINVAL,
				       "--listen %s: other machines can reach it, so clients must "
				       "say who they are: give --tls-cert, --tls-key and --tls-ca, "
				       "or --psk (remora keygen makes them), or, at your own risk, "
				       "--insecure",
				       s->listen.at[i]);
	}
	return r;
}

/* "WHO=EXPORT,EXPORT:ro"; the text is cut into pieces, which the rules name. */
static int allow_parse(struct serve *s, char *text, struct err *e)
{
	char *to = strchr(text, '='), *name;
	size_t len = strlen(text);
	bool read_only = len > 3 && !strcmp(text + len - 3, ":ro");

	if (read_only)
		text[len - 3] = '\0';
	if (!to || to == text || !to[1])
		return err_set(e, -EINVAL, "--allow %s: WHO=NAME[,NAME]...[:ro] is meant", text);
	*to++ = '\0';
	while ((name = strsep(&to, ","))) {
		struct server_allow *more = reallocarray(s->allowed, s->allowed_count + 1,
							 sizeof(*more));

		if (!more)
			return err_sys(e, -ENOMEM, "--allow");
		s->allowed = more;
		more[s->allowed_count++] = (struct server_allow){
			.who = text,
			.export = strcmp(name, "*") ? name : NULL,
			.read_only = read_only,
		};
	}
	return 0;
}

int serve_access_rules(struct serve *s, struct server_options *o, struct err *e)
{
	for (size_t i = 0; i < s->allow.count; i++) {
		int r;

		s->allow_text[i] = strdup(s->allow.at[i]);
		if (!s->allow_text[i])
			return err_sys(e, -ENOMEM, "--allow");
		r = allow_parse(s, s->allow_text[i], e);
		if (r)
			return r;
	}
	o->allow = s->allowed;
	o->allow_count = s->allowed_count;
	o->tls = s->tls;
	o->anywhere = s->insecure;
	return 0;
}

void serve_access_reload(struct serve *s)
{
	const struct log *log = &s->run.env.log;
	struct err e = { 0 };
	struct tls *now;

	if (tls_reopen(&now, s->tls, &e)) {
		log_error(log, "SIGHUP: %s; what was read before stays in use", e.text);
		return;
	}
	tls_unref(s->tls);
	s->tls = now;
	server_tls_set(s->server, now);
	log_warn(log, "SIGHUP: certificates and secrets were read again, for connections from now on");
}

void serve_access_close(struct serve *s)
{
	tls_unref(s->tls);
	free(s->allowed);
	for (size_t i = 0; i < s->allow.count; i++)
		free(s->allow_text[i]);
}
