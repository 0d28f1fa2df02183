/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Specs: the text that names a resource and the stages before it.
 *
 *   spec     = { stage "|" } backend
 *   stage    = name [ ":" option { "," option } ]
 *   backend  = name ":" rest [ "?" option { "&" option } ]     a known back end's name, else:
 *            | path                                            taken as it stands, "file:" meant
 *   option   = key "=" value                                   a value may be "(" text ")", nested
 *
 * In a back end's rest and options, %XX stands for a byte; in a bare path nothing has a meaning. A
 * path that begins with "/", "./" or "../" goes on to the end of the spec, "|" and all; other paths
 * end where a "|" would. Text in parentheses is taken as it stands, without them: a spec within a
 * spec. Everything is checked before anything is opened; errors quote the spec and point at the
 * character.
 */
#ifndef REMORA_STORE_SPEC_H
#define REMORA_STORE_SPEC_H

#include "store/store.h"

struct spec_option {
	char *key, *value;
	size_t key_at, at; /* offsets of key and value in the spec, for errors */
	bool used;
};

struct spec_part {
	char *name;	/* "retry", "file" */
	char *rest;	/* back end: what stands before '?', decoded; "" for a stage */
	size_t at, rest_at;
	struct spec_option option[SPEC_OPTIONS_MAX];
	size_t options;
};

struct spec {
	char *text;
	struct spec_part part[SPEC_STAGES_MAX + 1]; /* the last is the back end */
	size_t parts;
};

MUST_USE int spec_parse(const char *text, struct spec *ret, struct err *e);
void spec_done(struct spec *spec);

/* Error that quotes the spec with a mark under `at`. */
int spec_error(const struct spec *spec, size_t at, struct err *e, const char *fmt,
	       ...) PRINTF_LIKE(4, 5);

/* Options of one part, typed. Each leaves *ret alone when the option is absent; what nobody asked
 * for is an error at the end (spec_options_end). */
struct spec_args {
	const struct spec *spec;
	struct spec_part *part;
	struct err *e;
};
MUST_USE int spec_get_size(struct spec_args *a, const char *key, uint64_t *ret);
MUST_USE int spec_get_time(struct spec_args *a, const char *key, uint64_t *ret_ns);
MUST_USE int spec_get_rate(struct spec_args *a, const char *key, uint64_t *ret_bytes_per_s);
MUST_USE int spec_get_number(struct spec_args *a, const char *key, uint64_t min, uint64_t max,
			     uint64_t *ret);
MUST_USE int spec_get_bool(struct spec_args *a, const char *key, bool *ret); /* 0 1 no yes */
/* borrowed from the spec */
MUST_USE int spec_get_text(struct spec_args *a, const char *key, const char **ret);
MUST_USE int spec_options_end(struct spec_args *a);

struct store_open {
	struct loop *loop;
	/* asked for by the user: opens the resource without the right to write */
	bool read_only;
	/* may make it, with create_size, when it is missing (copy's destination) */
	bool create;
	uint64_t create_size;
	/* absolute, for a far side that does not answer; NEVER_NS = the default of the part */
	uint64_t deadline_ns;
	const struct remora_callbacks *callbacks; /* for "callbacks:" */
	void *callbacks_arg;
	/* The first bytes that somebody will want: a remote store may ask for them in its hello.
	 * Length 0 = none. */
	struct range first;
};

/* Opens are set-up code: they may run the loop. `next` is NULL for a back end; ownership passes to
 * the new store only on success. Every option that usage names and the user gave has been asked for
 * when open returns 0, or spec_options_end() complains. */
typedef int store_open_fn(struct store **ret, const struct store_open *how, struct spec_args *args,
			  struct store *next);

/*
 * One row of the table of back ends and stages. `usage` is one line for people, "memory:SIZE",
 * "limit:rate=RATE[,burst=SIZE]", and for spec_open(), which checks all options of all parts
 * against it before anything is opened: the keys, those outside of [] being required, and the
 * values of type SIZE, TIME, RATE, BOOL and N; any other word in capitals is free text.
 */
struct store_kind {
	const char *name;
	bool backend;
	const char *usage;
	store_open_fn *open;
};

/* Ends with a row without name. The library's own is in table.c, which names every open function
 * there is; a test of a lower layer defines its own and thereby links only what it names. */
extern const struct store_kind store_kinds[];

const struct store_kind *store_kind_find(const char *name, size_t len);
const struct store_kind *store_kind_at(size_t i); /* NULL after the last */

/* All options of one part against the kind's usage. */
MUST_USE int spec_check_options(const struct spec *spec, const struct spec_part *part,
				const struct store_kind *kind,
				struct err *e);

/* Parses and opens a whole row. 0 or -errno with the text. Puts an align stage in front of a store
 * that asks for alignment (and is not asked for one by the spec): those above may send any
 * range. */
MUST_USE int spec_open(struct store **ret, const char *text, const struct store_open *how,
		       struct err *e);

#endif
