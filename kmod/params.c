// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * The module's parameters.
 */
#include "params.h"

#include <linux/cache.h>
#include <linux/limits.h>
#include <linux/moduleparam.h>
#include <linux/module.h>

static char default_bind[] = "127.0.0.1,::1";

struct fastecho_params fastecho_params __ro_after_init = {
	.port = 12345,
	.backlog = 128,
	.inline_echo = 1,
	.max_conns = 65536,
	.bind = default_bind,
};

/* Returns -EINVAL for anything but a number within the bounds; the kernel then prints a line that
 * names the parameter. */
static int set_within(const char *val, const struct kernel_param *kp, unsigned int min,
		      unsigned int max)
{
	return param_set_uint_minmax(val, kp, min, max) ? -EINVAL : 0;
}

static int set_flag(const char *val, const struct kernel_param *kp)
{
	return set_within(val, kp, 0, 1);
}

static int set_port(const char *val, const struct kernel_param *kp)
{
	return set_within(val, kp, 1, U16_MAX);
}

static int set_count(const char *val, const struct kernel_param *kp)
{
	return set_within(val, kp, 1, INT_MAX);
}

static int set_limit(const char *val, const struct kernel_param *kp)
{
	return set_within(val, kp, 0, INT_MAX);
}

static const struct kernel_param_ops flag_ops = {.set = set_flag, .get = param_get_uint};
static const struct kernel_param_ops port_ops = {.set = set_port, .get = param_get_uint};
static const struct kernel_param_ops count_ops = {.set = set_count, .get = param_get_uint};
static const struct kernel_param_ops limit_ops = {.set = set_limit, .get = param_get_uint};

module_param_cb(port, &port_ops, &fastecho_params.port, 0444);
MODULE_PARM_DESC(port, "TCP port to listen on");
module_param_cb(backlog, &count_ops, &fastecho_params.backlog, 0444);
MODULE_PARM_DESC(backlog, "connections that may wait to be accepted, on each address");
module_param_cb(bench, &flag_ops, &fastecho_params.bench, 0444);
MODULE_PARM_DESC(bench, "1: a per-CPU workqueue; 0: an unbound one");
module_param_cb(max_conns, &limit_ops, &fastecho_params.max_conns, 0444);
MODULE_PARM_DESC(max_conns, "connections beyond this many are reset; 0: no limit");
module_param_named(bind, fastecho_params.bind, charp, 0444);
MODULE_PARM_DESC(bind, "addresses to listen on, separated by commas");

/* The kernel's macro "inline" would be expanded within module_param_cb(). */
#undef inline
module_param_cb(inline, &flag_ops, &fastecho_params.inline_echo, 0444);
MODULE_PARM_DESC(inline, "1: echo in softirq, the workqueue helps out; 0: echo on the workqueue");

bool fastecho_params_bind_is_default(void)
{
	return fastecho_params.bind == default_bind;
}
