/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The main() of a fuzz target that is built without libFuzzer: gives it every file of the folders
 * that are named, in the order of their names. So whatever a fuzzer has found once is tested in
 * every run, with any compiler.
 */
#include <dirent.h>

#include "fuzz.h"

static void file_replay(const char *path)
{
	FILE *f = fopen(path, "rbe");
	uint8_t *data = NULL;
	size_t size = 0, n;

	MUST(f);
	do {
		data = realloc(data, size + 65536);
		MUST(data);
		n = fread(data + size, 1, 65536, f);
		size += n;
	} while (n);
	MUST(!ferror(f));
	fclose(f);
	LLVMFuzzerTestOneInput(data, size);
	free(data);
}

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

int main(int argc, char **argv)
{
	int count = 0;

	for (int i = 1; i < argc; i++) {
		struct dirent **entry = NULL;
		int n = scandir(argv[i], &entry, is_visible, alphasort);

		for (int k = 0; k < n; k++) {
			char path[4096];

			snprintf(path, sizeof(path), "%s/%s", argv[i], entry[k]->d_name);
			file_replay(path);
			free(entry[k]);
			count++;
		}
		free(entry);
	}
	printf("%d inputs\n", count);
	if (!count)
		fprintf(stderr, "no inputs: is the corpus there?\n");
	return count ? 0 : 1;
}
