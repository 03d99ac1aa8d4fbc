/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_KVM_H
#define KVMSNAP_KVM_H

#include <linux/types.h>

struct kvmsnap_vm;
struct mm_struct;

/**
 * struct kvmsnap_vm_ops - what the owner of a VM is told
 * @gone: the VM's address space goes away; once, before unbind or from within; may not
 *	sleep for long
 * @changed: host addresses [start, end) hold other pages than before; any context, also
 *	atomic
 * @pushed: @vcpu has pushed entry @index of its ring, about the page at @hva; atomic context,
 *	that of the vCPU.  Between kvmsnap_vm_observe() and kvmsnap_vm_ignore()
 * @settled: resets of @vcpu's ring that came up to the entry @index are over; likewise
 * @reset: of @vcpu's ring the entries before @index were reset, and pages not yet flushed;
 *	atomic context, one at a time.  Likewise
 */
struct kvmsnap_vm_ops {
	void (*gone)(void *data);
	void (*changed)(void *data, u64 start, u64 end);
	void (*pushed)(void *data, u32 vcpu, u32 index, u64 hva);
	void (*settled)(void *data, u32 vcpu, u32 index);
	void (*reset)(void *data, u32 vcpu, u32 index);
};

/* An entry of a dirty ring; @hva is an offset in pages until it is translated. */
struct kvmsnap_ring_entry {
	u64 hva;
	u32 slot;
};

/* Of an entry that no memslot has. */
#define KVMSNAP_NO_HVA	(~0ULL)

#define KVMSNAP_MAX_AS	2

/**
 * struct kvmsnap_batch - what a harvest found
 * @entries: of which @nr are filled
 * @max: entries there is room for
 * @nr: filled
 * @rings_left: of the round: rings yet to be emptied; from the last vCPU to the first
 * @waiting: entries have come since the last look, though none was taken
 * @changed: memslots are not what they were: the entries don't tell all
 * @broken: somebody else has harvested: writes are missed, and may go on to be
 * @generation: of the memslots at the last harvest, by address space
 * @reset_sum: of the rings' reset indexes after it, modulo 2^32
 * @pushed_sum: of the indexes behind what was pushed, at the last look
 */
struct kvmsnap_batch {
	struct kvmsnap_ring_entry *entries;
	u32 max;
	u32 nr;
	u32 rings_left;
	bool waiting;
	bool changed;
	bool broken;
	u64 generation[KVMSNAP_MAX_AS];
	u32 reset_sum;
	u32 pushed_sum;
};

struct kvmsnap_vm *kvmsnap_vm_bind(int fd, const struct kvmsnap_vm_ops *ops, void *data);
void kvmsnap_vm_drop(struct kvmsnap_vm *vm);
void kvmsnap_vm_unbind(struct kvmsnap_vm *vm);

struct mm_struct *kvmsnap_vm_mm(struct kvmsnap_vm *vm);
pid_t kvmsnap_vm_pid(struct kvmsnap_vm *vm);
bool kvmsnap_vm_is_ours(struct kvmsnap_vm *vm);
bool kvmsnap_vm_same(const struct kvmsnap_vm *a, const struct kvmsnap_vm *b);
int kvmsnap_vm_has_hva(struct kvmsnap_vm *vm, u64 hva);

int kvmsnap_vm_each_slot(struct kvmsnap_vm *vm, struct kvmsnap_batch *batch,
			 int (*slot)(void *data, u64 start, u64 end, bool logs), void *data);
int kvmsnap_vm_slots_changed(struct kvmsnap_vm *vm, struct kvmsnap_batch *batch);
int kvmsnap_vm_rings(struct kvmsnap_vm *vm, u32 *vcpus, u32 *entries);
int kvmsnap_vm_each_ring(struct kvmsnap_vm *vm,
			 int (*ring)(void *data, u32 vcpu, u32 pushed, u32 reset), void *data);
int kvmsnap_vm_observe(struct kvmsnap_vm *vm);
void kvmsnap_vm_ignore(struct kvmsnap_vm *vm);
int kvmsnap_vm_harvest(struct kvmsnap_vm *vm, struct kvmsnap_batch *batch, bool lazy);

int kvmsnap_kvm_module_init(void);
void kvmsnap_kvm_module_exit(void);

#endif
