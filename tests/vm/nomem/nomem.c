// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * For tests: TCP finds no page to copy into, once, when a kernel thread sends. Stock kernels have no
 * fault injection.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>

static int nth = 1;
module_param(nth, int, 0444);
MODULE_PARM_DESC(nth, "the call of sk_page_frag_refill() to fail, from loading on");

static atomic_t calls;
module_param_named(calls, calls.counter, int, 0444);
MODULE_PARM_DESC(calls, "calls since loading");

static int refill_returns(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	if (current->flags & PF_KTHREAD && atomic_inc_return(&calls) == nth)
		regs_set_return_value(regs, false);
	return 0;
}

static struct kretprobe probe = {
	.kp.symbol_name = "sk_page_frag_refill",
	.handler = refill_returns,
};

static int __init nomem_init(void)
{
	return register_kretprobe(&probe);
}

static void __exit nomem_exit(void)
{
	unregister_kretprobe(&probe);
}

module_init(nomem_init);
module_exit(nomem_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("makes one allocation of TCP's fail, for tests of fastecho");
