/* SPDX-License-Identifier: GPL-2.0 */
/* A folder of generations: files called NAME-NUMBER.snap. */
#ifndef FOLDER_H
#define FOLDER_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct folder_file {
	char *path;
	uint64_t number;		/* of its first generation */
};

struct folder {
	struct folder_file *file;	/* in the order of their numbers */
	size_t nr;
	uint64_t newest;		/* number of the newest generation, 0 for none */
};

/*
 * Read it; @name NULL for any file of the suffix.  What a save of that name that was killed has left
 * there goes (one that runs keeps its own).
 */
int folder_read(struct folder *folder, const char *dir, const char *name, struct error *err);
void folder_free(struct folder *folder);

void folder_path(char *path, size_t size, const char *dir, const char *name, uint64_t number);

#endif
