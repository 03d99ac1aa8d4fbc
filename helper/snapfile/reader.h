/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Reading a QEMU migration stream, from a file or as it comes through a pipe.  It may be truncated,
 * damaged or hostile: the first failure sticks, and then everything reads as 0.
 */
#ifndef READER_H
#define READER_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "snapfile.h"

#define READER_BUFFER	(1u << 20)

struct reader {
	int fd;
	uint64_t pos;			/* in the stream */
	uint64_t size, occupied;	/* of a file: bytes, and those that take room on the disk */
	struct error *err;
	int ret;			/* first failure */

	/* Of a pipe; NULL for a file. */
	uint8_t *buffer;
	size_t next, filled;
	const volatile sig_atomic_t *interrupted;
};

/*
 * -ENOMEM, or 0; to be ended by reader_close().  Once *@interrupted is not 0, set by a signal that ends
 * system calls, reading fails with -EINTR.
 */
int reader_open_pipe(struct reader *r, int fd, const volatile sig_atomic_t *interrupted, struct error *err);
void reader_close(struct reader *r);

/* Set the error: @what is wrong at this place. */
int reader_fail(struct reader *r, const char *what);

void reader_get(struct reader *r, void *buf, size_t len);
uint8_t reader_get8(struct reader *r);
uint16_t reader_get16(struct reader *r);
uint32_t reader_get32(struct reader *r);
uint64_t reader_get64(struct reader *r);
uint8_t reader_peek8(struct reader *r);
void reader_skip(struct reader *r, uint64_t len);

/* As many bytes as come, up to @len; 0 at the end of the stream. */
size_t reader_get_some(struct reader *r, void *buf, size_t len);

/* A length and that many printable characters. */
void reader_get_counted(struct reader *r, char name[SNAP_MAX_NAME + 1]);
bool is_printable(const uint8_t *p, size_t len);

/*
 * From the file header up to the first section: the machine type, and the subsections that say how
 * the rest is to be read.  *mapped: it has the capability mapped-ram.
 */
void reader_get_head(struct reader *r, char machine[128], bool *mapped);

#endif
