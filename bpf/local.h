/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Shared by the paths of local clients, egress and ingress: a verdict on the client's send. A service has one of them. */

/* A local client. Written under its socket's lock, but for `server`. */
struct local {
	__u64 cookie; /* SO_COOKIE of its socket */
	__u64 server; /* the server's end; 0 until it is registered */
	__u64 sender; /* egress: the only task that can have a redirect in flight; 0: there may be several */
	__u64 sent_ns;	/* the start of a send in flight that found its CPU's slot taken, or 0 */
	__u32 snd_base; /* sequence number of the first byte sent */
	__u32 rcv_base; /* sequence number of the first byte received */
	__u32 tcp_seq; /* of the first byte that did not go by TCP, when the path last left PATH_USER */
	__u32 redirected; /* egress: bytes, modulo 2^32 as sequence numbers */
	__u16 send_cpu;	  /* the CPU of the last redirect */
	__u8 path;	  /* of the last payload; changes only while nothing is in flight */
	__u8 accepted;	  /* egress: the server's end has an owner, by accept() */
	__u8 barred;	  /* ingress: the connection has left that path for good */
};

/* A local client's send in flight on one CPU. The task may migrate, or be preempted by another sender. */
struct send {
	__u64 sk;	/* 0: none */
	__u64 start_ns; /* of the verdict */
	__u64 pad[6];	/* to a cache line */
};

BPF_SOCKHASH(clients, __u64, KECHO_MAX_CONNS);
BPF_F_TABLE("hash", __u64, struct local, locals, KECHO_MAX_CONNS, BPF_F_NO_PREALLOC);
BPF_ARRAY(sends, struct send, KECHO_CPUS);

/* Finds the state of the connection and the counters of @path; false for a socket that is not ours. */
static __always_inline bool find_local(struct bpf_sock *sk, int path, struct local **conn,
				       struct tcp_sock **tp, struct path_stats **stats)
{
	__u64 key = (__u64)sk;

	if (!sk)
		return false;
	*conn = locals.lookup(&key);
	*tp = bpf_skc_to_tcp_sock(sk);
	*stats = paths.lookup(&path);
	return *conn && *tp && *stats;
}

static __always_inline void open_send(struct local *conn, __u64 sk)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct send *send = sends.lookup(&cpu);
	__u64 owner;

	conn->send_cpu = cpu;
	if (!send)
		return;
	owner = __sync_val_compare_and_swap(&send->sk, 0, sk);
	if (owner && owner != sk) { /* the slot belongs to a preempted send */
		conn->sent_ns = bpf_ktime_get_ns();
		return;
	}
	send->start_ns = bpf_ktime_get_ns();
}

/* Ends the send of @sk on CPU @cpu. Returns its start, or 0 if the slot has none. */
static __always_inline __u64 close_send(__u32 cpu, __u64 sk)
{
	struct send *send = sends.lookup(&cpu);
	__u64 start_ns;

	if (!send || send->sk != sk)
		return 0;
	start_ns = send->start_ns; /* read before the slot is released */
	send->sk = 0;
	return start_ns;
}

/* As close_send(), for a send that may have started on another CPU. */
static __always_inline __u64 close_send_anywhere(struct local *conn, __u64 sk)
{
	__u64 start_ns = conn->sent_ns;

	conn->sent_ns = 0;
	return start_ns ? start_ns : close_send(conn->send_cpu, sk);
}

/* The verdict for a payload that goes by TCP. */
static __always_inline int pass(struct local *conn, __u64 sk)
{
	if (KECHO_LATENCY) /* ends a send whose return no hook saw, as that of sendfile() */
		close_send_anywhere(conn, sk);
	conn->path = PATH_USER;
	return SK_PASS;
}

#if KECHO_LATENCY
static __always_inline int end_send(__u64 sk)
{
	__u64 start_ns = close_send(bpf_get_smp_processor_id(), sk);
	int path = KECHO_PATH_LOCAL;
	struct path_stats *stats;

	if (!start_ns) {
		struct local *conn = locals.lookup(&sk);

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

/* On the return of a local client's send: where there is no tracepoint sock_send_length, fexit of tcp_bpf_sendmsg(). */
int kecho_local_sent(struct bpf_raw_tracepoint_args *ctx)
{
	return end_send(ctx->args[0]); /* the socket, in both */
}
#endif
