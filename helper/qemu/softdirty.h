/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a process, and the kernel on its behalf, has written to its memory: the soft-dirty bits
 * of its page tables (Documentation/admin-guide/mm/soft-dirty.rst).  For the writes to guest
 * memory that no dirty ring sees.
 */
#ifndef SOFTDIRTY_H
#define SOFTDIRTY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"

/* Does this kernel keep them?  Tried out on memory of our own. */
bool softdirty_works(void);

/*
 * Are they to be trusted for this range?  Only private anonymous memory: that of files and
 * huge page file systems can be written, or change, without.
 */
bool softdirty_covers(pid_t pid, uint64_t start, uint64_t bytes);

/*
 * Be the one who clears them, until the descriptor is closed: who else does so would take what they
 * have told from the other.  Between those who ask here.  A descriptor, -EBUSY, or a negative errno.
 */
int softdirty_own(pid_t pid);

/*
 * Clear them, of the whole process.  What is pinned for I/O meanwhile is missed: nothing may be
 * in flight.  Takes its memory's lock, and unmaps the memory of its VMs once.
 */
int softdirty_clear(pid_t pid, struct error *err);

/* A run of pages.  Not 0 ends the scan. */
typedef int softdirty_found_fn(void *data, uint64_t start, uint64_t bytes);

/*
 * Call @found for each run of pages in the range that was written since, or may have been.  0, or
 * what @found returned, or a negative errno.
 */
int softdirty_scan(pid_t pid, uint64_t start, uint64_t bytes, softdirty_found_fn *found, void *data,
		   struct error *err);

#endif
