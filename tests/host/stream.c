// SPDX-License-Identifier: MIT
/*
 * stream ADDRESS PORT CONNECTIONS BYTES SEED: sends BYTES (1 or more) pseudo-random bytes on each
 * connection, in writes of random sizes, while reading them back; compares every byte; then shuts
 * down its side and expects the end of the stream.
 */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK	   (256 * 1024)
#define SILENCE_MS 30000

/* A stream of bytes that depends on nothing but its seed. */
struct source {
	uint64_t state;
	uint64_t word;
	unsigned int left;
};

struct conn {
	int fd;
	struct source out;
	struct source expected;
	uint64_t to_send;
	uint64_t received;
	size_t pending; /* generated, not sent yet */
	char *buffer;
};

static uint64_t sizes = 88172645463325252ull;

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void take(struct source *source, char *bytes, size_t len)
{
	while (len) {
		size_t n = len < source->left ? len : source->left;

		if (!source->left) {
			source->word = next(&source->state);
			source->left = sizeof(source->word);
			continue;
		}
		memcpy(bytes, (char *)&source->word + sizeof(source->word) - source->left, n);
		source->left -= n;
		bytes += n;
		len -= n;
	}
}

static void fail(const struct conn *conn, const char *what)
{
	fprintf(stderr, "stream: after %llu bytes: %s\n",
		conn ? (unsigned long long)conn->received : 0ull, what);
	exit(1);
}

static void open_conn(struct conn *conn, const struct addrinfo *info, uint64_t seed, uint64_t bytes)
{
	conn->fd = socket(info->ai_family, SOCK_STREAM, 0);
	if (conn->fd < 0 || connect(conn->fd, info->ai_addr, info->ai_addrlen))
		fail(NULL, strerror(errno));
	conn->out.state = conn->expected.state = seed;
	conn->to_send = bytes;
	conn->buffer = malloc(CHUNK);
}

/* A new write: one byte, a few, or a lot, as it happens. */
static size_t write_size(uint64_t left)
{
	uint64_t bits = next(&sizes);
	size_t size = 1 + (bits >> 8) % (1ull << (1 + bits % 18));

	return size < left ? size : left;
}

static void send_some(struct conn *conn)
{
	ssize_t n;

	if (!conn->pending) {
		conn->pending = write_size(conn->to_send);
		take(&conn->out, conn->buffer, conn->pending);
	}
	n = send(conn->fd, conn->buffer, conn->pending, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN)
		fail(conn, strerror(errno));
	if (n <= 0)
		return;
	memmove(conn->buffer, conn->buffer + n, conn->pending - n);
	conn->pending -= n;
	conn->to_send -= n;
	if (!conn->to_send)
		shutdown(conn->fd, SHUT_WR);
}

/* Reads what there is; true at the end of the stream. */
static int receive_some(struct conn *conn)
{
	static char got[CHUNK], wanted[CHUNK];
	ssize_t n = recv(conn->fd, got, sizeof(got), MSG_DONTWAIT);

	if (n < 0 && errno != EAGAIN)
		fail(conn, strerror(errno));
	if (n <= 0)
		return !n;
	take(&conn->expected, wanted, n);
	if (memcmp(got, wanted, n))
		fail(conn, "other bytes than were sent");
	conn->received += n;
	return 0;
}

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
				 .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
	struct addrinfo *info;
	unsigned int nr, left, i;
	struct pollfd *polls;
	struct conn *conns;
	uint64_t bytes, seed;

	if (argc != 6 || getaddrinfo(argv[1], argv[2], &hints, &info)) {
		fprintf(stderr, "usage: stream ADDRESS PORT CONNECTIONS BYTES SEED\n");
		return 2;
	}
	left = nr = strtoul(argv[3], NULL, 10);
	bytes = strtoull(argv[4], NULL, 10);
	seed = strtoull(argv[5], NULL, 10);
	conns = calloc(nr, sizeof(*conns));
	polls = calloc(nr, sizeof(*polls));
	for (i = 0; i < nr; i++)
		open_conn(&conns[i], info, (seed + 1) * 1000003 + i, bytes);

	while (left) {
		for (i = 0; i < nr; i++) {
			polls[i].fd = conns[i].fd;
			polls[i].events = POLLIN | (conns[i].to_send ? POLLOUT : 0);
		}
		if (poll(polls, nr, SILENCE_MS) <= 0)
			fail(NULL, "nothing happens any more");
		for (i = 0; i < nr; i++) {
			if (conns[i].fd < 0 || !polls[i].revents)
				continue;
			if ((polls[i].revents & POLLOUT) && conns[i].to_send)
				send_some(&conns[i]);
			if (!receive_some(&conns[i]))
				continue;
			if (conns[i].received != bytes)
				fail(&conns[i], "the stream ended early");
			close(conns[i].fd);
			conns[i].fd = -1;
			left--;
		}
	}
	return 0;
}
