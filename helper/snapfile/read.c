// SPDX-License-Identifier: GPL-2.0
/* Reading all pages of a file at disk speed. */
#include "snapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEPTH	16
#define PIECE	(1u << 20)

/* Walks the runs of pages that are in the file, in pieces. */
struct walk {
	const struct snapfile *snap;
	size_t block;
	uint64_t page;
};

static bool present(const struct snap_block *block, uint64_t page)
{
	return block->bitmap[page / 8] >> (page % 8) & 1;
}

static bool next_piece(struct walk *w, uint64_t *offset, unsigned int *len)
{
	for (; w->block < w->snap->nr_blocks; w->block++, w->page = 0) {
		const struct snap_block *block = &w->snap->blocks[w->block];
		uint64_t pages = block->length / SNAP_PAGE, first;

		while (w->page < pages && !present(block, w->page))
			w->page++;
		if (w->page == pages)
			continue;
		first = w->page;
		while (w->page < pages && w->page - first < PIECE / SNAP_PAGE &&
		       present(block, w->page))
			w->page++;
		*offset = block->pages_offset + first * SNAP_PAGE;
		*len = (unsigned int)((w->page - first) * SNAP_PAGE);
		return true;
	}
	return false;
}

int snap_read_pages(const struct snapfile *snap, const char *path,
		    void (*progress)(uint64_t bytes, void *data), void *data, struct error *err)
{
	struct walk walk = { .snap = snap };
	struct { uint64_t offset; unsigned int len; } slot[DEPTH];
	unsigned int idle[DEPTH], nr_idle = DEPTH, i;
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	uint64_t done = 0;
	bool more = true;
	char *buf;
	int fd, ret;

	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd < 0 && errno == EINVAL)
		fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_set(err, errno, "%s: %s", path, strerror(errno));
	buf = aligned_alloc(4096, (size_t)DEPTH * PIECE);
	if (!buf) {
		ret = error_set(err, ENOMEM, "out of memory");
		goto out_fd;
	}
	ret = io_uring_queue_init(DEPTH, &ring, 0);
	if (ret) {
		ret = error_set(err, -ret, "io_uring: %s; it may be disabled (kernel.io_uring_disabled)",
				strerror(-ret));
		goto out_buf;
	}
	for (i = 0; i < DEPTH; i++)
		idle[i] = i;

	/* After an error no more is begun, but what is in flight is waited for: it writes to buf. */
	for (;;) {
		while (more && nr_idle) {
			struct io_uring_sqe *sqe;

			i = idle[nr_idle - 1];
			more = next_piece(&walk, &slot[i].offset, &slot[i].len);
			if (!more)
				break;
			nr_idle--;
			sqe = io_uring_get_sqe(&ring);
			io_uring_prep_read(sqe, fd, buf + (size_t)i * PIECE, slot[i].len, slot[i].offset);
			io_uring_sqe_set_data64(sqe, i);
		}
		if (nr_idle == DEPTH)
			break;
		io_uring_submit_and_wait(&ring, 1);
		while (io_uring_peek_cqe(&ring, &cqe) == 0) {
			i = (unsigned int)cqe->user_data;
			if (cqe->res != (int)slot[i].len && !ret) {
				ret = error_set(err, cqe->res < 0 ? -cqe->res : ENODATA,
						"%s: reading page data at offset %llu: %s", path,
						(unsigned long long)slot[i].offset,
						cqe->res < 0 ? strerror(-cqe->res) : "the file ends there");
				more = false;
			}
			done += slot[i].len;
			idle[nr_idle++] = i;
			io_uring_cqe_seen(&ring, cqe);
		}
		if (progress)
			progress(done, data);
	}
	io_uring_queue_exit(&ring);
out_buf:
	free(buf);
out_fd:
	close(fd);
	return ret;
}
