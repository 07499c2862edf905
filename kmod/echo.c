// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * The data path: moves bytes from a socket's receive queue to its own send queue.
 *
 * It copies them. Sending the received pages themselves would save a copy of large messages. But a
 * local client may still write to pages it has sent (sendfile, vmsplice), and a few bytes can pin a
 * page that is charged to no socket buffer.
 */
#include "echo.h"

#include <linux/bvec.h>
#include <linux/local_lock.h>
#include <linux/percpu.h>
#include <linux/skbuff.h>
#include <linux/uio.h>
#include <net/tcp.h>
#include "compat.h"

/* The cost of a packet beside its bytes, in bytes: the budget must bound a flood of one-byte
 * packets too. */
#define SKB_COST 256

/*
 * The page fragment that payload is copied into. TCP keeps one of 32 KiB in every socket that has
 * sent, which is 312 MiB for 10,000 idle connections. So a pass lends the socket that of the CPU.
 */
struct lent_page {
	local_lock_t bh_lock; /* held, with BH off, from lend_page() to return_page() */
	struct page_frag frag;
};

static DEFINE_PER_CPU(struct lent_page, lent_page) = {.bh_lock = INIT_LOCAL_LOCK(bh_lock)};

void fastecho_echo_setup(struct sock *sk)
{
	sock_set_flag(sk, SOCK_URGINLINE); /* keeps urgent bytes in the stream */
	sk->sk_allocation = GFP_ATOMIC | __GFP_NOWARN;
	compat_sock_own_frag(sk);
}

void fastecho_echo_uninit(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
	{
		struct page *page = per_cpu_ptr(&lent_page, cpu)->frag.page;

		if (page)
			put_page(page);
	}
}

static void lend_page(struct sock *sk)
{
	compat_local_lock_nested_bh(&lent_page.bh_lock);
	swap(sk->sk_frag, *this_cpu_ptr(&lent_page.frag));
}

static void return_page(struct sock *sk)
{
	swap(sk->sk_frag, *this_cpu_ptr(&lent_page.frag));
	compat_local_unlock_nested_bh(&lent_page.bh_lock);
}

/* Finds the part of @skb that holds *@offset, itself or a member of its frag_list, and makes
 * *@offset relative to that part. */
static const struct sk_buff *find_part(const struct sk_buff *skb, unsigned int *offset)
{
	const struct sk_buff *part;

	if (likely(!skb_has_frag_list(skb)) || *offset < skb_pagelen(skb))
		return skb;
	*offset -= skb_pagelen(skb);
	for (part = skb_shinfo(skb)->frag_list; part; part = part->next) {
		if (*offset < part->len)
			return find_part(part, offset);
		*offset -= part->len;
	}
	return NULL;
}

/* Lists up to @len bytes of @skb from @offset on in @vecs. Returns the number of bytes. */
static size_t list_pages(const struct sk_buff *skb, unsigned int offset, size_t len,
			 struct bio_vec *vecs, unsigned int *nr_vecs)
{
	unsigned int headlen = skb_headlen(skb), nr = 0, i;
	size_t left = len;

	if (offset < headlen) {
		vecs[nr].bv_page = virt_to_page(skb->data + offset);
		vecs[nr].bv_offset = offset_in_page(skb->data + offset);
		vecs[nr].bv_len = min_t(size_t, left, headlen - offset);
		left -= vecs[nr++].bv_len;
		offset = headlen;
	}
	offset -= headlen;

	for (i = 0; left && i < skb_shinfo(skb)->nr_frags; i++) {
		const skb_frag_t *frag = &skb_shinfo(skb)->frags[i];
		unsigned int size = skb_frag_size(frag);

		if (offset >= size) {
			offset -= size;
			continue;
		}
		vecs[nr].bv_page = skb_frag_page(frag);
		vecs[nr].bv_offset = skb_frag_off(frag) + offset;
		vecs[nr].bv_len = min_t(size_t, left, size - offset);
		left -= vecs[nr++].bv_len;
		offset = 0;
	}

	*nr_vecs = nr;
	return len - left;
}

/* For tcp_read_sock(): sends what it can of @len bytes of @skb from @offset on, returns how many */
static int echo_skb(read_descriptor_t *desc, struct sk_buff *skb, unsigned int offset, size_t len)
{
	struct msghdr msg = {.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL};
	struct bio_vec vecs[MAX_SKB_FRAGS + 1];
	struct sock *sk = desc->arg.data;
	const struct sk_buff *part;
	unsigned int nr_vecs;
	size_t size;
	int sent;

	if (!desc->count)
		return 0;

	part = find_part(skb, &offset);
	if (unlikely(!part || !compat_skb_frags_readable(part)))
		return desc->error = -EFAULT;
	size = list_pages(part, offset, min(len, desc->count), vecs, &nr_vecs);

	desc->count -= min(desc->count, size + SKB_COST);
	if (desc->count && (size < len || !skb_queue_is_last(&sk->sk_receive_queue, skb)))
		msg.msg_flags |= MSG_MORE;
	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, vecs, nr_vecs, size);
	sent = tcp_sendmsg_locked(sk, &msg, size);

	if (sent > 0)
		desc->written += sent;
	if (sent < (int)size) {
		desc->error = sent < 0 ? sent : -EAGAIN;
		desc->count = 0;
	}
	return sent;
}

/*
 * True if TCP will call sk_write_space for an acknowledgement: of data in flight, or one that opens
 * the window. Data that only waits for more, since memory ran out within a pass, brings none.
 */
static bool ack_is_due(const struct sock *sk)
{
	const struct sk_buff *head = tcp_send_head(sk);

	return !tcp_rtx_queue_empty(sk) ||
	       (head && after(TCP_SKB_CB(head)->end_seq, tcp_wnd_end(tcp_sk(sk))));
}

static enum fastecho_verdict judge(const struct sock *sk, const read_descriptor_t *desc)
{
	if (unlikely(desc->error == -EAGAIN))
		return ack_is_due(sk) ? FASTECHO_STALLED : FASTECHO_NOMEM;
	if (unlikely(desc->error))
		return FASTECHO_FAILED;
	return skb_queue_empty(&sk->sk_receive_queue) ? FASTECHO_DRAINED : FASTECHO_BUDGET;
}

enum fastecho_verdict fastecho_echo_pass(struct sock *sk, size_t budget, size_t *sent)
{
	read_descriptor_t desc = {.count = budget, .arg.data = sk};

	/* tcp_read_sock() would stop at an urgent byte for good. It is echoed like any other. */
	if (unlikely(tcp_sk(sk)->urg_data))
		WRITE_ONCE(tcp_sk(sk)->urg_data, 0); /* poll() reads it without the lock */

	lend_page(sk);
	tcp_read_sock(sk, &desc, echo_skb);
	return_page(sk);

	*sent = desc.written;
	return judge(sk, &desc);
}
