// SPDX-License-Identifier: MIT
// The epoll engine: three system calls a message, and no memory for idle clients.
#include "epoll.h"

static void tcp_read(struct epoll_engine *engine, struct source *source, uint32_t events);
static void tcp_flush(struct epoll_engine *engine, struct source *source, uint32_t events);
static void tcp_finish(struct epoll_engine *engine, struct conn *conn);

static const struct conn_type tcp = {
	.bytes = sizeof(struct conn),
	.read = tcp_read,
	.flush = tcp_flush,
	.finish = tcp_finish,
};

static void tcp_read(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	(void)events; /* recv() returns the error */
	conn_read_as(&tcp, engine, (struct conn *)source);
}

static void tcp_flush(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	(void)events; /* send() returns the error */
	conn_flush_as(&tcp, engine, (struct conn *)source);
}

static void tcp_finish(struct epoll_engine *engine, struct conn *conn)
{
	if (socket_is_acknowledged(conn->source.fd))
		conn_close(engine, conn);
	else
		conn_shut_down(engine, conn);
}

static const char *setup(struct worker *worker)
{
	return epoll_setup(worker, &tcp, sizeof(struct epoll_engine));
}

const struct engine engine_epoll = {
	.name = "epoll",
	.setup = setup,
	.serve = epoll_serve,
	.teardown = epoll_teardown,
};
