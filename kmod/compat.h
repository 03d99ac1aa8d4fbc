/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernels we build for (6.1 to 7.3).  Nothing outside of this
 * file looks at versions.
 */
#ifndef KVMSNAP_COMPAT_H
#define KVMSNAP_COMPAT_H

#include <linux/eventfd.h>
#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/user_namespace.h>
#include <linux/version.h>

/* guest_memfd has a file system of its own since 6.18; where it has none, nobody can map one. */
#ifndef GUEST_MEMFD_MAGIC
#define GUEST_MEMFD_MAGIC	0x474d454d
#endif

/* The vmas argument went away in 6.5. */
static inline long kvmsnap_gup_remote(struct mm_struct *mm, unsigned long start,
				      unsigned long nr_pages, unsigned int flags,
				      struct page **pages)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
	return get_user_pages_remote(mm, start, nr_pages, flags, pages, NULL, NULL);
#else
	return get_user_pages_remote(mm, start, nr_pages, flags, pages, NULL);
#endif
}

/* The count went away in 6.8. */
static inline void kvmsnap_eventfd_signal(struct eventfd_ctx *ctx)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	eventfd_signal(ctx, 1);
#else
	eventfd_signal(ctx);
#endif
}

/* Wants a file's pages left alone while they are written?  Before 6.7 only a super block said. */
static inline bool kvmsnap_mapping_stable(struct address_space *mapping)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
	return mapping->host->i_sb->s_iflags & SB_I_STABLE_WRITES;
#else
	return mapping_stable_writes(mapping);
#endif
}

/* Address spaces of a VM were a constant before 6.8. */
static inline int kvmsnap_kvm_nr_as(struct kvm *kvm)
{
#ifdef KVM_ADDRESS_SPACE_NUM
	return KVM_ADDRESS_SPACE_NUM;
#else
	return kvm_arch_nr_memslot_as_ids(kvm);
#endif
}

/* Has a VM memory that the host can't read?  None had before 6.8. */
static inline bool kvmsnap_kvm_has_private_mem(struct kvm *kvm)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	return false;
#else
	return kvm_arch_has_private_mem(kvm);
#endif
}

/* sparse has no __has_include. */
#ifdef __has_include
#if __has_include(<linux/sched/exec_state.h>)
#define KVMSNAP_EXEC_STATE
#endif
#endif

/*
 * The user namespace that owns an mm moved to the task, out of a module's reach.  There
 * only the initial namespace's capability counts, which is stricter.
 */
static inline struct user_namespace *kvmsnap_mm_user_ns(struct mm_struct *mm)
{
#ifdef KVMSNAP_EXEC_STATE
	return &init_user_ns;
#else
	return mm->user_ns;
#endif
}

#endif
