// SPDX-License-Identifier: GPL-2.0
/*
 * Generic netlink: the list of open sessions, for status displays.
 *
 * A dump goes on after the last id it has shown, so it needs no reference from one
 * message to the next.  A session on the list has its file open: under the list's lock it
 * is safe to look at.  The dump runs under a lock that all of generic netlink shares, so it
 * takes none that a VMM could have us wait for: not session->lock.
 */
#include <linux/module.h>
#include <net/genetlink.h>
#include <linux/kvmsnap_netlink.h>

#include "netlink.h"
#include "session.h"

static struct genl_family kvmsnap_genl_family;

static int kvmsnap_genl_put_session(struct sk_buff *skb, struct netlink_callback *cb,
				    struct kvmsnap_session *session)
{
	struct kvmsnap_stats stats = { .size = sizeof(stats) };
	pid_t vm_pid = READ_ONCE(session->vm_pid);
	void *msg;

	kvmsnap_session_fill_stats(session, &stats);
	msg = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq,
			  &kvmsnap_genl_family, NLM_F_MULTI, KVMSNAP_GENL_CMD_GET);
	if (!msg)
		return -EMSGSIZE;
	if (nla_put_u32(skb, KVMSNAP_GENL_A_ID, session->id) ||
	    nla_put_u32(skb, KVMSNAP_GENL_A_OWNER_PID, session->owner) ||
	    (vm_pid && nla_put_u32(skb, KVMSNAP_GENL_A_VM_PID, vm_pid)) ||
	    nla_put(skb, KVMSNAP_GENL_A_STATS, sizeof(stats), &stats)) {
		genlmsg_cancel(skb, msg);
		return -EMSGSIZE;
	}
	genlmsg_end(skb, msg);
	return 0;
}

static int kvmsnap_genl_dump(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct kvmsnap_session *session;

	mutex_lock(&kvmsnap_sessions_lock);
	list_for_each_entry(session, &kvmsnap_sessions, node) {
		if (session->id <= cb->args[0])
			continue;
		if (kvmsnap_genl_put_session(skb, cb, session))
			break;	/* full: the rest in the next message */
		cb->args[0] = session->id;
	}
	mutex_unlock(&kvmsnap_sessions_lock);
	return skb->len;
}

static const struct genl_small_ops kvmsnap_genl_ops[] = {
	{
		.cmd = KVMSNAP_GENL_CMD_GET,
		.flags = GENL_ADMIN_PERM,
		.dumpit = kvmsnap_genl_dump,
	},
};

static struct genl_family kvmsnap_genl_family = {
	.name = KVMSNAP_GENL_NAME,
	.version = KVMSNAP_GENL_VERSION,
	.maxattr = KVMSNAP_GENL_A_MAX,
	.module = THIS_MODULE,
	.small_ops = kvmsnap_genl_ops,
	.n_small_ops = ARRAY_SIZE(kvmsnap_genl_ops),
	.resv_start_op = __KVMSNAP_GENL_CMD_MAX,
};

int kvmsnap_netlink_module_init(void)
{
	return genl_register_family(&kvmsnap_genl_family);
}

void kvmsnap_netlink_module_exit(void)
{
	genl_unregister_family(&kvmsnap_genl_family);
}
