/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may have what of a server's resources: the rules, and what follows from them for the list,
 * for names that are asked for, and for those who are turned away.
 *
 * Place: between the greeting (server_conn.c) and the exports (server.c). Who a client is says TLS
 * (io/tls.h), or, on a unix socket, the kernel.
 *
 * Invariants: without rules everybody who got in may have everything; with rules nobody has what
 * none gives him. What a client may not have looks to it like what is not there: the same code, the
 * same text, and no word of it in the list.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "front/server_int.h"

#define TOLD_MAX 20u /* strangers told of in one period */
#define TOLD_PERIOD_NS (60 * NS_PER_S)

/* ---- rules ---- */

static const struct sexport *export_named(const struct server *sv, const char *name)
{
	for (size_t i = 0; i < sv->export_count; i++)
		if (!strcmp(sv->exports[i].name, name))
			return &sv->exports[i];
	return NULL;
}

static int who_check(const char *who, struct err *e)
{
	uint64_t uid;
	int r;

	if (!*who || strlen(who) > TLS_IDENTITY_MAX)
		return err_set(e, -EINVAL, "a client's name has 1 to %u characters: %.40s...",
			       TLS_IDENTITY_MAX, who);
	if (strncmp(who, "uid:", 4) != 0)
		return 0;
	r = number_parse(who + 4, 0, UINT32_MAX, &uid, e);
	return r ? err_prefix(e, "%s", who) : 0;
}

int sallows_take(struct server *sv, const struct server_options *o, struct err *e)
{
	if (o->allow_count > SERVER_ALLOW_MAX)
		return err_set(e, -E2BIG, "more than %u rules of who may have what",
			       SERVER_ALLOW_MAX);
	sv->allow = o->allow_count ? calloc(o->allow_count, sizeof(*sv->allow)) : NULL;
	if (o->allow_count && !sv->allow)
		return err_sys(e, -ENOMEM, "server");
	for (size_t i = 0; i < o->allow_count; i++) {
		const struct server_allow *from = &o->allow[i];
		struct sallow *to = &sv->allow[i];
		int r = who_check(from->who, e);

		if (r)
			return r;
		snprintf(to->who, sizeof(to->who), "%s", from->who);
		to->read_only = from->read_only;
		to->export = from->export ? export_named(sv, from->export) : NULL;
		if (from->export && !to->export)
			return err_set(e, -ENOENT, "%s is allowed \"%s\", which is not served",
				       from->who, from->export);
	}
	sv->allow_count = o->allow_count;
	return 0;
}

static bool is_who(const struct sconn *c, const char *who)
{
	char uid[24];

	if (!strcmp(who, "*"))
		return true;
	if (stream_is_secure(&c->stream))
		return strncmp(who, "uid:", 4) != 0 && stream_peer_is(&c->stream, who);
	if (!c->has_uid)
		return false;
	snprintf(uid, sizeof(uid), "uid:%lu", (unsigned long)c->uid);
	return !strcmp(who, uid);
}

bool sconn_may(const struct sconn *c, const struct sexport *x, bool *ret_read_only)
{
	const struct server *sv = c->sv;
	bool may = !sv->allow_count, write = may;

	for (size_t i = 0; i < sv->allow_count && !write; i++) {
		const struct sallow *a = &sv->allow[i];

		if ((a->export && a->export != x) || !is_who(c, a->who))
			continue;
		may = true;
		write = !a->read_only;
	}
	*ret_read_only = !write;
	return may;
}

/* ---- names ---- */

struct sexport *sconn_export_find(struct sconn *c, const uint8_t *name, size_t len)
{
	struct server *sv = c->sv;
	struct sexport *only = NULL;
	size_t count = 0;
	bool read_only;

	for (size_t i = 0; i < sv->export_count; i++) {
		struct sexport *x = &sv->exports[i];

		if (!sconn_may(c, x, &read_only))
			continue;
		if (strlen(x->name) == len && !memcmp(x->name, name, len))
			return x;
		only = x;
		count++;
	}
	return !len && count == 1 ? only : NULL;
}

const uint8_t *sconn_list(struct sconn *c, size_t *ret_len)
{
	struct server *sv = c->sv;
	size_t len = WIRE_LIST_LEN;
	uint32_t count = 0;

	*ret_len = sv->list_len;
	if (!sv->allow_count)
		return sv->list;
	c->list = malloc(sv->list_len); /* it is never longer than the whole */
	if (!c->list)
		return NULL;
	for (size_t i = 0; i < sv->export_count; i++) {
		const struct sexport *x = &sv->exports[i];
		struct wire_entry entry = { .size = x->store->info.size,
					    .name_len = (uint16_t)strlen(x->name),
					    .name = (const uint8_t *)x->name };
		bool read_only;

		if (!sconn_may(c, x, &read_only))
			continue;
		entry.read_only = x->read_only || read_only;
		len = wire_list_add(c->list, sv->list_len, len, &entry);
		CHECK(len);
		count++;
	}
	wire_list_finish(c->list, len, count);
	*ret_len = len;
	return c->list;
}

/* "there are: a, b, c", of those it may have, as far as there is room. */
void sconn_refuse_name(struct sconn *c, const uint8_t *name, size_t len)
{
	struct server *sv = c->sv;
	char text[WIRE_REFUSAL_TEXT_MAX], who[SCONN_WHO_MAX], why[NAME_LEN_MAX + 64];
	const char *before = "; there are: ";
	bool read_only;
	int n;

	if (len && sv->allow_count)
		n = snprintf(text, sizeof(text), "there is no resource \"%.*s\" for %s", (int)len,
			     (const char *)name, sconn_who(c, who));
	else if (len)
		n = snprintf(text, sizeof(text), "no resource is named \"%.*s\"", (int)len,
			     (const char *)name);
	else
		n = snprintf(text, sizeof(text), "there are %s resources: a name is needed",
			     sv->allow_count ? "none or several" : "several");
	for (size_t i = 0; !sv->list_hidden && i < sv->export_count; i++) {
		const struct sexport *x = &sv->exports[i];
		size_t room = sizeof(text) - (size_t)n;

		if (!sconn_may(c, x, &read_only))
			continue;
		if (room < strlen(x->name) + sizeof("; there are: , ..."))
			break;
		n += snprintf(text + n, room, "%s%s", before, x->name);
		before = ", ";
	}
	if (sv->allow_count) {
		snprintf(why, sizeof(why), "it asked for \"%.*s\", which it may not have, or which "
			 "is not there", (int)len, (const char *)name);
		server_tell_refused(sv, c, why);
	}
	sconn_refuse(c, sv->allow_count ? WIRE_EACCES : WIRE_ENOENT, "%s", text);
}

/* ---- telling ---- */

const char *sconn_who(const struct sconn *c, char *buf)
{
	const char *peer = stream_peer(&c->stream);
	struct sock_addr addr = { .len = sizeof(addr.ss) };
	char at[SOCK_TEXT_MAX] = "";

	if (strcmp(loop_engine_name(c->sv->loop), "sim") != 0 &&
	    getpeername(c->stream.fd, (struct sockaddr *)&addr.ss, &addr.len) == 0) {
		addr.domain = addr.ss.ss_family;
		if (addr.domain != AF_UNIX)
			sock_format(&addr, at);
	}
	if (*peer)
		snprintf(buf, SCONN_WHO_MAX, "%s%s%s", peer, *at ? " at " : "", at);
	else if (c->has_uid)
		snprintf(buf, SCONN_WHO_MAX, "uid:%lu", (unsigned long)c->uid);
	else
		snprintf(buf, SCONN_WHO_MAX, "%s", *at ? at : "a client");
	return buf;
}

void server_tell_refused(struct server *sv, const struct sconn *c, const char *why)
{
	uint64_t now = loop_now(sv->loop);
	const struct log *log = &loop_env(sv->loop)->log;
	char who[SCONN_WHO_MAX];

	if (now - sv->told_since_ns >= TOLD_PERIOD_NS) {
		sv->told_since_ns = now;
		sv->told = 0;
	}
	if (++sv->told > TOLD_MAX)
		log_debug(log, "server: %s was refused: %s", sconn_who(c, who), why);
	else
		log_warn(log, "server: %s was refused: %s%s", sconn_who(c, who), why,
			 sv->told == TOLD_MAX ? " (for a minute, others are not told of)" : "");
}
