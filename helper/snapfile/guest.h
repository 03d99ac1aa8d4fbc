/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a generation tells of an x86 VM besides its RAM blocks: where these are in guest-physical
 * memory, and its vCPUs' registers.  Both are read from device state whose beginning has been the same in
 * all of QEMU's versions since 2.0: cmos_data of mc146818rtc (hw/rtc/mc146818rtc.c), where the
 * firmware finds how much RAM there is below and above 4 GiB (hw/i386/x86-common.c and pc.c), and the
 * registers of cpu (target/i386/machine.c).  Memory that was plugged is not there: where it was plugged
 * is not in the file.
 */
#ifndef GUEST_H
#define GUEST_H

#include "chain.h"

/* In the order that the instruction encoding has: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8... */
enum { GUEST_RAX, GUEST_RCX, GUEST_RDX, GUEST_RBX, GUEST_RSP, GUEST_RBP, GUEST_RSI, GUEST_RDI };
enum {
	GUEST_ES, GUEST_CS, GUEST_SS, GUEST_DS, GUEST_FS, GUEST_GS, GUEST_LDT, GUEST_TR, GUEST_GDT, GUEST_IDT,
	GUEST_SEGMENTS
};

struct guest_segment {
	uint32_t selector, limit, flags;
	uint64_t base;
};

struct guest_cpu {
	uint64_t regs[16], rip, rflags, cr0, cr2, cr3, cr4;
	struct guest_segment segment[GUEST_SEGMENTS];
};

/* Guest-physical memory that is RAM. */
struct guest_range {
	const char *block;		/* the generation's */
	uint64_t offset;		/* in the block */
	uint64_t phys, length;
};

#define GUEST_MAX_RANGES 64

struct guest {
	struct guest_range range[GUEST_MAX_RANGES];	/* ascending, without an overlap */
	size_t nr_ranges;
	struct guest_cpu *cpu;
	size_t nr_cpus;
};

/* A run of the kernel's half of virtual memory that is mapped to a run of RAM. */
struct guest_mapping {
	uint64_t virt, phys, length;
};

/*
 * Read it from @generation in the file @fd.  @ram: names of the blocks that the main memory consists of,
 * in order, separated by commas; NULL when it is one, which is then found by its size.
 */
int guest_read(struct guest *guest, const struct generation *generation, int fd, const char *ram,
	       struct error *err);
void guest_free(struct guest *guest);

/* The one that has a guest-physical address, or NULL. */
const struct guest_range *guest_range_of(const struct guest *guest, uint64_t phys);

/*
 * Walk the page tables of a vCPU that is in its kernel, or of the first.  *mappings is to be freed; of
 * more than @max there are the longest.  Returns their number, or a negative errno.  Tables that the guest has
 * spoilt make fewer or odd ones, no more.
 */
int64_t guest_mappings(const struct guest *guest, const struct generation *generation, int fd, size_t max,
		       struct guest_mapping **mappings, struct error *err);

#endif
