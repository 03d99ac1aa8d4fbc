// SPDX-License-Identifier: GPL-2.0
/*
 * The virtual machine of a session.  The only file that knows KVM's structures and
 * descriptors.
 *
 * A struct kvmsnap_vm belongs to one session.  It holds
 *  - the VM file, which holds struct kvm, until the VM's process is gone or unbind;
 *  - an mmgrab() reference on the process's mm, by way of the mmu notifier, until unbind.
 *    It keeps the structure, not the address space: who needs that takes
 *    mmget_not_zero() for as short as can be.
 *
 * When the address space goes away (exit, exec, kill), the notifier's release runs
 * first: it drops the VM file there, so that KVM tears the VM down when it would have
 * without us, and tells the session by its gone() callback.
 */
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/magic.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "compat.h"
#include "kvm.h"

struct kvmsnap_vm {
	struct mmu_notifier notifier;	/* holds mm */
	struct mm_struct *mm;
	pid_t pid;			/* of the process that made the VM, in the initial namespace */
	void (*gone)(void *data);
	void *data;

	spinlock_t lock;
	struct file *file;		/* @lock; NULL once the address space is gone */
};

/*
 * KVM names its VM descriptors "kvm-vm" in the anonymous inode file system, where no
 * user can make a name (virt/kvm/kvm_main.c, kvm_dev_ioctl_create_vm()).  file_is_kvm()
 * is for KVM's own modules from 6.18 on.
 */
static bool kvmsnap_file_is_vm(struct file *file)
{
	return file_inode(file)->i_sb->s_magic == ANON_INODE_FS_MAGIC &&
	       !strcmp(file->f_path.dentry->d_name.name, "kvm-vm");
}

static void kvmsnap_vm_mm_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct kvmsnap_vm *vm = container_of(notifier, struct kvmsnap_vm, notifier);
	struct file *file;

	spin_lock(&vm->lock);
	file = vm->file;
	vm->file = NULL;
	spin_unlock(&vm->lock);

	if (file)
		fput(file);
	vm->gone(vm->data);
}

static const struct mmu_notifier_ops kvmsnap_vm_notifier_ops = {
	.release = kvmsnap_vm_mm_release,
};

/**
 * kvmsnap_vm_bind() - take hold of a VM
 * @fd: VM descriptor in the caller's table
 * @gone: called once when the VM's address space goes away before unbind, or from within
 *	unbind; may not sleep for long, must not unbind
 * @data: for @gone
 *
 * Context: process context, may sleep.
 * Return: the VM, or -EBADF, -ENXIO (not a VM), -EPERM, -ESRCH (process gone), -ENOMEM,
 * -EINTR.
 */
struct kvmsnap_vm *kvmsnap_vm_bind(int fd, void (*gone)(void *data), void *data)
{
	struct kvmsnap_vm *vm;
	struct file *file;
	struct kvm *kvm;
	int err;

	file = fget(fd);
	if (!file)
		return ERR_PTR(-EBADF);
	err = -ENXIO;
	if (!kvmsnap_file_is_vm(file))
		goto err_file;
	kvm = file->private_data;

	/* The helper reads another process's memory: what ptrace asks for that. */
	err = -EPERM;
	if (kvm->mm != current->mm && !ns_capable(kvmsnap_mm_user_ns(kvm->mm), CAP_SYS_PTRACE))
		goto err_file;

	err = -ENOMEM;
	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!vm)
		goto err_file;
	spin_lock_init(&vm->lock);
	vm->file = file;
	vm->mm = kvm->mm;
	vm->pid = kvm->userspace_pid;
	vm->gone = gone;
	vm->data = data;
	vm->notifier.ops = &kvmsnap_vm_notifier_ops;

	err = -ESRCH;
	if (!mmget_not_zero(vm->mm))
		goto err_vm;
	/* The lock's holder may be waiting for the VMM. */
	err = -EINTR;
	if (!mmap_write_lock_killable(vm->mm)) {
		/* Published last: release may run from here on. */
		err = __mmu_notifier_register(&vm->notifier, vm->mm);
		mmap_write_unlock(vm->mm);
	}
	mmput_async(vm->mm);
	if (err)
		goto err_vm;
	return vm;

err_vm:
	kfree(vm);
err_file:
	fput(file);
	return ERR_PTR(err);
}

/**
 * kvmsnap_vm_unbind() - let go of a VM and free @vm
 * @vm: no other user may be left
 *
 * Context: process context, may sleep; not from the gone() callback.
 */
void kvmsnap_vm_unbind(struct kvmsnap_vm *vm)
{
	/* Runs release if it has not run, or waits for it; drops the mm. */
	mmu_notifier_unregister(&vm->notifier, vm->mm);
	if (vm->file)
		fput(vm->file);
	kfree(vm);
}

/* The VM's mm: valid until unbind, its address space only under mmget_not_zero(). */
struct mm_struct *kvmsnap_vm_mm(struct kvmsnap_vm *vm)
{
	return vm->mm;
}

pid_t kvmsnap_vm_pid(struct kvmsnap_vm *vm)
{
	return vm->pid;
}

/* Is the caller the VM's own process? */
bool kvmsnap_vm_is_ours(struct kvmsnap_vm *vm)
{
	return vm->mm == current->mm;
}

static bool kvmsnap_kvm_has_hva(struct kvm *kvm, u64 hva)
{
	struct kvm_memory_slot *slot;
	int as, bkt;

	for (as = 0; as < kvmsnap_kvm_nr_as(kvm); as++) {
		kvm_for_each_memslot(slot, bkt, __kvm_memslots(kvm, as))
			if (hva >= slot->userspace_addr &&
			    hva - slot->userspace_addr < (u64)slot->npages << PAGE_SHIFT)
				return true;
	}
	return false;
}

/**
 * kvmsnap_vm_has_hva() - is a host address backed by a memslot?
 * @vm: the VM
 * @hva: user address in the VM's process
 *
 * Context: process context.
 * Return: 1 or 0, or -ESRCH when the VM's process is gone.
 */
int kvmsnap_vm_has_hva(struct kvmsnap_vm *vm, u64 hva)
{
	struct kvm *kvm = NULL;
	int idx, found;

	/*
	 * KVM's own reference, by its exported function: where modules are versioned
	 * its checksum covers the layout of struct kvm, so a module that was built for
	 * another layout is not loaded.
	 */
	spin_lock(&vm->lock);
	if (vm->file && kvm_get_kvm_safe(vm->file->private_data))
		kvm = vm->file->private_data;
	spin_unlock(&vm->lock);
	if (!kvm)
		return -ESRCH;

	idx = srcu_read_lock(&kvm->srcu);
	found = kvmsnap_kvm_has_hva(kvm, hva);
	srcu_read_unlock(&kvm->srcu, idx);
	kvm_put_kvm(kvm);
	return found;
}
