/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* SipHash-2-4 (Aumasson and Bernstein, 2012), by words. Compiled into bpf/mirror.c, and natively for the tests. */
#ifndef KECHO_SIPHASH_H
#define KECHO_SIPHASH_H

#define SIPHASH_INLINE static inline __attribute__((always_inline))

struct siphash {
	unsigned long long v0, v1, v2, v3;
};

SIPHASH_INLINE unsigned long long siphash_rotate(unsigned long long word, int bits)
{
	return word << bits | word >> (64 - bits);
}

SIPHASH_INLINE void siphash_round(struct siphash *sip)
{
	sip->v0 += sip->v1;
	sip->v1 = siphash_rotate(sip->v1, 13) ^ sip->v0;
	sip->v0 = siphash_rotate(sip->v0, 32);
	sip->v2 += sip->v3;
	sip->v3 = siphash_rotate(sip->v3, 16) ^ sip->v2;
	sip->v0 += sip->v3;
	sip->v3 = siphash_rotate(sip->v3, 21) ^ sip->v0;
	sip->v2 += sip->v1;
	sip->v1 = siphash_rotate(sip->v1, 17) ^ sip->v2;
	sip->v2 = siphash_rotate(sip->v2, 32);
}

/* The key is given as two little-endian halves. */
SIPHASH_INLINE struct siphash siphash_begin(unsigned long long key0, unsigned long long key1)
{
	return (struct siphash){key0 ^ 0x736f6d6570736575ull, key1 ^ 0x646f72616e646f6dull,
				key0 ^ 0x6c7967656e657261ull, key1 ^ 0x7465646279746573ull};
}

/* Adds the next eight bytes of the message, as a little-endian word. */
SIPHASH_INLINE void siphash_add(struct siphash *sip, unsigned long long word)
{
	sip->v3 ^= word;
	siphash_round(sip);
	siphash_round(sip);
	sip->v0 ^= word;
}

/* @rest: the last bytes of the message, fewer than eight; @size: that of the whole message. */
SIPHASH_INLINE unsigned long long siphash_end(struct siphash *sip, unsigned long long rest,
					      unsigned int size)
{
	siphash_add(sip, rest | (unsigned long long)size << 56);
	sip->v2 ^= 0xff;
	siphash_round(sip);
	siphash_round(sip);
	siphash_round(sip);
	siphash_round(sip);
	return sip->v0 ^ sip->v1 ^ sip->v2 ^ sip->v3;
}

#endif
