// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * The life of a connection, and who echoes for it when: its callbacks in softirq, or its work item.
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

/* How much one connection may send back, with BH off, before others get the CPU; in bytes. */
#define PASS_BUDGET (64 * 1024)

/* After how long to try again when there was no memory to send with. */
#define NOMEM_DELAY (HZ / 50)

/* How long peers have to acknowledge the FIN when the module closes the connection. */
#define CLOSE_DELAY (HZ / 4)

/*
 * Who queues the work item in a state, and who takes the connection out of it:
 *
 *   state    the work is queued by                   it is left by
 *   READY    data_ready, if it may not echo itself   data_ready, the work: to whatever a pass ends in
 *   BUSY     whoever entered it, at once             the work, likewise
 *   STALLED  write_space, as it leaves it            write_space, to BUSY
 *   SHUT     the work again, once the module closes  the work, to DEAD
 *   CUT      whoever entered it, and the work again  the work, to DEAD
 *   DEAD     whoever entered it, if not the work     nobody: the work frees the connection
 *
 * In each but DEAD, state_change queues the work as well, at the connection's end, and so does
 * fastecho_conn_close_all(). The work then leaves READY, BUSY and STALLED for SHUT, CUT or DEAD.
 */
enum conn_state {
	CONN_READY,   /* nothing under way: the next to see data may echo it */
	CONN_BUSY,    /* a pass is under way, or the work item is queued to go on */
	CONN_STALLED, /* the send buffer is full: sk_write_space goes on */
	CONN_SHUT,    /* our FIN is sent, everything else before it */
	CONN_CUT,  /* there was no memory for our FIN: an RST will follow what is still in flight */
	CONN_DEAD, /* the work item has to free it */
};

struct conn {
	struct sock *sk;
	struct socket *sock; /* owned */
	enum conn_state state;
	bool orderly; /* our FIN is sent because the peer's came, or because the module closes */
	unsigned long close_deadline; /* in jiffies: until then our FIN may be acknowledged */
	u64 ready_ns;	   /* of the oldest data_ready not yet answered; 0: none, or not traced */
	u64 last_ready_ns; /* of the last data_ready */
	struct delayed_work work;
	struct list_head node; /* in conns */
	struct fastecho_callbacks original;
	void (*write_space)(struct sock *sk); /* likewise */
};

static struct kmem_cache *cache;
static LIST_HEAD(conns);
/* Protects conns. Process context, BH on; so never inside a socket's lock, which softirqs take. */
static DEFINE_SPINLOCK(conns_lock);
static DECLARE_WAIT_QUEUE_HEAD(conns_gone);
static bool closing; /* every connection is to close */

/*
 * Locks the socket as softirq does, with its spinlock and BH off. Owning the socket instead would
 * let packets collect in its backlog, and tcp_sendmsg_locked() might process them, and rearrange
 * the receive queue, in mid-pass. A task that inspects the socket (ss -i) may own it for a moment.
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

/* One pass, and its event. The socket's spinlock is held. */
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
 * False if there was no memory for it: tcp_send_fin() tells nobody, and TCP never tries again. The
 * FIN is then counted all the same, as data that is still to be sent: TCP does not take its
 * acknowledgement for that of the echo before it, and sends an RST when the socket is closed.
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
 * Sends our FIN, after everything that has been echoed, or else cuts the connection off there.
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
 * Echoes what there is and arranges for the rest.
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

/* The callbacks run with the socket locked, in softirq or where its owner processes the backlog. */
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

/* TCP calls this when a send that found the buffer full may go on; and from within a pass, when
 * memory ran out. */
static void conn_write_space(struct sock *sk)
{
	struct conn *conn = sock_conn(sk);

	if (conn->state != CONN_STALLED || !sk_stream_is_writeable(sk))
		return;
	clear_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
	conn->state = CONN_BUSY;
	queue_conn(conn);
}

/* A FIN from the peer needs nothing here: data_ready follows. The end of the connection and of our
 * closing do. */
static void conn_state_change(struct sock *sk)
{
	if (sk->sk_state == TCP_CLOSE || sk->sk_state == TCP_FIN_WAIT2)
		mod_delayed_work(fastecho_workqueue, &sock_conn(sk)->work, 0);
}

/* Makes the socket's callbacks ours. The socket's spinlock is held. */
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

/* Undoes that, likewise. */
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

/* True once the peer has our FIN. */
static bool fin_acked(const struct sock *sk)
{
	return sk->sk_state == TCP_FIN_WAIT2;
}

/* Closes the connection from our side, a step at a time. The socket's spinlock is held. */
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
 * Waits for the peer to have all of the echo. Sequence numbers cannot tell: send_fin() has counted
 * what is in no queue. The socket's spinlock is held.
 */
static void cut_step(struct conn *conn)
{
	if (tcp_rtx_queue_empty(conn->sk) && !tcp_send_head(conn->sk))
		conn->state = CONN_DEAD;
	else
		queue_delayed_work(fastecho_workqueue, &conn->work, NOMEM_DELAY);
}

/* What the work item has to do, whyever it was queued. The socket's spinlock is held. */
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

/* True if TCP can wait for the peer's FIN without the socket, by what it keeps in TIME_WAIT. */
static bool fin_wait_is_short(const struct sock *sk)
{
	return fin_acked(sk) && tcp_fin_time(sk) <= TCP_TIMEWAIT_LEN;
}

/*
 * Closes the socket, with an RST unless TCP needs it no more: it holds no reference to its
 * namespace, so TCP would stop its timers, and an orphan that waits for an acknowledgement, or for
 * the peer's FIN, might wait for ever.
 */
static void release(struct socket *sock)
{
	if (sock->sk->sk_state != TCP_CLOSE && !fin_wait_is_short(sock->sk))
		sock_no_linger(sock->sk);
	sock_release(sock);
}

/* Frees a connection that detach_locked() has cut off. Only for its work item. */
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
 * Serves the connection from now on; false if its socket is somebody else's already, as when a BPF
 * program has put it into a sockmap.
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
		step(conn); /* for what came before there was anybody to tell */
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
err_sock: /* counted before the peer can see it */
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
