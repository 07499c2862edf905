/* SPDX-License-Identifier: MIT */
/* The io_uring engine: its connections and buffers, and the functions that its parts share. */
#ifndef KECHO_NATIVE_URING_H
#define KECHO_NATIVE_URING_H

#include "server.h"

#include <liburing.h>
#include <stdbool.h>

/*
 * A receive takes a buffer from a ring, shared by the thread's connections, when data is there, so
 * idle connections own none. Each buffer is sent back with MSG_DONTWAIT, which ends within the
 * submission, so buffers return soon, whatever clients do. What the send buffer has no room for is
 * copied, and nothing more is received until the copy is sent: that is the flow control.
 *
 * Requests that wait for data or connections are not multishot, which would save submissions: Linux
 * loses a wake-up that comes while the handler of a multishot request is about to return, if 128
 * have come since the one before (io_poll_check_events() keeps no IO_POLL_RETRY_FLAG; seen on
 * 6.18), and a client then waits for ever. A request that is submitted anew checks the socket
 * itself.
 *
 * A send completes only if it fails or is short (MSG_WAITALL makes short a failure). A completion
 * of each successful send would end the wait of the system call that submits it, and a message
 * would take two calls. After the completions of a round, the sends that the kernel had taken
 * before the round and that are not among them have succeeded.
 */
#ifndef SQ_ENTRIES /* tests set small values */
#define SQ_ENTRIES 1024
#define CQ_ENTRIES 16384
#endif
#define BUFFERS 32 /* a power of two; together they bound what has to be copied for a client */
#ifndef BUFFER_BYTES
#define BUFFER_BYTES (64 * 1024)
#endif
#define BUFFER_GROUP 0
#define NO_BUFFER    UINT16_MAX
#define PAUSE_NS     100000000 /* for a listener that cannot even refuse */

/* The low bits of a completion's user data; the rest points to a struct conn or struct listener. */
enum kind { RECV, SEND, FLUSH, LINGER, ACCEPT, ROOM, REST, STOP, IGNORE, KINDS };
#define KIND_MASK 15ull

/* A copy of data that the send buffer had no room for. */
struct chunk {
	struct chunk *next;
	uint32_t bytes;
	uint32_t sent;
	unsigned char data[];
};

struct conn {
	int fd;
	unsigned int ops;     /* requests in flight; it is freed when there are none */
	uint16_t first, last; /* buffers received and not sent; the first may be in flight */
	bool receiving;
	bool sending;	       /* a buffer or a chunk is in flight */
	unsigned int send_end; /* the tail of the submission queue after its send */
	bool send_failed;      /* or was short */
	bool ended;	       /* the client has shut down its side */
	bool closing;
	bool starved; /* in the list of connections that wait for buffers */
	struct chunk *chunks;
	struct chunk **last_chunk;
	struct conn *next_starved;
	struct conn *next_send;
	struct conn *next;
	struct conn **link; /* the pointer to this one */
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
	unsigned int free_buffers;	/* in the ring, or returned in this round */
	unsigned int returned;		/* in this round; the ring gets them at its end */
	bool running;
	const struct server *server;
	struct stats_block *stats;
	struct listener *listeners;
	struct conn *conns;
	struct conn *starved;
	struct conn *sends;	/* prepared in this round */
	struct conn *submitted; /* in earlier rounds, and not settled yet */
};

/* Checks the result of a submission; dies if the error does not pass. */
void uring_check_submit(int result);

/*
 * Returns a submission to fill in. A full queue is submitted first. The kernel may take less than
 * it is offered; the rest stays in the queue.
 */
static inline struct io_uring_sqe *sqe_get(struct uring_engine *engine)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(&engine->ring)))
		uring_check_submit(io_uring_submit(&engine->ring));
	return sqe;
}

static inline void sqe_tag(struct io_uring_sqe *sqe, const void *object, enum kind kind)
{
	sqe->user_data = (uint64_t)(uintptr_t)object | kind;
}

/* ---- uring-buffer.c ---- */

/* Returns a buffer to the ring at the end of this round. */
void uring_buffer_put(struct uring_engine *engine, uint16_t id);
/* The buffers of a connection: received and not sent, in order. */
void uring_queue_push(struct uring_engine *engine, struct conn *conn, uint16_t id);
void uring_queue_drop(struct uring_engine *engine, struct conn *conn);
/* Returns all buffers but the one that is being sent. */
void uring_queue_clear(struct uring_engine *engine, struct conn *conn);
/*
 * Copies what is queued, but for the first `sent` bytes, and returns the buffers. False without
 * memory.
 */
bool uring_queue_to_chunks(struct uring_engine *engine, struct conn *conn, uint32_t sent);
void uring_chunk_drop(struct conn *conn);

/* ---- uring-conn.c ---- */

/* Takes over the descriptor of an accepted connection. */
void uring_conn_open(struct uring_engine *engine, int fd);
void uring_conn_free(struct uring_engine *engine, struct conn *conn);

/* Handlers of completions; object is the connection. */
void uring_on_recv(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe);
void uring_on_send(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe);
void uring_on_flush(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe);
void uring_on_linger(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe);

/*
 * Called before the system call that submits what this round has prepared. Returns whether that has
 * to wait for a completion: not if there is more to do, since a successful send ends no wait.
 */
bool uring_close_round(struct uring_engine *engine);
/* Called after all completions of a round have been handled. */
void uring_settle_sends(struct uring_engine *engine);
/* Called after buffers have been returned: receives on connections that had found none. */
void uring_feed_starved(struct uring_engine *engine);

#endif
