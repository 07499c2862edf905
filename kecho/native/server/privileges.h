/* SPDX-License-Identifier: MIT */
/* Gives up the privileges that the server does not need once it listens. */
#ifndef KECHO_NATIVE_PRIVILEGES_H
#define KECHO_NATIVE_PRIVILEGES_H

#include <sys/types.h>

/* For privileges_drop(): does not change the user. */
#define KEEP_USER ((uid_t)~0U)

/*
 * Becomes user and group `uid`, with no other group, and gives up all capabilities for good. To be
 * called while there is one thread, since each thread has privileges of its own. Clears the signal
 * of die_with_parent(). Exits if the kernel refuses.
 */
void privileges_drop(uid_t uid);

#endif
