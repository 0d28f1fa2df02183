/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a server gives up before it answers the first client, and what it may keep: the paths that
 * its resources open while it serves.
 *
 * Place: called by serve.c; sandbox.c does it.
 *
 * Invariants: what a spec needs is taken from the spec. A back end that is not known here is taken
 * for one that makes connections; one that starts programs has no filter, and the log says so.
 *
 * Locking: none.
 */
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "cmd/control_int.h"
#include "cmd/serve.h"
#include "store/spec.h"

static bool is_one_of(const char *word, const char *const *words)
{
	while (*words && strcmp(word, *words))
		words++;
	return *words;
}

/* A file may be replaced by another of its name: its directory is what has to be readable. */
static int beside_add(struct sandbox *b, const char *path)
{
	AUTO_FREE char *copy = strdup(path);

	return copy ? sandbox_path_add(b, dirname(copy), SANDBOX_READ) : -ENOMEM;
}

static int spec_look(struct sandbox *b, const char *text);

/* The value of an option: a spec within the spec, a directory, or a file that is opened once more.
 */
static int value_look(struct sandbox *b, const char *value, bool again)
{
	struct stat st;

	if (strchr(value, ':') || strchr(value, '|'))
		return spec_look(b, value);
	if (stat(value, &st))
		return 0;
	if (S_ISDIR(st.st_mode))
		return sandbox_path_add(b, value, SANDBOX_READ | SANDBOX_CHANGE);
	return again ? beside_add(b, value) : 0;
}

static int part_look(struct sandbox *b, const struct spec_part *part, bool is_back)
{
	static const char *const local[] = { "file",      "memory",    "pattern",
					     "callbacks", "directory", NULL };
	/* read once, or no path at all */
	static const char *const not_paths[] = { "command", "env",  "check", "mode",
						 "seed",    "unit", NULL };
	struct stat st;
	int r = 0;

	for (size_t i = 0; i < part->options && !r; i++)
		if (!is_one_of(part->option[i].key, not_paths))
			r = value_look(b, part->option[i].value, is_back);
	if (r || !is_back)
		return r;
	b->net = b->net || !is_one_of(part->name, local);
	b->exec = b->exec || strstr(part->name, "+ssh");
	/* What is one file stays open. */
	if (strcmp(part->name, "file") && *part->rest && !stat(part->rest, &st) &&
	    S_ISDIR(st.st_mode))
		r = sandbox_path_add(b, part->rest, SANDBOX_READ | SANDBOX_CHANGE);
	return r;
}

static int spec_look(struct sandbox *b, const char *text)
{
	CLEANUP(spec_done) struct spec spec = { 0 };
	int r = 0;

	if (spec_parse(text, &spec, NULL)) /* then it was no spec; what is one has been opened */
		return 0;
	for (size_t i = 0; i < spec.parts && !r; i++)
		r = part_look(b, &spec.part[i], i + 1 == spec.parts);
	return r;
}

static int paths_collect(struct serve *s)
{
	const char *tls[] = { s->tls_cert, s->tls_key, s->tls_ca, s->psk };
	int r = 0;

	for (size_t i = 0; i < s->count && !r; i++)
		r = spec_look(&s->sandbox, s->resource[i].spec);
	for (size_t i = 0; i < ARRAY_LEN(tls) && !r; i++)
		if (tls[i])
			r = beside_add(&s->sandbox, tls[i]);
	for (size_t i = 0; i < s->listen.count && !r; i++) {
		const struct sockaddr_un *un = (const struct sockaddr_un *)&s->addr[i].ss;
		AUTO_FREE char *copy = NULL;

		if (s->addr[i].domain != AF_UNIX || !un->sun_path[0])
			continue;
		copy = strdup(un->sun_path);
		r = copy ? sandbox_path_add(&s->sandbox, dirname(copy), SANDBOX_REMOVE) : -ENOMEM;
	}
	return r;
}

static int control_dir_add(struct serve *s)
{
	char dir[PATH_MAX];

	if (!s->control || control_dir(dir, sizeof(dir), false, NULL))
		return 0;
	return sandbox_path_add(&s->sandbox, dir, SANDBOX_REMOVE);
}

int serve_sandbox_open(struct serve *s, struct err *e)
{
	return s->user ? sandbox_user_parse(&s->sandbox, s->user, e) : 0;
}

static const char *sandbox_text(const struct sandbox *b, char *buf, size_t len)
{
	char landlock[32] = "";

	if (b->landlock)
		snprintf(landlock, sizeof(landlock), ", Landlock %d", b->landlock);
	snprintf(buf, len, "%s%s%s%s%s", b->user_given ? "user " : "", b->user,
		 b->user_given ? ", " : "", b->no_new_privs ? "no new privileges" : "", landlock);
	len -= MIN(len, strlen(buf));
	if (b->seccomp)
		snprintf(buf + strlen(buf), len, ", filter of system calls");
	return buf;
}

int serve_sandbox_enter(struct serve *s, struct err *e)
{
	const struct log *log = &s->run.env.log;
	struct sandbox *b = &s->sandbox;
	char text[256];
	int r;

	if (s->no_sandbox) {
		log_info(log, "sandbox: off (--no-sandbox)");
		return sandbox_user_drop(b, e);
	}
	r = paths_collect(s);
	if (!r)
		r = control_dir_add(s);
	if (r)
		return err_sys(e, r, "the sandbox: the paths of the resources");
	r = sandbox_enter(b, s->run.loop, e);
	sandbox_paths_free(b);
	if (r)
		return r;
	log_info(log, "sandbox: %s", sandbox_text(b, text, sizeof(text)));
	if (b->missing[0])
		log_warn(log, "sandbox: without %s", b->missing);
	return 0;
}

json_t *serve_sandbox_tell(const struct serve *s)
{
	const struct sandbox *b = &s->sandbox;

	return json_pack("{s:b, s:o?, s:b, s:b, s:i, s:o?}", "on", b->on, "user",
			 b->user_given ? control_text(b->user) : json_null(), "no_new_privs",
			 b->no_new_privs, "seccomp", b->seccomp, "landlock", b->landlock, "missing",
			 b->missing[0] ? json_string(b->missing) : json_null());
}
