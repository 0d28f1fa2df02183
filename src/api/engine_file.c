/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a handle without userfaultfd: a mapping of a file without a name that this process
 * serves itself.
 *
 * Place: program -> page fault -> the kernel's page cache -> /dev/fuse -> front/file.c in the
 * loop's thread -> region. What the program writes goes the same way when the kernel writes it
 * back, which engine_file_sync() makes it do.
 *
 * Invariants.
 *  1. Nothing here waits for the mapping in the loop's thread, which serves it.
 *  2. The connection is closed before the mapping is taken away: then what is still dirty has
 *     nobody to wait for. What was to be saved has been flushed by then.
 *  3. While it is mapped there is a guard (front/file_apart.c), so that the process can be killed.
 *
 * Locking: the loop's thread has the file; the mapping is fixed from engine_file_map() on.
 */
#include "api/engine_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"

struct engine_file {
	struct host *host;
	struct file *file;
	struct file_guard *guard;
	int fd; /* until it is mapped */
	uint64_t size;
	uint8_t *data;
	size_t len;
};

/* ---- opening ---- */

/* For as long as it takes to mount, a directory that nobody else may enter. */
static int private_dir(char *ret, size_t len)
{
	char own[32];
	const char *const dirs[] = { own, "/run", "/tmp" };

	snprintf(own, sizeof(own), "/run/user/%u", (unsigned)geteuid());
	for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
		snprintf(ret, len, "%s/remora-memory.XXXXXX", dirs[i]);
		if (mkdtemp(ret))
			return 0;
	}
	return -errno;
}

int engine_file_open(struct engine_file **ret, struct host *host, struct store *store,
		     struct err *e)
{
	struct engine_file *engine = calloc(1, sizeof(*engine));
	char dir[64], path[80];
	struct file_options o = {
		.store = store, .path = path, .source = "remora", .keep_cache = true,
		.read_only = host->options.read_only, .nameless = true,
		.memory_max = file_memory_of(host->options.budget),
	};
	int r;

	if (!engine)
		return err_sys(e, -ENOMEM, "opening memory");
	engine->host = host;
	engine->fd = -1;
	engine->size = store->info.size;
	r = private_dir(dir, sizeof(dir));
	if (r) {
		err_sys(e, r, "making a directory in /tmp");
	} else {
		snprintf(path, sizeof(path), "%s/memory", dir);
		r = file_open(&engine->file, host->loop, &o, e);
		rmdir(dir);
	}
	if (r) {
		free(engine);
		return r;
	}
	engine->fd = file_take_fd(engine->file);
	*ret = engine;
	return 0;
}

int engine_file_map(struct engine_file *engine, struct err *e)
{
	const struct remora_options *o = &engine->host->options;
	int prot = PROT_READ | (o->read_only ? 0 : PROT_WRITE);
	/* An empty resource has a page of zeros, too. */
	int flags = engine->size ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	int r = file_guard_open(&engine->guard);
	void *at;

	if (r)
		return err_sys(e, r, "starting the guard of a mapping");
	engine->len = align_up(MAX(engine->size, 1), PAGE_BYTES);
	at = mmap(o->address, engine->len, prot, flags | (o->address ? MAP_FIXED_NOREPLACE : 0),
		  engine->size ? engine->fd : -1, 0);
	if (at == MAP_FAILED)
		return err_sys(e, -errno, "mapping %llu bytes%s", (unsigned long long)engine->len,
			       o->address ? " at the address that was asked for" : "");
	engine->data = at;
	/* A child has no thread that would serve it. */
	if (madvise(at, engine->len, MADV_DONTFORK))
		return err_sys(e, -errno, "madvise(MADV_DONTFORK)");
	close(TAKE_FD(engine->fd));
	return 0;
}

/* ---- closing ---- */

void engine_file_close(struct engine_file *engine)
{
	file_close_wait(TAKE_PTR(engine->file));
}

void engine_file_free(struct engine_file *engine)
{
	if (!engine)
		return;
	CHECK(!engine->file);
	if (engine->fd >= 0)
		close(engine->fd);
	if (engine->data)
		munmap(engine->data, engine->len);
	file_guard_close(engine->guard);
	free(engine);
}

/* ---- use ---- */

void *engine_file_data(const struct engine_file *engine)
{
	return engine->data;
}

struct call {
	struct file_call file;
	struct engine_file *engine;
	void (*start)(struct file *file, struct file_call *call);
	struct host_wait wait;
};

static void call_done(struct file_call *file, int err)
{
	struct call *call = CONTAINER_OF(file, struct call, file);

	host_end(call->engine->host, &call->wait, err);
}

static void call_start(void *arg)
{
	struct call *call = arg;

	call->start(call->engine->file, &call->file);
}

static int call_run(struct engine_file *engine, struct range range,
		    void (*start)(struct file *file, struct file_call *call))
{
	struct call call = {
		.engine = engine, .start = start, .file = { .done = call_done, .range = range },
	};

	if (!engine->size) /* nothing is mapped of the file, and so it is gone */
		return 0;
	loop_call(engine->host->loop, call_start, &call);
	return host_wait(engine->host, &call.wait);
}

int engine_file_sync(struct engine_file *engine)
{
	return call_run(engine, range_of(0, 0), file_sync);
}

int engine_file_invalidate(struct engine_file *engine, struct range range)
{
	return call_run(engine, range, file_invalidate);
}

void engine_file_count(const struct engine_file *engine, struct file_counts *ret)
{
	file_count(engine->file, ret);
}
