// SPDX-License-Identifier: GPL-2.0
/*
 * A VMM that harvests its rings itself, as stock QEMU does: collect, reset, look after nothing.
 * For the module's observer mode.
 */
#include "reaper.h"

#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "machine.h"

int reaper_map(struct machine *m, struct vcpu *vcpu)
{
	void *ring = mmap(NULL, m->config.ring * sizeof(struct kvm_dirty_gfn), PROT_READ | PROT_WRITE,
			  MAP_SHARED, vcpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * GUEST_PAGE);

	if (ring == MAP_FAILED) {
		perror("vmm: mmap of a dirty ring");
		return -1;
	}
	vcpu->ring = ring;
	return 0;
}

void reaper_unmap(struct machine *m, struct vcpu *vcpu)
{
	if (vcpu->ring)
		munmap(vcpu->ring, m->config.ring * sizeof(struct kvm_dirty_gfn));
	vcpu->ring = NULL;
}

int reaper_note(struct machine *m)
{
	m->noted = calloc(m->config.ram / GUEST_PAGE / 64 + 1, 8);
	return m->noted ? 0 : -1;
}

/* Slots are those of machine.c; both halves are of the same size. */
static void note(struct machine *m, const struct kvm_dirty_gfn *entry)
{
	bool high = ((entry->slot & 0xffff) != 0) != m->swapped;
	uint64_t page = entry->offset + (high ? m->config.ram / 2 / GUEST_PAGE : 0);

	if (page < m->config.ram / GUEST_PAGE)
		m->noted[page / 64] |= 1ULL << page % 64;
}

void reaper_reap(struct machine *m)
{
	int found = 0, reset;
	sigset_t held, before;
	unsigned int i;

	pthread_mutex_lock(&m->reap);
	for (i = 0; i < m->config.vcpus; i++) {
		struct vcpu *vcpu = &m->vcpus[i];

		for (;; vcpu->next++, found++) {
			struct kvm_dirty_gfn *entry = &vcpu->ring[vcpu->next % m->config.ring];

			if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
				break;
			if (m->noted)
				note(m, entry);
			__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		}
	}
	/*
	 * A pending signal, such as a vCPU is kicked with, cuts it short since Linux 6.16, and leaves
	 * pages that the guest can write without another entry.  So there is to be none.
	 */
	if (m->signals)
		sigemptyset(&held);
	else
		sigfillset(&held);
	pthread_sigmask(SIG_BLOCK, &held, &before);
	reset = ioctl(m->vm, KVM_RESET_DIRTY_RINGS, 0);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	m->cut_short += reset < found;
	m->left += found - reset;
	/* Nobody else may have: QEMU asserts the same. */
	if (m->left < 0 || (m->left && !m->signals)) {
		fprintf(stderr, "vmm: %d entries collected, %d reset\n", found, reset);
		abort();
	}
	m->reaped += (unsigned long)found;
	pthread_mutex_unlock(&m->reap);
}
