/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where a snapshot goes: a new file, which gets its name when it is whole; a block device;
 * a descriptor that the caller's manager has opened; or the end of a file that holds others.
 *
 * Locks, of open file descriptions: who writes over what a file holds takes TARGET_CONTENT, and a
 * VM whose memory is mapped from it shares that; who appends takes TARGET_END.
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
	bool appends;		/* to a file of which all before @base stays */
	uint64_t base;		/* where the image begins in the file */
	uint64_t size;		/* of the image: up to there target_size() has made it */
	bool committed;
};

/* What a file's name ends in until it is whole. */
#define TARGET_PARTIAL	".partial"

/* Bytes of a file that stand for locks; nobody reads or writes there. */
#define TARGET_CONTENT	(INT64_MAX - 1)
#define TARGET_END	(INT64_MAX - 2)

/* Take one of them, or share it; -EBUSY when that can't be had. */
int target_lock(int fd, int64_t which, bool share);

/* Let go of it, for all that share the description. */
void target_unlock(int fd, int64_t which);

/* Is it still @fd's file that has the name @path? */
bool target_has_name(int fd, const char *path);

/*
 * Remove a partial file, unless it is locked: a save writes it, or the module still writes what a save
 * that was killed had queued.  With @wait, once it is not.
 */
void target_remove_torn(const char *path, bool wait);

/* @path, or the descriptor @fd when @path is NULL.  @force: an existing file may be replaced. */
int target_open(struct target *target, const char *path, int fd, bool force, struct error *err);

/*
 * Append to @fd, which is @path, at @base, where its last generation ends; what is behind that goes.
 * The lock stays with @fd, for the next one.
 */
int target_append(struct target *target, const char *path, int fd, uint64_t base, struct error *err);

/*
 * Have a target that was just opened hold the first @bytes of a file, by sharing its blocks.
 * -EOPNOTSUPP, without @err, when the file system can't, or they are not on the same.
 */
int target_clone(struct target *target, int from, uint64_t bytes, struct error *err);

/* A new file without a name, beside @path.  -1 and errno.  It goes when it is closed. */
int target_nameless(const char *path);

/*
 * The same ahead of time, which takes long where a file has many pieces: target_nameless(@path), or -1 if
 * that can't be had.
 */
int target_clone_ahead(const char *path, int from, uint64_t bytes);

/*
 * Have a target that was just opened be the file @ahead of that, which it takes over.  -EOPNOTSUPP, without
 * @err, when they are not on the same file system.
 */
int target_take(struct target *target, int ahead, uint64_t bytes, struct error *err);

/* Make room for @bytes, a multiple of 4096, those that are new reading as zeros. */
int target_size(struct target *target, uint64_t bytes, struct error *err);

/* Bytes of a block device; 0 of anything else. */
uint64_t target_room(const struct target *target);

/* A block device may have at @at, where a record can be, that of what was there before: have none there. */
int target_clear(const struct target *target, uint64_t at, struct error *err);

/* Make what is written so far durable, as far as @sync says. */
int target_sync(struct target *target, enum sync sync, struct error *err);

/* The same for all of it, then give it its name. */
int target_commit(struct target *target, enum sync sync, struct error *err);

/* Close it, and remove what was not committed. */
void target_close(struct target *target);

#endif
