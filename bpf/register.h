/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Registration: finds the connections of the service, and chooses their path. */

#define AF_INET	 2
#define AF_INET6 10

/* The loopback device of every network namespace, as in include/net/flow.h. */
#define LOOPBACK_IFINDEX 1

struct addr {
	__u32 word[4]; /* IPv6, or IPv4-mapped; network order */
};

/*
 * What both ends of a connection know, and no other pair of sockets does. Addresses and ports are not enough: where
 * packets are redirected, a client of one connection and a server of another may have the same here.
 */
struct handshake {
	struct addr client, server;
	__u32 client_port; /* host order; the server's is KECHO_PORT */
	__u32 client_seq;  /* sequence number of the first byte that the client sends */
	__u32 server_seq;
};

struct client {
	__u64 sk;
	__u64 cookie;
};

/* Clients whose server's end is not registered yet. */
BPF_F_TABLE("hash", struct handshake, struct client, unconfirmed, KECHO_MAX_CONNS,
	    BPF_F_NO_PREALLOC);
/* The addresses that the service is bound to, from the controller. The value is not used. */
BPF_HASH(listeners, struct addr, __u8, 64);

/*
 * A mark on the listeners, from the controller; what they accept inherits it. Its address does not tell whose a socket
 * is: what TPROXY or an sk_lookup program hands to another server's listener keeps the address it was sent to. The value
 * is not used.
 */
struct accepted_table_t {
	int key;
	int leaf;
	void *(*sk_storage_get)(void *sk, void *value, int flags);
	__u32 flags;
};
__attribute__((section("maps/sk_storage"))) struct accepted_table_t accepted = {
	.flags = BPF_F_NO_PREALLOC | BPF_F_CLONE};
BPF_ANNOTATE_KV_PAIR(accepted, int, int);

static __always_inline struct addr addr_v4(__u32 ip4)
{
	return (struct addr){{0, 0, bpf_htonl(0xffff), ip4}};
}

/*
 * The verifier accepts only accesses to the context at constant offsets and of the field's size. The compiler would merge
 * loads of two branches or of two neighbours, so all loads are volatile and come before the branch.
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

/* Does the route of @tp lead to the loopback device? */
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

/* Is the service bound to @addr, or to the wildcard of its version? */
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

/* The handshake as the client's end knows it. */
static __always_inline struct handshake client_handshake(struct bpf_sock_ops *ops,
							 struct local *conn)
{
	return (struct handshake){.client = local_addr(ops),
				  .server = remote_addr(ops),
				  .client_port = ops->local_port,
				  .client_seq = conn->snd_base,
				  .server_seq = conn->rcv_base};
}

/* Registers the client's end before its connect() returns. The server's end comes later, with the ACK. */
static __always_inline void register_client(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct client client = {.sk = (__u64)sk, .cookie = bpf_get_socket_cookie(ops)};
	struct addr server = remote_addr(ops);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct local conn = {.cookie = client.cookie, .path = PATH_USER};
	struct handshake handshake;
	int err;

	if (!tp || !in_our_netns(ops) || !is_ours(&server) || !goes_to_loopback(tp))
		return;
	if (FIELD(tp, FLAGS) &
	    (1u << KECHO_SOCK_ZEROCOPY)) /* it waits for completions, which only TCP sends */
		return;
	conn.snd_base = FIELD(tp, WRITE_SEQ);
	conn.rcv_base = FIELD(tp, RCV_NXT);
	handshake = client_handshake(ops, &conn);
	if (locals.update(&client.sk, &conn))
		return;
	if (unconfirmed.update(&handshake, &client))
		goto err_locals;
	err = clients.sock_hash_update(ops, &client.sk, BPF_ANY);
	if (err)
		goto err_unconfirmed;
	follow(ops);
	return;

err_unconfirmed:
	unconfirmed.delete(&handshake);
err_locals:
	locals.delete(&client.sk);
}

/*
 * Confirms a client, so that its payload may be redirected. A freed map element can be reused for another client at
 * once, so the cookie is compared.
 */
static __always_inline void confirm(struct bpf_sock_ops *ops, struct bpf_sock *server,
				    struct client *found)
{
	struct client client = *found;
	struct local *conn = locals.lookup(&client.sk);
	int err;

	if (!conn || conn->cookie != client.cookie)
		return;
	if (KECHO_PATH_LOCAL == PATH_EGRESS) {
		err = peers.sock_hash_update(ops, &client.sk, BPF_ANY);
		if (err)
			return;
	}
	conn->server = (__u64)server;
	if (*(volatile __u64 *)&conn->cookie != client.cookie)
		conn->server = 0;
}

/* Registers the server's end: confirms a registered client, or else puts the connection on path skb. */
static __always_inline void register_server(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	__u64 key = (__u64)sk;
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct handshake handshake = {.client = remote_addr(ops),
				      .server = local_addr(ops),
				      .client_port = bpf_ntohl(ops->remote_port)};
	struct remote conn = {.path = PATH_SKB};
	struct client *client;
	int err;

	if (!tp || !in_our_netns(ops) || !accepted.sk_storage_get(sk, 0, 0))
		return;
	handshake.client_seq = conn.rcv_base = FIELD(tp, RCV_NXT);
	handshake.server_seq = conn.snd_base = FIELD(tp, WRITE_SEQ);
	client = KECHO_PATH_LOCAL < PATH_SKB ? unconfirmed.lookup(&handshake) : 0;
	if (client) {
		confirm(ops, sk, client);
		unconfirmed.delete(&handshake);
		return;
	}
	if (KECHO_PATH_REMOTE != PATH_SKB)
		return;
	conn.cookie = bpf_get_socket_cookie(ops);
	if (remotes.update(&key, &conn))
		return;
	err = servers.sock_hash_update(ops, &key, BPF_ANY);
	if (err) {
		remotes.delete(&key);
		return;
	}
	follow(ops);
}

/* Does the client have unread data in its ingress queue? Removing its entry in `clients` would drop that. */
static __always_inline bool must_keep(struct bpf_sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	return KECHO_PATH_LOCAL == PATH_INGRESS && tp && FIELD(tp, RMEM_ALLOC);
}

/* Removes @sk, which has closed or sends nothing more. It reads what is left as any socket does. */
static __always_inline void unregister(struct bpf_sock_ops *ops, struct bpf_sock *sk, bool closed)
{
	__u64 key = (__u64)sk;
	struct local *conn = KECHO_PATH_LOCAL < PATH_SKB ? locals.lookup(&key) : 0;
	bool keep = must_keep(sk);

	if (closed) /* `servers` itself drops closed sockets */
		remotes.delete(&key);
	if (!conn || (keep && !closed))
		return;
	if (!conn->server) {
		struct handshake handshake = client_handshake(ops, conn);

		unconfirmed.delete(&handshake);
	}
	if (KECHO_LATENCY)
		close_send_anywhere(conn, key);
	if (!keep)
		clients.delete(&key);
	peers.delete(&key);
	locals.delete(&key);
}

int kecho_register(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (KECHO_PATH_LOCAL < PATH_SKB && bpf_ntohl(ops->remote_port) == KECHO_PORT)
			register_client(ops, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (ops->local_port == KECHO_PORT)
			register_server(ops, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE || ops->args[1] == BPF_TCP_FIN_WAIT1)
			unregister(ops, sk, ops->args[1] == BPF_TCP_CLOSE);
		break;
	}
	return 1;
}
