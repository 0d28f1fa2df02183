/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emulated link: connections from a listener to a target, both ways through link_pace.h, and
 * what can be done to them while they run.
 */
#ifndef REMORA_CMD_LINK_EMU_H
#define REMORA_CMD_LINK_EMU_H

#include "base/list.h"
#include "cmd/link_pace.h"
#include "io/loop.h"
#include "io/sock.h"

enum emu_way { EMU_UP, EMU_DOWN, EMU_WAYS }; /* to the target; back from it */

/* One way, with who waits for room in it. */
struct emu_pipe {
	struct pace_way pace;
	struct list waiting; /* struct flow */
	struct timer timer;
	struct emu *emu;
	uint64_t received, delivered; /* bytes, all connections */
};

struct emu {
	struct loop *loop;
	struct sock_addr listen_addr, to;
	struct emu_pipe pipe[EMU_WAYS];
	int listen_fd; /* -1 while cut */
	struct op accept_op;
	struct list conns;
	size_t conn_count;
	uint64_t accepted;
	struct timer listen_timer; /* the end of a cut */
	bool stalled, closing;
	bool refusing; /* the listener is closed, or about to be */
	uint64_t stalled_at_ns;
	struct list idle_blocks;
	size_t idle_block_count;
};

/* Listens. pipe[].pace holds the settings. */
MUST_USE int emu_open(struct emu *emu, struct loop *loop, struct err *e);
/* Ends everything; emu_is_closed() says when it is done, then emu_done(). */
void emu_close(struct emu *emu);
bool emu_is_closed(const struct emu *emu);
void emu_done(struct emu *emu);

void emu_stall(struct emu *emu, bool on);
/* Resets every connection; new ones are refused for so long. */
void emu_cut(struct emu *emu, uint64_t refuse_ns);
/* After pipe[].pace was changed. */
void emu_changed(struct emu *emu);
uint64_t emu_bytes(struct emu *emu, enum emu_way way); /* under way now */

#endif
