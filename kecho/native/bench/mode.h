/* SPDX-License-Identifier: MIT */
/* The ways to load a server: each is one const table in a file of its own. */
#ifndef KECHO_NATIVE_MODE_H
#define KECHO_NATIVE_MODE_H

#include "conn.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

/* frame.c has what all modes share. Functions return false, or IO_FAILED, as those of conn.h do. */
struct mode {
	const char *name;
	bool connects; /* its requests make their connections; otherwise frame.c makes them first */
	bool in_bursts; /* everything is repeated --bursts times */
	/* Dies with EXIT_USAGE if the options contradict each other; may be NULL. */
	void (*check)(const struct options *options);
	/* Called before a thread is released; may be NULL. */
	bool (*prepare)(struct thread *thread);
	/* From the release to the last reply; NULL: drive(), which calls the functions below. */
	bool (*drive)(struct thread *thread);
	/*
	 * When the next request of the thread is due. 0: at once, and its latency counts from when
	 * it begins. A time: then, and its latency counts from that time, however late it is sent.
	 * NO_LIMIT: there is none.
	 */
	uint64_t (*due)(struct thread *thread, uint64_t now_ns);
	/* Begins a request on an idle connection. IO_DONE: its reply is complete already. */
	enum io (*begin)(struct thread *thread, struct conn *conn);
	/* Handles an event of a busy connection. IO_DONE: its reply is complete. */
	enum io (*advance)(struct thread *thread, struct conn *conn);
};

extern const struct mode mode_closed, mode_burst, mode_open, mode_crr, mode_pipeline;

/* Keeps the connections of a thread busy by epoll, with one request at a time each. */
bool drive(struct thread *thread);
/* epoll_pwait2(), after looking for events without sleeping as long as --busy-poll says. */
int wait_busily(const struct thread *thread, struct epoll_event *events, int most,
		uint64_t wait_ns);
/* mode.due if the next request begins as soon as one is answered. */
uint64_t due_at_once(struct thread *thread, uint64_t now_ns);

/* The closed loop of a thread with one connection. */
bool alone_prepare(struct thread *thread);
bool alone_drive(struct thread *thread);

#endif
