/* SPDX-License-Identifier: MIT */
/* Writes a histogram as a HdrHistogram log. */
#ifndef KECHO_NATIVE_HDR_LOG_H
#define KECHO_NATIVE_HDR_LOG_H

#include "histogram.h"

#include <stdbool.h>
#include <stdio.h>

/* NULL, or the reason why this build cannot write logs. */
const char *hdr_log_unavailable(void);
/* Writes a log with one interval; start_s counts from the epoch. False with errno set. */
bool hdr_log_write(const struct histogram *h, double start_s, double length_s, FILE *file);

#endif
