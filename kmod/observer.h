/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_OBSERVER_H
#define KVMSNAP_OBSERVER_H

#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>

struct kvmsnap_session;

/**
 * struct kvmsnap_log - what a vCPU has pushed into its ring and is not known to be closed
 * @hva: host address of the page of each entry, or KVMSNAP_NO_HVA; by the entry's index modulo
 *	the log's size
 * @lock: of all but @hva, @told and @pushed
 * @live: the first push was seen
 * @heard: @settled is known
 * @told: entries there were; the vCPU's own, as is
 * @pushed: index behind the last entry
 * @marked: index behind the last entry that was closed and marked
 * @reset: the ring's reset index at its last reset: closed at the next
 * @settled: the same, or what it was when it was first looked at
 *
 * Indexes are KVM's: they count pushes modulo 2^32.
 */
struct kvmsnap_log {
	u64 *hva;
	raw_spinlock_t lock;
	bool live;
	bool heard;
	u64 told;
	u32 pushed;
	u32 marked;
	u32 reset;
	u32 settled;
};

/* Memslots that logged before we listened; a VM has few (video memory). */
#define KVMSNAP_MAX_LOGGED	16

/**
 * struct kvmsnap_observer - what a session in observer mode knows of the rings
 * @logs: of each vCPU, by its index
 * @nr_logs: vCPUs there were at TRACK
 * @size: entries of a log, a power of two
 * @slots_lock: held while the memslots are looked at and, if they have changed, all is marked
 * @blind: an event was missed, or comes from a vCPU that has no log
 * @logged: host addresses of memslots that logged already: what is open there is not known
 * @nr_logged: how many
 */
struct kvmsnap_observer {
	struct kvmsnap_log *logs;
	u32 nr_logs;
	u32 size;
	struct mutex slots_lock;	/* look at memslots, mark */
	bool blind;
	struct {
		u64 start, end;
	} logged[KVMSNAP_MAX_LOGGED];
	u32 nr_logged;
};

int kvmsnap_observer_start(struct kvmsnap_session *session);
void kvmsnap_observer_free(struct kvmsnap_session *session);
void kvmsnap_observer_pushed(struct kvmsnap_session *session, u32 vcpu, u32 index, u64 hva);
void kvmsnap_observer_settled(struct kvmsnap_session *session, u32 vcpu, u32 index);
void kvmsnap_observer_reset(struct kvmsnap_session *session, u32 vcpu, u32 index);
int kvmsnap_observer_harvest(struct kvmsnap_session *session);
int kvmsnap_observer_check_slots(struct kvmsnap_session *session);
u64 kvmsnap_observer_told(const struct kvmsnap_session *session);
u64 kvmsnap_observer_memory(const struct kvmsnap_session *session);

#endif
