// SPDX-License-Identifier: MIT
// Refuses connections when descriptors have run out, and ends connections safely.
#include "socket.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* -1 while it is given up. Written under the lock. */
static int spare = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool open_locked(void)
{
	if (spare < 0)
		__atomic_store_n(&spare, open("/dev/null", O_RDONLY | O_CLOEXEC), __ATOMIC_SEQ_CST);
	return spare >= 0;
}

static void close_locked(void)
{
	int fd = spare;

	__atomic_store_n(&spare, -1, __ATOMIC_SEQ_CST);
	if (fd >= 0)
		close(fd);
}

bool spare_open(void)
{
	bool there;

	pthread_mutex_lock(&lock);
	there = open_locked();
	pthread_mutex_unlock(&lock);
	return there;
}

void spare_close(void)
{
	pthread_mutex_lock(&lock);
	close_locked();
	pthread_mutex_unlock(&lock);
}

bool spare_admits(int fd)
{
	bool admits;

	if (__atomic_load_n(&spare, __ATOMIC_SEQ_CST) >= 0)
		return true;
	pthread_mutex_lock(&lock);
	admits = open_locked();
	if (!admits) {
		socket_reset(fd);
		close(fd);
		open_locked();
	}
	pthread_mutex_unlock(&lock);
	return admits;
}

static enum refusal refuse_locked(int listener)
{
	enum refusal refusal;
	int fd;

	if (!open_locked())
		return CANNOT_REFUSE;
	close_locked();
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	refusal = fd >= 0 ? REFUSED : is_passing(errno) ? NONE_WAITS : CANNOT_REFUSE;
	if (fd >= 0) {
		socket_reset(fd);
		close(fd);
	}
	open_locked();
	return refusal;
}

enum refusal refuse_one(int listener)
{
	enum refusal refusal;

	pthread_mutex_lock(&lock);
	refusal = refuse_locked(listener);
	pthread_mutex_unlock(&lock);
	return refusal;
}

void socket_reset(int fd)
{
	const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};

	(void)connect(fd, &nowhere, sizeof(nowhere)); /* tcp_disconnect() */
}

bool socket_is_acknowledged(int fd)
{
	int unacknowledged;

	return !ioctl(fd, SIOCOUTQ, &unacknowledged) && unacknowledged == 0;
}

bool socket_is_done(int fd)
{
	struct tcp_info info;
	socklen_t len = sizeof(info);

	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) || info.tcpi_state == TCP_CLOSE;
}
