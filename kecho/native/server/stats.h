/* SPDX-License-Identifier: MIT */
/* The layout of the counters that user-echo-server keeps in the file of --stats-fd. */
#ifndef KECHO_NATIVE_STATS_H
#define KECHO_NATIVE_STATS_H

#include "bpf/hist.h"

#include <stdint.h>

/*
 * The file has one header and then header.blocks blocks, one for each thread. A block has a struct
 * stats_block and then header.cpus times a struct latency. All fields are native-endian u64. A
 * reader takes the sizes of header and block from the header, so that both may grow. The magic is
 * stored last: a reader that sees it sees a valid header. Each counter has one writer, its thread,
 * and is never torn. A reader adds up the blocks.
 */
#define STATS_MAGIC   0x3154534f4843454bull /* "KECHOST1" in a little-endian file */
#define STATS_VERSION 1ull
#define STATS_ALIGN   128 /* two cache lines, since the prefetcher fetches pairs */

struct stats_header {
	uint64_t magic;
	uint64_t version;
	uint64_t header_bytes; /* where the first block begins */
	uint64_t block_bytes;
	uint64_t blocks;
	uint64_t cpus; /* 0 if the engine does not measure latency */
} __attribute__((aligned(STATS_ALIGN)));

struct stats_block {
	uint64_t active;   /* connections now open */
	uint64_t total;	   /* connections ever accepted to be served */
	uint64_t rejected; /* connections reset at once, without a descriptor or memory for them */
	uint64_t aborted;  /* connections that ended with an error: reset, timed out */
	uint64_t echoes;   /* payloads received at once and sent back as a whole */
	uint64_t bytes;	   /* bytes sent back */
} __attribute__((aligned(STATS_ALIGN)));

/*
 * The latency of a thread's echoes on one CPU, in nanoseconds: from the moment it sees that a
 * payload is there to the moment the last byte has been sent. An echo is counted once.
 */
struct latency {
	uint64_t counts[HIST_SLOTS];
} __attribute__((aligned(STATS_ALIGN)));

/* For the thread that owns the block. A plain add for the CPU; readers never see a torn value. */
static inline void stats_add(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

#endif
