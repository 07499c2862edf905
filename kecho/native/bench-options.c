// SPDX-License-Identifier: MIT
// bench's command line.
#include "bench.h"

#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONNECTIONS 15000
#define MAX_THREADS	256
#define MAX_SIZE	(1024 * 1024)
#define DEFAULT_NS	5000000000ull
#define LONGEST_S	3600.0

static const char usage[] =
	"Usage: bench [OPTION]...\n"
	"Measure the response time of a TCP echo server and verify every byte it sends.\n"
	"\n"
	"Where:\n"
	"  --host ADDR            numeric IPv4 or IPv6 address (default 127.0.0.1)\n"
	"  --port PORT            (default 12345)\n"
	"What:\n"
	"  --connections N        1 to 15000, made first and released at once (default 1)\n"
	"  --threads M            that share the connections (default 1)\n"
	"  --cpus LIST            thread i runs on the i-th of these, as in 0,2-3\n"
	"  --size BYTES           of a message, 1 to 1M (default 64)\n"
	"  --seed N               of the payloads (default 1)\n"
	"How long:\n"
	"  --count K              measured requests, over all connections\n"
	"  --duration S           measured seconds (default 5, unless --count is given)\n"
	"  --warmup S             seconds before that, verified and not measured (default 0)\n"
	"  --connect-timeout S    a connection may take to be made (default 10)\n"
	"  --io-timeout S         a reply may take (default 10)\n"
	"Instead of the closed loop, where a connection has one request under way:\n"
	"  --burst N              N connections, made, released at once, one message each, closed\n"
	"  --rounds R             that many times (default 10)\n"
	"  --rate R               open loop: R requests a second over all connections; latency "
	"counts\n"
	"                         from when each was due, sent or not\n"
	"  --crr                  a connection for each request; latency from connect to the "
	"reply\n"
	"  --depth D              D requests under way on each connection, 1 to 1024\n"
	"Output:\n"
	"  --json                 one JSON object on stdout; latencies in nanoseconds\n"
	"  --hdr FILE             the histogram as a HdrHistogram log too\n"
	"  --raw FILE             every latency too, as little-endian 64-bit nanoseconds\n"
	"  --progress             a JSON line on stderr every 200 ms\n"
	"  --hold                 after the warm-up such a line, of phase hold; goes on after a "
	"line "
	"on stdin\n"
	"  --help                 print this\n"
	"\n"
	"Exit status: 0 done; 1 an error, of the server or here, told in one line; 2 wrong usage;\n"
	"130 interrupted, after printing what was measured until then.\n"
	"\n"
	"Examples:\n"
	"  bench                                          64 B ping-pong for 5 s\n"
	"  bench --cpus 1 --warmup 0.5 --count 100000     pinned, a fixed number of requests\n"
	"  bench --connections 1000 --threads 2 --size 1K --json\n"
	"  bench --burst 1000 --rounds 10                 the classic kecho benchmark\n"
	"  bench --rate 5000 --connections 10 --duration 10 --hdr out.hlog\n"
	"  bench --host ::1 --port 7 --size 1M            any echo server, in large messages\n";

/* "0,2-3" to a list that is the caller's. */
static unsigned int *parse_cpus(const char *text, unsigned int *n)
{
	unsigned int *cpus = NULL;
	const char *at = text;

	*n = 0;
	do {
		unsigned long first, last;
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
		cpus = realloc(cpus, (*n + (size_t)(last - first) + 1) * sizeof(*cpus));
		if (!cpus)
			die(EXIT_FAILED, "out of memory");
		for (; first <= last; first++)
			cpus[(*n)++] = (unsigned int)first;
		at = *end ? end + 1 : end;
		if (*end == ',' && !*at)
			goto err_usage;
	} while (*at);
	return cpus;

err_usage:
	die(EXIT_USAGE, "--cpus must be a list of CPU numbers, like 0,2-3, not \"%s\"", text);
}

/* A run has one mode; the option that chose it is remembered to tell two apart. */
static void choose(struct options *o, const struct mode *mode, const char *option)
{
	static const char *chosen;

	if (chosen && o->mode != mode)
		die(EXIT_USAGE, "%s and %s do not go together", chosen, option);
	chosen = option;
	o->mode = mode;
}

static void check_options(struct options *o)
{
	if (o->threads > o->connections)
		die(EXIT_USAGE, "--threads %u is more than there are connections (%u)", o->threads,
		    o->connections);
	if (o->rounds && o->mode != &mode_burst)
		die(EXIT_USAGE, "--rounds goes with --burst");
	if (o->hold && o->mode == &mode_burst)
		die(EXIT_USAGE, "--hold and --burst do not go together");
	if (!o->rounds)
		o->rounds = 10;
	if (o->mode->check)
		o->mode->check(o);
	if (o->count == NO_LIMIT && o->duration_ns == NO_LIMIT && o->mode != &mode_burst)
		o->duration_ns = DEFAULT_NS;
}

void options_parse(struct options *o, int argc, char **argv)
{
	enum {
		HOST,
		PORT,
		CONNECTIONS,
		THREADS,
		CPUS,
		SIZE,
		SEED,
		COUNT,
		DURATION,
		WARMUP,
		CONNECT_TIMEOUT,
		IO_TIMEOUT,
		BURST,
		ROUNDS,
		RATE,
		CRR,
		DEPTH,
		HDR,
		RAW,
		JSON,
		PROGRESS,
		HOLD,
		HELP
	};
	static const struct option longs[] = {
		{"host", required_argument, NULL, HOST},
		{"port", required_argument, NULL, PORT},
		{"connections", required_argument, NULL, CONNECTIONS},
		{"threads", required_argument, NULL, THREADS},
		{"cpus", required_argument, NULL, CPUS},
		{"size", required_argument, NULL, SIZE},
		{"seed", required_argument, NULL, SEED},
		{"count", required_argument, NULL, COUNT},
		{"duration", required_argument, NULL, DURATION},
		{"warmup", required_argument, NULL, WARMUP},
		{"connect-timeout", required_argument, NULL, CONNECT_TIMEOUT},
		{"io-timeout", required_argument, NULL, IO_TIMEOUT},
		{"burst", required_argument, NULL, BURST},
		{"rounds", required_argument, NULL, ROUNDS},
		{"rate", required_argument, NULL, RATE},
		{"crr", no_argument, NULL, CRR},
		{"depth", required_argument, NULL, DEPTH},
		{"hdr", required_argument, NULL, HDR},
		{"raw", required_argument, NULL, RAW},
		{"json", no_argument, NULL, JSON},
		{"progress", no_argument, NULL, PROGRESS},
		{"hold", no_argument, NULL, HOLD},
		{"help", no_argument, NULL, HELP},
		{NULL, 0, NULL, 0},
	};
	int option;

	*o = (struct options){
		.mode = &mode_closed,
		.host = "127.0.0.1",
		.port = 12345,
		.connections = 1,
		.threads = 1,
		.size_bytes = 64,
		.count = NO_LIMIT,
		.duration_ns = NO_LIMIT,
		.connect_timeout_ns = 10000000000ull,
		.io_timeout_ns = 10000000000ull,
		.seed = 1,
	};
	while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (option) {
		case HOST:
			o->host = optarg;
			break;
		case PORT:
			o->port = (uint16_t)parse_number("--port", optarg, 1, 65535);
			break;
		case CONNECTIONS:
			o->connections = (unsigned int)parse_number("--connections", optarg, 1,
								    MAX_CONNECTIONS);
			break;
		case THREADS:
			o->threads =
				(unsigned int)parse_number("--threads", optarg, 1, MAX_THREADS);
			break;
		case CPUS:
			free((void *)o->cpus);
			o->cpus = parse_cpus(optarg, &o->ncpus);
			break;
		case SIZE:
			o->size_bytes = parse_size("--size", optarg, 1, MAX_SIZE);
			break;
		case SEED:
			o->seed = parse_number("--seed", optarg, 0, INT64_MAX);
			break;
		case COUNT:
			o->count = parse_number("--count", optarg, 1, 1ull << 40);
			break;
		case DURATION:
			o->duration_ns = parse_seconds_ns("--duration", optarg, 0.001, 1e6);
			break;
		case WARMUP:
			o->warmup_ns = parse_seconds_ns("--warmup", optarg, 0, 1e6);
			break;
		case CONNECT_TIMEOUT:
			o->connect_timeout_ns =
				parse_seconds_ns("--connect-timeout", optarg, 0.001, LONGEST_S);
			break;
		case IO_TIMEOUT:
			o->io_timeout_ns =
				parse_seconds_ns("--io-timeout", optarg, 0.001, LONGEST_S);
			break;
		case BURST:
			choose(o, &mode_burst, "--burst");
			o->connections =
				(unsigned int)parse_number("--burst", optarg, 1, MAX_CONNECTIONS);
			break;
		case ROUNDS:
			o->rounds = (unsigned int)parse_number("--rounds", optarg, 1, 1000000);
			break;
		case RATE:
			choose(o, &mode_open, "--rate");
			o->rate = parse_decimal("--rate", optarg, 0.001, 1e8);
			break;
		case CRR:
			choose(o, &mode_crr, "--crr");
			break;
		case DEPTH:
			choose(o, &mode_pipeline, "--depth");
			o->depth = (unsigned int)parse_number("--depth", optarg, 1, 1024);
			break;
		case HDR:
			o->hdr = optarg;
			break;
		case RAW:
			o->raw = optarg;
			break;
		case JSON:
			o->json = true;
			break;
		case PROGRESS:
			o->progress = true;
			break;
		case HOLD:
			o->hold = true;
			break;
		case HELP:
			fputs(usage, stdout);
			exit(EXIT_DONE);
		default:
			exit(EXIT_USAGE); /* getopt_long() has said why */
		}
	}
	if (optind < argc)
		die(EXIT_USAGE, "unexpected argument \"%s\"", argv[optind]);
	parse_address("--host", o->host, o->port, &o->address);
	check_options(o);
}

void options_free(struct options *o)
{
	free((void *)o->cpus);
}
