/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The workqueue for what cannot be done in softirq: accepting, closing, and echoing with inline=0
 * or where softirq had to stop. It must be made before and destroyed after all its users.
 */
#ifndef FASTECHO_WORKQUEUE_H
#define FASTECHO_WORKQUEUE_H

#include <linux/workqueue.h>

extern struct workqueue_struct *fastecho_workqueue;

#endif
