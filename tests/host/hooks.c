// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Programs for hooks.py: each turns packets round at another hook, and does nothing else. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/udp.h>

/* Makes a packet to our port its own echo. */
static __always_inline bool turn(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct udphdr *udp = (void *)ip + sizeof(*ip);
	__u8 mac[ETH_ALEN];
	__u32 from;

	if ((void *)(udp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP || udp->dest != bpf_htons(KECHO_PORT))
		return false;
	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	from = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = from;
	udp->dest = udp->source;
	udp->source = bpf_htons(KECHO_PORT);
	udp->check = 0; /* it is partial, and XDP has no way to say so */
	return true;
}

int kecho_redirect(struct __sk_buff *skb)
{
	bool ours = turn((void *)(long)skb->data, (void *)(long)skb->data_end);

	return ours ? bpf_redirect(skb->ifindex, 0) : TC_ACT_UNSPEC;
}

int kecho_redirect_peer(struct __sk_buff *skb)
{
	bool ours = turn((void *)(long)skb->data, (void *)(long)skb->data_end);

	return ours ? bpf_redirect_peer(skb->ifindex, 0) : TC_ACT_UNSPEC;
}

int kecho_xdp(struct xdp_md *ctx)
{
	return turn((void *)(long)ctx->data, (void *)(long)ctx->data_end) ? XDP_TX : XDP_PASS;
}
