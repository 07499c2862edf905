// SPDX-License-Identifier: MIT
// Keeps the connections of a thread busy by epoll, with one request at a time each.
#include "mode.h"
#include "common/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#define EVENTS_PER_WAIT 256
#define LOOK_NS		(100 * NS_PER_MS) /* between checks for timeouts */

struct driver {
	struct thread *thread;
	const struct mode *mode;
	struct conn_queue idle;
	unsigned int busy;
	uint64_t look_ns; /* the next check for timeouts */
};

/* After a step of a request: puts a connection whose reply is complete among the idle ones. */
static bool handle(struct driver *d, struct conn *conn, enum io done)
{
	if (done == IO_DONE) {
		d->busy--;
		conn_queue_put(&d->idle, conn);
	}
	return done != IO_FAILED;
}

/*
 * An idle connection is readable if the server sends surplus bytes, or has closed. At the end of a
 * run it may close.
 */
static bool idle_event(struct driver *d, struct conn *conn)
{
	ssize_t got = recv(conn->fd, d->thread->buffer, 1, MSG_DONTWAIT);

	if (got == 1)
		return conn_fail_surplus(d->thread, conn, d->thread->buffer[0]);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (got == 0 && d->mode->due(d->thread, d->thread->last_ns) == NO_LIMIT)
		return epoll_ctl(d->thread->epoll_fd, EPOLL_CTL_DEL, conn->fd, NULL) == 0;
	return conn_fail_recv(d->thread, conn, got);
}

/* When the next request is due; NO_LIMIT if none is, or no connection is idle. */
static uint64_t next_due(struct driver *d)
{
	return d->idle.first ? d->mode->due(d->thread, d->thread->last_ns) : NO_LIMIT;
}

/*
 * A request that was due at a given time begins now. It is late if the timer was, or if no
 * connection was idle.
 */
static void note_late(struct thread *thread, struct conn *conn, uint64_t now)
{
	uint64_t late_ns = now - conn->begin_ns;

	conn->sent_ns = now;
	if (!conn->measured)
		return;
	thread->late_sum_ns += late_ns;
	if (late_ns > thread->late_max_ns)
		thread->late_max_ns = late_ns;
}

/* Begins a request on an idle connection if one is due. */
static bool begin_due(struct driver *d, bool *begun)
{
	uint64_t due_ns = next_due(d), now;
	struct conn *conn;

	*begun = false;
	if (due_ns == NO_LIMIT)
		return true;
	now = clock_ns();
	if (due_ns > now)
		return true;
	*begun = true;
	conn = conn_queue_take(&d->idle);
	conn_begin(d->thread, conn, due_ns ? due_ns : now);
	if (due_ns)
		note_late(d->thread, conn, now + (conn->begin_ns - due_ns));
	d->busy++;
	return handle(d, conn, d->mode->begin(d->thread, conn));
}

/* Begins at most one request on each idle connection, so that events in epoll get their turn. */
static bool begin_round(struct driver *d)
{
	bool begun = true;

	for (unsigned int n = d->idle.length; n && begun; n--)
		if (!begin_due(d, &begun))
			return false;
	return true;
}

int wait_busily(const struct thread *thread, struct epoll_event *events, int most, uint64_t wait_ns)
{
	const uint64_t busy_ns = thread->run->options->busy_poll_us * 1000ull;
	struct timespec timeout = {0};

	if (busy_ns && wait_ns) {
		const uint64_t until_ns = clock_ns() + (busy_ns < wait_ns ? busy_ns : wait_ns);

		do {
			int n = epoll_pwait2(thread->epoll_fd, events, most, &timeout, NULL);

			if (n)
				return n;
		} while (clock_ns() < until_ns);
		wait_ns = busy_ns < wait_ns ? wait_ns - busy_ns : 0;
	}
	timeout.tv_nsec = (long)wait_ns;
	return epoll_pwait2(thread->epoll_fd, events, most, &timeout, NULL);
}

/* Waits for events, at most until the next request is due, and handles them. */
static bool wait_events(struct driver *d)
{
	struct epoll_event events[EVENTS_PER_WAIT];
	struct thread *thread = d->thread;
	uint64_t due_ns = next_due(d), wait_ns = 0, now = thread->last_ns;
	int n;

	if (due_ns) {
		now = clock_ns();
		wait_ns = due_ns == NO_LIMIT ? LOOK_NS : due_ns > now ? due_ns - now : 0;
		if (wait_ns > LOOK_NS)
			wait_ns = LOOK_NS;
	}
	n = wait_busily(thread, events, EVENTS_PER_WAIT, wait_ns);
	if (n < 0 && errno != EINTR)
		return run_fail(thread, "epoll_pwait2: %s", strerror(errno));
	for (int i = 0; i < n; i++) {
		struct conn *conn = events[i].data.ptr;
		bool begun;

		if (!(conn->busy ? handle(d, conn, d->mode->advance(thread, conn))
				 : idle_event(d, conn)))
			return false;
		if (!begin_due(d, &begun))
			return false;
	}
	if (now < d->look_ns)
		return true;
	d->look_ns = now + LOOK_NS;
	return conns_in_time(thread);
}

uint64_t due_at_once(struct thread *thread, uint64_t now_ns)
{
	(void)now_ns;
	return thread_is_over(thread) ? NO_LIMIT : 0;
}

bool drive(struct thread *thread)
{
	struct driver d = {
		.thread = thread,
		.mode = thread->run->options->mode,
	};

	conn_queue_init(&d.idle);
	for (unsigned int i = 0; i < thread->nconns; i++)
		conn_queue_put(&d.idle, &thread->conns[i]);
	d.look_ns = thread->last_ns + LOOK_NS;
	for (;;) {
		if (run_stops(thread->run) || !begin_round(&d))
			return false;
		if (!d.busy && next_due(&d) == NO_LIMIT)
			return true;
		if (!wait_events(&d))
			return false;
	}
}
