/* SPDX-License-Identifier: MIT */
/* Opens the listening sockets, or takes those that are bound already. */
#ifndef KECHO_NATIVE_LISTEN_H
#define KECHO_NATIVE_LISTEN_H

#include "server.h"

#include <stdbool.h>

#define MAX_BINDS 64

struct binds {
	const char *addresses[MAX_BINDS]; /* none: loopback */
	unsigned int naddresses;
	int fds[MAX_BINDS]; /* bound sockets, instead of addresses */
	unsigned int nfds;
	uint16_t port;
	int backlog;
	bool print; /* the addresses that it listens on */
};

/* Dies with one line if it cannot listen on all of them. */
void listen_all(struct server *server, const struct binds *binds);
void unlisten_all(struct server *server);

#endif
