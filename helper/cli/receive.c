// SPDX-License-Identifier: GPL-2.0
/*
 * kvmsnap receive: what QEMU itself calls, by migrate "exec:kvmsnap receive FILE".  A classic
 * migration stream comes in, live or not, and a mapped-ram file of bounded size goes out: a page that
 * is sent again lands where it was.  QEMU tracks what changes; no module is needed.
 *
 * Pages are written by io_uring, direct, in runs.  What follows them is read when they are on their
 * way to the disk without an error, so that QEMU hears of one while the VM can still go on.
 */
#include "cli.h"
#include "options.h"
#include "target.h"
#include "../snapfile/format.h"
#include "../snapfile/reader.h"
#include "../snapfile/record.h"
#include "../snapfile/snapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char receive_usage[] =
	"usage: kvmsnap receive [OPTION]... FILE\n"
	"Called by QEMU, by the monitor's command\n"
	"  migrate \"exec:kvmsnap receive FILE\"\n"
	"or with a migration stream as standard input: write it as a mapped-ram file.\n"
	"  --force           replace FILE, once the new one is whole\n"
	"  --sync none|data|full   how durable the file is when the command ends (full)\n"
	"  --report          say what was received, on standard error\n";

#define DEPTH		32u
#define RUN		(256u << 10)		/* bytes, of the longest write */
#define MAX_TAIL	(256u << 20)		/* bytes of device state */

/* A write that is being put together, or in flight. */
struct run {
	uint64_t offset;
	unsigned int len;
	bool in_flight;
};

struct receive {
	struct target target;
	struct snapfile snap;
	struct reader in;
	struct snap_block *block;	/* that the last page was of */
	struct io_uring ring;
	int fd;				/* the target, with O_DIRECT */
	bool direct;
	char *buffers;			/* DEPTH of RUN bytes */
	struct run run[DEPTH];
	unsigned int current, in_flight;
	uint64_t written;
	struct error *err;
	int ret;			/* the first error of a write */
};

/* Take one completion, or wait for it. */
static void reap(struct receive *r)
{
	struct io_uring_cqe *cqe;
	struct run *run;
	unsigned int i;
	int ret;

	do {
		ret = io_uring_wait_cqe(&r->ring, &cqe);
	} while (ret == -EINTR);
	if (ret) {
		r->ret = r->ret ? r->ret : error_set(r->err, -ret, "io_uring: %s", strerror(-ret));
		r->in_flight = 0;
		for (i = 0; i < DEPTH; i++)
			r->run[i].in_flight = false;
		return;
	}
	run = &r->run[cqe->user_data];
	ret = cqe->res;
	io_uring_cqe_seen(&r->ring, cqe);
	run->in_flight = false;
	r->in_flight--;
	if (ret != (int)run->len && !r->ret)
		r->ret = error_set(r->err, ret < 0 ? -ret : ENOSPC, "writing RAM at offset %llu of the file: %s",
				   (unsigned long long)run->offset, strerror(ret < 0 ? -ret : ENOSPC));
	else
		r->written += run->len;
	run->len = 0;
}

static bool overlaps(const struct run *a, const struct run *b)
{
	return a->offset < b->offset + b->len && b->offset < a->offset + a->len;
}

/* Send the run off that is being put together, and find room for another. */
static void flush(struct receive *r)
{
	struct run *run = &r->run[r->current];
	struct io_uring_sqe *sqe;
	unsigned int i;
	int ret;

	if (run->len && !r->ret) {
		/* The same place is never in flight twice. */
		for (i = 0; i < DEPTH; i++)
			while (r->run[i].in_flight && overlaps(&r->run[i], run))
				reap(r);
		sqe = io_uring_get_sqe(&r->ring);
		io_uring_prep_write(sqe, r->fd, r->buffers + (size_t)r->current * RUN, run->len, run->offset);
		io_uring_sqe_set_data64(sqe, r->current);
		ret = io_uring_submit(&r->ring);
		run->in_flight = ret == 1;
		r->in_flight += run->in_flight;
		if (!run->in_flight) {
			ret = ret < 0 ? -ret : EAGAIN;
			r->ret = error_set(r->err, ret, "io_uring: %s", strerror(ret));
		}
	}
	while (r->run[r->current].in_flight) {
		for (i = 0; i < DEPTH && r->run[i].in_flight; i++)
			;
		if (i < DEPTH)
			r->current = i;
		else
			reap(r);
	}
	r->run[r->current].len = 0;
}

static void drain(struct receive *r)
{
	flush(r);
	while (r->in_flight)
		reap(r);
}

/* Room for a page at @offset of the file. */
static char *page_at(struct receive *r, uint64_t offset)
{
	struct run *run = &r->run[r->current];

	if (run->len && (offset != run->offset + run->len || run->len == RUN)) {
		flush(r);
		run = &r->run[r->current];
	}
	if (!run->len)
		run->offset = offset;
	run->len += SNAP_PAGE;
	return r->buffers + (size_t)r->current * RUN + run->len - SNAP_PAGE;
}

static void get_page(struct receive *r, uint64_t address, uint64_t flags)
{
	struct reader *in = &r->in;
	char name[SNAP_MAX_NAME + 1];
	uint64_t page = address / SNAP_PAGE;
	uint8_t *byte, bit = (uint8_t)(1 << page % 8), fill = 0;
	size_t i;

	if (!(flags & RAM_SAVE_FLAG_CONTINUE)) {
		reader_get_counted(in, name);
		r->block = NULL;
		for (i = 0; i < r->snap.nr_blocks && !in->ret; i++)
			if (!strcmp(r->snap.blocks[i].name, name))
				r->block = &r->snap.blocks[i];
	}
	if (!r->block || address >= r->block->length) {
		reader_fail(in, "a page of no RAM block");
		return;
	}
	byte = &r->block->bitmap[page / 8];
	if (flags & RAM_SAVE_FLAG_ZERO)
		fill = reader_get8(in);
	/* Zeros are there already, unless it was something else before, or QEMU puts something there. */
	if (flags & RAM_SAVE_FLAG_ZERO && !fill && !(*byte & bit) &&
	    !snap_is_small(r->block->name, r->block->length))
		return;
	*byte |= bit;
	if (flags & RAM_SAVE_FLAG_ZERO)
		memset(page_at(r, r->block->pages_offset + address), fill, SNAP_PAGE);
	else
		reader_get(in, page_at(r, r->block->pages_offset + address), SNAP_PAGE);
}

/* The list of RAM blocks, @total bytes in all; and the file's layout by it. */
static void get_blocks(struct receive *r, uint64_t total)
{
	struct reader *in = &r->in;
	char name[SNAP_MAX_NAME + 1];
	uint64_t length;

	if (r->snap.nr_blocks)
		reader_fail(in, "a second list of RAM blocks");
	while (total && !in->ret) {
		reader_get_counted(in, name);
		length = reader_get64(in);
		if (in->ret)
			break;
		if (length > total) {
			reader_fail(in, "RAM blocks that don't add up");
			break;
		}
		/* Of what a damaged list claims no more than a bitmap is allocated. */
		if (length > 1ULL << 46)
			reader_fail(in, "a RAM block that is too large");
		if (!in->ret)
			in->ret = snap_add_block(&r->snap, name, length, in->err);
		total -= length;
	}
	if (in->ret)
		return;
	snap_layout(&r->snap);
	in->ret = target_size(&r->target, (r->snap.devices_offset + SNAP_PAGE - 1) / SNAP_PAGE * SNAP_PAGE,
			      in->err);
}

/* A RAM section up to its end. */
static void get_ram(struct receive *r, uint32_t section)
{
	struct reader *in = &r->in;

	while (!in->ret && !r->ret) {
		uint64_t word = reader_get64(in), flags = word & (SNAP_PAGE - 1);
		uint64_t address = word & ~(SNAP_PAGE - 1);

		if (flags == RAM_SAVE_FLAG_EOS)
			break;
		if (flags == RAM_SAVE_FLAG_MULTIFD_FLUSH)
			continue;
		if (flags == RAM_SAVE_FLAG_MEM_SIZE)
			get_blocks(r, address);
		else if ((flags & ~(uint64_t)RAM_SAVE_FLAG_CONTINUE) == RAM_SAVE_FLAG_PAGE ||
			 (flags & ~(uint64_t)RAM_SAVE_FLAG_CONTINUE) == RAM_SAVE_FLAG_ZERO)
			get_page(r, address, flags);
		else
			reader_fail(in, "RAM data of a kind that isn't known (switch xbzrle and multifd off)");
	}
	if (!in->ret && !r->ret && (reader_get8(in) != QEMU_VM_SECTION_FOOTER || reader_get32(in) != section))
		reader_fail(in, "a RAM section without its end");
}

/* Everything up to the device sections. */
static void get_sections(struct receive *r)
{
	struct reader *in = &r->in;
	char name[SNAP_MAX_NAME + 1];
	bool over = false;
	uint32_t section;
	uint8_t type;

	while (!in->ret && !r->ret) {
		type = reader_peek8(in);
		if (over && (type == QEMU_VM_SECTION_FULL || type == QEMU_VM_EOF))
			return;
		reader_get8(in);
		if (type == QEMU_VM_COMMAND) {
			reader_get16(in);
			reader_skip(in, reader_get16(in));
			continue;
		}
		section = reader_get32(in);
		if (type == QEMU_VM_SECTION_START) {
			reader_get_counted(in, name);
			reader_get32(in);	/* instance */
			reader_get32(in);	/* version */
			if (!in->ret && strcmp(name, "ram"))
				reader_fail(in, "live state of something else than RAM, which can't be in such a file");
		} else if (type != QEMU_VM_SECTION_PART && type != QEMU_VM_SECTION_END) {
			reader_fail(in, "an unknown section");
		}
		if (!in->ret)
			get_ram(r, section);
		over |= type == QEMU_VM_SECTION_END;
	}
}

/* The rest of the stream, which is checked, as it is.  A descriptor, or a negative errno. */
static int get_tail(struct receive *r)
{
	struct snapfile devices = { 0 };
	static uint8_t buf[1 << 16];
	uint64_t at = 0;
	size_t n;
	int fd = memfd_create("kvmsnap-devices", MFD_CLOEXEC), ret = 0;

	if (fd < 0)
		return error_set(r->err, errno, "memfd_create: %s", strerror(errno));
	while (!ret && (n = reader_get_some(&r->in, buf, sizeof(buf)))) {
		ret = at + n > MAX_TAIL ? -EFBIG : snap_pwrite(fd, buf, n, at);
		at += n;
	}
	if (ret)
		error_set(r->err, -ret, "device state: %s", strerror(-ret));
	else
		ret = r->in.ret;
	/* A migration that was cancelled, or has failed, ends anywhere. */
	if (!ret)
		ret = snap_parse_devices(&devices, fd, 0, r->err);
	if (!ret && devices.size != at)
		ret = error_set(r->err, EBADMSG, "the stream does not end where it should");
	r->snap.description = devices.size - devices.devices_end;
	snap_free(&devices);
	if (!ret)
		return fd;
	close(fd);
	return ret;
}

static int write_rest(struct receive *r, int devices, enum sync sync)
{
	struct record record = {
		.generation = 1, .time = time(NULL), .written = r->written,
	};
	uint64_t at, end;
	size_t i;
	int ret = snap_write(&r->snap, r->target.fd, devices, r->err);

	for (i = 0; i < r->snap.nr_blocks && !ret; i++)
		ret = record_add_block(&record, r->snap.blocks[i].name, r->snap.blocks[i].length,
				       r->snap.blocks[i].pages_offset);
	at = snap_round_up(r->snap.size, SNAP_PAGE);
	if (!ret && r->target.device) {
		ret = target_clear(&r->target, at, r->err);
	} else if (!ret) {
		record.end = (at + RECORD_MAX_TEXT + SNAP_ALIGN) / SNAP_ALIGN * SNAP_ALIGN;
		ret = record_write(&record, r->target.fd, at, &end, r->err);
		if (!ret && ftruncate(r->target.fd, (off_t)record.end) < 0)
			ret = error_set(r->err, errno, "sizing the file: %s", strerror(errno));
	}
	record_free(&record);
	if (!ret && !r->target.partial)
		ret = target_sync(&r->target, sync, r->err);
	if (!ret)
		ret = snap_seal(r->target.fd, r->err);
	return ret ? ret : target_commit(&r->target, sync, r->err);
}

static int receive(struct receive *r, const char *path, bool force, enum sync sync)
{
	bool mapped;
	int devices, ret = target_open(&r->target, path, -1, force, r->err);

	if (ret)
		return ret;
	/* By another description: head and bitmaps are not whole blocks. */
	r->fd = open(r->target.partial ? r->target.partial : path, O_WRONLY | O_CLOEXEC | O_DIRECT);
	r->direct = r->fd >= 0;
	if (r->fd < 0)
		r->fd = open(r->target.partial ? r->target.partial : path, O_WRONLY | O_CLOEXEC);
	r->buffers = aligned_alloc(4096, (size_t)DEPTH * RUN);
	if (r->fd < 0 || !r->buffers)
		return error_set(r->err, r->fd < 0 ? errno : ENOMEM, "%s: %s", path,
				 strerror(r->fd < 0 ? errno : ENOMEM));
	ret = io_uring_queue_init(DEPTH, &r->ring, 0);
	if (ret)
		return error_set(r->err, -ret, "io_uring: %s; it may be disabled (kernel.io_uring_disabled)",
				 strerror(-ret));
	reader_get_head(&r->in, r->snap.machine, &mapped);
	if (mapped)
		reader_fail(&r->in, "the capability mapped-ram: have QEMU write to file:FILE itself, or switch it off,");
	get_sections(r);
	drain(r);
	io_uring_queue_exit(&r->ring);
	ret = r->ret ? r->ret : r->in.ret;
	if (ret)
		return ret;
	devices = get_tail(r);
	if (devices < 0)
		return devices;
	ret = write_rest(r, devices, sync);
	close(devices);
	return ret;
}

static void receive_close(struct receive *r)
{
	target_close(&r->target);
	if (r->fd >= 0)
		close(r->fd);
	reader_close(&r->in);
	snap_free(&r->snap);
	free(r->buffers);
}

int cmd_receive(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "force", no_argument, NULL, 'f' },
		{ "sync", required_argument, NULL, 's' },
		{ "report", no_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	static struct receive r = { .target.fd = -1, .fd = -1 };
	enum sync sync = SYNC_FULL;
	bool force = false, report = false;
	double began = now();
	struct error err = { "" };
	int c, ret;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'f':
			force = true;
			break;
		case 's':
			if (parse_sync(optarg, &sync))
				return usage_error(receive_usage, "--sync %s: none, data or full", optarg);
			break;
		case 'r':
			report = true;
			break;
		case 'h':
			fputs(receive_usage, stdout);
			return 0;
		default:
			fputs(receive_usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (argc - optind != 1)
		return usage_error(receive_usage, argc == optind ? "FILE is missing" : "one FILE at a time");
	if (isatty(STDIN_FILENO))
		return usage_error(receive_usage, "standard input is a terminal, not a migration stream");

	r.err = &err;
	/* As much at a time as a pipe may have; it is none the worse if it can't. */
	fcntl(STDIN_FILENO, F_SETPIPE_SZ, READER_BUFFER);
	ret = reader_open_pipe(&r.in, STDIN_FILENO, catch_signals(), &err);
	if (!ret)
		ret = receive(&r, argv[optind], force, sync);
	if (!ret && report)
		fprintf(stderr, "received %s: %s of pages%s in %.2f s\n", argv[optind],
			human_bytes((double)r.written), r.direct ? "" : " (not by direct I/O)", now() - began);
	receive_close(&r);
	if (!ret)
		return 0;
	complain(&err);
	return take_signal() ? EXIT_INTERRUPTED : 1;
}
