/* SPDX-License-Identifier: MIT */
/* Writes a histogram as a HdrHistogram log, which many libraries and tools read. */
#ifndef KECHO_NATIVE_HDR_LOG_H
#define KECHO_NATIVE_HDR_LOG_H

#include "histogram.h"

#include <stdbool.h>
#include <stdio.h>

/* NULL, or why this build cannot. */
const char *hdr_log_unavailable(void);
/* A log with one interval. start_s: of the interval, since the epoch. False with errno set. */
bool hdr_log_write(const struct histogram *h, double start_s, double length_s, FILE *file);

#endif
