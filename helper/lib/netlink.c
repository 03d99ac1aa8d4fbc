// SPDX-License-Identifier: LGPL-2.1-or-later
/* Status by generic netlink, with libmnl. */
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

static int get_family(const struct nlmsghdr *nlh, void *data)
{
	const struct nlattr *attr;

	mnl_attr_for_each(attr, nlh, sizeof(struct genlmsghdr))
		if (mnl_attr_get_type(attr) == CTRL_ATTR_FAMILY_ID)
			*(uint16_t *)data = mnl_attr_get_u16(attr);
	return MNL_CB_OK;
}

static int get_session(const struct nlmsghdr *nlh, void *data)
{
	struct kvmsnap_session_info info = { 0 };
	struct list *list = data;
	const struct nlattr *attr;
	size_t len;

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
			len = mnl_attr_get_payload_len(attr);
			memcpy(&info.stats, mnl_attr_get_payload(attr),
			       len < sizeof(info.stats) ? len : sizeof(info.stats));
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
	struct mnl_socket *nl;
	struct nlmsghdr *nlh;
	uint16_t family = 0;
	char buf[256];
	int err;

	nl = mnl_socket_open2(NETLINK_GENERIC, SOCK_CLOEXEC);
	if (!nl)
		return -errno;
	if (mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) < 0) {
		err = -errno;
		goto out;
	}
	nlh = request(buf, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, NLM_F_ACK);
	mnl_attr_put_strz(nlh, CTRL_ATTR_FAMILY_NAME, KVMSNAP_GENL_NAME);
	err = talk(nl, nlh, get_family, &family);
	if (err)
		goto out;
	nlh = request(buf, family, KVMSNAP_GENL_CMD_GET, NLM_F_DUMP);
	err = talk(nl, nlh, get_session, &list);
	if (!err)
		err = list.result;
out:
	mnl_socket_close(nl);
	return err;
}
