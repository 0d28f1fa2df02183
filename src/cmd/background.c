/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going to the background, and the service manager's socket.
 *
 * Place: the first thing that a daemon command does behind its options; background_ready() is the
 * last thing of its coming up.
 *
 * Invariants: the parent ends with the child's result, whichever way the child ends: a line on the
 * pipe is success, the end of the pipe without one is followed by the child's exit status. The
 * child keeps its working directory: specs may have relative paths.
 *
 * Locking: none; background_start() before there are threads.
 */
#include "cmd/background.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cmd/cmd.h"

/* What a shell had open for itself would otherwise stay open for as long as the mount does. */
static void others_close(int a, int b)
{
	int low = MIN(a, b), high = MAX(a, b), from = STDERR_FILENO + 1;

	if (low > STDERR_FILENO) {
		if (low > from)
			(void)close_range((unsigned)from, (unsigned)low - 1, 0);
		from = low + 1;
	}
	if (high > low && high > STDERR_FILENO) {
		if (high > from)
			(void)close_range((unsigned)from, (unsigned)high - 1, 0);
		from = high + 1;
	}
	(void)close_range((unsigned)from, ~0u, 0);
}

/* In the parent: until the child has spoken or is gone. */
static int child_wait(int fd, pid_t child)
{
	char word;
	int status;
	ssize_t n;

	do
		n = read(fd, &word, 1);
	while (n < 0 && errno == EINTR);
	if (n == 1)
		return CMD_OK;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return CMD_FAILED;
	if (WIFEXITED(status)) /* it has said why; and 0 without a word is no success */
		return WEXITSTATUS(status) ? WEXITSTATUS(status) : CMD_FAILED;
	say_error("the process in the background was killed by signal %d", WTERMSIG(status));
	return CMD_FAILED;
}

int background_start(struct background *b, int keep_fd, int *ret_code, struct err *e)
{
	int fd[2];
	pid_t child;

	b->fd = -1;
	if (pipe2(fd, O_CLOEXEC))
		return err_sys(e, -errno, "going to the background");
	fflush(NULL);
	child = fork();
	if (child < 0) {
		close(fd[0]);
		close(fd[1]);
		return err_sys(e, -errno, "going to the background");
	}
	if (child) {
		close(fd[1]);
		if (keep_fd > STDERR_FILENO)
			close(keep_fd); /* its end is the child's to make */
		*ret_code = child_wait(fd[0], child);
		close(fd[0]);
		return 1;
	}
	b->fd = fd[1];
	others_close(fd[1], keep_fd);
	return 0;
}

int background_ready(struct background *b)
{
	AUTO_FD int fd = b->fd;
	AUTO_FD int null = -1;

	if (fd < 0)
		return 0;
	b->fd = -1;
	fflush(NULL);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (write(fd, "\n", 1) != 1)
		return -EPIPE;
	(void)setsid();
	for (int i = STDIN_FILENO; null >= 0 && i <= STDERR_FILENO; i++)
		(void)dup2(null, i);
	if (null <= STDERR_FILENO) /* one of the three was closed, and is /dev/null now */
		null = -1;
	return 0;
}

void service_tell(const char *fmt, ...)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	AUTO_FD int fd = -1;
	char text[ERR_TEXT_MAX];
	size_t len = path ? strlen(path) : 0;
	va_list ap;
	int n;

	if (len < 2 || len >= sizeof(un.sun_path) || (*path != '/' && *path != '@'))
		return;
	memcpy(un.sun_path, path, len);
	if (*path == '@')
		un.sun_path[0] = '\0';
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (n < 0 || fd < 0)
		return;
	(void)!sendto(fd, text, MIN((size_t)n, sizeof(text) - 1), MSG_NOSIGNAL,
		      (struct sockaddr *)&un,
		      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
}
