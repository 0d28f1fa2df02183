/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client and server of the Remora protocol in one simulated world: delays, cuts, partitions,
 * crashes of the server, against a model that knows what may be read. A failing seed is printed;
 * REMORA_SEED=n (or an argument) runs it alone, REMORA_SEEDS=n sets how many are run.
 *
 * The resource consists of cells. A write gives each of its cells a new version, higher than all
 * before; requests that touch the same cell are not in flight at the same time when one of them
 * writes. So:
 *  - in the store, the version of a cell never falls (an old write landed on a newer one), but for
 *    a crash;
 *  - what is read is exactly the last acknowledged version, as long as the instance is the same;
 *  - after a restart it is at least what a FLUSH of the same instance has covered.
 */
#include "protocol_world.h"

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

static void a_flush_does_not_wait_for_the_next_try(void **state)
{
	struct world w;
	uint64_t begin;

	(void)state;
	world_open(&w, 14);
	server_up(&w);
	client_up(&w, &(struct remora_options){ .for_ns = 60 * NS_PER_S });
	server_crash(&w, false);
	run_for(&w, 20 * NS_PER_S); /* tries are a second apart by now */
	server_up(&w);
	begin = sim_now(w.sim);
	assert_int_equal(one_run(&w, REQ_FLUSH, 0, 0), 0);
	assert_true(sim_now(w.sim) < begin + 200 * MS);
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
		client_up(&w, &(struct remora_options){ .connections = connections,
							.for_ns = 600 * NS_PER_S });
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
		client_up(&w, &(struct remora_options){ .connections = 1 + seed % 3,
							.for_ns = NEVER_NS });
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
			/* a read returns what the last acknowledged write put there */
			MUST(version == c->value);
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
		MUST((err == -ETIMEDOUT && m->may_time_out) || (err == -EIO && m->may_fail) ||
		     err == -ESHUTDOWN);
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
	static const enum req_op ops[] = { REQ_READ,  REQ_READ,	 REQ_READ,  REQ_READ,
					   REQ_WRITE, REQ_WRITE, REQ_WRITE, REQ_WRITE,
					   REQ_FLUSH, REQ_EXTENTS, REQ_PREFETCH };
	struct rng *r = &m->w.rng;
	struct mop *op = NULL;

	for (unsigned i = 0; i < DEPTH && !op; i++)
		op = m->op[i].busy ? NULL : &m->op[i];
	if (!op)
		return;
	op->req.op = ops[rng_below(r, ARRAY_LEN(ops))];
	op->req.flags = rng_chance(r, 200000) ? REQ_URGENT : 0;
	if (!op->req.flags && rng_chance(r, 200000))
		op->req.flags = REQ_BACKGROUND;
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
		run_for(w,
			rng_below(&w->rng, rng_chance(&w->rng, 300000) ? 30 * NS_PER_S : NS_PER_S));
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

static uint64_t model_run(uint64_t seed)
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
	world_close(&m->w);
	for (unsigned i = 0; i < DEPTH; i++) {
		MUST(!m->op[i].busy);
		free(m->op[i].buf);
		free(m->op[i].snap);
	}
	free(m);
	seed_now = 0;
	return digest;
}

static void seed_run(uint64_t seed, bool tells)
{
	(void)tells;
	(void)model_run(seed);
}

static void random_faults_against_the_model(void **state)
{
	(void)state;
	seeds_run(200, seed_run);
}

static void a_seed_replays_the_same_run(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 5; seed++)
		assert_int_equal(model_run(seed), model_run(seed));
}

static int tell_seed_of_failure(void **state)
{
	(void)state;
	if (seed_now)
		fprintf(stderr, "# failed with REMORA_SEED=%llu\n", (unsigned long long)seed_now);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rule5_replay_waits_for_old_connection),
		cmocka_unit_test(a_restart_is_told_before_a_replayed_request_is_answered),
		cmocka_unit_test(a_short_loss_is_back_without_a_restart),
		cmocka_unit_test(requests_fail_after_for_and_are_served_again_when_it_is_back),
		cmocka_unit_test(a_flush_does_not_wait_for_the_next_try),
		cmocka_unit_test(another_size_fails_for_good),
		cmocka_unit_test(a_silent_peer_is_dropped_by_both_sides),
		cmocka_unit_test(an_idle_connection_stays_and_wakes_rarely),
		cmocka_unit_test(the_first_bytes_need_one_round_trip_after_the_connect),
		cmocka_unit_test(urgent_requests_do_not_wait_behind_bulk),
		cmocka_unit_test(a_write_that_was_given_up_never_lands_on_a_newer_one),
		cmocka_unit_test(closing_the_store_completes_everything),
		cmocka_unit_test_teardown(a_seed_replays_the_same_run, tell_seed_of_failure),
		cmocka_unit_test_teardown(random_faults_against_the_model, tell_seed_of_failure),
	};

	if (argc > 1)
		setenv("REMORA_SEED", argv[1], 1);
	signal(SIGABRT, seed_tell);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
