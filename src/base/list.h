/* SPDX-License-Identifier: Apache-2.0 */
/* Intrusive doubly linked list. A link that is in no list is NULL on both sides (list_init_link) or
 * zeroed. */
#ifndef REMORA_BASE_LIST_H
#define REMORA_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "base/check.h"

struct link {
	struct link *prev, *next;
};

struct list {
	struct link head;
};

static inline void list_init(struct list *l)
{
	l->head.prev = l->head.next = &l->head;
}

static inline bool list_empty(const struct list *l)
{
	return l->head.next == &l->head;
}

static inline bool link_linked(const struct link *k)
{
	return k->next != NULL;
}

static inline void link_insert_before(struct link *at, struct link *k)
{
	CHECK(!link_linked(k));
	k->prev = at->prev;
	k->next = at;
	at->prev->next = k;
	at->prev = k;
}

static inline void list_push_back(struct list *l, struct link *k)
{
	link_insert_before(&l->head, k);
}

static inline void list_push_front(struct list *l, struct link *k)
{
	link_insert_before(l->head.next, k);
}

/* Safe on a link that is in no list. */
static inline void link_remove(struct link *k)
{
	if (!k->next)
		return;
	k->prev->next = k->next;
	k->next->prev = k->prev;
	k->prev = k->next = NULL;
}

static inline struct link *list_first(struct list *l)
{
	return list_empty(l) ? NULL : l->head.next;
}

static inline struct link *list_pop_front(struct list *l)
{
	struct link *k = list_first(l);

	if (k)
		link_remove(k);
	return k;
}

/* Moves all of `from` to the end of `to`. */
static inline void list_splice_back(struct list *to, struct list *from)
{
	if (list_empty(from))
		return;
	from->head.next->prev = to->head.prev;
	from->head.prev->next = &to->head;
	to->head.prev->next = from->head.next;
	to->head.prev = from->head.prev;
	list_init(from);
}

/* The current entry may be removed in the body; no other one. */
#define LIST_EACH(k, l)                                                                            \
	for (struct link *k = (l)->head.next, *k##_next = k->next; k != &(l)->head;                \
	     k = k##_next, k##_next = k->next)

#define LIST_ENTRY(k, type, member) CONTAINER_OF(k, type, member)

#endif
