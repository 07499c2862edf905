/* SPDX-License-Identifier: MIT */
/* Every latency of a run, for analyses that need more than a histogram. */
#ifndef KECHO_NATIVE_SAMPLES_H
#define KECHO_NATIVE_SAMPLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Has one writer. All zero means empty. */
struct samples {
	uint64_t *values;
	size_t count;
	size_t room;
};

/* False without memory. */
bool samples_grow(struct samples *s);
/* In ascending order. */
void samples_sort(struct samples *s);
void samples_free(struct samples *s);
/* Writes little-endian u64 in the order of completion. False with errno set. */
bool samples_write(const struct samples *s, FILE *file);

static inline bool samples_put(struct samples *s, uint64_t value)
{
	if (s->count == s->room && !samples_grow(s))
		return false;
	s->values[s->count++] = value;
	return true;
}

#endif
