// SPDX-License-Identifier: GPL-2.0
#include "folder.h"
#include "target.h"
#include "../snapfile/chain.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUFFIX	".snap"

void folder_path(char *path, size_t size, const char *dir, const char *name, uint64_t number)
{
	snprintf(path, size, "%s/%s-%06llu" SUFFIX, dir, name, (unsigned long long)number);
}

/*
 * The number in such a name, 0 when it is none; what follows is in *rest.  Without @name any file is one
 * that ends so, if not with a number.
 */
static uint64_t parse_name(const char *file, const char *name, const char **rest)
{
	const char *dash = name ? file + strlen(name) : strrchr(file, '-'), *suffix = strstr(file, SUFFIX);
	unsigned long long number;
	char *end;

	*rest = NULL;
	if (name && strncmp(file, name, strlen(name)))
		return 0;
	*rest = !name && suffix ? suffix + strlen(SUFFIX) : NULL;
	if (!dash || *dash != '-' || dash[1] < '0' || dash[1] > '9')
		return 0;
	number = strtoull(dash + 1, &end, 10);
	if (strncmp(end, SUFFIX, strlen(SUFFIX)))
		return 0;
	*rest = end + strlen(SUFFIX);
	return number;
}

static int by_number(const void *a, const void *b)
{
	const struct folder_file *x = a, *y = b;

	return x->number < y->number ? -1 : x->number > y->number ? 1 : strcmp(x->path, y->path);
}

static int add(struct folder *folder, const char *path, uint64_t number)
{
	struct folder_file *more = realloc(folder->file, (folder->nr + 1) * sizeof(*more));

	if (!more)
		return -ENOMEM;
	folder->file = more;
	more[folder->nr] = (struct folder_file){ .path = strdup(path), .number = number };
	return more[folder->nr++].path ? 0 : -ENOMEM;
}

/* The newest file may hold others behind its first. */
static uint64_t newest_of(const struct folder_file *file)
{
	uint64_t newest = file->number;
	struct error ignored;
	struct chain chain;
	int fd = open(file->path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && !chain_load(&chain, fd, &ignored)) {
		if (chain.generation[chain.nr - 1].record.generation > newest)
			newest = chain.generation[chain.nr - 1].record.generation;
		chain_free(&chain);
	}
	if (fd >= 0)
		close(fd);
	return newest;
}

int folder_read(struct folder *folder, const char *dir, const char *name, struct error *err)
{
	DIR *d = opendir(dir);
	struct dirent *entry;
	const char *rest;
	uint64_t number;
	char path[4096];
	int ret = 0;

	*folder = (struct folder){ 0 };
	if (!d)
		return error_set(err, errno, "%s: %s", dir, strerror(errno));
	while (!ret && (entry = readdir(d))) {
		number = parse_name(entry->d_name, name, &rest);
		if (!rest)
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		if (!*rest)
			ret = add(folder, path, number);
		else if (name && !strcmp(rest, TARGET_PARTIAL))
			target_remove_torn(path, false);
	}
	closedir(d);
	if (folder->nr) {
		qsort(folder->file, folder->nr, sizeof(*folder->file), by_number);
		folder->newest = newest_of(&folder->file[folder->nr - 1]);
	}
	if (ret)
		folder_free(folder);
	return ret ? error_set(err, -ret, "%s: %s", dir, strerror(-ret)) : 0;
}

void folder_free(struct folder *folder)
{
	size_t i;

	for (i = 0; i < folder->nr; i++)
		free(folder->file[i].path);
	free(folder->file);
	*folder = (struct folder){ 0 };
}
