// SPDX-License-Identifier: GPL-2.0
/*
 * A pass: workers carry a set of pages from guest memory to the writer.
 *
 * The work is cut in chunks of 2 MiB.  A worker takes the next chunk, looks its pages up
 * with the VM's mm in use, lets go of the mm, and sends each run of pages with content
 * off as one request.  It never holds the mm while it waits for the target, so that a
 * dying VMM is not kept alive by a slow disk, and never sleeps for guest memory: it queues
 * itself for later instead.  Of what a VMM may control it sleeps for the target alone, with
 * whatever write() to it sleeps for: a slow device, or the lock of its inode.
 *
 * After KVMSNAP_TURN_CHUNKS chunks, or KVMSNAP_TURN_JIFFIES, a worker goes to the end of the
 * queue, so that the sessions of several VMs share the CPUs, and the freezer waits for none.
 */
#include <linux/kthread.h>
#include <linux/math64.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "dirty.h"
#include "kvm.h"
#include "pass.h"
#include "session.h"
#include "stage.h"
#include "trace.h"

#define KVMSNAP_TURN_CHUNKS	8
#define KVMSNAP_RETRY_JIFFIES	max(HZ / 200, 1)

static struct workqueue_struct *kvmsnap_pass_wq;

/* In worker->pages: a page that is not of this pass. */
#define KVMSNAP_NOT_IN_PASS	((struct page *)ERR_PTR(-ENODATA))

void kvmsnap_pass_get(struct kvmsnap_session *session)
{
	WARN_ON_ONCE(!atomic_inc_not_zero(&session->pass.pending));
}

/* The last to leave ends the pass and drops its reference on the session. */
void kvmsnap_pass_put(struct kvmsnap_session *session)
{
	struct kvmsnap_pass *pass = &session->pass;

	if (!atomic_dec_and_test(&pass->pending))
		return;
	pass->ended = ktime_get();
	kvmsnap_session_pass_over(session);
}

/*
 * Take the next chunk of the pass; false when there is none.  Those with nothing dirty cost no more
 * than a look, so that a pass takes as long as what is dirty, and not as all of RAM.
 */
static bool kvmsnap_worker_next_chunk(struct kvmsnap_session *session,
				      struct kvmsnap_worker *worker)
{
	struct kvmsnap_pass *pass = &session->pass;
	struct kvmsnap_region *region;
	u64 chunk;
	u32 i;

	do {
		chunk = atomic64_fetch_inc(&pass->next_chunk);
		if (chunk >= pass->nr_chunks)
			return false;
		if (!(chunk % 1024))
			cond_resched();
		for (i = 0; i < session->nr_regions; i++) {
			region = session->regions[i];
			if (chunk < kvmsnap_region_chunks(region))
				break;
			chunk -= kvmsnap_region_chunks(region);
		}
		worker->first_page = chunk * KVMSNAP_CHUNK_PAGES;
		worker->nr_pages = min_t(u64, KVMSNAP_CHUNK_PAGES,
					 region->nr_pages - worker->first_page);
	} while (pass->kind == KVMSNAP_PASS_DIRTY &&
		 !kvmsnap_dirty_any(region, worker->first_page, worker->nr_pages));
	worker->region = region;
	worker->filled = 0;
	worker->next = 0;
	worker->readin.addr = 0;
	/* Before the first look at the pages. */
	if (region->dirty)
		kvmsnap_dirty_take(session, region, worker->first_page, worker->nr_pages,
				   pass->kind);
	return true;
}

/* The length of the run of pages from @from on that are, or are not, in the pass. */
static u32 kvmsnap_worker_run(struct kvmsnap_worker *worker, u32 from, bool *in_pass)
{
	const unsigned long *todo;
	u32 end;

	*in_pass = true;
	if (worker->pass->kind == KVMSNAP_PASS_ALL)
		return worker->nr_pages - from;

	/* A chunk starts at a word of the bitmap. */
	todo = worker->region->todo + BIT_WORD(worker->first_page);
	*in_pass = test_bit(from, todo);
	if (*in_pass)
		end = find_next_zero_bit(todo, worker->nr_pages, from);
	else
		end = find_next_bit(todo, worker->nr_pages, from);
	return end - from;
}

/*
 * Look up the pages of the chunk.  Return 0 when all are, -EAGAIN to come back later, or
 * the error at page worker->filled.
 */
static int kvmsnap_worker_fill(struct kvmsnap_session *session, struct kvmsnap_worker *worker)
{
	struct kvmsnap_region *region = worker->region;
	struct mm_struct *mm = kvmsnap_vm_mm(session->vm);
	long ret = 0;

	if (!mmget_not_zero(mm))
		return -ESRCH;
	kthread_use_mm(mm);
	while (worker->filled < worker->nr_pages) {
		struct page **pages = worker->pages + worker->filled;
		bool in_pass;
		u32 n = kvmsnap_worker_run(worker, worker->filled, &in_pass);

		if (in_pass) {
			u64 page = worker->first_page + worker->filled;

			ret = kvmsnap_pages_get(mm, region->hva + (page << PAGE_SHIFT), n, pages,
						&worker->readin);
			if (ret < 0)
				break;
			n = ret;
		} else {
			u32 i;

			for (i = 0; i < n; i++)
				pages[i] = KVMSNAP_NOT_IN_PASS;
		}
		worker->filled += n;
		/* A page that is to be read is locked. */
		if (worker->readin.file) {
			ret = -EAGAIN;
			break;
		}
	}
	kthread_unuse_mm(mm);
	/* The address space may end here: not in our context. */
	mmput_async(mm);
	kvmsnap_readin_start(&worker->readin);
	return min(ret, 0L);
}

/*
 * The page to write for page @i of the chunk, with its reference, or NULL for none.  What
 * is zeros is written only over what is not, or where zeros are wanted.  A copy lies in
 * the place that worker->req has for its next page.
 */
static struct page *kvmsnap_worker_take(struct kvmsnap_session *session,
					struct kvmsnap_worker *worker, u32 i, u64 *hash)
{
	const struct kvmsnap_pass *pass = worker->pass;
	const struct kvmsnap_ring *ring = &session->ring;
	struct kvmsnap_region *region = worker->region;
	u64 nr = worker->first_page + i;
	u64 *known = region->hash ? &region->hash[nr] : NULL;
	struct page *page = worker->pages[i];
	bool untouched = !page, zero;
	bool write_zeros = (region->flags & KVMSNAP_REGION_WHOLE) ||
			   test_bit(nr % BITS_PER_LONG, region->present + BIT_WORD(nr));

	if (page == KVMSNAP_NOT_IN_PASS)
		return NULL;
	if (!untouched && pass->copy)
		page = kvmsnap_request_copy(worker->req, page);
	/* From here on the bytes don't change, or need not be exact. */
	if (ring->hash) {
		*hash = untouched ? ring->zero_hash : kvmsnap_page_hash(&ring->key, page);
		zero = *hash == ring->zero_hash;
		if (pass->compare && *hash == *known) {
			worker->pages_same++;
			goto leave;
		}
	} else {
		zero = untouched || (!write_zeros && kvmsnap_page_is_zero(page));
	}
	if (!zero || write_zeros) {
		if (!untouched)
			return page;
		get_page(ZERO_PAGE(0));
		return ZERO_PAGE(0);
	}
	if (ring->hash)
		*known = *hash;
	if (untouched)
		worker->pages_untouched++;
	else
		worker->pages_zero++;
leave:
	if (!untouched)
		kvmsnap_pages_put(page, 1);
	return NULL;
}

/*
 * How many pages from worker->next on are untouched, with nothing to be done about it?  Most of a
 * large guest's memory is.
 */
static u32 kvmsnap_worker_untouched(const struct kvmsnap_session *session,
				    const struct kvmsnap_worker *worker)
{
	const struct kvmsnap_region *region = worker->region;
	u32 i = worker->next, end;

	if (worker->pages[i] || session->ring.hash || (region->flags & KVMSNAP_REGION_WHOLE))
		return 0;
	end = find_next_bit(region->present + BIT_WORD(worker->first_page), worker->filled, i);
	while (i < end && !worker->pages[i])
		i++;
	return i - worker->next;
}

/*
 * Put a page that is to be written on the stage.  When that is full, return what the request is
 * to have.
 */
static struct page *kvmsnap_worker_stage(struct kvmsnap_session *session,
					 struct kvmsnap_worker *worker, struct page *page, u64 hash)
{
	bool zeros = page == ZERO_PAGE(0);

	if (kvmsnap_stage_add(&session->stage, worker, worker->first_page + worker->next, page,
			      hash)) {
		worker->pages_staged += !zeros;
		return NULL;
	}
	return zeros ? page : kvmsnap_request_copy(worker->req, page);
}

static bool kvmsnap_worker_turn_is_over(const struct kvmsnap_worker *worker)
{
	return time_after_eq(jiffies, worker->turn_end);
}

/*
 * Send the looked-up pages off, a request a run.  Return 0 when all are, -EAGAIN to come
 * back later, maybe with worker->req waiting, -ECANCELED when the pass is to end.
 */
static int kvmsnap_worker_send(struct kvmsnap_session *session, struct kvmsnap_worker *worker)
{
	for (;;) {
		struct page *page;
		u64 hash = 0;
		u32 skip;

		if (worker->req && worker->req->nr_pages &&
		    (worker->run_over || worker->next == worker->filled)) {
			int err = kvmsnap_request_submit(worker->req);

			if (err)
				return err;
			worker->req = NULL;
		}
		if (worker->next == worker->filled)
			return 0;
		skip = kvmsnap_worker_untouched(session, worker);
		if (skip) {
			worker->pages_untouched += skip;
			worker->run_over = true;
			worker->next += skip;
			continue;
		}
		if (!worker->req) {
			worker->req = kvmsnap_request_get(session, worker);
			if (!worker->req)
				return READ_ONCE(session->error) ? -ECANCELED : -EAGAIN;
		}

		page = kvmsnap_worker_take(session, worker, worker->next, &hash);
		if (page && worker->pass->stage)
			page = kvmsnap_worker_stage(session, worker, page, hash);
		if (page && !worker->req->nr_pages)
			kvmsnap_request_begin(worker->req, worker->region,
					      worker->first_page + worker->next);
		if (page)
			kvmsnap_request_add(worker->req, page, hash);
		worker->run_over = !page;
		worker->next++;
	}
}

/* The pass has failed: what the worker took out of the dirty set and didn't send. */
static void kvmsnap_worker_put_back(struct kvmsnap_session *session, struct kvmsnap_worker *worker)
{
	struct kvmsnap_request *req = worker->req;
	struct kvmsnap_region *region = worker->region;
	u32 i;

	if (req && req->nr_pages && req->region->dirty)
		kvmsnap_dirty_mark(session, req->region, req->first_page, req->nr_pages);
	if (!region || !region->dirty)
		return;
	for (i = worker->next; i < worker->nr_pages; i++)
		if (worker->pass->kind == KVMSNAP_PASS_ALL ||
		    test_bit(i, region->todo + BIT_WORD(worker->first_page)))
			kvmsnap_dirty_mark(session, region, worker->first_page + i, 1);
}

/* One chunk.  Return 0 when it is dealt with, 1 when there is none left, or an error. */
static int kvmsnap_worker_chunk(struct kvmsnap_session *session, struct kvmsnap_worker *worker)
{
	struct kvmsnap_pass *pass = worker->pass;
	int err, fill_err;

	if (READ_ONCE(session->error))
		return -ECANCELED;
	/* With nothing in hand: a reference on a guest's page keeps it where it is. */
	if (!worker->region && kvmsnap_pass_is_ahead(session))
		return -EAGAIN;
	if (!worker->region && !kvmsnap_worker_next_chunk(session, worker))
		return 1;

	fill_err = kvmsnap_worker_fill(session, worker);
	err = kvmsnap_worker_send(session, worker);

	atomic64_add(worker->pages_zero, &pass->pages_zero);
	atomic64_add(worker->pages_untouched, &pass->pages_untouched);
	atomic64_add(worker->pages_same, &pass->pages_same);
	atomic64_add(worker->pages_staged, &pass->pages_staged);
	worker->pages_zero = 0;
	worker->pages_untouched = 0;
	worker->pages_same = 0;
	worker->pages_staged = 0;

	if (!err && fill_err && fill_err != -EAGAIN)
		kvmsnap_session_fail(session, fill_err,
				     session->target_offset + worker->region->offset +
				     ((worker->first_page + worker->filled) << PAGE_SHIFT));
	err = err ?: fill_err;
	if (!err)
		worker->region = NULL;
	return err;
}

/*
 * Guest memory -> requests, or the stage.  True when the worker is to go on: with another
 * turn, now or later, or, being the last one, with what is on the stage.
 */
static bool kvmsnap_worker_collect(struct kvmsnap_session *session, struct kvmsnap_worker *worker,
				   unsigned long *delay)
{
	int i, err = 0;

	for (i = 0; i < KVMSNAP_TURN_CHUNKS && !err && !kvmsnap_worker_turn_is_over(worker); i++)
		err = kvmsnap_worker_chunk(session, worker);
	*delay = err == -EAGAIN ? KVMSNAP_RETRY_JIFFIES : 0;
	if (!err || err == -EAGAIN)
		return true;

	/* Through, or the pass is to end: drop what was looked up and not sent. */
	if (err < 0)
		kvmsnap_worker_put_back(session, worker);
	for (; worker->next < worker->filled; worker->next++) {
		struct page *page = worker->pages[worker->next];

		if (page && page != KVMSNAP_NOT_IN_PASS)
			kvmsnap_pages_put(page, 1);
	}
	if (worker->req)
		kvmsnap_request_put(worker->req);
	worker->req = NULL;
	if (!atomic_dec_and_test(&worker->pass->copying) || !worker->pass->stage)
		return false;
	kvmsnap_session_staged(session);
	worker->sending = true;
	return true;
}

/* The stage -> requests.  True when the worker is to try again later. */
static bool kvmsnap_worker_send_staged(struct kvmsnap_session *session,
				       struct kvmsnap_worker *worker, unsigned long *delay)
{
	int err = kvmsnap_stage_send(session, worker);

	*delay = KVMSNAP_RETRY_JIFFIES;
	if (err == -EAGAIN && !READ_ONCE(session->error))
		return true;
	if (err) {
		worker->region = NULL;
		kvmsnap_worker_put_back(session, worker);
		kvmsnap_stage_put_back(session);
	}
	if (worker->req)
		kvmsnap_request_put(worker->req);
	return false;
}

static void kvmsnap_worker_turn(struct work_struct *work)
{
	struct kvmsnap_worker *worker = container_of(to_delayed_work(work), struct kvmsnap_worker,
						     work);
	struct kvmsnap_session *session = container_of(worker->pass, struct kvmsnap_session, pass);
	unsigned long delay;
	bool again;

	worker->turn_end = jiffies + KVMSNAP_TURN_JIFFIES;
	kvmsnap_charge_begin(&session->charge);
	if (worker->sending)
		again = kvmsnap_worker_send_staged(session, worker, &delay);
	else
		again = kvmsnap_worker_collect(session, worker, &delay);
	kvmsnap_charge_end();
	/* It could have gone on. */
	if (kvmsnap_worker_turn_is_over(worker))
		delay = 0;
	if (again)
		queue_delayed_work(kvmsnap_pass_wq, &worker->work, delay);
	else
		kvmsnap_pass_put(session);	/* may free the session */
}

/*
 * Must the pass write copies?  Where memory may change while it is written, and the hash
 * of what was written is to be kept or the target wants it to stay the same.
 */
bool kvmsnap_pass_copies(const struct kvmsnap_session *session, u32 flags)
{
	return session->ring.mode && !(flags & (KVMSNAP_QUEUE_STOPPED | KVMSNAP_QUEUE_STAGE)) &&
	       (session->ring.hash || kvmsnap_target_wants_stable(session->target));
}

/* May the pass not write any more just now? */
bool kvmsnap_pass_is_ahead(const struct kvmsnap_session *session)
{
	const struct kvmsnap_pass *pass = &session->pass;
	u64 ns, most;

	if (!pass->bytes_per_second)
		return false;
	ns = ktime_to_ns(ktime_sub(ktime_get(), pass->began));
	/* More than there is; and the division's result must fit, or x86 traps. */
	if (check_mul_overflow(pass->bytes_per_second, div_u64(ns, NSEC_PER_SEC) + 1, &most))
		return false;
	return atomic64_read(&session->writer.issued) >
	       mul_u64_u64_div_u64(pass->bytes_per_second, ns, NSEC_PER_SEC);
}

/**
 * kvmsnap_pass_prepare() - say what the next pass is to be
 * @session: in which none runs; pass.copy says if copies are written
 * @arg: of QUEUE; pages are those of all regions, of the regions' todo bitmaps, or of the dirty set
 *
 * Context: session->lock held; may sleep.
 */
void kvmsnap_pass_prepare(struct kvmsnap_session *session, const struct kvmsnap_queue *arg)
{
	struct kvmsnap_pass *pass = &session->pass;
	u32 i;

	lockdep_assert_held(&session->lock);
	pass->kind = arg->kind;
	pass->compare = arg->flags & KVMSNAP_QUEUE_COMPARE;
	pass->stage = arg->flags & KVMSNAP_QUEUE_STAGE;
	pass->bytes_per_second = arg->bytes_per_second;
	kvmsnap_stage_begin(&session->stage);
	pass->nr_chunks = 0;
	for (i = 0; i < session->nr_regions; i++)
		pass->nr_chunks += kvmsnap_region_chunks(session->regions[i]);
	atomic64_set(&pass->next_chunk, 0);
}

/**
 * kvmsnap_pass_reset_stats() - the figures are those of another pass from now on
 * @session: about to be in KVMSNAP_STATE_RUNNING
 * @pages: that the pass has, as far as is known
 *
 * Context: session->state_lock held, so that nobody sees figures of two passes.
 */
void kvmsnap_pass_reset_stats(struct kvmsnap_session *session, u64 pages)
{
	struct kvmsnap_pass *pass = &session->pass;

	lockdep_assert_held(&session->state_lock);
	pass->pages_total = pages;
	atomic64_set(&pass->pages_zero, 0);
	atomic64_set(&pass->pages_untouched, 0);
	atomic64_set(&pass->pages_same, 0);
	atomic64_set(&pass->pages_staged, 0);
	kvmsnap_writer_reset_stats(&session->writer);
	pass->began = ktime_get();
	pass->ended = 0;
}

/**
 * kvmsnap_pass_start() - put the workers to work
 * @session: in KVMSNAP_STATE_RUNNING, which excludes another pass; its set-up is frozen
 *
 * Context: session->lock held.  Takes a reference on the session until the pass is over.
 */
void kvmsnap_pass_start(struct kvmsnap_session *session)
{
	struct kvmsnap_pass *pass = &session->pass;
	u32 i;

	lockdep_assert_held(&session->lock);
	kvmsnap_session_pass_begun(session);

	kref_get(&session->ref);
	atomic_set(&pass->pending, pass->nr_workers);
	atomic_set(&pass->copying, pass->nr_workers);
	for (i = 0; i < pass->nr_workers; i++) {
		struct kvmsnap_worker *worker = &pass->workers[i];

		worker->region = NULL;
		worker->req = NULL;
		worker->sending = false;
		worker->slot = 0;
		worker->slot_end = 0;
		worker->filled = 0;
		worker->next = 0;
		queue_delayed_work(kvmsnap_pass_wq, &worker->work, 0);
	}
}

u64 kvmsnap_pass_memory(const struct kvmsnap_pass *pass)
{
	return pass->nr_workers *
	       (sizeof(struct kvmsnap_worker) + KVMSNAP_CHUNK_PAGES * sizeof(struct page *));
}

/* May sleep.  Undone by kvmsnap_pass_destroy(), also when it fails. */
int kvmsnap_pass_init(struct kvmsnap_session *session)
{
	struct kvmsnap_pass *pass = &session->pass;
	u32 nr = min_t(u32, num_online_cpus(), KVMSNAP_MAX_WORKERS);

	pass->workers = kcalloc(nr, sizeof(*pass->workers), GFP_KERNEL_ACCOUNT);
	if (!pass->workers)
		return -ENOMEM;
	for (pass->nr_workers = 0; pass->nr_workers < nr; pass->nr_workers++) {
		struct kvmsnap_worker *worker = &pass->workers[pass->nr_workers];

		worker->pages = kcalloc(KVMSNAP_CHUNK_PAGES, sizeof(*worker->pages),
					GFP_KERNEL_ACCOUNT);
		if (!worker->pages)
			return -ENOMEM;
		worker->pass = pass;
		INIT_DELAYED_WORK(&worker->work, kvmsnap_worker_turn);
	}
	return 0;
}

void kvmsnap_pass_destroy(struct kvmsnap_session *session)
{
	struct kvmsnap_pass *pass = &session->pass;

	while (pass->nr_workers)
		kfree(pass->workers[--pass->nr_workers].pages);
	kfree(pass->workers);
}

int kvmsnap_pass_module_init(void)
{
	/*
	 * Workers sleep for their target; many may, and the others must not wait for them.
	 * Freezable: nothing is written behind the back of a hibernation image.
	 */
	kvmsnap_pass_wq = alloc_workqueue("kvmsnap_pass", WQ_UNBOUND | WQ_FREEZABLE,
					  WQ_MAX_ACTIVE);
	return kvmsnap_pass_wq ? 0 : -ENOMEM;
}

void kvmsnap_pass_module_exit(void)
{
	destroy_workqueue(kvmsnap_pass_wq);
}
