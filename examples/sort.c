/* SPDX-License-Identifier: Apache-2.0 */
/* sort SPEC [BUDGET_MIB]: sorts a remote file of 64-byte records, as an array in memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <remora/remora.h>

typedef struct { char bytes[64]; } record;

static void sort(record *first, record *end)
{
	while (end - first > 1) {
		record *i = first, *j = end - 1, pivot = first[(end - first) / 2], swap;
		while (i <= j) {
			while (memcmp(i, &pivot, sizeof(pivot)) < 0) i++;
			while (memcmp(j, &pivot, sizeof(pivot)) > 0) j--;
			if (i <= j) swap = *i, *i++ = *j, *j-- = swap;
		}
		sort(first, j + 1);
		first = i;
	}
}

int main(int argc, char **argv)
{
	unsigned long long budget = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
	struct remora_options options = { .budget = budget << 20 };
	struct remora_error error = { .text = "usage: sort SPEC [BUDGET_MIB]" };
	struct remora *r;

	if (argc < 2 || remora_open(&r, argv[1], &options, &error) < 0)
		return fprintf(stderr, "sort: %s\n", error.text), 1;
	sort(remora_data(r), (record *)remora_data(r) + remora_size(r) / sizeof(record));
	int err = remora_close(r); /* flushes */
	return err < 0 ? fprintf(stderr, "sort: flushing: %s\n", strerror(-err)), 1 : 0;
}
