// SPDX-License-Identifier: GPL-2.0
/* Generations of one file copied to another: compaction, and one generation as a file of its own. */
#include "chain.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct copy {
	int from, to;
	uint64_t done;
	int (*progress)(uint64_t bytes, void *data);
	void *data;
	struct error *err;
};

/* Through our own memory, where the kernel does not copy: from a block device. */
static ssize_t copy_piece(struct copy *copy, off64_t *in, off64_t *out, uint64_t len)
{
	static char buf[1 << 20];
	ssize_t n = pread(copy->from, buf, len < sizeof(buf) ? (size_t)len : sizeof(buf), *in);

	if (n <= 0)
		return n;
	errno = -snap_pwrite(copy->to, buf, (size_t)n, (uint64_t)*out);
	*in += n;
	*out += n;
	return errno ? -1 : n;
}

/* By the kernel: file systems that can share the blocks. */
static int copy_range(struct copy *copy, uint64_t from, uint64_t to, uint64_t len)
{
	off64_t in = (off64_t)from, out = (off64_t)to;

	while (len) {
		ssize_t n = copy_file_range(copy->from, &in, copy->to, &out, len, 0);

		if (n < 0 && (errno == EINVAL || errno == EXDEV || errno == EOPNOTSUPP || errno == ENOSYS))
			n = copy_piece(copy, &in, &out, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(copy->err, n ? errno : ENODATA, "copying pages at offset %llu: %s",
					 (unsigned long long)in, strerror(n ? errno : ENODATA));
		len -= (uint64_t)n;
		copy->done += (uint64_t)n;
		if (copy->progress && copy->progress(copy->done, copy->data))
			return error_set(copy->err, EINTR, "interrupted");
	}
	return 0;
}

/* Pages [@first, @end) of a part to @to; their bits are set in @copied, if that is not NULL. */
static int copy_part(struct copy *copy, const struct snap_block *part, uint64_t first, uint64_t end, uint64_t to,
		     uint8_t *copied)
{
	uint64_t page, run;
	int ret = 0;

	for (page = first; page < end && !ret; page++) {
		if (!part->bitmap[page / 8]) {
			page |= 7;
			continue;
		}
		for (run = page; page < end && snap_has_page(part, page); page++)
			if (copied)
				copied[page / 8] |= (uint8_t)(1 << page % 8);
		if (page > run)
			ret = copy_range(copy, part->pages_offset + run * SNAP_PAGE,
					 to + (run - first) * SNAP_PAGE, (page - run) * SNAP_PAGE);
	}
	return ret;
}

static struct snap_block *find(struct snapfile *snap, const char *name)
{
	size_t i;

	for (i = 0; i < snap->nr_blocks; i++)
		if (!strcmp(snap->blocks[i].name, name))
			return &snap->blocks[i];
	return NULL;
}

/* Device sections of a stream, as snap_write() takes them. */
static int copy_devices(struct copy *copy, const struct snapfile *snap)
{
	size_t len = (size_t)(snap->devices_end - snap->devices_offset);
	int fd = memfd_create("kvmsnap-devices", MFD_CLOEXEC);
	char *buf = malloc(len);
	int ret = fd < 0 ? -errno : !buf ? -ENOMEM : snap_pread(copy->from, buf, len, snap->devices_offset);

	if (!ret)
		ret = snap_pwrite(fd, buf, len, 0);
	free(buf);
	if (!ret)
		return fd;
	if (fd >= 0)
		close(fd);
	return error_set(copy->err, -ret, "device state: %s", strerror(-ret));
}

/* A generation as an image of its own at @base: what of its parts lies from @oldest on in the file. */
static int copy_pages(struct copy *copy, const struct generation *from, struct snapfile *to, uint64_t base,
		      uint64_t oldest)
{
	size_t i;
	int ret = 0;

	*to = (struct snapfile){ 0 };
	memcpy(to->machine, from->snap.machine, sizeof(to->machine));
	for (i = 0; i < from->record.nr_blocks && !ret; i++)
		ret = snap_add_block(to, from->record.blocks[i].name, from->record.blocks[i].length, copy->err);
	if (ret)
		return ret;
	snap_layout(to);
	/* Where it ends now, pages that are not written must read as zeros. */
	if (ftruncate(copy->to, (off_t)(base + to->devices_offset)) < 0)
		return error_set(copy->err, errno, "sizing the file: %s", strerror(errno));
	for (i = 0; i < from->snap.nr_blocks && !ret; i++) {
		const struct snap_block *part = &from->snap.blocks[i];
		struct snap_block *block = find(to, part->name);

		if (part->pages_offset >= oldest && block)
			ret = copy_part(copy, part, 0, part->length / SNAP_PAGE, base + block->pages_offset,
					block->bitmap);
	}
	return ret;
}

/* The record of a generation that has another place now. */
static int move_record(struct copy *copy, const struct record *old, const struct snapfile *snap, uint64_t base,
		       struct record *record)
{
	size_t i;
	int ret = 0;

	*record = (struct record){
		.generation = old->generation, .time = old->time, .written = old->written, .base = base,
	};
	for (i = 0; i < snap->nr_blocks && !ret; i++)
		ret = record_add_block(record, snap->blocks[i].name, snap->blocks[i].length,
				       base + snap->blocks[i].pages_offset);
	return ret ? error_set(copy->err, -ret, "out of memory") : 0;
}

/* The checksums of pages that stay what they are, if there are any, at @at; *end is behind them. */
static int copy_checksums(struct copy *copy, const struct record *old, struct record *record, uint64_t at,
			  uint64_t *end)
{
	uint64_t bytes = record_checksum_bytes(old);

	*end = at;
	if (!old->checksums)
		return 0;
	if (bytes == UINT64_MAX)
		return error_set(copy->err, EBADMSG, "generation %llu: the record of its checksums makes no sense",
				 (unsigned long long)old->generation);
	record->checksums = at;
	memcpy(record->key, old->key, sizeof(record->key));
	*end = at + bytes;
	return copy_range(copy, old->checksums, at, bytes);
}

static int copy_first(struct copy *copy, const struct generation *from)
{
	struct snapfile snap;
	struct record record = { 0 };
	uint64_t end;
	int devices = -1, ret = copy_pages(copy, from, &snap, 0, 0);

	if (!ret)
		ret = devices = copy_devices(copy, &from->snap);
	if (ret >= 0)
		ret = snap_write(&snap, copy->to, devices, copy->err);
	if (!ret)
		ret = move_record(copy, &from->record, &snap, 0, &record);
	/* A file of QEMU's stays one without. */
	if (!ret && record.generation) {
		uint64_t at = snap_round_up(snap.size, SNAP_PAGE);

		/* Behind the room that the largest record has. */
		ret = copy_checksums(copy, &from->record, &record, at + SNAP_ALIGN, &end);
		record.end = snap_round_up(end, SNAP_ALIGN);
		if (!ret)
			ret = record_write(&record, copy->to, at, &end, copy->err);
		if (!ret && (end > at + SNAP_ALIGN || ftruncate(copy->to, (off_t)record.end) < 0))
			ret = error_set(copy->err, EFBIG, "sizing the file: %s", strerror(EFBIG));
	}
	if (!ret)
		ret = snap_seal(copy->to, copy->err);
	if (devices >= 0)
		close(devices);
	record_free(&record);
	snap_free(&snap);
	return ret;
}

static int copy_next(struct copy *copy, const struct generation *from)
{
	struct snapfile snap = { 0 }, parts = { 0 };
	struct record record = { 0 };
	struct chain chain;
	uint64_t base, end = 0;
	int devices = -1, ret = chain_load_last(&chain, copy->to, copy->err);

	if (ret)
		return ret;
	base = chain.end;
	ret = copy_pages(copy, from, &snap, base, from->record.base);
	if (!ret)
		ret = devices = copy_devices(copy, &from->snap);
	if (ret >= 0)
		ret = chain_next(&chain, &snap, &parts, copy->err);
	if (!ret)
		ret = move_record(copy, &from->record, &snap, base, &record);
	record.stream = base + snap_round_up(snap.ram_end, SNAP_PAGE);
	if (!ret)
		ret = snap_append(&parts, copy->to, record.stream, devices, copy->err);
	if (!ret)
		ret = copy_checksums(copy, &from->record, &record, snap_round_up(parts.size, SNAP_PAGE), &end);
	record.end = snap_round_up(end, SNAP_ALIGN);
	if (!ret && ftruncate(copy->to, (off_t)record.end) < 0)
		ret = error_set(copy->err, errno, "sizing the file: %s", strerror(errno));
	if (!ret)
		ret = record_write(&record, copy->to, base, &end, copy->err);
	if (devices >= 0)
		close(devices);
	record_free(&record);
	snap_free(&parts);
	snap_free(&snap);
	chain_free(&chain);
	return ret;
}

#define RUN	256		/* pages that are read at once */

/* Pages of zeros are left out: a hole, or where QEMU has zeros anyway, nothing. */
static int copy_small(struct copy *copy, const struct generation *from, struct snap_block *block)
{
	static uint8_t buf[RUN][SNAP_PAGE];
	bool blank = strstr(block->name, "vram");
	uint64_t pages = block->length / SNAP_PAGE, page, offset, nr, i;
	int ret = 0;

	for (page = 0; page < pages && !ret; page += nr) {
		nr = 1;
		offset = generation_page(from, block->name, page);
		if (!offset)
			continue;
		while (nr < RUN && page + nr < pages &&
		       generation_page(from, block->name, page + nr) == offset + nr * SNAP_PAGE)
			nr++;
		ret = snap_pread(copy->from, buf, nr * SNAP_PAGE, offset);
		for (i = 0; i < nr && !ret; i++) {
			if (!snap_is_zero(buf[i], SNAP_PAGE))
				ret = snap_pwrite(copy->to, buf[i], SNAP_PAGE, block->pages_offset + (page + i) * SNAP_PAGE);
			else if (blank)
				continue;
			block->bitmap[(page + i) / 8] |= (uint8_t)(1 << (page + i) % 8);
		}
	}
	return ret ? error_set(copy->err, -ret, "RAM block %s: %s", block->name, strerror(-ret)) : 0;
}

int generation_stream(const struct generation *generation, int from,
		      bool (*without)(const char *block, const void *data), const void *data, int to,
		      struct error *err)
{
	struct copy copy = { .from = from, .to = to, .err = err };
	struct snapfile snap = { 0 };
	size_t i;
	int devices = -1, ret = 0;

	memcpy(snap.machine, generation->snap.machine, sizeof(snap.machine));
	for (i = 0; i < generation->record.nr_blocks && !ret; i++)
		if (!without(generation->record.blocks[i].name, data))
			ret = snap_add_block(&snap, generation->record.blocks[i].name,
					     generation->record.blocks[i].length, err);
	snap_layout(&snap);
	if (!ret && ftruncate(to, (off_t)snap.devices_offset) < 0)
		ret = error_set(err, errno, "sizing a memory file: %s", strerror(errno));
	for (i = 0; i < snap.nr_blocks && !ret; i++)
		ret = copy_small(&copy, generation, &snap.blocks[i]);
	if (!ret)
		ret = devices = copy_devices(&copy, &generation->snap);
	if (ret >= 0)
		ret = snap_write(&snap, to, devices, err);
	if (!ret)
		ret = snap_seal(to, err);
	if (devices >= 0)
		close(devices);
	snap_free(&snap);
	return ret;
}

int generation_copy(const struct generation *generation, int from, const char *block, uint64_t offset,
		    uint64_t length, int to, uint64_t at, int (*progress)(uint64_t bytes, void *data), void *data,
		    uint64_t *done, struct error *err)
{
	struct copy copy = {
		.from = from, .to = to, .done = *done, .progress = progress, .data = data, .err = err,
	};
	const struct snapfile *snap = &generation->snap;
	uint64_t first = offset / SNAP_PAGE, end;
	size_t i;
	int ret = 0;

	for (i = 0; i < snap->nr_blocks && !ret; i++) {
		if (strcmp(snap->blocks[i].name, block))
			continue;
		/* A part of another generation's may be shorter. */
		end = snap->blocks[i].length < offset + length ? snap->blocks[i].length : offset + length;
		ret = copy_part(&copy, &snap->blocks[i], first, end / SNAP_PAGE, at, NULL);
	}
	*done = copy.done;
	return ret;
}

int chain_copy(struct chain *chain, int from, size_t first, size_t last, int to,
	       int (*progress)(uint64_t bytes, void *data), void *data, struct error *err)
{
	struct copy copy = { .from = from, .to = to, .progress = progress, .data = data, .err = err };
	size_t i;
	int ret = 0;

	for (i = first; i <= last && !ret; i++) {
		struct generation *generation = &chain->generation[i];
		bool loaded = generation->snap.nr_blocks;

		ret = generation_load(generation, from, err);
		if (!ret)
			ret = i == first ? copy_first(&copy, generation) : copy_next(&copy, generation);
		if (!loaded)
			generation_unload(generation);
	}
	return ret;
}
