/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress: a line on the terminal that is written over, or lines of JSON on stderr.
 *
 * Place: looks at a counter five times a second; nothing calls it.
 *
 * Invariant: the line never is wider than the terminal, and is gone when anything else is printed
 * (progress_stop).
 *
 * Locking: none; loop thread.
 */
#include <string.h>

#include "base/size.h"
#include "cmd/copy.h"

#define SHOW_NS (NS_PER_S / 5)

/* Bytes per second over the marks, the last few seconds. */
static uint64_t progress_rate(struct progress *p, uint64_t now)
{
	unsigned count = MIN(p->marks, (unsigned)ARRAY_LEN(p->mark));
	unsigned oldest = p->marks > ARRAY_LEN(p->mark) ? p->marks % ARRAY_LEN(p->mark) : 0;
	uint64_t then = count ? p->mark[oldest].ns : p->start_ns,
		 had = count ? p->mark[oldest].done : p->start_done;
	uint64_t done = *p->done;

	p->mark[p->marks % ARRAY_LEN(p->mark)].ns = now;
	p->mark[p->marks % ARRAY_LEN(p->mark)].done = done;
	p->marks++;
	if (now <= then || done < had) /* it went back: a server was started anew */
		return 0;
	return (uint64_t)((double)(done - had) * 1e9 / (double)(now - then));
}

static const char *time_left(uint64_t seconds, char *buf, size_t len)
{
	if (seconds >= 100 * 3600)
		snprintf(buf, len, "days");
	else if (seconds >= 3600)
		snprintf(buf, len, "%llu:%02llu:%02llu", (unsigned long long)seconds / 3600,
			 (unsigned long long)seconds / 60 % 60, (unsigned long long)seconds % 60);
	else
		snprintf(buf, len, "%llu:%02llu", (unsigned long long)seconds / 60,
			 (unsigned long long)seconds % 60);
	return buf;
}

static void progress_line(struct progress *p, uint64_t rate)
{
	char done[SIZE_TEXT_MAX], size[SIZE_TEXT_MAX], speed[SIZE_TEXT_MAX + 8], left[24],
		line[160];
	double percent = p->size ? 100.0 * (double)*p->done / (double)p->size : 100;

	rate_format(rate, NS_PER_S, speed);
	snprintf(line, sizeof(line), "%s %5.1f %%  %s of %s  %s  %s left", p->phase, percent,
		 size_format(*p->done, done), size_format(p->size, size), speed,
		 rate ? time_left((p->size - *p->done) / rate, left, sizeof(left)) : "?");
	fprintf(stderr, "\r%.*s\033[K", (int)out_width(stderr) - 1, line);
	fflush(stderr);
	p->shown = true;
}

static void progress_json(struct progress *p, uint64_t now, uint64_t rate)
{
	fprintf(stderr,
		"{\"event\":\"progress\",\"phase\":\"%s\",\"done\":%llu,\"size\":%llu,\"seconds\":%"
		".3f,"
		"\"bytes_per_s\":%llu,\"seconds_left\":",
		p->phase, (unsigned long long)*p->done, (unsigned long long)p->size,
		(double)(now - p->start_ns) / 1e9, (unsigned long long)rate);
	if (rate)
		fprintf(stderr, "%llu}\n", (unsigned long long)((p->size - *p->done) / rate));
	else
		fprintf(stderr, "null}\n");
}

static void progress_show(struct timer *timer)
{
	struct progress *p = CONTAINER_OF(timer, struct progress, timer);
	uint64_t now = loop_now(p->loop), rate = progress_rate(p, now);

	if (p->kind == PROGRESS_JSON)
		progress_json(p, now, rate);
	else
		progress_line(p, rate);
	timer_set(p->loop, timer, now + SHOW_NS);
}

void progress_start(struct progress *p, struct loop *loop, unsigned kind, const char *phase,
		    const uint64_t *done, uint64_t size)
{
	memset(p, 0, sizeof(*p));
	p->loop = loop;
	p->kind = (enum progress_kind)kind;
	if (p->kind == PROGRESS_AUTO && !out_is_terminal(stderr))
		p->kind = PROGRESS_NONE;
	p->phase = phase;
	p->done = done;
	p->size = size;
	p->start_ns = loop_now_fresh(loop);
	p->start_done = *done;
	p->timer.fire = progress_show;
	if (p->kind != PROGRESS_NONE)
		timer_set(loop, &p->timer, p->start_ns + SHOW_NS);
}

void progress_stop(struct progress *p)
{
	if (!p->loop)
		return;
	timer_clear(p->loop, &p->timer);
	if (p->kind == PROGRESS_JSON)
		progress_json(p, loop_now_fresh(p->loop),
			      progress_rate(p, loop_now_fresh(p->loop)));
	if (p->shown)
		fprintf(stderr, "\r\033[K");
	p->shown = false;
	p->loop = NULL;
}
