/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `remora bench` measures: the machine's ceilings, the naive design, and ours, each as a
 * function that moves real bytes, checks them, and returns one figure. Higher layers repeat them in
 * turns and print ratios.
 */
#ifndef REMORA_CMD_BENCH_H
#define REMORA_CMD_BENCH_H

#include <stdint.h>

#include "base/err.h"

struct bench_env {
	uint64_t size;	   /* bytes of the bulk measurements */
	uint64_t sum;	   /* of all 64-bit words of the file */
	char dir[64];	   /* a temporary directory */
	char file[128];	   /* in it: `size` bytes of seeded noise */
	char server[128];  /* spec of a server (another process) of that file over a unix socket */
	char scratch[128]; /* the same server, `size` bytes of memory that may be written */
	const char *loop;  /* "io_uring", "epoll", NULL */
	int failed;	   /* content checks that failed */
};

/* Each returns a figure > 0, or -errno with the text. Throughput: bytes per second. Latency: ns. */

double bench_copy_ceiling(struct bench_env *b, struct err *e);	  /* memcpy between warm buffers */
/* unix stream, 256 KiB, one process to another */
double bench_socket_ceiling(struct bench_env *b, struct err *e);
/* UFFDIO_COPY 256 KiB, one thread */
double bench_install_ceiling(struct bench_env *b, struct err *e);
/* p50: blocking read, 4 KiB UFFDIO_CONTINUE, same core */
double bench_bare_fault(struct bench_env *b, struct err *e);
/* one thread on another core, 4 KiB per fault, blocking pread */
double bench_naive_scan(struct bench_env *b, struct err *e);
/* summing resident memory of the same kind */
double bench_plain_read(struct bench_env *b, struct err *e);

double bench_fault_near(struct bench_env *b, struct err *e);  /* p50, data near */
/* sequential, on demand, file: in this process */
double bench_cold_file(struct bench_env *b, struct err *e);
double bench_cold_server(struct bench_env *b, struct err *e); /* the same from the server */
double bench_pull_server(struct bench_env *b, struct err *e); /* background pull of everything */
double bench_pull_file(struct bench_env *b, struct err *e);
/* summing resident memory of a region */
double bench_resident(struct bench_env *b, struct err *e);
double bench_dirty_find(struct bench_env *b, struct err *e);  /* ns to find 1 % written pages */
double bench_write_back(struct bench_env *b, struct err *e);  /* write all, flush to the server */

/* Shared by both files. */
uint64_t bench_sum(const void *mem, uint64_t len);
uint64_t bench_now(void);
void bench_pin(int core); /* this thread stays there */
/* Touches each page once in a seeded random order; the latencies, sorted. */
void bench_touch_random(const uint8_t *mem, unsigned pages, uint64_t *ret_sorted_ns);

#endif
