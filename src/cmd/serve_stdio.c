/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora serve --stdio: one client, on standard input and output, as ssh starts it.
 *
 * Place: in place of the listeners. When both descriptors are one socket the server has it; when
 * they are pipes, two threads carry the bytes between them and a socket of the server's.
 *
 * Invariants: nothing but the protocol reaches standard output; whoever prints there later reaches
 * standard error. With --session at most one server of a word runs on a machine: a later one waits
 * for the former, which ends by itself when it has not heard of its client for a while.
 *
 * Locking: none; the threads have nothing in common but the socket.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cmd/serve.h"

#define SESSION_WAIT_NS (30 * NS_PER_S)
#define SESSION_STEP_NS (50 * NS_PER_MS)
#define PUMP_LEN (64 * 1024)

struct pump {
	int from, to;
};

/* Whoever gave us the descriptor may have made it one that does not wait. */
static bool again(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	if (errno == EAGAIN)
		(void)poll(&p, 1, -1);
	else if (errno != EINTR)
		return false;
	return true;
}

/* Until one of them is at its end; the process may end before, and owes nobody memory then. */
static void *pump_run(void *arg)
{
	struct pump pump = *(const struct pump *)arg, *p = &pump;
	char buf[PUMP_LEN];
	ssize_t n = 1;

	free(arg);
	while (n > 0) {
		ssize_t done = 0;

		n = read(p->from, buf, sizeof(buf));
		if (n < 0 && again(p->from, POLLIN)) {
			n = 1;
			continue;
		}
		while (done < n) {
			ssize_t out = write(p->to, buf + done, (size_t)(n - done));

			if (out < 0 && !again(p->to, POLLOUT))
				n = -1;
			else
				done += MAX(out, 0);
		}
	}
	(void)shutdown(p->to, SHUT_WR); /* a pipe is closed below */
	close(p->to);
	return NULL;
}

static int pump_start(pthread_t *ret, int from, int to, struct err *e)
{
	struct pump *p = malloc(sizeof(*p));
	int r = p ? 0 : -ENOMEM;

	if (p)
		*p = (struct pump){ from, to };
	if (!r && pthread_create(ret, NULL, pump_run, p)) {
		free(p);
		r = -EAGAIN;
	}
	return r ? err_sys(e, r, "--stdio") : 0;
}

/* Both ends of the user's, out of the way of whatever prints. */
static int take_away(int ret_fd[2], struct err *e)
{
	AUTO_FD int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	ret_fd[0] = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	ret_fd[1] = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (null < 0 || ret_fd[0] < 0 || ret_fd[1] < 0 || dup2(null, STDIN_FILENO) < 0 ||
	    dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
		return err_sys(e, -errno, "--stdio");
	return 0;
}

static bool one_socket(const int fd[2])
{
	struct stat a, b;

	return !fstat(fd[0], &a) && !fstat(fd[1], &b) && S_ISSOCK(a.st_mode) &&
	       a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

int serve_stdio_open(struct serve *s, struct err *e)
{
	int fd[2], pair[2], up, r = take_away(fd, e);
	pthread_t in;

	if (r)
		return r;
	if (one_socket(fd)) {
		close(fd[1]);
		if (fcntl(fd[0], F_SETFL, O_NONBLOCK))
			return err_sys(e, -errno, "--stdio");
		r = server_attach(s->server, fd[0]);
		return r ? err_sys(e, r, "--stdio") : 0;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return err_sys(e, -errno, "--stdio");
	up = fcntl(pair[1], F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (up < 0 || fcntl(pair[0], F_SETFL, O_NONBLOCK))
		return err_sys(e, -errno, "--stdio");
	r = pump_start(&in, fd[0], up, e);
	if (!r) {
		pthread_detach(in); /* it may wait for ever for a byte that nobody wants */
		r = pump_start(&s->stdio_out, pair[1], fd[1], e);
	}
	if (r)
		return r;
	s->stdio_pumped = true;
	r = server_attach(s->server, pair[0]);
	return r ? err_sys(e, r, "--stdio") : 0;
}

bool serve_stdio_ended(const struct serve *s)
{
	struct server_counts n;

	server_count(s->server, &n);
	return !n.conns;
}

void serve_stdio_close(struct serve *s)
{
	if (s->stdio_pumped)
		pthread_join(s->stdio_out, NULL); /* the last words */
	if (s->session_fd >= 0)
		close(s->session_fd);
}

/* A name that is gone with its process, whatever ends that. */
int serve_stdio_session(struct serve *s, struct err *e)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct loop *loop = s->run.loop;
	uint64_t until = loop_now_fresh(loop) + SESSION_WAIT_NS;
	bool never = false;
	socklen_t len;

	if (!s->session)
		return 0;
	len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
			  (size_t)snprintf(un.sun_path + 1, sizeof(un.sun_path) - 1,
					   "remora-stdio-%.80s", s->session));
	s->session_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->session_fd < 0)
		return err_sys(e, -errno, "--session");
	while (bind(s->session_fd, (struct sockaddr *)&un, len)) {
		if (errno != EADDRINUSE)
			return err_sys(e, -errno, "--session");
		if (loop_now_fresh(loop) >= until)
			return err_set(e, -EBUSY, "a former server of this client does not end");
		if (loop_run_until(loop, &never, loop_now_fresh(loop) + SESSION_STEP_NS) !=
		    -ETIMEDOUT)
			return err_set(e, -EIO, "the event loop broke");
	}
	return 0;
}
