// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The sockmap echo. ../docs/design.md, section 3, explains the rules.
 *
 *   kecho_register      cgroup sock_ops: puts both ends of our connections into the maps of the verdicts (register.h)
 *   kecho_egress_echo   sk_msg on `clients`: path egress, from a local client's send out of the server's end (egress.h)
 *   kecho_ingress_echo  sk_msg on `clients`: path ingress, from a local client's send to its own receive queue (ingress.h)
 *   kecho_local_sent    tracing: ends the latency of these two paths (local.h)
 *   kecho_skb_echo      sk_skb on `servers`: path skb, from the wire back to the wire (remote.h)
 *   kecho_skb_sent      sk_msg on `servers`: ends the latency of path skb (remote.h)
 *
 * kecho/backends/sockmap.py gives the settings KECHO_PORT and KECHO_NETNS (cookie) when it loads the programs, and as -D
 * KECHO_LIMIT (bytes), KECHO_MAX_CONNS, KECHO_CPUS, KECHO_LATENCY (0, 1), KECHO_PATH_LOCAL and KECHO_PATH_REMOTE (a PATH_*),
 * KECHO_WMEM_MIN (bytes, of net.ipv4.tcp_wmem), KECHO_SOCK_ZEROCOPY (number of the flag), and KECHO_OFF_*, the offsets of
 * fields in the running kernel's structures. The last two come from its BTF.
 *
 * The key of all maps is a socket's address in the kernel. It is unique while the socket lives, costs nothing to find,
 * and unlike the cookie is available in sk_msg programs and tracepoints.
 */
#include <uapi/linux/bpf.h>
#include "kecho.h"
#include "common.h"
#include "local.h"
#include "egress.h"
#include "ingress.h"
#include "remote.h"
#include "register.h"
