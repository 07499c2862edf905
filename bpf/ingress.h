/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Path ingress: what a local client sends is redirected into its own ingress queue. */

int kecho_ingress_echo(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct path_stats *stats;
	struct tcp_sock *tp;
	struct local *conn;
	__u32 write_seq, unread, size = msg->size;
	__u64 key = (__u64)sk;

	if (!find_local(sk, PATH_INGRESS, &conn, &tp, &stats))
		return SK_PASS;

	/*
	 * All that went by TCP must have come back and been read, since one path at a time keeps the order. What went by
	 * TCP is read from the socket, not counted here. A non-blocking send may take back part of what was passed, and
	 * the next send then reuses the verdict without a call (psock->eval). A blocking send releases the lock in
	 * between to other threads, whose payload is then seen here first.
	 */
	write_seq = FIELD(tp, WRITE_SEQ);
	unread = FIELD(tp, RMEM_ALLOC); /* sent by the client and not read back */
	if (conn->path == PATH_USER || write_seq != conn->tcp_seq) {
		__u32 rcv_nxt = FIELD(tp, RCV_NXT);

		if (!conn->server || conn->barred || unread ||
		    rcv_nxt - conn->rcv_base != write_seq - conn->snd_base ||
		    FIELD(tp, COPIED_SEQ) != rcv_nxt)
			return pass(conn, key);
		conn->path = PATH_INGRESS;
		conn->tcp_seq = write_seq;
	}
	if (unread + size > KECHO_LIMIT) {
		/* Many programs cannot cope with data in both queues, so this connection stays off the path. */
		conn->barred = unread != 0;
		COUNT(stats->fallbacks, 1);
		return pass(conn, key);
	}
	count_echo(stats, size);
	if (KECHO_LATENCY)
		open_send(conn, key);
	/* The client's entry exists: it is removed together with what find_local() has found. */
	return clients.msg_redirect_hash(msg, &key, BPF_F_INGRESS);
}
