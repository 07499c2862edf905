// SPDX-License-Identifier: MIT
// Mode open (loop): requests are due at a fixed rate, and latency counts from when they are due.
#include "mode.h"
#include "common/clock.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/prctl.h>

#define GRACE_SHARE    4
#define GRACE_LEAST_NS (100 * NS_PER_MS)

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

/* The first request from the k-th on that is due at that time or later. */
static uint64_t first_due(const struct thread *thread, uint64_t k, uint64_t at_ns)
{
	const struct options *o = thread->run->options;
	const double share =
		((double)(at_ns - thread->release_ns) * o->rate / 1e9 - thread->index) / o->threads;
	uint64_t first = share > (double)k ? (uint64_t)share : k;

	while (due_ns(thread, first) < at_ns)
		first++;
	while (first > k && due_ns(thread, first - 1) >= at_ns)
		first--;
	return first;
}

/*
 * How long after the end what was due before it is still sent: a stall that is over soon shows, and
 * a rate that is too high does not go on until all has been made up for.
 */
static uint64_t grace_ns(const struct options *o)
{
	uint64_t grace_ns = o->duration_ns / GRACE_SHARE;

	if (grace_ns < GRACE_LEAST_NS)
		grace_ns = GRACE_LEAST_NS;
	return grace_ns < o->io_timeout_ns ? grace_ns : o->io_timeout_ns;
}

/* What was due in the warm-up is not made up for afterwards: that would delay what is measured. */
static uint64_t due_at_rate(struct thread *thread, uint64_t now_ns)
{
	uint64_t next_ns = due_ns(thread, thread->begun + thread->skipped);

	if (now_ns >= thread->record_ns && next_ns < thread->record_ns) {
		thread->skipped =
			first_due(thread, thread->begun + thread->skipped, thread->record_ns) -
			thread->begun;
		next_ns = due_ns(thread, thread->begun + thread->skipped);
	}
	if (next_ns >= thread->end_ns || (!thread->quota && next_ns >= thread->record_ns))
		return NO_LIMIT;
	if (now_ns > thread->end_ns && now_ns - thread->end_ns > grace_ns(thread->run->options))
		return NO_LIMIT;
	return next_ns;
}

/* Counts the requests that were due and not sent. */
static uint64_t count_unsent(const struct thread *thread)
{
	uint64_t k = thread->begun + thread->skipped, unsent;

	if (thread->end_ns == NO_LIMIT)
		return 0;
	unsent = first_due(thread, k, thread->end_ns) - k;
	return unsent < thread->quota ? unsent : thread->quota;
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
