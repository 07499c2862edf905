// SPDX-License-Identifier: MIT
// Prints the result as a table for people, or as a JSON object for programs.
#include "report.h"
#include "mode.h"

#include <stdio.h>

static const struct {
	const char *key, *title;
	unsigned int permille;
} percentiles[] = {
	{"p50", "p50", 500},
	{"p90", "p90", 900},
	{"p99", "p99", 990},
	{"p999", "p99.9", 999},
};
#define PERCENTILES (sizeof(percentiles) / sizeof(percentiles[0]))

static uint64_t result_bytes(const struct result *r)
{
	return r->histogram->total * r->options->size_bytes;
}

static void print_us(const char *title, double ns)
{
	printf("    %-8s %16.3f us\n", title, ns / 1e3);
}

void report_text(const struct result *r)
{
	const struct options *o = r->options;
	const struct histogram *h = r->histogram;
	double s = (double)r->elapsed_ns / 1e9;
	double rate = s > 0 ? (double)h->total / s : 0;

	printf("%s %s, %u connection%s, %u thread%s, %zu B%s\n", o->mode->name, o->address.text,
	       o->connections, o->connections == 1 ? "" : "s", o->threads,
	       o->threads == 1 ? "" : "s", o->size_bytes, r->interrupted ? ", interrupted" : "");
	printf("  %-10s %16llu     in %.3f s\n", "requests", (unsigned long long)h->total, s);
	printf("  %-10s %16.0f /s  %.3f MB/s each way\n", "rate", rate,
	       rate * (double)o->size_bytes / 1e6);
	if (!h->total)
		return;
	if (r->cpu.cpus)
		printf("  %-10s %16.3f us  a request, of the whole machine\n", "CPU time",
		       (double)cpu_time_busy_ns(&r->cpu) / (double)h->total / 1e3);
	if (o->mode == &mode_open)
		printf("  %-10s %16.3f us  at most %.3f us; %llu never sent\n", "late by",
		       (double)r->late_sum_ns / (double)h->total / 1e3,
		       (double)r->late_max_ns / 1e3, (unsigned long long)r->unsent);
	if (r->bursts->count) {
		const size_t longest = r->bursts->count - 1, median = longest / 2;

		printf("  %-10s %16.3f us  p50; at most %.3f us\n", "burst",
		       (double)r->bursts->values[median] / 1e3,
		       (double)r->bursts->values[longest] / 1e3);
	}
	printf("  latency\n");
	print_us("min", (double)h->min);
	print_us("mean", histogram_mean(h));
	print_us("stdev", histogram_stdev(h));
	for (size_t i = 0; i < PERCENTILES; i++) {
		uint64_t ns;

		if (histogram_percentile(h, percentiles[i].permille, r->unsent, &ns))
			print_us(percentiles[i].title, (double)ns);
		else
			printf("    %-8s %16s\n", percentiles[i].title, "never sent");
	}
	print_us("max", (double)h->max);
}

static void print_latency(const struct histogram *h, uint64_t unsent)
{
	const char *comma = "";

	printf("{\"count\":%llu,\"min\":%llu,\"mean\":%.3f,\"stdev\":%.3f",
	       (unsigned long long)h->total, (unsigned long long)(h->total ? h->min : 0),
	       histogram_mean(h), histogram_stdev(h));
	for (size_t i = 0; i < PERCENTILES; i++) {
		uint64_t ns;

		if (histogram_percentile(h, percentiles[i].permille, unsent, &ns))
			printf(",\"%s\":%llu", percentiles[i].key, (unsigned long long)ns);
		else
			printf(",\"%s\":null", percentiles[i].key);
	}
	printf(",\"max\":%llu,\"buckets\":[", (unsigned long long)h->max);
	for (unsigned int slot = 0; slot < HISTOGRAM_SLOTS; slot++) {
		uint64_t lowest = histogram_slot_lowest(slot);

		if (!h->counts[slot])
			continue;
		printf("%s[%llu,%llu,%llu]", comma, (unsigned long long)lowest,
		       (unsigned long long)lowest + histogram_slot_width(slot),
		       (unsigned long long)h->counts[slot]);
		comma = ",";
	}
	printf("]}");
}

static void print_bursts(const struct result *r)
{
	const struct samples *bursts = r->bursts;

	printf(",\"bursts\":%u", r->options->bursts);
	if (bursts->count)
		printf(",\"burst_ns\":{\"min\":%llu,\"p50\":%llu,\"max\":%llu}",
		       (unsigned long long)bursts->values[0],
		       (unsigned long long)bursts->values[(bursts->count - 1) / 2],
		       (unsigned long long)bursts->values[bursts->count - 1]);
}

static void print_cpu(const char *key, const struct cpu_time *span)
{
	if (span->cpus)
		printf(",\"%s\":{\"cpus\":%u,\"elapsed_ns\":%llu,\"idle_ns\":%llu,"
		       "\"steal_ns\":%llu,\"tick_ns\":%llu,\"client_ns\":%llu,"
		       "\"service_ns\":%llu}",
		       key, span->cpus, (unsigned long long)span->wall_ns,
		       (unsigned long long)span->idle_ns, (unsigned long long)span->steal_ns,
		       (unsigned long long)cpu_time_tick_ns(), (unsigned long long)span->client_ns,
		       (unsigned long long)span->service_ns);
}

/* No string here needs escaping: the host is a numeric address. */
void report_json(const struct result *r)
{
	const struct options *o = r->options;

	printf("{\"schema\":1,\"mode\":\"%s\",\"host\":\"%s\",\"port\":%u,\"connections\":%u,"
	       "\"threads\":%u,\"size_bytes\":%zu,\"warmup_s\":%.15g,\"seed\":%llu",
	       o->mode->name, o->host, o->port, o->connections, o->threads, o->size_bytes,
	       (double)o->warmup_ns / 1e9, (unsigned long long)o->seed);
	if (o->hold)
		printf(",\"held\":true");
	if (o->busy_poll_us)
		printf(",\"busy_poll_us\":%u", o->busy_poll_us);
	if (o->mode == &mode_burst)
		print_bursts(r);
	else
		printf(",\"warmup_requests\":%llu", (unsigned long long)r->warmups);
	if (o->mode == &mode_pipeline)
		printf(",\"depth\":%u", o->depth);
	if (o->mode == &mode_open)
		printf(",\"rate_per_s\":%.15g,\"unsent\":%llu,\"late_ns\":{\"mean\":%.3f,\"max\":%"
		       "llu}",
		       o->rate, (unsigned long long)r->unsent,
		       r->histogram->total ? (double)r->late_sum_ns / (double)r->histogram->total
					   : 0,
		       (unsigned long long)r->late_max_ns);
	print_cpu("cpu", &r->cpu);
	print_cpu("cpu_before", &r->cpu_before);
	printf(",\"elapsed_ns\":%llu,\"requests\":%llu,\"bytes\":%llu,\"interrupted\":%s,\"latency_"
	       "ns\":",
	       (unsigned long long)r->elapsed_ns, (unsigned long long)r->histogram->total,
	       (unsigned long long)result_bytes(r), r->interrupted ? "true" : "false");
	print_latency(r->histogram, r->unsent);
	printf("}\n");
}
