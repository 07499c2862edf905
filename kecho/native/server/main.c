// SPDX-License-Identifier: MIT
// user-echo-server, the baseline: options, listeners, threads, and their end.
#include "common/args.h"
#include "socket.h"
#include "privileges.h"
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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

#define MAX_BINDS   64
#define MAX_THREADS 256

static const struct engine *const engines[] = {&engine_epoll, &engine_uring};

struct options {
	const char *binds[MAX_BINDS];
	unsigned int nbinds;
	uint16_t port;
	int backlog;
	unsigned int threads;
	const struct engine *engine;
	int ready_fd; /* or -1 */
	int stats_fd; /* or -1 */
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
	"  --engine NAME     epoll (default) or io_uring\n"
	"  --ready-fd FD     write \"ready\" and a newline to FD once all addresses listen\n"
	"  --stats-fd FD     keep the counters in this file (layout: stats.h)\n"
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

	if (o->nbinds == MAX_BINDS)
		die(EXIT_USAGE, "--bind: at most %d addresses", MAX_BINDS);
	o->binds[o->nbinds++] = text;
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
		.port = 12345,
		.backlog = 128,
		.threads = 1,
		.engine = engines[0],
		.ready_fd = -1,
		.stats_fd = -1,
		.uid = KEEP_USER,
	};
	const struct arg args[] = {
		ARG_OWN("--bind", parse_bind, o),
		ARG_NUMBER("--port", o.port, 1, 65535),
		ARG_NUMBER("--backlog", o.backlog, 1, INT32_MAX),
		ARG_NUMBER("--threads", o.threads, 1, MAX_THREADS),
		ARG_OWN("--engine", parse_engine, o.engine),
		ARG_NUMBER("--ready-fd", o.ready_fd, 0, INT32_MAX),
		ARG_NUMBER("--stats-fd", o.stats_fd, 0, INT32_MAX),
		ARG_NUMBER("--uid", o.uid, 1, KEEP_USER - 1),
		{"--die-with-parent", parse_parent, &o, .bare = true},
	};

	args_parse(args, sizeof(args) / sizeof(args[0]), argc, argv, usage, NULL, NULL);
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

/* Returns the descriptor of a listening socket, or -1 with errno set. */
static int listen_on(const struct address *address, int backlog)
{
	static const int on = 1;
	int fd = socket(address->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int why;

	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		goto err_close;
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		goto err_close;
	/* Keepalive ends the connections of clients that have vanished. */
	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)))
		goto err_close;
	/* An urgent byte is echoed like any other. */
	if (setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on)))
		goto err_close;
	if (address->sa.ss_family == AF_INET6 &&
	    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)))
		goto err_close;
	if (bind(fd, (const struct sockaddr *)&address->sa, address->sa_len))
		goto err_close;
	if (listen(fd, backlog))
		goto err_close;
	return fd;

err_close:
	why = errno;
	close(fd);
	errno = why;
	return -1;
}

static bool is_missing_family(int error)
{
	return error == EAFNOSUPPORT || error == EADDRNOTAVAIL;
}

static void listen_all(struct server *server, const struct options *o)
{
	static const char *const loopback[] = {"127.0.0.1", "::1"};
	const char *const *binds = o->nbinds ? o->binds : loopback;
	unsigned int n = o->nbinds ? o->nbinds : 2;
	struct address *addresses = calloc(n, sizeof(*addresses));

	server->listeners = calloc(n, sizeof(*server->listeners));
	if (!addresses || !server->listeners)
		die(EXIT_FAILED, "out of memory");
	for (unsigned int i = 0; i < n; i++) /* usage errors first */
		parse_address("--bind", binds[i], o->port, &addresses[i]);
	for (unsigned int i = 0; i < n; i++) {
		int fd = listen_on(&addresses[i], o->backlog);

		if (fd >= 0)
			server->listeners[server->nlisteners++] = fd;
		else if (o->nbinds || i == 0 || !is_missing_family(errno))
			die(errno == EADDRINUSE ? EXIT_PORT_TAKEN : EXIT_FAILED,
			    "cannot listen on %s: %s", addresses[i].text, strerror(errno));
		else
			addresses[i].text[0] = '\0';
	}
	for (unsigned int i = 0; o->ready_fd < 0 && i < n; i++) /* started by a person */
		if (addresses[i].text[0])
			printf("listening on %s\n", addresses[i].text);
	fflush(stdout);
	free(addresses);
}

static void unlisten_all(struct server *server)
{
	while (server->nlisteners)
		close(server->listeners[--server->nlisteners]);
	free(server->listeners);
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

static size_t stats_size(unsigned int blocks)
{
	return sizeof(struct stats_header) + blocks * sizeof(struct stats_block);
}

/* fd: the parent's file, or -1 for private memory. */
static struct stats_header *stats_map(int fd, unsigned int blocks)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	struct stats_header *header;

	if (fd >= 0 && ftruncate(fd, (off_t)stats_size(blocks)))
		die(EXIT_FAILED, "cannot resize the file of --stats-fd %d: %s", fd,
		    strerror(errno));
	header = mmap(NULL, stats_size(blocks), PROT_READ | PROT_WRITE, flags, fd, 0);
	if (header == MAP_FAILED)
		die(EXIT_FAILED, "cannot map the file of --stats-fd %d: %s", fd, strerror(errno));
	if (fd >= 0)
		close(fd);

	memset(header, 0, stats_size(blocks));
	header->version = STATS_VERSION;
	header->header_bytes = sizeof(struct stats_header);
	header->block_bytes = sizeof(struct stats_block);
	header->blocks = blocks;
	__atomic_store_n(&header->magic, STATS_MAGIC, __ATOMIC_RELEASE);
	return header;
}

static void stats_unmap(struct stats_header *header, unsigned int blocks)
{
	munmap(header, stats_size(blocks));
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
	listen_all(&server, &o);
	if (!spare_open())
		die(EXIT_FAILED, "cannot open /dev/null: %s", strerror(errno));
	stats = stats_map(o.stats_fd, o.threads);
	threads = calloc(o.threads, sizeof(*threads));
	if (!threads)
		die(EXIT_FAILED, "out of memory");
	for (unsigned int i = 0; i < o.threads; i++) {
		threads[i].engine = o.engine;
		threads[i].worker.server = &server;
		threads[i].worker.stats = (struct stats_block *)(stats + 1) + i;
		why = o.engine->setup(&threads[i].worker);
		if (why)
			die(EXIT_FAILED, "engine %s: %s", o.engine->name, why);
	}

	privileges_drop(o.uid);
	if (o.die_with_parent) /* a change of user clears the signal */
		die_with_parent(o.parent ? o.parent : parent);
	if (o.ready_fd >= 0)
		tell_ready(o.ready_fd);
	serve_all(threads, o.threads);

	for (unsigned int i = o.threads; i-- > 0;)
		o.engine->teardown(&threads[i].worker);
	free(threads);
	stats_unmap(stats, o.threads);
	spare_close();
	unlisten_all(&server);
	close(server.stop_fd);
	return EXIT_DONE;
}
