// SPDX-License-Identifier: MIT
// Mode open (loop): requests are due at a fixed rate, and latency counts from when they are due.
#include "mode.h"
#include "common/clock.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/prctl.h>

/*
 * Request k of thread t of m is due (k m + t) / rate after the release. It is sent on an idle
 * connection of the thread. If there is none it waits, and its latency includes the wait: a stalled
 * server does not stop the clock of requests that cannot be sent (no coordinated omission).
 */
static uint64_t due_ns(const struct thread *thread, uint64_t k)
{
	const struct options *o = thread->run->options;
	double request = (double)k * o->threads + thread->index;

	return thread->release_ns + (uint64_t)(request * 1e9 / o->rate);
}

/* Requests that were due before the end are still sent after it, until the I/O timeout. */
static uint64_t due_at_rate(struct thread *thread, uint64_t now_ns)
{
	uint64_t next_ns = due_ns(thread, thread->begun);

	if (next_ns >= thread->end_ns || (!thread->quota && next_ns >= thread->record_ns))
		return NO_LIMIT;
	if (now_ns > thread->end_ns &&
	    now_ns - thread->end_ns > thread->run->options->io_timeout_ns)
		return NO_LIMIT;
	return next_ns;
}

/* Counts the requests that were due and not sent. */
static uint64_t count_unsent(const struct thread *thread)
{
	const struct options *o = thread->run->options;
	uint64_t k = thread->begun;
	double due;

	if (thread->end_ns == NO_LIMIT || due_ns(thread, k) >= thread->end_ns)
		return 0;
	due = ((double)(thread->end_ns - thread->release_ns) * o->rate / 1e9 - thread->index) /
	      o->threads;
	for (k = due > (double)k ? (uint64_t)due : k; due_ns(thread, k) < thread->end_ns; k++)
		;
	while (k > thread->begun && due_ns(thread, k - 1) >= thread->end_ns)
		k--;
	return k - thread->begun < thread->quota ? k - thread->begun : thread->quota;
}

/* By default the kernel lets timers expire up to 50 us late, to save power. */
static bool open_prepare(struct thread *thread)
{
	if (prctl(PR_SET_TIMERSLACK, 1ul))
		return run_fail(thread, "cannot set the timer slack: %s", strerror(errno));
	return true;
}

static bool open_drive(struct thread *thread)
{
	if (!drive(thread))
		return false;
	thread->unsent = count_unsent(thread);
	return true;
}

const struct mode mode_open = {
	.name = "open",
	.prepare = open_prepare,
	.drive = open_drive,
	.due = due_at_rate,
	.begin = conn_exchange,
	.advance = conn_exchange,
};
