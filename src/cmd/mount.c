/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora mount: a resource as a file.
 *
 * Place: options, going to the background, the life of the loop. mount_open.c puts the stores, the
 * file and the control socket together, mount_end.c takes the mount away.
 *
 * Invariants: errors of coming up are on the stderr of who started it, and are its exit code. When
 * the parent returns, or --ready-fd is written, the file can be opened and the control socket
 * answers.
 *
 * Locking: none; one loop.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/mount.h"

static void announce(const struct mount *m)
{
	bool read_only = m->read_only || m->store->info.read_only;
	char size[SIZE_TEXT_MAX];

	if (m->common.json)
		out_json_line(json_pack("{s:o, s:s, s:I, s:b, s:s, s:i}", "mounted",
					control_text(m->path), "spec", m->spec, "size",
					(json_int_t)m->size, "read_only", read_only, "mode",
					m->direct ? "direct" : "managed", "pid", (int)getpid()));
	else if (!m->common.quiet)
		printf("mounted %s on %s (%s%s%s)\n", m->spec, m->path,
		       size_format(m->size, size), m->direct ? ", direct" : "",
		       read_only ? ", read only" : "");
	fflush(stdout);
}

static int tell(struct mount *m, struct err *e)
{
	AUTO_FREE char *line = NULL;
	char engine[96];
	int r;

	mount_engine(m, engine, sizeof(engine));
	log_info(&m->run.env.log, "mounted %s on %s: %s", m->spec, m->path, engine);
	announce(m);
	if (asprintf(&line, "%s\n", m->path) < 0)
		return err_sys(e, -ENOMEM, "telling that it is mounted");
	r = ready_tell(m->ready_fd, line, e);
	service_tell("MAINPID=%d\nREADY=1\nSTATUS=mounted on %s", (int)getpid(), m->path);
	if (!r && background_ready(&m->background))
		r = err_set(e, -EPIPE, "whoever started this mount was killed");
	return r;
}

static const char *next_step(int err)
{
	switch (-err) {
	case ECONNREFUSED:
	case ENOENT:
	case ETIMEDOUT:
		return "is the server running, and is the address right? remora info SPEC asks it";
	case ENODEV:
		return "remora doctor tells what this machine can do";
	default:
		return NULL;
	}
}

static int mount_run(struct mount *m)
{
	struct err e = { 0 };
	int r, code = CMD_OK;

	r = control_log_open(&m->log, &e);
	if (!r)
		r = run_open(&m->run, &m->common, &e);
	if (r) {
		control_log_close(m->log);
		return say_failed(&e, NULL);
	}
	control_log_watch(m->log, &m->run.env);
	r = mount_open(m, &e);
	if (!r && !m->stop)
		r = tell(m, &e);
	if (r)
		code = say_failed(&e, m->up ? NULL : next_step(r));
	else if (m->stop) {
		say_error("interrupted");
		code = CMD_INCOMPLETE;
	}
	while (!r && !m->stop) {
		r = loop_step(m->run.loop, NEVER_NS);
		if (r) {
			err_sys(&e, r, "the event loop");
			code = say_failed(&e, NULL);
		}
	}
	mount_close(m);
	run_close(&m->run);
	control_log_close(m->log);
	return code ? code : m->code;
}

static int mount_start(struct mount *m, char **argv)
{
	struct err e = { 0 };
	int r, code = CMD_OK;

	m->spec = argv[0];
	m->path_given = argv[1];
	list_init(&m->works);
	mount_end_init(m);
	r = mount_options(m, &e);
	if (r)
		return say_usage("%s", e.text);
	if (m->ready != UINT64_MAX && ready_check(m->ready, &m->ready_fd, &e))
		return say_failed(&e, NULL);
	if (!m->foreground) {
		r = background_start(&m->background, m->ready_fd, &code, &e);
		if (r < 0)
			return say_failed(&e, NULL);
		if (r)
			return code;
	}
	return mount_run(m);
}

static const char mount_more[] =
	"A RANGE is OFF-END, OFF+LEN or LEN, all of them sizes: 0-64M, 1G+4M, 64M. Without --pull\n"
	"everything is pulled in the background; what programs read comes first. first=RANGE is\n"
	"pulled before the rest; with --pull none beside it, it alone.\n"
	"\n"
	"The file is there when the command returns. remora unmount FILE ends it: everything that\n"
	"was written is made safe first. So do SIGTERM and ^C; a second one gives up what is not\n"
	"safe.\n"
	"\n"
	"Examples:\n"
	"  remora mount remora://localhost:7000/disk.img disk.img\n"
	"  remora mount --pull none --budget 256M remora+unix:///run/remora.sock/big big\n"
	"  remora mount --read-only --pull first=64M remora://localhost:7000/model model\n";

static int mount_parse(struct mount *m, int argc, char **argv)
{
	const struct opt options[] = {
		{ "foreground", 'f', OPT_FLAG, NULL, "stays in the foreground", &m->foreground },
		{ "ready-fd", 0, OPT_NUMBER, "N",
		  "writes the file's path to descriptor N and closes it when it is mounted",
		  &m->ready },
		{ "read-only", 'r', OPT_FLAG, NULL,
		  "nobody can write; the resource is opened without the right to", &m->read_only },
		{ "direct", 'd', OPT_FLAG, NULL,
		  "keeps nothing here: each read and write goes to the resource", &m->direct },
		{ "allow-other", 0, OPT_FLAG, NULL,
		  "other users may open the file, too, if its mode lets them", &m->others },
		{ "pull", 0, OPT_LIST, "all|none|first=RANGE",
		  "what is pulled without anybody reading it; may be given several times; "
		  "default: all",
		  &m->pull_text },
		{ "profile", 0, OPT_TEXT, "FILE",
		  "pulls what remora record has seen in use, in that order, before the rest",
		  &m->profile_path },
		{ "budget", 0, OPT_SIZE, "SIZE",
		  "how much may be kept here, all told; default: no limit", &m->budget },
		{ "near", 0, OPT_TEXT, "DIR",
		  "keeps it in this directory instead of in memory, also over a restart", &m->near_dir },
		{ "push-interval", 0, OPT_TIME, "TIME",
		  "what was written is pushed this long after, at the latest; default: 1s",
		  &m->push_interval_ns },
		{ "on-loss", 0, OPT_WORD, "wait|error|readonly",
		  "while the far side is away: wait for it, fail at once, or take no more pushes",
		  &m->on_loss },
		{ "deadline", 0, OPT_TIME, "TIME",
		  "how long anything waits for a lost far side; default: 60s", &m->deadline_ns },
		{ "chunk", 0, OPT_SIZE, "SIZE", "what is pulled as a whole; default: the server's",
		  &m->chunk },
		{ 0 },
	};
	const struct usage usage = {
		.name = "mount",
		.args = "[OPTION]... SPEC FILE",
		.options = options,
		.more = mount_more,
		.args_min = 2,
		.args_max = 2,
		.json = true,
		.loop = true,
	};

	return options_parse(&usage, &m->common, argc, argv);
}

int cmd_mount(int argc, char **argv)
{
	struct mount *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return CMD_FAILED;
	m->ready = m->deadline_ns = UINT64_MAX;
	m->ready_fd = m->background.fd = -1;
	r = mount_parse(m, argc, argv);
	if (r < 0)
		r = mount_start(m, argv + optind);
	free(m->path);
	free(m);
	return out_end(r);
}
