// SPDX-License-Identifier: MIT
// Opens the listening sockets, or takes those that are bound already.
#include "common/args.h"
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int switch_on(int fd, int level, int option)
{
	static const int on = 1;

	return setsockopt(fd, level, option, &on, sizeof(on));
}

/* Accepted sockets inherit the options. */
static int start_listening(int fd, int backlog)
{
	if (switch_on(fd, IPPROTO_TCP, TCP_NODELAY))
		return -1;
	/* Keepalive ends the connections of clients that have vanished. */
	if (switch_on(fd, SOL_SOCKET, SO_KEEPALIVE))
		return -1;
	/* An urgent byte is echoed like any other. */
	if (switch_on(fd, SOL_SOCKET, SO_OOBINLINE))
		return -1;
	return listen(fd, backlog);
}

/* Returns the descriptor of a listening socket, or -1 with errno set. */
static int listen_on(const struct address *address, int backlog)
{
	int fd = socket(address->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int why;

	if (fd < 0)
		return -1;
	if (switch_on(fd, SOL_SOCKET, SO_REUSEADDR))
		goto err_close;
	if (address->sa.ss_family == AF_INET6 && switch_on(fd, IPPROTO_IPV6, IPV6_V6ONLY))
		goto err_close;
	if (bind(fd, (const struct sockaddr *)&address->sa, address->sa_len))
		goto err_close;
	if (start_listening(fd, backlog))
		goto err_close;
	return fd;

err_close:
	why = errno;
	close(fd);
	errno = why;
	return -1;
}

static bool is_missing_family(int error)
{
	return error == EAFNOSUPPORT || error == EADDRNOTAVAIL;
}

_Noreturn static void die_of(const char *what, int error)
{
	die(error == EADDRINUSE ? EXIT_PORT_TAKEN : EXIT_FAILED, "cannot listen on %s: %s", what,
	    strerror(error));
}

static void listen_on_addresses(struct server *server, const struct binds *binds)
{
	static const char *const loopback[] = {"127.0.0.1", "::1"};
	const char *const *texts = binds->naddresses ? binds->addresses : loopback;
	unsigned int n = binds->naddresses ? binds->naddresses : 2;
	struct address *addresses = calloc(n, sizeof(*addresses));

	server->listeners = calloc(n, sizeof(*server->listeners));
	if (!addresses || !server->listeners)
		die(EXIT_FAILED, "out of memory");
	for (unsigned int i = 0; i < n; i++) /* usage errors first */
		parse_address("--bind", texts[i], binds->port, &addresses[i]);
	for (unsigned int i = 0; i < n; i++) {
		int fd = listen_on(&addresses[i], binds->backlog);

		if (fd >= 0)
			server->listeners[server->nlisteners++] = fd;
		else if (binds->naddresses || i == 0 || !is_missing_family(errno))
			die_of(addresses[i].text, errno);
		else
			addresses[i].text[0] = '\0';
	}
	for (unsigned int i = 0; binds->print && i < n; i++)
		if (addresses[i].text[0])
			printf("listening on %s\n", addresses[i].text);
	fflush(stdout);
	free(addresses);
}

static void listen_on_descriptors(struct server *server, const struct binds *binds)
{
	server->listeners = calloc(binds->nfds, sizeof(*server->listeners));
	if (!server->listeners)
		die(EXIT_FAILED, "out of memory");
	for (unsigned int i = 0; i < binds->nfds; i++) {
		int fd = binds->fds[i];
		char text[32];

		snprintf(text, sizeof(text), "--listener %d", fd);
		if (fcntl(fd, F_SETFL, O_NONBLOCK) || fcntl(fd, F_SETFD, FD_CLOEXEC) ||
		    start_listening(fd, binds->backlog))
			die_of(text, errno);
		server->listeners[server->nlisteners++] = fd;
	}
}

void listen_all(struct server *server, const struct binds *binds)
{
	if (binds->nfds)
		listen_on_descriptors(server, binds);
	else
		listen_on_addresses(server, binds);
}

void unlisten_all(struct server *server)
{
	while (server->nlisteners)
		close(server->listeners[--server->nlisteners]);
	free(server->listeners);
}
