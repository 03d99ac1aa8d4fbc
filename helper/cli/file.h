/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FILE_H
#define FILE_H

#include "../snapfile/chain.h"

/* Open @path and read its generations: the descriptor, or a negative errno. */
int file_load(struct chain *chain, const char *path, struct error *err);

/* The same, and generation @number of it, or the newest that can be read, for 0, with a word when others may follow. */
int file_find(struct chain *chain, const char *path, uint64_t number, struct generation **generation,
	      struct error *err);

/* What QEMU's -incoming is given to load the generation of @record in the file @path; cut off at @size. */
void file_incoming(char *uri, size_t size, const char *path, const struct record *record);

#endif
