/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The module's parameters: set and checked by insmod, constant from then on.
 */
#ifndef FASTECHO_PARAMS_H
#define FASTECHO_PARAMS_H

#include <linux/types.h>

struct fastecho_params {
	unsigned int port;
	unsigned int backlog;
	unsigned int bench;	  /* 1: a per-CPU workqueue, 0: an unbound one */
	unsigned int inline_echo; /* 1: echo in softirq wherever that is possible */
	unsigned int max_conns;	  /* 0: no limit */
	char *bind;		  /* addresses, separated by commas; listener.c checks them */
};

extern struct fastecho_params fastecho_params;

/* True if insmod was given no addresses. Those that this machine lacks may then be left out. */
bool fastecho_params_bind_is_default(void);

#endif
