/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The shift between the mirror's and the client's sequence numbers. Compiled into bpf/mirror.c, and natively for tests. */
#ifndef KECHO_MIRROR_H
#define KECHO_MIRROR_H

/* The most data that a client may have in flight. A segment further from what it acknowledges is not ours. */
#define MOST_IN_FLIGHT (1 << 28)

/*
 * The shift of a connection, from its hash. Bit 30 is 0, and bits 29 and 28 differ. So the sum of any two shifts is at
 * least 2 * MOST_IN_FLIGHT away from 0, modulo 2^31, and no mirror takes a segment that another has turned round for its
 * own. Two mirrors cannot be made to answer each other.
 */
static inline __attribute__((always_inline)) unsigned int mirror_shift(unsigned long long hash)
{
	return (hash & 0xafffffff) | (~hash >> 1 & 0x10000000);
}

#endif
