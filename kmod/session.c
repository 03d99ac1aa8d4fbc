// SPDX-License-Identifier: GPL-2.0
/*
 * Sessions: set-up, states, and the end.
 *
 * A session ends in this order:
 *  1. The file is closed: kvmsnap_session_close() takes it off the list, sets the error
 *     that ends the pass, and drops the VM.  Nothing waits.
 *  2. Workers see the error, drop what they hold and leave; writes in flight complete.
 *     The last of them ends the pass, which drops its reference.  The harvester ends its
 *     round and drops its own.
 *  3. The last reference frees: the VM is unbound (no callback comes any more), the target,
 *     regions and pool go.
 * Without a running pass and a harvester 3 follows 1 at once.
 */
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/overflow.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "dirty.h"
#include "kvm.h"
#include "netlink.h"
#include "observer.h"
#include "session.h"
#include "trace.h"

LIST_HEAD(kvmsnap_sessions);
DEFINE_MUTEX(kvmsnap_sessions_lock);	/* of the list */
static u32 kvmsnap_last_id;		/* kvmsnap_sessions_lock */

#define KVMSNAP_NO_OFFSET	(~0ULL)

/* The one place where the state changes; see the arrows in session.h. */
static void kvmsnap_session_set_state(struct kvmsnap_session *session, enum kvmsnap_state state)
{
	lockdep_assert_held(&session->state_lock);
	session->state = state;
}

static void kvmsnap_session_notify_locked(struct kvmsnap_session *session)
{
	lockdep_assert_held(&session->state_lock);
	session->end_seen = false;
	if (session->eventfd)
		kvmsnap_eventfd_signal(session->eventfd);
	wake_up_all(&session->wait);
}

static void kvmsnap_session_fail_locked(struct kvmsnap_session *session, int error, u64 offset)
{
	lockdep_assert_held(&session->state_lock);
	if (session->state == KVMSNAP_STATE_RUNNING && !session->error) {
		WRITE_ONCE(session->error, error);
		session->error_offset = offset;
	}
}

/**
 * kvmsnap_session_fail() - end the running pass with an error
 * @session: any state; nothing happens when no pass runs or it failed already
 * @error: negative errno
 * @offset: in the target, or KVMSNAP_NO_OFFSET
 *
 * Context: process context, no session locks.
 */
void kvmsnap_session_fail(struct kvmsnap_session *session, int error, u64 offset)
{
	spin_lock(&session->state_lock);
	kvmsnap_session_fail_locked(session, error, offset);
	spin_unlock(&session->state_lock);
	wake_up_all(&session->writer.wait);
}

static void kvmsnap_session_fill_stats_locked(struct kvmsnap_session *session,
					      struct kvmsnap_stats *stats)
{
	struct kvmsnap_pass *pass = &session->pass;
	ktime_t ended;

	lockdep_assert_held(&session->state_lock);
	stats->state = session->state;
	stats->error = -session->error;
	stats->pass = session->pass_nr;
	stats->phase = session->phase;
	stats->reserved = 0;
	stats->pause_ns = session->pause_ns;
	stats->bytes_written = atomic64_read(&session->writer.bytes);
	stats->pages_total = READ_ONCE(pass->pages_total);
	stats->pages_written = stats->bytes_written >> PAGE_SHIFT;
	stats->pages_zero = atomic64_read(&pass->pages_zero);
	stats->pages_untouched = atomic64_read(&pass->pages_untouched);
	stats->pages_done = stats->pages_written + stats->pages_zero + stats->pages_untouched +
			    atomic64_read(&pass->pages_same);
	stats->requests = atomic64_read(&session->writer.completed);
	stats->in_flight = atomic_read(&session->writer.in_flight);
	stats->max_in_flight = READ_ONCE(session->writer.max_in_flight);
	stats->elapsed_ns = 0;
	if (stats->pass) {
		ended = READ_ONCE(pass->ended) ?: ktime_get();
		stats->elapsed_ns = ktime_to_ns(ktime_sub(ended, READ_ONCE(pass->began)));
	}
	stats->memory = READ_ONCE(session->memory);
	stats->pages_dirty = kvmsnap_ring_dirty(&session->ring);
	stats->pages_same = atomic64_read(&pass->pages_same);
	stats->harvests = READ_ONCE(session->ring.done);
	stats->harvested = kvmsnap_ring_harvested(session);
	stats->all_dirty = atomic64_read(&session->ring.all_dirty);
	stats->pages_staged = atomic64_read(&pass->pages_staged);
}

/**
 * kvmsnap_session_fill_stats() - figures of the running or last pass
 * @session: whose
 * @stats: filled in, but for size and flags
 *
 * Takes no lock but @state_lock, because others may hold session->lock for long; the
 * figures are those of about the same moment.
 */
void kvmsnap_session_fill_stats(struct kvmsnap_session *session, struct kvmsnap_stats *stats)
{
	spin_lock(&session->state_lock);
	kvmsnap_session_fill_stats_locked(session, stats);
	spin_unlock(&session->state_lock);
}

/* Tell those who listen.  Not with @state_lock held. */
static void kvmsnap_session_event(struct kvmsnap_session *session, enum kvmsnap_genl_event event)
{
	struct kvmsnap_stats stats = { .size = sizeof(stats) };

	kvmsnap_session_fill_stats(session, &stats);
	kvmsnap_netlink_event(event, session->id, session->owner, READ_ONCE(session->vm_pid),
			      &stats);
}

/* The VM's address space is gone; called by kvm.c. */
static void kvmsnap_session_vm_gone(void *data)
{
	struct kvmsnap_session *session = data;
	bool closed;

	kvmsnap_ring_end(session);
	spin_lock(&session->state_lock);
	closed = session->closed;
	session->vm_gone = true;
	if (session->state != KVMSNAP_STATE_RUNNING) {
		kvmsnap_session_set_state(session, KVMSNAP_STATE_DEAD);
		kvmsnap_session_notify_locked(session);
	}
	/* What is staged can be written without it. */
	if (!session->staged)
		kvmsnap_session_fail_locked(session, -ESRCH, KVMSNAP_NO_OFFSET);
	spin_unlock(&session->state_lock);
	wake_up_all(&session->writer.wait);
	/* Unbind calls us too. */
	if (!closed)
		kvmsnap_session_event(session, KVMSNAP_GENL_EVENT_VM_GONE);
}

/* The host has changed which pages lie there; called by kvm.c in any context. */
static void kvmsnap_session_vm_changed(void *data, u64 start, u64 end)
{
	struct kvmsnap_session *session = data;

	if (kvmsnap_ring_tracking(&session->ring))
		kvmsnap_dirty_mark_hva(session, start, end);
}

static void kvmsnap_session_vm_pushed(void *data, u32 vcpu, u32 index, u64 hva)
{
	kvmsnap_observer_pushed(data, vcpu, index, hva);
}

static void kvmsnap_session_vm_settled(void *data, u32 vcpu, u32 index)
{
	kvmsnap_observer_settled(data, vcpu, index);
}

static void kvmsnap_session_vm_reset(void *data, u32 vcpu, u32 index)
{
	kvmsnap_observer_reset(data, vcpu, index);
}

static const struct kvmsnap_vm_ops kvmsnap_session_vm_ops = {
	.gone = kvmsnap_session_vm_gone,
	.changed = kvmsnap_session_vm_changed,
	.pushed = kvmsnap_session_vm_pushed,
	.settled = kvmsnap_session_vm_settled,
	.reset = kvmsnap_session_vm_reset,
};

/* Called by the pass, once, before its first worker runs. */
void kvmsnap_session_pass_begun(struct kvmsnap_session *session)
{
	struct kvmsnap_pass *pass = &session->pass;

	trace_kvmsnap_pass_begin(session->id, session->pass_nr, pass->kind, pass->compare,
				 pass->pages_total);
	kvmsnap_session_event(session, KVMSNAP_GENL_EVENT_PASS_BEGIN);
}

/* Called by a pass that stages, once, when none of its workers looks at guest memory any more. */
void kvmsnap_session_staged(struct kvmsnap_session *session)
{
	struct kvmsnap_pass *pass = &session->pass;

	spin_lock(&session->state_lock);
	if (!session->error)
		trace_kvmsnap_staged(session->id, session->pass_nr,
				     atomic64_read(&pass->pages_staged),
				     ktime_to_ns(ktime_sub(ktime_get(), pass->began)));
	session->staged = true;
	spin_unlock(&session->state_lock);
	wake_up_all(&session->wait);
	kvmsnap_session_event(session, KVMSNAP_GENL_EVENT_STAGED);
}

/* Called by the pass, once, when nothing of it is left.  Drops its reference. */
void kvmsnap_session_pass_over(struct kvmsnap_session *session)
{
	struct kvmsnap_pass *pass = &session->pass;
	u32 id = session->id, owner = session->owner, vm_pid = READ_ONCE(session->vm_pid);
	struct kvmsnap_stats stats = { .size = sizeof(stats) };
	bool last;

	spin_lock(&session->state_lock);
	trace_kvmsnap_pass_end(session->id, session->pass_nr, session->error,
			       atomic64_read(&session->writer.bytes),
			       ktime_to_ns(ktime_sub(pass->ended, pass->began)));
	if (session->vm_gone)
		kvmsnap_session_set_state(session, KVMSNAP_STATE_DEAD);
	else if (session->error)
		kvmsnap_session_set_state(session, KVMSNAP_STATE_FAILED);
	else
		kvmsnap_session_set_state(session, KVMSNAP_STATE_IDLE);
	kvmsnap_session_fill_stats_locked(session, &stats);
	kvmsnap_session_notify_locked(session);
	/*
	 * Before anybody can see that it is over: who closes the session then is the one that
	 * frees it, and may unmount the target or unload the module next.
	 */
	last = !refcount_dec_not_one(&session->ref.refcount);
	spin_unlock(&session->state_lock);
	if (last)
		kvmsnap_session_put(session);
	kvmsnap_netlink_event(KVMSNAP_GENL_EVENT_PASS_END, id, owner, vm_pid, &stats);
}

/* Bring session->memory up to date; session->lock held, or nobody else knows @session. */
static void kvmsnap_session_count_memory(struct kvmsnap_session *session)
{
	u64 memory = sizeof(*session) + kvmsnap_writer_memory(&session->writer) +
		     kvmsnap_pass_memory(&session->pass) + kvmsnap_ring_memory(&session->ring) +
		     kvmsnap_observer_memory(session) + kvmsnap_stage_memory(&session->stage);
	u32 i;

	for (i = 0; i < session->nr_regions; i++) {
		struct kvmsnap_region *region = session->regions[i];

		memory += sizeof(*region) + kvmsnap_region_bitmap_bytes(region) *
			  (1 + !!region->todo + !!region->dirty + !!region->written);
		if (region->hash)
			memory += kvmsnap_region_hash_bytes(region);
	}
	WRITE_ONCE(session->memory, memory);
}

static void kvmsnap_session_free(struct kvmsnap_session *session)
{
	struct eventfd_ctx *eventfd;

	/*
	 * Not the file, no worker, no write in flight, no harvester is left, but the VM may be
	 * going right now: until unbind returns, gone() uses what there is.  The lock is also for
	 * the end of kvmsnap_session_pass_over().
	 */
	spin_lock(&session->state_lock);
	eventfd = session->eventfd;
	session->eventfd = NULL;
	spin_unlock(&session->state_lock);
	if (session->ring.observer)
		kvmsnap_vm_ignore(session->vm);
	if (session->vm)
		kvmsnap_vm_unbind(session->vm);
	kvmsnap_observer_free(session);
	if (eventfd)
		eventfd_ctx_put(eventfd);
	if (session->target)
		fput(session->target);
	while (session->nr_regions)
		kvmsnap_region_free(session->regions[--session->nr_regions]);
	mtree_destroy(&session->by_hva);
	kvmsnap_ring_destroy(&session->ring);
	kvmsnap_stage_destroy(&session->stage);
	kvmsnap_pass_destroy(session);
	kvmsnap_writer_destroy(session);
	kvmsnap_charge_destroy(&session->charge);
	kfree(session);
	/* We may be on a work queue of ours: module exit waits for it. */
	module_put(THIS_MODULE);
}

static void kvmsnap_session_release(struct kref *ref)
{
	kvmsnap_session_free(container_of(ref, struct kvmsnap_session, ref));
}

/* Drop a reference.  Process context; may free the session and sleep for it. */
void kvmsnap_session_put(struct kvmsnap_session *session)
{
	kref_put(&session->ref, kvmsnap_session_release);
}

/**
 * kvmsnap_session_create() - make a session for an open file
 *
 * Context: process context, may sleep.
 * Return: the session, on the list, with one reference, or -ENOMEM.
 */
struct kvmsnap_session *kvmsnap_session_create(void)
{
	struct kvmsnap_session *session;
	int err;

	session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);
	if (!session)
		return ERR_PTR(-ENOMEM);
	__module_get(THIS_MODULE);
	kref_init(&session->ref);
	mutex_init(&session->lock);
	mt_init_flags(&session->by_hva, MT_FLAGS_USE_RCU);
	spin_lock_init(&session->state_lock);
	init_waitqueue_head(&session->wait);
	session->error_offset = KVMSNAP_NO_OFFSET;
	session->end_seen = true;
	session->owner = task_tgid_nr(current);
	kvmsnap_ring_init(&session->ring);

	kvmsnap_charge_init(&session->charge);
	err = kvmsnap_writer_init(session);
	if (!err)
		err = kvmsnap_pass_init(session);
	if (err) {
		kvmsnap_session_free(session);
		return ERR_PTR(err);
	}

	kvmsnap_session_count_memory(session);
	mutex_lock(&kvmsnap_sessions_lock);
	session->id = ++kvmsnap_last_id;
	list_add_tail(&session->node, &kvmsnap_sessions);
	mutex_unlock(&kvmsnap_sessions_lock);
	return session;
}

/* The file is closed.  Never waits for I/O. */
void kvmsnap_session_close(struct kvmsnap_session *session)
{
	mutex_lock(&kvmsnap_sessions_lock);
	list_del(&session->node);
	mutex_unlock(&kvmsnap_sessions_lock);

	kvmsnap_ring_end(session);
	kvmsnap_session_fail(session, -ESHUTDOWN, KVMSNAP_NO_OFFSET);
	spin_lock(&session->state_lock);
	session->closed = true;
	spin_unlock(&session->state_lock);
	/* Not with the last reference: that may be a worker's, and wait for a slow disk. */
	if (session->vm)
		kvmsnap_vm_drop(session->vm);
	kvmsnap_session_event(session, KVMSNAP_GENL_EVENT_CLOSE);
	kvmsnap_session_put(session);
}

/* Set-up is possible when no pass runs.  session->lock keeps one from starting. */
static int kvmsnap_session_check_setup(struct kvmsnap_session *session)
{
	int err = 0;

	lockdep_assert_held(&session->lock);
	spin_lock(&session->state_lock);
	if (session->state == KVMSNAP_STATE_RUNNING)
		err = -EBUSY;
	else if (session->state == KVMSNAP_STATE_DEAD)
		err = -ESRCH;
	spin_unlock(&session->state_lock);
	return err;
}

/* Take session->lock for set-up: 0, or -EINTR, -EBUSY, -ESRCH without it. */
static int kvmsnap_session_lock_setup(struct kvmsnap_session *session)
{
	int err;

	if (mutex_lock_killable(&session->lock))
		return -EINTR;
	err = kvmsnap_session_check_setup(session);
	if (err)
		mutex_unlock(&session->lock);
	return err;
}

int kvmsnap_session_bind_vm(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_bind_vm *arg = data;
	struct kvmsnap_vm *vm;
	int err;

	if (arg->flags)
		return -EOPNOTSUPP;
	if (arg->reserved)
		return -EINVAL;

	if (mutex_lock_killable(&session->lock))
		return -EINTR;
	err = -EBUSY;
	if (session->vm)
		goto out;
	err = kvmsnap_session_check_setup(session);
	if (err)
		goto out;
	vm = kvmsnap_vm_bind(arg->vm_fd, &kvmsnap_session_vm_ops, session);
	err = PTR_ERR_OR_ZERO(vm);
	if (!err) {
		session->vm = vm;
		WRITE_ONCE(session->vm_pid, kvmsnap_vm_pid(vm));
	}
out:
	mutex_unlock(&session->lock);
	return err;
}

/* May the session go on with another target that has something of the last one? */
static int kvmsnap_session_check_continue(struct kvmsnap_session *session, u32 flags)
{
	if (!flags)
		return 0;
	if (!kvmsnap_ring_tracking(&session->ring) || !session->target)
		return -ENODATA;
	return flags & KVMSNAP_TARGET_CURRENT ? READ_ONCE(session->error) : 0;
}

int kvmsnap_session_set_target(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_set_target *arg = data;
	struct file *file, *old;
	u32 i;
	int err;

	if (arg->flags & ~(KVMSNAP_TARGET_CURRENT | KVMSNAP_TARGET_BEFORE))
		return -EOPNOTSUPP;
	if (arg->reserved || !PAGE_ALIGNED(arg->offset) || arg->offset > LLONG_MAX ||
	    hweight32(arg->flags) > 1)
		return -EINVAL;
	file = fget(arg->fd);
	if (!file)
		return -EBADF;
	err = kvmsnap_target_check(file);
	if (err)
		goto out_file;

	err = kvmsnap_session_lock_setup(session);
	if (err)
		goto out_file;
	err = kvmsnap_session_check_continue(session, arg->flags);
	if (err)
		goto out_unlock;

	old = session->target;
	session->target = file;
	session->target_offset = arg->offset;
	file = old;
	for (i = 0; i < session->nr_regions; i++) {
		if (arg->flags & KVMSNAP_TARGET_BEFORE)
			kvmsnap_dirty_mark_written(session, session->regions[i]);
		kvmsnap_region_begin(session->regions[i], !arg->flags);
	}
	if (!arg->flags && kvmsnap_ring_tracking(&session->ring))
		kvmsnap_dirty_mark_all(session);
	spin_lock(&session->state_lock);
	if (session->state == KVMSNAP_STATE_FAILED) {
		WRITE_ONCE(session->error, 0);
		session->error_offset = KVMSNAP_NO_OFFSET;
		kvmsnap_session_set_state(session, KVMSNAP_STATE_IDLE);
	}
	spin_unlock(&session->state_lock);
out_unlock:
	mutex_unlock(&session->lock);
out_file:
	if (file)
		fput(file);
	return err;
}

/*
 * Another process's memory is ours to read only where it is the VM's, at both ends: between them
 * may lie what is cut out of RAM.
 */
static int kvmsnap_session_check_memslots(struct kvmsnap_session *session,
					  const struct kvmsnap_region *region)
{
	int has;

	if (kvmsnap_vm_is_ours(session->vm))
		return 0;
	has = kvmsnap_vm_has_hva(session->vm, region->hva);
	if (has > 0)
		has = kvmsnap_vm_has_hva(session->vm,
					 region->hva + kvmsnap_region_bytes(region) - PAGE_SIZE);
	if (has < 0)
		return has;
	return has ? 0 : -ENXIO;
}

int kvmsnap_session_add_region(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_add_region *arg = data;
	struct kvmsnap_region *region;
	u32 i;
	int err;

	if (arg->flags & ~KVMSNAP_REGION_WHOLE)
		return -EOPNOTSUPP;
	if (arg->reserved)
		return -EINVAL;
	region = kvmsnap_region_alloc(arg);
	if (IS_ERR(region))
		return PTR_ERR(region);

	err = kvmsnap_session_lock_setup(session);
	if (err)
		goto out_region;
	err = -ENODEV;
	if (!session->vm)
		goto out_unlock;
	err = -ENOSPC;
	if (session->nr_regions == KVMSNAP_MAX_REGIONS)
		goto out_unlock;
	err = -EOVERFLOW;
	if ((session->total_pages + region->nr_pages) << PAGE_SHIFT > KVMSNAP_MAX_BYTES)
		goto out_unlock;
	err = -EEXIST;
	for (i = 0; i < session->nr_regions; i++)
		if (kvmsnap_region_overlaps(region, session->regions[i]))
			goto out_unlock;
	err = kvmsnap_session_check_memslots(session, region);
	if (err)
		goto out_unlock;

	if (kvmsnap_ring_tracking(&session->ring)) {
		err = kvmsnap_dirty_alloc(region, session->ring.hash);
		if (err)
			goto out_unlock;
	}

	region->id = session->nr_regions;
	err = mtree_insert_range(&session->by_hva, region->hva,
				 region->hva + kvmsnap_region_bytes(region) - 1, region,
				 GFP_KERNEL_ACCOUNT);
	if (err)
		goto out_unlock;
	arg->region_id = region->id;
	session->total_pages += region->nr_pages;
	session->regions[region->id] = region;
	/* Pairs with kvmsnap_session_nr_regions(). */
	smp_store_release(&session->nr_regions, region->id + 1);
	if (region->dirty)
		kvmsnap_dirty_mark_region(session, region);
	kvmsnap_session_count_memory(session);
	region = NULL;
out_unlock:
	mutex_unlock(&session->lock);
out_region:
	if (region)
		kvmsnap_region_free(region);
	return err;
}

/* Set @nr bits from @first on, in pieces: a region may have billions. */
static int kvmsnap_set_todo(struct kvmsnap_region *region, u64 first, u64 nr)
{
	while (nr) {
		u64 start = first % BITS_PER_LONG;
		unsigned int n = min_t(u64, nr, SZ_16M);

		bitmap_set(region->todo + BIT_WORD(first), start, n);
		first += n;
		nr -= n;
		cond_resched();
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	return 0;
}

/* Put the caller's ranges into the todo bitmaps; *pages is how many pages that is. */
static int kvmsnap_session_read_ranges(struct kvmsnap_session *session,
				       const struct kvmsnap_queue *arg, u64 *pages)
{
	const struct kvmsnap_range __user *user = u64_to_user_ptr(arg->ranges);
	u64 p, left = KVMSNAP_MAX_OVERLAP * session->total_pages;
	struct kvmsnap_region *region;
	struct kvmsnap_range range;
	u32 i;
	int err;

	/* The workers go through all chunks: each region needs a bitmap. */
	for (i = 0; i < session->nr_regions; i++) {
		err = kvmsnap_region_clear_todo(session->regions[i]);
		if (err)
			return err;
	}
	kvmsnap_session_count_memory(session);

	for (i = 0; i < arg->nr_ranges; i++) {
		if (copy_from_user(&range, &user[i], sizeof(range)))
			return -EFAULT;
		if (range.reserved || !range.nr_pages)
			return -EINVAL;
		if (range.region_id >= session->nr_regions)
			return -ENOENT;
		region = session->regions[array_index_nospec(range.region_id, session->nr_regions)];
		if (range.first_page >= region->nr_pages ||
		    range.nr_pages > region->nr_pages - range.first_page)
			return -ERANGE;
		if (range.nr_pages > left)
			return -EINVAL;
		left -= range.nr_pages;
		err = kvmsnap_set_todo(region, range.first_page, range.nr_pages);
		if (err)
			return err;
	}

	*pages = 0;
	for (i = 0; i < session->nr_regions; i++) {
		region = session->regions[i];
		for (p = 0; p < region->nr_pages; p += SZ_16M) {
			*pages += bitmap_weight(region->todo + BIT_WORD(p),
						min_t(u64, SZ_16M, region->nr_pages - p));
			cond_resched();
		}
	}
	return 0;
}

/* Can a pass write all regions to the target?  Called with session->lock held. */
static int kvmsnap_session_check_target(struct kvmsnap_session *session)
{
	struct mm_struct *mm = kvmsnap_vm_mm(session->vm);
	u64 size = kvmsnap_target_size(session->target);
	int err = 0;
	u32 i;

	/* A worker has none of its own. */
	if (S_ISREG(file_inode(session->target)->i_mode))
		size = min_t(u64, size, rlimit(RLIMIT_FSIZE));

	if (!mmget_not_zero(mm))
		return -ESRCH;
	for (i = 0; i < session->nr_regions && !err; i++) {
		struct kvmsnap_region *region = session->regions[i];

		/* None of the three exceeds LLONG_MAX; the sum of the last two does not either. */
		if (session->target_offset + (region->offset + kvmsnap_region_bytes(region)) > size)
			err = -EFBIG;
		else
			err = kvmsnap_region_maps_file(mm, region, session->target);
		if (err > 0)
			err = -EDEADLK;
	}
	mmput_async(mm);

	/* What write() would ask; its listeners may answer late, or never. */
	for (i = 0; i < session->nr_regions && !err; i++) {
		loff_t pos = session->target_offset + session->regions[i]->offset;

		err = rw_verify_area(WRITE, session->target, &pos,
				     kvmsnap_region_bytes(session->regions[i]));
	}
	return err;
}

/* Has the pass the tracking it needs, and is there memory for its copies? */
static int kvmsnap_session_check_tracking(struct kvmsnap_session *session,
					  const struct kvmsnap_queue *arg)
{
	struct kvmsnap_ring *ring = &session->ring;
	struct kvmsnap_pass *pass = &session->pass;
	int err;

	/* Once: a target may change its mind. */
	pass->copy = kvmsnap_pass_copies(session, arg->flags);
	if (arg->flags & KVMSNAP_QUEUE_COMPARE && !ring->hash)
		return -ENODATA;
	if (!ring->mode && arg->kind == KVMSNAP_PASS_DIRTY)
		return -ENODATA;
	err = kvmsnap_ring_check(session, arg->kind);
	if (!err && (ring->hash || arg->flags & KVMSNAP_QUEUE_STAGE || pass->copy)) {
		err = kvmsnap_writer_need_copies(session);
		kvmsnap_session_count_memory(session);
	}
	return err;
}

int kvmsnap_session_queue(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_queue *arg = data;
	u64 pages;
	int err;

	if (arg->flags & ~(KVMSNAP_QUEUE_STOPPED | KVMSNAP_QUEUE_COMPARE | KVMSNAP_QUEUE_STAGE) ||
	    arg->kind > KVMSNAP_PASS_DIRTY)
		return -EOPNOTSUPP;
	if (arg->kind == KVMSNAP_PASS_RANGES ?
	    !arg->nr_ranges || arg->nr_ranges > KVMSNAP_MAX_RANGES :
	    arg->nr_ranges || arg->ranges)
		return -EINVAL;

	err = kvmsnap_session_lock_setup(session);
	if (err)
		return err;
	err = READ_ONCE(session->error);
	if (err)
		goto out;
	err = -ENODEV;
	if (!session->vm || !session->target || !session->nr_regions)
		goto out;
	err = kvmsnap_session_check_tracking(session, arg);
	if (err)
		goto out;
	err = kvmsnap_session_check_target(session);
	if (err)
		goto out;
	pages = session->total_pages;
	if (arg->kind == KVMSNAP_PASS_DIRTY)
		pages = kvmsnap_ring_dirty(&session->ring);
	if (arg->kind == KVMSNAP_PASS_RANGES) {
		err = kvmsnap_session_read_ranges(session, arg, &pages);
		if (err)
			goto out;
	}

	kvmsnap_pass_prepare(session, arg);
	spin_lock(&session->state_lock);
	err = session->state == KVMSNAP_STATE_DEAD ? -ESRCH : 0;
	if (!err) {
		arg->pass = ++session->pass_nr;
		kvmsnap_pass_reset_stats(session, pages);
		session->end_seen = true;
		session->staged = false;
		kvmsnap_session_set_state(session, KVMSNAP_STATE_RUNNING);
	}
	spin_unlock(&session->state_lock);
	if (!err)
		kvmsnap_pass_start(session);
out:
	mutex_unlock(&session->lock);
	return err;
}

/* Is what WAIT waits for still to come? */
static bool kvmsnap_session_busy_locked(struct kvmsnap_session *session, u32 flags)
{
	lockdep_assert_held(&session->state_lock);
	return session->state == KVMSNAP_STATE_RUNNING &&
	       !(flags & KVMSNAP_WAIT_STAGED && session->staged);
}

static bool kvmsnap_session_busy(struct kvmsnap_session *session, u32 flags)
{
	bool busy;

	spin_lock(&session->state_lock);
	busy = kvmsnap_session_busy_locked(session, flags);
	spin_unlock(&session->state_lock);
	return busy;
}

int kvmsnap_session_wait(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_wait *arg = data;
	bool busy;
	long left = 0;

	if (arg->flags & ~KVMSNAP_WAIT_STAGED)
		return -EOPNOTSUPP;

	if (arg->timeout_ns < 0)
		left = wait_event_interruptible(session->wait,
						!kvmsnap_session_busy(session, arg->flags));
	else if (arg->timeout_ns > 0)
		/* Not less than asked for: a jiffy may be all but over. */
		left = wait_event_interruptible_timeout(session->wait,
							!kvmsnap_session_busy(session, arg->flags),
							nsecs_to_jiffies(arg->timeout_ns) + 1);
	/* Not restarted: a time-out would start anew. */
	if (left == -ERESTARTSYS)
		return -EINTR;

	spin_lock(&session->state_lock);
	arg->state = session->state;
	arg->error = -session->error;
	arg->error_offset = session->error_offset;
	arg->pass = session->pass_nr;
	if (session->state != KVMSNAP_STATE_RUNNING)
		session->end_seen = true;
	busy = kvmsnap_session_busy_locked(session, arg->flags);
	spin_unlock(&session->state_lock);
	return busy ? -ETIME : 0;
}

int kvmsnap_session_cancel(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_cancel *arg = data;

	if (arg->flags)
		return -EOPNOTSUPP;
	kvmsnap_session_fail(session, -ECANCELED, KVMSNAP_NO_OFFSET);
	return 0;
}

int kvmsnap_session_stats(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_stats *arg = data;

	if (arg->flags)
		return -EOPNOTSUPP;
	kvmsnap_session_fill_stats(session, arg);
	return 0;
}

/*
 * Take session->lock to look at @nr pages of a region from @first on; no pass runs.  The region, or
 * -EINTR, -EBUSY, -ENOENT, -ERANGE without the lock.
 */
static struct kvmsnap_region *kvmsnap_session_lock_region(struct kvmsnap_session *session, u32 id,
							  u64 first, u64 nr)
{
	struct kvmsnap_region *region;
	int err;

	if (mutex_lock_killable(&session->lock))
		return ERR_PTR(-EINTR);
	err = kvmsnap_session_check_setup(session);
	if (err == -ESRCH)
		err = 0;	/* what was written stays written */
	if (err)
		goto err_unlock;
	err = -ENOENT;
	if (id >= session->nr_regions)
		goto err_unlock;
	region = session->regions[array_index_nospec(id, session->nr_regions)];
	err = -ERANGE;
	if (first >= region->nr_pages || nr > region->nr_pages - first)
		goto err_unlock;
	return region;

err_unlock:
	mutex_unlock(&session->lock);
	return ERR_PTR(err);
}

int kvmsnap_session_get_bitmap(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_get_bitmap *arg = data;
	void __user *user = u64_to_user_ptr(arg->data);
	struct kvmsnap_region *region;
	const unsigned long *bitmap;
	int err;

	if (arg->flags & ~(KVMSNAP_BITMAP_DIRTY | KVMSNAP_BITMAP_WRITTEN))
		return -EOPNOTSUPP;
	if (arg->reserved || arg->first_page % 64 || !arg->nr_pages || hweight32(arg->flags) > 1)
		return -EINVAL;

	region = kvmsnap_session_lock_region(session, arg->region_id, arg->first_page,
					     arg->nr_pages);
	if (IS_ERR(region))
		return PTR_ERR(region);
	bitmap = arg->flags & KVMSNAP_BITMAP_DIRTY ? region->dirty :
		 arg->flags & KVMSNAP_BITMAP_WRITTEN ? region->written : region->present;
	/* A TRACK that failed may have left some. */
	if (arg->flags && !session->ring.mode)
		bitmap = NULL;
	err = bitmap ? kvmsnap_region_copy_bitmap(bitmap, arg->first_page, arg->nr_pages, user) :
		       -ENODATA;
	mutex_unlock(&session->lock);
	return err;
}

int kvmsnap_session_get_hashes(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_get_hashes *arg = data;
	struct kvmsnap_region *region;
	int err = 0;

	if (arg->flags)
		return -EOPNOTSUPP;
	if (arg->reserved || !arg->nr_pages)
		return -EINVAL;
	region = kvmsnap_session_lock_region(session, arg->region_id, arg->first_page,
					     arg->nr_pages);
	if (IS_ERR(region))
		return PTR_ERR(region);
	BUILD_BUG_ON(sizeof(arg->key) != sizeof(session->ring.key));
	if (!session->ring.hash)
		err = -ENODATA;
	else
		err = kvmsnap_copy_out(u64_to_user_ptr(arg->data), region->hash + arg->first_page,
				       arg->nr_pages * sizeof(*region->hash));
	if (!err)
		memcpy(arg->key, &session->ring.key, sizeof(arg->key));
	mutex_unlock(&session->lock);
	return err;
}

int kvmsnap_session_track(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_track *arg = data;
	bool hash = arg->flags & KVMSNAP_TRACK_HASH;
	int err;

	if (arg->flags & ~KVMSNAP_TRACK_HASH)
		return -EOPNOTSUPP;
	if (arg->mode < KVMSNAP_TRACK_OWNER || arg->mode > KVMSNAP_TRACK_OBSERVER)
		return -EOPNOTSUPP;
	if (arg->reserved || (arg->mode == KVMSNAP_TRACK_COMPARE && !hash))
		return -EINVAL;

	err = kvmsnap_session_lock_setup(session);
	if (err)
		return err;
	err = -ENODEV;
	if (!session->vm)
		goto out;
	err = -EALREADY;
	if (session->ring.mode)
		goto out;
	/* To reset a ring is to change what another process relies on. */
	err = -EPERM;
	if (arg->mode == KVMSNAP_TRACK_OWNER && !kvmsnap_vm_is_ours(session->vm))
		goto out;
	err = kvmsnap_ring_start(session, arg->mode, hash);
	kvmsnap_session_count_memory(session);
out:
	mutex_unlock(&session->lock);
	return err;
}

int kvmsnap_session_set_stage(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_set_stage *arg = data;
	int err;

	if (arg->flags)
		return -EOPNOTSUPP;
	if (arg->bytes > KVMSNAP_MAX_STAGE)
		return -EOVERFLOW;
	err = kvmsnap_session_lock_setup(session);
	if (err)
		return err;
	err = kvmsnap_stage_resize(&session->stage, arg->bytes);
	kvmsnap_session_count_memory(session);
	mutex_unlock(&session->lock);
	return err;
}

int kvmsnap_session_set_phase(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_set_phase *arg = data;

	if (arg->flags || arg->phase > KVMSNAP_PHASE_FAILED)
		return -EOPNOTSUPP;
	if (arg->reserved || !arg->phase)
		return -EINVAL;
	spin_lock(&session->state_lock);
	session->phase = arg->phase;
	session->pause_ns = arg->pause_ns;
	trace_kvmsnap_phase(session->id, arg->phase, arg->pause_ns);
	spin_unlock(&session->state_lock);
	kvmsnap_session_event(session, KVMSNAP_GENL_EVENT_PHASE);
	return 0;
}

int kvmsnap_session_harvest(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_harvest *arg = data;
	int err;

	if (arg->flags)
		return -EOPNOTSUPP;
	/* No session->lock: vCPUs come here while others set up and queue. */
	if (!kvmsnap_ring_tracking(&session->ring) || session->ring.mode == KVMSNAP_TRACK_COMPARE)
		return -ENODATA;
	if (session->ring.mode == KVMSNAP_TRACK_OWNER) {
		err = kvmsnap_ring_harvest(session);
	} else {
		err = kvmsnap_observer_harvest(session);
		spin_lock(&session->state_lock);
		session->ring.done++;
		spin_unlock(&session->state_lock);
	}
	arg->harvested = kvmsnap_ring_harvested(session);
	arg->pages_dirty = kvmsnap_ring_dirty(&session->ring);
	return err;
}

int kvmsnap_session_mark_dirty(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_mark_dirty *arg = data;
	const struct kvmsnap_hva_range __user *user = u64_to_user_ptr(arg->ranges);
	u32 i, nr = kvmsnap_session_nr_regions(session);
	u64 end, from, to, step, left = 0;
	struct kvmsnap_hva_range range;
	struct kvmsnap_region *region;
	unsigned long at;

	if (arg->flags)
		return -EOPNOTSUPP;
	if (arg->reserved || !arg->nr_ranges || arg->nr_ranges > KVMSNAP_MAX_RANGES)
		return -EINVAL;
	if (!kvmsnap_ring_tracking(&session->ring))
		return -ENODATA;
	for (i = 0; i < nr; i++)
		left += KVMSNAP_MAX_OVERLAP * kvmsnap_region_bytes(session->regions[i]);
	for (i = 0; i < arg->nr_ranges; i++) {
		if (copy_from_user(&range, &user[i], sizeof(range)))
			return -EFAULT;
		if (check_add_overflow(range.hva, range.length, &end))
			return -EINVAL;
		if (!range.length)
			continue;
		/* The range may be the caller's whole address space, and a region very large. */
		at = range.hva;
		mt_for_each(&session->by_hva, region, at, end - 1) {
			/* Added since: all of it gets dirty, after that. */
			if (region->id >= nr)
				continue;
			from = max(range.hva, region->hva);
			to = min(end, region->hva + kvmsnap_region_bytes(region));
			if (to - from > left)
				return -EINVAL;
			left -= to - from;
			for (; from < to; from += step) {
				step = min_t(u64, to - from, SZ_1G);
				kvmsnap_dirty_mark_part(session, region, from, from + step);
				cond_resched();
				if (fatal_signal_pending(current))
					return -EINTR;
			}
		}
		cond_resched();
	}
	return 0;
}

int kvmsnap_session_set_eventfd(struct kvmsnap_session *session, void *data)
{
	struct kvmsnap_set_eventfd *arg = data;
	struct eventfd_ctx *ctx = NULL;

	if (arg->flags)
		return -EOPNOTSUPP;
	if (arg->reserved || arg->fd < -1)
		return -EINVAL;
	if (arg->fd >= 0) {
		ctx = eventfd_ctx_fdget(arg->fd);
		if (IS_ERR(ctx))
			return PTR_ERR(ctx);
	}
	spin_lock(&session->state_lock);
	swap(session->eventfd, ctx);
	spin_unlock(&session->state_lock);
	if (ctx)
		eventfd_ctx_put(ctx);
	return 0;
}

__poll_t kvmsnap_session_poll(struct kvmsnap_session *session, struct file *file,
			      struct poll_table_struct *wait)
{
	__poll_t events = 0;

	poll_wait(file, &session->wait, wait);
	spin_lock(&session->state_lock);
	if (session->state != KVMSNAP_STATE_RUNNING && !session->end_seen)
		events |= EPOLLIN | EPOLLRDNORM;
	if (session->state == KVMSNAP_STATE_FAILED)
		events |= EPOLLERR;
	if (session->state == KVMSNAP_STATE_DEAD)
		events |= EPOLLHUP;
	spin_unlock(&session->state_lock);
	return events;
}
