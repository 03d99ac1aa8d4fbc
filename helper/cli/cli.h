/* SPDX-License-Identifier: GPL-2.0 */
#ifndef CLI_H
#define CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "error.h"

/* Exit statuses: 0 done, 1 failed, 2 wrong usage, 130 interrupted. */
#define EXIT_USAGE		2
#define EXIT_INTERRUPTED	130

/* A subcommand: argv[0] is its name; returns the exit status. */
int cmd_save(int argc, char **argv);
int cmd_checkpoint(int argc, char **argv);
int cmd_receive(int argc, char **argv);
int cmd_restore(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_compact(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_top(int argc, char **argv);

/* Print "kvmsnap: text" on stderr. */
void complain(const struct error *err);

/* Print how a subcommand is used and return EXIT_USAGE. */
int usage_error(const char *usage, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "1.5 GiB".  Uses one of a few static buffers: for printf() alone. */
const char *human_bytes(double bytes);

/* A string for JSON, NULL for NULL; what is not UTF-8 has its bytes above 0x7f as \\xNN. */
json_t *json_text(const char *text);

/* A session's state and its save's phase (enum kvmsnap_state, kvmsnap_phase), as words. */
const char *state_name(uint32_t state);
const char *phase_name(uint32_t phase);

/* The module could not be asked for its sessions: say why.  @ret: negative errno.  Returns 1. */
int no_sessions(int ret);

/* Seconds since some start. */
double now(void);

/*
 * A line on stderr that is written over, while that is a terminal: percent, rate and time
 * left.  @began: from now().
 */
void progress_show(const char *what, uint64_t done, uint64_t total, uint64_t bytes, double began);
void progress_clear(void);

#endif
