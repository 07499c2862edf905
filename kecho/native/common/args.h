/* SPDX-License-Identifier: MIT */
/* The argument parsing that both programs share, and how errors are told. */
#ifndef KECHO_NATIVE_ARGS_H
#define KECHO_NATIVE_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum exit_code {
	EXIT_DONE = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_CANNOT = 3,
	EXIT_PORT_TAKEN = 4
};

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

/*
 * An option of a command line, and what becomes of its value: `parse` stores it at `to`, or dies as
 * the parsers above do. Without `parse` it takes no value and sets a bool.
 */
struct arg {
	const char *name; /* "--port" */
	void (*parse)(const struct arg *arg, const char *text);
	void *to;
	size_t bytes;		/* of the integer there */
	uint64_t least, most;	/* of a whole number */
	double lowest, highest; /* of another one */
	bool bare;		/* it may come without a value: text is then NULL */
	const void *tag;	/* what else the program has to know */
};

#define ARG_WHOLE(option, how, field, min, max)                                                    \
	{                                                                                          \
		.name = (option), .parse = (how), .to = &(field), .bytes = sizeof(field),          \
		.least = (min), .most = (max)                                                      \
	}
#define ARG_NUMBER(option, field, min, max) ARG_WHOLE(option, arg_number, field, min, max)
#define ARG_SIZE(option, field, min, max)   ARG_WHOLE(option, arg_size, field, min, max)
#define ARG_SECONDS(option, field, min, max)                                                       \
	{                                                                                          \
		.name = (option), .parse = arg_seconds_ns, .to = &(field), .lowest = (min),        \
		.highest = (max)                                                                   \
	}
#define ARG_TEXT(option, field)                                                                    \
	{                                                                                          \
		.name = (option), .parse = arg_text, .to = &(field)                                \
	}
#define ARG_FLAG(option, field)                                                                    \
	{                                                                                          \
		.name = (option), .to = &(field)                                                   \
	}
#define ARG_OWN(option, how, field)                                                                \
	{                                                                                          \
		.name = (option), .parse = (how), .to = &(field)                                   \
	}

void arg_number(const struct arg *arg, const char *text); /* any integer, not below 0 */
void arg_size(const struct arg *arg, const char *text);
void arg_seconds_ns(const struct arg *arg, const char *text); /* uint64_t */
void arg_decimal(const struct arg *arg, const char *text);    /* double */
void arg_text(const struct arg *arg, const char *text);	      /* const char * */

/*
 * Reads a whole command line, which has --help too. Calls given(), if there is one, for each option
 * that comes.
 */
void args_parse(const struct arg *args, size_t n, int argc, char **argv, const char *usage,
		void (*given)(const struct arg *arg, void *context), void *context);

#endif
