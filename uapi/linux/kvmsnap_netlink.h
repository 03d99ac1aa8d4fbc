/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef _UAPI_LINUX_KVMSNAP_NETLINK_H
#define _UAPI_LINUX_KVMSNAP_NETLINK_H

/**
 * DOC: kvmsnap generic netlink family
 *
 * KVMSNAP_GENL_CMD_GET with NLM_F_DUMP lists the open sessions, a message each, in the
 * order of their ids.  It needs CAP_NET_ADMIN, and the initial network namespace.
 *
 * Members of the group KVMSNAP_GENL_GROUP, in the initial network namespace and with
 * CAP_NET_ADMIN, get a KVMSNAP_GENL_CMD_EVENT for each event.  A gap in their sequence numbers
 * tells that events were lost.  Who waits for a pass may queue the next one before the end of
 * the first is told: the pass that an event is of is the one in its stats.
 */
#define KVMSNAP_GENL_NAME	"kvmsnap"
#define KVMSNAP_GENL_VERSION	1
#define KVMSNAP_GENL_GROUP	"events"

enum kvmsnap_genl_cmd {
	KVMSNAP_GENL_CMD_UNSPEC,
	KVMSNAP_GENL_CMD_GET,
	KVMSNAP_GENL_CMD_EVENT,
	__KVMSNAP_GENL_CMD_MAX,
};

/**
 * enum kvmsnap_genl_event - what has happened to a session
 * @KVMSNAP_GENL_EVENT_PASS_BEGIN: a pass has begun
 * @KVMSNAP_GENL_EVENT_STAGED: it looks at guest memory no more
 * @KVMSNAP_GENL_EVENT_PASS_END: it is over, well or not: see the error in the stats
 * @KVMSNAP_GENL_EVENT_PHASE: SET_PHASE was called
 * @KVMSNAP_GENL_EVENT_VM_GONE: the VM's process has ended
 * @KVMSNAP_GENL_EVENT_CLOSE: its descriptor was closed
 */
enum kvmsnap_genl_event {
	KVMSNAP_GENL_EVENT_PASS_BEGIN = 1,
	KVMSNAP_GENL_EVENT_STAGED,
	KVMSNAP_GENL_EVENT_PASS_END,
	KVMSNAP_GENL_EVENT_PHASE,
	KVMSNAP_GENL_EVENT_VM_GONE,
	KVMSNAP_GENL_EVENT_CLOSE,
};

/* Pieces of the map of dirty memory. */
#define KVMSNAP_GENL_MAP_CELLS	64

/**
 * enum kvmsnap_genl_attr - attributes of a session
 * @KVMSNAP_GENL_A_ID: u32, counted from 1 since the module was loaded
 * @KVMSNAP_GENL_A_OWNER_PID: u32, process that opened the session
 * @KVMSNAP_GENL_A_VM_PID: u32, thread that made the VM, as a rule the first of the process whose
 *	memory is saved; absent before BIND_VM
 * @KVMSNAP_GENL_A_STATS: struct kvmsnap_stats
 * @KVMSNAP_GENL_A_SEQ: u64, of an event: counted from 1 since the module was loaded
 * @KVMSNAP_GENL_A_EVENT: u32, of enum kvmsnap_genl_event
 * @KVMSNAP_GENL_A_MAP: KVMSNAP_GENL_MAP_CELLS bytes: how much of each piece of the session's
 *	regions, in their order, is in the dirty set, 0 to 255 for none to all; from samples.
 *	In a dump, when the session tracks
 */
enum kvmsnap_genl_attr {
	KVMSNAP_GENL_A_UNSPEC,
	KVMSNAP_GENL_A_ID,
	KVMSNAP_GENL_A_OWNER_PID,
	KVMSNAP_GENL_A_VM_PID,
	KVMSNAP_GENL_A_STATS,
	KVMSNAP_GENL_A_SEQ,
	KVMSNAP_GENL_A_EVENT,
	KVMSNAP_GENL_A_MAP,
	__KVMSNAP_GENL_A_MAX,
};

#define KVMSNAP_GENL_A_MAX (__KVMSNAP_GENL_A_MAX - 1)

#endif
