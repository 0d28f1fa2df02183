/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify: keeps a second store beside the next one and finds out when they differ. What changes
 * data goes to both; every READ is read from both and compared; the client gets the next store's
 * answer, or -EILSEQ with the first offset at which the two are not the same.
 *
 *   READ          both, compared byte by byte
 *   WRITE ZERO    both; 0 only when both have done it
 *   FLUSH         both (the second only if it has anything to flush)
 *   PREFETCH      the next store alone
 *   TRIM          done by doing nothing: what trimmed bytes read as is each store's own affair, and
 *                 no difference
 *   EXTENTS       "all of it is data", so that whoever skips holes skips nothing here and
 *                 everything is compared
 *
 * A READ that was in flight together with a change of the same bytes may see the old data in one
 * store and the new in the other, rightly. Such a READ is marked when either of the two starts; a
 * difference in it is counted and not reported. Two changes of the same bytes in flight together
 * may end differently in the two stores, for good: a client that does this needs the order stage in
 * front. After a change that failed, the same holds for its bytes until they are written again.
 *
 * Invariants: every sub is in `active` from its start to its end and has one or two requests out
 * (`out`).
 *
 * Locking: none, everything runs on the loop's thread.
 */
#include "stage/stage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "store/sub.h"

struct pair {
	struct req req; /* to the second store */
	struct sub *sub; /* has the one to the next store */
	unsigned out;
	int err, second_err;
	bool doubtful;
	_Alignas(64) uint8_t copy[]; /* what the second store has: VERIFY_LEN_MAX bytes */
};

struct verify {
	struct store store;
	struct sub_pool pool;
	struct store *second; /* owned */
	struct list active;   /* subs, by link */
	uint64_t compared, differences, doubtful;
	char why[128];
};

static struct verify *verify_of(struct store *store)
{
	return CONTAINER_OF(store, struct verify, store);
}

static bool is_change(const struct req *req)
{
	return req->op == REQ_WRITE || req->op == REQ_ZERO;
}

/* Marks the READs that this request may surprise, or itself. */
static void doubt_mark(struct verify *v, struct sub *sub)
{
	struct pair *p = sub->extra;

	LIST_EACH(k, &v->active) {
		struct sub *other = LIST_ENTRY(k, struct sub, link);

		if (!range_overlaps(other->req.range, sub->req.range))
			continue;
		if (other->req.op == REQ_READ && is_change(&sub->req))
			((struct pair *)other->extra)->doubtful = true;
		if (sub->req.op == REQ_READ && is_change(&other->req))
			p->doubtful = true;
	}
}

static size_t difference_find(const uint8_t *a, const uint8_t *b, size_t len)
{
	size_t i = 0;

	while (i < len && a[i] == b[i])
		i++;
	return i;
}

static int pair_compare(struct verify *v, struct sub *sub)
{
	struct pair *p = sub->extra;
	const struct req *req = &sub->req;
	size_t len = (size_t)req->range.len, i;

	v->compared += len;
	if (!memcmp(req->data.base, p->copy, len))
		return 0;
	if (p->doubtful) {
		v->doubtful++;
		return 0;
	}
	v->differences++;
	i = difference_find(req->data.base, p->copy, len);
	snprintf(v->why, sizeof(v->why), "verify: byte %llu is 0x%02x, and 0x%02x in the second store",
		 (unsigned long long)(req->range.off + i), req->data.base[i], p->copy[i]);
	log_error(&loop_env(v->store.loop)->log, "%s", v->why);
	sub->req.ret_why = v->why;
	return -EILSEQ;
}

static void pair_done(struct sub *sub)
{
	struct verify *v = verify_of(sub->pool->stage);
	struct pair *p = sub->extra;
	int err = p->err;

	CHECK(p->out);
	if (--p->out)
		return;
	link_remove(&sub->link);
	if (!err && p->second_err) {
		err = p->second_err;
		snprintf(v->why, sizeof(v->why), "verify: %s of the second store: %s", req_op_name(sub->req.op),
			 strerror(-err));
		sub->req.ret_why = v->why;
	} else if (!err && sub->req.op == REQ_READ) {
		err = pair_compare(v, sub);
	}
	sub_finish(sub, err);
}

static void next_done(struct req *req, int err)
{
	struct sub *sub = req->user;

	((struct pair *)sub->extra)->err = err;
	pair_done(sub);
}

static void second_done(struct req *req, int err)
{
	struct pair *p = CONTAINER_OF(req, struct pair, req);

	p->second_err = err;
	pair_done(p->sub);
}

static bool second_needed(const struct verify *v, const struct req *req)
{
	return req->op == REQ_FLUSH ? v->second->info.flush == CAP_NATIVE : req->op != REQ_PREFETCH;
}

static void verify_start(struct store *store, struct req *parent)
{
	struct verify *v = verify_of(store);
	struct sub *sub = sub_get(&v->pool, parent);
	struct pair *p;

	CHECK(sub && parent->op != REQ_TRIM && parent->op != REQ_EXTENTS);
	p = sub->extra;
	*p = (struct pair){ .sub = sub, .out = 1 };
	doubt_mark(v, sub);
	list_push_back(&v->active, &sub->link);
	if (second_needed(v, parent)) {
		p->out++;
		p->req.op = parent->op;
		/* The second store is a witness: how durable it is does not matter. */
		p->req.flags = parent->flags & ~(uint32_t)REQ_FUA;
		p->req.range = parent->range;
		p->req.data = parent->data;
		if (parent->op == REQ_READ)
			p->req.data = (struct iobuf){ p->copy, (size_t)parent->range.len };
		p->req.done = second_done;
	}
	sub_send(sub, next_done);
	if (p->out > 1)
		req_submit(v->second, &p->req);
}

static void verify_submit(struct store *store, struct req *req)
{
	sub_pool_submit(&verify_of(store)->pool, req);
}

static void verify_abort(struct store *store)
{
	struct verify *v = verify_of(store);

	sub_pool_fail_waiting(&v->pool, -ESHUTDOWN);
	store_abort(v->second);
}

static void second_closed(void *arg)
{
	struct verify *v = arg;

	CHECK(list_empty(&v->active));
	sub_pool_done(&v->pool);
	store_closed(&v->store);
}

static void verify_close(struct store *store)
{
	struct verify *v = verify_of(store);
	struct store *second = v->second;

	v->second = NULL;
	store_close(second, second_closed, v);
}

static void verify_status(struct store *store, char *buf, size_t len)
{
	struct verify *v = verify_of(store);

	snprintf(buf, len, "compared_bytes=%llu differences=%llu doubtful=%llu", (unsigned long long)v->compared,
		 (unsigned long long)v->differences, (unsigned long long)v->doubtful);
}

static const struct store_ops verify_ops = {
	.name = "verify",
	.submit = verify_submit,
	.abort = verify_abort,
	.close = verify_close,
	.status = verify_status,
};

/* The narrower of the two stores decides. */
static void info_join(struct store_info *info, const struct store_info *next,
		      const struct store_info *second)
{
	uint64_t len_max = MIN(MIN(next->len_max, second->len_max), VERIFY_LEN_MAX);

	*info = *next;
	info->align = MAX(next->align, second->align);
	info->len_max = (uint32_t)align_down(len_max, info->align);
	info->trim = info->extents = CAP_NONE;
}

static int second_open(struct verify *v, const struct store_open *how, struct spec_args *args,
		       struct store *next)
{
	struct store_open second_how = *how;
	const char *text = NULL;
	int r;

	if ((r = spec_get_text(args, "with", &text)) || (r = spec_options_end(args)))
		return r;
	if (!text)
		return spec_error(args->spec, args->part->at, args->e, "verify needs with=(SPEC)");
	second_how.read_only = how->read_only || next->info.read_only;
	r = spec_open(&v->second, text, &second_how, args->e);
	if (r) {
		err_prefix(args->e, "the second store of verify");
		return r;
	}
	if (v->second->info.size != next->info.size)
		return err_set(args->e, -EINVAL, "verify: the stores have %llu and %llu bytes",
			       (unsigned long long)next->info.size,
			       (unsigned long long)v->second->info.size);
	if (v->second->info.read_only && !next->info.read_only && !how->read_only)
		return err_set(args->e, -EROFS, "verify: '%s' cannot be written; open everything read-only", text);
	info_join(&v->store.info, &next->info, &v->second->info);
	if (!v->store.info.len_max)
		return err_set(args->e, -EINVAL, "verify: '%s' takes only requests shorter than %u bytes", text,
			       v->store.info.align);
	return 0;
}

int stage_verify_open(struct store **ret, const struct store_open *how, struct spec_args *args,
		      struct store *next)
{
	struct verify *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return err_sys(args->e, -ENOMEM, "the verify stage");
	r = second_open(v, how, args, next);
	if (r)
		goto out;
	r = sub_pool_init(&v->pool, &v->store, VERIFY_REQS_MAX,
			  sizeof(struct pair) + VERIFY_LEN_MAX, verify_start);
	if (r) {
		r = err_sys(args->e, r, "the verify stage");
		goto out;
	}
	list_init(&v->active);
	store_init(&v->store, &verify_ops, how->loop, next);
	*ret = &v->store;
	return 0;
out:
	store_close_wait(v->second);
	free(v);
	return r;
}
