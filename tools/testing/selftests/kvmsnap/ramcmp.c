// SPDX-License-Identifier: GPL-2.0
/*
 * ramcmp PID FILE[,offset=N] [BYTES] <ramblocks: does a mapped-ram file hold the RAM of a stopped QEMU?
 *
 * N is where the stream begins, if others precede it: then a block may be listed several times.
 * Standard input is the text of QEMU's `info ramblock`.  RAM is read from /proc/PID/mem.
 * This shares no code with the helper: it is the judge of it.  A page that is not listed must be all
 * zeros in the guest.
 *
 * BYTES is for a guest that was restored and not yet run: KVM writes the wall clock, 12 bytes
 * of one page, when QEMU sets the MSR that holds its address (arch/x86/kvm/x86.c,
 * kvm_write_wall_clock()).  That many adjacent bytes of a single page may differ.
 */
#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK (1 << 20)

static int file, mem;
static off_t at;

static void die(const char *what)
{
	fprintf(stderr, "ramcmp: %s\n", what);
	exit(2);
}

static void take(void *buf, size_t len)
{
	if (pread(file, buf, len, at) != (ssize_t)len)
		die("the file ends too early");
	at += (off_t)len;
}

static uint8_t take8(void)
{
	uint8_t v;

	take(&v, 1);
	return v;
}

static uint32_t take32(void)
{
	uint32_t v;

	take(&v, 4);
	return be32toh(v);
}

static uint64_t take64(void)
{
	uint64_t v;

	take(&v, 8);
	return be64toh(v);
}

static void skip_counted(void)
{
	at += take8();
}

/* A block of the guest, and where the file has its pages: offset + 1, or 0 for zeros. */
struct block {
	char name[256];
	uint64_t used, hva, *where;
};

static struct block block[256];
static size_t nr;

/* Lines of `info ramblock`; what has no name is not migrated. */
static void read_blocks(void)
{
	char line[1024], unit[8];
	uint64_t size, offset, total;

	while (fgets(line, sizeof(line), stdin)) {
		struct block *b = &block[nr];

		if (nr == 256)
			die("too many blocks");
		if (sscanf(line, "%255s %" SCNu64 " %7s %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64,
			   b->name, &size, unit, &offset, &b->used, &total, &b->hva) != 7 || !b->used)
			continue;
		b->where = calloc(b->used / 4096, sizeof(*b->where));
		if (!b->where)
			die("out of memory");
		nr++;
	}
}

static struct block *find(const char *name)
{
	size_t i;

	for (i = 0; i < nr; i++)
		if (!strcmp(block[i].name, name))
			return &block[i];
	die("a block of the file is not in the guest");
	return NULL;
}

/* A listing of pages of a block: no page is to be listed twice, or behind the block's end. */
static void note_pages(struct block *b, uint64_t length, uint64_t bitmap_at, uint64_t pages_at, int whole)
{
	uint64_t bytes = length / 32768 + !!(length % 32768), page;
	uint8_t *bitmap = calloc(1, bytes);

	if (whole && b->used != length)
		die("a block of another size");
	if (!bitmap || pread(file, bitmap, bytes, (off_t)bitmap_at) != (ssize_t)bytes)
		die("no bitmap");
	for (page = 0; page < bytes * 8; page++) {
		if (!(bitmap[page / 8] >> (page % 8) & 1))
			continue;
		if (page >= b->used / 4096)
			die("a page behind its block's end");
		if (b->where[page])
			die("a page that is listed twice");
		b->where[page] = pages_at + page * 4096 + 1;
	}
	free(bitmap);
}

static uint64_t different, allowed, excused;

static int within_allowed(const uint8_t *a, const uint8_t *b)
{
	size_t first = 0, last = 4095;

	while (a[first] == b[first])
		first++;
	while (a[last] == b[last])
		last--;
	return last - first < allowed && !excused;
}

/* What the file has for N pages of a block, from PAGE on.  What lies together is read at once. */
static void read_pages(const struct block *b, uint64_t page, size_t n, uint8_t *disk)
{
	const uint64_t *where = b->where + page;
	size_t i, end;

	for (i = 0; i < n; i = end) {
		uint64_t step = where[i] ? 4096 : 0;
		size_t bytes;

		for (end = i + 1; end < n && where[end] == where[end - 1] + step; end++)
			;
		bytes = (end - i) * 4096;
		if (!where[i])
			memset(disk + i * 4096, 0, bytes);
		else if (pread(file, disk + i * 4096, bytes, (off_t)(where[i] - 1)) != (ssize_t)bytes)
			die("the file ends in its pages");
	}
}

static void compare(const struct block *b)
{
	static uint8_t ram[CHUNK], disk[CHUNK];
	uint64_t done, page;

	for (done = 0; done < b->used; done += CHUNK) {
		size_t n = b->used - done < CHUNK ? (size_t)(b->used - done) : CHUNK, i;

		if (pread(mem, ram, n, (off_t)(b->hva + done)) != (ssize_t)n)
			die("can't read the guest's memory");
		read_pages(b, done / 4096, n / 4096, disk);
		for (i = 0; i < n; i += 4096) {
			if (!memcmp(ram + i, disk + i, 4096))
				continue;
			if (within_allowed(ram + i, disk + i)) {
				excused++;
				continue;
			}
			page = (done + i) / 4096;
			if (different++ < 5)
				printf("%s: page %" PRIu64 " differs (%s)\n", b->name, page,
				       b->where[page] ? "in the file" : "not in the file");
		}
	}
}

int main(int argc, char **argv)
{
	uint64_t total, pages = 0, start = 0;
	char path[4096], *comma;
	size_t i;

	if (argc != 3 && argc != 4)
		die("usage: ramcmp PID FILE[,offset=N] [BYTES] <ramblocks");
	allowed = argc == 4 ? strtoull(argv[3], NULL, 10) : 0;
	read_blocks();
	snprintf(path, sizeof(path), "%s", argv[2]);
	comma = strstr(path, ",offset=");
	if (comma) {
		start = strtoull(comma + 8, NULL, 10);
		*comma = 0;
	}
	file = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%s/mem", argv[1]);
	mem = open(path, O_RDONLY);
	if (file < 0 || mem < 0)
		die("can't open the file or the process's memory");

	at = (off_t)start;
	if (take32() != 0x5145564d || take32() != 3)
		die("not a migration stream");
	if (take8() != 7)
		die("no configuration");
	at += take32();
	while (take8() == 5) {
		uint32_t n;

		skip_counted();
		take32();
		for (n = take32(); n; n--)
			skip_counted();
	}
	take32();		/* the type of section was read: its number */
	skip_counted();
	take32();
	take32();
	total = take64();
	if ((total & 4095) != 4)
		die("no list of blocks");
	total &= ~4095ULL;
	while (total) {
		uint64_t length, bitmap_at, pages_at;
		uint8_t name_len = take8();
		char name[256];

		take(name, name_len);
		name[name_len] = 0;
		length = take64();
		if (take32() != 1 || take64() != 4096)
			die("unknown block header");
		bitmap_at = take64();
		pages_at = take64();
		note_pages(find(name), length, bitmap_at, pages_at, !start);
		at = (off_t)(pages_at + length);
		if (length > total)
			die("blocks that don't add up");
		total -= length;
	}
	for (i = 0; i < nr; i++) {
		compare(&block[i]);
		pages += block[i].used / 4096;
	}
	printf("ramcmp: %zu blocks, %" PRIu64 " pages, %" PRIu64 " differ, %" PRIu64
	       " in the wall clock alone\n", nr, pages, different, excused);
	return different != 0;
}
