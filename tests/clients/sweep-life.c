// SPDX-License-Identifier: MIT
/* Options, and the ways in which a connection ends, is shared or is handed on. */
#include "sweep.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void echo(int sock, size_t size)
{
	told("send", send(sock, payload(size), size, 0));
	expect(sock, size);
}

/* Sets the option, reads it back, and echoes with it set. */
static void option(int sock, int level, int name, int value)
{
	int got = -1;
	socklen_t size = sizeof(got);

	told("set", setsockopt(sock, level, name, &value, sizeof(value)));
	told("get", getsockopt(sock, level, name, &got, &size));
	say("%d", got);
	echo(sock, 3000);
}

static void get(int sock, int level, int name)
{
	int got = -1;
	socklen_t size = sizeof(got);

	echo(sock, 10);
	told("get", getsockopt(sock, level, name, &got, &size));
	say("%d", got);
}

#define OPTION(check, level, name, value)                                                          \
	static void check(int sock)                                                                \
	{                                                                                          \
		option(sock, level, name, value);                                                  \
	}
#define GET(check, level, name)                                                                    \
	static void check(int sock)                                                                \
	{                                                                                          \
		get(sock, level, name);                                                            \
	}

OPTION(nodelay, IPPROTO_TCP, TCP_NODELAY, 1)
OPTION(quickack_off, IPPROTO_TCP, TCP_QUICKACK, 0)
OPTION(user_timeout, IPPROTO_TCP, TCP_USER_TIMEOUT, 5000)
OPTION(notsent_lowat, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 1000)
OPTION(window_clamp, IPPROTO_TCP, TCP_WINDOW_CLAMP, 4096)
OPTION(thin, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1)
OPTION(keepidle, IPPROTO_TCP, TCP_KEEPIDLE, 100)
OPTION(linger2, IPPROTO_TCP, TCP_LINGER2, 5)
OPTION(repair, IPPROTO_TCP, TCP_REPAIR, 0)
OPTION(keepalive, SOL_SOCKET, SO_KEEPALIVE, 1)
OPTION(small_sndbuf, SOL_SOCKET, SO_SNDBUF, 4608)
OPTION(small_rcvbuf, SOL_SOCKET, SO_RCVBUF, 8192)
OPTION(priority, SOL_SOCKET, SO_PRIORITY, 3)
OPTION(oobinline, SOL_SOCKET, SO_OOBINLINE, 1)
OPTION(reuseport, SOL_SOCKET, SO_REUSEPORT, 1)
OPTION(busy_poll, SOL_SOCKET, SO_BUSY_POLL, 10)
OPTION(tos, IPPROTO_IP, IP_TOS, 0x10)
GET(error, SOL_SOCKET, SO_ERROR)
GET(type, SOL_SOCKET, SO_TYPE)
GET(protocol, SOL_SOCKET, SO_PROTOCOL)
GET(acceptconn, SOL_SOCKET, SO_ACCEPTCONN)

static void tcp_info(int sock)
{
	struct tcp_info info = {};
	socklen_t size = sizeof(info);

	echo(sock, 1000);
	told("get", getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &size));
	say("state=%d retransmits=%d", info.tcpi_state, info.tcpi_retransmits);
}

/* Is everything acknowledged soon after the echo? */
static void tcp_info_unacked(int sock)
{
	struct tcp_info info = {.tcpi_unacked = 1};

	echo(sock, 1000);
	for (int i = 0; i < 200 && info.tcpi_unacked; i++) {
		socklen_t size = sizeof(info);

		getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &size);
		usleep(10000);
	}
	say("unacked=%u", info.tcpi_unacked);
}

/* The value read back depends on the route, so it is not told. */
static void maxseg(int sock)
{
	int size = 500;

	told("set", setsockopt(sock, IPPROTO_TCP, TCP_MAXSEG, &size, sizeof(size)));
	echo(sock, 3000);
}

static void congestion(int sock)
{
	told("set", setsockopt(sock, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	echo(sock, 10000);
}

static void names(int sock)
{
	struct sockaddr_storage peer = {};
	socklen_t size = sizeof(peer);

	told("getpeername", getpeername(sock, (struct sockaddr *)&peer, &size));
	say(size == server_len && !memcmp(&peer, &server, 8) ? "the server" : "somebody else");
}

static void nonblocking(int sock)
{
	told("fcntl", fcntl(sock, F_SETFL, O_NONBLOCK));
	told("recv", recv(sock, (char[1]){}, 1, 0));
	echo(sock, 10);
}

static void shut_write(int sock)
{
	told("send", send(sock, payload(5000), 5000, 0));
	told("shutdown", shutdown(sock, SHUT_WR));
	expect(sock, 5000);
	expect_end(sock);
}

static void shut_write_at_once(int sock)
{
	told("shutdown", shutdown(sock, SHUT_WR));
	expect_end(sock);
}

static void shut_write_blocking_recv(int sock)
{
	told("send", send(sock, payload(10), 10, 0));
	expect(sock, 10);
	told("shutdown", shutdown(sock, SHUT_WR));
	told("recv", recv(sock, (char[1]){}, 1, 0));
}

static void shut_write_then_send(int sock)
{
	told("shutdown", shutdown(sock, SHUT_WR));
	told("send", send(sock, "x", 1, MSG_NOSIGNAL));
}

static void shut_read(int sock)
{
	told("shutdown", shutdown(sock, SHUT_RD));
	told("recv", recv(sock, (char[1]){}, 1, 0));
	told("send", send(sock, "x", 1, 0));
}

static void shut_both(int sock)
{
	struct pollfd wanted = {.fd = sock, .events = POLLIN | POLLRDHUP};

	told("shutdown", shutdown(sock, SHUT_RDWR));
	told("recv", recv(sock, (char[1]){}, 1, 0));
	told("send", send(sock, "x", 1, MSG_NOSIGNAL));
	poll(&wanted, 1, 1000);
	say("%#x", wanted.revents & (POLLIN | POLLRDHUP));
}

static void hang_up_events(int sock)
{
	struct pollfd wanted = {.fd = sock, .events = POLLIN | POLLRDHUP};

	shutdown(sock, SHUT_WR);
	for (int i = 0; i < 200 && !(wanted.revents & POLLHUP); i++) {
		poll(&wanted, 1, 100);
		usleep(10000);
	}
	say("%#x", wanted.revents);
	told("recv", recv(sock, (char[1]){}, 1, 0));
}

static void connect_again(int sock)
{
	told("connect", connect(sock, (struct sockaddr *)&server, server_len));
	echo(sock, 10);
}

/* connect() to AF_UNSPEC ends the connection and frees the socket for another. */
static void disconnect_and_connect(int sock)
{
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};

	echo(sock, 10);
	told("disconnect", connect(sock, &nobody, sizeof(nobody)));
	told("send", send(sock, "x", 1, MSG_NOSIGNAL));
	told("connect", connect(sock, (struct sockaddr *)&server, server_len));
	echo(sock, 10);
}

static void disconnect_unread(int sock)
{
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};

	told("send", send(sock, payload(1000), 1000, 0));
	settle(sock);
	told("disconnect", connect(sock, &nobody, sizeof(nobody)));
	told("recv", recv(sock, (char[1]){}, 1, MSG_DONTWAIT));
	told("connect", connect(sock, (struct sockaddr *)&server, server_len));
	echo(sock, 10);
}

static void listen_on_it(int sock)
{
	told("listen", listen(sock, 1));
	told("accept", accept(sock, NULL, NULL));
	echo(sock, 10);
}

static void duplicate(int sock)
{
	int other = dup(sock);

	told("close", close(sock));
	echo(other, 10);
}

static void shared_with_a_child(int sock)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		send(sock, payload(10), 10, 0);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	expect(sock, 10);
}

static void passed_to_another(int sock)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte = 0;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int pair[2], received;

	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &sock, sizeof(int));
	told("sendmsg", sendmsg(pair[0], &message, 0));
	close(sock);
	told("recvmsg", recvmsg(pair[1], &message, 0));
	memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	echo(received, 10);
}

static void close_and_linger(int sock)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 5};

	setsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	echo(sock, 10);
	told("close", close(sock));
}

static void close_by_reset(int sock)
{
	struct linger linger = {.l_onoff = 1};

	setsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	told("send", send(sock, payload(10000), 10000, 0));
	told("close", close(sock));
	echo(connected(), 10);
}

static void close_unread(int sock)
{
	told("send", send(sock, payload(10000), 10000, 0));
	settle(sock);
	told("close", close(sock));
	echo(connected(), 10);
}

static void sigpipe(int sock)
{
	signal(SIGPIPE, SIG_DFL);
	shutdown(sock, SHUT_WR);
	send(sock, "x", 1, 0);
	say("survived");
}

static void upper_layer(int sock)
{
	told("TCP_ULP", setsockopt(sock, IPPROTO_TCP, TCP_ULP, "none", 4));
	echo(sock, 10);
}

/* Releases of clang-format disagree about the braces of such macros. */
/* clang-format off */
#define CHECK(name) { #name, name }
/* clang-format on */

const struct check options[] = {
	CHECK(nodelay),
	CHECK(quickack_off),
	CHECK(user_timeout),
	CHECK(notsent_lowat),
	CHECK(maxseg),
	CHECK(window_clamp),
	CHECK(thin),
	CHECK(keepidle),
	CHECK(linger2),
	CHECK(repair),
	CHECK(keepalive),
	CHECK(small_sndbuf),
	CHECK(small_rcvbuf),
	CHECK(priority),
	CHECK(oobinline),
	CHECK(reuseport),
	CHECK(busy_poll),
	CHECK(tos),
	CHECK(error),
	CHECK(type),
	CHECK(protocol),
	CHECK(acceptconn),
	CHECK(tcp_info),
	CHECK(tcp_info_unacked),
	CHECK(congestion),
	CHECK(names),
	CHECK(nonblocking),
	CHECK(upper_layer),
	{},
};

const struct check ends[] = {
	CHECK(shut_write),
	CHECK(shut_write_at_once),
	CHECK(shut_write_blocking_recv),
	CHECK(shut_write_then_send),
	CHECK(shut_read),
	CHECK(shut_both),
	CHECK(hang_up_events),
	CHECK(connect_again),
	CHECK(disconnect_and_connect),
	CHECK(disconnect_unread),
	CHECK(listen_on_it),
	CHECK(duplicate),
	CHECK(shared_with_a_child),
	CHECK(passed_to_another),
	CHECK(close_and_linger),
	CHECK(close_by_reset),
	CHECK(close_unread),
	CHECK(sigpipe),
	{},
};
