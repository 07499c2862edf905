// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The mirror: a TCP echo without a socket. It turns segments round at tc ingress. ../docs/mirror.md explains the rules.
 *
 *   kecho_KIND                 attached: decides whether a packet is ours. It only reads, to cost other packets little
 *   kecho_KIND_v4, KIND_v6     tail-called by kecho_KIND: turns a segment into its own echo
 *
 * KIND is that of the device: lo, ether (Ethernet), ip (no link header). What is known of a connection is in mirror-conn.h,
 * how a packet is rewritten in mirror-packet.h.
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
#include "mirror-conn.h"
#include "mirror-packet.h"

#define IP_FRAGMENT    0x3fff /* IP_MF and the offset */
#define VLAN_VID       0x0fff
#define SWALLOW	       TC_ACT_SHOT
#define TURNS_EACH     2 /* versions of IP */
#define TCP_WINDOW     __constant_cpu_to_be32(0x0000ffff)
#define TCP_FLAGS_CTRL (TCP_FLAG_SYN | TCP_FLAG_RST | TCP_FLAG_FIN | TCP_FLAG_ACK)

/* Kinds of addresses in own4 and own6, from the controller. */
#define OWN	  1 /* this host's, or one that is no valid source */
#define SERVED_LO 2 /* served to clients on this host */
#define SERVED	  4 /* served to clients behind other devices */

BPF_PERCPU_ARRAY(paths, struct path_stats, 1);
BPF_HASH(own4, __u32, __u8, 4096);
BPF_HASH(own6, struct addr, __u8, 4096);
BPF_PROG_ARRAY(turns, 6);

/* ---- whose packets are ours ---- */

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
		return holds_back(recent, now_ms, seg->seq == seen) && !gso && !fin;
	} else if (!in_flight) {
		note_ack_of_all(recent, now_ms);
	} else if (!fin && in_flight > 0) {
		__u32 window = bpf_ntohl(seg->flags) & 0xffff, room = window << recent->scale;

		/*
		 * A client short of memory has taken back a part of its window. Beyond its end TCP
		 * would ignore the answer, and answer it in turn. So it has the last number in the
		 * window, or ack if that is closed. With ack always, this segment's time would be
		 * the newest to the client, and an echo that it overtook too old (PAWS).
		 */
		if (in_flight > room)
			echo->seq = seg->ack + room - !!room;
		*said = seg->seq + seg->ack * 31 + window;
	}
	return false;
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
	__u32 shift, slot, size, seen, said = 0, sacked = 0, ports;
	__u32 now_ms = start_ns >> 20; /* almost */
	__u8 scale = 0;
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
			*recent = (struct recent){.shift = shift, .scale = MOST_SCALE};
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

	if (seg.options && (echo.bare || !has_usual_options(&seg, tcp, end))) {
		if (!turn_options(skb, l4 + sizeof(*tcp), seg.options, seg.flags & TCP_FLAG_SYN,
				  echo.bare, shift, &scale, &sacked, &sum))
			return TC_ACT_UNSPEC;
		if (scale)
			recent->scale = scale < MOST_SCALE ? scale : MOST_SCALE;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		tcp = data + l4;
		if ((void *)(tcp + 1) > end)
			return SWALLOW;
	}
	if (said && repeats(recent, said + sacked))
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
