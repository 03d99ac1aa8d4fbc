// SPDX-License-Identifier: GPL-2.0
/* kvmsnap info and kvmsnap verify: what a snapshot file says of itself. */
#include "cli.h"
#include "../snapfile/snapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char info_usage[] =
	"usage: kvmsnap info [--json] FILE\n"
	"Show what is in a mapped-ram file, of kvmsnap's or QEMU's making.\n";

static const char verify_usage[] =
	"usage: kvmsnap verify [--json] FILE\n"
	"Check that a mapped-ram file is whole: its records fit together and every page that it\n"
	"should have can be read from the disk.\n";

/* Options and the one file name; returns a status to exit with, or -1 to go on. */
static int parse(int argc, char **argv, const char *usage, bool *json, const char **path)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	int c;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'j':
			*json = true;
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			fputs(usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (argc - optind != 1)
		return usage_error(usage, argc == optind ? "FILE is missing" : "one FILE at a time");
	*path = argv[optind];
	return -1;
}

static int open_and_parse(struct snapfile *snap, const char *path, struct error *err)
{
	struct error inner;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return error_set(err, errno, "%s: %s", path, strerror(errno));
	ret = snap_parse(snap, fd, &inner);
	if (ret)
		error_set(err, -ret, "%s: %s", path, inner.text);
	close(fd);
	return ret;
}

static json_t *describe(const struct snapfile *snap)
{
	json_t *blocks = json_array(), *devices = json_array();
	size_t i;

	for (i = 0; i < snap->nr_blocks; i++) {
		const struct snap_block *b = &snap->blocks[i];

		json_array_append_new(blocks, json_pack(
			"{s:s, s:I, s:I, s:I, s:I}", "name", b->name, "bytes", (json_int_t)b->length,
			"present_bytes", (json_int_t)(snap_pages_present(b) * SNAP_PAGE),
			"bitmap_offset", (json_int_t)b->bitmap_offset,
			"pages_offset", (json_int_t)b->pages_offset));
	}
	for (i = 0; i < snap->nr_devices; i++)
		json_array_append_new(devices, json_string(snap->devices[i]));
	return json_pack("{s:s, s:I, s:o, s:o}", "machine", snap->machine,
			 "bytes", (json_int_t)snap->size, "blocks", blocks, "devices", devices);
}

int cmd_info(int argc, char **argv)
{
	uint64_t total = 0, present = 0;
	struct snapfile snap;
	struct error err;
	const char *path;
	bool json = false;
	json_t *root;
	size_t i;
	int status = parse(argc, argv, info_usage, &json, &path);

	if (status >= 0)
		return status;
	if (open_and_parse(&snap, path, &err)) {
		complain(&err);
		return 1;
	}
	if (json) {
		root = describe(&snap);
		json_dumpf(root, stdout, JSON_INDENT(2));
		putchar('\n');
		json_decref(root);
	} else {
		printf("machine  %s\nsize     %s\n", snap.machine, human_bytes((double)snap.size));
		printf("%-40s %12s %12s\n", "RAM block", "size", "in the file");
		for (i = 0; i < snap.nr_blocks; i++) {
			uint64_t in = snap_pages_present(&snap.blocks[i]) * SNAP_PAGE;

			printf("%-40s %12s %12s\n", snap.blocks[i].name,
			       human_bytes((double)snap.blocks[i].length), human_bytes((double)in));
			total += snap.blocks[i].length;
			present += in;
		}
		printf("%-40s %12s %12s\n", "in all", human_bytes((double)total),
		       human_bytes((double)present));
		printf("devices ");
		for (i = 0; i < snap.nr_devices; i++)
			printf(" %s", snap.devices[i]);
		putchar('\n');
	}
	snap_free(&snap);
	return 0;
}

struct verify {
	uint64_t total;
	double began;
};

static void verify_progress(uint64_t bytes, void *data)
{
	struct verify *v = data;

	progress_show("verifying", bytes, v->total, bytes, v->began);
}

int cmd_verify(int argc, char **argv)
{
	struct verify v = { .began = now() };
	struct snapfile snap = { 0 };
	struct error err;
	const char *path;
	bool json = false;
	json_t *root;
	size_t i;
	int ret, status = parse(argc, argv, verify_usage, &json, &path);

	if (status >= 0)
		return status;
	ret = open_and_parse(&snap, path, &err);
	for (i = 0; i < snap.nr_blocks; i++)
		v.total += snap_pages_present(&snap.blocks[i]) * SNAP_PAGE;
	if (!ret)
		ret = snap_read_pages(&snap, path, verify_progress, &v, &err);
	progress_clear();
	if (json) {
		root = json_pack("{s:s, s:b, s:I, s:s*}", "file", path, "whole", !ret,
				 "read_bytes", (json_int_t)(ret ? 0 : v.total),
				 "error", ret ? err.text : NULL);
		json_dumpf(root, stdout, JSON_INDENT(2));
		putchar('\n');
		json_decref(root);
	} else if (!ret) {
		printf("%s: whole; %zu RAM blocks, %zu device sections, %s of pages read in %.2f s\n",
		       path, snap.nr_blocks, snap.nr_devices, human_bytes((double)v.total),
		       now() - v.began);
	}
	if (ret)
		complain(&err);
	snap_free(&snap);
	return ret ? 1 : 0;
}
