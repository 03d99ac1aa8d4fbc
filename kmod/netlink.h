/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_NETLINK_H
#define KVMSNAP_NETLINK_H

int kvmsnap_netlink_module_init(void);
void kvmsnap_netlink_module_exit(void);

#endif
