// SPDX-License-Identifier: MIT
// Mode pipeline: each connection has several requests in flight.
#include "mode.h"
#include "common/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define EVENTS_PER_WAIT 256
#define LOOK_NS		(100 * NS_PER_MS)
#define BATCH_BYTES	(64 * 1024) /* sent or received at once, unless one message is larger */

struct begun {
	uint64_t begin_ns;
	bool measured;
};

/*
 * The requests in flight on one connection, numbered from 1. conn->requests is the number of the
 * next reply, and conn->rx_bytes how much of it has come.
 */
struct pipe {
	struct conn *conn;
	uint64_t last;	     /* the request begun last */
	uint64_t sending;    /* the first request not sent completely; last + 1 if there is none */
	size_t sent_bytes;   /* of that request */
	struct begun *begun; /* request n is at n % depth */
	bool ready;	     /* in the queue of those that may send */
};

struct pipeline {
	struct thread *thread;
	struct pipe *pipes;
	struct begun *begun;
	unsigned char *batch;
	size_t batch_bytes;
	struct conn_queue ready;
	uint64_t in_flight;
};

static struct pipe *pipe_of(const struct pipeline *p, const struct conn *conn)
{
	return &p->pipes[conn - p->thread->conns];
}

static uint64_t first_in_flight(const struct pipe *pipe)
{
	return pipe->conn->requests;
}

static bool has_room(const struct pipeline *p, const struct pipe *pipe)
{
	return pipe->last + 1 - first_in_flight(pipe) < p->thread->run->options->depth;
}

/* Begins a request now. Returns the time, which is later after a hold. */
static uint64_t pipe_begin(struct pipeline *p, struct pipe *pipe, uint64_t now)
{
	struct thread *thread = p->thread;
	struct begun *begun = &pipe->begun[++pipe->last % thread->run->options->depth];

	now = run_held(thread, now);
	begun->begin_ns = now;
	begun->measured = now >= thread->record_ns && thread->quota;
	if (begun->measured && thread->quota != NO_LIMIT)
		thread->quota--;
	thread->begun++;
	p->in_flight++;
	if (!pipe->conn->busy)
		pipe->conn->sent_ns = now;
	pipe->conn->busy = true;
	return now;
}

/*
 * Copies what is to be sent next into the batch, and begins requests as far as the depth allows.
 * Returns the number of bytes.
 */
static size_t batch_fill(struct pipeline *p, struct pipe *pipe)
{
	const size_t size = p->thread->run->options->size_bytes;
	uint64_t request = pipe->sending, now = clock_ns();
	size_t from = pipe->sent_bytes, n = 0;

	for (; n + size - from <= p->batch_bytes; request++, from = 0) {
		const unsigned char *bytes;

		if (request > pipe->last) {
			if (!has_room(p, pipe) || thread_is_over(p->thread))
				break;
			now = pipe_begin(p, pipe, now);
		}
		bytes = payload_open(&p->thread->payload, pipe->conn->id, request);
		memcpy(p->batch + n, bytes + from, size - from);
		payload_close(&p->thread->payload);
		n += size - from;
	}
	return n;
}

/* Sends until there is nothing to send or no room for it. */
static bool pipe_send(struct pipeline *p, struct pipe *pipe)
{
	const size_t size = p->thread->run->options->size_bytes;
	bool blocked = false;
	size_t n;

	while (!blocked && (n = batch_fill(p, pipe)) > 0) {
		ssize_t sent = send(pipe->conn->fd, p->batch, n, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			return conn_fail_send(p->thread, pipe->conn);
		blocked = sent < (ssize_t)n;
		pipe->sent_bytes += sent > 0 ? (size_t)sent : 0;
		pipe->sending += pipe->sent_bytes / size;
		pipe->sent_bytes %= size;
	}
	return conn_watch_room(p->thread, pipe->conn, blocked);
}

static void reply_end(struct pipeline *p, struct pipe *pipe)
{
	struct thread *thread = p->thread;
	struct conn *conn = pipe->conn;
	const struct begun *begun = &pipe->begun[conn->requests % thread->run->options->depth];

	if (begun->measured)
		thread_record(thread, thread->last_ns - begun->begin_ns);
	else
		thread->warmups++;
	conn->requests++;
	conn->rx_bytes = 0;
	conn->sent_ns = thread->last_ns; /* the timeout begins anew for the next reply */
	conn->busy = conn->requests <= pipe->last;
	p->in_flight--;
}

/* Verifies n received bytes, reply by reply. */
static bool take(struct pipeline *p, struct pipe *pipe, size_t n)
{
	const size_t size = p->thread->run->options->size_bytes;
	const unsigned char *data = p->thread->buffer;
	struct conn *conn = pipe->conn;

	while (n) {
		size_t part = size - conn->rx_bytes < n ? size - conn->rx_bytes : n;

		if (conn->requests > pipe->last) {
			conn->requests--; /* none is in flight: the error names the last one */
			return conn_fail_surplus(p->thread, conn, *data);
		}
		if (!conn_verify(p->thread, conn, data, part))
			return false;
		conn->rx_bytes += (uint32_t)part;
		if (conn->rx_bytes == size)
			reply_end(p, pipe);
		data += part;
		n -= part;
	}
	return true;
}

static bool pipe_recv(struct pipeline *p, struct pipe *pipe)
{
	struct thread *thread = p->thread;
	/* pipeline_init() sets conn. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
	ssize_t got = recv(pipe->conn->fd, thread->buffer, thread->buffer_bytes, MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (got <= 0)
		return conn_fail_recv(thread, pipe->conn, got);
	thread->last_ns = clock_ns();
	return take(p, pipe, (size_t)got);
}

static void ready_put(struct pipeline *p, struct pipe *pipe)
{
	/* pipeline_init() sets conn. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
	if (pipe->ready || pipe->conn->blocked || !has_room(p, pipe) || thread_is_over(p->thread))
		return;
	pipe->ready = true;
	conn_queue_put(&p->ready, pipe->conn);
}

static struct pipe *ready_take(struct pipeline *p)
{
	struct pipe *pipe = pipe_of(p, conn_queue_take(&p->ready));

	pipe->ready = false;
	return pipe;
}

static bool advance(struct pipeline *p, struct pipe *pipe)
{
	if (!pipe_send(p, pipe) || !pipe_recv(p, pipe))
		return false;
	ready_put(p, pipe);
	return true;
}

static bool wait_events(struct pipeline *p)
{
	struct epoll_event events[EVENTS_PER_WAIT];
	const struct thread *thread = p->thread;
	int n = wait_busily(thread, events, EVENTS_PER_WAIT, p->ready.length ? 0 : LOOK_NS);

	for (int i = 0; i < n; i++) {
		struct pipe *pipe = pipe_of(p, events[i].data.ptr);

		if (!pipe_recv(p, pipe) || !pipe_send(p, pipe))
			return false;
		ready_put(p, pipe);
	}
	return true;
}

static bool exchange_all(struct pipeline *p)
{
	struct thread *thread = p->thread;
	uint64_t look_ns = thread->last_ns;

	for (unsigned int i = 0; i < thread->nconns; i++)
		ready_put(p, &p->pipes[i]);
	while (p->ready.length || p->in_flight) {
		uint64_t now;

		for (unsigned int n = p->ready.length; n; n--)
			if (!advance(p, ready_take(p)))
				return false;
		if (run_stops(thread->run) || !wait_events(p))
			return false;
		now = clock_ns();
		if (now >= look_ns) {
			look_ns = now + LOOK_NS;
			if (!conns_in_time(thread))
				return false;
		}
	}
	return true;
}

static bool pipeline_init(struct pipeline *p, struct thread *thread)
{
	const struct options *o = thread->run->options;

	*p = (struct pipeline){.thread = thread};
	conn_queue_init(&p->ready);
	p->batch_bytes = o->size_bytes > BATCH_BYTES ? o->size_bytes : BATCH_BYTES;
	p->pipes = calloc(thread->nconns, sizeof(*p->pipes));
	p->begun = calloc((size_t)thread->nconns * o->depth, sizeof(*p->begun));
	p->batch = malloc(p->batch_bytes);
	for (unsigned int i = 0; p->pipes && i < thread->nconns; i++) {
		p->pipes[i].conn = &thread->conns[i];
		p->pipes[i].conn->requests = 1;
		p->pipes[i].sending = 1;
		p->pipes[i].begun = p->begun + (size_t)i * o->depth;
	}
	return p->pipes && p->begun && p->batch;
}

static void pipeline_free(struct pipeline *p)
{
	free(p->batch);
	free(p->begun);
	free(p->pipes);
}

/* The surplus check names the last reply, not the next one. */
static void pipeline_settle(struct pipeline *p)
{
	for (unsigned int i = 0; i < p->thread->nconns; i++)
		p->thread->conns[i].requests--;
}

static bool pipeline_drive(struct thread *thread)
{
	struct pipeline p;
	bool done;

	if (!pipeline_init(&p, thread)) {
		pipeline_free(&p);
		return run_fail(thread, "out of memory");
	}
	done = exchange_all(&p);
	if (done)
		pipeline_settle(&p);
	pipeline_free(&p);
	return done;
}

const struct mode mode_pipeline = {
	.name = "pipeline",
	.drive = pipeline_drive,
};
