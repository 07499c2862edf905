// SPDX-License-Identifier: MIT
// What all modes share: connect, wait for all threads, drive, check for surplus bytes, close.
#include "mode.h"
#include "supervise.h"

/* Records the time from the release to the last reply of all threads. */
static bool end_burst(struct thread *thread)
{
	uint64_t burst_ns;

	if (!run_gate(thread->run))
		return false;
	burst_ns = thread->run->opened_ns - thread->release_ns;
	thread->elapsed_ns += burst_ns;
	if (!thread->index && !samples_put(&thread->bursts, burst_ns))
		return run_fail(thread, "out of memory for the times of the bursts");
	return true;
}

static bool frame_once(struct thread *thread)
{
	const struct mode *mode = thread->run->options->mode;
	bool driven;

	if (!mode->connects && !conns_connect(thread))
		return false;
	if (mode->prepare && !mode->prepare(thread))
		return false;
	if (!run_release(thread))
		return false;
	driven = mode->drive ? mode->drive(thread) : drive(thread);
	run_driven(thread);
	if (mode->in_bursts)
		driven = driven && end_burst(thread);
	else if (thread->last_ns > thread->record_ns)
		thread->elapsed_ns = thread->last_ns - thread->record_ns;
	if (!driven)
		return false;
	if (!mode->connects && !conns_drain(thread))
		return false;
	conns_close(thread);
	return true;
}

void frame_run(struct thread *thread)
{
	const struct options *o = thread->run->options;
	unsigned int bursts = o->mode->in_bursts ? o->bursts : 1;

	while (bursts-- && frame_once(thread))
		;
	conns_close(thread);
}
