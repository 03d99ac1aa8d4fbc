// SPDX-License-Identifier: GPL-2.0
#include "softdirty.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE		4096UL
#define SOFT_DIRTY	(1ULL << 55)	/* in an entry of pagemap */
#define ENTRIES		65536UL		/* read at a time: 256 MiB of memory */

static int open_proc(pid_t pid, const char *name, int flags, struct error *err)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? error_set(err, errno, "%s: %s", path, strerror(errno)) : fd;
}

int softdirty_own(pid_t pid)
{
	struct error ignored;
	int fd = open_proc(pid, "clear_refs", O_WRONLY, &ignored);

	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
		int ret = errno == EWOULDBLOCK ? -EBUSY : -errno;

		close(fd);
		return ret;
	}
	return fd;
}

int softdirty_clear(pid_t pid, struct error *err)
{
	int fd = open_proc(pid, "clear_refs", O_WRONLY, err), ret = 0;

	if (fd < 0)
		return fd;
	if (write(fd, "4", 1) != 1)
		ret = error_set(err, errno, "clearing soft-dirty bits: %s", strerror(errno));
	close(fd);
	return ret;
}

/* A run of pages that grows until the next does not follow. */
struct run {
	uint64_t start, end;
	softdirty_found_fn *found;
	void *data;
};

static int run_add(struct run *run, uint64_t start, uint64_t end)
{
	int ret = 0;

	if (start != run->end) {
		if (run->end > run->start)
			ret = run->found(run->data, run->start, run->end - run->start);
		run->start = start;
	}
	run->end = end;
	return ret;
}

static int scan_entries(int fd, uint64_t start, uint64_t end, struct run *run, struct error *err)
{
	uint64_t *entries = malloc(ENTRIES * sizeof(*entries)), at, i, n;
	int ret = entries ? 0 : error_set(err, ENOMEM, "out of memory");
	ssize_t got;

	for (at = start; at < end && !ret; at += n * PAGE) {
		n = (end - at) / PAGE < ENTRIES ? (end - at) / PAGE : ENTRIES;
		got = pread(fd, entries, n * sizeof(*entries), (off_t)(at / PAGE * sizeof(*entries)));
		if (got < (ssize_t)sizeof(*entries)) {
			ret = error_set(err, got ? errno : ESRCH, "reading soft-dirty bits: %s",
					strerror(got ? errno : ESRCH));
			break;
		}
		n = (uint64_t)got / sizeof(*entries);
		for (i = 0; i < n && !ret; i++)
			if (entries[i] & SOFT_DIRTY)
				ret = run_add(run, at + i * PAGE, at + (i + 1) * PAGE);
	}
	free(entries);
	return ret;
}

#if defined(PAGEMAP_SCAN) && defined(PAGE_IS_SOFT_DIRTY)
/* From Linux 6.9 on, and much faster.  -EINVAL or -ENOTTY where it is not there. */
static int scan_regions(int fd, uint64_t start, uint64_t end, struct run *run)
{
	struct page_region regions[512];
	struct pm_scan_arg arg = {
		.size = sizeof(arg), .start = start, .end = end, .vec = (uintptr_t)regions,
		.vec_len = sizeof(regions) / sizeof(*regions),
		.category_mask = PAGE_IS_SOFT_DIRTY, .return_mask = PAGE_IS_SOFT_DIRTY,
	};
	int n, i, ret = 0;

	while (arg.start < end && !ret) {
		n = ioctl(fd, PAGEMAP_SCAN, &arg);
		if (n < 0)
			return -errno;
		for (i = 0; i < n && !ret; i++)
			ret = run_add(run, regions[i].start, regions[i].end);
		arg.start = arg.walk_end;
	}
	return ret;
}
#else
static int scan_regions(int fd, uint64_t start, uint64_t end, struct run *run)
{
	(void)fd, (void)start, (void)end, (void)run;
	return -ENOTTY;
}
#endif

int softdirty_scan(pid_t pid, uint64_t start, uint64_t bytes, softdirty_found_fn *found, void *data,
		   struct error *err)
{
	struct run run = { .found = found, .data = data };
	int fd = open_proc(pid, "pagemap", O_RDONLY, err), ret;

	if (fd < 0)
		return fd;
	ret = scan_regions(fd, start, start + bytes, &run);
	if (ret == -ENOTTY || ret == -EINVAL) {
		run = (struct run){ .found = found, .data = data };
		ret = scan_entries(fd, start, start + bytes, &run, err);
	} else if (ret < 0) {
		error_set(err, -ret, "scanning soft-dirty bits: %s", strerror(-ret));
	}
	if (!ret)
		ret = run_add(&run, 0, 0);
	close(fd);
	return ret;
}

bool softdirty_covers(pid_t pid, uint64_t start, uint64_t bytes)
{
	uint64_t from, to, inode, end = start + bytes;
	struct error ignored;
	char line[512], perms[8];
	int fd = open_proc(pid, "maps", O_RDONLY, &ignored);
	FILE *maps = fd < 0 ? NULL : fdopen(fd, "r");

	if (!maps)
		return false;
	/* In order of addresses; the range is to be covered without a gap. */
	while (start < end && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %*x %*s %" SCNu64, &from, &to, perms,
			   &inode) != 4 || to <= start)
			continue;
		if (from > start || perms[3] != 'p' || inode)
			break;
		start = to;
	}
	fclose(maps);
	return start >= end;
}

static int count(void *data, uint64_t start, uint64_t bytes)
{
	(void)start;
	*(uint64_t *)data += bytes / PAGE;
	return 0;
}

bool softdirty_works(void)
{
	const size_t pages = 16;
	char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	uint64_t clean = 0, dirty = 0;
	struct error ignored;
	bool works = false;

	if (memory == MAP_FAILED)
		return false;
	madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
	memset(memory, 1, pages * PAGE);
	if (softdirty_covers(getpid(), (uintptr_t)memory, pages * PAGE) &&
	    !softdirty_clear(getpid(), &ignored) &&
	    !softdirty_scan(getpid(), (uintptr_t)memory, pages * PAGE, count, &clean, &ignored)) {
		memory[3 * PAGE] = 2;
		memory[7 * PAGE + 5] = 2;
		works = !softdirty_scan(getpid(), (uintptr_t)memory, pages * PAGE, count, &dirty,
					&ignored) && clean == 0 && dirty == 2;
	}
	munmap(memory, pages * PAGE);
	return works;
}
