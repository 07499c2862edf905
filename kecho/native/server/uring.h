/* SPDX-License-Identifier: MIT */
/* What the parts of the io_uring engine agree on: how it works, its connections and buffers. */
#ifndef KECHO_NATIVE_URING_H
#define KECHO_NATIVE_URING_H

#include "server.h"

#include <liburing.h>
#include <stdbool.h>

/*
 * A receive takes a buffer from a ring shared by the thread's connections when data is there, so
 * idle ones own none. Each buffer is sent back with MSG_DONTWAIT, which is over within the
 * submission, so buffers never stay out for long, whatever clients do. What the send buffer has no
 * room for is copied, and nothing more is received until the copy is gone: that is the flow
 * control.
 *
 * Nothing that data or connections wake is multishot, although that would spare submissions: Linux
 * loses a wake-up that comes while a multishot request's handler is about to return, if 128 have
 * come since the one before (io_poll_check_events() keeps no IO_POLL_RETRY_FLAG; seen on 6.18).
 * A client waits forever then. A request that is submitted looks for itself.
 *
 * Such a send completes only if it failed or was short (MSG_WAITALL makes short a failure): one
 * that succeeds would end the wait of the very system call that submits it, and there would be two
 * calls a message. When the completions of a round have been handled, the sends that the kernel
 * had taken before it and that were not among them have succeeded.
 */
#ifndef SQ_ENTRIES /* tests make them few */
#define SQ_ENTRIES 1024
#define CQ_ENTRIES 16384
#endif
#define BUFFERS 32 /* a power of two; all of them together bound what a client can make us copy */
#ifndef BUFFER_BYTES
#define BUFFER_BYTES (64 * 1024)
#endif
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
	bool sending;	       /* a buffer or a chunk */
	unsigned int send_end; /* the tail of the submission queue right after its send */
	bool send_failed;      /* or was short */
	bool ended;	       /* the client has sent all it will */
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
	const struct server *server;
	struct stats_block *stats;
	struct listener *listeners;
	struct conn *conns;
	struct conn *starved;
	struct conn *sends;	/* prepared in this round */
	struct conn *submitted; /* in rounds before, and not settled yet */
};

/* What came of a submission: dies of an error that does not pass. */
void uring_check_submit(int result);

/*
 * A submission to fill in. What is prepared is submitted when there is no room for more; the kernel
 * may take less than it is offered, and the rest stays in the queue.
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

/* Gives a buffer back; the ring has it once this round is over. */
void uring_buffer_put(struct uring_engine *engine, uint16_t id);
/* The buffers of a connection: received and not sent, in order. */
void uring_queue_push(struct uring_engine *engine, struct conn *conn, uint16_t id);
void uring_queue_drop(struct uring_engine *engine, struct conn *conn);
/* Gives back all but the one that is on its way. */
void uring_queue_clear(struct uring_engine *engine, struct conn *conn);
/*
 * Copies all that is queued, without the first sent bytes of it; the buffers go back. False when
 * memory has run out.
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
 * Before the system call that submits what this round has prepared. Whether it has to wait for a
 * completion: not if there is more to do at once, since a successful send does not end the wait.
 */
bool uring_close_round(struct uring_engine *engine);
/* After all completions of a round have been handled. */
void uring_settle_sends(struct uring_engine *engine);
/* After the buffers have been given back: receives what had found none. */
void uring_feed_starved(struct uring_engine *engine);

#endif
