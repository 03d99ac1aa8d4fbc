// SPDX-License-Identifier: GPL-2.0
#include "snapfile.h"
#include "format.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What is put together in memory before it is written. */
struct buffer {
	uint8_t *data;
	size_t len, size;
	int failed;
};

static void put(struct buffer *b, const void *data, size_t len)
{
	if (b->len + len > b->size) {
		size_t size = (b->len + len) * 2;
		uint8_t *bigger = realloc(b->data, size);

		if (!bigger) {
			b->failed = 1;
			return;
		}
		b->data = bigger;
		b->size = size;
	}
	memcpy(b->data + b->len, data, len);
	b->len += len;
}

static void put8(struct buffer *b, uint8_t v)
{
	put(b, &v, 1);
}

static void put32(struct buffer *b, uint32_t v)
{
	v = htobe32(v);
	put(b, &v, 4);
}

static void put64(struct buffer *b, uint64_t v)
{
	v = htobe64(v);
	put(b, &v, 8);
}

static void put_counted(struct buffer *b, const char *s)
{
	put8(b, (uint8_t)strlen(s));
	put(b, s, strlen(s));
}

int snap_pwrite(int fd, const void *buf, size_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pwrite(fd, buf, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		buf = (const char *)buf + n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

bool snap_is_small(const char *name, uint64_t length)
{
	return length <= 16 << 20 || strstr(name, "/rom@") || strstr(name, "vram") ||
	       strstr(name, "pflash") || strstr(name, ".rom") || strstr(name, ".bios");
}

int snap_add_block(struct snapfile *snap, const char *name, uint64_t length, struct error *err)
{
	struct snap_block *blocks, *block;
	size_t i;

	if (strlen(name) > SNAP_MAX_NAME || !length || length % SNAP_PAGE)
		return error_set(err, EINVAL, "RAM block %s: %llu bytes can't be saved", name,
				 (unsigned long long)length);
	for (i = 0; i < snap->nr_blocks; i++)
		if (!strcmp(snap->blocks[i].name, name))
			return error_set(err, EINVAL, "RAM block %s: named twice", name);
	blocks = realloc(snap->blocks, (snap->nr_blocks + 1) * sizeof(*blocks));
	if (!blocks)
		return error_set(err, ENOMEM, "out of memory");
	snap->blocks = blocks;
	block = &blocks[snap->nr_blocks++];
	*block = (struct snap_block){ .length = length };
	strcpy(block->name, name);
	block->bitmap = calloc(1, snap_bitmap_bytes(length));
	return block->bitmap ? 0 : error_set(err, ENOMEM, "out of memory");
}

/* The length that the stream tells. */
static uint64_t listed_length(const struct snap_block *block)
{
	return block->stretched ? block->stretched : block->length;
}

/* Everything before the first record. */
static void compose_head(const struct snapfile *snap, struct buffer *b, uint32_t magic)
{
	uint64_t total = 0;
	size_t i;

	for (i = 0; i < snap->nr_blocks; i++)
		total += listed_length(&snap->blocks[i]);

	put32(b, magic);
	put32(b, QEMU_VM_FILE_VERSION);

	put8(b, QEMU_VM_CONFIGURATION);
	put32(b, (uint32_t)strlen(snap->machine));
	put(b, snap->machine, strlen(snap->machine));
	put8(b, QEMU_VM_SUBSECTION);
	put_counted(b, "configuration/capabilities");
	put32(b, 1);			/* version */
	put32(b, 1);			/* capabilities */
	put_counted(b, "mapped-ram");

	put8(b, QEMU_VM_SECTION_START);
	put32(b, SNAP_RAM_SECTION);
	put_counted(b, "ram");
	put32(b, 0);			/* instance */
	put32(b, 4);			/* version */
	put64(b, total | RAM_SAVE_FLAG_MEM_SIZE);
}

static void compose_record(const struct snap_block *block, struct buffer *b)
{
	put_counted(b, block->name);
	put64(b, listed_length(block));
	put32(b, MAPPED_RAM_HDR_VERSION);
	put64(b, SNAP_PAGE);
	put64(b, block->bitmap_offset);
	put64(b, block->pages_offset);
}

/* Behind the first record.  snap->size and devices_end are known. */
static void compose_tag(const struct snapfile *snap, struct buffer *b)
{
	struct snap_tag tag = {
		.devices_end = htobe64(snap->devices_end), .stream_end = htobe64(snap->size),
	};

	memcpy(tag.magic, SNAP_TAG_MAGIC, sizeof(tag.magic));
	put(b, &tag, sizeof(tag));
}

static void compose_ram_end(struct buffer *b)
{
	put64(b, RAM_SAVE_FLAG_EOS);
	put8(b, QEMU_VM_SECTION_FOOTER);
	put32(b, SNAP_RAM_SECTION);

	put8(b, QEMU_VM_SECTION_END);
	put32(b, SNAP_RAM_SECTION);
	put64(b, RAM_SAVE_FLAG_EOS);
	put8(b, QEMU_VM_SECTION_FOOTER);
	put32(b, SNAP_RAM_SECTION);
}

void snap_layout(struct snapfile *snap)
{
	struct buffer b = { 0 };
	uint64_t offset;
	size_t i;

	compose_head(snap, &b, 0);
	offset = b.len;
	for (i = 0; i < snap->nr_blocks; i++) {
		struct snap_block *block = &snap->blocks[i];

		b.len = 0;
		compose_record(block, &b);
		block->record_offset = offset;
		block->bitmap_offset = offset + b.len + (i ? 0 : sizeof(struct snap_tag));
		block->pages_offset = (block->bitmap_offset + snap_bitmap_bytes(block->length) +
				       SNAP_ALIGN - 1) / SNAP_ALIGN * SNAP_ALIGN;
		offset = block->pages_offset + block->length;
	}
	snap->ram_end = offset;
	b.len = 0;
	compose_ram_end(&b);
	snap->devices_offset = offset + b.len;
	free(b.data);
}

/* The end in one piece: RAM section's, devices, description.  Sets where they end. */
static int compose_end(struct snapfile *snap, struct buffer *b, int devices_fd)
{
	uint8_t chunk[4096];
	ssize_t n;

	compose_ram_end(b);
	while ((n = read(devices_fd, chunk, sizeof(chunk))) != 0) {
		if (n > 0)
			put(b, chunk, (size_t)n);
		else if (errno != EINTR)
			return -errno;
	}
	snap->devices_end = snap->ram_end + b->len - snap->description;
	if (!snap->description) {
		put8(b, QEMU_VM_VMDESCRIPTION);
		put32(b, 0);
	}
	snap->size = snap->ram_end + b->len;
	return b->failed ? -ENOMEM : 0;
}

int snap_write(struct snapfile *snap, int fd, int devices_fd, struct error *err)
{
	struct buffer b = { 0 };
	size_t i;
	int ret = compose_end(snap, &b, devices_fd);

	if (!ret)
		ret = snap_pwrite(fd, b.data, b.len, snap->ram_end);
	b.len = 0;
	compose_head(snap, &b, 0);	/* the magic number: snap_seal() */
	if (!ret)
		ret = b.failed ? -ENOMEM : snap_pwrite(fd, b.data, b.len, 0);
	for (i = 0; i < snap->nr_blocks && !ret; i++) {
		struct snap_block *block = &snap->blocks[i];

		b.len = 0;
		compose_record(block, &b);
		if (!i)
			compose_tag(snap, &b);
		put(&b, block->bitmap, snap_bitmap_bytes(block->length));
		ret = b.failed ? -ENOMEM : snap_pwrite(fd, b.data, b.len, block->record_offset);
	}
	free(b.data);
	if (ret)
		error_set(err, -ret, "writing the snapshot's records: %s", strerror(-ret));
	return ret;
}

int snap_append(struct snapfile *snap, int fd, uint64_t at, int devices_fd, struct error *err)
{
	struct buffer b = { 0 };
	uint64_t offset = at, end;
	size_t i;
	int ret;

	/* A page an entry: each length must be whole pages. */
	for (i = 0; i < snap->nr_blocks; i++) {
		struct snap_block *block = &snap->blocks[i];

		offset += SNAP_PAGE;
		block->stretched = offset - block->pages_offset;
	}
	snap->ram_end = offset;
	compose_ram_end(&b);
	snap->devices_offset = offset + b.len;
	b.len = 0;
	ret = compose_end(snap, &b, devices_fd);
	if (!ret)
		ret = snap_pwrite(fd, b.data, b.len, snap->ram_end);
	end = snap->size;

	/* Bitmaps, of which the end, which no page belongs to, is a hole. */
	for (i = 0; i < snap->nr_blocks && !ret; i++) {
		struct snap_block *block = &snap->blocks[i];

		block->bitmap_offset = (end + 7) / 8 * 8;
		end = block->bitmap_offset + snap_bitmap_bytes(block->stretched);
		ret = snap_pwrite(fd, block->bitmap, snap_bitmap_bytes(block->length),
				  block->bitmap_offset);
	}
	if (!ret && ftruncate(fd, (off_t)((end + SNAP_ALIGN - 1) / SNAP_ALIGN * SNAP_ALIGN)) < 0)
		ret = -errno;

	for (i = 0, offset = at; i < snap->nr_blocks && !ret; i++) {
		b.len = 0;
		if (!i)
			compose_head(snap, &b, QEMU_VM_FILE_MAGIC);
		snap->blocks[i].record_offset = offset + b.len;
		compose_record(&snap->blocks[i], &b);
		if (!i)
			compose_tag(snap, &b);
		ret = b.failed ? -ENOMEM : snap_pwrite(fd, b.data, b.len, offset);
		offset += SNAP_PAGE;
	}
	snap->size = end;
	free(b.data);
	return ret ? error_set(err, -ret, "writing the generation's records: %s", strerror(-ret)) : 0;
}

int snap_seal(int fd, struct error *err)
{
	uint32_t magic = htobe32(QEMU_VM_FILE_MAGIC);
	int ret = snap_pwrite(fd, &magic, sizeof(magic), 0);

	return ret ? error_set(err, -ret, "writing the snapshot's head: %s", strerror(-ret)) : 0;
}
