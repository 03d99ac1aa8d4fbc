/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A QEMU VM's RAM on its way to the file: the module's session, QEMU's blocks as its
 * regions, and passes over them.
 */
#ifndef RAM_H
#define RAM_H

#include <signal.h>

#include "target.h"
#include "../lib/kvmsnap.h"
#include "../qemu/qemu.h"
#include "../snapfile/snapfile.h"

struct ram_block {
	int region;		/* in the module, or a negative errno */
	uint64_t hva;		/* when it was added */
	char *copy;		/* from ram_copy_rest() to ram_finish(); NULL for none */
};

struct ram {
	struct qemu *qemu;
	struct target *target;
	struct snapfile *snap;
	const volatile sig_atomic_t *interrupted;	/* set by a signal: end the pass */
	int session, vm_fd;		/* -1 before ram_open() */
	struct ram_block *blocks;	/* in the order of the file's */
	size_t nr;			/* blocks added, as many as the file has */
	double deadline;		/* when a pass is given up, as now() tells time; 0 for never */
	uint64_t bandwidth;		/* the most that a pass writes, bytes a second; 0 for no limit */
	struct kvmsnap_stats first;	/* of the session's first pass, which is over everything */
	bool any_pass;			/* @first is set */
	struct kvmsnap_stats stats;	/* of the last pass */
	double seconds;			/* it took, or had to be waited for when it is staged */
	bool staged;			/* it has yet to be written from the stage */
	uint64_t bytes;			/* written since ram_begin(), by all passes and by ourselves */
};

/* Open @device (NULL for /dev/kvmsnap) and bind QEMU's VM. */
int ram_open(struct ram *ram, const char *device, struct error *err);

/* From now on passes write to ram->target; @flags of enum kvmsnap_target_flags. */
int ram_begin(struct ram *ram, uint32_t flags, struct error *err);
void ram_close(struct ram *ram);

/*
 * Read QEMU's list of blocks, give those that are new their place in the file, at its end, and
 * the file its size.  -ESTALE when a block that was there is gone or another.
 */
int ram_add_blocks(struct ram *ram, struct error *err);

/*
 * A pass, with progress called @what.  @kind of enum kvmsnap_pass_kind, @flags of enum
 * kvmsnap_queue_flags.  With KVMSNAP_QUEUE_STAGE it returns when memory may change.
 */
int ram_pass(struct ram *ram, uint32_t kind, uint32_t flags, const char *what, struct error *err);

/*
 * With the VM stopped: copy the blocks that the module can't reach.  Not yet to the file, which may be on a
 * frozen file system, or a busy one.
 */
int ram_copy_rest(struct ram *ram, struct error *err);

/* Wait for a staged pass, so that there may be another. */
int ram_settle(struct ram *ram, struct error *err);

/*
 * The VM may run: wait for a staged pass, write what was copied, and take the bitmaps over: of what is in the target, or of
 * what was written to it.
 */
int ram_finish(struct ram *ram, bool written, struct error *err);

#endif
