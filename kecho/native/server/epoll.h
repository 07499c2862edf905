/* SPDX-License-Identifier: MIT */
/* What the two engines on epoll share: the loop, its listeners, and how a connection echoes. */
#ifndef KECHO_NATIVE_EPOLL_H
#define KECHO_NATIVE_EPOLL_H

#include "common/clock.h"
#include "server.h"
#include "socket.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#ifndef BUFFER_BYTES /* tests set it to a small value */
#define BUFFER_BYTES (256 * 1024)
#endif
#define RECVS_PER_EVENT 16 /* full buffers, before other connections get their turn */

struct epoll_engine;

/* A descriptor that epoll watches. Its handler is its state. */
struct source {
	void (*handle)(struct epoll_engine *engine, struct source *source, uint32_t events);
	int fd;
};

/*
 * An accepted connection. Idle ones own no buffer. Only its own handler frees it, since the events
 * that epoll has reported with others point to it.
 */
struct conn {
	struct source source; /* first */
	uint32_t pending_bytes;
	uint32_t pending_sent;
	unsigned char *pending; /* received and not sent; nothing is read meanwhile */
	uint64_t since_ns;	/* when it was there to be received, if latency is measured */
	struct conn *next;
	struct conn **link; /* the pointer to this one */
};

/*
 * What the connections of an engine do in their own way: a constant of the engine. The functions
 * below that take one are inlined into its handlers, so that no engine pays for what the other
 * does.
 */
struct conn_type {
	size_t bytes; /* of the structure that begins with struct conn */
	void (*read)(struct epoll_engine *engine, struct source *source, uint32_t events);
	void (*flush)(struct epoll_engine *engine, struct source *source, uint32_t events);
	/* recv() has come to the end of the stream, and what it gave is sent. */
	void (*finish)(struct epoll_engine *engine, struct conn *conn);
	/* Or NULL: what there is to do right after accept(); false if it cannot be served. */
	bool (*admit)(int fd);
	/* Or NULL: a payload that was there to be received at since_ns has been sent as a whole. */
	void (*measure)(struct epoll_engine *engine, uint64_t since_ns);
};

struct epoll_engine {
	int epoll_fd;
	bool running;
	uint64_t resume_ms; /* when paused listeners are watched again; 0: none is paused */
	const struct server *server;
	const struct conn_type *type;
	struct stats_block *stats;
	struct source stop;
	struct source *listeners;
	struct conn *conns;
	unsigned char buffer[BUFFER_BYTES];
};

/* As those of an engine. The structure of `bytes` begins with struct epoll_engine. */
const char *epoll_setup(struct worker *worker, const struct conn_type *type, size_t bytes);
void epoll_serve(struct worker *worker);
void epoll_teardown(struct worker *worker);

static inline int watch(struct epoll_engine *engine, int op, struct source *source, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	return epoll_ctl(engine->epoll_fd, op, source->fd, &event);
}

void conn_close(struct epoll_engine *engine, struct conn *conn);
/* As conn_close(), with a reset. */
void conn_abort(struct epoll_engine *engine, struct conn *conn);
/* Shuts down its side, and closes it when the client has acknowledged everything. */
void conn_shut_down(struct epoll_engine *engine, struct conn *conn);
/*
 * What follows when send() has taken less of the engine's buffer than recv() got: keeps what there
 * was no room for, and stops reading until `flush` has sent it. If send() failed, errno says why.
 */
void conn_defer(struct epoll_engine *engine, struct conn *conn, ssize_t sent, ssize_t got);

#define CONN_INLINE static inline __attribute__((always_inline))

CONN_INLINE void conn_read_as(const struct conn_type *type, struct epoll_engine *engine,
			      struct conn *conn)
{
	for (int turn = 0; turn < RECVS_PER_EVENT; turn++) {
		uint64_t since_ns = type->measure ? clock_ns() : 0;
		ssize_t got = recv(conn->source.fd, engine->buffer, BUFFER_BYTES, 0);
		ssize_t sent;

		if (got <= 0) {
			if (got == 0)
				type->finish(engine, conn);
			else if (!is_passing(errno))
				conn_abort(engine, conn);
			return;
		}
		sent = send(conn->source.fd, engine->buffer, (size_t)got, MSG_NOSIGNAL);
		if (sent < got) {
			conn->since_ns = since_ns;
			conn_defer(engine, conn, sent, got);
			return;
		}
		stats_add(&engine->stats->bytes, (uint64_t)got);
		stats_add(&engine->stats->echoes, 1);
		if (type->measure)
			type->measure(engine, since_ns);
		if (got < BUFFER_BYTES)
			return; /* most likely there is no more; otherwise epoll reports it */
	}
}

CONN_INLINE void conn_flush_as(const struct conn_type *type, struct epoll_engine *engine,
			       struct conn *conn)
{
	ssize_t sent = send(conn->source.fd, conn->pending + conn->pending_sent,
			    conn->pending_bytes - conn->pending_sent, MSG_NOSIGNAL);

	if (sent < 0) {
		if (!is_passing(errno))
			conn_abort(engine, conn);
		return;
	}
	stats_add(&engine->stats->bytes, (uint64_t)sent);
	conn->pending_sent += (uint32_t)sent;
	if (conn->pending_sent < conn->pending_bytes)
		return;
	stats_add(&engine->stats->echoes, 1);
	if (type->measure)
		type->measure(engine, conn->since_ns);
	free(conn->pending);
	conn->pending = NULL;
	conn->source.handle = type->read;
	if (watch(engine, EPOLL_CTL_MOD, &conn->source, EPOLLIN))
		conn_abort(engine, conn);
}

#endif
