/* SPDX-License-Identifier: MIT */
/* Shared by the programs whose round trips are counted: the clock, the median, the end. */
#ifndef KECHO_TESTS_TIMES_H
#define KECHO_TESTS_TIMES_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The median of @count times, which it sorts. */
static uint64_t median_ns(uint64_t *times_ns, size_t count)
{
	qsort(times_ns, count, sizeof(*times_ns), by_value);
	return times_ns[count / 2];
}

#endif
