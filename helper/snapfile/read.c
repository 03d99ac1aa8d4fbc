// SPDX-License-Identifier: GPL-2.0
/*
 * Reading, and checking, all pages of a generation at disk speed: a thread a CPU, each with a ring
 * of its own, takes the next piece of the walk as one of its reads is done.
 */
#include "chain.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEPTH		8u
#define PIECE		(1u << 20)
#define MAX_THREADS	16

/* A run of pages of a part. */
struct piece {
	const struct snap_block *part;
	uint64_t first;			/* page */
	unsigned int len;		/* bytes */
};

struct reading {
	const struct generation *generation;
	const char *path;
	int fd;
	uint64_t *checksums;		/* of the record's blocks, one behind the other; NULL for none */

	pthread_mutex_t lock;		/* of all below */
	size_t block;			/* the walk: of runs of pages that are in the file */
	uint64_t page;
	uint64_t done, checked;
	void (*progress)(uint64_t bytes, void *data);
	void *data;
	struct error *err;
	int ret;			/* the first failure: no more is begun */
};

/* With the lock held. */
static bool next_piece_locked(struct reading *r, struct piece *piece)
{
	for (; r->block < r->generation->snap.nr_blocks; r->block++, r->page = 0) {
		const struct snap_block *part = &r->generation->snap.blocks[r->block];
		uint64_t pages = part->length / SNAP_PAGE;

		while (r->page < pages && !snap_has_page(part, r->page))
			r->page++;
		if (r->page == pages)
			continue;
		piece->part = part;
		piece->first = r->page;
		while (r->page < pages && r->page - piece->first < PIECE / SNAP_PAGE &&
		       snap_has_page(part, r->page))
			r->page++;
		piece->len = (unsigned int)((r->page - piece->first) * SNAP_PAGE);
		return true;
	}
	return false;
}

static bool next_piece(struct reading *r, struct piece *piece)
{
	bool more;

	pthread_mutex_lock(&r->lock);
	more = !r->ret && next_piece_locked(r, piece);
	pthread_mutex_unlock(&r->lock);
	return more;
}

static uint64_t offset_of(const struct piece *piece)
{
	return piece->part->pages_offset + piece->first * SNAP_PAGE;
}

static void fail(struct reading *r, int code, const char *fmt, unsigned long long offset, const char *why)
{
	pthread_mutex_lock(&r->lock);
	if (!r->ret)
		r->ret = error_set(r->err, code, fmt, r->path, offset, why);
	pthread_mutex_unlock(&r->lock);
}

/* Where a part's checksums begin; NULL when there are none. */
static const uint64_t *checksums_of(const struct reading *r, const struct snap_block *part)
{
	const struct record *record = &r->generation->record;
	uint64_t pages = 0;
	size_t i;

	for (i = 0; r->checksums && i < record->nr_blocks; i++) {
		if (!strcmp(record->blocks[i].name, part->name))
			return r->checksums + pages;
		pages += record->blocks[i].length / SNAP_PAGE;
	}
	return NULL;
}

uint64_t snap_checksum(const uint8_t *page, const uint8_t key[RECORD_KEY])
{
	uint64_t sum;

	crypto_shorthash((uint8_t *)&sum, page, SNAP_PAGE, key);
	sum = le64toh(sum);
	return sum ? sum : 1;
}

/* Is it what was written?  Returns the bytes of which that is known. */
static uint64_t check(struct reading *r, const struct piece *piece, const char *buf)
{
	const uint64_t *sums = checksums_of(r, piece->part);
	uint64_t i, bytes = 0;

	for (i = 0; sums && i < piece->len / SNAP_PAGE; i++) {
		uint64_t wanted = le64toh(sums[piece->first + i]);

		if (!wanted)
			continue;
		bytes += SNAP_PAGE;
		if (snap_checksum((const uint8_t *)buf + i * SNAP_PAGE, r->generation->record.key) == wanted)
			continue;
		pthread_mutex_lock(&r->lock);
		if (!r->ret)
			r->ret = error_set(r->err, EBADMSG,
					   "%s: generation %llu: page %llu of RAM block %s, at offset %llu, is not what was written",
					   r->path, (unsigned long long)r->generation->record.generation,
					   (unsigned long long)(piece->first + i), piece->part->name,
					   (unsigned long long)(offset_of(piece) + i * SNAP_PAGE));
		pthread_mutex_unlock(&r->lock);
	}
	return bytes;
}

static void take(struct reading *r, const struct piece *piece, int result, const char *buf)
{
	uint64_t checked = 0;

	if (result == (int)piece->len)
		checked = check(r, piece, buf);
	else
		fail(r, result < 0 ? -result : ENODATA, "%s: reading page data at offset %llu: %s",
		     offset_of(piece), result < 0 ? strerror(-result) : "the file ends there");
	pthread_mutex_lock(&r->lock);
	r->done += piece->len;
	r->checked += checked;
	if (r->progress)
		r->progress(r->done, r->data);
	pthread_mutex_unlock(&r->lock);
}

static void *read_pieces(void *arg)
{
	struct reading *r = arg;
	struct piece slot[DEPTH];
	unsigned int idle[DEPTH], nr_idle = DEPTH, i;
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	bool more = true;
	char *buf;
	int ret;

	buf = aligned_alloc(4096, (size_t)DEPTH * PIECE);
	ret = buf ? io_uring_queue_init(DEPTH, &ring, 0) : -ENOMEM;
	if (ret) {
		fail(r, -ret, "%s: io_uring of depth %llu: %s; it may be disabled (kernel.io_uring_disabled)", DEPTH,
		     strerror(-ret));
		free(buf);
		return NULL;
	}
	for (i = 0; i < DEPTH; i++)
		idle[i] = i;
	/* After an error no more is begun, but what is in flight is waited for: it writes to buf. */
	for (;;) {
		while (more && nr_idle) {
			struct io_uring_sqe *sqe;

			i = idle[nr_idle - 1];
			more = next_piece(r, &slot[i]);
			if (!more)
				break;
			nr_idle--;
			sqe = io_uring_get_sqe(&ring);
			io_uring_prep_read(sqe, r->fd, buf + (size_t)i * PIECE, slot[i].len,
					   offset_of(&slot[i]));
			io_uring_sqe_set_data64(sqe, i);
		}
		if (nr_idle == DEPTH)
			break;
		io_uring_submit_and_wait(&ring, 1);
		while (io_uring_peek_cqe(&ring, &cqe) == 0) {
			i = (unsigned int)cqe->user_data;
			ret = cqe->res;
			io_uring_cqe_seen(&ring, cqe);
			take(r, &slot[i], ret, buf + (size_t)i * PIECE);
			idle[nr_idle++] = i;
		}
	}
	io_uring_queue_exit(&ring);
	free(buf);
	return NULL;
}

/* The checksums of a generation that has them. */
static int read_checksums(struct reading *r, int fd)
{
	const struct record *record = &r->generation->record;
	uint64_t bytes = record_checksum_bytes(record);
	int ret;

	if (bytes == UINT64_MAX)
		return error_set(r->err, EBADMSG, "%s: the record of its checksums makes no sense", r->path);
	r->checksums = malloc(bytes);
	ret = r->checksums ? snap_pread(fd, r->checksums, bytes, record->checksums) : -ENOMEM;
	return ret ? error_set(r->err, -ret, "%s: reading its checksums: %s", r->path, strerror(-ret)) : 0;
}

/* A page that the generation does not have was zero, as far as checksums are known. */
static int check_absent(const struct reading *r)
{
	static const uint8_t zeros[SNAP_PAGE];
	const struct record *record = &r->generation->record;
	uint64_t zero = snap_checksum(zeros, record->key), page, wanted;
	const uint64_t *sums = r->checksums;
	size_t i;

	for (i = 0; sums && i < record->nr_blocks; i++) {
		const struct record_block *block = &record->blocks[i];

		for (page = 0; page < block->length / SNAP_PAGE; page++) {
			wanted = le64toh(*sums++);
			if (wanted && wanted != zero && !generation_page(r->generation, block->name, page))
				return error_set(r->err, EBADMSG,
						 "%s: generation %llu: page %llu of RAM block %s is missing",
						 r->path, (unsigned long long)record->generation,
						 (unsigned long long)page, block->name);
		}
	}
	return 0;
}

int snap_read_pages(const struct generation *generation, int fd, const char *path,
		    void (*progress)(uint64_t bytes, void *data), void *data, uint64_t *checked,
		    struct error *err)
{
	struct reading r = {
		.generation = generation, .path = path, .progress = progress, .data = data, .err = err,
		.lock = PTHREAD_MUTEX_INITIALIZER,
	};
	long i, nr = sysconf(_SC_NPROCESSORS_ONLN);
	pthread_t thread[MAX_THREADS];
	char proc[32];

	if (generation->record.checksums && read_checksums(&r, fd)) {
		free(r.checksums);
		return r.ret ? r.ret : -EBADMSG;
	}
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	r.fd = open(proc, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (r.fd < 0 && errno == EINVAL)
		r.fd = open(proc, O_RDONLY | O_CLOEXEC);
	if (r.fd < 0) {
		free(r.checksums);
		return error_set(err, errno, "%s: %s", path, strerror(errno));
	}
	nr = nr < 1 ? 1 : nr > MAX_THREADS ? MAX_THREADS : nr;
	/* One less, or none, if there can't be more: this one works too. */
	for (i = 0; i < nr - 1; i++)
		if (pthread_create(&thread[i], NULL, read_pieces, &r))
			break;
	read_pieces(&r);
	while (i)
		pthread_join(thread[--i], NULL);
	if (!r.ret)
		r.ret = check_absent(&r);
	*checked = r.checked;
	close(r.fd);
	free(r.checksums);
	return r.ret;
}
