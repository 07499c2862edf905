/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the mirror knows of a connection: its shift, and what it has seen of it lately. Losing any of it does no harm. */

#include "mirror.h"
#include "siphash.h"

/* Slots of `recent`; a power of two. */
#define RECENT 65536
/* Slots of `shifts4` and of `shifts6`: 2 to this power. */
#define SHIFTS_LOG2 14
/* How many equal acknowledgements in a row are answered. Three make a client retransmit. */
#define MOST_REPEATS 8
#define MOST_SCALE   14 /* TCP_MAX_WSCALE, RFC 7323 section 2.3 */
/* Bounds for the delay of a delayed acknowledgement (TCP_DELACK_MIN is 40 ms, TCP_DELACK_MAX 200 ms). */
#define LATE_MS	 20
#define STALE_MS 1000

struct addr {
	__u32 word[4];
};

/* A connection, by its client. IPv4 addresses are mapped; all in network order. */
struct conn_key {
	struct addr client, server;
	__u16 client_port, server_port;
};

/* State of a recent connection. */
struct recent {
	__u32 shift;  /* of the connection that owns the slot: mirror_shift() */
	__u32 isn;    /* the client's initial sequence number, until it is open */
	__u32 said;   /* a digest of its last acknowledgement */
	__u8 repeats; /* of that acknowledgement */
	__u8 scale;   /* of the client's window: bits; MOST_SCALE where that is not known */
	__u8 opening; /* its SYN was answered */
	__u8 nagle;   /* whether the client has Nagle's algorithm on: the values below */
	__u32 when_ms; /* of its last data; in state LATE, the time until which data counts as held back */
};

/* Values of nagle. */
#define UNKNOWN 0
#define LATE	1 /* a late acknowledgement of everything came, and nothing since */
#define HOLDS	2 /* data followed at once on its answer: the client waits for our acknowledgements */
#define DOUBTED 3 /* since then one segment was sent while another was in flight */

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

BPF_PERCPU_ARRAY(totals, struct totals, 1);
/* Open connections: from the end of the handshake to the client's FIN or RST. */
BPF_TABLE("lru_hash", struct conn_key, __u8, conns, KECHO_MAX_CONNS);
BPF_ARRAY(recents, struct recent, RECENT);
BPF_ARRAY(shifts4, struct known4, 1 << SHIFTS_LOG2);
BPF_ARRAY(shifts6, struct known6, 1 << SHIFTS_LOG2);

/* ---- which connection ---- */

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

/* ---- what it did last ---- */

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
	if (recent->repeats == MOST_REPEATS)
		return true;
	recent->repeats++;
	return false;
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

/*
 * Called for each segment of data, @alone if nothing else is in flight; true if the client waits for our acknowledgement
 * of it. A client that sends one segment after another does not.
 */
static __always_inline bool holds_back(struct recent *recent, __u32 now_ms, bool alone)
{
	__u32 then_ms = recent->when_ms;

	/* The acknowledgement of one among several is not called late. */
	recent->when_ms = alone ? now_ms : now_ms - STALE_MS - 1;
	if (recent->nagle == UNKNOWN)
		return false;
	if (recent->nagle == LATE)
		recent->nagle = (__s32)(now_ms - then_ms) < 0 ? HOLDS : UNKNOWN;
	else if (alone)
		recent->nagle = HOLDS;
	else
		recent->nagle = recent->nagle == HOLDS ? DOUBTED : UNKNOWN;
	return recent->nagle != UNKNOWN;
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
