// SPDX-License-Identifier: MIT
// bench's classic burst: N connections send one message each, all at once, R times over.
#include "bench.h"

static uint64_t due_once(struct thread *thread, uint64_t now_ns)
{
	(void)now_ns;
	return thread->quota ? 0 : NO_LIMIT;
}

static bool burst_round(struct thread *thread)
{
	uint64_t released_ns;

	thread->quota = thread->nconns;
	if (!conns_connect(thread) || !run_release(thread))
		return false;
	released_ns = thread->run->opened_ns;
	if (!drive(thread, due_once) || !run_gate(thread->run))
		return false;
	thread->elapsed_ns += thread->run->opened_ns - released_ns;
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
