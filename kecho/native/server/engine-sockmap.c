// SPDX-License-Identifier: MIT
// The sockmap engine: path user of mode sockmap, and its accept(). As the epoll engine, for sockets
// that BPF programs may have in a sockhash: recv() then returns what the verdict has passed.
#include "epoll.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/queue.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define COOKIES_PER_READ 512
#define STATE_CLOSE	 7 /* TCP_CLOSE of <netinet/tcp.h>, which <linux/tcp.h> excludes */

/* How long a connection waits for data that is in flight within the kernel: ever longer. */
static const uint64_t waits_ms[] = {1, 2, 4, 8, 16, 32, 64, 128, 250};
#define WAITS (sizeof(waits_ms) / sizeof(waits_ms[0]))

struct sock {
	struct conn conn; /* first */
	unsigned int next_wait;
	struct waiting *queue; /* that it waits in, or NULL */
	uint64_t due_ns;
	TAILQ_ENTRY(sock) link;
};

TAILQ_HEAD(waiting, sock);

struct sockmap_engine {
	struct epoll_engine epoll; /* first */
	struct source timer;
	struct source resets;
	uint64_t timer_ns; /* when the timer expires, or 0 */
	/* A queue for each length of wait, so each is in order of due_ns. */
	struct waiting waiting[WAITS];
	struct latency *latency; /* by CPU */
	unsigned int cpus;
};

static void sock_read(struct epoll_engine *engine, struct source *source, uint32_t events);
static void sock_flush(struct epoll_engine *engine, struct source *source, uint32_t events);
static void sock_finish(struct epoll_engine *engine, struct conn *conn);
static bool sock_admit(int fd);
static void sock_measure(struct epoll_engine *engine, uint64_t since_ns);

static const struct conn_type in_sockhash = {
	.bytes = sizeof(struct sock),
	.read = sock_read,
	.flush = sock_flush,
	.finish = sock_finish,
	.admit = sock_admit,
	.measure = sock_measure,
};

/*
 * The verdict does not run before accept(). Setting SO_RCVLOWAT calls sk_data_ready
 * (tcp_set_rcvlowat()), which runs the verdict on early data, so that no byte reaches recv()
 * without it.
 */
static bool sock_admit(int fd)
{
	static const int one = 1;

	return !setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
}

static void sock_measure(struct epoll_engine *base, uint64_t since_ns)
{
	struct sockmap_engine *engine = (struct sockmap_engine *)base;
	unsigned int cpu = (unsigned int)sched_getcpu();

	if (cpu >= engine->cpus) /* CPUs are numbered with a gap */
		cpu = engine->cpus - 1;
	stats_add(&engine->latency[cpu].counts[hist_slot(clock_ns() - since_ns)], 1);
}

static void sock_read(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	(void)events; /* recv() returns the error */
	conn_read_as(&in_sockhash, engine, (struct conn *)source);
}

static void sock_flush(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	(void)events; /* send() returns the error */
	conn_flush_as(&in_sockhash, engine, (struct conn *)source);
}

/* ---- the end of a stream ---- */

enum ending {
	BROKEN,	      /* what is queued is never sent */
	IN_FLIGHT,    /* not every byte received has gone into the send path */
	SENT,	      /* all of them have */
	ACKNOWLEDGED, /* and the client has them */
};

/*
 * It never says too early that all is sent: what is read second only grows. Path egress sends more
 * out of the socket than it has received.
 */
static enum ending ending_of(int fd)
{
	const unsigned int fin = 1; /* counted as a byte received */
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);
	int unacknowledged;

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) || info.tcpi_state == STATE_CLOSE ||
	    ioctl(fd, SIOCOUTQ, &unacknowledged))
		return BROKEN;
	if (info.tcpi_bytes_received > info.tcpi_bytes_acked + (unsigned int)unacknowledged + fin)
		return IN_FLIGHT;
	return unacknowledged ? SENT : ACKNOWLEDGED;
}

static void timer_set(struct sockmap_engine *engine, uint64_t due_ns)
{
	const struct itimerspec spec = {
		.it_value.tv_sec = (time_t)(due_ns / NS_PER_S),
		.it_value.tv_nsec = (long)(due_ns % NS_PER_S),
	};

	engine->timer_ns = due_ns;
	timerfd_settime(engine->timer.fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void sock_resume(struct sock *sock)
{
	if (sock->queue)
		TAILQ_REMOVE(sock->queue, sock, link);
	sock->queue = NULL;
}

/* Nothing but its end is expected of a connection that waits. */
static void sock_wait(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	if (!(events & (EPOLLERR | EPOLLHUP)))
		return;
	sock_resume((struct sock *)source);
	conn_abort(engine, (struct conn *)source);
}

/*
 * The client has shut down its side. On path skb some of what it sent may still be in flight within
 * the kernel, and what the verdict passes may become readable after the end of the stream.
 */
static void sock_finish(struct epoll_engine *base, struct conn *conn)
{
	struct sockmap_engine *engine = (struct sockmap_engine *)base;
	struct sock *sock = (struct sock *)conn;

	switch (ending_of(conn->source.fd)) {
	case BROKEN: /* reset after the end of the stream */
		conn_abort(base, conn);
		return;
	case SENT:
		conn_shut_down(base, conn);
		return;
	case ACKNOWLEDGED:
		conn_close(base, conn);
		return;
	case IN_FLIGHT:
		break;
	}
	conn->source.handle = sock_wait;
	if (watch(base, EPOLL_CTL_MOD, &conn->source, EPOLLET)) {
		conn_abort(base, conn);
		return;
	}
	sock->due_ns = clock_ns() + waits_ms[sock->next_wait] * NS_PER_MS;
	sock->queue = &engine->waiting[sock->next_wait];
	TAILQ_INSERT_TAIL(sock->queue, sock, link);
	if (sock->next_wait + 1 < WAITS)
		sock->next_wait++;
	if (!engine->timer_ns || sock->due_ns < engine->timer_ns)
		timer_set(engine, sock->due_ns);
}

/* Has connections looked at again that have waited long enough. */
static void on_timer(struct epoll_engine *base, struct source *source, uint32_t events)
{
	struct sockmap_engine *engine = (struct sockmap_engine *)base;
	uint64_t now_ns = clock_ns(), next_ns = 0, expirations;
	struct sock *sock;

	(void)events;
	(void)!read(source->fd, &expirations, sizeof(expirations));
	for (size_t i = 0; i < WAITS; i++) {
		while ((sock = TAILQ_FIRST(&engine->waiting[i])) && sock->due_ns <= now_ns) {
			sock_resume(sock);
			sock->conn.source.handle = sock_read;
			if (watch(base, EPOLL_CTL_MOD, &sock->conn.source, EPOLLIN))
				socket_reset(sock->conn.source.fd); /* epoll reports that */
		}
		if (sock && (!next_ns || sock->due_ns < next_ns))
			next_ns = sock->due_ns;
	}
	timer_set(engine, next_ns);
}

/* ---- resets ---- */

static uint64_t cookie(int fd)
{
	uint64_t value = 0;
	socklen_t len = sizeof(value);

	getsockopt(fd, SOL_SOCKET, SO_COOKIE, &value, &len);
	return value;
}

static bool has(const uint64_t *cookies, size_t n, uint64_t wanted)
{
	for (size_t i = 0; i < n; i++)
		if (cookies[i] == wanted)
			return true;
	return false;
}

/* The controller names connections whose streams the verdict has found broken. */
static void on_resets(struct epoll_engine *engine, struct source *source, uint32_t events)
{
	uint64_t cookies[COOKIES_PER_READ];
	ssize_t got = read(source->fd, cookies, sizeof(cookies));

	(void)events;
	if (got == 0)
		watch(engine, EPOLL_CTL_DEL, source, 0);
	for (struct conn *conn = got > 0 ? engine->conns : NULL; conn; conn = conn->next)
		if (has(cookies, (size_t)got / sizeof(cookies[0]), cookie(conn->source.fd)))
			socket_reset(conn->source.fd); /* its handler gets the error */
}

/* ---- set-up ---- */

static const char *setup(struct worker *worker)
{
	const char *why = epoll_setup(worker, &in_sockhash, sizeof(struct sockmap_engine));
	struct sockmap_engine *engine = worker->engine;

	if (why)
		return why;
	for (size_t i = 0; i < WAITS; i++)
		TAILQ_INIT(&engine->waiting[i]);
	engine->latency = worker->latency;
	engine->cpus = worker->server->cpus;
	engine->timer.handle = on_timer;
	engine->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	engine->resets.handle = on_resets;
	engine->resets.fd = worker->server->reset_fd;
	if (engine->timer.fd < 0 || watch(&engine->epoll, EPOLL_CTL_ADD, &engine->timer, EPOLLIN))
		return strerror(errno);
	if (engine->resets.fd >= 0 &&
	    watch(&engine->epoll, EPOLL_CTL_ADD, &engine->resets, EPOLLIN))
		return strerror(errno);
	return NULL;
}

static void teardown(struct worker *worker)
{
	struct sockmap_engine *engine = worker->engine;

	close(engine->timer.fd);
	epoll_teardown(worker);
}

const struct engine engine_sockmap = {
	.name = "sockmap",
	.measures = true,
	.setup = setup,
	.serve = epoll_serve,
	.teardown = teardown,
};
