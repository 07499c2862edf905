// SPDX-License-Identifier: MIT
// What is done with a histogram once the run is over: merging, percentiles, moments.
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

uint64_t histogram_percentile(const struct histogram *h, double percentile)
{
	uint64_t rank = (uint64_t)(percentile * (double)h->total / 100 + 0.5);
	uint64_t seen = 0;

	if (rank < 1)
		rank = 1;
	for (unsigned int slot = 0; slot < HISTOGRAM_SLOTS; slot++) {
		seen += h->counts[slot];
		if (seen >= rank) {
			uint64_t highest =
				histogram_slot_lowest(slot) + histogram_slot_width(slot) - 1;

			return highest < h->max ? highest : h->max;
		}
	}
	return h->max;
}

double histogram_mean(const struct histogram *h)
{
	return h->total ? (double)h->sum / (double)h->total : 0;
}

double histogram_stdev(const struct histogram *h)
{
	double mean = histogram_mean(h), squares = 0;

	for (unsigned int slot = 0; slot < HISTOGRAM_SLOTS; slot++) {
		double middle = (double)histogram_slot_lowest(slot) +
				(double)(histogram_slot_width(slot) - 1) / 2;

		squares += (double)h->counts[slot] * (middle - mean) * (middle - mean);
	}
	return h->total ? sqrt(squares / (double)h->total) : 0;
}
