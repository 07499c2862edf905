/* SPDX-License-Identifier: MIT */
/* The argument parsing that both programs share, and how errors are told. */
#ifndef KECHO_NATIVE_ARGS_H
#define KECHO_NATIVE_ARGS_H

#include <stdint.h>
#include <sys/socket.h>

enum exit_code { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_CANNOT = 3 };

/*
 * A numeric IPv4 or IPv6 address with a port, and how to print it: "127.0.0.1:12345",
 * "[::1]:12345".
 */
struct address {
	struct sockaddr_storage sa;
	socklen_t sa_len;
	char text[80];
};

/* Set first thing in main(): what every error line begins with. */
extern const char *program_name;

/* One line on stderr, prefixed with the program's name; then exit. */
_Noreturn void die(enum exit_code code, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* The same without the exit. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The parsers die with EXIT_USAGE and a line that names the option. */
uint64_t parse_number(const char *option, const char *text, uint64_t lowest, uint64_t highest);
/* As parse_number(), and "16K" and "1M" count in units of 1024 and 1024 * 1024. */
uint64_t parse_size(const char *option, const char *text, uint64_t lowest, uint64_t highest);
/* Decimal seconds, "0.5", to nanoseconds. */
uint64_t parse_seconds_ns(const char *option, const char *text, double lowest, double highest);
double parse_decimal(const char *option, const char *text, double lowest, double highest);
void parse_address(const char *option, const char *text, uint16_t port, struct address *address);

#endif
