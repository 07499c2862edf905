// SPDX-License-Identifier: MIT
/* Ways to send. */
#include "sweep.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static void send_with(int sock, size_t size, int flags)
{
	told("send", send(sock, payload(size), size, flags));
	expect(sock, size);
}

/* Sends and receives at the same time, as a client has to with more data than the buffers hold. */
static void stream(int sock, size_t size)
{
	char *bytes = malloc(size);
	size_t sent = 0, got = 0, wrong = 0;

	while (got < size) {
		struct pollfd wanted = {.fd = sock,
					.events = (short)(POLLIN | (sent < size ? POLLOUT : 0))};
		ssize_t n;

		if (poll(&wanted, 1, 5000) <= 0)
			break;
		if (wanted.revents & POLLOUT) {
			n = send(sock, payload(size) + sent, size - sent, MSG_DONTWAIT);
			sent += n > 0 ? (size_t)n : 0;
		}
		n = recv(sock, bytes + got, size - got, MSG_DONTWAIT);
		if (!n || (n < 0 && errno != EAGAIN))
			break;
		got += n > 0 ? (size_t)n : 0;
	}
	for (size_t i = 0; i < got; i++)
		wrong += bytes[i] != payload(size)[i];
	say("%zu of %zu bytes, %zu wrong", got, size, wrong);
	free(bytes);
}

static int file_with(size_t size)
{
	int file = memfd_create("sweep", 0);

	if (write(file, payload(size), size) != (ssize_t)size)
		exit(1);
	lseek(file, 0, SEEK_SET);
	return file;
}

static void send_1(int sock)
{
	send_with(sock, 1, 0);
}
static void send_1460(int sock)
{
	send_with(sock, 1460, 0);
}
static void send_16384(int sock)
{
	send_with(sock, 16384, 0);
}
static void send_65537(int sock)
{
	stream(sock, 65537);
}
static void send_4_megabytes(int sock)
{
	stream(sock, 4 << 20);
}
static void send_dontwait(int sock)
{
	send_with(sock, 100, MSG_DONTWAIT);
}
static void send_nosignal(int sock)
{
	send_with(sock, 100, MSG_NOSIGNAL);
}
static void send_eor(int sock)
{
	send_with(sock, 100, MSG_EOR);
}
static void send_confirm(int sock)
{
	send_with(sock, 100, MSG_CONFIRM);
}
static void send_dontroute(int sock)
{
	send_with(sock, 100, MSG_DONTROUTE);
}
static void send_oob_byte(int sock)
{
	send_with(sock, 1, MSG_OOB);
}
static void send_oob_100(int sock)
{
	send_with(sock, 100, MSG_OOB);
}
static void send_zerocopy_unasked(int sock)
{
	send_with(sock, 5000, MSG_ZEROCOPY);
}

static void send_nothing(int sock)
{
	told("send", send(sock, "", 0, 0));
	send_with(sock, 10, 0);
}

static void send_bad_pointer(int sock)
{
	told("send", send(sock, (void *)8, 10, 0));
	send_with(sock, 10, 0);
}

static void send_more(int sock)
{
	for (int i = 0; i < 10; i++)
		if (send(sock, payload(1000) + 100 * i, 100, i < 9 ? MSG_MORE : 0) != 100)
			told("send", -1);
	expect(sock, 1000);
}

static void send_oob_between(int sock)
{
	for (int i = 0; i < 20; i++)
		if (send(sock, payload(40) + 2 * i, 2, i % 2 ? MSG_OOB : 0) != 2)
			told("send", -1);
	expect(sock, 40);
}

static void send_to_address(int sock)
{
	told("sendto", sendto(sock, payload(100), 100, 0, (struct sockaddr *)&server, server_len));
	expect(sock, 100);
}

static void write_1(int sock)
{
	told("write", write(sock, payload(1), 1));
	expect(sock, 1);
}

static void pwrite_to_socket(int sock)
{
	told("pwrite", pwrite(sock, payload(1), 1, 0));
}

static void writev_3(int sock)
{
	char *bytes = (char *)payload(600);
	struct iovec parts[] = {{bytes, 100}, {bytes + 100, 0}, {bytes + 100, 500}};

	told("writev", writev(sock, parts, 3));
	expect(sock, 600);
}

static void sendmsg_1024_parts(int sock)
{
	struct iovec parts[1024];
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 1024};

	for (size_t i = 0; i < 1024; i++)
		parts[i] = (struct iovec){(char *)payload(1024) + i, 1};
	told("sendmsg", sendmsg(sock, &message, 0));
	expect(sock, 1024);
}

static void sendmmsg_4(int sock)
{
	struct mmsghdr messages[4] = {};
	struct iovec parts[4];

	for (size_t i = 0; i < 4; i++) {
		parts[i] = (struct iovec){(char *)payload(400) + 100 * i, 100};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = parts + i, .msg_iovlen = 1};
	}
	told("sendmmsg", sendmmsg(sock, messages, 4, 0));
	expect(sock, 400);
}

static void sendfile_10000(int sock)
{
	told("sendfile", sendfile(sock, file_with(10000), NULL, 10000));
	expect(sock, 10000);
}

static void sendfile_from_socket(int sock)
{
	told("sendfile", sendfile(file_with(1), sock, NULL, 1));
}

static void splice_to_socket(int sock)
{
	int ends[2];

	if (pipe(ends) || write(ends[1], payload(5000), 5000) != 5000)
		exit(1);
	told("splice", splice(ends[0], NULL, sock, NULL, 5000, 0));
	expect(sock, 5000);
}

static void splice_file_to_socket(int sock)
{
	int ends[2], file = file_with(8192);

	if (pipe(ends) || splice(file, NULL, ends[1], NULL, 8192, 0) != 8192)
		exit(1);
	told("splice", splice(ends[0], NULL, sock, NULL, 8192, SPLICE_F_MORE));
	expect(sock, 8192);
}

static void vmsplice_to_socket(int sock)
{
	struct iovec part = {(char *)payload(4096), 4096};
	int ends[2];

	if (pipe(ends) || vmsplice(ends[1], &part, 1, 0) != 4096)
		exit(1);
	told("splice", splice(ends[0], NULL, sock, NULL, 4096, 0));
	expect(sock, 4096);
}

static void send_zerocopy(int sock)
{
	char control[128];
	struct msghdr message = {.msg_control = control, .msg_controllen = sizeof(control)};
	struct pollfd wanted = {.fd = sock};
	int on = 1;

	told("SO_ZEROCOPY", setsockopt(sock, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)));
	send_with(sock, 20000, MSG_ZEROCOPY);
	poll(&wanted, 1, 3000);
	say("POLLERR=%d", !!(wanted.revents & POLLERR));
	told("completion", recvmsg(sock, &message, MSG_ERRQUEUE));
}

static void cork_and_uncork(int sock)
{
	int on = 1, off = 0;

	told("TCP_CORK", setsockopt(sock, IPPROTO_TCP, TCP_CORK, &on, sizeof(on)));
	for (int i = 0; i < 10; i++)
		if (send(sock, payload(100) + 10 * i, 10, 0) != 10)
			told("send", -1);
	told("uncork", setsockopt(sock, IPPROTO_TCP, TCP_CORK, &off, sizeof(off)));
	expect(sock, 100);
}

static void send_nagled(int sock)
{
	for (int i = 0; i < 50; i++)
		if (send(sock, payload(50) + i, 1, 0) != 1)
			told("send", -1);
	expect(sock, 50);
}

/* The server may be a kernel thread that needs a CPU before it can hold the sender back. */
static void send_until_full(int sock)
{
	ssize_t n;
	size_t sent = 0, rest = 1 << 24;

	while ((n = send(sock, payload(65536), 65536, MSG_DONTWAIT)) > 0 && sent < 1 << 28) {
		sent += (size_t)n;
		if (sent > rest) {
			usleep(100000);
			rest += 1 << 24;
		}
	}
	told("send", n < 0 ? n : 0);
}

const struct check sends[] = {
	{"send_1", send_1},
	{"send_1460", send_1460},
	{"send_16384", send_16384},
	{"send_65537", send_65537},
	{"send_4_megabytes", send_4_megabytes},
	{"send_dontwait", send_dontwait},
	{"send_nosignal", send_nosignal},
	{"send_eor", send_eor},
	{"send_confirm", send_confirm},
	{"send_dontroute", send_dontroute},
	{"send_oob_byte", send_oob_byte},
	{"send_oob_100", send_oob_100},
	{"send_oob_between", send_oob_between},
	{"send_nothing", send_nothing},
	{"send_bad_pointer", send_bad_pointer},
	{"send_more", send_more},
	{"send_to_address", send_to_address},
	{"send_nagled", send_nagled},
	{"send_until_full", send_until_full},
	{"write_1", write_1},
	{"pwrite_to_socket", pwrite_to_socket},
	{"writev_3", writev_3},
	{"sendmsg_1024_parts", sendmsg_1024_parts},
	{"sendmmsg_4", sendmmsg_4},
	{"sendfile_10000", sendfile_10000},
	{"sendfile_from_socket", sendfile_from_socket},
	{"splice_to_socket", splice_to_socket},
	{"splice_file_to_socket", splice_file_to_socket},
	{"vmsplice_to_socket", vmsplice_to_socket},
	{"send_zerocopy", send_zerocopy},
	{"send_zerocopy_unasked", send_zerocopy_unasked},
	{"cork_and_uncork", cork_and_uncork},
	{},
};
