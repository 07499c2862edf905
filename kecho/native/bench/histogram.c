// SPDX-License-Identifier: MIT
// Histograms after a run: merging, percentiles, moments.
#include "histogram.h"

#include <math.h>
#include <string.h>

void histogram_init(struct histogram *h)
{
	memset(h, 0, sizeof(*h));
	h->min = UINT64_MAX;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
	into->total += from->total;
	into->sum += from->sum;
	into->squares += from->squares;
	if (from->min < into->min)
		into->min = from->min;
	if (from->max > into->max)
		into->max = from->max;
	for (unsigned int slot = 0; slot < HISTOGRAM_SLOTS; slot++)
		into->counts[slot] += from->counts[slot];
}

static unsigned int slot_bucket(unsigned int slot)
{
	return slot < 2 * HISTOGRAM_HALF ? 0 : slot / HISTOGRAM_HALF - 1;
}

uint64_t histogram_slot_lowest(unsigned int slot)
{
	unsigned int bucket = slot_bucket(slot);

	return (uint64_t)(slot - bucket * HISTOGRAM_HALF) << bucket;
}

uint64_t histogram_slot_width(unsigned int slot)
{
	return 1ull << slot_bucket(slot);
}

bool histogram_percentile(const struct histogram *h, unsigned int permille, uint64_t missing,
			  uint64_t *value)
{
	uint64_t samples = h->total + missing, seen = 0;
	uint64_t rank = samples / 1000 * permille + (samples % 1000 * permille + 999) / 1000;
	unsigned int slot = 0;

	if (rank > h->total)
		return false;
	while (slot < HISTOGRAM_SLOTS - 1 && (seen += h->counts[slot]) < rank)
		slot++;
	*value = histogram_slot_lowest(slot) + histogram_slot_width(slot) - 1;
	if (*value > h->max)
		*value = h->max;
	return true;
}

double histogram_mean(const struct histogram *h)
{
	return h->total ? (double)h->sum / (double)h->total : 0;
}

double histogram_stdev(const struct histogram *h)
{
	long double n = (long double)h->total, mean, variance;

	if (!h->total)
		return 0;
	mean = (long double)h->sum / n;
	variance = (long double)h->squares / n - mean * mean;
	return variance > 0 ? (double)sqrtl(variance) : 0;
}
