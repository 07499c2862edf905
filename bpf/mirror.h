/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* How far the mirror's sequence numbers are from the client's. Compiled into bpf/mirror.c and, for the tests, natively. */
#ifndef KECHO_MIRROR_H
#define KECHO_MIRROR_H

/* Data that a client may have under way, at most. What is further from what it acknowledges is not ours. */
#define MOST_UNDER_WAY (1 << 28)

/*
 * The shift that a connection's hash stands for. Bit 30 is 0, bits 29 and 28 differ: so the sum of any two shifts is at
 * least 2 * MOST_UNDER_WAY away from 0, modulo 2^31, and what one mirror has turned round is to no other mirror a
 * segment of its own. They cannot be set on each other.
 */
static inline __attribute__((always_inline)) unsigned int mirror_shift(unsigned long long hash)
{
	return (hash & 0xafffffff) | (~hash >> 1 & 0x10000000);
}

#endif
