// SPDX-License-Identifier: GPL-2.0
#include "ram.h"
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int ram_open(struct ram *ram, const char *device, struct error *err)
{
	int ret;

	if (!device)
		device = "/dev/kvmsnap";
	ram->session = kvmsnap_open(device);
	if (ram->session < 0)
		return error_set(err, -ram->session, "%s: %s%s", device, strerror(-ram->session),
				 ram->session == -ENOENT ? "; load the module: modprobe kvmsnap" :
				 ram->session == -EACCES ? "; run as root" : "");
	ram->vm_fd = qemu_vm_fd(ram->qemu, err);
	if (ram->vm_fd < 0)
		return ram->vm_fd;
	ret = kvmsnap_bind_vm(ram->session, ram->vm_fd);
	if (ret)
		return error_set(err, -ret, "binding QEMU's VM: %s%s", strerror(-ret),
				 ret == -EPERM ? "; it needs CAP_SYS_PTRACE: run as root" : "");
	return 0;
}

static void free_copies(struct ram *ram)
{
	size_t i;

	for (i = 0; i < ram->nr; i++) {
		free(ram->blocks[i].copy);
		ram->blocks[i].copy = NULL;
	}
}

int ram_begin(struct ram *ram, uint32_t flags, struct error *err)
{
	int ret = kvmsnap_set_target_at(ram->session, ram->target->fd, ram->target->base, flags);

	free_copies(ram);
	ram->bytes = 0;
	ram->staged = false;
	if (ret)
		return error_set(err, -ret, "%s: %s", ram->target->path ? ram->target->path : "the target",
				 ret == -EOPNOTSUPP ?
				 "no direct I/O to a disk there (tmpfs, overlayfs, FUSE?); choose a file on a disk's file system or a block device" :
				 strerror(-ret));
	return 0;
}

void ram_close(struct ram *ram)
{
	if (ram->session >= 0)
		close(ram->session);
	if (ram->vm_fd >= 0)
		close(ram->vm_fd);
	free_copies(ram);
	free(ram->blocks);
}

/* Is each block that we know still where it was? */
static int check_blocks(const struct ram *ram, struct error *err)
{
	size_t i, j;

	for (i = 0; i < ram->nr; i++) {
		const struct snap_block *block = &ram->snap->blocks[i];

		for (j = 0; j < ram->qemu->nr_blocks; j++)
			if (!strcmp(ram->qemu->blocks[j].name, block->name))
				break;
		if (j == ram->qemu->nr_blocks || ram->qemu->blocks[j].used != block->length ||
		    ram->qemu->blocks[j].hva != ram->blocks[i].hva)
			return error_set(err, ESTALE, "RAM block %s has %s during the save; save again",
					 block->name, j == ram->qemu->nr_blocks ? "gone" : "changed");
	}
	return 0;
}

static bool is_known(const struct ram *ram, const char *name)
{
	size_t i;

	for (i = 0; i < ram->nr; i++)
		if (!strcmp(ram->snap->blocks[i].name, name))
			return true;
	return false;
}

static int add_region(struct ram *ram, const struct qemu_block *block, struct error *err)
{
	size_t i = ram->nr;
	int id = kvmsnap_add_region(ram->session, block->hva, block->used,
				    ram->snap->blocks[i].pages_offset,
				    snap_is_small(block->name, block->used) ? KVMSNAP_REGION_WHOLE : 0);

	ram->blocks[i] = (struct ram_block){ .region = id, .hva = block->hva };
	if (id >= 0 || id == -ENXIO) {
		ram->nr++;
		return 0;
	}
	return error_set(err, -id, "RAM block %s: %s", block->name,
			 id == -ENOSPC ? "the VM has more blocks than the module takes" : strerror(-id));
}

/* What the layout takes, in whole pages. */
static uint64_t room(const struct snapfile *snap)
{
	return (snap->devices_offset + SNAP_PAGE - 1) / SNAP_PAGE * SNAP_PAGE;
}

int ram_add_blocks(struct ram *ram, struct error *err)
{
	struct ram_block *blocks;
	size_t i, nr;
	int ret = qemu_list_blocks(ram->qemu, err);

	if (!ret)
		ret = check_blocks(ram, err);
	if (ret)
		return ret;
	nr = ram->qemu->nr_blocks;
	if (nr == ram->nr)
		return target_size(ram->target, room(ram->snap), err);
	blocks = realloc(ram->blocks, nr * sizeof(*blocks));
	if (!blocks)
		return error_set(err, ENOMEM, "out of memory");
	ram->blocks = blocks;

	for (i = 0; i < nr && !ret; i++)
		if (!is_known(ram, ram->qemu->blocks[i].name))
			ret = snap_add_block(ram->snap, ram->qemu->blocks[i].name,
					     ram->qemu->blocks[i].used, err);
	if (ret)
		return ret;
	snap_layout(ram->snap);
	ret = target_size(ram->target, room(ram->snap), err);
	for (i = 0; i < nr && !ret; i++)
		if (!is_known(ram, ram->qemu->blocks[i].name))
			ret = add_region(ram, &ram->qemu->blocks[i], err);
	return ret;
}

static const char *advice(int error)
{
	switch (error) {
	case ENOSPC:
	case EDQUOT:
		return "; free some space or choose another place";
	case EIO:
		return "; see the kernel log for the disk's errors";
	case ESRCH:
		return " (QEMU's process ended)";
	case EFAULT:
		return ": guest memory can't be read";
	case EBUSY:
		return ": guest memory is served by userfaultfd (postcopy?); wait for its end";
	case EDEADLK:
		return ": the guest's memory is mapped from this very file; choose another";
	default:
		return "";
	}
}

/* Write a block of which there is a copy. */
static int write_copy(struct ram *ram, size_t i, struct error *err)
{
	struct snap_block *to = &ram->snap->blocks[i];
	uint64_t page;
	int ret = snap_pwrite(ram->target->fd, ram->blocks[i].copy, (size_t)to->length,
			      ram->target->base + to->pages_offset);

	if (ret)
		return error_set(err, -ret, "writing RAM block %s: %s%s", to->name, strerror(-ret), advice(-ret));
	for (page = 0; page < to->length / SNAP_PAGE; page++)
		to->bitmap[page / 8] |= (uint8_t)(1 << page % 8);
	ram->bytes += to->length;
	return 0;
}

/* The module's blocks are there to be passed over. */
static bool any_region(const struct ram *ram)
{
	size_t i;

	for (i = 0; i < ram->nr; i++)
		if (ram->blocks[i].region >= 0)
			return true;
	return false;
}

/*
 * Wait for the pass, or for it to be staged, with progress.  A signal cancels it, and its end
 * is not waited for: what is in flight goes to a file that is removed, and must not hold the
 * guest.
 */
static int wait_pass(struct ram *ram, bool staged, const char *what, struct error *err)
{
	const int64_t step = 100 * 1000000LL;
	struct kvmsnap_wait wait;
	double began = now();
	int ret;

	for (;;) {
		ret = staged ? kvmsnap_wait_staged(ram->session, step, &wait) :
			       kvmsnap_wait(ram->session, step, &wait);
		if (*ram->interrupted) {
			kvmsnap_cancel(ram->session);
			return error_set(err, EINTR, "interrupted");
		}
		if (ret != -ETIME && ret != -EINTR)
			break;
		if (ram->deadline && now() > ram->deadline) {
			kvmsnap_cancel(ram->session);
			return error_set(err, ETIME, "the guest was stopped for longer than is allowed; see whether the disk hangs, or allow more with --allow-downtime");
		}
		if (kvmsnap_stats(ram->session, &ram->stats) == 0)
			progress_show(what, ram->stats.pages_done, ram->stats.pages_total,
				      ram->stats.bytes_written, began);
	}
	progress_clear();
	if (!ret)
		ret = kvmsnap_stats(ram->session, &ram->stats);
	if (ret)
		return error_set(err, -ret, "waiting for the module: %s", strerror(-ret));
	if (wait.error && wait.error_offset != UINT64_MAX)
		return error_set(err, wait.error, "writing RAM at offset %llu of the file: %s%s",
				 (unsigned long long)wait.error_offset, strerror(wait.error),
				 advice(wait.error));
	if (wait.error)
		return error_set(err, wait.error, "saving RAM: %s%s", strerror(wait.error),
				 advice(wait.error));
	ram->staged = wait.state == KVMSNAP_STATE_RUNNING;
	if (!ram->staged)
		ram->bytes += ram->stats.bytes_written;
	return 0;
}

int ram_pass(struct ram *ram, uint32_t kind, uint32_t flags, const char *what, struct error *err)
{
	struct kvmsnap_queue how = {
		.kind = kind, .flags = flags, .bytes_per_second = ram->bandwidth,
	};
	double began = now();
	int ret;

	if (!any_region(ram))
		return 0;
	ret = kvmsnap_queue(ram->session, &how, NULL);
	if (ret)
		return error_set(err, -ret, "starting the save: %s%s", strerror(-ret), advice(-ret));
	ret = wait_pass(ram, flags & KVMSNAP_QUEUE_STAGE, what, err);
	if (!ret && !ram->any_pass) {
		ram->first = ram->stats;
		ram->any_pass = true;
	}
	ram->seconds = now() - began;
	return ret;
}

int ram_copy_rest(struct ram *ram, struct error *err)
{
	size_t i;
	int ret = 0;

	for (i = 0; i < ram->nr && !ret; i++) {
		uint64_t bytes = ram->snap->blocks[i].length;

		if (ram->blocks[i].region >= 0)
			continue;
		if (!ram->blocks[i].copy)
			ram->blocks[i].copy = malloc((size_t)bytes);
		if (!ram->blocks[i].copy)
			return error_set(err, ENOMEM, "out of memory");
		ret = qemu_read_memory(ram->qemu, ram->blocks[i].hva, ram->blocks[i].copy, (size_t)bytes, err);
	}
	return ret;
}

int ram_settle(struct ram *ram, struct error *err)
{
	return ram->staged ? wait_pass(ram, false, "the stage", err) : 0;
}

int ram_finish(struct ram *ram, bool written, struct error *err)
{
	int ret = ram_settle(ram, err);
	size_t i;

	for (i = 0; i < ram->nr && !ret; i++) {
		struct snap_block *block = &ram->snap->blocks[i];

		if (ram->blocks[i].region < 0) {
			ret = write_copy(ram, i, err);
			continue;
		}
		ret = (written ? kvmsnap_get_written : kvmsnap_get_bitmap)
			(ram->session, (uint32_t)ram->blocks[i].region, 0,
			 block->length / SNAP_PAGE, block->bitmap);
		if (ret)
			error_set(err, -ret, "reading the module's bitmap: %s", strerror(-ret));
	}
	free_copies(ram);
	return ret;
}
