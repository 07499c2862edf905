// SPDX-License-Identifier: MIT
/*
 * Usage: epoll HOST PORT INPUT OUTPUT: sends INPUT, and writes what comes back to OUTPUT. One thread, edge-triggered.
 */
#include "file.h"

#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* Sends until the socket takes no more; true once all is sent. */
static bool send_some(int sock, const struct input *input, size_t *sent)
{
	while (*sent < input->size) {
		ssize_t n = send(sock, input->bytes + *sent, input->size - *sent, MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			return false;
		*sent += (size_t)checked("send", n);
	}
	return true;
}

/* Receives until there is no more for now; false once the stream has ended. */
static bool receive_some(int sock, int output)
{
	static char bytes[100000];

	for (;;) {
		ssize_t n = recv(sock, bytes, sizeof(bytes), 0);

		if (n < 0 && errno == EAGAIN)
			return true;
		if (!checked("recv", n))
			return false;
		write_all(output, bytes, (size_t)n);
	}
}

int main(int argc, char **argv)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
	bool shut = false, goes_on = true;
	struct input input;
	int poll, sock, output;
	size_t sent = 0;

	if (argc != 5)
		return 2;
	sock = connect_to(argv[1], argv[2]);
	input = read_input(argv[3]);
	output = create_output(argv[4]);
	checked("fcntl", fcntl(sock, F_SETFL, O_NONBLOCK));
	poll = (int)checked("epoll_create1", epoll_create1(0));
	checked("epoll_ctl", epoll_ctl(poll, EPOLL_CTL_ADD, sock, &event));
	while (goes_on) {
		checked("epoll_wait", epoll_wait(poll, &event, 1, -1));
		if (!shut && (event.events & EPOLLOUT) && send_some(sock, &input, &sent)) {
			checked("shutdown", shutdown(sock, SHUT_WR));
			shut = true;
		}
		if (event.events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
			goes_on = receive_some(sock, output);
	}
	return sent < input.size;
}
