/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Accepted connections.
 *
 * A connection owns its socket, and its work item owns the connection: whatever ends it (FIN, RST,
 * unloading) only queues the work, and only the work frees it. The socket's spinlock protects
 * everything else in it. An idle connection has nothing queued.
 */
#ifndef FASTECHO_CONN_H
#define FASTECHO_CONN_H

struct socket;
struct sock;

/* The callbacks of a socket before we took it over. */
struct fastecho_callbacks {
	void (*data_ready)(struct sock *sk);
	void (*state_change)(struct sock *sk);
};

/* Process context. init must come before any connection, uninit after the last listening socket is
 * released. */
int fastecho_conn_init(void);
void fastecho_conn_uninit(void);

/*
 * Closes all connections, and returns when none is left. Process context, without listening
 * sockets. Peers get a FIN. A peer that does not acknowledge it soon, or has sent data that was not
 * read, gets an RST.
 */
void fastecho_conn_close_all(void);

/*
 * Serves @sock, or refuses it with an RST; owns it in either case. Process context. @original are
 * the callbacks that the listening socket had before it was taken over.
 */
void fastecho_conn_accept(struct socket *sock, const struct fastecho_callbacks *original);

#endif
