/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Packets of the mirror: where things stand in them, and how one becomes its echo. */

/* Kinds of devices. */
#define LO    0
#define ETHER 1
#define IP    2

#define DEFAULT_TTL 64

/* include/net/tcp.h */
#define TCPOPT_EOL	  0
#define TCPOPT_NOP	  1
#define TCPOPT_MSS	  2
#define TCPOPT_WINDOW	  3
#define TCPOPT_SACK_PERM  4
#define TCPOPT_SACK	  5
#define TCPOPT_TIMESTAMP  8
#define TCPOLEN_WINDOW	  3
#define TCPOLEN_TIMESTAMP 10
#define MAX_OPTIONS	  40 /* bytes */
#define MOST_SACK_EDGES	  8
#define TCPOPT_WORD_TS                                                                             \
	__constant_cpu_to_be32(0x0101080a) /* NOP, NOP, timestamps: as most stacks send them */

static __always_inline __u32 link_size(int kind)
{
	return kind == IP ? 0 : ETH_HLEN;
}

static __always_inline __u32 ip_size(bool v6)
{
	return v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* A received segment or its echo. In host order, but for the word of flags. */
struct segment {
	__u32 seq, ack;
	__u32 flags;   /* data offset, flags, window */
	__u32 payload; /* bytes */
	__u32 options; /* bytes */
	bool bare;     /* the echo has no payload */
};

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

/*
 * Answers time stamps with the time at which the client sent this segment. A SYN has no echo reply yet. In data that is sent
 * again it is older than the timeout, and the client's TCP would take all of that for a round trip.
 */
static __always_inline bool answer_timestamps(struct __sk_buff *skb, __u32 at, __u64 *sum)
{
	__be32 stamps[2]; /* value, echo reply */

	return !bpf_skb_load_bytes(skb, at, stamps, sizeof(stamps)) &&
	       replace32(skb, at + 4, stamps[1], stamps[0], sum);
}

/* Makes the edges of SACK those of the echo. @sacked becomes a digest of them. */
static __always_inline bool turn_sack(struct __sk_buff *skb, __u32 at, __u32 size, __u32 shift,
				      __u32 *sacked, __u64 *sum)
{
	__u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < MOST_SACK_EDGES; i++) {
		__be32 edge;

		if (4 * i + 4 > size)
			break;
		if (bpf_skb_load_bytes(skb, at + 4 * i, &edge, sizeof(edge)))
			return false;
		*sacked = *sacked * 31 + edge;
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
 * option that changes is replaced after the loop, which keeps the paths through it few, for the verifier. @scale becomes
 * the window scale of a SYN that offers one.
 */
static __always_inline bool turn_options(struct __sk_buff *skb, __u32 options, __u32 size, bool syn,
					 bool bare, __u32 shift, __u8 *scale, __u32 *sacked,
					 __u64 *sum)
{
	__u8 nops[MAX_OPTIONS], kind, byte;
	/*
	 * How far it is, and where it has found what changes or is of use, from @options on. The verifier
	 * forgets what was stored in a byte, so that one option looks to it like any other, whatever
	 * came before it.
	 */
	volatile __u8 done = 0, stamps = 0, sack = 0, sack_size = 0, window = 0;
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
		} else if (syn && kind == TCPOPT_WINDOW && length == TCPOLEN_WINDOW) {
			window = done + 2;
		}
		done += length;
	}
	return (!window || !bpf_skb_load_bytes(skb, options + window, scale, sizeof(*scale))) &&
	       (!bare || !stamps || answer_timestamps(skb, options + stamps, sum)) &&
	       (!sack || turn_sack(skb, options + sack, sack_size, shift, sacked, sum));
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

/* Has the segment just time stamps, where most stacks put them? */
static __always_inline bool has_usual_options(const struct segment *seg, const struct tcphdr *tcp,
					      const void *end)
{
	return seg->options == 12 && (void *)(tcp + 1) + 12 <= end &&
	       *(const __u32 *)(tcp + 1) == TCPOPT_WORD_TS;
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
