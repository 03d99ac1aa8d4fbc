// SPDX-License-Identifier: GPL-2.0
#include "guest.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOUR_GIB	(4ULL << 30)
#define CMOS_UNIT	(64u << 10)
#define CMOS_BYTES	128

/* Of a section's contents: integers are big-endian. */
static uint32_t take32(const uint8_t **at)
{
	uint32_t value;

	memcpy(&value, *at, 4);
	*at += 4;
	return be32toh(value);
}

static uint64_t take64(const uint8_t **at)
{
	uint64_t high = take32(at);

	return high << 32 | take32(at);
}

/* The beginning of QEMU's vmstate_x86_cpu. */
#define CPU_BYTES	(18 * 8 + 4 + 4 * 2 + 8 * 10 + GUEST_SEGMENTS * 20 + 20 + 4 * 8)

static void take_cpu(struct guest_cpu *cpu, const uint8_t *at)
{
	size_t i;

	for (i = 0; i < 16; i++)
		cpu->regs[i] = take64(&at);
	cpu->rip = take64(&at);
	cpu->rflags = take64(&at);
	at += 4 + 4 * 2 + 8 * 10;	/* hflags; FPU: control, status, tags, format, registers */
	for (i = 0; i < GUEST_SEGMENTS; i++) {
		struct guest_segment *segment = &cpu->segment[i];

		segment->selector = take32(&at);
		segment->base = take64(&at);
		segment->limit = take32(&at);
		segment->flags = take32(&at);
	}
	at += 4 + 8 + 8;		/* sysenter: cs, esp, eip */
	cpu->cr0 = take64(&at);
	cpu->cr2 = take64(&at);
	cpu->cr3 = take64(&at);
	cpu->cr4 = take64(&at);
}

static const struct snap_device *find_device(const struct snapfile *snap, const char *name)
{
	size_t i;

	for (i = 0; i < snap->nr_devices; i++)
		if (!strcmp(snap->devices[i].name, name))
			return &snap->devices[i];
	return NULL;
}

/* The first @len bytes of a section; -ENODATA without @err when there is no such. */
static int read_device(const struct snapfile *snap, int fd, const char *name, void *buf, size_t len,
		       struct error *err)
{
	const struct snap_device *device = find_device(snap, name);
	int ret;

	if (!device)
		return -ENODATA;
	if (device->length < len)
		return error_set(err, EBADMSG, "device state %s is too short", name);
	ret = snap_pread(fd, buf, len, device->offset);
	return ret ? error_set(err, -ret, "reading device state %s: %s", name, strerror(-ret)) : 0;
}

static int read_cpus(struct guest *guest, const struct snapfile *snap, int fd, struct error *err)
{
	uint8_t buf[CPU_BYTES];
	char name[32] = "cpu";
	struct guest_cpu *more;
	int ret;

	for (;;) {
		if (guest->nr_cpus)
			snprintf(name, sizeof(name), "cpu#%zu", guest->nr_cpus);
		ret = read_device(snap, fd, name, buf, sizeof(buf), err);
		if (ret)
			break;
		more = realloc(guest->cpu, (guest->nr_cpus + 1) * sizeof(*more));
		if (!more)
			return error_set(err, ENOMEM, "out of memory");
		guest->cpu = more;
		take_cpu(&more[guest->nr_cpus++], buf);
	}
	if (ret == -ENODATA)
		ret = guest->nr_cpus ? 0 : error_set(err, ENODATA, "no vCPU's state is in the file");
	return ret;
}

/* A piece of main memory, of which there are guest->nr_ranges before; it is split at the hole below 4 GiB. */
static int add_block(struct guest *guest, const struct record_block *block, uint64_t *at, uint64_t below,
		     struct error *err)
{
	uint64_t offset = 0, length;

	for (; offset < block->length; offset += length, *at += length) {
		struct guest_range *range = &guest->range[guest->nr_ranges];

		if (guest->nr_ranges == GUEST_MAX_RANGES)
			return error_set(err, E2BIG, "more than %d RAM blocks", GUEST_MAX_RANGES);
		length = block->length - offset;
		if (*at < below && length > below - *at)
			length = below - *at;
		*range = (struct guest_range){
			.block = block->name, .offset = offset, .length = length,
			.phys = *at < below ? *at : *at - below + FOUR_GIB,
		};
		guest->nr_ranges++;
	}
	return 0;
}

/* Is it all of the RAM that the firmware was told of?  It counts in units. */
static bool fits(uint64_t length, uint64_t told)
{
	return length / CMOS_UNIT == told / CMOS_UNIT;
}

static int map_named(struct guest *guest, const struct record *record, const char *ram, uint64_t below,
		     uint64_t told, struct error *err)
{
	const struct record_block *block;
	uint64_t at = 0;
	size_t len;
	int ret;

	for (; *ram; ram += len + (ram[len] == ',')) {
		len = strcspn(ram, ",");
		block = record_find_block(record, ram, len);
		if (!block)
			return error_set(err, ENOENT, "there is no RAM block %.*s; kvmsnap info names them", (int)len, ram);
		ret = add_block(guest, block, &at, below, err);
		if (ret)
			return ret;
	}
	return fits(at, told) ? 0 :
	       error_set(err, EINVAL, "these blocks are not the whole of the VM's main memory, %llu bytes; kvmsnap info names others",
			 (unsigned long long)told);
}

/* Where main memory is. */
static int map_ram(struct guest *guest, const struct generation *generation, int fd, const char *ram,
		   struct error *err)
{
	const struct record *record = &generation->record;
	uint8_t cmos[CMOS_BYTES];
	uint64_t below, above, at = 0;
	size_t i;
	int ret = read_device(&generation->snap, fd, "mc146818rtc", cmos, sizeof(cmos), err);

	if (ret == -ENODATA)
		return error_set(err, ENODATA, "where the VM's memory lies is not in the file: it has no mc146818rtc; export its blocks with --format raw --block");
	if (ret)
		return ret;
	below = (uint64_t)(cmos[0x34] | cmos[0x35] << 8) * CMOS_UNIT;
	below = below ? below + (16u << 20) : (uint64_t)(cmos[0x30] | cmos[0x31] << 8) * 1024 + (1u << 20);
	above = (uint64_t)(cmos[0x5b] | cmos[0x5c] << 8 | cmos[0x5d] << 16) * CMOS_UNIT;
	if (ram)
		return map_named(guest, record, ram, below, below + above, err);
	for (i = 0; i < record->nr_blocks; i++)
		if (fits(record->blocks[i].length, below + above))
			return add_block(guest, &record->blocks[i], &at, above ? below : UINT64_MAX, err);
	return error_set(err, EINVAL,
			 "no RAM block has the size of the VM's main memory, %llu bytes; if it consists of several, name them in their order, as in --ram m0,m1",
			 (unsigned long long)(below + above));
}

int guest_read(struct guest *guest, const struct generation *generation, int fd, const char *ram,
	       struct error *err)
{
	int ret;

	*guest = (struct guest){ 0 };
	ret = map_ram(guest, generation, fd, ram, err);
	if (!ret)
		ret = read_cpus(guest, &generation->snap, fd, err);
	if (ret)
		guest_free(guest);
	return ret;
}

void guest_free(struct guest *guest)
{
	free(guest->cpu);
	*guest = (struct guest){ 0 };
}

/* A walk of page tables, and what it has found so far. */
struct walk {
	const struct guest *guest;
	const struct generation *generation;
	int fd;
	uint64_t tables;		/* that may still be read: a sound guest has fewer than pages */
	struct guest_mapping *mapping;
	size_t nr, size;
	int ret;
};

#define MAX_MAPPINGS	(1u << 20)

#define PTE_PRESENT	1ULL
#define PTE_LARGE	(1ULL << 7)
#define PTE_ADDRESS	0x000ffffffffff000ULL
#define CR4_LA57	(1ULL << 12)

const struct guest_range *guest_range_of(const struct guest *guest, uint64_t phys)
{
	size_t i;

	for (i = 0; i < guest->nr_ranges; i++)
		if (phys >= guest->range[i].phys && phys - guest->range[i].phys < guest->range[i].length)
			return &guest->range[i];
	return NULL;
}

/* What is mapped but no RAM, such as a device's registers, is left out. */
static void add_mapping(struct walk *walk, uint64_t virt, uint64_t phys, uint64_t length)
{
	struct guest_mapping *last = walk->nr ? &walk->mapping[walk->nr - 1] : NULL, *more;
	const struct guest_range *range;
	uint64_t left;

	for (; length && (range = guest_range_of(walk->guest, phys)); virt += left, phys += left, length -= left) {
		left = range->length - (phys - range->phys);
		left = left < length ? left : length;
		if (last && last->virt + last->length == virt && last->phys + last->length == phys) {
			last->length += left;
			continue;
		}
		if (walk->nr == walk->size) {
			walk->size = walk->size ? walk->size * 2 : 1024;
			more = walk->size > MAX_MAPPINGS ? NULL : realloc(walk->mapping, walk->size * sizeof(*more));
			if (!more) {
				walk->ret = -ENOMEM;
				return;
			}
			walk->mapping = more;
		}
		last = &walk->mapping[walk->nr++];
		*last = (struct guest_mapping){ virt, phys, left };
	}
}

/* The table at @phys, whose entries map 4 KiB at level 1, 512 times as much at each above. */
static void walk_table(struct walk *walk, uint64_t phys, int level, uint64_t virt, unsigned int first)
{
	const struct guest_range *range = guest_range_of(walk->guest, phys);
	uint64_t table[512], offset, size = SNAP_PAGE << 9 * (level - 1), entry;
	unsigned int i;

	if (!range || !walk->tables)
		return;
	walk->tables--;
	offset = generation_page(walk->generation, range->block, (range->offset + phys - range->phys) / SNAP_PAGE);
	if (!offset)
		return;		/* zeros */
	walk->ret = snap_pread(walk->fd, table, sizeof(table), offset);
	for (i = first; i < 512 && !walk->ret; i++) {
		entry = le64toh(table[i]);
		if (!(entry & PTE_PRESENT))
			continue;
		if (level == 1 || (level <= 3 && entry & PTE_LARGE))
			add_mapping(walk, virt + i * size, entry & PTE_ADDRESS & ~(size - 1), size);
		else
			walk_table(walk, entry & PTE_ADDRESS, level - 1, virt + i * size, 0);
	}
}

static int by_length(const void *a, const void *b)
{
	const struct guest_mapping *x = a, *y = b;

	return x->length < y->length ? 1 : x->length > y->length ? -1 : 0;
}

int64_t guest_mappings(const struct guest *guest, const struct generation *generation, int fd, size_t max,
		       struct guest_mapping **mappings, struct error *err)
{
	struct walk walk = { .guest = guest, .generation = generation, .fd = fd };
	const struct guest_cpu *cpu = &guest->cpu[0];
	int levels;
	size_t i;

	for (i = 0; i < guest->nr_ranges; i++)
		walk.tables += guest->range[i].length / SNAP_PAGE;
	for (i = 0; i < guest->nr_cpus; i++) {
		if (!(guest->cpu[i].segment[GUEST_CS].selector & 3)) {
			cpu = &guest->cpu[i];
			break;
		}
	}
	levels = cpu->cr4 & CR4_LA57 ? 5 : 4;
	/* The upper half, whose addresses have ones in front. */
	walk_table(&walk, cpu->cr3 & PTE_ADDRESS, levels, ~0ULL << (levels == 5 ? 57 : 48), 256);
	if (walk.ret) {
		free(walk.mapping);
		return error_set(err, -walk.ret, "reading the guest's page tables: %s", strerror(-walk.ret));
	}
	if (walk.nr > max) {
		qsort(walk.mapping, walk.nr, sizeof(*walk.mapping), by_length);
		walk.nr = max;
	}
	*mappings = walk.mapping;
	return (int64_t)walk.nr;
}
