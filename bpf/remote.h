/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Path skb: what a server's socket receives is sent out of it again. For remote clients; with --path skb for all. */

/* The most echoes of a connection that are timed at once. Others are counted, but not timed. */
#define OPEN_ECHOES 16

/* The server's end of a connection. Written under its socket's lock. */
struct remote {
	__u64 cookie;	 /* SO_COOKIE of the socket */
	__u32 snd_base;	 /* sequence number of the first byte sent */
	__u32 rcv_base;	 /* sequence number of the first byte received */
	__u32 in_bytes;	 /* taken in by the verdict, modulo 2^32 as sequence numbers */
	__u32 out_bytes; /* entered the send path, modulo 2^32 */
	__u32 path;	 /* of the last payload; changes only while nothing is in flight */
	__u32 reported;	 /* as broken */
	__u32 open_head; /* the ring of open echoes, [open_tail, open_head) */
	__u32 open_tail;
	__u32 open_end[OPEN_ECHOES]; /* in_bytes after this echo */
	__u64 open_ns[OPEN_ECHOES];  /* when the verdict saw it */
};

BPF_SOCKHASH(servers, __u64, KECHO_MAX_CONNS);
BPF_F_TABLE("hash", __u64, struct remote, remotes, KECHO_MAX_CONNS, BPF_F_NO_PREALLOC);
/*
 * The cookies of sockets whose stream is broken. The server resets them, which a verdict may not do. Each is reported once,
 * in 16 bytes: there is room for 16,384 that the controller has not read yet.
 */
BPF_RINGBUF_OUTPUT(broken, 64);

/* Finds the state of the connection and the counters; false for a socket that is not ours. */
static __always_inline bool find_remote(struct bpf_sock *sk, struct remote **conn,
					struct tcp_sock **tp, struct path_stats **stats)
{
	__u64 key = (__u64)sk;
	int path = PATH_SKB;

	if (!sk)
		return false;
	*conn = remotes.lookup(&key);
	*tp = bpf_skc_to_tcp_sock(sk);
	*stats = paths.lookup(&path);
	return *conn && *tp && *stats;
}

/* The most that one bpf_skb_adjust_room() removes, and how many calls the largest skb takes. */
#define MOST_TRIMMED 0xfff
#define MOST_TRIMS   129 /* 512 KiB, of BIG TCP */

/*
 * The room that @bytes in payloads of @size take in the send buffer, with the memory of each skb. An skb has at most
 * half a window (tcp_bound_to_half_wnd()) and at most 17 payloads (MAX_SKB_FRAGS).
 */
#define SKB_COST  1280
#define FRAG_COST (SKB_COST / 17 + 1)
static __always_inline __u32 memory(struct tcp_sock *tp, __u32 bytes, __u32 size)
{
	return bytes + bytes / (FIELD(tp, MAX_WINDOW) / 2 + 1) * SKB_COST +
	       bytes / size * FRAG_COST;
}

/* The sequence number of an skb's first byte: tcp_skb_cb.seq. sockmap_offsets() in Python checks that it is there. */
#define SKB_SEQ(skb) ((skb)->cb[0])

/* Removes the first @size bytes; false if the kernel has no memory for that. */
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

/*
 * Removes what the server has taken in already: a retransmitting client may cut its stream differently. TCP queues a
 * segment whose first part it has already; the reader has to skip that part, and tcp_read_skb() does not. False if that
 * fails, and the stream has a hole.
 */
static __always_inline bool trim_known(struct __sk_buff *skb, const struct remote *conn)
{
	__s32 known = conn->rcv_base + conn->in_bytes - SKB_SEQ(skb);

	if (known < 0) /* a segment before this one could not be trimmed */
		return false;
	return !known || trim(skb, (__u32)known < skb->len ? known : skb->len);
}

/* Where the ring buffer is full, the next segment tries again. */
static __always_inline void report_broken(struct remote *conn)
{
	if (!conn->reported)
		conn->reported = !broken.ringbuf_output(&conn->cookie, sizeof(conn->cookie), 0);
}

/*
 * True if @size more bytes may be redirected. Redirecting acknowledges what the client sends, so only this bounds memory.
 * It must act before the send buffer is full: behind a backlog of redirected data the kernel queues what is passed as
 * well, without bound.
 */
static __always_inline bool has_room(const struct remote *conn, struct tcp_sock *tp, __u32 size)
{
	/* This skb, and what is redirected but not in the send buffer yet. */
	__u32 waiting = conn->in_bytes - (FIELD(tp, WRITE_SEQ) - conn->snd_base) + size;

	/* All bytes taken in whose echo is not acknowledged, wherever they are. */
	if (conn->in_bytes - (FIELD(tp, SND_UNA) - conn->snd_base) + size > KECHO_LIMIT)
		return false;
	return FIELD(tp, WMEM_QUEUED) + memory(tp, waiting, size) <=
	       FIELD(tp, SNDBUF) - FIELD(tp, SNDBUF) / 16;
}

/* Notes the start of the echo that ends at in_bytes, if there is room for one more. */
static __always_inline void open_echo(struct remote *conn)
{
	__u32 i = conn->open_head & (OPEN_ECHOES - 1);

	if (!KECHO_LATENCY || conn->open_head - conn->open_tail >= OPEN_ECHOES)
		return;
	conn->open_end[i] = conn->in_bytes;
	conn->open_ns[i] = bpf_ktime_get_ns();
	conn->open_head++;
}

int kecho_skb_echo(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct path_stats *stats;
	struct tcp_sock *tp;
	struct remote *conn;
	__u64 key = (__u64)sk;
	__u32 size;

	if (!skb->len) /* a bare FIN, which TCP has handled */
		return SK_DROP;
	if (!find_remote(sk, &conn, &tp, &stats))
		return SK_PASS;
	if (!trim_known(skb, conn)) { /* end the stream rather than echo wrong bytes */
		report_broken(conn);
		return SK_DROP;
	}
	size = skb->len;
	if (!size) /* only its FIN is new */
		return SK_DROP;

	if (conn->path == PATH_USER) {
		/* Stay on path user until the server has sent all that was passed to it. */
		if (FIELD(tp, WRITE_SEQ) - conn->snd_base != conn->in_bytes)
			goto pass;
		conn->path = PATH_SKB;
	}
	if (!has_room(conn, tp, size)) {
		conn->path = PATH_USER;
		COUNT(stats->fallbacks, 1);
		goto pass;
	}
	count_echo(stats, size);
	conn->in_bytes += size;
	open_echo(conn);
	return servers.sk_redirect_hash(skb, &key, 0);

pass:
	conn->in_bytes += size;
	return SK_PASS;
}

#if KECHO_LATENCY
int kecho_skb_sent(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	int i, path = PATH_SKB;
	struct path_stats *stats;
	struct remote *conn;
	__u64 key;

	if (!sk)
		return SK_PASS;
	key = (__u64)sk;
	conn = remotes.lookup(&key);
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
