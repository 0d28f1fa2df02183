/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora unmount: ends mounts, when what was written is safe.
 *
 * Place: asks the mount's own process over its control socket, which does all of it. Where there is
 * none any more, only a dead mount, it clears that away.
 *
 * Invariants: nothing is taken away here while a process is there that could save something; and a
 * mount that is cleared away is one of ours, and has said itself that its process is gone.
 *
 * Locking: none; blocking calls.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <mntent.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/mount.h"

#define MOUNT_TYPE "fuse.remora"
#define HELPER "fusermount3"
#define FILES_MAX 1024u

struct unmount {
	struct common common;
	bool force, lazy;
	uint64_t timeout_ns;
	struct meter meter;
	char phase[16];
};

int mount_path(const char *path, char **ret, struct err *e)
{
	AUTO_FREE char *copy = strdup(path);
	AUTO_FREE char *dir = NULL;
	char *slash, *name;

	*ret = NULL;
	if (!copy)
		return err_sys(e, -ENOMEM, "%s", path);
	for (size_t len = strlen(copy); len > 1 && copy[len - 1] == '/'; len--)
		copy[len - 1] = '\0';
	slash = strrchr(copy, '/');
	name = slash ? slash + 1 : copy;
	if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
		return err_set(e, -EISDIR,
			       "%s is a directory, and a resource appears as a file: name a file",
			       path);
	if (slash)
		*slash = '\0';
	dir = realpath(!slash ? "." : *copy ? copy : "/", NULL);
	if (!dir)
		return err_sys(e, -errno, "%s: the directory that it shall be in", path);
	if (asprintf(ret, "%s/%s", strcmp(dir, "/") ? dir : "", name) < 0) {
		*ret = NULL;
		return err_sys(e, -ENOMEM, "%s", path);
	}
	return 0;
}

/* ---- dead mounts ---- */

/* What is mounted there last is ours. Only the table is asked. */
static bool is_ours(const char *path)
{
	FILE *in = setmntent("/proc/self/mounts", "re");
	const struct mntent *one;
	bool ours = false;

	if (!in)
		return false;
	while ((one = getmntent(in)))
		if (!strcmp(one->mnt_dir, path))
			ours = !strcmp(one->mnt_type, MOUNT_TYPE);
	endmntent(in);
	return ours;
}

static bool is_dead(const char *path)
{
	struct statx st;

	return is_ours(path) &&
	       statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_SIZE, &st) &&
	       (errno == ENOTCONN || errno == ECONNABORTED);
}

static int helper_run(const char *path)
{
	char program[] = HELPER, flags[] = "-uz", end[] = "--";
	AUTO_FREE char *copy = strdup(path);
	char *const argv[] = { program, flags, end, copy, NULL };
	pid_t pid;
	int status = 0, r;

	if (!copy)
		return -ENOMEM;
	r = posix_spawnp(&pid, HELPER, NULL, NULL, argv, environ);
	if (r)
		return -r;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return status ? -EPERM : 0;
}

/* True: it was a dead mount; *ret_code is how clearing it away went. */
static bool dead_clear(struct unmount *u, const char *path, int *ret_code)
{
	int r;

	if (!is_dead(path))
		return false;
	r = geteuid() ? helper_run(path) :
	    umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) ? -errno : 0;
	if (r) {
		say_error("%s: a mount whose process is gone could not be cleared away: %s", path,
			  strerror(-r));
		*ret_code = CMD_FAILED;
		return true;
	}
	say_note("%s: the process of this mount had died: what it had not flushed is lost; the dead "
		 "mount was cleared away",
		 path);
	if (u->common.json)
		out_json_line(json_pack("{s:o, s:b}", "unmounted", control_text(path), "died", 1));
	*ret_code = CMD_OK;
	return true;
}

/* ---- asking ---- */

static void progress(void *arg, json_t *what)
{
	struct unmount *u = arg;
	const char *phase = json_string_value(json_object_get(what, "phase"));
	json_int_t done = json_integer_value(json_object_get(what, "done")),
		   total = json_integer_value(json_object_get(what, "total"));

	if (u->common.quiet || !phase || done < 0 || total < done)
		return;
	if (strcmp(u->phase, phase)) {
		meter_clear(&u->meter);
		snprintf(u->phase, sizeof(u->phase), "%s", phase);
		u->meter.phase = NULL; /* anew */
	}
	meter_news(&u->meter, u->phase, (uint64_t)done, (uint64_t)total);
}

static uint64_t number_of(const json_t *answer, const char *name)
{
	json_int_t n = json_integer_value(json_object_get(answer, name));

	return n > 0 ? (uint64_t)n : 0;
}

static int failed(struct unmount *u, const char *target, const json_t *answer, struct err *e)
{
	uint64_t unsafe = number_of(answer, "unsafe_bytes");
	char size[SIZE_TEXT_MAX];
	int code = exit_of(e->code);

	if (e->code == -EBUSY)
		code = CMD_FAILED;
	else if (json_object_get(answer, "unsafe_bytes"))
		code = CMD_UNSAFE;
	if (u->common.json)
		out_json_line(json_pack("{s:o, s:o, s:s, s:I}", "failed", control_text(target),
					"error", control_text(e->text), "code",
					strerrorname_np(-e->code), "unsafe_bytes",
					(json_int_t)unsafe));
	if (code == CMD_UNSAFE)
		say_error("%s: %s\n  %s%s not safe; the process keeps it and goes on trying. When the "
			  "far side is there again,\n  repeat this; or give it up: remora unmount "
			  "--force %s",
			  target, e->text, unsafe ? size_format(unsafe, size) : "What was written",
			  unsafe ? " are" : " is", target);
	else
		say_error("%s: %s", target, e->text);
	return code;
}

static void succeeded(struct unmount *u, const char *target, const json_t *answer)
{
	uint64_t lost = number_of(answer, "lost_bytes"), users = number_of(answer, "users");
	char size[SIZE_TEXT_MAX];

	if (u->common.json)
		out_json_line(json_pack("{s:o, s:I, s:I}", "unmounted", control_text(target),
					"lost_bytes", (json_int_t)lost, "users",
					(json_int_t)users));
	if (lost)
		say_note("%s: %s that were not safe are lost", target, size_format(lost, size));
	if (users)
		say_note("%s: %llu still %s it open; what they write from now on is made safe when "
			 "they are done",
			 target, (unsigned long long)users, users == 1 ? "has" : "have");
}

static int ask(struct unmount *u, struct control_peer *peer, const char *target)
{
	struct err e = { 0 };
	json_t *answer = NULL;
	int r, code = CMD_OK;

	if (strcmp(peer->kind, "mount")) {
		say_error("%s is no mount but a %s: kill %d ends it", target, peer->kind,
			  (int)peer->pid);
		return CMD_USAGE;
	}
	r = control_ask(peer, "unmount",
			json_pack("{s:b, s:b, s:I}", "force", u->force, "lazy", u->lazy,
				  "timeout_ns", (json_int_t)MIN(u->timeout_ns, (uint64_t)INT64_MAX)),
			progress, u, &answer, &e);
	meter_clear(&u->meter);
	if (r)
		code = failed(u, peer->target, answer, &e);
	else
		succeeded(u, peer->target, answer);
	json_decref(answer);
	return code;
}

static int unmount_one(struct unmount *u, const char *file)
{
	AUTO_FREE char *path = NULL;
	struct control_peer peer;
	struct err e = { 0 };
	int r, code;

	u->meter = (struct meter){ 0 };
	u->phase[0] = '\0';
	if (!mount_path(file, &path, &e) && dead_clear(u, path, &code))
		return code;
	r = control_find(&peer, file, &e);
	if (r && path && is_ours(path)) {
		say_error("%s: it is mounted, but its process does not answer here: it is another "
			  "user's, or has another REMORA_RUNTIME_DIR (%s)",
			  file, e.text);
		return CMD_UNREACHABLE;
	}
	if (r)
		return say_failed(&e, NULL);
	code = ask(u, &peer, file);
	control_peer_done(&peer);
	/* It was killed while it was at it. */
	if (code && path && dead_clear(u, path, &r))
		return CMD_UNSAFE;
	return code;
}

static const char unmount_more[] =
	"Waits until everything that was written is safe on the far side. If that fails the mount\n"
	"stays, nothing is lost, and the exit status is 6.\n"
	"\n"
	"Examples:\n"
	"  remora unmount disk.img\n"
	"  remora unmount --lazy disk.img\n"
	"  remora unmount --force disk.img\n";

int cmd_unmount(int argc, char **argv)
{
	struct unmount u = { 0 };
	const struct opt options[] = {
		{ "force", 'f', OPT_FLAG, NULL,
		  "at once: gives up what is not safe, and tells how much that is", &u.force },
		{ "lazy", 'l', OPT_FLAG, NULL,
		  "also while somebody has it open: he goes on, and the process ends behind him",
		  &u.lazy },
		{ "timeout", 't', OPT_TIME, "TIME",
		  "gives up after so long, and the mount stays; default: the mount's --deadline "
		  "alone counts",
		  &u.timeout_ns },
		{ 0 },
	};
	const struct usage usage = {
		.name = "unmount",
		.args = "[OPTION]... FILE...",
		.options = options,
		.more = unmount_more,
		.args_min = 1,
		.args_max = FILES_MAX,
		.json = true,
	};
	int r = options_parse(&usage, &u.common, argc, argv), code = CMD_OK;

	if (r >= 0)
		return r;
	for (int i = optind; i < argc; i++) {
		r = unmount_one(&u, argv[i]);
		code = code ? code : r;
	}
	return out_end(code);
}
