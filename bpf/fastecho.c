// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* The statistics of fastecho.ko: counts the events of its tracepoint, in the same form as sockmap.c. */
#include <uapi/linux/bpf.h>
#include "kecho.h"

/* KECHO_PATHS: the number of paths in fastecho.ko. */
BPF_PERCPU_ARRAY(paths, struct path_stats, KECHO_PATHS);

/* kmod/trace.h: path, bytes, ns. */
int kecho_count(struct bpf_raw_tracepoint_args *ctx)
{
	int path = ctx->args[0];
	struct path_stats *stats = paths.lookup(&path);
	__u64 slot = hist_slot(ctx->args[2]);

	if (!stats)
		return 0;
	stats->echoes++;
	stats->bytes += (__u32)ctx->args[1];
	if (slot < HIST_SLOTS) /* always true, for the verifier */
		stats->latency[slot]++;
	return 0;
}
