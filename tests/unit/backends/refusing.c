// SPDX-License-Identifier: MIT
// Preloaded by a test: system calls that the kernel refuses for as long as a file is there.
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_there(const char *setting)
{
	const char *path = getenv(setting);

	return path && !access(path, F_OK);
}

int epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
	if (op == EPOLL_CTL_ADD && is_there("WATCH_REFUSED_WHILE")) {
		errno = ENOSPC; /* as beyond fs.epoll.max_user_watches */
		return -1;
	}
	return (int)syscall(SYS_epoll_ctl, epoll, op, fd, event);
}

int accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags)
{
	if (is_there("ACCEPT_REFUSED_WHILE")) {
		errno = ENOMEM;
		return -1;
	}
	return (int)syscall(SYS_accept4, fd, address, bytes, flags);
}
