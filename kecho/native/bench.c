// SPDX-License-Identifier: MIT
// The load generator: options, and a run from its memory to its report.
#include "bench.h"
#include "hdr-log.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 15000
#define MAX_THREADS	256
#define MAX_SIZE	(1024 * 1024)
#define BUFFER_LEAST	(64 * 1024)
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
	if (!o->rounds)
		o->rounds = 10;
	if (o->mode->check)
		o->mode->check(o);
	if (o->count == NO_LIMIT && o->duration_ns == NO_LIMIT && o->mode != &mode_burst)
		o->duration_ns = DEFAULT_NS;
}

static void parse_options(int argc, char **argv, struct options *o)
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
		{"help", no_argument, NULL, HELP},
		{NULL, 0, NULL, 0},
	};
	int option;

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

/* Each connection a descriptor, each thread an epoll, and a few that every process has. */
static void need_descriptors(const struct options *o)
{
	rlim_t need = o->connections + o->threads + 16;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= need)
		return;
	if (limit.rlim_max < need)
		die(EXIT_FAILED, "%u connections need %llu descriptors, the hard limit is %llu",
		    o->connections, (unsigned long long)need, (unsigned long long)limit.rlim_max);
	limit.rlim_cur = need;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		die(EXIT_FAILED, "cannot raise the descriptor limit to %llu: %s",
		    (unsigned long long)need, strerror(errno));
}

/* total in n shares; the i-th of them. */
static uint64_t share(uint64_t total, unsigned int i, unsigned int n)
{
	return total / n + (i < total % n);
}

static void *allocate(size_t n, size_t size)
{
	void *memory = calloc(n, size);

	if (!memory)
		die(EXIT_FAILED, "out of memory");
	return memory;
}

static struct thread *thread_new(struct run *run, unsigned int index, uint32_t first_id)
{
	const struct options *o = run->options;
	struct thread *thread = allocate(1, sizeof(*thread));

	thread->index = index;
	thread->run = run;
	thread->nconns = (unsigned int)share(o->connections, index, o->threads);
	thread->conns = allocate(thread->nconns, sizeof(*thread->conns));
	for (unsigned int i = 0; i < thread->nconns; i++) {
		thread->conns[i].fd = -1;
		thread->conns[i].id = first_id + i;
	}
	thread->quota = o->count == NO_LIMIT ? NO_LIMIT : share(o->count, index, o->threads);
	thread->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (thread->epoll_fd < 0)
		die(EXIT_FAILED, "cannot make an epoll descriptor: %s", strerror(errno));
	thread->buffer_bytes = o->size_bytes + 1 < BUFFER_LEAST ? BUFFER_LEAST : o->size_bytes + 1;
	thread->buffer = allocate(1, thread->buffer_bytes);
	payload_init(&thread->payload, allocate(1, PAYLOAD_TEMPLATE(o->size_bytes)), o->size_bytes,
		     o->seed);
	histogram_init(&thread->histogram);
	return thread;
}

static void thread_free(struct thread *thread)
{
	samples_free(&thread->samples);
	free(thread->payload.template);
	free(thread->buffer);
	close(thread->epoll_fd);
	free(thread->conns);
	free(thread);
}

/* What all threads measured, in the first one's histogram. */
static struct result collect(struct run *run, bool interrupted)
{
	struct result result = {.options = run->options, .interrupted = interrupted};

	for (unsigned int i = 0; i < run->options->threads; i++) {
		const struct thread *thread = run->threads[i];

		if (i)
			histogram_merge(&run->threads[0]->histogram, &thread->histogram);
		if (thread->elapsed_ns > result.elapsed_ns)
			result.elapsed_ns = thread->elapsed_ns;
		if (thread->late_max_ns > result.late_max_ns)
			result.late_max_ns = thread->late_max_ns;
		result.late_sum_ns += thread->late_sum_ns;
		result.unsent += thread->unsent;
	}
	result.histogram = &run->threads[0]->histogram;
	return result;
}

/* Files are opened before the run: nobody wants to hear afterwards that they cannot be. */
struct files {
	FILE *hdr;
	FILE *raw;
};

static FILE *file_open(const char *name)
{
	FILE *file = name ? fopen(name, "w") : NULL;

	if (name && !file)
		die(EXIT_FAILED, "cannot write %s: %s", name, strerror(errno));
	return file;
}

static void file_close(FILE *file, const char *name, bool written)
{
	if (!file)
		return;
	if (fclose(file) || !written)
		die(EXIT_FAILED, "cannot write %s: %s", name, strerror(errno));
}

static struct files files_open(const struct options *o)
{
	const char *why = o->hdr ? hdr_log_unavailable() : NULL;

	if (why)
		die(EXIT_CANNOT, "--hdr: %s", why);
	return (struct files){.hdr = file_open(o->hdr), .raw = file_open(o->raw)};
}

static void files_close(const struct files *files, const struct run *run,
			const struct result *result, double start_s)
{
	const struct options *o = run->options;
	bool written = true;

	if (files->hdr && result)
		written = hdr_log_write(result->histogram, start_s,
					(double)result->elapsed_ns / 1e9, files->hdr);
	file_close(files->hdr, o->hdr, written);
	written = true;
	for (unsigned int i = 0; files->raw && result && i < o->threads; i++)
		written &= samples_write(&run->threads[i]->samples, files->raw);
	file_close(files->raw, o->raw, written);
}

static double wall_clock_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* The exit code. */
static int bench(const struct options *o)
{
	struct files files = files_open(o);
	struct run run = {.options = o};
	double start_s = wall_clock_s();
	struct result result;
	uint32_t first_id = 0;
	int interrupted;

	run.threads = allocate(o->threads, sizeof(struct thread *));
	for (unsigned int i = 0; i < o->threads; i++) {
		run.threads[i] = thread_new(&run, i, first_id);
		first_id += run.threads[i]->nconns;
	}
	interrupted = run_all(&run);
	if (run.error[0]) {
		complain("%s", run.error);
		files_close(&files, &run, NULL, start_s);
	} else {
		result = collect(&run, interrupted);
		files_close(&files, &run, &result, start_s);
		(o->json ? report_json : report_text)(&result);
	}
	for (unsigned int i = o->threads; i-- > 0;)
		thread_free(run.threads[i]);
	free(run.threads);
	return run.error[0] ? EXIT_FAILED : interrupted ? 128 + interrupted : EXIT_DONE;
}

int main(int argc, char **argv)
{
	struct options options = {
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
	int code;

	program_name = "bench";
	parse_options(argc, argv, &options);
	need_descriptors(&options);
	code = bench(&options);
	free((void *)options.cpus);
	if (fflush(stdout) || ferror(stdout)) {
		complain("cannot write the result: %s", strerror(errno));
		return EXIT_FAILED;
	}
	return code;
}
