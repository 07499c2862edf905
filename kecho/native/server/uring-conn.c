// SPDX-License-Identifier: MIT
// The connections of the io_uring engine: their submissions, and what the completions lead to.
#include "socket.h"
#include "uring.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* With IORING_RECVSEND_POLL_FIRST it takes no buffer before there is data. */
static void submit_recv(struct uring_engine *engine, struct conn *conn, uint16_t flags)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_recv(sqe, conn->fd, NULL, 0, 0);
	sqe->ioprio = flags;
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = BUFFER_GROUP;
	sqe_tag(sqe, conn, RECV);
	conn->receiving = true;
	conn->ops++;
}

/* A cancelled request completes too. */
static void cancel_linger(struct uring_engine *engine, struct conn *conn)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)conn | LINGER, 0);
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
	conn->send_end = engine->ring.sq.sqe_tail;
	conn->sending = true;
	conn->ops++;
	conn->next_send = engine->sends;
	engine->sends = conn;
	/*
	 * Counted before it is known to succeed; otherwise the last echo would be counted only at
	 * the next event.
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

/* Multishot polls are edge-triggered: one completion for each change of the socket's state. */
static void submit_linger(struct uring_engine *engine, struct conn *conn)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_poll_multishot(sqe, conn->fd, POLLHUP);
	sqe_tag(sqe, conn, LINGER);
	conn->ops++;
}

void uring_conn_free(struct uring_engine *engine, struct conn *conn)
{
	while (conn->first != NO_BUFFER)
		uring_queue_drop(engine, conn);
	while (conn->chunks)
		uring_chunk_drop(conn);
	*conn->link = conn->next;
	if (conn->next)
		conn->next->link = conn->link;
	close(conn->fd);
	free(conn);
	stats_add(&engine->stats->active, (uint64_t)-1);
}

/* Shuts down both directions, so that all requests complete soon; conn_settle() does the rest. */
static void conn_close(struct uring_engine *engine, struct conn *conn)
{
	if (conn->closing)
		return;
	conn->closing = true;
	uring_queue_clear(engine, conn);
	if (conn->ops)
		shutdown(conn->fd, SHUT_RDWR);
}

static void conn_abort(struct uring_engine *engine, struct conn *conn)
{
	if (conn->closing)
		return;
	stats_add(&engine->stats->aborted, 1);
	socket_reset(conn->fd);
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
	conn->starved = true;
	conn->next_starved = engine->starved;
	engine->starved = conn;
}

/* Called after every event of a connection: decides what it does next. */
static void conn_settle(struct uring_engine *engine, struct conn *conn)
{
	if (!conn->closing && !conn->sending) {
		if (conn->chunks)
			submit_flush(engine, conn);
		else if (conn->first != NO_BUFFER)
			submit_send(engine, conn);
		else if (conn->ended && !conn->ops)
			conn_finish(engine, conn);
	}
	if (!conn->closing && !conn->receiving && !conn->starved && !conn->ended && !conn->chunks)
		submit_recv(engine, conn, IORING_RECVSEND_POLL_FIRST);
	if (conn->closing && !conn->ops && !conn->starved)
		uring_conn_free(engine, conn);
}

void uring_feed_starved(struct uring_engine *engine)
{
	unsigned int buffers = engine->free_buffers;
	struct conn *conn;

	while ((conn = engine->starved) && buffers) {
		engine->starved = conn->next_starved;
		conn->starved = false;
		if (conn->closing || conn->chunks) {
			conn_settle(engine, conn);
		} else {
			submit_recv(engine, conn, 0);
			buffers--;
		}
	}
}

void uring_conn_open(struct uring_engine *engine, int fd)
{
	struct conn *conn;

	if (!spare_admits(fd)) {
		stats_add(&engine->stats->rejected, 1);
		return;
	}
	conn = aligned_alloc(_Alignof(struct conn), sizeof(*conn));
	if (!conn) {
		socket_reset(fd);
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
	submit_recv(engine, conn, IORING_RECVSEND_POLL_FIRST);
	stats_add(&engine->stats->active, 1);
	stats_add(&engine->stats->total, 1);
}

void uring_on_recv(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct conn *conn = object;

	conn->receiving = false;
	conn->ops--;
	if (cqe->flags & IORING_CQE_F_BUFFER) {
		uint16_t id = (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);

		engine->free_buffers--;
		if (cqe->res > 0 && !conn->closing) {
			engine->buffer_bytes[id] = (uint32_t)cqe->res;
			uring_queue_push(engine, conn, id);
			/* A client that does not read keeps no buffer. */
			if (conn->chunks && !uring_queue_to_chunks(engine, conn, 0))
				conn_abort(engine, conn);
		} else {
			uring_buffer_put(engine, id);
		}
	}
	if (cqe->res == 0)
		conn->ended = true;
	else if (cqe->res == -ENOBUFS)
		conn_starve(engine, conn);
	else if (cqe->res < 0)
		conn_abort(engine, conn);
	conn_settle(engine, conn);
}

/*
 * True if the connection has something to do once its send is settled. A failed send may have left
 * no buffer, if a full queue made it be submitted within the round.
 */
static bool conn_has_more(const struct uring_engine *engine, const struct conn *conn)
{
	return conn->send_failed || engine->next_buffer[conn->first] != NO_BUFFER ||
	       !conn->receiving || conn->closing;
}

bool uring_close_round(struct uring_engine *engine)
{
	/* The kernel did not take all submissions, or buffers will be returned. */
	bool more = engine->submitted || (engine->sends && engine->starved);
	struct conn *conn;

	while ((conn = engine->sends)) {
		engine->sends = conn->next_send;
		conn->next_send = engine->submitted;
		engine->submitted = conn;
		more |= conn_has_more(engine, conn);
	}
	return !more;
}

/* A send that was short or failed: the rest is copied, or the connection ends. */
void uring_on_send(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct conn *conn = object;
	uint32_t bytes = engine->buffer_bytes[conn->first];
	uint32_t sent = cqe->res > 0 ? (uint32_t)cqe->res : 0;

	conn->send_failed = true;
	stats_add(&engine->stats->bytes, (uint64_t)sent - bytes);
	stats_add(&engine->stats->echoes, (uint64_t)-1);
	if ((cqe->res < 0 && !is_passing(-cqe->res)) || !uring_queue_to_chunks(engine, conn, sent))
		conn_abort(engine, conn);
}

/* Settles the sends that the kernel has taken; others still need their buffers. */
void uring_settle_sends(struct uring_engine *engine)
{
	unsigned int taken = engine->ring.sq.sqe_tail - io_uring_sq_ready(&engine->ring);
	struct conn *conn, *next = engine->submitted;

	engine->submitted = NULL;
	while ((conn = next)) {
		next = conn->next_send;
		if ((int)(taken - conn->send_end) < 0) {
			conn->next_send = engine->submitted;
			engine->submitted = conn;
			continue;
		}
		conn->ops--;
		conn->sending = false;
		if (conn->closing)
			uring_queue_clear(engine, conn);
		else if (!conn->send_failed)
			uring_queue_drop(engine, conn);
		conn->send_failed = false;
		conn_settle(engine, conn);
	}
}

void uring_on_flush(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
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
			uring_chunk_drop(conn);
		}
	}
	conn_settle(engine, conn);
}

void uring_on_linger(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
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
		cancel_linger(engine, conn);
	conn_settle(engine, conn);
}
