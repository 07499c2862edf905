// SPDX-License-Identifier: MIT
/*
 * Usage: sweep ADDRESS PORT [CHECK...]: runs all checks or those named, and prints "NAME: what it saw" for each.
 */
#include "sweep.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMIT_S 8    /* for a check, after which it is killed */
#define WAIT_MS 5000 /* for an echo */

struct sockaddr_storage server;
socklen_t server_len;

void say(const char *format, ...)
{
	va_list arguments;

	putchar(' ');
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	fflush(stdout);
}

void told(const char *what, ssize_t result)
{
	if (result < 0)
		say("%s=%s", what, strerrorname_np(errno));
	else
		say("%s=%zd", what, result);
}

int connected(void)
{
	int sock = socket(server.ss_family, SOCK_STREAM, 0);

	if (sock < 0 || connect(sock, (struct sockaddr *)&server, server_len)) {
		told("connect", -1);
		exit(1);
	}
	return sock;
}

const char *payload(size_t size)
{
	static char *bytes;
	static size_t made;

	if (size > made) {
		bytes = realloc(bytes, size);
		for (; made < size; made++)
			bytes[made] = (char)(made * 7 + made / 251);
	}
	return bytes;
}

static bool readable(int sock, int timeout_ms)
{
	struct pollfd wanted = {.fd = sock, .events = POLLIN};

	return poll(&wanted, 1, timeout_ms) > 0;
}

void settle(int sock)
{
	readable(sock, 2000);
}

void expect(int sock, size_t size)
{
	char *bytes = malloc(size + 1);
	size_t got = 0;

	while (got < size && readable(sock, WAIT_MS)) {
		ssize_t n = recv(sock, bytes + got, size - got, MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN)
			continue;
		if (n < 0)
			told("recv", n);
		if (n <= 0)
			break;
		got += (size_t)n;
	}
	if (got == size && !memcmp(bytes, payload(size), size))
		say("echoed");
	else
		say("%zu of %zu bytes, %s", got, size,
		    memcmp(bytes, payload(size), got) ? "others" : "the right ones");
	free(bytes);
}

void expect_end(int sock)
{
	char byte;
	ssize_t n;

	do {
		if (!readable(sock, WAIT_MS)) {
			say("no end");
			return;
		}
		n = recv(sock, &byte, 1, MSG_DONTWAIT);
	} while (n < 0 && errno == EAGAIN);
	if (n)
		told("instead-of-end", n);
	else
		say("end");
}

static void run(const struct check *check)
{
	int status;
	pid_t pid;

	printf("%s:", check->name);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		signal(SIGPIPE, SIG_IGN);
		alarm(LIMIT_S);
		check->run(connected());
		exit(0);
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		say("killed by %s", sigabbrev_np(WTERMSIG(status)));
	putchar('\n');
}

static bool is_chosen(const char *name, char **names)
{
	if (!*names)
		return true;
	for (; *names; names++)
		if (!strcmp(name, *names))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	static const struct check *const groups[] = {sends, receives, waits, options, ends};
	struct sockaddr_in *v4 = (struct sockaddr_in *)&server;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&server;

	if (argc < 3) {
		fprintf(stderr, "Usage: sweep ADDRESS PORT [CHECK...]\n");
		return 2;
	}
	if (inet_pton(AF_INET, argv[1], &v4->sin_addr) == 1) {
		server.ss_family = AF_INET;
		server_len = sizeof(*v4);
	} else if (inet_pton(AF_INET6, argv[1], &v6->sin6_addr) == 1) {
		server.ss_family = AF_INET6;
		server_len = sizeof(*v6);
	} else {
		fprintf(stderr, "sweep: %s is no address\n", argv[1]);
		return 2;
	}
	v4->sin_port = htons((uint16_t)atoi(argv[2])); /* same offset in both families */
	for (size_t i = 0; i < sizeof(groups) / sizeof(*groups); i++)
		for (const struct check *check = groups[i]; check->name; check++)
			if (is_chosen(check->name, argv + 3))
				run(check);
	return 0;
}
