// SPDX-License-Identifier: MIT
// Parses what both programs take on their command lines, and tells errors in one line.
#include "args.h"

#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *program_name = "?";

/* One line, whatever is in the arguments that it quotes, and nothing that a terminal would obey. */
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
	exit(code);
}

/* Decimal digits and nothing else; strtoull() would take "-1", " 1" and "". */
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
	 * inet_aton()'s "1" and "127.1" are addresses to getaddrinfo(); to a person they are typing
	 * errors.
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
