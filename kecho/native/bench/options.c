// SPDX-License-Identifier: MIT
// bench's command line.
#include "options.h"
#include "mode.h"
#include "common/clock.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONNECTIONS 15000
#define MAX_THREADS	256
#define MAX_SIZE	(1024 * 1024)
#define LONGEST_S	3600.0

/* kecho/bench/runner.py knows these too; a test holds both sides to them. */
#define DEFAULT_PORT	    12345
#define DEFAULT_CONNECTIONS 1
#define DEFAULT_THREADS	    1
#define DEFAULT_SIZE	    64
#define DEFAULT_SEED	    1
#define DEFAULT_S	    5
#define DEFAULT_TIMEOUT_S   10
#define DEFAULT_BURSTS	    10

#define TEXT_OF(macro)	TEXT_OF_(macro)
#define TEXT_OF_(value) #value

/* clang-format off */
static const char usage[] =
	"Usage: bench [OPTION]...\n"
	"Measure the response time of a TCP echo server and verify every byte it sends.\n"
	"\n"
	"Where:\n"
	"  --host ADDR            connect to this numeric IPv4 or IPv6 address (default 127.0.0.1)\n"
	"  --port PORT            and this port (default " TEXT_OF(DEFAULT_PORT) ")\n"
	"What:\n"
	"  --connections N        keep N connections busy, 1 to " TEXT_OF(MAX_CONNECTIONS) " (default " TEXT_OF(DEFAULT_CONNECTIONS) ")\n"
	"  --threads M            share the connections among M threads (default " TEXT_OF(DEFAULT_THREADS) ")\n"
	"  --cpus LIST            run thread i on the i-th of these CPUs, as in 0,2-3\n"
	"  --size BYTES           send messages of this size, 1 to 1M (default " TEXT_OF(DEFAULT_SIZE) ")\n"
	"  --seed N               draw the payloads from N (default " TEXT_OF(DEFAULT_SEED) ")\n"
	"How long:\n"
	"  --count K              measure K requests, over all connections\n"
	"  --duration S           measure for S seconds (default " TEXT_OF(DEFAULT_S) ", unless --count is given)\n"
	"  --warmup S             verify, and do not measure, for S seconds before (default 0)\n"
	"  --look S               before anything else, see for S seconds how busy the CPUs are\n"
	"  --service PID,...      tell the CPU time of the processes that serve, too\n"
	"  --connect-timeout S    give a connection S seconds to be made (default " TEXT_OF(DEFAULT_TIMEOUT_S) ")\n"
	"  --busy-poll US         look for a reply for so many microseconds before sleeping (default 0)\n"
	"  --io-timeout S         give a reply S seconds to come (default " TEXT_OF(DEFAULT_TIMEOUT_S) ")\n"
	"Instead of the closed loop, where a connection has one request in flight:\n"
	"  --burst N              send one message on each of N connections, all at once; latency\n"
	"                         counts from that moment\n"
	"  --bursts R             make R bursts (default " TEXT_OF(DEFAULT_BURSTS) ")\n"
	"  --rate R               let R requests a second be due, over all connections; latency\n"
	"                         counts from when each was due, sent or not\n"
	"  --crr                  make a connection for each request; latency from connect() on\n"
	"  --depth D              keep D requests in flight on each connection, 1 to 1024\n"
	"Output:\n"
	"  --json                 print one JSON object; latencies are in nanoseconds\n"
	"  --hdr FILE             write the histogram as a HdrHistogram log too\n"
	"  --raw FILE             write every latency too, as little-endian 64-bit nanoseconds\n"
	"  --progress             print a JSON line on stderr every 200 ms\n"
	"  --hold                 wait after the warm-up, with such a line of phase hold, for a\n"
	"                         line on stdin\n"
	"  --dry-run              only check the options\n"
	"  --help                 print this\n"
	"\n"
	"Exit status: 0 done; 1 an error, of the server or here, told in one line; 2 wrong usage;\n"
	"130 interrupted, after printing what was measured until then.\n"
	"\n"
	"Examples:\n"
	"  bench                                          64 B ping-pong for 5 s\n"
	"  bench --cpus 1 --warmup 0.5 --count 100000     pinned, a fixed number of requests\n"
	"  bench --connections 1000 --threads 2 --size 1K --json\n"
	"  bench --burst 1000 --bursts 10                 the classic kecho benchmark\n"
	"  bench --rate 5000 --connections 10 --duration 10 --hdr out.hlog\n"
	"  bench --host ::1 --port 7 --size 1M            any echo server, in large messages\n";
/* clang-format on */

/* Parses "0,2-3" into a list that the options own. */
static void parse_cpus(const struct arg *arg, const char *text)
{
	struct options *o = arg->to;
	unsigned int *cpus = NULL, n = 0;
	const char *at = text;

	do {
		unsigned long first, last;
		unsigned int *longer;
		char *end;

		if (*at < '0' || *at > '9')
			goto err_usage;
		first = last = strtoul(at, &end, 10);
		if (*end == '-') {
			if (end[1] < '0' || end[1] > '9')
				goto err_usage;
			last = strtoul(end + 1, &end, 10);
		}
		if ((*end && *end != ',') || last < first || last >= CPU_SETSIZE)
			goto err_usage;
		longer = realloc(cpus, (n + (size_t)(last - first) + 1) * sizeof(*cpus));
		if (!longer)
			die(EXIT_FAILED, "out of memory");
		cpus = longer;
		for (; first <= last; first++)
			cpus[n++] = (unsigned int)first;
		at = *end ? end + 1 : end;
		if (*end == ',' && !*at)
			goto err_usage;
	} while (*at);
	options_free(o); /* the list of an earlier --cpus */
	o->cpus = cpus;
	o->ncpus = n;
	return;

err_usage:
	die(EXIT_USAGE, "--cpus must be a list of CPU numbers, like 0,2-3, not \"%s\"", text);
}

/* A run has one mode. The option that chose it is kept for the message about a second one. */
static void choose(const struct arg *arg, void *options)
{
	static const char *chosen;
	struct options *o = options;

	if (!arg->tag)
		return;
	if (chosen && o->mode != arg->tag)
		die(EXIT_USAGE, "%s and %s do not go together", chosen, arg->name);
	chosen = arg->name;
	o->mode = arg->tag;
}

/* Is it a list of numbers from 1 on? */
static bool is_pids(const char *text)
{
	while (*text >= '1' && *text <= '9') {
		text += strspn(text, "0123456789");
		if (*text++ != ',')
			return !text[-1];
	}
	return false;
}

static void check_options(struct options *o, unsigned int burst)
{
	if (burst && o->connections)
		die(EXIT_USAGE, "--burst has its own number of connections, no --connections");
	o->connections = burst ? burst : o->connections ? o->connections : DEFAULT_CONNECTIONS;
	if (o->threads > o->connections)
		die(EXIT_USAGE, "--threads %u is more than there are connections (%u)", o->threads,
		    o->connections);
	if (o->bursts && o->mode != &mode_burst)
		die(EXIT_USAGE, "--bursts goes with --burst");
	if (o->hold && o->mode == &mode_burst)
		die(EXIT_USAGE, "--hold and --burst do not go together");
	if (o->service && !is_pids(o->service))
		die(EXIT_USAGE, "--service must be process numbers, like 12,34, not \"%s\"",
		    o->service);
	if (!o->bursts)
		o->bursts = DEFAULT_BURSTS;
	if (o->mode->check)
		o->mode->check(o);
	if (o->count == NO_LIMIT && o->duration_ns == NO_LIMIT && o->mode != &mode_burst)
		o->duration_ns = DEFAULT_S * NS_PER_S;
}

void options_parse(struct options *o, int argc, char **argv)
{
	unsigned int burst = 0;
	bool crr;
	const struct arg args[] = {
		ARG_TEXT("--host", o->host),
		ARG_NUMBER("--port", o->port, 1, 65535),
		ARG_NUMBER("--connections", o->connections, 1, MAX_CONNECTIONS),
		ARG_NUMBER("--threads", o->threads, 1, MAX_THREADS),
		{.name = "--cpus", .parse = parse_cpus, .to = o},
		ARG_SIZE("--size", o->size_bytes, 1, MAX_SIZE),
		ARG_NUMBER("--seed", o->seed, 0, INT64_MAX),
		ARG_NUMBER("--count", o->count, 1, 1ull << 40),
		ARG_SECONDS("--duration", o->duration_ns, 0.001, 1e6),
		ARG_SECONDS("--warmup", o->warmup_ns, 0, 1e6),
		ARG_TEXT("--service", o->service),
		ARG_SECONDS("--look", o->look_ns, 0, LONGEST_S),
		ARG_SECONDS("--connect-timeout", o->connect_timeout_ns, 0.001, LONGEST_S),
		ARG_SECONDS("--io-timeout", o->io_timeout_ns, 0.001, LONGEST_S),
		ARG_NUMBER("--busy-poll", o->busy_poll_us, 0, 1000000),
		{"--burst", arg_number, &burst, sizeof(burst), 1, MAX_CONNECTIONS,
		 .tag = &mode_burst},
		ARG_NUMBER("--bursts", o->bursts, 1, 1000000),
		{"--rate", arg_decimal, &o->rate, .lowest = 0.001, .highest = 1e8,
		 .tag = &mode_open},
		{"--crr", NULL, &crr, .tag = &mode_crr},
		{"--depth", arg_number, &o->depth, sizeof(o->depth), 1, 1024,
		 .tag = &mode_pipeline},
		ARG_TEXT("--hdr", o->hdr),
		ARG_TEXT("--raw", o->raw),
		ARG_FLAG("--json", o->json),
		ARG_FLAG("--progress", o->progress),
		ARG_FLAG("--dry-run", o->dry_run),
		ARG_FLAG("--hold", o->hold),
	};

	*o = (struct options){
		.mode = &mode_closed,
		.host = "127.0.0.1",
		.port = DEFAULT_PORT,
		.threads = DEFAULT_THREADS,
		.size_bytes = DEFAULT_SIZE,
		.count = NO_LIMIT,
		.duration_ns = NO_LIMIT,
		.connect_timeout_ns = DEFAULT_TIMEOUT_S * NS_PER_S,
		.io_timeout_ns = DEFAULT_TIMEOUT_S * NS_PER_S,
		.seed = DEFAULT_SEED,
	};
	args_parse(args, sizeof(args) / sizeof(args[0]), argc, argv, usage, choose, o);
	parse_address("--host", o->host, o->port, &o->address);
	check_options(o, burst);
}

void options_free(struct options *o)
{
	free((void *)o->cpus);
}
