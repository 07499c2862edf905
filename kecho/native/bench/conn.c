// SPDX-License-Identifier: MIT
// bench's connections: connecting, sending, receiving, verifying, closing, and their failures.
#include "conn.h"
#include "common/clock.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTS_AT_ONCE 64 /* half of the usual backlog, over all threads */
#define PAUSE_NS	 NS_PER_MS
#define PAUSE_MAX_NS	 (64 * NS_PER_MS)
#define SYN_RETRY_NS	 (900 * NS_PER_MS) /* a slower connect() needed a second SYN */
#define DRAIN_NS	 NS_PER_S

/* Is there an address to send from? A datagram's port is not a connection's. */
static bool has_source(const struct address *address)
{
	int fd = socket(address->sa.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool has = fd < 0 || !connect(fd, (const struct sockaddr *)&address->sa, address->sa_len) ||
		   errno != EADDRNOTAVAIL;

	if (fd >= 0)
		close(fd);
	return has;
}

static bool fail_connect(struct thread *thread, const struct conn *conn, int error)
{
	const char *hint = error != EADDRNOTAVAIL ? ""
			   : has_source(&thread->run->options->address)
				   ? "; no local port is free, see net.ipv4.ip_local_port_range"
				   : "; this machine has no address to reach it from";

	return run_fail(thread, "cannot connect to %s: %s%s (connection %u)",
			thread->run->options->address.text, strerror(error), hint, conn->id);
}

bool conn_open(struct thread *thread, struct conn *conn)
{
	const struct address *address = &thread->run->options->address;
	struct epoll_event event = {.events = EPOLLOUT, .data.ptr = conn};
	static const int on = 1;

	conn->fd = socket(address->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (conn->fd < 0)
		return run_fail(thread, "cannot make a socket: %s (connection %u)", strerror(errno),
				conn->id);
	if (setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		return fail_connect(thread, conn, errno);
	conn->sent_ns = clock_ns();
	if (connect(conn->fd, (const struct sockaddr *)&address->sa, address->sa_len) &&
	    errno != EINPROGRESS)
		return fail_connect(thread, conn, errno);
	if (epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, conn->fd, &event))
		return run_fail(thread, "epoll_ctl: %s", strerror(errno));
	conn->connecting = true;
	conn->blocked = false;
	return true;
}

bool conn_opened(struct thread *thread, struct conn *conn)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
	socklen_t len = sizeof(int);
	int error = 0;

	if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &len))
		error = errno;
	if (error)
		return fail_connect(thread, conn, error);
	if (epoll_ctl(thread->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event))
		return run_fail(thread, "epoll_ctl: %s", strerror(errno));
	conn->connecting = false;
	__atomic_fetch_add(&thread->connected, 1, __ATOMIC_RELAXED);
	return true;
}

void conn_close(struct thread *thread, struct conn *conn)
{
	close(conn->fd);
	conn->fd = -1;
	conn->busy = false;
	__atomic_fetch_sub(&thread->connected, 1, __ATOMIC_RELAXED);
}

bool conn_watch_room(struct thread *thread, struct conn *conn, bool blocked)
{
	struct epoll_event event = {
		.events = blocked ? EPOLLIN | EPOLLOUT : EPOLLIN,
		.data.ptr = conn,
	};

	if (conn->blocked == blocked)
		return true;
	conn->blocked = blocked;
	if (epoll_ctl(thread->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event))
		return run_fail(thread, "epoll_ctl: %s", strerror(errno));
	return true;
}

static bool fail_connect_timeout(struct thread *thread, const struct conn *conn)
{
	const struct options *o = thread->run->options;

	return run_fail(thread, "cannot connect to %s: no answer in %g s (connection %u)",
			o->address.text, (double)o->connect_timeout_ns / 1e9, conn->id);
}

bool conns_in_time(struct thread *thread)
{
	const struct options *o = thread->run->options;
	uint64_t now = clock_ns();

	for (unsigned int i = 0; i < thread->nconns; i++) {
		const struct conn *conn = &thread->conns[i];
		uint64_t taken_ns = now > conn->sent_ns ? now - conn->sent_ns : 0;

		if (conn->connecting && taken_ns >= o->connect_timeout_ns)
			return fail_connect_timeout(thread, conn);
		if (!conn->connecting && conn->busy && taken_ns >= o->io_timeout_ns)
			return conn_fail_timeout(thread, conn);
	}
	return true;
}

static bool connect_batch(struct thread *thread, unsigned int first, unsigned int n)
{
	struct epoll_event events[CONNECTS_AT_ONCE];
	unsigned int done = 0;

	for (unsigned int i = 0; i < n; i++)
		if (!conn_open(thread, &thread->conns[first + i]))
			return false;
	while (done < n) {
		int ready = epoll_wait(thread->epoll_fd, events, CONNECTS_AT_ONCE, 20);

		if (run_stops(thread->run))
			return false;
		for (int i = 0; i < ready; i++, done++)
			if (!conn_opened(thread, events[i].data.ptr))
				return false;
		if (ready <= 0 && !conns_in_time(thread))
			return false;
	}
	return true;
}

/*
 * The kernel makes connections faster than a server accepts them. A SYN that finds the backlog full
 * is sent again only after a second. So connections are made in batches with a pause in between,
 * which doubles each time the backlog was full.
 */
bool conns_connect(struct thread *thread)
{
	unsigned int batch = CONNECTS_AT_ONCE / thread->run->options->threads;
	uint64_t pause_ns = PAUSE_NS;

	__atomic_store_n(&thread->phase, PHASE_CONNECT, __ATOMIC_RELAXED);
	if (!batch)
		batch = 1;
	for (unsigned int first = 0; first < thread->nconns; first += batch) {
		unsigned int left = thread->nconns - first;
		uint64_t begin_ns = clock_ns();
		struct timespec pause = {0};

		if (!connect_batch(thread, first, left < batch ? left : batch))
			return false;
		if (clock_ns() - begin_ns >= SYN_RETRY_NS && pause_ns < PAUSE_MAX_NS)
			pause_ns *= 2;
		pause.tv_nsec = (long)pause_ns;
		if (left > batch)
			nanosleep(&pause, NULL);
	}
	return true;
}

void conns_close(struct thread *thread)
{
	for (unsigned int i = 0; i < thread->nconns; i++) {
		if (thread->conns[i].fd >= 0)
			close(thread->conns[i].fd);
		thread->conns[i].fd = -1;
		thread->conns[i].busy = false;
		thread->conns[i].connecting = false;
	}
	__atomic_store_n(&thread->connected, 0, __ATOMIC_RELAXED);
}

/*
 * Surplus bytes come before the server's FIN, so this waits for it. A server that does not close
 * after us is no error: it gets one second, once in a run.
 */
bool conns_drain(struct thread *thread)
{
	uint64_t deadline_ns = clock_ns() + DRAIN_NS;

	for (unsigned int i = 0; i < thread->nconns; i++)
		shutdown(thread->conns[i].fd, SHUT_WR);
	for (unsigned int i = 0; i < thread->nconns; i++) {
		struct conn *conn = &thread->conns[i];
		struct pollfd fd = {.fd = conn->fd, .events = POLLIN};
		bool reluctant = __atomic_load_n(&thread->run->reluctant, __ATOMIC_RELAXED);
		uint64_t now = clock_ns();
		int timeout_ms = 0;
		unsigned char byte;

		if (!reluctant && now < deadline_ns)
			timeout_ms = (int)((deadline_ns - now) / NS_PER_MS) + 1;
		if (poll(&fd, 1, timeout_ms) == 0)
			__atomic_store_n(&thread->run->reluctant, true, __ATOMIC_RELAXED);
		if (run_stops(thread->run))
			return false;
		if (recv(conn->fd, &byte, 1, MSG_DONTWAIT) == 1)
			return conn_fail_surplus(thread, conn, byte);
	}
	return true;
}

void conn_begin(struct thread *thread, struct conn *conn, uint64_t begin_ns)
{
	begin_ns = run_held(thread, begin_ns);
	conn->begin_ns = begin_ns;
	conn->sent_ns = begin_ns;
	conn->tx_bytes = 0;
	conn->rx_bytes = 0;
	conn->requests++;
	thread->begun++;
	conn->busy = true;
	conn->measured = begin_ns >= thread->record_ns && thread->quota;
	if (conn->measured && thread->quota != NO_LIMIT)
		thread->quota--;
}

void conn_end(struct thread *thread, struct conn *conn)
{
	conn->busy = false;
	if (conn->measured)
		thread_record(thread, thread->last_ns - conn->begin_ns);
	else
		thread->warmups++;
}

bool conn_fail_send(struct thread *thread, const struct conn *conn)
{
	if (errno == ECONNRESET || errno == EPIPE)
		return run_fail(
			thread,
			"connection %u: reset by the server after %u of %zu bytes of request "
			"%llu were sent",
			conn->id, conn->tx_bytes, thread->run->options->size_bytes,
			(unsigned long long)conn->requests);
	return run_fail(thread, "connection %u: cannot send request %llu: %s", conn->id,
			(unsigned long long)conn->requests, strerror(errno));
}

bool conn_fail_recv(struct thread *thread, const struct conn *conn, ssize_t got)
{
	const char *how = got == 0 ? "closed" : "reset";

	if (got == 0 || errno == ECONNRESET || errno == EPIPE)
		return run_fail(
			thread,
			"connection %u: %s by the server after %u of %zu bytes of reply %llu",
			conn->id, how, conn->rx_bytes, thread->run->options->size_bytes,
			(unsigned long long)conn->requests);
	return run_fail(thread, "connection %u: cannot receive reply %llu: %s", conn->id,
			(unsigned long long)conn->requests, strerror(errno));
}

bool conn_fail_timeout(struct thread *thread, const struct conn *conn)
{
	return run_fail(thread,
			"connection %u: timed out after %g s with %u of %zu bytes of reply %llu",
			conn->id, (double)thread->run->options->io_timeout_ns / 1e9, conn->rx_bytes,
			thread->run->options->size_bytes, (unsigned long long)conn->requests);
}

bool conn_fail_surplus(struct thread *thread, const struct conn *conn, unsigned char byte)
{
	return run_fail(thread, "connection %u: surplus byte 0x%02x after reply %llu", conn->id,
			byte, (unsigned long long)conn->requests);
}

static bool fail_mismatch(struct thread *thread, const struct conn *conn,
			  const unsigned char *expected, const unsigned char *found)
{
	size_t i = 0;

	while (expected[i] == found[i])
		i++;
	return run_fail(
		thread,
		"connection %u: mismatch at byte %zu of reply %llu: expected 0x%02x, found 0x%02x",
		conn->id, conn->rx_bytes + i, (unsigned long long)conn->requests, expected[i],
		found[i]);
}

bool conn_verify(struct thread *thread, const struct conn *conn, const unsigned char *data,
		 size_t n)
{
	const unsigned char *reply = payload_open(&thread->payload, conn->id, conn->requests);
	bool equal = !memcmp(reply + conn->rx_bytes, data, n);

	if (!equal)
		fail_mismatch(thread, conn, reply + conn->rx_bytes, data);
	payload_close(&thread->payload);
	return equal;
}

enum io conn_send(struct thread *thread, struct conn *conn)
{
	const unsigned char *request = payload_open(&thread->payload, conn->id, conn->requests);
	size_t left = thread->run->options->size_bytes - conn->tx_bytes;
	ssize_t sent = send(conn->fd, request + conn->tx_bytes, left, MSG_DONTWAIT | MSG_NOSIGNAL);

	payload_close(&thread->payload);
	if (sent == (ssize_t)left) {
		conn->tx_bytes += (uint32_t)sent;
		return IO_DONE;
	}
	if (sent < 0 && errno != EAGAIN && errno != EINTR) {
		conn_fail_send(thread, conn);
		return IO_FAILED;
	}
	conn->tx_bytes += sent > 0 ? (uint32_t)sent : 0;
	return IO_WAIT;
}

enum io conn_exchange(struct thread *thread, struct conn *conn)
{
	enum io sent = IO_DONE, received;

	if (conn->tx_bytes < thread->run->options->size_bytes)
		sent = conn_send(thread, conn);
	if (sent == IO_FAILED || !conn_watch_room(thread, conn, sent == IO_WAIT))
		return IO_FAILED;
	received = conn_recv(thread, conn);
	if (received == IO_DONE)
		conn_end(thread, conn);
	return received;
}

/* Asks for one byte more than the reply has, to notice surplus bytes. */
enum io conn_recv(struct thread *thread, struct conn *conn)
{
	const size_t size = thread->run->options->size_bytes;

	for (;;) {
		size_t left = size - conn->rx_bytes;
		ssize_t got = recv(conn->fd, thread->buffer, left + 1, MSG_DONTWAIT);

		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			return IO_WAIT;
		if (got <= 0) {
			conn_fail_recv(thread, conn, got);
			return IO_FAILED;
		}
		if ((size_t)got >= left)
			thread->last_ns = clock_ns();
		if (!conn_verify(thread, conn, thread->buffer,
				 (size_t)got < left ? (size_t)got : left))
			return IO_FAILED;
		if ((size_t)got > left) {
			conn_fail_surplus(thread, conn, thread->buffer[left]);
			return IO_FAILED;
		}
		conn->rx_bytes += (uint32_t)got;
		if (conn->rx_bytes == size)
			return IO_DONE;
	}
}
