/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The generations in a file.  An ordinary file has one.  Where a file system can't share blocks,
 * others are appended, each an image of its own at a multiple of 1 MiB:
 *
 *	record (record.h)	written last: with it the generation exists
 *	pages			those that were written for it, at the offsets that they have in
 *				the first image; holes for the others
 *	QEMU's stream		lists, of each block, the parts of all images that it consists of
 *	bitmaps			of these parts; a page is in one of them at most
 *
 * QEMU's loader goes on behind the pages of each part it has read.  So a part is given the length
 * up to the next part's entry in the list, and no pages there (snap_block.stretched).  To load one:
 * -incoming file:FILE,offset=STREAM.
 *
 * Bytes of a generation that exists are never written again.  What lies behind the last is a torn
 * tail of one that never came to exist.
 */
#ifndef CHAIN_H
#define CHAIN_H

#include "record.h"
#include "snapfile.h"

struct generation {
	struct record record;
	struct snapfile snap;		/* blocks: parts of blocks, with their own lengths; see generation_load() */
};

struct chain {
	struct generation *generation;
	size_t nr;
	uint64_t end;			/* behind the last: where the next image begins */
	int torn;			/* the first one's record, or the next's, is damaged or cut off (-EBADMSG), or why it can't be read */
};

/* Find the generations of a file, of ours or of QEMU's.  Only the first one's stream is read. */
int chain_load(struct chain *chain, int fd, struct error *err);

/* The same, with the last one loaded, for another to be appended. */
int chain_load_last(struct chain *chain, int fd, struct error *err);
void chain_free(struct chain *chain);

/* -EBADMSG when what lies behind the last generation may be others, of which the first is damaged or can't be read. */
int chain_check_end(const struct chain *chain, struct error *err);

/*
 * Read the stream of a generation of the file @fd, unless that was done.  -EBADMSG when that is
 * damaged, which the others need not be.  Bitmaps take 1/32768 of RAM for each part.
 */
int generation_load(struct generation *generation, int fd, struct error *err);
void generation_unload(struct generation *generation);

/* Generation @nr, or the newest for 0, loaded.  NULL with @err set. */
struct generation *chain_find(struct chain *chain, uint64_t nr, int fd, struct error *err);

/*
 * What a loaded @generation has of a page of block @name: offset in the file, or 0 for zeros.
 */
uint64_t generation_page(const struct generation *generation, const char *name, uint64_t page);

/* Of all pages that it has, if it is loaded. */
uint64_t generation_bytes(const struct generation *generation);

/* The checksum of a page, never 0. */
uint64_t snap_checksum(const uint8_t *page, const uint8_t key[RECORD_KEY]);

/*
 * Read every page that a loaded generation has, with direct I/O through io_uring, and check it where there
 * are checksums, on all CPUs; *checked is how many bytes that was.  One that it does not have must have been
 * zero then.  @progress is told the bytes read so far.  @path is what @fd is called in errors.
 */
int snap_read_pages(const struct generation *generation, int fd, const char *path,
		    void (*progress)(uint64_t bytes, void *data), void *data, uint64_t *checked,
		    struct error *err);

/*
 * Make the list of parts of the last generation, which is loaded, that of the next, whose image begins
 * at chain->end: @snap has the next one's layout, as of a file of its own, and in its bitmaps what was
 * written for it.  @parts is what snap_append() takes; to be freed.
 */
int chain_next(const struct chain *chain, const struct snapfile *snap, struct snapfile *parts,
	       struct error *err);

/*
 * Write generations [@first, last] of @chain, the file behind @from, to the empty file @to: the first
 * as an ordinary file, the others appended.  Nothing of it is durable or has a name then.
 * @progress is told the bytes of pages copied so far, and ends it, with -EINTR, by not returning 0.
 */
int chain_copy(struct chain *chain, int from, size_t first, size_t last, int to,
	       int (*progress)(uint64_t bytes, void *data), void *data, struct error *err);

/*
 * Copy what the loaded @generation, in the file @from, has of @length bytes at @offset of block @block, both
 * multiples of 4096, to @to at @at; where it has nothing, nothing is written.  @progress as above, *done
 * is what it counts.
 */
int generation_copy(const struct generation *generation, int from, const char *block, uint64_t offset,
		    uint64_t length, int to, uint64_t at, int (*progress)(uint64_t bytes, void *data), void *data,
		    uint64_t *done, struct error *err);

/*
 * Write to the empty file @to a stream of the loaded @generation, which is in the file @from, that loads all but
 * the pages of the blocks for which @without says so: these are there already.
 */
int generation_stream(const struct generation *generation, int from,
		      bool (*without)(const char *block, const void *data), const void *data, int to,
		      struct error *err);

#endif
