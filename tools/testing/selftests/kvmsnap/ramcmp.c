// SPDX-License-Identifier: GPL-2.0
/*
 * ramcmp PID FILE [BYTES] <ramblocks: does a mapped-ram file hold the RAM of a stopped QEMU?
 *
 * Standard input is the text of QEMU's `info ramblock`.  RAM is read from /proc/PID/mem.
 * This shares no code with the helper: it is the judge of it.  A page whose bit is clear
 * must be all zeros in the guest.
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

/* A line of `info ramblock` for that name: its size and address. */
static int find(const char *text, const char *name, uint64_t *used, uint64_t *hva)
{
	const char *line = text;
	char word[256], unit[8];
	uint64_t size, offset, total;

	while (line && *line) {
		if (sscanf(line, "%255s %" SCNu64 " %7s %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64,
			   word, &size, unit, &offset, used, &total, hva) == 7 && !strcmp(word, name))
			return 1;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return 0;
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

static void compare(const char *name, uint64_t length, uint64_t hva, const uint8_t *bitmap,
		    uint64_t pages)
{
	static uint8_t ram[CHUNK], disk[CHUNK], zero[4096];
	uint64_t done, page;

	for (done = 0; done < length; done += CHUNK) {
		size_t n = length - done < CHUNK ? (size_t)(length - done) : CHUNK, i;

		if (pread(mem, ram, n, (off_t)(hva + done)) != (ssize_t)n)
			die("can't read the guest's memory");
		if (pread(file, disk, n, (off_t)(pages + done)) != (ssize_t)n)
			die("the file ends in its pages");
		for (i = 0; i < n; i += 4096) {
			int in_file;

			page = (done + i) / 4096;
			in_file = bitmap[page / 8] >> (page % 8) & 1;
			if (!memcmp(ram + i, in_file ? disk + i : zero, 4096))
				continue;
			if (within_allowed(ram + i, in_file ? disk + i : zero)) {
				excused++;
				continue;
			}
			if (different++ < 5)
				printf("%s: page %" PRIu64 " differs (%s)\n", name, page,
				       in_file ? "in the file" : "not in the file");
		}
	}
}

int main(int argc, char **argv)
{
	static char text[1 << 20];
	uint64_t total, pages = 0, blocks = 0;
	char path[64];
	size_t len;

	if (argc != 3 && argc != 4)
		die("usage: ramcmp PID FILE [BYTES] <ramblocks");
	allowed = argc == 4 ? strtoull(argv[3], NULL, 10) : 0;
	len = fread(text, 1, sizeof(text) - 1, stdin);
	text[len] = 0;
	file = open(argv[2], O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%s/mem", argv[1]);
	mem = open(path, O_RDONLY);
	if (file < 0 || mem < 0)
		die("can't open the file or the process's memory");

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
		uint64_t length, bitmap_at, pages_at, used, hva;
		uint8_t name_len = take8(), *bitmap;
		char name[256];

		take(name, name_len);
		name[name_len] = 0;
		length = take64();
		if (take32() != 1 || take64() != 4096)
			die("unknown block header");
		bitmap_at = take64();
		pages_at = take64();
		if (!find(text, name, &used, &hva))
			die("a block of the file is not in the guest");
		if (used != length)
			die("a block of another size");
		bitmap = calloc(1, length / 32768 + 8);
		if (pread(file, bitmap, length / 32768 + !!(length % 32768), (off_t)bitmap_at) < 0)
			die("no bitmap");
		compare(name, length, hva, bitmap, pages_at);
		free(bitmap);
		at = (off_t)(pages_at + length);
		total -= length;
		pages += length / 4096;
		blocks++;
	}
	printf("ramcmp: %" PRIu64 " blocks, %" PRIu64 " pages, %" PRIu64 " differ, %" PRIu64
	       " in the wall clock alone\n", blocks, pages, different, excused);
	return different != 0;
}
