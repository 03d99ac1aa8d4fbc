/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A virtual machine without firmware or devices to speak of: vCPUs that dirty memory as
 * they are told, and one device of the VMM's that writes into guest memory (DMA) and takes
 * pages away from the guest (a balloon).
 */
#ifndef MACHINE_H
#define MACHINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest.h"

enum ram_kind { RAM_HUGE, RAM_SMALL, RAM_MEMFD, RAM_HUGETLB, NR_RAM_KINDS };

struct machine_config {
	size_t ram;		/* bytes, a multiple of 4 MiB */
	enum ram_kind kind;
	unsigned int vcpus;	/* 1 to GUEST_MAX_VCPUS */
	unsigned int ring;	/* entries of each dirty ring, a power of two */
	enum guest_pattern pattern;
	size_t dirtied;		/* bytes of RAM that the guest writes to, from GUEST_HEAP on */
	unsigned long rate;	/* pages a second that each vCPU writes to; 0: as many as it can */
	size_t filled;		/* bytes of RAM that have content at the start */
	bool device, balloon, smm;
	unsigned int reap_ms;	/* reap the rings that often; 0: they are the module's.  See reaper.c */
	uint64_t seed;
};

struct vcpu {
	struct machine *m;
	unsigned int nr;
	int fd;
	struct kvm_run *run;
	pthread_t thread;

	/* For reaper.c. */
	struct kvm_dirty_gfn *ring;
	uint32_t next;
};

struct machine {
	struct machine_config config;
	int kvm, vm, memfd;
	char *ram;
	struct vcpu vcpus[GUEST_MAX_VCPUS];
	pthread_t device, reaper;

	/* The live save that vCPUs and devices have to tell; -1 for none. */
	atomic_int session;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	atomic_bool pause;		/* changed under @lock */
	bool stop;			/* @lock */
	bool swapped;			/* the memslots' numbers */
	unsigned int running;		/* @lock: threads that are not parked */
	size_t run_bytes;

	pthread_mutex_t reap;
	unsigned long reaped;		/* @reap: entries */
	uint64_t *noted;		/* @reap: a bit a page; NULL to note nothing */
	atomic_bool signals;		/* let them cut resets short */
	int left;			/* @reap: entries that were collected and not reset, by that */
	unsigned long cut_short;	/* @reap: resets */

	/* What really happened, for tests. */
	atomic_ulong ring_full, device_writes, balloon_drops, smis;
};

/* Interrupts a thread; its handler does nothing. */
#define MACHINE_KICK	SIGUSR1

/* 0 or a negative errno; what could not be set up is said on stderr. */
int machine_create(struct machine *m, const struct machine_config *config);
void machine_destroy(struct machine *m);

/* Let everything run; stop everything, vCPUs out of KVM_RUN and the device between writes. */
void machine_resume(struct machine *m);
void machine_pause(struct machine *m);

/* KVM_MEM_LOG_DIRTY_PAGES on all memslots. */
int machine_logging(struct machine *m, bool on);

/* Delete both memslots and make them again, each with the other's number; paused, logging on. */
int machine_swap_slots(struct machine *m);

/*
 * How many pages of the file, page N at N * 4096, are not what the paused machine's RAM is; -1.  With @part
 * the file has several images of its RAM, one behind the other, and @part tells which has page N.
 */
long machine_differs(const struct machine *m, int fd, const uint16_t *part);

/* Rounds that the guest's programs have done, and those of its SMM handler. */
uint64_t machine_work(const struct machine *m);
uint64_t machine_smm_work(const struct machine *m);

#endif
