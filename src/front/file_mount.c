/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mount points of the file front end: finding, making and clearing them; mount(2) and umount2(2)
 * for root, fusermount3 for everybody else.
 *
 * Place: file.c calls place_mount() when a file is opened, place_detach() and place_remove() at its
 * end.
 *
 * Invariants.
 *  1. Whether something is mounted is read from the mount table, never asked of the mount: who
 *     serves it may be us, or dead.
 *  2. Only a mount that has our device number is ever taken away, or one that says by itself that
 *     its process is gone.
 *  3. Only a mount point that was made here, and is the same empty file still, is removed.
 *
 * Locking: none. Everything here can block, and so runs on threads of the pool; one at a time per
 * place.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "front/file_int.h"

#define TYPE "fuse.remora"
#define HELPER "fusermount3"
#define DEAD_MAX 16 /* dead mounts, one over the other */
#define SAID_MAX 300

/* ---- the mount table ---- */

struct mount_line {
	dev_t dev;
	char type[32];
};

/* The table writes spaces and the like as \ooo. */
static void unescape(char *text)
{
	char *to = text;

	for (const char *at = text; *at; to++) {
		bool escaped = at[0] == '\\' && at[1] >= '0' && at[1] <= '3' && at[2] >= '0' &&
			       at[2] <= '7' && at[3] >= '0' && at[3] <= '7';

		*to = escaped ? (char)((at[1] - '0') * 64 + (at[2] - '0') * 8 + at[3] - '0') : *at;
		at += escaped ? 4 : 1;
	}
	*to = '\0';
}

/* ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE OPTIONS */
static bool line_parse(char *line, struct mount_line *ret, char **ret_point)
{
	char *field[5], *type = NULL, *rest = line;
	unsigned int dev_major, dev_minor;

	for (size_t i = 0; i < ARRAY_LEN(field); i++) {
		field[i] = strsep(&rest, " ");
		if (!field[i])
			return false;
	}
	while (rest && (type = strsep(&rest, " ")) && strcmp(type, "-"))
		;
	if (!rest || !(type = strsep(&rest, " ")) ||
	    sscanf(field[2], "%u:%u", &dev_major, &dev_minor) != 2)
		return false;
	ret->dev = makedev(dev_major, dev_minor);
	snprintf(ret->type, sizeof(ret->type), "%s", type);
	*ret_point = field[4];
	unescape(*ret_point);
	return true;
}

static void cleanup_file(FILE **in)
{
	if (*in)
		fclose(*in);
}

/* 1: *ret_top is what is mounted at `path`, the last of them; 0: nothing is. *ret_ours: `dev` is
 * among them. */
static int mounts_at(const char *path, dev_t dev, struct mount_line *ret_top, bool *ret_ours)
{
	CLEANUP(cleanup_file) FILE *in = fopen("/proc/self/mountinfo", "re");
	AUTO_FREE char *line = NULL;
	size_t room = 0;
	int found = 0;

	*ret_ours = false;
	if (!in)
		return -errno;
	while (getline(&line, &room, in) > 0) {
		struct mount_line one;
		char *point;

		if (!line_parse(line, &one, &point) || strcmp(point, path))
			continue;
		*ret_top = one;
		*ret_ours |= one.dev == dev;
		found = 1;
	}
	return found;
}

/* ---- fusermount3 ---- */

struct helper {
	pid_t pid;
	int said_fd; /* what it writes on stderr */
};

/* Its environment: ours, and where it sends the connection to. */
static char **helper_env(char *comm)
{
	size_t count = 0;
	char **env;

	while (environ && environ[count])
		count++;
	env = calloc(count + 2, sizeof(*env));
	if (!env)
		return NULL;
	for (size_t i = 0; i < count; i++)
		env[i + 1] = environ[i];
	env[0] = comm;
	return env;
}

/* comm_fd: the one descriptor that it inherits; -1 = none. */
static int helper_start(struct helper *h, const char *const *argv, int comm_fd)
{
	char comm[32];
	AUTO_FREE char **env = NULL;
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int said[2], r;

	snprintf(comm, sizeof(comm), "_FUSE_COMMFD=%d", comm_fd);
	env = helper_env(comm);
	if (!env)
		return -ENOMEM;
	if (pipe2(said, O_CLOEXEC))
		return -errno;
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attr);
	sigemptyset(&none);
	sigfillset(&all);
	/* Threads of the pool block all signals, and the program may ignore some. */
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	r = posix_spawn_file_actions_adddup2(&actions, said[1], STDERR_FILENO);
	if (!r && comm_fd >= 0) /* onto itself: then it is inherited */
		r = posix_spawn_file_actions_adddup2(&actions, comm_fd, comm_fd);
	if (!r)
		r = posix_spawnp(&h->pid, HELPER, &actions, &attr, (char *const *)argv, env);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&actions);
	close(said[1]);
	h->said_fd = said[0];
	if (r)
		close(said[0]);
	return -r;
}

/* 0, or -EIO when it failed. What it said, in one line, is in `said`. */
static int helper_end(struct helper *h, char said[SAID_MAX])
{
	size_t len = 0;
	int status = 0;
	pid_t pid;

	for (;;) {
		char buf[SAID_MAX];
		ssize_t n = read(h->said_fd, buf, sizeof(buf));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		n = MIN(n, (ssize_t)(SAID_MAX - 1 - len));
		memcpy(said + len, buf, (size_t)n);
		len += (size_t)n;
	}
	close(h->said_fd);
	while (len && said[len - 1] == '\n')
		len--;
	said[len] = '\0';
	for (char *nl = said; (nl = strchr(nl, '\n'));)
		*nl = ' ';
	do
		pid = waitpid(h->pid, &status, 0);
	while (pid < 0 && errno == EINTR);
	/* A program that does not care for its children leaves no status: then its words count. */
	if (pid < 0)
		return len ? -EIO : 0;
	return status ? -EIO : 0;
}

/* The descriptor that it sends; -EIO when it ended without. */
static int helper_receive(int comm_fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *head;
	ssize_t n;
	int fd;

	do
		n = recvmsg(comm_fd, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	head = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
	if (!head || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS ||
	    head->cmsg_len != CMSG_LEN(sizeof(int)))
		return -EIO;
	memcpy(&fd, CMSG_DATA(head), sizeof(fd));
	return fd;
}

/* ---- unmounting ---- */

static int helper_unmount(const char *path, bool lazy)
{
	const char *const argv[] = { HELPER, lazy ? "-uz" : "-u", "--", path, NULL };
	struct helper h;
	char said[SAID_MAX];
	int r = helper_start(&h, argv, -1);

	if (r)
		return r;
	r = helper_end(&h, said);
	return r && strstr(said, "busy") ? -EBUSY : r;
}

struct umount {
	const char *path;
	int flags;
};

APART_CODE static long umount_apart(void *arg, int fd)
{
	const struct umount *u = arg;

	(void)fd;
	return syscall(SYS_umount2, u->path, u->flags) ? -errno : 0;
}

/* What is mounted may have pages to write, or to be asked: by a process apart. */
static int unmount(const char *path, bool helper, bool lazy, int close_fd)
{
	struct umount u = { path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0) };

	return helper ? helper_unmount(path, lazy) : (int)apart_run(umount_apart, &u, -1, close_fd);
}

int place_detach(const struct file_place *place, bool lazy, int close_fd)
{
	struct mount_line top;
	bool ours;
	int r;

	if (!place->dev)
		return 0;
	r = mounts_at(place->path, place->dev, &top, &ours);
	if (r < 0)
		return r;
	if (!ours)
		return 0;
	if (top.dev != place->dev)
		return -EBUSY;
	return unmount(place->path, place->helper, lazy, close_fd);
}

void place_remove(struct file_place *place)
{
	struct mount_line top;
	struct stat st;
	bool ours;

	if (!place->made || mounts_at(place->path, place->dev, &top, &ours))
		return;
	place->made = false;
	if (!lstat(place->path, &st) && S_ISREG(st.st_mode) && !st.st_size &&
	    st.st_dev == place->made_dev && st.st_ino == place->made_ino)
		unlink(place->path);
}

void place_done(struct file_place *place)
{
	free(TAKE_PTR(place->path));
}

/* ---- the mount point ---- */

/* The last part of `path` may be missing. */
static int place_resolve(struct file_place *place, const char *path, struct err *e)
{
	AUTO_FREE char *copy = NULL;
	AUTO_FREE char *dir = NULL;
	char *base;

	place->path = realpath(path, NULL);
	if (place->path)
		return 0;
	if (errno != ENOENT)
		return err_sys(e, -errno, "%s", path);
	copy = strdup(path);
	if (!copy)
		return err_sys(e, -ENOMEM, "%s", path);
	base = strrchr(copy, '/');
	if (base && !base[1])
		return err_set(e, -ENOENT, "%s: there is no such directory, and a resource appears "
			       "as a file: name a file", path);
	if (base)
		*base++ = '\0';
	dir = realpath(!base ? "." : *copy ? copy : "/", NULL);
	if (!dir)
		return err_set(e, -errno, "%s: the directory that it shall be in: %s: make it first",
			       path, strerror(errno));
	base = base ? base : copy;
	if (asprintf(&place->path, "%s/%s", dir[1] ? dir : "", base) < 0) {
		place->path = NULL;
		return err_sys(e, -ENOMEM, "%s", path);
	}
	return 0;
}

/* Its process has ended: the kernel has nobody to ask. (Without FORCE_SYNC it would not ask.) */
static bool is_dead(const char *path)
{
	struct statx st;

	return statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_SIZE, &st) &&
	       (errno == ENOTCONN || errno == ECONNABORTED);
}

static int place_clear(struct file_place *place, struct err *e)
{
	for (unsigned i = 0; i < DEAD_MAX; i++) {
		struct mount_line top;
		bool ours;
		int r = mounts_at(place->path, 0, &top, &ours);

		if (r < 0)
			return err_sys(e, r, "/proc/self/mountinfo");
		if (!r)
			return 0;
		if (strcmp(top.type, TYPE))
			return err_set(e, -EBUSY, "%s: something is mounted there (%s): unmount it "
				       "first, or name another file", place->path, top.type);
		if (!is_dead(place->path))
			return err_set(e, -EBUSY, "%s: a resource is mounted there already: "
				       "'remora unmount' it first, or name another file", place->path);
		r = unmount(place->path, place->helper, true, -1);
		if (r)
			return err_sys(e, r, "%s: clearing away a mount whose process is gone",
				       place->path);
	}
	return err_set(e, -EBUSY, "%s: too many dead mounts on it: umount -l it", place->path);
}

static int place_make(struct file_place *place, struct err *e)
{
	AUTO_FD int fd = open(place->path, O_CREAT | O_EXCL | O_RDONLY | O_CLOEXEC, 0600);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		return err_sys(e, -errno, "%s: making the file to mount on", place->path);
	place->made = true;
	place->made_dev = st.st_dev;
	place->made_ino = st.st_ino;
	return 0;
}

static int place_prepare(struct file_place *place, const char *path, struct err *e)
{
	struct stat st;
	int r = place_resolve(place, path, e);

	if (!r)
		r = place_clear(place, e);
	if (r)
		return r;
	if (stat(place->path, &st)) {
		if (errno != ENOENT)
			return err_sys(e, -errno, "%s", path);
		return place_make(place, e);
	}
	if (S_ISDIR(st.st_mode))
		return err_set(e, -EISDIR, "%s is a directory, and a resource appears as a file: "
			       "name an empty file, or one that is not there yet", path);
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "%s is not a regular file: name an empty file, or one "
			       "that is not there yet", path);
	if (st.st_size)
		return err_set(e, -EEXIST, "%s is not empty, and a mount would hide it: name an "
			       "empty file, or one that is not there yet", path);
	return 0;
}

/* ---- mounting ---- */

static int device_error(int err, struct err *e)
{
	if (err == -ENOENT || err == -ENODEV || err == -ENXIO)
		return err_set(e, err, "/dev/fuse: %s: load the kernel's module (modprobe fuse), or "
			       "give the container this device", strerror(-err));
	return err_set(e, err, "/dev/fuse: %s: the right to open it is needed (a container gets it "
		       "with --device /dev/fuse)", strerror(-err));
}

static int mount_kernel(struct file_place *place, const struct file_options *o, int *ret_fd,
			struct err *e)
{
	AUTO_FD int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	unsigned long flags = MS_NOSUID | MS_NODEV | (o->read_only ? MS_RDONLY : 0);
	char data[256];

	if (fd < 0)
		return device_error(-errno, e);
	snprintf(data, sizeof(data),
		 "fd=%d,rootmode=%o,user_id=%u,group_id=%u,default_permissions,max_read=%llu%s",
		 fd, (unsigned)S_IFREG, (unsigned)geteuid(), (unsigned)getegid(), FILE_IO_MAX,
		 o->others ? ",allow_other" : "");
	if (mount(o->source, place->path, TYPE, flags, data)) {
		if (errno == EPERM)
			return err_set(e, -EPERM, "%s: mount: not permitted, though root: it takes "
				       "CAP_SYS_ADMIN (a container: --cap-add SYS_ADMIN)", place->path);
		return err_sys(e, -errno, "%s: mount", place->path);
	}
	*ret_fd = TAKE_FD(fd);
	return 0;
}

/* In a list of options a comma ends one. */
static char *helper_options(const struct file_options *o)
{
	size_t len = strlen(o->source);
	AUTO_FREE char *name = malloc(2 * len + 1);
	char *all, *to = name;

	if (!name)
		return NULL;
	for (const char *at = o->source; *at; at++) {
		if (*at == ',' || *at == '\\')
			*to++ = '\\';
		*to++ = *at;
	}
	*to = '\0';
	if (asprintf(&all, "fsname=%s,subtype=remora,default_permissions,max_read=%llu%s%s", name,
		     FILE_IO_MAX, o->read_only ? ",ro" : ",rw",
		     o->others ? ",allow_other" : "") < 0)
		return NULL;
	return all;
}

static int mount_helper(struct file_place *place, const struct file_options *o, int *ret_fd,
			struct err *e)
{
	AUTO_FREE char *text = helper_options(o);
	const char *const argv[] = { HELPER, "-o", text, "--", place->path, NULL };
	struct helper h;
	char said[SAID_MAX];
	int pair[2], fd, r;

	if (!text)
		return err_sys(e, -ENOMEM, "%s", place->path);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return err_sys(e, -errno, "socketpair");
	r = helper_start(&h, argv, pair[0]);
	close(pair[0]);
	if (r) {
		close(pair[1]);
		if (r == -ENOENT)
			return err_set(e, -EPERM, HELPER " is not there, and only root mounts without it: "
				       "install the package fuse3");
		return err_sys(e, r, "starting " HELPER);
	}
	fd = helper_receive(pair[1]);
	close(pair[1]);
	r = helper_end(&h, said);
	if (fd >= 0 && !r && fcntl(fd, F_SETFL, O_NONBLOCK))
		r = -errno;
	if (fd >= 0 && !r) {
		*ret_fd = fd;
		return 0;
	}
	if (fd >= 0)
		close(fd);
	if (strstr(said, "user_allow_other"))
		return err_set(e, -EPERM, "%s: only root lets other users in, unless /etc/fuse.conf "
			       "has the line user_allow_other", place->path);
	if (strstr(said, "/dev/fuse"))
		return err_set(e, -EPERM, "%s: %s: the device is everybody's (mode 0666) where users "
			       "shall mount; root need not mind", place->path, said);
	return err_set(e, -EPERM, "%s: %s", place->path, *said ? said : HELPER " failed");
}

int place_mount(struct file_place *place, const struct file_options *options, int *ret_fd,
		struct err *e)
{
	struct mount_line top;
	bool ours;
	int r;

	place->helper = geteuid() != 0;
	r = place_prepare(place, options->path, e);
	if (r)
		return r;
	r = (place->helper ? mount_helper : mount_kernel)(place, options, ret_fd, e);
	if (r)
		return r;
	r = mounts_at(place->path, 0, &top, &ours);
	if (r > 0 && !strcmp(top.type, TYPE)) {
		place->dev = top.dev;
		return 0;
	}
	return err_set(e, -EBUSY, "%s: something else was mounted there at the same time",
		       place->path);
}

/* The kernel begins with 128 KiB, and bounds what we ask for by it. Root may raise it. */
void place_tune(const struct file_place *place)
{
	char path[80], text[24];
	AUTO_FD int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", major(place->dev),
		 minor(place->dev));
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	snprintf(text, sizeof(text), "%llu", FILE_READAHEAD / KIB);
	n = write(fd, text, strlen(text));
	(void)n; /* then it is the kernel's own */
}
