/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How progress looks: "copy  52.1 %  2.08 GiB of 4 GiB  48 MiB/s  0:42 left".
 *
 * Place: below copy_progress.c, which looks at a counter, and below the commands that are told by a
 * running process how far it is.
 *
 * Invariant: the line never is wider than the terminal.
 *
 * Locking: none.
 */
#include <string.h>
#include <time.h>

#include "base/size.h"
#include "cmd/cmd.h"

#define NEWS_NS (NS_PER_S / 5)

void meter_start(struct meter *m, const char *phase, uint64_t now, uint64_t done, uint64_t size)
{
	*m = (struct meter){
		.phase = phase, .start_ns = now, .start_done = done, .done = done, .size = size
	};
}

/* The rate is that since the oldest mark, some seconds ago. */
void meter_step(struct meter *m, uint64_t now, uint64_t done)
{
	unsigned count = MIN(m->marks, (unsigned)ARRAY_LEN(m->mark));
	unsigned oldest = m->marks > ARRAY_LEN(m->mark) ? m->marks % ARRAY_LEN(m->mark) : 0;
	uint64_t then = count ? m->mark[oldest].ns : m->start_ns,
		 had = count ? m->mark[oldest].done : m->start_done;

	m->mark[m->marks % ARRAY_LEN(m->mark)].ns = now;
	m->mark[m->marks % ARRAY_LEN(m->mark)].done = done;
	m->marks++;
	m->done = done;
	m->rate = now <= then || done < had /* it went back: a server was started anew */
			  ? 0
			  : (uint64_t)((double)(done - had) * 1e9 / (double)(now - then));
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

static uint64_t meter_left(const struct meter *m)
{
	return m->size > m->done ? (m->size - m->done) / m->rate : 0;
}

void meter_show(struct meter *m)
{
	char done[SIZE_TEXT_MAX], size[SIZE_TEXT_MAX], speed[SIZE_TEXT_MAX + 8], left[24],
		line[160];
	double percent = m->size ? 100.0 * (double)m->done / (double)m->size : 100;

	rate_format(m->rate, NS_PER_S, speed);
	snprintf(line, sizeof(line), "%s %5.1f %%  %s of %s  %s  %s left", m->phase, percent,
		 size_format(m->done, done), size_format(m->size, size), speed,
		 m->rate ? time_left(meter_left(m), left, sizeof(left)) : "?");
	fprintf(stderr, "\r%.*s\033[K", (int)out_width(stderr) - 1, line);
	fflush(stderr);
	m->shown = true;
}

void meter_json(const struct meter *m, uint64_t now)
{
	fprintf(stderr,
		"{\"event\":\"progress\",\"phase\":\"%s\",\"done\":%llu,\"size\":%llu,\"seconds\":%"
		".3f,"
		"\"bytes_per_s\":%llu,\"seconds_left\":",
		m->phase, (unsigned long long)m->done, (unsigned long long)m->size,
		(double)(now - m->start_ns) / 1e9, (unsigned long long)m->rate);
	if (m->rate)
		fprintf(stderr, "%llu}\n", (unsigned long long)meter_left(m));
	else
		fprintf(stderr, "null}\n");
}

void meter_clear(struct meter *m)
{
	if (m->shown)
		fprintf(stderr, "\r\033[K");
	m->shown = false;
}

void meter_news(struct meter *m, const char *phase, uint64_t done, uint64_t size)
{
	struct timespec ts;
	uint64_t now;

	if (!out_is_terminal(stderr))
		return;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	now = (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
	if (!m->phase || strcmp(m->phase, phase)) {
		meter_clear(m);
		meter_start(m, phase, now, done, size);
		m->shown_ns = now;
	}
	m->size = size;
	if (now - m->shown_ns < NEWS_NS)
		return;
	m->shown_ns = now;
	meter_step(m, now, done);
	meter_show(m);
}
