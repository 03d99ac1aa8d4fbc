// SPDX-License-Identifier: GPL-2.0
/*
 * Direct writes: a pool of requests, submitted asynchronously and completed in order of
 * their arrival.
 *
 * A request goes free -> filled by a worker -> submitted -> done list -> free.  The
 * completion may come in hard interrupt context: it records the result, ends the freeze
 * protection and puts the request on the done list; all else, putting pages above all,
 * is done by done_work.  Each request in flight holds the pass (kvmsnap_pass_get()),
 * which holds the session, its target and its regions.
 *
 * done_work runs on a work queue of its own: workers of the other one may wait for the
 * requests that it frees.  It empties the done list once a run.  Who adds to an empty
 * list queues the work, so each run has exactly one cause, and the work can't be queued
 * again once the last request is off the list and the session may be freed.
 */
#include <linux/blkdev.h>
#include <linux/cred.h>
#include <linux/highmem.h>
#include <linux/kthread.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "dirty.h"
#include "pass.h"
#include "session.h"
#include "trace.h"
#include "writer.h"

static unsigned int requests = 32;
module_param(requests, uint, 0444);
MODULE_PARM_DESC(requests, "Writes of up to 2 MiB a session may have in flight (4 to 256, default 32)");

static struct workqueue_struct *kvmsnap_done_wq;

/**
 * kvmsnap_target_check() - can direct writes from the kernel go to this file?
 * @file: opened by the caller
 *
 * Return: 0, or the errno that SET_TARGET documents.
 */
int kvmsnap_target_check(struct file *file)
{
	struct inode *inode = file->f_mapping->host;
	unsigned long magic = file_inode(file)->i_sb->s_magic;
	struct block_device *bdev;

	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (!S_ISREG(inode->i_mode) && !S_ISBLK(inode->i_mode))
		return -ENXIO;
	if (file->f_flags & O_APPEND)
		return -EINVAL;
	if (IS_SWAPFILE(inode))
		return -ETXTBSY;
	if (IS_IMMUTABLE(inode) || (S_ISREG(inode->i_mode) && sb_rdonly(inode->i_sb)))
		return -EROFS;
	/* Newer tmpfs takes O_DIRECT and ignores it: a snapshot in guest memory's own kind. */
	if (S_ISREG(inode->i_mode) &&
	    (magic == TMPFS_MAGIC || magic == RAMFS_MAGIC || magic == HUGETLBFS_MAGIC))
		return -EOPNOTSUPP;
	/*
	 * Its server may keep a worker waiting, which nobody can kill; overlayfs hides whose file
	 * it is.
	 */
	if (S_ISREG(inode->i_mode) && (magic == FUSE_SUPER_MAGIC || magic == OVERLAYFS_SUPER_MAGIC))
		return -EOPNOTSUPP;
	if (!(file->f_mode & FMODE_CAN_ODIRECT) || !file->f_op->write_iter)
		return -EOPNOTSUPP;
	/* Pages are the unit; a device with larger blocks would need them merged. */
	bdev = S_ISBLK(inode->i_mode) ? I_BDEV(inode) : inode->i_sb->s_bdev;
	if (bdev && bdev_logical_block_size(bdev) > PAGE_SIZE)
		return -EOPNOTSUPP;
	return 0;
}

/*
 * Would a page that changes while it is written leave a wrong checksum there?  The page
 * would be written again, but until then, or for ever after a crash, it could not be read.
 */
bool kvmsnap_target_wants_stable(struct file *file)
{
	struct inode *inode = file->f_mapping->host;
	struct super_block *sb = inode->i_sb;

	if (S_ISBLK(inode->i_mode))
		return bdev_stable_writes(I_BDEV(inode));
	/* btrfs waits by itself, and may say nothing. */
	return sb->s_magic == BTRFS_SUPER_MAGIC || kvmsnap_mapping_stable(file->f_mapping) ||
	       (sb->s_bdev && bdev_stable_writes(sb->s_bdev));
}

u64 kvmsnap_target_size(struct file *file)
{
	return i_size_read(file->f_mapping->host);
}

/**
 * kvmsnap_request_get() - take a free request, waiting for one until the turn's end
 * @session: the worker works for a pass of it
 * @worker: the caller
 *
 * Not for as long as the target takes: the freezer waits for a work item's end, and so may
 * other sessions' work.
 * Context: worker; may sleep, so not with an mm in use.
 * Return: a request, or NULL when the pass is to end, or to be called again in another turn.
 */
struct kvmsnap_request *kvmsnap_request_get(struct kvmsnap_session *session,
					    const struct kvmsnap_worker *worker)
{
	long turn_left = worker->turn_end - jiffies;
	struct kvmsnap_writer *writer = &session->writer;
	struct llist_node *node = NULL;

	if (turn_left <= 0)
		return NULL;
	wait_event_idle_timeout(writer->wait, READ_ONCE(session->error) || ({
		spin_lock(&writer->lock);
		node = llist_del_first(&writer->free);
		spin_unlock(&writer->lock);
		node;
	}), turn_left);
	return node ? llist_entry(node, struct kvmsnap_request, node) : NULL;
}

static void kvmsnap_request_put_pages(struct kvmsnap_request *req)
{
	u32 i;

	for (i = 0; i < req->nr_bvecs; i++)
		kvmsnap_pages_put(req->bvecs[i].bv_page, req->bvecs[i].bv_len >> PAGE_SHIFT);
	req->nr_bvecs = 0;
	req->nr_pages = 0;
}

/* Give a request back to the pool, with the references on its pages. */
void kvmsnap_request_put(struct kvmsnap_request *req)
{
	struct kvmsnap_writer *writer = &req->session->writer;

	kvmsnap_request_put_pages(req);
	llist_add(&req->node, &writer->free);
	wake_up(&writer->wait);
}

void kvmsnap_request_begin(struct kvmsnap_request *req, struct kvmsnap_region *region,
			   u64 first_page)
{
	req->region = region;
	req->first_page = first_page;
	req->nr_pages = 0;
	req->nr_bvecs = 0;
}

/*
 * Copy a guest page to the place of the request's next page.  Takes over the reference on
 * @page; returns the copy with one, for kvmsnap_request_add() or to be put.
 */
struct page *kvmsnap_request_copy(struct kvmsnap_request *req, struct page *page)
{
	struct page *copy = req->copies[req->nr_pages];

	copy_highpage(copy, page);
	kvmsnap_pages_put(page, 1);
	get_page(copy);
	return copy;
}

/* Append a page, of which the request takes over the reference, and its hash if they are kept. */
void kvmsnap_request_add(struct kvmsnap_request *req, struct page *page, u64 hash)
{
	struct bio_vec *last = req->nr_bvecs ? &req->bvecs[req->nr_bvecs - 1] : NULL;

	if (req->hashes)
		req->hashes[req->nr_pages] = hash;
	req->nr_pages++;
	if (last && page_to_pfn(last->bv_page) + (last->bv_len >> PAGE_SHIFT) == page_to_pfn(page))
		last->bv_len += PAGE_SIZE;
	else
		bvec_set_page(&req->bvecs[req->nr_bvecs++], page, PAGE_SIZE, 0);
}

static void kvmsnap_request_complete(struct kiocb *iocb, long result)
{
	struct kvmsnap_request *req = container_of(iocb, struct kvmsnap_request, iocb);
	struct kvmsnap_writer *writer = &req->session->writer;
	struct super_block *sb = file_inode(iocb->ki_filp)->i_sb;

	if (req->freezable) {
		__sb_writers_acquired(sb, SB_FREEZE_WRITE);
		sb_end_write(sb);
	}
	req->result = result;
	if (llist_add(&req->node, &writer->done))
		queue_work(kvmsnap_done_wq, &writer->done_work);
}

static void kvmsnap_request_finish(struct kvmsnap_request *req)
{
	struct kvmsnap_session *session = req->session;
	struct kvmsnap_region *region = req->region;
	struct kvmsnap_writer *writer = &session->writer;
	u64 bytes = (u64)req->nr_pages << PAGE_SHIFT;
	u64 offset = session->target_offset + region->offset + (req->first_page << PAGE_SHIFT);

	trace_kvmsnap_write_complete(session->id, offset, bytes, req->result,
				     ktime_to_ns(ktime_sub(ktime_get(), req->submitted)));
	if (req->result == bytes) {
		if (session->ring.hash)
			memcpy(region->hash + req->first_page, req->hashes,
			       req->nr_pages * sizeof(*req->hashes));
		/* done_work alone sets these bits while a pass runs. */
		bitmap_set(region->present + BIT_WORD(req->first_page),
			   req->first_page % BITS_PER_LONG, req->nr_pages);
		if (region->written)
			bitmap_set(region->written + BIT_WORD(req->first_page),
				   req->first_page % BITS_PER_LONG, req->nr_pages);
		atomic64_add(bytes, &writer->bytes);
		atomic64_inc(&writer->completed);
	} else {
		/* What is there now nobody knows. */
		if (session->ring.hash)
			memset(region->hash + req->first_page, 0,
			       req->nr_pages * sizeof(*req->hashes));
		if (region->dirty)
			kvmsnap_dirty_mark(session, region, req->first_page, req->nr_pages);
		/* A short direct write means that the rest failed: full, or an error. */
		kvmsnap_session_fail(session, req->result < 0 ? req->result : -EIO,
				     offset + max(req->result, 0L));
	}
	atomic_dec(&writer->in_flight);
	kvmsnap_request_put(req);
	kvmsnap_pass_put(session);	/* taken by submit; may free the session */
}

static void kvmsnap_writer_done(struct work_struct *work)
{
	struct kvmsnap_writer *writer = container_of(work, struct kvmsnap_writer, done_work);
	struct kvmsnap_request *req, *next;
	struct llist_node *list = llist_reverse_order(llist_del_all(&writer->done));

	llist_for_each_entry_safe(req, next, list, node)
		kvmsnap_request_finish(req);
	/* @writer may be gone. */
}

/**
 * kvmsnap_request_submit() - start the write of a filled request
 * @req: from kvmsnap_request_get(), with at least one page
 *
 * Context: worker of the request's pass, may sleep, no locks.
 * Return: 0 when @req now belongs to the I/O, whose errors go to the session; -EAGAIN when
 * the file system is frozen, and @req is still the caller's.
 */
int kvmsnap_request_submit(struct kvmsnap_request *req)
{
	struct kvmsnap_session *session = req->session;
	struct kvmsnap_writer *writer = &session->writer;
	struct file *file = session->target;
	struct super_block *sb = file_inode(file)->i_sb;
	size_t bytes = (size_t)req->nr_pages << PAGE_SHIFT;
	const struct cred *cred;
	struct iov_iter iter;
	loff_t pos = session->target_offset + req->region->offset + (req->first_page << PAGE_SHIFT);
	u32 in_flight;
	long ret;

	/*
	 * kiocb_start_write(), but without waiting: a frozen file system must not pin a
	 * worker that cancel or close want to end.
	 */
	req->freezable = S_ISREG(file_inode(file)->i_mode);
	if (req->freezable) {
		if (!sb_start_write_trylock(sb))
			return -EAGAIN;
		__sb_writers_release(sb, SB_FREEZE_WRITE);
	}

	atomic64_add(bytes, &writer->issued);
	kvmsnap_pass_get(session);	/* put by finish */
	in_flight = atomic_inc_return(&writer->in_flight);
	spin_lock(&writer->lock);
	writer->max_in_flight = max(writer->max_in_flight, in_flight);
	spin_unlock(&writer->lock);

	init_sync_kiocb(&req->iocb, file);
	req->iocb.ki_pos = pos;
	req->iocb.ki_flags |= IOCB_DIRECT | IOCB_WRITE;
	/* O_APPEND may have been set since the check. */
	req->iocb.ki_flags &= ~IOCB_APPEND;
	req->iocb.ki_complete = kvmsnap_request_complete;
	iov_iter_bvec(&iter, ITER_SOURCE, req->bvecs, req->nr_bvecs, bytes);
	req->submitted = ktime_get();
	trace_kvmsnap_write_submit(session->id, pos, bytes, req->nr_bvecs);

	cred = override_creds(file->f_cred);
	ret = file->f_op->write_iter(&req->iocb, &iter);
	revert_creds(cred);

	/* After -EIOCBQUEUED @req may be complete already. */
	if (ret != -EIOCBQUEUED)
		kvmsnap_request_complete(&req->iocb, ret);
	return 0;
}

void kvmsnap_writer_reset_stats(struct kvmsnap_writer *writer)
{
	writer->max_in_flight = 0;
	atomic64_set(&writer->issued, 0);
	atomic64_set(&writer->bytes, 0);
	atomic64_set(&writer->completed, 0);
}

/* Pages for the copies of one request, large pieces where there are any.  -ENOMEM. */
static int kvmsnap_request_alloc_copies(struct kvmsnap_request *req)
{
	unsigned int order = ilog2(KVMSNAP_REQUEST_PAGES), nr = 0, i;

	req->hashes = kcalloc(KVMSNAP_REQUEST_PAGES, sizeof(*req->hashes), GFP_KERNEL_ACCOUNT);
	req->copies = kcalloc(KVMSNAP_REQUEST_PAGES, sizeof(*req->copies), GFP_KERNEL_ACCOUNT);
	if (!req->hashes || !req->copies)
		return -ENOMEM;
	while (nr < KVMSNAP_REQUEST_PAGES) {
		/* Others are not to be killed for it. */
		gfp_t gfp = order ? GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN : KVMSNAP_GFP;
		struct page *page = alloc_pages(gfp, order);

		if (!page) {
			if (!order)
				return -ENOMEM;
			order--;
			continue;
		}
		/* Single pages from here on, with a reference each. */
		split_page(page, order);
		for (i = 0; i < 1U << order; i++)
			req->copies[nr++] = page + i;
	}
	return 0;
}

static void kvmsnap_request_free_copies(struct kvmsnap_request *req)
{
	u32 i;

	for (i = 0; req->copies && i < KVMSNAP_REQUEST_PAGES && req->copies[i]; i++)
		put_page(req->copies[i]);
	kfree(req->copies);
	kfree(req->hashes);
	req->copies = NULL;
	req->hashes = NULL;
}

/**
 * kvmsnap_writer_need_copies() - give the requests pages to copy to
 * @session: no pass is running
 *
 * Context: session->lock held, may sleep.
 * Return: 0 or -ENOMEM.
 */
int kvmsnap_writer_need_copies(struct kvmsnap_session *session)
{
	struct kvmsnap_writer *writer = &session->writer;
	u32 i;

	lockdep_assert_held(&session->lock);
	for (i = 0; i < writer->nr_requests; i++) {
		struct kvmsnap_request *req = writer->requests[i];
		int err = req->copies ? 0 : kvmsnap_request_alloc_copies(req);

		if (err) {
			kvmsnap_request_free_copies(req);
			return err;
		}
		writer->copy_bytes = (i + 1) * KVMSNAP_REQUEST_PAGES * (PAGE_SIZE + sizeof(u64));
	}
	return 0;
}

u64 kvmsnap_writer_memory(const struct kvmsnap_writer *writer)
{
	return writer->nr_requests * sizeof(struct kvmsnap_request) + writer->copy_bytes;
}

/* May sleep.  Undone by kvmsnap_writer_destroy(), also when it fails. */
int kvmsnap_writer_init(struct kvmsnap_session *session)
{
	struct kvmsnap_writer *writer = &session->writer;
	u32 i, nr = clamp(requests, 4U, 256U);

	spin_lock_init(&writer->lock);
	init_llist_head(&writer->free);
	init_llist_head(&writer->done);
	init_waitqueue_head(&writer->wait);
	INIT_WORK(&writer->done_work, kvmsnap_writer_done);

	writer->requests = kcalloc(nr, sizeof(*writer->requests), GFP_KERNEL_ACCOUNT);
	if (!writer->requests)
		return -ENOMEM;
	for (i = 0; i < nr; i++) {
		struct kvmsnap_request *req = kvzalloc(sizeof(*req), GFP_KERNEL_ACCOUNT);

		if (!req)
			return -ENOMEM;
		req->session = session;
		writer->requests[writer->nr_requests++] = req;
		llist_add(&req->node, &writer->free);
	}
	return 0;
}

void kvmsnap_writer_destroy(struct kvmsnap_session *session)
{
	struct kvmsnap_writer *writer = &session->writer;

	WARN_ON_ONCE(atomic_read(&writer->in_flight));
	while (writer->nr_requests) {
		struct kvmsnap_request *req = writer->requests[--writer->nr_requests];

		kvmsnap_request_free_copies(req);
		kvfree(req);
	}
	kfree(writer->requests);
}

int kvmsnap_writer_module_init(void)
{
	/* WQ_MEM_RECLAIM: finishing writes is what frees pages when memory is short. */
	kvmsnap_done_wq = alloc_workqueue("kvmsnap_done",
					  WQ_UNBOUND | WQ_HIGHPRI | WQ_MEM_RECLAIM, 0);
	return kvmsnap_done_wq ? 0 : -ENOMEM;
}

void kvmsnap_writer_module_exit(void)
{
	destroy_workqueue(kvmsnap_done_wq);
}
