// SPDX-License-Identifier: MIT
// Mode closed: the next request of a connection begins when the last reply is complete.
#include "mode.h"

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
