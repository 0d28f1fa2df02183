/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replies that the server has placed in memory that it shares (front/server_place.c): mapped here
 * for reading, copied to where the data shall be, and released.
 *
 * Place: rconn_welcomed() opens it, the replies of remora_req.c use it, conn_stopped() closes it.
 *
 * Invariants: only what lies within the mapping is read, and the memory cannot become shorter (its
 * seals are looked at). A release is queued before any request that is made after it, urgent ones
 * too, so a server that waits for room always has it before it in the stream. There are never more
 * releases than places fit into a batch: a place belongs to a request in flight.
 *
 * Locking: none; loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "back/remora_int.h"
#include "base/cleanup.h"

void rplace_open(struct rconn *c)
{
	AUTO_FD int fd = stream_take_fd(&c->stream);
	struct stat st;
	int seals;
	void *p;

	CHECK(!c->shm);
	if (!c->shm_asked || fd < 0 || fstat(fd, &st))
		return;
	seals = fcntl(fd, F_GET_SEALS);
	if (st.st_size <= 0 || (uint64_t)st.st_size > WIRE_SHARED_MAX || seals < 0 ||
	    !(seals & F_SEAL_SHRINK))
		return;
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return;
	c->shm = p;
	c->shm_len = (size_t)st.st_size;
	c->release.filled = 0;
	c->release.sending = false;
}

void rplace_close(struct rconn *c)
{
	if (c->shm)
		munmap((void *)(uintptr_t)c->shm, c->shm_len);
	c->shm = NULL;
}

const uint8_t *rplace_find(const struct rconn *c, uint64_t off, uint64_t len)
{
	return c->shm && range_within(range_of(off, len), c->shm_len) ? c->shm + off : NULL;
}

static void batch_send(struct rconn *c);

static void batch_sent(struct stream_frame *frame, int err)
{
	struct rconn *c = CONTAINER_OF(frame, struct rconn, release.frame);

	c->release.sending = false;
	if (!err && c->release.filled && rconn_is_up(c))
		batch_send(c);
}

static void batch_send(struct rconn *c)
{
	struct rrelease *b = &c->release;

	b->iov = (struct iovec){ b->at[b->which], b->filled };
	b->frame = (struct stream_frame){ .iov = &b->iov, .iov_count = 1, .sent = batch_sent };
	b->which = !b->which;
	b->filled = 0;
	b->sending = true;
	stream_send(&c->stream, &b->frame, true);
}

void rplace_release(struct rconn *c, uint64_t off, uint64_t len)
{
	struct rrelease *b = &c->release;
	struct wire_request request = {
		.op = WIRE_RELEASE,
		.range = range_of(off, wire_request_bytes(WIRE_READ, len, 0)),
	};

	CHECK(b->filled < sizeof(b->at[0]));
	wire_request_encode(&request, b->at[b->which] + b->filled);
	b->filled += WIRE_REQUEST_LEN;
	if (!b->sending)
		batch_send(c);
}
