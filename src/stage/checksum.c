/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checksum: keeps a digest of each chunk in a file of its own, and holds against it whatever is
 * read: a chunk that is not what was written is -EIO, with a text that names it.
 *
 * Requests are whole chunks (info.align: an align stage before this one sees to it, and reads the
 * rest of a chunk that is written in part, so that it is verified, too).
 *
 *   READ    from below, then each chunk against its digest
 *   WRITE   an intent for each chunk is durable in the file; then below; then the new digests, in
 *   ZERO    memory. TRIM is a ZERO where that costs nothing
 *   FLUSH   below; then the digests, durable; then the intents go
 *
 * Data and digest cannot change at the same time. An intent says that a chunk was written since
 * the last flush: after a crash its digest may be of the data before or behind. Then the chunk is
 * in doubt: what it is read as the first time is taken for right, and its digest recorded. Chunks
 * without an intent are never in doubt. One intent serves all writes of a chunk up to the flush. A
 * store below that was started anew may have lost what was written since its last flush: the same.
 *
 * A chunk whose digest was never recorded (the resource is older than the file) is passed on and
 * counted.
 *
 * Order: requests that overlap, of which one changes something, run one after the other, since a
 * READ beside a WRITE would find neither of two digests. A request is in `order` from its start to
 * its end; it is sent when nothing before it stands against it (blockers 0).
 *
 * Invariants: marked: the intent is durable in the file. doubt is within marked. flushing: chunks
 * whose intents go when the flush under way has saved the digests: no change of them was on its way
 * when the FLUSH was sent below, and none began since. While digests are saved (FLUSH_SAVE) no
 * change begins (`held`). The file has one write at a time; who waits for it is told by
 * write_next().
 *
 * Locking: none; loop thread only, but for the pages that the pool writes.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "stage/checksum_int.h"

enum flush_state { FLUSH_NONE, FLUSH_BELOW, FLUSH_SAVE };
enum write_kind { WRITE_IDLE, WRITE_MARK, WRITE_SAVE, WRITE_REST, WRITE_CLOSE };

/* The extra of a sub. sub->link joins it to `order`. */
struct entry {
	struct sub *sub;
	unsigned blockers;
	struct link link; /* marking, mark_waiting or held */
};

struct checksum {
	struct store store;
	struct sub_pool pool;
	struct sums sums;
	unsigned shift;
	uint64_t *marked, *doubt, *flushing; /* a bit per chunk */
	size_t words;
	struct list order;
	struct list marking, mark_waiting; /* entries: of the write under way, of the next */
	struct list held;
	enum write_kind write;
	enum flush_state flush;
	struct list flush_waiting, flush_with;
	struct req flush_req;
	uint64_t instance; /* of the store below */
	uint64_t verified, unverified, mismatches, doubtful; /* chunks */
	char why[160];
};

static void write_next(struct checksum *c);
static void flush_step(struct checksum *c);
static void entry_go(struct checksum *c, struct entry *x);

static struct checksum *checksum_of(struct store *store)
{
	return CONTAINER_OF(store, struct checksum, store);
}

static uint64_t chunk_first(const struct checksum *c, const struct req *req)
{
	return req->range.off >> c->shift;
}

static uint64_t chunk_end(const struct checksum *c, const struct req *req)
{
	return (range_end(req->range) + c->sums.format.chunk - 1) >> c->shift;
}

/* The store below is another one than before: what was not flushed may be as it was. */
static void restart_check(struct checksum *c)
{
	if (c->store.next->info.instance == c->instance)
		return;
	c->instance = c->store.next->info.instance;
	memcpy(c->doubt, c->marked, c->words * sizeof(*c->doubt));
	memset(c->flushing, 0, c->words * sizeof(*c->flushing));
}

/* ---- the order ---- */

static bool entries_conflict(const struct entry *a, const struct entry *b)
{
	const struct req *x = &a->sub->req, *y = &b->sub->req;

	return (x->op != REQ_READ || y->op != REQ_READ) && range_overlaps(x->range, y->range);
}

static struct entry *entry_of(struct link *order_link)
{
	return LIST_ENTRY(order_link, struct sub, link)->extra;
}

static void entry_end(struct checksum *c, struct entry *x, int err)
{
	struct link *k = x->sub->link.next;
	struct list ready;

	list_init(&ready);
	link_remove(&x->sub->link);
	for (; k != &c->order.head; k = k->next) {
		struct entry *behind = entry_of(k);

		if (!entries_conflict(x, behind))
			continue;
		CHECK(behind->blockers);
		if (!--behind->blockers)
			list_push_back(&ready, &behind->link);
	}
	while ((k = list_pop_front(&ready)))
		entry_go(c, LIST_ENTRY(k, struct entry, link));
	sub_finish(x->sub, err);
}

/* ---- reading ---- */

static int chunk_differs(struct checksum *c, struct req *req, uint64_t chunk, const uint8_t *found)
{
	const uint8_t *want = sums_at(&c->sums, chunk);

	c->mismatches++;
	snprintf(c->why, sizeof(c->why),
		 "checksum: the chunk at byte %llu is not what was written "
		 "(%s %02x%02x%02x%02x..., not %02x%02x%02x%02x...)",
		 (unsigned long long)(chunk << c->shift),
		 sums_algorithm_name(c->sums.format.algorithm), found[0], found[1], found[2],
		 found[3], want[0], want[1], want[2], want[3]);
	log_error(&loop_env(c->store.loop)->log, "%s", c->why);
	req->ret_why = c->why;
	return -EIO;
}

static int chunk_verify(struct checksum *c, struct req *req, uint64_t chunk)
{
	uint64_t at = (chunk << c->shift) - req->range.off;
	uint8_t found[DIGEST_LEN_MAX];

	if (!sums_known(&c->sums, chunk) && !bitmap_get(c->doubt, chunk)) {
		c->unverified++;
		return 0;
	}
	sums_digest(&c->sums, req->data.base + at, sums_chunk_len(&c->sums, chunk), found);
	if (!memcmp(found, sums_at(&c->sums, chunk), c->sums.format.digest_len)) {
		bitmap_clear(c->doubt, chunk);
		c->verified++;
		return 0;
	}
	if (!bitmap_get(c->doubt, chunk))
		return chunk_differs(c, req, chunk, found);
	sums_set(&c->sums, chunk, found);
	bitmap_clear(c->doubt, chunk);
	c->doubtful++;
	return 0;
}

static void read_done(struct req *req, int err)
{
	struct sub *sub = req->user;
	struct checksum *c = checksum_of(sub->pool->stage);
	uint64_t end = chunk_end(c, req);

	restart_check(c);
	for (uint64_t chunk = chunk_first(c, req); chunk < end && !err; chunk++)
		err = chunk_verify(c, req, chunk);
	entry_end(c, sub->extra, err);
}

/* Zeros are told only where they are what was written. */
static void extents_done(struct req *req, int err)
{
	struct sub *sub = req->user;
	struct checksum *c = checksum_of(sub->pool->stage);
	struct extents *x = req->extents;
	uint64_t at = req->range.off;

	for (size_t i = 0; !err && i < x->count; i++) {
		uint64_t end = at + x->at[i].len, pos = at;

		while (x->at[i].zero && pos < end) {
			uint64_t chunk = pos >> c->shift;

			if (sums_known(&c->sums, chunk) &&
			    memcmp(sums_at(&c->sums, chunk), sums_zero(&c->sums, chunk),
				   c->sums.format.digest_len))
				break;
			pos = MIN(end, (chunk + 1) << c->shift);
		}
		if (x->at[i].zero && pos < end) {
			/* Up to the chunk that is to be read, or that one alone. */
			x->at[i].zero = pos > at;
			x->at[i].len =
				(pos > at ? pos : MIN(end, ((at >> c->shift) + 1) << c->shift)) -
				at;
			x->count = i + 1;
		}
		at = end;
	}
	sub_finish(sub, err);
}

/* ---- writing ---- */

static void change_done(struct req *req, int err)
{
	struct sub *sub = req->user;
	struct checksum *c = checksum_of(sub->pool->stage);
	uint64_t end = chunk_end(c, req);
	bool lost;

	restart_check(c);
	/* Nobody knows what is there; or an instance took it that is gone. */
	lost = err || (req->ret_instance && req->ret_instance != c->instance);
	for (uint64_t chunk = chunk_first(c, req); chunk < end; chunk++) {
		uint8_t digest[DIGEST_LEN_MAX];

		if (!err && req->op == REQ_WRITE)
			sums_digest(&c->sums,
				    req->data.base + ((chunk << c->shift) - req->range.off),
				    sums_chunk_len(&c->sums, chunk), digest);
		if (!err)
			sums_set(&c->sums, chunk,
				 req->op == REQ_WRITE ? digest : sums_zero(&c->sums, chunk));
		if (lost)
			bitmap_set(c->doubt, chunk);
		else
			bitmap_clear(c->doubt, chunk);
	}
	entry_end(c, sub->extra, err);
}

/* Nothing stands against it. */
static void entry_go(struct checksum *c, struct entry *x)
{
	struct req *req = &x->sub->req;
	bool marked = true;

	if (c->store.aborting) {
		entry_end(c, x, -ESHUTDOWN);
		return;
	}
	if (req->op == REQ_READ) {
		sub_send(x->sub, read_done);
		return;
	}
	if (c->flush == FLUSH_SAVE) {
		list_push_back(&c->held, &x->link);
		return;
	}
	for (uint64_t chunk = chunk_first(c, req), end = chunk_end(c, req); chunk < end; chunk++) {
		bitmap_clear(c->flushing, chunk);
		marked = marked && bitmap_get(c->marked, chunk);
		sums_intent_set(&c->sums, chunk, true);
	}
	if (marked) {
		sub_send(x->sub, change_done);
		return;
	}
	list_push_back(&c->mark_waiting, &x->link);
	write_next(c);
}

/* ---- the file ---- */

static void marks_done(struct checksum *c, int err)
{
	struct list ready;
	struct link *k;

	list_init(&ready);
	list_splice_back(&ready, &c->marking);
	if (err)
		snprintf(c->why, sizeof(c->why), "checksum: writing %.80s: %s", c->sums.path,
			 strerror(-err));
	if (!err && c->store.aborting)
		err = -ESHUTDOWN;
	while ((k = list_pop_front(&ready))) {
		struct entry *x = LIST_ENTRY(k, struct entry, link);
		const struct req *req = &x->sub->req;

		if (err) {
			x->sub->req.ret_why = err == -ESHUTDOWN ? NULL : c->why;
			entry_end(c, x, err);
			continue;
		}
		for (uint64_t chunk = chunk_first(c, req); chunk < chunk_end(c, req); chunk++)
			bitmap_set(c->marked, chunk);
		sub_send(x->sub, change_done);
	}
}

static void flush_end(struct checksum *c, int err)
{
	struct list answered, go;
	struct link *k;

	c->flush = FLUSH_NONE;
	list_init(&answered);
	list_init(&go);
	list_splice_back(&answered, &c->flush_with);
	list_splice_back(&go, &c->held);
	while ((k = list_pop_front(&go)))
		entry_go(c, LIST_ENTRY(k, struct entry, link));
	while ((k = list_pop_front(&answered))) {
		struct req *req = LIST_ENTRY(k, struct req, link);

		req->ret_instance = c->flush_req.ret_instance;
		req->ret_why = err ? c->flush_req.ret_why : NULL;
		req_done(req, err);
	}
}

/* The digests are safe: what was flushed with them is in doubt no more. */
static void saved(struct checksum *c, int err)
{
	if (err) {
		snprintf(c->why, sizeof(c->why), "checksum: writing %.80s: %s", c->sums.path,
			 strerror(-err));
		c->flush_req.ret_why = c->why;
	}
	restart_check(c);
	for (size_t chunk = 0; !err && (chunk = bitmap_next_set(c->flushing, c->sums.format.chunks,
								chunk)) < c->sums.format.chunks;
	     chunk++) {
		if (bitmap_get(c->doubt, chunk))
			continue;
		bitmap_clear(c->marked, chunk);
		sums_intent_set(&c->sums, chunk, false);
	}
	flush_end(c, err);
}

static void checksum_free(struct checksum *c)
{
	sub_pool_done(&c->pool);
	sums_done(&c->sums);
	free(c->marked);
}

static void write_done(struct op *op, int res)
{
	struct checksum *c = CONTAINER_OF(op, struct checksum, sums.write.work.op);
	enum write_kind kind = c->write;

	sums_write_end(&c->sums, res);
	c->write = WRITE_IDLE;
	if (kind == WRITE_CLOSE) {
		if (!res && sums_is_dirty(&c->sums, 0, c->sums.pages)) {
			c->write = WRITE_CLOSE;
			sums_write_pages(&c->sums, 0, c->sums.pages, true, write_done);
			return;
		}
		if (res)
			log_error(&loop_env(c->store.loop)->log, "checksum: writing %s: %s",
				  c->sums.path, strerror(-res));
		checksum_free(c);
		store_closed(&c->store);
		return;
	}
	/* Not synced: there are more pages. */
	if (kind == WRITE_MARK && (res || c->sums.write.sync))
		marks_done(c, res);
	else if (kind == WRITE_SAVE && (res || c->sums.write.sync))
		saved(c, res);
	else if (kind == WRITE_REST && res)
		log_warn(&loop_env(c->store.loop)->log, "checksum: writing %s: %s", c->sums.path,
			 strerror(-res));
	if (kind != WRITE_REST || !res || !list_empty(&c->mark_waiting) || c->flush == FLUSH_SAVE)
		write_next(c);
	flush_step(c);
}

/* One write at a time: intents that somebody waits for, then digests of a flush, then intents that
 * may go. */
static void write_next(struct checksum *c)
{
	struct sums *s = &c->sums;

	if (c->write != WRITE_IDLE)
		return;
	if (list_empty(&c->marking))
		list_splice_back(&c->marking, &c->mark_waiting);
	if (!list_empty(&c->marking)) {
		c->write = WRITE_MARK;
		sums_write_pages(s, 0, s->table_page, true, write_done);
	} else if (c->flush == FLUSH_SAVE) {
		c->write = WRITE_SAVE;
		sums_write_pages(s, s->table_page, s->pages, true, write_done);
	} else if (sums_is_dirty(s, 0, s->table_page) && !s->read_only && !c->store.aborting) {
		c->write = WRITE_REST;
		sums_write_pages(s, 0, s->table_page, false, write_done);
	}
}

/* ---- flush ---- */

static void flush_below_done(struct req *req, int err)
{
	struct checksum *c = CONTAINER_OF(req, struct checksum, flush_req);

	CHECK(c->flush == FLUSH_BELOW);
	restart_check(c);
	if (!err && c->store.aborting)
		err = -ESHUTDOWN;
	if (err || c->sums.read_only) {
		flush_end(c, err);
	} else {
		c->flush = FLUSH_SAVE;
		write_next(c);
	}
	flush_step(c);
}

/* Begins one, if somebody waits for it. */
static void flush_step(struct checksum *c)
{
	if (c->flush != FLUSH_NONE || list_empty(&c->flush_waiting))
		return;
	list_splice_back(&c->flush_with, &c->flush_waiting);
	c->flush = FLUSH_BELOW;
	restart_check(c);
	memcpy(c->flushing, c->marked, c->words * sizeof(*c->flushing));
	LIST_EACH(k, &c->order) {
		const struct entry *x = entry_of(k);

		if (x->sub->req.op == REQ_READ)
			continue;
		bitmap_clear_range(c->flushing, chunk_first(c, &x->sub->req),
				   chunk_end(c, &x->sub->req) - chunk_first(c, &x->sub->req));
	}
	c->flush_req = (struct req){ .op = REQ_FLUSH, .done = flush_below_done };
	if (c->store.next->info.flush == CAP_NATIVE)
		req_submit(c->store.next, &c->flush_req);
	else
		flush_below_done(&c->flush_req, 0);
}

/* ---- the store ---- */

static void pass_done(struct req *req, int err)
{
	sub_finish(req->user, err);
}

static void checksum_start(struct store *store, struct req *parent)
{
	struct checksum *c = checksum_of(store);
	struct sub *sub = sub_get(&c->pool, parent);
	struct entry *x;

	CHECK(sub);
	if (parent->op == REQ_PREFETCH || parent->op == REQ_EXTENTS) {
		sub_send(sub, parent->op == REQ_EXTENTS ? extents_done : pass_done);
		return;
	}
	if (parent->op == REQ_TRIM)
		sub->req.op = REQ_ZERO;
	x = sub->extra;
	*x = (struct entry){ .sub = sub };
	LIST_EACH(k, &c->order)
		x->blockers += entries_conflict(entry_of(k), x);
	list_push_back(&c->order, &sub->link);
	if (!x->blockers)
		entry_go(c, x);
}

static void checksum_submit(struct store *store, struct req *req)
{
	struct checksum *c = checksum_of(store);

	if (req->op == REQ_FLUSH) {
		list_push_back(&c->flush_waiting, &req->link);
		flush_step(c);
	} else {
		sub_pool_submit(&c->pool, req);
	}
}

/* What is on its way to the file or to the store below ends by itself. */
static void checksum_abort(struct store *store)
{
	struct checksum *c = checksum_of(store);
	struct list failed, entries;
	struct link *k;

	list_init(&failed);
	list_init(&entries);
	sub_pool_fail_waiting(&c->pool, -ESHUTDOWN);
	list_splice_back(&failed, &c->flush_waiting);
	list_splice_back(&entries, &c->held);
	list_splice_back(&entries, &c->mark_waiting);
	while ((k = list_pop_front(&failed)))
		req_done(LIST_ENTRY(k, struct req, link), -ESHUTDOWN);
	/* Whoever waits behind one of them is failed by entry_go(). */
	while ((k = list_pop_front(&entries)))
		entry_end(c, LIST_ENTRY(k, struct entry, link), -ESHUTDOWN);
}

static void checksum_close(struct store *store)
{
	struct checksum *c = checksum_of(store);

	CHECK(list_empty(&c->order) && c->flush == FLUSH_NONE);
	if (c->write == WRITE_IDLE && !c->sums.read_only) {
		c->write = WRITE_CLOSE;
		sums_write_pages(&c->sums, 0, c->sums.pages, true, write_done);
	} else if (c->write == WRITE_IDLE) {
		checksum_free(c);
		store_closed(store);
	} else {
		c->write = WRITE_CLOSE; /* it is under way, and told to go on */
	}
}

static void checksum_status(struct store *store, char *buf, size_t len)
{
	const struct checksum *c = checksum_of(store);

	snprintf(
		buf, len,
		"algorithm=%s chunk=%llu verified=%llu unverified=%llu mismatches=%llu doubtful=%llu",
		sums_algorithm_name(c->sums.format.algorithm),
		(unsigned long long)c->sums.format.chunk, (unsigned long long)c->verified,
		(unsigned long long)c->unverified, (unsigned long long)c->mismatches,
		(unsigned long long)c->doubtful);
}

static const struct store_ops checksum_ops = {
	.name = "checksum",
	.submit = checksum_submit,
	.abort = checksum_abort,
	.close = checksum_close,
	.status = checksum_status,
};

/* ---- for those who look at the digests ---- */

struct store *stage_checksum_find(struct store *store)
{
	while (store && store->ops != &checksum_ops)
		store = store->next;
	return store;
}

enum checksum_known stage_checksum_known(struct store *store, uint64_t off)
{
	const struct checksum *c = checksum_of(store);

	CHECK(store->ops == &checksum_ops && off < store->info.size);
	if (bitmap_get(c->doubt, off >> c->shift))
		return CHECKSUM_DOUBTFUL;
	return sums_known(&c->sums, off >> c->shift) ? CHECKSUM_KNOWN : CHECKSUM_UNKNOWN;
}

bool stage_checksum_fits(struct store *store, uint64_t off, const uint8_t *data)
{
	struct checksum *c = checksum_of(store);
	uint64_t chunk = off >> c->shift;
	uint8_t found[DIGEST_LEN_MAX];

	CHECK(store->ops == &checksum_ops && off < store->info.size);
	sums_digest(&c->sums, data, sums_chunk_len(&c->sums, chunk), found);
	return !memcmp(found, sums_at(&c->sums, chunk), c->sums.format.digest_len);
}

/* ---- opening ---- */

static int checksum_options(struct spec_args *args, struct sums_format *want, const char **ret_path,
			    bool *ret_create)
{
	const char *algorithm = NULL;
	int r;

	if ((r = spec_get_text(args, "file", ret_path)) ||
	    (r = spec_get_text(args, "algorithm", &algorithm)) ||
	    (r = spec_get_size(args, "chunk", &want->chunk)) ||
	    (r = spec_get_bool(args, "create", ret_create)) || (r = spec_options_end(args)))
		return r;
	if (!*ret_path || !**ret_path)
		return spec_error(args->spec, args->part->at, args->e, "checksum needs file=PATH");
	if (algorithm && !sums_algorithm_find(algorithm, &want->algorithm))
		return spec_error(args->spec, args->part->at, args->e,
				  "algorithm is xxh3, xxh128 or sha256, not '%s'", algorithm);
	if (want->chunk &&
	    (!is_pow2(want->chunk) || want->chunk < CHUNK_MIN || want->chunk > STORE_ALIGN_MAX))
		return spec_error(args->spec, args->part->at, args->e,
				  "chunk must be a power of two from %llu KiB to %llu KiB",
				  CHUNK_MIN / KIB, STORE_ALIGN_MAX / KIB);
	return 0;
}

static int checksum_init(struct checksum *c, const struct store_info *next, struct err *e)
{
	const struct sums_format *f = &c->sums.format;

	if (f->chunk < next->align || f->chunk > next->len_max)
		return err_set(e, -EINVAL, "checksum: chunk must be from %u to %u bytes here",
			       next->align, next->len_max);
	c->shift = log2_u64(f->chunk);
	c->words = BITMAP_WORDS(f->chunks);
	c->marked = calloc(3 * c->words + 1, sizeof(uint64_t));
	if (!c->marked || sub_pool_init(&c->pool, &c->store, CHECKSUM_REQS_MAX,
					sizeof(struct entry), checksum_start))
		return err_sys(e, -ENOMEM, "the checksum stage");
	c->doubt = c->marked + c->words;
	c->flushing = c->doubt + c->words;
	for (uint64_t chunk = 0; chunk < f->chunks; chunk++)
		if (sums_intent(&c->sums, chunk)) {
			bitmap_set(c->marked, chunk);
			bitmap_set(c->doubt, chunk);
		}
	c->store.info = *next;
	c->store.info.align = (uint32_t)f->chunk;
	c->store.info.len_max = (uint32_t)align_down(next->len_max, f->chunk);
	c->store.info.fua = CAP_NONE;
	if (next->zero != CAP_NATIVE)
		c->store.info.zero = c->store.info.trim = CAP_NONE;
	else
		c->store.info.trim = CAP_NATIVE;
	c->store.info.flush = CAP_NATIVE;
	c->store.info.chunk = MAX(next->chunk, (uint32_t)f->chunk);
	c->instance = next->instance;
	return 0;
}

int stage_checksum_open(struct store **ret, const struct store_open *how, struct spec_args *args,
			struct store *next)
{
	struct checksum *c = calloc(1, sizeof(*c));
	struct sums_format want = { .size = next->info.size, .identity = next->info.identity };
	bool create = false;
	const char *path = NULL;
	int r;

	if (!c)
		return err_sys(args->e, -ENOMEM, "the checksum stage");
	c->sums.fd = -1;
	list_init(&c->order);
	list_init(&c->marking);
	list_init(&c->mark_waiting);
	list_init(&c->held);
	list_init(&c->flush_waiting);
	list_init(&c->flush_with);
	r = checksum_options(args, &want, &path, &create);
	if (!r)
		r = sums_open(&c->sums, path, &want, create, how->read_only || next->info.read_only,
			      how->loop, args->e);
	if (!r)
		r = checksum_init(c, &next->info, args->e);
	if (r) {
		sub_pool_done(&c->pool);
		sums_done(&c->sums);
		free(c->marked);
		free(c);
		return r;
	}
	store_init(&c->store, &checksum_ops, how->loop, next);
	*ret = &c->store;
	return 0;
}
