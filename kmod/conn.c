// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * The life of a connection. Its callbacks in softirq or its work item echo for it.
 */
#include "conn.h"

#include <linux/list.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include <net/sock.h>
#include <net/tcp.h>
#include "compat.h"
#include "counters.h"
#include "echo.h"
#include "params.h"
#include "workqueue.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* The bytes that one connection may send back with BH off, before others get the CPU. */
#define PASS_BUDGET (64 * 1024)

/* The delay before another attempt, after sending found no memory. */
#define NOMEM_DELAY (HZ / 50)

/* The time that a peer has to acknowledge our FIN when the module closes the connection. */
#define CLOSE_DELAY (HZ / 4)

/*
 * In each state, who queues the work item, and who leaves the state:
 *
 *   state    the work is queued by                   the state is left by
 *   READY    data_ready, if it may not echo itself   data_ready or the work, after a pass
 *   BUSY     whoever entered it, at once             the work, after a pass
 *   STALLED  write_space, when it leaves the state   write_space, to BUSY
 *   SHUT     the work again, once the module closes  the work, to DEAD
 *   CUT      whoever entered it, and the work again  the work, to DEAD
 *   DEAD     whoever entered it, if not the work     nobody: the work frees the connection
 *
 * In all states but DEAD, state_change at the connection's end and fastecho_conn_close_all() queue
 * the work as well. It then leaves READY, BUSY and STALLED for SHUT, CUT or DEAD.
 */
enum conn_state {
	CONN_READY,   /* idle: whoever sees data next may echo it */
	CONN_BUSY,    /* a pass is running, or the work item is queued to go on */
	CONN_STALLED, /* the send buffer is full: sk_write_space goes on */
	CONN_SHUT,    /* our FIN is sent, after everything else */
	CONN_CUT,     /* there was no memory for our FIN: an RST will follow the data in flight */
	CONN_DEAD,    /* the work item has to free it */
};

struct conn {
	struct sock *sk;
	struct socket *sock; /* owned */
	enum conn_state state;
	bool orderly; /* our FIN is sent after the peer's, or because the module closes */
	unsigned long close_deadline; /* in jiffies: for the acknowledgement of our FIN */
	u64 ready_ns;	   /* of the oldest unanswered data_ready; 0: none, or not traced */
	u64 last_ready_ns; /* of the last data_ready */
	struct delayed_work work;
	struct list_head node; /* in conns */
	struct fastecho_callbacks original;
	void (*write_space)(struct sock *sk); /* original, which no listening socket replaces */
};

static struct kmem_cache *cache __ro_after_init;
static LIST_HEAD(conns);
/* Protects conns. Process context, BH on: never within a socket's lock, which softirqs take. */
static DEFINE_SPINLOCK(conns_lock);
static DECLARE_WAIT_QUEUE_HEAD(conns_gone);
static bool closing; /* all connections have to close */

/*
 * Locks the socket as softirq does, by its spinlock with BH off. If this owned the socket instead,
 * packets would collect in its backlog; tcp_sendmsg_locked() might process them and rearrange the
 * receive queue within a pass. A task that inspects the socket (ss -i) may own it for a moment.
 */
static void lock_conn_sock(struct sock *sk) __acquires(&sk->sk_lock.slock)
{
	while (lock_sock_fast(sk))
		unlock_sock_fast(sk, true);
}

static void unlock_conn_sock(struct sock *sk) __releases(&sk->sk_lock.slock)
{
	unlock_sock_fast(sk, false);
}

static void enlist(struct conn *conn)
{
	spin_lock(&conns_lock);
	list_add(&conn->node, &conns);
	spin_unlock(&conns_lock);
}

static void unlist(struct conn *conn)
{
	spin_lock(&conns_lock);
	list_del(&conn->node);
	spin_unlock(&conns_lock);
}

static void queue_conn(struct conn *conn)
{
	queue_delayed_work(fastecho_workqueue, &conn->work, 0);
}

static void stamp_ready(struct conn *conn)
{
	conn->last_ready_ns = ktime_get_ns();
	if (!conn->ready_ns)
		conn->ready_ns = conn->last_ready_ns;
}

static void trace_pass(struct conn *conn, enum fastecho_path path, size_t sent, bool drained)
{
	if (sent)
		trace_fastecho_echo(path, sent, ktime_get_ns() - conn->ready_ns);
	conn->ready_ns = drained ? 0 : conn->last_ready_ns;
}

/* Runs one pass and traces it. The socket's spinlock is held. */
static enum fastecho_verdict run_pass(struct conn *conn, enum fastecho_path path)
{
	enum fastecho_verdict verdict;
	size_t sent;

	if (trace_fastecho_echo_enabled() && !conn->ready_ns)
		stamp_ready(conn);
	verdict = fastecho_echo_pass(conn->sk, PASS_BUDGET, &sent);
	if (trace_fastecho_echo_enabled() && conn->ready_ns)
		trace_pass(conn, path, sent, verdict == FASTECHO_DRAINED);
	else
		conn->ready_ns = 0;
	return verdict;
}

/*
 * Sends our FIN. False without memory for it: tcp_send_fin() does not report that, and TCP never
 * tries again. The FIN is then counted as unsent data, so that TCP does not mistake the
 * acknowledgement of the echo for one of the FIN, and sends an RST when the socket is closed.
 */
static bool send_fin(struct sock *sk)
{
	struct tcp_sock *tp = tcp_sk(sk);
	u32 seq = tp->write_seq;
	int state = sk->sk_state;

	sk->sk_prot->shutdown(sk, SEND_SHUTDOWN);
	if (likely(tp->write_seq != seq || sk->sk_state == state))
		return true;
	WRITE_ONCE(tp->write_seq, seq + 1);
	return false;
}

/*
 * Sends our FIN after everything that has been echoed, or cuts the connection there without memory.
 * The socket's spinlock is held.
 */
static void shut(struct conn *conn)
{
	struct sock *sk = conn->sk;

	conn->close_deadline = jiffies + CLOSE_DELAY;
	WRITE_ONCE(sk->sk_shutdown, sk->sk_shutdown | SEND_SHUTDOWN);
	if (likely(send_fin(sk))) {
		conn->state = CONN_SHUT;
		conn->orderly = true;
	} else {
		conn->state = CONN_CUT;
		queue_delayed_work(fastecho_workqueue, &conn->work, NOMEM_DELAY);
	}
}

/*
 * Echoes received data, and enters the state that deals with the rest.
 * The socket's spinlock is held, the state is CONN_READY or CONN_BUSY.
 */
static void advance(struct conn *conn, enum fastecho_path path)
{
	conn->state = CONN_BUSY;
	switch (run_pass(conn, path)) {
	case FASTECHO_DRAINED:
		conn->state = CONN_READY;
		if (unlikely(conn->sk->sk_shutdown & RCV_SHUTDOWN))
			shut(conn);
		break;
	case FASTECHO_BUDGET:
		queue_conn(conn);
		break;
	case FASTECHO_STALLED:
		conn->state = CONN_STALLED;
		break;
	case FASTECHO_NOMEM:
		queue_delayed_work(fastecho_workqueue, &conn->work, NOMEM_DELAY);
		break;
	case FASTECHO_FAILED:
		conn->state = CONN_DEAD;
		queue_conn(conn);
		break;
	}
}

/* The callbacks run with the socket locked: in softirq, or when its owner processes the backlog. */
static struct conn *sock_conn(const struct sock *sk)
{
	return rcu_dereference_protected(__sk_user_data(sk), lockdep_sock_is_held(sk));
}

static void conn_data_ready(struct sock *sk)
{
	struct conn *conn = sock_conn(sk);

	if (trace_fastecho_echo_enabled())
		stamp_ready(conn);
	if (conn->state != CONN_READY)
		return;
	if (fastecho_params.inline_echo && !sock_owned_by_user(sk))
		advance(conn, FASTECHO_PATH_SOFTIRQ);
	else
		queue_conn(conn);
}

/* TCP calls this when a send that found the buffer full may go on, and within a pass that runs out
 * of memory. */
static void conn_write_space(struct sock *sk)
{
	struct conn *conn = sock_conn(sk);

	if (conn->state != CONN_STALLED || !sk_stream_is_writeable(sk))
		return;
	clear_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
	conn->state = CONN_BUSY;
	queue_conn(conn);
}

/* Queues the work at the end of the connection, or of our closing. A FIN from the peer needs
 * nothing here, since data_ready follows. */
static void conn_state_change(struct sock *sk)
{
	if (sk->sk_state == TCP_CLOSE || sk->sk_state == TCP_FIN_WAIT2)
		mod_delayed_work(fastecho_workqueue, &sock_conn(sk)->work, 0);
}

/* Installs our callbacks. The socket's spinlock is held. */
static void attach_locked(struct conn *conn)
{
	struct sock *sk = conn->sk;

	write_lock(&sk->sk_callback_lock);
	conn->write_space = sk->sk_write_space;
	rcu_assign_sk_user_data(sk, conn);
	WRITE_ONCE(sk->sk_data_ready, conn_data_ready);
	WRITE_ONCE(sk->sk_state_change, conn_state_change);
	WRITE_ONCE(sk->sk_write_space, conn_write_space);
	write_unlock(&sk->sk_callback_lock);
}

/* Restores the socket's callbacks. The socket's spinlock is held. */
static void detach_locked(struct conn *conn)
{
	struct sock *sk = conn->sk;

	write_lock(&sk->sk_callback_lock);
	WRITE_ONCE(sk->sk_data_ready, conn->original.data_ready);
	WRITE_ONCE(sk->sk_state_change, conn->original.state_change);
	WRITE_ONCE(sk->sk_write_space, conn->write_space);
	rcu_assign_sk_user_data(sk, NULL);
	write_unlock(&sk->sk_callback_lock);
}

/* True once the peer has acknowledged our FIN. */
static bool fin_acked(const struct sock *sk)
{
	return sk->sk_state == TCP_FIN_WAIT2;
}

/* Does the next step of closing the connection from our side. The socket's spinlock is held. */
static void close_step(struct conn *conn)
{
	if (conn->state != CONN_SHUT && conn->state != CONN_CUT)
		shut(conn);
	if (fin_acked(conn->sk) || time_after_eq(jiffies, conn->close_deadline))
		conn->state = CONN_DEAD;
	else
		queue_delayed_work(fastecho_workqueue, &conn->work, CLOSE_DELAY);
}

/*
 * Waits until the peer has all of the echo. Sequence numbers do not show that: send_fin() has
 * counted a FIN that is in no queue. The socket's spinlock is held.
 */
static void cut_step(struct conn *conn)
{
	if (tcp_rtx_queue_empty(conn->sk) && !tcp_send_head(conn->sk))
		conn->state = CONN_DEAD;
	else
		queue_delayed_work(fastecho_workqueue, &conn->work, NOMEM_DELAY);
}

/* Does the work of the current state. The socket's spinlock is held. */
static void step(struct conn *conn)
{
	if (conn->sk->sk_state == TCP_CLOSE)
		conn->state = CONN_DEAD;
	else if (READ_ONCE(closing))
		close_step(conn);
	else if (conn->state == CONN_CUT)
		cut_step(conn);
	else if (conn->state == CONN_READY || conn->state == CONN_BUSY)
		advance(conn, FASTECHO_PATH_WORKQUEUE);
}

/* True if TCP can wait for the peer's FIN by a timewait socket, without this one. */
static bool fin_wait_is_short(const struct sock *sk)
{
	return fin_acked(sk) && tcp_fin_time(sk) <= TCP_TIMEWAIT_LEN;
}

/*
 * Closes the socket, with an RST if TCP still needs it. The socket holds no reference to its
 * namespace, so TCP stops its timers; an orphan might wait for ever for an acknowledgement or for
 * the peer's FIN.
 */
static void release(struct socket *sock)
{
	if (sock->sk->sk_state != TCP_CLOSE && !fin_wait_is_short(sock->sk))
		sock_no_linger(sock->sk);
	sock_release(sock);
}

/* Frees a connection after detach_locked(). Only its work item may call this. */
static void free_conn(struct conn *conn)
{
	unlist(conn);
	cancel_delayed_work(&conn->work);

	if (!conn->orderly || conn->sk->sk_err)
		atomic64_inc(&fastecho_counters.aborted);
	release(conn->sock);
	kmem_cache_free(cache, conn);
	if (atomic_dec_and_test(&fastecho_counters.active))
		wake_up(&conns_gone);
}

static void conn_work(struct work_struct *work)
{
	struct conn *conn = container_of(to_delayed_work(work), struct conn, work);
	bool dead;

	lock_conn_sock(conn->sk);
	step(conn);
	dead = conn->state == CONN_DEAD;
	if (dead)
		detach_locked(conn);
	unlock_conn_sock(conn->sk);

	if (dead)
		free_conn(conn);
}

static struct conn *new_conn(struct socket *sock, const struct fastecho_callbacks *original)
{
	struct conn *conn = kmem_cache_zalloc(cache, GFP_KERNEL);

	if (!conn)
		return NULL;
	conn->sock = sock;
	conn->sk = sock->sk;
	conn->original = *original;
	INIT_DELAYED_WORK(&conn->work, conn_work);
	return conn;
}

/*
 * Takes over the socket and serves it. False if it has another owner already, as when a BPF program
 * has put it into a sockmap.
 */
static bool start(struct conn *conn)
{
	struct sock *sk = conn->sk;
	bool is_free;

	lock_conn_sock(sk);
	is_free = !__sk_user_data(sk);
	if (is_free) {
		atomic64_inc(&fastecho_counters.total);
		attach_locked(conn);
		step(conn); /* for data that came before our callbacks */
		if (conn->state == CONN_DEAD)
			queue_conn(conn);
	}
	unlock_conn_sock(sk);
	return is_free;
}

void fastecho_conn_accept(struct socket *sock, const struct fastecho_callbacks *original)
{
	struct conn *conn;

	if (!atomic_add_unless(&fastecho_counters.active, 1, fastecho_params.max_conns ?: INT_MAX))
		goto err_sock;
	conn = new_conn(sock, original);
	if (!conn)
		goto err_active;
	enlist(conn);
	if (!start(conn))
		goto err_conn;
	return;

err_conn:
	unlist(conn);
	kmem_cache_free(cache, conn);
err_active:
	atomic_dec(&fastecho_counters.active);
err_sock: /* count it before the peer can see the RST */
	atomic64_inc(&fastecho_counters.rejected);
	release(sock);
}

void fastecho_conn_close_all(void)
{
	struct conn *conn;

	WRITE_ONCE(closing, true);
	spin_lock(&conns_lock);
	list_for_each_entry (conn, &conns, node)
		mod_delayed_work(fastecho_workqueue, &conn->work, 0);
	spin_unlock(&conns_lock);
	wait_event(conns_gone, !atomic_read(&fastecho_counters.active));
}

int fastecho_conn_init(void)
{
	cache = kmem_cache_create("fastecho_conn", sizeof(struct conn), 0, 0, NULL);
	return cache ? 0 : -ENOMEM;
}

void fastecho_conn_uninit(void)
{
	kmem_cache_destroy(cache);
}
