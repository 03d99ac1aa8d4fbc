/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_WRITER_H
#define KVMSNAP_WRITER_H

#include <linux/bvec.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/llist.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "region.h"

struct kvmsnap_session;
struct kvmsnap_worker;

#define KVMSNAP_REQUEST_PAGES	KVMSNAP_CHUNK_PAGES

/**
 * struct kvmsnap_request - one write, from a run of pages to its place in the target
 *
 * Belongs to the writer while it is free, to a worker while it is filled, and from
 * submit until complete to the I/O.  Holds a reference on each page in @bvecs: guest
 * memory, or its own @copies, which stay with the request when the others are put.
 */
struct kvmsnap_request {
	struct llist_node node;		/* free or done list */
	struct kiocb iocb;
	struct kvmsnap_session *session;
	struct kvmsnap_region *region;
	u64 first_page;			/* in @region */
	u32 nr_pages;
	u32 nr_bvecs;
	bool freezable;			/* holds the file system's freeze protection */
	long result;
	ktime_t submitted;
	struct page **copies;		/* KVMSNAP_REQUEST_PAGES, or NULL before any are needed */
	u64 *hashes;			/* of the pages, likewise; used when hashes are kept */
	struct bio_vec bvecs[KVMSNAP_REQUEST_PAGES];
};

/**
 * struct kvmsnap_writer - the pool of a session's requests
 *
 * The pool bounds memory and gives back-pressure: a worker that finds none free waits.
 */
struct kvmsnap_writer {
	struct kvmsnap_request **requests;
	u32 nr_requests;
	u64 copy_bytes;			/* kernel memory for copies */
	spinlock_t lock;
	struct llist_head free;		/* taken from under @lock */
	wait_queue_head_t wait;		/* for @free, or the session's error */
	struct llist_head done;		/* filled from interrupt context */
	struct work_struct done_work;
	atomic_t in_flight;
	u32 max_in_flight;		/* @lock */
	atomic64_t issued;		/* bytes submitted, of this pass */
	atomic64_t bytes;		/* completed, of this pass */
	atomic64_t completed;		/* requests, of this pass */
};

int kvmsnap_writer_init(struct kvmsnap_session *session);
void kvmsnap_writer_destroy(struct kvmsnap_session *session);
void kvmsnap_writer_reset_stats(struct kvmsnap_writer *writer);
int kvmsnap_writer_need_copies(struct kvmsnap_session *session);
u64 kvmsnap_writer_memory(const struct kvmsnap_writer *writer);

int kvmsnap_target_check(struct file *file);
u64 kvmsnap_target_size(struct file *file);
bool kvmsnap_target_wants_stable(struct file *file);

struct kvmsnap_request *kvmsnap_request_get(struct kvmsnap_session *session,
					    const struct kvmsnap_worker *worker);
void kvmsnap_request_put(struct kvmsnap_request *req);
void kvmsnap_request_begin(struct kvmsnap_request *req, struct kvmsnap_region *region,
			   u64 first_page);
struct page *kvmsnap_request_copy(struct kvmsnap_request *req, struct page *page);
void kvmsnap_request_add(struct kvmsnap_request *req, struct page *page, u64 hash);
int kvmsnap_request_submit(struct kvmsnap_request *req);

int kvmsnap_writer_module_init(void);
void kvmsnap_writer_module_exit(void);

#endif
