/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_RING_H
#define KVMSNAP_RING_H

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/siphash.h>
#include <linux/wait.h>
#include <linux/kvmsnap.h>

#include "kvm.h"

struct kvmsnap_observer;
struct kvmsnap_session;

/**
 * struct kvmsnap_ring - how a session follows the writes to its memory
 *
 * All but the bitmaps of the regions, which dirty.c looks after.
 */
struct kvmsnap_ring {
	/* Set by TRACK, and then for good; @mode last. */
	u32 mode;			/* enum kvmsnap_track_mode; 0 before: see _tracking() */
	bool hash;			/* region->hash is kept */
	siphash_key_t key;		/* of these */
	u64 zero_hash;			/* of a page of zeros */

	struct kvmsnap_observer *observer;	/* observer mode: set before @mode */

	/* The harvester; owner mode. */
	struct list_head owner;		/* kvmsnap_owners_lock; empty while there is none */
	struct kvmsnap_batch batch;	/* its own; an observer's: what memslots there were */
	u64 asked, begun, done;		/* harvests; session->state_lock */
	bool over;			/* no harvest will begin any more; likewise */
	bool broken;			/* somebody else harvested: writes were missed */
	wait_queue_head_t kick;		/* the harvester's, for @asked or @over */
	wait_queue_head_t wait;		/* for @done or @over */

	atomic64_t dirty;		/* pages in the dirty set; see kvmsnap_ring_dirty() */
	atomic64_t harvested;		/* ring entries; see kvmsnap_ring_harvested() */
	atomic64_t all_dirty;
};

/* Is there a dirty set?  What it needs is then in place. */
static inline bool kvmsnap_ring_tracking(const struct kvmsnap_ring *ring)
{
	/* What track() has set up is seen with it. */
	return smp_load_acquire(&ring->mode);
}

/* Pages in the dirty set.  The count may lag behind the bits for a moment. */
static inline u64 kvmsnap_ring_dirty(const struct kvmsnap_ring *ring)
{
	return max(atomic64_read(&ring->dirty), 0LL);
}

void kvmsnap_ring_init(struct kvmsnap_ring *ring);
int kvmsnap_ring_start(struct kvmsnap_session *session, u32 mode, bool hash);
void kvmsnap_ring_end(struct kvmsnap_session *session);
void kvmsnap_ring_destroy(struct kvmsnap_ring *ring);
int kvmsnap_ring_harvest(struct kvmsnap_session *session);
int kvmsnap_ring_check_logging(struct kvmsnap_session *session);
int kvmsnap_ring_check(struct kvmsnap_session *session, enum kvmsnap_pass_kind kind);
u64 kvmsnap_ring_harvested(const struct kvmsnap_session *session);
u64 kvmsnap_ring_memory(const struct kvmsnap_ring *ring);

#endif
