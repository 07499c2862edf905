/* SPDX-License-Identifier: MIT */
/*
 * The system-call sweep: what a client of an echo server sees of each system call, option and flag, a line a check.
 *
* A check runs in its own process, on its own connection. Its line has to be the same on every run against an ordinary
 * TCP server: no time, port, address or queue length that may vary.
 */
#ifndef SWEEP_H
#define SWEEP_H

#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

struct check {
	const char *name;
	void (*run)(int sock);
};

extern const struct check sends[], receives[], waits[], options[],
	ends[]; /* each ends with a NULL name */

extern struct sockaddr_storage server;
extern socklen_t server_len;

int connected(void); /* another connection, or the check ends */
void say(const char *format, ...)
	__attribute__((format(printf, 1, 2))); /* appends to the check's line */
void told(const char *what,
	  ssize_t result); /* says "what=result", or the name of errno where that is negative */

const char *payload(size_t size); /* the bytes to send, different at every offset */
void expect(
	int sock,
	size_t size); /* receives that many from the payload's start; says "echoed", or what came */
void expect_end(int sock); /* says "end" once the peer has closed, or what came */
void settle(int sock);	   /* returns once something can be received, or after two seconds */

#endif
