/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Listening sockets, one for each address in the parameter bind.
 */
#ifndef FASTECHO_LISTENER_H
#define FASTECHO_LISTENER_H

struct net;

/*
 * Listens in @net on all addresses of the parameters or on none, and hands connections over to
 * fastecho_conn_accept(). Process context. The sockets hold no reference to @net, so
 * fastecho_listener_uninit() must be called before it is freed.
 */
int fastecho_listener_init(struct net *net);

/* Stops listening. When it returns, no connection is being accepted any more. Process context,
 * may sleep. */
void fastecho_listener_uninit(void);

#endif
