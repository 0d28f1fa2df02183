/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process that talks to strangers takes away from itself, once everything is open. Whoever
 * gets to run code in it shall find nothing to run it for: no program can be started, no file
 * opened but those that are served, no other user become.
 */
#ifndef REMORA_CMD_SANDBOX_H
#define REMORA_CMD_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/log.h"
#include "io/loop.h"

#define SANDBOX_PATHS_MAX 512u

/* The sanitizers look for leaks at the end with a process of their own that traces this one:
 * builds with them let that pass. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANDBOX_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
	__has_feature(leak_sanitizer)
#define SANDBOX_SANITIZED 1
#endif
#endif
#ifndef SANDBOX_SANITIZED
#define SANDBOX_SANITIZED 0
#endif

enum sandbox_right {
	SANDBOX_READ = 1u << 0,	  /* open for reading what is there; a directory: all below it */
	SANDBOX_CHANGE = 1u << 1, /* a directory: all but to start programs */
	SANDBOX_REMOVE = 1u << 2, /* a directory: names in it can be removed */
};

struct sandbox_path {
	char *path;
	unsigned rights;
};

struct sandbox {
	/* asked for */
	bool user_given;
	char user[96]; /* as it was given */
	uid_t uid;
	gid_t gid;
	bool net;  /* may make connections */
	bool exec; /* has to start programs: no filter, no Landlock */
	struct sandbox_path path[SANDBOX_PATHS_MAX];
	size_t paths;
	/* had: what is active */
	bool on, no_new_privs, seccomp;
	int landlock; /* version of the kernel's interface; 0 = not active */
	char missing[256]; /* what could not be had, for people; "" = nothing */
};

/* "NAME[:GROUP]", or numbers. -EINVAL, -EPERM with the text. Changes nothing. */
MUST_USE int sandbox_user_parse(struct sandbox *b, const char *text, struct err *e);

/* NULL paths, and those beyond the table, are an error; what does not exist is left out. */
MUST_USE int sandbox_path_add(struct sandbox *b, const char *path, unsigned rights);
void sandbox_paths_free(struct sandbox *b);

/*
 * Once, by the loop's thread, when no work is on the loop's pool. What the user asked for (--user)
 * and cannot be had is an error; what this kernel does not have is in b->missing.
 */
MUST_USE int sandbox_enter(struct sandbox *b, struct loop *loop, struct err *e);

/* Where --user is all that is asked for (--no-sandbox). */
MUST_USE int sandbox_user_drop(const struct sandbox *b, struct err *e);

/* The filter: sandbox_filter.c. 0, or -errno where it cannot be had. Covers all threads. */
MUST_USE int sandbox_filter_install(bool net, bool opens);

#endif
