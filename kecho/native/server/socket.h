/* SPDX-License-Identifier: MIT */
/* Refusing and ending connections, for all engines. */
#ifndef KECHO_NATIVE_SOCKET_H
#define KECHO_NATIVE_SOCKET_H

#include <errno.h>
#include <stdbool.h>

/* Errors that pass: try again later. */
static inline bool is_passing(int error)
{
	return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/*
 * When descriptors have run out, accept() fails; the connection stays in the backlog and keeps the
 * listener readable. To accept and reset it, a spare descriptor is closed for a moment.
 *
 * All threads share one spare descriptor. In that moment the accept() of another thread may take
 * it. So every thread calls spare_admits() after accept(); otherwise the spare descriptor could be
 * lost to a connection.
 */
bool spare_open(void);
void spare_close(void);

/* False if the accepted connection was reset, to get the spare descriptor back. */
bool spare_admits(int fd);

enum refusal {
	REFUSED,      /* one connection was accepted and reset */
	NONE_WAITS,   /* there was no connection */
	CANNOT_REFUSE /* the listener has to pause */
};

/* The listener must be non-blocking. */
enum refusal refuse_one(int listener);

/*
 * Resets a connection, so that the client does not see an orderly end. The descriptor stays open;
 * whatever waits on it gets the error.
 */
void socket_reset(int fd);

/*
 * A socket that is closed with data in flight becomes an orphan. The kernel may drop an orphan
 * after a few unanswered probes, or at once when memory is short, and the client would lose the end
 * of its echo. So an engine closes at once only if everything is acknowledged. Otherwise it shuts
 * down its side and keeps the descriptor until the socket is in state CLOSE.
 */
bool socket_is_acknowledged(int fd);
bool socket_is_done(int fd);

#endif
