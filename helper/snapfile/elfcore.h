/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A generation as an ELF core, as QEMU's dump-guest-memory writes it: crash finds physical memory in
 * it by p_paddr and the kernel's place by the note QEMU, gdb finds virtual memory by p_vaddr and a thread for
 * each vCPU.  Segments of physical memory come first, with p_vaddr = p_paddr, then those of the
 * kernel's page tables, which share their bytes.
 */
#ifndef ELFCORE_H
#define ELFCORE_H

#include "guest.h"

/*
 * To the empty file @to, in which pages of zeros stay holes.  @progress is told the bytes of pages copied so far, and ends
 * it, with -EINTR, by not returning 0.
 */
int elfcore_write(const struct generation *generation, int fd, const struct guest *guest, int to,
		  int (*progress)(uint64_t bytes, void *data), void *data, struct error *err);

#endif
