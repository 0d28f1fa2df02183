/* SPDX-License-Identifier: Apache-2.0 */
/* The trace stage: every completed request is a line, or is counted as lost; nothing is delayed. */
#define TEST_FAKE_KINDS { "trace", false, "trace:file=PATH", stage_trace_open },
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"

static uint8_t buf[4096];

struct dir {
	char path[64], file[96], spec[160];
};

static int dir_make(void **state)
{
	struct dir *d = calloc(1, sizeof(*d));

	snprintf(d->path, sizeof(d->path), "/tmp/remora-test-XXXXXX");
	if (!mkdtemp(d->path))
		return -1;
	snprintf(d->file, sizeof(d->file), "%s/t", d->path);
	snprintf(d->spec, sizeof(d->spec), "trace:file=%s|fake:64K", d->file);
	*state = d;
	return 0;
}

static int dir_remove(void **state)
{
	struct dir *d = *state;

	unlink(d->file);
	rmdir(d->path);
	free(d);
	return 0;
}

/* The whole file, ended by a zero. */
static char *file_text(const char *path)
{
	FILE *f = fopen(path, "re");
	struct stat st;
	char *text;

	assert_non_null(f);
	assert_int_equal(0, fstat(fileno(f), &st));
	text = calloc(1, (size_t)st.st_size + 1);
	assert_int_equal(st.st_size, fread(text, 1, (size_t)st.st_size, f));
	fclose(f);
	return text;
}

static void file_put(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static int refuse_writes(struct fake *f, const struct req *req)
{
	(void)f;
	return req->op == REQ_WRITE ? -ENOSPC : 0;
}

static void test_a_line_says_what_was_asked_when_and_how_long_it_took(void **state)
{
	struct dir *d = *state;
	struct world w;
	struct one one;
	char *text;

	world_open(&w, d->spec, 1);
	w.fake[0]->refuse = refuse_writes;
	w.now_ns += 1500 * NS_PER_US;
	one_submit(&w, &one, REQ_READ, 4096, 512, buf, REQ_URGENT);
	w.now_ns += 250 * NS_PER_US;
	fake_end(w.fake[0], 0);
	one_submit(&w, &one, REQ_WRITE, 0, 4096, buf, REQ_FUA | REQ_BACKGROUND);
	fake_end(w.fake[0], 0);
	one_submit(&w, &one, REQ_FLUSH, 0, 0, NULL, 0);
	fake_end(w.fake[0], 0);
	world_done(&w);
	text = file_text(d->file);
	assert_string_equal("# remora-trace 1\n# size=65536 align=1 chunk=65536\n"
			    "# time_us op offset length flags latency_us error\n"
			    "1500 read 4096 512 u 250 0\n"
			    "1750 write 0 4096 fb 0 -28\n"
			    "1750 flush 0 0 - 0 0\n"
			    "# end lines=3 lost=0\n",
			    text);
	free(text);
}

/* The loop does not run, so that the file cannot keep up: the data path goes on, and nothing is
 * lost without a word. */
static void test_lines_beyond_the_buffers_are_counted_as_lost(void **state)
{
	struct dir *d = *state;
	struct world w;
	struct one one;
	unsigned long long lines = 0, lost = 0, found = 0;
	char *text, *end;

	world_open(&w, d->spec, 1);
	for (unsigned i = 0; i < 30000; i++) {
		one_submit(&w, &one, REQ_READ, i, 512, buf, 0);
		fake_end(w.fake[0], 0);
		assert_int_equal(1, one.completions);
	}
	world_done(&w);
	assert_non_null(strstr(w.logged, "lost"));
	text = file_text(d->file);
	end = strstr(text, "# end ");
	assert_non_null(end);
	assert_int_equal(2, sscanf(end, "# end lines=%llu lost=%llu\n", &lines, &lost));
	assert_int_equal(30000, lines + lost);
	assert_true(lost > 0 && lines > 10000);
	for (char *p = text; *p; p++)
		found += *p == '\n' && p[1] != '#' && p[1];
	assert_int_equal(lines, found);
	free(text);
}

static void test_a_file_that_cannot_be_written_does_not_disturb_requests(void **state)
{
	struct dir *d = *state;
	struct rlimit old, small;
	struct world w;
	struct one one;
	char status[128];

	sigaction(SIGXFSZ, &(struct sigaction){ .sa_handler = SIG_IGN }, NULL);
	getrlimit(RLIMIT_FSIZE, &old);
	small = old;
	small.rlim_cur = 1; /* the second byte is -EFBIG */
	setrlimit(RLIMIT_FSIZE, &small);
	world_open(&w, d->spec, 1);
	for (unsigned i = 0; i < 8000; i++) {
		one_submit(&w, &one, REQ_READ, i, 512, buf, 0);
		fake_end(w.fake[0], 0);
	}
	for (int i = 0; i < 100 && !strstr(w.logged, "writing failed"); i++)
		assert_int_equal(0, loop_step(w.loop, w.now_ns + 100 * NS_PER_MS));
	setrlimit(RLIMIT_FSIZE, &old);
	assert_non_null(strstr(w.logged, "writing failed"));
	one_submit(&w, &one, REQ_READ, 0, 512, buf, 0);
	fake_end(w.fake[0], 0);
	assert_int_equal(0, one.err);
	w.top->ops->status(w.top, status, sizeof(status));
	assert_string_equal("lines=0 lost=8001", status);
	world_done(&w);
}

static void test_a_file_that_is_no_trace_is_not_written_over(void **state)
{
	struct dir *d = *state;
	struct world w;
	struct err e;
	char *text;

	file_put(d->file, "my only copy of something\n");
	world_init(&w, 1);
	assert_int_equal(-EEXIST, world_open_err(&w, d->spec, &e));
	assert_non_null(strstr(e.text, "not a trace"));
	loop_close(w.loop);
	text = file_text(d->file);
	assert_string_equal("my only copy of something\n", text);
	free(text);
	file_put(d->file,
		 "# remora-trace 1\nan older one, and longer than the new one will be, so that a rest of it"
		 " would be seen: .....................................................................\n");
	world_open(&w, d->spec, 1);
	world_done(&w);
	text = file_text(d->file);
	assert_string_equal("# remora-trace 1\n# size=65536 align=1 chunk=65536\n"
			    "# time_us op offset length flags latency_us error\n# end lines=0 lost=0\n",
			    text);
	free(text);
}

static void test_a_file_that_cannot_be_opened_is_an_error_with_its_name(void **state)
{
	struct world w;
	struct err e;

	(void)state;
	world_init(&w, 1);
	assert_int_equal(-ENOENT, world_open_err(&w, "trace:file=/nonexistent/t|fake:64K", &e));
	assert_non_null(strstr(e.text, "/nonexistent/t"));
	loop_close(w.loop);
}

static void test_random_requests_match_a_model(void **state)
{
	struct dir *d = *state;

	for (uint64_t seed = 1; seed <= 5; seed++)
		model_run(d->spec, MODEL_APART, seed, 1000, 3000, 1);
	for (uint64_t seed = 1; seed <= 30; seed++)
		model_abort(d->spec, seed, 3000, 1);
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_DIR(test_a_line_says_what_was_asked_when_and_how_long_it_took),
		IN_DIR(test_lines_beyond_the_buffers_are_counted_as_lost),
		IN_DIR(test_a_file_that_cannot_be_written_does_not_disturb_requests),
		IN_DIR(test_a_file_that_is_no_trace_is_not_written_over),
		cmocka_unit_test(test_a_file_that_cannot_be_opened_is_an_error_with_its_name),
		IN_DIR(test_random_requests_match_a_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
