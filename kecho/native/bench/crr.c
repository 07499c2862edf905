// SPDX-License-Identifier: MIT
// bench's connect-request-response: a connection for each request, timed from connect() on.
#include "bench.h"
#include "common/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#define EVENTS_PER_WAIT 256
#define LOOK_MS		100

static bool is_over(const struct thread *thread)
{
	return thread->last_ns >= thread->record_ns &&
	       (!thread->quota || thread->last_ns >= thread->end_ns);
}

static bool crr_begin(struct thread *thread, struct conn *conn)
{
	conn_begin(thread, conn, clock_ns());
	return conn_open(thread, conn);
}

/* Something happened to the connection; *ended tells whether it was the whole reply. */
static bool crr_advance(struct thread *thread, struct conn *conn, bool *ended)
{
	enum io sent = IO_DONE;

	*ended = false;
	if (conn->connecting && !conn_opened(thread, conn))
		return false;
	if (conn->tx_bytes < thread->run->options->size_bytes)
		sent = conn_send(thread, conn);
	if (sent == IO_FAILED || !conn_watch_room(thread, conn, sent == IO_WAIT))
		return false;
	switch (conn_recv(thread, conn)) {
	case IO_FAILED:
		return false;
	case IO_DONE:
		conn_end(thread, conn);
		conn_close(thread, conn);
		*ended = true;
		break;
	case IO_WAIT:
		break;
	}
	return true;
}

static bool drive_crr(struct thread *thread)
{
	struct epoll_event events[EVENTS_PER_WAIT];
	uint64_t look_ns = clock_ns() + LOOK_MS * NS_PER_MS;
	unsigned int busy = 0;

	for (; busy < thread->nconns && !is_over(thread); busy++)
		if (!crr_begin(thread, &thread->conns[busy]))
			return false;
	while (busy) {
		int n = epoll_wait(thread->epoll_fd, events, EVENTS_PER_WAIT, LOOK_MS);

		if (run_stops(thread->run))
			return false;
		for (int i = 0; i < n; i++) {
			struct conn *conn = events[i].data.ptr;
			bool ended;

			if (!crr_advance(thread, conn, &ended))
				return false;
			if (ended && is_over(thread))
				busy--;
			else if (ended && !crr_begin(thread, conn))
				return false;
		}
		if (n <= 0 || thread->last_ns >= look_ns) {
			look_ns = thread->last_ns + LOOK_MS * NS_PER_MS;
			if (!conns_in_time(thread))
				return false;
		}
	}
	return true;
}

static void crr_run(struct thread *thread)
{
	if (!run_release(thread))
		return;
	drive_crr(thread);
	if (thread->last_ns > thread->record_ns)
		thread->elapsed_ns = thread->last_ns - thread->record_ns;
}

const struct mode mode_crr = {
	.name = "crr",
	.run = crr_run,
};
