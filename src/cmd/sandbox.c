/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sandbox of a server: another user, no new privileges, Landlock, a filter of system calls.
 *
 * Place: remora serve, between the last thing that it opens and the first client that it answers.
 *
 * Order, each step with what the former leaves: limits; the rules of Landlock (paths that only root
 * may reach); the user (needs root); no new privileges (Landlock and the filter need it); Landlock,
 * which a thread has for itself and those it starts, so the pool starts its threads anew; the
 * filter, for all threads at once, last.
 *
 * Invariants: nothing here can be undone by the process. After sandbox_enter() with --user, no id
 * of the process, real, effective or saved, is another than that user's, and it has no further
 * group.
 *
 * Locking: none.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/types.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/sandbox.h"
#include "io/pool.h"

/* ---- Landlock: include/uapi/linux/landlock.h of Linux 6.12, whose header Debian 12 does not have.
 * The three system calls have the same numbers on every machine. ---- */

#define LL_CREATE 444
#define LL_ADD_RULE 445
#define LL_RESTRICT 446
#define LL_VERSION_FLAG 1u
#define LL_RULE_PATH 1

#define LL_FS_EXECUTE (1ULL << 0)
#define LL_FS_WRITE_FILE (1ULL << 1)
#define LL_FS_READ_FILE (1ULL << 2)
#define LL_FS_READ_DIR (1ULL << 3)
#define LL_FS_REMOVE_FILE (1ULL << 5)
#define LL_FS_V1 ((1ULL << 13) - 1)
#define LL_FS_REFER (1ULL << 13)     /* 2 */
#define LL_FS_TRUNCATE (1ULL << 14)  /* 3 */
#define LL_FS_IOCTL_DEV (1ULL << 15) /* 5 */
#define LL_NET_TCP 3ULL		     /* 4: bind, connect */
#define LL_SCOPE_ALL 3ULL	     /* 6: abstract unix sockets, signals */

struct ll_ruleset {
	__u64 fs, net, scoped;
};

struct ll_path {
	__u64 allowed;
	__s32 parent_fd;
} __attribute__((packed));

static long ll_version(void)
{
	return syscall(LL_CREATE, NULL, 0, LL_VERSION_FLAG);
}

static __u64 ll_handled(long version)
{
	return LL_FS_V1 | (version >= 2 ? LL_FS_REFER : 0) | (version >= 3 ? LL_FS_TRUNCATE : 0) |
	       (version >= 5 ? LL_FS_IOCTL_DEV : 0);
}

static __u64 ll_rights(const struct sandbox_path *p, bool is_dir, __u64 handled)
{
	const __u64 of_files = LL_FS_WRITE_FILE | LL_FS_READ_FILE | LL_FS_TRUNCATE;
	__u64 rights = 0;

	if (p->rights & SANDBOX_READ)
		rights |= LL_FS_READ_FILE | LL_FS_READ_DIR;
	if (p->rights & SANDBOX_CHANGE)
		rights |= handled & ~(LL_FS_EXECUTE | LL_FS_IOCTL_DEV);
	if (p->rights & SANDBOX_REMOVE)
		rights |= LL_FS_REMOVE_FILE;
	return rights & handled & (is_dir ? ~0ULL : of_files);
}

static int ll_add(int ruleset, const struct sandbox_path *p, __u64 handled)
{
	AUTO_FD int fd = open(p->path, O_PATH | O_CLOEXEC);
	struct ll_path rule = { .parent_fd = fd };
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		return errno == ENOENT ? 0 : -errno;
	rule.allowed = ll_rights(p, S_ISDIR(st.st_mode), handled);
	if (!rule.allowed)
		return 0;
	return syscall(LL_ADD_RULE, ruleset, LL_RULE_PATH, &rule, 0) ? -errno : 0;
}

/* The rules, while the paths can still be opened: a user who is not root may have no right to a
 * directory on the way. The descriptor, or -errno. */
static int ll_prepare(struct sandbox *b, int *ret_version)
{
	long version = ll_version();
	struct ll_ruleset rules = { 0 };
	AUTO_FD int fd = -1;
	size_t len = sizeof(rules.fs);

	if (version < 0)
		return -errno;
	rules.fs = ll_handled(version);
	if (version >= 4) {
		len = sizeof(rules.fs) + sizeof(rules.net);
		rules.net = b->net ? 1 : LL_NET_TCP; /* it has bound what it wants to */
	}
	if (version >= 6) {
		len = sizeof(rules);
		rules.scoped = b->net ? 2 : LL_SCOPE_ALL;
	}
	fd = (int)syscall(LL_CREATE, &rules, len, 0);
	if (fd < 0)
		return -errno;
	for (size_t i = 0; i < b->paths; i++) {
		int r = ll_add(fd, &b->path[i], rules.fs);

		if (r)
			return r;
	}
	*ret_version = (int)version;
	return TAKE_FD(fd);
}

/* ---- paths ---- */

int sandbox_path_add(struct sandbox *b, const char *path, unsigned rights)
{
	char *copy;

	for (size_t i = 0; i < b->paths; i++)
		if (!strcmp(b->path[i].path, path)) {
			b->path[i].rights |= rights;
			return 0;
		}
	if (b->paths == SANDBOX_PATHS_MAX)
		return -E2BIG;
	copy = strdup(path);
	if (!copy)
		return -ENOMEM;
	b->path[b->paths++] = (struct sandbox_path){ copy, rights };
	return 0;
}

void sandbox_paths_free(struct sandbox *b)
{
	for (size_t i = 0; i < b->paths; i++)
		free(b->path[i].path);
	b->paths = 0;
}

static bool opens_files(const struct sandbox *b)
{
	for (size_t i = 0; i < b->paths; i++)
		if (b->path[i].rights & (SANDBOX_READ | SANDBOX_CHANGE))
			return true;
	return false;
}

/* ---- the user ---- */

static int user_find(const char *name, uid_t *ret_uid, gid_t *ret_gid, bool *ret_group,
		     struct err *e)
{
	const struct passwd *pw = getpwnam(name);
	uint64_t number;

	if (!pw && !number_parse(name, 0, UINT32_MAX - 1, &number, NULL)) {
		pw = getpwuid((uid_t)number);
		*ret_uid = (uid_t)number;
	} else if (!pw) {
		return err_set(e, -EINVAL, "--user: there is no user '%s'", name);
	}
	*ret_group = pw != NULL;
	if (pw) {
		*ret_uid = pw->pw_uid;
		*ret_gid = pw->pw_gid;
	}
	return 0;
}

static int group_find(const char *name, gid_t *ret, struct err *e)
{
	const struct group *gr = getgrnam(name);
	uint64_t number;

	if (gr)
		*ret = gr->gr_gid;
	else if (!number_parse(name, 0, UINT32_MAX - 1, &number, NULL))
		*ret = (gid_t)number;
	else
		return err_set(e, -EINVAL, "--user: there is no group '%s'", name);
	return 0;
}

int sandbox_user_parse(struct sandbox *b, const char *text, struct err *e)
{
	char name[sizeof(b->user)], *colon;
	bool group = false;
	int r;

	if (strlen(text) >= sizeof(name))
		return err_set(e, -EINVAL, "--user %s: NAME[:GROUP] is meant", text);
	snprintf(name, sizeof(name), "%s", text);
	memcpy(b->user, name, sizeof(name));
	colon = strchr(name, ':');
	if (colon)
		*colon++ = '\0';
	r = user_find(name, &b->uid, &b->gid, &group, e);
	if (!r && colon)
		r = group_find(colon, &b->gid, e);
	if (r)
		return r;
	if (!group && !colon)
		return err_set(
			e, -EINVAL,
			"--user %s: no account has that number: say which group, as in --user %s:65534",
			text, text);
	if (!b->uid)
		return err_set(e, -EINVAL, "--user %s: that is root, who would keep all his rights",
			       text);
	if (geteuid() && (geteuid() != b->uid || getegid() != b->gid))
		return err_set(e, -EPERM, "--user %s: only root can become another user", text);
	b->user_given = true;
	return 0;
}

int sandbox_user_drop(const struct sandbox *b, struct err *e)
{
	uid_t uid[3];
	gid_t gid[3];

	if (!b->user_given || geteuid())
		return 0;
	if (setgroups(1, &b->gid) || setresgid(b->gid, b->gid, b->gid) ||
	    setresuid(b->uid, b->uid, b->uid))
		return err_sys(e, -errno, "--user %s", b->user);
	/* Believing is not enough: whoever ignores a failure here serves as root. */
	if (getresuid(&uid[0], &uid[1], &uid[2]) || getresgid(&gid[0], &gid[1], &gid[2]) ||
	    uid[0] != b->uid || uid[1] != b->uid || uid[2] != b->uid || gid[0] != b->gid ||
	    gid[1] != b->gid || gid[2] != b->gid || getgroups(0, NULL) != 1 || !setuid(0))
		return err_set(e, -EPERM, "--user %s: the rights of root could not be given up",
			       b->user);
	return 0;
}

/* ---- all of it ---- */

static void missing_add(struct sandbox *b, const char *what, int err)
{
	size_t len = strlen(b->missing);

	len += (size_t)snprintf(b->missing + len, sizeof(b->missing) - len, "%s%s", len ? ", " : "",
				what);
	if (err && len < sizeof(b->missing))
		snprintf(b->missing + len, sizeof(b->missing) - len, " (%s)",
			 err == -ENOSYS || err == -EOPNOTSUPP ? "this kernel does not have it"
							      : strerror(-err));
}

/* Cores would hold what clients wrote, and keys. A limit that cannot be lowered is no reason to
 * stop. */
static void limits_lower(void)
{
	struct rlimit limit = { 0, 0 };

	(void)setrlimit(RLIMIT_CORE, &limit);
	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_max = limit.rlim_cur;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* Builds with sanitizers: what they read at the end. */
static int sanitizers_let(struct sandbox *b)
{
	return SANDBOX_SANITIZED ? sandbox_path_add(b, "/proc", SANDBOX_READ) : 0;
}

/* With the user's rights: no new privileges, Landlock, the filter. */
static void rights_give_up(struct sandbox *b, struct loop *loop, int rules, int version)
{
	int r = rules < 0 ? rules : 0;

	/* A process that has changed its user cannot be traced, not even by what it starts. */
	if (SANDBOX_SANITIZED)
		(void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		missing_add(b, "no new privileges", -errno);
	else
		b->no_new_privs = true;
	if (b->exec) {
		missing_add(b, "Landlock and the filter of system calls: a resource needs programs",
			    0);
		return;
	}
	if (!r && syscall(LL_RESTRICT, rules, 0))
		r = -errno;
	if (r)
		missing_add(b, "Landlock", r);
	else
		b->landlock = version;
	pool_renew(loop);
	r = sandbox_filter_install(b->net, opens_files(b));
	if (r)
		missing_add(b, "the filter of system calls", r);
	else
		b->seccomp = true;
}

int sandbox_enter(struct sandbox *b, struct loop *loop, struct err *e)
{
	int version = 0, rules, r = sanitizers_let(b);

	if (r)
		return err_sys(e, r, "the sandbox");
	limits_lower();
	rules = ll_prepare(b, &version);
	r = sandbox_user_drop(b, e);
	if (!r) {
		b->on = true;
		rights_give_up(b, loop, rules, version);
	}
	if (rules >= 0)
		close(rules);
	return r;
}
