/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What differs between the kernels that fastecho builds for; Kbuild looks the features up.
 */
#ifndef FASTECHO_COMPAT_H
#define FASTECHO_COMPAT_H

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

#endif
