/* SPDX-License-Identifier: Apache-2.0 */
/* The asking side of the control socket, and who is found under which name: against processes that
 * are threads of the test, well behaved or not. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "cmd/control.h"

#define FAKES 4
#define DEAD_PID 2147483646

struct fake {
	int fd;
	pthread_t thread;
	char *path, hello[256];
	const char *answer; /* to every verb but hello; NULL: ends the connection */
	bool deaf;	    /* never answers anything */
	pthread_mutex_t lock; /* guards hello, while the thread runs */
};

struct fixture {
	char dir[64], work[64];
	struct fake fake[FAKES];
	size_t count;
	char *text; /* an answer that a fake may have until it ends */
};

/* Answers what comes on one connection, a line at a time. */
static void serve_one(struct fake *f, int fd)
{
	char line[4096];
	size_t len = 0;
	ssize_t n;

	while (len < sizeof(line) && (n = recv(fd, line + len, 1, 0)) == 1) {
		const char *answer;

		if (line[len++] != '\n')
			continue;
		pthread_mutex_lock(&f->lock);
		answer = memmem(line, len, "\"hello\"", 7) ? f->hello : f->answer;
		if (answer)
			send(fd, answer, strlen(answer), MSG_NOSIGNAL);
		pthread_mutex_unlock(&f->lock);
		len = 0;
		if (!answer)
			break;
	}
	close(fd);
}

static void *fake_main(void *arg)
{
	struct fake *f = arg;
	int fd;

	while ((fd = accept(f->fd, NULL, NULL)) >= 0)
		serve_one(f, fd);
	return NULL;
}

static struct fake *fake_start(struct fixture *x, const char *kind, int pid, const char *target,
			       const char *answer)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct fake *f = &x->fake[x->count++];

	assert_true(x->count <= FAKES);
	*f = (struct fake){ .answer = answer, .lock = PTHREAD_MUTEX_INITIALIZER };
	assert_true(asprintf(&f->path, "%s/%s-%d.sock", x->dir, kind, pid) > 0);
	snprintf(f->hello, sizeof(f->hello),
		 "{\"ok\":true,\"kind\":\"%s\",\"pid\":%d,\"target\":\"%s\",\"spec\":\"memory:1M\","
		 "\"version\":\"1\"}\n",
		 kind, pid, target);
	assert_true(strlen(f->path) < sizeof(un.sun_path));
	memcpy(un.sun_path, f->path, strlen(f->path) + 1);
	f->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(f->fd, (struct sockaddr *)&un, sizeof(un)), 0);
	return f;
}

static void fake_listen(struct fake *f)
{
	assert_int_equal(listen(f->fd, 8), 0);
	if (!f->deaf)
		assert_int_equal(pthread_create(&f->thread, NULL, fake_main, f), 0);
}

static int set_up(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));

	snprintf(x->dir, sizeof(x->dir), "/tmp/remora-client-XXXXXX");
	snprintf(x->work, sizeof(x->work), "/tmp/remora-work-XXXXXX");
	if (!mkdtemp(x->dir) || !mkdtemp(x->work))
		return -1;
	setenv("REMORA_RUNTIME_DIR", x->dir, 1);
	*state = x;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *x = *state;

	for (size_t i = 0; i < x->count; i++) {
		struct fake *f = &x->fake[i];

		shutdown(f->fd, SHUT_RDWR);
		if (f->thread)
			pthread_join(f->thread, NULL);
		close(f->fd);
		unlink(f->path);
		free(f->path);
	}
	if (rmdir(x->dir) || rmdir(x->work))
		return -1;
	unsetenv("REMORA_RUNTIME_DIR");
	free(x->text);
	free(x);
	return 0;
}

static struct fake *fake(struct fixture *x, const char *kind, int pid, const char *target,
			 const char *answer)
{
	struct fake *f = fake_start(x, kind, pid, target, answer);

	fake_listen(f);
	return f;
}

/* ---- finding ---- */

static void finds(const char *target, int pid)
{
	struct control_peer peer;
	struct err e = { 0 };

	if (control_find(&peer, target, &e))
		fail_msg("%s: %s", target ? target : "(none)", e.text);
	assert_int_equal(peer.pid, pid);
	assert_string_equal(peer.spec, "memory:1M");
	control_peer_done(&peer);
}

static void a_target_is_a_path_an_address_a_process_or_a_socket(void **state)
{
	struct fixture *x = *state;
	char mount[96], listen[96], text[160], here[512];

	snprintf(mount, sizeof(mount), "%s/f", x->work);
	snprintf(listen, sizeof(listen), "unix:%s/s.sock", x->work);
	fake(x, "mount", 4711, mount, NULL);
	fake(x, "serve", 4712, listen, NULL);
	finds(mount, 4711);
	finds("4711", 4711);
	finds(x->fake[0].path, 4711);
	finds(listen, 4712);
	finds(listen + 5, 4712); /* without "unix:" */
	snprintf(text, sizeof(text), "%s/../%s/f", x->work, strrchr(x->work, '/') + 1);
	finds(text, 4711);
	assert_non_null(getcwd(here, sizeof(here)));
	assert_int_equal(chdir(x->work), 0);
	finds("f", 4711);
	finds("./f", 4711);
	finds("unix:s.sock", 4712);
	assert_int_equal(chdir(here), 0);
}

static void a_socket_elsewhere_is_found_by_its_path(void **state)
{
	struct fixture *x = *state;

	fake(x, "mount", 4711, "/f", NULL);
	setenv("REMORA_RUNTIME_DIR", x->work, 1);
	finds(x->fake[0].path, 4711);
}

static void no_target_is_the_only_one_there_is(void **state)
{
	struct fixture *x = *state;
	struct control_peer peer;
	struct err e = { 0 };

	assert_int_equal(control_find(&peer, NULL, &e), -ENOENT);
	fake(x, "mount", 4711, "/f", NULL);
	finds(NULL, 4711);
	fake(x, "mount", 4712, "/g", NULL);
	assert_int_equal(control_find(&peer, NULL, &e), -EINVAL);
	assert_non_null(strstr(e.text, "4711"));
	assert_non_null(strstr(e.text, "4712"));
}

static void an_unknown_target_is_told_what_there_is(void **state)
{
	struct fixture *x = *state;
	struct control_peer peer;
	struct err e = { 0 };

	assert_int_equal(control_find(&peer, "/nowhere/at/all", &e), -ENOENT);
	assert_non_null(strstr(e.text, "/nowhere/at/all"));
	fake(x, "mount", 4711, "/srv/f", NULL);
	fake(x, "serve", 4712, "127.0.0.1:7000", NULL);
	assert_int_equal(control_find(&peer, "/nowhere/at/all", &e), -ENOENT);
	assert_non_null(strstr(e.text, "/srv/f, 127.0.0.1:7000"));
}

static void two_under_one_name_are_told_apart_by_process(void **state)
{
	struct fixture *x = *state;
	struct control_peer peer;
	struct err e = { 0 };

	fake(x, "mount", 4711, "/srv/f", NULL);
	fake(x, "mount", 4712, "/srv/f", NULL);
	assert_int_equal(control_find(&peer, "/srv/f", &e), -EINVAL);
	assert_non_null(strstr(e.text, "4711 or 4712"));
	finds("4712", 4712);
}

static void sockets_of_the_dead_are_removed_and_those_of_the_living_stay(void **state)
{
	struct fixture *x = *state;
	struct fake *dead = fake_start(x, "mount", DEAD_PID, "/dead", NULL);
	struct fake *starting = fake_start(x, "mount", (int)getpid(), "/starting", NULL);
	struct fake *other = fake_start(x, "serve", 4712, "/alive", NULL);
	struct control_peer *peer;
	struct err e;
	size_t count;

	fake_listen(other); /* the others are bound and do not listen */
	assert_int_equal(control_find_all(&peer, &count, &e), 0);
	assert_int_equal(count, 1);
	assert_int_equal(peer[0].pid, 4712);
	assert_string_equal(peer[0].kind, "serve");
	control_peers_free(peer, count);
	assert_int_equal(access(dead->path, F_OK), -1);
	assert_int_equal(access(starting->path, F_OK), 0);
}

static void one_that_does_not_answer_is_left_out(void **state)
{
	struct fixture *x = *state;
	struct fake *deaf = fake_start(x, "mount", 4711, "/deaf", NULL);
	struct control_peer *peer;
	struct err e;
	size_t count;

	deaf->deaf = true;
	fake_listen(deaf);
	fake(x, "mount", 4712, "/f", NULL);
	assert_int_equal(control_find_all(&peer, &count, &e), 0);
	assert_int_equal(count, 1);
	assert_int_equal(peer[0].pid, 4712);
	control_peers_free(peer, count);
}

static void what_says_nonsense_is_left_out(void **state)
{
	static const char *const bad[] = {
		"{}\n",
		"nonsense\n",
		"[1]\n",
		"{\"ok\":true}\n",
		"{\"ok\":true,\"kind\":\"a kind that is too long\",\"pid\":1,\"target\":\"x\",\"spec\":\"y\"}\n",
	};
	struct fixture *x = *state;
	struct fake *f = fake_start(x, "mount", 4711, "/f", NULL);
	struct control_peer *peer;
	struct err e;
	size_t count;

	snprintf(f->hello, sizeof(f->hello), "%s", bad[0]);
	fake_listen(f);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		pthread_mutex_lock(&f->lock);
		snprintf(f->hello, sizeof(f->hello), "%s", bad[i]);
		pthread_mutex_unlock(&f->lock);
		assert_int_equal(control_find_all(&peer, &count, &e), 0);
		assert_int_equal(count, 0);
		control_peers_free(peer, count);
	}
}

static void a_directory_of_others_is_refused(void **state)
{
	struct fixture *x = *state;
	struct control_peer *peer;
	struct err e;
	size_t count;

	assert_int_equal(chmod(x->dir, 0777), 0);
	assert_int_equal(control_find_all(&peer, &count, &e), -EPERM);
	setenv("REMORA_RUNTIME_DIR", "/nowhere/at/all", 1);
	assert_int_equal(control_find_all(&peer, &count, &e), 0); /* nothing was ever started */
	assert_int_equal(count, 0);
	control_peers_free(peer, count);
}

/* ---- asking ---- */

struct seen {
	unsigned count;
	json_int_t last;
};

static void see(void *arg, json_t *what)
{
	struct seen *seen = arg;

	seen->count++;
	seen->last = json_integer_value(json_object_get(what, "done"));
}

static void progress_comes_before_the_answer(void **state)
{
	struct fixture *x = *state;
	struct control_peer peer;
	struct seen seen = { 0 };
	struct err e = { 0 };
	json_t *answer;

	fake(x, "mount", 4711, "/f",
	     "{\"progress\":{\"done\":1}}\n{\"progress\":{\"done\":7}}\n{\"ok\":true,\"n\":5}\n");
	assert_int_equal(control_find(&peer, "4711", &e), 0);
	for (unsigned i = 1; i <= 3; i++) {
		assert_int_equal(control_ask(&peer, "flush", json_pack("{s:i}", "x", 1), see,
					     &seen, &answer, &e),
				 0);
		assert_int_equal(json_integer_value(json_object_get(answer, "n")), 5);
		json_decref(answer);
		assert_int_equal(seen.count, 2 * i);
		assert_int_equal(seen.last, 7);
	}
	assert_int_equal(control_ask(&peer, "flush", NULL, NULL, NULL, NULL, &e), 0);
	control_peer_done(&peer);
}

static void a_refusal_has_its_code_its_text_and_what_stands_beside(void **state)
{
	struct fixture *x = *state;
	struct control_peer peer;
	struct err e = { 0 };
	json_t *answer;

	fake(x, "mount", 4711, "/srv/f",
	     "{\"ok\":false,\"error\":\"the far side is away\",\"code\":\"EHOSTUNREACH\","
	     "\"unsafe_bytes\":9}\n");
	assert_int_equal(control_find(&peer, "4711", &e), 0);
	assert_int_equal(control_ask(&peer, "flush", NULL, NULL, NULL, &answer, &e), -EHOSTUNREACH);
	assert_string_equal(e.text, "/srv/f: the far side is away");
	assert_int_equal(json_integer_value(json_object_get(answer, "unsafe_bytes")), 9);
	json_decref(answer);
	control_peer_done(&peer);
}

static void an_end_without_an_answer_is_an_error(void **state)
{
	struct fixture *x = *state;
	struct control_peer peer;
	struct err e = { 0 };
	json_t *answer = NULL;

	fake(x, "mount", 4711, "/srv/f", NULL);
	assert_int_equal(control_find(&peer, "4711", &e), 0);
	assert_int_equal(control_ask(&peer, "flush", NULL, NULL, NULL, &answer, &e), -ECONNRESET);
	assert_null(answer);
	assert_non_null(strstr(e.text, "/srv/f"));
	control_peer_done(&peer);
}

static void waiting_ends_when_woken_and_goes_on(void **state)
{
	struct fixture *x = *state;
	struct fake *f = fake(x, "mount", 4711, "/f", "{\"progress\":{\"done\":3}}\n");
	struct control_peer peer;
	struct seen seen = { 0 };
	struct err e = { 0 };

	assert_int_equal(control_find(&peer, "4711", &e), 0);
	peer.wake_fd = eventfd(1, EFD_CLOEXEC);
	assert_true(peer.wake_fd >= 0);
	assert_int_equal(control_ask(&peer, "record", NULL, see, &seen, NULL, &e), -EINTR);
	close(peer.wake_fd);
	peer.wake_fd = -1;
	peer.silence_ns = 200 * NS_PER_MS;
	assert_int_equal(control_wait(&peer, see, &seen, NULL, &e), -ETIMEDOUT);
	assert_int_equal(seen.count, 1);
	assert_int_equal(seen.last, 3);
	control_peer_done(&peer);
	(void)f;
}

static void a_long_answer_comes_whole(void **state)
{
	struct fixture *x = *state;
	size_t len = 300 * KIB;
	char *text = x->text = malloc(len + 64);
	struct control_peer peer;
	struct err e = { 0 };
	json_t *answer;
	int n = snprintf(text, 64, "{\"ok\":true,\"map\":\"");

	memset(text + n, '#', len);
	snprintf(text + (size_t)n + len, 8, "\"}\n");
	fake(x, "mount", 4711, "/f", text);
	assert_int_equal(control_find(&peer, "4711", &e), 0);
	assert_int_equal(control_ask(&peer, "status", NULL, NULL, NULL, &answer, &e), 0);
	assert_int_equal(json_string_length(json_object_get(answer, "map")), len);
	json_decref(answer);
	control_peer_done(&peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		T(a_target_is_a_path_an_address_a_process_or_a_socket),
		T(a_socket_elsewhere_is_found_by_its_path),
		T(no_target_is_the_only_one_there_is),
		T(an_unknown_target_is_told_what_there_is),
		T(two_under_one_name_are_told_apart_by_process),
		T(sockets_of_the_dead_are_removed_and_those_of_the_living_stay),
		T(one_that_does_not_answer_is_left_out),
		T(what_says_nonsense_is_left_out),
		T(a_directory_of_others_is_refused),
		T(progress_comes_before_the_answer),
		T(a_refusal_has_its_code_its_text_and_what_stands_beside),
		T(an_end_without_an_answer_is_an_error),
		T(waiting_ends_when_woken_and_goes_on),
		T(a_long_answer_comes_whole),
#undef T
	};

	return cmocka_run_group_tests_name("control_client", tests, NULL, NULL);
}
