/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The snapshot file: a QEMU migration stream with the capability mapped-ram, in which each
 * page has its place (QEMU docs/devel/migration/mapped-ram.rst; migration/ram.c,
 * mapped_ram_setup_ramblock(), parse_ramblock_mapped_ram()).
 *
 *	"QEVM" version		file header
 *	configuration		machine type, capability
 *	RAM section, start	a record a block: name, size, bitmap, pages at 1 MiB alignment;
 *				ours: a tag (format.h) behind the first one
 *	RAM section, end
 *	device sections
 *	EOF, empty description
 *
 * Integers are big-endian; bitmaps are little-endian bits, 1 for a page in the file.
 */
#ifndef SNAPFILE_H
#define SNAPFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "error.h"

#define SNAP_PAGE	4096ULL
#define SNAP_ALIGN	(1ULL << 20)
#define SNAP_MAX_NAME	255

struct snap_block {
	char name[SNAP_MAX_NAME + 1];
	uint64_t length;		/* bytes */
	uint64_t record_offset;		/* of the record, from the name's length on */
	uint64_t bitmap_offset;
	uint64_t pages_offset;
	uint64_t stretched;		/* the length that the stream gives it, if another (chain.h); else 0 */
	uint8_t *bitmap;		/* snap_bitmap_bytes(length) bytes, or NULL */
};

/* A section of device state, whose contents only QEMU knows in full. */
struct snap_device {
	char *name;			/* with #instance unless that is 0 */
	uint64_t offset, length;	/* of what is in it */
};

struct snapfile {
	char machine[128];
	struct snap_block *blocks;
	size_t nr_blocks;
	uint64_t bitmaps;		/* bytes of them; parsed files only */
	uint64_t ram_end;		/* where the RAM section goes on behind the last block */
	uint64_t devices_offset;	/* first device section */
	uint64_t devices_end;		/* behind QEMU_VM_EOF */
	struct snap_device *devices;	/* parsed files only */
	size_t nr_devices;
	uint64_t size;			/* where the stream ends in the file */
	uint64_t description;		/* bytes of QEMU's own at the end of what snap_write() is given; 0 for none */
};

static inline uint64_t snap_bitmap_bytes(uint64_t length)
{
	return (length / SNAP_PAGE + 63) / 64 * 8;
}

/* @unit: any but 0. */
static inline uint64_t snap_round_up(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) / unit * unit;
}

static inline bool snap_has_page(const struct snap_block *block, uint64_t page)
{
	return block->bitmap[page / 8] >> page % 8 & 1;
}

static inline bool snap_is_zero(const uint8_t *bytes, size_t len)
{
	return !len || (!bytes[0] && !memcmp(bytes, bytes + 1, len - 1));
}

/* Compose: name the blocks first, then lay out, then write the head and the end. */
int snap_add_block(struct snapfile *snap, const char *name, uint64_t length, struct error *err);

/* Give everything up to the device sections its offset. */
void snap_layout(struct snapfile *snap);

/*
 * Write all but pages and device sections to @fd at their offsets: what precedes the
 * pages, records and bitmaps.  The device sections (ending with
 * QEMU_VM_EOF) are read from @devices_fd and written behind.  snap->size is set.
 */
int snap_write(struct snapfile *snap, int fd, int devices_fd, struct error *err);

/* Write the magic number, without which it is no file of QEMU's: last of all. */
int snap_seal(int fd, struct error *err);

/*
 * Write a stream at @at, a multiple of 4096, behind all pages that it lists: the blocks of @snap,
 * of which there may be several of a name, with their bitmaps, and the device sections.
 * snap->size is where all of it ends.
 */
int snap_append(struct snapfile *snap, int fd, uint64_t at, int devices_fd, struct error *err);

/*
 * Parse a stream of ours or of QEMU's that begins at @offset of the file.  All that is in it is
 * checked against the file's size; bitmaps are read.  Returns 0 or a negative errno.
 */
int snap_parse(struct snapfile *snap, int fd, uint64_t offset, struct error *err);

/* The same of device sections alone, which begin at @offset and end with the file. */
int snap_parse_devices(struct snapfile *snap, int fd, uint64_t offset, struct error *err);

void snap_free(struct snapfile *snap);

/* Is it one that QEMU fills before it loads a stream, or that is small?  Its zeros are written too. */
bool snap_is_small(const char *name, uint64_t length);

/* Pages in the file. */
uint64_t snap_pages_present(const struct snap_block *block);

/* Whole writes and reads at an offset.  0 or a negative errno. */
int snap_pwrite(int fd, const void *buf, size_t len, uint64_t offset);
int snap_pread(int fd, void *buf, size_t len, uint64_t offset);

/* Bytes of a file or block device; 0 when it does not tell. */
uint64_t snap_file_size(int fd);

#endif
