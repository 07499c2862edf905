/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Shared by all programs of sockmap.c: the paths, their counters, and reading fields of kernel structures. */

/* The paths, in the order of PATHS in kecho/backends/sockmap.py. */
#define PATH_EGRESS  0
#define PATH_INGRESS 1
#define PATH_SKB     2
#define PATH_USER    3 /* counted by the server; here it only marks a connection */
#define PATHS	     3

BPF_PERCPU_ARRAY(paths, struct path_stats, PATHS);

/* Atomic, since sk_msg programs can be preempted within a plain ++. */
#define COUNT(counter, more) __sync_fetch_and_add(&(counter), more)

/* A u32 field of a kernel structure: a plain load that the verifier checks, without bpf_probe_read_kernel(). */
#define FIELD(ptr, name) (*(__u32 *)((void *)(ptr) + KECHO_OFF_##name))

/* A pointer field. Reading through a NULL pointer gives 0. */
#define POINTER_FIELD(ptr, name) (*(void **)((void *)(ptr) + KECHO_OFF_##name))

static __always_inline void count_echo(struct path_stats *stats, __u32 size)
{
	COUNT(stats->echoes, 1);
	COUNT(stats->bytes, size);
}

static __always_inline void count_latency(struct path_stats *stats, __u64 from_ns)
{
	__u64 slot = hist_slot(bpf_ktime_get_ns() - from_ns);

	if (slot < HIST_SLOTS) /* always true, for the verifier */
		COUNT(stats->latency[slot], 1);
}
