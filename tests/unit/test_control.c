/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket's server side, on the real loops: what a client of any manners gets, and what
 * it cannot do to the process. And the service manager's socket.
 */
#include <errno.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "cmd/background.h"
#include "cmd/control.h"
#include "io_fix.h"

struct side {
	enum loop_engine engine;
	struct loop *loop;
	struct env env;
	struct control *control;
	struct control_log *log;
	char dir[64], path[128];
	struct control_call *held; /* of "hold" */
	unsigned runs;
	int64_t n;
	bool flag;
	const char *text;
};

/* ---- verbs ---- */

static void verb_echo(void *arg, struct control_call *call, json_t *args)
{
	struct side *t = arg;
	const struct control_arg known[] = {
		{ "n", CONTROL_INT, &t->n, -5, 5 },
		{ "flag", CONTROL_BOOL, &t->flag, 0, 0 },
		{ "text", CONTROL_TEXT, &t->text, 0, 0 },
		{ 0 },
	};

	t->runs++;
	if (control_args(call, args, known))
		return;
	control_ok(call, json_pack("{s:I, s:b}", "n", (json_int_t)t->n, "flag", t->flag));
}

static void verb_hold(void *arg, struct control_call *call, json_t *args)
{
	struct side *t = arg;

	(void)args;
	assert_null(t->held);
	t->held = call;
}

static void verb_fail(void *arg, struct control_call *call, json_t *args)
{
	(void)arg;
	(void)args;
	control_with(call, json_pack("{s:i}", "unsafe_bytes", 7));
	control_fail(call, -ENOSPC, "no room in %s", "here");
}

static const struct control_verb verbs[] = {
	{ "echo", verb_echo },
	{ "hold", verb_hold },
	{ "fail", verb_fail },
	{ 0 },
};

/* ---- both sides ---- */

static int side_open(void **state)
{
	struct side *t = *state;
	struct loop_options o = { .engine = t->engine, .env = &t->env };
	const struct control_options co = {
		.kind = "test", .target = "/a/b", .spec = "memory:1M", .verbs = verbs, .arg = t
	};
	struct control_options with_log = co;
	struct err e;

	*t = (struct side){ .engine = t->engine };
	env_init(&t->env);
	assert_int_equal(control_log_open(&t->log, &e), 0);
	control_log_watch(t->log, &t->env);
	assert_int_equal(loop_open(&t->loop, &o, &e), 0);
	snprintf(t->dir, sizeof(t->dir), "/tmp/remora-control.XXXXXX");
	assert_non_null(mkdtemp(t->dir));
	setenv("REMORA_RUNTIME_DIR", t->dir, 1);
	with_log.log = t->log;
	assert_int_equal(control_open(&t->control, t->loop, &with_log, &e), 0);
	snprintf(t->path, sizeof(t->path), "%s/test-%d.sock", t->dir, (int)getpid());
	return 0;
}

static int side_close(void **state)
{
	struct side *t = *state;

	control_close(t->control);
	loop_close(t->loop);
	control_log_close(t->log);
	return rmdir(t->dir); /* fails when a socket is left */
}

static int dial(struct side *t)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	memcpy(un.sun_path, t->path, strlen(t->path) + 1);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	return fd;
}

static void tell(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static void steps(struct side *t)
{
	bool never = false;

	/* what is ready now, and what follows from it */
	for (int i = 0; i < 5; i++)
		assert_int_equal(loop_run_until(t->loop, &never,
						loop_now_fresh(t->loop) + 2 * NS_PER_MS),
				 -ETIMEDOUT);
}

/* The next line, or "" at the end of the stream. */
static const char *hear(struct side *t, int fd)
{
	static char line[256 * 1024];
	uint64_t until = loop_now_fresh(t->loop) + PATIENCE_NS;
	size_t len = 0;

	while (loop_now_fresh(t->loop) < until) {
		ssize_t n = recv(fd, line + len, 1, 0);

		if (n == 1 && line[len] == '\n') {
			line[len] = '\0';
			return line;
		}
		if (n == 1) {
			len++;
			assert_true(len < sizeof(line));
		} else if (n == 0 || errno == ECONNRESET) {
			line[len] = '\0';
			return line;
		} else {
			assert_int_equal(errno, EAGAIN);
			assert_int_equal(loop_step(t->loop, loop_now_fresh(t->loop) + NS_PER_MS),
					 0);
		}
	}
	fail_msg("nothing came");
	return "";
}

static void says(struct side *t, int fd, const char *request, const char *answer)
{
	tell(fd, request);
	assert_string_equal(hear(t, fd), answer);
}

static void says_code(struct side *t, int fd, const char *request, const char *code)
{
	char want[64];
	const char *line;

	snprintf(want, sizeof(want), "\"code\":\"%s\"", code);
	tell(fd, request);
	line = hear(t, fd);
	if (!strstr(line, want) || !strstr(line, "\"ok\":false"))
		fail_msg("%s is answered %s, not %s", request, line, code);
}

/* ---- tests ---- */

static void the_socket_is_its_owners_alone(void **state)
{
	struct side *t = *state;
	struct stat st;

	assert_int_equal(lstat(t->path, &st), 0);
	assert_true(S_ISSOCK(st.st_mode));
	assert_int_equal(st.st_mode & 0777, 0600);
}

static void requests_are_answered_one_after_the_other(void **state)
{
	struct side *t = *state;
	int fd = dial(t);

	tell(fd, "{\"remora\":1,\"do\":\"hello\"}\n");
	assert_non_null(strstr(hear(t, fd), "\"kind\":\"test\""));
	says(t, fd, "{\"remora\":1,\"do\":\"echo\",\"n\":3}\n",
	     "{\"ok\":true,\"n\":3,\"flag\":false}");
	/* three in one piece, an empty line among them, and one in pieces */
	tell(fd, "{\"remora\":1,\"do\":\"echo\",\"n\":1}\n\n{\"remora\":1,\"do\":\"echo\",\"n\":2}\n"
		 "{\"remora\":1,\"do\":\"ec");
	assert_string_equal(hear(t, fd), "{\"ok\":true,\"n\":1,\"flag\":false}");
	assert_string_equal(hear(t, fd), "{\"ok\":true,\"n\":2,\"flag\":false}");
	says(t, fd, "ho\",\"flag\":true}\n", "{\"ok\":true,\"n\":2,\"flag\":true}");
	close(fd);
}

static void a_request_waits_for_the_answer_to_the_one_before(void **state)
{
	struct side *t = *state;
	int fd = dial(t);

	tell(fd, "{\"remora\":1,\"do\":\"hold\"}\n{\"remora\":1,\"do\":\"echo\"}\n");
	steps(t);
	tell(fd, "{\"remora\":1,\"do\":\"echo\"}\n");
	steps(t);
	assert_non_null(t->held);
	assert_int_equal(t->runs, 0);
	control_progress(t->held, json_pack("{s:i}", "done", 5));
	control_ok(TAKE_PTR(t->held), NULL);
	assert_string_equal(hear(t, fd), "{\"progress\":{\"done\":5}}");
	assert_string_equal(hear(t, fd), "{\"ok\":true}");
	assert_non_null(strstr(hear(t, fd), "\"ok\":true"));
	assert_non_null(strstr(hear(t, fd), "\"ok\":true"));
	assert_int_equal(t->runs, 2);
	close(fd);
}

static void a_failure_has_text_code_and_what_else_is_useful(void **state)
{
	struct side *t = *state;
	int fd = dial(t);

	says(t, fd, "{\"remora\":1,\"do\":\"fail\"}\n",
	     "{\"ok\":false,\"error\":\"no room in here\",\"code\":\"ENOSPC\",\"unsafe_bytes\":7}");
	close(fd);
}

static void wrong_requests_get_errors_and_the_connection_goes_on(void **state)
{
	static const struct {
		const char *request, *code;
	} wrong[] = {
		{ "{\"do\":\"echo\"}\n", "EPROTONOSUPPORT" },
		{ "{\"remora\":2,\"do\":\"echo\"}\n", "EPROTONOSUPPORT" },
		{ "{\"remora\":\"1\",\"do\":\"echo\"}\n", "EPROTONOSUPPORT" },
		{ "{\"remora\":1}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":7}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"dance\"}\n", "EOPNOTSUPP" },
		{ "{\"remora\":1,\"do\":\"\"}\n", "EOPNOTSUPP" },
		{ "{\"remora\":1,\"do\":\"hello\",\"x\":1}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"echo\",\"m\":1}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"echo\",\"n\":6}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"echo\",\"n\":-6}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"echo\",\"n\":1.5}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"echo\",\"n\":\"1\"}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"echo\",\"flag\":1}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"echo\",\"flag\":null}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"echo\",\"text\":[]}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"log\",\"last\":1001}\n", "EINVAL" },
		{ "{\"remora\":1,\"do\":\"log\",\"last\":-1}\n", "EINVAL" },
	};
	struct side *t = *state;
	int fd = dial(t);

	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		says_code(t, fd, wrong[i].request, wrong[i].code);
	says(t, fd, "{\"remora\":1,\"do\":\"echo\",\"n\":4}\n",
	     "{\"ok\":true,\"n\":4,\"flag\":false}");
	close(fd);
}

static void what_is_no_request_ends_the_connection(void **state)
{
	static const char *const bad[] = {
		"hello\n",
		"GET / HTTP/1.1\r\n",
		"[1]\n",
		"{\"remora\":1,\"remora\":1,\"do\":\"echo\"}\n",
		"{\"remora\":1,\"do\":\"echo\"} {}\n",
		"{\"remora\":1,\"do\":\"ec\xff\"}\n",
		"{\"a\":[[[[[[[[[[1]]]]]]]]]]}\n",
	};
	struct side *t = *state;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		int fd = dial(t);

		says_code(t, fd, bad[i], "EBADMSG");
		assert_string_equal(hear(t, fd), "");
		close(fd);
	}
	assert_int_equal(t->runs, 0);
}

static void a_line_has_an_end(void **state)
{
	struct side *t = *state;
	int fd = dial(t);
	char spaces[4097];

	memset(spaces, ' ', sizeof(spaces) - 1);
	spaces[4096] = '\0';
	tell(fd, "{\"remora\":1,");
	for (int i = 0; i < 16; i++) {
		tell(fd, spaces);
		steps(t);
	}
	assert_non_null(strstr(hear(t, fd), "\"code\":\"E2BIG\""));
	assert_string_equal(hear(t, fd), "");
	close(fd);
	/* one that fits */
	fd = dial(t);
	tell(fd, "{\"remora\":1,");
	for (int i = 0; i < 15; i++) {
		tell(fd, spaces);
		steps(t);
	}
	says(t, fd, "\"do\":\"echo\",\"n\":5}\n", "{\"ok\":true,\"n\":5,\"flag\":false}");
	close(fd);
}

static void who_has_said_all_still_gets_the_answer(void **state)
{
	struct side *t = *state;
	int fd = dial(t);

	tell(fd, "{\"remora\":1,\"do\":\"hold\"}\n{\"remora\":1,\"do\":\"echo\",\"n\":2}");
	shutdown(fd, SHUT_WR);
	steps(t);
	assert_false(control_gone(t->held));
	control_ok(TAKE_PTR(t->held), NULL);
	assert_string_equal(hear(t, fd), "{\"ok\":true}");
	assert_string_equal(hear(t, fd), "{\"ok\":true,\"n\":2,\"flag\":false}");
	assert_string_equal(hear(t, fd), "");
	close(fd);
}

static void who_has_gone_is_seen_and_his_answer_goes_nowhere(void **state)
{
	struct side *t = *state;
	int fd = dial(t);

	tell(fd, "{\"remora\":1,\"do\":\"hold\"}\n");
	steps(t);
	assert_false(control_gone(t->held));
	shutdown(fd, SHUT_WR);
	steps(t);
	close(fd);
	while (!control_gone(t->held))
		assert_int_equal(loop_step(t->loop, NEVER_NS), 0);
	control_progress(t->held, json_object());
	control_ok(TAKE_PTR(t->held), NULL);
	fd = dial(t);
	says(t, fd, "{\"remora\":1,\"do\":\"echo\",\"n\":1}\n",
	     "{\"ok\":true,\"n\":1,\"flag\":false}");
	close(fd);
}

static void a_client_that_reads_nothing_is_dropped(void **state)
{
	struct side *t = *state;
	int fd = dial(t);
	char text[1000];

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	tell(fd, "{\"remora\":1,\"do\":\"hold\"}\n");
	steps(t);
	for (int i = 0; i < 2000 && !control_gone(t->held); i++)
		control_progress(t->held, json_pack("{s:s}", "text", text));
	assert_true(control_gone(t->held));
	control_ok(TAKE_PTR(t->held), NULL);
	close(fd);
}

static void more_clients_wait_until_one_ends(void **state)
{
	struct side *t = *state;
	int fd[CONTROL_CONNS_MAX + 2];

	for (size_t i = 0; i < ARRAY_LEN(fd); i++) {
		fd[i] = dial(t);
		steps(t);
	}
	says(t, fd[CONTROL_CONNS_MAX - 1], "{\"remora\":1,\"do\":\"echo\",\"n\":1}\n",
	     "{\"ok\":true,\"n\":1,\"flag\":false}");
	tell(fd[CONTROL_CONNS_MAX], "{\"remora\":1,\"do\":\"echo\",\"n\":2}\n");
	steps(t);
	assert_int_equal(t->runs, 1);
	close(fd[0]);
	assert_string_equal(hear(t, fd[CONTROL_CONNS_MAX]), "{\"ok\":true,\"n\":2,\"flag\":false}");
	for (size_t i = 1; i < ARRAY_LEN(fd); i++)
		close(fd[i]);
}

static void the_log_tells_its_last_lines(void **state)
{
	struct side *t = *state;
	int fd = dial(t);

	for (int i = 0; i < 1100; i++)
		log_info(&t->env.log, "line %d", i);
	log_debug(&t->env.log, "not kept");
	log_warn(&t->env.log, "strange: \xff");
	tell(fd, "{\"remora\":1,\"do\":\"log\",\"last\":2}\n");
	{
		json_t *answer = json_loads(hear(t, fd), 0, NULL);
		json_t *events = json_object_get(answer, "events");

		assert_int_equal(json_array_size(events), 2);
		assert_string_equal(
			json_string_value(json_object_get(json_array_get(events, 0), "text")),
			"line 1099");
		assert_string_equal(
			json_string_value(json_object_get(json_array_get(events, 1), "text")),
			"strange: ?");
		assert_string_equal(
			json_string_value(json_object_get(json_array_get(events, 1), "level")),
			"warning");
		json_decref(answer);
	}
	tell(fd, "{\"remora\":1,\"do\":\"log\",\"last\":1000}\n");
	{
		json_t *answer = json_loads(hear(t, fd), 0, NULL);

		assert_int_equal(json_array_size(json_object_get(answer, "events")), 1000);
		json_decref(answer);
	}
	close(fd);
}

static void who_follows_the_log_gets_each_new_line_and_the_end(void **state)
{
	struct side *t = *state;
	int fd = dial(t), other = dial(t);

	log_info(&t->env.log, "before");
	tell(fd, "{\"remora\":1,\"do\":\"log\",\"follow\":true,\"last\":1}\n");
	tell(other, "{\"remora\":1,\"do\":\"log\",\"follow\":true,\"last\":0}\n");
	assert_non_null(strstr(hear(t, fd), "\"text\":\"before\""));
	close(other);
	steps(t);
	log_info(&t->env.log, "one");
	log_info(&t->env.log, "two");
	assert_non_null(strstr(hear(t, fd), "\"text\":\"one\""));
	assert_non_null(strstr(hear(t, fd), "\"text\":\"two\""));
	log_info(&t->env.log, "at the end");
	control_close(TAKE_PTR(t->control));
	assert_non_null(strstr(hear(t, fd), "\"text\":\"at the end\""));
	assert_string_equal(hear(t, fd), "{\"ok\":true,\"events\":[]}");
	assert_string_equal(hear(t, fd), "");
	close(fd);
}

static void the_end_answers_who_waits_and_takes_the_socket_away(void **state)
{
	struct side *t = *state;
	int fd = dial(t), idle = dial(t), gone = dial(t);

	tell(fd, "{\"remora\":1,\"do\":\"hold\"}\n");
	steps(t);
	close(gone);
	control_close(TAKE_PTR(t->control));
	assert_int_equal(access(t->path, F_OK), -1);
	assert_non_null(strstr(hear(t, fd), "\"code\":\"ESHUTDOWN\""));
	assert_string_equal(hear(t, fd), "");
	assert_string_equal(hear(t, idle), "");
	close(fd);
	close(idle);
}

static void a_directory_of_others_is_refused(void **state)
{
	struct side *t = *state;
	char dir[SPEC_LEN_MAX];
	struct err e;

	assert_int_equal(control_dir(dir, sizeof(dir), false, &e), 0);
	assert_string_equal(dir, t->dir);
	assert_int_equal(chmod(t->dir, 0720), 0);
	assert_int_equal(control_dir(dir, sizeof(dir), false, &e), -EPERM);
	assert_non_null(strstr(e.text, "REMORA_RUNTIME_DIR"));
	assert_int_equal(chmod(t->dir, 0700), 0);
	setenv("REMORA_RUNTIME_DIR", t->path, 1);
	assert_int_equal(control_dir(dir, sizeof(dir), true, &e), -ENOTDIR);
}

static void the_service_manager_hears_what_is_told(void **state)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct side *t = *state;
	char text[128] = "";
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(un.sun_path, sizeof(un.sun_path), "%s/notify", t->dir);
	assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	setenv("NOTIFY_SOCKET", un.sun_path, 1);
	service_tell("READY=1\nMAINPID=%d", 5);
	unsetenv("NOTIFY_SOCKET");
	service_tell("STOPPING=1");
	assert_int_equal(recv(fd, text, sizeof(text), MSG_DONTWAIT), 17);
	assert_string_equal(text, "READY=1\nMAINPID=5");
	assert_int_equal(recv(fd, text, sizeof(text), MSG_DONTWAIT), -1);
	close(fd);
	unlink(un.sun_path);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, side_open, side_close)

int main(void)
{
	struct side side[2] = { { .engine = LOOP_AUTO }, { .engine = LOOP_EPOLL } };
	const struct CMUnitTest tests[] = {
		TEST(the_socket_is_its_owners_alone),
		TEST(requests_are_answered_one_after_the_other),
		TEST(a_request_waits_for_the_answer_to_the_one_before),
		TEST(a_failure_has_text_code_and_what_else_is_useful),
		TEST(wrong_requests_get_errors_and_the_connection_goes_on),
		TEST(what_is_no_request_ends_the_connection),
		TEST(a_line_has_an_end),
		TEST(who_has_said_all_still_gets_the_answer),
		TEST(who_has_gone_is_seen_and_his_answer_goes_nowhere),
		TEST(a_client_that_reads_nothing_is_dropped),
		TEST(more_clients_wait_until_one_ends),
		TEST(the_log_tells_its_last_lines),
		TEST(who_follows_the_log_gets_each_new_line_and_the_end),
		TEST(the_end_answers_who_waits_and_takes_the_socket_away),
		TEST(a_directory_of_others_is_refused),
		TEST(the_service_manager_hears_what_is_told),
	};
	struct CMUnitTest both[2 * ARRAY_LEN(tests)]; /* one plan for the reader of the results */

	for (size_t i = 0; i < ARRAY_LEN(both); i++) {
		both[i] = tests[i % ARRAY_LEN(tests)];
		both[i].initial_state = &side[i / ARRAY_LEN(tests)];
	}
	return cmocka_run_group_tests_name("control", both, NULL, NULL);
}
