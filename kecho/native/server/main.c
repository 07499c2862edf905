// SPDX-License-Identifier: MIT
// user-echo-server, the baseline, and path user of mode sockmap: options, threads, and their end.
#include "common/args.h"
#include "listen.h"
#include "socket.h"
#include "privileges.h"
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define MAX_THREADS 256

static const struct engine *const engines[] = {&engine_epoll, &engine_uring, &engine_sockmap};

struct options {
	struct binds binds;
	unsigned int threads;
	unsigned int busy_poll_us;
	const struct engine *engine;
	int ready_fd; /* or -1 */
	int stats_fd; /* or -1 */
	int reset_fd; /* or -1 */
	bool die_with_parent;
	pid_t parent; /* the parent that it ends with; 0: the one it was started by */
	uid_t uid;    /* or KEEP_USER */
};

static const char usage[] =
	"Usage: user-echo-server [OPTION]...\n"
	"Echo what TCP clients send, from user space, until SIGTERM or SIGINT.\n"
	"\n"
	"  --bind ADDR       listen on this numeric address; repeatable\n"
	"                    (default: 127.0.0.1 and, where there is IPv6, ::1)\n"
	"  --port PORT       1 to 65535 (default 12345)\n"
	"  --backlog N       connections that may wait for accept (default 128)\n"
	"  --threads N       threads that serve, each with its own connections (default 1)\n"
	"  --engine NAME     epoll (default), io_uring, or sockmap: epoll for connections that\n"
	"                    BPF may have in a sockhash; it measures latency\n"
	"  --listener FD     listen on this socket, which is bound already, instead of --bind and\n"
	"                    --port; repeatable\n"
	"  --busy-poll US    look for events for so many microseconds before sleeping (default 0;\n"
	"                    not with engine io_uring)\n"
	"  --ready-fd FD     write \"ready\" and a newline to FD once all addresses listen\n"
	"  --stats-fd FD     keep the counters in this file (layout: stats.h)\n"
	"  --reset-fd FD     reset the connections whose SO_COOKIE comes from this pipe (engine\n"
	"                    sockmap, one thread)\n"
	"  --die-with-parent[=PID]\n"
	"                    be killed when the thread that started this ends; PID: its process,\n"
	"                    which makes this exact even if it ends before this begins\n"
	"  --uid UID         be this user and group, and in no other, once all addresses listen\n"
	"  --help            print this\n"
	"\n"
	"Exit status: 0 ended by a signal, 1 failed, 2 wrong usage, 3 this machine cannot,\n"
	"4 the port is taken.\n"
	"\n"
	"Examples:\n"
	"  user-echo-server                             127.0.0.1 and ::1, port 12345\n"
	"  user-echo-server --bind 0.0.0.0 --port 7007  every IPv4 address\n"
	"  user-echo-server --threads 2 --backlog 4096  for thousands of connections at once\n";

static void parse_engine(const struct arg *arg, const char *text)
{
	const struct engine **engine = arg->to;

	for (size_t i = 0; i < sizeof(engines) / sizeof(engines[0]); i++) {
		if (!strcmp(engines[i]->name, text)) {
			*engine = engines[i];
			return;
		}
	}
	die(EXIT_USAGE, "--engine: there is no engine \"%s\"", text);
}

static void parse_bind(const struct arg *arg, const char *text)
{
	struct options *o = arg->to;

	if (o->binds.naddresses == MAX_BINDS)
		die(EXIT_USAGE, "--bind: at most %d addresses", MAX_BINDS);
	o->binds.addresses[o->binds.naddresses++] = text;
}

static void parse_listener(const struct arg *arg, const char *text)
{
	struct options *o = arg->to;

	if (o->binds.nfds == MAX_BINDS)
		die(EXIT_USAGE, "--listener: at most %d sockets", MAX_BINDS);
	o->binds.fds[o->binds.nfds++] = (int)parse_number(arg->name, text, 0, INT32_MAX);
}

static void parse_parent(const struct arg *arg, const char *text)
{
	struct options *o = arg->to;

	o->die_with_parent = true;
	if (text)
		o->parent = (pid_t)parse_number(arg->name, text, 1, INT32_MAX);
}

static struct options parse_options(int argc, char **argv)
{
	struct options o = {
		.binds = {.port = 12345, .backlog = 128},
		.threads = 1,
		.engine = engines[0],
		.ready_fd = -1,
		.stats_fd = -1,
		.reset_fd = -1,
		.uid = KEEP_USER,
	};
	const struct arg args[] = {
		ARG_OWN("--bind", parse_bind, o),
		ARG_OWN("--listener", parse_listener, o),
		ARG_NUMBER("--port", o.binds.port, 1, 65535),
		ARG_NUMBER("--backlog", o.binds.backlog, 1, INT32_MAX),
		ARG_NUMBER("--threads", o.threads, 1, MAX_THREADS),
		ARG_NUMBER("--busy-poll", o.busy_poll_us, 0, 1000000),
		ARG_OWN("--engine", parse_engine, o.engine),
		ARG_NUMBER("--ready-fd", o.ready_fd, 0, INT32_MAX),
		ARG_NUMBER("--stats-fd", o.stats_fd, 0, INT32_MAX),
		ARG_NUMBER("--reset-fd", o.reset_fd, 0, INT32_MAX),
		ARG_NUMBER("--uid", o.uid, 1, KEEP_USER - 1),
		{"--die-with-parent", parse_parent, &o, .bare = true},
	};

	args_parse(args, sizeof(args) / sizeof(args[0]), argc, argv, usage, NULL, NULL);
	if (o.binds.nfds && o.binds.naddresses)
		die(EXIT_USAGE, "--listener excludes --bind");
	if (o.reset_fd >= 0 && (o.engine != &engine_sockmap || o.threads > 1))
		die(EXIT_USAGE, "--reset-fd: with --engine sockmap and one thread only");
	if (o.busy_poll_us && o.engine == &engine_uring)
		die(EXIT_USAGE, "--busy-poll: not with --engine io_uring");
	o.binds.print = o.ready_fd < 0; /* started by a person */
	return o;
}

/*
 * PR_SET_PDEATHSIG reports only deaths from now on. If the parent has ended already, this process
 * has another parent.
 */
static void die_with_parent(pid_t parent)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL))
		die(EXIT_FAILED, "cannot ask to die with the parent: %s", strerror(errno));
	if (getppid() != parent)
		die(EXIT_FAILED, "the parent process %d is gone", (int)parent);
}

static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == limit.rlim_max)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit); /* if it fails, fewer connections fit */
}

/*
 * SIGTERM and SIGINT are blocked in all threads. The signal makes the descriptor readable for all
 * of them, and stays pending since no thread reads it.
 */
static int stop_fd_open(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (fd < 0)
		die(EXIT_FAILED, "signalfd: %s", strerror(errno));
	return fd;
}

static size_t stats_block_bytes(unsigned int cpus)
{
	return sizeof(struct stats_block) + cpus * sizeof(struct latency);
}

static size_t stats_size(unsigned int blocks, unsigned int cpus)
{
	return sizeof(struct stats_header) + blocks * stats_block_bytes(cpus);
}

/* fd: the parent's file, or -1 for private memory. */
static struct stats_header *stats_map(int fd, unsigned int blocks, unsigned int cpus)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	size_t bytes = stats_size(blocks, cpus);
	struct stats_header *header;

	if (fd >= 0 && (ftruncate(fd, 0) || ftruncate(fd, (off_t)bytes))) /* all zeroes */
		die(EXIT_FAILED, "cannot resize the file of --stats-fd %d: %s", fd,
		    strerror(errno));
	header = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (header == MAP_FAILED)
		die(EXIT_FAILED, "cannot map the file of --stats-fd %d: %s", fd, strerror(errno));
	if (fd >= 0)
		close(fd);

	header->version = STATS_VERSION;
	header->header_bytes = sizeof(struct stats_header);
	header->block_bytes = stats_block_bytes(cpus);
	header->blocks = blocks;
	header->cpus = cpus;
	__atomic_store_n(&header->magic, STATS_MAGIC, __ATOMIC_RELEASE);
	return header;
}

static struct stats_block *stats_block(struct stats_header *header, unsigned int i)
{
	return (struct stats_block *)((char *)(header + 1) + i * header->block_bytes);
}

static void stats_unmap(struct stats_header *header)
{
	munmap(header, stats_size((unsigned int)header->blocks, (unsigned int)header->cpus));
}

/* With no descriptor left, every client would be refused. */
static void check_room(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die(EXIT_FAILED, "no descriptor is left for a client (ulimit -n): %s",
		    strerror(errno));
	close(fd);
}

static void tell_ready(int fd)
{
	static const char line[] = "ready\n";

	if (write(fd, line, strlen(line)) != (ssize_t)strlen(line))
		die(EXIT_FAILED, "cannot write to --ready-fd %d: %s", fd, strerror(errno));
	close(fd);
}

struct thread {
	pthread_t id;
	struct worker worker;
	const struct engine *engine;
};

static void *thread_main(void *arg)
{
	struct thread *thread = arg;

	thread->engine->serve(&thread->worker);
	return NULL;
}

/* The main thread is the first worker. */
static void serve_all(struct thread *threads, unsigned int n)
{
	for (unsigned int i = 1; i < n; i++) {
		int error = pthread_create(&threads[i].id, NULL, thread_main, &threads[i]);

		if (error)
			die(EXIT_FAILED, "cannot start thread %u: %s", i, strerror(error));
	}
	thread_main(&threads[0]);
	for (unsigned int i = 1; i < n; i++)
		pthread_join(threads[i].id, NULL);
}

int main(int argc, char **argv)
{
	pid_t parent = getppid();
	struct stats_header *stats;
	struct server server = {0};
	static struct thread *threads; /* static, so that it is no leak if die() ends the process */
	struct options o;
	const char *why;

	program_name = "user-echo-server";
	o = parse_options(argc, argv);
	if (o.die_with_parent)
		die_with_parent(o.parent ? o.parent : parent);
	why = o.engine->unavailable ? o.engine->unavailable() : NULL;
	if (why)
		die(EXIT_CANNOT, "engine %s cannot run here: %s", o.engine->name, why);

	raise_descriptor_limit();
	server.stop_fd = stop_fd_open();
	server.busy_poll_us = o.busy_poll_us;
	server.reset_fd = o.reset_fd;
	if (o.engine->measures)
		server.cpus = (unsigned int)sysconf(_SC_NPROCESSORS_CONF);
	listen_all(&server, &o.binds);
	if (!spare_open())
		die(EXIT_FAILED, "cannot open /dev/null: %s", strerror(errno));
	stats = stats_map(o.stats_fd, o.threads, server.cpus);
	threads = calloc(o.threads, sizeof(*threads));
	if (!threads)
		die(EXIT_FAILED, "out of memory");
	for (unsigned int i = 0; i < o.threads; i++) {
		threads[i].engine = o.engine;
		threads[i].worker.server = &server;
		threads[i].worker.stats = stats_block(stats, i);
		threads[i].worker.latency = (struct latency *)(threads[i].worker.stats + 1);
		why = o.engine->setup(&threads[i].worker);
		if (why)
			die(EXIT_FAILED, "engine %s: %s", o.engine->name, why);
	}

	check_room();
	privileges_drop(o.uid);
	if (o.die_with_parent) /* a change of user clears the signal */
		die_with_parent(o.parent ? o.parent : parent);
	if (o.ready_fd >= 0)
		tell_ready(o.ready_fd);
	serve_all(threads, o.threads);

	for (unsigned int i = o.threads; i-- > 0;)
		o.engine->teardown(&threads[i].worker);
	free(threads);
	stats_unmap(stats);
	spare_close();
	unlisten_all(&server);
	close(server.stop_fd);
	return EXIT_DONE;
}
