// SPDX-License-Identifier: GPL-2.0
/*
 * kvmsnap: module init and exit, the device node, and the table of ioctls.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/poll.h>
#include <linux/rcupdate.h>
#include <linux/uaccess.h>

#include "kvm.h"
#include "netlink.h"
#include "session.h"

static int kvmsnap_open(struct inode *inode, struct file *file)
{
	struct kvmsnap_session *session = kvmsnap_session_create();

	if (IS_ERR(session))
		return PTR_ERR(session);
	file->private_data = session;
	return nonseekable_open(inode, file);
}

static int kvmsnap_release(struct inode *inode, struct file *file)
{
	kvmsnap_session_close(file->private_data);
	return 0;
}

static __poll_t kvmsnap_poll(struct file *file, struct poll_table_struct *wait)
{
	return kvmsnap_session_poll(file->private_data, file, wait);
}

static int kvmsnap_info(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_info *arg = data;

	if (arg->flags)
		return -EOPNOTSUPP;
	arg->abi_version = KVMSNAP_ABI_VERSION;
	arg->page_size = KVMSNAP_PAGE_SIZE;
	arg->max_regions = KVMSNAP_MAX_REGIONS;
	arg->max_request_bytes = KVMSNAP_REQUEST_PAGES * KVMSNAP_PAGE_SIZE;
	arg->max_requests = session->writer.nr_requests;
	arg->reserved = 0;
	arg->max_bytes = KVMSNAP_MAX_BYTES;
	return 0;
}

union kvmsnap_arg {
	struct kvmsnap_info info;
	struct kvmsnap_bind_vm bind_vm;
	struct kvmsnap_set_target set_target;
	struct kvmsnap_add_region add_region;
	struct kvmsnap_queue queue;
	struct kvmsnap_wait wait;
	struct kvmsnap_cancel cancel;
	struct kvmsnap_stats stats;
	struct kvmsnap_get_bitmap get_bitmap;
	struct kvmsnap_set_eventfd set_eventfd;
	struct kvmsnap_track track;
	struct kvmsnap_harvest harvest;
	struct kvmsnap_mark_dirty mark_dirty;
	struct kvmsnap_set_stage set_stage;
	struct kvmsnap_set_phase set_phase;
	struct kvmsnap_get_hashes get_hashes;
};

/**
 * struct kvmsnap_op - an ioctl
 * @size: of its structure as we know it
 * @min_size: up to its last field of ABI version 1
 * @number: of the ioctl
 * @run: does it; the structure is in kernel memory, zero-extended to @size, and is copied
 *	back on success
 */
struct kvmsnap_op {
	size_t size;
	size_t min_size;
	unsigned int number;
	int (*run)(struct kvmsnap_session *session, void *arg);
};

#define KVMSNAP_OP(_number, _name, _last, _run)			\
	[_IOC_NR(_number)] = {					\
		.size = sizeof(struct _name),			\
		.min_size = offsetofend(struct _name, _last),	\
		.number = _number,				\
		.run = _run,					\
	}

static const struct kvmsnap_op kvmsnap_ops[] = {
	KVMSNAP_OP(KVMSNAP_INFO, kvmsnap_info, max_bytes, kvmsnap_info),
	KVMSNAP_OP(KVMSNAP_BIND_VM, kvmsnap_bind_vm, reserved, kvmsnap_session_bind_vm),
	KVMSNAP_OP(KVMSNAP_SET_TARGET, kvmsnap_set_target, offset, kvmsnap_session_set_target),
	KVMSNAP_OP(KVMSNAP_ADD_REGION, kvmsnap_add_region, reserved, kvmsnap_session_add_region),
	KVMSNAP_OP(KVMSNAP_QUEUE, kvmsnap_queue, bytes_per_second, kvmsnap_session_queue),
	KVMSNAP_OP(KVMSNAP_WAIT, kvmsnap_wait, pass, kvmsnap_session_wait),
	KVMSNAP_OP(KVMSNAP_CANCEL, kvmsnap_cancel, flags, kvmsnap_session_cancel),
	KVMSNAP_OP(KVMSNAP_STATS, kvmsnap_stats, pause_ns, kvmsnap_session_stats),
	KVMSNAP_OP(KVMSNAP_GET_BITMAP, kvmsnap_get_bitmap, data, kvmsnap_session_get_bitmap),
	KVMSNAP_OP(KVMSNAP_SET_EVENTFD, kvmsnap_set_eventfd, reserved, kvmsnap_session_set_eventfd),
	KVMSNAP_OP(KVMSNAP_TRACK, kvmsnap_track, reserved, kvmsnap_session_track),
	KVMSNAP_OP(KVMSNAP_HARVEST, kvmsnap_harvest, pages_dirty, kvmsnap_session_harvest),
	KVMSNAP_OP(KVMSNAP_MARK_DIRTY, kvmsnap_mark_dirty, ranges, kvmsnap_session_mark_dirty),
	KVMSNAP_OP(KVMSNAP_SET_STAGE, kvmsnap_set_stage, bytes, kvmsnap_session_set_stage),
	KVMSNAP_OP(KVMSNAP_SET_PHASE, kvmsnap_set_phase, pause_ns, kvmsnap_session_set_phase),
	KVMSNAP_OP(KVMSNAP_GET_HASHES, kvmsnap_get_hashes, key, kvmsnap_session_get_hashes),
};

static long kvmsnap_ioctl(struct file *file, unsigned int number, unsigned long user)
{
	const struct kvmsnap_op *op;
	union kvmsnap_arg arg;
	u32 size;
	int err;

	if (_IOC_NR(number) >= ARRAY_SIZE(kvmsnap_ops))
		return -ENOTTY;
	op = &kvmsnap_ops[array_index_nospec(_IOC_NR(number), ARRAY_SIZE(kvmsnap_ops))];
	if (number != op->number)
		return -ENOTTY;

	if (get_user(size, (u32 __user *)user))
		return -EFAULT;
	if (size < op->min_size)
		return -EINVAL;
	/* No structure will ever be that large; bounds the look at the tail. */
	if (size > PAGE_SIZE)
		return -E2BIG;
	memset(&arg, 0, sizeof(arg));
	err = copy_struct_from_user(&arg, op->size, (void __user *)user, size);
	if (err)
		return err;

	err = op->run(file->private_data, &arg);
	/* -ETIME is an answer, with fields. */
	if (err && err != -ETIME)
		return err;
	if (copy_to_user((void __user *)user, &arg, min_t(size_t, size, op->size)))
		return -EFAULT;
	return err;
}

static const struct file_operations kvmsnap_fops = {
	.owner = THIS_MODULE,
	.open = kvmsnap_open,
	.release = kvmsnap_release,
	.poll = kvmsnap_poll,
	.unlocked_ioctl = kvmsnap_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

/* Root's alone until an administrator says otherwise. */
static struct miscdevice kvmsnap_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kvmsnap",
	.fops = &kvmsnap_fops,
	.mode = 0600,
};

static int __init kvmsnap_init(void)
{
	int err;

	err = kvmsnap_kvm_module_init();
	if (err)
		return err;
	err = kvmsnap_netlink_module_init();
	if (err)
		goto err_kvm;
	err = kvmsnap_writer_module_init();
	if (err)
		goto err_netlink;
	err = kvmsnap_pass_module_init();
	if (err)
		goto err_writer;
	/* Last: from here on there may be sessions. */
	err = misc_register(&kvmsnap_misc);
	if (err)
		goto err_pass;
	return 0;

err_pass:
	kvmsnap_pass_module_exit();
err_writer:
	kvmsnap_writer_module_exit();
err_netlink:
	kvmsnap_netlink_module_exit();
err_kvm:
	kvmsnap_kvm_module_exit();
	return err;
}

/*
 * There are no sessions: each holds a reference on the module, beyond its file as long as
 * I/O is in flight.  The last may have been dropped by a work item that is still on its
 * way out, and about to tell of it; destroying the work queues waits for it.  What a file
 * system's own task had completed is in a work queue by then, but that task may have been preempted
 * while it still was in our code: waiting for all tasks to have let go of their CPU waits for it.
 */
static void __exit kvmsnap_exit(void)
{
	misc_deregister(&kvmsnap_misc);
	kvmsnap_pass_module_exit();
	kvmsnap_writer_module_exit();
	kvmsnap_netlink_module_exit();
	kvmsnap_kvm_module_exit();
	synchronize_rcu_tasks();
}

module_init(kvmsnap_init);
module_exit(kvmsnap_exit);

MODULE_DESCRIPTION("KVM snapshots: direct writes of guest memory to fixed file offsets");
MODULE_AUTHOR("The kvmsnap authors");
MODULE_LICENSE("GPL");
