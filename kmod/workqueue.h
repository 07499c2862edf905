/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The workqueue of everything that cannot be done in softirq: accepting, closing, and echoing when
 * inline=0 or when softirq had to stop. Made before, and destroyed after, all that uses it.
 */
#ifndef FASTECHO_WORKQUEUE_H
#define FASTECHO_WORKQUEUE_H

#include <linux/workqueue.h>

extern struct workqueue_struct *fastecho_workqueue;

#endif
