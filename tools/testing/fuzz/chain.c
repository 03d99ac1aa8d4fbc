// SPDX-License-Identifier: GPL-2.0
/* libFuzzer: any bytes as a snapshot file, of one generation or several. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "snapfile/guest.h"

/* What its device state says, which may be anything. */
static void fuzz_guest(const struct generation *g, int fd)
{
	struct guest_mapping *mappings;
	struct guest guest;
	struct error err;

	if (guest_read(&guest, g, fd, NULL, &err))
		return;
	if (guest_mappings(&guest, g, fd, 100, &mappings, &err) >= 0)
		free(mappings);
	guest_free(&guest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("fuzz", 0), to = memfd_create("copy", 0);
	struct error err;
	struct chain chain;
	uint64_t checked;
	char path[64];
	size_t i, j;

	if (fd < 0 || to < 0 || snap_pwrite(fd, data, size, 0))
		abort();
	if (!chain_load(&chain, fd, &err)) {
		for (i = 0; i < chain.nr; i++) {
			struct generation *g = &chain.generation[i];

			if (generation_load(g, fd, &err))
				continue;
			fuzz_guest(g, fd);
			for (j = 0; j < g->record.nr_blocks; j++)
				generation_page(g, g->record.blocks[j].name, 0);
		}
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (chain_find(&chain, 0, fd, &err))
			snap_read_pages(&chain.generation[chain.nr - 1], fd, path, NULL, NULL, &checked, &err);
		chain_copy(&chain, fd, 0, chain.nr - 1, to, NULL, NULL, &err);
		chain_free(&chain);
	}
	close(fd);
	close(to);
	return 0;
}
