// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Listening sockets: opening them, and accepting on the workqueue.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "listener.h"

#include <linux/err.h>
#include <linux/inet.h>
#include <linux/net.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/tcp.h>
#include <net/ipv6.h>
#include <net/sock.h>
#include "conn.h"
#include "counters.h"
#include "echo.h"
#include "params.h"
#include "workqueue.h"

#define MAX_LISTENERS 16

/* The delay before another attempt, after a connection could not be accepted. */
#define RETRY_DELAY (HZ / 50)

struct listener {
	struct socket *sock;
	struct sockaddr_storage address;
	struct delayed_work accept_work;
	struct fastecho_callbacks original;
	bool ended; /* it must not listen any more, or was found not to */
};

static struct listener listeners[MAX_LISTENERS];
static unsigned int nr_listeners;

/* Reports that another process has ended the socket, as `ss -K` does. */
static void report_end(struct listener *listener)
{
	if (READ_ONCE(listener->ended))
		return;
	WRITE_ONCE(listener->ended, true);
	atomic_dec(&fastecho_counters.listening);
	pr_err("%pISpc: not listening any more, somebody has ended the socket (ss -K?)\n",
	       &listener->address);
}

/* Accepts all waiting connections. Without memory they go on waiting. -EINVAL means that the socket
 * has stopped listening. */
static void accept_work(struct work_struct *work)
{
	struct listener *listener =
		container_of(to_delayed_work(work), struct listener, accept_work);
	struct socket *sock;
	int err;

	while (!(err = kernel_accept(listener->sock, &sock, O_NONBLOCK))) {
		fastecho_conn_accept(sock, &listener->original);
		cond_resched();
	}
	if (err == -EINVAL)
		report_end(listener);
	if (err == -EAGAIN || err == -EINVAL)
		return;
	pr_warn_ratelimited("accept: error %d, trying again\n", err);
	queue_delayed_work(fastecho_workqueue, &listener->accept_work, RETRY_DELAY);
}

/*
 * Accepted sockets call these callbacks too, until fastecho_conn_accept() takes them over: they are
 * copies of the listening socket, without its sk_user_data. Theirs may belong to another owner, as
 * when a BPF program has put them into a sockmap.
 */
static void queue_accept_work(struct sock *sk)
{
	struct listener *listener;

	rcu_read_lock();
	listener = rcu_dereference_sk_user_data(sk);
	if (listener >= listeners && listener < listeners + MAX_LISTENERS)
		queue_delayed_work(fastecho_workqueue, &listener->accept_work, 0);
	rcu_read_unlock();
}

/* Softirq, the socket not locked. */
static void listener_data_ready(struct sock *sk)
{
	if (READ_ONCE(sk->sk_state) == TCP_LISTEN)
		queue_accept_work(sk);
}

/* Any context, the socket locked. */
static void listener_state_change(struct sock *sk)
{
	if (sk->sk_state == TCP_CLOSE)
		queue_accept_work(sk);
}

/* Process context, the socket not locked. */
static void attach_bh(struct listener *listener)
{
	struct sock *sk = listener->sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	listener->original.data_ready = sk->sk_data_ready;
	listener->original.state_change = sk->sk_state_change;
	__rcu_assign_sk_user_data_with_flags(sk, listener, SK_USER_DATA_NOCOPY);
	WRITE_ONCE(sk->sk_data_ready, listener_data_ready);
	WRITE_ONCE(sk->sk_state_change, listener_state_change);
	write_unlock_bh(&sk->sk_callback_lock);
}

static void detach_bh(struct listener *listener)
{
	struct sock *sk = listener->sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	WRITE_ONCE(sk->sk_data_ready, listener->original.data_ready);
	WRITE_ONCE(sk->sk_state_change, listener->original.state_change);
	rcu_assign_sk_user_data(sk, NULL);
	write_unlock_bh(&sk->sk_callback_lock);
}

static int address_size(const struct sockaddr_storage *address)
{
	return address->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
					      : sizeof(struct sockaddr_in);
}

/* Sets the options that connections inherit. */
static int set_options(struct sock *sk, int family)
{
	sock_set_reuseaddr(sk);
	sock_set_keepalive(sk); /* ends connections whose peer has vanished */
	tcp_sock_set_nodelay(sk);
	fastecho_echo_setup(sk);
	return family == AF_INET6 ? ip6_sock_set_v6only(sk) : 0;
}

static int bind_and_listen(struct socket *sock, struct sockaddr_storage *address)
{
	int err;

	err = set_options(sock->sk, address->ss_family);
	if (err)
		return err;
	/* The type is sockaddr, or from 6.19 on sockaddr_unsized. */
	err = kernel_bind(sock, (void *)address, address_size(address));
	if (err)
		return err;
	return kernel_listen(sock, fastecho_params.backlog);
}

/* Returns a bound and listening socket, or an error. */
static struct socket *open_socket(struct net *net, struct sockaddr_storage *address)
{
	struct socket *sock;
	int err;

	err = sock_create_kern(net, address->ss_family, SOCK_STREAM, IPPROTO_TCP, &sock);
	if (err)
		return ERR_PTR(err);
	err = bind_and_listen(sock, address);
	if (err) {
		sock_release(sock);
		return ERR_PTR(err);
	}
	return sock;
}

static int add_listener(struct net *net, struct sockaddr_storage *address)
{
	struct listener *listener = &listeners[nr_listeners];
	struct socket *sock = open_socket(net, address);

	if (IS_ERR(sock))
		return PTR_ERR(sock);
	listener->sock = sock;
	listener->address = *address;
	INIT_DELAYED_WORK(&listener->accept_work, accept_work);
	attach_bh(listener);
	atomic_inc(&fastecho_counters.listening);
	nr_listeners++;
	/* For clients that connected before the callbacks were set. */
	queue_delayed_work(fastecho_workqueue, &listener->accept_work, 0);
	return 0;
}

/* An address that is bound only by default may be missing, as ::1 is without IPv6. */
static bool may_lack(int err)
{
	return fastecho_params_bind_is_default() && (err == -EAFNOSUPPORT || err == -EADDRNOTAVAIL);
}

static int add_address(struct net *net, const char *text)
{
	struct sockaddr_storage address = {};
	char port[sizeof("65535")];
	int err;

	snprintf(port, sizeof(port), "%u", fastecho_params.port);
	if (!*text || inet_pton_with_scope(net, AF_UNSPEC, text, port, &address)) {
		pr_err("bind: '%s' is not an IP address\n", text);
		return -EINVAL;
	}
	if (nr_listeners == MAX_LISTENERS) {
		pr_err("bind: more than %d addresses\n", MAX_LISTENERS);
		return -EINVAL;
	}

	err = add_listener(net, &address);
	if (!err)
		return 0;
	if (may_lack(err)) {
		pr_notice("bind: this machine does not have %s, going on without it\n", text);
		return 0;
	}
	if (err == -EADDRINUSE)
		pr_err("port: %pISpc is in use\n", &address);
	else
		pr_err("bind: cannot listen on %pISpc: error %d\n", &address, err);
	return err;
}

static int add_addresses(struct net *net, char *list)
{
	char *text;
	int err;

	while ((text = strsep(&list, ","))) {
		err = add_address(net, text);
		if (err)
			return err;
	}
	if (!nr_listeners) {
		pr_err("bind: this machine has none of %s\n", fastecho_params.bind);
		return -EADDRNOTAVAIL;
	}
	return 0;
}

int fastecho_listener_init(struct net *net)
{
	char *list = kstrdup(fastecho_params.bind, GFP_KERNEL);
	int err;

	if (!list)
		return -ENOMEM;
	err = add_addresses(net, list);
	if (err)
		fastecho_listener_uninit();
	kfree(list);
	return err;
}

void fastecho_listener_uninit(void)
{
	unsigned int i;

	for (i = 0; i < nr_listeners; i++)
		detach_bh(&listeners[i]);
	synchronize_rcu(); /* from here on queue_accept_work() queues nothing */
	while (nr_listeners) {
		struct listener *listener = &listeners[--nr_listeners];

		WRITE_ONCE(listener->ended, true);
		/* Makes accept fail, so that a flood of connections cannot keep this running. */
		kernel_sock_shutdown(listener->sock, SHUT_RDWR);
		cancel_delayed_work_sync(&listener->accept_work);
		sock_release(listener->sock);
	}
	atomic_set(&fastecho_counters.listening, 0);
}
