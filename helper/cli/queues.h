/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Queues that devices share with the guest, in its memory.  A stopped VM's are left alone, but for a few ways: a
 * virtio-serial port that had to wait goes on when its other end has read, a USB device of the host answers,
 * somebody plugs a disk in.  QEMU does not load state that is older than memory.  The device's own state tells of
 * it: where a queue has been taken from, or an event has been put.
 */
#ifndef QUEUES_H
#define QUEUES_H

#include "../snapfile/snapfile.h"

struct queues {
	struct snapfile sections;
	uint8_t *data;			/* @length bytes from @offset of the device state on */
	uint64_t offset, length;
	size_t nr;			/* sections of devices that have queues */
};

/* Of the device state that @devices has from its offset on, which stays there. */
int queues_read(struct queues *queues, int devices, struct error *err);

/* A device whose queues have been used between @before and @after; NULL for none. */
const char *queues_used(const struct queues *before, const struct queues *after);

/* Have @devices be what was read, again. */
int queues_put_back(const struct queues *queues, int devices, struct error *err);
void queues_free(struct queues *queues);

#endif
