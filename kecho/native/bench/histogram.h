/* SPDX-License-Identifier: MIT */
/* A log-linear latency histogram with HdrHistogram's layout and percentile rule. */
#ifndef KECHO_NATIVE_HISTOGRAM_H
#define KECHO_NATIVE_HISTOGRAM_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Words, as in HdrHistogram: a bucket is an octave, which has sub-buckets, here called slots. The
 * first bucket has 2048 slots of width 1. Each further bucket doubles the range, with 1024 slots of
 * twice the width. The values in a slot differ by less than a thousandth. This equals a
 * HdrHistogram with lowest discernible value 1, highest trackable value 3.6e12 (an hour in
 * nanoseconds) and 3 significant digits.
 */
#define HISTOGRAM_HIGHEST  3600000000000ull
#define HISTOGRAM_DIGITS   3
#define HISTOGRAM_SUB_BITS 11
#define HISTOGRAM_HALF	   1024u /* slots of each bucket but the first */
#define HISTOGRAM_BUCKETS  32u
#define HISTOGRAM_SLOTS	   ((HISTOGRAM_BUCKETS + 1) * HISTOGRAM_HALF)

/* Has one writer. Other threads may read total meanwhile. */
struct histogram {
	uint64_t total;
	uint64_t sum;
	unsigned __int128 squares; /* sum of the squares */
	uint64_t min;		   /* UINT64_MAX while there is no sample */
	uint64_t max;
	uint64_t counts[HISTOGRAM_SLOTS];
};

/* Sets everything to zero but min. */
void histogram_init(struct histogram *h);
void histogram_merge(struct histogram *into, const struct histogram *from);

static inline unsigned int histogram_slot(uint64_t value)
{
	unsigned int bucket = 64 - HISTOGRAM_SUB_BITS -
			      (unsigned int)__builtin_clzll(value | (2 * HISTOGRAM_HALF - 1));

	return bucket * HISTOGRAM_HALF + (unsigned int)(value >> bucket);
}

/* Values above HISTOGRAM_HIGHEST are counted as HISTOGRAM_HIGHEST. */
static inline void histogram_record(struct histogram *h, uint64_t value)
{
	if (__builtin_expect(value > HISTOGRAM_HIGHEST, 0))
		value = HISTOGRAM_HIGHEST;
	h->counts[histogram_slot(value)]++;
	h->sum += value;
	h->squares += (unsigned __int128)value * value;
	if (value < h->min)
		h->min = value;
	if (value > h->max)
		h->max = value;
	__atomic_store_n(&h->total, h->total + 1, __ATOMIC_RELAXED);
}

/* A slot holds the values lowest .. lowest + width - 1. */
uint64_t histogram_slot_lowest(unsigned int slot);
uint64_t histogram_slot_width(unsigned int slot);

/*
 * Nearest rank: the highest value in the slot of the sample with rank ceil(permille * samples /
 * 1000), at most max, which is exact. `missing` more samples count as longer than all samples here;
 * false if the percentile is one of them. 0 without samples.
 */
bool histogram_percentile(const struct histogram *h, unsigned int permille, uint64_t missing,
			  uint64_t *value);

/* Both are exact and 0 without samples. The deviation is that of the population. */
double histogram_mean(const struct histogram *h);
double histogram_stdev(const struct histogram *h);

#endif
