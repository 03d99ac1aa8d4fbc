// SPDX-License-Identifier: LGPL-2.1-or-later
/* Status and events by generic netlink, with libmnl. */
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/genetlink.h>
#include <linux/kvmsnap_netlink.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvmsnap.h"

struct list {
	int (*each)(const struct kvmsnap_session_info *info, void *data);
	void *data;
	int result;
};

/* Send a request and give every answer to @cb. */
static int talk(struct mnl_socket *nl, struct nlmsghdr *nlh, mnl_cb_t cb, void *data)
{
	unsigned int port = mnl_socket_get_portid(nl);
	size_t size = MNL_SOCKET_BUFFER_SIZE;
	char *buf = malloc(size);
	ssize_t n;
	int ret;

	if (!buf)
		return -ENOMEM;
	nlh->nlmsg_seq = (unsigned int)time(NULL);
	ret = mnl_socket_sendto(nl, nlh, nlh->nlmsg_len) < 0 ? -errno : MNL_CB_OK;
	while (ret > MNL_CB_STOP) {
		n = mnl_socket_recvfrom(nl, buf, size);
		if (n < 0) {
			ret = -errno;
			break;
		}
		ret = mnl_cb_run(buf, (size_t)n, nlh->nlmsg_seq, port, cb, data);
		if (ret < MNL_CB_STOP)
			ret = -errno;
	}
	free(buf);
	return ret < 0 ? ret : 0;
}

static struct nlmsghdr *request(char *buf, uint16_t type, uint8_t cmd, uint16_t flags)
{
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buf);
	struct genlmsghdr *genl;

	nlh->nlmsg_type = type;
	nlh->nlmsg_flags = NLM_F_REQUEST | flags;
	genl = mnl_nlmsg_put_extra_header(nlh, sizeof(*genl));
	genl->cmd = cmd;
	genl->version = KVMSNAP_GENL_VERSION;
	return nlh;
}

struct family {
	uint16_t id;
	uint32_t group;		/* of events */
};

static void get_groups(const struct nlattr *groups, struct family *family)
{
	const struct nlattr *group, *attr;

	mnl_attr_for_each_nested(group, groups) {
		const char *name = "";
		uint32_t id = 0;

		mnl_attr_for_each_nested(attr, group) {
			if (mnl_attr_get_type(attr) == CTRL_ATTR_MCAST_GRP_NAME)
				name = mnl_attr_get_str(attr);
			else if (mnl_attr_get_type(attr) == CTRL_ATTR_MCAST_GRP_ID)
				id = mnl_attr_get_u32(attr);
		}
		if (!strcmp(name, KVMSNAP_GENL_GROUP))
			family->group = id;
	}
}

static int get_family(const struct nlmsghdr *nlh, void *data)
{
	struct family *family = data;
	const struct nlattr *attr;

	mnl_attr_for_each(attr, nlh, sizeof(struct genlmsghdr)) {
		if (mnl_attr_get_type(attr) == CTRL_ATTR_FAMILY_ID)
			family->id = mnl_attr_get_u16(attr);
		else if (mnl_attr_get_type(attr) == CTRL_ATTR_MCAST_GROUPS)
			get_groups(attr, family);
	}
	return MNL_CB_OK;
}

/* A socket of the family's, or NULL and errno. */
static struct mnl_socket *open_family(struct family *family)
{
	struct mnl_socket *nl = mnl_socket_open2(NETLINK_GENERIC, SOCK_CLOEXEC);
	struct nlmsghdr *nlh;
	char buf[256];
	int err;

	if (!nl)
		return NULL;
	err = mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) < 0 ? -errno : 0;
	if (!err) {
		nlh = request(buf, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, NLM_F_ACK);
		mnl_attr_put_strz(nlh, CTRL_ATTR_FAMILY_NAME, KVMSNAP_GENL_NAME);
		err = talk(nl, nlh, get_family, family);
	}
	if (!err)
		return nl;
	mnl_socket_close(nl);
	errno = -err;
	return NULL;
}

static void copy_payload(void *to, size_t size, const struct nlattr *attr)
{
	size_t len = mnl_attr_get_payload_len(attr);

	memcpy(to, mnl_attr_get_payload(attr), len < size ? len : size);
}

static int get_session(const struct nlmsghdr *nlh, void *data)
{
	struct kvmsnap_session_info info = { 0 };
	struct list *list = data;
	const struct nlattr *attr;

	mnl_attr_for_each(attr, nlh, sizeof(struct genlmsghdr)) {
		switch (mnl_attr_get_type(attr)) {
		case KVMSNAP_GENL_A_ID:
			info.id = mnl_attr_get_u32(attr);
			break;
		case KVMSNAP_GENL_A_OWNER_PID:
			info.owner_pid = (pid_t)mnl_attr_get_u32(attr);
			break;
		case KVMSNAP_GENL_A_VM_PID:
			info.vm_pid = (pid_t)mnl_attr_get_u32(attr);
			break;
		case KVMSNAP_GENL_A_STATS:
			copy_payload(&info.stats, sizeof(info.stats), attr);
			break;
		case KVMSNAP_GENL_A_SEQ:
			info.seq = mnl_attr_get_u64(attr);
			break;
		case KVMSNAP_GENL_A_EVENT:
			info.event = mnl_attr_get_u32(attr);
			break;
		case KVMSNAP_GENL_A_MAP:
			copy_payload(info.map, sizeof(info.map), attr);
			info.has_map = true;
			break;
		}
	}
	list->result = list->each(&info, list->data);
	return list->result ? MNL_CB_STOP : MNL_CB_OK;
}

int kvmsnap_list_sessions(int (*each)(const struct kvmsnap_session_info *info, void *data),
			  void *data)
{
	struct list list = { .each = each, .data = data };
	struct family family = { 0 };
	struct mnl_socket *nl = open_family(&family);
	struct nlmsghdr *nlh;
	char buf[256];
	int err;

	if (!nl)
		return -errno;
	nlh = request(buf, family.id, KVMSNAP_GENL_CMD_GET, NLM_F_DUMP);
	err = talk(nl, nlh, get_session, &list);
	if (!err)
		err = list.result;
	mnl_socket_close(nl);
	return err;
}

int kvmsnap_follow_events(int (*each)(const struct kvmsnap_session_info *info, void *data),
			  void *data)
{
	struct list list = { .each = each, .data = data };
	struct family family = { 0 };
	struct mnl_socket *nl = open_family(&family);
	size_t size = MNL_SOCKET_BUFFER_SIZE;
	char *buf = malloc(size);
	int err = 0;
	ssize_t n;

	if (!nl || !buf)
		err = -errno;
	else if (mnl_socket_setsockopt(nl, NETLINK_ADD_MEMBERSHIP, &family.group,
				       sizeof(family.group)) < 0)
		err = -errno;
	/* The first call tells that events are coming. */
	if (!err)
		err = each(NULL, data);
	while (!err) {
		n = mnl_socket_recvfrom(nl, buf, size);
		/* Too many for the socket's buffer: the gap in the numbers tells. */
		if (n < 0 && errno == ENOBUFS)
			continue;
		if (n < 0)
			err = -errno;
		else if (mnl_cb_run(buf, (size_t)n, 0, 0, get_session, &list) < MNL_CB_STOP)
			err = -errno;
		if (!err)
			err = list.result;
	}
	free(buf);
	if (nl)
		mnl_socket_close(nl);
	return err;
}
