/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unmounting: nothing that can be saved is lost, and nobody waits for ever.
 *
 *         unmount (by way of USERS: a moment
 *         for closes under way), SIGTERM        written meanwhile (at most ROUNDS_MAX times)
 *   NONE ───────────────────▶ SYNC ◀─────────────────────────────────────┐
 *    ▲  shut: no more writers  │ the kernel has nothing any more          │
 *    │                         ├──────▶ FLUSH ── the store has it safe ───┘
 *    │◀── it failed ───────────┘          │
 *    │◀── it failed: the mount stays, ────┤
 *    │    unsafe_bytes are told           │ nothing new was written
 *    │                                    ▼
 *    │◀── somebody has it open ──────── DETACH ── somebody has it open, lazy ──▶ LAZY
 *                                         │                                       │ hooks.gone
 *   any but DONE ── hooks.gone ──▶ (gone) └──────────────▶ FLUSH ◀────────────────┘
 *                                                          │   ▲
 *                                       it failed: PAUSE ◀─┤   │ a pause, or somebody asks
 *                                                   └──────┼───┘
 *                                                          ▼ safe
 *   any ── force: unmount --force, a second signal ─────▶ DONE ──▶ mount_close()
 *
 * Place: between the ways in which people end a mount, and file.h and the store.
 *
 * Invariants: at most one file call and one FLUSH are under way, and while one is, its done() alone
 * goes on. A signal detaches lazily, and what still has the file open gets ENOTCONN from
 * mount_close(). Where the mount is gone before everything is safe, the process stays until it is,
 * or until it is forced. Once `gone` is set it stays so.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/mount.h"

#define ROUNDS_MAX 3u
#define PAUSE_MIN_NS NS_PER_S
#define PAUSE_MAX_NS (30 * NS_PER_S)
/* A look at the file's name, or a close that the kernel has not told of yet, makes it busy for a
 * moment. */
#define BUSY_NS (20 * NS_PER_MS)
#define BUSY_TRIES 15u

static void end_sync(struct mount *m);
static void end_flush(struct mount *m);
static void end_detach(struct mount *m);
static void end_users(struct mount *m);

/* ---- who waits ---- */

static json_t *numbers(struct mount *m)
{
	return json_pack("{s:I}", "unsafe_bytes", (json_int_t)mount_unsafe(m));
}

static void waiters_fail(struct mount *m, int err, const char *text)
{
	struct link *k;

	while ((k = list_pop_front(&m->end.waiters))) {
		struct end_waiter *w = LIST_ENTRY(k, struct end_waiter, link);

		control_with(w->call, numbers(m));
		control_fail(w->call, err, "%s", text);
		free(w);
	}
}

static void waiters_ok(struct mount *m, const char *what, uint64_t value)
{
	struct link *k;

	while ((k = list_pop_front(&m->end.waiters))) {
		struct end_waiter *w = LIST_ENTRY(k, struct end_waiter, link);

		control_ok(w->call, json_pack("{s:I}", what, (json_int_t)value));
		free(w);
	}
}

/* In these words people and programs are told where it is. */
static const char *phase_name(const struct mount *m)
{
	switch (m->end.phase) {
	case END_SYNC:
		return "sync";
	case END_DETACH:
	case END_LAZY:
	case END_DONE:
		return "detach";
	case END_NONE:
	case END_USERS:
	case END_FLUSH:
	case END_PAUSE:
		break;
	}
	return "flush";
}

/* Who has gone, or waited long enough, waits no more. With the last of them goes what they asked
 * for, if nothing else keeps it going. */
static void waiters_look(struct mount *m)
{
	struct mount_end *end = &m->end;
	bool some = !list_empty(&end->waiters);

	LIST_EACH (k, &end->waiters) {
		struct end_waiter *w = LIST_ENTRY(k, struct end_waiter, link);
		bool late = loop_now(m->run.loop) >= w->until_ns;

		if (!late && !control_gone(w->call))
			continue;
		link_remove(&w->link);
		control_with(w->call, numbers(m));
		control_fail(w->call, -ETIMEDOUT, "it is not unmounted: it took too long");
		free(w);
	}
	if (!some || !list_empty(&end->waiters) || end->by_signal || end->gone ||
	    (end->phase != END_SYNC && end->phase != END_FLUSH))
		return;
	end->abandoned = true;
	file_shut(m->file, false);
	log_info(&m->run.env.log, "nobody waits for the unmount any more: the mount stays");
}

static void show(struct timer *timer)
{
	struct mount *m = CONTAINER_OF(timer, struct mount, end.show);
	struct mount_end *end = &m->end;
	uint64_t unsafe = mount_unsafe(m);

	end->unsafe_start = MAX(end->unsafe_start, unsafe);
	LIST_EACH (k, &end->waiters)
		control_progress(LIST_ENTRY(k, struct end_waiter, link)->call,
				 json_pack("{s:s, s:I, s:I}", "phase", phase_name(m), "done",
					   (json_int_t)(end->unsafe_start - unsafe), "total",
					   (json_int_t)end->unsafe_start));
	waiters_look(m);
	if (!list_empty(&end->waiters))
		timer_set(m->run.loop, timer, loop_now(m->run.loop) + MOUNT_SHOW_NS);
}

/* ---- ends of it ---- */

static void end_done(struct mount *m)
{
	m->end.phase = END_DONE;
	timer_clear(m->run.loop, &m->end.show);
	timer_clear(m->run.loop, &m->end.pause);
	m->stop = true;
}

static void end_force(struct mount *m)
{
	struct mount_end *end = &m->end;
	char text[SIZE_TEXT_MAX];

	if (end->phase == END_DONE)
		return;
	end->force = true;
	end->lost_bytes = mount_unsafe(m);
	if (end->lost_bytes) {
		m->code = CMD_UNSAFE;
		log_error(&m->run.env.log, "forced: %s that were not safe are given up",
			  size_format(end->lost_bytes, text));
	}
	end_done(m);
}

/* It is not unmounted, and goes on as if nobody had asked. */
static void end_fail(struct mount *m, int err, const char *what)
{
	struct mount_end *end = &m->end;
	const char *why = mount_why(m);
	char text[ERR_TEXT_MAX], size[SIZE_TEXT_MAX];
	uint64_t unsafe = mount_unsafe(m);

	snprintf(text, sizeof(text), "%s failed: %s%s%s%s", what, strerror(-err),
		 *why ? " (" : "", why, *why ? ")" : "");
	if (end->by_signal || list_empty(&end->waiters))
		log_error(&m->run.env.log,
			  "%s: the mount stays, and what is not safe is kept (%s)%s", text,
			  size_format(unsafe, size),
			  end->by_signal ? "; a second signal gives it up" : "");
	else
		log_warn(&m->run.env.log, "unmount: %s: the mount stays", text);
	end->phase = END_NONE;
	end->by_signal = false;
	timer_clear(m->run.loop, &end->show);
	file_shut(m->file, false);
	service_tell("STATUS=%s: the mount stays", text);
	waiters_fail(m, err, text);
}

/* Something that was under way has ended: true = what was asked for is no longer wanted. */
static bool end_turned(struct mount *m)
{
	struct mount_end *end = &m->end;

	if (end->phase == END_DONE)
		return true;
	if (end->redo && !end->gone) {
		end->redo = end->abandoned = false;
		end->rounds = 0;
		end_sync(m);
		return true;
	}
	if (end->abandoned && !end->gone) {
		end->abandoned = false;
		end->phase = END_NONE;
		timer_clear(m->run.loop, &end->show);
		return true;
	}
	end->redo = end->abandoned = false;
	return false;
}

/* ---- the steps ---- */

static uint64_t writes_seen(const struct mount *m)
{
	struct file_counts n;

	file_count(m->file, &n);
	return n.writes;
}

/* Nobody can have written without our knowledge: a sync has been, or the mount is gone. */
static bool something_new(struct mount *m)
{
	return m->region ? mount_unsafe(m) > 0 : writes_seen(m) != m->end.writes;
}

static bool saves(const struct mount *m)
{
	return !m->read_only && !m->store->info.read_only;
}

static void synced(struct file_call *call, int err)
{
	struct mount *m = CONTAINER_OF(call, struct mount, end.call);
	struct mount_end *end = &m->end;

	end->calling = false;
	if (end_turned(m))
		return;
	if (end->gone)
		end_flush(m);
	else if (err)
		end_fail(m, err, "writing back what the kernel has");
	else if (!end->rounds || (something_new(m) && end->rounds < ROUNDS_MAX))
		end_flush(m);
	else
		end_detach(m);
}

static void end_sync(struct mount *m)
{
	struct mount_end *end = &m->end;

	if (end->gone || !saves(m)) {
		if (end->gone)
			end_flush(m);
		else
			end_detach(m);
		return;
	}
	end->phase = END_SYNC;
	end->calling = true;
	end->call = (struct file_call){ .done = synced };
	file_sync(m->file, &end->call);
}

static void pause_next(struct mount *m, int err)
{
	struct mount_end *end = &m->end;
	uint64_t ns = PAUSE_MIN_NS << MIN(end->tries, 5u), unsafe = mount_unsafe(m);
	const char *why = mount_why(m);
	char text[ERR_TEXT_MAX], size[SIZE_TEXT_MAX];

	snprintf(text, sizeof(text), "it is unmounted, but what was written is not safe yet: %s%s%s%s",
		 strerror(-err), *why ? " (" : "", why, *why ? ")" : "");
	if (!end->tries++)
		log_error(&m->run.env.log,
			  "%s; this process keeps it (%s) and goes on trying (remora unmount --force "
			  "gives it up)",
			  text, size_format(unsafe, size));
	end->phase = END_PAUSE;
	timer_set(m->run.loop, &end->pause, loop_now(m->run.loop) + MIN(ns, PAUSE_MAX_NS));
	timer_clear(m->run.loop, &end->show);
	service_tell("STATUS=%s", text);
	waiters_fail(m, err, text);
}

static void flushed(struct req *req, int err)
{
	struct mount *m = req->user;
	struct mount_end *end = &m->end;

	end->flushing = false;
	if (end_turned(m))
		return;
	if (end->gone && err)
		pause_next(m, err);
	else if (end->gone && something_new(m) && end->rounds++ < ROUNDS_MAX)
		end_flush(m);
	else if (end->gone)
		end_done(m);
	else if (err)
		end_fail(m, err, "making it safe");
	else {
		end->rounds++;
		end_sync(m);
	}
}

static void end_flush(struct mount *m)
{
	struct mount_end *end = &m->end;

	if (!saves(m) || m->store->info.flush == CAP_NONE) {
		if (end->gone)
			end_done(m);
		else
			end_detach(m);
		return;
	}
	end->phase = END_FLUSH;
	end->flushing = true;
	end->writes = writes_seen(m);
	end->unsafe_start = MAX(end->unsafe_start, mount_unsafe(m));
	end->req = (struct req){ .op = REQ_FLUSH, .done = flushed, .user = m };
	req_submit(m->store, &end->req);
}

static void pause_over(struct timer *timer)
{
	struct mount *m = CONTAINER_OF(timer, struct mount, end.pause);

	switch (m->end.phase) {
	case END_USERS:
		end_users(m);
		return;
	case END_DETACH:
		end_detach(m);
		return;
	default:
		end_flush(m);
	}
}

/* The mount is gone; what is not safe is to become so. */
static void end_gone(struct mount *m)
{
	m->end.gone = true;
	m->end.rounds = m->end.tries = 0;
	if (!m->end.calling && !m->end.flushing)
		end_flush(m);
}

static void detached(struct file_call *call, int err)
{
	struct mount *m = CONTAINER_OF(call, struct mount, end.call);
	struct mount_end *end = &m->end;
	bool lazy = call->lazy;

	end->calling = false;
	if (end->phase == END_DONE)
		return;
	end->redo = end->abandoned = false; /* too late for both */
	if (end->gone) { /* meanwhile, by somebody else */
		end_flush(m);
	} else if (err == -EBUSY && !file_users(m->file) && end->tries++ < BUSY_TRIES) {
		timer_set(m->run.loop, &end->pause, loop_now(m->run.loop) + BUSY_NS);
	} else if (err) {
		end_fail(m, err, err == -EBUSY ? "detaching (somebody has opened it meanwhile)" :
						 "detaching");
	} else if (!lazy || end->by_signal || !file_users(m->file)) {
		end_gone(m);
	} else {
		end->phase = END_LAZY; /* until hooks.gone */
		file_shut(m->file, false);
		log_info(&m->run.env.log, "detached; %u still have it open", file_users(m->file));
		waiters_ok(m, "users", file_users(m->file));
	}
}

static void end_detach(struct mount *m)
{
	struct mount_end *end = &m->end;

	end->phase = END_DETACH;
	end->calling = true;
	end->call = (struct file_call){ .done = detached, .lazy = end->lazy || end->by_signal };
	file_detach(m->file, &end->call);
}

/* ---- the ways in ---- */

static void end_begin(struct mount *m)
{
	struct mount_end *end = &m->end;

	end->abandoned = false;
	end->rounds = end->tries = 0;
	end->unsafe_start = 0;
	file_shut(m->file, true);
	service_tell("STATUS=unmounting");
	end_sync(m);
}

/* Who has it open is asked to go, unless he is just going. */
static void end_users(struct mount *m)
{
	struct mount_end *end = &m->end;
	unsigned users = file_users(m->file);
	char text[ERR_TEXT_MAX];

	end->phase = END_USERS;
	if (!users || end->lazy || end->by_signal) {
		end_begin(m);
	} else if (!list_empty(&end->waiters) && end->tries++ < BUSY_TRIES) {
		timer_set(m->run.loop, &end->pause, loop_now_fresh(m->run.loop) + BUSY_NS);
	} else {
		end->phase = END_NONE;
		snprintf(text, sizeof(text),
			 "%u %s it open: end them first, or use --lazy, which lets them go on",
			 users, users == 1 ? "user has" : "users have");
		waiters_fail(m, -EBUSY, text);
	}
}

/* Something else than NONE is going on, and one more wants it. */
static void end_join(struct mount *m)
{
	struct mount_end *end = &m->end;

	if (end->phase == END_PAUSE) {
		timer_clear(m->run.loop, &end->pause);
		end_flush(m);
	} else if (end->abandoned) {
		end->redo = true;
		file_shut(m->file, true);
	}
}

static struct end_waiter *waiter_add(struct mount *m, struct control_call *call, uint64_t ns)
{
	struct end_waiter *w = calloc(1, sizeof(*w));
	uint64_t now = loop_now_fresh(m->run.loop);

	if (!w) {
		control_fail(call, -ENOMEM, "no memory");
		return NULL;
	}
	w->call = call;
	w->until_ns = !ns || ns > NEVER_NS - now ? NEVER_NS : now + ns;
	list_push_back(&m->end.waiters, &w->link);
	if (!timer_is_set(&m->end.show))
		timer_set(m->run.loop, &m->end.show, now + MOUNT_SHOW_NS);
	return w;
}

void mount_end_ask(void *arg, struct control_call *call, json_t *args)
{
	struct mount *m = arg;
	struct mount_end *end = &m->end;
	bool force = false, lazy = false;
	int64_t timeout_ns = 0;
	const struct control_arg known[] = {
		{ "force", CONTROL_BOOL, &force, 0, 0 },
		{ "lazy", CONTROL_BOOL, &lazy, 0, 0 },
		{ "timeout_ns", CONTROL_INT, &timeout_ns, 0, 0 },
		{ 0 },
	};

	if (control_args(call, args, known) || !mount_up(m, call))
		return;
	if (!waiter_add(m, call, (uint64_t)timeout_ns))
		return;
	end->lazy = end->phase == END_NONE ? lazy : end->lazy || lazy;
	log_info(&m->run.env.log, "unmount: asked for%s%s", lazy ? ", lazily" : "",
		 force ? ", by force" : "");
	if (force) {
		end_force(m);
	} else if (end->phase == END_NONE) {
		end->tries = 0;
		end_users(m);
	} else {
		end_join(m);
	}
}

void mount_end_signal(struct run *run)
{
	struct mount *m = CONTAINER_OF(run, struct mount, run);
	struct mount_end *end = &m->end;

	if (!m->up) { /* not mounted yet, or not any more */
		if (run->signals > 1)
			_exit(CMD_INCOMPLETE);
		m->stop = true;
		return;
	}
	log_info(&run->env.log, "signal %d", run->last_signal);
	service_tell("STOPPING=1");
	if (end->signalled) {
		end_force(m);
		return;
	}
	end->signalled = end->by_signal = true;
	if (end->phase == END_NONE)
		end_begin(m);
	else if (end->phase == END_LAZY)
		end_gone(m); /* who has it open is not waited for any more */
	else
		end_join(m);
}

void mount_gone(void *arg)
{
	struct mount *m = arg;

	if (m->end.phase == END_DONE || m->end.gone)
		return;
	log_info(&m->run.env.log, m->end.phase == END_LAZY ? "the last user is done"
							    : "unmounted from outside");
	timer_clear(m->run.loop, &m->end.pause);
	end_gone(m);
}

/* ---- the end of the end ---- */

void mount_end_init(struct mount *m)
{
	list_init(&m->end.waiters);
	m->end.show.fire = show;
	m->end.pause.fire = pause_over;
}

void mount_end_settle(struct mount *m)
{
	if (!m->run.loop)
		return;
	timer_clear(m->run.loop, &m->end.show);
	timer_clear(m->run.loop, &m->end.pause);
	m->end.phase = END_DONE;
	while (m->end.calling || m->end.flushing)
		if (loop_step(m->run.loop, NEVER_NS))
			return;
}

void mount_end_answer(struct mount *m)
{
	waiters_ok(m, "lost_bytes", m->end.lost_bytes);
}
