/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Listening sockets, one for each address of the parameter bind.
 */
#ifndef FASTECHO_LISTENER_H
#define FASTECHO_LISTENER_H

struct net;

/*
 * Listens in @net on what the parameters say, all or nothing, and hands over to
 * fastecho_conn_accept() from then on. Process context. The sockets hold no reference to @net:
 * fastecho_listener_uninit() has to come before it goes.
 */
int fastecho_listener_init(struct net *net);

/* Stops listening; when it returns, no connection is being accepted any more. Process context,
 * sleeps. */
void fastecho_listener_uninit(void);

#endif
