// SPDX-License-Identifier: MIT
/*
 * pingpong ADDRESS PORT SIZE COUNT [udp]: sends COUNT messages of SIZE bytes, each after the echo of
 * the one before, and prints the median round trip in nanoseconds. A reply that differs from what
 * was sent is an error, and so is one by UDP that takes a second.
 *
 * A round trip is taken as the mean of it and the one before: TCP allocates the memory of two
 * messages of 16 KB at once, so that dear and cheap ones may come in turn.
 */
#define _GNU_SOURCE
#include "times.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/socket.h>

static int connect_to(const char *address, const char *port, int type)
{
	struct addrinfo hints = {.ai_socktype = type, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
	struct timeval second = {.tv_sec = 1};
	struct addrinfo *info;
	int fd, one = 1;

	if (getaddrinfo(address, port, &hints, &info))
		fail("address");
	fd = socket(info->ai_family, type, 0);
	if (fd < 0 || connect(fd, info->ai_addr, info->ai_addrlen))
		fail("connect");
	if (type == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	else
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second));
	freeaddrinfo(info);
	return fd;
}

static void round_trip(int fd, const char *out, char *in, size_t size)
{
	size_t received = 0;

	if (send(fd, out, size, 0) != (ssize_t)size)
		fail("send");
	while (received < size) {
		ssize_t n = recv(fd, in + received, size - received, 0);

		if (n <= 0)
			fail(n ? "recv" : "closed by the server");
		received += n;
	}
}

int main(int argc, char **argv)
{
	const bool udp = argc == 6 && !strcmp(argv[5], "udp");
	size_t size = argc == 5 || udp ? strtoul(argv[3], NULL, 10) : 0;
	size_t count = argc == 5 || udp ? strtoul(argv[4], NULL, 10) : 0, i;
	uint64_t *times_ns = calloc(count + 1, sizeof(*times_ns)), start_ns, end_ns, took_ns,
		 last_ns = 0;
	char *out = malloc(size + 1), *in = malloc(size + 1);
	int fd;

	if (!size || !count) {
		fprintf(stderr, "usage: pingpong ADDRESS PORT SIZE COUNT [udp]\n");
		return 2;
	}
	fd = connect_to(argv[1], argv[2], udp ? SOCK_DGRAM : SOCK_STREAM);
	for (i = 0; i < size; i++)
		out[i] = random();
	memset(in, 0, size);

	start_ns = now_ns();
	for (i = 0; i < count; i++) {
		round_trip(fd, out, in, size);
		end_ns = now_ns();
		took_ns = end_ns - start_ns;
		times_ns[i] = i ? (last_ns + took_ns) / 2 : took_ns;
		last_ns = took_ns;
		start_ns = end_ns;
	}
	if (memcmp(in, out, size)) {
		fprintf(stderr, "pingpong: the last reply differs from what was sent\n");
		return 1;
	}
	printf("%llu\n", (unsigned long long)median_ns(times_ns, count));
	return 0;
}
