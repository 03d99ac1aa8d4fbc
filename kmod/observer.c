// SPDX-License-Identifier: GPL-2.0
/*
 * The dirty ring in observer mode: the VMM harvests and resets, and we listen to KVM's events
 * about it.  No entry is touched.
 *
 * An entry is open from its push until the reset that covers it is over, TLB flush included:
 * until then the guest can write the page again without another push.  So a page is marked
 * dirty when its entry is closed, as the owner's harvest marks what it has reset; what is
 * open at the end is marked by HARVEST, with the VM stopped.  An entry that is marked while it
 * is open stays in the log and is marked again.
 *
 * KVM tells of a reset before it flushes.  The next reset of that VM begins after the flush,
 * since a VMM does one at a time: what a reset covers is closed when the next is told of.
 * A push may be told of after the reset of its own entry, so marking never goes beyond
 * what was told.
 *
 * Since Linux 6.16 a pending signal cuts a reset short, before it has protected the last pages
 * of the ring and without telling.  What was reset and not told of makes us blind: every push
 * looks, unless a reset is under way, and so does HARVEST.
 *
 * What is not known is taken as dirty.  Entries that were open before we listened belong to
 * memslots that logged already: all of these is marked by each HARVEST.  For the others logging
 * is switched on later, which protects all their pages.  A missed event makes us blind, and
 * every HARVEST mark everything.
 */
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "dirty.h"
#include "kvm.h"
#include "observer.h"
#include "session.h"
#include "trace.h"

/* How many entries are marked with a log locked. */
#define KVMSNAP_LOG_PIECE	1024U

/* Mark the entries [from, to) of a log.  Runs of pages, and of the same page, at once. */
static void kvmsnap_log_mark(struct kvmsnap_session *session, const struct kvmsnap_log *log,
			     u32 from, u32 to)
{
	u32 mask = session->ring.observer->size - 1;
	u64 start = 0, end = 0;

	for (; from != to; from++) {
		u64 hva = log->hva[from & mask];

		if (hva == KVMSNAP_NO_HVA || (hva >= start && hva < end))
			continue;
		if (hva != end) {
			kvmsnap_dirty_mark_hva(session, start, end);
			start = hva;
		}
		end = hva + PAGE_SIZE;
	}
	kvmsnap_dirty_mark_hva(session, start, end);
}

/**
 * kvmsnap_observer_pushed() - an entry was pushed
 * @session: in observer mode
 * @vcpu: index of the vCPU, in whose context this is
 * @index: of the entry
 * @hva: of the page, or KVMSNAP_NO_HVA
 *
 * Context: any, also atomic.
 */
void kvmsnap_observer_pushed(struct kvmsnap_session *session, u32 vcpu, u32 index, u64 hva)
{
	struct kvmsnap_observer *observer = session->ring.observer;
	struct kvmsnap_log *log;

	if (vcpu >= observer->nr_logs) {
		WRITE_ONCE(observer->blind, true);
		return;
	}
	log = &observer->logs[vcpu];
	if (!log->live) {
		/* This may be the scheduler, with a run queue's lock held: no waiting. */
		if (!raw_spin_trylock(&log->lock)) {
			WRITE_ONCE(observer->blind, true);
			return;
		}
		log->marked = index;
		log->pushed = index;
		/* No reset was told that covers it, however far indexes have come. */
		log->reset = index;
		log->live = true;
		raw_spin_unlock(&log->lock);
	}
	if (index != log->pushed || index - READ_ONCE(log->marked) >= observer->size) {
		WRITE_ONCE(observer->blind, true);
		return;
	}
	log->hva[index & (observer->size - 1)] = hva;
	WRITE_ONCE(log->told, log->told + 1);
	/* Pairs with those who mark. */
	smp_store_release(&log->pushed, index + 1);
}

/**
 * kvmsnap_observer_settled() - how far a ring was reset, by resets that are over
 * @session: in observer mode
 * @vcpu: index of the ring's vCPU
 * @index: behind the last entry that was reset, or earlier
 *
 * Context: any, also atomic.
 */
void kvmsnap_observer_settled(struct kvmsnap_session *session, u32 vcpu, u32 index)
{
	struct kvmsnap_observer *observer = session->ring.observer;
	const struct kvmsnap_log *log;

	if (vcpu >= observer->nr_logs)
		return;
	log = &observer->logs[vcpu];
	/* Pairs with the releases. */
	if (smp_load_acquire(&log->heard) && (s32)(index - READ_ONCE(log->settled)) > 0)
		WRITE_ONCE(observer->blind, true);
}

/**
 * kvmsnap_observer_reset() - a ring was reset, but for the TLB flush
 * @session: in observer mode
 * @vcpu: index of the ring's vCPU
 * @index: behind the last entry that was reset
 *
 * Context: any, also atomic; one reset of a ring at a time.
 */
void kvmsnap_observer_reset(struct kvmsnap_session *session, u32 vcpu, u32 index)
{
	struct kvmsnap_observer *observer = session->ring.observer;
	struct kvmsnap_log *log;
	u32 closed, pushed;

	if (vcpu >= observer->nr_logs)
		return;
	log = &observer->logs[vcpu];
	raw_spin_lock(&log->lock);
	closed = log->reset;
	log->reset = index;
	WRITE_ONCE(log->settled, index);
	/* Pairs with kvmsnap_observer_settled(). */
	smp_store_release(&log->heard, true);
	/* Pairs with kvmsnap_observer_pushed(): the entries before it are written. */
	pushed = smp_load_acquire(&log->pushed);
	if (log->live && (s32)(closed - pushed) > 0)
		closed = pushed;
	if (log->live && (s32)(closed - log->marked) > 0) {
		u32 nr = closed - log->marked;

		kvmsnap_log_mark(session, log, log->marked, closed);
		/* The vCPU may use the places again. */
		smp_store_release(&log->marked, closed);
		trace_kvmsnap_harvest(session->id, nr, false, READ_ONCE(observer->blind),
				      kvmsnap_ring_dirty(&session->ring));
	}
	raw_spin_unlock(&log->lock);
}

/* Mark what is open.  It stays in the log. */
static void kvmsnap_log_mark_open(struct kvmsnap_session *session, struct kvmsnap_log *log)
{
	u32 from, to, pushed;

	raw_spin_lock(&log->lock);
	/* The entries before it are written. */
	pushed = smp_load_acquire(&log->pushed);
	for (from = log->marked; from != pushed; from = to) {
		/* Closed and marked since? */
		if ((s32)(log->marked - from) > 0)
			from = log->marked;
		if ((s32)(pushed - from) <= 0)
			break;
		to = from + min(pushed - from, KVMSNAP_LOG_PIECE);
		kvmsnap_log_mark(session, log, from, to);
		raw_spin_unlock(&log->lock);
		cond_resched();
		raw_spin_lock(&log->lock);
	}
	raw_spin_unlock(&log->lock);
}

#define KVMSNAP_TELL_LOOPS	1000

/* Was all that a vCPU has pushed told, and all that was reset?  Called by kvm.c. */
static int kvmsnap_observer_knows(void *data, u32 vcpu, u32 pushed, u32 reset)
{
	struct kvmsnap_session *session = data;
	struct kvmsnap_observer *observer = session->ring.observer;
	struct kvmsnap_log *log;
	u32 i;

	if (vcpu >= observer->nr_logs)
		return pushed ? -ENODATA : 0;
	kvmsnap_observer_settled(session, vcpu, reset);
	log = &observer->logs[vcpu];
	/* KVM counts a push before it tells of it, some hundred nanoseconds. */
	for (i = 0; log->live && (s32)(pushed - READ_ONCE(log->pushed)) > 0; i++) {
		if (i == KVMSNAP_TELL_LOOPS)
			return -ENODATA;
		cpu_relax();
	}
	return 0;
}

static void kvmsnap_observer_mark_all(struct kvmsnap_session *session)
{
	atomic64_inc(&session->ring.all_dirty);
	kvmsnap_dirty_mark_all(session);
}

/* Have the memslots changed?  All is dirty then.  0, -ESRCH or -EINTR. */
int kvmsnap_observer_check_slots(struct kvmsnap_session *session)
{
	struct kvmsnap_observer *observer = session->ring.observer;
	int changed;

	/* Who finds that they have not may rely on all that is dirty being marked. */
	if (mutex_lock_killable(&observer->slots_lock))
		return -EINTR;
	changed = kvmsnap_vm_slots_changed(session->vm, &session->ring.batch);
	if (changed > 0)
		kvmsnap_observer_mark_all(session);
	mutex_unlock(&observer->slots_lock);
	return min(changed, 0);
}

/**
 * kvmsnap_observer_harvest() - mark what may have been written and was not marked
 * @session: in observer mode
 *
 * Context: process context, sleeps.  Complete only with every vCPU out of the guest.
 * Return: 0, -ENODATA a memslot doesn't log, -ESRCH the VM's process is gone, -EINTR.
 */
int kvmsnap_observer_harvest(struct kvmsnap_session *session)
{
	struct kvmsnap_observer *observer = session->ring.observer;
	u32 i;
	int err;

	err = kvmsnap_observer_check_slots(session);
	if (!err)
		err = kvmsnap_ring_check_logging(session);
	if (err)
		return err;
	err = kvmsnap_vm_each_ring(session->vm, kvmsnap_observer_knows, session);
	if (err && err != -ENODATA)
		return err;
	if (err || READ_ONCE(observer->blind)) {
		kvmsnap_observer_mark_all(session);
		return 0;
	}
	for (i = 0; i < observer->nr_logs; i++)
		kvmsnap_log_mark_open(session, &observer->logs[i]);
	for (i = 0; i < observer->nr_logged; i++)
		kvmsnap_dirty_mark_hva(session, observer->logged[i].start, observer->logged[i].end);
	return 0;
}

/* Called by kvm.c for each writable memslot, when we listen. */
static int kvmsnap_observer_slot(void *data, u64 start, u64 end, bool logs)
{
	struct kvmsnap_session *session = data;
	struct kvmsnap_observer *observer = session->ring.observer;

	if (!logs)
		return 0;
	if (observer->nr_logged == KVMSNAP_MAX_LOGGED) {
		observer->blind = true;
		return 0;
	}
	observer->logged[observer->nr_logged].start = start;
	observer->logged[observer->nr_logged].end = end;
	observer->nr_logged++;
	return 0;
}

/* From here on resets are heard of.  What was reset before was open then.  Called by kvm.c. */
static int kvmsnap_observer_begin(void *data, u32 vcpu, u32 pushed, u32 reset)
{
	struct kvmsnap_session *session = data;
	struct kvmsnap_observer *observer = session->ring.observer;
	struct kvmsnap_log *log;

	if (vcpu >= observer->nr_logs)
		return 0;
	log = &observer->logs[vcpu];
	raw_spin_lock(&log->lock);
	if (!log->heard)
		WRITE_ONCE(log->settled, reset);
	/* Pairs with kvmsnap_observer_settled(). */
	smp_store_release(&log->heard, true);
	raw_spin_unlock(&log->lock);
	return 0;
}

static int kvmsnap_observer_alloc(struct kvmsnap_session *session)
{
	struct kvmsnap_observer *observer;
	u32 vcpus, entries, i;
	int err;

	err = kvmsnap_vm_rings(session->vm, &vcpus, &entries);
	if (err)
		return err;
	observer = kzalloc(sizeof(*observer), GFP_KERNEL_ACCOUNT);
	if (!observer)
		return -ENOMEM;
	mutex_init(&observer->slots_lock);
	session->ring.observer = observer;
	/*
	 * A ring's worth that is reset and not closed, another one pushed meanwhile, and another
	 * while that is reset, which frees its places one by one.
	 */
	observer->size = 4 * entries;
	observer->logs = kvcalloc(vcpus, sizeof(*observer->logs), KVMSNAP_GFP);
	if (!observer->logs)
		return -ENOMEM;
	for (i = 0; i < vcpus; i++) {
		raw_spin_lock_init(&observer->logs[i].lock);
		observer->logs[i].hva = __vmalloc(array_size(observer->size, sizeof(u64)),
						  KVMSNAP_GFP);
		if (!observer->logs[i].hva)
			return -ENOMEM;
		observer->nr_logs++;
	}
	return 0;
}

/* Free what the session has, if anything.  Nobody listens any more.  May sleep. */
void kvmsnap_observer_free(struct kvmsnap_session *session)
{
	struct kvmsnap_observer *observer = session->ring.observer;

	if (!observer)
		return;
	while (observer->nr_logs)
		vfree(observer->logs[--observer->nr_logs].hva);
	kvfree(observer->logs);
	kfree(observer);
	session->ring.observer = NULL;
}

/**
 * kvmsnap_observer_start() - begin to listen
 * @session: not tracking yet; its regions have their dirty bitmaps
 *
 * Events mark pages at once.
 * Context: session->lock held, may sleep.
 * Return: 0; -EOPNOTSUPP the VM has no ring or KVM no events; -ESRCH, -EINTR, -ENOMEM.
 */
int kvmsnap_observer_start(struct kvmsnap_session *session)
{
	int err;

	lockdep_assert_held(&session->lock);
	err = kvmsnap_observer_alloc(session);
	if (!err)
		err = kvmsnap_vm_observe(session->vm);
	if (err)
		goto err_free;
	err = kvmsnap_vm_each_ring(session->vm, kvmsnap_observer_begin, session);
	if (err)
		goto err_ignore;
	/* What logs from here on, and did not before, is known from its beginning. */
	err = kvmsnap_vm_each_slot(session->vm, &session->ring.batch, kvmsnap_observer_slot,
				   session);
	if (err)
		goto err_ignore;
	return 0;

err_ignore:
	kvmsnap_vm_ignore(session->vm);
err_free:
	kvmsnap_observer_free(session);
	return err;
}

/* Ring entries that were told of. */
u64 kvmsnap_observer_told(const struct kvmsnap_session *session)
{
	const struct kvmsnap_observer *observer = session->ring.observer;
	u64 told = 0;
	u32 i;

	for (i = 0; i < observer->nr_logs; i++)
		told += READ_ONCE(observer->logs[i].told);
	return told;
}

u64 kvmsnap_observer_memory(const struct kvmsnap_session *session)
{
	const struct kvmsnap_observer *observer = session->ring.observer;

	if (!observer)
		return 0;
	return sizeof(*observer) + observer->nr_logs *
	       (sizeof(*observer->logs) + observer->size * sizeof(u64));
}
