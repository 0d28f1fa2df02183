/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora+ssh://[USER@]HOST[:PORT]/PATH - the server is started on the other machine through ssh,
 * and spoken to over ssh's standard input and output: `ssh -T HOST remora serve --stdio PATH`.
 *
 * Place: in place of a connect (rconn_connect); a socket pair lies between us and ssh. Each try
 * starts a new one. ssh is found as ssh, or what REMORA_SSH says: the shell that starts it looks.
 *
 * Invariants: a child that was started is waited for before its connection is down; one that does
 * not end is killed. What ssh says goes to a file without a name: it can never block on us, and is
 * told when the connection is lost. Each path is one word for the shell over there, whatever is in
 * it. A former server of ours that has not noticed yet has to end before the new one begins
 * (--session), so an old write never lands on a new one.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "back/remora_int.h"
#include "base/cleanup.h"

#define SAID_MAX 2048u /* of what ssh says, its end */
#define KILL_NS (2 * NS_PER_S)

extern char **environ;

/* ---- what is started ---- */

static void quote(FILE *out, const char *text)
{
	fputc('\'', out);
	for (; *text; text++) {
		if (*text == '\'')
			fwrite("'\\''", 1, 4, out);
		else
			fputc(*text, out);
	}
	fputc('\'', out);
}

/* The line for the shell over there. */
static char *command_make(const struct remora *m)
{
	char *line = NULL;
	size_t len;
	FILE *out = open_memstream(&line, &len);

	if (!out)
		return NULL;
	fwrite(m->ssh.command, 1, strlen(m->ssh.command), out);
	fwrite(" serve --stdio --session ", 1, 25, out);
	for (size_t i = 0; i < sizeof(m->session); i++) {
		char hex[3];

		snprintf(hex, sizeof(hex), "%02x", m->session[i]);
		fwrite(hex, 1, 2, out);
	}
	if (m->read_only)
		fwrite(" --read-only", 1, 12, out);
	fwrite(" -- ", 1, 4, out);
	quote(out, m->ssh.path);
	if (fclose(out)) {
		free(line);
		return NULL;
	}
	return line;
}

static int child_spawn(struct remora *m, struct rssh *x, int fd, char *line)
{
	/* ^C is for us: the flush at the end still needs the link. */
	char script[] = "trap '' INT HUP; exec ${REMORA_SSH:-ssh} \"$@\"";
	char sh[] = "sh", c[] = "-c", name[] = "remora", no_tty[] = "-T", port[] = "-p", end[] = "--";
	char *argv[11] = { sh, c, script, name, no_tty };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int n = 5, r;

	if (m->ssh.port) {
		argv[n++] = port;
		argv[n++] = m->ssh.port;
	}
	argv[n++] = end;
	argv[n++] = m->ssh.host;
	argv[n] = line;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attr);
	r = posix_spawn_file_actions_adddup2(&actions, fd, STDIN_FILENO);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&actions, fd, STDOUT_FILENO);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&actions, x->said_fd, STDERR_FILENO);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	if (!r)
		r = posix_spawn(&x->pid, "/bin/sh", &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	return -r;
}

static void child_ended(struct op *op, int res);

/* Of three standard descriptors that are closed, ours could be one: they would be lost in dup2. */
static int fd_above(int fd)
{
	int higher;

	if (fd < 0 || fd > STDERR_FILENO)
		return fd;
	higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	close(fd);
	return higher;
}

int rssh_start(struct rconn *c, int *ret_fd)
{
	struct remora *m = c->m;
	struct loop *loop = m->store.loop;
	struct rssh *x = &c->ssh;
	AUTO_FREE char *line = command_make(m);
	int pair[2], r = loop_socketpair(loop, pair);

	CHECK(!x->pid && x->said_fd < 0);
	if (r)
		return r;
	pair[1] = fd_above(pair[1]);
	x->said_fd = fd_above(memfd_create("remora-ssh", MFD_CLOEXEC));
	/* Its end of the link waits, as everybody expects of standard input. */
	if (!line || pair[1] < 0 || fcntl(pair[1], F_SETFL, 0) || x->said_fd < 0 ||
	    fcntl(x->said_fd, F_SETFL, O_APPEND))
		r = -ENOMEM;
	if (!r)
		r = child_spawn(m, x, pair[1], line);
	if (pair[1] >= 0)
		close(pair[1]);
	if (!r) {
		x->pid_fd = pidfd_open(x->pid, 0);
		r = x->pid_fd < 0 ? -errno : 0;
	}
	if (r) {
		loop_close_fd(loop, pair[0]);
		if (x->said_fd >= 0)
			close(x->said_fd);
		x->said_fd = -1;
		x->pid = 0;
		return r;
	}
	x->op.done = child_ended;
	op_poll(loop, &x->op, x->pid_fd, POLLIN);
	*ret_fd = pair[0];
	return 0;
}

/* ---- what it says ---- */

void rssh_said(struct rconn *c, char *buf, size_t size)
{
	char text[SAID_MAX + 1];
	size_t n = 0;
	struct stat st;
	ssize_t len;

	buf[0] = '\0';
	if (c->ssh.said_fd < 0 || fstat(c->ssh.said_fd, &st))
		return;
	len = pread(c->ssh.said_fd, text, SAID_MAX,
		    st.st_size > (off_t)SAID_MAX ? st.st_size - (off_t)SAID_MAX : 0);
	if (len <= 0 || ftruncate(c->ssh.said_fd, 0))
		return;
	/* The end of it: that is mostly where the reason is. */
	while (len && (text[len - 1] == '\n' || text[len - 1] == '\r'))
		len--;
	for (ssize_t i = MAX(0, len - (ssize_t)size + 8); i < len && n + 2 < size; i++) {
		if (text[i] == '\n') {
			buf[n++] = ';';
			buf[n++] = ' ';
		} else if (text[i] != '\r') {
			buf[n++] = (unsigned char)text[i] < ' ' || text[i] == 0x7f ? '?' : text[i];
		}
	}
	buf[n] = '\0';
}

/* ---- its end ---- */

bool rssh_ends(struct rconn *c)
{
	if (!c->ssh.pid)
		return false;
	(void)pidfd_send_signal(c->ssh.pid_fd, SIGTERM, NULL, 0);
	timer_set(c->m->store.loop, &c->timer, loop_now(c->m->store.loop) + KILL_NS);
	return true;
}

void rssh_kill(struct rconn *c)
{
	if (c->ssh.pid)
		(void)pidfd_send_signal(c->ssh.pid_fd, SIGKILL, NULL, 0);
}

static void child_ended(struct op *op, int res)
{
	struct rssh *x = CONTAINER_OF(op, struct rssh, op);
	struct rconn *c = CONTAINER_OF(x, struct rconn, ssh);

	(void)res;
	(void)waitpid(x->pid, NULL, WNOHANG); /* the program may have done so itself */
	loop_close_fd(c->m->store.loop, x->pid_fd);
	x->pid = 0;
	rconn_ssh_ended(c); /* if the stream has stopped already, else that asks us */
}

void rssh_clear(struct rconn *c)
{
	CHECK(!c->ssh.pid);
	if (c->ssh.said_fd >= 0)
		close(c->ssh.said_fd);
	c->ssh.said_fd = -1;
}

/* ---- where ---- */

/* "[USER@]HOST[:PORT]/PATH", cut in place. */
int rssh_place(char *text, struct remora_options *o, struct err *e)
{
	char *slash = strchr(text, '/'), *colon, *at;

	if (!slash || !slash[1])
		return err_set(e, -EINVAL, "the path is missing: remora+ssh://HOST/PATH");
	/* "/~/": from the home directory; it is where the shell begins. */
	o->ssh_path = !strncmp(slash, "/~/", 3) ? slash + 3 : slash;
	o->ssh_home = o->ssh_path != slash;
	/* The host goes before the slash, which the path may need: it is copied. */
	o->ssh_host = strndup(text, (size_t)(slash - text));
	if (!o->ssh_host)
		return err_sys(e, -ENOMEM, "remora+ssh");
	at = strrchr(o->ssh_host, '@');
	at = at ? at + 1 : o->ssh_host;
	colon = *at == '[' ? strstr(at, "]:") : strrchr(at, ':');
	if (colon && *at == '[')
		colon++;
	if (colon) {
		*colon = '\0';
		o->ssh_port = colon + 1;
		if (!*o->ssh_port || strspn(o->ssh_port, "0123456789") != strlen(o->ssh_port))
			return err_set(e, -EINVAL, "\"%s\" is no port", o->ssh_port);
	}
	if (!*at || *o->ssh_host == '-' || *at == '-')
		return err_set(e, -EINVAL, "\"%s\" is no host", o->ssh_host);
	return 0;
}

static char *path_make(const struct remora_options *o)
{
	char *path;

	if (!o->ssh_home)
		return strdup(o->ssh_path);
	return asprintf(&path, "./%s", o->ssh_path) < 0 ? NULL : path;
}

int rssh_init(struct remora *m, const struct remora_options *o)
{
	const char *host = o->ssh_host;

	m->ssh.host = strdup(host);
	m->ssh.port = o->ssh_port ? strdup(o->ssh_port) : NULL;
	m->ssh.path = path_make(o);
	m->ssh.command = strdup(o->ssh_command ? o->ssh_command : "remora");
	if (!m->ssh.host || (o->ssh_port && !m->ssh.port) || !m->ssh.path || !m->ssh.command)
		return -ENOMEM;
	/* ssh takes no brackets */
	if (m->ssh.host[0] == '[')
		memmove(m->ssh.host, m->ssh.host + 1, strlen(m->ssh.host));
	m->ssh.host[strcspn(m->ssh.host, "]")] = '\0';
	snprintf(m->addr_text, sizeof(m->addr_text), "ssh %s", m->ssh.host);
	return 0;
}

void rssh_done(struct remora *m)
{
	free(m->ssh.host);
	free(m->ssh.port);
	free(m->ssh.path);
	free(m->ssh.command);
}
