/* SPDX-License-Identifier: MIT */
/* The layout of the counters that user-echo-server keeps in the file of --stats-fd. */
#ifndef KECHO_NATIVE_STATS_H
#define KECHO_NATIVE_STATS_H

#include <stdint.h>

/*
 * The file is one header, then header.blocks blocks, one a thread. All fields are native-endian
 * u64. A reader takes the size of header and block from the header, so that both may grow; the
 * magic is stored last, so a reader that sees it sees a valid header. Each counter has one writer,
 * its thread; a reader adds up the blocks and may see a sum in the making, never a torn counter.
 */
#define STATS_MAGIC   0x3154534f4843454bull /* "KECHOST1" in a little-endian file */
#define STATS_VERSION 1ull
#define STATS_ALIGN   128 /* two cache lines: the prefetcher fetches them in pairs */

struct stats_header {
	uint64_t magic;
	uint64_t version;
	uint64_t header_bytes; /* where the first block begins */
	uint64_t block_bytes;
	uint64_t blocks;
} __attribute__((aligned(STATS_ALIGN)));

struct stats_block {
	uint64_t active;   /* connections now open */
	uint64_t total;	   /* connections ever accepted to be served */
	uint64_t rejected; /* connections reset at once, for want of descriptors or memory */
	uint64_t aborted;  /* connections that ended in an error: reset, timed out */
	uint64_t echoes;   /* payloads taken in by one receive and handed back whole */
	uint64_t bytes;	   /* bytes handed back */
} __attribute__((aligned(STATS_ALIGN)));

/* For the one thread that owns the block; a plain add for the CPU, a whole value for the reader. */
static inline void stats_add(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

#endif
