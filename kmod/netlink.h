/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_NETLINK_H
#define KVMSNAP_NETLINK_H

#include <linux/types.h>
#include <linux/kvmsnap_netlink.h>

struct kvmsnap_stats;

void kvmsnap_netlink_event(u32 event, u32 id, u32 owner, u32 vm_pid,
			   const struct kvmsnap_stats *stats);
int kvmsnap_netlink_module_init(void);
void kvmsnap_netlink_module_exit(void);

#endif
