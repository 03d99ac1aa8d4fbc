// SPDX-License-Identifier: GPL-2.0
#include "../snapfile/snapfile.h"
#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

bool target_has_name(int fd, const char *path)
{
	struct stat opened, named;

	return fstat(fd, &opened) == 0 && stat(path, &named) == 0 && opened.st_ino == named.st_ino &&
	       opened.st_dev == named.st_dev;
}

/*
 * The new file under its provisional name.  It is locked for as long as its save runs, so
 * one that is there unlocked was left by a save that was killed, and goes.
 */
static int open_partial(struct target *target, struct error *err)
{
	struct stat opened;
	int tries, fd;
	bool made;

	for (tries = 0; tries < 10; tries++) {
		fd = open(target->partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		made = fd >= 0;
		if (!made && errno == EEXIST) {
			fd = open(target->partial, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
			if (fd < 0 && errno == ENOENT)
				continue;
		}
		if (fd < 0)
			return error_set(err, errno, "%s: %s", target->partial, strerror(errno));
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			close(fd);
			return error_set(err, EBUSY, "%s is being written by another save; wait for it or choose another file",
					 target->path);
		}
		if (fstat(fd, &opened) < 0 || !S_ISREG(opened.st_mode)) {
			close(fd);
			return error_set(err, EINVAL, "%s is in the way; remove it", target->partial);
		}
		/* Until it was locked, another may have taken it for a leftover. */
		if (target_has_name(fd, target->partial)) {
			if (made) {
				target->fd = fd;
				return 0;
			}
			unlink(target->partial);
		}
		close(fd);
	}
	return error_set(err, EBUSY, "%s comes back whenever it is removed; choose another file",
			 target->partial);
}

void target_remove_torn(const char *path, bool wait)
{
	bool locked, same;
	int fd;

	do {
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (fd < 0)
			return;
		locked = flock(fd, wait ? LOCK_EX : LOCK_EX | LOCK_NB) == 0;
		/* Another may have got the name meanwhile. */
		same = target_has_name(fd, path);
		if (locked && same)
			unlink(path);
		close(fd);
	} while (locked && !same);
}

static int set_lock(int fd, int64_t which, short type)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = which, .l_len = 1 };

	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

int target_lock(int fd, int64_t which, bool share)
{
	return set_lock(fd, which, share ? F_RDLCK : F_WRLCK);
}

void target_unlock(int fd, int64_t which)
{
	set_lock(fd, which, F_UNLCK);
}

/* What is there is to be written over: not if a VM is mapped from it. */
static int own_content(struct target *target, const char *name, struct error *err)
{
	if (target_lock(target->fd, TARGET_CONTENT, false) != -EBUSY)
		return 0;
	return error_set(err, EBUSY, "%s is in use by another save, or by a VM that was restored from it with --instant; choose another",
			 name);
}

int target_open(struct target *target, const char *path, int fd, bool force, struct error *err)
{
	char proc[32];
	struct stat st, link, dev;
	int flags;

	*target = (struct target){ .fd = -1, .force = force };
	if (!path) {
		flags = fcntl(fd, F_GETFL);
		if (flags < 0 || fstat(fd, &st) < 0)
			return error_set(err, errno, "descriptor %d: %s", fd, strerror(errno));
		if ((flags & O_ACCMODE) == O_RDONLY)
			return error_set(err, EBADF, "descriptor %d is not open for writing", fd);
		if (flags & O_APPEND)
			return error_set(err, EINVAL, "descriptor %d is open for appending; pages have fixed offsets: open it without O_APPEND",
					 fd);
		/* Opened anew, because records are written without O_DIRECT. */
		snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
		target->fd = flags & O_DIRECT ? open(proc, O_RDWR | O_CLOEXEC) :
						fcntl(fd, F_DUPFD_CLOEXEC, 3);
		if (target->fd < 0)
			return error_set(err, errno, "descriptor %d: %s", fd, strerror(errno));
		target->device = S_ISBLK(st.st_mode);
		if (!target->device && !S_ISREG(st.st_mode))
			return error_set(err, EINVAL, "descriptor %d is neither a file nor a block device", fd);
		if (!target->device && st.st_size && !force)
			return error_set(err, EEXIST, "the file behind descriptor %d is not empty; use --force to overwrite it",
					 fd);
		return own_content(target, "the descriptor's file", err);
	}

	/* What has such a name and is not locked is a leftover, and goes. */
	if (strlen(path) >= strlen(TARGET_PARTIAL) && !strcmp(path + strlen(path) - strlen(TARGET_PARTIAL), TARGET_PARTIAL))
		return error_set(err, EINVAL, "%s: names in " TARGET_PARTIAL " are of files that are not whole yet; choose another",
				 path);
	target->path = strdup(path);
	if (!target->path)
		return error_set(err, ENOMEM, "out of memory");
	if (stat(path, &st) == 0) {
		if (S_ISBLK(st.st_mode)) {
			target->device = true;
			/* Links below /dev are root's; whose are others? */
			flags = lstat(path, &link) || stat("/dev", &dev) || link.st_dev != dev.st_dev ? O_NOFOLLOW : 0;
			target->fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC | flags);
			if (target->fd < 0 && errno == ELOOP)
				return error_set(err, ELOOP, "%s is a link to a block device; name the device itself", path);
			if (target->fd < 0)
				return error_set(err, errno, "%s: %s%s", path, strerror(errno),
						 errno == EBUSY ? "; it is mounted or in use" : "");
			return own_content(target, path, err);
		}
		if (!S_ISREG(st.st_mode))
			return error_set(err, EINVAL, "%s is neither a file nor a block device", path);
		if (!force)
			return error_set(err, EEXIST, "%s exists; use --force to replace it when the new one is whole",
					 path);
	} else if (errno != ENOENT) {
		return error_set(err, errno, "%s: %s", path, strerror(errno));
	}
	if (asprintf(&target->partial, "%s" TARGET_PARTIAL, path) < 0) {
		target->partial = NULL;
		return error_set(err, ENOMEM, "out of memory");
	}
	return open_partial(target, err);
}

int target_append(struct target *target, const char *path, int fd, uint64_t base, struct error *err)
{
	*target = (struct target){ .fd = -1, .appends = true, .base = base };
	target->path = strdup(path);
	if (!target->path)
		return error_set(err, ENOMEM, "out of memory");
	/* Unless it is ours, nothing of it is to be cut off. */
	if (target_lock(fd, TARGET_END, false) == -EBUSY)
		return error_set(err, EBUSY, "%s is being appended to by another save; wait for it or choose another file",
				 path);
	/* kvmsnap compact puts another in its place, with the lock held. */
	if (!target_has_name(fd, path))
		return error_set(err, ENOENT, "%s is not the file that it was any more; save again", path);
	target->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (target->fd < 0 || ftruncate(target->fd, (off_t)base) < 0)
		return error_set(err, errno, "%s: %s", path, strerror(errno));
	return 0;
}

int target_clone(struct target *target, int from, uint64_t bytes, struct error *err)
{
	if (target->device)
		return -EOPNOTSUPP;
	if (ioctl(target->fd, FICLONE, from) < 0)
		return errno == EOPNOTSUPP || errno == ENOTTY || errno == EXDEV || errno == EINVAL ||
		       errno == ENOSYS ? -EOPNOTSUPP :
		       error_set(err, errno, "sharing the last generation's blocks: %s", strerror(errno));
	target->size = bytes;
	return ftruncate(target->fd, (off_t)bytes) < 0 ?
	       error_set(err, errno, "sizing the file to %llu bytes: %s", (unsigned long long)bytes,
			 strerror(errno)) : 0;
}

int target_nameless(const char *path)
{
	char *copy = strdup(path);
	int fd = copy ? open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;

	free(copy);
	return fd;
}

int target_clone_ahead(const char *path, int from, uint64_t bytes)
{
	struct target target = { .fd = target_nameless(path) };
	struct error ignored;

	/* Locked like any file that a save writes. */
	if (target.fd >= 0 && (target_clone(&target, from, bytes, &ignored) || flock(target.fd, LOCK_EX | LOCK_NB) < 0)) {
		close(target.fd);
		target.fd = -1;
	}
	return target.fd;
}

int target_take(struct target *target, int ahead, uint64_t bytes, struct error *err)
{
	struct stat opened, taken;
	char proc[32];
	int ret;

	if (!target->partial || fstat(target->fd, &opened) < 0 || fstat(ahead, &taken) < 0 ||
	    opened.st_dev != taken.st_dev)
		return -EOPNOTSUPP;
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", ahead);
	if (unlink(target->partial) < 0 ||
	    linkat(AT_FDCWD, proc, AT_FDCWD, target->partial, AT_SYMLINK_FOLLOW) < 0) {
		ret = error_set(err, errno, "%s: %s", target->partial, strerror(errno));
		/* What has the name now is another's. */
		free(target->partial);
		target->partial = NULL;
		return ret;
	}
	close(target->fd);
	target->fd = ahead;
	target->size = bytes;
	return 0;
}

uint64_t target_room(const struct target *target)
{
	return target->device ? snap_file_size(target->fd) : 0;
}

int target_clear(const struct target *target, uint64_t at, struct error *err)
{
	static const char nothing[SNAP_PAGE];
	int ret = target_room(target) < at + sizeof(nothing) ? 0 : snap_pwrite(target->fd, nothing, sizeof(nothing), at);

	return ret ? error_set(err, -ret, "clearing an old record: %s", strerror(-ret)) : 0;
}

int target_size(struct target *target, uint64_t bytes, struct error *err)
{
	uint64_t from = target->size, range[2], have = target_room(target);

	if (bytes <= from)
		return 0;
	target->size = bytes;
	if (target->device) {
		if (have < bytes)
			return error_set(err, ENOSPC, "the block device has %llu bytes, %llu are needed",
					 (unsigned long long)have, (unsigned long long)bytes);
		/* Pages that are not written must read as zeros. */
		range[0] = from / 4096 * 4096;
		range[1] = (bytes + 4095) / 4096 * 4096;
		if (range[1] > have)
			range[1] = have / 512 * 512;
		range[1] -= range[0];
		if (ioctl(target->fd, BLKZEROOUT, range) < 0)
			return error_set(err, errno, "zeroing the block device: %s", strerror(errno));
		/* An old snapshot's head must not outlive its pages: they are written over from here on. */
		if (!from && fsync(target->fd) < 0)
			return error_set(err, errno, "zeroing the block device: %s", strerror(errno));
		return 0;
	}
	/* To nothing first: all of a descriptor's old contents go. */
	if ((!from && ftruncate(target->fd, (off_t)target->base) < 0) ||
	    ftruncate(target->fd, (off_t)(target->base + bytes)) < 0)
		return error_set(err, errno, "sizing the file to %llu bytes: %s", (unsigned long long)bytes,
				 errno == EFBIG ? "File too large; this file system can't hold one that size" :
						  strerror(errno));
	return 0;
}

static int sync_directory(const char *path)
{
	char *copy = strdup(path);
	int fd, ret = 0;

	if (!copy)
		return -ENOMEM;
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0)
		ret = -errno;
	if (fd >= 0)
		close(fd);
	free(copy);
	return ret;
}

int target_sync(struct target *target, enum sync sync, struct error *err)
{
	int ret = 0;

	if (sync == SYNC_DATA)
		ret = fdatasync(target->fd);
	else if (sync == SYNC_FULL)
		ret = fsync(target->fd);
	return ret < 0 ? error_set(err, errno, "making the snapshot durable: %s", strerror(errno)) : 0;
}

int target_commit(struct target *target, enum sync sync, struct error *err)
{
	bool replaces = target->partial && target->force && access(target->path, F_OK) == 0;
	/* What goes may have been durable for long. */
	int ret = target_sync(target, replaces && sync == SYNC_NONE ? SYNC_DATA : sync, err);

	if (ret)
		return ret;
	target->committed = !target->partial;
	if (target->committed)
		return 0;
	ret = renameat2(AT_FDCWD, target->partial, AT_FDCWD, target->path,
			target->force ? 0 : RENAME_NOREPLACE);
	/* Not every file system knows the flag. */
	if (ret < 0 && errno == EINVAL) {
		ret = link(target->partial, target->path);
		if (!ret)
			unlink(target->partial);
	}
	if (ret < 0)
		return error_set(err, errno, "renaming %s to %s: %s", target->partial, target->path,
				 strerror(errno));
	target->committed = true;
	free(target->partial);
	target->partial = NULL;
	if (sync == SYNC_FULL) {
		ret = sync_directory(target->path);
		if (ret)
			return error_set(err, -ret, "the snapshot is in place, but making its name durable: %s",
					 strerror(-ret));
	}
	return 0;
}

void target_close(struct target *target)
{
	if (target->fd >= 0 && !target->committed) {
		if (target->partial)
			unlink(target->partial);
		else if ((target->size || target->appends) && !target->device &&
			 ftruncate(target->fd, (off_t)target->base) < 0)
			fprintf(stderr, "kvmsnap: taking back what was written: %s\n", strerror(errno));
	}
	/* The caller's description, which it may keep, has the lock. */
	if (target->fd >= 0 && !target->path)
		target_unlock(target->fd, TARGET_CONTENT);
	if (target->fd >= 0)
		close(target->fd);
	free(target->partial);
	free(target->path);
	*target = (struct target){ .fd = -1 };
}
