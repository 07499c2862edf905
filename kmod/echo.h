/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The data path: moves bytes from a socket's receive queue to its own send queue.
 *
 * It keeps no state between calls. Data that was not sent stays in the receive queue. So the next
 * caller, in any context, goes on at the right byte, and TCP's flow control holds the peer back.
 */
#ifndef FASTECHO_ECHO_H
#define FASTECHO_ECHO_H

#include <linux/types.h>

struct sock;

/*
 * The paths: where an echo runs. Their order is an interface: the tracepoint shows the index, and
 * programs learn the names from modinfo's field "paths". @each is applied to all names but @last.
 */
#define FASTECHO_PATHS(each, last) each(SOFTIRQ, "softirq") last(WORKQUEUE, "workqueue")

#define FASTECHO_PATH_ENUM(id, name) FASTECHO_PATH_##id,
enum fastecho_path { FASTECHO_PATHS(FASTECHO_PATH_ENUM, FASTECHO_PATH_ENUM) };

/* Why a pass over the receive queue ended. */
enum fastecho_verdict {
	FASTECHO_DRAINED, /* everything received so far has been sent */
	FASTECHO_BUDGET,  /* the budget is spent, and there is more data */
	FASTECHO_STALLED, /* the send buffer is full: sk_write_space will be called */
	FASTECHO_NOMEM,	  /* no memory, and no acknowledgement to wait for: try again later */
	FASTECHO_FAILED,  /* the connection can no longer send, or its data is unreadable */
};

/*
 * Prepares the listening socket @sk, so that fastecho_echo_pass() can serve accepted sockets.
 * Process context, the socket not yet in use.
 */
void fastecho_echo_setup(struct sock *sk);

/*
 * Sends back up to @budget bytes of what @sk has received; *@sent is the number of bytes.
 *
 * Softirq or process context with BH disabled and the socket's spinlock held. The socket must not
 * be owned by a task: then no backlog can form, and nothing reorders the receive queue during the
 * pass. May call sk_write_space.
 */
enum fastecho_verdict fastecho_echo_pass(struct sock *sk, size_t budget, size_t *sent);

/* Frees the shared page fragments. Process context, when no sockets are left. */
void fastecho_echo_uninit(void);

#endif
