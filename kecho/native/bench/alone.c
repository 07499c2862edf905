// SPDX-License-Identifier: MIT
// The closed loop on one connection. It blocks, since epoll_wait() would cost more than the echo.
#include "mode.h"
#include "common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

/* Completes a request that was not sent or not received in one piece. */
static bool exchange_rest(struct thread *thread, struct conn *conn)
{
	const size_t size = thread->run->options->size_bytes;
	const uint64_t deadline_ns = conn->begin_ns + thread->run->options->io_timeout_ns;
	struct pollfd fd = {.fd = conn->fd};

	for (;;) {
		uint64_t now = clock_ns();
		struct timespec wait;

		if (run_stops(thread->run))
			return false;
		if (now >= deadline_ns)
			return conn_fail_timeout(thread, conn);
		fd.events = conn->tx_bytes < size ? POLLIN | POLLOUT : POLLIN;
		wait.tv_sec = (time_t)((deadline_ns - now) / NS_PER_S);
		wait.tv_nsec = (long)((deadline_ns - now) % NS_PER_S);
		if (ppoll(&fd, 1, &wait, NULL) <= 0)
			continue;
		if (conn->tx_bytes < size && conn_send(thread, conn) == IO_FAILED)
			return false;
		switch (conn_recv(thread, conn)) {
		case IO_DONE:
			return true;
		case IO_FAILED:
			return false;
		case IO_WAIT:
			break;
		}
	}
}

/* Leaves the fast path with its results sent, got and errno: completes the request or fails. */
static bool finish_slowly(struct thread *thread, struct conn *conn, ssize_t sent, ssize_t got)
{
	const size_t size = thread->run->options->size_bytes;
	const size_t take = got > (ssize_t)size ? size : (size_t)got;

	if (sent < 0 && errno != EAGAIN && errno != EINTR)
		return conn_fail_send(thread, conn);
	conn->tx_bytes = sent > 0 ? (uint32_t)sent : 0;
	if (conn->tx_bytes < size)
		return exchange_rest(thread, conn);
	if (got < 0 && errno == EAGAIN)
		return conn_fail_timeout(thread, conn);
	if (got == 0 || (got < 0 && errno != EINTR))
		return conn_fail_recv(thread, conn, got);
	if (got > 0) {
		if (!conn_verify(thread, conn, thread->buffer, take))
			return false;
		conn->rx_bytes = (uint32_t)take;
		if (got > (ssize_t)size)
			return conn_fail_surplus(thread, conn, thread->buffer[size]);
	}
	return exchange_rest(thread, conn);
}

/* Makes the socket blocking, with the I/O timeout for recv(). */
bool alone_prepare(struct thread *thread)
{
	const struct conn *conn = &thread->conns[0];
	uint64_t ns = thread->run->options->io_timeout_ns;
	struct timeval timeout = {
		.tv_sec = (time_t)(ns / NS_PER_S),
		.tv_usec = (suseconds_t)(ns % NS_PER_S / 1000),
	};

	if (fcntl(conn->fd, F_SETFL, 0) ||
	    setsockopt(conn->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)))
		return run_fail(thread, "connection %u: cannot make it blocking: %s", conn->id,
				strerror(errno));
	return true;
}

/* Looks for a reply as long as --busy-poll says, then sleeps until it is there. */
static inline ssize_t receive(const struct thread *thread, const struct conn *conn, size_t most)
{
	const unsigned int busy_us = thread->run->options->busy_poll_us;

	if (busy_us) {
		const uint64_t until_ns = clock_ns() + busy_us * 1000ull;

		do {
			ssize_t got = recv(conn->fd, thread->buffer, most, MSG_DONTWAIT);

			if (got >= 0 || errno != EAGAIN)
				return got;
		} while (clock_ns() < until_ns);
	}
	return recv(conn->fd, thread->buffer, most, 0);
}

/*
 * Must cost next to nothing beside two clock reads, a send and a recv. A request that does not go
 * through in one piece leaves the fast path. send() does not block, since a message that is larger
 * than the buffers would then wait for ever.
 */
bool alone_drive(struct thread *thread)
{
	struct conn *conn = &thread->conns[0];
	const size_t size = thread->run->options->size_bytes;
	struct payload *payload = &thread->payload;

	while (!thread_is_over(thread)) {
		const unsigned char *request = payload_open(payload, conn->id, conn->requests + 1);
		ssize_t sent, got = 0;

		conn_begin(thread, conn, clock_ns());
		sent = send(conn->fd, request, size, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent == (ssize_t)size)
			got = receive(thread, conn, size + 1);
		thread->last_ns = clock_ns();
		if (got == (ssize_t)size && !memcmp(request, thread->buffer, size)) {
			payload_close(payload);
		} else {
			payload_close(payload);
			if (!finish_slowly(thread, conn, sent, got))
				return false;
		}
		conn_end(thread, conn);
		if (run_stops(thread->run))
			return false;
	}
	return true;
}
