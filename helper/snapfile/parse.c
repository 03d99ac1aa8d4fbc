// SPDX-License-Identifier: GPL-2.0
/*
 * Reading a mapped-ram file.  The file may be truncated, damaged or hostile: every length
 * is checked before it is used, and no allocation exceeds what the file itself backs.
 */
#include "snapfile.h"
#include "format.h"
#include "reader.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_BLOCKS	4096
#define MAX_BITMAPS	(64ULL << 20)	/* bytes of all of them, beyond what the file itself occupies */
#define MAX_DEVICES	(256ULL << 20)	/* bytes of device sections */
#define MAX_UNTOLD	(64ULL << 20)	/* the same where nothing tells how far they go */

/* Of ours: snap->devices_end and size, which stay 0 without. */
static void parse_tag(struct reader *r, struct snapfile *snap)
{
	struct snap_tag tag;

	reader_get(r, &tag, sizeof(tag));
	if (r->ret || memcmp(tag.magic, SNAP_TAG_MAGIC, sizeof(tag.magic)))
		return;
	snap->devices_end = be64toh(tag.devices_end);
	snap->size = be64toh(tag.stream_end);
	if (snap->size > r->size || snap->devices_end > snap->size || snap->devices_end < r->pos)
		reader_fail(r, "a stream that doesn't fit the file");
}

static void parse_block(struct reader *r, struct snapfile *snap)
{
	struct snap_block block = { 0 }, *more;
	uint64_t bitmap_bytes;

	block.record_offset = r->pos;
	reader_get_counted(r, block.name);
	block.length = reader_get64(r);
	if (reader_get32(r) != MAPPED_RAM_HDR_VERSION || reader_get64(r) != SNAP_PAGE)
		reader_fail(r, "a RAM block of an unknown version or page size");
	block.bitmap_offset = reader_get64(r);
	block.pages_offset = reader_get64(r);
	/* What QEMU writes has the bitmap there. */
	if (!snap->nr_blocks && block.bitmap_offset != r->pos)
		parse_tag(r, snap);
	if (r->ret)
		return;

	bitmap_bytes = snap_bitmap_bytes(block.length);
	/* It may be that of an earlier image, but reading goes on: see chain.h. */
	if (!block.length || block.length % SNAP_PAGE || block.bitmap_offset > r->size ||
	    bitmap_bytes > r->size - block.bitmap_offset || block.pages_offset > r->size ||
	    block.length > r->size - block.pages_offset ||
	    block.pages_offset + block.length < r->pos) {
		reader_fail(r, "a RAM block that doesn't fit the file");
		return;
	}
	/* No sum overflows: each is of the file's size at most, and there are MAX_BLOCKS. */
	snap->bitmaps += bitmap_bytes;
	if (snap->bitmaps > MAX_BITMAPS && snap->bitmaps > r->occupied) {
		reader_fail(r, "RAM blocks that are larger than this file can hold");
		return;
	}
	if (snap->nr_blocks == MAX_BLOCKS) {
		reader_fail(r, "too many RAM blocks");
		return;
	}
	more = realloc(snap->blocks, (snap->nr_blocks + 1) * sizeof(*more));
	if (more)
		snap->blocks = more;
	block.bitmap = more ? malloc(bitmap_bytes) : NULL;
	if (!block.bitmap) {
		r->ret = error_set(r->err, ENOMEM, "out of memory");
		return;
	}
	snap->blocks[snap->nr_blocks++] = block;
	r->pos = block.bitmap_offset;
	reader_get(r, block.bitmap, bitmap_bytes);
	r->pos = block.pages_offset + block.length;
}

/* What a RAM section holds after its header, up to and with its footer. */
static void parse_ram(struct reader *r, struct snapfile *snap, uint32_t section)
{
	uint64_t word, flags, total;

	for (;;) {
		word = reader_get64(r);
		flags = word & (SNAP_PAGE - 1);
		total = word & ~(SNAP_PAGE - 1);
		if (r->ret)
			return;
		if (flags == RAM_SAVE_FLAG_EOS)
			break;
		if (flags == RAM_SAVE_FLAG_MULTIFD_FLUSH)
			continue;
		if (flags != RAM_SAVE_FLAG_MEM_SIZE) {
			reader_fail(r, "unknown RAM data");
			return;
		}
		while (total && !r->ret) {
			parse_block(r, snap);
			if (!r->ret && snap->blocks[snap->nr_blocks - 1].length > total)
				reader_fail(r, "RAM blocks that don't add up");
			if (!r->ret)
				total -= snap->blocks[snap->nr_blocks - 1].length;
		}
		snap->ram_end = r->pos;
	}
	if (reader_get8(r) != QEMU_VM_SECTION_FOOTER || reader_get32(r) != section)
		reader_fail(r, "a RAM section without its end");
}

/*
 * Do a section's head or the end of all follow?  The end is a 0 byte that is the last, or
 * has a description behind it that fits: @exactly, or with something behind it.
 */
static bool plausible_section(const uint8_t *p, size_t len, bool exactly)
{
	uint32_t description;

	if (len && p[0] == QEMU_VM_EOF) {
		if (len == 1)
			return true;
		if (len < 6 || p[1] != QEMU_VM_VMDESCRIPTION)
			return false;
		memcpy(&description, p + 2, 4);
		description = be32toh(description);
		return exactly ? description == len - 6 : description <= len - 6;
	}
	return len >= 6 && p[0] == QEMU_VM_SECTION_FULL && p[5] && len >= 6u + p[5] + 8u &&
	       is_printable(p + 6, p[5]);
}

/* A section: the length of its name, the name, its instance and version, and @length bytes at @offset. */
static int add_device(struct snapfile *snap, const uint8_t *section, uint64_t offset, uint64_t length)
{
	struct snap_device *more = realloc(snap->devices, (snap->nr_devices + 1) * sizeof(*more));
	struct snap_device *device;
	uint32_t instance;
	int ret;

	if (!more)
		return -ENOMEM;
	snap->devices = more;
	device = &more[snap->nr_devices];
	*device = (struct snap_device){ .offset = offset, .length = length };
	memcpy(&instance, section + 1 + section[0], 4);
	instance = be32toh(instance);
	if (instance)
		ret = asprintf(&device->name, "%.*s#%u", section[0], section + 1, instance);
	else
		ret = asprintf(&device->name, "%.*s", section[0], section + 1);
	snap->nr_devices += ret >= 0;
	return ret < 0 ? -ENOMEM : 0;
}

static void forget_devices(struct snapfile *snap)
{
	while (snap->nr_devices)
		free(snap->devices[--snap->nr_devices].name);
}

/*
 * The device sections in @len bytes at snap->devices_offset.  Their contents don't tell their length;
 * what ends one is a footer with its number, behind which another section or the end follows.
 * *at is how far that went.  NULL, or what is wrong there.
 */
static const char *split_devices(struct snapfile *snap, const uint8_t *data, size_t len, bool exactly,
				 size_t *at)
{
	const uint8_t *p = data, *end = data + len, *q, *contents;

	for (;; p = q + 5) {
		*at = (size_t)(p - data);
		if (!plausible_section(p, (size_t)(end - p), exactly))
			return "a device section that makes no sense";
		if (*p == QEMU_VM_EOF) {
			++*at;
			return NULL;
		}
		contents = p + 6 + p[5] + 8;
		for (q = contents; q + 5 < end; q++)
			if (*q == QEMU_VM_SECTION_FOOTER && !memcmp(q + 1, p + 1, 4) &&
			    plausible_section(q + 5, (size_t)(end - q - 5), exactly))
				break;
		if (q + 5 >= end)
			return "a device section without its end";
		if (add_device(snap, p + 5, snap->devices_offset + (uint64_t)(contents - data),
			       (uint64_t)(q - contents)))
			return "more device sections than there is memory for";
	}
}

/*
 * The device sections.  A tag tells how far they go; what they are called is then as good as can be
 * told.  The stream ends with the file, unless somebody has put something behind it.
 */
static void parse_devices(struct reader *r, struct snapfile *snap)
{
	bool told = snap->size;
	uint64_t end = told ? snap->size : r->size;
	uint64_t most = snap->nr_blocks && !told ? MAX_UNTOLD : MAX_DEVICES;
	size_t len, at;
	const char *wrong;
	uint8_t *data;

	if (!r->ret && told && (snap->devices_end <= r->pos || snap->devices_end - r->pos > MAX_DEVICES))
		reader_fail(r, "device sections of a length that makes no sense");
	if (r->ret)
		return;
	len = (size_t)(end - r->pos < most ? end - r->pos : most);
	data = malloc(len ? len : 1);
	if (!data) {
		r->ret = error_set(r->err, ENOMEM, "out of memory");
		return;
	}
	snap->devices_offset = r->pos;
	reader_get(r, data, len);
	wrong = split_devices(snap, data, len, true, &at);
	if (wrong && !told) {
		forget_devices(snap);
		wrong = split_devices(snap, data, len, false, &at);
	}
	free(data);
	if (!told)
		snap->devices_end = snap->devices_offset + at;
	r->pos = snap->devices_end;
	if (wrong && !told)
		reader_fail(r, wrong);
}

/* Optional: a description of the device sections, in JSON. */
static void parse_description(struct reader *r)
{
	if (r->ret || r->pos == r->size || reader_peek8(r) != QEMU_VM_VMDESCRIPTION)
		return;
	reader_get8(r);
	reader_skip(r, reader_get32(r));
}

/* What follows RAM, to the end, which a tag may have told. */
static int parse_tail(struct reader *r, struct snapfile *snap)
{
	if (!r->ret)
		parse_devices(r, snap);
	parse_description(r);
	if (!r->ret && snap->size && snap->size != r->pos)
		reader_fail(r, "a stream that doesn't end where it should");
	snap->size = r->pos;
	if (r->ret)
		snap_free(snap);
	return r->ret;
}

/* How long the file is, and how much of it takes room on the disk. */
static void file_size(struct reader *r)
{
	struct stat st;

	if (fstat(r->fd, &st) < 0)
		return;
	r->size = snap_file_size(r->fd);
	r->occupied = S_ISBLK(st.st_mode) ? r->size : (uint64_t)st.st_blocks * 512;
}

int snap_parse(struct snapfile *snap, int fd, uint64_t offset, struct error *err)
{
	struct reader r = { .fd = fd, .err = err, .pos = offset };
	char name[SNAP_MAX_NAME + 1];
	uint32_t section;
	uint8_t type;
	bool mapped;

	*snap = (struct snapfile){ 0 };
	file_size(&r);
	if (r.pos > r.size)
		reader_fail(&r, "it ends before that");
	reader_get_head(&r, snap->machine, &mapped);
	if (!mapped)
		reader_fail(&r, "no mapped-ram capability (a classic migration stream?)");

	while (!r.ret) {
		type = reader_peek8(&r);
		if (type == QEMU_VM_SECTION_FULL || type == QEMU_VM_EOF)
			break;
		reader_get8(&r);
		if (type == QEMU_VM_COMMAND) {
			/* Its number and the length of its data; such as "switchover starts". */
			reader_get16(&r);
			reader_skip(&r, reader_get16(&r));
			continue;
		}
		section = reader_get32(&r);
		if (type == QEMU_VM_SECTION_START) {
			reader_get_counted(&r, name);
			reader_get32(&r);	/* instance */
			reader_get32(&r);	/* version */
			if (!r.ret && strcmp(name, "ram")) {
				reader_fail(&r, "a live section that isn't RAM");
				break;
			}
		} else if (type != QEMU_VM_SECTION_PART && type != QEMU_VM_SECTION_END) {
			reader_fail(&r, "an unknown section");
			break;
		}
		parse_ram(&r, snap, section);
	}
	if (!r.ret && !snap->nr_blocks)
		reader_fail(&r, "no RAM");
	return parse_tail(&r, snap);
}

int snap_parse_devices(struct snapfile *snap, int fd, uint64_t offset, struct error *err)
{
	struct reader r = { .fd = fd, .err = err, .pos = offset };

	*snap = (struct snapfile){ 0 };
	file_size(&r);
	if (r.pos > r.size)
		reader_fail(&r, "it ends before that");
	return parse_tail(&r, snap);
}

void snap_free(struct snapfile *snap)
{
	size_t i;

	for (i = 0; i < snap->nr_blocks; i++)
		free(snap->blocks[i].bitmap);
	forget_devices(snap);
	free(snap->blocks);
	free(snap->devices);
	*snap = (struct snapfile){ 0 };
}

uint64_t snap_pages_present(const struct snap_block *block)
{
	uint64_t pages = block->length / SNAP_PAGE, n = 0, i;

	for (i = 0; i < pages / 8; i++)
		n += (uint64_t)__builtin_popcount(block->bitmap[i]);
	for (i = pages / 8 * 8; i < pages; i++)
		n += block->bitmap[i / 8] >> (i % 8) & 1;
	return n;
}
