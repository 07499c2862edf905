/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Path egress: what a local client sends goes out of the server's end of its own connection, and comes back by TCP. */

/* A payload up to this size fits into the send buffer of a server's end that has nothing to send: SOCK_MIN_SNDBUF. */
#define SURELY_FITS 2048

/* What TCP may charge for a segment beside its payload: more than any skb takes. */
#define SEGMENT_OVERHEAD 1280

/* By the client's socket: the server's end of the connection. No program is attached to it. */
BPF_SOCKHASH(peers, __u64, KECHO_MAX_CONNS);

/* A field of a socket that is known by its address only, and may be gone. */
#define FAR_FIELD(sk, name, type)                                                                  \
	({                                                                                         \
		type value = 0;                                                                    \
		bpf_probe_read_kernel(&value, sizeof(value), (void *)((sk) + KECHO_OFF_##name));   \
		value;                                                                             \
	})

/*
 * The server's end takes @size bytes at once. A sender whose payload finds no room there would wait for that socket's
 * memory, or be told so when poll() says something else about its own: better it goes by TCP. Before accept() a socket
 * without room has nobody to tell: the kernel follows a pointer that is NULL. So until then there is no more under way
 * than what TCP takes even when it has no memory.
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

	/* What went by TCP is read off the socket, for the reasons that ingress.h has. */
	write_seq = FIELD(tp, WRITE_SEQ);
	by_tcp = write_seq - conn->snd_base;
	arrived = FIELD(tp, RCV_NXT) - conn->rcv_base;
	if (conn->path == PATH_USER || write_seq != conn->tcp_seq) {
		/* All that was sent has to have come back, read or not: the client has one queue, and it keeps the order. */
		if (!conn->server || arrived != by_tcp + conn->redirected)
			return pass(conn, key);
		conn->path = PATH_EGRESS;
		conn->tcp_seq = write_seq;
	} else if (arrived != by_tcp + conn->redirected) {
		/*
		 * A redirect may have been cut short, of which nobody tells. What the server's end has sent is what it was
		 * given by redirects, now that all that went by TCP has come back; and they are over, if they are of this
		 * thread.
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
	if (peers.msg_redirect_hash(msg, &key, 0) != SK_PASS) /* the server's end is closed */
		return pass(conn, key);
	conn->redirected += size;
	conn->sender = sender;
	count_echo(stats, size);
	if (KECHO_LATENCY)
		open_send(conn, key);
	return SK_PASS;
}
