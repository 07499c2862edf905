// SPDX-License-Identifier: MIT
/*
 * floors SIZE COUNT: measures what the kernel alone takes, as the median time of COUNT in
 * nanoseconds: a null system call, a message of SIZE bytes through a pipe, and a message there
 * and back over a TCP connection with both ends in this thread. As in pingpong, each includes one
 * reading of the clock.
 */
#define _GNU_SOURCE
#include "times.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *out, *in;
static size_t size;
static int pipe_fds[2], client, server;

static void move(int from, int to)
{
	size_t got = 0;

	if (write(to, out, size) != (ssize_t)size)
		fail("write");
	while (got < size) {
		ssize_t n = read(from, in + got, size - got);

		if (n <= 0)
			fail("read");
		got += (size_t)n;
	}
}

static void null_syscall(void)
{
	syscall(SYS_getppid);
}

static void through_pipe(void)
{
	move(pipe_fds[0], pipe_fds[1]);
}

static void over_tcp(void)
{
	move(server, client);
	move(client, server);
}

static const struct {
	const char *name;
	void (*run)(void);
} floors[] = {
	{"null system call", null_syscall},
	{"pipe, write and read", through_pipe},
	{"TCP, both ends in one thread", over_tcp},
};

static void connect_ends(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof(address);
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	client = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &length) ||
	    connect(client, (struct sockaddr *)&address, sizeof(address)))
		fail("loopback");
	server = accept(listener, NULL, NULL);
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

int main(int argc, char **argv)
{
	size_t count = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	uint64_t *times_ns = calloc(count + 1, sizeof(*times_ns)), start_ns, end_ns;

	size = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
	if (!size || !count) {
		fprintf(stderr, "usage: floors SIZE COUNT\n");
		return 2;
	}
	out = calloc(1, size);
	in = calloc(1, size);
	if (!times_ns || !out || !in || pipe(pipe_fds))
		fail("set-up");
	connect_ends();
	for (size_t i = 0; i < sizeof(floors) / sizeof(*floors); i++) {
		start_ns = now_ns();
		for (size_t n = 0; n < count; n++) {
			floors[i].run();
			end_ns = now_ns();
			times_ns[n] = end_ns - start_ns;
			start_ns = end_ns;
		}
		printf("%s\t%llu\n", floors[i].name,
		       (unsigned long long)median_ns(times_ns, count));
	}
	return 0;
}
