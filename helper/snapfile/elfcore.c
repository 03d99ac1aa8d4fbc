// SPDX-License-Identifier: GPL-2.0
#include "elfcore.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/procfs.h>
#include <unistd.h>

#define MAX_SEGMENTS	60000	/* what e_phnum can tell, and some room */

/* QEMU's note, version 1 (target/i386/arch_dump.c). */
struct note_segment {
	uint32_t selector, limit, flags, pad;
	uint64_t base;
};

struct note_state {
	uint32_t version, size;
	uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8_to_r15[8], rip, rflags;
	struct note_segment cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt;
	uint64_t cr[5];
};

static void fill_status(struct elf_prstatus *status, const struct guest_cpu *cpu, size_t nr)
{
	uint64_t *regs = (uint64_t *)status->pr_reg;
	const uint64_t *r = cpu->regs;
	size_t i;
	/* struct user_regs_struct (sys/user.h). */
	const uint64_t values[] = {
		r[15], r[14], r[13], r[12], r[GUEST_RBP], r[GUEST_RBX], r[11], r[10], r[9], r[8], r[GUEST_RAX],
		r[GUEST_RCX], r[GUEST_RDX], r[GUEST_RSI], r[GUEST_RDI], ~0ULL, cpu->rip,
		cpu->segment[GUEST_CS].selector, cpu->rflags, r[GUEST_RSP], cpu->segment[GUEST_SS].selector,
		cpu->segment[GUEST_FS].base, cpu->segment[GUEST_GS].base, cpu->segment[GUEST_DS].selector,
		cpu->segment[GUEST_ES].selector, cpu->segment[GUEST_FS].selector,
		cpu->segment[GUEST_GS].selector,
	};

	status->pr_pid = (pid_t)nr + 1;
	for (i = 0; i < sizeof(values) / sizeof(*values); i++)
		regs[i] = values[i];
}

static struct note_segment segment(const struct guest_cpu *cpu, int which)
{
	const struct guest_segment *s = &cpu->segment[which];

	return (struct note_segment){ .selector = s->selector, .limit = s->limit, .flags = s->flags, .base = s->base };
}

static void fill_state(struct note_state *state, const struct guest_cpu *cpu)
{
	const uint64_t *r = cpu->regs;

	*state = (struct note_state){
		.version = 1, .size = sizeof(*state),
		.rax = r[GUEST_RAX], .rbx = r[GUEST_RBX], .rcx = r[GUEST_RCX], .rdx = r[GUEST_RDX],
		.rsi = r[GUEST_RSI], .rdi = r[GUEST_RDI], .rsp = r[GUEST_RSP], .rbp = r[GUEST_RBP],
		.rip = cpu->rip, .rflags = cpu->rflags,
		.cs = segment(cpu, GUEST_CS), .ds = segment(cpu, GUEST_DS), .es = segment(cpu, GUEST_ES),
		.fs = segment(cpu, GUEST_FS), .gs = segment(cpu, GUEST_GS), .ss = segment(cpu, GUEST_SS),
		.ldt = segment(cpu, GUEST_LDT), .tr = segment(cpu, GUEST_TR), .gdt = segment(cpu, GUEST_GDT),
		.idt = segment(cpu, GUEST_IDT),
		.cr = { cpu->cr0, 0, cpu->cr2, cpu->cr3, cpu->cr4 },
	};
	memcpy(state->r8_to_r15, r + 8, sizeof(state->r8_to_r15));
}

#define NOTE_BYTES(type)	(sizeof(Elf64_Nhdr) + 8 + sizeof(type))

/* A note with a name of 4 letters; returns what is behind it. */
static char *put_note(char *at, const char *name, uint32_t type, const void *desc, size_t bytes)
{
	Elf64_Nhdr head = { .n_namesz = 5, .n_descsz = (Elf64_Word)bytes, .n_type = type };

	memcpy(at, &head, sizeof(head));
	memcpy(at + sizeof(head), name, 5);
	memcpy(at + sizeof(head) + 8, desc, bytes);
	return at + sizeof(head) + 8 + bytes;
}

/* Notes of all vCPUs, at @offset. */
static int write_notes(const struct guest *guest, int to, uint64_t offset, uint64_t *bytes)
{
	struct note_state state;
	char *buf, *at;
	size_t i;
	int ret;

	*bytes = guest->nr_cpus * (NOTE_BYTES(struct elf_prstatus) + NOTE_BYTES(state));
	buf = at = calloc(1, *bytes);
	if (!buf)
		return -ENOMEM;
	for (i = 0; i < guest->nr_cpus; i++) {
		struct elf_prstatus status = { 0 };

		fill_status(&status, &guest->cpu[i], i);
		at = put_note(at, "CORE", NT_PRSTATUS, &status, sizeof(status));
	}
	for (i = 0; i < guest->nr_cpus; i++) {
		fill_state(&state, &guest->cpu[i]);
		at = put_note(at, "QEMU", 0, &state, sizeof(state));
	}
	ret = snap_pwrite(to, buf, *bytes, offset);
	free(buf);
	return ret;
}

/* Where the file has a guest-physical address: ranges are one behind the other from @base on. */
static uint64_t place(const struct guest *guest, uint64_t base, uint64_t phys)
{
	const struct guest_range *range = guest_range_of(guest, phys), *before;

	for (before = guest->range; before < range; before++)
		base += before->length;
	return range ? base + phys - range->phys : 0;
}

static Elf64_Phdr load(uint64_t virt, uint64_t phys, uint64_t length, uint64_t offset)
{
	return (Elf64_Phdr){
		.p_type = PT_LOAD, .p_flags = PF_R | PF_W | PF_X, .p_offset = offset, .p_vaddr = virt, .p_paddr = phys,
		.p_filesz = length, .p_memsz = length,
	};
}

/* All before the pages, which begin at *pages. */
static int write_head(const struct guest *guest, const struct guest_mapping *mapping, size_t nr_mappings, int to,
		      uint64_t *pages)
{
	size_t nr = 1 + guest->nr_ranges + nr_mappings, i;
	Elf64_Phdr *segments = calloc(nr, sizeof(*segments)), *next;
	Elf64_Ehdr head = {
		.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
		.e_type = ET_CORE, .e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_phoff = sizeof(head),
		.e_ehsize = sizeof(head), .e_phentsize = sizeof(*segments), .e_phnum = (Elf64_Half)nr,
	};
	uint64_t notes = sizeof(head) + nr * sizeof(*segments), bytes;
	int ret = segments ? write_notes(guest, to, notes, &bytes) : -ENOMEM;

	if (!ret) {
		*pages = snap_round_up(notes + bytes, SNAP_ALIGN);
		segments[0] = (Elf64_Phdr){ .p_type = PT_NOTE, .p_offset = notes, .p_filesz = bytes, .p_memsz = bytes };
		next = segments + 1;
		for (i = 0; i < guest->nr_ranges; i++)
			*next++ = load(guest->range[i].phys, guest->range[i].phys, guest->range[i].length,
				       place(guest, *pages, guest->range[i].phys));
		for (i = 0; i < nr_mappings; i++)
			*next++ = load(mapping[i].virt, mapping[i].phys, mapping[i].length,
				       place(guest, *pages, mapping[i].phys));
		ret = snap_pwrite(to, segments, nr * sizeof(*segments), sizeof(head));
	}
	if (!ret)
		ret = snap_pwrite(to, &head, sizeof(head), 0);
	free(segments);
	return ret;
}

int elfcore_write(const struct generation *generation, int fd, const struct guest *guest, int to,
		  int (*progress)(uint64_t bytes, void *data), void *data, struct error *err)
{
	struct guest_mapping *mapping = NULL;
	uint64_t at, done = 0;
	int64_t nr = guest_mappings(guest, generation, fd, MAX_SEGMENTS, &mapping, err);
	size_t i;
	int ret;

	if (nr < 0)
		return (int)nr;
	ret = write_head(guest, mapping, (size_t)nr, to, &at);
	free(mapping);
	if (ret)
		return error_set(err, -ret, "writing the core's head: %s", strerror(-ret));
	for (i = 0; i < guest->nr_ranges && !ret; i++) {
		const struct guest_range *range = &guest->range[i];

		ret = generation_copy(generation, fd, range->block, range->offset, range->length, to, at, progress,
				      data, &done, err);
		at += range->length;
	}
	if (!ret && ftruncate(to, (off_t)at) < 0)
		ret = error_set(err, errno, "sizing the file: %s", strerror(errno));
	return ret;
}
