/* SPDX-License-Identifier: GPL-2.0 */
/*
 * QMP, QEMU's machine protocol: a connection to its socket (docs/interop/qmp-spec.rst in
 * QEMU).  Commands are carried out one at a time; of the events in between, those that tell
 * that the VM was stopped or has gone on are noted.
 */
#ifndef QMP_H
#define QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "error.h"

struct qmp {
	int fd;
	pid_t peer;		/* process behind the socket */
	unsigned int id;	/* of the last command */
	bool stopped;		/* a STOP event has been seen */
	bool changed;		/* a RESUME or RESET event has been seen */
	bool lost;		/* the connection is: QEMU has gone, or closed it */
	char *buf;		/* received, not yet taken: whole and part lines */
	size_t len, size;
};

/* Connect to the socket at @path and negotiate.  Returns 0 or a negative errno. */
int qmp_connect(struct qmp *qmp, const char *path, struct error *err);

/* The same with a socket that is connected already, which is taken over. */
int qmp_greet(struct qmp *qmp, int fd, int timeout_ms, struct error *err);
void qmp_close(struct qmp *qmp);

/*
 * Carry out @command with @args (taken over; NULL for none), sending descriptor @fd along
 * unless it is -1.  Returns what QEMU returned, to be released by json_decref(), or NULL with
 * @err set.  Waits for the answer, @timeout_ms milliseconds at most.
 */
json_t *qmp_command(struct qmp *qmp, const char *command, json_t *args, int fd, int timeout_ms,
		    struct error *err);

/* The same for human monitor commands; returns their text, to be freed. */
char *qmp_hmp(struct qmp *qmp, const char *line, struct error *err);

/* Another process uses the connection from now on: no command is sent, as if it were lost. */
void qmp_give_up(struct qmp *qmp);

/* Drop what was sent unasked: events. */
void qmp_drain(struct qmp *qmp);

#endif
