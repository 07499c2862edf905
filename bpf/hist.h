/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The log-linear histogram: which slot counts a value. Compiled into the BPF programs and, for the tests, natively. */
#ifndef KECHO_HIST_H
#define KECHO_HIST_H

/*
 * An octave [2^n, 2^(n+1)) is split into 2^HIST_SUB_BITS equal slots, so a value is known to within 1/8 of its
 * octave's base: reported as the middle of its slot it is off by 6.25 % at most. Values below 2^HIST_SUB_BITS
 * have a slot each. kecho/model/histogram.py is the twin of this file; tests/unit/model/test_histogram.py holds them together.
 */
#define HIST_SUB_BITS 3
#define HIST_SUB      (1u << HIST_SUB_BITS)
/* Octaves HIST_SUB_BITS to 63, and the HIST_SUB values below them. */
#define HIST_SLOTS ((64 - HIST_SUB_BITS + 1) * HIST_SUB)

#define HIST_INLINE static inline __attribute__((always_inline))

/*
 * 1 if @value, below 2^63, is not 0. Without a branch: the BPF verifier follows both ways of each, which it can afford for
 * the first ones below, that hardly any latency takes.
 */
HIST_INLINE unsigned long long hist_any(unsigned long long value)
{
	value = -value;
	asm volatile("" : "+r"(value)); /* or the compiler makes a branch of it */
	return value >> 63;
}

/* BPF has no instruction that counts leading zeroes before version 4 of its ISA: find the octave by halving. */
HIST_INLINE unsigned long long hist_octave(unsigned long long value)
{
	unsigned long long octave = 0, half;

	if (value >> 32) {
		octave += 32;
		value >>= 32;
	}
	if (value >> 16) {
		octave += 16;
		value >>= 16;
	}
	half = hist_any(value >> 8) << 3;
	octave += half;
	value >>= half;
	half = hist_any(value >> 4) << 2;
	octave += half;
	value >>= half;
	half = hist_any(value >> 2) << 1;
	octave += half;
	value >>= half;
	return octave + (value >> 1);
}

/* The slot of @value, in [0, HIST_SLOTS). */
HIST_INLINE unsigned long long hist_slot(unsigned long long value)
{
	unsigned long long octave;

	if (value < HIST_SUB)
		return value;
	octave = hist_octave(value);
	return ((octave - HIST_SUB_BITS) << HIST_SUB_BITS) + (value >> (octave - HIST_SUB_BITS));
}

#endif
