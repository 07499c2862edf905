/* SPDX-License-Identifier: MIT */
/* A log-linear latency histogram with HdrHistogram's layout and percentile rule. */
#ifndef KECHO_NATIVE_HISTOGRAM_H
#define KECHO_NATIVE_HISTOGRAM_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Words, as HdrHistogram has them: a bucket is an octave, a sub-bucket a slot in it. The first
 * bucket has 2048 slots of width 1; each further one doubles the range with 1024 slots of twice the
 * width. A slot holds equivalent values, lowest to highest, which differ by less than a thousandth.
 * Equal to a HdrHistogram made with lowest discernible value 1, highest trackable value 3.6e12 (an
 * hour in nanoseconds) and 3 digits.
 */
#define HISTOGRAM_HIGHEST  3600000000000ull
#define HISTOGRAM_DIGITS   3
#define HISTOGRAM_SUB_BITS 11
#define HISTOGRAM_HALF	   1024u /* slots of each bucket but the first */
#define HISTOGRAM_BUCKETS  32u
#define HISTOGRAM_SLOTS	   ((HISTOGRAM_BUCKETS + 1) * HISTOGRAM_HALF)

/* One writer. total may be read by others while it grows. */
struct histogram {
	uint64_t total;
	uint64_t sum;
	unsigned __int128 squares; /* sum of the squares */
	uint64_t min;		   /* UINT64_MAX while there is no sample */
	uint64_t max;
	uint64_t counts[HISTOGRAM_SLOTS];
};

/* All zero but for min. */
void histogram_init(struct histogram *h);
void histogram_merge(struct histogram *into, const struct histogram *from);

static inline unsigned int histogram_slot(uint64_t value)
{
	unsigned int bucket = 64 - HISTOGRAM_SUB_BITS -
			      (unsigned int)__builtin_clzll(value | (2 * HISTOGRAM_HALF - 1));

	return bucket * HISTOGRAM_HALF + (unsigned int)(value >> bucket);
}

/* Values above HISTOGRAM_HIGHEST count as that. */
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

/* The values a slot holds are lowest .. lowest + width - 1. */
uint64_t histogram_slot_lowest(unsigned int slot);
uint64_t histogram_slot_width(unsigned int slot);

/*
 * Nearest rank: the highest value of the slot that holds the sample of rank
 * ceil(permille * samples / 1000), and never above max, which is exact. The samples are those here
 * and `missing` more, each of which would be longer than all of these. False when it is one of
 * those. 0 without samples.
 */
bool histogram_percentile(const struct histogram *h, unsigned int permille, uint64_t missing,
			  uint64_t *value);

/* Exact; the deviation is that of the population. Both 0 without samples. */
double histogram_mean(const struct histogram *h);
double histogram_stdev(const struct histogram *h);

#endif
