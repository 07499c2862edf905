/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Types that the BPF programs share with each other and with kecho/kernel/bpf.py. */
#ifndef KECHO_H
#define KECHO_H

#include "hist.h"

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
