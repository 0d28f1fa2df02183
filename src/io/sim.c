/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated world: its clock, its events and the loops in it. One thread, no real time, no
 * pointer or hash order in any decision: the seed alone decides, so a seed replays a run.
 *
 * Place: the third engine below loop.c. Network and storage are in sim_net.c and sim_disk.c.
 *
 * A step does one thing: it runs the callbacks of one loop that has some (which one of several, the
 * seed says), or else moves the clock to the next event: one of the world's, or a timer of a loop.
 * No time passes while callbacks run.
 *
 * Invariants: the clock never goes back. Descriptors belong to the loop that made them; the lowest
 * free number is given out first, as a kernel does. After sim_crash() nothing in the world refers
 * to the loop or to its ops.
 *
 * Locking: none, one thread.
 */
#include "io/sim_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- the world ---- */

void *sim_alloc(size_t size)
{
	void *p = calloc(1, size);

	CHECK(p);
	return p;
}

static uint64_t clock_sim(void *arg)
{
	return ((const struct sim *)arg)->now_ns;
}

int sim_open(struct sim **ret, uint64_t seed)
{
	struct sim *sim = sim_alloc(sizeof(*sim));

	env_init(&sim->env);
	rng_init(&sim->rng, seed);
	sim->env.now_ns = clock_sim;
	sim->env.arg = sim;
	rng_init(&sim->env.rng, rng_next(&sim->rng));
	sim->now_ns = NS_PER_S; /* so that 0 is in the past and never a time */
	sim->next_port = 40000;
	list_init(&sim->loops);
	list_init(&sim->conns);
	list_init(&sim->listeners);
	list_init(&sim->files);
	list_init(&sim->ats);
	*ret = sim;
	return 0;
}

struct at {
	struct timer timer;
	struct link link;
	struct sim *sim;
	void (*fn)(void *arg);
	void *arg;
};

void sim_close(struct sim *sim)
{
	struct link *k;

	if (!sim)
		return;
	CHECK(list_empty(&sim->loops));
	CHECK(list_empty(&sim->conns) && list_empty(&sim->listeners));
	while ((k = list_pop_front(&sim->ats)))
		free(LIST_ENTRY(k, struct at, link));
	disk_free_all(sim);
	heap_done(&sim->events);
	free(sim->fds);
	free(sim);
}

struct env *sim_env(struct sim *sim)
{
	return &sim->env;
}

struct rng *sim_rng(struct sim *sim)
{
	return &sim->rng;
}

uint64_t sim_now(struct sim *sim)
{
	return sim->now_ns;
}

struct sim_net *sim_net(struct sim *sim)
{
	return &sim->net;
}

struct sim_disk *sim_disk(struct sim *sim)
{
	return &sim->disk;
}

uint64_t sim_digest(const struct sim *sim)
{
	return sim->digest;
}

static uint64_t mix(uint64_t h, uint64_t x)
{
	h = (h ^ x) * 0xff51afd7ed558ccdULL;
	return h ^ h >> 32;
}

void sim_fold(struct sim *sim, enum sim_what what, uint64_t a, uint64_t b)
{
	sim->digest = mix(mix(mix(mix(sim->digest, what), sim->now_ns), a), b);
}

void sim_fold_data(struct sim *sim, const void *data, size_t len)
{
	const unsigned char *p = data;
	uint64_t h = len, word;

	for (; len >= sizeof(word); p += sizeof(word), len -= sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		h = mix(h, word);
	}
	for (; len; len--)
		h = mix(h, *p++);
	sim->digest = mix(sim->digest, h);
}

uint64_t sim_between(struct sim *sim, uint64_t min, uint64_t max)
{
	return max > min ? min + rng_below(&sim->rng, max - min + 1) : min;
}

/* ---- injected events ---- */

static void at_fire(struct timer *timer)
{
	struct at *at = CONTAINER_OF(timer, struct at, timer);
	struct at ran = *at;

	link_remove(&at->link);
	free(at);
	sim_fold(ran.sim, DID_AT, 0, 0);
	ran.fn(ran.arg);
}

void sim_at(struct sim *sim, uint64_t at_ns, void (*fn)(void *arg), void *arg)
{
	struct at *at = sim_alloc(sizeof(*at));

	at->timer.fire = at_fire;
	at->sim = sim;
	at->fn = fn;
	at->arg = arg;
	list_push_back(&sim->ats, &at->link);
	heap_set(&sim->events, &at->timer, MAX(at_ns, sim->now_ns));
}

/* ---- steps ---- */

static struct sim_loop *loop_entry(struct link *k)
{
	return LIST_ENTRY(k, struct sim_loop, link);
}

static struct sim_loop *ready_pick(struct sim *sim)
{
	uint64_t count = 0, pick;

	LIST_EACH (k, &sim->loops)
		count += loop_has_ready(loop_entry(k)->loop);
	pick = count > 1 ? rng_below(&sim->rng, count) : 0;
	LIST_EACH (k, &sim->loops) {
		if (loop_has_ready(loop_entry(k)->loop) && pick-- == 0)
			return loop_entry(k);
	}
	return NULL;
}

/* The loop whose timer comes before all other events, or NULL when that is one of the world's. */
static struct sim_loop *timer_pick(struct sim *sim, uint64_t *ret_at_ns)
{
	struct sim_loop *best = NULL;

	*ret_at_ns = heap_next(&sim->events);
	LIST_EACH (k, &sim->loops) {
		if (loop_timer_next(loop_entry(k)->loop) < *ret_at_ns) {
			best = loop_entry(k);
			*ret_at_ns = loop_timer_next(best->loop);
		}
	}
	return best;
}

static void world_run_loop(struct sim *sim, struct sim_loop *l)
{
	sim_fold(sim, DID_RUN, l->id, 0);
	sim->running = l->loop;
	l->loop->stepping = true;
	loop_run_ready(l->loop);
	sim->running->stepping = false;
	sim->running = NULL;
}

/* One step, unless it lies behind `until_ns`: then the clock moves there and *ret_late says so. */
static int world_step(struct sim *sim, uint64_t until_ns, bool *ret_late)
{
	struct sim_loop *l;
	uint64_t at_ns;

	CHECK(!sim->running); /* callbacks never run a loop, not even another one */
	*ret_late = false;
	l = ready_pick(sim);
	if (l) {
		world_run_loop(sim, l);
		return 0;
	}
	l = timer_pick(sim, &at_ns);
	if (at_ns == NEVER_NS && until_ns == NEVER_NS)
		return -EDEADLK;
	if (at_ns > until_ns) {
		sim->now_ns = MAX(sim->now_ns, until_ns);
		*ret_late = true;
		return 0;
	}
	sim->now_ns = MAX(sim->now_ns, at_ns);
	if (l) {
		world_run_loop(sim, l);
	} else {
		struct timer *event = heap_take(&sim->events, sim->now_ns, UINT64_MAX);

		CHECK(event);
		event->fire(event);
	}
	return 0;
}

int sim_step(struct sim *sim)
{
	bool late;

	return world_step(sim, NEVER_NS, &late);
}

int sim_run_until(struct sim *sim, const bool *flag, uint64_t until_ns)
{
	while (!*flag) {
		bool late;
		int err = world_step(sim, until_ns, &late);

		if (err)
			return err;
		if (late)
			return -ETIMEDOUT;
	}
	return 0;
}

/* ---- descriptors ---- */

int sim_fd_new(struct sim_loop *owner, enum sim_fd_kind kind, void *object)
{
	struct sim *sim = owner->sim;
	size_t i = 0;

	while (i < sim->fds_len && sim->fds[i].kind != SIM_FREE)
		i++;
	if (i == sim->fds_len) {
		sim->fds_len = sim->fds_len ? 2 * sim->fds_len : 64;
		sim->fds = reallocarray(sim->fds, sim->fds_len, sizeof(*sim->fds));
		CHECK(sim->fds);
		memset(sim->fds + i, 0, (sim->fds_len - i) * sizeof(*sim->fds));
	}
	sim->fds[i] = (struct sim_fd){ kind, owner, object };
	return SIM_FD_BASE + (int)i;
}

static struct sim_fd *fd_find(struct loop *loop, int fd)
{
	struct sim *sim = sim_of(loop)->sim;

	if (fd < SIM_FD_BASE || (size_t)(fd - SIM_FD_BASE) >= sim->fds_len)
		return NULL;
	if (sim->fds[fd - SIM_FD_BASE].owner != sim_of(loop))
		return NULL;
	return &sim->fds[fd - SIM_FD_BASE];
}

void *sim_fd_get(struct loop *loop, int fd, enum sim_fd_kind kind)
{
	struct sim_fd *f = fd_find(loop, fd);

	return f && f->kind == kind ? f->object : NULL;
}

static void fd_drop(struct sim_fd *f, bool crash)
{
	if (f->kind == SIM_FILE)
		disk_close(f);
	else
		net_close(f, crash);
	*f = (struct sim_fd){ 0 };
}

static void sim_close_fd(struct loop *loop, int fd)
{
	struct sim_fd *f = fd_find(loop, fd);

	CHECK(f && f->kind != SIM_FREE); /* closed twice, or another loop's */
	fd_drop(f, false);
}

/* ---- the engine ---- */

static int sim_loop_open(struct loop *loop, const struct loop_options *options, struct err *e)
{
	struct sim *sim = options->sim;
	struct sim_loop *l;

	if (!sim)
		return err_set(e, -EINVAL, "a simulated loop needs a world to live in");
	l = sim_alloc(sizeof(*l));
	l->sim = sim;
	l->loop = loop;
	l->id = ++sim->next_id;
	list_init(&l->ios);
	list_push_back(&sim->loops, &l->link);
	if (!options->env)
		loop->env = &sim->env;
	loop->now = &sim->now_ns;
	loop->state = l;
	return 0;
}

static void sim_loop_drop(struct loop *loop, bool crash)
{
	struct sim_loop *l = sim_of(loop);
	struct sim *sim = l->sim;

	for (size_t i = 0; i < sim->fds_len; i++) {
		if (sim->fds[i].owner == l)
			fd_drop(&sim->fds[i], crash);
	}
	net_forget(sim, l);
	CHECK(list_empty(&l->ios));
	link_remove(&l->link);
	free(l);
}

static void sim_loop_close(struct loop *loop)
{
	sim_loop_drop(loop, false);
}

static int sim_loop_step(struct loop *loop, uint64_t until_ns)
{
	bool late;

	return world_step(sim_of(loop)->sim, until_ns, &late);
}

static void sim_submit(struct loop *loop, struct op *op)
{
	switch (op->kind) {
	case OP_READ:
	case OP_WRITE:
	case OP_SYNC:
	case OP_ALLOCATE:
	case OP_WORK:
		disk_submit(loop, op);
		break;
	case OP_POLL:
		loop_complete(loop, op, -EOPNOTSUPP);
		break;
	default:
		net_submit(loop, op);
	}
}

static void sim_cancel(struct loop *loop, struct op *op)
{
	if (op->where == AT_FD)
		net_cancel(loop, op);
	else
		disk_cancel(loop, op);
}

const struct engine engine_sim = {
	.name = "sim",
	.open = sim_loop_open,
	.close = sim_loop_close,
	.submit = sim_submit,
	.cancel = sim_cancel,
	.step = sim_loop_step,
	.fd_socket = net_socket,
	.fd_listen = net_listen,
	.fd_pair = net_pair,
	.fd_name = net_name,
	.fd_open = disk_open,
	.fd_size = disk_size,
	.fd_close = sim_close_fd,
};

/* ---- faults of a host ---- */

void sim_partition(struct sim *sim, struct loop *loop, bool on)
{
	sim_fold(sim, DID_PARTITION, sim_of(loop)->id, on);
	sim_of(loop)->partitioned = on;
	if (!on)
		net_heal(sim);
}

void sim_crash(struct sim *sim, struct loop *loop)
{
	CHECK(sim->running != loop); /* from another loop's callback, or from sim_at() */
	sim_fold(sim, DID_CRASH, sim_of(loop)->id, 0);
	disk_crash(sim, sim_of(loop));
	sim_loop_drop(loop, true);
	loop_free(loop);
}
