// SPDX-License-Identifier: MIT
// Refuses connections for want of descriptors, and finds out whether a socket has done its work.
#include "server-socket.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

bool spare_open(int *spare)
{
	*spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return *spare >= 0;
}

void spare_close(int *spare)
{
	if (*spare >= 0)
		close(*spare);
	*spare = -1;
}

enum refusal refuse_one(int *spare, int listener)
{
	enum refusal refusal;
	int fd;

	if (*spare < 0 && !spare_open(spare))
		return CANNOT_REFUSE;
	spare_close(spare);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	refusal = fd >= 0 ? REFUSED : is_passing(errno) ? NONE_WAITS : CANNOT_REFUSE;
	if (fd >= 0)
		close(fd);
	spare_open(spare);
	return refusal;
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
