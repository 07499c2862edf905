/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Differences between the kernels that fastecho builds for. Kbuild probes the features.
 */
#ifndef FASTECHO_COMPAT_H
#define FASTECHO_COMPAT_H

#include <linux/local_lock.h>
#include <linux/skbuff.h>
#include <linux/workqueue.h>
#include <net/sock.h>

/* From 6.17 on a workqueue is either WQ_UNBOUND or WQ_PERCPU. Older kernels may lack WQ_PERCPU. */
#ifdef FASTECHO_HAS_WQ_PERCPU
#define COMPAT_WQ_PERCPU WQ_PERCPU
#else
#define COMPAT_WQ_PERCPU 0
#endif

/* Makes @sk copy what it sends into its own page fragment, not that of the interrupted task. */
static inline void compat_sock_own_frag(struct sock *sk)
{
#ifdef FASTECHO_HAS_USE_TASK_FRAG
	sk->sk_use_task_frag = false;
#endif
}

/*
 * Per-CPU data that disabling BH protects needs a lock as well under PREEMPT_RT, where BH sections
 * can preempt each other (from 6.18 on). Elsewhere this costs nothing.
 */
#ifdef FASTECHO_HAS_LOCAL_LOCK_NESTED_BH
#define compat_local_lock_nested_bh(lock)   local_lock_nested_bh(lock)
#define compat_local_unlock_nested_bh(lock) local_unlock_nested_bh(lock)
#else
#define compat_local_lock_nested_bh(lock)   ((void)0)
#define compat_local_unlock_nested_bh(lock) ((void)0)
#endif

/* False if the fragments of @skb are in device memory, which a CPU cannot read (from 6.12 on). */
static inline bool compat_skb_frags_readable(const struct sk_buff *skb)
{
#ifdef FASTECHO_HAS_FRAGS_READABLE
	return skb_frags_readable(skb);
#else
	return true;
#endif
}

#endif
