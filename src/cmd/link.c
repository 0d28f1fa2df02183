/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora link: the network emulator, and the client of its control socket.
 *
 * Place: options and control around link_emu.c. It runs as a process of its own between two
 * sockets, so that every round trip of what is measured counts.
 *
 * Control: a line is a command, each is answered by a line that begins with "ok" or "error". One at
 * a time per connection.
 *
 * Locking: none; one loop.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/size.h"
#include "cmd/cmd.h"
#include "cmd/link_emu.h"

#define CONTROL_MAX 8u /* connections */
#define LINE_MAX_BYTES 256u
#define ANSWER_MAX_BYTES 1024u
#define SEND_TIMEOUT_NS (10 * NS_PER_S)

struct link_cmd;

struct control {
	struct link_cmd *cmd;
	int fd; /* -1 = free */
	struct op op;
	char line[LINE_MAX_BYTES], answer[ANSWER_MAX_BYTES];
	size_t len;
};

struct link_cmd {
	struct run run;
	struct emu emu;
	int control_fd;
	struct sock_addr control_addr;
	struct op control_accept;
	struct control control[CONTROL_MAX];
	bool stop, closed;
	/* options */
	const char *listen, *to, *control_text, *send;
	uint64_t delay_ns, jitter_ns, rate, queue, ready;
};

/* ---- commands ---- */

static int command_set(struct link_cmd *c, const char *word, const char *value, struct err *e)
{
	uint64_t v;
	int r;

	if (!strcmp(word, "delay") || !strcmp(word, "jitter"))
		r = time_parse(value, &v, e);
	else if (!strcmp(word, "rate"))
		r = strcmp(value, "none") ? rate_parse(value, &v, e) : (v = 0, 0);
	else
		r = size_parse(value, &v, e);
	if (r)
		return r;
	for (int i = 0; i < EMU_WAYS; i++) {
		struct pace_way *way = &c->emu.pipe[i].pace;

		if (!strcmp(word, "delay"))
			way->delay_ns = v;
		else if (!strcmp(word, "jitter"))
			way->jitter_ns = v;
		else if (!strcmp(word, "rate"))
			way->rate = v;
		else
			way->queue = v;
	}
	emu_changed(&c->emu);
	return 0;
}

static void command_stat(struct link_cmd *c, char *answer)
{
	struct emu *n = &c->emu;
	const struct pace_way *way = &n->pipe[EMU_UP].pace;
	json_t *stat = json_pack(
		"{s:I, s:I, s:I, s:I, s:b, s:b, s:I, s:I, s:{s:I, s:I, s:I}, s:{s:I, s:I, s:I}}",
		"delay_ns", (json_int_t)way->delay_ns, "jitter_ns", (json_int_t)way->jitter_ns,
		"rate_bytes_per_s", (json_int_t)way->rate, "queue_bytes",
		(json_int_t)pace_queue(way), "stalled", n->stalled, "cut", n->refusing,
		"connections", (json_int_t)n->conn_count, "accepted", (json_int_t)n->accepted, "up",
		"received", (json_int_t)n->pipe[EMU_UP].received, "delivered",
		(json_int_t)n->pipe[EMU_UP].delivered, "under_way",
		(json_int_t)emu_bytes(n, EMU_UP), "down", "received",
		(json_int_t)n->pipe[EMU_DOWN].received, "delivered",
		(json_int_t)n->pipe[EMU_DOWN].delivered, "under_way",
		(json_int_t)emu_bytes(n, EMU_DOWN));
	char *text = stat ? json_dumps(stat, JSON_COMPACT) : NULL;

	snprintf(answer, ANSWER_MAX_BYTES, "%s%s\n", text ? "ok " : "error no memory",
		 text ? text : "");
	free(text);
	json_decref(stat);
}

static int command_cut(struct link_cmd *c, const char *words, const char *value, struct err *e)
{
	uint64_t ns = 0;
	int r = 0;

	if (value && strcmp(words, "for"))
		return err_set(e, -EINVAL, "write: cut for 2s");
	if (value)
		r = time_parse(value, &ns, e);
	if (!r)
		emu_cut(&c->emu, ns);
	return r;
}

/* One line without its end; it is cut up. */
static void command_run(struct link_cmd *c, char *line, char *answer)
{
	char *word[4] = { 0 }, *save = NULL;
	struct err e = { 0 };
	size_t count = 0;
	int r;

	for (char *w = strtok_r(line, " \t\r", &save); w && count < 4;
	     w = strtok_r(NULL, " \t\r", &save))
		word[count++] = w;
	if (count == 1 && !strcmp(word[0], "stat")) {
		command_stat(c, answer);
		return;
	}
	if (count == 2 && (!strcmp(word[0], "delay") || !strcmp(word[0], "jitter") ||
			   !strcmp(word[0], "rate") || !strcmp(word[0], "queue"))) {
		r = command_set(c, word[0], word[1], &e);
	} else if (count == 2 && !strcmp(word[0], "stall") &&
		   (!strcmp(word[1], "on") || !strcmp(word[1], "off"))) {
		emu_stall(&c->emu, !strcmp(word[1], "on"));
		r = 0;
	} else if ((count == 1 || count == 3) && !strcmp(word[0], "cut")) {
		r = command_cut(c, word[1], word[2], &e);
	} else {
		r = err_set(&e, -EINVAL,
			    "commands: delay TIME, jitter TIME, rate RATE|none, queue SIZE, stall "
			    "on|off, "
			    "cut [for TIME], stat");
	}
	log_info(&c->run.env.log, "control: %s%s%s: %s", word[0] ? word[0] : "", word[1] ? " " : "",
		 word[1] ? word[1] : "", r ? e.text : "ok");
	snprintf(answer, ANSWER_MAX_BYTES, "%s%s\n", r ? "error " : "ok", e.text);
}

/* ---- the control socket ---- */

static void control_close(struct control *k)
{
	loop_close_fd(k->cmd->run.loop, k->fd);
	k->fd = -1;
}

static void control_received(struct op *op, int res);

static void control_receive(struct control *k)
{
	k->op.done = control_received;
	op_recv(k->cmd->run.loop, &k->op, k->fd, k->line + k->len, sizeof(k->line) - 1 - k->len);
}

static bool control_next(struct control *k);

static void control_answered(struct op *op, int res)
{
	struct control *k = CONTAINER_OF(op, struct control, op);

	if (res < 0)
		control_close(k);
	else if (!control_next(k))
		control_receive(k);
}

/* Carries out the first whole line, and answers it. False: there is none. */
static bool control_next(struct control *k)
{
	char *end = memchr(k->line, '\n', k->len);
	size_t len;

	if (!end && k->len < sizeof(k->line) - 1)
		return false;
	if (end) {
		len = (size_t)(end - k->line) + 1;
		*end = '\0';
		command_run(k->cmd, k->line, k->answer);
		memmove(k->line, k->line + len, k->len - len);
		k->len -= len;
	} else {
		k->len = 0;
		snprintf(k->answer, sizeof(k->answer), "error the line is too long\n");
	}
	k->op.done = control_answered;
	op_send_all(k->cmd->run.loop, &k->op, k->fd, k->answer, strlen(k->answer));
	return true;
}

static void control_received(struct op *op, int res)
{
	struct control *k = CONTAINER_OF(op, struct control, op);

	if (res <= 0) {
		control_close(k);
		return;
	}
	k->len += (size_t)res;
	if (!control_next(k))
		control_receive(k);
}

static void control_accepted(struct op *op, int res)
{
	struct link_cmd *c = CONTAINER_OF(op, struct link_cmd, control_accept);

	if (c->stop) {
		if (res >= 0)
			loop_close_fd(c->run.loop, res);
		loop_close_fd(c->run.loop, c->control_fd);
		c->control_fd = -1;
		return;
	}
	for (size_t i = 0; res >= 0 && i < CONTROL_MAX; i++) {
		struct control *k = &c->control[i];

		if (k->fd < 0) {
			k->fd = TAKE_FD(res);
			k->len = 0;
			control_receive(k);
		}
	}
	if (res >= 0) /* too many */
		loop_close_fd(c->run.loop, res);
	op_accept(c->run.loop, &c->control_accept, c->control_fd);
}

static int control_open(struct link_cmd *c, struct err *e)
{
	c->control_fd = -1;
	for (size_t i = 0; i < CONTROL_MAX; i++) {
		c->control[i].cmd = c;
		c->control[i].fd = -1;
	}
	if (!c->control_text)
		return 0;
	c->control_fd = loop_listen(c->run.loop, (const struct sockaddr *)&c->control_addr.ss,
				    c->control_addr.len, 8);
	if (c->control_fd < 0)
		return err_sys(e, c->control_fd, "--control %s", c->control_text);
	c->control_accept.done = control_accepted;
	op_accept(c->run.loop, &c->control_accept, c->control_fd);
	return 0;
}

/* ---- running ---- */

static void link_signal(struct run *run)
{
	struct link_cmd *c = CONTAINER_OF(run, struct link_cmd, run);

	c->stop = true;
}

static bool link_is_closed(const struct link_cmd *c)
{
	for (size_t i = 0; i < CONTROL_MAX; i++)
		if (c->control[i].fd >= 0)
			return false;
	return c->control_fd < 0 && emu_is_closed(&c->emu);
}

static void link_close(struct link_cmd *c)
{
	c->stop = true;
	emu_close(&c->emu);
	op_cancel(c->run.loop, &c->control_accept);
	for (size_t i = 0; i < CONTROL_MAX; i++)
		op_cancel(c->run.loop, &c->control[i].op);
	while (!link_is_closed(c))
		if (loop_step(c->run.loop, NEVER_NS))
			return;
	if (c->control_text && c->control_addr.domain == AF_UNIX)
		unlink(((struct sockaddr_un *)&c->control_addr.ss)->sun_path);
	emu_done(&c->emu);
}

static int link_announce(struct link_cmd *c, const struct common *common, int ready_fd,
			 struct err *e)
{
	char addr[SOCK_TEXT_MAX], to[SOCK_TEXT_MAX], line[SOCK_TEXT_MAX + 2];

	sock_format(&c->emu.listen_addr, addr);
	sock_format(&c->emu.to, to);
	if (common->json)
		out_json_line(json_pack("{s:[s], s:s}", "listening", addr, "to", to));
	else if (!common->quiet)
		printf("listening on %s, to %s\n", addr, to);
	fflush(stdout);
	snprintf(line, sizeof(line), "%s\n", addr);
	return ready_tell(ready_fd, line, e);
}

static int link_run(struct link_cmd *c, const struct common *common)
{
	struct err e = { 0 };
	int ready_fd = -1, r = 0, code = CMD_OK;

	if (c->ready != UINT64_MAX)
		r = ready_check(c->ready, &ready_fd, &e);
	if (!r)
		r = run_open(&c->run, common, &e);
	if (r)
		return say_failed(&e, NULL);
	c->run.on_signal = link_signal;
	(void)prctl(PR_SET_TIMERSLACK, 1000UL, 0, 0, 0); /* ns; half a packet's time matters here */
	for (int i = 0; i < EMU_WAYS; i++) {
		c->emu.pipe[i].pace = (struct pace_way){ .delay_ns = c->delay_ns,
							 .jitter_ns = c->jitter_ns,
							 .rate = c->rate,
							 .queue = c->queue };
		rng_init(&c->emu.pipe[i].pace.rng, rng_next(&c->run.env.rng));
	}
	r = emu_open(&c->emu, c->run.loop, &e);
	if (r) {
		run_close(&c->run);
		return say_failed(&e,
				  r == -EADDRINUSE
					  ? "another process listens there; choose another address"
					  : NULL);
	}
	r = control_open(c, &e);
	if (!r)
		r = link_announce(c, common, ready_fd, &e);
	while (!r && !c->stop)
		r = loop_step(c->run.loop, NEVER_NS);
	if (r)
		code = say_failed(&e, NULL);
	link_close(c);
	run_close(&c->run);
	return code;
}

/* ---- the client ---- */

struct sender {
	struct op op;
	bool done;
	int res;
};

static void sender_done(struct op *op, int res)
{
	struct sender *s = CONTAINER_OF(op, struct sender, op);

	s->res = res;
	s->done = true;
}

static int sender_wait(struct run *run, struct sender *s)
{
	int r = loop_run_until(run->loop, &s->done, loop_now_fresh(run->loop) + SEND_TIMEOUT_NS);

	if (r) {
		op_cancel(run->loop, &s->op);
		if (loop_run_until(run->loop, &s->done, NEVER_NS))
			return -EIO;
		return r;
	}
	s->done = false;
	return s->res;
}

/* The answer's length, or -errno. */
static int send_line(struct run *run, int fd, const struct sock_addr *addr, const char *line,
		     char *answer)
{
	struct sender s = { .op.done = sender_done };
	size_t len = 0;
	int r;

	op_connect(run->loop, &s.op, fd, (const struct sockaddr *)&addr->ss, addr->len);
	r = sender_wait(run, &s);
	if (r < 0)
		return r;
	op_send_all(run->loop, &s.op, fd, line, strlen(line));
	r = sender_wait(run, &s);
	while (r >= 0 && len < ANSWER_MAX_BYTES - 1 && !memchr(answer, '\n', len)) {
		op_recv(run->loop, &s.op, fd, answer + len, ANSWER_MAX_BYTES - 1 - len);
		r = sender_wait(run, &s);
		if (r == 0)
			r = -ECONNRESET;
		len += r > 0 ? (size_t)r : 0;
	}
	answer[len] = '\0';
	answer[strcspn(answer, "\n")] = '\0';
	return r < 0 ? r : (int)len;
}

static int link_send(const char *addr_text, const struct common *common, int count, char **words)
{
	char line[LINE_MAX_BYTES] = "", answer[ANSWER_MAX_BYTES];
	struct sock_addr addr;
	struct err e = { 0 };
	struct run run;
	size_t len = 0;
	int fd, r;

	if (sock_parse(addr_text, &addr, &e))
		return say_usage("--send: %s", e.text);
	if (!count)
		return say_usage("--send needs a command, as in: remora link --send %s delay 20ms",
				 addr_text);
	for (int i = 0; i < count; i++) {
		len += (size_t)snprintf(line + len, sizeof(line) - len, "%s%s", i ? " " : "",
					words[i]);
		if (len + 1 >= sizeof(line))
			return say_usage("the command is too long");
	}
	snprintf(line + len, sizeof(line) - len, "\n");
	r = run_open(&run, common, &e);
	if (r)
		return say_failed(&e, NULL);
	fd = loop_socket(run.loop, addr.domain);
	r = fd < 0 ? fd : send_line(&run, fd, &addr, line, answer);
	if (fd >= 0)
		loop_close_fd(run.loop, fd);
	run_close(&run);
	if (r < 0) {
		err_sys(&e, r, "%s", addr_text);
		return say_failed(&e, "is that the --control address of a remora link that runs?");
	}
	if (strncmp(answer, "ok", 2)) {
		say_error("%s", strncmp(answer, "error ", 6) ? answer : answer + 6);
		return CMD_FAILED;
	}
	printf("%s\n", answer[2] == ' ' ? answer + 3 : answer);
	return out_end(CMD_OK);
}

/* ---- options ---- */

static const char link_more[] =
	"A TIME is 500us or 25ms; a RATE 100M (bytes per second) or 200Mbit. Delay and rate hold\n"
	"for each direction, so --delay 12.5ms is a round trip of 25 ms. All connections share the\n"
	"rate.\n"
	"\n"
	"While it runs, commands go to the control socket: delay TIME, jitter TIME, rate RATE|none,\n"
	"queue SIZE, stall on|off (nothing moves), cut (resets all connections), cut for 2s\n"
	"(refuses new ones, too), stat.\n"
	"\n"
	"Examples:\n"
	"  remora link --listen 127.0.0.1:7000 --to unix:/run/r.sock --delay 12.5ms --rate 200Mbit\n"
	"  remora link --listen unix:a --to unix:b --control unix:c\n"
	"  remora link --send unix:c cut for 2s\n";

static int addresses_parse(struct link_cmd *c, struct err *e)
{
	if (sock_parse(c->listen, &c->emu.listen_addr, e))
		return err_prefix(e, "--listen");
	if (!sock_is_local(&c->emu.listen_addr))
		return err_set(e, -EACCES,
			       "--listen %s: only unix sockets and loopback addresses: nothing is "
			       "encrypted",
			       c->listen);
	if (sock_parse(c->to, &c->emu.to, e))
		return err_prefix(e, "--to");
	if (c->control_text && sock_parse(c->control_text, &c->control_addr, e))
		return err_prefix(e, "--control");
	if (c->control_text && c->control_addr.domain != AF_UNIX)
		return err_set(e, -EINVAL, "--control %s: must be a unix socket (unix:PATH)",
			       c->control_text);
	return 0;
}

int cmd_link(int argc, char **argv)
{
	struct link_cmd *c = calloc(1, sizeof(*c));
	AUTO_FREE void *owner = c;
	struct common common;
	struct err e = { 0 };
	int r;

	if (!c)
		return CMD_FAILED;
	c->ready = UINT64_MAX;
	const struct opt options[] = {
		{ "listen", 'l', OPT_TEXT, "ADDR",
		  "where it accepts connections: unix:PATH or HOST:PORT (port 0 = any)",
		  &c->listen },
		{ "to", 't', OPT_TEXT, "ADDR", "where it connects each of them to", &c->to },
		{ "delay", 'd', OPT_TIME, "TIME", "one way; default: none", &c->delay_ns },
		{ "rate", 'r', OPT_RATE, "RATE", "of each direction; default: no limit", &c->rate },
		{ "jitter", 0, OPT_TIME, "TIME",
		  "up to so much more delay, drawn at random; order is kept", &c->jitter_ns },
		{ "queue", 0, OPT_SIZE, "SIZE",
		  "what may wait to be sent; default: 5 ms of the rate, 64K at least", &c->queue },
		{ "control", 0, OPT_TEXT, "unix:PATH", "takes commands there", &c->control_text },
		{ "send", 0, OPT_TEXT, "unix:PATH",
		  "sends the command in the arguments to a link's control socket", &c->send },
		{ "ready-fd", 0, OPT_NUMBER, "N",
		  "writes its address to descriptor N and closes it when it is ready", &c->ready },
		{ 0 },
	};
	const struct usage usage = {
		.name = "link",
		.args = "[OPTION]... --listen ADDR --to ADDR\n"
			"       remora link --send unix:PATH COMMAND...",
		.options = options,
		.more = link_more,
		.args_max = 4,
		.json = true,
		.loop = true,
	};

	(void)owner;
	r = options_parse(&usage, &common, argc, argv);
	if (r >= 0)
		return r;
	if (c->send)
		return link_send(c->send, &common, argc - optind, argv + optind);
	if (argc > optind)
		return say_usage("'%s' is one argument too many", argv[optind]);
	if (!c->listen || !c->to)
		return say_usage("--%s is missing", c->listen ? "to" : "listen");
	if (addresses_parse(c, &e)) {
		say_error("%s", e.text);
		return exit_of(e.code) == CMD_UNREACHABLE && e.code != -EACCES ? CMD_UNREACHABLE
									       : CMD_USAGE;
	}
	return out_end(link_run(c, &common));
}
