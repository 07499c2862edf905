// SPDX-License-Identifier: MIT
// Linked into user-echo-server by a test: system calls that refuse, or do less than they are asked to.
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/tcp.h>
#include <netinet/in.h>
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

/* True while the file is there that a setting names. */
static int is_there(const char *name)
{
	const char *path = getenv(name);

	return path && !access(path, F_OK);
}

/* WATCH_REFUSED_WHILE: nothing is watched, or watched for something else. */
int epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
	if (op != EPOLL_CTL_DEL && is_there("WATCH_REFUSED_WHILE")) {
		errno = ENOSPC; /* as beyond fs.epoll.max_user_watches */
		return -1;
	}
	return (int)syscall(SYS_epoll_ctl, epoll, op, fd, event);
}

/* ACCEPT_REFUSED_WHILE: accept() has no memory. */
int accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags)
{
	if (is_there("ACCEPT_REFUSED_WHILE")) {
		errno = ENOMEM;
		return -1;
	}
	return (int)syscall(SYS_accept4, fd, address, bytes, flags);
}

/* IN_FLIGHT_WHILE: a byte that was received has not been sent yet. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *bytes)
{
	int result = (int)syscall(SYS_getsockopt, fd, level, option, value, bytes);

	if (level == IPPROTO_TCP && option == TCP_INFO && is_there("IN_FLIGHT_WHILE"))
		((struct tcp_info *)value)->tcpi_bytes_received++;
	return result;
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
