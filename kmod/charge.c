// SPDX-License-Identifier: GPL-2.0
/*
 * Cgroups.  A kernel thread has none of its own: what it uses would be nobody's, and nobody's
 * limits would hold.
 */
#include <linux/cgroup.h>
#include <linux/kthread.h>
#include <linux/memcontrol.h>
#include <linux/sched/mm.h>

#include "charge.h"

/* In the context of who is to be charged. */
void kvmsnap_charge_init(struct kvmsnap_charge *charge)
{
#ifdef CONFIG_BLK_CGROUP
	charge->blkcg = task_get_css(current, io_cgrp_id);
#endif
	charge->memcg = get_mem_cgroup_from_mm(current->mm);
}

void kvmsnap_charge_destroy(struct kvmsnap_charge *charge)
{
#ifdef CONFIG_BLK_CGROUP
	css_put(charge->blkcg);
#endif
	mem_cgroup_put(charge->memcg);
}

/**
 * kvmsnap_charge_begin() - from here on the calling thread works for @charge
 * @charge: outlives the work, up to kvmsnap_charge_end()
 *
 * Context: kernel thread; doesn't nest.
 */
void kvmsnap_charge_begin(const struct kvmsnap_charge *charge)
{
	kthread_associate_blkcg(charge->blkcg);
	set_active_memcg(charge->memcg);
}

void kvmsnap_charge_end(void)
{
	set_active_memcg(NULL);
	kthread_associate_blkcg(NULL);
}
