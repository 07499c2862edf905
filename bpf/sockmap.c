// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The sockmap echo: three hooks and what they share. ../docs/design.md, section 3, explains the rules.
 *
 *   kecho_register  cgroup sock_ops: puts both ends of our connections where the verdicts find them
 *   kecho_msg_echo  sk_msg on `clients`: path msg, from a local client's send to its own receive queue
 *   kecho_skb_echo  sk_skb on `servers`: path skb, from the wire back to the wire
 *   kecho_skb_sent  sk_msg on `servers`: ends the latency of path skb
 *   kecho_msg_sent  tracing: ends the latency of path msg
 *
 * Settings arrive as -D from kecho/kernel/bpf.py: KECHO_PORT, KECHO_NETNS (cookie), KECHO_LIMIT (bytes),
 * KECHO_MAX_CONNS, KECHO_CPUS, KECHO_LATENCY (0, 1), KECHO_SEND_HOOK, KECHO_PATH_LOCAL and KECHO_PATH_REMOTE (a PATH_*),
 * and KECHO_OFF_*, the offsets of fields in the running kernel's structures, as its BTF gives them.
 *
 * A socket is known to every hook by its address in the kernel, which is the key of all maps. It is unique while
 * the socket lives, costs nothing to find, and unlike the cookie is at hand in sk_msg and in tracepoints.
 */
#include <uapi/linux/bpf.h>
#include "kecho.h"

/* The paths, in the order of PATHS in kecho/backends/sockmap.py. */
#define PATH_MSG  0
#define PATH_SKB  1
#define PATH_USER 2 /* kept by the controller; here it only marks a connection */
#define PATHS	  2

/* KECHO_SEND_HOOK: what tells that the send of a local client returned; SEND_HOOKS of kecho/backends/sockmap.py. */
#define SEND_HOOK_TRACEPOINT 1
#define SEND_HOOK_FEXIT	     2

#define AF_INET	 2
#define AF_INET6 10

/* The first device of every network namespace: LOOPBACK_IFINDEX in include/net/flow.h. */
#define LOOPBACK_IFINDEX 1

/* Echoes of one connection on path skb whose latency can be open at once; more go unmeasured, not uncounted. */
#define OPEN_ECHOES 16

/* One connection: the client's socket on path msg, the server's on path skb. Written under that socket's lock. */
struct conn {
	__u64 cookie; /* SO_COOKIE of the socket */
	__u64 sent_ns; /* msg: when the verdict saw a send that is under way and found its CPU's slot taken; else 0 */
	__u32 snd_base; /* sequence number of the first byte sent */
	__u32 rcv_base; /* sequence number of the first byte received */
	__u32 tcp_seq; /* msg: of the first byte that has not gone by TCP, when the path became msg */
	__u32 in_bytes;	 /* skb: what the verdict took in. Modulo 2^32, as sequence numbers */
	__u32 out_bytes; /* skb: what entered the send path. Modulo 2^32 */
	__u8 path;	 /* where the last payload went; changes only while nothing is on the way */
	__u8 confirmed;	 /* msg: our listener accepted the other end */
	__u16 send_cpu;	 /* msg: where the verdict last redirected */
	__u32 open_head; /* skb: the ring of open echoes, [open_tail, open_head) */
	__u32 open_tail;
	__u32 open_end[OPEN_ECHOES]; /* in_bytes after this echo */
	__u64 open_ns[OPEN_ECHOES];  /* when the verdict saw it */
};

/* The send on path msg that is under way on one CPU. A task that migrates, or one that preempts it, is seen to. */
struct send {
	__u64 sk;	/* 0: none */
	__u64 start_ns; /* when the verdict saw it */
	__u64 pad[6];	/* a cache line each */
};

struct addr {
	__u32 word[4]; /* IPv6, or IPv4-mapped; network order */
};

/* A connection as its client sees it. */
struct tuple {
	struct addr client, server;
	__u32 client_port; /* host order; the server's is KECHO_PORT */
};

BPF_SOCKHASH(clients, __u64, KECHO_MAX_CONNS);
BPF_SOCKHASH(servers, __u64, KECHO_MAX_CONNS);
BPF_F_TABLE("hash", __u64, struct conn, conns, KECHO_MAX_CONNS, BPF_F_NO_PREALLOC);
BPF_ARRAY(sends, struct send, KECHO_CPUS);
/* Clients whose server end has not shown up yet. */
BPF_F_TABLE("hash", struct tuple, __u64, unconfirmed, KECHO_MAX_CONNS, BPF_F_NO_PREALLOC);
/* The addresses the service is bound to; the value is not used. Filled by the controller. */
BPF_HASH(listeners, struct addr, __u8, 64);
BPF_PERCPU_ARRAY(paths, struct path_stats, PATHS);
/* The cookies of sockets whose stream cannot go on: the controller resets them, which a verdict may not. */
BPF_RINGBUF_OUTPUT(broken, 1);

/* A field of a kernel structure: a load that the verifier checks against BTF, not a call of bpf_probe_read_kernel. */
#define FIELD(ptr, name) (*(__u32 *)((void *)(ptr) + KECHO_OFF_##name))

/* One that is a pointer, to follow. What is read through NULL is 0. */
#define POINTER_FIELD(ptr, name) (*(void **)((void *)(ptr) + KECHO_OFF_##name))

static __always_inline void count_latency(struct path_stats *stats, __u64 from_ns)
{
	__u64 slot = hist_slot(bpf_ktime_get_ns() - from_ns);

	if (slot < HIST_SLOTS) /* always; the verifier cannot know */
		stats->latency[slot]++;
}

/* What a verdict needs to know; false for a socket that is not ours. */
static __always_inline bool find_conn(struct bpf_sock *sk, int path, struct conn **conn,
				      struct tcp_sock **tp, struct path_stats **stats)
{
	__u64 key = (__u64)sk;

	if (!sk)
		return false;
	*conn = conns.lookup(&key);
	*tp = bpf_skc_to_tcp_sock(sk);
	*stats = paths.lookup(&path);
	return *conn && *tp && *stats;
}

/* ---- sends under way on path msg ---- */

static __always_inline void open_send(struct conn *conn, __u64 sk)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct send *send = sends.lookup(&cpu);

	conn->send_cpu = cpu;
	if (!send || (send->sk && send->sk != sk)) { /* a send that was preempted has it */
		conn->sent_ns = bpf_ktime_get_ns();
		return;
	}
	send->sk = sk;
	send->start_ns = bpf_ktime_get_ns();
}

/* Ends what open_send() began, on the CPU @cpu; when it began, or 0 if it did not. */
static __always_inline __u64 close_send(__u32 cpu, __u64 sk)
{
	struct send *send = sends.lookup(&cpu);

	if (!send || send->sk != sk)
		return 0;
	send->sk = 0;
	return send->start_ns;
}

/* The same, where it is not known to be on this CPU. */
static __always_inline __u64 close_send_anywhere(struct conn *conn, __u64 sk)
{
	__u64 start_ns = conn->sent_ns;

	conn->sent_ns = 0;
	return start_ns ? start_ns : close_send(conn->send_cpu, sk);
}

/* ---- registration ---- */

static __always_inline struct addr addr_v4(__u32 ip4)
{
	return (struct addr){{0, 0, bpf_htonl(0xffff), ip4}};
}

/*
 * The verifier wants each access to a context at a constant offset and of the field's own size, but the compiler merges
 * the loads of two branches, or of two neighbours: so each is volatile, and all come before the choice.
 */
#define CTX_WORD(field) (*(volatile __u32 *)&(field))
#define OPS_ADDR(ops, end)                                                                         \
	({                                                                                         \
		__u32 ip4 = CTX_WORD((ops)->end##_ip4);                                            \
		struct addr ip6 = {{CTX_WORD((ops)->end##_ip6[0]), CTX_WORD((ops)->end##_ip6[1]),  \
				    CTX_WORD((ops)->end##_ip6[2]),                                 \
				    CTX_WORD((ops)->end##_ip6[3])}};                               \
		(ops)->family == AF_INET ? addr_v4(ip4) : ip6;                                     \
	})

static __always_inline struct addr remote_addr(struct bpf_sock_ops *ops)
{
	return OPS_ADDR(ops, remote);
}

static __always_inline struct addr local_addr(struct bpf_sock_ops *ops)
{
	return OPS_ADDR(ops, local);
}

static __always_inline struct tuple client_tuple(struct bpf_sock_ops *ops)
{
	return (struct tuple){.client = local_addr(ops),
			      .server = remote_addr(ops),
			      .client_port = ops->local_port};
}

/* Does the way out of @tp lead back to this host? */
static __always_inline bool goes_to_loopback(struct tcp_sock *tp)
{
	void *dst = POINTER_FIELD(tp, DST);
	void *dev = POINTER_FIELD(dst, DST_DEV);

	return FIELD(dev, DEV_IFINDEX) == LOOPBACK_IFINDEX;
}

static __always_inline bool is_mapped(const struct addr *addr)
{
	return !addr->word[0] && !addr->word[1] && addr->word[2] == bpf_htonl(0xffff);
}

/* Is @addr one the service is bound to, by name or by wildcard? */
static __always_inline bool is_ours(struct addr *addr)
{
	struct addr any = {};

	if (listeners.lookup(addr))
		return true;
	if (is_mapped(addr))
		any = addr_v4(0);
	return listeners.lookup(&any);
}

static __always_inline bool in_our_netns(struct bpf_sock_ops *ops)
{
	return bpf_get_netns_cookie(ops) == KECHO_NETNS;
}

static __always_inline void follow(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* The client's end, before its connect() returns. The server's end does not exist yet: it comes with the ACK. */
static __always_inline void register_client(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	__u64 key = (__u64)sk;
	struct addr server = remote_addr(ops);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct conn conn = {};
	struct tuple tuple;
	int err;

	if (!tp || !in_our_netns(ops) || !is_ours(&server) || !goes_to_loopback(tp))
		return;
	conn.cookie = bpf_get_socket_cookie(ops);
	conn.snd_base = FIELD(tp, WRITE_SEQ);
	conn.rcv_base = FIELD(tp, RCV_NXT);
	conn.path = PATH_USER; /* until it is confirmed */
	tuple = client_tuple(ops);
	if (conns.update(&key, &conn))
		return;
	if (unconfirmed.update(&tuple, &key))
		goto err_conns;
	err = clients.sock_hash_update(ops, &key, BPF_ANY);
	if (err)
		goto err_unconfirmed;
	follow(ops);
	return;

err_unconfirmed:
	unconfirmed.delete(&tuple);
err_conns:
	conns.delete(&key);
}

/* The server's end: confirms the client's, if that is registered, or goes on path skb itself. */
static __always_inline void register_server(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	__u64 key = (__u64)sk;
	struct addr server = local_addr(ops);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tuple tuple = {.client = remote_addr(ops),
			      .server = server,
			      .client_port = bpf_ntohl(ops->remote_port)};
	struct conn conn = {};
	__u64 *client;
	int err;

	if (!tp || !in_our_netns(ops) || !is_ours(&server))
		return;
	client = unconfirmed.lookup(&tuple);
	if (client) {
		struct conn *other = conns.lookup(client);

		if (other)
			other->confirmed = 1;
		unconfirmed.delete(&tuple);
		return;
	}
	if (KECHO_PATH_REMOTE != PATH_SKB)
		return;
	conn.cookie = bpf_get_socket_cookie(ops);
	conn.snd_base = FIELD(tp, WRITE_SEQ);
	conn.rcv_base = FIELD(tp, RCV_NXT);
	conn.path = PATH_SKB;
	if (conns.update(&key, &conn))
		return;
	err = servers.sock_hash_update(ops, &key, BPF_ANY);
	if (err) {
		conns.delete(&key);
		return;
	}
	follow(ops);
}

/* Sockhashes forget a socket by themselves. */
static __always_inline void unregister(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	__u64 key = (__u64)sk;
	struct conn *conn = conns.lookup(&key);
	struct tuple tuple = client_tuple(ops);

	if (conn && !conn->confirmed && conn->path == PATH_USER)
		unconfirmed.delete(&tuple);
	if (KECHO_LATENCY && conn)
		close_send_anywhere(conn, key);
	conns.delete(&key);
}

int kecho_register(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (KECHO_PATH_LOCAL == PATH_MSG && bpf_ntohl(ops->remote_port) == KECHO_PORT)
			register_client(ops, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (ops->local_port == KECHO_PORT)
			register_server(ops, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE)
			unregister(ops, sk);
		break;
	}
	return 1;
}

/* ---- path msg ---- */

int kecho_msg_echo(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct path_stats *stats;
	struct tcp_sock *tp;
	struct conn *conn;
	__u32 write_seq, unread, size = msg->size;
	__u64 key = (__u64)sk;

	if (!find_conn(sk, PATH_MSG, &conn, &tp, &stats))
		return SK_PASS;

	/*
	 * All that went by TCP has to have come back and been read: one path at a time keeps the order. What went is
	 * read off the socket, not added up here: a send that does not block may take back a part of what was passed,
	 * and the next one then gets the same verdict again without a call (psock->eval); one that blocks leaves the
	 * lock half-way to other threads, whose payload then comes through here.
	 */
	write_seq = FIELD(tp, WRITE_SEQ);
	unread = FIELD(tp, RMEM_ALLOC); /* what the client has sent and not read back */
	if (conn->path == PATH_USER || write_seq != conn->tcp_seq) {
		__u32 rcv_nxt = FIELD(tp, RCV_NXT);

		if (!conn->confirmed || unread ||
		    rcv_nxt - conn->rcv_base != write_seq - conn->snd_base ||
		    FIELD(tp, COPIED_SEQ) != rcv_nxt)
			goto pass;
		conn->path = PATH_MSG;
		conn->tcp_seq = write_seq;
	}
	if (unread + size > KECHO_LIMIT) {
		stats->fallbacks++;
		goto pass;
	}
	stats->echoes++;
	stats->bytes += size;
	if (KECHO_LATENCY)
		open_send(conn, key);
	return clients.msg_redirect_hash(msg, &key, BPF_F_INGRESS);

pass:
	if (KECHO_LATENCY) /* left open by a call whose return no hook sees, such as sendfile */
		close_send_anywhere(conn, key);
	conn->path = PATH_USER;
	return SK_PASS;
}

#if KECHO_LATENCY
static __always_inline int end_send(__u64 sk)
{
	__u64 start_ns = close_send(bpf_get_smp_processor_id(), sk);
	int path = PATH_MSG;
	struct path_stats *stats;

	if (!start_ns) {
		struct conn *conn = conns.lookup(&sk);

		if (conn)
			start_ns = close_send_anywhere(conn, sk);
	}
	if (!start_ns)
		return 0;
	stats = paths.lookup(&path);
	if (stats)
		count_latency(stats, start_ns);
	return 0;
}

#if KECHO_SEND_HOOK == SEND_HOOK_TRACEPOINT
int kecho_msg_sent(struct bpf_raw_tracepoint_args *ctx)
{
	return end_send(ctx->args[0]);
}
#elif KECHO_SEND_HOOK == SEND_HOOK_FEXIT
/* BCC attaches it by itself, by the name that this macro makes. */
KRETFUNC_PROBE(tcp_bpf_sendmsg, void *sk)
{
	return end_send((__u64)sk);
}
#endif
#endif

/* ---- path skb ---- */

/* What bpf_skb_adjust_room() removes at once, and how often that is for the largest skb. */
#define MOST_TRIMMED 0xfff
#define MOST_TRIMS   129 /* 512 KiB, of BIG TCP */

/* The sequence number of an skb's first byte: tcp_skb_cb.seq. kecho/backends/sockmap.py sees to it that it is there. */
#define SKB_SEQ(skb) ((skb)->cb[0])

/* Takes @size bytes off the beginning; false if the kernel has no memory for that. */
static __always_inline bool trim(struct __sk_buff *skb, __u32 size)
{
	int i;

	for (i = 0; i < MOST_TRIMS && size; i++) {
		__u32 step = size < MOST_TRIMMED ? size : MOST_TRIMMED;

		if (bpf_skb_adjust_room(skb, -(__s32)step, 0, 0))
			return false;
		size -= step;
	}
	return !size;
}

int kecho_skb_echo(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct path_stats *stats;
	struct tcp_sock *tp;
	struct conn *conn;
	__u32 size = skb->len;
	__u64 key = (__u64)sk;
	__s32 known;

	if (!size) /* a bare FIN, which TCP has seen to */
		return SK_DROP;
	if (!find_conn(sk, PATH_SKB, &conn, &tp, &stats))
		return SK_PASS;

	/*
	 * A client that sends again may cut its stream otherwise. TCP queues a segment of which it knows the first
	 * part, leaves it to the reader to skip that, and tcp_read_skb() does not.
	 */
	known = conn->rcv_base + conn->in_bytes - SKB_SEQ(skb);
	if (known < 0) /* what came before this could not be trimmed */
		goto broken;
	if (known > 0) {
		if (!trim(skb, (__u32)known < size ? known : size))
			goto broken;
		size = skb->len;
		if (!size) /* only its FIN was news */
			return SK_DROP;
	}

	if (conn->path == PATH_USER) {
		/* Stay until the controller has sent all that was passed to it. */
		if (FIELD(tp, WRITE_SEQ) - conn->snd_base != conn->in_bytes)
			goto pass;
		conn->path = PATH_SKB;
	}
	/*
	 * Taken in and not acknowledged as echoed, wherever it is. Redirecting acknowledges to the client whatever it
	 * sends, so this is what bounds memory. It has to act before the send buffer is full: behind a backlog of
	 * redirected data the kernel queues what is passed as well, without bound.
	 */
	if (conn->in_bytes - (FIELD(tp, SND_UNA) - conn->snd_base) + size > KECHO_LIMIT ||
	    FIELD(tp, WMEM_QUEUED) + size > FIELD(tp, SNDBUF)) {
		conn->path = PATH_USER;
		stats->fallbacks++;
		goto pass;
	}
	stats->echoes++;
	stats->bytes += size;
	conn->in_bytes += size;
	if (KECHO_LATENCY && conn->open_head - conn->open_tail < OPEN_ECHOES) {
		__u32 i = conn->open_head & (OPEN_ECHOES - 1);

		conn->open_end[i] = conn->in_bytes;
		conn->open_ns[i] = bpf_ktime_get_ns();
		conn->open_head++;
	}
	return servers.sk_redirect_hash(skb, &key, 0);

pass:
	conn->in_bytes += size;
	return SK_PASS;

broken: /* better no stream than one that is wrong */
	broken.ringbuf_output(&conn->cookie, sizeof(conn->cookie), 0);
	return SK_DROP;
}

#if KECHO_LATENCY
int kecho_skb_sent(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	int i, path = PATH_SKB;
	struct path_stats *stats;
	struct conn *conn;
	__u64 key;

	if (!sk)
		return SK_PASS;
	key = (__u64)sk;
	conn = conns.lookup(&key);
	stats = paths.lookup(&path);
	if (!conn || !stats)
		return SK_PASS;
	conn->out_bytes += msg->size;
	for (i = 0; i < OPEN_ECHOES; i++) {
		__u32 tail = conn->open_tail & (OPEN_ECHOES - 1);

		if (conn->open_tail == conn->open_head ||
		    (__s32)(conn->out_bytes - conn->open_end[tail]) < 0)
			break;
		count_latency(stats, conn->open_ns[tail]);
		conn->open_tail++;
	}
	return SK_PASS;
}
#endif
