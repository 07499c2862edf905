// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * fastecho: a TCP echo service that never leaves the kernel. Loading and unloading.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/nsproxy.h>
#include <linux/sched.h>
#include <net/net_namespace.h>
#include "compat.h"
#include "conn.h"
#include "counters.h"
#include "echo.h"
#include "listener.h"
#include "params.h"
#include "workqueue.h"

struct workqueue_struct *fastecho_workqueue __ro_after_init;

/*
 * The service runs in the network namespace of insmod, and ends with it. It holds no reference,
 * which would keep the namespace and its devices alive while the module is loaded. NULL once the
 * service has ended and all of its sockets are closed.
 */
static struct net *served_net;
/* Held while the service ends: rmmod and the end of the namespace both wait for that. */
static DEFINE_MUTEX(stop_lock);

static void stop_serving(void)
{
	mutex_lock(&stop_lock);
	if (served_net) {
		fastecho_listener_uninit();
		fastecho_conn_close_all();
		WRITE_ONCE(served_net, NULL);
	}
	mutex_unlock(&stop_lock);
}

/* The kernel calls this before it frees a namespace. */
static void __net_exit net_pre_exit(struct net *net)
{
	if (net == READ_ONCE(served_net))
		stop_serving();
}

static struct pernet_operations net_ops = {.pre_exit = net_pre_exit};

static int start_serving(void)
{
	int err;

	served_net = current->nsproxy->net_ns;
	err = fastecho_listener_init(served_net);
	if (err)
		goto err_conns;
	err = register_pernet_subsys(&net_ops);
	if (err)
		goto err_listener;
	return 0;

err_listener:
	fastecho_listener_uninit();
err_conns: /* the first address may have connections before the second fails */
	fastecho_conn_close_all();
	return err;
}

static int __init fastecho_init(void)
{
	int err;

	err = fastecho_conn_init();
	if (err)
		return err;

	err = -ENOMEM;
	fastecho_workqueue = alloc_workqueue(
		"fastecho", fastecho_params.bench ? COMPAT_WQ_PERCPU : WQ_UNBOUND, 0);
	if (!fastecho_workqueue)
		goto err_conn;

	err = fastecho_counters_init();
	if (err)
		goto err_workqueue;

	err = start_serving();
	if (err)
		goto err_counters;
	return 0;

err_counters:
	fastecho_counters_uninit();
err_workqueue:
	destroy_workqueue(fastecho_workqueue);
	fastecho_echo_uninit();
err_conn:
	fastecho_conn_uninit();
	return err;
}

static void __exit fastecho_exit(void)
{
	/* First, since it waits for peers. What follows blocks the making of namespaces. */
	stop_serving();
	unregister_pernet_subsys(&net_ops);
	fastecho_counters_uninit();
	destroy_workqueue(fastecho_workqueue);
	fastecho_echo_uninit();
	fastecho_conn_uninit();
}

module_init(fastecho_init);
module_exit(fastecho_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_AUTHOR("the kecho authors");
MODULE_DESCRIPTION("TCP echo service that never leaves the kernel");
MODULE_VERSION(FASTECHO_VERSION);

#define FASTECHO_PATH_NAME(id, name)	  name " "
#define FASTECHO_PATH_LAST_NAME(id, name) name
MODULE_INFO(paths, FASTECHO_PATHS(FASTECHO_PATH_NAME, FASTECHO_PATH_LAST_NAME));
