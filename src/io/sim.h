/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated world: one seeded clock, network and storage shared by any number of loops, all run
 * by one thread. The same seed gives the same run, event by event. Network: streams between virtual
 * sockets with delay, bandwidth, stalls, partitions and resets. Storage: files in memory that
 * survive a simulated crash only as far as they were synced.
 */
#ifndef REMORA_IO_SIM_H
#define REMORA_IO_SIM_H

#include "io/loop.h"

struct sim;

struct sim_net {
	/* one way, drawn per segment; order within a stream is kept */
	uint64_t delay_min_ns, delay_max_ns;
	uint64_t bytes_per_s;		     /* 0 = no limit */
	uint32_t reset_per_million;	     /* chance per segment that the connection is reset */
	uint32_t stall_per_million;	     /* chance per segment of a stall */
	uint64_t stall_max_ns;
	uint32_t short_per_million;	     /* chance that a recv or send moves only part */
	/* what a direction holds, under way or unread, before send waits; 0 = 256 KiB */
	uint32_t buffer_bytes;
};

struct sim_disk {
	uint64_t delay_min_ns, delay_max_ns;
	uint32_t error_per_million; /* -EIO */
	uint32_t short_per_million;
};

MUST_USE int sim_open(struct sim **ret, uint64_t seed);
void sim_close(struct sim *sim); /* after its loops */

struct env *sim_env(struct sim *sim);	/* clock and seed, for loops and everything on them */
struct rng *sim_rng(struct sim *sim);
uint64_t sim_now(struct sim *sim);

struct sim_net *sim_net(struct sim *sim);   /* changed at any time */
struct sim_disk *sim_disk(struct sim *sim);

/* Runs the next event of any loop in the world. -EDEADLK when there is none. */
MUST_USE int sim_step(struct sim *sim);
/* Until *flag, or until the simulated time comes (-ETIMEDOUT). */
MUST_USE int sim_run_until(struct sim *sim, const bool *flag, uint64_t until_ns);

/* Calls fn(arg) at a simulated time: how a test injects what it wants. */
void sim_at(struct sim *sim, uint64_t at_ns, void (*fn)(void *arg), void *arg);

/* Every connection into or out of `loop` breaks (reset), as when its host dies or a cable is cut.
 */
void sim_cut(struct sim *sim, struct loop *loop);
/* While partitioned nothing arrives, nobody is told. */
void sim_partition(struct sim *sim, struct loop *loop, bool on);

/* The process on this loop dies: its pending ops never complete, its sockets reset, its unsynced
 * file data is lost or torn by the seed. The loop is freed; what its code had allocated is the
 * test's to free. */
void sim_crash(struct sim *sim, struct loop *loop);

/* Virtual files by name. */
MUST_USE int sim_file_make(struct sim *sim, const char *path, uint64_t size);
/* What a reader would see now; for checks. */
MUST_USE int sim_file_peek(struct sim *sim, const char *path, uint64_t off, void *buf, size_t len);

/* A digest of everything that happened so far: equal for equal seeds. */
uint64_t sim_digest(const struct sim *sim);

#endif
