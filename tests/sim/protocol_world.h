/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated world of the protocol's tests: a disk that outlives its server, a store on it that
 * takes its time, a server that crashes and comes back, and a client.
 */
#ifndef TEST_PROTOCOL_WORLD_H
#define TEST_PROTOCOL_WORLD_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "back/remora.h"
#include "base/cleanup.h"
#include "front/server.h"
#include "io/sim.h"
#include "store/spec.h"
#include "seed.h"

#define CELL 8192u
#define CELLS 64u
#define SIZE (CELL * CELLS)
#define DEPTH 24u
#define TASKS 512u
#define MS NS_PER_MS

const struct store_kind store_kinds[] = { { 0 } }; /* no specs here */

/* ---- the disk, which outlives its server, and the store on it ---- */

struct disk {
	uint64_t version[CELLS], durable[CELLS];
	uint64_t size;
	uint64_t landed_old; /* writes that found something newer in their place: must stay 0 */
	uint64_t writes;
	/* of the store: how long it takes */
	uint64_t delay_max_ns, slow_max_ns;
	uint32_t slow_per_million, error_per_million;
	struct rng rng;
};

struct task {
	struct timer timer;
	struct req *req;
	struct tstore *store;
};

struct tstore {
	struct store store;
	struct disk *disk;
	struct task task[TASKS];
};

/* A cell's bytes follow from its number and version; some blocks of it are zeros, so that runs are
 * at work. */
static void cell_fill(uint8_t *at, unsigned cell, uint64_t version)
{
	uint64_t word = version << 8 | (cell & 0xff);

	memset(at, 0, CELL);
	for (unsigned i = 0; i < CELL; i += 8)
		if ((i < CELL / 2) ^ (version % 3 == 1) || version % 3 == 2)
			memcpy(at + i, &word, 8);
}

static uint64_t cell_parse(const uint8_t *at, unsigned cell)
{
	uint8_t expected[CELL];
	uint64_t word, other;

	memcpy(&word, at, 8);
	memcpy(&other, at + CELL / 2, 8);
	word = word ? word : other;
	if (word)
		assert_int_equal(word & 0xff, cell & 0xff);
	/* Version 0 is how it all begins: zeros. */
	cell_fill(expected, cell, word >> 8);
	if (word)
		assert_memory_equal(at, expected, CELL);
	else
		for (unsigned i = 0; i < CELL; i++)
			assert_int_equal(at[i], 0);
	return word >> 8;
}

static void disk_init(struct disk *d, uint64_t seed)
{
	memset(d, 0, sizeof(*d));
	d->size = SIZE;
	d->delay_max_ns = 3 * MS;
	rng_init(&d->rng, seed);
}

static void disk_write(struct disk *d, const struct req *req)
{
	unsigned first = (unsigned)(req->range.off / CELL);
	unsigned count = (unsigned)(req->range.len / CELL);

	for (unsigned i = 0; i < count; i++) {
		uint64_t version = cell_parse(req->data.base + (size_t)i * CELL, first + i);

		if (version < d->version[first + i])
			d->landed_old++;
		d->version[first + i] = version;
		d->writes++;
	}
}

static void disk_read(const struct disk *d, const struct req *req)
{
	unsigned first = (unsigned)(req->range.off / CELL);
	unsigned count = (unsigned)(req->range.len / CELL);

	for (unsigned i = 0; i < count; i++) {
		if (d->version[first + i])
			cell_fill(req->data.base + (size_t)i * CELL, first + i,
				  d->version[first + i]);
		else
			memset(req->data.base + (size_t)i * CELL, 0, CELL);
	}
}

static void task_run(struct timer *timer)
{
	struct task *t = CONTAINER_OF(timer, struct task, timer);
	struct req *req = t->req;
	struct disk *d = t->store->disk;
	int err = 0;

	t->req = NULL;
	if (rng_chance(&d->rng, d->error_per_million)) {
		req->ret_why = "the simulated disk failed";
		err = -EIO;
	} else if (req->op == REQ_WRITE) {
		disk_write(d, req);
	} else if (req->op == REQ_READ) {
		disk_read(d, req);
	} else if (req->op == REQ_FLUSH) {
		memcpy(d->durable, d->version, sizeof(d->durable));
	}
	req_done(req, err);
}

static void tstore_submit(struct store *store, struct req *req)
{
	struct tstore *s = CONTAINER_OF(store, struct tstore, store);
	struct disk *d = s->disk;
	uint64_t wait = rng_below(&d->rng, d->delay_max_ns + 1);

	if (rng_chance(&d->rng, d->slow_per_million))
		wait += rng_below(&d->rng, d->slow_max_ns + 1);
	for (unsigned i = 0; i < TASKS; i++) {
		if (s->task[i].req)
			continue;
		s->task[i].req = req;
		timer_set(store->loop, &s->task[i].timer, loop_now(store->loop) + wait);
		return;
	}
	fail_msg("more requests in the store than the server may send");
}

static void tstore_abort(struct store *store)
{
	struct tstore *s = CONTAINER_OF(store, struct tstore, store);

	for (unsigned i = 0; i < TASKS; i++) {
		struct req *req = s->task[i].req;

		if (!req)
			continue;
		timer_clear(store->loop, &s->task[i].timer);
		s->task[i].req = NULL;
		req_done(req, -ESHUTDOWN);
	}
}

static const struct store_ops tstore_ops = { .name = "disk", .submit = tstore_submit,
					     .abort = tstore_abort };

static struct tstore *tstore_open(struct loop *loop, struct disk *d)
{
	struct tstore *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->disk = d;
	for (unsigned i = 0; i < TASKS; i++) {
		s->task[i].timer.fire = task_run;
		s->task[i].store = s;
	}
	s->store.info = (struct store_info){ .size = d->size, .align = CELL, .len_max = 16 * CELL,
					     .flush = CAP_NATIVE, .fua = CAP_NONE };
	store_init(&s->store, &tstore_ops, loop, NULL);
	return s;
}

/* ---- the world ---- */

struct world {
	struct sim *sim;
	struct rng rng;
	struct disk disk;
	struct server_limits limits;
	struct sock_addr addr;
	struct loop *server_loop, *client_loop;
	struct tstore *store;
	struct server *server;
	struct store *client;
	unsigned lost, back, restarted;
	uint64_t instances[64];
	unsigned instance_count;
};

static void server_up(struct world *w)
{
	struct loop_options lo = { .engine = LOOP_SIM, .sim = w->sim };
	struct server_export x = { .name = "disk" };
	struct server_options o = { .exports = &x, .export_count = 1, .limits = w->limits };
	struct err e = { 0 };

	CHECK(!w->server);
	assert_int_equal(loop_open(&w->server_loop, &lo, &e), 0);
	w->store = tstore_open(w->server_loop, &w->disk);
	x.store = &w->store->store;
	assert_int_equal(server_open(&w->server, w->server_loop, &o, &e), 0);
	if (server_listen(w->server, &w->addr, NULL, &e))
		fail_msg("%s", e.text);
}

static void server_crash(struct world *w, bool lose)
{
	if (!w->server)
		return;
	sim_crash(w->sim, w->server_loop);
	server_abandon(w->server);
	free(w->store);
	w->server = NULL;
	w->server_loop = NULL;
	for (unsigned i = 0; lose && i < CELLS; i++) {
		if (rng_chance(&w->disk.rng, 500000))
			w->disk.version[i] = w->disk.durable[i];
		w->disk.durable[i] = w->disk.version[i];
	}
}

static void set_flag(void *arg)
{
	*(bool *)arg = true;
}

static void server_down(struct world *w, uint64_t grace_ns)
{
	bool closed = false, store_closed = false;

	if (!w->server)
		return;
	server_close(w->server, grace_ns, set_flag, &closed);
	assert_int_equal(sim_run_until(w->sim, &closed, NEVER_NS), 0);
	store_abort(&w->store->store);
	store_close(&w->store->store, set_flag, &store_closed);
	assert_int_equal(sim_run_until(w->sim, &store_closed, NEVER_NS), 0);
	loop_close(w->server_loop);
	w->server = NULL;
	w->server_loop = NULL;
}

static void on_event(void *arg, struct store *store, enum store_event event)
{
	struct world *w = arg;

	if (event == STORE_LOST)
		w->lost++;
	else if (event == STORE_BACK)
		w->back++;
	else
		w->restarted++;
	if (event != STORE_RESTARTED)
		return;
	assert_true(w->instance_count < ARRAY_LEN(w->instances));
	w->instances[w->instance_count++] = store->info.instance;
}

static void world_open(struct world *w, uint64_t seed)
{
	struct loop_options lo = { .engine = LOOP_SIM };

	memset(w, 0, sizeof(*w));
	rng_init(&w->rng, seed * 7919 + 1);
	assert_int_equal(sim_open(&w->sim, seed), 0);
	disk_init(&w->disk, seed + 1000003);
	lo.sim = w->sim;
	assert_int_equal(loop_open(&w->client_loop, &lo, NULL), 0);
	assert_int_equal(sock_parse("unix:/sim/server", &w->addr, NULL), 0);
}

static void client_up(struct world *w, const struct remora_options *options)
{
	struct remora_options o;
	struct err e = { 0 };

	remora_options_init(&o);
	if (options)
		o = *options;
	o.addr = w->addr;
	o.fd = -1;
	o.name = "disk";
	if (remora_connect(&w->client, w->client_loop, &o, &e))
		fail_msg("seed %llu: %s", (unsigned long long)seed_now, e.text);
	w->client->on_event = on_event;
	w->client->on_event_arg = w;
	w->instances[w->instance_count++] = w->client->info.instance;
}

static void world_close(struct world *w)
{
	store_close_wait(w->client);
	server_down(w, 0);
	loop_close(w->client_loop);
	sim_close(w->sim);
	assert_int_equal(w->disk.landed_old, 0);
}

static void run_for(struct world *w, uint64_t ns)
{
	bool never = false;
	int r = sim_run_until(w->sim, &never, sim_now(w->sim) + ns);

	assert_true(r == -ETIMEDOUT || r == -EDEADLK);
}

/* ---- single requests, for the scenarios ---- */

struct one {
	struct req req;
	struct world *w;
	uint8_t *buf;
	bool done;
	int err;
	uint64_t at_ns;
	unsigned restarted; /* how many were told when it completed */
	char why[128];
};

static void one_done(struct req *req, int err)
{
	struct one *o = CONTAINER_OF(req, struct one, req);

	assert_false(o->done);
	o->done = true;
	o->err = err;
	o->at_ns = sim_now(o->w->sim);
	o->restarted = o->w->restarted;
	snprintf(o->why, sizeof(o->why), "%s", req->ret_why ? req->ret_why : "");
}

static void one_start(struct one *o, struct world *w, enum req_op op, unsigned cell, unsigned count,
		      uint64_t version,
		      uint32_t flags)
{
	memset(o, 0, sizeof(*o));
	o->w = w;
	o->buf = malloc((size_t)count * CELL + 1);
	for (unsigned i = 0; i < count; i++)
		cell_fill(o->buf + (size_t)i * CELL, cell + i, version);
	o->req.op = op;
	o->req.flags = flags;
	o->req.range = range_of((uint64_t)cell * CELL, (uint64_t)count * CELL);
	if (op == REQ_FLUSH)
		o->req.range = range_of(0, 0);
	o->req.data = (struct iobuf){ o->buf, (size_t)count * CELL };
	o->req.done = one_done;
	req_submit(w->client, &o->req);
}

static void one_wait(struct one *o)
{
	int r = sim_run_until(o->w->sim, &o->done, sim_now(o->w->sim) + 1000 * NS_PER_S);

	assert_int_equal(r, 0);
	free(o->buf);
	o->buf = NULL;
}

static int one_run(struct world *w, enum req_op op, unsigned cell, uint64_t version)
{
	struct one o;

	one_start(&o, w, op, cell, op == REQ_FLUSH ? 0 : 1, version, 0);
	one_wait(&o);
	return o.err;
}

#endif
