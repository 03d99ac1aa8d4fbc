// SPDX-License-Identifier: GPL-2.0
/* Makes the first inputs of the fuzzers: files of a small VM, with one generation and with two, and a stream. */
#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "snapfile/chain.h"

static const char devices[] = "\4\0\0\0\7\5timer\0\0\0\0\0\0\0\2state\x7e\0\0\0\7\0";

static int devices_fd(void)
{
	int fd = memfd_create("devices", 0);

	snap_pwrite(fd, devices, sizeof(devices) - 1, 0);
	return fd;
}

static void fill(struct snapfile *snap, int fd, uint64_t base, int step)
{
	char page[SNAP_PAGE];
	uint64_t i;

	strcpy(snap->machine, "pc-q35-10.0");
	snap_add_block(snap, "pc.ram", 16 * SNAP_PAGE, &(struct error){ "" });
	snap_add_block(snap, "vga.vram", 2 * SNAP_PAGE, &(struct error){ "" });
	snap_layout(snap);
	for (i = 0; i < 16; i += (uint64_t)step) {
		memset(page, 'a' + (int)i, sizeof(page));
		snap->blocks[0].bitmap[i / 8] |= (uint8_t)(1 << i % 8);
		snap_pwrite(fd, page, sizeof(page), base + snap->blocks[0].pages_offset + i * SNAP_PAGE);
	}
}

static void record_of(struct record *record, const struct snapfile *snap, uint64_t nr, uint64_t base)
{
	size_t i;

	*record = (struct record){ .generation = nr, .time = 1, .base = base };
	for (i = 0; i < snap->nr_blocks; i++)
		record_add_block(record, snap->blocks[i].name, snap->blocks[i].length,
				 base + snap->blocks[i].pages_offset);
}

static void stream(int fd)
{
	static const char head[] = "QEVM\0\0\0\3\7\0\0\0\2pc\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4";
	static const char block[] = "\6pc.ram\0\0\0\0\0\1\0\0";
	static const char end[] = "\0\0\0\0\0\0\0\x10\x7e\0\0\0\2";
	uint64_t word = htobe64(0x10000 | 4), at = 0;
	char page[SNAP_PAGE] = "page";
	int i;

#define PUT(p, n) (snap_pwrite(fd, p, n, at), at += (n))
	PUT(head, sizeof(head) - 1);
	PUT(&word, 8);
	PUT(block, sizeof(block) - 1);
	PUT(end, sizeof(end) - 1);
	PUT("\3\0\0\0\2", 5);
	for (i = 0; i < 4; i++) {
		word = htobe64((uint64_t)(i % 3) * SNAP_PAGE | (i ? 0x28 : 8));
		PUT(&word, 8);
		if (!i)
			PUT("\6pc.ram", 7);
		PUT(page, sizeof(page));
	}
	word = htobe64(5 * SNAP_PAGE | 0x22);
	PUT(&word, 8);
	PUT("", 1);
	PUT(end, sizeof(end) - 1);
	PUT(devices, sizeof(devices) - 1);
}

int main(int argc, char **argv)
{
	struct snapfile snap = { 0 }, parts;
	struct record record;
	struct chain chain;
	struct error err;
	uint64_t at, end;
	int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0644);

	if (argc != 3 || fd < 0)
		return 1;
	if (!strcmp(argv[2], "stream")) {
		stream(fd);
		return 0;
	}
	fill(&snap, fd, 0, 3);
	snap_write(&snap, fd, devices_fd(), &err);
	record_of(&record, &snap, 1, 0);
	at = (snap.size + SNAP_PAGE - 1) / SNAP_PAGE * SNAP_PAGE;
	record.end = (at / SNAP_ALIGN + 1) * SNAP_ALIGN;
	record_write(&record, fd, at, &end, &err);
	if (ftruncate(fd, (off_t)record.end) || snap_seal(fd, &err))
		return 1;
	if (!strcmp(argv[2], "1"))
		return 0;
	if (chain_load_last(&chain, fd, &err))
		return 1;
	snap = (struct snapfile){ 0 };
	fill(&snap, fd, chain.end, 5);
	if (chain_next(&chain, &snap, &parts, &err))
		return 1;
	record_of(&record, &snap, 2, chain.end);
	record.stream = chain.end + snap.ram_end;
	snap_append(&parts, fd, record.stream, devices_fd(), &err);
	record.end = (parts.size / SNAP_ALIGN + 1) * SNAP_ALIGN;
	if (ftruncate(fd, (off_t)record.end))
		return 1;
	return record_write(&record, fd, chain.end, &end, &err) ? 1 : 0;
}
