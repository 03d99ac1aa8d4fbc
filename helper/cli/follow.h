/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Following the writes to a running QEMU VM's RAM, so that at the stop not all of it has to be
 * compared.
 *
 * vCPUs' writes, and KVM's for them, are in the dirty ring, which the module observes.  QEMU's
 * own and those of the kernel on its behalf (device emulation, disk reads, vhost) are in no ring:
 * on RAM where soft-dirty bits are to be trusted these tell, and all other RAM is compared.
 * What the host takes away or moves the module's notifier tells.  And whatever was told of,
 * rightly or not, is compared by hash before it is written.
 */
#ifndef FOLLOW_H
#define FOLLOW_H

#include "guardian.h"
#include "ram.h"

struct follow {
	struct ram *ram;
	struct guardian *guardian;
	bool ring;		/* the module observes the ring; else all is compared, see @why */
	const char *why;
	const char *hidden;	/* who keeps soft-dirty bits from being trusted; NULL for nobody */
	bool logging;		/* was switched on by us */
	int own;		/* says to others that we clear soft-dirty bits; negative for not */
	struct follow_block {
		bool soft;		/* its soft-dirty bits are good */
		uint8_t *suspect;	/* a bit a page: not for these; NULL for none */
	} *blocks;		/* as in the file; those beyond @nr are new, and all dirty */
	size_t nr;
	bool cleared;		/* soft-dirty bits were, once */
	double clear_seconds;	/* that took, the last time */
};

/*
 * Begin, with the blocks added and before the first pass.  Without a ring, or where somebody else
 * uses QEMU's limit of the dirty rate, there is only comparing: no error.
 */
int follow_start(struct follow *follow, struct error *err);

/* QEMU does not log any more, by somebody else's doing: there is only comparing from now on. */
void follow_lost(struct follow *follow);

/*
 * Has somebody been plugged in whose writes soft-dirty bits don't tell?  They are not trusted any more
 * then, and what was collected before may lack something.
 */
bool follow_look(struct follow *follow);

/* Are there bits to be cleared by follow_clear()? */
bool follow_has_bits(const struct follow *follow);

/*
 * With the VM stopped, after a first pass and between two: what was written goes into the dirty
 * set, and soft-dirty bits start anew.  After the first time the next pass is to compare
 * everything: what was written before is not known.
 */
int follow_clear(struct follow *follow, struct error *err);

/* How many pages would the last pass have to look at, if the VM was stopped now? */
int64_t follow_expect(struct follow *follow, struct error *err);

/*
 * Before the last pass, with the VM stopped, or between two: put all that may have been written since
 * soft-dirty bits were cleared into the dirty set.  1, or 0 when that is not known and all is to be
 * compared.  @on, of a stopped VM: the bits start anew, if they had been, for another generation.
 */
int follow_collect(struct follow *follow, bool on, struct error *err);

/*
 * After the last pass, with the VM stopped: bits that had not been cleared start for another generation.  Not
 * before that pass, when all pages were still in the dirty set, and so suspect.
 */
int follow_begin(struct follow *follow, struct error *err);

/*
 * The VM may run again, or was never stopped: have QEMU log no more, or the guardian have it so, to
 * which the connection is left then.  Up to a second.
 */
void follow_end(struct follow *follow);

#endif
