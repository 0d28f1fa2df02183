/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks at what examples/sort.c did, for tests/integration/examples.sh.
 *
 *   records FILE         "sorted" or "unsorted", and a number that any order of the same records
 *                        gives
 *   records --peak CMD   runs a command; its exit status, and the most bytes that it had resident
 *
 * Records are 64 bytes, in the order of memcmp(). The number is the sum of a hash of each record,
 * so that a record that is there twice, or not at all, changes it. Locking: none.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define RECORD 64u

static uint64_t record_hash(const uint8_t *r)
{
	uint64_t h = 0xcbf29ce484222325u, word;

	for (unsigned i = 0; i < RECORD; i += 8) {
		memcpy(&word, r + i, 8);
		h = (h ^ word) * 0x9e3779b97f4a7c15u;
		h ^= h >> 29;
	}
	return h;
}

static int file_look(const char *path)
{
	static uint8_t buf[1 << 20];
	uint8_t last[RECORD] = { 0 };
	FILE *f = fopen(path, "r");
	uint64_t sum = 0;
	int sorted = 1;
	size_t n;

	if (!f) {
		perror(path);
		return 1;
	}
	while ((n = fread(buf, RECORD, sizeof(buf) / RECORD, f)) > 0) {
		for (size_t i = 0; i < n; i++) {
			sorted &= memcmp(last, buf + i * RECORD, RECORD) <= 0;
			memcpy(last, buf + i * RECORD, RECORD);
			sum += record_hash(last);
		}
	}
	fclose(f);
	printf("%s %016llx\n", sorted ? "sorted" : "unsorted", (unsigned long long)sum);
	return 0;
}

static int peak_run(char **argv)
{
	struct rusage usage;
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		execvp(argv[0], argv);
		perror(argv[0]);
		_exit(127);
	}
	if (pid < 0 || wait4(pid, &status, 0, &usage) < 0)
		return 1;
	printf("%d %llu\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
	       (unsigned long long)usage.ru_maxrss << 10);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 2 && strcmp(argv[1], "--peak") == 0)
		return peak_run(argv + 2);
	return argc == 2 ? file_look(argv[1]) : 2;
}
