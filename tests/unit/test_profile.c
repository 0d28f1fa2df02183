/* SPDX-License-Identifier: Apache-2.0 */
/* Profiles: their text, the sets of ranges below them, recording, and pulling what was recorded. */
#include "region_rig.h"

#include "base/rangeset.h"
#include "region/profile.h"

#define HEAD "remora-profile 1\n"

/* ---- sets of ranges ---- */

struct model {
	uint8_t has[512], found[512];
	uint64_t last;
};

static void part_found(void *arg, struct range part)
{
	struct model *m = arg;

	assert_true(part.len && part.off >= m->last);
	m->last = range_end(part);
	for (uint64_t i = part.off; i < range_end(part); i++) {
		assert_false(m->has[i]);
		m->found[i] = 1;
	}
}

static void model_check(const struct rangeset *s, const struct model *m)
{
	uint32_t count = 0;

	for (uint64_t at = 0;;) {
		struct range r = rangeset_next(s, at);

		for (uint64_t i = at; i < (r.len ? r.off : 512); i++)
			assert_false(m->has[i]);
		if (!r.len)
			break;
		for (uint64_t i = r.off; i < range_end(r); i++)
			assert_true(m->has[i]);
		assert_true(range_end(r) == 512 || !m->has[range_end(r)]);
		at = range_end(r);
		count++;
	}
	assert_int_equal(s->count, count);
}

static void a_set_of_ranges_is_the_set_of_their_bytes(void **state)
{
	struct rangeset s;
	struct model m;
	struct rng rng;

	(void)state;
	for (uint64_t seed = 1; seed <= 200; seed++) {
		rng_init(&rng, seed);
		assert_int_equal(rangeset_init(&s, seed % 5 ? 300 : 20), 0);
		memset(&m, 0, sizeof(m));
		for (unsigned i = 0; i < 150; i++) {
			uint64_t off = rng_below(&rng, 512);
			uint64_t len = rng_below(&rng, MIN(512 - off, 1 + i / 4) + 1);
			struct range r = range_of(off, len);
			bool all = true;
			int err;

			for (uint64_t b = off; b < range_end(r); b++)
				all = all && m.has[b];
			assert_int_equal(rangeset_has(&s, r), all);
			memset(m.found, 0, sizeof(m.found));
			m.last = 0;
			err = rangeset_add(&s, r, part_found, &m);
			assert_true(!err || (err == -ENOSPC && s.count == 20));
			for (uint64_t b = 0; b < 512; b++) {
				bool in = b >= off && b < range_end(r);

				assert_int_equal(m.found[b], !err && in && !m.has[b]);
				m.has[b] |= !err && in;
			}
		}
		model_check(&s, &m);
		rangeset_done(&s);
	}
}

/* ---- the text ---- */

static struct profile parse(const char *text, uint64_t size)
{
	struct profile p;
	struct err e;

	if (profile_parse(&p, text, strlen(text), size, &e))
		fail_msg("%s", e.text);
	return p;
}

static void text_expect(struct profile *p, const char *expected)
{
	char *text;
	size_t len;

	assert_int_equal(profile_format(p, &text, &len), 0);
	assert_string_equal(text, expected);
	assert_int_equal(strlen(text), len);
	free(text);
	profile_done(p);
}

static void what_is_written_is_read(void **state)
{
	struct profile p = { .size = 10 * MIB }, again;

	(void)state;
	assert_int_equal(profile_add(&p, range_of(MIB, 4096)), 0);
	assert_int_equal(profile_add(&p, range_of(0, 8192)), 0);
	assert_int_equal(profile_add(&p, range_of(8192, 4096)), 0); /* continues */
	assert_int_equal(profile_add(&p, range_of(5 * MIB, 0)), 0);
	again = parse(HEAD "# made by hand\r\n\n# size=10485760\n1048576 4096\n \t0\t8192 \n8192 4096",
		      10 * MIB);
	assert_int_equal(again.bytes, p.bytes);
	text_expect(&p, HEAD "# size=10485760\n1048576 4096\n0 12288\n");
	text_expect(&again, HEAD "# size=10485760\n1048576 4096\n0 12288\n");
}

static void overlaps_and_what_is_behind_the_end_go(void **state)
{
	struct profile p = parse(HEAD "100 50\n120 10\n0 200\n900 200\n1000 1\n5000 10\n10 0\n"
				      "18446744073709551615 18446744073709551615\n",
				 1000);

	(void)state;
	assert_int_equal(p.dropped, 5);
	assert_int_equal(p.bytes, 300);
	text_expect(&p, HEAD "100 50\n0 100\n150 50\n900 100\n");
	p = parse(HEAD "0 10\n", 0);
	assert_int_equal(p.count, 0);
	text_expect(&p, HEAD);
}

static void what_is_no_profile_is_refused_with_its_line(void **state)
{
	static const struct {
		const char *text, *why;
		int err;
	} bad[] = {
		{ "", "empty", -EINVAL },
		{ "0 4096\n", "does not begin", -EINVAL },
		{ "remora-profile one\n", "no version", -EINVAL },
		{ "remora-profile 2\n0 1\n", "version 2", -EPROTONOSUPPORT },
		{ HEAD "0 1\n\n17\n", "line 4", -EINVAL },
		{ HEAD "0 1 2\n", "line 2", -EINVAL },
		{ HEAD "-1 2\n", "line 2", -EINVAL },
		{ HEAD "0x10 2\n", "line 2", -EINVAL },
		{ HEAD "1 18446744073709551616\n", "line 2", -EINVAL },
	};
	struct profile p;
	struct err e;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(profile_parse(&p, bad[i].text, strlen(bad[i].text), MIB, &e),
				 bad[i].err);
		assert_non_null(strstr(e.text, bad[i].why));
		assert_true(!p.at && !p.count);
	}
}

static char *many_lines(uint64_t count, uint64_t step, uint64_t len)
{
	size_t room = 64 + count * 42, at;
	char *text = malloc(room);

	assert_non_null(text);
	at = (size_t)snprintf(text, room, HEAD);
	for (uint64_t i = 0; i < count; i++)
		at += (size_t)snprintf(text + at, room - at, "%llu %llu\n",
				       (unsigned long long)(i * 7919 % count * step),
				       (unsigned long long)len);
	return text;
}

static void the_longest_profile_is_read_and_a_longer_one_refused(void **state)
{
	char *text = many_lines(PROFILE_RANGES_MAX, 8192, 4096);
	struct profile p = parse(text, TIB);
	struct err e;

	(void)state;
	assert_int_equal(p.count, PROFILE_RANGES_MAX);
	profile_done(&p);
	free(text);
	text = many_lines(PROFILE_RANGES_MAX + 1, 8192, 4096);
	assert_int_equal(profile_parse(&p, text, strlen(text), TIB, &e), -E2BIG);
	assert_int_equal(profile_parse(&p, text, PROFILE_TEXT_MAX + 1, TIB, &e), -E2BIG);
	free(text);
}

/* ---- recording ---- */

static struct recorder *recorder_new(uint64_t size)
{
	struct recorder *rec;

	assert_int_equal(recorder_open(&rec, size), 0);
	return rec;
}

/* Drains, and compares with "off+len ..." in pages. */
static void drained(struct recorder *rec, const char *expected)
{
	struct range r;
	char got[1024] = "";
	size_t n = 0;

	while (recorder_drain(rec, &r, 1))
		n += (size_t)snprintf(got + n, sizeof(got) - n, "%s%g+%g", n ? " " : "",
				      (double)r.off / PAGE_BYTES, (double)r.len / PAGE_BYTES);
	assert_string_equal(got, expected);
}

static void used(struct recorder *rec, double page, double count)
{
	recorder_add(rec, range_of((uint64_t)(page * PAGE_BYTES), (uint64_t)(count * PAGE_BYTES)));
}

static void first_uses_are_recorded_in_their_order(void **state)
{
	struct recorder *rec = recorder_new(1000 * PAGE_BYTES + 2048);
	struct recorder_count count;

	(void)state;
	drained(rec, "");
	used(rec, 500, 1);
	used(rec, 100, 2.25);
	used(rec, 500, 0.5); /* again */
	used(rec, 300, 1);
	drained(rec, "500+1 100+3 300+1");
	drained(rec, "");
	used(rec, 99, 3);   /* new in part: the front of it */
	used(rec, 100, 1);
	used(rec, 1000, 5); /* over the end, and behind it */
	used(rec, 2000, 5);
	used(rec, 7, 0);
	drained(rec, "99+1 1000+0.5");
	recorder_count(rec, &count);
	assert_int_equal(count.bytes, 6 * PAGE_BYTES + 2048);
	assert_true(count.ranges == 5 && !count.lost);
	recorder_close(rec);
	recorder_close(NULL);
}

static void neighbours_used_one_after_the_other_are_one_range(void **state)
{
	struct recorder *rec = recorder_new(GIB);

	(void)state;
	for (unsigned i = 0; i < 50; i++)
		used(rec, 1000 + i, 1);
	for (unsigned i = 0; i < 50; i++) /* backward */
		used(rec, 599 - i, 1);
	for (unsigned i = 0; i < 10; i++) /* with small gaps */
		used(rec, 2000 + 17 * i, 1);
	used(rec, 2000 + 9 * 17 + 1 + 17, 1); /* 17 pages between are too many */
	drained(rec, "1000+50 550+50 2000+154 2171+1");
	/* in both directions; what was used before is not recorded again */
	used(rec, 5004, 2);
	used(rec, 4990, 1);
	used(rec, 5010, 1);
	drained(rec, "4990+21");
	used(rec, 6004, 2);
	used(rec, 8000, 1);
	used(rec, 6000, 1);
	used(rec, 6010, 1);
	drained(rec, "6004+2 8000+1 6000+4 6006+5");
	recorder_close(rec);
}

static void a_recording_has_a_bound_and_tells_what_is_lost(void **state)
{
	struct recorder *rec = recorder_new(TIB);
	struct range *at = calloc(2 * PROFILE_RANGES_MAX, sizeof(*at));
	struct recorder_count count;
	size_t n = 0;

	(void)state;
	for (uint64_t i = 0; i < PROFILE_RANGES_MAX + 1000; i++) {
		used(rec, (double)(i * 7919 % 1000003) * 100, 1);
		if (i % 50000 == 0)
			n += recorder_drain(rec, at + n, 2 * PROFILE_RANGES_MAX - n);
	}
	n += recorder_drain(rec, at + n, 2 * PROFILE_RANGES_MAX - n);
	assert_int_equal(n, PROFILE_RANGES_MAX);
	assert_int_equal(at[1].off, 7919ULL * 100 * PAGE_BYTES);
	recorder_count(rec, &count);
	assert_int_equal(count.lost, 1000);
	free(at);
	recorder_close(rec);
}

/* ---- pulling ahead ---- */

static void run_done(void *arg)
{
	++*(unsigned *)arg;
}

static struct profile_run *run_start(struct rig *t, const char *text, unsigned *done)
{
	struct profile p = parse(text, t->w.size);
	struct profile_run *run;

	assert_int_equal(profile_run_start(&run, t->w.region, &p, run_done, done), 0);
	assert_true(!p.at && !p.count);
	return run;
}

static void run_wait(struct rig *t, const unsigned *done)
{
	while (!*done)
		assert_int_equal(sim_step(t->w.sim), 0);
	assert_int_equal(*done, 1);
}

static void a_profile_is_pulled_exactly_and_in_its_order(void **state)
{
	static const uint64_t first[] = { 40, 3, 4, 60, 20, 63 };
	struct rig *t = rig_new(SIZE, false, &plain);
	struct profile_progress at;
	struct profile_run *run;
	unsigned done = 0;
	uint64_t bytes;

	(void)state;
	t->w.far->hold = true;
	/* chunks 40, 3-4, 60, again 40, 20, and the end and what is behind it */
	run = run_start(t,
			HEAD "2621440 4096\n200704 126976\n3932161 1\n2621440 65536\n1310720 65536\n"
			     "4128768 10000000\n",
			&done);
	pass(t, 10 * MS);
	assert_int_equal(seen_reads(t, &bytes), ARRAY_LEN(first));
	assert_int_equal(bytes, 6 * CHUNK);
	for (size_t i = 0; i < ARRAY_LEN(first); i++)
		assert_int_equal(t->w.far->seen[i].range.off, first[i] * CHUNK);
	profile_run_progress(run, &at);
	assert_true(at.ranges == 6 && !at.ranges_done && !at.ended);
	go(t);
	run_wait(t, &done);
	assert_string_equal(draw(t, 0, 8), "...##...");
	assert_int_equal(seen_reads(t, &bytes), ARRAY_LEN(first));
	profile_run_progress(run, &at);
	assert_true(at.ranges_done == 6 && at.bytes_done == at.bytes && !at.failed && at.ended);
	profile_run_free(run);
	rig_free(t);
}

static void a_long_profile_keeps_its_order_and_lets_others_pass(void **state)
{
	struct region_options o = { .chunk = 4096, .readahead_bytes_max = 1,
				    .inflight_bytes_max = 4 * MIB };
	struct rig *t = rig_new(8 * MIB, false, &o);
	struct profile_run *run;
	char *text = many_lines(1000, 8192, 4096);
	uint64_t bytes, at = 0;
	unsigned done = 0;

	(void)state;
	run = run_start(t, text, &done);
	pass(t, 1 * MS);
	assert_int_equal(do_op(t, REQ_READ, 4096, 4096), 0); /* not behind all of it */
	assert_int_equal(done, 0);
	run_wait(t, &done);
	assert_int_equal(seen_reads(t, &bytes), 1001);
	for (size_t i = 0; i < t->w.far->seen_count; i++) {
		if (t->w.far->seen[i].range.off == 4096)
			continue;
		assert_int_equal(t->w.far->seen[i].range.off, at * 7919 % 1000 * 8192);
		at++;
	}
	free(text);
	profile_run_free(run);
	rig_free(t);
}

static void a_budget_bounds_what_a_profile_pulls(void **state)
{
	struct region_options o = { .chunk = CHUNK, .readahead_bytes_max = 1,
				    .budget_bytes = 8 * MIB };
	struct rig *t = rig_new(32 * MIB, false, &o);
	char *text = many_lines(400, CHUNK, 100);
	struct profile_run *run;
	unsigned done = 0;
	uint64_t bytes;

	(void)state;
	run = run_start(t, text, &done);
	run_wait(t, &done);
	assert_int_equal(seen_reads(t, &bytes), 64);
	free(text);
	profile_run_free(run);
	rig_free(t);
}

static void a_profile_survives_errors_and_the_end_of_its_region(void **state)
{
	struct region_options o = { .chunk = CHUNK, .readahead_bytes_max = 1,
				    .deadline_ns = NS_PER_S };
	struct rig *t = rig_new(SIZE, false, &o);
	struct profile_progress at;
	struct profile_run *run;
	struct profile none = { 0 };
	unsigned done = 0;

	(void)state;
	assert_int_equal(profile_run_start(&run, t->w.region, &none, NULL, NULL), -ENODATA);
	t->w.far->error = -EIO;
	t->w.far->error_per_million = 1000000;
	run = run_start(t, HEAD "0 4096\n131072 4096\n", &done);
	run_wait(t, &done);
	profile_run_progress(run, &at);
	assert_true(at.failed == 2 && at.ended);
	profile_run_free(run);
	t->w.far->error_per_million = 0;
	/* given up */
	t->w.far->hold = true;
	done = 0;
	run = run_start(t, HEAD "0 4096\n131072 4096\n", &done);
	pass(t, 1 * MS);
	profile_run_free(run);
	go(t);
	read_expect(t, 0, CHUNK, 1);
	/* the region goes first */
	t->w.far->hold = true;
	run = run_start(t, HEAD "0 4194304\n", &done);
	pass(t, 1 * MS);
	assert_int_equal(done, 0);
	t->w.far->hold = false;
	rig_free(t);
	assert_int_equal(done, 1);
	profile_run_progress(run, &at);
	assert_true(at.ended && !at.ranges_done);
	profile_run_free(run);
	profile_run_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_set_of_ranges_is_the_set_of_their_bytes),
		cmocka_unit_test(what_is_written_is_read),
		cmocka_unit_test(overlaps_and_what_is_behind_the_end_go),
		cmocka_unit_test(what_is_no_profile_is_refused_with_its_line),
		cmocka_unit_test(the_longest_profile_is_read_and_a_longer_one_refused),
		cmocka_unit_test(first_uses_are_recorded_in_their_order),
		cmocka_unit_test(neighbours_used_one_after_the_other_are_one_range),
		cmocka_unit_test(a_recording_has_a_bound_and_tells_what_is_lost),
		cmocka_unit_test(a_profile_is_pulled_exactly_and_in_its_order),
		cmocka_unit_test(a_long_profile_keeps_its_order_and_lets_others_pass),
		cmocka_unit_test(a_budget_bounds_what_a_profile_pulls),
		cmocka_unit_test(a_profile_survives_errors_and_the_end_of_its_region),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
