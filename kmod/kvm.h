/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_KVM_H
#define KVMSNAP_KVM_H

#include <linux/types.h>

struct kvmsnap_vm;
struct mm_struct;

struct kvmsnap_vm *kvmsnap_vm_bind(int fd, void (*gone)(void *data), void *data);
void kvmsnap_vm_unbind(struct kvmsnap_vm *vm);

struct mm_struct *kvmsnap_vm_mm(struct kvmsnap_vm *vm);
pid_t kvmsnap_vm_pid(struct kvmsnap_vm *vm);
bool kvmsnap_vm_is_ours(struct kvmsnap_vm *vm);
int kvmsnap_vm_has_hva(struct kvmsnap_vm *vm, u64 hva);

#endif
