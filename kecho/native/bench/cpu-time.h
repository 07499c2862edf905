/* SPDX-License-Identifier: MIT */
/* The CPU time of the whole machine, by /proc/stat, and that of client and service. */
#ifndef KECHO_NATIVE_CPU_TIME_H
#define KECHO_NATIVE_CPU_TIME_H

#include <stdbool.h>
#include <stdint.h>

/* At a moment: since boot, over all CPUs. Of a span: the difference, with how long it was. */
struct cpu_time {
	unsigned int cpus; /* online; 0: not known */
	uint64_t wall_ns;
	uint64_t idle_ns; /* while waiting for a disk too */
	uint64_t steal_ns;
	uint64_t client_ns;  /* of this process */
	uint64_t service_ns; /* of the processes that serve it */
};

/* @service: the processes that serve, as in "12,34", or NULL. */
struct cpu_time cpu_time_now(const char *service);
/* Not known if CPUs came or went. */
struct cpu_time cpu_time_between(const struct cpu_time *begin, const struct cpu_time *end);
/* The resolution of /proc/stat. */
uint64_t cpu_time_tick_ns(void);

/* The CPU time in which the machine was not idle. */
static inline uint64_t cpu_time_busy_ns(const struct cpu_time *span)
{
	const uint64_t all_ns = span->cpus * span->wall_ns;

	return all_ns > span->idle_ns ? all_ns - span->idle_ns : 0;
}

#endif
