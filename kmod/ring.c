// SPDX-License-Identifier: GPL-2.0
/*
 * The dirty ring in owner mode: a harvester empties the VM's rings into the dirty set, in
 * the background and when the VMM asks.
 *
 * Drain, reset, mark, in this order.  From its push until the reset is over,
 * TLB flush included, an entry's page can be written again without another entry; if it
 * were in the dirty set by then, a worker could take and read it before such a write.
 *
 * The harvester is a kernel thread, not the caller of HARVEST: a signal would cut KVM's reset
 * short.  It is one a session, since it may have to wait for its VM's process, for which
 * others must not.  It holds a reference on the session and on the module until it has seen
 * that the session is over.
 *
 * A VM has one owner: what another harvester takes is lost to us, the last round of a
 * session that was closed included.
 */
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "dirty.h"
#include "observer.h"
#include "pages.h"
#include "ring.h"
#include "session.h"
#include "trace.h"

/* What is drained at a time: a ring of the largest size, or several small ones. */
#define KVMSNAP_BATCH_ENTRIES	65536

/* How long the harvester rests where it found nothing to do. */
#define KVMSNAP_HARVEST_IDLE_MS	100U

static unsigned int harvest_ms = 4;
module_param(harvest_ms, uint, 0644);
MODULE_PARM_DESC(harvest_ms, "Milliseconds between background looks at busy dirty rings (1 to 1000, default 4)");

/* The sessions that harvest, until their harvester is through. */
static LIST_HEAD(kvmsnap_owners);
static DEFINE_SPINLOCK(kvmsnap_owners_lock);
static DECLARE_WAIT_QUEUE_HEAD(kvmsnap_owners_wait);

/* Part of a round over all rings: one batch.  Returns 0 or -ESRCH. */
static int kvmsnap_ring_batch(struct kvmsnap_session *session, bool lazy)
{
	struct kvmsnap_ring *ring = &session->ring;
	struct kvmsnap_batch *batch = &ring->batch;
	u64 start = 0, end = 0;
	u32 i;
	int err;

	err = kvmsnap_vm_harvest(session->vm, batch, lazy);
	if (err)
		return err;
	/* Runs of pages, and of the same page, are marked at once. */
	for (i = 0; i < batch->nr; i++) {
		u64 hva = batch->entries[i].hva;

		if (!(i % 1024))
			cond_resched();
		if (hva == KVMSNAP_NO_HVA || (hva >= start && hva < end))
			continue;
		if (hva != end) {
			kvmsnap_dirty_mark_hva(session, start, end);
			start = hva;
		}
		end = hva + PAGE_SIZE;
	}
	kvmsnap_dirty_mark_hva(session, start, end);
	if (batch->changed) {
		atomic64_inc(&ring->all_dirty);
		kvmsnap_dirty_mark_all(session);
	}
	if (batch->broken)
		WRITE_ONCE(ring->broken, true);
	atomic64_add(batch->nr, &ring->harvested);
	if (batch->nr || batch->changed || batch->broken)
		trace_kvmsnap_harvest(session->id, batch->nr, batch->changed, batch->broken,
				      kvmsnap_ring_dirty(ring));
	return 0;
}

/*
 * A round: each ring is emptied of what was in it at the start; but for one that nobody asked for,
 * while there is room in all.
 */
static int kvmsnap_ring_round(struct kvmsnap_session *session)
{
	struct kvmsnap_ring *ring = &session->ring;
	bool lazy;
	u64 nr;
	int err;

	spin_lock(&session->state_lock);
	nr = ++ring->begun;
	lazy = ring->asked < nr;
	spin_unlock(&session->state_lock);

	do {
		err = kvmsnap_ring_batch(session, lazy);
	} while (!err && ring->batch.rings_left);

	spin_lock(&session->state_lock);
	ring->done = nr;
	if (err)
		ring->over = true;
	spin_unlock(&session->state_lock);
	wake_up_all(&ring->wait);
	return err;
}

static void kvmsnap_ring_disown(struct kvmsnap_ring *ring)
{
	spin_lock(&kvmsnap_owners_lock);
	list_del_init(&ring->owner);
	spin_unlock(&kvmsnap_owners_lock);
	wake_up_all(&kvmsnap_owners_wait);
}

static int kvmsnap_ring_thread(void *data)
{
	struct kvmsnap_session *session = data;
	struct kvmsnap_ring *ring = &session->ring;
	unsigned int rest = 0;

	for (;;) {
		wait_event_idle_timeout(ring->kick, READ_ONCE(ring->over) ||
					READ_ONCE(ring->asked) > READ_ONCE(ring->begun),
					msecs_to_jiffies(rest));
		if (READ_ONCE(ring->over) || kvmsnap_ring_round(session))
			break;
		/* Threads that ask again and again keep it from waiting. */
		cond_resched();
		rest = clamp(READ_ONCE(harvest_ms), 1U, 1000U);
		if (!ring->batch.nr && !ring->batch.waiting)
			rest = max(rest, KVMSNAP_HARVEST_IDLE_MS);
	}
	kvmsnap_ring_disown(ring);
	kvmsnap_session_put(session);
	module_put_and_kthread_exit(0);
}

/**
 * kvmsnap_ring_harvest() - wait for a harvest that begins after this call
 * @session: in owner mode
 *
 * Context: process context, sleeps, killable.
 * Return: 0, -ESRCH the VM's process is gone, -ESTALE tracking is broken, -EINTR.
 */
int kvmsnap_ring_harvest(struct kvmsnap_session *session)
{
	struct kvmsnap_ring *ring = &session->ring;
	u64 wanted;

	spin_lock(&session->state_lock);
	wanted = ring->begun + 1;
	ring->asked = wanted;
	spin_unlock(&session->state_lock);
	wake_up_all(&ring->kick);
	if (wait_event_killable(ring->wait,
				READ_ONCE(ring->done) >= wanted || READ_ONCE(ring->over)))
		return -EINTR;
	if (READ_ONCE(ring->over))
		return -ESRCH;
	return READ_ONCE(ring->broken) ? -ESTALE : 0;
}

/* A writable memslot that concerns the save must log.  Called by kvm.c. */
static int kvmsnap_ring_slot(void *data, u64 start, u64 end, bool logs)
{
	struct kvmsnap_session *session = data;
	unsigned long at = start;

	return !logs && mt_find(&session->by_hva, &at, end - 1) ? -ENODATA : 0;
}

/* Do all writable memslots that concern the save log?  0, -ENODATA, -EOPNOTSUPP, -ESRCH, -EINTR. */
int kvmsnap_ring_check_logging(struct kvmsnap_session *session)
{
	return kvmsnap_vm_each_slot(session->vm, NULL, kvmsnap_ring_slot, session);
}

/*
 * Does the tracking see all that a pass of @kind needs?  session->lock held.  An errno that QUEUE
 * documents.
 */
int kvmsnap_ring_check(struct kvmsnap_session *session, enum kvmsnap_pass_kind kind)
{
	int err;

	lockdep_assert_held(&session->lock);
	switch (session->ring.mode) {
	case KVMSNAP_TRACK_OWNER:
		if (READ_ONCE(session->ring.broken))
			return -ESTALE;
		break;
	case KVMSNAP_TRACK_OBSERVER:
		/* Logging is not the caller's to switch; without, all is still to be had. */
		if (kind != KVMSNAP_PASS_DIRTY)
			return 0;
		err = kvmsnap_observer_check_slots(session);
		if (err)
			return err;
		break;
	default:
		return 0;
	}
	return kvmsnap_ring_check_logging(session);
}

/* Become the owner if there is none: 0, -EBUSY, or -EAGAIN when the last is about to leave. */
static int kvmsnap_ring_try_own(struct kvmsnap_session *session)
{
	struct kvmsnap_session *other;
	int err = 0;

	spin_lock(&kvmsnap_owners_lock);
	list_for_each_entry(other, &kvmsnap_owners, ring.owner)
		if (kvmsnap_vm_same(other->vm, session->vm))
			err = READ_ONCE(other->ring.over) ? -EAGAIN : -EBUSY;
	if (!err)
		list_add(&session->ring.owner, &kvmsnap_owners);
	spin_unlock(&kvmsnap_owners_lock);
	return err;
}

/* What owner mode needs beyond the dirty set, up to the thread, which is not woken yet. */
static int kvmsnap_ring_start_owner(struct kvmsnap_session *session, struct task_struct **thread)
{
	struct kvmsnap_ring *ring = &session->ring;
	struct kvmsnap_batch *batch = &ring->batch;
	int err, own;

	if (!batch->entries) {
		batch->entries = __vmalloc(array_size(KVMSNAP_BATCH_ENTRIES,
						      sizeof(*batch->entries)),
					   GFP_KERNEL_ACCOUNT);
		if (!batch->entries)
			return -ENOMEM;
		batch->max = KVMSNAP_BATCH_ENTRIES;
	}
	err = wait_event_killable(kvmsnap_owners_wait,
				  (own = kvmsnap_ring_try_own(session)) != -EAGAIN);
	if (err)
		return -EINTR;
	if (own)
		return own;
	err = kvmsnap_vm_each_slot(session->vm, batch, kvmsnap_ring_slot, session);
	if (err)
		goto err_disown;
	*thread = kthread_create(kvmsnap_ring_thread, session, "kvmsnap-%u", session->id);
	err = PTR_ERR_OR_ZERO(*thread);
	if (err)
		goto err_disown;
	return 0;

err_disown:
	kvmsnap_ring_disown(ring);
	return err;
}

/**
 * kvmsnap_ring_start() - begin to track
 * @session: not tracking yet; no pass is running
 * @mode: of enum kvmsnap_track_mode
 * @hash: keep hashes
 *
 * Context: session->lock held, may sleep, killable: for the harvester of a session that was
 * closed.
 * Return: 0, or an errno that TRACK documents; nothing has begun then.
 */
int kvmsnap_ring_start(struct kvmsnap_session *session, u32 mode, bool hash)
{
	struct kvmsnap_ring *ring = &session->ring;
	struct task_struct *thread = NULL;
	u32 i;
	int err;

	lockdep_assert_held(&session->lock);
	for (i = 0; i < session->nr_regions; i++) {
		err = kvmsnap_dirty_alloc(session->regions[i], hash);
		if (err)
			return err;
	}
	if (mode == KVMSNAP_TRACK_OWNER) {
		err = kvmsnap_ring_start_owner(session, &thread);
		if (err)
			return err;
	} else if (mode == KVMSNAP_TRACK_OBSERVER) {
		err = kvmsnap_observer_start(session);
		if (err)
			return err;
	}

	/* From here on nothing fails. */
	if (hash) {
		get_random_bytes(&ring->key, sizeof(ring->key));
		ring->zero_hash = kvmsnap_page_hash(&ring->key, ZERO_PAGE(0));
		ring->hash = true;
	}
	/* Pairs with kvmsnap_ring_tracking(): now the notifier marks. */
	smp_store_release(&ring->mode, mode);
	atomic64_inc(&ring->all_dirty);
	kvmsnap_dirty_mark_all(session);
	if (thread) {
		kref_get(&session->ref);
		__module_get(THIS_MODULE);
		wake_up_process(thread);
	}
	return 0;
}

/* The session is closed, or its VM is gone: no harvest need begin any more.  Doesn't wait. */
void kvmsnap_ring_end(struct kvmsnap_session *session)
{
	spin_lock(&session->state_lock);
	session->ring.over = true;
	spin_unlock(&session->state_lock);
	wake_up_all(&session->ring.kick);
	wake_up_all(&session->ring.wait);
}

void kvmsnap_ring_init(struct kvmsnap_ring *ring)
{
	INIT_LIST_HEAD(&ring->owner);
	init_waitqueue_head(&ring->kick);
	init_waitqueue_head(&ring->wait);
}

void kvmsnap_ring_destroy(struct kvmsnap_ring *ring)
{
	vfree(ring->batch.entries);
	memzero_explicit(&ring->key, sizeof(ring->key));
}

/* Ring entries taken, or, by an observer, seen, since TRACK.  Any context. */
u64 kvmsnap_ring_harvested(const struct kvmsnap_session *session)
{
	const struct kvmsnap_ring *ring = &session->ring;

	if (kvmsnap_ring_tracking(ring) && ring->mode == KVMSNAP_TRACK_OBSERVER)
		return kvmsnap_observer_told(session);
	return atomic64_read(&ring->harvested);
}

u64 kvmsnap_ring_memory(const struct kvmsnap_ring *ring)
{
	return ring->batch.max * sizeof(*ring->batch.entries);
}
