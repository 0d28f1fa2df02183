/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads for calls that can only block: OP_WORK of any engine, and the file operations of the
 * epoll engine.
 *
 * Place: engines hand ops down with pool_submit(); results come back over one post to the loop,
 * however many have ended meanwhile.
 *
 * Invariants: an op is on `queue` (op->engine is the pool), in the hands of one thread, or on
 * `ended`. Threads are made when there is work and nobody idle, up to the maximum, and end with the
 * pool.
 *
 * Locking: `lock` guards everything here; an op in the hands of a thread is that thread's alone.
 */
#include "io/loop_int.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#define POOL_THREADS_MAX 256u

struct pool {
	struct loop *loop;
	pthread_mutex_t lock;
	pthread_cond_t wanted;
	struct list queue, ended; /* ops */
	struct post post;
	bool posted, quit;
	unsigned idle, threads, threads_max;
	size_t queued;
	pthread_t thread[];
};

static void pool_collect(struct post *post)
{
	struct pool *pool = CONTAINER_OF(post, struct pool, post);
	struct list batch;
	struct link *k;

	list_init(&batch);
	pthread_mutex_lock(&pool->lock);
	list_splice_back(&batch, &pool->ended);
	pool->posted = false;
	pthread_mutex_unlock(&pool->lock);
	while ((k = list_pop_front(&batch)))
		loop_complete(pool->loop, op_of(k), op_of(k)->res);
}

static int op_execute(struct op *op)
{
	if (op->kind == OP_WORK) {
		struct work *work = CONTAINER_OF(op, struct work, op);

		return work->call(work);
	}
	return file_call(op);
}

static void *pool_thread(void *arg)
{
	struct pool *pool = arg;

	pthread_mutex_lock(&pool->lock);
	while (!pool->quit) {
		struct link *k = list_pop_front(&pool->queue);
		bool post;
		struct op *op;

		if (!k) {
			pool->idle++;
			pthread_cond_wait(&pool->wanted, &pool->lock);
			pool->idle--;
			continue;
		}
		pool->queued--;
		op = op_of(k);
		op->engine = NULL; /* started: too late to cancel */
		pthread_mutex_unlock(&pool->lock);
		op->res = op_execute(op);
		pthread_mutex_lock(&pool->lock);
		list_push_back(&pool->ended, &op->link);
		post = !pool->posted;
		pool->posted = true;
		if (post)
			loop_post(pool->loop, &pool->post);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* Signals are the business of the program's own threads. */
static int thread_start(struct pool *pool)
{
	sigset_t all, before;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&pool->thread[pool->threads], NULL, pool_thread, pool);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!err)
		pool->threads++;
	return -err;
}

int pool_open(struct pool **ret, struct loop *loop, unsigned threads_max)
{
	struct pool *pool;

	threads_max = MIN(threads_max, POOL_THREADS_MAX);
	pool = calloc(1, sizeof(*pool) + threads_max * sizeof(pool->thread[0]));
	if (!pool)
		return -ENOMEM;
	pool->loop = loop;
	pool->threads_max = threads_max;
	pool->post.run = pool_collect;
	list_init(&pool->queue);
	list_init(&pool->ended);
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->wanted, NULL);
	*ret = pool;
	return 0;
}

void pool_close(struct pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	CHECK(list_empty(&pool->queue) && list_empty(&pool->ended));
	pool->quit = true;
	pthread_cond_broadcast(&pool->wanted);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->threads; i++)
		pthread_join(pool->thread[i], NULL);
	pthread_cond_destroy(&pool->wanted);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

void pool_submit(struct pool *pool, struct op *op)
{
	int err = 0;

	pthread_mutex_lock(&pool->lock);
	op->where = AT_POOL;
	op->engine = pool;
	list_push_back(&pool->queue, &op->link);
	pool->queued++;
	if (pool->idle)
		pthread_cond_signal(&pool->wanted);
	if (pool->queued > pool->idle && pool->threads < pool->threads_max)
		err = thread_start(pool);
	if (err && !pool->threads) { /* fewer threads than wished are enough; none is not */
		link_remove(&op->link);
		pool->queued--;
		op->where = AT_ENGINE;
		loop_complete(pool->loop, op, err);
	}
	pthread_mutex_unlock(&pool->lock);
}

void pool_renew(struct loop *loop)
{
	struct pool *pool = loop_pool(loop);

	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->quit = true;
	pthread_cond_broadcast(&pool->wanted);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->threads; i++)
		pthread_join(pool->thread[i], NULL);
	pool->quit = false;
	pool->threads = 0;
	/* Work that has been queued meanwhile has nobody who was told of it. */
	pthread_mutex_lock(&pool->lock);
	if (pool->queued)
		(void)thread_start(pool);
	pthread_mutex_unlock(&pool->lock);
}

void pool_cancel(struct pool *pool, struct op *op)
{
	pthread_mutex_lock(&pool->lock);
	if (op->engine == pool) {
		link_remove(&op->link);
		pool->queued--;
		loop_complete(pool->loop, op, -ECANCELED);
	}
	pthread_mutex_unlock(&pool->lock);
}

void pool_run(struct loop *loop, struct work *work)
{
	CHECK(work->call);
	op_begin(loop, &work->op, OP_WORK, -1);
	loop->engine->submit(loop, &work->op);
}
