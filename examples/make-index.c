/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes a large, real, structured file from what every Debian machine has: an index of the words in
 * the files of the installed packages. Made for scripts/demo; it does not use the library.
 *
 *   make-index INDEX WORDS [RECORDS]   writes the index, and a hundred of its words, one per line
 *   make-index --count INDEX WORDS     counts a look-up of each word in a local index, with plain
 *                                      system calls
 *
 * The index is a row of records of 256 bytes (struct record in lookup.c is the same), sorted by
 * word, then by file, then by offset; so a word is found by binary search. The packages' files are
 * read in an order that spreads over all packages, until there are enough words: the same machine
 * gives the same index.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORDS_DEFAULT (4u << 20) /* a gibibyte */
#define WORDS 100u
#define WORD_MIN 4u
#define FILE_BYTES_MAX (4u << 20) /* of each file, so that no single one fills the index */
#define PACKAGE_LISTS "/var/lib/dpkg/info"

struct record {
	char word[48];
	uint64_t lookups; /* how often it was looked up; this is what changes in place */
	uint64_t offset;  /* where in the file */
	char file[192];
};
_Static_assert(sizeof(struct record) == 256, "records have a fixed width");

struct file {
	char *path;
	uint64_t order;
};

struct hit {
	uint64_t head; /* the word's first eight bytes, as a number that sorts as they do */
	uint32_t word, file, offset;
};

struct index {
	struct file *files;
	size_t file_count, file_max;
	struct hit *hits;
	size_t hit_count, hit_max;
	char *words; /* all of them, each with its 0 */
	size_t word_bytes, word_max;
};

static struct index *sorting; /* qsort() has no argument for it */

static void die(const char *what)
{
	fprintf(stderr, "make-index: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *grow(void *at, size_t count, size_t *max, size_t each)
{
	if (count < *max)
		return at;
	*max = *max ? *max * 2 : 1024;
	at = realloc(at, *max * each);
	if (!at)
		die("memory");
	return at;
}

static uint64_t path_hash(const char *s)
{
	uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */

	for (; *s; s++)
		h = (h ^ (uint8_t)*s) * 0x100000001b3u;
	return h ^ h >> 32;
}

static int file_compare(const void *a, const void *b)
{
	const struct file *x = a, *y = b;

	if (x->order != y->order)
		return x->order < y->order ? -1 : 1;
	return strcmp(x->path, y->path);
}

static int hit_compare(const void *a, const void *b)
{
	const struct hit *x = a, *y = b;

	if (x->head != y->head)
		return x->head < y->head ? -1 : 1;
	int diff = strcmp(sorting->words + x->word, sorting->words + y->word);
	if (diff == 0 && x->file != y->file)
		diff = strcmp(sorting->files[x->file].path, sorting->files[y->file].path);
	if (diff != 0)
		return diff;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* One package's list: a path per line. */
static void list_read(struct index *ix, const char *path)
{
	FILE *f = fopen(path, "r");
	char *line = NULL;
	size_t room = 0;
	ssize_t len;

	if (!f)
		die(path);
	while ((len = getline(&line, &room, f)) > 0) {
		if (line[len - 1] == '\n')
			line[--len] = 0;
		if ((size_t)len >= sizeof(((struct record *)0)->file))
			continue;
		ix->files = grow(ix->files, ix->file_count, &ix->file_max, sizeof(*ix->files));
		char *copy = strdup(line);
		if (!copy)
			die("memory");
		ix->files[ix->file_count++] = (struct file){ copy, path_hash(copy) };
	}
	free(line);
	fclose(f);
}

static void lists_read(struct index *ix)
{
	DIR *dir = opendir(PACKAGE_LISTS);
	struct dirent *d;
	char path[512];

	if (!dir)
		die(PACKAGE_LISTS);
	while ((d = readdir(dir)) != NULL) {
		size_t len = strlen(d->d_name);
		if (len < 5 || strcmp(d->d_name + len - 5, ".list") != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", PACKAGE_LISTS, d->d_name);
		list_read(ix, path);
	}
	closedir(dir);
	qsort(ix->files, ix->file_count, sizeof(*ix->files), file_compare);
	/* Packages share directories. */
	size_t kept = 0;
	for (size_t i = 0; i < ix->file_count; i++) {
		if (kept && strcmp(ix->files[kept - 1].path, ix->files[i].path) == 0)
			free(ix->files[i].path);
		else
			ix->files[kept++] = ix->files[i];
	}
	ix->file_count = kept;
}

static void hit_add(struct index *ix, const uint8_t *word, size_t len, size_t file, size_t offset)
{
	struct hit h = { .word = (uint32_t)ix->word_bytes, .file = (uint32_t)file,
			 .offset = (uint32_t)offset };

	for (size_t i = 0; i < 8; i++)
		h.head = h.head << 8 | (i < len ? word[i] : 0);
	ix->hits[ix->hit_count++] = h;
	memcpy(ix->words + ix->word_bytes, word, len);
	ix->words[ix->word_bytes + len] = 0;
	ix->word_bytes += len + 1;
}

/* A word is a row of letters, digits and underscores that a person might look up. */
static void file_scan(struct index *ix, size_t file)
{
	int fd = open(ix->files[file].path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;

	if (fd < 0)
		return;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size == 0) {
		close(fd);
		return;
	}
	size_t size = (uint64_t)st.st_size < FILE_BYTES_MAX ? (size_t)st.st_size : FILE_BYTES_MAX;
	uint8_t *at = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (at == MAP_FAILED)
		return;
	for (size_t i = 0; i < size && ix->hit_count < ix->hit_max;) {
		size_t start = i;
		while (i < size && (isalnum(at[i]) || at[i] == '_'))
			i++;
		size_t len = i - start;
		if (len >= WORD_MIN && len < sizeof(((struct record *)0)->word) &&
		    isalpha(at[start]))
			hit_add(ix, at + start, len, file, start);
		if (i == start)
			i++;
	}
	munmap(at, size);
}

static void write_all(int fd, const void *buf, size_t len)
{
	const char *at = buf;

	while (len > 0) {
		ssize_t n = write(fd, at, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("write");
		at += n;
		len -= (size_t)n;
	}
}

static void index_write(const struct index *ix, const char *path)
{
	enum { BATCH = 4096 };
	struct record *out = calloc(BATCH, sizeof(*out));
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (!out || fd < 0)
		die(path);
	for (size_t i = 0; i < ix->hit_count;) {
		size_t n = 0;
		for (; n < BATCH && i < ix->hit_count; n++, i++) {
			const struct hit *h = &ix->hits[i];
			memset(&out[n], 0, sizeof(out[n]));
			memcpy(out[n].word, ix->words + h->word, strlen(ix->words + h->word));
			memcpy(out[n].file, ix->files[h->file].path,
			       strlen(ix->files[h->file].path));
			out[n].offset = h->offset;
		}
		write_all(fd, out, n * sizeof(*out));
	}
	if (close(fd) < 0)
		die(path);
	free(out);
}

/* A hundred words from all over the index, in no order; a frequent one may come twice. */
static void words_write(const struct index *ix, const char *path)
{
	FILE *f = fopen(path, "w");

	if (!f)
		die(path);
	for (size_t i = 0; i < WORDS; i++) {
		size_t place = i * 37 % WORDS; /* 37 and 100 share no factor: each place once */
		size_t at = (size_t)((place * 2 + 1) * (uint64_t)ix->hit_count / (2 * WORDS));
		fprintf(f, "%s\n", ix->words + ix->hits[at].word);
	}
	if (fclose(f) != 0)
		die(path);
}

static void index_make(const char *path, const char *words, size_t records)
{
	struct index ix = { .hit_max = records };

	ix.word_max = records * (sizeof(((struct record *)0)->word) + 1);
	ix.hits = malloc(records * sizeof(*ix.hits));
	/* Address space for the worst case; only what is used takes memory. */
	ix.words = mmap(NULL, ix.word_max, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!ix.hits || ix.words == MAP_FAILED)
		die("memory");
	lists_read(&ix);
	for (size_t i = 0; i < ix.file_count && ix.hit_count < ix.hit_max; i++)
		file_scan(&ix, i);
	if (ix.hit_count < WORDS) {
		fprintf(stderr, "make-index: no words in the files of the packages\n");
		exit(1);
	}
	sorting = &ix;
	qsort(ix.hits, ix.hit_count, sizeof(*ix.hits), hit_compare);
	index_write(&ix, path);
	words_write(&ix, words);
	printf("%zu records from %zu files\n", ix.hit_count, ix.file_count);
	munmap(ix.words, ix.word_max);
	for (size_t i = 0; i < ix.file_count; i++)
		free(ix.files[i].path);
	free(ix.files);
	free(ix.hits);
}

static void record_read(int fd, uint64_t at, struct record *ret)
{
	if (pread(fd, ret, sizeof(*ret), (off_t)(at * sizeof(*ret))) != (ssize_t)sizeof(*ret))
		die("pread");
}

/* What lookup.c does to the memory, done to a file: for comparison, in another way. */
static void lookups_count(const char *path, const char *words)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	FILE *f = fopen(words, "r");
	struct record r;
	struct stat st;
	char word[256];

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	if (!f)
		die(words);
	while (fgets(word, sizeof(word), f)) {
		word[strcspn(word, "\n")] = 0;
		uint64_t low = 0, high = (uint64_t)st.st_size / sizeof(r);
		while (low < high) {
			uint64_t middle = low + (high - low) / 2;
			record_read(fd, middle, &r);
			if (strncmp(r.word, word, sizeof(r.word)) < 0)
				low = middle + 1;
			else
				high = middle;
		}
		record_read(fd, low, &r);
		r.lookups++;
		if (pwrite(fd, &r, sizeof(r), (off_t)(low * sizeof(r))) != (ssize_t)sizeof(r))
			die("pwrite");
	}
	fclose(f);
	if (close(fd) < 0)
		die(path);
}

int main(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "--count") == 0) {
		lookups_count(argv[2], argv[3]);
	} else if ((argc == 3 || argc == 4) && argv[1][0] != '-') {
		unsigned long records = argc == 4 ? strtoul(argv[3], NULL, 10) : RECORDS_DEFAULT;
		if (records < WORDS || records > UINT32_MAX / 64) {
			fprintf(stderr, "make-index: between 100 and %u records\n", UINT32_MAX / 64);
			return 2;
		}
		index_make(argv[1], argv[2], records);
	} else {
		fprintf(stderr, "usage: make-index INDEX WORDS [RECORDS] | --count INDEX WORDS\n");
		return 2;
	}
	return 0;
}
