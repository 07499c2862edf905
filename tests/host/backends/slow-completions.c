// SPDX-License-Identifier: MIT
// Attached to io_uring_complete, holds a process up between receiving and looking for more.
#include <uapi/linux/bpf.h>

int hold_up(struct bpf_raw_tracepoint_args *ctx)
{
	u64 began = bpf_ktime_get_ns();

	if (bpf_get_current_pid_tgid() >> 32 != PID)
		return 0;
	for (int i = 0; i < 3000; i++)
		if (bpf_ktime_get_ns() - began > HOLD_NS)
			break;
	return 0;
}
