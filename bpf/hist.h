/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The slots of the log-linear histogram. Compiled into the BPF programs, and natively for the tests. */
#ifndef KECHO_HIST_H
#define KECHO_HIST_H

/*
 * An octave [2^n, 2^(n+1)) is split into 2^HIST_SUB_BITS equal slots. The middle of a slot differs from the values in it
 * by at most 6.25 %. Values below 2^HIST_SUB_BITS have a slot each. kecho/model/histogram.py is the twin of this file;
 * tests/unit/model/test_histogram.py compares the two.
 */
#define HIST_SUB_BITS 3
#define HIST_SUB      (1u << HIST_SUB_BITS)
/* The octaves HIST_SUB_BITS to 63, and a slot for each of the HIST_SUB values below. */
#define HIST_SLOTS ((64 - HIST_SUB_BITS + 1) * HIST_SUB)

#define HIST_INLINE static inline __attribute__((always_inline))

/*
 * 1 if @value, which is below 2^63, is not 0. It has no branch, since the BPF verifier follows both sides of each. The
 * first steps of hist_octave() can afford one: latencies hardly ever take it.
 */
HIST_INLINE unsigned long long hist_any(unsigned long long value)
{
	value = -value;
	asm volatile("" : "+r"(value)); /* keeps the compiler from making a branch */
	return value >> 63;
}

/* Finds the octave by bisection: BPF has no instruction that counts leading zeroes. */
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
