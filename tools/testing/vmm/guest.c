// SPDX-License-Identifier: GPL-2.0
/*
 * Runs in the guest, on each vCPU, in 64-bit mode: dirties memory as it is told, for ever.
 * The section is copied into guest memory: nothing here may refer to anything outside.
 */
#include "guest.h"

static inline __attribute__((always_inline)) void fill(volatile uint64_t *page, uint64_t value)
{
	unsigned int i;

	for (i = 0; i < GUEST_PAGE / 8; i++)
		page[i] = value;
}

static inline __attribute__((always_inline)) uint64_t rdtsc(void)
{
	uint32_t low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

__attribute__((section("guest"), noreturn)) void guest_main(struct guest_args *args)
{
	volatile uint64_t *page, *work = &args->work;
	uint64_t x = args->seed | 1, n, old, next = rdtsc();

	for (n = 0;; n++) {
		uint64_t nr = xorshift(&x) % args->pages;

		if (args->pattern == PATTERN_SEQUENTIAL || args->pattern == PATTERN_FILL)
			nr = n % args->pages;
		if (args->pattern == PATTERN_SAME)
			nr = 0;
		page = (volatile uint64_t *)((args->first + nr) * GUEST_PAGE);
		if (args->pattern == PATTERN_FILL) {
			fill(page, x);
		} else if (args->pattern == PATTERN_ZERO) {
			fill(page, page[1] ? 0 : x);
		} else if (args->pattern == PATTERN_ABA) {
			old = page[7];
			fill(page, ~x);
			fill(page, old);
			if (!old)
				fill(page, x);
		} else {
			page[x % 512] = x;
			page[(x >> 9) % 512] = n;
		}
		*work = n + 1;
		for (next += args->cycles; args->cycles && rdtsc() < next;)
			;
		/* What it was kept from doing it does not make up for. */
		if (args->cycles && rdtsc() - next > args->cycles)
			next = rdtsc();
	}
}
