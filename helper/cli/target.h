/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where a snapshot goes: a new file, which gets its name when it is whole; a block device;
 * or a descriptor that the caller's manager has opened.
 */
#ifndef TARGET_H
#define TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

enum sync { SYNC_NONE, SYNC_DATA, SYNC_FULL };

struct target {
	int fd;
	char *path;		/* final name; NULL for a descriptor */
	char *partial;		/* name until commit; NULL for a device or a descriptor */
	bool device;		/* block device */
	bool force;		/* may replace what is there */
	bool sized;		/* what a descriptor's file held is gone */
	bool committed;
};

/* @path, or the descriptor @fd when @path is NULL.  @force: an existing file may be replaced. */
int target_open(struct target *target, const char *path, int fd, bool force, struct error *err);

/* Make room for @bytes, all of which from @from on (a multiple of 4096) read as zeros afterwards. */
int target_size(struct target *target, uint64_t from, uint64_t bytes, struct error *err);

/* Make what is written so far durable, as far as @sync says. */
int target_sync(struct target *target, enum sync sync, struct error *err);

/* The same for all of it, then give it its name. */
int target_commit(struct target *target, enum sync sync, struct error *err);

/* Close it, and remove what was not committed. */
void target_close(struct target *target);

#endif
