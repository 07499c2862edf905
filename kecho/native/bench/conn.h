/* SPDX-License-Identifier: MIT */
/* bench's connections. Functions return false or IO_FAILED if the run failed or stops. */
#ifndef KECHO_NATIVE_CONN_H
#define KECHO_NATIVE_CONN_H

#include "run.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum io { IO_DONE, IO_WAIT, IO_FAILED };

struct conn {
	int fd; /* or -1 */
	uint32_t id;
	uint32_t tx_bytes; /* of the request, sent so far */
	uint32_t rx_bytes; /* of the reply, received and verified so far */
	uint64_t requests; /* begun so far; also the number of the current one, from 1 */
	uint64_t begin_ns; /* the time that the latency of the current request counts from */
	uint64_t sent_ns;  /* when it was really begun: its timeout counts from here */
	struct conn *next; /* in a conn_queue */
	bool connecting;   /* since sent_ns */
	bool busy;	   /* a request is in flight */
	bool measured;	   /* and will be counted */
	bool blocked;	   /* epoll watches for room to send */
};

/* First in, first out. */
struct conn_queue {
	struct conn *first;
	struct conn *last; /* if there is a first */
	unsigned int length;
};

static inline void conn_queue_init(struct conn_queue *queue)
{
	*queue = (struct conn_queue){0};
}

static inline void conn_queue_put(struct conn_queue *queue, struct conn *conn)
{
	conn->next = NULL;
	if (queue->first)
		queue->last->next = conn;
	else
		queue->first = conn;
	queue->last = conn;
	queue->length++;
}

/* The queue must not be empty. */
static inline struct conn *conn_queue_take(struct conn_queue *queue)
{
	struct conn *conn = queue->first;

	queue->first = conn->next;
	queue->length--;
	return conn;
}

/* Connects all connections of the thread, in batches. */
bool conns_connect(struct thread *thread);
/* Half-closes all and waits for the server to close. Fails if it sends any byte. */
bool conns_drain(struct thread *thread);
void conns_close(struct thread *thread);
/* Fails if a connection exceeds its timeout to connect or to reply. */
bool conns_in_time(struct thread *thread);

/* Begins to connect; epoll reports room to send once the connection is made. */
bool conn_open(struct thread *thread, struct conn *conn);
/* The connection is made: from here on epoll reports data to receive. */
bool conn_opened(struct thread *thread, struct conn *conn);
void conn_close(struct thread *thread, struct conn *conn);
/* Sets whether epoll reports room to send as well. */
bool conn_watch_room(struct thread *thread, struct conn *conn, bool blocked);

/* Begins the next request, without sending. */
void conn_begin(struct thread *thread, struct conn *conn, uint64_t begin_ns);
/* Sends the rest of the request, as far as there is room. */
enum io conn_send(struct thread *thread, struct conn *conn);
/* Receives and verifies the reply. IO_DONE: it is complete, and came at thread->last_ns. */
enum io conn_recv(struct thread *thread, struct conn *conn);
/* Ends the request, whose reply is complete, and records its latency. */
void conn_end(struct thread *thread, struct conn *conn);
/* Sends and receives as far as possible; calls conn_end() when the reply is complete. */
enum io conn_exchange(struct thread *thread, struct conn *conn);
/* Compares n bytes with the reply from rx_bytes on; the payload must not be open. */
bool conn_verify(struct thread *thread, const struct conn *conn, const unsigned char *data,
		 size_t n);

bool conn_fail_timeout(struct thread *thread, const struct conn *conn);
/* got: what recv() returned, 0 or an error. */
bool conn_fail_recv(struct thread *thread, const struct conn *conn, ssize_t got);
bool conn_fail_send(struct thread *thread, const struct conn *conn);
bool conn_fail_surplus(struct thread *thread, const struct conn *conn, unsigned char byte);

#endif
