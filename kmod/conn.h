/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Accepted connections.
 *
 * A connection owns its socket and belongs to its work item: whatever ends it (FIN, RST, unloading)
 * only queues the work, and only the work frees it. Everything else about it is protected by its
 * socket's spinlock. An idle connection has nothing queued.
 */
#ifndef FASTECHO_CONN_H
#define FASTECHO_CONN_H

struct socket;
struct sock;

/* What a socket called before it was ours. */
struct fastecho_callbacks {
	void (*data_ready)(struct sock *sk);
	void (*state_change)(struct sock *sk);
};

/* Process context. init comes before any connection, uninit after the last listening socket has
 * been released. */
int fastecho_conn_init(void);
void fastecho_conn_uninit(void);

/*
 * Closes all connections, and returns when there are none. Process context, no listening sockets
 * left. Peers get a FIN; those who have not acknowledged it soon, or have sent more than was read,
 * get an RST.
 */
void fastecho_conn_close_all(void);

/*
 * Serves @sock from now on, or refuses it with an RST: takes it over in either case. Process
 * context, from an accept on a listening socket that has called @original before.
 */
void fastecho_conn_accept(struct socket *sock, const struct fastecho_callbacks *original);

#endif
