/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, times, rates and numbers as text: any text is accepted with a value or refused with an
 * error text. */
#include "base/size.h"
#include "fuzz.h"

#include <errno.h>

static void refused(int r, const struct err *e)
{
	MUST(r == -EINVAL || r == -ERANGE);
	MUST(e->code == r);
	MUST(e->text[0] && memchr(e->text, 0, sizeof(e->text)));
}

/* What is formatted is short and is text; whole bytes come back as they were. */
static void formatted(uint64_t value)
{
	char text[SIZE_TEXT_MAX];
	uint64_t again = 0;

	MUST(strlen(size_format(value, text)) > 2);
	MUST(strlen(time_format(value, text)) > 2);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	MUST(!size_parse(text, &again, NULL) && again == value);
	MUST(!number_parse(text, 0, UINT64_MAX, &again, NULL) && again == value);
	MUST(!rate_parse(text, &again, NULL) && again == value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = fuzz_text(data, size);
	uint64_t v = 0;
	struct err e;
	int r;

	if (!(r = size_parse(text, &v, &e)))
		formatted(v);
	else
		refused(r, &e);
	if (!(r = time_parse(text, &v, &e)))
		formatted(v);
	else
		refused(r, &e);
	if (!(r = rate_parse(text, &v, &e)))
		formatted(v);
	else
		refused(r, &e);
	if (!(r = number_parse(text, 5, 1000000, &v, &e)))
		MUST(v >= 5 && v <= 1000000);
	else
		refused(r, &e);
	free(text);
	return 0;
}
