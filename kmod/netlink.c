// SPDX-License-Identifier: GPL-2.0
/*
 * Generic netlink: the list of open sessions, and events, for status displays.
 *
 * A dump goes on after the last id it has shown, so it needs no reference from one
 * message to the next.  A session on the list has its file open: under the list's lock it
 * is safe to look at.  The dump runs under a lock that all of generic netlink shares, so it
 * takes none that a VMM could have us wait for: not session->lock.
 */
#include <linux/module.h>
#include <net/genetlink.h>

#include "netlink.h"
#include "session.h"

static struct genl_family kvmsnap_genl_family;

/* Events are numbered, and sent in the order of their numbers. */
static DEFINE_SPINLOCK(kvmsnap_event_lock);
static u64 kvmsnap_last_event;		/* kvmsnap_event_lock */

/* Words of the dirty bitmaps that are looked at for a cell of the map. */
#define KVMSNAP_MAP_SAMPLES	256

static int kvmsnap_genl_put_stats(struct sk_buff *skb, u32 id, u32 owner, u32 vm_pid,
				  const struct kvmsnap_stats *stats)
{
	if (nla_put_u32(skb, KVMSNAP_GENL_A_ID, id) ||
	    nla_put_u32(skb, KVMSNAP_GENL_A_OWNER_PID, owner) ||
	    (vm_pid && nla_put_u32(skb, KVMSNAP_GENL_A_VM_PID, vm_pid)) ||
	    nla_put(skb, KVMSNAP_GENL_A_STATS, sizeof(*stats), stats))
		return -EMSGSIZE;
	return 0;
}

/* Set bits and bits looked at of the pages [first, last) of the session, in samples. */
static void kvmsnap_genl_sample(struct kvmsnap_session *session, u64 first, u64 last,
				u32 *set, u32 *looked)
{
	u64 step = max_t(u64, (last - first) / KVMSNAP_MAP_SAMPLES, BITS_PER_LONG);
	u32 i = 0, nr = kvmsnap_session_nr_regions(session);
	u64 base = 0, page;

	*set = 0;
	*looked = 0;
	for (page = first; page < last; page += step) {
		const struct kvmsnap_region *region;
		u64 word;

		while (i < nr && page >= base + session->regions[i]->nr_pages)
			base += session->regions[i++]->nr_pages;
		if (i == nr)
			break;
		region = session->regions[i];
		word = BIT_WORD(page - base);
		*set += hweight_long(READ_ONCE(region->dirty[word]));
		*looked += min_t(u64, BITS_PER_LONG, region->nr_pages - word * BITS_PER_LONG);
	}
}

static int kvmsnap_genl_put_map(struct sk_buff *skb, struct kvmsnap_session *session)
{
	u64 pages = 0, cell;
	u32 i, nr = kvmsnap_session_nr_regions(session), set, looked;
	u8 map[KVMSNAP_GENL_MAP_CELLS];

	for (i = 0; i < nr; i++)
		pages += session->regions[i]->nr_pages;
	for (cell = 0; cell < ARRAY_SIZE(map); cell++) {
		kvmsnap_genl_sample(session, pages * cell / ARRAY_SIZE(map),
				    pages * (cell + 1) / ARRAY_SIZE(map), &set, &looked);
		map[cell] = looked ? DIV_ROUND_UP(set * 255, looked) : 0;
	}
	return nla_put(skb, KVMSNAP_GENL_A_MAP, sizeof(map), map);
}

static int kvmsnap_genl_put_session(struct sk_buff *skb, struct netlink_callback *cb,
				    struct kvmsnap_session *session)
{
	struct kvmsnap_stats stats = { .size = sizeof(stats) };
	void *msg;

	kvmsnap_session_fill_stats(session, &stats);
	msg = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq,
			  &kvmsnap_genl_family, NLM_F_MULTI, KVMSNAP_GENL_CMD_GET);
	if (!msg)
		return -EMSGSIZE;
	if (kvmsnap_genl_put_stats(skb, session->id, session->owner, READ_ONCE(session->vm_pid),
				   &stats) ||
	    (kvmsnap_ring_tracking(&session->ring) && kvmsnap_genl_put_map(skb, session))) {
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

static const struct genl_multicast_group kvmsnap_genl_groups[] = {
	{ .name = KVMSNAP_GENL_GROUP, .flags = GENL_MCAST_CAP_NET_ADMIN },
};

static struct genl_family kvmsnap_genl_family = {
	.name = KVMSNAP_GENL_NAME,
	.version = KVMSNAP_GENL_VERSION,
	.maxattr = KVMSNAP_GENL_A_MAX,
	.module = THIS_MODULE,
	.small_ops = kvmsnap_genl_ops,
	.n_small_ops = ARRAY_SIZE(kvmsnap_genl_ops),
	.mcgrps = kvmsnap_genl_groups,
	.n_mcgrps = ARRAY_SIZE(kvmsnap_genl_groups),
	.resv_start_op = __KVMSNAP_GENL_CMD_MAX,
};

static struct sk_buff *kvmsnap_genl_event(u32 event, u64 seq, u32 id, u32 owner, u32 vm_pid,
					  const struct kvmsnap_stats *stats)
{
	struct sk_buff *skb = genlmsg_new(GENLMSG_DEFAULT_SIZE, GFP_ATOMIC);
	void *msg;

	if (!skb)
		return NULL;
	msg = genlmsg_put(skb, 0, 0, &kvmsnap_genl_family, 0, KVMSNAP_GENL_CMD_EVENT);
	if (!msg || nla_put_u64_64bit(skb, KVMSNAP_GENL_A_SEQ, seq, KVMSNAP_GENL_A_UNSPEC) ||
	    nla_put_u32(skb, KVMSNAP_GENL_A_EVENT, event) ||
	    kvmsnap_genl_put_stats(skb, id, owner, vm_pid, stats)) {
		nlmsg_free(skb);
		return NULL;
	}
	genlmsg_end(skb, msg);
	return skb;
}

/**
 * kvmsnap_netlink_event() - tell those who listen
 * @event: of enum kvmsnap_genl_event
 * @id: of the session, which may be gone by now
 * @owner: process that opened it
 * @vm_pid: process whose memory it saves, or 0
 * @stats: its figures, with size
 *
 * Without memory the event is lost, which the gap in the numbers tells.
 * Context: process context, no spinlock of ours but the caller's.
 */
void kvmsnap_netlink_event(u32 event, u32 id, u32 owner, u32 vm_pid,
			   const struct kvmsnap_stats *stats)
{
	struct sk_buff *skb;
	u64 seq;

	spin_lock(&kvmsnap_event_lock);
	seq = ++kvmsnap_last_event;
	if (genl_has_listeners(&kvmsnap_genl_family, &init_net, 0)) {
		skb = kvmsnap_genl_event(event, seq, id, owner, vm_pid, stats);
		if (skb)
			genlmsg_multicast(&kvmsnap_genl_family, skb, 0, 0, GFP_ATOMIC);
	}
	spin_unlock(&kvmsnap_event_lock);
}

int kvmsnap_netlink_module_init(void)
{
	return genl_register_family(&kvmsnap_genl_family);
}

void kvmsnap_netlink_module_exit(void)
{
	genl_unregister_family(&kvmsnap_genl_family);
}
