// SPDX-License-Identifier: LGPL-2.1-or-later
/* Each call is one ioctl; see kvmsnap.h and <linux/kvmsnap.h>. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "kvmsnap.h"

static int call(int session, unsigned long number, void *arg)
{
	return ioctl(session, number, arg) < 0 ? -errno : 0;
}

int kvmsnap_open(const char *path)
{
	int fd = open(path ? path : "/dev/kvmsnap", O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int kvmsnap_info(int session, struct kvmsnap_info *info)
{
	*info = (struct kvmsnap_info){ .size = sizeof(*info) };
	return call(session, KVMSNAP_INFO, info);
}

int kvmsnap_bind_vm(int session, int vm_fd)
{
	struct kvmsnap_bind_vm arg = { .size = sizeof(arg), .vm_fd = vm_fd };

	return call(session, KVMSNAP_BIND_VM, &arg);
}

int kvmsnap_set_target(int session, int fd)
{
	return kvmsnap_set_target_at(session, fd, 0, 0);
}

int kvmsnap_set_target_at(int session, int fd, uint64_t offset, uint32_t flags)
{
	struct kvmsnap_set_target arg = {
		.size = sizeof(arg), .flags = flags, .fd = fd, .offset = offset,
	};

	return call(session, KVMSNAP_SET_TARGET, &arg);
}

int kvmsnap_add_region(int session, uint64_t hva, uint64_t length, uint64_t offset, uint32_t flags)
{
	struct kvmsnap_add_region arg = {
		.size = sizeof(arg), .flags = flags, .hva = hva, .length = length, .offset = offset,
	};
	int err = call(session, KVMSNAP_ADD_REGION, &arg);

	return err ? err : (int)arg.region_id;
}

int kvmsnap_queue(int session, const struct kvmsnap_queue *how, uint64_t *pass)
{
	struct kvmsnap_queue arg = *how;
	int err;

	arg.size = sizeof(arg);
	err = call(session, KVMSNAP_QUEUE, &arg);
	if (!err && pass)
		*pass = arg.pass;
	return err;
}

int kvmsnap_queue_all(int session, uint64_t *pass)
{
	return kvmsnap_queue(session, &(struct kvmsnap_queue){ .kind = KVMSNAP_PASS_ALL }, pass);
}

int kvmsnap_queue_ranges(int session, const struct kvmsnap_range *ranges, uint32_t nr,
			 uint64_t *pass)
{
	struct kvmsnap_queue how = {
		.kind = KVMSNAP_PASS_RANGES, .nr_ranges = nr, .ranges = (uintptr_t)ranges,
	};

	return kvmsnap_queue(session, &how, pass);
}

int kvmsnap_queue_dirty(int session, uint32_t flags, uint64_t *pass)
{
	struct kvmsnap_queue how = { .kind = KVMSNAP_PASS_DIRTY, .flags = flags };

	return kvmsnap_queue(session, &how, pass);
}

int kvmsnap_queue_compare(int session, uint32_t flags, uint64_t *pass)
{
	struct kvmsnap_queue how = {
		.kind = KVMSNAP_PASS_ALL, .flags = flags | KVMSNAP_QUEUE_COMPARE,
	};

	return kvmsnap_queue(session, &how, pass);
}

int kvmsnap_track(int session, uint32_t mode, uint32_t flags)
{
	struct kvmsnap_track arg = { .size = sizeof(arg), .flags = flags, .mode = mode };

	return call(session, KVMSNAP_TRACK, &arg);
}

int kvmsnap_harvest(int session, struct kvmsnap_harvest *result)
{
	struct kvmsnap_harvest arg = { .size = sizeof(arg) };
	int err = call(session, KVMSNAP_HARVEST, &arg);

	if (!err && result)
		*result = arg;
	return err;
}

int kvmsnap_mark_dirty_ranges(int session, const struct kvmsnap_hva_range *ranges, uint32_t nr)
{
	struct kvmsnap_mark_dirty arg = {
		.size = sizeof(arg), .nr_ranges = nr, .ranges = (uintptr_t)ranges,
	};

	return call(session, KVMSNAP_MARK_DIRTY, &arg);
}

int kvmsnap_mark_dirty(int session, uint64_t hva, uint64_t length)
{
	struct kvmsnap_hva_range range = { .hva = hva, .length = length };

	return kvmsnap_mark_dirty_ranges(session, &range, 1);
}

int kvmsnap_set_stage(int session, uint64_t bytes)
{
	struct kvmsnap_set_stage arg = { .size = sizeof(arg), .bytes = bytes };

	return call(session, KVMSNAP_SET_STAGE, &arg);
}

int kvmsnap_set_phase(int session, uint32_t phase, uint64_t pause_ns)
{
	struct kvmsnap_set_phase arg = { .size = sizeof(arg), .phase = phase, .pause_ns = pause_ns };

	return call(session, KVMSNAP_SET_PHASE, &arg);
}

static int wait_for(int session, uint32_t flags, int64_t timeout_ns, struct kvmsnap_wait *result)
{
	int err;

	*result = (struct kvmsnap_wait){
		.size = sizeof(*result), .flags = flags, .timeout_ns = timeout_ns,
	};
	err = call(session, KVMSNAP_WAIT, result);
	/* Who looks at the result alone does not take it for success. */
	if (err && err != -ETIME) {
		result->state = KVMSNAP_STATE_RUNNING;
		result->error = -err;
	}
	return err;
}

int kvmsnap_wait_staged(int session, int64_t timeout_ns, struct kvmsnap_wait *result)
{
	return wait_for(session, KVMSNAP_WAIT_STAGED, timeout_ns, result);
}

int kvmsnap_wait(int session, int64_t timeout_ns, struct kvmsnap_wait *result)
{
	return wait_for(session, 0, timeout_ns, result);
}

int kvmsnap_cancel(int session)
{
	struct kvmsnap_cancel arg = { .size = sizeof(arg) };

	return call(session, KVMSNAP_CANCEL, &arg);
}

int kvmsnap_stats(int session, struct kvmsnap_stats *stats)
{
	*stats = (struct kvmsnap_stats){ .size = sizeof(*stats) };
	return call(session, KVMSNAP_STATS, stats);
}

static int get_bitmap(int session, uint32_t flags, uint32_t region_id, uint64_t first_page,
		      uint64_t nr_pages, void *data)
{
	struct kvmsnap_get_bitmap arg = {
		.size = sizeof(arg), .flags = flags, .region_id = region_id,
		.first_page = first_page, .nr_pages = nr_pages, .data = (uintptr_t)data,
	};

	return call(session, KVMSNAP_GET_BITMAP, &arg);
}

int kvmsnap_get_bitmap(int session, uint32_t region_id, uint64_t first_page, uint64_t nr_pages,
		       void *data)
{
	return get_bitmap(session, 0, region_id, first_page, nr_pages, data);
}

int kvmsnap_get_dirty(int session, uint32_t region_id, uint64_t first_page, uint64_t nr_pages,
		      void *data)
{
	return get_bitmap(session, KVMSNAP_BITMAP_DIRTY, region_id, first_page, nr_pages, data);
}

int kvmsnap_get_written(int session, uint32_t region_id, uint64_t first_page, uint64_t nr_pages,
			void *data)
{
	return get_bitmap(session, KVMSNAP_BITMAP_WRITTEN, region_id, first_page, nr_pages, data);
}

int kvmsnap_get_hashes(int session, uint32_t region_id, uint64_t first_page, uint64_t nr_pages,
		       uint64_t *hashes, uint8_t key[16])
{
	struct kvmsnap_get_hashes arg = {
		.size = sizeof(arg), .region_id = region_id, .first_page = first_page,
		.nr_pages = nr_pages, .data = (uintptr_t)hashes,
	};
	int err = call(session, KVMSNAP_GET_HASHES, &arg);

	if (!err)
		memcpy(key, arg.key, sizeof(arg.key));
	return err;
}

int kvmsnap_set_eventfd(int session, int fd)
{
	struct kvmsnap_set_eventfd arg = { .size = sizeof(arg), .fd = fd };

	return call(session, KVMSNAP_SET_EVENTFD, &arg);
}
