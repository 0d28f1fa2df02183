/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread of a public handle.
 *
 * Place: program's threads -> loop_post() or loop_call() -> the thread here, which runs stores and
 * region -> host_end() -> the program's thread that waits.
 *
 * Invariants: everything below the API is made, used and freed in the loop's thread. A wait lives
 * on the stack of who waits, and is not touched after its `ended` was set under the lock.
 *
 * Locking: `lock` guards the `ended` of all waits of a handle; nothing else is shared.
 */
#include "api/host.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PIECES_MAX 8u /* requests at a time that one long read or write becomes */
#define POOL_SPARE 2u /* threads beside those that the user's callbacks take */

static_assert(sizeof(((struct remora_error *)0)->text) >= ERR_TEXT_MAX,
	      "a text of ours fits into the public one");

/* ---- options ---- */

/* The struct may be of an older program (shorter) or a newer one (longer: what we do not know must
 * be zeros). */
static int options_take(struct remora_options *to, const struct remora_options *from, struct err *e)
{
	size_t size = from->struct_size ? from->struct_size : sizeof(*to);
	const uint8_t *bytes = (const uint8_t *)from;

	if (size < sizeof(from->struct_size) || size > PAGE_BYTES)
		return err_set(
			e, -EINVAL,
			"options: struct_size is %zu; sizeof(struct remora_options) or 0 is meant",
			size);
	for (size_t i = sizeof(*to); i < size; i++)
		if (bytes[i])
			return err_set(
				e, -E2BIG,
				"options: the program was built for a newer version of the library than %s and "
				"asks for something that this one does not know",
				remora_version());
	memcpy(to, from, MIN(size, sizeof(*to)));
	return 0;
}

static int options_check(const struct remora_options *o, struct err *e)
{
	if (o->read_only && o->private_copy)
		return err_set(e, -EINVAL,
			       "options: read_only and private_copy exclude each other");
	if (o->chunk && (!is_pow2(o->chunk) || o->chunk < CHUNK_MIN || o->chunk > CHUNK_MAX))
		return err_set(e, -EINVAL,
			       "options: chunk is %u; a power of two from %llu to %llu is meant",
			       o->chunk, CHUNK_MIN, CHUNK_MAX);
	if ((unsigned)o->pull > REMORA_PULL_ALL)
		return err_set(e, -EINVAL, "options: pull is %d, which is none of REMORA_PULL_*",
			       (int)o->pull);
	if ((unsigned)o->on_loss > REMORA_LOSS_READONLY)
		return err_set(e, -EINVAL, "options: on_loss is %d, which is none of REMORA_LOSS_*",
			       (int)o->on_loss);
	if ((unsigned)o->log_max > REMORA_LOG_DEBUG)
		return err_set(e, -EINVAL, "options: log_max is %d, which is none of REMORA_LOG_*",
			       (int)o->log_max);
	if (o->pull_range_count && !o->pull_ranges)
		return err_set(e, -EINVAL,
			       "options: pull_range_count is %zu, but pull_ranges is NULL",
			       o->pull_range_count);
	for (size_t i = 0; i < o->pull_range_count; i++)
		if (!range_valid(range_of(o->pull_ranges[i].off, o->pull_ranges[i].len)))
			return err_set(e, -EINVAL, "options: pull_ranges[%zu] goes beyond 2^64", i);
	if (o->loop && strcmp(o->loop, "io_uring") && strcmp(o->loop, "epoll"))
		return err_set(e, -EINVAL,
			       "options: loop is \"%s\"; \"io_uring\", \"epoll\" or NULL is meant",
			       o->loop);
	if (o->engine && strcmp(o->engine, "auto") && strcmp(o->engine, "userfaultfd") &&
	    strcmp(o->engine, "file"))
		return err_set(e, -EINVAL,
			       "options: engine is \"%s\"; \"userfaultfd\", \"file\", \"auto\" or NULL is "
			       "meant", o->engine);
	if (o->near && (o->private_copy || (o->engine && !strcmp(o->engine, "userfaultfd"))))
		return err_set(e, -EINVAL,
			       "options: near is for the engine \"file\", and not for a private copy");
	if (o->callbacks && (!o->callbacks->read || !o->callbacks->size))
		return err_set(e, -EINVAL, "options: callbacks need read and size at least");
	return 0;
}

/* ---- log ---- */

static_assert((int)REMORA_LOG_ERROR == LOG_ERROR && (int)REMORA_LOG_DEBUG == LOG_DEBUG,
	      "levels are the same numbers");

static void log_emit(void *arg, enum log_level level, const char *text)
{
	const struct host *host = arg;

	host->options.log(host->options.log_arg, (enum remora_level)level, text);
}

/* ---- the thread ---- */

static int loop_make(struct host *host, struct err *e)
{
	const struct remora_options *o = &host->options;
	struct loop_options lo = { .env = &host->env };

	if (o->loop)
		lo.engine = !strcmp(o->loop, "epoll") ? LOOP_EPOLL : LOOP_URING;
	if (o->callbacks && o->callbacks->threads > POOL_SPARE)
		lo.pool_threads = MIN(o->callbacks->threads, BACK_OPS_MAX) + POOL_SPARE;
	return loop_open(&host->loop, &lo, e);
}

/* The loop is all that can answer a page fault: without it every thread of the program would hang,
 * silently. So a loop that breaks is taken for a broken invariant. */
static void *host_main(void *arg)
{
	struct host *host = arg;
	struct err *e = host->start.e;
	int err = loop_make(host, e);

	if (!err) {
		err = host->setup(host, host->start.spec, e);
		if (err)
			loop_close(host->loop);
	}
	host_end(host, &host->start.wait, err);
	if (err)
		return NULL;
	err = loop_run(host->loop);
	CHECK(err == 0);
	host->teardown(host);
	loop_close(host->loop);
	return NULL;
}

static int thread_start(struct host *host)
{
	sigset_t all, before;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = -pthread_create(&host->thread, NULL, host_main, host);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!err)
		pthread_setname_np(host->thread, "remora-loop");
	return err;
}

int host_open(struct host *host, const char *spec, const struct remora_options *options,
	      struct err *e)
{
	int err = 0;

	if (!spec)
		return err_set(e, -EINVAL, "no spec: which resource is meant?");
	if (options)
		err = options_take(&host->options, options, e);
	if (!err)
		err = options_check(&host->options, e);
	if (err)
		return err;
	host->options.struct_size = sizeof(host->options);
	env_init(&host->env);
	if (host->options.log)
		host->env.log = (struct log){ log_emit, host,
					      (enum log_level)host->options.log_max };
	host->pid = getpid();
	host->start.spec = spec;
	host->start.e = e;
	pthread_mutex_init(&host->lock, NULL);
	pthread_cond_init(&host->change, NULL);
	err = thread_start(host);
	if (err) {
		err_sys(e, err, "starting the loop's thread");
	} else {
		err = host_wait(host, &host->start.wait);
		if (err)
			pthread_join(host->thread, NULL);
	}
	if (err) {
		pthread_cond_destroy(&host->change);
		pthread_mutex_destroy(&host->lock);
	}
	return err;
}

static void stop(void *arg)
{
	loop_stop(arg);
}

/* Nobody else calls any more (that is the caller's promise), so every wait has ended. The thread is
 * the last that touches the loop, and it ends here; posts that were on their way out are waited for
 * by loop_close(). */
void host_close(struct host *host)
{
	loop_call(host->loop, stop, host->loop);
	pthread_join(host->thread, NULL);
	pthread_cond_destroy(&host->change);
	pthread_mutex_destroy(&host->lock);
}

/* ---- waiting for it ---- */

void host_end(struct host *host, struct host_wait *wait, int err)
{
	pthread_mutex_lock(&host->lock);
	CHECK(!wait->ended);
	wait->err = err;
	wait->ended = true;
	pthread_cond_broadcast(&host->change);
	pthread_mutex_unlock(&host->lock);
}

int host_wait(struct host *host, struct host_wait *wait)
{
	pthread_mutex_lock(&host->lock);
	while (!wait->ended)
		pthread_cond_wait(&host->change, &host->lock);
	pthread_mutex_unlock(&host->lock);
	return wait->err;
}

int host_may_wait(const struct host *host)
{
	if (getpid() != host->pid)
		return -ECHILD;
	return pthread_equal(pthread_self(), host->thread) ? -EDEADLK : 0;
}

/* ---- requests ---- */

struct piece {
	struct req req;
	struct post post;
	struct store *store;
	struct host *host;
	struct host_wait wait;
};

static void piece_done(struct req *req, int err)
{
	struct piece *piece = CONTAINER_OF(req, struct piece, req);

	host_end(piece->host, &piece->wait, err);
}

static void piece_run(struct post *post)
{
	struct piece *piece = CONTAINER_OF(post, struct piece, post);

	req_submit(piece->store, &piece->req);
}

int host_request(struct host *host, struct store *store, enum req_op op, uint64_t off, void *buf,
		 size_t len, uint64_t *ret_instance)
{
	uint64_t piece_len = store->info.len_max; /* fixed since it was opened */
	uint64_t instance = 0;
	struct piece piece[PIECES_MAX];
	size_t at = 0;
	int err = 0;

	do {
		size_t count = 0;

		do {
			struct range r = range_of(off + at, MIN(len - at, piece_len));

			piece[count] = (struct piece){ .post.run = piece_run,
						       .store = store,
						       .host = host };
			piece[count].req = (struct req){ .op = op, .range = r, .done = piece_done };
			if (buf)
				piece[count].req.data = (struct iobuf){ (uint8_t *)buf + at,
									r.len };
			loop_post(host->loop, &piece[count].post);
			at += r.len;
			count++;
		} while (at < len && count < PIECES_MAX);
		for (size_t i = 0; i < count; i++) {
			int one = host_wait(host, &piece[i].wait);

			err = err ? err : one;
			if (piece[i].req.ret_instance != instance)
				instance = instance ? INSTANCE_MIXED : piece[i].req.ret_instance;
		}
	} while (at < len && !err);
	if (ret_instance)
		*ret_instance = instance;
	return err;
}

struct store_open host_store_open(struct host *host, struct range first)
{
	const struct remora_options *o = &host->options;
	uint64_t now = loop_now_fresh(host->loop);

	return (struct store_open){
		.loop = host->loop,
		.read_only = o->read_only || o->private_copy,
		.deadline_ns = o->deadline_ms && o->deadline_ms != UINT32_MAX
				       ? now + o->deadline_ms * NS_PER_MS
				       : NEVER_NS,
		.callbacks = o->callbacks,
		.callbacks_arg = o->callbacks_arg,
		.first = first,
	};
}

int host_error(struct remora_error *to, const struct err *e, int err)
{
	if (to) {
		memset(to, 0, sizeof(*to));
		to->code = err;
		if (err)
			snprintf(to->text, sizeof(to->text), "%s", e->text);
	}
	return err;
}
