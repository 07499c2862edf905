/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What differs between the kernels that fastecho builds for; Kbuild looks the features up.
 */
#ifndef FASTECHO_COMPAT_H
#define FASTECHO_COMPAT_H

#include <linux/local_lock.h>
#include <linux/skbuff.h>
#include <linux/workqueue.h>
#include <net/sock.h>

/* From 6.17 on a workqueue is either WQ_UNBOUND or WQ_PERCPU; before, WQ_PERCPU may not exist. */
#ifdef FASTECHO_HAS_WQ_PERCPU
#define COMPAT_WQ_PERCPU WQ_PERCPU
#else
#define COMPAT_WQ_PERCPU 0
#endif

/* Has @sk copy what it sends into its own page fragment, never into that of the task it happens to
 * interrupt. */
static inline void compat_sock_own_frag(struct sock *sk)
{
#ifdef FASTECHO_HAS_USE_TASK_FRAG
	sk->sk_use_task_frag = false;
#endif
}

/*
 * What is per CPU and belongs to whoever has BH off needs a lock as well where PREEMPT_RT lets BH
 * sections preempt one another (from 6.18 on). Elsewhere this costs nothing.
 */
#ifdef FASTECHO_HAS_LOCAL_LOCK_NESTED_BH
#define compat_local_lock_nested_bh(lock)   local_lock_nested_bh(lock)
#define compat_local_unlock_nested_bh(lock) local_unlock_nested_bh(lock)
#else
#define compat_local_lock_nested_bh(lock)   ((void)0)
#define compat_local_unlock_nested_bh(lock) ((void)0)
#endif

/* False if a CPU cannot read the fragments of @skb: they lie in a device's memory (from 6.12 on). */
static inline bool compat_skb_frags_readable(const struct sk_buff *skb)
{
#ifdef FASTECHO_HAS_FRAGS_READABLE
	return skb_frags_readable(skb);
#else
	return true;
#endif
}

#endif
