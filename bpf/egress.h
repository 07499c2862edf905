/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Path egress: what a local client sends is redirected out of the server's end of its connection, and returns by TCP. */

/* A payload of up to this size fits into an empty send buffer: less than SOCK_MIN_SNDBUF. */
#define SURELY_FITS 2048

/* An upper bound of what TCP charges for a segment beside its payload. */
#define SEGMENT_OVERHEAD 1280

/* The server's end of a connection, by the client's socket. No program is attached to this map. */
BPF_SOCKHASH(peers, __u64, KECHO_MAX_CONNS);

/* A field of a socket of which only the address is known: it may be freed. */
#define FAR_FIELD(sk, name, type)                                                                  \
	({                                                                                         \
		type value = 0;                                                                    \
		bpf_probe_read_kernel(&value, sizeof(value), (void *)((sk) + KECHO_OFF_##name));   \
		value;                                                                             \
	})

/*
 * True if the server's end can take @size bytes at once. Otherwise the sender would wait for memory of that socket, or
 * get EAGAIN while poll() reports its own socket writable, so the payload goes by TCP. Before accept() the kernel
 * follows a NULL pointer (sk_socket) when that socket has no room. Until then no more is in flight than TCP takes even
 * without memory.
 */
static __always_inline bool fits(struct local *conn, __u32 size, bool idle)
{
	__u32 queued, room;

	if (conn->accepted && idle && size <= SURELY_FITS)
		return true;
	queued = FAR_FIELD(conn->server, WMEM_QUEUED, __u32);
	if (!conn->accepted && FAR_FIELD(conn->server, SOCKET, __u64))
		conn->accepted = 1;
	if (!conn->accepted && !idle)
		return false;
	room = conn->accepted ? FAR_FIELD(conn->server, SNDBUF, __u32) : KECHO_WMEM_MIN;
	return queued + size + (size >> 3) + SEGMENT_OVERHEAD <= room;
}

int kecho_egress_echo(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct path_stats *stats;
	struct tcp_sock *tp;
	struct local *conn;
	__u32 write_seq, by_tcp, arrived, size = msg->size;
	__u64 key = (__u64)sk, sender = bpf_get_current_task();

	if (!find_local(sk, PATH_EGRESS, &conn, &tp, &stats))
		return SK_PASS;

	/* What went by TCP is read from the socket: ingress.h says why. */
	write_seq = FIELD(tp, WRITE_SEQ);
	by_tcp = write_seq - conn->snd_base;
	arrived = FIELD(tp, RCV_NXT) - conn->rcv_base;
	if (conn->path == PATH_USER || write_seq != conn->tcp_seq) {
		/* All that was sent must have arrived back. It may be unread: one receive queue keeps the order. */
		if (!conn->server || arrived != by_tcp + conn->redirected)
			return pass(conn, key);
		conn->path = PATH_EGRESS;
		conn->tcp_seq = write_seq;
	} else if (arrived != by_tcp + conn->redirected) {
		/*
		 * A redirect may have been cut short, which no hook reports. All that went by TCP has come back, so what the
		 * server's end has sent since is what redirects gave it. Redirects of this thread are over by now.
		 */
		__u32 pushed = FAR_FIELD(conn->server, WRITE_SEQ, __u32) - conn->rcv_base - by_tcp;

		if (conn->sender == sender) {
			COUNT(stats->bytes, (__u64)(__s32)(pushed - conn->redirected));
			conn->redirected = pushed;
		} else if (pushed != conn->redirected) {
			sender = 0;
		}
	}
	if (by_tcp + conn->redirected - (FIELD(tp, COPIED_SEQ) - conn->rcv_base) + size >
		    KECHO_LIMIT ||
	    !fits(conn, size, arrived == by_tcp + conn->redirected)) {
		COUNT(stats->fallbacks, 1);
		return pass(conn, key);
	}
	if (peers.msg_redirect_hash(msg, &key, 0) != SK_PASS) /* the server's end has closed */
		return pass(conn, key);
	conn->redirected += size;
	conn->sender = sender;
	count_echo(stats, size);
	if (KECHO_LATENCY)
		open_send(conn, key);
	return SK_PASS;
}
