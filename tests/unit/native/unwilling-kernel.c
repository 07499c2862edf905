// SPDX-License-Identifier: MIT
// Linked into user-echo-server by a test: system calls that refuse, or do less than they are asked to.
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static long setting(const char *name)
{
	const char *text = getenv(name);

	return text ? atol(text) : 0;
}

/* EPOLL_CTL_REFUSED: that descriptor is not watched. */
int epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
	long refused = setting("EPOLL_CTL_REFUSED");

	if (op == EPOLL_CTL_ADD && refused && fd >= refused) {
		errno = ENOSPC;
		return -1;
	}
	return (int)syscall(SYS_epoll_ctl, epoll, op, fd, event);
}

/* RECV_LOG: a file that gets a line for each recv(), with its descriptor. */
ssize_t recv(int fd, void *buffer, size_t bytes, int flags)
{
	const char *path = getenv("RECV_LOG");
	static int log = -1;

	if (path && log < 0)
		log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (path)
		dprintf(log, "%d\n", fd);
	return syscall(SYS_recvfrom, fd, buffer, bytes, flags, NULL, NULL);
}

/* NO_MEMORY_FOR: an allocation of so many bytes or more fails. By --wrap=malloc. */
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes)
{
	long refused = setting("NO_MEMORY_FOR");

	return refused && bytes >= (size_t)refused ? NULL : __real_malloc(bytes);
}

/* SUBMITTED_AT_MOST: the kernel takes no more submissions at once. As liburing 2.3 flushes its queue. */
static int enter(struct io_uring *ring, unsigned int wait, unsigned int flags)
{
	long most = setting("SUBMITTED_AT_MOST");
	unsigned int offered, taken;
	int result;

	ring->sq.sqe_head = ring->sq.sqe_tail;
	__atomic_store_n(ring->sq.ktail, ring->sq.sqe_tail, __ATOMIC_RELEASE);
	offered = ring->sq.sqe_tail - *ring->sq.khead;
	taken = most && offered > (unsigned int)most ? (unsigned int)most : offered;
	if (taken < offered) /* the kernel then does not wait either */
		wait = 0;
	result = (int)syscall(SYS_io_uring_enter, ring->ring_fd, taken, wait, flags, NULL, 0);
	return result < 0 ? -errno : result;
}

int io_uring_submit(struct io_uring *ring)
{
	return enter(ring, 0, 0);
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned int wait)
{
	return enter(ring, wait, IORING_ENTER_GETEVENTS);
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
	return enter(ring, 0, IORING_ENTER_GETEVENTS);
}
