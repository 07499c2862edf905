/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Connection counters, exact and readable by everybody: /sys/module/fastecho/connections/
 *   listening addresses that connections are accepted on now
 *   active    connections being served now
 *   total     connections ever served, active ones included
 *   rejected  connections reset at accept: max_conns reached, no memory, or in a sockmap already
 *   aborted   served connections that ended by a reset or an error, not by the FINs of both sides
 *
 * They change when a connection begins or ends, not with each message. Any context may change them.
 */
#ifndef FASTECHO_COUNTERS_H
#define FASTECHO_COUNTERS_H

#include <linux/atomic.h>

struct fastecho_counters {
	atomic_t listening;
	atomic_t active;
	atomic64_t total;
	atomic64_t rejected;
	atomic64_t aborted;
};

extern struct fastecho_counters fastecho_counters;

int fastecho_counters_init(void);
void fastecho_counters_uninit(void);

#endif
