// SPDX-License-Identifier: MIT
// The io_uring engine: one system call a message, and one for many messages under load.
#include "common/args.h"
#include "socket.h"
#include "server.h"

#ifdef HAVE_LIBURING

#include "uring.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void submit_accept(struct uring_engine *engine, struct listener *listener)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_accept(sqe, listener->fd, NULL, NULL, SOCK_CLOEXEC);
	sqe_tag(sqe, listener, ACCEPT);
}

/* A poll that completes when a connection waits. */
static void submit_room(struct uring_engine *engine, struct listener *listener)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_poll_add(sqe, listener->fd, POLLIN);
	sqe_tag(sqe, listener, ROOM);
}

static void submit_rest(struct uring_engine *engine, const struct listener *listener)
{
	static struct __kernel_timespec pause = {.tv_nsec = PAUSE_NS};
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_timeout(sqe, &pause, 0, 0);
	sqe_tag(sqe, listener, REST);
}

static void submit_stop(struct uring_engine *engine)
{
	struct io_uring_sqe *sqe = sqe_get(engine);

	io_uring_prep_poll_add(sqe, engine->server->stop_fd, POLLIN);
	sqe_tag(sqe, NULL, STOP);
}

/* accept() found no free descriptor; that does not mean that a connection waits. */
static void listener_refuse(struct uring_engine *engine, struct listener *listener)
{
	switch (refuse_one(listener->fd)) {
	case REFUSED:
		stats_add(&engine->stats->rejected, 1);
		submit_room(engine, listener);
		break;
	case NONE_WAITS:
		submit_room(engine, listener);
		break;
	case CANNOT_REFUSE:
		submit_rest(engine, listener);
		break;
	}
}

/* Without a free descriptor a new accept would fail at once, even if no connection waits. */
static void listener_failed(struct uring_engine *engine, struct listener *listener, int error)
{
	if (error == EMFILE || error == ENFILE)
		listener_refuse(engine, listener);
	else if (is_passing(error) || error == ECONNABORTED)
		submit_room(engine, listener);
	else
		submit_rest(engine, listener);
}

static void on_accept(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct listener *listener = object;

	if (cqe->res >= 0) {
		uring_conn_open(engine, cqe->res);
		submit_accept(engine, listener);
	} else {
		listener_failed(engine, listener, -cqe->res);
	}
}

static void on_room(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	struct listener *listener = object;
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);

	(void)cqe;
	if (fd >= 0) {
		uring_conn_open(engine, fd);
		submit_accept(engine, listener);
	} else {
		listener_failed(engine, listener, errno);
	}
}

static void on_rest(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	(void)cqe;
	submit_room(engine, object);
}

static void on_stop(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	(void)object;
	(void)cqe;
	engine->running = false;
}

static void on_ignore(struct uring_engine *engine, void *object, const struct io_uring_cqe *cqe)
{
	(void)engine;
	(void)object;
	(void)cqe;
}

static void (*const handlers[KINDS])(struct uring_engine *engine, void *object,
				     const struct io_uring_cqe *cqe) = {
	[RECV] = uring_on_recv,	    [SEND] = uring_on_send, [FLUSH] = uring_on_flush,
	[LINGER] = uring_on_linger, [ACCEPT] = on_accept,   [ROOM] = on_room,
	[REST] = on_rest,	    [STOP] = on_stop,	    [IGNORE] = on_ignore,
};

static void handle(struct uring_engine *engine, const struct io_uring_cqe *cqe)
{
	void *object = (void *)(uintptr_t)(cqe->user_data & ~KIND_MASK);

	handlers[cqe->user_data & KIND_MASK](engine, object, cqe);
}

/* Makes this thread the ring's only user. liburing 2.3 declares a function for it, but lacks it. */
static void ring_enable(const struct io_uring *ring)
{
	if (syscall(__NR_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
		die(EXIT_FAILED, "engine io_uring: cannot enable the ring: %s", strerror(errno));
}

void uring_check_submit(int result)
{
	if (result < 0 && !is_passing(-result) && result != -EBUSY && result != -ENOMEM)
		die(EXIT_FAILED, "engine io_uring: cannot submit: %s", strerror(-result));
}

static void uring_serve(struct worker *worker)
{
	struct uring_engine *engine = worker->engine;

	ring_enable(&engine->ring);
	submit_stop(engine);
	for (unsigned int i = 0; i < engine->server->nlisteners; i++)
		submit_accept(engine, &engine->listeners[i]);
	while (engine->running) {
		struct io_uring_cqe *cqe;
		unsigned int head;

		if (uring_close_round(engine))
			uring_check_submit(io_uring_submit_and_wait(&engine->ring, 1));
		else
			uring_check_submit(io_uring_submit_and_get_events(&engine->ring));
		/*
		 * A full queue is submitted meanwhile, and a send of it may fail. From version 2.9 on
		 * liburing's loop sees only the completions that were there when it began.
		 */
		do {
			unsigned int n = 0;

			io_uring_for_each_cqe(&engine->ring, head, cqe)
			{
				handle(engine, cqe);
				n++;
			}
			io_uring_cq_advance(&engine->ring, n);
		} while (io_uring_cq_ready(&engine->ring));
		if (!io_uring_cq_has_overflow(&engine->ring)) /* the rest may contain a failure */
			uring_settle_sends(engine);
		io_uring_buf_ring_advance(engine->buffer_ring, (int)engine->returned);
		engine->returned = 0;
		uring_feed_starved(engine);
	}
}

/* ---- set-up ---- */

/*
 * Completions are collected only when the thread asks for them, so that they do not interrupt it.
 * The ring starts disabled: the thread that enables it, not the one that makes it, is its only
 * user.
 */
static int ring_open(struct io_uring *ring, unsigned int entries, unsigned int cq_entries)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			 IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
		.cq_entries = cq_entries,
	};

	return io_uring_queue_init_params(entries, ring, &params);
}

static struct io_uring_buf_ring *buffer_ring_open(struct io_uring *ring, unsigned int entries)
{
	struct io_uring_buf_reg reg = {.ring_entries = entries, .bgid = BUFFER_GROUP};
	struct io_uring_buf_ring *buffers =
		aligned_alloc((size_t)sysconf(_SC_PAGESIZE),
			      (entries * sizeof(struct io_uring_buf) + 4095) & ~(size_t)4095);

	if (!buffers)
		return NULL;
	reg.ring_addr = (uint64_t)(uintptr_t)buffers;
	if (io_uring_register_buf_ring(ring, &reg, 0)) {
		free(buffers);
		return NULL;
	}
	io_uring_buf_ring_init(buffers);
	return buffers;
}

/* Probes the features instead of comparing versions. */
static const char *uring_unavailable(void)
{
	struct io_uring_buf_ring *buffers;
	struct io_uring ring;
	int error = ring_open(&ring, 8, 16);

	if (error == -EPERM || error == -EACCES)
		return "io_uring is forbidden here (sysctl kernel.io_uring_disabled, seccomp)";
	if (error == -ENOSYS)
		return "this kernel has no io_uring";
	if (error == -EINVAL)
		return "this kernel's io_uring is too old (it needs Linux 6.1)";
	if (error)
		return strerror(-error);
	buffers = buffer_ring_open(&ring, 8);
	io_uring_queue_exit(&ring);
	free(buffers);
	return buffers ? NULL : "this kernel's io_uring has no buffer rings (it needs Linux 6.1)";
}

static const char *uring_setup(struct worker *worker)
{
	const struct server *server = worker->server;
	struct uring_engine *engine = calloc(1, sizeof(*engine));
	int error;

	if (!engine)
		return "out of memory";
	worker->engine = engine;
	engine->server = server;
	engine->stats = worker->stats;
	engine->running = true;
	engine->listeners = aligned_alloc(_Alignof(struct listener),
					  server->nlisteners * sizeof(*engine->listeners));
	engine->buffers = aligned_alloc(4096, (size_t)BUFFERS * BUFFER_BYTES);
	if (!engine->listeners || !engine->buffers)
		return "out of memory";
	for (unsigned int i = 0; i < server->nlisteners; i++)
		engine->listeners[i].fd = server->listeners[i];
	error = ring_open(&engine->ring, SQ_ENTRIES, CQ_ENTRIES);
	if (error)
		return strerror(-error);
	engine->buffer_ring = buffer_ring_open(&engine->ring, BUFFERS);
	if (!engine->buffer_ring)
		return "cannot register the buffers";
	for (unsigned int id = 0; id < BUFFERS; id++)
		uring_buffer_put(engine, (uint16_t)id);
	io_uring_buf_ring_advance(engine->buffer_ring, (int)engine->returned);
	engine->returned = 0;
	return NULL;
}

static void uring_teardown(struct worker *worker)
{
	struct uring_engine *engine = worker->engine;

	io_uring_queue_exit(&engine->ring);
	while (engine->conns)
		uring_conn_free(engine, engine->conns);
	free(engine->buffer_ring);
	free(engine->buffers);
	free(engine->listeners);
	free(engine);
}

#else

#include <stddef.h>

static const char *uring_unavailable(void)
{
	return "built without liburing (liburing-dev)";
}

#define uring_setup    NULL
#define uring_serve    NULL
#define uring_teardown NULL

#endif

const struct engine engine_uring = {
	.name = "io_uring",
	.unavailable = uring_unavailable,
	.setup = uring_setup,
	.serve = uring_serve,
	.teardown = uring_teardown,
};
