/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef _UAPI_LINUX_KVMSNAP_H
#define _UAPI_LINUX_KVMSNAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: kvmsnap ioctl interface
 *
 * open("/dev/kvmsnap") makes a session.  The session writes memory of one virtual
 * machine to fixed offsets of one target, by direct I/O from kernel workers:
 *
 *   BIND_VM, SET_TARGET, ADD_REGION...   what is saved, and where to
 *   QUEUE                                starts a pass and returns
 *   WAIT, poll(), eventfd                tell when the pass is over
 *   GET_BITMAP                           which pages are in the target
 *
 * A VM is saved while it runs by passes over what is dirty, until what is left is little,
 * and a last one with the VM stopped:
 *
 *   TRACK                                all pages are dirty; from now on writes are seen
 *   HARVEST, QUEUE(PASS_DIRTY), WAIT     as often as worthwhile, with the VM running
 *   the VMM stops the vCPUs and its devices, saves the state of both
 *   HARVEST                              what the vCPUs wrote last
 *   QUEUE(PASS_DIRTY, STOPPED), WAIT     now the target equals memory
 *
 * With a stage the VM need not wait for the target at the end:
 *
 *   SET_STAGE                            before, as large as what is left is to be
 *   QUEUE(PASS_DIRTY, STAGE), WAIT(STAGED)   what the target lacks is copied
 *   the VMM lets the VM run
 *   WAIT                                 the target equals what memory was at the stop
 *
 * A later snapshot of a VM that is still tracked costs what has changed:
 *
 *   SET_TARGET(CURRENT)                  a file that has all that the last one has
 *   QUEUE(PASS_DIRTY)...                 as above
 *
 * and SET_TARGET(BEFORE), to begin again, when that fails.
 *
 * Closing the last descriptor of the session ends it: no further write is started, and
 * what is in flight finishes by itself.  The VM is never stopped or changed.
 *
 * Every structure starts with __u32 size, set by the caller to the size it knows.  A
 * kernel that knows less accepts a larger structure when its unknown tail is zero; one
 * that knows more treats the missing tail as zero.  Reserved fields must be zero.
 *
 * Errors that every ioctl may return:
 *  - ENOTTY: unknown ioctl number.
 *  - E2BIG: the unknown tail of the structure is not zero, or size is over 4096.
 *  - EOPNOTSUPP: a known field holds a flag or value that this kernel doesn't know.
 *  - EINVAL: size is too small, a reserved field isn't zero, or a field makes no sense.
 *  - EFAULT: the structure, or memory that it points to, can't be accessed.
 *  - EINTR: a fatal signal came while the session was busy in another ioctl.
 * Other errors are listed with the ioctl.
 *
 * A *page* here is always 4096 bytes; *pages* count these.  Lengths and offsets are in
 * bytes.  Ranges are half open.
 */

#define KVMSNAP_ABI_VERSION	1
#define KVMSNAP_PAGE_SIZE	4096
#define KVMSNAP_TYPE		0xC7

enum {
	KVMSNAP_CMD_INFO = 0x00,
	KVMSNAP_CMD_BIND_VM,
	KVMSNAP_CMD_SET_TARGET,
	KVMSNAP_CMD_ADD_REGION,
	KVMSNAP_CMD_QUEUE,
	KVMSNAP_CMD_WAIT,
	KVMSNAP_CMD_CANCEL,
	KVMSNAP_CMD_STATS,
	KVMSNAP_CMD_GET_BITMAP,
	KVMSNAP_CMD_SET_EVENTFD,
	KVMSNAP_CMD_TRACK,
	KVMSNAP_CMD_HARVEST,
	KVMSNAP_CMD_MARK_DIRTY,
	KVMSNAP_CMD_SET_STAGE,
	KVMSNAP_CMD_SET_PHASE,
	KVMSNAP_CMD_GET_HASHES,
};

/**
 * enum kvmsnap_state - what a session is doing
 * @KVMSNAP_STATE_IDLE: no pass is running; the last one, if any, succeeded
 * @KVMSNAP_STATE_RUNNING: a pass is running
 * @KVMSNAP_STATE_FAILED: the last pass failed or was cancelled, and none of its I/O is in
 *	flight any more.  The target is not to be used.  SET_TARGET leads back to IDLE.
 * @KVMSNAP_STATE_DEAD: the VM's process is gone; nothing leads out
 */
enum kvmsnap_state {
	KVMSNAP_STATE_IDLE = 0,
	KVMSNAP_STATE_RUNNING,
	KVMSNAP_STATE_FAILED,
	KVMSNAP_STATE_DEAD,
};

/**
 * struct kvmsnap_info - ioctl(KVMSNAP_INFO): what this module is
 * @size: sizeof(struct kvmsnap_info)
 * @flags: must be 0
 * @abi_version: out, KVMSNAP_ABI_VERSION
 * @page_size: out, KVMSNAP_PAGE_SIZE
 * @max_regions: out, regions a session may have
 * @max_request_bytes: out, size of the largest write that is issued
 * @max_requests: out, writes that a session may have in flight
 * @reserved: out, 0
 * @max_bytes: out, sum of the lengths of a session's regions
 */
struct kvmsnap_info {
	__u32 size;
	__u32 flags;
	__u32 abi_version;
	__u32 page_size;
	__u32 max_regions;
	__u32 max_request_bytes;
	__u32 max_requests;
	__u32 reserved;
	__aligned_u64 max_bytes;
};

#define KVMSNAP_INFO _IO(KVMSNAP_TYPE, KVMSNAP_CMD_INFO)

/**
 * struct kvmsnap_bind_vm - ioctl(KVMSNAP_BIND_VM): name the VM to be saved, once
 * @size: sizeof(struct kvmsnap_bind_vm)
 * @flags: must be 0
 * @vm_fd: a KVM VM descriptor (what KVM_CREATE_VM returned, or a duplicate)
 * @reserved: must be 0
 *
 * The VM of the caller's own process needs no privilege.  Another process's needs
 * CAP_SYS_PTRACE in the user namespace of that process's memory; in the initial one on
 * kernels where a module can't tell that (7.3).
 *
 * Errors: EBADF not an open descriptor; ENXIO not a KVM VM; EPERM another process's VM
 * without the capability; EOPNOTSUPP it has private memory, which nobody can read (SEV-SNP, TDX);
 * EBUSY a VM is bound already; ESRCH its process is gone; ENOMEM.
 */
struct kvmsnap_bind_vm {
	__u32 size;
	__u32 flags;
	__s32 vm_fd;
	__u32 reserved;
};

#define KVMSNAP_BIND_VM _IO(KVMSNAP_TYPE, KVMSNAP_CMD_BIND_VM)

/**
 * enum kvmsnap_target_flags - what of the last target the new one has
 * @KVMSNAP_TARGET_CURRENT: all that is there now, as a reflink of it does, or the next part of a
 *	file that pages are looked up in from its newest part to its oldest.  Nothing gets
 *	dirty, and what is dirty stays so: the next generation of a snapshot.
 * @KVMSNAP_TARGET_BEFORE: what there was when it was set: a generation has failed, or is not
 *	wanted.  What was written to it is dirty again.
 *
 * One of them at most.  Both need tracking, and CURRENT a target of which no pass failed.
 */
enum kvmsnap_target_flags {
	KVMSNAP_TARGET_CURRENT = 1 << 0,
	KVMSNAP_TARGET_BEFORE = 1 << 1,
};

/**
 * struct kvmsnap_set_target - ioctl(KVMSNAP_SET_TARGET): name the file to write to
 * @size: sizeof(struct kvmsnap_set_target)
 * @flags: of enum kvmsnap_target_flags
 * @fd: a regular file or a block device, open for writing
 * @reserved: must be 0
 * @offset: where the target begins in the file, page aligned: the regions' offsets count from here
 *
 * What is not written must read as zeros already: a new file does, a block device is
 * to be zeroed first.  A new target starts empty (all bits that GET_BITMAP tells are
 * clear, all pages dirty), unless @flags say what it has, and takes a session out of
 * KVMSNAP_STATE_FAILED.  KVMSNAP_BITMAP_WRITTEN is clear in any case.
 *
 * Errors: EBADF not open, or not for writing; EINVAL O_APPEND, or the alignment of @offset, or
 * both flags; ENXIO neither regular file nor block device; EOPNOTSUPP no direct I/O
 * there, or memory-backed (tmpfs), FUSE or overlayfs; EROFS; ETXTBSY in use as swap; EBUSY a
 * pass is running; ESRCH VM's process gone; ENODATA a flag without tracking, or without a target
 * before; in KVMSNAP_STATE_FAILED, with CURRENT, the error that led there.
 */
struct kvmsnap_set_target {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 reserved;
	__aligned_u64 offset;
};

#define KVMSNAP_SET_TARGET _IO(KVMSNAP_TYPE, KVMSNAP_CMD_SET_TARGET)

/**
 * enum kvmsnap_region_flags
 * @KVMSNAP_REGION_WHOLE: write zero and untouched pages too
 */
enum kvmsnap_region_flags {
	KVMSNAP_REGION_WHOLE = 1 << 0,
};

/**
 * struct kvmsnap_add_region - ioctl(KVMSNAP_ADD_REGION): give a range of memory its place
 * @size: sizeof(struct kvmsnap_add_region)
 * @flags: of enum kvmsnap_region_flags
 * @hva: start of the range in the VM process's address space, page aligned
 * @length: bytes, page aligned, not 0
 * @offset: where its first byte lies in the target, page aligned
 * @region_id: out, names the region in other ioctls; counted from 0
 * @reserved: must be 0
 *
 * Page N of the region has its place at @offset + N * 4096 and no other.  For another
 * process's VM the first and the last page must belong to memslots of the VM (what lies
 * between need not: a VGA window cut out of RAM is still that RAM).
 *
 * Errors: EINVAL alignment, length 0 or wrap-around; EEXIST overlaps another region in
 * memory or in the target; ENXIO not in the VM's memslots; ENOSPC max_regions reached;
 * EOVERFLOW max_bytes exceeded; ENODEV no VM bound; ESRCH VM's process
 * gone; EBUSY a pass is running; ENOMEM.
 */
struct kvmsnap_add_region {
	__u32 size;
	__u32 flags;
	__aligned_u64 hva;
	__aligned_u64 length;
	__aligned_u64 offset;
	__u32 region_id;
	__u32 reserved;
};

#define KVMSNAP_ADD_REGION _IO(KVMSNAP_TYPE, KVMSNAP_CMD_ADD_REGION)

/**
 * struct kvmsnap_range - pages of a region
 * @region_id: what ADD_REGION returned
 * @reserved: must be 0
 * @first_page: index in the region
 * @nr_pages: not 0
 */
struct kvmsnap_range {
	__u32 region_id;
	__u32 reserved;
	__aligned_u64 first_page;
	__aligned_u64 nr_pages;
};

/**
 * enum kvmsnap_pass_kind - which pages a pass is over
 * @KVMSNAP_PASS_ALL: all of every region
 * @KVMSNAP_PASS_RANGES: those named by kvmsnap_queue.ranges; they may overlap
 * @KVMSNAP_PASS_DIRTY: those in the dirty set, which they leave before they are read
 */
enum kvmsnap_pass_kind {
	KVMSNAP_PASS_ALL = 0,
	KVMSNAP_PASS_RANGES = 1,
	KVMSNAP_PASS_DIRTY = 2,
};

/**
 * enum kvmsnap_queue_flags
 * @KVMSNAP_QUEUE_STOPPED: nothing writes memory until the pass is over, so that pages need
 *	not be copied before they are written.  Only tracking copies; without it the flag
 *	changes nothing.
 * @KVMSNAP_QUEUE_COMPARE: leave out pages of the pass whose bytes the target holds already.
 *	Needs KVMSNAP_TRACK_HASH.  With KVMSNAP_PASS_ALL it finds whatever has changed,
 *	whoever changed it.
 * @KVMSNAP_QUEUE_STAGE: copy to kernel memory first what is to be written.  Nothing writes
 *	memory until WAIT with KVMSNAP_WAIT_STAGED has returned; after that anything may, and
 *	the target gets what memory was before.  What the stage (SET_STAGE) has no room for is
 *	copied as room in flight allows, at the target's pace.
 */
enum kvmsnap_queue_flags {
	KVMSNAP_QUEUE_STOPPED = 1 << 0,
	KVMSNAP_QUEUE_COMPARE = 1 << 1,
	KVMSNAP_QUEUE_STAGE = 1 << 2,
};

#define KVMSNAP_MAX_RANGES	65536

/**
 * struct kvmsnap_queue - ioctl(KVMSNAP_QUEUE): start a pass
 * @size: sizeof(struct kvmsnap_queue)
 * @flags: of enum kvmsnap_queue_flags
 * @kind: of enum kvmsnap_pass_kind
 * @nr_ranges: entries at @ranges, 1 to KVMSNAP_MAX_RANGES, for PASS_RANGES; otherwise 0
 * @ranges: address of an array of struct kvmsnap_range, for PASS_RANGES; otherwise 0
 * @pass: out, number of this pass, counted from 1
 * @bytes_per_second: the most to write, on average since the pass began, apart from 2 MiB a
 *	worker (a CPU, 16 at most) at the beginning; 0 for no limit
 *
 * Writes every page of the pass that has content.  A page that is untouched or all zeros
 * is not written, unless it was written to this target before (zeros are written then)
 * or its region has KVMSNAP_REGION_WHOLE.  No guest page is allocated, no KSM page
 * un-merged.  The pass reads memory as it is then: for an exact image the guest, and
 * everything else that writes its memory, is stopped from QUEUE until the pass is over.
 * With tracking, what is written during the pass is in the dirty set after it.  When the
 * pass fails, so is every page of it that is not in the target, as far as it has come: what
 * only a comparison of everything finds, another one is to find.
 *
 * Errors: ENODEV no VM, target or region; ENODATA PASS_DIRTY or COMPARE without the
 * tracking they need, or a memslot under a region doesn't log dirty pages; ESTALE somebody
 * else has harvested the dirty rings, what was written is not known any more, and a new
 * session is needed; EOPNOTSUPP logging leaves pages unprotected; ENOMEM; EBUSY a pass is
 * running; EFBIG the target, or the caller's RLIMIT_FSIZE, ends before the last region;
 * EDEADLK the target is mapped as guest memory; ESRCH VM's process gone; ENOENT a range names
 * no region; ERANGE it ends outside; EINVAL ranges overlap so much that they have more than
 * four times the pages of all regions; in KVMSNAP_STATE_FAILED the error that led there.
 */
struct kvmsnap_queue {
	__u32 size;
	__u32 flags;
	__u32 kind;
	__u32 nr_ranges;
	__aligned_u64 ranges;
	__aligned_u64 pass;
	__aligned_u64 bytes_per_second;
};

#define KVMSNAP_QUEUE _IO(KVMSNAP_TYPE, KVMSNAP_CMD_QUEUE)

/**
 * enum kvmsnap_wait_flags
 * @KVMSNAP_WAIT_STAGED: return earlier, when a pass with KVMSNAP_QUEUE_STAGE looks at memory
 *	no more; @state is then KVMSNAP_STATE_RUNNING still, and a WAIT for the end is to follow.
 *	From here on the pass succeeds also when the VM's process ends (@state is
 *	KVMSNAP_STATE_DEAD then, and @error 0).  poll() and the eventfd don't tell.
 */
enum kvmsnap_wait_flags {
	KVMSNAP_WAIT_STAGED = 1 << 0,
};

/**
 * struct kvmsnap_wait - ioctl(KVMSNAP_WAIT): wait for the end of the pass
 * @size: sizeof(struct kvmsnap_wait)
 * @flags: of enum kvmsnap_wait_flags
 * @timeout_ns: nanoseconds; 0 only asks, negative waits without limit
 * @state: out, enum kvmsnap_state
 * @error: out, errno (positive) of the first failure, 0 when there was none:
 *	ECANCELED after CANCEL; ESRCH the VM's process is gone; EFAULT memory that can't
 *	be read; EBUSY memory waits for userfaultfd; EOPNOTSUPP memory is of a FUSE file;
 *	EHWPOISON memory has failed; ENOMEM; else what the target's I/O returned, and EIO also
 *	when memory is a file's that can't be read
 * @error_offset: out, offset in the target's file that @error is about; ~0 when it is about none
 * @pass: out, number of the pass
 *
 * Returns 0 when no pass is running any more, or it is staged, also when it failed: look at
 * @error.
 * Errors: ETIME the pass is still running (out fields are valid); EINTR a signal came, of
 * whatever kind.
 */
struct kvmsnap_wait {
	__u32 size;
	__u32 flags;
	__s64 timeout_ns;
	__u32 state;
	__s32 error;
	__aligned_u64 error_offset;
	__aligned_u64 pass;
};

#define KVMSNAP_WAIT _IO(KVMSNAP_TYPE, KVMSNAP_CMD_WAIT)

/**
 * struct kvmsnap_cancel - ioctl(KVMSNAP_CANCEL): end the running pass early
 * @size: sizeof(struct kvmsnap_cancel)
 * @flags: must be 0
 *
 * Returns at once; the pass ends with ECANCELED when what is in flight is complete.
 * Nothing happens when no pass is running.
 */
struct kvmsnap_cancel {
	__u32 size;
	__u32 flags;
};

#define KVMSNAP_CANCEL _IO(KVMSNAP_TYPE, KVMSNAP_CMD_CANCEL)

/**
 * struct kvmsnap_stats - ioctl(KVMSNAP_STATS): figures of the running or last pass
 * @size: sizeof(struct kvmsnap_stats)
 * @flags: must be 0
 * @state: out, enum kvmsnap_state
 * @error: out, as in struct kvmsnap_wait; to others, by netlink, also ESHUTDOWN: it was closed
 * @pass: out, number of the pass
 * @pages_total: out, pages that the pass is over
 * @pages_done: out, pages dealt with so far, written or not
 * @pages_written: out
 * @pages_zero: out, pages read, found all zeros and not written
 * @pages_untouched: out, pages that the guest has no memory for
 * @bytes_written: out
 * @requests: out, writes completed
 * @in_flight: out, writes in flight now
 * @max_in_flight: out, the most that were at a time
 * @elapsed_ns: out, since the pass began, until now or its end
 * @memory: out, bytes of kernel memory the session holds: request pool, copies, bitmaps,
 *	hashes, the stage, the harvest's buffer, or the observer's, 32 bytes a ring entry
 * @pages_dirty: out, pages in the dirty set now; those of ring entries after a harvest
 * @pages_same: out, pages of the pass, or compared by it, that the target held already
 * @harvests: out, looks at the dirty rings since TRACK, also those that took nothing
 * @harvested: out, ring entries taken, or in observer mode seen to be pushed, since TRACK
 * @all_dirty: out, how often all pages were marked: at TRACK, when memslots changed, and when
 *	an observer missed an event
 * @pages_staged: out, pages of the pass that were copied to the stage
 * @phase: out, as set by SET_PHASE, KVMSNAP_PHASE_NONE before
 * @reserved: out, 0
 * @pause_ns: out, likewise, 0 before
 */
struct kvmsnap_stats {
	__u32 size;
	__u32 flags;
	__u32 state;
	__s32 error;
	__aligned_u64 pass;
	__aligned_u64 pages_total;
	__aligned_u64 pages_done;
	__aligned_u64 pages_written;
	__aligned_u64 pages_zero;
	__aligned_u64 pages_untouched;
	__aligned_u64 bytes_written;
	__aligned_u64 requests;
	__u32 in_flight;
	__u32 max_in_flight;
	__aligned_u64 elapsed_ns;
	__aligned_u64 memory;
	__aligned_u64 pages_dirty;
	__aligned_u64 pages_same;
	__aligned_u64 harvests;
	__aligned_u64 harvested;
	__aligned_u64 all_dirty;
	__aligned_u64 pages_staged;
	__u32 phase;
	__u32 reserved;
	__aligned_u64 pause_ns;
};

#define KVMSNAP_STATS _IO(KVMSNAP_TYPE, KVMSNAP_CMD_STATS)

/**
 * enum kvmsnap_bitmap_flags - another bitmap than that of what is in the target; one at most
 * @KVMSNAP_BITMAP_DIRTY: the dirty set
 * @KVMSNAP_BITMAP_WRITTEN: what was written since SET_TARGET
 */
enum kvmsnap_bitmap_flags {
	KVMSNAP_BITMAP_DIRTY = 1 << 0,
	KVMSNAP_BITMAP_WRITTEN = 1 << 1,
};

/**
 * struct kvmsnap_get_bitmap - ioctl(KVMSNAP_GET_BITMAP): which pages are in the target
 * @size: sizeof(struct kvmsnap_get_bitmap)
 * @flags: of enum kvmsnap_bitmap_flags
 * @region_id: what ADD_REGION returned
 * @reserved: must be 0
 * @first_page: first page asked for, a multiple of 64
 * @nr_pages: pages asked for, not 0
 * @data: address of ceil(@nr_pages / 64) * 8 bytes: bit N % 8 of byte N / 8 is set when
 *	page @first_page + N was written; bits past the end are 0
 *
 * This is the bitmap of QEMU's mapped-ram format (migration/ram.c, ram_save_file_bmap).
 * Errors: ENOENT no such region; ERANGE outside of it; ENODATA a flag without tracking; EBUSY a
 * pass is running.
 */
struct kvmsnap_get_bitmap {
	__u32 size;
	__u32 flags;
	__u32 region_id;
	__u32 reserved;
	__aligned_u64 first_page;
	__aligned_u64 nr_pages;
	__aligned_u64 data;
};

#define KVMSNAP_GET_BITMAP _IO(KVMSNAP_TYPE, KVMSNAP_CMD_GET_BITMAP)

/**
 * struct kvmsnap_set_eventfd - ioctl(KVMSNAP_SET_EVENTFD): signal the end of each pass
 * @size: sizeof(struct kvmsnap_set_eventfd)
 * @flags: must be 0
 * @fd: an eventfd that 1 is added to when a pass is over or the VM's process is gone;
 *	-1 for none
 * @reserved: must be 0
 *
 * poll() on the session tells the same: POLLIN when a pass is over and its end was not
 * yet seen by WAIT, POLLERR when it failed, POLLHUP when the VM's process is gone.
 * Errors: EBADF not open; EINVAL not an eventfd.
 */
struct kvmsnap_set_eventfd {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 reserved;
};

#define KVMSNAP_SET_EVENTFD _IO(KVMSNAP_TYPE, KVMSNAP_CMD_SET_EVENTFD)

/**
 * enum kvmsnap_track_mode - how writes by vCPUs are seen
 * @KVMSNAP_TRACK_OWNER: through the VM's dirty ring, which this session harvests and
 *	resets; nobody else may.  Only in the VMM's own process.
 * @KVMSNAP_TRACK_COMPARE: not at all: QUEUE_COMPARE finds what has changed
 * @KVMSNAP_TRACK_OBSERVER: through KVM's events about the VM's dirty ring, which the VMM
 *	harvests and resets, one reset at a time.  Any VM that BIND_VM takes.
 */
enum kvmsnap_track_mode {
	KVMSNAP_TRACK_OWNER = 1,
	KVMSNAP_TRACK_COMPARE = 2,
	KVMSNAP_TRACK_OBSERVER = 3,
};

/**
 * enum kvmsnap_track_flags
 * @KVMSNAP_TRACK_HASH: keep a keyed hash of what the target holds of each page, 8 bytes a
 *	page of kernel memory, and copy pages before they are written while the VM runs.
 *	Required by KVMSNAP_TRACK_COMPARE.
 */
enum kvmsnap_track_flags {
	KVMSNAP_TRACK_HASH = 1 << 0,
};

/**
 * struct kvmsnap_track - ioctl(KVMSNAP_TRACK): follow the writes to memory, once
 * @size: sizeof(struct kvmsnap_track)
 * @flags: of enum kvmsnap_track_flags
 * @mode: of enum kvmsnap_track_mode
 * @reserved: must be 0
 *
 * Makes all pages dirty.  From then on a page that is written comes back into the dirty set:
 *  - written by a vCPU, in owner mode: at the next harvest.  The module harvests when asked to
 *    by HARVEST, and when a ring has half of what makes its vCPU leave the guest.  Not more
 *    often: after each the vCPUs fault again at every page that they write, so large rings
 *    (65536 entries, 1 MiB a vCPU) cost the guest the least.
 *  - written by a vCPU, in observer mode: when the VMM has reset the ring's entry, and the
 *    same ring once more, or at HARVEST.
 *  - written by the VMM itself or by the kernel on its behalf (device emulation, vhost):
 *    when the VMM says so by MARK_DIRTY.
 *  - replaced or moved by the host (reclaim, migration, KSM), or dropped by the VMM from
 *    private memory (MADV_DONTNEED): by itself.  What a VMM drops from a file (hole punch,
 *    truncation) it marks: the kernel may zero it in place and tell nobody.
 * A change of the memslots makes all pages dirty.  Tracking lasts as long as the session.
 * The rings' memory is the VMM's: one that writes to it spoils its own snapshot.
 *
 * Owner mode wants, before: KVM_CAP_DIRTY_LOG_RING (or _ACQ_REL) enabled, and
 * KVM_MEM_LOG_DIRTY_PAGES on every memslot that a region has a part in, set again when the
 * VMM makes one; KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 without KVM_DIRTY_LOG_INITIALLY_SET.
 * See Documentation/virt/kvm/api.rst in the kernel, sections 8.29 and 4.35.
 *
 * Observer mode wants the ring, and that logging is switched on after TRACK; slots that log
 * before are dirty at each HARVEST.  PASS_DIRTY fails with ENODATA until all of them log.
 * vCPUs that are made after TRACK make all pages dirty at each HARVEST.  From Linux 6.16 on a
 * signal cuts KVM_RESET_DIRTY_RINGS short, and it leaves the last pages unprotected: that is
 * noticed (all pages are dirty then), but not once another reset has followed before the vCPU
 * made an entry.  Whoever resets the rings blocks signals meanwhile, or ends when that fails.
 *
 * Errors: ENODEV no VM bound; EALREADY tracking already; EPERM owner mode and the VM is
 * another process's; EOPNOTSUPP the VM has no dirty ring, logging leaves pages
 * unprotected (KVM_DIRTY_LOG_INITIALLY_SET), or KVM tells of no events; ENODATA owner mode
 * and a memslot under a region doesn't log dirty pages; ESRCH VM's process gone; EBUSY a
 * pass is running, another session owns the VM's rings (for one that was closed it
 * waits), or 16 sessions observe them; ENOMEM.
 */
struct kvmsnap_track {
	__u32 size;
	__u32 flags;
	__u32 mode;
	__u32 reserved;
};

#define KVMSNAP_TRACK _IO(KVMSNAP_TYPE, KVMSNAP_CMD_TRACK)

/**
 * struct kvmsnap_harvest - ioctl(KVMSNAP_HARVEST): empty the dirty rings
 * @size: sizeof(struct kvmsnap_harvest)
 * @flags: must be 0
 * @harvested: out, ring entries taken since TRACK
 * @pages_dirty: out, pages in the dirty set now
 *
 * Returns when a harvest that began after the call is over: all that was in the rings then
 * is in the dirty set, and the rings have room.  Called by a vCPU's thread after
 * KVM_EXIT_DIRTY_RING_FULL, before KVM_RUN; before each pass while the vCPUs run; and once with
 * every vCPU out of KVM_RUN, and after the last ioctl on a vCPU, before the last pass (a
 * processor may log writes in a buffer of its own that KVM empties when the vCPU comes out).
 *
 * In observer mode nothing is taken out of the rings.  What may be written again without being
 * told of is made dirty, each time: called once before the last pass, as above.
 *
 * Errors: ENODATA neither owner nor observer mode, or, in observer mode, a memslot under a
 * region doesn't log dirty pages; ESTALE somebody else has harvested the rings (as QUEUE);
 * EOPNOTSUPP logging leaves pages unprotected; ESRCH VM's process gone; EINTR a fatal signal.
 */
struct kvmsnap_harvest {
	__u32 size;
	__u32 flags;
	__aligned_u64 harvested;
	__aligned_u64 pages_dirty;
};

#define KVMSNAP_HARVEST _IO(KVMSNAP_TYPE, KVMSNAP_CMD_HARVEST)

/**
 * struct kvmsnap_hva_range - bytes in the VM process's address space
 * @hva: first
 * @length: bytes
 */
struct kvmsnap_hva_range {
	__aligned_u64 hva;
	__aligned_u64 length;
};

/**
 * struct kvmsnap_mark_dirty - ioctl(KVMSNAP_MARK_DIRTY): tell of writes that no ring sees
 * @size: sizeof(struct kvmsnap_mark_dirty)
 * @flags: must be 0
 * @nr_ranges: 1 to KVMSNAP_MAX_RANGES
 * @reserved: must be 0
 * @ranges: address of an array of struct kvmsnap_hva_range
 *
 * To be called after the last byte is stored, and before the last pass is queued.  What
 * lies in no region is ignored.  May be called while a pass is running.
 *
 * Errors: ENODATA not tracking; EINVAL a range wraps around, or ranges overlap so much that they
 * have more than four times the pages of all regions.
 */
struct kvmsnap_mark_dirty {
	__u32 size;
	__u32 flags;
	__u32 nr_ranges;
	__u32 reserved;
	__aligned_u64 ranges;
};

#define KVMSNAP_MARK_DIRTY _IO(KVMSNAP_TYPE, KVMSNAP_CMD_MARK_DIRTY)

#define KVMSNAP_MAX_STAGE	(64ULL << 30)

/**
 * struct kvmsnap_set_stage - ioctl(KVMSNAP_SET_STAGE): set memory aside for KVMSNAP_QUEUE_STAGE
 * @size: sizeof(struct kvmsnap_set_stage)
 * @flags: must be 0
 * @bytes: of guest memory that the stage holds, up to KVMSNAP_MAX_STAGE, rounded up to pages;
 *	0, as at the start, for none.  Up to 63 pages a worker (a CPU, 16 at most) stay unused
 *
 * Allocates all of it, charged to the caller's memory cgroup, in place of what there was.  On
 * ENOMEM and EINTR there is no stage.  Errors: EOVERFLOW too large; ENOMEM; EBUSY a pass
 * is running; ESRCH VM's process gone.
 */
struct kvmsnap_set_stage {
	__u32 size;
	__u32 flags;
	__aligned_u64 bytes;
};

#define KVMSNAP_SET_STAGE _IO(KVMSNAP_TYPE, KVMSNAP_CMD_SET_STAGE)

/**
 * enum kvmsnap_phase - how far the save is that a session is for
 * @KVMSNAP_PHASE_NONE: nobody said
 * @KVMSNAP_PHASE_LIVE: passes, and the VM runs; pause_ns is what its stop would take now
 * @KVMSNAP_PHASE_STOPPED: the VM is stopped; pause_ns is what that is expected to take
 * @KVMSNAP_PHASE_RESUMED: the VM runs again, and the rest is written; pause_ns is what all its
 *	stops took
 * @KVMSNAP_PHASE_DONE: the snapshot is whole; pause_ns likewise
 * @KVMSNAP_PHASE_FAILED: it was given up; pause_ns likewise
 */
enum kvmsnap_phase {
	KVMSNAP_PHASE_NONE = 0,
	KVMSNAP_PHASE_LIVE,
	KVMSNAP_PHASE_STOPPED,
	KVMSNAP_PHASE_RESUMED,
	KVMSNAP_PHASE_DONE,
	KVMSNAP_PHASE_FAILED,
};

/**
 * struct kvmsnap_set_phase - ioctl(KVMSNAP_SET_PHASE): tell how far the save is
 * @size: sizeof(struct kvmsnap_set_phase)
 * @flags: must be 0
 * @phase: of enum kvmsnap_phase, not KVMSNAP_PHASE_NONE
 * @reserved: must be 0
 * @pause_ns: nanoseconds, see the phases; 0 when it is not known
 *
 * Changes nothing but what STATS, netlink (an event) and trace events show to others.
 */
struct kvmsnap_set_phase {
	__u32 size;
	__u32 flags;
	__u32 phase;
	__u32 reserved;
	__aligned_u64 pause_ns;
};

#define KVMSNAP_SET_PHASE _IO(KVMSNAP_TYPE, KVMSNAP_CMD_SET_PHASE)

/**
 * struct kvmsnap_get_hashes - ioctl(KVMSNAP_GET_HASHES): checksums of what the target holds
 * @size: sizeof(struct kvmsnap_get_hashes)
 * @flags: must be 0
 * @region_id: what ADD_REGION returned
 * @reserved: must be 0
 * @first_page: first page asked for
 * @nr_pages: pages asked for, not 0
 * @data: address of @nr_pages __u64: of each page's 4096 bytes in the target, zeros included,
 *	SipHash-2-4 with @key, or 1 where that is 0; 0 for a page of which it is not known: no pass
 *	was over it since SET_TARGET, a write failed, or it is dirty by KVMSNAP_TARGET_BEFORE
 * @key: out, 16 bytes; chosen by chance at TRACK
 *
 * Errors: ENOENT no such region; ERANGE outside of it; ENODATA without KVMSNAP_TRACK_HASH;
 * EBUSY a pass is running.
 */
struct kvmsnap_get_hashes {
	__u32 size;
	__u32 flags;
	__u32 region_id;
	__u32 reserved;
	__aligned_u64 first_page;
	__aligned_u64 nr_pages;
	__aligned_u64 data;
	__u8 key[16];
};

#define KVMSNAP_GET_HASHES _IO(KVMSNAP_TYPE, KVMSNAP_CMD_GET_HASHES)

#endif
