/* SPDX-License-Identifier: MIT */
/* What user-echo-server's main program and its engines agree on. */
#ifndef KECHO_NATIVE_SERVER_H
#define KECHO_NATIVE_SERVER_H

#include "stats.h"

/* Set up by main() before the first worker exists, read-only from then on. */
struct server {
	int *listeners; /* listening, non-blocking; TCP_NODELAY, which accepted sockets inherit */
	unsigned int nlisteners; /* at least one */
	int stop_fd;		 /* readable for good once the server is to end */
};

/* One thread. Everything in it belongs to that thread, but for stats, which others may read. */
struct worker {
	const struct server *server;
	struct stats_block *stats;
	void *engine; /* the engine's own */
};

/*
 * A way to serve. setup() runs in the main thread, before the server is called ready; it returns an
 * error line, or NULL. serve() runs in the worker's thread and returns once stop_fd is readable.
 * teardown() mirrors setup(), closes what is still open, and runs in the main thread after serve().
 */
struct engine {
	const char *name;
	/* NULL, or why this machine cannot run the engine. */
	const char *(*unavailable)(void);
	const char *(*setup)(struct worker *worker);
	void (*serve)(struct worker *worker);
	void (*teardown)(struct worker *worker);
};

extern const struct engine engine_epoll, engine_uring;

#endif
