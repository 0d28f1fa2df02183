/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who runs, and who of them is meant: the control sockets of this machine that answer.
 *
 * Place: between a command's TARGET and control_client.c.
 *
 * Invariants: a process that does not answer is named and left out after HELLO_NS, however many of
 * them there are: all are greeted before the first answer is waited for. What TARGET names is never
 * touched: it may be a mount whose process hangs, and to look at it would hang as well. So paths
 * are compared as text, behind the real path of the directory. A socket is removed only when nobody
 * listens on it, its process is gone, and its directory is its owner's alone.
 *
 * Locking: none.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/control.h"

#define HELLO_NS (2 * NS_PER_S)
#define PEERS_MAX 4096u

struct finder {
	struct control_peer *peer;
	size_t count, room;
	struct {
		dev_t dev;
		ino_t ino;
	} seen[256]; /* directories; the same one may be found under several names */
	size_t seen_count;
};

/* Once for each process, however often a command looks. */
static void silent_tell(pid_t pid, const char *path)
{
	static pid_t told[64];
	static size_t count;

	for (size_t i = 0; i < count; i++)
		if (told[i] == pid)
			return;
	if (count < ARRAY_LEN(told))
		told[count++] = pid;
	say_note("process %d (%s) does not answer, it is left out", (int)pid, path);
}

/* ---- sockets ---- */

/* "KIND-PID.sock" */
static bool socket_name_parse(const char *name, pid_t *ret_pid)
{
	size_t kind = strspn(name, "abcdefghijklmnopqrstuvwxyz");
	const char *digits = name + kind + 1;
	char number[16];
	uint64_t pid;
	size_t len;

	if (!kind || name[kind] != '-')
		return false;
	len = strspn(digits, "0123456789");
	if (!len || len >= sizeof(number) || strcmp(digits + len, ".sock"))
		return false;
	memcpy(number, digits, len);
	number[len] = '\0';
	if (number_parse(number, 1, INT_MAX, &pid, NULL))
		return false;
	*ret_pid = (pid_t)pid;
	return true;
}

/* Nobody listens on it. One that is just being opened does not listen either, so its process is
 * asked for, too. */
static void socket_dead(int dir, const char *name, pid_t pid)
{
	struct stat st;

	if (!kill(pid, 0) || errno != ESRCH)
		return;
	if (!fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) && S_ISSOCK(st.st_mode))
		unlinkat(dir, name, 0);
}

static void finder_add(struct finder *f, int dir, const char *path, const char *name, pid_t pid)
{
	AUTO_FREE char *full = NULL;
	struct control_peer peer;
	struct err e;
	int r;

	if (f->count == PEERS_MAX || asprintf(&full, "%s/%s", path, name) < 0)
		return;
	if (f->count == f->room) {
		size_t room = MAX(2 * f->room, 16u);
		struct control_peer *more = realloc(f->peer, room * sizeof(*more));

		if (!more)
			return;
		f->peer = more;
		f->room = room;
	}
	r = control_connect(&peer, full, &e);
	if (!r) {
		peer.pid = pid;
		r = control_hello_send(&peer, &e);
		if (!r)
			f->peer[f->count++] = peer;
		else
			control_peer_done(&peer);
	}
	if (r == -ECONNREFUSED)
		socket_dead(dir, name, pid);
	else if (r == -EAGAIN)
		silent_tell(pid, full);
}

/* ---- directories ---- */

/* All that one has. `owner`: whose it must be, and nobody else's to write to. `flags`: O_NOFOLLOW
 * where somebody may have laid a trap. */
static void finder_look(struct finder *f, const char *path, uid_t owner, int flags)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags);
	struct dirent *entry;
	struct stat st;
	pid_t pid;
	DIR *dir;

	if (fd < 0)
		return;
	if (fstat(fd, &st) || st.st_uid != owner || (st.st_mode & 022) ||
	    f->seen_count == ARRAY_LEN(f->seen))
		goto out;
	for (size_t i = 0; i < f->seen_count; i++)
		if (f->seen[i].dev == st.st_dev && f->seen[i].ino == st.st_ino)
			goto out;
	f->seen[f->seen_count].dev = st.st_dev;
	f->seen[f->seen_count++].ino = st.st_ino;
	dir = fdopendir(fd);
	if (!dir)
		goto out;
	while ((entry = readdir(dir)))
		if (socket_name_parse(entry->d_name, &pid))
			finder_add(f, dirfd(dir), path, entry->d_name, pid);
	closedir(dir);
	return;
out:
	close(fd);
}

/* Every "PREFIX NUMBER SUFFIX" below `parent`, where NUMBER is a user's; `only` (or -1) alone. */
static void finder_look_users(struct finder *f, const char *parent, const char *prefix,
			      const char *suffix, uid_t only)
{
	DIR *dir = opendir(parent);
	size_t len = strlen(prefix);
	struct dirent *entry;
	char path[PATH_MAX];
	uint64_t uid;

	while (dir && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, prefix, len) ||
		    number_parse(entry->d_name + len, 0, UINT32_MAX - 1, &uid, NULL) ||
		    (only != (uid_t)-1 && only != uid))
			continue;
		snprintf(path, sizeof(path), "%s/%s%s", parent, entry->d_name, suffix);
		finder_look(f, path, (uid_t)uid, O_NOFOLLOW);
	}
	if (dir)
		closedir(dir);
}

/* Ours first. What a user started from cron has another directory than what he started from his
 * session; root sees everybody's. */
static int finder_look_everywhere(struct finder *f, struct err *e)
{
	const char *given = getenv("REMORA_RUNTIME_DIR");
	uid_t only = geteuid() ? geteuid() : (uid_t)-1;
	char path[PATH_MAX];
	struct err why;
	int r = control_dir(path, sizeof(path), false, &why);

	if (r && r != -ENOENT) {
		if (e)
			*e = why;
		return r;
	}
	if (!r)
		finder_look(f, path, geteuid(), 0); /* control_dir() has looked at it */
	if (given && *given)
		return 0;
	if (!geteuid())
		finder_look(f, "/run/remora", 0, O_NOFOLLOW);
	finder_look_users(f, "/run/user", "", "/remora", only);
	finder_look_users(f, "/tmp", "remora-", "", only);
	return 0;
}

/* ---- who answers ---- */

static bool text_take(const json_t *hello, const char *name, char **ret)
{
	const char *text = json_string_value(json_object_get(hello, name));

	*ret = strdup(text ? text : "");
	return *ret && text;
}

/* Its answer to the hello that was sent. */
static int hello_read(struct control_peer *peer, struct err *e)
{
	json_t *hello = NULL;
	const char *kind;
	json_int_t pid;
	int r = control_wait(peer, NULL, NULL, &hello, e);

	if (!r) {
		kind = json_string_value(json_object_get(hello, "kind"));
		pid = json_integer_value(json_object_get(hello, "pid"));
		if (!kind || strlen(kind) >= sizeof(peer->kind) || pid <= 0 || pid > INT_MAX ||
		    !text_take(hello, "target", &peer->target) ||
		    !text_take(hello, "spec", &peer->spec)) {
			r = err_set(e, -EPROTO, "%s: no process of Remora", peer->path);
		} else {
			snprintf(peer->kind, sizeof(peer->kind), "%s", kind);
			peer->pid = (pid_t)pid;
			(void)text_take(hello, "version", &peer->version);
		}
	}
	json_decref(hello);
	return r;
}

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void finder_wait(struct finder *f)
{
	uint64_t until = clock_ns() + HELLO_NS;
	size_t kept = 0;

	for (size_t i = 0; i < f->count; i++) {
		struct control_peer *peer = &f->peer[i];
		uint64_t now = clock_ns();
		struct err e;
		int r;

		peer->silence_ns = now < until ? until - now : 1;
		r = hello_read(peer, &e);
		peer->silence_ns = 0;
		if (r == -ETIMEDOUT)
			silent_tell(peer->pid, peer->path);
		else if (r && r != -ECONNRESET) /* that one is just ending */
			say_note("%s; it is left out", e.text);
		if (r)
			control_peer_done(peer);
		else
			f->peer[kept++] = *peer;
	}
	f->count = kept;
}

static int peer_order(const void *a, const void *b)
{
	pid_t x = ((const struct control_peer *)a)->pid, y = ((const struct control_peer *)b)->pid;

	return (x > y) - (x < y);
}

int control_find_all(struct control_peer **ret, size_t *ret_count, struct err *e)
{
	struct finder f = { 0 };
	int r = finder_look_everywhere(&f, e);

	finder_wait(&f);
	if (f.count)
		qsort(f.peer, f.count, sizeof(*f.peer), peer_order);
	if (r) {
		control_peers_free(f.peer, f.count);
		return r;
	}
	*ret = f.peer;
	*ret_count = f.count;
	return 0;
}

void control_peers_free(struct control_peer *peers, size_t count)
{
	for (size_t i = 0; i < count; i++)
		control_peer_done(&peers[i]);
	free(peers);
}

/* ---- who is meant ---- */

/* The real path of the directory, and the name as it is. NULL: no such directory. */
static char *path_resolve(const char *path)
{
	size_t len = strlen(path);
	AUTO_FREE char *copy = NULL, *dir = NULL;
	char *slash, *full = NULL;

	while (len > 1 && path[len - 1] == '/')
		len--;
	copy = strndup(path, len);
	if (!copy)
		return NULL;
	slash = strrchr(copy, '/');
	if (!slash) {
		dir = realpath(".", NULL);
	} else {
		*slash = '\0';
		dir = realpath(slash == copy ? "/" : copy, NULL);
	}
	if (dir && asprintf(&full, "%s/%s", !strcmp(dir, "/") ? "" : dir,
			    slash ? slash + 1 : copy) < 0)
		full = NULL;
	return full;
}

static const char *path_of_address(const char *text)
{
	return strncmp(text, "unix:", 5) ? text : text + 5;
}

static bool peer_is(const struct control_peer *peer, const char *target, const char *resolved)
{
	const char *path = path_of_address(peer->target);
	AUTO_FREE char *full = NULL;

	if (!strcmp(peer->target, target) || !strcmp(peer->path, target))
		return true;
	if (!resolved)
		return false;
	if (!strcmp(peer->path, resolved))
		return true;
	if (*path != '/')
		return false;
	full = path_resolve(path);
	return full && !strcmp(full, resolved);
}

static int nobody(const struct control_peer *peer, size_t count, const char *target, struct err *e)
{
	char names[ERR_TEXT_MAX / 2];
	size_t len = 0;

	for (size_t i = 0; i < count && len < sizeof(names) - 1; i++)
		len += (size_t)snprintf(names + len, sizeof(names) - len, "%s%s", i ? ", " : "",
					peer[i].target);
	if (!count)
		return err_set(e, -ENOENT, "no mount or server is called %s: none runs here", target);
	return err_set(e, -ENOENT, "no mount or server is called %s; there %s: %s", target,
		       count == 1 ? "is" : "are", names);
}

/* Which one of them; count: none. */
static int peer_choose(const struct control_peer *peer, size_t count, const char *target,
		       size_t *ret, struct err *e)
{
	AUTO_FREE char *resolved = target ? path_resolve(path_of_address(target)) : NULL;
	uint64_t pid = 0;

	*ret = count;
	if (target && number_parse(target, 1, INT_MAX, &pid, NULL))
		pid = 0;
	for (size_t i = 0; i < count; i++) {
		if (target && !(pid && peer[i].pid == (pid_t)pid) &&
		    !peer_is(&peer[i], target, resolved))
			continue;
		if (*ret != count)
			return err_set(e, -EINVAL,
				       target ? "two processes have %s: name one of them by its "
						"process id, %d or %d"
					      : "%s%d and %d run: say which one is meant",
				       target ? target : "processes ", (int)peer[*ret].pid,
				       (int)peer[i].pid);
		*ret = i;
	}
	if (*ret < count)
		return 0;
	return target ? nobody(peer, count, target, e)
		      : err_set(e, -ENOENT, "no mount and no server runs here");
}

/* A socket that lies elsewhere than ours do. */
static int peer_of_socket(struct control_peer *ret, const char *path, struct err *e)
{
	const char *slash = strrchr(path, '/');
	pid_t pid;
	int r;

	if (!slash || !socket_name_parse(slash + 1, &pid))
		return -ENOENT;
	r = control_connect(ret, path, e);
	if (r)
		return r;
	ret->pid = pid;
	ret->silence_ns = HELLO_NS;
	r = control_hello_send(ret, e);
	if (!r)
		r = hello_read(ret, e);
	ret->silence_ns = 0;
	if (r)
		control_peer_done(ret);
	return r;
}

int control_find(struct control_peer *ret, const char *target, struct err *e)
{
	struct control_peer *peer = NULL;
	size_t count = 0, i;
	int r;

	*ret = (struct control_peer){ .fd = -1, .wake_fd = -1 };
	r = control_find_all(&peer, &count, e);
	if (r)
		return r;
	r = peer_choose(peer, count, target, &i, e);
	if (!r) {
		*ret = peer[i];
		peer[i] = (struct control_peer){ .fd = -1, .wake_fd = -1 };
	} else if (r == -ENOENT && target) {
		struct err why = { 0 };
		int other = peer_of_socket(ret, target, &why);

		if (other != -ENOENT) {
			r = other;
			if (e)
				*e = why;
		}
	}
	control_peers_free(peer, count);
	return r;
}
