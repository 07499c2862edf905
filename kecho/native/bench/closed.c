// SPDX-License-Identifier: MIT
// bench's closed loop: a connection's next request begins when its last reply is there.
#include "bench.h"

static bool closed_prepare(struct thread *thread)
{
	return thread->nconns > 1 || alone_prepare(thread);
}

static bool closed_drive(struct thread *thread)
{
	return thread->nconns > 1 ? drive(thread) : alone_drive(thread);
}

const struct mode mode_closed = {
	.name = "closed",
	.prepare = closed_prepare,
	.drive = closed_drive,
	.due = due_at_once,
	.begin = conn_exchange,
	.advance = conn_exchange,
};
