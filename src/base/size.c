/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, times and rates as people write them: see size.h. Decimal fractions are computed in
 * integers. */
#include "base/size.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/limits.h"

struct unit {
	const char *name;
	uint64_t factor;
};

static const struct unit size_units[] = {
	{ "", 1 },	 { "B", 1 },	   { "K", KIB },   { "KiB", KIB },	   { "M", MIB },
	{ "MiB", MIB },	 { "G", GIB },	   { "GiB", GIB }, { "T", TIB },	   { "TiB", TIB },
	{ "P", TIB << 10 }, { "PiB", TIB << 10 }, { "k", KIB },   { "m", MIB },		   { "g", GIB },
	{ "t", TIB },
};

static const struct unit time_units[] = {
	{ "ns", 1 },		{ "us", 1000 },		 { "ms", 1000000 },
	{ "s", 1000000000 },	{ "m", 60000000000ULL }, { "min", 60000000000ULL },
	{ "h", 3600000000000ULL },
};

static const struct unit rate_units[] = {
	{ "bit", 1 }, { "kbit", 1000 }, { "Kbit", 1000 }, { "Mbit", 1000000 }, { "Gbit", 1000000000 },
};

static const struct unit *unit_find(const struct unit *units, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(units[i].name, name))
			return &units[i];
	return NULL;
}

/* "12.5Xyz": digits in *ret_whole and *ret_part (of 10^*ret_digits); returns where the unit begins,
 * NULL = no number. */
static const char *decimal_scan(const char *s, uint64_t *ret_whole, uint64_t *ret_part,
				uint64_t *ret_scale)
{
	const char *p = s;

	*ret_whole = *ret_part = 0;
	*ret_scale = 1;
	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(*ret_whole, 10u, ret_whole) ||
		    __builtin_add_overflow(*ret_whole, (uint64_t)(*p - '0'), ret_whole))
			return NULL;
	if (p == s)
		return NULL;
	if (*p != '.')
		return p;
	for (p++; *p >= '0' && *p <= '9'; p++) {
		if (*ret_scale >= 1000000000)
			return NULL;
		*ret_part = *ret_part * 10 + (uint64_t)(*p - '0');
		*ret_scale *= 10;
	}
	return *ret_scale > 1 ? p : NULL;
}

static bool scaled(uint64_t whole, uint64_t part, uint64_t scale, uint64_t factor, uint64_t *ret)
{
	unsigned __int128 v = (unsigned __int128)whole * factor,
			  f = (unsigned __int128)part * factor;

	v += f / scale;
	if (f % scale || v > UINT64_MAX)
		return false;
	*ret = (uint64_t)v;
	return true;
}

int size_parse(const char *text, uint64_t *ret_bytes, struct err *e)
{
	uint64_t whole, part, scale;
	const char *rest = decimal_scan(text, &whole, &part, &scale);
	const struct unit *u = rest ? unit_find(size_units, ARRAY_LEN(size_units), rest) : NULL;

	if (!u)
		return err_set(e, -EINVAL, "'%s' is not a size: write 4096, 64K, 1M, 2G or 1T", text);
	if (!scaled(whole, part, scale, u->factor, ret_bytes))
		return err_set(e, -ERANGE, "'%s' is not a whole number of bytes that fits", text);
	return 0;
}

int time_parse(const char *text, uint64_t *ret_ns, struct err *e)
{
	uint64_t whole, part, scale;
	const char *rest = decimal_scan(text, &whole, &part, &scale);
	const struct unit *u = rest ? unit_find(time_units, ARRAY_LEN(time_units), rest) : NULL;

	if (rest && !*rest && !whole && !part) {
		*ret_ns = 0;
		return 0;
	}
	if (!u)
		return err_set(e, -EINVAL, "'%s' is not a time: write 500us, 25ms, 60s, 5m or 1h", text);
	if (!scaled(whole, part, scale, u->factor, ret_ns))
		return err_set(e, -ERANGE, "'%s' is too long a time", text);
	return 0;
}

int rate_parse(const char *text, uint64_t *ret_bytes_per_s, struct err *e)
{
	uint64_t whole, part, scale, bits;
	const char *rest = decimal_scan(text, &whole, &part, &scale);
	const struct unit *u = rest ? unit_find(rate_units, ARRAY_LEN(rate_units), rest) : NULL;

	if (u) {
		if (!scaled(whole, part, scale, u->factor, &bits))
			return err_set(e, -ERANGE, "'%s' is not a rate that fits", text);
		*ret_bytes_per_s = bits / 8;
		return 0;
	}
	if (size_parse(text, ret_bytes_per_s, NULL))
		return err_set(e, -EINVAL, "'%s' is not a rate: write 100M (bytes per second) or 200Mbit", text);
	return 0;
}

int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct err *e)
{
	uint64_t whole, part, scale;
	const char *rest = decimal_scan(text, &whole, &part, &scale);

	if (!rest || *rest || scale != 1)
		return err_set(e, -EINVAL, "'%s' is not a number", text);
	if (whole < min || whole > max)
		return err_set(e, -ERANGE, "%s is not between %llu and %llu", text, (unsigned long long)min,
			       (unsigned long long)max);
	*ret = whole;
	return 0;
}

int range_parse(const char *text, struct range *ret, struct err *e)
{
	size_t len = strcspn(text, "-+");
	uint64_t first, second;
	char off[SIZE_TEXT_MAX];
	struct range r;

	if (!text[len]) {
		if (size_parse(text, &second, NULL))
			goto bad;
		r = range_of(0, second);
	} else {
		if (len >= sizeof(off))
			goto bad;
		memcpy(off, text, len);
		off[len] = '\0';
		if (size_parse(off, &first, NULL) || size_parse(text + len + 1, &second, NULL))
			goto bad;
		if (text[len] == '-' && second < first)
			return err_set(e, -ERANGE, "'%s' ends before it begins", text);
		r = text[len] == '-' ? range_between(first, second) : range_of(first, second);
	}
	if (!range_valid(r))
		return err_set(e, -ERANGE, "'%s' is too long a range", text);
	if (!r.len)
		return err_set(e, -EINVAL, "'%s' is an empty range", text);
	*ret = r;
	return 0;
bad:
	return err_set(e, -EINVAL, "'%s' is not a range: write 1G-2G, 1G+64M or 64M", text);
}

static const char *format_scaled(double v, const char *unit, char *buf)
{
	if (v < 9.995 && v != (double)(uint64_t)v)
		snprintf(buf, SIZE_TEXT_MAX, "%.2f %s", v, unit);
	else if (v < 99.95 && v != (double)(uint64_t)v)
		snprintf(buf, SIZE_TEXT_MAX, "%.1f %s", v, unit);
	else
		snprintf(buf, SIZE_TEXT_MAX, "%.0f %s", v, unit);
	return buf;
}

const char *size_format(uint64_t bytes, char *buf)
{
	static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
	double v = (double)bytes;
	size_t i = 0;

	for (; v >= 1024 && i + 1 < ARRAY_LEN(names); i++)
		v /= 1024;
	return format_scaled(v, names[i], buf);
}

const char *time_format(uint64_t ns, char *buf)
{
	if (ns < 1000)
		return format_scaled((double)ns, "ns", buf);
	if (ns < 1000000)
		return format_scaled((double)ns / 1e3, "us", buf);
	if (ns < 1000000000)
		return format_scaled((double)ns / 1e6, "ms", buf);
	if (ns < 120 * 1000000000ULL)
		return format_scaled((double)ns / 1e9, "s", buf);
	return format_scaled((double)ns / 6e10, "min", buf);
}
