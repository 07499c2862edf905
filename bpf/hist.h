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

/* BPF has no instruction that counts leading zeroes before version 4 of its ISA: find the octave by halving. */
HIST_INLINE unsigned long long hist_octave(unsigned long long value)
{
	unsigned long long octave = 0;

	if (value >> 32) {
		octave += 32;
		value >>= 32;
	}
	if (value >> 16) {
		octave += 16;
		value >>= 16;
	}
	if (value >> 8) {
		octave += 8;
		value >>= 8;
	}
	if (value >> 4) {
		octave += 4;
		value >>= 4;
	}
	if (value >> 2) {
		octave += 2;
		value >>= 2;
	}
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
