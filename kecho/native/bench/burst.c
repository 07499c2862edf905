// SPDX-License-Identifier: MIT
// Mode burst: N connections are released at once and send one message each; R such bursts.
//
// All N requests are due at the release, so their latency counts from there: it includes the time
// in which the client is busy with other requests. A burst lasts from the release to the last
// reply.
#include "mode.h"

static bool burst_prepare(struct thread *thread)
{
	thread->quota = thread->nconns;
	return true;
}

static uint64_t due_at_release(struct thread *thread, uint64_t now_ns)
{
	(void)now_ns;
	return thread->quota ? thread->release_ns : NO_LIMIT;
}

static void burst_check(const struct options *o)
{
	if (o->count != NO_LIMIT || o->duration_ns != NO_LIMIT || o->warmup_ns)
		die(EXIT_USAGE,
		    "--burst has --bursts, and neither --count, --duration nor --warmup");
}

const struct mode mode_burst = {
	.name = "burst",
	.check = burst_check,
	.in_bursts = true,
	.prepare = burst_prepare,
	.due = due_at_release,
	.begin = conn_exchange,
	.advance = conn_exchange,
};
