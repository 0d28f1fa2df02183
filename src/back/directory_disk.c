/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the directory back end has on the disk.
 *
 *   OFFSET       a chunk, named by the decimal offset of its first byte; the last one may be
 *                shorter
 *   OFFSET.new   what was written to it and not flushed: a whole chunk
 *   meta         text: "remora-directory 1", then "size", "chunk" and "identity", a line each
 *   index        which chunks have a file. Little-endian: "RMDIRIDX", u32 version (1), u32 0,
 *                u64 size, u64 chunk, u64 chunks, u64 XXH3 of everything but this word, u64 0
 * twice; then a bit per chunk, bit i of byte i / 8, filled up to 8 bytes
 *
 * meta and index are replaced by rename(2) of a file that is durable (index.new). A directory is
 * made in the order index, meta: without a meta file it is not ours yet, and whatever chunks are
 * in it are another program's (r3map has the same layout, without meta and index): they are taken
 * over when size and chunk are given, and from then on the index knows them.
 *
 * Place: called by directory.c, when it is opened; and by the pool's threads for one op at a time.
 *
 * Invariants: a file shorter than its chunk, or missing while the index has it, is -EIO with a text
 * that names it. Names are never followed to somewhere else.
 *
 * Locking: calls on the pool touch their op alone, and d->fd, d->path, which do not change.
 */
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "back/directory_int.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/fd.h"

#define META_LEN_MAX 256u
#define OPEN_FLAGS (O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)

struct index_header {
	char magic[8];
	uint32_t version, zero;
	uint64_t size, chunk, chunks, sum, zeros[2];
};
static_assert(sizeof(struct index_header) == DIR_INDEX_HEADER, "as it is written down");

/* ---- files ---- */

/* The file has this content, durably, or the one that it had before. */
static int file_replace(int dir, const char *name, const void *data, size_t len)
{
	char fresh[DIR_NAME_LEN];
	AUTO_FD int fd = -1;
	int r;

	snprintf(fresh, sizeof(fresh), "%s.new", name);
	fd = openat(dir, fresh, OPEN_FLAGS | O_WRONLY | O_CREAT | O_TRUNC, 0666);
	if (fd < 0)
		return -errno;
	r = fd_write_at(fd, data, len, 0);
	if (!r && (fsync(fd) || renameat(dir, fresh, dir, name) || fsync(dir)))
		r = -errno;
	return r;
}

/* ---- a chunk's calls, on the pool ---- */

static void chunk_name(const struct dir_op *o, bool changes, char *ret)
{
	snprintf(ret, DIR_NAME_LEN, "%llu%s", (unsigned long long)(o->chunk << o->d->shift),
		 changes ? ".new" : "");
}

static int chunk_error(struct dir_op *o, bool changes, int err, const char *what)
{
	char name[DIR_NAME_LEN];

	chunk_name(o, changes, name);
	snprintf(o->why, sizeof(o->why), "directory: chunk %s (%.60s/%s) %s", name, o->d->path,
		 name, what ? what : strerror(-err));
	return err;
}

/* That the descriptor still is the chunk: somebody may have removed its file, or cut it off. */
static int chunk_check(struct dir_op *o, bool changes, int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return chunk_error(o, changes, -errno, NULL);
	if (!S_ISREG(st.st_mode))
		return chunk_error(o, changes, -EIO, "is no regular file");
	if (!st.st_nlink)
		return chunk_error(o, changes, -EIO, "was written and its file is gone");
	if (st.st_size < 0 || (uint64_t)st.st_size < dir_chunk_len(o->d, o->chunk))
		return chunk_error(o, changes, -EIO, "is shorter than a chunk");
	return 0;
}

/* The chunk's file: what the cache has, or opened now; *ret_opened: to be kept or closed. */
static int chunk_open(struct dir_op *o, bool changes, int *ret_opened)
{
	char name[DIR_NAME_LEN];
	int fd = o->fd, r;

	*ret_opened = -1;
	if (fd < 0) {
		chunk_name(o, changes, name);
		fd = *ret_opened =
			openat(o->d->fd, name, OPEN_FLAGS | (changes ? O_RDWR : O_RDONLY));
	}
	if (fd < 0 && (errno == ENOENT || errno == ELOOP))
		return chunk_error(o, changes, -EIO, "was written and its file is gone");
	if (fd < 0)
		return chunk_error(o, changes, -errno, NULL);
	r = chunk_check(o, changes, fd);
	if (r && *ret_opened >= 0) {
		close(*ret_opened);
		*ret_opened = -1;
	}
	return r ? r : fd;
}

int dir_read_call(struct work *work)
{
	struct dir_op *o = CONTAINER_OF(work, struct dir_op, work);
	int opened, fd = chunk_open(o, o->dirty, &opened), r;

	if (fd < 0)
		return fd;
	r = fd_read_at(fd, o->data, o->len, o->at);
	if (r)
		r = chunk_error(o, o->dirty, r == -ENODATA ? -EIO : r, NULL);
	o->fd = fd;
	return r;
}

static const void *op_bytes(struct dir_op *o)
{
	if (o->data)
		return o->data;
	memset(o->buf, 0, o->len);
	return o->buf;
}

/* What was there before, with what is written laid over it, in the op's buffer. */
static int chunk_base(struct dir_op *o)
{
	uint32_t len = dir_chunk_len(o->d, o->chunk);
	int opened = -1, fd, r = 0;

	if (!o->in_file) {
		memset(o->buf, 0, len);
	} else {
		fd = chunk_open(o, false, &opened);
		if (fd < 0)
			return fd;
		r = fd_read_at(fd, o->buf, len, 0);
		if (opened >= 0)
			close(opened);
		if (r)
			return chunk_error(o, false, r == -ENODATA ? -EIO : r, NULL);
	}
	if (o->data)
		memcpy(o->buf + o->at, o->data, o->len);
	else
		memset(o->buf + o->at, 0, o->len);
	return 0;
}

/* The first change since the last flush: the whole chunk, under a name of its own. */
static int changes_make(struct dir_op *o)
{
	const void *bytes = o->buf;
	char name[DIR_NAME_LEN];
	int fd, r = 0;

	if (o->whole)
		bytes = op_bytes(o);
	else
		r = chunk_base(o);
	if (r)
		return r;
	chunk_name(o, true, name);
	fd = openat(o->d->fd, name, OPEN_FLAGS | O_RDWR | O_CREAT | O_TRUNC, 0666);
	if (fd < 0)
		return chunk_error(o, true, -errno, NULL);
	r = fd_write_at(fd, bytes, dir_chunk_len(o->d, o->chunk), 0);
	if (r) {
		chunk_error(o, true, r, NULL);
		unlinkat(o->d->fd, name, 0);
		close(fd);
		return r;
	}
	o->fd = fd;
	return 0;
}

int dir_write_call(struct work *work)
{
	struct dir_op *o = CONTAINER_OF(work, struct dir_op, work);
	int opened, fd, r;

	if (!o->dirty)
		return changes_make(o);
	fd = chunk_open(o, true, &opened);
	if (fd < 0)
		return fd;
	r = fd_write_at(fd, op_bytes(o), o->len, o->at);
	o->fd = fd;
	return r ? chunk_error(o, true, r, NULL) : 0;
}

static int chunk_unlink(struct dir_op *o, bool changes)
{
	char name[DIR_NAME_LEN];

	chunk_name(o, changes, name);
	if (unlinkat(o->d->fd, name, 0) && errno != ENOENT)
		return chunk_error(o, changes, -errno, NULL);
	return 0;
}

int dir_zero_call(struct work *work)
{
	struct dir_op *o = CONTAINER_OF(work, struct dir_op, work);

	return o->dirty ? chunk_unlink(o, true) : 0;
}

/* The kernel may have forgotten what it could not write, and think that it is there. */
static int chunk_rewrite(struct dir_op *o, int fd)
{
	uint32_t len = dir_chunk_len(o->d, o->chunk);
	int r = fd_read_at(fd, o->buf, len, 0);

	return r ? r : fd_write_at(fd, o->buf, len, 0);
}

int dir_commit_call(struct work *work)
{
	struct dir_op *o = CONTAINER_OF(work, struct dir_op, work);
	char fresh[DIR_NAME_LEN], name[DIR_NAME_LEN];
	int opened, fd, r = o->fault;

	if (!o->dirty)
		return r ? r : chunk_unlink(o, false);
	fd = chunk_open(o, true, &opened);
	if (fd < 0)
		return fd;
	o->fd = fd;
	if (!r && o->rewrite)
		r = chunk_rewrite(o, fd);
	chunk_name(o, true, fresh);
	chunk_name(o, false, name);
	if (!r && (fsync(fd) || renameat(o->d->fd, fresh, o->d->fd, name)))
		r = -errno;
	return r ? chunk_error(o, true, r, NULL) : 0;
}

int dir_names_call(struct work *work)
{
	struct directory *d = CONTAINER_OF(work, struct directory, flush_work);

	return fsync(d->fd) ? -errno : 0;
}

int dir_index_call(struct work *work)
{
	struct directory *d = CONTAINER_OF(work, struct directory, flush_work);

	return file_replace(d->fd, "index", d->index, d->index_len);
}

/* ---- the index ---- */

static uint64_t index_sum(const uint8_t *bytes, size_t len)
{
	struct index_header h;
	XXH3_state_t state;

	memcpy(&h, bytes, sizeof(h));
	h.sum = 0;
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, &h, sizeof(h));
	XXH3_64bits_update(&state, bytes + sizeof(h), len - sizeof(h));
	return XXH3_64bits_digest(&state);
}

static uint64_t *index_words(const struct directory *d)
{
	return (uint64_t *)(void *)(d->index + sizeof(struct index_header));
}

void dir_index_make(struct directory *d, const uint64_t *a, const uint64_t *b)
{
	struct index_header h = {
		.magic = "RMDIRIDX",
		.version = htole32(1),
		.size = htole64(d->store.info.size),
		.chunk = htole64(d->chunk),
		.chunks = htole64(d->chunks),
	};

	memcpy(d->index, &h, sizeof(h));
	for (size_t i = 0; i < d->words; i++)
		index_words(d)[i] = htole64(a[i] & b[i]);
	h.sum = htole64(index_sum(d->index, d->index_len));
	memcpy(d->index, &h, sizeof(h));
}

void dir_index_said(const struct directory *d, uint64_t *ret)
{
	for (size_t i = 0; i < d->words; i++)
		ret[i] = le64toh(index_words(d)[i]);
}

int dir_index_check(const uint8_t *bytes, size_t len, uint64_t size, uint64_t chunk)
{
	uint64_t chunks = (size + chunk - 1) / chunk;
	struct index_header h;

	if (len < sizeof(h) || len != sizeof(h) + BITMAP_WORDS(chunks) * sizeof(uint64_t))
		return -EBADMSG;
	memcpy(&h, bytes, sizeof(h));
	if (memcmp(h.magic, "RMDIRIDX", sizeof(h.magic)) || h.version != htole32(1) ||
	    le64toh(h.sum) != index_sum(bytes, len))
		return -EBADMSG;
	if (le64toh(h.size) != size || le64toh(h.chunk) != chunk || le64toh(h.chunks) != chunks)
		return -ESTALE;
	/* No chunk behind the last one. */
	if (chunks % 64 && bytes[len - 8 + chunks % 64 / 8] >> (chunks % 8))
		return -EBADMSG;
	for (size_t i = len - 8 + chunks % 64 / 8 + 1; chunks % 64 && i < len; i++)
		if (bytes[i])
			return -EBADMSG;
	return 0;
}

static int index_load(struct dir_opening *w)
{
	struct directory *d = w->d;
	AUTO_FD int fd = openat(d->fd, "index", OPEN_FLAGS | O_RDONLY);
	struct stat st;
	int r = -EBADMSG;

	if (fd < 0 && errno == ENOENT)
		return err_set(
			w->e, -EBADMSG,
			"%s/index is gone: nobody can tell which chunks were written. To take the files "
			"that are there for all there is, remove %s/meta and give size= and chunk=",
			d->path, d->path);
	if (fd < 0 || fstat(fd, &st))
		return err_sys(w->e, -errno, "%s/index", d->path);
	if (st.st_size >= 0 && (uint64_t)st.st_size == d->index_len)
		r = fd_read_at(fd, d->index, d->index_len, 0);
	if (!r)
		r = dir_index_check(d->index, d->index_len, d->store.info.size, d->chunk);
	if (r == -EBADMSG || r == -ESTALE)
		return err_set(
			w->e, -EBADMSG,
			"%s/index is damaged%s. To take the files that are there for all there is, "
			"remove %s/meta and give size= and chunk=",
			d->path, r == -ESTALE ? ": it is of another size" : "", d->path);
	if (r)
		return err_sys(w->e, r, "%s/index", d->path);
	dir_index_said(d, d->indexed);
	return 0;
}

/* ---- the meta file ---- */

static int meta_format(char *buf, uint64_t size, uint64_t chunk, uint64_t identity)
{
	return snprintf(
		buf, META_LEN_MAX, "remora-directory 1\nsize %llu\nchunk %llu\nidentity %016llx\n",
		(unsigned long long)size, (unsigned long long)chunk, (unsigned long long)identity);
}

int dir_meta_parse(const char *text, uint64_t *ret_size, uint64_t *ret_chunk,
		   uint64_t *ret_identity)
{
	unsigned long long size, chunk, identity;
	char same[META_LEN_MAX];

	if (sscanf(text, "remora-directory 1\nsize %20llu\nchunk %20llu\nidentity %16llx\n", &size,
		   &chunk, &identity) != 3)
		return -EBADMSG;
	meta_format(same, size, chunk, identity);
	if (strcmp(same, text) || size > RESOURCE_SIZE_MAX || !is_pow2(chunk) ||
	    chunk < CHUNK_MIN || chunk > CHUNK_MAX || !identity)
		return -EBADMSG;
	*ret_size = size;
	*ret_chunk = chunk;
	*ret_identity = identity;
	return 0;
}

static int meta_load(struct dir_opening *w)
{
	const char *path = w->d->path;
	AUTO_FD int fd = openat(w->d->fd, "meta", OPEN_FLAGS | O_RDONLY);
	char text[META_LEN_MAX] = { 0 };
	uint64_t size, chunk;
	ssize_t n;

	if (fd < 0 && errno == ENOENT)
		return 0;
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return err_sys(w->e, -errno, "%s/meta", path);
	if (dir_meta_parse(text, &size, &chunk, &w->identity))
		return err_set(w->e, -EBADMSG,
			       "%s/meta is not the one of a directory of Remora's, or is damaged",
			       path);
	if (w->has_size && w->size != size)
		return err_set(w->e, -EINVAL,
			       "%s has size=%llu, and size=%llu was asked for: it does not change",
			       path, (unsigned long long)size, (unsigned long long)w->size);
	if (w->has_chunk && w->chunk != chunk)
		return err_set(
			w->e, -EINVAL,
			"%s has chunk=%llu, and chunk=%llu was asked for: it does not change", path,
			(unsigned long long)chunk, (unsigned long long)w->chunk);
	w->has_meta = true;
	w->size = size;
	w->chunk = chunk;
	return 0;
}

/* ---- what is there ---- */

/* A decimal number as we would write it. */
static bool name_offset(const char *name, size_t len, uint64_t *ret)
{
	uint64_t v = 0;

	if (!len || len > 19 || (len > 1 && name[0] == '0'))
		return false;
	for (size_t i = 0; i < len; i++) {
		if (name[i] < '0' || name[i] > '9')
			return false;
		v = v * 10 + (uint64_t)(name[i] - '0');
	}
	*ret = v;
	return true;
}

/* A chunk that we did not make: it has to fit. */
static int chunk_adopt(struct dir_opening *w, const char *name, uint64_t off)
{
	struct directory *d = w->d;
	struct stat st;
	uint64_t want;

	if (off % d->chunk)
		return err_set(w->e, -EINVAL, "%s/%s does not begin at a multiple of chunk=%llu",
			       d->path, name, (unsigned long long)d->chunk);
	if (off >= d->store.info.size)
		return err_set(w->e, -EINVAL, "%s/%s lies behind size=%llu", d->path, name,
			       (unsigned long long)d->store.info.size);
	if (fstatat(d->fd, name, &st, AT_SYMLINK_NOFOLLOW))
		return err_sys(w->e, -errno, "%s/%s", d->path, name);
	want = dir_chunk_len(d, off >> d->shift);
	if (!S_ISREG(st.st_mode) ||
	    ((uint64_t)st.st_size != want && (uint64_t)st.st_size != d->chunk))
		return err_set(w->e, -EINVAL,
			       "%s/%s has %lld bytes, and a chunk has %llu: is chunk= right?",
			       d->path, name, (long long)st.st_size, (unsigned long long)want);
	return 0;
}

static int entry_take(struct dir_opening *w, const char *name)
{
	struct directory *d = w->d;
	size_t len = strlen(name);
	uint64_t off;
	int r;

	if (len > 4 && !strcmp(name + len - 4, ".new")) {
		bool ours = name_offset(name, len - 4, &off) || !strcmp(name, "index.new") ||
			    !strcmp(name, "meta.new");

		if (ours && !w->read_only && unlinkat(d->fd, name, 0) && errno != ENOENT)
			return err_sys(w->e, -errno, "%s/%s", d->path, name);
		return 0;
	}
	if (!name_offset(name, len, &off))
		return 0;
	if (!w->has_meta && (r = chunk_adopt(w, name, off)))
		return r;
	if (off % d->chunk == 0 && off < d->store.info.size)
		bitmap_set(d->file, off >> d->shift);
	w->found++;
	return 0;
}

static int directory_scan(struct dir_opening *w)
{
	int fd = openat(w->d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *entry;

	if (!dir) {
		r = err_sys(w->e, -errno, "%s", w->d->path);
		if (fd >= 0)
			close(fd);
		return r;
	}
	errno = 0;
	while (!r && (entry = readdir(dir))) {
		r = entry_take(w, entry->d_name);
		errno = 0;
	}
	if (!r && errno)
		r = err_sys(w->e, -errno, "%s", w->d->path);
	closedir(dir);
	return r;
}

/* ---- making, and opening ---- */

static int parent_sync(const char *path)
{
	AUTO_FREE char *copy = strdup(path);
	AUTO_FD int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

	return fd < 0 || fsync(fd) ? -errno : 0;
}

static int directory_find(struct dir_opening *w)
{
	struct directory *d = w->d;
	bool sized = w->has_size || w->how->create;
	int r;

	d->fd = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->fd < 0 && errno == ENOENT && w->create && sized) {
		if (mkdir(d->path, 0777))
			return err_sys(w->e, -errno, "making %s", d->path);
		w->made = true;
		d->fd = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (d->fd >= 0 && (r = parent_sync(d->path)))
			return err_sys(w->e, r, "making the name %s durable", d->path);
	}
	if (d->fd < 0 && errno == ENOENT)
		return err_set(w->e, -ENOENT,
			       "%s: no such directory; directory:%s?size=4G&create=1 makes one",
			       d->path, d->path);
	if (d->fd < 0 && errno == ENOTDIR)
		return err_set(w->e, -ENOTDIR, "%s is no directory; a file is file:%s", d->path,
			       d->path);
	if (d->fd < 0)
		return err_sys(w->e, -errno, "%s", d->path);
	if (!w->read_only && faccessat(d->fd, ".", W_OK, AT_EACCESS))
		return err_set(
			w->e, -errno,
			"%s cannot be written: %s; for reading only: directory:%s?readonly=1",
			d->path, strerror(errno), d->path);
	if (flock(d->fd, (w->read_only ? LOCK_SH : LOCK_EX) | LOCK_NB))
		return err_set(w->e, errno == EWOULDBLOCK ? -EBUSY : -errno,
			       errno == EWOULDBLOCK ? "%s is in use: another process has it open%s"
						    : "%s cannot be locked%s",
			       d->path, w->read_only ? " for writing" : "");
	return 0;
}

static int bits_make(struct dir_opening *w)
{
	struct directory *d = w->d;

	d->chunk = w->chunk;
	d->shift = log2_u64(w->chunk);
	d->store.info.size = w->size;
	d->chunks = (w->size + d->chunk - 1) >> d->shift;
	if (w->size > RESOURCE_SIZE_MAX || d->chunks > DIRECTORY_CHUNKS_MAX)
		return err_set(
			w->e, -EFBIG,
			"%s: size=%llu has more than %llu chunks of %llu bytes: take larger chunks",
			d->path, (unsigned long long)w->size, DIRECTORY_CHUNKS_MAX,
			(unsigned long long)w->chunk);
	d->words = BITMAP_WORDS(d->chunks);
	d->index_len = sizeof(struct index_header) + d->words * sizeof(uint64_t);
	d->bits = calloc(5 * d->words + 1, sizeof(uint64_t));
	d->index = calloc(1, d->index_len);
	if (!d->bits || !d->index)
		return err_sys(w->e, -ENOMEM, "%s", d->path);
	d->data = d->bits;
	d->file = d->data + d->words;
	d->dirty = d->file + d->words;
	d->indexed = d->dirty + d->words;
	d->set = d->indexed + d->words;
	return 0;
}

/* Made new, or taken over: index first, meta last. */
static int directory_make(struct dir_opening *w)
{
	struct directory *d = w->d;
	char text[META_LEN_MAX];
	int len, r = 0;

	if (!w->found && !w->create)
		return err_set(
			w->e, -ENOENT,
			"%s has no chunks and no meta file: directory:%s?size=4G&create=1 makes it one",
			d->path, d->path);
	w->identity = rng_system() | 1;
	if (w->read_only)
		return 0;
	if (w->found && syncfs(d->fd)) /* others have written them; who knows whether they synced */
		r = -errno;
	dir_index_make(d, d->file, d->file);
	if (!r)
		r = file_replace(d->fd, "index", d->index, d->index_len);
	len = meta_format(text, w->size, w->chunk, w->identity);
	if (!r)
		r = file_replace(d->fd, "meta", text, (size_t)len);
	if (r)
		return err_sys(w->e, r, "making %s", d->path);
	memcpy(d->indexed, d->file, d->words * sizeof(*d->file));
	return 0;
}

/* What the index has and nobody finds is told now; who reads it gets an error. */
static void missing_tell(const struct dir_opening *w)
{
	const struct directory *d = w->d;
	uint64_t count = 0, first = 0;

	for (size_t c = bitmap_next_set(d->indexed, d->chunks, 0); c < d->chunks;
	     c = bitmap_next_set(d->indexed, d->chunks, c + 1)) {
		if (bitmap_get(d->file, c))
			continue;
		if (!count++)
			first = c;
	}
	if (count)
		log_error(&loop_env(w->how->loop)->log,
			  "directory %s: %llu chunk%s gone, the first is %llu", d->path,
			  (unsigned long long)count, count == 1 ? " is" : "s are",
			  (unsigned long long)(first << d->shift));
}

int dir_load(struct dir_opening *w)
{
	struct directory *d = w->d;
	int r;

	if ((r = directory_find(w)) || (r = meta_load(w)))
		return r;
	if (!w->has_meta && !w->has_size && !w->how->create)
		return err_set(w->e, -EINVAL,
			       "%s has no meta file: size= (and chunk=) must say what it is",
			       d->path);
	if ((r = bits_make(w)) || (w->has_meta && (r = index_load(w))) || (r = directory_scan(w)))
		return r;
	if (!w->has_meta && w->found && !(w->has_size && w->has_chunk))
		return err_set(
			w->e, -EINVAL,
			"%s has chunks of another program: size= and chunk= must say how they were made",
			d->path);
	if (!w->has_meta && (r = directory_make(w)))
		return r;
	missing_tell(w);
	for (size_t i = 0; i < d->words; i++) {
		/* A flush that did not get as far as the index. */
		d->names_changed |= (d->file[i] & ~d->indexed[i]) != 0;
		d->file[i] |= d->indexed[i];
		d->data[i] = d->file[i];
	}
	return 0;
}
