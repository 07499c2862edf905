/* SPDX-License-Identifier: MIT */
/* The interface between user-echo-server's main program and its engines. */
#ifndef KECHO_NATIVE_SERVER_H
#define KECHO_NATIVE_SERVER_H

#include "stats.h"

#include <stdbool.h>

/* Set up by main() before the first worker exists, read-only from then on. */
struct server {
	int *listeners; /* listening, non-blocking; TCP_NODELAY, which accepted sockets inherit */
	unsigned int nlisteners; /* at least one */
	int stop_fd;		 /* becomes and stays readable when the server has to end */
	int reset_fd;		 /* a pipe of cookies (SO_COOKIE) of connections to reset; or -1 */
	unsigned int busy_poll_us; /* engines on epoll look for events so long before sleeping */
	unsigned int cpus;	   /* that latency is counted for; 0 if it is not */
};

/* One thread, which owns everything in it. Others may read stats. */
struct worker {
	const struct server *server;
	struct stats_block *stats;
	struct latency *latency; /* by CPU */
	void *engine;		 /* state of the engine */
};

/*
 * An engine. setup() runs in the main thread before the server reports ready; it returns an error
 * line or NULL. serve() runs in the worker's thread until stop_fd is readable. teardown() mirrors
 * setup(): it runs in the main thread after serve() and closes what is still open.
 */
struct engine {
	const char *name;
	bool measures; /* latency */
	/* NULL, or the reason why this machine cannot run the engine. */
	const char *(*unavailable)(void);
	const char *(*setup)(struct worker *worker);
	void (*serve)(struct worker *worker);
	void (*teardown)(struct worker *worker);
};

extern const struct engine engine_epoll, engine_uring, engine_sockmap;

#endif
