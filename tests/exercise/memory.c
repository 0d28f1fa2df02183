/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on memory: a resource opened with remora_open(), used by threads.
 *
 * Place: below run.c, beside file.c; instead of memory_run()'s threads the file has processes.
 *
 * Invariants: at a quiet moment (nobody writes), what was flushed is what the far file has.
 *
 * Locking: `quiet`: operations hold it for reading, the comparison with the far file for writing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <remora/remora.h>

#include "base/check.h"
#include "exercise.h"

static struct range noted(struct log_entry *entry, struct range r)
{
	entry->off = r.off;
	entry->len = r.len;
	return r;
}

static int64_t op_read(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));

	memcpy(w->buf, w->run->data + r.off, r.len);
	check_bytes(w, r.off, w->buf, r.len);
	return (int64_t)r.len;
}

static int64_t op_write(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));

	bytes_draw(w, w->buf, r.len);
	model_begin(w, r);
	memcpy(w->run->data + r.off, w->buf, r.len);
	model_end(w, r, w->buf);
	return (int64_t)r.len;
}

static int64_t op_add(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));

	model_begin(w, r);
	for (uint64_t at = r.off; at < r.off + r.len; at += PAGE / 2)
		if (++w->run->data[at] != ++w->run->model[at])
			fail(w, "the byte at %llu differs", (unsigned long long)at);
	model_end(w, r, NULL);
	return (int64_t)r.len;
}

/* A system call reads the memory, touched or not. */
static int64_t op_send(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	ssize_t n = pwrite(w->scratch, w->run->data + r.off, r.len, 0);

	if (n != (ssize_t)r.len || pread(w->scratch, w->buf, r.len, 0) != n)
		fail(w, "pwrite from the memory: %zd, %s", n, strerror(errno));
	check_bytes(w, r.off, w->buf, r.len);
	return n;
}

/* And writes it. */
static int64_t op_receive(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	ssize_t n;

	bytes_draw(w, w->buf, r.len);
	if (pwrite(w->scratch, w->buf, r.len, 0) != (ssize_t)r.len)
		fail(w, "pwrite: %s", strerror(errno));
	model_begin(w, r);
	n = pread(w->scratch, w->run->data + r.off, r.len, 0);
	model_end(w, r, w->buf);
	if (n != (ssize_t)r.len)
		fail(w, "pread into the memory: %zd, %s", n, strerror(errno));
	return n;
}

static int64_t called(struct worker *w, int rc, const char *call)
{
	if (rc)
		fail(w, "%s: %s", call, strerror(-rc));
	return 0;
}

static int64_t op_advise(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, true));
	enum remora_advice advice = (enum remora_advice)rng_below(&w->rng, 5);

	return called(w, remora_advise(w->run->remora, r.off, r.len, advice), "remora_advise");
}

static int64_t op_pull(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));
	int priority = (int)rng_below(&w->rng, 100);
	unsigned flags = rng_chance(&w->rng, 500000) ? REMORA_PULL_WAIT : 0;

	return called(w, remora_pull(w->run->remora, r.off, r.len, priority, flags), "remora_pull");
}

static int64_t op_invalidate(struct worker *w, struct log_entry *entry)
{
	struct range r = noted(entry, range_draw(w, false));

	return called(w, remora_invalidate(w->run->remora, r.off, r.len), "remora_invalidate");
}

static int64_t op_flush(struct worker *w, struct log_entry *entry)
{
	(void)entry;
	return called(w, remora_flush(w->run->remora), "remora_flush");
}

static bool far_compare(struct run *run)
{
	uint8_t *found = malloc(run->o.size);
	int fd = open(run->o.far, O_RDONLY | O_CLOEXEC);
	bool fine = found && fd >= 0;

	for (uint64_t at = 0; fine && at < run->o.size;) {
		ssize_t n = pread(fd, found + at, run->o.size - at, (off_t)at);

		fine = n > 0;
		at += fine ? (uint64_t)n : 0;
	}
	if (!fine)
		fprintf(stderr, "exercise: %s: %s\n", run->o.far, strerror(errno));
	fine = fine && same(run->model, found, 0, run->o.size, "the far file");
	if (fd >= 0)
		close(fd);
	free(found);
	return fine;
}

/* Runs without the lock that the others hold: see op_locked(). */
static int64_t op_compare(struct worker *w, struct log_entry *entry)
{
	bool fine = true;

	(void)entry;
	pthread_rwlock_wrlock(&w->run->quiet);
	called(w, remora_flush(w->run->remora), "remora_flush");
	if (w->run->o.far)
		fine = far_compare(w->run);
	pthread_rwlock_unlock(&w->run->quiet);
	if (!fine)
		fail(w, "the far file is not what was flushed");
	return 0;
}

#define LOCKED(name)                                                                               \
	static int64_t locked_##name(struct worker *w, struct log_entry *entry)                    \
	{                                                                                          \
		int64_t rc;                                                                        \
												   \
		pthread_rwlock_rdlock(&w->run->quiet);                                             \
		rc = op_##name(w, entry);                                                          \
		pthread_rwlock_unlock(&w->run->quiet);                                             \
		return rc;                                                                         \
	}
LOCKED(write)
LOCKED(add)
LOCKED(receive)

/* Readers do not need the lock: their own pages are written by nobody else. */
const struct op_kind memory_kinds[] = {
	{ "read", 20, op_read, false, false },
	{ "write", 20, locked_write, false, false },
	{ "add", 8, locked_add, false, false },
	{ "send", 8, op_send, false, false },
	{ "receive", 8, locked_receive, false, false },
	{ "advise", 4, op_advise, false, false },
	{ "pull", 4, op_pull, false, false },
	{ "invalidate", 4, op_invalidate, false, false },
	{ "flush", 1, op_flush, false, false },
	{ "compare", 1, op_compare, false, false },
};
const unsigned memory_kind_count = ARRAY_LEN(memory_kinds);

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	worker_run(w, memory_kinds, memory_kind_count);
	atomic_fetch_sub(&w->run->shared->left, 1);
	return NULL;
}

static int memory_open(struct run *run)
{
	struct remora_options options = {
		.budget = run->o.budget,
		.loop = run->o.loop,
		.pull = run->o.budget ? REMORA_PULL_DEMAND : REMORA_PULL_ALL,
		.push_interval_ms = 20,
	};
	struct remora_error e;

	if (remora_open(&run->remora, run->o.memory, &options, &e)) {
		fprintf(stderr, "exercise: %s\n", e.text);
		return -1;
	}
	run->data = remora_data(run->remora);
	if (remora_size(run->remora) != run->o.size) {
		fprintf(stderr, "exercise: %s has %llu bytes\n", run->o.memory,
			(unsigned long long)remora_size(run->remora));
		return -1;
	}
	return 0;
}

static int memory_close(struct run *run)
{
	bool fine = same(run->model, run->data, 0, run->o.size, "the memory at the end");
	int rc = remora_close(run->remora);

	if (rc)
		fprintf(stderr, "exercise: remora_close: %s\n", strerror(-rc));
	if (run->o.far)
		fine = far_compare(run) && fine;
	return fine && !rc ? 0 : -1;
}

int memory_run(struct run *run)
{
	pthread_t threads[WORKERS_MAX];
	struct worker *workers = calloc(WORKERS_MAX, sizeof(*workers));
	unsigned count = (unsigned)run->o.processes;

	if (!workers || memory_open(run)) {
		free(workers);
		return -1;
	}
	pthread_rwlock_init(&run->quiet, NULL);
	for (unsigned i = 0; i < count; i++) {
		FILE *scratch = tmpfile();

		worker_init(&workers[i], run, i);
		if (!scratch)
			fail(&workers[i], "no temporary file: %s", strerror(errno));
		workers[i].scratch = dup(fileno(scratch));
		fclose(scratch);
		if (pthread_create(&threads[i], NULL, worker_main, &workers[i]))
			fail(&workers[i], "no thread");
	}
	for (unsigned i = 0; i < count; i++) {
		pthread_join(threads[i], NULL);
		close(workers[i].scratch);
		worker_free(&workers[i]);
	}
	free(workers);
	pthread_rwlock_destroy(&run->quiet);
	return memory_close(run);
}
