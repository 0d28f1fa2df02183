/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals, a time limit and the terminal's size, for commands that wait for a running process: one
 * descriptor that can be read when something has happened.
 *
 * Invariant: signals arrive through the descriptor alone, so that none gets lost between looking
 * and waiting.
 *
 * Locking: none; the command has one thread.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "cmd/cmd.h"

static int wake_timer(struct wake *wake, uint64_t ns)
{
	const struct itimerspec when = {
		.it_value = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) },
	};

	wake->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	return wake->timer_fd < 0 || timerfd_settime(wake->timer_fd, 0, &when, NULL) ? -errno : 0;
}

static int wake_add(struct wake *wake, int fd)
{
	struct epoll_event ev = { .events = EPOLLIN };

	return epoll_ctl(wake->fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

int wake_open(struct wake *wake, uint64_t for_ns, struct err *e)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGWINCH };
	sigset_t set;
	int r = 0;

	*wake = (struct wake){ .fd = -1, .signal_fd = -1, .timer_fd = -1 };
	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		sigaddset(&set, signals[i]);
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return err_sys(e, -errno, "signals");
	wake->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	wake->fd = epoll_create1(EPOLL_CLOEXEC);
	if (wake->signal_fd < 0 || wake->fd < 0)
		r = -errno;
	if (!r)
		r = wake_add(wake, wake->signal_fd);
	if (!r && for_ns != NEVER_NS)
		r = wake_timer(wake, MAX(for_ns, 1u));
	if (!r && for_ns != NEVER_NS)
		r = wake_add(wake, wake->timer_fd);
	if (!r)
		return 0;
	wake_close(wake);
	return err_sys(e, r, "signals");
}

void wake_read(struct wake *wake)
{
	struct signalfd_siginfo info;
	uint64_t times;

	while (read(wake->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGWINCH)
			wake->resized = true;
		else
			wake->ended++;
	}
	if (wake->timer_fd >= 0 && read(wake->timer_fd, &times, sizeof(times)) == sizeof(times))
		wake->ended++;
}

void wake_wait(struct wake *wake, uint64_t ns)
{
	struct pollfd p = { .fd = wake->fd, .events = POLLIN };

	if (poll(&p, 1, (int)MIN(ns / NS_PER_MS, 1000000000u)) > 0)
		wake_read(wake);
}

void wake_close(struct wake *wake)
{
	if (wake->fd >= 0)
		close(wake->fd);
	if (wake->signal_fd >= 0)
		close(wake->signal_fd);
	if (wake->timer_fd >= 0)
		close(wake->timer_fd);
	wake->fd = wake->signal_fd = wake->timer_fd = -1;
}
