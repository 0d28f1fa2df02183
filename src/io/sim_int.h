/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the simulated world: sim.c has clock, events and loops, sim_net.c the network,
 * sim_disk.c the files. Memory that runs out is a CHECK here: a simulation has nothing better to
 * do.
 */
#ifndef REMORA_IO_SIM_INT_H
#define REMORA_IO_SIM_INT_H

#include "io/loop_int.h"
#include "io/sim.h"

#define SIM_FD_BASE (1 << 20) /* no real descriptor is that high: mixing them up shows at once */
#define SIM_BUFFER_BYTES (256 * KIB)
#define SIM_SEGMENT_MAX (16 * KIB)
#define SIM_SECTOR 512u
#define SIM_FILE_MAX (4 * GIB)

/* What can happen, for the digest. */
enum sim_what {
	DID_RUN = 1,
	DID_ARRIVE,
	DID_DISK,
	DID_WORK,
	DID_AT,
	DID_CRASH,
	DID_CUT,
	DID_PARTITION,
};

enum sim_fd_kind { SIM_FREE, SIM_SOCKET, SIM_LISTENER, SIM_FILE };

struct sim_fd {
	enum sim_fd_kind kind;
	struct sim_loop *owner;
	void *object; /* struct sim_sock, sim_listener, sim_handle */
};

/* One loop in the world: a process on a host of its own. */
struct sim_loop {
	struct sim *sim;
	struct loop *loop;
	struct link link; /* in sim->loops */
	struct list ios;  /* struct sim_io: file operations and works under way */
	uint64_t id;
	uint64_t link_free_ns; /* when what was sent so far has left the host */
	bool partitioned;
};

struct sim {
	struct env env;
	struct rng rng;
	uint64_t now_ns, digest, next_id;
	struct timer_heap events;
	struct list loops, conns, listeners, files, ats;
	struct loop *running; /* whose callbacks run now */
	struct sim_fd *fds;
	size_t fds_len;
	unsigned next_port;
	struct sim_net net;
	struct sim_disk disk;
};

/* ---- sim.c ---- */

void *sim_alloc(size_t size);
void sim_fold(struct sim *sim, enum sim_what what, uint64_t a, uint64_t b);
void sim_fold_data(struct sim *sim, const void *data, size_t len);
uint64_t sim_between(struct sim *sim, uint64_t min, uint64_t max);
int sim_fd_new(struct sim_loop *owner, enum sim_fd_kind kind, void *object);
/* NULL unless fd is of that kind and belongs to the loop. */
void *sim_fd_get(struct loop *loop, int fd, enum sim_fd_kind kind);

static inline struct sim_loop *sim_of(struct loop *loop)
{
	return loop->state;
}

/* ---- sim_net.c ---- */

void net_submit(struct loop *loop, struct op *op);
void net_cancel(struct loop *loop, struct op *op);
int net_socket(struct loop *loop, int domain);
int net_listen(struct loop *loop, const struct sockaddr *addr, socklen_t len, int backlog);
int net_pair(struct loop *loop, int ret_fd[2]);
int net_name(struct loop *loop, int fd, struct sockaddr_storage *ret, socklen_t *ret_len);
void net_close(struct sim_fd *f, bool crash);
/* The loop goes: connections that still deliver what it had sent must not point to it. */
void net_forget(struct sim *sim, const struct sim_loop *l);
void net_heal(struct sim *sim);

/* ---- sim_disk.c ---- */

void disk_submit(struct loop *loop, struct op *op);
void disk_cancel(struct loop *loop, struct op *op);
int disk_open(struct loop *loop, const char *path, int flags, mode_t mode);
int disk_size(struct loop *loop, int fd, uint64_t *ret);
void disk_close(struct sim_fd *f);
/* The loop's operations under way end as a crash leaves them, and its unsynced data with them. */
void disk_crash(struct sim *sim, struct sim_loop *l);
void disk_free_all(struct sim *sim);

#endif
