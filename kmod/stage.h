/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_STAGE_H
#define KVMSNAP_STAGE_H

#include <linux/atomic.h>
#include <linux/types.h>

struct kvmsnap_region;
struct kvmsnap_session;
struct kvmsnap_worker;
struct page;

/**
 * struct kvmsnap_staged - a page that was copied and is yet to be written
 * @region: NULL while the slot is empty
 * @page: index in @region
 * @zeros: 0, or how many pages from @page on are zeros, which take no copy
 * @hash: of the copy or of a page of zeros, where hashes are kept
 * @copy: memory of the slot, for good
 */
struct kvmsnap_staged {
	struct kvmsnap_region *region;
	u64 page;
	u32 zeros;
	u64 hash;
	struct page *copy;
};

/**
 * struct kvmsnap_stage - kernel memory between a pass's look at guest memory and its writes
 * @slots: @max of them; a worker has a block of them at a time, so that runs stay together
 * @used: slots of blocks that were handed out in this pass; may exceed @max
 * @sent: slots dealt with, by the one worker that sends them
 * @sent_zeros: pages of the next slot that are dealt with too
 */
struct kvmsnap_stage {
	struct kvmsnap_staged *slots;
	u32 max;
	atomic_t used;
	u32 sent;
	u32 sent_zeros;
};

int kvmsnap_stage_resize(struct kvmsnap_stage *stage, u64 bytes);
void kvmsnap_stage_destroy(struct kvmsnap_stage *stage);
u64 kvmsnap_stage_memory(const struct kvmsnap_stage *stage);
void kvmsnap_stage_begin(struct kvmsnap_stage *stage);
bool kvmsnap_stage_add(struct kvmsnap_stage *stage, struct kvmsnap_worker *worker, u64 nr,
		       struct page *page, u64 hash);
int kvmsnap_stage_send(struct kvmsnap_session *session, struct kvmsnap_worker *worker);
void kvmsnap_stage_put_back(struct kvmsnap_session *session);

#endif
