/* SPDX-License-Identifier: Apache-2.0 */
/* The base layer: sizes and times as text, ranges, bitmaps, lists, histograms, randomness, errors,
 * logs. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/env.h"
#include "base/hist.h"
#include "base/limits.h"
#include "base/list.h"
#include "base/range.h"
#include "base/size.h"

struct text_value {
	const char *text;
	uint64_t value;
};

static void sizes_are_powers_of_1024(void **state)
{
	static const struct text_value good[] = {
		{ "0", 0 },
		{ "4096", 4096 },
		{ "17B", 17 },
		{ "64K", 64 * KIB },
		{ "64KiB", 64 * KIB },
		{ "1M", MIB },
		{ "1.5G", 3 * GIB / 2 },
		{ "0.5K", 512 },
		{ "2T", 2 * TIB },
		{ "3P", 3 * 1024 * TIB },
		{ "18446744073709551615", UINT64_MAX },
	};
	struct err e;
	uint64_t v;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		v = 1;
		assert_int_equal(size_parse(good[i].text, &v, &e), 0);
		assert_int_equal(v, good[i].value);
	}
}

static void a_bad_size_is_refused_with_a_text(void **state)
{
	static const char *const bad[] = { "", " ", "K", "-1", "+1", "1 K", "1X", "1kB", "1.",
		".5K", "1.5", "0x10", "1K ",
					   "64KK", "1e3", "1.2.3K" };
	static const char *const too_big[] = { "18446744073709551615K", "16384P", "0.3K", "18000000000G" };
	struct err e;
	uint64_t v;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		e = (struct err){ 0 };
		assert_true(size_parse(bad[i], &v, &e) < 0);
		assert_true(e.code < 0);
		assert_non_null(strstr(e.text, bad[i]));
	}
	for (size_t i = 0; i < ARRAY_LEN(too_big); i++)
		assert_int_equal(size_parse(too_big[i], &v, &e), -ERANGE);
	assert_int_equal(size_parse("18446744073709551616", &v, &e), -EINVAL);
	assert_true(size_parse("x", &v, NULL) < 0); /* no text wanted */
}

static void times_need_a_unit(void **state)
{
	static const struct text_value good[] = {
		{ "0", 0 },		  { "0s", 0 },
		{ "5ns", 5 },		  { "500us", 500 * NS_PER_US },
		{ "25ms", 25 * NS_PER_MS }, { "1.5s", 1500 * NS_PER_MS },
		{ "5m", 300 * NS_PER_S }, { "1h", 3600 * NS_PER_S },
		{ "0.000000001s", 1 },
	};
	static const char *const bad[] = { "", "25", "1.5", "25 ms", "-1s", "1d", "ms", "1.5ns", "99999999999h", "s" };
	struct err e;
	uint64_t v;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(time_parse(good[i].text, &v, &e), 0);
		assert_int_equal(v, good[i].value);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_true(time_parse(bad[i], &v, &e) < 0);
}

static void rates_are_bytes_or_bits(void **state)
{
	static const struct text_value good[] = {
		{ "100M", 100 * MIB },	    { "4096", 4096 },	       { "200Mbit", 25000000 },
		{ "10Gbit", 1250000000 },   { "1.5Mbit", 187500 },     { "8bit", 1 },
	};
	static const char *const bad[] = { "", "Mbit", "10Mb", "-1M", "1Mbit/s", "99999999999999999Gbit" };
	struct err e;
	uint64_t v;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(rate_parse(good[i].text, &v, &e), 0);
		assert_int_equal(v, good[i].value);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_true(rate_parse(bad[i], &v, &e) < 0);
}

static void numbers_are_bounded(void **state)
{
	struct err e;
	uint64_t v;

	(void)state;
	assert_int_equal(number_parse("7", 1, 10, &v, &e), 0);
	assert_int_equal(v, 7);
	assert_int_equal(number_parse("1", 1, 1, &v, &e), 0);
	assert_int_equal(number_parse("11", 1, 10, &v, &e), -ERANGE);
	assert_non_null(strstr(e.text, "10"));
	assert_int_equal(number_parse("0", 1, 10, &v, &e), -ERANGE);
	assert_true(number_parse("7K", 1, 10, &v, &e) < 0);
	assert_true(number_parse("7.0", 1, 10, &v, &e) < 0);
	assert_true(number_parse("", 0, 10, &v, &e) < 0);
	assert_true(number_parse("99999999999999999999", 0, UINT64_MAX, &v, &e) < 0);
}

static void a_range_is_two_offsets_an_offset_and_a_length_or_a_length(void **state)
{
	static const char *const bad[] = { "",	   "-",	   "+",	    "1M-",   "-1M",    "+1M",  "1M+",
					   "1M-2X", "X+1M", "1-2-3", "1 - 2", "1M:2M", "all" };
	static const struct {
		const char *text;
		struct range range;
	} good[] = {
		{ "64M", { 0, 64 * MIB } },
		{ "1M-2M", { MIB, MIB } },
		{ "0-1", { 0, 1 } },
		{ "1G+64K", { GIB, 64 * KIB } },
		{ "0.5K+1.5K", { 512, 3 * KIB / 2 } },
		{ "0-18446744073709551615", { 0, UINT64_MAX } },
		{ "18446744073709551614+1", { UINT64_MAX - 1, 1 } },
	};
	struct range r = { 0 };
	struct err e;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(range_parse(good[i].text, &r, &e), 0);
		assert_int_equal(r.off, good[i].range.off);
		assert_int_equal(r.len, good[i].range.len);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(range_parse(bad[i], &r, &e), -EINVAL);
		assert_non_null(strstr(e.text, "1G-2G"));
	}
	assert_int_equal(range_parse("2M-1M", &r, &e), -ERANGE);
	assert_int_equal(range_parse("18446744073709551615+1", &r, &e), -ERANGE); /* wraps */
	assert_int_equal(range_parse("0", &r, &e), -EINVAL);			    /* empty */
	assert_int_equal(range_parse("1M-1M", &r, &e), -EINVAL);
	assert_int_equal(range_parse("1M+0", &r, NULL), -EINVAL);
}

static void sizes_and_times_are_printed_short(void **state)
{
	char buf[SIZE_TEXT_MAX];

	(void)state;
	assert_string_equal(size_format(17, buf), "17 B");
	assert_string_equal(size_format(64 * KIB, buf), "64 KiB");
	assert_string_equal(size_format(3 * GIB / 2, buf), "1.50 GiB");
	assert_true(strlen(size_format(UINT64_MAX, buf)) < SIZE_TEXT_MAX);
	assert_string_equal(time_format(25 * NS_PER_MS, buf), "25 ms");
	assert_string_equal(time_format(0, buf), "0 ns");
	assert_true(strlen(time_format(UINT64_MAX, buf)) < SIZE_TEXT_MAX);
}

static void ranges_do_not_wrap(void **state)
{
	(void)state;
	assert_true(range_valid(range_of(UINT64_MAX, 0)));
	assert_false(range_valid(range_of(UINT64_MAX, 1)));
	assert_true(range_within(range_of(10, 0), 10));
	assert_true(range_within(range_of(0, 10), 10));
	assert_false(range_within(range_of(1, 10), 10));
	assert_false(range_within(range_of(11, 0), 10));
	assert_false(range_within(range_of(5, UINT64_MAX), 10));
	assert_false(range_within(range_of(UINT64_MAX, UINT64_MAX), UINT64_MAX));
}

static void ranges_cut_overlap_and_contain(void **state)
{
	struct range cut;

	(void)state;
	assert_true(range_overlaps(range_of(0, 10), range_of(9, 1)));
	assert_false(range_overlaps(range_of(0, 10), range_of(10, 1)));
	assert_false(range_overlaps(range_of(0, 10), range_of(5, 0)));
	assert_true(range_contains(range_of(0, 10), range_of(0, 10)));
	assert_false(range_contains(range_of(1, 10), range_of(0, 10)));
	assert_false(range_contains(range_of(0, 10), range_of(5, 6)));
	cut = range_cut(range_of(0, 10), range_of(5, 10));
	assert_int_equal(cut.off, 5);
	assert_int_equal(cut.len, 5);
	assert_int_equal(range_cut(range_of(0, 5), range_of(7, 2)).len, 0);
}

static void alignment_covers_the_range(void **state)
{
	struct range r = range_align_out(range_of(4095, 2), 4096);

	(void)state;
	assert_int_equal(r.off, 0);
	assert_int_equal(r.len, 8192);
	assert_int_equal(align_up(0, 4096), 0);
	assert_int_equal(align_up(1, 4096), 4096);
	assert_int_equal(align_down(8191, 4096), 4096);
	assert_true(is_pow2(1) && is_pow2(1ULL << 63));
	assert_false(is_pow2(0) || is_pow2(6));
	assert_int_equal(log2_u64(1), 0);
	assert_int_equal(log2_u64(65536), 16);
	assert_int_equal(log2_u64(UINT64_MAX), 63);
}

#define BITS 300u

/* Against an array of bools, at every pair of places. */
static void bitmap_ranges_equal_a_plain_array(void **state)
{
	(void)state;
	for (size_t first = 0; first < BITS; first += 7) {
		for (size_t count = 0; first + count <= BITS; count += 13) {
			uint64_t w[BITMAP_WORDS(BITS)] = { 0 }, x[BITMAP_WORDS(BITS)];
			size_t next_set = count ? first : BITS, end = first + count;

			bitmap_set_range(w, first, count);
			for (size_t i = 0; i < BITS; i++)
				assert_int_equal(bitmap_get(w, i), i >= first && i < end);
			assert_int_equal(bitmap_count(w, BITS), count);
			assert_int_equal(bitmap_next_set(w, BITS, 0), next_set);
			assert_int_equal(bitmap_next_clear(w, BITS, first), first + count);
			memset(x, 0xff, sizeof(x));
			bitmap_clear_range(x, first, count);
			for (size_t i = 0; i < BITS; i++)
				assert_int_equal(!bitmap_get(x, i), i >= first && i < end);
			assert_int_equal(bitmap_count(x, BITS), BITS - count);
			assert_int_equal(bitmap_next_clear(x, BITS, 0), next_set);
			assert_int_equal(bitmap_next_set(x, BITS, first), first + count);
		}
	}
}

static void bitmap_searches_end_at_the_end(void **state)
{
	uint64_t w[2] = { 0, 0 };

	(void)state;
	bitmap_set(w, 100); /* behind the end of the first three */
	assert_int_equal(bitmap_next_set(w, 100, 0), 100);
	assert_int_equal(bitmap_next_set(w, 64, 0), 64);
	assert_int_equal(bitmap_count(w, 100), 0);
	assert_int_equal(bitmap_next_set(w, 128, 100), 100);
	assert_int_equal(bitmap_next_set(w, 128, 101), 128);
	assert_int_equal(bitmap_next_set(w, 128, 128), 128);
	bitmap_clear(w, 100);
	assert_int_equal(bitmap_next_set(w, 128, 0), 128);
	memset(w, 0xff, sizeof(w));
	assert_int_equal(bitmap_next_clear(w, 70, 0), 70);
}

struct item {
	int id;
	struct link link;
};

static unsigned list_digits(struct list *l)
{
	unsigned digits = 0;

	LIST_EACH (k, l)
		digits = digits * 10 + (unsigned)LIST_ENTRY(k, struct item, link)->id;
	return digits;
}

static void lists_keep_order_and_may_lose_the_current_entry(void **state)
{
	struct item item[6] = { 0 };
	struct list l, m;

	(void)state;
	list_init(&l);
	list_init(&m);
	assert_true(list_empty(&l));
	assert_null(list_pop_front(&l));
	for (int i = 1; i < 6; i++) {
		item[i].id = i;
		list_push_back(i < 4 ? &l : &m, &item[i].link);
	}
	list_splice_back(&l, &m);
	assert_true(list_empty(&m));
	list_splice_back(&l, &m); /* nothing */
	assert_int_equal(list_digits(&l), 12345);
	LIST_EACH (k, &l) {
		if (LIST_ENTRY(k, struct item, link)->id % 2)
			link_remove(k);
	}
	assert_int_equal(list_digits(&l), 24);
	link_remove(&item[1].link); /* in no list: nothing */
	list_push_front(&l, &item[5].link);
	assert_int_equal(list_digits(&l), 524);
	assert_ptr_equal(list_pop_front(&l), &item[5].link);
	assert_false(link_linked(&item[5].link));
}

static void percentiles_are_right_within_nine_percent(void **state)
{
	static struct hist h, sum;
	static const double percents[] = { 1, 10, 50, 90, 99 };

	(void)state;
	memset(&h, 0, sizeof(h));
	memset(&sum, 0, sizeof(sum));
	assert_int_equal(hist_percentile(&h, 50), 0);
	for (uint64_t i = 1; i <= 100000; i++)
		hist_add(&h, i * 10);
	for (size_t i = 0; i < ARRAY_LEN(percents); i++) {
		double want = percents[i] * 10000, got = (double)hist_percentile(&h, percents[i]);

		assert_true(got > want * 0.87 && got < want * 1.13);
	}
	assert_int_equal(h.min_ns, 10);
	assert_int_equal(h.max_ns, 1000000);
	hist_add(&h, 0);
	hist_add(&h, UINT64_MAX);
	assert_int_equal(hist_percentile(&h, 0), 0);
	hist_merge(&sum, &h);
	hist_merge(&sum, &h);
	assert_int_equal(sum.count, 2 * h.count);
	assert_int_equal(hist_percentile(&sum, 50), hist_percentile(&h, 50));
}

static void the_same_seed_gives_the_same_numbers(void **state)
{
	struct rng a, b;
	unsigned char x[13], y[13];

	(void)state;
	rng_init(&a, 0);
	assert_true(rng_next(&a) == 0xe220a8397b1dcdafULL); /* splitmix64's reference value */
	rng_init(&a, 42);
	rng_init(&b, 42);
	rng_fill(&a, x, sizeof(x));
	rng_fill(&b, y, sizeof(y));
	assert_memory_equal(x, y, sizeof(x));
	for (unsigned i = 0; i < 1000; i++) {
		uint64_t v = rng_below(&a, 7);

		assert_true(v < 7);
		assert_int_equal(v, rng_below(&b, 7));
	}
	assert_int_equal(rng_below(&a, 0), 0);
	assert_false(rng_chance(&a, 0));
	assert_true(rng_chance(&a, 1000000));
	assert_true(rng_system() != rng_system());
}

static void errors_carry_a_code_and_a_text_that_fits(void **state)
{
	char long_text[2 * ERR_TEXT_MAX];
	struct err e = { 0 };

	(void)state;
	assert_int_equal(err_set(&e, -EINVAL, "no %s", "way"), -EINVAL);
	assert_string_equal(e.text, "no way");
	assert_int_equal(err_prefix(&e, "opening %d", 7), -EINVAL);
	assert_string_equal(e.text, "opening 7: no way");
	assert_int_equal(err_sys(&e, -ENOENT, "file"), -ENOENT);
	assert_string_equal(e.text, "file: No such file or directory");
	assert_int_equal(e.code, -ENOENT);
	assert_int_equal(err_set(NULL, -EIO, "unread"), -EIO);
	memset(long_text, 'x', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = '\0';
	err_sys(&e, -EIO, "%s", long_text);
	err_prefix(&e, "%s", long_text);
	assert_true(strlen(e.text) < ERR_TEXT_MAX);
}

static void count_line(void *arg, enum log_level level, const char *text)
{
	unsigned *lines = arg;

	assert_int_equal(level, LOG_WARN);
	assert_string_equal(text, "seven 7");
	(*lines)++;
}

static void unimportant_lines_are_not_emitted(void **state)
{
	unsigned lines = 0;
	struct log log = { count_line, &lines, LOG_WARN }, silent = { 0 };

	(void)state;
	log_warn(&log, "seven %d", 7);
	log_info(&log, "eight");
	log_warn(&silent, "nine");
	assert_int_equal(lines, 1);
}

static int fail_at_b(void *arg, const char *point)
{
	(void)arg;
	return strcmp(point, "b") == 0 ? -EIO : 0;
}

static void an_env_has_a_clock_and_fault_points(void **state)
{
	struct env env;
	uint64_t before;

	(void)state;
	env_init(&env);
	before = env_now(&env);
	assert_true(before > 0 && env_now(&env) >= before);
	assert_int_equal(env_fault(&env, "a"), 0);
	env.fault = fail_at_b;
	assert_int_equal(env_fault(&env, "a"), 0);
	assert_int_equal(env_fault(&env, "b"), -EIO);
}

static char *made(void)
{
	AUTO_FREE char *p = strdup("kept");

	return TAKE_PTR(p);
}

static void what_is_taken_is_not_cleaned_up(void **state)
{
	AUTO_FREE char *p = made();
	AUTO_FD int fd = -1;

	(void)state;
	assert_string_equal(p, "kept");
	assert_int_equal(TAKE_FD(fd), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_are_powers_of_1024),
		cmocka_unit_test(a_bad_size_is_refused_with_a_text),
		cmocka_unit_test(times_need_a_unit),
		cmocka_unit_test(rates_are_bytes_or_bits),
		cmocka_unit_test(numbers_are_bounded),
		cmocka_unit_test(a_range_is_two_offsets_an_offset_and_a_length_or_a_length),
		cmocka_unit_test(sizes_and_times_are_printed_short),
		cmocka_unit_test(ranges_do_not_wrap),
		cmocka_unit_test(ranges_cut_overlap_and_contain),
		cmocka_unit_test(alignment_covers_the_range),
		cmocka_unit_test(bitmap_ranges_equal_a_plain_array),
		cmocka_unit_test(bitmap_searches_end_at_the_end),
		cmocka_unit_test(lists_keep_order_and_may_lose_the_current_entry),
		cmocka_unit_test(percentiles_are_right_within_nine_percent),
		cmocka_unit_test(the_same_seed_gives_the_same_numbers),
		cmocka_unit_test(errors_carry_a_code_and_a_text_that_fits),
		cmocka_unit_test(unimportant_lines_are_not_emitted),
		cmocka_unit_test(an_env_has_a_clock_and_fault_points),
		cmocka_unit_test(what_is_taken_is_not_cleaned_up),
	};

	return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
