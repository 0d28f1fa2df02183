/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public API's direct use: a far store without a region, on a loop's thread of its own.
 *
 * Place: program's thread -> host_request() -> the store. Each call is a trip to the far side; a
 * long one is several requests at once.
 *
 * Locking: host.c's.
 */
#include <errno.h>
#include <stdlib.h>

#include "api/host.h"

struct remora_store {
	struct host host;
	struct store *store;
	uint64_t size;
};

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
	err = host_open(&s->host, spec, options, &e);
	if (err)
		free(s);
	else
		*ret = s;
	return host_error(error, &e, err);
}

uint64_t remora_store_size(const struct remora_store *s)
{
	return s->size;
}

static int transfer(struct remora_store *s, enum req_op op, uint64_t off, void *buf, size_t len)
{
	int err = host_may_wait(&s->host);

	if (!err && !range_within(range_of(off, len), s->size))
		err = -EINVAL;
	if (err || !len)
		return err;
	return host_request(&s->host, s->store, op, off, buf, len);
}

int remora_store_read(struct remora_store *s, uint64_t off, void *buf, size_t len)
{
	return transfer(s, REQ_READ, off, buf, len);
}

int remora_store_write(struct remora_store *s, uint64_t off, const void *buf, size_t len)
{
	return transfer(s, REQ_WRITE, off, (void *)(uintptr_t)buf,
			len); /* a WRITE's buffer is only read */
}

int remora_store_flush(struct remora_store *s)
{
	int err = host_may_wait(&s->host);

	return err ? err : host_request(&s->host, s->store, REQ_FLUSH, 0, NULL, 0);
}

void remora_store_close(struct remora_store *s)
{
	if (!s || host_may_wait(&s->host))
		return;
	host_close(&s->host);
	free(s);
}
