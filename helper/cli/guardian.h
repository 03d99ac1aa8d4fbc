/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The guardian: a process that does what is left to undo when the helper dies in the
 * middle of a save, by whatever signal, or loses its QMP connection.  It shares that and uses
 * it only once the helper is gone, or makes one of its own.
 */
#ifndef GUARDIAN_H
#define GUARDIAN_H

#include <stdbool.h>

#include "error.h"

struct qmp;

struct guardian {
	int fd;			/* our end of its pipe; -1 when there is none */
};

/*
 * Start it.  From now on, if the helper dies: between guardian_stopped(true) and
 * guardian_stopped(false) the VM is resumed, and likewise with guardian_logging() QEMU's logging of
 * writes is switched off.  @qmp is the helper's connection to the socket @path.
 */
int guardian_start(struct guardian *guardian, const struct qmp *qmp, const char *path, struct error *err);
void guardian_stopped(struct guardian *guardian, bool stopped);
void guardian_logging(struct guardian *guardian, bool logging);

/*
 * From now on a file that is to get the name @path may be there under its provisional one, to be
 * removed; or no more (NULL), which can't fail.  Not with a path of more than GUARDIAN_MAX_PATH bytes.
 */
#define GUARDIAN_MAX_PATH	4000
int guardian_partial(struct guardian *guardian, const char *path, struct error *err);

/* Nothing is left to undo: end it. */
void guardian_end(struct guardian *guardian);

/* Leave to it what is still to be undone. */
void guardian_leave(struct guardian *guardian);

#endif
