/* SPDX-License-Identifier: MIT */
/* Arguments and error messages of both programs. */
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

/* A numeric IPv4 or IPv6 address with a port, also as text: "127.0.0.1:12345", "[::1]:12345". */
struct address {
	struct sockaddr_storage sa;
	socklen_t sa_len;
	char text[80];
};

/* Every error line begins with it. main() has to set it first. */
extern const char *program_name;

/* Prints one line on stderr, prefixed with the program's name, and exits. */
_Noreturn void die(enum exit_code code, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* As die(), without exiting. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The parsers die with EXIT_USAGE and a line that names the option. */
uint64_t parse_number(const char *option, const char *text, uint64_t lowest, uint64_t highest);
/* As parse_number(), with suffixes: "16K" is 16 * 1024, "1M" is 1024 * 1024. */
uint64_t parse_size(const char *option, const char *text, uint64_t lowest, uint64_t highest);
/* Converts decimal seconds, such as "0.5", to nanoseconds. */
uint64_t parse_seconds_ns(const char *option, const char *text, double lowest, double highest);
double parse_decimal(const char *option, const char *text, double lowest, double highest);
void parse_address(const char *option, const char *text, uint16_t port, struct address *address);

/*
 * An option of a command line. `parse` stores its value at `to`, or dies as the parsers above do.
 * Without `parse` the option takes no value and sets a bool.
 */
struct arg {
	const char *name; /* "--port" */
	void (*parse)(const struct arg *arg, const char *text);
	void *to;
	size_t bytes;		/* of the integer there */
	uint64_t least, most;	/* for integers */
	double lowest, highest; /* for other numbers */
	bool bare;		/* the value may be missing: text is then NULL */
	const void *tag;	/* for the program's own use */
};

/* Releases of clang-format disagree about the braces of such macros. */
/* clang-format off */
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
/* clang-format on */

void arg_number(const struct arg *arg, const char *text); /* an unsigned integer of any size */
void arg_size(const struct arg *arg, const char *text);
void arg_seconds_ns(const struct arg *arg, const char *text); /* uint64_t */
void arg_decimal(const struct arg *arg, const char *text);    /* double */
void arg_text(const struct arg *arg, const char *text);	      /* const char * */

/*
 * Parses a command line, which has --help too. Calls given(), unless that is NULL, for each option
 * that it finds.
 */
void args_parse(const struct arg *args, size_t n, int argc, char **argv, const char *usage,
		void (*given)(const struct arg *arg, void *context), void *context);

#endif
