// SPDX-License-Identifier: GPL-2.0
/*
 * The virtual machine of a session.  The only file that knows KVM's structures and
 * descriptors.
 *
 * A struct kvmsnap_vm belongs to one session.  It holds
 *  - the VM file, which holds struct kvm, until the VM's process is gone or kvmsnap_vm_drop();
 *  - an mmgrab() reference on the process's mm, by way of the mmu notifier, until unbind.
 *    It keeps the structure, not the address space: who needs that takes
 *    mmget_not_zero() for as short as can be.
 *
 * When the address space goes away (exit, exec, kill), the notifier's release runs
 * first: it tells the session by its gone() callback, and drops the VM file there, so that KVM
 * tears the VM down when it would have without us.  When the host drops, replaces or moves
 * pages, the notifier tells by the changed() callback, once it is done.
 *
 * KVM's events about dirty rings come to one pair of probes, however many VMs are observed and
 * how often: these look up who observes the VM of the event.
 */
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/kthread.h>
#include <linux/kvm_host.h>
#include <linux/magic.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/rhashtable.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>

#include "compat.h"
#include "kvm.h"

struct kvmsnap_vm {
	struct mmu_notifier notifier;	/* holds mm */
	struct mm_struct *mm;
	pid_t pid;			/* of the VM's maker, in the initial namespace */
	const struct kvmsnap_vm_ops *ops;
	void *data;

	const struct kvm *kvm;		/* to know it by, also when it is gone */
	spinlock_t lock;		/* of @file and @listed */
	struct file *file;		/* NULL once it was dropped */
	bool listed;			/* in kvmsnap_observers, by @node */
	struct rhlist_head node;
};

/* KVM's events about dirty rings; NULL where it has none.  It stays loaded as long as we are. */
static struct tracepoint *kvmsnap_push_event, *kvmsnap_reset_event;

/* Who is to be told of a VM's events: by struct kvm.  Read under RCU. */
static struct rhltable kvmsnap_observers;
static const struct rhashtable_params kvmsnap_observers_params = {
	.key_len = sizeof_field(struct kvmsnap_vm, kvm),
	.key_offset = offsetof(struct kvmsnap_vm, kvm),
	.head_offset = offsetof(struct kvmsnap_vm, node),
	.automatic_shrinking = true,
};

#define KVMSNAP_MAX_OBSERVERS	16	/* of a VM; a few more when they come at the same time */

static DEFINE_MUTEX(kvmsnap_probes_lock);	/* registering them */
static unsigned int kvmsnap_probes_users;	/* kvmsnap_probes_lock */

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

/* Not to be told of any more; what is being told is over when kvmsnap_vm_ignore() returns. */
static void kvmsnap_vm_unlist(struct kvmsnap_vm *vm)
{
	spin_lock(&vm->lock);
	/* Who finds it off the list may rely on that: a grace period later nobody looks at it. */
	if (vm->listed)
		rhltable_remove(&kvmsnap_observers, &vm->node, kvmsnap_observers_params);
	vm->listed = false;
	spin_unlock(&vm->lock);
}

/**
 * kvmsnap_vm_drop() - let the VM go when its other holders do
 * @vm: what needs the VM itself, harvests above all, says -ESRCH from now on
 *
 * Context: process context: that of the VM's process, where it can be, since KVM unmaps memory of
 * its own there.  Doesn't sleep.
 */
void kvmsnap_vm_drop(struct kvmsnap_vm *vm)
{
	struct file *file;

	spin_lock(&vm->lock);
	file = vm->file;
	vm->file = NULL;
	spin_unlock(&vm->lock);
	/* Before the VM goes: another one may come to lie where it did. */
	kvmsnap_vm_unlist(vm);
	if (file)
		fput(file);
}

static void kvmsnap_vm_mm_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct kvmsnap_vm *vm = container_of(notifier, struct kvmsnap_vm, notifier);

	/* First: nobody is to take another VM for this one; see kvmsnap_vm_same(). */
	vm->ops->gone(vm->data);
	kvmsnap_vm_drop(vm);
}

/*
 * Pages of the range are not what they were.  At the end, not at the start, of which the
 * change is yet to come: a page that is read in between would be old.
 */
static void kvmsnap_vm_mm_changed(struct mmu_notifier *notifier,
				  const struct mmu_notifier_range *range)
{
	struct kvmsnap_vm *vm = container_of(notifier, struct kvmsnap_vm, notifier);
	u64 start = range->start, end = range->end, step;

	/* These leave the bytes alone. */
	if (range->event == MMU_NOTIFY_PROTECTION_VMA ||
	    range->event == MMU_NOTIFY_PROTECTION_PAGE ||
	    range->event == MMU_NOTIFY_SOFT_DIRTY)
		return;
	if (!mmu_notifier_range_blockable(range)) {
		vm->ops->changed(vm->data, start, end);
		return;
	}
	/* In steps: it may be all that the VM has. */
	for (; start < end; start += step) {
		step = min_t(u64, end - start, SZ_1G);
		vm->ops->changed(vm->data, start, start + step);
		cond_resched();
	}
}

static const struct mmu_notifier_ops kvmsnap_vm_notifier_ops = {
	.release = kvmsnap_vm_mm_release,
	.invalidate_range_end = kvmsnap_vm_mm_changed,
};

/**
 * kvmsnap_vm_bind() - take hold of a VM
 * @fd: VM descriptor in the caller's table
 * @ops: callbacks, from now on
 * @data: for them
 *
 * Context: process context, may sleep.
 * Return: the VM, or -EBADF, -ENXIO (not a VM), -EPERM, -EOPNOTSUPP (it has memory that the host
 * can't read), -ESRCH (process gone), -ENOMEM, -ERESTARTNOINTR (there was a signal).
 */
struct kvmsnap_vm *kvmsnap_vm_bind(int fd, const struct kvmsnap_vm_ops *ops, void *data)
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

	err = -EOPNOTSUPP;
	if (kvmsnap_kvm_has_private_mem(kvm))
		goto err_file;

	err = -ENOMEM;
	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!vm)
		goto err_file;
	spin_lock_init(&vm->lock);
	vm->file = file;
	vm->kvm = kvm;
	vm->mm = kvm->mm;
	vm->pid = kvm->userspace_pid;
	vm->ops = ops;
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
	/* Registering heeds all signals, SIGSTOP too; a fatal one ends the caller. */
	if (err == -EINTR)
		err = -ERESTARTNOINTR;
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
 * Context: process context, may sleep; not from a callback.
 */
void kvmsnap_vm_unbind(struct kvmsnap_vm *vm)
{
	/* Runs release if it has not run, or waits for it; drops the mm. */
	mmu_notifier_unregister(&vm->notifier, vm->mm);
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

/*
 * Are these holds on the same VM?  Of two that have not been dropped, or with one that is about to
 * end: where its VM was, another one may lie by now.
 */
bool kvmsnap_vm_same(const struct kvmsnap_vm *a, const struct kvmsnap_vm *b)
{
	return a->kvm == b->kvm;
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

/*
 * KVM's own reference, by its exported function: where modules are versioned its
 * checksum covers the layout of struct kvm, so a module that was built for another
 * layout is not loaded.  NULL when the VM's process is gone.
 */
static struct kvm *kvmsnap_vm_get_kvm(struct kvmsnap_vm *vm)
{
	struct kvm *kvm = NULL;

	spin_lock(&vm->lock);
	if (vm->file && kvm_get_kvm_safe(vm->file->private_data))
		kvm = vm->file->private_data;
	spin_unlock(&vm->lock);
	return kvm;
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
	struct kvm *kvm = kvmsnap_vm_get_kvm(vm);
	int idx, found;

	if (!kvm)
		return -ESRCH;
	idx = srcu_read_lock(&kvm->srcu);
	found = kvmsnap_kvm_has_hva(kvm, hva);
	srcu_read_unlock(&kvm->srcu, idx);
	kvm_put_kvm(kvm);
	return found;
}

/*
 * Have the memslots changed since the last time?  Under slots_lock, which an update holds
 * until what it changed about logging is in force, TLBs flushed.
 */
static bool kvmsnap_slots_changed(struct kvm *kvm, struct kvmsnap_batch *batch)
{
	bool changed = false;
	int as;

	lockdep_assert_held(&kvm->slots_lock);
	for (as = 0; as < min(kvmsnap_kvm_nr_as(kvm), KVMSNAP_MAX_AS); as++) {
		u64 generation = __kvm_memslots(kvm, as)->generation;

		changed |= batch->generation[as] != generation;
		batch->generation[as] = generation;
	}
	return changed;
}

/* Under slots_lock, which a reset holds. */
static u32 kvmsnap_reset_sum(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	u32 sum = 0;

	lockdep_assert_held(&kvm->slots_lock);
	kvm_for_each_vcpu(i, vcpu, kvm)
		sum += vcpu->dirty_ring.reset_index;
	return sum;
}

/**
 * kvmsnap_vm_each_slot() - look at the writable memslots
 * @vm: of a VM that has a dirty ring, and protects what begins to log
 * @batch: to be set to this moment: what changes from now on is noticed; or NULL
 * @slot: told of each slot's host addresses, [start, end), and whether it logs dirty pages; its
 *	first return value that is not 0 ends the walk
 * @data: for @slot
 *
 * Context: process context; waits, killable, for a memslot update to be over.
 * Return: 0; what @slot returned; -EOPNOTSUPP there is no ring, or new slots are not
 * protected; -ESRCH, -EINTR.
 */
int kvmsnap_vm_each_slot(struct kvmsnap_vm *vm, struct kvmsnap_batch *batch,
			 int (*slot)(void *data, u64 start, u64 end, bool logs), void *data)
{
	struct kvm *kvm = kvmsnap_vm_get_kvm(vm);
	struct kvm_memory_slot *memslot;
	int as, bkt, err = 0;

	if (!kvm)
		return -ESRCH;
	if (!kvm->dirty_ring_size || kvm_dirty_log_manual_protect_and_init_set(kvm)) {
		err = -EOPNOTSUPP;
		goto out;
	}
	if (mutex_lock_killable(&kvm->slots_lock)) {
		err = -EINTR;
		goto out;
	}
	for (as = 0; as < kvmsnap_kvm_nr_as(kvm); as++) {
		kvm_for_each_memslot(memslot, bkt, __kvm_memslots(kvm, as)) {
			u64 start = memslot->userspace_addr;

			if (!err && !(memslot->flags & KVM_MEM_READONLY))
				err = slot(data, start,
					   start + ((u64)memslot->npages << PAGE_SHIFT),
					   memslot->flags & KVM_MEM_LOG_DIRTY_PAGES);
		}
	}
	if (batch) {
		kvmsnap_slots_changed(kvm, batch);
		batch->reset_sum = kvmsnap_reset_sum(kvm);
	}
	mutex_unlock(&kvm->slots_lock);
out:
	kvm_put_kvm(kvm);
	return err;
}

/**
 * kvmsnap_vm_slots_changed() - have the memslots changed since @batch was set?
 * @vm: the VM
 * @batch: is set to this moment
 *
 * Context: process context; waits, killable, for a memslot update to be over.
 * Return: 1 yes, 0 no, -ESRCH, -EINTR.
 */
int kvmsnap_vm_slots_changed(struct kvmsnap_vm *vm, struct kvmsnap_batch *batch)
{
	struct kvm *kvm = kvmsnap_vm_get_kvm(vm);
	int changed = -EINTR;

	if (!kvm)
		return -ESRCH;
	if (!mutex_lock_killable(&kvm->slots_lock)) {
		changed = kvmsnap_slots_changed(kvm, batch);
		mutex_unlock(&kvm->slots_lock);
	}
	kvm_put_kvm(kvm);
	return changed;
}

/**
 * kvmsnap_vm_rings() - how large must a picture of the rings be?
 * @vm: the VM
 * @vcpus: out, how many there are; their indexes are below that
 * @entries: out, of each ring
 *
 * Return: 0, -EOPNOTSUPP there is none, or -ESRCH.
 */
int kvmsnap_vm_rings(struct kvmsnap_vm *vm, u32 *vcpus, u32 *entries)
{
	struct kvm *kvm = kvmsnap_vm_get_kvm(vm);

	if (!kvm)
		return -ESRCH;
	*vcpus = atomic_read(&kvm->online_vcpus);
	*entries = kvm->dirty_ring_size / sizeof(struct kvm_dirty_gfn);
	kvm_put_kvm(kvm);
	return *entries ? 0 : -EOPNOTSUPP;
}

/**
 * kvmsnap_vm_each_ring() - look at how far the rings are, with no reset under way
 * @vm: the VM
 * @ring: told of each vCPU's index and of the indexes behind the last entry that was pushed and
 *	the last that was reset; its first return value that is not 0 is passed on
 * @data: for @ring
 *
 * Context: process context; waits, killable, for a reset or memslot update to be over.
 * Return: 0, what @ring returned, -ESRCH or -EINTR.
 */
int kvmsnap_vm_each_ring(struct kvmsnap_vm *vm,
			 int (*ring)(void *data, u32 vcpu, u32 pushed, u32 reset), void *data)
{
	struct kvm *kvm = kvmsnap_vm_get_kvm(vm);
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int err = 0;

	if (!kvm)
		return -ESRCH;
	if (mutex_lock_killable(&kvm->slots_lock)) {
		err = -EINTR;
		goto out;
	}
	kvm_for_each_vcpu(i, vcpu, kvm)
		if (!err)
			err = ring(data, i, READ_ONCE(vcpu->dirty_ring.dirty_index),
				   READ_ONCE(vcpu->dirty_ring.reset_index));
	mutex_unlock(&kvm->slots_lock);
out:
	kvm_put_kvm(kvm);
	return err;
}

/* Those who observe a VM.  Under rcu_read_lock(). */
#define kvmsnap_for_each_observer(vm, pos, kvm_ptr)					\
	rhl_for_each_entry_rcu(vm, pos,						\
			       rhltable_lookup(&kvmsnap_observers, &(kvm_ptr),		\
					       kvmsnap_observers_params), node)

/* Each is called for each entry, some by the scheduler: no more of a VM than are of use. */
static bool kvmsnap_observers_full(const struct kvm *kvm)
{
	struct rhlist_head *pos;
	struct kvmsnap_vm *vm;
	int n = 0;

	rcu_read_lock();
	kvmsnap_for_each_observer(vm, pos, kvm)
		n++;
	rcu_read_unlock();
	return n >= KVMSNAP_MAX_OBSERVERS;
}

/* An entry at @offset of @slot was pushed into @vcpu's ring. */
static void kvmsnap_vm_pushed(struct kvmsnap_vm *vm, struct kvm_vcpu *vcpu, u32 slot, u64 offset)
{
	struct kvm_dirty_ring *ring = &vcpu->dirty_ring;
	struct kvm_memory_slot *memslot = NULL;
	u32 reset = READ_ONCE(ring->reset_index);
	u64 hva = KVMSNAP_NO_HVA;

	if (slot >> 16 < kvmsnap_kvm_nr_as(vcpu->kvm))
		memslot = id_to_memslot(__kvm_memslots(vcpu->kvm, slot >> 16), slot & 0xffff);
	if (memslot && offset < memslot->npages)
		hva = memslot->userspace_addr + (offset << PAGE_SHIFT);
	/* Newer tracepoints can be preempted, and the scheduler pushes too (steal time). */
	preempt_disable_notrace();
	vm->ops->pushed(vm->data, vcpu->vcpu_idx, ring->dirty_index - 1, hva);
	preempt_enable_notrace();

	/* Who resets holds the lock: with it free, those that made @reset are over. */
	smp_rmb();
	if (!mutex_is_locked(&vcpu->kvm->slots_lock)) {
		/* And have told of it: the reset's unlock comes behind. */
		smp_rmb();
		vm->ops->settled(vm->data, vcpu->vcpu_idx, reset);
	}
}

/* KVM's event: an entry was pushed, by the vCPU that is running here, under kvm->srcu. */
static void kvmsnap_push_probe(void *unused, struct kvm_dirty_ring *ring, u32 slot, u64 offset)
{
	struct kvm_vcpu *vcpu = container_of(ring, struct kvm_vcpu, dirty_ring);
	struct rhlist_head *pos;
	struct kvmsnap_vm *vm;

	rcu_read_lock();
	kvmsnap_for_each_observer(vm, pos, vcpu->kvm)
		kvmsnap_vm_pushed(vm, vcpu, slot, offset);
	rcu_read_unlock();
}

/* KVM's event: a ring was reset, but for the flush, under slots_lock. */
static void kvmsnap_reset_probe(void *unused, struct kvm_dirty_ring *ring)
{
	struct kvm_vcpu *vcpu = container_of(ring, struct kvm_vcpu, dirty_ring);
	struct rhlist_head *pos;
	struct kvmsnap_vm *vm;

	rcu_read_lock();
	kvmsnap_for_each_observer(vm, pos, vcpu->kvm)
		vm->ops->reset(vm->data, vcpu->vcpu_idx, ring->reset_index);
	rcu_read_unlock();
}

/* Undone by kvmsnap_probes_put(). */
static int kvmsnap_probes_get(void)
{
	int err = 0;

	mutex_lock(&kvmsnap_probes_lock);
	if (!kvmsnap_probes_users) {
		err = tracepoint_probe_register(kvmsnap_reset_event, kvmsnap_reset_probe, NULL);
		if (err)
			goto out;
		err = tracepoint_probe_register(kvmsnap_push_event, kvmsnap_push_probe, NULL);
		if (err) {
			tracepoint_probe_unregister(kvmsnap_reset_event, kvmsnap_reset_probe, NULL);
			goto out;
		}
	}
	kvmsnap_probes_users++;
out:
	mutex_unlock(&kvmsnap_probes_lock);
	return err;
}

static void kvmsnap_probes_put(void)
{
	mutex_lock(&kvmsnap_probes_lock);
	if (!--kvmsnap_probes_users) {
		tracepoint_probe_unregister(kvmsnap_push_event, kvmsnap_push_probe, NULL);
		tracepoint_probe_unregister(kvmsnap_reset_event, kvmsnap_reset_probe, NULL);
	}
	mutex_unlock(&kvmsnap_probes_lock);
}

/**
 * kvmsnap_vm_observe() - have the owner told of what happens to the rings
 * @vm: not observed yet
 *
 * Context: process context, may sleep.
 * Return: 0; -EOPNOTSUPP KVM has no such events; -EBUSY too many observe it; -ESRCH; -ENOMEM.
 */
int kvmsnap_vm_observe(struct kvmsnap_vm *vm)
{
	int err;

	if (!kvmsnap_push_event || !kvmsnap_reset_event)
		return -EOPNOTSUPP;
	if (kvmsnap_observers_full(vm->kvm))
		return -EBUSY;
	err = kvmsnap_probes_get();
	if (err)
		return err;
	/* At one moment for both events: no reset that a push could look back on is missed. */
	err = -ESRCH;
	spin_lock(&vm->lock);
	if (vm->file) {
		err = rhltable_insert(&kvmsnap_observers, &vm->node, kvmsnap_observers_params);
		vm->listed = !err;
	}
	spin_unlock(&vm->lock);
	if (err)
		kvmsnap_probes_put();
	return err == -EBUSY || err == -E2BIG ? -ENOMEM : err;
}

/* Undo kvmsnap_vm_observe().  No callback of it is running when this returns.  May sleep. */
void kvmsnap_vm_ignore(struct kvmsnap_vm *vm)
{
	kvmsnap_vm_unlist(vm);
	synchronize_rcu();
	kvmsnap_probes_put();
}

/*
 * Take the dirty entries of a vCPU's ring, in their order, into @batch, and leave them
 * flagged for reset.  The ring's memory can be written by the VMM: what is read once is
 * checked later, and nothing is taken that KVM has not pushed.  False when there was no room
 * for all.
 */
static bool kvmsnap_ring_drain(struct kvm_dirty_ring *ring, struct kvmsnap_batch *batch)
{
	u32 next = READ_ONCE(ring->reset_index), end = READ_ONCE(ring->dirty_index);

	if (end - next > ring->size)
		end = next + ring->size;
	for (; next != end; next++) {
		struct kvm_dirty_gfn *entry = &ring->dirty_gfns[next & (ring->size - 1)];
		/* Pairs with the write barrier in kvm_dirty_ring_push(). */
		u32 flags = smp_load_acquire(&entry->flags);

		if (flags & KVM_DIRTY_GFN_F_RESET) {
			/* Not by us: somebody else's harvest. */
			batch->broken = true;
			continue;
		}
		if (!(flags & KVM_DIRTY_GFN_F_DIRTY))
			break;
		if (batch->nr == batch->max)
			return false;
		batch->entries[batch->nr].slot = READ_ONCE(entry->slot);
		batch->entries[batch->nr].hva = READ_ONCE(entry->offset);
		batch->nr++;
		/* Pairs with the acquire in kvm_dirty_gfn_harvested(). */
		smp_store_release(&entry->flags, KVM_DIRTY_GFN_F_RESET);
	}
	return true;
}

/* Has a ring half of what makes its vCPU leave the guest?  Sets batch->waiting. */
static bool kvmsnap_rings_press(struct kvm *kvm, struct kvmsnap_batch *batch)
{
	struct kvm_vcpu *vcpu;
	bool press = false;
	unsigned long i;
	u32 pushed = 0;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		struct kvm_dirty_ring *ring = &vcpu->dirty_ring;
		u32 index = READ_ONCE(ring->dirty_index);

		press |= index - READ_ONCE(ring->reset_index) >= ring->soft_limit / 2;
		pushed += index;
	}
	batch->waiting = pushed != batch->pushed_sum;
	batch->pushed_sum = pushed;
	return press;
}

/* Turn slot and offset of the entries into host addresses.  Under slots_lock. */
static void kvmsnap_batch_translate(struct kvm *kvm, struct kvmsnap_batch *batch)
{
	struct kvm_memory_slot *slot = NULL;
	u32 i, id = 0;

	lockdep_assert_held(&kvm->slots_lock);
	for (i = 0; i < batch->nr; i++) {
		struct kvmsnap_ring_entry *entry = &batch->entries[i];
		u64 offset = entry->hva;

		if (!slot || id != entry->slot) {
			id = entry->slot;
			slot = NULL;
			if (id >> 16 < kvmsnap_kvm_nr_as(kvm))
				slot = id_to_memslot(__kvm_memslots(kvm, id >> 16), id & 0xffff);
		}
		if (slot && offset < slot->npages)
			entry->hva = slot->userspace_addr + (offset << PAGE_SHIFT);
		else
			entry->hva = KVMSNAP_NO_HVA;
	}
}

/**
 * kvmsnap_vm_harvest() - empty the dirty rings, as far as @batch holds
 * @vm: of this module's owner: nobody else harvests
 * @batch: filled with the host addresses of what was dirtied.  With batch->changed that is
 *	not all: every page is to be taken as dirty.  With batch->broken there is no telling,
 *	since the TLB flush of another's reset may be yet to come.  As long as
 *	batch->rings_left is not 0, another call goes on
 * @lazy: nothing is taken before a ring is half as full as has its vCPU leave the guest.  Each
 *	reset has the guest fault again at every page that it writes
 *
 * When it returns, each page in @batch is protected again in every TLB: the guest's next
 * write to it makes a new entry.  Only now may the page be read and taken as clean.
 *
 * Context: kernel thread without an mm, one at a time, may sleep: for slots_lock, which the
 * VM's process holds for as long as it likes, but not beyond its end.
 * Return: 0 or -ESRCH, the VM's process is gone.
 */
int kvmsnap_vm_harvest(struct kvmsnap_vm *vm, struct kvmsnap_batch *batch, bool lazy)
{
	struct file *file = NULL;
	struct kvm *kvm;
	long reset = 0;

	batch->nr = 0;
	batch->waiting = false;
	batch->changed = false;
	batch->broken = false;
	if (!mmget_not_zero(vm->mm))
		return -ESRCH;
	/* With the mm's users held, release has not run and does not. */
	spin_lock(&vm->lock);
	if (vm->file)
		file = get_file(vm->file);
	spin_unlock(&vm->lock);
	if (!file) {
		mmput_async(vm->mm);
		return -ESRCH;
	}
	kvm = file->private_data;

	if (!batch->rings_left && (!lazy || kvmsnap_rings_press(kvm, batch)))
		batch->rings_left = atomic_read(&kvm->online_vcpus);
	for (; batch->rings_left; batch->rings_left--) {
		struct kvm_vcpu *vcpu = kvm_get_vcpu(kvm, batch->rings_left - 1);

		if (!kvmsnap_ring_drain(&vcpu->dirty_ring, batch))
			break;
	}

	if (batch->nr) {
		/* KVM wants the VM's mm, and no signal: one would cut it short. */
		kthread_use_mm(vm->mm);
		reset = file->f_op->unlocked_ioctl(file, KVM_RESET_DIRTY_RINGS, 0);
		kthread_unuse_mm(vm->mm);
	}
	mutex_lock(&kvm->slots_lock);
	kvmsnap_batch_translate(kvm, batch);
	batch->changed = kvmsnap_slots_changed(kvm, batch);
	batch->reset_sum += batch->nr;
	if (reset != batch->nr || batch->reset_sum != kvmsnap_reset_sum(kvm))
		batch->broken = true;
	mutex_unlock(&kvm->slots_lock);

	/* The last, if vm->file was dropped meanwhile: KVM unmaps what it has mapped there. */
	kthread_use_mm(vm->mm);
	__fput_sync(file);
	kthread_unuse_mm(vm->mm);
	mmput_async(vm->mm);
	return 0;
}

static void kvmsnap_find_event(struct tracepoint *event, void *unused)
{
	if (!strcmp(event->name, "kvm_dirty_ring_push"))
		kvmsnap_push_event = event;
	else if (!strcmp(event->name, "kvm_dirty_ring_reset"))
		kvmsnap_reset_event = event;
}

#ifdef CONFIG_MODULES
static int kvmsnap_find_module_events(struct notifier_block *block, unsigned long action,
				      void *data)
{
	struct module *module = ((struct tp_module *)data)->mod;
	unsigned int i;

	if (action != MODULE_STATE_COMING || strcmp(module->name, "kvm"))
		return NOTIFY_OK;
	for (i = 0; i < module->num_tracepoints; i++)
		kvmsnap_find_event(tracepoint_ptr_deref(&module->tracepoints_ptrs[i]), NULL);
	return NOTIFY_OK;
}

static struct notifier_block kvmsnap_module_events = {
	.notifier_call = kvmsnap_find_module_events,
};
#endif

/* Find KVM's events, in the kernel or in its module, which is loaded since we use it. */
int __init kvmsnap_kvm_module_init(void)
{
	for_each_kernel_tracepoint(kvmsnap_find_event, NULL);
#ifdef CONFIG_MODULES
	if (!register_tracepoint_module_notifier(&kvmsnap_module_events))
		unregister_tracepoint_module_notifier(&kvmsnap_module_events);
#endif
	return rhltable_init(&kvmsnap_observers, &kvmsnap_observers_params);
}

void kvmsnap_kvm_module_exit(void)
{
	/* Probes may still be about to return: what they looked at they did under RCU. */
	tracepoint_synchronize_unregister();
	rhltable_destroy(&kvmsnap_observers);
}
