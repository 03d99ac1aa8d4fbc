// SPDX-License-Identifier: GPL-2.0
/*
 * The stage: a pass with KVMSNAP_QUEUE_STAGE copies the pages that it is to write to kernel
 * memory first, and writes the copies after.  Once all are copied the VM may run again;
 * the target need not be as fast as the guest's patience.  Zeros that are to be written are
 * noted, a slot a run.
 *
 * Workers fill slots, each in blocks of its own, without a lock; when the last of them is
 * through (kvmsnap_pass.copying) it alone sends what is in the slots.  What finds no slot
 * goes to the target at once, in the copies that requests have of their own.
 */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/vmalloc.h>

#include "dirty.h"
#include "pass.h"
#include "session.h"
#include "stage.h"
#include "writer.h"

#define KVMSNAP_STAGE_BLOCK	64

/**
 * kvmsnap_stage_resize() - set memory aside
 * @stage: of a session in which no pass runs
 * @bytes: up to KVMSNAP_MAX_STAGE; 0 gives all of it back
 *
 * Context: process context, may sleep, killable.
 * Return: 0, or -ENOMEM or -EINTR: there is no stage then.
 */
int kvmsnap_stage_resize(struct kvmsnap_stage *stage, u64 bytes)
{
	u32 max = DIV_ROUND_UP(bytes, PAGE_SIZE);

	kvmsnap_stage_destroy(stage);
	if (!max)
		return 0;
	/* Other VMs are not to be killed for it. */
	if (max > si_mem_available())
		return -ENOMEM;
	stage->slots = __vmalloc(array_size(max, sizeof(*stage->slots)), KVMSNAP_GFP | __GFP_ZERO);
	if (!stage->slots)
		return -ENOMEM;
	for (; stage->max < max; stage->max++) {
		struct page *page = alloc_page(KVMSNAP_GFP);

		if (!page || fatal_signal_pending(current)) {
			if (page)
				put_page(page);
			kvmsnap_stage_destroy(stage);
			return page ? -EINTR : -ENOMEM;
		}
		stage->slots[stage->max].copy = page;
		cond_resched();
	}
	return 0;
}

/* Process context, no locks but mutexes. */
void kvmsnap_stage_destroy(struct kvmsnap_stage *stage)
{
	while (stage->max) {
		put_page(stage->slots[--stage->max].copy);
		if (!(stage->max % 1024))
			cond_resched();
	}
	vfree(stage->slots);
	stage->slots = NULL;
	atomic_set(&stage->used, 0);
}

u64 kvmsnap_stage_memory(const struct kvmsnap_stage *stage)
{
	return (u64)stage->max * (PAGE_SIZE + sizeof(*stage->slots));
}

static u32 kvmsnap_stage_end(const struct kvmsnap_stage *stage)
{
	return min_t(u32, atomic_read(&stage->used), stage->max);
}

/* Empty it for another pass. */
void kvmsnap_stage_begin(struct kvmsnap_stage *stage)
{
	u32 i;

	for (i = 0; i < kvmsnap_stage_end(stage); i++) {
		stage->slots[i].region = NULL;
		if (!(i % 1024))
			cond_resched();
	}
	atomic_set(&stage->used, 0);
	stage->sent = 0;
	stage->sent_zeros = 0;
}

/**
 * kvmsnap_stage_add() - copy a page to the stage, or note that it is zeros
 * @stage: of the worker's session
 * @worker: the caller, with the page's chunk
 * @nr: of the page, in the region of the chunk
 * @page: its reference is taken over on success; ZERO_PAGE(0) for zeros
 * @hash: of its bytes, which nobody changes now
 *
 * Return: false when there is no room.
 */
bool kvmsnap_stage_add(struct kvmsnap_stage *stage, struct kvmsnap_worker *worker, u64 nr,
		       struct page *page, u64 hash)
{
	bool zeros = page == ZERO_PAGE(0);
	struct kvmsnap_staged *slot;

	/* The slot before is the worker's own. */
	slot = zeros && worker->slot ? &stage->slots[worker->slot - 1] : NULL;
	if (slot && slot->zeros && slot->zeros < U32_MAX && slot->region == worker->region &&
	    slot->page + slot->zeros == nr) {
		slot->zeros++;
		kvmsnap_pages_put(page, 1);
		return true;
	}
	if (worker->slot == worker->slot_end) {
		u32 first;

		if ((u32)atomic_read(&stage->used) >= stage->max)
			return false;
		first = atomic_fetch_add(KVMSNAP_STAGE_BLOCK, &stage->used);
		if (first >= stage->max)
			return false;
		worker->slot = first;
		worker->slot_end = min(first + KVMSNAP_STAGE_BLOCK, stage->max);
	}
	slot = &stage->slots[worker->slot++];
	if (!zeros)
		copy_highpage(slot->copy, page);
	kvmsnap_pages_put(page, 1);
	slot->region = worker->region;
	slot->page = nr;
	slot->zeros = zeros;
	slot->hash = hash;
	return true;
}

/**
 * kvmsnap_stage_send() - write what is on the stage
 * @session: its pass has nothing more to add
 * @worker: the only one that is left, with no request but one of an earlier call
 *
 * Context: worker, may sleep for the target.
 * Return: 0 when all is on its way; -EAGAIN to be called again later, maybe with worker->req
 * waiting; -ECANCELED when the pass is to end.
 */
int kvmsnap_stage_send(struct kvmsnap_session *session, struct kvmsnap_worker *worker)
{
	struct kvmsnap_stage *stage = &session->stage;
	u32 end = kvmsnap_stage_end(stage);

	for (;;) {
		struct kvmsnap_staged *slot = stage->sent < end ? &stage->slots[stage->sent] : NULL;
		struct kvmsnap_request *req = worker->req;
		struct page *page;

		if (req && req->nr_pages &&
		    (!slot || slot->region != req->region ||
		     slot->page + stage->sent_zeros != req->first_page + req->nr_pages ||
		     req->nr_pages == KVMSNAP_REQUEST_PAGES)) {
			int err = kvmsnap_pass_is_ahead(session) ? -EAGAIN :
								   kvmsnap_request_submit(req);

			if (err)
				return err;
			worker->req = NULL;
			cond_resched();
		}
		if (!slot)
			return 0;
		if (slot->region) {
			if (!worker->req)
				worker->req = kvmsnap_request_get(session, worker);
			if (READ_ONCE(session->error))
				return -ECANCELED;
			if (!worker->req)
				return -EAGAIN;
			if (!worker->req->nr_pages)
				kvmsnap_request_begin(worker->req, slot->region,
						      slot->page + stage->sent_zeros);
			page = slot->zeros ? ZERO_PAGE(0) : slot->copy;
			get_page(page);
			kvmsnap_request_add(worker->req, page, slot->hash);
			if (slot->zeros && ++stage->sent_zeros < slot->zeros)
				continue;
		}
		stage->sent++;
		stage->sent_zeros = 0;
	}
}

/* The pass has failed: what is on the stage and was not sent is dirty again. */
void kvmsnap_stage_put_back(struct kvmsnap_session *session)
{
	struct kvmsnap_stage *stage = &session->stage;

	for (; stage->sent < kvmsnap_stage_end(stage); stage->sent++) {
		struct kvmsnap_staged *slot = &stage->slots[stage->sent];

		if (slot->region && slot->region->dirty)
			kvmsnap_dirty_mark(session, slot->region, slot->page + stage->sent_zeros,
					   slot->zeros ? slot->zeros - stage->sent_zeros : 1);
		stage->sent_zeros = 0;
		if (!(stage->sent % 1024))
			cond_resched();
	}
}
