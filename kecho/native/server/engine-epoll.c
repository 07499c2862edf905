// SPDX-License-Identifier: MIT
// The epoll engine: three system calls a message, and no memory for idle clients.
#include "socket.h"
#include "server.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_WAIT	 256
#define ACCEPTS_PER_WAIT 256
#ifndef BUFFER_BYTES /* tests set it to a small value */
#define BUFFER_BYTES (256 * 1024)
#endif
#define RECVS_PER_EVENT 16  /* full buffers, before other connections get their turn */
#define PAUSE_MS	100 /* for a listener whose connections cannot even be refused */

struct epoll_engine;

/* A descriptor that epoll watches. Its handler is its state. */
struct source {
	void (*handle)(struct epoll_engine *engine, struct source *source, uint32_t events);
	int fd;
};

/* An accepted connection. Idle ones own no buffer. */
struct conn {
	struct source source; /* first */
	uint32_t pending_bytes;
	uint32_t pending_sent;
	unsigned char *pending; /* received and not sent; nothing is read meanwhile */
	struct conn *next;
	struct conn **link; /* the pointer to this one */
};

struct epoll_engine {
	int epoll_fd;
	bool running;
	uint64_t resume_ms; /* when paused listeners are watched again; 0: none is paused */
	const struct server *server;
	struct stats_block *stats;
	struct source stop;
	struct source *listeners;
	struct conn *conns;
	unsigned char buffer[BUFFER_BYTES];
};

static int watch(struct epoll_engine *engine, int op, struct source *source, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	return epoll_ctl(engine->epoll_fd, op, source->fd, &event);
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Each thread watches every listener; EPOLLEXCLUSIVE wakes one thread for a connection. */
static int listeners_resume(struct epoll_engine *engine)
{
	engine->resume_ms = 0;
	for (unsigned int i = 0; i < engine->server->nlisteners; i++)
		if (watch(engine, EPOLL_CTL_ADD, &engine->listeners[i], EPOLLIN | EPOLLEXCLUSIVE) &&
		    errno != EEXIST)
			return -1;
	return 0;
}

static void listeners_pause(struct epoll_engine *engine)
{
	engine->resume_ms = now_ms() + PAUSE_MS;
	for (unsigned int i = 0; i < engine->server->nlisteners; i++)
		watch(engine, EPOLL_CTL_DEL, &engine->listeners[i], 0);
}

static void conn_close(struct epoll_engine *engine, struct conn *conn)
{
	*conn->link = conn->next;
	if (conn->next)
		conn->next->link = conn->link;
	close(conn->source.fd);
	free(conn->pending);
	free(conn);
	stats_add(&engine->stats->active, (uint64_t)-1);
}

static void conn_abort(struct epoll_engine *engine, struct conn *conn)
{
	stats_add(&engine->stats->aborted, 1);
	socket_reset(conn->source.fd);
	conn_close(engine, conn);
}

/* Edge-triggered, since EPOLLHUP stays true after shutdown(): each change of state is an event. */
static void conn_linger(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	struct conn *conn = (struct conn *)source;

	if (events & EPOLLERR)
		conn_abort(engine, conn);
	else if (socket_is_done(source->fd))
		conn_close(engine, conn);
}

/* Ends a connection whose client has shut down its side, once the kernel has all of the echo. */
static void conn_finish(struct epoll_engine *engine, struct conn *conn)
{
	if (socket_is_acknowledged(conn->source.fd)) {
		conn_close(engine, conn);
		return;
	}
	shutdown(conn->source.fd, SHUT_WR);
	conn->source.handle = conn_linger;
	if (watch(engine, EPOLL_CTL_MOD, &conn->source, EPOLLET))
		conn_close(engine, conn);
}

static void conn_read(struct epoll_engine *engine, struct source *source, uint32_t events);

static void conn_flush(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	struct conn *conn = (struct conn *)source;
	ssize_t sent = send(source->fd, conn->pending + conn->pending_sent,
			    conn->pending_bytes - conn->pending_sent, MSG_NOSIGNAL);

	(void)events; /* send() returns the error */
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
	free(conn->pending);
	conn->pending = NULL;
	source->handle = conn_read;
	if (watch(engine, EPOLL_CTL_MOD, source, EPOLLIN))
		conn_abort(engine, conn);
}

/* Keeps what the send buffer had no room for, and stops reading until it is sent. */
static void conn_defer(struct epoll_engine *engine, struct conn *conn, const unsigned char *data,
		       size_t bytes)
{
	conn->pending = malloc(bytes);
	if (!conn->pending) {
		conn_abort(engine, conn);
		return;
	}
	memcpy(conn->pending, data, bytes);
	conn->pending_bytes = (uint32_t)bytes;
	conn->pending_sent = 0;
	conn->source.handle = conn_flush;
	if (watch(engine, EPOLL_CTL_MOD, &conn->source, EPOLLOUT))
		conn_abort(engine, conn);
}

static void conn_read(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	struct conn *conn = (struct conn *)source;

	(void)events; /* recv() returns the error */
	for (int turn = 0; turn < RECVS_PER_EVENT; turn++) {
		ssize_t got = recv(source->fd, engine->buffer, BUFFER_BYTES, 0);
		ssize_t sent;

		if (got <= 0) {
			if (got == 0)
				conn_finish(engine, conn);
			else if (!is_passing(errno))
				conn_abort(engine, conn);
			return;
		}
		sent = send(source->fd, engine->buffer, (size_t)got, MSG_NOSIGNAL);
		if (sent < 0) {
			if (!is_passing(errno)) {
				conn_abort(engine, conn);
				return;
			}
			sent = 0;
		}
		stats_add(&engine->stats->bytes, (uint64_t)sent);
		if (sent < got) {
			conn_defer(engine, conn, engine->buffer + sent, (size_t)(got - sent));
			return;
		}
		stats_add(&engine->stats->echoes, 1);
		if (got < BUFFER_BYTES)
			return; /* most likely there is no more; otherwise epoll reports it */
	}
}

static void conn_open(struct epoll_engine *engine, int fd)
{
	struct conn *conn;

	if (!spare_admits(fd)) {
		stats_add(&engine->stats->rejected, 1);
		return;
	}
	conn = calloc(1, sizeof(*conn));
	if (!conn)
		goto err_reject;
	conn->source.handle = conn_read;
	conn->source.fd = fd;
	if (watch(engine, EPOLL_CTL_ADD, &conn->source, EPOLLIN))
		goto err_reject;
	conn->next = engine->conns;
	conn->link = &engine->conns;
	if (conn->next)
		conn->next->link = &conn->next;
	engine->conns = conn;
	stats_add(&engine->stats->active, 1);
	stats_add(&engine->stats->total, 1);
	return;

err_reject:
	free(conn);
	socket_reset(fd);
	close(fd);
	stats_add(&engine->stats->rejected, 1);
}

/* accept() found no free descriptor; that does not mean that a connection waits. */
static void listener_refuse(struct epoll_engine *engine, int listener)
{
	switch (refuse_one(listener)) {
	case REFUSED:
		stats_add(&engine->stats->rejected, 1);
		break;
	case NONE_WAITS:
		break;
	case CANNOT_REFUSE:
		listeners_pause(engine);
		break;
	}
}

static void listener_accept(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	(void)events;
	for (int i = 0; i < ACCEPTS_PER_WAIT; i++) {
		int fd = accept4(source->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			conn_open(engine, fd);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE)
			listener_refuse(engine, source->fd);
		else if (!is_passing(errno) && errno != ECONNABORTED)
			listeners_pause(engine);
		return;
	}
}

static void stop(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	(void)source;
	(void)events;
	engine->running = false;
}

static void epoll_serve(struct worker *worker)
{
	struct epoll_engine *engine = worker->engine;
	struct epoll_event events[EVENTS_PER_WAIT];

	while (engine->running) {
		int timeout = engine->resume_ms ? PAUSE_MS : -1;
		int n = epoll_wait(engine->epoll_fd, events, EVENTS_PER_WAIT, timeout);

		for (int i = 0; i < n; i++) {
			struct source *source = events[i].data.ptr;

			source->handle(engine, source, events[i].events);
		}
		if (engine->resume_ms && now_ms() >= engine->resume_ms && listeners_resume(engine))
			listeners_pause(engine); /* no memory; try again later */
	}
}

static const char *epoll_setup(struct worker *worker)
{
	const struct server *server = worker->server;
	struct epoll_engine *engine = calloc(1, sizeof(*engine));

	if (!engine)
		return "out of memory";
	worker->engine = engine;
	engine->server = server;
	engine->stats = worker->stats;
	engine->running = true;
	engine->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	engine->listeners = calloc(server->nlisteners, sizeof(*engine->listeners));
	if (!engine->listeners)
		return "out of memory";
	for (unsigned int i = 0; i < server->nlisteners; i++) {
		engine->listeners[i].handle = listener_accept;
		engine->listeners[i].fd = server->listeners[i];
	}
	engine->stop.handle = stop;
	engine->stop.fd = server->stop_fd;
	if (engine->epoll_fd < 0 || listeners_resume(engine) ||
	    watch(engine, EPOLL_CTL_ADD, &engine->stop, EPOLLIN))
		return strerror(errno);
	return NULL;
}

static void epoll_teardown(struct worker *worker)
{
	struct epoll_engine *engine = worker->engine;

	while (engine->conns)			   /* conn_close() advances it */
		conn_close(engine, engine->conns); /* NOLINT(clang-analyzer-unix.Malloc) */
	free(engine->listeners);
	close(engine->epoll_fd);
	free(engine);
}

const struct engine engine_epoll = {
	.name = "epoll",
	.setup = epoll_setup,
	.serve = epoll_serve,
	.teardown = epoll_teardown,
};
