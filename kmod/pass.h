/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_PASS_H
#define KVMSNAP_PASS_H

#include <linux/atomic.h>
#include <linux/ktime.h>
#include <linux/workqueue.h>

#include "pages.h"
#include "region.h"

struct kvmsnap_request;
struct kvmsnap_session;

/* Within which a worker makes room for others, and for the freezer: of jiffies. */
#define KVMSNAP_TURN_JIFFIES	(HZ / 10)

/* Beyond this a disk is busy and CPUs are better left to the guests. */
#define KVMSNAP_MAX_WORKERS	16

/**
 * struct kvmsnap_worker - one of the kernel workers of a pass
 * @pass: it works for
 * @work: runs a turn of it; queues itself again until the pass has no chunk left
 * @turn_end: jiffies: no request is begun in this turn from then on
 * @region: of the chunk at hand; NULL when there is none
 * @first_page: of the chunk, in @region
 * @nr_pages: of the chunk
 * @filled: pages[0..filled) have been looked up
 * @next: pages[0..next) have been dealt with; the references on the rest are ours
 * @pages: KVMSNAP_CHUNK_PAGES entries
 * @readin: pages[filled], when it is of a file and not in memory
 * @req: being filled, or waiting for a frozen file system or the limit of the rate
 * @sending: alone, what is on the stage
 * @slot: next of its slots on the stage
 * @slot_end: behind the last of them
 * @run_over: the run that @req carries has ended
 * @pages_zero: found, not yet added to the pass's figure
 * @pages_untouched: likewise
 * @pages_same: likewise
 * @pages_staged: likewise
 */
struct kvmsnap_worker {
	struct kvmsnap_pass *pass;
	struct delayed_work work;
	unsigned long turn_end;
	struct kvmsnap_region *region;
	u64 first_page;
	u32 nr_pages;
	u32 filled;
	u32 next;
	struct page **pages;
	struct kvmsnap_readin readin;
	struct kvmsnap_request *req;
	bool sending;
	u32 slot, slot_end;
	bool run_over;
	u32 pages_zero;
	u32 pages_untouched;
	u32 pages_same;
	u32 pages_staged;
};

/**
 * struct kvmsnap_pass - a set of pages on its way to the target
 *
 * @pending counts what the pass still waits for: one a worker that is not through, one a
 * write in flight.  The last to leave ends the pass.  @copying counts the workers that may
 * still look at guest memory.
 */
struct kvmsnap_pass {
	atomic_t pending;
	atomic_t copying;
	atomic64_t next_chunk;		/* of all regions, counted through */
	u64 nr_chunks;
	enum kvmsnap_pass_kind kind;
	bool compare;			/* take what differs, leave what doesn't */
	bool copy;			/* memory may change meanwhile: write a copy */
	bool stage;			/* memory may change after: copy all, then write */
	u64 bytes_per_second;		/* the most to write; 0 for no limit */
	u32 nr_workers;
	struct kvmsnap_worker *workers;

	/* Figures, reset at the start. */
	u64 pages_total;
	atomic64_t pages_zero;
	atomic64_t pages_untouched;
	atomic64_t pages_same;
	atomic64_t pages_staged;
	ktime_t began;
	ktime_t ended;			/* 0 while running */
};

int kvmsnap_pass_init(struct kvmsnap_session *session);
void kvmsnap_pass_destroy(struct kvmsnap_session *session);
void kvmsnap_pass_prepare(struct kvmsnap_session *session, const struct kvmsnap_queue *arg);
void kvmsnap_pass_reset_stats(struct kvmsnap_session *session, u64 pages);
void kvmsnap_pass_start(struct kvmsnap_session *session);
bool kvmsnap_pass_is_ahead(const struct kvmsnap_session *session);
bool kvmsnap_pass_copies(const struct kvmsnap_session *session, u32 flags);
void kvmsnap_pass_get(struct kvmsnap_session *session);
void kvmsnap_pass_put(struct kvmsnap_session *session);
u64 kvmsnap_pass_memory(const struct kvmsnap_pass *pass);

int kvmsnap_pass_module_init(void);
void kvmsnap_pass_module_exit(void);

#endif
