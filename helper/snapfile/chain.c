// SPDX-License-Identifier: GPL-2.0
#include "chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define MAX_GENERATIONS	65536u

/* The parts of an appended generation are as long as their blocks, whatever the stream says. */
static int cut_parts(struct generation *generation, struct error *err)
{
	size_t i;
	uint64_t page;

	for (i = 0; i < generation->snap.nr_blocks; i++) {
		struct snap_block *part = &generation->snap.blocks[i];
		const struct record_block *block = record_find_block(&generation->record, part->name,
									strlen(part->name));

		if (!block || block->length > part->length)
			return error_set(err, EBADMSG, "generation %llu: RAM block %s is not that of its record",
					 (unsigned long long)generation->record.generation, part->name);
		for (page = block->length / SNAP_PAGE; page < part->length / SNAP_PAGE; page++) {
			if (page % 8 == 0 && !part->bitmap[page / 8])
				page += 7;
			else if (part->bitmap[page / 8] >> page % 8 & 1)
				return error_set(err, EBADMSG, "generation %llu: RAM block %s has pages behind its end",
						 (unsigned long long)generation->record.generation,
						 part->name);
		}
		part->stretched = part->length;
		part->length = block->length;
	}
	return 0;
}

/* A file that nobody wrote a record for. */
static int make_record(struct generation *generation)
{
	const struct snapfile *snap = &generation->snap;
	size_t i;
	int ret = 0;

	generation->record = (struct record){ .end = snap_round_up(snap->size, SNAP_ALIGN) };
	for (i = 0; i < snap->nr_blocks && !ret; i++)
		ret = record_add_block(&generation->record, snap->blocks[i].name,
				       snap->blocks[i].length, snap->blocks[i].pages_offset);
	return ret;
}

/* Does it tell of the blocks that the stream has? */
static bool is_of_stream(const struct record *record, const struct snapfile *snap)
{
	size_t i;

	if (record->nr_blocks != snap->nr_blocks)
		return false;
	for (i = 0; i < snap->nr_blocks; i++)
		if (strcmp(record->blocks[i].name, snap->blocks[i].name) ||
		    record->blocks[i].length != snap->blocks[i].length ||
		    record->blocks[i].pages_offset != snap->blocks[i].pages_offset)
			return false;
	return true;
}

/*
 * *torn: there is a record, which is not whole or not the stream's (-EBADMSG), or which can't be read, and so no
 * telling what follows.  QEMU writes no such thing, and truncates files; on a device it may be of a file that was
 * there before.
 */
static int load_first(struct generation *generation, int fd, bool device, int *torn, struct error *err)
{
	int ret = snap_parse(&generation->snap, fd, 0, err);

	if (ret)
		return ret;
	ret = record_read(&generation->record, fd, snap_round_up(generation->snap.size, SNAP_PAGE), err);
	if (ret == -ENOMEM)
		return ret;
	if (!ret && (generation->record.base || generation->record.stream ||
		     !is_of_stream(&generation->record, &generation->snap))) {
		record_free(&generation->record);
		ret = -EBADMSG;
	}
	*torn = ret == -ENODATA || (ret == -EBADMSG && device) ? 0 : ret;
	/* The stream stands for itself. */
	if (ret && make_record(generation))
		return error_set(err, ENOMEM, "out of memory");
	return 0;
}

/*
 * 1 when there is none at @base any more.  *torn: there is a part of one, or the file ends before it does (-EBADMSG),
 * or it can't be read: not to be taken for the end, or what is there would be written over.
 */
static int load_next(struct generation *generation, int fd, uint64_t base, int *torn, struct error *err)
{
	const struct timespec moment = { .tv_nsec = 10000000 };
	struct record *record = &generation->record;
	int ret = record_read(record, fd, base, err);

	/* It may just have been on its way into the file. */
	if (ret == -EBADMSG) {
		nanosleep(&moment, NULL);
		ret = record_read(record, fd, base, err);
	}
	if (ret == -ENOMEM)
		return ret;
	/* The file has its length before it has the record. */
	if (!ret && (record->base != base || record->end > snap_file_size(fd))) {
		record_free(record);
		ret = -EBADMSG;
	}
	*torn = ret == -ENODATA ? 0 : ret;
	return ret ? 1 : 0;
}

int generation_load(struct generation *generation, int fd, struct error *err)
{
	struct error inner;
	int ret;

	if (generation->snap.nr_blocks)
		return 0;
	/* It was committed: what does not fit is damage. */
	ret = snap_parse(&generation->snap, fd, generation->record.stream, &inner);
	if (ret)
		return error_set(err, ret == -ENOMEM ? ENOMEM : EBADMSG, "generation %llu: %s",
				 (unsigned long long)generation->record.generation, inner.text);
	ret = generation->record.stream ? cut_parts(generation, err) : 0;
	if (ret)
		generation_unload(generation);
	return ret;
}

void generation_unload(struct generation *generation)
{
	snap_free(&generation->snap);
}

int chain_load(struct chain *chain, int fd, struct error *err)
{
	struct stat st;
	int ret;

	*chain = (struct chain){ 0 };
	if (fstat(fd, &st) < 0)
		return error_set(err, errno, "%s", strerror(errno));
	for (;;) {
		struct generation *more = realloc(chain->generation, (chain->nr + 1) * sizeof(*more));

		if (!more) {
			ret = error_set(err, ENOMEM, "out of memory");
			break;
		}
		chain->generation = more;
		more += chain->nr;
		*more = (struct generation){ 0 };
		ret = chain->nr ? load_next(more, fd, chain->end, &chain->torn, err) :
				  load_first(more, fd, S_ISBLK(st.st_mode), &chain->torn, err);
		if (ret > 0)
			return 0;
		chain->nr++;	/* to be freed, also when it is not whole */
		if (ret)
			break;
		chain->end = more->record.end;
		/* Nobody appends to what has no record: one that is there was before it on the device. */
		if (chain->nr == MAX_GENERATIONS || chain->torn || !chain->generation[0].record.generation)
			return 0;
	}
	chain_free(chain);
	return ret;
}

void chain_free(struct chain *chain)
{
	size_t i;

	for (i = 0; i < chain->nr; i++) {
		snap_free(&chain->generation[i].snap);
		record_free(&chain->generation[i].record);
	}
	free(chain->generation);
	*chain = (struct chain){ 0 };
}

int chain_check_end(const struct chain *chain, struct error *err)
{
	if (!chain->torn)
		return 0;
	if (!chain->generation[0].record.generation)
		return error_set(err, EBADMSG, "the record of the first generation is damaged (%s): there is no telling whether others follow it; kvmsnap export, or QEMU, can load the first one still",
				 chain->torn == -EBADMSG ? "it is not whole, or another's" : strerror(-chain->torn));
	if (chain->torn != -EBADMSG)
		return error_set(err, EBADMSG, "behind generation %llu, at offset %llu, lies what can't be read (%s): the record of a generation, perhaps with others behind it; copy the file from a disk that can",
				 (unsigned long long)chain->generation[chain->nr - 1].record.generation,
				 (unsigned long long)chain->end, strerror(-chain->torn));
	return error_set(err, EBADMSG, "behind generation %llu, at offset %llu, lies a record that is not whole: a generation that was cut off, or damage, with others behind it; truncate -s %llu drops it and them",
			 (unsigned long long)chain->generation[chain->nr - 1].record.generation,
			 (unsigned long long)chain->end, (unsigned long long)chain->end);
}

struct generation *chain_find(struct chain *chain, uint64_t nr, int fd, struct error *err)
{
	struct generation *generation;
	size_t i;

	for (i = 0; i < chain->nr; i++) {
		generation = &chain->generation[i];
		if (nr ? generation->record.generation == nr : i == chain->nr - 1)
			return generation_load(generation, fd, err) ? NULL : generation;
	}
	error_set(err, ENOENT, "there is no generation %llu; kvmsnap list shows those there are",
		  (unsigned long long)nr);
	return NULL;
}

int chain_load_last(struct chain *chain, int fd, struct error *err)
{
	int ret = chain_load(chain, fd, err);

	if (!ret && !chain_find(chain, 0, fd, err)) {
		chain_free(chain);
		ret = -EBADMSG;
	}
	return ret;
}

uint64_t generation_page(const struct generation *generation, const char *name, uint64_t page)
{
	size_t i;

	for (i = 0; i < generation->snap.nr_blocks; i++) {
		const struct snap_block *part = &generation->snap.blocks[i];

		if (!strcmp(part->name, name) && page < part->length / SNAP_PAGE && snap_has_page(part, page))
			return part->pages_offset + page * SNAP_PAGE;
	}
	return 0;
}

/* Add a part, unless it has no page. */
static int add_part(struct snapfile *parts, const struct snap_block *part, const uint8_t *without)
{
	size_t bytes = snap_bitmap_bytes(part->length), i;
	uint8_t *bitmap = malloc(bytes);
	struct snap_block *more;

	if (!bitmap)
		return -ENOMEM;
	for (i = 0; i < bytes; i++)
		bitmap[i] = part->bitmap[i] & (uint8_t)~(without ? without[i] : 0);
	if (snap_is_zero(bitmap, bytes)) {
		free(bitmap);
		return 0;
	}
	more = realloc(parts->blocks, (parts->nr_blocks + 1) * sizeof(*more));
	if (!more) {
		free(bitmap);
		return -ENOMEM;
	}
	parts->blocks = more;
	more[parts->nr_blocks] = *part;
	more[parts->nr_blocks++].bitmap = bitmap;
	return 0;
}

int chain_next(const struct chain *chain, const struct snapfile *snap, struct snapfile *parts,
	       struct error *err)
{
	const struct snapfile *last = &chain->generation[chain->nr - 1].snap;
	size_t i, j;
	int ret = 0;

	*parts = (struct snapfile){ 0 };
	memcpy(parts->machine, snap->machine, sizeof(parts->machine));
	for (i = 0; i < last->nr_blocks && !ret; i++) {
		const struct snap_block *part = &last->blocks[i];

		for (j = 0; j < snap->nr_blocks && strcmp(snap->blocks[j].name, part->name); j++)
			;
		if (j < snap->nr_blocks)
			ret = add_part(parts, part, snap->blocks[j].bitmap);
	}
	for (j = 0; j < snap->nr_blocks && !ret; j++) {
		struct snap_block part = snap->blocks[j];

		part.pages_offset += chain->end;
		ret = add_part(parts, &part, NULL);
	}
	if (!ret)
		return 0;
	snap_free(parts);
	return error_set(err, -ret, "out of memory");
}

uint64_t generation_bytes(const struct generation *generation)
{
	uint64_t bytes = 0;
	size_t i;

	for (i = 0; i < generation->snap.nr_blocks; i++)
		bytes += snap_pages_present(&generation->snap.blocks[i]) * SNAP_PAGE;
	return bytes;
}
