/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Our own record of a generation, where QEMU does not look: behind the stream of an ordinary
 * file, and before the image of one that was appended (chain.h).  A file without is still a valid
 * file of QEMU's.
 *
 *	"KVMSNAP" 1		8 bytes
 *	be32 length of the text
 *	be32 0
 *	BLAKE2b-128 of the text	16 bytes
 *	text			JSON
 *
 * What is in the text can be added to: unknown names are ignored.
 */
#ifndef RECORD_H
#define RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define RECORD_MAX_TEXT		(512u << 10)	/* bytes */
#define RECORD_KEY		16		/* bytes of the checksums' key */

struct record_block {
	char name[256];
	uint64_t length;		/* bytes of RAM */
	uint64_t pages_offset;		/* in the file: the generation's own pages */
};

struct record {
	uint64_t generation;		/* counted from 1; 0: there is no record */
	int64_t time;			/* of the pause, seconds since 1970 */
	char parent[256];		/* name of the file whose blocks it shares; "" for none */
	uint64_t written;		/* bytes of RAM that were written for it */
	uint64_t base;			/* where its image begins in the file */
	uint64_t stream;		/* where QEMU's stream begins */
	uint64_t end;			/* behind all of it, a multiple of 1 MiB */
	struct record_block *blocks;
	size_t nr_blocks;

	/*
	 * SipHash-2-4 of each page as the file has it, in the order of the blocks, 8 bytes
	 * little-endian each; 0 where it is not known.  @checksums: where in the file, 0 for none.
	 */
	uint64_t checksums;
	uint8_t key[RECORD_KEY];
};

/* Write it at @at, a multiple of 4096; *end is behind it, likewise.  */
int record_write(const struct record *record, int fd, uint64_t at, uint64_t *end, struct error *err);

/* -ENODATA when there is none at @at; -EBADMSG when it is not whole; another when there is no telling. */
int record_read(struct record *record, int fd, uint64_t at, struct error *err);

/* The block whose name is the @len characters at @name, or NULL. */
const struct record_block *record_find_block(const struct record *record, const char *name, size_t len);

/* Bytes of its checksums; UINT64_MAX when a damaged record tells of more than its file could hold. */
uint64_t record_checksum_bytes(const struct record *record);

/* The file whose blocks it shares, if a record can hold that name. */
void record_set_parent(struct record *record, const char *name);
int record_add_block(struct record *record, const char *name, uint64_t length, uint64_t pages_offset);
void record_free(struct record *record);

#endif
