/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client and server of the Remora protocol in one simulated world: delays, cuts, partitions, crashes of the server, against a
 * model that knows what may be read. A failing seed is printed; REMORA_SEED=n (or an argument) runs it alone, REMORA_SEEDS=n
 * sets how many are run.
 *
 * The resource consists of cells. A write gives each of its cells a new version, higher than all before; requests that
 * touch the same cell are not in flight at the same time when one of them writes. So:
 *  - in the store, the version of a cell never falls (an old write landed on a newer one), but for a crash;
 *  - what is read is exactly the last acknowledged version, as long as the instance is the same;
 *  - after a restart it is at least what a FLUSH of the same instance has covered.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "back/remora.h"
#include "base/cleanup.h"
#include "front/server.h"
#include "io/sim.h"
#include "store/spec.h"

#define CELL 8192u
#define CELLS 64u
#define SIZE (CELL * CELLS)
#define DEPTH 24u
#define TASKS 512u
#define MS NS_PER_MS

const struct store_kind store_kinds[] = { { 0 } }; /* no specs here */

static uint64_t seed_now;

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

/* A cell's bytes follow from its number and version; some blocks of it are zeros, so that runs are at work. */
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
	unsigned first = (unsigned)(req->range.off / CELL), count = (unsigned)(req->range.len / CELL);

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
	unsigned first = (unsigned)(req->range.off / CELL), count = (unsigned)(req->range.len / CELL);

	for (unsigned i = 0; i < count; i++) {
		if (d->version[first + i])
			cell_fill(req->data.base + (size_t)i * CELL, first + i, d->version[first + i]);
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

static const struct store_ops tstore_ops = { .name = "disk", .submit = tstore_submit, .abort = tstore_abort };

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

static void one_start(struct one *o, struct world *w, enum req_op op, unsigned cell, unsigned count, uint64_t version,
		      uint32_t flags)
{
	memset(o, 0, sizeof(*o));
	o->w = w;
	o->buf = malloc((size_t)count * CELL + 1);
	for (unsigned i = 0; i < count; i++)
		cell_fill(o->buf + (size_t)i * CELL, cell + i, version);
	o->req.op = op;
	o->req.flags = flags;
	o->req.range = op == REQ_FLUSH ? range_of(0, 0) : range_of((uint64_t)cell * CELL, (uint64_t)count * CELL);
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

/* ---- scenarios ---- */

static void rule5_replay_waits_for_old_connection(void **state)
{
	struct server_counts n;
	struct world w;
	struct one slow;
	uint64_t begin;

	(void)state;
	world_open(&w, 1);
	server_up(&w);
	client_up(&w, &(struct remora_options){ .connections = 1, .for_ns = 60 * NS_PER_S });
	w.disk.slow_per_million = 1000000;
	w.disk.slow_max_ns = 8 * NS_PER_S;
	do { /* one that is still in the store long after the cut */
		one_start(&slow, &w, REQ_WRITE, 3, 1, 1, 0);
		run_for(&w, 3 * NS_PER_S);
		if (slow.done)
			free(slow.buf);
	} while (slow.done);
	w.disk.slow_per_million = 0;
	assert_int_equal(w.store->store.pending, 1);
	begin = sim_now(w.sim);
	sim_cut(w.sim, w.client_loop);
	/* The former connection's write is in the store: nobody is greeted, nothing is replayed. */
	while (w.store->store.pending == 1) {
		server_count(w.server, &n);
		assert_int_equal(n.sessions, 1);
		assert_int_equal(w.disk.writes, 0);
		assert_int_equal(sim_step(w.sim), 0);
	}
	assert_true(sim_now(w.sim) > begin + NS_PER_S);
	assert_int_equal(w.disk.writes, 1);
	one_wait(&slow);
	assert_int_equal(slow.err, 0);
	assert_int_equal(w.disk.writes, 2); /* the replay */
	/* A newer write, and nothing old comes after it. */
	assert_int_equal(one_run(&w, REQ_WRITE, 3, 2), 0);
	run_for(&w, 20 * NS_PER_S);
	assert_int_equal(w.disk.version[3], 2);
	server_count(w.server, &n);
	assert_true(n.sessions >= 2);
	world_close(&w);
}

static void a_restart_is_told_before_a_replayed_request_is_answered(void **state)
{
	struct world w;
	struct one o[6];
	unsigned replayed = 0;

	(void)state;
	world_open(&w, 2);
	w.disk.delay_max_ns = 50 * MS;
	server_up(&w);
	client_up(&w, &(struct remora_options){ .connections = 3, .for_ns = 60 * NS_PER_S });
	for (unsigned i = 0; i < 6; i++)
		one_start(&o[i], &w, REQ_WRITE, i * 4, i % 2 ? 4 : 1, 1, 0);
	run_for(&w, 1 * MS);
	server_crash(&w, true);
	run_for(&w, 2 * NS_PER_S);
	assert_int_equal(w.lost, 1);
	server_up(&w);
	for (unsigned i = 0; i < 6; i++) {
		one_wait(&o[i]);
		assert_int_equal(o[i].err, 0);
		/* One or the other may have been done before the crash. */
		assert_int_equal(o[i].restarted, o[i].req.ret_instance == w.client->info.instance);
		replayed += o[i].restarted;
	}
	assert_true(replayed >= 3);
	assert_int_equal(w.restarted, 1);
	assert_int_equal(w.back, 0);
	world_close(&w);
}

static void a_short_loss_is_back_without_a_restart(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 3);
	server_up(&w);
	client_up(&w, &(struct remora_options){ .for_ns = 60 * NS_PER_S });
	assert_int_equal(one_run(&w, REQ_WRITE, 1, 1), 0);
	sim_cut(w.sim, w.client_loop);
	assert_int_equal(one_run(&w, REQ_READ, 1, 0), 0);
	assert_int_equal(w.lost, 1);
	assert_int_equal(w.back, 1);
	assert_int_equal(w.restarted, 0);
	world_close(&w);
}

static void requests_fail_after_for_and_are_served_again_when_it_is_back(void **state)
{
	struct world w;
	struct one a, b;
	uint64_t begin;

	(void)state;
	world_open(&w, 4);
	w.disk.delay_max_ns = 100 * MS;
	server_up(&w);
	client_up(&w, &(struct remora_options){ .connections = 2, .for_ns = 3 * NS_PER_S });
	one_start(&a, &w, REQ_WRITE, 0, 8, 1, 0);
	run_for(&w, 100000);
	begin = sim_now(w.sim);
	server_crash(&w, false);
	run_for(&w, 1 * NS_PER_S);
	assert_false(a.done);
	one_start(&b, &w, REQ_READ, 20, 1, 0, REQ_URGENT);
	one_wait(&a);
	one_wait(&b);
	assert_int_equal(a.err, -ETIMEDOUT);
	assert_int_equal(b.err, -ETIMEDOUT);
	assert_non_null(strstr(a.why, "/sim/server"));
	assert_true(a.at_ns >= begin + 3 * NS_PER_S && a.at_ns < begin + 3100 * MS);
	assert_int_equal(one_run(&w, REQ_READ, 20, 0), -ETIMEDOUT); /* at once */
	assert_true(sim_now(w.sim) < begin + 3100 * MS);
	run_for(&w, 100 * NS_PER_S);
	server_up(&w);
	run_for(&w, 6 * NS_PER_S);
	assert_int_equal(one_run(&w, REQ_READ, 20, 0), 0);
	world_close(&w);
}

static void another_size_fails_for_good(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 5);
	server_up(&w);
	client_up(&w, &(struct remora_options){ .for_ns = 60 * NS_PER_S });
	server_crash(&w, false);
	w.disk.size = SIZE / 2;
	server_up(&w);
	assert_int_equal(one_run(&w, REQ_READ, 1, 0), -ESTALE);
	assert_non_null(strstr(w.client->last_why, "another size"));
	assert_int_equal(one_run(&w, REQ_READ, 1, 0), -ESTALE);
	world_close(&w);
}

/* Nobody is told of a partition: silence alone tells, on both sides. */
static void a_silent_peer_is_dropped_by_both_sides(void **state)
{
	struct server_counts n;
	struct world w;
	struct one o;

	(void)state;
	world_open(&w, 6);
	server_up(&w);
	client_up(&w, &(struct remora_options){ .connections = 2, .for_ns = 300 * NS_PER_S });
	run_for(&w, 1 * NS_PER_S);
	sim_partition(w.sim, w.client_loop, true);
	one_start(&o, &w, REQ_WRITE, 1, 1, 1, 0);
	run_for(&w, 40 * NS_PER_S);
	assert_false(o.done);
	assert_int_equal(w.lost, 1);
	server_count(w.server, &n);
	assert_int_equal(n.dropped, 2);
	sim_partition(w.sim, w.client_loop, false);
	one_wait(&o);
	assert_int_equal(o.err, 0);
	assert_int_equal(w.back, 1);
	world_close(&w);
}

static void an_idle_connection_stays_and_wakes_rarely(void **state)
{
	struct remora_counts n;
	struct world w;
	uint64_t end;
	unsigned steps = 0;

	(void)state;
	world_open(&w, 7);
	server_up(&w);
	client_up(&w, NULL);
	run_for(&w, 1 * NS_PER_S);
	end = sim_now(w.sim) + 600 * NS_PER_S;
	while (sim_now(w.sim) < end) {
		assert_int_equal(sim_step(w.sim), 0);
		steps++;
	}
	remora_count(w.client, &n);
	assert_int_equal(n.losses, 0);
	assert_int_equal(n.up, 2);
	/* Two connections, both sides, every 5 s: 480 messages, a few steps each. */
	assert_true(steps < 600 / 5 * 4 * 6);
	world_close(&w);
}

/* Connect, then one round trip: the bytes come right behind the greeting. */
static void the_first_bytes_need_one_round_trip_after_the_connect(void **state)
{
	struct remora_options ro = { .connections = 1, .for_ns = NS_PER_S, .first = { 0, CELL } };
	struct remora_counts n;
	struct world w;
	uint64_t begin;

	(void)state;
	world_open(&w, 8);
	w.disk.delay_max_ns = 0;
	sim_net(w.sim)->delay_min_ns = sim_net(w.sim)->delay_max_ns = 25 * MS;
	server_up(&w);
	begin = sim_now(w.sim);
	client_up(&w, &ro);
	assert_int_equal(one_run(&w, REQ_READ, 0, 0), 0);
	remora_count(w.client, &n);
	assert_int_equal(n.first_hits, 1);
	assert_true(sim_now(w.sim) - begin <= 101 * MS);
	world_close(&w);
}

static void urgent_requests_do_not_wait_behind_bulk(void **state)
{
	struct world w;
	struct one bulk[20], urgent;
	unsigned before = 0;

	(void)state;
	for (unsigned connections = 1; connections <= 2; connections++) {
		world_open(&w, 9);
		w.disk.delay_max_ns = 0;
		server_up(&w);
		client_up(&w, &(struct remora_options){ .connections = connections, .for_ns = 600 * NS_PER_S });
		run_for(&w, 100 * MS);
		sim_net(w.sim)->bytes_per_s = MIB;
		sim_net(w.sim)->buffer_bytes = 32768;
		for (unsigned i = 0; i < 20; i++)
			one_start(&bulk[i], &w, REQ_WRITE, i % 4 * 16, 16, 2, REQ_BACKGROUND);
		run_for(&w, 100 * MS);
		one_start(&urgent, &w, REQ_READ, 0, 1, 0, REQ_URGENT);
		one_wait(&urgent);
		for (unsigned i = 0; i < 20; i++) {
			one_wait(&bulk[i]);
			before += bulk[i].at_ns < urgent.at_ns;
		}
		assert_true(before <= 8 / connections); /* what was on the wire already */
		world_close(&w);
	}
}

/* A WRITE that is given up may still sit in the store of a server that we do not hear. */
static void a_write_that_was_given_up_never_lands_on_a_newer_one(void **state)
{
	struct world w;
	struct one o;
	int r;

	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		world_open(&w, seed);
		server_up(&w);
		client_up(&w, &(struct remora_options){ .connections = 2, .for_ns = 1 * NS_PER_S });
		run_for(&w, 100 * MS);
		w.disk.slow_per_million = 1000000;
		w.disk.slow_max_ns = 30 * NS_PER_S;
		one_start(&o, &w, REQ_WRITE, 5, 1 + seed % 2 * 3, 1, 0);
		run_for(&w, 50 * MS);
		w.disk.slow_per_million = 0;
		sim_cut(w.sim, w.client_loop);
		one_wait(&o);
		if (o.err)
			assert_int_equal(o.err, -ETIMEDOUT);
		while ((r = one_run(&w, REQ_WRITE, 5, 2)) == -ETIMEDOUT)
			run_for(&w, 100 * MS);
		assert_int_equal(r, 0);
		run_for(&w, 60 * NS_PER_S);
		assert_int_equal(w.disk.version[5], 2);
		world_close(&w);
	}
}

static void closing_the_store_completes_everything(void **state)
{
	struct world w;
	struct one o[30];

	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		world_open(&w, seed);
		w.disk.delay_max_ns = 50 * MS;
		sim_net(w.sim)->delay_max_ns = 10 * MS;
		server_up(&w);
		client_up(&w, &(struct remora_options){ .connections = 1 + seed % 3, .for_ns = NEVER_NS });
		for (unsigned i = 0; i < 30; i++)
			one_start(&o[i], &w, i % 3 ? REQ_WRITE : REQ_READ, i * 2, 2, 1, 0);
		run_for(&w, rng_below(&w.rng, 100 * MS));
		if (seed % 4 == 0)
			server_crash(&w, false);
		if (seed % 4 == 1)
			sim_partition(w.sim, w.client_loop, true);
		run_for(&w, rng_below(&w.rng, 100 * MS));
		store_close_wait(w.client);
		w.client = NULL;
		for (unsigned i = 0; i < 30; i++) {
			assert_true(o[i].done);
			free(o[i].buf);
		}
		world_close(&w);
	}
}

/* ---- random runs against the model ---- */

struct cell {
	uint64_t base;	   /* covered by a FLUSH: it never reads as less */
	uint64_t value;	   /* what it is, while `exact` */
	uint64_t instance; /* under which that is known */
	bool exact;
	unsigned readers, writers;
};

struct mop {
	struct req req;
	struct model *m;
	bool busy;
	unsigned first, count;
	uint64_t version;
	uint8_t *buf;
	struct extents extents;
	struct extent extent[4];
	struct cell *snap; /* FLUSH: the cells as they were when it was submitted */
};

struct model {
	struct world w;
	struct cell cell[CELLS];
	struct mop op[DEPTH];
	uint64_t version; /* the highest that was ever submitted */
	uint64_t submitted, completed, failed, timed_out;
	bool may_time_out, may_fail, ending;
};

static bool instance_known(const struct world *w, uint64_t instance)
{
	for (unsigned i = 0; i < w->instance_count; i++)
		if (w->instances[i] == instance)
			return true;
	return false;
}

#define MUST(x)                                                                                    \
	do {                                                                                       \
		if (!(x))                                                                          \
			fail_msg("seed %llu: %s", (unsigned long long)seed_now, #x);               \
	} while (0)

static void model_write_done(struct mop *op, int err)
{
	for (unsigned i = 0; i < op->count; i++) {
		struct cell *c = &op->m->cell[op->first + i];

		MUST(c->writers == 1);
		c->writers = 0;
		c->exact = !err;
		c->value = op->version;
		c->instance = op->req.ret_instance;
	}
}

static void model_read_done(struct mop *op, int err)
{
	for (unsigned i = 0; i < op->count; i++) {
		struct cell *c = &op->m->cell[op->first + i];
		uint64_t version;

		MUST(c->readers && !c->writers);
		c->readers--;
		if (err)
			continue;
		version = cell_parse(op->buf + (size_t)i * CELL, op->first + i);
		if (c->exact && c->instance == op->req.ret_instance)
			MUST(version == c->value); /* a read returns what the last acknowledged write put there */
		MUST(version >= c->base);	   /* and what was flushed is never lost */
		MUST(version <= op->m->version);
		c->exact = true;
		c->value = version;
		c->instance = op->req.ret_instance;
	}
}

static void model_flush_done(struct mop *op, int err)
{
	for (unsigned i = 0; !err && i < CELLS; i++) {
		const struct cell *was = &op->snap[i];

		if (was->exact && was->instance == op->req.ret_instance)
			op->m->cell[i].base = MAX(op->m->cell[i].base, was->value);
	}
}

static void model_submit(struct model *m);

static void model_done(struct req *req, int err)
{
	struct mop *op = CONTAINER_OF(req, struct mop, req);
	struct model *m = op->m;

	MUST(op->busy);
	op->busy = false;
	m->completed++;
	if (err) {
		m->failed++;
		m->timed_out += err == -ETIMEDOUT;
		MUST((err == -ETIMEDOUT && m->may_time_out) || (err == -EIO && m->may_fail) || err == -ESHUTDOWN);
	} else if (req->op != REQ_EXTENTS && req->op != REQ_PREFETCH) {
		/* Those above have heard of an instance before anything is answered by it. */
		MUST(instance_known(&m->w, req->ret_instance));
	}
	if (req->op == REQ_WRITE)
		model_write_done(op, err);
	else if (req->op == REQ_READ)
		model_read_done(op, err);
	else if (req->op == REQ_FLUSH)
		model_flush_done(op, err);
	if (rng_chance(&m->w.rng, 100000) && !m->ending)
		model_submit(m);
}

static bool cells_free(const struct model *m, unsigned first, unsigned count, bool write)
{
	for (unsigned i = first; i < first + count; i++)
		if (m->cell[i].writers || (write && m->cell[i].readers))
			return false;
	return true;
}

static void op_fill(struct mop *op)
{
	struct model *m = op->m;
	struct req *req = &op->req;

	req->data = (struct iobuf){ op->buf, (size_t)op->count * CELL };
	req->range = range_of((uint64_t)op->first * CELL, (uint64_t)op->count * CELL);
	op->version = 0;
	switch (req->op) {
	case REQ_WRITE:
		op->version = ++m->version;
		for (unsigned i = 0; i < op->count; i++) {
			cell_fill(op->buf + (size_t)i * CELL, op->first + i, op->version);
			m->cell[op->first + i].writers++;
		}
		break;
	case REQ_READ:
		memset(op->buf, 0xa5, (size_t)op->count * CELL);
		for (unsigned i = 0; i < op->count; i++)
			m->cell[op->first + i].readers++;
		break;
	case REQ_FLUSH:
		req->range = range_of(0, 0);
		memcpy(op->snap, m->cell, sizeof(m->cell));
		break;
	default:
		op->extents = (struct extents){ op->extent, ARRAY_LEN(op->extent), 0 };
		req->extents = req->op == REQ_EXTENTS ? &op->extents : NULL;
		break;
	}
}

static void model_submit(struct model *m)
{
	static const enum req_op ops[] = { REQ_READ,  REQ_READ,	 REQ_READ,  REQ_READ,	 REQ_WRITE,   REQ_WRITE,
					   REQ_WRITE, REQ_WRITE, REQ_FLUSH, REQ_EXTENTS, REQ_PREFETCH };
	struct rng *r = &m->w.rng;
	struct mop *op = NULL;

	for (unsigned i = 0; i < DEPTH && !op; i++)
		op = m->op[i].busy ? NULL : &m->op[i];
	if (!op)
		return;
	op->req.op = ops[rng_below(r, ARRAY_LEN(ops))];
	op->req.flags = rng_chance(r, 200000) ? REQ_URGENT : rng_chance(r, 200000) ? REQ_BACKGROUND : 0;
	op->count = 1 + (unsigned)rng_below(r, rng_chance(r, 300000) ? 8 : 2);
	op->first = (unsigned)rng_below(r, CELLS - op->count + 1);
	if ((op->req.op == REQ_READ || op->req.op == REQ_WRITE) &&
	    !cells_free(m, op->first, op->count, op->req.op == REQ_WRITE))
		return;
	op_fill(op);
	op->req.done = model_done;
	op->busy = true;
	m->submitted++;
	req_submit(m->w.client, &op->req);
}

static void model_open(struct model *m, uint64_t seed)
{
	struct remora_options ro = { 0 };
	struct rng *r;

	memset(m, 0, sizeof(*m));
	world_open(&m->w, seed);
	r = &m->w.rng;
	for (unsigned i = 0; i < DEPTH; i++) {
		m->op[i].m = m;
		m->op[i].buf = malloc(8 * CELL);
		m->op[i].snap = malloc(sizeof(m->cell));
	}
	for (unsigned i = 0; i < CELLS; i++)
		m->cell[i].exact = false;
	m->w.limits = (struct server_limits){ .requests_max = 2 + (uint32_t)rng_below(r, 30),
					      .bytes_max = MIB / 4 + rng_below(r, MIB),
					      .unsent_max = 10000 + rng_below(r, 300000),
					      .keep_alive_ns = (1 + rng_below(r, 3)) * NS_PER_S,
					      .stall_ns = 30 * NS_PER_S };
	ro.connections = 1 + (unsigned)rng_below(r, 4);
	m->may_time_out = rng_chance(r, 300000);
	ro.for_ns = m->may_time_out ? rng_below(r, 5 * NS_PER_S) : NEVER_NS;
	if (rng_chance(r, 300000))
		ro.first = range_of(rng_below(r, CELLS) * CELL, CELL * (1 + rng_below(r, 4)));
	server_up(&m->w);
	client_up(&m->w, &ro);
	m->w.disk.delay_max_ns = rng_below(r, 20 * MS);
	m->w.disk.slow_per_million = (uint32_t)rng_below(r, 50000);
	m->w.disk.slow_max_ns = rng_below(r, 5 * NS_PER_S);
	m->may_fail = rng_chance(r, 200000);
	m->w.disk.error_per_million = m->may_fail ? 20000 : 0;
	*sim_net(m->w.sim) = (struct sim_net){
		.delay_max_ns = rng_below(r, 30 * MS),
		.bytes_per_s = rng_chance(r, 300000) ? MIB + rng_below(r, 30 * MIB) : 0,
		.reset_per_million = rng_chance(r, 300000) ? (uint32_t)rng_below(r, 3000) : 0,
		.stall_per_million = rng_chance(r, 300000) ? 3000 : 0,
		.stall_max_ns = 2 * NS_PER_S,
		.short_per_million = rng_chance(r, 500000) ? 300000 : 0,
	};
}

/* Something goes wrong. */
static void model_fault(struct model *m)
{
	struct world *w = &m->w;

	switch (rng_below(&w->rng, 7)) {
	case 0:
		sim_cut(w->sim, w->client_loop);
		break;
	case 1:
		if (w->server)
			sim_cut(w->sim, w->server_loop);
		break;
	case 2:
		sim_partition(w->sim, w->client_loop, true);
		run_for(w, rng_below(&w->rng, rng_chance(&w->rng, 300000) ? 30 * NS_PER_S : NS_PER_S));
		sim_partition(w->sim, w->client_loop, false);
		break;
	case 3:
	case 4:
		server_crash(w, true);
		run_for(w, rng_below(&w->rng, 8 * NS_PER_S));
		server_up(w);
		break;
	case 5:
		server_down(w, rng_below(&w->rng, 2 * NS_PER_S));
		run_for(w, rng_below(&w->rng, 500 * MS));
		server_up(w);
		break;
	case 6: /* cut again and again, while the former connection is being replaced */
		for (unsigned i = 0; i < 5; i++) {
			sim_cut(w->sim, w->client_loop);
			run_for(w, rng_below(&w->rng, 50 * MS));
		}
		break;
	}
}

static void model_end(struct model *m)
{
	struct world *w = &m->w;
	struct mop *op = &m->op[0];
	uint64_t end;

	/* The faults are over: everything completes. */
	memset(sim_net(w->sim), 0, sizeof(struct sim_net));
	w->disk.error_per_million = 0;
	w->disk.slow_per_million = 0;
	end = sim_now(w->sim) + 200 * NS_PER_S;
	m->ending = true;
	while (m->completed < m->submitted || sim_now(w->sim) + 170 * NS_PER_S < end) {
		MUST(sim_now(w->sim) < end);
		MUST(sim_step(w->sim) == 0);
	}
	/* And all of it is as it must be. */
	for (unsigned first = 0; first < CELLS; first += 8) {
		uint64_t want;

		op->req.op = REQ_READ;
		op->req.flags = 0;
		op->first = first;
		op->count = 8;
		op_fill(op);
		op->busy = true;
		want = ++m->submitted;
		op->req.done = model_done;
		m->may_time_out = m->may_fail = false;
		req_submit(w->client, &op->req);
		while (m->completed < want)
			MUST(sim_step(w->sim) == 0);
	}
}

static void model_run(uint64_t seed)
{
	struct model *m = malloc(sizeof(*m));
	struct rng *r;
	uint64_t digest;
	unsigned faults;

	seed_now = seed;
	model_open(m, seed);
	r = &m->w.rng;
	faults = (unsigned)rng_below(r, 8);
	for (unsigned i = 0; i < 300 || faults;) {
		if (rng_chance(r, 250000)) {
			model_submit(m);
			i++;
		}
		if (i > 20 && faults && rng_chance(r, 8000)) {
			model_fault(m);
			faults--;
		}
		MUST(sim_step(m->w.sim) == 0);
		MUST(m->w.disk.landed_old == 0); /* no old write lands on a newer one */
	}
	model_end(m);
	digest = sim_digest(m->w.sim);
	(void)digest;
	world_close(&m->w);
	for (unsigned i = 0; i < DEPTH; i++) {
		MUST(!m->op[i].busy);
		free(m->op[i].buf);
		free(m->op[i].snap);
	}
	free(m);
}

static uint64_t env_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static void random_faults_against_the_model(void **state)
{
	uint64_t only = env_number("REMORA_SEED", 0), count = env_number("REMORA_SEEDS", 200);

	(void)state;
	if (only) {
		model_run(only);
		return;
	}
	for (uint64_t seed = 1; seed <= count; seed++)
		model_run(seed);
}

static void tell_seed(int sig)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "# failed with REMORA_SEED=%llu\n", (unsigned long long)seed_now);

	(void)!write(STDERR_FILENO, text, (size_t)n);
	signal(sig, SIG_DFL);
	raise(sig);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rule5_replay_waits_for_old_connection),
		cmocka_unit_test(a_restart_is_told_before_a_replayed_request_is_answered),
		cmocka_unit_test(a_short_loss_is_back_without_a_restart),
		cmocka_unit_test(requests_fail_after_for_and_are_served_again_when_it_is_back),
		cmocka_unit_test(another_size_fails_for_good),
		cmocka_unit_test(a_silent_peer_is_dropped_by_both_sides),
		cmocka_unit_test(an_idle_connection_stays_and_wakes_rarely),
		cmocka_unit_test(the_first_bytes_need_one_round_trip_after_the_connect),
		cmocka_unit_test(urgent_requests_do_not_wait_behind_bulk),
		cmocka_unit_test(a_write_that_was_given_up_never_lands_on_a_newer_one),
		cmocka_unit_test(closing_the_store_completes_everything),
		cmocka_unit_test(random_faults_against_the_model),
	};

	if (argc > 1)
		setenv("REMORA_SEED", argv[1], 1);
	signal(SIGABRT, tell_seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
