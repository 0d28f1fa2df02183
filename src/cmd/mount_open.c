/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Putting a mount together, and taking it apart.
 *
 *   managed:  spec ─▶ far store ─▶ region (with a near store) ─▶ file ─▶ control socket
 *   direct:   spec ─▶ far store ───────────────────────────────▶ file ─▶ control socket
 *
 * Place: between mount.c, which has the options, and the layers below.
 *
 * Invariants: what mount_open() could not finish, mount_close() takes apart as well. From the
 * moment that the file is mounted this process never touches its path: it would wait for itself.
 * mount_close() saves nothing: whoever calls it has flushed, or gives up what is not safe.
 *
 * Locking: none; one loop.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/mount.h"
#include "region/near_disk.h"
#include "store/spec.h"

/* ---- options ---- */

static int pull_word(struct mount *m, const char *text, struct err *e)
{
	struct mount_first *first = &m->first[m->first_count];
	int r;

	if (!strcmp(text, "all") || !strcmp(text, "none")) {
		m->pull = *text == 'a' ? MOUNT_PULL_ALL : MOUNT_PULL_NONE;
		return 0;
	}
	if (strncmp(text, "first=", 6))
		return err_set(e, -EINVAL,
			       "--pull %s: it is all, none or first=RANGE, as in first=0-64M", text);
	r = range_parse(text + 6, &first->pull.range, e);
	if (r)
		return err_prefix(e, "--pull %s", text);
	m->first_count++;
	return 0;
}

static int direct_check(const struct mount *m, struct err *e)
{
	const struct {
		bool given;
		const char *name;
	} managed[] = {
		{ m->pull_text.count > 0, "pull" },
		{ m->budget > 0, "budget" },
		{ m->near_dir != NULL, "near" },
		{ m->push_interval_ns > 0, "push-interval" },
		{ m->on_loss != REGION_LOSS_WAIT, "on-loss" },
		{ m->deadline_ns != UINT64_MAX, "deadline" },
		{ m->profile_path != NULL, "profile" },
		{ m->chunk > 0, "chunk" },
	};

	for (size_t i = 0; i < ARRAY_LEN(managed); i++)
		if (managed[i].given)
			return err_set(e, -EINVAL,
				       "--%s is for what is kept here, and with --direct nothing "
				       "is: leave one of them out",
				       managed[i].name);
	return 0;
}

int mount_options(struct mount *m, struct err *e)
{
	int r = 0;

	for (size_t i = 0; !r && i < m->pull_text.count; i++)
		r = pull_word(m, m->pull_text.at[i], e);
	if (!r && m->direct)
		r = direct_check(m, e);
	if (!r && !m->deadline_ns)
		r = err_set(e, -EINVAL, "--deadline 0: nothing could ever be waited for");
	if (!r && m->chunk && (!is_pow2(m->chunk) || m->chunk < CHUNK_MIN || m->chunk > CHUNK_MAX))
		r = err_set(e, -EINVAL, "--chunk: a power of two from 4K to 16M");
	if (m->deadline_ns == UINT64_MAX)
		m->deadline_ns = 0; /* the region's default */
	return r;
}

/* ---- parts ---- */

/* What somebody will want first, for the far side's hello. */
static struct range first_guess(const struct mount *m)
{
	if (m->direct)
		return range_of(0, 0);
	if (m->first_count)
		return range_of(m->first[0].pull.range.off,
				MIN(m->first[0].pull.range.len, REQ_LEN_MAX));
	return range_of(0, m->pull == MOUNT_PULL_ALL ? CHUNK_DEFAULT : 0);
}

/* With one processor a second thread would only be in the way. */
static bool several_processors(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 1;
}

static void region_progress(void *arg, uint64_t local_bytes, uint64_t size)
{
	(void)local_bytes;
	(void)size;
	mount_sample(arg);
}

static int near_on_disk(struct mount *m, struct err *e)
{
	char holder[SPEC_LEN_MAX], size[SIZE_TEXT_MAX];
	const struct near_disk_options options = {
		.dir = m->near_dir,
		.size = m->far->info.size,
		.chunk = m->chunk ? (uint32_t)m->chunk : region_chunk_default(&m->far->info),
		.identity = m->far->info.identity,
		.spec = m->spec,
		.holder = holder,
		.budget_bytes = m->budget,
		.sync_interval_ns = m->push_interval_ns,
	};
	int r;

	snprintf(holder, sizeof(holder), "remora mount on %s", m->path);
	r = near_disk_open(&m->near, m->run.loop, &options, e);
	if (!r && m->chunk && m->chunk != m->near->chunk)
		log_warn(&m->run.env.log, "--near %s was made with chunks of %s, and keeps them",
			 m->near_dir, size_format(m->near->chunk, size));
	return r;
}

static int near_open(struct mount *m, struct err *e)
{
	int r;

	if (m->near_dir)
		return near_on_disk(m, e);
	r = near_memfd_open(&m->near, m->far->info.size);
	return r ? err_sys(e, r, "memory for what is kept here") : 0;
}

static int managed_open(struct mount *m, struct err *e)
{
	struct region_options options = {
		.chunk = (uint32_t)m->chunk,
		.budget_bytes = file_budget_left(m->budget),
		.read_only = m->read_only,
		.pull_all = m->pull == MOUNT_PULL_ALL,
		.install_apart = several_processors(),
		.push_interval_ns = m->push_interval_ns,
		.deadline_ns = m->deadline_ns,
		.on_loss = (enum region_loss)m->on_loss,
		.hooks = { .progress = region_progress, .arg = m },
	};
	int r = near_open(m, e);

	if (!r && m->near->chunk)
		options.chunk = m->near->chunk;
	if (!r)
		r = region_open(&m->region, m->run.loop, m->far, m->near, &options, e);
	if (!r)
		m->store = region_store(m->region);
	return r;
}

static void first_done(struct region_pull *pull, int err)
{
	(void)err; /* the region tells why (status); who reads there tries again */
	CONTAINER_OF(pull, struct mount_first, pull)->busy = false;
}

static int first_start(struct mount *m, struct err *e)
{
	for (size_t i = 0; i < m->first_count; i++) {
		struct mount_first *first = &m->first[i];

		if (!range_within(first->pull.range, m->size))
			return err_set(e, -EINVAL,
				       "--pull first=: it goes beyond the resource's %llu bytes",
				       (unsigned long long)m->size);
		first->pull.priority = INT32_MAX;
		first->pull.done = first_done;
		first->busy = true;
		region_pull(m->region, &first->pull);
	}
	return 0;
}

/* ---- the profile ---- */

static int profile_read(const char *path, char **ret, size_t *ret_len, struct err *e)
{
	AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
	AUTO_FREE char *text = malloc(PROFILE_TEXT_MAX + 1);
	size_t len = 0;
	ssize_t n = 1;

	if (fd < 0)
		return err_sys(e, -errno, "--profile %s", path);
	if (!text)
		return err_sys(e, -ENOMEM, "--profile %s", path);
	while (n > 0 && len <= PROFILE_TEXT_MAX) {
		n = read(fd, text + len, PROFILE_TEXT_MAX + 1 - len);
		if (n < 0)
			return err_sys(e, -errno, "--profile %s", path);
		len += (size_t)n;
	}
	*ret = TAKE_PTR(text);
	*ret_len = len;
	return 0;
}

static void profile_ended(void *arg)
{
	struct mount *m = arg;
	struct profile_progress p;

	profile_run_progress(m->profile_run, &p);
	log_info(&m->run.env.log, "the profile's %llu ranges have been pulled, %llu of them failed",
		 (unsigned long long)p.ranges, (unsigned long long)p.failed);
}

static int profile_start(struct mount *m, struct err *e)
{
	AUTO_FREE char *text = NULL;
	struct profile profile = { 0 };
	size_t len = 0;
	int r;

	if (!m->profile_path)
		return 0;
	r = profile_read(m->profile_path, &text, &len, e);
	if (r)
		return r;
	r = profile_parse(&profile, text, len, m->size, e);
	if (r)
		return err_prefix(e, "--profile %s", m->profile_path);
	if (profile.size && profile.size != m->size)
		log_warn(&m->run.env.log,
			 "%s was recorded of a resource of another size: what still lies within "
			 "is used",
			 m->profile_path);
	r = profile_run_start(&m->profile_run, m->region, &profile, profile_ended, m);
	profile_done(&profile);
	if (r == -ENODATA)
		return 0;
	return r ? err_sys(e, r, "--profile %s", m->profile_path) : 0;
}

/* ---- the whole ---- */

static void store_event(void *arg, struct store *store, enum store_event event)
{
	struct mount *m = arg;
	const struct log *log = &m->run.env.log;

	(void)store;
	m->far_away = event == STORE_LOST;
	if (event == STORE_LOST)
		log_warn(log, "the far side is away");
	else if (event == STORE_BACK)
		log_warn(log, "the far side is back");
	else
		log_warn(log, "the far side is back, and was restarted");
}

static int file_start(struct mount *m, struct err *e)
{
	const struct file_options options = {
		.store = m->store,
		.path = m->path,
		.source = m->spec,
		.read_only = m->read_only || m->store->info.read_only,
		.keep_cache = !m->direct,
		.memory_max = file_memory_of(m->budget),
		.others = m->others,
		.hooks = { .accessed = mount_accessed, .gone = mount_gone, .arg = m },
	};

	return file_open(&m->file, m->run.loop, &options, e);
}

static int control_start(struct mount *m, struct err *e)
{
	const struct control_options options = {
		.kind = "mount",
		.target = m->path,
		.spec = m->spec,
		.verbs = mount_verbs,
		.arg = m,
		.log = m->log,
	};

	return control_open(&m->control, m->run.loop, &options, e);
}

int mount_open(struct mount *m, struct err *e)
{
	const struct store_open how = { .loop = m->run.loop,
					.read_only = m->read_only,
					.deadline_ns = NEVER_NS,
					.first = first_guess(m) };
	char dir[SPEC_LEN_MAX];
	int r = mount_path(m->path_given, &m->path, e);

	if (!r)
		r = control_dir(dir, sizeof(dir), true, e);
	if (!r)
		r = run_spec_open(&m->far, m->spec, &how, e);
	if (r)
		return r;
	m->size = m->far->info.size;
	m->store = m->far;
	if (!m->direct)
		r = managed_open(m, e);
	if (r)
		return r;
	m->store->on_event = store_event;
	m->store->on_event_arg = m;
	if (!m->direct)
		r = first_start(m, e);
	if (!r)
		r = profile_start(m, e);
	if (!r) {
		m->run.on_signal = mount_end_signal;
		r = file_start(m, e);
	}
	if (!r)
		r = control_start(m, e);
	m->started_ns = env_wall_ns();
	m->up = !r;
	return r;
}

void mount_close(struct mount *m)
{
	m->up = false;
	if (m->run.loop) {
		timer_clear(m->run.loop, &m->sampler);
		profile_run_free(TAKE_PTR(m->profile_run));
	}
	/* What is still asked for is not worth waiting for: whoever asks loses the file anyway. */
	if (m->store)
		store_abort(m->store);
	mount_verbs_settle(m);
	mount_end_settle(m);
	file_close_wait(m->file);
	m->file = NULL;
	if (m->region)
		m->far = NULL; /* it goes with the region, as does the near store */
	else if (m->near)
		m->near->ops->close(m->near);
	store_close_wait(m->region ? region_store(m->region) : m->far);
	m->region = NULL;
	m->far = m->store = NULL;
	m->near = NULL;
	mount_end_answer(m);
	control_close(m->control);
	m->control = NULL;
}

uint64_t mount_unsafe(struct mount *m)
{
	struct region_status st;

	if (!m->region)
		return 0;
	region_status(m->region, &st);
	return st.unsafe_bytes;
}

const char *mount_why(struct mount *m)
{
	struct region_status *st;

	if (!m->region)
		return m->store->last_why;
	st = &m->status;
	region_status(m->region, st);
	return st->last_why;
}

void mount_engine(const struct mount *m, char *buf, size_t len)
{
	snprintf(buf, len, "%s, %s", file_how(m->file), loop_engine_name(m->run.loop));
}
