/* SPDX-License-Identifier: MIT */
/* Gives up what a server of strangers does not need once it listens. */
#ifndef KECHO_NATIVE_PRIVILEGES_H
#define KECHO_NATIVE_PRIVILEGES_H

#include <sys/types.h>

/* privileges_drop(): do not change the user. */
#define KEEP_USER ((uid_t)-1)

/*
 * From here on this process has no capability, no way to get one, and is the user and group `uid`,
 * with no other group. To be called before there is a second thread: each has privileges of its own.
 * Resets what die_with_parent() asked for. Exits if the kernel refuses.
 */
void privileges_drop(uid_t uid);

#endif
