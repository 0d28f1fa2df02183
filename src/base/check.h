/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CHECK(): a statement about our own code that holds always, kept on in release builds. Never for
 * the world's faults (those are -errno), never with side effects.
 */
#ifndef REMORA_BASE_CHECK_H
#define REMORA_BASE_CHECK_H

_Noreturn void check_failed(const char *what, const char *file, int line, const char *func);

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (__builtin_expect(!(x), 0))                                                     \
			check_failed(#x, __FILE__, __LINE__, __func__);                            \
	} while (0)

#define MUST_USE __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#if defined(__x86_64__) || defined(__i386__)
#define CPU_RELAX() __builtin_ia32_pause() /* in a loop that waits for another thread */
#else
#define CPU_RELAX() __asm__ volatile("" ::: "memory")
#endif
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
