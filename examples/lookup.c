/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks words up in a large sorted index that lies on another machine, as if it were in memory:
 * plain binary search in an array of records. Only what the search touches is fetched. Each look-up
 * is counted in the record itself, in place, and the counts are flushed to the far side.
 *
 *   lookup SPEC WORDS        WORDS: a file with a word per line; the index is what make-index made
 *
 * Prints an answer per word, then what it took: a name, a tab and a number per line.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <remora/remora.h>

#define WORDS_MAX 1000u
#define THREADS 16u /* look-ups at the same time: each waits for its own pages only */

struct record {
	char word[48];
	uint64_t lookups, offset;
	char file[192];
};

struct search {
	struct record *records;
	size_t count;
	char words[WORDS_MAX][64];
	size_t word_count;
	atomic_size_t next, answered;
	struct record *found[WORDS_MAX];
	double start, first, last; /* seconds */
	pthread_mutex_t lock;	   /* first, last, and the output */
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* The first record with that word, or NULL. It does not know that the records are far away. */
static struct record *find(struct record *records, size_t count, const char *word)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (strncmp(records[middle].word, word, sizeof(records->word)) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == count || strncmp(records[low].word, word, sizeof(records->word)) != 0)
		return NULL;
	return &records[low];
}

static void *worker(void *arg)
{
	struct search *s = arg;
	size_t i;

	while ((i = atomic_fetch_add(&s->next, 1)) < s->word_count) {
		struct record *r = find(s->records, s->count, s->words[i]);
		s->found[i] = r;
		pthread_mutex_lock(&s->lock);
		s->last = now() - s->start;
		if (atomic_fetch_add(&s->answered, 1) == 0)
			s->first = s->last;
		if (r)
			printf("%-24s %s, byte %llu\n", r->word, r->file,
			       (unsigned long long)r->offset);
		else
			printf("%-24s is not in the index\n", s->words[i]);
		pthread_mutex_unlock(&s->lock);
	}
	return NULL;
}

static int words_read(struct search *s, const char *path)
{
	FILE *f = fopen(path, "r");

	if (!f) {
		perror(path);
		return -1;
	}
	while (s->word_count < WORDS_MAX &&
	       fgets(s->words[s->word_count], sizeof(s->words[0]), f)) {
		s->words[s->word_count][strcspn(s->words[s->word_count], "\n")] = 0;
		s->word_count++;
	}
	fclose(f);
	return 0;
}

int main(int argc, char **argv)
{
	static struct search s = { .lock = PTHREAD_MUTEX_INITIALIZER };
	pthread_t threads[THREADS];
	struct remora_status status;
	struct remora_error e;
	struct remora *r;

	if (argc != 3) {
		fprintf(stderr, "usage: lookup SPEC WORDS\n");
		return 2;
	}
	if (words_read(&s, argv[2]) < 0)
		return 1;

	s.start = now();
	if (remora_open(&r, argv[1], NULL, &e) < 0) {
		fprintf(stderr, "lookup: %s\n", e.text);
		return 1;
	}
	double opened = now() - s.start;
	s.records = remora_data(r);
	s.count = remora_size(r) / sizeof(struct record);

	for (size_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, worker, &s) != 0)
			abort();
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);

	size_t found = 0;
	for (size_t i = 0; i < s.word_count; i++) {
		if (s.found[i]) {
			s.found[i]->lookups++; /* a write to memory: Remora notices by itself */
			found++;
		}
	}
	double before = now();
	int err = remora_flush(r);
	double flushed = now() - before;
	remora_status(r, &status);
	if (err < 0)
		fprintf(stderr, "lookup: flush: %s: %s\n", strerror(-err), status.last_error_text);
	int close_err = remora_close(r);

	printf("found\t%zu\nopen_s\t%.3f\nfirst_s\t%.3f\nlast_s\t%.3f\nflush_s\t%.3f\n", found,
	       opened, s.first, s.last, flushed);
	printf("pulled_bytes\t%llu\npushed_bytes\t%llu\n", (unsigned long long)status.pulled_bytes,
	       (unsigned long long)status.pushed_bytes);
	return err < 0 || close_err < 0 || found != s.word_count;
}
