/* SPDX-License-Identifier: GPL-2.0 */
/* What the VMM and the code in its guest agree on. */
#ifndef GUEST_H
#define GUEST_H

#include <stdint.h>

#define GUEST_PAGE	4096UL

/* Guest physical addresses; RAM is mapped one to one. */
#define GUEST_TABLES	0x1000UL	/* page tables, up to 0x7000 */
#define GUEST_CODE	0x10000UL
#define GUEST_ARGS	0x20000UL	/* a page a vCPU: struct guest_args */
/* Of vCPU @nr: its SMM code at + 0x8000, and what it saves on entry in the 512 bytes at + 0xfe00. */
#define GUEST_SMBASE(nr)	(0x30000UL + (nr) * 0x200UL)
#define GUEST_SMM_COUNTER	0x3c000UL
#define GUEST_STACKS	0x50000UL	/* a page a vCPU */
#define GUEST_MAX_VCPUS	16
#define GUEST_HEAP	0x100000UL	/* from here on it writes */

enum guest_pattern {
	PATTERN_SEQUENTIAL,	/* a word in each page, one page after the other */
	PATTERN_RANDOM,		/* some words of pages here and there */
	PATTERN_SAME,		/* one page, again and again */
	PATTERN_ZERO,		/* pages here and there become all zeros, or cease to be */
	PATTERN_ABA,		/* pages here and there get other bytes, and their own again */
	PATTERN_FILL,		/* all of each page, one page after the other */
	NR_PATTERNS
};

struct guest_args {
	uint64_t pattern;
	uint64_t first, pages;	/* of the range it writes to */
	uint64_t seed;
	uint64_t cycles;	/* of the time stamp counter, from a page to the next; 0: at once */
	uint64_t work;		/* rounds done, by the guest */
};

/* Inlined: the guest's code refers to nothing outside of its section. */
static inline __attribute__((always_inline)) uint64_t xorshift(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

void guest_main(struct guest_args *args);

/* The code, between the bounds that the linker knows. */
extern const char __start_guest[], __stop_guest[];

#endif
