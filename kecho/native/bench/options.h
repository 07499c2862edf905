/* SPDX-License-Identifier: MIT */
/* bench's options. */
#ifndef KECHO_NATIVE_OPTIONS_H
#define KECHO_NATIVE_OPTIONS_H

#include "common/args.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mode;

#define NO_LIMIT UINT64_MAX

struct options {
	const struct mode *mode;
	const char *host;
	uint16_t port;
	struct address address;
	unsigned int connections;
	unsigned int threads;
	size_t size_bytes;
	uint64_t count;	      /* measured requests, or NO_LIMIT */
	uint64_t duration_ns; /* or NO_LIMIT */
	uint64_t warmup_ns;
	const char *service; /* the processes that serve, for their CPU time; or NULL */
	uint64_t look_ns;    /* at the CPU time of others, before anything begins */
	uint64_t connect_timeout_ns;
	uint64_t io_timeout_ns;
	unsigned int busy_poll_us; /* look for a reply so long before sleeping */
	uint64_t seed;
	unsigned int bursts;
	double rate;	    /* open: requests a second, over all threads */
	unsigned int depth; /* pipeline: requests in flight on a connection */
	const char *hdr;    /* file names, or NULL */
	const char *raw;
	const unsigned int *cpus; /* thread i runs on cpus[i % ncpus] */
	unsigned int ncpus;	  /* 0: the scheduler chooses */
	bool json;
	bool progress;
	bool dry_run; /* only check the options */
	bool hold;    /* wait for a line on stdin between warm-up and measured phase */
};

/* Dies with EXIT_USAGE on an error. */
void options_parse(struct options *o, int argc, char **argv);
void options_free(struct options *o);

#endif
