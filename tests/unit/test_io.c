/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on sockets and files: the same tests for epoll, io_uring and the simulation. And
 * addresses as text. */
#include "io_fix.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>

#include "io/sock.h"

/* ---- every engine ---- */

static void what_is_sent_is_received(void **state)
{
	struct fix *f = *state;
	char in[16] = "";
	struct wait r;
	int fd[2];

	pair_open(f, fd);
	op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	send_text(f, fd[1], "hello");
	assert_int_equal(finish(f, &r), 5);
	assert_string_equal(in, "hello");
	send_text(f, fd[0], "you");
	op_recv(f->loop, wait_op(&r), fd[1], in, sizeof(in));
	assert_false(r.done);
	assert_int_equal(finish(f, &r), 3);
	pair_close(f, fd);
}

static void connect_accept_echo(struct fix *f, const struct sock_addr *at)
{
	struct sock_addr addr = *at;
	struct wait c, a, r;
	int fd_listen, fd;
	char in[8];

	fd_listen = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 5);
	assert_true(fd_listen >= 0);
	assert_int_equal(loop_sockname(f->loop, fd_listen, &addr.ss, &addr.len), 0);
	op_accept(f->loop, wait_op(&a), fd_listen);
	fd = loop_socket(f->loop, addr.domain);
	assert_true(fd >= 0);
	op_connect(f->loop, wait_op(&c), fd, (struct sockaddr *)&addr.ss, addr.len);
	assert_false(c.done);
	assert_int_equal(finish(f, &c), 0);
	assert_true(finish(f, &a) >= 0);
	send_text(f, fd, "there");
	op_recv_all(f->loop, wait_op(&r), a.res, in, 5);
	assert_int_equal(finish(f, &r), 5);
	send_text(f, a.res, "back");
	op_recv_all(f->loop, wait_op(&r), fd, in, 4);
	assert_int_equal(finish(f, &r), 4);
	loop_close_fd(f->loop, a.res);
	op_recv(f->loop, wait_op(&r), fd, in, 4);
	assert_int_equal(finish(f, &r), 0);
	loop_close_fd(f->loop, fd);
	loop_close_fd(f->loop, fd_listen);
	fd = loop_socket(f->loop, addr.domain);
	op_connect(f->loop, wait_op(&c), fd, (struct sockaddr *)&addr.ss, addr.len);
	assert_int_equal(finish(f, &c), -ECONNREFUSED);
	loop_close_fd(f->loop, fd);
}

static void unix_sockets_connect_and_echo(void **state)
{
	struct fix *f = *state;
	struct sock_addr addr;
	char text[128];

	snprintf(text, sizeof(text), "unix:%s/s", f->dir);
	assert_int_equal(sock_parse(text, &addr, NULL), 0);
	connect_accept_echo(f, &addr);
	unlink(text + 5);
}

static void tcp_sockets_connect_and_echo(void **state)
{
	struct sock_addr addr;

	assert_int_equal(sock_parse("127.0.0.1:0", &addr, NULL), 0);
	connect_accept_echo(*state, &addr);
}

static void a_cancelled_op_completes_once_with_ecanceled(void **state)
{
	struct fix *f = *state;
	struct wait a, b, c;
	char in[3] = "";
	int fd[2];

	pair_open(f, fd);
	op_recv(f->loop, wait_op(&a), fd[0], in, 1);
	op_recv(f->loop, wait_op(&b), fd[0], in, 1);
	op_recv(f->loop, wait_op(&c), fd[0], in, 1);
	op_cancel(f->loop, &b.op); /* waits behind another */
	op_cancel(f->loop, &b.op);
	assert_false(b.done);
	assert_int_equal(finish(f, &b), -ECANCELED);
	op_cancel(f->loop, &a.op);
	assert_int_equal(finish(f, &a), -ECANCELED);
	send_text(f, fd[1], "x");
	assert_int_equal(finish(f, &c), 1);
	assert_int_equal(in[0], 'x');
	op_cancel(f->loop, &c.op); /* ended: nothing */
	pair_close(f, fd);
}

static void a_cancel_behind_the_result_leaves_the_result(void **state)
{
	struct fix *f = *state;
	struct wait s;
	int fd[2];

	pair_open(f, fd);
	op_send_all(f->loop, wait_op(&s), fd[0], "x", 1); /* succeeds at once in all engines */
	op_cancel(f->loop, &s.op);
	assert_int_equal(finish(f, &s), 1);
	pair_close(f, fd);
}

static void an_op_cancelled_while_half_done_is_cancelled(void **state)
{
	struct fix *f = *state;
	struct wait r;
	char in[10];
	int fd[2];

	pair_open(f, fd);
	op_recv_all(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	send_text(f, fd[1], "half");
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop) + NS_PER_MS), 0);
	op_cancel(f->loop, &r.op);
	assert_int_equal(finish(f, &r), -ECANCELED);
	pair_close(f, fd);
}

static void accepts_can_be_cancelled(void **state)
{
	struct fix *f = *state;
	struct sock_addr addr;
	struct wait a, b;
	int fd;

	assert_int_equal(sock_parse("127.0.0.1:0", &addr, NULL), 0);
	fd = loop_listen(f->loop, (struct sockaddr *)&addr.ss, addr.len, 5);
	op_accept(f->loop, wait_op(&a), fd);
	op_accept(f->loop, wait_op(&b), fd);
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
	op_cancel(f->loop, &a.op);
	op_cancel(f->loop, &b.op);
	assert_int_equal(finish(f, &a), -ECANCELED);
	assert_int_equal(finish(f, &b), -ECANCELED);
	loop_close_fd(f->loop, fd);
}

#define MANY 100u

static void many_ops_on_one_descriptor_end_in_order(void **state)
{
	struct fix *f = *state;
	static struct wait r[MANY], s[MANY];
	unsigned char in[MANY], out[MANY];
	unsigned received = 0, sent = 0;
	int fd[2];

	pair_open(f, fd);
	for (unsigned i = 0; i < MANY; i++) {
		wait_op(&r[i])->kind = OP_NONE;
		r[i].counter = &received;
		op_recv(f->loop, &r[i].op, fd[0], &in[i], 1);
	}
	for (unsigned i = 0; i < MANY; i++) {
		out[i] = (unsigned char)i;
		wait_op(&s[i]);
		s[i].counter = &sent;
		op_send_all(f->loop, &s[i].op, fd[1], &out[i], 1);
	}
	finish(f, &r[MANY - 1]);
	finish(f, &s[MANY - 1]);
	for (unsigned i = 0; i < MANY; i++) {
		assert_int_equal(r[i].order, i);
		assert_int_equal(s[i].order, i);
		assert_int_equal(in[i], i);
	}
	pair_close(f, fd);
}

#define BIG (3u << 20)

static void big_sends_on_one_descriptor_do_not_mix(void **state)
{
	struct fix *f = *state;
	unsigned char *out = malloc(3 * (size_t)BIG), *in = malloc(3 * (size_t)BIG);
	struct iovec iov[3];
	struct wait s[3], r;
	int fd[2];

	pair_open(f, fd);
	for (unsigned i = 0; i < 3; i++) {
		memset(out + (size_t)i * BIG, (int)i + 1, BIG);
		iov[i] = (struct iovec){ out + i * (size_t)(BIG / 3), BIG / 3 };
	}
	op_sendv_all(f->loop, wait_op(&s[0]), fd[1], iov, 3);
	op_send_all(f->loop, wait_op(&s[1]), fd[1], out + BIG, BIG);
	op_send_all(f->loop, wait_op(&s[2]), fd[1], out + 2 * (size_t)BIG, BIG);
	op_recv_all(f->loop, wait_op(&r), fd[0], in, 3 * BIG);
	assert_int_equal(finish(f, &r), 3 * BIG);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(finish(f, &s[i]), BIG);
	assert_memory_equal(in, out, 3 * BIG);
	free(out);
	free(in);
	pair_close(f, fd);
}

static void recvv_fills_the_parts_in_order(void **state)
{
	struct fix *f = *state;
	char a[3] = "", b[8] = "";
	struct iovec iov[2] = { { a, 2 }, { b, 7 } };
	struct wait r;
	int fd[2];

	pair_open(f, fd);
	send_text(f, fd[1], "abcd");
	op_recvv(f->loop, wait_op(&r), fd[0], iov, 2);
	assert_int_equal(finish(f, &r), 4);
	assert_string_equal(a, "ab");
	assert_string_equal(b, "cd");
	pair_close(f, fd);
}

static void a_stream_that_ends_inside_is_a_reset_and_before_it_an_end(void **state)
{
	struct fix *f = *state;
	struct wait r, q;
	char in[8];
	int fd[2];

	pair_open(f, fd);
	op_recv_all(f->loop, wait_op(&r), fd[0], in, 8);
	op_recv_all(f->loop, wait_op(&q), fd[0], in, 8);
	send_text(f, fd[1], "1234");
	loop_close_fd(f->loop, fd[1]);
	assert_int_equal(finish(f, &r), -ECONNRESET);
	assert_int_equal(finish(f, &q), 0);
	loop_close_fd(f->loop, fd[0]);
}

static void a_send_to_nobody_fails_without_a_signal(void **state)
{
	struct fix *f = *state;
	struct wait s;
	int fd[2];

	pair_open(f, fd);
	loop_close_fd(f->loop, fd[1]);
	for (int i = 0; i < 3; i++) { /* a simulated peer hears of it one delay later */
		op_send_all(f->loop, wait_op(&s), fd[0], "x", 1);
		if (finish(f, &s) < 0)
			break;
		while (f->sim && sim_step(f->sim) == 0)
			;
	}
	assert_true(s.res == -EPIPE || s.res == -ECONNRESET);
	loop_close_fd(f->loop, fd[0]);
}

static void an_end_that_came_with_the_data_is_seen_after_it(void **state)
{
	struct fix *f = *state;
	struct wait r;
	char in[8];
	int fd[2];

	pair_open(f, fd);
	op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
	send_text(f, fd[1], "abc");
	loop_close_fd(f->loop, fd[1]);
	assert_int_equal(finish(f, &r), 3); /* short: an engine may think that nothing follows */
	op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	assert_int_equal(finish(f, &r), 0);
	op_recv(f->loop, wait_op(&r), fd[0], in, sizeof(in));
	assert_int_equal(finish(f, &r), 0);
	loop_close_fd(f->loop, fd[0]);
}

static void nothing_to_move_completes_with_zero(void **state)
{
	struct fix *f = *state;
	struct wait s, r;
	int fd[2];

	pair_open(f, fd);
	op_send_all(f->loop, wait_op(&s), fd[0], NULL, 0);
	op_recv_all(f->loop, wait_op(&r), fd[0], NULL, 0);
	assert_int_equal(finish(f, &s), 0);
	assert_int_equal(finish(f, &r), 0);
	pair_close(f, fd);
}

static void a_bad_descriptor_is_an_error(void **state)
{
	struct fix *f = *state;
	struct wait w;
	char in[1];

	op_recv(f->loop, wait_op(&w), -1, in, 1);
	assert_int_equal(finish(f, &w), -EBADF);
	op_read(f->loop, wait_op(&w), -1, in, 1, 0);
	assert_int_equal(finish(f, &w), -EBADF);
	op_accept(f->loop, wait_op(&w), -1);
	assert_int_equal(finish(f, &w), -EBADF);
}

struct chain {
	struct op op;
	struct loop *loop;
	int fd;
	char byte;
	unsigned left;
	bool end, *ended;
};

static void chain_done(struct op *op, int res)
{
	struct chain *c = CONTAINER_OF(op, struct chain, op);

	assert_int_equal(res, 1);
	if (--c->left)
		op_recv(c->loop, op, c->fd, &c->byte, 1);
	else
		c->end = true;
}

static void free_done(struct op *op, int res)
{
	struct chain *c = CONTAINER_OF(op, struct chain, op);

	assert_int_equal(res, 1);
	*c->ended = true;
	free(c);
}

static void an_op_may_be_reused_or_freed_when_it_is_done(void **state)
{
	struct fix *f = *state;
	struct chain c = { .op.done = chain_done, .loop = f->loop, .left = 5 };
	struct chain *heap = calloc(1, sizeof(*heap));
	bool ended = false;
	int fd[2];

	pair_open(f, fd);
	c.fd = fd[0];
	op_recv(f->loop, &c.op, fd[0], &c.byte, 1);
	send_text(f, fd[1], "12345");
	until(f, &c.end);
	heap->op.done = free_done;
	heap->ended = &ended;
	op_recv(f->loop, &heap->op, fd[0], &heap->byte, 1);
	send_text(f, fd[1], "6");
	until(f, &ended);
	pair_close(f, fd);
}

static void a_cancel_does_not_hit_the_next_use_of_an_op(void **state)
{
	struct fix *f = *state;
	struct wait r;
	char in[1];
	int fd[2];

	pair_open(f, fd);
	for (unsigned i = 0; i < 50; i++) {
		op_recv(f->loop, wait_op(&r), fd[0], in, 1);
		assert_int_equal(loop_step(f->loop, loop_now_fresh(f->loop)), 0);
		send_text(f, fd[1], "x");
		op_cancel(f->loop, &r.op); /* may come too late */
		if (finish(f, &r) == 1)
			continue;
		assert_int_equal(r.res, -ECANCELED);
		op_recv(f->loop, wait_op(&r), fd[0], in, 1);
		assert_int_equal(finish(f, &r), 1);
	}
	pair_close(f, fd);
}

static void files_are_read_written_synced_and_punched(void **state)
{
	struct fix *f = *state;
	char path[128], in[100];
	struct wait w;
	uint64_t size;
	int fd;

	snprintf(path, sizeof(path), "%s/file", f->dir);
	assert_int_equal(loop_open_file(f->loop, path, O_RDWR, 0), -ENOENT);
	fd = loop_open_file(f->loop, path, O_RDWR | O_CREAT, 0600);
	assert_true(fd >= 0);
	op_write(f->loop, wait_op(&w), fd, "0123456789", 10, 5000);
	assert_false(w.done);
	assert_int_equal(finish(f, &w), 10);
	op_sync(f->loop, wait_op(&w), fd);
	assert_int_equal(finish(f, &w), 0);
	assert_int_equal(loop_file_size(f->loop, fd, &size), 0);
	assert_int_equal(size, 5010);
	op_read(f->loop, wait_op(&w), fd, in, sizeof(in), 5003);
	assert_int_equal(finish(f, &w), 7);
	assert_memory_equal(in, "3456789", 7);
	op_allocate(f->loop, wait_op(&w), fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5001, 2);
	assert_int_equal(finish(f, &w), 0);
	op_read(f->loop, wait_op(&w), fd, in, 4, 5000);
	assert_int_equal(finish(f, &w), 4);
	assert_memory_equal(in, "0\0\0003", 4);
	op_read(f->loop, wait_op(&w), fd, in, 4, 6000);
	assert_int_equal(finish(f, &w), 0);
	loop_close_fd(f->loop, fd);
	fd = loop_open_file(f->loop, path, O_RDONLY, 0);
	if (!f->sim)
		unlink(path);
	op_write(f->loop, wait_op(&w), fd, "x", 1, 0);
	assert_int_equal(finish(f, &w), -EBADF);
	loop_close_fd(f->loop, fd);
}

#define CROWD 5000u

static void more_ops_than_the_ring_has_room_for_all_complete(void **state)
{
	struct fix *f = *state;
	struct wait *w = calloc(CROWD, sizeof(*w));
	char path[128], in[CROWD];
	int fd;

	snprintf(path, sizeof(path), "%s/file", f->dir);
	fd = loop_open_file(f->loop, path, O_RDWR | O_CREAT, 0600);
	op_write(f->loop, wait_op(&w[0]), fd, "y", 1, 0);
	assert_int_equal(finish(f, &w[0]), 1);
	for (unsigned i = 0; i < CROWD; i++)
		op_read(f->loop, wait_op(&w[i]), fd, &in[i], 1, 0);
	for (unsigned i = 0; i < CROWD; i++) {
		assert_int_equal(finish(f, &w[i]), 1);
		assert_int_equal(in[i], 'y');
	}
	loop_close_fd(f->loop, fd);
	if (!f->sim)
		unlink(path);
	free(w);
}

/* ---- without an engine ---- */

static void addresses_are_parsed_and_printed_back(void **state)
{
	static const char *const good[] = { "unix:/run/x.sock", "unix:@name", "127.0.0.1:10809",
		"[::1]:1", "10.0.0.1:0" };
	static const bool local[] = { true, true, true, true, false };
	char buf[SOCK_TEXT_MAX];
	struct sock_addr addr;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(sock_parse(good[i], &addr, NULL), 0);
		assert_string_equal(sock_format(&addr, buf), good[i]);
		assert_int_equal(sock_is_local(&addr), local[i]);
	}
}

static void a_bad_address_says_what_is_wrong(void **state)
{
	static const struct {
		const char *text, *part;
	} bad[] = {
		{ "unix:", "path" },	  { "host", "HOST:PORT" },   { ":80", "HOST:PORT" },	{ "host:", "number" },
		{ "1.2.3.4:x", "number" }, { "1.2.3.4:65536", "65535" }, { "::1:80", "brackets" }, { "[::1:80", "]" },
		{ "[zz]:80", "zz" },	  { "1.2.3.4:-1", "number" },
	};
	char path[200] = "unix:";
	struct sock_addr addr;
	struct err e;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		e = (struct err){ 0 };
		assert_true(sock_parse(bad[i].text, &addr, &e) < 0);
		assert_non_null(strstr(e.text, bad[i].part));
	}
	memset(path + 5, 'p', 150);
	assert_int_equal(sock_parse(path, &addr, &e), -ENAMETOOLONG);
}

static const struct engine_test per_engine[] = {
	SHARED(what_is_sent_is_received),
	SHARED(unix_sockets_connect_and_echo),
	SHARED(tcp_sockets_connect_and_echo),
	SHARED(a_cancelled_op_completes_once_with_ecanceled),
	SHARED(a_cancel_behind_the_result_leaves_the_result),
	SHARED(an_op_cancelled_while_half_done_is_cancelled),
	SHARED(accepts_can_be_cancelled),
	SHARED(many_ops_on_one_descriptor_end_in_order),
	SHARED(big_sends_on_one_descriptor_do_not_mix),
	SHARED(recvv_fills_the_parts_in_order),
	SHARED(a_stream_that_ends_inside_is_a_reset_and_before_it_an_end),
	SHARED(a_send_to_nobody_fails_without_a_signal),
	SHARED(an_end_that_came_with_the_data_is_seen_after_it),
	SHARED(nothing_to_move_completes_with_zero),
	SHARED(a_bad_descriptor_is_an_error),
	SHARED(an_op_may_be_reused_or_freed_when_it_is_done),
	SHARED(a_cancel_does_not_hit_the_next_use_of_an_op),
	SHARED(files_are_read_written_synced_and_punched),
	SHARED(more_ops_than_the_ring_has_room_for_all_complete),
};

int main(void)
{
	static const struct CMUnitTest plain[] = {
		cmocka_unit_test(addresses_are_parsed_and_printed_back),
		cmocka_unit_test(a_bad_address_says_what_is_wrong),
	};

	return engines_run("io", plain, ARRAY_LEN(plain), per_engine, ARRAY_LEN(per_engine));
}
