/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encrypt: what goes to the next store is encrypted, what comes from it is decrypted. Offsets and
 * lengths stay as they are.
 *
 *   READ          the next store's bytes, decrypted
 *   WRITE         encrypted into a buffer of ours, and that is written
 *   FLUSH         passed on; then, in the mode gcm, the file beside learns what is durable
 *   PREFETCH      passed on
 *   ZERO TRIM EXTENTS   never passed on: zeros are written like other data, and the far side does
 * not learn where they are; nor does what it says is zeros count for anything
 *
 * Modes: xts, AES-256-XTS by units of 4096 bytes (IEEE 1619; the tweak is the unit's number), the
 * last unit as long as what is left, with ciphertext stealing; gcm, encrypt_gcm.c.
 *
 *   start ── nothing in the way ─▶ READ:  next store ─▶ crypt ─▶ finish
 *     └── waits ── told ──┘        WRITE: crypt ─▶ next store ─▶ finish
 *
 * `crypt` runs on the loop's thread when it is short, else on the pool; in the mode gcm always
 * there, because it reads and writes a file.
 *
 * A block of 16 bytes that is half old and half new decrypts to neither, and a chunk has one tag:
 * of two requests in flight with common bytes, one of which writes, the later waits for the
 * earlier.
 *
 * Invariants: every READ and WRITE is in `active`, in the order of their arrival, from its start to
 * its end; blockers is the number of those before it that it waits for.
 *
 * Locking: the loop's thread; crypt_run() touches what belongs to one request, and the file beside,
 * which has its own locks.
 */
#include "stage/stage.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/pool.h"
#include "stage/encrypt_int.h"
#include "store/sub.h"

/* The extra of a sub. sub->link joins it to `active`. */
struct crypt {
	struct work work;
	struct sub *sub;
	unsigned blockers;
	bool ready; /* they are gone, and it has not been told yet */
	uint64_t seq;		  /* gcm: WRITE: of its first chunk; FLUSH: durable up to here */
	uint64_t chunk, former;	  /* what encrypt_gcm_open() found */
	EVP_CIPHER_CTX *xts[2];   /* decrypt, encrypt */
	struct encrypt_gcm gcm;
	_Alignas(64) uint8_t buf[]; /* ENCRYPT_LEN_MAX bytes */
};

struct encrypt {
	struct store store;
	struct sub_pool pool;
	struct list active;
	enum encrypt_mode mode;
	bool sync;
	struct encrypt_meta meta; /* fd -1: none */
	uint8_t check[ENCRYPT_CHECK_LEN];
	const char *checked; /* by what the key was found right */
	uint64_t instance;   /* gcm: that took the writes since the last FLUSH */
	bool written;	     /* there were some */
	uint64_t bad, former;
	struct work closing;
	char why[128];
};

static void crypt_go(struct encrypt *x, struct crypt *c);

static struct encrypt *encrypt_of(struct store *store)
{
	return CONTAINER_OF(store, struct encrypt, store);
}

static struct encrypt *owner_of(const struct crypt *c)
{
	return encrypt_of(c->sub->pool->stage);
}

static struct crypt *crypt_of(struct link *k)
{
	return LIST_ENTRY(k, struct sub, link)->extra;
}

/* ---- the work ---- */

static int xts_run(struct crypt *c, struct range range, const uint8_t *from, uint8_t *to,
		   bool encrypt)
{
	uint64_t unit = range.off / ENCRYPT_UNIT;
	int r = 0;

	for (size_t at = 0; at < range.len && !r; at += ENCRYPT_UNIT, unit++) {
		size_t len = MIN((size_t)range.len - at, (size_t)ENCRYPT_UNIT);

		r = encrypt_xts_unit(c->xts[encrypt], unit, from + at, to + at, len);
	}
	return r;
}

/* Any thread. */
static int crypt_run(struct work *work)
{
	struct crypt *c = CONTAINER_OF(work, struct crypt, work);
	struct encrypt *x = owner_of(c);
	const struct req *parent = c->sub->parent;

	if (parent->op == REQ_FLUSH)
		return encrypt_meta_save(&x->meta);
	if (x->mode == ENCRYPT_XTS && parent->op == REQ_READ)
		return xts_run(c, parent->range, parent->data.base, parent->data.base, false);
	if (x->mode == ENCRYPT_XTS)
		return xts_run(c, parent->range, parent->data.base, c->buf, true);
	if (parent->op == REQ_READ)
		return encrypt_gcm_open(&c->gcm, &x->meta, parent->range, c->buf, parent->data.base,
					&c->chunk, &c->former);
	return encrypt_gcm_seal(&c->gcm, &x->meta, parent->range, parent->data.base, c->buf, c->seq,
				x->sync);
}

/* ---- the order ---- */

static bool in_the_way(const struct crypt *a, const struct crypt *b)
{
	const struct req *p = a->sub->parent, *q = b->sub->parent;

	return (p->op == REQ_WRITE || q->op == REQ_WRITE) && range_overlaps(p->range, q->range);
}

/* Takes it out. Those that it alone held up go on; they may end at once, and take others with them.
 */
static void active_leave(struct encrypt *x, struct crypt *c)
{
	struct link *k = c->sub->link.next;

	CHECK(!c->blockers);
	link_remove(&c->sub->link);
	for (; k != &x->active.head; k = k->next) {
		struct crypt *behind = crypt_of(k);

		if (!in_the_way(c, behind))
			continue;
		CHECK(behind->blockers);
		behind->ready = !--behind->blockers;
	}
	for (k = x->active.head.next; k != &x->active.head;) {
		struct crypt *behind = crypt_of(k);

		k = k->next;
		if (!behind->ready)
			continue;
		behind->ready = false;
		crypt_go(x, behind);
		k = x->active.head.next;
	}
}

/* ---- the way of a request ---- */

static void crypt_end(struct encrypt *x, struct crypt *c, int err)
{
	struct sub *sub = c->sub;

	/* What the far side takes for zeros is not what it decrypts to. */
	sub->req.ret_zero = false;
	if (link_linked(&sub->link))
		active_leave(x, c);
	sub_finish(sub, err);
}

static void bad_tell(struct encrypt *x, struct crypt *c)
{
	uint64_t off = c->chunk * x->meta.head.chunk;

	x->bad++;
	snprintf(x->why, sizeof(x->why), "encrypt: the chunk at %llu is not what was written there",
		 (unsigned long long)off);
	log_error(&loop_env(x->store.loop)->log, "%s", x->why);
	c->sub->req.ret_why = x->why;
}

static void next_done(struct req *req, int err);

/* Loop thread: the work is done. */
static void crypt_after(struct encrypt *x, struct crypt *c, int err)
{
	enum req_op op = c->sub->parent->op;

	x->former += op == REQ_READ && !err ? c->former : 0;
	if (op == REQ_READ && err == -EBADMSG)
		bad_tell(x, c);
	if (op == REQ_WRITE && err)
		log_error(&loop_env(x->store.loop)->log,
			  "encrypt: a write could not be prepared: %s", strerror(-err));
	if (op != REQ_WRITE || err) {
		crypt_end(x, c, err);
		return;
	}
	c->sub->req.data = (struct iobuf){ c->buf, (size_t)c->sub->parent->range.len };
	sub_send(c->sub, next_done);
}

static void work_done(struct op *op, int res)
{
	struct crypt *c = CONTAINER_OF(op, struct crypt, work.op);

	crypt_after(owner_of(c), c, res < 0 ? res : 0);
}

static void crypt_start(struct encrypt *x, struct crypt *c)
{
	const struct req *parent = c->sub->parent;
	bool here = x->mode == ENCRYPT_XTS && parent->range.len < ENCRYPT_APART_MIN;

	c->former = 0;
	if (here) {
		crypt_after(x, c, crypt_run(&c->work));
		return;
	}
	c->work.op.done = work_done;
	c->work.call = crypt_run;
	pool_run(x->store.loop, &c->work);
}

/* gcm: what the answer of the next store means for what is in doubt. */
static void write_answered(struct encrypt *x, const struct req *req, int err)
{
	if (err || (x->written && req->ret_instance != x->instance))
		encrypt_meta_doubt(&x->meta);
	x->instance = req->ret_instance;
	x->written = true;
}

static void flush_answered(struct encrypt *x, struct crypt *c, const struct req *req)
{
	if (x->written && req->ret_instance != x->instance)
		encrypt_meta_doubt(
			&x->meta); /* who took the writes is not who says that they are safe */
	else
		encrypt_meta_settle(&x->meta, c->seq);
	x->written = false;
	x->instance = req->ret_instance;
	crypt_start(x, c);
}

static void next_done(struct req *req, int err)
{
	struct crypt *c = ((struct sub *)req->user)->extra;
	struct encrypt *x = owner_of(c);
	enum req_op op = c->sub->parent->op;

	if (x->mode == ENCRYPT_GCM && op == REQ_WRITE)
		write_answered(x, req, err);
	if (op == REQ_READ && !err)
		crypt_start(x, c);
	else if (x->mode == ENCRYPT_GCM && op == REQ_FLUSH && !err && !x->store.info.read_only)
		flush_answered(x, c, req);
	else
		crypt_end(x, c, err);
}

/* Nothing is in the way. */
static void crypt_go(struct encrypt *x, struct crypt *c)
{
	struct req *req = &c->sub->req;
	const struct req *parent = c->sub->parent;

	if (x->store.aborting) {
		crypt_end(x, c, -ESHUTDOWN);
		return;
	}
	if (parent->op == REQ_WRITE) {
		if (x->mode == ENCRYPT_GCM)
			c->seq = encrypt_meta_take(&x->meta,
						   (parent->range.len + x->meta.head.chunk - 1) /
							   x->meta.head.chunk);
		crypt_start(x, c);
		return;
	}
	if (parent->op == REQ_READ && x->mode == ENCRYPT_GCM)
		req->data = (struct iobuf){ c->buf, (size_t)parent->range.len };
	sub_send(c->sub, next_done);
}

/* A FLUSH covers what was answered before it: nothing that is still under way. */
static uint64_t durable_up_to(const struct encrypt *x)
{
	uint64_t to = x->meta.used;

	LIST_EACH(k, &x->active) {
		const struct crypt *c = crypt_of(k);

		if (c->sub->parent->op == REQ_WRITE && c->seq)
			to = MIN(to, c->seq - 1);
	}
	return to;
}

static void encrypt_start(struct store *store, struct req *parent)
{
	struct encrypt *x = encrypt_of(store);
	struct sub *sub = sub_get(&x->pool, parent);
	struct crypt *c;

	CHECK(sub && parent->op != REQ_ZERO && parent->op != REQ_TRIM && parent->op != REQ_EXTENTS);
	c = sub->extra;
	c->blockers = 0;
	c->ready = false;
	c->seq = 0;
	if (parent->op == REQ_READ || parent->op == REQ_WRITE) {
		LIST_EACH(k, &x->active)
			c->blockers += in_the_way(crypt_of(k), c);
		list_push_back(&x->active, &sub->link);
	} else if (parent->op == REQ_FLUSH && x->mode == ENCRYPT_GCM) {
		c->seq = durable_up_to(x);
	}
	if (!c->blockers)
		crypt_go(x, c);
}

/* ---- the store ---- */

static void encrypt_submit(struct store *store, struct req *req)
{
	sub_pool_submit(&encrypt_of(store)->pool, req);
}

static void encrypt_abort(struct store *store)
{
	sub_pool_fail_waiting(&encrypt_of(store)->pool, -ESHUTDOWN);
}

static void encrypt_free(struct encrypt *x)
{
	for (size_t i = 0; x->pool.all && i < x->pool.count; i++) {
		struct crypt *c = x->pool.all[i].extra;

		EVP_CIPHER_CTX_free(c->xts[0]);
		EVP_CIPHER_CTX_free(c->xts[1]);
		encrypt_gcm_done(&c->gcm);
	}
	sub_pool_done(&x->pool);
	if (x->meta.fd >= 0)
		encrypt_meta_close(&x->meta);
}

static int closing_run(struct work *work)
{
	struct encrypt *x = CONTAINER_OF(work, struct encrypt, closing);

	return x->meta.fd >= 0 ? encrypt_meta_finish(&x->meta) : 0;
}

static void closing_done(struct op *op, int res)
{
	struct encrypt *x = CONTAINER_OF(op, struct encrypt, closing.op);

	/* Nothing is lost by it: the next opening doubts more than it needs to. */
	if (res < 0)
		log_warn(&loop_env(x->store.loop)->log, "encrypt: %s: %s", x->meta.path,
			 strerror(-res));
	encrypt_free(x);
	store_closed(&x->store);
}

static void encrypt_close(struct store *store)
{
	struct encrypt *x = encrypt_of(store);

	CHECK(list_empty(&x->active));
	x->closing.op.done = closing_done;
	x->closing.call = closing_run;
	pool_run(store->loop, &x->closing);
}

static char *check_text(const struct encrypt *x, char buf[static 2 * ENCRYPT_CHECK_LEN + 1])
{
	for (size_t i = 0; i < ENCRYPT_CHECK_LEN; i++)
		snprintf(buf + 2 * i, 3, "%02x", x->check[i]);
	return buf;
}

static void encrypt_status(struct store *store, char *buf, size_t len)
{
	const struct encrypt *x = encrypt_of(store);
	char check[2 * ENCRYPT_CHECK_LEN + 1];

	snprintf(buf, len, "mode=%s key=%s checked=%s bad=%llu former=%llu",
		 x->mode == ENCRYPT_GCM ? "gcm" : "xts", check_text(x, check), x->checked,
		 (unsigned long long)x->bad, (unsigned long long)x->former);
}

static const struct store_ops encrypt_ops = {
	.name = "encrypt",
	.submit = encrypt_submit,
	.abort = encrypt_abort,
	.close = encrypt_close,
	.status = encrypt_status,
};

/* ---- opening ---- */

struct encrypt_options {
	const char *mode, *meta, *check;
	uint64_t chunk;
	bool fresh, sync;
};

static int options_get(struct encrypt_options *o, struct spec_args *args, enum encrypt_mode *ret)
{
	const struct spec_part *part = args->part;
	int r;

	if ((r = spec_get_text(args, "mode", &o->mode)) ||
	    (r = spec_get_size(args, "chunk", &o->chunk)) ||
	    (r = spec_get_text(args, "meta", &o->meta)) ||
	    (r = spec_get_bool(args, "new", &o->fresh)) ||
	    (r = spec_get_text(args, "check", &o->check)) ||
	    (r = spec_get_bool(args, "sync", &o->sync)))
		return r;
	*ret = !strcmp(o->mode, "gcm") ? ENCRYPT_GCM : ENCRYPT_XTS;
	if (strcmp(o->mode, "gcm") && strcmp(o->mode, "xts"))
		return spec_error(args->spec, part->at, args->e,
				  "encrypt knows mode=xts and mode=gcm");
	if (*ret == ENCRYPT_GCM && !o->meta)
		return spec_error(args->spec, part->at, args->e,
				  "encrypt:mode=gcm keeps its tags in meta=FILE");
	if (o->fresh && !o->meta)
		return spec_error(args->spec, part->at, args->e,
				  "encrypt: new=1 makes the file of meta=FILE");
	if (o->chunk && *ret == ENCRYPT_XTS)
		return spec_error(args->spec, part->at, args->e,
				  "encrypt: chunk= belongs to mode=gcm");
	if (!o->chunk)
		o->chunk = *ret == ENCRYPT_XTS ? ENCRYPT_UNIT : ENCRYPT_CHUNK_DEFAULT;
	if (!is_pow2(o->chunk) || o->chunk < ENCRYPT_UNIT || o->chunk > STORE_ALIGN_MAX)
		return spec_error(args->spec, part->at, args->e,
				  "encrypt: chunk= is a power of two, 4K to 64K");
	return spec_options_end(args);
}

/* What the next store says, but for what must not be passed on. */
static int info_make(struct encrypt *x, const struct store_info *next, uint64_t chunk,
		     struct err *e)
{
	struct store_info *info = &x->store.info;
	uint64_t rest = next->size % ENCRYPT_UNIT, key = 0;

	*info = *next;
	info->zero = info->trim = info->extents = CAP_NONE;
	info->align = MAX(next->align, (uint32_t)chunk);
	info->len_max = (uint32_t)align_down(MIN(next->len_max, ENCRYPT_LEN_MAX), info->align);
	info->chunk = MAX(next->chunk, (uint32_t)chunk);
	memcpy(&key, x->check, sizeof(key));
	if (next->identity) /* other content than without it, or with another key */
		info->identity = (next->identity ^ key) | 1;
	if (!info->len_max)
		return err_set(e, -EINVAL,
			       "encrypt: the resource takes only requests shorter than %u bytes",
			       info->align);
	if (x->mode == ENCRYPT_XTS && rest && rest < ENCRYPT_XTS_MIN)
		return err_set(
			e, -EINVAL,
			"encrypt: %llu bytes: the last %llu, behind whole units of 4096, are fewer than the 16 that "
			"mode=xts needs; make the resource longer, or take mode=gcm",
			(unsigned long long)next->size, (unsigned long long)rest);
	return 0;
}

/* Is it the right key? */
static int key_check(struct encrypt *x, const struct encrypt_options *o, bool read_only,
		     const struct encrypt_secret *secret, struct err *e)
{
	struct meta_head want = { .mode = x->mode,
				  .chunk = (uint32_t)o->chunk,
				  .size = x->store.info.size };
	char check[2 * ENCRYPT_CHECK_LEN + 1];
	int r = 0;

	check_text(x, check);
	if (o->check && strcmp(o->check, check))
		return err_set(e, -EKEYREJECTED,
			       "wrong key: check=%s is asked for, this key's is %s", o->check,
			       check);
	memcpy(want.check, x->check, sizeof(want.check));
	if (o->meta)
		r = encrypt_meta_open(&x->meta, o->meta, o->fresh, read_only, &want, secret, e);
	x->checked = o->meta ? "meta" : o->check ? "option" : "no";
	return r;
}

static int contexts_make(struct encrypt *x, const struct encrypt_secret *secret)
{
	uint8_t key[64];
	int r;

	for (size_t i = 0; i < x->pool.count; i++) {
		struct crypt *c = x->pool.all[i].extra;

		memset(c, 0, sizeof(*c));
		c->sub = &x->pool.all[i];
	}
	if (x->mode == ENCRYPT_XTS)
		r = encrypt_derive(secret, "xts", NULL, key, 64);
	else
		r = encrypt_derive(secret, "gcm", x->meta.head.id, key, ENCRYPT_KEY_LEN);
	for (size_t i = 0; i < x->pool.count && !r; i++) {
		struct crypt *c = x->pool.all[i].extra;

		if (x->mode == ENCRYPT_GCM) {
			r = encrypt_gcm_init(&c->gcm, &x->meta, key);
			continue;
		}
		for (int d = 0; d < 2 && !r; d++)
			r = (c->xts[d] = encrypt_xts_ctx(key, d)) ? 0 : -ENOMEM;
	}
	OPENSSL_cleanse(key, sizeof(key));
	return r;
}

static int encrypt_init(struct encrypt *x, const struct store_open *how, struct spec_args *args,
			const struct store_info *next, struct encrypt_secret *secret)
{
	struct encrypt_options o = { .mode = "xts", .sync = true };
	bool read_only = how->read_only || next->read_only;
	int r;

	if ((r = encrypt_secret_get(secret, args)) || (r = options_get(&o, args, &x->mode)))
		return r;
	if (encrypt_derive(secret, "check", NULL, x->check, sizeof(x->check)))
		return err_sys(args->e, -ENOMEM, "the encrypt stage");
	if ((r = info_make(x, next, o.chunk, args->e)) ||
	    (r = key_check(x, &o, read_only, secret, args->e)))
		return r;
	x->store.info.read_only = read_only;
	x->sync = o.sync;
	r = sub_pool_init(&x->pool, &x->store, ENCRYPT_REQS_MAX,
			  sizeof(struct crypt) + ENCRYPT_LEN_MAX, encrypt_start);
	if (!r)
		r = contexts_make(x, secret);
	return r ? err_sys(args->e, r, "the encrypt stage") : 0;
}

int stage_encrypt_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		       struct store *next)
{
	struct encrypt_secret secret = { 0 };
	struct encrypt *x = calloc(1, sizeof(*x));
	char check[2 * ENCRYPT_CHECK_LEN + 1];
	int r;

	if (!x)
		return err_sys(args->e, -ENOMEM, "the encrypt stage");
	x->meta.fd = -1;
	list_init(&x->active);
	r = encrypt_init(x, how, args, &next->info, &secret);
	encrypt_secret_done(&secret);
	if (r) {
		encrypt_free(x);
		free(x);
		return r;
	}
	store_init(&x->store, &encrypt_ops, how->loop, next);
	log_info(&loop_env(how->loop)->log, "encrypt: the key's check is %s%s",
		 check_text(x, check),
		 strcmp(x->checked, "no")
			 ? ""
			 : "; nothing says whether it is the right key (check=, meta=)");
	*ret = &x->store;
	return 0;
}
