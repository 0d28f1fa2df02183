/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop of a command: its log on stderr, and its signals as events of the loop.
 *
 * Place: opened after the options, closed last.
 *
 * Invariants: SIGINT, SIGTERM and SIGHUP are blocked before the first thread starts, so that only
 * the descriptor gets them. Until the command says what they mean (on_signal) they end the process
 * at once: nothing is to be saved yet.
 *
 * Locking: log_emit() may be called by any thread; one fprintf() is one line.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "store/spec.h"

#define SIGNAL_ECHO_NS (200 * NS_PER_MS)

static void log_emit(void *arg, enum log_level level, const char *text)
{
	(void)arg;
	if (level == LOG_ERROR)
		fprintf(stderr, "%s: %s\n", said_name(), text);
	else
		fprintf(stderr, "%s: %s: %s\n", said_name(), log_level_name(level), text);
}

static void signal_wait(struct run *run)
{
	op_poll(run->loop, &run->signal_op, run->signal_fd, POLLIN);
}

/* timeout(1) and some shells send a signal to a process and to its group: that is one, not two. */
static bool signal_is_echo(struct run *run, int signal)
{
	uint64_t now = loop_now(run->loop), last = run->last_signal_ns;

	run->last_signal_ns = now;
	return run->signals && signal == run->last_signal && now - last < SIGNAL_ECHO_NS;
}

static void signal_ready(struct op *op, int res)
{
	struct run *run = CONTAINER_OF(op, struct run, signal_op);
	struct signalfd_siginfo info;

	if (res < 0) { /* run_close() */
		run->signal_done = true;
		return;
	}
	if (read(run->signal_fd, &info, sizeof(info)) == sizeof(info) &&
	    !signal_is_echo(run, (int)info.ssi_signo)) {
		run->signals++;
		run->last_signal = (int)info.ssi_signo;
		if (!run->on_signal) {
			say_error("interrupted");
			_exit(CMD_INCOMPLETE);
		}
		run->on_signal(run);
	}
	signal_wait(run);
}

int run_open(struct run *run, const struct common *common, struct err *e)
{
	const struct loop_options options = { .engine = (enum loop_engine)common->loop,
					      .env = &run->env };
	sigset_t set;
	int r;

	memset(run, 0, sizeof(*run));
	env_init(&run->env);
	run->env.log = (struct log){
		.emit = log_emit,
		.max = common->quiet	     ? LOG_ERROR
		       : common->verbose > 1 ? LOG_DEBUG
		       : common->verbose     ? LOG_INFO
					     : LOG_WARN,
	};
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return err_sys(e, -errno, "signals");
	run->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (run->signal_fd < 0)
		return err_sys(e, -errno, "signals");
	r = loop_open(&run->loop, &options, e);
	if (r) {
		close(run->signal_fd);
		return r;
	}
	log_info(&run->env.log, "event loop: %s", loop_engine_name(run->loop));
	run->signal_op.done = signal_ready;
	signal_wait(run);
	return 0;
}

int run_spec_open(struct store **ret, const char *spec, const struct store_open *how, struct err *e)
{
	int r = spec_open(ret, spec, how, e);

	if (r)
		e->code = r;
	return r;
}

void run_close(struct run *run)
{
	if (!run->loop)
		return;
	op_cancel(run->loop, &run->signal_op);
	if (loop_run_until(run->loop, &run->signal_done, NEVER_NS))
		say_error("the event loop broke");
	close(run->signal_fd);
	loop_close(run->loop);
	run->loop = NULL;
}
