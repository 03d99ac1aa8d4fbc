/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef _UAPI_LINUX_KVMSNAP_NETLINK_H
#define _UAPI_LINUX_KVMSNAP_NETLINK_H

/**
 * DOC: kvmsnap generic netlink family
 *
 * KVMSNAP_GENL_CMD_GET with NLM_F_DUMP lists the open sessions, a message each, in the
 * order of their ids.  It needs CAP_NET_ADMIN.
 */
#define KVMSNAP_GENL_NAME	"kvmsnap"
#define KVMSNAP_GENL_VERSION	1

enum kvmsnap_genl_cmd {
	KVMSNAP_GENL_CMD_UNSPEC,
	KVMSNAP_GENL_CMD_GET,
	__KVMSNAP_GENL_CMD_MAX,
};

/**
 * enum kvmsnap_genl_attr - attributes of a session
 * @KVMSNAP_GENL_A_ID: u32, counted from 1 since the module was loaded
 * @KVMSNAP_GENL_A_OWNER_PID: u32, process that opened the session
 * @KVMSNAP_GENL_A_VM_PID: u32, process whose memory is saved; absent before BIND_VM
 * @KVMSNAP_GENL_A_STATS: struct kvmsnap_stats
 */
enum kvmsnap_genl_attr {
	KVMSNAP_GENL_A_UNSPEC,
	KVMSNAP_GENL_A_ID,
	KVMSNAP_GENL_A_OWNER_PID,
	KVMSNAP_GENL_A_VM_PID,
	KVMSNAP_GENL_A_STATS,
	__KVMSNAP_GENL_A_MAX,
};
#define KVMSNAP_GENL_A_MAX (__KVMSNAP_GENL_A_MAX - 1)

#endif
