/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libkvmsnap: the kvmsnap module's ABI as C calls, for any VMM.
 *
 * A session is the descriptor that kvmsnap_open() returns; close() ends it.  The order
 * of calls for a save of a stopped VM:
 *
 *	s = kvmsnap_open(NULL);
 *	kvmsnap_bind_vm(s, vm_fd);
 *	kvmsnap_set_target(s, file_fd);		sized by ftruncate() beforehand
 *	id = kvmsnap_add_region(s, ram, size, offset, 0);
 *	kvmsnap_queue_all(s, NULL);
 *	kvmsnap_wait(s, -1, &result);		result.error must be 0; again on -EINTR
 *	kvmsnap_get_bitmap(s, id, 0, size / 4096, bitmap);
 *
 * and of a running one, in a VMM whose VM has a dirty ring, after the region is added:
 *
 *	set KVM_MEM_LOG_DIRTY_PAGES on the memslots
 *	kvmsnap_track(s, KVMSNAP_TRACK_OWNER, 0);
 *	do
 *		kvmsnap_queue_dirty(s, 0, NULL);
 *		kvmsnap_wait(s, -1, &result);
 *		kvmsnap_harvest(s, &harvest);
 *	while harvest.pages_dirty take longer to write than the VM may pause
 *	stop the vCPUs and the devices; save their state
 *	kvmsnap_harvest(s, NULL);
 *	kvmsnap_queue_dirty(s, KVMSNAP_QUEUE_STOPPED, NULL);
 *	kvmsnap_wait(s, -1, &result);		the target equals memory
 *	kvmsnap_get_bitmap(...); clear KVM_MEM_LOG_DIRTY_PAGES; kvmsnap_harvest(s, NULL);
 *	resume
 *
 * A later one costs what has changed, if the session stays open and memslots go on logging:
 *
 *	reflink the file; kvmsnap_set_target_at(s, clone, 0, KVMSNAP_TARGET_CURRENT);
 *	as above, from kvmsnap_queue_dirty() on; when it fails, reflink again and
 *	kvmsnap_set_target_at(s, clone, 0, KVMSNAP_TARGET_BEFORE);
 *
 * meanwhile a vCPU that exits with KVM_EXIT_DIRTY_RING_FULL calls kvmsnap_harvest(), and
 * who writes guest memory other than by a vCPU calls kvmsnap_mark_dirty() afterwards.
 * tools/testing/vmm in the sources is a small VMM that does all this.
 *
 * Functions return 0 or more on success and a negative errno otherwise; the errnos are
 * those of <linux/kvmsnap.h>, where the structures are described too.  There is no state
 * but the descriptor; calls on one session from several threads are safe.  The library fills in
 * structures as long as they were when it was built: when one gets longer, its soname changes.
 */
#ifndef KVMSNAP_H
#define KVMSNAP_H

#include <linux/kvmsnap.h>
#include <linux/kvmsnap_netlink.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Open a session. @path: device node, NULL for /dev/kvmsnap.  Returns a descriptor, close-on-exec. */
int kvmsnap_open(const char *path);

/* What the module is and its limits. */
int kvmsnap_info(int session, struct kvmsnap_info *info);

/* Name the VM, by the descriptor of KVM_CREATE_VM; once a session. */
int kvmsnap_bind_vm(int session, int vm_fd);

/* Name the file or block device to write to; it must read as zeros where nothing is written. */
int kvmsnap_set_target(int session, int fd);

/*
 * The same from @offset in the file on, and, with one of enum kvmsnap_target_flags, with what the
 * last target has: the next generation of a snapshot, or a new try of one that failed.
 */
int kvmsnap_set_target_at(int session, int fd, uint64_t offset, uint32_t flags);

/*
 * Give @length bytes of memory at @hva their place at @offset in the target, all in bytes
 * and multiples of 4096.  @flags: of enum kvmsnap_region_flags.  Returns the region's id.
 */
int kvmsnap_add_region(int session, uint64_t hva, uint64_t length, uint64_t offset, uint32_t flags);

/* Start a pass; *how but for size and pass.  @pass, of this and the others, may be NULL. */
int kvmsnap_queue(int session, const struct kvmsnap_queue *how, uint64_t *pass);

/* Start a pass over all pages, or over @nr ranges. */
int kvmsnap_queue_all(int session, uint64_t *pass);
int kvmsnap_queue_ranges(int session, const struct kvmsnap_range *ranges, uint32_t nr,
			 uint64_t *pass);

/*
 * Follow the writes to memory, once a session: @mode of enum kvmsnap_track_mode, @flags of enum
 * kvmsnap_track_flags.  All pages are dirty then.
 */
int kvmsnap_track(int session, uint32_t mode, uint32_t flags);

/* Start a pass over what is dirty; @flags of enum kvmsnap_queue_flags. */
int kvmsnap_queue_dirty(int session, uint32_t flags, uint64_t *pass);

/* Start a pass over all pages that writes those that differ from what the target holds. */
int kvmsnap_queue_compare(int session, uint32_t flags, uint64_t *pass);

/*
 * Empty the VM's dirty rings into the dirty set.  Waits for that, a few milliseconds; from
 * any thread.  @result may be NULL, and is left alone when that fails.
 */
int kvmsnap_harvest(int session, struct kvmsnap_harvest *result);

/* Tell that @length bytes at @hva have been written, by anything but a vCPU; from any thread. */
int kvmsnap_mark_dirty(int session, uint64_t hva, uint64_t length);
int kvmsnap_mark_dirty_ranges(int session, const struct kvmsnap_hva_range *ranges, uint32_t nr);

/* Set @bytes of kernel memory aside for passes with KVMSNAP_QUEUE_STAGE; 0 gives them back. */
int kvmsnap_set_stage(int session, uint64_t bytes);

/*
 * Wait for the moment from which on such a pass looks at memory no more, and the VM may run; or
 * for its end, as kvmsnap_wait().  result->state is KVMSNAP_STATE_RUNNING in the first case.
 */
int kvmsnap_wait_staged(int session, int64_t timeout_ns, struct kvmsnap_wait *result);

/*
 * Wait for the end of the pass, @timeout_ns nanoseconds at most, negative for ever.
 * Returns 0 when none is running any more: result->error (positive errno) says how it ended.
 * -ETIME while it is running, with result filled in.  -EINTR after a signal: call again; result->error
 * is that of the call then, and of any other that failed.
 */
int kvmsnap_wait(int session, int64_t timeout_ns, struct kvmsnap_wait *result);

/* Tell others how far the save is: @phase of enum kvmsnap_phase, which says what @pause_ns is. */
int kvmsnap_set_phase(int session, uint32_t phase, uint64_t pause_ns);

/* End the running pass early; wait for its end all the same. */
int kvmsnap_cancel(int session);

/* Figures of the running or last pass. */
int kvmsnap_stats(int session, struct kvmsnap_stats *stats);

/*
 * Which of @nr_pages pages from @first_page (a multiple of 64) on are in the target: bit
 * N % 8 of byte N / 8.  @data: (nr_pages + 63) / 64 * 8 bytes.
 */
int kvmsnap_get_bitmap(int session, uint32_t region_id, uint64_t first_page, uint64_t nr_pages,
		       void *data);

/* Likewise, which are in the dirty set; and which were written since the target was set. */
int kvmsnap_get_dirty(int session, uint32_t region_id, uint64_t first_page, uint64_t nr_pages,
		      void *data);
int kvmsnap_get_written(int session, uint32_t region_id, uint64_t first_page, uint64_t nr_pages,
			void *data);

/* Checksums of @nr_pages pages as the target has them: see struct kvmsnap_get_hashes. */
int kvmsnap_get_hashes(int session, uint32_t region_id, uint64_t first_page, uint64_t nr_pages,
		       uint64_t *hashes, uint8_t key[16]);

/* Add 1 to an eventfd at the end of each pass; -1 for none. */
int kvmsnap_set_eventfd(int session, int fd);

/*
 * Open sessions of the whole machine, by generic netlink (CAP_NET_ADMIN).  @each is called
 * for every one; vm_pid is 0 when no VM is bound.  Nonzero from @each ends the list and is
 * returned.  -ENOENT: the module is not loaded, or the network namespace is not the initial one.
 */
struct kvmsnap_session_info {
	uint32_t id;
	pid_t owner_pid;
	pid_t vm_pid;
	struct kvmsnap_stats stats;
	bool has_map;		/* it tracks: @map is KVMSNAP_GENL_A_MAP */
	uint8_t map[KVMSNAP_GENL_MAP_CELLS];
	uint64_t seq;		/* of an event: its number, */
	uint32_t event;		/* of enum kvmsnap_genl_event, 0 when it is none */
};
int kvmsnap_list_sessions(int (*each)(const struct kvmsnap_session_info *info, void *data),
			  void *data);

/*
 * Wait for events of all sessions and call @each for every one; the first call, with NULL, tells
 * that nothing is missed from now on.  A gap in info->seq: events were lost.  Ends, and returns
 * the same, when @each returns nonzero; -EINTR after a signal.  Errors as kvmsnap_list_sessions().
 */
int kvmsnap_follow_events(int (*each)(const struct kvmsnap_session_info *info, void *data),
			  void *data);

#ifdef __cplusplus
}
#endif
#endif
