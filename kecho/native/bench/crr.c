// SPDX-License-Identifier: MIT
// Mode crr (connect, request, response): a connection for each request, timed from connect() on.
#include "mode.h"

static enum io crr_begin(struct thread *thread, struct conn *conn)
{
	return conn_open(thread, conn) ? IO_WAIT : IO_FAILED;
}

static enum io crr_advance(struct thread *thread, struct conn *conn)
{
	enum io done;

	if (conn->connecting && !conn_opened(thread, conn))
		return IO_FAILED;
	done = conn_exchange(thread, conn);
	if (done == IO_DONE)
		conn_close(thread, conn);
	return done;
}

const struct mode mode_crr = {
	.name = "crr",
	.connects = true,
	.due = due_at_once,
	.begin = crr_begin,
	.advance = crr_advance,
};
