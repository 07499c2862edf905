// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The mirror: a TCP echo without a socket. It turns segments round at tc ingress. ../docs/mirror.md explains the rules.
 *
 *   kecho_KIND                 attached: decides whether a packet is ours. It only reads, to cost other packets little
 *   kecho_KIND_v4, KIND_v6     tail-called by kecho_KIND: turns a segment into its own echo
 *
 * KIND is that of the device: lo, ether (Ethernet), ip (no link header).
 *
 * kecho/backends/mirror.py gives the settings KECHO_PORT_BE (in network order), KECHO_KEY0 and KECHO_KEY1 (the secret) when
 * it loads the programs, and as -D KECHO_LATENCY (0, 1), KECHO_ANY_V4 and KECHO_ANY_V6 (0, 1: bound to the wildcard),
 * KECHO_LOOPBACK_V4 and KECHO_LOOPBACK_V6 (0, 1: bound to 127.0.0.1, to ::1), KECHO_KINDS (how many kinds of devices)
 * and KECHO_MAX_CONNS.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/if_packet.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include "kecho.h"
#include "mirror.h"
#include "siphash.h"

/* Kinds of devices. */
#define LO    0
#define ETHER 1
#define IP    2

/* Slots of `recent`; a power of two. */
#define RECENT 65536
/* Slots of `shifts4` and of `shifts6`: 2 to this power. */
#define SHIFTS_LOG2 14
/* How many equal acknowledgements in a row are answered. Three make a client retransmit. */
#define MOST_REPEATS 8
/* Bounds for the delay of a delayed acknowledgement (TCP_DELACK_MIN is 40 ms, TCP_DELACK_MAX 200 ms). */
#define LATE_MS	 20
#define STALE_MS 1000

#define IP_FRAGMENT 0x3fff /* IP_MF and the offset */
#define VLAN_VID    0x0fff
#define DEFAULT_TTL 64
#define SWALLOW	    TC_ACT_SHOT
#define TURNS_EACH  2 /* versions of IP */
#define TCPOPT_WORD_TS                                                                             \
	__constant_cpu_to_be32(0x0101080a) /* NOP, NOP, timestamps: as most stacks send them */
#define TCP_WINDOW     __constant_cpu_to_be32(0x0000ffff)
#define TCP_FLAGS_CTRL (TCP_FLAG_SYN | TCP_FLAG_RST | TCP_FLAG_FIN | TCP_FLAG_ACK)

/* include/net/tcp.h */
#define TCPOPT_EOL	  0
#define TCPOPT_NOP	  1
#define TCPOPT_MSS	  2
#define TCPOPT_WINDOW	  3
#define TCPOPT_SACK_PERM  4
#define TCPOPT_SACK	  5
#define TCPOPT_TIMESTAMP  8
#define TCPOLEN_TIMESTAMP 10
#define MAX_OPTIONS	  40 /* bytes */
#define MOST_SACK_EDGES	  8

/* Kinds of addresses in own4 and own6, from the controller. */
#define OWN	  1 /* this host's, or one that is no valid source */
#define SERVED_LO 2 /* served to clients on this host */
#define SERVED	  4 /* served to clients behind other devices */

struct addr {
	__u32 word[4];
};

/* A connection, by its client. IPv4 addresses are mapped; all in network order. */
struct conn_key {
	struct addr client, server;
	__u16 client_port, server_port;
};

/* State of a recent connection. Losing it does no harm. */
struct recent {
	__u32 shift;   /* of the connection that owns the slot: mirror_shift() */
	__u32 isn;     /* the client's initial sequence number, until it is open */
	__u32 said;    /* a digest of its last acknowledgement */
	__u16 repeats; /* of that acknowledgement */
	__u8 opening;  /* its SYN was answered */
	__u8 nagle;    /* whether the client has Nagle's algorithm on: the values below */
	__u32 when_ms; /* of its last data; in state LATE, the time until which data counts as held back */
};

/* Values of nagle. */
#define UNKNOWN 0
#define LATE	1 /* a late acknowledgement of everything came, and nothing since */
#define HOLDS	2 /* data followed at once on its answer: the client waits for our acknowledgements */

/*
 * The shift of a connection seen lately, because its hash takes a fifth of the program's instructions. CPUs write an
 * entry without a lock. So its addresses are XORed with its other word: what two CPUs have mixed is nobody's.
 */
struct known4 {
	__u64 word; /* the ports, and above them the shift */
	__u64 addrs[1];
};

struct known6 {
	__u64 word;
	__u64 addrs[4];
};

struct totals {
	__u64 opened, aborted;
};

BPF_PERCPU_ARRAY(paths, struct path_stats, 1);
BPF_PERCPU_ARRAY(totals, struct totals, 1);
/* Open connections: from the end of the handshake to the client's FIN or RST. */
BPF_TABLE("lru_hash", struct conn_key, __u8, conns, KECHO_MAX_CONNS);
BPF_ARRAY(recents, struct recent, RECENT);
BPF_ARRAY(shifts4, struct known4, 1 << SHIFTS_LOG2);
BPF_ARRAY(shifts6, struct known6, 1 << SHIFTS_LOG2);
BPF_HASH(own4, __u32, __u8, 4096);
BPF_HASH(own6, struct addr, __u8, 4096);
BPF_PROG_ARRAY(turns, 6);

/* ---- what a connection is ---- */

/* The slot of a connection in shifts4 or shifts6. Clients can meet in one: then the hash is computed again. */
static __always_inline __u32 shift_slot(__u64 client, __u32 ports)
{
	return (client + ports) * 0x9e3779b97f4a7c15 >> (64 - SHIFTS_LOG2);
}

/* The shift of the connection of these addresses, in @words words, and ports: @known if it is that one's, or its hash. */
static __always_inline __u32 conn_shift(const __u64 *addrs, int words, __u32 ports,
					volatile __u64 *known, __u64 *known_addrs)
{
	__u64 word = *known, differs = (__u32)word ^ ports;
	struct siphash sip;
	__u32 shift;
	int i;

#pragma unroll
	for (i = 0; i < words; i++)
		differs |= known_addrs[i] ^ word ^ addrs[i];
	if (!differs)
		return word >> 32;
	sip = siphash_begin(KECHO_KEY0, KECHO_KEY1);
#pragma unroll
	for (i = 0; i < words; i++)
		siphash_add(&sip, addrs[i]);
	shift = mirror_shift(siphash_end(&sip, ports, words * sizeof(*addrs) + sizeof(ports)));
	word = (__u64)shift << 32 | ports;
	*known = word;
#pragma unroll
	for (i = 0; i < words; i++)
		known_addrs[i] = addrs[i] ^ word;
	return shift;
}

/* How far the echo's sequence numbers are ahead of the client's: secret, and constant for a connection. */
static __always_inline __u32 conn_shift4(const struct iphdr *ip, __u32 ports)
{
	__u64 addrs[] = {ip->saddr | (__u64)ip->daddr << 32};
	__u32 slot = shift_slot(ip->saddr, ports);
	struct known4 *known = shifts4.lookup(&slot);

	return known ? conn_shift(addrs, 1, ports, &known->word, known->addrs)
		     : 0; /* for the verifier */
}

static __always_inline __u32 conn_shift6(const struct ipv6hdr *ip, __u32 ports)
{
	const __u32 *from = ip->saddr.in6_u.u6_addr32, *to = ip->daddr.in6_u.u6_addr32;
	__u64 addrs[] = {from[0] | (__u64)from[1] << 32, from[2] | (__u64)from[3] << 32,
			 to[0] | (__u64)to[1] << 32, to[2] | (__u64)to[3] << 32};
	__u32 slot = shift_slot(addrs[0] + addrs[1], ports);
	struct known6 *known = shifts6.lookup(&slot);

	return known ? conn_shift(addrs, 4, ports, &known->word, known->addrs)
		     : 0; /* for the verifier */
}

static __always_inline struct addr addr_v4(__u32 ip4)
{
	return (struct addr){{0, 0, bpf_htonl(0xffff), ip4}};
}

static __always_inline struct addr addr_v6(const struct in6_addr *ip6)
{
	const __u32 *word = ip6->in6_u.u6_addr32;

	return (struct addr){{word[0], word[1], word[2], word[3]}};
}

static __always_inline struct conn_key conn_key(const void *ip, const struct tcphdr *tcp, bool v6)
{
	const struct iphdr *ip4 = ip;
	const struct ipv6hdr *ip6 = ip;

	return (struct conn_key){
		.client = v6 ? addr_v6(&ip6->saddr) : addr_v4(ip4->saddr),
		.server = v6 ? addr_v6(&ip6->daddr) : addr_v4(ip4->daddr),
		.client_port = tcp->source,
		.server_port = tcp->dest,
	};
}

/* ---- whose packets are ours ---- */

static __always_inline __u32 link_size(int kind)
{
	return kind == IP ? 0 : ETH_HLEN;
}

static __always_inline __u32 ip_size(bool v6)
{
	return v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

static __always_inline bool is_served4(const struct iphdr *ip, int kind)
{
	__u32 from = ip->saddr, to = ip->daddr;
	__u8 first = bpf_ntohl(from) >> 24, *what;

	if (kind == LO) {
		/* What most services are bound to: 150 instructions less than a look-up. */
		if (KECHO_ANY_V4 || (KECHO_LOOPBACK_V4 && to == bpf_htonl(INADDR_LOOPBACK)))
			return true;
		what = own4.lookup(&to);
		return what && *what & SERVED_LO;
	}
	if (first == 0 || first == 127 || first >= 224 || own4.lookup(&from))
		return false;
	what = own4.lookup(&to);
	return what && *what & SERVED;
}

static __always_inline bool is_served6(const struct ipv6hdr *ip, int kind)
{
	struct addr from = addr_v6(&ip->saddr), to = addr_v6(&ip->daddr);
	__u8 *what;

	if (kind == LO) {
		if (KECHO_ANY_V6 || (KECHO_LOOPBACK_V6 && !(to.word[0] | to.word[1] | to.word[2]) &&
				     to.word[3] == bpf_htonl(1)))
			return true;
		what = own6.lookup(&to);
		return what && *what & SERVED_LO;
	}
	if (bpf_ntohl(from.word[0]) >> 24 == 0xff || !(from.word[0] | from.word[1]) ||
	    own6.lookup(&from)) /* multicast; none, loopback, IPv4 in disguise */
		return false;
	what = own6.lookup(&to);
	return what && *what & SERVED;
}

static __always_inline bool ip_checksum_holds(const struct iphdr *ip)
{
	const __u16 *half = (const __u16 *)ip;
	__u32 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < 10; i++)
		sum += half[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff; /* no second carry: that would take 0xffff0000 */
}

/* The length of the TCP segment with its header; 0 if the packet is shorter than its header says. */
static __always_inline __u32 segment_size(struct __sk_buff *skb, const void *ip, int kind, bool v6)
{
	const struct iphdr *ip4 = ip;
	const struct ipv6hdr *ip6 = ip;
	__u32 there = skb->len - link_size(kind), size;

	size = v6 ? bpf_ntohs(ip6->payload_len) + ip_size(true) : bpf_ntohs(ip4->tot_len);
	if (!v6 && !size && skb->gso_size) /* BIG TCP */
		size = there;
	return size <= there && size > ip_size(v6) ? size - ip_size(v6) : 0;
}

/* ---- what becomes of a segment ---- */

/* A received segment or its echo. In host order, but for the word of flags. */
struct segment {
	__u32 seq, ack;
	__u32 flags;   /* data offset, flags, window */
	__u32 payload; /* bytes */
	__u32 options; /* bytes */
	bool bare;     /* the echo has no payload */
};

/* True once for each way in which a connection opens. */
static __always_inline bool opens(struct recent *recent, __u32 seen)
{
	if (!recent->opening || seen != recent->isn + 1)
		return false;
	recent->opening = 0;
	return true;
}

/* Has this acknowledgement been repeated too often? That ends exchanges in which the client answers every answer. */
static __always_inline bool repeats(struct recent *recent, __u32 said)
{
	if (recent->said != said) {
		recent->said = said;
		recent->repeats = 0;
		return false;
	}
	return ++recent->repeats > MOST_REPEATS;
}

/*
 * A client with Nagle's algorithm holds a small segment back until the one before is acknowledged. Here that takes until
 * its own delayed acknowledgement of the echo is answered. Such a client is recognised by a late acknowledgement on whose
 * answer data follows at once, that is, sooner than the delay of the acknowledgement.
 */
static __always_inline void note_ack_of_all(struct recent *recent, __u32 now_ms)
{
	__u32 late_ms = now_ms - recent->when_ms;

	if (recent->nagle != UNKNOWN || late_ms <= LATE_MS || late_ms > STALE_MS)
		return;
	recent->nagle = LATE;
	recent->when_ms = now_ms + late_ms - LATE_MS;
}

/* Called for each segment of data; true if the client waits for our acknowledgement of it. */
static __always_inline bool holds_back(struct recent *recent, __u32 now_ms)
{
	if (recent->nagle == LATE)
		recent->nagle = (__s32)(now_ms - recent->when_ms) < 0 ? HOLDS : UNKNOWN;
	recent->when_ms = now_ms;
	return recent->nagle == HOLDS;
}

static __always_inline void count_conn(bool opened, bool aborted)
{
	int key = 0;
	struct totals *total = totals.lookup(&key);

	if (!total)
		return;
	total->opened += opened;
	total->aborted += aborted;
}

static __always_inline void conn_open(struct conn_key *key)
{
	__u8 one = 1;

	conns.update(key, &one);
	count_conn(true, false);
}

static __always_inline void conn_close(struct conn_key *key, bool aborted)
{
	if (!conns.delete(key) && aborted)
		count_conn(false, true);
}

/* ---- rewriting ---- */

/* Adds the change of a word to a checksum. */
static __always_inline __u64 sum_change(__u64 sum, __u32 from, __u32 to)
{
	return sum + (__u32)~from + to;
}

static __always_inline __u32 sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline __u16 sum_fold16(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Replaces a number at any offset, and adds the change of the checksum to @sum. */
static __always_inline bool replace32(struct __sk_buff *skb, __u32 at, __be32 from, __be32 to,
				      __u64 *sum)
{
	__u32 change = sum_fold(sum_change(0, from, to));

	if (at % 2) /* l4 is even everywhere */
		change = change >> 8 | change << 24;
	*sum += change;
	return !bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0);
}

static __always_inline bool turn_timestamps(struct __sk_buff *skb, __u32 at, __u64 *sum)
{
	__be32 stamps[2]; /* value, echo reply */

	return !bpf_skb_load_bytes(skb, at, stamps, sizeof(stamps)) &&
	       replace32(skb, at + 4, stamps[1], stamps[0], sum);
}

static __always_inline bool turn_sack(struct __sk_buff *skb, __u32 at, __u32 size, __u32 shift,
				      __u32 *said, __u64 *sum)
{
	__u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < MOST_SACK_EDGES; i++) {
		__be32 edge;

		if (4 * i + 4 > size)
			break;
		if (bpf_skb_load_bytes(skb, at + 4 * i, &edge, sizeof(edge)))
			return false;
		*said = *said * 31 + edge;
		if (!replace32(skb, at + 4 * i, edge, bpf_htonl(bpf_ntohl(edge) - shift), sum))
			return false;
	}
	return true;
}

/* The options of a client's SYN that the echo repeats. Others are declined, such as fast open and MPTCP. */
static __always_inline bool is_agreed(__u8 kind)
{
	return kind == TCPOPT_NOP || kind == TCPOPT_MSS || kind == TCPOPT_WINDOW ||
	       kind == TCPOPT_SACK_PERM || kind == TCPOPT_TIMESTAMP;
}

/*
 * Replaces the options of the segment, @size bytes from @options, by those of the echo. False if they are malformed. An
 * option that changes is replaced after the loop, which keeps the paths through it few, for the verifier.
 */
static __always_inline bool turn_options(struct __sk_buff *skb, __u32 options, __u32 size, bool syn,
					 __u32 shift, __u32 *said, __u64 *sum)
{
	__u8 nops[MAX_OPTIONS], kind, byte;
	/*
	 * How far it is, and where it has found timestamps and SACK, from @options on. The verifier
	 * forgets what was stored in a byte, so that one option looks to it like any other, whatever
	 * came before it.
	 */
	volatile __u8 done = 0, stamps = 0, sack = 0, sack_size = 0;
	__u32 i;

	__builtin_memset(nops, TCPOPT_NOP, sizeof(nops));
#pragma clang loop unroll(disable)
	for (i = 0; i < MAX_OPTIONS && done < size; i++) {
		__u32 at = options + done, left = size - done;
		__u64 length = 1; /* as wide as a register, so that its bounds stay known */

		if (bpf_skb_load_bytes(skb, at, &kind, 1))
			return false;
		if (kind == TCPOPT_EOL)
			break;
		if (kind != TCPOPT_NOP) {
			if (bpf_skb_load_bytes(skb, at + 1, &byte, 1))
				return false;
			length = byte;
			if (length < 2)
				return false;
			/* Otherwise clang 19 makes one comparison of the two, which gives no bound. */
			asm volatile("" : "+r"(length));
			if (length > MAX_OPTIONS || length > left)
				return false;
		}
		if (kind == TCPOPT_TIMESTAMP) {
			if (length != TCPOLEN_TIMESTAMP || stamps)
				return false;
			stamps = done + 2;
		} else if (syn && !is_agreed(kind)) { /* the checksum is begun anew */
			if (bpf_skb_store_bytes(skb, at, nops, length, 0))
				return false;
		} else if (!syn && kind == TCPOPT_SACK) {
			if (sack)
				return false;
			sack = done + 2;
			sack_size = length - 2;
		}
		done += length;
	}
	return (!stamps || turn_timestamps(skb, options + stamps, sum)) &&
	       (!sack || turn_sack(skb, options + sack, sack_size, shift, said, sum));
}

/*
 * Sends the headers without payload, with a new checksum. The checksum covers the whole segment, or the pseudo-header
 * alone if a device adds the rest. The kernel knows which of them it is; the two calls below update either.
 */
static __always_inline bool strip(struct __sk_buff *skb, __u32 size, int kind, bool v6)
{
	const __u32 l2 = link_size(kind), l4 = l2 + ip_size(v6);
	__u32 i;
	void *data, *end;
	struct tcphdr *tcp;
	__u64 sum = 0, pseudo;

	if (bpf_skb_change_tail(skb, l4 + size, 0))
		return false;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	tcp = data + l4;
	if ((void *)(tcp + 1) > end)
		return false;
	pseudo = bpf_htonl(IPPROTO_TCP) + (__u64)bpf_htonl(size);
	if (v6) {
		struct ipv6hdr *ip = data + l2;

		ip->payload_len = bpf_htons(size);
#pragma unroll
		for (i = 0; i < 8; i++)
			pseudo += ip->saddr.in6_u.u6_addr32[i]; /* and the other's, behind it */
	} else {
		struct iphdr *ip = data + l2;
		__u32 from = ip->tot_len;

		ip->tot_len = bpf_htons(ip_size(false) + size);
		ip->check = ~sum_fold16((__u32)(__u16)~ip->check + (__u16)~from + ip->tot_len);
		pseudo += (__u64)ip->saddr + ip->daddr;
	}
	tcp->check = 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < sizeof(*tcp) + MAX_OPTIONS; i += sizeof(__u32)) {
		__u32 *word = (void *)tcp + i;

		if (i >= size || (void *)(word + 1) > end)
			break;
		sum += *word;
	}
	return !bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), 0, sum_fold(sum),
				    0) &&
	       !bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), 0, sum_fold(pseudo),
				    BPF_F_PSEUDO_HDR);
}

static __always_inline void swap_addresses(void *data, int kind, bool v6)
{
	if (kind == ETHER) {
		struct ethhdr *eth = data;
		__u8 source[ETH_ALEN];

		__builtin_memcpy(source, eth->h_source, ETH_ALEN);
		__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
		__builtin_memcpy(eth->h_dest, source, ETH_ALEN);
	}
	if (v6) {
		struct ipv6hdr *ip = data + link_size(kind);
		struct in6_addr from = ip->saddr;

		ip->saddr = ip->daddr;
		ip->daddr = from;
		if (kind != LO)
			ip->hop_limit = DEFAULT_TTL;
	} else {
		struct iphdr *ip = data + link_size(kind);
		__u32 from = ip->saddr;

		ip->saddr = ip->daddr;
		ip->daddr = from;
		if (kind != LO) {
			__u16 *life = (__u16 *)&ip->ttl, before = *life; /* ttl, protocol */

			ip->ttl = DEFAULT_TTL;
			ip->check = ~sum_fold16((__u32)(__u16)~ip->check + (__u16)~before + *life);
		}
	}
}

static __always_inline void count_echo(__u32 bytes, __u64 start_ns)
{
	int path = 0;
	struct path_stats *stats = paths.lookup(&path);
	__u64 slot;

	if (!stats)
		return;
	stats->echoes++;
	stats->bytes += bytes;
	if (!KECHO_LATENCY)
		return;
	slot = hist_slot(bpf_ktime_get_ns() - start_ns);
	if (slot < HIST_SLOTS) /* always true, for the verifier */
		stats->latency[slot]++;
}

/* ---- the programs ---- */

static __always_inline int gate(struct __sk_buff *skb, int kind)
{
	const __u32 l2 = link_size(kind);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	bool v6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	const __u16 *port;

	if (!v6 && skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (kind != LO &&
	    (skb->pkt_type != PACKET_HOST || (skb->vlan_present && skb->vlan_tci & VLAN_VID)))
		return TC_ACT_UNSPEC;
	if (data + l2 + ip_size(v6) + sizeof(struct tcphdr) > end) {
		/* The stack would do this next. A packet that is too short stays as it is. */
		if (bpf_skb_pull_data(skb, l2 + ip_size(v6) + sizeof(struct tcphdr)))
			return TC_ACT_UNSPEC;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (v6) {
		const struct ipv6hdr *ip = data + l2;

		port = data + l2 + ip_size(true) + offsetof(struct tcphdr, dest);
		if ((void *)(port + 1) > end || ip->version != 6 || ip->nexthdr != IPPROTO_TCP)
			return TC_ACT_UNSPEC;
	} else {
		const struct iphdr *ip = data + l2;

		port = data + l2 + ip_size(false) + offsetof(struct tcphdr, dest);
		if ((void *)(port + 1) > end || *(const __u8 *)ip != 0x45 ||
		    ip->protocol != IPPROTO_TCP || ip->frag_off & bpf_htons(IP_FRAGMENT))
			return TC_ACT_UNSPEC;
	}
	if (*port == KECHO_PORT_BE) {
		if (v6)
			turns.call(skb, kind * TURNS_EACH + 1);
		else
			turns.call(skb, kind * TURNS_EACH);
	}
	return TC_ACT_UNSPEC;
}

/*
 * Makes the echo of a segment with ACK that is within reach. Returns true if it goes out twice, because the client waits
 * for the acknowledgement in it. @said becomes a digest of an acknowledgement that must not be answered for ever.
 */
static __always_inline bool answer_ack(const struct segment *seg, struct segment *echo, __u32 seen,
				       __s32 in_flight, struct recent *recent, __u32 now_ms,
				       bool gso, __u32 *said)
{
	const bool fin = seg->flags & TCP_FLAG_FIN;

	if (in_flight <= 0 && (__s32)(seg->seq - seen) < 0) {
		/*
		 * The client has the echo already (a retransmission, a probe, keepalive); only our
		 * acknowledgement is missing. An unchanged echo would be old to its TCP, which
		 * then ignores the acknowledgement in it.
		 */
		echo->seq = seg->ack;
		echo->flags &= ~(TCP_FLAG_FIN | TCP_FLAG_PSH);
		echo->bare = seg->payload;
	} else if (seg->payload) {
		/* A segment that needs GSO is larger than what Nagle's algorithm holds back. */
		return holds_back(recent, now_ms) && !gso && !fin;
	} else if (!in_flight) {
		note_ack_of_all(recent, now_ms);
	} else if (!fin && in_flight > 0) {
		__u32 window = bpf_ntohl(seg->flags) & 0xffff;

		/* If the window is closed, what we could still send is new only there. */
		if (!window)
			echo->seq = seg->ack;
		*said = seg->seq + seg->ack * 31 + window;
	}
	return false;
}

/* Answers time stamps that stand where most stacks put them, as fast as that allows. */
static __always_inline bool turn_usual_options(const struct segment *seg, struct tcphdr *tcp,
					       void *end, __u64 *sum)
{
	__u32 *stamp = (__u32 *)(tcp + 1) + 1; /* value, echo reply */

	if (seg->options != 12 || (void *)(tcp + 1) + 12 > end ||
	    *(__u32 *)(tcp + 1) != TCPOPT_WORD_TS)
		return false;
	*sum = sum_change(*sum, stamp[1], stamp[0]);
	stamp[1] = stamp[0];
	return true;
}

static __always_inline void answer_syn(const struct segment *seg, struct segment *echo, __u32 shift,
				       struct recent *recent)
{
	*recent = (struct recent){.shift = shift, .isn = seg->seq, .opening = 1};
	echo->ack = seg->seq + 1;
	/* No ECN: the echo would carry the marks of the way here as those of the way back. */
	echo->flags = (seg->flags & (TCP_DATA_OFFSET | TCP_WINDOW)) | TCP_FLAG_SYN | TCP_FLAG_ACK;
	echo->bare = true;
}

/* Makes the headers those of the echo. Returns @sum with what changes in the checksum. */
static __always_inline __u64 write_headers(struct tcphdr *tcp, __u32 ports,
					   const struct segment *seg, const struct segment *echo,
					   __u64 sum)
{
	*(__u32 *)tcp = ports << 16 | ports >> 16;
	sum = sum_change(sum, bpf_htonl(seg->seq), bpf_htonl(echo->seq));
	sum = sum_change(sum, tcp->ack_seq, bpf_htonl(echo->ack));
	sum = sum_change(sum, seg->flags, echo->flags);
	tcp->seq = bpf_htonl(echo->seq);
	tcp->ack_seq = bpf_htonl(echo->ack);
	tcp_flag_word(tcp) = echo->flags;
	if (tcp->urg_ptr) {
		sum += (__u16)~tcp->urg_ptr;
		tcp->urg_ptr = 0;
	}
	return sum;
}

/* Is it a segment that the service takes? Otherwise the stack gets it. */
static __always_inline bool is_ours(const void *ip, int kind, bool v6)
{
	if (!(v6 ? is_served6(ip, kind) : is_served4(ip, kind)))
		return false;
	return kind == LO || v6 || ip_checksum_holds(ip);
}

static __always_inline int turn(struct __sk_buff *skb, int kind, bool v6)
{
	const __u32 l2 = link_size(kind), l4 = l2 + ip_size(v6);
	__u64 start_ns = KECHO_LATENCY ? bpf_ktime_get_ns() : bpf_ktime_get_coarse_ns(), sum = 0;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct tcphdr *tcp = data + l4;
	struct segment seg, echo;
	struct conn_key key;
	struct recent *recent;
	__u32 shift, slot, size, seen, said = 0, ports, now_ms = start_ns >> 20; /* almost */
	__s32 in_flight;
	bool fin, nudge = false;

	if ((void *)(tcp + 1) > end || !is_ours(data + l2, kind, v6))
		return TC_ACT_UNSPEC;
	size = segment_size(skb, data + l2, kind, v6);
	if (tcp->doff < sizeof(*tcp) / 4 || tcp->doff * 4 > size)
		return TC_ACT_UNSPEC;

	seg.seq = bpf_ntohl(tcp->seq);
	seg.ack = bpf_ntohl(tcp->ack_seq);
	seg.flags = tcp_flag_word(tcp);
	seg.options = tcp->doff * 4 - sizeof(*tcp);
	seg.payload = size - tcp->doff * 4;
	ports = *(__u32 *)tcp;
	shift = v6 ? conn_shift6(data + l2, ports) : conn_shift4(data + l2, ports);
	slot = shift % RECENT;
	recent = recents.lookup(&slot);
	if (!recent) /* never true, for the verifier */
		return TC_ACT_UNSPEC;

	fin = seg.flags & TCP_FLAG_FIN;
	seen = seg.ack - shift; /* the client's own number up to which it has the echo */
	in_flight = seg.seq + seg.payload + fin - seen;
	echo = seg;
	echo.seq = seg.seq + shift;
	echo.ack = seen;
	echo.bare = false;
	switch (seg.flags & TCP_FLAGS_CTRL) {
	case TCP_FLAG_SYN:
		answer_syn(&seg, &echo, shift, recent);
		break;
	case TCP_FLAG_ACK | TCP_FLAG_FIN:
	case TCP_FLAG_ACK:
		if (in_flight >= MOST_IN_FLIGHT || in_flight <= -MOST_IN_FLIGHT)
			return TC_ACT_UNSPEC; /* the stack answers for a closed port */
		echo.flags = seg.flags & (TCP_DATA_OFFSET | TCP_WINDOW | TCP_FLAG_ACK |
					  TCP_FLAG_PSH | TCP_FLAG_FIN);
		if (recent->shift != shift)
			*recent = (struct recent){.shift = shift};
		if (opens(recent, seen)) {
			key = conn_key(data + l2, tcp, v6);
			conn_open(&key);
			if (!seg.payload && !fin && !in_flight)
				return SWALLOW; /* the end of the handshake needs no answer */
		}
		if (fin) {
			key = conn_key(data + l2, tcp, v6);
			conn_close(&key, false);
		}
		nudge = answer_ack(&seg, &echo, seen, in_flight, recent, now_ms, skb->gso_size,
				   &said);
		break;
	case TCP_FLAG_RST:
	case TCP_FLAG_RST | TCP_FLAG_ACK:
		key = conn_key(data + l2, tcp, v6);
		conn_close(&key, true);
		return TC_ACT_UNSPEC;
	default:
		return TC_ACT_UNSPEC;
	}

	if (!turn_usual_options(&seg, tcp, end, &sum) && seg.options) {
		if (!turn_options(skb, l4 + sizeof(*tcp), seg.options, seg.flags & TCP_FLAG_SYN,
				  shift, &said, &sum))
			return TC_ACT_UNSPEC;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		tcp = data + l4;
		if ((void *)(tcp + 1) > end)
			return SWALLOW;
	}
	if (said && repeats(recent, said))
		return SWALLOW;

	swap_addresses(data, kind, v6);
	sum = write_headers(tcp, ports, &seg, &echo, sum);
	if (echo.bare) {
		if (!strip(skb, sizeof(*tcp) + seg.options, kind, v6))
			return SWALLOW;
	} else {
		if (bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), 0, sum_fold(sum),
					0))
			return SWALLOW;
		if (seg.payload && !(seg.flags & TCP_FLAG_SYN))
			count_echo(seg.payload, start_ns);
	}
	/* Sends the segment once more: TCP acknowledges data that is all old at once. */
	if (nudge)
		bpf_clone_redirect(skb, skb->ifindex, 0);
	return kind == LO ? TC_ACT_OK : bpf_redirect(skb->ifindex, 0);
}

#define PROGRAMS(name, kind)                                                                       \
	int kecho_##name(struct __sk_buff *skb)                                                    \
	{                                                                                          \
		return gate(skb, kind);                                                            \
	}                                                                                          \
                                                                                                   \
	int kecho_##name##_v4(struct __sk_buff *skb)                                               \
	{                                                                                          \
		return turn(skb, kind, false);                                                     \
	}                                                                                          \
                                                                                                   \
	int kecho_##name##_v6(struct __sk_buff *skb)                                               \
	{                                                                                          \
		return turn(skb, kind, true);                                                      \
	}

PROGRAMS(lo, LO)
#if KECHO_KINDS > 1
PROGRAMS(ether, ETHER)
PROGRAMS(ip, IP)
#endif
