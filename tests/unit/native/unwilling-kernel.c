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

/* A line in the file that is named by a setting. One setting is used in a process. */
static void note(const char *setting_name, int number)
{
	const char *path = getenv(setting_name);
	static int log = -1;

	if (path && log < 0)
		log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (path)
		dprintf(log, "%d\n", number);
}

/* RECV_LOG: a file that gets a line for each recv(), with its descriptor. */
ssize_t recv(int fd, void *buffer, size_t bytes, int flags)
{
	note("RECV_LOG", fd);
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

/* SUBMITTED_AT_MOST: digits, in turn; the kernel takes no more submissions at once. */
static unsigned int most_submitted(void)
{
	const char *digits = getenv("SUBMITTED_AT_MOST");
	static size_t turn;

	return digits ? (unsigned int)(digits[turn++ % strlen(digits)] - '0') : 1u << 31;
}

/* As liburing 2.3 flushes its queue. */
static int enter(struct io_uring *ring, unsigned int wait, unsigned int flags)
{
	unsigned int offered, taken, most = most_submitted();
	int result;

	ring->sq.sqe_head = ring->sq.sqe_tail;
	__atomic_store_n(ring->sq.ktail, ring->sq.sqe_tail, __ATOMIC_RELEASE);
	offered = ring->sq.sqe_tail - *ring->sq.khead;
	taken = offered > most ? most : offered;
	if (taken < offered) /* the kernel then does not wait either */
		wait = 0;
	result = (int)syscall(SYS_io_uring_enter, ring->ring_fd, taken, wait, flags, NULL, 0);
	return result < 0 ? -errno : result;
}

int io_uring_submit(struct io_uring *ring)
{
	return enter(ring, 0, 0);
}

/* ROUND_LOG: a file that gets a line for each round, with how many completions it has to wait for. */
int io_uring_submit_and_wait(struct io_uring *ring, unsigned int wait)
{
	note("ROUND_LOG", (int)wait);
	return enter(ring, wait, IORING_ENTER_GETEVENTS);
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
	note("ROUND_LOG", 0);
	return enter(ring, 0, IORING_ENTER_GETEVENTS);
}
