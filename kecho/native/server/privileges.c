// SPDX-License-Identifier: MIT
// Gives up capabilities and the user root for good.
#include "privileges.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/args.h"

static void become(uid_t uid)
{
	if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		die(EXIT_FAILED, "--uid: cannot become user %u: %s", uid, strerror(errno));
}

void privileges_drop(uid_t uid)
{
	static const struct __user_cap_data_struct nothing[_LINUX_CAPABILITY_U32S_3];
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	unsigned long cap = 0;

	/*
	 * Without CAP_SETPCAP the bounding set stays; no_new_privs makes it useless. The loop ends
	 * at the first number that the kernel does not know.
	 */
	while (!prctl(PR_CAPBSET_DROP, cap, 0, 0, 0))
		cap++;
	if (uid != KEEP_USER)
		become(uid);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) ||
	    syscall(SYS_capset, &header, nothing) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die(EXIT_FAILED, "cannot give up privileges: %s", strerror(errno));
}
