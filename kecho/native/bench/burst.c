// SPDX-License-Identifier: MIT
// bench's burst: N connections are released at once and send one message each, R times over.
//
// All N requests are due at the release, so latency counts from there: a request that waits for its
// turn because the client is still busy with the others has waited. The time of a round is that from
// the release to the last reply.
#include "bench.h"

static uint64_t due_once(struct thread *thread, uint64_t now_ns)
{
	(void)now_ns;
	return thread->quota ? thread->release_ns : NO_LIMIT;
}

static bool burst_round(struct thread *thread)
{
	uint64_t round_ns;

	thread->quota = thread->nconns;
	if (!conns_connect(thread) || !run_release(thread))
		return false;
	if (!drive(thread, due_once) || !run_gate(thread->run))
		return false;
	round_ns = thread->run->opened_ns - thread->release_ns;
	thread->elapsed_ns += round_ns;
	if (!thread->index && !samples_put(&thread->rounds, round_ns))
		return run_fail(thread, "out of memory for the times of the rounds");
	if (!conns_drain(thread))
		return false;
	conns_close(thread);
	return true;
}

static void burst_run(struct thread *thread)
{
	for (unsigned int round = 0; round < thread->run->options->rounds; round++)
		if (!burst_round(thread))
			return;
}

static void burst_check(const struct options *o)
{
	if (o->count != NO_LIMIT || o->duration_ns != NO_LIMIT || o->warmup_ns)
		die(EXIT_USAGE,
		    "--burst has --rounds, and neither --count, --duration nor --warmup");
}

const struct mode mode_burst = {
	.name = "burst",
	.check = burst_check,
	.run = burst_run,
};
