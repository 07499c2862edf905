/* SPDX-License-Identifier: MIT */
/*
 * Shared by the client programs in C: the connection, the file that they send, and the file that they write. An error
 * ends the program.
 */
#ifndef FILE_H
#define FILE_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct input {
	const char *bytes;
	size_t size;
};

static inline ssize_t checked(const char *what, ssize_t result)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static inline int connect_to(const char *host, const char *port)
{
	struct sockaddr_in server = {.sin_family = AF_INET,
				     .sin_port = htons((uint16_t)atoi(port))};
	int sock = (int)checked("socket", socket(AF_INET, SOCK_STREAM, 0));

	checked("address", inet_pton(AF_INET, host, &server.sin_addr));
	checked("connect", connect(sock, (struct sockaddr *)&server, sizeof(server)));
	return sock;
}

static inline struct input read_input(const char *path)
{
	int file = (int)checked(path, open(path, O_RDONLY));
	struct stat stat;
	void *bytes;

	checked(path, fstat(file, &stat));
	bytes = mmap(NULL, (size_t)stat.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (bytes == MAP_FAILED)
		checked("mmap", -1);
	return (struct input){bytes, (size_t)stat.st_size};
}

static inline int create_output(const char *path)
{
	return (int)checked(path, open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644));
}

static inline void write_all(int file, const char *bytes, size_t size)
{
	while (size) {
		size_t n = (size_t)checked("write", write(file, bytes, size));

		bytes += n;
		size -= n;
	}
}

#endif
