// SPDX-License-Identifier: MIT
// The load generator: sets up a run, has it made, and reports it.
#include "conn.h"
#include "report.h"
#include "supervise.h"
#include "hdr-log.h"
#include "common/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_LEAST (64 * 1024) /* for pipelined replies */

/* A descriptor for each connection, an epoll for each thread, and a few for the process. */
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

/* The i-th of n shares of total. */
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
	samples_free(&thread->bursts);
	free(thread->payload.template);
	free(thread->buffer);
	close(thread->epoll_fd);
	free(thread->conns);
	free(thread);
}

/* Merges what all threads measured into the first thread. */
static struct result collect(struct run *run, bool interrupted)
{
	struct result result = {
		.options = run->options,
		.cpu = cpu_time_between(&run->begin, &run->end),
		.interrupted = interrupted,
	};

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
		result.warmups += thread->warmups;
	}
	result.histogram = &run->threads[0]->histogram;
	samples_sort(&run->threads[0]->bursts);
	result.bursts = &run->threads[0]->bursts;
	return result;
}

/* Files are opened before the run, so that an error does not cost the run. */
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

/* The CPU time of others: nothing of the run has begun. */
static struct cpu_time look(const struct options *o)
{
	const struct timespec time = {
		.tv_sec = (time_t)(o->look_ns / NS_PER_S),
		.tv_nsec = (long)(o->look_ns % NS_PER_S),
	};
	struct cpu_time begin, end;

	if (!o->look_ns)
		return (struct cpu_time){0};
	begin = cpu_time_now(NULL);
	nanosleep(&time, NULL);
	end = cpu_time_now(NULL);
	return cpu_time_between(&begin, &end);
}

static double wall_clock_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Returns the exit code. */
static int bench(const struct options *o)
{
	struct files files = files_open(o);
	struct cpu_time before = look(o);
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
	interrupted = supervise(&run);
	if (run.error[0]) {
		complain("%s", run.error);
		files_close(&files, &run, NULL, start_s);
	} else {
		result = collect(&run, interrupted);
		result.cpu_before = before;
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
	struct options options;
	int code;

	program_name = "bench";
	options_parse(&options, argc, argv);
	if (options.dry_run) {
		options_free(&options);
		return EXIT_DONE;
	}
	need_descriptors(&options);
	code = bench(&options);
	options_free(&options);
	if (fflush(stdout) || ferror(stdout)) {
		complain("cannot write the result: %s", strerror(errno));
		return EXIT_FAILED;
	}
	return code;
}
