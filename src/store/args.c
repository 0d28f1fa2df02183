/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The values of a spec's options: checked against a kind's usage before anything is opened, then
 * read one by one by its open function.
 *
 * Invariant: what spec_check_options() has accepted, spec_get_*() of the same type accepts.
 *
 * Locking: none; set-up code.
 */
#include <errno.h>
#include <string.h>

#include "base/size.h"
#include "store/spec.h"

/* One option of a usage line. */
struct usage_key {
	const char *key, *type;
	size_t key_len, type_len;
	bool required;
};

static bool is_key_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

/* The next "key=TYPE" at or after *at; false at the end. */
static bool usage_next(const char **at, size_t *depth, struct usage_key *ret)
{
	for (const char *p = *at; *p; p++) {
		const char *start = p;

		if (*p == '[')
			(*depth)++;
		else if (*p == ']' && *depth)
			(*depth)--;
		while (is_key_char(*p))
			p++;
		if (p > start && *p == '=') {
			ret->key = start;
			ret->key_len = (size_t)(p - start);
			ret->type = p + 1;
			ret->type_len = strspn(ret->type, "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
			ret->required = !*depth;
			*at = ret->type + ret->type_len;
			return true;
		}
		if (p > start)
			p--;
	}
	return false;
}

static bool usage_find(const char *usage, const char *key, struct usage_key *ret)
{
	size_t depth = 0;

	while (usage_next(&usage, &depth, ret))
		if (strlen(key) == ret->key_len && !memcmp(key, ret->key, ret->key_len))
			return true;
	return false;
}

static int bool_parse(const char *text, bool *ret, struct err *e)
{
	if (!strcmp(text, "1") || !strcmp(text, "yes"))
		*ret = true;
	else if (!strcmp(text, "0") || !strcmp(text, "no"))
		*ret = false;
	else
		return err_set(e, -EINVAL, "'%s' is neither yes (1) nor no (0)", text);
	return 0;
}

static int value_check(const struct usage_key *key, const char *value, struct err *e)
{
	static const char *const types[] = { "SIZE", "TIME", "RATE", "BOOL", "N" };
	uint64_t number;
	size_t type = 0;
	bool flag;

	while (type < ARRAY_LEN(types) &&
	       (strlen(types[type]) != key->type_len ||
		memcmp(types[type], key->type, key->type_len)))
		type++;
	switch (type) {
	case 0:
		return size_parse(value, &number, e);
	case 1:
		return time_parse(value, &number, e);
	case 2:
		return rate_parse(value, &number, e);
	case 3:
		return bool_parse(value, &flag, e);
	case 4:
		return number_parse(value, 0, UINT64_MAX, &number, e);
	default:
		return 0;
	}
}

static int error_value(const struct spec *spec, const struct spec_option *o, struct err *e,
		       const struct err *why)
{
	return spec_error(spec, o->at, e, "option '%s': %s", o->key, why->text);
}

static const struct spec_option *option_find(const struct spec_part *part, const char *key,
					     size_t len)
{
	for (size_t i = 0; i < part->options; i++)
		if (strlen(part->option[i].key) == len && !memcmp(part->option[i].key, key, len))
			return &part->option[i];
	return NULL;
}

/* Where the text of a part ends, for what is missing there. */
static size_t part_text_end(const struct spec *spec, const struct spec_part *part)
{
	return part + 1 < spec->part + spec->parts ? part[1].at - 1 : strlen(spec->text);
}

int spec_check_options(const struct spec *spec, const struct spec_part *part,
		       const struct store_kind *kind,
		       struct err *e)
{
	const char *usage = kind->usage;
	struct usage_key key;
	size_t depth = 0;

	for (size_t i = 0; i < part->options; i++) {
		const struct spec_option *o = &part->option[i];
		struct err why;

		if (!usage_find(kind->usage, o->key, &key))
			return spec_error(spec, o->key_at, e, "%s has no option '%s': %s", kind->name,
					  o->key, kind->usage);
		if (value_check(&key, o->value, &why))
			return error_value(spec, o, e, &why);
	}
	while (usage_next(&usage, &depth, &key))
		if (key.required && !option_find(part, key.key, key.key_len))
			return spec_error(spec, part_text_end(spec, part), e, "option '%.*s' is missing: %s",
					  (int)key.key_len, key.key, kind->usage);
	return 0;
}

/* ---- for open functions ---- */

static struct spec_option *option_take(struct spec_args *a, const char *key)
{
	for (size_t i = 0; i < a->part->options; i++) {
		struct spec_option *o = &a->part->option[i];

		if (!strcmp(o->key, key)) {
			o->used = true;
			return o;
		}
	}
	return NULL;
}

int spec_get_size(struct spec_args *a, const char *key, uint64_t *ret)
{
	struct spec_option *o = option_take(a, key);
	struct err why;

	return o && size_parse(o->value, ret, &why) ? error_value(a->spec, o, a->e, &why) : 0;
}

int spec_get_time(struct spec_args *a, const char *key, uint64_t *ret_ns)
{
	struct spec_option *o = option_take(a, key);
	struct err why;

	return o && time_parse(o->value, ret_ns, &why) ? error_value(a->spec, o, a->e, &why) : 0;
}

int spec_get_rate(struct spec_args *a, const char *key, uint64_t *ret_bytes_per_s)
{
	struct spec_option *o = option_take(a, key);
	struct err why;

	return o && rate_parse(o->value, ret_bytes_per_s, &why) ?
		error_value(a->spec, o, a->e, &why) : 0;
}

int spec_get_number(struct spec_args *a, const char *key, uint64_t min, uint64_t max, uint64_t *ret)
{
	struct spec_option *o = option_take(a, key);
	struct err why;

	return o && number_parse(o->value, min, max, ret, &why) ?
		error_value(a->spec, o, a->e, &why) : 0;
}

int spec_get_bool(struct spec_args *a, const char *key, bool *ret)
{
	struct spec_option *o = option_take(a, key);
	struct err why;

	return o && bool_parse(o->value, ret, &why) ? error_value(a->spec, o, a->e, &why) : 0;
}

int spec_get_text(struct spec_args *a, const char *key, const char **ret)
{
	struct spec_option *o = option_take(a, key);

	if (o)
		*ret = o->value;
	return 0;
}

int spec_options_end(struct spec_args *a)
{
	for (size_t i = 0; i < a->part->options; i++) {
		const struct spec_option *o = &a->part->option[i];

		if (!o->used)
			return spec_error(a->spec, o->key_at, a->e, "%s has no option '%s'", a->part->name, o->key);
	}
	return 0;
}
