/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Specs: any text is split into parts that lie within it, or refused with an error that quotes it.
 * Nothing is opened. The table is the real one, so that the options of every kind are checked too.
 */
#include "store/spec.h"

#include <errno.h>

#include "fuzz.h"

static void refused(int r, const struct err *e)
{
	MUST(r < 0 && e->code == r);
	MUST(e->text[0] && memchr(e->text, 0, sizeof(e->text)));
	MUST(r != -EINVAL || strstr(e->text, "^")); /* the mark under the character */
}

/* Reads every option in every type: whatever the text is, there is an answer. */
static void options_read(struct spec *spec, struct spec_part *part)
{
	struct err e;
	struct spec_args args = { .spec = spec, .part = part, .e = &e };

	for (size_t i = 0; i < part->options; i++) {
		const char *key = part->option[i].key, *text = NULL;
		uint64_t v;
		bool b;

		e.code = 0;
		MUST(!spec_get_size(&args, key, &v) || e.code < 0);
		MUST(!spec_get_time(&args, key, &v) || e.code < 0);
		MUST(!spec_get_rate(&args, key, &v) || e.code < 0);
		MUST(!spec_get_number(&args, key, 1, 100, &v) || e.code < 0);
		MUST(!spec_get_bool(&args, key, &b) || e.code < 0);
		MUST(!spec_get_text(&args, key, &text) && text && *text);
	}
	MUST(!spec_options_end(&args));
}

static void spec_try(const char *text);

static void part_try(struct spec *spec, struct spec_part *part)
{
	const struct store_kind *kind;
	size_t len = strlen(spec->text);
	struct err e;
	int r;

	MUST(part->name && part->rest && *part->name);
	MUST(part->at <= len && part->rest_at <= len);
	MUST(part->options <= SPEC_OPTIONS_MAX);
	for (size_t i = 0; i < part->options; i++)
		MUST(part->option[i].at <= len && part->option[i].key && part->option[i].value);
	kind = store_kind_find(part->name, strlen(part->name));
	MUST(kind);
	MUST(kind->backend == (part == &spec->part[spec->parts - 1]));
	r = spec_check_options(spec, part, kind, &e);
	if (r)
		refused(r, &e);
	options_read(spec, part);
	/* Specs within specs. They get shorter, so that this ends. */
	for (size_t i = 0; i < part->options; i++)
		if (!strcmp(part->option[i].key, "with"))
			spec_try(part->option[i].value);
}

static void spec_try(const char *text)
{
	struct spec spec;
	struct err e;
	int r = spec_parse(text, &spec, &e);

	if (r) {
		refused(r, &e);
		return;
	}
	MUST(!strcmp(spec.text, text));
	MUST(spec.parts >= 1 && spec.parts <= SPEC_STAGES_MAX + 1);
	for (size_t i = 0; i < spec.parts; i++)
		part_try(&spec, &spec.part[i]);
	spec_done(&spec);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = fuzz_text(data, size);

	spec_try(text);
	free(text);
	return 0;
}
