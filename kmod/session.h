/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_SESSION_H
#define KVMSNAP_SESSION_H

#include <linux/kref.h>
#include <linux/maple_tree.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/kvmsnap.h>

#include "charge.h"
#include "pass.h"
#include "region.h"
#include "ring.h"
#include "stage.h"
#include "writer.h"

struct eventfd_ctx;
struct kvmsnap_vm;

/**
 * struct kvmsnap_session - what is behind an open /dev/kvmsnap
 *
 * References: one for the file, one for a running pass, one for the harvester.  The pass's
 * own count (pass.h) covers its workers and its writes in flight.  Who drops the last
 * reference frees everything, in process context.  A session holds a reference on the module.
 *
 * States, changed by kvmsnap_session_set_state() alone:
 *
 *	          QUEUE              pass over, no error
 *	IDLE ------------> RUNNING ---------------------> IDLE
 *	  ^                   |
 *	  |    SET_TARGET     | pass over, error or cancel
 *	  +---------------- FAILED
 *	any of them ---- VM's process gone, pass over ----> DEAD
 *
 * Locks: @lock, then @state_lock.  @lock is never taken where the mm may be torn down or
 * by a worker; @state_lock never in interrupt context.
 */
struct kvmsnap_session {
	struct kref ref;
	u32 id;
	pid_t owner;			/* opened it; in the initial namespace, to be shown */
	struct list_head node;		/* kvmsnap_sessions_lock */

	/* The set-up.  Frozen while RUNNING: the workers read it without a lock. */
	struct mutex lock;		/* serializes all that changes it */
	struct kvmsnap_vm *vm;		/* set once */
	struct file *target;
	u64 target_offset;		/* where the regions' offsets count from */
	struct kvmsnap_region *regions[KVMSNAP_MAX_REGIONS];
	u32 nr_regions;			/* published: who marks dirty pages reads without @lock */
	struct maple_tree by_hva;	/* the regions, by host address; likewise, under RCU */
	u64 total_pages;
	pid_t vm_pid;			/* shown; 0 before bind; read without @lock */
	u64 memory;			/* bytes we hold, likewise */

	spinlock_t state_lock;		/* what says so below */
	enum kvmsnap_state state;	/* @state_lock */
	bool vm_gone;			/* @state_lock */
	bool closed;			/* @state_lock: its file is */
	bool end_seen;			/* @state_lock: by WAIT, of the last pass */
	bool staged;			/* @state_lock: the pass reads no guest memory any more */
	u64 pass_nr;			/* @state_lock */
	int error;			/* @state_lock: negative errno of the pass; sticky */
	u64 error_offset;		/* @state_lock */
	enum kvmsnap_phase phase;	/* @state_lock: what others are to know of the save */
	u64 pause_ns;			/* @state_lock: likewise */
	struct eventfd_ctx *eventfd;	/* @state_lock */
	wait_queue_head_t wait;		/* for state, staged and end_seen */

	struct kvmsnap_pass pass;
	struct kvmsnap_writer writer;
	struct kvmsnap_charge charge;
	struct kvmsnap_stage stage;
	struct kvmsnap_ring ring;
};

struct kvmsnap_session *kvmsnap_session_create(void);
void kvmsnap_session_put(struct kvmsnap_session *session);
void kvmsnap_session_close(struct kvmsnap_session *session);

void kvmsnap_session_fail(struct kvmsnap_session *session, int error, u64 offset);
void kvmsnap_session_staged(struct kvmsnap_session *session);
void kvmsnap_session_pass_begun(struct kvmsnap_session *session);
void kvmsnap_session_pass_over(struct kvmsnap_session *session);

int kvmsnap_session_bind_vm(struct kvmsnap_session *session, void *data);
int kvmsnap_session_set_target(struct kvmsnap_session *session, void *data);
int kvmsnap_session_add_region(struct kvmsnap_session *session, void *data);
int kvmsnap_session_queue(struct kvmsnap_session *session, void *data);
int kvmsnap_session_wait(struct kvmsnap_session *session, void *data);
int kvmsnap_session_cancel(struct kvmsnap_session *session, void *data);
int kvmsnap_session_stats(struct kvmsnap_session *session, void *data);
int kvmsnap_session_get_bitmap(struct kvmsnap_session *session, void *data);
int kvmsnap_session_get_hashes(struct kvmsnap_session *session, void *data);
int kvmsnap_session_track(struct kvmsnap_session *session, void *data);
int kvmsnap_session_harvest(struct kvmsnap_session *session, void *data);
int kvmsnap_session_mark_dirty(struct kvmsnap_session *session, void *data);
int kvmsnap_session_set_stage(struct kvmsnap_session *session, void *data);
int kvmsnap_session_set_phase(struct kvmsnap_session *session, void *data);
int kvmsnap_session_set_eventfd(struct kvmsnap_session *session, void *data);
__poll_t kvmsnap_session_poll(struct kvmsnap_session *session, struct file *file,
			      struct poll_table_struct *wait);

/* How many regions there are, for who does not hold session->lock: these are whole. */
static inline u32 kvmsnap_session_nr_regions(const struct kvmsnap_session *session)
{
	/* Pairs with kvmsnap_session_add_region(). */
	return smp_load_acquire(&session->nr_regions);
}

/* All sessions, in the order of their ids. */
extern struct list_head kvmsnap_sessions;
extern struct mutex kvmsnap_sessions_lock;
void kvmsnap_session_fill_stats(struct kvmsnap_session *session, struct kvmsnap_stats *stats);

#endif
