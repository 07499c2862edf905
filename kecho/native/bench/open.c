// SPDX-License-Identifier: MIT
// bench's open loop: requests are due at a fixed rate, and latency counts from then.
#include "bench.h"
#include "common/clock.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/prctl.h>

/*
 * Request k of thread t among m is due at (k m + t) / rate after the release. It goes to whichever
 * of the thread's connections is idle; when none is, it waits, and that wait is part of its
 * latency: a server that stalls does not stop the clock of the requests that it keeps from being
 * sent (no coordinated omission).
 */
static uint64_t due_ns(const struct thread *thread, uint64_t k)
{
	const struct options *o = thread->run->options;
	double request = (double)k * o->threads + thread->index;

	return thread->release_ns + (uint64_t)(request * 1e9 / o->rate);
}

/* After the end, what was due before it is still sent, for as long as a reply may take. */
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

/* Those that were due and not sent. */
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

/* The kernel lets timers expire up to 50 us late, to save power, unless asked not to. */
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
