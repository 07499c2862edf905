/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the BPF programs share with each other and with kecho/kernel. */
#ifndef KECHO_H
#define KECHO_H

#include "hist.h"

/*
 * A number that differs from service to service. kecho/kernel/compiler.py passes it as -DKECHO_NAME=SETTING(NUMBER) and
 * finds the instruction by its marker; the value is put in when the program is loaded. So one object serves all services,
 * and a secret is in none. The compiler does not know the value, the verifier does.
 */
#define SETTING(number)                                                                            \
	({                                                                                         \
		unsigned long long value;                                                          \
		asm("%0 = 0x6b6563686f0000" #number " ll" : "=r"(value));                          \
		value;                                                                             \
	})

/*
 * The counts of one path on one CPU: the value of the per-CPU array `paths`, whose index is the path. An echo is one
 * verdict that redirects: one sk_msg on paths egress and ingress, one skb on path skb.
 */
struct path_stats {
	unsigned long long echoes;
	unsigned long long bytes;
	unsigned long long fallbacks; /* changes from this path to path user */
	unsigned long long latency[HIST_SLOTS];
};

#endif
