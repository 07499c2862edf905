// SPDX-License-Identifier: MIT
// Reads the CPU time of the whole machine.
//
// Busy is what is not idle. The kernel measures idle time where the tick stops in it (NO_HZ), by
// the clock; user, system and softirq time it mostly samples with the tick, 100 to 1,000 times a
// second (account_process_tick, kernel/sched/cputime.c), which would say little about a short run.
#include "cpu-time.h"
#include "common/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t cpu_time_tick_ns(void)
{
	return NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK);
}

/* The CPU time of a process, by the scheduler's clock; 0 if it has gone. */
static uint64_t process_ns(pid_t pid)
{
	struct timespec time;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &time))
		return 0;
	return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

struct cpu_time cpu_time_now(const char *service)
{
	FILE *file = fopen("/proc/stat", "re");
	unsigned long long idle, iowait, steal;
	struct cpu_time now = {.wall_ns = clock_ns(), .client_ns = process_ns(0)};

	for (const char *at = service; at && *at;
	     at += strcspn(at, ",") + (strchr(at, ',') != NULL))
		now.service_ns += process_ns(atoi(at));

	if (!file)
		return now;
	/* cpu user nice system idle iowait irq softirq steal …, of all CPUs together */
	if (fscanf(file, "cpu %*u %*u %*u %llu %llu %*u %*u %llu", &idle, &iowait, &steal) == 3) {
		now.cpus = (unsigned int)sysconf(_SC_NPROCESSORS_ONLN);
		now.idle_ns = (idle + iowait) * cpu_time_tick_ns();
		now.steal_ns = steal * cpu_time_tick_ns();
	}
	fclose(file);
	return now;
}

/* Counters that went back, as iowait may (proc(5)), did not move. */
static uint64_t passed(uint64_t before, uint64_t after)
{
	return after > before ? after - before : 0;
}

struct cpu_time cpu_time_between(const struct cpu_time *begin, const struct cpu_time *end)
{
	return (struct cpu_time){
		.cpus = begin->cpus == end->cpus ? end->cpus : 0,
		.wall_ns = passed(begin->wall_ns, end->wall_ns),
		.idle_ns = passed(begin->idle_ns, end->idle_ns),
		.steal_ns = passed(begin->steal_ns, end->steal_ns),
		.client_ns = passed(begin->client_ns, end->client_ns),
		.service_ns = passed(begin->service_ns, end->service_ns),
	};
}
