/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public API's direct use: a far store without a region, on a loop's thread of its own.
 *
 * Place: program's thread -> host_request() -> the store. Each call is a trip to the far side; a
 * long one is several requests at once.
 *
 * Invariants: a flush that succeeds was answered by the instance that took the writes before it.
 * One that another instance answers (the far side was restarted, or could not make durable what it
 * had) says nothing of them: it fails, and the program writes again.
 *
 * Locking: host.c's; `lock` guards what is known of unflushed writes.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "api/host.h"

struct remora_store {
	struct host host;
	struct store *store;
	uint64_t size;
	pthread_mutex_t lock;
	bool unflushed;
	uint64_t instance; /* that took what is unflushed; INSTANCE_MIXED: several */
};

/* ---- which instance has what ---- */

static void unflushed_add(struct remora_store *s, uint64_t instance)
{
	pthread_mutex_lock(&s->lock);
	if (s->unflushed && s->instance != instance)
		instance = INSTANCE_MIXED;
	s->unflushed = true;
	s->instance = instance;
	pthread_mutex_unlock(&s->lock);
}

static bool unflushed_take(struct remora_store *s, uint64_t *ret_instance)
{
	bool taken;

	pthread_mutex_lock(&s->lock);
	taken = s->unflushed;
	*ret_instance = s->instance;
	s->unflushed = false;
	pthread_mutex_unlock(&s->lock);
	return taken;
}

/* ---- life ---- */

static int setup(struct host *host, const char *spec, struct err *e)
{
	struct remora_store *s = CONTAINER_OF(host, struct remora_store, host);
	struct store_open how = host_store_open(host, range_of(0, 0));
	int err = spec_open(&s->store, spec, &how, e);

	if (!err)
		s->size = s->store->info.size;
	return err;
}

static void teardown(struct host *host)
{
	store_close_wait(CONTAINER_OF(host, struct remora_store, host)->store);
}

static void store_free(struct remora_store *s)
{
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int remora_store_open(struct remora_store **ret, const char *spec,
		      const struct remora_options *options, struct remora_error *error)
{
	struct err e = { 0 };
	struct remora_store *s = calloc(1, sizeof(*s));
	int err;

	*ret = NULL;
	if (!s)
		return host_error(error, &e, err_sys(&e, -ENOMEM, "opening a store"));
	s->host.setup = setup;
	s->host.teardown = teardown;
	pthread_mutex_init(&s->lock, NULL);
	err = host_open(&s->host, spec, options, &e);
	if (err)
		store_free(s);
	else
		*ret = s;
	return host_error(error, &e, err);
}

uint64_t remora_store_size(const struct remora_store *s)
{
	return s->size;
}

/* ---- use ---- */

static int transfer_check(struct remora_store *s, uint64_t off, size_t len)
{
	int err = host_may_wait(&s->host);

	return err ? err : range_within(range_of(off, len), s->size) ? 0 : -EINVAL;
}

int remora_store_read(struct remora_store *s, uint64_t off, void *buf, size_t len)
{
	int err = transfer_check(s, off, len);

	return err || !len ? err : host_request(&s->host, s->store, REQ_READ, off, buf, len, NULL);
}

int remora_store_write(struct remora_store *s, uint64_t off, const void *buf, size_t len)
{
	int err = transfer_check(s, off, len);
	uint64_t instance;

	if (err || !len)
		return err;
	err = host_request(&s->host, s->store, REQ_WRITE, off, (void *)(uintptr_t)buf, len,
			   &instance); /* a WRITE's buffer is only read */
	if (!err)
		unflushed_add(s, instance);
	return err;
}

int remora_store_flush(struct remora_store *s)
{
	uint64_t took, answered;
	int err = host_may_wait(&s->host);
	bool unflushed;

	if (err)
		return err;
	unflushed = unflushed_take(s, &took);
	err = host_request(&s->host, s->store, REQ_FLUSH, 0, NULL, 0, &answered);
	if (err && unflushed)
		unflushed_add(s, took);
	return !err && unflushed && answered != took ? -EIO : err;
}

void remora_store_close(struct remora_store *s)
{
	if (!s || host_may_wait(&s->host))
		return;
	host_close(&s->host);
	store_free(s);
}
