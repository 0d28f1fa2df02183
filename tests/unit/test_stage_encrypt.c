/* SPDX-License-Identifier: Apache-2.0 */
/* The encrypt stage: known answers, what the far side gets to see, wrong keys, and in the mode gcm
 * what was changed, swapped, replayed or lost there. */
#define TEST_FAKE_KINDS                                                                            \
	{ "encrypt", false,                                                                        \
	  "encrypt:[key=FILE][,command=COMMAND][,env=NAME][,mode=MODE][,check=HEX][,meta=FILE]"    \
	  "[,new=BOOL][,chunk=SIZE][,sync=BOOL]",                                                  \
	  stage_encrypt_open },                                                                    \
		{ "align", false, "align[:block=SIZE][,len=SIZE]", stage_align_open },
#include "model.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stage/encrypt_int.h"

#define FAR(w) ((w).fake[0])
#define CHUNK 4096u

static uint8_t buf[64 * 1024], other[64 * 1024];

static void hex(const char *text, uint8_t *ret)
{
	for (unsigned v; *text && sscanf(text, "%2x", &v) == 1; text += 2)
		*ret++ = (uint8_t)v;
}

/* ---- files of a test ---- */

struct place {
	char dir[64], key[80], other_key[80], meta[80];
};

static void place_open(struct place *p)
{
	const char *tmp = getenv("TMPDIR");
	int fd;

	snprintf(p->dir, sizeof(p->dir), "%.40s/encrypt-XXXXXX",
		 tmp && strlen(tmp) <= 40 ? tmp : "/tmp");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->key, sizeof(p->key), "%s/key", p->dir);
	snprintf(p->other_key, sizeof(p->other_key), "%s/other", p->dir);
	snprintf(p->meta, sizeof(p->meta), "%s/meta", p->dir);
	fd = open(p->key, O_WRONLY | O_CREAT, 0600);
	assert_int_equal(32, write(fd, "0123456789abcdef0123456789abcdeF", 32));
	close(fd);
	fd = open(p->other_key, O_WRONLY | O_CREAT, 0600);
	assert_int_equal(32, write(fd, "another key, of the same length!", 32));
	close(fd);
}

static void place_close(struct place *p)
{
	unlink(p->key);
	unlink(p->other_key);
	unlink(p->meta);
	assert_int_equal(0, rmdir(p->dir));
}

static size_t file_get(const char *path, uint8_t *to, size_t max)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, to, max);

	assert_true(n >= 0);
	close(fd);
	return (size_t)n;
}

static void file_put(const char *path, const uint8_t *from, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_int_equal(len, write(fd, from, len));
	close(fd);
}

/* ---- running ---- */

/* Until it is done, however many threads have a part in it. */
static void settle(struct world *w, struct one *one)
{
	world_turn(w);
	while (!one->completions) {
		if (FAR(*w)->count)
			fake_end(FAR(*w), 0);
		else
			assert_int_equal(0, loop_step(w->loop, NEVER_NS));
		world_turn(w);
	}
}

static int run(struct world *w, enum req_op op, uint64_t off, uint64_t len, void *data)
{
	struct one one;

	one_submit(w, &one, op, off, len, data, 0);
	settle(w, &one);
	return one.err;
}

#define SPEC_MAX 512

static void spec_gcm(char *spec, const struct place *p, const char *more)
{
	snprintf(spec, SPEC_MAX, "encrypt:key=%s,mode=gcm,chunk=4K,meta=%s%s|fake:40000", p->key,
		 p->meta, more);
}

static void gcm_open(struct world *w, const struct place *p, const char *more)
{
	char spec[SPEC_MAX];

	spec_gcm(spec, p, more);
	world_open(w, spec, 1);
}

/* The same meta file in front of a far side that holds `bytes`. */
static void gcm_reopen(struct world *w, const struct place *p, const uint8_t *bytes)
{
	gcm_open(w, p, "");
	memcpy(FAR(*w)->bytes, bytes, 40000);
}

static void status_has(struct world *w, const char *text)
{
	char status[256];
	struct store *stage = w->top;

	while (strcmp(stage->ops->name, "encrypt"))
		stage = stage->next;
	stage->ops->status(stage, status, sizeof(status));
	if (!strstr(status, text))
		fail_msg("'%s' is not in '%s'", text, status);
}

/* ---- known answers ---- */

static void test_xts_gives_the_answer_of_ieee_1619_vector_10(void **state)
{
	static const char key_hex[] =
		"2718281828459045235360287471352662497757247093699959574966967627"
		"3141592653589793238462643383279502884197169399375105820974944592";
	static const char want_hex[] =
		"1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44"
		"680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0"
		"c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7d"
		"e8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f"
		"93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6"
		"dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1"
		"505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b"
		"11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac"
		"6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493"
		"c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa"
		"773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";
	uint8_t key[64], want[512], plain[512], out[512];
	EVP_CIPHER_CTX *enc, *dec;

	(void)state;
	hex(key_hex, key);
	hex(want_hex, want);
	for (unsigned i = 0; i < 512; i++)
		plain[i] = (uint8_t)i;
	enc = encrypt_xts_ctx(key, true);
	dec = encrypt_xts_ctx(key, false);
	assert_int_equal(0, encrypt_xts_unit(enc, 0xff, plain, out, 512));
	assert_memory_equal(want, out, 512);
	assert_int_equal(0, encrypt_xts_unit(dec, 0xff, out, out, 512));
	assert_memory_equal(plain, out, 512);
	EVP_CIPHER_CTX_free(enc);
	EVP_CIPHER_CTX_free(dec);
}

static void ecb(const uint8_t key[32], const uint8_t *from, uint8_t *to)
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	int n;

	assert_int_equal(1, EVP_EncryptInit_ex(ctx, EVP_aes_256_ecb(), NULL, key, NULL));
	EVP_CIPHER_CTX_set_padding(ctx, 0);
	assert_int_equal(1, EVP_EncryptUpdate(ctx, to, &n, from, 16));
	EVP_CIPHER_CTX_free(ctx);
}

static void xts_block(const uint8_t key[64], const uint8_t t[16], const uint8_t *from, uint8_t *to)
{
	uint8_t x[16];

	for (int i = 0; i < 16; i++)
		x[i] = from[i] ^ t[i];
	ecb(key, x, x);
	for (int i = 0; i < 16; i++)
		to[i] = x[i] ^ t[i];
}

static void doubled(uint8_t t[16])
{
	unsigned carry = 0;

	for (int i = 0; i < 16; i++) {
		unsigned v = (unsigned)t[i] << 1 | carry;

		t[i] = (uint8_t)v;
		carry = v >> 8;
	}
	if (carry)
		t[0] ^= 0x87;
}

/* As IEEE 1619 writes it down. */
static void xts_by_hand(const uint8_t key[64], uint64_t unit, const uint8_t *from, uint8_t *to,
			size_t len)
{
	uint8_t t[16] = { 0 }, last[16];
	size_t at;

	memcpy(t, &unit, 8);
	ecb(key + 32, t, t);
	for (at = 0; at + 16 <= len; at += 16, doubled(t))
		xts_block(key, t, from + at, to + at);
	if (at == len)
		return;
	memcpy(last, to + at - 16, 16);
	memcpy(to + at, last, len - at);
	memcpy(last, from + at, len - at);
	xts_block(key, t, last, to + at - 16);
}

static void test_the_last_unit_is_xts_with_ciphertext_stealing_at_every_length(void **state)
{
	uint8_t key[64], want[ENCRYPT_UNIT];
	EVP_CIPHER_CTX *enc, *dec;

	(void)state;
	for (unsigned i = 0; i < 64; i++)
		key[i] = (uint8_t)(7 * i + 1);
	for (unsigned i = 0; i < ENCRYPT_UNIT; i++)
		buf[i] = (uint8_t)(i * i >> 3);
	enc = encrypt_xts_ctx(key, true);
	dec = encrypt_xts_ctx(key, false);
	for (size_t len = 16; len <= ENCRYPT_UNIT; len += len < 100 || len > 4070 ? 1 : 97) {
		assert_int_equal(0, encrypt_xts_unit(enc, 0x123456789a + len, buf, other, len));
		xts_by_hand(key, 0x123456789a + len, buf, want, len);
		assert_memory_equal(want, other, len);
		assert_int_equal(0, encrypt_xts_unit(dec, 0x123456789a + len, other, other, len));
		assert_memory_equal(buf, other, len);
	}
	EVP_CIPHER_CTX_free(enc);
	EVP_CIPHER_CTX_free(dec);
}

static void test_hkdf_gives_the_answer_of_rfc_5869_case_1(void **state)
{
	uint8_t secret[22], salt[13], info[10], want[42], out[42];

	(void)state;
	memset(secret, 0x0b, sizeof(secret));
	hex("000102030405060708090a0b0c", salt);
	hex("f0f1f2f3f4f5f6f7f8f9", info);
	hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
	    want);
	assert_int_equal(0, encrypt_hkdf(secret, 22, salt, 13, info, 10, out, 42));
	assert_memory_equal(want, out, 42);
}

static void test_a_secret_is_hexadecimal_or_bytes_and_nothing_else(void **state)
{
	struct encrypt_secret s;
	uint8_t text[130];

	(void)state;
	memset(text, 'A', sizeof(text));
	assert_true(encrypt_secret_parse(&s, text, 64));
	assert_int_equal(32, s.len);
	assert_int_equal(0xaa, s.at[31]);
	text[64] = '\n';
	assert_true(encrypt_secret_parse(&s, text, 65));
	text[64] = 'a';
	assert_true(encrypt_secret_parse(&s, text, 128));
	assert_int_equal(64, s.len);
	memset(text, 0, sizeof(text));
	assert_true(encrypt_secret_parse(&s, text, 32));
	assert_true(encrypt_secret_parse(&s, text, 64));
	text[10] = 'g';
	for (size_t len = 0; len <= sizeof(text); len++)
		assert_int_equal(len == 32 || len == 64, encrypt_secret_parse(&s, text, len));
}

/* ---- xts ---- */

static void test_the_far_side_has_xts_of_each_unit_and_no_plain_text(void **state)
{
	struct encrypt_secret secret = { .len = 32 };
	struct place p;
	struct world w;
	uint8_t key[64], want[ENCRYPT_UNIT];
	char spec[SPEC_MAX];

	(void)state;
	place_open(&p);
	snprintf(spec, sizeof(spec), "align|encrypt:key=%s|fake:20000", p.key);
	world_open(&w, spec, 1);
	memcpy(secret.at, "0123456789abcdef0123456789abcdeF", 32);
	assert_int_equal(0, encrypt_derive(&secret, "xts", NULL, key, 64));
	memset(buf, 0, 20000);
	memset(buf + 5000, 'p', 3000);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, 20000, buf));
	for (uint64_t unit = 0; unit < 5; unit++) {
		size_t len = MIN((size_t)4096, (size_t)20000 - unit * 4096);

		xts_by_hand(key, unit, buf + unit * 4096, want, len);
		assert_memory_equal(want, FAR(w)->bytes + unit * 4096, len);
	}
	memset(other, 0xee, 20000);
	assert_int_equal(0, run(&w, REQ_READ, 0, 20000, other));
	assert_memory_equal(buf, other, 20000);
	assert_int_equal(0, run(&w, REQ_WRITE, 19990, 7, buf + 5000));
	memcpy(buf + 19990, buf + 5000, 7);
	assert_int_equal(0, run(&w, REQ_READ, 19000, 1000, other));
	assert_memory_equal(buf + 19000, other, 1000);
	world_done(&w);
	place_close(&p);
}

static void test_the_far_side_is_never_told_where_zeros_are(void **state)
{
	struct extent x[4];
	struct place p;
	struct world w;
	char spec[SPEC_MAX];
	struct one one;

	(void)state;
	place_open(&p);
	snprintf(spec, sizeof(spec), "encrypt:key=%s|fake:64K", p.key);
	world_open(&w, spec, 1);
	assert_int_equal(0, run(&w, REQ_ZERO, 0, 32768, NULL));
	assert_int_equal(0, run(&w, REQ_TRIM, 0, 32768, NULL));
	one_submit(&w, &one, REQ_TRIM, 0, 4096, NULL, 0);
	settle(&w, &one);
	one = (struct one){ .world = &w };
	one.req = (struct req){ .op = REQ_EXTENTS, .range = range_of(0, 65536), .done = one_done };
	one.req.extents = &(struct extents){ .at = x, .max = 4 };
	req_submit(w.top, &one.req);
	settle(&w, &one);
	assert_int_equal(1, one.req.extents->count);
	assert_false(x[0].zero);
	for (size_t i = 0; i < FAR(w)->seen_count; i++)
		assert_int_equal(REQ_WRITE, FAR(w)->seen[i].op);
	for (size_t i = 0; i < 32768; i += 16)
		assert_memory_not_equal(FAR(w)->bytes + i, other + 60000, 16);
	assert_int_equal(0, run(&w, REQ_READ, 0, 32768, buf));
	for (size_t i = 0; i < 32768; i++)
		assert_int_equal(0, buf[i]);
	world_done(&w);
	place_close(&p);
}

static void test_zeros_of_the_far_side_are_not_taken_for_zeros(void **state)
{
	struct place p;
	struct world w;
	char spec[SPEC_MAX];
	struct one one;
	size_t zeros = 0;

	(void)state;
	place_open(&p);
	snprintf(spec, sizeof(spec), "encrypt:key=%s|fake:64K", p.key);
	world_open(&w, spec, 1);
	one_submit(&w, &one, REQ_READ, 0, 4096, buf, 0);
	world_turn(&w);
	FAR(w)->slot[0].req->ret_zero = true;
	settle(&w, &one);
	assert_int_equal(0, one.err);
	assert_false(one.req.ret_zero);
	for (size_t i = 0; i < 4096; i++)
		zeros += !buf[i];
	assert_in_range(zeros, 0, 100);
	world_done(&w);
	place_close(&p);
}

static void test_a_read_waits_for_a_write_of_the_same_unit_and_not_for_others(void **state)
{
	struct place p;
	struct world w;
	struct one write, read, apart;
	char spec[SPEC_MAX];

	(void)state;
	place_open(&p);
	snprintf(spec, sizeof(spec), "encrypt:key=%s|fake:64K", p.key);
	world_open(&w, spec, 1);
	memset(buf, 'w', 8192);
	one_submit(&w, &write, REQ_WRITE, 0, 8192, buf, 0);
	one_submit(&w, &read, REQ_READ, 4096, 4096, other, 0);
	one_submit(&w, &apart, REQ_READ, 8192, 4096, other + 4096, 0);
	world_turn(&w);
	assert_int_equal(2, FAR(w)->count);
	fake_end(FAR(w), 1);
	world_turn(&w);
	assert_int_equal(1, apart.completions);
	assert_int_equal(0, read.completions);
	fake_end(FAR(w), 0);
	settle(&w, &read);
	assert_int_equal(1, write.completions);
	assert_memory_equal(buf, other, 4096);
	world_done(&w);
	place_close(&p);
}

static void test_abort_completes_every_request_once(void **state)
{
	struct place p;
	char spec[SPEC_MAX];

	(void)state;
	place_open(&p);
	snprintf(spec, sizeof(spec), "align|encrypt:key=%s|fake:40000", p.key);
	for (uint64_t seed = 1; seed <= 40; seed++)
		model_abort(spec, seed, 9000, 1);
	place_close(&p);
}

/* ---- opening ---- */

static void expect_refused(const char *spec, int err, const char *text)
{
	struct world w;
	struct err e;

	world_init(&w, 1);
	assert_int_equal(err, world_open_err(&w, spec, &e));
	if (!strstr(e.text, text))
		fail_msg("'%s' is not in '%s'", text, e.text);
	loop_close(w.loop);
}

static void test_a_key_that_others_can_read_is_refused_with_the_command_that_helps(void **state)
{
	struct place p;
	char spec[SPEC_MAX], text[128];

	(void)state;
	place_open(&p);
	assert_int_equal(0, chmod(p.key, 0640));
	snprintf(spec, sizeof(spec), "encrypt:key=%s|fake:64K", p.key);
	snprintf(text, sizeof(text), "chmod 600 %s", p.key);
	expect_refused(spec, -EACCES, text);
	place_close(&p);
}

static void test_the_key_comes_from_one_place_and_its_failure_is_told(void **state)
{
	struct place p;
	struct world w;
	char spec[SPEC_MAX];

	(void)state;
	place_open(&p);
	snprintf(spec, sizeof(spec), "encrypt:key=%s,env=HOME|fake:64K", p.key);
	expect_refused(spec, -EINVAL, "one of key=FILE, command=COMMAND, env=NAME");
	expect_refused("encrypt:mode=xts|fake:64K", -EINVAL, "one of key=FILE");
	expect_refused("encrypt:env=REMORA_NO_SUCH_KEY|fake:64K", -ENOENT, "REMORA_NO_SUCH_KEY");
	expect_refused("encrypt:command=false|fake:64K", -EIO, "exit status 1");
	expect_refused("encrypt:command=(echo short)|fake:64K", -EINVAL, "neither 64 or 128");
	expect_refused("encrypt:command=(head -c 32 /dev/zero)|fake:64K", -EINVAL, "all the same");
	snprintf(spec, sizeof(spec), "encrypt:command=(cat %s)|fake:64K", p.key);
	world_open(&w, spec, 1);
	world_done(&w);
	place_close(&p);
}

static void test_what_xts_cannot_do_is_refused(void **state)
{
	struct place p;
	struct world w;
	char spec[SPEC_MAX];

	(void)state;
	place_open(&p);
	for (unsigned size = 1; size < 16; size++) {
		snprintf(spec, sizeof(spec), "encrypt:key=%s|fake:%u", p.key, size);
		expect_refused(spec, -EINVAL, "fewer than the 16");
		snprintf(spec, sizeof(spec), "encrypt:key=%s|fake:%u", p.key, 8192 + size);
		expect_refused(spec, -EINVAL, "fewer than the 16");
	}
	snprintf(spec, sizeof(spec), "encrypt:key=%s|fake:16", p.key);
	world_open(&w, spec, 1);
	memcpy(buf, "sixteen bytes   ", 16);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, 16, buf));
	assert_int_equal(0, run(&w, REQ_READ, 0, 16, other));
	assert_memory_equal(buf, other, 16);
	world_done(&w);
	place_close(&p);
}

static void test_a_wrong_key_is_found_at_open_by_check_and_by_meta(void **state)
{
	struct place p;
	struct world w;
	char spec[SPEC_MAX];

	(void)state;
	place_open(&p);
	snprintf(spec, sizeof(spec), "encrypt:key=%s,check=0011223344556677|fake:64K", p.key);
	expect_refused(spec, -EKEYREJECTED, "wrong key");
	snprintf(spec, sizeof(spec), "encrypt:key=%s,meta=%s|fake:64K", p.key, p.meta);
	expect_refused(spec, -ENOENT, "new=1");
	snprintf(spec, sizeof(spec), "encrypt:key=%s,meta=%s,new=1|fake:64K", p.key, p.meta);
	world_open(&w, spec, 1);
	status_has(&w, "checked=meta");
	world_done(&w);
	expect_refused(spec, -EEXIST, "leave out new=1");
	snprintf(spec, sizeof(spec), "encrypt:key=%s,meta=%s|fake:64K", p.other_key, p.meta);
	expect_refused(spec, -EKEYREJECTED, "wrong key");
	snprintf(spec, sizeof(spec), "encrypt:key=%s,meta=%s|fake:128K", p.key, p.meta);
	expect_refused(spec, -EINVAL, "65536 bytes");
	snprintf(spec, sizeof(spec), "encrypt:key=%s,meta=%s,mode=gcm|fake:64K", p.key, p.meta);
	expect_refused(spec, -EINVAL, "of the mode xts");
	snprintf(spec, sizeof(spec), "encrypt:key=%s,mode=gcm|fake:64K", p.key);
	expect_refused(spec, -EINVAL, "meta=FILE");
	place_close(&p);
}

static void test_a_damaged_header_falls_back_to_the_other_and_then_is_an_error(void **state)
{
	struct place p;
	struct world w;
	char spec[SPEC_MAX];
	size_t len;

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	world_done(&w);
	len = file_get(p.meta, buf, sizeof(buf));
	buf[50] ^= 1;
	file_put(p.meta, buf, len);
	gcm_open(&w, &p, "");
	world_done(&w);
	len = file_get(p.meta, buf, sizeof(buf));
	buf[50] ^= 4;
	buf[4096 + 50] ^= 1;
	file_put(p.meta, buf, len);
	spec_gcm(spec, &p, "");
	expect_refused(spec, -EBADMSG, "damaged");
	file_put(p.meta, buf, 100);
	expect_refused(spec, -EBADMSG, "damaged");
	place_close(&p);
}

static void test_two_at_a_time_on_one_meta_file_are_refused(void **state)
{
	struct place p;
	struct world w;
	char spec[SPEC_MAX];

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	spec_gcm(spec, &p, "");
	expect_refused(spec, -EBUSY, "in use");
	world_done(&w);
	place_close(&p);
}

/* ---- gcm ---- */

static void filled(struct world *w, uint8_t byte)
{
	memset(buf, byte, 40000);
	assert_int_equal(0, run(w, REQ_WRITE, 0, 40000, buf));
	assert_int_equal(0, run(w, REQ_FLUSH, 0, 0, NULL));
}

static int read_all(struct world *w)
{
	memset(other, 0xee, 40000);
	return run(w, REQ_READ, 0, 40000, other);
}

static void test_gcm_gives_back_what_was_written_also_when_opened_again(void **state)
{
	struct place p;
	struct world w;
	uint8_t *far = malloc(40000);

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	filled(&w, 'a');
	assert_int_equal(0, run(&w, REQ_WRITE, 8192, 4096, memset(other, 'b', 4096)));
	memset(buf + 8192, 'b', 4096);
	assert_int_equal(0, read_all(&w));
	assert_memory_equal(buf, other, 40000);
	memcpy(far, FAR(w)->bytes, 40000);
	for (size_t i = 0; i + 16 <= 40000; i += 16)
		assert_memory_not_equal(far + i, "aaaaaaaaaaaaaaaa", 16);
	world_done(&w);
	gcm_reopen(&w, &p, far);
	assert_int_equal(0, read_all(&w));
	assert_memory_equal(buf, other, 40000);
	world_done(&w);
	free(far);
	place_close(&p);
}

static void test_a_chunk_never_written_is_zeros_whatever_the_far_side_says(void **state)
{
	struct place p;
	struct world w;

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	memset(FAR(w)->bytes, 0x5a, 40000);
	assert_int_equal(0, run(&w, REQ_WRITE, 4096, 4096, memset(buf, 'x', 4096)));
	assert_int_equal(0, read_all(&w));
	for (size_t i = 0; i < 40000; i++)
		assert_int_equal(i >= 4096 && i < 8192 ? 'x' : 0, other[i]);
	world_done(&w);
	place_close(&p);
}

static void test_a_flipped_bit_is_an_error_with_its_place_and_is_counted(void **state)
{
	struct place p;
	struct world w;
	struct one one;

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	filled(&w, 'f');
	FAR(w)->bytes[39999] ^= 0x10;
	FAR(w)->bytes[4100] ^= 0x01;
	one_submit(&w, &one, REQ_READ, 4096, 4096, other, 0);
	settle(&w, &one);
	assert_int_equal(-EBADMSG, one.err);
	assert_string_equal("encrypt: the chunk at 4096 is not what was written there", one.why);
	assert_string_equal(one.why, w.logged);
	for (size_t i = 0; i < 4096; i++) /* nothing that is not authentic comes out */
		assert_int_equal(0, other[i]);
	assert_int_equal(-EBADMSG, run(&w, REQ_READ, 36864, 3136, other));
	assert_int_equal(0, run(&w, REQ_READ, 8192, 4096, other));
	status_has(&w, "bad=2");
	world_done(&w);
	place_close(&p);
}

static void test_swapped_and_replayed_chunks_are_errors(void **state)
{
	struct place p;
	struct world w;
	uint8_t former[CHUNK];

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	filled(&w, 's');
	memcpy(former, FAR(w)->bytes, CHUNK);
	memcpy(FAR(w)->bytes, FAR(w)->bytes + CHUNK, CHUNK);
	memcpy(FAR(w)->bytes + CHUNK, former, CHUNK);
	assert_int_equal(-EBADMSG, run(&w, REQ_READ, 0, CHUNK, other));
	assert_int_equal(-EBADMSG, run(&w, REQ_READ, CHUNK, CHUNK, other));
	filled(&w, 't');
	memcpy(former, FAR(w)->bytes, CHUNK);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, CHUNK, memset(buf, 'u', CHUNK)));
	memcpy(FAR(w)->bytes, former,
	       CHUNK); /* answered, and kept back: not flushed, no doubt either */
	assert_int_equal(-EBADMSG, run(&w, REQ_READ, 0, CHUNK, other));
	world_done(&w);
	place_close(&p);
}

/* A crash is the files as they were at one moment. */
static void test_after_a_crash_each_unflushed_chunk_is_what_it_was_or_what_it_became(void **state)
{
	struct place p;
	struct world w;
	uint8_t *far = malloc(40000), *meta = malloc(64 * 1024);
	size_t len;

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	filled(&w, '1');
	memcpy(far, FAR(w)->bytes, 40000);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, 4 * CHUNK, memset(buf, '2', 4 * CHUNK)));
	memcpy(far, FAR(w)->bytes, CHUNK);				 /* reached the disk */
	memcpy(far + 3 * CHUNK, FAR(w)->bytes + 3 * CHUNK, CHUNK / 2); /* half of it */
	len = file_get(p.meta, meta, 64 * 1024);
	world_done(&w);
	file_put(p.meta, meta, len);
	for (int turn = 0; turn < 2; turn++) { /* the second opening knows as much as the first */
		gcm_reopen(&w, &p, far);
		assert_int_equal(0, run(&w, REQ_READ, 0, 3 * CHUNK, other));
		for (size_t i = 0; i < 3 * CHUNK; i++)
			assert_int_equal(i < CHUNK ? '2' : '1', other[i]);
		status_has(&w, "former=2");
		assert_int_equal(-EBADMSG, run(&w, REQ_READ, 3 * CHUNK, CHUNK, other));
		assert_int_equal(0, run(&w, REQ_FLUSH, 0, 0, NULL));
		world_done(&w);
	}
	free(far);
	free(meta);
	place_close(&p);
}

static void test_what_was_flushed_before_a_crash_is_not_taken_back(void **state)
{
	struct place p;
	struct world w;
	uint8_t *far = malloc(40000), *meta = malloc(64 * 1024);
	size_t len;

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	filled(&w, '1');
	memcpy(far, FAR(w)->bytes, 40000);
	filled(&w, '2');
	len = file_get(p.meta, meta, 64 * 1024);
	world_done(&w);
	file_put(p.meta, meta, len);
	gcm_reopen(&w, &p, far); /* the far side says that it never got it */
	assert_int_equal(-EBADMSG, run(&w, REQ_READ, 0, CHUNK, other));
	world_done(&w);
	free(far);
	free(meta);
	place_close(&p);
}

static int refuse_writes(struct fake *f, const struct req *req)
{
	(void)f;
	return req->op == REQ_WRITE ? -EIO : 0;
}

static void test_a_failed_write_leaves_what_was_there_readable(void **state)
{
	struct place p;
	struct world w;

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	filled(&w, '1');
	FAR(w)->refuse = refuse_writes;
	for (int i = 0; i < 3; i++)
		assert_int_equal(-EIO, run(&w, REQ_WRITE, 0, CHUNK, memset(buf, '2', CHUNK)));
	FAR(w)->refuse = NULL;
	assert_int_equal(0, run(&w, REQ_FLUSH, 0, 0, NULL));
	assert_int_equal(0, run(&w, REQ_READ, 0, CHUNK, other));
	assert_int_equal('1', other[0]);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, CHUNK, memset(buf, '3', CHUNK)));
	assert_int_equal(0, run(&w, REQ_READ, 0, CHUNK, other));
	assert_int_equal('3', other[0]);
	world_done(&w);
	place_close(&p);
}

/* Region and clients write again what a server forgot; to do so they must be able to read. */
static void test_a_far_side_that_was_restarted_may_have_lost_what_was_not_flushed(void **state)
{
	struct place p;
	struct world w;
	uint8_t *far = malloc(40000);

	(void)state;
	place_open(&p);
	gcm_open(&w, &p, ",new=1");
	FAR(w)->instance = 1;
	filled(&w, '1');
	memcpy(far, FAR(w)->bytes, 40000);
	assert_int_equal(0, run(&w, REQ_WRITE, 0, CHUNK, memset(buf, '2', CHUNK)));
	memcpy(FAR(w)->bytes, far, 40000);
	FAR(w)->instance = 2;
	assert_int_equal(0, run(&w, REQ_FLUSH, 0, 0, NULL));
	assert_int_equal(0, run(&w, REQ_READ, 0, CHUNK, other));
	assert_int_equal('1', other[0]);
	world_done(&w);
	free(far);
	place_close(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_xts_gives_the_answer_of_ieee_1619_vector_10),
		cmocka_unit_test(
			test_the_last_unit_is_xts_with_ciphertext_stealing_at_every_length),
		cmocka_unit_test(test_hkdf_gives_the_answer_of_rfc_5869_case_1),
		cmocka_unit_test(test_a_secret_is_hexadecimal_or_bytes_and_nothing_else),
		cmocka_unit_test(test_the_far_side_has_xts_of_each_unit_and_no_plain_text),
		cmocka_unit_test(test_the_far_side_is_never_told_where_zeros_are),
		cmocka_unit_test(test_zeros_of_the_far_side_are_not_taken_for_zeros),
		cmocka_unit_test(test_a_read_waits_for_a_write_of_the_same_unit_and_not_for_others),
		cmocka_unit_test(test_abort_completes_every_request_once),
		cmocka_unit_test(
			test_a_key_that_others_can_read_is_refused_with_the_command_that_helps),
		cmocka_unit_test(test_the_key_comes_from_one_place_and_its_failure_is_told),
		cmocka_unit_test(test_what_xts_cannot_do_is_refused),
		cmocka_unit_test(test_a_wrong_key_is_found_at_open_by_check_and_by_meta),
		cmocka_unit_test(
			test_a_damaged_header_falls_back_to_the_other_and_then_is_an_error),
		cmocka_unit_test(test_two_at_a_time_on_one_meta_file_are_refused),
		cmocka_unit_test(test_gcm_gives_back_what_was_written_also_when_opened_again),
		cmocka_unit_test(test_a_chunk_never_written_is_zeros_whatever_the_far_side_says),
		cmocka_unit_test(test_a_flipped_bit_is_an_error_with_its_place_and_is_counted),
		cmocka_unit_test(test_swapped_and_replayed_chunks_are_errors),
		cmocka_unit_test(
			test_after_a_crash_each_unflushed_chunk_is_what_it_was_or_what_it_became),
		cmocka_unit_test(test_what_was_flushed_before_a_crash_is_not_taken_back),
		cmocka_unit_test(test_a_failed_write_leaves_what_was_there_readable),
		cmocka_unit_test(
			test_a_far_side_that_was_restarted_may_have_lost_what_was_not_flushed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
