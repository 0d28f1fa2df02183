/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last lines of a process's log, for those who ask later.
 *
 * Place: between a log and its sink: a line is kept here, then goes on to where it went before.
 *
 * Invariants: line number n is in at[n % EVENTS_MAX] while it is among the last EVENTS_MAX. The
 * waker is posted at most once at a time.
 *
 * Locking: `lock` guards the lines, for any thread may log; the waker runs on the loop's thread.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/control_int.h"

#define EVENTS_MAX CONTROL_EVENTS_MAX

struct event {
	uint64_t time_ns;
	enum log_level level;
	char *text;
};

struct control_log {
	pthread_mutex_t lock;
	struct event at[EVENTS_MAX];
	uint64_t count; /* ever */
	struct log before;
	/* who wants to hear of new ones */
	struct loop *loop;
	struct post post;
	bool posted;
	void (*wake)(void *arg);
	void *arg;
};

int control_log_open(struct control_log **ret, struct err *e)
{
	struct control_log *log = calloc(1, sizeof(*log));

	*ret = log;
	if (!log || pthread_mutex_init(&log->lock, NULL)) {
		free(log);
		return err_sys(e, -ENOMEM, "the log");
	}
	return 0;
}

void control_log_close(struct control_log *log)
{
	if (!log)
		return;
	CHECK(!log->loop);
	for (size_t i = 0; i < EVENTS_MAX; i++)
		free(log->at[i].text);
	pthread_mutex_destroy(&log->lock);
	free(log);
}

static void keep(struct control_log *log, enum log_level level, const char *text)
{
	struct event *ev;
	char *copy = strdup(text);

	if (!copy)
		return;
	pthread_mutex_lock(&log->lock);
	ev = &log->at[log->count++ % EVENTS_MAX];
	free(ev->text);
	*ev = (struct event){ env_wall_ns(), level, copy };
	if (log->loop && !log->posted) {
		log->posted = true;
		loop_post(log->loop, &log->post);
	}
	pthread_mutex_unlock(&log->lock);
}

static void emit(void *arg, enum log_level level, const char *text)
{
	struct control_log *log = arg;

	if (level <= LOG_INFO)
		keep(log, level, text);
	if (log->before.emit && level <= log->before.max)
		log->before.emit(log->before.arg, level, text);
}

void control_log_watch(struct control_log *log, struct env *env)
{
	log->before = env->log;
	env->log = (struct log){ .emit = emit, .arg = log,
				 .max = MAX(log->before.max, LOG_INFO) };
}

static void waker(struct post *post)
{
	struct control_log *log = CONTAINER_OF(post, struct control_log, post);

	pthread_mutex_lock(&log->lock);
	log->posted = false;
	pthread_mutex_unlock(&log->lock);
	if (log->wake)
		log->wake(log->arg);
}

void control_log_listen(struct control_log *log, struct loop *loop, void (*wake)(void *arg),
			void *arg)
{
	pthread_mutex_lock(&log->lock);
	log->loop = loop;
	log->post.run = waker;
	log->wake = wake;
	log->arg = arg;
	pthread_mutex_unlock(&log->lock);
}

bool control_log_deaf(struct control_log *log)
{
	bool deaf;

	pthread_mutex_lock(&log->lock);
	log->loop = NULL;
	log->wake = NULL;
	deaf = !log->posted;
	pthread_mutex_unlock(&log->lock);
	return deaf;
}

uint64_t control_log_count(struct control_log *log)
{
	uint64_t count;

	pthread_mutex_lock(&log->lock);
	count = log->count;
	pthread_mutex_unlock(&log->lock);
	return count;
}

json_t *control_log_at(struct control_log *log, uint64_t n)
{
	json_t *ret = NULL;

	pthread_mutex_lock(&log->lock);
	if (n < log->count && log->count - n <= EVENTS_MAX) {
		const struct event *ev = &log->at[n % EVENTS_MAX];

		/* not UTF-8, which a name in a line may be: without its strange bytes */
		ret = json_pack("{s:I, s:s, s:o}", "time_ns", (json_int_t)ev->time_ns, "level",
				log_level_name(ev->level), "text", control_text(ev->text));
	}
	pthread_mutex_unlock(&log->lock);
	return ret;
}
