// SPDX-License-Identifier: MIT
// user-echo-server on io_uring: one system call a message, and one for many under load.
#include "args.h"
#include "server-socket.h"
#include "server.h"

#ifdef HAVE_LIBURING

#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * A multishot receive per connection takes a buffer from a ring shared by the thread's connections
 * when data is there, so idle ones own none. Each buffer is sent back with MSG_DONTWAIT, which is
 * over within the submission, so buffers never stay out for long, whatever clients do. What the
 * send buffer has no room for is copied, the receive is cancelled, and it is armed again once the
 * copy is gone: that is the flow control.
 *
 * Such a send completes only if it failed or was short (MSG_WAITALL makes short a failure): one
 * that succeeds would end the wait of the very system call that submits it, and there would be two
 * calls a message. When the completions of a round have been handled, the sends submitted before
 * it that were not among them have succeeded.
 */
#define SQ_ENTRIES   1024
#define CQ_ENTRIES   16384
#define BUFFERS	     64 /* a power of two */
#define BUFFER_BYTES (256 * 1024)
#define BUFFER_GROUP 0
#define NO_BUFFER    UINT16_MAX
#define PAUSE_NS     100000000 /* for which a listener rests when it cannot even refuse */

/* In the low bits of a completion's user data; the rest is a struct conn or struct listener. */
enum kind { RECV, SEND, FLUSH, LINGER, ACCEPT, ROOM, REST, STOP, IGNORE, KINDS };
#define KIND_MASK 15ull

/* A piece of what the send buffer had no room for. */
struct chunk {
	struct chunk *next;
	uint32_t bytes;
	uint32_t sent;
	unsigned char data[];
};

struct conn {
	int fd;
	unsigned int ops; /* submitted and not completed for good; it lives until there is none */
	uint16_t first, last; /* buffers received and not sent; the first one may be on its way */
	bool receiving;
	bool sending;	  /* a buffer or a chunk */
	bool send_failed; /* or was short */
	bool ended;	  /* the client has sent all it will */
	bool closing;
	bool starved; /* in the list of those that wait for buffers */
	struct chunk *chunks;
	struct chunk **last_chunk;
	struct conn *next_starved;
	struct conn *next_send;
	struct conn *next;
	struct conn **link; /* what points to this one */
} __attribute__((aligned(KIND_MASK + 1)));

struct listener {
	int fd;
} __attribute__((aligned(KIND_MASK + 1)));

struct uring_engine {
	struct io_uring ring;
	struct io_uring_buf_ring *buffer_ring;
	unsigned char *buffers;
	uint32_t buffer_bytes[BUFFERS]; /* received into each */
	uint16_t next_buffer[BUFFERS];	/* in its connection's queue */
	unsigned int free_buffers;	/* in the ring, or about to be */
	unsigned int returned;		/* about to be */
	bool running;
	int spare_fd;
	const struct server *server;
	struct stats_block *stats;
	struct listener *listeners;
	struct conn *conns;
	struct conn *starved;
	struct conn *sends;	/* prepared in this round */
	struct conn *submitted; /* in rounds before, and not settled yet */
};

/* ---- submissions ---- */

static struct io_uring_sqe *sqe_get(struct uring_engine *engine)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(&engine->ring)))
		io_uring_submit(&engine->ring);
	return sqe;
}

static void sqe_tag(struct io_uring_sqe *sqe, const void *object, enum kind kind)
{
	sqe->user_data = (uint64_t)(uintptr_t)object | kind;
}

static void submit_accept(struct uring_engine *engine, struct listener *listener)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_multishot_accept(sqe, listener->fd, NULL, NULL, SOCK_CLOEXEC);
	sqe_tag(sqe, listener, ACCEPT);
}

/* Completes when a connection waits. */
static void submit_room(struct uring_engine *engine, struct listener *listener)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_poll_add(sqe, listener->fd, POLLIN);
	sqe_tag(sqe, listener, ROOM);
}

static void submit_rest(struct uring_engine *engine, struct listener *listener)
{
	static struct __kernel_timespec pause = {.tv_nsec = PAUSE_NS};
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_timeout(sqe, &pause, 0, 0);
	sqe_tag(sqe, listener, REST);
}

static void submit_stop(struct uring_engine *engine)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_poll_add(sqe, engine->server->stop_fd, POLLIN);
	sqe_tag(sqe, NULL, STOP);
}

static void submit_recv(struct uring_engine *engine, struct conn *conn)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_recv_multishot(sqe, conn->fd, NULL, 0, 0);
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = BUFFER_GROUP;
	sqe_tag(sqe, conn, RECV);
	conn->receiving = true;
	conn->ops++;
}

/* What is cancelled completes too, if it has not already. */
static void submit_cancel(struct uring_engine *engine, struct conn *conn, enum kind kind)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)conn | kind, 0);
	sqe_tag(sqe, NULL, IGNORE);
}

static void submit_send(struct uring_engine *engine, struct conn *conn)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_send(sqe, conn->fd, engine->buffers + (size_t)conn->first * BUFFER_BYTES,
			   engine->buffer_bytes[conn->first],
			   MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	sqe_tag(sqe, conn, SEND);
	conn->sending = true;
	conn->ops++;
	conn->next_send = engine->sends;
	engine->sends = conn;
	/*
	 * Counted before it is known to succeed, or the last echo would be counted at the next
	 * event.
	 */
	stats_add(&engine->stats->bytes, engine->buffer_bytes[conn->first]);
	stats_add(&engine->stats->echoes, 1);
}

static void submit_flush(struct uring_engine *engine, struct conn *conn)
{
	struct io_uring_sqe *sqe = sqe_get(engine);
	struct chunk *chunk = conn->chunks;

	io_uring_prep_send(sqe, conn->fd, chunk->data + chunk->sent, chunk->bytes - chunk->sent,
			   MSG_NOSIGNAL);
	sqe_tag(sqe, conn, FLUSH);
	conn->sending = true;
	conn->ops++;
}

/* Multishot polls are edge-triggered: one completion a change of the socket's state. */
static void submit_linger(struct uring_engine *engine, struct conn *conn)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_poll_multishot(sqe, conn->fd, POLLHUP);
	sqe_tag(sqe, conn, LINGER);
	conn->ops++;
}

/* ---- buffers ---- */

static void buffer_put(struct uring_engine *engine, uint16_t id)
{
	io_uring_buf_ring_add(engine->buffer_ring, engine->buffers + (size_t)id * BUFFER_BYTES,
			      BUFFER_BYTES, id, io_uring_buf_ring_mask(BUFFERS),
			      (int)engine->returned++);
	engine->free_buffers++;
}

static void queue_push(struct uring_engine *engine, struct conn *conn, uint16_t id)
{
	engine->next_buffer[id] = NO_BUFFER;
	if (conn->first == NO_BUFFER)
		conn->first = id;
	else
		engine->next_buffer[conn->last] = id;
	conn->last = id;
}

/* Returns the first buffer of the queue to the ring. */
static void queue_drop(struct uring_engine *engine, struct conn *conn)
{
	uint16_t id = conn->first;

	conn->first = engine->next_buffer[id];
	buffer_put(engine, id);
}

/* False when memory has run out. */
static bool chunk_put(struct conn *conn, const unsigned char *data, uint32_t bytes)
{
	struct chunk *chunk = malloc(sizeof(*chunk) + bytes);

	if (!chunk)
		return false;
	*chunk = (struct chunk){.bytes = bytes};
	memcpy(chunk->data, data, bytes);
	*conn->last_chunk = chunk;
	conn->last_chunk = &chunk->next;
	return true;
}

static void chunk_drop(struct conn *conn)
{
	struct chunk *chunk = conn->chunks;

	conn->chunks = chunk->next;
	if (!conn->chunks)
		conn->last_chunk = &conn->chunks;
	free(chunk);
}

/* Copies all that is queued, without the first sent bytes of it; the buffers go back. */
static bool queue_to_chunks(struct uring_engine *engine, struct conn *conn, uint32_t sent)
{
	for (; conn->first != NO_BUFFER; sent = 0) {
		uint16_t id = conn->first;

		if (!chunk_put(conn, engine->buffers + (size_t)id * BUFFER_BYTES + sent,
			       engine->buffer_bytes[id] - sent))
			return false;
		queue_drop(engine, conn);
	}
	return true;
}

/* ---- connections ---- */

static void conn_free(struct uring_engine *engine, struct conn *conn)
{
	while (conn->first != NO_BUFFER)
		queue_drop(engine, conn);
	while (conn->chunks)
		chunk_drop(conn);
	*conn->link = conn->next;
	if (conn->next)
		conn->next->link = conn->link;
	close(conn->fd);
	free(conn);
	stats_add(&engine->stats->active, (uint64_t)-1);
}

/* Gives back all buffers but the one that is on its way. */
static void queue_clear(struct uring_engine *engine, struct conn *conn)
{
	uint16_t keep = conn->sending ? conn->first : NO_BUFFER;

	if (keep != NO_BUFFER)
		conn->first = engine->next_buffer[keep];
	while (conn->first != NO_BUFFER)
		queue_drop(engine, conn);
	if (keep != NO_BUFFER)
		queue_push(engine, conn, keep);
}

/* Both ways shut, so that everything under way completes soon; conn_settle() does the rest. */
static void conn_close(struct uring_engine *engine, struct conn *conn)
{
	if (conn->closing)
		return;
	conn->closing = true;
	queue_clear(engine, conn);
	if (conn->ops)
		shutdown(conn->fd, SHUT_RDWR);
}

static void conn_abort(struct uring_engine *engine, struct conn *conn)
{
	if (conn->closing)
		return;
	stats_add(&engine->stats->aborted, 1);
	conn_close(engine, conn);
}

static void conn_finish(struct uring_engine *engine, struct conn *conn)
{
	if (socket_is_acknowledged(conn->fd)) {
		conn_close(engine, conn);
		return;
	}
	shutdown(conn->fd, SHUT_WR);
	submit_linger(engine, conn);
}

static void conn_starve(struct uring_engine *engine, struct conn *conn)
{
	if (conn->starved)
		return;
	conn->starved = true;
	conn->next_starved = engine->starved;
	engine->starved = conn;
}

/* After anything that happened to a connection: what it does next. */
static void conn_settle(struct uring_engine *engine, struct conn *conn)
{
	if (!conn->closing && !conn->sending) {
		if (conn->chunks)
			submit_flush(engine, conn);
		else if (conn->first != NO_BUFFER)
			submit_send(engine, conn);
		else if (conn->ended && !conn->ops)
			conn_finish(engine, conn);
		else if (!conn->ended && !conn->receiving)
			conn_starve(engine, conn); /* for as long as this round lasts */
	}
	if (conn->closing && !conn->ops && !conn->starved)
		conn_free(engine, conn);
}

static void feed_starved(struct uring_engine *engine)
{
	unsigned int buffers = engine->free_buffers;
	struct conn *conn;

	while ((conn = engine->starved) && buffers) {
		engine->starved = conn->next_starved;
		conn->starved = false;
		if (conn->closing) {
			conn_settle(engine, conn);
		} else {
			submit_recv(engine, conn);
			buffers--;
		}
	}
}

static void conn_open(struct uring_engine *engine, int fd)
{
	struct conn *conn = aligned_alloc(_Alignof(struct conn), sizeof(*conn));

	if (!conn) {
		close(fd);
		stats_add(&engine->stats->rejected, 1);
		return;
	}
	*conn = (struct conn){.fd = fd, .first = NO_BUFFER};
	conn->last_chunk = &conn->chunks;
	conn->next = engine->conns;
	conn->link = &engine->conns;
	if (conn->next)
		conn->next->link = &conn->next;
	engine->conns = conn;
	submit_recv(engine, conn);
	stats_add(&engine->stats->active, 1);
	stats_add(&engine->stats->total, 1);
}

/* ---- completions ---- */

static void on_recv(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct conn *conn = object;

	if (!(cqe->flags & IORING_CQE_F_MORE)) {
		conn->receiving = false;
		conn->ops--;
	}
	if (cqe->flags & IORING_CQE_F_BUFFER) {
		uint16_t id = (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);

		engine->free_buffers--;
		if (cqe->res > 0 && !conn->closing) {
			engine->buffer_bytes[id] = (uint32_t)cqe->res;
			queue_push(engine, conn, id);
			/* Nothing may overtake a copy that is on its way. */
			if (conn->chunks && !queue_to_chunks(engine, conn, 0))
				conn_abort(engine, conn);
		} else {
			buffer_put(engine, id);
		}
	}
	if (cqe->res == 0)
		conn->ended = true;
	else if (cqe->res < 0 && cqe->res != -ENOBUFS && cqe->res != -ECANCELED)
		conn_abort(engine, conn);
	conn_settle(engine, conn);
}

/* Whether the connection has something to do as soon as its send is known to have succeeded. */
static bool conn_has_more(const struct uring_engine *engine, const struct conn *conn)
{
	return engine->next_buffer[conn->first] != NO_BUFFER || !conn->receiving || conn->closing;
}

/*
 * Before the system call that submits what this round has prepared. Whether it has to wait for a
 * completion: not if there is more to do at once, since a successful send does not end the wait.
 */
static bool close_round(struct uring_engine *engine)
{
	bool more = engine->sends && engine->starved; /* it gives buffers back */
	struct conn *conn;

	while ((conn = engine->sends)) {
		engine->sends = conn->next_send;
		conn->next_send = engine->submitted;
		engine->submitted = conn;
		more |= conn_has_more(engine, conn);
	}
	return !more;
}

/* The send was short, or there is an error: the copy takes over, or the connection ends. */
static void on_send(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct conn *conn = object;
	uint32_t bytes = engine->buffer_bytes[conn->first];
	uint32_t sent = cqe->res > 0 ? (uint32_t)cqe->res : 0;

	conn->send_failed = true;
	stats_add(&engine->stats->bytes, (uint64_t)sent - bytes);
	stats_add(&engine->stats->echoes, (uint64_t)-1);
	if (cqe->res < 0 && !is_passing(-cqe->res))
		conn_abort(engine, conn);
	else if (!queue_to_chunks(engine, conn, sent))
		conn_abort(engine, conn);
	else if (conn->receiving)
		submit_cancel(engine, conn, RECV);
}

/* All completions of this round have been handled. */
static void settle_sends(struct uring_engine *engine)
{
	struct conn *conn;

	while ((conn = engine->submitted)) {
		engine->submitted = conn->next_send;
		conn->ops--;
		conn->sending = false;
		if (!conn->send_failed)
			queue_drop(engine, conn);
		conn->send_failed = false;
		conn_settle(engine, conn);
	}
}

static void on_flush(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct conn *conn = object;

	conn->ops--;
	conn->sending = false;
	if (cqe->res < 0 && !is_passing(-cqe->res)) {
		conn_abort(engine, conn);
	} else if (cqe->res > 0) {
		stats_add(&engine->stats->bytes, (uint64_t)cqe->res);
		conn->chunks->sent += (uint32_t)cqe->res;
		if (conn->chunks->sent == conn->chunks->bytes) {
			stats_add(&engine->stats->echoes, 1);
			chunk_drop(conn);
		}
	}
	conn_settle(engine, conn);
}

static void on_linger(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct conn *conn = object;
	bool last = !(cqe->flags & IORING_CQE_F_MORE);

	if (last)
		conn->ops--;
	if (cqe->res > 0 && cqe->res & POLLERR) {
		conn_abort(engine, conn);
	} else if (socket_is_done(conn->fd) || cqe->res < 0) {
		conn_close(engine, conn);
	} else if (last && !conn->closing) {
		submit_linger(engine, conn);
	}
	if (conn->closing && !last)
		submit_cancel(engine, conn, LINGER);
	conn_settle(engine, conn);
}

/* accept() found no free descriptor, which says nothing of whether a connection waits. */
static void listener_refuse(struct uring_engine *engine, struct listener *listener)
{
	switch (refuse_one(&engine->spare_fd, listener->fd)) {
	case REFUSED:
		stats_add(&engine->stats->rejected, 1);
		submit_room(engine, listener);
		break;
	case NONE_WAITS:
		submit_room(engine, listener);
		break;
	case CANNOT_REFUSE:
		submit_rest(engine, listener);
		break;
	}
}

/* Without a descriptor a new multishot accept would fail at once, whether anybody waits or not. */
static void listener_failed(struct uring_engine *engine, struct listener *listener, int error)
{
	if (error == EMFILE || error == ENFILE)
		listener_refuse(engine, listener);
	else if (is_passing(error) || error == ECONNABORTED)
		submit_room(engine, listener);
	else
		submit_rest(engine, listener);
}

static void on_accept(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct listener *listener = object;

	if (cqe->res >= 0)
		conn_open(engine, cqe->res);
	if (cqe->flags & IORING_CQE_F_MORE)
		return;
	if (cqe->res >= 0)
		submit_accept(engine, listener);
	else
		listener_failed(engine, listener, -cqe->res);
}

static void on_room(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct listener *listener = object;
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);

	(void)cqe;
	if (fd >= 0) {
		conn_open(engine, fd);
		submit_accept(engine, listener);
	} else {
		listener_failed(engine, listener, errno);
	}
}

static void on_rest(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	(void)cqe;
	submit_room(engine, object);
}

static void on_stop(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	(void)object;
	(void)cqe;
	engine->running = false;
}

static void on_ignore(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	(void)engine;
	(void)object;
	(void)cqe;
}

static void (*const handlers[KINDS])(struct uring_engine *engine, void *object,
				     const struct io_uring_cqe *cqe) = {
	[RECV] = on_recv,     [SEND] = on_send,	    [FLUSH] = on_flush,
	[LINGER] = on_linger, [ACCEPT] = on_accept, [ROOM] = on_room,
	[REST] = on_rest,     [STOP] = on_stop,	    [IGNORE] = on_ignore,
};

static void handle(struct uring_engine *engine, const struct io_uring_cqe *cqe)
{
	void *object = (void *)(uintptr_t)(cqe->user_data & ~KIND_MASK);

	handlers[cqe->user_data & KIND_MASK](engine, object, cqe);
}

/* From here on the ring is this thread's. liburing 2.3 declares a function for it and has none. */
static void ring_enable(const struct io_uring *ring)
{
	if (syscall(__NR_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
		die(EXIT_FAILED, "engine io_uring: cannot enable the ring: %s", strerror(errno));
}

static void uring_serve(struct worker *worker)
{
	struct uring_engine *engine = worker->engine;

	ring_enable(&engine->ring);
	submit_stop(engine);
	for (unsigned int i = 0; i < engine->server->nlisteners; i++)
		submit_accept(engine, &engine->listeners[i]);
	while (engine->running) {
		struct io_uring_cqe *cqe;
		unsigned int head, n = 0;

		if (close_round(engine))
			io_uring_submit_and_wait(&engine->ring, 1);
		else
			io_uring_submit_and_get_events(&engine->ring);
		io_uring_for_each_cqe(&engine->ring, head, cqe)
		{
			handle(engine, cqe);
			n++;
		}
		io_uring_cq_advance(&engine->ring, n);
		if (!io_uring_cq_has_overflow(
			    &engine->ring)) /* a failure might be among the rest */
			settle_sends(engine);
		io_uring_buf_ring_advance(engine->buffer_ring, (int)engine->returned);
		engine->returned = 0;
		feed_starved(engine);
	}
}

/* ---- set-up ---- */

/*
 * Completions are collected only when the thread asks for them, which spares it the interruptions.
 * The ring starts disabled, so that another thread than the one that makes it becomes its only
 * user.
 */
static int ring_open(struct io_uring *ring, unsigned int entries, unsigned int cq_entries)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			 IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
		.cq_entries = cq_entries,
	};

	return io_uring_queue_init_params(entries, ring, &params);
}

static struct io_uring_buf_ring *buffer_ring_open(struct io_uring *ring, unsigned int entries)
{
	struct io_uring_buf_reg reg = {.ring_entries = entries, .bgid = BUFFER_GROUP};
	struct io_uring_buf_ring *buffers =
		aligned_alloc((size_t)sysconf(_SC_PAGESIZE),
			      (entries * sizeof(struct io_uring_buf) + 4095) & ~(size_t)4095);

	if (!buffers)
		return NULL;
	reg.ring_addr = (uint64_t)(uintptr_t)buffers;
	if (io_uring_register_buf_ring(ring, &reg, 0)) {
		free(buffers);
		return NULL;
	}
	io_uring_buf_ring_init(buffers);
	return buffers;
}

/* Tried, not derived from the version; the flags are as new as the multishot receive. */
static const char *uring_unavailable(void)
{
	struct io_uring_buf_ring *buffers;
	struct io_uring ring;
	int error = ring_open(&ring, 8, 16);

	if (error == -EPERM || error == -EACCES)
		return "io_uring is forbidden here (sysctl kernel.io_uring_disabled, seccomp)";
	if (error == -ENOSYS)
		return "this kernel has no io_uring";
	if (error == -EINVAL)
		return "this kernel's io_uring is too old (it needs Linux 6.1)";
	if (error)
		return strerror(-error);
	buffers = buffer_ring_open(&ring, 8);
	io_uring_queue_exit(&ring);
	free(buffers);
	return buffers ? NULL : "this kernel's io_uring has no buffer rings (it needs Linux 6.1)";
}

static const char *uring_setup(struct worker *worker)
{
	const struct server *server = worker->server;
	struct uring_engine *engine = calloc(1, sizeof(*engine));
	int error;

	if (!engine)
		return "out of memory";
	worker->engine = engine;
	engine->server = server;
	engine->stats = worker->stats;
	engine->running = true;
	engine->listeners = aligned_alloc(_Alignof(struct listener),
					  server->nlisteners * sizeof(*engine->listeners));
	engine->buffers = aligned_alloc(4096, (size_t)BUFFERS * BUFFER_BYTES);
	if (!engine->listeners || !engine->buffers)
		return "out of memory";
	for (unsigned int i = 0; i < server->nlisteners; i++)
		engine->listeners[i].fd = server->listeners[i];
	if (!spare_open(&engine->spare_fd))
		return strerror(errno);
	error = ring_open(&engine->ring, SQ_ENTRIES, CQ_ENTRIES);
	if (error)
		return strerror(-error);
	engine->buffer_ring = buffer_ring_open(&engine->ring, BUFFERS);
	if (!engine->buffer_ring)
		return "cannot register the buffers";
	for (unsigned int id = 0; id < BUFFERS; id++)
		buffer_put(engine, (uint16_t)id);
	io_uring_buf_ring_advance(engine->buffer_ring, (int)engine->returned);
	engine->returned = 0;
	return NULL;
}

static void uring_teardown(struct worker *worker)
{
	struct uring_engine *engine = worker->engine;

	io_uring_queue_exit(&engine->ring);
	while (engine->conns)
		conn_free(engine, engine->conns);
	free(engine->buffer_ring);
	spare_close(&engine->spare_fd);
	free(engine->buffers);
	free(engine->listeners);
	free(engine);
}

#else

#include <stddef.h>

static const char *uring_unavailable(void)
{
	return "built without liburing (liburing-dev)";
}

#define uring_setup    NULL
#define uring_serve    NULL
#define uring_teardown NULL

#endif

const struct engine engine_uring = {
	.name = "io_uring",
	.unavailable = uring_unavailable,
	.setup = uring_setup,
	.serve = uring_serve,
	.teardown = uring_teardown,
};
