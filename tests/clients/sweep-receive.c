// SPDX-License-Identifier: MIT
/* Ways to receive, and to wait for data. */
#include "sweep.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>
#include <linux/sockios.h>

/* Sends, and waits until the echo can be received. */
static void ask(int sock, size_t size)
{
	if (send(sock, payload(size), size, 0) != (ssize_t)size)
		told("send", -1);
	settle(sock);
}

static void set(int sock, int level, int option, int value)
{
	if (setsockopt(sock, level, option, &value, sizeof(value)))
		told("setsockopt", -1);
}

static void receive(int sock, size_t size, int flags)
{
	char bytes[1000];
	ssize_t n = recv(sock, bytes, size, flags);

	told("recv", n);
	if (n > 0 && !(flags & MSG_TRUNC))
		say(memcmp(bytes, payload(1000), (size_t)n) ? "others" : "right");
}

static void read_10(int sock)
{
	char bytes[10];

	ask(sock, 10);
	told("read", read(sock, bytes, 10));
}

static void pread_from_socket(int sock)
{
	char bytes[10];

	ask(sock, 10);
	told("pread", pread(sock, bytes, 10, 0));
}

static void readv_2(int sock)
{
	char bytes[10];
	struct iovec parts[] = {{bytes, 4}, {bytes + 4, 6}};

	ask(sock, 10);
	told("readv", readv(sock, parts, 2));
}

static void recv_in_bites(int sock)
{
	ask(sock, 100);
	for (int i = 0; i < 4; i++)
		told("recv", recv(sock, (char[25]){}, 25, 0));
	receive(sock, 1, MSG_DONTWAIT);
}

static void recv_nothing(int sock)
{
	ask(sock, 10);
	receive(sock, 0, 0);
	receive(sock, 10, 0);
}

static void recv_dontwait_empty(int sock)
{
	receive(sock, 1, MSG_DONTWAIT);
}
static void recv_errqueue_empty(int sock)
{
	receive(sock, 1, MSG_ERRQUEUE);
}
static void recv_oob_empty(int sock)
{
	receive(sock, 1, MSG_OOB);
}

static void recv_bad_pointer(int sock)
{
	ask(sock, 10);
	told("recv", recv(sock, (void *)8, 10, 0));
	receive(sock, 10, 0);
}

static void peek(int sock)
{
	ask(sock, 10);
	receive(sock, 10, MSG_PEEK);
	receive(sock, 5, MSG_PEEK);
	receive(sock, 10, 0);
	receive(sock, 10, MSG_PEEK | MSG_DONTWAIT);
}

static void peek_offset(int sock)
{
	ask(sock, 10);
	set(sock, SOL_SOCKET, SO_PEEK_OFF, 4);
	told("recv", recv(sock, (char[10]){}, 10, MSG_PEEK));
}

static void recv_trunc(int sock)
{
	ask(sock, 10);
	receive(sock, 6, MSG_TRUNC);
	told("recv", recv(sock, (char[10]){}, 10, 0));
}

static void waitall_two_sends(int sock)
{
	ask(sock, 10);
	if (send(sock, payload(20) + 10, 10, 0) != 10)
		told("send", -1);
	receive(sock, 20, MSG_WAITALL);
}

static void *send_second(void *sock)
{
	usleep(200000);
	if (send(*(int *)sock, payload(20) + 10, 10, 0) != 10)
		told("send", -1);
	return NULL;
}

static void waitall_waits(int sock)
{
	pthread_t other;

	pthread_create(&other, NULL, send_second, &sock);
	ask(sock, 10);
	receive(sock, 20, MSG_WAITALL);
	pthread_join(other, NULL);
}

static void recvmsg_name_and_flags(int sock)
{
	char bytes[100];
	struct sockaddr_storage from;
	struct iovec part = {bytes, 100};
	struct msghdr message = {
		.msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &part, .msg_iovlen = 1};

	ask(sock, 50);
	told("recvmsg", recvmsg(sock, &message, 0));
	say("namelen=%u flags=%#x", message.msg_namelen, message.msg_flags);
}

static void recvmmsg_2(int sock)
{
	char bytes[200];
	struct mmsghdr messages[2] = {};
	struct iovec parts[] = {{bytes, 25}, {bytes + 100, 25}};

	for (int i = 0; i < 2; i++)
		messages[i].msg_hdr = (struct msghdr){.msg_iov = parts + i, .msg_iovlen = 1};
	ask(sock, 50);
	told("recvmmsg", recvmmsg(sock, messages, 2, MSG_DONTWAIT, NULL));
	say("%u+%u", messages[0].msg_len, messages[1].msg_len);
}

/* Tells which control messages come with ten bytes. */
static void control_of(int sock, int level, int option, int value)
{
	char bytes[10], control[256];
	struct iovec part = {bytes, 10};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};

	set(sock, level, option, value);
	usleep(200000); /* the first use on a machine switches time stamps on, which takes a while */
	ask(sock, 10);
	told("recvmsg", recvmsg(sock, &message, 0));
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
		say("control %d/%d", c->cmsg_level, c->cmsg_type);
}

static void timestamp(int sock)
{
	control_of(sock, SOL_SOCKET, SO_TIMESTAMP, 1);
}
static void timestampns(int sock)
{
	control_of(sock, SOL_SOCKET, SO_TIMESTAMPNS, 1);
}
static void inq(int sock)
{
	control_of(sock, IPPROTO_TCP, TCP_INQ, 1);
}
static void timestamping_rx(int sock)
{
	control_of(sock, SOL_SOCKET, SO_TIMESTAMPING,
		   SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE);
}

/* Is there a transmit time stamp in the error queue? */
static void timestamping(int sock, int of)
{
	char control[256], bytes[200];
	struct iovec part = {bytes, sizeof(bytes)};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct pollfd wanted = {.fd = sock};

	set(sock, SOL_SOCKET, SO_TIMESTAMPING,
	    of | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_TSONLY);
	ask(sock, 10);
	expect(sock, 10);
	poll(&wanted, 1, 3000);
	told("stamp", recvmsg(sock, &message, MSG_ERRQUEUE));
}

static void timestamping_tx(int sock)
{
	timestamping(sock, SOF_TIMESTAMPING_TX_SOFTWARE);
}
static void timestamping_sched(int sock)
{
	timestamping(sock, SOF_TIMESTAMPING_TX_SCHED);
}
static void timestamping_ack(int sock)
{
	timestamping(sock, SOF_TIMESTAMPING_TX_ACK);
}

static void splice_from(int sock, unsigned int flags)
{
	int ends[2];
	ssize_t n;

	if (pipe(ends))
		exit(1);
	ask(sock, 1000);
	n = splice(sock, NULL, ends[1], NULL, 1000, flags);
	told("splice", n);
	if (n > 0)
		say("%zd from the pipe", read(ends[0], (char[1000]){}, 1000));
}

static void splice_from_socket(int sock)
{
	splice_from(sock, 0);
}
static void splice_from_socket_nonblock(int sock)
{
	splice_from(sock, SPLICE_F_NONBLOCK);
}

static void fionread(int sock)
{
	int count = -1;

	told("FIONREAD", ioctl(sock, FIONREAD, &count));
	say("%d", count);
	ask(sock, 100);
	ioctl(sock, FIONREAD, &count);
	say("%d", count);
	receive(sock, 60, 0);
	ioctl(sock, FIONREAD, &count);
	say("%d", count);
}

static void at_mark(int sock)
{
	int mark = -1;

	ask(sock, 10);
	told("SIOCATMARK", ioctl(sock, SIOCATMARK, &mark));
	say("%d", mark);
}

/* Is the queue of sent, or of unsent, data empty once the echo has come? */
static void drains(int sock, unsigned long which)
{
	int count = -1;

	ask(sock, 1000);
	for (int i = 0; i < 300 && count; i++) {
		ioctl(sock, which, &count);
		usleep(10000);
	}
	say(count ? "does not drain" : "drains");
}

static void outq(int sock)
{
	drains(sock, SIOCOUTQ);
}
static void outqnsd(int sock)
{
	drains(sock, SIOCOUTQNSD);
}

static void recv_timeout(int sock)
{
	struct timeval limit = {.tv_usec = 50000};

	told("SO_RCVTIMEO", setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	receive(sock, 1, 0);
	ask(sock, 10);
	receive(sock, 10, 0);
}

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
	(void)number;
	signals++;
}

static void handle(int number, int flags)
{
	struct sigaction action = {.sa_handler = count_signal, .sa_flags = flags};

	sigaction(number, &action, NULL);
}

static void recv_interrupted(int sock)
{
	handle(SIGALRM, 0);
	ualarm(50000, 0);
	receive(sock, 1, 0);
	say("signals=%d", signals);
}

static void *ask_later(void *sock)
{
	usleep(200000);
	if (send(*(int *)sock, payload(10), 10, 0) != 10)
		told("send", -1);
	return NULL;
}

static void recv_restarted(int sock)
{
	pthread_t other;

	handle(SIGUSR1, SA_RESTART);
	pthread_create(&other, NULL, ask_later, &sock);
	kill(getpid(), SIGUSR1);
	receive(sock, 10, 0);
	pthread_join(other, NULL);
}

static void recv_before_send_by_another_thread(int sock)
{
	pthread_t other;

	pthread_create(&other, NULL, ask_later, &sock);
	receive(sock, 10, 0);
	pthread_join(other, NULL);
}

static void async_io(int sock)
{
	handle(SIGIO, 0);
	told("F_SETOWN", fcntl(sock, F_SETOWN, getpid()));
	told("O_ASYNC", fcntl(sock, F_SETFL, O_ASYNC | O_NONBLOCK));
	signals = 0;
	ask(sock, 10);
	say("SIGIO %s", signals ? "came" : "did not come");
	expect(sock, 10);
}

static void poll_events(int sock)
{
	struct pollfd wanted = {.fd = sock,
				.events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLRDNORM};

	poll(&wanted, 1, 0);
	say("idle %#x", wanted.revents);
	ask(sock, 10);
	poll(&wanted, 1, 0);
	say("data %#x", wanted.revents);
	expect(sock, 10);
	poll(&wanted, 1, 0);
	say("read %#x", wanted.revents);
}

static void select_readable(int sock)
{
	struct timeval limit = {.tv_sec = 3};
	fd_set set;

	FD_ZERO(&set);
	FD_SET(sock, &set);
	if (send(sock, payload(10), 10, 0) != 10)
		told("send", -1);
	told("select", select(sock + 1, &set, NULL, NULL, &limit));
	expect(sock, 10);
}

static void epoll_as(int sock, unsigned int how)
{
	struct epoll_event event = {.events = EPOLLIN | how};
	int epoll = epoll_create1(0);

	epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &event);
	told("idle", epoll_wait(epoll, &event, 1, 0));
	for (int i = 0; i < 3; i++) {
		ask(sock, 10);
		told("data", epoll_wait(epoll, &event, 1, how & EPOLLONESHOT && i ? 50 : 3000));
		told("again", epoll_wait(epoll, &event, 1, 50));
		if (i < 2)
			expect(sock, 10);
	}
}

static void epoll_level(int sock)
{
	epoll_as(sock, 0);
}
static void epoll_edge(int sock)
{
	epoll_as(sock, EPOLLET);
}
static void epoll_oneshot(int sock)
{
	epoll_as(sock, EPOLLONESHOT);
}
static void epoll_exclusive(int sock)
{
	epoll_as(sock, EPOLLEXCLUSIVE);
}

/* Edge-triggered epoll, with part of the first message unread when the second comes. */
static void epoll_edge_unread(int sock)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	int epoll = epoll_create1(0);

	epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &event);
	ask(sock, 10);
	told("first", epoll_wait(epoll, &event, 1, 3000));
	receive(sock, 5, 0);
	if (send(sock, payload(20) + 10, 10, 0) != 10)
		told("send", -1);
	told("second", epoll_wait(epoll, &event, 1, 3000));
}

static void rcvlowat(int sock)
{
	struct pollfd wanted = {.fd = sock, .events = POLLIN};

	set(sock, SOL_SOCKET, SO_RCVLOWAT, 15);
	if (send(sock, payload(10), 10, 0) != 10)
		told("send", -1);
	told("10 of 15", poll(&wanted, 1, 200));
	if (send(sock, payload(20) + 10, 10, 0) != 10)
		told("send", -1);
	told("20 of 15", poll(&wanted, 1, 3000));
	expect(sock, 20);
}

const struct check receives[] = {
	{"read_10", read_10},
	{"pread_from_socket", pread_from_socket},
	{"readv_2", readv_2},
	{"recv_in_bites", recv_in_bites},
	{"recv_nothing", recv_nothing},
	{"recv_dontwait_empty", recv_dontwait_empty},
	{"recv_errqueue_empty", recv_errqueue_empty},
	{"recv_oob_empty", recv_oob_empty},
	{"recv_bad_pointer", recv_bad_pointer},
	{"peek", peek},
	{"peek_offset", peek_offset},
	{"recv_trunc", recv_trunc},
	{"waitall_two_sends", waitall_two_sends},
	{"waitall_waits", waitall_waits},
	{"recvmsg_name_and_flags", recvmsg_name_and_flags},
	{"recvmmsg_2", recvmmsg_2},
	{"timestamp", timestamp},
	{"timestampns", timestampns},
	{"timestamping_rx", timestamping_rx},
	{"timestamping_tx", timestamping_tx},
	{"timestamping_sched", timestamping_sched},
	{"timestamping_ack", timestamping_ack},
	{"inq", inq},
	{"splice_from_socket", splice_from_socket},
	{"splice_from_socket_nonblock", splice_from_socket_nonblock},
	{},
};

const struct check waits[] = {
	{"fionread", fionread},
	{"at_mark", at_mark},
	{"outq", outq},
	{"outqnsd", outqnsd},
	{"recv_timeout", recv_timeout},
	{"recv_interrupted", recv_interrupted},
	{"recv_restarted", recv_restarted},
	{"recv_before_send_by_another_thread", recv_before_send_by_another_thread},
	{"async_io", async_io},
	{"poll_events", poll_events},
	{"select_readable", select_readable},
	{"epoll_level", epoll_level},
	{"epoll_edge", epoll_edge},
	{"epoll_oneshot", epoll_oneshot},
	{"epoll_exclusive", epoll_exclusive},
	{"epoll_edge_unread", epoll_edge_unread},
	{"rcvlowat", rcvlowat},
	{},
};
