// SPDX-License-Identifier: MIT
// Parses the command lines of both programs, and prints errors in one line.
#include "common/args.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *program_name = "?";

/* Prints one line without control characters, whatever the arguments contain. */
static void print_line(const char *format, va_list args)
{
	char line[512];

	vsnprintf(line, sizeof(line), format, args);
	for (char *at = line; *at; at++)
		if ((unsigned char)*at < ' ' || *at == 0x7f)
			*at = '?';
	fprintf(stderr, "%s: %s\n", program_name, line);
}

void complain(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print_line(format, args);
	va_end(args);
}

void die(enum exit_code code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print_line(format, args);
	va_end(args);
	exit((int)code);
}

/* Accepts only decimal digits; strtoull() would take "-1", " 1" and "". */
static bool scan_digits(const char *text, char **end, uint64_t *value)
{
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*value = strtoull(text, end, 10);
	return errno == 0;
}

uint64_t parse_number(const char *option, const char *text, uint64_t lowest, uint64_t highest)
{
	uint64_t value;
	char *end;

	if (!scan_digits(text, &end, &value) || *end || value < lowest || value > highest)
		die(EXIT_USAGE, "%s must be a whole number from %llu to %llu, not \"%s\"", option,
		    (unsigned long long)lowest, (unsigned long long)highest, text);
	return value;
}

uint64_t parse_size(const char *option, const char *text, uint64_t lowest, uint64_t highest)
{
	uint64_t value, unit = 1;
	char *end = NULL;
	bool good = scan_digits(text, &end, &value);

	if (good && (*end == 'K' || *end == 'k' || *end == 'M' || *end == 'm'))
		unit = *end == 'K' || *end == 'k' ? 1024 : 1024 * 1024, end++;
	if (!good || *end || value > highest / unit || value * unit < lowest)
		die(EXIT_USAGE,
		    "%s must be a size from %llu to %llu bytes (K and M may follow), not \"%s\"",
		    option, (unsigned long long)lowest, (unsigned long long)highest, text);
	return value * unit;
}

double parse_decimal(const char *option, const char *text, double lowest, double highest)
{
	double value;
	char *end;

	errno = 0;
	value = strtod(text, &end);
	if (end == text || *end || errno || !isfinite(value) || value < lowest || value > highest)
		die(EXIT_USAGE, "%s must be a number from %g to %g, not \"%s\"", option, lowest,
		    highest, text);
	return value;
}

uint64_t parse_seconds_ns(const char *option, const char *text, double lowest, double highest)
{
	return (uint64_t)(parse_decimal(option, text, lowest, highest) * 1e9);
}

void parse_address(const char *option, const char *text, uint16_t port, struct address *address)
{
	struct addrinfo hints = {
		.ai_flags = AI_NUMERICHOST,
		.ai_socktype = SOCK_STREAM,
	};
	struct addrinfo *found;
	bool v6;

	/*
	 * getaddrinfo() takes "1" and "127.1" for addresses, as inet_aton() does; here they are
	 * typing errors.
	 */
	if (!strchr(text, ':') && inet_pton(AF_INET, text, &(struct in_addr){0}) != 1)
		goto err_not_an_address;
	if (getaddrinfo(text, NULL, &hints, &found))
		goto err_not_an_address;
	memcpy(&address->sa, found->ai_addr, found->ai_addrlen);
	address->sa_len = found->ai_addrlen;
	freeaddrinfo(found);

	v6 = address->sa.ss_family == AF_INET6;
	if (v6)
		((struct sockaddr_in6 *)&address->sa)->sin6_port = htons(port);
	else
		((struct sockaddr_in *)&address->sa)->sin_port = htons(port);
	snprintf(address->text, sizeof(address->text), v6 ? "[%.64s]:%u" : "%.64s:%u", text, port);
	return;

err_not_an_address:
	die(EXIT_USAGE, "%s must be a numeric IPv4 or IPv6 address, not \"%s\"", option, text);
}

static void store(const struct arg *arg, uint64_t value)
{
	switch (arg->bytes) {
	case sizeof(uint16_t):
		*(uint16_t *)arg->to = (uint16_t)value;
		break;
	case sizeof(uint32_t):
		*(uint32_t *)arg->to = (uint32_t)value;
		break;
	default:
		*(uint64_t *)arg->to = value;
	}
}

void arg_number(const struct arg *arg, const char *text)
{
	store(arg, parse_number(arg->name, text, arg->least, arg->most));
}

void arg_size(const struct arg *arg, const char *text)
{
	store(arg, parse_size(arg->name, text, arg->least, arg->most));
}

void arg_seconds_ns(const struct arg *arg, const char *text)
{
	*(uint64_t *)arg->to = parse_seconds_ns(arg->name, text, arg->lowest, arg->highest);
}

void arg_decimal(const struct arg *arg, const char *text)
{
	*(double *)arg->to = parse_decimal(arg->name, text, arg->lowest, arg->highest);
}

void arg_text(const struct arg *arg, const char *text)
{
	*(const char **)arg->to = text;
}

/* The table for getopt_long(), with --help at its end. The caller frees it. */
static struct option *long_options(const struct arg *args, size_t n)
{
	struct option *longs = calloc(n + 2, sizeof(*longs));

	if (!longs)
		die(EXIT_FAILED, "out of memory");
	for (size_t i = 0; i < n; i++) {
		longs[i].name = args[i].name + strlen("--");
		longs[i].has_arg = args[i].bare	   ? optional_argument
				   : args[i].parse ? required_argument
						   : no_argument;
	}
	longs[n].name = "help";
	return longs;
}

void args_parse(const struct arg *args, size_t n, int argc, char **argv, const char *usage,
		void (*given)(const struct arg *arg, void *context), void *context)
{
	struct option *longs = long_options(args, n);
	int which, got;

	while ((got = getopt_long(argc, argv, "", longs, &which)) != -1) {
		const struct arg *arg;

		if (got)
			exit(EXIT_USAGE); /* getopt_long() has printed why */
		if ((size_t)which == n) {
			fputs(usage, stdout);
			exit(EXIT_DONE);
		}
		arg = &args[which];
		if (arg->parse)
			arg->parse(arg, optarg);
		else
			*(bool *)arg->to = true;
		if (given)
			given(arg, context);
	}
	free(longs);
	if (optind < argc)
		die(EXIT_USAGE, "unexpected argument \"%s\"", argv[optind]);
}
