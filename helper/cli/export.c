// SPDX-License-Identifier: GPL-2.0
/* kvmsnap export: a generation's memory for crash, gdb and the like. */
#include "cli.h"
#include "file.h"
#include "options.h"
#include "target.h"
#include "../snapfile/elfcore.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char export_usage[] =
	"usage: kvmsnap export --format elf|raw [OPTION]... FILE OUTPUT\n"
	"Write the memory of a saved x86 VM in another format.\n"
	"  --format elf      an ELF core with the vCPUs' registers, for crash and gdb\n"
	"  --format raw      guest-physical memory, each byte at its address\n"
	"  --block NAME      raw: only that RAM block (kvmsnap info names them), from 0 on\n"
	"  --ram NAME,NAME   the blocks that main memory consists of, in order, when it is not one\n"
	"  --generation N    which (the newest)\n"
	"  --force           replace OUTPUT\n"
	"  --sync none|data|full   how durable it is when the command ends (none)\n"
	"Memory that was plugged is only to be had with --block.\n";

enum { FORMAT_NONE, FORMAT_ELF, FORMAT_RAW };

struct export {
	const char *path, *output, *block, *ram;
	int format;
	uint64_t generation;
	bool force;
	enum sync sync;

	const volatile sig_atomic_t *interrupted;
	uint64_t total, done;
	double began;
};

static int export_progress(uint64_t bytes, void *data)
{
	struct export *e = data;

	e->done = bytes;
	progress_show("exporting", bytes, e->total, bytes, e->began);
	return *e->interrupted;
}

/* What a range of a block has, each byte at @at and on. */
static int write_range(struct export *e, const struct generation *generation, int fd, const struct guest_range *range,
		       uint64_t at, int to, struct error *err)
{
	int ret = generation_copy(generation, fd, range->block, range->offset, range->length, to, at,
				  export_progress, e, &e->done, err);

	if (!ret && ftruncate(to, (off_t)(at + range->length)) < 0)
		ret = error_set(err, errno, "sizing the file: %s", strerror(errno));
	return ret;
}

static int write_block(struct export *e, const struct generation *generation, int fd, int to, struct error *err)
{
	const struct record_block *block = record_find_block(&generation->record, e->block, strlen(e->block));
	struct guest_range range = { .block = e->block };

	if (!block)
		return error_set(err, ENOENT, "there is no RAM block %s; kvmsnap info names them", e->block);
	range.length = block->length;
	return write_range(e, generation, fd, &range, 0, to, err);
}

static int write_guest(struct export *e, const struct generation *generation, int fd, int to, struct error *err)
{
	struct guest guest;
	size_t i;
	int ret = guest_read(&guest, generation, fd, e->ram, err);

	if (ret)
		return ret;
	if (e->format == FORMAT_ELF)
		ret = elfcore_write(generation, fd, &guest, to, export_progress, e, err);
	for (i = 0; e->format == FORMAT_RAW && i < guest.nr_ranges && !ret; i++)
		ret = write_range(e, generation, fd, &guest.range[i], guest.range[i].phys, to, err);
	guest_free(&guest);
	return ret;
}

static int export(struct export *e, struct error *err)
{
	struct target target = { .fd = -1 };
	struct generation *generation;
	struct chain chain;
	struct error inner;
	int ret, fd = file_find(&chain, e->path, e->generation, &generation, err);

	if (fd < 0)
		return fd;
	ret = target_open(&target, e->output, -1, e->force, err);
	if (!ret && target.device)
		ret = error_set(err, ENOTBLK, "%s is a block device, whose old contents would show in the gaps: name a file",
				e->output);
	if (!ret) {
		e->total = generation_bytes(generation);
		ret = e->block ? write_block(e, generation, fd, target.fd, &inner) :
				 write_guest(e, generation, fd, target.fd, &inner);
		if (ret)
			error_set(err, -ret, "%s: %s", e->path, inner.text);
	}
	progress_clear();
	if (!ret)
		ret = target_commit(&target, e->sync, err);
	if (!ret)
		printf("exported %s: %s of memory in %.2f s\n", e->output, human_bytes((double)e->done),
		       now() - e->began);
	target_close(&target);
	chain_free(&chain);
	close(fd);
	return ret;
}

int cmd_export(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "format", required_argument, NULL, 'F' },
		{ "block", required_argument, NULL, 'b' },
		{ "ram", required_argument, NULL, 'r' },
		{ "generation", required_argument, NULL, 'g' },
		{ "force", no_argument, NULL, 'f' },
		{ "sync", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	struct export e = { .began = now() };
	struct error err;
	int c;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'F':
			e.format = !strcmp(optarg, "elf") ? FORMAT_ELF : !strcmp(optarg, "raw") ? FORMAT_RAW : FORMAT_NONE;
			if (!e.format)
				return usage_error(export_usage, "--format %s: elf or raw", optarg);
			break;
		case 'b':
			e.block = optarg;
			break;
		case 'r':
			e.ram = optarg;
			break;
		case 'g':
			if (!parse_number(optarg, &e.generation))
				return usage_error(export_usage, "--generation %s: not a number of 1 or more", optarg);
			break;
		case 'f':
			e.force = true;
			break;
		case 's':
			if (parse_sync(optarg, &e.sync))
				return usage_error(export_usage, "--sync %s: none, data or full", optarg);
			break;
		case 'h':
			fputs(export_usage, stdout);
			return 0;
		default:
			fputs(export_usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (!e.format)
		return usage_error(export_usage, "--format elf or raw is missing");
	if (e.block && (e.format != FORMAT_RAW || e.ram))
		return usage_error(export_usage, "--block goes with --format raw, without --ram");
	if (argc - optind != 2)
		return usage_error(export_usage, "FILE and OUTPUT, no more and no less");
	e.path = argv[optind];
	e.output = argv[optind + 1];
	e.interrupted = catch_signals();
	if (!export(&e, &err))
		return 0;
	complain(&err);
	return take_signal() ? EXIT_INTERRUPTED : 1;
}
