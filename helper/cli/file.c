// SPDX-License-Identifier: GPL-2.0
/* kvmsnap info, verify, list and compact: what a snapshot file says of itself, and keeps. */
#include "cli.h"
#include "file.h"
#include "folder.h"
#include "guardian.h"
#include "options.h"
#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char info_usage[] =
	"usage: kvmsnap info [--json] [--generation N] FILE\n"
	"Show what is in a mapped-ram file, of kvmsnap's or QEMU's making: in its newest generation.\n";

static const char verify_usage[] =
	"usage: kvmsnap verify [--json] [--generation N] FILE\n"
	"Check that a mapped-ram file is whole: its records fit together, every page that it should\n"
	"have can be read from the disk, and is what was written, if there are checksums.  Of all its\n"
	"generations, or of one.\n";

static const char list_usage[] =
	"usage: kvmsnap list [--json] FILE|FOLDER\n"
	"Show the generations in a file, or in the files of a folder, and how QEMU loads them.\n";

static const char compact_usage[] =
	"usage: kvmsnap compact [--keep N] [--sync none|data|full] FILE\n"
	"Drop all but the N (1) newest generations from a file that others were appended to.  It is\n"
	"written anew and takes the old one's place when it is whole.\n";

struct arguments {
	const char *path;
	bool json;
	uint64_t generation, keep;
	enum sync sync;
};

/* Options of all these, and the one file name; a status to exit with, or -1 to go on. */
static int parse(int argc, char **argv, const char *usage, const struct option *longs,
		 struct arguments *args)
{
	int c;

	*args = (struct arguments){ .keep = 1, .sync = SYNC_FULL };
	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'j':
			args->json = true;
			break;
		case 'g':
			if (!parse_number(optarg, &args->generation))
				return usage_error(usage, "--generation %s: not a number of 1 or more", optarg);
			break;
		case 'k':
			if (!parse_number(optarg, &args->keep))
				return usage_error(usage, "--keep %s: not a number of 1 or more", optarg);
			break;
		case 's':
			if (parse_sync(optarg, &args->sync))
				return usage_error(usage, "--sync %s: none, data or full", optarg);
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
	args->path = argv[optind];
	return -1;
}

/* Read the generations of @fd, which is @path, and return it; on an error it is closed. */
static int load_from(struct chain *chain, int fd, const char *path, struct error *err)
{
	struct error inner;
	int ret;

	ret = chain_load(chain, fd, &inner);
	if (!ret)
		return fd;
	error_set(err, -ret, "%s: %s", path, inner.text);
	close(fd);
	return ret;
}

int file_load(struct chain *chain, const char *path, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return error_set(err, errno, "%s: %s", path, strerror(errno));
	return load_from(chain, fd, path, err);
}

int file_find(struct chain *chain, const char *path, uint64_t number, struct generation **generation,
	      struct error *err)
{
	struct error end;
	int fd = file_load(chain, path, err);

	if (fd < 0)
		return fd;
	*generation = chain_find(chain, number, fd, err);
	if (!*generation) {
		chain_free(chain);
		close(fd);
		return -ENOENT;
	}
	if (!number && chain_check_end(chain, &end))
		fprintf(stderr, "kvmsnap: %s: %s; the newest one before is taken\n", path, end.text);
	return fd;
}

void file_incoming(char *uri, size_t size, const char *path, const struct record *record)
{
	if (record->stream)
		snprintf(uri, size, "file:%s,offset=%" PRIu64, path, record->stream);
	else
		snprintf(uri, size, "file:%s", path);
}

/* Of all pages of a generation, which need not be loaded; 0 with @err set when that can't be done. */
static uint64_t bytes_of(struct generation *generation, int fd, struct error *err)
{
	bool loaded = generation->snap.nr_blocks;
	uint64_t bytes = generation_load(generation, fd, err) ? 0 : generation_bytes(generation);

	if (!loaded)
		generation_unload(generation);
	return bytes;
}

/* Pages of a block that a generation has. */
static uint64_t present_pages(const struct generation *generation, const char *name)
{
	uint64_t pages = 0;
	size_t i;

	for (i = 0; i < generation->snap.nr_blocks; i++)
		if (!strcmp(generation->snap.blocks[i].name, name))
			pages += snap_pages_present(&generation->snap.blocks[i]);
	return pages;
}

static json_t *describe(const struct generation *generation)
{
	json_t *blocks = json_array(), *devices = json_array();
	const struct record *record = &generation->record;
	size_t i;

	for (i = 0; i < record->nr_blocks; i++) {
		const struct record_block *b = &record->blocks[i];

		json_array_append_new(blocks, json_pack(
			"{s:o, s:I, s:I, s:I}", "name", json_text(b->name), "bytes", (json_int_t)b->length,
			"present_bytes", (json_int_t)(present_pages(generation, b->name) * SNAP_PAGE),
			"pages_offset", (json_int_t)b->pages_offset));
	}
	for (i = 0; i < generation->snap.nr_devices; i++)
		json_array_append_new(devices, json_text(generation->snap.devices[i].name));
	return json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:b, s:o, s:o, s:o}", "machine", json_text(generation->snap.machine),
			 "bytes", (json_int_t)generation->snap.size,
			 "generation", (json_int_t)record->generation, "time", (json_int_t)record->time,
			 "stream", (json_int_t)record->stream, "end", (json_int_t)record->end, "checksums", record->checksums != 0,
			 "parent", json_text(record->parent), "blocks", blocks, "devices", devices);
}

/* "2026-11-24 19:15:00", or "-". */
static const char *when(int64_t seconds)
{
	static char text[32];
	time_t t = (time_t)seconds;
	struct tm tm;

	if (!seconds || !localtime_r(&t, &tm) || !strftime(text, sizeof(text), "%F %T", &tm))
		return "-";
	return text;
}

static void print_info(const struct chain *chain, const struct generation *generation)
{
	const struct record *record = &generation->record;
	uint64_t total = 0, present = 0;
	size_t i;

	printf("machine  %s\nsize     %s\n", generation->snap.machine,
	       human_bytes((double)generation->snap.size));
	if (record->generation)
		printf("saved    %s, generation %" PRIu64 " (of %zu in the file)%s%s%s\n", when(record->time),
		       record->generation, chain->nr, record->checksums ? ", with checksums" : "",
		       record->parent[0] ? ", over a reflink of " : "", record->parent);
	printf("%-40s %12s %12s\n", "RAM block", "size", "in the file");
	for (i = 0; i < record->nr_blocks; i++) {
		uint64_t in = present_pages(generation, record->blocks[i].name) * SNAP_PAGE;

		printf("%-40s %12s %12s\n", record->blocks[i].name,
		       human_bytes((double)record->blocks[i].length), human_bytes((double)in));
		total += record->blocks[i].length;
		present += in;
	}
	printf("%-40s %12s %12s\n", "in all", human_bytes((double)total), human_bytes((double)present));
	printf("devices ");
	for (i = 0; i < generation->snap.nr_devices; i++)
		printf(" %s", generation->snap.devices[i].name);
	putchar('\n');
}

static void print_json(json_t *json)
{
	json_dumpf(json, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(json);
}

int cmd_info(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "generation", required_argument, NULL, 'g' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	struct generation *generation;
	struct arguments args;
	struct chain chain;
	struct error err;
	int fd, status = parse(argc, argv, info_usage, longs, &args);

	if (status >= 0)
		return status;
	fd = file_find(&chain, args.path, args.generation, &generation, &err);
	if (fd < 0) {
		complain(&err);
		return 1;
	}
	if (args.json)
		print_json(describe(generation));
	else
		print_info(&chain, generation);
	chain_free(&chain);
	close(fd);
	return 0;
}

struct verify {
	uint64_t done, total, checked;	/* bytes */
	double began;
};

static void verify_progress(uint64_t bytes, void *data)
{
	struct verify *v = data;

	progress_show("verifying", v->done + bytes, v->total, v->done + bytes, v->began);
}

/* One generation; what is wrong with it does not hide what is wrong with others. */
static int verify_one(struct generation *generation, const char *path, struct verify *v, int fd, struct error *err)
{
	uint64_t checked = 0;
	int ret = generation_load(generation, fd, err);

	if (!ret)
		ret = snap_read_pages(generation, fd, path, verify_progress, v, &checked, err);
	v->done += generation_bytes(generation);
	v->checked += checked;
	generation_unload(generation);
	return ret;
}

/* One more thing that is wrong: @err is the first, and the others are told of at once.  -EBADMSG. */
static int also_wrong(int before, const struct error *found, struct error *err)
{
	if (before)
		complain(found);
	else
		*err = *found;
	return -EBADMSG;
}

static int verify_all(const struct chain *chain, const struct arguments *args, struct verify *v, int fd,
		      struct error *err)
{
	struct error found;
	size_t i;
	int ret = 0;

	for (i = 0; i < chain->nr; i++)
		if (!args->generation || chain->generation[i].record.generation == args->generation)
			v->total += bytes_of(&chain->generation[i], fd, &found);
	for (i = 0; i < chain->nr; i++) {
		if (args->generation && chain->generation[i].record.generation != args->generation)
			continue;
		if (verify_one(&chain->generation[i], args->path, v, fd, &found))
			ret = also_wrong(ret, &found, err);
	}
	progress_clear();
	if (!args->generation && chain_check_end(chain, &found))
		ret = also_wrong(ret, &found, err);
	return ret;
}

int cmd_verify(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "generation", required_argument, NULL, 'g' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	struct verify v = { .began = now() };
	struct chain chain = { 0 };
	struct arguments args;
	struct error err = { "" };
	int fd, ret, status = parse(argc, argv, verify_usage, longs, &args);

	if (status >= 0)
		return status;
	fd = ret = file_load(&chain, args.path, &err);
	if (ret >= 0 && args.generation && !chain_find(&chain, args.generation, fd, &err))
		ret = -ENOENT;
	if (ret >= 0)
		ret = verify_all(&chain, &args, &v, fd, &err);
	if (args.json) {
		print_json(json_pack("{s:o, s:b, s:I, s:I, s:I, s:o*}", "file", json_text(args.path), "whole", !ret,
				     "generations", (json_int_t)chain.nr,
				     "read_bytes", (json_int_t)(ret ? 0 : v.total),
				     "checked_bytes", (json_int_t)(ret ? 0 : v.checked),
				     "error", json_text(ret ? err.text : NULL)));
	} else if (!ret) {
		printf("%s: whole; %zu generation%s, %s of pages read in %.2f s, %s\n", args.path,
		       args.generation ? 1 : chain.nr, args.generation || chain.nr == 1 ? "" : "s",
		       human_bytes((double)v.total), now() - v.began,
		       v.checked == v.total && v.checked ? "all as their checksums say" :
		       v.checked ? "some with checksums, which are right" : "without checksums");
	}
	if (ret)
		complain(&err);
	chain_free(&chain);
	if (fd >= 0)
		close(fd);
	return ret ? 1 : 0;
}

/* One line, or one object, a generation; "damaged" where its stream can't be read. */
static int list_generation(const char *path, struct generation *generation, int fd, json_t *json, struct error *err)
{
	const struct record *record = &generation->record;
	char incoming[4352];
	struct error damage = { "" };
	uint64_t ram = 0, content = bytes_of(generation, fd, &damage);
	size_t i;

	for (i = 0; i < record->nr_blocks; i++)
		ram += record->blocks[i].length;
	file_incoming(incoming, sizeof(incoming), path, record);
	if (json)
		json_array_append_new(json, json_pack(
			"{s:I, s:I, s:o, s:I, s:I, s:I, s:o, s:o, s:o*}", "generation", (json_int_t)record->generation,
			"time", (json_int_t)record->time, "file", json_text(path), "ram_bytes", (json_int_t)ram,
			"content_bytes", (json_int_t)content,
			"written_bytes", (json_int_t)record->written, "parent", json_text(record->parent),
			"incoming", json_text(incoming),
			"error", json_text(damage.text[0] ? damage.text : NULL)));
	else
		printf("%10" PRIu64 "  %-19s  %10s  %10s  -incoming %s\n", record->generation,
		       when(record->time), damage.text[0] ? "damaged" : human_bytes((double)content),
		       record->generation ? human_bytes((double)record->written) : "-", incoming);
	return damage.text[0] ? error_set(err, EBADMSG, "%s: %.900s", path, damage.text) : 0;
}

static int list_file(const char *path, json_t *json, struct error *err)
{
	struct chain chain;
	struct error inner;
	int fd = file_load(&chain, path, err);
	size_t i;
	int ret = 0;

	if (fd < 0)
		return fd;
	for (i = 0; i < chain.nr; i++)
		if (list_generation(path, &chain.generation[i], fd, json, err))
			ret = -EBADMSG;
	if (chain_check_end(&chain, &inner))
		ret = error_set(err, EBADMSG, "%s: %.900s", path, inner.text);
	chain_free(&chain);
	close(fd);
	return ret;
}

int cmd_list(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	struct folder folder = { 0 };
	struct arguments args;
	struct error err;
	struct stat st;
	json_t *json;
	size_t i;
	int ret = 0, status = parse(argc, argv, list_usage, longs, &args);

	if (status >= 0)
		return status;
	json = args.json ? json_array() : NULL;
	if (!json)
		printf("generation  %-19s  %10s  %10s  to load it: -global migration.mapped-ram=on and\n", "saved",
		       "content", "written");
	if (stat(args.path, &st) == 0 && S_ISDIR(st.st_mode)) {
		ret = folder_read(&folder, args.path, NULL, &err);
		if (ret)
			complain(&err);
		/* One that is damaged does not hide the others. */
		for (i = 0; i < folder.nr; i++) {
			if (list_file(folder.file[i].path, json, &err)) {
				complain(&err);
				ret = -EBADMSG;
			}
		}
		folder_free(&folder);
	} else {
		ret = list_file(args.path, json, &err);
		if (ret)
			complain(&err);
	}
	if (json)
		print_json(json);
	return ret ? 1 : 0;
}

struct compaction {
	const volatile sig_atomic_t *interrupted;
	uint64_t total;
	double began;
};

static int compact_progress(uint64_t bytes, void *data)
{
	struct compaction *c = data;

	progress_show("compacting", bytes, c->total, bytes, c->began);
	return *c->interrupted;
}

static int compact(const struct arguments *args, struct error *err)
{
	struct compaction c = { .interrupted = catch_signals(), .began = now() };
	struct target target = { .fd = -1 };
	struct chain chain;
	struct error ignored;
	struct stat before, after;
	int fd = open(args->path, O_RDWR | O_CLOEXEC), ret;
	size_t i, first = 0;

	if (fd < 0)
		return error_set(err, errno, "%s: %s", args->path, strerror(errno));
	/* From here on nobody appends; and nobody has put another in its place before. */
	if (target_lock(fd, TARGET_END, false) == -EBUSY || fstat(fd, &before) < 0 ||
	    !target_has_name(fd, args->path)) {
		close(fd);
		return error_set(err, EBUSY, "%s is being appended to; wait, or have checkpoint compact it (--keep)",
				 args->path);
	}
	/* Nor has a descriptor of it what it held written over. */
	if (target_lock(fd, TARGET_CONTENT, true) == -EBUSY) {
		close(fd);
		return error_set(err, EBUSY, "%s is being written", args->path);
	}
	ret = load_from(&chain, fd, args->path, err);
	if (ret < 0)
		return ret;
	ret = chain_check_end(&chain, err);
	first = chain.nr > args->keep ? chain.nr - args->keep : 0;
	for (i = first; i < chain.nr && !ret; i++)
		c.total += bytes_of(&chain.generation[i], fd, &ignored);
	if (!ret)
		ret = target_open(&target, args->path, -1, true, err);
	/* Nor has a save meanwhile: from here on it would find the file that we write. */
	if (!ret && !target_has_name(fd, args->path))
		ret = error_set(err, EBUSY, "%s was replaced meanwhile; compact it again, if need be", args->path);
	if (!ret)
		ret = chain_copy(&chain, fd, first, chain.nr - 1, target.fd, compact_progress, &c, err);
	progress_clear();
	if (!ret)
		ret = target_commit(&target, args->sync, err);
	if (!ret && fstat(target.fd, &after) == 0)
		printf("%s: %zu of %zu generations, %s on the disk (%s before)\n", args->path, chain.nr - first,
		       chain.nr, human_bytes((double)after.st_blocks * 512),
		       human_bytes((double)before.st_blocks * 512));
	target_close(&target);
	close(fd);
	chain_free(&chain);
	return ret;
}

int cmd_compact(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "keep", required_argument, NULL, 'k' },
		{ "sync", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	struct arguments args;
	struct error err;
	int status = parse(argc, argv, compact_usage, longs, &args);

	if (status >= 0)
		return status;
	if (!compact(&args, &err))
		return 0;
	complain(&err);
	return take_signal() ? EXIT_INTERRUPTED : 1;
}
