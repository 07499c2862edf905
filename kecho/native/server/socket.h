/* SPDX-License-Identifier: MIT */
/* What every engine of user-echo-server asks of sockets: refusing one, ending one safely. */
#ifndef KECHO_NATIVE_SOCKET_H
#define KECHO_NATIVE_SOCKET_H

#include <errno.h>
#include <stdbool.h>

/* Not an error: try again later. */
static inline bool is_passing(int error)
{
	return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/*
 * When descriptors have run out, accept() fails, and the connection stays in the backlog and keeps
 * the listener readable. A spare descriptor, given up for a moment, lets it be accepted and reset.
 *
 * The process has one, for all threads. In that moment another thread's accept() may get it, so
 * whoever has accepted asks spare_admits(): else connections would end up with every spare
 * descriptor, and then nobody could refuse.
 */
bool spare_open(void);
void spare_close(void);

/* False: the accepted connection has been reset, to have the spare descriptor back. */
bool spare_admits(int fd);

enum refusal {
	REFUSED,      /* one connection was accepted and reset */
	NONE_WAITS,   /* none was there */
	CANNOT_REFUSE /* the listener has to rest a while */
};

/* listener: non-blocking. */
enum refusal refuse_one(int listener);

/*
 * Breaks a connection off by a reset, so that nobody takes it for the end of a stream. The
 * descriptor stays; what waits on it learns of the error.
 */
void socket_reset(int fd);

/*
 * A socket that is closed with data in flight becomes an orphan, which the kernel may drop after a
 * few unanswered probes, or at once when memory is short: the client would lose the end of its
 * echo. So an engine that has sent all closes at once only if all is acknowledged. Else it shuts
 * down its side and keeps the descriptor until TCP is done, which the state CLOSE tells.
 */
bool socket_is_acknowledged(int fd);
bool socket_is_done(int fd);

#endif
