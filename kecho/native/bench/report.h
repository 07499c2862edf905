/* SPDX-License-Identifier: MIT */
/* What bench prints in the end. */
#ifndef KECHO_NATIVE_REPORT_H
#define KECHO_NATIVE_REPORT_H

#include "cpu-time.h"
#include "histogram.h"
#include "options.h"
#include "samples.h"

#include <stdbool.h>
#include <stdint.h>

struct result {
	const struct options *options;
	const struct histogram *histogram;
	const struct samples *bursts; /* of a burst, sorted by duration; otherwise empty */
	uint64_t elapsed_ns;
	uint64_t late_sum_ns;
	uint64_t late_max_ns;
	uint64_t unsent;
	uint64_t warmups;
	struct cpu_time cpu;	    /* of the measured part; not of bursts */
	struct cpu_time cpu_before; /* while --look lasted */
	bool interrupted;
};

void report_text(const struct result *result);
void report_json(const struct result *result);

#endif
