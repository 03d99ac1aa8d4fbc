// SPDX-License-Identifier: GPL-2.0
/*
 * Reading a mapped-ram file.  The file may be truncated, damaged or hostile: every length
 * is checked before it is used, and no allocation exceeds what the file itself backs.
 */
#include "snapfile.h"
#include "format.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <linux/fs.h>
#include <unistd.h>

#define MAX_BLOCKS	4096
#define MAX_CAPABILITIES 64
#define MAX_BITMAP	(64ULL << 20)	/* bytes, beyond what the file itself occupies */
#define MAX_DEVICES	(64ULL << 20)	/* bytes of device sections */

struct reader {
	int fd;
	uint64_t pos, size, occupied;
	struct error *err;
	int ret;			/* first failure; then everything reads as 0 */
};

int snap_pread(int fd, void *buf, size_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pread(fd, buf, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		buf = (char *)buf + n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static int bad(struct reader *r, const char *what)
{
	if (!r->ret)
		r->ret = error_set(r->err, EBADMSG, "not a whole mapped-ram file: %s at offset %llu", what,
				   (unsigned long long)r->pos);
	return r->ret;
}

static void get(struct reader *r, void *buf, size_t len)
{
	memset(buf, 0, len);
	if (r->ret)
		return;
	if (len > r->size - r->pos) {
		bad(r, "it ends too early");
		return;
	}
	r->ret = snap_pread(r->fd, buf, len, r->pos);
	if (r->ret)
		error_set(r->err, -r->ret, "reading at offset %llu: %s", (unsigned long long)r->pos,
			  strerror(-r->ret));
	r->pos += len;
}

static uint8_t get8(struct reader *r)
{
	uint8_t v;

	get(r, &v, 1);
	return v;
}

static uint32_t get32(struct reader *r)
{
	uint32_t v;

	get(r, &v, 4);
	return be32toh(v);
}

static uint16_t get16(struct reader *r)
{
	uint16_t v;

	get(r, &v, 2);
	return be16toh(v);
}

static void skip(struct reader *r, uint64_t len)
{
	if (!r->ret && len > r->size - r->pos)
		bad(r, "it ends too early");
	r->pos += r->ret ? 0 : len;
}

static uint64_t get64(struct reader *r)
{
	uint64_t v;

	get(r, &v, 8);
	return be64toh(v);
}

static bool printable(const uint8_t *p, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		if (p[i] <= ' ' || p[i] > '~')
			return false;
	return true;
}

static void get_counted(struct reader *r, char name[SNAP_MAX_NAME + 1])
{
	uint8_t len = get8(r);

	get(r, name, len);
	name[r->ret ? 0 : len] = 0;
	if (!printable((uint8_t *)name, strlen(name)) || strlen(name) != (r->ret ? 0 : len))
		bad(r, "a name that isn't one");
}

static uint8_t peek8(struct reader *r)
{
	uint8_t v = get8(r);

	r->pos -= !r->ret;
	return v;
}

/* Machine type, and the subsections that say how the rest is to be read. */
static void parse_configuration(struct reader *r, struct snapfile *snap)
{
	char name[SNAP_MAX_NAME + 1];
	bool mapped = false;
	uint32_t len, i, n;
	uint8_t uuid[16];

	if (get8(r) != QEMU_VM_CONFIGURATION) {
		bad(r, "no configuration section");
		return;
	}
	len = get32(r);
	if (len >= sizeof(snap->machine)) {
		bad(r, "a machine type that is too long");
		return;
	}
	get(r, snap->machine, len);
	if (!printable((uint8_t *)snap->machine, len))
		bad(r, "a machine type that isn't one");
	while (!r->ret && peek8(r) == QEMU_VM_SUBSECTION) {
		get8(r);
		get_counted(r, name);
		get32(r);		/* version */
		if (!strcmp(name, "configuration/capabilities")) {
			n = get32(r);
			if (n > MAX_CAPABILITIES)
				bad(r, "too many capabilities");
			for (i = 0; i < n && !r->ret; i++) {
				get_counted(r, name);
				mapped |= !strcmp(name, "mapped-ram");
			}
		} else if (!strcmp(name, "configuration/target-page-bits")) {
			if (get32(r) != 12)
				bad(r, "pages that are not 4096 bytes");
		} else if (!strcmp(name, "configuration/uuid")) {
			get(r, uuid, sizeof(uuid));
		} else {
			bad(r, "an unknown configuration");
		}
	}
	if (!mapped)
		bad(r, "no mapped-ram capability (a classic migration stream?)");
}

static void parse_block(struct reader *r, struct snapfile *snap)
{
	struct snap_block block = { 0 }, *more;
	uint64_t bitmap_bytes;

	block.record_offset = r->pos;
	get_counted(r, block.name);
	block.length = get64(r);
	if (get32(r) != MAPPED_RAM_HDR_VERSION || get64(r) != SNAP_PAGE)
		bad(r, "a RAM block of an unknown version or page size");
	block.bitmap_offset = get64(r);
	block.pages_offset = get64(r);
	if (r->ret)
		return;

	bitmap_bytes = snap_bitmap_bytes(block.length);
	if (!block.length || block.length % SNAP_PAGE || block.bitmap_offset < r->pos ||
	    block.bitmap_offset > r->size || bitmap_bytes > r->size - block.bitmap_offset ||
	    block.pages_offset < block.bitmap_offset + bitmap_bytes ||
	    block.pages_offset > r->size || block.length > r->size - block.pages_offset) {
		bad(r, "a RAM block that doesn't fit the file");
		return;
	}
	if (bitmap_bytes > MAX_BITMAP && bitmap_bytes > r->occupied) {
		bad(r, "a RAM block that is larger than this file can hold");
		return;
	}
	if (snap->nr_blocks == MAX_BLOCKS) {
		bad(r, "too many RAM blocks");
		return;
	}
	more = realloc(snap->blocks, (snap->nr_blocks + 1) * sizeof(*more));
	if (more) {
		snap->blocks = more;
		block.bitmap = malloc(bitmap_bytes);
	}
	if (!more || !block.bitmap) {
		r->ret = error_set(r->err, ENOMEM, "out of memory");
		return;
	}
	snap->blocks[snap->nr_blocks++] = block;
	r->pos = block.bitmap_offset;
	get(r, block.bitmap, bitmap_bytes);
	r->pos = block.pages_offset + block.length;
}

/* What a RAM section holds after its header, up to and with its footer. */
static void parse_ram(struct reader *r, struct snapfile *snap, uint32_t section)
{
	uint64_t word, flags, total;

	for (;;) {
		word = get64(r);
		flags = word & (SNAP_PAGE - 1);
		total = word & ~(SNAP_PAGE - 1);
		if (r->ret)
			return;
		if (flags == RAM_SAVE_FLAG_EOS)
			break;
		if (flags == RAM_SAVE_FLAG_MULTIFD_FLUSH)
			continue;
		if (flags != RAM_SAVE_FLAG_MEM_SIZE) {
			bad(r, "unknown RAM data");
			return;
		}
		while (total && !r->ret) {
			parse_block(r, snap);
			if (!r->ret && snap->blocks[snap->nr_blocks - 1].length > total)
				bad(r, "RAM blocks that don't add up");
			if (!r->ret)
				total -= snap->blocks[snap->nr_blocks - 1].length;
		}
		snap->ram_end = r->pos;
	}
	if (get8(r) != QEMU_VM_SECTION_FOOTER || get32(r) != section)
		bad(r, "a RAM section without its end");
}

/*
 * Do a section's head or the end of all follow?  The end is a 0 byte that is the last, or
 * has a description behind it that fits.
 */
static bool plausible_section(const uint8_t *p, size_t len)
{
	uint32_t description;

	if (len && p[0] == QEMU_VM_EOF) {
		if (len == 1)
			return true;
		if (len < 6 || p[1] != QEMU_VM_VMDESCRIPTION)
			return false;
		memcpy(&description, p + 2, 4);
		return be32toh(description) <= len - 6;
	}
	return len >= 6 && p[0] == QEMU_VM_SECTION_FULL && p[5] && len >= 6u + p[5] + 8u &&
	       printable(p + 6, p[5]);
}

static int add_device(struct snapfile *snap, const uint8_t *name, size_t len)
{
	char **more = realloc(snap->devices, (snap->nr_devices + 1) * sizeof(*more));

	if (!more)
		return -ENOMEM;
	snap->devices = more;
	more[snap->nr_devices] = strndup((const char *)name, len);
	return more[snap->nr_devices++] ? 0 : -ENOMEM;
}

/*
 * The device sections.  Their contents don't tell their length; what ends one is a footer
 * with its number, behind which another section or the end follows.
 */
static void parse_devices(struct reader *r, struct snapfile *snap)
{
	size_t len = (size_t)(r->size - r->pos < MAX_DEVICES ? r->size - r->pos : MAX_DEVICES);
	uint8_t *data, *p, *end, *q;

	data = malloc(len ? len : 1);
	if (!data) {
		r->ret = error_set(r->err, ENOMEM, "out of memory");
		return;
	}
	snap->devices_offset = r->pos;
	get(r, data, len);
	p = data;
	end = data + len;
	while (!r->ret) {
		r->pos = snap->devices_offset + (uint64_t)(p - data);
		if (!plausible_section(p, (size_t)(end - p))) {
			bad(r, "a device section that makes no sense");
			break;
		}
		if (*p == QEMU_VM_EOF) {
			r->pos++;
			break;
		}
		if (add_device(snap, p + 6, p[5])) {
			r->ret = error_set(r->err, ENOMEM, "out of memory");
			break;
		}
		for (q = p + 6 + p[5] + 8; q + 5 < end; q++)
			if (*q == QEMU_VM_SECTION_FOOTER && !memcmp(q + 1, p + 1, 4) &&
			    plausible_section(q + 5, (size_t)(end - q - 5)))
				break;
		if (q + 5 >= end) {
			bad(r, "a device section without its end");
			break;
		}
		p = q + 5;
	}
	free(data);
}

/* Optional: a description of the device sections, in JSON. */
static void parse_description(struct reader *r)
{
	if (r->ret || r->pos == r->size || peek8(r) != QEMU_VM_VMDESCRIPTION)
		return;
	get8(r);
	skip(r, get32(r));
}

/* How long the file is, and how much of it takes room on the disk. */
static void file_size(struct reader *r)
{
	struct stat st;

	if (fstat(r->fd, &st) < 0)
		return;
	r->size = (uint64_t)st.st_size;
	r->occupied = (uint64_t)st.st_blocks * 512;
	if (S_ISBLK(st.st_mode) && ioctl(r->fd, BLKGETSIZE64, &r->size) == 0)
		r->occupied = r->size;
}

int snap_parse(struct snapfile *snap, int fd, struct error *err)
{
	struct reader r = { .fd = fd, .err = err };
	char name[SNAP_MAX_NAME + 1];
	uint32_t section;
	uint8_t type;

	*snap = (struct snapfile){ 0 };
	file_size(&r);
	if (get32(&r) != QEMU_VM_FILE_MAGIC || get32(&r) != QEMU_VM_FILE_VERSION)
		bad(&r, "no QEMU migration header");
	if (!r.ret)
		parse_configuration(&r, snap);

	while (!r.ret) {
		type = peek8(&r);
		if (type == QEMU_VM_SECTION_FULL || type == QEMU_VM_EOF)
			break;
		get8(&r);
		if (type == QEMU_VM_COMMAND) {
			/* Its number and the length of its data; such as "switchover starts". */
			get16(&r);
			skip(&r, get16(&r));
			continue;
		}
		section = get32(&r);
		if (type == QEMU_VM_SECTION_START) {
			get_counted(&r, name);
			get32(&r);	/* instance */
			get32(&r);	/* version */
			if (!r.ret && strcmp(name, "ram")) {
				bad(&r, "a live section that isn't RAM");
				break;
			}
		} else if (type != QEMU_VM_SECTION_PART && type != QEMU_VM_SECTION_END) {
			bad(&r, "an unknown section");
			break;
		}
		parse_ram(&r, snap, section);
	}
	if (!r.ret && !snap->nr_blocks)
		bad(&r, "no RAM");
	if (!r.ret)
		parse_devices(&r, snap);
	parse_description(&r);
	snap->size = r.pos;
	if (r.ret)
		snap_free(snap);
	return r.ret;
}

void snap_free(struct snapfile *snap)
{
	size_t i;

	for (i = 0; i < snap->nr_blocks; i++)
		free(snap->blocks[i].bitmap);
	for (i = 0; i < snap->nr_devices; i++)
		free(snap->devices[i]);
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
