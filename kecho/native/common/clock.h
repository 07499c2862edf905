/* SPDX-License-Identifier: MIT */
/* The clock of all times in the native programs. */
#ifndef KECHO_NATIVE_CLOCK_H
#define KECHO_NATIVE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_S  1000000000ull
#define NS_PER_MS 1000000ull

static inline uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

#endif
