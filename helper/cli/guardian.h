/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The guardian: a process that does what is left to undo when the helper dies in the
 * middle of a save, by whatever signal.  It shares the helper's QMP connection and uses
 * it only once the helper is gone.
 */
#ifndef GUARDIAN_H
#define GUARDIAN_H

#include <stdbool.h>

#include "error.h"

struct guardian {
	int fd;			/* our end of its pipe; -1 when there is none */
};

/*
 * Start it.  From now on, if the helper dies: @partial (NULL for none) is removed; between
 * guardian_stopped(true) and guardian_stopped(false) the VM is resumed, and likewise with
 * guardian_logging() QEMU's logging of writes is switched off.
 */
int guardian_start(struct guardian *guardian, int qmp_fd, const char *partial, struct error *err);
void guardian_stopped(struct guardian *guardian, bool stopped);
void guardian_logging(struct guardian *guardian, bool logging);

/* Nothing is left to undo: end it. */
void guardian_end(struct guardian *guardian);

/* Leave to it what is still to be undone. */
void guardian_leave(struct guardian *guardian);

#endif
