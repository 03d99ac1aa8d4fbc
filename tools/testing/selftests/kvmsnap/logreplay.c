// SPDX-License-Identifier: GPL-2.0
/*
 * logreplay LOG DEVICE AT: write to DEVICE what LOG, made by dm-log-writes, has from byte AT on (0: from
 * its beginning) up to the next flush, as a disk holds it whose power is lost just then.  Prints the
 * marks that came by and where to go on, a line each: "mark TEXT", "at BYTE".  Exit status 3 at the end of
 * the log.
 *
 * The log (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c): a
 * superblock, and entries, each a sector with its head, and what was written.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MAGIC	0x6a736677736872ULL

#define ENTRY_FLUSH	1
#define ENTRY_FUA	2
#define ENTRY_DISCARD	4
#define ENTRY_MARK	8

struct super {
	uint64_t magic, version, nr_entries;
	uint32_t sectorsize;
} __attribute__((packed));

struct entry {
	uint64_t sector, nr_sectors, flags, data_len;
};

#define MAX_SECTOR 4096

static int fail(const char *what)
{
	fprintf(stderr, "logreplay: %s: %s\n", what, strerror(errno));
	return 1;
}

static int copy(int log, off_t from, int device, off_t to, uint64_t bytes)
{
	static char buf[1 << 20];

	while (bytes) {
		size_t len = bytes < sizeof(buf) ? (size_t)bytes : sizeof(buf);

		if (pread(log, buf, len, from) != (ssize_t)len)
			return fail("reading the log");
		if (pwrite(device, buf, len, to) != (ssize_t)len)
			return fail("writing");
		from += (off_t)len;
		to += (off_t)len;
		bytes -= len;
	}
	return 0;
}

int main(int argc, char **argv)
{
	int log = argc == 4 ? open(argv[1], O_RDONLY) : -1;
	int device = argc == 4 ? open(argv[2], O_RDWR) : -1;
	char sector[MAX_SECTOR];
	struct super super;
	uint64_t at, bytes, flags;
	off_t end;

	if (log < 0 || device < 0)
		return fail("usage: logreplay LOG DEVICE AT");
	end = lseek(log, 0, SEEK_END);
	if (pread(log, &super, sizeof(super), 0) != sizeof(super) || le64toh(super.magic) != MAGIC ||
	    le32toh(super.sectorsize) < 512 || le32toh(super.sectorsize) > MAX_SECTOR) {
		errno = EINVAL;
		return fail("not a log of dm-log-writes");
	}
	at = strtoull(argv[3], NULL, 10);
	if (!at)
		at = le32toh(super.sectorsize);
	do {
		size_t size = le32toh(super.sectorsize);
		struct entry entry;

		if ((off_t)at >= end || pread(log, sector, size, (off_t)at) != (ssize_t)size)
			return 3;
		memcpy(&entry, sector, sizeof(entry));
		flags = le64toh(entry.flags);
		bytes = le64toh(entry.nr_sectors) * size;
		/* Behind the last, the log's device is as it was: zeros. */
		if (!flags && !bytes)
			return 3;
		at += size;
		if (flags & ENTRY_MARK) {
			if (le64toh(entry.data_len) > size - sizeof(entry))
				entry.data_len = 0;
			printf("mark %.*s\n", (int)le64toh(entry.data_len), sector + sizeof(entry));
		} else if (flags & ENTRY_DISCARD) {
			uint64_t range[2] = { le64toh(entry.sector) * size, bytes };

			if (ioctl(device, BLKDISCARD, range) < 0)
				return fail("BLKDISCARD");
		} else {
			if (copy(log, (off_t)at, device, (off_t)(le64toh(entry.sector) * size), bytes))
				return 1;
			at += bytes;
		}
	} while (!(flags & (ENTRY_FLUSH | ENTRY_FUA)));
	if (fsync(device) < 0)
		return fail("fsync");
	printf("at %llu\n", (unsigned long long)at);
	return 0;
}
