// SPDX-License-Identifier: MIT
// The loop of the engines on epoll: it accepts, refuses, and ends connections.
#include "epoll.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_WAIT	 256
#define ACCEPTS_PER_WAIT 256
#define PAUSE_MS	 100 /* for a listener whose connections cannot even be refused */

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

void conn_close(struct epoll_engine *engine, struct conn *conn)
{
	*conn->link = conn->next;
	if (conn->next)
		conn->next->link = conn->link;
	close(conn->source.fd);
	free(conn->pending);
	free(conn);
	stats_add(&engine->stats->active, (uint64_t)-1);
}

void conn_abort(struct epoll_engine *engine, struct conn *conn)
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

void conn_shut_down(struct epoll_engine *engine, struct conn *conn)
{
	shutdown(conn->source.fd, SHUT_WR);
	conn->source.handle = conn_linger;
	if (watch(engine, EPOLL_CTL_MOD, &conn->source, EPOLLET))
		conn_close(engine, conn);
}

void conn_defer(struct epoll_engine *engine, struct conn *conn, ssize_t sent, ssize_t got)
{
	size_t done = sent < 0 ? 0 : (size_t)sent, left = (size_t)got - done;

	if (sent < 0 && !is_passing(errno)) {
		conn_abort(engine, conn);
		return;
	}
	stats_add(&engine->stats->bytes, done);
	conn->pending = malloc(left);
	if (!conn->pending) {
		conn_abort(engine, conn);
		return;
	}
	memcpy(conn->pending, engine->buffer + done, left);
	conn->pending_bytes = (uint32_t)left;
	conn->pending_sent = 0;
	conn->source.handle = engine->type->flush;
	if (watch(engine, EPOLL_CTL_MOD, &conn->source, EPOLLOUT))
		conn_abort(engine, conn);
}

static void conn_open(struct epoll_engine *engine, int fd)
{
	struct conn *conn;

	if (!spare_admits(fd)) {
		stats_add(&engine->stats->rejected, 1);
		return;
	}
	conn = calloc(1, engine->type->bytes);
	if (!conn)
		goto err_reject;
	conn->source.handle = engine->type->read;
	conn->source.fd = fd;
	if (engine->type->admit && !engine->type->admit(fd))
		goto err_reject;
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

/* Looks for events as long as --busy-poll says, then sleeps until there are some. */
static int wait_events(const struct epoll_engine *engine, struct epoll_event *events, int timeout)
{
	const unsigned int busy_us = engine->server->busy_poll_us;

	if (busy_us) {
		const uint64_t until_ns = clock_ns() + busy_us * 1000ull;

		do {
			int n = epoll_wait(engine->epoll_fd, events, EVENTS_PER_WAIT, 0);

			if (n)
				return n;
		} while (clock_ns() < until_ns);
	}
	return epoll_wait(engine->epoll_fd, events, EVENTS_PER_WAIT, timeout);
}

void epoll_serve(struct worker *worker)
{
	struct epoll_engine *engine = worker->engine;
	struct epoll_event events[EVENTS_PER_WAIT];

	while (engine->running) {
		int timeout = engine->resume_ms ? PAUSE_MS : -1;
		int n = wait_events(engine, events, timeout);

		for (int i = 0; i < n; i++) {
			struct source *source = events[i].data.ptr;

			source->handle(engine, source, events[i].events);
		}
		if (engine->resume_ms && now_ms() >= engine->resume_ms && listeners_resume(engine))
			listeners_pause(engine); /* no memory; try again later */
	}
}

const char *epoll_setup(struct worker *worker, const struct conn_type *type, size_t bytes)
{
	const struct server *server = worker->server;
	struct epoll_engine *engine = calloc(1, bytes);

	if (!engine)
		return "out of memory";
	worker->engine = engine;
	engine->server = server;
	engine->type = type;
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

void epoll_teardown(struct worker *worker)
{
	struct epoll_engine *engine = worker->engine;

	while (engine->conns)			   /* conn_close() advances it */
		conn_close(engine, engine->conns); /* NOLINT(clang-analyzer-unix.Malloc) */
	free(engine->listeners);
	close(engine->epoll_fd);
	free(engine);
}
