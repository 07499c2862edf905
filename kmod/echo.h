/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The data path: moves bytes from a socket's receive queue to its own send queue.
 *
 * It keeps nothing between two calls. What it has not sent is still in the receive queue, so
 * whoever calls next, in whatever context, goes on at the right byte, and TCP's own flow control
 * holds the peer back.
 */
#ifndef FASTECHO_ECHO_H
#define FASTECHO_ECHO_H

#include <linux/types.h>

struct sock;

/*
 * Where an echo runs: each path's name, by @each but for the @last. Their order is an interface: the
 * tracepoint shows the number, and programs learn from modinfo's field "paths" whose it is.
 */
#define FASTECHO_PATHS(each, last) each(SOFTIRQ, "softirq") last(WORKQUEUE, "workqueue")

#define FASTECHO_PATH_ENUM(id, name) FASTECHO_PATH_##id,
enum fastecho_path { FASTECHO_PATHS(FASTECHO_PATH_ENUM, FASTECHO_PATH_ENUM) };

/* What ended a pass over the receive queue. */
enum fastecho_verdict {
	FASTECHO_DRAINED, /* everything received so far has been sent */
	FASTECHO_BUDGET,  /* there is more, but others want the CPU */
	FASTECHO_STALLED, /* the send buffer is full: sk_write_space will be called */
	FASTECHO_NOMEM,	  /* no memory, and no acknowledgement to wait for: try again later */
	FASTECHO_FAILED, /* the connection cannot send any more, or what it received is unreadable */
};

/*
 * Prepares @sk, a listening socket, so that what it accepts can be used with fastecho_echo_pass().
 * Process context, the socket not yet in use.
 */
void fastecho_echo_setup(struct sock *sk);

/*
 * Sends back up to @budget bytes of what @sk has received; *@sent is how many.
 *
 * Softirq or process context with BH disabled and the socket's spinlock held, the socket not owned
 * by a task: then no backlog can form, and nothing reorders the receive queue under the pass.
 * sk_write_space may be called from within.
 */
enum fastecho_verdict fastecho_echo_pass(struct sock *sk, size_t budget, size_t *sent);

/* Frees what the passes shared. Process context, once there are no sockets any more. */
void fastecho_echo_uninit(void);

#endif
