/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of an interrupted copy: a small text beside the destination that says which units are
 * durable there.
 *
 *   remora-copy 1
 *   size 1073741824
 *   unit 262144
 *   source 921689a4b7ace15d 1700000000000000000
 *   destination 0123456789abcdef
 *   done 0 812
 *   done 900 1
 *   end 5e0a...                                  hash of everything before this line
 *
 * Place: written by the engine after each flush (on a thread: it blocks), read once at the start.
 *
 * Invariants: a unit is named only when a flush had covered it before the file was written. The
 * file is replaced by rename(2), so a crash leaves a whole one. What does not parse to the last
 * byte is not believed.
 *
 * Locking: none.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "cmd/copy.h"

#define STATE_BYTES_MAX (64 * MIB)

static void cleanup_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

/* FNV-1a: it is to recognise a torn file, not an enemy. */
static uint64_t text_hash(const char *text, size_t len)
{
	uint64_t h = 0xcbf29ce484222325ULL;

	for (size_t i = 0; i < len; i++)
		h = (h ^ (uint8_t)text[i]) * 0x100000001b3ULL;
	return h;
}

static size_t unit_count(const struct copy_key *key)
{
	return (size_t)((key->size + key->unit - 1) / key->unit);
}

/* ---- saving ---- */

static int state_print(const struct copy_key *key, const uint64_t *bits, char **ret_text,
		       size_t *ret_len)
{
	size_t units = unit_count(key), first = 0;
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return -errno;
	fprintf(f,
		"remora-copy 1\nsize %" PRIu64 "\nunit %" PRIu64 "\nsource %016" PRIx64 " %" PRIu64
		"\ndestination %016" PRIx64 "\n",
		key->size, key->unit, key->source, key->source_mtime_ns, key->destination);
	while ((first = bitmap_next_set(bits, units, first)) < units) {
		size_t end = bitmap_next_clear(bits, units, first);

		fprintf(f, "done %zu %zu\n", first, end - first);
		first = end;
	}
	fflush(f);
	fprintf(f, "end %016" PRIx64 "\n", text_hash(text, len));
	if (fclose(f)) {
		free(text);
		return -ENOMEM;
	}
	*ret_text = text;
	*ret_len = len;
	return 0;
}

static int write_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		}
	}
	return fdatasync(fd) ? -errno : 0;
}

int copy_state_save(const char *path, const struct copy_key *key, const uint64_t *bits)
{
	AUTO_FREE char *text = NULL;
	AUTO_FREE char *temp = NULL;
	AUTO_FD int fd = -1;
	size_t len = 0;
	int r = state_print(key, bits, &text, &len);

	if (r)
		return r;
	if (asprintf(&temp, "%s.new", path) < 0)
		return -ENOMEM;
	fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
	if (fd < 0)
		return -errno;
	r = write_all(fd, text, len);
	if (!r && rename(temp, path))
		r = -errno;
	if (r)
		unlink(temp);
	return r;
}

/* ---- loading ---- */

/* The text without its last line, whose hash must fit. */
static int state_read(const char *path, char **ret_text)
{
	CLEANUP(cleanup_file) FILE *f = fopen(path, "re");
	AUTO_FREE char *text = NULL;
	struct stat st;
	uint64_t hash;
	size_t len = 0;
	char *end;

	if (!f)
		return -errno;
	if (fstat(fileno(f), &st))
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size < 1 || (uint64_t)st.st_size > STATE_BYTES_MAX)
		return -EBADMSG;
	len = (size_t)st.st_size;
	text = malloc(len + 1);
	if (!text)
		return -ENOMEM;
	if (fread(text, 1, len, f) != len || memchr(text, '\0', len))
		return -EBADMSG;
	text[len] = '\0';
	if (text[len - 1] != '\n')
		return -EBADMSG;
	text[len - 1] = '\0';
	end = strrchr(text, '\n');
	if (!end || sscanf(end + 1, "end %16" SCNx64, &hash) != 1 ||
	    hash != text_hash(text, (size_t)(end + 1 - text)))
		return -EBADMSG;
	end[1] = '\0';
	*ret_text = TAKE_PTR(text);
	return 0;
}

static int state_parse(const char *text, const struct copy_key *key, uint64_t *bits)
{
	struct copy_key had;
	size_t units = unit_count(key);
	int used = 0;

	if (sscanf(text,
		   "remora-copy 1\nsize %" SCNu64 "\nunit %" SCNu64 "\nsource %16" SCNx64
		   " %" SCNu64 "\ndestination %16" SCNx64 "\n%n",
		   &had.size, &had.unit, &had.source, &had.source_mtime_ns, &had.destination,
		   &used) != 5 ||
	    !used)
		return -EBADMSG;
	if (memcmp(&had, key, sizeof(had)))
		return -ESTALE;
	for (text += used; *text; text += used) {
		uint64_t first, count;

		used = 0;
		if (sscanf(text, "done %" SCNu64 " %" SCNu64 "\n%n", &first, &count, &used) != 2 ||
		    !used || first > units || count > units - first)
			return -EBADMSG;
		bitmap_set_range(bits, (size_t)first, (size_t)count);
	}
	return 0;
}

int copy_state_load(const char *path, const struct copy_key *key, uint64_t *bits)
{
	AUTO_FREE char *text = NULL;
	int r = state_read(path, &text);

	if (!r)
		r = state_parse(text, key, bits);
	if (r)
		memset(bits, 0, BITMAP_WORDS(unit_count(key)) * sizeof(*bits));
	return r;
}
