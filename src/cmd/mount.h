/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of remora mount share. mount.c has the options and the life, mount_open.c puts it
 * together and takes it apart, mount_end.c the state machine of unmounting, mount_verbs.c and
 * mount_status.c what the control socket asks.
 */
#ifndef REMORA_CMD_MOUNT_H
#define REMORA_CMD_MOUNT_H

#include "base/range.h"
#include "cmd/background.h"
#include "cmd/cmd.h"
#include "cmd/control.h"
#include "front/file.h"
#include "region/profile.h"
#include "region/region.h"

#define MOUNT_SHOW_NS (NS_PER_S / 5) /* progress lines */

enum mount_pull { MOUNT_PULL_ALL, MOUNT_PULL_NONE };

struct mount_first { /* --pull first= */
	struct region_pull pull;
	bool busy;
};

enum end_phase {
	END_NONE,
	END_USERS,  /* somebody has it open: perhaps not any more in a moment */
	END_SYNC,   /* the kernel writes back what it has */
	END_FLUSH,  /* the store makes it safe */
	END_DETACH, /* the mount is taken away */
	END_LAZY,   /* its name is gone, its last user not yet */
	END_PAUSE,  /* gone, and the flush failed: until the next try */
	END_DONE,
};

/* One who waits for the end: a call of the control socket. */
struct end_waiter {
	struct link link;
	struct control_call *call;
	uint64_t until_ns; /* NEVER_NS: as long as it takes */
};

struct mount_end {
	enum end_phase phase;
	bool by_signal; /* open handles do not stop it */
	bool signalled; /* one has come, ever: the next one forces */
	bool lazy, force;
	bool gone;	/* there is no mount any more */
	bool abandoned; /* what is under way ends, and nothing follows */
	bool redo;	/* what is under way ends, and it begins anew */
	unsigned rounds, tries;
	uint64_t writes;       /* direct: WRITEs when the flush began */
	uint64_t unsafe_start; /* for progress */
	uint64_t lost_bytes;
	struct list waiters;
	struct file_call call;
	struct req req;
	bool calling, flushing; /* call and req are somebody else's */
	struct timer show, pause;
};

#define MOUNT_SAMPLES 16u

struct mount_sample {
	uint64_t ns, pulled, pushed;
};

struct mount {
	struct run run;
	struct common common;
	struct background background;
	const char *spec, *path_given; /* borrowed from argv */
	char *path;	  /* absolute */

	/* options */
	bool foreground, read_only, direct, others;
	uint64_t ready, budget, push_interval_ns, deadline_ns, chunk;
	unsigned on_loss;
	struct opt_list pull_text;
	const char *near_dir, *profile_path;
	/* from them */
	enum mount_pull pull;
	struct mount_first first[OPT_LIST_MAX];
	size_t first_count;
	int ready_fd;

	/* what is open; far is the region's if there is one */
	struct store *far, *store;
	struct near *near;
	struct region *region;
	struct profile_run *profile_run;
	struct file *file;
	struct control_log *log;
	struct control *control;
	uint64_t started_ns; /* since 1970 */
	uint64_t size;
	bool up;	/* everything is open: asked for in vain before and after */
	bool stop;	/* the loop shall end */
	bool far_away;	/* direct: the last event */
	int code;	/* exit code */
	struct mount_end end;

	/* status */
	struct region_status status; /* the last that was asked for */
	struct mount_sample sample[MOUNT_SAMPLES];
	unsigned samples; /* ever */
	struct timer sampler;
	uint64_t asked_ns; /* when status was asked for last */

	/* recording */
	struct recorder *recorder;
	struct list works; /* pulls and others that calls wait for */
};

/* unmount.c. The name of a mount's file as others ask for it: absolute. Only of its directory
 * anything is asked: the file itself may be a dead mount, on which every call fails, or our own. */
MUST_USE int mount_path(const char *path, char **ret, struct err *e);

/* mount_open.c */
MUST_USE int mount_options(struct mount *m, struct err *e); /* what is wrong with them */
MUST_USE int mount_open(struct mount *m, struct err *e);
void mount_close(struct mount *m);
/* "mount(2), io_uring" */
void mount_engine(const struct mount *m, char *buf, size_t len);
uint64_t mount_unsafe(struct mount *m); /* bytes; 0 when nobody knows (direct) */
const char *mount_why(struct mount *m); /* the store's text for its last error, or "" */

/* mount_end.c */
void mount_end_init(struct mount *m);
void mount_end_ask(void *arg, struct control_call *call, json_t *args); /* the verb */
void mount_end_signal(struct run *run);
void mount_gone(void *arg); /* file_hooks.gone */
/* No more of it: requests and calls that are under way end; runs the loop. */
void mount_end_settle(struct mount *m);
/* The last of it: answers who waits. */
void mount_end_answer(struct mount *m);

/* mount_verbs.c */
extern const struct control_verb mount_verbs[];
void mount_accessed(void *arg, struct range r); /* file_hooks.accessed */
/* Ends what calls wait for, with an error; runs the loop until nothing is under way. */
void mount_verbs_settle(struct mount *m);
bool mount_up(struct mount *m, struct control_call *call); /* or it is answered */

/* mount_status.c */
void mount_status(void *arg, struct control_call *call, json_t *args); /* the verb */
void mount_sample(struct mount *m);

#endif
